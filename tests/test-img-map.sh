#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img map beside qemu-img map: the same JSON, the same text, the same exit status, for images
# with every kind of cluster, chains of all shapes, and raw files with holes.
#
# SEED: of the images' contents.  ROUNDS: images.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
in_memory 400
use_seed
ROUNDS=${ROUNDS:-25}
export NBDCOW_IMG ROUNDS

cat >map.py <<'END_OF_PYTHON'
import json, os, random, subprocess, sys

IMG, SEED, ROUNDS = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), int(os.environ["ROUNDS"])

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

def must(*args):
    p = run(*args)
    if p.returncode:
        sys.exit("%s: %s" % (" ".join(args), p.stderr))

compared = 0

def same(name, *args):
    global compared
    compared += 1
    theirs = run("qemu-img", "map", "--output=json", *args, name)
    ours = run(IMG, "map", "--output=json", *args, name)
    if theirs.returncode != ours.returncode:
        sys.exit("SEED=%d: map %s %s: %s, but %s" % (SEED, " ".join(args), name, theirs, ours))
    if theirs.returncode == 0:
        t, o = json.loads(theirs.stdout), json.loads(ours.stdout)
        if t and "compressed" not in t[0]: # QEMU before 8.2: the extents may also be cut there
            for e in o:
                del e["compressed"]
            joined = []
            for e in o:
                if joined and all(e.get(k) == joined[-1].get(k) for k in ("depth", "present", "zero", "data")) \
                        and "offset" not in e and "offset" not in joined[-1]:
                    joined[-1]["length"] += e["length"]
                else:
                    joined.append(e)
            o = joined
        if t != o:
            at = next((i for i, (a, b) in enumerate(zip(t, o)) if a != b), min(len(t), len(o)))
            sys.exit("SEED=%d: map %s %s: entry %d: %s, but %s" % (SEED, args, name, at, t[at:at + 3], o[at:at + 3]))
    theirs = run("qemu-img", "map", *args, name)
    ours = run(IMG, "map", *args, name)
    if theirs.returncode != ours.returncode or theirs.stdout != ours.stdout:
        sys.exit("SEED=%d: map %s %s:\n%s\nbut\n%s" % (SEED, args, name, theirs, ours))
    if ours.returncode and len(ours.stderr.splitlines()) != 1:
        sys.exit("map %s: %s" % (name, ours.stderr))

def fill(name, fmt, r, size, cluster, compressed):
    commands = []
    for _ in range(r.randrange(1, 30)):
        at = r.randrange(size // 512) * 512
        length = min(size - at, r.choice((512, 4096, cluster, cluster * 3, 300 * 1024)))
        if length == 0:
            continue
        kind = r.choice(("write -P 7", "write -P 8", "write -z", "write -z -u", "discard"))
        commands += ["-c", "%s %d %d" % (kind, at, length)]
    if compressed:
        for _ in range(r.randrange(6)):
            at = r.randrange(max(1, size // cluster)) * cluster
            if at + cluster <= size:
                commands += ["-c", "write -c -P 9 %d %d" % (at, cluster)]
    # Two programs see the same holes only once the file system has made up its mind.
    # What is allocated cannot be written compressed: that command then fails, and the others count.
    run("qemu-io", "-d", "unmap", "-f", fmt, *commands, name)
    with open(name, "rb+") as f:
        os.fsync(f.fileno())

for seed in range(SEED, SEED + ROUNDS):
    r = random.Random(seed)
    depth = r.choice((1, 1, 2, 3))
    backing = []
    for layer in range(depth):
        name = "m%d-%d" % (seed, layer)
        size = r.choice((1 << 20, 3 << 20, (2 << 20) + 512, 5 << 20))
        if layer == 0 and r.random() < 0.3:
            with open(name, "wb") as f:
                f.truncate(size)
            fill(name, "raw", r, size, 65536, False)
            backing = ["-b", name, "-F", "raw"]
            if depth == 1:
                same(name, "-f", "raw")
        else:
            cluster = r.choice((512, 4096, 65536, 65536, 1 << 20))
            options = "cluster_size=%d" % cluster
            if not backing and r.random() < 0.2:
                options += ",preallocation=" + r.choice(("metadata", "falloc", "full"))
            must("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *backing, name, str(size))
            fill(name, "qcow2", r, size, cluster, r.random() < 0.4)
            if r.random() < 0.2:
                must("qemu-img", "snapshot", "-c", "s", name)
                fill(name, "qcow2", r, size, cluster, False)
            backing = ["-b", name, "-F", "qcow2"]
            same(name)
            same(name, "-f", "qcow2", "--start-offset", str(r.randrange(size // 512) * 512))
            same(name, "-s", "64k", "-l", str(r.randrange(1, size // 512) * 512))
            same(name, "--max-length=1M", "-U")

# An empty disk, and one of which all is unallocated.
must("qemu-img", "create", "-q", "-f", "qcow2", "none", "0")
same("none")
same("none", "-s", "1M")
must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "much", "100G")
same("much")
must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "sparse", "1G")
same("sparse")
# --image-opts and json: names.
same("driver=qcow2,file.filename=sparse", "--image-opts", "-l", "1M")
same('json:{"driver": "raw", "file": {"driver": "file", "filename": "sparse"}}')
# Refused.
same("nonesuch")
same("sparse", "-f", "nonesuch")
same("sparse", "-s", "x")
print("%d maps compared" % compared)
END_OF_PYTHON
"$PYTHON" map.py

# ---- the picture -----------------------------------------------------------------------------

# Well-formed, and its numbers are those of the file: what was written, what was leaked.
qemu-img create -q -f qcow2 -o cluster_size=64k pic.qcow2 64M
qemu-io -f qcow2 -c 'write -P 1 0 4M' -c 'write -P 2 32M 1M' -c 'write -c -P 3 48M 64k' pic.qcow2 >/dev/null
"$PYTHON" "$SRCDIR/qcow2.py" l2 pic.qcow2 0 0 # the first cluster of data is leaked
"$NBDCOW_IMG" map --output=svg pic.qcow2 >pic.svg || fail "map --output=svg"
"$PYTHON" - <<'END'
import re, xml.etree.ElementTree as tree
texts = [t.text for t in tree.parse("pic.svg").iter("{http://www.w3.org/2000/svg}text")]
sizes = dict(re.fullmatch(r"(\w+) (.*)", t).groups() for t in texts if re.fullmatch(r"\w+ [\d.]+ [KMG]?i?B", t))
assert sizes["data"] == "4.94 MiB" and sizes["leaked"] == "64 KiB" and sizes["compressed"] == "64 KiB", sizes
assert sizes["tables"] != "0 B" and sizes["refcounts"] != "0 B", sizes
END
s=0
"$NBDCOW_IMG" map --output=svg -f raw pic.qcow2 >/dev/null 2>err || s=$?
one_line $s err raw || fail "a picture of a raw image: $REASON"
