#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# SIGINT at any moment of every sub-command that writes for long: the program ends by that signal (or was done), every
# image it had open is sound, and what is to stay the same has stayed the same.
#
# SEED: of the images and the moments.  ROUNDS: how often each is interrupted.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
use_seed
in_memory 500
ROUNDS=${ROUNDS:-3}
export NBDCOW_IMG ROUNDS

cat >interrupt.py <<'END_OF_PYTHON'
import hashlib, os, random, shutil, signal, subprocess, sys, time

IMG, SEED, ROUNDS = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), int(os.environ["ROUNDS"])
r = random.Random(SEED)
SIZE = 24 << 20

def must(*args):
    p = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    if p.returncode:
        sys.exit("SEED=%d: %s: %s%s" % (SEED, " ".join(args), p.stdout, p.stderr))

def fill(name, parts):
    commands = []
    for _ in range(parts):
        at = r.randrange(SIZE >> 16) << 16
        commands += ["-c", "write -q -P %d %d %d" % (r.randrange(1, 255), at, min(SIZE - at, r.choice((4096, 65536, 900000))))]
    must("qemu-io", "-f", "qcow2", *commands, name)

def contents(name):
    must("qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, "contents")
    with open("contents", "rb") as f:
        return hashlib.sha256(f.read(SIZE)).hexdigest()

def sound(what, name):
    p = subprocess.run(["qemu-img", "check", "-f", "qcow2", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       text=True, timeout=120)
    if p.returncode not in (0, 3): # leaks do no harm
        sys.exit("SEED=%d: %s: %s: %s" % (SEED, what, name, p.stdout))

must("qemu-img", "create", "-q", "-f", "qcow2", "base0", str(SIZE))
fill("base0", 40)
must("qemu-img", "create", "-q", "-f", "qcow2", "other0", str(SIZE))
fill("other0", 20)
must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "-u", "top0", str(SIZE))
shutil.copy("base0", "base")
shutil.copy("other0", "other")
fill("top0", 40)
must("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", "top0", "packed0")
must("qemu-io", "-f", "qcow2", "-d", "unmap", "-c", "discard 1M 9M", "packed0")
shutil.copy("base0", "holes0")
must("qemu-io", "-f", "qcow2", "-d", "unmap", "-c", "discard 0 8M", "-c", "discard 12M 3M", "holes0")
shutil.copy("base0", "leaky0")
with open("leaky0", "rb+") as f: # the refcount table's first entry: everything is counted anew
    f.seek(65536)
    f.write(bytes(8))

# What runs; which files it has; which of them holds the same before and after; which are to be sound.
COMMANDS = [
    (["convert", "-f", "qcow2", "-O", "qcow2", "base", "new"], "base", "base", "base new"),
    (["convert", "-c", "-f", "qcow2", "-O", "qcow2", "base", "new"], "base", "base", "base new"),
    (["convert", "-n", "-f", "qcow2", "-O", "qcow2", "base", "other"], "base other", "base", "base other"),
    (["dd", "-f", "qcow2", "-O", "qcow2", "bs=64k", "if=base", "of=new"], "base", "base", "base new"),
    (["commit", "-f", "qcow2", "top"], "top base", "top", "top base"),
    (["commit", "-d", "-f", "qcow2", "top"], "top base", "top", "top base"),
    (["rebase", "-f", "qcow2", "-b", "other", "-F", "qcow2", "top"], "top base other", "top", "top base other"),
    (["rebase", "-f", "qcow2", "-c", "-b", "", "top"], "top base", "top", "top base"),
    (["compact", "holes"], "holes", "holes", "holes"),
    (["compact", "packed"], "packed", "packed", "packed"),
    (["recompress", "--type=zstd", "packed"], "packed", "packed", "packed"),
    (["recompress", "--all", "base"], "base", "base", "base"),
    (["amend", "-o", "refcount_bits=64", "base"], "base", "base", "base"),
    (["amend", "-o", "compat=0.10", "base"], "base", "base", "base"),
    (["resize", "--preallocation=full", "base", "+20M"], "base", "base", "base"),
    (["resize", "--shrink", "base", "-4M"], "base", None, "base"),
    (["snapshot", "-c", "s", "base"], "base", "base", "base"),
    (["check", "-r", "all", "leaky"], "leaky", "leaky", ""),
]

ended = {}
for words, files, same, check in COMMANDS:
    longest = 0.06
    for n in range(ROUNDS):
        for f in files.split():
            shutil.copy(f + "0", f)
        if os.path.exists("new"):
            os.unlink("new")
        want = same and contents(same)
        p = subprocess.Popen([IMG, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(r.random() * longest)
        p.send_signal(signal.SIGINT)
        try:
            said = p.communicate(timeout=100)[1]
        except subprocess.TimeoutExpired:
            p.kill()
            sys.exit("SEED=%d: %s does not end after SIGINT" % (SEED, " ".join(words)))
        if p.returncode not in (0, -signal.SIGINT):
            sys.exit("SEED=%d: %s: status %d: %s" % (SEED, " ".join(words), p.returncode, said))
        ended[p.returncode] = ended.get(p.returncode, 0) + 1
        if p.returncode == 0: # it was too late: sooner, the next time
            longest /= 4
        for f in check.split():
            # A target may not have been begun, or not have its header yet.
            if f != "new" or (os.path.exists(f) and open(f, "rb").read(4) == b"QFI\xfb"):
                sound(" ".join(words), f)
        if same and contents(same) != want:
            sys.exit("SEED=%d: %s: %s holds something else than before" % (SEED, " ".join(words), same))
print("%d commands, %d times interrupted, %d times done before" % (
    len(COMMANDS), ended.get(-signal.SIGINT, 0), ended.get(0, 0)))
if ROUNDS >= 3 and ended.get(-signal.SIGINT, 0) == 0:
    sys.exit("none was interrupted")
END_OF_PYTHON
"$PYTHON" interrupt.py
