#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Preallocation (metadata, falloc, full) where it meets another feature of the format, when an image is made and
# when it grows: qemu-img and nbdcow-img make the same of the same command lines, or refuse them both.  QEMU finds
# both sound, as many clusters allocated, and the same contents, also after it has written them; what is said
# to have its space has it.  ENCRYPTED=yes: of disks that are encrypted, four kinds by lot (QEMU takes two seconds to
# encrypt one), ENCRYPTED=all: all of them.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
in_memory 400

printf secret >key
truncate -s 8M base.raw
qemu-io -f raw -c 'write -q -P 85 0 8M' base.raw
made=0 refused=0 next=metadata

# options FEATURES WHOSE: sets opts, the -o of an image with them (words joined by +), below, what is below it, and
# object and image, how to name it.
options ()
{
  opts=cluster_size=64k below= object= image="-f qcow2 $2.qcow2"
  case +$1+ in *+small+*) opts=cluster_size=512 ;; esac
  case +$1+ in *+v2+*) opts=$opts,compat=0.10 ;; esac
  case +$1+ in *+extl2+*) opts=$opts,extended_l2=on ;; esac
  case +$1+ in *+narrow+*) opts=$opts,refcount_bits=1 ;; esac
  case +$1+ in *+zstd+*) opts=$opts,compression_type=zstd ;; esac
  case +$1+ in *+lazy+*) opts=$opts,lazy_refcounts=on ;; esac
  case +$1+ in *+data+*) opts=$opts,data_file=$2.data ;; esac
  case +$1+ in *+raw+*) opts=$opts,data_file=$2.data,data_file_raw=on ;; esac
  case +$1+ in *+below+*) below='-b base.raw -F raw' ;; esac
  case +$1+ in
  *+luks+*)
    opts=$opts,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10
    object='--object secret,id=s,file=key'
    image="--image-opts driver=qcow2,encrypt.key-secret=s,file.filename=$2.qcow2"
    ;;
  esac
}

# tool NAME ARGUMENT...: qemu-img or nbdcow-img; its status.
tool ()
{
  _name=$1
  shift
  case $_name in theirs) derive qemu-img "$@" ;; ours) "$NBDCOW_IMG" "$@" ;; esac
}

# allocated NAME: clusters, as QEMU counts them, and we.
allocated ()
{
  # shellcheck disable=SC2086 # words
  qemu-img check --output=json $object $image >check.json || fail "$what: $1: $(cat check.json)"
  "$NBDCOW_IMG" check --output=json "$1.qcow2" >ours.json || fail "$what: $1: $(cat ours.json)"
  for _f in check ours; do
    sed -n 's/.*"allocated-clusters": \([0-9]*\).*/\1/p' $_f.json >$_f.n
  done
  cmp ours.n check.n >&2 || fail "$what: $1: nbdcow-img check counts $(cat ours.n) clusters, qemu-img $(cat check.n)"
  cat ours.n
}

# has_space NAME MODE BYTES: so many are reserved, if that is what MODE promises.
has_space ()
{
  case $2 in falloc | full) ;; *) return 0 ;; esac
  _file=$1.qcow2
  [ ! -e "$1.data" ] || _file=$1.data
  [ $(($(stat -c %b "$_file") * 512)) -ge "$3" ] || fail "$what: $1: its space is not reserved"
}

# same MODE BYTES [zeros]: what both have made agrees, and reads as zeros.
same ()
{
  for who in theirs ours; do
    options "$features" $who
    n=$(allocated $who)
    eval "n_$who=\${n:-0}"
    [ $who = theirs ] || has_space $who "$1" "$2"
    # shellcheck disable=SC2086
    qemu-img convert $object -O raw $image $who.raw
  done
  # Ours say that what is encrypted is zeros; at the beginning of a data file there is no saying where those are.
  # shellcheck disable=SC2154 # set by eval
  case ${3:-},$features in zeros,*data+luks | zeros,raw+luks) n_ours=$((n_ours + 1)) ;; esac
  [ "$n_theirs" = "$n_ours" ] || fail "$what: $n_ours clusters are allocated, QEMU allocates $n_theirs"
  # What QEMU preallocates of an encrypted disk reads as whatever zeros are decrypted to.
  if [ -n "$object" ]; then
    # shellcheck disable=SC2086
    "$NBDCOW_IMG" convert -q $object -O raw $image theirs.raw
    [ "${3:-}" != zeros ] || cmp -n "$(stat -c %s ours.raw)" ours.raw /dev/zero || fail "$what: not zeros"
  fi
  cmp theirs.raw ours.raw || fail "$what: the contents differ"
}

