# SPDX-License-Identifier: BSD-3-Clause
"""An NBD client with libnbd's names, as far as live_load.py wants them, and other manners: it sends and
receives in pieces that end anywhere, does not listen at times, speaks extended headers whatever libnbd
does, and counts every byte: what is not a reply to what it asked for is an error.
"""

import select
import socket
import struct
import time
from urllib.parse import parse_qs, urlsplit

OPTION, OPTION_REPLY = 0x49484156454F5054, 0x3E889045565A9
SIMPLE, CHUNK, EXTENDED = 0x67446698, 0x668E33EF, 0x6E8A278C
READ, WRITE, DISC, FLUSH, ZEROES, STATUS = 0, 1, 2, 3, 6, 7
FUA, PAYLOAD = 1, 32
MIB = 1 << 20


class Error(Exception):
    pass


class Command:
    def __init__(self, kind, offset, length, buffer=None, extents=None):
        self.kind, self.offset, self.length = kind, offset, length
        self.buffer, self.extents = buffer, extents
        self.covered, self.error, self.done = 0, 0, False


class NBD:
    def __init__(self, mode, rng):
        self.mode, self.rng = mode, rng
        self.out, self.inp = bytearray(), bytearray()
        self.commands = {}
        self.deaf_until = 0

    # ---- the handshake

    def take(self, n):
        data = self.s.recv(n, socket.MSG_WAITALL) if n else b""
        if len(data) != n:
            raise Error("disconnected in the handshake")
        return data

    def option(self, number, data=b""):
        self.s.sendall(struct.pack(">QII", OPTION, number, len(data)) + data)
        while True:
            magic, option, kind, n = struct.unpack(">QIII", self.take(20))
            text = self.take(n)
            if magic != OPTION_REPLY or option != number or kind & 1 << 31:
                raise Error("option %d: %#x %r" % (number, kind, text))
            if kind == 1:
                return

    def connect_uri(self, uri):
        parts = urlsplit(uri)
        name = parts.path.lstrip("/").encode()
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(parse_qs(parts.query)["socket"][0])
        self.take(18)
        self.s.sendall(struct.pack(">I", 3))
        if self.mode != "simple":
            self.option({"structured": 8, "extended": 11}[self.mode])
            query = b"base:allocation"
            self.option(10, struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(query)) + query)
        self.option(7, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        self.s.setblocking(False)

    # ---- requests

    def begin(self, command, flags=0, payload=b""):
        cookie = self.rng.getrandbits(64)
        if self.mode == "extended":
            flags |= PAYLOAD if payload else 0
            self.out += struct.pack(">IHHQQQ", 0x21E41C71, flags, command.kind, cookie, command.offset,
                                    command.length)
        else:
            self.out += struct.pack(">IHHQQI", 0x25609513, flags, command.kind, cookie, command.offset,
                                    command.length)
        self.out += payload
        self.commands[cookie] = command
        return cookie

    def aio_pread(self, buffer, offset):
        return self.begin(Command(READ, offset, len(buffer), buffer))

    def aio_pwrite(self, buffer, offset, flags=0):
        return self.begin(Command(WRITE, offset, len(buffer)), flags, buffer)

    def aio_zero(self, n, offset, flags=0):
        return self.begin(Command(ZEROES, offset, n), flags)

    def aio_flush(self):
        return self.begin(Command(FLUSH, 0, 0))

    def aio_command_completed(self, cookie):
        command = self.commands[cookie]
        if command.done:
            del self.commands[cookie]
            if command.error:
                raise Error("command %d: error %d" % (command.kind, command.error))
            if command.kind == READ and command.covered != command.length:
                raise Error("a read of %d bytes got %d" % (command.length, command.covered))
        return command.done

    def wait(self, cookie):
        while not self.aio_command_completed(cookie):
            self.poll(1000)

    def pread(self, n, offset):
        buffer = bytearray(n)
        self.wait(self.aio_pread(buffer, offset))
        return bytes(buffer)

    def pwrite(self, data, offset):
        self.wait(self.aio_pwrite(data, offset))

    def zero(self, n, offset):
        self.wait(self.aio_zero(n, offset))

    def block_status(self, n, offset, callback):
        extents = []
        self.wait(self.begin(Command(STATUS, offset, n, extents=extents)))
        callback("base:allocation", offset, extents, None)

    # ---- moving bytes

    def poll(self, timeout):
        now = time.monotonic()
        if self.rng.random() < 0.004:
            self.deaf_until = now + self.rng.random() * 0.3
        deaf = now < self.deaf_until
        r, w, _ = select.select([] if deaf else [self.s], [self.s] if self.out else [], [],
                                0.01 if deaf else timeout / 1000)
        if w:
            del self.out[:self.s.send(self.out[:self.piece()])]
        if r:
            data = self.s.recv(self.piece())
            if not data:
                raise Error("disconnected")
            self.inp += data
            while self.parse():
                pass

    def piece(self):
        return self.rng.choice((1, 13, 27, 31, 4096, 65536, 65536, MIB, MIB, MIB, MIB, MIB))

    # ---- replies

    def parse(self):
        """One reply, or chunk of one; false if not all of it is here."""
        if len(self.inp) < 4:
            return False
        magic, = struct.unpack_from(">I", self.inp)
        if magic == SIMPLE and self.mode != "extended":
            return self.parse_simple()
        if magic == (EXTENDED if self.mode == "extended" else CHUNK) and self.mode != "simple":
            return self.parse_chunk()
        raise Error("%#x is no reply's magic number" % magic)

    def find(self, cookie):
        command = self.commands.get(cookie)
        if not command or command.done:
            raise Error("a reply to nothing (%#x)" % cookie)
        return command

    def parse_simple(self):
        if len(self.inp) < 16:
            return False
        _, error, cookie = struct.unpack_from(">IIQ", self.inp)
        command = self.find(cookie)
        n = command.length if command.kind == READ and not error else 0
        if n and self.mode != "simple":
            raise Error("a simple reply to a read")
        if len(self.inp) < 16 + n:
            return False
        if n:
            command.buffer[:] = self.inp[16:16 + n]
            command.covered = n
        del self.inp[:16 + n]
        command.error, command.done = error, True
        return True

    def parse_chunk(self):
        form = ">IHHQQQ" if self.mode == "extended" else ">IHHQI"
        size = struct.calcsize(form)
        if len(self.inp) < size:
            return False
        _, flags, kind, cookie, *_, n = struct.unpack_from(form, self.inp)
        command = self.find(cookie)
        if n > 64 * MIB:
            raise Error("a chunk of %d bytes" % n)
        if len(self.inp) < size + n:
            return False
        payload = bytes(self.inp[size:size + n])
        del self.inp[:size + n]
        self.take_chunk(command, kind, payload)
        command.done = bool(flags & 1)
        return True

    def take_chunk(self, command, kind, payload):
        if kind & 1 << 15:
            command.error, = struct.unpack_from(">I", payload)
        elif kind in (1, 2) and command.kind == READ:
            offset, = struct.unpack_from(">Q", payload)
            n = len(payload) - 8 if kind == 1 else struct.unpack_from(">I", payload, 8)[0]
            at = offset - command.offset
            if at != command.covered or at + n > command.length:  # our server sends them in their order
                raise Error("bytes %d+%d of a read of %d after %d" % (at, n, command.length, command.covered))
            command.buffer[at:at + n] = payload[8:] if kind == 1 else bytes(n)
            command.covered += n
        elif kind == (6 if self.mode == "extended" else 5) and command.kind == STATUS:
            form, skip = (">QQ", 8) if kind == 6 else (">II", 4)
            for pair in struct.iter_unpack(form, payload[skip:]):
                command.extents += pair
        elif kind != 0 or payload:
            raise Error("a chunk of type %d, %d bytes, in reply to %d" % (kind, len(payload), command.kind))

    # ---- the end

    def aio_is_dead(self):
        return False

    aio_is_closed = aio_is_dead

    def shutdown(self):
        if self.inp or self.commands:
            raise Error("%d bytes too many, %d commands" % (len(self.inp), len(self.commands)))
        self.begin(Command(DISC, 0, 0))
        self.s.setblocking(True)
        self.s.sendall(self.out)
        if self.s.recv(1):
            raise Error("more bytes after the last reply")
        self.s.close()
