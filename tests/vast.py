# SPDX-License-Identifier: BSD-3-Clause
#
# Makes an image of 64 TiB in a file of little more than a megabyte, by having every L1 entry point to one L2
# table:
#
#     vast.py NAME alike|torn
#
# alike: all its clusters are zeros, so all of the disk is one piece; torn: every other one is.  The counts
# are wrong for it, which does not matter to whoever only reads.

import os, struct, subprocess, sys

name, kind = sys.argv[1:]
CLUSTER, SIZE = 1 << 16, 64 << 40
subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", name, str(SIZE)], check=True)
with open(name, "r+b") as f:
    f.seek(36)
    entries, l1 = struct.unpack(">IQ", f.read(12))
    table = -(-os.stat(name).st_size // CLUSTER) * CLUSTER
    zero, data = struct.pack(">Q", 1), struct.pack(">Q", table + CLUSTER | 1 << 63)
    f.seek(table)
    f.write((zero * 2 if kind == "alike" else zero + data) * (CLUSTER // 16))
    f.write(b"x" * CLUSTER)
    f.seek(l1)
    f.write(struct.pack(">Q", table | 1 << 63) * entries)
