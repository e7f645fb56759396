#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What an image may make us open is the user's decision: every kind of name, under every policy, in every program.

    names.py [ROW...]

A file that must not be opened is watched: an open of it fails the row, whatever came of it.
"""

import json
import os
import socket
import stat

from harness import IMG, MIB, Server, Sin, Table, Watch, create, digest, kinds, one_line, qcow2, run, set_names
from harness import refused, serve_refused, tool
from images import hostile_names, trouble

T = Table("Names in an image")

# What a program does with a backing file, by sub-command, each with the policy words in front.
READERS = (
    ["map"],
    ["convert", "-O", "raw", "TOP", "out.raw"],
    ["compare", "TOP", "TOP"],
    ["dd", "-O", "raw", "if=TOP", "of=out.raw"],
    ["bench", "-c", "1"],
    ["measure", "-O", "qcow2", "TOP"],
    ["info", "--backing-chain"],
    ["amend", "-o", "lazy_refcounts=on"],
    ["resize", "-f", "qcow2", "TOP", "2M"],
    ["rebase", "-b", ""],
    ["commit"],
)
# What has no business below the image.
OTHERS = (
    ["info"],
    ["check"],
    ["check", "-r", "all"],
    ["compact"],
    ["recompress"],
    ["snapshot", "-l"],
    ["bitmap", "--add", "TOP", "b"],
    ["rebase", "-u", "-F", "raw", "-b", "nonesuch"],
)


def commands(top, words, which=READERS):
    for c in which:
        argv = [c[0], *words, *c[1:]]
        if not any("TOP" in a for a in argv):
            argv.append(top)
        yield c[0], [IMG] + [a.replace("TOP", top) for a in argv]


def make():
    """An image's directory, another one, and what the tests want in them."""
    os.makedirs("dir/sub", exist_ok=True)
    os.makedirs("other", exist_ok=True)
    for name in ("dir/base.raw", "other/base.raw"):
        with open(name, "wb") as f:
            f.write(b"B" * MIB)


def top(backing=None, fmt="raw", data_file=None):
    create("dir/top.qcow2", "1M")
    set_names("dir/top.qcow2", backing=backing, fmt=fmt if backing is not None else None, data_file=data_file)
    return "dir/top.qcow2"


def opens(image, secret, words):
    """Everybody opens SECRET, and so reads it."""
    for name, argv in commands(image, words, READERS[:3]):
        with Watch(secret) as w:
            r = run(name, argv)
            if r.status or not w.opened():
                raise Sin("%s does not open %s: %s" % (words, secret, r))
    for kind in kinds():
        with Watch(secret) as w, Server(kind, image, ["-r"] + [servers_word(x) for x in words]) as s:
            if not s.started or not w.opened():
                raise Sin("%s: %s does not open %s: %s" % (kind, words, secret, s.text()))


def refuses(image, secrets, words, says):
    """Nobody does, and the message says what would."""
    before = digest(image)
    with Watch(*secrets):
        for name, argv in commands(image, words):
            one_line(run("%s %s" % (name, words), argv), says, status=trouble([name]))
        for kind in kinds():
            serve_refused(kind, image, says, [servers_word(x) for x in words])
    if digest(image) != before:
        raise Sin("%s was changed" % image)


def servers_word(word):
    return word.replace("--backing-mode", "--backing")


def mode(word):
    return ["--backing-mode=" + word]


