#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""nbdcow-img beside qemu-img: seconds and peak memory, sides taken in turn, medians.

    contrib/bench/img.py [--img NBDCOW-IMG] [--qemu-img QEMU-IMG] [--dir DIR] [--runs N] [ROW...]

ROWs: check check-fragmented compare commit (default: all).  The images are made in DIR, which needs about
1.5 GiB; the ones that are checked are 1 TiB with ten million allocated clusters, their tables written
directly and their data holes.  qemu-img's check of the fragmented one takes minutes: it gets --limit seconds.
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


class Rows:
    def __init__(self, create):
        self.create = create

    def check(self):
        make_large("large", False)
        return lambda tool: [tool, "check", "-f", "qcow2", "large"], None

    def check_fragmented(self):
        make_large("fragmented", True)
        return lambda tool: [tool, "check", "-f", "qcow2", "fragmented"], None

    def compare(self):
        for name in "a", "b":
            self.create(name, "2G")
            fill(name)
        return lambda tool: [tool, "compare", "-f", "qcow2", "-F", "qcow2", "a", "b"], None

    def commit(self):
        def before():
            self.create("base", "2G")
            self.create("-b", "base", "-F", "qcow2", "top")
            fill("top")
        return lambda tool: [tool, "commit", "-q", "-f", "qcow2", "top"], before


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--img", default="build/server/nbdcow-img")
    parser.add_argument("--qemu-img", default="qemu-img")
    parser.add_argument("--dir", default=None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("rows", nargs="*")
    args = parser.parse_args()
    img = os.path.abspath(args.img)

    def create(*words):
        subprocess.run([args.qemu_img, "create", "-q", "-f", "qcow2", *words], check=True)

    rows = Rows(create)
    print("%-18s %12s %12s %7s %12s %12s" % ("row", "nbdcow-img", "qemu-img", "ratio", "KiB", "KiB qemu"))
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        os.chdir(directory)
        for row in args.rows or ["check", "check-fragmented", "compare", "commit"]:
            command, before = getattr(rows, row.replace("-", "_"))()
            ours, theirs = [], []
            for _ in range(args.runs):
                for tool, results in (img, ours), (args.qemu_img, theirs):
                    if before:
                        before()
                    if results is theirs and None in theirs:
                        continue
                    results.append(measure(command(tool), args.limit))
            seconds = statistics.median(s for s, _ in ours)
            if None in theirs:
                print("%-18s %10.2f s %9s %s %5s %12d" % (row, seconds, ">", "%d s" % args.limit, "", ours[0][1]))
                continue
            other = statistics.median(s for s, _ in theirs)
            print("%-18s %10.2f s %10.2f s %6.2fx %12d %12d" % (
                row, seconds, other, other / seconds, max(k for _, k in ours), max(k for _, k in theirs)))


main()