# both WORD...: both tools with these; WHO stands for the image's name and IMAGE for how it is named.
both ()
{
  for who in theirs ours; do
    options "$features" $who
    line=
    for word; do
      case $word in
      OBJECT) line="$line $object" ;;
      IMAGE) line="$line $image" ;;
      BELOW) line="$line $below" ;;
      WHO) line="$line $who.qcow2" ;;
      OPTIONS*) line="$line $opts${word#OPTIONS}" ;;
      *) line="$line $word" ;;
      esac
    done
    s=0
    # shellcheck disable=SC2086
    tool $who $line >$who.log 2>&1 || s=$?
    eval "s_$who=$s"
  done
  # shellcheck disable=SC2154
  [ $((s_theirs != 0)) = $((s_ours != 0)) ] ||
    fail "$what: qemu-img $s_theirs $(cat theirs.log); nbdcow-img $s_ours $(cat ours.log)"
  [ "$s_ours" = 0 ] || one_line "$s_ours" ours.log || fail "$what: $REASON"
}

encrypted='luks extl2+luks v2+luks small+luks narrow+luks zstd+luks lazy+luks data+luks raw+luks'
case ${ENCRYPTED:-no} in
no) all='plain v2 small extl2 narrow zstd+lazy data raw below extl2+data extl2+raw extl2+below data+below' least=52 ;;
yes)
  use_seed
  # shellcheck disable=SC2086 # words
  all=$(lot 4 $encrypted) least=4
  ;;
all) all=$encrypted least=16 ;;
esac
for features in $all; do
  # What meets one other feature meets each mode; of those with more, one after the other.
  modes='metadata falloc full'
  case $features in *+*) modes=$next ;; esac
  case $next in metadata) next=falloc ;; falloc) next=full ;; *) next=metadata ;; esac
  for mode in $modes; do
    what="$features, made with preallocation=$mode"
    rm -f theirs.* ours.*
    # A size that ends within a cluster.
    both create -q -f qcow2 OBJECT -o OPTIONS,preallocation=$mode BELOW WHO $((3 * 1024 * 1024 + 1536))
    if [ "$s_ours" = 0 ]; then
      zeros=zeros
      case $features in *below*) zeros= ;; esac
      same $mode $((3 * 1024 * 1024)) $zeros
      made=$((made + 1))
    else
      refused=$((refused + 1))
    fi

    # What is encrypted grows by zeros that are written, whatever else it is.
    case $features in v2+luks | small+luks | narrow+luks | zstd+luks | lazy+luks | raw+luks) continue ;; esac
    what="$features, grown with --preallocation=$mode"
    rm -f theirs.* ours.*
    # Something of its own below what is new; QEMU makes both, or what can be copied once.
    for who in theirs ours; do
      options "$features" $who
      case $who+$features in
      *data* | *raw* | theirs+*)
        # shellcheck disable=SC2086
        tool theirs create -q -f qcow2 $object -o "$opts" $below $who.qcow2 $((1024 * 1024 + 512))
        # shellcheck disable=SC2086
        qemu-io $object -c 'write -q -P 7 100k 300k' $image
        ;;
      *) cp theirs.qcow2 ours.qcow2 ;;
      esac
    done
    both resize -q OBJECT --preallocation=$mode IMAGE $((4 * 1024 * 1024 + 1024))
    if [ "$s_ours" = 0 ]; then
      same $mode $((3 * 1024 * 1024))
      made=$((made + 1))
      # shellcheck disable=SC2086
      qemu-io $object -c 'write -q -P 9 1000k 200k' -c 'read -P 7 100k 300k' -c 'read -P 9 1000k 200k' \
        -c 'read -P 0 1200k 2M' $image >io.log
      ! grep -i failed io.log || fail "$what: QEMU reads something else"
      allocated ours >/dev/null
    else
      refused=$((refused + 1))
    fi
  done
done
echo "$made made or grown, $refused refused, by both"
[ $made -ge $least ] || fail "fewer than there should be"
