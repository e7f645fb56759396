#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Images as people describe them with --image-opts and json:{}, where that says something else about the
# backing file and the data file than the image does.  What is read is the same from nbdcow and, where it is
# installed, from qemu-nbd; SERVERS chooses others.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io

# ---- the images --------------------------------------------------------------------------------

# raw FILE BYTE: a megabyte of BYTE, and three of zeros.
raw ()
{
  qemu-img create -q -f raw "$1" 4M
  qemu-io -f raw -c "write -q -P $2 0 1M" "$1"
}

raw base.raw 0x11
raw other.raw 0x77
qemu-img create -q -f qcow2 base.qcow2 4M
qemu-io -c 'write -q -P 0x22 0 1M' base.qcow2
qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2 4M
qemu-io -c 'write -q -P 0x33 1M 1M' mid.qcow2
qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2 4M
qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 deep.qcow2 4M
qemu-img create -q -f qcow2 lone.qcow2 4M
mkdir sub
cp base.raw sub/
qemu-img create -q -f qcow2 -b base.raw -F raw sub/top.qcow2 4M
for image in top deep lone sub/top; do
  qemu-io -c 'write -q -P 0x44 2M 1M' $image.qcow2
done
(head -c 1048576 /dev/zero; cat other.raw) >part.raw
(head -c 1048576 /dev/zero; cat base.qcow2) >part.qcow2
qemu-img create -q -f qcow2 -o data_file=first.data,data_file_raw=off ext.qcow2 4M
qemu-io -c 'write -q -P 0x11 0 1M' -c 'write -q -P 0x44 2M 1M' ext.qcow2
cp first.data second.data
qemu-io -f raw -c 'write -q -P 0x77 0 1M' second.data
cp lone.qcow2 golden.qcow2

# ---- servers -----------------------------------------------------------------------------------

# start OPTION...: $nbd in the background.
start ()
{
  rm -f "$tmp/nbd.pid" "$tmp/nbd.sock"
  "$nbd" --fork --pid-file="$tmp/nbd.pid" -t -k "$tmp/nbd.sock" "$@" || fail "$nbd $*: status $?"
  pid=$(cat "$tmp/nbd.pid")
  track "$pid"
}

stop ()
{
  kill -TERM "$pid"
  stopped () { ! process_alive "$pid"; }
  wait_for 20 stopped || fail "$nbd did not stop"
}

# io COMMAND...: on the export.
io ()
{
  qemu-io -f raw "$@" "nbd+unix:///?socket=$tmp/nbd.sock" >io.out 2>&1 || { cat io.out >&2; fail "$nbd: $*"; }
  ! grep -i -e 'verification failed' -e error io.out >&2 || fail "$nbd, $spec: $*"
}

# shows 'BYTE BYTE BYTE' OPTION...: the first, second and third megabyte.
shows ()
{
  spec="$*"
  # shellcheck disable=SC2086 # three words
  set -- $1 -- "$@"
  a=$1 b=$2 c=$3
  shift 5
  for how in -r --snapshot; do
    start $how "$@"
    io -r -c "read -P $a 0 1M" -c "read -P $b 1M 1M" -c "read -P $c 2M 1M"
    stop
  done
}

# refuses OPTION...: status 1, and a message.
refuses ()
{
  status=0
  timeout 20 "$nbd" -r -k "$tmp/nbd.sock" "$@" >bad.out 2>&1 </dev/null || status=$?
  [ "$status" = 1 ] || fail "$nbd $*: status $status: $(cat bad.out)"
  [ -s bad.out ] || fail "$nbd $*: no message"
}

top=driver=qcow2,file.filename=top.qcow2
deep=driver=qcow2,file.filename=deep.qcow2
lone=driver=qcow2,file.filename=lone.qcow2

