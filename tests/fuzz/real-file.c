/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A file with a descriptor, its page cache, and a ring: see real-file.h.
 */

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fuzz.h"
#include "real-file.h"
#include "ring.h"
#include "window.h"

#define MAX_PIECES 64u

static int file = -1, wire = -1; /* what is sent goes through the other one */
static uint64_t chance;
static bool misses;

/* ---- the file -------------------------------------------------------------------------------- */

static int
make_file (const char *name)
{
  const struct rlimit most = { REAL_FILE_MAX, RLIM_INFINITY };
  int fd = memfd_create (name, MFD_CLOEXEC);

  if (fd < 0 || signal (SIGXFSZ, SIG_IGN) == SIG_ERR || setrlimit (RLIMIT_FSIZE, &most) < 0)
    die ("no file in memory: %s", strerror (errno));
  return fd;
}

void
real_file_set (const void *data, size_t n)
{
  if (file < 0)
    file = make_file ("image");
  if (ftruncate (file, 0) < 0 || pwrite (file, data, n, 0) != (ssize_t)n)
    die ("the file cannot be written: %s", strerror (errno));
}

void
real_begin (uint64_t seed, bool some)
{
  chance = random_seed (seed);
  misses = some;
}

int
real_file_open (void *opaque, const char *name, unsigned flags, struct q_file **f,
                struct q_error *err)
{
  const struct mem_store *store = opaque;
  char path[64], *copy;
  int r;

  if (strcmp (name, "image") != 0)
    return store->opener.open (store->opener.opaque, name, flags, f, err);
  snprintf (path, sizeof path, "/proc/self/fd/%d", file);
  r = q_file_open_local (NULL, path, flags, f, err);
  copy = strdup (name);
  if (r < 0 || !copy)
    die ("%s cannot be opened: %s", path, err ? err->text : "");
  free ((*f)->name);
  (*f)->name = copy;
  return 0;
}

bool
real_send (struct bytes *to, const void *p, size_t n)
{
  uint8_t *copy = xalloc (n);
  bool sent;

  if (wire < 0)
    wire = make_file ("sent");
  sent = pwrite (wire, p, n, 0) == (ssize_t)n;
  if (sent && pread (wire, copy, n, 0) != (ssize_t)n)
    die ("what was sent cannot be read: %s", strerror (errno));
  if (sent)
    bytes_add (to, copy, n);
  free (copy);
  return sent;
}

/* ---- the page cache -------------------------------------------------------------------------- */

const void *__real_q_window_find (struct q_windows *w, uint64_t offset, uint64_t len);
const void *__wrap_q_window_find (struct q_windows *w, uint64_t offset, uint64_t len);
ssize_t __wrap_preadv64v2 (int fd, const struct iovec *iov, int n, off_t offset, int flags);

const void *
__wrap_q_window_find (struct q_windows *w, uint64_t offset, uint64_t len)
{
  return misses && random_below (&chance, 2) ? NULL : __real_q_window_find (w, offset, len);
}

ssize_t
__wrap_preadv64v2 (int fd, const struct iovec *iov, int n, off_t offset, int flags)
{
  struct iovec less = *iov;

  (void)flags;
  if (n != 1)
    die ("preadv2 of %d pieces", n);
  switch (misses ? random_below (&chance, 4) : 3) {
  case 0:
  case 1:
    errno = EAGAIN;
    return -1;
  case 2: /* the end of what is there */
    less.iov_len = random_below (&chance, less.iov_len);
    break;
  default:
    break;
  }
  return preadv (fd, &less, 1, offset);
}

/* ---- the ring -------------------------------------------------------------------------------- */

struct ring {
  struct piece {
    struct ring_job *job;
    int fd;
    void *buf;
    uint32_t len;
    uint64_t offset;
  } piece[MAX_PIECES];
  unsigned n;
};

static struct ring ring;

bool __wrap_ring_usable (struct ring *r, unsigned n);
void __wrap_ring_read (struct ring *r, struct ring_job *j, int fd, void *buf, uint32_t len,
                       uint64_t offset);
void __wrap_ring_submit (struct ring *r);

struct ring *
real_ring (void)
{
  ring.n = 0;
  return &ring;
}

bool
__wrap_ring_usable (struct ring *r, unsigned n)
{
  return r && r->n + n <= MAX_PIECES;
}

void
__wrap_ring_read (struct ring *r, struct ring_job *j, int fd, void *buf, uint32_t len,
                  uint64_t offset)
{
  if (r->n == MAX_PIECES)
    broken ("more than the ring had room for");
  if (j->pending++ == 0) {
    j->bytes = 0;
    j->failed = false;
  }
  r->piece[r->n++] = (struct piece){ j, fd, buf, len, offset };
}

/* Nothing waits for it. */
void
__wrap_ring_submit (struct ring *r)
{
  (void)r;
}

static void
read_piece (const struct piece *p)
{
  uint64_t how = misses ? random_below (&chance, 8) : 7;
  size_t len = how == 0 ? random_below (&chance, p->len) : p->len;
  ssize_t n = how == 1 ? -1 : pread (p->fd, p->buf, len, (off_t)p->offset);

  if (n < 0)
    p->job->failed = true;
  else
    p->job->bytes += (uint64_t)n;
  if (--p->job->pending == 0)
    p->job->done (p->job);
}

bool
real_ring_turn (bool all)
{
  bool any = ring.n > 0;

  while (ring.n > 0 && (all || random_below (&chance, 2))) {
    unsigned i = (unsigned)random_below (&chance, ring.n);
    struct piece p = ring.piece[i];

    ring.piece[i] = ring.piece[--ring.n];
    read_piece (&p);
  }
  return any;
}
