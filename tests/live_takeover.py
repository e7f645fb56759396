#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Takeovers of a running nbdcow under verified load: good ones, and such as fail at every stage.

    live_takeover.py NBDCOW SOCKET CONTROL       in a directory with the images a, b and c (.qcow2)

TAKEOVER_ROUNDS: how many that succeed, and nothing else (default: what fits 8 seconds, at least 5, and all the
others).  SEED.
"""

import json
import os
import random
import signal
import socket as sockets
import select
import shutil
import struct
import subprocess
import sys
import threading
import time

import nbd

import raw_nbd
from live import Load, Log, exports, uri, verify_dump, wait_until
import live_fake
from live_fake import Fake, qmp, status

nbdcow, sock, control = sys.argv[1:4]
seed = os.environ.get("SEED", "0")
rng = random.Random(seed)
rounds = int(os.environ.get("TAKEOVER_ROUNDS", "0"))
SECONDS, LEAST = 8, 5
MIB = 1 << 20

args = ["-t", "-e", "0", "-k", sock, "--control", control, "--pid-file", os.path.abspath("pid"),
        "--log", os.path.abspath("server.log"), "--log-level", "info",
        "--state-dir", os.environ["STATE_DIR"], "--on-enospc=wait", "--watermark=1M",
        "--watermark-exec", "echo $NBDCOW_EXPORT >> '%s'" % os.path.abspath("told")]


def images(**other):
    """The exports, but for those that are others: their settings, or None."""
    files = dict({name: "name=%s,file=%s.qcow2" % (name, name) for name in "abc"}, **other)
    return [word for text in files.values() if text for word in ("--export", text)]


def start(*more, other={}):
    """What it says on stderr goes to stderr.PID, a sanitizer's complaints for one."""
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2> stderr.$$', "sh", nbdcow, *args, *more, *images(**other)])
    process.said = lambda: open("stderr.%d" % process.pid).read()
    return process


def takeover(*more, **other):
    return start("--takeover", control, *more, other=other)


def server_pid():
    """0: there is none, or it is just being written."""
    try:
        with open("pid") as f:
            return int(f.read() or 0)
    except FileNotFoundError:
        return 0


def succeed(old, *more, kill=False):
    """One takeover that works; returns the new server.  KILL: the old one is killed as soon as it may be."""
    new = takeover(*more)
    try:
        if kill:
            wait_until("the new server", lambda: server_pid() == new.pid or new.poll() is not None)
            old.kill()
            old.wait()
        else:
            assert old.wait(120) == 0, "the old server ended with %s" % old.returncode
        wait_until("the pid file", lambda: server_pid() == new.pid)
        assert new.poll() is None, new.said()
        assert qmp(control)("query-status")["return"]["pid"] == new.pid
        assert set(exports(sock)) == set("abc")
        return new
    except BaseException:
        new.kill()
        new.wait()
        raise


# ---- a new server that goes wrong ---------------------------------------------------------------

def fake(stage, victim=0, last=None):
    live_fake.fake(control, stage, victim, last)


STAGES = ["connected", "offer", "garbage", "version", "failed", "ready", "guards", "opened",
          "sessions", "taken", "go", "stopped"]


def survives(old, load, what):
    """The old server still serves, and the clients are well."""
    assert old.poll() is None, "%s: the server has ended with %s" % (what, old.returncode)
    assert qmp(control)("query-status")["return"]["pid"] == old.pid, what
    for l in load:
        l.alive()
    assert server_pid() == old.pid and set(exports(sock)) == set("abc"), what


