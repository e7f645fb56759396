#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img check beside qemu-img check: the same totals and exit status for sound images, for leaks
# and for damage; and repair: what it repairs, both find sound (or as sound as can be), no finding is
# added, no surviving guest byte changes, and what was leaked is only freed where that is proven.
#
# ROUNDS: how many damaged images are tried (default 60).  SEED: the first one's.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
use_seed
in_memory 400
ROUNDS=${ROUNDS:-60}
export NBDCOW_IMG ROUNDS

# ---- sound images, of every kind -------------------------------------------------------------

make ()
{
  qemu-img create -q -f qcow2 -o "$2" "sound-$1" 4M
}
io ()
{
  name=sound-$1
  shift
  qemu-io -f qcow2 "$@" "$name" >/dev/null
}
for cluster in 512 4k 64k; do
  for width in 1 16 64; do
    n=$cluster-$width
    make $n cluster_size=$cluster,refcount_bits=$width
    io $n -c 'write -P 1 0 300k' -c 'write -P 2 1M 100k' -c 'write -z 1200k 64k' \
      -c 'write -z -u 1m 64k' -c 'discard 128k 64k'
    io $n -c 'write -c -P 5 2M 64k' -c 'write -c -P 6 2112k 64k'
  done
done
for cluster in 512 64k; do
  n=snapshots-$cluster
  make $n cluster_size=$cluster,refcount_bits=8
  io $n -c 'write -P 1 0 300k' -c 'write -c -P 6 2112k 64k'
  qemu-img snapshot -c a sound-$n
  io $n -c 'write -P 2 64k 100k' -c 'write -z 200k 64k'
  qemu-img snapshot -c bbb sound-$n
  io $n -c 'write -P 3 3M 100k'
done
for cluster in 16k 64k; do
  n=extended-$cluster
  make $n extended_l2=on,cluster_size=$cluster,refcount_bits=8
  io $n -c 'write -P 1 1k 300k' -c 'write -P 2 1M 7k' -c 'write -z 1200k 2k' -c 'discard 128k 64k' \
    -c 'write -c -P 5 2M 64k'
  qemu-img snapshot -c a sound-$n
  io $n -c 'write -P 2 65k 50k' -c 'write -z 200k 6k'
done
make v2 compat=0.10,cluster_size=4k
io v2 -c 'write -P 1 0 300k'
qemu-img snapshot -c x sound-v2
io v2 -c 'write -P 7 100k 100k'
make bitmaps cluster_size=4k
qemu-img bitmap --add sound-bitmaps b0
qemu-img bitmap --add -g 64k sound-bitmaps b1
io bitmaps -c 'write -P 1 1M 900k'
make prealloc cluster_size=4k,preallocation=metadata
make killed cluster_size=4k,lazy_refcounts=on
qemu-io -f qcow2 -c 'write -P 1 0 300k' -c 'sigraise 9' sound-killed >/dev/null 2>&1 || :

# ---- the driver ------------------------------------------------------------------------------

cat >check.py <<'END'
import glob, json, os, random, shutil, struct, subprocess, sys

IMG, SEED, ROUNDS = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), int(os.environ["ROUNDS"])
OFFSET = 0x00fffffffffffe00
BIT63, COMPRESSED = 1 << 63, 1 << 62

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)

def check(tool, name, *args):
    p = run(tool, "check", "-f", "qcow2", "--output", "json", *args, name)
    return p.returncode, json.loads(p.stdout) if p.stdout.startswith(b"{") else None, p.stderr.decode()

def findings(j):
    return j.get("corruptions", 0) + j.get("check-errors", 0), j.get("leaks", 0)

