#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The storage fails under a server, which then is stopped in good order: what it could not write is kept in
# the state file, and the next server has all that was acknowledged.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img
requires_python_nbd
nosync=$BUILDDIR/kill/libnosync.so
requires_file "$nosync" kill/libnosync.so

cat >client.py <<'END'
import sys
import nbd

h = nbd.NBD()
h.connect_uri(sys.argv[2])
for i in range(300):
    data = bytes([1 + i % 250]) * 4096
    if sys.argv[1] == "write":
        h.pwrite(data, i * 65536)
        open("failing", "w").close()  # now that the image is open
    elif h.pread(4096, i * 65536) != data:
        sys.exit("write %d was acknowledged and is gone" % i)
h.shutdown()
END

qemu-img create -q -f qcow2 disk.qcow2 64M
# Its sandbox would keep the server from looking whether that file is there.
open=
[ "$FRONTEND" = nbdkit ] || open=arg=--sandbox=off
WRAP="env NOSYNC=$tmp/failing LD_PRELOAD=$nosync"
# shellcheck disable=SC2086 # none, or one word
start_server disk.qcow2 $open
WRAP=
"$PYTHON" client.py write "$URI"
kill -TERM "$SERVER_PID"
wait_server_exit
grep -q 'is kept in .* for the next open' "$SERVER_LOG" || fail "nothing was kept: status $SERVER_STATUS"
rm failing
start_server disk.qcow2
"$PYTHON" client.py verify "$URI"
grep -q 'tables were recovered' "$SERVER_LOG" || fail "nothing was recovered: $(cat "$SERVER_LOG")"
stop_server
check_image disk.qcow2
