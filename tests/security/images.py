#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Images that broke other readers of qcow2, each by the name under which that was known.

    images.py [NAME...]       the rows whose name has NAME in it; all without

The descriptions say what was wrong there; iotests of QEMU attack the same fields.
"""

import os
import struct

from harness import (
    IMG,
    MIB,
    Sin,
    Table,
    Watch,
    add_extension,
    bounded,
    create,
    digest,
    filled,
    kinds,
    one_line,
    qcow2,
    refused,
    run,
    serve_refused,
    set_names,
    Server,
    tool,
    without_refcounts,
    without_snapshots,
)

T = Table("Hostile images")
SECRET = "the secret of the host"


def copy(name, to="bad.qcow2"):
    with open(name, "rb") as f, open(to, "wb") as g:
        g.write(f.read())
    return qcow2.Image(to, True)


def snapshot_at(image, index=0):
    """File offset of an entry of the snapshot table."""
    at = image.get("snapshots_offset")
    for _ in range(index):
        _, _, ids, names = struct.unpack(">QIHH", image.pread(at, 16))
        extra = struct.unpack(">I", image.pread(at + 36, 4))[0]
        at += (40 + extra + ids + names + 7) & ~7
    return at


def with_snapshot(name="snap.qcow2"):
    filled(name, MIB)
    r = run("snapshot", [IMG, "snapshot", "-f", "qcow2", "-c", "one", name])
    assert r.status == 0, r
    return qcow2.Image(name, True)


# ---- header fields ------------------------------------------------------------------------------


@T.sin(
    "CVE-2014-0142",
    "fields that something is divided by or shifted by were zero (parallels, bochs)",
    "each field has a least value, and is refused by name below it",
)
def zero_fields():
    for field, word in (
        ("cluster_bits", "cluster_bits"),
        ("refcount_table_clusters", "refcount_table_clusters"),
        ("l1_table_offset", "l1_table"),
        ("refcount_table_offset", "refcount_table"),
        ("l1_size", "l1_size"),
        ("header_length", "header_length"),
    ):
        filled("bad.qcow2").set(field, 0)
        (without_refcounts if word.startswith("refcount") else refused)("bad.qcow2", word)


@T.sin(
    "CVE-2014-0143",
    "products of sizes in the image wrapped in 32 bits, and small tables were made for large ones",
    "sizes are compared in 64 bits with ceilings before they are multiplied",
)
def wrapping_sizes():
    # By the ceiling, and not by what is found wrong with a table of another size.
    for field, values, words in (
        ("l1_size", (0xFFFFFFFF, 0x7FFFFFFF, 0x20000001, 0x40000000), ("l1_table", "at most 33554432")),
        ("refcount_table_clusters", (0xFFFFFFFF, 0x7FFFFFFF, 0x00020001, 0x10000), ("refcount_table", "at most 8388608")),
        ("nb_snapshots", (0xFFFFFFFF, 0x7FFFFFFF, 0x10001), ("nb_snapshots", "at most 65536")),
        ("size", (0xFFFFFFFFFFFFFE00, 0x7FFFFFFFFFFFFE00, 1 << 62), (("size", "l1_size"),)),
    ):
        for value in values:
            filled("bad.qcow2").set(field, value)
            (without_refcounts if field.startswith("refcount") else refused)("bad.qcow2", *words)
    for l1_size in (0xFFFFFFFF, 0x20000001, 0x20000000, 0x10000000):
        image = with_snapshot("bad.qcow2")
        image.pwrite(snapshot_at(image) + 8, struct.pack(">I", l1_size))
        without_snapshots("bad.qcow2", "snapshot", "L1 table of %d entries" % l1_size)


@T.sin(
    "CVE-2014-0144",
    "header length, backing file name, refcount, snapshot and L1 tables were used as the header gave them",
    "each is checked for alignment, for its ceiling, and for lying in the file",
)
def header_fields():
    for field, values in (
        ("header_length", (0xFFFFFFFF, 0x7FFFFFFF, 0x10008, 103, 105)),
        ("refcount_table_offset", (0x1234567890ABCDEF, 0xFFFFFFFFFFFF0000, 513)),
        ("l1_table_offset", (0x1234567890ABCDEF, 0x7FFFFFFFFFFF0000, 513)),
        ("refcount_order", (7, 32, 0xFFFFFFFF)),
        ("cluster_bits", (8, 22, 63, 64, 0xFFFFFFFF)),
    ):
        for value in values:
            filled("bad.qcow2").set(field, value)
            (without_refcounts if field.startswith("refcount_table") else refused)(
                "bad.qcow2", (field, field.replace("_offset", " offset"), field.replace("_", " ")))
    for field, what in (("l1_table_offset", "L1 table"), ("refcount_table_offset", "refcount table")):
        filled("bad.qcow2").set(field, 1 << 40)
        (without_refcounts if field.startswith("refcount") else refused)("bad.qcow2", "truncated", what)
    image = filled("bad.qcow2")
    image.set("nb_snapshots", 1)
    image.set("snapshots_offset", 1 << 40)
    refused("bad.qcow2", "truncated", "snapshot table")
    for offset, size in ((0xFFFFFFFFFFFFFFFF, 8), (0x1000, 0xFFFFFFFF), (0x1000, 1024), (8, 8), (0xFFF8, 16)):
        image = filled("bad.qcow2")
        image.set("backing_file_offset", offset)
        image.set("backing_file_size", size)
        refused("bad.qcow2", "backing_file")
    for length in (0x7FFFFFFF, 0xFFFFFFF9, 0xFFFFFFFF, 0x10000):
        image = filled("bad.qcow2")
        image.pwrite(image.header_length, struct.pack(">II", 0x12345678, length))
        refused("bad.qcow2", "extension")
    image = filled("bad.qcow2")
    image.set("nb_snapshots", 1)
    for offset in (0x1234567890ABCDEF, 0xFFFFFFFFFFFF0000, 77):
        image.set("snapshots_offset", offset)
        refused("bad.qcow2", "snapshots offset")


@T.sin(
    "CVE-2014-0145",
    "a snapshot's L1 table was read into the room that the disk's has (qcow2), and lengths of chunks were "
    "believed (dmg)",
    "each L1 table has room of its own; a snapshot's must be in the file",
)
def snapshot_tables():
    # Larger than the disk's, and really there: it is read as the snapshot's disk, and becomes the disk's.
    image = with_snapshot("bad.qcow2")
    at = snapshot_at(image)
    image.pwrite(at + 8, struct.pack(">I", 0x2000))
    bounded("bad.qcow2")
    for command in ("-a", "-d"):
        r = run("snapshot " + command, [IMG, "snapshot", "-f", "qcow2", command, "one", "bad.qcow2"])
        if r.status:
            raise Sin(str(r))
        r = tool("convert", "bad.qcow2")
        if r.status or r.data[::65536] != bytes(range(1, 17)):
            raise Sin("the disk has changed: " + str(r))
    r = tool("check", "bad.qcow2")
    if r.status:
        raise Sin(str(r))
    for offset, value, words in (
        (0, struct.pack(">Q", 0x400200), ("L1 table",)),
        (0, struct.pack(">Q", 0xFFFFFFFFFFFF0000), ("L1 table",)),
        (0, struct.pack(">Q", 0), ("L1 table",)),
        (36, struct.pack(">I", 0xFFFFFFFF), ("extra data",)),
        (12, b"\xff\xff\xff\xff", ("table entry",)),
    ):
        image = with_snapshot("bad.qcow2")
        image.pwrite(snapshot_at(image) + offset, value)
        without_snapshots("bad.qcow2", *words)
    # In the list, but not in the file: who reads or goes back to the snapshot is told.
    image = with_snapshot("bad.qcow2")
    image.pwrite(snapshot_at(image), struct.pack(">Q", 1 << 40))
    before = digest("bad.qcow2")
    one_line(tool("convert", "bad.qcow2", "-l", "one"), ["one", "truncated"])
    one_line(run("snapshot -a", [IMG, "snapshot", "-f", "qcow2", "-a", "one", "bad.qcow2"]), ["one"])
    if digest("bad.qcow2") != before:
        raise Sin("bad.qcow2 was changed by going back to a snapshot that is not there")
    bounded("bad.qcow2")


@T.sin(
    "CVE-2014-0146",
    "opening failed half way, and what had not been set up yet was taken down",
    "each step of opening is made to fail, under AddressSanitizer too; nothing is left or touched twice",
)
def half_opened():
    for mutate in (
        lambda i: i.set("size", 1 << 62),
        lambda i: i.set("nb_snapshots", 5),
        lambda i: i.set("incompatible_features", 1 << 40),
        lambda i: i.set("incompatible_features", 4),
        lambda i: i.set("crypt_method", 2),
        lambda i: add_extension(i, 0x23852875, struct.pack(">IIQQ", 1, 0, 24, 1 << 40))
        or i.set("autoclear_features", 1),
        lambda i: add_extension(i, 0x0537BE77, struct.pack(">QQ", 1 << 40, 4096)) or i.set("crypt_method", 2),
    ):
        filled("bad.qcow2")
        image = qcow2.Image("bad.qcow2", True)
        mutate(image)
        bounded("bad.qcow2")


@T.sin(
    "CVE-2014-0147",
    "refcounts that say free of what is in use made metadata overwrite itself, or the search for room endless",
    "nothing is allocated over the header, the tables in use, or what the disk has; the image becomes read-only",
)
def refcounts_lie():
    for kind in kinds():
        for spoil in (free_all, no_blocks, block_on_itself):
            filled("bad.qcow2", 2 * MIB)
            r = run("resize", [IMG, "resize", "-q", "-f", "qcow2", "bad.qcow2", "8M"])
            assert r.status == 0, r
            spoil(qcow2.Image("bad.qcow2", True))
            before = qcow2.Image("bad.qcow2").pread(0, 512)
            want = tool("convert", "bad.qcow2").data[: 2 * MIB]
            with Server(kind, "bad.qcow2") as s:
                if not s.started:
                    continue
                r = run("write", [IMG, "bench", "-q", "-w", "-f", "raw", "-o", "4M", "-s", "64k", "-c", "32", "--pattern", "78", s.uri])
                if r.status == 0:
                    raise Sin("%s: %s: a write succeeded" % (kind, spoil.__name__))
            image = qcow2.Image("bad.qcow2")
            after = image.pread(0, 512)
            if after[:72] + after[96:] != before[:72] + before[96:]:
                raise Sin("%s: %s: the header was written over" % (kind, spoil.__name__))
            if not image.get("incompatible_features") & 2:
                raise Sin("%s: %s: the image is not marked corrupt" % (kind, spoil.__name__))
            if tool("convert", "bad.qcow2").data[: 2 * MIB] != want:
                raise Sin("%s: %s: what was there is not there any more" % (kind, spoil.__name__))


def free_all(image):
    block = image.table(image.get("refcount_table_offset"), 1)[0]
    image.pwrite(block, bytes(image.cluster))


def no_blocks(image):
    image.pwrite(image.get("refcount_table_offset"), bytes(image.cluster))


def block_on_itself(image):
    table = image.get("refcount_table_offset")
    image.pwrite(table, struct.pack(">Q", table))


@T.sin(
    "CVE-2014-0222",
    "the number of L2 entries of a qcow image of version 1 was a shift count that nobody had checked",
    "version 1 is not supported; cluster_bits is 9 to 21 in versions 2 and 3",
)
def version_one():
    for bits in (1, 31, 32, 63, 64, 255):
        header = struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, 1 << 20, 12, bits & 255, 0, 0, 48)
        with open("bad.qcow2", "wb") as f:
            f.write(header + bytes(1 << 16))
        refused("bad.qcow2", "version 1")


@T.sin(
    "CVE-2014-0223",
    "the disk size of a qcow image of version 1 wrapped when its L1 table was sized",
    "a disk has less than 2^63 bytes, and an L1 table that is as long as it says and large enough",
)
def disk_size():
    for size in (0xFFFFFFFFFFFFFFFF, 1 << 63, (1 << 63) - 512, 1 << 56, 1 << 45):
        filled("bad.qcow2").set("size", size)
        refused("bad.qcow2", "size")


def with_bitmaps(name="bad.qcow2"):
    """Two saved bitmaps with dirty bits; and where the second one's directory entry is."""
    filled(name, MIB)
    for bitmap in ("one", "two"):
        r = run("bitmap", [IMG, "bitmap", "-f", "qcow2", "--add", "-g", "64k", name, bitmap])
        assert r.status == 0, r
    r = run("bench", [IMG, "bench", "-q", "-w", "-f", "qcow2", "-c", "4", name])
    assert r.status == 0, r
    image = qcow2.Image(name, True)
    _, _, _, directory = struct.unpack(">IIQQ", dict(image.extensions()[0])[0x23852875])
    return image, directory + 32


