#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# check and check -r all where the bitmap directory or the snapshot table is damaged, beside qemu-img check: what makes no
# sense is named; a directory ends where it ceases to make sense, and what is before that is kept; snapshots that lack
# what version 3 wants get it.  Nothing of the disk or of a snapshot changes, and a dry run writes nothing.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
in_memory 200

q () { "$PYTHON" "$SRCDIR/qcow2.py" "$@"; }
names () { "$NBDCOW_IMG" info -U -f qcow2 "$1" 2>/dev/null | sed -n 's/^ *name: //p' | tr '\n' ' '; }

# status FILE COMMAND...: sets S; stdout and stderr are in FILE.
status ()
{
  _log=$1
  shift
  S=0
  "$@" >"$_log" 2>&1 || S=$?
}

qemu-img create -q -f qcow2 -o cluster_size=4k sound.qcow2 4M
qemu-io -f qcow2 -c 'write -q -P 7 1M 300k' sound.qcow2
qemu-img snapshot -c s sound.qcow2
for b in one two three; do
  qemu-img bitmap --add -g 4096 sound.qcow2 $b
done
qemu-io -f qcow2 -c 'write -q -P 8 1100k 900k' sound.qcow2
check_image sound.qcow2
qemu-img convert -f qcow2 -O raw sound.qcow2 sound.raw
qemu-img convert -f qcow2 -l s -O raw sound.qcow2 s.raw

# Where the directory is, and where its entries are: 24 bytes and a name, to a multiple of 8.
extension=$(q extensions sound.qcow2 | sed -n 's/^0x23852875 //p')
directory=$((0x$(printf %s "$extension" | cut -c 33-48)))
second=$((directory + 32)) third=$((directory + 64))
# Where the extension's data are.
at=$(grep -abo -P '\x23\x85\x28\x75' sound.qcow2 | head -n 1 | cut -d: -f1)
at=$((at + 8))

# damaged KEPT TEXT OFFSET HEX: with these bytes, no program writes the image; check says TEXT; a dry run of a repair writes
# nothing; the repair leaves the bitmaps KEPT and an image that both find sound and QEMU writes.
damaged ()
{
  cp sound.qcow2 bad.qcow2
  q poke bad.qcow2 "$3" "$4"
  sum=$(digest bad.qcow2)
  status qemu.log qemu-img check -f qcow2 -r all bad.qcow2
  echo "== $2: qemu-img check -r all: status $S: $(tail -n 1 qemu.log)"
  cp sound.qcow2 bad.qcow2
  q poke bad.qcow2 "$3" "$4"
  status log "$NBDCOW_IMG" bitmap --add bad.qcow2 new
  [ $S = 1 ] || fail "$2: written: $(cat log)"
  status log "$NBDCOW_IMG" check bad.qcow2
  [ $S = 2 ] && grep -q "ERROR bitmap directory: .*$2" log || fail "$2: check: status $S: $(cat log)"
  status log "$NBDCOW_IMG" check -r leaks bad.qcow2
  [ $S = 2 ] && grep -q "ERROR bitmap directory: .*$2" log || fail "$2: -r leaks: status $S: $(cat log)"
  unchanged "$sum" bad.qcow2
  status dry "$NBDCOW_IMG" check -r all --dry-run --output=json bad.qcow2
  unchanged "$sum" bad.qcow2
  status log "$NBDCOW_IMG" check -r all --output=json --journal "journal-$3-$4" bad.qcow2
  [ $S = 0 ] && grep -q 'Repairing bitmap directory' log || fail "$2: -r all: status $S: $(cat log)"
  cmp dry log || fail "$2: the dry run said something else"
  [ "$(names bad.qcow2)" = "s $1" ] || [ "$(names bad.qcow2)" = "$1" ] || fail "$2: left are '$(names bad.qcow2)', not '$1'"
  check_image bad.qcow2
  "$NBDCOW_IMG" check -q bad.qcow2 || fail "$2: not sound after the repair"
  same_contents bad.qcow2 qcow2 sound.raw raw
  qemu-img convert -f qcow2 -l s -O raw bad.qcow2 was.raw
  cmp was.raw s.raw || fail "$2: the snapshot has changed"
  "$NBDCOW_IMG" bitmap --add bad.qcow2 new
  qemu-img bitmap --remove bad.qcow2 new
  qemu-io -f qcow2 -c 'write -q -P 9 0 64k' bad.qcow2
  check_image bad.qcow2
}

damaged '' 'middle of an entry' $((directory + 20)) ffffff00
damaged 'one ' 'middle of an entry' $((second + 20)) 00000100
damaged 'one two ' 'middle of an entry' $((third + 18)) ffff
damaged 'one two three ' 'middle of an entry' $at 00000004
damaged '' 'not in the file' $((at + 16)) 0000000010000000
damaged 'one two three ' 'size is not that' $((at + 8)) 0000000002000000
damaged 'one two three ' 'size is not that' $((at + 8)) 0000000000000068
damaged 'one two ' 'middle of an entry' $((at + 8)) 0000000000000050
damaged '' 'cannot be right' $((at + 16)) 0000000000000200
damaged '' 'cannot be right' $((at + 4)) 00000001
damaged '' 'cannot be right' $at 00000000

