#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-ctl: every sub-command, as a table and as JSON, what is wrong, and what a shell completes.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires_file "${NBDCOW:-}" nbdcow
NBDCOW_CTL=$(dirname "$NBDCOW")/nbdcow-ctl
requires_file "$NBDCOW_CTL" nbdcow-ctl
requires qemu-img qemu-io
requires_python
NBDCOW_CONTROL=$tmp/control
export NBDCOW_CONTROL

ctl ()
{
  timeout 60 "$NBDCOW_CTL" "$@"
}

# says PATTERN COMMAND...: it succeeds, and a line of what it prints matches.
says ()
{
  pattern=$1
  shift
  ctl "$@" >ctl.out 2>&1 || fail "$*: $(cat ctl.out)"
  [ -z "$pattern" ] || grep -q -e "$pattern" ctl.out || fail "$*: no '$pattern' in: $(cat ctl.out)"
}

# json EXPRESSION COMMAND...: it is true of the answer, j.
json ()
{
  expression=$1
  shift
  ctl --json "$@" >ctl.json || fail "--json $*"
  "$PYTHON" -c "import json; j = json.load(open('ctl.json')); assert $expression, j" ||
    fail "--json $*: $expression"
}

# wrong PATTERN COMMAND...: one line, and status 1.
wrong ()
{
  pattern=$1
  shift
  status=0
  ctl "$@" >ctl.log 2>&1 || status=$?
  one_line "$status" ctl.log "$pattern" || fail "$*: $REASON"
}

wrong control status
echo 'not a socket' >control
wrong control status
rm control

qemu-img create -q -f qcow2 a.qcow2 8M
qemu-img create -q -f qcow2 b.qcow2 8M
cat >config.json <<END
{ "export": [ { "name": "a", "file": "$tmp/a.qcow2", "description": "the first" } ] }
END
SOCK=$tmp/sock PIDFILE=$tmp/pid SERVER_LOG=$tmp/server-1.log
"$NBDCOW" -t -e 0 -k "$SOCK" --pid-file="$PIDFILE" --state-dir="$STATE_DIR" --control=control --config=config.json \
  >"$SERVER_LOG" 2>&1 </dev/null &
SERVER_PID=$!
track "$SERVER_PID"
wait_for 30 server_ready_or_dead || fail "nbdcow was not ready after 30 seconds"
URI="nbd+unix:///a?socket=$SOCK"

# ---- the server --------------------------------------------------------------------------------

says "process $SERVER_PID: running, 0 clients" status
says running --control=control status
json "j['pid'] == $SERVER_PID" status
says '^warning$' log-level
says '' log-level info
says '^info$' log-level
json "j['level'] == 'info'" log-level
wrong loud log-level loud
says '"package": "nbdcow ' qmp query-version
json "len(j) > 10" qmp query-commands
says '\[\]' qmp query-clients '{}'
wrong 'no command' qmp no-such-command
wrong object qmp query-clients 5
wrong JSON qmp query-clients '{'
wrong 'no command' nothing
# What is quoted does nothing to the terminal, with one control character (U+009B) or another.
wrong "no command 'a??b?c'" "$(printf 'a\302\233b\033c')"
"$NBDCOW_CTL" "$(printf 'a\302\233b')" 2>&1 | od -An -tx1 | grep -q 9b && fail 'U+009B gets through' || :
wrong 'no command' export shrink a
wrong 'wanted is' export del
wrong 'wanted is' status now
wrong --interval= --interval=0 top
wrong --count= --count=x top
wrong 'no command'
says 'Usage: nbdcow-ctl' --help
says 'nbdcow-ctl [0-9]' --version

# ---- exports and clients -----------------------------------------------------------------------

says '^a  *8 MiB  write  *0  the first$' exports
says '' export add "name=b,file=$tmp/b.qcow2,description=later,, on"
says '^b  *8 MiB  write  *0  later, on$' exports
wrong 'used' export add "name=b,file=$tmp/b.qcow2"
wrong 'no export "x"' export del x
says '' export del b
says '' export add '{"name": "b", "file": "'"$tmp"'/b.qcow2", "read-only": true}'
says '^b  *8 MiB  read ' exports
json "[x['id'] for x in j] == ['a', 'b']" exports
says '' reload
json "j['unchanged'] == 1" reload
echo '{ "export": [ { "name": "a" } ] }' >config.json
wrong file reload

# A client that stays until it is sent away.
"$PYTHON" - "$SOCK" <<'END' &
import socket, struct, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.recv(18, socket.MSG_WAITALL)
s.sendall(struct.pack(">IQII", 3, 0x49484156454f5054, 1, 1) + b"a")
s.recv(10, socket.MSG_WAITALL)
while s.recv(1):
    pass
