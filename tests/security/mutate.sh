#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Puts each sin of the tables here into our own code, one at a time, in a copy of the sources, and demands that its
# row notices.  Prints a table: the row, what was taken out, and what the row says of it.
#
#     mutate.sh [-w DIRECTORY] [-q] [NAME...]
#     mutate.sh -n [NAME...]
#     mutate.sh -l
#
# The mutations are in faults.sh.  -w, -q, -n, -l and NAME: see mutations.sh; without -q the rows that are looked at
# are first shown to pass.  All of them took five minutes on two cores, with ccache and a build to begin with.
# Exits with 1 if a mutation went unnoticed (then the row has to be mended) or no longer applies to the
# sources (then the mutation has to follow the code), and with -n if a CVE or issue has none.

# Much is for mutations.sh or from there:
# shellcheck disable=SC2034,SC2154

set -eu

usage='mutate.sh [-w DIRECTORY] [-q] [-n | -l] [NAME...]'
flags=''
own_option ()
{
  exit 2
}
# shellcheck source=tests/mutations.sh
. "$(dirname "$0")/../mutations.sh"

# A size that was not looked at is not to take all of the machine's memory: KiB, of address space.
MEMORY=3000000
# What a row may take with all that is wrong with it.
SECONDS_EACH=400

# report NAME RESULT: in place of that of mutations.sh.
report ()
{
  printf '%-46s | %-44s | %s\n' "${TABLE:+$TABLE: $ROW}" "$1" "$2"
}

# row TABLE NAME: the row that is to notice the mutations that follow.
row ()
{
  TABLE=$1 ROW=$2 proved=$quick
  rows="$rows $1:${2##* }"
  case $1 in
  engine) targets=bugs ;;
  protocol) targets='nbdcow nbdcow-img nbdkit-qcow2-plugin protocol-suite' ;;
  *) targets='nbdcow nbdcow-img nbdkit-qcow2-plugin' ;;
  esac
}

# rule NAME...: mutations of the engine's ordering rules.
rule ()
{
  for only; do
    found=
    # shellcheck source=tests/crash/rules.sh
    . "$top/tests/crash/rules.sh"
    [ -n "$found" ] || {
      report "$only" "IS NOT IN crash/rules.sh any more"
      failed=1
    }
  done
  below='' only=''
}
first ()
{
  :
}

# look_for_missing: each row that has the name of a sin of somebody else's has a mutation.
look_for_missing ()
{
  for TABLE in images names protocol engine; do
    # shellcheck disable=SC2013 # they are words
    for ROW in $(sed -nE 's/^ *"(CVE-[0-9-]+|cloud-hypervisor [0-9]+|crosvm|QEMU,).*/\1/p' "$top/tests/security/$TABLE.py" |
      sed 's/.* //'); do
      case " $rows " in
      *" $TABLE:$ROW "*) ;;
      *)
        report "(none)" "HAS NO MUTATION: add one to security/faults.sh"
        failed=1
        ;;
      esac
    done
  done
}

# look: NOTICED is what the row says, or empty.  A test that breaks otherwise has not noticed.
look ()
{
  NOTICED='' status=0
  (
    # shellcheck disable=SC3045 # dash and bash have it
    ulimit -v $MEMORY
    export BUILD="$work/build" TABLE ROWS="${ROW##* }"
    exec timeout -k 10 $SECONDS_EACH sh "$top/tests/run" security/test-security.sh
  ) >"$work/test.log" 2>&1 </dev/null || status=$?
  [ $status != 0 ] || return 0
  NOTICED=$(sed -n '/^FAIL: /,/^$/p' "$work/test.log" | tr -s '\n ' '  ' |
    sed 's/^FAIL: [^:]*: *//; s/ *$//; s/^\(.\{140\}\).*/\1.../')
  [ -n "$NOTICED$proved" ] || NOTICED="the test breaks: $(tail -n 1 "$work/test.log")"
}

TABLE='' ROW='' rows=''
begin
# shellcheck source=tests/security/faults.sh
. "$top/tests/security/faults.sh"
[ "$mode" != apply ] || look_for_missing
finish
