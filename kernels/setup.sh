#!/bin/sh
# Installs the pinned CUDA compiler library (NVRTC 12.9.86) into target/nvrtc, where the build looks for it, and the
# pinned disassembler (nvdisasm 13.5.37) into target/nvdisasm, where the test of what it made looks for it.
# Nothing else of CUDA is needed. A few seconds with pip; the folders have 110 MB and 6 MB.
set -eu
cd "$(dirname "$0")/.."

# A package of that version and hash, into a folder of target, unless it is there.
install() {
    folder="target/$1"
    stamp="$folder/$3"
    if [ -e "$stamp" ]; then return; fi
    rm -rf "$folder"
    mkdir -p "$folder"
    requirements="$folder/requirements.txt"
    printf '%s==%s --hash=sha256:%s\n' "$2" "$3" "$4" > "$requirements"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
        --target "$folder" --requirement "$requirements"
    : > "$stamp"
    # Cargo watches this file: a build that found no library looks again.
    touch kernels/setup.sh
}

install nvrtc nvidia-cuda-nvrtc-cu12 12.9.86 210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4
install nvdisasm nvidia-cuda-nvdisasm 13.5.37 d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca
# The alternative library does the same in twice the space.
rm -f target/nvrtc/nvidia/cuda_nvrtc/lib/*.alt.*
