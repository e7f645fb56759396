#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img amend beside qemu-img amend, of keys and of raw data files, where there are bitmaps and snapshots: the
# same options on copies of one image, which is the outcome of one or the other in turn; and then the same exit status, the same
# image as qemu-img info sees it, sound, and disk, snapshot and bitmaps as they were.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io qemu-nbd
requires_python_nbd
use_seed
in_memory 400

objects=
for key in one two three; do
  printf %s $key >$key
  objects="$objects --object secret,id=$key,file=$key"
done

# name_image WHOSE KEY: sets image, how tools name it; KEY is none for what is not encrypted.
name_image ()
{
  case $2 in
  none) image=$1.qcow2 ;;
  *) image="--image-opts driver=qcow2,encrypt.key-secret=$2,file.filename=$1.qcow2" ;;
  esac
}

# fill: what before.qcow2 holds, and two bitmaps, of which one is disabled.
fill ()
{
  # shellcheck disable=SC2086 # words
  qemu-io $objects -c 'write -q -P 3 0 700k' -c 'write -q -z 256k 128k' $image
  # shellcheck disable=SC2086
  qemu-img bitmap --add -g 4k $objects $image on
  # shellcheck disable=SC2086
  qemu-img bitmap --add --disable -g 64k $objects $image off
  # shellcheck disable=SC2086
  qemu-io $objects -c 'write -q -P 4 100k 150k' -c 'write -q -P 5 1000k 24k' $image
  # shellcheck disable=SC2086
  qemu-img bitmap --merge on $objects $image off
}

# keep: what all of it must still be.
keep ()
{
  # shellcheck disable=SC2086
  qemu-img convert $objects -O raw $image disk.raw
  for name in on off; do
    # shellcheck disable=SC2086
    bitmap_bits $name $name.bits $objects $image
    [ -s $name.bits ] || fail "bitmap $name is empty"
  done
}

# still KEY: in our image.
still ()
{
  name_image ours "$1"
  # shellcheck disable=SC2086
  qemu-img check -q $objects $image >check.log 2>&1 || { cat check.log >&2; fail "$what: qemu-img check"; }
  "$NBDCOW_IMG" check -q ours.qcow2 || fail "$what: nbdcow-img check"
  # shellcheck disable=SC2086
  qemu-img convert $objects -O raw $image now.raw
  cmp now.raw disk.raw || fail "$what: the disk has changed"
  if [ -e snapshot.raw ]; then
    # shellcheck disable=SC2086
    qemu-img convert $objects -l s -O raw $image now.raw
    cmp now.raw snapshot.raw || fail "$what: the snapshot has changed"
  fi
  for name in on off; do
    # shellcheck disable=SC2086
    bitmap_bits $name now.bits $objects $image
    cmp now.bits $name.bits || fail "$what: bitmap $name has changed"
  done
}

# step STATUS OPTIONS KEY THEN: both end with it; KEY opens the image, THEN does so afterwards.
step ()
{
  what="$shape: $2"
  for whose in theirs ours; do
    cp before.qcow2 $whose.qcow2
    name_image $whose "$3"
    case $whose in theirs) tool='derive qemu-img' ;; ours) tool=$NBDCOW_IMG ;; esac
    s=0
    # shellcheck disable=SC2086
    $tool amend -q $objects -o "$2" $image >$whose.log 2>&1 || s=$?
    [ $s = "$1" ] || fail "$what: $whose: status $s: $(cat $whose.log)"
    name_image $whose "$4"
    # shellcheck disable=SC2086
    qemu-img info --output=json $objects $image >$whose.json
  done
  still "$4"
  [ "$1" = 0 ] || one_line "$1" ours.log || fail "$what: $REASON"
  "$PYTHON" - <<'END' || fail "$what: qemu-img info tells them apart"
import json
def comparable(j):
    # How many rounds a key takes is measured.
    skip = ("iters", "actual-size", "filename", "full-backing-filename", "children")
    if isinstance(j, dict):
        return {k: comparable(v) for k, v in j.items() if k not in skip}
    return [comparable(x) for x in j] if isinstance(j, list) else j
theirs, ours = (comparable(json.load(open(who + ".json"))) for who in ("theirs", "ours"))
if theirs != ours:
    raise SystemExit("%s\n%s" % (theirs, ours))
END
  steps=$((steps + 1))
  case $((steps % 2)) in 0) mv theirs.qcow2 before.qcow2 ;; 1) mv ours.qcow2 before.qcow2 ;; esac
}

steps=0
# One by lot, or SHAPES, words: QEMU takes two seconds to encrypt one or fill a key slot.
shapes='cluster_size=64k cluster_size=512,lazy_refcounts=on,refcount_bits=8 cluster_size=32k,extended_l2=on'
# shellcheck disable=SC2086
for shape in ${SHAPES:-$(echo $shapes | cut -d' ' -f$((SEED % 3 + 1)))}; do
  echo "== keys, $shape"
  rm -f snapshot.raw
  name_image before one
  # shellcheck disable=SC2086
  derive qemu-img create -q $objects -f qcow2 -o "$shape,encrypt.format=luks,encrypt.key-secret=one,encrypt.iter-time=10" \
    before.qcow2 1M
  # shellcheck disable=SC2086
  qemu-io $objects -c 'write -q -P 7 64k 300k' $image
  # shellcheck disable=SC2086
  qemu-img convert $objects -O raw $image snapshot.raw
  # shellcheck disable=SC2086
  qemu-img snapshot $objects -c s $image
  fill
  keep
  step 0 encrypt.state=active,encrypt.new-secret=two,encrypt.iter-time=10 one two
  step 0 encrypt.state=active,encrypt.new-secret=three,encrypt.keyslot=7,encrypt.iter-time=10 two three
  step 1 encrypt.state=active,encrypt.new-secret=one,encrypt.keyslot=7,encrypt.iter-time=10 two three
  step 0 encrypt.state=inactive,encrypt.old-secret=two three one
  step 0 encrypt.state=inactive,encrypt.keyslot=0 one three
  step 1 encrypt.state=inactive,encrypt.keyslot=7 three three
  step 0 encrypt.state=active,encrypt.new-secret=one,encrypt.iter-time=10 three one
done

rm -f snapshot.raw
for shape in cluster_size=64k cluster_size=32k,extended_l2=on; do
  echo "== a raw data file, $shape"
  qemu-img create -q -f qcow2 -o "$shape,data_file=disk.data,data_file_raw=on" before.qcow2 1M
  name_image before none
  fill
  keep
  # The format has no snapshots beside a data file.
  for tool in qemu-img "$NBDCOW_IMG"; do
    ! "$tool" snapshot -c s before.qcow2 2>log || fail "$tool makes a snapshot beside a data file"
  done
  sum=$(digest disk.data)
  step 0 data_file_raw=on,lazy_refcounts=on none none
  step 0 data_file_raw=off none none
  step 1 data_file_raw=on,lazy_refcounts=off none none
  unchanged "$sum" disk.data
  step 0 data_file_raw=off,refcount_bits=32 none none
  step 0 refcount_bits=16,size=1M none none
  unchanged "$sum" disk.data
done
echo "$steps steps"
