#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# --on-enospc=wait: writes that meet a full disk wait for room, whoever makes it, and go on; what
# needs none goes on meanwhile, but no takeover begins; and what waits ends well when its client, its
# time or the server does.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
FRONTEND=nbdcow
requires_frontend
requires_root "to mount small file systems"
requires qemu-img
requires_python_nbd
use_seed
MB=1048576

mkdir small
at_exit 'umount -l small 2>/dev/null'
mount -t tmpfs -o size=8M none small 2>mount.log || skip "cannot mount: $(cat mount.log)"

cat >client.py <<'END'
import os
import random
import select
import sys
import time
import nbd

phase, uri, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
args = [int(a) for a in sys.argv[4:]]


def stamp(i):
    return random.Random(seed * 1000003 + i).randbytes(4096) * 16


def connect():
    h = nbd.NBD()
    h.connect_uri(uri)
    return h


def fill(h, first, n, flags=0):
    """Writes N blocks of 64 KiB at once; a list of how each ended: 0, an errno, or None so far."""
    result = [None] * n
    for i in range(n):
        buf = nbd.Buffer.from_bytearray(bytearray(stamp(first + i)))

        def done(err, i=i):
            result[i] = err.value
            return 1
        h.aio_pwrite(buf, (first + i) * 65536, completion=done, flags=flags)
    return result


