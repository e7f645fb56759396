#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU's programs and a front end never write one image together, and may always read it together.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io qemu-nbd
requires_python_nbd

qemu-img create -q -f qcow2 base.qcow2 4M
qemu-io -f qcow2 -c 'write -q -P 1 0 1M' base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2

# connects URI: opens a connection and reads.  With nbdkit the first client opens the image.
connects ()
{
  timeout 20 "$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pread(512, 0)
h.shutdown()' "$1" >connect.log 2>&1
}

# theirs OPTION...: qemu-nbd on disk.qcow2; sets theirs_pid.
theirs ()
{
  rm -f theirs.pid
  qemu-nbd -t -f qcow2 -k "$tmp/theirs.sock" --pid-file="$tmp/theirs.pid" "$@" disk.qcow2 &
  theirs_pid=$!
  track $theirs_pid
  wait_for 20 test -s theirs.pid || fail "qemu-nbd did not start"
}
stop_theirs ()
{
  kill $theirs_pid
  wait $theirs_pid || fail "qemu-nbd failed"
}

echo "== while we write it, QEMU does not"
start_server disk.qcow2
connects "$URI" || { cat connect.log; fail "no connection"; }
if qemu-io -f qcow2 -c 'write 0 512' disk.qcow2 >out 2>&1; then
  fail "qemu-io opened an image that is being served"
fi
grep -q 'lock' out
qemu-img info disk.qcow2 >out 2>&1 && fail "qemu-img info does not see our lock"
qemu-img info -U disk.qcow2 >/dev/null
qemu-io -r -U -f qcow2 -c 'read -q -P 1 0 512' disk.qcow2 >out 2>&1
# The layer below is only read: others may read it, nobody may write it.
qemu-io -r -f qcow2 -c 'read -q -P 1 0 512' base.qcow2
if qemu-io -f qcow2 -c 'write 0 512' base.qcow2 >out 2>&1; then
  fail "qemu-io may write the backing file of an image that is being served"
fi

echo "== while we write it, a second server of ours does not, and says so"
first_pid=$SERVER_PID
if try_server disk.qcow2; then
  # nbdkit's plugin takes a writer's lock with the first client.
  connects "$URI" && fail "two servers write one image"
  stop_server
else
  one_line "$SERVER_STATUS" "$SERVER_LOG" disk.qcow2 "in use" lsof || fail "a second server: $REASON"
fi
grep -q 'disk.qcow2.*in use' "$SERVER_LOG" || { cat "$SERVER_LOG"; fail "no word of the lock"; }
stop_server "$first_pid"

echo "== after we stopped, QEMU may"
qemu-io -f qcow2 -c 'write -q -P 2 0 512' disk.qcow2

echo "== while qemu-nbd writes it, we do not"
theirs
sum=$(digest disk.qcow2)
if try_server disk.qcow2; then
  connects "$URI" && fail "we write an image that qemu-nbd writes"
  grep -q 'disk.qcow2.*in use' "$SERVER_LOG" || { cat "$SERVER_LOG"; fail "no word of the lock"; }
  stop_server
else
  one_line "$SERVER_STATUS" "$SERVER_LOG" disk.qcow2 "in use" lsof || fail "locked by qemu-nbd: $REASON"
fi
must_refuse disk.qcow2 read-only -- disk.qcow2 "in use"
start_server disk.qcow2 read-only no-lock
connects "$URI" || fail "lock=off does not read"
stop_server
unchanged "$sum" disk.qcow2
stop_theirs

echo "== readers share: ours, theirs, ours again; and a writer is refused meanwhile"
start_server disk.qcow2 read-only
connects "$URI"
a_uri=$URI a_pid=$SERVER_PID
theirs -r -e 4
start_server disk.qcow2 read-only
connects "$URI"
connects "$a_uri"
connects "nbd+unix:///?socket=$tmp/theirs.sock"
b_pid=$SERVER_PID
if qemu-io -f qcow2 -c 'write 0 512' disk.qcow2 >out 2>&1; then
  fail "qemu-io writes an image that is being read"
fi
if try_server disk.qcow2; then
  connects "$URI" && fail "we write an image that is being read"
  stop_server
else
  one_line "$SERVER_STATUS" "$SERVER_LOG" disk.qcow2 "in use" lsof || fail "locked by readers: $REASON"
fi
stop_server "$a_pid"
stop_server "$b_pid"
stop_theirs

echo "== two overlays of ours share one backing file"
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 other.qcow2
start_server disk.qcow2
connects "$URI"
first_pid=$SERVER_PID
start_server other.qcow2
connects "$URI" || fail "a second overlay is refused"
stop_server
stop_server "$first_pid"

echo "== an overlay whose backing file QEMU writes is refused"
cp disk.qcow2 spare.qcow2
(
  touch opened
  echo 'write -P 3 0 512'
  while [ -e opened ] && [ ! -e done ]; do sleep 0.05; done
  echo quit
) | qemu-io -f qcow2 base.qcow2 >io.log 2>&1 &
track $!
io_pid=$!
# Not by opening it as well: who looks at the wrong moment keeps the writer out.
wait_for 60 grep -q 'wrote 512/512' io.log || { cat io.log >&2; fail "qemu-io did not open the base"; }
must_refuse spare.qcow2 -- base.qcow2 "in use"
touch done
wait $io_pid
check_image base.qcow2
check_image disk.qcow2
