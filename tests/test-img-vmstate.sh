#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# VM state in internal snapshots, as QEMU's savevm leaves it: nbdcow-img says how large it is, and whatever
# it does to the image, QEMU finds every byte of it, and loads it.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io qemu-system-x86_64

# machine COMMANDS [OPTION...]: a guest without anything to boot, and what its monitor is told.
machine ()
{
  commands=$1
  shift
  printf '%s\nquit\n' "$commands" |
    timeout 60 qemu-system-x86_64 -nodefaults -no-user-config -machine pc,accel=tcg -m 4 -display none \
      -monitor stdio -drive file=disk.qcow2,format=qcow2,if=virtio "$@" >machine.log 2>&1 ||
    {
      cat machine.log >&2
      fail "$what: QEMU: $commands $*"
    }
}

# state: a digest of the VM state of the snapshot "running", and of the disk that goes with it.
state ()
{
  cp disk.qcow2 copy.qcow2
  qemu-img snapshot -a running copy.qcow2
  qemu-io -r -f qcow2 -c "read -b -v 0 $size" copy.qcow2 | grep -v "ops/sec\|sec (" | sha256sum
  qemu-img convert -f qcow2 -O raw copy.qcow2 copy.raw
  sha256sum <copy.raw
}

# kept WHAT: nothing of it has changed.
kept ()
{
  what=$1
  check_image disk.qcow2
  state >state.now
  cmp state.was state.now || fail "$what: the VM state has changed"
  "$NBDCOW_IMG" snapshot -l disk.qcow2 | grep running >now
  cmp was now || fail "$what: it is listed as $(cat now), was $(cat was)"
  cp disk.qcow2 kept.qcow2
  machine "info status" -S -loadvm running
  grep -q "VM status" machine.log || fail "$what: QEMU does not load it: $(cat machine.log)"
  mv kept.qcow2 disk.qcow2
}

for options in cluster_size=4k,lazy_refcounts=on cluster_size=32k,extended_l2=on; do
  what="$options: savevm"
  qemu-img create -q -f qcow2 -o "$options" disk.qcow2 3M
  qemu-io -f qcow2 -c "write -P 7 0 2M" disk.qcow2 >/dev/null
  machine "savevm running"
  qemu-io -f qcow2 -c "write -P 8 1M 1M" disk.qcow2 >/dev/null
  size=$(qemu-img info -f qcow2 --output=json disk.qcow2 | sed -n 's/.*"vm-state-size": \([0-9]*\).*/\1/p')
  [ "${size:-0}" -gt 10000 ] || skip "this QEMU saves no VM state: $(cat machine.log)"
  "$NBDCOW_IMG" info -f qcow2 --output=json disk.qcow2 | grep -q "\"vm-state-size\": $size" ||
    fail "$options: info does not say $size"
  "$NBDCOW_IMG" snapshot -l disk.qcow2 | grep running >was
  grep -q "[1-9][0-9.]* [KM]iB" was || fail "$options: snapshot -l does not say how large it is: $(cat was)"
  state >state.was

  "$NBDCOW_IMG" snapshot -c other disk.qcow2
  kept "$options: another one made"
  "$NBDCOW_IMG" resize -q disk.qcow2 5M
  kept "$options: a larger disk"
  "$NBDCOW_IMG" resize -q --shrink disk.qcow2 2M
  kept "$options: a smaller one"
  "$NBDCOW_IMG" snapshot -a running disk.qcow2
  kept "$options: gone back to"
  # What QEMU puts behind the disk for the state is on the disk now: growing over it reads as zeros.
  "$NBDCOW_IMG" resize -q disk.qcow2 1G
  qemu-io -r -f qcow2 -c "read -P 0 3M 1021M" disk.qcow2 | grep -q "verification failed" &&
    fail "$options: a disk that grows over VM state shows it"
  kept "$options: a disk that grows over its copy"
  "$NBDCOW_IMG" snapshot -c third disk.qcow2
  "$NBDCOW_IMG" snapshot -d other disk.qcow2
  kept "$options: others made and deleted"
  "$NBDCOW_IMG" compact -q disk.qcow2
  kept "$options: compacted"
  "$NBDCOW_IMG" amend -q -o refcount_bits=64 disk.qcow2
  kept "$options: wider refcounts"
  "$NBDCOW_IMG" check -q -r all disk.qcow2
  kept "$options: checked"
  "$NBDCOW_IMG" snapshot -d third disk.qcow2
  "$NBDCOW_IMG" snapshot -d running disk.qcow2
  check_image disk.qcow2
done
