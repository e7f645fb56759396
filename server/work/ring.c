/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdlib.h>

#include "ring.h"

#ifdef HAVE_LIBURING

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"

/* Pieces under way at once; more wait for a worker. */
#define RING_SIZE 1024

struct ring {
  struct ev_loop *ev;
  void (*completed) (void *);
  void *opaque;
  enum { MADE, READY, UNUSABLE } state;
  struct io_uring ring;
  ev_io readable;
  ev_timer retry;
  unsigned queued;   /* not submitted yet */
  unsigned underway; /* these included */
};

/* Returns how many there were. */
static unsigned
reap (struct ring *r)
{
  unsigned head, n = 0;
  struct io_uring_cqe *cqe;

  io_uring_for_each_cqe (&r->ring, head, cqe)
  {
    struct ring_job *j = io_uring_cqe_get_data (cqe);
    if (cqe->res < 0)
      j->failed = true;
    else
      j->bytes += (uint64_t)cqe->res;
    n++;
    r->underway--;
    if (--j->pending == 0)
      j->done (j);
  }
  io_uring_cq_advance (&r->ring, n);
  return n;
}

static void
on_readable (struct ev_loop *ev, ev_io *w, int revents)
{
  struct ring *r = w->data;

  (void)ev;
  (void)revents;
  if (reap (r) > 0)
    r->completed (r->opaque);
}

static void
on_retry (struct ev_loop *ev, ev_timer *w, int revents)
{
  (void)ev;
  (void)revents;
  ring_submit (w->data);
}

/* liburing 2.3 declares functions for these two and has none. */
static int
ring_register (struct ring *r, unsigned what, const void *arg, unsigned n)
{
  return syscall (SYS_io_uring_register, r->ring.ring_fd, what, arg, n) < 0 ? -errno : 0;
}

/* Whoever takes the server over cannot open files by a ring, which no filter of system calls sees:
 * it reads what is open, and cannot be taught more. */
static int
restrict_to_reading (struct ring *r)
{
  struct io_uring_restriction only = { .opcode = IORING_RESTRICTION_SQE_OP,
                                       .sqe_op = IORING_OP_READ };

  return ring_register (r, IORING_REGISTER_RESTRICTIONS, &only, 1);
}

static void
make (struct ring *r)
{
  /* The completions are wanted when the loop looks at its events, not in the middle of its work.  A
   * kernel before 6.0 does not know the flags. */
  struct io_uring_params p = { .flags = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER |
                                        IORING_SETUP_R_DISABLED };
  int e = io_uring_queue_init_params (RING_SIZE, &r->ring, &p);

  if (e == -EINVAL)
    e = io_uring_queue_init (RING_SIZE, &r->ring, IORING_SETUP_R_DISABLED);
  if (e >= 0 && (e = restrict_to_reading (r)) < 0)
    io_uring_queue_exit (&r->ring);
  if (e < 0) {
    log_info ("io_uring cannot be used, worker threads will do its work: %s", strerror (-e));
    r->state = UNUSABLE;
    return;
  }
  io_uring_ring_dontfork (&r->ring);
  ev_io_init (&r->readable, on_readable, r->ring.ring_fd, EV_READ);
  r->readable.data = r;
  ev_io_start (r->ev, &r->readable);
  ev_timer_init (&r->retry, on_retry, 0.001, 0.);
  r->retry.data = r;
  r->state = MADE;
}

/* The thread that does this is the one that may submit. */
static bool
enable (struct ring *r)
{
  int e = ring_register (r, IORING_REGISTER_ENABLE_RINGS, NULL, 0);

  if (e >= 0) {
    r->state = READY;
    return true;
  }
  log_info ("io_uring cannot be used, worker threads will do its work: %s", strerror (-e));
  ev_io_stop (r->ev, &r->readable);
  io_uring_queue_exit (&r->ring);
  r->state = UNUSABLE;
  return false;
}

void
ring_start (struct ring **ring, struct ev_loop *ev, void (*completed) (void *), void *opaque)
{
  *ring = calloc (1, sizeof **ring);
  if (!*ring)
    return;
  (*ring)->ev = ev;
  (*ring)->completed = completed;
  (*ring)->opaque = opaque;
  make (*ring);
}

bool
ring_usable (struct ring *r, unsigned n)
{
  if (!r || r->state == UNUSABLE || (r->state == MADE && !enable (r)))
    return false;
  if (io_uring_sq_space_left (&r->ring) < n)
    ring_submit (r);
  return r->underway + n <= RING_SIZE && io_uring_sq_space_left (&r->ring) >= n;
}

void
ring_read (struct ring *r, struct ring_job *j, int fd, void *buf, uint32_t len, uint64_t offset)
{
  struct io_uring_sqe *sqe = io_uring_get_sqe (&r->ring);

  assert (sqe);
  if (j->pending == 0) {
    j->bytes = 0;
    j->failed = false;
  }
  io_uring_prep_read (sqe, fd, buf, len, offset);
  io_uring_sqe_set_data (sqe, j);
  j->pending++;
  r->queued++;
  r->underway++;
}

void
ring_submit (struct ring *r)
{
  if (!r || r->queued == 0)
    return;
  int n = io_uring_submit (&r->ring);
  if (n > 0)
    r->queued -= (unsigned)n;
  /* What the kernel has no memory for stays queued. */
  if (r->queued > 0 && !ev_is_active (&r->retry)) {
    ev_timer_set (&r->retry, 0.001, 0.);
    ev_timer_start (r->ev, &r->retry);
  }
}

void
ring_stop (struct ring **ring)
{
  struct ring *r = *ring;

  if (r && r->state != UNUSABLE) {
    assert (r->underway == 0);
    ev_io_stop (r->ev, &r->readable);
    ev_timer_stop (r->ev, &r->retry);
    io_uring_queue_exit (&r->ring);
  }
  free (r);
  *ring = NULL;
}

#else /* without liburing */

void
ring_start (struct ring **ring, struct ev_loop *ev, void (*completed) (void *), void *opaque)
{
  (void)ev;
  (void)completed;
  (void)opaque;
  *ring = NULL;
}

bool
ring_usable (struct ring *r, unsigned n)
{
  (void)r;
  (void)n;
  return false;
}

void
ring_read (struct ring *r, struct ring_job *j, int fd, void *buf, uint32_t len, uint64_t offset)
{
  (void)r;
  (void)j;
  (void)fd;
  (void)buf;
  (void)len;
  (void)offset;
  abort (); /* ring_usable never said so */
}

void
ring_submit (struct ring *r)
{
  (void)r;
}

void
ring_stop (struct ring **ring)
{
  (void)ring;
}

#endif
