#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img create beside qemu-img create: the same options give the same report on stdout, the same
# image as both tools' info sees it, and an image that both tools' check finds sound; what one refuses
# the other refuses, in one line, leaving nothing behind.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img
requires_python
in_memory 400
export NBDCOW_IMG

cat >create.py <<'END'
import itertools, json, os, subprocess, sys

IMG = os.environ["NBDCOW_IMG"]
cases = made = refused = 0

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

def comparable(j):
    # Ours to add, and what depends on where the clusters lie.
    skip = ("highest-allocated-offset", "actual-size", "filename", "children")
    if isinstance(j, dict):
        return {k: comparable(v) for k, v in j.items() if k not in skip}
    return [comparable(x) for x in j] if isinstance(j, list) else j

def info(tool, name, *args):
    p = run(tool, "info", "--output", "json", *args, name)
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout)

def case(args, size, unsafe=False):
    global cases, made, refused
    cases += 1
    for name in ("theirs", "ours"):
        if os.path.exists(name):
            os.unlink(name)
    def bad(what, *more):
        sys.exit("create %s: %s: %s" % (" ".join(args + size), what, " ".join(map(str, more))))
    theirs = run("qemu-img", "create", *args, "theirs", *size)
    ours = run(IMG, "create", *args, "ours", *size)
    if (theirs.returncode == 0) != (ours.returncode == 0):
        bad("qemu-img: %d, nbdcow-img: %d" % (theirs.returncode, ours.returncode), theirs.stderr, ours.stderr)
    if ours.returncode != 0:
        refused += 1
        if ours.returncode != 1 or ours.stderr.count("\n") != 1:
            bad("not refused in one line", ours.returncode, ours.stderr, ours.stdout)
        if os.path.exists("ours"):
            bad("left a file behind")
        return
    made += 1
    if ours.stderr or ours.stdout != theirs.stdout.replace("theirs", "ours"):
        bad("said", ours.stdout, ours.stderr, "instead of", theirs.stdout)
    chain = [] if unsafe else ["--backing-chain"]
    want = comparable(info("qemu-img", "theirs", *chain))
    for tool in "qemu-img", IMG:
        got = info(tool, "ours", *chain)
        if comparable(got) != want:
            bad(tool + " info", got, "instead of", want)
    highest = (got if unsafe else got[0]).get("highest-allocated-offset")
    if "raw" in args[:2]:
        return
    ours = run(IMG, "check", "--output", "json", "ours")
    if ours.returncode != 0:
        bad("check", ours.stdout, ours.stderr)
    if not unsafe: # qemu-img wants to open the backing file
        theirs = run("qemu-img", "check", "--output", "json", "ours")
        if theirs.returncode != 0 or json.loads(theirs.stdout) != json.loads(ours.stdout):
            bad("check", ours.stdout, "and qemu-img", theirs.stdout, theirs.stderr)
    want = json.loads(ours.stdout)["image-end-offset"]
    if highest != want:
        got = highest
        bad("highest allocated offset", got, "instead of", want)

def option(*pairs):
    return ["-f", "qcow2", "-o", ",".join(pairs)]

