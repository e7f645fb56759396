#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img dd beside qemu-img dd: the same output, size and exit status; and bench, which says the
# same as qemu-img bench and writes what it says.
#
# SEED: of the operands.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
use_seed
in_memory 400
export NBDCOW_IMG

cat >dd.py <<'END_OF_PYTHON'
import os, random, subprocess, sys

IMG, SEED = os.environ["NBDCOW_IMG"], int(os.environ["SEED"])
r = random.Random(SEED)
compared = 0

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

def same(*args, out="raw"):
    global compared
    compared += 1
    for name in "theirs", "ours":
        if os.path.exists(name):
            os.unlink(name)
    theirs, ours = run("qemu-img", "dd", *args, "of=theirs"), run(IMG, "dd", *args, "of=ours")
    if theirs.returncode != ours.returncode or theirs.stdout != ours.stdout or bool(theirs.stderr) != bool(ours.stderr):
        sys.exit("SEED=%d: dd %s: %s, but %s" % (SEED, " ".join(args), theirs, ours))
    if os.path.exists("theirs") != os.path.exists("ours"):
        sys.exit("SEED=%d: dd %s: the one made a file, the other did not" % (SEED, " ".join(args)))
    if theirs.returncode == 0:
        p = run("qemu-img", "compare", "-q", "-f", out, "-F", out, "theirs", "ours")
        sizes = [[l for l in run("qemu-img", "info", "-f", out, n).stdout.splitlines() if "virtual size" in l]
                 for n in ("theirs", "ours")]
        if p.returncode or sizes[0] != sizes[1]:
            sys.exit("SEED=%d: dd %s: different output: %s %s" % (SEED, " ".join(args), p, sizes))

open("raw", "wb").write(r.randbytes(300000) + bytes(100000) + r.randbytes(1234))
run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", "disk", "8M")
run("qemu-io", "-f", "qcow2", "-c", "write -P 3 100k 300k", "-c", "write -z 5M 1M", "-c", "write -P 5 8191k 1k", "disk")
for source in ("-f", "raw", "if=raw"), ("-f", "qcow2", "if=disk"), ("if=disk",):
    for o in "raw", "qcow2":
        same("-O", o, *source, out=o)
        for _ in range(8):
            operands = []
            if r.random() < 0.8:
                operands.append("bs=" + r.choice(("512", "4096", "64k", "1M", "1000", "3M", "7777")))
            if r.random() < 0.6:
                operands.append("count=%d" % r.choice((0, 1, 3, 7, 1000, 1 << 40)))
            if r.random() < 0.6:
                operands.append("skip=%d" % r.choice((0, 1, 2, 5, 100, 1 << 55)))
            same("-O", o, *source, *operands, out=o)
same("--image-opts", "if=driver=qcow2,file.filename=disk", "bs=1M", "count=1")
same("if=nonesuch")
same("if=disk", "bs=0")
same("if=disk", "bs=4G")
same("if=disk", "count=x")
same("if=disk", "nonesuch=1")
same("-O", "nonesuch", "if=disk")
same("-f", "nonesuch", "if=disk")
same("bs=1")
print("%d compared" % compared)
END_OF_PYTHON
"$PYTHON" dd.py

# ---- bench -----------------------------------------------------------------------------------

qemu-img create -q -f qcow2 disk.qcow2 10M
# bench_same OPTION...: the same words, but for the time; the same exit status; the same contents.
bench_same ()
{
  for tool in qemu-img "$NBDCOW_IMG"; do
    qemu-img create -q -f qcow2 "bench-$(basename "$tool")" 10M
    s=0
    "$tool" bench "$@" "bench-$(basename "$tool")" >bench.out 2>bench.err || s=$?
    sed -i 's/[0-9.]* seconds/N seconds/' bench.out
    [ -s bench.err ] && echo "something on stderr" >>bench.out
    echo "status $s" >>bench.out
    mv bench.out "$(basename "$tool").out"
  done
  diff qemu-img.out nbdcow-img.out >&2 || fail "bench $*"
  same_contents bench-qemu-img qcow2 bench-nbdcow-img qcow2
}
bench_same -c 100
bench_same -c 100 -d 1 -s 64k -S 1M -o 1M
bench_same -c 50 -w --pattern=7 -s 4k
bench_same -c 10 -w --pattern=9 -s 512 -S 1000k -o 3k -d 4 --flush-interval=5
bench_same -c 10 -w -d 2 --flush-interval=5 --no-drain
bench_same -c 10 -i threads
bench_same -c 10 -t unsafe -w --pattern 1
bench_same -c 10 --flush-interval=5
bench_same -c 10 -w --flush-interval=5 -d 6
bench_same -c x
bench_same -c 3 -s 11M
bench_same -c 3 -o 10M
bench_same -c 3 -i nonesuch
bench_same -w --pattern 256
