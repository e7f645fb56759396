# SPDX-License-Identifier: BSD-3-Clause
#
# How long a client waits beside another one that has slow work done by many connections.  Run by
# test-fair.sh:
#
#     fair.py SOCKET CONNECTIONS
#
# The server has few workers, and the exports "mine" and "theirs", all of whose clusters are compressed, and
# more than can be kept inflated: each read of one costs its time on a worker.  The busy client reads "theirs".
# Beside it, another one reads "mine", and then "theirs" as well; first with the busy one at a single connection,
# and then at CONNECTIONS: that must make no difference to anybody.

import multiprocessing, os, random, select, socket, struct, sys, time

SOCKET, CONNECTIONS = sys.argv[1], int(sys.argv[2])
SEED = int(os.environ.get("SEED", "1"))
CLUSTER, CLUSTERS = 1 << 21, 40
DEPTH = 16
READS = 25
TRIES = 5


def exactly(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more:
            raise ConnectionError("the server has hung up")
        data += more
    return data


def connect(export):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(SOCKET)
    exactly(s, 18)
    s.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(export)) + export)  # no zeroes
    exactly(s, 10)
    return s


def read_somewhere(rng):
    return struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, rng.randrange(CLUSTERS) * CLUSTER, 512)


REPLY = 16 + 512


def be_busy(connections, ready, stop):
    """Keeps DEPTH reads under way at each of them."""
    rng = random.Random(SEED)
    socks = {s: 0 for s in (connect(b"theirs") for _ in range(connections))}
    for s in socks:
        s.sendall(b"".join(read_somewhere(rng) for _ in range(DEPTH)))
    ready.set()
    while not stop.is_set():
        for s in select.select(list(socks), [], [], 0.1)[0]:
            data = s.recv(REPLY * DEPTH)
            if not data:
                raise ConnectionError("the server has hung up")
            socks[s] += len(data)
            n, socks[s] = divmod(socks[s], REPLY)
            if n:
                s.sendall(b"".join(read_somewhere(rng) for _ in range(n)))


def wait_beside(connections, export):
    """Times of reads, sorted."""
    ready, stop = multiprocessing.Event(), multiprocessing.Event()
    busy = multiprocessing.Process(target=be_busy, args=(connections, ready, stop))
    busy.start()
    try:
        if not ready.wait(120):
            raise AssertionError("the busy client does not get to its work")
        rng = random.Random(SEED + 1)
        s = connect(export)
        times = []
        for _ in range(READS):
            start = time.monotonic()
            s.sendall(read_somewhere(rng))
            reply = exactly(s, REPLY)
            times.append(time.monotonic() - start)
            assert struct.unpack(">IIQ", reply[:16]) == (0x67446698, 0, 7), reply[:16]
            assert busy.is_alive(), "the busy client has gone wrong"
        return sorted(times)
    finally:
        stop.set()
        busy.join(60)
        if busy.is_alive():
            busy.kill()


def main():
    print(f"{'ms (median, worst)':<24} {'1 connection':>18} {CONNECTIONS:>6} connections")
    worse = []
    for export in b"mine", b"theirs":
        # What else the machine has to do may come upon one of the two: that happens once, and not each time.
        for _ in range(TRIES):
            one, many = (wait_beside(n, export) for n in (1, CONNECTIONS))
            a, b = one[READS // 2], many[READS // 2]
            print(f"{export.decode():<24} {a * 1e3:>9.1f} {one[-1] * 1e3:>8.1f} {b * 1e3:>9.1f} {many[-1] * 1e3:>8.1f}",
                  flush=True)
            if b <= 4 * a + 0.010:
                break
        else:
            worse.append(export.decode())
    if worse:
        sys.exit(f"whoever reads {' or '.join(worse)} waits for the busy client's connections, one after the other")


main()
