# SPDX-License-Identifier: BSD-3-Clause
#
# What the scripts share that take something out of a copy of the sources and demand that a test notices:
# crash/mutate.sh and security/mutate.sh.  Such a script sets these and then sources this file, which
# reads the command line:
#
#   usage      what the options are, for who got them wrong
#   flags      letters of options of its own, as getopts takes them; own_option LETTER looks at each
#   targets    what is built of each mutant, separated by spaces
#
# and has a function
#
#   look       runs what is to notice; sets NOTICED to what did, or to nothing
#
# Then it calls begin, names its mutations by `without', and ends with finish.  That look notices nothing without a
# mutation is shown before the first one, and again where the script sets proved=$quick.  Its options:
#
#   -w DIRECTORY  the copy is made, and built, in DIRECTORY and stays there, for the next time
#   -q            takes it that without a mutation all tests pass
#   -n            only sees that each still applies to the sources, and that the compiler takes what comes of it: seconds
#   -l            lists them
#   NAME...       only these: patterns, as of file names
#
# CC and CMAKE_C_COMPILER_LAUNCHER are heeded, and CMAKE_BUILD_PARALLEL_LEVEL.

# A script's variables, perl's, and lists of words:
# shellcheck shell=sh disable=SC2034,SC2086,SC2154

keep='' mode=look quick=''
while getopts "w:qnl$flags" option; do
  case $option in
  w) keep=$OPTARG ;;
  q) quick=yes ;;
  n) mode=apply ;;
  l) mode=list ;;
  '?')
    echo "$usage" >&2
    exit 2
    ;;
  *) own_option "$option" ;;
  esac
done
shift $((OPTIND - 1))
wanted=$*

top=$(cd "$(dirname "$0")/../.." && pwd)
script=$(basename "$(dirname "$0")")/$(basename "$0")
work=${keep:-$(mktemp -d "${TMPDIR:-/tmp}/nbdcow-mutate-XXXXXX")}
tests=$work/build/tests
failed=0 applied=0 proved=$quick
below='' # where the FILEs of `without' are
only=''  # if set: the one mutation that is looked at; found says whether there is such a one
trap '[ -n "$keep" ] || rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM

# copy: the sources as they are; what has not changed is not built again.
copy ()
{
  mkdir -p "$work/tree"
  for part in CMakeLists.txt plugin server tests; do
    (cd "$top" && find $part -type f) | while read -r file; do
      cmp -s "$top/$file" "$work/tree/$file" && continue
      mkdir -p "$work/tree/$(dirname "$file")"
      cp "$top/$file" "$work/tree/$file"
    done
  done
}

build ()
{
  cmake --build "$work/build" --target $targets >"$work/build.log" 2>&1
}

# compiles SOURCE: a mutated file does, beside the others as they are.
compiles ()
{
  mutant=$1
  set --
  for folder in "$top"/plugin/qcow2/ "$top"/plugin/qcow2/*/ "$top"/server/ "$top"/server/*/; do
    set -- "$@" "-I$folder"
  done
  "${CC:-cc}" -std=gnu11 -fsyntax-only -w -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DNBDCOW_PROBES \
    -DNBDCOW_VERSION='""' "$@" "$mutant" >"$work/build.log" 2>&1
}

# report NAME RESULT
report ()
{
  printf '%-28s %s\n' "$1" "$2"
}

# is_wanted NAME
is_wanted ()
{
  [ -n "$wanted" ] || return 0
  set -f
  for pattern in $wanted; do
    # shellcheck disable=SC2254 # it is a pattern
    case $1 in
    $pattern)
      set +f
      return 0
      ;;
    esac
  done
  set +f
  return 1
}

# begin: makes ready to build mutants.
begin ()
{
  mkdir -p "$work"
  if [ $mode = apply ]; then
    for tool in perl "${CC:-cc}"; do
      command -v "$tool" >/dev/null 2>&1 || {
        echo "$script: SKIP: $tool is not installed"
        exit 77
      }
    done
  fi
  [ $mode = look ] || return 0
  copy
  cmake -S "$work/tree" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DNBDCOW_PROBES=ON \
    >"$work/build.log" 2>&1 || {
    cat "$work/build.log" >&2
    exit 1
  }
}

# prove: without any mutation nothing is noticed.
prove ()
{
  start=$(date +%s)
  build || {
    tail -n 30 "$work/build.log" >&2
    exit 1
  }
  look
  if [ -n "$NOTICED" ]; then
    report "(nothing taken out)" "FAILS: $NOTICED"
    tail -n 5 "$work/test.log" >&2
    exit 1
  fi
  report "(nothing taken out)" "passes, $(($(date +%s) - start)) s"
  proved=yes
}

# mutate FILE PROGRAM: PROGRAM is perl, on the whole file as $_; it must change it.  What comes of it is in
# mutant/FILE, where several programs may change one file.
mutate ()
{
  mkdir -p "$work/mutant/$(dirname "$1")"
  [ -e "$work/mutant/$1" ] || cp "$top/$1" "$work/mutant/$1"
  perl -0777 -pe "$2" "$work/mutant/$1" >"$work/mutated.c"
  ! cmp -s "$work/mutated.c" "$work/mutant/$1" || return 1
  cp "$work/mutated.c" "$work/mutant/$1"
}

# try: builds what is in mutant/, and looks who notices.
try ()
{
  [ -n "$proved" ] || prove
  for file in $files; do
    cp "$work/mutant/$file" "$work/tree/$file"
  done
  if build; then
    start=$(date +%s)
    look
    if [ -n "$NOTICED" ]; then
      report "$name" "noticed by $NOTICED, $(($(date +%s) - start)) s"
    else
      report "$name" "UNNOTICED"
      failed=1
    fi
  else
    report "$name" "DOES NOT COMPILE: change $script"
    tail -n 5 "$work/build.log" >&2
    failed=1
  fi
  for file in $files; do
    cp "$top/$file" "$work/tree/$file"
  done
}

# without NAME FILE PROGRAM... [FILE PROGRAM...]...: a mutation.  What begins with s/ is a PROGRAM.
without ()
{
  name=$1 files=''
  shift
  [ -z "$only" ] || [ "$only" = "$name" ] || return 0
  found=yes
  is_wanted "$name" || return 0
  [ $mode != list ] || {
    echo "$name"
    return 0
  }
  rm -rf "$work/mutant"
  for word; do
    case $word in
    s/*)
      mutate "$file" "$word" || {
        report "$name" "DOES NOT APPLY to $file any more, $word: change $script"
        failed=1
        return 0
      }
      ;;
    *)
      file=$below$word
      files="$files $file"
      ;;
    esac
  done
  applied=$((applied + 1))
  if [ $mode = look ]; then
    try
    return 0
  fi
  for file in $files; do
    compiles "$work/mutant/$file" || {
      report "$name" "DOES NOT COMPILE: change $script"
      head -n 5 "$work/build.log" >&2
      failed=1
    }
  done
}

finish ()
{
  if [ $mode != list ] && [ $applied = 0 ]; then
    echo "$script: no such mutation applies; -l lists them" >&2
    failed=1
  fi
  [ $mode != apply ] || echo "$applied mutations apply"
  exit $failed
}