def fail_in_many_ways(old, loads, log):
    for stage in STAGES:
        fake(stage)
        log.wait("this server goes on")
        survives(old, loads, stage)
    # Real ones, that cannot come up.
    for other, part in (
            ({"b": "name=b,file=missing.qcow2"}, "missing.qcow2"),
            ({"b": "name=b,file=broken.qcow2"}, "broken.qcow2"),
            ({"b": None}, '"b"'),  # it has clients
            ({"a": "name=a,file=b.qcow2", "b": "name=b,file=a.qcow2"}, "another image"),
            ({"a": "name=a,file=a.qcow2,read-only=on"}, '"a"')):
        at = os.path.getsize("server.log")
        new = takeover(**other)
        assert new.wait(120) == 1, (other, new.returncode)
        with open("server.log") as f:
            f.seek(at)
            text = f.read() + new.said()
        assert part in text, (other, text)
        survives(old, loads, other)


def kept(old):
    """What was asked for on the control socket is there after a takeover that has failed, and a watermark
    that was told is not told again."""
    with open("told") as f:
        told = f.read()
    with open("server.log") as f:
        lines = f.read().count("past the watermark")
    s = sockets.socket(sockets.AF_UNIX)
    s.connect(control)
    f = s.makefile("rw")

    def next_with(word):
        while True:
            message = json.loads(f.readline())
            assert "error" not in message, message
            if word in message:
                return message
    def call(command, **arguments):
        f.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        f.flush()
        return next_with("return")["return"]
    def threshold():
        nodes = call("query-named-block-nodes")
        return [n["write_threshold"] for n in nodes if n["node-name"] == "b"][0]

    s.settimeout(120)
    call("qmp_capabilities")
    # What the load has not allocated yet does not come that far.
    highest = os.path.getsize("b.qcow2") + 28 * MIB
    call("block-set-write-threshold", **{"node-name": "b", "write-threshold": highest})
    assert threshold() == highest
    fake("opened")
    call("query-status")  # answered when the images are open again, or before: the next one waits for them
    assert threshold() == highest
    h = nbd.NBD()
    h.connect_uri(uri(sock, "b"))
    for at in [*range(26 * MIB, 48 * MIB, MIB), *range(52 * MIB, 64 * MIB, MIB)]:
        h.pwrite(b"x" * MIB, at)
    h.shutdown()
    while next_with("event")["event"] != "BLOCK_WRITE_THRESHOLD":
        pass
    assert threshold() == 0
    s.close()
    with open("told") as f:
        assert f.read() == told
    with open("server.log") as f:
        assert f.read().count("past the watermark") == lines


def replaced():
    """An image that has become another file cannot be opened again: its export goes, the others stay, and
    its name can be used anew."""
    def replace():
        shutil.copyfile("a.qcow2", "copy.qcow2")
        os.rename("copy.qcow2", "a.qcow2")

    server = start()
    try:
        wait_until("the server", server_pid)
        clients = {name: nbd.NBD() for name in "ab"}
        for name in clients:
            clients[name].connect_uri(uri(sock, name))
        fake("guards", last=replace)
        clients["b"].pread(512, 0)
        try:
            clients["a"].pread(512, 0)
            assert False, "export a has another image than its client knows"
        except nbd.Error:
            pass
        assert set(exports(sock)) == set("bc")
        call = qmp(control)
        assert "return" in call("block-export-del", id="a"), "the export that has no image stays"
        assert "error" in call("block-export-del", id="a")
        clients.clear()
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def kill_new_ones():
    """Real ones, killed at some moment: the old one goes on, unless the new one was the server already;
    then what was acknowledged is there when the next one starts."""
    old = start()
    loads, new = [], None
    survived = 0
    try:
        wait_until("the server", server_pid)
        loads = [Load(uri(sock, name), 0, 16 * MIB, DUMP="dump-" + name) for name in "ab"]
        for _ in range(int(os.environ.get("TAKEOVER_KILLS", "10"))):
            new = takeover()
            time.sleep(rng.random() ** 2 * 0.06)
            new.kill()
            new.wait()
            wait_until("the old one to end, or to answer", lambda: old.poll() is not None or status(control))
            if old.poll() is not None:
                break
            survives(old, loads, "kill -9")
            survived += 1
        if old.poll() is None:
            for l in loads:
                l.end()
            old.send_signal(signal.SIGTERM)
            assert old.wait(120) == 0
        else:
            for l in loads:
                assert l.process.wait(120) == 3, l.process.returncode
            os.unlink("pid")
            old = start()
            wait_until("the server", server_pid)
            for name in "ab":
                verify_dump(uri(sock, name), "dump-" + name)
            old.send_signal(signal.SIGTERM)
            assert old.wait(120) == 0
        print("%d new servers were killed before they served" % survived)
    finally:
        for l in loads:
            l.kill()
        if old.poll() is None:
            old.kill()
            old.wait()


