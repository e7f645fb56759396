#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# run.sh BUILD TARGET [ARGUMENT...]: fuzzes TARGET for FUZZ_SECONDS seconds (10), with libFuzzer's
# further ARGUMENTS.  What it begins with and what it finds is in FUZZ_DIRECTORY (BUILD's
# tests/fuzz/run): corpus/TARGET, which is made if it is not there, grows with each run, and
# found/ has what went wrong.  FUZZ_FRESH=1: in a corpus of its own, which is forgotten and begins
# with what is the same everywhere: with one SEED, each such run goes the same way.

set -eu
[ $# -ge 2 ] || { echo "usage: $0 BUILD TARGET [ARGUMENT...]" >&2; exit 2; }
build=$1 target=$2
shift 2
here=$(dirname "$0")
directory=${FUZZ_DIRECTORY:-$build/tests/fuzz/run}
seconds=${FUZZ_SECONDS:-10}
seed=${SEED:-1}
corpus=$directory/corpus/$target
found=$directory/found
mkdir -p "$found"

if [ "${FUZZ_FRESH:-}" ]; then
  corpus=$(mktemp -d)
  trap 'rm -rf "$corpus"' EXIT INT TERM
fi
[ -n "$(ls "$corpus" 2>/dev/null)" ] || sh "$here/corpus.sh" "$build" "$target" "$corpus"

# More than any of them needs, and less than a hostile input may ask for.
memory=1024
asan=allocator_may_return_null=1:detect_leaks=1
case $target in
  image) set -- -max_len=20480 "$@" ;;
  protocol | takeover) set -- -max_len=2048 "$@" ;;
  tables) set -- -max_len=8192 "$@" ;;
  luks) set -- -max_len=8192 "$@" ;;
  inflate) set -- -max_len=4096 "$@" ;;
  state) set -- -max_len=256 "$@" ;;
  qmp) set -- -max_len=2048 "-dict=$here/qmp.dict" "$@" ;;
  config) set -- -max_len=2048 "-dict=$here/config.dict" "$@" ;;
  cmdline)
    # What is wrong with an option ends the process: what it had allocated is lost.
    asan=allocator_may_return_null=1:detect_leaks=0
    set -- -max_len=2048 -close_fd_mask=3 -detect_leaks=0 "-dict=$here/config.dict" "$@"
    ;;
esac
case $target in
  image | tables) set -- "-dict=$here/qcow2.dict" "$@" ;;
esac

echo "fuzz-$target: SEED=$seed FUZZ_SECONDS=$seconds"
status=0
ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}$asan UBSAN_OPTIONS=print_stacktrace=1 \
  "$build/tests/fuzz/fuzz-$target" -seed="$seed" -max_total_time="$seconds" -timeout=60 \
  -rss_limit_mb=4096 -malloc_limit_mb=$memory -artifact_prefix="$found/$target-" \
  -print_final_stats=1 "$@" "$corpus" || status=$?
[ "$status" -eq 0 ] || echo "fuzz-$target: what it found is in $found"
exit "$status"
