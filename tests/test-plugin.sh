#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# What is nbdkit's own about the plugin: its parameters, what it tells about itself, the cache modes,
# filters that promise not to write, and nbdkit in the background.  What it serves is tested with both
# front ends.

FRONTEND=nbdkit
. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io nbdinfo nm jq
requires_python_nbd

nbdkit_qcow2 ()
{
  timeout 60 env ${PLUGIN_PRELOAD:+"LD_PRELOAD=$PLUGIN_PRELOAD"} "$NBDKIT" "$NBDKIT_PLUGIN" "$@"
}

# client CODE: Python with a connected handle h.
client ()
{
  timeout 60 "$PYTHON" -c "
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
$1
h.shutdown()" "$URI"
}

# has_byte IMAGE PATTERN OFFSET: what somebody sees who opens the file now, whatever lock is on it.
has_byte ()
{
  qemu-io -r -U -f qcow2 -c "read -P $2 $3 512" "$1" >io.out 2>&1
  ! grep -q 'verification failed' io.out
}

echo "== only nbdkit's entry point, and a flag for its -D, come out of the plugin"
[ "$(nm -D --defined-only "$NBDKIT_PLUGIN" | awk '{ print $3 }' | sort | tr '\n' ' ')" = \
  "plugin_init qcow2_debug_statistics " ]

echo "== a line of statistics: at the end, and whenever a client has gone, if asked for"
qemu-img create -q -f qcow2 counted.qcow2 16M
nbdkit_qcow2 -U - counted.qcow2 state-dir=off statistics=on \
  --run 'qemu-io -f raw -c "write 0 64k" -c flush -c "read 0 512" "$uri"' >counted.log 2>&1 || fail "$(cat counted.log)"
grep -q 'statistics: reads=[1-9].* writes=1 (65536 bytes) flushes=[1-9].* errors=0 highest-offset=[1-9]' \
  counted.log || fail "$(cat counted.log)"
nbdkit_qcow2 -v -D qcow2.statistics=1 -U - counted.qcow2 state-dir=off \
  --run 'for i in 1 2 3; do qemu-img info -f raw "$uri"; done
    # nbdkit ends with its command, and may not have noticed by then that its clients have gone.
    for i in $(seq 300); do
      [ "$(grep -c "debug: statistics: reads=" counted.log)" -lt 3 ] || break
      sleep 0.1
    done' >counted.log 2>&1 || fail "$(cat counted.log)"
[ "$(grep -c 'debug: statistics: reads=' counted.log)" -ge 4 ] || fail "$(cat counted.log)"

echo "== what it tells about itself"
nbdkit_qcow2 --dump-plugin >dump
for field in name=qcow2 max_thread_model=parallel errno_is_preserved=1 magic_config_key=file \
  "qcow2_versions=2 3" "qcow2_compression=zlib zstd" qcow2_highest_allocated_offset=yes qcow2_watermark=yes; do
  grep -qxF "$field" dump || fail "--dump-plugin does not print $field"
done
grep -q '^qcow2_zlib=1\.' dump
grep -q '^qcow2_zstd=1\.' dump
nbdkit_qcow2 --help >help
for key in file format backing discard cache lock l2-cache-size refcount-cache-size watermark \
  watermark-repeat watermark-exec statistics; do
  grep -q "$key.*=" help || fail "--help does not know $key"
done

echo "== parameters that make no sense"
qemu-img create -q -f qcow2 base.qcow2 4M
qemu-io -f qcow2 -c 'write -q -P 1 0 1M' base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
sum=$(digest disk.qcow2)
refused disk.qcow2 arg=format=vmdk -- format=vmdk auto qcow2 raw
refused disk.qcow2 arg=backing=yes -- backing=yes recorded probe none
refused disk.qcow2 arg=discard=maybe -- discard=maybe unmap ignore
refused disk.qcow2 arg=cache=fast -- cache=fast writeback unsafe
refused disk.qcow2 arg=lock=x -- lock=x on off
refused disk.qcow2 arg=l2-cache-size=0 -- l2-cache-size=0 size
refused disk.qcow2 arg=wrong=1 -- wrong=1
refused disk.qcow2 arg=file=base.qcow2 -- file=base.qcow2 disk.qcow2
refused none.qcow2 -- none.qcow2 'no such file'
if nbdkit_qcow2 >out 2>&1; then
  fail "started without an image"
