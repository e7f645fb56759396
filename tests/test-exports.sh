#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Several exports in one nbdcow: from --export, --export-dir and --config, with their names, parts,
# snapshots and limits.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img qemu-io nbdinfo
requires_python_nbd

qemu-img create -q -f qcow2 a.qcow2 8M
qemu-io -c 'write -q -P 1 0 1M' a.qcow2
qemu-img snapshot -c first a.qcow2
qemu-io -c 'write -q -P 2 0 1M' a.qcow2
qemu-img snapshot -c second a.qcow2
qemu-io -c 'write -q -P 3 0 1M' a.qcow2
qemu-img create -q -f raw b.raw 4M
qemu-io -f raw -c 'write -q -P 4 0 1M' -c 'write -q -P 5 1M 1M' b.raw

# serve OPTION...: by one nbdcow, until stop_server.
serve ()
{
  server_count=$((server_count + 1))
  SOCK=$tmp/sock-$server_count
  PIDFILE=$tmp/pid-$server_count
  SERVER_LOG=$tmp/server-$server_count.log
  "$NBDCOW" -t -k "$SOCK" --pid-file="$PIDFILE" "$@" >"$SERVER_LOG" 2>&1 </dev/null &
  SERVER_PID=$!
  track "$SERVER_PID"
  wait_for 30 server_ready_or_dead || fail "nbdcow was not ready after 30 seconds"
  process_alive "$SERVER_PID" || fail "nbdcow $*: $(cat "$SERVER_LOG")"
}

uri ()
{
  echo "nbd+unix:///$1?socket=$SOCK"
}

# has NAME BYTE: the first 64 KiB of the export are all BYTE.
has ()
{
  if ! qemu-io -r -f raw -c "read -q -P $2 0 64k" "$(uri "$1")" >io.out 2>&1 || [ -s io.out ]; then
    fail "export $1: $(cat io.out)"
  fi
}

names ()
{
  nbdinfo --list "$(uri '')" | sed -n 's/^export="\(.*\)":$/\1/p' | tr '\n' ' '
}

# refuses PATTERN OPTION...: one line with PATTERN, and status 1.
refuses ()
{
  pattern=$1
  shift
  status=0
  timeout 20 "$NBDCOW" -k "$tmp/refused.sock" "$@" >refused.log 2>&1 </dev/null || status=$?
  one_line "$status" refused.log "$pattern" || fail "$*: $REASON"
}

# ---- names, parts, snapshots -------------------------------------------------------------------

serve --export name=a,file=a.qcow2,snapshots=on,description='The,, a' \
  --export name=b,file=b.raw,format=raw,read-only=on \
  --export name=half,file=b.raw,format=raw,offset=1M,size=2M,read-only=on \
  --export '{"name": "deep/er", "read-only": true,
    "file": {"driver": "raw", "offset": 1048576, "file": {"driver": "file", "filename": "b.raw"}}}'
[ "$(names)" = 'a a@first a@second b half deep/er ' ] || fail "exports: $(names)"
has a 3
has a@first 1
has a@second 2
has b 4
has half 5
has deep/er 5
[ "$(nbdinfo --size "$(uri half)")" = 2097152 ] || fail 'size of a part'
nbdinfo "$(uri a@first)" | grep -q 'is_read_only: true' || fail 'a snapshot can be written'
nbdinfo "$(uri a)" | grep -q 'is_read_only: false' || fail 'a cannot be written'
qemu-io -f raw -c 'write -q -P 7 0 64k' "$(uri a)"
has a 7
has a@second 2
if nbdinfo --size "$(uri nothing)" 2>/dev/null; then fail 'an export that is not there'; fi
stop_server
check_image a.qcow2

# Two servers, or two exports, never write one image.
refuses 'used twice' --export name=a,file=a.qcow2 --export name=a,file=b.raw,format=raw
refuses a.qcow2 --export name=a,file=a.qcow2 --export name=b,file=a.qcow2
refuses "'file' is missing" --export name=a
refuses "unknown setting 'nmae'" --export nmae=a,file=a.qcow2
refuses 'format=vdi' --export name=a,file=a.qcow2,format=vdi
refuses 'max-connections=-1' --export name=a,file=a.qcow2,max-connections=-1
refuses 'min-block=3' --export name=a,file=a.qcow2,min-block=3
refuses 'past the end' --export name=a,file=a.qcow2,offset=9M
refuses 'past the end' --export name=a,file=a.qcow2,offset=7M,size=2M
refuses '--export-name' -x a --export name=b,file=a.qcow2

# ---- a directory -------------------------------------------------------------------------------

