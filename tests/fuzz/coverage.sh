#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# coverage.sh BUILD TARGET...: builds the targets in BUILD with clang's coverage, runs the inputs of
# their corpora (FUZZ_DIRECTORY's corpus/TARGET, see run.sh) and their own seeds, and prints how many
# lines and regions of each file of the engine and the server these have reached.

set -eu
[ $# -ge 2 ] || { echo "usage: $0 BUILD TARGET..." >&2; exit 2; }
build=$1
shift
source=$(cd "$(dirname "$0")/../.." && pwd)
directory=${FUZZ_DIRECTORY:-$build/tests/fuzz/run}
profiles=$build/profiles
targets=
objects=

cmake -S "$source" -B "$build" -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=Debug \
  -DCMAKE_C_FLAGS="-fprofile-instr-generate -fcoverage-mapping" \
  -DCMAKE_EXE_LINKER_FLAGS=-fprofile-instr-generate >/dev/null
for target; do
  targets="$targets replay-$target"
  objects="$objects${objects:+ -object} $build/tests/fuzz/replay-$target"
done
# shellcheck disable=SC2086 # one word a target
cmake --build "$build" --target $targets >/dev/null

rm -rf "$profiles"
mkdir -p "$profiles"
for target; do
  replay=$build/tests/fuzz/replay-$target
  LLVM_PROFILE_FILE=$profiles/$target-self.raw "$replay" --self >/dev/null 2>&1 || true
  for list in "$source/tests/fuzz/regress/$target"-*.hex; do
    [ ! -e "$list" ] ||
      LLVM_PROFILE_FILE="$profiles/$target-%p.raw" "$replay" "$list" >/dev/null 2>&1 || true
  done
  [ ! -d "$directory/corpus/$target" ] ||
    find "$directory/corpus/$target" -type f -print0 |
    LLVM_PROFILE_FILE="$profiles/$target-%p.raw" xargs -0 -r -n 500 timeout 600 "$replay" \
      >/dev/null 2>&1 || true
done
llvm-profdata merge -sparse "$profiles"/*.raw -o "$profiles/all.data"
# shellcheck disable=SC2086
llvm-cov report $objects -instr-profile="$profiles/all.data" "$source/plugin/qcow2" "$source/server"
