#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Long work, sub-command by sub-command: -p shows how far it is, as a line or, on a terminal, as a bar; a bar appears
# unasked when it takes long, unless -q says otherwise; --rate-limit limits; SIGUSR1 tells how far it is; SIGINT and
# SIGTERM end it soon, by that signal, with a message and a sound image.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
in_memory 300
export NBDCOW_IMG

cat >long.py <<'END_OF_PYTHON'
import os, pty, re, select, shutil, signal, subprocess, sys, time

IMG = os.environ["NBDCOW_IMG"]

def fail(*what):
    sys.exit(" ".join(map(str, what)))

def must(*args):
    p = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
    if p.returncode:
        fail(*args, p)

def make():
    """Each holds 24 MiB in 64 KiB clusters."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "base0", "24M")
    must("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 24M", "base0")
    must("qemu-img", "create", "-q", "-f", "qcow2", "other0", "24M")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2", "top0", "24M")
    shutil.copy("base0", "base")
    must("qemu-io", "-f", "qcow2", "-c", "write -q -P 2 0 24M", "top0")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2", "empty0", "24M")
    # The second half can move into the place of the first.
    must("qemu-img", "create", "-q", "-f", "qcow2", "holes0", "64M")
    must("qemu-io", "-d", "unmap", "-f", "qcow2", "-c", "write -q -P 1 0 32M", "-c", "write -q -P 2 32M 32M", "-c", "discard 0 32M", "holes0")
    shutil.copy("base0", "leaky0")
    with open("leaky0", "rb+") as f:
        f.seek(65536)
        f.write(bytes(8))

# Words; the images that it needs; the option that limits it, if there is one, to so many bytes a second that it takes
# three seconds and more; which images are to be sound whatever happens.
COMMANDS = {
    "convert": (["-f", "qcow2", "-O", "qcow2", "base", "new"], "base", "--rate-limit=4M", "new"),
    "commit": (["-f", "qcow2", "top"], "top base", "--rate-limit=4M", "top base"),
    "rebase": (["-f", "qcow2", "-b", "other", "-F", "qcow2", "empty"], "empty base other", "--rate=4M", "empty"),
    "recompress": (["--all", "base"], "base", "--rate-limit=4M", "base"),
    "compact": (["holes"], "holes", "--rate-limit=8M", "holes"),
    "dd": (["-f", "qcow2", "-O", "qcow2", "bs=64k", "if=base", "of=new"], "base", "--rate-limit=6M", "new"),
    "resize": (["--preallocation=full", "base", "+24M"], "base", "--rate-limit=6M", "base"),
    "bench": (["-w", "-c", "1000", "base"], "base", None, "base"),
    "compare": (["base", "leaky"], "base leaky", None, ""),
    "check": (["-r", "leaks", "base"], "base", None, "base"),
    "diff": (["--exact", "base", "other"], "base other", None, ""),
    "amend": (["-o", "refcount_bits=64", "base"], "base", None, "base"),
}
# How to make those long that cannot be limited.
LONGER = {"bench": "--count=2000000000"}

def fresh(files):
    for f in files.split():
        shutil.copy(f + "0", f)
    if os.path.exists("new"):
        os.unlink("new")

def on_terminal(words, which):
    """Runs with stdout or stderr on a terminal: what was shown there, and the status."""
    ours, theirs = pty.openpty()
    p = subprocess.Popen(words, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, which: theirs})
    os.close(theirs)
    shown = b""
    while True:
        try:
            got = os.read(ours, 65536)
        except OSError:
            break
        if not got:
            break
        shown += got
    os.close(ours)
    return shown.decode(), p.wait(timeout=60)

def sound(command, names):
    for name in names.split():
        if os.path.exists(name) and open(name, "rb").read(4) == b"QFI\xfb":
            p = subprocess.run(["qemu-img", "check", "-f", "qcow2", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if p.returncode not in (0, 3):
                fail(command, name, p.stdout)

def until(what, condition):
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            fail("waited in vain for", what)
        time.sleep(0.01)

def catches(p, *signals):
    """Whether the process has handlers for them."""
    with open("/proc/%d/status" % p.pid) as f:
        caught = int(next(l for l in f if l.startswith("SigCgt:")).split()[1], 16)
    return all(caught >> (s - 1) & 1 for s in signals)

def ends_by_signal(command, slow, words, files, check):
    for sig in signal.SIGINT, signal.SIGTERM:
        fresh(files)
        # Where there are two values for one option, the last one counts.
        p = subprocess.Popen([IMG, command, *words[:-1], slow, words[-1], "-q"] if command in LONGER else
                             [IMG, command, slow, "-q", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until("it to listen to signals", lambda: catches(p, signal.SIGUSR1, sig))
        time.sleep(0.2)
        p.send_signal(signal.SIGUSR1)
        if not select.select([p.stderr], [], [], 60)[0]:
            fail(command, "does not answer SIGUSR1")
        start = time.monotonic()
        p.send_signal(sig)
        out, err = p.communicate(timeout=60)
        if p.returncode != -sig:
            fail(command, "after", sig, "status", p.returncode, err)
        if time.monotonic() - start > 20:
            fail(command, "takes", time.monotonic() - start, "seconds to end")
        if "%)" not in err:
            fail(command, "does not answer SIGUSR1:", repr(err))
        if out or "interrupted" not in err:
            fail(command, "interrupted:", repr(out), repr(err))
        sound(command, check)

make()
for command, (words, files, limit, check) in COMMANDS.items():
    fresh(files)
    p = subprocess.run([IMG, command, "-p", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    if p.returncode != 0 or "(100.00/100%)" not in p.stdout:
        if not (command in ("diff", "compare") and p.returncode == 1 and "%)" in p.stdout):
            fail(command, "-p:", p)
    fresh(files)
    shown, status = on_terminal([IMG, command, "-p", *words], "stdout")
    if not re.search(r"% \[#*-*\]", shown):
        fail(command, "-p on a terminal:", repr(shown))
    if limit:
        fresh(files)
        start = time.monotonic()
        shown, status = on_terminal([IMG, command, limit, *words], "stderr")
        took = time.monotonic() - start
        if status != 0 or took < 3:
            fail(command, limit, "status", status, "after", took, "seconds")
        if not re.search(r"% \[#*-*\]", shown):
            fail(command, "shows no bar on its own:", repr(shown))
    if limit or command in LONGER:
        ends_by_signal(command, limit or LONGER[command], words, files, check)
print("%d commands" % len(COMMANDS))
END_OF_PYTHON
"$PYTHON" long.py
