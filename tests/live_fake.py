# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of takeovers share: the control socket, and the new server's side of a takeover."""

import json
import os
import signal
import socket as sockets
import struct
import sys


def qmp(path):
    s = sockets.socket(sockets.AF_UNIX)
    s.connect(path)
    f = s.makefile("rw")
    assert "QMP" in json.loads(f.readline())
    def call(command, **arguments):
        f.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        f.flush()
        while True:
            answer = json.loads(f.readline())
            if "return" in answer or "error" in answer:
                return answer
    call("qmp_capabilities")
    return call


def status(path):
    """What query-status says; None: there is no server, or it is just leaving."""
    try:
        return qmp(path)("query-status")["return"]
    except (OSError, ValueError):
        return None


MAGIC, VERSION = 0x6E6264636F77746F, 1


class Fake:
    """The new one's side of the protocol, as far as we want."""

    def __init__(self, control):
        self.path = os.path.abspath("fake.sock")
        if os.path.exists(self.path):
            os.unlink(self.path)
        listener = sockets.socket(sockets.AF_UNIX)
        listener.bind(self.path)
        listener.listen(1)
        self.control = sockets.socket(sockets.AF_UNIX)
        self.control.connect(control)
        self.control.sendall(
            b'{"execute":"qmp_capabilities"}\n' +
            json.dumps({"execute": "takeover", "arguments": {"socket": self.path}}).encode() + b"\n")
        self.s, _ = listener.accept()

    def receive(self):
        def take(n):
            data = b""
            while len(data) < n:
                part, fds, _, _ = sockets.recv_fds(self.s, n - len(data), 250)
                for fd in fds:
                    self.fds.append(fd)
                if not part:
                    raise EOFError
                data += part
            return data
        self.fds = getattr(self, "fds", [])
        magic, version, size, blob, n, _ = struct.unpack("=QIIQII", take(32))
        assert magic == MAGIC and version == VERSION
        body = json.loads(take(size))
        take(blob)
        return body

    def send(self, body, version=VERSION, magic=MAGIC):
        text = json.dumps(body).encode() if not isinstance(body, bytes) else body
        self.s.sendall(struct.pack("=QIIQII", magic, version, len(text), 0, 0, 0) + text)

    def hang_up(self):
        """The other does."""
        try:
            while self.s.recv(4096):
                pass
        except ConnectionResetError:
            pass

    def until(self, kind):
        while self.receive()["type"] != kind:
            pass


def fake(control, stage, victim=0, last=None):
    """In a process of its own: goes as far as STAGE, and dies there; or kills VICTIM, or does LAST, first."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, (stage, status)
        return
    try:
        f = Fake(control)
        if stage != "connected":
            f.receive()
        if stage == "garbage":
            f.send(b"}{")
            f.hang_up()
        elif stage == "version":
            f.send({"type": "ready"}, version=77)
            f.hang_up()
        elif stage == "failed":
            f.send({"type": "failed", "error": "it does not want to"})
            f.hang_up()
        elif stage not in ("connected", "offer"):
            f.send({"type": "ready"})
            if stage != "ready":
                f.until("guards")
            if stage == "stopped":
                f.send(b"}{")
                while True:
                    os.kill(os.getpid(), signal.SIGSTOP)
            if stage not in ("ready", "guards"):
                f.send({"type": "opened"})
            if stage in ("sessions", "taken", "go"):
                f.until("end")
            if stage in ("taken", "go"):
                f.send({"type": "taken"})
            if stage == "go":
                f.until("go")
        if victim:
            os.kill(victim, signal.SIGKILL)
        if last:
            last()
    except BaseException as e:
        print("fake:", repr(e), file=sys.stderr)
        os._exit(1)
    os.kill(os.getpid(), signal.SIGKILL)
