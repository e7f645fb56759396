#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A Debian kernel with a small initramfs, in an emulated machine whose disk is a qcow2 overlay over
# a compressed qcow2, served by the front end.  The first boot writes files, syncs, powers off; the image
# checks clean; the second boot finds the files.  With TLS=psk in the environment the disk is attached
# over TLS, which is nbdcow's own.

. "${SRCDIR:-$(dirname "$0")/..}/functions.sh"
requires_frontend
. "$SRCDIR/guest/machine.sh"

# ---- the disk --------------------------------------------------------------------------------

mkdir -p fs/host/unwanted
dd if=/dev/urandom of=fs/host/data bs=1M count=8 status=none
dd if=/dev/urandom of=fs/host/unwanted/data bs=1M count=8 status=none
yes 'something that compresses well' | head -c 4000000 >fs/host/text
(cd fs && sha256sum host/text >from-host.sum)
mke2fs -q -F -t ext4 -d fs base.raw 96M
qemu-img convert -c -f raw -O qcow2 base.raw base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2 128M
base=$(digest base.qcow2)

# How the front end is started and how the machine attaches its disk: words, one for each argument.
rest=format=raw,if=virtio,discard=unmap,cache=none
attach="-drive file=nbd+unix:///?socket=@,$rest"
serve=
if [ "${TLS:-}" = psk ]; then
  requires psktool
  mkdir psk
  psktool -u guest -p psk/keys.psk >/dev/null 2>&1
  serve="arg=--object=tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/psk arg=--tls-creds=tls0"
  attach="-object tls-creds-psk,id=tls0,endpoint=client,dir=$tmp/psk,username=guest -drive \
file.driver=nbd,file.server.type=unix,file.server.path=@,file.tls-creds=tls0,$rest"
fi

# boot N: runs the machine until it powers itself off.
boot ()
{
  # shellcheck disable=SC2086 # words
  start_server disk.qcow2 discard=unmap $serve
  # shellcheck disable=SC2046,SC2086 # words
  machine 170 "$1" console-"$1" $(echo "$attach" | sed "s,@,$SOCK,") ||
    { tail -n 30 console-"$1" >&2; fail "boot $1: the machine ended with status $?"; }
  grep -q "^GUEST-OK-$1" console-"$1" || { tail -n 30 console-"$1" >&2; fail "boot $1 failed"; }
  stop_server
  server_log_is_empty
  check_image disk.qcow2
  unchanged "$base" base.qcow2
  qemu-img convert -f qcow2 -O raw disk.qcow2 now.raw
  e2fsck -fn now.raw >e2fsck.log 2>&1 || { cat e2fsck.log >&2; fail "the file system is damaged"; }
  rm now.raw
}

boot 1
boot 2
echo "both boots are fine"
