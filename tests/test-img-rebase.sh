#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img rebase beside qemu-img rebase: the overlay shows what it showed before, over whatever
# backing file, also after an interruption or a kill; the recorded name and format are QEMU's; and
# what is refused there is refused here.
#
# SEED: of the images' contents.  ROUNDS: overlays.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
use_seed
in_memory 400
ROUNDS=${ROUNDS:-16}
export NBDCOW_IMG ROUNDS

cat >rebase.py <<'END'
import json, os, random, shutil, signal, subprocess, sys, time

IMG, SEED, ROUNDS = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), int(os.environ["ROUNDS"])

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

def fail(*what):
    sys.exit("SEED=%d: %s" % (seed, " ".join(map(str, what))))

def fill(name, fmt, r, size):
    words = []
    for _ in range(r.randrange(1, 12)):
        at = r.randrange(size // 512) * 512
        n = min(size - at, r.choice((512, 4096, 65536, 200 * 1024, 1 << 20)))
        words += ["-c", "%s %d %d" % (r.choice(("write -P %d" % r.randrange(1, 255), "write -z", "discard")), at, n)]
    run("qemu-io", "-d", "unmap", "-f", fmt, *words, name)

def make(name, fmt, r, size, backing=()):
    if fmt == "raw":
        open(name, "wb").truncate(size)
    else:
        options = "cluster_size=%d" % r.choice((512, 4096, 65536, 1 << 20))
        if r.random() < 0.2:
            options += ",compat=0.10"
        elif r.random() < 0.2:
            options = "extended_l2=on,cluster_size=%d" % r.choice((16384, 65536))
        p = run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *backing, name, str(size))
        assert p.returncode == 0, p.stderr
    fill(name, fmt, r, size)

def equal(a, b, *how):
    p = run("qemu-img", "compare", a, b)
    if p.returncode or "mismatch" in p.stdout:
        fail(*how, a, b, p.stdout, p.stderr)

def sound(name, *how):
    p = run("qemu-img", "check", "-f", "qcow2", name)
    if p.returncode not in (0, 3):
        fail(*how, name, p.stdout, p.stderr)

def info(name):
    j = json.loads(run("qemu-img", "info", "--output=json", name).stdout)
    return j.get("backing-filename"), j.get("backing-filename-format")

sizes = (1 << 20, 3 << 20, (2 << 20) + 512)
for seed in range(SEED, SEED + ROUNDS):
    r = random.Random(seed)
    old_format, new_format = r.choice(("raw", "qcow2", "qcow2")), r.choice(("raw", "qcow2", "qcow2"))
    make("bottom", old_format, r, r.choice(sizes))
    make("old", "qcow2", r, r.choice(sizes), ("-b", "bottom", "-F", old_format))
    make("new", new_format, r, r.choice(sizes))
    backing = r.choice(((), ("-b", "old", "-F", "qcow2"), ("-b", "old", "-F", "qcow2"), ("-b", "old", "-F", "qcow2")))
    make("top", "qcow2", r, r.choice(sizes), backing)
    to = r.choice((("-b", "new", "-F", new_format), ("-b", "new", "-F", new_format), ("-b", "bottom", "-F", old_format), ("-b", "")))
    how = ("rebase", *to, "of an overlay of", *backing)
    run("qemu-img", "convert", "-O", "raw", "top", "before")
    shutil.copy("top", "theirs")
    shutil.copy("top", "ours")
    t = run("qemu-img", "rebase", "-f", "qcow2", *to, "theirs")
    for sig in (signal.SIGINT, signal.SIGKILL):
        slow = subprocess.Popen([IMG, "rebase", "-f", "qcow2", "-r", "4M", *to, "ours"], stderr=subprocess.DEVNULL)
        time.sleep(r.random() * 0.1)
        slow.send_signal(sig)
        if slow.wait(timeout=30) not in (0, -sig):
            fail(*how, "status", slow.returncode, "after", sig)
        equal("before", "ours", *how, "after a signal")
        sound("ours", *how, "after a signal")
    args = ("-c",) if r.random() < 0.3 else ()
    o = run(IMG, "rebase", "-f", "qcow2", *args, *to, "ours")
    if t.returncode != o.returncode:
        fail(*how, t, o)
    if o.returncode == 0:
        equal("before", "ours", *how)
        sound("ours", *how)
        if info("ours")[0] != info("theirs")[0] or info("ours")[0] and info("ours") != info("theirs"):
            fail(*how, info("ours"), info("theirs"))
    for n in "bottom", "old", "new", "top", "theirs", "ours":
        os.unlink(n)

seed = SEED
run("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M")
run("qemu-img", "create", "-q", "-f", "qcow2", "other", "1M")
for args in (["-b", "other", "-F", "qcow2", "top"], ["-u", "-b", "elsewhere/gone", "-F", "raw", "top"],
             ["-u", "-b", "", "top"], ["-b", "nonesuch", "-F", "qcow2", "top"], ["-b", "top", "-F", "qcow2", "top"],
             ["-b", "other", "-F", "nonesuch", "top"], ["-b", "other", "nonesuch"], ["-b", "other", "-F", "raw", "top"],
             ["-u", "-b", "x" * 1023, "-F", "qcow2", "top"], ["-u", "-b", "x" * 1024, "-F", "qcow2", "top"],
             ["-t", "nonesuch", "-b", "other", "-F", "qcow2", "top"], ["-b", "other", "top", "base"]):
    got = []
    for tool in "qemu-img", IMG:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top")
        p = run(tool, "rebase", *args)
        back = info("top")
        got.append((p.returncode != 0, back if back[0] else None))
        if tool == IMG and p.returncode and len(p.stderr.splitlines()) != 1:
            fail("rebase", *args, p)
    if got[0] != got[1]:
        fail("rebase", *args, got)
print("%d overlays" % ROUNDS)
END
"$PYTHON" rebase.py

# What is copied into an encrypted overlay is encrypted.
printf sesame >key
qemu-img create -q -f qcow2 plain 1M
qemu-io -f qcow2 -c "write -P 5 0 100k" plain >/dev/null
"$NBDCOW_IMG" create -q --object secret,id=k,file=key -f qcow2 -b plain -F qcow2 \
  -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10 secret
"$NBDCOW_IMG" rebase -q --object secret,id=k,file=key -b "" \
  --image-opts driver=qcow2,encrypt.key-secret=k,file.filename=secret || fail "rebase of an encrypted overlay"
qemu-io --object secret,id=k,file=key -c "read -P 5 0 100k" -c "read -P 0 100k 900k" \
  --image-opts driver=qcow2,encrypt.key-secret=k,file.filename=secret >read.log
! grep -q fail read.log || { cat read.log >&2; fail "an encrypted overlay that was rebased reads as something else"; }
# Only its name: no key is needed.
"$NBDCOW_IMG" rebase -q -u -b plain -F qcow2 -f qcow2 secret || fail "rebase -u without a key"
