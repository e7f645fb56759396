/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Workloads: see workload.h.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "images.h"
#include "snaps.h"

#define MAX_IO (256u << 10)

/* No disk is larger, so that a state can be made and looked at in a millisecond. */
#define MAX_DISK (1u << 20)

/* ---- before and after ------------------------------------------------------------------------ */

static void
choose_geometry (struct run *run, uint64_t *random)
{
  static const unsigned cluster_bits[] = { 9, 9, 10, 12, 12, 14, 16 };
  static const unsigned refcount_bits[] = { 1, 2, 4, 8, 16, 16, 32, 64 };
  const struct workload *w = run->w;
  uint64_t clusters = w->clusters, most;
  unsigned from = w->image == IMAGE_SNAPSHOT || w->mix.snapshot ? 2
                  : w->image == IMAGE_COMPRESSED                ? 4
                                                                : 0;

  run->cluster_bits = w->cluster_bits ? w->cluster_bits : cluster_bits[random_below (random, 7)];
  run->refcount_bits = w->version == 2    ? 16
                       : w->refcount_bits ? w->refcount_bits
                                          : refcount_bits[from + random_below (random, 8 - from)];
  if (w->extended_l2 && run->cluster_bits < 14)
    run->cluster_bits = 14 + (run->cluster_bits & 1);
  run->unit_bits = run->cluster_bits - (w->extended_l2 ? 5 : 0);
  most = MAX_DISK >> run->cluster_bits;
  if (!w->cluster_bits && clusters > most)
    clusters = most;
  /* The disk ends inside its last cluster. */
  run->size = (clusters << run->cluster_bits) - (run->cluster_bits > 9 ? 512 : 0);
  run->disk = w->start ? run->size / 100 * w->start / 512 * 512 : run->size;
  run->least = run->floor = run->disk;
  run->opts.l2_cache_size = (uint64_t)(random_below (random, 3) * 4) << run->cluster_bits;
  run->opts.refcount_cache_size = (uint64_t)(random_below (random, 3) * 2) << run->cluster_bits;
  if (w->version >= 3 && random_below (random, 2) == 0)
    workload_keep_state (run);
}

void
workload_keep_state (struct run *run)
{
  run->opts.state_dir = images_state_directory ();
  /* It reserves room for all that the caches may hold. */
  if (run->opts.l2_cache_size == 0)
    run->opts.l2_cache_size = 16ull << run->cluster_bits;
  if (run->opts.refcount_cache_size == 0)
    run->opts.refcount_cache_size = 8ull << run->cluster_bits;
}

bool
workload_prepare (struct run *run, const struct workload *w, uint64_t seed)
{
  uint64_t random = random_seed (seed * 31 + strlen (w->name) + w->clusters);

  *run = (struct run){ .w = w, .seed = seed };
  mem_store_init (&run->store);
  run->top = mem_add (&run->store, "top");
  if (w->data) {
    run->data = mem_add (&run->store, "data");
    run->data->is_beside = true;
    run->top->beside = run->data;
  }
  q_open_options_init (&run->opts);
  run->opts.secret = &images_secret;
  run->opts.discard = true;
  run->opts.discard_no_unref = w->no_unref;
  run->opts.opener = &run->store.opener;
  choose_geometry (run, &random);
  run->contents = xalloc (run->size);
  if (!images_make (run)) {
    mem_store_free (&run->store);
    free (run->contents);
    return false;
  }
  if (w->bitmaps)
    bitmaps_make (run, &random);
  run->bitmaps_may_be_lost = true;
  pthread_mutex_init (&run->lock, NULL);
  expect_init (&run->live, run->contents, run->size);
  run->snaps = xalloc (sizeof *run->snaps);
  run->op = xalloc ((size_t)w->threads * w->operations * sizeof *run->op);
  return true;
}

void
workload_free (struct run *run)
{
  for (size_t i = 0; i < run->n_ops; ++i)
    free (run->op[i].zeroed);
  free (run->op);
  free (run->contents);
  expect_free (&run->live);
  snaps_free (run->snaps);
  free (run->snaps);
  mem_store_free (&run->store);
  pthread_mutex_destroy (&run->lock);
}

