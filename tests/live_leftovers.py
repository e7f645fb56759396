#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What takeovers and reloads leave behind, and what they keep.

    live_leftovers.py NBDCOW       in a directory with the images a (with a snapshot, first), b, ro, golden and,
                                   over that one, over (.qcow2)

STATE_DIR, NBDCOW_CTL, NBDCOW_IMG; SYSTEMD and METRICS: what nbdcow was built with.  SEED.
"""

import fcntl
import json
import os
import pwd
import random
import shutil
import signal
import socket as sockets
import struct
import subprocess
import sys
import time

import nbd

from live import Log, exports, uri, wait_until
from live_fake import MAGIC, VERSION, fake, qmp, status

nbdcow = sys.argv[1]
seed = os.environ.get("SEED", "0")
rng = random.Random(seed)
MIB = 1 << 20

os.mkdir("run")
sock, control, pid_file, metrics = (os.path.abspath("run/" + n) for n in ("sock", "control", "pid", "metrics"))
log_file = os.path.abspath("server.log")
running = []


def start(*args, paths=(control, pid_file), user=None, env={}, program=nbdcow):
    """A server; what it says on stderr goes to stderr.PID."""
    where = ["--control", paths[0], "--pid-file", paths[1]]
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2> "$0"', os.path.abspath("stderr.%d" % len(running)), program, "-t", "-e", "0",
         "--state-dir", os.environ["STATE_DIR"], "--log", log_file, "--log-level", "info", *where, *args],
        user=user, env=dict(os.environ, **env))
    process.log = "stderr.%d" % len(running)
    process.said = lambda: open(process.log).read()
    running.append(process)
    return process


IMAGES = ["--export", "name=a,file=a.qcow2", "--export", "name=over,file=over.qcow2",
          "--export", "name=ro,file=ro.qcow2,read-only=on"]
MISSING = ["--export", "name=more,file=missing.qcow2"]
METRICS = ["--metrics", "unix:" + metrics] if os.environ["METRICS"] else []
LISTEN = ["-k", sock]


def pid_in(path):
    try:
        with open(path) as f:
            return int(f.read() or 0)
    except FileNotFoundError:
        return 0


def up(server, path=pid_file):
    wait_until("the server", lambda: pid_in(path) == server.pid or server.poll() is not None)
    assert server.poll() is None, server.said()
    return server


def end(server):
    server.send_signal(signal.SIGTERM)
    assert server.wait(120) == 0, server.said()


def listing():
    """All that there is where servers make files, with owners and modes."""
    found = []
    for d in "run", os.environ["STATE_DIR"]:
        for where, dirs, files in os.walk(d):
            for name in dirs + files:
                st = os.lstat(os.path.join(where, name))
                found.append((where, name, oct(st.st_mode), st.st_uid))
    return sorted(found)


def log_from_here():
    log = Log(log_file)
    log.lines()
    return log


def is_over():
    """No takeover is under way."""
    found = status(control)
    return found and not found["takeover"]


def refused(server, *parts):
    assert server.wait(120) == 1, server.returncode
    said = server.said()
    for part in parts:
        assert part in said, (part, said)


# ---- files --------------------------------------------------------------------------------------

def files():
    nothing = listing()
    old = up(start(*LISTEN, *METRICS, *IMAGES))
    client = nbd.NBD()
    client.connect_uri(uri(sock, "a"))
    client.pwrite(b"x" * MIB, 0)
    before = listing()
    other = os.path.abspath("run/control2"), os.path.abspath("run/pid2")

    def same(what):
        now = listing()
        assert now == before, (what, "gone", set(before) - set(now), "new", set(now) - set(before))
        assert old.poll() is None and status(control)["pid"] == old.pid and pid_in(pid_file) == old.pid, what
        assert client.pread(MIB, 0) == b"x" * MIB, what

    for what, new, part in (
            ("images, at the end", lambda: start("--takeover", control, *METRICS, *IMAGES, *MISSING), "missing.qcow2"),
            ("files of its own", lambda: start("--takeover", control, *IMAGES, *MISSING, paths=other), "missing.qcow2"),
            ("sockets, at the beginning",
             lambda: start("--takeover", control, "-k", os.path.abspath("run/sock2"), *IMAGES, paths=other), "sock2")):
        refused(new(), part)
        wait_until(what, is_over)
        same(what)
    for stage in "connected", "offer", "ready", "guards", "opened":
        fake(control, stage)
        wait_until(stage, is_over)
        same(stage)

    # Killed at any moment, and before the running server had heard of it.
    for _ in range(8):
        new = start("--takeover", control, *METRICS, *IMAGES)
        time.sleep(rng.random() ** 2 * 0.05)
        new.kill()
        new.wait()
        wait_until("the old one to end, or to answer", lambda: old.poll() is not None or is_over())
        if old.poll() is not None:  # it was the server already
            client = None
            old = None
            break
    if old is None:
        for name in (sock, control, pid_file, metrics):
            if os.path.exists(name):
                os.unlink(name)
        old = up(start(*LISTEN, *METRICS, *IMAGES))
        client = nbd.NBD()
        client.connect_uri(uri(sock, "a"))
        print("one of those that were killed was the server already")
        before = [x for x in listing() if not x[1].startswith("control.")]
    gone = subprocess.Popen(["true"])
    gone.wait()
    strays = ["%s.%d" % (control, gone.pid), "%s.%d" % (control, os.getpid()), control + ".x"]
    for name in strays:
        s = sockets.socket(sockets.AF_UNIX)
        s.bind(name)
        s.close()
    with open("%s.%d0" % (control, gone.pid), "w"):
        pass
    # Somebody else's, who listens: numbers need not be of processes.
    other_gone = subprocess.Popen(["true"])
    other_gone.wait()
    served = sockets.socket(sockets.AF_UNIX)
    served.bind("%s.%d" % (control, other_gone.pid))
    served.listen(100)
    answer = qmp(control)("takeover", socket=control)
    assert "error" in answer, answer
    refused(start("--takeover", control, *METRICS, *IMAGES, *MISSING), "missing.qcow2")
    wait_until("the server", is_over)
    for name in strays[1:] + ["%s.%d0" % (control, gone.pid), "%s.%d" % (control, other_gone.pid)]:
        os.unlink(name)
    same("killed")

    # In its place, with the same files, and with others.
    new = start("--takeover", control, *METRICS, *IMAGES)
    assert old.wait(120) == 0
    old = up(new)
    same("taken over")
    new = start("--takeover", control, *IMAGES, paths=other)
    assert old.wait(120) == 0
    up(new, other[1])
    assert client.pread(MIB, 0) == b"x" * MIB
    names = {name for where, name, *_ in listing() if where == "run"}
    assert names == {"sock", "control2", "pid2"}, names
    assert status(other[0])["exports"] == 3
    client.shutdown()
    end(new)
    assert listing() == nothing, set(listing()) ^ set(nothing)


# ---- metrics ------------------------------------------------------------------------------------

def scrape(where):
    """Whether metrics are given at WHERE, a port or the name of a socket."""
    try:
        if isinstance(where, int):
            s = sockets.create_connection(("127.0.0.1", where), 60)
        else:
            s = sockets.socket(sockets.AF_UNIX)
            s.connect(where)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    with s:
        s.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return b"nbdcow_" in s.makefile("rb").read()


def free_ports(n):
    listeners = [sockets.create_server(("127.0.0.1", 0)) for _ in range(n)]
    found = [s.getsockname()[1] for s in listeners]
    for s in listeners:
        s.close()
    return found


def moves():
    """Metrics stay where they are if the new server wants them there, and move if it does not."""
    if not METRICS:
        print("where metrics are: not tested, nbdcow was built without libmicrohttpd")
        return
    def at(where):
        return ["--metrics", "127.0.0.1:%d" % where if isinstance(where, int) else "unix:" + where]

    other = os.path.abspath("run/metrics2")
    last, (first, second) = metrics, free_ports(2)
    old = up(start(*LISTEN, *IMAGES, *at(last)))
    wait_until("metrics", lambda: scrape(last))
    before = listing()
    for where in other, first:
        refused(start("--takeover", control, *IMAGES, *at(where), *MISSING), "missing.qcow2")
        wait_until("the server", is_over)
        assert listing() == before and scrape(last) and not scrape(where)
    for where in last, other, first, first, second, metrics:
        new = start("--takeover", control, *IMAGES, *at(where))
        assert old.wait(120) == 0
        old = up(new)
        wait_until("metrics at %s" % where, lambda: scrape(where))
        assert where == last or not scrape(last) and not os.path.exists(str(last)), (last, where)
        last = where
    # Not where somebody else is.
    with sockets.create_server(("127.0.0.1", first)):
        refused(start("--takeover", control, *IMAGES, *at(first)), "port %d" % first)
        wait_until("the server", is_over)
        assert scrape(last)
    end(old)
    assert not os.path.exists(last)


# ---- locks --------------------------------------------------------------------------------------

def is_held(file, byte):
    with open(file, "rb+") as f:
        lock = fcntl.fcntl(f, fcntl.F_OFD_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return struct.unpack("hhqqi4x", lock)[0] != fcntl.F_UNLCK


def locks():
    """All that is locked in peace is locked while nobody has it open; readers may come."""
    old = up(start(*LISTEN, *IMAGES))
    log = log_from_here()

    def look():
        for image in "a", "over", "golden", "ro":
            assert is_held(image + ".qcow2", 201), "%s may be written by somebody else" % image
        for image in "golden", "ro":
            assert not is_held(image + ".qcow2", 101), "%s is kept from those who only read" % image
            command = [os.environ["NBDCOW_IMG"], "snapshot", "-q", "-c", "x", image + ".qcow2"]
            assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 1, image
            command = [os.environ["NBDCOW_IMG"], "check", "-q", image + ".qcow2"]
            assert subprocess.run(command).returncode == 0, image

    fake(control, "guards", last=look)
    log.wait("this server goes on")
    look()
    new = start("--takeover", control, *IMAGES)
    assert old.wait(120) == 0
    up(new)
    look()
    end(new)
    assert not is_held("ro.qcow2", 201) and not is_held("golden.qcow2", 201)


# ---- what cannot be handed over, and what was lost -----------------------------------------------

def refusals():
    """Before anything is disturbed, and by name."""
    old = up(start(*LISTEN, *IMAGES, "--export", "name=temporary,file=b.qcow2,snapshot=on"))
    log = log_from_here()
    call = qmp(control)
    for name in "temporary", "the view":
        if name == "the view":
            assert "return" in call("block-export-del", id="temporary")
            assert "return" in call("block-export-add", type="nbd", id=name, **{"node-name": "a"})
        refused(start("--takeover", control, *IMAGES), 'export "%s"' % name)
        assert 'export "%s"' % name in log.wait("this server goes on")
        answer = call("takeover", socket=os.path.abspath("nobody"))
        assert 'export "%s"' % name in answer["error"]["desc"], answer
        log.lines()
    assert "pause" not in open(log_file).read().split("temporary")[-1]
    assert "return" in call("block-export-del", id="the view")
    new = start("--takeover", control, *IMAGES)
    assert old.wait(120) == 0
    end(up(new))


def lose(name):
    def replace():
        shutil.copyfile(name + ".qcow2", "copy.qcow2")
        os.rename("copy.qcow2", name + ".qcow2")

    log = log_from_here()
    fake(control, "guards", last=replace)
    log.wait("this server goes on")
    assert name not in exports(sock)


def write_config(*list, **more):
    with open("config.json", "w") as f:
        json.dump(dict({"socket": sock, "persistent": True, "export": list}, **more), f)


def lost():
    """An export that was lost in a takeover stands in nobody's way."""
    a, b = {"name": "a", "file": "a.qcow2"}, {"name": "b", "file": "b.qcow2"}
    write_config(a, b)
    old = up(start("--config", "config.json"))
    lose("a")
    fake(control, "guards")  # it fails once more: then as before
    wait_until("the server", is_over)
    assert set(exports(sock)) == {"b"} and status(control)["exports"] == 1
    new = start("--takeover", control, "--config", "config.json")
    assert old.wait(120) == 0
    old = up(new)
    assert set(exports(sock)) == {"a", "b"}

    lose("a")
    os.rename("a.qcow2", "away")
    answer = qmp(control)("reload")
    assert "a.qcow2" in answer["error"]["desc"], answer
    assert set(exports(sock)) == {"b"}
    os.rename("away", "a.qcow2")
    answer = qmp(control)("reload")
    assert answer["return"]["replaced"] == 1 and answer["return"]["unchanged"] == 1, answer
    assert set(exports(sock)) == {"a", "b"}
    lose("a")
    write_config(b)
    answer = qmp(control)("reload")
    assert answer["return"]["removed"] == 1, answer
    assert "return" in qmp(control)("block-export-add", type="nbd", id="a", file=os.path.abspath("a.qcow2"))
    end(old)


