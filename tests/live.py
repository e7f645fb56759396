# SPDX-License-Identifier: BSD-3-Clause
"""What the live tests share: a server and its log, and clients under verified load (live_load.py)."""

import os
import pickle
import signal
import subprocess
import sys
import time

import nbd

HERE = os.path.dirname(os.path.abspath(__file__))
LONG = 120  # seconds that nothing takes, however slow the machine is


def wait_until(what, condition):
    deadline = time.monotonic() + LONG
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            sys.exit("waited %d seconds in vain: %s" % (LONG, what))
        time.sleep(0.002)


class Log:
    """A log file, read as it grows."""

    def __init__(self, path):
        self.path, self.at, self.rest = path, 0, ""

    def lines(self):
        try:
            with open(self.path, "rb") as f:
                f.seek(self.at)
                data = f.read()
        except FileNotFoundError:
            return []
        self.at += len(data)
        text = self.rest + data.decode("utf-8", "replace")
        *lines, self.rest = text.split("\n")
        return lines

    def wait(self, *parts):
        """The next line that has one of PARTS."""
        found = []

        def look():
            for line in self.lines():
                if any(p in line for p in parts):
                    found.append(line)
            return found

        return wait_until("log: " + " or ".join(parts), look)[0]


class Load:
    """A client process."""

    def __init__(self, uri, begin, length, **env):
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "live_load.py"), uri, str(begin), str(length)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ, **env))
        self.expect("ready")

    def expect(self, word):
        line = self.process.stdout.readline().split()
        if not line or line[0] != word:
            self.process.wait()
            sys.exit("a client under load has failed (status %s)" % self.process.returncode)
        return line

    def alive(self):
        if self.process.poll() is not None:
            sys.exit("a client under load has failed (status %s)" % self.process.returncode)

    def tell(self, text):
        try:
            self.process.stdin.write(text + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.alive()

    def mark(self, name):
        """Requests since the last mark, and the latencies' median, 99th percentile and maximum in
        milliseconds."""
        self.tell("mark " + name)
        n, *ms = self.expect(name)[1:]
        return [int(n)] + [float(x) for x in ms]

    def end(self):
        self.tell("end")
        n = int(self.expect("end")[1])
        if self.process.wait() != 0:
            sys.exit("a client under load has failed (status %s)" % self.process.returncode)
        return n

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def uri(socket, export=""):
    return "nbd+unix:///%s?socket=%s" % (export, os.path.abspath(socket))


def listens(socket):
    """Whether somebody accepts connections there: that there is a file does not say so yet."""
    with open("/proc/net/unix") as f:
        return any(len(x) == 8 and x[3] == "00010000" and x[7] == socket for x in map(str.split, f))


def exports(socket):
    """Names and descriptions of what a server offers."""
    found = {}
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(uri(socket))
    h.opt_list(lambda name, description: found.update({name: description}) or 0)
    h.opt_abort()
    return found


def verify_dump(where, dump):
    """Whether all that a client (DUMP=FILE) had been told is written is there: of what was under way,
    each sector may be old or new."""
    with open(dump, "rb") as f:
        lanes = pickle.load(f)
    h = nbd.NBD()
    h.connect_uri(where)
    for start, model, doubt in lanes:
        found = b"".join(h.pread(min(1 << 20, len(model) - at), start + at)
                         for at in range(0, len(model), 1 << 20))
        for at in range(0, len(model), 512):
            sector = found[at:at + 512]
            if sector == model[at:at + 512]:
                continue
            if doubt and doubt[0] <= at < doubt[0] + len(doubt[1]) and \
                    sector == doubt[1][at - doubt[0]:at - doubt[0] + 512]:
                continue
            sys.exit("%s: what was written at %d is lost" % (where, start + at))
    h.shutdown()


def stop(pid, sig=signal.SIGTERM):
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        pass
