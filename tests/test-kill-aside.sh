#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The state that a killed server left is used only for the image that it belongs to, as that was left:
# else it is set aside with a warning, or not found, and never applied.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
FRONTEND=nbdcow
requires_frontend
requires qemu-img qemu-io
requires_python
requires_file "$BUILDDIR/kill/mangle" kill/mangle
use_seed
. "$SRCDIR/kill/state.sh"

# nbd COMMAND...: qemu-io on the server.
nbd ()
{
  timeout 60 qemu-io -t writeback -f raw "$@" "nbd+unix:///?socket=$tmp/sock" >io.out 2>&1 ||
    fail "qemu-io $*: $(cat io.out)"
  ! grep -q 'verification failed' io.out || fail "qemu-io $*: $(cat io.out)"
}
file_io ()
{
  _file=$1
  shift
  qemu-io -f qcow2 "$@" "$_file" >io.out 2>&1 || fail "qemu-io $*: $(cat io.out)"
  ! grep -q 'verification failed' io.out || fail "qemu-io $*: $(cat io.out)"
}

# leave: disk.qcow2, whose killed server had flushed 1s at 0 and 2s at 1M, and had answered, but not
# flushed, 3s at 1M and at 2M.  qemu-io flushes when it ends, so it is killed too.
leave ()
{
  rm -f disk.qcow2 "$STATE"/*
  qemu-img create -q -f qcow2 ${1:+"$@"} disk.qcow2 64M
  serve disk.qcow2
  nbd -c 'write -P 1 0 1M' -c 'write -P 2 1M 1M' -c flush
  unflushed
}
unflushed ()
{
  rm -f go unflushed.out
  mkfifo go
  timeout 60 qemu-io -t writeback -f raw "nbd+unix:///?socket=$tmp/sock" <go >unflushed.out 2>&1 &
  writer=$!
  track "$writer"
  exec 5>go
  echo 'write -P 3 1M 2M' >&5
  written () { grep -q 'wrote 2097152/2097152' unflushed.out 2>/dev/null; }
  wait_for 30 written || fail "qemu-io: $(cat unflushed.out)"
  kill_server
  kill -KILL "$writer" 2>/dev/null || :
  wait "$writer" 2>/dev/null || :
  exec 5>&-
}

# aside WHY [PATTERN]: the next server says that it does not use the state, and why; what was flushed is
# there, what needed new metadata and was not flushed is not.  1M holds PATTERN: usually the 3s that were
# written in place.
aside ()
{
  serve disk.qcow2
  grep -q "is not used: .*$1" "$SERVER_LOG" || fail "not set aside, or not because $1: $(cat "$SERVER_LOG")"
  [ "$(grep -c . "$SERVER_LOG")" = 1 ] || fail "more than one line: $(cat "$SERVER_LOG")"
  [ -n "$(find "$STATE" -name '*.aside')" ] || fail "the state was not kept"
  flushed_only "${2:-3}"
  rm -f "$STATE"/*.aside
}
flushed_only ()
{
  nbd -c 'read -P 1 0 1M' -c "read -P $1 1M 1M" -c 'read -P 0 2M 1M' -c 'write -P 4 8M 1M'
  stop_server
  check_image disk.qcow2 leaks
  rm -f "$STATE"/*.aside
  no_state_left
}

# ---- used ------------------------------------------------------------------------------------

leave
sleep 1.5 # however long that was ago
serve disk.qcow2
grep -q 'tables were recovered' "$SERVER_LOG" || fail "nothing recovered: $(cat "$SERVER_LOG")"
nbd -c 'read -P 1 0 1M' -c 'read -P 3 1M 2M'
stop_server
check_image disk.qcow2
no_state_left
echo "used when it may be"

# Reading, here or by others, does no harm; nor does a link.
leave
qemu-img info disk.qcow2 >/dev/null
file_io disk.qcow2 -r -c 'read -P 1 0 1M'
start_server disk.qcow2 read-only "$(state_option "$STATE")"
stop_server
ln -s disk.qcow2 link.qcow2
serve link.qcow2
nbd -c 'read -P 3 1M 2M'
stop_server
check_image disk.qcow2
echo "used after readers, by another name"

# ---- the image is another ----------------------------------------------------------------------

leave
file_io disk.qcow2 -c 'write -P 5 4M 64k'
aside 'another program has written'
leave
file_io disk.qcow2 -c 'write -P 2 1M 1M' # in place: no metadata changes
aside 'another program has written' 2
leave
qemu-img snapshot -c one disk.qcow2
aside 'another program has written'
echo "written by QEMU"

leave
cp disk.qcow2 copy.qcow2
ln disk.qcow2 left.qcow2
rm disk.qcow2
mv copy.qcow2 disk.qcow2 # while left.qcow2 keeps its inode, a copy has another
serve disk.qcow2
! grep -q recovered "$SERVER_LOG" || fail "applied to a copy"
nbd -c 'read -P 1 0 1M' -c 'read -P 3 1M 1M' -c 'read -P 0 2M 1M'
stop_server
check_image disk.qcow2 leaks
# The original is still what it was.
mv left.qcow2 disk.qcow2
serve disk.qcow2
nbd -c 'read -P 3 1M 2M'
stop_server
check_image disk.qcow2
echo "copied"

# Another image in its place: a new file, and the old file with other contents.
leave
qemu-img create -q -f qcow2 other.qcow2 64M
file_io other.qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 1M 1M'
cat other.qcow2 >disk.qcow2
aside 'another program has written' 2
leave
qemu-img create -q -f qcow2 -o cluster_size=4096 other.qcow2 64M
file_io other.qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 1M 1M'
cat other.qcow2 >disk.qcow2
aside geometry 2
echo "replaced"

# Restored, in place, from a backup of an older session ...
rm -f "$STATE"/* disk.qcow2
qemu-img create -q -f qcow2 disk.qcow2 64M
serve disk.qcow2
nbd -c 'write -P 1 0 1M' -c 'write -P 2 1M 1M' -c flush
cp disk.qcow2 backup.qcow2
stop_server
serve disk.qcow2
nbd -c flush
unflushed
cat backup.qcow2 >disk.qcow2
aside 'another session' 2
# ... of this session, before a flush ...
rm -f "$STATE"/* disk.qcow2
qemu-img create -q -f qcow2 disk.qcow2 64M
serve disk.qcow2
nbd -c 'write -P 1 0 1M' -c 'write -P 2 1M 1M' -c flush
cp disk.qcow2 backup.qcow2
nbd -c 'write -P 7 16M 1M' -c flush
nbd -c 'write -P 7 24M 1M' -c flush
unflushed
cat backup.qcow2 >disk.qcow2
aside 'before the last flush' 2
# ... and after the last one, but restored later.
rm -f "$STATE"/* disk.qcow2
qemu-img create -q -f qcow2 disk.qcow2 64M
serve disk.qcow2
nbd -c 'write -P 1 0 1M' -c 'write -P 2 1M 1M' -c flush
cp disk.qcow2 backup.qcow2
unflushed
sleep 1.5
cat backup.qcow2 >disk.qcow2
aside 'changed after the server died' 2
echo "restored"

# A state file that was on a disk after all, and has survived the machine.
leave
"$PYTHON" - "$STATE"/*.state <<'END' || fail "the state does not name this start of the machine"
import sys
boot = open("/proc/sys/kernel/random/boot_id", "rb").read().strip()
with open(sys.argv[1], "r+b") as f:
    at = f.read(4096).find(boot)
    assert at > 0
    f.seek(at)
    f.write(boot[::-1])
END
aside 'machine was started anew'
echo "from before the machine was started"

# ---- who may use it --------------------------------------------------------------------------

# A second server for the same file, with locks off.
rm -f "$STATE"/* disk.qcow2
qemu-img create -q -f qcow2 disk.qcow2 64M
serve disk.qcow2 no-lock
first=$SERVER_PID
refused disk.qcow2 no-lock "$(state_option "$STATE")" -- 'another process has this image open' "$STATE" ||
  fail "a second server: $REASON"
stop_server "$first"
no_state_left
echo "never shared"

# A directory that others could write to, or that is not one, is not used; the server serves.
unsafe ()
{
  rm -f disk.qcow2
  qemu-img create -q -f qcow2 disk.qcow2 64M
  start_server disk.qcow2 "$(state_option "$1")"
  ln -sfn "$SOCK" "$tmp/sock"
  [ "$(grep -c . "$SERVER_LOG")" = 1 ] && grep -q "$1" "$SERVER_LOG" ||
    fail "not one line that names $1: $(cat "$SERVER_LOG")"
  nbd -c 'write -P 1 0 1M' -c 'write -P 2 1M 1M' -c flush
  unflushed
  serve disk.qcow2
  flushed_only 3
}
mkdir -m 777 "$tmp/open"
unsafe "$tmp/open"
[ -z "$(ls -A "$tmp/open")" ] || fail "a state file in a directory that all may write to"
rmdir "$tmp/open"
mkdir -m 700 "$tmp/target"
ln -s "$tmp/target" "$tmp/link"
unsafe "$tmp/link"
rm -r "$tmp/link" "$tmp/target"
echo >"$tmp/file"
unsafe "$tmp/file"
if [ "$(id -u)" = 0 ]; then
  mkdir -m 700 "$tmp/theirs"
  chown 65534 "$tmp/theirs"
  unsafe "$tmp/theirs"
fi
echo "only a safe directory"

# Off: what was flushed.
rm -f disk.qcow2
qemu-img create -q -f qcow2 disk.qcow2 64M
start_server disk.qcow2 "$(state_option off)"
ln -sfn "$SOCK" "$tmp/sock"
nbd -c 'write -P 1 0 1M' -c 'write -P 2 1M 1M' -c flush
unflushed
no_state_left
serve disk.qcow2
server_log_is_empty
flushed_only 3
# Version 2 has no bits for the proof: served without, in silence.
leave -o compat=0.10
no_state_left
serve disk.qcow2
server_log_is_empty
flushed_only 3
echo "off, and version 2"

# ---- a block device ---------------------------------------------------------------------------

# It has no change time: the mark in the header must do.
attach ()
{
  [ "$(id -u)" = 0 ] && command -v losetup >losetup.log 2>&1 || return 1
  truncate -s 64M device
  dev=$(losetup -f --show "$tmp/device" 2>losetup.log) || { dev=; return 1; }
}
dev=
at_exit '[ -z "$dev" ] || losetup -d "$dev"'
if attach; then
  for between in nothing qemu; do
    qemu-img create -q -f qcow2 "$dev" 32M
    serve "$dev"
    nbd -c 'write -P 1 0 1M' -c flush
    unflushed
    [ $between = nothing ] || file_io "$dev" -c 'write -P 5 8M 64k'
    serve "$dev"
    case $between in
    nothing) nbd -c 'read -P 1 0 1M' -c 'read -P 3 1M 2M' ;;
    qemu)
      grep -q 'is not used: another program' "$SERVER_LOG" || fail "not set aside: $(cat "$SERVER_LOG")"
      nbd -c 'read -P 1 0 1M' -c 'read -P 0 1M 2M' -c 'read -P 5 8M 64k'
      ;;
    esac
    stop_server
    check_image "$dev" leaks
    rm -f "$STATE"/*.aside
    no_state_left
  done
  echo "on a block device"
else
  echo "no loop device: the block device was left out"
fi

# ---- the state file is damaged -----------------------------------------------------------------

leave -o cluster_size=8192 # flushed and other clusters in one table
"$BUILDDIR/kill/mangle" -s "$SEED" -n "${ROUNDS:-400}" disk.qcow2 "$STATE"
check_image disk.qcow2 leaks
