#!/bin/sh
# What travels to a machine with a GPU and without Rust: one program and one test binary, stripped, into a folder that
# is kept below 60 MiB.
#
#     sh benches/gpu/pack.sh [FOLDER]         target/gpu-pack if absent
#     PROFILE=debug sh benches/gpu/pack.sh    from what is built already, to try the scripts
#
# The program is a release build with the embedded binaries of all kernels (NVRTC must be there); the demo model stays
# in it, since the doctor draws with it. The test binary brings the kernels' host twins, for proofs.
set -eu
cd "$(dirname "$0")/../.."
folder=${1:-target/gpu-pack}
profile=${PROFILE:-release}
case $profile in
release) cargo build --release --features require-cubins --bin unguide ;;
debug) cargo build --features simt --bin unguide ;;
esac
tests=$(cargo test --features simt --test gpu --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*gpu-[^"]*\)".*/\1/p' | tail -n 1)
mkdir -p "$folder"
strip -o "$folder/unguide" "target/$profile/unguide"
strip -o "$folder/gpu-tests" "$tests"
git rev-parse HEAD > "$folder/commit"
bytes=$(du -sb "$folder" | cut -f 1)
ls -l "$folder"
if [ "$bytes" -gt $((60 * 1024 * 1024)) ]; then
    echo "$folder has $bytes bytes, more than 60 MiB" >&2
    exit 1
fi
echo "$folder: $bytes bytes"