def lost_for_a_moment():
    """What could not be opened again, and can be now, is opened as it was: others do not notice."""
    write_config({"name": "a", "file": "a.qcow2", "snapshots": True})
    server = up(start("--config", "config.json"))
    call, log = qmp(control), log_from_here()
    client = nbd.NBD()
    client.connect_uri(uri(sock, "a@first"))
    with open("a.qcow2", "rb+") as f:
        def keep_writers_out():
            fcntl.fcntl(f, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0))
        fake(control, "guards", last=keep_writers_out)
        log.wait("this server goes on")
        assert set(exports(sock)) == {"a@first"}
        answer = call("reload")
        assert "a.qcow2" in answer["error"]["desc"], answer
        client.pread(512, 0)
    answer = call("reload")["return"]
    assert (answer["unchanged"], answer["replaced"]) == (1, 0), answer
    assert set(exports(sock)) == {"a", "a@first"}
    client.pread(512, 0)
    client.shutdown()

    # The snapshot alone.
    with open("a.qcow2", "rb+", buffering=0) as f:
        f.seek(64)
        at, = struct.unpack(">Q", f.read(8))
        f.seek(at)
        l1 = f.read(8)

        def say_where(text):
            f.seek(at)
            f.write(text)
        fake(control, "guards", last=lambda: say_where(struct.pack(">Q", 1 << 40)))
        log.wait("this server goes on")
        assert set(exports(sock)) == {"a"}
        answer = call("reload")["return"]
        assert answer["unchanged"] == 1 and set(exports(sock)) == {"a"}, answer
        say_where(l1)
    answer = call("reload")["return"]
    assert (answer["unchanged"], answer["replaced"]) == (1, 0), answer
    assert set(exports(sock)) == {"a", "a@first"}
    for name in "a", "a@first":
        client = nbd.NBD()
        client.connect_uri(uri(sock, name))
        client.pread(512, 0)
        client.shutdown()
    end(server)


