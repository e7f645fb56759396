#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# corpus.sh BUILD TARGET DIRECTORY: makes what fuzzing TARGET begins with: the inputs that the
# target makes by itself, and, for images, some of qemu-img's and nbdcow-img's, if they are there.
# SEED chooses what is asked of these.  FUZZ_FRESH=1: none of them (salts and versions make them
# different each time), so that what is made is always the same.

set -eu
[ $# -eq 3 ] || { echo "usage: $0 BUILD TARGET DIRECTORY" >&2; exit 2; }
build=$1 target=$2 corpus=$3
bin=$build/tests/fuzz
img=$build/server/img/nbdcow-img
seed=${SEED:-1}

mkdir -p "$corpus"
"$bin/replay-$target" --seeds "$corpus"
here=$(cd "$(dirname "$0")" && pwd)
for hex in "$here/regress/$target"-*.hex; do
  [ -e "$hex" ] || continue
  "$bin/replay-$target" --bytes "$hex" >"$corpus/$(basename "$hex" .hex)"
done
[ "$target" = image ] && [ -z "${FUZZ_FRESH:-}" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
cd "$work"
head -c 65536 /dev/zero >base
n=0

# keep NAME: takes the image "image" in.
keep () {
  n=$((n + 1))
  for k in 0 1; do
    "$bin/fuzz-pack" $((seed * 1000 + n * 10 + k)) image >"$corpus/$1-$k" || rm -f "$corpus/$1-$k"
  done
  rm -f image
}

# fill: some data in "image", which is 256 KiB.
fill () {
  qemu-io -f qcow2 -c "write -P 1 0 8k" -c "write -P 2 100k 1k" -c "write -z 32k 32k" \
    -c "discard 0 4k" image >/dev/null
}

if command -v qemu-img >/dev/null && command -v qemu-io >/dev/null; then
  for options in compat=0.10 compat=1.1 compat=1.1,cluster_size=512 compat=1.1,cluster_size=4k \
    compat=1.1,cluster_size=16k,extended_l2=on compat=1.1,cluster_size=512,refcount_bits=1 \
    compat=1.1,cluster_size=512,refcount_bits=64 compat=1.1,lazy_refcounts=on,cluster_size=4k \
    compat=1.1,preallocation=metadata,cluster_size=4k; do
    qemu-img create -q -f qcow2 -o "$options" image 256k
    fill
    keep "qemu-$(echo "$options" | tr -c 'a-z0-9\n' -)"
  done
  qemu-img create -q -f qcow2 -o cluster_size=4k,backing_file=base,backing_fmt=raw image 256k
  fill
  keep qemu-backing
  qemu-img create -q -f qcow2 -o cluster_size=1k image 256k
  fill
  qemu-img snapshot -c first image
  fill
  qemu-img snapshot -c second image
  keep qemu-snapshots
  qemu-img create -q -f qcow2 -o cluster_size=1k image 256k
  qemu-img bitmap --add -g 4k image b0 2>/dev/null && qemu-img bitmap --add -g 64k image b1
  fill
  keep qemu-bitmaps
  head -c 200000 /bin/sh >raw
  for type in zlib zstd; do
    qemu-img convert -q -c -f raw -O qcow2 -o cluster_size=4k,compression_type=$type raw image &&
      keep qemu-compressed-$type
  done
  qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=data image 256k && fill && keep qemu-data
else
  echo "corpus.sh: qemu-img and qemu-io were not found: the corpus is without their images" >&2
fi

if [ -x "$img" ]; then
  "$img" create -q -f qcow2 -o cluster_size=4k,refcount_bits=8 image 256k && keep nbdcow-plain
  "$img" create -q -f qcow2 -o cluster_size=16k,extended_l2=on,lazy_refcounts=on image 256k &&
    keep nbdcow-subclusters
fi