int
workload_open (struct run *run, struct q_error *err)
{
  if (run->opts.state_dir)
    images_lose_state ();
  return q_open (&run->img, "top", &run->opts, err);
}

void
workload_mark (struct run *run, enum workload_mark m, size_t subject)
{
  if (run->rec)
    rec_mark (run->rec, m, subject);
}

int
workload_close (struct run *run, struct q_error *err)
{
  int r;

  if (run->storm == 0)
    bitmaps_hold (run, run->img, "before closing");
  r = q_close (&run->img, err);

  if (r == 0)
    workload_mark (run, MARK_CLOSED, run->now);
  return r;
}

void
workload_fail (struct run *run, const char *fmt, ...)
{
  va_list ap;

  pthread_mutex_lock (&run->lock);
  if (!run->failure[0]) {
    va_start (ap, fmt);
    vsnprintf (run->failure, sizeof run->failure, fmt, ap);
    va_end (ap);
  }
  pthread_mutex_unlock (&run->lock);
}

/* ---- one operation --------------------------------------------------------------------------- */

static int
check_error (struct guest *g, const char *what, int r)
{
  const struct run *run = g->run;

  if (r < 0 &&
      (run->storm == 0 || (r != -run->storm && !((r == -EROFS || r == -EIO) && run->may_stick))))
    workload_fail (g->run, "%s: %s", what, strerror (-r));
  return r;
}

static struct guest_op *
begin_with (struct guest *g, enum guest_kind kind, uint64_t offset, uint64_t len, bool compressible)
{
  struct run *run = g->run;
  struct guest_op *op;

  pthread_mutex_lock (&run->lock);
  op = &run->op[run->n_ops++];
  *op = (struct guest_op){
    .kind = kind, .offset = offset, .len = len, .seed = g->random & ~GUEST_COMPRESSIBLE
  };
  if (compressible)
    op->seed |= GUEST_COMPRESSIBLE;
  expect_begin (&run->live, op);
  workload_mark (run, MARK_BEGUN, (size_t)(op - run->op));
  pthread_mutex_unlock (&run->lock);
  return op;
}

struct guest_op *
workload_begin (struct guest *g, enum guest_kind kind, uint64_t offset, uint64_t len)
{
  return begin_with (g, kind, offset, len, false);
}

void
workload_done (struct guest *g, struct guest_op *op)
{
  struct run *run = g->run;

  pthread_mutex_lock (&run->lock);
  op->when = ++run->now;
  expect_done (&run->live, op);
  expect_settle_op (&run->live, op);
  workload_mark (run, MARK_DONE, (size_t)(op - run->op));
  pthread_mutex_unlock (&run->lock);
}

/* As a server's loop does it: what needs no waiting by steps, the rest by the blocking call. */
static int
write_in_steps (struct guest *g, const uint8_t *buf, uint64_t offset, uint64_t len)
{
  while (len > 0) {
    struct q_write_plan plan;
    q_pin_t pin = q_pin ();
    int r = q_write_begin (g->run->img, offset, len, Q_NOWAIT, &plan);

    if (r == 0 && random_below (&g->random, 8) == 0) {
      q_write_abort (&plan); /* a client that went away: nothing has changed */
      q_unpin (pin);
      continue;
    }
    if (r == 0) {
      r = q_write_data (&plan, buf);
      if (r == 0)
        q_write_commit (&plan);
      else
        q_write_abort (&plan);
    }
    q_unpin (pin);
    if (r == -EAGAIN)
      return q_pwrite (g->run->img, buf, offset, len);
    if (r < 0)
      return r;
    buf += plan.len;
    offset += plan.len;
    len -= plan.len;
  }
  return 0;
}

int
guest_write (struct guest *g, uint64_t offset, uint64_t len)
{
  struct guest_op *op = workload_begin (g, GUEST_WRITE, offset, len);
  int r;

  guest_fill (op->seed, offset, len, g->buf);
  r = g->steps && random_below (&g->random, 3) == 0 ? write_in_steps (g, g->buf, offset, len)
                                                    : q_pwrite (g->run->img, g->buf, offset, len);
  if (r == 0)
    workload_done (g, op);
  return check_error (g, "write", r);
}