script ()
{
  # What the image says, nothing at all, and another file: under another format, under the one that is recorded.
  shows '0x11 0 0x44' --image-opts $top
  shows '0 0 0x44' 'json:{"driver": "qcow2", "file.filename": "top.qcow2", "backing": null}'
  shows '0x22 0 0x44' --image-opts $top,backing.driver=qcow2,backing.file.filename=base.qcow2
  shows '0x22 0 0x44' --image-opts \
    $top,backing.driver=qcow2,backing.file.driver=file,backing.file.filename="$tmp/base.qcow2"
  shows '0x77 0 0x44' --image-opts $top,backing.file.filename=other.raw
  shows '0x11 0 0x44' --image-opts $top,backing.driver=raw
  # An image that records none.
  shows '0x22 0 0x44' --image-opts $lone,backing.driver=qcow2,backing.file.filename=base.qcow2
  shows '0x22 0 0x44' "json:{\"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": \"lone.qcow2\"},
    \"backing\": {\"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": \"$tmp/base.qcow2\"}}}"
  # Names are relative to where the server is started, not to the image.
  shows '0x11 0 0x44' --image-opts driver=qcow2,file.filename=sub/top.qcow2
  shows '0x77 0 0x44' --image-opts driver=qcow2,file.filename=sub/top.qcow2,backing.file.filename=other.raw

  # Further down.
  shows '0x11 0x33 0x44' --image-opts $deep
  shows '0x77 0x33 0x44' --image-opts $deep,backing.backing.driver=raw,backing.backing.file.filename=other.raw
  shows '0x11 0x33 0x44' --image-opts $top,backing.driver=qcow2,backing.file.filename=mid.qcow2
  shows '0 0x33 0x44' 'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "top.qcow2"}, "backing":
    {"driver": "qcow2", "file": {"driver": "file", "filename": "mid.qcow2"}, "backing": null}}'
  shows '0x22 0x33 0x44' 'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "top.qcow2"}, "backing":
    {"driver": "qcow2", "file": {"driver": "file", "filename": "mid.qcow2"}, "backing":
    {"driver": "qcow2", "file": {"driver": "file", "filename": "base.qcow2"}}}}'

  # Parts of files.
  shows '0x77 0 0x44' --image-opts \
    $top,backing.driver=raw,backing.offset=1M,backing.size=4M,backing.file.filename=part.raw

  # Another data file.
  shows '0x11 0 0x44' --image-opts driver=qcow2,file.filename=ext.qcow2
  shows '0x77 0 0x44' --image-opts driver=qcow2,file.filename=ext.qcow2,data-file.driver=file,data-file.filename=second.data

  # Written: what is copied comes from that backing file, and what is zeroed hides it.
  cp golden.qcow2 lone.qcow2
  spec=written
  start --discard=unmap --image-opts $lone,backing.driver=qcow2,backing.file.filename=base.qcow2
  io -c 'write -P 0x99 4k 512' -c 'write -z 128k 128k' -c 'write -z -u 256k 64k' -c 'discard 512k 64k' -c flush
  for where in 'read -P 0x22 0 4k' 'read -P 0x99 4k 512' 'read -P 0x22 5k 123k' 'read -P 0 128k 192k' 'read -P 0x22 320k 192k' \
    'read -P 0x22 576k 448k'; do
    io -c "$where"
  done
  stop
  check_image lone.qcow2
  qemu-io -r --image-opts -c 'read -P 0x22 0 4k' -c 'read -P 0x99 4k 512' -c 'read -P 0x22 5k 123k' -c 'read -P 0 128k 192k' \
    $lone,backing.driver=qcow2,backing.file.filename=base.qcow2 >io.out || fail "$nbd: what was written: $(cat io.out)"
  ! grep -i 'verification failed' io.out || fail "$nbd: what was written"
  cp golden.qcow2 lone.qcow2

  # What cannot be.
  refuses --image-opts $top,backing.driver=qcow2,backing.file.filename=missing.qcow2
  refuses --image-opts $top,backing.driver=qcow2,backing.file.filename=other.raw
  refuses --image-opts $top,backing=nonesuch
  refuses --image-opts $top,backing.driver=nonesuch,backing.file.filename=base.qcow2
  refuses --image-opts $top,backing.nonesuch=1,backing.file.filename=base.qcow2
  refuses --image-opts $lone,backing.driver=qcow2
  refuses --image-opts driver=raw,file.filename=base.raw,backing.file.filename=other.raw
  refuses --image-opts $top,data-file.driver=file,data-file.filename=second.data
}

