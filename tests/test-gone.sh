#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Clients that ask for more than anybody could wait for, and leave: the server has nothing to do soon, and
# ends when it is told to.  But not for one that says that it leaves.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img
requires_python

"$PYTHON" "$SRCDIR/vast.py" torn.qcow2 torn
for image in over farewell; do
  qemu-img create -q -f qcow2 -o cluster_size=2M -b torn.qcow2 -F qcow2 $image.qcow2
done
start_nbdcow over.qcow2 discard=unmap arg=--export-name=over \
  arg=--export=name=torn,file=torn.qcow2,readonly=on arg=--export=name=farewell,file=farewell.qcow2
timeout 400 "$PYTHON" "$SRCDIR/gone.py" "$SOCK" "$SERVER_PID"
stop_server
check_image over.qcow2 leaks
check_image farewell.qcow2
