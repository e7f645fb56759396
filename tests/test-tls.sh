#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# TLS: X.509 and pre-shared keys, who is let in and who is not, per server and per export; reloading;
# what comes in plain text where it must not; clients that are slow; many at once.  The clients are
# libnbd's and QEMU's.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_frontend
requires certtool psktool gnutls-cli qemu-img qemu-io nbdinfo nbdcopy
requires_python_nbd
"$NBDCOW" --help | grep -q -e --tls-creds || skip "nbdcow was built without TLS"
"$PYTHON" -c 'import nbd; assert nbd.NBD().supports_tls()' || skip "libnbd was built without TLS"

# ---- credentials -----------------------------------------------------------------------------

# authority DIR [NAME]: a new authority with its key in DIR.key.
authority ()
{
  mkdir -p "$1"
  certtool --generate-privkey --key-type=ecdsa --outfile "$1.key" 2>/dev/null
  printf 'cn = Authority %s\nca\ncert_signing_key\nexpiration_days = 30\n' "${2:-$1}" >ca.tmpl
  certtool --generate-self-signed --load-privkey "$1.key" --template ca.tmpl \
    --outfile "$1/ca-cert.pem" 2>/dev/null
}

# certificate DIR AUTHORITY server|client NAME [LINE...]: DIR/server-cert.pem or the like.
certificate ()
{
  _dir=$1 _ca=$2 _for=$3 _cn=$4
  shift 4
  mkdir -p "$_dir"
  [ "$_dir" = "$_ca" ] || cp "$_ca/ca-cert.pem" "$_dir"
  {
    printf 'cn = %s\norganization = Example\nsigning_key\ntls_www_%s\n' "$_cn" "$_for"
    [ "$_for" = client ] || printf 'dns_name = localhost\nip_address = 127.0.0.1\n'
    if [ $# -gt 0 ]; then printf '%s\n' "$@"; else echo 'expiration_days = 30'; fi
  } >cert.tmpl
  certtool --generate-privkey --key-type=ecdsa --outfile "$_dir/$_for-key.pem" 2>/dev/null
  certtool --generate-certificate --load-ca-certificate "$_ca/ca-cert.pem" --load-ca-privkey "$_ca.key" \
    --load-privkey "$_dir/$_for-key.pem" --template cert.tmpl --outfile "$_dir/$_for-cert.pem" 2>/dev/null
}

authority ours
authority theirs
authority forged ours # by name; clients offer their certificates to such a server
certificate server ours server 'disks.example.com'
certificate alice ours client alice
certificate bob ours client bob
certificate stranger theirs client alice
certificate forger forged client alice
cp ours/ca-cert.pem stranger/ca-cert.pem # they trust us, and we do not trust them
cp ours/ca-cert.pem forger/ca-cert.pem
certificate outdated ours client alice 'activation_date = "2020-01-01 00:00:00"' \
  'expiration_date = "2021-01-01 00:00:00"'
certificate otheruse ours server alice
mv otheruse/server-cert.pem otheruse/client-cert.pem
mv otheruse/server-key.pem otheruse/client-key.pem
mkdir nobody
cp ours/ca-cert.pem nobody
mkdir psk wrong
psktool -u qemu -p psk/keys.psk >/dev/null 2>&1
psktool -u carol -p psk/keys.psk >/dev/null 2>&1
psktool -u qemu -p wrong/keys.psk >/dev/null 2>&1

# ---- clients ---------------------------------------------------------------------------------

# The URI's host is the name that the server's certificate is to have.
tls_uri ()
{
  echo "nbds+unix://localhost/${2:-}?socket=$SOCK&tls-certificates=$tmp/$1"
}

# client DIR [EXPORT]: connects with the certificates of DIR, writes and reads back.
client ()
{
  timeout 60 "$PYTHON" -c '
import nbd, os, sys
sock, certificates, export = sys.argv[1:4]
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
if os.path.exists(certificates + "/keys.psk"):
    h.set_tls_psk_file(certificates + "/keys.psk")
    h.set_tls_username(os.environ.get("TLS_USER", "qemu"))
else:
    h.set_tls_certificates(certificates)
    h.set_tls_verify_peer(False) # a unix socket has no name to compare
h.set_export_name(export)
try:
    h.connect_unix(sock)
    assert h.get_tls_negotiated()
    data = os.urandom(300001)
    if not h.is_read_only():
        h.pwrite(data, 12345)
        h.flush()
        assert h.pread(len(data), 12345) == data
    h.pread(1 << 20, 0)
    h.shutdown()
except nbd.Error as e:
    print(e.string)
    sys.exit(1)' "$SOCK" "$tmp/$1" "${2:-}"
}

admitted ()
{
  client "$@" || fail "$* was not let in"
}

denied ()
{
  if client "$@" >denied.log; then
    fail "$* was let in"
  fi
}

# plain EXPORT: connects in plain text; prints the export's size.
plain ()
{
  timeout 60 nbdinfo --size "nbd+unix:///${1:-}?socket=$SOCK" 2>/dev/null
}

x509="--object=tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/server"

qemu-img create -q -f qcow2 disk.qcow2 64M
qemu-io -f qcow2 -c 'write -q -P 0x33 0 40M' disk.qcow2

# ---- X.509 -----------------------------------------------------------------------------------

echo "== server and client prove who they are"
start_server disk.qcow2 "arg=$x509" arg=--tls-creds=tls0 arg=-v arg=--handshake-limit=2
admitted alice
grep -q 'identity .*CN=alice' "$SERVER_LOG" || fail "the log does not name the client"
for who in stranger forger outdated otheruse nobody psk; do
  denied $who
done
for why in 'issuer is unknown' expired purpose; do
  grep -q "handshake failed: .*$why" "$SERVER_LOG" || fail "the log does not say '$why'"
done
if plain; then fail "a client was let in without TLS"; fi
timeout 60 nbdinfo "$(tls_uri alice)" | grep -q 'with TLS' || fail "nbdinfo speaks no TLS"

echo "== QEMU"
timeout 60 qemu-io --object "tls-creds-x509,id=c,endpoint=client,dir=$tmp/alice" --image-opts \
  -c 'write -q -P 0x44 1M 9M' -c 'read -q -P 0x44 1M 9M' -c 'read -q -P 0x33 10M 30M' \
  "driver=nbd,server.type=unix,server.path=$SOCK,tls-creds=c,tls-hostname=localhost" ||
  fail "qemu-io cannot use it"
if timeout 60 qemu-img info --object "tls-creds-x509,id=c,endpoint=client,dir=$tmp/stranger" --image-opts \
  "driver=nbd,server.type=unix,server.path=$SOCK,tls-creds=c,tls-hostname=localhost" 2>/dev/null; then
  fail "qemu-img with a stranger's certificate was let in"
fi

echo "== copies by several connections, and many clients at once"
timeout 120 nbdcopy --connections=4 "$(tls_uri alice)" copy.raw
timeout 120 nbdcopy --connections=4 copy.raw "$(tls_uri bob)"
timeout 300 "$PYTHON" -c '
import nbd, os, random, sys, threading
sock, certificates = sys.argv[1:3]
errors = []
def work(n):
    try:
        rng = random.Random(n)
        h = nbd.NBD()
        h.set_tls(nbd.TLS_REQUIRE)
        h.set_tls_certificates(certificates)
        h.set_tls_verify_peer(False)
        h.connect_unix(sock)
        base = (41 << 20) + (n << 19)
        for i in range(8):
            size = rng.choice((1, 511, 4096, 65537, 500000))
            data = rng.randbytes(size)
            at = base + rng.randrange((1 << 19) - size)
            # Several in flight.
            buf = nbd.Buffer.from_bytearray(bytearray(data))
            cookies = [h.aio_pwrite(buf, at) for _ in range(4)]
            for c in cookies:
                while not h.aio_command_completed(c):
                    h.poll(-1)
            reads = [(nbd.Buffer(size), None) for _ in range(4)]
            cookies = [h.aio_pread(b, at) for b, _ in reads]
            for c in cookies:
                while not h.aio_command_completed(c):
                    h.poll(-1)
            for b, _ in reads:
                assert b.to_bytearray() == data
        h.shutdown()
    except Exception as e:
        errors.append(e)
threads = [threading.Thread(target=work, args=(n,)) for n in range(40)]
for t in threads: t.start()
for t in threads: t.join()
if errors:
    sys.exit("%d clients of 40 failed: %s" % (len(errors), errors[0]))' "$SOCK" "$tmp/alice"

if [ -x "$BUILDDIR/stress" ]; then
  echo "== clients that hang up with requests in flight, the others are verified meanwhile"
  use_seed
  timeout 120 "$BUILDDIR/stress" --hangups --seconds=3 --seed="$SEED" "$(tls_uri alice)"
fi

echo "== plain text after STARTTLS, and handshakes that are none or never end"
timeout 60 "$PYTHON" -c '
import socket, struct, sys, time
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(sys.argv[1])
    assert len(s.recv(18, socket.MSG_WAITALL)) == 18
    s.sendall(struct.pack(">I", 3))
    return s
def option(n, data=b""):
    return b"IHAVEOPT" + struct.pack(">II", n, len(data)) + data
STARTTLS, LIST, STRUCTURED = 5, 3, 8
def rest(s):
    got = b""
    while True:
        try:
            b = s.recv(65536)
        except ConnectionResetError:
            b = b""
        if not b:
            return got
        got += b
ACK = struct.pack(">QIII", 0x3e889045565a9, STARTTLS, 1, 0)
# In one piece with it: not even a whole option has to follow.
for more in (b"\x16", option(LIST), option(STRUCTURED) + option(LIST), b"x" * 100000):
    s = connect()
    s.sendall(option(STARTTLS) + more)
    got = rest(s)
    assert got in (b"", ACK), got
# After the answer.
s = connect()
s.sendall(option(STARTTLS))
assert s.recv(20, socket.MSG_WAITALL) == ACK
s.sendall(option(LIST))
got = rest(s)
assert got[:1] in (b"", b"\x15"), got
# All but the last byte of a record header; then a byte now and then.
slow = []
started = time.monotonic()
for piece in (b"", b"\x16\x03\x01\x02"):
    s = connect()
    s.sendall(option(STARTTLS))
    assert s.recv(20, socket.MSG_WAITALL) == ACK
    s.sendall(piece)
    slow.append(s)
for s in slow:
    rest(s)
took = time.monotonic() - started
assert 1 < took < 60, "they were cut after %.1f seconds" % took
' "$SOCK"
grep -q 'plain text came after' "$SERVER_LOG" || fail "the log does not tell of the injection"
admitted alice

echo "== new credentials by SIGHUP; who is connected stays"
cat >hold.py <<'END'
import nbd, os, sys, time
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
h.set_tls_certificates(sys.argv[2])
h.set_tls_verify_peer(False)
h.connect_unix(sys.argv[1])
open("holding", "w").close()
while not os.path.exists("release"):
    h.pread(4096, 0)
    time.sleep(0.02)
h.pread(1 << 20, 0)
h.shutdown()
END
timeout 100 "$PYTHON" hold.py "$SOCK" "$tmp/alice" &
holder=$!
track $holder
wait_for 20 test -e holding || fail "no connection"
reloaded () { [ "$(grep -c 'read again' "$SERVER_LOG")" = "$1" ]; }
cp server/server-cert.pem good-cert.pem
echo rubbish >server/server-cert.pem
kill -HUP "$SERVER_PID"
wait_for 20 grep -q 'the credentials in use stay' "$SERVER_LOG" || fail "no word of a failed reload"
admitted alice
cp good-cert.pem server/server-cert.pem
certificate server theirs server 'disks.example.com'
cp theirs/ca-cert.pem stranger/ca-cert.pem
kill -HUP "$SERVER_PID"
wait_for 20 reloaded 1 || fail "no reload"
denied alice
admitted stranger
certificate server ours server 'disks.example.com'
kill -HUP "$SERVER_PID"
wait_for 20 reloaded 2 || fail "no second reload"
admitted alice
touch release
wait $holder || fail "the reload disturbed a client"
stop_server

# As programs that renew certificates keep them: links to a directory with all versions.
mkdir archive live
for file in ca-cert server-cert server-key; do
  cp server/$file.pem archive/${file}1.pem
  ln -s ../archive/${file}1.pem live/$file.pem
done
start_server disk.qcow2 "arg=--object=tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/live" arg=--tls-creds=tls0 arg=-v
for file in ca-cert server-cert server-key; do
  cp server/$file.pem archive/${file}2.pem
  ln -sf ../archive/${file}2.pem live/$file.pem
done
kill -HUP "$SERVER_PID"
wait_for 20 reloaded 1 || fail "links to another directory: no reload: $(cat "$SERVER_LOG")"
admitted alice
stop_server
check_image disk.qcow2

echo "== only the server proves who it is"
start_server disk.qcow2 "arg=$x509,verify-peer=no" arg=--tls-creds=tls0
admitted nobody
admitted alice
stop_server

echo "== revoked"
certtool --generate-crl --load-ca-certificate ours/ca-cert.pem --load-ca-privkey ours.key \
  --load-certificate bob/client-cert.pem --template /dev/stdin --outfile server/ca-crl.pem 2>/dev/null <<END
crl_next_update = 30
crl_number = 1
END
start_server disk.qcow2 "arg=$x509" arg=--tls-creds=tls0
admitted alice
denied bob
stop_server
rm server/ca-crl.pem

echo "== TLS versions, with OpenSSL as the client"
cat >version.py <<'END'
# version.py SOCKET CERTIFICATES VERSION: prints the version that is spoken.
import socket, ssl, struct, sys
def exactly(s, n):
    got = b""
    while len(got) < n:
        b = s.recv(n - len(got))
        if not b:
            raise EOFError
        got += b
    return got
def ask(s, n):
    s.sendall(b"IHAVEOPT" + struct.pack(">II", n, 0))
    magic, option, kind, length = struct.unpack(">QIII", exactly(s, 20))
    assert (magic, option) == (0x3e889045565a9, n)
    exactly(s, length)
    return kind
ACK, INVALID, ABORT, STARTTLS = 1, (1 << 31) + 3, 2, 5
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect(sys.argv[1])
exactly(s, 18)
s.sendall(struct.pack(">I", 3))
assert ask(s, STARTTLS) == ACK
c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
c.check_hostname = False
c.set_ciphers("ALL:@SECLEVEL=0")
c.load_verify_locations(sys.argv[2] + "/ca-cert.pem")
c.load_cert_chain(sys.argv[2] + "/client-cert.pem", sys.argv[2] + "/client-key.pem")
c.minimum_version = c.maximum_version = getattr(ssl.TLSVersion, sys.argv[3])
t = c.wrap_socket(s, suppress_ragged_eofs=False)
assert ask(t, STARTTLS) == INVALID
assert ask(t, ABORT) == ACK
assert t.recv(1) == b""  # raises an error if TLS is not closed in order
print(t.version())
END
# speaks VERSION EXPECTED
speaks ()
{
  _got=$(timeout 60 "$PYTHON" -W ignore version.py "$SOCK" alice "$1" 2>version.log) || _got=none
  [ "$_got" = "$2" ] || { cat version.log >&2; fail "$1: $_got instead of $2"; }
}
start_server disk.qcow2 "arg=$x509" arg=--tls-creds=tls0
speaks TLSv1_1 none
speaks TLSv1_2 TLSv1.2
speaks TLSv1_3 TLSv1.3

echo "== TLS versions, with GnuTLS's own client"
# relay.py SOCKET PORT-FILE: takes one connection, begins TLS for it, and hands it over.
cat >relay.py <<'END'
import select, socket, struct, sys
l = socket.create_server(("127.0.0.1", 0))
with open(sys.argv[2], "w") as f:
    f.write("%d\n" % l.getsockname()[1])
l.settimeout(60)
a, _ = l.accept()
b = socket.socket(socket.AF_UNIX)
b.settimeout(20)
b.connect(sys.argv[1])
assert len(b.recv(18, socket.MSG_WAITALL)) == 18
b.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 5, 0))
assert b.recv(20, socket.MSG_WAITALL) == struct.pack(">QIII", 0x3e889045565a9, 5, 1, 0)
while True:
    for s in select.select([a, b], [], [], 60)[0]:
        data = s.recv(65536)
        if not data:
            sys.exit()
        (b if s is a else a).sendall(data)
