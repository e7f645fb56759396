#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The file system of the image runs full: the client gets ENOSPC, nothing that was acknowledged is
# harmed, the server lives, and goes on when there is room again.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
skip_sanitized_nbdkit
requires_root "to mount small file systems"
requires qemu-img qemu-io
requires_python_nbd
use_seed

mkdir small
at_exit 'umount -l small 2>/dev/null'

# The disk: base data everywhere, so that each partial write copies.
qemu-img create -q -f qcow2 base.qcow2 64M
qemu-io -f qcow2 -c 'write -q -P 0x21 0 64M' base.qcow2

# What fills the disk, and what must hold then.  Prints how many writes were acknowledged.
cat >fill.py <<'END'
import sys
import nbd

phase, uri, cluster = sys.argv[1], sys.argv[2], int(sys.argv[3])
size = 64 << 20
h = nbd.NBD()
h.connect_uri(uri)


def stamp(i):
    return bytes([1 + i % 255]) * 3000


def offset(i):
    """One write in each cluster, in an order that jumps about."""
    n = size // max(cluster, 65536)
    return (i * 37 % n) * max(cluster, 65536) + 1000


def verify(acknowledged):
    for i in range(acknowledged):
        got = h.pread(3002, offset(i) - 1)
        if got != b"\x21" + stamp(i) + b"\x21":
            sys.exit("write %d at %d was acknowledged and is gone" % (i, offset(i)))


def try_flush():
    """A flush may find no room for metadata, but then has to say just that."""
    try:
        h.flush()
        return True
    except nbd.Error as e:
        if e.errno != "ENOSPC":
            sys.exit("flush on a full disk: %s" % e.errno)
        return False


if phase == "fill":
    i = 0
    failed = 0
    while failed < 20 and i + failed < size // max(cluster, 65536):
        try:
            h.pwrite(stamp(i), offset(i))
            if failed:  # some room was left for a smaller allocation
                failed = 0
            i += 1
        except nbd.Error as e:
            if e.errno != "ENOSPC":
                sys.exit("write %d: %s instead of ENOSPC" % (i, e.errno))
            failed += 1
    if failed == 0:
        sys.exit("the disk did not run full")
    verify(i)
    # In place there is always room.
    h.pwrite(stamp(0), offset(0))
    try_flush()
    verify(i)
    # What failed shows the old bytes, or the new ones in part: never anything else.
    got = h.pread(3000, offset(i))
    if got.strip(b"\x21" + stamp(i)[:1]):
        sys.exit("a failed write left other bytes")
    print(i)
elif phase == "verify":
    verify(int(sys.argv[4]))
elif phase == "more":
    acknowledged = int(sys.argv[4])
    verify(acknowledged)
    end = min(acknowledged + 60, size // max(cluster, 65536))
    for i in range(acknowledged, end):
        h.pwrite(stamp(i), offset(i))
    h.flush()
    verify(end)
    print(end)
h.shutdown()
END

# mount_small BYTES
mount_small ()
{
  case $fs in
  tmpfs) mount -t tmpfs -o size="$1" none small ;;
  ext4)
    truncate -s "$1" fs.img
    mke2fs -q -F -t ext4 -b 4096 -m 0 -O ^has_journal fs.img
    mount -o loop fs.img small
    ;;
  esac
}

# grow_small BYTES
grow_small ()
{
  case $fs in
  tmpfs) mount -o remount,size="$1" small ;;
  ext4) rm small/ballast ;;
  esac
}

for fs in tmpfs ext4; do
  for cluster in 65536 4096 2097152; do
    echo "== $fs, clusters of $cluster: full, then there is room again"
    room=$((cluster > 65536 ? 26 << 20 : cluster < 65536 ? 2 << 20 : 6 << 20))
    if [ $fs = ext4 ] && ! command -v mke2fs >/dev/null; then continue; fi
    case $fs in tmpfs) total=$room ;; *) total=$((room * 4)) ;; esac
    if ! mount_small $total 2>mount.log; then
      [ $fs = ext4 ] && { echo "no loop mounts here: $(cat mount.log)"; break; }
      skip "cannot mount: $(cat mount.log)"
    fi
    # On ext4 a file that can be removed stands for the room that comes later.
    if [ $fs = ext4 ]; then
      dd if=/dev/zero of=small/ballast bs=1M count=$((room * 3 >> 20)) status=none
    fi
    qemu-img create -q -f qcow2 -o cluster_size=$cluster -b "$tmp/base.qcow2" -F qcow2 small/disk.qcow2
    start_server small/disk.qcow2 discard=unmap
    n=$(timeout 100 "$PYTHON" fill.py fill "$URI" $cluster) || fail "while it ran full"
    echo "   $n writes fitted"
    [ "$n" -gt 3 ] || fail "only $n writes fitted"
    process_alive "$SERVER_PID" || fail "the server died"
    grow_small $((room * 4))
    n=$(timeout 100 "$PYTHON" fill.py more "$URI" $cluster "$n") || fail "after there was room again"
    stop_server
    check_image small/disk.qcow2
    start_server small/disk.qcow2 read-only
    timeout 100 "$PYTHON" fill.py verify "$URI" $cluster "$n"
    stop_server
    umount small

    echo "== $fs, clusters of $cluster: stopped while full"
    mount_small $room
    qemu-img create -q -f qcow2 -o cluster_size=$cluster -b "$tmp/base.qcow2" -F qcow2 small/disk.qcow2
    start_server small/disk.qcow2 discard=unmap
    n=$(timeout 100 "$PYTHON" fill.py fill "$URI" $cluster) || fail "while it ran full"
    kill -TERM "$SERVER_PID"
    wait_server_exit
    case $SERVER_STATUS in
    0)
      check_image small/disk.qcow2 leaks
      start_server small/disk.qcow2 read-only
      timeout 100 "$PYTHON" fill.py verify "$URI" $cluster "$n"
      stop_server
      ;;
    1) # it could not write what it had acknowledged without a flush, and has to say so
      grep -qi 'no space' "$SERVER_LOG" || fail "status 1 without a word of the full disk"
      check_image small/disk.qcow2 leaks
      ;;
    *) fail "stopped while full: status $SERVER_STATUS" ;;
    esac
    umount small
  done
done

if [ -e "$BUILDDIR/stress" ]; then
  echo "== many clients while the disk runs full"
  fs=tmpfs
  mount_small $((8 << 20))
  qemu-img create -q -f qcow2 -b "$tmp/base.qcow2" -F qcow2 small/disk.qcow2
  start_server small/disk.qcow2 discard=unmap
  timeout 120 "$BUILDDIR/stress" --enospc --seconds=4 --seed="$SEED" "$URI"
  grow_small $((100 << 20))
  timeout 60 "$BUILDDIR/stress" --seconds=2 --seed="$SEED" "$URI"
  stop_server
  check_image small/disk.qcow2
fi
