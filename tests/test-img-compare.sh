#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img compare beside qemu-img compare: the same words and the same exit status, for pairs of
# images that differ nowhere, in one sector, in their size, or in what is allocated.
#
# SEED: of the images' contents.  ROUNDS: pairs.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
in_memory 400
use_seed
ROUNDS=${ROUNDS:-40}
export NBDCOW_IMG ROUNDS

cat >compare.py <<'END'
import os, random, re, subprocess, sys

IMG, SEED, ROUNDS = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), int(os.environ["ROUNDS"])
compared, seen = 0, {}

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

def same(*args):
    global compared
    compared += 1
    theirs, ours = run("qemu-img", "compare", *args), run(IMG, "compare", *args)
    # QEMU takes an extent that ends where the disk does for another status than one that does not.
    where = [re.fullmatch(r"Strict mode: Offset (\d+) block status mismatch!\n", x.stdout) for x in (theirs, ours)]
    if all(where) and int(where[0][1]) < int(where[1][1]):
        ours.stdout = theirs.stdout
    if (theirs.returncode, theirs.stdout) != (ours.returncode, ours.stdout) or bool(theirs.stderr) != bool(ours.stderr):
        sys.exit("SEED=%d: compare %s:\n%s\nbut\n%s" % (seed, " ".join(args), theirs, ours))
    if ours.returncode > 1 and len(ours.stderr.splitlines()) != 1:
        sys.exit("compare %s: %s" % (" ".join(args), ours.stderr))
    seen[ours.returncode] = seen.get(ours.returncode, 0) + 1

def io(name, fmt, commands):
    run("qemu-io", "-d", "unmap", "-f", fmt, *[w for c in commands for w in ("-c", c)], name)
    with open(name, "rb+") as f: # else two programs may see different holes
        os.fsync(f.fileno())

for seed in range(SEED, SEED + ROUNDS):
    r = random.Random(seed)
    size = r.choice((0, 1 << 20, 20 << 20, (3 << 20) + 512))
    commands = []
    for _ in range(r.randrange(12) if size else 0):
        at = r.randrange(size // 512) * 512
        n = min(size - at, r.choice((512, 65536, 300 * 1024, 3 << 20)))
        commands.append("%s %d %d" % (r.choice(("write -P 1", "write -P 2", "write -z", "write -P 0")), at, n))
    names = []
    base = None
    if r.random() < 0.4:
        base = "base%d" % seed
        run("qemu-img", "create", "-q", "-f", "qcow2", base, str(size))
        io(base, "qcow2", commands)
    for side in range(2):
        name = "c%d-%d" % (seed, side)
        mine = size + (r.choice((512, 1 << 20, 30 << 20)) if r.random() < 0.25 else 0)
        fmt = "raw" if not base and r.random() < 0.3 else "qcow2"
        if fmt == "raw":
            open(name, "wb").truncate(mine)
        else:
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=%d" % r.choice((512, 65536, 1 << 20)),
                *(("-b", base, "-F", "qcow2") if base else ()), name, str(mine))
        if not base:
            io(name, fmt, commands)
        if mine and r.random() < 0.3:
            at = r.randrange(mine // 512) * 512
            io(name, fmt, ["%s %d 512" % (r.choice(("write -P 3", "write -P 0", "write -z")), at)])
        if mine and r.random() < 0.2:
            io(name, fmt, ["write -P 4 %d 512" % (mine - 512)])
        names.append((name, fmt))
    (a, fa), (b, fb) = names
    same("-f", fa, "-F", fb, a, b)
    same("-f", fb, "-F", fa, b, a)
    same("-q", "-f", fa, "-F", fb, a, b)
    same("-p", "-q", "-f", fa, "-F", fb, "-T", "writeback", a, b)
    if fa == fb and a[0] == b[0] and os.path.getsize(a) == os.path.getsize(b):
        same("-s", "-f", fa, "-F", fb, a, b)
    same("-s", "-f", fa, "-F", fa, a, a) if fa == "qcow2" else None

seed = SEED
run("qemu-img", "create", "-q", "-f", "qcow2", "ok", "1M")
open("odd", "wb").write(b"x" * 1000)
open("odd2", "wb").write(b"x" * 1000 + b"\0" * 24)
same("-f", "raw", "-F", "raw", "odd", "odd2")
same("nonesuch", "ok")
same("ok", "nonesuch")
same("-f", "nonesuch", "ok", "ok")
same("-T", "nonesuch", "ok", "ok")
same("ok")
same("ok", "ok", "ok")
print("%d compared: %s" % (compared, seen))
if ROUNDS >= 40 and min(seen.get(0, 0), seen.get(1, 0)) < 20:
    sys.exit("too few of one kind")
END
"$PYTHON" compare.py

# Progress, as qemu-img has it: on stdout when asked for, and on SIGUSR1.
qemu-img create -q -f qcow2 a 64M
"$NBDCOW_IMG" compare -p a a >out
grep -q '(100.00/100%)' out || fail "compare -p: $(cat out)"
qemu-img compare -p a a | tr -d '\r' | grep -q '(100.00/100%)' || fail "qemu-img has another way to say it"
