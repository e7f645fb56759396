#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The control socket beside QEMU's own: qemu-storage-daemon and nbdcow serve the same image, are told
# the same, and are written to in the same way.  Each command succeeds with both or fails with both;
# what QEMU returns nbdcow returns too, member for member of the same type; and in the end the
# images have the same bitmaps, snapshots and bytes.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

QSD=${QSD:-qemu-storage-daemon}
requires_file "${NBDCOW:-}" nbdcow
requires qemu-img "$QSD"
requires_python_nbd
PYTHONPATH=$SRCDIR
export PYTHONPATH

qemu-img create -q -f qcow2 base.qcow2 8M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 ours.qcow2 8M
cp ours.qcow2 theirs.qcow2

server_count=1
SERVER_LOG=$tmp/server-1.log
PIDFILE=$tmp/pid-1
"$NBDCOW" -t -e 0 -k "$tmp/ours.sock" --pid-file="$PIDFILE" --state-dir="$STATE_DIR" \
  --control="$tmp/ours.control" --export name=n,file=ours.qcow2 >"$SERVER_LOG" 2>&1 </dev/null &
SERVER_PID=$!
track "$SERVER_PID"
"$QSD" --blockdev driver=file,node-name=f,filename=theirs.qcow2 \
  --blockdev driver=qcow2,node-name=n,file=f \
  --nbd-server addr.type=unix,addr.path="$tmp/theirs.sock",max-connections=10 \
  --export type=nbd,id=n,node-name=n,name=n,writable=on \
  --chardev socket,id=c,path="$tmp/theirs.control",server=on,wait=off --monitor chardev=c \
  >server-2.log 2>&1 </dev/null &
qsd=$!
track "$qsd"
wait_for 30 server_ready_or_dead || fail 'nbdcow was not ready after 30 seconds'
wait_for 30 listens "$tmp/theirs.control" || fail 'qemu-storage-daemon was not ready after 30 seconds'

"$PYTHON" - "$tmp" <<'END'
import json, nbd, qmp, sys

tmp = sys.argv[1]
ours, theirs = (qmp.Client("%s/%s.control" % (tmp, who)) for who in ("ours", "theirs"))
disks = [nbd.NBD() for who in range(2)]
for h, who in zip(disks, ("ours", "theirs")):
    h.connect_uri("nbd+unix:///n?socket=%s/%s.sock" % (tmp, who))

# What QEMU has about nodes, and we do not have or do not know: limits of its drivers, the tree of
# nodes, and counters of zones.
LEFT_OUT = ("limits", "children", "parent", "zone", "active", "driver-specific", "qdev")

def left_out(key):
    return any(key.startswith(x) or "_%s_" % x in key for x in LEFT_OUT)

# All of THEIRS is in OURS, with the same type.
def compare(what, theirs, ours):
    if isinstance(theirs, bool) or not isinstance(theirs, (int, float)):
        assert type(ours) is type(theirs), (what, theirs, ours)
    else:
        assert isinstance(ours, (int, float)) and not isinstance(ours, bool), (what, theirs, ours)
    if isinstance(theirs, dict):
        for key, value in theirs.items():
            if not left_out(key):
                assert key in ours, "%s: %s is missing: %r" % (what, key, ours)
                compare("%s.%s" % (what, key), value, ours[key])
    elif isinstance(theirs, list):
        for i, value in enumerate(theirs):
            assert i < len(ours), (what, theirs, ours)
            compare("%s[%d]" % (what, i), value, ours[i])

def attempt(client, name, arguments):
    try:
        return client.execute(name, arguments), None
    except qmp.Error as e:
        return None, e

# Runs a command with both.  OF picks what is compared out of what they return.
def both(command, /, of=lambda x: x, fails=None, **arguments):
    arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
    (their_value, their_error), (our_value, our_error) = (attempt(c, command, arguments) for c in (theirs, ours))
    if fails is not None:
        assert bool(their_error) == fails, "QEMU: %s %r: %r" % (command, arguments, their_error or their_value)
    assert bool(their_error) == bool(our_error), "%s %r: QEMU: %s, nbdcow: %s" % (command, arguments, their_error, our_error)
    if their_error:
        # QEMU has given most of its classes up.
        assert our_error.cls == their_error.cls or our_error.cls == "DeviceNotFound", (their_error, our_error)
        return None, None
    their_value, our_value = of(their_value), of(our_value)
    compare(command, their_value, our_value)
    return their_value, our_value

