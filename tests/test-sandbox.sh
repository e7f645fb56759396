#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The sandbox: what somebody who has taken a server over still can do, and cannot; that each feature
# that widens it works in it, and that nothing else is widened.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires_file "$BUILDDIR/sandbox" "the program sandbox"
requires qemu-img nbdinfo
requires_python_nbd
[ -z "${PLUGIN_PRELOAD:-}" ] || skip "a sanitizer needs what the sandbox takes away: --sandbox=auto is off in this build"

status=0
"$BUILDDIR/sandbox" nothing >sandbox.log 2>&1 || status=$?
if [ $status = 77 ]; then
  # What is missing is said, and only --sandbox=on minds.
  qemu-img create -q -f qcow2 disk.qcow2 8M
  status=0
  "$NBDCOW" --sandbox=on --run true disk.qcow2 2>on.log || status=$?
  one_line "$status" on.log sandbox --sandbox=off || fail "--sandbox=on: $REASON"
  "$NBDCOW" --run true disk.qcow2 || fail "--sandbox=auto: status $?"
  skip "$(cat sandbox.log)"
fi
[ "$(cat sandbox.log)" = 'done' ] || fail "nothing: status $status: $(cat sandbox.log)"

# try EXPECTED [--want=...]... ACTION [ARGUMENT]: EXPECTED is done, the name of an error, or SIGSYS.
try ()
{
  expected=$1
  shift
  status=0
  "$BUILDDIR/sandbox" "$@" >sandbox.log 2>&1 || status=$?
  [ "$status" != 159 ] || echo SIGSYS >sandbox.log
  printf '%-60s %s\n' "$*" "$(cat sandbox.log)"
  case "|$expected|" in
  *"|$(cat sandbox.log)|"*) ;;
  *) fail "$*: $(cat sandbox.log), should be $expected" ;;
  esac
}

mkdir inside outside
echo x >inside/file
echo x >outside/file
ln -s ../outside/file inside/link

echo '== what every server is kept from'
try EACCES read-shadow
try EACCES read-file "$tmp/inside/file"
try EACCES write-file "$tmp/inside/new"
try EACCES remove-file "$tmp/inside/file"
for action in execve ptrace process-vm mount setuid unshare bpf; do
  try SIGSYS $action
done
try EPERM spawn
try EPERM fork
try EPERM mmap-exec
try EPERM mprotect-exec
try 'ENOSYS' io_uring
try 'ENOSYS' kill
try 'ENOSYS' tiocsti
try 'ENOSYS' socket-inet
try 'ENOSYS' socket-unix
try 'ENOSYS' socket-unix-datagram
try 'ENOSYS' socket-packet
try done send
try ENOSYS fchmod
try ENOSYS fchmod-setuid
try ENOSYS send-fast-open
try ENOSYS sendmsg-fast-open

echo '== removing what was made'
try done --want=remove:"$tmp/inside/file" remove-file "$tmp/inside/file"
echo x >inside/file
try EACCES --want=remove:"$tmp/inside/file" remove-file "$tmp/outside/file"
try EACCES --want=remove:"$tmp/inside/file" read-file "$tmp/inside/file"
try SIGSYS --want=remove:"$tmp/inside/file" execve

echo '== credentials that are read again'
try done --want=read:"$tmp/inside" read-file "$tmp/inside/file"
try done --want=read:"$tmp/inside/file" read-file "$tmp/inside/file"
try EACCES --want=read:"$tmp/inside" read-file "$tmp/inside/link"
try EACCES --want=read:"$tmp/inside" read-file "$tmp/outside/file"
try EACCES --want=read:"$tmp/inside" read-shadow
try EACCES --want=read:"$tmp/inside" write-file "$tmp/inside/file"
try SIGSYS --want=read:"$tmp/inside" execve

echo '== the service manager, the log'
try done --want=tell socket-unix-datagram
try ENOSYS --want=tell socket-unix
try ENOSYS --want=tell socket-inet
try EACCES --want=tell read-shadow

echo '== images that are not known yet'
try done --want=images write-file "$tmp/outside/file"
try done --want=images socket-inet
try done --want=images socket-unix
try done --want=images fchmod
try ENOSYS --want=images fchmod-setuid
try ENOSYS --want=images socket-packet
for action in execve ptrace mount setuid; do
  try SIGSYS --want=images $action
done
try EPERM --want=images fork
try ENOSYS --want=images io_uring

# ---- a server ------------------------------------------------------------------------------------

echo '== a server'
qemu-img create -q -f qcow2 disk.qcow2 8M
start_nbdcow disk.qcow2 arg=--sandbox=on
for task in "/proc/$SERVER_PID/task"/*; do
  [ "$(sed -n 's/^Seccomp:[[:space:]]*//p' "$task/status")" = 2 ] || fail "a thread without a filter: $task"
  [ "$(sed -n 's/^NoNewPrivs:[[:space:]]*//p' "$task/status")" = 1 ] || fail "a thread that may gain privileges: $task"
  caps=$(sed -n 's/^CapEff:[[:space:]]*//p' "$task/status")
  [ $((0x$caps & ~0x100400a)) = 0 ] || fail "capabilities: $caps"
done
timeout 60 "$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * 100000, 12345)
h.flush()
h.zero(65536, 1 << 20)
h.trim(65536, 2 << 20)
h.cache(1 << 20, 0)
h.block_status(8 << 20, 0, lambda *a: 0)
assert h.pread(100000, 12345) == b"x" * 100000
h.shutdown()' "$URI"
stop_server
server_log_is_empty
check_image disk.qcow2
[ ! -e "$SOCK" ] || fail 'the socket is left'
[ -z "$(ls "$STATE_DIR")" ] || fail "left in the state directory: $(ls "$STATE_DIR")"

# O_DIRECT is what rings are for.
if start_nbdcow disk.qcow2 arg=--sandbox=on cache=none 2>/dev/null; then
  nbdinfo --map "$URI" >/dev/null
  timeout 60 "$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(64):
    h.pread(65536, i * 65536)
h.shutdown()' "$URI"
  stop_server
fi

status=0
"$NBDCOW" --sandbox=maybe --run true disk.qcow2 2>word.log || status=$?
one_line "$status" word.log --sandbox=maybe auto || fail "--sandbox=maybe: $REASON"

# The command of --run is none of the sandbox's business.
"$NBDCOW" --sandbox=on --run 'grep -E "^(Seccomp|NoNewPrivs):" /proc/self/status | tr -d "\n\t "' disk.qcow2 >run.out
grep -q 'NoNewPrivs:0Seccomp:0' run.out || fail "--run in a sandbox: $(cat run.out)"

start_nbdcow disk.qcow2 arg=--sandbox=off
[ "$(sed -n 's/^Seccomp:[[:space:]]*//p' "/proc/$SERVER_PID/status")" = 0 ] || fail '--sandbox=off: there is a filter'
stop_server
