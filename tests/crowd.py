# SPDX-License-Identifier: BSD-3-Clause
#
# A crowd of clients, each of which asks for as much as it may and takes nothing: how much memory the server
# has of its own meanwhile and afterwards, and what a good client gets and waits beside them.  Run by
# test-crowd.sh:
#
#     crowd.py SOCKET PID CLIENTS MEMORY_MIB DATA
#
# MEMORY_MIB is the server's --memory.  The export "good" begins as the file DATA, of 16 MiB; "disk" is as
# large, and every other cluster of 4 KiB is zero.  There are so many other ones that a list of them is long.

import os, random, resource, struct, sys, time

import rawnbd
from rawnbd import *

rawnbd.SOCKET, PID, CLIENTS, MEMORY = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
MIB = 1 << 20
with open(sys.argv[5], "rb") as f:
    data = bytearray(f.read())
SIZE = len(data)

# What nbdcow(1) says of --memory, what two loops keep for the next burst, and what a heap and threads need.
BOUND = MEMORY + CLIENTS / 16 + 2 * 16 + 48
KEPT = 2 * 16 + 32

DF = 4  # of a READ: not in pieces


def memory():
    """MiB that are the server's own, and not the page cache's."""
    with open(f"/proc/{PID}/status") as f:
        for line in f:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024


# ---- the crowd: what each of it does ----------------------------------------------------------------

def names():
    s = greeted()
    stuff(s, struct.pack(">8sII", b"IHAVEOPT", OPT_GO, 65536) + bytes(65535))
    return s


def lists():
    s = greeted()
    stuff(s, b"".join(struct.pack(">8sII", b"IHAVEOPT", OPT_LIST, 0) for _ in range(1000)))
    return s


def asking(make, count, status=None):
    def begin():
        s = in_transmission(b"disk", status)
        stuff(s, b"".join(make(i) for i in range(count)))
        return s

    return begin


crowds = {
    "half an option": names,
    "long lists": lists,
    "small reads": asking(lambda i: request(READ, i % 15 * MIB, 4096), 4000),
    "reads of 1 MiB": asking(lambda i: request(READ, i % 15 * MIB, MIB), 256),
    "reads of 16 MiB": asking(lambda i: request(READ, 0, SIZE), 256),
    "reads in pieces": asking(lambda i: long_request(READ, 0, SIZE), 256, OPT_EXTENDED),
    "half a write": asking(lambda i: request(WRITE, 0, SIZE) + bytes(200000), 1),
    "half a short write": asking(lambda i: request(WRITE, 0, MIB) + bytes(200000), 1),
    "block status": asking(lambda i: request(STATUS, 0, SIZE), 256, OPT_STRUCTURED),
    "long block status": asking(lambda i: long_request(STATUS, 0, SIZE), 256, OPT_EXTENDED),
    "zeroes": asking(lambda i: request(ZEROES, i % 16 << 16, 65536), 2000),
}


# ---- the good client --------------------------------------------------------------------------------

def done(s, structured):
    """The simple reply to a WRITE, or a structured one."""
    header = exactly(s, 20 if structured else 16)
    assert header[:4] == struct.pack(">I", 0x668e33ef if structured else 0x67446698), header
    assert structured or header[4:8] == bytes(4), header


def read(s, offset, length, structured, flags):
    s.sendall(request(READ, offset, length, flags))
    if not structured:
        assert exactly(s, 16)[:8] == struct.pack(">II", 0x67446698, 0)
        return exactly(s, length)
    got, last, chunks = bytearray(length), False, 0
    while not last:
        magic, more, kind, _, n = struct.unpack(">IHHQI", exactly(s, 20))
        assert magic == 0x668e33ef and kind == 1, f"a chunk of type {kind}"
        chunk = exactly(s, n)
        at = struct.unpack(">Q", chunk[:8])[0] - offset
        got[at:at + n - 8] = chunk[8:]
        last = more & 1
        chunks += 1
    assert chunks == 1 or not flags & DF, f"{chunks} chunks"
    return got


def good(rng):
    """How long 4 KiB took, sorted; and everything else that it asks for is right, too."""
    times = []
    for status in None, OPT_STRUCTURED:
        s = in_transmission(b"good", status)
        s.settimeout(120)
        for length in [4096] * 300 + [MIB, MIB, SIZE]:
            flags = rng.choice((0, DF)) if status else 0
            offset = rng.randrange((SIZE - length) // 4096 + 1) * 4096
            new = rng.randbytes(4096) * (length // 4096)
            start = time.monotonic()
            if rng.random() < 0.3:
                s.sendall(request(WRITE, offset, length) + new)
                done(s, status)
                data[offset:offset + length] = new
            else:
                assert read(s, offset, length, status, flags) == data[offset:offset + length], f"{length} bytes at {offset}"
            if length == 4096:
                times.append(time.monotonic() - start)
        s.close()
    return sorted(times)


def settled(low):
    """Memory when it does not grow any more, or has come down to LOW."""
    last, since, end = memory(), time.monotonic(), time.monotonic() + 60
    while time.monotonic() < end and last > low:
        if low < 0 and time.monotonic() - since > 0.5:
            break
        time.sleep(0.02)
        now = memory()
        if now > last or low >= 0:
            last, since = now, time.monotonic()
    return last


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CLIENTS + 100:
        print(f"{hard} descriptors are too few")
        sys.exit(77)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rng = random.Random(int(os.environ.get("SEED", "1")))
    times = good(rng)
    before = memory()
    print(f"{CLIENTS} clients, --memory={MEMORY}M: at most {BOUND:.0f} MiB, {KEPT} afterwards; {before:.0f} before")
    print(f"{'':<20} {'MiB':>6} {'afterwards':>10}   the good client's p99: {times[len(times) * 99 // 100] * 1e3:.2f} ms alone")
    for title, begin in crowds.items():
        clients = [begin() for _ in range(CLIENTS)]
        high = settled(-1)
        times = good(rng)
        high = max(high, memory())
        for s in clients:
            s.close()
        after = settled(before + KEPT)
        print(f"{title:<20} {high:>6.0f} {after:>10.0f} {times[len(times) * 99 // 100] * 1e3:>24.2f} ms", flush=True)
        assert high <= before + BOUND, f"{title}: {high:.0f} MiB"
        assert after <= before + KEPT, f"{title}: {after:.0f} MiB are left"


main()