# ---- who ----------------------------------------------------------------------------------------

def liar(user, image):
    """A server of another user's does not get a file of root's by calling it its socket's."""
    os.mkdir("roots")
    names = [os.path.abspath("roots/" + n) for n in ("secret", "socket")]
    open(names[0], "w").close()
    s = sockets.socket(sockets.AF_UNIX)
    s.bind(names[1])
    s.listen()
    ready, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(user)
            listener = sockets.socket(sockets.AF_UNIX)
            listener.bind(control)
            listener.listen()
            at = sockets.socket(sockets.AF_UNIX)
            at.bind(metrics)  # so that what is said to be there is taken
            there = os.stat(metrics)
            os.write(begun, b"x")
            client, _ = listener.accept()
            client.sendall(b'{"QMP": {}}\r\n')
            lines = client.makefile()
            assert json.loads(lines.readline())["execute"] == "qmp_capabilities"
            wire = sockets.socket(sockets.AF_UNIX)
            wire.connect(json.loads(lines.readline())["arguments"]["socket"])
            offer = json.dumps({"type": "offer", "control": None, "pid-file": None,
                                "metrics": [{"fd": 2, "path": names[1], "dev": there.st_dev, "ino": there.st_ino}],
                                "listeners": [{"fd": n, "path": name, "dev": 0, "ino": 0} for n, name in enumerate(names)]})
            header = struct.pack("=QIIQII", MAGIC, VERSION, len(offer), 0, 3, 0)
            sockets.send_fds(wire, [header], [listener.fileno()] * 3)
            wire.sendall(offer.encode())
            said = b""
            while b'"ready"' not in said:
                part = wire.recv(4096)
                assert part, said
                said += part
            os._exit(0)
        except BaseException as e:
            print("liar:", repr(e), file=sys.stderr)
        os._exit(1)
    os.close(begun)
    assert os.read(ready, 1) == b"x"
    new = start("--takeover", control, "--user", "nobody", *METRICS, *image, paths=(control + "2", pid_file))
    refused(new, "takeover")
    _, ended = os.waitpid(pid, 0)
    assert ended == 0, ended
    for name in names:
        assert os.stat(name).st_uid == 0, name
    os.unlink(control)
    os.unlink(metrics)


