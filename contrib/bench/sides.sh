# SPDX-License-Identifier: BSD-3-Clause
#
# The sides: how each server is found, started and stopped.  Sourced by run.sh.
#
# A side is one of nbdcow qemu nbdkit plugin qcow2dec bare plain.  A mode of it is a variant of its
# command line; only qemu has several that deserve the choice.  Plain is nbdcow, built to count
# nothing; only the rows about that have it.
#
# Images and sockets are named twice: $work is their directory as we see it, $inside as a server
# inside PEER_ROOT does.  Without PEER_ROOT both are the same.

port=${BENCH_PORT:-10909}
BARE_OPTS=

# found COMMAND...: can it be run?
found ()
{
    command -v "$1" >/dev/null && "$@" --version >/dev/null 2>&1
}

# Sets $sides to those that are here, and says which are not and why.
find_sides ()
{
    if [ -n "$PEER_ROOT" ]; then
        in_root="chroot $PEER_ROOT"
    fi
    QEMU_NBD=${QEMU_NBD:-$in_root qemu-nbd}
    QEMU_IMG=${QEMU_IMG:-$in_root qemu-img}
    NBDKIT=${NBDKIT:-$in_root nbdkit}
    sides=
    missing=
    version_nbdcow= version_qemu= version_nbdkit=

    if found $NBDCOW; then
        sides="$sides nbdcow"
        version_nbdcow=$($NBDCOW --version | head -n 1)
    else
        miss nbdcow "no program at '$NBDCOW' (set NBDCOW)"
    fi
    if found $QEMU_NBD; then
        sides="$sides qemu"
        version_qemu=$($QEMU_NBD --version | head -n 1)
    else
        miss qemu "'$QEMU_NBD' does not run (install qemu-utils, or set QEMU_NBD or PEER_ROOT)"
    fi
    if found $NBDKIT; then
        sides="$sides nbdkit"
        version_nbdkit=$($NBDKIT --version)
        find_plugin
        if $NBDKIT --filter=qcow2dec null --dump-plugin >/dev/null 2>&1; then
            sides="$sides qcow2dec"
        else
            miss qcow2dec "$version_nbdkit has no qcow2dec filter (nbdkit 1.48 does)"
        fi
    else
        miss nbdkit "'$NBDKIT' does not run (install nbdkit, or set NBDKIT or PEER_ROOT)"
    fi
    sides="$sides bare"
    if [ -z "$NBDCOW_PLAIN" ]; then
        note "missing: plain: set NBDCOW_PLAIN to an nbdcow that was built with -DNBDCOW_STATISTICS=OFF"
    elif found $NBDCOW_PLAIN; then
        sides="$sides plain"
    else
        miss plain "'$NBDCOW_PLAIN' does not run (NBDCOW_PLAIN)"
    fi
    found $QEMU_IMG || die "'$QEMU_IMG' does not run: it makes the images (set QEMU_IMG)"
}

# Our plugin is loaded from the work directory: nbdkit may not see where it was built.
find_plugin ()
{
    if [ ! -f "$NBDCOW_PLUGIN" ]; then
        miss plugin "no file '$NBDCOW_PLUGIN' (set NBDCOW_PLUGIN)"
        return
    fi
    cp "$NBDCOW_PLUGIN" "$work/nbdkit-qcow2-plugin.so"
    plugin_env=
    if [ -n "$PEER_ROOT" ]; then
        # What the tree lacks of its libraries comes along.
        mkdir "$work/lib"
        ldd "$NBDCOW_PLUGIN" | awk '$2 == "=>" && $3 ~ "^/" { print $1, $3 }' |
            while read -r lib path; do
                $in_root ldconfig -p | grep -q "^[[:space:]]*$lib " || cp "$path" "$work/lib/$lib"
            done
        plugin_env="env LD_LIBRARY_PATH=$inside/lib"
    fi
    if $plugin_env $NBDKIT "$inside/nbdkit-qcow2-plugin.so" --dump-plugin >/dev/null 2>"$work/err"; then
        sides="$sides plugin"
    else
        miss plugin "$version_nbdkit cannot load it: $(head -n 1 "$work/err")"
    fi
}

