#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# How nbdcow runs: under a command, under a parent, under a service manager, as another user; and
# what it says about it.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img nbdinfo ldconfig
requires_python_nbd

qemu-img create -q -f qcow2 disk.qcow2 8M
TMPDIR=$tmp
export TMPDIR

# ---- --run -------------------------------------------------------------------------------------

status=0
# shellcheck disable=SC2016 # the command's own variables
"$NBDCOW" -x disk --run 'nbdinfo --size "$uri" >size; echo "$uri" "$exportname" "$unixsocket" >said; exit 7' \
  disk.qcow2 || status=$?
[ "$status" = 7 ] || fail "--run: status $status instead of the command's 7"
[ "$(cat size)" = 8388608 ] || fail '--run: the command could not use the export'
read -r uri name socket <said
[ "$uri $name" = "nbd+unix:///disk?socket=$socket disk" ] || fail "--run: $(cat said)"
[ ! -e "$(dirname "$socket")" ] || fail '--run: the private socket is still there'
status=0
# shellcheck disable=SC2016
"$NBDCOW" --run 'kill -KILL $$' disk.qcow2 || status=$?
[ "$status" = 137 ] || fail "--run: status $status of a command that was killed"
status=0
"$NBDCOW" --run true missing.qcow2 2>run.log || status=$?
one_line "$status" run.log missing.qcow2 || fail "--run: $REASON"

# ---- --print-uri, --log ------------------------------------------------------------------------

"$NBDCOW" --fork --pid-file="$tmp/pid" --print-uri --log="$tmp/nbdcow.log" --log-level=info -t \
  -k "$tmp/a sock" -x 'my disk' disk.qcow2 >printed
track "$(cat pid)"
[ "$(cat printed)" = "nbd+unix:///my%20disk?socket=$tmp/a%20sock" ] || fail "URI: $(cat printed)"
[ "$(nbdinfo --size "$(cat printed)")" = 8388608 ] || fail 'the URI that is printed does not work'
kill "$(cat pid)"
stopped () { [ ! -e pid ]; }
wait_for 20 stopped || fail 'nbdcow did not stop'
grep -q 'disconnected: export "my disk"' nbdcow.log || fail "the log: $(cat nbdcow.log)"
grep -q 'shutting down' nbdcow.log || fail "the log: $(cat nbdcow.log)"

# What keeps it from starting is said to whoever starts it, too.
status=0
"$NBDCOW" --log="$tmp/other.log" -k "$tmp/sock" missing.qcow2 2>start.log || status=$?
one_line "$status" start.log missing.qcow2 || fail "--log: $REASON"
one_line 1 other.log missing.qcow2 || fail "--log: $REASON"

# ---- a parent that goes ------------------------------------------------------------------------

# shellcheck disable=SC2016
sh -c '"$0" --exit-with-parent -t -k "$1/sock" --pid-file="$1/pid" "$1/disk.qcow2" & while [ ! -s "$1/pid" ]; do
  sleep .02; done' "$NBDCOW" "$tmp"
wait_for 20 stopped || { track "$(cat pid)"; fail 'nbdcow outlived its parent'; }
[ ! -e sock ] || fail 'the socket outlived the server'

# ---- a service manager -------------------------------------------------------------------------

has_systemd && systemd=1 || systemd=
SYSTEMD=$systemd "$PYTHON" - "$NBDCOW" <<'END'
import fcntl, nbd, os, signal, socket, sys

notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind("notify")
notify.settimeout(60)
sockets = []
for name in "one.sock", "two.sock":
    s = socket.socket(socket.AF_UNIX)
    s.bind(name)
    s.listen(5)
    sockets.append(s)

pid = os.fork()
if pid == 0:
    high = [fcntl.fcntl(s.fileno(), fcntl.F_DUPFD, 50) for s in sockets]
    for i, fd in enumerate(high):
        os.dup2(fd, 3 + i)
        os.set_inheritable(3 + i, True)
    env = dict(os.environ, LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="main:spare",
               NOTIFY_SOCKET=os.path.abspath("notify"), WATCHDOG_USEC="400000",
               WATCHDOG_PID=str(os.getpid()))
    with open("service.log", "w") as log:
        os.dup2(log.fileno(), 2)
    os.execve(sys.argv[1], [sys.argv[1], "-t", "-e", "0", "--log-level=info", "disk.qcow2"], env)

def messages(wanted, n=1):
    while n > 0:
        m = notify.recv(4096).decode()
        if wanted in m.split("\n"):
            n -= 1

if os.environ["SYSTEMD"]:
    messages("READY=1")
    messages("WATCHDOG=1", 3)
