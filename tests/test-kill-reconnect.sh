#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Clients that reconnect go on as if nothing had happened when their server is killed and started again:
# QEMU with reconnect-delay, and nbdkit's nbd plugin behind the retry filter.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io "$NBDKIT"
. "$SRCDIR/kill/state.sh"

# Small writes all over, some of them of parts of clusters, now and then a flush.
n=0
while [ $n -lt 250 ]; do
  echo "write -P $((n % 250 + 1)) $((n * 391 % 250 * 200))k $((16 + n % 180))k"
  [ $((n % 60)) != 59 ] || echo flush
  echo 'sleep 30'
  n=$((n + 1))
done >writes
sed -n 's/^write/read/p' writes >reads

# goes_on NAME QEMU-IO-ARGUMENT...: while it writes, the server dies ${ROUNDS:-4} times.
goes_on ()
{
  name=$1
  shift
  timeout 100 qemu-io -t writeback "$@" <writes >writes.out 2>&1 &
  writer=$!
  track "$writer"
  kills=0
  so_far () { [ "$(grep -c '^\(qemu-io> \)*wrote' writes.out)" -ge $(((kills + 1) * 200 / (${ROUNDS:-4} + 1))) ]; }
  while [ "$kills" -lt "${ROUNDS:-4}" ]; do
    wait_for 100 so_far || fail "$name: it does not go on after $kills kills: $(tail -n 3 writes.out)"
    process_alive "$writer" || fail "$name: it was over after $kills kills: $(tail -n 3 writes.out)"
    kill_server
    [ $((kills % 2)) = 0 ] || sleep 0.3
    serve disk.qcow2
    kills=$((kills + 1))
  done
  wait "$writer" || fail "$name: qemu-io: $(tail -n 3 writes.out)"
  [ "$(grep -c '^\(qemu-io> \)*wrote' writes.out)" = 250 ] ||
    fail "$name: writes failed: $(grep -iv 'wrote\|ops;' writes.out | head -n 5)"
  timeout 100 qemu-io "$@" <reads >reads.out 2>&1 || fail "$name: reading back: $(tail -n 3 reads.out)"
  ! grep -qi 'verification failed\|error' reads.out || fail "$name: $(grep -i 'failed\|error' reads.out)"
  [ "$(grep -c '^\(qemu-io> \)*read ' reads.out)" = 250 ] || fail "$name: not everything was read"
}

# begin and end: a new image and its server; a clean end.
begin ()
{
  rm -f disk.qcow2
  qemu-img create -q -f qcow2 disk.qcow2 64M
  rm -f server-*.log
  serve disk.qcow2
}
end ()
{
  stop_server
  # Each says so when its first client comes.
  recovered=$(grep -l 'tables were recovered' server-*.log | wc -l)
  [ "$recovered" -gt 0 ] || fail "nothing ever had to be recovered"
  check_image disk.qcow2
  qemu-io -r -f qcow2 disk.qcow2 <reads >reads.out 2>&1 || fail "qemu-io: $(tail -n 3 reads.out)"
  ! grep -q 'verification failed' reads.out || fail "not in the image afterwards"
  no_state_left
  echo "$1: went on over ${ROUNDS:-4} kills, $recovered with something to recover"
}

begin
goes_on "reconnect-delay" --image-opts \
  "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=$tmp/sock,file.reconnect-delay=30"
end "QEMU with reconnect-delay"

begin
"$NBDKIT" -f -U "$tmp/front" -P front.pid --filter=retry nbd "socket=$tmp/sock" \
  retries=30 retry-delay=1 retry-exponential=no >front.log 2>&1 &
front=$!
track "$front"
front_ready () { [ -s front.pid ] || ! process_alive "$front"; }
wait_for 30 front_ready
process_alive "$front" || skip "nbdkit's nbd plugin or retry filter: $(head -n 1 front.log)"
goes_on "nbdkit" -f raw "nbd+unix:///?socket=$tmp/front"
kill "$front"
wait "$front" || :
end "nbdkit's nbd plugin with retry"
