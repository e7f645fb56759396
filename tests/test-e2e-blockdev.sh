#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A block device as the image file: it ends where it ends, and what was never written there is not
# zero.  The device here is a loop device full of old bytes.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
skip_sanitized_nbdkit
requires_root "for loop devices"
requires qemu-img losetup
requires_python_nbd
use_seed

at_exit '[ -z "${dev:-}" ] || losetup -d "$dev"'

# attach BYTES: sets dev to a loop device that is full of old bytes.
attach ()
{
  "$PYTHON" -c 'import sys; open("device", "wb").write(b"\xde\xad\xbe\xef" * (int(sys.argv[1]) // 4))' "$1"
  dev=$(losetup -f --show "$tmp/device" 2>losetup.log) || { dev= ; skip "no loop device: $(cat losetup.log)"; }
}
detach ()
{
  losetup -d "$dev"
  dev=
}

for opts in cluster_size=65536 cluster_size=4096,refcount_bits=1 cluster_size=2097152 compat=0.10; do
  echo "== $opts"
  GRAIN=$(echo "$opts" | sed -n 's/.*cluster_size=\([0-9]*\).*/\1/p')
  GRAIN=${GRAIN:-65536}
  export GRAIN
  attach $((64 << 20))
  qemu-img create -q -f qcow2 -o "$opts" "$dev" 12M
  rm -f model
  truncate -s 12M model
  start_server "$dev" discard=unmap
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  ROUND=1 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 150
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  stop_server
  check_image "$dev"
  same_contents "$dev" qcow2 model raw
  ROUND=q "$PYTHON" "$SRCDIR/disk.py" qemu "$dev" model 20
  start_server "$dev" discard=unmap
  ROUND=2 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 60
  stop_server
  check_image "$dev"
  same_contents "$dev" qcow2 model raw
  recorded=$("$PYTHON" "$SRCDIR/qcow2.py" halc "$dev")
  [ "$recorded" -ge "$("$PYTHON" "$SRCDIR/qcow2.py" highest "$dev")" ]
  [ "$recorded" -le $((64 << 20)) ] || fail "the highest offset, $recorded, is past the device's end"
  detach
done

echo "== the device is too small, and is made larger under the server"
attach $((4 << 20))
qemu-img create -q -f qcow2 "$dev" 32M
start_server "$dev"
cat >fill.py <<'END'
import sys
import nbd

h = nbd.NBD()
h.connect_uri(sys.argv[2])
first = int(sys.argv[3])
for i in range(first):
    assert h.pread(65536, i << 16) == bytes([i + 1]) * 65536, i
if sys.argv[1] == "fill":
    try:
        for i in range(first, 255):
            h.pwrite(bytes([i + 1]) * 65536, i << 16)
        sys.exit("no ENOSPC")
    except nbd.Error as e:
        assert e.errno == "ENOSPC", e.errno
    for k in range(i):
        assert h.pread(65536, k << 16) == bytes([k + 1]) * 65536, k
    assert h.pread(65536, i << 16) == bytes(65536)
else:
    for i in range(first, 200):
        h.pwrite(bytes([i + 1]) * 65536, i << 16)
    i = 200
h.flush()
h.shutdown()
print(i)
END
n=$(timeout 60 "$PYTHON" fill.py fill "$URI" 0)
echo "   $n clusters fitted"
[ "$n" -gt 20 ] || fail "only $n clusters fitted"
truncate -s 64M device
losetup -c "$dev"
n=$(timeout 60 "$PYTHON" fill.py more "$URI" "$n")
stop_server
check_image "$dev"
start_server "$dev" read-only
timeout 60 "$PYTHON" fill.py more "$URI" "$n" >/dev/null
stop_server
