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

control_pid=$SERVER_PID control_log=$SERVER_LOG control_socket=$SOCK

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

"$PYTHON" - "$tmp/control" "$control_pid" "$control_socket" <<'END'
import json, nbd, os, qmp, socket, sys, time

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

# What one client says has nothing to do with what others say meanwhile, byte by byte.
both = [qmp.Client(path) for i in range(2)]
texts = ['{"execute": "query-commands", "id": "first"} ', '{"execute": "set-log-level", "arguments": {"level": "x"}, "id": 2}']
for i in range(max(map(len, texts))):
    for b, text in zip(both, texts):
        b.send(text[i:i + 1])
assert both[0].reply()["id"] == "first"
assert "error" in both[1].reply()
for b in both:
    b.close()

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
# Nor do those who read and write the disk.
disk = nbd.NBD()
disk.connect_unix(sys.argv[3])
for i in range(100):
    disk.pwrite(b"d" * 4096, i * 4096)
    assert disk.pread(4096, i * 4096) == b"d" * 4096
disk.shutdown()
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

# ---- exports and clients -----------------------------------------------------------------------

# Starts nbdcow with the options given, and a control socket; nbdcow's own functions need an image.
serve ()
{
  server_count=$((server_count + 1))
  SOCK=$tmp/sock-$server_count
  PIDFILE=$tmp/pid-$server_count
  SERVER_LOG=$tmp/server-$server_count.log
  "$NBDCOW" -t -e 0 -k "$SOCK" --pid-file="$PIDFILE" --state-dir="$STATE_DIR" \
    --control="$tmp/control" "$@" >"$SERVER_LOG" 2>&1 </dev/null &
  SERVER_PID=$!
  track "$SERVER_PID"
  wait_for 30 server_ready_or_dead || fail "nbdcow was not ready after 30 seconds"
  process_alive "$SERVER_PID" || fail "nbdcow $*: $(cat "$SERVER_LOG")"
}

qemu-img create -q -f qcow2 b.qcow2 4M
truncate -s 8M c.raw
serve --export name=a,file=a.qcow2,description='the first' --export name=b,file=b.qcow2,read-only=on \
  --export name=part,file=c.raw,format=raw,offset=1M,size=1M
"$PYTHON" - "$tmp/control" "$SOCK" <<'END'
import nbd, qmp, sys, time

control, sock = sys.argv[1:]

def connect(name):
    h = nbd.NBD()
    h.connect_uri("nbd+unix:///%s?socket=%s" % (name, sock))
    return h

def ended(h):
    try:
        for i in range(10000):
            h.pread(512, 0)
            time.sleep(.01)
    except nbd.Error:
        return True

c, watcher = qmp.Client(control), qmp.Client(control)
exports = {x["id"]: x for x in c.execute("query-block-exports")}
assert set(exports) == {"a", "b", "part"}
for name, x in exports.items():
    assert x["type"] == "nbd" and x["node-name"] == name and x["shutting-down"] is False, x
assert exports["a"]["writable"] and not exports["b"]["writable"], exports
assert exports["a"]["description"] == "the first" and exports["a"]["size"] == 8 << 20

# Who is there.
h, i = connect("a"), connect("a")
h.pwrite(b"x" * 4096, 0)
h.pread(512, 0)
clients = c.execute("query-clients")
assert [x["export"] for x in clients] == ["a", "a"] and c.execute("query-status")["clients"] == 2
first = clients[1]
assert first["requests"] == 2 and first["bytes-written"] == 4096 and first["bytes-read"] == 512
assert not first["tls"] and abs(first["since"] - time.time()) < 300 and first["peer"]
assert c.refuses("client-disconnect", id=12345)[0] == "DeviceNotFound"
assert c.refuses("client-disconnect", id=-1)[0] == "GenericError"
c.execute("client-disconnect", id=first["id"])
assert ended(h)
i.pread(512, 0)

# Growing.
for who in {"device": "a"}, {"node-name": "a"}:
    assert c.refuses("block_resize", who, size=4 << 20)[0] == "GenericError"
    assert c.refuses("block_resize", who, size=(4 << 20) + 1)[0] == "GenericError"
    assert c.refuses("block_resize", who, size="16M")[0] == "GenericError"
    assert c.refuses("block_resize", who)[0] == "GenericError"