mkdir images
cp a.qcow2 images/
cp b.raw images/b.img
echo 'not an image' >images/README
serve --export-dir images,read-only=on
[ "$(names)" = 'a.qcow2 b.img ' ] || fail "exports of a directory: $(names)"
has a.qcow2 7
has b.img 4
stop_server
rm images/*.*
refuses 'nothing to serve' --export-dir images

# ---- a configuration file ----------------------------------------------------------------------

cat >config.json <<END
{
  "persistent": true,
  "handshake-limit": 5,
  "log-level": "info",
  "export": [
    { "name": "one", "file": "a.qcow2", "allocation-depth": true },
    { "name": "two", "file": { "driver": "raw", "file.driver": "file", "file.filename": "b.raw" } }
  ]
}
END
serve --config config.json
[ "$(names)" = 'one two ' ] || fail "exports of a configuration: $(names)"
has two 4
nbdinfo --map=qemu:allocation-depth "$(uri one)" | grep -q local || fail 'no allocation depth'
stop_server
grep -q "disconnected: export \"two\", 65536 bytes read, 0 bytes written, .* seconds" "$SERVER_LOG" ||
  fail "no line about a connection: $(cat "$SERVER_LOG")"

echo '{ "persistent": 1 }' >bad.json
refuses 'true or false' --config bad.json
echo '{ "prsistent": true }' >bad.json
refuses prsistent --config bad.json
echo '{ "export": ' >bad.json
refuses 'line' --config bad.json

# ---- limits ------------------------------------------------------------------------------------

truncate -s 1000000 images.raw
serve --log-level=info --idle-limit=3 --export name=one,file=a.qcow2,max-connections=1 \
  --export name=slow,file=b.raw,format=raw,rate=2M \
  --export name=big,file=images.raw,format=raw,min-block=512
"$PYTHON" - "$SOCK" <<'END'
import errno, nbd, sys, time

def connect(name):
    h = nbd.NBD()
    h.connect_uri("nbd+unix:///%s?socket=%s" % (name, sys.argv[1]))
    return h

def refused(name):
    try:
        connect(name)
    except nbd.Error:
        return True
    return False

# One connection, again and again: it is given back some time after it has been closed.
def the_one():
    for wait in range(3000):
        try:
            return connect("one")
        except nbd.Error:
            time.sleep(.02)
    raise AssertionError("the connection is not given back")

for i in range(20):
    h = the_one()
    assert refused("one"), "two connections"
    assert not refused("big")
    h.shutdown()

# 2 MiB a second: 4 MiB take about two, whoever reads them.
a, b = connect("slow"), connect("slow")
start = time.monotonic()
for i in range(0, 4 << 20, 256 << 10):
    (a, b)[i >> 18 & 1].pread(256 << 10, i)
took = time.monotonic() - start
assert 1.5 < took < 60, "4 MiB at 2 MiB/s took %f seconds" % took

# Blocks of 512 bytes, the last of which is a part of one.
h = connect("big")
assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
h.set_strict_mode(0)
assert len(h.pread(1024, 512)) == 1024
assert len(h.pread(1000000 - 999936, 999936)) == 64
for length, offset in (512, 1), (100, 0), (100, 999936 - 512):
    try:
        h.pread(length, offset)
        raise AssertionError("%d bytes at %d" % (length, offset))
    except nbd.Error as e:
        assert e.errnum == errno.EINVAL

# Nothing asked for in three seconds.
h = the_one()
for i in range(6):
    h.pread(512, 0)
    time.sleep(.7)
try:
    h.poll(60000)
except nbd.Error:
    pass
assert h.aio_is_dead() or h.aio_is_closed(), "still connected after the idle limit"
END
stop_server

# ---- growing -----------------------------------------------------------------------------------

cp a.qcow2 grow.qcow2
serve --export name=grow,file=grow.qcow2,resize=on --export name=stay,file=b.raw,format=raw
"$PYTHON" - "$SOCK" <<'END'
import socket, struct, sys

class Client:
    def __init__(self, name):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(20)
        self.s.connect(sys.argv[1])
        self.get(18)
        name = name.encode()
        self.s.sendall(struct.pack(">IQII", 3, 0x49484156454f5054, 1, len(name)) + name)
        self.size, self.flags = struct.unpack(">QH", self.get(10))

    def get(self, n):
        data = b""
        while len(data) < n:
            more = self.s.recv(n - len(data))
            assert more, "disconnected"
            data += more
        return data

    def request(self, command, offset, length=0, payload=b"", reads=0):
        self.s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 77, offset, length) + payload)
        magic, error, cookie = struct.unpack(">IIQ", self.get(16))
        assert (magic, cookie) == (0x67446698, 77)
        return (error, self.get(reads) if error == 0 else b"")

EPERM, EINVAL, ENOSPC = 1, 22, 28
READ, WRITE, RESIZE = 0, 1, 8
MiB = 1 << 20

a, b, other = Client("grow"), Client("grow"), Client("stay")
assert a.flags & 1 << 9 and not other.flags & 1 << 9
assert other.request(RESIZE, 8 * MiB)[0] == EINVAL
assert a.size == 8 * MiB
assert a.request(WRITE, 8 * MiB, 512, b"x" * 512)[0] == ENOSPC
assert a.request(RESIZE, 4 * MiB)[0] == EPERM
assert a.request(RESIZE, 12 * MiB + 1)[0] == EINVAL
assert a.request(RESIZE, 1 << 63)[0] != 0
assert a.request(RESIZE, 12 * MiB)[0] == 0
for c in a, b, Client("grow"):
    error, data = c.request(READ, 8 * MiB, 65536, reads=65536)
    assert error == 0 and data == bytes(65536)
assert Client("grow").size == 12 * MiB
assert b.request(WRITE, 12 * MiB - 512, 512, b"x" * 512)[0] == 0
assert b.request(WRITE, 12 * MiB, 512, b"x" * 512)[0] == ENOSPC
END
stop_server
check_image grow.qcow2
qemu-img info grow.qcow2 | grep -q '12582912 bytes' || fail 'the image did not grow'
qemu-io -r -c 'read -q -P 0x78 12582400 512' grow.qcow2
refuses 'without offset and size' --export name=a,file=grow.qcow2,resize=on,offset=1M