int
guest_compress (struct guest *g, uint64_t offset, uint64_t len)
{
  struct guest_op *op = begin_with (g, GUEST_WRITE, offset, len, random_below (&g->random, 8) > 0);
  int r;

  guest_fill (op->seed, offset, len, g->buf);
  r = q_write_compressed (g->run->img, g->buf, offset, len);
  if (r == 0)
    workload_done (g, op);
  return check_error (g, "compressed write", r);
}

int
guest_zero (struct guest *g, uint64_t offset, uint64_t len, unsigned flags)
{
  struct guest_op *op = workload_begin (g, GUEST_ZERO, offset, len);
  int r = q_zero (g->run->img, offset, len, flags | Q_ZERO_FAST);

  if (r == -ENOTSUP)
    r = q_zero (g->run->img, offset, len, flags);
  if (r == 0)
    workload_done (g, op);
  return check_error (g, "write zeroes", r);
}

int
guest_read (struct guest *g, uint64_t offset, uint64_t len)
{
  struct run *run = g->run;
  uint64_t bad;
  bool good;
  int r = q_pread (run->img, g->buf, offset, len);

  if (r < 0)
    return check_error (g, "read", r);
  pthread_mutex_lock (&run->lock);
  good = expect_check (&run->live, offset, len, g->buf, &bad);
  pthread_mutex_unlock (&run->lock);
  if (!good)
    workload_fail (run, "while running: byte %llu reads as %#x", (unsigned long long)bad,
                   g->buf[bad - offset]);
  if (run->w->raw) {
    pthread_mutex_lock (&run->data->lock);
    good = offset + len <= run->data->size && memcmp (run->data->data + offset, g->buf, len) == 0;
    pthread_mutex_unlock (&run->data->lock);
    if (!good)
      workload_fail (run, "while running: the raw data file differs from the disk at %llu",
                     (unsigned long long)offset);
  }
  return 0;
}

/* What a discard does is the engine's choice: it is what is read after it. */
int
guest_discard (struct guest *g, uint64_t offset, uint64_t len)
{
  struct guest_op *op = workload_begin (g, GUEST_DISCARD, offset, len);
  uint64_t first = offset / BLOCK, blocks = (offset + len - 1) / BLOCK - first + 1;
  int r = q_discard (g->run->img, offset, len);

  if (r == 0)
    r = q_pread (g->run->img, g->buf, offset, len);
  if (r < 0)
    return check_error (g, "discard", r);
  op->zeroed = xalloc (blocks);
  memset (op->zeroed, 1, blocks);
  for (uint64_t i = 0; i < len; ++i)
    if (g->buf[i] != 0)
      op->zeroed[(offset + i) / BLOCK - first] = 0;
  workload_done (g, op);
  /* Whatever it left, it must be something that was there. */
  return guest_read (g, offset, len);
}

/* A disk that has grown has grown for good.  The guest's last thread does it: what is new is its.
 */
static int
grow (struct guest *g)
{
  struct run *run = g->run;
  struct q_error err;
  uint64_t size;
  bool last;
  int r;

  pthread_mutex_lock (&run->lock);
  last = g->to == run->disk;
  pthread_mutex_unlock (&run->lock);
  if (!last || g->to + 512 > run->size)
    return 0;
  size = g->to + 512 * (1 + random_below (&g->random, (run->size - g->to) / 512));
  r = q_resize (run->img, size, &err);
  if (r == 0) {
    pthread_mutex_lock (&run->lock);
    run->disk = run->floor = g->to = size;
    workload_mark (run, MARK_SIZE, size);
    pthread_mutex_unlock (&run->lock);
  }
  return check_error (g, "resize", r);
}

void
workload_size (struct run *run, uint64_t size, bool done)
{
  pthread_mutex_lock (&run->lock);
  if (done || size < run->floor)
    run->floor = size;
  workload_mark (run, MARK_SIZE, run->floor);
  pthread_mutex_unlock (&run->lock);
}

