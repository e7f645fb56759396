#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Checkpoints of bitmaps, snapshots and growing of two disks, by the control socket, while clients
# write to both.  The clients know when each of their writes began and ended; what was written
# before a change began is on its one side, what was begun after its reply on the other, and nothing
# is lost in between.  Snapshots of two disks are of one instant.  How long writes took meanwhile is
# printed beside peace.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img
requires_python_nbd
use_seed
PYTHONPATH=$SRCDIR
export PYTHONPATH
ROUNDS=${ROUNDS:-5}
export ROUNDS

for disk in 0 1; do
  qemu-img create -q -f qcow2 $disk.qcow2 64M
done

# serve OPTION...: by one nbdcow, until stop_server.
serve ()
{
  server_count=$((server_count + 1))
  SOCK=$tmp/sock-$server_count
  PIDFILE=$tmp/pid-$server_count
  SERVER_LOG=$tmp/server-$server_count.log
  "$NBDCOW" -t -e 0 -k "$SOCK" --pid-file="$PIDFILE" --state-dir="$STATE_DIR" "$@" \
    >"$SERVER_LOG" 2>&1 </dev/null &
  SERVER_PID=$!
  track "$SERVER_PID"
  wait_for 30 server_ready_or_dead || fail "nbdcow was not ready after 30 seconds"
  process_alive "$SERVER_PID" || fail "nbdcow $*: $(cat "$SERVER_LOG")"
}

serve --control="$tmp/control" --export name=0,file=0.qcow2 --export name=1,file=1.qcow2
"$PYTHON" - "$tmp/control" "$SOCK" <<'END'
import nbd, os, pickle, qmp, random, struct, sys, threading, time

control, sock = sys.argv[1:]
rounds, seed = int(os.environ["ROUNDS"]), int(os.environ["SEED"])
BLOCK = 65536
BLOCKS = 1000          # that the writers use; the last one of the 64 MiB is the chain's
WRITERS = 2            # for each disk

now = time.monotonic
stop = threading.Event()
failures = []
writes = [[], []]      # (began, ended, block, version), by disk
growing = 64 << 20     # bytes that both disks have for sure

def connect(disk):
    h = nbd.NBD()
    h.connect_uri("nbd+unix:///%d?socket=%s" % (disk, sock))
    h.set_strict_mode(0)
    return h

def guarded(f):
    def run(*args):
        try:
            f(*args)
        except BaseException as e:
            failures.append(repr(e))
            stop.set()
    return run