@T.sin(
    "bitmap directories",
    "nobody's in particular: entries that run past the directory, names that are none, bits that are nowhere",
    "the image is not written as long as its bitmaps cannot be understood; bits that cannot be read are not clean",
)
def bitmaps_lie():
    for offset, value, words in (
        (20, b"\xff\xff\xff\x00", ("32 are left",)),
        (20, b"\x00\x00\x00\x20", ("32 are left",)),
        (18, b"\xff\xff", ("32 are left",)),
        (18, b"\x00\x00", ("has 64 bytes",)),
    ):
        image, entry = with_bitmaps()
        image.pwrite(entry + offset, value)
        before = digest("bad.qcow2")
        for kind in kinds():
            if kind == "nbdcow":  # nbdkit opens for writing when somebody comes
                serve_refused(kind, "bad.qcow2", ("bitmap",) + words)
        for command in (["--add", "bad.qcow2", "x"], ["--merge", "two", "bad.qcow2", "one"]):
            one_line(run("bitmap", [IMG, "bitmap", "-f", "qcow2"] + command), ("bitmap",) + words)
        r = tool("info", "bad.qcow2")
        if r.status or words[0] not in r.err:
            raise Sin(str(r))
        if digest("bad.qcow2") != before:
            raise Sin("the image was changed")
        bounded("bad.qcow2")
    # A name that is no name: this bitmap alone is not used.
    image, entry = with_bitmaps()
    image.pwrite(entry + 24, b"\x00")
    image.pwrite(entry + 12, bytes(4))  # not enabled: nothing is said of it when the image is opened
    one_line(run("bitmap", [IMG, "bitmap", "-f", "qcow2", "--clear", "bad.qcow2", "?wo"]), ("name is empty or has NUL",))
    r = run("bitmap", [IMG, "bitmap", "-f", "qcow2", "--remove", "bad.qcow2", "?wo"])
    if r.status:
        raise Sin(str(r))
    for value in (0x1234567, 1 << 60 | 0x10000, 1 << 50, 0xFFFFFFFFFE00, 0x10001):
        image, entry = with_bitmaps()
        table = struct.unpack(">Q", image.pread(entry, 8))[0]
        image.pwrite(table, struct.pack(">Q", value))
        r = run("merge", [IMG, "bitmap", "-f", "qcow2", "--merge", "two", "bad.qcow2", "one"])
        if r.status != 1 or "two" not in r.err:
            raise Sin("bits at %#x are taken for true: %s" % (value, r))
        bounded("bad.qcow2")


