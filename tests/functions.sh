# SPDX-License-Identifier: BSD-3-Clause
#
# What every shell test shares.  A test is a POSIX sh script that ctest runs with the environment
# below; it starts with
#
#     . "${SRCDIR:-$(dirname "$0")}/functions.sh"
#
# and then runs in a temporary directory of its own, under set -e.  Lower-case names that begin with
# an underscore are this file's.  Exit status 0 is a pass, 77 a
# skip with its reason on stdout, anything else a failure.  By hand, tests/run TEST [FRONTEND] sets the same
# environment for a build tree.
#
# From ctest:   SRCDIR        this directory
#               BUILDDIR      tests/ in the build tree, for the helper programs that are built
#               NBDCOW        nbdcow
#               NBDCOW_IMG    nbdcow-img
#               NBDKIT_PLUGIN nbdkit-qcow2-plugin.so
#               PLUGIN_PRELOAD  what nbdkit must preload for a sanitized plugin, or empty
#               FRONTEND      nbdcow or nbdkit: what start_server starts
# From you:     SEED          the seed of everything random; printed by each test that uses one
#               DURATION      seconds, for the tests that run for a time
#               ROUNDS        how often, for the tests that count
#               KEEP=1        leaves the temporary directory behind
#               NBDKIT        another nbdkit
#               WRAP          a command in front of the server's: valgrind, strace, setpriv...
#               TMPDIR        where the temporary directories go: must be a real file system

set -eu
LC_ALL=C
export LC_ALL

SRCDIR=$(cd "${SRCDIR:-$(dirname "$0")}" && pwd)
NBDKIT=${NBDKIT:-nbdkit}
FRONTEND=${FRONTEND:-nbdcow}
PATH=$PATH:/usr/sbin:/sbin

test_name=$(basename "$0" .sh)
tmp=$(mktemp -d "${TMPDIR:-/tmp}/nbdcow-$test_name.XXXXXX")
cd "$tmp"
# Where the servers keep what survives them: not where those of the machine's user keep theirs.
STATE_DIR=$(mktemp -d "/dev/shm/nbdcow-$test_name.XXXXXX" 2>/dev/null || { mkdir state && echo "$tmp/state"; })

# ---- ending ----------------------------------------------------------------------------------

tracked=       # processes to kill: PID:START
cleanups=      # commands to run, last registered first

# at_exit COMMAND: to be run, in the temporary directory, when the test ends in whatever way.
at_exit ()
{
  cleanups="$1
$cleanups"
}

