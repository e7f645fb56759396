#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Every option that qemu-img 11 has is known to nbdcow-img, by its letter and its long name, and takes an
# argument where qemu-img's does; -o help lists what qemu-img lists; the man page names every option of
# nbdcow-img's own help, and its table has every option of qemu-img.
#
# PEER_ROOT: a directory tree with a newer QEMU in it (contrib/bench/README.md), whose qemu-img is asked what options
# it has, should the one in PATH be too old to tell.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img

# command: options; "=" after those that take an argument
cat >options <<'END_OF_OPTIONS'
amend      -f= --format= --image-opts -t= --cache= --force -p --progress -q --quiet --object= -o= --options=
bench      -f= --format= --image-opts -t= --cache= -c= --count= -d= --depth= -o= --offset= -s= --buffer-size= -S= --step-size= -w --write --pattern= --flush-interval= --no-drain -i= --aio= -n --native -U --force-share -q --quiet --object=
bitmap     -f= --format= --image-opts --add -g= --granularity= --remove --remove-all --clear --enable --disable --merge= -b= --source-file= -F= --source-format= --object=
check      -f= --format= --image-opts -T= --cache= -r= --repair= -U --force-share --output= -q --quiet --object=
commit     -f= --format= --image-opts -t= --cache= -d --drop -b= --base= -r= --rate-limit= -p --progress -q --quiet --object=
compare    -f= --a-format= -F= --b-format= --image-opts -s --strict -T= --cache= -U --force-share -p --progress -q --quiet --object=
convert    -f= --source-format= --image-opts -T= --source-cache= -l= --snapshot= --bitmaps --skip-broken-bitmaps --salvage -O= --target-format= --target-image-opts -o= --target-format-options= -t= --target-cache= -b= --backing= -B= -F= --backing-format= -S= --sparse-size= -n --no-create --target-is-zero -c --compress -U --force-share -r= --rate-limit= -m= --parallel= -C --copy-range-offloading -W --oob-writes -p --progress -q --quiet --object=
create     -f= --format= -o= --options= -b= --backing= -B= -F= --backing-format= -u --backing-unsafe -q --quiet --object=
dd         -f= --format= --image-opts -O= --output-format= -U --force-share --object=
info       -f= --format= --image-opts --backing-chain -t= --cache= -U --force-share --limits --output= --object=
map        -f= --format= --image-opts -s= --start-offset= -l= --max-length= --output= -U --force-share --object=
measure    -f= --format= --image-opts -l= --snapshot= -O= --target-format= -o= --output= -U --force-share -s= --size= --object=
rebase     -f= --format= --image-opts -t= --cache= -b= --backing= -B= -F= --backing-format= -T= --backing-cache= -u --backing-unsafe -c --compress -U --force-share -p --progress -q --quiet --object=
resize     -f= --format= --image-opts --shrink --preallocation= -q --quiet --object=
snapshot   -f= --format= --image-opts -l --list -c= --create= -a= --apply= -d= --delete= -U --force-share -q --quiet --object=
END_OF_OPTIONS

bad=0
while read -r command words; do
  for word in $words; do
    option=${word%=}
    # An option that is known without an argument says so; what takes none is followed by one that is not known.
    case $word in
    --*=) set -- "$option" ;;
    -*=) set -- "$option" ;;
    *) set -- "$option" --nonesuch x 1M ;;
    esac
    s=0
    "$NBDCOW_IMG" "$command" "$@" >out 2>&1 || s=$?
    want="$option"
    [ "$word" != "$option" ] || want=--nonesuch
    if [ "$s" != 1 ] || ! grep -q -- "'\{0,1\}$want\>" out ||
      { [ "$word" != "$option" ] && grep -qi 'not known\|unknown' out; }; then
      echo "$command $word: $(head -n 1 out)" >&2
      bad=$((bad + 1))
    fi
  done
done <options
[ "$bad" = 0 ] || fail "$bad options of qemu-img are missing"

# ---- that the list above is all there is -----------------------------------------------------