assert c.refuses("block_resize", size=1 << 30)[0] == "GenericError"
assert c.refuses("block_resize", device="a", node_name="a", size=1 << 30)[0] == "GenericError"
assert c.refuses("block_resize", device="x", size=1 << 30)[0] == "DeviceNotFound"
assert "part" in c.refuses("block_resize", device="part", size=16 << 20)[1]
assert c.refuses("block_resize", device="b", size=16 << 20)[0] == "GenericError"
assert c.execute("block_resize", device="a", size=16 << 20) == {}
i.set_strict_mode(0)
i.pwrite(b"y" * 512, (16 << 20) - 512)
assert connect("a").get_size() == 16 << 20

# What has been done, counted: the time that it took, a moment after the reply.
def counted(h, kind):
    return sum(h[kind + "_latency_histogram"]["bins"]) == h[kind + "_operations"] + h["failed_%s_operations" % kind]

for _ in range(300):
    stats = {x["node-name"]: x["stats"] for x in c.execute("query-blockstats")}
    a = stats["a"]
    if all(counted(a, kind) for kind in ("rd", "wr", "flush")):
        break
    time.sleep(0.1)
assert a["wr_operations"] == 2 and a["wr_bytes"] == 4096 + 512 and a["rd_operations"] >= 2, a
assert a["wr_highest_offset"] > 0 and a["wr_total_time_ns"] > 0, a
for kind in "rd", "wr", "flush":
    h = a[kind + "_latency_histogram"]
    assert len(h["bins"]) == len(h["boundaries"]) + 1 and h["boundaries"] == sorted(h["boundaries"])
    assert counted(a, kind), (kind, a)
assert stats["b"]["wr_operations"] == 0

# Bitmaps and snapshots are changed while they are in use, or not: test-live-control-qemu.sh.
node = {x["node-name"]: x for x in c.execute("query-named-block-nodes")}["a"]
assert node["highest-allocated-offset"] == a["wr_highest_offset"]
assert node["image"]["virtual-size"] == 16 << 20 and not node["ro"]
c.execute("transaction", actions=[{"type": "block-dirty-bitmap-add", "data": {"node": "a", "name": "m%d" % n}} for n in range(100)])
assert "4096" in c.refuses("transaction", actions=[{"type": "abort", "data": {}}] * 5000)[1]
c.refuses("transaction", actions=[{"type": "block-dirty-bitmap-merge", "data": {
    "node": "a", "target": "m0", "bitmaps": ["m1"] * 5000}}])
c.execute("transaction", actions=[{"type": "block-dirty-bitmap-merge", "data": {
    "node": "a", "target": "m0", "bitmaps": ["m1"] * 4096}}])
assert "persistent" in c.refuses("block-dirty-bitmap-add", node="a", name="x", persistent=False)[1]
assert c.execute("blockdev-snapshot-internal-sync", device="a", name="x") == {"id": "1"}
assert c.execute("blockdev-snapshot-internal-sync", device="a", name="1") == {"id": "2"}
assert c.execute("blockdev-snapshot-delete-internal-sync", device="a", id="2")["name"] == "1"
assert c.execute("blockdev-snapshot-delete-internal-sync", device="a", id="1")["name"] == "x"

# Told once when the file has grown past that, or has already.
def threshold(name="a"):
    return {x["node-name"]: x for x in c.execute("query-named-block-nodes")}[name]["write_threshold"]

highest = {x["node-name"]: x for x in c.execute("query-named-block-nodes")}["a"]["highest-allocated-offset"]
assert c.execute("block-set-write-threshold", node_name="a", write_threshold=highest + (1 << 20)) == {}
assert threshold() == highest + (1 << 20)
i.pwrite(b"t" * (3 << 20), 4 << 20)
told = watcher.wait_event("BLOCK_WRITE_THRESHOLD")
assert told["node-name"] == "a" and told["write-threshold"] == highest + (1 << 20), told
assert told["amount-exceeded"] > 0 and threshold() == 0, told
assert c.execute("block-set-write-threshold", node_name="a", write_threshold=1) == {}
assert watcher.wait_event("BLOCK_WRITE_THRESHOLD")["write-threshold"] == 1
c.execute("block-set-write-threshold", node_name="a", write_threshold=1 << 40)
c.execute("block-set-write-threshold", node_name="a", write_threshold=0)
assert threshold() == 0
assert "read-only" in c.refuses("block-set-write-threshold", node_name="b", write_threshold=1)[1]
assert c.execute("block-set-write-threshold", node_name="b", write_threshold=0) == {}
assert c.refuses("block-set-write-threshold", node_name="x", write_threshold=0)[0] == "DeviceNotFound"
for bad in "1M", -1, 1.5, None:
    assert c.refuses("block-set-write-threshold", node_name="a", write_threshold=bad)[0] == "GenericError"

