# SPDX-License-Identifier: BSD-3-Clause
#
# The rows: how each line of rows.txt is measured.  Sourced by run.sh.

all="nbdcow qemu nbdkit plugin qcow2dec bare"
writers="nbdcow qemu nbdkit plugin bare"
qcow2="nbdcow qemu plugin qcow2dec"
cpus=$(nproc)

row_read4k_d32 ()
{
    image data && warm_cache data
    measure read4k-d32 "$all" writeback unix data $timed --depth 32
}

row_read4k_c4d16 ()
{
    image data && warm_cache data
    measure read4k-c4d16 "$all" writeback unix data $timed --depth 16 --connections 4
}

row_read4k_d1 ()
{
    image data && warm_cache data
    measure read4k-d1 "$all" writeback unix data $timed
}

# The bare loop takes part without ever sleeping: nobody can be faster with this client.
row_read4k_d1_poll ()
{
    image data && warm_cache data
    saved=$NBDCOW_OPTS
    NBDCOW_OPTS="$NBDCOW_OPTS $NBDCOW_POLL_OPTS" BARE_OPTS=--spin
    measure read4k-d1-poll "nbdcow qemu bare" writeback unix data $timed
    NBDCOW_OPTS=$saved BARE_OPTS=
}

# In place: every cluster is allocated.  A part of the image is enough, and is written back to the
# disk between turns, so that nobody pays for the turn before.  The first write to a clean page
# costs the kernel more than the next ones: the warming up is long enough for most of them.
row_write4k_d32 ()
{
    image data && warm_cache data
    after="sync_image data"
    measure write4k-d32 "$writers" writeback unix data $timed_writes --op write --stamp \
        --end $((size_mib / 4))M --depth 32
}

# What counting costs, while somebody asks for the counts once a second.  Both sides are asked in the
# same way; the one that counts nothing has nothing but zeros to tell.
metrics_row ()
{
    if ! found curl; then
        note "$1: curl is not installed"
        return
    fi
    image data && warm_cache data
    run_row=$1
    shift
    saved=$NBDCOW_OPTS
    NBDCOW_OPTS="$NBDCOW_OPTS --metrics=unix:$work/metrics"
    before=scrape_begin after=scrape_end
    measure "$run_row" "nbdcow plain" writeback unix data "$@"
    NBDCOW_OPTS=$saved
}

scrape_begin ()
{
    rm -f "$work/metrics"
    while sleep 1; do
        curl -s -o /dev/null --unix-socket "$work/metrics" http://localhost/metrics
    done &
    scraper=$!
}

scrape_end ()
{
    kill "$scraper"
    wait "$scraper" 2>/dev/null
    sync_image data
}

row_metrics_read4k ()
{
    metrics_row metrics-read4k $timed --depth 32
}

row_metrics_write4k ()
{
    metrics_row metrics-write4k $timed_writes --op write --stamp --end $((size_mib / 4))M --depth 32
}

row_metrics_read4k_d1 ()
{
    metrics_row metrics-read4k-d1 $timed
}

row_alloc4k_d32 ()
{
    before="fresh scratch 16G"
    after="remove scratch"
    measure alloc4k-d32 "nbdcow qemu nbdkit plugin" writeback unix scratch \
        --op write --pattern perm --stride 64k --depth 32 --count "$allocations"
}

row_alloc1m_d8 ()
{
    before="fresh scratch 16G"
    after="remove scratch"
    measure alloc1m-d8 "nbdcow qemu nbdkit plugin" writeback unix scratch \
        --op write --pattern seq --block 1M --depth 8 --count "$((size_mib / 2))"
}

row_read1m_d8 ()
{
    image data && warm_cache data
    measure read1m-d8 "$all" writeback unix data $timed --pattern seq --block 1M --depth 8
}

row_chain1 ()
{
    image chain1 && warm_cache chain1
    measure chain1 "nbdcow qemu plugin" writeback unix chain1 $timed --depth 32
}

