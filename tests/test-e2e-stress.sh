#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Many clients at once: disjoint and overlapping writers, zeroes, discards, flushes, readers who know
# what they must read; then everything is verified (stress.c says how), and the image checks clean.
# DURATION is for each image (default 4 seconds).

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires_file "$BUILDDIR/stress" "the program stress"
requires qemu-img qemu-io
use_seed
seconds=${DURATION:-4}

# run NAME STRESS_OPTION...: on disk.qcow2.
run ()
{
  echo "== $1"
  shift
  start_server disk.qcow2 discard=unmap
  timeout $((seconds * 10 + 60)) "$BUILDDIR/stress" --seed="$SEED" --seconds="$seconds" "$@" "$URI"
  stop_server
  server_log_is_empty
  check_image disk.qcow2
  rm disk.qcow2
}

qemu-img create -q -f qcow2 disk.qcow2 64M
run "an empty image"

qemu-img create -q -f qcow2 -o cluster_size=4096,refcount_bits=1 disk.qcow2 64M
run "clusters of 4 KiB, refcounts of one bit" --clients=4 --depth=16

qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 16M
run "clusters of 512 bytes" --area=4194304

qemu-img create -q -f qcow2 -o cluster_size=2097152,compat=0.10 disk.qcow2 64M
run "version 2, clusters of 2 MiB" --clients=16 --depth=2

qemu-img create -q -f raw data.raw 32M
qemu-io -f raw -c 'write -q -P 0x21 0 20M' data.raw
qemu-img convert -c -f raw -O qcow2 data.raw base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2 64M
base=$(digest base.qcow2)
run "over a compressed backing file, shorter than the overlay" --area=50331648
unchanged "$base" base.qcow2

qemu-img convert -c -f raw -O qcow2 data.raw disk.qcow2
run "compressed clusters replaced"

qemu-img convert -f raw -O qcow2 data.raw disk.qcow2
qemu-img snapshot -c s disk.qcow2
run "an internal snapshot"

qemu-img create -q -f qcow2 -o lazy_refcounts=on disk.qcow2 64M
run "lazy refcounts, no discards" --no-trim