# start_of PID: when the process began, in ticks: with this a number that somebody else has now is not taken for it.
start_of ()
{
  read -r _stat <"/proc/$1/stat" || return 0
  # shellcheck disable=SC2086 # fields, of which the name, in parentheses, may have any number
  set -- ${_stat##*) }
  echo "${20}"
} 2>/dev/null

# track PID: to be killed when the test ends, if it still runs then.
track ()
{
  tracked="$tracked $1:$(start_of "$1")"
}

ended=
end_test ()
{
  _status=$?
  trap '' HUP INT TERM
  trap - EXIT
  [ -z "$ended" ] || exit "$_status"
  ended=1
  set +e
  if [ "$_status" -ne 0 ] && [ "$_status" -ne 77 ]; then
    echo "$test_name: FAILED with status $_status${SEED:+, SEED=$SEED}, front end $FRONTEND" >&2
    for _log in "$tmp"/server-*.log; do
      [ -s "$_log" ] && { echo "---- $(basename "$_log")"; tail -n 40 "$_log"; } >&2
    done
  fi
  for _pid in $tracked; do
    [ "$(start_of "${_pid%:*}")" != "${_pid#*:}" ] || kill -KILL "${_pid%:*}" 2>/dev/null
  done
  # The shell would wait for a child that is stuck in the kernel; only what died is reaped.
  cd "$tmp" || exit "$_status"
  eval "$cleanups"
  cd /
  if [ "${KEEP:-0}" = 1 ]; then
    echo "$test_name: left in $tmp" >&2
  else
    rm -rf "$tmp" "$STATE_DIR"
  fi
  exit "$_status"
}
trap end_test EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

fail ()
{
  echo "$test_name: $*" >&2
  exit 1
}

skip ()
{
  echo "$test_name: SKIP: $*"
  exit 77
}

# ---- what a test needs -----------------------------------------------------------------------

# requires COMMAND...: skips unless each can be run.
requires ()
{
  for _cmd; do
    command -v "$_cmd" >/dev/null 2>&1 || skip "$_cmd is not installed"
  done
}

# requires_file FILE WHAT
requires_file ()
{
  [ -n "$1" ] && [ -e "$1" ] || skip "$2 was not built"
}

requires_root ()
{
  [ "$(id -u)" = 0 ] || skip "needs root: $*"
}

# Sets PYTHON to a Python that has libnbd's bindings (Debian puts them beside its own python3).
requires_python_nbd ()
{
  for _p in ${PYTHON:-} /usr/bin/python3 python3; do
    if "$_p" -c 'import nbd' >/dev/null 2>&1; then
      PYTHON=$_p
      export PYTHON
      PYTHONDONTWRITEBYTECODE=1
      export PYTHONDONTWRITEBYTECODE
      return 0
    fi
  done
  skip "no python3 with libnbd's bindings (Debian: python3-libnbd)"
}

# Sets PYTHON to any Python 3.
requires_python ()
{
  PYTHON=${PYTHON:-$(command -v /usr/bin/python3 || command -v python3 || :)}
  [ -n "$PYTHON" ] || skip "python3 is not installed"
  PYTHONDONTWRITEBYTECODE=1
  export PYTHON PYTHONDONTWRITEBYTECODE
}

# nbdkit with the address sanitizer preloaded hangs in exit once it has printed an error: p11-kit's
# destructor waits for libc's locale lock.  For tests that make it print one.
skip_sanitized_nbdkit ()
{
  [ "$FRONTEND" = nbdcow ] || [ -z "${PLUGIN_PRELOAD:-}" ] ||
    skip "nbdkit hangs at its end under a sanitizer once it has reported an error"
}

# True if nbdcow tells a service manager how it is.
has_systemd ()
{
  grep -q 'libsystemd\.so\.0' "$NBDCOW" && ldconfig -p | grep -q 'libsystemd\.so\.0'
}

# Skips unless the front end under test was built.
requires_frontend ()
{
  case $FRONTEND in
  nbdcow) requires_file "${NBDCOW:-}" nbdcow ;;
  nbdkit)
    requires_file "${NBDKIT_PLUGIN:-}" "the nbdkit plugin"
    requires "$NBDKIT"
    ;;
  *) fail "FRONTEND=$FRONTEND: expected nbdcow or nbdkit" ;;
  esac
}

# Sets SEED if the caller did not, and says so.
use_seed ()
{
  SEED=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
  export SEED
  echo "$test_name: SEED=$SEED"
}

# in_memory MIB: from here on the test's directory is on a tmpfs, if there is one with so much room.  Nothing
# is written back there: where a file has holes does not change between two looks at it, and syncs
# cost nothing.
in_memory ()
{
  [ "$(stat -f -c %T "$STATE_DIR")" = tmpfs ] || return 0
  [ "$(df -Pm "$STATE_DIR" | awk 'NR == 2 { print $4 }')" -ge "$1" ] || return 0
  mkdir "$STATE_DIR/work"
  cd "$STATE_DIR/work"
}

# ---- servers ---------------------------------------------------------------------------------

server_count=0

# process_alive PID: true until it has exited, reaped or not.
process_alive ()
{
  case $(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) in
  '' | Z | X) return 1 ;;
  esac
}

# wait_for SECONDS COMMAND...: until COMMAND succeeds; status 1 if it does not in that time.
wait_for ()
{
  _tries=$(($1 * 50))
  shift
  while ! "$@"; do
    _tries=$((_tries - 1))
    [ "$_tries" -gt 0 ] || return 1
    sleep 0.02
  done
}

# listens PATH: somebody accepts connections on the unix socket that was bound to PATH; that there is a file does
# not say so yet.
listens ()
{
  awk -v path="$1" '$4 == "00010000" && $8 == path { found = 1 } END { exit !found }' /proc/net/unix
}

server_ready_or_dead ()
{
  [ -s "$PIDFILE" ] || ! process_alive "$SERVER_PID"
}

