#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# fio's nbd engine writes, and verifies by checksum what it wrote; then QEMU looks at the image.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires fio qemu-img
fio --enghelp | grep -qw nbd || skip "this fio has no nbd engine"
use_seed

# job SIZE OPTIONS FIO_OPTION...
job ()
{
  size=$1 opts=$2
  shift 2
  echo "== $opts $*"
  rm -f disk.qcow2
  qemu-img create -q -f qcow2 -o "$opts" disk.qcow2 "$size"
  start_server disk.qcow2 discard=unmap
  timeout 100 fio --name=job --ioengine=nbd --uri="$URI" --size="$size" --randseed="$SEED" \
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --verify_backlog=256 \
    --output=fio.out "$@" || { cat fio.out; fail "fio failed"; }
  stop_server
  server_log_is_empty
  check_image disk.qcow2
}

job 64M cluster_size=65536 --rw=randwrite --bs=4k --iodepth=32 --fsync=100
job 64M cluster_size=65536 --rw=write --bs=1M --iodepth=8
job 32M cluster_size=4096 --rw=randrw --bsrange=512-64k --bs_unaligned=0 --iodepth=16 \
  --io_size=64M --norandommap=0 --serialize_overlap=1
job 16M cluster_size=512 --rw=randwrite --bs=1k --iodepth=16 --io_size=16M
job 64M cluster_size=2097152,compat=0.10 --rw=randwrite --bs=8k --iodepth=32
job 64M cluster_size=65536,lazy_refcounts=on --rw=randwrite --bs=4k --iodepth=32 --fsync=16
