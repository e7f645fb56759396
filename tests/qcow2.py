#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A second opinion on qcow2 metadata, for tests.

Written from the format's description alone and as naively as possible, so that it shares no
mistake with the engine.  Commands:

    qcow2.py highest IMAGE           end of the highest cluster whose refcount is not 0, in bytes
    qcow2.py halc IMAGE              the recorded highest allocated offset, or "none"
    qcow2.py get IMAGE FIELD         a header field, decimal
    qcow2.py set IMAGE FIELD VALUE   overwrites it
    qcow2.py poke IMAGE OFFSET HEX   overwrites bytes
    qcow2.py l1 IMAGE INDEX [VALUE]  reads or overwrites an L1 entry
    qcow2.py l2 IMAGE GUEST [VALUE]  reads or overwrites the L2 entry of a guest offset
    qcow2.py refcount IMAGE HOST     refcount of the cluster at a host offset
    qcow2.py feature IMAGE TYPE BIT NAME   sets a feature bit (TYPE: incompatible, compatible or
                                     autoclear) and names it in the feature name table
    qcow2.py extension IMAGE MAGIC HEX     adds a header extension
    qcow2.py drop-extension IMAGE MAGIC    removes each with that magic
    qcow2.py extensions IMAGE        lists extensions: magic and data in hex, one a line
    qcow2.py snapshots IMAGE         their number
    qcow2.py later-fields IMAGE      what the header has beyond the fields that are known, in hex
