/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Power cuts: see states.h.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "images.h"
#include "snaps.h"
#include "states.h"

double
monotonic (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- one state ------------------------------------------------------------------------------- */

struct findings {
  char first[256];
};

static void
note_line (void *opaque, const char *line)
{
  struct findings *f = opaque;

  if (!f->first[0] && strncmp (line, "Leaked", 6) != 0)
    snprintf (f->first, sizeof f->first, "%s", line);
}

/* Version 2 has no dirty bit: there, what a snapshot that was being made has done to counts and
 * flags stays until somebody repairs it.  Nothing can be lost by it. */
static uint64_t
harmless (const struct run *run, const struct q_check_result *result)
{
  return run->damage + (run->w->version == 2 && run->w->mix.snapshot ? result->stale_flags : 0);
}

static bool
has_no_corruption (struct run *run, struct q_image *img, const char *when)
{
  struct q_check_result result;
  struct findings f = { "" };
  struct q_error err = { "" };

  if (q_check (img, 0, &result, note_line, &f, &err) < 0)
    workload_fail (run, "%s: check: %s", when, err.text);
  else if (result.corruptions > harmless (run, &result) || result.check_errors > 0)
    workload_fail (run, "%s: check: %llu corruptions, %llu errors: %s", when,
                   (unsigned long long)result.corruptions, (unsigned long long)result.check_errors,
                   f.first);
  else
    return true;
  return false;
}

static bool
holds (struct run *run, const char *name, struct q_image *img, const struct expect *x,
       const char *when)
{
  uint64_t bad = 0;
  uint8_t byte = 0;

  if (q_size (img) < run->least) {
    workload_fail (run, "%s: the disk has %llu bytes; it had grown to %llu", when,
                   (unsigned long long)q_size (img), (unsigned long long)run->least);
    return false;
  }
  if (workload_compare (img, x, &bad, &byte))
    return !run->w->raw ||
           workload_data_is_raw (run, img, mem_find (&run->store, name)->beside, when);
  workload_fail (run, "%s: byte %llu is %#x; flushed was %#x", when, (unsigned long long)bad, byte,
                 x->certain[bad]);
  return false;
}

int
states_open (struct run *run, const char *name, struct q_image **img, struct q_error *err)
{
  struct mem_file *beside = mem_find (&run->store, name)->beside;
  struct q_open_options opts = run->opts;

  opts.data_file = beside ? beside->name : NULL;
  return q_open (img, name, &opts, err);
}

struct mem_file *
states_cut_file (struct run *run)
{
  struct mem_file *cut = mem_add (&run->store, "cut");

  cut->device = run->top->device;
  cut->plain = run->top->plain;
  if (run->data && !cut->beside) {
    cut->beside = mem_add (&run->store, "cut-data");
    cut->beside->is_beside = true;
    cut->beside->device = run->data->device;
    cut->beside->plain = run->data->plain;
  }
  return cut;
}

static bool
open_state (struct run *run, const char *name, struct q_image **img, const char *when)
{
  struct q_error err;

  if (run->opts.state_dir)
    images_lose_state ();
  if (states_open (run, name, img, &err) == 0)
    return true;
  workload_fail (run, "%s: %s", when, err.text);
  return false;
}

/* Goes on with the disk as the crash left it: writes, discards, zeroes, flushes. */
static bool
go_on (struct run *run, struct q_image *img, uint8_t *disk, uint64_t *random)
{
  uint8_t *buf = xalloc (run->size);
  bool good = true;

  for (int i = 0; good && i < 12; ++i) {
    uint64_t size = q_size (img), offset = random_below (random, size), len;
    int r;

    len = 1 + random_below (random, (8ull << run->cluster_bits) - 1);
    len = len < size - offset ? len : size - offset;
    switch (random_below (random, 5)) {
    case 0:
      memset (disk + offset, 0, len);
      r = q_zero (img, offset, len, Q_ZERO_UNMAP);
      break;
    case 1:
      r = q_discard (img, offset, len);
      if (r == 0)
        r = q_pread (img, buf, offset, len);
      for (uint64_t k = 0; r == 0 && k < len; ++k) {
        good = good && (buf[k] == 0 || buf[k] == disk[offset + k]);
        disk[offset + k] = buf[k];
      }
      break;
    default:
      guest_fill (random_next (random), offset, len, disk + offset);
      r = q_pwrite (img, disk + offset, offset, len);
    }
    if (r == 0 && i % 4 == 3)
      r = q_flush (img);
    if (r < 0)
      workload_fail (run, "after recovery: operation on %llu bytes at %llu: %s",
                     (unsigned long long)len, (unsigned long long)offset, strerror (-r));
    else if (!good)
      workload_fail (run, "after recovery: a discard at %llu shows something else",
                     (unsigned long long)offset);
    good = good && r == 0;
  }
  free (buf);
  return good;
}

static bool
goes_on (struct run *run, struct q_image **img, const char *name, uint64_t *random)
{
  uint8_t *disk = xalloc (run->size);
  struct expect x;
  struct q_error err;
  bool good = q_pread (*img, disk, 0, q_size (*img)) == 0 && go_on (run, *img, disk, random);

  expect_init (&x, disk, run->size);
  good = good && holds (run, name, *img, &x, "after recovery");
  if (good && run->w->mix.snapshot && random_below (random, 2) == 0)
    good = snaps_delete_all (run, *img);
  if (q_close (img, &err) < 0) {
    workload_fail (run, "after recovery: %s", err.text);
    good = false;
  }
  good = good && open_state (run, name, img, "after recovery and closing");
  good = good && has_no_corruption (run, *img, "after recovery and closing") &&
         holds (run, name, *img, &x, "after recovery and closing");
  expect_free (&x);
  free (disk);
  return good;
}

bool
states_examine (struct run *run, const char *name, const struct expect *x, bool recover,
                uint64_t *random)
{
  struct q_image *img;
  bool good;

  if (!open_state (run, name, &img, "opening"))
    return false;
  good = has_no_corruption (run, img, "after opening") &&
         holds (run, name, img, x, "after opening") && snaps_check (run, name, "after opening") &&
         bitmaps_hold (run, img, "after opening");
  if (good && recover)
    good = goes_on (run, &img, name, random);
  if (img && q_close (&img, NULL) < 0 && good) {
    workload_fail (run, "closing failed");
    good = false;
  }
  return good;
}

/* ---- all of them ----------------------------------------------------------------------------- */

static void
follow (struct expect *x, struct run *run, const struct rec_entry *e)
{
  switch (e->mark) {
  case MARK_BEGUN:
    expect_begin (x, &run->op[e->subject]);
    break;
  case MARK_DONE:
    expect_done (x, &run->op[e->subject]);
    break;
  case MARK_SIZE:
    run->least = e->subject;
    break;
  case MARK_FLUSHED:
  case MARK_CLOSED:
    expect_settle (x, e->subject);
    break;
  default:
    snaps_follow (run->snaps, e->mark, e->subject);
  }
}

static bool
is_marked_dirty (const struct mem_file *f)
{
  return f->size > 80 && f->data[7] == 3 && (f->data[79] & 1);
}

static bool
try_state (struct run *run, const struct replay *p, const struct expect *x, enum cut cut,
           const struct states_options *o, uint64_t *random, struct states_counts *n)
{
  struct mem_file *f = mem_find (&run->store, "cut");
  bool recover = random_below (random, 4) == 0 && run->damage == 0, good = true;
  bool qemu = o->qemu_one_in && random_below (random, o->qemu_one_in) == 0;
  double start = monotonic ();
  struct mem_file copy = { .name = f->name }, data = { .name = f->name };

  replay_cut (p, cut, random, f);
  mem_set (&copy, f->data, f->size);
  if (f->beside)
    mem_set (&data, f->beside->data, f->beside->size);
  /* Not while the refcounts are allowed to be wrong. */
  qemu = qemu && !(run->w->version == 2 && run->w->mix.snapshot);
  qemu = qemu && run->damage == 0;
  if (qemu && images_have_qemu () && !is_marked_dirty (f)) {
    ++n->qemu;
    if (images_qemu_check (&run->store, "cut") == 2) {
      workload_fail (run, "qemu-img check finds corruption");
      good = false;
    }
  }
  good = good && states_examine (run, "cut", x, recover, random);
  if (!good) {
    mem_set (f, copy.data, copy.size);
    if (f->beside)
      mem_set (f->beside, data.data, data.size);
  }
  free (copy.data);
  free (data.data);
  ++n->states;
  n->seconds += monotonic () - start;
  n->recovered += recover;
  return good;
}

static bool
is_change (const struct rec_entry *e)
{
  return e->kind == MEM_WRITE || e->kind == MEM_ZERO || e->kind == MEM_ALLOCATE ||
         e->kind == MEM_TRUNCATE;
}

/* Every place where something new can be lost or kept: after each change, and after each mark,
 * since a flush that has been answered demands more of the same file. */
static bool
try_place (struct run *run, const struct replay *p, const struct expect *x,
           const struct states_options *o, uint64_t *random, struct states_counts *n)
{
  bool good = try_state (run, p, x, CUT_ALL, o, random, n);

  ++n->places;
  if (good && p->n_pending > 0)
    good = try_state (run, p, x, CUT_NONE, o, random, n);
  for (unsigned i = 0; good && i < o->each && p->n_pending > 0; ++i) {
    enum cut cut = CUT_MISSING + random_below (random, CUTS - CUT_MISSING);

    good = try_state (run, p, x, cut, o, random, n);
    if (!good) {
      char failure[sizeof run->failure];

      memcpy (failure, run->failure, sizeof failure);
      snprintf (run->failure, sizeof run->failure, "(%s) %.400s", cut_name (cut), failure);
    }
  }
  return good;
}

static bool
is_place (const struct rec_entry *e)
{
  return is_change (e) || (e->kind == REC_MARK && e->mark >= MARK_SNAP_MADE);
}

/* Of how many places one is tried. */
static uint64_t
choose_one_in (const struct recorder *rec, const struct states_options *o,
               const struct states_counts *n)
{
  double each = n->states > 100 ? n->seconds / (double)n->states : 0.001, states = 0, room;

  if (o->place_one_in > 1 || o->until == 0)
    return o->place_one_in;
  for (size_t i = 0; i < rec->n; ++i)
    states += is_place (&rec->entry[i]) ? 2 + o->each : 0;
  room = o->until - monotonic ();
  return room > 0 ? (uint64_t)(states * each / room) + 1 : UINT64_MAX;
}

bool
states_try (struct run *run, const struct recorder *rec, const struct states_options *o,
            struct states_counts *n)
{
  uint64_t random = random_seed (run->seed ^ 0x5a5a5a5a);
  const struct rec_entry *e;
  struct replay p;
  struct expect x;
  bool good = true;
  uint64_t one_in = choose_one_in (rec, o, n);

  states_cut_file (run);
  replay_init (&p, rec);
  expect_init (&x, run->contents, run->size);
  run->least = run->w->start ? 0 : run->size;
  snaps_rewind (run->snaps);
  while (good) {
    e = replay_step (&p);
    if (e && e->kind == REC_MARK)
      follow (&x, run, e);
    if (!e || (is_place (e) && (one_in <= 1 || random_below (&random, one_in) == 0))) {
      good = try_place (run, &p, &x, o, &random, n);
      if (!good) {
        char failure[sizeof run->failure];

        memcpy (failure, run->failure, sizeof failure);
        snprintf (run->failure, sizeof run->failure, "power cut at entry %zu of %zu: %.400s",
                  p.next, rec->n, failure);
      }
    }
    if (!e)
      break;
  }
  expect_free (&x);
  replay_free (&p);
  return good;
}