/* What is cut off is as if it had been zeroed: that is what is there if the disk grows again. */
static int
shrink (struct guest *g)
{
  struct run *run = g->run;
  uint64_t size = 512 * (1 + random_below (&g->random, run->disk / 512));
  struct guest_op *op;
  struct q_error err;
  int r;

  if (size >= run->disk)
    return 0;
  op = workload_begin (g, GUEST_ZERO, size, run->disk - size);
  workload_size (run, size, false);
  r = q_shrink (run->img, size, &err);
  if (r == 0) {
    run->disk = g->to = size;
    workload_size (run, size, true);
    workload_done (g, op);
    pthread_mutex_lock (&run->lock); /* it is durable */
    workload_mark (run, MARK_FLUSHED, op->when);
    pthread_mutex_unlock (&run->lock);
  }
  return check_error (g, "shrink", r);
}

int
workload_flush (struct run *run)
{
  uint64_t asked;
  int r;

  pthread_mutex_lock (&run->lock);
  asked = run->now;
  pthread_mutex_unlock (&run->lock);
  r = q_flush (run->img);
  if (r == 0)
    workload_mark (run, MARK_FLUSHED, asked);
  return r;
}

/* ---- many ------------------------------------------------------------------------------------ */

static void
choose_range (struct guest *g, uint64_t max, bool aligned, uint64_t *offset, uint64_t *len)
{
  uint64_t space = g->to - g->from;
  uint64_t unit = 1ull << (random_below (&g->random, 3) ? g->run->unit_bits : g->run->cluster_bits);

  max = max < space ? max : space;
  max = max < MAX_IO ? max : MAX_IO;
  *len = 1 + random_below (&g->random, max);
  *offset = g->from + random_below (&g->random, space - *len + 1);
  if (aligned) {
    uint64_t start = *offset / unit * unit;

    *offset = start >= g->from ? start : *offset;
    *len = (*len + unit - 1) / unit * unit;
    if (*len > g->to - *offset)
      *len = g->to - *offset;
    if (*len > MAX_IO)
      *len = MAX_IO;
  }
}

/* Some whole clusters, or nothing if the guest has none to itself. */
static int
compress (struct guest *g)
{
  uint64_t cluster = 1ull << g->run->cluster_bits, most = MAX_IO >> g->run->cluster_bits;
  uint64_t first = (g->from + cluster - 1) / cluster, last = g->to / cluster, len, end;

  if (g->to == g->run->disk)
    last = (g->to + cluster - 1) / cluster;
  if (first >= last)
    return 0;
  most = most > 6 ? 6 : most;
  first += random_below (&g->random, last - first);
  most = most < last - first ? most : last - first;
  len = (1 + random_below (&g->random, most)) * cluster;
  end = first * cluster + len;
  return guest_compress (g, first * cluster, end > g->to ? g->to - first * cluster : len);
}

void
guest_operate (struct guest *g)
{
  const struct workload_mix *m = &g->run->w->mix;
  uint64_t total = m->small + m->cluster + m->large + m->zero + m->discard + m->read + m->flush +
                   m->grow + m->shrink + m->compress + m->snapshot + m->bitmap;
  uint64_t pick = random_below (&g->random, total), cluster = 1ull << g->run->cluster_bits;
  uint64_t some = 8ull << (random_below (&g->random, 2) ? g->run->unit_bits : g->run->cluster_bits);
  uint64_t offset, len;
  bool aligned = random_below (&g->random, 3) > 0;

  if (pick < m->small) {
    choose_range (g, 4096, false, &offset, &len);
    guest_write (g, offset, len);
  } else if ((pick -= m->small) < m->cluster) {
    choose_range (g, 4 * cluster, true, &offset, &len);
    guest_write (g, offset, len);
  } else if ((pick -= m->cluster) < m->large) {
    choose_range (g, MAX_IO, aligned, &offset, &len);
    guest_write (g, offset, len);
  } else if ((pick -= m->large) < m->zero) {
    choose_range (g, some, aligned, &offset, &len);
    guest_zero (g, offset, len, random_below (&g->random, 2) ? Q_ZERO_UNMAP : 0);
  } else if ((pick -= m->zero) < m->discard) {
    choose_range (g, some, true, &offset, &len);
    guest_discard (g, offset, len);
  } else if ((pick -= m->discard) < m->read) {
    choose_range (g, MAX_IO, false, &offset, &len);
    guest_read (g, offset, len);
  } else if ((pick -= m->read) < m->grow)
    grow (g);
  else if ((pick -= m->grow) < m->shrink)
    shrink (g);
  else if ((pick -= m->shrink) < m->compress)
    compress (g);
  else if ((pick -= m->compress) < m->snapshot)
    snaps_operate (g);
  else if ((pick -= m->snapshot) < m->bitmap)
    check_error (g, "bitmaps", bitmaps_operate (g->run, &g->random));
  else
    check_error (g, "flush", workload_flush (g->run));
}