qemu_nbd=$(command -v "${QEMU_NBD:-qemu-nbd}" || :)
for nbd in ${SERVERS:-"$NBDCOW" $qemu_nbd}; do
  echo "$test_name: with $(basename "$nbd")"
  script
done

# ---- nbdcow's own ------------------------------------------------------------------------------

# The rules for what images name are not about what the user names, and still about what that names.
nbd=$NBDCOW
mine=$top,backing.driver=qcow2,backing.file.filename=
shows '0x22 0 0x44' --backing=none --image-opts ${mine}base.qcow2
shows '0 0x33 0x44' --backing=none --image-opts ${mine}mid.qcow2
shows '0x22 0 0x44' --untrusted --image-opts ${mine}base.qcow2
shows '0x77 0x33 0x44' --untrusted --image-opts ${mine}mid.qcow2,backing.backing.driver=raw,backing.backing.file.filename=other.raw
refuses --untrusted --image-opts ${mine}mid.qcow2
grep -q 'backing=' bad.out || fail "--untrusted: $(cat bad.out)"
refuses --untrusted --image-opts $deep,backing.driver=qcow2
shows '0x77 0 0x44' --untrusted --data-file=second.data --image-opts driver=qcow2,file.filename=ext.qcow2

# Spellings that qemu-nbd warns of, or takes for two names of one file.
shows '0x22 0 0x44' --image-opts \
  $top,backing.driver=qcow2,backing.file.driver=raw,backing.file.offset=1M,backing.file.file.filename=part.qcow2
shows '0 0 0x44' --image-opts $top,backing=
shows '0x77 0 0x44' --image-opts $top,backing.driver=file,backing.filename=other.raw
shows '0 0x33 0x44' --image-opts $deep,backing.backing=

# What is said of a data file is not said of the image; what is said of a file that there is not is not ignored.
for bad in backing= driver=qcow2 l2-cache-size=1M data-file.filename=first.data; do
  refuses --image-opts driver=qcow2,file.filename=ext.qcow2,data-file.file.filename=second.data,data-file.$bad
  grep -q data-file bad.out || fail "data-file.$bad: $(cat bad.out)"
done
refuses --image-opts $lone,backing.backing.driver=raw,backing.backing.file.filename=other.raw
grep -q other.raw bad.out || fail "backing.backing of an image without any: $(cat bad.out)"
refuses --image-opts $top,backing.backing.driver=raw,backing.backing.file.filename=other.raw
grep -q other.raw bad.out || fail "backing.backing of an image over a raw one: $(cat bad.out)"

# The same of each export, and after a reload what was not changed goes on.
refuses --export "name=a,file.driver=qcow2,file.file.filename=top.qcow2,file.backing=x"
grep -q 'no named nodes' bad.out || fail "named nodes: $(cat bad.out)"
start -r --export "name=,file.driver=qcow2,file.file.filename=top.qcow2,file.backing.driver=qcow2,file.backing.file.filename=base.qcow2"
io -r -c 'read -P 0x22 0 1M' -c 'read -P 0x44 2M 1M'
stop

# nbdcow-img reads the same, and changes no other file than the user sees.
for spec in $top $top,backing= ${mine}base.qcow2 $deep,backing.backing.driver=raw,backing.backing.file.filename=other.raw \
  driver=qcow2,file.filename=ext.qcow2,data-file.driver=file,data-file.filename=second.data; do
  "$NBDCOW_IMG" convert -O raw --image-opts "$spec" ours.raw
  qemu-img convert -O raw --image-opts "$spec" theirs.raw
  cmp ours.raw theirs.raw || fail "nbdcow-img convert --image-opts $spec"
done
sum=$(digest base.raw)
for command in commit 'rebase -b base.qcow2 -F qcow2'; do
  status=0
  # shellcheck disable=SC2086 # words
  "$NBDCOW_IMG" $command --image-opts ${mine}base.qcow2 2>img.log || status=$?
  one_line "$status" img.log "'backing'" 'rebase -u' || fail "nbdcow-img $command: $REASON"
done
unchanged "$sum" base.raw