class Image:
    """The metadata of an image in memory, to be damaged."""

    def __init__(self, name):
        self.d = bytearray(open(name, "rb").read())
        (_, self.version, _, _, bits, _, _, self.l1_size, self.l1, self.reftable, self.reftable_clusters,
         self.snapshots, self.snapshot_table) = struct.unpack_from(">IIQIIQIIQQIIQ", self.d, 0)
        self.cluster = 1 << bits
        self.width = 1 << (struct.unpack_from(">I", self.d, 96)[0] if self.version > 2 else 4)
        self.clusters = -(-len(self.d) // self.cluster)
        self.extended = self.version > 2 and bool(struct.unpack_from(">Q", self.d, 72)[0] & 16)

    def get(self, at):
        return struct.unpack_from(">Q", self.d, at)[0] if at + 8 <= len(self.d) else 0

    def put(self, at, value):
        if at + 8 <= len(self.d):
            struct.pack_into(">Q", self.d, at, value & (2**64 - 1))

    def l1_entries(self):
        tables = [(self.l1, self.l1_size)]
        at = self.snapshot_table
        for _ in range(self.snapshots):
            l1, size, id_len, name_len = struct.unpack_from(">QIHH", self.d, at)
            tables.append((l1, size))
            extra = struct.unpack_from(">I", self.d, at + 36)[0]
            at += (40 + extra + id_len + name_len + 7) & ~7
        return [t + 8 * i for t, n in tables for i in range(n)]

    def l2_entries(self, used=True):
        tables = {self.get(e) & OFFSET for e in self.l1_entries()} - {0}
        return [t + 8 * i for t in sorted(tables) if t % self.cluster == 0
                for i in range(0, self.cluster // 8, 2 if self.extended else 1)
                if self.get(t + 8 * i) or not used]

    def set_refcount(self, cluster, count):
        per_block = self.cluster * 8 // self.width
        block = self.get(self.reftable + 8 * (cluster // per_block))
        bit = cluster % per_block * self.width
        if block == 0 or block + (bit + self.width + 7) // 8 > len(self.d):
            return
        if self.width < 8:
            mask = ((1 << self.width) - 1) << bit % 8
            at = block + bit // 8
            self.d[at] = self.d[at] & ~mask | count << bit % 8 & mask
        else:
            n = self.width // 8
            self.d[block + bit // 8:block + bit // 8 + n] = (count & (1 << self.width) - 1).to_bytes(n, "big")

    def damage(self, kind, r):
        """One damage; EXACT are those about which we and QEMU say exactly the same."""
        if kind == "refcount":
            return self.set_refcount(r.randrange(self.clusters), r.choice((0, 1, 2, 3, 5, 255)))
        table, what = kind.split("-")
        if table == "l2":
            entries = self.l2_entries()
        elif table == "l1":
            entries = [e for e in self.l1_entries() if self.get(e)]
        else:
            entries = [self.reftable + 8 * i for i in range(self.reftable_clusters * self.cluster // 8)]
            entries = [e for e in entries if self.get(e)]
        if not entries:
            return
        e = r.choice(entries)
        v = self.get(e)
        past = (self.clusters + r.choice((0, 1, 2, 100, 1 << 20))) * self.cluster
        if what == "copied":
            v ^= BIT63
        elif what == "past" and not (table == "l2" and v & COMPRESSED):
            v = v & ~OFFSET | past
        elif what == "misaligned":
            v ^= 512 if self.cluster > 512 else 0
        elif what == "reserved":
            v ^= r.choice((2, 1 << 56, 256))
        elif what == "zero":
            v ^= 1
        elif what == "bitmap" and self.extended and not v & COMPRESSED:
            self.put(e + 8, self.get(e + 8) ^ 1 << r.randrange(64))
        elif what == "compressedbitmap" and self.extended and v & COMPRESSED:
            self.put(e + 8, 1 << r.randrange(64))
        elif what == "compressed":
            v ^= COMPRESSED
        elif what == "gone":
            v = 0
        elif what == "moved":
            v = v & ~OFFSET | r.randrange(1, self.clusters) * self.cluster
        elif what == "twice":
            e = r.choice(self.l2_entries(False) if table == "l2" else self.l1_entries())
        self.put(e, v)

EXACT = ["refcount"] * 4 + ["l2-copied", "l2-past", "l2-reserved", "l2-bitmap", "l1-copied", "l1-past",
         "l1-gone", "reftable-gone", "reftable-past", "reftable-misaligned"]
# Here we know more: overlapping metadata, refcounts past the end of the file, tables that nobody
# could have meant, clusters that a misaligned entry puts partly past the end, refcount blocks that are in use
# whatever the reserved bits say, compressed clusters that are in use whatever their bitmaps say.
OTHER = ["l2-compressedbitmap", "l2-misaligned", "l2-zero", "l2-compressed", "l2-moved", "l2-twice", "l1-twice", "l1-misaligned", "l1-reserved",
         "reftable-moved", "reftable-reserved"]

def same_expected(name, kinds):
    """Combined damages can add up to one of OTHER: refcounts read from something else, a misaligned
    cluster over a refcount block."""
    reftable = [k for k in kinds if k.startswith("reftable")]
    return set(kinds) <= set(EXACT) and (not reftable or set(kinds) <= set(reftable) | {"refcount"}) and \
        not (name.endswith("-1") and "l2-misaligned" in kinds)

def fail(*what):
    sys.exit(" ".join(w if len(w) < 4000 else w[:1500] + " ... " + w[-1500:] for w in map(str, what)))

sound = sorted(glob.glob("sound-*"))
for name in sound:
    theirs, ours = check("qemu-img", name), check(IMG, name)
    if theirs[:2] != ours[:2]:
        fail(name, theirs, ours)

compared = repaired = mended = 0
for seed in range(SEED, SEED + ROUNDS):
    r = random.Random(seed)
    name = r.choice(sound)
    image = Image(name)
    kinds = [r.choice(EXACT if seed % 3 else EXACT + OTHER) for _ in range(r.choice((1, 1, 2, 4)))]
    for kind in kinds:
        image.damage(kind, r)
    open("damaged", "wb").write(image.d)
    where = "SEED=%d ROUNDS=1, %s, %s:" % (seed, name, " ".join(kinds))

    theirs, ours = check("qemu-img", "damaged"), check(IMG, "damaged")
    if theirs[1] is None or ours[1] is None:
        fail(where, "not opened", theirs, ours)
    if same_expected(name, kinds):
        compared += 1
        if theirs[:2] != ours[:2]:
            fail(where, "\nqemu-img", theirs, "\nnbdcow-img", ours)
    if open("damaged", "rb").read() != image.d:
        fail(where, "a check without -r wrote")

    mode = r.choice(("all", "all", "leaks"))
    shutil.copy("damaged", "mended")
    for old in "dry", "journal":
        if os.path.exists(old):
            os.unlink(old)
    dry = check(IMG, "mended", "-r", mode, "--dry-run", "--journal", "dry")
    if open("mended", "rb").read() != image.d:
        fail(where, "-r", mode, "--dry-run wrote")
    status, result, messages = check(IMG, "mended", "-r", mode, "--journal", "journal")
    if result is None:
        fail(where, "-r", mode, status, messages)
    if dry[:2] != (status, result):
        fail(where, "-r", mode, "--dry-run said", dry, "but then", status, result)
    # The journal tells every byte that was changed, but for the highest allocated offset in the
    # header, which is recorded after the repair; a dry run tells the same.
    if open("dry").read() != open("journal").read():
        fail(where, "-r", mode, "the journal of the dry run differs")
    undone = bytearray(open("mended", "rb").read())
    for change in reversed([json.loads(line) for line in open("journal")]):
        at, before, after = change["offset"], bytes.fromhex(change["before"]), bytes.fromhex(change["after"])
        if undone[at:at + len(after)] != after:
            fail(where, "-r", mode, "the journal is wrong:", change)
        undone[at:at + len(before)] = before
    if undone[:len(image.d)] != image.d or any(undone[len(image.d):]):
        fail(where, "-r", mode, "the journal does not lead back to what was there")
    again = check(IMG, "mended")
    said = {k: v for k, v in result.items() if not k.endswith("-fixed")}
    if said != again[1]:
        fail(where, "-r", mode, "said", result, "but a check says", again[1])
    after = check("qemu-img", "mended")[1]
    if after is None or findings(after)[0] > findings(theirs[1])[0]:
        fail(where, "-r", mode, "made it worse:", theirs[1], after)
    repaired += 1
    if findings(after) == (0, 0):
        mended += 1
    if mode == "all" and set(kinds) <= {"refcount", "l2-copied", "l1-copied", "reftable-past",
                                        "reftable-misaligned", "reftable-gone"}:
        if findings(after) != (0, 0) or status != 0:
            fail(where, "-r all did not mend it:", result, after)
    # 1: a byte differs.  More: one of them cannot be read, which is not the repair's doing.
    compare = run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", "damaged", "mended")
    if compare.returncode == 1 and b"mismatch" in compare.stdout:
        fail(where, "-r", mode, "changed the contents:", compare.stdout)

print("%d sound images; %d damaged ones: %d compared with qemu-img, %d repaired, of which %d to soundness"
      % (len(sound), ROUNDS, compared, repaired, mended))
if ROUNDS >= 20 and mended < ROUNDS // 4:
    sys.exit("fewer were mended than there should be")
END
"$PYTHON" check.py

# ---- what a repair leaves --------------------------------------------------------------------

# Nothing to check in a raw image: 63, as qemu-img has it.
truncate -s 1M disk.raw
s=0
"$NBDCOW_IMG" check -f raw disk.raw 2>log || s=$?
[ $s = 63 ] || fail "check of a raw image: status $s"

# A session that was killed: the repair counts anew and clears the dirty bit.
cp sound-killed killed
"$NBDCOW_IMG" check -q -r all killed 2>/dev/null || fail "repair of a dirty image: status $?"
check_image killed
"$NBDCOW_IMG" info killed | grep -q 'cleanly shut down: no' && fail "the dirty bit is still set"
[ "$(qemu-io -r -f qcow2 -c 'read -P 1 0 300k' killed | grep -c 'read 307200')" = 1 ] || fail "data was lost"

# The highest allocated offset covers what a repair added.
"$NBDCOW_IMG" create -q -o cluster_size=4k ours.qcow2 4M
qemu-io -f qcow2 -c 'write -P 9 0 1M' ours.qcow2 >/dev/null
printf '\0\0\0\0\0\0\0\0' | dd of=ours.qcow2 bs=1 seek=4096 conv=notrunc 2>/dev/null # the refcount table's first entry
"$NBDCOW_IMG" check -q -r all ours.qcow2 2>/dev/null || fail "rebuilding refcounts: status $?"
check_image ours.qcow2
"$PYTHON" - <<'END'
import json, os, subprocess
def tool(command):
    return json.loads(subprocess.check_output([os.environ["NBDCOW_IMG"], command, "--output=json", "ours.qcow2"]))
end, highest = tool("check")["image-end-offset"], tool("info")["highest-allocated-offset"]
assert highest >= end, (highest, end)
d = open("ours.qcow2", "rb").read(4096)
at = d.index(b"HALC")
assert int.from_bytes(d[at + 8:at + 16], "big") == highest
END

# Misuse of what is about repairs.
for args in --dry-run "--journal x"; do
  s=0
  # shellcheck disable=SC2086 # two words
  "$NBDCOW_IMG" check $args ours.qcow2 2>log || s=$?
  one_line $s log repair || fail "check $args: $REASON"
done
: >there
s=0
"$NBDCOW_IMG" check -r all --journal there ours.qcow2 2>log || s=$?
one_line $s log there || fail "a journal that exists: $REASON"

# ---- an image that is being written ----------------------------------------------------------

# Whatever a moment shows, nothing is called corrupt that is not.
# check_beside FILE: while churn.py, which is tracked as $writer, runs.
check_beside ()
{
  checks=0
  while process_alive "$writer"; do
    s=0
    "$NBDCOW_IMG" check -q -U "$1" 2>log || s=$?
    [ $s = 0 ] || [ $s = 3 ] || fail "check -U of $1, in use: status $s: $(head -n 5 log)"
    checks=$((checks + 1))
  done
  wait "$writer" || fail "churn.py"
  [ $checks -ge 1 ] || fail "$1 was not checked while it was in use"
}

if [ -e "${NBDCOW:-}" ] && "$PYTHON" -c 'import nbd' 2>/dev/null; then
  for cluster in 4k 64k; do
    "$NBDCOW_IMG" create -q -o cluster_size=$cluster served.qcow2 64M
    start_nbdcow served.qcow2 discard=unmap
    "$PYTHON" "$SRCDIR/churn.py" "$URI" "${SEED:-1}" 3 &
    writer=$!
    track $writer
    check_beside served.qcow2
    stop_server
    check_image served.qcow2
  done

  # QEMU writes counts late with lazy refcounts: that is no damage.
  qemu-img create -q -f qcow2 -o lazy_refcounts=on lazy.qcow2 64M
  qemu-nbd -t -f qcow2 --discard=unmap -k "$tmp/lazy.sock" lazy.qcow2 &
  server=$!
  track $server
  wait_for 30 listens "$tmp/lazy.sock" || fail "qemu-nbd does not start"
  "$PYTHON" "$SRCDIR/churn.py" "nbd+unix:///?socket=$tmp/lazy.sock" "${SEED:-1}" 2 &
  writer=$!
  track $writer
  check_beside lazy.qcow2
  kill $server
  wait $server || :
  check_image lazy.qcow2

  # What is really wrong is found beside a writer as well.
  cp served.qcow2 wrong.qcow2
  start_nbdcow wrong.qcow2 read-only
  "$PYTHON" - <<'END'
import struct
with open("wrong.qcow2", "rb+") as f: # the count of the header's cluster
    f.seek(48)
    f.seek(struct.unpack(">Q", f.read(8))[0])
    f.seek(struct.unpack(">Q", f.read(8))[0])
    f.write(b"\0\0")
END
  s=0
  "$NBDCOW_IMG" check -q -U wrong.qcow2 2>log || s=$?
  [ $s = 2 ] || fail "check -U of a damaged image in use: status $s"
  grep -q 'cluster 0 refcount=0 reference=1' log || fail "check -U of a damaged image in use: $(cat log)"
  stop_server
fi
