#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img amend beside qemu-img amend: the same options on copies of one image, and then
# the same exit status, the same image as qemu-img info sees it, the same contents, and no more for
# qemu-img check to find.  Images are drawn from SEED: version, cluster size, refcount width, what is
# below, snapshots, zeros, compression.  Unknown header extensions survive, in their order.
#
# NBDCOW_AMEND_RUNS says how many images (default 60).

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
use_seed
in_memory 400
export NBDCOW_IMG

cat >amend.py <<'END'
import json, os, random, shutil, struct, subprocess, sys

IMG = os.environ["NBDCOW_IMG"]
seed = int(sys.argv[1])
runs = int(sys.argv[2])
counts = {"made": 0, "refused": 0, "hangs": 0}

def run(*args, timeout=60):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout)

def must(*args):
    p = run(*args)
    if p.returncode:
        sys.exit("%s: %s" % (" ".join(args), p.stderr))
    return p

def comparable(j):
    skip = ("highest-allocated-offset", "actual-size", "filename", "full-backing-filename", "children")
    if isinstance(j, dict):
        return {k: comparable(v) for k, v in j.items() if k not in skip}
    return [comparable(x) for x in j] if isinstance(j, list) else j

def info(tool, name):
    return comparable(json.loads(must(tool, "info", "-U", "--output", "json", name).stdout))

def check(name):
    return run("qemu-img", "check", "-q", name).returncode

def header(name):
    with open(name, "rb") as f:
        return f.read(1 << 21)

def extensions(name):
    """Type and data of each, in order."""
    h = header(name)
    version, = struct.unpack_from(">I", h, 4)
    at = 72 if version == 2 else struct.unpack_from(">I", h, 100)[0]
    found = []
    while True:
        kind, length = struct.unpack_from(">II", h, at)
        if kind == 0:
            return found
        found.append((kind, h[at + 8:at + 8 + length]))
        at += 8 + (length + 7) // 8 * 8

def add_unknown(name, r):
    """An extension that nobody knows, before all others."""
    h = bytearray(header(name))
    bits, = struct.unpack_from(">I", h, 20)
    version, = struct.unpack_from(">I", h, 4)
    at = 72 if version == 2 else struct.unpack_from(">I", h, 100)[0]
    back, back_len = struct.unpack_from(">QI", h, 8)
    data = bytes(r.randrange(256) for _ in range(r.choice([0, 5, 24, 100])))
    extra = struct.pack(">II", 0x12345678, len(data)) + data + bytes(-len(data) % 8)
    cluster = 1 << bits
    name_bytes = bytes(h[back:back + back_len]) if back else b""
    rest = bytes(h[at:cluster])
    used = len(rest.rstrip(b"\0")) + 16
    if at + len(extra) + used > cluster:
        return
    h[at:cluster] = (extra + rest)[:cluster - at]
    if back:
        struct.pack_into(">Q", h, 8, back + len(extra))
        if bytes(h[back + len(extra):back + len(extra) + back_len]) != name_bytes:
            return
    with open(name, "r+b") as f:
        f.write(h[:cluster])

def writes(r, name, size, n, zeros):
    args = []
    for _ in range(n):
        at = r.randrange(size // 512) * 512
        length = min(size - at, r.randrange(1, 256) * 512)
        what = r.choice(zeros)
        args += ["-c", what % (at, length)]
    must("qemu-io", "-f", "qcow2", *args, name)

def make(r, name):
    bits = r.choice([9, 10, 12, 12, 16, 16, 21])
    version = r.choice(["0.10", "1.1", "1.1", "1.1"])
    options = "cluster_size=%d,compat=%s" % (1 << bits, version)
    width = 16
    if version == "1.1":
        width = r.choice([1, 2, 4, 8, 16, 16, 32, 64])
        options += ",refcount_bits=%d" % width
        options += r.choice(["", "", ",lazy_refcounts=on"])
        options += r.choice(["", "", ",compression_type=zstd"])
        if bits >= 14:
            options += r.choice(["", "", ",extended_l2=on"])
    size = r.randrange(64, 4096) * 512
    below = []
    if r.randrange(2):
        below = ["-b", "base.qcow2", "-F", "qcow2"]
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *below, name, str(size))
    kinds = ["write -P 77 %d %d", "write -P 5 %d %d"]
    if version == "1.1":
        kinds += ["write -z %d %d", "write -z -u %d %d", "discard %d %d"]
    writes(r, name, size, r.randrange(12), kinds)
    for i in range(r.choice((0, 0, 0, 1, 2)) if version == "1.1" else 0):
        must("qemu-img", "bitmap", "--add", "-g", str(r.choice((512, 4096, 65536))), name, "b%d" % i)
    for i in range(r.randrange(3) if width > 2 else 0):
        must("qemu-img", "snapshot", "-c", "s%d" % i, name)
        writes(r, name, size, r.randrange(5), kinds)
    if r.randrange(2):
        add_unknown(name, r)
    return version

