#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Metrics: what an independent parser makes of them, that they count what was done, that nobody who
# misuses the socket is in the way of others, and that what contrib/monitoring looks at is there.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
FRONTEND=nbdcow
requires_frontend
requires qemu-img curl
requires_python_nbd

probe=$("$NBDCOW" --metrics=unix:"$tmp/probe" --socket="$tmp/probe.sock" nothing 2>&1 || :)
case $probe in *libmicrohttpd*) skip "nbdcow was built without libmicrohttpd" ;; esac
"$PYTHON" -c 'import prometheus_client.openmetrics.parser' 2>/dev/null ||
  skip "no prometheus_client for $PYTHON (Debian: python3-prometheus-client)"

METRICS=$tmp/metrics
qemu-img create -q -f qcow2 one.qcow2 64M
truncate -s 1M two.raw
start_server one.qcow2 arg=--metrics="unix:$METRICS" \
  arg=--export='name=it"s a \ "" two,file=two.raw,format=raw,max-connections=1' arg=--handshake-limit=4

# scrape FILE [curl options]
scrape ()
{
  _to=$1
  shift
  curl -sS --fail --max-time 20 --unix-socket "$METRICS" "$@" -o "$_to" http://localhost/metrics
}

cat >values.py <<'END'
import math
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as older


class Values(dict):
    """Samples by name and labels; what the parser does not find fault with, and we do."""

    def __init__(self, filename, parser=openmetrics):
        super().__init__()
        with open(filename, encoding="utf-8", newline="") as f:
            text = f.read()
        self.families = list(parser(text))
        for family in self.families:
            assert family.documentation, family.name
            for s in family.samples:
                key = (s.name, frozenset(s.labels.items()))
                assert key not in self, key
                assert math.isfinite(s.value) and s.value >= 0, (key, s.value)
                self[key] = s.value

    def get_value(self, name, **labels):
        key = (name, frozenset(labels.items()))
        if key not in self:
            sys.exit("there is no %s with %s" % (name, labels))
        return self[key]

    def expect(self, value, name, **labels):
        got = self.get_value(name, **labels)
        if got != value:
            sys.exit("%s with %s: %s instead of %s" % (name, labels, got, value))


def histogram(values, name, **labels):
    """The cumulated counts, by their ends."""
    found = []
    for (n, l), v in values.items():
        l = dict(l)
        if n == name + "_bucket":
            le = float(l.pop("le"))
            if l == labels:
                found.append((le, v))
    found.sort()
    assert found and found[-1][0] == math.inf, (name, labels)
    assert [v for _, v in found] == sorted(v for _, v in found)
    assert found[-1][1] == values.get_value(name + "_count", **labels)
    return found
END

echo "== counted exactly"
scrape before.om -H 'Accept: application/openmetrics-text; version=1.0.0'
cat >count.py <<'END'
import os
import subprocess
import sys
import time
import nbd
from values import Values, histogram

uri, sock = sys.argv[1], sys.argv[2]
strange = 'it"s a \\ "" two'


def scrape():
    subprocess.run(["curl", "-sS", "--fail", "--max-time", "20", "--unix-socket", os.environ["METRICS"],
                    "-H", "Accept: application/openmetrics-text", "-o", "now.om",
                    "http://localhost/metrics"], check=True)
    return Values("now.om")


def settled():
    """What is there when all that was answered is counted: the time that it took, a moment after the reply."""
    for _ in range(600):
        v = scrape()
        total = "nbdcow_export_requests_total"
        if all(v.get_value("nbdcow_export_request_duration_seconds_count", **dict(labels)) == value
               for (name, labels), value in v.items() if name == total and value) and \
                not any(value for (name, _), value in v.items() if name == "nbdcow_export_requests_in_flight"):
            return v
        time.sleep(0.1)
    sys.exit("there are requests that are never counted")


h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.connect_uri(uri)
for i in range(10):
    h.pwrite(b"x" * 65536, i * 65536)
for i in range(7):
    h.pread(512, i * 65536)
h.pread(9 << 20, 0)          # long: several pieces, one request
h.pwrite(b"y" * (9 << 20), 0)
h.flush()
h.pwrite(b"z" * 512, 0, nbd.CMD_FLAG_FUA)
h.trim(65536, 0)
h.zero(65536, 65536)
h.cache(65536, 0)
h.block_status(1 << 20, 0, lambda *a: 0)
rejected = 0
for what in (lambda: h.pread(512, 64 << 20), lambda: h.pwrite(b"1", 64 << 20)):
    try:
        what()
    except nbd.Error:
        rejected += 1
assert rejected == 2

