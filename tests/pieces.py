# SPDX-License-Identifier: BSD-3-Clause
#
# What becomes of a read whose reply is to be one piece, in each mode: run by test-pieces.sh
#
#     pieces.py SOCKET LENGTH
#
# from the beginning of a disk of 0xff.  Prints data, error, or disconnected.

import struct, sys

import rawnbd
from rawnbd import *

DF = 4
EIO = 5


def answer_to(s, structured, length):
    s.sendall(request(READ, 0, length, DF if structured else 0))
    if structured:
        _, flags, kind, _, n = struct.unpack(">IHHQI", exactly(s, 20))
        assert flags == 1, f"flags {flags}"
        failed = kind & 0x8000
        error = struct.unpack(">I", exactly(s, n)[:4])[0] if failed else 0
        exactly(s, 0 if failed else 8)
    else:
        _, error, _ = struct.unpack(">IIQ", exactly(s, 16))
    if error:
        assert error == EIO, f"error {error}"
        return "error"
    data = exactly(s, length)
    assert data.count(b"\xff") == length, "that is not what the disk holds"
    return "data"


def read(structured, length):
    s = in_transmission(b"", OPT_STRUCTURED if structured else None)
    s.settimeout(100)
    try:
        what = answer_to(s, structured, length)
    except ConnectionError:
        return "disconnected"
    assert answer_to(s, structured, 512) == "data", "it does not go on"
    return what


rawnbd.SOCKET = sys.argv[1]
print(*{read(structured, int(sys.argv[2])) for structured in (False, True)})
