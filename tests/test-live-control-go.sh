#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The control socket with a client of QMP that others have written, in types made from QEMU's schema.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

FRONTEND=nbdcow
requires_frontend
requires qemu-img go
GOPATH=/usr/share/gocode
[ -d $GOPATH/src/github.com/digitalocean/go-qemu/qmp/raw ] ||
  skip "go-qemu is not installed (Debian: golang-github-digitalocean-go-qemu-dev)"

GO111MODULE=off GOCACHE=$tmp/cache GOFLAGS=-p=2 GOPATH=$GOPATH HOME=$tmp \
  go build -o client "$SRCDIR/qmp-client.go" >go.log 2>&1 || fail "go: $(cat go.log)"
qemu-img create -q -f qcow2 a.qcow2 8M
start_server a.qcow2 "arg=--control=$tmp/control" arg=--export-name=a
timeout 100 ./client "$tmp/control" a.qcow2 >client.log 2>&1 || fail "$(cat client.log)"
wait_server_exit
[ "$SERVER_STATUS" = 0 ] || fail "the server ended with status $SERVER_STATUS"
server_log_is_empty
check_image a.qcow2
