#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# What needs a kernel with certain modules, which this machine's may not have: nbdcow runs inside of an
# emulated one, and serves a device of that kernel (--connect, --disconnect), in its sandbox and as
# another user; and vsock, through the loopback device.

. "${SRCDIR:-$(dirname "$0")/..}/functions.sh"
requires_frontend
requires nbdinfo
ldd "$NBDCOW" | grep -q libnl-genl || skip "nbdcow was built without libnl-genl-3"

guest_init=init-device
guest_programs="$NBDCOW $(command -v nbdinfo)"
guest_modules="nbd vsock vmw_vsock_virtio_transport_common vsock_loopback"

mkdir -p fs/host initrd/images initrd/etc initrd/var/lock initrd/var/tmp initrd/tmp initrd/run
dd if=/dev/urandom of=fs/host/data bs=1M count=2 status=none
(cd fs && sha256sum host/data >from-host.sum)
mke2fs -q -F -t ext4 -O ^has_journal -d fs base.raw 24M
qemu-img convert -c -f raw -O qcow2 base.raw initrd/images/disk.qcow2
cp initrd/images/disk.qcow2 initrd/images/other.qcow2
echo 'root:x:0:0::/:/bin/sh
nobody:x:65534:65534::/:/bin/sh' >initrd/etc/passwd
echo 'root:x:0:
nogroup:x:65534:' >initrd/etc/group

. "$SRCDIR/guest/machine.sh"
find initrd/modules -name nbd.ko | grep -q . || skip "the guest's kernel has no nbd module"

machine 300 device console || { tail -n 40 console >&2; fail "the machine ended with status $?"; }
sed -n 's/^== //p' console
grep -q '^GUEST-OK-device' console || { tail -n 40 console >&2; fail "the test in the machine failed"; }