def kill_the_old_one(stage):
    """It dies in the middle: its clients are disconnected, but what they were told is written is there."""
    for f in "pid", sock, control:
        if os.path.exists(f):
            os.unlink(f)
    old = start()
    new = None
    loads = []
    try:
        wait_until("the server", server_pid)
        loads = [Load(uri(sock, name), 0, 16 * MIB, DUMP="dump-" + name) for name in "ab"]
        time.sleep(0.3)
        if stage == "some moment":
            new = takeover()
            time.sleep(rng.random() * 0.05)
            old.kill()
        else:
            fake(stage, old.pid)
        old.wait()
        if new:
            wait_until("the new server to give up, or to serve",
                       lambda: new.poll() is not None or server_pid() == new.pid)
            if new.poll() is None:  # it is the server: then that is killed
                new.kill()
                new.wait()
        for l in loads:
            assert l.process.wait(120) == 3, (stage, l.process.returncode)
        os.unlink("pid")
        old = start()
        wait_until("the server", server_pid)
        for name in "ab":
            verify_dump(uri(sock, name), "dump-" + name)
        old.send_signal(signal.SIGTERM)
        assert old.wait(120) == 0
    finally:
        for l in loads:
            l.kill()
        for p in old, new:
            if p and p.poll() is None:
                p.kill()
                p.wait()


def tls_clients():
    """They are disconnected, and may come back; others notice nothing."""
    if not shutil.which("psktool") or not nbd.NBD().supports_tls():
        print("no TLS clients: there is no psktool, or libnbd has no TLS")
        return
    os.mkdir("psk")
    subprocess.run(["psktool", "-u", "qemu", "-p", "psk/keys.psk"], stdout=subprocess.DEVNULL, check=True)
    more = ["--object", "tls-creds-psk,id=tls0,endpoint=server,dir=%s" % os.path.abspath("psk"),
            "--tls-creds", "tls0", "--tls=optional"]

    def connect():
        h = nbd.NBD()
        h.set_tls(nbd.TLS_REQUIRE)
        h.set_tls_psk_file("psk/keys.psk")
        h.set_tls_username("qemu")
        h.set_export_name("a")
        h.connect_unix(sock)
        assert h.get_tls_negotiated()
        return h

    for f in "pid", sock, control:
        if os.path.exists(f):
            os.unlink(f)
    old, loads = start(*more), []
    try:
        wait_until("the server", server_pid)
        loads = [Load(uri(sock, "b"), 0, 16 * MIB)]
        h = connect()
        for _ in range(3):
            data = rng.randbytes(MIB)
            h.pwrite(data, 0)
            old = succeed(old, *more)
            try:
                h.pread(512, 0)
                sys.exit("a client with TLS was handed over")
            except nbd.Error:
                pass
            h = connect()
            assert h.pread(MIB, 0) == data
        loads[0].end()
        h.shutdown()
        old.send_signal(signal.SIGTERM)
        assert old.wait(120) == 0
    finally:
        for l in loads:
            l.kill()
        if old.poll() is None:
            old.kill()
            old.wait()


# ---- what clients see ---------------------------------------------------------------------------

