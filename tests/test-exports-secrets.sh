#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The keys of encrypted images as QEMU's tools take them: --object secret in all its forms, by layer,
# by export, and from descriptors; and what is wrong with them in one line.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
FRONTEND=nbdcow
requires_frontend
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img openssl base64
requires_python_nbd

img () { "$NBDCOW_IMG" "$@"; }
make () # SECRETFILE NAME [OPTION...]; 1 MiB
{
  _file=$1 _name=$2
  shift 2
  img create -q --object "secret,id=k,file=$_file" -f qcow2 \
    -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=1 "$@" "$_name" 1M
}

printf 'first' >one
printf 'second' >two
base64 <two >two.b64
make one base.qcow2
make two top.qcow2 -b base.qcow2 -F qcow2
img create -q -f qcow2 -b base.qcow2 -F qcow2 plain.qcow2

# serves ARGUMENT...: it opens.
serves ()
{
  : >pid
  PIDFILE=$tmp/pid SOCK=$tmp/sock SERVER_LOG=$tmp/log
  rm -f pid sock
  "$NBDCOW" -t -k "$SOCK" --pid-file "$PIDFILE" --state-dir=off "$@" >log 2>&1 &
  SERVER_PID=$!
  track $SERVER_PID
  wait_for 30 server_ready_or_dead
  process_alive $SERVER_PID || { cat log; fail "does not serve: $*"; }
  stop_server
}

# refuses TEXT ARGUMENT...
refuses ()
{
  _text=$1
  shift
  if timeout 30 "$NBDCOW" -k "$tmp/sock" --state-dir=off "$@" >log 2>&1; then
    fail "serves: $*"
  fi
  [ "$(grep -v 'everybody on this machine' log | wc -l)" = 1 ] || { cat log; fail "not one line: $*"; }
  grep -qF -e "$_text" log || { cat log; fail "does not say '$_text': $*"; }
}

one="--object secret,id=one,file=one"
two="--object secret,id=two,file=two"
chain=driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=two,backing.encrypt.key-secret=one
serves $one $two --image-opts $chain
server_log_is_empty
serves $one $two --image-opts "$chain,encrypt.format=luks,backing.driver=qcow2"
serves $one $two 'json:{"driver": "qcow2", "encrypt": {"key-secret": "two"},
  "backing": {"encrypt": {"key-secret": "one"}}, "file": {"filename": "top.qcow2"}}'
serves --object '{"qom-type": "secret", "id": "one", "file": "one"}' $two --image-opts $chain
serves $one --object secret,id=two,file=two.b64,format=base64 --image-opts $chain
serves $one --image-opts driver=qcow2,file.filename=plain.qcow2,backing.encrypt.key-secret=one
serves --key-file one plain.qcow2
serves --key-file one base.qcow2
serves $one --export name=x,file=base.qcow2,key-secret=one,read-only=on --export name=y,file=plain.qcow2,key-secret=one
serves -r --key-fd 7 base.qcow2 7<one
serves -s --key-file one base.qcow2

# data= works as in QEMU, and says what is wrong with it.
serves $one --object secret,id=two,data=second --image-opts $chain
grep -q "id=two.*everybody on this machine" log || { cat log; fail "no warning about data="; }

# A secret that is encrypted with another one, as libvirt passes them.
openssl rand 32 >master
openssl rand 16 >iv
openssl enc -aes-256-cbc -K "$(od -An -tx1 master | tr -d ' \n')" -iv "$(od -An -tx1 iv | tr -d ' \n')" \
  -in two -base64 -A >two.enc
base64 -w0 <master >master.b64
iv=$(base64 -w0 <iv | sed 's/,/,,/g')
serves $one --object secret,id=m,file=master.b64,format=base64 \
  --object "secret,id=two,data=$(cat two.enc),keyid=m,iv=$iv,format=base64" --image-opts $chain
server_log_is_empty
serves $one --object "secret,id=two,file=two.enc,keyid=m,iv=$iv,format=base64" \
  --object secret,id=m,file=master --image-opts $chain

refuses "a key is needed" base.qcow2
refuses "the key is not right" --key-file two base.qcow2
refuses "no --object has that id" --image-opts driver=qcow2,file.filename=base.qcow2,encrypt.key-secret=x
refuses "key-secret" --image-opts driver=qcow2,file.filename=base.qcow2,encrypt.format=luks
refuses "missing: No such file" --object secret,id=k,file=missing --key-file one base.qcow2
refuses "is not base64" --object secret,id=k,file=iv,format=base64 --key-file one base.qcow2
refuses "keyid=m: no --object" --object "secret,id=k,file=two.enc,keyid=m,iv=$iv" --key-file one base.qcow2
refuses "encrypted with itself" --object "secret,id=k,file=two.enc,keyid=k,iv=$iv" --key-file one base.qcow2
refuses "should have 32" --object "secret,id=k,file=two.enc,keyid=one,iv=$iv,format=base64" $one \
  --key-file one base.qcow2
refuses "cannot be used together" --key-file one --key-fd 7 base.qcow2
refuses "--key-fd" --key-fd 77 base.qcow2
# By layer: the first key is the top's alone.
refuses "cannot open backing file" $two --image-opts driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=two
refuses "the key is not right" $one $two --image-opts driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=one,backing.encrypt.key-secret=two

# A temporary overlay does not show what was encrypted, nor what is written.
mkdir overlay
TMPDIR=$tmp/overlay "$NBDCOW" -s -k "$tmp/sock2" --state-dir=off --key-file one base.qcow2 >log 2>&1 &
SERVER_PID=$!
track $SERVER_PID
wait_for 30 listens "$tmp/sock2" || { cat log; fail "no server with --snapshot"; }
"$PYTHON" - "nbd+unix://?socket=$tmp/sock2" "$SERVER_PID" <<'END'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"in the clear, for all to see ..." * 16, 512)
h.flush()
assert h.pread(32, 512).startswith(b"in the clear")
found = 0
for fd in os.listdir("/proc/%s/fd" % sys.argv[2]):
    path = "/proc/%s/fd/%s" % (sys.argv[2], fd)
    if "nbdcow-overlay" in os.readlink(path):
        found += 1
        assert b"in the clear" not in open(path, "rb").read()
assert found, "no overlay"
h.shutdown()
END
wait_server_exit
