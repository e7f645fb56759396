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

# A check that takes minutes keeps nobody from going: it is stopped when another server is to take over (which fails here),
# and when this one ends.  65000 snapshots have the same table of 2 MiB.
qemu-img create -q -f qcow2 -o cluster_size=2M long.qcow2 64M
qemu-io -f qcow2 -c 'write -q 0 64k' long.qcow2
qemu-img snapshot -c s long.qcow2
"$PYTHON" - <<'END_OF_PYTHON'
import struct
with open("long.qcow2", "rb+") as f:
    header = f.read(104)
    f.seek(struct.unpack_from(">Q", header, 64)[0])
    entry = f.read(40)
    id_size, name_size, extra = struct.unpack_from(">HH20xI", entry, 12)
    entry += f.read(extra + id_size + name_size)
    entry += bytes(-len(entry) % 8)
    end = -(-f.seek(0, 2) >> 21) << 21
    f.seek(end)
    f.write(entry * 65000)
    f.seek(60)
    f.write(struct.pack(">IQ", 65000, end))
END_OF_PYTHON
start_nbdcow long.qcow2 read-only "arg=--control=$NBDCOW_CONTROL"
"$PYTHON" - "$NBDCOW_CONTROL" "$SERVER_PID" <<'END_OF_PYTHON' || fail "a check that takes long"
import os, signal, sys, time
sys.path.insert(0, os.environ["SRCDIR"])
import qmp

path, pid = sys.argv[1], int(sys.argv[2])
client, other = qmp.Client(path, timeout=600), qmp.Client(path)


def ticks():
    fields = open("/proc/%d/stat" % pid).read().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


# The server is at work: there is nothing else that it would do.
def check():
    before, until = ticks(), time.monotonic() + 60
    client.send('{"execute": "check-image", "arguments": {"node-name": "", "max-pause": 86400000}}\n')
    while ticks() < before + 20:
        assert time.monotonic() < until, "the check does not begin"
        time.sleep(0.01)


def stopped():
    value = client.reply()
    assert "stopped" in value.get("error", {}).get("desc", ""), value


check()
print(other.refuses("takeover", socket=path + ".none"))
stopped()
check()
os.kill(pid, signal.SIGTERM)
stopped()
END_OF_PYTHON
wait_server_exit
[ "$SERVER_STATUS" = 0 ] || fail "the server ended with status $SERVER_STATUS after SIGTERM"
