#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The watermark: told when it is passed, once or again and again, at once if it has been passed
# already, also after kill -9; its command is run with the facts, one at a time, and nobody waits.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img
requires_python_nbd
skip_sanitized_nbdkit
MB=1048576

write () # FROM TO: MiB of the disk, each written and flushed
{
  timeout 60 "$PYTHON" - "$URI" "$1" "$2" <<'END'
import sys
import nbd

h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    h.pwrite(b"w" * (1 << 20), i << 20)
h.flush()
h.shutdown()
END
}

# The plugin opens the image when its first client comes.
connect_once () { [ "$FRONTEND" = nbdcow ] || write 0 0; }

told () { grep -c 'past the watermark' "$SERVER_LOG" || :; }
told_is () { [ "$(told)" = "$1" ]; }
lines_are () { [ "$(wc -l 2>/dev/null <"$2")" = "$1" ]; }
expect_told () # N: so often, and not once more
{
  wait_for 60 told_is "$1" || fail "told $(told) times instead of $1"
  [ -z "${2:-}" ] || [ "$(told)" = "$1" ]
}

# watermark AT REPEAT COMMAND: the options, in the front end's words ("" for none).
watermark ()
{
  case $FRONTEND in
  nbdcow) _p=-- ;;
  nbdkit) _p= ;;
  esac
  set -- ${1:+"arg=${_p}watermark=$1"} ${2:+"arg=${_p}watermark-repeat=$2"} \
    ${3:+"arg=${_p}watermark-exec=$3"}
  start_server disk.qcow2 "$@"
}

echo "== once"
qemu-img create -q -f qcow2 disk.qcow2 1G
watermark 8M '' ''
write 0 7
expect_told 0
write 7 9
expect_told 1
grep -q "past the watermark of $((8 * MB))" "$SERVER_LOG" || fail "not the watermark: $(cat "$SERVER_LOG")"
write 9 40
write 0 9 # in place
expect_told 1
stop_server
expect_told 1

echo "== already passed"
watermark 16M '' ''
connect_once
expect_told 1
write 40 44
expect_told 1
stop_server

echo "== again and again; the command knows the facts"
rm disk.qcow2
qemu-img create -q -f qcow2 disk.qcow2 1G
# shellcheck disable=SC2016 # for the command's shell
watermark 4M 8M 'echo "$NBDCOW_EXPORT|$NBDCOW_FILE|$NBDCOW_HIGHEST|$NBDCOW_THRESHOLD|$NBDCOW_DEVICE_SIZE|$NBDCOW_SIZE" >>facts'
for i in 0 1 2 3 4 5; do
  write $((i * 4)) $((i * 4 + 4))
  expect_told $(((i + 2) / 2))
done
wait_for 60 lines_are 3 facts || fail "the command was run $(wc -l <facts) times: $(cat facts)"
i=0
while IFS='|' read -r name file highest threshold device size; do
  [ "$name" = '' ] && [ "${file##*/}" = disk.qcow2 ] && [ "$device" = 0 ] && [ "$size" = $((1024 * MB)) ] ||
    fail "facts: $name $file $device $size"
  [ "$threshold" = $((4 * MB + i * 8 * MB)) ] && [ "$highest" -gt "$threshold" ] &&
    [ "$highest" -lt $((threshold + 8 * MB)) ] || fail "facts: $highest, $threshold"
  i=$((i + 1))
done <facts
stop_server

echo "== a percentage of the disk; after kill -9 it is known at once"
rm disk.qcow2 facts
qemu-img create -q -f qcow2 disk.qcow2 100M
watermark 20% '' ''
write 0 19
expect_told 0
write 19 30
expect_told 1
grep -q "past the watermark of $((20 * MB))" "$SERVER_LOG" || fail "$(cat "$SERVER_LOG")"
kill -KILL "$SERVER_PID"
wait_server_exit
watermark 29% '' ''
connect_once
expect_told 1
stop_server

echo "== one command at a time; the server does not wait for it"
rm disk.qcow2
qemu-img create -q -f qcow2 disk.qcow2 1G
mkfifo gate
# shellcheck disable=SC2016
watermark 2M 1M 'mkdir busy || echo twice >>trouble; echo "$NBDCOW_THRESHOLD" >>runs; cat gate >/dev/null; rmdir busy'
write 0 4
wait_for 60 lines_are 1 runs || fail "the command was not run"
write 4 30 # passes it many times, while the first command is held up
told_some () { [ "$(told)" -ge 2 ]; }
wait_for 60 told_some || fail "nothing more is told while the command is being run"
: >gate
wait_for 60 lines_are 2 runs || fail "the command was not run again"
[ "$(tail -n 1 runs)" -gt $((20 * MB)) ] || fail "not with what is true by then: $(cat runs)"
: >gate
no_busy () { [ ! -e busy ]; }
wait_for 60 no_busy || fail "the command did not end"
[ ! -e trouble ] || fail "two commands at a time"
stop_server
lines_are 2 runs || fail "the command was run more often: $(cat runs)"

echo "== a command that fails, one that cannot be found, one that is killed"
for command in 'exit 7' /nonexistent/command "kill -9 \$\$"; do
  rm disk.qcow2
  qemu-img create -q -f qcow2 disk.qcow2 1G
  watermark 2M '' "$command"
  write 0 4
  has_word () { grep -q 'status 7\|status 127\|signal 9' "$SERVER_LOG"; }
  wait_for 60 has_word || fail "$command: no word of how it ended: $(cat "$SERVER_LOG")"
  write 4 8
  stop_server
done
check_image disk.qcow2

echo "== what is not a watermark"
case $FRONTEND in nbdcow) p=-- ;; nbdkit) p= ;; esac
for bad in 0 0% 101% x 5%x -1 ''; do
  must_refuse disk.qcow2 "arg=${p}watermark=$bad" -- watermark