# server_command IMAGE [OPTION...]: sets server_argv, a quoted command line, to serve IMAGE by
# $FRONTEND on $SOCK.  OPTIONs are the same for both front ends:
#     read-only  format=raw|qcow2  discard=unmap|ignore  backing=probe|none  cache=MODE  no-lock
#     arg=X      X itself, for what only one front end has
server_command ()
{
  _image=$1
  shift
  server_argv=
  _read_only=
  case $FRONTEND in
  nbdcow)
    for _o; do
      case $_o in
      read-only) _a=--read-only ;;
      format=*) _a=--format=${_o#format=} ;;
      discard=*) _a=--discard=${_o#discard=} ;;
      cache=*) _a=--cache=${_o#cache=} ;;
      backing=*) _a=--backing=${_o#backing=} ;;
      no-lock) _a=--lock=off ;;
      arg=*) _a=${_o#arg=} ;;
      *) fail "start_server: unknown option $_o" ;;
      esac
      server_argv="$server_argv '$_a'"
    done
    server_argv="'$NBDCOW' --persistent --shared=0 --socket='$SOCK' --pid-file='$PIDFILE' \
      --state-dir='$STATE_DIR' \
      $server_argv -- '$_image'"
    ;;
  nbdkit)
    for _o; do
      case $_o in
      read-only) _read_only=-r; continue ;;
      no-lock) _a=lock=off ;;
      arg=*) _a=${_o#arg=} ;;
      format=* | discard=* | cache=* | backing=*) _a=$_o ;;
      *) fail "start_server: unknown option $_o" ;;
      esac
      server_argv="$server_argv '$_a'"
    done
    server_argv="'$NBDKIT' -f -U '$SOCK' -P '$PIDFILE' $_read_only '$NBDKIT_PLUGIN' file='$_image' \
      state-dir='$STATE_DIR' $server_argv"
    if [ -n "${PLUGIN_PRELOAD:-}" ]; then # nbdkit itself leaks a little
      server_argv="env LD_PRELOAD='$PLUGIN_PRELOAD' ASAN_OPTIONS=detect_leaks=0 $server_argv"
    fi
    ;;
  *) fail "FRONTEND=$FRONTEND: expected nbdcow or nbdkit" ;;
  esac
}

# try_server IMAGE [OPTION...]: like start_server, but if the server ends instead of serving, sets
# SERVER_STATUS to its exit status and returns 1.
try_server ()
{
  server_count=$((server_count + 1))
  SOCK=$tmp/sock-$server_count
  PIDFILE=$tmp/pid-$server_count
  SERVER_LOG=$tmp/server-$server_count.log
  # shellcheck disable=SC2034 # for the tests
  URI="nbd+unix:///?socket=$SOCK"
  server_command "$@"
  eval "exec ${WRAP:-} $server_argv" >"$SERVER_LOG" 2>&1 </dev/null &
  SERVER_PID=$!
  track "$SERVER_PID"
  wait_for 30 server_ready_or_dead || fail "the server was not ready after 30 seconds"
  if process_alive "$SERVER_PID"; then
    return 0
  fi
  SERVER_STATUS=0
  wait "$SERVER_PID" || SERVER_STATUS=$?
  return 1
}

# start_server IMAGE [OPTION...]: serves IMAGE by $FRONTEND until stop_server, and returns when it
# is ready.  Sets URI, SOCK, SERVER_PID and SERVER_LOG.  A second server may be started beside
# the first: save these.
start_server ()
{
  try_server "$@" || fail "the server ended with status $SERVER_STATUS"
}

start_nbdcow ()
{
  FRONTEND=nbdcow
  start_server "$@"
}

start_plugin ()
{
  FRONTEND=nbdkit
  start_server "$@"
}

# wait_server_exit [PID]: sets SERVER_STATUS when it has ended by itself or by a signal sent.
wait_server_exit ()
{
  _pid=${1:-$SERVER_PID}
  gone () { ! process_alive "$_pid"; }
  if ! wait_for 60 gone; then
    kill -KILL "$_pid"
    fail "the server did not stop within 60 seconds"
  fi
  SERVER_STATUS=0
  wait "$_pid" || SERVER_STATUS=$?
}

# stop_server [PID]: SIGTERM; it must end with status 0.
stop_server ()
{
  kill -TERM "${1:-$SERVER_PID}" || fail "the server had gone before it was stopped"
  wait_server_exit "${1:-$SERVER_PID}"
  [ "$SERVER_STATUS" = 0 ] || fail "the server ended with status $SERVER_STATUS after SIGTERM"
}