# ---- names of other files -----------------------------------------------------------------------


def hostile_names(secret):
    """Names under which a file of the host was opened."""
    return [
        "json:{\"driver\":\"file\",\"filename\":\"%s\"}" % secret,
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"%s\"}}" % secret,
        "json:{\"file.filename\":\"%s\",\"driver\":\"raw\"}" % secret,
        "file:" + secret,
        "file://" + secret,
        "fat:" + os.path.dirname(secret),
        "vvfat:" + os.path.dirname(secret),
        "host_device:" + secret,
        "nbd:unix:/nonesuch",
        "nbd+unix:///?socket=/nonesuch",
        "blkdebug::" + secret,
        "raw:" + secret,
        secret,
        os.path.relpath(secret),
        "./x/../" + os.path.relpath(secret),
        "/proc/self/cwd/" + os.path.relpath(secret),
    ]


def make_secret():
    os.makedirs("elsewhere", exist_ok=True)
    secret = os.path.abspath("elsewhere/secret")
    with open(secret, "wb") as f:
        f.write((SECRET + "\n").encode().ljust(65536, b"#") * 16)
    os.makedirs("images", exist_ok=True)
    return secret


def trouble(command):
    """The exit status for errors: compare's 1 is for a difference."""
    return 2 if command[0] == "compare" else 1


