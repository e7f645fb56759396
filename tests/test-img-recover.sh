#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img on an image whose server was killed: what the server had acknowledged and not flushed is in its state
# directory, and is brought into the image before anything is repaired or written, whatever the sub-command, and in
# whatever way the image is named.

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

# kill_after_writes: the server acknowledges 1 MiB at 10 MiB, and is killed.
kill_after_writes ()
{
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
  kill_after_writes
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
    # Nor if it is not there at all.
    mv elsewhere/disk.data elsewhere/away
    if "$NBDCOW_IMG" check -q -r all --state-dir="$state" "${1#arg=}" disk.qcow2 2>log; then
      fail "check -r all with a data file that is not there"
    fi
    grep -q 'disk.data.*No such file' log && grep -q 'is not in the image' log ||
      fail "check -r all with a data file that is not there: $(cat log)"
    mv elsewhere/away elsewhere/disk.data
    lost || fail "check -r all with a data file that is not there wrote"
    ;;
  esac
  "$NBDCOW_IMG" check -q -r $mode --state-dir="$state" "${1#arg=}" disk.qcow2 2>log ||
    fail "check -r $mode: status $?: $(cat log)"
  if lost; then
    fail "check -r $mode lost what the server had acknowledged"
  fi
  check_image disk.qcow2
done

# kept COMMAND...: run on an image whose server was killed, it loses nothing.
kept ()
{
  rm -f disk.qcow2 base.raw
  truncate -s 64M base.raw
  qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2
  start_server disk.qcow2 "arg=--state-dir=$state"
  kill_after_writes
  lost || return 0 # it had flushed
  tried=$((tried + 1))
  "$@" >log 2>&1 || fail "$*: status $?: $(cat log)"
  if lost; then
    fail "$*: lost what the server had acknowledged"
  fi
  check_image disk.qcow2
}
tried=0
json='json:{"driver":"qcow2","file":{"driver":"file","filename":"disk.qcow2"}}'
for command in "check -q -r all" "compact -q" "recompress -q" "bitmap --add"; do
  bitmap=
  [ "$command" != "bitmap --add" ] || bitmap=b
  for name in file:disk.qcow2 "$json" "--image-opts driver=qcow2,file.filename=disk.qcow2"; do
    # shellcheck disable=SC2086 # several words
    kept "$NBDCOW_IMG" $command --state-dir="$state" $name $bitmap
  done
done
[ $tried -ge 6 ] || fail "the server had flushed too often: $tried"

# Others look in the default directory, which is made to be ours.
in_default ()
{
  # shellcheck disable=SC2016 # for the inner shell
  unshare -m sh -c 'mount -t tmpfs none /run && mkdir -m 700 /run/nbdcow && mount --bind "$0" /run/nbdcow && exec "$@"' \
    "$state" "$@"
}
if [ "$(id -u)" = 0 ] && in_default true 2>/dev/null; then
  for name in disk.qcow2 "$json"; do
    kept in_default "$NBDCOW_IMG" snapshot -c s "$name"
    kept in_default "$NBDCOW_IMG" resize -q "$name" +1M
    kept in_default "$NBDCOW_IMG" amend -o lazy_refcounts=on "$name"
    kept in_default "$NBDCOW_IMG" rebase -u -b base.raw -F raw "$name"
    kept in_default "$NBDCOW_IMG" rebase -b "" "$name"
    kept in_default "$NBDCOW_IMG" bench -q -w -c 1 -o 40M "$name"
  done
  kept in_default "$NBDCOW_IMG" commit -q -d disk.qcow2
  ! qemu-io -r -f raw -c 'read -P 8 10M 1M' base.raw | grep 'verification failed' ||
    fail "commit left behind what the server had acknowledged"
else
  echo "the default directory cannot be made ours: what looks there was not tried"
fi
