#!/bin/sh
# What travels to a machine with a GPU and without Rust: one program and one test binary, stripped and compressed into
# one file that is kept below 60 MiB together with the files of the repository, which travel beside it.
#
#     sh benches/gpu/pack.sh [FILE]           target/gpu-pack.tar.xz if absent
#     PROFILE=debug sh benches/gpu/pack.sh    from what is built already, to try the scripts
#
# The program is a release build with the embedded binaries of all kernels (NVRTC must be there); the demo model stays
# in it, since the doctor draws with it. The test binary brings the kernels' host twins, for proofs.
set -eu
cd "$(dirname "$0")/../.."
file=${1:-target/gpu-pack.tar.xz}
folder=target/gpu-pack
profile=${PROFILE:-release}
case $profile in
release) cargo build --release --features require-cubins --bin unguide ;;
debug) cargo build --features simt --bin unguide ;;
*)
    echo "PROFILE: expected release or debug, found \`$profile\`" >&2
    exit 1
    ;;
esac
tests=$(cargo test --features simt --test gpu --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*gpu-[^"]*\)".*/\1/p' | tail -n 1)
mkdir -p "$folder"
strip -o "$folder/unguide" "target/$profile/unguide"
strip -o "$folder/gpu-tests" "$tests"
git rev-parse HEAD > "$folder/commit"
ls -l "$folder"
XZ_OPT=-3 tar -cJf "$file" -C "$folder" unguide gpu-tests commit
bytes=$(wc -c < "$file")
beside=$(git ls-files -z | xargs -0 cat | wc -c)
echo "$file: $bytes bytes, and $beside of the repository"
if [ $((bytes + beside)) -gt $((60 * 1024 * 1024)) ]; then
    echo "that is more than 60 MiB" >&2
    exit 1
fi