def users():
    try:
        nobody = pwd.getpwnam("nobody").pw_uid
    except KeyError:
        nobody = 0
    if os.getuid() != 0 or nobody == 0:
        print("who may take over: not tested, there are not two users")
        return
    for name in ".", "run", os.environ["STATE_DIR"], "b.qcow2", log_file:
        os.chown(name, nobody, -1)
    os.chmod(".", 0o755)
    # The one that was built may lie where only root gets to.
    mine = os.path.abspath("nbdcow")
    shutil.copy(nbdcow, mine)
    os.chmod(mine, 0o755)
    if subprocess.run([mine, "--version"], user=nobody, stdout=subprocess.DEVNULL,
                      stderr=subprocess.DEVNULL).returncode != 0:
        print("who may take over: not tested, nobody cannot run programs here")
        return
    image = ["--export", "name=b,file=b.qcow2"]

    liar(nobody, image)
    # Root's server is not for others.
    old = up(start(*LISTEN, *METRICS, *image))
    before = listing()
    refused(start("--takeover", control, *image, user=nobody, program=mine), "Permission denied")
    assert listing() == before
    # It may become another user's, but only as a whole.
    refused(start("--takeover", control, "--user", "nobody", *METRICS, *image, *MISSING), "missing.qcow2")
    wait_until("the server", is_over)
    assert listing() == before, (listing(), before)
    new = start("--takeover", control, "--user", "nobody", *image)
    assert old.wait(120) == 0
    old = up(new)
    # And is not taken back without a word.
    before = listing()
    refused(start("--takeover", control, *image), "belongs to user %d" % nobody)
    assert listing() == before and status(control)["pid"] == old.pid
    new = start("--takeover", control, *image, user=nobody, program=mine)
    assert old.wait(120) == 0
    end(up(new))
    for name in ".", "run", os.environ["STATE_DIR"], "b.qcow2", log_file:
        os.chown(name, 0, -1)


