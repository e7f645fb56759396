#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Where messages go and at which levels: the system's log and the journal, as a listener in their place hears
# it, in the sandbox and out of it; a line for each connection; the label of a socket; devices and sockets that
# this kernel does not have; and a pid file that is removed while it is being locked.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img nbdinfo
requires_python_nbd

qemu-img create -q -f qcow2 disk.qcow2 8M

# ---- syslog and the journal ----------------------------------------------------------------------

# In a namespace of its own, where /dev/log and the journal's socket are ours.
cat >listen.py <<'END'
import os, re, socket, struct, subprocess, sys, time

import nbd

program, journal = sys.argv[1], sys.argv[2] == "journal"


def listener(path):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(path)
    s.settimeout(60)
    return s


os.makedirs("/run/systemd/journal", exist_ok=True)
sockets = {"syslog": listener("/dev/log")}
if journal:
    sockets["journal"] = listener("/run/systemd/journal/socket")


def messages(kind, until):
    """(level, text) of each message, up to one that has UNTIL in it."""
    got = []
    while not got or until not in got[-1][1]:
        m = sockets[kind].recv(65536).decode()
        if kind == "journal":
            fields = dict(line.split("=", 1) for line in m.splitlines() if "=" in line)
            assert fields["SYSLOG_IDENTIFIER"] == "nbdcow", m
            got.append((int(fields["PRIORITY"]), fields["MESSAGE"]))
        else:
            level, text = re.fullmatch(r"<(\d+)>.*? nbdcow\[\d+\]: (.*?)[\n\0]*", m, re.S).groups()
            assert int(level) >> 3 == 3, m  # daemon
            got.append((int(level) & 7, text))
    return got


