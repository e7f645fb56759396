#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcow-img and encryption beside qemu-img: what one makes the other reads, writes and checks, in
# ciphers and modes drawn from SEED (all that QEMU can make with ALL=1); what info says; keys that one adds or erases; and a header
# that cryptsetup made.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires "${QEMU_IMG:=qemu-img}" "${QEMU_IO:=qemu-io}"
requires_python
use_seed
export NBDCOW_IMG QEMU_IMG QEMU_IO SRCDIR

cat >encrypt.py <<'END'
import itertools, json, os, random, shutil, struct, subprocess, sys

IMG, QEMU_IMG, QEMU_IO = (os.environ[v] for v in ("NBDCOW_IMG", "QEMU_IMG", "QEMU_IO"))
DERIVE = "sh", os.environ["SRCDIR"] + "/derive"
rng = random.Random(os.environ["SEED"])
SIZE = 1 << 20
SECRETS = {"one": b"first secret", "two": "zwei Schl\u00fcssel".encode(), "three": b"3", "wrong": b"first secre"}
OBJECTS = []
for name, value in SECRETS.items():
    open(name, "wb").write(value)
    OBJECTS += ["--object", "secret,id=%s,file=%s" % (name, name)]


def run(*args, ok=True):
    p = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=200)
    if ok and p.returncode:
        sys.exit("%s: %d: %s" % (" ".join(args), p.returncode, p.stderr))
    return p


def spec(name, secret="one"):
    return "driver=qcow2,encrypt.key-secret=%s,file.filename=%s" % (secret, name)


def options(**o):
    o = {"format": "luks", "key-secret": "one", "iter-time": 1, **{k.replace("_", "-"): v for k, v in o.items()}}
    return ",".join("encrypt.%s=%s" % i for i in o.items())


def make_theirs(name, opts, more=""):
    """False: QEMU cannot."""
    return run(*DERIVE, QEMU_IMG, "create", "-q", *OBJECTS, "-f", "qcow2", "-o",
               opts.replace("iter-time=1", "iter-time=10") + more, name, str(SIZE), ok=False).returncode == 0


def make_ours(name, opts, more=""):
    return run(IMG, "create", "-q", *OBJECTS, "-f", "qcow2", "-o", opts + more, name, str(SIZE), ok=False)