done

[ "$FRONTEND" = nbdcow ] || exit 0

echo "== each export its own; what a raw image or a read-only one has no use for"
rm disk.qcow2
qemu-img create -q -f qcow2 disk.qcow2 1G
qemu-img create -q -f qcow2 other.qcow2 1G
truncate -s 1M raw.img
start_server disk.qcow2 arg=--watermark=4M \
  arg=--export=name=other,file=other.qcow2,watermark=2M,watermark-repeat=1% \
  arg=--export=name=raw,file=raw.img,format=raw
write 0 6
expect_told 1
URI="nbd+unix:///other?socket=$SOCK" write 0 3
expect_told 2
grep -q '"other".*past the watermark' "$SERVER_LOG" || fail "not the other one's"
grep -q '"raw".*no watermark' "$SERVER_LOG" || fail "nothing is said about the raw image"
stop_server

echo "== the commands are those of the command line and the configuration"
configure () # FILE WATERMARK COMMAND
{
  # shellcheck disable=SC2016
  "$PYTHON" -c '
import json, sys
x = {"name": "other", "file": sys.argv[1], "watermark": sys.argv[2]}
if sys.argv[3]:
    x["watermark-exec"] = sys.argv[3]
json.dump({"export": [x]}, open("config.new", "w"))' "$@"
  mv config.new config.json
}
children () { cat "/proc/$SERVER_PID/task/$SERVER_PID/children"; }
reloads () { grep -c 'configuration reloaded' "$SERVER_LOG" || :; }
reloaded () { [ "$(reloads)" = "$1" ]; }
rm other.qcow2
qemu-img create -q -f qcow2 other.qcow2 1G
configure other.qcow2 900M ''
start_nbdcow disk.qcow2
[ -z "$(children)" ] || fail "a process that runs commands, and there are none: $(children)"
stop_server
start_nbdcow disk.qcow2 arg=--config=config.json arg=-v "arg=--control=$tmp/control"
# Nobody else has one run: not with a command of the control socket either.
PYTHONPATH=$SRCDIR "$PYTHON" - "$tmp/control" <<'END'
import qmp, sys

c = qmp.Client(sys.argv[1])
add = {"type": "nbd", "id": "third", "file": "third.qcow2", "writable": True, "watermark": "1M"}
assert "neither the command line nor the configuration" in c.refuses(
    "block-export-add", dict(add, **{"watermark-exec": "echo >>escaped"}))[1]
END
configure other.qcow2 4M 'echo >>new'
kill -HUP "$SERVER_PID"
wait_for 60 reloaded 1 || fail "a new command was refused: $(cat "$SERVER_LOG")"
URI="nbd+unix:///other?socket=$SOCK" write 0 5
wait_for 60 lines_are 1 new || fail "the new command was not run: $(cat "$SERVER_LOG")"
# What is known is for exports that come later as well.
qemu-img create -q -f qcow2 third.qcow2 1G
PYTHONPATH=$SRCDIR "$PYTHON" - "$tmp/control" <<'END'
import qmp, sys

c = qmp.Client(sys.argv[1])
c.execute("block-export-add", {"type": "nbd", "id": "third", "file": "third.qcow2", "writable": True,
                               "watermark": "1M", "watermark-exec": "echo >>new"})
END
URI="nbd+unix:///third?socket=$SOCK" write 0 2
wait_for 60 lines_are 2 new || fail "a known command was not run: $(cat "$SERVER_LOG")"
stop_server
# What is in the file when the command is to be run is what counts.
configure other.qcow2 4M 'echo >>gone'
rm other.qcow2
qemu-img create -q -f qcow2 other.qcow2 1G
start_nbdcow disk.qcow2 arg=--config=config.json arg=-v
configure other.qcow2 8M 'echo >>later'
kill -HUP "$SERVER_PID"
wait_for 60 reloaded 1 || fail "another command was refused: $(cat "$SERVER_LOG")"
configure other.qcow2 8M 'echo >>other'
URI="nbd+unix:///other?socket=$SOCK" write 0 9
unknown () { grep -q 'command ended with status 126' "$SERVER_LOG"; }
wait_for 60 unknown || fail "a command that is in no configuration was run: $(cat "$SERVER_LOG")"
stop_server
for file in escaped gone later other; do
  [ ! -e $file ] || fail "'$file' was written by a command that nobody asked for"
done

requires_root "to make a loop device"
requires losetup
truncate -s 32M volume
dev=$(losetup --find --show volume 2>loop.log) || skip "no loop devices here: $(cat loop.log)"
at_exit "losetup -d $dev 2>/dev/null"
echo "== a percentage of a block device moves up when that grows"
qemu-img create -q -f qcow2 "$dev" 1G
start_server "$dev" arg=--watermark=50% arg=--watermark-exec="truncate -s 64M $tmp/volume && losetup -c $dev && echo \$NBDCOW_DEVICE_SIZE \$NBDCOW_THRESHOLD >>$tmp/grown"
write 0 15
expect_told 0
write 15 18
wait_for 60 lines_are 1 grown || fail "the device was not grown: $(cat "$SERVER_LOG")"
[ "$(cat grown)" = "$((32 * MB)) $((16 * MB))" ] || fail "facts: $(cat grown)"
ended () { [ "$(blockdev --getsize64 "$dev")" = $((64 * MB)) ]; }
wait_for 60 ended || fail "the device is no larger"
write 18 29
expect_told 1
write 29 36
expect_told 2
grep -q "past the watermark of $((32 * MB)), of a device of $((64 * MB))" "$SERVER_LOG" || fail "$(cat "$SERVER_LOG")"
stop_server
