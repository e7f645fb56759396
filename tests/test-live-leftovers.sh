#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# What takeovers and reloads leave behind, and keep: files, locks, lost exports, views, snapshots'
# exports; who may take over, and what a service manager is told.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires ldconfig
requires_python_nbd
use_seed

NBDCOW_CTL=$(dirname "$NBDCOW")/nbdcow-ctl
requires_file "$NBDCOW_CTL" nbdcow-ctl
export NBDCOW_CTL STATE_DIR

for image in a b golden ro; do
  "$NBDCOW_IMG" create -q -f qcow2 $image.qcow2 8M
done
"$NBDCOW_IMG" create -q -f qcow2 -F qcow2 -b golden.qcow2 over.qcow2
"$NBDCOW_IMG" snapshot -q -c first a.qcow2
SYSTEMD=
! has_systemd || SYSTEMD=1
METRICS=1
if ! timeout 60 "$NBDCOW" --metrics="unix:$tmp/none" --run true a.qcow2 2>metrics.log; then
  grep -q 'without libmicrohttpd' metrics.log || fail "$(cat metrics.log)"
  METRICS=
fi
export SYSTEMD METRICS
"$PYTHON" "$SRCDIR/live_leftovers.py" "$NBDCOW" || {
  tail -n 40 server.log >&2
  cat stderr.* >&2
  fail 'see above'
}
for image in a b golden ro over; do
  "$NBDCOW_IMG" check -q $image.qcow2 || fail "$image.qcow2 is not sound"
done