END
client=$!
track "$client"
connected () { ctl clients a | grep -q '^ *[0-9]'; }
wait_for 30 connected || fail 'there is no client'
json "j[0]['export'] == 'a'" clients
[ "$(ctl clients b | wc -l)" = 1 ] || fail 'clients of b'
wrong 'in use' export del a
says '^a  *1 ' --count=1 top
says "^CLIENT  *EXPORT" --count=2 --interval=0.1 top
# On a terminal each look is drawn over the last one.
if command -v script >/dev/null; then
  timeout 60 script -qec "'$NBDCOW_CTL' --count=2 --interval=0.1 top" /dev/null >top.out 2>&1 </dev/null || fail "top: $(cat top.out)"
  [ "$(grep -c "$(printf '^\033\[H\033\[2JEXPORT')" top.out)" = 2 ] || fail "top on a terminal: $(cat -v top.out)"
  grep -q '^a  *1 ' top.out || fail "top on a terminal: $(cat -v top.out)"
fi
wrong 'number of a client' disconnect a
wrong 'no client' disconnect 999999
says '' disconnect "$(ctl clients a | sed -n '2s/^ *\([0-9]*\) .*/\1/p')"
wait "$client"
says '' --hard export del b

# ---- images ------------------------------------------------------------------------------------

qemu-io -f raw -c 'write -q -P 1 0 1M' "$URI"
says '^highest allocated offset ' show a
json "j['node-name'] == 'a'" show a
wrong "no export 'x'" show x
says '' resize a 16M
says '' resize a +16M
says '^virtual size  *32 MiB' show a
wrong 'can be made larger' resize a 1M
wrong 'number of bytes' resize a much

says '^off$' threshold a
says '' threshold a 1G
says '^1073741824$' threshold a
says '' threshold a off
says '^off$' threshold a
wrong 'number of bytes' threshold a much

says '' snapshot create first a
says '^ *1  first  *20' snapshot list a
json "[s['name'] for s in j] == ['first']" snapshot list a
wrong already snapshot create first a
says '' --id snapshot delete 1 a
wrong 'no snapshot' snapshot delete first a
json 'j == []' snapshot list a

says '' bitmap add a one 4k
says '' checkpoint one two a
qemu-io -f raw -c 'write -q -P 2 2M 64k' "$URI"
says '^one  *4 KiB  *0 B  disabled$' bitmap list a
says '^two  *64 KiB  *64 KiB  enabled$' bitmap list a
json "[b['name'] for b in j] == ['one', 'two']" bitmap list a
says '' bitmap merge a one two
says '^one  *4 KiB  *64 KiB  disabled$' bitmap list a
says '' bitmap enable a one
says '' bitmap disable a two
says '' bitmap clear a two
says '^two  *64 KiB  *0 B  disabled$' bitmap list a
says '' bitmap remove a one
wrong 'not found' bitmap remove a one
wrong 'number of bytes' bitmap add a three much

says '' --snapshot checkpoint two three a
says '^ *[0-9]*  three  *20' snapshot list a
says '' export add name=backup,node-name=a,load-snapshot=three,bitmap=two
says '^backup  *32 MiB  read  *0' exports
json "[x['node-name'] for x in j] == ['a', 'backup']" exports
wrong two bitmap remove a two
wrong backup snapshot delete three a
wrong 'another' export add name=more,node-name=backup
wrong 'read-only' qmp block-export-add '{"type": "nbd", "id": "x", "node-name": "a", "writable": true}'
says '' export del backup
says '' snapshot delete three a
says '' export add name=now,node-name=a
wrong "shows the image of" resize now 64M
says '^now  *0 ' --count=1 top
says '' export del now

says '^0 requests were waiting$' resume
json "j == {'waiting': 0}" resume a
wrong 'no export' resume x

# ---- events, and the end -----------------------------------------------------------------------

"$NBDCOW_CTL" events >events.out 2>events.err &
events=$!
track "$events"
listens () { says '' export add "name=b,file=$tmp/b.qcow2" && says '' export del b && grep -q DELETED events.out; }
wait_for 30 listens || fail 'there are no events'
grep -q '^20[0-9-]* [0-9:]*\.[0-9]* BLOCK_EXPORT_DELETED {"id":"b"}$' events.out || fail "events: $(cat events.out)"
says '' quit
wait "$events" && fail 'events goes on without a server'
wait_server_exit
[ "$SERVER_STATUS" = 0 ] || fail "the server ended with status $SERVER_STATUS"
wrong control status
check_image a.qcow2

# ---- completion --------------------------------------------------------------------------------

command -v bash >/dev/null || exit 0
cat >complete.bash <<'END'
. "$1"
shift
compopt () { :; }
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_nbdcow_ctl
echo " ${COMPREPLY[*]} "
END
# offers WANTED WORD...
offers ()
{
  wanted=$1
  shift
  got=$(bash complete.bash "$SRCDIR/../contrib/completion/nbdcow-ctl" "$NBDCOW_CTL" "$@") || fail "$*: bash: $got"
  case $got in
  *" $wanted "*) ;;
  *) fail "$* does not offer $wanted but: $got" ;;
  esac
}
offers exports ex
offers snapshot sn
offers create snapshot c
offers merge bitmap ''
offers add export a
offers debug log-level d
offers --control --c