# Geometry: every width with the extreme cluster sizes, every cluster size with the usual width.
# Of the sizes each meets every width and every cluster size, if not both at once.
sizes = "0", "1000", "1.5M", "10G"
for n, (c, r) in enumerate(list(itertools.product(("512", "64k", "2M"), ("1", "2", "4", "8", "16", "32", "64"))) +
                           [(c, "16") for c in ("1k", "4K", "128k", "1M")]):
    for size in sizes[n % 4], sizes[(n + n // 7 + 1) % 4]:
        case(option("cluster_size=" + c, "refcount_bits=" + r), [size])
# Two names for each version: which is used does not depend on the rest.
for c, compat in (list(itertools.product(("512", "64k", "2M"), ("0.10", "v3"))) + [("4k", "v2"), ("4k", "1.1")]):
    for extra in ("lazy_refcounts=on", "compression_type=zstd", "preallocation=metadata",
                  "preallocation=falloc", "preallocation=full", "refcount_bits=1"):
        case(option("cluster_size=" + c, "compat=" + compat, extra), ["3M"])
case(option("cluster_size=512", "refcount_bits=64", "preallocation=metadata"), ["20M"])
case(option("cluster_size=64k", "preallocation=metadata"), ["50G"])

# Extended L2 entries.
for c, compat in itertools.product(("512", "8k", "16k", "64k", "2M"), ("v2", "v3")):
    for size in ("0", "1000", "1G") if compat == "v3" else ("1G",):
        case(option("cluster_size=" + c, "compat=" + compat, "extended_l2=on"), [size])
case(option("extended_l2=off"), ["1G"])
for mode in "metadata", "falloc", "full":
    case(option("extended_l2=on", "preallocation=" + mode), ["40M"])
    case(option("extended_l2=on", "cluster_size=16k", "preallocation=" + mode), ["70M"])
case(option("extended_l2=on"), ["1000"])
case(option("extended_l2=maybe"), ["1M"])
for c, size in (("16k", "64T"), ("16k", "65T"), ("64k", "1P"), ("64k", "2P")):
    case(option("extended_l2=on", "cluster_size=" + c), [size])

# Too large, or not.
for c, size in (("512", "128G"), ("512", "129G"), ("64k", "2P"), ("64k", "3P"), ("2M", "2E"), ("2M", "3E")):
    case(option("cluster_size=" + c), [size])

# Backing files.
open("base.raw", "wb").truncate(3 << 20)
run("qemu-img", "create", "-q", "-f", "qcow2", "base.q", "5M")
open("ba,se", "wb").truncate(1 << 20)
os.mkdir("sub")
open("sub/deep.raw", "wb").truncate(1 << 20)
for backing in (["base.raw", "-F", "raw"], ["base.q", "-F", "qcow2"], ["./base.q", "-F", "qcow2"],
                [os.getcwd() + "/base.raw", "-F", "raw"], ["ba,se", "-F", "raw"],
                ["sub/deep.raw", "-F", "raw"]):
    for c, compat in itertools.product(("512", "64k"), ("v2", "v3")):
        for size in [], ["1M"], ["7M"]:
            case(option("cluster_size=" + c, "compat=" + compat) + ["-b"] + backing, size)
for backing in (["nope", "-F", "raw"], ["base.q"], ["base.q", "-F", "vmdk"], ["base.raw", "-F", "qcow2"]):
    for size in [], ["1M"]:
        case(["-f", "qcow2", "-b"] + backing, size)
case(["-f", "qcow2", "-u", "-b", "nope", "-F", "raw"], ["1M"], unsafe=True)
case(["-f", "qcow2", "-u", "-b", "nope", "-F", "raw"], [])
case(["-f", "qcow2", "-u", "-b", "n" * 1023, "-F", "raw"], ["1M"], unsafe=True)
case(["-f", "qcow2", "-u", "-b", "n" * 1024, "-F", "raw"], ["1M"])
for c, length in (("512", 300), ("512", 500), ("1k", 800), ("1k", 1000)):
    case(option("cluster_size=" + c) + ["-u", "-b", "n" * length, "-F", "raw"], ["1M"], unsafe=True)
case(option("preallocation=metadata") + ["-b", "base.raw", "-F", "raw"], ["1M"])
for mode in "off", "metadata", "falloc", "full":
    case(option("extended_l2=on", "preallocation=" + mode) + ["-b", "base.raw", "-F", "raw"], ["1M"])
case(option("backing_file=ba,,se", "backing_fmt=raw"), [])

# Raw.
for mode in "off", "falloc", "full", "metadata":
    for size in ["3M"], ["1000"], []:
        case(["-f", "raw", "-o", "preallocation=" + mode], size)
case(["-f", "raw", "-b", "base.raw", "-F", "raw"], ["1M"])

# Nonsense.
for o in ("cluster_size=1000", "cluster_size=256", "cluster_size=4M", "cluster_size=x", "refcount_bits=3",
          "refcount_bits=128", "refcount_bits=0", "compat=9", "foo=bar", "lazy_refcounts=maybe",
          "compression_type=lzma", "preallocation=x", "size=x"):
    case(option(o), ["1M"])
for size in "1x", "-1", "9E", "8E", "1e3", "1.5", "", "0x", "k", "1kk":
    case(["-f", "qcow2"], [size])
for size in "0x1000", "1.7k", "007", "1b", "1.5K", "0.25M":
    case(["-f", "qcow2"], [size])
case(option("size=7M"), [])
case(option("size=7M"), ["7M"])
case(["-f", "vmdk_"], ["1M"])

# What QEMU can make and we cannot is refused by its name.
for o in "encryption=on", "encrypt.format=luks":
    p = run(IMG, "create", "-o", o, "ours2", "1M")
    if p.returncode != 1 or o.split("=")[0] not in p.stderr or os.path.exists("ours2"):
        sys.exit("create -o %s: %d %s" % (o, p.returncode, p.stderr))

print("%d cases: %d made, %d refused" % (cases, made, refused))
if made < 120 or refused < 40:
    sys.exit("fewer cases than there should be")
END
"$PYTHON" create.py

# An image in use is not overwritten; one that is not, is.
"$NBDCOW_IMG" create -q -f qcow2 used.qcow2 1M
sum=$(digest used.qcow2)
mkfifo hold
qemu-io -f qcow2 used.qcow2 <hold >/dev/null 2>&1 &
track $!
exec 3>hold
echo 'write 0 4k' >&3
written ()
{
  ! unchanged_quietly
}
unchanged_quietly ()
{
  [ "$(digest used.qcow2)" = "$sum" ]
}
echo 'flush' >&3
wait_for 20 written || fail "qemu-io did not write"
sum=$(digest used.qcow2)
s=0
"$NBDCOW_IMG" create -q -f qcow2 used.qcow2 2M 2>log || s=$?
one_line $s log used.qcow2 "in use" || fail "create over an image in use: $REASON"
unchanged "$sum" used.qcow2
exec 3>&-
wait
"$NBDCOW_IMG" create -q -f qcow2 used.qcow2 2M
check_image used.qcow2

# A data file that is kept.
head -c 1000000 /dev/urandom >kept.raw
cp kept.raw kept.copy
truncate -s 1M kept.copy
for how in data_file_raw=on preallocation=metadata; do
  "$NBDCOW_IMG" create -q -f qcow2 -o data_file=kept.raw,keep_data_file=on,$how keeps.qcow2 1M
  cmp kept.raw kept.copy || fail "keep_data_file=on,$how has changed the file"
  check_image keeps.qcow2
  same_contents keeps.qcow2 qcow2 kept.copy raw
done
# must_refuse_create TEXT OPTIONS
must_refuse_create ()
{
  s=0
  "$NBDCOW_IMG" create -q -f qcow2 -o "$2" kept.qcow2 1M 2>log || s=$?
  one_line $s log "$1" || fail "create -o $2: $REASON"
  [ ! -e kept.qcow2 ] || fail "create -o $2 left an image behind"
  cmp kept.raw kept.copy || fail "create -o $2 has changed the data file"
}
must_refuse_create "keep_data_file without" keep_data_file=on
must_refuse_create "data_file_raw=on or" data_file=kept.raw,keep_data_file=on
must_refuse_create "preallocation" data_file=kept.raw,keep_data_file=on,data_file_raw=on,preallocation=full
must_refuse_create "nonesuch.raw" data_file=nonesuch.raw,keep_data_file=on,data_file_raw=on
