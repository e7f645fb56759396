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

# Servers that became another user after they had made their sockets.
if [ -z "${TAKEOVER_ROUNDS:-}" ] && [ "$(id -u)" = 0 ] && id nobody >/dev/null 2>&1; then
  chown nobody b.qcow2 "$STATE_DIR"
  chmod a+x "$tmp"
  rm -f old.pid new.pid
  set -- -t --user nobody -k "$tmp/sock" --control "$tmp/control" --state-dir "$STATE_DIR" b.qcow2
  "$NBDCOW" --pid-file "$tmp/old.pid" "$@" &
  old=$!
  track $old
  wait_for 30 test -s old.pid || fail 'no server of user nobody'
  "$NBDCOW" --takeover "$tmp/control" --pid-file "$tmp/new.pid" "$@" &
  new=$!
  track $new
  wait_server_exit $old
  [ "$SERVER_STATUS" = 0 ] || fail "the old server of user nobody has failed"
  wait_for 30 test -s new.pid || fail 'no new server of user nobody'
  kill $new
  wait $new || fail 'the new server of user nobody has failed'
fi
