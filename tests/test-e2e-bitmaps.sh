#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Persistent dirty bitmaps.  QEMU makes an image with some; we write to it and QEMU writes the same to
# a copy; then QEMU finds the same bits in both, and they cover all that has changed.  What we show of a
# bitmap is what QEMU shows of it, while it is being written as well.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io qemu-nbd
requires_file "${NBDCOW:-}" nbdcow
requires_python_nbd
use_seed

py () { "$PYTHON" "$SRCDIR/bitmaps.py" "$@"; }

# qemu_serves IMAGE [OPTION...]: by qemu-nbd, until qemu_stops; sets QEMU_URI.
qemu_serves ()
{
  _image=$1
  shift
  rm -f qemu.sock
  qemu-nbd -k "$tmp/qemu.sock" -t -e 8 "$@" "$_image" >qemu.log 2>&1 </dev/null &
  qemu_pid=$!
  track "$qemu_pid"
  wait_for 20 listens "$tmp/qemu.sock" || { cat qemu.log >&2; fail "qemu-nbd does not serve $_image"; }
  QEMU_URI="nbd+unix:///?socket=$tmp/qemu.sock"
}

qemu_stops ()
{
  kill -TERM "$qemu_pid"
  wait "$qemu_pid" 2>/dev/null || :
}

# qemu_bits IMAGE NAME FILE
qemu_bits () { bitmap_bits "$2" "$3" "$1"; }

# our_bits IMAGE NAME FILE
our_bits ()
{
  (FRONTEND=nbdcow; start_server "$1" read-only "arg=--bitmap=$2"
   py bits "$URI" "$2" >"$3"; stop_server; trap - EXIT) || fail "our_bits $1 $2"
}

names="one two large off"
offer=arg=--bitmap=one
[ "$FRONTEND" = nbdcow ] || offer=backing=recorded

