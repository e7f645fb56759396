# SPDX-License-Identifier: BSD-3-Clause
#
# Clients that mean harm, and one that does not: how long the good one waits, in peace and under each
# attack.  Run by test-abuse.sh:
#
#     abuse.py SOCKET PID SECONDS
#
# The server has the exports "disk" (the good client's), "many" (fragmented), "deep" (a long chain) and
# "wipe" (to be zeroed), offers TLS, and bounds handshakes.

import multiprocessing, os, random, resource, socket, struct, sys, time

import nbd

import rawnbd
from rawnbd import *

SOCKET, PID, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
SEED = int(os.environ.get("SEED", "1"))

rawnbd.SOCKET = SOCKET


def hold(socks, until):
    time.sleep(max(0, until - time.monotonic()))
    for s in socks:
        s.close()


# ---- attacks: each goes on until a moment ---------------------------------------------------------

def silence(until):
    hold([connect() for _ in range(100)], until)


def half_an_option(until):
    socks = []
    for _ in range(100):
        s = greeted()
        s.sendall(struct.pack(">8sII", b"IHAVEOPT", OPT_GO, 4096) + b"x" * 7)
        socks.append(s)
    hold(socks, until)


def slow_bytes(until):
    socks = [connect() for _ in range(50)]
    while time.monotonic() < until:
        for s in socks:
            stuff(s, b"\0")
        time.sleep(0.05)
    hold(socks, until)


def half_a_header(until):
    socks = [in_transmission(b"disk") for _ in range(60)]
    for s in socks:
        s.sendall(request(READ, 0, 4096)[:13])
    hold(socks, until)


def half_a_payload(until):
    socks = [in_transmission(b"disk") for _ in range(60)]
    for s in socks:
        stuff(s, request(WRITE, 0, 32 << 20) + b"x" * 1000)
    hold(socks, until)


def reads_no_replies(until):
    socks = [in_transmission(b"disk") for _ in range(20)]
    for s in socks:
        stuff(s, b"".join(request(READ, 0, 1 << 20) for _ in range(1000)))
    hold(socks, until)


def flood(until):
    while time.monotonic() < until:
        socks = []
        for _ in range(50):
            s = socket.socket(socket.AF_UNIX)
            s.setblocking(False)
            try:
                s.connect(SOCKET)
            except BlockingIOError:
                pass  # its backlog is full, which is its right
            socks.append(s)
        for s in socks:
            s.close()


def half_of_tls(until):
    socks = []
    for i in range(60):
        s = greeted()
        option(s, OPT_STARTTLS)
        answer(s)
        # The beginning of a ClientHello that says it is long; or a record of nothing that is known.
        stuff(s, b"\x16\x03\x01\x40\x00\x01" if i % 2 else b"\x17\x03\x03\x00\x00" * 1000)
        socks.append(s)
    hold(socks, until)


def pipelined(export, make, until, clients, depth, status=None):
    socks = [in_transmission(export, status) for _ in range(clients)]
    while time.monotonic() < until and socks:
        for s in socks:
            stuff(s, b"".join(make() for _ in range(depth)))
        drain(socks)
    for s in socks:
        s.close()


def block_status(until):
    pipelined(b"many", lambda: request(STATUS, 0, 64 << 20), until, 4, 64, status=OPT_STRUCTURED)


def zeroing(until):
    pipelined(b"wipe", lambda: request(ZEROES, 0, 4294901760), until, 4, 64)


def trimming(until):
    pipelined(b"wipe", lambda: request(TRIM, 0, 4294901760), until, 4, 64)


def deep_chain(until):
    pipelined(b"deep", lambda: request(READ, random.randrange(0, 60) << 16, 65536), until, 4, 64)


def caching(until):
    pipelined(b"many", lambda: request(CACHE, 0, 64 << 20), until, 4, 250)


