#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img: help, version, and one line with exit status 1 for every misuse.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img

for option in --help --version; do
  "$NBDCOW_IMG" $option >out 2>err || fail "$option: status $?"
  [ -s out ] && [ ! -s err ] || fail "$option: nothing on stdout, or something on stderr"
done
commands=$("$NBDCOW_IMG" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')
case $commands in
*check*create*info*) ;;
*) fail "--help lists the commands as: $commands" ;;
esac
for command in $commands; do
  "$NBDCOW_IMG" "$command" --help >out 2>err || fail "$command --help: status $?"
  head -n 1 out | grep -q "^Usage: nbdcow-img $command" || fail "$command --help: $(head -n 1 out)"
  [ ! -s err ] || fail "$command --help: $(cat err)"
done

# misused PATTERN ARGUMENT...
misused ()
{
  pattern=$1
  shift
  s=0
  "$NBDCOW_IMG" "$@" >out 2>err || s=$?
  one_line $s err "$pattern" || fail "nbdcow-img $*: $REASON"
  [ ! -s out ] || fail "nbdcow-img $*: $(cat out)"
}
misused "--help"
misused frobnicate frobnicate
misused --frobnicate --frobnicate
for command in $commands; do
  misused --frobnicate "$command" --frobnicate x
  misused "'-Z'" "$command" -Z x
done
misused "argument" info --output
misused "xml" info --output xml x
misused "vdi" info -f vdi x
misused "file name" info
misused "file name" info a b
misused "nonesuch" info nonesuch
misused "nonesuch" check nonesuch
misused "everything" check -r everything x
misused "-U" check -U -r all x
misused "fast" check -T fast x
misused "file name" create
misused "how large" create x
misused "third" create x 1M third
[ ! -e x ] || fail "x was made"

# A directory, a FIFO and an empty file are not images.
mkdir dir
mkfifo fifo
misused "dir" info dir
misused "fifo" info -f qcow2 fifo
: >empty
misused "empty" info -f qcow2 empty
misused "qcow2" check -f qcow2 empty

# A full disk is noticed.
"$NBDCOW_IMG" create -q disk.qcow2 1M
if [ -c /dev/full ]; then
  s=0
  "$NBDCOW_IMG" info disk.qcow2 >/dev/full 2>err || s=$?
  one_line $s err stdout || fail "info to a full disk: $REASON"
fi
