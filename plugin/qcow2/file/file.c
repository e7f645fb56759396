/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The storage seam over one local file or block device.
 *
 * O_DIRECT wants aligned buffers, offsets and lengths, and the engine has none of these promises
 * to give: a direct file bounces what is not aligned.  An unaligned write then reads and rewrites
 * whole sectors, so it must not run beside another write: aligned writes share direct_lock,
 * unaligned ones hold it alone.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "folios.h"
#include "image.h"
#include "lock.h"

#define DIRECT_ALIGN 4096u /* a multiple of every sector size that file systems have */
#define ZERO_CHUNK   (1u << 20)

struct local_file {
  struct q_file base;
  int fd;
  bool direct;
  uint32_t align; /* what O_DIRECT wants */
  pthread_rwlock_t direct_lock;
  struct q_folios *folios; /* of its page cache, if it is written through that */
  /* A stretch that was found to be data, and that nobody has punched through us since: on some file
   * systems finding its end is slow. */
  pthread_mutex_t data_lock;
  uint64_t data_from, data_to;
};

static int
local_fd (const struct q_file *f)
{
  return ((const struct local_file *)f)->fd;
}

/* ALIGN is what a read may be continued at: where O_DIRECT stops short of that is the end of the
 * file, and asking for the rest would be an error. */
static int
pread_full (int fd, void *buf, size_t len, uint64_t offset, uint32_t align)
{
  while (len > 0) {
    ssize_t n = pread (fd, buf, len, (off_t)offset);

    if (n == -1) {
      if (errno == EINTR)
        continue;
      return -errno;
    }
    buf = (char *)buf + n;
    len -= (size_t)n;
    offset += (uint64_t)n;
    if (n == 0 || (size_t)n % align != 0) { /* the end of the file */
      memset (buf, 0, len);
      len = 0;
    }
  }
  return 0;
}

static int
pwritev_full (int fd, struct iovec *iov, int iovcnt, uint64_t offset)
{
  while (iovcnt > 0) {
    ssize_t n = pwritev (fd, iov, iovcnt > IOV_MAX ? IOV_MAX : iovcnt, (off_t)offset);

    if (n == -1) {
      if (errno == EINTR)
        continue;
      return -errno;
    }
    if (n == 0 && iov->iov_len > 0)
      return -EIO;
    offset += (uint64_t)n;
    while (iovcnt > 0 && (size_t)n >= iov->iov_len) {
      n -= (ssize_t)iov->iov_len;
      ++iov;
      --iovcnt;
    }
    if (iovcnt > 0) {
      iov->iov_base = (char *)iov->iov_base + n;
      iov->iov_len -= (size_t)n;
    }
  }
  return 0;
}

/* ---- O_DIRECT ------------------------------------------------------------------------------ */

static bool
is_aligned (const struct local_file *f, uint64_t v)
{
  return (v & (f->align - 1)) == 0;
}

static int
direct_pread (struct local_file *f, void *buf, size_t len, uint64_t offset)
{
  uint64_t start = offset & ~(uint64_t)(f->align - 1);
  uint64_t end = q_round_up (offset + len, f->align);
  void *bounce;
  int r;

  if (is_aligned (f, offset) && is_aligned (f, len) && is_aligned (f, (uintptr_t)buf))
    return pread_full (f->fd, buf, len, offset, f->align);
  if (posix_memalign (&bounce, DIRECT_ALIGN, end - start) != 0)
    return -ENOMEM;
  r = pread_full (f->fd, bounce, end - start, start, f->align);
  if (r == 0)
    memcpy (buf, (char *)bounce + (offset - start), len);
  free (bounce);
  return r;
}

/* Writes whole sectors around [offset, offset + len); BOUNCE begins at START.  direct_lock is held
 * alone.  The file must not become longer than the caller made it: a raw image's size is its
 * disk's. */
static int
write_sectors (struct local_file *f, char *bounce, uint64_t start, uint64_t end,
               uint64_t wanted_end)
{
  uint64_t size;
  int r = q_file_size (&f->base, &size);

  if (r == 0)
    r = pwritev_full (f->fd, &(struct iovec){ bounce, end - start }, 1, start);
  if (r == 0 && !f->base.is_device && size < end) {
    size = size > wanted_end ? size : wanted_end;
    if (size < end && ftruncate (f->fd, (off_t)size) == -1)
      r = -errno;
  }
  return r;
}

