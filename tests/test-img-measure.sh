#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img measure beside qemu-img measure: the same numbers, for all sizes of clusters and
# refcounts, for files of every kind, bitmaps and snapshots; and an image that is then made takes no
# more than was said.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
in_memory 400
use_seed
export NBDCOW_IMG

cat >measure.py <<'END'
import json, os, random, subprocess, sys

IMG, SEED = os.environ["NBDCOW_IMG"], int(os.environ["SEED"])
r = random.Random(SEED)
compared = refused = 0

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

def same(*args):
    global compared, refused
    theirs, ours = run("qemu-img", "measure", "--output=json", *args), run(IMG, "measure", "--output=json", *args)
    if theirs.returncode != ours.returncode:
        sys.exit("SEED=%d: measure %s: %s, but %s" % (SEED, " ".join(args), theirs, ours))
    compared += 1
    if theirs.returncode:
        refused += 1
        if len(ours.stderr.splitlines()) != 1 or ours.stdout:
            sys.exit("measure %s: %s" % (" ".join(args), ours))
        return None
    if json.loads(theirs.stdout) != json.loads(ours.stdout):
        sys.exit("SEED=%d: measure %s: %s, but %s" % (SEED, " ".join(args), theirs.stdout, ours.stdout))
    theirs, ours = run("qemu-img", "measure", *args), run(IMG, "measure", *args)
    if theirs.stdout != ours.stdout:
        sys.exit("measure %s: %s, but %s" % (" ".join(args), theirs.stdout, ours.stdout))
    return json.loads(run(IMG, "measure", "--output=json", *args).stdout)

clusters = [512 << i for i in range(13)]
for c in clusters:
    for bits in 1, 16, 64:
        same("--size", str(r.randrange(1, 1 << 45)), "-O", "qcow2", "-o", "cluster_size=%d,refcount_bits=%d" % (c, bits))
    for size in ("0", "1", "512", "513", str(c), str(c + 1), "7G", str(c * c)):
        same("--size=" + size, "-O", "qcow2", "-o", "cluster_size=%d" % c)
    for mode in "metadata", "falloc", "full":
        same("--size=3G", "-O", "qcow2", "-o", "cluster_size=%d,preallocation=%s" % (c, mode))
same("--size=1G", "-O", "qcow2", "-o", "compat=0.10")
same("--size=1G", "-O", "qcow2", "-o", "backing_file=x,backing_fmt=raw")
same("--size=1000", "-O", "raw")
same("--size=1000")
same("--size=5E", "-O", "qcow2")
same("--size=1P", "-O", "qcow2", "-o", "cluster_size=512")
for c in "16k", "64k", "2M":
    for size in "0", "1", "3G", "77T", "900T":
        same("--size=" + size, "-O", "qcow2", "-o", "extended_l2=on,cluster_size=" + c)
same("--size=1G", "-O", "qcow2", "-o", "extended_l2=on,cluster_size=8k")
same("--size=x")
same("--size=-1")
same()
same("-O", "qcow2")
same("--size=1M", "nonesuch")
same("nonesuch")
same("--size=1M", "-O", "nonesuch")
same("--size=1M", "-O", "qcow2", "-o", "nonesuch=1")
same("--size=1M", "-f", "qcow2")
same("-l", "x", "--size=1M")
same("a", "b")

def io(name, *commands):
    run("qemu-io", "-d", "unmap", *[w for c in commands for w in ("-c", c)], name)
    with open(name, "rb+") as f: # else two programs may see different holes
        os.fsync(f.fileno())

for n in range(12):
    size = r.choice((1 << 20, 64 << 20, (5 << 20) + 512))
    cluster = r.choice((512, 4096, 65536, 2 << 20))
    name = "disk%d" % n
    if n % 4 == 3:
        open(name, "wb").truncate(size)
    else:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=%d" % cluster, name, str(size))
    for _ in range(r.randrange(12)):
        at = r.randrange(size // 512) * 512
        io(name, "write -P 5 %d %d" % (at, min(size - at, r.choice((512, 4096, 65536, 700 * 1024)))))
    if n % 4 == 0:
        run("qemu-img", "snapshot", "-c", "snap", name)
        io(name, "write -P 6 0 %d" % min(size, 256 * 1024), "write -z 512 1024")
        same("-l", "snap", "-O", "qcow2", name)
        same("-l", "snapshot.name=snap", "-O", "qcow2", name)
        same("-l", "nonesuch", "-O", "qcow2", name)
    if n % 4 == 1:
        run("qemu-img", "bitmap", "--add", "-g", "512", name, "b0")
        run("qemu-img", "bitmap", "--add", "-g", "64k", "--disable", name, "longer name")
    for c in r.sample(clusters, 4):
        same("-O", "qcow2", "-o", "cluster_size=%d" % c, name)
    same("-O", "raw", name)
    same("-O", "qcow2", "-o", "backing_file=x,backing_fmt=raw", name)
    same("-O", "qcow2", "-o", "preallocation=falloc", name)
    said = same("-O", "qcow2", name)
    run("qemu-img", "convert", "-O", "qcow2", name, "made")
    if os.path.getsize("made") > said["required"] + said.get("bitmaps", 0):
        sys.exit("measure %s said %s, but the image has %d bytes" % (name, said, os.path.getsize("made")))
print("%d compared, %d of them refused" % (compared, refused))
END
"$PYTHON" measure.py