def shows_nothing(r):
    if SECRET in r.out or SECRET in r.err or SECRET.encode() in getattr(r, "data", b""):
        raise Sin("%s: shows the secret" % r.name)


@T.sin(
    "CVE-2024-4467",
    "qemu-img info opened what the data file's name said, json: and all, and could read, write or hang on it",
    "info, check and map of an image look at that file alone; a name is never a protocol or JSON",
)
def data_file_info():
    secret = make_secret()
    os.mkfifo("elsewhere/fifo")
    for name in hostile_names(secret) + [os.path.abspath("elsewhere/fifo"), "/dev/null", "x" * 1023]:
        create("images/bad.qcow2")
        set_names("images/bad.qcow2", data_file=name, raw=True)
        with Watch(secret, "elsewhere/fifo"):
            for what in ("info", "check"):
                r = tool(what, "images/bad.qcow2")
                shows_nothing(r)
                if r.status:
                    raise Sin(str(r))
            for what in ("map", "convert"):
                r = tool(what, "images/bad.qcow2")
                shows_nothing(r)
                one_line(r, ["data file"])
    os.unlink("elsewhere/fifo")


@T.sin(
    "CVE-2024-32498",
    "an uploaded image named a data file of the host, and converting it handed that out",
    "a data file outside the image's directory takes a word from the user, in every program",
)
def data_file_outside():
    secret = make_secret()
    for name in hostile_names(secret):
        create("images/bad.qcow2")
        set_names("images/bad.qcow2", data_file=name)
        with Watch(secret):
            refused("images/bad.qcow2", ("data-file-policy=any", "data-file=FILE"), tools=("map", "convert"))
            for command in (
                ["resize", "-f", "qcow2", "images/bad.qcow2", "16M"],
                ["snapshot", "-f", "qcow2", "-c", "x", "images/bad.qcow2"],
                ["bitmap", "-f", "qcow2", "--add", "images/bad.qcow2", "b"],
                ["amend", "-f", "qcow2", "-o", "lazy_refcounts=on", "images/bad.qcow2"],
                ["compare", "images/bad.qcow2", "images/bad.qcow2"],
                ["dd", "-f", "qcow2", "-O", "raw", "if=images/bad.qcow2", "of=out.raw"],
                ["bench", "-f", "qcow2", "-c", "1", "images/bad.qcow2"],
                ["rebase", "-f", "qcow2", "-u", "-b", "", "images/bad.qcow2"],
            ):
                r = run("nbdcow-img " + command[0], [IMG] + command)
                shows_nothing(r)
                one_line(r, ["data file"], status=trouble(command))
    # The word lets it be.
    create("images/bad.qcow2")
    set_names("images/bad.qcow2", data_file=secret)
    with Watch(secret) as w:
        r = tool("map", "images/bad.qcow2", "--data-file-policy=any")
        if r.status or not w.opened():
            raise Sin("--data-file-policy=any: " + str(r))