def flushing(until):
    pipelined(b"wipe", lambda: request(WRITE, random.randrange(65536) << 16, 512) + b"x" * 512 +
              request(FLUSH, 0, 0), until, 2, 64)


def oversized(until):
    while time.monotonic() < until:
        s = greeted()
        stuff(s, struct.pack(">8sII", b"IHAVEOPT", OPT_GO, 0xffffffff) + b"x" * 65536)
        t = in_transmission(b"disk")
        stuff(t, request(READ, 0, 0xffffffff) + request(READ, 1 << 63, 0xffffffff) +
              request(WRITE, 0, 0xffffffff) + b"x" * 65536)
        u = greeted()
        stuff(u, b"".join(struct.pack(">8sII", b"IHAVEOPT", OPT_LIST, 0) for _ in range(3000)))
        for x in s, t, u:
            x.close()


attacks = [silence, half_an_option, slow_bytes, half_a_header, half_a_payload, reads_no_replies, flood,
           half_of_tls, block_status, zeroing, trimming, deep_chain, caching, flushing, oversized]


# ---- the good client ------------------------------------------------------------------------------

def pattern(block):
    return struct.pack(">Q", block * 0x9e3779b97f4a7c15 & (1 << 64) - 1) * 512


def work(seconds, result):
    """Reads and overwrites blocks, and looks at each byte.  Sends the sorted times."""
    h = nbd.NBD()
    h.set_export_name("disk")
    h.connect_unix(SOCKET)
    rng = random.Random(SEED)
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        block = rng.randrange(1024)
        start = time.monotonic()
        if rng.random() < 0.3:
            h.pwrite(pattern(block), block * 4096)
        else:
            assert h.pread(4096, block * 4096) == pattern(block), f"block {block} is not what was written"
        times.append(time.monotonic() - start)
    h.shutdown()
    result.send(sorted(times))


def measure(attack):
    ours, theirs = multiprocessing.Pipe()
    good = multiprocessing.Process(target=work, args=(SECONDS, theirs))
    bad = multiprocessing.Process(target=attack, args=(time.monotonic() + SECONDS + 0.3,)) if attack else None
    if bad:
        bad.start()
        time.sleep(0.3)
    good.start()
    # It does its work in this time, however slow the machine; what would not, waits for ever.
    if not ours.poll(SECONDS + 120):
        raise AssertionError("the good client is stuck")
    times = ours.recv()
    good.join()
    if bad:
        bad.join()
        if bad.exitcode != 0:
            raise AssertionError(f"the attack {attack.__name__} has itself gone wrong")
    return times


def memory():
    with open(f"/proc/{PID}/status") as f:
        for line in f:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) // 1024


def row(title, times):
    n = len(times)
    if n == 0:
        raise AssertionError(f"{title}: the good client got nothing done")
    print(f"{title:<20} {n / SECONDS:>10.0f} {times[n // 2] * 1e6:>10.0f} {times[min(n - 1, n * 99 // 100)] * 1e6:>10.0f}"
          f" {times[-1] * 1e6:>10.0f} {memory():>8}", flush=True)


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    random.seed(SEED)
    h = nbd.NBD()
    h.set_export_name("disk")
    h.connect_unix(SOCKET)
    for block in range(1024):
        h.pwrite(pattern(block), block * 4096)
    h.shutdown()
    print(f"{'':<20} {'requests/s':>10} {'median us':>10} {'p99 us':>10} {'worst us':>10} {'RSS MiB':>8}")
    row("peace", measure(None))
    for attack in attacks:
        # With the attacker on the same processors, it waits for these as well: what is looked for here is a
        # client that has to wait for what another one has asked for, and that each time.
        for _ in range(4):
            times = measure(attack)
            row(attack.__name__.replace("_", " "), times)
            if times[len(times) * 99 // 100] < 2:
                break
        else:
            raise AssertionError(f"{attack.__name__}: p99 is too long")
        assert memory() < 700, f"{attack.__name__}: {memory()} MiB"
    row("peace again", measure(None))


main()
