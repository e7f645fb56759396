# SPDX-License-Identifier: BSD-3-Clause
#
# One table of sins: tests/security/$TABLE.py, which see.  ROWS: words of the names of rows; else all.

. "${SRCDIR:-$(dirname "$0")/..}/functions.sh"
requires_file "${NBDCOW_IMG:-}" nbdcow-img
requires_python
TABLE=${TABLE:-images}
SUITE=${SUITE:-${BUILDDIR:-.}/protocol/protocol-suite}
BUGS=${BUGS:-${BUILDDIR:-.}/crash/bugs}
case $TABLE in
protocol) requires_file "$SUITE" "the protocol suite" ;;
engine) requires_file "$BUGS" "tests/crash/bugs" ;;
esac
export NBDCOW NBDCOW_IMG NBDKIT NBDKIT_PLUGIN SUITE BUGS SANITIZED="${PLUGIN_PRELOAD:-}"
# shellcheck disable=SC2086 # words
"$PYTHON" "$SRCDIR/security/$TABLE.py" ${ROWS:-}
