#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img bitmap beside qemu-img bitmap: random actions on two copies of an image, with writes by QEMU
# between; the same exit status each time, and in the end the same list and the same bits.  Then what is
# wrong on the command line, and in images.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires qemu-img qemu-io qemu-nbd
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires_python_nbd
use_seed
in_memory 400

img () { "$NBDCOW_IMG" "$@"; }
py () { "$PYTHON" "$SRCDIR/bitmaps.py" "$@"; }

# bits IMAGE NAME FILE: as QEMU reads them.
bits () { bitmap_bits "$2" "$3" "$1"; }

state=$((SEED & 0x7fffffff))
pick ()
{
  state=$(((state * 1103515245 + 12345) & 0x7fffffff))
  PICK=$(((state >> 8) % $1))
}

# both ARGUMENT...: on a.qcow2 and b.qcow2, which %s stands for.
both ()
{
  s=0 t=0
  # shellcheck disable=SC2059,SC2046 # words
  img bitmap $(printf -- "$*" a.qcow2) >ours.out 2>&1 || s=$?
  # shellcheck disable=SC2059,SC2046
  qemu-img bitmap $(printf -- "$*" b.qcow2) >qemu.out 2>&1 || t=$?
  if [ $s != $t ] || { [ $s = 1 ] && [ "$(wc -l <ours.out)" != 1 ]; }; then
    cat ours.out qemu.out >&2
    fail "bitmap $*: status $s, qemu-img's is $t"
  fi
}

list () { qemu-img info --output=json "$1" | "$PYTHON" -c '
import json, sys
for b in json.load(sys.stdin)["format-specific"]["data"].get("bitmaps", []):
    print(b["name"], b["granularity"], *sorted(b["flags"]))' | sort; }

same_lists ()
{
  list a.qcow2 >a.list
  list b.qcow2 >b.list
  cmp a.list b.list || { cat a.list b.list >&2; fail "the lists differ"; }
  check_image a.qcow2
}

for cluster in 512 65536; do
  echo "== clusters of $cluster"
  rm -f a.qcow2 b.qcow2
  qemu-img create -q -f qcow2 -o cluster_size=$cluster a.qcow2 3M
  cp a.qcow2 b.qcow2
  i=0
  while [ $i -lt 24 ]; do
    pick 4
    name=bitmap-$PICK
    pick 4
    other=bitmap-$PICK
    pick 9
    case $PICK in
    0 | 1) pick 5; both "--add -g $((512 << (PICK * 3))) %s $name" ;;
    2) both "--remove %s $name" ;;
    3) both "--clear %s $name" ;;
    4) both "--disable %s $name" ;;
    5) both "--enable %s $name" ;;
    6) both "--merge $other %s $name" ;;
    7) both "--add --disable %s $name" ;;
    8) both "--clear --enable %s $name" ;;
    esac
    pick 40
    at=$((PICK * 64))k
    for f in a b; do
      qemu-io -f qcow2 -c "write -P 7 $at 40k" $f.qcow2 >/dev/null
    done
    i=$((i + 1))
  done
  same_lists
  while read -r name rest; do
    bits a.qcow2 "$name" a.bits
    bits b.qcow2 "$name" b.bits
    cmp a.bits b.bits || fail "the bits of $name ($rest) differ"
  done <a.list
done

echo "== from another image"
qemu-img create -q -f qcow2 -o cluster_size=4096 c.qcow2 3M
qemu-img bitmap --add -g 4096 c.qcow2 there
qemu-io -f qcow2 -c 'write 1M 20k' -c 'write 2M 4k' c.qcow2 >/dev/null
# remove_all: QEMU's before 9 must be told one by one.
remove_all ()
{
  img bitmap --remove-all a.qcow2
  list b.qcow2 >b.list
  while read -r name rest; do
    qemu-img bitmap --remove b.qcow2 "$name"
  done <b.list
  same_lists
}
remove_all
both "--add -g 64k --merge there -b c.qcow2 -F qcow2 %s here"
bits a.qcow2 here a.bits
bits b.qcow2 here b.bits
cmp a.bits b.bits || fail "the merged bits differ"
[ -s a.bits ] || fail "nothing was merged"
img bitmap --add --remove-all a.qcow2 other
remove_all
[ ! -s a.list ] || fail "there are bitmaps left"
# With the last one the extension goes, and QEMU has nothing to say.
qemu-img check a.qcow2 >check.out 2>&1
! grep -qi bitmap check.out || { cat check.out >&2; fail "QEMU still sees bitmaps"; }

