#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img diff: between snapshots, a snapshot and the present, and images of one chain, exactly the
# sectors that differ (--exact), and without reading at least those.
#
# SEED: of the images' contents.  ROUNDS: images.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
use_seed
in_memory 400
ROUNDS=${ROUNDS:-10}
export NBDCOW_IMG ROUNDS

cat >diff.py <<'END'
import json, os, random, subprocess, sys

IMG, SEED, ROUNDS = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), int(os.environ["ROUNDS"])

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

def fail(*what):
    sys.exit("SEED=%d: %s" % (seed, " ".join(map(str, what))))

def contents(name, snapshot=None):
    p = run("qemu-img", "convert", "-O", "raw", *(("-l", "snapshot.name=" + snapshot) if snapshot else ()), name, "contents")
    assert p.returncode == 0, p.stderr
    return open("contents", "rb").read()

def sectors(extents):
    return {s for e in extents for s in range(e["start"] // 512, (e["start"] + e["length"] + 511) // 512)}

def check(a, b, *args):
    size = max(len(a), len(b))
    a, b = a.ljust(size, b"\0"), b.ljust(size, b"\0")
    truth = {s for s in range(size // 512) if a[s * 512:s * 512 + 512] != b[s * 512:s * 512 + 512]}
    for exact in (), ("--exact",):
        p = run(IMG, "diff", "--output=json", *exact, *args)
        if p.returncode:
            fail("diff", *exact, *args, p)
        j = json.loads(p.stdout)
        got = sectors(j["extents"])
        if j["changed"] != sum(e["length"] for e in j["extents"]):
            fail("diff", *args, "changed", j["changed"])
        if exact and got != truth or not truth <= got:
            fail("diff", *exact, *args, "differ in", sorted(got ^ truth)[:20])
        for e in j["extents"] if exact else ():
            now = b[e["start"]:e["start"] + e["length"]]
            if e["zero"] != (not any(now)):
                fail("diff", *args, "zero is wrong at", e)
        text = run(IMG, "diff", *exact, *args).stdout.splitlines()[1:]
        if [[int(w, 16) for w in l.split()[:2]] for l in text] != [[e["start"], e["length"]] for e in j["extents"]]:
            fail("diff", *args, "the text differs from the JSON")
    return len(got)

def change(name, r, size):
    words = []
    for _ in range(r.randrange(8)):
        at = r.randrange(size // 512) * 512
        n = min(size - at, r.choice((512, 4096, 65536, 300 * 1024)))
        words += ["-c", "%s %d %d" % (r.choice(("write -P %d" % r.randrange(1, 9), "write -z", "discard")), at, n)]
    run("qemu-io", "-d", "unmap", "-f", "qcow2", *words, name)

done = 0
for seed in range(SEED, SEED + ROUNDS):
    r = random.Random(seed)
    size = r.choice((1 << 20, (4 << 20) + 512))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=%d" % r.choice((512, 65536)), "disk", str(size))
    states = []
    for n in range(3):
        change("disk", r, size)
        run("qemu-img", "snapshot", "-c", "s%d" % n, "disk")
        states.append(contents("disk"))
    change("disk", r, size)
    now = contents("disk")
    for n in range(3):
        done += check(states[n], now, "--from=s%d" % n, "disk")
        done += check(now, states[n], "--to=s%d" % n, "disk")
    done += check(states[0], states[2], "--from=s0", "--to", "s2", "disk")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk", "-F", "qcow2", "top", str(size + r.choice((0, 1 << 20))))
    if check(now, contents("top"), "disk", "top") != 0:
        fail("an empty overlay differs from its base")
    change("top", r, size)
    done += check(now, contents("top"), "disk", "top")
    done += check(states[1], contents("top"), "--from=s1", "disk", "top")

seed = SEED
for args, word in (["disk"], "--from"), (["--from=nonesuch", "disk"], "nonesuch"), ([], "file name"), (["a", "b"], "a"):
    p = run(IMG, "diff", *args)
    if p.returncode != 1 or len(p.stderr.splitlines()) != 1 or word not in p.stderr:
        fail("diff", *args, p)
print("%d images, %d sectors told" % (ROUNDS, done))
END
"$PYTHON" diff.py