@T.sin(
    "a recorded format, a regular file anywhere",
    "whoever makes an image can name any file of the host in it",
    "opened by default; backing=same-dir and none, and untrusted, do not, and the message names recorded",
)
def anywhere():
    make()
    for name in (os.path.abspath("other/base.raw"), "../other/base.raw", "sub/../../other/base.raw", "file:../other/base.raw"):
        image = top(name)
        opens(image, "other/base.raw", [])
        opens(image, "other/base.raw", mode("any"))
        refuses(image, ["other/base.raw"], mode("same-dir"), ["backing=recorded"])
        refuses(image, ["other/base.raw"], ["--untrusted"], ["backing=recorded", "backing=none"])
        opens(image, "other/base.raw", ["--untrusted"] + mode("recorded"))
    with Watch("other/base.raw"):
        for name, argv in commands(image, [], OTHERS):
            r = run(name, argv)
            if r.status:
                raise Sin(str(r))
    image = top("../other/base.raw")
    # backing=none: zeros, without a look.
    with Watch("other/base.raw"):
        if any(tool("convert", image, "--backing-mode=none").data):
            raise Sin("backing=none shows something")
        for kind in kinds():
            with Server(kind, image, ["-r", "--backing=none"]) as s:
                if not s.started:
                    raise Sin(s.text())
        one_line(run("commit", [IMG, "commit", "--backing-mode=none", image]), ["none"])


@T.sin(
    "the image's own directory",
    "a name with .. or a link leads out of a directory that looks safe",
    "backing=same-dir opens by the directory that a name leads to; a link in it is refused, wherever it leads",
)
def same_dir():
    make()
    os.symlink(os.path.abspath("dir"), "dir/sub/back")
    os.link("other/base.raw", "dir/hard.raw")
    os.symlink("../other/base.raw", "dir/soft.raw")
    os.symlink("base.raw", "dir/near.raw")
    os.symlink("../../other", "dir/sub/out")
    for name, secret in (
        ("base.raw", "dir/base.raw"),
        ("./base.raw", "dir/base.raw"),
        ("sub/../base.raw", "dir/base.raw"),
        ("sub/back/base.raw", "dir/base.raw"),
        (os.path.abspath("dir/base.raw"), "dir/base.raw"),
        ("hard.raw", "dir/hard.raw"),
    ):
        opens(top(name), secret, mode("same-dir"))
    for name, secret in (("soft.raw", "other/base.raw"), ("sub/back/soft.raw", "other/base.raw"), ("near.raw", "dir/base.raw")):
        opens(top(name), secret, [])
        refuses(top(name), [secret], mode("same-dir"), ["symbolic link", "backing=recorded"])
    refuses(top("sub/out/base.raw"), ["other/base.raw"], mode("same-dir"), ["backing=recorded"])
    # The second layer's name counts from its own directory.
    create("other/middle.qcow2", "1M")
    set_names("other/middle.qcow2", backing="base.raw", fmt="raw")
    opens(top("../other/middle.qcow2", "qcow2"), "other/base.raw", [])
    refuses(top("../other/middle.qcow2", "qcow2"), ["other/base.raw", "other/middle.qcow2"], mode("same-dir"), ["recorded"])
    create("dir/middle.qcow2", "1M")
    set_names("dir/middle.qcow2", backing="../other/base.raw", fmt="raw")
    image = top("middle.qcow2", "qcow2")
    with Watch("other/base.raw"):
        for name, argv in commands(image, mode("same-dir"), READERS[:-1]):
            one_line(run(name, argv), ["middle.qcow2", "recorded"], status=trouble([name]))
        for kind in kinds():
            serve_refused(kind, image, ["middle.qcow2", "recorded"], ["--backing=same-dir"])


@T.sin(
    "protocols and descriptions",
    "qemu-img opened what json:, nbd:, fat: and the like said",
    "never opened, under no policy: a name is a local file's",
)
def protocols():
    make()
    secret = os.path.abspath("other/base.raw")
    for name in hostile_names(secret):
        if ":" not in name or name.startswith("file:"):
            continue
        for words in ([], mode("any"), mode("probe")):
            refuses(top(name), [secret], words, ["only a local file"])


