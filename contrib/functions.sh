# SPDX-License-Identifier: BSD-3-Clause
#
# For the scripts beside it, which source it: what they need installed, and how to get it.

# One line for each Debian package, with what shows elsewhere that the thing is there: a command, a
# module of pkg-config, or a header.
build_needs='
cmake               command cmake
ninja-build         command ninja
gcc                 command gcc
libc6-dev           header  stdio.h
pkg-config          command pkg-config
perl                command pod2man
libev-dev           header  ev.h
zlib1g-dev          module  zlib
libzstd-dev         module  libzstd
libjansson-dev      module  jansson
libgnutls28-dev     module  gnutls
liburing-dev        module  liburing
libdeflate-dev      module  libdeflate
libgcrypt20-dev     module  libgcrypt
libnl-genl-3-dev    module  libnl-genl-3.0
libselinux1-dev     module  libselinux
libmicrohttpd-dev   module  libmicrohttpd
libseccomp-dev      module  libseccomp
libsystemd-dev      module  libsystemd
libnbd-dev          module  libnbd
nbdkit-plugin-dev   module  nbdkit
'

test_needs='
nbdkit              command nbdkit
libnbd-bin          command nbdcopy
python3             command python3
python3-libnbd      python  nbd
qemu-utils          command qemu-img
qemu-system-x86     command qemu-system-x86_64
libcmocka-dev       module  cmocka
fio                 command fio
jq                  command jq
curl                command curl
python3-prometheus-client python prometheus_client
prometheus          command promtool
golang-go           command go
golang-github-digitalocean-go-qemu-dev command go
lsof                command lsof
systemd             command systemd-analyze
xxd                 command xxd
gnutls-bin          command certtool
e2fsprogs           command mke2fs
gzip                command gzip
binutils            command nm
openssl             command openssl
busybox-static      command busybox
cpio                command cpio
clang               command clang
libclang-rt-dev     header  sanitizer/lsan_interface.h
llvm                command llvm-cov
clang-format        command clang-format
clang-tidy          command clang-tidy
'

say () {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

die () {
  say "$*"
  exit 1
}

as_root () {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif ! command -v sudo >/dev/null; then
    die "installing packages needs root: run this as root, or install sudo"
  elif [ -t 0 ]; then
    sudo "$@"
  else
    sudo -n "$@" # nobody is there to type a password
  fi
}

# is_there KIND NAME
is_there () {
  case $1 in
    command) command -v "$2" >/dev/null ;;
    module) pkg-config --exists "$2" 2>/dev/null ;;
    header) echo "#include <$2>" | cc -E -x c - >/dev/null 2>&1 ;;
    python) /usr/bin/python3 -c "import $2" 2>/dev/null || python3 -c "import $2" 2>/dev/null ;;
    *) die "functions.sh: no such kind of need: $1" ;;
  esac
}

# install_missing NEEDS: on Debian and its relatives, installs the packages that are not there;
# elsewhere, stops with a list of what to install.
install_missing () {
  missing=
  if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
    for package in $(echo "$1" | awk '{ print $1 }'); do
      [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
        missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    say "installing$missing"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update ||
      say "apt-get update failed: trying with the package lists that are here"
    # shellcheck disable=SC2086 # one word a package
    as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get -q install -y --no-install-recommends $missing </dev/null ||
      die "could not install$missing"
    return 0
  fi

  while read -r package kind name; do
    [ -z "$package" ] || is_there "$kind" "$name" ||
      missing="$missing
  $kind $name (Debian: $package)"
  done <<NEEDS
$1
NEEDS
  [ -z "$missing" ] || die "please install what is missing and try again:$missing"
}

# configure PRESET [CMAKE ARGUMENT...]: with Ninja where it is installed.  A build directory keeps
# the generator that it was made with.
configure () {
  preset=$1
  shift
  if command -v ninja >/dev/null; then
    CMAKE_GENERATOR=${CMAKE_GENERATOR:-Ninja}
    export CMAKE_GENERATOR
  fi
  (cd "$source" && cmake --preset "$preset" "$@")
}