row_chain8 ()
{
    image chain8
    warm_cache "layer*"
    warm_cache chain8
    measure chain8 "nbdcow qemu plugin" writeback unix chain8 $timed --depth 32
}

row_flush_c16 ()
{
    image data && warm_cache data
    after="sync_image data"
    measure flush-c16 "$writers" writeback unix data $timed_writes --op write --stamp \
        --end $((size_mib / 4))M --connections 16 --flush-every 1
}

row_flush16_c4 ()
{
    image data && warm_cache data
    after="sync_image data"
    measure flush16-c4 "$writers" writeback unix data $timed_writes --op write --stamp \
        --end $((size_mib / 4))M --connections 4 --depth 16 --flush-every 16
}

row_zlib ()
{
    image zlib && warm_cache zlib
    measure zlib "$qcow2" writeback unix zlib $timed --pattern seq --block 1M --depth 8 \
        --connections "$cpus"
}

row_zstd ()
{
    image zstd && warm_cache zstd
    measure zstd "$qcow2" writeback unix zstd $timed --pattern seq --block 1M --depth 8 \
        --connections "$cpus"
}

# luks_row RUN OPTIONS...: every side opens the image with its key (sides.sh).
luks_row ()
{
    image luks && warm_cache luks
    run=$1
    shift
    after="sync_image luks"
    measure "$run" "nbdcow qemu plugin" writeback unix luks "$@"
}

# The same by nbdcow alone with as little as can be: what the others do more is done by more cores.
alone ()
{
    image luks && warm_cache luks
    saved=$NBDCOW_OPTS
    NBDCOW_OPTS="$NBDCOW_OPTS --threads=1 --workers=1"
    run=$1
    shift
    after="sync_image luks"
    measure "$run" nbdcow writeback unix luks "$@"
    NBDCOW_OPTS=$saved
}

row_luks_read ()
{
    luks_row luks-read $timed --pattern seq --block 1M --depth 8 --connections "$cpus"
}

row_luks_read_1 ()
{
    alone luks-read-1 $timed --pattern seq --block 1M --depth 8 --connections "$cpus"
}

row_luks_write ()
{
    luks_row luks-write $timed_writes --op write --pattern seq --block 1M --depth 8 \
        --connections "$cpus" --end $((size_mib / 4))M
}

row_luks_write_1 ()
{
    alone luks-write-1 $timed_writes --op write --pattern seq --block 1M --depth 8 \
        --connections "$cpus" --end $((size_mib / 4))M
}

row_luks_read4k ()
{
    luks_row luks-read4k $timed --depth 32
}

row_cold_d32 ()
{
    image data
    before="drop_cache data"
    measure cold-d32 "nbdcow qemu plugin" none unix data $timed --depth 32
}

row_status1t ()
{
    image sparse1t
    measure status1t "$qcow2" writeback unix sparse1t --op status --count 1
}

# qcow2dec can only read, so nbdkit opens the image for reading with our plugin, too: for writing,
# the plugin marks the image as in use, durably, which is most of what its opening takes.
open_image ()
{
    image "$2"
    saved=$NBDKIT_OPTS
    NBDKIT_OPTS="$NBDKIT_OPTS -r"
    measure "$1" "$qcow2" writeback unix "$2" --open 5
    NBDKIT_OPTS=$saved
}

row_open64t ()
{
    open_image open64t empty64t
}

row_open1g ()
{
    open_image open1g empty1g
}

row_rss1t ()
{
    image mapped1t
    once=1
    measure rss1t "$qcow2" writeback unix mapped1t --depth 32 --count 40000
}

row_idle1000 ()
{
    image data
    once=1
    measure idle1000 "nbdcow qemu nbdkit plugin" writeback unix data --idle 1000
}

row_connect ()
{
    image data
    measure connect "nbdcow qemu nbdkit plugin" writeback unix data --connect --threads 2 \
        --seconds "$seconds"
}

row_tcp_read4k_d32 ()
{
    image data && warm_cache data
    measure tcp-read4k-d32 "$all" writeback tcp data $timed --depth 32
}