END
# gnutls_connect OPTION...: gnutls-cli's report on the server, in gnutls.log.
gnutls_connect ()
{
  rm -f port
  timeout 90 "$PYTHON" relay.py "$SOCK" port &
  _relay=$!
  track $_relay
  wait_for 20 test -s port || fail "no relay"
  timeout 60 gnutls-cli "$@" --x509cafile alice/ca-cert.pem --no-ca-verification \
    --x509certfile alice/client-cert.pem --x509keyfile alice/client-key.pem \
    --port "$(cat port)" 127.0.0.1 </dev/null >gnutls.log 2>&1 || :
  kill $_relay 2>/dev/null || :
  wait $_relay 2>/dev/null || :
}

# gnutls_speaks PRIORITY EXPECTED
gnutls_speaks ()
{
  gnutls_connect --priority "$1"
  if [ "$2" = none ]; then
    ! grep -q 'Handshake was completed' gnutls.log || fail "$1 was accepted"
  else
    grep -q "Description: ($2" gnutls.log || { cat gnutls.log >&2; fail "$1 does not speak $2"; }
  fi
}
gnutls_speaks NORMAL:-VERS-ALL:+VERS-TLS1.1 none
gnutls_speaks NORMAL:-VERS-ALL:+VERS-TLS1.2 TLS1.2
gnutls_speaks NORMAL:-VERS-ALL:+VERS-TLS1.3 TLS1.3
stop_server
start_server disk.qcow2 "arg=$x509,priority=NORMAL:-VERS-ALL:+VERS-TLS1.2" arg=--tls-creds=tls0
speaks TLSv1_2 TLSv1.2
speaks TLSv1_3 none
admitted alice
for who in stranger forger nobody; do
  denied $who
