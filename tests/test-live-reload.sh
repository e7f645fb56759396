#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The configuration is read again, a thousand times if asked (LIVE_ROUNDS), while clients that
# verify every byte notice nothing; bad ones are refused whole; and the service manager hears of it.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires_python_nbd

SEED=${SEED:-$(date +%N | sed 's/^0*//')}
export SEED

for image in a b; do
  "$NBDCOW_IMG" create -q -f qcow2 $image.qcow2 64M
done
for image in x0 x1 x2 x3 gone; do
  "$NBDCOW_IMG" create -q -f qcow2 $image.qcow2 1M
done
head -c 4096 /dev/zero >junk

"$PYTHON" "$SRCDIR/live_reload.py" "$NBDCOW" "$tmp/sock" || {
  tail -n 30 server.log >&2
  fail 'see above'
}
for image in a b x0 x1 x2 x3 gone; do
  "$NBDCOW_IMG" check -q $image.qcow2 || fail "$image.qcow2 is not sound"
done