/* Puts the vector into one aligned buffer, with what surrounds it read from the file. */
static int
direct_pwrite_bounced (struct local_file *f, const struct iovec *iov, int iovcnt, size_t len,
                       uint64_t offset)
{
  uint64_t start = offset & ~(uint64_t)(f->align - 1);
  uint64_t end = q_round_up (offset + len, f->align), last = end - f->align;
  bool whole = start == offset && end == offset + len;
  char *bounce, *p;
  int r = 0, i;

  if (posix_memalign ((void **)&bounce, DIRECT_ALIGN, end - start) != 0)
    return -ENOMEM;
  if (whole)
    pthread_rwlock_rdlock (&f->direct_lock);
  else
    pthread_rwlock_wrlock (&f->direct_lock);
  if (start != offset)
    r = pread_full (f->fd, bounce, f->align, start, f->align);
  if (r == 0 && end != offset + len && (start == offset || last != start))
    r = pread_full (f->fd, bounce + (last - start), f->align, last, f->align);
  if (r == 0) {
    for (i = 0, p = bounce + (offset - start); i < iovcnt; p += iov[i].iov_len, ++i)
      memcpy (p, iov[i].iov_base, iov[i].iov_len);
    r = whole ? pwritev_full (f->fd, &(struct iovec){ bounce, end - start }, 1, start)
              : write_sectors (f, bounce, start, end, offset + len);
  }
  pthread_rwlock_unlock (&f->direct_lock);
  free (bounce);
  return r;
}

static int
direct_pwritev (struct local_file *f, struct iovec *iov, int iovcnt, uint64_t offset)
{
  bool aligned = is_aligned (f, offset);
  size_t len = 0;
  int r, i;

  for (i = 0; i < iovcnt; ++i) {
    aligned =
        aligned && is_aligned (f, iov[i].iov_len) && is_aligned (f, (uintptr_t)iov[i].iov_base);
    len += iov[i].iov_len;
  }
  if (!aligned)
    return direct_pwrite_bounced (f, iov, iovcnt, len, offset);
  pthread_rwlock_rdlock (&f->direct_lock);
  r = pwritev_full (f->fd, iov, iovcnt, offset);
  pthread_rwlock_unlock (&f->direct_lock);
  return r;
}

/* ---- operations ---------------------------------------------------------------------------- */

static int
cached_pwritev (struct local_file *f, struct iovec *iov, int iovcnt, uint64_t offset)
{
  uint64_t started = 0;
  size_t len = 0;
  int r;

  for (int i = 0; i < iovcnt; ++i)
    len += iov[i].iov_len;
  if (f->folios && len > 0 && len <= Q_FOLIOS_MAX_WRITE)
    started = q_folios_before (f->folios, offset, len);
  r = pwritev_full (f->fd, iov, iovcnt, offset);
  if (started)
    q_folios_after (f->folios, started);
  return r;
}

static int
local_pread (struct q_file *f, void *buf, size_t len, uint64_t offset)
{
  struct local_file *lf = (struct local_file *)f;

  return lf->direct ? direct_pread (lf, buf, len, offset)
                    : pread_full (lf->fd, buf, len, offset, 1);
}

static int
local_pwritev (struct q_file *f, const struct iovec *iov, int iovcnt, uint64_t offset)
{
  struct local_file *lf = (struct local_file *)f;

  return lf->direct ? direct_pwritev (lf, (struct iovec *)iov, iovcnt, offset)
                    : cached_pwritev (lf, (struct iovec *)iov, iovcnt, offset);
}

static int
local_sync (struct q_file *f)
{
  return fdatasync (local_fd (f)) == -1 ? -errno : 0;
}

static int
local_fallocate (struct q_file *f, int mode, uint64_t offset, uint64_t len)
{
  int r;

  do
    r = fallocate (local_fd (f), mode, (off_t)offset, (off_t)len);
  while (r == -1 && errno == EINTR);
  if (r == -1)
    return errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL ? -ENOTSUP : -errno;
  return 0;
}

static void
forget_data (struct q_file *f)
{
  struct local_file *lf = (struct local_file *)f;

  pthread_mutex_lock (&lf->data_lock);
  lf->data_from = lf->data_to = 0;
  pthread_mutex_unlock (&lf->data_lock);
}