v = settled()
e = {"export": ""}
for op, n, size in (("read", 8, 7 * 512 + (9 << 20)), ("write", 12, 10 * 65536 + (9 << 20) + 512),
                    ("flush", 1, 0), ("trim", 1, 65536), ("zero", 1, 65536), ("cache", 1, 65536),
                    ("block_status", 1, 0), ("resize", 0, 0)):
    for prefix, labels in (("nbdcow_export", e), ("nbdcow", {})):
        v.expect(n, prefix + "_requests_total", operation=op, **labels)
        v.expect(size, prefix + "_request_bytes_total", operation=op, **labels)
        v.expect(0, prefix + "_request_errors_total", operation=op, **labels)
    if n > 0:
        d = histogram(v, "nbdcow_export_request_duration_seconds", operation=op, **e)
        assert d[-1][1] == n, (op, d)
        assert d[0][1] < n or v.get_value("nbdcow_export_request_duration_seconds_sum",
                                          operation=op, **e) < n * 2e-6
v.expect(2, "nbdcow_export_requests_rejected_total", **e)
v.expect(0, "nbdcow_export_requests_in_flight", **e)
v.expect(1, "nbdcow_export_clients", **e)
v.expect(1, "nbdcow_clients")
v.expect(2, "nbdcow_exports")
v.expect(64 << 20, "nbdcow_export_size_bytes", **e)
v.expect(0, "nbdcow_export_failed", **e)
v.expect(1, "nbdcow_export_info", file="one.qcow2", format="qcow2", **e)
v.expect(0, "nbdcow_export_clients", export=strange)
v.expect(1 << 20, "nbdcow_export_size_bytes", export=strange)
v.expect(1, "nbdcow_export_info", file="two.raw", format="raw", export=strange)
# Two that asked for stable storage, one after the other.
assert histogram(v, "nbdcow_export_flush_group_requests", **e)[0] == (1, 2)
v.expect(2, "nbdcow_export_flush_group_requests_sum", **e)
assert v.get_value("nbdcow_export_image_flushes_total", **e) >= 2
assert v.get_value("nbdcow_export_image_metadata_flushes_total", **e) >= 1
high = v.get_value("nbdcow_export_highest_offset_bytes", **e)
assert 9 << 20 < high < 12 << 20, high
assert v.get_value("nbdcow_export_file_bytes", **e) >= 9 << 20
assert v.get_value("nbdcow_export_allocated_bytes", **e) >= 8 << 20
assert v.get_value("nbdcow_export_cache_hits_total", cache="l2", **e) > 10
assert v.get_value("nbdcow_worker_threads") >= 1

# Writes that come together, in place, go to the file together.
done = []
for i in range(64):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(4096)), (2 << 20) + i * 4096,
                 completion=lambda err: done.append(err) or 1)
while len(done) < 64:
    h.poll(-1)
w = settled()
merged = histogram(w, "nbdcow_export_merged_write_requests", **e)
before = v.get_value("nbdcow_export_merged_write_requests_sum", **e)
assert w.get_value("nbdcow_export_merged_write_requests_sum", **e) <= before + 64
w.expect(12 + 64, "nbdcow_export_requests_total", operation="write", **e)

# The export that may have one client refuses the second.
one, two = nbd.NBD(), nbd.NBD()
one.set_export_name(strange)
two.set_export_name(strange)
one.connect_unix(sock)
one.pread(512, 0)
try:
    two.connect_unix(sock)
    sys.exit("the second client was let in")
except nbd.Error:
    pass
x = settled()
x.expect(1, "nbdcow_connections_refused_total")
x.expect(1, "nbdcow_export_clients", export=strange)
x.expect(1, "nbdcow_export_requests_total", export=strange, operation="read")
x.expect(9, "nbdcow_requests_total", operation="read")
for key, value in v.items():
    if key[0].endswith(("_total", "_bucket", "_sum", "_count")):
        assert x[key] >= value, key
h.shutdown()
one.shutdown()
END
METRICS=$METRICS PYTHONPATH=. timeout 100 "$PYTHON" count.py "$URI" "$SOCK" || fail "what was counted"

echo "== a handshake that never ends is counted when it is dropped"
"$PYTHON" - "$SOCK" <<'END'
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.settimeout(60)
while s.recv(4096):
    pass
END
scrape now.om -H 'Accept: application/openmetrics-text'
grep -q '^nbdcow_handshakes_dropped_total{reason="timeout"} 1$' now.om || fail "not counted: $(grep dropped now.om)"

echo "== the older format says the same"
scrape old.txt
head -n 1 old.txt | grep -q '^# HELP nbdcow_build_info ' || fail "not the older format"
PYTHONPATH=. "$PYTHON" - <<'END'
from values import Values, older, openmetrics
new, old = Values("now.om", openmetrics), Values("old.txt", older)
assert set(new) == set(old), set(new) ^ set(old)
END
if command -v promtool >/dev/null; then
  promtool check metrics <old.txt >promtool.log 2>&1 || fail "promtool: $(cat promtool.log)"
fi

echo "== dashboard and rules look at what is there"
monitoring=$SRCDIR/../contrib/monitoring
if command -v promtool >/dev/null; then
  promtool check rules "$monitoring/alerts.yml" >promtool.log || fail "$(cat promtool.log)"
