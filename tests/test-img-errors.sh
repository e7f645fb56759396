#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# What nbdcow-img says when something is wrong, sub-command by sub-command: one line that names the thing and what it is about, and
# the exit status that qemu-img has for the same words.  Nothing that is refused changes a disk.
#
# A row of the table: the exit status, the words, and after "=>" a regular expression that the line matches.  "qemu N" before "=>"
# says that qemu-img ends with N, and why it should is in the manual (formats that are not here, what takes no default that a
# guest could choose); "qemu -" that it has no such command or option, or that version 7.2 does something else altogether.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires qemu-img qemu-io
requires_python
in_memory 200
export NBDCOW_IMG

qemu-img create -q -f qcow2 disk.qcow2 16M
qemu-io -f qcow2 -c 'write -q 0 4M' disk.qcow2
qemu-img snapshot -c s disk.qcow2
qemu-img bitmap --add disk.qcow2 b
qemu-img create -q -f qcow2 other.qcow2 16M
qemu-img create -q -f qcow2 small.qcow2 1M
qemu-img create -q -f raw raw.img 1M
head -c 1048576 /dev/zero | tr '\0' x >garbage
qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 16M
qemu-img create -q -f qcow2 -b other.qcow2 -F qcow2 top.qcow2
qemu-img create -q -f qcow2 -u -b away.qcow2 -F qcow2 lost.qcow2 16M
qemu-img create -q -f qcow2 -o data_file=d.data data.qcow2 1M
mv d.data d.away
qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=1 one.qcow2 1M
qemu-io -f qcow2 -c 'write -q 0 64k' one.qcow2
printf secret >key
printf wrong >wrongkey
# (qemu-img gives up on a busy machine, where it cannot tell how long a key takes.)
"$NBDCOW_IMG" create -q -f qcow2 --object secret,id=k,file=key \
  -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10 luks.qcow2 1M
mkdir dir
"$PYTHON" - <<'END'
def changed(old, new, change):
    d = bytearray(open(old, "rb").read())
    d = change(d) or d
    open(new, "wb").write(d)

def put(at, value, n):
    def change(d):
        d[at:at + n] = value.to_bytes(n, "big")
    return change

def forget_format(d):
    at = d.index(bytes.fromhex("e2792aca"))
    d[at:at + 4] = b"none"

changed("top.qcow2", "noformat.qcow2", forget_format)
changed("other.qcow2", "corrupt.qcow2", put(72, 2, 8))
changed("other.qcow2", "feature.qcow2", put(72, 1 << 61, 8))
changed("other.qcow2", "clusters.qcow2", put(20, 40, 4))
changed("other.qcow2", "reftable.qcow2", put(48, 513, 8))
changed("other.qcow2", "cut.qcow2", lambda d: d[:150000])
END
cp other.qcow2 inuse.qcow2
for image in disk other top small v2 one; do
  cp $image.qcow2 $image.before
done
# Open for writing until the end; it prompts when it has the lock.
mkfifo hold
qemu-io -f qcow2 inuse.qcow2 <hold >prompt 2>&1 &
track $!
exec 9>hold
wait_for 30 grep -q '^qemu-io>' prompt || fail "qemu-io does not open the image: $(cat prompt)"

