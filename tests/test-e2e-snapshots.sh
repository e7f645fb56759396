#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# An image that holds internal snapshots is written; no snapshot changes.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io
requires_python_nbd
use_seed

# try OPTIONS SIZE [compressed]
try ()
{
  echo "== $*"
  opts=$1 size=$(numfmt --from=iec "$2")
  GRAIN=$(echo "$opts" | sed -n 's/.*cluster_size=\([0-9]*\).*/\1/p')
  GRAIN=${GRAIN:-65536}
  export GRAIN
  rm -f disk.qcow2 model one.raw two.raw
  "$PYTHON" "$SRCDIR/disk.py" fill model "$size"
  qemu-img convert ${3:+-c} -f raw -O qcow2 -o "$opts" model disk.qcow2
  cp model one.raw
  qemu-img snapshot -c one disk.qcow2
  ROUND=q "$PYTHON" "$SRCDIR/disk.py" qemu disk.qcow2 model 20
  cp model two.raw
  qemu-img snapshot -c two disk.qcow2

  start_server disk.qcow2 discard=unmap
  ROUND=1 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 150
  stop_server
  server_log_is_empty
  check_image disk.qcow2
  same_contents disk.qcow2 qcow2 model raw
  for snap in one two; do
    qemu-img convert -l $snap -f qcow2 -O raw disk.qcow2 got.raw
    cmp got.raw $snap.raw
  done

  # The first is deleted by QEMU: what only the second shares must still be copied, what is nobody's need
  # not be.  Then QEMU reverts to the second.
  qemu-img snapshot -d one disk.qcow2
  start_server disk.qcow2 discard=unmap
  ROUND=2 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 100
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  stop_server
  check_image disk.qcow2
  same_contents disk.qcow2 qcow2 model raw
  qemu-img snapshot -a two disk.qcow2
  check_image disk.qcow2
  same_contents disk.qcow2 qcow2 two.raw raw
  cp two.raw model
  start_server disk.qcow2 discard=unmap
  ROUND=3 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 50
  stop_server
  check_image disk.qcow2
  same_contents disk.qcow2 qcow2 model raw
  qemu-img convert -l two -f qcow2 -O raw disk.qcow2 got.raw
  cmp got.raw two.raw
  qemu-img snapshot -d two disk.qcow2
  check_image disk.qcow2
}

try compat=1.1 4M
try compat=0.10,cluster_size=4096 2M
try cluster_size=512,refcount_bits=2 1M
try cluster_size=1024,refcount_bits=64 1M
try cluster_size=2097152 8M
try cluster_size=65536 4M compressed
try cluster_size=4096,compression_type=zstd 2M compressed
try lazy_refcounts=on 4M