def start_loads():
    return [Load(uri(sock, "a"), 0, 24 * MIB, LIVE_LARGE="8"), Load(uri(sock, "a"), 24 * MIB, 24 * MIB),
            Load(uri(sock, "b"), 0, 24 * MIB, MODE="simple"),
            Load(uri(sock, "c"), 0, 96 * MIB, MODE="raw-extended", LANES="2", LIVE_LARGE="48"),
            Load(uri(sock, "c"), 96 * MIB, 16 * MIB, MODE="raw-structured"),
            Load(uri(sock, "c"), 112 * MIB, 16 * MIB, MODE="raw-simple", LIVE_LARGE="4")]


SLOW = 128 * MIB, 56 * MIB  # of c: what is read slowly


def slow_readers():
    """Clients whose replies are not all sent when the server changes: one of a reply in one piece, which is
    received little by little all the time, and one of a reply in several, of which some are not made yet."""
    expected = bytes(random.Random("slow").randbytes(1021)) * (SLOW[1] // 1021 + 1)
    begin, n = SLOW[0], 32 * MIB
    s = raw_nbd.NBD("simple", rng)
    s.connect_uri(uri(sock, "c"))
    for at in range(0, SLOW[1], 8 * MIB):
        s.pwrite(expected[at:at + 8 * MIB], begin + at)
    buffer = bytearray(n)
    cookie = s.aio_pread(buffer, begin)
    while s.out:
        s.poll(1000)
    p = raw_nbd.NBD("extended", rng)
    p.connect_uri(uri(sock, "c"))
    parked = bytearray(SLOW[1])
    parked_cookie = p.aio_pread(parked, begin)
    while p.out:
        p.poll(1000)
    failure = []

    def read():
        try:
            s.s.setblocking(True)
            while len(s.inp) < n // 2:
                s.inp += s.s.recv(32768) or sys.exit("the slow client is disconnected")
                time.sleep(0.002)
        except BaseException as e:
            failure.append(e)
    thread = threading.Thread(target=read)
    thread.start()

    def finish():
        thread.join()
        assert not failure, failure
        s.s.setblocking(False)
        s.wait(cookie)
        p.wait(parked_cookie)
        assert buffer == expected[:n] and parked == expected[:SLOW[1]]
        s.shutdown()
        p.shutdown()
    return finish


def sent_once():
    """What the old server says is left to be sent is not sent by it any more."""
    s = raw_nbd.NBD("simple", rng)
    s.connect_uri(uri(sock, "c"))
    n = 32 * MIB
    buffer = bytearray(n)
    cookie = s.aio_pread(buffer, SLOW[0])
    while s.out:
        s.s.send(s.out)
        s.out.clear()
    select.select([s.s], [], [], 120)
    says, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            f = Fake(control)
            f.until("offer")
            f.send({"type": "ready"})
            f.until("guards")
            f.send({"type": "opened"})
            mine = []
            while (m := f.receive())["type"] == "session":
                state = m["state"]
                if (state["read"], state["requests"]) == (n, 1):
                    mine.append(state["unsent"])
            os.write(tell, b"%d\n" % mine[0])
            f.s.recv(1)  # the other does not say anything: until we are killed
        finally:
            os._exit(1)
    try:
        unsent = int(os.read(says, 100))
        assert 0 < unsent < n, unsent
        s.s.settimeout(120)
        while len(s.inp) < 16 + n - unsent:
            s.inp += s.s.recv(16 + n - unsent - len(s.inp))
        assert not select.select([s.s], [], [], 0.5)[0], "the old server goes on sending"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    s.s.setblocking(False)
    s.wait(cookie)
    again = raw_nbd.NBD("simple", rng)
    again.connect_uri(uri(sock, "c"))
    assert buffer == again.pread(n, SLOW[0])
    s.shutdown()
    again.shutdown()


def half_a_request():
    """A client whose handshake, and one whose request, are not complete when the server changes."""
    s = sockets.socket(sockets.AF_UNIX)
    s.connect(sock)
    s.recv(18, sockets.MSG_WAITALL)
    s.sendall(struct.pack(">I", 3) + b"IHAVEOPT"[:5])
    w = sockets.socket(sockets.AF_UNIX)
    w.connect(sock)
    w.recv(18, sockets.MSG_WAITALL)
    name = b"b"
    w.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
    w.recv(10, sockets.MSG_WAITALL)
    data = bytes(range(256)) * 16384  # 4 MiB, and one long write of 16 MiB
    request = struct.pack(">IHHQQI", 0x25609513, 0, 1, 77, 48 * MIB, len(data)) + data
    w.sendall(request[:100000])
    l = sockets.socket(sockets.AF_UNIX)
    l.connect(sock)
    l.recv(18, sockets.MSG_WAITALL)
    l.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 1) + b"a")
    l.recv(10, sockets.MSG_WAITALL)
    long = struct.pack(">IHHQQI", 0x25609513, 0, 1, 78, 48 * MIB, 4 * len(data)) + data * 4
    l.sendall(long[:5000000])

    def finish():
        s.sendall(b"IHAVEOPT"[5:] + struct.pack(">II", 2, 0))
        reply = s.recv(20, sockets.MSG_WAITALL)
        assert struct.unpack(">QIII", reply) == (0x3E889045565A9, 2, 1, 0), reply
        w.sendall(request[100000:])
        l.sendall(long[5000000:])
        for c, cookie in (w, 77), (l, 78):
            reply = c.recv(16, sockets.MSG_WAITALL)
            assert struct.unpack(">IIQ", reply) == (0x67446698, 0, cookie), reply
        h = nbd.NBD()
        h.connect_uri(uri(sock, "b"))
        assert h.pread(len(data), 48 * MIB) == data
        h.shutdown()
        h = nbd.NBD()
        h.connect_uri(uri(sock, "a"))
        for i in range(4):
            assert h.pread(len(data), 48 * MIB + i * len(data)) == data, i
        h.shutdown()
        for c in s, w, l:
            c.close()
    return finish


