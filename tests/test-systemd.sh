#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
#
# The units in contrib/systemd: systemd understands all of them, and finds them as tight as they say.

. "${SRCDIR:-$(dirname "$0")}/functions.sh"

requires systemd-analyze
requires_file "${NBDCOW:-}" nbdcow
systemd-analyze security --help 2>/dev/null | grep -q -e --offline || skip "this systemd-analyze knows no --offline"

mkdir units
for unit in "$SRCDIR"/../contrib/systemd/*; do
  sed "s|/usr/bin/nbdcow|$(realpath "$NBDCOW")|" "$unit" >"units/$(basename "$unit")"
done
cd units
# The drop-in for upgrades: everything that it says of the command but --takeover and --fork is what
# the unit says.
command_of () { sed -n "/^$1=./,/[^\\\\]\$/{s/^$1=//;s/\\\\\$//;p}" "$2" | tr -s ' \n' ' '; }
started=$(command_of ExecStart nbdcow.service)
taken=$(command_of ExecReload nbdcow-upgrade.conf | sed 's|--takeover=/run/nbdcow/control --fork ||')
[ "$started" = "$taken" ] || fail "nbdcow-upgrade.conf: $taken, but the unit has $started"
grep -q '^NotifyAccess=all$' nbdcow-upgrade.conf && grep -q '^ExecReload=$' nbdcow-upgrade.conf ||
  fail 'nbdcow-upgrade.conf does not say what it has to'
mkdir nbdcow.service.d
mv nbdcow-upgrade.conf nbdcow.service.d/upgrade.conf

for unit in *.service *.socket; do
  case $unit in
  *@.*) instance=${unit%@.*}@disk.${unit##*.} ;;
  *) instance=$unit ;;
  esac
  [ -e "$instance" ] || cp "$unit" "$instance"
done
for unit in *.service *.socket; do
  case $unit in *@.*) continue ;; esac
  systemd-analyze verify --man=no --recursive-errors=no "$PWD/$unit" >verify.log 2>&1 || :
  # What this machine has other units for, or lacks, is not ours.
  if grep -E "$(echo "$unit" | sed 's/[.@]/./g')|nbdcow" verify.log; then
    fail "$unit: systemd-analyze verify complains"
  fi
done

# The drop-in is for the time of an upgrade.
rm -r nbdcow.service.d
for unit in *.service; do
  case $unit in *@.*) continue ;; esac
  wanted=$(sed -n 's/.*--offline=true. gives \([0-9.]*\) on a scale.*/\1/p' "$unit")
  [ -n "$wanted" ] || fail "$unit names no score"
  # Other versions of systemd weigh other things.
  got=$(systemd-analyze security --offline=true --threshold=100 "$PWD/$unit" 2>/dev/null |
    sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p')
  [ -n "$got" ] || fail "$unit: no score"
  echo "$test_name: $unit: $got (names $wanted)"
  awk -v g="$got" -v w="$wanted" 'BEGIN { exit !(g <= w + 0.05) }' || fail "$unit: $got is worse than $wanted"
done
