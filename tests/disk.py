#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A disk and its model: random operations on an export or an image, and on a plain file beside it.

    disk.py fill FILE SIZE            makes FILE: runs of data, of one byte, and of zeros
    disk.py ops URI MODEL COUNT       COUNT random operations by NBD, every read and block status
                                      verified on the way
    disk.py verify URI MODEL          reads the whole export and its map; both must fit the model
    disk.py qemu IMAGE MODEL COUNT    COUNT random operations by qemu-io; what QEMU then reads
                                      must fit the model

The environment sets the rest: SEED, GRAIN (cluster size: operations like to sit on and beside its
multiples), NO_TRIM=1, WRITES_ONLY=1 (no zeroing either, so that nothing is ever freed), NO_FAST_ZERO=1
(for servers that zero a part before they say that they cannot), CONNECTIONS (default 2: what one
connection wrote another reads), QEMU_IMAGE (options by which QEMU's programs open the image, if its name
and format are not enough).

Discarding promises only that each byte keeps its value or reads as zero from then on, so after a
discard the model takes over what the disk shows, once that was found to be one of the two.
"""

import os
import random
import subprocess
import sys

SEED = os.environ.get("SEED", "0")
GRAIN = int(os.environ.get("GRAIN", "65536"))
WRITES_ONLY = os.environ.get("WRITES_ONLY", "0") == "1"
NO_TRIM = WRITES_ONLY or os.environ.get("NO_TRIM", "0") == "1"
NO_FAST_ZERO = os.environ.get("NO_FAST_ZERO", "0") == "1"
CONNECTIONS = int(os.environ.get("CONNECTIONS", "2"))
CHUNK = 1 << 20


def rng(*salt):
    return random.Random(":".join([SEED] + [str(s) for s in salt]))


def die(text):
    sys.exit("disk.py: SEED=%s: %s" % (SEED, text))


def load(name):
    with open(name, "rb") as f:
        return bytearray(f.read())


def store(name, data):
    with open(name, "wb") as f:
        f.write(data)


def first_difference(a, b):
    for i in range(0, len(a), 512):
        if a[i : i + 512] != b[i : i + 512]:
            for j in range(i, min(i + 512, len(a))):
                if a[j] != b[j]:
                    return j
    return len(a)


def expect(got, want, offset, what):
    if got != want:
        at = first_difference(got, want)
        die("%s: wrong byte at %d: %#x instead of %#x" % (what, offset + at, got[at], want[at]))


def old_or_zero(got, old, offset, what):
    if got == old or not any(got):
        return
    for i in range(len(got)):
        if got[i] and got[i] != old[i]:
            die("%s: byte at %d is %#x, neither zero nor the old %#x" % (what, offset + i, got[i], old[i]))


def fill(name, size):
    r = rng("fill", size)
    data = bytearray()
    while len(data) < size:
        n = r.choice([512, 4096, 65536, 200000, 1 << 20])
        n = r.randint(1, n)
        kind = r.randrange(4)
        if kind == 0:
            data += bytes(n)
        elif kind == 1:
            data += bytes([r.randrange(1, 256)]) * n
        else:
            data += r.randbytes(n)
    store(name, data[:size])


def pick_range(r, size, longest):
    """An interesting range: around multiples of the grain, often unaligned, often neighbours."""
    align = r.choice([1, 512, 4096, GRAIN, GRAIN, GRAIN])
    if r.random() < 0.5:  # stay in one corner so that operations meet
        span = min(size, 16 * GRAIN)
        base = size - span if r.random() < 0.3 else 0
    else:
        span, base = size, 0
    offset = base + r.randrange(span)
    offset -= offset % align
    length = r.choice([1, 512, 4096, GRAIN, 3 * GRAIN, longest])
    length = r.randint(1, length)
    if align > 1 and r.random() < 0.7:
        length = max(align, length - length % align)
    length = min(length, longest, size - offset)
    return offset, length


class Export:
    """Several connections to one export."""

    def __init__(self, uri):
        import nbd

        self.nbd = nbd
        self.handles = []
        for _ in range(CONNECTIONS):
            h = nbd.NBD()
            h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            h.connect_uri(uri)
            self.handles.append(h)
            if not h.can_multi_conn():
                break
        self.size = self.handles[0].get_size()

    def close(self):
        for h in self.handles:
            h.shutdown()

    def extents(self, h, offset, length, flags=0):
        """[(length, flags)] as the server replied to one request."""
        out = []

        def f(context, start, entries, error):
            if start != offset:
                die("block status of %d replied for %d" % (offset, start))
            out.extend(zip(entries[::2], entries[1::2]))

        h.block_status(length, offset, f, flags)
        return out

    def check_map(self, h, model, offset, length):
        """Every zero extent reads as zeros; together they cover the range."""
        at, end = offset, offset + length
        while at < end:
            extents = self.extents(h, at, end - at)
            if not extents:
                die("block status at %d: no extents" % at)
            for n, flags in extents:
                if n == 0:
                    die("block status at %d: an extent of length 0" % at)
                n = min(n, end - at)
                if flags & self.nbd.STATE_ZERO and any(model[at : at + n]):
                    die("block status: %d bytes at %d are said to be zero and are not" % (n, at))
                at += n
                if at >= end:
                    break


def read_structured(nbd, h, length, offset, flags):
    seen = bytearray(length)

    def chunk(data, at, status, error):
        at -= offset
        for i in range(at, at + len(data)):
            if seen[i]:
                die("a read chunk overlaps another at %d" % (offset + i))
        seen[at : at + len(data)] = b"\1" * len(data)

    got = h.pread_structured(length, offset, chunk, flags)
    if not all(seen):
        die("read of %d at %d: chunks do not cover it" % (length, offset))
    return got


def ops(uri, model_name, count):
    model = load(model_name)
    export = Export(uri)
    nbd = export.nbd
    if export.size != len(model):
        die("export size %d, model %d" % (export.size, len(model)))
    r = rng("ops", model_name, len(model), os.environ.get("ROUND", ""))
    kinds = ["write"] * 6 + ["zero"] * 3 + ["read"] * 4 + ["flush", "cache", "map", "map"]
    if not NO_TRIM:
        kinds += ["trim"] * 2
    if WRITES_ONLY:
        kinds = [k for k in kinds if k != "zero"]
    for _ in range(count):
        h = r.choice(export.handles)
        kind = r.choice(kinds)
        offset, n = pick_range(r, len(model), 8 * GRAIN if GRAIN >= 65536 else 512 * 1024)
        n = min(n, 4 << 20)
        end = offset + n
        fua = nbd.CMD_FLAG_FUA if r.random() < 0.1 and h.can_fua() else 0
        if kind == "write":
            data = bytes([r.randrange(256)]) * n if r.random() < 0.3 else r.randbytes(n)
            h.pwrite(data, offset, fua)
            model[offset:end] = data
        elif kind == "zero":
            flags = fua
            if r.random() < 0.5:
                flags |= nbd.CMD_FLAG_NO_HOLE
            if r.random() < 0.3 and h.can_fast_zero() and not NO_FAST_ZERO:
                flags |= nbd.CMD_FLAG_FAST_ZERO
            try:
                h.zero(n, offset, flags)
                model[offset:end] = bytes(n)
            except nbd.Error as e:
                if not flags & nbd.CMD_FLAG_FAST_ZERO or e.errno not in ("EOPNOTSUPP", "ENOTSUP"):
                    raise
        elif kind == "trim" and h.can_trim():
            h.trim(n, offset, fua)
            got = h.pread(n, offset)
            old_or_zero(got, model[offset:end], offset, "after trim")
            model[offset:end] = got
        elif kind == "flush":
            h.flush()
        elif kind == "cache" and h.can_cache():
            h.cache(n, offset)
        elif kind == "map":
            export.check_map(h, model, offset, n)
        elif kind == "read":
            if r.random() < 0.3:
                df = nbd.CMD_FLAG_DF if h.can_df() and r.random() < 0.5 else 0
                got = read_structured(nbd, h, min(n, 65536), offset, df)
                expect(got, model[offset : offset + len(got)], offset, "structured read")
            else:
                expect(h.pread(n, offset), model[offset:end], offset, "read")
    export.close()
    store(model_name, model)


def verify(uri, model_name):
    model = load(model_name)
    export = Export(uri)
    if export.size != len(model):
        die("export size %d, model %d" % (export.size, len(model)))
    for offset in range(0, len(model), CHUNK):
        n = min(CHUNK, len(model) - offset)
        h = export.handles[offset // CHUNK % len(export.handles)]
        expect(h.pread(n, offset), model[offset : offset + n], offset, "verify")
    export.check_map(export.handles[0], model, 0, len(model))
    export.close()


def qemu(image, model_name, count):
    """qemu-io writes at 512-byte grain at least; reads are verified at the end, all at once."""
    model = load(model_name)
    r = rng("qemu", model_name, len(model), os.environ.get("ROUND", ""))
    discarded = []
    script = []
    for _ in range(count):
        kind = r.choice(["write"] * 5 + ["zero", "zero", "unmap", "discard", "flush"])
        if WRITES_ONLY and kind in ("zero", "unmap"):
            kind = "write"
        offset, n = pick_range(r, len(model), 4 * GRAIN)
        offset -= offset % 512
        n = min(max(512, n - n % 512), len(model) - offset, 4 << 20)
        if n <= 0 or n % 512:
            continue
        end = offset + n
        if kind == "write":
            byte = r.randrange(256)
            script.append("write -q -P %d %d %d" % (byte, offset, n))
            model[offset:end] = bytes([byte]) * n
        elif kind in ("zero", "unmap"):
            script.append("write -q -z %s %d %d" % ("-u" if kind == "unmap" else "", offset, n))
            model[offset:end] = bytes(n)
        elif kind == "discard" and not NO_TRIM:
            script.append("discard -q %d %d" % (offset, n))
            discarded.append((offset, end))
        elif kind == "flush":
            script.append("flush")
    opened = os.environ.get("QEMU_IMAGE", "").split() or ["-f", "qcow2", image]
    p = subprocess.run(
        ["qemu-io", "-d", "unmap"] + opened,
        input="\n".join(script) + "\nquit\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    if p.returncode != 0 or "failed" in p.stdout or "rror" in p.stdout:
        die("qemu-io on %s: status %d: %s" % (image, p.returncode, p.stdout[-1000:]))
    raw = model_name + ".qemu"
    subprocess.run(["qemu-img", "convert", "-O", "raw"] + opened + [raw], check=True, timeout=300)
    got = load(raw)
    os.unlink(raw)
    if len(got) != len(model):
        die("QEMU reads %d bytes, model %d" % (len(got), len(model)))
    for start, end in discarded:
        old_or_zero(got[start:end], model[start:end], start, "after qemu-io discard")
        model[start:end] = got[start:end]
    expect(got, model, 0, "what QEMU reads from %s" % image)
    store(model_name, model)


def main(argv):
    commands = {
        "fill": lambda a: fill(a[0], int(a[1])),
        "ops": lambda a: ops(a[0], a[1], int(a[2])),
        "verify": lambda a: verify(a[0], a[1]),
        "qemu": lambda a: qemu(a[0], a[1], int(a[2])),
    }
    if len(argv) < 3 or argv[1] not in commands:
        sys.stderr.write(__doc__)
        sys.exit(2)
    commands[argv[1]](argv[2:])


if __name__ == "__main__":
    main(sys.argv)