fi
grep -q 'no image' out
unchanged "$sum" disk.qcow2

echo "== the export and its description"
start_server disk.qcow2
nbdinfo --json --list "$URI" >list.json
[ "$(jq -r '.exports | length' list.json)" = 1 ]
[ "$(jq -r '.exports[0]."export-name"' list.json)" = "" ]
jq -r '.exports[0].description' list.json >description
grep -q 'qcow2 version 3, 65536-byte clusters, 2 in chain' description
[ "$(jq -r '.exports[0].block_size_preferred' list.json)" = 65536 ]
for c in can_write can_flush can_fua can_trim can_zero can_fast_zero can_cache can_multi_conn can_df; do
  nbdinfo --can "${c#can_}" "$URI" || fail "$c is not offered"
done
! nbdinfo --is rotational "$URI"
stop_server
server_log_is_empty

echo "== discard=ignore offers no trim"
start_server disk.qcow2 discard=ignore
! nbdinfo --can trim "$URI"
stop_server

echo "== FUA, and the modes that flush each write: others see it at once"
for mode in writeback writethrough directsync none; do
  qemu-img create -q -f qcow2 mode.qcow2 4M
  start_server mode.qcow2 cache=$mode
  case $mode in
  writethrough | directsync) client 'h.pwrite(bytes([7]) * 65536, 0)' ;;
  *) client 'h.pwrite(bytes([7]) * 65536, 0, nbd.CMD_FLAG_FUA)' ;;
  esac
  has_byte mode.qcow2 7 0 || fail "cache=$mode: answered, but not in the image"
  stop_server
  check_image mode.qcow2
done

echo "== cache=unsafe: a flush does nothing, stopping does"
qemu-img create -q -f qcow2 mode.qcow2 4M
start_server mode.qcow2 cache=unsafe
client 'h.pwrite(bytes([7]) * 65536, 0); h.flush()'
! has_byte mode.qcow2 7 0 || fail "cache=unsafe flushed"
stop_server
has_byte mode.qcow2 7 0 || fail "what was written was lost when nbdkit stopped"
check_image mode.qcow2

echo "== the cow filter makes it read-only: not a byte changes, and readers may share it"
sum=$(digest disk.qcow2)
start_server disk.qcow2 arg=--filter=cow
client '
h.pwrite(b"x" * 4096, 0)
h.flush()
assert h.pread(1, 0) == b"x"'
qemu-io -r -f qcow2 -c 'read -q -P 1 0 512' disk.qcow2
stop_server
server_log_is_empty
unchanged "$sum" disk.qcow2

echo "== a reader is in the way: the first client is refused, the next one after it is not"
start_server disk.qcow2
first_pid=$SERVER_PID first_uri=$URI first_log=$SERVER_LOG
start_server disk.qcow2 read-only
client 'h.pread(512, 0)'
reader_pid=$SERVER_PID URI=$first_uri
if client 'h.pread(512, 0)' 2>/dev/null; then
  fail "a writer came in beside a reader"
fi
grep -q 'lock=off' "$first_log" || { cat "$first_log"; fail "the message names no way out"; }
stop_server "$reader_pid"
client 'h.pwrite(b"y" * 512, 0)'
stop_server "$first_pid"
check_image disk.qcow2
has_byte disk.qcow2 0x79 0

echo "== in the background, from a relative name"
mkdir sub
mv base.qcow2 disk.qcow2 sub
SOCK=$tmp/bg.sock PIDFILE=$tmp/bg.pid URI="nbd+unix:///?socket=$tmp/bg.sock"
nbdkit_qcow2 -U "$SOCK" -P "$PIDFILE" sub/disk.qcow2
# The pid file is written after the fork.
wait_for 20 test -s "$PIDFILE" || fail "nbdkit did not come up in the background"
track "$(cat "$PIDFILE")"
client 'h.pwrite(b"z" * 512, 512); assert h.pread(1, 65536) == b"\1"'
bg_pid=$(cat "$PIDFILE")
kill "$bg_pid"
bg_gone () { ! process_alive "$bg_pid"; }
wait_for 30 bg_gone || fail "nbdkit did not stop"
check_image sub/disk.qcow2
has_byte sub/disk.qcow2 0x7a 512

echo "== backing=none reads zeros where nothing is allocated"
start_server sub/disk.qcow2 backing=none read-only
client 'assert h.pread(4096, 65536) == bytes(4096)'
stop_server
