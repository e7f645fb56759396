#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# External data files, and what an image may make us open: made by QEMU and by us, served, written, read
# by the other; raw data files are the disk at all times; which names are followed, and which word
# allows those that are not.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires_python_nbd
use_seed

# option KEY VALUE: as the front end has it.
option ()
{
  case $FRONTEND in
  nbdcow) echo "arg=--$1=$2" ;;
  nbdkit) echo "arg=$1=$2" ;;
  esac
}

untrusted ()
{
  case $FRONTEND in
  nbdcow) echo "arg=--untrusted" ;;
  nbdkit) echo "arg=untrusted=on" ;;
  esac
}

# write_and_compare: disk.qcow2, whose contents are those of the file model.
write_and_compare ()
{
  start_server disk.qcow2 discard=unmap "$@"
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 120
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  stop_server
  server_log_is_empty
  check_image disk.qcow2
  same_contents disk.qcow2 qcow2 model raw
}

echo "== made by QEMU and by us, plain and raw, written by each in turn"
size=$((5 * 1048576 + 1536))
for maker in qemu-img "$NBDCOW_IMG"; do
  for raw in off on; do
    for cluster in 4096 65536; do
      rm -f disk.*
      "$maker" create -f qcow2 -o data_file=disk.data,data_file_raw=$raw,cluster_size=$cluster disk.qcow2 $size >log
      : >model && truncate -s $size model
      [ "$(stat -c %s disk.data)" -ge $size ] || fail "the data file is shorter than the disk"
      check_image disk.qcow2
      write_and_compare
      [ $raw = off ] || cmp -n $size disk.data model || fail "the raw data file is not the disk"
      qemu-io -f qcow2 -c "write -P 9 100k 700k" -c "write -z 64k 192k" -c "discard 1M 1M" disk.qcow2 >log
      qemu-img convert -f qcow2 -O raw disk.qcow2 model
      [ $raw = off ] || cmp -n $size disk.data model || fail "QEMU does not keep the raw data file"
      write_and_compare
      [ $raw = off ] || cmp -n $size disk.data model || fail "the raw data file is not the disk"
    done
  done
done

echo "== over a backing file"
"$PYTHON" "$SRCDIR/disk.py" fill base.raw 3145728
rm -f disk.*
"$NBDCOW_IMG" create -q -o data_file=disk.data -b base.raw -F raw disk.qcow2 4M
cp base.raw model && truncate -s 4M model
write_and_compare

echo "== past the page cache"
write_and_compare cache=none

echo "== which file is followed"
mkdir other
cp disk.data other/far.data
ln disk.data near.data
set_name () { "$NBDCOW_IMG" amend --data-file=disk.data -o "data_file=$1" disk.qcow2; }
for name in near.data "$tmp/near.data" "file:near.data"; do
  set_name "$name"
  start_server disk.qcow2
  stop_server
done
for name in other/far.data "$tmp/other/far.data" ../x.data; do
  set_name "$name"
  must_refuse disk.qcow2 -- "$name" 'data-file=' 'data-file-policy=any'
done
for name in 'json:{"driver":"file","filename":"near.data"}' nbd://localhost/x 'nbd:unix:/x' http://x/y; do
  set_name "$(printf %s "$name" | sed 's/,/,,/g')"
  must_refuse disk.qcow2 "$(option data-file-policy any)" -- 'only a local file' 'data-file=FILE'
done
set_name other/far.data
start_server disk.qcow2 "$(option data-file-policy any)"
stop_server
set_name near.data
must_refuse disk.qcow2 "$(option data-file-policy none)" -- near.data 'data-file-policy=same-dir'
must_refuse disk.qcow2 "$(untrusted)" "$(option backing none)" -- near.data
start_server disk.qcow2 "$(untrusted)" backing=none "$(option data-file "$tmp/other/far.data")"
stop_server
set_name gone.data
must_refuse disk.qcow2 -- gone.data 'No such file' 'data-file=FILE'
must_refuse base.raw format=raw "$(option data-file near.data)" -- 'no external data file'
if [ "$FRONTEND" = nbdcow ]; then
  FILE="driver=qcow2,file.filename=disk.qcow2,data-file.driver=file,data-file.filename=other/far.data"
  start_server "$FILE" arg=--image-opts
  stop_server
  set_name near.data
  start_server disk.qcow2 arg=--snapshot
  stop_server
fi

echo "== a data file that is something else as well"
set_name disk.qcow2
must_refuse disk.qcow2 -- 'disk.qcow2' 'also an image'
set_name base.raw
must_refuse disk.qcow2 -- base.raw 'data file'

echo "== backing files"
qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2
qemu-img create -q -f qcow2 -b other/far.data -F raw far.qcow2
start_server top.qcow2 backing=same-dir
stop_server
must_refuse far.qcow2 backing=same-dir -- other/far.data 'backing=recorded'
start_server far.qcow2 backing=recorded
stop_server
must_refuse top.qcow2 "$(untrusted)" -- base.raw 'backing=same-dir' 'backing=none'
start_server top.qcow2 "$(untrusted)" backing=none
stop_server
qemu-img rebase -u -f qcow2 -b /dev/zero -F raw top.qcow2
must_refuse top.qcow2 -- /dev/zero
qemu-img rebase -u -f qcow2 -b 'json:{"driver":"file","filename":"base.raw"}' -F raw top.qcow2
must_refuse top.qcow2 backing=any -- 'only a local file'

echo "== nbdcow-img"
"$NBDCOW_IMG" info --untrusted top.qcow2 >log || fail "info of an untrusted image"
"$NBDCOW_IMG" info --untrusted --backing-chain far.qcow2 >log 2>err && fail "info followed the name in an untrusted image"
grep -q 'not trusted' err || fail "$(cat err)"
"$NBDCOW_IMG" create -q -o data_file=other/sub.data other/sub.qcow2 1M
"$NBDCOW_IMG" info other/sub.qcow2 | grep -q "data file: $tmp/other/sub.data" || fail "not found from elsewhere"
(cd / && qemu-img info "$tmp/other/sub.qcow2" >/dev/null) || fail "QEMU does not find the data file"
"$NBDCOW_IMG" create -q -o data_file=same.qcow2 same.qcow2 1M 2>err && fail "an image is its own data file"
"$NBDCOW_IMG" create -q -o data_file_raw=on x.qcow2 1M 2>err && fail "data_file_raw without a data file"
"$NBDCOW_IMG" create -q -o data_file=x.data,compat=v2 x.qcow2 1M 2>err && fail "version 2 with a data file"
"$NBDCOW_IMG" create -q -o data_file=x.data,data_file_raw=on -b base.raw -F raw x.qcow2 2>err && fail "raw over a backing file"
[ ! -e x.qcow2 ] && [ ! -e x.data ] || fail "left something behind"
:
