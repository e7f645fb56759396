#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A script that was written for qemu-nbd, run with the server of SERVERS in its place: by default
# nbdcow, and qemu-nbd itself where it is installed, so that the script is known to be right.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires qemu-img qemu-io nbdinfo nbdcopy

# ---- the images --------------------------------------------------------------------------------

qemu-img create -q -f raw base.raw 16M
qemu-io -f raw -c 'write -q -P 0x11 0 1M' base.raw
qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2 16M
qemu-io -c 'write -q -P 0x22 1M 1M' disk.qcow2
qemu-img snapshot -c before disk.qcow2
qemu-io -c 'write -q -P 0x33 1M 64k' disk.qcow2
cp disk.qcow2 marked.qcow2
qemu-img bitmap --add -g 64k marked.qcow2 changes
for image in disk.qcow2 marked.qcow2; do
  qemu-io -c 'write -q -P 0x44 4M 128k' $image
done
cp disk.qcow2 golden.qcow2
(head -c 1048576 /dev/zero; cat base.raw) >sliced.raw

# ---- the script --------------------------------------------------------------------------------

# start OPTION...: in the background, returning when clients can connect.
start ()
{
  rm -f "$tmp/nbd.pid" # whose lock may outlive its process for a moment
  "$nbd" --fork --pid-file="$tmp/nbd.pid" -k "$tmp/nbd.sock" "$@" || fail "$nbd $*: status $?"
  [ -s "$tmp/nbd.pid" ] || fail "$nbd $*: no pid file"
  track "$(cat "$tmp/nbd.pid")"
}

stop ()
{
  pid=$(cat "$tmp/nbd.pid")
  kill -TERM "$pid"
  stopped () { ! process_alive "$pid"; }
  wait_for 20 stopped || fail "$nbd did not stop"
  [ ! -e "$tmp/nbd.sock" ] || fail "$nbd left its socket behind"
}

# io COMMAND...: on the default export.
io ()
{
  set -- -f raw "$@"
  qemu-io "$@" "nbd+unix:///?socket=$tmp/nbd.sock" >io.out 2>&1 || { cat io.out >&2; fail "$nbd: $*"; }
  ! grep -i -e 'verification failed' -e error io.out >&2 || fail "$nbd: $*"
}

# map CONTEXT: its extents.
map ()
{
  nbdinfo --map="$1" "nbd+unix:///?socket=$tmp/nbd.sock" | awk '{ print $1, $2, $3 }'
}

expect ()
{
  [ "$1" = "$2" ] || fail "$nbd, $3: expected '$1', got '$2'"
}

script ()
{
  cp golden.qcow2 disk.qcow2

  # Persistent, shared, writable.
  start -t -e 0 -f qcow2 --cache=none --aio=native --discard=unmap disk.qcow2
  io -c 'read -P 0x11 0 1M' -c 'read -P 0x33 1M 64k' -c 'read -P 0x22 1088k 960k'
  io -c 'write -P 0x55 8M 64k' -c 'flush' -c 'discard 9M 1M'
  io -c 'read -P 0x55 8M 64k'
  stop
  check_image disk.qcow2
  qemu-io -r -c 'read -q -P 0x55 8M 64k' disk.qcow2

  # Ends with its client.
  cp golden.qcow2 disk.qcow2
  start disk.qcow2
  pid=$(cat nbd.pid) # which goes with the server
  nbdcopy "nbd+unix:///?socket=$tmp/nbd.sock" copy.raw
  ended () { ! process_alive "$pid"; }
  wait_for 20 ended || fail "$nbd did not end with its last client"
  same_contents golden.qcow2 qcow2 copy.raw raw

  # A list, with names and descriptions.
  start -t -x disk0 -D 'The first disk' -A -r disk.qcow2
  "$nbd" --list -k "$tmp/nbd.sock" >list.out
  for line in 'exports available: 1' " export: 'disk0'" '  description: The first disk' \
    '  size:  16777216' '   base:allocation' '   qemu:allocation-depth'; do
    grep -qxF -e "$line" list.out || fail "$nbd --list lacks '$line': $(cat list.out)"
  done
  grep -q '  flags: 0x[0-9a-f]* ( readonly ' list.out || fail "$nbd --list: flags"
  stop

  # A backup: bitmap and allocation.
  start -t -r -A -B changes -f qcow2 marked.qcow2
  expect "0 4194304 0
4194304 131072 1
4325376 12451840 0" "$(map qemu:dirty-bitmap:changes)" bitmap
  expect "0 1048576 2
1048576 1048576 1
2097152 2097152 2
4194304 131072 1
4325376 12451840 2" "$(map qemu:allocation-depth)" depth
  stop

  # An internal snapshot, by its name and by both.
  for snapshot in before 1 snapshot.name=before snapshot.id=1,snapshot.name=before; do
    start -t -r --load-snapshot="$snapshot" disk.qcow2
    io -r -c 'read -P 0x22 1M 1M' -c 'read -P 0 4M 128k'
    stop
  done

  # A temporary overlay.
  sum=$(digest disk.qcow2)
  start -t --snapshot disk.qcow2
  io -c 'write -P 0x66 0 2M' -c 'read -P 0x66 0 2M' -c 'read -P 0x44 4M 128k'
  stop
  unchanged "$sum" disk.qcow2

  # A part of a disk.
  start -t -r -o 1048576 -f qcow2 disk.qcow2
  expect 15728640 "$(nbdinfo --size "nbd+unix:///?socket=$tmp/nbd.sock")" 'size behind an offset'
  io -r -c 'read -P 0x33 0 64k' -c 'read -P 0x44 3M 128k'
  stop

  # Images as tools spell them.
  start -t -r --image-opts driver=qcow2,file.driver=file,file.filename=disk.qcow2
  io -r -c 'read -P 0x44 4M 128k'
  stop
  start -t -r 'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "disk.qcow2"}, "backing": null}'
  io -r -c 'read -P 0 0 1M' -c 'read -P 0x44 4M 128k'
  stop
  start -t "json:{\"driver\": \"raw\", \"offset\": 1048576, \"size\": 8388608, \
    \"file\": {\"driver\": \"file\", \"filename\": \"$tmp/sliced.raw\"}}"
  expect 8388608 "$(nbdinfo --size "nbd+unix:///?socket=$tmp/nbd.sock")" 'size of a part'
  io -c 'read -P 0x11 0 1M' -c 'read -P 0 1M 7M'
  stop

  # Zeroes are looked for.
  start -t -f qcow2 --discard=unmap --detect-zeroes=unmap disk.qcow2
  io -c 'write -P 0 4M 128k' -c 'read -P 0 4M 128k'
  expect 3 "$(map base:allocation | awk '$1 <= 4194304 && $1 + $2 >= 4325376 { print $3 }')" \
    'a write of zeroes'
  stop
  check_image disk.qcow2

  # What cannot be is an error with status 1.
  for bad in '--bitmap=none disk.qcow2' '--load-snapshot=none disk.qcow2' '--offset=1T disk.qcow2' \
    '--detect-zeroes=unmap disk.qcow2' '--list disk.qcow2' '--image-opts -f raw disk.qcow2' \
    '--shared=x disk.qcow2' '--cache=fast disk.qcow2' 'missing.qcow2' '--tls-creds=none disk.qcow2'; do
    status=0
    # shellcheck disable=SC2086 # two words are meant
    timeout 20 "$nbd" -r -k "$tmp/nbd.sock" $bad >bad.out 2>&1 </dev/null || status=$?
    expect 1 "$status" "status of $bad"
    [ "$(wc -l <bad.out)" -ge 1 ] || fail "$nbd $bad: no message"
  done
}

qemu_nbd=$(command -v "${QEMU_NBD:-qemu-nbd}" || :)
for nbd in ${SERVERS:-"$NBDCOW" $qemu_nbd}; do
  echo "$test_name: with $(basename "$nbd")"
  script
done
