#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Incremental backups of a disk that is being written to, by the control socket: at one instant the bitmap
# stops, the next one begins and a snapshot is made; both become an export of the image that is served already;
# libnbd and QEMU read from it what has changed, and what they have put together is the snapshot.  And what
# such an export may not be, and when it goes.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
FRONTEND=nbdcow
requires_frontend
requires qemu-img qemu-io nbdinfo
requires_python_nbd
use_seed
PYTHONPATH=$SRCDIR
export PYTHONPATH
ROUNDS=${ROUNDS:-3}
export ROUNDS

qemu-img create -q -f qcow2 a.qcow2 64M
qemu-img create -q -f qcow2 other.qcow2 1M
for i in 1 2; do
  qemu-img create -q -f raw base$i.raw 1M
  qemu-io -f raw -c "write -q -P $i 0 1M" base$i.raw
done
qemu-img create -q -f qcow2 -b base1.raw -F raw top.qcow2
qemu-img snapshot -c s0 top.qcow2
start_server a.qcow2 "arg=--control=$tmp/control" "arg=--export=name=other,file=other.qcow2"

echo "== backups beside a writer"
"$PYTHON" - "$tmp/control" "$SOCK" <<'END'
import json, nbd, os, qmp, random, subprocess, sys, threading

control, sock = sys.argv[1:]
rounds, seed = int(os.environ["ROUNDS"]), int(os.environ["SEED"])
SIZE, BLOCK = 64 << 20, 65536
c = qmp.Client(control, timeout=300)

def uri(name):
    return "nbd+unix:///%s?socket=%s" % (name, sock)

def connect(name, *contexts):
    h = nbd.NBD()
    for x in contexts:
        h.add_meta_context(x)
    h.connect_uri(uri(name))
    return h

stop, failures, written = threading.Event(), [], [0]

