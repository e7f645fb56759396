#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The engine is killed at random instants on images of every kind; see kill/kill.c.  By hand, DURATION is the
# seconds for each image, ROUNDS the kills of each, SEED the seed.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires qemu-img qemu-io
requires_file "$BUILDDIR/kill/kill" kill/kill
use_seed
. "$SRCDIR/kill/state.sh"

if [ -n "${DURATION:-}" ]; then
  limit="-r ${ROUNDS:-0} -d $DURATION"
else
  limit="-r ${ROUNDS:-6}"
fi
killer ()
{
  echo "$*"
  # shellcheck disable=SC2086 # several words
  timeout 3600 "$BUILDDIR/kill/kill" -s "$SEED" $limit "$@"
}

# image NAME OPTION... : makes it, 40 MiB.
image ()
{
  _name=$1
  shift
  qemu-img create -q -f qcow2 "$@" "$_name" 40M
}
io ()
{
  _name=$1
  shift
  qemu-io -f qcow2 "$@" "$_name" >io.out || fail "qemu-io: $(cat io.out)"
}

for bits in 9 12 14 16 18 21; do
  image disk.qcow2 -o cluster_size=$((1 << bits))
  killer -D "$STATE" -q 2 disk.qcow2
done
# The refcount table grows again and again; tables are evicted all the time.
for width in 1 2 4 8 32 64; do
  image disk.qcow2 -o cluster_size=512,refcount_bits=$width
  killer -D "$STATE" -q 2 -a 12582912 disk.qcow2
  image disk.qcow2 -o cluster_size=4096,refcount_bits=$width
  killer -D "$STATE" -q 2 -c 20000 disk.qcow2
done
image disk.qcow2 -o cluster_size=512
killer -D "$STATE" -q 2 -t 16 -c 16000 disk.qcow2
image disk.qcow2 -o lazy_refcounts=on
killer -D "$STATE" -q 2 disk.qcow2
image disk.qcow2 -o preallocation=metadata
killer -D "$STATE" -q 2 disk.qcow2

# Backing files, one shorter than the disk, compressed clusters, an internal snapshot.
head -c 5000192 /dev/urandom >base.raw
for cluster in 4096 65536; do
  image disk.qcow2 -b base.raw -F raw -o cluster_size=$cluster
  killer -D "$STATE" -q 2 disk.qcow2
  qemu-img convert -c -f raw -O qcow2 -o cluster_size=$cluster base.raw compressed.qcow2
  image disk.qcow2 -b compressed.qcow2 -F qcow2 -o cluster_size=$cluster
  killer -D "$STATE" -q 2 -c 100000 disk.qcow2
  qemu-img check -q compressed.qcow2
  qemu-img resize -q compressed.qcow2 40M
  killer -D "$STATE" -q 2 compressed.qcow2
  image disk.qcow2 -o cluster_size=$cluster
  io disk.qcow2 -c 'write -P 1 0 8M'
  qemu-img snapshot -c one disk.qcow2
  killer -D "$STATE" -q 2 disk.qcow2
  qemu-img convert -f qcow2 -l one -O raw disk.qcow2 one.raw
  qemu-io -r -f raw -c 'read -P 1 0 8M' one.raw >io.out
  ! grep -q 'verification failed' io.out || fail "the snapshot was changed"
done

# Without a state file as much as was flushed survives, and the test must see what did not.
image disk.qcow2
killer -D off -l -q 2 disk.qcow2
