#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img resize beside qemu-img resize: exit statuses, sizes, contents, allocation; down and up again.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
in_memory 400

# size FILE FORMAT: the disk's, as QEMU sees it.
size ()
{
  qemu-img info --output=json -f "$2" "$1" | sed -n 's/^    "virtual-size": \([0-9]*\),*/\1/p'
}

# same STATUS FORMAT ARGUMENT... : both tools, on a copy each of start.FORMAT, end with STATUS and the
# same size and contents.  The word FILE stands for the file.
same ()
{
  want=$1 format=$2
  shift 2
  for tool in qemu-img "$NBDCOW_IMG"; do
    name=$(basename "$tool")
    cp "start.$format" "$name.$format"
    line=
    for word; do
      [ "$word" != FILE ] || word=$name.$format
      line="$line '$word'"
    done
    got=0
    eval "$tool resize -f $format $line" >"out.$name" 2>"err.$name" || got=$?
    [ $got = "$want" ] || fail "$tool resize $*: status $got instead of $want: $(cat "err.$name")"
    [ "$format" = raw ] || check_image "$name.$format"
  done
  cmp out.qemu-img out.nbdcow-img
  [ "$(size qemu-img."$format" "$format")" = "$(size nbdcow-img."$format" "$format")" ] ||
    fail "resize $*: $(size nbdcow-img."$format" "$format") bytes"
  same_contents qemu-img."$format" "$format" nbdcow-img."$format" "$format"
}

qemu-img create -q -f raw start.raw 3M
qemu-io -f raw -c "write -P 5 0 3M" start.raw >/dev/null
for cluster in 512 4k 64k; do
  qemu-img create -q -f qcow2 -o cluster_size=$cluster start.qcow2 3M
  qemu-io -f qcow2 -c "write -P 5 0 3M" start.qcow2 >/dev/null
  for format in qcow2 raw; do
    same 0 $format FILE +1M
    same 0 $format FILE 5M
    same 0 $format -q FILE 5M
    same 0 $format --shrink FILE -1M
    same 0 $format --shrink FILE 1000k
    same 0 $format --shrink FILE 512
    same 0 $format FILE 3M
    same 1 $format FILE 2M
    same 1 $format FILE -1M
    same 1 $format --shrink FILE -5M
    same 1 $format FILE 1Q
    same 1 $format --preallocation=falloc FILE 1M
    same 1 $format --preallocation=some FILE 4M
    same 0 $format --preallocation=falloc FILE 4M
    same 0 $format --preallocation=full FILE +1M
  done
  same 0 qcow2 --preallocation=metadata FILE 6M
  same 1 raw --preallocation=metadata FILE 6M
done
same 1 raw FILE
same 1 raw

# With snapshots, which keep their size; what was cut off is zeros afterwards.
qemu-img snapshot -c before start.qcow2
qemu-img convert -f qcow2 -l before -O raw start.qcow2 before.raw
"$NBDCOW_IMG" resize -q --shrink start.qcow2 1M
"$NBDCOW_IMG" resize -q start.qcow2 4M
check_image start.qcow2
qemu-io -f qcow2 -c "read -P 5 0 1M" -c "read -P 0 1M 3M" start.qcow2 >out
! grep -i failed out || fail "what was cut off has come back"
qemu-img convert -f qcow2 -l before -O raw start.qcow2 after.raw
cmp -n 3145728 before.raw after.raw # QEMU shows it as large as the disk is now
qemu-img snapshot -a before start.qcow2
same_contents start.qcow2 qcow2 before.raw raw
check_image start.qcow2

# Space comes back: almost nothing is left of what was written.
"$NBDCOW_IMG" snapshot -d before start.qcow2
"$NBDCOW_IMG" resize -q --shrink start.qcow2 64k
check_image start.qcow2
[ "$(du -k start.qcow2 | cut -f1)" -lt 1000 ] || fail "the file still occupies $(du -k start.qcow2)"

# A version 2 image with a snapshot, which QEMU does not resize.
for size in 2M 512k; do
  qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 1M
  qemu-io -f qcow2 -c "write -P 5 0 1M" old.qcow2 >/dev/null
  qemu-img snapshot -c x old.qcow2
  "$NBDCOW_IMG" resize -q --shrink old.qcow2 $size
  check_image old.qcow2
  "$NBDCOW_IMG" convert -l x -f qcow2 -O raw old.qcow2 x.raw
  [ "$(stat -c %s x.raw)" = 1048576 ] || fail "the snapshot has $(stat -c %s x.raw) bytes"
  qemu-io -f raw -c "read -P 5 0 1M" x.raw | grep -q "Pattern verification failed" && fail "the snapshot has changed"
  "$NBDCOW_IMG" snapshot -a x old.qcow2
  check_image old.qcow2
  [ "$(size old.qcow2 qcow2)" = 1048576 ] ||
    fail "going back did not take the size along"
done

# What is new reads as zeros also if the backing file, which is longer, was not open; as does what was cut off.
truncate -s 4M under
qemu-io -f raw -c "write -q -P 85 0 4M" under
for options in cluster_size=64k cluster_size=512 cluster_size=64k,extended_l2=on cluster_size=64k,compat=0.10; do
  qemu-img create -q -f qcow2 -o $options -b under -F raw over.qcow2 1M
  "$NBDCOW_IMG" resize -q --backing-mode=none over.qcow2 3M
  check_image over.qcow2
  qemu-io -f qcow2 -c "read -P 85 0 1M" -c "read -P 0 1M 2M" over.qcow2 >out
  ! grep -i failed out || fail "$options: the backing file is seen in what is new"
  "$NBDCOW_IMG" resize -q --backing-mode=none --shrink over.qcow2 $((512 * 1024 + 512))
  check_image over.qcow2
  qemu-io -f qcow2 -c "read -P 85 0 $((512 * 1024 + 512))" over.qcow2 >out
  ! grep -i failed out || fail "$options: the end of the backing file's part has gone"
  [ $options = cluster_size=512 ] && continue
  # Within a cluster of the backing file zeros cannot be put beside what it has.
  sum=$(digest over.qcow2) got=0
  "$NBDCOW_IMG" resize -q --backing-mode=none over.qcow2 2M 2>err || got=$?
  one_line $got err "backing file" || fail "$options: $REASON"
  unchanged "$sum" over.qcow2
  "$NBDCOW_IMG" resize -q over.qcow2 2M
  check_image over.qcow2
  qemu-io -f qcow2 -c "read -P 85 0 $((512 * 1024 + 512))" -c "read -P 0 $((512 * 1024 + 512)) $((1536 * 1024 - 512))" \
    over.qcow2 >out
  ! grep -i failed out || fail "$options: grown with its backing file"
done