def poll_until(h, condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit("%s: it did not come to pass" % phase)
        h.poll(100)


def poll_for(h, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        h.poll(50)


def until_told(h):
    """Sends and receives until there is a line on stdin."""
    while not select.select([sys.stdin], [], [], 0)[0]:
        h.poll(50)
    sys.stdin.readline()


def verify(h, first, n):
    for i in range(first, first + n):
        if h.pread(65536, i * 65536) != stamp(i):
            sys.exit("block %d is not what was written" % i)


h = connect()
if phase == "beyond":    # writes all, however often it has to wait, and flushes now and then
    first, n = args
    for i in range(first, first + n, 64):
        r = fill(h, i, min(64, first + n - i))
        poll_until(h, lambda: None not in r, 100)
        assert not any(r), r
        h.flush()
    verify(h, first, n)
elif phase == "wait":    # fills the disk; once writes wait, says so, and what else works meanwhile
    first, n = args
    done = fill(h, first, 20)
    poll_until(h, lambda: None not in done)
    assert not any(done), done
    waiting = fill(h, first + 20, n)
    other = connect()
    print("written", flush=True)
    until_told(h)                     # they wait, the log says
    assert None in waiting
    assert not [e for e in waiting if e], waiting
    verify(h, first, 20)              # reads, on both connections
    verify(other, first, 20)
    for i in range(20):               # in place
        h.pwrite(stamp(first + i), (first + i) * 65536)
    other.pwrite(stamp(first), first * 65536)
    poll_for(h, 0.5)
    assert None in waiting and not [e for e in waiting if e], waiting
    print("alive", flush=True)
    until_told(h)                     # there is room
    poll_until(h, lambda: None not in waiting)
    assert not any(waiting), waiting
    h.flush()
    verify(other, first, 20 + n)
elif phase in ("errors", "ended"):  # what waits gets an error in the end, or the server goes
    first, n = args
    r = fill(h, first, n)
    print("written", flush=True)
    end = time.monotonic() + 60
    while None in r and time.monotonic() < end:
        try:
            h.poll(100)
        except nbd.Error:
            break
    bad = [e for e in r if e]
    assert bad and None not in r, r
    if phase == "errors":
        assert set(bad) == {28}, set(bad)
    else:  # no answer, or ESHUTDOWN of those that came last: nobody is told that the disk is full
        assert set(bad) <= {108, 107, 104, 32}, set(bad)
    print(r.count(0), flush=True)
    os._exit(0)                       # the server may have gone
elif phase == "vanish":  # goes without a word while its writes wait
    first, n = args
    r = fill(h, first, n)
    print("written", flush=True)
    until_told(h)
    os._exit(0)
elif phase == "verify":
    verify(h, *args)
h.shutdown()
END

run_client () # as PHASE ARG...
{
  _phase=$1
  shift
  timeout 110 "$PYTHON" client.py "$_phase" "$URI" "$SEED" "$@"
}
waits () { grep -q 'writes wait until there is' "$SERVER_LOG"; }
over () { grep -q 'no write waits for space any more' "$SERVER_LOG"; }
new_image ()
{
  rm -f small/*
  mount -o remount,size=8M small
  qemu-img create -q -f qcow2 small/disk.qcow2 1G
}

# A client that we tell when to go on.
mkfifo tell
start_client () # PHASE ARG...
{
  rm -f client.out
  run_client "$@" <tell >client.out 2>client.err &
  CLIENT=$!
  track "$CLIENT"
  exec 3>tell
}
client_says () { grep -q "$1" client.out 2>/dev/null; }
expect_client () { wait_for 60 client_says "$1" || fail "the client: $(cat client.out client.err)"; }
end_client ()
{
  exec 3>&-
  _s=0
  wait "$CLIENT" || _s=$?
  [ "$_s" = 0 ] || fail "the client: status $_s: $(cat client.out client.err)"
}

echo "== a full tmpfs is made larger: the writes go on, and all else did meanwhile"
new_image
start_server small/disk.qcow2 arg=--on-enospc=wait "arg=--control=$tmp/control"
start_client wait 0 200
expect_client written
wait_for 60 waits || fail "nothing waits: $(cat "$SERVER_LOG")"
timeout 60 "$NBDCOW" --takeover "$tmp/control" -t small/disk.qcow2 2>taken.log &&
  fail "taken over while writes wait"
grep -q 'writes wait for space' taken.log || fail "a takeover while writes wait: $(cat taken.log)"
echo go >&3
expect_client alive
# Told that there is room, when there is none: they wait on.
resume ()
{
  PYTHONPATH=$SRCDIR "$PYTHON" - "$tmp/control" <<'END'
import qmp, sys

c = qmp.Client(sys.argv[1])
n = c.execute("resume-writes")["waiting"]
assert n > 0 and c.execute("resume-writes", id="")["waiting"] > 0
assert c.refuses("resume-writes", id="x")[0] == "DeviceNotFound"
assert c.refuses("resume-writes", device="")[0] == "GenericError"
END
}
resume
waits && ! over || fail "told that there is room, nothing waits: $(cat "$SERVER_LOG")"
resume
mount -o remount,size=64M small
echo go >&3
end_client
wait_for 60 over || fail "the end is not told: $(cat "$SERVER_LOG")"
stop_server
check_image small/disk.qcow2
start_server small/disk.qcow2 read-only
run_client verify 0 220
stop_server

echo "== the time is over: ENOSPC, and nothing that was acknowledged is lost"
new_image
start_server small/disk.qcow2 arg=--on-enospc=wait:2
run_client errors 0 200 >client.out || fail "the client: $(cat client.out)"
n=$(tail -n 1 client.out)
wait_for 60 over || fail "the end is not told: $(cat "$SERVER_LOG")"
echo "   $n of 200 writes fitted"
process_alive "$SERVER_PID" || fail "the server died"
mount -o remount,size=64M small
run_client beyond 200 64
stop_server
check_image small/disk.qcow2 leaks

echo "== a client that goes while its writes wait, and others that stay"
new_image
start_server small/disk.qcow2 arg=--on-enospc=wait
start_client vanish 0 250
expect_client written
wait_for 60 waits || fail "nothing waits"
echo go >&3
end_client
wait_for 60 over || fail "they still wait: $(cat "$SERVER_LOG")"
grep -q 'its clients have gone' "$SERVER_LOG" || fail "$(cat "$SERVER_LOG")"
stop_server
check_image small/disk.qcow2 leaks

echo "== more than may be in flight, from a client that goes"
new_image
start_server small/disk.qcow2 arg=--on-enospc=wait
start_client vanish 0 2000
expect_client written
wait_for 60 waits || fail "nothing waits"
echo go >&3
end_client
wait_for 60 over || fail "they still wait: $(cat "$SERVER_LOG")"
stop_server
check_image small/disk.qcow2 leaks

echo "== the server ends while writes wait"
new_image
start_server small/disk.qcow2 arg=--on-enospc=wait
start_client ended 0 200
expect_client written
wait_for 60 waits || fail "nothing waits"
kill -TERM "$SERVER_PID"
wait_server_exit
end_client
case $SERVER_STATUS in
0) ;;
1) grep -qi 'no space' "$SERVER_LOG" || fail "status 1 without a word of the full disk" ;;
*) fail "stopped while writes wait: status $SERVER_STATUS" ;;
esac
check_image small/disk.qcow2 leaks
mount -o remount,size=64M small
start_server small/disk.qcow2
stop_server
check_image small/disk.qcow2

echo "== reported, as it is without the option, and for one export alone"
new_image
qemu-img create -q -f qcow2 small/other.qcow2 1G
start_server small/disk.qcow2 arg=--on-enospc=wait \
  arg=--export=name=other,file=small/other.qcow2,on-enospc=report
URI="nbd+unix:///other?socket=$SOCK"
run_client errors 0 200 >client.out || fail "the client: $(cat client.out)"
waits && fail "it waited" || :
stop_server
for bad in x wait: wait:0 wait:x wait:-1 wait:1k waits; do
  must_refuse small/disk.qcow2 arg=--on-enospc=$bad -- on-enospc "$bad"
done
umount small

requires losetup
truncate -s 8M volume
dev=$(losetup --find --show volume 2>loop.log) || skip "no loop devices here: $(cat loop.log)"
at_exit "losetup -d $dev 2>/dev/null"
echo "== a block device that the watermark's command grows, under a client that writes far past its first size"
qemu-img create -q -f qcow2 "$dev" 1G
# The command takes its time: the first time until writes have to wait.
cat >grow.sh <<END
size=\$(stat -c %s $tmp/volume)
for i in \$(seq 600); do
  ! grep -q 'writes wait until there is' $tmp/server-$((server_count + 1)).log || break
  sleep 0.1
done
truncate -s \$((size + 8 * $MB)) $tmp/volume && losetup -c $dev
END
start_server "$dev" arg=--on-enospc=wait arg=--watermark=6M arg=--watermark-repeat=4M \
  arg=--watermark-exec="sh $tmp/grow.sh"
run_client beyond 0 1000
waits || fail "nothing ever waited: the test shows nothing"
stop_server
[ "$(stat -c %s volume)" -gt $((62 * MB)) ] || fail "the device was not grown"
check_image "$dev"
start_server "$dev" read-only
run_client verify 0 1000
stop_server
