#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Backing chains: of qcow2 and raw, named in every way, of layers shorter and longer than the overlay,
# and deep.  The overlay is written, each layer below keeps every byte.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io
requires_python_nbd
use_seed

# run_overlay FILE COUNT: random operations on the chain whose top is FILE.
run_overlay ()
{
  qemu-img convert -f qcow2 -O raw "$1" model
  find . -name '*.layer' -exec sha256sum {} + | sort >layers.before
  start_server "$1" discard=unmap
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model "$2"
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  stop_server
  server_log_is_empty
  check_image "$1"
  same_contents "$1" qcow2 model raw
  find . -name '*.layer' -exec sha256sum {} + | sort >layers.after
  cmp layers.before layers.after
}

fresh ()
{
  rm -rf sub ./*.layer ./*.qcow2 model
  mkdir sub
}

echo "== each pair of sizes, qcow2 and raw, with clusters of other sizes"
for sizes in '4M 4M' '2M 4M' '6M 4M' '1000448 4M' '4M 1000448' '3M 4194816'; do
  # shellcheck disable=SC2086 # two words
  set -- $sizes
  lower=$(numfmt --from=iec "$1") upper=$(numfmt --from=iec "$2")
  for fmt in raw qcow2 qcow2-small qcow2-compressed; do
    fresh
    "$PYTHON" "$SRCDIR/disk.py" fill data.raw "$lower"
    case $fmt in
    raw) cp data.raw base.layer ;;
    qcow2) qemu-img convert -f raw -O qcow2 data.raw base.layer ;;
    qcow2-small) qemu-img convert -f raw -O qcow2 -o cluster_size=4096 data.raw base.layer ;;
    qcow2-compressed) qemu-img convert -c -f raw -O qcow2 data.raw base.layer ;;
    esac
    qemu-img create -q -f qcow2 -b base.layer -F "${fmt%%-*}" top.qcow2 "$upper"
    run_overlay top.qcow2 60
  done
done

echo "== version 2 overlay (zeroing over a backing file needs data there)"
fresh
"$PYTHON" "$SRCDIR/disk.py" fill base.layer 4194304
qemu-img create -q -f qcow2 -o compat=0.10 -b base.layer -F raw top.qcow2 6M
run_overlay top.qcow2 100

echo "== names: relative to the overlay, absolute, file:, with a colon behind a slash"
for name in ../base.layer "$tmp/base.layer" "file:$tmp/base.layer" ./a:b.layer; do
  fresh
  "$PYTHON" "$SRCDIR/disk.py" fill base.layer 2097152
  case $name in
  ./a:b.layer) mv base.layer sub/a:b.layer ;;
  esac
  (cd sub && qemu-img create -q -f qcow2 -u -b "$name" -F raw top.qcow2 2M)
  run_overlay sub/top.qcow2 40
done

# QEMU takes a relative file: name from its working directory, so only where that is the overlay's
# directory too is there one right answer.
fresh
"$PYTHON" "$SRCDIR/disk.py" fill base.layer 2097152
qemu-img create -q -f qcow2 -u -b file:base.layer -F raw top.qcow2 2M
run_overlay top.qcow2 40

echo "== through a symbolic link to the overlay: relative to the name that was given"
fresh
"$PYTHON" "$SRCDIR/disk.py" fill sub/base.layer 2097152
qemu-img create -q -f qcow2 -u -b base.layer -F raw sub/top.qcow2 2M
(cd sub && ln -s top.qcow2 link.qcow2)
run_overlay sub/link.qcow2 40

echo "== 20 layers of mixed cluster sizes and lengths, each with some data of its own"
fresh
"$PYTHON" "$SRCDIR/disk.py" fill 0.layer 3145728
fmt=raw below=0.layer n=1
while [ $n -lt 20 ]; do
  cluster=$((512 << n % 10))
  qemu-img create -q -f qcow2 -o cluster_size=$cluster -b "$below" -F $fmt $n.layer \
    $((2097152 + n % 5 * 524288))
  off=$((n * 98304))
  qemu-io -f qcow2 -c "write -q -P $n $off 20k" -c "write -q -z $((off + 40960)) 24k" \
    -c "write -q -P $((n + 100)) $((n * 512)) 512" $n.layer
  below=$n.layer fmt=qcow2 n=$((n + 1))
done
qemu-img create -q -f qcow2 -b "$below" -F qcow2 top.qcow2 4M
run_overlay top.qcow2 150

echo "== an overlay commits and rebases as QEMU's own would"
qemu-img convert -f qcow2 -O raw top.qcow2 model
cp 19.layer 19.qcow2 # the copy takes the commit
qemu-img rebase -u -f qcow2 -F qcow2 -b 19.qcow2 top.qcow2
qemu-img commit -q -f qcow2 top.qcow2
check_image 19.qcow2
same_contents 19.qcow2 qcow2 model raw

echo "== no recorded format: refused, and followed when the user says so"
fresh
"$PYTHON" "$SRCDIR/disk.py" fill data.raw 2097152
qemu-img convert -f raw -O qcow2 data.raw base.layer
qemu-img create -q -f qcow2 -b base.layer -F qcow2 top.qcow2 2M
"$PYTHON" "$SRCDIR/qcow2.py" drop-extension top.qcow2 0xe2792aca
sum=$(digest top.qcow2)
must_refuse top.qcow2 -- top.qcow2 format
unchanged "$sum" top.qcow2
start_server top.qcow2 backing=probe read-only
"$PYTHON" "$SRCDIR/disk.py" verify "$URI" data.raw
stop_server
unchanged "$sum" top.qcow2

echo "== backing=none: what the overlay does not have reads as zeros"
truncate -s 2M zeros
start_server top.qcow2 read-only backing=none
"$PYTHON" "$SRCDIR/disk.py" verify "$URI" zeros
stop_server

# Zeros and discards are the overlay's own, whoever opens it next; QEMU with no backing file is the other opinion.
for options in compat=1.1 compat=1.1,extended_l2=on compat=0.10; do
  fresh
  "$PYTHON" "$SRCDIR/disk.py" fill base.layer 2097152
  qemu-img create -q -f qcow2 -o $options -b base.layer -F raw top.qcow2 2M
  qemu-io -f qcow2 -c "write -q -P 9 0 512k" top.qcow2
  cp top.qcow2 qemu.qcow2
  start_server top.qcow2 backing=none discard=unmap
  "$PYTHON" -c '
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
K = 1024
h.zero(128 * K, 0)
h.trim(64 * K, 128 * K)
h.zero(64 * K, 192 * K, nbd.CMD_FLAG_NO_HOLE)
h.zero(256 * K, 1024 * K) # never written: the base has something there
h.zero(64 * K + 512, 1536 * K)
h.flush()
h.shutdown()' "$URI"
  stop_server
  check_image top.qcow2
  for range in "0 128k" "192k 64k" "1M 256k" "1536k $((65536 + 512))"; do
    qemu-io -f qcow2 -c "read -P 0 $range" top.qcow2 >out
    ! grep -i failed out || fail "$options: zeros at $range have gone, and the backing file is seen"
  done
  if [ $options = compat=0.10 ]; then # which cannot say what was discarded: QEMU shows the backing file, we leave it
    qemu-io -f qcow2 -c "read -P 9 128k 64k" top.qcow2 >out
    ! grep -i failed out || fail "$options: what was discarded shows the backing file"
    continue
  fi
  qemu-io -d unmap -c "discard 128k 64k" -c "write -q -z -u 0 128k" -c "write -q -z 192k 64k" -c "write -q -z -u 1M 256k" \
    -c "write -q -z -u 1536k $((65536 + 512))" \
    'json:{"driver": "qcow2", "backing": null, "file": {"driver": "file", "filename": "qemu.qcow2"}}' >qemu.out
  same_contents top.qcow2 qcow2 qemu.qcow2 qcow2
done
