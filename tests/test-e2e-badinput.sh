#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# What cannot be served is refused in one line that names the file, the field or option, and the
# value; the exit status is 1 and the file keeps every byte.  What is only damaged in places serves the rest.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
skip_sanitized_nbdkit
requires qemu-img qemu-io
requires_python_nbd

q ()
{
  "$PYTHON" "$SRCDIR/qcow2.py" "$@"
}

failures=0

# refuses WHAT IMAGE OPTION... -- PATTERN...: counts instead of ending the test, so that one run
# shows all that is wrong.
refuses ()
{
  what=$1
  shift
  before=$(digest "$1" 2>/dev/null || :)
  if ! refused "$@"; then
    complain "$what: $REASON"
  elif [ "$before" != "$(digest "$1" 2>/dev/null || :)" ]; then
    complain "$what: the file was changed"
  fi
  rm -f server-*.log "$STATE_DIR"/* # each case for itself
}
complain ()
{
  failures=$((failures + 1))
  echo "FAIL: $*" >&2
}

# bad WHAT MUTATION -- PATTERN...: the image after `q MUTATION` on a copy of good.qcow2 is refused,
# for writing and for reading.  The file's name must be in the line anyway.
bad ()
{
  what=$1 mutation=$2
  shift 3
  cp good.qcow2 bad.qcow2
  eval "$mutation"
  refuses "$what" bad.qcow2 -- bad.qcow2 "$@"
  refuses "$what, read-only" bad.qcow2 read-only -- bad.qcow2 "$@"
}

qemu-img create -q -f qcow2 base.qcow2 8M
qemu-io -f qcow2 -c 'write -q -P 1 0 8M' base.qcow2
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 good.qcow2 8M
qemu-io -f qcow2 -c 'write -q -P 2 0 1M' -c 'write -q -P 3 4M 1M' good.qcow2

echo "== the good one is served"
start_server good.qcow2
stop_server
server_log_is_empty
cp good.qcow2 pristine.qcow2

echo "== not an image at all"
yes 'just some text' | head -n 100 >text.img
: >empty.img
mkdir dir.img
refuses "text" text.img -- text.img raw
refuses "an empty file" empty.img -- empty.img raw
refuses "text as qcow2" text.img format=qcow2 -- text.img 'not a qcow2 image' 0x514649fb
refuses "an empty file as qcow2" empty.img format=qcow2 -- empty.img
refuses "a directory" dir.img -- dir.img directory
refuses "no file" missing.img -- missing.img 'no such file'
refuses "no file, read-only" missing.img read-only -- missing.img 'no such file'
[ ! -e missing.img ] || fail "a file was made"

echo "== truncated"
for n in 4 30 71 90 103; do
  bad "cut at $n" "truncate -s $n bad.qcow2" --
done
bad "cut in the L1 table" "truncate -s $(($(q get good.qcow2 l1_table_offset) + 4)) bad.qcow2" -- l1
bad "cut behind the header" "truncate -s $(q get good.qcow2 refcount_table_offset) bad.qcow2" -- \
  truncated

echo "== header fields"
bad "version" "q set bad.qcow2 version 4" -- version 4
bad "version 1" "q set bad.qcow2 version 1" -- version 1
bad "cluster_bits low" "q set bad.qcow2 cluster_bits 8" -- cluster_bits 8
bad "cluster_bits high" "q set bad.qcow2 cluster_bits 22" -- cluster_bits 22
bad "cluster_bits silly" "q set bad.qcow2 cluster_bits 0xffffffff" -- cluster_bits
bad "size" "q set bad.qcow2 size 0xfffffffffffffe00" -- size
bad "crypt_method" "q set bad.qcow2 crypt_method 7" -- crypt 7
bad "AES" "q set bad.qcow2 crypt_method 1" -- encrypt
bad "l1_size 0" "q set bad.qcow2 l1_size 0" -- l1_size
bad "l1_size huge" "q set bad.qcow2 l1_size 0x40000000" -- l1_table
bad "l1_table_offset" "q set bad.qcow2 l1_table_offset 0x30200" -- 'l1_table offset'
bad "l1_table_offset far" "q set bad.qcow2 l1_table_offset 0x7fffffffffff0000" -- 'l1_table offset'
bad "refcount_table_offset" "q set bad.qcow2 refcount_table_offset 513" -- 'refcount_table offset'
bad "refcount_table_clusters 0" "q set bad.qcow2 refcount_table_clusters 0" -- refcount_table_clusters
bad "refcount_table_clusters huge" "q set bad.qcow2 refcount_table_clusters 0x7fffffff" -- refcount_table
bad "refcount_order" "q set bad.qcow2 refcount_order 7" -- refcount_order 7
bad "header_length short" "q set bad.qcow2 header_length 80" -- header_length 80
bad "header_length odd" "q set bad.qcow2 header_length 105" -- header_length 105
bad "header_length long" "q set bad.qcow2 header_length 0x10008" -- header_length
bad "backing_file_size" "q set bad.qcow2 backing_file_size 1024" -- backing_file_size 1024
bad "backing_file_offset" "q set bad.qcow2 backing_file_offset 0xfffff" -- backing_file_offset
bad "backing_file_offset in the header" "q set bad.qcow2 backing_file_offset 8" -- backing_file_offset
bad "snapshots" "q set bad.qcow2 nb_snapshots 0x10001" -- nb_snapshots
bad "snapshots_offset" "q set bad.qcow2 nb_snapshots 1; q set bad.qcow2 snapshots_offset 77" -- \
  'snapshots offset' 0x4d
bad "extended L2 entries" "q set bad.qcow2 cluster_bits 13; q set bad.qcow2 incompatible_features 16" -- \
  cluster_bits 13 'extended L2'
bad "compression_type" "q set bad.qcow2 compression_type 9; q set bad.qcow2 incompatible_features 8" -- \
  compression_type 9

echo "== features, by the name that the image gives them"
bad "a named incompatible feature" "q feature bad.qcow2 incompatible 40 'gold plating'" -- \
  'gold plating'
bad "an incompatible feature without a name" "q set bad.qcow2 incompatible_features 0x20000000000" -- 41
derive qemu-img create -q -f qcow2 --object secret,id=s,data=x \
  -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=100 luks.qcow2 2M
qemu-img create -q -f qcow2 -o data_file=ext.data data.qcow2 8M
refuses "encryption" luks.qcow2 -- luks.qcow2 encrypt
mkdir elsewhere
mv ext.data elsewhere
refuses "no external data file" data.qcow2 -- data.qcow2 'data file' ext.data

echo "== header extensions"
ext=$(q get good.qcow2 header_length)
bad "an extension past its area" "q poke bad.qcow2 $ext 12345678fffffff9" -- extension
bad "an extension that ends past its area" "q poke bad.qcow2 $ext 1234567800010000" -- extension

echo "== the corrupt bit: not written any more"
cp good.qcow2 bad.qcow2
q set bad.qcow2 incompatible_features 2
if [ "$FRONTEND" = nbdkit ]; then # which says only to the first client whether it may write
  sum=$(digest bad.qcow2)
  start_server bad.qcow2
  nbdinfo "$URI" >/dev/null 2>&1 && complain "corrupt: a client got in"
  grep -q 'bad.qcow2.*corrupt' "$SERVER_LOG" || complain "corrupt: $(cat "$SERVER_LOG")"
  stop_server
  unchanged "$sum" bad.qcow2
else
  refuses "corrupt" bad.qcow2 -- bad.qcow2 corrupt
fi

echo "== backing files"
(cd "$tmp" && qemu-img create -q -f qcow2 -u -b gone.qcow2 -F qcow2 top.qcow2 8M)
refuses "missing backing file" top.qcow2 -- gone.qcow2 'no such file'
qemu-img create -q -f qcow2 -u -b dir.img -F raw top.qcow2 8M
refuses "a directory as backing file" top.qcow2 -- dir.img directory
qemu-img create -q -f qcow2 -u -b text.img -F qcow2 top.qcow2 8M
refuses "backing file of another format" top.qcow2 -- text.img 'not a qcow2 image'
qemu-img create -q -f qcow2 -u -b base.qcow2 -F qcow2 top.qcow2 8M
q drop-extension top.qcow2 0xe2792aca
refuses "no recorded backing format" top.qcow2 -- top.qcow2 base.qcow2 'not recorded' prob
q extension top.qcow2 0xe2792aca "$(printf vmdk | od -An -tx1 | tr -d ' ')"
refuses "unknown backing format" top.qcow2 -- top.qcow2 vmdk
qemu-img create -q -f qcow2 -u -b top.qcow2 -F qcow2 self.qcow2 8M
mv self.qcow2 top.qcow2
refuses "an image on itself" top.qcow2 -- top.qcow2 loop
rm -f one.qcow2 two.qcow2 three.qcow2
qemu-img create -q -f qcow2 -u -b two.qcow2 -F qcow2 one.qcow2 8M
qemu-img create -q -f qcow2 -u -b three.qcow2 -F qcow2 two.qcow2 8M
qemu-img create -q -f qcow2 -u -b ./one.qcow2 -F qcow2 three.qcow2 8M
refuses "a loop of three" one.qcow2 -- loop
ln -s one.qcow2 alias.qcow2
qemu-img create -q -f qcow2 -u -b alias.qcow2 -F qcow2 one.qcow2 8M
refuses "a loop through a symbolic link" one.qcow2 -- loop
ln one.qcow2 hard.qcow2
qemu-img create -q -f qcow2 -u -b hard.qcow2 -F qcow2 one.qcow2 8M
refuses "a loop through a hard link" one.qcow2 -- loop
qemu-img create -q -f qcow2 -u -b nbd://localhost/ -F raw top.qcow2 8M
refuses "a backing file by a protocol" top.qcow2 -- top.qcow2 nbd
qemu-img create -q -f qcow2 -u -b 'json:{"driver":"file","filename":"base.qcow2"}' -F qcow2 top.qcow2 8M
refuses "a backing file by json:" top.qcow2 -- top.qcow2 json
mkfifo fifo
qemu-img create -q -f qcow2 -u -b fifo -F raw top.qcow2 8M
refuses "a pipe as backing file" top.qcow2 -- fifo

# The bound is 256 layers.
qemu-img create -q -f qcow2 deep0 1M
python_chain='
import subprocess, sys, os
n = int(sys.argv[1])
def make(i):
    return subprocess.Popen(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "deep%d" % (i - 1),
                             "-F", "qcow2", "deep%d" % i, "1M"])
for i in range(1, n, 4):
    for p in [make(j) for j in range(i, min(i + 4, n))]:
        if p.wait():
            sys.exit("qemu-img create failed")'
"$PYTHON" -c "$python_chain" 257
refuses "257 layers" deep256 -- 256
truncate -s 1M zeros
start_server deep255
"$PYTHON" "$SRCDIR/disk.py" verify "$URI" zeros
stop_server
rm -f deep*

echo "== trailing NULs after the backing format (written by programs of 2009) are fine"
cp good.qcow2 nul.qcow2
q drop-extension nul.qcow2 0xe2792aca
q extension nul.qcow2 0xe2792aca 71636f77320000000000
qemu-img convert -f qcow2 -O raw good.qcow2 good.raw
start_server nul.qcow2 read-only
"$PYTHON" "$SRCDIR/disk.py" verify "$URI" good.raw
stop_server

echo "== permissions"
if [ "$(id -u)" != 0 ]; then
  cp good.qcow2 secret.qcow2
  chmod 000 secret.qcow2
  refuses "unreadable image" secret.qcow2 -- secret.qcow2 permission
  cp base.qcow2 secret.qcow2
  qemu-img create -q -f qcow2 -u -b secret.qcow2 -F qcow2 top.qcow2 8M
  chmod 000 secret.qcow2
  refuses "unreadable backing file" top.qcow2 -- secret.qcow2 permission
elif command -v setpriv >/dev/null; then
  chmod 777 .
  for f in "${NBDCOW:-}" "${NBDKIT_PLUGIN:-}"; do # where another user can reach them
    if [ -e "$f" ]; then cp "$f" .; fi
  done
  saved_nbdcow=${NBDCOW:-} saved_plugin=${NBDKIT_PLUGIN:-} saved_state=$STATE_DIR STATE_DIR=off
  NBDCOW=$tmp/$(basename "${NBDCOW:-none}") NBDKIT_PLUGIN=$tmp/$(basename "${NBDKIT_PLUGIN:-none}")
  WRAP='setpriv --reuid=65534 --regid=65534 --clear-groups'
  cp good.qcow2 secret.qcow2
  chmod 000 secret.qcow2
  refuses "unreadable image" secret.qcow2 -- secret.qcow2 permission
  cp base.qcow2 secret-base.qcow2
  qemu-img create -q -f qcow2 -u -b secret-base.qcow2 -F qcow2 open.qcow2 8M
  chmod 000 secret-base.qcow2
  chmod 666 open.qcow2
  refuses "unreadable backing file" open.qcow2 -- secret-base.qcow2 permission
  NBDCOW=$saved_nbdcow NBDKIT_PLUGIN=$saved_plugin STATE_DIR=$saved_state WRAP=
fi

echo "== options"
case $FRONTEND in
nbdcow)
  refuses "unknown option" good.qcow2 arg=--no-such-option -- no-such-option
  refuses "format" good.qcow2 format=vmdk -- vmdk qcow2 raw
  refuses "cache" good.qcow2 cache=hot -- cache hot writeback
  refuses "discard" good.qcow2 discard=maybe -- discard maybe unmap
  refuses "aio" good.qcow2 arg=--aio=psychic -- aio psychic
  refuses "shared" good.qcow2 arg=--shared=many -- shared many
  refuses "port" good.qcow2 arg=--port=99999 -- 99999
  refuses "two images" good.qcow2 arg=second.qcow2 -- second.qcow2
  ;;
nbdkit)
  refuses "unknown parameter" good.qcow2 arg=nonsense=1 -- nonsense
  refuses "format" good.qcow2 format=vmdk -- format vmdk qcow2 raw
  refuses "cache" good.qcow2 cache=hot -- cache hot writeback
  refuses "discard" good.qcow2 discard=maybe -- discard maybe unmap
  refuses "lock" good.qcow2 arg=lock=perhaps -- lock perhaps
  refuses "l2-cache-size" good.qcow2 arg=l2-cache-size=lots -- l2-cache-size lots
  refuses "two images" good.qcow2 arg=file=second.qcow2 -- second.qcow2
  ;;
esac

echo "== damaged in places: EIO there, the rest is served, and nobody hangs"
# damaged WHAT MUTATION BAD GOOD [read-only]: reading at guest offset BAD fails, at GOOD it does not.
damaged ()
{
  cp good.qcow2 bad.qcow2
  eval "$2"
  if ! try_server bad.qcow2 ${5:+"$5"}; then
    complain "damaged: $1: not served: $(cat "$SERVER_LOG")"
    return
  fi
  timeout 60 "$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
bad, good = int(sys.argv[2]), int(sys.argv[3])
for n in (65536, 512):
    try:
        h.pread(n, bad)
    except nbd.Error as e:
        assert e.errno == "EIO", e.errno
    else:
        sys.exit("a damaged cluster was read")
assert any(h.pread(65536, good))
h.shutdown()' "$URI" "$3" "$4" 2>damaged.log || complain "damaged: $1: $(tail -n 1 damaged.log)"
  [ -s "$SERVER_LOG" ] || complain "damaged: $1: nobody was told"
  kill -TERM "$SERVER_PID"
  wait_server_exit
  case $SERVER_STATUS,${5:-} in # a writer may say once more that it could not go on
  0,* | 1,) ;;
  *) complain "damaged: $1: exit status $SERVER_STATUS" ;;
  esac
  rm -f server-*.log "$STATE_DIR"/*
}
damaged "an L2 entry off its alignment" "q l2 bad.qcow2 0 0x8000000000050200" 0 4194304
damaged "an L2 entry off its alignment, read-only" "q l2 bad.qcow2 0 0x8000000000050200" 0 4194304 \
  read-only
damaged "a reserved bit in an L2 entry" "q l2 bad.qcow2 0 0xa100000000050000" 0 4194304 read-only
cp good.qcow2 save.qcow2
qemu-img convert -c -f qcow2 -O qcow2 base.qcow2 good.qcow2
entry=$(q l2 good.qcow2 0)
damaged "compressed data that is not" \
  "q poke bad.qcow2 $((entry & 0x00ffffffffff)) ffffffffffffffffffffffff" 0 4194304 read-only
damaged "compressed data past the end of the file" "q l2 bad.qcow2 0 0x403fff0000000000" 0 4194304 \
  read-only
cp save.qcow2 good.qcow2
qemu-img create -q -f qcow2 -o cluster_size=512 small.qcow2 8M
qemu-io -f qcow2 -c 'write -q -P 2 0 128k' -c 'write -q -P 2 4M 128k' small.qcow2
cp small.qcow2 good.qcow2
bad "an L1 entry off its alignment" "q l1 bad.qcow2 0 0x8000000000050101" -- 'L1 entry 0' 0x8000000000050101
damaged "an L1 entry past the end of the file" "q l1 bad.qcow2 0 0x8000ffffffff0000" 0 4194304 read-only
cp save.qcow2 good.qcow2

cmp good.qcow2 pristine.qcow2
[ $failures = 0 ] || fail "$failures cases"
