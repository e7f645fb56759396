#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes images that the format allows and nobody writes.

    odd.py SEED DIR

writes DIR/disk.qcow2, DIR/model (what the guest sees) and, for each internal snapshot, DIR/snapshot-ID
(what the guest saw), DIR/exotic if QEMU cannot read its bitmaps, and prints a line for people: what is odd about it.  A
backing file, if there is one, is DIR/below.raw.

Made from the format's description alone.  Everything that it leaves open is drawn by lot: where in the
file each table is, in which order, with what between them; the length of the header, and what is in it
beyond the fields that are known; header extensions of unknown kinds, of any length, in any order; L1 and
refcount tables longer than they need be; refcount blocks only where something is counted; compressed
data at any byte, across clusters, and with more sectors than it fills; host clusters and L2 tables that
several snapshots and the disk share, at different guest offsets; snapshots with extra data that nobody knows, of
another disk size; a file that ends in the middle of a cluster; a backing file of any length, whose name is anywhere in the
first cluster and whose format is padded; bitmaps (odd_bitmaps.py); features that nobody knows and need not.
"""

import os
import random
import struct
import sys
import zlib

import odd_bitmaps

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
KNOWN = (0, 0xE2792ACA, 0x6803F857, 0x23852875, 0x0537BE77, 0x44415441, 0x48414C43, 0x4E424353)


class Builder:
    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        self.version = rng.choice((2, 3, 3, 3))
        self.bits = rng.choice((9, 10, 11, 12, 12, 13, 14, 15, 16))
        self.extended = self.version == 3 and self.bits >= 14 and rng.random() < 0.5
        self.order = 4 if self.version == 2 else rng.randrange(7)
        self.max_count = (1 << (1 << self.order)) - 1
        self.cluster = 1 << self.bits
        self.guest = rng.randrange(3, 60 if self.bits >= 14 else 300)
        self.size = self.guest * self.cluster - rng.randrange(self.cluster // 512) * 512
        self.entry = 16 if self.extended else 8
        self.per_table = self.cluster // self.entry
        self.below = None
        if rng.random() < 0.4:
            self.below = rng.randbytes(rng.randrange(1, self.size + 2 * self.cluster))
        self.bitmaps = None
        self.file = {}  # host cluster: bytearray
        self.count = {0: 1}
        self.wanted = 4 * self.guest + 80
        per_block = self.cluster * 8 >> self.order
        # Room for the blocks, too.
        self.pool = self.wanted + self.wanted // max(per_block // 2, 1) + 40
        # (host cluster, contents) that other disks may refer to.  Not the disk itself: once one of two
        # guest clusters that share it is written, nobody can tell that the other has it alone.
        self.shared, self.fresh = [], []
        self.packing = None  # [next byte, end] of a run of compressed data

    # ---- host clusters ----------------------------------------------------------------------

    def take(self, n=1):
        """N clusters side by side, somewhere; each is counted once."""
        for _ in range(10000):
            at = self.rng.randrange(1, self.pool - n)
            if not any(at + i in self.count for i in range(n)):
                for i in range(n):
                    self.count[at + i] = 1
                return at
        at = self.pool  # nothing that long is left between the others
        self.pool += n
        for i in range(n):
            self.count[at + i] = 1
        return at

    def put(self, offset, data):
        while data:
            cluster, inside = divmod(offset, self.cluster)
            n = min(len(data), self.cluster - inside)
            buf = self.file.setdefault(cluster, bytearray(self.cluster))
            buf[inside : inside + n] = data[:n]
            offset += n
            data = data[n:]

    # ---- guest clusters ---------------------------------------------------------------------

    def contents(self):
        kind = self.rng.randrange(3)
        if kind == 0:
            return self.rng.randbytes(self.cluster)
        if kind == 1:
            return (b"%d " % self.rng.randrange(1000) * self.cluster)[: self.cluster]
        part = self.rng.randrange(1, self.cluster)
        return (self.rng.randbytes(min(part, 700)) + bytes(self.cluster))[: self.cluster]

    def compressed(self, data):
        """An entry for DATA, or None if that does not get smaller."""
        c = zlib.compressobj(self.rng.randrange(10), zlib.DEFLATED, -12)
        stream = c.compress(data) + c.flush()
        if len(stream) >= self.cluster:
            return None
        if not self.packing or self.packing[0] + len(stream) + 600 > self.packing[1]:
            n = self.rng.randrange(2, 5)
            at = self.take(n)
            for i in range(n):
                self.count[at + i] = 0
            self.packing = [at * self.cluster + self.rng.randrange(64), (at + n) * self.cluster]
        at = self.packing[0]
        sectors = (at + len(stream) - 1) // 512 - at // 512 + 1
        # More than it takes, if that is still in the run and can be said.
        if self.rng.random() < 0.3 and (at // 512 + sectors + 1) * 512 <= self.packing[1]:
            sectors += 1
        if sectors > 1 << (self.bits - 8):
            return None
        last = ((at // 512 + sectors) * 512 - 1) // self.cluster
        touched = range(at // self.cluster, last + 1)
        if any(self.count[c] == self.max_count for c in touched):
            self.packing = None
            return None
        for c in touched:
            self.count[c] += 1
        self.put(at, stream)
        self.packing[0] = at + len(stream) + self.rng.choice((0, 0, 0, 1, 7, 100))
        shift = 62 - (self.bits - 8)
        return COMPRESSED | (sectors - 1) << shift | at

    def under(self, guest):
        """What is seen of a guest cluster that is not there."""
        part = self.below[guest * self.cluster : (guest + 1) * self.cluster] if self.below else b""
        return part + bytes(self.cluster - len(part))

    def guest_cluster(self, guest):
        """(descriptor, subclusters, contents)"""
        rng = self.rng
        kind = rng.randrange(7)
        every = (1 << 32) - 1
        if kind == 0:
            return 0, 0, self.under(guest)
        if kind == 1 and self.version == 3:
            return (0, every << 32, bytes(self.cluster)) if self.extended else (ZERO, 0, bytes(self.cluster))
        data = self.contents()
        if kind in (2, 3):
            entry = self.compressed(data)
            if entry is not None:
                return entry, 0, data
        if kind == 4 and self.shared and self.max_count > 1:
            # The same host cluster as another one's: it is nobody's alone.
            host, same = rng.choice(self.shared)
            if self.count[host] < self.max_count:
                self.count[host] += 1
                return host * self.cluster, every if self.extended else 0, same
        host = self.take()
        self.put(host * self.cluster, data)
        if kind == 5 and self.version == 3 and not self.extended:
            return host * self.cluster | ZERO, 0, bytes(self.cluster)
        if self.extended and rng.random() < 0.6:
            alloc = rng.getrandbits(32)
            zero = rng.getrandbits(32) & ~alloc
            sub = self.cluster // 32
            under = self.under(guest)
            seen = b"".join(
                bytes(sub) if zero >> i & 1 else (data if alloc >> i & 1 else under)[i * sub : (i + 1) * sub]
                for i in range(32)
            )
            return host * self.cluster, alloc | zero << 32, seen
        self.fresh.append((host, data))
        return host * self.cluster, every if self.extended else 0, data

    def write_table(self, at, entries):
        fmt = ">2Q" if self.extended else ">Q"
        for i, (descriptor, sub) in enumerate(entries):
            if descriptor or sub:
                self.put(at + i * self.entry, struct.pack(fmt, *(descriptor, sub)[: self.entry // 8]))

    # ---- disks: an L1 table, and what the guest sees ------------------------------------------

    def disk(self, clusters, before):
        """A disk of CLUSTERS; shares what it can with BEFORE, the disk made last."""
        rng = self.rng
        l1, l2, seen = [], [], []
        for first in range(0, clusters, self.per_table):
            n = min(self.per_table, clusters - first)
            index = first // self.per_table
            if before and index < len(before["l1"]) and rng.random() < 0.4 and self.max_count > 1:
                # The same L2 table.
                host = before["l1"][index]
                same = before["seen"][first : first + n]
                whole = len(before["seen"]) >= first + n
                if whole and (host == 0 or self.count[host] < self.max_count):
                    if host:
                        # What the table refers to is referred to once more.
                        touched = {}
                        for d, _ in before["l2"][index]:
                            for c in self.referred(d):
                                touched[c] = touched.get(c, 0) + 1
                        if any(self.count[c] + k > self.max_count for c, k in touched.items()):
                            touched = None
                        else:
                            for c, k in touched.items():
                                self.count[c] += k
                            self.count[host] += 1
                    else:
                        touched = {}
                    if touched is not None:
                        l1.append(host)
                        l2.append(before["l2"][index])
                        seen += same
                        continue
            if rng.random() < 0.1:
                l1.append(0)
                l2.append([])
                seen += [self.under(first + i) for i in range(n)]
                continue
            entries = []
            for i in range(n):
                d, sub, data = self.guest_cluster(first + i)
                entries.append((d, sub))
                seen.append(data)
            l1.append(self.take())
            l2.append(entries)
        self.shared += self.fresh
        self.fresh = []
        return {"l1": l1, "l2": l2, "seen": seen}

    def referred(self, descriptor):
        """Host clusters that an entry refers to."""
        if descriptor & COMPRESSED:
            shift = 62 - (self.bits - 8)
            at = descriptor & ((1 << shift) - 1)
            sectors = (descriptor >> shift & (1 << (self.bits - 8)) - 1) + 1
            last = ((at // 512 + sectors) * 512 - 1) // self.cluster
            return list(range(at // self.cluster, last + 1))
        host = (descriptor & 0x00FFFFFFFFFFFE00) // self.cluster
        return [host] if host else []

    def write_disk(self, disk, active):
        """Its tables; only now is it known what is nobody else's."""
        rng = self.rng
        for host, entries in zip(disk["l1"], disk["l2"]):
            if host == 0:
                continue
            out = []
            for d, sub in entries:
                mine = self.referred(d)
                if mine and not d & COMPRESSED and self.count[mine[0]] == 1:
                    d |= COPIED
                out.append((d, sub))
            self.write_table(host * self.cluster, out)
        # Longer than need be.
        l1 = list(disk["l1"]) + [0] * rng.choice((0, 0, 1, 5, 40))
        n = (len(l1) * 8 + self.cluster - 1) // self.cluster
        at = self.take(n) * self.cluster
        for i, host in enumerate(l1):
            if host:
                flag = COPIED if active and self.count[host] == 1 else 0
                self.put(at + 8 * i, struct.pack(">Q", host * self.cluster | flag))
        return at, len(l1)

    # ---- the rest of the file -----------------------------------------------------------------

    def write_snapshots(self, snapshots):
        rng = self.rng
        table = b""
        for s in snapshots:
            at, entries = self.write_disk(s["disk"], False)
            extra = b""
            if self.version == 3:
                extra = struct.pack(">QQ", 0, s["size"])
                if rng.random() < 0.5:
                    extra += struct.pack(">Q", rng.getrandbits(40))
                    extra += rng.randbytes(rng.choice((0, 0, 1, 8, 33, 1000)))
            name = s["name"].encode()
            ident = s["id"].encode()
            entry = struct.pack(
                ">QIHHIIQII", at, entries, len(ident), len(name), rng.getrandbits(31), 5, 7, 0, len(extra)
            )
            entry += extra + ident + name
            table += entry + bytes(-len(entry) % 8)
        n = (len(table) + self.cluster - 1) // self.cluster
        at = self.take(n) * self.cluster
        self.put(at, table)
        return at

    def write_counts(self):
        per_block = self.cluster * 8 >> self.order
        self.pool += self.pool // (per_block // 2) + 16  # for the blocks and their table
        blocks = (self.pool + per_block - 1) // per_block
        longer = self.rng.randrange(3)
        clusters = (blocks * 8 + self.cluster - 1) // self.cluster + longer
        table = self.take(clusters)
        place = {}
        for index in range(blocks):
            place[index] = None
        # A block is needed where something is counted, which blocks are, too.
        while True:
            need = {c // per_block for c, n in self.count.items() if n}
            missing = [i for i in need if place[i] is None]
            if not missing:
                break
            for i in missing:
                place[i] = self.take()
        for index, host in place.items():
            if host is None:
                continue
            self.put(table * self.cluster + 8 * index, struct.pack(">Q", host * self.cluster))
            width = 1 << self.order
            data = bytearray(self.cluster)
            for i in range(per_block):
                n = self.count.get(index * per_block + i, 0)
                if width >= 8:
                    data[i * width // 8 : (i + 1) * width // 8] = n.to_bytes(width // 8, "big")
                else:
                    data[i * width // 8] |= n << (i * width % 8)
            self.put(host * self.cluster, bytes(data))
        return table * self.cluster, clusters

    def write_header(self, l1, counts, snapshots_at, n_snapshots):
        rng = self.rng
        length = 72
        if self.version == 3:
            length = rng.choice((104, 112, 112, 120, 136, 256 if self.bits > 9 else 128))
        head = struct.pack(
            ">4sIQIIQIIQQIIQ",
            b"QFI\xfb",
            self.version,
            0,
            0,
            self.bits,
            self.size,
            0,
            l1[1],
            l1[0],
            counts[0],
            counts[1],
            n_snapshots,
            snapshots_at,
        )
        if self.version == 3:
            # Those that are not known are at bits 20 and 40.
            compatible = rng.choice((0, 1)) | rng.choice((0, 1 << 20))
            autoclear = (1 if self.bitmaps else 0) | rng.choice((0, 1 << 40))
            head += struct.pack(
                ">QQQII", 16 if self.extended else 0, compatible, autoclear, self.order, length
            )
        head += bytes(112 - len(head)) if length > 104 else b""
        # Fields of a later day.
        head += rng.randbytes(length - len(head)) if length > len(head) else b""
        extensions = 0
        known = []
        if self.below:
            known.append((0xE2792ACA, b"raw" + bytes(rng.choice((0, 0, 1, 5)))))
        if self.bitmaps:
            known.append((odd_bitmaps.EXTENSION, self.bitmaps))
        if self.version == 3 and rng.random() < 0.3:
            known.append((0x6803F857, struct.pack(">BB46s", 1, 20, b"something " * 4) * rng.randrange(2)))
        rng.shuffle(known)
        while known or rng.random() < 0.75:
            if known and rng.random() < 0.5:
                magic, data = known.pop()
                head += struct.pack(">II", magic, len(data)) + data + bytes(-len(data) % 8)
                continue
            magic = rng.getrandbits(32)
            data = rng.randbytes(rng.choice((0, 1, 5, 8, 13, 64, 200)))
            data_len = len(data) + -len(data) % 8
            if magic in KNOWN or len(head) + 8 + data_len + 8 > self.cluster - 260:
                continue
            head += struct.pack(">II", magic, len(data)) + data + bytes(-len(data) % 8)
            extensions += 1
        self.put(0, head + bytes(8))
        if self.below:
            name = b"below.raw"
            at = rng.randrange(len(head) + 8, self.cluster - len(name) + 1)
            self.put(at, name)
            self.put(8, struct.pack(">QI", at, len(name)))
        return length, extensions

    def build(self, directory):
        rng = self.rng
        snapshots = []
        before = None
        n = rng.choice((0, 1, 3)) if self.max_count > 1 else rng.choice((0, 1))
        names = ["one", "Zwei \u00e4\u00f6\u00fc", "3", "with spaces and / in it"]
        for i in range(n):
            size = self.size
            if self.version == 3 and rng.random() < 0.4:
                size = rng.randrange(1, self.size // 512 + 1) * 512
            before = self.disk((size + self.cluster - 1) // self.cluster, before)
            snapshots.append({"disk": before, "size": size, "id": str(3 * i + 1), "name": names[i]})
        active = self.disk(self.guest, before)
        l1 = self.write_disk(active, True)
        at = self.write_snapshots(snapshots) if snapshots else 0
        exotic = rng.random() < 0.5
        if self.version == 3 and rng.random() < 0.5:
            self.bitmaps = odd_bitmaps.draw(self, exotic)
            if exotic:
                with open(os.path.join(directory, "exotic"), "wb"):
                    pass
        counts = self.write_counts()
        length, extensions = self.write_header(l1, counts, at, n)
        end = (max(c for c, k in self.count.items() if k) + 1) * self.cluster
        with open(os.path.join(directory, "disk.qcow2"), "wb") as f:
            f.truncate(end)
            for cluster, data in self.file.items():
                f.seek(cluster * self.cluster)
                f.write(data)
        if self.below:
            with open(os.path.join(directory, "below.raw"), "wb") as f:
                f.write(self.below)
        for name, disk, size in [("model", active, self.size)] + [
            ("snapshot-" + s["id"], s["disk"], s["size"]) for s in snapshots
        ]:
            with open(os.path.join(directory, name), "wb") as f:
                f.write(b"".join(disk["seen"])[:size])
        print(
            "version %d, clusters of %d%s, %d-bit counts, header of %d, %d unknown extensions, %d snapshots, "
            "%d bytes%s%s"
            % (
                self.version,
                self.cluster,
                " (subclusters)" if self.extended else "",
                1 << self.order,
                length,
                extensions,
                n,
                self.size,
                ", over %d" % len(self.below) if self.below else "",
                (", exotic bitmaps" if exotic else ", bitmaps") if self.bitmaps else "",
            )
        )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    Builder(int(sys.argv[1])).build(sys.argv[2])