done
stop_server
# That the first one is refused is for its version alone.
start_server disk.qcow2 "arg=$x509,priority=NORMAL" arg=--tls-creds=tls0
speaks TLSv1_1 TLSv1.1
stop_server

# ---- pre-shared keys -------------------------------------------------------------------------

echo "== pre-shared keys"
start_server disk.qcow2 "arg=--object=tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/psk" arg=--tls-creds=tls0
admitted psk
TLS_USER=carol admitted psk
TLS_USER=mallory denied psk
denied wrong
denied alice
if plain; then fail "a client was let in without TLS"; fi
timeout 60 qemu-io --object "tls-creds-psk,id=c,endpoint=client,dir=$tmp/psk" --image-opts \
  -c 'read -q 0 1M' "driver=nbd,server.type=unix,server.path=$SOCK,tls-creds=c" || fail "qemu-io cannot use it"
timeout 60 "$NBDCOW" --list --socket="$SOCK" --tls-creds=c \
  --object="tls-creds-psk,id=c,endpoint=client,dir=$tmp/psk" | grep -q 'exports available: 1' ||
  fail "--list with a key"
stop_server

# ---- who is let in ---------------------------------------------------------------------------

echo "== authorisation"
# In the order of the certificate, as QEMU has it.
dn=O=Example,CN=alice
name=O=Example,,CN=alice
start_server disk.qcow2 "arg=$x509" arg=--tls-creds=tls0 arg=--tls-authz=who \
  "arg=--object=authz-simple,id=who,identity=$name"