@T.sin(
    "CVE-2026-24708",
    "resizing a raw disk without saying so took the header that its guest had written for true, and destroyed "
    "what that named as its data file",
    "a format that was only found out lets no data file be written; with -f raw the header is data",
)
def resized_by_guess():
    os.makedirs("images", exist_ok=True)
    with open("images/victim", "wb") as f:
        f.write(b"V" * 4 * MIB)
    for raw in (False, True):
        create("images/guest.raw", "1M")
        set_names("images/guest.raw", data_file="victim", raw=raw)
        before = digest("images/victim"), digest("images/guest.raw")
        for size in ("2M", "8M"):
            one_line(run("resize", [IMG, "resize", "images/guest.raw", size]), ["data file", "-f qcow2"])
        one_line(run("resize --shrink", [IMG, "resize", "--shrink", "images/guest.raw", "64k"]), ["data file"])
        one_line(run("bench", [IMG, "bench", "-w", "-c", "1", "images/guest.raw"]), ["data file"])
        if (digest("images/victim"), digest("images/guest.raw")) != before:
            raise Sin("a file was changed")
        r = run("resize -f raw", [IMG, "resize", "-f", "raw", "images/guest.raw", "8M"])
        if r.status or os.stat("images/guest.raw").st_size != 8 * MIB or digest("images/victim") != before[0]:
            raise Sin(str(r))
    # Servers never take a file for raw, and with the format raw the header is data.
    for kind in kinds():
        serve_refused(kind, "images/victim", ["raw"])


