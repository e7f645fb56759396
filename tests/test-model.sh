#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The model test on images that qemu-img makes: version, cluster size, refcount width, lazy refcounts,
# extended L2 entries, compression, encryption, what is below, internal snapshots, cache size and threads are all drawn from SEED.
# Afterwards qemu-img check finds nothing, QEMU reads the same contents as the engine, and snapshots and
# backing files are what they were.
#
# NBDCOW_MODEL_RUNS says how many images (default 24); run I of seed S is run 0 of seed S + I.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires qemu-img qemu-io
requires_file "${BUILDDIR:-}/model/model" model
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

# QEMU measures the processor for encryption, and gives up when others are using it.
create ()
{
  for _try in 1 2 3 4 5 6; do
    # shellcheck disable=SC2086
    qemu-img create -q $secret -f qcow2 "$@" 2>create.log && return
  done
  cat create.log >&2
  fail "qemu-img create $*"
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

run ()
{
  state=$((seed & 0x7fffffff))
  choose_options
  rm -f ./*.raw ./*.qcow2 ./*.data
  make_image
  set -- -s "$seed" ${encrypted:+-k sesame}
  pick 3
  [ "$PICK" != 0 ] || set -- "$@" -l $((cluster * 3))
  pick 4
  [ "$PICK" != 0 ] || set -- "$@" -d
  pick 3
  [ -n "$data" ] ||
    { [ "$PICK$encrypted" != 1 ] && [ "$PICK$encrypted" != 2 ]; } || set -- "$@" -z
  pick 2
  if [ "$PICK" = 0 ]; then
    set -- "$@" -c -t 1 -n 300
  else
    set -- "$@" -t 6 -n 600
  fi
  case $data in *raw=on) set -- "$@" -R disk.data ;; esac
  what="seed $seed: $options$data, $size bytes, contents $content, model $*"
  for file in base.raw mid.qcow2; do
    [ ! -e $file ] || digest $file >"sum.$file"
  done

  timeout 120 "$BUILDDIR/model/model" "$@" disk.qcow2 >log 2>&1 || {
    status=$?
    tail -n 20 log >&2
    fail "$what: status $status"
  }
  # shellcheck disable=SC2086
  qemu-img check -q $secret --image-opts $spec >check.out 2>&1 || {
    status=$?
    head -n 20 check.out >&2
    fail "$what: qemu-img check: status $status"
  }
  "$BUILDDIR/model/contents" disk.qcow2 contents.raw ${encrypted:+sesame} || fail "$what"
  # shellcheck disable=SC2086
  qemu-img compare -q $secret --image-opts $spec driver=raw,file.filename=contents.raw ||
    fail "$what: QEMU reads something else"
  case $data in *raw=on) cmp -n "$size" disk.data contents.raw || fail "$what: the raw data file differs" ;; esac
  for file in base.raw mid.qcow2; do
    [ ! -e $file ] || unchanged "$(cat "sum.$file")" $file || fail "$what"
  done
  if [ -e before.raw ]; then
    # shellcheck disable=SC2086
    qemu-img convert $secret -l before -O raw --image-opts $spec after.raw
    cmp before.raw after.raw || fail "$what: the snapshot's contents were changed"
  fi
}

i=0
while [ $i -lt "$runs" ]; do
  seed=$((SEED + i))
  run
  i=$((i + 1))
done
echo "$test_name: $runs images"