row_tcp_read1m_d8 ()
{
    image data && warm_cache data
    measure tcp-read1m-d8 "$all" writeback tcp data $timed --pattern seq --block 1M --depth 8
}

# The whole image by nbdcopy, for which the load generator has no TLS.
row_tls_copy ()
{
    if ! found $NBDCOPY; then
        note "tls-copy: '$NBDCOPY' does not run (install libnbd-bin, or set NBDCOPY)"
        return
    fi
    image data && warm_cache data
    [ -d "$work/psk" ] || {
        mkdir "$work/psk"
        echo "bench:$(od -An -N 16 -t x1 /dev/urandom | tr -d ' \n')" >"$work/psk/keys.psk"
    }
    measure tls-copy "nbdcow qemu nbdkit plugin" writeback tls data --nbdcopy
}

# qemu-img at its best: out of order, with as many coroutines as it allows.
row_convert_raw_qcow2 ()
{
    image data && warm_cache data
    measure_convert convert-raw-qcow2 "-f raw -O qcow2" data.raw
}

row_convert_qcow2_raw ()
{
    image data && warm_cache data
    measure_convert convert-qcow2-raw "-f qcow2 -O raw" data.qcow2
}

row_convert_zlib ()
{
    image text && warm_cache text
    measure_convert convert-zlib "-c -f raw -O qcow2" text.raw
}

row_convert_zstd ()
{
    image text && warm_cache text
    measure_convert convert-zstd "-c -f raw -O qcow2 -o compression_type=zstd" text.raw
}

# ---- steps before and after each turn -------------------------------------------------------

sync_image ()
{
    # Not every image has a raw twin.
    for f in "$work/$1".qcow2 "$work/$1".raw; do
        [ ! -e "$f" ] || sync "$f"
    done
}

remove ()
{
    rm -f "$work/$1".qcow2 "$work/$1".raw
}

# ---- measuring ------------------------------------------------------------------------------

# one_turn SIDE MODE CACHE TRANSPORT IMAGE LOAD-OPTIONS...: one measurement; its line in $line.
one_turn ()
{
    $before
    set_command "$1" "$2" "$3" "$4" "$5"
    server="$1 $2 $3 $4 $5"
    shift 5
    case " $* " in
    *" --open "*)
        # The load generator starts the server itself.
        rm -f "$work/sock"
        "$load" $at "$@" -- $cmd >"$work/line" 2>"$work/err"
        status=$?
        ;;
    *" --nbdcopy "*)
        start_server $server
        copy_by_tls >"$work/line" 2>>"$work/err"
        status=$?
        stop_server
        ;;
    *)
        start_server $server
        "$load" $at --pid "$pid" "$@" >"$work/line" 2>"$work/load.err"
        status=$?
        stop_server
        cat "$work/load.err" >>"$work/err"
        ;;
    esac
    line=$(cat "$work/line")
    $after
    return $status
}

# Reads everything through TLS; prints how fast, and the server's share of the work.
copy_by_tls ()
{
    tries=0
    while [ ! -S "$work/sock" ] && [ $tries -lt 500 ]; do
        tries=$((tries + 1))
        sleep 0.01
    done
    began=$(date +%s%N)
    timeout 300 $NBDCOPY --connections="$cpus" \
        "nbds+unix://bench@/?socket=$work/sock&tls-psk-file=$work/psk/keys.psk" null: || return 1
    took=$((($(date +%s%N) - began) / 1000000))
    ticks=$(awk '{ print $14 + $15 }' "/proc/$pid/stat")
    awk -v mb="$size_mib" -v ms="$took" -v ticks="$ticks" -v hz="$(getconf CLK_TCK)" \
        'BEGIN { printf "mb_s=%.1f server_us=%.1f\n", mb * 1.048576 * 1000 / ms, ticks / hz * 1e6 / mb }'
}

