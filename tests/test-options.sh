#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# qemu-nbd's command line, option by option: what qemu-nbd 11 lists is known to nbdcow, by its letter and its
# long name, with an argument or without; nbdcow's own help, its man page and its completion have it, too.  The
# list below is compared with what qemu-nbd --help says where a qemu-nbd of version 11 or later is installed
# (or QEMU_NBD names one): what it has beyond that fails this test.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"
requires_file "${NBDCOW:-}" nbdcow
requires bash

# "=" after those that take an argument
cat >wanted <<'END_OF_OPTIONS'
-h --help
-V --version
-p --port=
-b --bind=
-k --socket=
-e --shared=
-t --persistent
-v --verbose
-x --export-name=
-D --description=
- --handshake-limit=
-o --offset=
-A --allocation-depth
-B --bitmap=
-L --list
- --object=
- --tls-creds=
- --tls-authz=
- --tls-hostname=
-T --trace=
- --fork
- --pid-file=
- --selinux-label=
-c --connect=
-d --disconnect
-f --format=
-r --read-only
-s --snapshot
-l --load-snapshot=
-n --nocache
- --cache=
- --aio=
- --discard=
- --detect-zeroes=
- --image-opts
END_OF_OPTIONS

# options: of the help on stdin, in that form.
options ()
{
  sed -n 's/^  *\(-[A-Za-z]\), \(--[a-z-]*\)\(.*\)/\1 \2\3/p; t
    s/^  *\(--[a-z-]*\)\(.*\)/- \1\2/p' |
    sed 's/^\(- *\|-[A-Za-z] \)\(--[a-z-]*\)\(=\| [^ ]\).*/\1\2=/; t
      s/^\(- *\|-[A-Za-z] \)\(--[a-z-]*\).*/\1\2/'
}

tls=1
"$NBDCOW" --help | grep -q -e --tls-creds || tls=
missing=0
# lacks WHAT: the option of the loop.
lacks ()
{
  echo "$letter $word: $*" >&2
  missing=$((missing + 1))
}

"$NBDCOW" --help | options >ours
[ "$(wc -l <ours)" -gt 60 ] || fail "nbdcow's help could not be read: $(cat ours)"
sed -n "/^=head1 QEMU-NBD'S OPTIONS/,/^=head1 SEE/p" "$SRCDIR/../server/nbdcow.pod" >table
while read -r letter word; do
  long=${word%=}
  case $long in
  --tls-*) [ -n "$tls" ] || continue ;;
  esac
  grep -qxF -e "$letter $word" ours || lacks "not in nbdcow's help"
  shown=$long
  [ "$letter" = - ] || shown="$letter, $long"
  grep -q -e "^ $shown\([= ]\|$\)" table || lacks "not in the man page's table"
  for option in "$letter" "$long"; do
    [ "$option" != - ] || continue
    case $option in
    -h | -V | --help | --version) continue ;;
    esac
    status=0
    if [ "$word" != "$long" ]; then
      "$NBDCOW" $option >said 2>&1 || status=$?
      one_line "$status" said "'$option' needs a value" || lacks "$REASON"
    elif [ "$option" = "$long" ]; then
      "$NBDCOW" $option=x >said 2>&1 || status=$?
      one_line "$status" said "'$option=x' takes no value" || lacks "$REASON"
    else
      "$NBDCOW" $option --nonesuch >said 2>&1 || status=$?
      one_line "$status" said --nonesuch || lacks "$REASON"
    fi
  done
done <wanted
[ "$missing" = 0 ] || fail "$missing of $(wc -l <wanted) options of qemu-nbd are not as they should be"
echo "$test_name: $(wc -l <wanted) options of qemu-nbd, and $(wc -l <ours) of nbdcow's"

# Whatever the help lists is known to the program and to the man page, and is offered.
cat >complete.bash <<'END'
. "$1"
compopt () { :; }
COMP_WORDS=("$2" --)
COMP_CWORD=1
_nbdcow
printf '%s\n' "${COMPREPLY[@]}"
END
bash complete.bash "$SRCDIR/../contrib/completion/nbdcow" "$NBDCOW" >offered
while read -r letter word; do
  long=${word%=}
  grep -q "^=item .*B<$long[=>]" "$SRCDIR/../server/nbdcow.pod" || lacks "not in the man page"
  grep -qxF -e "$long" offered || lacks "not offered by the completion"
done <ours
[ "$missing" = 0 ] || fail "$missing options of nbdcow are not as they should be"

qemu_nbd=${QEMU_NBD:-qemu-nbd}
version=$($qemu_nbd --version 2>/dev/null | sed -n '1s/^qemu-nbd \([0-9]*\)\..*/\1/p')
if [ "${version:-0}" -lt 11 ]; then
  echo "$test_name: no qemu-nbd of version 11 or later to compare the list with"
  exit 0
fi
$qemu_nbd --help | options | sort >theirs
sort wanted >list
diff list theirs >&2 || fail "qemu-nbd $version has other options than the list"
echo "$test_name: qemu-nbd $version lists the same"