admitted alice
denied bob
grep -q 'client (unix, pid .*not authorised' "$SERVER_LOG" || fail "the log does not say who was refused"
stop_server
start_server disk.qcow2 "arg=$x509" arg=--tls-creds=tls0 arg=--tls-authz=who \
  "arg=--object=authz-list,id=who,policy=deny,rules.0.match=*CN=bo?*,rules.0.policy=allow,rules.0.format=glob"
admitted bob
denied alice
stop_server
cat >who.json <<END
{ "policy": "deny", "rules": [ { "match": "$dn", "policy": "allow" } ] }
END
start_server disk.qcow2 "arg=$x509" arg=--tls-creds=tls0 arg=--tls-authz=who arg=-v \
  "arg=--object=authz-list-file,id=who,filename=$tmp/who.json"
admitted alice
denied bob
echo '{ "policy": "allow" }' >new.json
mv new.json who.json
wait_for 20 reloaded 1 || fail "the list of rules was not read again when it changed"
admitted bob
echo rubbish >who.json
wait_for 20 grep -q 'the rules in use stay' "$SERVER_LOG" || fail "no word of rules that cannot be read"
admitted bob
stop_server
start_server disk.qcow2 arg=--tls-creds=tls0 arg=--tls-authz=who \
  "arg=--object=tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/psk" \
  "arg=--object=authz-simple,id=who,identity=carol"
