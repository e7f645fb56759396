#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img commit beside qemu-img commit: afterwards every layer has the same contents, the same
# exit status was given, and all images are sound.  Interrupted or killed at any moment, the overlay
# shows what it showed before, and a second commit finishes the work.
#
# SEED: of the images' contents.  ROUNDS: chains.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
use_seed
in_memory 400
ROUNDS=${ROUNDS:-16}
export NBDCOW_IMG ROUNDS

cat >commit.py <<'END'
import os, random, shutil, signal, subprocess, sys, time

IMG, SEED, ROUNDS = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), int(os.environ["ROUNDS"])

def run(*args, cwd=None):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60, cwd=cwd)

def fail(*what):
    sys.exit("SEED=%d: %s" % (seed, " ".join(map(str, what))))

def fill(name, fmt, r, size):
    words = []
    for _ in range(r.randrange(1, 16)):
        at = r.randrange(size // 512) * 512
        n = min(size - at, r.choice((512, 4096, 65536, 200 * 1024, 1 << 20)))
        words += ["-c", "%s %d %d" % (r.choice(("write -P %d" % r.randrange(1, 255), "write -z", "write -z -u", "discard")), at, n)]
    if fmt == "qcow2" and r.random() < 0.3:
        words += ["-c", "write -c -P 9 0 64k"]
    run("qemu-io", "-d", "unmap", "-f", fmt, *words, name)

def make(where, r):
    """A chain of layers in the directory, the top last."""
    os.mkdir(where)
    os.chdir(where)
    layers = []
    for n in range(r.choice((2, 2, 3, 4))):
        name, size = "l%d" % n, r.choice((1 << 20, 3 << 20, (2 << 20) + 512))
        fmt = "raw" if n == 0 and r.random() < 0.3 else "qcow2"
        if fmt == "raw":
            open(name, "wb").truncate(size)
        else:
            options = "cluster_size=%d" % r.choice((512, 65536, 65536, 1 << 20))
            if r.random() < 0.2:
                options += ",compat=0.10"
            p = run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options,
                    *(("-b", layers[-1][0], "-F", layers[-1][1]) if layers else ()), name, str(size))
            assert p.returncode == 0, p.stderr
        fill(name, fmt, r, size)
        layers.append((name, fmt))
    os.chdir("..")
    return layers

def equal(a, b, fmt, *how):
    p = run("qemu-img", "compare", "-f", fmt, "-F", fmt, a, b)
    if p.returncode or "mismatch" in p.stdout:
        fail(*how, a, b, p.stdout, p.stderr)

def sound(name, *how):
    p = run("qemu-img", "check", "-f", "qcow2", name)
    if p.returncode not in (0, 3):
        fail(*how, name, p.stdout, p.stderr)

for seed in range(SEED, SEED + ROUNDS):
    r = random.Random(seed)
    layers = make("theirs", r)
    shutil.copytree("theirs", "ours")
    shutil.copytree("theirs", "before")
    top = layers[-1][0]
    args = ["-f", "qcow2", "-q"]
    if r.random() < 0.3:
        args.append("-d")
    if r.random() < 0.5:
        base = r.randrange(len(layers) - 1)
        args += ["-b", layers[base][0]]
    else:
        base = len(layers) - 2
    p, o = run("qemu-img", "commit", *args, top, cwd="theirs"), run(IMG, "commit", *args, top, cwd="ours")
    how = ("commit", *args)
    if p.returncode and "Operation not supported" in p.stderr and o.returncode == 0:
        # A tmpfs cannot do what it asks for: what the base shows now is what the overlay showed.
        name, fmt = layers[base]
        p = run("qemu-img", "compare", "-f", "qcow2", "-F", fmt, "before/" + top, "ours/" + name)
        if p.returncode:
            fail(*how, p)
        for d in "theirs", "ours", "before":
            shutil.rmtree(d)
        continue
    if p.returncode != o.returncode:
        fail(*how, p, o)
    for n, (name, fmt) in enumerate(layers):
        if n <= base or n == len(layers) - 1:
            equal("theirs/" + name, "ours/" + name, fmt, *how)
        if fmt == "qcow2":
            sound("ours/" + name, *how)
    equal("before/" + top, "ours/" + top, "qcow2", *how, "the overlay changed:")

    # Interrupted: the overlay is as it was; then finished.
    shutil.rmtree("ours")
    shutil.copytree("before", "ours")
    for sig in (signal.SIGINT, signal.SIGKILL):
        slow = subprocess.Popen([IMG, "commit", *args, "-r", "2M", top], cwd="ours", stderr=subprocess.DEVNULL)
        time.sleep(r.random() * 0.15)
        slow.send_signal(sig)
        status = slow.wait(timeout=30)
        if status not in (0, -sig):
            fail(*how, "status", status, "after signal", sig)
        equal("before/" + top, "ours/" + top, "qcow2", *how, "after a signal:")
        for name, fmt in layers:
            if fmt == "qcow2":
                sound("ours/" + name, *how, "after a signal:")
    o = run(IMG, "commit", *args, top, cwd="ours")
    if o.returncode:
        fail(*how, "again", o)
    equal("theirs/" + layers[base][0], "ours/" + layers[base][0], layers[base][1], *how, "finished:")
    for d in "theirs", "ours", "before":
        shutil.rmtree(d)

# The words, and what is refused.
seed = SEED
run("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M")
run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top")
for args in (["top"], ["-p", "top"], ["-q", "top"], ["base"], ["nonesuch"], ["-b", "nonesuch", "top"],
             ["-t", "nonesuch", "top"], ["-r", "x", "top"], ["top", "base"], [],
             ["--image-opts", "driver=qcow2,file.filename=top"]):
    p, o = run("qemu-img", "commit", *args), run(IMG, "commit", *args)
    if p.returncode != o.returncode or "-p" not in args and p.stdout != o.stdout:
        fail("commit", *args, p, o)
print("%d chains" % ROUNDS)
END
"$PYTHON" commit.py

# The file shrinks to nothing much when the overlay is emptied.
qemu-img create -q -f qcow2 base.qcow2 64M
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
qemu-io -f qcow2 -c 'write -P 1 0 32M' top.qcow2 >/dev/null
"$NBDCOW_IMG" commit -q top.qcow2
[ "$(du -k top.qcow2 | cut -f1)" -lt 2048 ] || fail "the overlay still takes $(du -k top.qcow2)"
qemu-img map --output=json top.qcow2 | grep -q '"depth": 0, "present": true' && fail "the overlay is not empty"
exit 0