# ---- a service manager --------------------------------------------------------------------------

def manager():
    if not os.environ["SYSTEMD"]:
        print("a service manager: not tested, nbdcow was built without libsystemd")
        return
    s = sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM)
    s.setsockopt(sockets.SOL_SOCKET, sockets.SO_PASSCRED, 1)
    s.bind("notify")
    s.settimeout(120)
    env = {"NOTIFY_SOCKET": os.path.abspath("notify")}

    def message():
        """(process, what it says), one line a string."""
        data, ancillary, _, _ = s.recvmsg(4096, sockets.CMSG_SPACE(12))
        return struct.unpack("iii", ancillary[0][2])[0], data.decode().split("\n")

    def next_but_alive():
        while (m := message())[1] == ["WATCHDOG=1"]:
            pass
        return m

    def alive(pid, n):
        while n > 0:
            m = message()
            assert m[1] == ["WATCHDOG=1"], m
            n -= m[0] == pid

    old = start(*LISTEN, *IMAGES, env=dict(env, WATCHDOG_USEC="400000"))
    pid, ready = next_but_alive()
    assert pid == old.pid and ready[:2] == ["READY=1", "MAINPID=%d" % old.pid], ready
    up(old)
    alive(old.pid, 2)
    refused(start("--takeover", control, *IMAGES, *MISSING, env=env), "missing.qcow2")
    wait_until("the server", is_over)
    alive(old.pid, 2)  # and nothing else was said

    # As ExecReload= does it.
    command = start("--takeover", control, "--fork", *IMAGES, env=env)
    assert command.wait(120) == 0, command.said()
    assert old.wait(120) == 0
    new = pid_in(pid_file)
    said = [next_but_alive(), next_but_alive()]
    try:
        assert new not in (0, old.pid, command.pid)
        from_old = [lines for pid, lines in said if pid == old.pid]
        from_new = [lines for pid, lines in said if pid == new]
        assert from_old == [["MAINPID=%d" % new]], said
        assert from_new[0][:2] == ["READY=1", "MAINPID=%d" % new], said
        # The new one is watched as the old one was, and nobody says that the service stops.
        while True:
            pid, lines = message()
            assert lines == ["WATCHDOG=1"], lines
            if pid == new:
                break
        alive(new, 3)
    finally:
        os.kill(new, signal.SIGTERM)
        wait_until("the server's end", lambda: not os.path.exists(pid_file))
    assert next_but_alive() == (new, ["STOPPING=1"])


