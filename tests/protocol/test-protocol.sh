# SPDX-License-Identifier: BSD-3-Clause
#
# Runs the conformance suite (protocol-suite) against one server, in each way it can be started:
# writable, read-only, over TCP, with large blocks, with TLS required.  SERVER names it:
#
#   nbdcow     nbdcow
#   plugin     nbdkit with our plugin
#   qemu-nbd   qemu-nbd (another one: QEMU_NBD), and nbdkit: nbdkit with plugins of its own.  These
#   nbdkit     check the suite: what they do differently is listed in known.c, and printed as DIFF.
#
# Set SUITE to the suite's program; ctest does.  ONLY is a pattern of case names.

. "${SRCDIR:-$(dirname "$0")/..}/functions.sh"

SERVER=${SERVER:-nbdcow}
SUITE=${SUITE:-${BUILDDIR:-.}/protocol/protocol-suite}
QEMU_NBD=${QEMU_NBD:-qemu-nbd}
size=6442451456 # as IMAGE_SIZE in suite.h
status=0

# nbdkit 1.32 dies of an assertion when a client leaves while several threads have replies for it.
one_thread=--threads=1
peaceful='@(read|write|zeroes|trim|flush|cache|df|chunks|status|pipeline|connections|coherence).*'

requires_file "$SUITE" "the protocol suite"

# suite ARGS...: runs the cases on the socket; a failure is remembered, so that all runs are seen.
suite ()
{
  s=0
  "$SUITE" --server "$SERVER" --timeout "${ANSWER_SECONDS:-40}" ${ONLY:+--only "$ONLY"} "$@" || s=$?
  [ "$s" -le 1 ] || fail "the server cannot be tested: status $s"
  [ "$s" = 0 ] || status=1
}

prepare ()
{
  "$SUITE" --server "$SERVER" --socket "$SOCK" --prepare || fail "the image could not be prepared"
}

create_image ()
{
  if [ -x "${NBDCOW_IMG:-}" ]; then
    "$NBDCOW_IMG" create -f qcow2 "$1" "$size" >create.out 2>&1 || fail "$(cat create.out)"
  else
    requires qemu-img
    qemu-img create -q -f qcow2 "$1" "$size"
  fi
}

listening ()
{
  listens "$SOCK" || ! process_alive "$SERVER_PID"
}

# start_peer COMMAND...: a server that is not ours, which is to listen on $SOCK.
start_peer ()
{
  rm -f "$SOCK"
  "$@" >"$tmp/server-peer.log" 2>&1 </dev/null &
  SERVER_PID=$!
  track "$SERVER_PID"
  wait_for 30 listening || fail "$1 was not ready after 30 seconds"
  process_alive "$SERVER_PID" || fail "$1 did not start"
}

stop_peer ()
{
  kill -TERM "$SERVER_PID" 2>/dev/null || :
  wait_server_exit
}

# ours FRONTEND [OPTION...]: our own front ends end cleanly, and leave an image that is in order.
ours ()
{
  FRONTEND=$1
  shift
  requires_frontend
  create_image disk.qcow2
  start_server disk.qcow2 discard=unmap "$@"
  prepare
  suite --socket "$SOCK" --pattern --pid "$SERVER_PID"
  stop_server
  if command -v qemu-img >/dev/null; then
    check_image disk.qcow2
  fi

  start_server disk.qcow2 read-only "$@"
  suite --socket "$SOCK" --pattern --pid "$SERVER_PID" --read-only
  stop_server
}

# shutdowns MODES [OPTION...]: what becomes of clients when the server is told to end.
shutdowns ()
{
  modes=$1
  shift
  for mode in $modes; do
    start_server disk.qcow2 "$@"
    suite --socket "$SOCK" --pattern --pid "$SERVER_PID" --mode "$mode" --shutdown
    wait_server_exit
    [ "$SERVER_STATUS" = 0 ] || fail "the server ended with status $SERVER_STATUS after SIGTERM"
  done
}

# An export with a name, a description and a neighbour, over TCP.
nbdcow_tcp ()
{
  create_image other.qcow2
  for try in 1 2 3 4 5; do
    port=$((20000 + $(od -An -N2 -tu2 /dev/urandom) % 10000))
    rm -f "$tmp/pid-tcp"
    "$NBDCOW" --persistent --shared=0 --bind=127.0.0.1 --port="$port" --pid-file="$tmp/pid-tcp" \
      --export-name='disk one' --description='the first disk' --discard=unmap --allocation-depth -- other.qcow2 \
      >"$tmp/server-tcp.log" 2>&1 </dev/null &
    SERVER_PID=$!
    track "$SERVER_PID"
    PIDFILE=$tmp/pid-tcp
    wait_for 30 server_ready_or_dead || fail "nbdcow was not ready after 30 seconds"
    process_alive "$SERVER_PID" && break
    [ "$try" != 5 ] || fail "nbdcow did not start: $(cat "$tmp/server-tcp.log")"
  done
  set -- --connect "127.0.0.1:$port" --export 'disk one'
  "$SUITE" --server nbdcow "$@" --prepare || fail "the image could not be prepared"
  suite "$@" --description 'the first disk' --pattern --pid "$SERVER_PID"
  stop_server
}

