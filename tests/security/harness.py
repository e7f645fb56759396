# SPDX-License-Identifier: BSD-3-Clause
"""Runs our programs on hostile images, and looks at what became of it.

A program must end by itself within a bound, by exit and not by a signal, with one line that says why if it
failed, in bounded memory; it must not change an image that it refuses, nor open a file that it was
not told to.  Whatever is not so raises Sin, with what was seen.

Environment: NBDCOW, NBDCOW_IMG, NBDKIT, NBDKIT_PLUGIN (a program that was not built is left out), PLUGIN_PRELOAD
(built with a sanitizer: the plugin is left out, and memory is not measured).
"""

import ctypes
import hashlib
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import qcow2  # noqa: E402

NBDCOW = os.environ.get("NBDCOW", "")
IMG = os.environ.get("NBDCOW_IMG", "")
NBDKIT = os.environ.get("NBDKIT", "nbdkit")
PLUGIN = os.environ.get("NBDKIT_PLUGIN", "")
SANITIZED = bool(os.environ.get("SANITIZED"))
SECONDS = 60  # the longest that anything may take; a busy machine with a sanitizer is slow
MIB = 1 << 20


class Sin(Exception):
    """What a program did that it must not do."""


class Result:
    def __init__(self, name, status, out, err, mib):
        self.name, self.status, self.out, self.err, self.mib = name, status, out, err, mib

    def __str__(self):
        return "%s: status %s, %d MiB: %s %s" % (
            self.name,
            self.status,
            self.mib,
            self.out[-300:],
            self.err[-600:],
        )


def run(name, argv, seconds=SECONDS, mib=256, stack=None):
    """Runs ARGV, which must end by itself within SECONDS, using at most MIB of memory."""

    def limits():
        if stack and not SANITIZED:
            resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, preexec_fn=limits)
        end = time.monotonic() + seconds
        pid = 0
        while pid == 0 and time.monotonic() < end:
            pid, status, usage = os.wait4(p.pid, os.WNOHANG)
            if pid == 0:
                time.sleep(0.001)
        if pid == 0:
            p.kill()
            _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        r = Result(
            name,
            p.returncode,
            out.read().decode("utf-8", "surrogateescape"),
            err.read().decode("utf-8", "surrogateescape"),
            usage.ru_maxrss // 1024,
        )
    if pid == 0:
        raise Sin("%s: did not end within %d seconds: %s" % (name, seconds, r.err[-300:]))
    if r.status < 0:
        raise Sin("%s: ended by signal %d: %s" % (name, -r.status, r.err[-2000:]))
    if "Sanitizer" in r.err or "runtime error" in r.err or "ssertion" in r.err:
        raise Sin(str(r))
    if r.mib > mib and not SANITIZED:
        raise Sin("%s: used %d MiB, more than %d" % (name, r.mib, mib))
    return r


def digest(name):
    h = hashlib.sha256()
    with open(name, "rb") as f:
        for piece in iter(lambda: f.read(MIB), b""):
            h.update(piece)
    return h.hexdigest()


# ---- files that nobody may open ----------------------------------------------------------------


