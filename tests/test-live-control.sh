#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The control socket: who may use it, the dialogue of QMP, and what is not one.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img
requires_python_nbd
PYTHONPATH=$SRCDIR
export PYTHONPATH

qemu-img create -q -f qcow2 a.qcow2 8M

# ---- the socket --------------------------------------------------------------------------------

umask 000
start_nbdcow a.qcow2 "arg=--control=$tmp/control"
umask 022
[ "$(stat -c %a control)" = 600 ] || fail "the socket's mode is $(stat -c %a control)"

control_pid=$SERVER_PID control_log=$SERVER_LOG

# Another server leaves it alone, and says why.
must_refuse a.qcow2 read-only no-lock "arg=--control=$tmp/control" -- "$tmp/control" 'another server'
must_refuse a.qcow2 read-only no-lock "arg=--control=$tmp/a.qcow2" -- 'not a socket'
must_refuse a.qcow2 read-only no-lock "arg=--control=$tmp/no/such/place" -- /no/such/place

if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
  chmod 755 "$tmp"
  chmod 666 control
  setpriv --reuid=65534 --regid=65534 --clear-groups /usr/bin/python3 - "$tmp/control" <<'END' ||
import socket, sys

s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect(sys.argv[1])
assert s.recv(100) == b"", "a stranger is greeted"
END
    fail 'somebody else may use the socket'
  grep -q 'user 65534 is turned away' "$control_log" || fail 'nothing is said about a stranger'
fi

# ---- the dialogue ------------------------------------------------------------------------------

"$PYTHON" - "$tmp/control" "$control_pid" <<'END'
import json, os, qmp, socket, sys, time

path, pid = sys.argv[1], int(sys.argv[2])

# Before the negotiation, during it, and after.
c = qmp.Client(path, negotiate=False)
assert set(c.greeting) == {"version", "capabilities"}, c.greeting
assert set(c.greeting["version"]) == {"qemu", "package"}, c.greeting
assert set(c.greeting["version"]["qemu"]) == {"major", "minor", "micro"}, c.greeting
assert c.greeting["capabilities"] == []
assert c.refuses("query-version")[0] == "CommandNotFound"
assert c.refuses("no-such-command")[0] == "CommandNotFound"
assert c.refuses("qmp_capabilities", enable=["oob"])[0] == "GenericError"
assert c.refuses("qmp_capabilities", enable=True)[0] == "GenericError"
assert c.refuses("qmp_capabilities", enalbe=[])[0] == "GenericError"
assert c.refuses("query-version")[0] == "CommandNotFound"
assert c.execute("qmp_capabilities", enable=[]) == {}
assert c.refuses("qmp_capabilities")[0] == "CommandNotFound"
assert c.execute("query-version") == c.greeting["version"]
status = c.execute("query-status")
assert status["running"] is True and status["status"] == "running" and status["pid"] == pid, status
names = [k["name"] for k in c.execute("query-commands")]
assert {"query-version", "query-commands", "query-status", "quit"} <= set(names), names
assert len(names) == len(set(names)), names

# What is asked wrongly.
def error(text):
    c.send(text)
    value = c.reply()
    assert set(value) <= {"error", "id"}, (text, value)
    assert value["error"]["class"] == "GenericError", (text, value)
    assert "\n" not in value["error"]["desc"], value
    return value

assert c.refuses("no-such-command")[0] == "CommandNotFound"
assert c.refuses("query-version", a=1)[0] == "GenericError"
assert c.refuses("set-log-level")[0] == "GenericError"
assert c.refuses("set-log-level", level=3)[0] == "GenericError"
assert c.refuses("set-log-level", level=None)[0] == "GenericError"
assert "warning" in c.refuses("set-log-level", level="loud")[1]
for text in ('{"execute": 1}', '{}', '[]', '"query-version"', '5 ', '{"execute": "query-version", "x": 1}',
             '{"execute": "query-version", "arguments": []}', '{"exec-oob": "query-version"}',
             '{"execute": "query-version", "exec-oob": "query-version"}', '{"execute": }',
             '{"execute": "query-version"', b"\xff", '{"execute": "a\n', '}', '\x01'):
    if text == '{"execute": "query-version"':
        c.send(text)
        continue
    error(text)
