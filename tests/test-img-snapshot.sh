#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img snapshot beside qemu-img snapshot: on images of all geometries each makes, goes back to and
# deletes snapshots, its own and the other's, between writes of either; after every step both find the
# image sound, every snapshot has what it had, and both list the same.  Then the command line.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires_file "${BUILDDIR:-}/model/contents" contents
requires qemu-img qemu-io
requires_python
use_seed
in_memory 400
export NBDCOW_IMG BUILDDIR SEED ROUNDS="${ROUNDS:-10}"

cat >snapshot.py <<'END'
import hashlib, json, os, random, subprocess, sys, time

IMG, CONTENTS = os.environ["NBDCOW_IMG"], os.environ["BUILDDIR"] + "/model/contents"
rnd = random.Random(int(os.environ["SEED"]))
what, steps = "", []

def fail(*more):
    sys.exit("%s\n  %s\n%s" % (what, "\n  ".join(steps), " ".join(map(str, more))))

def run(*args, status=0):
    p = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    if p.returncode != status:
        fail(" ".join(args), "->", p.returncode, p.stdout, p.stderr)
    return p

def digest(name):
    with open(name, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()

def disk():
    run(CONTENTS, "disk.qcow2", "contents.raw")
    return digest("contents.raw")

def of_snapshot(name):
    run("qemu-img", "convert", "-f", "qcow2", "-l", "snapshot.name=" + name, "-O", "raw", "disk.qcow2", "snap.raw")
    return digest("snap.raw")

def snapshots(tool):
    j = json.loads(run(tool, "info", "--output=json", "-f", "qcow2", "disk.qcow2").stdout)
    return [(s["id"], s["name"], s["vm-state-size"]) for s in j.get("snapshots", [])]

def write(version, size):
    steps.append("write")
    commands = []
    for _ in range(rnd.randrange(1, 5)):
        at = rnd.randrange(size // 512) * 512
        n = min(rnd.choice([512, 4096, 65536, 200000 // 512 * 512]), size - at)
        op = rnd.choice(["write -P %d" % rnd.randrange(1, 256)] * 3 + ["discard"] + (["write -z"] if version == 3 else []))
        commands += ["-c", "%s %d %d" % (op, at, n)]
    run("qemu-io", "-f", "qcow2", "-d", "unmap", *commands, "disk.qcow2")

def sound():
    for tool in "qemu-img", IMG:
        p = run(tool, "check", "-f", "qcow2", "disk.qcow2")

def story(version, cluster, bits):
    global what, steps
    what = "seed %s: version %d, clusters of %d, refcounts of %d bits" % (os.environ["SEED"], version, cluster, bits)
    steps = []
    size = min(cluster * 300, 3 << 20) // 512 * 512 + 512
    options = "cluster_size=%d,compat=%s" % (cluster, "0.10" if version == 2 else "1.1,refcount_bits=%d" % bits)
    back = []
    if rnd.randrange(3) == 0:
        with open("base.raw", "wb") as f:
            f.write(rnd.randbytes(size // 2))
        back = ["-b", "base.raw", "-F", "raw"]
    if rnd.randrange(4) == 0 and not back:
        with open("base.raw", "wb") as f:
            f.write(b"".join(bytes([rnd.randrange(256)]) * 700 for _ in range(size // 700)).ljust(size, b"x"))
        run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "base.raw", "disk.qcow2")
    else:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *back, "disk.qcow2", str(size))
    known, n = {}, 0
    most = (1 << bits) - 2 if bits < 4 else 5
    for _ in range(14):
        write(version, size)
        tool = rnd.choice(["qemu-img", IMG])
        act = rnd.choice("ccad") if known else "c"
        if act == "c" and len(known) >= most:
            act = "d"
        before = disk()
        if act == "c":
            n += 1
            name = "s%d" % n
            steps.append("%s creates %s" % (os.path.basename(tool), name))
            p = subprocess.run([tool, "snapshot", "-c", name, "disk.qcow2"], stderr=subprocess.PIPE, text=True)
            if p.returncode == 0:
                known[name] = before
            elif bits > 8:
                fail(p.stderr)
            else: # too many share a compressed cluster
                steps.append("refused: " + p.stderr)
                if tool == "qemu-img": # which leaves it half done
                    subprocess.run(["qemu-img", "check", "-q", "-r", "all", "disk.qcow2"])
            after = before
        else:
            name = rnd.choice(sorted(known))
            steps.append("%s %s %s" % (os.path.basename(tool), act, name))
            p = subprocess.run([tool, "snapshot", "-" + act, name, "disk.qcow2"], stderr=subprocess.PIPE, text=True)
            if p.returncode != 0:
                if bits > 8 or act == "d":
                    fail(p.stderr)
                after = before
                if tool == "qemu-img":
                    subprocess.run(["qemu-img", "check", "-q", "-r", "all", "disk.qcow2"])
            elif act == "d":
                after = before
                del known[name]
            else:
                after = known[name]
        sound()
        if disk() != after:
            fail("the disk is not what it should be")
        for name, want in known.items():
            if of_snapshot(name) != want:
                fail("snapshot", name, "is not what it was")
        if snapshots("qemu-img") != snapshots(IMG) or [s[1] for s in snapshots(IMG)] != sorted(known, key=lambda s: int(s[1:])):
            fail("listed:", snapshots("qemu-img"), snapshots(IMG))

geometries = [(2, 512, 16), (3, 512, 16), (3, 512, 2), (3, 4096, 4), (3, 65536, 16), (3, 65536, 8),
              (3, 4096, 32), (3, 2 << 20, 64), (2, 65536, 16), (3, 1024, 64), (2, 2 << 20, 16), (3, 16384, 16)]
end = time.time() + 15
rounds = 0
for g in rnd.sample(geometries, len(geometries))[:int(os.environ["ROUNDS"])]:
    if rounds >= 4 and time.time() > end:
        break
    story(*g)
    rounds += 1
print("snapshots: %d images" % rounds)
END
$PYTHON snapshot.py

# ---- the command line ------------------------------------------------------------------------

# same STATUS ARGUMENT...: both tools exit with STATUS.
same ()
{
  want=$1
  shift
  for tool in qemu-img "$NBDCOW_IMG"; do
    got=0
    $tool snapshot "$@" >"out.$(basename "$tool")" 2>err || got=$?
    [ $got = "$want" ] || fail "$tool snapshot $*: status $got instead of $want: $(cat err)"
  done
}

qemu-img create -q -f qcow2 disk.qcow2 1M
same 0 disk.qcow2
cmp out.qemu-img out.nbdcow-img
same 0 -c one disk.qcow2
same 0 -q -c two disk.qcow2
same 0 -l disk.qcow2
same 1 -a nothing disk.qcow2
same 1 -d nothing disk.qcow2
same 1 -l -c x disk.qcow2
same 1
same 1 -l nothing.qcow2
same 1 -c x -a x disk.qcow2
[ "$("$NBDCOW_IMG" snapshot -l disk.qcow2 | wc -l)" = 6 ] || fail "there should be four snapshots"
"$NBDCOW_IMG" snapshot -l disk.qcow2 | grep -q '^4  *two  *0 B 20' || fail "$("$NBDCOW_IMG" snapshot disk.qcow2)"
qemu-img create -q -f qcow2 -o refcount_bits=1 narrow.qcow2 1M
qemu-io -f qcow2 -c "write 0 64k" narrow.qcow2 >/dev/null
status=0
"$NBDCOW_IMG" snapshot -c one narrow.qcow2 2>err || status=$?
one_line $status err "1 bit" || fail "$REASON"
check_image narrow.qcow2
