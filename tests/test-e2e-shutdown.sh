#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# SIGTERM and SIGINT while clients write: the server ends with status 0, and everything that it
# acknowledged is there afterwards; after SIGKILL too, once the next server has opened the image.
# Clients that vanish in the middle of requests harm nobody.
# ROUNDS (default 6) is how often the server is stopped.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires_file "$BUILDDIR/stress" "the program stress"
requires qemu-img qemu-io nbdinfo
requires_python_nbd
use_seed

qemu-img create -q -f qcow2 base.qcow2 48M
qemu-io -f qcow2 -c 'write -q -P 0x21 0 20M' base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2 64M
mkfifo uri
trap '' PIPE

round=0
while [ $round -lt "${ROUNDS:-6}" ]; do
  case $((round % 3)) in
  0) signal=TERM ;;
  1) signal=INT ;;
  2) signal=KILL ;;
  esac
  echo "== SIG$signal while 8 clients write, round $round"
  start_server disk.qcow2 discard=unmap
  rm -f stress.log
  timeout 100 "$BUILDDIR/stress" --disconnect --seconds=60 --seed=$((SEED + round)) "$URI" \
    <uri >stress.log 2>&1 &
  stress=$!
  track $stress
  exec 3>uri
  wait_for 20 grep -qs running stress.log || { cat stress.log; fail "the clients do not run"; }
  sleep 0.$(((SEED / (round + 1)) % 9 + 1))
  kill -$signal "$SERVER_PID"
  wait_server_exit
  if [ $signal != KILL ]; then
    [ "$SERVER_STATUS" = 0 ] || fail "status $SERVER_STATUS after SIG$signal"
    check_image disk.qcow2
  fi
  start_server disk.qcow2 discard=unmap
  echo "$URI" >&3 || : # gone if it has already found something
  wait $stress || { cat stress.log; fail "the clients found something"; }
  exec 3>&-
  stop_server
  check_image disk.qcow2
  round=$((round + 1))
done

echo "== an idle client does not keep the server from ending"
start_server disk.qcow2
"$PYTHON" -c '
import nbd, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"kept" * 128, 12345)
open("connected", "w").close()
time.sleep(100)' "$URI" &
idle=$!
track $idle
wait_for 20 test -e connected || fail "no connection"
if [ "$FRONTEND" = nbdkit ]; then # waits for its clients
  kill -TERM "$SERVER_PID"
  kill -KILL $idle
  wait_server_exit
  [ "$SERVER_STATUS" = 0 ] || fail "status $SERVER_STATUS after SIGTERM"
else
  stop_server
  kill -KILL $idle
fi
check_image disk.qcow2
start_server disk.qcow2 read-only
"$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
assert h.pread(512, 12345) == b"kept" * 128
h.shutdown()' "$URI"
stop_server

echo "== clients that vanish between requests"
start_server disk.qcow2 discard=unmap
n=0
while [ $n -lt 10 ]; do
  timeout 20 "$PYTHON" -c '
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"v" * 70000, 1 << 20)
os._exit(0)' "$URI"
  n=$((n + 1))
done
timeout 60 "$BUILDDIR/stress" --seconds=1 --seed="$SEED" "$URI"
stop_server
check_image disk.qcow2

# nbdkit before 1.36 aborts when a client hangs up in the middle of a reply.
if [ "$FRONTEND" = nbdkit ]; then
  minor=$("$NBDKIT" --dump-config | sed -n 's/^version_minor=//p')
  if [ "${minor:-0}" -lt 36 ]; then
    echo "this nbdkit (1.$minor) does not survive clients that hang up in a reply: not tried"
    exit 0
  fi
fi

echo "== clients that hang up with requests in flight, the others are verified meanwhile"
start_server disk.qcow2 discard=unmap
timeout 120 "$BUILDDIR/stress" --hangups --seconds=6 --seed="$SEED" "$URI"
stop_server
start_server disk.qcow2 discard=unmap

echo "== clients that are killed"
n=0
while [ $n -lt 5 ]; do
  "$BUILDDIR/stress" --seconds=20 --seed=$((SEED + n)) "$URI" >victim.log 2>&1 &
  victim=$!
  track $victim
  sleep 0.$((n * 2 + 1))
  kill -KILL $victim || { cat victim.log; fail "the client ended by itself"; }
  wait $victim 2>/dev/null || :
  # What it had sent may still be under way: the next one verifies what is there when that is over.
  timeout 60 nbdinfo --size "$URI" >/dev/null || fail "the server is not well"
  stop_server
  start_server disk.qcow2 discard=unmap
  n=$((n + 1))
done
timeout 60 "$BUILDDIR/stress" --seconds=2 --seed="$SEED" "$URI"
stop_server
check_image disk.qcow2