# What is wrong with one bitmap alone concerns no other: it can be removed.
for poke in "$second 0000000000000200" "$((second + 24)) 00"; do
  cp sound.qcow2 bad.qcow2
  # shellcheck disable=SC2086 # two words
  q poke bad.qcow2 $poke
  name=two
  case $poke in *' 00') name='?wo' ;; esac
  "$NBDCOW_IMG" bitmap --remove bad.qcow2 "$name" 2>log || fail "$poke: not removed: $(cat log)"
  "$NBDCOW_IMG" check -q -r leaks bad.qcow2 2>log || fail "$poke: $(cat log)"
  check_image bad.qcow2
done

# Snapshots of version 2 that an old program made version 3: they do not say how large they are.
cp sound.qcow2 bad.qcow2
qemu-img bitmap --remove bad.qcow2 one
qemu-img bitmap --remove bad.qcow2 two
qemu-img bitmap --remove bad.qcow2 three
table=$(q get bad.qcow2 snapshots_offset)
# Without its extra data the entry has the id and the name where that was.
q poke bad.qcow2 $((table + 36)) 00000000
q poke bad.qcow2 $((table + 40)) 3173
cp bad.qcow2 theirs.qcow2
cp bad.qcow2 dirty.qcow2
sum=$(digest bad.qcow2)
status qemu.log qemu-img check -f qcow2 theirs.qcow2
theirs=$S
status log "$NBDCOW_IMG" check bad.qcow2
[ $S = "$theirs" ] && grep -q incomplete log || fail "incomplete snapshot: status $S, QEMU's $theirs: $(cat log)"
status dry "$NBDCOW_IMG" check -r all --dry-run bad.qcow2
[ $S = 0 ] || fail "incomplete snapshot: dry run: status $S: $(cat dry)"
unchanged "$sum" bad.qcow2
status log "$NBDCOW_IMG" check -r all bad.qcow2
[ $S = 0 ] || fail "incomplete snapshot: -r all: status $S: $(cat log)"
check_image bad.qcow2
qemu-img convert -f qcow2 -l s -O raw bad.qcow2 was.raw
cmp was.raw s.raw || fail "incomplete snapshot: it has changed"
same_contents bad.qcow2 qcow2 sound.raw raw
status qemu.log qemu-img check -f qcow2 -r all theirs.qcow2
[ $S = 0 ] || fail "QEMU no longer repairs this: $(cat qemu.log)"
# It does not keep an image that was not closed from being written.
q set dirty.qcow2 incompatible_features 1
"$NBDCOW_IMG" bench -q -w -c 1 -f qcow2 dirty.qcow2 >log 2>&1 || fail "dirty, with an incomplete snapshot: $(cat log)"

# A snapshot table that makes no sense: both refuse to write to the image, and neither mends it.  Its disk can be read.
for poke in "0 0000000000000200" "8 ffffffff" "36 ffffff00"; do
  cp sound.qcow2 bad.qcow2
  table=$(q get bad.qcow2 snapshots_offset)
  q poke bad.qcow2 $((table + ${poke% *})) "${poke#* }"
  sum=$(digest bad.qcow2)
  status qemu.log qemu-img check -f qcow2 -r all bad.qcow2
  echo "== snapshot table, byte ${poke% *}: qemu-img check -r all: status $S: $(tail -n 1 qemu.log)"
  cp sound.qcow2 bad.qcow2
  q poke bad.qcow2 $((table + ${poke% *})) "${poke#* }"
  status log "$NBDCOW_IMG" check -r all bad.qcow2
  [ $S != 0 ] && grep -q 'snapshot.*nbdcow-img convert' log || fail "snapshot table, byte ${poke% *}: status $S: $(cat log)"
  status log "$NBDCOW_IMG" check bad.qcow2
  [ $S != 0 ] && grep -q 'snapshot' log || fail "snapshot table, byte ${poke% *}: check: status $S: $(cat log)"
  status log "$NBDCOW_IMG" convert -f qcow2 -l s -O raw bad.qcow2 bad.raw
  [ $S != 0 ] || fail "snapshot table, byte ${poke% *}: its snapshot can be read"
  status log "$NBDCOW_IMG" convert -f qcow2 -O raw bad.qcow2 bad.raw
  [ $S = 0 ] && grep -q 'without its snapshots' log || fail "snapshot table, byte ${poke% *}: convert: status $S: $(cat log)"
  cmp bad.raw sound.raw || fail "snapshot table, byte ${poke% *}: another disk is read"
  unchanged "$sum" bad.qcow2
done