@T.sin(
    "CVE-2008-1945",
    "the format of a removable disk was found out anew, from what its guest had written",
    "servers take no file for raw unless told, and what they are told is not found out again",
)
def removable():
    secret = make_secret()
    for kind in kinds():
        with open("images/disk.raw", "wb") as f:
            f.truncate(MIB)
        raw = ["--format=raw"] if kind == "nbdcow" else ["format=raw"]
        serve_refused(kind, "images/disk.raw", ["raw"])
        create("header.qcow2")
        set_names("header.qcow2", backing=secret, fmt="raw")
        with Watch(secret), Server(kind, "images/disk.raw", raw) as s:
            if not s.started:
                raise Sin(s.text())
            # The guest writes a header; later somebody else connects, or asks what it is.
            r = run("writing", [IMG, "convert", "-n", "-f", "raw", "-O", "raw", "header.qcow2", s.uri])
            if r.status:
                raise Sin(str(r))
            r = run("reading", [IMG, "convert", "-f", "raw", "-O", "raw", s.uri, "got.raw"])
            with open("got.raw", "rb") as f:
                if r.status or f.read(4) != b"QFI\xfb":
                    raise Sin("the header is not what is read: " + str(r))
        with Watch(secret), Server(kind, "images/disk.raw", raw) as s:
            if not s.started:
                raise Sin(s.text())


@T.sin(
    "CVE-2008-2004",
    "the guest of a raw disk wrote a header that names a file of the host, and got that after a restart",
    "a backing file whose format is not recorded is refused, and never looked into to find out",
)
def probed_backing():
    secret = make_secret()
    create("images/base.raw", "1M")  # what the guest of a raw disk has written
    set_names("images/base.raw", backing=secret, fmt="raw")
    create("images/top.qcow2", "1M")
    set_names("images/top.qcow2", backing="base.raw")
    with Watch(secret, "images/base.raw"):
        refused("images/top.qcow2", "not recorded", ("backing=probe", "prob"), tools=("map", "convert"))
        for command in (
            ["rebase", "-f", "qcow2", "-b", "", "images/top.qcow2"],
            ["commit", "-f", "qcow2", "images/top.qcow2"],
            ["info", "--backing-chain", "images/top.qcow2"],
            ["compare", "images/top.qcow2", "images/top.qcow2"],
            ["resize", "-f", "qcow2", "images/top.qcow2", "2M"],
        ):
            before = digest("images/top.qcow2")
            one_line(run(command[0], [IMG] + command), ["not recorded"], status=trouble(command))
            if digest("images/top.qcow2") != before:
                raise Sin("%s changed the image" % command[0])
    # Recorded as raw, the header is data.
    set_names("images/top.qcow2", backing="base.raw", fmt="raw")
    with Watch(secret):
        if tool("convert", "images/top.qcow2").data[:4] != b"QFI\xfb":
            raise Sin("a raw backing file is not what is read")
    # And a new overlay, or another backing file, takes a format.
    one_line(run("create", [IMG, "create", "-q", "-f", "qcow2", "-b", "base.raw", "images/new", "1M"]), ["-F"])
    one_line(run("create -u", [IMG, "create", "-q", "-f", "qcow2", "-u", "-b", "base.raw", "images/new", "1M"]), ["-F"])
    one_line(run("rebase", [IMG, "rebase", "-f", "qcow2", "-b", "base.raw", "images/top.qcow2"]), ["-F"])
    one_line(run("rebase -u", [IMG, "rebase", "-f", "qcow2", "-u", "-b", "base.raw", "images/top.qcow2"]), ["-F"])


