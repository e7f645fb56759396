#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img info beside qemu-img info: the same JSON and the same text, but for what we add.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python

# same_info FILE [OPTION...]
same_info ()
{
  file=$1
  shift
  # Else the file system may make up its mind about the size between two looks.
  find . -type f \( -name '*.qcow2' -o -name '*.raw' \) -exec sync {} +
  qemu-img info --output json "$@" "$file" >theirs.json || fail "qemu-img info $file"
  "$NBDCOW_IMG" info --output json "$@" "$file" >ours.json || fail "info $file"
  "$PYTHON" - <<'END' || fail "info --output json $* $file"
import json
theirs, ours = json.load(open("theirs.json")), json.load(open("ours.json"))
ours_to_add = {"highest-allocated-offset"}
if "children" not in (theirs[0] if isinstance(theirs, list) else theirs): # QEMU before 8.0
    ours_to_add.add("children")
def without(j):
    if isinstance(j, dict):
        return {k: without(v) for k, v in j.items() if k not in ours_to_add}
    return [without(x) for x in j] if isinstance(j, list) else j
if without(ours) != theirs:
    raise SystemExit("theirs: %s\nours: %s" % (theirs, ours))
for layer in ours if isinstance(ours, list) else [ours]:
    if layer["format"] == "qcow2":
        highest = layer["highest-allocated-offset"]
        assert highest == layer["format-specific"]["data"]["highest-allocated-offset"]
        assert highest > 0 and highest % layer["cluster-size"] == 0
END
  qemu-img info "$@" "$file" >theirs
  "$NBDCOW_IMG" info "$@" "$file" | grep -v '^    highest allocated offset: ' >ours
  if ! grep -q '^Child node' theirs; then # QEMU before 8.0
    sed "/^Child node/,/^    disk size/d" ours >ours.old
    mv ours.old ours
  fi
  cmp -s theirs ours || { diff theirs ours >&2; fail "info $* $file"; }
}

truncate -s 3M base.raw
qemu-img create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw middle.qcow2
mkdir sub
qemu-img create -q -f qcow2 -b ../middle.qcow2 -F qcow2 sub/top.qcow2 7M
qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 1234567k
qemu-img create -q -f qcow2 -o refcount_bits=1,lazy_refcounts=on,compression_type=zstd v3.qcow2 999T
for name in base.raw middle.qcow2 sub/top.qcow2 v2.qcow2 v3.qcow2 "$PWD/sub/top.qcow2"; do
  same_info "$name"
  same_info "$name" --backing-chain
done
truncate -s 256k v2.qcow2
same_info v2.qcow2 -f raw
same_info v2.qcow2 -U -f qcow2

# Sizes at which the text changes its unit.
for size in 0 512 999k 1000k 1023k 1024k 9999k 999M 1000M 1048575k 1T; do
  qemu-img create -q -f qcow2 size.qcow2 $size
  same_info size.qcow2
done

# Snapshots, and a session that was killed.
qemu-img create -q -f qcow2 -o lazy_refcounts=on snap.qcow2 10M
qemu-img snapshot -c first snap.qcow2
qemu-io -f qcow2 -c 'write 0 1M' snap.qcow2 >/dev/null
qemu-img snapshot -c 'the second' snap.qcow2
same_info snap.qcow2
qemu-io -f qcow2 -c 'write 1M 1M' -c 'sigraise 9' snap.qcow2 >/dev/null 2>&1 || :
"$NBDCOW_IMG" info snap.qcow2 | grep -q '^cleanly shut down: no' || fail "the dirty bit is not shown"
same_info snap.qcow2

# Bitmaps: enabled, disabled, and left in use by a session that was killed.
qemu-img create -q -f qcow2 bitmaps.qcow2 64M
qemu-img bitmap --add bitmaps.qcow2 enabled
qemu-img bitmap --add --disable -g 4k bitmaps.qcow2 disabled
same_info bitmaps.qcow2
qemu-io -f qcow2 -c 'write 1M 1M' -c 'sigraise 9' bitmaps.qcow2 >/dev/null 2>&1 || :
same_info bitmaps.qcow2

# Limits.
if qemu-img info --limits size.qcow2 >/dev/null 2>&1; then # since QEMU 11
  qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k limits.qcow2 1M
  for name in size.qcow2 limits.qcow2 base.raw; do
    same_info $name --limits
    same_info $name --limits -t none
  done
fi
"$NBDCOW_IMG" info --limits size.qcow2 | grep -q '^    discard alignment: 65536$' || fail "info --limits"
"$NBDCOW_IMG" info --output=json --limits -t none base.raw | grep -q '"request-alignment": 512' || fail "limits: -t none"

# An image in use is shown all the same.
mkfifo hold
qemu-io -f qcow2 middle.qcow2 <hold >held 2>&1 &
track $!
exec 3>hold
opened ()
{
  grep -q 'qemu-io>' held
}
wait_for 20 opened || fail "qemu-io did not open the image"
if qemu-img info middle.qcow2 >/dev/null 2>&1; then
  fail "qemu-io holds no lock"
fi
"$NBDCOW_IMG" info middle.qcow2 >out || fail "info of an image in use"
grep -q '^virtual size: 3 MiB' out || fail "info of an image in use: $(cat out)"
exec 3>&-
wait

# A loop ends.
qemu-img create -q -f qcow2 loop1.qcow2 1M
qemu-img create -q -f qcow2 -b loop1.qcow2 -F qcow2 loop2.qcow2
qemu-img rebase -u -f qcow2 -b loop2.qcow2 -F qcow2 loop1.qcow2
s=0
"$NBDCOW_IMG" info --backing-chain loop1.qcow2 >/dev/null 2>err || s=$?
one_line $s err loop || fail "info of a loop: $REASON"
same_info loop1.qcow2

# Without a recorded format the layers are probed, for showing only.
qemu-img create -q -f qcow2 probe.qcow2 1M
qemu-img rebase -u -f qcow2 -b base.raw -F '' probe.qcow2 2>/dev/null || :
"$NBDCOW_IMG" info --backing-chain probe.qcow2 >out || fail "info of a chain without formats"

# What is in a file's name does not reach the terminal.
name=$(printf 'x\033[31mRED.qcow2')
qemu-img create -q -f qcow2 "$name" 1M
"$NBDCOW_IMG" info "$name" >out || fail "info of a file with a name of an odd kind"
! grep -q "$(printf '\033')" out || fail "info prints a file's name as it is"