@T.sin(
    "CVE-2025-14946",
    "a host name that begins with a dash was an option of the ssh that libnbd runs for nbd+ssh URIs: it ran a program",
    "no program is run for a name: nbd+ssh is none of the schemes, in an image's names and in the user's",
)
def run_by_name():
    make()
    for scheme in ("nbd+ssh", "nbds+ssh", "nbd+SSH", "NBD+ssh", "ssh"):
        name = scheme + "://-oProxyCommand=touch${IFS}pwned/x"
        for words in ([], mode("any")):
            refuses(top(name), ["other/base.raw"], words, ["only a local file"])
        for command in (["info"], ["convert", "-O", "raw"], ["map"], ["measure"]):
            r = run(command[0], [IMG, *command, name] + (["out.raw"] if command[0] == "convert" else []))
            if r.status != 1:
                raise Sin(str(r))
        if os.path.exists("pwned") or os.path.exists("dir/pwned"):
            raise Sin("a program was run")


@T.sin(
    "protocols and descriptions behind file:",
    "file: was taken off, and a sub-command that opens layers one by one took what was left for what a user wrote",
    "the rest is a path, also of an image without a directory in front, and one that says json: or nbd: is of that file",
)
def behind_file():
    make()
    # The image is named without a slash, and so is what it names.
    secret = "other/base.raw"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("listener")
    listener.listen()
    listener.setblocking(False)
    description = '{"driver":"raw","file":{"driver":"file","filename":"%s"}}'
    for rest in (
        "json:" + description % secret,
        "json:" + description % secret.replace("/", "\\u002f"),
        "nbd+unix:///?socket=listener",
        "nbd://localhost:1/x",
        "file:" + secret,
        "raw:" + secret,
    ):
        for words in ([], mode("same-dir")):
            create("top.qcow2", "1M")
            set_names("top.qcow2", backing="file:" + rest, fmt="raw")
            refuses("top.qcow2", [secret], words, [("No such file", "not in the directory")])
            nobody_came(listener)
        create("top.qcow2", "1M")
        set_names("top.qcow2", data_file="file:" + rest)
        with Watch(secret):
            refused("top.qcow2", ("No such file", "not in the directory"), tools=("map", "convert"))
        nobody_came(listener)
    # As a path it is as good as any, in the first layer and below; and what commits writes there.
    for name in ("json:x", "file:y", "nbd:z"):
        with open(name, "wb") as f:
            f.write(b"N" * MIB)
        create("middle.qcow2", "1M")
        set_names("middle.qcow2", backing="file:" + name, fmt="raw")
        create("top.qcow2", "1M")
        set_names("top.qcow2", backing="middle.qcow2", fmt="qcow2")
        for words in ([], mode("same-dir")):
            opens("top.qcow2", name, words)
            with Watch(name) as w:
                for command in (["info", "--backing-chain"], ["commit", "-d", "-b", "file:" + name]):
                    r = run(command[0], [IMG] + command[:1] + words + command[1:] + ["top.qcow2"])
                    if r.status or not w.opened():
                        raise Sin("%s does not open %s: %s" % (command, name, r))
        # The user's own word to rebase is read as it is going to be.
        r = run("rebase", [IMG, "rebase", "-F", "raw", "-b", "file:" + name, "middle.qcow2"])
        if r.status:
            raise Sin(str(r))
        r = run("create", [IMG, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "file:" + name, "new.qcow2"])
        if r.status:
            raise Sin(str(r))
        with Watch(secret):
            r = run("rebase", [IMG, "rebase", "-F", "raw", "-b", "file:json:" + description % secret, "middle.qcow2"])
            one_line(r, ["No such file"])
    # An NBD server gives no directory: what its image names is not another of its exports, or a
    # neighbour of its socket.
    if "nbdcow" in kinds():
        for backing, data in (("listener", None), (None, "listener")):
            create("top.qcow2", "1M")
            set_names("top.qcow2", backing=backing, fmt="raw" if backing else None, data_file=data)
            with Server("nbdcow", "top.qcow2", ["-f", "raw"]) as s:
                if not s.started:
                    raise Sin(s.text())
                if run("info", [IMG, "info", "-f", "qcow2", s.uri]).status:
                    break  # built without libnbd
                for name, argv in commands(s.uri, ["-f", "qcow2"], (["map"], ["rebase", "-b", ""], ["resize", "TOP", "2M"])):
                    one_line(run(name, argv), [("No such file", "not in the directory")])
                    nobody_came(listener)
                if backing:
                    for command in ("info --backing-chain", "commit"):
                        argv = [IMG] + command.split() + ["-f", "qcow2", s.uri]
                        one_line(run(command, argv), ["No such file"])
                        nobody_came(listener)
    listener.close()


