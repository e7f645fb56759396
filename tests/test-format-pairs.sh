#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Features of the format that meet in one image, and what is done to images that have them, two and two: one
# tool makes the image, qemu-img or nbdcow-img, one changes it, QEMU and a front end write it in turn, and after each
# turn both read what the model has and find nothing wrong.  PAIRS pairs by lot (default 8), PAIRS=all, or those
# that it names, as in PAIRS="zstd+snapshot luks+wide"; MAKER and CHANGER (theirs, ours) are by lot as well.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io qemu-nbd
requires_python_nbd
use_seed

features='subclusters data-file raw-data-file compressed zstd bitmap snapshot luks backing lazy narrow wide small
  version2 preallocated grown shrunk amended no-unref'
printf secret >key
printf another >key2
qemu-img create -q -f qcow2 plain.qcow2 64k
if qemu-img info --image-opts driver=qcow2,discard-no-unref=on,file.filename=plain.qcow2 >log 2>&1; then
  qemu_no_unref=,discard-no-unref=on
else
  qemu_no_unref= # QEMU before 8.1 discards as it always does
fi

# excluded A B: what the format, or QEMU, does not put together, in either order.
excluded ()
{
  case " $1  $2 " in
  *' data-file '*' raw-data-file '*) ;;
  *data-file*' compressed '* | *' compressed '*data-file*) ;; # nothing compressed outside
  *data-file*' zstd '* | *' zstd '*data-file*) ;;
  *data-file*' snapshot '* | *' snapshot '*data-file*) ;;
  *' raw-data-file '*' backing '* | *' backing '*' raw-data-file '*) ;;
  *' compressed '*' zstd '* | *' compressed '*' luks '* | *' zstd '*' luks '*) ;;
  *' narrow '*' wide '* | *' narrow '*' snapshot '* | *' snapshot '*' narrow '*) ;; # a count of 1 at most
  *' small '*' subclusters '* | *' subclusters '*' small '*) ;;
  *' compressed '*' preallocated '* | *' zstd '*' preallocated '* | *' backing '*' preallocated '*) ;;
  *' grown '*' shrunk '*) ;;
  *' version2 '*)
    case " $1  $2 " in
    *' compressed '* | *' snapshot '* | *' luks '* | *' backing '* | *' small '*) return 1 ;;
    *' preallocated '* | *' grown '* | *' shrunk '* | *' amended '*) return 1 ;;
    esac ;;
  *) return 1 ;;
  esac
}

# has FEATURE: the pair at hand does.
has ()
{
  [ "$1" = "$a" ] || [ "$1" = "$b" ]
}

# tool WHOSE ARGUMENT...
tool ()
{
  _whose=$1
  shift
  case $_whose in theirs) derive qemu-img "$@" ;; ours) "$NBDCOW_IMG" "$@" ;; esac || fail "$what: $_whose: $*"
}

# name_image KEY: sets object and image, how tools name it, and QEMU_IMAGE, how disk.py has QEMU open it.
name_image ()
{
  object='' image='--image-opts driver=qcow2,file.filename=disk.qcow2'
  if has luks; then
    secret=$1
    object="--object secret,id=key,file=key --object secret,id=key2,file=key2"
    image=$image,encrypt.key-secret=$secret
  fi
  QEMU_IMAGE="$object $image,discard=unmap"
  ! has no-unref || QEMU_IMAGE=$QEMU_IMAGE$qemu_no_unref
  export QEMU_IMAGE
}

# sound: QEMU and we find nothing wrong.
sound ()
{
  # shellcheck disable=SC2086 # words
  qemu-img check -q $object $image >check.log 2>&1 || { head -n 20 check.log >&2; fail "$what: qemu-img check"; }
  "$NBDCOW_IMG" check -q disk.qcow2 || fail "$what: nbdcow-img check"
}

# The snapshot holds what it held, as far as QEMU shows it of a disk that has another size by now; the raw data
# file is the disk; the bitmap is there, and can be used.
aside ()
{
  if has snapshot; then
    # shellcheck disable=SC2086
    qemu-img convert $object -l one -O raw $image was
    _n=$(printf '%s\n' "$(stat -c %s was)" "$(stat -c %s snapshot)" | sort -n | head -n 1)
    cmp -n "$_n" was snapshot || fail "$what: the snapshot has changed"
  fi
  if has raw-data-file && ! has luks; then
    cmp -n "$(stat -c %s model)" data.raw model || fail "$what: the data file is not the disk"
  fi
  if has bitmap; then
    # shellcheck disable=SC2086
    qemu-img info --output=json $object $image >info.json
    grep -q '"name": "kept"' info.json || fail "$what: no bitmap"
    ! grep -q in-use info.json || fail "$what: the bitmap is lost"
  fi
}

# serve [compress]: what is written is compressed.
serve ()
{
  _image=disk.qcow2 _discard=discard=unmap _compress=${1:-}
  set --
  case $FRONTEND in
  nbdcow)
    ! has luks || set -- "arg=--key-file=$secret"
    ! has no-unref || { _image=driver=qcow2,file.filename=disk.qcow2,discard-no-unref=on; set -- "$@" arg=--image-opts; }
    [ -z "$_compress" ] || set -- "$@" arg=--compress
    ;;
  nbdkit)
    ! has luks || set -- "arg=passphrase=+$tmp/$secret"
    ! has no-unref || _discard=discard=no-unref
    [ -z "$_compress" ] || set -- "$@" arg=compress=on
    ;;
  esac
  start_server "$_image" $_discard "$@"
}

