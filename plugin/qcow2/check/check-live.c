/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Checking an image that this process writes, as it is in the file at one moment.
 *
 * What the file has of metadata is changed by the flusher, and by those who hold the layout lock.
 * Who holds both, the flush and that lock, can read all of it in whatever time it takes, and what
 * is read fits together.  Reads and writes go on meanwhile, as far as memory has room for the
 * tables that they change; flushes wait.
 *
 * 1. What is looked at is the file alone, through an image of its own: tables in memory are ahead
 *    of it.  By invariants 1 and 2 of the engine a sound image shows no corruption then, but it may
 *    show leaks: clusters that are counted before anything refers to them, or until they are free.
 * 2. Flushes do not wait for the disk to be read: everything was read once before they are held.
 *    Nor do they wait for longer than they may: then it is given up.
 */

#include <errno.h>
#include <time.h>

#include "check.h"

/* Looks at everything without holding anything up before it gives up. */
#define TRIES 2u

static int
open_beside (void *opaque, const char *name, unsigned flags, struct q_file **f, struct q_error *err)
{
  int r = q_rehearsal_open (opaque, f);

  (void)flags;
  return r < 0 ? q_fail (err, r, "%s: cannot be looked at: %s", name, strerror (-r)) : 0;
}

static uint64_t
now_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* One look at everything. */
struct looking {
  const struct q_check_options *given;
  uint64_t until; /* by now_ns (): then it is given up */
  bool late;      /* it was */
};

static bool
is_over (void *opaque)
{
  struct looking *l = opaque;

  l->late = l->late || now_ns () >= l->until;
  return l->late || (l->given->stop && l->given->stop (l->given->opaque));
}

static void
pass_on (void *opaque, const char *line)
{
  const struct looking *l = opaque;

  l->given->report (l->given->opaque, line);
}

/* What IMG's file has, read anew.  REPORTS: what is wrong is told. */
static int
look (struct q_image *img, struct looking *l, bool reports, struct q_check_result *result,
      struct q_error *err)
{
  const struct q_check_options o = { .threads = l->given->threads,
                                     .in_use = true,
                                     .report = reports && l->given->report ? pass_on : NULL,
                                     .stop = is_over,
                                     .opaque = l };
  const struct q_file_opener opener = { open_beside, img->file };
  struct q_open_options opts;
  struct q_image *seen;
  int r;

  q_open_options_init (&opts);
  opts.format = Q_FORMAT_QCOW2;
  opts.read_only = true;
  opts.lock = Q_LOCK_OFF;
  opts.metadata_only = true;
  opts.repair = true;
  opts.opener = &opener;
  r = q_open (&seen, img->filename, &opts, err);
  if (r == 0)
    r = q_check_image (seen, &o, result, err);
  q_close (&seen, NULL);
  return r;
}

/* Everything fits together: nobody changes it meanwhile. */
static int
look_and_hold (struct q_image *img, struct looking *l, uint64_t max_held_ns,
               struct q_check_result *result, uint64_t *held_ns, struct q_error *err)
{
  struct q_error why = { "" };
  uint64_t start;
  int r;

  pthread_mutex_lock (&img->layout_lock);
  q_flush (img); /* if that fails, what is in the file is what is checked all the same */
  q_flush_hold (img);
  start = now_ns ();
  l->until = start + q_min (max_held_ns, UINT64_MAX - start);
  r = look (img, l, true, result, &why);
  *held_ns = now_ns () - start;
  q_flush_let_go (img);
  pthread_mutex_unlock (&img->layout_lock);
  if (l->late)
    return q_fail (err, -ETIME,
                   "%s: the check was given up: it took longer than the %.3f s that flushes may "
                   "wait for it, although it had not before; allow more, or try again",
                   img->filename, (double)max_held_ns / 1e9);
  return r < 0 ? q_fail (err, r, "%s", why.text) : 0;
}

int
q_check_live (struct q_image *img, const struct q_check_options *o, uint64_t max_held_ns,
              struct q_check_result *result, uint64_t *held_ns, struct q_error *err)
{
  struct looking l = { .given = o, .until = UINT64_MAX };
  uint64_t took = 0;

  *held_ns = 0;
  memset (result, 0, sizeof *result);
  if (img->format != Q_FORMAT_QCOW2)
    return q_fail (err, -ENOTSUP, "%s: a raw image has nothing that could be checked",
                   img->filename);
  /* What is held would be this image's own: that would not keep the file as it is. */
  if (img->beside_writer)
    return q_fail (err, -EBUSY,
                   "%s: this shows a snapshot in a file that is being written: have the image "
                   "checked that writes it",
                   img->filename);
  /* Beside a writer anything may seem wrong: this is for the page cache, and for the clock. */
  for (unsigned i = 0; i == 0 || (i < TRIES && took > max_held_ns); i++) {
    const uint64_t start = now_ns ();
    struct q_error why = { "" };
    int r = look (img, &l, false, result, &why);

    took = now_ns () - start;
    if (r == -ENOMEM || r == -EINTR)
      return q_fail (err, r, "%s", why.text);
  }
  if (took > max_held_ns)
    return q_fail (err, -ETIME,
                   "%s: a check takes %.3f s, and flushes would wait for it longer than the %.3f s "
                   "that they may: allow more, or let nbdcow-img check -U look beside the writers",
                   img->filename, (double)took / 1e9, (double)max_held_ns / 1e9);
  return look_and_hold (img, &l, max_held_ns, result, held_ns, err);
}
