# SPDX-License-Identifier: BSD-3-Clause
#
# Clients that mean harm, and one that does not: how long the good one waits, in peace and under each
# attack.  Run by test-abuse.sh:
#
#     abuse.py SOCKET PID SECONDS THREAD...
#
# The server has the exports "disk" (the good client's), "many" (fragmented), "deep" (a long chain) and
# "wipe" (to be zeroed), offers TLS, and bounds handshakes.  The THREADs were there before its first client.
#
# Attackers, the good client and the server share the machine, so it also waits for processors: that is told
# apart.  Beside each time that a request took stands what is left of it without the time for which the good
# client, or the server's thread that serves it, could have run and did not (the kernel's schedstat); and for
# comparison, what it waits beside processes that compute and have nothing to do with the server.

import ctypes, multiprocessing, os, platform, random, resource, socket, struct, sys, time

import nbd

import rawnbd
from rawnbd import *

SOCKET, PID, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
THREADS = [int(t) for t in sys.argv[4:]]
SEED = int(os.environ.get("SEED", "1"))

rawnbd.SOCKET = SOCKET

# The kernel may have no such figures.
MEASURED = os.path.exists("/proc/self/schedstat")

# Seconds for which the good client may be kept by something else than a want of processors.
BOUND = 0.02


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


class Schedule:
    """What the kernel says of a thread: nanoseconds that it ran, and that it waited for a processor."""

    def __init__(self, thread):
        self.fd = os.open(f"/proc/{thread}/schedstat", os.O_RDONLY)

    def __getitem__(self, i):
        return int(os.pread(self.fd, 100, 0).split()[i])


def time_slice(thread):
    """Of a thread, in nanoseconds; None if it cannot be had."""
    call = {"x86_64": 315, "aarch64": 275}.get(platform.machine())  # sched_getattr
    attr = ctypes.create_string_buffer(48)
    if call is None or ctypes.CDLL(None).syscall(call, thread, attr, len(attr), 0) != 0:
        return None
    return struct.unpack_from("=Q", attr, 24)[0]


def server_of(requests):
    """The schedule of the server's thread that does REQUESTS."""
    threads = [Schedule(f"{PID}/task/{t}") for t in THREADS]
    before = [t[0] for t in threads]
    requests()
    ran = [t[0] - b for t, b in zip(threads, before)]
    return threads[ran.index(max(ran))]


def work(seconds, go, result):
    """Reads and overwrites blocks, and looks at each byte.  Sends (time, time without waiting) of each."""
    h = nbd.NBD()
    h.set_export_name("disk")
    h.connect_unix(SOCKET)
    rng = random.Random(SEED)
    whose = [Schedule("self"), server_of(lambda: [h.pread(4096, 0) for _ in range(500)])] if MEASURED else []
    times = []
    result.send("ready")
    go.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        block = rng.randrange(1024)
        waited = sum(w[1] for w in whose)
        start = time.monotonic()
        if rng.random() < 0.3:
            h.pwrite(pattern(block), block * 4096)
        else:
            assert h.pread(4096, block * 4096) == pattern(block), f"block {block} is not what was written"
        took = time.monotonic() - start
        times.append((took, max(0, took - (sum(w[1] for w in whose) - waited) / 1e9)))
    h.shutdown()
    result.send(times)


def ready():
    """How many threads of the machine are running, or could, beside this one."""
    with open("/proc/stat") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("procs_running")) - 1


def from_good(good, ours, seconds):
    """The next thing that it sends.  It does its work in time, however slow the machine; what would not, waits for ever."""
    crowd = []
    for _ in range(int(seconds * 50)):
        if ours.poll(0.02):
            return ours.recv(), crowd
        assert good.is_alive(), "the good client has gone wrong"
        crowd.append(ready())
    raise AssertionError("the good client is stuck")


def measure(attack, times=1):
    """Beside so many processes that ATTACK: (times, times without waiting, threads that could run)."""
    ours, theirs = multiprocessing.Pipe()
    go = multiprocessing.Event()
    good = multiprocessing.Process(target=work, args=(SECONDS, go, theirs))
    good.start()
    from_good(good, ours, 120)
    until = time.monotonic() + SECONDS + 0.3
    bad = [multiprocessing.Process(target=attack, args=(until,)) for _ in range(times if attack else 0)]
    for p in bad:
        p.start()
    if bad:
        time.sleep(0.3)
    go.set()
    took, crowd = from_good(good, ours, SECONDS + 120)
    good.join()
    for p in bad:
        p.join()
        assert p.exitcode == 0, f"the attack {attack.__name__} has itself gone wrong"
    assert took, "the good client got nothing done"
    return sorted(t for t, _ in took), sorted(t for _, t in took), sum(crowd) / max(1, len(crowd))


def memory():
    with open(f"/proc/{PID}/status") as f:
        for line in f:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) // 1024


def p99(times):
    return times[min(len(times) - 1, len(times) * 99 // 100)]


def row(title, measured):
    times, alone, crowd = measured
    n = len(times)
    left = f"{p99(alone) * 1e6:.0f}" if MEASURED else "-"
    print(f"{title:<20} {n / SECONDS:>10.0f} {times[n // 2] * 1e6:>10.0f} {p99(times) * 1e6:>10.0f} {left:>10}"
          f" {times[-1] * 1e6:>10.0f} {crowd:>6.1f} {memory():>8}", flush=True)


def computing(until):
    while time.monotonic() < until:
        pass


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
    # The thread that takes connections in is as others are; those that serve them ask for less.
    usual, loops = time_slice(PID), [time_slice(t) for t in THREADS if t != PID]
    assert not usual or all(t < usual for t in loops), f"time slices of {usual} and {loops} ns"
    print(f"{'':<20} {'requests/s':>10} {'median us':>10} {'p99 us':>10} {'p99 net':>10} {'worst us':>10}"
          f" {'ready':>6} {'RSS MiB':>8}")
    row("peace", measure(None))
    for n in 1, 2, 4, 8:
        row(f"{n} computing", measure(computing, n))
    for attack in attacks:
        # What is looked for here is a client that has to wait for what another one has asked for, and that each
        # time.  The one bound is for what the server does, the other one for what no machine is too busy for.
        for _ in range(4):
            times, alone, crowd = measure(attack)
            row(attack.__name__.replace("_", " "), (times, alone, crowd))
            if p99(times) < 2 and (p99(alone) < BOUND or not MEASURED):
                break
        else:
            raise AssertionError(f"{attack.__name__}: p99 is too long")
        assert memory() < 700, f"{attack.__name__}: {memory()} MiB"
    row("peace again", measure(None))


main()
