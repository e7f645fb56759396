#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Images that the format allows and nobody writes (odd.py): QEMU and we find nothing wrong with them, they
# and their snapshots read as they should, and they can be written, after which the same holds and their bitmaps have
# followed.  Where QEMU does not read the bitmaps it sees a copy that says that they are stale.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img
requires_python_nbd
use_seed

rounds=${ROUNDS:-10}

# reads CONTENTS [OPTION]: what is served with OPTION equals the raw file CONTENTS.
reads ()
{
  start_server disk.qcow2 read-only ${2:+"$2"}
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" "$1"
  stop_server
}

# qemu_sees: makes for_qemu.qcow2, an image that QEMU can read, of disk.qcow2, and finds it sound.
qemu_sees ()
{
  cp disk.qcow2 for_qemu.qcow2
  if [ -e exotic ]; then
    "$PYTHON" "$SRCDIR/qcow2.py" set for_qemu.qcow2 autoclear_features 0
    check_image for_qemu.qcow2 leaks
  else
    check_image for_qemu.qcow2
  fi
  "$NBDCOW_IMG" check -q disk.qcow2
  qemu-img compare -q -f qcow2 -F raw for_qemu.qcow2 model || fail "seed $seed: QEMU reads something else"
}

# snapshots_read: so do all snapshots.
snapshots_read ()
{
  for s in snapshot-*; do
    [ -e "$s" ] || continue
    qemu-img convert -l "snapshot.id=${s#snapshot-}" -f qcow2 -O raw for_qemu.qcow2 was ||
      fail "seed $seed: QEMU cannot read $s"
    # QEMU reads the present disk's size.
    cmp -n "$(stat -c %s "$s")" "$s" was || fail "seed $seed: QEMU reads something else in $s"
    [ "$FRONTEND" != nbdcow ] || reads "$s" "arg=--load-snapshot=snapshot.id=${s#snapshot-}"
  done
}

# kept: what a writer keeps though it does not know it: extensions and header fields.
kept ()
{
  # Ours, those that name features, and that of the bitmaps, whose directory moves.
  "$PYTHON" "$SRCDIR/qcow2.py" extensions disk.qcow2 | grep -v -e '^0x48414c43' -e '^0x4e424353' -e '^0x6803f857' \
    -e '^0x23852875' || :
  "$PYTHON" "$SRCDIR/qcow2.py" later-fields disk.qcow2
  [ "$("$PYTHON" "$SRCDIR/qcow2.py" get disk.qcow2 version)" = 2 ] ||
    "$PYTHON" "$SRCDIR/qcow2.py" get disk.qcow2 compatible_features
}

n=0
while [ $n -lt "$rounds" ]; do
  n=$((n + 1))
  rm -f disk.qcow2 model was exotic below.raw snapshot-*
  seed=$((SEED + n))
  echo "== odd.py $seed: $("$PYTHON" "$SRCDIR/odd.py" $seed .)"
  qemu_sees
  reads model
  snapshots_read

  kept >before
  cp disk.qcow2 before.qcow2
  cp model before.model
  start_server disk.qcow2 discard=unmap
  GRAIN=512 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 60
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  stop_server
  qemu_sees
  snapshots_read
  kept >after
  cmp before after || fail "seed $seed: what a writer must keep was lost"
  if [ "$("$PYTHON" "$SRCDIR/qcow2.py" get disk.qcow2 version)" = 3 ]; then
    autoclear=$("$PYTHON" "$SRCDIR/qcow2.py" get disk.qcow2 autoclear_features)
    [ $((autoclear & ~1)) = 0 ] || fail "seed $seed: autoclear features that nobody knows are left: $autoclear"
  fi
  "$PYTHON" "$SRCDIR/odd_bitmaps.py" judge before.qcow2 disk.qcow2 before.model model || fail "seed $seed: bitmaps"
done