# Most of the disk stays as it is between two backups, some of it does not stand still.
def write():
    rng = random.Random(seed)
    try:
        h = connect("")
        while not stop.is_set():
            at = rng.choice((rng.randrange(0, SIZE // 4), rng.randrange(0, 20) * BLOCK)) // 512 * 512
            n = rng.choice((512, 4096, BLOCK))
            h.pwrite(rng.randbytes(512) * (n // 512), at)
            written[0] += 1
        h.shutdown()
    except BaseException as e:
        failures.append(repr(e))

def go_on(n):
    want = written[0] + n
    while written[0] < want and not failures:
        stop.wait(.005)
    assert not failures, failures

def action(kind, /, **data):
    return {"type": kind, "data": data}

def checkpoint(i):
    c.execute("transaction", actions=
              ([action("block-dirty-bitmap-disable", node="", name="b%d" % (i - 1))] if i else [])
              + [action("block-dirty-bitmap-add", node="", name="b%d" % i),
                 action("blockdev-snapshot-internal-sync", device="", name="s%d" % i)])

def whole(name):
    h = connect(name)
    data = b"".join(h.pread(8 << 20, at) for at in range(0, SIZE, 8 << 20))
    h.shutdown()
    return data

# (offset, length) of what is dirty, as two clients have it.
def dirty(name, bitmap):
    context = "qemu:dirty-bitmap:" + bitmap
    text = subprocess.run(["nbdinfo", "--json", "--map=" + context, uri(name)], check=True,
                          stdout=subprocess.PIPE).stdout
    by_nbd = [(x["offset"], x["length"]) for x in json.loads(text) if x["type"] == 1]
    # QEMU takes it for the allocation: what is dirty is no data then.
    text = subprocess.run(["qemu-img", "map", "--output=json", "--image-opts",
                           "driver=nbd,server.type=unix,server.path=%s,export=%s,x-dirty-bitmap=%s"
                           % (sock, name, context)], check=True, stdout=subprocess.PIPE).stdout
    by_qemu = [(x["start"], x["length"]) for x in json.loads(text) if not x["data"]]
    assert by_nbd == by_qemu, (by_nbd, by_qemu)
    return by_nbd

writer = threading.Thread(target=write, daemon=True)
writer.start()
backup = None
for i in range(rounds + 1):
    go_on(150)
    checkpoint(i)
    go_on(20)
    bitmap = ["b%d" % (i - 1)] if i else []
    c.execute("block-export-add", type="nbd", id="backup", node_name="", load_snapshot="s%d" % i,
              bitmaps=[{"node": "", "name": n} for n in bitmap])
    if i == 0:
        backup = bytearray(whole("backup"))
    else:
        # The same bitmap beside the disk as it is now, in a third export of one image.
        c.execute("block-export-add", type="nbd", id="now", node_name="", bitmaps=bitmap)
        parts = dirty("backup", bitmap[0])
        go_on(20)
        assert parts == dirty("now", bitmap[0]) == dirty("backup", bitmap[0]), "it is not frozen"
        n = sum(length for _, length in parts)
        assert 0 < n < SIZE // 2, n
        h = connect("backup")
        for at, length in parts:
            for off in range(at, at + length, 1 << 20):
                m = min(1 << 20, at + length - off)
                backup[off:off + m] = h.pread(m, off)
        h.shutdown()
        assert bytes(backup) == whole("backup"), "something has changed that is not in the bitmap"
        assert "b%d" % (i - 1) in c.refuses("block-dirty-bitmap-remove", node="", name=bitmap[0])[1]
        c.execute("block-export-del", id="now", mode="hard")
    with open("backup-%d.raw" % i, "wb") as f:
        f.write(backup)
    assert "backup" in c.refuses("blockdev-snapshot-delete-internal-sync", device="", name="s%d" % i)[1]
    go_on(20)
    c.execute("block-export-del", id="backup", mode="hard")
    if i:
        c.execute("block-dirty-bitmap-remove", node="", name=bitmap[0])
stop.set()
writer.join()
assert not failures, failures
print("%d writes beside %d backups" % (written[0], rounds + 1))

# ---- what such an export is, and what not ------------------------------------------------------

add = {"type": "nbd", "id": "view", "node-name": ""}
for bad in ({"writable": True}, {"writethrough": True}, {"file": "a.qcow2"}, {"watermark": "1M"}, {"cache": "none"},
            {"on-enospc": "wait"}, {"snapshots": True}, {"snapshot": True}, {"resize": True}, {"format": "raw"},
            {"backing": "none"}, {"load-snapshot": "none"}, {"bitmaps": ["none"]}, {"name": "x"},
            {"bitmaps": [{"node": "view", "name": "b0"}]}, {"id": "other"}, {"offset": SIZE + 1}, {"size": SIZE + 1}):
    assert c.refuses("block-export-add", dict(add, **bad))[0] == "GenericError", bad
assert c.refuses("block-export-add", add, node_name="none")[0] == "DeviceNotFound"
c.execute("block-export-add", add, description="seen", allocation_depth=True)
c.execute("block-export-add", add, id="part", offset=BLOCK, size=BLOCK)
assert "name that" in c.refuses("block-export-add", add, id="again", node_name="view")[1]
c.execute("block-export-add", add, id="old", load_snapshot="s0")
assert "name that" in c.refuses("block-export-add", add, id="again", node_name="old")[1]
c.execute("block-export-del", id="old")

# Of an image with another backing file than it records, that one is below the snapshot as well.
c.execute("block-export-add", type="nbd", id="top", file=
          {"driver": "qcow2", "file": {"driver": "file", "filename": "top.qcow2"},
           "backing": {"driver": "raw", "file": {"driver": "file", "filename": "base2.raw"}}})
c.execute("block-export-add", add, id="old", node_name="top", load_snapshot="s0")
for name in "top", "old":
    h = connect(name)
    assert h.pread(512, 0) == b"\2" * 512, name
    h.shutdown()
c.execute("block-export-del", id="top", mode="hard")
assert {x["id"] for x in c.execute("query-block-exports")} == {"", "other", "view", "part"}
x = {x["id"]: x for x in c.execute("query-block-exports")}
assert x["view"]["node-name"] == "" and not x["view"]["writable"] and x["view"]["description"] == "seen", x
assert set(n["node-name"] for n in c.execute("query-named-block-nodes")) == {"", "other"}
stats = {(n["device"], n["node-name"]) for n in c.execute("query-blockstats")}
assert stats == {("", ""), ("other", "other"), ("view", ""), ("part", "")}, stats
assert {n["node-name"] for n in c.execute("query-blockstats", query_nodes=True)} == {"", "other"}
for command, arguments in (("block_resize", {"device": "view", "size": 2 * SIZE}),
                           ("block-dirty-bitmap-add", {"node": "view", "name": "x"}),
                           ("block-set-write-threshold", {"node-name": "view", "write-threshold": 1}),
                           ("blockdev-snapshot-internal-sync", {"device": "view", "name": "x"})):
    assert c.refuses(command, arguments)[0] == "DeviceNotFound", command

# What is written is seen by all at once; the disk grows for all.
h, v, p = connect(""), connect("view", "base:allocation", "qemu:allocation-depth"), connect("part")
assert v.is_read_only() and p.is_read_only() and p.get_size() == BLOCK
h.pwrite(b"s" * 512, BLOCK)
assert v.pread(512, BLOCK) == p.pread(512, 0) == b"s" * 512
found = {}
v.block_status(BLOCK, BLOCK, lambda name, at, list, error: found.setdefault(name, list) and 0)
assert found["base:allocation"][1] == 0 and found["qemu:allocation-depth"][1] == 1, found
v.flush()
v.set_strict_mode(0)
try:
    v.pwrite(b"v" * 512, 0)
    raise AssertionError("it can be written to")
except nbd.Error:
    pass
c.execute("block_resize", device="", size=SIZE + (1 << 20))
assert connect("view").get_size() == SIZE + (1 << 20) and connect("part").get_size() == BLOCK
assert v.pread(512, SIZE + (1 << 20) - 512) == bytes(512)
assert "in use" in c.refuses("block-export-del", id="view")[1]

# A disk goes with all that shows it; until its clients are gone, it is leaving.  One of these does not read
# what it has asked for.
assert "in use" in c.refuses("block-export-del", id="")[1]
lazy, buffers = connect(""), [nbd.Buffer(1 << 20) for _ in range(64)]
lazy.pread(512, 0)
for b in buffers:
    lazy.aio_pread(b, 0)
other = qmp.Client(control)
other.send('{"execute": "block-export-del", "arguments": {"id": "", "mode": "hard"}}\n')
states = set()
import select
while not select.select([other.s], [], [], 0)[0]:
    states |= {(x["id"], x["shutting-down"]) for x in c.execute("query-block-exports")}
assert other.receive()["event"] == "BLOCK_EXPORT_DELETED" and ("", True) in states and ("other", False) in states, states
while "return" not in other.receive():
    pass
assert [x["id"] for x in c.execute("query-block-exports")] == ["other"]

# It comes again, with two that show it, and the server ends.
c.execute("block-export-add", type="nbd", id="", file="a.qcow2", writable=True)
c.execute("block-export-add", add, load_snapshot="s1", bitmaps=["b%d" % rounds])
c.execute("block-export-add", add, id="more", bitmaps=["b%d" % rounds])
v = connect("view", "qemu:dirty-bitmap:b%d" % rounds)
assert v.get_size() == SIZE
v.pread(512, SIZE - 512)
END
stop_server
server_log_is_empty

echo "== what they have is what QEMU finds in the snapshots"
for i in $(seq 0 "$ROUNDS"); do
  qemu-img convert -f qcow2 -O raw -l "snapshot.name=s$i" a.qcow2 "s$i.raw"
  cmp -n 67108864 "s$i.raw" "backup-$i.raw" || fail "backup $i is not the snapshot"
done
check_image a.qcow2
