#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A client that has slow work done by many connections keeps nobody waiting for longer than by one: neither
# the clients of other exports nor others of its own.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img
requires_python
use_seed

"$PYTHON" -c '
import random
block = random.Random(1).randbytes(1 << 14) + bytes(1 << 14)
with open("raw", "wb") as f:
    for i in range(80 << 20 >> 15):
        f.write(block[i % 8192:] + block[:i % 8192])'
qemu-img convert -q -c -f raw -O qcow2 -o cluster_size=2M raw theirs.qcow2
cp theirs.qcow2 mine.qcow2
rm raw
FRONTEND=nbdcow start_server mine.qcow2 read-only arg=--workers=4 arg=--export-name=mine \
  arg=--export=name=theirs,file=theirs.qcow2,read-only=on
"$PYTHON" "$SRCDIR/fair.py" "$SOCK" "${CLIENTS:-48}"
stop_server