def node(list):
    return [x for x in list if x["node-name"] == "n"]

def bitmaps():
    values = both("query-named-block-nodes", of=node)
    shown = [sorted(json.dumps(b, sort_keys=True) for b in v[0].get("dirty-bitmaps", [])) for v in values]
    assert shown[0] == shown[1], shown

def write(byte, offset, length):
    for h in disks:
        h.pwrite(bytes([byte]) * length, offset)

def change(kind, /, fails=False, **arguments):
    both("block-dirty-bitmap-" + kind, fails=fails, node="n", **arguments)
    bitmaps()

compare("greeting", theirs.greeting["version"], ours.greeting["version"])
both("query-version")
known = {x["name"] for x in theirs.execute("query-commands")}
mine = {"query-status", "query-log-level", "set-log-level", "query-clients", "client-disconnect", "reload",
        "resume-writes", "takeover", "check-image"}
for k in ours.execute("query-commands"):
    assert k["name"] in known | mine, "QEMU has no %s" % k["name"]
both("query-block-exports")
both("query-named-block-nodes", of=node)
both("query-named-block-nodes", of=node, flat=True)
both("query-named-block-nodes", fails=True, flat="yes")
both("query-blockstats", of=node, query_nodes=True)
both("query-blockstats", fails=True, query_node=True)

# QEMU does not resize what it exports: that is in test-live-control.sh.
both("block_resize", fails=True, node_name="n", size="16")
both("block_resize", fails=True, node_name="x", size=32 << 20)
both("block_resize", fails=True, size=32 << 20)

both("block-set-write-threshold", fails=False, node_name="n", write_threshold=1 << 40)
both("block-set-write-threshold", fails=False, node_name="n", write_threshold=0)
both("block-set-write-threshold", fails=True, node_name="x", write_threshold=0)
both("block-set-write-threshold", fails=True, node_name="n", write_threshold="1M")
both("block-set-write-threshold", fails=True, node_name="n")

for name, more in (("a", {}), ("b", {"granularity": 4096}), ("c", {"disabled": True}), ("d", {})):
    change("add", name=name, persistent=True, **more)
change("add", fails=True, name="a", persistent=True)
change("add", fails=True, name="", persistent=True)
change("add", fails=True, name="x", persistent=True, granularity=5000)
change("add", fails=True, name="x", persistent=True, granularity=256)
change("add", fails=True, name="x", persistent="yes")
change("add", fails=True, persistent=True)
change("add", fails=True, name="x" * 1024, persistent=True)
both("block-dirty-bitmap-add", fails=True, node="x", name="e")
write(1, 0, 65536)
write(2, 1 << 20, 4096)
bitmaps()
change("enable", name="c")
change("disable", name="a")
write(3, 2 << 20, 300000)
bitmaps()
for kind in "clear", "enable", "disable", "remove":
    change(kind, fails=True, name="x")
    change(kind, fails=True)
    both("block-dirty-bitmap-" + kind, fails=True, node="x", name="a")
change("clear", name="b")
write(4, 5 << 20, 1)
bitmaps()
change("merge", target="a", bitmaps=["c", {"node": "n", "name": "b"}])
change("merge", fails=True, target="a", bitmaps=["c", "x"])
change("merge", fails=True, target="a", bitmaps=[{"node": "x", "name": "b"}])
change("merge", fails=True, target="x", bitmaps=["a"])
change("merge", fails=True, target="a", bitmaps="c")
change("merge", fails=True, target="a", bitmaps=[5])
change("remove", name="d")

# All or nothing.
def action(kind, /, **data):
    return {"type": kind if "-" in kind or kind == "abort" else "block-dirty-bitmap-" + kind, "data": data}

def transaction(*actions, fails=False, **more):
    both("transaction", fails=fails, actions=list(actions), **more)
    bitmaps()

transaction(action("disable", node="n", name="b"), action("add", node="n", name="e", persistent=True))
write(5, 6 << 20, 200000)
bitmaps()
transaction(action("clear", node="n", name="a"), action("abort"), fails=True)
# (QEMU 7.2 crashes when a bitmap that is to be enabled or disabled is not there.)
transaction(action("clear", node="n", name="a"), action("clear", node="n", name="x"), fails=True)
transaction(action("add", node="n", name="f", persistent=True), action("add", node="n", name="f", persistent=True), fails=True)
transaction(action("clear", node="n", name="a"), action("merge", node="n", target="a", bitmaps=["b", "c"]),
            properties={"completion-mode": "individual"})
