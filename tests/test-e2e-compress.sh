#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Exports that store what is written compressed: the image is small, its contents are what clients
# wrote, in whatever pieces and however often, QEMU finds nothing wrong with it, and what cannot be
# compressed is refused.  A random client (disk.py) works on it beside nbdcopy.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io nbdcopy
requires_python_nbd
use_seed

# option HOW: what switches compression on.
option ()
{
  case $FRONTEND in
  nbdcow) echo "arg=--compress${1:+=$1}" ;;
  nbdkit) echo "arg=compress=${1:-on}" ;;
  esac
}

seq "$((SEED % 1000))" 99999999 | head -c 16777216 >text.raw
head -c 3000000 /dev/urandom >>text.raw
truncate -s 24M text.raw

for options in cluster_size=4096 compression_type=zstd,refcount_bits=64 cluster_size=2M \
  compat=0.10,cluster_size=512 refcount_bits=1; do
  echo "== $options"
  rm -f ./*.qcow2
  qemu-img create -q -f qcow2 -o "$options" disk.qcow2 24M
  start_server disk.qcow2 "$(option)"
  timeout 120 nbdcopy text.raw "$URI"
  same_contents text.raw raw "$URI" raw
  stop_server
  check_image disk.qcow2
  same_contents text.raw raw disk.qcow2 qcow2
  # Without sharing, each cluster has a host cluster of which the file system keeps what was written.
  case $options in
  cluster_size=2M | refcount_bits=1 | *=512) most=16777216 ;;
  *) most=13000000 ;;
  esac
  [ $(($(stat -c %b disk.qcow2) * 512)) -lt $most ] || fail "$options: the image is not small: $(stat -c %b disk.qcow2)"

  # Over it in all ways, with compression and without.
  start_server disk.qcow2 "$(option 1)"
  timeout 60 nbdcopy text.raw "$URI"
  stop_server
  start_server disk.qcow2
  qemu-io -f raw -c "write -P 3 100k 300k" -c "write -P 4 7M 512" -c "write -z 9M 1M" "$URI" >/dev/null
  stop_server
  start_server disk.qcow2 discard=unmap "$(option 3)"
  qemu-io -f raw -c "write -P 5 200k 3M" -c "discard 12M 1M" "$URI" >/dev/null
  timeout 60 nbdcopy "$URI" now.raw
  stop_server
  check_image disk.qcow2
  same_contents now.raw raw disk.qcow2 qcow2
done

# A random client, on an overlay.
echo "== random"
rm -f ./*.qcow2
"$PYTHON" "$SRCDIR/disk.py" fill expected.raw 4194304
qemu-img convert -c -f raw -O qcow2 expected.raw base.qcow2
qemu-img create -q -f qcow2 -o cluster_size=8k -b base.qcow2 -F qcow2 disk.qcow2
start_server disk.qcow2 discard=unmap "$(option)"
GRAIN=8192 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" expected.raw 150
same_contents expected.raw raw "$URI" raw
stop_server
check_image disk.qcow2
same_contents expected.raw raw disk.qcow2 qcow2

# What cannot be.
truncate -s 1M plain.raw
case $FRONTEND in
nbdcow)
  must_refuse plain.raw format=raw "$(option)" -- compress
  must_refuse disk.qcow2 arg=--compress=0 -- --compress=0
  must_refuse disk.qcow2 arg=--compress=99 -- "zlib has levels 1 to"
  echo "== qemu-nbd's way, --export and a configuration file"
  qemu-img create -q -f qcow2 one.qcow2 24M
  start_server "driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=one.qcow2" \
    arg=--image-opts
  timeout 60 nbdcopy text.raw "$URI"
  stop_server
  [ $(($(stat -c %b one.qcow2) * 512)) -lt 13000000 ] || fail "driver=compress does not compress"
  for how in '"compress": true' '"compress": 9' '"export": {"name": "", "file": "two.qcow2", "compress": 2}'; do
    rm -f two.qcow2
    qemu-img create -q -f qcow2 two.qcow2 24M
    echo "{$how}" >config.json
    case $how in
    *export*)
      timeout 60 "$NBDCOW" --config=config.json --state-dir="$STATE_DIR" --socket="$SOCK" \
        --run="nbdcopy text.raw 'nbd+unix:///?socket=$SOCK'"
      ;;
    *)
      start_server two.qcow2 arg=--config=config.json
      timeout 60 nbdcopy text.raw "$URI"
      stop_server
      ;;
    esac
    [ $(($(stat -c %b two.qcow2) * 512)) -lt 13000000 ] || fail "$how does not compress"
    same_contents text.raw raw two.qcow2 qcow2
  done
  ;;
nbdkit)
  must_refuse plain.raw format=raw "$(option)" -- compress
  must_refuse disk.qcow2 arg=compress=0 -- compress=0
  must_refuse disk.qcow2 arg=compress=99 -- "zlib has levels 1 to"
  ;;
esac
