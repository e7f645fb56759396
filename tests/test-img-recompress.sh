#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img recompress: another level, another type, what was not compressed; the disk stays what it is,
# QEMU finds the image sound, bitmaps and backing files are kept; also when it is interrupted or killed at any
# moment.
#
# SEED: of the images' contents.  ROUNDS: images.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
use_seed
in_memory 400
ROUNDS=${ROUNDS:-8}
export NBDCOW_IMG ROUNDS

cat >recompress.py <<'END_OF_PYTHON'
import hashlib, json, os, random, shutil, signal, subprocess, sys, time

IMG, SEED, ROUNDS = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), int(os.environ["ROUNDS"])

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=90)

def fail(*what):
    sys.exit("SEED=%d: %s" % (seed, " ".join(map(str, what))))

def must(*args):
    p = run(*args)
    if p.returncode:
        fail(*args, p.stdout, p.stderr)
    return p.stdout

def fill(name, size, r):
    text = b"".join(b"%d %d\n" % (n, r.randrange(1 << 30)) for n in range(size // 24 + 1))
    with open(name, "wb") as f:
        f.truncate(size)
        at = 0
        while at < size:
            n = min(size - at, r.choice((4096, 70000, 300000)))
            kind = r.randrange(4)
            f.seek(at)
            if kind:
                f.write(r.randbytes(n) if kind == 1 else text[at:at + n])
            at += n

def contents(name):
    must("qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, "contents")
    with open("contents", "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()

def sound(name, leaks=False):
    p = run("qemu-img", "check", "-f", "qcow2", name)
    if p.returncode and not (leaks and p.returncode == 3):
        fail(name, p.stdout, p.stderr)

def info(name):
    return json.loads(must("qemu-img", "info", "-U", "--output=json", name))["format-specific"]["data"]

def compressed(name):
    return json.loads(must(IMG, "check", "--output=json", name)).get("compressed-clusters", 0)

smaller = 0
for seed in range(SEED, SEED + ROUNDS):
    r = random.Random(seed)
    size, cluster = r.choice((3 << 20, (5 << 20) + 512)), r.choice((512, 4096, 65536))
    first = r.choice(("zlib", "zstd"))
    options = "cluster_size=%d,compression_type=%s" % (cluster, first)
    backing = []
    fill("raw", size, r)
    if r.random() < 0.3:
        fill("base", size, r)
        backing = ["-B", "base", "-F", "raw"]
    must(IMG, "convert", "-c", "--compression-level=1", "-f", "raw", "-O", "qcow2", "-o", options, *backing, "raw", "disk")
    for _ in range(4): # what is not compressed
        at = r.randrange(size // 512 - 128) * 512
        must("qemu-io", "-f", "qcow2", "-c", "write -P 7 %d 64k" % at, "disk")
    if r.random() < 0.4:
        must("qemu-img", "bitmap", "--add", "--disable", "-g", "4k", "disk", "b")
    second = r.choice(("zlib", "zstd"))
    args = ["--type=" + second, "--compression-level=%d" % r.choice((6, 9))] + (["--all"] if r.random() < 0.5 else [])
    want, bitmaps, had = contents("disk"), info("disk").get("bitmaps"), compressed("disk")
    for sig in signal.SIGINT, signal.SIGKILL, signal.SIGKILL:
        shutil.copy("disk", "copy")
        p = subprocess.Popen([IMG, "recompress", "-q", *args, "copy"], stderr=subprocess.DEVNULL)
        time.sleep(r.random() * 0.1)
        p.send_signal(sig)
        if p.wait(timeout=60) not in (0, 1, -sig):
            fail("status", p.returncode, "after", sig)
        # Not sooner: whoever opens the image next would have mended it.
        sound("copy", leaks=True)
        if contents("copy") != want:
            fail("contents after", sig, args)
    p = run(IMG, "recompress", "--output=json", *args, "disk")
    if p.returncode:
        fail(args, p)
    j = json.loads(p.stdout)
    sound("disk")
    if contents("disk") != want:
        fail("contents", args, j)
    if info("disk")["compression-type"] != second or info("disk").get("bitmaps") != bitmaps:
        fail(args, info("disk"))
    if os.path.getsize("disk") != j["end-after"]:
        fail(j, os.path.getsize("disk"))
    # Some no longer become smaller; with --all others do.
    if compressed("disk") < had * 0.9:
        fail(args, had, "clusters were compressed,", compressed("disk"), "are")
    smaller += j["end-after"] < j["end-before"]
print("%d images, %d are smaller" % (ROUNDS, smaller))
if smaller == 0:
    sys.exit("none became smaller")
END_OF_PYTHON
"$PYTHON" recompress.py

# Zeros of the image's own, over a backing file that has something else there: also where they need no cluster
# any more, the backing file must not be seen.
truncate -s 1M under
qemu-io -f raw -c "write -q -P 85 0 1M" under
for cluster in 4k 64k; do
  for version in 0.10 1.1; do
    qemu-img create -q -f qcow2 -o cluster_size=$cluster,compat=$version -b under -F raw over 1M
    qemu-io -f qcow2 -c "write -q -P 0 0 64k" -c "write -q -c -P 0 64k $cluster" -c "write -q -c -P 0 128k $cluster" \
      -c "write -q -P 7 256k 64k" -c "write -q -P 0 900k 64k" over
    for args in "" "--all" "--type=zstd" "--type=zstd --all" "--no-compact --all"; do
      case $version/$args in 0.10/*zstd*) continue ;; esac
      cp over over.new
      # shellcheck disable=SC2086 # several words
      "$NBDCOW_IMG" recompress -q $args over.new
      check_image over.new
      same_contents over qcow2 over.new qcow2
    done
  done
done

# must_fail TEXT COMMAND...: with status 1 and one line that contains TEXT; the image stays as it is.
must_fail ()
{
  _text=$1 _s=0
  shift
  _sum=$(digest disk)
  "$@" 2>err || _s=$?
  one_line "$_s" err "$_text" || fail "$*: $REASON"
  unchanged "$_sum" disk
}
qemu-img create -q -f qcow2 disk 1M
must_fail "-U" "$NBDCOW_IMG" recompress -U disk
must_fail "file name" "$NBDCOW_IMG" recompress
must_fail "zlib or zstd" "$NBDCOW_IMG" recompress --type=lzma disk
must_fail "levels 1 to" "$NBDCOW_IMG" recompress --compression-level=20 disk
must_fail "neither an absolute" "$NBDCOW_IMG" recompress --state-dir=x disk
qemu-img snapshot -c s disk
must_fail "internal snapshots" "$NBDCOW_IMG" recompress disk
qemu-img create -q -f qcow2 -o compat=0.10 disk 1M
must_fail "version 3" "$NBDCOW_IMG" recompress --type=zstd disk
truncate -s 1M disk
must_fail "qcow2 images" "$NBDCOW_IMG" recompress -f raw disk