# A key for TLS with pre-shared keys in $tmp/psk, or status 1.
make_psk ()
{
  command -v psktool >/dev/null || return 1
  mkdir -p psk
  psktool -u conformance -p psk/keys.psk >/dev/null 2>&1
}

case $SERVER in
nbdcow)
  ours nbdcow arg=--allocation-depth
  shutdowns 'simple structured extended'
  nbdcow_tcp
  if make_psk && "$NBDCOW" --help | grep -q -e --tls-creds; then
    start_server other.qcow2 "arg=--object=tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/psk" \
      arg=--tls-creds=tls0
    suite --socket "$SOCK" --tls
    stop_server
  fi
  ;;
plugin)
  ours nbdkit arg=$one_thread
  shutdowns 'simple structured' arg=$one_thread
  # With many threads, what no client leaves early.
  start_server disk.qcow2 discard=unmap
  suite --socket "$SOCK" --pattern --only "$peaceful"
  stop_server
  # The plugin behind a filter, which advertises and enforces large blocks.
  SOCK=$tmp/sock-filter
  start_peer ${PLUGIN_PRELOAD:+env LD_PRELOAD="$PLUGIN_PRELOAD"} "$NBDKIT" -f $one_thread -U "$SOCK" \
    --filter=blocksize-policy "$NBDKIT_PLUGIN" file=disk.qcow2 discard=unmap \
    blocksize-minimum=512 blocksize-preferred=65536 blocksize-maximum=32M blocksize-error-policy=error
  suite --socket "$SOCK" --pattern
  stop_peer
  ;;
qemu-nbd)
  requires "$QEMU_NBD" qemu-img
  SOCK=$tmp/sock
  qemu-img create -q -f qcow2 disk.qcow2 "$size"
  start_peer "$QEMU_NBD" -t -e 0 -k "$SOCK" -f qcow2 --discard=unmap -A -D 'a disk' disk.qcow2
  prepare
  suite --socket "$SOCK" --pattern --description 'a disk'
  stop_peer

  start_peer "$QEMU_NBD" -t -e 0 -k "$SOCK" -f qcow2 --read-only -A disk.qcow2
  suite --socket "$SOCK" --pattern --read-only
  stop_peer

  # A block driver for testing that insists on aligned requests.
  start_peer "$QEMU_NBD" -t -e 0 -k "$SOCK" --discard=unmap --image-opts \
    driver=blkdebug,align=512,image.driver=qcow2,image.file.filename=disk.qcow2
  suite --socket "$SOCK" --pattern
  stop_peer

  if make_psk; then
    start_peer "$QEMU_NBD" -t -e 0 -k "$SOCK" -f qcow2 \
      --object "tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/psk" --tls-creds tls0 disk.qcow2
    suite --socket "$SOCK" --tls
    stop_peer
  fi
  ;;
nbdkit)
  requires "$NBDKIT"
  SOCK=$tmp/sock
  start_peer "$NBDKIT" -f $one_thread -U "$SOCK" memory "$size"
  prepare
  suite --socket "$SOCK" --pattern
  stop_peer

  truncate -s "$size" disk.raw
  start_peer "$NBDKIT" -f $one_thread -U "$SOCK" -r file disk.raw
  suite --socket "$SOCK" --read-only
  stop_peer

  # Exports with names, and none else.
  mkdir exports
  truncate -s "$size" exports/one exports/two
  start_peer "$NBDKIT" -f $one_thread -U "$SOCK" file dir=exports
  suite --socket "$SOCK" --export one --other two
  stop_peer

  start_peer "$NBDKIT" -f $one_thread -U "$SOCK" --filter=blocksize-policy memory 6442455040 \
    blocksize-minimum=4096 blocksize-preferred=65536 blocksize-maximum=32M blocksize-error-policy=error
  prepare
  suite --socket "$SOCK" --pattern
  stop_peer

  if make_psk; then
    start_peer "$NBDKIT" -f $one_thread -U "$SOCK" --tls=require --tls-psk="$tmp/psk/keys.psk" memory "$size"
    suite --socket "$SOCK" --tls
    stop_peer
  fi
  ;;
*)
  fail "SERVER=$SERVER: expected nbdcow, plugin, qemu-nbd or nbdkit"
  ;;
esac
exit "$status"