transaction(action("clear", node="n", name="a"), fails=True, properties={"completion-mode": "grouped"})
transaction(action("add", node="n", name="f", persistent=True, disabled=True), action("merge", node="n", target="f", bitmaps=["a"]),
            action("enable", node="n", name="f"))
transaction(action("no-such-action"), fails=True)
transaction({"type": "abort"}, fails=True)
transaction(5, fails=True)
transaction()
transaction(fails=True, properties={"completion-mode": "x"})
both("transaction", fails=True)

# Snapshots.
def snapshot(**arguments):
    return both("blockdev-snapshot-internal-sync", **arguments)

snapshot(device="n", name="first")
snapshot(device="n", name="first", fails=True)
snapshot(device="n", name="", fails=True)
snapshot(device="n", fails=True)
snapshot(device="x", name="first", fails=True)
write(6, 0, 100000)
transaction(action("blockdev-snapshot-internal-sync", device="n", name="second"), action("add", node="n", name="g", persistent=True))
snapshot(device="n", name="third")
transaction(action("blockdev-snapshot-internal-sync", device="n", name="fourth"), action("abort"), fails=True)
both("query-named-block-nodes", of=node)
for kind in {"id": "9"}, {"name": "x"}, {"id": "1", "name": "second"}, {}:
    both("blockdev-snapshot-delete-internal-sync", fails=True, device="n", **kind)
both("blockdev-snapshot-delete-internal-sync", fails=True, device="x", name="first")
gone = both("blockdev-snapshot-delete-internal-sync", device="n", name="first")
assert [x["id"] for x in gone] == ["1", "1"], gone
gone = both("blockdev-snapshot-delete-internal-sync", device="n", id="3", name="third")
assert [x["name"] for x in gone] == ["third"] * 2, gone
write(7, 7 << 20, 70000)
bitmaps()
both("query-blockstats", of=node, query_nodes=True)

# One image in two exports.
again = dict(type="nbd", id="again", node_name="n", name="again", description="once more")
both("block-export-add", fails=False, **again)
both("block-export-add", fails=True, **again)
both("block-export-add", fails=True, **dict(again, id="other", name="other", node_name="x"))
both("query-block-exports", of=lambda list: sorted(list, key=lambda x: x["id"]))
readers = [nbd.NBD() for who in range(2)]
for h, who in zip(readers, ("ours", "theirs")):
    h.connect_uri("nbd+unix:///again?socket=%s/%s.sock" % (tmp, who))
    assert h.is_read_only() and h.pread(70000, 7 << 20) == b"\7" * 70000
    h.shutdown()
both("block-export-del", id="again", mode="hard")
events = [c.wait_event("BLOCK_EXPORT_DELETED") for c in (theirs, ours)]
assert events[0] == events[1] == {"id": "again"}, events

both("block-export-del", fails=True, id="x")
both("block-export-del", fails=True, id="n")
both("block-export-del", fails=True, id="n", mode="x")
both("block-export-del", id="n", mode="hard")
events = [c.wait_event("BLOCK_EXPORT_DELETED") for c in (theirs, ours)]
assert events[0] == events[1], events
for c in ours, theirs:
    c.execute("quit")
END
wait_server_exit
[ "$SERVER_STATUS" = 0 ] || fail "nbdcow ended with status $SERVER_STATUS"
server_log_is_empty
wait_server_exit "$qsd"
[ "$SERVER_STATUS" = 0 ] || fail "qemu-storage-daemon ended with status $SERVER_STATUS"

check_image ours.qcow2
same_contents ours.qcow2 qcow2 theirs.qcow2 qcow2
for who in ours theirs; do
  qemu-img info --output=json "$who.qcow2" >"$who.json"
  qemu-img convert -f qcow2 -O raw -l snapshot.name=second "$who.qcow2" "$who.raw"
done
cmp ours.raw theirs.raw || fail 'the snapshots differ'
"$PYTHON" - <<'END'
import json

def load(name):
    info = json.load(open(name))
    bitmaps = sorted((b["name"], b["granularity"], sorted(b["flags"])) for b in info["format-specific"]["data"]["bitmaps"])
    return bitmaps, [(s["id"], s["name"]) for s in info["snapshots"]], info["virtual-size"]

ours, theirs = load("ours.json"), load("theirs.json")
assert ours == theirs, (ours, theirs)
END
