#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Measures nbdcow against its peers, row by row (rows.txt), and writes a report: a table on stdout,
# and report.txt, results.csv and chart.svg into the directory OUT.  See README.md, or --help.

self=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$self/../.." && pwd)

usage ()
{
    cat <<'END'
Usage: run.sh [OPTIONS] [ROW...]
Runs the benchmark, or only the rows named.

  --quick        smaller images and shorter turns: about two minutes, rough figures
  --out DIR      where the report goes (default: bench-report)
  --turns N      turns that each side gets (default 5)
  --seconds S    how long a turn is measured (default 2)
  --list         the rows
  --help         this text

Environment:
  NBDCOW         the server (default: build/server/nbdcow)
  NBDCOW_IMG     the image tool (default: build/server/nbdcow-img)
  NBDCOW_PLUGIN  the nbdkit plugin (default: build/plugin/nbdkit-qcow2-plugin.so)
  NBDCOW_MICRO   the micro-benchmarks (default: build/contrib/bench/nbdcow-bench-micro, if there)
  NBDCOW_PLAIN   an nbdcow that was built with -DNBDCOW_STATISTICS=OFF, for the rows metrics-...
  PEER_ROOT      a directory tree with newer peers in it: they are run by chroot (needs root)
  QEMU_NBD, QEMU_IMG, NBDKIT    other peers
  NBDCOPY        the client of the row over TLS (default: nbdcopy)
  NBDCOW_OPTS, NBDCOW_POLL_OPTS, PLUGIN_OPTS, QEMU_OPTS, NBDKIT_OPTS    more of their options
  BENCH_DIR      where images and sockets are made (default: PEER_ROOT/tmp, or /var/tmp)
  BENCH_PORT     the TCP port used on 127.0.0.1 (default 10909)
  CC, CFLAGS     to build the tools
END
}

die ()
{
    echo "run.sh: $*" >&2
    exit 1
}

note ()
{
    echo "run.sh: $*" >&2
}

# arg OPTION VALUE-COUNT: an option's value must be there.
arg ()
{
    [ "$2" -ge 2 ] || die "$1 needs a value"
}

turns=5 seconds=2 warm=0.5 warm_writes=1 size_mib=2048 allocations=60000
out=bench-report wanted_rows=
while [ $# -gt 0 ]; do
    case $1 in
    --quick)
        turns=3 seconds=0.2 warm=0.05 warm_writes=0.4 size_mib=256 allocations=10000
        ;;
    --out)
        arg "$1" $#
        out=$2
        shift
        ;;
    --turns)
        arg "$1" $#
        turns=$2
        shift
        ;;
    --seconds)
        arg "$1" $#
        seconds=$2
        shift
        ;;
    --list)
        sed -n '/^#/d; s/ | /\t/; s/ | .*//; p' "$self/rows.txt"
        exit 0
        ;;
    --help)
        usage
        exit 0
        ;;
    -*) die "unknown option '$1' (see --help)" ;;
    *) wanted_rows="$wanted_rows $1" ;;
    esac
    shift
done
size=${size_mib}M
timed="--seconds $seconds --warm $warm"
timed_writes="--seconds $seconds --warm $warm_writes"

known=$(sed -n '/^#/d; s/ | .*//; p' "$self/rows.txt" | uniq)
for row in $wanted_rows; do
    echo "$known" | grep -qx "$row" || die "no row '$row' (--list shows them)"
done

: "${NBDCOW:=$top/build/server/nbdcow}"
: "${NBDCOW_IMG:=$top/build/server/nbdcow-img}"
: "${NBDCOW_PLAIN:=}"
: "${NBDCOW_PLUGIN:=$top/build/plugin/nbdkit-qcow2-plugin.so}"
: "${NBDCOW_POLL_OPTS=--poll=200}"
: "${NBDCOPY:=nbdcopy}"
: "${NBDCOW_MICRO:=$top/build/contrib/bench/nbdcow-bench-micro}"

# ---- a place to work ------------------------------------------------------------------------

base=${BENCH_DIR:-${PEER_ROOT:+$PEER_ROOT/tmp}}
base=${base:-/var/tmp}
work=$(mktemp -d "$base/nbdcow-bench.XXXXXX") || exit 1
inside=${work#"$PEER_ROOT"}
[ -z "$PEER_ROOT" ] || [ "$inside" != "$work" ] ||
    die "BENCH_DIR: '$base' is not inside of PEER_ROOT '$PEER_ROOT', so the peers cannot see it"
case $work in
*[\ \'\"\*\?]*) die "'$work': a path with blanks or quotes in it; set BENCH_DIR" ;;
esac
[ ${#work} -lt 90 ] || die "'$work' is too long for a socket in it; set BENCH_DIR"
pid=
trap 'stop_server; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$out" || exit 1
csv=$out/results.csv
load=$work/load
bareloop=$work/bareloop
build ()
{
    ${CC:-cc} -std=gnu11 -D_GNU_SOURCE ${CFLAGS:--O2} -o "$@" -lm -lpthread ||
        die "the tools cannot be built: is a C compiler there (Debian: gcc)?"
}
cd "$self" && build "$load" load.c traffic.c modes.c client.c util.c &&
    build "$bareloop" bareloop.c util.c && cd - >/dev/null || exit 1

. "$self/sides.sh"
. "$self/images.sh"
. "$self/rows.sh"

# ---- the run --------------------------------------------------------------------------------

before=: after=: once= failed=0
find_sides

# A fast server of wrong bytes is no server: each side must return the image's contents.
image data
for s in $sides; do
    set -- $(modes "$s" writeback)
    start_server "$s" "$1" writeback unix data
    if ! "$load" $at --pattern perm --count 4096 --depth 8 --stamp >/dev/null 2>>"$work/err"; then
        note "$s does not serve the image: $(tail -n 1 "$work/err")"
        miss "$s" "left out"
        sides=$(echo " $sides " | sed "s/ $s / /")
        failed=1
    fi
    stop_server
done

{
    echo "machine: $(nproc) CPUs, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)," \
        "$(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)," \
        "Linux $(uname -r), $(df --output=fstype "$work" | tail -n 1)"
    echo "nbdcow: ${version_nbdcow:-missing}"
    echo "qemu-nbd: ${version_qemu:-missing}"
    echo "nbdkit: ${version_nbdkit:-missing}"
    [ -z "$missing" ] || echo "missing:$missing"
    echo "turns: $turns of $seconds s, image $size," \
        "load average $(cut -d ' ' -f 1 /proc/loadavg), $(date -u '+%F %R UTC')"
} >"$out/machine.txt"

echo "run,side,mode,turn,metric,value" >"$csv"
for row in ${wanted_rows:-$known}; do
    note "$row ($(row_field "$row" 2))"
    row_$(echo "$row" | tr - _)
done

awk -f "$self/report.awk" "$self/rows.txt" "$csv" >"$out/table.txt" || exit 1
awk -f "$self/chart.awk" "$self/rows.txt" "$csv" >"$out/chart.svg" || exit 1
{
    cat "$out/machine.txt"
    echo
    cat "$out/table.txt"
    if [ -x "$NBDCOW_MICRO" ]; then
        echo
        "$NBDCOW_MICRO" --dir "$work" || failed=1
    fi
} >"$out/report.txt"
rm -f "$out/machine.txt" "$out/table.txt"
cat "$out/report.txt"
note "report.txt, results.csv and chart.svg are in $out"
exit $failed
