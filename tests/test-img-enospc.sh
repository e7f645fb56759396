#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# compact, recompress, convert, commit and rebase where the file system is full or nearly so: compact makes do with
# very little, what cannot be done says what to do, and whatever happens every image is sound, leaks nothing
# and holds what it held; with room again, it is done.
#
# SEED: of the contents.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires_root "to mount small file systems"
requires qemu-img qemu-io
requires_python
use_seed
export NBDCOW_IMG

mkdir small
at_exit 'umount -l small 2>/dev/null'

cat >full.py <<'END_OF_PYTHON'
import hashlib, os, random, shutil, subprocess, sys

IMG, SEED, KIND = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), sys.argv[1]
r = random.Random(SEED)
os.chdir("small")

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)

def fail(*what):
    sys.exit("SEED=%d: %s: %s" % (SEED, KIND, " ".join(map(str, what))))

def must(*args):
    p = run(*args)
    if p.returncode:
        fail(*args, p)

def contents(name):
    must("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", name, "../contents")
    with open("../contents", "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()

def clean(name, *how):
    p = run("qemu-img", "check", "-f", "qcow2", name)
    if p.returncode:
        fail(*how, name, p.stdout, p.stderr)

def fill(left):
    """Takes all the room there is but LEFT bytes."""
    with open("filler", "wb", buffering=0) as f:
        try:
            while True:
                f.write(bytes(65536))
        except OSError:
            pass
        try:
            while True:
                f.write(bytes(512))
        except OSError:
            pass
        f.truncate(max(0, f.tell() - left))
        os.fsync(f)

def text(n):
    return b"".join(b"%d %d\n" % (i, r.randrange(1 << 30)) for i in range(n // 16))[:n]

def io(name, *commands):
    must("qemu-io", "-d", "unmap", "-f", "qcow2", *[w for c in commands for w in ("-c", c)], name)

def make(kind):
    """Data at the end, and room before it."""
    if kind == "compressed":
        with open("../raw", "wb") as f:
            f.write(text(6 << 20))
        must("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=16k", "../raw", "disk")
        io("disk", "discard 0 2M", "discard 2500k 1M")
    else:
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=16k", "disk", "12M")
        io("disk", "write -q -P 1 0 5M", "write -q -P 2 5M 5M", "discard 0 4M")
        if kind == "snapshot":
            must("qemu-img", "snapshot", "-c", "s", "disk")
            io("disk", "write -q -P 3 6M 1M", "discard 9M 512k")

def attempt(name, *args):
    """Either is fine; a failure says why in one line."""
    p = run(IMG, *args)
    if p.returncode not in (0, 1):
        fail(*args, p)
    if p.returncode and (len(p.stderr.splitlines()) != 1 or "room" not in p.stderr and "space" not in p.stderr):
        fail(*args, p)
    return p.returncode == 0

done = 0
for kind in "plain", "snapshot", "compressed":
    for left in 0, 20000, 50000, 150000, 1 << 20:
        make(kind)
        want, before = contents("disk"), os.path.getsize("disk")
        fill(left)
        ok = attempt("disk", "compact", "disk")
        done += ok
        if left >= 150000 and not ok:
            fail("compact of", kind, "with", left, "bytes of room")
        clean("disk", "compact", kind, left)
        if contents("disk") != want:
            fail("compact", kind, left, "changed the contents")
        if ok and os.path.getsize("disk") >= before:
            fail("compact", kind, left, "has not made it shorter")
        os.unlink("filler")
        must(IMG, "compact", "-q", "disk")
        clean("disk", "compact", kind, left, "again")
        if contents("disk") != want:
            fail("compact", kind, left, "again changed the contents")
        os.unlink("disk")

for args in ["--type=zstd"], ["--all"], ["--all", "--compression-level=9"]:
    for left in 0, 100000, 1 << 20:
        make("compressed")
        io("disk", "write -q -P 5 1M 200k")
        want = contents("disk")
        fill(left)
        ok = attempt("disk", "recompress", *args, "disk")
        done += ok
        clean("disk", "recompress", args, left)
        if contents("disk") != want:
            fail("recompress", args, left, "changed the contents")
        os.unlink("filler")
        must(IMG, "recompress", "-q", *args, "disk")
        clean("disk", "recompress", args, left, "again")
        if contents("disk") != want:
            fail("recompress", args, left, "again changed the contents")
        os.unlink("disk")

# What writes into other images.
for left in 0, 300000:
    make("plain")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk", "-F", "qcow2", "top")
    io("top", "write -q -P 7 0 3M")
    want = contents("top")
    fill(left)
    for args in (["rebase", "-b", "", "top"], ["commit", "-q", "top"]):
        p = run(IMG, *args)
        if p.returncode != 1 or "space" not in p.stderr or len(p.stderr.splitlines()) != 1:
            fail(*args, p)
        for name in "top", "disk":
            clean(name, *args)
        if contents("top") != want:
            fail(*args, "changed the contents")
    p = run(IMG, "convert", "-f", "qcow2", "-O", "qcow2", "top", "new")
    if p.returncode != 1 or "space" not in p.stderr:
        fail("convert", p)
    for name in "filler", "top", "disk", "new":
        if os.path.exists(name):
            os.unlink(name)
print("%s: done %d times with little room" % (KIND, done))
END_OF_PYTHON

mount -t tmpfs -o size=16m none small || skip "a tmpfs cannot be mounted"
"$PYTHON" full.py tmpfs
umount small
truncate -s 24M device
if command -v mkfs.ext4 >/dev/null && mkfs.ext4 -q -F -m 0 -O ^has_journal device && mount -o loop device small 2>/dev/null; then
  rm -rf small/lost+found
  "$PYTHON" full.py ext4
  umount small
fi
