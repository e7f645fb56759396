#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcopy in both directions, nbdinfo --map against qemu-img map, qemu-img compare and convert over the
# export, on an overlay with a compressed backing file and on plain images.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io nbdcopy nbdinfo
requires_python_nbd
use_seed

# Print, a line for each merged extent, "start length zero" of the export and of the image.
map_of_export ()
{
  timeout 60 nbdinfo --map --json "$URI" | merge_map offset 'e["type"] & 2'
}
map_of_image ()
{
  qemu-img map --output=json -f qcow2 "$1" | merge_map start 'e["zero"]'
}
merge_map ()
{
  "$PYTHON" -c '
import json, sys
out = []
for e in json.load(sys.stdin):
    zero = int(bool('"$2"'))
    if out and out[-1][2] == zero:
        out[-1][1] += e["length"]
    else:
        out.append([e["'"$1"'"], e["length"], zero])
for line in out:
    print(*line)'
}

for cluster in 4096 65536 2097152; do
  for version in 0.10 1.1; do
    echo "== clusters of $cluster, compat=$version"
    rm -f ./*.qcow2 ./*.raw
    size=$((cluster > 65536 ? 33554432 : 8388608))
    "$PYTHON" "$SRCDIR/disk.py" fill data.raw $size

    # Out of a compressed chain, with zero clusters and new data in the overlay.
    qemu-img convert -c -f raw -O qcow2 -o cluster_size=$cluster,compat=$version data.raw base.qcow2
    qemu-img create -q -f qcow2 -o compat=$version,cluster_size=$cluster -b base.qcow2 -F qcow2 \
      disk.qcow2 $((size + 1048576))
    GRAIN=$cluster "$PYTHON" "$SRCDIR/disk.py" fill expected.raw 1
    qemu-img convert -f qcow2 -O raw disk.qcow2 expected.raw
    GRAIN=$cluster NO_TRIM=1 "$PYTHON" "$SRCDIR/disk.py" qemu disk.qcow2 expected.raw 30

    map_of_image disk.qcow2 >map.image
    sum=$(digest disk.qcow2)
    start_server disk.qcow2 read-only
    map_of_export >map.export
    diff map.image map.export || fail "nbdinfo --map and qemu-img map differ"
    same_contents "$URI" raw disk.qcow2 qcow2
    same_contents "$URI" raw expected.raw raw
    timeout 120 nbdcopy "$URI" out.raw
    cmp out.raw expected.raw
    timeout 120 nbdcopy --connections=4 --requests=32 --request-size=1048576 "$URI" - >out2.raw
    cmp out2.raw expected.raw
    timeout 120 qemu-img convert -n -f raw -O raw "$URI" out.raw
    cmp out.raw expected.raw
    stop_server
    server_log_is_empty
    unchanged "$sum" disk.qcow2

    # Into an empty image; the source's holes stay holes.
    qemu-img create -q -f qcow2 -o cluster_size=$cluster,compat=$version new.qcow2 \
      $((size + 1048576))
    start_server new.qcow2 discard=unmap
    timeout 120 nbdcopy --connections=4 expected.raw "$URI"
    timeout 60 nbdcopy --flush expected.raw "$URI" # again, over itself
    same_contents "$URI" raw expected.raw raw
    stop_server
    server_log_is_empty
    check_image new.qcow2
    same_contents new.qcow2 qcow2 expected.raw raw
    map_of_image new.qcow2 | awk '$3 == 0 { n += $2 } END { exit n > '"$(stat -c '%s' expected.raw)"' }'

    # From one server into another (both ours), and QEMU writing through the export.
    rm -f new.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=$cluster new.qcow2 $((size + 1048576))
    start_server disk.qcow2 read-only
    source_uri=$URI source_pid=$SERVER_PID
    start_server new.qcow2 discard=unmap
    timeout 120 nbdcopy "$source_uri" "$URI"
    qemu-io -f raw -c "write -q -P 0xa5 12345 54321" -c "read -q -P 0xa5 12345 54321" \
      -c "write -q -z -u 131072 65536" -c flush "$URI" >io.out
    [ ! -s io.out ] || { cat io.out; fail "qemu-io complained"; }
    qemu-io -f raw -c "write -q -P 0xa5 12345 54321" -c "write -q -z 131072 65536" expected.raw
    stop_server "$source_pid"
    stop_server
    check_image new.qcow2
    same_contents new.qcow2 qcow2 expected.raw raw
  done
done
