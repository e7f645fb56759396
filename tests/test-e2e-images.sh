#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Random operations through a front end on images of every shape that qemu-img makes: after each, the
# contents equal the model's, by NBD and by QEMU, and the image checks clean.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img
requires_python_nbd
use_seed

count=${ROUNDS:-150}

# try NAME SIZE OPTIONS [compressed]
try ()
{
  name=$1 size=$(numfmt --from=iec "$2") opts=$3 how=${4:-}
  echo "== $name $size $opts $how"
  GRAIN=$(echo "$opts" | sed -n 's/.*cluster_size=\([0-9]*\).*/\1/p')
  GRAIN=${GRAIN:-65536}
  export GRAIN
  rm -f disk.qcow2 model
  "$PYTHON" "$SRCDIR/disk.py" fill model "$size"
  if [ "$how" = compressed ]; then
    qemu-img convert -c -f raw -O qcow2 -o "$opts" model disk.qcow2
  elif [ "$how" = empty ]; then
    rm model
    truncate -s "$size" model
    qemu-img create -q -f qcow2 -o "$opts" disk.qcow2 "$size"
  else
    qemu-img convert -f raw -O qcow2 -o "$opts" model disk.qcow2
  fi
  start_server disk.qcow2 discard=unmap
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model "$count"
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  same_contents "$URI" raw model raw
  stop_server
  server_log_is_empty
  check_image disk.qcow2
  same_contents disk.qcow2 qcow2 model raw
}

# Every cluster size, refcount width and version at least once, the extremes together.
try v2 6M compat=0.10,cluster_size=65536
try v2-small 2M compat=0.10,cluster_size=512
try v2-large 20M compat=0.10,cluster_size=2097152
try v2-compressed 6M compat=0.10,cluster_size=4096 compressed
bits=1
for cluster in 512 1024 2048 8192 16384 32768 65536 131072 524288 1048576 2097152; do
  try v3 $((cluster > 65536 ? 8 * cluster : cluster < 4096 ? 2097152 : 6291456)) \
    cluster_size=$cluster,refcount_bits=$bits
  bits=$((bits == 64 ? 1 : bits * 2))
done
try v3-odd-size 5243392 cluster_size=65536 # 10241 sectors
try v3-1bit-compressed 4M cluster_size=65536,refcount_bits=1
try v3-empty 9M cluster_size=65536,refcount_bits=64 empty
try v3-empty-tiny 2M cluster_size=512,refcount_bits=64 empty
try v3-lazy 6M lazy_refcounts=on
try v3-lazy-tiny 2M lazy_refcounts=on,cluster_size=1024 empty
try v3-prealloc 6M preallocation=metadata empty
try v3-falloc 4M preallocation=falloc,cluster_size=4096 empty
for type in zlib zstd; do
  for cluster in 512 4096 65536 2097152; do
    try v3-$type $((cluster > 65536 ? 8388608 : cluster < 4096 ? 1048576 : 4194304)) \
      compression_type=$type,cluster_size=$cluster compressed
  done
done
