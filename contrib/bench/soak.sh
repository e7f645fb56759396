#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# A long stay: 1,000 connections that have nothing to ask for, and 16 that are busy, on one server.  Its
# memory is to stay where it is, and the busy ones' 99th percentile below twice what it is without the
# others; each sector that is read is looked at.
#
#     SOAK_MINUTES=30 BUILD=build contrib/bench/soak.sh
#
# BUILD is a build tree that was made with -DNBDCOW_BENCH=ON.  Exit status 1 if a bound is not held.

set -eu
build=${BUILD:-build}
minutes=${SOAK_MINUTES:-30}
idle=${SOAK_IDLE:-1000}
busy=${SOAK_BUSY:-16}
slice=${SOAK_SLICE:-60} # seconds that are measured at a time
load=$build/contrib/bench/nbdcow-bench-load
nbdcow=$build/server/nbdcow
img=$build/server/nbdcow-img

for program in "$load" "$nbdcow" "$img"; do
  [ -x "$program" ] || { echo "soak.sh: no $program: build with -DNBDCOW_BENCH=ON, and set BUILD" >&2; exit 2; }
done
ulimit -n "$(ulimit -Hn)"
tmp=$(mktemp -d "${TMPDIR:-/tmp}/nbdcow-soak.XXXXXX")
server=
holder=
finish ()
{
  trap - EXIT
  [ -z "$holder" ] || kill "$holder" 2>/dev/null || :
  [ -z "$server" ] || kill "$server" 2>/dev/null || :
  wait
  rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

"$img" create -q -f qcow2 "$tmp/disk.qcow2" 1G
"$nbdcow" -t -e 0 --handshake-limit=0 -k "$tmp/sock" --pid-file="$tmp/pid" "$tmp/disk.qcow2" &
server=$!
while [ ! -s "$tmp/pid" ]; do
  kill -0 $server
  sleep 0.1
done

# Every sector is marked before any is read.
"$load" -u "$tmp/sock" -o write -p seq -b 1M -c 4 -d 4 --stamp -n 1024 >"$tmp/fill"

# one SECONDS: the result of the busy ones.
one ()
{
  "$load" -u "$tmp/sock" -P $server -o mix:3:1 -c "$busy" -d 1 --stamp -S "$1" >"$tmp/result"
}
value ()
{
  tr ' ' '\n' <"$tmp/result" | sed -n "s/^$1=//p"
}
rss ()
{
  sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\).*/\1/p' "/proc/$server/status"
}

one 5
one "$(awk -v s="$slice" 'BEGIN { print s < 20 ? s : 20 }')"
alone=$(value lat_p99_us)
echo "$busy busy connections alone: p99 $alone us"

python3 - "$tmp/sock" "$idle" "$tmp/holding" <<'END' &
import signal, socket, struct, sys
path, n, flag = sys.argv[1], int(sys.argv[2]), sys.argv[3]
held = []
for _ in range(n):
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    s.recv(18, socket.MSG_WAITALL)
    s.sendall(struct.pack(">I8sIIIH", 3, b"IHAVEOPT", 7, 6, 0, 0))  # NBD_OPT_GO, the export ""
    kind = 3
    while kind == 3:  # NBD_REP_INFO, and then NBD_REP_ACK
        _, _, kind, length = struct.unpack(">QIII", s.recv(20, socket.MSG_WAITALL))
        if length:
            s.recv(length, socket.MSG_WAITALL)
    assert kind == 1, kind
    held.append(s)
open(flag, "w").close()
signal.pause()
END
holder=$!
while [ ! -e "$tmp/holding" ]; do
  kill -0 $holder
  sleep 0.1
done

one 5
first=$(rss)
printf '%8s %12s %10s %10s %10s\n' second requests/s 'p50 us' 'p99 us' 'RSS KiB'
passed=0
while [ $passed -lt $((minutes * 60)) ]; do
  one "$slice"
  passed=$((passed + slice))
  printf '%8s %12s %10s %10s %10s\n' $passed "$(value requests_s)" "$(value lat_p50_us)" "$(value lat_p99_us)" "$(rss)"
  value lat_p99_us >>"$tmp/p99"
done
last=$(rss)
kill -0 $holder || { echo "soak.sh: the idle connections are gone" >&2; exit 1; }
p99=$(sort -n "$tmp/p99" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }')

echo "memory: $first KiB at first, $last KiB at last; p99: $alone us alone, $p99 us (median) beside $idle idle ones"
status=0
# Caches may still be growing by what they have not seen: a leak is not so modest in the long run.
awk -v a="$first" -v b="$last" 'BEGIN { exit !(b <= a * 1.05 + 1024) }' || { echo "memory has grown" >&2; status=1; }
awk -v a="$alone" -v b="$p99" 'BEGIN { exit !(b < 2 * a) }' || { echo "p99 has more than doubled" >&2; status=1; }
exit $status