echo "== all or nothing"
img bitmap --add a.qcow2 kept
digest a.qcow2 >sum
if img bitmap --clear --disable --merge none a.qcow2 kept >out 2>&1; then
  fail "a merge from nowhere worked"
fi
list a.qcow2 | grep -qx "kept 65536 auto" || fail "half of a failed command was done"

echo "== left in use"
qemu-img create -q -f qcow2 d.qcow2 8M
qemu-img bitmap --add d.qcow2 lost
qemu-io -f qcow2 -c 'write 1M 64k' -c 'sigraise 9' d.qcow2 >/dev/null 2>&1 || :
cp d.qcow2 a.qcow2
cp d.qcow2 b.qcow2
for action in --clear --enable --disable "--merge lost"; do
  for f in a b; do
    tool=qemu-img
    [ $f = b ] || tool=img
    s=0
    # shellcheck disable=SC2086
    $tool bitmap $action $f.qcow2 lost >out 2>&1 || s=$?
    [ $s = 1 ] || fail "$tool bitmap $action of a bitmap that was left in use: status $s"
    grep -qi "inconsistent and cannot be used" out || { cat out >&2; fail "$tool: no reason"; }
  done
done
both "--remove %s lost"
same_lists

echo "== usage"
qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 1M
qemu-img create -q -f raw r.raw 1M
for arguments in "a.qcow2 x" "--add a.qcow2" "--add" "-g 64k --remove a.qcow2 x" "--add -g 3000 a.qcow2 x" \
  "--add -g 4G a.qcow2 x" "--add -g 256 a.qcow2 x" "--clear -b c.qcow2 a.qcow2 x" \
  "--merge q -F qcow2 a.qcow2 x" "--add v2.qcow2 x" "--add -f raw r.raw x" "--add none.qcow2 x" \
  "--remove a.qcow2 none" "--remove-all a.qcow2 x" "--add --unknown a.qcow2 x" "--add a.qcow2 x y"; do
  s=0
  # shellcheck disable=SC2086
  img bitmap $arguments >out 2>&1 || s=$?
  one_line $s out bitmap || grep -q "none.qcow2" out || fail "bitmap $arguments: $REASON"
done

# ---- convert --bitmaps -----------------------------------------------------------------------

rm -f a.qcow2 b.qcow2
qemu-img create -q -f qcow2 source.qcow2 8M
qemu-img bitmap --add -g 512 source.qcow2 fine
qemu-img bitmap --add -g 64k source.qcow2 coarse
qemu-io -f qcow2 -c 'write -P 7 1M 3k' -c 'write -P 8 5M 100k' source.qcow2 >/dev/null
qemu-img bitmap --disable source.qcow2 fine
for target in "" "-c -o cluster_size=4k"; do
  # shellcheck disable=SC2086 # several options
  img convert --bitmaps -O qcow2 $target source.qcow2 a.qcow2
  # shellcheck disable=SC2086
  qemu-img convert --bitmaps -O qcow2 $target source.qcow2 b.qcow2
  check_image a.qcow2
  same_lists
  for name in fine coarse; do
    bits a.qcow2 $name ours.bits
    bits b.qcow2 $name qemu.bits
    [ -s ours.bits ] && cmp ours.bits qemu.bits || fail "convert --bitmaps: the bits of $name differ"
  done
done
# must_fail TEXT ARGUMENT...
must_fail ()
{
  text=$1 s=0
  shift
  img "$@" 2>out || s=$?
  one_line $s out "$text" || fail "$*: $REASON"
}
qemu-io -f qcow2 -c 'write 0 512' -c 'sigraise 9' source.qcow2 >/dev/null 2>&1 || :
must_fail "left in use" convert --bitmaps -O qcow2 source.qcow2 x
qemu-img bitmap --add --disable -g 4k source.qcow2 sound
img convert --bitmaps --skip-broken-bitmaps -O qcow2 source.qcow2 a.qcow2 2>out
grep -q 'warning: .*coarse' out || fail "--skip-broken-bitmaps says: $(cat out)"
[ "$(list a.qcow2)" = "sound 4096" ] || fail "--skip-broken-bitmaps leaves: $(list a.qcow2)"
must_fail "needs --bitmaps" convert --skip-broken-bitmaps -O qcow2 source.qcow2 x
must_fail "raw images have no bitmaps" convert --bitmaps --skip-broken-bitmaps -O raw source.qcow2 x
truncate -s 1M plain.raw
must_fail "only qcow2" convert --bitmaps -f raw -O qcow2 plain.raw x
must_fail "several" convert --bitmaps -O qcow2 source.qcow2 source.qcow2 x
