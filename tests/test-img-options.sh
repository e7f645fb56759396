#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# Every option that qemu-img 11 has is known to nbdcow-img, by its letter and its long name, and takes an
# argument where qemu-img's does; -o help lists what qemu-img lists; the man page names every option of
# nbdcow-img's own help.

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
