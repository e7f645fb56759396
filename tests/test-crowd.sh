#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# What a crowd can have the server hold in memory, each of it with as much under way as it may have, and
# whether it is given back; a good client beside them loses nothing.  CLIENTS: how many.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img nbdinfo
requires_python
[ -z "${PLUGIN_PRELOAD:-}" ] || skip 'a sanitizer has memory of its own'
use_seed

ulimit -n "$(ulimit -Hn)"
"$PYTHON" -c 'import random, sys; sys.stdout.buffer.write(random.Random(1).randbytes(16 << 20))' >data.raw
"$PYTHON" -c 'open("torn.raw", "wb").write((b"x" * 4096 + bytes(4096)) * 2048)'
qemu-img convert -f raw -O qcow2 -o cluster_size=4k torn.raw disk.qcow2
qemu-img convert -f raw -O qcow2 data.raw good.qcow2
qemu-img create -q -f qcow2 other.qcow2 1M
# 640 KB of names and descriptions.
long=$(printf %04000d 0)
others=
for i in $(seq 160); do
  others="$others arg=--export=name=other$i,file=other.qcow2,read-only=on,description=$long"
done
# shellcheck disable=SC2086 # several words
start_nbdcow disk.qcow2 arg=--export-name=disk arg=--handshake-limit=0 arg=--memory=64M arg=--threads=2 \
  arg=--export=name=good,file=good.qcow2 $others
timeout 900 "$PYTHON" "$SRCDIR/crowd.py" "$SOCK" "$SERVER_PID" "${CLIENTS:-250}" 64 data.raw || {
  status=$?
  [ $status != 77 ] || skip "too few descriptors for ${CLIENTS:-250} clients"
  exit $status
}
[ "$(nbdinfo --size "nbd+unix:///disk?socket=$SOCK")" = 16777216 ] || fail 'the server is not well'
stop_server
check_image disk.qcow2
check_image good.qcow2
