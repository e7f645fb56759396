#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Clients that mean harm, in each state of the protocol, and the good client beside them: it gets its
# answers in time, nothing is lost, memory is bounded, and the server is well afterwards.
# DURATION (default 0.6) is how long each attack goes on, in seconds.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img nbdinfo
requires_python_nbd
use_seed

mkdir psk
tls=
if command -v psktool >/dev/null 2>&1 && "$NBDCOW" --help | grep -q -e --tls-creds; then
  psktool -u good -p psk/keys.psk >/dev/null 2>&1
  tls="arg=--tls=optional arg=--tls-creds=tls0 arg=--object=tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/psk"
fi
[ -n "$tls" ] || skip "half a TLS handshake needs psktool, and nbdcow with TLS"

qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-img create -q -f qcow2 -o cluster_size=4k many.qcow2 64M
qemu-img create -q -f qcow2 wipe.qcow2 16T
qemu-img create -q -f qcow2 deep0.qcow2 4M
layer=0
while [ $layer -lt 60 ]; do
  layer=$((layer + 1))
  qemu-img create -q -f qcow2 -b deep$((layer - 1)).qcow2 -F qcow2 deep$layer.qcow2
done

# shellcheck disable=SC2086 # several words
start_nbdcow disk.qcow2 arg=--export-name=disk arg=--handshake-limit=10 arg=--memory=64M $tls \
  arg=--export=name=many,file=many.qcow2 arg=--export=name=wipe,file=wipe.qcow2,discard=unmap \
  arg=--export=name=deep,file=deep60.qcow2
threads=$(ls "/proc/$SERVER_PID/task")
"$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.set_export_name("many")
h.connect_unix(sys.argv[1])
for i in range(0, 8192, 2):
    h.pwrite(b"x" * 4096, i * 4096)
h.shutdown()' "$SOCK"
# shellcheck disable=SC2086 # several words
timeout 900 "$PYTHON" "$SRCDIR/abuse.py" "$SOCK" "$SERVER_PID" "${DURATION:-0.6}" $threads
[ "$(nbdinfo --size "nbd+unix:///disk?socket=$SOCK")" = 67108864 ] || fail "the server is not well"
stop_server
for image in disk many wipe deep60; do
  check_image $image.qcow2
done
