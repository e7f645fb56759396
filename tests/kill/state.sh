# SPDX-License-Identifier: BSD-3-Clause
#
# For the scripts that kill servers.  Sets STATE to an empty state directory on a tmpfs.

[ -d /dev/shm ] && [ "$(stat -f -c %T /dev/shm)" = tmpfs ] || skip "/dev/shm is no tmpfs"
STATE=$(mktemp -d /dev/shm/nbdcow-test.XXXXXX)
at_exit "rm -rf $STATE"

# state_option DIRECTORY|off: what start_server wants for it.
state_option ()
{
  case $FRONTEND in
  nbdcow) echo "arg=--state-dir=$1" ;;
  nbdkit) echo "arg=state-dir=$1" ;;
  esac
}

# serve IMAGE [OPTION...]: a server with STATE, which clients find at $tmp/sock whichever it is.
serve ()
{
  start_server "$@" "$(state_option "$STATE")"
  ln -sfn "$SOCK" "$tmp/sock"
}

# kill_server: SIGKILL.
kill_server ()
{
  kill -KILL "$SERVER_PID"
  wait "$SERVER_PID" 2>/dev/null || :
}

# no_state_left: nothing is in the state directory.
no_state_left ()
{
  [ -z "$(ls -A "$STATE")" ] || fail "left in the state directory: $(ls -A "$STATE")"
}