static int
local_zero (struct q_file *f, uint64_t offset, uint64_t len, bool unmap)
{
  forget_data (f);
  /* On a block device punching zeroes by unmapping, and fails where that cannot be promised. */
  return local_fallocate (
      f, (unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE, offset, len);
}

static int
local_truncate (struct q_file *f, uint64_t size)
{
  forget_data (f);
  return ftruncate (local_fd (f), (off_t)size) == -1 ? -errno : 0;
}

static int
local_allocate (struct q_file *f, uint64_t offset, uint64_t len)
{
  return local_fallocate (f, 0, offset, len);
}

static int
local_size (struct q_file *f, uint64_t *size)
{
  struct stat st;

  if (f->is_device)
    return ioctl (local_fd (f), BLKGETSIZE64, size) == -1 ? -errno : 0;
  if (fstat (local_fd (f), &st) == -1)
    return -errno;
  *size = (uint64_t)st.st_size;
  return 0;
}

static int
local_changed (struct q_file *f, int64_t *ns)
{
  struct stat st;

  if (f->is_device) /* the times of a device node say nothing about the device */
    return -ENOTSUP;
  if (fstat (local_fd (f), &st) == -1)
    return -errno;
  *ns = st.st_ctim.tv_sec * 1000000000ll + st.st_ctim.tv_nsec;
  return 0;
}

static int
local_usage (struct q_file *f, uint64_t *bytes)
{
  struct stat st;

  if (fstat (local_fd (f), &st) == -1)
    return -errno;
  *bytes = (uint64_t)st.st_blocks * 512;
  return 0;
}

/* Whether OFFSET lies in what is known to be data.  It may have become a hole by another's hand:
 * then it reads as zeros all the same. */
static bool
is_known_data (struct local_file *lf, uint64_t offset, uint64_t *end)
{
  bool known;

  pthread_mutex_lock (&lf->data_lock);
  known = offset >= lf->data_from && offset < lf->data_to;
  *end = lf->data_to;
  pthread_mutex_unlock (&lf->data_lock);
  return known;
}

static int
local_extent (struct q_file *f, uint64_t offset, uint64_t *end, bool *is_hole)
{
  struct local_file *lf = (struct local_file *)f;
  off_t data, hole;

  *is_hole = false;
  if (is_known_data (lf, offset, end))
    return 0;
  data = lseek (lf->fd, (off_t)offset, SEEK_DATA);
  if (data == -1 && errno == ENXIO) { /* no data from here to the end of the file */
    *is_hole = true;
    return local_size (f, end);
  }
  if (data == -1)
    return errno == EINVAL ? -ENOTSUP : -errno;
  *is_hole = (uint64_t)data > offset;
  if (*is_hole) {
    *end = (uint64_t)data;
    return 0;
  }
  hole = lseek (lf->fd, (off_t)offset, SEEK_HOLE);
  if (hole == -1)
    return errno == EINVAL ? -ENOTSUP : -errno;
  *end = (uint64_t)hole;
  pthread_mutex_lock (&lf->data_lock);
  lf->data_from = offset;
  lf->data_to = *end;
  pthread_mutex_unlock (&lf->data_lock);
  return 0;
}

static int
local_prefetch (struct q_file *f, uint64_t offset, uint64_t len)
{
  if (((struct local_file *)f)->direct)
    return 0; /* there is no cache to bring it into */
  return -posix_fadvise (local_fd (f), (off_t)offset, (off_t)len, POSIX_FADV_WILLNEED);
}

static int
local_lock (struct q_file *f, bool write, struct q_error *err)
{
  return q_lock_take (local_fd (f), write, f->name, err);
}

static int
local_guard (struct q_file *f, bool write, struct q_error *err)
{
  return q_lock_guard (f->name, local_fd (f), write, err);
}

static void
local_close (struct q_file *f)
{
  struct local_file *lf = (struct local_file *)f;

  q_folios_free (lf->folios);
  q_windows_free (f->windows);
  if (lf->fd >= 0)
    close (lf->fd);
  pthread_rwlock_destroy (&lf->direct_lock);
  pthread_mutex_destroy (&lf->data_lock);
  free (f->name);
  free (lf);
}

static const struct q_file_ops local_ops = {
  .pread = local_pread,
  .pwritev = local_pwritev,
  .sync = local_sync,
  .zero = local_zero,
  .truncate = local_truncate,
  .allocate = local_allocate,
  .size = local_size,
  .changed = local_changed,
  .usage = local_usage,
  .extent = local_extent,
  .prefetch = local_prefetch,
  .lock = local_lock,
  .guard = local_guard,
  .close = local_close,
};

/* Whether a file of this MODE may be opened. */
static int
check_kind (const char *name, mode_t mode, unsigned flags, struct q_error *err)
{
  if ((flags & Q_FILE_NO_FOLLOW) && S_ISLNK (mode))
    return q_fail (err, -EPERM, "%s: is a symbolic link", name);
  if (!S_ISREG (mode) && !S_ISBLK (mode))
    return q_fail (err, -EINVAL, "%s: is a %s, not a regular file or a block device", name,
                   S_ISDIR (mode)    ? "directory"
                   : S_ISFIFO (mode) ? "FIFO"
                   : S_ISSOCK (mode) ? "socket"
                                     : "character device");
  if ((flags & Q_FILE_REGULAR) && S_ISBLK (mode))
    return q_fail (err, -EPERM, "%s: is a block device", name);
  return 0;
}

int
q_file_open_local (void *opaque, const char *name, unsigned flags, struct q_file **file,
                   struct q_error *err)
{
  int oflags = O_CLOEXEC | O_NOCTTY | (flags & Q_FILE_WRITE ? O_RDWR : O_RDONLY);
  struct local_file *lf = calloc (1, sizeof *lf);
  struct stat st;
  int r = 0;

  (void)opaque;
  *file = NULL;
  if (!lf)
    return q_fail (err, -ENOMEM, "%s: out of memory", name);
  pthread_rwlock_init (&lf->direct_lock, NULL);
  pthread_mutex_init (&lf->data_lock, NULL);
  lf->base.ops = &local_ops;
  lf->direct = flags & Q_FILE_DIRECT;
  lf->fd = -1;
  lf->base.fd = -1;
  lf->base.name = strdup (name);
  if (!lf->base.name) {
    r = q_fail (err, -ENOMEM, "%s: out of memory", name);
    goto out;
  }
  /* Looked at first, since opening may do something: to a device, or whoever waits at a FIFO. */
  if ((flags & Q_FILE_NO_FOLLOW ? lstat (name, &st) : stat (name, &st)) == 0) {
    r = check_kind (name, st.st_mode, flags, err);
    if (r < 0)
      goto out;
  }
  /* What is there may have been exchanged: O_NONBLOCK so that a FIFO is an error and not a wait for
   * ever. */
  lf->fd = open (name,
                 oflags | O_NONBLOCK | (flags & Q_FILE_CREATE ? O_CREAT : 0) |
                     (flags & Q_FILE_NO_FOLLOW ? O_NOFOLLOW : 0) | (lf->direct ? O_DIRECT : 0),
                 0644);
  if (lf->fd == -1) {
    r = q_fail (err, -errno, "%s: cannot open%s: %s%s", name,
                flags & Q_FILE_CREATE  ? " for creating"
                : flags & Q_FILE_WRITE ? " for reading and writing"
                                       : "",
                strerror (errno),
                lf->direct && errno == EINVAL ? " (does the file system support O_DIRECT?)" : "");
    goto out;
  }
  if (fstat (lf->fd, &st) == -1) {
    r = q_fail (err, -errno, "%s: %s", name, strerror (errno));
    goto out;
  }
  r = check_kind (name, st.st_mode, flags, err);
  if (r < 0)
    goto out;
  lf->base.is_device = S_ISBLK (st.st_mode);
  lf->base.holes_are_zero = S_ISREG (st.st_mode);
  lf->base.dev = lf->base.is_device ? (uint64_t)st.st_rdev : (uint64_t)st.st_dev;
  lf->base.ino = lf->base.is_device ? 0 : (uint64_t)st.st_ino;
  lf->align = DIRECT_ALIGN;
  if (lf->base.is_device) {
    int sector;

    if (ioctl (lf->fd, BLKSSZGET, &sector) == 0 && sector >= 512 && sector <= (int)DIRECT_ALIGN)
      lf->align = (uint32_t)sector; /* a device may end in the middle of 4096 bytes */
  }
  if (lf->direct) {
    lf->base.direct_fd = lf->fd;
    lf->base.direct_align = lf->align;
  } else
    lf->base.fd = lf->fd;
  if (flags & Q_FILE_LOCK)
    r = q_lock_take (lf->fd, flags & Q_FILE_WRITE, name, err);
  /* Emptied only once nobody else can be using it. */
  if (r == 0 && (flags & Q_FILE_CREATE) && !lf->base.is_device && ftruncate (lf->fd, 0) == -1)
    r = q_fail (err, -errno, "%s: cannot truncate: %s", name, strerror (errno));

  if (r == 0 && !lf->direct)
    lf->base.windows = q_windows_new (lf->fd);
  if (r == 0 && (flags & Q_FILE_WRITE))
    lf->folios = q_folios_new (lf->base.windows);

out:
  if (r == 0)
    *file = &lf->base;
  else
    local_close (&lf->base);
  return r;
}

/* ---- the seam ------------------------------------------------------------------------------ */

/* F is about to be changed. */
static void
sign (struct q_file *f)
{
  struct timespec now;
  int64_t before, ns;

  if (!f->alive)
    return;
  /* Look before writing: the line stays shared.  And whoever was stopped in between does not take
   * back what others have written since. */
  do {
    before = atomic_load_explicit (f->alive, memory_order_relaxed);
    clock_gettime (CLOCK_REALTIME_COARSE, &now);
    ns = now.tv_sec * 1000000000ll + now.tv_nsec;
  } while (before != ns && !atomic_compare_exchange_weak_explicit (
                               f->alive, &before, ns, memory_order_relaxed, memory_order_relaxed));
}

int
q_file_open (const struct q_file_opener *opener, const char *name, unsigned flags,
             struct q_file **file, struct q_error *err)
{
  if (opener)
    return opener->open (opener->opaque, name, flags, file, err);
  return q_file_open_local (NULL, name, flags, file, err);
}

int
q_file_lock (struct q_file *f, bool write, struct q_error *err)
{
  return f->ops->lock ? f->ops->lock (f, write, err) : 0;
}

int
q_file_guard (struct q_file *f, bool write, struct q_error *err)
{
  return f->ops->guard ? f->ops->guard (f, write, err) : -ENOTSUP;
}

void
q_file_close (struct q_file **file)
{
  if (*file)
    (*file)->ops->close (*file);
  *file = NULL;
}

int
q_file_pread (struct q_file *f, void *buf, size_t len, uint64_t offset)
{
  return f->ops->pread (f, buf, len, offset);
}

int
q_file_pwritev (struct q_file *f, struct iovec *iov, int iovcnt, uint64_t offset)
{
  sign (f);
  return f->ops->pwritev (f, iov, iovcnt, offset);
}

int
q_file_pwrite (struct q_file *f, const void *buf, size_t len, uint64_t offset)
{
  struct iovec iov = { (void *)buf, len };

  sign (f);
  return f->ops->pwritev (f, &iov, 1, offset);
}

int
q_file_sync (struct q_file *f)
{
  return f->ops->sync (f);
}

int
q_file_zero (struct q_file *f, uint64_t offset, uint64_t len, bool unmap)
{
  int r;

  sign (f);
  r = f->ops->zero (f, offset, len, unmap);
  sign (f); /* that may have taken long, and the change be its last step */
  return r;
}

int
q_file_write_zeroes (struct q_file *f, uint64_t offset, uint64_t len, bool unmap)
{
  uint64_t size, chunk = q_min (len, ZERO_CHUNK);
  void *zeros;
  int r = q_file_zero (f, offset, len, unmap);

  if (r != -ENOTSUP && r != 0)
    return r;
  if (r == 0) {
    /* That does not make the file longer: what is past its end reads as zeros anyway, but the
     * caller may count on the size. */
    if (f->is_device)
      return 0;
    r = q_file_size (f, &size);
    if (r == 0 && size < offset + len)
      /* Not by truncating: others may be lengthening the file at this moment. */
      r = q_file_pwrite (f, "", 1, offset + len - 1);
    return r;
  }
  if (posix_memalign (&zeros, DIRECT_ALIGN, q_round_up (chunk, DIRECT_ALIGN)) != 0)
    return -ENOMEM;
  memset (zeros, 0, chunk);
  for (r = 0; r == 0 && len > 0; offset += chunk, len -= chunk) {
    chunk = q_min (len, ZERO_CHUNK);
    r = q_file_pwrite (f, zeros, chunk, offset);
  }
  free (zeros);
  return r;
}

int
q_file_truncate (struct q_file *f, uint64_t size)
{
  int r;

  sign (f);
  r = f->ops->truncate (f, size);
  sign (f); /* that may have taken long, and the change be its last step */
  return r;
}

int
q_file_allocate (struct q_file *f, uint64_t offset, uint64_t len)
{
  int r;

  sign (f);
  r = f->ops->allocate (f, offset, len);
  sign (f); /* that may have taken long, and the change be its last step */
  return r;
}

int
q_file_size (struct q_file *f, uint64_t *size)
{
  return f->ops->size (f, size);
}

int
q_file_contains (struct q_file *f, uint64_t offset, uint64_t len)
{
  uint64_t size;
  int r = q_file_size (f, &size);

  return r < 0 ? r : offset <= size && len <= size - offset;
}

int
q_file_changed (struct q_file *f, int64_t *ns)
{
  return f->ops->changed ? f->ops->changed (f, ns) : -ENOTSUP;
}

int
q_file_usage (struct q_file *f, uint64_t *bytes)
{
  return f->ops->usage (f, bytes);
}

int
q_file_extent (struct q_file *f, uint64_t offset, uint64_t *end, bool *is_hole)
{
  return f->ops->extent (f, offset, end, is_hole);
}

int
q_file_prefetch (struct q_file *f, uint64_t offset, uint64_t len)
{
  return f->ops->prefetch (f, offset, len);
}