"""

import os
import struct
import sys

FIELDS = {  # name: (offset, struct format)
    "magic": (0, ">I"),
    "version": (4, ">I"),
    "backing_file_offset": (8, ">Q"),
    "backing_file_size": (16, ">I"),
    "cluster_bits": (20, ">I"),
    "size": (24, ">Q"),
    "crypt_method": (32, ">I"),
    "l1_size": (36, ">I"),
    "l1_table_offset": (40, ">Q"),
    "refcount_table_offset": (48, ">Q"),
    "refcount_table_clusters": (56, ">I"),
    "nb_snapshots": (60, ">I"),
    "snapshots_offset": (64, ">Q"),
    "incompatible_features": (72, ">Q"),
    "compatible_features": (80, ">Q"),
    "autoclear_features": (88, ">Q"),
    "refcount_order": (96, ">I"),
    "header_length": (100, ">I"),
    "compression_type": (104, ">B"),
}

HALC = 0x48414C43
FEATURE_NAMES = 0x6803F857
OFFSET_MASK = 0x00FFFFFFFFFFFE00


class Image:
    def __init__(self, name, write=False):
        self.f = open(name, "r+b" if write else "rb")
        self.f.seek(0, 2)
        self.file_size = self.f.tell()
        self.v = self.get("version")
        self.cluster = 1 << self.get("cluster_bits")
        self.order = self.get("refcount_order") if self.v >= 3 else 4
        self.header_length = self.get("header_length") if self.v >= 3 else 72

    def pread(self, offset, length):
        """Reads LENGTH bytes; zeros past the end of the file."""
        self.f.seek(offset)
        data = self.f.read(length)
        return data + bytes(length - len(data))

    def pwrite(self, offset, data):
        self.f.seek(offset)
        self.f.write(data)
        self.f.flush()

    def get(self, field):
        offset, fmt = FIELDS[field]
        return struct.unpack(fmt, self.pread(offset, struct.calcsize(fmt)))[0]

    def set(self, field, value):
        offset, fmt = FIELDS[field]
        self.pwrite(offset, struct.pack(fmt, value))

    def table(self, offset, entries):
        return struct.unpack(">%dQ" % entries, self.pread(offset, 8 * entries))

    def refcount(self, cluster):
        """The refcount of one cluster, by its index."""
        per_block = self.cluster * 8 >> self.order
        entries = self.get("refcount_table_clusters") * self.cluster // 8
        index, inside = divmod(cluster, per_block)
        if index >= entries:
            return 0
        (block,) = self.table(self.get("refcount_table_offset") + 8 * index, 1)
        block &= OFFSET_MASK
        if block == 0:
            return 0
        return self.counts(self.pread(block, self.cluster))[inside]

    def counts(self, block):
        """A refcount block's counts as a list."""
        bits = 1 << self.order
        if bits >= 8:
            fmt = {8: "B", 16: "H", 32: "I", 64: "Q"}[bits]
            return struct.unpack(">%d%s" % (len(block) * 8 // bits, fmt), block)
        out = []
        for byte in block:  # least significant bits first
            for shift in range(0, 8, bits):
                out.append(byte >> shift & ((1 << bits) - 1))
        return out

    def highest(self):
        per_block = self.cluster * 8 >> self.order
        entries = self.get("refcount_table_clusters") * self.cluster // 8
        table = self.table(self.get("refcount_table_offset"), entries)
        for index in range(entries - 1, -1, -1):
            block = table[index] & OFFSET_MASK
            if block == 0:
                continue
            counts = self.counts(self.pread(block, self.cluster))
            for inside in range(per_block - 1, -1, -1):
                if counts[inside]:
                    return (index * per_block + inside + 1) * self.cluster
        return 0

    def extensions(self):
        """[(magic, data)], and the offset just past the last one."""
        end = self.get("backing_file_offset") or self.cluster
        at = self.header_length
        out = []
        while at + 8 <= end:
            magic, length = struct.unpack(">II", self.pread(at, 8))
            if magic == 0:
                break
            if length > end - at - 8:
                raise ValueError("extension %#x of %d bytes at %d passes %d" % (magic, length, at, end))
            out.append((magic, self.pread(at + 8, length)))
            at += 8 + (length + 7 & ~7)
        return out, at

    def write_extensions(self, extensions):
        """Rewrites the list, and the backing file name that comes after it."""
        name = b""
        if self.get("backing_file_offset"):
            name = self.pread(self.get("backing_file_offset"), self.get("backing_file_size"))
        area = b""
        for magic, data in extensions:
            area += struct.pack(">II", magic, len(data)) + data + bytes(-len(data) % 8)
        area += bytes(8)
        name_at = self.header_length + len(area)
        area += name
        room = self.cluster - self.header_length
        if len(area) > room:
            raise ValueError("no room in the first cluster")
        self.pwrite(self.header_length, area + bytes(room - len(area)))
        if name:
            self.set("backing_file_offset", name_at)

    def l2_entry_at(self, guest):
        """File offset of the L2 entry of a guest offset; 0 if there is no L2 table."""
        per_table = self.cluster // 8
        index, inside = divmod(guest // self.cluster, per_table)
        (l1,) = self.table(self.get("l1_table_offset") + 8 * index, 1)
        l1 &= OFFSET_MASK
        return l1 + 8 * inside if l1 else 0


def number(text):
    return int(text, 0)


def main(argv):
    command, name, args = argv[1], argv[2], argv[3:]
    changing = command in ("set", "poke", "feature", "extension", "drop-extension") or (
        command in ("l1", "l2") and len(args) == 2
    )
    img = Image(name, changing)
    if command == "highest":
        print(img.highest())
    elif command == "halc":
        found = [data for magic, data in img.extensions()[0] if magic == HALC]
        if len(found) > 1:
            raise ValueError("more than one HALC extension")
        if found and len(found[0]) != 8:
            raise ValueError("HALC extension of %d bytes" % len(found[0]))
        print(struct.unpack(">Q", found[0])[0] if found else "none")
    elif command == "get":
        print(img.get(args[0]))
    elif command == "set":
        img.set(args[0], number(args[1]))
    elif command == "poke":
        img.pwrite(number(args[0]), bytes.fromhex(args[1]))
    elif command in ("l1", "l2"):
        if command == "l1":
            at = img.get("l1_table_offset") + 8 * number(args[0])
        else:
            at = img.l2_entry_at(number(args[0]))
            if at == 0:
                raise ValueError("guest offset %s has no L2 table" % args[0])
        if changing:
            img.pwrite(at, struct.pack(">Q", number(args[1])))
        else:
            print("%#x" % img.table(at, 1)[0])
    elif command == "refcount":
        print(img.refcount(number(args[0]) // img.cluster))
    elif command == "feature":
        kind, bit, label = args[0], number(args[1]), args[2]
        field = kind + "_features"
        img.set(field, img.get(field) | 1 << bit)
        types = {"incompatible": 0, "compatible": 1, "autoclear": 2}
        entry = struct.pack(">BB46s", types[kind], bit, label.encode())
        extensions, _ = img.extensions()
        table = b"".join(data for magic, data in extensions if magic == FEATURE_NAMES)
        extensions = [e for e in extensions if e[0] != FEATURE_NAMES]
        img.write_extensions(extensions + [(FEATURE_NAMES, table + entry)])
    elif command == "extension":
        extensions, _ = img.extensions()
        img.write_extensions(extensions + [(number(args[0]), bytes.fromhex(args[1]))])
    elif command == "drop-extension":
        extensions, _ = img.extensions()
        img.write_extensions([e for e in extensions if e[0] != number(args[0])])
    elif command == "extensions":
        for magic, data in img.extensions()[0]:
            print("%#010x %s" % (magic, data.hex()))
    elif command == "snapshots":
        print(img.get("nb_snapshots"))
    elif command == "later-fields":
        print(img.pread(112, max(img.header_length - 112, 0)).hex())
    else:
        raise ValueError("unknown command " + command)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.stderr.write(__doc__)
        sys.exit(2)
    try:
        main(sys.argv)
    except (ValueError, IndexError, KeyError, OSError) as e:
        sys.exit("%s: %s: %s" % (os.path.basename(sys.argv[0]), sys.argv[2], e))
