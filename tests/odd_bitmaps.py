#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Dirty bitmaps as the format allows them, for odd.py, and what a writer has made of them.

    odd_bitmaps.py judge BEFORE AFTER OLD NEW

BEFORE and AFTER are images, OLD and NEW raw files with what their guests see.  Bitmaps that must follow the disk have
kept their bits and have one for all that differs; those with extra data that is not declared compatible are marked in use if
they should have followed; the others, and what all of them have beside their bits, are as they were.
"""

import struct
import sys

import qcow2

EXTENSION = 0x23852875
IN_USE, AUTO, COMPATIBLE = 1, 2, 4
OFFSET = 0x00FFFFFFFFFFFE00


def draw(builder, exotic):
    """Puts some into BUILDER's image; its header extension.  EXOTIC: also what QEMU does not read."""
    rng = builder.rng
    directory, names = b"", set()
    n = rng.randrange(1, 5)
    for i in range(n):
        granularity = rng.randrange(9, 24)
        name = ("bitmap %d \u00e4" % i).encode()[: rng.randrange(8, 12)]
        extra, flags = b"", rng.choice((0, AUTO, AUTO))
        if exotic:
            granularity = rng.choice((rng.randrange(4, 64), granularity))
            name += b"x" * rng.choice((0, 0, 1100, 5000))
            if rng.random() < 0.5:
                extra = rng.randbytes(rng.choice((1, 8, 100)))
                flags |= rng.choice((0, COMPATIBLE))
        if rng.random() < 0.2:
            flags |= IN_USE
        if name in names:
            continue
        names.add(name)
        # Few enough bits to be written here.
        while (builder.size >> granularity) > 1 << 20:
            granularity += 1
        bits = -(-builder.size // (1 << granularity))
        size = -(-bits // 8)
        table = []
        for at in range(0, size, builder.cluster):
            kind = rng.randrange(4)
            if kind < 2:
                table.append(kind)  # all clean, all dirty
                continue
            host = builder.take()
            left = min(bits - at * 8, builder.cluster * 8)
            value = rng.getrandbits(left) & rng.getrandbits(left) if kind == 2 else 1 << rng.randrange(left)
            builder.put(host * builder.cluster, value.to_bytes(-(-left // 8), "little"))
            table.append(host * builder.cluster)
        at = builder.take(-(-len(table) * 8 // builder.cluster))
        builder.put(at * builder.cluster, struct.pack(">%dQ" % len(table), *table))
        entry = struct.pack(
            ">QIIBBHI", at * builder.cluster, len(table), flags, 1, granularity, len(name), len(extra)
        )
        entry += extra + name
        directory += entry + bytes(-len(entry) % 8)
    at = builder.take(-(-len(directory) // builder.cluster))
    builder.put(at * builder.cluster, directory)
    return struct.pack(">IIQQ", len(names), 0, len(directory), at * builder.cluster)


def read(name):
    """[(name, flags, granularity, extra data, bits as a number)] in the order of the directory."""
    image = qcow2.Image(name)
    found = [data for magic, data in image.extensions()[0] if magic == EXTENSION]
    if not found or not image.get("autoclear_features") & 1:
        return []
    n, _, size, offset = struct.unpack(">IIQQ", found[0])
    directory, at, out = image.pread(offset, size), 0, []
    for _ in range(n):
        table, entries, flags, _, granularity, name_size, extra_size = struct.unpack_from(
            ">QIIBBHI", directory, at
        )
        at += 24
        extra = directory[at : at + extra_size]
        label = directory[at + extra_size : at + extra_size + name_size]
        at += extra_size + name_size
        at += -at % 8
        bits = b""
        for entry in image.table(table, entries):
            host = entry & OFFSET
            bits += image.pread(host, image.cluster) if host else bytes([255 * (entry & 1)]) * image.cluster
        count = -(-image.get("size") // (1 << granularity))
        out.append((label, flags, granularity, extra, int.from_bytes(bits, "little") & (1 << count) - 1))
    return out


def differing(old, new):
    """Offsets of 512 bytes of which some differ."""
    with open(old, "rb") as a, open(new, "rb") as b:
        x, y = a.read(), b.read()
    return [at for at in range(0, len(x), 512) if x[at : at + 512] != y[at : at + 512]]


def judge(before, after, old, new):
    was, now = read(before), read(after)
    if [w[0] for w in was] != [n[0] for n in now]:
        sys.exit("bitmaps are %s, not %s" % ([n[0] for n in now], [w[0] for w in was]))
    changed = differing(old, new)
    for (name, flags, granularity, extra, bits), (_, flags2, granularity2, extra2, bits2) in zip(was, now):
        what = "bitmap %r (flags %#x, granularity 2^%d)" % (name[:20], flags, granularity)
        usable = not extra or flags & COMPATIBLE
        follows = flags & AUTO and usable and not flags & IN_USE
        if (granularity2, extra2) != (granularity, extra):
            sys.exit("%s: granularity 2^%d, extra data %r" % (what, granularity2, extra2))
        if flags2 != (flags if usable or not flags & AUTO else flags | IN_USE):
            sys.exit("%s: flags %#x" % (what, flags2))
        if not follows and bits2 != bits:
            sys.exit("%s: its bits have changed" % what)
        if bits & ~bits2:
            sys.exit("%s: bits were cleared" % what)
        for at in changed if follows else []:
            # Some byte of these 512 differs: with a fine bitmap, one bit of theirs.
            first, last = at >> granularity, at + 511 >> granularity
            if not bits2 >> first & (1 << last - first + 1) - 1:
                sys.exit("%s: no bit for byte %d, which has changed" % (what, at))


if __name__ == "__main__":
    if len(sys.argv) != 6 or sys.argv[1] != "judge":
        sys.exit(__doc__)
    judge(*sys.argv[2:])
