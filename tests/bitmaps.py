#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Dirty bitmaps, from outside.

    bitmaps.py ops URI COUNT SALT     COUNT random operations (SEED and SALT say which; GRAIN, the
                                      cluster size, is what trims are multiples of)
    bitmaps.py bits URI NAME          prints "OFFSET LENGTH" for each dirty stretch
    bitmaps.py between URI NAME GRANULARITY FILE   each granule is dirty only if its byte in FILE has
                                      bit 0 set, and is if it has bit 1 set
    bitmaps.py covers MAP OLD NEW     every byte that differs between the raw files OLD and NEW lies
                                      in a stretch of MAP, which the command above printed
"""

import os
import random
import sys

SEED = os.environ.get("SEED", "0")
GRAIN = int(os.environ.get("GRAIN", "65536"))


def die(text):
    sys.exit("bitmaps.py: SEED=%s: %s" % (SEED, text))


def connect(uri, context=None):
    import nbd

    h = nbd.NBD()
    if context:
        h.add_meta_context(context)
    h.connect_uri(uri)
    return h


def ops(uri, count, salt):
    import nbd

    h = connect(uri)
    size = h.get_size()
    r = random.Random("%s:%s" % (SEED, salt))
    for _ in range(count):
        kind = r.choice(["write", "write", "write", "zero", "zero-keep", "trim", "flush"])
        unit = r.choice([512, 512, 4096, GRAIN])
        length = min(unit * r.randint(1, 8), 1 << 20, size)
        offset = r.randrange(0, size - length + 1) // unit * unit
        if kind == "trim":
            offset = offset // GRAIN * GRAIN
            length = length // GRAIN * GRAIN
            if length > 0:
                h.trim(length, offset)
        elif kind == "zero":
            h.zero(length, offset)
        elif kind == "zero-keep":
            h.zero(length, offset, nbd.CMD_FLAG_NO_HOLE)
        elif kind == "flush":
            h.flush()
        else:
            h.pwrite(bytes([r.randint(1, 255)]) * length, offset)
    h.shutdown()


def dirty(uri, name):
    context = "qemu:dirty-bitmap:" + name
    h = connect(uri, context)
    if not h.can_meta_context(context):
        die("%s does not offer %s" % (uri, context))
    size = h.get_size()
    runs = []
    offset = 0

    def extent(ctx, at, entries, error):
        nonlocal offset
        if ctx != context:
            return
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags & 1:
                if runs and runs[-1][0] + runs[-1][1] == at:
                    runs[-1][1] += length
                else:
                    runs.append([at, length])
            at += length
        offset = at

    while offset < size:
        h.block_status(min(size - offset, 1 << 30), offset, extent)
    h.shutdown()
    return runs


def covers(name, old, new):
    covered = [tuple(map(int, line.split())) for line in open(name)]
    a = open(old, "rb").read()
    b = open(new, "rb").read()
    n = max(len(a), len(b))
    a, b = bytearray(a.ljust(n, b"\0")), bytearray(b.ljust(n, b"\0"))
    for at, length in covered:
        a[at : at + length] = b[at : at + length]
    if a != b:
        at = next(i for i in range(n) if a[i] != b[i])
        die("%s: byte %d changed and is not dirty" % (name, at))


def between(uri, name, granularity, file):
    bits = open(file, "rb").read()
    found = bytearray(len(bits))
    for at, length in dirty(uri, name):
        for i in range(at // granularity, (at + length + granularity - 1) // granularity):
            found[i] = 1
    for i, (byte, is_dirty) in enumerate(zip(bits, found)):
        if is_dirty and not byte & 1:
            die("%s: granule %d is dirty and nothing was changed there" % (name, i))
        if byte & 2 and not is_dirty:
            die("%s: granule %d is not dirty and was changed" % (name, i))


def main(argv):
    if argv[1:2] == ["ops"]:
        ops(argv[2], int(argv[3]), argv[4])
    elif argv[1:2] == ["bits"]:
        for at, length in dirty(argv[2], argv[3]):
            print(at, length)
    elif argv[1:2] == ["between"]:
        between(argv[2], argv[3], int(argv[4]), argv[5])
    elif argv[1:2] == ["covers"]:
        covers(*argv[2:5])
    else:
        sys.exit(__doc__)


main(sys.argv)