class Watch:
    """Tells whether one of the files was opened by anybody (inotify).

    with Watch("secret") as w:
        ...
    Raises Sin at the end if so, unless w.expected is set.
    """

    IN_OPEN = 0x20

    def __init__(self, *names):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self.names = {}
        for name in names:
            wd = self.libc.inotify_add_watch(self.fd, name.encode(), self.IN_OPEN)
            if wd < 0:
                raise OSError(ctypes.get_errno(), name)
            self.names[wd] = name

    def opened(self):
        """Names of those that were, since the last call."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        found, at = [], 0
        while at < len(data):
            wd, _, _, n = struct.unpack_from("iIII", data, at)
            found.append(self.names[wd])
            at += 16 + n
        return found

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        found = self.opened()
        os.close(self.fd)
        if found and kind is None:
            raise Sin("%s was opened" % ", ".join(sorted(set(found))))


# ---- servers -----------------------------------------------------------------------------------


class Server:
    """A server of ours, on a unix socket.  As a context: started, and ended.

    started says whether it serves; if not, result says how it ended.
    """

    count = 0

    def __init__(self, kind, image, options=(), seconds=SECONDS):
        Server.count += 1
        self.kind = kind
        self.socket = os.path.abspath("sock-%d" % Server.count)
        self.pidfile = os.path.abspath("pid-%d" % Server.count)
        self.log = os.path.abspath("log-%d" % Server.count)
        self.uri = "nbd+unix:///?socket=" + self.socket
        os.makedirs("state", mode=0o700, exist_ok=True)
        if kind == "nbdcow":
            argv = [NBDCOW, "-t", "-e", "0", "-k", self.socket, "--pid-file=" + self.pidfile, "--state-dir=off"]
            argv += list(options) + (["--", image] if image else [])
        else:
            argv = [NBDKIT, "-f", "-U", self.socket, "-P", self.pidfile]
            argv += [o for o in options if o == "-r"] + [PLUGIN, "state-dir=off", "file=" + image]
            argv += [plugin_option(o) for o in options if o != "-r"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + seconds
        self.started = False
        while not self.started and self.process.poll() is None:
            if time.monotonic() > end:
                self.process.kill()
                self.process.wait()
                raise Sin("%s: neither serves nor ends: %s" % (kind, self.text()))
            self.started = self.has_pid()
            time.sleep(0.002)

    def has_pid(self):
        try:
            return os.path.getsize(self.pidfile) > 0
        except FileNotFoundError:  # not yet, or no more
            return False

    def text(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()

    def rss(self):
        """MiB"""
        with open("/proc/%d/status" % self.process.pid, encoding="ascii") as f:
            for line in f:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) // 1024
        return 0

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Sin("%s: did not end on SIGTERM: %s" % (self.kind, self.text())) from None
        if status < 0 and -status != signal.SIGTERM:
            raise Sin("%s: ended by signal %d: %s" % (self.kind, -status, self.text()))
        if "Sanitizer" in self.text() or "runtime error" in self.text():
            raise Sin("%s: %s" % (self.kind, self.text()))
        return status

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        try:
            self.stop()
        except Sin:
            if kind is None:
                raise
        for name in (self.socket, self.pidfile, self.log):
            if os.path.exists(name):
                os.unlink(name)


def plugin_option(option):
    """An option of nbdcow, as the plugin calls it."""
    option = option.lstrip("-")
    return option if "=" in option else option + "=on"


def kinds():
    """The servers that were built."""
    out = ["nbdcow"] if os.path.exists(NBDCOW) else []
    if os.path.exists(PLUGIN) and not SANITIZED:
        out.append("plugin")
    return out


# ---- what becomes of an image ------------------------------------------------------------------


def one_line(r, words=(), status=1):
    """R failed, in one line that has each of WORDS (or one of each tuple of words) in it."""
    if r.status != status:
        raise Sin("%s instead of status %d" % (r, status))
    lines = r.err.strip().split("\n")
    if len(lines) != 1:
        raise Sin("%s: not one line" % r)
    for word in words:
        any_of = word if isinstance(word, tuple) else (word,)
        if not any(w.lower() in lines[0].lower() for w in any_of):
            raise Sin("%s: no word of %s" % (r, any_of))


def serve_refused(kind, image, words=(), options=()):
    before = digest(image) if os.path.isfile(image) else None
    with Server(kind, image, options) as s:
        if s.started:
            raise Sin("%s serves %s all the same" % (kind, image))
        one_line(Result(kind, s.process.returncode, "", s.text(), 0), words)
    if before and digest(image) != before:
        raise Sin("%s changed %s" % (kind, image))


TOOLS = {
    "info": ["info", "--output=json"],
    "check": ["check"],
    "map": ["map", "--output=json"],
    "convert": ["convert", "-O", "raw"],
}


def tool(name, image, *more, seconds=SECONDS, mib=256, fmt="qcow2", stack=None):
    argv = [IMG] + TOOLS[name] + (["-f", fmt] if fmt else []) + list(more) + [image]
    if name == "convert":
        argv.append("out.raw")
    r = run("nbdcow-img " + name, argv, seconds, mib, stack=stack)
    if os.path.exists("out.raw"):
        size = os.stat("out.raw").st_size
        if size <= 64 * MIB:
            with open("out.raw", "rb") as f:
                r.data = f.read()
        os.unlink("out.raw")
    return r


def refused(image, *words, tools=("info", "check", "map", "convert"), options=()):
    """All programs refuse IMAGE, in one line with WORDS."""
    before = digest(image)
    for kind in kinds():
        serve_refused(kind, image, words, options)
    for name in tools:
        one_line(tool(name, image, *[backing_mode(o) for o in options]), words)
    if digest(image) != before:
        raise Sin("%s was changed" % image)


def without_refcounts(image, *words):
    """All programs refuse IMAGE, but for the check, which says what is wrong and could mend it."""
    refused(image, *words, tools=("info", "map", "convert"))
    before = digest(image)
    r = tool("check", image)
    if r.status != 2 or "refcount" not in r.out + r.err:
        raise Sin("%s instead of status 2" % r)
    if digest(image) != before:
        raise Sin("%s was changed" % image)


def without_snapshots(image, *words):
    """Nobody writes to IMAGE, nor checks it; who only reads is told that it has no snapshots."""
    before = digest(image)
    for kind in kinds():
        if kind == "nbdcow":
            serve_refused(kind, image, words)
            continue
        # The plugin opens it for the first client, who wants to write.
        with Server(kind, image) as s:
            if s.started and run("reading from " + kind, [IMG, "convert", "-f", "raw", "-O", "raw", s.uri, "out.raw"]).status == 0:
                raise Sin("%s serves %s all the same" % (kind, image))
    for name in ("info", "map", "convert"):
        r = tool(name, image)
        if r.status:
            raise Sin(str(r))
        r.status = 1
        one_line(r, ("without its snapshots", *words))
    one_line(tool("check", image), words)
    if digest(image) != before:
        raise Sin("%s was changed" % image)


def backing_mode(option):
    """An option of the servers, as nbdcow-img calls it."""
    return option.replace("--backing=", "--backing-mode=")


def bounded(image, tools=("info", "check", "map", "convert"), mib=256, statuses=(0, 1, 2, 3)):
    """Each program does something with IMAGE, in bounded time and memory."""
    for name in tools:
        r = tool(name, image, mib=mib)
        if r.status not in statuses:
            raise Sin(str(r))
    for kind in kinds():
        with Server(kind, image, ["-r"]) as s:
            if s.started:
                r = run("reading from " + kind, [IMG, "convert", "-f", "raw", "-O", "raw", s.uri, "out.raw"])
                if r.status not in (0, 1):
                    raise Sin(str(r))
                if s.process.poll() is not None:
                    raise Sin("%s did not survive a reader: %s" % (kind, s.text()))


# ---- images ------------------------------------------------------------------------------------


def create(name, size="8M", **options):
    argv = [IMG, "create", "-q", "-f", "qcow2"]
    if options:
        argv += ["-o", ",".join("%s=%s" % (k, v) for k, v in options.items())]
    r = run("create", argv + [name, str(size)])
    if r.status:
        raise RuntimeError(str(r))
    return qcow2.Image(name, True)


def filled(name, size=MIB, cluster=65536, more=()):
    """An image whose data is there: byte i of cluster number n is n + 1."""
    with open("fill.raw", "wb") as f:
        for n in range(size // cluster):
            f.write(bytes([n % 255 + 1]) * cluster)
    r = run("convert", [IMG, "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=%d" % cluster, *more, "fill.raw", name])
    os.unlink("fill.raw")
    if r.status:
        raise RuntimeError(str(r))
    return qcow2.Image(name, True)


def add_extension(image, magic, data):
    extensions, _ = image.extensions()
    image.write_extensions([e for e in extensions if e[0] != magic] + [(magic, data)])


def set_names(name, backing=None, fmt=None, data_file=None, raw=False):
    """Writes these names into an image, whatever they are (bytes or str)."""
    image = qcow2.Image(name, True)
    extensions = [e for e in image.extensions()[0] if e[0] not in (0xE2792ACA, 0x44415441)]
    if fmt:
        extensions.append((0xE2792ACA, as_bytes(fmt)))
    if data_file is not None:
        extensions.append((0x44415441, as_bytes(data_file)))
        image.set("incompatible_features", image.get("incompatible_features") | 4)
        if raw:
            image.set("autoclear_features", image.get("autoclear_features") | 2)
    image.set("backing_file_offset", 0)
    image.write_extensions(extensions)
    if backing is not None:
        at = image.extensions()[1] + 8
        image.pwrite(at, as_bytes(backing))
        image.set("backing_file_size", len(as_bytes(backing)))
        image.set("backing_file_offset", at)
    return image


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


# ---- the table ---------------------------------------------------------------------------------


class Table:
    """name, what was wrong (elsewhere), what ours does, and a function that attacks."""

    def __init__(self, title, *heads):
        self.title, self.rows = title, []
        self.heads = heads or ("name", "what was wrong", "what ours does")

    def sin(self, name, wrong, ours):
        def add(function):
            self.rows.append((name, wrong, ours, function))
            return function

        return add

    def main(self):
        only = sys.argv[1:]
        verdicts = []
        for name, wrong, ours, function in self.rows:
            if only and not any(o in name for o in only):
                continue
            started = time.monotonic()
            try:
                verdict = function() or "pass"
            except (Sin, ConnectionError) as e:  # a server that is not there any more
                verdict = "FAIL"
                sys.stderr.write("FAIL: %s: %s\n" % (name, e))
            verdicts.append((name, wrong, ours, verdict, time.monotonic() - started))
        print("\n%s\n\n%s | verdict" % (self.title, " | ".join(self.heads)))
        print("--- | --- | --- | ---")
        for name, wrong, ours, verdict, seconds in verdicts:
            print("%s | %s | %s | %s" % (name, wrong, ours, verdict))
        if os.environ.get("TIMES"):
            for v in sorted(verdicts, key=lambda v: -v[4])[:10]:
                sys.stderr.write("%6.2f s  %s\n" % (v[4], v[0]))
        if not verdicts:
            sys.exit("no row of that name")
        failed = [v[0] for v in verdicts if v[3] == "FAIL"]
        print("\n%d rows, %d failed" % (len(verdicts), len(failed)))
        sys.exit(1 if failed else 0)
