#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Images that QEMU encrypted are written through the server and read back by QEMU; what is not to be
# opened is not.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires qemu-img qemu-io
requires_python_nbd
skip_sanitized_nbdkit
use_seed

printf 'open sesame\n' >key # the newline is the file's, not the key's
printf 'open sesame' >key.qemu
printf 'wrong' >wrong
secret="--object secret,id=k,file=key.qemu"
luks=encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10
if [ "$FRONTEND" = nbdcow ]; then
  with_key=--key-file=key wrong_key=--key-file=wrong
else
  with_key=passphrase=+key wrong_key=passphrase=+wrong
fi
as_qemu=driver=qcow2,encrypt.key-secret=k,file.filename=disk.qcow2

make () # OPTIONS SIZE
{
  # shellcheck disable=SC2086
  derive qemu-img create -q $secret -f qcow2 -o "$luks,$1" disk.qcow2 "$2"
}

check_by_qemu ()
{
  # shellcheck disable=SC2086
  qemu-img check -q $secret --image-opts $as_qemu || fail "qemu-img check: $?"
  # shellcheck disable=SC2086
  qemu-img compare -q $secret --image-opts $as_qemu driver=raw,file.filename=model ||
    fail "QEMU reads something else"
}

# try OPTIONS SIZE
try ()
{
  echo "== $1"
  GRAIN=$(echo "$1" | sed -n 's/.*cluster_size=\([0-9]*\).*/\1/p')
  GRAIN=${GRAIN:-65536}
  export GRAIN
  size=$(numfmt --from=iec "$2")
  rm -f disk.qcow2 model
  make "$1" "$size"
  "$PYTHON" "$SRCDIR/disk.py" fill model "$size"
  # shellcheck disable=SC2086
  qemu-img convert -n $secret --target-image-opts -f raw model $as_qemu
  start_server disk.qcow2 discard=unmap arg=$with_key
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  ROUND=1 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 120
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  stop_server
  server_log_is_empty
  check_by_qemu
}

try "cluster_size=65536" 8M
try "cluster_size=4096,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv" 2M
try "cluster_size=65536,extended_l2=on,encrypt.cipher-alg=aes-128" 4M
try "cluster_size=512,encrypt.hash-alg=sha512,lazy_refcounts=on" 300K

# What the guest writes is nowhere in the file.
start_server disk.qcow2 arg=$with_key
"$PYTHON" - "$URI" <<'END'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"in the clear, for all to see ..." * 16, 512)
h.pwrite(b"in the clear, for all to see ...", 10001)
h.flush()
END
stop_server
! grep -q "in the clear" disk.qcow2 || fail "the image shows what the guest wrote"

# No key, and one that is not right: one line each.
for how in none wrong; do
  case $how in none) set -- ;; *) set -- "arg=$wrong_key" ;; esac
  if try_server disk.qcow2 "$@"; then
    fail "$how: it is served"
  fi
  [ "$(wc -l <"$SERVER_LOG")" = 1 ] || { cat "$SERVER_LOG"; fail "$how: not one line"; }
  grep -q "disk.qcow2.*key" "$SERVER_LOG" || { cat "$SERVER_LOG"; fail "$how: what is wrong?"; }
done

# An encrypted backing file below an encrypted overlay.
make cluster_size=65536 1M
mv disk.qcow2 base.qcow2
# shellcheck disable=SC2086
qemu-io $secret -c "write -P 7 0 1M" \
  --image-opts driver=qcow2,encrypt.key-secret=k,file.filename=base.qcow2 >/dev/null
make "backing_file=base.qcow2,backing_fmt=qcow2" 1M
"$PYTHON" -c 'open("model", "wb").write(b"\7" * (1 << 20))'
start_server disk.qcow2 arg=$with_key
GRAIN=65536 ROUND=2 "$PYTHON" "$SRCDIR/disk.py" ops "$URI" model 40
"$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
stop_server
# shellcheck disable=SC2086
qemu-img compare -q $secret --image-opts "$as_qemu,backing.encrypt.key-secret=k" \
  driver=raw,file.filename=model || fail "QEMU reads something else through the backing file"

# The legacy AES method: what QEMU wrote is read, with a warning; nothing is written.
# shellcheck disable=SC2086
if qemu-img create -q $secret -f qcow2 -o encrypt.format=aes,encrypt.key-secret=k disk.qcow2 1M 2>create.log; then
  "$PYTHON" "$SRCDIR/disk.py" fill model 1048576
  # shellcheck disable=SC2086
  qemu-img convert -n $secret --target-image-opts -f raw model $as_qemu
  cp disk.qcow2 before
  start_server disk.qcow2 read-only arg=$with_key
  "$PYTHON" "$SRCDIR/disk.py" verify "$URI" model
  stop_server
  grep -q "disk.qcow2.*legacy AES" "$SERVER_LOG" || fail "legacy AES: no warning"
  cmp disk.qcow2 before || fail "legacy AES: the image was written"
else
  cat create.log
fi
