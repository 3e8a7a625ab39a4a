#!/bin/sh
# Installs the pinned CUDA compiler library (NVRTC 12.9.86) into target/nvrtc, where the build looks for it.
# Nothing else of CUDA is needed. A few seconds with pip; the folder has 110 MB.
set -eu
cd "$(dirname "$0")/.."

folder=target/nvrtc
stamp="$folder/12.9.86"
[ -e "$stamp" ] && exit 0

rm -rf "$folder"
mkdir -p "$folder"
requirements="$folder/requirements.txt"
cat > "$requirements" <<'END'
nvidia-cuda-nvrtc-cu12==12.9.86 \
    --hash=sha256:210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4
END
python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
    --target "$folder" --requirement "$requirements"
# The alternative library does the same in twice the space.
rm -f "$folder"/nvidia/cuda_nvrtc/lib/*.alt.*
: > "$stamp"
# Cargo watches this file: a build that found no library looks again.
touch kernels/setup.sh