def model():
    data = bytearray(SIZE)
    for _ in range(12):
        n = rng.choice([512, 4096, 70000 // 512 * 512])
        at = rng.randrange(0, (SIZE - n) // 512) * 512
        data[at : at + n] = bytes([rng.randrange(1, 256)]) * n
    open("model", "wb").write(data)
    return data


def same(name):
    """Both read the model, and find the image sound."""
    raw = "driver=raw,file.filename=model"
    run(IMG, "compare", "-q", *OBJECTS, "--image-opts", spec(name), raw)
    run(QEMU_IMG, "compare", "-q", *OBJECTS, "--image-opts", spec(name), raw)
    run(QEMU_IMG, "check", "-q", *OBJECTS, "--image-opts", spec(name))
    run(IMG, "check", "-q", name)


def write_by_qemu(name):
    run(QEMU_IMG, "convert", "-n", *OBJECTS, "--target-image-opts", "-f", "raw", "model", spec(name))


def info(tool, name):
    j = json.loads(run(tool, "info", "--output=json", name).stdout)
    e = j["format-specific"]["data"]["encrypt"]
    e.pop("detached-header", None)
    return j["encrypted"], e


# ---- what QEMU can make, and what we make -------------------------------------------------------

ciphers = ["aes-128", "aes-192", "aes-256", "serpent-128", "serpent-256", "twofish-128", "twofish-256", "cast5-128"]
both = ours_only = 0
sample = 99 if os.environ.get("ALL") else 5 # making one takes QEMU a second or two
kinds = [dict(cipher_alg=c, cipher_mode=m, ivgen_alg=i) for c, m, i in itertools.product(
    ciphers, ["xts", "cbc"], ["plain64", "essiv"])]
kinds += [dict(cipher_alg="aes-256", cipher_mode=m, ivgen_alg="plain", hash_alg=h) for m, h in
    [("xts", "sha1"), ("cbc", "sha224"), ("ecb", "sha384"), ("ctr", "sha512"), ("xts", "md5"), ("xts", "ripemd160")]]
rng.shuffle(kinds)
for kind in kinds:
    if kind["cipher_alg"] == "aes-192" and kind["cipher_mode"] == "cbc":
        continue  # QEMU's assertions do not like its key material, which ends inside a sector
    theirs = both < sample and make_theirs("theirs", options(**kind))
    p = make_ours("ours", options(**kind))
    if p.returncode:
        assert not theirs, "%s: QEMU makes it, we do not: %s" % (kind, p.stderr)
        assert p.stderr.count("\n") == 1, p.stderr
        continue
    readable = run(QEMU_IMG, "check", "-q", *OBJECTS, "--image-opts", spec("ours"), ok=False)
    if not theirs:
        # What its library cannot do; and some that it reads and does not make.
        ours_only += 1
        if readable.returncode:
            continue
    else:
        both += 1
    model()
    for name in ["ours"] + ["theirs"] * theirs:
        write_by_qemu(name)
        same(name)
        assert info(IMG, name) == info(QEMU_IMG, name), (info(IMG, name), info(QEMU_IMG, name))
    if not theirs:
        continue
    mine, other = info(IMG, "ours")[1], info(IMG, "theirs")[1]
    for e in (mine, other):
        for k in ("uuid", "master-key-iters"):
            e.pop(k)
        for s in e["slots"]:
            s.pop("iters", None)
    assert mine == other, (mine, other)
print("%d kinds that QEMU made, %d that it did not" % (both, ours_only))
assert both >= 5

# Beside other options; what is preallocated reads as zeros.
for more in (",cluster_size=512", ",cluster_size=2M", ",compat=0.10", ",compat=0.10,preallocation=metadata", ",preallocation=metadata", ",preallocation=full", ",extended_l2=on"):
    p = make_ours("ours", options(), more)
    if p.returncode and "extended_l2" in more and "extended_l2" in p.stderr:
        continue
    assert p.returncode == 0, p.stderr
    open("model", "wb").write(bytes(SIZE))
    same("ours")
    model()
    write_by_qemu("ours")
    same("ours")

# The same words in the report.
for opts in (options(), options(cipher_alg="aes-128", cipher_mode="cbc", ivgen_alg="essiv", ivgen_hash_alg="sha256", hash_alg="sha1")):
    opts = opts.replace("iter-time=1", "iter-time=20")
    theirs = run(*DERIVE, QEMU_IMG, "create", *OBJECTS, "-f", "qcow2", "-o", opts, "x", "1M")
    mine = run(IMG, "create", *OBJECTS, "-f", "qcow2", "-o", opts, "x", "1M")
    assert mine.stdout == theirs.stdout, (mine.stdout, theirs.stdout)


# ---- what is refused --------------------------------------------------------------------------------


def refused(text, *args):
    p = run(IMG, *args, ok=False)
    assert p.returncode == 1 and p.stderr.count("\n") == 1 and text in p.stderr, (args, p.returncode, p.stderr)


def refused_create(text, opts):
    if os.path.exists("x"):
        os.unlink("x")
    refused(text, "create", *OBJECTS, "-f", "qcow2", "-o", opts, "x", "1M")
    assert not os.path.exists("x"), opts


refused_create("encrypt.key-secret", "encrypt.format=luks")
refused_create("encrypt.format=luks", "encrypt.key-secret=one")
refused_create("no --object has that id", "encrypt.format=luks,encrypt.key-secret=none")
refused_create("legacy AES", "encryption=on")
refused_create("legacy AES", "encrypt.format=aes,encrypt.key-secret=one")
refused_create("encrypt.nonsense", options(nonsense=1))
refused_create("rot13", options(cipher_alg="rot13-128"))
refused_create("aes", options(cipher_alg="aes"))
refused_create("aes", options(cipher_alg="aes-1024"))
refused_create("gcm", options(cipher_mode="gcm"))
refused_create("random", options(ivgen_alg="random"))
refused_create("essiv", options(ivgen_alg="essiv", ivgen_hash_alg="sha1"))
refused_create("crc32", options(hash_alg="crc32"))
refused_create("iter-time", options(iter_time=0))

model()
assert make_theirs("theirs", options())
write_by_qemu("theirs")
raw = "driver=raw,file.filename=model"
for opts, text in ((spec("theirs", "wrong"), "the key is not right"), ("driver=qcow2,file.filename=theirs", "a key is needed")):
    p = run(IMG, "compare", *OBJECTS, "--image-opts", opts, raw, ok=False)
    assert p.returncode > 1 and text in p.stderr, p.stderr


# ---- keys -------------------------------------------------------------------------------------------


def opens(name, secret):
    a = run(IMG, "compare", "-q", *OBJECTS, "--image-opts", spec(name, secret), raw, ok=False).returncode == 0
    b = run(QEMU_IMG, "check", "-q", *OBJECTS, "--image-opts", spec(name, secret), ok=False).returncode == 0
    assert a == b, (name, secret, a, b)
    return a


def amend(tool, name, secret, opts, *more):
    return run(*DERIVE, tool, "amend", *OBJECTS, *more, "-o", opts, "--image-opts", spec(name, secret), ok=False)


for first, second in ((IMG, QEMU_IMG), (QEMU_IMG, IMG)):
    p = amend(first, "theirs", "one", "encrypt.state=active,encrypt.new-secret=two,encrypt.iter-time=10")
    assert p.returncode == 0, p.stderr
    assert opens("theirs", "two") and opens("theirs", "one") and not opens("theirs", "three")
    p = amend(second, "theirs", "two", "encrypt.state=active,encrypt.new-secret=three,encrypt.keyslot=6,encrypt.iter-time=10")
    assert p.returncode == 0, p.stderr
    assert opens("theirs", "three")
    assert [s["active"] for s in info(IMG, "theirs")[1]["slots"]] == [True, True, False, False, False, False, True, False]
    assert info(IMG, "theirs") == info(QEMU_IMG, "theirs")
    p = amend(first, "theirs", "one", "encrypt.state=inactive,encrypt.keyslot=6")
    assert p.returncode == 0, p.stderr
    assert not opens("theirs", "three")
    p = amend(second, "theirs", "one", "encrypt.state=inactive,encrypt.old-secret=two")
    assert p.returncode == 0, p.stderr
    assert not opens("theirs", "two") and opens("theirs", "one")
    for tool in (IMG, QEMU_IMG):
        for opts in ("encrypt.state=inactive,encrypt.old-secret=one",
                     "encrypt.state=inactive,encrypt.keyslot=0",
                     "encrypt.state=inactive,encrypt.old-secret=two",
                     "encrypt.state=inactive",
                     "encrypt.state=inactive,encrypt.old-secret=one,encrypt.new-secret=two",
                     "encrypt.state=active",
                     "encrypt.state=active,encrypt.new-secret=two,encrypt.keyslot=0",
                     "encrypt.state=active,encrypt.new-secret=two,encrypt.keyslot=8",
                     "encrypt.state=active,encrypt.new-secret=two,encrypt.old-secret=one",
                     "encrypt.state=nonsense", "encrypt.new-secret=two"):
            before = open("theirs", "rb").read()
            p = amend(tool, "theirs", "one", opts)
            assert p.returncode == 1, (tool, opts)
            assert open("theirs", "rb").read() == before, (tool, opts)
    same("theirs")
p = amend(IMG, "theirs", "one", "encrypt.state=inactive,encrypt.keyslot=0", "--force")
assert p.returncode == 0, p.stderr
assert not opens("theirs", "one")

# ---- cryptsetup -------------------------------------------------------------------------------------

if not shutil.which("cryptsetup"):
    print("without cryptsetup, whose headers are not tried")
    sys.exit(0)
for cipher, bits, hash in (("aes-xts-plain64", 512, "sha256"), ("aes-cbc-essiv:sha256", 256, "sha1"), ("serpent-xts-plain64", 256, "sha512")):
    with open("header", "wb") as f:
        f.truncate(8 << 20)
    p = subprocess.run(["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks1", "--pbkdf-force-iterations", "1000",
                        "-c", cipher, "-s", str(bits), "-h", hash, "header", "one"],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    if p.returncode:
        print("cryptsetup cannot %s here: %s" % (cipher, p.stdout.strip()))
        continue
    name, mode = cipher.split("-", 1)
    x = mode.startswith("xts")
    r = make_ours("ours", options(cipher_alg="%s-%d" % (name, bits // (2 if x else 1)), cipher_mode=mode[:3],
                                  ivgen_alg="plain64" if x else "essiv", hash_alg=hash))
    assert r.returncode == 0, r.stderr
    data = bytearray(open("ours", "rb").read())
    at = data.index(b"LUKS\xba\xbe")
    length = struct.unpack(">Q", data[data.index(b"\x05\x37\xbe\x77\0\0\0\x10") + 16 :][:8])[0]
    header = open("header", "rb").read()[:length]
    data[at : at + length] = header
    open("ours", "wb").write(data)
    run(IMG, "check", "-q", "ours")
    model()
    readable = run(QEMU_IMG, "check", "-q", *OBJECTS, "--image-opts", spec("ours"), ok=False).returncode == 0
    if readable:
        write_by_qemu("ours")
        same("ours")
    else:
        run(IMG, "compare", "-q", *OBJECTS, "--image-opts", spec("ours"), spec("ours"))
    p = amend(IMG, "ours", "one", "encrypt.state=active,encrypt.new-secret=two,encrypt.iter-time=10")
    assert p.returncode == 0, p.stderr
    with open("header", "r+b") as f:
        f.write(open("ours", "rb").read()[at : at + length])
    for secret, works in (("one", True), ("two", True), ("wrong", False)):
        p = subprocess.run(["cryptsetup", "open", "--test-passphrase", "--type", "luks1", "--key-file", secret, "header"],
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        assert (p.returncode == 0) == works, (secret, p.returncode, p.stdout)
    print("cryptsetup %s%s" % (cipher, "" if readable else " (which this QEMU does not read)"))
END
"$PYTHON" encrypt.py