@T.sin(
    "CVE-2021-20255",
    "no disk at all: a network card (eepro100) called itself without end, as its guest liked",
    "what a guest or an image can make deep has a bound: 256 layers are read on a stack of 256 KiB, loops refused",
)
def endless():
    create("layer-0", "1M")
    for n in range(1, 256):
        copy("layer-0", "layer-%d" % n)
        set_names("layer-%d" % n, backing="layer-%d" % (n - 1), fmt="qcow2")
    for what in ("map", "convert"):
        r = tool(what, "layer-255", stack=256 << 10)
        if r.status:
            raise Sin(str(r))
    r = run("info --backing-chain", [IMG, "info", "--backing-chain", "layer-255"], stack=256 << 10)
    if r.status:
        raise Sin(str(r))
    for kind in kinds():
        with Server(kind, "layer-255", ["-r"]) as s:
            r = run("reading", [IMG, "convert", "-f", "raw", "-O", "raw", s.uri, "got.raw"])
            if not s.started or r.status:
                raise Sin("256 layers: %s: %s" % (s.text(), r))
    set_names("layer-0", backing="layer-255", fmt="qcow2")
    refused("layer-255", ("loop", "256"), tools=("map", "convert"))
    for command in (["info", "--backing-chain"], ["commit", "-b", "nonesuch"], ["rebase", "-b", ""]):
        r = run(command[0], [IMG] + command + ["-f", "qcow2", "layer-255"])
        if r.status != 1:
            raise Sin(str(r))
    for n in range(256):
        os.unlink("layer-%d" % n)


@T.sin(
    "CVE-2022-0485",
    "nbdcopy took no notice of reads that failed, and made a copy that was silently wrong",
    "convert, compare, dd, commit and rebase fail when a read fails; the copy is not passed for a good one",
)
def ignored_errors():
    def damage():
        filled("bad.qcow2", MIB)
        image = qcow2.Image("bad.qcow2", True)
        image.pwrite(image.l2_entry_at(0x50000), struct.pack(">Q", 1 << 63 | 0x12345600))

    damage()
    filled("good.qcow2", MIB)
    for command in (
        ["convert", "-f", "qcow2", "-O", "qcow2", "bad.qcow2", "out.qcow2"],
        ["convert", "-f", "qcow2", "-O", "raw", "bad.qcow2", "out.raw"],
        ["dd", "-f", "qcow2", "-O", "raw", "if=bad.qcow2", "of=out.raw"],
        ["compare", "-f", "qcow2", "-F", "qcow2", "bad.qcow2", "good.qcow2"],
        ["bench", "-f", "qcow2", "-c", "64", "-s", "65536", "bad.qcow2"],
    ):
        r = run(command[0], [IMG] + command)
        if r.status == 0 or not r.err:
            raise Sin("%s does not mind" % r)
    create("top.qcow2", "1M")
    set_names("top.qcow2", backing="bad.qcow2", fmt="qcow2")
    r = run("rebase", [IMG, "rebase", "-f", "qcow2", "-b", "", "top.qcow2"])
    if r.status == 0 or not qcow2.Image("top.qcow2").get("backing_file_offset"):
        raise Sin("%s: the overlay lost its backing file" % r)
    for kind in kinds():
        damage()
        with Server(kind, "bad.qcow2", ["-r"]) as s:
            r = run("convert over NBD", [IMG, "convert", "-f", "raw", "-O", "raw", s.uri, "got.raw"])
            if not s.started or r.status == 0:
                raise Sin("%s does not mind" % r)


if __name__ == "__main__":
    T.main()
