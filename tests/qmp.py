# SPDX-License-Identifier: BSD-3-Clause
#
# A client of QMP for the tests: one socket, read as it comes.

import json
import socket


class Error(Exception):
    def __init__(self, error):
        Exception.__init__(self, "%s: %s" % (error["class"], error["desc"]))
        self.cls, self.desc = error["class"], error["desc"]


class Client:
    # NEGOTIATE: the client is ready for commands.
    def __init__(self, path, negotiate=True, timeout=60):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(timeout)
        self.s.connect(path)
        self.data, self.events = b"", []
        self.greeting = self.receive()["QMP"]
        if negotiate:
            self.execute("qmp_capabilities")

    def send(self, data):
        self.s.sendall(data if isinstance(data, bytes) else data.encode())

    # The next object, whatever it is; None at the end.
    def receive(self):
        while b"\n" not in self.data:
            more = self.s.recv(1 << 20)
            if not more:
                assert not self.data, "half a line: %r" % self.data
                return None
            self.data += more
        line, self.data = self.data.split(b"\n", 1)
        assert line.endswith(b"\r"), "not a line of QMP: %r" % line
        assert max(line) < 128, "not ASCII: %r" % line
        value = json.loads(line)
        assert isinstance(value, dict), line
        return value

    # The next reply; events go to self.events.
    def reply(self):
        while True:
            value = self.receive()
            assert value is not None, "disconnected"
            if "event" not in value:
                return value
            assert set(value) <= {"event", "data", "timestamp"}, value
            assert set(value["timestamp"]) == {"seconds", "microseconds"}, value
            self.events.append(value)

    # What a command returns; Error if it fails.
    def execute(self, name, arguments=None, /, **more):
        arguments = dict(arguments or {}, **{k.replace("_", "-"): v for k, v in more.items()})
        request = {"execute": name, "id": [name]}
        if arguments:
            request["arguments"] = arguments
        self.send(json.dumps(request) + "\n")
        value = self.reply()
        assert value.get("id") == [name], value
        if "error" in value:
            assert set(value["error"]) == {"class", "desc"} and value["error"]["desc"], value
            raise Error(value["error"])
        return value["return"]

    # The class of the error with which a command fails, and its description.
    def refuses(self, name, arguments=None, /, **more):
        try:
            value = self.execute(name, arguments, **more)
        except Error as e:
            return e.cls, e.desc
        raise AssertionError("%s %r %r: %r instead of an error" % (name, arguments, more, value))

    # The next event called NAME (others are passed by).
    def wait_event(self, name):
        while True:
            for i, e in enumerate(self.events):
                if e["event"] == name:
                    del self.events[: i + 1]
                    return e.get("data")
            value = self.receive()
            assert value is not None, "disconnected before %s" % name
            assert "event" in value, value
            self.events.append(value)

    def close(self):
        self.s.close()
