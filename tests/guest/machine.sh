# SPDX-License-Identifier: BSD-3-Clause
#
# The machine that the guest tests start: sets vmlinuz, and makes initrd.gz with $guest_init (init) in it, and
# with the programs $guest_programs and kernel modules $guest_modules as well.
#
# The kernel: GUEST_KERNEL names an unpacked kernel package (a directory with boot/ and lib/modules/);
# without it, the one kept in the build tree, one that is installed, or Debian's cloud kernel by apt.

requires qemu-system-x86_64 qemu-img cpio gzip mke2fs e2fsck busybox

kept=$BUILDDIR/guest/kernel

# has_kernel DIRECTORY
has_kernel ()
{
  ls "$1"/boot/vmlinuz-* >/dev/null 2>&1 && ls -d "$1"/lib/modules/*/kernel >/dev/null 2>&1
}

fetch_kernel ()
{
  requires apt-get apt-cache dpkg
  [ "$(dpkg --print-architecture)" = amd64 ] || skip "the guest is amd64"
  package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^ *Depends: *\(linux-image-[0-9].*\)/\1/p' | head -n 1)
  [ -n "$package" ] || skip "apt knows no linux-image-cloud-amd64"
  mkdir download
  (cd download && timeout 120 apt-get -qq -o APT::Sandbox::User=root download "$package") \
    >apt.log 2>&1 || skip "apt-get download $package: $(tail -n 1 apt.log)"
  mkdir -p "$kept"
  dpkg -x download/*.deb "$kept"
}

if [ -n "${GUEST_KERNEL:-}" ]; then
  has_kernel "$GUEST_KERNEL" || fail "GUEST_KERNEL=$GUEST_KERNEL: no boot/vmlinuz-* and lib/modules there"
  kernel=$GUEST_KERNEL
elif has_kernel "$kept"; then
  kernel=$kept
elif has_kernel / && [ -r "$(echo /boot/vmlinuz-* | cut -d' ' -f1)" ]; then
  kernel=
else
  fetch_kernel
  kernel=$kept
fi
vmlinuz=$(find "$kernel/boot" -name 'vmlinuz-*' | sort | tail -n 1)
modules=$kernel/lib/modules/${vmlinuz##*/vmlinuz-}
echo "kernel ${vmlinuz##*/}"

# ---- the initramfs ---------------------------------------------------------------------------

mkdir -p initrd/bin initrd/modules initrd/proc initrd/sys initrd/dev initrd/root
# Programs that are not static bring their libraries.
for program in "$(command -v busybox)" ${guest_programs:-}; do
  cp -L "$program" initrd/bin/
  { ldd "$program" 2>/dev/null || :; } |
    sed -n 's/.*[[:space:]]\(\/[^ ]*\) (0x.*/\1/p' | while read -r lib; do
    mkdir -p "initrd$(dirname "$lib")"
    cp -L "$lib" "initrd$lib"
  done
done
cp "$SRCDIR/guest/${guest_init:-init}" initrd/init
chmod 755 initrd/init
for name in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk \
  crc16 crc32c_generic libcrc32c mbcache jbd2 ext4 ${guest_modules:-}; do
  find "$modules" -name "$name.ko*" | while read -r file; do
    case $file in
    *.ko) cp "$file" initrd/modules/ ;;
    *.xz) xz -dc "$file" >"initrd/modules/$name.ko" ;;
    *.zst) zstd -qdc "$file" >"initrd/modules/$name.ko" ;;
    esac
  done
done
(cd initrd && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1) >initrd.gz

# machine SECONDS BOOT SERIAL DISK...: runs it until it powers itself off; BOOT is for init, DISK... options.
machine ()
{
  _seconds=$1 _boot=$2 _serial=$3
  shift 3
  timeout "$_seconds" qemu-system-x86_64 -accel tcg -machine pc -cpu qemu64 -smp 2 -m 384 \
    -display none -serial "file:$_serial" -monitor none -nic none -no-reboot \
    -kernel "$vmlinuz" -initrd initrd.gz -append "console=ttyS0 panic=-1 loglevel=4 boot=$_boot" "$@"
}