assert error('{"execute": 1, "id": {"a": [1]}}')["id"] == {"a": [1]}

# Values over lines, and several on one; ids of any kind; replies in order.
c.send('\n\r\n {\n "execute"\t:\r\n "query-version"\n, "id": null}{\'execute\': \'query-status\', "id": 1.5}\n')
assert set(c.reply()) == {"return", "id"}
assert c.reply()["id"] == 1.5
text = "".join('{"execute": "%s", "id": %d}' % ("query-status" if i % 3 else "nothing", i) for i in range(500))
for piece in text[:700]:
    c.send(piece)
c.send(text[700:])
for i in range(500):
    value = c.reply()
    assert value["id"] == i and ("return" in value) == (i % 3 != 0), value

# Too long, too deep.
error('{"execute": "query-version", "id": "%s"}\n' % ("x" * (3 << 20)))
error('{"execute": "query-version", "id": %s 1 %s}\n' % ("[" * 5000, "]" * 5000))
assert c.execute("query-version")

# A client that does not read: it is not read from either, and nobody waits for it.
lazy = qmp.Client(path)
lazy.s.settimeout(1)
sent = 0
try:
    while sent < 64 << 20:
        sent += lazy.s.send(b'{"execute": "query-commands"}' * 100)
    raise AssertionError("there is no end to what it takes in")
except socket.timeout:
    pass
assert c.execute("query-version")
lazy.s.settimeout(60)
assert lazy.reply()["return"]
lazy.close()

# Half of a connection, and clients that go away in the middle.
half = qmp.Client(path)
half.send('{"execute": "query-version"}' * 10)
half.s.shutdown(socket.SHUT_WR)
for i in range(10):
    assert "return" in half.reply()
assert half.receive() is None
for i in range(50):
    gone = qmp.Client(path)
    gone.send('{"execute": "query-commands"}' * 50 + '{"execute": ')
    gone.close()

# As many as there may be; the next one waits for its turn.
many = [qmp.Client(path) for i in range(31)]
late = socket.socket(socket.AF_UNIX)
late.connect(path)
late.settimeout(1)
try:
    assert not late.recv(1), "a client too many"
except socket.timeout:
    pass
many.pop().close()
late.settimeout(60)
assert late.recv(1) == b"{"
late.close()
for m in many:
    m.close()

# The level of the log.
assert c.execute("set-log-level", level="info") == {}
assert c.execute("query-log-level") == {"level": "info"}
assert c.execute("set-log-level", level="warning") == {}

assert c.execute("quit") == {}
assert c.receive() is None
END
wait_server_exit "$control_pid"
[ "$SERVER_STATUS" = 0 ] || fail "the server ended with status $SERVER_STATUS after quit"
[ ! -e control ] || fail 'the control socket has been left behind'

# One that is left over is replaced; one that somebody else has put there in between stays.
"$PYTHON" -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$tmp/control"
start_nbdcow a.qcow2 "arg=--control=$tmp/control"
rm control
"$PYTHON" -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$tmp/control"
stop_server
[ -S control ] || fail "another server's socket has been removed"
rm control

# ---- its own user ------------------------------------------------------------------------------

if [ "$(id -u)" = 0 ]; then
  chmod 777 "$tmp" a.qcow2
  start_nbdcow a.qcow2 "arg=--control=$tmp/control" arg=--user=nobody
  [ "$(stat -c %U:%a control)" = nobody:600 ] || fail "the socket is $(stat -c %U:%a control)"
  "$PYTHON" -c 'import qmp, sys; qmp.Client(sys.argv[1]).execute("quit")' "$tmp/control"
  wait_server_exit
  [ "$SERVER_STATUS" = 0 ] || fail "the server ended with status $SERVER_STATUS after quit"
fi