def choose(r):
    options = []
    if r.randrange(2):
        options.append("compat=" + r.choice(["0.10", "v2", "1.1", "v3"]))
    if r.randrange(2):
        options.append("refcount_bits=" + r.choice(["1", "2", "4", "8", "16", "16", "32", "64", "3"]))
    if r.randrange(3) == 0:
        options.append("lazy_refcounts=" + r.choice(["on", "off"]))
    if r.randrange(8) == 0:
        options.append(r.choice(["backing_file=other", "data_file=x", "data_file_raw=on", "cluster_size=4096", "nonsense=1"]))
    return options or ["compat=1.1"]

def compare(what, unknown, before, same_info=True):
    want, got = info("qemu-img", "theirs.qcow2"), info("qemu-img", "ours.qcow2")
    if same_info and want != got:
        sys.exit("%s: info differs: %s instead of %s" % (what, got, want))
    found = check("ours.qcow2")
    if found not in (0, check("theirs.qcow2")):
        sys.exit("%s: qemu-img check: %d" % (what, found))
    must("qemu-img", "compare", "-q", "theirs.qcow2", "ours.qcow2")
    for s in [x["name"] for x in got.get("snapshots", [])]:
        for name in "before", "ours":
            must("qemu-img", "convert", "-l", s, "-f", "qcow2", "-O", "raw", name + ".qcow2", name + ".raw")
        if open("before.raw", "rb").read() != open("ours.raw", "rb").read():
            sys.exit("%s: snapshot %s has changed" % (what, s))
    ours = [e for e in extensions("ours.qcow2") if e[0] == 0x12345678]
    if ours != unknown:
        sys.exit("%s: unknown extensions: %s instead of %s" % (what, ours, unknown))

def excuses(text):
    """What qemu-img does and then leaves half done, or what it does not look at."""
    return any(x in text for x in ("only one", "no room", "compressed clusters in snapshots",
                                   "version 2 has no bitmaps"))

def one(seed):
    r = random.Random(seed)
    make(r, "before.qcow2")
    start = check("before.qcow2")
    for step in range(3):
        unknown = [e for e in extensions("before.qcow2") if e[0] == 0x12345678]
        args = ["amend", "-o", ",".join(choose(r))]
        for name in "theirs", "ours":
            shutil.copyfile("before.qcow2", name + ".qcow2")
        what = "seed %d: %s" % (seed, " ".join(args))
        try:
            theirs = run("qemu-img", *args, "-f", "qcow2", "theirs.qcow2", timeout=2)
        except subprocess.TimeoutExpired:
            # It loops for ever on some images with small clusters and snapshots.
            counts["hangs"] += 1
            ours = run(IMG, *args, "-f", "qcow2", "ours.qcow2")
            if ours.returncode == 1 and check("ours.qcow2") in (0, start):
                return  # who knows what it would have refused
            if ours.returncode or check("ours.qcow2"):
                sys.exit("%s: %d %s" % (what, ours.returncode, ours.stderr))
            shutil.copyfile("before.qcow2", "theirs.qcow2")
            compare(what, unknown, start, False)
            return
        ours = run(IMG, *args, "-f", "qcow2", "ours.qcow2")
        excused = excuses(ours.stderr)
        if (theirs.returncode != 0) != (ours.returncode != 0) and not excused:
            sys.exit("%s: qemu-img %d %s, nbdcow-img %d %s" %
                     (what, theirs.returncode, theirs.stderr, ours.returncode, ours.stderr))
        if ours.returncode:
            counts["refused"] += 1
            if ours.returncode != 1 or ours.stderr.count("\n") != 1:
                sys.exit("%s: not refused in one line: %s" % (what, ours.stderr))
            if check("ours.qcow2") not in (0, start):
                sys.exit("%s: refused, and damaged" % what)
            must("qemu-img", "compare", "-q", "-U", "before.qcow2", "ours.qcow2")
            continue
        if excused:
            continue
        counts["made"] += 1
        compare(what, unknown, start)
        shutil.copyfile("ours.qcow2", "before.qcow2")