# Leaving.
assert c.refuses("block-export-del", id="x")
assert c.refuses("block-export-del", id="a", mode="soft")[0] == "GenericError"
assert "in use" in c.refuses("block-export-del", id="a")[1]
i.pread(512, 0)
assert c.execute("block-export-del", id="b") == {}
assert watcher.wait_event("BLOCK_EXPORT_DELETED") == {"id": "b"}
assert c.execute("block-export-del", id="a", mode="hard") == {}
assert ended(i)
assert watcher.wait_event("BLOCK_EXPORT_DELETED") == {"id": "a"}
assert [x["id"] for x in c.execute("query-block-exports")] == ["part"]

try:
    connect("a")
    raise AssertionError("it is still served")
except nbd.Error:
    pass

# Coming, and again.
add = {"type": "nbd", "id": "a", "file": "a.qcow2"}
assert c.execute("block-export-add", add) == {}
assert not c.execute("query-block-exports")[-1]["writable"]
c.execute("block-export-del", id="a")
assert c.execute("block-export-add", add, description="again", writable=True, bitmaps=["m0", {"node": "a", "name": "m1"}]) == {}
x = {x["id"]: x for x in c.execute("query-block-exports")}["a"]
assert x["writable"] and x["description"] == "again", x
h = nbd.NBD()
h.add_meta_context("qemu:dirty-bitmap:m1")
h.connect_uri("nbd+unix:///a?socket=%s" % sock)
assert h.can_meta_context("qemu:dirty-bitmap:m1") and not h.is_read_only()
assert h.pread(512, (16 << 20) - 512) == b"y" * 512
assert "in use" in c.refuses("block-export-del", id="a")[1]
assert "m0" in c.refuses("block-dirty-bitmap-clear", node="a", name="m0")[1]
assert c.refuses("block-export-add", add)[0] == "GenericError"
h.shutdown()
for wait in range(1000):
    if c.execute("query-clients") == []:
        break
    time.sleep(.01)
c.execute("block-export-del", id="a")
for bad in ({"id": "n"}, {"type": "nbd", "id": "n"}, {"type": "fuse", "id": "n", "file": "b.qcow2"},
            {"type": "nbd", "file": "b.qcow2"}, {"type": "nbd", "id": 5, "file": "b.qcow2"},
            {"type": "nbd", "id": "n", "file": "none.qcow2"}, {"type": "nbd", "id": "n", "file": "c.raw"},
            {"type": "nbd", "id": "n", "file": "b.qcow2", "name": "m"}, {"type": "nbd", "id": "n", "node-name": "m", "file": "b.qcow2"},
            {"type": "nbd", "id": "n", "file": "b.qcow2", "nmae": "n"}, {"type": "nbd", "id": "n", "file": "b.qcow2", "bitmaps": "x"},
            {"type": "nbd", "id": "n", "file": "b.qcow2", "bitmaps": ["x"]}, {"type": "nbd", "id": "n", "file": "b.qcow2", "bitmaps": [{"node": "m", "name": "x"}]},
            {"type": "nbd", "id": "n", "file": "b.qcow2", "read-only": True}, {"type": "nbd", "id": "n", "file": "b.qcow2", "writable": "on"},
            {"type": "nbd", "id": "n" * 5000, "file": "b.qcow2"}, {"type": "nbd", "id": "part", "file": "b.qcow2"}):
    assert c.refuses("block-export-add", bad)[0] == "GenericError"
assert [x["id"] for x in c.execute("query-block-exports")] == ["part"]

# Events for those who read, and for one who does not.
deaf = qmp.Client(control)
big = "n" * 4000
n = 0
while n < 200:
    c.execute("block-export-add", add, id=big)
    c.execute("block-export-del", id=big)
    while watcher.wait_event("BLOCK_EXPORT_DELETED") != {"id": big}:
        assert n == 0, "somebody else's event"
    n += 1
seen = lost = 0
deaf.execute("query-version")
deaf.execute("query-version")
for e in deaf.events:
    if e["event"] == "BLOCK_EXPORT_DELETED":
        seen += 1
    else:
        assert e["event"] == "NBDCOW_EVENTS_LOST"
        lost += e["data"]["count"]
assert seen + lost == 200 and lost > 0, (seen, lost)

c.execute("block-export-add", add, writable=True)
h = connect("a")
h.pwrite(b"z" * 512, 0)
h.shutdown()
END
stop_server
check_image a.qcow2