cat >table <<'END_OF_TABLE'
# What all of them have in common: COMMAND stands for each, with an image that it would take.
1 COMMAND(nothere.qcow2) => ^nothere.qcow2: cannot open.*: No such file
1 COMMAND(dir) => ^dir: is a directory, not a
1 COMMAND(-f qcow2 garbage) => ^garbage: is not a qcow2 image.*format raw
1 COMMAND(clusters.qcow2) => ^clusters.qcow2: cluster_bits is 40, should be 9 to 21
1 COMMAND(feature.qcow2) => ^feature.qcow2: incompatible feature bit 61
1 COMMAND(-f vmdk disk.qcow2) qemu - => ^format 'vmdk' is not known: it is qcow2 or raw
1 COMMAND(--nonesuch disk.qcow2) => : unknown option '--nonesuch'; 'nbdcow-img [a-z]* --help' lists them
1 COMMAND(disk.qcow2 -f) => : option '-f' needs an argument
1 COMMAND(--object secret,id=x disk.qcow2) => 'data' and 'file' is wanted
1 COMMAND(--object nonesuch,id=x disk.qcow2) => nonesuch: one of secret,
1 COMMAND(--key-file=nothere disk.qcow2) qemu - => --key-file: nothere: No such file
1 COMMAND(--backing-mode=x disk.qcow2) qemu - => --backing-mode 'x' is not known: it is recorded, same-dir, any, probe or none
1 COMMAND(--data-file-policy=x disk.qcow2) qemu - => --data-file-policy 'x' is not known: it is same-dir, any or none
1 COMMAND(--image-opts driver=qcow2,file.filename=nothere.qcow2) => ^nothere.qcow2: cannot open.*: No such file
1 COMMAND(json:{) qemu - => json: image name: not valid JSON
1 WRITE(inuse.qcow2) => ^inuse.qcow2: the image is in use by another process: 'lsof inuse.qcow2' says which
1 WRITE(corrupt.qcow2) => ^corrupt.qcow2: the image is marked corrupt .* run nbdcow-img check -r all
1 WRITE(reftable.qcow2) => ^reftable.qcow2: refcount_table offset 0x201 .*nbdcow-img check -r all
1 WRITE(-U disk.qcow2) qemu - => -U
1 READ(inuse.qcow2) => ^inuse.qcow2: .* in use by another process that writes it: 'lsof inuse.qcow2' says which; .*: -U$
1 READ(lost.qcow2) => ^lost.qcow2: cannot open backing file 'away.qcow2'.*No such file
1 READ(luks.qcow2) => ^luks.qcow2: .*a key is needed
1 READ(--key-file=wrongkey luks.qcow2) qemu - => ^luks.qcow2: the key is not right
1 READ(data.qcow2) => ^data.qcow2: cannot open data file 'd.data' .*d.data: .*No such file
1 READ(noformat.qcow2) qemu - => its format is not recorded, .*rebase -u -F FORMAT -b 'other.qcow2'

1 nonesuch => no command 'nonesuch'; 'nbdcow-img --help' lists them
1 --nonesuch => no command '--nonesuch'; 'nbdcow-img --help' lists them

1 info => info: one file name is needed, 0 were given
1 info disk.qcow2 other.qcow2 => info: one file name is needed, 2 were given
1 info --output=xml disk.qcow2 => --output 'xml' is not known: it is human or json
1 info -t none2 disk.qcow2 => cache mode 'none2' is not known: it is writeback
1 info "" => the name of the image file is empty
1 info --backing-chain lost.qcow2 => ^away.qcow2: cannot open: No such file
1 info nbd+unix:///x?socket=nothere => ^nbd\+unix:///x\?socket=nothere: .*(No such file|built without)

63 check raw.img => ^raw.img: a raw image has nothing that could be checked
1 check -r some disk.qcow2 => -r 'some' is not known: it is leaks or all
1 check -r all -U disk.qcow2 => -U cannot be used with -r
1 check cut.qcow2 qemu - => ^cut.qcow2: truncated: the L1 table ends at byte 196616, the file at byte 150000
1 check --output=xml disk.qcow2 => --output 'xml' is not known: it is human or json
1 check -T none2 disk.qcow2 => cache mode 'none2' is not known
1 check -r all inuse.qcow2 => ^inuse.qcow2: the image is in use by another process: 'lsof
1 check --dry-run disk.qcow2 qemu - => give -r leaks or -r all
1 check -r all --journal=key disk.qcow2 qemu - => journal key: it is there already
1 check -r all --journal=nodir/j disk.qcow2 qemu - => journal nodir/j: No such file
1 check -r all --state-dir=x disk.qcow2 qemu - => --state-dir 'x' is neither an absolute name nor off

1 map -s 1x disk.qcow2 => start offset '1x' is not a size: .*k, M, G, T, P or E
1 map -l -1 disk.qcow2 => '-1' is not a size
1 map --output=xml disk.qcow2 => --output 'xml' is not known: it is human, json or svg

1 create => create: no file name
1 create new => ^new: say how large
1 create -f qcow2 new abc => size 'abc' is not a size
1 create -f qcow2 new 1.5 => size '1.5' is not a size
1 create -f qcow2 new 8E => size '8E' is too large
1 create -f vmdk new 1M qemu 0 => format 'vmdk' is not known: it is qcow2 or raw
1 create -f qcow2 -o nonesuch=1 new 1M => option 'nonesuch' is not known for format qcow2; '-o help' lists
1 create -f qcow2 -o cluster_size=3k new 1M => cluster_size '3k' is not a power of two from 512 to 2M
1 create -f qcow2 -o cluster_size=4M new 1M => cluster_size '4M' is not a power of two from 512 to 2M
1 create -f qcow2 -o cluster_size=512 new 1P => ^new: size 1125899906842624 is too large for cluster size 512: .*use larger clusters
1 create -f qcow2 -o refcount_bits=3 new 1M => refcount_bits '3' is not a power of two from 1 to 64
1 create -f qcow2 -o compat=v4 new 1M => compat 'v4' is not known: it is v2
1 create -f qcow2 -o compat=v2,refcount_bits=1 new 1M => refcount_bits 1 needs version 3
1 create -f qcow2 -o compat=v2,lazy_refcounts=on new 1M => lazy refcounts need version 3
1 create -f qcow2 -o compat=v2,compression_type=zstd new 1M => zstd needs version 3
1 create -f qcow2 -o compression_type=lzo new 1M => compression_type 'lzo' is not known: it is zlib or zstd
1 create -f qcow2 -o extended_l2=on,cluster_size=4k new 1M => cluster size 4096 is too small .*16384
1 create -f qcow2 -o preallocation=some new 1M => preallocation 'some' is not known: it is off, metadata, falloc or full
1 create -f qcow2 -o lazy_refcounts=maybe new 1M => lazy_refcounts 'maybe' is neither on nor off
1 create -f qcow2 -o size=2M new 1M => the size was given twice, .*'1M'
1 create -f qcow2 -b other.qcow2 new => backing file 'other.qcow2': say what format it has with -F
1 create -f qcow2 -b nothere -F qcow2 new => ^nothere: cannot open: No such file
1 create -f qcow2 -b garbage -F qcow2 new => ^garbage: is not a qcow2 image
1 create -f qcow2 -b other.qcow2 -F vmdk new => format 'vmdk' is not known
1 create -f qcow2 -u -b other.qcow2 -F qcow2 new => ^new: say how large it is to be: with -u
1 create -f qcow2 -b other.qcow2 -F qcow2 other.qcow2 => ^other.qcow2: cannot be its own backing file
1 create -f raw -b other.qcow2 -F qcow2 new => a raw image has no backing file
1 create -f raw -o cluster_size=4k new 1M => option 'cluster_size' is not known for format raw
1 create -f qcow2 dir 1M => ^dir: is a directory
1 create -f qcow2 nodir/new 1M => ^nodir/new: cannot open for creating: No such file
1 create -f qcow2 inuse.qcow2 1M => ^inuse.qcow2: the image is in use
1 create -f qcow2 -o data_file_raw=on new 1M => data_file_raw without a data file \(data_file=FILE\)
1 create -f qcow2 -o data_file=new new 1M => ^new: cannot be its own data file
1 create -f qcow2 -o data_file=nodir/x new 1M => ^nodir/x: cannot open for creating: No such file
1 create -f qcow2 -o encrypt.format=luks new 1M => encrypt.format=luks needs encrypt.key-secret=ID
1 create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=x new 1M => encrypt.key-secret=x: no --object has that id
1 create -f qcow2 -o encrypt.format=aes new 1M => encrypt.format 'aes': luks is what
1 create -f qcow2 -o encryption=on new 1M => encryption=on is the legacy AES method.*encrypt.format=luks
1 create -f qcow2 --object secret,id=k,file=key -o encrypt.format=luks,encrypt.key-secret=k,encrypt.cipher-alg=rot13 new 1M => cipher 'rot13' is not one: NAME-BITS is wanted
1 create -f qcow2 --object secret,id=k,file=nothere -o encrypt.format=luks,encrypt.key-secret=k new 1M => --object secret,id=k: nothere: No such file

1 amend disk.qcow2 => say what to change with -o
1 amend -o nonesuch=1 disk.qcow2 => option 'nonesuch' is not known; '-o help' lists
1 amend -o compat=v9 disk.qcow2 => compat 'v9' is not known: it is v2
1 amend -o refcount_bits=1 disk.qcow2 => ^disk.qcow2: cannot make refcounts 1 bits wide: the cluster at offset 0x[0-9a-f]+ has a refcount of 2
1 amend -o refcount_bits=5 disk.qcow2 => refcount_bits '5' is not a power of two
1 amend -o cluster_size=4k disk.qcow2 => 'cluster_size' can only be chosen when an image is made: convert it
1 amend -o compat=v2 disk.qcow2 qemu - => ^disk.qcow2: version 2 has no bitmaps: remove the 1
1 amend -o backing_file=x disk.qcow2 => ^disk.qcow2: cannot amend the backing file: that is for rebase
1 amend -f raw -o size=2M raw.img => ^raw.img: a raw image has no options
1 amend -o lazy_refcounts=on v2.qcow2 => ^v2.qcow2: lazy refcounts need version 3
1 amend -o data_file=x disk.qcow2 => ^disk.qcow2: data_file can only be set for images that use an external data file
1 amend -o encrypt.state=active disk.qcow2 => ^disk.qcow2: has no key slots: it is not encrypted
1 amend -o encrypt.state=active,encrypt.new-secret=x luks.qcow2 => encrypt.new-secret=x: no --object has that id
1 amend -o size=1M other.qcow2 qemu - => ^other.qcow2: cannot be made smaller .*resize --shrink
1 amend -o size=abc disk.qcow2 => size 'abc' is not a size

1 resize disk.qcow2 => resize: a file name and then a size are needed
1 resize disk.qcow2 abc => size 'abc' is not a size
1 resize disk.qcow2 1M => Use the --shrink option to perform a shrink operation: what disk.qcow2 has beyond 1048576
1 resize disk.qcow2 -99G => New image size must be positive: disk.qcow2 has 16777216
1 resize disk.qcow2 +9E => size '9E' is too large
1 resize disk.qcow2 +7.99E => ^disk.qcow2: 9[0-9]* bytes are more than clusters of 65536 bytes allow
1 resize --preallocation=some disk.qcow2 20M => Invalid preallocation mode 'some': it is off, metadata, falloc or full
1 resize --preallocation=full --shrink disk.qcow2 1M => Preallocation can only be used for growing images: disk.qcow2 has 16777216
1 resize -f raw --preallocation=metadata raw.img 2M => ^raw.img: preallocation mode 'metadata' is not possible
1 resize -r abc disk.qcow2 20M qemu - => --rate-limit 'abc' is not a size
1 resize lost.qcow2 20M => ^lost.qcow2: cannot open backing file 'away.qcow2'

1 snapshot -c x -d y disk.qcow2 => only one of -l, -c, -a and -d is possible
1 snapshot -d nothere disk.qcow2 => 'nothere': snapshot not found: disk.qcow2: .*snapshot -l lists them
1 snapshot -a nothere disk.qcow2 => 'nothere': disk.qcow2: has no snapshot .*snapshot -l lists them
1 snapshot -c x raw.img => 'x': raw.img: a raw disk has no internal snapshots
1 snapshot -c x one.qcow2 => 'x': one.qcow2: refcounts of 1 bit .*convert the image
1 snapshot -c x data.qcow2 => ^data.qcow2: cannot open data file 'd.data' \(data-file=FILE names another\)

1 bitmap disk.qcow2 b => Need at least one of --add
1 bitmap --add disk.qcow2 => Expecting filename and bitmap name
1 bitmap --add disk.qcow2 b => ^disk.qcow2: Bitmap already exists: b
1 bitmap --add v2.qcow2 b => ^v2.qcow2: only qcow2 images of version 3 .*nbdcow-img amend -o compat=v3 makes it one
1 bitmap --add -g 100 disk.qcow2 c => --granularity '100': it must be a power of 2, at least 512
1 bitmap --add -g 8G disk.qcow2 c => --granularity '8G': it must be a power of 2
1 bitmap --remove disk.qcow2 x => ^disk.qcow2: .*bitmap 'x'
1 bitmap --merge x disk.qcow2 b => ^disk.qcow2: .*bitmap 'x'
1 bitmap --merge x -b nothere.qcow2 disk.qcow2 b => ^nothere.qcow2: cannot open: No such file
1 bitmap -b other.qcow2 --add disk.qcow2 c => source file only supported with --merge
1 bitmap --add -f raw raw.img b => ^raw.img: only qcow2 images
1 bitmap -g 64k --remove disk.qcow2 b => granularity only supported with --add

1 commit disk.qcow2 => ^disk.qcow2: has no backing file to commit to
1 commit -f raw raw.img => ^raw.img: has no backing file to commit to
1 commit lost.qcow2 => ^lost.qcow2: its backing file: away.qcow2: .*No such file.*rebase -u
1 commit -b nothere.qcow2 top.qcow2 => ^top.qcow2: 'nothere.qcow2' is not in the chain
1 commit -r abc top.qcow2 => --rate-limit 'abc' is not a size
1 commit -t none2 top.qcow2 => cache mode 'none2' is not known

1 rebase top.qcow2 => say with -b what the backing file is to be
1 rebase -b nothere.qcow2 -F qcow2 top.qcow2 => ^nothere.qcow2: cannot open: No such file
1 rebase -b other.qcow2 -F vmdk top.qcow2 qemu - => format 'vmdk' is not known
1 rebase -u -b nothere.qcow2 top.qcow2 => say with -F what format 'nothere.qcow2' has
1 rebase -b other.qcow2 -F qcow2 lost.qcow2 => ^lost.qcow2: its backing file: away.qcow2: .*No such file.*rebase -u
1 rebase -f raw -b other.qcow2 -F qcow2 raw.img => ^raw.img: a raw image has no backing file
1 rebase -b garbage -F qcow2 top.qcow2 => ^garbage: is not a qcow2 image
1 rebase -U -b other.qcow2 -F qcow2 top.qcow2 qemu 0 => -U is not possible: the image is written

1 convert => convert: the names of at least two images are needed, 0 were given
1 convert disk.qcow2 => the names of at least two images are needed, 1 were given
1 convert -O vmdk disk.qcow2 new qemu 0 => format 'vmdk' is not known
1 convert -O qcow2 -o nonesuch=1 disk.qcow2 new => option 'nonesuch' is not known for format qcow2
1 convert -c -O raw disk.qcow2 new => -c: raw images cannot be compressed: say -O qcow2
1 convert -n -O qcow2 disk.qcow2 nothere => ^nothere: cannot open for reading and writing: No such file
1 convert -n -O qcow2 disk.qcow2 small.qcow2 => ^small.qcow2: its 1048576 bytes are less than the 16777216
1 convert -S 100 disk.qcow2 new => -S '100': a multiple of 512
1 convert -m 99 disk.qcow2 new => -m '99' is not a number from 1 to 16
1 convert -r abc disk.qcow2 new => --rate-limit 'abc' is not a size
1 convert -l nothere disk.qcow2 new => ^disk.qcow2: has no snapshot with id or name 'nothere' \(nbdcow-img info lists
1 convert -l s raw.img new => ^raw.img: a raw disk has no snapshot 's'
1 convert -B other.qcow2 -O qcow2 disk.qcow2 new => backing file 'other.qcow2': say what format it has with -F
1 convert -B nothere -F qcow2 -O qcow2 disk.qcow2 new => backing file 'nothere'.*No such file
1 convert -O qcow2 disk.qcow2 disk.qcow2 => ^disk.qcow2: cannot be copied to disk.qcow2, which it is read from
1 convert -O qcow2 disk.qcow2 inuse.qcow2 => ^inuse.qcow2: the image is in use
1 convert -O qcow2 disk.qcow2 nodir/new => ^nodir/new: cannot open for creating: No such file
1 convert --bitmaps -O raw disk.qcow2 new => --bitmaps: raw images have no bitmaps: say -O qcow2
1 convert --skip-broken-bitmaps -O qcow2 disk.qcow2 new => --skip-broken-bitmaps needs --bitmaps
1 convert --target-is-zero -O qcow2 disk.qcow2 new => --target-is-zero needs -n
1 convert --target-image-opts -O qcow2 disk.qcow2 driver=qcow2,file.filename=new => --target-image-opts needs -n
1 convert -C -S 4k -O qcow2 disk.qcow2 new => -C .* cannot be used with -S or -c
1 convert --compression-level=99 -c -O qcow2 disk.qcow2 new qemu - => --compression-level '99' is not a number from 1 to
1 convert --compression-level=5 -O qcow2 disk.qcow2 new qemu - => --compression-level needs -c
1 convert -O raw disk.qcow2 /dev/full => ^/dev/full: is a character device
1 convert -t none2 disk.qcow2 new => cache mode 'none2' is not known

1 measure => either a file name or --size is needed
1 measure -O vmdk disk.qcow2 => format 'vmdk' is not known
1 measure --size=abc => --size 'abc' is not a size
1 measure --size=1M disk.qcow2 => --size=1M and a file name: only one
1 measure -O qcow2 -o nonesuch=1 disk.qcow2 => option 'nonesuch' is not known
1 measure -l nothere disk.qcow2 => ^disk.qcow2: has no snapshot with id or name 'nothere'

1 compare disk.qcow2 => compare: two file names are needed, 1 were given
2 compare disk.qcow2 nothere.qcow2 => ^nothere.qcow2: cannot open: No such file
2 compare disk.qcow2 cut.qcow2 qemu - => ^cut.qcow2: truncated
2 compare -T none2 disk.qcow2 other.qcow2 => cache mode 'none2' is not known

1 dd if=disk.qcow2 => dd: if=INPUT and of=OUTPUT are needed
1 dd nonesuch=1 if=disk.qcow2 of=new => dd: 'nonesuch=1' is not known: there are if=, of=, bs=, count= and skip=
1 dd bs=0 if=disk.qcow2 of=new => bs=0 is out of range: it is from 1 to
1 dd bs=abc if=disk.qcow2 of=new => bs 'abc' is not a size
1 dd count=abc if=disk.qcow2 of=new => count 'abc' is not a size
1 dd -O vmdk if=disk.qcow2 of=new qemu 0 => format 'vmdk' is not known
1 dd if=disk.qcow2 of=nodir/new => ^nodir/new: cannot create: No such file
0 dd skip=999999 if=disk.qcow2 of=new => ^disk.qcow2: cannot skip to specified offset: the input has 16777216 bytes

1 bench -c 0 disk.qcow2 qemu - => count '0' is not a number from 1
1 bench -d 0 disk.qcow2 qemu - => depth '0' is not a number from 1 to 1024
1 bench -i x disk.qcow2 => -i 'x' is not known: it is threads, native or io_uring
1 bench -s abc disk.qcow2 => buffer size 'abc' is not a size
1 bench -S abc disk.qcow2 => step size 'abc' is not a size
1 bench -o 99G -c 1 disk.qcow2 => ^disk.qcow2: a request of 4096 bytes at offset 106300440576 goes past the end of the disk, at 16777216
1 bench --pattern=999 -w disk.qcow2 => pattern '999' is not a number from 0 to 255
1 bench --flush-interval=10 disk.qcow2 => --flush-interval is for writes: give -w
1 bench --flush-interval=1 -w -c 2 disk.qcow2 => --flush-interval 1 is less than the depth 64

1 compact raw.img qemu - => ^raw.img: is a raw image, .*convert -O qcow2
1 compact -r abc disk.qcow2 qemu - => --rate-limit 'abc' is not a size
1 recompress raw.img qemu - => ^raw.img: cannot hold compressed clusters
1 recompress luks.qcow2 qemu - => ^luks.qcow2: cannot hold compressed clusters
1 recompress disk.qcow2 qemu - => ^disk.qcow2: has 1 internal snapshots, .*snapshot -d.*convert -c
1 recompress --type=lzo other.qcow2 qemu - => --type 'lzo' is not known: it is zlib or zstd
1 recompress --type=zstd v2.qcow2 qemu - => ^v2.qcow2: zstd needs version 3: nbdcow-img amend -o compat=v3
1 recompress --compression-level=15 other.qcow2 qemu - => ^other.qcow2: compression level 15: zlib has levels 1 to
1 recompress -m 0 other.qcow2 qemu - => -m '0' is not a number from 1 to 64
1 diff disk.qcow2 qemu - => one image does not differ from itself: give --from or --to
1 diff --from nothere disk.qcow2 qemu - => ^disk.qcow2: has no snapshot with id or name 'nothere'
1 diff --from s raw.img qemu - => ^raw.img: a raw disk has no snapshot 's'
1 diff a b c qemu - => one or two file names are needed, 3 were given
END_OF_TABLE

cat >errors.py <<'END_OF_PYTHON'
import os, re, shlex, subprocess, sys

IMG = os.environ["NBDCOW_IMG"]
bad, compared, rows = [], 0, 0

# An image's place in the words of each command, and what writes.
READ = {
    "map": "%s", "convert": "%s new", "measure": "-O qcow2 %s", "compare": "%s other.qcow2", "dd": "if=%s of=new",
    "bench": "-c 1 -d 1 %s",
}
WRITE = {
    "amend": "-o lazy_refcounts=on %s", "resize": "%s 32M", "snapshot": "-c x %s", "bitmap": "--add %s x", "commit": "%s",
    "rebase": "-b other.qcow2 -F qcow2 %s", "bench": "-w -c 1 -d 1 %s", "compact": "%s", "recompress": "%s",
}
OTHERS = {"info": "%s", "check": "%s", "snapshot": "-l %s", "diff": "%s other.qcow2"}
OWN = {"compact", "recompress", "diff"}

def run(*args):
    p = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=60)
    return p.returncode, p.stderr.decode(errors="replace")

def row(status, words, theirs, pattern):
    global compared, rows
    rows += 1
    got, said = run(IMG, *shlex.split(words))
    lines = said.splitlines()
    if got != status:
        bad.append("%s: status %d, not %d: %s" % (words, got, status, said))
    elif len(lines) != 1 or not lines[0].startswith("nbdcow-img: "):
        bad.append("%s: not one line: %s" % (words, said))
    elif not re.search(pattern, lines[0][len("nbdcow-img: "):]):
        bad.append("%s: no '%s': %s" % (words, pattern, said))
    if theirs == "-":
        return
    got, said = run("qemu-img", *shlex.split(words))
    compared += 1
    if got != (status if theirs is None else int(theirs)):
        bad.append("qemu-img %s: status %d: %s" % (words, got, said))

for line in open("table"):
    m = re.fullmatch(r"(\d+) (.*?)(?: qemu (-|\d+))? => (.*)\n", line)
    if not m:
        if line.strip() and line[0] != "#":
            sys.exit("not a row: " + line)
        continue
    status, words, theirs, pattern = int(m.group(1)), m.group(2), m.group(3), m.group(4)
    each = re.fullmatch(r"(COMMAND|READ|WRITE)\((.*)\)", words)
    if not each:
        row(status, words, theirs, pattern)
    else:
        for kind, commands in ("READ", READ), ("WRITE", WRITE), ("OTHERS", OTHERS):
            if each.group(1) not in (kind, "COMMAND"):
                continue
            for command, place in commands.items():
                image = each.group(2)
                # Options go before the operands of dd, and the image takes its place.
                *options, name = image.split(" ")
                if image.endswith(" -f"):
                    options, name, place = ["-f"], "", ""
                all_words = " ".join([command, *options, place % name if place else ""])
                s = 2 if command == "compare" and "option" not in pattern else status
                if command == "bitmap" and image.startswith(("--key-file", "--backing-mode")):
                    continue # it needs neither
                # An option that it does not know is no error for qemu-img measure.
                unknown = command == "measure" and "option" in pattern
                row(s, all_words, "-" if command in OWN or unknown else theirs, pattern)
print("%d errors, %d compared with qemu-img" % (rows, compared))
if bad:
    sys.exit("\n".join(bad))
END_OF_PYTHON
"$PYTHON" errors.py
for image in disk other top small v2 one; do
  check_image $image.qcow2 leaks # qemu-img leaves one, with refcounts of 1 bit
  same_contents $image.qcow2 qcow2 $image.before qcow2
done