# server_log_is_empty: nothing was complained about.
server_log_is_empty ()
{
  [ ! -s "$SERVER_LOG" ] || { cat "$SERVER_LOG" >&2; fail "the server's log is not empty"; }
}

# one_line STATUS LOG PATTERN...: STATUS is 1 and LOG is one line that contains each PATTERN (fixed
# strings, in any case of letters).  If not, sets REASON and returns 1.
one_line ()
{
  _got=$1 _log=$2
  shift 2
  REASON=
  [ "$_got" = 1 ] || REASON="exit status $_got instead of 1"
  [ "$(wc -l <"$_log")" = 1 ] || REASON="${REASON:+$REASON, }not one line"
  for _pattern; do
    grep -qiF -e "$_pattern" "$_log" || REASON="${REASON:+$REASON, }no word of '$_pattern'"
  done
  [ -z "$REASON" ] || { REASON="$REASON: $(head -c 1000 "$_log")"; return 1; }
}

# refused IMAGE OPTION... -- PATTERN...: true if the server refuses to start, as one_line says.
refused ()
{
  _args=
  while [ "$1" != -- ]; do
    _args="$_args '$1'"
    shift
  done
  shift
  if eval "try_server $_args"; then
    kill -KILL "$SERVER_PID"
    wait "$SERVER_PID" 2>/dev/null || :
    REASON="the server started all the same"
    return 1
  fi
  one_line "$SERVER_STATUS" "$SERVER_LOG" "$@"
}

must_refuse ()
{
  refused "$@" || fail "$*: $REASON"
}

# ---- images ----------------------------------------------------------------------------------

# bitmap_bits NAME FILE IMAGE...: writes to FILE where QEMU shows the bitmap dirty; IMAGE are words for qemu-nbd.
bitmap_bits ()
{
  _name=$1 _bits=$2
  shift 2
  rm -f bits.sock
  qemu-nbd -r -t -k "$PWD/bits.sock" -B "$_name" "$@" >bits.log 2>&1 </dev/null &
  _pid=$!
  track "$_pid"
  wait_for 30 listens "$PWD/bits.sock" || { cat bits.log >&2; fail "qemu-nbd does not serve bitmap $_name of $*"; }
  "$PYTHON" "$SRCDIR/bitmaps.py" bits "nbd+unix:///?socket=$PWD/bits.sock" "$_name" >"$_bits"
  kill -TERM "$_pid"
  wait "$_pid" 2>/dev/null || :
}

# check_image IMAGE [leaks]: qemu-img check finds nothing (or at most leaks).
check_image ()
{
  _s=0
  qemu-img check -q -f qcow2 "$1" >check.out 2>&1 || _s=$?
  if [ "$_s" = 3 ] && [ "${2:-}" = leaks ]; then
    _s=0
  fi
  [ "$_s" = 0 ] || { head -n 20 check.out >&2; fail "qemu-img check $1: status $_s"; }
}

# same_contents A FORMAT B FORMAT: same guest contents (a missing tail counts as zeros), QEMU says.
same_contents ()
{
  timeout 300 qemu-img compare -q -f "$2" -F "$4" "$1" "$3" >compare.out 2>&1 || {
    qemu-img compare -f "$2" -F "$4" "$1" "$3" >&2 || :
    fail "$1 and $3 differ"
  }
}

# lot N WORD...: prints N of the words, drawn by SEED.
lot ()
{
  _n=$1
  shift
  printf '%s\n' "$@" | awk -v seed=$((SEED % 2147483647)) 'BEGIN { srand (seed) } { printf "%.9f %s\n", rand (), $0 }' |
    sort -n | head -n "$_n" | cut -d' ' -f2
}

# derive COMMAND...: a tool of QEMU's that makes a key from a password; see the script.
derive ()
{
  sh "$SRCDIR/derive" "$@"
}

# unchanged SUM FILE: FILE still has the sha256 that digest gave.
digest ()
{
  sha256sum <"$1" | cut -d' ' -f1
}
unchanged ()
{
  [ "$(digest "$2")" = "$1" ] || fail "$2 was changed"
}
