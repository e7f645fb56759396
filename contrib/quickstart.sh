#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Installs what the build needs, builds, and serves a qcow2 image on a unix socket until Ctrl-C.

set -eu

usage () {
  cat <<'END'
Usage: sh contrib/quickstart.sh [IMAGE [NBDCOW OPTION...]]

Serves IMAGE, or a small empty one that it makes, until Ctrl-C.
END
}

case ${1-} in
  -h | --help) usage; exit 0 ;;
  -*) usage >&2; exit 1 ;;
esac

source=$(cd "$(dirname "$0")/.." && pwd)
. "$source/contrib/functions.sh"

build=$source/build
if [ $# -gt 0 ]; then
  image=$1
  shift
  [ -e "$image" ] || die "$image: there is no such file"
else
  image=$build/quickstart.qcow2
fi

install_missing "$build_needs"
say "building in $build"
{
  configure release
  cmake --build "$build" --parallel "$(getconf _NPROCESSORS_ONLN)" --target nbdcow nbdcow-img
} >&2

if [ "$image" = "$build/quickstart.qcow2" ] && [ ! -e "$image" ]; then
  "$build/server/nbdcow-img" create -f qcow2 "$image" 1G >&2
fi

# A directory of its own, so that the socket is nobody else's.
dir=$(mktemp -d "${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}/nbdcow.XXXXXX")
socket=$dir/sock
server=
stop () {
  [ -z "$server" ] || kill "$server" 2>/dev/null || :
}
trap stop INT TERM HUP
trap 'rm -rf "$dir"' EXIT

"$build/server/nbdcow" --persistent --shared 0 --socket "$socket" "$@" "$image" &
server=$!
tries=0
until [ -S "$socket" ]; do
  # It says itself why it does not start.
  kill -0 "$server" 2>/dev/null || { wait "$server" && exit 1 || exit $?; }
  tries=$((tries + 1))
  [ $tries -le 100 ] || { stop; die "nbdcow did not open $socket within 10 seconds"; }
  sleep 0.1
done

uri="nbd+unix:///?socket=$socket"
say "serving $image until Ctrl-C"
cat <<END
QEMU:    qemu-system-x86_64 -m 1G -drive 'file=$uri,format=raw,if=virtio'
libvirt: <disk type='network'><driver name='qemu' type='raw'/><source protocol='nbd'><host transport='unix' socket='$socket'/></source><target dev='vda' bus='virtio'/></disk>
nbdinfo: nbdinfo '$uri'
END

# A signal ends the first wait early; the second is for nbdcow, which flushes before it exits.
status=0
wait "$server" || status=$?
if kill -0 "$server" 2>/dev/null; then
  status=0
  wait "$server" || status=$?
fi
exit "$status"
