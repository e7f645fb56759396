#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Features of the format that meet in one image, two and two: QEMU makes it, QEMU and a front end write it
# in turn, and after each turn both read what the model has and find nothing wrong.  PAIRS pairs by lot
# (default 12), PAIRS=all, or those that it names, as in PAIRS="zstd+snapshot luks+wide".

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io shuf
requires_python_nbd
use_seed

features='subclusters data-file raw-data-file compressed zstd bitmap snapshot luks backing lazy narrow wide small
  version2'

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
  *' version2 '*)
    case " $1  $2 " in
    *' compressed '* | *' snapshot '* | *' backing '* | *' small '*) return 1 ;;
    esac ;;
  *) return 1 ;;
  esac
}

# has FEATURE: the pair at hand does.
has ()
{
  [ "$1" = "$a" ] || [ "$1" = "$b" ]
}

qemu_img ()
{
  _command=$1
  shift
  # shellcheck disable=SC2086 # two words
  derive qemu-img "$_command" $object "$@"
}

# sound: QEMU and we find nothing wrong.
sound ()
{
  if has luks; then
    # shellcheck disable=SC2086
    qemu-img check -q $QEMU_IMAGE >check.log 2>&1 || { cat check.log >&2; fail "$a and $b: qemu-img check"; }
  else
    check_image disk.qcow2
  fi
  "$NBDCOW_IMG" check -q disk.qcow2 || fail "$a and $b: nbdcow-img check"
}

serve ()
{
  if has luks; then
    if [ "$FRONTEND" = nbdcow ]; then set -- arg=--key-file=key; else set -- "arg=passphrase=+$tmp/key"; fi
  fi
  start_server disk.qcow2 discard=unmap "$@"
}

make ()
{
  size=$((40 * 65536 + 512)) cluster=65536
  has small && cluster=512 size=$((1200 * 512))
  has subclusters && cluster=32768
  opts=cluster_size=$cluster
  has subclusters && opts=$opts,extended_l2=on
  has data-file && opts=$opts,data_file=data.raw
  has raw-data-file && opts=$opts,data_file=data.raw,data_file_raw=on
  has zstd && opts=$opts,compression_type=zstd
  has luks && opts=$opts,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10
  has lazy && opts=$opts,lazy_refcounts=on
  has narrow && opts=$opts,refcount_bits=1
  has wide && opts=$opts,refcount_bits=64
  has version2 && opts=$opts,compat=0.10
  export GRAIN=$cluster
  object= QEMU_IMAGE=
  if has luks; then
    printf secret >key
    object='--object secret,id=s,file=key'
    QEMU_IMAGE="$object --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=disk.qcow2,discard=unmap"
  fi
  export QEMU_IMAGE
  rm -f disk.qcow2 base.qcow2 data.raw model snapshot
  "$PYTHON" "$SRCDIR/disk.py" fill model $size
  if has backing; then
    qemu-img convert -f raw -O qcow2 model base.qcow2
    qemu_img create -q -f qcow2 -o "$opts" -b base.qcow2 -F qcow2 disk.qcow2
  elif has compressed || has zstd; then
    qemu_img convert -c -f raw -O qcow2 -o "$opts" model disk.qcow2
  elif has luks; then
    qemu_img create -q -f qcow2 -o "$opts" disk.qcow2 $size
    # Zeros, but for a raw data file: what is in that when it is made is not encrypted.
    # shellcheck disable=SC2086
    qemu-img convert $QEMU_IMAGE -O raw model
  else
    qemu_img convert -f raw -O qcow2 -o "$opts" model disk.qcow2
  fi
  if has compressed && has backing; then
    # What is compressed is in the layer below.
    qemu-img convert -c -f raw -O qcow2 model base.qcow2
  fi
  if has bitmap; then
    if has luks; then
      # shellcheck disable=SC2086
      qemu-img bitmap --add -g 65536 $QEMU_IMAGE kept
    else
      qemu-img bitmap --add -g 65536 disk.qcow2 kept
    fi
  fi
  if has snapshot; then
    cp model snapshot
    if has luks; then
      # shellcheck disable=SC2086
      qemu-img snapshot -c one $QEMU_IMAGE
    else
      qemu-img snapshot -c one disk.qcow2
    fi
  fi
}

# The snapshot holds what it held; the raw data file is the disk.
aside ()
{
  if has snapshot && ! has luks; then
    qemu-img convert -l one -f qcow2 -O raw disk.qcow2 was
    cmp was snapshot || fail "$a and $b: the snapshot has changed"
  fi
  if has raw-data-file && ! has luks; then
    cmp -n "$(stat -c %s model)" data.raw model || fail "$a and $b: the data file is not the disk"
  fi
  if has bitmap && ! has luks; then
    qemu-img info --output=json -f qcow2 disk.qcow2 | grep -q '"name": "kept"' || fail "$a and $b: no bitmap"
    ! qemu-img info --output=json -f qcow2 disk.qcow2 | grep -q in-use || fail "$a and $b: the bitmap is lost"
  fi
}

try ()
{
  echo "== $a and $b"
  make
  for round in 1 2; do
    sound
    aside
    serve
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
}

pairs=
rest=$features
for a in $features; do
  rest=$(echo "$rest" | sed "s/^ *$a *//")
  for b in $rest; do
    excluded "$a" "$b" || pairs="$pairs $a+$b"
  done
done
case ${PAIRS:-12} in
all) ;;
*+*) pairs=$PAIRS ;;
*) pairs=$(printf '%s\n' $pairs | shuf --random-source="$(printf '%0256d' "$SEED" >lot; echo lot)" -n "${PAIRS:-12}") ;;
esac
for pair in $pairs; do
  a=${pair%+*} b=${pair#*+}
  try
done
