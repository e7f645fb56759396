#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img compact: the file gets as short as it can, what the disk and its snapshots hold stays, QEMU finds
# the image sound, bitmaps are kept; also when it is interrupted or killed at any moment.
#
# SEED: of the images' contents.  ROUNDS: images.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
in_memory 400
use_seed
ROUNDS=${ROUNDS:-10}
export NBDCOW_IMG ROUNDS

cat >compact.py <<'END'
import hashlib, json, os, random, shutil, signal, subprocess, sys, time

IMG, SEED, ROUNDS = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), int(os.environ["ROUNDS"])

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

def fail(*what):
    sys.exit("SEED=%d: %s" % (seed, " ".join(map(str, what))))

def change(name, r, size, n):
    words = []
    for _ in range(n):
        at = r.randrange(size // 512) * 512
        length = min(size - at, r.choice((512, 4096, 65536, 300 * 1024)))
        words += ["-c", "%s %d %d" % (r.choice(("write -P %d" % r.randrange(1, 255),) * 2 + ("discard", "write -z -u")), at, length)]
    run("qemu-io", "-d", "unmap", "-f", "qcow2", *words, name)

def contents(name, snapshots):
    sums = []
    for s in [None] + snapshots:
        p = run("qemu-img", "convert", "-O", "raw", *(("-l", "snapshot.name=" + s) if s else ()), name, "contents")
        if p.returncode:
            fail(name, p.stderr)
        sums.append(hashlib.sha256(open("contents", "rb").read()).hexdigest())
    p = run("qemu-img", "info", "--output=json", name)
    sums.append(json.loads(p.stdout)["format-specific"]["data"].get("bitmaps"))
    return sums

def sound(name, leaks=False):
    p = run("qemu-img", "check", "-f", "qcow2", name)
    if p.returncode and not (leaks and p.returncode == 3):
        fail(name, p.stdout, p.stderr)

gained = 0
for seed in range(SEED, SEED + ROUNDS):
    r = random.Random(seed)
    size, cluster = r.choice((4 << 20, (9 << 20) + 512)), r.choice((512, 4096, 65536))
    options = "cluster_size=%d,refcount_bits=%d" % (cluster, r.choice((8, 16, 64)))
    if r.random() < 0.2:
        options = "compat=0.10,cluster_size=%d" % cluster
    elif r.random() < 0.3:
        cluster = max(cluster, 16384)
        options = "extended_l2=on,cluster_size=%d" % cluster
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "disk", str(size))
    if r.random() < 0.3:
        run("qemu-io", "-f", "qcow2", "-c", "write -c -P 77 64k 64k", "disk")
    snapshots = []
    for n in range(r.choice((0, 0, 1, 3))):
        change("disk", r, size, 15)
        # QEMU refuses where a cluster would be referred to more often than the width of the counts allows.
        if run("qemu-img", "snapshot", "-c", "s%d" % n, "disk").returncode == 0:
            snapshots.append("s%d" % n)
        else:
            run("qemu-img", "check", "-q", "-r", "leaks", "disk")
    if "compat" not in options and r.random() < 0.4:
        run("qemu-img", "bitmap", "--add", "-g", "512", "disk", "b")
    change("disk", r, size, 40)
    if snapshots and r.random() < 0.5:
        run("qemu-img", "snapshot", "-d", snapshots.pop(0), "disk")
    want = contents("disk", snapshots)
    shutil.copy("disk", "copy")
    for sig in (signal.SIGINT, signal.SIGKILL, signal.SIGKILL):
        p = subprocess.Popen([IMG, "compact", "-q", "copy"], stderr=subprocess.DEVNULL)
        time.sleep(r.random() * 0.02)
        p.send_signal(sig)
        if p.wait(timeout=90) not in (0, 1, -sig):
            fail("status", p.returncode, "after", sig)
        sound("copy", leaks=True)
        if contents("copy", snapshots) != want:
            fail("contents after", sig)
        if run(IMG, "check", "-q", "-r", "leaks", "copy").returncode:
            fail("leaks after", sig, "cannot be mended")
    p = run(IMG, "compact", "--output=json", "disk")
    if p.returncode:
        fail(p)
    j = json.loads(p.stdout)
    sound("disk")
    if contents("disk", snapshots) != want:
        fail("contents", j)
    if os.path.getsize("disk") != j["end-after"] or j["end-after"] > j["end-before"]:
        fail(j, os.path.getsize("disk"))
    highest = json.loads(run(IMG, "info", "--output=json", "disk").stdout)["highest-allocated-offset"]
    if highest > -(-j["end-after"] // cluster) * cluster:
        fail("highest allocated offset", highest, j)
    gained += j["end-before"] - j["end-after"]
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 %d" % size, "disk")
    sound("disk")

seed = SEED
run("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M")
open("raw", "wb").truncate(1 << 20)
for args, word in ((["nonesuch"], "nonesuch"), ([], "file name"), (["-f", "raw", "raw"], "raw"), (["-U", "base"], "-U")):
    p = run(IMG, "compact", *args)
    if p.returncode != 1 or len(p.stderr.splitlines()) != 1 or word not in p.stderr:
        fail("compact", *args, p)
print("%d images, %d bytes gained" % (ROUNDS, gained))
if gained == 0:
    sys.exit("nothing was gained")
END
"$PYTHON" compact.py
