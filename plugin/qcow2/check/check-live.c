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
 */

#include <errno.h>
#include <time.h>

#include "check.h"

/* Looks at everything without holding anything up before it gives up. */
#define TRIES 2u

struct view {
  struct q_file *file;
  const struct q_check_options *options;
};

static int
open_beside (void *opaque, const char *name, unsigned flags, struct q_file **f, struct q_error *err)
{
  const struct view *v = opaque;
  int r = q_rehearsal_open (v->file, f);

  (void)flags;
  if (r < 0)
    return q_fail (err, r, "%s: cannot be looked at: %s", name, strerror (-r));
  q_rehearsal_stop_if (*f, v->options->stop, v->options->opaque);
  return 0;
}

/* What IMG's file has, read anew. */
static int
look (struct q_image *img, const struct q_check_options *o, struct q_check_result *result,
      struct q_error *err)
{
  struct view view = { img->file, o };
  const struct q_file_opener opener = { open_beside, &view };
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
    r = q_check_image (seen, o, result, err);
  q_close (&seen, NULL);
  return o->stop && o->stop (o->opaque) ? -ECANCELED
                                        : r; /* whatever it has come to without reads */
}

static int
stopped (const struct q_image *img, struct q_error *err)
{
  if (err)
    err->text[0] = '\0';
  return q_fail (err, -ECANCELED, "%s: the check was stopped", img->filename);
}

static uint64_t
now_ns (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int
q_check_live (struct q_image *img, const struct q_check_options *given, uint64_t max_held_ns,
              struct q_check_result *result, uint64_t *held_ns, struct q_error *err)
{
  struct q_check_options o = {
    .threads = given->threads, .in_use = true, .stop = given->stop, .opaque = given->opaque
  };
  uint64_t start, took = UINT64_MAX;
  int r;

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
  for (unsigned i = 0; i < TRIES && took > max_held_ns; i++) {
    start = now_ns ();
    r = look (img, &o, result, NULL);
    took = now_ns () - start;
    if (r == -ECANCELED)
      return stopped (img, err);
    if (r == -ENOMEM)
      return q_fail (err, r, "%s: no memory for a check", img->filename);
  }
  if (took > max_held_ns)
    return q_fail (err, -ETIME,
                   "%s: a check takes %.3f s, and flushes would wait for it longer than the %.3f s "
                   "that they may: allow more, or let nbdcow-img check -U look beside the writers",
                   img->filename, (double)took / 1e9, (double)max_held_ns / 1e9);

  o.report = given->report;
  pthread_mutex_lock (&img->layout_lock);
  q_flush (img); /* if that fails, what is in the file is what is checked all the same */
  q_flush_hold (img);
  start = now_ns ();
  r = look (img, &o, result, err);
  *held_ns = now_ns () - start;
  q_flush_let_go (img);
  pthread_mutex_unlock (&img->layout_lock);
  return r == -ECANCELED ? stopped (img, err) : r;
}
