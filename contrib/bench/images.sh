# SPDX-License-Identifier: BSD-3-Clause
#
# The images, each made once when a row first asks for it.  Sourced by run.sh.
#
# data      $size of incompressible data, every cluster allocated in one layer; data.raw too
# text      the same of compressible data, as raw; zlib and zstd are made from it
# chain1    the contents of chain8 in a single layer
# chain8    eight overlays on an empty base; cluster N is in overlay N mod 8.  The lower ones
#           are layer1 to layer7
# luks      data, encrypted; its key is in the file key
# sparse1t  1 TiB with 4 KiB here and there
# mapped1t  1 TiB whose every cluster is mapped (and never written)
# empty64t  64 TiB, empty
# empty1g   1 GiB, empty

img ()
{
    $QEMU_IMG "$@" >"$work/err" 2>&1 || die "qemu-img $*: $(cat "$work/err")"
}

# through IMAGE LOAD-OPTIONS...: writes into a qcow2 image, by way of qemu-nbd or nbdcow.
through ()
{
    image=$1
    shift
    case " $sides " in
    *" qemu "*) start_server qemu threads writeback unix "$image" ;;
    *) start_server nbdcow - writeback unix "$image" ;;
    esac
    "$load" $at "$@" >/dev/null || die "writing image $image: $(cat "$work/err")"
    stop_server
}

# fill NAME LOAD-OPTIONS...: a raw file of $size, all of it written and stamped.
fill ()
{
    name=$1
    shift
    truncate -s "$size" "$work/$name.raw"
    start_server bare - - unix "$name"
    "$load" $at --op write --pattern seq --block 1M --depth 8 --count $((size_mib)) --stamp \
        "$@" >/dev/null || die "filling $name.raw: $(cat "$work/err")"
    stop_server
}

image ()
{
    [ -f "$work/$1.made" ] && return
    case $1 in
    data)
        fill data
        img convert -f raw -O qcow2 "$inside/data.raw" "$inside/data.qcow2"
        ;;
    text)
        fill text --data text
        ;;
    zlib | zstd)
        image text
        ln "$work/text.raw" "$work/$1.raw"
        img convert -c -f raw -O qcow2 -o compression_type="$1" -m 2 \
            "$inside/text.raw" "$inside/$1.qcow2"
        ;;
    luks)
        printf secret >"$work/key"
        img convert --object "secret,id=key,file=$inside/key" -f raw -O qcow2 \
            -o encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=100 \
            "$inside/data.raw" "$inside/luks.qcow2"
        ;;
    chain8)
        img create -f qcow2 "$inside/layer0.qcow2" "$size"
        n=1
        while [ $n -le 8 ]; do
            name=layer$n
            [ $n -lt 8 ] || name=chain8
            img create -f qcow2 -b "layer$((n - 1)).qcow2" -F qcow2 "$inside/$name.qcow2"
            through $name --op write --pattern seq --block 64k --depth 4 --stamp \
                --start $(((n - 1) * 65536)) --stride 512k --count $((size_mib * 2))
            n=$((n + 1))
        done
        ;;
    chain1)
        image chain8
        img convert -f qcow2 -O qcow2 "$inside/chain8.qcow2" "$inside/chain1.qcow2"
        ;;
    sparse1t)
        img create -f qcow2 "$inside/sparse1t.qcow2" 1T
        through sparse1t --op write --pattern perm --stride 64k --depth 16 --count 16384
        ;;
    mapped1t)
        img create -f qcow2 -o preallocation=metadata "$inside/mapped1t.qcow2" 1T
        ;;
    empty64t)
        img create -f qcow2 "$inside/empty64t.qcow2" 64T
        truncate -s 8T "$work/empty64t.raw" # a file's limit on many file systems is 16 TiB
        ;;
    empty1g)
        img create -f qcow2 "$inside/empty1g.qcow2" 1G
        truncate -s 1G "$work/empty1g.raw"
        ;;
    esac
    # How a file came into the page cache decides what writing into it costs (the kernel's folios
    # keep the size that they were made with), so all come in the same way: from the disk.
    drop_cache "$1"
    touch "$work/$1.made"
}

# fresh NAME SIZE: an empty image, each time anew.
fresh ()
{
    rm -f "$work/$1.qcow2" "$work/$1.raw"
    img create -f qcow2 "$inside/$1.qcow2" "$2"
    truncate -s "$2" "$work/$1.raw"
}

# warm_cache PATTERN: everything that readers of these files will want is in the page cache
# afterwards.
warm_cache ()
{
    cat "$work"/$1.* >/dev/null
}

# Nothing of it is; and nothing is left to be written.
drop_cache ()
{
    for f in "$work/$1".qcow2 "$work/$1".raw; do
        [ ! -f "$f" ] || dd of="$f" oflag=nocache conv=notrunc,fdatasync count=0 2>/dev/null
    done
}