# try CLUSTER GRANULARITY SIZE
try ()
{
  echo "== clusters of $1, granularity $2, $3 bytes"
  GRAIN=$1
  export GRAIN
  rm -f ./*.qcow2 ./*.bits ./*.raw
  qemu-img create -q -f qcow2 -o "cluster_size=$1" a.qcow2 "$3"
  qemu-img bitmap --add -g "$2" a.qcow2 one
  qemu-img bitmap --add a.qcow2 two
  qemu-img bitmap --add -g 2G a.qcow2 large
  qemu-io -f qcow2 -c "write -P 5 0 64k" a.qcow2 >/dev/null
  qemu-img bitmap --add --disable -g "$2" a.qcow2 off
  qemu-img bitmap --merge one a.qcow2 off
  qemu-img bitmap --clear a.qcow2 one
  qemu_bits a.qcow2 off off.before.bits
  cp a.qcow2 b.qcow2

  for round in 1 2; do
    qemu-img convert -f qcow2 -O raw a.qcow2 old.raw
    start_server a.qcow2 discard=unmap "$offer"
    py ops "$URI" 60 "$round"
    [ "$FRONTEND" = nbdkit ] || py bits "$URI" one >live.bits
    stop_server
    server_log_is_empty
    check_image a.qcow2
    qemu_serves b.qcow2 --discard=unmap
    py ops "$QEMU_URI" 60 "$round"
    qemu_stops
    check_image b.qcow2
    same_contents a.qcow2 qcow2 b.qcow2 qcow2
    qemu-img convert -f qcow2 -O raw a.qcow2 new.raw
    for name in $names; do
      qemu_bits a.qcow2 $name "a.$name.bits"
      qemu_bits b.qcow2 $name "b.$name.bits"
      cmp "a.$name.bits" "b.$name.bits" || fail "bitmap $name is not what QEMU makes it"
      our_bits a.qcow2 $name "ours.$name.bits"
      cmp "a.$name.bits" "ours.$name.bits" || fail "bitmap $name is not shown as QEMU shows it"
    done
    for name in one two large; do
      py covers "a.$name.bits" old.raw new.raw
    done
    cmp a.off.bits off.before.bits || fail "a disabled bitmap was changed"
    [ "$FRONTEND" = nbdkit ] || cmp a.one.bits live.bits || fail "the live view differs"
  done

  # And QEMU goes on with what we have saved.
  qemu_serves a.qcow2 --discard=unmap
  py ops "$QEMU_URI" 30 3
  qemu_stops
  check_image a.qcow2
  qemu_serves b.qcow2 --discard=unmap
  py ops "$QEMU_URI" 30 3
  qemu_stops
  for name in $names; do
    qemu_bits a.qcow2 $name "a.$name.bits"
    qemu_bits b.qcow2 $name "b.$name.bits"
    cmp "a.$name.bits" "b.$name.bits" || fail "bitmap $name: QEMU did not go on with what we saved"
  done
}

try 65536 65536 8M
try 512 512 3000320
try 4096 1048576 5M
try 2097152 512 16M

# Left in use by a writer that was killed: never believed, named, kept; other bitmaps go on.
echo "== left in use"
rm -f ./*.qcow2
qemu-img create -q -f qcow2 c.qcow2 8M
qemu-img bitmap --add c.qcow2 lost
qemu-io -f qcow2 -c 'write 1M 64k' -c 'sigraise 9' c.qcow2 >/dev/null 2>&1 || :
start_server c.qcow2
py ops "$URI" 20 4
stop_server
grep -q "bitmap 'lost' was left in use" "$SERVER_LOG" || fail "no word of the lost bitmap"
check_image c.qcow2
qemu-img info --output=json c.qcow2 | grep -q in-use || fail "the mark is gone"
[ "$FRONTEND" = nbdkit ] || must_refuse c.qcow2 read-only arg=--bitmap=lost -- lost "in use"
qemu-img bitmap --remove c.qcow2 lost
qemu-img bitmap --add c.qcow2 found
qemu-img bitmap --add --disable -g 4k c.qcow2 other
cp c.qcow2 e.qcow2
start_server c.qcow2
py ops "$URI" 20 5
kill -KILL "$SERVER_PID"
wait "$SERVER_PID" 2>/dev/null || :
qemu-img info --output=json c.qcow2 | grep -q in-use || fail "not marked in use while it was written"
cp c.qcow2 lost.qcow2

# With the state that it left, the bits are complete.
start_server c.qcow2
nbdinfo --size "$URI" >/dev/null # nbdkit opens the image for its first client
grep -q "bitmaps were recovered" "$SERVER_LOG" || fail "no word of the recovery"
stop_server
check_image c.qcow2
start_server e.qcow2
py ops "$URI" 20 5
stop_server
for name in found other; do
  qemu_bits c.qcow2 $name c.bits
  qemu_bits e.qcow2 $name e.bits
  cmp c.bits e.bits || fail "bitmap $name is not complete after a kill"
done
qemu_bits c.qcow2 found c.bits
[ -s c.bits ] || fail "no bit was set"
[ "$(find "$STATE_DIR" -type f | wc -l)" = 0 ] || fail "something was left in the state directory"

# Without it, nobody believes them.
start_server lost.qcow2
nbdinfo --size "$URI" >/dev/null
grep -q "bitmap 'found' was left in use" "$SERVER_LOG" || fail "no word of the lost bitmap"
stop_server

# A program that does not know bitmaps has cleared the bit: the stale extension goes, nothing else.
echo "== stale"
rm -f ./*.qcow2
qemu-img create -q -f qcow2 d.qcow2 8M
qemu-img bitmap --add d.qcow2 gone
printf '\0' | dd of=d.qcow2 bs=1 seek=95 conv=notrunc status=none
start_server d.qcow2
py ops "$URI" 20 6
stop_server
grep -q "does not know bitmaps" "$SERVER_LOG" || fail "no word of the stale bitmaps"
check_image d.qcow2 leaks
qemu-img info d.qcow2 >info.out 2>&1
if grep -qi bitmap info.out; then
  cat info.out >&2
  fail "the stale extension is still there"
fi
