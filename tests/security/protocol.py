#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Clients that broke other NBD servers, each by the name under which that was known.

    protocol.py [NAME...]

Most attacks are cases of the conformance suite (tests/protocol), by name; each is run against every server of
ours, which must pass them and be there afterwards.  SUITE is the suite's program.
"""

import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import time

from harness import IMG, MIB, NBDCOW, SECONDS, Server, Sin, Table, kinds, run

T = Table("Hostile clients")
SUITE = os.environ["SUITE"]
SIZE = 6442451456  # as IMAGE_SIZE in tests/protocol/suite.h


def case_of(kind):
    return {"nbdcow": "nbdcow", "plugin": "plugin"}[kind]


def image():
    if not os.path.exists("suite.qcow2"):
        r = run("create", [IMG, "create", "-q", "-f", "qcow2", "suite.qcow2", str(SIZE)])
        assert r.status == 0, r
        with Server(kinds()[0], "suite.qcow2") as s:
            p = run("prepare", [SUITE, "--server", case_of(s.kind), "--socket", s.socket, "--prepare"])
            if not s.started or p.status:
                raise Sin("%s %s" % (s.text(), p))
    return "suite.qcow2"


def suite(*cases, nbdcow_options=()):
    """Every server of ours passes these cases; what it does not have is skipped, but not by all."""
    passed = dict.fromkeys(cases, 0)
    for kind in kinds():
        options = ["--discard=unmap", *nbdcow_options] if kind == "nbdcow" else ["discard=unmap"]
        with Server(kind, image(), options) as s:
            if not s.started:
                raise Sin(s.text())
            for case in cases:
                r = run(
                    "%s: %s" % (kind, case),
                    [SUITE, "--server", case_of(kind), "--socket", s.socket, "--pattern", "--only", case]
                    + ["--pid", str(s.process.pid), "--timeout", os.environ.get("ANSWER_SECONDS", "40")],
                    seconds=2 * SECONDS,
                    mib=1024,
                )
                said = re.search(r"(\d+) passed, (\d+) failed", r.out)
                if r.status or not said or int(said[2]):
                    raise Sin(str(r))
                passed[case] += int(said[1])
            if s.process.poll() is not None:
                raise Sin("%s has gone: %s" % (kind, s.text()))
    missing = [case for case in cases if passed[case] == 0]
    if missing:
        raise Sin("no server was asked: %s" % ", ".join(missing))


T.sin(
    "CVE-2011-1925",
    "a name that no export has made nbd-server use an export that was not there",
    "an unknown name is refused, the session goes on or ends, and others are served",
)(lambda: suite("@(export-name|go).unknown*", "meta.unknown-export"))

T.sin(
    "CVE-2013-7441",
    "a client that left amid the negotiation, or asked for an unknown name, ended nbd-server's root process",
    "a connection is one object of its loop, and ends alone",
)(lambda: suite("hostile.@(half-option|half-greeting|come-and-go)", "export-name.unknown"))

T.sin(
    "CVE-2017-7539",
    "data that was not expected in the negotiation made qemu-nbd use a coroutine that was not there",
    "negotiation is a state machine over the bytes that have come, whichever they are",
)(lambda: suite("hostile.noise-for-@(greeting|options)", "option.@(wrong-magic|unknown-with-data)", "abort.with-data"))

T.sin(
    "CVE-2017-9524",
    "a client that came and left at once (a port scan) made qemu-nbd take down what was not set up",
    "a connection is complete before its first byte is read",
)(lambda: suite("hostile.come-and-go", "hostile.half-greeting", "hostile.descriptors"))

T.sin(
    "CVE-2017-15118",
    "an export name of 257 to 4096 bytes in INFO or GO overran qemu-nbd's stack",
    "names may have 4096 bytes, and are looked at where they were received",
)(lambda: suite("@(go|export-name).@(name-longest|longest)"))


@T.sin(
    "CVE-2017-15119",
    "options of up to 4 GiB, one after the other, kept qemu-nbd reading for one client",
    "what is longer than any option can be is drained in small pieces, or ends the session; no memory is taken",
)
def long_options():
    # Who goes on sending is not just ended when the time for the handshake is over.
    unlimited = ["--handshake-limit=0"]
    suite("option.@(unknown-big|known-big|endless|beyond-any)", "hostile.@(memory|held-options)", nbdcow_options=unlimited)


T.sin(
    "CVE-2005-3534",
    "a write of more than nbd-server's buffer holds was received past its end",
    "the length is compared with the most that a write may have before memory is taken; the rest is skipped",
)(lambda: suite("write.@(maximum-payload|beyond-maximum-payload|endless|cut-short)"))


@T.sin(
    "CVE-2015-0847",
    "nbd-server's signal handlers did what such handlers may not: signals at the wrong moment ended it",
    "signals are events of the main loop; nothing is done in a handler",
)
def signals():
    if "nbdcow" not in kinds():
        return "no server"
    with open("signals.json", "w", encoding="ascii") as f:
        f.write('{"export": [{"name": "", "file": "%s"}]}' % image())
    with Server("nbdcow", None, ["--config=" + os.path.abspath("signals.json")]) as s:
        if not s.started:
            raise Sin(s.text())
        for i in range(300):
            s.process.send_signal(signal.SIGHUP)
            s.process.send_signal(signal.SIGCHLD)
            c = connect(s)
            if i % 3:
                option(c, 7, struct.pack(">IH", 0, 0))
            c.close()
        c = connect(s)
        if option(c, 7, struct.pack(">IH", 0, 0))[-1][0] != 1 or s.process.poll() is not None:
            raise Sin(s.text())
        c.close()
    return None


@T.sin(
    "CVE-2017-10664",
    "a client that was gone before its replies were written ended qemu-nbd: SIGPIPE",
    "the signal is ignored, in every thread; what cannot be sent ends that connection",
)
def gone_before_replies():
    # With the plugin it is nbdkit that sends, and 1.32 ends by an assertion of its own.
    if "nbdcow" not in kinds():
        return "no server"
    with Server("nbdcow", image()) as s:
        if not s.started:
            raise Sin(s.text())
        for i in range(60):
            leave_early(s, i)
        c = connect(s)
        if option(c, 7, struct.pack(">IH", 0, 0))[-1][0] != 1 or s.process.poll() is not None:
            raise Sin(s.text())
        c.close()
    return None


def leave_early(s, i):
    c = connect(s)
    option(c, 7, struct.pack(">IH", 0, 0))
    c.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, i, 0, MIB) * 16)
    if i % 3 == 0:  # some have begun to be sent
        recv(c, 100)
    elif i % 3 == 1:
        c.shutdown(socket.SHUT_RD)
    c.close()


T.sin(
    "CVE-2022-26495",
    "a name's length of 2^32-1 wrapped to an empty buffer of nbd-server, which was then written",
    "lengths are compared with what is left of the option before anything is added to them",
)(lambda: suite("go.@(name-past-end|count-past-end|cut-short)", "meta.@(lengths|count)-past-end", "filter.huge"))

T.sin(
    "CVE-2022-26496",
    "a long name in INFO or GO overran nbd-server's stack",
    "a name of more than 4096 bytes is refused before it is copied anywhere",
)(lambda: suite("go.name-too-long", "meta.@(name|query)-too-long", "export-name.@(too-long|far-too-long|endless)"))

T.sin(
    "CVE-2020-10761",
    "qemu-nbd's error for a name of nearly 4096 bytes was longer than a string may be: an assertion",
    "error texts have a bound of their own, and repeat no name",
)(lambda: suite("go.name-@(longest|too-long)", "meta.name-too-long", "option.errors-have-text"))

T.sin(
    "CVE-2019-14851",
    "INFO before GO left nbdkit in a state in which GO was an assertion",
    "INFO changes nothing; options come in any order and number",
)(lambda: suite("go.as-info", "info.@(no-requests|each-request|duplicate-requests)", "option.many"))

T.sin(
    "CVE-2025-47711",
    "block status of 2^32-1 bytes over a longer extent was an assertion of nbdkit",
    "what is told is cut to what was asked for and what a reply can say",
)(lambda: suite("status.*", "length.*"))


@T.sin(
    "CVE-2025-47712",
    "nbdkit's blocksize filter rounded a block status of nearly 4 GiB up to 0",
    "with a least block size (min-block), what is not a multiple of it is refused; nothing is rounded",
)
def rounded_up():
    if "nbdcow" in kinds():
        export = ["--export", "name=,file=%s,min-block=4096" % image()]
        with Server("nbdcow", None, export) as s:
            if not s.started:
                raise Sin(s.text())
            for offset, length in ((0, 0xFFFFFFFF), (0, 0xFFFFF001), (4096, 0xFFFFFFFF), (512, 4096), (0, 1)):
                ask_status(s, offset, length, 22)
            for offset, length in ((0, 0xFFFFF000), (SIZE // 4096 * 4096 - 4096, 4096 + SIZE % 4096)):
                ask_status(s, offset, length, 0)
            if s.process.poll() is not None:
                raise Sin(s.text())


class HungUp(Sin):
    """Not always one."""


def recv(c, n):
    data = b""
    while len(data) < n:
        more = c.recv(n - len(data))
        if not more:
            raise HungUp("the server hung up")
        data += more
    return data


def option(c, number, data=b""):
    """All replies to an option: [(type, data)]."""
    c.sendall(struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data)
    out = []
    while True:
        _, _, kind, length = struct.unpack(">QIII", recv(c, 20))
        out.append((kind, recv(c, length)))
        if kind == 1 or kind >> 31:
            return out


def connect(s):
    c = socket.socket(socket.AF_UNIX)
    c.settimeout(SECONDS)
    c.connect(s.socket)
    recv(c, 18)
    c.sendall(struct.pack(">I", 3))
    return c


def ask_status(s, offset, length, wanted):
    """That error, or a status that tells at least one byte, and no more than was asked for."""
    c = connect(s)
    option(c, 8)
    name = b"base:allocation"
    option(c, 10, struct.pack(">III", 0, 1, len(name)) + name)
    option(c, 7, struct.pack(">IHH", 0, 1, 3))
    c.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 7, 1, offset, length))
    told, error = 0, 0
    while True:
        _, flags, kind, _, n = struct.unpack(">IHHQI", recv(c, 20))
        data = recv(c, n)
        if kind >> 15:
            error = struct.unpack(">I", data[:4])[0]
        elif kind == 5:
            told += sum(struct.unpack(">%dI" % ((n - 4) // 4), data[4:])[::2])
        if flags & 1:
            break
    c.close()
    if error != wanted or (not error and not 0 < told <= length):
        raise Sin("status of %d bytes at %d: error %d, %d bytes told" % (length, offset, error, told))


@T.sin(
    "CVE-2019-14850",
    "nbdkit opened what it served for clients that had not finished the handshake, or had no TLS",
    "images are opened once, at the start; a client has no part in it before it has chosen an export",
)
def opened_early():
    suite("hostile.silent-many")
    for kind in kinds():
        with Server(kind, image()) as s:
            before = len(os.listdir("/proc/%d/fd" % s.process.pid))
            clients = [connect(s) for _ in range(20)]
            wait_for(lambda: len(os.listdir("/proc/%d/fd" % s.process.pid)) >= before + 20)
            opened = [
                n
                for n in os.listdir("/proc/%d/fd" % s.process.pid)
                if link(s, n) == os.path.abspath("suite.qcow2")
            ]
            if len(opened) > (1 if kind == "nbdcow" else 2):
                raise Sin("%s has the image open %d times" % (kind, len(opened)))
            for c in clients:
                c.close()
    if "nbdcow" not in kinds():
        return
    # Who has not chosen an export takes nobody's place in it.
    with Server("nbdcow", None, ["--export", "name=,file=%s,max-connections=1" % image()]) as s:
        if not s.started:
            raise Sin(s.text())
        clients = [connect(s) for _ in range(20)]
        if option(clients[10], 7, struct.pack(">IH", 0, 0))[-1][0] != 1:
            raise Sin("clients in the handshake use the export")
        if option(clients[0], 7, struct.pack(">IH", 0, 0))[-1][0] >> 31 != 1:
            raise Sin("the export has more connections than it may have")
        for c in clients:
            c.close()


def link(s, fd):
    try:
        return os.readlink("/proc/%d/fd/%s" % (s.process.pid, fd))
    except FileNotFoundError:
        return ""


def wait_for(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise Sin("it did not happen within %d seconds" % SECONDS)
        time.sleep(0.01)


def certificates():
    """An authority, a server and some clients in the directory pki; False without certtool."""
    if os.path.exists("pki/ca-cert.pem"):
        return True
    if not shutil.which("certtool"):
        return False
    os.makedirs("pki", exist_ok=True)

    def certtool(*argv):
        subprocess.run(["certtool", *argv], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    for name, words in (
        ("ca", "ca\ncert_signing_key\n"),
        ("server", "tls_www_server\nsigning_key\n"),
        ("host1", "tls_www_client\nsigning_key\n"),
        ("host", "tls_www_client\nsigning_key\n"),
        ("host11", "tls_www_client\nsigning_key\n"),
    ):
        with open("pki/template", "w", encoding="ascii") as f:
            f.write('cn = "%s"\nexpiration_days = 2\n%s' % (name, words))
        certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", "pki/%s-key.pem" % name)
        by = ["--generate-certificate", "--load-ca-certificate", "pki/ca-cert.pem"]
        by += ["--load-ca-privkey", "pki/ca-key.pem"]
        certtool(
            *(["--generate-self-signed"] if name == "ca" else by),
            *("--load-privkey", "pki/%s-key.pem" % name, "--template", "pki/template"),
            *("--outfile", "pki/%s-cert.pem" % name),
        )
    return True


def has_tls():
    if "nbdcow" not in kinds():
        return False
    return "--tls-creds" in run("help", [NBDCOW, "--help"]).out and certificates()


def client_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def start_tls(c):
    """STARTTLS, and the handshake."""
    if option(c, 5)[-1][0] != 1:
        raise Sin("STARTTLS was refused")
    return client_context().wrap_socket(c)


TLS = ["--object=tls-creds-x509,id=tls0,endpoint=server,dir=pki,verify-peer=off", "--tls-creds=tls0"]


@T.sin(
    "CVE-2021-3716",
    "what was negotiated in plain text before STARTTLS still counted after it: who sat between put it there",
    "STARTTLS forgets what was negotiated; with TLS required nothing can be before it",
)
def kept_across_tls():
    if not has_tls():
        return "no TLS, or no certtool"
    for optional in (False, True):
        with Server("nbdcow", image(), TLS + (["--tls=optional"] if optional else [])) as s:
            if not s.started:
                raise Sin(s.text())
            for before in (8, 11):  # STRUCTURED_REPLY, EXTENDED_HEADERS
                c = connect(s)
                got = option(c, before)[-1][0]
                if (got == 1) != optional:
                    raise Sin("option %d before STARTTLS: reply %#x" % (before, got))
                if optional:
                    name = b"base:allocation"
                    option(c, 10, struct.pack(">III", 0, 1, len(name)) + name)
                c = start_tls(c)
                # Contexts take structured replies, which were not negotiated on this side.
                name = b"base:allocation"
                kind = option(c, 10, struct.pack(">III", 0, 1, len(name)) + name)[-1][0]
                if kind == 1:
                    raise Sin("option %d before STARTTLS counts after it" % before)
                if option(c, 7, struct.pack(">IH", 0, 0))[-1][0] != 1:
                    raise Sin("GO after STARTTLS failed")
                c.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 77, 0, 512))
                magic, error, cookie = struct.unpack(">IIQ", recv(c, 16))
                if (magic, error, cookie) != (0x67446698, 0, 77):
                    raise Sin("a reply of another kind: magic %#x" % magic)
                recv(c, 512)
                c.close()
            injected_behind_starttls(s)
    return None


def injected_behind_starttls(s):
    """What came in plain text together with STARTTLS is never taken for what the client says under TLS."""
    c = connect(s)
    c.sendall(struct.pack(">QII", 0x49484156454F5054, 5, 0) + struct.pack(">QII", 0x49484156454F5054, 8, 0) * 3)
    try:
        magic, number, kind, length = struct.unpack(">QIII", recv(c, 20))
        if (number, kind, length) != (5, 1, 0):
            raise Sin("option %d is answered in plain text" % number)
        c = client_context().wrap_socket(c)
        c.sendall(struct.pack(">QII", 0x49484156454F5054, 7, 6) + struct.pack(">IH", 0, 0))
        number = struct.unpack(">QIII", c.recv(20))[1]
    except (OSError, HungUp, struct.error):
        return  # it is dropped with the connection
    finally:
        c.close()
    if number != 7:
        raise Sin("option %d, which was in plain text, is answered under TLS" % number)


@T.sin(
    "CVE-2013-6410",
    "nbd-server compared client addresses with its list as far as the list's entry went: a prefix was let in",
    "there is no list of addresses; names (authz) are compared whole",
)
def prefixes():
    if not has_tls():
        return "no TLS, or no certtool"
    server = ["--object=tls-creds-x509,id=tls0,endpoint=server,dir=pki", "--tls-creds=tls0", "--tls-authz=who"]
    for authz in (
        "authz-simple,id=who,identity=CN=host1",
        "authz-list,id=who,policy=deny,rules.0.match=CN=host1,rules.0.policy=allow",
        "authz-list,id=who,policy=deny,rules.0.match=CN=host1,rules.0.policy=allow,rules.0.format=glob",
    ):
        with Server("nbdcow", image(), server + ["--object=" + authz]) as s:
            if not s.started:
                raise Sin(s.text())
            for who in ("host1", "host", "host11"):
                if let_in(s, who) != (who == "host1"):
                    raise Sin("%s: %s" % (authz, who))
    return None


def let_in(s, who):
    context = client_context()
    context.load_cert_chain("pki/%s-cert.pem" % who, "pki/%s-key.pem" % who)
    c = connect(s)
    try:
        if option(c, 5)[-1][0] != 1:
            return False
        c = context.wrap_socket(c)
        return option(c, 7, struct.pack(">IH", 0, 0))[-1][0] == 1
    except (OSError, Sin):
        return False
    finally:
        c.close()


@T.sin(
    "CVE-2024-7409",
    "qemu's server was stopped while clients sat in the handshake, and used them afterwards; any number could",
    "each loop ends its connections, in whatever state, and is joined before anything is freed",
)
def stopped_meanwhile():
    # With the plugin it is nbdkit that has the clients.
    if "nbdcow" not in kinds():
        return "no server"
    for _ in range(5):
        # They are not just waited for.
        with Server("nbdcow", image(), ["--handshake-limit=%d" % (10 * SECONDS)]) as s:
            if not s.started:
                raise Sin(s.text())
            clients = []
            for i in range(40):
                c = socket.socket(socket.AF_UNIX)
                c.settimeout(SECONDS)
                c.connect(s.socket)
                if i % 4 > 0:
                    recv(c, 18)
                if i % 4 > 1:
                    c.sendall(struct.pack(">I", 3))
                if i % 4 > 2:
                    c.sendall(struct.pack(">QII", 0x49484156454F5054, 7, 200)[: i % 16 + 1])
                clients.append(c)
            status = s.stop()
            if status != 0:
                raise Sin("status %d: %s" % (status, s.text()))
            for c in clients:
                c.close()
    return None


if __name__ == "__main__":
    T.main()
