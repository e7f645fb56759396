# SPDX-License-Identifier: BSD-3-Clause
"""What each NBD command and flag does to a disk whose layout test-e2e-basic.sh describes."""

import sys

import nbd

uri, frontend = sys.argv[1:]
M = 1 << 20
K = 1 << 10

h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.set_full_info(True)
h.connect_uri(uri)


def check(what, got, want):
    if got != want:
        sys.exit("%s: got %r, expected %r" % (what, got, want))


def fails(what, errnos, f, *args):
    try:
        f(*args)
    except nbd.Error as e:
        if e.errno not in errnos:
            sys.exit("%s: failed with %s, expected %s" % (what, e.errno, errnos))
    else:
        sys.exit("%s: succeeded, expected %s" % (what, errnos))


def extents(offset, length, flags=0):
    """Merged [(length, flags)] of a range, whatever pieces the server makes of it."""
    out = []
    at = offset
    while at < offset + length:
        got = []
        h.block_status(offset + length - at, at, lambda c, o, e, err: got.extend(zip(e[::2], e[1::2])), flags)
        if flags & nbd.CMD_FLAG_REQ_ONE:
            check("extents with REQ_ONE", len(got), 1)
        for n, f in got:
            n = min(n, offset + length - at)
            if out and out[-1][1] == f:
                out[-1] = (out[-1][0] + n, f)
            else:
                out.append((n, f))
            at += n
    return out


DATA, HOLE, ZERO = 0, nbd.STATE_HOLE, nbd.STATE_ZERO

# What the export says of itself.
check("size", h.get_size(), 8 * M)
check("read only", h.is_read_only(), False)
for flag in ("flush", "fua", "trim", "zero", "fast_zero", "cache", "multi_conn", "df"):
    check("can_" + flag, getattr(h, "can_" + flag)(), True)
check("structured replies", h.get_structured_replies_negotiated(), True)
preferred = h.get_block_size(nbd.SIZE_PREFERRED)
if preferred < 512 or preferred & preferred - 1:
    sys.exit("preferred block size %d" % preferred)
check("minimum block size", h.get_block_size(nbd.SIZE_MINIMUM), 1)

# Before any write: what the backing file has.
check("map at first", extents(0, 8 * M), [(2 * M, DATA), (6 * M, HOLE | ZERO)])
check("REQ_ONE", extents(0, 8 * M, nbd.CMD_FLAG_REQ_ONE)[0], (2 * M, DATA))
check("backing data", h.pread(1 * M, 0), b"\x11" * M)
check("unwritten", h.pread(5 * M, 3 * M), bytes(5 * M))

# Writes, whole and partial clusters, over backing data.
h.pwrite(b"\x22" * 100, 64 * K + 7)
want = b"\x11" * 7 + b"\x22" * 100 + b"\x11" * (64 * K - 107)
check("copy on write", h.pread(64 * K, 64 * K), want)
h.pwrite(b"\x33" * (64 * K), 128 * K, nbd.CMD_FLAG_FUA)
check("whole cluster, FUA", h.pread(64 * K, 128 * K), b"\x33" * (64 * K))
h.pwrite(b"\x44" * (3 * M), 4 * M + 1)
check("3 MiB, unaligned", h.pread(3 * M + 2, 4 * M), b"\0" + b"\x44" * (3 * M) + b"\0")
h.pwrite(b"e", 8 * M - 1)
check("last byte", h.pread(2, 8 * M - 2), b"\0e")
check("map of written", extents(4 * M + 64 * K, 2 * M), [(2 * M, DATA)])

# Zeroes: with and without NO_HOLE, whole clusters and parts.
h.zero(64 * K, 0)
check("zero over backing", h.pread(64 * K, 0), bytes(64 * K))
got = extents(0, 64 * K)
check("zero extent over backing", [f & ZERO for _, f in got], [ZERO])
h.pwrite(b"\x77" * (64 * K), 192 * K)
h.zero(64 * K, 192 * K, nbd.CMD_FLAG_NO_HOLE)
check("zero NO_HOLE", h.pread(64 * K, 192 * K), bytes(64 * K))
check("NO_HOLE makes no hole", [f & HOLE for _, f in extents(192 * K, 64 * K)], [0])
h.zero(10, 256 * K + 5, nbd.CMD_FLAG_FUA)
check("zero part of a cluster", h.pread(20, 256 * K), b"\x11" * 5 + bytes(10) + b"\x11" * 5)
h.zero(128 * K, 320 * K, nbd.CMD_FLAG_FAST_ZERO)
check("fast zero", h.pread(128 * K, 320 * K), bytes(128 * K))
check("beside the fast zero", h.pread(64 * K, 448 * K), b"\x11" * (64 * K))

# Trim: what is trimmed in whole clusters reads as zeros, the backing file does not come back.
h.pwrite(b"\x55" * (256 * K), 512 * K)
h.trim(128 * K, 512 * K)
got = h.pread(128 * K, 512 * K)
if got.strip(b"\0") and got.strip(b"\x55"):
    sys.exit("trim: neither zeros nor the old bytes")
check("beside the trim", h.pread(128 * K, 640 * K), b"\x55" * (128 * K))
h.trim(256 * K, 5 * M, nbd.CMD_FLAG_FUA)
got = extents(5 * M, 256 * K)
check("trimmed clusters are a hole", got, [(256 * K, HOLE | ZERO)])

h.cache(1 * M, 0)
h.flush()

# A structured read of a hole comes as a hole chunk (nbdkit has no such thing).
chunks = []
h.pread_structured(1 * M, 2 * M + 64 * K, lambda d, o, s, e: chunks.append((len(d), s)))
if frontend == "nbdcow" and nbd.READ_HOLE not in [s for _, s in chunks]:
    sys.exit("a read of a hole came as data: %r" % chunks)
chunks = []
h.pread_structured(1 * M, 3 * M + 512 * K, lambda d, o, s, e: chunks.append((len(d), s)), nbd.CMD_FLAG_DF)
check("DF: one chunk", len(chunks), 1)

# Past the end: the client library's own checks off, so that the server has to say it.
h.set_strict_mode(0)
fails("read past the end", ["EINVAL"], h.pread, 512, 8 * M - 511)
fails("write past the end", ["ENOSPC", "EINVAL"], h.pwrite, bytes(512), 8 * M - 511)
fails("write far past the end", ["ENOSPC", "EINVAL"], h.pwrite, bytes(512), 1 << 62)
fails("zero past the end", ["ENOSPC", "EINVAL"], h.zero, 512, 8 * M - 511)
fails("trim past the end", ["ENOSPC", "EINVAL"], h.trim, 512, 8 * M)
fails("an unknown flag", ["EINVAL"], h.pread, 512, 0, 0x8000)
check("alive after errors", h.pread(2, 8 * M - 2), b"\0e")

# A second connection sees what the first wrote, and a flush on one covers the other.
g = nbd.NBD()
g.connect_uri(uri)
h.pwrite(b"\x66" * 512, 3 * M)
check("the other connection reads it", g.pread(512, 3 * M), b"\x66" * 512)
g.flush()
g.shutdown()
h.shutdown()

# Simple replies only.
h = nbd.NBD()
h.set_request_structured_replies(False)
h.connect_uri(uri)
check("no structured replies", h.get_structured_replies_negotiated(), False)
check("simple read", h.pread(1024, 3 * M - 512), bytes(512) + b"\x66" * 512)
fails("simple error", ["EINVAL"], lambda: (h.set_strict_mode(0), h.pread(512, 8 * M))[1])
check("simple read after an error", h.pread(512, 3 * M), b"\x66" * 512)
h.shutdown()

# The oldest handshake that is still fixed newstyle: NBD_OPT_EXPORT_NAME, with its zeroes.
h = nbd.NBD()
h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)
h.connect_uri(uri)
check("with 124 zeroes", h.pread(512, 3 * M), b"\x66" * 512)
h.shutdown()
h = nbd.NBD()
h.set_handshake_flags(0)
h.connect_uri(uri)
check("plain newstyle", h.pread(512, 3 * M), b"\x66" * 512)
h.shutdown()

# Listing.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
h.opt_list(lambda name, description: names.append(name))
check("exports", names, [""])
h.opt_info()
check("size by NBD_OPT_INFO", h.get_size(), 8 * M)
contexts = []
h.opt_list_meta_context(contexts.append)
if "base:allocation" not in contexts:
    sys.exit("base:allocation is not listed: %r" % contexts)
if frontend == "nbdcow":  # nbdkit's plugin answers for every name
    h.set_export_name("no such export")
    fails("an unknown export", ["ENOENT"], h.opt_info)
h.opt_abort()
print("basic: all fine")
