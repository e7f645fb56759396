#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A server is killed while many connections write, and started again: what it had acknowledged is there.
# ROUNDS is how often for each image, DURATION for how many seconds instead.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io
requires_file "$BUILDDIR/kill/kill-client" kill/kill-client
use_seed
. "$SRCDIR/kill/state.sh"

mkfifo to from

# client [OPTION...]: starts one; say and heard talk to it.
client ()
{
  "$BUILDDIR/kill/kill-client" -s "$SEED" "$@" "$tmp/sock" <to >from 2>client.log &
  CLIENT=$!
  track "$CLIENT"
  exec 3>to 4<from
}
client_gone ()
{
  exec 3>&- 4<&-
  wait "$CLIENT" || :
}
# ask LINE: sets ANSWER; status 1 if there is none.
ask ()
{
  echo "$1" >&3
  read -r ANSWER <&4 && case $ANSWER in ok*) ;; *) false ;; esac
}
must ()
{
  ask "$1" || fail "$1: $(cat client.log)"
}

end=$(($(date +%s) + ${DURATION:-0} / 5))
more ()
{
  if [ -n "${DURATION:-}" ]; then
    [ "$(date +%s)" -lt "$end" ]
  else
    [ "$rounds" -lt "${ROUNDS:-6}" ]
  fi
}

kills=0 recoveries=0
# run NAME IMAGE [OPTION...]
run ()
{
  name=$1
  shift
  rounds=0
  end=$(($(date +%s) + ${DURATION:-0} / 5))
  serve "$@" discard=unmap
  client
  must base
  while more; do
    must "load $SERVER_PID"
    wait "$SERVER_PID" 2>/dev/null || :
    serve "$@" discard=unmap
    must verify
    rounds=$((rounds + 1))
    ! grep -q 'is not used' "$SERVER_LOG" || fail "a state was set aside"
    if grep -q 'tables were recovered' "$SERVER_LOG"; then
      recoveries=$((recoveries + 1))
    fi
  done
  must verify
  stop_server
  client_gone
  check_image "$1"
  no_state_left
  kills=$((kills + rounds))
  SEED=$((SEED + 1))
  echo "$name: $ANSWER, $rounds kills"
}

qemu-img create -q -f qcow2 plain.qcow2 1G
run "64 KiB clusters" plain.qcow2
qemu-img create -q -f qcow2 -o cluster_size=512 small.qcow2 64M
run "512 byte clusters" small.qcow2
qemu-img create -q -f qcow2 -o cluster_size=2M large.qcow2 1G
run "2 MiB clusters" large.qcow2
head -c 12000256 /dev/urandom >base.raw
qemu-img convert -c -f raw -O qcow2 base.raw base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2 64M
run "overlay of compressed clusters" overlay.qcow2
qemu-img create -q -f qcow2 -o cluster_size=4096 snapshot.qcow2 64M
qemu-io -f qcow2 -c 'write -P 1 0 16M' snapshot.qcow2 >io.out
qemu-img snapshot -c one snapshot.qcow2
run "internal snapshot" snapshot.qcow2

[ "$recoveries" -gt 0 ] || fail "nothing ever had to be recovered"
echo "$kills kills, $recoveries with something to recover"

# And the test can see a loss: there is one without a state file.
qemu-img create -q -f qcow2 off.qcow2 1G
STATE=off
serve off.qcow2
client
must base
lost=
for _ in 1 2 3 4 5; do
  must "load $SERVER_PID"
  wait "$SERVER_PID" 2>/dev/null || :
  serve off.qcow2
  ask verify || { lost=1; break; }
done
client_gone
[ -n "$lost" ] || fail "nothing was lost without a state file"
stop_server
check_image off.qcow2 leaks
