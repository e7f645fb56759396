# SPDX-License-Identifier: BSD-3-Clause
#
# Clients that ask for days of work and go away: soon the server does none of it any more.  Run by
# test-gone.sh:
#
#     gone.py SOCKET PID
#
# The exports "torn" and "over" are disks of 64 TiB, all of which has something to be done for.

import os, sys, time

import rawnbd
from rawnbd import *

rawnbd.SOCKET, PID = sys.argv[1], int(sys.argv[2])
CLIENTS, DEPTH, DISK = 3, 256, 64 << 40


def processor():
    """Seconds of it that the server has had."""
    with open(f"/proc/{PID}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def becomes_busy():
    start, end = processor(), time.monotonic() + 60
    while processor() < start + 0.2:
        assert time.monotonic() < end, "nothing is done for the clients"
        time.sleep(0.02)


def becomes_idle():
    start, began = processor(), time.monotonic()
    while True:
        before = processor()
        time.sleep(0.5)
        if processor() - before <= 0.05:
            return before - start
        assert time.monotonic() < began + 60, f"it is still at work, after {before - start:.1f} s of processor time"


for title, export, kind in ("cache", b"torn", CACHE), ("zero", b"over", ZEROES), ("trim", b"over", TRIM):
    clients = [in_transmission(export, OPT_EXTENDED) for _ in range(CLIENTS)]
    for s in clients:
        s.sendall(b"".join(long_request(kind, 0, DISK) for _ in range(DEPTH)))
    becomes_busy()
    for s in clients:
        s.close()
    print(f"{title:<8} {becomes_idle():>6.2f} s of processor time after the clients had gone", flush=True)

# Who says that it goes is another matter: its requests are carried out.
PART, LAST = 16 << 30, (16 << 30) - 65536
s = in_transmission(b"farewell", OPT_EXTENDED)
s.sendall(long_request(READ, LAST, 4096))
assert b"x" * 512 in exactly(s, 32 + 8 + 4096), "there is nothing to be zeroed"
s.sendall(long_request(ZEROES, 0, PART) + long_request(DISC, 0, 0))
s.close()
s = in_transmission(b"farewell")
end = time.monotonic() + 60
while True:
    s.sendall(request(READ, LAST, 4096))
    if exactly(s, 16 + 4096)[16:] == bytes(4096):
        break
    assert time.monotonic() < end, "what was asked for before NBD_CMD_DISC is not done"
    time.sleep(0.02)
print("what was asked for before NBD_CMD_DISC is done")