peer=
if qemu-img create --help 2>/dev/null | grep -q '^  -f, --format'; then
  peer=qemu-img
elif [ -n "${PEER_ROOT:-}" ] && [ "$(id -u)" = 0 ]; then
  peer="chroot $PEER_ROOT qemu-img"
fi
if [ -n "$peer" ]; then
  $peer --help | sed -n '/^Recognized commands/,/^Supported/s/^  \([a-z]*\) - .*/\1/p' >commands
  [ -s commands ] || fail "$peer --help lists no commands"
  while read -r command; do
    grep -q "^$command " options || fail "qemu-img has the command $command"
    known=$(sed -n "s/^$command  *//p" options)
    $peer "$command" --help | sed -n 's/^  \(--*[a-zA-Z].*\)/\1/p' | grep -v '^-h, --help' >theirs
    while read -r line; do
      for word in $(echo "$line" | grep -oE '(^|, )--?[a-zA-Z][-a-z]*' | tr -d ,); do
        case " $known " in
        *" $word"*) ;; # or the beginning of one: getopt_long takes that, and qemu-img prints it
        *) fail "qemu-img $command has $word ($line), and this test does not know of it" ;;
        esac
      done
    done <theirs
  done <commands
else
  echo "no qemu-img that lists the options of each command: the list in this test is not compared"
fi

# ---- -o help, and the manual -----------------------------------------------------------------

requires qemu-img
requires_python
export NBDCOW_IMG
"$PYTHON" - "$SRCDIR/../server/img/nbdcow-img.pod" <<'END_OF_PYTHON'
import os, re, subprocess, sys

IMG, bad = os.environ["NBDCOW_IMG"], []

def output(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, text=True, check=True).stdout

def keys(*args):
    return set(re.findall(r"^  ([a-z][-a-z_0-9.]*)=", output(*args), re.M))

REFUSED = {"encryption", "nocow", "extent_size_hint"} # the manual says so
for fmt in "qcow2", "raw":
    bad += ["-o help of create -f %s lacks %s" % (fmt, k) for k in
            keys("qemu-img", "create", "-f", fmt, "-o", "help") - keys(IMG, "create", "-f", fmt, "-o", "help") - REFUSED]

pod = open(sys.argv[1]).read()
sections = dict(re.findall(r"^=head2 ([a-z]+)\n(.*?)(?=^=head[12] )", pod, re.M | re.S))
common = re.search(r"^=head2 Options of most commands\n(.*?)^=head1", pod, re.M | re.S).group(1)
table = {}
for line in re.search(r"^=head1 COMPARED WITH QEMU-IMG\n(.*?)^=head1", pod, re.M | re.S).group(1).splitlines():
    row = re.match(r" ([a-z]+ +| {10})(.*)", line)
    if row:
        command = row.group(1).strip() or command
        table[command] = table.get(command, "") + " " + row.group(2)

for command in re.findall(r"^  ([a-z]+) ", output(IMG, "--help").split("Commands:")[1].split("\n\n")[0], re.M):
    for line in output(IMG, command, "--help").split("\n\n", 1)[1].splitlines():
        names = re.findall(r"(?<![-\w])--?[a-zA-Z][-a-z]*", re.split("  +", line.strip())[0] if line.startswith("  ") else "")
        # One of its names is enough: the letter of what most commands have is in the synopsis.
        if names and not any(re.search(r"(?<![-\w])%s(?![-\w])" % n, sections[command] + common) for n in names):
            bad.append("the manual does not say what %s %s is" % (command, " ".join(names)))
for line in open("options"):
    command, *words = line.split()
    rows = table[command]
    # One name of each is enough: the letter, or what comes before the next letter.
    for word in words:
        option = word.rstrip("=")
        if re.fullmatch("-[a-zA-Z]", option) and not re.search(r"\ball\b", rows) and option + " " not in rows + " ":
            bad.append("the table of the manual lacks %s %s" % (command, option))
if bad:
    sys.exit("\n".join(sorted(bad)))
END_OF_PYTHON