def main():
    print("SEED=%s" % seed)
    log = Log("server.log")
    old = start()
    loads = []
    try:
        wait_until("the server", server_pid)
        loads = start_loads()
        time.sleep(1.5)
        peace = [l.mark("peace") for l in loads[:3]]
        began, done, pauses = time.monotonic(), 0, []
        while (done < rounds) if rounds else (done < LEAST or time.monotonic() - began < SECONDS):
            finish = half_a_request() if done % 4 == 0 else slow_readers() if done % 4 == 1 else None
            kill = rng.random() < 0.2
            old = succeed(old, kill=kill)
            if not kill:
                pauses.append(float(log.wait("after a pause of").split("after a pause of ")[1].split()[0]))
            if finish:
                finish()
            for l in loads:
                l.alive()
            time.sleep(rng.random() * 0.2)
            done += 1
        for name, before, l in zip("aab", peace, loads[:3]):
            n, p50, p99, most = l.mark("takeovers")
            print("%s: latency in ms: peace p50 %.1f p99 %.1f max %.1f; takeovers p50 %.1f p99 %.1f "
                  "max %.1f" % (name, *before[1:], p50, p99, most))
        pauses.sort()
        print("%d takeovers; pauses in ms: median %.1f, longest %.1f"
              % (done, pauses[len(pauses) // 2], pauses[-1]))
        if not rounds:
            sent_once()
            survives(old, loads, "sent_once")
            fail_in_many_ways(old, loads, log)
            kept(old)
            old = succeed(old)
        print("%d requests verified" % sum(l.end() for l in loads))
        loads = []
        old.send_signal(signal.SIGTERM)
        assert old.wait(120) == 0
        assert not os.path.exists(sock) and not os.path.exists("pid")
    finally:
        for l in loads:
            l.kill()
        if old.poll() is None:
            old.kill()
            old.wait()


main()
if rounds:
    sys.exit()
tls_clients()
replaced()
kill_new_ones()
for moment in ["offer", "ready", "guards", "opened", "sessions", "taken", "go"] + ["some moment"] * 4:
    kill_the_old_one(moment)
print("what was acknowledged by servers that were killed in the middle is all there")
