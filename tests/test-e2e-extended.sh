#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Extended L2 entries (subclusters) beside QEMU: both write one image in turn, at odd offsets and on and
# beside the borders of subclusters and clusters, over chains whose layers differ in cluster size and in
# extended L2 entries, with compressed clusters and internal snapshots; after each turn the contents are
# the model's, qemu-img check is clean, and nbdcow-img check counts what it counts.  What block status and
# allocation depth say of QEMU's images is what QEMU says.  ROUNDS (default 2) turns for each shape.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io qemu-nbd nbdinfo
requires_python_nbd
use_seed
rounds=${ROUNDS:-2}

# check_both IMAGE
check_both ()
{
  check_image "$1"
  qemu-img check --output=json -f qcow2 "$1" >theirs.json
  "$NBDCOW_IMG" check --output=json "$1" >ours.json
  "$PYTHON" - <<'END' || fail "$1: the checks differ"
import json
ours, theirs = json.load(open("ours.json")), json.load(open("theirs.json"))
for key in theirs:
    if key not in ("filename", "format") and ours.get(key) != theirs[key]:
        raise SystemExit("%s: %s instead of %s" % (key, ours.get(key), theirs[key]))
END
}

# turns NAME GRAIN SIZE OPTIONS PREPARE
turns ()
{
  echo "== $*"
  export GRAIN="$2"
  size=$(numfmt --from=iec "$3") opts=$4,extended_l2=on
  rm -f ./*.qcow2 model before.raw
  "$PYTHON" "$SRCDIR/disk.py" fill model "$size"
  case $5 in
  raw) qemu-img convert -f raw -O qcow2 -o "$opts" model disk.qcow2 ;;
  compressed) qemu-img convert -c -f raw -O qcow2 -o "$opts" model disk.qcow2 ;;
  standard-below)
    qemu-img convert -c -f raw -O qcow2 -o cluster_size=4096 model base.qcow2
    qemu-img create -q -f qcow2 -o "$opts" -b base.qcow2 -F qcow2 disk.qcow2
    ;;
  extended-below)
    qemu-img convert -f raw -O qcow2 -o cluster_size=16384,extended_l2=on model base.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=131072,extended_l2=on -b base.qcow2 -F qcow2 mid.qcow2
    ROUND=mid "$PYTHON" "$SRCDIR/disk.py" qemu mid.qcow2 model 15
    qemu-img create -q -f qcow2 -o "$opts" -b mid.qcow2 -F qcow2 disk.qcow2
    ;;
  raw-below)
    cp model base.raw
    qemu-img create -q -f qcow2 -o "$opts" -b base.raw -F raw disk.qcow2
    ;;
  preallocated)
    cp model base.raw
    qemu-img create -q -f qcow2 -o "$opts,preallocation=metadata" -b base.raw -F raw disk.qcow2
    ;;
  ours)
    cp model base.raw
    "$NBDCOW_IMG" create -q -f qcow2 -o "$opts" -b base.raw -F raw disk.qcow2
    ;;
  snapshot)
    cp model base.raw
    qemu-img create -q -f qcow2 -o "$opts" -b base.raw -F raw disk.qcow2
    ROUND=before "$PYTHON" "$SRCDIR/disk.py" qemu disk.qcow2 model 15
    qemu-img snapshot -c before disk.qcow2
    cp model before.raw
    ;;
  esac
  round=0
  while [ $round -lt "$rounds" ]; do
    ROUND=q$round "$PYTHON" "$SRCDIR/disk.py" qemu disk.qcow2 model 25
    check_both disk.qcow2
    same_status disk.qcow2
    start_server disk.qcow2 discard=unmap
    "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
    ROUND=n$round "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 80
    stop_server
    server_log_is_empty
    check_both disk.qcow2
    same_contents disk.qcow2 qcow2 model raw
    round=$((round + 1))
  done
  if [ -e before.raw ]; then
    qemu-img convert -f qcow2 -l before -O raw disk.qcow2 after.raw
    same_contents before.raw raw after.raw raw
  fi
}

# same_status IMAGE: QEMU and the front end say the same of it.  Zeros that QEMU alone knows of are holes in
# the file below its clusters.
same_status ()
{
  qemu-nbd -r -t -A -f qcow2 -k "$tmp/theirs.sock" --pid-file="$tmp/theirs.pid" "$1" &
  _theirs=$!
  track $_theirs
  wait_for 20 test -s theirs.pid || fail "qemu-nbd does not start"
  contexts=base:allocation
  if [ "$FRONTEND" = nbdcow ]; then
    contexts="$contexts qemu:allocation-depth"
    start_server "$1" read-only arg=--allocation-depth
  else
    start_server "$1" read-only
  fi
  for context in $contexts; do
    nbdinfo --map=$context --json "nbd+unix:///?socket=$tmp/theirs.sock" >theirs.json
    nbdinfo --map=$context --json "$URI" >ours.json
    "$PYTHON" - $context <<'END' || fail "$1: not what QEMU says"
import json, sys
# Where each type ends; QEMU may take a file's holes for the disk's to the byte.
def status(name):
    return [(e["offset"] + e["length"], e["type"]) for e in json.load(open(name))]
ours, theirs = status("ours.json"), status("theirs.json")
assert ours[-1][0] == theirs[-1][0]
at = 0
while ours:
    (end_a, a), (end_b, b) = ours[0], theirs[0]
    if a & 2 and not b & 2 if sys.argv[1] == "base:allocation" else a != b:
        sys.exit("%s at %d: %d, QEMU says %d" % (sys.argv[1], at, a, b))
    at = min(end_a, end_b)
    ours, theirs = ours[end_a == at:], theirs[end_b == at:]
END
  done
  stop_server
  kill $_theirs
  wait $_theirs || :
  rm -f theirs.pid
}

turns small 512 1M cluster_size=16384 raw-below
turns usual 2048 4M cluster_size=65536 raw
turns clusters 65536 4M cluster_size=65536 standard-below
turns large 65536 12M cluster_size=2097152,refcount_bits=8 extended-below
turns compressed 2048 3M cluster_size=65536,compression_type=zstd compressed
turns snapshot 2048 3M cluster_size=65536 snapshot
turns preallocated 1024 2M cluster_size=32768,lazy_refcounts=on preallocated
turns ours 2048 3M cluster_size=65536 ours