denied psk
TLS_USER=carol admitted psk
stop_server

echo "== per export"
qemu-img create -q -f qcow2 all.qcow2 1M
qemu-img create -q -f qcow2 secret.qcow2 2M
qemu-img create -q -f qcow2 alice.qcow2 3M
start_server disk.qcow2 "arg=$x509" arg=--tls-creds=tls0 arg=--tls=optional "arg=--control=$tmp/control" \
  "arg=--object=authz-simple,id=alice,identity=$name" \
  arg=--export=name=all,file=all.qcow2 arg=--export=name=secret,file=secret.qcow2,tls=required \
  arg=--export=name=alice,file=alice.qcow2,tls-authz=alice
[ "$(plain all)" = 1048576 ] || fail "an export for everybody needs TLS"
for export in secret alice; do
  if plain $export; then fail "$export was given away in plain text"; fi
done
timeout 60 nbdinfo --list "nbd+unix:///?socket=$SOCK" >list 2>&1 || fail "no list"
if grep -q -e secret -e alice list; then fail "exports that need TLS are listed in plain text"; fi
grep -q 'export="all"' list || fail "the export for everybody is not listed"
admitted alice all
admitted alice secret
admitted alice alice
admitted bob secret
denied bob alice
# Exports that show these images are for the same clients, unless something else is said.
PYTHONPATH=$SRCDIR timeout 60 "$PYTHON" -c '
import qmp, sys
c = qmp.Client(sys.argv[1])
for node in "all", "secret", "alice":
    c.execute("block-export-add", type="nbd", id="again-" + node, node_name=node)
