#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The highest allocated offset in the header after writes through a front end equals what the
# refcounts say (recomputed by qcow2.py), after QEMU wrote the image in between too, and nbdcow-img
# shows it.  Backing layers are left alone.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python_nbd
use_seed
export WRITES_ONLY=1 # what is freed may stay recorded

q ()
{
  "$PYTHON" "$SRCDIR/qcow2.py" "$@"
}

# shown IMAGE: what nbdcow-img says, text and JSON.
shown ()
{
  "$NBDCOW_IMG" info --output=json "$1" | "$PYTHON" -c '
import json, sys
def find(x):
    if isinstance(x, dict):
        for k, v in x.items():
            if k == "highest-allocated-offset":
                return v
            found = find(v)
            if found is not None:
                return found
print(find(json.load(sys.stdin)))'
}

# is_exact IMAGE: recorded, recomputed and shown are the same.
is_exact ()
{
  recomputed=$(q highest "$1")
  recorded=$(q halc "$1")
  [ "$recorded" = "$recomputed" ] || fail "$1: recorded $recorded, recomputed $recomputed"
  [ "$(shown "$1")" = "$recomputed" ] || fail "$1: shown $(shown "$1"), recomputed $recomputed"
  "$NBDCOW_IMG" info "$1" | grep -F "$recomputed" | grep -qi highest ||
    fail "$1: info does not show $recomputed"
}

for opts in cluster_size=65536 cluster_size=512,refcount_bits=1 cluster_size=4096,refcount_bits=64 \
  cluster_size=2097152 compat=0.10 compat=0.10,cluster_size=1024 lazy_refcounts=on; do
  echo "== $opts"
  rm -f ./*.qcow2 model
  GRAIN=$(echo "$opts" | sed -n 's/.*cluster_size=\([0-9]*\).*/\1/p')
  GRAIN=${GRAIN:-65536}
  export GRAIN
  "$PYTHON" "$SRCDIR/disk.py" fill model 4194304
  qemu-img convert -f raw -O qcow2 model base.qcow2
  base_sum=$(digest base.qcow2)
  qemu-img create -q -f qcow2 -o "$opts" -b base.qcow2 -F qcow2 disk.qcow2

  # QEMU made it: nothing is recorded until a front end writes.
  [ "$(q halc disk.qcow2)" = none ]
  [ "$(shown disk.qcow2)" = "$(q highest disk.qcow2)" ]
  start_server disk.qcow2 discard=unmap
  ROUND=1 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 30
  stop_server
  check_image disk.qcow2
  is_exact disk.qcow2
  first=$(q halc disk.qcow2)

  # A second open goes on from there, and a flush is enough to record it.
  start_server disk.qcow2 discard=unmap
  ROUND=2 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 30
  "$PYTHON" -c 'import nbd, sys; h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.flush(); h.shutdown()' "$URI"
  flushed=$(q halc disk.qcow2)
  stop_server
  is_exact disk.qcow2
  [ "$(q halc disk.qcow2)" = "$flushed" ] || fail "flush recorded $flushed, close $(q halc disk.qcow2)"
  [ "$flushed" -ge "$first" ]

  # QEMU keeps the extension and does not update it: put right at the next open for writing, and shown
  # right before that.
  ROUND=q "$PYTHON" "$SRCDIR/disk.py" qemu disk.qcow2 model 40
  qemu-img resize -q -f qcow2 disk.qcow2 6M
  truncate -s 6M model
  qemu-io -f qcow2 -c 'write -q -P 7 5M 512k' disk.qcow2
  qemu-io -f raw -c 'write -q -P 7 5M 512k' model
  [ "$(q halc disk.qcow2)" = "$flushed" ] || fail "QEMU changed the extension"
  [ "$(shown disk.qcow2)" = "$(q highest disk.qcow2)" ] ||
    fail "after QEMU: shown $(shown disk.qcow2), recomputed $(q highest disk.qcow2)"
  start_server disk.qcow2 discard=unmap
  ROUND=3 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 30
  stop_server
  check_image disk.qcow2
  is_exact disk.qcow2
  same_contents disk.qcow2 qcow2 model raw
  unchanged "$base_sum" base.qcow2
done

echo "== freeing does not lower it within a run, and other extensions stay, in their order"
rm -f ./*.qcow2
qemu-img create -q -f qcow2 disk.qcow2 8M
q extension disk.qcow2 0x6e627831 0102030405
q extension disk.qcow2 0x6e627832 ''
others () { q extensions disk.qcow2 | grep -v -e '^0x48414c43' -e '^0x4e424353'; } # all but ours
others >extensions.before
start_server disk.qcow2 discard=unmap
"$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * (4 << 20), 0)
h.flush()
h.trim(4 << 20, 0)
h.flush()
h.shutdown()' "$URI"
high=$(q halc disk.qcow2)
[ "$high" -gt 4194304 ] || fail "4 MiB were allocated, recorded $high"
stop_server
[ "$(q halc disk.qcow2)" = "$high" ]
others | diff extensions.before -
check_image disk.qcow2

echo "== a read-only export records nothing"
sum=$(digest disk.qcow2)
start_server disk.qcow2 read-only
stop_server
unchanged "$sum" disk.qcow2

echo "== an image made by nbdcow-img records it from the start"
"$NBDCOW_IMG" create -q -f qcow2 ours.qcow2 8M >/dev/null 2>&1 || "$NBDCOW_IMG" create -f qcow2 ours.qcow2 8M >/dev/null
is_exact ours.qcow2
start_server ours.qcow2
"$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * 1000000, 3000000)
h.shutdown()' "$URI"
stop_server
is_exact ours.qcow2
check_image ours.qcow2