def nobody_came(listener):
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return
    raise Sin("a server that an image names was connected to")


@T.sin(
    "what is no file",
    "a FIFO hangs who opens it, a device acts on it, a directory confuses",
    "refused by what it is, before it is opened",
)
def no_file():
    make()
    os.mkfifo("dir/fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("dir/socket")
    listener.listen()
    devices = []
    try:
        os.mknod("dir/char", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        devices.append(("char", "character device"))
    except PermissionError:
        pass
    for name, what in [("fifo", "FIFO"), ("socket", "socket"), ("sub", "directory"), ("/dev/null", "character device")] + devices:
        watched = [] if name in ("sub", "/dev/null") else ["dir/" + name]
        for words in ([], mode("any"), mode("probe")):
            refuses(top(name), watched, words, [what])
        image = top(data_file=name)
        with Watch(*watched):
            for words in (["--data-file-policy=any"], [] if "/" not in name else ["--data-file-policy=any"]):
                one_line(run("map", [IMG, "map"] + words + [image]), [what])
                for kind in kinds():
                    serve_refused(kind, image, [what], words)
    listener.close()
    # What is behind the descriptors of the process itself.
    for name in ("/proc/self/fd/0", "/dev/stdin", "/dev/fd/0"):
        refuses(top(name), [], [], ["character device"])


@T.sin(
    "block devices",
    "a device that an image names was read, or written, with the rights of the server",
    "take backing=any, or data-file-policy=any; not touched without",
)
def block_devices():
    make()
    try:
        os.mknod("dir/block", 0o600 | stat.S_IFBLK, os.makedev(7, 1000))
    except PermissionError:
        return "needs mknod"
    for words in ([], mode("same-dir"), mode("recorded")):
        refuses(top("block"), ["dir/block"], words, ["block device", "backing=any"])
    image = top(data_file="block")
    with Watch("dir/block"):
        one_line(run("map", [IMG, "map", image]), ["block device", "data-file-policy=any"])
        for kind in kinds():
            serve_refused(kind, image, ["block device", "data-file-policy=any"])
    # With the word it is opened, whether there is such a device or not.
    with Watch("dir/block") as w:
        r = run("map", [IMG, "map", "--backing-mode=any", top("block")])
        if r.status and "No such" not in r.err:
            raise Sin(str(r))
        if r.status == 0 and not w.opened():
            raise Sin("backing=any does not open it")
    return None


@T.sin(
    "data files",
    "an uploaded image named a data file of the host, and was copied out or written",
    "same-dir by default; any and none by data-file-policy; untrusted: none; data-file=FILE is the user's own word",
)
def data_files():
    make()
    with open("dir/data", "wb") as f:
        f.truncate(MIB)
    os.symlink("../other/base.raw", "dir/link")
    for name, secret in (("data", "dir/data"), ("sub/../data", "dir/data")):
        opens(top(data_file=name), secret, [])
        opens(top(data_file=name), secret, ["--untrusted", "--data-file-policy=same-dir"])
        for words in (["--data-file-policy=none"], ["--untrusted"]):
            image = top(data_file=name)
            with Watch(secret):
                refused(image, "data-file-policy=same-dir", tools=("map", "convert"), options=words)
    for name in ("link", "sub/../link"):
        image = top(data_file=name)
        for words in ([], ["--data-file-policy=same-dir"]):
            with Watch("other/base.raw"):
                refused(image, "symbolic link", tools=("map", "convert"), options=words)
                one_line(run("resize", [IMG, "resize", "-f", "qcow2", *words, image, "2M"]), ["symbolic link", "data-file-policy=any"])
        opens(image, "other/base.raw", ["--data-file-policy=any"])
    image = top(data_file="../other/base.raw")
    with Watch("other/base.raw"):
        refused(image, "data-file-policy=any", tools=("map", "convert"))
        for kind in kinds():
            with Server(kind, image, ["-r", "--data-file=dir/data", "--untrusted"]) as s:
                if not s.started:
                    raise Sin(s.text())
    opens(image, "other/base.raw", ["--data-file-policy=any"])


@T.sin(
    "loops",
    "an image in its own chain, or as its own data file, was read without end or written over",
    "refused: the chain is a loop",
)
def loops():
    make()
    image = top("top.qcow2", "qcow2")
    os.symlink("top.qcow2", "dir/alias")
    for name in ("top.qcow2", "./top.qcow2", "alias"):
        set_names(image, backing=name, fmt="qcow2")
        refused(image, "loop", tools=("map", "convert"))
        for command in (["info", "--backing-chain"], ["commit"], ["rebase", "-b", ""]):
            r = run(command[0], [IMG] + command + [image])
            if r.status != 1 or len(r.err.strip().split("\n")) != 1:
                raise Sin(str(r))
    for name in ("top.qcow2", "alias"):
        image = top(data_file=name)
        refused(image, "also an image", tools=("map", "convert"), options=["--data-file-policy=any"])


@T.sin(
    "names that drive a terminal",
    "a name with escape sequences or line ends forged output, on the terminal and in logs",
    "question marks for people, escapes in JSON, U+FFFD for what is no UTF-8; a message is one line",
)
def terminals():
    make()
    evil = b"x\x1b]0;owned\x07\n\r\x9b31m\xc2\x9b1m\x7fnbdcow: error\tz"
    image = top(evil, evil.replace(b"\n", b"q")[:60])
    with open("dir/data", "wb"):
        pass
    create("data.qcow2", "1M")
    set_names("data.qcow2", data_file=evil)
    filled_snapshot("snap.qcow2", evil)
    for name, argv in [
        ("info", [IMG, "info", image]),
        ("info", [IMG, "info", "--backing-chain", image]),
        ("info", [IMG, "info", "data.qcow2"]),
        ("info", [IMG, "info", "snap.qcow2"]),
        ("snapshot", [IMG, "snapshot", "-l", "snap.qcow2"]),
        ("check", [IMG, "check", "snap.qcow2"]),
        ("map", [IMG, "map", image]),
        ("map", [IMG, "map", "data.qcow2"]),
        ("convert", [IMG, "convert", image, "out.raw"]),
        ("commit", [IMG, "commit", image]),
    ]:
        r = run(name, argv)
        for text in (r.out.encode("utf-8", "surrogateescape"), r.err.encode("utf-8", "surrogateescape")):
            for bad in (b"\x1b", b"\x07", b"\r", b"\x9b", b"\x7f"):
                if bad in text:
                    raise Sin("%s: %r has %r" % (argv, text, bad))
        if r.status and len(r.err.strip().split("\n")) != 1:
            raise Sin("not one line: " + str(r))
    for name in (image, "data.qcow2", "snap.qcow2"):
        r = run("info --output=json", [IMG, "info", "--output=json", name])
        j = json.loads(r.out)
        seen = json.dumps(j, ensure_ascii=False)
        if "owned" not in seen or "\x1b" in r.out:
            raise Sin("the name is not in the JSON: " + r.out)
    for kind in kinds():
        for name in (image, "data.qcow2"):
            with Server(kind, name) as s:
                if s.started:
                    raise Sin("%s serves %s" % (kind, name))
                if any(c in s.text() for c in "\x1b\x07\r\x7f\u009b") or len(s.text().strip().split("\n")) != 1:
                    raise Sin(repr(s.text()))
        with Server(kind, "snap.qcow2", ["-r"]) as s:
            if not s.started:
                raise Sin(s.text())
    if "nbdcow" in kinds():
        with Server("nbdcow", None, ["--export", "name=x,file=snap.qcow2,snapshots=on,readonly=on"]) as s:
            if not s.started or any(c in s.text() for c in "\x1b\x07\r\x7f\u009b"):
                raise Sin(repr(s.text()))


def filled_snapshot(name, evil):
    """A snapshot of that name, written by hand."""
    create(name, "1M")
    r = run("snapshot", [IMG, "snapshot", "-c", "n" * len(evil), name])
    assert r.status == 0, r
    image = qcow2.Image(name, True)
    at = image.get("snapshots_offset")
    ids = int.from_bytes(image.pread(at + 12, 2), "big")
    extra = int.from_bytes(image.pread(at + 36, 4), "big")
    image.pwrite(at + 40 + extra + ids, evil)


@T.sin(
    "untrusted",
    "one forgotten sub-command that follows names undoes the care of all others",
    "one that names a backing or data file is refused whatever the command, and one that does not is served",
)
def untrusted():
    make()
    with open("dir/data", "wb") as f:
        f.truncate(MIB)
    refuses(top("base.raw"), ["dir/base.raw"], ["--untrusted"], ["not trusted", "backing=none"])
    image = top(data_file="data")
    with Watch("dir/data"):
        for command in (
            ["map"],
            ["convert", "-O", "raw", "TOP", "out.raw"],
            ["rebase", "-f", "qcow2", "-u", "-b", ""],
            ["check", "-r", "all"],
            ["resize", "-f", "qcow2", "TOP", "2M"],
            ["amend", "-o", "lazy_refcounts=on"],
        ):
            for name, argv in commands(image, ["--untrusted"], (command,)):
                r = run(name, argv)
                if r.status not in ((0,) if name == "check" else (1,)):
                    raise Sin(str(r))
    image = top()
    for what in ("info", "check", "map", "convert"):
        r = tool(what, image, "--untrusted")
        if r.status:
            raise Sin(str(r))
    for kind in kinds():
        with Server(kind, image, ["--untrusted"]) as s:
            if not s.started:
                raise Sin(s.text())
    # Whichever of several images it is.
    create("good.qcow2", "1M")
    with Watch("dir/base.raw"):
        bad = top("base.raw")
        for argv in (
            ["compare", "--untrusted", "good.qcow2", bad],
            ["diff", "--untrusted", "good.qcow2", bad],
            ["convert", "--untrusted", "-O", "raw", "good.qcow2", bad, "out.raw"],
            ["convert", "--untrusted", "-n", "-O", "qcow2", "good.qcow2", bad],
        ):
            one_line(run(argv[0], [IMG] + argv), ["not trusted"], status=trouble(argv))
    # Changing the name is what one does about it; no file is opened for that.
    with Watch("dir/base.raw"):
        r = run("rebase -u", [IMG, "rebase", "--untrusted", "-f", "qcow2", "-u", "-b", "", top("base.raw")])
        if r.status:
            raise Sin(str(r))


@T.sin(
    "settings of one export",
    "a policy for one image held for all, or for none",
    "--export and --image-opts take the same words, for that export alone",
)
def exports():
    if "nbdcow" not in kinds():
        return "no server"
    make()
    image = top("../other/base.raw")
    for setting, opened in (("", True), (",backing=same-dir", None), (",backing=none", False), (",untrusted=on", None)):
        with Watch("other/base.raw") as w:
            with Server("nbdcow", None, ["--export", "name=x,file=%s,readonly=on%s" % (image, setting)]) as s:
                if s.started != (opened is not None):
                    raise Sin("%s: %s" % (setting, s.text()))
            if bool(w.opened()) != bool(opened):
                raise Sin("%s: opened" % setting)
    return None


if __name__ == "__main__":
    T.main()