# choose_options: sets opts, what is made, and amend, what it is to be instead, or another key.
choose_options ()
{
  opts=cluster_size=$cluster amend=
  has subclusters && opts=$opts,extended_l2=on
  has data-file && opts=$opts,data_file=data.raw
  has raw-data-file && opts=$opts,data_file=data.raw,data_file_raw=on
  has zstd && opts=$opts,compression_type=zstd
  has luks && opts=$opts,encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10
  has preallocated && opts=$opts,preallocation=metadata
  _kind=
  has lazy && _kind=lazy_refcounts=on
  has narrow && _kind=refcount_bits=1
  has wide && _kind=refcount_bits=64
  has version2 && _kind=compat=0.10
  if ! has amended; then
    opts=$opts${_kind:+,$_kind}
  elif has luks; then
    amend=encrypt.state=active,encrypt.new-secret=key2,encrypt.iter-time=10
  elif [ -n "$_kind" ]; then
    amend=$_kind
  elif has compressed || has snapshot || has backing || has small || has preallocated || has grown || has shrunk; then
    opts=$opts,compat=0.10 amend=compat=1.1,refcount_bits=32
  else
    amend=refcount_bits=32,lazy_refcounts=on
  fi
}

make ()
{
  size=$((40 * 65536 + 512)) cluster=65536
  has small && cluster=512 size=$((1200 * 512))
  has subclusters && cluster=32768
  export GRAIN=$cluster
  # How large it is to begin with.
  first=$size
  has grown && first=$((size / 1024 * 512))
  has shrunk && first=$((size / 1024 * 1536))
  choose_options
  name_image key
  rm -f disk.qcow2 base.qcow2 data.raw model snapshot
  "$PYTHON" "$SRCDIR/disk.py" fill model $first
  # shellcheck disable=SC2086
  if has backing; then
    # What is compressed is in the layer below, which is longer than what has yet to grow.
    compress=
    has compressed && compress=-c
    cp model base.raw
    has grown && "$PYTHON" "$SRCDIR/disk.py" fill base.raw $size && dd if=base.raw of=model bs=512 count=$((first / 512)) status=none
    tool "$maker" convert $compress -f raw -O qcow2 base.raw base.qcow2
    tool "$maker" create -q $object -f qcow2 -o "$opts" -b base.qcow2 -F qcow2 disk.qcow2 $first
  elif has luks; then
    tool "$maker" create -q $object -f qcow2 -o "$opts" disk.qcow2 $first
    tool "$maker" convert -n $object --target-image-opts -f raw model "${image#--image-opts }"
  else
    compress=
    if has compressed || has zstd; then compress=-c; fi
    tool "$maker" convert $compress -f raw -O qcow2 -o "$opts" model disk.qcow2
  fi
}

change ()
{
  # shellcheck disable=SC2086
  if has bitmap; then tool "$changer" bitmap --add -g 65536 $object $image kept; fi
  if has snapshot; then
    cp model snapshot
    # shellcheck disable=SC2086
    tool "$changer" snapshot -c one $object $image
  fi
  if [ -n "$amend" ]; then
    # shellcheck disable=SC2086
    tool "$changer" amend -q $object -o "$amend" $image
    if has luks; then
      name_image key2
      # shellcheck disable=SC2086
      tool "$changer" amend -q $object -o encrypt.state=inactive,encrypt.old-secret=key $image
    fi
  fi
  if [ $first != $size ]; then
    shrink=
    has shrunk && shrink=--shrink
    # shellcheck disable=SC2086
    tool "$changer" resize -q $shrink $object $image $size
    truncate -s $size model
  fi
}

try ()
{
  what="$a and $b, made by $maker, changed by $changer"
  echo "== $what"
  make
  change
  cp model before
  for round in 1 2; do
    sound
    aside
    if [ $round = 2 ] && { has compressed || has zstd; }; then serve compress; else serve; fi
    "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
    ROUND=n$round "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 60
    "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
    stop_server
    sound
    aside
    ROUND=q$round "$PYTHON" "$SRCDIR/disk.py" qemu disk.qcow2 model 20
  done
  sound
  aside
  if has bitmap; then
    # shellcheck disable=SC2086
    bitmap_bits kept kept.bits $object $image
    "$PYTHON" "$SRCDIR/bitmaps.py" covers kept.bits before model || fail "$what: the bitmap misses a write"
  fi
}

pairs=
rest=$features
for a in $features; do
  rest=$(echo "$rest" | sed "s/^ *$a *//")
  for b in $rest; do
    excluded "$a" "$b" || pairs="$pairs $a+$b"
  done
done
case ${PAIRS:-8} in
all) ;;
*+*) pairs=$PAIRS ;;
*) pairs=$(lot "${PAIRS:-8}" $pairs) ;;
esac
n=$SEED
for pair in $pairs; do
  a=${pair%+*} b=${pair#*+}
  n=$((n + 1))
  case $((n % 4)) in
  0) maker=theirs changer=theirs ;;
  1) maker=ours changer=theirs ;;
  2) maker=theirs changer=ours ;;
  3) maker=ours changer=ours ;;
  esac
  maker=${MAKER:-$maker} changer=${CHANGER:-$changer}
  try
done
