#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-ctl check: the metadata of an image that is served, as they are at one moment.  However much clients allocate and free
# meanwhile, a sound image is never called corrupt; what is wrong is found, also in a table that they change all the time;
# and nothing of this stands in the way of what else is done with the image.
#
# SEED: of what the clients do.  DURATION: seconds for which they do it, each time.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW:-}" nbdcow
NBDCOW_CTL=$(dirname "$NBDCOW")/nbdcow-ctl
requires_file "$NBDCOW_CTL" nbdcow-ctl
requires qemu-img qemu-io
requires_python_nbd
use_seed
DURATION=${DURATION:-2}
NBDCOW_CONTROL=$tmp/control
export NBDCOW_CONTROL

# check STATUS...: nbdcow-ctl check of the one export ends with one of these; what it says is in out.
check ()
{
  S=0
  timeout 100 "$NBDCOW_CTL" --json check '' >out 2>log || S=$?
  for _s; do
    [ $S = "$_s" ] && return 0
  done
  fail "check of $image while it is served: status $S, not $*: $(head -c 2000 out log)"
}

# json EXPRESSION: it is true of the answer, j.
json ()
{
  "$PYTHON" -c "import json; j = json.load(open('out')); assert $1, j" || fail "$image: $1"
}

# What is at rest is judged as nbdcow-img and qemu-img do.
for make in "cluster_size=64k" "cluster_size=512" "compat=0.10" "lazy_refcounts=on" "extended_l2=on" "refcount_bits=64"; do
  image=rest.qcow2
  rm -f rest.qcow2
  qemu-img create -q -f qcow2 -o "$make" rest.qcow2 16M
  qemu-io -f qcow2 -c 'write -q 1M 3M' rest.qcow2
  [ "$make" = lazy_refcounts=on ] || qemu-img snapshot -c s rest.qcow2
  start_nbdcow rest.qcow2 "arg=--control=$NBDCOW_CONTROL"
  check 0
  json 'j["format"] == "qcow2" and j["check-errors"] == 0 and "corruptions" not in j and "leaks" not in j and j["findings"] == []'
  cp out served
  qemu-img check --output=json -f qcow2 -U rest.qcow2 >theirs
  "$PYTHON" - <<'END_OF_PYTHON' || fail "$make: not what qemu-img says"
import json
ours, theirs = json.load(open("served")), json.load(open("theirs"))
for key in "allocated-clusters", "total-clusters", "fragmented-clusters", "compressed-clusters", "check-errors":
    assert ours.get(key, 0) == theirs.get(key, 0), (key, ours, theirs)
END_OF_PYTHON
  stop_server
done

# While clients allocate and free: it is checked again and again, the image changes in other ways too, and no check finds
# what is not there.
for make in "cluster_size=4k" "cluster_size=64k" "cluster_size=64k,extended_l2=on"; do
  image=busy.qcow2
  rm -f busy.qcow2
  qemu-img create -q -f qcow2 -o "$make" busy.qcow2 64M
  start_nbdcow busy.qcow2 discard=unmap "arg=--control=$NBDCOW_CONTROL"
  "$PYTHON" "$SRCDIR/churn.py" "$URI" "$SEED" "$DURATION" &
  writer=$!
  track $writer
  n=0
  while process_alive $writer; do
    check 0 3
    json 'j["check-errors"] == 0 and "corruptions" not in j'
    n=$((n + 1))
    case $((n % 4)) in
    1) "$NBDCOW_CTL" snapshot create s '' ;;
    2) "$NBDCOW_CTL" bitmap add '' b ;;
    3) "$NBDCOW_CTL" snapshot delete s '' ;;
    0) "$NBDCOW_CTL" bitmap remove '' b ;;
    esac || fail "not beside clients"
  done
  wait $writer || fail "churn.py"
  [ $n -ge 1 ] || fail "it was not checked while it was in use"
  echo "$make: checked $n times"
  # What clients do not use any more has no leaks, once it is flushed.
  qemu-io -f raw -c flush "$URI" >/dev/null
  check 0
  stop_server
  check_image busy.qcow2
done

# One entry is wrong in an L2 table that clients change all the time, for a cluster that they never touch: only what has
# changed in a table is written.
image=wrong.qcow2
qemu-img create -q -f qcow2 wrong.qcow2 64M
qemu-io -f qcow2 -c 'write -q 60M 64k' wrong.qcow2
start_nbdcow wrong.qcow2 discard=unmap "arg=--control=$NBDCOW_CONTROL"
"$PYTHON" "$SRCDIR/churn.py" "$URI" "$SEED" "$DURATION" &
writer=$!
track $writer
check 0 3
"$PYTHON" - <<'END_OF_PYTHON'
import sys
sys.path.insert(0, __import__("os").environ["SRCDIR"])
from corpus import Image
i = Image("wrong.qcow2")
# The COPIED flag of a cluster that has one reference.
at = i.l2((60 << 20) // i.cluster)
entry = i.get(at)
assert entry >> 63, hex(entry)
with open("wrong.qcow2", "rb+") as f:
    f.seek(at)
    f.write((entry & ~(1 << 63)).to_bytes(8, "big"))
END_OF_PYTHON
while process_alive $writer; do
  check 2
  json 'j["corruptions"] == 1 and len(j["findings"]) >= 1'
done
wait $writer || fail "churn.py"
S=0
"$NBDCOW_CTL" check '' >out 2>log || S=$?
[ $S = 2 ] && grep -q 'ERROR.*OFLAG_COPIED' log && grep -q '^1 errors' out || fail "the findings: status $S: $(cat out log)"
stop_server

# A server that ends does not wait for a check.  What is long enough for that is not known: of some tries, at each
# of which the server ends a little later, one finds it at work.
image=long.qcow2
qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata long.qcow2 2G
stopped=
for pause in 0.05 0.1 0.2 0.4 0.8 1.6 3.2; do
  start_nbdcow long.qcow2 "arg=--control=$NBDCOW_CONTROL"
  "$NBDCOW_CTL" check '' 1000 >out 2>log &
  checker=$!
  track $checker
  sleep $pause
  stop_server
  wait $checker || :
  grep -q 'the check was stopped' log && stopped=yes && break
done
[ "$stopped" ] || fail "a check is not stopped when the server ends: $(cat out log)"

# What cannot be.
S=0
start_nbdcow wrong.qcow2 read-only "arg=--control=$NBDCOW_CONTROL"
check 2
for args in "x" "'' 0" "'' 1x" "'' 1 2"; do
  S=0
  eval "\"\$NBDCOW_CTL\" check $args" >log 2>&1 || S=$?
  one_line $S log || fail "check $args: $REASON"
done
stop_server
truncate -s 1M disk.raw
qemu-img create -q -f qcow2 served.qcow2 1M
qemu-img snapshot -c s served.qcow2
start_nbdcow disk.raw format=raw "arg=--control=$NBDCOW_CONTROL" \
  "arg=--export=name=a,file=served.qcow2,format=qcow2,snapshots=on"
S=0
"$NBDCOW_CTL" check '' 2>log || S=$?
one_line $S log raw || fail "check of a raw disk: $REASON"
# Of a snapshot's export the flushes are not those of the image that is written.
S=0
"$NBDCOW_CTL" check a@s 2>log || S=$?
one_line $S log snapshot || fail "check of a snapshot beside the writer: $REASON"
"$NBDCOW_CTL" check a
stop_server