must("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "1M")
must("qemu-io", "-f", "qcow2", "-c", "write -P 99 0 1M", "base.qcow2")
for i in range(runs):
    one(seed + i)
print("%(made)d images amended, %(refused)d refusals, %(hangs)d where qemu-img hangs" % counts)
if counts["made"] < runs / 3:
    sys.exit("fewer than there should be")
END
"$PYTHON" amend.py "$SEED" "${NBDCOW_AMEND_RUNS:-40}"

echo "== data files"
qemu-img create -q -f qcow2 -o data_file=d.data,data_file_raw=on d.qcow2 1M
qemu-io -f qcow2 -c "write -P 3 0 300k" d.qcow2 >/dev/null
"$NBDCOW_IMG" amend -o data_file_raw=off d.qcow2
"$NBDCOW_IMG" info d.qcow2 | grep -q 'data file raw: false' || fail "data_file_raw=off"
"$NBDCOW_IMG" amend -o data_file_raw=on d.qcow2 2>err && fail "data_file_raw=on was accepted"
mv d.data e.data
"$NBDCOW_IMG" amend --data-file=e.data -o data_file=e.data d.qcow2
qemu-io -r -f qcow2 -c "read -P 3 0 300k" d.qcow2 >log || fail "the renamed data file: $(cat log)"
"$NBDCOW_IMG" amend -o data_file= d.qcow2
qemu-img info d.qcow2 2>/dev/null | grep -q 'e.data' && fail "the name is still there"
qemu-io -r --image-opts -c "read -P 3 0 300k" driver=qcow2,file.filename=d.qcow2,data-file.driver=file,data-file.filename=e.data \
  >log || fail "the data file that is not named: $(cat log)"
"$NBDCOW_IMG" amend --data-file=e.data -o compat=v2 d.qcow2 2>err && fail "downgraded with a data file"
grep -q 'data file' err || fail "not said why: $(cat err)"

echo "== what is encrypted stays so, in snapshots too"
printf one >key
secret=secret,id=s,file=key
image=driver=qcow2,encrypt.key-secret=s,file.filename=e.qcow2
derive qemu-img create -q -f qcow2 --object $secret -b base.qcow2 -F qcow2 \
  -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 e.qcow2 1M
qemu-io --object $secret --image-opts -c "write -P 3 0 300k" -c "write -z 512k 256k" $image >/dev/null
qemu-img snapshot --object $secret -c a --image-opts $image
qemu-io --object $secret --image-opts -c "write -P 4 100k 900k" $image >/dev/null
qemu-img convert --object $secret --image-opts $image -O raw active.raw
qemu-img convert --object $secret -l a --image-opts $image -O raw a.raw
for options in refcount_bits=64,lazy_refcounts=on refcount_bits=16,compat=v2 compat=v3; do
  "$NBDCOW_IMG" amend --object $secret -o $options --image-opts $image || fail "$options"
  qemu-img check -q --object $secret --image-opts $image || fail "$options: damaged"
  qemu-img convert --object $secret --image-opts $image -O raw now.raw
  cmp active.raw now.raw || fail "$options: the disk has changed"
  qemu-img convert --object $secret -l a --image-opts $image -O raw now.raw
  cmp a.raw now.raw || fail "$options: the snapshot has changed"
done
"$NBDCOW_IMG" amend --object $secret -o encrypt.state=active,refcount_bits=8 --image-opts $image 2>err &&
  fail "keys and refcounts at once"
[ "$(wc -l <err)" = 1 ] || fail "not one line: $(cat err)"

echo "== bitmaps are kept, and version 2 has none"
qemu-img create -q -f qcow2 b.qcow2 4M
qemu-img bitmap --add b.qcow2 x
qemu-io -f qcow2 -c "write -P 1 1M 200k" b.qcow2 >/dev/null
for options in refcount_bits=1 refcount_bits=64,size=8M refcount_bits=16,lazy_refcounts=on; do
  "$NBDCOW_IMG" amend -o $options b.qcow2 || fail "$options with a bitmap"
  qemu-img check -q b.qcow2 || fail "$options with a bitmap: damaged"
  qemu-img info b.qcow2 | grep -q 'name: x' || fail "$options: the bitmap is gone"
done
"$NBDCOW_IMG" amend -o compat=v2 b.qcow2 2>err && fail "downgraded with a bitmap"
grep -q 'remove the 1' err || fail "not said why: $(cat err)"
qemu-img create -q -f qcow2 s.qcow2 1M && qemu-img snapshot -c s s.qcow2
"$NBDCOW_IMG" amend -o compat=v2,size=2M s.qcow2 2>err && fail "a snapshot's size was forgotten"
qemu-img info s.qcow2 | grep -q 'compat: 1.1' || fail "downgraded all the same"

echo "== the command line"
for bad in "" "-o compat=v2" "-o size=1M,size nothing.qcow2" "-o help=1 d.qcow2"; do
  # shellcheck disable=SC2086 # a command line
  "$NBDCOW_IMG" amend $bad 2>err && fail "amend $bad was accepted"
  [ "$(wc -l <err)" = 1 ] || fail "amend $bad: not one line: $(cat err)"
done
"$NBDCOW_IMG" amend -o help >help && grep -q refcount_bits help || fail "no help"
:
