#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What an image can ask for is bounded: each ceiling of nbdcow-formats(7), at it and one past it.

    ceilings.py [ROW...]

At the ceiling an image is read, or found wrong for another reason; one past it all programs refuse it, by
the field's name.  Memory and time are bounded in both cases.
"""

import os
import struct
import subprocess
import zlib

from harness import IMG, MIB, SANITIZED, SECONDS, Server, Sin, Table, add_extension, create, filled, kinds, one_line
from harness import qcow2, refused, run, set_names, tool, without_refcounts, without_snapshots

T = Table("Ceilings", "what", "at most", "besides")
TOOLS = ("info", "map", "convert")


def works(name, tools=TOOLS, mib=256, serve=True):
    for what in tools:
        r = tool(what, name, mib=mib)
        if r.status:
            raise Sin("at the ceiling: " + str(r))
    for kind in kinds() if serve else []:
        with Server(kind, name) as s:
            if not s.started:
                raise Sin("at the ceiling: %s: %s" % (kind, s.text()))


@T.sin("cluster_bits", "9 to 21", "512 bytes to 2 MiB")
def cluster_bits():
    for bits in (9, 21):
        create("at.qcow2", "4M", cluster_size=1 << bits)
        works("at.qcow2", TOOLS + ("check",))
    for bits in (8, 22):
        create("past.qcow2").set("cluster_bits", bits)
        refused("past.qcow2", "cluster_bits", str(bits))


@T.sin("L1 table", "32 MiB", "4,194,304 entries, of the disk and of each snapshot")
def l1_table():
    for entries, good in ((4194304, True), (4194305, False)):
        image = create("l1.qcow2", "8M")
        at = 1 << 26
        image.f.truncate(at + 4194305 * 8)
        image.set("l1_table_offset", at)
        image.set("l1_size", entries)
        if good:
            works("l1.qcow2", ("info", "map"))
        else:
            refused("l1.qcow2", "l1_table", "33554432")
    for entries, good in ((4194304, True), (4194305, False)):
        image = create("l1.qcow2", "8M")
        r = run("snapshot", [IMG, "snapshot", "-f", "qcow2", "-c", "one", "l1.qcow2"])
        assert r.status == 0, r
        image = qcow2.Image("l1.qcow2", True)
        at = 1 << 26
        image.f.truncate(at + 4194305 * 8)
        image.pwrite(image.get("snapshots_offset"), struct.pack(">QI", at, entries))
        if good:
            works("l1.qcow2", ("info", "map"))
            r = tool("convert", "l1.qcow2", "-l", "one")
            if r.status:
                raise Sin(str(r))
        else:
            without_snapshots("l1.qcow2", "snapshot", "4194304")


@T.sin("refcount table", "8 MiB", "enough for 2^36 clusters with counts of 16 bits")
def refcount_table():
    for clusters, good in ((128, True), (129, False)):
        image = create("ref.qcow2", "8M")
        at = 1 << 26
        image.f.truncate(at + 129 * 65536)
        image.pwrite(at, image.pread(image.get("refcount_table_offset"), 65536))
        image.set("refcount_table_offset", at)
        image.set("refcount_table_clusters", clusters)
        if good:
            works("ref.qcow2", serve=False)
        else:
            without_refcounts("ref.qcow2", "refcount_table", "8388608")


def snapshots(name, n, extra=16, same=False):
    """N snapshots, all of an empty disk; their table is where nothing else is."""
    image = create(name, "8M")
    table = bytearray()
    at = 1 << 24
    for i in range(n):
        ident, label = (b"1" if same else b"%d" % (i + 1)), (b"same" if same else b"s%d" % i)
        entry = struct.pack(">QIHHIIQII", at, 1, len(ident), len(label), 1, 0, 0, 0, extra)
        entry += struct.pack(">QQ", 0, 8 * MIB)[:extra].ljust(extra, b"\0") + ident + label
        table += entry + bytes(-len(entry) % 8)
    image.pwrite(at, bytes(65536))
    image.pwrite(at + 65536, bytes(table))
    image.set("snapshots_offset", at + 65536)
    image.set("nb_snapshots", n)
    return image


@T.sin("snapshots", "65,536", "the table has at most 64 MiB; snapshots=on serves up to 256, and leaves out what has no name of its own")
def many_snapshots():
    snapshots("snaps.qcow2", 65536)
    works("snaps.qcow2", mib=512)
    snapshots("snaps.qcow2", 65537)
    refused("snaps.qcow2", "nb_snapshots", "65536")
    if "nbdcow" not in kinds():
        return "no server"
    for n, same, served in ((65536, False, 0), (257, False, 0), (256, False, 256), (3, True, 1)):
        snapshots("snaps.qcow2", n, same=same)
        with Server("nbdcow", None, ["--export", "name=x,file=snaps.qcow2,snapshots=on,read-only=on"]) as s:
            if not s.started:
                raise Sin("%d snapshots: %s" % (n, s.text()))
            if ("warning" in s.text()) != (served != n):
                raise Sin("%d snapshots: %s" % (n, s.text()))
            r = run("list", [os.environ["NBDCOW"], "--list", "--socket=" + s.socket])
            if "exports available: %d" % (served + 1) not in r.out:
                raise Sin("%d snapshots, %d to be served: %s" % (n, served, r.out[:200]))
    return None


@T.sin("snapshot extra data", "64 MiB, with all of the table", "kept as it is, also what is not understood")
def extra_data():
    snapshots("snaps.qcow2", 3, extra=1024)
    works("snaps.qcow2")
    # 40 bytes, the id and the name come to 48 with what is left of a multiple of 8.
    snapshots("snaps.qcow2", 2, extra=32 * MIB - 48)
    works("snaps.qcow2", serve=False, mib=512)
    snapshots("snaps.qcow2", 2, extra=32 * MIB)
    without_snapshots("snaps.qcow2", "extra data", "67108864")
    snapshots("snaps.qcow2", 1).pwrite((1 << 24) + 65536 + 36, b"\xff\xff\xff\xff")
    without_snapshots("snaps.qcow2", "extra data", "67108864")


def bitmaps(name, n, granularity=16, size="8M", flags=0):
    """N bitmaps that are all clean, or in use with flags=1."""
    image = create(name, size)
    directory = bytearray()
    at = 1 << 24
    for i in range(n):
        label = b"b%d" % i
        entry = struct.pack(">QIIBBHI", at, 1, flags, 1, granularity, len(label), 0) + label
        directory += entry + bytes(-len(entry) % 8)
    image.pwrite(at, bytes(65536))
    image.pwrite(at + 65536, bytes(directory))
    add_extension(image, 0x23852875, struct.pack(">IIQQ", n, 0, len(directory), at + 65536))
    image.set("autoclear_features", 1)
    return image


@T.sin("bitmaps", "65,535", "the directory has at most 64 MiB; 512 MiB of bits each, 2 GiB in all, also after a resize")
def many_bitmaps():
    bitmaps("bitmaps.qcow2", 65535)
    works("bitmaps.qcow2", serve=False)
    bitmaps("bitmaps.qcow2", 65536)
    refused("bitmaps.qcow2", "65536 bitmaps")
    # 1 TiB with a bit for 512 bytes: 256 MiB each.  Disabled ones: of enabled ones all that is new is dirty.
    for n, good in ((8, True), (9, False)):
        create("grown.qcow2", "1M")
        for i in range(n):
            add = ["--add", "--disable", "-g", "512", "grown.qcow2", "b%d" % i]
            r = run("bitmap", [IMG, "bitmap", "-f", "qcow2", *add])
            assert r.status == 0, r
        r = run("resize", [IMG, "resize", "-f", "qcow2", "grown.qcow2", "1T"])
        if good and r.status:
            raise Sin(str(r))
        if not good:
            one_line(r, ["bitmaps together", "2048 MiB"])
    # One alone: 512 MiB are 2 TiB at 512.
    create("grown.qcow2", "1M")
    run("bitmap", [IMG, "bitmap", "-f", "qcow2", "--add", "-g", "512", "grown.qcow2", "b"])
    one_line(run("resize", [IMG, "resize", "-f", "qcow2", "grown.qcow2", "3T"]), ["bitmap 'b'", "512 MiB"])


@T.sin("header extensions", "the first cluster", "a length past the area is refused, whatever it is rounded to")
def extensions():
    image = create("ext.qcow2", "8M")
    for e in image.extensions()[0]:
        pass
    start = image.header_length
    image.pwrite(start, bytes(65536 - start))
    room = 65536 - start - 8
    image.pwrite(start, struct.pack(">II", 0x12345678, room))
    works("ext.qcow2")
    for length in (room + 1, room + 8, 0x7FFFFFFF, 0xFFFFFFF8, 0xFFFFFFFF):
        image.pwrite(start, struct.pack(">II", 0x12345678, length))
        refused("ext.qcow2", "extension")
    # As many as there is room for.
    image.pwrite(start, struct.pack(">II", 0x12345678, 0) * ((65536 - start) // 8))
    works("ext.qcow2")


@T.sin("names", "1,023 bytes; a format's 64", "of backing and data files")
def names():
    create("base", "8M")
    name = "./" * 509 + "/base"
    create("top.qcow2", "8M")
    set_names("top.qcow2", backing=name, fmt="qcow2")
    works("top.qcow2")
    set_names("top.qcow2", backing="." + "/" * 1019 + "base", fmt="qcow2")
    refused("top.qcow2", "backing_file_size", "1023")
    create("top.qcow2", "8M")
    set_names("top.qcow2", data_file="x" * 1024)
    refused("top.qcow2", "data file name", "1023")
    create("top.qcow2", "8M")
    set_names("top.qcow2", backing="base", fmt="q" * 65)
    refused("top.qcow2", "backing format", "64")


@T.sin("layers of a chain", "256", "the image itself counted")
def layers():
    create("layer-0", "1M")
    with open("layer-0", "rb") as f:
        data = f.read()
    for n in range(1, 257):
        with open("layer-%d" % n, "wb") as f:
            f.write(data)
        set_names("layer-%d" % n, backing="layer-%d" % (n - 1), fmt="qcow2")
    works("layer-255", ("map", "convert"))
    refused("layer-256", "256", tools=("map", "convert"))
    r = run("info --backing-chain", [IMG, "info", "--backing-chain", "layer-256"])
    if r.status != 1 or "256" not in r.err:
        raise Sin(str(r)[-500:])
    for n in range(257):
        os.unlink("layer-%d" % n)


@T.sin("decompressed data", "one cluster", "what would be more is an error; zstd's window 8 MiB; compressed data two clusters")
def decompressed():
    for bits, zeros in ((16, 1 << 16), (16, (1 << 16) + 1), (16, 1 << 28), (21, 1 << 21), (21, 1 << 28)):
        good = zeros == 1 << bits
        image = create("bomb.qcow2", "8M", cluster_size=1 << bits)
        c = zlib.compressobj(9, zlib.DEFLATED, -12)
        stream = b"".join(c.compress(bytes(min(MIB, zeros - i))) for i in range(0, zeros, MIB)) + c.flush()
        at = 16 << 20
        stream = stream[: 1 << bits]
        image.pwrite(at, stream.ljust(1 << bits, b"\0"))
        l2 = 24 << 20
        image.pwrite(l2, bytes(1 << bits))
        shift = 62 - (bits - 8)
        sectors = min((len(stream) + 511) // 512 - 1, (1 << (bits - 8)) - 1)
        image.pwrite(l2, struct.pack(">Q", 1 << 62 | sectors << shift | at))
        image.pwrite(image.get("l1_table_offset"), struct.pack(">Q", l2 | 1 << 63))
        r = tool("convert", "bomb.qcow2")
        # A stream that goes on is cut at the cluster: its beginning is what counts.
        if r.status not in ((0,) if good else (0, 1)) or (r.status == 0 and len(r.data) != 8 * MIB):
            raise Sin(str(r))
        for kind in kinds():
            with Server(kind, "bomb.qcow2", ["-r"]) as s:
                run("reading", [IMG, "convert", "-f", "raw", "-O", "raw", s.uri, "got.raw"])
                if not s.started or (s.rss() > 256 and not os.environ.get("SANITIZED")):
                    raise Sin("%s: %d MiB: %s" % (kind, s.rss(), s.text()))


@T.sin("LUKS header", "64 MiB, 8 slots, 4,000 stripes, 2^26 rounds", "each checked before a key is derived: half a minute for each slot at most")
def luks():
    with open("key", "w", encoding="ascii") as f:
        f.write("secret")
    r = run(
        "create",
        [IMG, "create", "-q", "-f", "qcow2", "--object", "secret,id=s,file=key"]
        + ["-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "luks.qcow2", "1M"],
    )
    if r.status and "libgcrypt" in r.err:
        return "no libgcrypt"
    assert r.status == 0, r
    image = qcow2.Image("luks.qcow2", True)
    at, length = struct.unpack(">QQ", dict(image.extensions()[0])[0x0537BE77])
    header = image.pread(at, 592)

    def changed(offset, value):
        image.pwrite(at, header)
        image.pwrite(at + offset, value)

    def luks_refused(*words):
        one_line(tool("map", "luks.qcow2", "--key-file=key"), words)
        r = tool("info", "luks.qcow2")  # shows what can be shown, and says so
        if r.status or not all(w in r.err for w in words):
            raise Sin(str(r))
        for kind in kinds():
            with Server(kind, "luks.qcow2") as s:
                if s.started:
                    raise Sin("%s serves it" % kind)

    most = 1 << 26
    for offset, good, bad, word in (
        (164, most, most + 1, str(most)),  # rounds for the digest
        (212, most, most + 1, str(most)),  # rounds of slot 0
        (252, 4000, 4001, "4000"),  # its stripes
    ):
        changed(offset, struct.pack(">I", good))
        r = tool("info", "luks.qcow2")
        if r.status or r.err:
            raise Sin("at the ceiling: " + str(r))
        changed(offset, struct.pack(">I", bad))
        luks_refused("encryption header", word)
    for value in (0, 129, 0xFFFFFFFF):
        changed(108, struct.pack(">I", value))
        luks_refused("encryption header", "key")
    for value in (0, 0xFFFFFFFF):
        changed(248, struct.pack(">I", value))
        luks_refused("encryption header", "key material")
    # Two slots in one place.
    changed(256, header[208:256])
    luks_refused("encryption header", "same")
    image.pwrite(at, header)
    image.f.truncate(1 << 28)
    for length, word in ((591, "length"), ((64 << 20) + 1, "67108864"), (1 << 62, "inside the file")):
        add_extension(image, 0x0537BE77, struct.pack(">QQ", at, length))
        luks_refused("encryption header", word)
    return None


# struct q_state_header (plugin/qcow2/state/state.h), of which these are named.
STATE_CLUSTER_BITS, STATE_SLOTS, STATE_BYTES = (12, "<I"), (20, "<I"), (56, "<Q")


@T.sin("state file of a killed server", "the tables that it has room for", "set aside, however large it says it is; memory is bounded")
def state_file():
    if "nbdcow" not in kinds():
        return "no server"
    states = os.path.abspath("states")
    os.makedirs(states, mode=0o700)
    create("killed.qcow2", "64M")
    option = ["--state-dir=" + states]
    with Server("nbdcow", "killed.qcow2", option) as s:
        if not s.started:
            raise Sin(s.text())
        s.process.kill()
        s.process.wait()
        s.process.returncode = 0
    (name,) = [os.path.join(states, n) for n in os.listdir(states) if n.endswith(".state")]
    with open(name, "rb") as f:
        good = f.read(4096)
    size = os.stat(name).st_size

    def lie(*fields, length=size):
        with open(name, "r+b" if os.path.exists(name) else "w+b") as f:
            f.truncate(0)
            f.write(good)
            for (at, form), value in fields:
                f.seek(at)
                f.write(struct.pack(form, value))
            f.truncate(length)
        with Server("nbdcow", "killed.qcow2", option) as s:
            if not s.started or s.text().count("\n") != 1 or "is not used: it is damaged" not in s.text():
                raise Sin("%s: %s" % (fields, s.text()))
            if s.rss() > 256 and not SANITIZED:
                raise Sin("%s: %d MiB" % (fields, s.rss()))
        os.unlink(name + ".aside")

    for slots in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
        for length in (4096, size, 1 << 40):
            lie((STATE_SLOTS, slots), (STATE_BYTES, length), length=length)
    # Laid out as it should be, but nothing is there.
    (slots,) = struct.unpack_from(STATE_SLOTS[1], good, STATE_SLOTS[0])
    more = 1 << 24
    table = lambda n: -(-(4096 + n * 64) // 4096) * 4096  # noqa: E731
    lie((STATE_SLOTS, more), (STATE_BYTES, size), length=size)
    length = size - table(slots) + table(more) + (more - slots) * 65536
    lie((STATE_SLOTS, more), (STATE_BYTES, length), length=length)
    for bits in (0, 8, 22, 64, 0xFFFFFFFF):
        lie((STATE_CLUSTER_BITS, bits))
    return None


@T.sin("state directory", "ours alone", "what others could have put there is not looked at: served without, and said")
def state_directory():
    if "nbdcow" not in kinds():
        return "no server"
    create("kept.qcow2", "8M")
    st = os.stat("kept.qcow2")
    state = "%x-%x.state" % (st.st_dev, st.st_ino)

    def directory(mode=0o700):
        os.makedirs("hostile", exist_ok=True)
        os.chmod("hostile", mode)

    def inside(make):
        def build():
            directory()
            make("hostile/" + state)

        return build

    def link():
        os.makedirs("elsewhere", mode=0o700, exist_ok=True)
        os.symlink("elsewhere", "hostile")

    def file():
        with open("hostile", "w", encoding="ascii"):
            pass

    def foreign():
        directory()
        os.chown("hostile", 65534, 65534)

    with open("victim", "w", encoding="ascii") as f:
        f.write("victim")
    builds = [
        lambda: directory(0o777),
        lambda: directory(0o770),
        link,
        file,
        inside(os.mkfifo),
        inside(os.mkdir),
        inside(lambda p: os.symlink(os.path.abspath("victim"), p)),
        inside(lambda p: os.symlink("nonesuch", p)),
    ]
    if os.geteuid() == 0:
        builds.append(foreign)
    for build in builds:
        subprocess.run(["rm", "-rf", "hostile"], check=True)
        build()
        before = sorted(os.listdir("hostile")) if os.path.isdir("hostile") else None
        with Server("nbdcow", "kept.qcow2", ["--state-dir=" + os.path.abspath("hostile")]) as s:
            said = s.text()
            if not s.started or said.count("\n") != 1 or "would be lost" not in said:
                raise Sin("%s: %s" % (build, said))
        if before is not None and sorted(os.listdir("hostile")) != before:
            raise Sin("something was left: %s" % os.listdir("hostile"))
        with open("victim", encoding="ascii") as f:
            if f.read() != "victim":
                raise Sin("a file behind a link was written")
    return None


if __name__ == "__main__":
    T.main()