# Each writer has blocks of its own, so that the last version is known.
@guarded
def write(disk, number):
    h, rng = connect(disk), random.Random("%d/%d/%d" % (seed, disk, number))
    version = 0
    while not stop.is_set():
        version += 1
        block = rng.randrange(BLOCKS // WRITERS) * WRITERS + number
        data = struct.pack("<Q", version) * (rng.choice((512, 4096, BLOCK)) // 8)
        if rng.random() < .02:
            h.flush()
        began = now()
        h.pwrite(data, block * BLOCK)
        writes[disk].append((began, now(), block, version))

# One counter after the other: disk 0 first, then disk 1.
@guarded
def chain():
    disks = [connect(0), connect(1)]
    n = 0
    while not stop.is_set():
        n += 1
        for h in disks:
            h.pwrite(struct.pack("<Q", n), 1023 * BLOCK)

# At the end of what has been grown, and not beyond it.
@guarded
def follow():
    h = connect(0)
    while not stop.is_set():
        h.pwrite(b"g" * 512, growing - 512)
        time.sleep(.01)

threads = [threading.Thread(target=write, args=(d, w), daemon=True) for d in (0, 1) for w in range(WRITERS)]
threads += [threading.Thread(target=t, daemon=True) for t in (chain, follow)]
for t in threads:
    t.start()
c = qmp.Client(control, timeout=300)

def counted(n):
    return all(len(w) >= n for w in writes) or stop.is_set()

def go_on(n):
    wanted, limit = min(map(len, writes)) + n, now() + 120
    while not counted(wanted):
        assert now() < limit, "writes stand still"
        time.sleep(.005)

times = {"peace": []}  # (began, ended) by kind

def peace():
    began = now()
    go_on(400)
    times["peace"].append((began, now()))

def change(kind, command, /, **arguments):
    began = now()
    c.execute(command, arguments)
    ended = now()
    times.setdefault(kind, []).append((began, ended))
    go_on(50)
    return began, ended

def action(kind, /, **data):
    return {"type": kind, "data": data}

def both(actions):
    return [a for disk in "01" for a in actions(disk)]

checkpoints, snapshots = [], []
first = change("checkpoint", "transaction", actions=both(lambda d: [
    action("block-dirty-bitmap-add", node=d, name="b0", granularity=BLOCK)]))
checkpoints.append(first)
for i in range(1, rounds + 1):
    peace()
    # Sometimes with a snapshot to read the backup from, of the same instant.
    with_snapshot = i % 2 == 0
    at = change("checkpoint and snapshot" if with_snapshot else "checkpoint", "transaction", actions=both(lambda d: [
        action("block-dirty-bitmap-disable", node=d, name="b%d" % (i - 1)),
        action("block-dirty-bitmap-add", node=d, name="b%d" % i, granularity=BLOCK)] + ([
        action("blockdev-snapshot-internal-sync", device=d, name="s%d" % i)] if with_snapshot else [])))
    checkpoints.append(at)
    if with_snapshot:
        snapshots.append(("s%d" % i,) + at)
    peace()
    snapshots.append(("t%d" % i,) + change("snapshot", "transaction", actions=both(lambda d: [
        action("blockdev-snapshot-internal-sync", device=d, name="t%d" % i)])))
    if i > 2:
        change("snapshot delete", "blockdev-snapshot-delete-internal-sync", device="0", name="t%d" % (i - 2))
    peace()
    size = growing + (1 << 20)
    for disk in "01":
        change("resize", "block_resize", device=disk, size=size)
    growing = size
    # What fails changes nothing.
    assert c.refuses("transaction", actions=both(lambda d: [
        action("block-dirty-bitmap-clear", node=d, name="b%d" % i)]) + [action("block-dirty-bitmap-add", node="1", name="b0")])
change("checkpoint", "transaction", actions=both(lambda d: [
    action("block-dirty-bitmap-disable", node=d, name="b%d" % rounds)]))
checkpoints.append(times["checkpoint"][-1])
go_on(50)
stop.set()
for t in threads:
    t.join()
assert not failures, failures

def p99(values):
    values = sorted(values)
    return 1000 * values[int(len(values) * .99)] if values else 0

everything = writes[0] + writes[1]
for kind, spans in times.items():
    met = [e - b for b, e, _, _ in everything if any(b < t and e > f for f, t in spans)]
    took = [t - f for f, t in spans]
    if kind == "peace":
        print("peace: a write's p99 is %.3f ms (%d writes)" % (p99(met), len(met)))
    else:
        print("%s: %d, each %.1f ms on average; a write's p99 beside it is %.3f ms, the longest %.3f ms"
              % (kind, len(spans), 1000 * sum(took) / len(took), p99(met), 1000 * max(met or [0])))
pickle.dump((writes, checkpoints, snapshots, rounds), open("model", "wb"))
c.close()
END
stop_server
check_image 0.qcow2
check_image 1.qcow2

# ---- against what the clients know -------------------------------------------------------------

bitmaps=
for i in $(seq 0 "$ROUNDS"); do
  bitmaps=$bitmaps'"b'$i'",'
done
for disk in 0 1; do
  echo '{"name": "'$disk'", "file": "'$disk'.qcow2", "read-only": true, "snapshots": true, "bitmap": ['"${bitmaps%,}"']}' >$disk.json
done
serve --export "$(cat 0.json)" --export "$(cat 1.json)"
"$PYTHON" - "$SOCK" <<'END'
import nbd, pickle, struct, sys

writes, checkpoints, snapshots, rounds = pickle.load(open("model", "rb"))
BLOCK, BLOCKS = 65536, 1000

def connect(name, contexts=()):
    h = nbd.NBD()
    for context in contexts:
        h.add_meta_context(context)
    h.connect_uri("nbd+unix:///%s?socket=%s" % (name, sys.argv[1]))
    return h

for disk in 0, 1:
    names = ["qemu:dirty-bitmap:b%d" % i for i in range(rounds + 1)]
    h = connect(disk, names)
    dirty = {name: set() for name in names}
    def extent(name, offset, entries, error):
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags & 1:
                dirty[name].update(range(offset // BLOCK, -(-(offset + length) // BLOCK)))
            offset += length
        ends[name] = offset
    for name in names:
        assert h.can_meta_context(name), name
    offset, size = 0, BLOCKS * BLOCK
    while offset < size:
        ends = {}
        h.block_status(size - offset, offset, extent)
        offset = min(ends.values())
    # Bitmap I records from checkpoint I to checkpoint I + 1.
    for i, name in enumerate(names):
        (on0, on1), (off0, off1) = checkpoints[i], checkpoints[i + 1]
        surely = {block for b, e, block, _ in writes[disk] if b >= on1 and e <= off0}
        perhaps = {block for b, e, block, _ in writes[disk] if e >= on0 and b <= off1}
        got = {b for b in dirty[name] if b < BLOCKS}
        assert surely <= got, "disk %d, %s: lost %r" % (disk, name, sorted(surely - got)[:10])
        assert got <= perhaps, "disk %d, %s: too many %r" % (disk, name, sorted(got - perhaps)[:10])
        assert surely, "nothing was written between two checkpoints"
    # Nothing falls between two of them.
    for b, e, block, _ in writes[disk]:
        if b >= checkpoints[0][1] and e <= checkpoints[-1][0]:
            assert any(block in dirty[n] for n in names), (disk, block)

def version(h, block):
    return struct.unpack("<Q", h.pread(8, block * BLOCK))[0]

looked_at = 0
for name, began, ended in snapshots:
    counters = []
    for disk in 0, 1:
        try:
            h = connect("%d@%s" % (disk, name))
        except nbd.Error:
            assert disk == 0 and name[0] == "t", name # deleted
            break
        least, most = {}, {}
        for b, e, block, v in writes[disk]:
            if e <= began:
                least[block] = v
            if b <= ended:
                most[block] = v
        for block in range(BLOCKS):
            v = version(h, block)
            assert least.get(block, 0) <= v <= most.get(block, 0), (disk, name, block, least.get(block), v, most.get(block))
        counters.append(version(h, 1023))
        looked_at += 1
    if len(counters) == 2:
        assert 0 <= counters[0] - counters[1] <= 1, "%s is not of one instant: %r" % (name, counters)
assert looked_at >= 4, looked_at

for disk in 0, 1:
    h, last = connect(disk), {}
    for b, e, block, v in writes[disk]:
        last[block] = v
    for block, v in last.items():
        assert version(h, block) == v, (disk, block)
print("%d writes, %d snapshots, %d bitmaps" % (len(writes[0]) + len(writes[1]), looked_at, 2 * (rounds + 1)))
END
stop_server
