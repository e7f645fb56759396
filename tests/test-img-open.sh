#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# How nbdcow-img's sub-commands open images: by name, json:, --image-opts and NBD URI; cache modes;
# locks and -U; backing files without a recorded format.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io qemu-nbd
requires_python

refuses ()
{
  pattern=$1
  shift
  s=0
  "$NBDCOW_IMG" "$@" >out 2>err || s=$?
  one_line $s err "$pattern" || fail "nbdcow-img $*: $REASON"
}
# maps NAME [OPTION...]: the map is the one in "want".
maps ()
{
  "$NBDCOW_IMG" map --output=json "$@" >got || fail "map $*"
  cmp -s want got || { diff want got >&2; fail "map $*"; }
}

qemu-img create -q -f qcow2 disk.qcow2 8M
qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 3M 100k' disk.qcow2 >/dev/null
"$NBDCOW_IMG" map --output=json disk.qcow2 >want
maps file:disk.qcow2
maps 'json:{"driver":"qcow2","file":{"driver":"file","filename":"disk.qcow2"}}'
maps 'json:{"file.filename":"disk.qcow2","driver":"qcow2"}'
maps --image-opts driver=qcow2,file.filename=disk.qcow2
maps --image-opts driver=qcow2,file.driver=file,file.filename="$PWD/disk.qcow2"
"$NBDCOW_IMG" info --image-opts driver=qcow2,file.filename=disk.qcow2 | grep -q '^file format: qcow2' || fail "info"
"$NBDCOW_IMG" check -q --image-opts driver=qcow2,file.filename=disk.qcow2 || fail "check"
# A part of a raw file.
printf '%65536s' '' | tr ' ' x >raw
"$NBDCOW_IMG" info --image-opts driver=raw,offset=4k,size=8k,file.filename=raw | grep -q 'virtual size: 8 KiB' ||
  fail "offset and size: $("$NBDCOW_IMG" info --image-opts driver=raw,offset=4k,size=8k,file.filename=raw)"
refuses "image-opts" map -f qcow2 --image-opts driver=qcow2,file.filename=disk.qcow2
refuses "nonesuch" map --image-opts driver=nonesuch,file.filename=disk.qcow2
refuses "filename" map --image-opts driver=qcow2,file.driver=file
refuses "json" map 'json:{'

# Cache modes and secrets are looked at even where they change nothing.
for mode in none writeback unsafe directsync writethrough; do
  "$NBDCOW_IMG" check -q -T $mode disk.qcow2 2>err || grep -q O_DIRECT err || fail "check -T $mode: $(cat err)"
done
refuses "fast" check -T fast disk.qcow2
refuses "nonesuch" map --object nonesuch,id=x disk.qcow2
printf secret >key
maps --object secret,id=key0,file=key disk.qcow2
refuses "backing-mode" map --backing-mode=any-thing disk.qcow2

# A backing file whose format nobody recorded.
qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2
"$PYTHON" "$SRCDIR/qcow2.py" drop-extension top.qcow2 0xe2792aca
refuses "format is not recorded" map top.qcow2
"$NBDCOW_IMG" map --backing-mode=probe --output=json top.qcow2 | grep -q '"depth": 1' || fail "--backing-mode=probe"
if "$NBDCOW_IMG" map --backing-mode=none --output=json top.qcow2 | grep -q '"depth": 1'; then
  fail "--backing-mode=none"
fi

# An image in use: refused without -U where it matters.
mkfifo hold
qemu-io -f qcow2 disk.qcow2 <hold >held 2>&1 &
track $!
exec 3>hold
opened ()
{
  grep -q 'qemu-io>' held
}
wait_for 20 opened || fail "qemu-io did not open the image"
refuses "in use" map disk.qcow2
maps -U disk.qcow2
exec 3>&-
wait

# NBD.
"$NBDCOW_IMG" map nbd+unix:///?socket=none >/dev/null 2>err && fail "no server"
if grep -q 'without libnbd' err; then
  echo "NBD URIs were not built"
  exit 0
fi
[ "$(wc -l <err)" = 1 ] || fail "an NBD URI without a server: $(cat err)"
qemu-nbd -t -e 0 -r -f raw -k "$PWD/sock" --pid-file=pid disk.qcow2 &
track $!
ready ()
{
  [ -s pid ]
}
wait_for 20 ready || fail "qemu-nbd did not start"
"$NBDCOW_IMG" map --output=json disk.qcow2 >want
maps "nbd+unix:///?socket=$PWD/sock"
"$NBDCOW_IMG" info --output=json "nbd+unix:///?socket=$PWD/sock" | grep -q '"format": "qcow2"' || fail "info of an NBD URI"
"$NBDCOW_IMG" check -q "nbd+unix:///?socket=$PWD/sock" || fail "check of an NBD URI"
refuses "read-only" check -r all "nbd+unix:///?socket=$PWD/sock"
