#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img check -r on an image whose server was killed: what the server had acknowledged and not
# flushed is in its state directory, and is brought into the image before anything is repaired.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
FRONTEND=nbdcow
requires_frontend
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python_nbd
state=/dev/shm
[ -d $state ] && [ "$(stat -f -c %T $state)" = tmpfs ] || skip "$state is no tmpfs"
state=$(mktemp -d $state/nbdcow-test.XXXXXX)
at_exit "rm -rf $state"

# lost: the unflushed write is not in the image.
lost ()
{
  qemu-io -r -f qcow2 -c 'read -P 8 10M 1M' disk.qcow2 >read.out 2>&1 || :
  grep -q '^read 1048576/1048576' read.out || fail "qemu-io: $(cat read.out)"
  grep -q 'verification failed' read.out
}

mkdir elsewhere
for mode in leaks all all-external; do
  qemu-img create -q -f qcow2 disk.qcow2 64M
  set -- arg=--data-file-policy=same-dir
  if [ "$mode" = all-external ]; then
    # The data file is where only the user's word lets it be opened.
    mode=all
    qemu-img create -q -f qcow2 -o data_file="$tmp/elsewhere/disk.data" disk.qcow2 64M
    set -- arg=--data-file-policy=any
  fi
  start_server disk.qcow2 "arg=--state-dir=$state" "$@"
  "$PYTHON" - "$SOCK" "$SERVER_PID" <<'END'
import nbd, os, signal, sys
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"\7" * 65536, 0)
h.flush()
for i in range(16):
    h.pwrite(b"\10" * 65536, (10 << 20) + i * 65536)
os.kill(int(sys.argv[2]), signal.SIGKILL)
END
  wait_server_exit
  lost || skip "the server flushed before it was killed"
  "$NBDCOW_IMG" check -q disk.qcow2 || fail "check of a killed server's image: status $?"
  lost || fail "a check without -r wrote"
  case $* in
  *=any)
    if "$NBDCOW_IMG" check -q -r all --state-dir="$state" disk.qcow2 2>log; then
      fail "check -r all without the data file"
    fi
    grep -q 'disk.qcow2.*data-file-policy=any' log || fail "check -r all without the data file: $(cat log)"
    lost || fail "check -r all without the data file wrote"
    ;;
  esac
  "$NBDCOW_IMG" check -q -r $mode --state-dir="$state" "${1#arg=}" disk.qcow2 2>log ||
    fail "check -r $mode: status $?: $(cat log)"
  if lost; then
    fail "check -r $mode lost what the server had acknowledged"
  fi
  check_image disk.qcow2
done