def start(kind, *options):
    p = subprocess.Popen([program, "--exit-with-parent", "-t", "-e", "0", "-k", "sock", "--pid-file=started",
                          "--state-dir=off", "--log=" + kind, *options, "-x", "disk", "disk.qcow2"], stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not os.path.exists("started") or not os.path.getsize("started"):
        assert p.poll() is None and time.monotonic() < end, p.stderr.read()
    return p


def talk():
    h = nbd.NBD()
    h.set_export_name("disk")
    h.connect_unix("sock")
    h.pwrite(b"x" * 1536, 0)
    h.pread(512, 0)
    h.pread(4096, 0)
    h.shutdown()


def stop(p):
    p.terminate()
    said = p.communicate(timeout=60)[1]
    assert p.returncode == 0 and said == b"", said


ERROR, WARNING, INFO, DEBUG = 3, 4, 6, 7
for kind in sockets:
    # INFO has a line for each connection: who, which export, how many bytes, how long.
    for box in "off", "auto":
        p = start(kind, "--log-level=info", "--sandbox=" + box)
        talk()
        got = messages(kind, "disconnected")
        assert {level for level, _ in got} == {INFO}, got
        assert any(text == f"serving nbd+unix:///disk?socket={os.getcwd()}/sock: disk.qcow2" for _, text in got), got
        line = got[-1][1]
        assert re.fullmatch(rf'client \(unix, pid {os.getpid()}, uid 0, fd \d+\): disconnected: export "disk", '
                            r"4608 bytes read, 1536 bytes written, \d+ requests, \d+\.\d+ seconds", line), line
        stop(p)
        messages(kind, "shutting down")
    # Nothing of that without it.  A failure is an error there, and is told to whoever starts it as well.
    p = start(kind)
    talk()
    stop(p)
    p = subprocess.run([program, "-k", "sock", "--log=" + kind, "missing.qcow2"], stderr=subprocess.PIPE)
    assert p.returncode == 1 and p.stderr.count(b"\n") == 1 and b"missing.qcow2" in p.stderr, p
    got = messages(kind, "missing.qcow2")
    assert [level for level, _ in got] == [ERROR], got
    p = start(kind, "--log-level=debug")
    s = socket.socket(socket.AF_UNIX)
    s.connect("sock")
    s.sendall(struct.pack(">I8sII", 1, b"IHAVEOPT", 1, 7) + b"nothing")  # NBD_OPT_EXPORT_NAME
    while s.recv(4096):
        pass
    got = messages(kind, "disconnected")
    assert [text for level, text in got if level == DEBUG and "NBD_OPT_EXPORT_NAME refused" in text], got
    stop(p)
    messages(kind, "shutting down")
END
if [ "$(id -u)" = 0 ] && unshare -m true 2>/dev/null; then
  journal=no
  ! ldconfig -p 2>/dev/null | grep -q 'libsystemd\.so\.0' || journal=journal
  [ "$("$NBDCOW" --log=journal missing.qcow2 2>&1 | grep -c 'without libsystemd')" = 0 ] || journal=no
  mkdir old
  # shellcheck disable=SC2016
  timeout 100 unshare -m sh -euc '
    mount --make-rprivate /
    mount --rbind /dev old
    mount -t tmpfs tmpfs /dev
    for node in null zero full random urandom tty; do
      : >/dev/$node
      mount --bind old/$node /dev/$node
    done
    mkdir /dev/shm
    mount -t tmpfs tmpfs /dev/shm
    mount -t tmpfs tmpfs /run
    exec "$@"' sh "$PYTHON" listen.py "$NBDCOW" $journal || fail "syslog or the journal"
else
  echo "$test_name: syslog and the journal were not tested: they need root and a mount namespace"
fi

# ---- what a kernel may lack ----------------------------------------------------------------------

# cannot PATTERN... -- OPTION...: one line with each PATTERN, and status 1.
cannot ()
{
  patterns=
  while [ "$1" != -- ]; do
    patterns="$patterns '$1'"
    shift
  done
  shift
  status=0
  timeout 20 "$NBDCOW" "$@" >refused.log 2>&1 </dev/null || status=$?
  eval "one_line $status refused.log $patterns" || fail "$*: $REASON"
}

for option in -c --connect; do
  cannot /dev/nbd-none 'the name of an nbd device is wanted' -- $option /dev/nbd-none disk.qcow2
  cannot "$tmp/nbd7" 'No such file' 'modprobe nbd' -- $option "$tmp/nbd7" disk.qcow2
done
cannot /dev/null 'name of an nbd device' -- -d /dev/null
: >nbd8
for name in nbd nbdx nbd-1 nbd1x nbd99999999; do
  cannot "$name" 'name of an nbd device' -- -d $name
done
cannot nbd8 'is not an nbd device' -- -d nbd8
cannot nbd9 'modprobe nbd' -- --disconnect nbd9
cannot 'the name of one device is wanted' -- -d
cannot nbd8 'is not an nbd device' -- -d -c nbd8
if [ "$(id -u)" = 0 ] && mknod nbd7 b 43 224 2>/dev/null; then
  if [ ! -e /sys/block/nbd0 ]; then
    # The number is an nbd device's; that the driver is missing is found out by netlink.
    cannot 'this kernel has no nbd driver with a netlink interface' 'modprobe nbd' -- -d nbd7
    cannot 'this kernel has no nbd driver with a netlink interface' 'modprobe nbd' -- \
      -v --log-level=warning -k "$tmp/sock" -c nbd7 disk.qcow2
    # In the background, the way that qemu-nbd does it: whoever starts it gets to know.
    cannot 'this kernel has no nbd driver with a netlink interface' -- -k "$tmp/sock" -c nbd7 disk.qcow2
    [ ! -e sock ] || fail "-c: the socket is left"
  fi
fi

if [ ! -d /sys/fs/selinux/initial_contexts ]; then
  cannot --selinux-label=system_u:object_r:svirt_t:s0 SELinux -- \
    --selinux-label=system_u:object_r:svirt_t:s0 -k "$tmp/sock" disk.qcow2
fi

# ---- a pid file ------------------------------------------------------------------------------

# The file is removed, by a server that ends, between another one's opening and locking it.
if command -v strace pgrep >/dev/null 2>&1 && strace -o /dev/null true 2>/dev/null; then
  : >pid
  # Leaks are not looked for under strace.
  ASAN_OPTIONS=detect_leaks=0 strace -f -o strace.out -e trace=flock -e inject=flock:delay_enter=5000000:when=1 \
    "$NBDCOW" -t --sandbox=off --state-dir=off -k "$tmp/sock" --pid-file="$tmp/pid" disk.qcow2 2>start.log &
  server=$!
  track $server
  opened ()
  {
    for child in $(pgrep -P "$server"); do
      ls -l "/proc/$child/fd" 2>/dev/null | grep -qF "$tmp/pid" && return 0
    done
    return 1
  }
  wait_for 60 opened || fail "the pid file was not opened: $(cat start.log)"
  rm pid
  serving () { [ -s pid ]; }
  if ! wait_for 60 serving; then
    cat start.log strace.out >&2
    fail "a server whose pid file was removed while it locked it has none"
  fi
  number=$(cat pid)
  track "$number"
  # Nobody else can take it.
  cannot "$tmp/pid" 'belongs to a running server' -- -k "$tmp/other" --pid-file="$tmp/pid" -r disk.qcow2
  kill "$number"
  wait $server || fail "status $?: $(cat start.log)"
  [ ! -e pid ] || fail "the pid file is left"
fi
