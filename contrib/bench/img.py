#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""nbdcow-img beside qemu-img: seconds and peak memory, sides taken in turn, medians, and whether what is wanted is met.

    contrib/bench/img.py [--img NBDCOW-IMG] [--qemu-img QEMU-IMG] [--dir DIR] [--runs N] [ROW...]

ROWs: all of those below, unless some are named.  The images are made in DIR, which needs about 4 GiB; the ones
that are checked are 1 TiB with ten million allocated clusters, their tables written directly and their data
holes.  qemu-img's check of the fragmented one takes minutes: it gets --limit seconds.

With PEER_ROOT set, a directory tree with a newer QEMU in it (README.md says how to make one), qemu-img is run there by
chroot, and DIR is in its /tmp.  Of the ways in which qemu-img can be told to convert in parallel, each row takes the one
that one trial found fastest.
"""

import argparse
import array
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time

CLUSTER, SIZE, CLUSTERS = 65536, 1 << 40, 10_000_000
COPIED = 1 << 63


def big_endian(kind, values):
    a = array.array(kind, values)
    if sys.byteorder == "little":
        a.byteswap()
    return a.tobytes()


def make_large(name, fragmented):
    """Writes the metadata of an image of SIZE bytes with CLUSTERS data clusters, evenly spread."""
    tables = SIZE // CLUSTER // 8192
    each = CLUSTERS // tables
    per_block = CLUSTER // 2
    blocks = 0
    while True:  # header, refcount table, blocks, L1, L2 tables, data
        total = 3 + blocks + tables + each * tables
        if -(-total // per_block) == blocks:
            break
        blocks = -(-total // per_block)
    first_block, l1 = 2, 2 + blocks
    l2, data = l1 + 1, l1 + 1 + tables
    with open(name, "wb") as f:
        f.write(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, SIZE, 0, tables, l1 * CLUSTER, CLUSTER, 1,
                            0, 0, 0, 0, 0, 4, 112) + bytes(8))
        f.seek(CLUSTER)
        f.write(big_endian("Q", [(first_block + i) * CLUSTER for i in range(blocks)]))
        for b in range(blocks):
            f.seek((first_block + b) * CLUSTER)
            f.write(big_endian("H", [1] * min(per_block, total - b * per_block)))
        f.seek(l1 * CLUSTER)
        f.write(big_endian("Q", [(l2 + i) * CLUSTER | COPIED for i in range(tables)]))
        order = list(range(each * tables))
        if fragmented:
            random.Random(1).shuffle(order)
        for i in range(tables):
            f.seek((l2 + i) * CLUSTER)
            f.write(big_endian("Q", [(data + n) * CLUSTER | COPIED for n in order[i * each:(i + 1) * each]]))
        f.truncate(total * CLUSTER)


def qemu_io(name, *commands):
    subprocess.run(["qemu-io", "-f", "qcow2", *[w for c in commands for w in ("-c", c)], name], check=True,
                   stdout=subprocess.DEVNULL)


def fill(name):
    qemu_io(name, *["write -q -P %d %dM 1M" % (i % 250 + 1, 2 * i) for i in range(256)])


def peak(pid):
    """KiB that the process had at most so far; its rusage would begin with what this program has."""
    try:
        with open("/proc/%d/status" % pid) as f:
            return next((int(line.split()[1]) for line in f if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0


def measure(command, limit):
    """Seconds and KiB, or None after LIMIT seconds."""
    start = time.monotonic()
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = 0
    while p.poll() is None:
        most = max(most, peak(p.pid))
        if time.monotonic() - start > limit:
            p.kill()
            p.wait()
            return None
        time.sleep(0.002)
    if p.returncode:
        sys.exit("%s: status %d" % (" ".join(command), p.returncode))
    return time.monotonic() - start, most


def words(name, size):
    """Contents that compress about as well as text and programs do: to a third."""
    r = random.Random(2)
    vocabulary = [bytes(r.choice(b"etaoinshrdlucmfwypvbgkjqxz") for _ in range(r.randrange(2, 10))) for _ in range(5000)]
    block = b"".join(vocabulary[int(r.random() ** 3 * 5000)] + (b" " if r.random() < 0.9 else r.randbytes(6))
                     for _ in range(2_000_000))
    with open(name, "wb") as f:
        while f.tell() < size:
            f.write(block[:size - f.tell()])


class Side:
    """One of the programs: how it is started, and what it calls a file of the directory."""

    def __init__(self, command, directory):
        self.command, self.directory = command, directory

    def __call__(self, *words):
        return [*self.command, *[os.path.join(self.directory, w[1:]) if w.startswith("@") else w for w in words]]


class Row:
    """What a row runs: WORDS, in which @NAME is a file; made once by MAKE, before each turn by BEFORE.  ALONE: qemu-img has
    no such command, and nothing is wanted."""

    def __init__(self, words, make=lambda c: None, before=None, ways=((),), wanted=1.0, target=None, memory=False, alone=False):
        self.words, self.make, self.before, self.ways = words, make, before, ways
        self.wanted, self.target, self.memory, self.alone = wanted, target, memory, alone


def two_filled(create):
    for name in "a", "b":
        create("@" + name, "2G")
        fill(name)


def overlay(create):
    create("@base", "2G")
    create("-b", "base", "-F", "qcow2", "@top")
    fill("top")


def plain_source(create):
    create("@plain", "4G")
    qemu_io("plain", *["write -q -P %d %dM 2M" % (i % 250 + 1, 4 * i) for i in range(512)])


def large_with_snapshot(create):
    make_large("large", False)
    subprocess.run(["qemu-img", "snapshot", "-c", "s", "large"], check=True)
    qemu_io("large", *["write -q -P 1 %dG 64k" % (i * 97) for i in range(10)])


def raw_source(create):
    words("raw", 1 << 30)
    os.truncate("raw", 2 << 30)


WAYS = ((), ("-W",), ("-W", "-m", "16"))
ROWS = {
    "convert-qcow2-qcow2": Row(["convert", "-f", "qcow2", "-O", "qcow2", "@plain", "@out"], plain_source, ways=WAYS, target="out"),
    "convert-raw-qcow2": Row(["convert", "-f", "raw", "-O", "qcow2", "@raw", "@out"], raw_source, ways=WAYS, target="out"),
    "convert-qcow2-raw": Row(["convert", "-f", "qcow2", "-O", "raw", "@plain", "@out"], plain_source, ways=WAYS, target="out"),
    "convert-raw-raw": Row(["convert", "-f", "raw", "-O", "raw", "@raw", "@out"], raw_source, ways=WAYS, target="out"),
    "convert-zlib": Row(["convert", "-c", "-f", "raw", "-O", "qcow2", "@text", "@out"], lambda c: words("text", 256 << 20),
                        ways=WAYS, wanted=1.5, target="out"),
    "convert-zstd": Row(["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", "@text", "@out"],
                        lambda c: words("text", 256 << 20), ways=WAYS, wanted=1.5, target="out"),
    "check": Row(["check", "-f", "qcow2", "@large"], lambda c: make_large("large", False), wanted=2, memory=True),
    "check-fragmented": Row(["check", "-f", "qcow2", "@fragmented"], lambda c: make_large("fragmented", True), wanted=2,
                            memory=True),
    "diff": Row(["diff", "-f", "qcow2", "--from=s", "@large"], large_with_snapshot, alone=True),
    "compare": Row(["compare", "-f", "qcow2", "-F", "qcow2", "@a", "@b"], two_filled),
    "commit": Row(["commit", "-q", "-f", "qcow2", "@top"], before=overlay),
}


def size_of(name):
    return os.stat(name).st_blocks * 512


def turn(row, side, ways, limit, create):
    if row.before:
        row.before(create)
    if row.target and os.path.exists(row.target):
        os.unlink(row.target)
    os.sync()
    result = measure(side(row.words[0], *ways, *row.words[1:]), limit)
    return result and (*result, size_of(row.target) if row.target else 0)


def best_way(row, side, limit, create):
    if len(row.ways) == 1:
        return row.ways[0]
    return min(row.ways, key=lambda way: (turn(row, side, way, limit, create) or (limit,))[0])


def verdict(row, ratio, ours, theirs):
    """What is wanted and not there."""
    missed = []
    if ratio < row.wanted:
        missed.append("wanted: %.1fx" % row.wanted)
    if row.target and ours[2] > theirs[2] * 1.001:
        missed.append("larger: %d bytes, not %d" % (ours[2], theirs[2]))
    if row.memory and ours[1] >= theirs[1]:
        missed.append("more memory")
    return ", ".join(missed)


def run_row(name, row, img, qemu, args, create):
    row.make(create)
    way = best_way(row, qemu, args.limit, create)
    ours, theirs = [], []
    for _ in range(args.runs):
        for side, ways, results in ((img, (), ours), (qemu, way, theirs))[:1 if row.alone else 2]:
            if None not in results:
                results.append(turn(row, side, ways, args.limit, create))
    if None in ours:
        print("%-20s FAILED: more than %d s" % (name, args.limit))
        return False
    seconds = statistics.median(r[0] for r in ours)
    most = [max(r[i] for r in ours) for i in range(3)]
    if row.alone:
        print("%-20s %8.2f s %10s %7s %9d" % (name, seconds, "", "", most[1]), flush=True)
        return True
    if None in theirs:
        print("%-20s %8.2f s %8s s %7s %9d %9s  met (ours has less than a half of that)" % (
            name, seconds, ">%d" % args.limit, "", most[1], "")
            if seconds * 2 < args.limit else "%-20s: not known: qemu-img takes more than %d s" % (name, args.limit))
        return True
    other = statistics.median(r[0] for r in theirs)
    missed = verdict(row, other / seconds, most, [max(r[i] for r in theirs) for i in range(3)])
    print("%-20s %8.2f s %8.2f s %6.2fx %9d %9d  %s" % (
        name, seconds, other, other / seconds, most[1], max(r[1] for r in theirs),
        "NOT MET (%s)" % missed if missed else "met") + ("  [qemu-img %s]" % " ".join(way) if way else ""), flush=True)
    return not missed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--img", default="build/server/nbdcow-img")
    parser.add_argument("--qemu-img", default="qemu-img")
    parser.add_argument("--dir", default=None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=" ".join(ROWS))
    args = parser.parse_args()
    unknown = [r for r in args.rows if r not in ROWS]
    if unknown:
        sys.exit("no row '%s': there are %s" % (unknown[0], " ".join(ROWS)))
    img = os.path.abspath(args.img)
    root = os.environ.get("PEER_ROOT", "").rstrip("/")
    parent = args.dir or (root + "/tmp" if root else None)
    if root and not os.path.abspath(parent).startswith(root + "/"):
        sys.exit("--dir %s is not inside of PEER_ROOT %s, so qemu-img could not see it" % (parent, root))

    missed = []
    print("%-20s %10s %10s %7s %9s %9s" % ("row", "nbdcow-img", "qemu-img", "ratio", "KiB", "KiB qemu"), flush=True)
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        os.chdir(directory)
        ours = Side([img], directory)
        qemu = Side([*(["chroot", root] if root else []), args.qemu_img], directory[len(root):])

        def create(*words):
            subprocess.run(qemu("create", "-q", "-f", "qcow2", *words), check=True)

        for name in args.rows or ROWS:
            if not run_row(name, ROWS[name], ours, qemu, args, create):
                missed.append(name)
            for f in os.listdir("."):
                os.unlink(f)
    print("not met: " + ", ".join(missed) if missed else "all met")


main()