for name in "one.sock", "two.sock":
    h = nbd.NBD()
    h.connect_uri("nbd+unix:///?socket=" + os.path.abspath(name))
    assert h.get_size() == 8 << 20
    h.shutdown()
os.kill(pid, signal.SIGTERM)
if os.environ["SYSTEMD"]:
    messages("STOPPING=1")
_, status = os.waitpid(pid, 0)
assert status == 0, status
log = open("service.log").read()
assert "connected by socket main" in log and "connected by socket spare" in log, log
# Somebody else's sockets stay where they are.
assert os.path.exists("one.sock") and os.path.exists("two.sock")
END

# With sockets from outside, none of our own; and they must be sockets.
status=0
LISTEN_PID=$$ LISTEN_FDS=1 sh -c 'exec env LISTEN_PID=$$ "$0" disk.qcow2 3</dev/null' "$NBDCOW" 2>fds.log || status=$?
one_line "$status" fds.log LISTEN_FDS 'listening socket' || fail "LISTEN_FDS: $REASON"

# ---- another user ------------------------------------------------------------------------------

status=0
"$NBDCOW" --user=no-such-user -k "$tmp/sock" disk.qcow2 2>user.log || status=$?
one_line "$status" user.log --user=no-such-user || fail "--user: $REASON"
if [ "$(id -u)" = 0 ] && id nobody >/dev/null 2>&1; then
  chmod 755 "$tmp"
  chown nobody disk.qcow2
  # shellcheck disable=SC2016
  "$NBDCOW" --user=nobody -k "$tmp/sock" --state-dir=off \
    --run 'sed -n "s/^[UG]id:\t//p" "/proc/$PPID/status"' disk.qcow2 >ids
  uid=$(id -u nobody)
  gid=$(id -g nobody)
  [ "$(tr -s '\t' ' ' <ids | tr '\n' ' ')" = "$uid $uid $uid $uid $gid $gid $gid $gid " ] ||
    fail "--user=nobody: $(cat ids)"
  # Where only root gets to, what is there is made before, and stays.
  mkdir -m 700 closed
  mkdir -m 755 closed/run
  "$NBDCOW" --user=nobody -k "$tmp/closed/run/sock" --pid-file="$tmp/closed/run/pid" --state-dir=off \
    --run 'echo served' disk.qcow2 >served 2>user.log || fail "a pid file out of reach: $(cat user.log)"
  [ "$(cat served)" = served ] || fail "a pid file out of reach: $(cat user.log)"
  ! grep -q 'sandbox' user.log || fail "a pid file out of reach: $(cat user.log)"
  # What that user has put there does not lead root to another file; what root has does.
  mkdir theirs
  chown nobody theirs
  echo precious >precious
  chmod 600 precious
  ln -s "$tmp/precious" theirs/symbolic
  ln precious theirs/hard
  for option in --pid-file --log; do
    for link in symbolic hard; do
      status=0
      "$NBDCOW" --user=nobody -k "$tmp/sock" --state-dir=off $option="$tmp/theirs/$link" --run true disk.qcow2 \
        2>user.log || status=$?
      one_line "$status" user.log "theirs/$link" 'it is a link' || fail "$option, a link of others: $REASON"
      [ "$(cat precious)" = precious ] || fail "$option wrote to where a link of others leads"
    done
    mkfifo theirs/pipe
    exec 9<>theirs/pipe
    status=0
    "$NBDCOW" --user=nobody -k "$tmp/sock" --state-dir=off $option="$tmp/theirs/pipe" --run true disk.qcow2 \
      2>user.log || status=$?
    exec 9>&-
    rm theirs/pipe
    one_line "$status" user.log theirs/pipe 'it is no regular file' || fail "$option, a pipe of others: $REASON"
    "$NBDCOW" --user=nobody -k "$tmp/sock" --state-dir=off $option="$tmp/theirs/file" --run true disk.qcow2 ||
      fail "$option in a directory of others"
  done
  ln -s precious link
  "$NBDCOW" --user=nobody -k "$tmp/sock" --state-dir=off --pid-file="$tmp/link" --run true disk.qcow2 ||
    fail "--pid-file: a link of root's"
  [ ! -s precious ] || fail "--pid-file: a link of root's was not followed"
  # What that user may not open is not opened.
  chown root disk.qcow2
  chmod 600 disk.qcow2
  status=0
  "$NBDCOW" --user=nobody -k "$tmp/sock" disk.qcow2 2>user.log || status=$?
  one_line "$status" user.log disk.qcow2 || fail "--user=nobody: $REASON"
fi
