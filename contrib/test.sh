#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Installs what is missing, builds everything with warnings as errors, and runs every test: in an
# optimized build, then under AddressSanitizer and UndefinedBehaviorSanitizer, then under
# ThreadSanitizer, and each fuzzer for some seconds, whose findings are said and do not count.  The last
# lines are ctest's summaries.  The exit status is 0 only if all else passed.
#
# What is random begins with SEED, which is made of the sources unless it is set: the same sources are
# tested in the same way, other ones in another.

set -eu

usage () {
  cat <<'END'
Usage: sh contrib/test.sh [--quick] [--no-install] [-- CTEST ARGUMENT...]

  --quick        the optimized build alone, without the compilers' and linters' checks
  --no-install   do not look for missing packages
  CTEST ARGUMENT goes to each run of ctest, as in: -- -R plugin
END
}

source=$(cd "$(dirname "$0")/.." && pwd)
. "$source/contrib/functions.sh"

quick=
install=yes
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=yes ;;
    --no-install) install= ;;
    --) shift; break ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown argument: $1" ;;
  esac
  shift
done

[ -z "$install" ] || install_missing "$build_needs$test_needs"
jobs=$(getconf _NPROCESSORS_ONLN)
failed=
shaky=
news=
# One number for each tree of sources that is committed, below 2^28.
tree=$(git -C "$source" rev-parse --short=7 'HEAD^{tree}' 2>/dev/null || echo 1)
export SEED="${SEED:-$((0x$(printf %.7s "$tree")))}"

step () {
  printf '\n=== %s\n' "$*"
}

# Every C file, ours all of them.
c_files () {
  find "$source/plugin" "$source/server" "$source/tests" "$source/contrib" -name '*.[ch]'
}

# The files of the programs that the build in directory $1 compiles: others have no flags to be checked with.
compiled_files () {
  c_files | grep -v -e "^$source/tests/" -e "^$source/contrib/" | while read -r file; do
    ! grep -qF "\"$file\"" "$1/compile_commands.json" || echo "$file"
  done
}

# Checks the style, and what clang-tidy knows of.
lint () {
  step "clang-format"
  c_files | xargs clang-format --dry-run -Werror || return 1
  step "clang-tidy"
  compiled_files "$source/build-asan" |
    timeout 1200 xargs -n 4 -P "$jobs" clang-tidy --quiet -p "$source/build-asan"
}

# Where run_tests keeps what ctest said.
log_of () {
  case $1 in
    release) echo "$source/build/test.log" ;;
    *) echo "$source/build-$1/test.log" ;;
  esac
}

# build PRESET [--target TARGET] [CMAKE ARGUMENT...]
build () {
  step "$1: configure and build"
  preset=$1 target=all
  shift
  if [ "${1:-}" = --target ]; then
    target=$2
    shift 2
  fi
  configure "$preset" "$@" -DNBDCOW_WERROR=ON &&
    (cd "$source" && cmake --build --preset "$preset" --target "$target" --parallel "$jobs")
}

# run_tests PRESET [CTEST ARGUMENT...]
run_tests () {
  preset=$1
  shift
  step "$preset: test, SEED=$SEED"
  log=$(log_of "$preset")
  rm -f "$log.again"
  if ctest_of "$preset" --parallel "$jobs" --output-log "$log" "$@"; then
    return
  fi
  # The peers share a busy machine with us, and some of them fail by chance there.  So one or two tests
  # are run once more, each alone and with the same seed, and are named at the end.  Where a sanitizer has
  # spoken, chance is no excuse.
  if [ "$(failures "$log")" -le 2 ] && ! grep -q -e 'Sanitizer' -e 'runtime error:' "$log"; then
    step "$preset: what failed, once more"
    if ctest_of "$preset" --rerun-failed --output-log "$log.again"; then
      shaky="$shaky$(sed -n '/tests FAILED:/,/^Errors/s/^.*- \(.*\) (.*$/ \1/p' "$log" | tr -d '\n')"
      return
    fi
  fi
  failed="$failed $preset"
}

# ctest_of PRESET ARGUMENT...
ctest_of () {
  preset=$1
  shift
  (cd "$source" && ctest --preset "$preset" --timeout 300 "$@")
}

# How many tests have failed, by ctest's log $1.
failures () {
  sed -n 's/^.*tests passed, \([0-9]*\) tests\{0,1\} failed out of.*$/\1/p' "$1"
}

presets=release
build release
run_tests release "$@"
if [ -z "$quick" ]; then
  presets='release asan tsan fuzz'
  # The sanitizers' builds are clang's, the optimized one is gcc's: both see every line.
  # Under a sanitizer: the engine, the protocol, the tool, and a front end of our own under load.  Not
  # nbdkit, which hangs at its end with a sanitizer loaded into it, and not what waits for others most
  # of its time.  ctest runs the rest in these builds as well, for who has the time.
  build asan -DCMAKE_C_COMPILER=clang
  lint || failed="$failed lint"
  run_tests asan \
    -R '^(unit-.*|model|crash.*|fuzz-.*|protocol-nbdcow|e2e-(basic|stress)-nbdcow|img-.*|tls|exports|dropin)$' "$@"
  build tsan -DCMAKE_C_COMPILER=clang
  run_tests tsan -R '^(unit-.*|model|crash-bugs|protocol-nbdcow|e2e-(basic|stress)-nbdcow)$' "$@"
  # A few seconds of each fuzzer.  What libFuzzer adds to every branch makes the engine take twice the
  # time: a build of its own, of the fuzzers alone, costs less than that would in the asan one.
  build fuzz --target fuzzers
  # What they come upon by chance is news, and seldom the fault of what is being tested here: it is
  # said, and does not fail the run.  What is known stays fixed by the regressions in the builds above.
  before=$failed
  run_tests fuzz -R '^fuzz-run-' "$@"
  [ "$failed" = "$before" ] || news=$(log_of fuzz)
  failed=$before
fi

for preset in $presets; do
  step "$preset"
  for log in "$(log_of "$preset")" "$(log_of "$preset").again"; do
    [ ! -e "$log" ] || sed -n '/tests passed,/,$p' "$log"
  done
done
[ -z "$news" ] || printf '\ntest.sh: a fuzzer has found something that nobody knew, or could not run: see %s\n' "$news"
[ -z "$shaky" ] || printf '\ntest.sh: passed only when run once more:%s\n' "$shaky"
[ -z "$failed" ] || die "failed:$failed"