c.execute("block-export-add", type="nbd", id="open", node_name="secret", tls="optional")
c.execute("block-export-add", type="nbd", id="still", node_name="alice", tls="optional")' "$tmp/control"
[ "$(plain again-all)" = 1048576 ] || fail "the same image by another name needs TLS"
[ "$(plain open)" = 2097152 ] || fail "tls=optional has no effect"
for export in again-secret again-alice still; do
  if plain $export; then fail "$export was given away in plain text"; fi
done
admitted bob again-secret
admitted alice again-alice
denied bob again-alice
denied bob still
timeout 60 "$PYTHON" -c '
import nbd, sys
h = nbd.NBD()
h.set_opt_mode(True)
h.set_request_structured_replies(False)
h.connect_unix(sys.argv[1])
# Only INFO and GO may be told that TLS is required, and only of such exports.
import errno
def refused(export, *codes):
    h.set_export_name(export)
    try:
        h.opt_info()
    except nbd.Error as e:
        assert e.errnum in codes, (export, e)
    else:
        raise AssertionError(export)
refused("secret", errno.ENOTSUP)
refused("nonesuch", errno.ENOENT)
h.set_export_name("all")
h.opt_go()
h.pread(512, 0)
h.shutdown()' "$SOCK"
stop_server

echo "== --list"
start_server disk.qcow2 "arg=$x509" arg=--tls-creds=tls0
c="tls-creds-x509,id=c,endpoint=client,dir=$tmp/alice"
timeout 60 "$NBDCOW" --list --socket="$SOCK" --tls-creds=c --object="$c,verify-peer=no" |
  grep -q 'exports available: 1' || fail "--list over TLS"
if timeout 60 "$NBDCOW" --list --socket="$SOCK" >list 2>&1; then fail "--list in plain text"; fi
stop_server

# ---- what is refused at the start ------------------------------------------------------------

echo "== credentials that are wrong"
refuse ()
{
  _object=$1
  shift
  must_refuse disk.qcow2 "arg=--object=$_object" arg=--tls-creds=tls0 -- "$@"
}
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/nonesuch" nonesuch/ca-cert.pem 'no such file'
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/alice" server-cert.pem 'no such file'
refuse "tls-creds-x509,id=tls0,endpoint=client,dir=$tmp/server" endpoint=server
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/server,priority=NONSENSE" priority=NONSENSE
refuse "tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/server" keys.psk
mkdir odd
echo 'no key' >odd/keys.psk
refuse "tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/odd" 'line 1' USER:HEX
echo 'dave:xyz' >odd/keys.psk
refuse "tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/odd" 'line 1' dave hexadecimal
echo >odd/keys.psk
refuse "tls-creds-psk,id=tls0,endpoint=server,dir=$tmp/odd" 'no user'
certificate old ours server old 'activation_date = "2020-01-01 00:00:00"' 'expiration_date = "2021-01-01 00:00:00"'
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/old" server-cert.pem expired
certificate notyet ours server notyet 'activation_date = "2090-01-01 00:00:00"' \
  'expiration_date = "2091-01-01 00:00:00"'
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/notyet" server-cert.pem 'not valid yet'
certificate mixed ours server mixed
cp theirs/ca-cert.pem mixed/
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/mixed" server-cert.pem ca-cert.pem
certificate forclient ours client someone
mv forclient/client-cert.pem forclient/server-cert.pem
mv forclient/client-key.pem forclient/server-key.pem
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/forclient" server-cert.pem 'key purpose'
certificate twokeys ours server twokeys
cp server/server-key.pem twokeys/
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/twokeys" server-key.pem
must_refuse disk.qcow2 arg=--tls-creds=tls0 -- --tls-creds=tls0 'no --object'
must_refuse disk.qcow2 "arg=$x509,verify-peer=no" arg=--tls-creds=tls0 arg=--tls-authz=who \
  arg=--object=authz-simple,id=who,identity=x -- verify-peer
