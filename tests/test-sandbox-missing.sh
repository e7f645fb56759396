#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Kernels, containers and builds that lack a part of the sandbox: --sandbox=on says what and does not start,
# without it the server says what (if it is asked) and goes on with the rest.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
requires_file "$BUILDDIR/confined/without" "the program without"
requires_file "$BUILDDIR/confined/nbdcow-bare" "nbdcow without the sandbox's libraries"
requires qemu-img nbdinfo
without=$BUILDDIR/confined/without
"$without" landlock true || skip 'system calls cannot be filtered here, not even by a test'
qemu-img create -q -f qcow2 disk.qcow2 8M

# state FIELD: of all threads of the server: what they have in common.
state ()
{
  cat "/proc/$SERVER_PID/task"/*/status | sed -n "s/^$1:[[:space:]]*//p" | sort -u | tr '\n' ' '
}

# lacks FILTERS TEXT...: with $WRAP and $NBDCOW as they are, each TEXT is said; each thread has FILTERS.
lacks ()
{
  filters=$1
  shift
  status=0
  eval "${WRAP:-} \"\$NBDCOW\" --sandbox=on --run true disk.qcow2" >on.log 2>&1 || status=$?
  one_line "$status" on.log sandbox --sandbox=off "$1" || fail "--sandbox=on: $REASON"
  [ -z "${PLUGIN_PRELOAD:-}" ] || return 0 # --sandbox=auto is off there
  start_nbdcow disk.qcow2
  timeout 30 nbdinfo --size "$URI" >/dev/null
  [ "$(state NoNewPrivs)" = '1 ' ] || fail 'privileges can be gained'
  [ "$(state Seccomp_filters)" = "$filters " ] || fail "filters: $(state Seccomp_filters), should be $filters"
  stop_server
  server_log_is_empty
  start_nbdcow disk.qcow2 arg=--log-level=info
  stop_server
  for text; do
    grep -q -e "sandbox: .*$text.*: going on without" "$SERVER_LOG" || fail "not said: $text: $(cat "$SERVER_LOG")"
  done
  [ "$(grep -c 'going on without' "$SERVER_LOG")" = $# ] || fail "said too much: $(cat "$SERVER_LOG")"
  echo "$test_name: ${WRAP##*/} $(basename "$NBDCOW"): as it should"
}

# What the test takes away is a filter, too.
WRAP="'$without' landlock"
all=0
"$BUILDDIR/confined/sandbox" nothing >/dev/null 2>&1 || all=$?
if [ $all = 0 ]; then
  lacks 2 'no Landlock'
  WRAP="'$without' landlock-off"
  lacks 2 'no Landlock'
  WRAP="'$without' seccomp"
  lacks 1 'filter of system calls'
  WRAP="'$without' seccomp-container"
  lacks 1 'filter of system calls'
fi
WRAP="'$without' both"
lacks 1 'Landlock' 'filter'
WRAP=
NBDCOW=$BUILDDIR/confined/nbdcow-bare
lacks "$(sed -n 's/^Seccomp_filters:[[:space:]]*//p' /proc/self/status)" 'built without Landlock' 'built without libseccomp'
