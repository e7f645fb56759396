#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The sandbox: what somebody who has taken a server over still can do, and cannot; that each feature
# that widens it works in it, and that nothing else is widened.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires_file "$BUILDDIR/confined/sandbox" "the program sandbox"
requires qemu-img nbdinfo
requires_python_nbd

if [ -n "${PLUGIN_PRELOAD:-}" ]; then
  # A sanitizer needs what is taken away; all the same the sandbox is there for who asks for it, as is all of
  # this.  What looks for leaks traces the process: that it cannot have.
  ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0
  export ASAN_OPTIONS
  qemu-img create -q -f qcow2 disk.qcow2 8M
  start_nbdcow disk.qcow2 arg=--log-level=info
  [ "$(sed -n 's/^Seccomp:[[:space:]]*//p' "/proc/$SERVER_PID/status")" = 0 ] || fail "a filter in a build with a sanitizer"
  stop_server
  grep -q 'sandbox: this is a build with a sanitizer.*: off' "$SERVER_LOG" || fail "not said: $(cat "$SERVER_LOG")"
fi

status=0
"$BUILDDIR/confined/sandbox" nothing >sandbox.log 2>&1 || status=$?
[ $status != 77 ] || skip "$(cat sandbox.log): test-sandbox-missing.sh is about that"
[ "$(cat sandbox.log)" = 'done' ] || fail "nothing: status $status: $(cat sandbox.log)"

