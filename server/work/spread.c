/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "qcow2.h"
#include "spread.h"
#include "worker.h"

/* What is taken at a time: a cluster, or so many small ones. */
#define LEAST_STEP  (64u << 10)
#define MAX_HELPERS 15u

struct spread {
  struct q_image *img;
  const uint8_t *buf;
  uint64_t offset; /* of the write */
  uint64_t whole;  /* where its whole clusters end */
  uint64_t step;
  _Atomic uint64_t next; /* the first byte of them that nobody has taken */
  _Atomic unsigned running;
  _Atomic int error;
  void (*done) (void *opaque, int r);
  void *opaque;
  struct helper {
    struct job job;
    struct spread *spread;
  } helper[];
};

static void
whole_clusters (const struct q_image *img, uint64_t offset, uint64_t end, uint64_t *first,
                uint64_t *last)
{
  const uint64_t cluster = q_cluster_size (img);

  *first = offset / cluster * cluster + (offset % cluster ? cluster : 0);
  *last = end == q_size (img) ? end : end / cluster * cluster;
}

bool
spread_is_worthwhile (const struct q_image *img, uint64_t offset, uint64_t len)
{
  uint64_t first, last;

  whole_clusters (img, offset, offset + len, &first, &last);
  return first < last;
}

static void
note (struct spread *s, int r)
{
  int none = 0;

  if (r < 0)
    atomic_compare_exchange_strong (&s->error, &none, r);
}

/* Takes steps until there are none left.  After that, S is gone if nobody else is at it. */
static void
take_steps (struct spread *s)
{
  uint64_t at;

  while (s->error == 0 && (at = atomic_fetch_add (&s->next, s->step)) < s->whole) {
    uint64_t len = s->whole - at < s->step ? s->whole - at : s->step;

    note (s, q_write_compressed (s->img, s->buf + (at - s->offset), at, len));
  }
  if (atomic_fetch_sub (&s->running, 1) > 1)
    return;
  s->done (s->opaque, s->error);
  free (s);
}

static void
help (struct job *job)
{
  take_steps (((struct helper *)job)->spread);
}

/* How many others are to be asked for help with N steps. */
static unsigned
helpers (uint64_t n)
{
  long processors = sysconf (_SC_NPROCESSORS_ONLN);
  unsigned most = processors > 1 ? (unsigned)processors - 1 : 0;

  most = most < MAX_HELPERS ? most : MAX_HELPERS;
  return n - 1 < most ? (unsigned)(n - 1) : most;
}

void
spread_write (struct pool *pool, struct lane *lane, struct q_image *img, const uint8_t *buf,
              uint64_t offset, uint64_t len, void (*done) (void *opaque, int r), void *opaque)
{
  const uint64_t cluster = q_cluster_size (img), step = cluster > LEAST_STEP ? cluster : LEAST_STEP;
  const uint64_t end = offset + len;
  struct batch batch = { 0 };
  struct spread *s;
  uint64_t first, whole;
  unsigned n;

  whole_clusters (img, offset, end, &first, &whole);
  if (first >= whole) {
    done (opaque, q_pwrite (img, buf, offset, len));
    return;
  }
  n = helpers ((whole - first + step - 1) / step);
  s = calloc (1, sizeof *s + n * sizeof s->helper[0]);
  if (!s) {
    done (opaque, -ENOMEM);
    return;
  }
  *s = (struct spread){ .img = img,
                        .buf = buf,
                        .offset = offset,
                        .whole = whole,
                        .step = step,
                        .next = first,
                        .running = n + 1,
                        .done = done,
                        .opaque = opaque };
  for (unsigned i = 0; i < n; i++) {
    s->helper[i] = (struct helper){ .job = { .run = help, .lane = lane }, .spread = s };
    batch_add (&batch, &s->helper[i].job);
  }
  pool_submit (pool, &batch);
  if (first > offset)
    note (s, q_pwrite (img, buf, offset, first - offset));
  if (end > whole)
    note (s, q_pwrite (img, buf + (whole - offset), whole, end - whole));
  take_steps (s);
}
