#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Reloads of nbdcow's configuration, good and bad ones, under verified load.

    live_reload.py NBDCOW SOCKET       in a directory with the images a, b and x0 to x3 (.qcow2)

LIVE_ROUNDS: how many reloads (default: what fits 20 seconds, at least 100).  SEED.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import nbd

from live import Load, Log, exports, listens, stop, uri, wait_until

nbdcow, socket = sys.argv[1:3]
seed = os.environ.get("SEED", "0")
rng = random.Random(seed)
rounds = int(os.environ.get("LIVE_ROUNDS", "0"))
SECONDS, LEAST = 20, 100
MIB = 1 << 20


def write_config(text):
    with open("new.json", "w") as f:
        f.write(text)
    os.rename("new.json", "config.json")


def config(state, **more):
    return json.dumps(dict({"socket": socket, "persistent": True, "log-level": "info",
                            "export": list(state.values())}, **more))


def next_state(state):
    """What the configuration asks for next.  a and b have clients: only what can be changed under
    them is."""
    state = {name: dict(x) for name, x in state.items()}
    for name in "a", "b":
        x = state[name]
        if rng.random() < 0.5:
            x["description"] = "round %d" % rng.randrange(1000)
        if rng.random() < 0.3:
            x["rate"] = rng.choice(("10G", "20G", 0))
        if rng.random() < 0.3:
            x["max-connections"] = rng.choice((0, 64, 100))
    for i in range(4):
        file = "x%d.qcow2" % i
        names = [n for n, x in state.items() if x["file"] == file]
        what = rng.randrange(5)
        if what == 0 and names:
            del state[names[0]]
        elif what == 1 and names:  # the same image under another name
            del state[names[0]]
            state["x%d-%d" % (i, rng.randrange(3))] = {"file": file}
        elif what == 2 and names:  # cannot be changed in place
            x = state[names[0]]
            x["read-only"] = not x.get("read-only", False)
        elif what == 3 and not names:
            state["x%d-%d" % (i, rng.randrange(3))] = {"file": file}
    for name, x in state.items():
        x["name"] = name
    return state


def bad_configs(state):
    """(text of a configuration, what the refusal must name)"""
    def with_export(**x):
        return config(dict(state, **{"new": dict({"name": "new"}, **x)}))

    moved = {name: dict(x) for name, x in state.items()}
    moved["a"]["cache"] = "writethrough"
    return [
        ("{", "config.json: line 1"),
        ("[]", "config.json: an object"),
        (config(state, **{"no-such-option": 1}), "no-such-option"),
        (config(state, threads="many"), "many"),
        (config(state, export=7), "export"),
        (config(state, help=True), "help"),
        (with_export(file="missing.qcow2"), "missing.qcow2"),
        (with_export(file="junk"), "junk"),
        (with_export(file="a.qcow2"), "a.qcow2"),  # it is locked: we have it
        (with_export(file="x0.qcow2", cache="fast"), "fast"),
        (with_export(file="x0.qcow2", colour="red"), "colour"),
        (with_export(name="a", file="x0.qcow2"), '"a"'),
        (with_export(), "file"),
        (config(moved), 'export "a": while clients are connected'),
        (config(state, object="authz-simple,id=new,identity=me"), "id=new"),
    ]


def reload(server, log, *expected):
    server.send_signal(signal.SIGHUP)
    return log.wait("configuration reloaded", "the configuration stays as it was")


def drained_client(server, log, state):
    """A client of an export that is removed is disconnected, and told so if it asks."""
    h = nbd.NBD()
    h.connect_uri(uri(socket, "gone"))
    h.pread(512, 0)
    write_config(config(state))
    line = reload(server, log)
    assert "1 removed" in line, line
    try:
        h.pread(512, 0)
        sys.exit("a client of an export that was removed goes on")
    except nbd.Error as e:
        assert e.errno in ("ESHUTDOWN", "ENOTCONN", "EINVAL") or not e.errno, str(e)


def main():
    print("SEED=%s" % seed)
    state = {"a": {"name": "a", "file": "a.qcow2", "description": "first"},
             "b": {"name": "b", "file": "b.qcow2"}}
    write_config(config(state))
    log = Log("server.log")
    server = subprocess.Popen([nbdcow, "--config", "config.json", "--log",
                               os.path.abspath("server.log")])
    loads = []
    try:
        wait_until("the server's socket", lambda: listens(socket) or server.poll() is not None)
        loads = [Load(uri(socket, "a"), 0, 24 * MIB), Load(uri(socket, "a"), 24 * MIB, 24 * MIB),
                 Load(uri(socket, "b"), 0, 24 * MIB, MODE="simple")]
        time.sleep(1)
        peace = [load.mark("peace") for load in loads]
        began = time.monotonic()
        done = bad = 0
        pending = []
        while (done < rounds) if rounds else (done < LEAST or time.monotonic() - began < SECONDS):
            if done % 4 == 3:
                pending = pending or bad_configs(state)
                text, part = pending.pop(rng.randrange(len(pending)))
                text = text if part != '"a"' else text
                write_config(text)
                line = reload(server, log)
                assert "stays as it was" in line and part in line, (part, line)
                bad += 1
            elif done % 50 == 10:
                gone = dict(state, gone={"name": "gone", "file": "gone.qcow2"})
                write_config(config(gone))
                line = reload(server, log)
                assert "1 export added" in line, line
                drained_client(server, log, state)
                done += 1
            else:
                state = next_state(state)
                write_config(config(state))
                line = reload(server, log)
                assert "configuration reloaded" in line, line
                pending = []
            done += 1
            found = exports(socket)
            wanted = {n: x.get("description", "") for n, x in state.items()}
            assert found == wanted, (found, wanted)
            for load in loads:
                load.alive()
        # Two at once: the second is not lost.
        write_config(config(dict(state, one={"name": "one", "file": "gone.qcow2"})))
        for _ in range(20):
            server.send_signal(signal.SIGHUP)
        wait_until("the export", lambda: "one" in exports(socket))
        for name, before, load in zip("aab", peace, loads):
            n, p50, p99, most = load.mark("reloads")
            print("%s: latency in ms: peace p50 %.1f p99 %.1f max %.1f; reloads p50 %.1f p99 %.1f "
                  "max %.1f" % (name, *before[1:], p50, p99, most))
        print("%d reloads, %d of them refused, %d requests verified"
              % (done, bad, sum(load.end() for load in loads)))
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0, server.returncode
    finally:
        for load in loads:
            load.kill()
        if server.poll() is None:
            server.kill()
            server.wait()


main()
