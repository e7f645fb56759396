#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A read whose reply must be one piece, and what --memory leaves for it: where it fits, it is read before its
# reply begins, and may still fail; where it does not, it comes in the largest pieces that do, and what fails
# after the first one ends the connection.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img
requires_python

# comes_to WHAT LENGTH: so does a read of LENGTH from the beginning, in each mode.
comes_to ()
{
  _got=$(timeout 100 "$PYTHON" "$SRCDIR/pieces.py" "$SOCK" "$2") || fail "a read of $2: status $?"
  [ "$_got" = "$1" ] || fail "a read of $2: $_got, expected: $1"
}

"$PYTHON" -c 'import sys; sys.stdout.buffer.write(b"\xff" * (32 << 20))' >data.raw
# One cluster is compressed, of bytes that no compressed ones begin with: data.
for image in early:6553600 late:33488896; do
  qemu-img convert -f raw -O qcow2 data.raw ${image%:*}.qcow2
  "$PYTHON" "$SRCDIR/qcow2.py" l2 ${image%:*}.qcow2 ${image#*:} 0x4000000000100000
done

# By default the longest one fits, however many threads there are.
for threads in 1 16; do
  start_nbdcow late.qcow2 read-only arg=--threads=$threads
  comes_to error 33554432
  comes_to data 33488896
  stop_server
done

# 16 MiB for each thread: pieces of 8 MiB.
start_nbdcow early.qcow2 read-only arg=--threads=16 arg=--memory=256M
comes_to error 33554432
comes_to error 16777216
stop_server
start_nbdcow late.qcow2 read-only arg=--threads=16 arg=--memory=256M
comes_to disconnected 33554432
comes_to data 33488896
[ "$(grep -c 'a read failed after its reply had begun' "$SERVER_LOG")" = 2 ] || fail "the log: $(cat "$SERVER_LOG")"
stop_server
