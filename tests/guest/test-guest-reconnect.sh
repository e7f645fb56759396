#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A guest goes on writing while the server of its disk is killed and started again, ROUNDS times: QEMU
# reconnects, and the guest sees nothing of it.  Afterwards its file system and the image are sound.

. "${SRCDIR:-$(dirname "$0")/..}/functions.sh"
requires_frontend
. "$SRCDIR/kill/state.sh"
. "$SRCDIR/guest/machine.sh"
rounds=${ROUNDS:-8}

mkdir -p fs
echo 'from the host' >fs/file
(cd fs && sha256sum file >from-host.sum)
mke2fs -q -F -t ext4 -d fs base.raw 96M
qemu-img convert -c -f raw -O qcow2 base.raw base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2

serve disk.qcow2 discard=unmap
machine $((120 + rounds * 10)) "reconnect seconds=$((rounds * 4 + 10))" console \
  -blockdev "driver=nbd,node-name=disk,server.type=unix,server.path=$tmp/sock,reconnect-delay=60,discard=unmap,cache.direct=on" \
  -device virtio-blk-pci,drive=disk,discard=on 2>qemu.log &
machine=$!
track "$machine"

writing () { grep -q '^round' console 2>/dev/null || ! process_alive "$machine"; }
wait_for 90 writing || fail "the guest does not write: $(tail -n 20 console)"
kills=0
while [ "$kills" -lt "$rounds" ]; do
  sleep "3.$kills"
  process_alive "$machine" || grep -q '^GUEST' console ||
    fail "the machine ended after $kills kills: $(cat qemu.log; tail -n 20 console)"
  if grep -q '^GUEST' console; then # its time is over, which passes on a slow machine, too
    [ "$kills" -ge $((rounds / 2)) ] || fail "over after $kills kills: $(tail -n 5 console)"
    break
  fi
  kill_server
  serve disk.qcow2 discard=unmap
  kills=$((kills + 1))
done
wait "$machine" || fail "the machine ended with status $?: $(cat qemu.log; tail -n 20 console)"
grep -q '^GUEST-OK-reconnect' console || { tail -n 30 console >&2; fail "the guest saw it"; }
stop_server
recovered=$(grep -l 'tables were recovered' server-*.log | wc -l)
[ "$recovered" -gt 0 ] || fail "nothing ever had to be recovered"
! grep -l 'is not used' server-*.log || fail "a state was set aside"
check_image disk.qcow2
no_state_left
qemu-img convert -f qcow2 -O raw disk.qcow2 now.raw
e2fsck -fn now.raw >e2fsck.log 2>&1 || { cat e2fsck.log >&2; fail "the file system is damaged"; }
echo "$kills kills, $recovered with something to recover, $(grep -c '^round' console) rounds of the guest"
