#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# contrib/completion: every sub-command, and the options of each, are offered; values where there is a
# fixed set of them.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires bash

cat >complete.bash <<'END'
. "$1"
offer () # FUNCTION WORD...: what is offered for the last word
{
  local function=$1
  shift
  compopt () { :; }
  COMP_WORDS=("$@")
  COMP_CWORD=$(($# - 1))
  COMPREPLY=()
  "$function"
  echo " ${COMPREPLY[*]} "
}
shift
offer "$@"
END
# offers FUNCTION SCRIPT WANTED WORD...
offers ()
{
  function=$1 script=$2 wanted=$3
  shift 3
  got=$(bash complete.bash "$SRCDIR/../contrib/completion/$script" "$function" "$@") || fail "$*: bash: $got"
  case $got in
  *" $wanted "*) ;;
  *) fail "$* does not offer $wanted but: $got" ;;
  esac
}
for command in $("$NBDCOW_IMG" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'); do
  offers _nbdcow_img nbdcow-img "$command" "$NBDCOW_IMG" "$(echo "$command" | cut -c1)"
  offers _nbdcow_img nbdcow-img --help "$NBDCOW_IMG" "$command" --
done
offers _nbdcow_img nbdcow-img --journal "$NBDCOW_IMG" check --jo
offers _nbdcow_img nbdcow-img --strict "$NBDCOW_IMG" compare --
offers _nbdcow_img nbdcow-img svg "$NBDCOW_IMG" map --output ''
offers _nbdcow_img nbdcow-img svg "$NBDCOW_IMG" map --output = s
offers _nbdcow_img nbdcow-img leaks "$NBDCOW_IMG" check -r l
offers _nbdcow_img nbdcow-img zstd "$NBDCOW_IMG" recompress --type = zs
offers _nbdcow_img nbdcow-img full "$NBDCOW_IMG" resize --preallocation f
offers _nbdcow_img nbdcow-img --bitmaps "$NBDCOW_IMG" convert --bi
offers _nbdcow_img nbdcow-img qcow2 "$NBDCOW_IMG" info -f q
: >disk.qcow2
offers _nbdcow_img nbdcow-img disk.qcow2 "$NBDCOW_IMG" info di
if [ -e "${NBDCOW:-}" ]; then
  offers _nbdcow nbdcow --socket "$NBDCOW" --so
  offers _nbdcow nbdcow unmap "$NBDCOW" --discard u
fi
