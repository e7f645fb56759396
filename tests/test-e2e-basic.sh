#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# What each command and flag does, one by one, on a small image with a backing file.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io
requires_python_nbd

# Base: 1 MiB of 0x11, 1 MiB of zeros that are written, the rest never written.
qemu-img create -q -f qcow2 base.qcow2 8M
qemu-io -f qcow2 -c 'write -q -P 0x11 0 1M' -c 'write -q -P 0 1M 1M' base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2 8M
base_sum=$(digest base.qcow2)
start_server disk.qcow2 discard=unmap
"$PYTHON" "$SRCDIR/e2e-basic.py" "$URI" "$FRONTEND" >out.txt || { cat out.txt; exit 1; }
cat out.txt

# What a flush acknowledged is in the file, for anybody who opens it read-only without locks.
timeout 60 qemu-img compare -q -U -f raw -F qcow2 "$URI" disk.qcow2
stop_server
[ "$FRONTEND" = nbdkit ] || server_log_is_empty # nbdkit logs what its clients do wrong
check_image disk.qcow2
unchanged "$base_sum" base.qcow2

# Read only: the same contents, no write gets through, and the file keeps every byte.
qemu-img convert -f qcow2 -O raw disk.qcow2 model
sum=$(digest disk.qcow2)
start_server disk.qcow2 read-only
"$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
"$PYTHON" -c '
import sys, nbd
h = nbd.NBD()
h.set_strict_mode(0)  # let the server say it
h.connect_uri(sys.argv[1])
assert h.is_read_only()
for f in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
    try:
        f()
    except nbd.Error as e:
        assert e.errno == "EPERM", e.errno
    else:
        sys.exit("a write to a read-only export succeeded")
assert any(h.pread(512, 3 << 20))
h.shutdown()
' "$URI"
stop_server
[ "$FRONTEND" = nbdkit ] || server_log_is_empty
unchanged "$sum" disk.qcow2

# A raw image, and one whose size is no multiple of anything.
"$PYTHON" "$SRCDIR/disk.py" fill raw.img 3000001
cp raw.img model
start_server raw.img format=raw discard=unmap
SEED=1 "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
SEED=1 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 200
SEED=1 "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
stop_server
server_log_is_empty
cmp raw.img model
