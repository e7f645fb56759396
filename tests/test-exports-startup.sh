#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# How nbdcow starts and ends: signals while it starts, the background, whose socket and pid file it
# removes, a reader of messages that has gone to sleep, and secrets that messages do not tell.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img nbdinfo ldd
requires_python_nbd

TMPDIR=$tmp
export TMPDIR
qemu-img create -q -f qcow2 disk.qcow2 8M
mkdir many
n=0
while [ $n -lt 200 ]; do
  cp disk.qcow2 many/$n.qcow2
  n=$((n + 1))
done

gone () { ! process_alive "$1"; }
serving () { [ -s pid ] && [ -S sock ]; }

# ---- signals while it starts ---------------------------------------------------------------------

# It opens its images after its socket is there, and there are many of them.
early=0
for options in '' --fork; do
  for signal in TERM INT TERM INT TERM INT TERM INT; do
    rm -f start.log
    # A background job of the shell's would ignore SIGINT.
    # shellcheck disable=SC2086
    "$PYTHON" -c '
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])' "$NBDCOW" $options -t --state-dir=off -k sock --pid-file=pid \
      --export-dir="$tmp/many" 2>start.log &
    starter=$!
    track $starter
    bound () { [ -S sock ] || gone $starter; }
    wait_for 30 bound || fail 'no socket appeared'
    kill -$signal $starter 2>/dev/null || : # the parent may have gone, its server running
    wait_for 60 gone $starter || fail "SIG$signal did not end a server that starts"
    status=0
    wait $starter || status=$?
    case $status in
    0) # too late: it was running, in the background or not
      [ ! -s pid ] || { pid=$(cat pid); kill -TERM "$pid"; wait_for 60 gone "$pid" || fail 'it runs on'; } ;;
    1)
      grep -q 'ends before it is running' start.log || fail "SIG$signal while it starts: $(cat start.log)"
      early=$((early + 1)) ;;
    *) fail "status $status after SIG$signal while it starts: $(cat start.log)" ;;
    esac
    [ ! -e sock ] || fail "SIG$signal while it starts: the socket is left ($options)"
    [ ! -e pid ] || fail "SIG$signal while it starts: the pid file is left ($options)"
  done
done
echo "$test_name: $early of 16 servers were ended before they ran"
[ $early -gt 0 ] || fail 'no server was ended before it ran'

# A wish for a reload takes nothing back, and as many of them as there are do not end it.
echo "{ \"export-dir\": \"$tmp/many\" }" >many.json
for signals in 'TERM HUP' 'HUP HUP HUP'; do
  "$NBDCOW" -t --state-dir=off -k sock --pid-file=pid --config=many.json 2>start.log &
  starter=$!
  track $starter
  bound () { [ -S sock ] || gone $starter; }
  wait_for 30 bound || fail 'no socket appeared'
  for signal in $signals; do
    kill -$signal $starter || fail "$signals: it has ended: $(cat start.log)"
  done
  if [ "$signals" = 'TERM HUP' ]; then
    wait_for 60 gone $starter || fail "$signals while it starts: it runs on"
  else
    wait_for 60 serving || fail "$signals while it starts: $(cat start.log)"
    kill $starter
    wait_for 60 gone $starter || fail 'it runs on'
  fi
  status=0
  wait $starter || status=$?
  [ $status -le 1 ] || fail "$signals while it starts: status $status"
  if [ -e sock ] || [ -e pid ]; then
    fail "$signals while it starts: the socket or the pid file is left"
  fi
done

# ---- the background ------------------------------------------------------------------------------

