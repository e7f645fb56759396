#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# QEMU and a front end write one image in turn, ROUNDS times (default 3) for each shape of image; after
# each turn the contents equal the model's and qemu-img check is clean.  And the same operations done to two
# copies of an image, one by QEMU's server and one by ours, give the same contents.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io qemu-nbd
requires_python_nbd
use_seed
rounds=${ROUNDS:-3}

# turns NAME SIZE OPTIONS PREPARE: PREPARE (raw, compressed, chain, snapshot) makes disk.qcow2.
turns ()
{
  echo "== $*"
  size=$(numfmt --from=iec "$2") opts=$3
  GRAIN=$(echo "$opts" | sed -n 's/.*cluster_size=\([0-9]*\).*/\1/p')
  GRAIN=${GRAIN:-65536}
  export GRAIN
  rm -f ./*.qcow2 model
  "$PYTHON" "$SRCDIR/disk.py" fill model "$size"
  case $4 in
  raw) qemu-img convert -f raw -O qcow2 -o "$opts" model disk.qcow2 ;;
  compressed) qemu-img convert -c -f raw -O qcow2 -o "$opts" model disk.qcow2 ;;
  chain)
    qemu-img convert -c -f raw -O qcow2 model base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2
    ROUND=mid "$PYTHON" "$SRCDIR/disk.py" qemu mid.qcow2 model 15
    qemu-img create -q -f qcow2 -o "$opts" -b mid.qcow2 -F qcow2 disk.qcow2
    ;;
  snapshot)
    qemu-img convert -f raw -O qcow2 -o "$opts" model disk.qcow2
    qemu-img snapshot -c s disk.qcow2
    ;;
  esac
  round=0
  while [ $round -lt "$rounds" ]; do
    ROUND=q$round "$PYTHON" "$SRCDIR/disk.py" qemu disk.qcow2 model 25
    check_image disk.qcow2
    start_server disk.qcow2 discard=unmap
    "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
    ROUND=n$round "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 80
    stop_server
    server_log_is_empty
    check_image disk.qcow2
    same_contents disk.qcow2 qcow2 model raw
    round=$((round + 1))
  done
}

for prepare in raw compressed chain snapshot; do
  turns $prepare 6M cluster_size=65536 $prepare
  turns $prepare 2M cluster_size=4096,compat=0.10 $prepare
done
turns tiny 1M cluster_size=512,refcount_bits=64 raw
turns tiny 1M cluster_size=512,refcount_bits=1 compressed
turns zstd 4M cluster_size=16384,compression_type=zstd compressed
turns large 16M cluster_size=2097152,refcount_bits=8 raw
turns lazy 4M lazy_refcounts=on chain

echo "== the same operations by qemu-nbd and by ours"
export GRAIN=65536 NO_TRIM=1 NO_FAST_ZERO=1 # QEMU zeroes a part before it refuses
rm -f ./*.qcow2 model
"$PYTHON" "$SRCDIR/disk.py" fill model 6291456
qemu-img convert -c -f raw -O qcow2 model base.qcow2
for who in theirs ours; do
  qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 $who.qcow2 8M
  qemu-img convert -f qcow2 -O raw $who.qcow2 $who.model
done
cp ours.model model
start_server ours.qcow2 discard=unmap
"$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 300
stop_server
cp theirs.model model
qemu-nbd -t -e 8 -f qcow2 -k "$tmp/theirs.sock" --pid-file="$tmp/theirs.pid" theirs.qcow2 &
theirs=$!
track $theirs
wait_for 20 test -s theirs.pid
"$PYTHON" "$SRCDIR/disk.py" ops "nbd+unix:///?socket=$tmp/theirs.sock" model 300
kill $theirs
wait $theirs || fail "qemu-nbd failed"
check_image ours.qcow2
same_contents ours.qcow2 qcow2 theirs.qcow2 qcow2
