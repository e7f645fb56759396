#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A running server is replaced under its clients, which verify every byte and see no error; and
# whatever happens to the new one before it serves, the old one goes on.  TAKEOVER_ROUNDS says how
# often, and with it there is nothing else.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires_python_nbd

SEED=${SEED:-$(date +%N | sed 's/^0*//')}
export SEED STATE_DIR

for image in a:64M b:64M c:192M; do
  "$NBDCOW_IMG" create -q -f qcow2 "${image%:*}.qcow2" "${image#*:}"
done
head -c 65536 /dev/urandom >broken.qcow2
"$PYTHON" "$SRCDIR/live_takeover.py" "$NBDCOW" "$tmp/sock" "$tmp/control" || {
  tail -n 40 server.log >&2
  cat stderr.* >&2
  fail 'see above'
}
for image in a b c; do
  "$NBDCOW_IMG" check -q $image.qcow2 || fail "$image.qcow2 is not sound"
done