miss ()
{
    missing="$missing $1"
    note "missing: $1: $2"
}

# modes SIDE CACHE: the variants that compete.  qemu's native mode needs O_DIRECT, so it takes
# part only where everybody has that.
modes ()
{
    case $1.$2 in
    qemu.none) echo "io_uring native threads" ;;
    qemu.*) echo "io_uring threads" ;;
    *) echo - ;;
    esac
}

# set_command SIDE MODE CACHE TRANSPORT IMAGE: puts the server's command line into $cmd.  CACHE is
# writeback or none; TRANSPORT is unix, tcp or tls; IMAGE is the base name of an image in the work
# directory, where sides without a format find the same contents in IMAGE.raw.
set_command ()
{
    case $4 in
    unix)
        at_qemu="-k $inside/sock"
        at_nbdkit="-U $inside/sock"
        at_bare="--unix $work/sock"
        at="--unix $work/sock"
        ;;
    tls)
        at_qemu="-k $inside/sock --tls-creds=tls"
        at_qemu="$at_qemu --object=tls-creds-psk,id=tls,endpoint=server,dir=$inside/psk"
        at_nbdkit="-U $inside/sock --tls=require --tls-psk=$inside/psk/keys.psk"
        at=
        ;;
    tcp)
        at_qemu="-b 127.0.0.1 -p $port"
        at_nbdkit="-i 127.0.0.1 -p $port"
        at_bare="--tcp $port"
        at="--tcp 127.0.0.1:$port"
        ;;
    esac
    key_nbdcow= key_plugin= open_qemu="-f qcow2" file_qemu="$inside/$5.qcow2"
    case $5 in
    luks)
        key_nbdcow="--key-file=$work/key" key_plugin="passphrase=+$inside/key"
        open_qemu="--object=secret,id=key,file=$inside/key"
        file_qemu="--image-opts driver=qcow2,encrypt.key-secret=key,file.filename=$file_qemu"
        ;;
    esac
    case $1 in
    nbdcow | plain)
        # nbdcow runs out here, where its libraries are.
        program=$NBDCOW
        [ "$1" = nbdcow ] || program=$NBDCOW_PLAIN
        cmd="$program -t -e 0 -f qcow2 --cache=$3 $NBDCOW_OPTS $key_nbdcow"
        cmd="$cmd $(echo "$at_qemu" | sed "s|$inside/|$work/|g") $work/$5.qcow2"
        ;;
    qemu)
        cmd="$QEMU_NBD -t -e 0 $open_qemu --cache=$3 --aio=$2 $QEMU_OPTS $at_qemu $file_qemu"
        ;;
    nbdkit)
        cmd="$NBDKIT -f $at_nbdkit $NBDKIT_OPTS file $inside/$5.raw"
        ;;
    plugin)
        cmd="$plugin_env $NBDKIT -f $at_nbdkit $NBDKIT_OPTS $inside/nbdkit-qcow2-plugin.so"
        [ "$3" = none ] && cmd="$cmd cache=none"
        cmd="$cmd file=$inside/$5.qcow2 $key_plugin $PLUGIN_OPTS"
        ;;
    qcow2dec)
        cmd="$NBDKIT -f -r $at_nbdkit $NBDKIT_OPTS --filter=qcow2dec file $inside/$5.qcow2"
        ;;
    bare)
        cmd="$bareloop $BARE_OPTS $at_bare $work/$5.raw"
        ;;
    esac
}

# start_server SIDE MODE CACHE TRANSPORT IMAGE: in the background; sets $pid and $at.
start_server ()
{
    set_command "$@"
    rm -f "$work/sock"
    $cmd >/dev/null 2>"$work/err" &
    pid=$!
}

# Ends it; one that does not go by itself within ten seconds is killed.
stop_server ()
{
    [ -n "$pid" ] || return 0
    kill "$pid" 2>/dev/null
    tries=0
    while kill -0 "$pid" 2>/dev/null && [ $tries -lt 1000 ]; do
        tries=$((tries + 1))
        sleep 0.01
    done
    kill -9 "$pid" 2>/dev/null && note "$cmd: had to be killed"
    wait "$pid" 2>/dev/null
    pid=
}