# try EXPECTED [--want=...]... ACTION [ARGUMENT]: EXPECTED is done, the name of an error, or SIGSYS.
try ()
{
  expected=$1
  shift
  status=0
  "$BUILDDIR/confined/sandbox" "$@" >sandbox.log 2>&1 || status=$?
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
for action in run attach read-other mount-tmpfs become-root user-namespace load-code; do
  try SIGSYS $action
done
try EPERM spawn
try EPERM fork
try ENOSYS clone-newnet
try EPERM mmap-exec
try EPERM mprotect-exec
for action in io_uring signal tgkill end-other tiocsti fcntl-setown setrlimit prlimit-other prctl-dumpable prctl-keepcaps; do
  try ENOSYS $action
done
for action in socket-inet socket-unix socket-unix-datagram socket-packet socketpair-datagram setsockopt-filter \
  setsockopt-ulp send-fast-open sendmsg-fast-open; do
  try ENOSYS $action
done
for action in fchmod fchmod-setuid chmod-setuid openat2; do
  try ENOSYS $action "$tmp/inside/file"
done
for action in send tgkill-self fcntl-getfl getrlimit setsockopt-nodelay; do
  try 'done' $action
done
[ "$(uname -m)" != x86_64 ] || try SIGSYS other-abi

echo '== calls that are nothing but refused'
for call in $("$BUILDDIR/confined/sandbox" --absent); do
  try ENOSYS "$call"
done
for call in $("$BUILDDIR/confined/sandbox" --deadly); do
  try SIGSYS "$call"
done

echo '== the ring'
if [ "$("$BUILDDIR/confined/sandbox" ring-read)" = EOPNOTSUPP ]; then
  echo 'there is none here'
else
  try 'done' ring-read
  for action in ring-open ring-write ring-connect ring-socket; do
    try EACCES $action
  done
  try ENOSYS ring-register
fi

echo '== removing what was made'
try done --want=remove:"$tmp/inside/file" remove-file "$tmp/inside/file"
echo x >inside/file
try EACCES --want=remove:"$tmp/inside/file" remove-file "$tmp/outside/file"
try EACCES --want=remove:"$tmp/inside/file" read-file "$tmp/inside/file"
try SIGSYS --want=remove:"$tmp/inside/file" run

echo '== credentials that are read again'
try done --want=read:"$tmp/inside" read-file "$tmp/inside/file"
try done --want=read:"$tmp/inside/file" read-file "$tmp/inside/file"
try EACCES --want=read:"$tmp/inside" read-file "$tmp/inside/link"
try EACCES --want=read:"$tmp/inside" read-file "$tmp/outside/file"
try EACCES --want=read:"$tmp/inside" read-shadow
try EACCES --want=read:"$tmp/inside" write-file "$tmp/inside/file"
try SIGSYS --want=read:"$tmp/inside" run

echo '== the service manager, the log'
try done --want=tell socket-unix-datagram
try ENOSYS --want=tell socket-unix
try ENOSYS --want=tell socket-inet
try EACCES --want=tell read-shadow

echo '== images that are not known yet'
try 'done' --want=images write-file "$tmp/outside/file"
try 'done' --want=images write-file "$tmp/outside/new"
try 'done' --want=images remove-file "$tmp/outside/new"
for action in socket-inet socket-unix fchmod; do
  try 'done' --want=images $action
done
for action in fchmod-setuid chmod-setuid open-setuid open-setgid mknod-setuid mkdir-setgid openat2; do
  try ENOSYS --want=images $action "$tmp/outside/program"
  [ ! -e "$tmp/outside/program" ] || fail "$action has made it"
done
for action in socket-packet socket-raw socket-sctp socketpair-datagram io_uring fcntl-setown; do
  try ENOSYS --want=images $action
done
for action in run attach mount-tmpfs become-root; do
  try SIGSYS --want=images $action
done
try EPERM --want=images fork

# The kernel's doors, wherever they are; but what opening an image looks up.
try EACCES --want=images proc-self-mem
for door in /proc/self/environ /proc/1/status /proc/sys/kernel/ostype /sys/kernel/mm/transparent_hugepage/enabled; do
  [ ! -r $door ] || try EACCES --want=images read-file $door
done
for door in /proc/self/oom_score_adj /proc/sys/kernel/core_pattern /sys/kernel/uevent_helper; do
  [ ! -w $door ] || try EACCES --want=images write-file $door
done
try 'done' --want=images read-file /proc/sys/kernel/random/boot_id
if [ "$(id -u)" = 0 ] && command -v unshare >/dev/null 2>&1 && unshare -m true 2>/dev/null; then
  mkdir -p rooms/door rooms/room
  echo x >rooms/room/file
  unshare -m sh -eu -c '
    mount -t proc proc "$1/rooms/door"
    "$2" --want=images read-file "$1/rooms/door/self/status"
    "$2" --want=images read-file "$1/rooms/room/file"' sh "$tmp" "$BUILDDIR/confined/sandbox" >rooms.log
  [ "$(tr '\n' ' ' <rooms.log)" = 'EACCES done ' ] || fail "a door elsewhere: $(cat rooms.log)"
fi

ctl=$(dirname "$NBDCOW")/nbdcow-ctl
# Below /run, where one of these file systems is mounted: the state directory is there in time.
if [ "$(id -u)" = 0 ] && [ -x "$ctl" ] && [ -z "${PLUGIN_PRELOAD:-}" ] && unshare -m true 2>/dev/null; then
  echo '== a state directory beside a door'
  qemu-img create -q -f qcow2 ro.qcow2 1M
  qemu-img create -q -f qcow2 rw.qcow2 1M
  timeout 60 unshare -m sh -eu -c '
    mount --make-rprivate /
    mount -t tmpfs tmpfs /run
    mkdir /run/door
    mount -t proc proc /run/door
    "$1" -t -e 0 -r -k "$PWD/s" --control "$PWD/c" --log-level=info ro.qcow2 2>state.log & pid=$!
    trap "kill $pid" EXIT
    until "$2" --control="$PWD/c" show "" >/dev/null 2>&1; do sleep 0.1; done
    "$2" --control="$PWD/c" export add name=rw,file="$PWD/rw.qcow2",read-only=off
    ls /run/nbdcow >state.ls
    trap - EXIT
    kill $pid
    wait $pid' sh "$NBDCOW" "$ctl" || fail "a state directory beside a door: $(cat state.log)"
  grep -q '[.]state$' state.ls || fail "no state file: $(cat state.log)"
  if grep -q 'no state directory' state.log; then fail "no state directory: $(cat state.log)"; fi
fi

# What is mounted later, where each entry of a directory is let through by itself.
if [ "$(id -u)" = 0 ] && [ -x "$ctl" ] && [ -z "${PLUGIN_PRELOAD:-}" ] && unshare -m true 2>/dev/null; then
  echo '== later mounts'
  qemu-img create -q -f qcow2 served.qcow2 1M
  qemu-img create -q -f qcow2 later.qcow2 1M
  timeout 60 unshare -m sh -eu -c '
    mount --make-rprivate /
    mount -t tmpfs tmpfs /run
    mkdir -p /run/door /run/entry/below
    mount -t proc proc /run/door
    "$1" -t -e 0 -k "$PWD/s" --control "$PWD/c" --sandbox=on served.qcow2 2>later.log & pid=$!
    trap "kill $pid" EXIT
    until "$2" --control="$PWD/c" show "" >/dev/null 2>&1; do sleep 0.1; done
    ctl=$2
    add () # NAME DIRECTORY
    {
      cp later.qcow2 "$2"
      status=opened
      "$ctl" --control="$PWD/c" export add name="$1",file="$2/later.qcow2" >>later.err 2>&1 || status=refused
      echo "$1: $status"
    }
    mount -t tmpfs tmpfs /run/entry/below
    add below /run/entry/below
    mount -t tmpfs tmpfs /run/entry
    add on /run/entry
    mkdir /run/new
    add new /run/new
    trap - EXIT
    kill $pid
    wait $pid' sh "$NBDCOW" "$ctl" >later.out || fail "later mounts: $(cat later.log)"
  [ "$(tr '\n' ' ' <later.out)" = 'below: opened on: refused new: refused ' ] ||
    fail "later mounts: $(cat later.out later.err later.log)"
fi

echo '== the process that takes over'
try done --want=handover end-other
try done --want=handover socket-unix
try ENOSYS --want=handover stop-other
try ENOSYS --want=handover signal
try ENOSYS --want=handover tgkill
try EACCES --want=handover read-shadow

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

echo '== commands that are run when a watermark is passed'
# They are as free as what has started the server, those of the configuration included; the server is not.
about () { grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | tr -d '[:space:]'; }
ours=$(about)
has_run () { [ "$(cat "$1" 2>/dev/null)" = "$ours" ]; }
# shellcheck disable=SC2016 # for the command's shell
hook='grep -E "^(Seccomp|NoNewPrivs):" /proc/self/status | tr -d "[:space:]" >$NBDCOW_EXPORT.part && mv $NBDCOW_EXPORT.part $NBDCOW_EXPORT.ran'
qemu-img create -q -f qcow2 first.qcow2 8M
qemu-img create -q -f qcow2 second.qcow2 8M
"$PYTHON" -c '
import json, sys
json.dump({"export": [{"name": "second", "file": "second.qcow2", "watermark": "1M",
                       "watermark-exec": "true; " + sys.argv[1]}]}, open("config.json", "w"))' "$hook"
start_nbdcow first.qcow2 arg=--sandbox=on arg=--export-name=first arg=--watermark=1M arg=--watermark-exec="$hook" \
  arg=--config=config.json
for task in "/proc/$SERVER_PID/task"/*; do
  [ "$(sed -n 's/^Seccomp:[[:space:]]*//p' "$task/status")" = 2 ] || fail "a thread without a filter: $task"
done
for name in first second; do
  timeout 60 "$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * (4 << 20), 0)
h.shutdown()' "nbd+unix:///$name?socket=$SOCK"
  wait_for 60 has_run $name.ran || fail "$name: no command was run as it should: $(cat $name.ran "$SERVER_LOG" 2>&1)"
done
stop_server

start_nbdcow disk.qcow2 arg=--sandbox=off
[ "$(sed -n 's/^Seccomp:[[:space:]]*//p' "/proc/$SERVER_PID/status")" = 0 ] || fail '--sandbox=off: there is a filter'
stop_server
