#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A client that verifies everything, while somebody does something to its server.

    live_load.py URI BEGIN LENGTH        works on that range of the export, which nobody else writes to

Several requests are in flight at any time, each in a lane of its own, whose bytes are known: reads,
writes of 512 bytes to 1 MiB (LIVE_LARGE=N: to N MiB), zeroes, flushes, FUA; and block status.  Any
error, or a byte that is not what it must be, ends it with status 1 and one line.

It is told what to do on stdin, a line each, and answers on stdout:

    mark NAME     "NAME N P50 P99 MAX": requests since the last mark, and their latencies in milliseconds
    end           reads all of the range once more; "end N", N the requests of the whole run

MODE=simple negotiates no structured replies; raw-simple, raw-structured and raw-extended are raw_nbd.py's.
LANES=N.  With DUMP=FILE, an error is expected: what was written, and
what was under way, goes to FILE (live.verify_dump reads it), and the status is 3.  SEED.
"""

import os
import pickle
import random
import select
import sys
import time

import nbd

import raw_nbd

uri, begin, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seed = os.environ.get("SEED", "0")
rng = random.Random("%s:%s:%d" % (seed, uri, begin))
LANES = int(os.environ.get("LANES", "4"))
LONGEST = 32 << 20  # of a write, and of a read in one piece
large = int(os.environ.get("LIVE_LARGE", "1")) << 20
mode = os.environ.get("MODE", "")
lib = raw_nbd if mode.startswith("raw-") else nbd


def die(text):
    print("live_load: SEED=%s: %s, range %d+%d: %s" % (seed, uri, begin, length, text),
          file=sys.stderr)
    sys.exit(1)


class Lane:
    def __init__(self, start, size):
        self.start, self.size = start, size
        self.model = bytearray(size)
        self.cookie = None
        self.doubt = None  # (at, what was there) while that is being changed

    def choose(self, h):
        unit = 512
        most = rng.choice((4096, 4096, 65536, 65536, 262144,
                           large if large <= 8 << 20 or rng.random() < 0.1 else 1 << 20))
        most = min(most, self.size)
        n = rng.randrange(1, most // unit + 1) * unit
        at = rng.randrange(0, (self.size - n) // unit + 1) * unit
        return at, n

    def begin(self, h):
        what = rng.random()
        at, n = self.choose(h)
        if what < 0.48 or mode.endswith("simple"):
            n = min(n, LONGEST)
        fua = nbd.CMD_FLAG_FUA if rng.random() < 0.02 else 0
        self.data = None
        if what < 0.52:
            self.doubt = at, bytes(self.model[at:at + n])
        if what < 0.48:
            data = (rng.randbytes(4093) * (n // 4093 + 1))[:n]
            self.model[at:at + n] = data
            self.buffer = bytearray(data)  # libnbd 1.14 never frees an nbd.Buffer
            self.cookie = h.aio_pwrite(self.buffer, self.start + at, flags=fua)
        elif what < 0.52:
            self.model[at:at + n] = bytes(n)
            self.cookie = h.aio_zero(n, self.start + at, flags=fua)
        elif what < 0.54:
            self.cookie = h.aio_flush()
        else:
            self.data = at, n
            self.buffer = bytearray(n)
            self.cookie = h.aio_pread(self.buffer, self.start + at)
        self.since = time.monotonic()

    def finish(self, h):
        """Whether what was begun is done."""
        if not h.aio_command_completed(self.cookie):
            return False
        self.cookie = self.doubt = None
        if self.data:
            at, n = self.data
            self.verify(at, self.buffer)
        return True

    def verify(self, at, found):
        expected = self.model[at:at + len(found)]
        if found == expected:
            return
        i = next(i for i in range(len(found)) if found[i] != expected[i])
        die("byte %d is %02x instead of %02x (a read of %d at %d)"
            % (self.start + at + i, found[i], expected[i], len(found), self.start + at))


def dump(lanes):
    with open(os.environ["DUMP"], "wb") as f:
        pickle.dump([(lane.start, bytes(lane.model), lane.doubt) for lane in lanes], f)
    sys.exit(3)


def report(name, times):
    times.sort()
    pick = lambda p: times[min(len(times) - 1, int(len(times) * p))] * 1000 if times else 0
    print("%s %d %.3f %.3f %.3f" % (name, len(times), pick(0.5), pick(0.99), pick(1.0)), flush=True)


def main(lanes):
    if lib is raw_nbd:
        h = raw_nbd.NBD(mode[4:], rng)
    else:
        h = nbd.NBD()
    if mode == "simple":
        h.set_request_structured_replies(False)
    elif lib is nbd:
        h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    size = length // LANES // 4096 * 4096
    lanes += [Lane(begin + i * size, size) for i in range(LANES)]
    for lane in lanes:
        h.zero(lane.size, lane.start)
    total, times = 0, []
    print("ready", flush=True)
    while True:
        for lane in lanes:
            if lane.cookie is None:
                lane.begin(h)
        h.poll(1000)
        for lane in lanes:
            if lane.cookie is not None and lane.finish(h):
                times.append(time.monotonic() - lane.since)
                total += 1
        if h.aio_is_dead() or h.aio_is_closed():
            raise nbd.Error("disconnected", 0)
        if total % 64 == 0 and not mode.endswith("simple"):
            covered = []
            h.block_status(65536, lanes[0].start, lambda name, at, list, error: covered.extend(list) or 0)
            if not covered:
                die("block status says nothing")
        if not select.select([sys.stdin], [], [], 0)[0]:
            continue
        words = sys.stdin.readline().split() or ["end"]
        if words[0] == "mark":
            report(words[1], times)
            times = []
        elif words[0] == "end":
            break
    while any(lane.cookie is not None for lane in lanes):
        h.poll(1000)
        for lane in lanes:
            if lane.cookie is not None:
                lane.finish(h)
    for lane in lanes:
        for at in range(0, lane.size, 1 << 20):
            lane.verify(at, h.pread(min(1 << 20, lane.size - at), lane.start + at))
    h.shutdown()
    print("end %d" % total, flush=True)


lanes = []
try:
    main(lanes)
except (nbd.Error, raw_nbd.Error, ConnectionError) as e:
    if lanes and "DUMP" in os.environ:
        dump(lanes)
    die(str(e))