static bool
has_failed (struct run *run)
{
  bool failed;

  pthread_mutex_lock (&run->lock);
  failed = run->failure[0] != '\0';
  pthread_mutex_unlock (&run->lock);
  return failed;
}

static void *
work (void *opaque)
{
  struct guest *g = opaque;

  for (unsigned i = 0; i < g->run->w->operations && !has_failed (g->run); ++i)
    guest_operate (g);
  return NULL;
}

void
guest_init (struct guest *g, struct run *run, unsigned index, uint64_t from, uint64_t to)
{
  *g = (struct guest){
    .run = run,
    .from = from,
    .to = to,
    .random = random_seed (run->seed * 64 + index),
    .steps = true,
    .buf = xalloc (run->size < MAX_IO ? MAX_IO : run->size),
  };
}

void
guest_free (struct guest *g)
{
  free (g->buf);
}

void
workload_run (struct run *run)
{
  unsigned n = run->w->threads;
  struct guest *g = xalloc (n * sizeof *g);
  pthread_t *id = xalloc (n * sizeof *id);

  for (unsigned i = 0; i < n; ++i)
    guest_init (&g[i], run, i, i == 0 ? 0 : run->disk / n * i + 333,
                i + 1 == n ? run->disk : run->disk / n * (i + 1) + 333);
  if (n == 1)
    work (&g[0]);
  else {
    for (unsigned i = 0; i < n; ++i)
      if (pthread_create (&id[i], NULL, work, &g[i]) != 0)
        die ("cannot start a thread");
    for (unsigned i = 0; i < n; ++i)
      pthread_join (id[i], NULL);
  }
  for (unsigned i = 0; i < n; ++i)
    guest_free (&g[i]);
  free (id);
  free (g);
}

bool
workload_compare (struct q_image *img, const struct expect *x, uint64_t *bad, uint8_t *byte)
{
  uint8_t *buf = xalloc (MAX_IO);
  uint64_t size = q_size (img);
  bool good = size <= x->size;

  for (uint64_t at = 0; good && at < size; at += MAX_IO) {
    uint64_t n = size - at < MAX_IO ? size - at : MAX_IO;
    int r = q_pread (img, buf, at, n);

    if (r < 0)
      die ("read of %llu bytes at %llu: %s", (unsigned long long)n, (unsigned long long)at,
           strerror (-r));
    good = expect_check (x, at, n, buf, bad);
    if (!good)
      *byte = buf[*bad - at];
  }
  free (buf);
  return good;
}

bool
workload_data_is_raw (struct run *run, struct q_image *img, const struct mem_file *data,
                      const char *when)
{
  uint64_t size = q_size (img);
  uint8_t *buf = xalloc (size);
  bool good =
      q_pread (img, buf, 0, size) == 0 && size <= data->size && memcmp (buf, data->data, size) == 0;

  for (uint64_t i = 0; !good && i < size; ++i)
    if (i >= data->size || buf[i] != data->data[i]) {
      workload_fail (run, "%s: byte %llu of the raw data file is not that of the disk", when,
                     (unsigned long long)i);
      break;
    }
  free (buf);
  return good;
}

void
workload_cleanup (void)
{
  images_cleanup ();
}
