#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# check -r all on every kind of damage that corpus.py knows, for small and large clusters: QEMU opens what was repaired and
# finds it sound, every guest cluster that could survive is as it was, the snapshot's too, and nothing is worse than before.
# A table says what qemu-img check -r all makes of the same images: there are some that it does not mend and we do, and
# none that it mends and we do not.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
in_memory 200
export NBDCOW_IMG SRCDIR

for cluster in 512 4096 65536; do
  name=sound-$cluster
  qemu-img create -q -f qcow2 -o cluster_size=$cluster "$name" 4M
  for n in 0 1 2 3 4 5 6 7 8 9 10 11; do
    qemu-io -f qcow2 -c "write -q -P $((n + 1)) $((n * 128))k 128k" "$name"
  done
  qemu-img snapshot -c s "$name"
  qemu-io -f qcow2 -c 'write -q -P 77 0 768k' -c 'write -q -c -P 88 3M 64k' -c 'write -q -c -P 89 3136k 64k' "$name"
  check_image "$name"
done

cat >corpus_test.py <<'END_OF_PYTHON'
import os, shutil, subprocess, sys

IMG, CORPUS = os.environ["NBDCOW_IMG"], os.path.join(os.environ["SRCDIR"], "corpus.py")

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)

def must(*args):
    p = run(*args)
    if p.returncode:
        sys.exit("%s: %s%s" % (" ".join(args), p.stdout, p.stderr))
    return p.stdout

def contents(tool, name, *args):
    """None if it cannot be read."""
    p = run(tool, "convert", "--salvage", "-f", "qcow2", "-O", "raw", *args, name, "contents")
    if p.returncode:
        return None
    with open("contents", "rb") as f:
        return f.read()

def differing(a, b, cluster):
    if b is None or len(a) != len(b):
        return {-1}
    return {i // cluster for i in range(0, len(a), cluster) if a[i:i + cluster] != b[i:i + cluster]}

def verdict(name, want, snapshot, lost, cluster):
    """What is wrong with a repaired image, as QEMU sees it; "" if nothing is."""
    p = run("qemu-img", "check", "-f", "qcow2", name)
    if p.returncode < 0 or p.returncode == 1:
        return "cannot be checked"
    wrong = ["", "", "corruption is left", "leaks are left"][p.returncode]
    for bad, what in ((differing(want, contents("qemu-img", name), cluster) - lost, "data"),
                      (differing(snapshot, contents("qemu-img", name, "-l", "s"), cluster) - lost, "snapshot")):
        if bad == {-1}:
            return "cannot be read (%s)" % what
        if bad:
            return "%d clusters lost (%s)" % (len(bad), what)
    return wrong

# Here there is nothing to be had but a sound rest: what is destroyed stays reported, or leaked, lest more is lost.  QEMU does
# not mend these either.
REST = {"data-past-end", "data-misaligned", "data-reserved-bits", "table-past-end", "table-misaligned", "cut-off"}
bad, both, better = [], 0, []
print("%-26s %8s  %-28s %s" % ("damage", "cluster", "nbdcow-img", "qemu-img"))
for line in must(sys.executable, CORPUS, "list").splitlines():
    case = line.split()[0]
    for cluster in 512, 4096, 65536:
        sound = "sound-%d" % cluster
        want, snapshot = contents("qemu-img", sound), contents("qemu-img", sound, "-l", "s")
        lost = {int(n) for n in must(sys.executable, CORPUS, "make", case, sound, "damaged").split()}
        shutil.copy("damaged", "ours")
        shutil.copy("damaged", "theirs")
        p = run(IMG, "check", "-r", "all", "ours")
        if p.returncode < 0 or p.returncode == 1 and case not in REST:
            bad.append("%s, %d: check -r all: status %d: %s" % (case, cluster, p.returncode, p.stderr))
        ours = verdict("ours", want, snapshot, lost, cluster)
        q = run("qemu-img", "check", "-f", "qcow2", "-r", "all", "theirs")
        theirs = verdict("theirs", want, snapshot, lost, cluster) if q.returncode >= 0 else "crashed"
        if theirs == "cannot be checked" and q.returncode == 1:
            theirs += ": " + q.stderr.strip().splitlines()[-1].rpartition(": ")[2]
        print("%-26s %8d  %-28s %s" % (case, cluster, ours or "ok", theirs or "ok"))
        if ours and not theirs:
            bad.append("%s, %d: %s, and qemu-img mends it" % (case, cluster, ours))
        elif ours and not (case in REST and ours in ("corruption is left", "leaks are left")):
            bad.append("%s, %d: %s (qemu-img: %s)" % (case, cluster, ours, theirs))
        elif ours:
            both += 1
        elif theirs:
            better.append("%s, %d" % (case, cluster))
print("mended here and not by qemu-img: %d; by neither: %d" % (len(better), both))
if not any(b.startswith("reftable-") for b in better):
    bad.append("qemu-img mends whatever is mended here, or there is nothing in the corpus that shows what it does not")
if bad:
    sys.exit("\n".join(bad))
END_OF_PYTHON
"$PYTHON" corpus_test.py