# ---- status -------------------------------------------------------------------------------------

def says():
    old = up(start(*LISTEN, *IMAGES))
    ctl = [os.environ["NBDCOW_CTL"], "--control", control, "status"]
    text = subprocess.run(ctl, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "process %d: running, 0 clients, 3 exports, up 0 days 00:" % old.pid in text, text
    assert "taken over" not in text

    def look():
        found = status(control)
        assert found["takeover"] is True and found["exports"] == 3 and found["pid"] == old.pid, found
        text = subprocess.run(ctl, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert text.endswith(", being taken over\n"), text

    for stage in "offer", "guards", "go":
        fake(control, stage, last=look)
        wait_until("the server", is_over)
    found = status(control)
    assert found["exports"] == 3 and 0 <= found["uptime"] < 3600, found
    end(old)


# ---- reloads ------------------------------------------------------------------------------------

def reloads():
    a = {"name": "a", "file": "a.qcow2", "snapshots": True, "description": "before"}
    write_config(a)
    server = up(start("--config", "config.json"))
    call = qmp(control)
    assert exports(sock) == {"a": "before", "a@first": "before"}
    # The snapshot's export has no settings of its own.
    a.update({"description": "after", "max-connections": 2, "rate": "1M"})
    write_config(a)
    assert call("reload")["return"]["changed"] == 1
    assert exports(sock) == {"a": "after", "a@first": "after"}
    clients = [nbd.NBD(), nbd.NBD(), nbd.NBD()]
    for h in clients[:2]:
        h.connect_uri(uri(sock, "a@first"))
    try:
        clients[2].connect_uri(uri(sock, "a@first"))
        sys.exit("max-connections of a snapshot's export is what it was")
    except nbd.Error:
        pass
    began = time.monotonic()
    for at in range(4):
        clients[0].pread(MIB, at * MIB)
    assert time.monotonic() - began > 1, "the rate of a snapshot's export is what it was"
    for h in clients[:2]:
        h.shutdown()
    del a["rate"]
    wait_until("no clients", lambda: status(control)["clients"] == 0)

    # What shows an export's image is not dropped with it.
    assert "return" in call("block-export-add", type="nbd", id="the view", **{"node-name": "a"})
    a["description"] = "with a view"
    write_config(a)
    assert call("reload")["return"]["changed"] == 1
    a["cache"] = "writethrough"
    write_config(a)
    answer = call("reload")
    assert '"the view"' in answer["error"]["desc"] and '"a"' in answer["error"]["desc"], answer
    assert set(exports(sock)) == {"a", "a@first", "the view"}
    assert "return" in call("block-export-del", id="the view")
    assert call("reload")["return"]["replaced"] == 1
    assert set(exports(sock)) == {"a", "a@first"}
    end(server)


def another_one():
    """An export that a command has put in the place of one that is to go, while a reload is under way, stays."""
    key = os.path.abspath("key")
    with open(key, "w") as f:
        f.write("secret")
    write_config({"name": "a", "file": "a.qcow2"}, **{"key-file": key})
    server = up(start("--config", "config.json"))
    call, log = qmp(control), log_from_here()
    os.unlink(key)
    os.mkfifo(key)
    write_config({"name": "b", "file": "b.qcow2"}, **{"key-file": key})
    server.send_signal(signal.SIGHUP)
    with open(key, "w") as f:  # by now it is decided what is to go
        assert "return" in call("block-export-del", id="a")
        answer = call("block-export-add", type="nbd", id="a", file=os.path.abspath("a.qcow2"))
        assert "return" in answer, answer
        f.write("secret")
    log.wait("configuration reloaded")
    assert set(exports(sock)) == {"a", "b"}, exports(sock)
    end(server)


print("SEED=%s" % seed)
try:
    for part in files, moves, locks, refusals, lost, lost_for_a_moment, users, manager, says, reloads, another_one:
        began = time.monotonic()
        part()
        print("%s: %.1f s" % (part.__name__, time.monotonic() - began), flush=True)
finally:
    for p in running:
        if p.poll() is None:
            p.kill()
            p.wait()