mkdir here
(cd here && "$NBDCOW" --fork -t -k sock --pid-file=pid --state-dir="$tmp/here/state" ../disk.qcow2)
pid=$(cat here/pid)
track "$pid"
[ "$(readlink "/proc/$pid/cwd")" = / ] || fail "--fork: works in $(readlink "/proc/$pid/cwd")"
[ "$(nbdinfo --size "nbd+unix:///?socket=$tmp/here/sock")" = 8388608 ] || fail '--fork: not served'
kill "$pid"
wait_for 60 gone "$pid" || fail '--fork: did not end'
[ ! -e here/sock ] || fail '--fork: the socket is left'
[ ! -e here/pid ] || fail '--fork: the pid file is left'
[ -z "$(ls here/state)" ] || fail "--fork: left in the state directory: $(ls here/state)"

if ldd "$NBDCOW" | grep -q libsystemd || grep -q libsystemd.so "$NBDCOW"; then
  "$PYTHON" - "$NBDCOW" <<'END' || fail 'the watchdog of a server in the background'
import os, re, signal, socket, sys
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind("notify")
notify.settimeout(60)
pid = os.fork()
if pid == 0:
    env = dict(os.environ, NOTIFY_SOCKET=os.path.abspath("notify"), WATCHDOG_USEC="400000",
               WATCHDOG_PID=str(os.getpid()))
    os.execve(sys.argv[1], [sys.argv[1], "--fork", "-t", "-k", "sock", "disk.qcow2"], env)
main, alive = None, 0
while alive < 3:
    m = notify.recv(4096).decode()
    if "READY=1" in m:
        main = int(re.search(r"MAINPID=(\d+)", m).group(1))
    alive += "WATCHDOG=1" in m
assert main and main != pid
_, status = os.waitpid(pid, 0)
os.kill(main, signal.SIGTERM)
assert status == 0, status
END
  ended () { [ ! -e sock ]; }
  wait_for 60 ended || fail 'the server did not end'
fi

# Whoever reads what it says gets to the end of that.  A background server that is up has nothing
# more to say, and nor has the process that runs its commands.
cat >fork.json <<END
{ "fork": true, "persistent": true, "socket": "$tmp/sock", "pid-file": "$tmp/pid",
  "export": [ { "file": "$tmp/disk.qcow2", "watermark": "4M", "watermark-exec": "exit 0" } ] }
END
for how in --config="$tmp/fork.json" \
  "--fork -t -k $tmp/sock --pid-file=$tmp/pid --watermark=4M --watermark-exec=true $tmp/disk.qcow2"; do
  # shellcheck disable=SC2086
  timeout 60 sh -c 'said=$("$@" 2>&1) && [ -z "$said" ]' sh "$NBDCOW" $how ||
    fail "$how: its output does not end, or it failed"
  pid=$(cat pid)
  track "$pid"
  kill "$pid"
  wait_for 60 gone "$pid" || fail "$how: did not end"
done

# ---- whose socket, whose pid file ----------------------------------------------------------------

qemu-img create -q -f qcow2 other.qcow2 16M
"$NBDCOW" -t -k "$tmp/sock" --pid-file="$tmp/pid" disk.qcow2 &
first=$!
track $first
wait_for 60 serving || fail 'no server'
rm pid # by somebody who is too tidy
"$NBDCOW" -t -k "$tmp/sock" --pid-file="$tmp/pid" other.qcow2 &
second=$!
track $second
wait_for 60 serving || fail 'no second server'
kill $first
wait $first || fail "the first server's status is $?"
[ -S sock ] || fail "a server has removed another one's socket"
[ "$(cat pid)" = $second ] || fail "a server has removed another one's pid file"
[ "$(nbdinfo --size "nbd+unix:///?socket=$tmp/sock")" = 16777216 ] || fail 'the second server is out of reach'
kill $second
wait $second || fail "the second server's status is $?"
[ ! -e sock ] || fail 'the socket outlived its server'
[ ! -e pid ] || fail 'the pid file outlived its server'

# ---- nobody reads the messages -------------------------------------------------------------------

"$PYTHON" - "$NBDCOW" <<'END' || fail 'messages that nobody reads'
import fcntl, nbd, os, signal, subprocess, sys, threading
r, w = os.pipe()
fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 16384)
p = subprocess.Popen([sys.argv[1], "-t", "-e", "0", "--log-level=debug", "--threads=1", "-k", "sock",
                      "--pid-file=pid", "disk.qcow2"], stderr=w)
watchdog = threading.Timer(120, p.kill)
watchdog.start()
while not os.path.exists("pid") or not os.path.getsize("pid"):
    assert p.poll() is None
for i in range(100):
    h = nbd.NBD()
    h.connect_unix("sock")
    h.pread(512, 0)
    h.shutdown()
os.set_blocking(r, False)
seen = os.read(r, 1 << 20)
assert b"disconnected" in seen and len(seen) <= 16384, len(seen)
h = nbd.NBD()
h.connect_unix("sock")
h.shutdown()
p.send_signal(signal.SIGTERM)
assert p.wait() == 0
watchdog.cancel()
assert b"messages were lost here" in os.read(r, 1 << 20)
END

# ---- what messages do not tell -------------------------------------------------------------------

keeps_quiet () {
  status=0
  "$NBDCOW" --object "$1" -k "$tmp/sock" disk.qcow2 >quiet.log 2>&1 || status=$?
  one_line "$status" quiet.log --object || fail "--object $1: $REASON"
  ! grep -qi hunter quiet.log || fail "--object $1: $(cat quiet.log)"
}
keeps_quiet 'secret,id=s,data=abc,hunter2'
keeps_quiet 'secret,id=s,data=abc,hunter=2'
keeps_quiet 'secret,id=s,data=abc,.hunter.=2'
keeps_quiet 'secret,id=s,data=abc,data.hunter=2'
keeps_quiet 'secret,id=s,data=abc,format=hunter2'
keeps_quiet 'id=s,data=a,.hunter2=x,qom-type=secret'
keeps_quiet '{"qom-type":"secret","id":"s","data":hunter2}'
keeps_quiet '{"qom-type":"secret","id":"s","data":"x" "hunter2"}'
keeps_quiet '{"qom-type":"secret","id":"s","data":["hunter2"]}'
keeps_quiet '{"qom-type":"secret","id":"s","data":"x","hunter2":1}'
cat >config.json <<'END'
{ "object": "secret,id=s,data=x", "file": hunter2 }
END
status=0
"$NBDCOW" --config=config.json >quiet.log 2>&1 || status=$?
one_line "$status" quiet.log config.json 'line 1' || fail "--config: $REASON"
! grep -qi hunter quiet.log || fail "--config: $(cat quiet.log)"

# ---- what does not go together -------------------------------------------------------------------

status=0
"$NBDCOW" -s -k "$tmp/sock" --export name=a,file=disk.qcow2,snapshots=on >clash.log 2>&1 || status=$?
one_line "$status" clash.log snapshots=on temporary || fail "-s and snapshots=on: $REASON"
