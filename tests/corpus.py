#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Damaged qcow2 images, by name: a sound image in, one with this damage out.

    corpus.py list                   the names, one a line, each with what it says
    corpus.py make NAME FROM TO      prints the guest clusters that no repair can bring back

FROM was made by qemu-img (version 3, refcounts of 16 bits, no extended L2 entries) and has data from its beginning, one
snapshot, and compressed clusters at its end.
"""

import sys

OFFSET, COPIED, COMPRESSED = 0x00FFFFFFFFFFFE00, 1 << 63, 1 << 62
CASES = {}


class Image:
    def __init__(self, name):
        with open(name, "rb") as f:
            self.d = bytearray(f.read())
        self.cluster = 1 << self.get(20, 4)
        self.size = self.get(24)
        self.l1, self.l1_size = self.get(40), self.get(36, 4)
        self.reftable = self.get(48)
        self.clusters = -(-len(self.d) // self.cluster)
        self.lost = set()

    def get(self, at, n=8):
        return int.from_bytes(self.d[at:at + n], "big")

    def put(self, at, value, n=8):
        if at + n > len(self.d):
            self.d += bytes(at + n - len(self.d))
        self.d[at:at + n] = (value & (1 << 8 * n) - 1).to_bytes(n, "big")

    def refcount(self, cluster):
        """Where its count is."""
        per_block = self.cluster // 2
        return (self.get(self.reftable + 8 * (cluster // per_block)) & OFFSET) + 2 * (cluster % per_block)

    def l2(self, guest):
        """Where the entry of a guest cluster is; 0: it has no table."""
        per_table = self.cluster // 8
        table = self.get(self.l1 + 8 * (guest // per_table)) & OFFSET
        return table + 8 * (guest % per_table) if table else 0

    def guests(self, compressed=False):
        """Those with data of their own."""
        for g in range(-(-self.size // self.cluster)):
            e = self.l2(g) and self.get(self.l2(g))
            if e and bool(e & COMPRESSED) == compressed and (compressed or e & OFFSET):
                yield g

    def host(self, guest):
        return self.get(self.l2(guest)) & OFFSET

    def unshared(self):
        return [g for g in self.guests() if self.get(self.refcount(self.host(g) // self.cluster), 2) == 1]

    def shared(self):
        return [g for g in self.guests() if self.get(self.refcount(self.host(g) // self.cluster), 2) > 1]

    def lose_table(self, l1_index):
        per_table = self.cluster // 8
        self.lost.update(range(l1_index * per_table, (l1_index + 1) * per_table))

    def extend(self, clusters=1):
        at = self.clusters * self.cluster
        self.d += bytes(at + clusters * self.cluster - len(self.d))
        self.clusters += clusters
        return at


def case(what):
    def add(function):
        CASES[function.__name__.replace("_", "-")] = (what, function)
        return function
    return add


# ---- refcounts -------------------------------------------------------------------------------

@case("data that is said to be free")
def count_of_data_zero(i):
    for g in i.unshared()[:5]:
        i.put(i.refcount(i.host(g) // i.cluster), 0, 2)


@case("data with a count that is too high")
def count_of_data_high(i):
    for g in i.unshared()[:5]:
        i.put(i.refcount(i.host(g) // i.cluster), 7, 2)


@case("data shared with a snapshot, counted once")
def count_of_shared_low(i):
    for g in i.shared()[:5]:
        i.put(i.refcount(i.host(g) // i.cluster), 1, 2)


@case("compressed data that is said to be free")
def count_of_compressed_zero(i):
    g = next(i.guests(compressed=True))
    bits = i.cluster.bit_length() - 1
    host = i.get(i.l2(g)) & ((1 << (62 - (bits - 8))) - 1)
    i.put(i.refcount(host // i.cluster), 0, 2)


@case("the L1 table is said to be free")
def count_of_l1_zero(i):
    i.put(i.refcount(i.l1 // i.cluster), 0, 2)


@case("L2 tables are said to be free")
def count_of_l2_zero(i):
    for n in range(i.l1_size):
        if i.get(i.l1 + 8 * n):
            i.put(i.refcount((i.get(i.l1 + 8 * n) & OFFSET) // i.cluster), 0, 2)


@case("the header and the refcount table are said to be free")
def count_of_header_zero(i):
    i.put(i.refcount(0), 0, 2)
    i.put(i.refcount(i.reftable // i.cluster), 0, 2)


@case("a refcount block is said to be free")
def count_of_block_zero(i):
    i.put(i.refcount((i.get(i.reftable) & OFFSET) // i.cluster), 0, 2)


@case("clusters that nothing refers to")
def leaks(i):
    at = i.extend(8)
    for n in range(8):
        i.put(i.refcount(at // i.cluster + n), 1 + n % 3, 2)


# ---- refcount structures ---------------------------------------------------------------------

@case("no refcounts at all")
def reftable_empty(i):
    i.d[i.reftable:i.reftable + i.cluster] = bytes(i.cluster)


@case("the first refcount block is gone")
def block_gone(i):
    i.put(i.reftable, 0)


@case("the first refcount block is all zeros")
def block_zeroed(i):
    at = i.get(i.reftable) & OFFSET
    i.d[at:at + i.cluster] = bytes(i.cluster)


@case("the first refcount block is past the end of the file")
def block_past_end(i):
    i.put(i.reftable, (i.clusters + 1000) * i.cluster)


@case("the first refcount block begins within a cluster")
def block_misaligned(i):
    i.put(i.reftable, i.get(i.reftable) + 512)


@case("two entries of the refcount table lead to one block")
def block_twice(i):
    i.put(i.reftable + 8, i.get(i.reftable))


@case("the refcount table leads to an L2 table")
def block_is_l2(i):
    i.put(i.reftable, i.get(i.l1) & OFFSET)


@case("the refcount table leads to the L1 table")
def block_is_l1(i):
    i.put(i.reftable, i.l1)


@case("reserved bits in a refcount table entry")
def block_reserved_bits(i):
    i.put(i.reftable, i.get(i.reftable) | 0x100)


@case("the header says that the refcount table begins within a cluster")
def reftable_misaligned(i):
    i.put(48, i.reftable + 512 if i.cluster > 512 else i.reftable + 1)


@case("the header says that the refcount table is past the end of the file")
def reftable_past_end(i):
    i.put(48, (i.clusters + 1000) * i.cluster)


@case("the header names no refcount table")
def reftable_nowhere(i):
    i.put(48, 0)


@case("the refcount table has no clusters")
def reftable_no_clusters(i):
    i.put(56, 0, 4)


@case("the refcount table is larger than any can be")
def reftable_too_large(i):
    i.put(56, 0x7fffffff, 4)


@case("the header takes the L1 table for the refcount table")
def reftable_is_l1(i):
    i.put(48, i.l1)


# ---- mapping ---------------------------------------------------------------------------------

@case("COPIED flags are missing")
def copied_missing(i):
    for g in i.unshared()[:9]:
        i.put(i.l2(g), i.get(i.l2(g)) & ~COPIED)


@case("COPIED flags on what a snapshot shares")
def copied_wrong(i):
    for g in i.shared()[:9]:
        i.put(i.l2(g), i.get(i.l2(g)) | COPIED)


@case("the COPIED flag of an L2 table is missing")
def copied_missing_in_l1(i):
    i.put(i.l1, i.get(i.l1) & ~COPIED)


@case("two guest clusters have one host cluster")
def mapped_twice(i):
    a, b = i.unshared()[:2]
    i.put(i.l2(b), i.get(i.l2(a)))
    i.lost.add(b)


@case("data past the end of the file")
def data_past_end(i):
    g = i.unshared()[3]
    i.put(i.l2(g), (i.clusters + 500) * i.cluster | COPIED)
    i.lost.add(g)


@case("data that begins within a cluster")
def data_misaligned(i):
    g = i.unshared()[3]
    i.put(i.l2(g), i.get(i.l2(g)) + 512)
    i.lost.add(g)


@case("reserved bits in an L2 entry")
def data_reserved_bits(i):
    i.put(i.l2(i.unshared()[3]), i.get(i.l2(i.unshared()[3])) | 1 << 57)


@case("an L2 table past the end of the file")
def table_past_end(i):
    i.put(i.l1, (i.clusters + 500) * i.cluster | COPIED)
    i.lose_table(0)


@case("an L2 table that begins within a cluster")
def table_misaligned(i):
    i.put(i.l1, i.get(i.l1) + 512)
    i.lose_table(0)


@case("the file ends too early")
def cut_off(i):
    end = max(i.host(g) for g in i.unshared())
    i.lost.update(g for g in i.guests() if i.host(g) >= end)
    i.lost.update(i.guests(compressed=True))
    del i.d[end + 512:]


# ---- marks -----------------------------------------------------------------------------------

@case("marked dirty, with refcounts of before")
def dirty(i):
    i.put(72, i.get(72) | 1)
    for g in i.unshared()[:5]:
        i.put(i.refcount(i.host(g) // i.cluster), 0, 2)


@case("marked corrupt, and sound")
def corrupt(i):
    i.put(72, i.get(72) | 2)


def main(argv):
    if argv[1:] == ["list"]:
        for name, (what, _) in CASES.items():
            print(name, what)
    elif len(argv) == 5 and argv[1] == "make" and argv[2] in CASES:
        i = Image(argv[3])
        CASES[argv[2]][1](i)
        with open(argv[4], "wb") as f:
            f.write(i.d)
        print(*sorted(i.lost))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv)
