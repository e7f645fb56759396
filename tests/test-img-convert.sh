#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img convert beside qemu-img convert: random sources and targets of every cluster size,
# refcount width and compression type; the contents are the same, the check finds nothing, both
# programs read what the other made, and the file is not larger (by more than a few percent).
#
# SEED: of everything.  ROUNDS: conversions.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
use_seed
ROUNDS=${ROUNDS:-24}
export NBDCOW_IMG ROUNDS

cat >convert.py <<'END_OF_PYTHON'
import os, random, subprocess, sys

IMG, SEED, ROUNDS = os.environ["NBDCOW_IMG"], int(os.environ["SEED"]), int(os.environ["ROUNDS"])
dice = random.Random(SEED)

def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=90)

def must(*args):
    p = run(*args)
    if p.returncode:
        sys.exit("SEED=%d: %s: %s%s" % (SEED, " ".join(args), p.stdout, p.stderr))
    return p

def content(n):
    kind = dice.randrange(4)
    if kind == 0:
        return bytes(n)
    if kind == 1:
        return dice.randbytes(n)
    if kind == 2:
        word = dice.randbytes(dice.choice((5, 60, 700)))
        return (word * (n // len(word) + 1))[:n]
    return (b"%d\n" % dice.randrange(1 << 60) + bytes(90)) * (n // 90 + 1)

def make_raw(name, size):
    with open(name, "wb") as f:
        at = 0
        while at < size:
            n = min(size - at, dice.choice((512, 4096, 70000, 1 << 20, 3 << 20)))
            data = content(n)[:n]
            if dice.randrange(4):
                f.seek(at)
                f.write(data)
            at += n
        f.truncate(size)

def disk_usage(name):
    return os.stat(name).st_blocks * 512

def options(size):
    bits = dice.randrange(9, 22)
    o = ["cluster_size=%d" % (1 << bits)]
    zstd = False
    if dice.randrange(5):
        o.append("refcount_bits=%d" % dice.choice((1, 2, 4, 8, 16, 16, 16, 32, 64)))
        zstd = dice.randrange(2)
        if zstd:
            o.append("compression_type=zstd")
    else:
        o.append("compat=0.10")
    return ",".join(o)

for i in range(ROUNDS):
    size = dice.choice((512, 1 << 20, 5 << 20, (9 << 20) + 1536, 12345 * 512))
    make_raw("a.raw", size)
    source, form = "a.raw", "raw"
    if dice.randrange(2):
        o = options(size)
        must("qemu-img", "convert", *(["-c"] if dice.randrange(2) else []), "-f", "raw", "-O", "qcow2", "-o", o,
             "a.raw", "a.qcow2")
        source, form = "a.qcow2", "qcow2"
    if dice.randrange(4) == 0:
        args = ["-f", form, "-O", "raw"]
        target = "raw"
    else:
        args = ["-f", form, "-O", "qcow2", "-o", options(size)] + (["-c"] if dice.randrange(3) else [])
        target = "qcow2"
    if dice.randrange(4) == 0:
        args += ["-S", dice.choice(("0", "512", "64k"))]
    if dice.randrange(3) == 0:
        args += ["-m", str(dice.randrange(1, 9)), "-W"]
    what = "SEED=%d round %d: convert %s %s" % (SEED, i, " ".join(args), source)
    for name in "ours", "theirs":
        if os.path.exists(name):
            os.unlink(name)
    must(IMG, "convert", *args, source, "ours")
    must("qemu-img", "convert", *args, source, "theirs")
    p = run("qemu-img", "compare", "-f", "raw", "-F", target, "a.raw", "ours")
    if p.returncode:
        sys.exit("%s: %s" % (what, p.stdout + p.stderr))
    p = run(IMG, "compare", "-f", target, "-F", target, "theirs", "ours")
    if p.returncode:
        sys.exit("%s: as we read it: %s" % (what, p.stdout + p.stderr))
    if target == "qcow2":
        p = run("qemu-img", "check", "-f", "qcow2", "ours")
        if p.returncode:
            sys.exit("%s: %s" % (what, p.stdout + p.stderr))
        p = run(IMG, "check", "ours")
        if p.returncode:
            sys.exit("%s: our check: %s" % (what, p.stdout + p.stderr))
    # -S 0 means all of it to us
    if "-S" not in args and disk_usage("ours") > disk_usage("theirs") * 1.06 + (6 << 16):
        sys.exit("%s: takes %d bytes of disk, qemu-img's %d" % (what, disk_usage("ours"), disk_usage("theirs")))
    if "-S" in args and args[args.index("-S") + 1] == "0" and target == "raw" and disk_usage("ours") < size:
        sys.exit("%s: is not all allocated: %d of %d" % (what, disk_usage("ours"), size))
print("%d conversions" % ROUNDS)
END_OF_PYTHON
python3 convert.py || fail "see above"

IMG=$NBDCOW_IMG
rm -f ./*.raw ./*.qcow2 ours theirs

# must_fail TEXT COMMAND...: with status 1 and one line that contains TEXT.
must_fail ()
{
  _text=$1
  shift
  _s=0
  "$@" >out 2>err || _s=$?
  [ $_s = 1 ] || fail "status $_s: $*"
  [ "$(wc -l <err)" = 1 ] && grep -q -- "$_text" err || fail "'$*' says: $(cat err)"
}

# --- several in a row, a snapshot, an overlay, an existing target ---------------------------------

seq 1 200000 | head -c 1000000 >one.raw # not a multiple of 512
seq 5 300000 | head -c 1048576 >two.raw
$IMG convert -f raw -O qcow2 one.raw two.raw both.qcow2
qemu-img convert -f raw -O raw one.raw two.raw both.raw
same_contents both.raw raw both.qcow2 qcow2
check_image both.qcow2

qemu-img create -q -f qcow2 snap.qcow2 1M
qemu-io -f qcow2 -c "write -P 3 0 300k" snap.qcow2 >/dev/null
qemu-img snapshot -c before snap.qcow2
qemu-io -f qcow2 -c "write -P 4 100k 300k" snap.qcow2 >/dev/null
for name in before snapshot.name=before; do
  $IMG convert -c -l $name -f qcow2 -O qcow2 snap.qcow2 s1.qcow2
  qemu-img convert -l snapshot.name=before -f qcow2 -O raw snap.qcow2 s2.raw
  same_contents s1.qcow2 qcow2 s2.raw raw
done

qemu-img convert -f raw -O qcow2 two.raw base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2
qemu-io -f qcow2 -c "write -P 9 70k 90k" -c "write -z 300k 100k" over.qcow2 >/dev/null
for how in "" -c "-o cluster_size=4k" "-c -o cluster_size=128k"; do
  # shellcheck disable=SC2086 # several options
  $IMG convert $how -f qcow2 -O qcow2 -B base.qcow2 -F qcow2 over.qcow2 copy.qcow2
  check_image copy.qcow2
  same_contents over.qcow2 qcow2 copy.qcow2 qcow2
  [ "$(stat -c %b copy.qcow2)" -le 1400 ] || fail "a copy of an overlay has what is in the base, too"
done

$IMG create -q -f qcow2 there.qcow2 2M
qemu-io -f qcow2 -c "write -P 1 0 2M" there.qcow2 >/dev/null
$IMG convert -n -f qcow2 -O qcow2 over.qcow2 there.qcow2
qemu-io -f qcow2 -c "read -P 1 1M 1M" there.qcow2 | grep -q "read 1048576" || fail "-n wrote past the source's end"
$IMG create -q -f qcow2 empty.qcow2 1M
$IMG convert -n --target-is-zero -c -f qcow2 -O qcow2 over.qcow2 empty.qcow2
same_contents over.qcow2 qcow2 empty.qcow2 qcow2
$IMG convert -n --target-image-opts -f raw two.raw driver=qcow2,file.filename=empty.qcow2
same_contents two.raw raw empty.qcow2 qcow2
$IMG convert --image-opts -O raw driver=qcow2,file.filename=empty.qcow2 again.raw
cmp again.raw two.raw

# --- what cannot be -----------------------------------------------------------------------------

must_fail "-O qcow2" $IMG convert -c -f raw -O raw two.raw x
must_fail "at least two" $IMG convert -f raw two.raw
must_fail "needs -n" $IMG convert --target-is-zero -f raw -O qcow2 two.raw x
must_fail "needs -n" $IMG convert --target-image-opts -f raw two.raw file.filename=x
must_fail "are less than" $IMG convert -n -f qcow2 -O qcow2 there.qcow2 empty.qcow2
must_fail "say what format" $IMG convert -f raw -O qcow2 -B base.qcow2 two.raw x
must_fail "in a row" $IMG convert -f raw -O qcow2 -B base.qcow2 -F qcow2 two.raw two.raw x
must_fail "multiple of 512" $IMG convert -S 100 -f raw -O qcow2 two.raw x
must_fail "zlib has levels 1 to" $IMG convert -c --compression-level=20 -f raw -O qcow2 two.raw x
must_fail "needs -c" $IMG convert --compression-level=2 -f raw -O qcow2 two.raw x
must_fail "preallocation" $IMG convert -c -o preallocation=full -f raw -O qcow2 two.raw x
must_fail "nosuch.raw" $IMG convert -f raw -O qcow2 nosuch.raw x
must_fail "cannot be true" $IMG convert -n --target-is-zero -f raw -O qcow2 two.raw over.qcow2
# What is read is not written, also without locks, and under whatever name.
qemu-img create -q -f qcow2 -b two.raw -F raw on-two.qcow2
ln -s two.raw linked.raw
$IMG create -q -f qcow2 -o data_file=other.raw beside.qcow2 1M
ln -f two.raw other.raw
before=$(cat two.raw on-two.qcow2 | sha256sum)
for file in two.raw on-two.qcow2; do
  for target in $file linked.raw; do
    must_fail "which it is read from" $IMG convert -O raw $file $target
    must_fail "which it is read from" $IMG convert -U -O raw $file $target
    must_fail "which it is read from" $IMG convert -U --image-opts -O qcow2 driver=qcow2,file.filename=on-two.qcow2 $target
    must_fail "which it is read from" $IMG dd -U if=$file of=$target
  done
  for target in two.raw linked.raw; do
    for keep in "" ,data_file_raw=on,keep_data_file=on; do
      must_fail "which it is read from" $IMG convert -U -O qcow2 -o data_file=$target$keep $file x.qcow2
    done
    must_fail "which it is read from" $IMG convert -U -n --target-image-opts $file driver=raw,file.filename=$target
  done
  must_fail "which it is read from" $IMG convert -U -n -O qcow2 $file beside.qcow2
done
[ "$(cat two.raw on-two.qcow2 | sha256sum)" = "$before" ] || fail "what is read was written"

for format in qcow2 raw; do
  $IMG convert -O $format -o help | grep -q '^  size=' || fail "convert -O $format -o help"
done

# --- levels, progress, an interruption ------------------------------------------------------------

for type in zlib zstd; do
  for level in 1 9; do
    $IMG convert -c --compression-level=$level -o compression_type=$type -f raw -O qcow2 two.raw l$level.qcow2
    same_contents two.raw raw l$level.qcow2 qcow2
  done
  [ "$(stat -c %s l9.qcow2)" -lt "$(stat -c %s l1.qcow2)" ] || fail "$type: level 9 is not smaller than level 1"
done

$IMG convert -p -f raw -O qcow2 two.raw p.qcow2 >out
grep -q "(100.00/100%)" out || fail "-p shows no progress"

seq 1 9999999 | head -c 64000000 >long.raw
rm -f i.qcow2
$IMG convert -r 4M -f raw -O qcow2 long.raw i.qcow2 &
pid=$!
track $pid
begun () { [ "$(stat -c %b i.qcow2 2>/dev/null || echo 0)" -ge 4096 ]; }
wait_for 60 begun || fail "convert does not begin"
kill -TERM $pid # a shell has its background jobs ignore SIGINT
status=0
wait $pid || status=$?
[ $status = 143 ] || fail "an interrupted convert ends with status $status"
check_image i.qcow2
[ "$(stat -c %b i.qcow2)" -lt 60000 ] || fail "--rate-limit does not limit the rate"

# --- what cannot be read --------------------------------------------------------------------------

$IMG convert -c -f raw -O qcow2 two.raw bad.qcow2
python3 "$SRCDIR/qcow2.py" l2 bad.qcow2 196608 0x4000000000100007
$IMG convert -f qcow2 -O raw bad.qcow2 x.raw 2>err && fail "a cluster that cannot be read is no error"
grep -q "error while reading at byte 196608:" err || fail "it says: $(cat err)"
$IMG convert --salvage -f qcow2 -O raw bad.qcow2 x.raw 2>err
grep -q "warning: error while reading offset 196608" err || fail "--salvage says: $(cat err)"
{ head -c 196608 two.raw; head -c 65536 /dev/zero; tail -c +262145 two.raw; } | cmp - x.raw