# measure RUN SIDES CACHE TRANSPORT IMAGE LOAD-OPTIONS...: takes the sides in turn, $turns times.
# The variables before and after name what to do around each turn, and once asks for a single one
# (memory does not vary); they are forgotten at the end.
measure ()
{
    run=$1 wanted=$2 cache=$3 how="$3 $4 $5"
    shift 5
    playing=
    for s in $wanted; do
        case " $sides " in
        *" $s "*)
            choose_mode "$s" "$@"
            playing="$playing $s/$mode"
            ;;
        esac
    done
    turn=1
    while [ $turn -le "${once:-$turns}" ]; do
        for sm in $playing; do
            s=${sm%/*} mode=${sm#*/}
            if one_turn "$s" "$mode" $how "$@" --seed $turn; then
                record "$run,$s,$mode,$turn" "$line"
            else
                note "$run: $s failed: $(tail -n 1 "$work/err")"
                echo "$run,$s,$mode,$turn,failed,1" >>"$csv"
                failed=1
                playing=$(echo " $playing " | sed "s| $sm | |")
            fi
        done
        turn=$((turn + 1))
    done
    before=: after=: once=
}

# convert_once SIDE OPTIONS SOURCE: one conversion; how fast, and how large the file became.
convert_once ()
{
    rm -f "$work/converted"
    began=$(date +%s%N)
    case $1 in
    nbdcow) $NBDCOW_IMG convert $2 "$work/$3" "$work/converted" ;;
    qemu) $QEMU_IMG convert -W -m 16 $2 "$inside/$3" "$inside/converted" ;;
    esac 2>"$work/err" || return 1
    took=$((($(date +%s%N) - began) / 1000000))
    kib=$(($(stat -c %b "$work/converted") / 2))
    rm -f "$work/converted"
    awk -v mb="$size_mib" -v ms="$took" -v kib="$kib" \
        'BEGIN { printf "mb_s=%.1f file_mib=%.1f\n", mb * 1.048576 * 1000 / ms, kib / 1024 }'
}

# measure_convert RUN OPTIONS SOURCE: nbdcow-img and qemu-img in turn.
measure_convert ()
{
    run=$1
    if ! found $NBDCOW_IMG; then
        note "$run: '$NBDCOW_IMG' does not run (set NBDCOW_IMG)"
        return
    fi
    turn=1
    while [ $turn -le "$turns" ]; do
        for s in nbdcow qemu; do
            if convert_once $s "$2" "$3" >"$work/line"; then
                record "$run,$s,-,$turn" "$(cat "$work/line")"
            else
                note "$run: $s failed: $(tail -n 1 "$work/err")"
                failed=1
            fi
        done
        turn=$((turn + 1))
    done
}

# choose_mode SIDE LOAD-OPTIONS...: sets $mode to the side's best for this run.  If there is a
# choice, each is tried once.
choose_mode ()
{
    candidate_of=$1
    shift
    candidates=$(modes "$candidate_of" "$cache")
    mode=${candidates%% *}
    [ "$mode" != "$candidates" ] || return 0
    metric=$(row_field "$run" 3)
    case $(row_field "$run" 5) in
    more) order=-gr ;;
    *) order=-g ;;
    esac
    : >"$work/trials"
    for m in $candidates; do
        if one_turn "$candidate_of" "$m" $how "$@"; then
            echo "$(field "$line" "$metric") $m" >>"$work/trials"
        else
            note "$run: $candidate_of, mode $m: $(tail -n 1 "$work/err")"
        fi
    done
    best=$(sort $order "$work/trials" | sed -n '1s/.* //p')
    mode=${best:-$mode}
}

# field LINE NAME: the value of NAME in a line of name=value words.
field ()
{
    echo "$1" | tr ' ' '\n' | sed -n "s/^$2=//p"
}

# row_field RUN N: column N of the first line of RUN in rows.txt.
row_field ()
{
    awk -F ' *[|] *' -v run="$1" -v n="$2" '$1 == run { print $n; exit }' "$self/rows.txt"
}

# record "RUN,SIDE,MODE,TURN" LINE: all of the line's values into the CSV.
record ()
{
    for word in $2; do
        echo "$1,${word%%=*},${word#*=}"
    done >>"$csv"
}
