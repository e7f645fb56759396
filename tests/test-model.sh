#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The model test on images that qemu-img makes: version, cluster size, refcount width, lazy refcounts,
# extended L2 entries, compression, encryption, what is below, cache size, threads, and whether snapshots,
# bitmaps and the disk's size change meanwhile, are all drawn from SEED.  An image is worked on by several
# processes in turn, some of which are killed.  After those that were not qemu-img check finds nothing, QEMU
# reads the same disk, snapshots and bitmaps as the model has, and backing files are what they were.
#
# NBDCOW_MODEL_RUNS says how many images (default 24); run I of seed S is run 0 of seed S + I.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires qemu-img qemu-io
requires_file "${BUILDDIR:-}/model/model" model
requires_python_nbd
use_seed
runs=${NBDCOW_MODEL_RUNS:-24}
printf sesame >key
secret="--object secret,id=k,file=key"

# pick N: sets PICK to a number below N.
pick ()
{
  state=$(((state * 1103515245 + 12345) & 0x7fffffff))
  PICK=$(((state >> 8) % $1))
}

# text FIRST SIZE FILE: bytes that differ everywhere and can be compressed.
text ()
{
  { seq $(($1 % 1000000)) 99999999 2>/dev/null || :; } | head -c "$2" >"$3"
}

# choose_options: sets options, cluster, bits and size.
choose_options ()
{
  pick 13
  cluster=$((512 << PICK))
  pick 7
  bits=$((1 << PICK))
  pick 4
  if [ "$PICK" = 0 ]; then
    bits=16 options=compat=0.10
  else
    options=compat=1.1,refcount_bits=$bits
    pick 3
    [ "$PICK" != 0 ] || options=$options,lazy_refcounts=on
    pick 3
    [ "$PICK" != 0 ] || options=$options,compression_type=zstd
  fi
  options=$options,cluster_size=$cluster
  pick 2
  case $cluster,$PICK,$options in
  512,* | 1024,* | 2048,* | 4096,* | 8192,* | *,0,* | *,compat=0.10*) ;;
  *) options=$options,extended_l2=on ;;
  esac
  pick 6
  encrypted= spec=driver=qcow2,file.filename=disk.qcow2
  if [ "$PICK" = 0 ]; then
    encrypted=yes spec=$spec,encrypt.key-secret=k
    options=$options,encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10
    pick 2
    [ "$PICK" = 0 ] || options=$options,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv
  fi
  pick 24576
  size=$(((PICK + 10) * 512))
  [ "$cluster" -ge 4096 ] || size=$((size / 2048 * 512 + 1536))
}

create ()
{
  # shellcheck disable=SC2086
  derive qemu-img create -q $secret -f qcow2 "$@" || fail "qemu-img create $*"
}

# make_image: disk.qcow2 with contents of some kind, and what it stands on.
make_image ()
{
  pick 8
  content=$PICK
  [ "$content$encrypted" != 2yes ] || content=5 # nothing is compressed and encrypted
  [ "$content$encrypted" != 6yes ] && [ "$content$encrypted" != 7yes ] || content=5
  below= data=
  case $content in
  0 | 1)
    pick 3
    text "$seed" $((size * (PICK + 1) / 2 / 512 * 512)) base.raw
    if [ "$content" = 0 ]; then
      below="-b base.raw -F raw"
    else
      qemu-img convert -c -f raw -O qcow2 base.raw base.qcow2
      pick 2
      [ "$PICK" = 0 ] && mid=cluster_size=4096 || mid=cluster_size=32768,extended_l2=on
      qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o $mid mid.qcow2
      qemu-io -f qcow2 -c "write -P 77 0 1536" mid.qcow2 >/dev/null
      below="-b mid.qcow2 -F qcow2"
    fi
    ;;
  2)
    text "$seed" "$size" content.raw
    qemu-img convert -c -f raw -O qcow2 -o "$options" content.raw disk.qcow2
    return
    ;;
  6)
    # An external data file, which may be a longer file's remains, over a backing file.
    case $options in compat=1.1*)
      text "$seed" $((size / 3 / 512 * 512)) base.raw
      below="-b base.raw -F raw" data=,data_file=disk.data
      ;;
    esac
    ;;
  7)
    case $options in compat=1.1*) data=,data_file=disk.data,data_file_raw=on ;; esac
    ;;
  esac
  # shellcheck disable=SC2086 # two options
  create -o "$options$data" $below disk.qcow2 "$size"
  if [ -n "$data" ]; then
    # Places that count for nothing and hold something, as QEMU leaves them.
    qemu-io -f qcow2 -c "write -P 9 0 $size" -c "write -z 0 $((size / 2048 * 512 + 512))" disk.qcow2 >/dev/null
    qemu-io -f qcow2 -c "discard $((size / 1024 * 512)) $((size / 4096 * 512))" disk.qcow2 >/dev/null
  fi
  if [ "$content" = 3 ] && [ "$bits" -gt 1 ]; then
    # shellcheck disable=SC2086
    qemu-io $secret -c "write -P 7 0 $((size / 1024 * 512))" --image-opts $spec >/dev/null
    # shellcheck disable=SC2086
    qemu-img snapshot $secret -c before --image-opts $spec
    # shellcheck disable=SC2086
    qemu-img convert $secret -l before -O raw --image-opts $spec before.raw
  fi
}

