/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "lock.h"

/* QEMU's permission numbers. */
enum { PERM_READ = 0, PERM_WRITE = 1, PERM_RESIZE = 3 };

#define USES_BASE    100
#define REFUSES_BASE 200

static int
lock_byte (int fd, int cmd, short type, off_t byte, struct flock *fl)
{
  *fl = (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
  return fcntl (fd, cmd, fl) == -1 ? -errno : 0;
}

static int
take (int fd, off_t byte)
{
  struct flock fl;

  return lock_byte (fd, F_OFD_SETLK, F_RDLCK, byte, &fl);
}

/* 1 if somebody else holds BYTE. */
static int
held (int fd, off_t byte)
{
  struct flock fl;
  int r = lock_byte (fd, F_OFD_GETLK, F_WRLCK, byte, &fl);

  return r < 0 ? r : fl.l_type != F_UNLCK;
}

static const int used[] = { PERM_READ, PERM_WRITE, PERM_RESIZE };  /* by writers; by readers ... */
#define N_USED(write) ((write) ? sizeof used / sizeof used[0] : 1) /* ... the first one */
static const int refused[] = { PERM_WRITE, PERM_RESIZE }; /* by readers and writers alike */
#define N_REFUSED (sizeof refused / sizeof refused[0])

/* All bytes of a reader, or of a writer. */
static int
take_all (int fd, bool write)
{
  int r = 0;

  for (size_t i = 0; r == 0 && i < N_USED (write); ++i)
    r = take (fd, USES_BASE + used[i]);
  for (size_t i = 0; r == 0 && i < N_REFUSED; ++i)
    r = take (fd, REFUSES_BASE + refused[i]);
  return r;
}

/* R is what a lock came to: the file system knows none. */
static bool
has_no_locks (int r)
{
  return r == -EINVAL || r == -ENOLCK || r == -EOPNOTSUPP || r == -ENOSYS;
}

/* ---- guards ---------------------------------------------------------------------------------- */

struct guard {
  struct guard *next;
  int fd;
  dev_t dev;
  ino_t ino;
};

static pthread_mutex_t guards_lock = PTHREAD_MUTEX_INITIALIZER;
static struct guard *guards;

int
q_lock_guard (const char *name, int locked, bool write, struct q_error *err)
{
  struct stat st, ours;
  int fd = open (name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  int r = fd == -1 || fstat (fd, &st) == -1 || fstat (locked, &ours) == -1 ? -errno : 0;

  if (r == 0 && (st.st_dev != ours.st_dev || st.st_ino != ours.st_ino))
    r = -ESTALE;
  if (r == 0)
    r = take_all (fd, write);
  if (fd != -1 && (r == 0 || has_no_locks (r)))
    return fd;
  if (fd != -1)
    close (fd);
  return q_fail (err, r, "%s: cannot keep it locked: %s", name,
                 r == -ESTALE ? "another file has that name now" : strerror (-r));
}

/* Adds one to the *N that there are. */
static int
add_guard (struct q_file *f, bool write, int *fds, unsigned *n, unsigned max, struct q_error *err)
{
  if (*n == max)
    return q_fail (err, -E2BIG, "%s: there are too many files to keep them locked", f->name);
  int fd = q_file_guard (f, write, err);
  if (fd == -ENOTSUP)
    return 0;
  if (fd >= 0)
    fds[(*n)++] = fd;
  return fd < 0 ? fd : 0;
}

int
q_lock_guards (struct q_image *img, int *fds, unsigned max, struct q_error *err)
{
  unsigned n = 0;
  int r = 0;

  for (struct q_image *layer = img; layer && r == 0; layer = layer->backing) {
    if (layer->lock != Q_LOCK_ON)
      continue;
    r = add_guard (layer->file, !layer->read_only, fds, &n, max, err);
    if (r == 0 && layer->data && layer->data != layer->file)
      r = add_guard (layer->data, !layer->read_only, fds, &n, max, err);
  }
  while (r < 0 && n > 0)
    close (fds[--n]);
  return r < 0 ? r : (int)n;
}

int
q_lock_adopt (int fd)
{
  struct guard *g = calloc (1, sizeof *g);
  struct stat st;

  if (!g || fstat (fd, &st) == -1) {
    int r = g ? -errno : -ENOMEM;
    free (g);
    close (fd);
    return r;
  }
  *g = (struct guard){ .fd = fd, .dev = st.st_dev, .ino = st.st_ino };
  pthread_mutex_lock (&guards_lock);
  g->next = guards;
  guards = g;
  pthread_mutex_unlock (&guards_lock);
  return 0;
}

void
q_lock_disown (void)
{
  pthread_mutex_lock (&guards_lock);
  while (guards) {
    struct guard *g = guards;
    guards = g->next;
    close (g->fd);
    free (g);
  }
  pthread_mutex_unlock (&guards_lock);
}

/* Under the lock: a guard of FD's file; -1: there is none. */
static int
find_guard (int fd)
{
  struct stat st;

  if (guards && fstat (fd, &st) == 0)
    for (struct guard *g = guards; g; g = g->next)
      if (g->dev == st.st_dev && g->ino == st.st_ino)
        return g->fd;
  return -1;
}

/* ---- locking --------------------------------------------------------------------------------- */

/* Whether somebody else than the holder of FD, or those who had its locks before, is in the way. */
static int
contradicted (int fd, bool write)
{
  int r = 0;

  for (size_t i = 0; r == 0 && i < N_USED (write); ++i)
    r = held (fd, REFUSES_BASE + used[i]);
  for (size_t i = 0; r == 0 && i < N_REFUSED; ++i)
    r = held (fd, USES_BASE + refused[i]);
  return r;
}

/* GUARD: of the same file, or -1. */
static int
lock_file (int fd, bool write, int guard, const char *name, struct q_error *err)
{
  int seen = 0;

  /* Seen from the guard, its own locks are not in the way; and as long as it holds them, nobody
   * comes who was not there before. */
  if (guard >= 0)
    seen = contradicted (guard, write);
  int r = take_all (fd, write);
  if (has_no_locks (r)) {
    q_log (Q_LOG_WARNING, "%s: the file system has no locks: nothing keeps another writer out",
           name);
    return 0;
  }
  if (r < 0 && r != -EAGAIN && r != -EACCES)
    return q_fail (err, r, "%s: cannot lock the image: %s", name, strerror (-r));

  if (r == 0)
    r = guard >= 0 ? seen : contradicted (fd, write);
  if (r == 0)
    return 0;
  return q_fail (err, -EAGAIN,
                 "%s: the image is in use by another process%s: 'lsof %s' says which; %s", name,
                 write ? "" : " that writes it", name,
                 write ? "a read-only open shares it with readers"
                       : "to look at it all the same, switch locking off (its contents may change "
                         "under you)");
}

int
q_lock_take (int fd, bool write, const char *name, struct q_error *err)
{
  /* One after the other: whoever a guard lets in keeps out whoever comes next. */
  pthread_mutex_lock (&guards_lock);
  int guard = find_guard (fd);
  if (guard < 0)
    pthread_mutex_unlock (&guards_lock);
  int r = lock_file (fd, write, guard, name, err);
  if (guard >= 0)
    pthread_mutex_unlock (&guards_lock);
  return r;
}
