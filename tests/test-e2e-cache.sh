#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Every cache mode: O_DIRECT has rules of alignment that guests know nothing of, writethrough makes each
# acknowledged write durable, unsafe may skip syncs but nothing else.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io
requires_python_nbd
use_seed

# O_DIRECT is not for every file system.
dd if=/dev/zero of=probe bs=4096 count=1 oflag=direct status=none 2>/dev/null ||
  skip "no O_DIRECT in $tmp: set TMPDIR"

# try MODE SIZE FORMAT [OPTIONS]
try ()
{
  echo "== $*"
  mode=$1 size=$2 format=$3 opts=${4:-}
  rm -f disk model base.qcow2
  "$PYTHON" "$SRCDIR/disk.py" fill model "$size"
  GRAIN=65536
  case $format in
  raw) cp model disk ;;
  chain)
    # A base of an odd length, compressed, with clusters smaller than a page.
    qemu-img convert -c -f raw -O qcow2 -o cluster_size=2048 model base.qcow2
    qemu-img create -q -f qcow2 -o "$opts" -b base.qcow2 -F qcow2 disk $((size + 1048576))
    truncate -s $((size + 1048576)) model
    ;;
  *)
    GRAIN=$(echo "$opts" | sed -n 's/.*cluster_size=\([0-9]*\).*/\1/p')
    qemu-img convert -f raw -O qcow2 -o "$opts" model disk
    ;;
  esac
  [ "$format" = raw ] || format=qcow2
  export GRAIN
  start_server disk format=$format cache="$mode" discard=unmap
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 80
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  if [ "$mode" = writethrough ] || [ "$mode" = directsync ]; then
    # Without any flush, what a reader finds in the file alone.
    "$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"w" * 100000, 300001)
h.pwrite(b"w" * 10, 700)
open("written", "w").close()' "$URI"
    qemu-img convert -U -f $format -O raw disk now.raw
    cmp -n 100000 -i 300001:0 now.raw /dev/stdin <<END || fail "a write was not through"
$(head -c 100000 /dev/zero | tr '\0' w)
END
    qemu-io -f raw -c 'write -q -P 0x77 300001 100000' -c 'write -q -P 0x77 700 10' model
  fi
  stop_server
  server_log_is_empty
  if [ $format = qcow2 ]; then check_image disk; fi
  same_contents disk $format model raw
  # The file must not have grown by what O_DIRECT needed.
  if [ $format = raw ]; then cmp disk model; fi
}

for mode in none directsync writethrough writeback unsafe; do
  try $mode 3000000 raw
  try $mode 3145728 qcow2 cluster_size=65536
  try $mode 1048576 qcow2 cluster_size=512
  try $mode 2097664 qcow2 cluster_size=4096,compat=0.10
  try $mode 2097152 chain cluster_size=1024
done