# bits_are_right NAME GRANULARITY: QEMU shows the bitmap that the model has.
bits_are_right ()
{
  # shellcheck disable=SC2086
  qemu-nbd -r -k "$tmp/qemu.sock" -B "$1" $secret --image-opts $spec >qemu.log 2>&1 </dev/null &
  qemu=$!
  track $qemu
  wait_for 30 listens "$tmp/qemu.sock" || { cat qemu.log >&2; fail "$what: qemu-nbd does not serve bitmap $1"; }
  "$PYTHON" "$SRCDIR/bitmaps.py" between "nbd+unix:///?socket=$tmp/qemu.sock" "$1" "$2" "model.d/$1.bits" ||
    fail "$what: QEMU sees another bitmap $1"
  wait $qemu || fail "$what: qemu-nbd: status $?"
  rm -f qemu.sock
}

# judge: what QEMU has to say about the image that the model has closed.
judge ()
{
  # shellcheck disable=SC2086
  qemu-img check -q $secret --image-opts $spec >check.out 2>&1 || {
    status=$?
    head -n 20 check.out >&2
    fail "$what: qemu-img check: status $status"
  }
  # shellcheck disable=SC2086
  qemu-img compare -q $secret --image-opts $spec driver=raw,file.filename=model.d/disk ||
    fail "$what: QEMU reads something else"
  case $data in *raw=on)
    cmp -n "$(stat -c %s model.d/disk)" disk.data model.d/disk || fail "$what: the raw data file differs"
    ;;
  esac
  for file in base.raw mid.qcow2; do
    [ ! -e $file ] || unchanged "$(cat "sum.$file")" $file || fail "$what"
  done
  if [ -e before.raw ]; then
    snapshot_is before before.raw
  fi
  if [ -s model.d/snapshots ]; then
    while read -r name; do
      snapshot_is "$name" "model.d/$name.snapshot"
    done <model.d/snapshots
  fi
  if [ -s model.d/bitmaps ]; then
    # shellcheck disable=SC2086
    qemu-img info $secret --image-opts $spec >info.out
    while read -r name granularity enabled lost; do
      grep -q "name: $name\$" info.out || fail "$what: QEMU sees no bitmap $name"
      [ "$lost" = 1 ] || last="$name $granularity"
    done <model.d/bitmaps
    # One of them: it takes a server.
    # shellcheck disable=SC2086
    [ -z "$last" ] || bits_are_right $last
    last=
  fi
}

# snapshot_is NAME FILE: as far as the disk goes, which QEMU shows no more of.
snapshot_is ()
{
  # shellcheck disable=SC2086
  qemu-img convert $secret -l "$1" -O raw --image-opts $spec after.raw
  least=$(printf '%s\n' "$(stat -c %s after.raw)" "$(stat -c %s "$2")" | sort -n | head -n 1)
  cmp -n "$least" after.raw "$2" || fail "$what: snapshot $1 is not what it was"
}

# turn NUMBER ARGUMENT...: one process works on the image; it ends as it likes, or is killed if KILLED.
turn ()
{
  number=$1
  shift
  status=0 wanted=0
  [ -z "$killed" ] || wanted=137
  timeout 400 "$BUILDDIR/model/model" -s $((seed * 4 + number)) ${killed:+-K} -e model.d "$@" disk.qcow2 \
    >log 2>&1 || status=$?
  if [ $status != $wanted ]; then
    tail -n 20 log >&2
    fail "$what: turn $number: status $status"
  fi
}

run ()
{
  state=$((seed & 0x7fffffff))
  choose_options
  rm -rf ./*.raw ./*.qcow2 ./*.data model.d "$STATE_DIR/model"
  mkdir -m 700 model.d "$STATE_DIR/model"
  make_image
  set -- ${encrypted:+-k sesame}
  pick 3
  [ "$PICK" != 0 ] || set -- "$@" -l $((cluster * 3))
  pick 4
  [ "$PICK" != 0 ] || set -- "$@" -d
  pick 3
  [ -n "$data" ] ||
    { [ "$PICK$encrypted" != 1 ] && [ "$PICK$encrypted" != 2 ]; } || set -- "$@" -z
  pick 2
  if [ "$PICK" = 0 ]; then
    set -- "$@" -t 1 -n 200
  else
    set -- "$@" -t 6 -n 480
  fi
  pick 2
  [ "$PICK" = 0 ] || set -- "$@" -c
  pick 3
  [ "$PICK" = 0 ] || set -- "$@" -g
  pick 3
  case $PICK$options in [12]compat=1.1*) set -- "$@" -b ;; esac
  pick 4
  case $PICK$options in 0compat=1.1*) set -- "$@" -u ;; esac
  pick 2
  [ "$PICK" = 0 ] || set -- "$@" -S "$STATE_DIR/model"
  case $data in *raw=on) set -- "$@" -R disk.data ;; esac
  what="seed $seed: $options$data, $size bytes, contents $content, model $*"
  for file in base.raw mid.qcow2; do
    [ ! -e $file ] || digest $file >"sum.$file"
  done

  pick 3
  turns=$((PICK + 1)) done=0
  while [ $done -lt $turns ]; do
    done=$((done + 1))
    pick 2
    killed=
    [ "$PICK" = 0 ] || [ $done = $turns ] || killed=1
    turn $done "$@"
    [ -n "$killed" ] || judge
    operations=$((operations + $(sed -n 's/^model: \([0-9]*\) operations on the image.*/\1/p' log)))
  done
  "$BUILDDIR/model/contents" disk.qcow2 contents.raw ${encrypted:+sesame} || fail "$what"
  cmp contents.raw model.d/disk || fail "$what: opened for reading, the engine reads something else"
}

last='' operations=0 processes=0
i=0
while [ $i -lt "$runs" ]; do
  seed=$((SEED + i))
  run
  processes=$((processes + turns))
  i=$((i + 1))
done
echo "$test_name: $runs images, $processes processes, $operations operations on whole images"
