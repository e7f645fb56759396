#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Takes the engine's ordering rules (rules.sh) out, one at a time, in a copy of the sources, and demands that
# some test notices.  Prints a table: the rule, the test that failed, and after how many seconds.
#
#     mutate.sh [-s SECONDS] [-w DIRECTORY] [-q] [NAME...]
#     mutate.sh -n [NAME...]
#     mutate.sh -l
#
# -s: how long each test may look for it (default 20).  -w, -q, -n, -l and NAME: see mutations.sh.
# Exits with 1 if a mutation went unnoticed or no longer applies to the sources: then the mutation
# in rules.sh has to follow the code.

# A test's arguments are several words, and much is for mutations.sh or from there:
# shellcheck disable=SC2034,SC2086,SC2154

set -eu

seconds=20
usage='mutate.sh [-s SECONDS] [-w DIRECTORY] [-q] [-n | -l] [NAME...]'
flags=s:
targets='crash faults bugs deaths tools model'
own_option ()
{
  seconds=$OPTARG
}
# shellcheck source=tests/mutations.sh
. "$(dirname "$0")/../mutations.sh"

# run_model: the model test with several threads on an image of small clusters, over and over.
run_model ()
{
  end=$(($(date +%s) + $1)) seed=1
  while [ "$(date +%s)" -lt "$end" ]; do
    rm -f "$work/model.qcow2"
    if [ $((seed % 2)) = 0 ]; then
      qemu-img create -q -f qcow2 -o cluster_size=16384,extended_l2=on "$work/model.qcow2" 3M
    else
      qemu-img create -q -f qcow2 -o cluster_size=4096 "$work/model.qcow2" 3M
    fi
    timeout 60 "$tests/model/model" -s "$seed" -t 6 -n 600 "$work/model.qcow2" || return 1
    qemu-img check -q "$work/model.qcow2" || [ $? = 3 ] || return 1
    seed=$((seed + 1))
  done
}

# first TEST...: what is looked at first for the mutations that follow: where such a bug shows soonest.
first='' newline='
'
first ()
{
  first=
  for test; do
    first=$first$test$newline
  done
}

# run_test TEST
run_test ()
{
  case $1 in
  model) run_model "$seconds" ;;
  bugs*) timeout $((seconds + 180)) "$tests/crash/bugs" -n 1000 ${1#bugs} ;;
  *) timeout $((seconds + 180)) "$tests/crash/${1%% *}" -d "$seconds" ${1#"${1%% *}"} ;;
  esac
}

# look: runs one test after the other; NOTICED is the one that failed, or empty.
look ()
{
  NOTICED=
  IFS=$newline
  for test in $first bugs crash faults deaths tools model; do
    unset IFS
    status=0
    run_test "$test" >"$work/test.log" 2>&1 || status=$?
    [ $status != 0 ] || continue
    case $test in
    bugs) NOTICED="bugs $(grep '^[a-z0-9-]*$' "$work/test.log" | tail -n 1)" ;;
    *) NOTICED=${test%% *}$(sed -n 's/.*FAILED:\(\( -[tw] [^ :]*\)*\).*/\1/p' "$work/test.log" | head -n 1) ;;
    esac
    [ $status != 124 ] || NOTICED="$NOTICED, which does not end"
    return
  done
  unset IFS
}

begin
# shellcheck source=tests/crash/rules.sh
. "$top/tests/crash/rules.sh"
finish