must_refuse disk.qcow2 "arg=$x509" arg=--tls-creds=tls0 arg=--tls-authz=who \
  "arg=--object=authz-list-file,id=who,filename=$tmp/none.json" -- none.json
must_refuse disk.qcow2 "arg=$x509" arg=--tls-creds=tls0 arg=--tls-authz=who \
  arg=--object=authz-pam,id=who,service=nbd -- authz-pam

echo "== several certificates: the one that the client asks for by name"
cp -r server several
for n in 0 1; do
  certificate "more$n" ours server "more $n" "dns_name = more$n.example" 'expiration_days = 30'
  sed -i 's/localhost/nobody.example/' cert.tmpl
  certtool --generate-certificate --load-ca-certificate ours/ca-cert.pem --load-ca-privkey ours.key \
    --load-privkey "more$n/server-key.pem" --template cert.tmpl --outfile "more$n/server-cert.pem" 2>/dev/null
  cp "more$n/server-cert.pem" "several/server-cert-$n.pem"
  cp "more$n/server-key.pem" "several/server-key-$n.pem"
done
start_server disk.qcow2 "arg=--object=tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/several" arg=--tls-creds=tls0
# by_name NAME CN: a client that asks for NAME gets the certificate of CN.
by_name ()
{
  gnutls_connect --sni-hostname "$1"
  grep -q "subject .*CN=$2" gnutls.log || { cat gnutls.log >&2; fail "$1 got another certificate than $2"; }
}
by_name localhost disks.example.com
by_name more0.example 'more 0'
by_name more1.example 'more 1'
stop_server
# Without server-cert.pem the numbered ones do, the first gap ends them, and a pair is a pair.
rm several/server-cert.pem several/server-key.pem
mv several/server-cert-1.pem several/server-cert-2.pem
mv several/server-key-1.pem several/server-key-2.pem
start_server disk.qcow2 "arg=--object=tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/several" arg=--tls-creds=tls0
by_name more0.example 'more 0'
by_name more1.example 'more 0' # what comes after a gap does not count
stop_server
rm several/server-key-0.pem
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/several" server-cert-0.pem server-key-0.pem missing

echo "== a private key with a password"
certificate locked ours server locked
certtool --to-p8 --load-privkey locked/server-key.pem --password=hunter2 --pkcs-cipher=aes-256 \
  --outfile locked.pem 2>/dev/null
mv locked.pem locked/server-key.pem
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/locked" server-key.pem
for secret in data=hunter2 data=aHVudGVyMg==,format=base64 "file=$tmp/password"; do
  printf hunter2 >password
  start_server disk.qcow2 "arg=--object=secret,id=pw,$secret" arg=--tls-creds=tls0 \
    "arg=--object=tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/locked,passwordid=pw"
  admitted alice
  stop_server
done
# The password may itself be encrypted, as QEMU has it.
key=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
iv=202122232425262728292a2b2c2d2e2f
if command -v openssl >/dev/null 2>&1 && "$NBDCOW" --object secret,id=k,format=base64,data=AAAA --help >/dev/null; then
  encrypted=$(printf hunter2 | openssl enc -aes-256-cbc -K $key -iv $iv -base64 -A)
  start_server disk.qcow2 \
    "arg=--object=secret,id=master,format=base64,data=$(printf $key | xxd -r -p | base64)" \
    "arg=--object=secret,id=pw,format=base64,keyid=master,iv=$(printf $iv | xxd -r -p | base64),data=$encrypted" \
    arg=--tls-creds=tls0 "arg=--object=tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/locked,passwordid=pw"
  admitted alice
  # It is there when the credentials are read again.
  kill -HUP "$SERVER_PID"
  admitted alice
  stop_server
fi
refuse "tls-creds-x509,id=tls0,endpoint=server,dir=$tmp/locked,passwordid=nonesuch" passwordid=nonesuch
check_image disk.qcow2
