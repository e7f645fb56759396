# SPDX-License-Identifier: BSD-3-Clause
"""Clients that say what they like: the NBD protocol from a client's side, with no opinion of what is right.

rawnbd.SOCKET is the server's.
"""

import random
import select
import socket
import struct

SOCKET = ""

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
OPT_EXPORT_NAME, OPT_LIST, OPT_STARTTLS, OPT_GO, OPT_STRUCTURED, OPT_SET_META, OPT_EXTENDED = 1, 3, 5, 7, 8, 10, 11


def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(SOCKET)
    return s


def exactly(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more:
            raise ConnectionError("the server has hung up")
        data += more
    return data


def greeted():
    s = connect()
    exactly(s, 18)
    s.sendall(struct.pack(">I", 3))
    return s


def option(s, number, data=b""):
    s.sendall(struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data)


def answer(s):
    while True:
        _, _, kind, length = struct.unpack(">QIII", exactly(s, 20))
        exactly(s, length)
        if kind == 1 or kind & 0x80000000:
            return kind


def name(text):
    return struct.pack(">I", len(text)) + text


def in_transmission(export, status=None):
    """STATUS: the option that makes replies long enough for block status."""
    s = greeted()
    if status:
        option(s, status)
        answer(s)
        option(s, OPT_SET_META, name(export) + struct.pack(">I", 1) + name(b"base:allocation"))
        answer(s)
    option(s, OPT_GO, name(export) + struct.pack(">H", 0))
    if answer(s) != 1:
        raise ConnectionError("no export " + export.decode())
    return s


def request(kind, offset, length, flags=0):
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, random.getrandbits(64), offset, length)


def long_request(kind, offset, length):
    """With extended headers."""
    return struct.pack(">IHHQQQ", 0x21E41C71, 0, kind, random.getrandbits(64), offset, length)


def stuff(s, data):
    """Sends what the socket takes."""
    s.setblocking(False)
    try:
        s.send(data)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        pass


def drain(socks):
    ready = select.select(socks, [], [], 0.01)[0] if socks else []
    for s in ready:
        try:
            if not s.recv(1 << 20):
                socks.remove(s)
        except BlockingIOError:
            pass
        except OSError:
            socks.remove(s)