fi
PYTHONPATH=. "$PYTHON" - "$monitoring" <<'END'
import json, re, sys
from values import Values

there = {name for name, _ in Values("now.om")} | {f.name for f in Values("now.om").families}
# Families that have no sample here: nothing is on a block device.
there |= {"nbdcow_export_device_bytes", "nbdcow_export_watermark_bytes"}
dashboard = json.load(open(sys.argv[1] + "/grafana-dashboard.json"))
expressions = [t["expr"] for p in dashboard["panels"] for t in p["targets"]]
expressions += [v["query"]["query"] for v in dashboard["templating"]["list"] if isinstance(v["query"], dict)]
assert len(expressions) > 20
ids = [p["id"] for p in dashboard["panels"]]
assert len(ids) == len(set(ids))
text = "\n".join(expressions) + open(sys.argv[1] + "/alerts.yml").read()
names = set(re.findall(r"\bnbdcow_[a-z0-9_]+", text))
assert len(names) > 20
missing = {n for n in names if n not in there}
assert not missing, missing
# What the dashboard asks, as rules, so that Prometheus reads it: with its variables filled in.
with open("dashboard.yml", "w") as f:
    json.dump({"groups": [{"name": "dashboard", "rules": [
        {"record": "panel:%d" % i, "expr": t["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$export", ".*")}
        for i, t in enumerate(t for p in dashboard["panels"] for t in p["targets"])]}]}, f)
END
if command -v promtool >/dev/null; then
  promtool check rules dashboard.yml >promtool.log 2>&1 || fail "dashboard: $(cat promtool.log)"
  # It is read, and not only looked at.
  sed 's/sum by (/sum by ((/' dashboard.yml >broken.yml
  ! promtool check rules broken.yml >promtool.log 2>&1 || fail 'promtool finds nothing wrong with what is wrong'
fi

echo "== requests that are not for metrics"
code ()
{
  curl -sS --max-time 20 --unix-socket "$METRICS" -o /dev/null -w '%{http_code}' "$@"
}
[ "$(code http://localhost/)" = 200 ] || fail "GET /"
[ "$(code http://localhost/other)" = 404 ] || fail "GET /other"
[ "$(code -X POST -d x=y http://localhost/metrics)" = 405 ] || fail "POST"
[ "$(code -X DELETE http://localhost/metrics)" = 405 ] || fail "DELETE"
[ "$(code -I http://localhost/metrics)" = 200 ] || fail "HEAD"
[ "$(code -H "X: $(printf '%065536d' 0)" http://localhost/metrics)" != 200 ] || fail "headers of 64 KiB"
curl -sS --max-time 20 --unix-socket "$METRICS" -o /dev/null -D headers \
  -H 'Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1' http://localhost/metrics
grep -qi '^content-type: application/openmetrics-text; version=1.0.0; charset=utf-8' headers ||
  fail "content type: $(cat headers)"

echo "== those who hold on to their connections are bounded, and harm nobody"
"$PYTHON" - "$METRICS" "$URI" <<'END'
import socket, sys, time
import nbd

held = []
for i in range(100):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    try:
        s.connect(sys.argv[1])
        s.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ")
    except OSError:
        continue
    held.append(s)
# Whoever serves data does not notice.
h = nbd.NBD()
h.connect_uri(sys.argv[2])
for i in range(100):
    h.pread(4096, 0)
h.shutdown()
# They are let go of in the end, though they send a byte now and then.
begin = time.monotonic()
for s in held[:3]:
    try:
        while s.recv(4096):
            pass
    except OSError:
        pass
assert time.monotonic() - begin < 60
END
wait_for 60 scrape again.om || fail "no more metrics after that"
stop_server

echo "== TCP: the loopback interface, unless told otherwise"
# Free ports: whoever else takes one in between makes nbdcow say so.
for try in 1 2 3 4 5; do
  port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  if try_server one.qcow2 arg=--metrics="$port"; then break; fi
  [ "$try" != 5 ] || fail "no port: $(cat "$SERVER_LOG")"
done
curl -sS --fail --max-time 20 -o tcp.txt "http://127.0.0.1:$port/metrics"
grep -q '^nbdcow_exports 1$' tcp.txt || fail "metrics over TCP"
if command -v ss >/dev/null; then
  ss -Hltn "sport = :$port" >ss.log
  awk '$4 !~ /^(127\.|\[::1\])/ { exit 1 }' ss.log || fail "not only on the loopback interface: $(cat ss.log)"
fi
serving=$SERVER_PID
refused two.raw format=raw arg=--metrics="127.0.0.1:$port" -- "127.0.0.1" "in use" || fail "a port that is taken: $REASON"
stop_server "$serving"
for bad in '' : 127.0.0.1: ::1:9754 unix:; do
  must_refuse one.qcow2 arg=--metrics="$bad" -- --metrics "$bad"
done
