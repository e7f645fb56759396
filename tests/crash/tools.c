/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Power cuts and errors in the middle of what is done to images at rest: compacting, recompressing,
 * another backing file, emptying after a commit, amending, shrinking, repairing.
 *
 *     tools [-s SEED] [-d SECONDS] [-t TOOL] [-w WORKLOAD] [-e STATES] [-q ONE-IN] [-o FILE] [-l]
 * [-v]
 *
 * A guest makes the image (workload.h); then a tool works on it with a recorder below.  At every
 * power cut the disk holds what the guest has left, every byte of it, whatever the tool has done so
 * far, and there is no more corruption than there was.  The same after each call of the storage
 * that fails, and when the disk below is full.  Options as for crash.
 */

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "snaps.h"
#include "states.h"

struct tool {
  const char *name;
  int (*work) (struct run *run, struct q_image *img, struct q_error *err);
  bool (*suits) (const struct run *run);
  void (*before) (struct run *run); /* unrecorded; may be NULL */
  bool repair;                      /* how it opens the image, ... */
  enum q_backing backing;           /* ... and whether with what is below */
  bool metadata_only;
  bool tidy; /* what fails leaks nothing, if it failed once or for room */
};

/* ---- what the disk holds --------------------------------------------------------------------- */

/* Makes what the guest has left what is expected from now on. */
static void
take_over (struct run *run)
{
  struct q_open_options opts = run->opts;
  struct q_image *img;
  struct q_error err;

  opts.read_only = true;
  if (q_open (&img, run->top->name, &opts, &err) < 0)
    die ("%s", err.text);
  memset (run->contents, 0, run->size);
  if (q_pread (img, run->contents, 0, q_size (img)) < 0)
    die ("the guest's image cannot be read");
  q_close (&img, NULL);
}

static bool
is_zero (const uint8_t *p, uint64_t n)
{
  return p[0] == 0 && memcmp (p, p + 1, n - 1) == 0;
}

/* ---- the tools ------------------------------------------------------------------------------- */

/* What is in the image file itself, and not encrypted. */
static bool
can_move (const struct run *run)
{
  return !run->w->encrypted && !run->w->data;
}

static int
compact (struct run *run, struct q_image *img, struct q_error *err)
{
  const struct q_compact_options o = { .progress = NULL };
  struct q_compact_result result;

  (void)run;
  return q_compact (img, &o, &result, err);
}

/* As server/img/recompress.c does it. */
static int
recompress (struct run *run, struct q_image *img, struct q_error *err)
{
  const uint64_t cluster = q_cluster_size (img), size = q_size (img);
  uint8_t *buf = xalloc (cluster);
  int r = 0;

  (void)run;
  (void)err;
  for (uint64_t at = 0, n; r == 0 && at < size; at += n) {
    struct q_extent e;
    q_pin_t pin = q_pin ();

    n = cluster < size - at ? cluster : size - at;
    r = q_map (img, at, n, &e, 1, Q_MAP_TOP);
    q_unpin (pin);
    if (r < 0 || e.kind == Q_ZERO || e.len < n || e.depth > 0) {
      r = r < 0 ? r : 0;
      continue;
    }
    r = q_pread (img, buf, at, n);
    if (r == 0)
      r = q_write_compressed (img, buf, at, n);
  }
  free (buf);
  return r;
}

/* Snapshots would show what else is below, or nothing. */
static bool
has_backing (const struct run *run)
{
  return run->w->image == IMAGE_OVERLAY && !run->w->mix.snapshot;
}

/* Rebasing to nothing: what was the backing file's is copied, then its name goes. */
static int
flatten (struct run *run, struct q_image *img, struct q_error *err)
{
  const uint64_t size = q_size (img);
  int r = 0;

  q_expect_backing (img);
  for (uint64_t at = 0; r == 0 && at < size;) {
    struct q_extent e;
    q_pin_t pin = q_pin ();

    r = q_map (img, at, size - at, &e, 1, Q_MAP_TOP);
    q_unpin (pin);
    if (r < 0)
      return r;
    r = 0;
    if (e.kind == Q_ZERO && is_zero (run->contents + at, e.len))
      r = q_zero (img, at, e.len, Q_ZERO_UNMAP);
    else if (e.kind == Q_ZERO)
      r = q_pwrite (img, run->contents + at, at, e.len);
    at += e.len;
  }
  if (r == 0)
    r = q_flush (img);
  return r < 0 ? r : q_set_backing (img, NULL, NULL, err);
}

/* The first part of a commit: everything is in the backing file as well. */
static void
fill_base (struct run *run)
{
  struct q_open_options opts = run->opts;
  struct q_image *top, *base;
  struct q_image_info info;
  struct q_error err;
  int r;

  opts.read_only = true;
  if (q_open (&top, run->top->name, &opts, &err) < 0)
    die ("%s", err.text);
  q_get_info (top, &info);
  opts.read_only = false;
  if (q_open (&base, info.backing_file, &opts, &err) < 0)
    die ("%s", err.text);
  r = q_size (base) < q_size (top) ? q_resize (base, q_size (top), &err) : 0;
  if (r < 0 || q_pwrite (base, run->contents, 0, q_size (top)) < 0 || q_close (&base, &err) < 0)
    die ("the base cannot be written");
  q_close (&top, NULL);
}

static int
empty (struct run *run, struct q_image *img, struct q_error *err)
{
  int r = q_empty (img);

  (void)run;
  (void)err;
  return r < 0 ? r : q_flush (img);
}

static int
amend_width (struct run *run, struct q_image *img, struct q_error *err)
{
  struct q_amend_options o;

  q_amend_options_init (&o);
  o.refcount_bits = run->refcount_bits == 64 ? 16 : 64;
  return q_amend (img, &o, err);
}

static bool
has_version_3 (const struct run *run)
{
  return run->w->version == 3;
}

static bool
can_change_version (const struct run *run)
{
  /* An image of version 2 is not opened with discard-no-unref. */
  return !run->w->no_unref && !run->w->extended_l2 && !run->w->bitmaps && !run->w->encrypted &&
         !run->w->data && !run->w->mix.snapshot && run->w->image != IMAGE_SNAPSHOT &&
         (run->w->version == 2 || (run->refcount_bits == 16 && !run->w->zstd));
}

static int
amend_version (struct run *run, struct q_image *img, struct q_error *err)
{
  struct q_amend_options o;

  q_amend_options_init (&o);
  o.version = run->w->version == 3 ? 2 : 3;
  return q_amend (img, &o, err);
}

/* What is beyond the new end may be gone or not when that fails: nothing is there. */
static void
clear_end (struct run *run)
{
  struct q_image *img;
  struct q_error err;
  uint64_t end;

  if (q_open (&img, run->top->name, &run->opts, &err) < 0)
    die ("%s", err.text);
  end = q_size (img) / 1024 * 512;
  if (q_zero (img, end, q_size (img) - end, Q_ZERO_UNMAP) < 0 || q_close (&img, NULL) < 0)
    die ("the end of the disk cannot be cleared");
  take_over (run);
}

static int
shrink (struct run *run, struct q_image *img, struct q_error *err)
{
  (void)run;
  return q_shrink (img, q_size (img) / 1024 * 512, err);
}

static bool
can_shrink (const struct run *run)
{
  return run->w->image != IMAGE_SNAPSHOT;
}

/* ---- damage ---------------------------------------------------------------------------------- */

static uint64_t
get_number (const struct mem_file *f, uint64_t at, unsigned bytes)
{
  uint64_t n = 0;

  if (at + bytes > f->size)
    return 0;
  for (unsigned i = 0; i < bytes; ++i)
    n = n << 8 | f->data[at + i];
  return n;
}

/* Adds BY to the counts, of 16 bits, of some clusters that have WAS. */
static void
falsify (struct run *run, unsigned was, int by, unsigned times)
{
  struct mem_file *f = run->top;
  const uint64_t cluster = 1ull << run->cluster_bits, table = get_number (f, 48, 8);
  uint64_t random = random_seed (run->seed);

  for (unsigned tries = 0; times > 0 && tries < 4000; ++tries) {
    uint64_t c = 4 + random_below (&random, f->size / cluster), per_block = cluster / 2;
    uint64_t block = get_number (f, table + 8 * (c / per_block), 8),
             at = block + 2 * (c % per_block);

    if (block == 0 || get_number (f, at, 2) != was)
      continue;
    f->data[at + 1] = (uint8_t)(was + (unsigned)by);
    --times;
  }
}

static bool
has_usual_counts (const struct run *run)
{
  return run->refcount_bits == 16;
}

static void
leak (struct run *run)
{
  falsify (run, 0, 2, 9);
}

/* Repairs raise counts that are too low: of data, tables, whatever. */
static void
damage (struct run *run)
{
  leak (run);
  falsify (run, 1, -1, 7);
}

static int
repair (struct run *run, struct q_image *img, struct q_error *err)
{
  struct q_check_result result;

  (void)run;
  return q_check (img, Q_REPAIR_LEAKS | Q_REPAIR_ERRORS, &result, NULL, NULL, err);
}

static int
repair_leaks (struct run *run, struct q_image *img, struct q_error *err)
{
  struct q_check_result result;

  (void)run;
  return q_check (img, Q_REPAIR_LEAKS, &result, NULL, NULL, err);
}

static const struct tool tools[] = {
  { "compact", compact, can_move, NULL, true, Q_BACKING_RECORDED, true, true },
  { "recompress", recompress, can_move, NULL, false, Q_BACKING_RECORDED, false, false },
  { "rebase", flatten, has_backing, NULL, false, Q_BACKING_NONE, false, false },
  { "commit", empty, has_backing, fill_base, false, Q_BACKING_RECORDED, false, false },
  { "width", amend_width, has_version_3, NULL, false, Q_BACKING_RECORDED, true, false },
  { "version", amend_version, can_change_version, NULL, false, Q_BACKING_RECORDED, true, false },
  { "shrink", shrink, can_shrink, clear_end, false, Q_BACKING_RECORDED, false, false },
  { "leaks", repair_leaks, has_usual_counts, leak, true, Q_BACKING_RECORDED, true, false },
  { "repair", repair, has_usual_counts, damage, true, Q_BACKING_RECORDED, true, false },
};
#define N_TOOLS (sizeof tools / sizeof tools[0])

static const char *const images[] = {
  "fresh-v2",
  "overwrite",
  "overlay",
  "overlay-v2",
  "snapshot",
  "compressed",
  "pack",
  "pack-overlay",
  "pack-v2",
  "discard",
  "extended",
  "extended-compressed",
  "encrypted",
  "data",
  "data-overlay",
  "raw",
  "snapshots",
  "bitmaps",
  "no-unref",
  "everything-lazy",
  "extended-snapshots",
  "encrypted-overlay",
};
#define N_IMAGES (sizeof images / sizeof images[0])

/* ---- one run --------------------------------------------------------------------------------- */

struct tap {
  struct mem_tap tap;
  struct recorder rec;
  uint64_t calls, fail_at; /* changes and syncs; 0: none fails */
  int error;
  const struct mem_file *file; /* NULL, or there are ... */
  uint64_t room, cluster;      /* ... so many clusters for it */
};

/* Clusters of [OFFSET, OFFSET + LEN) that take room, or, HOLES, do not: beyond the end as well. */
static uint64_t
count_clusters (const struct tap *t, uint64_t offset, uint64_t len, bool holes)
{
  uint64_t found = 0;

  for (uint64_t at = offset / t->cluster * t->cluster; at < offset + len; at += t->cluster) {
    uint64_t left = at < t->file->size ? t->file->size - at : 0;

    found +=
        holes == (left == 0 || is_zero (t->file->data + at, left < t->cluster ? left : t->cluster));
  }
  return found;
}

static bool
finds_no_room (const struct tap *t, const struct mem_call *call)
{
  return count_clusters (t, 0, t->file->size, false) +
             count_clusters (t, call->offset, call->len, true) >
         t->room;
}

static int
before_call (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct tap *t = opaque;
  const bool counts = call->kind == MEM_WRITE || call->kind == MEM_SYNC ||
                      call->kind == MEM_TRUNCATE || call->kind == MEM_ALLOCATE;

  (void)partial;
  t->calls += counts;
  if (t->file)
    return call->kind == MEM_WRITE && finds_no_room (t, call) ? -ENOSPC : 0;
  return counts && t->calls == t->fail_at ? t->error : 0;
}

static void
call_done (void *opaque, const struct mem_call *call)
{
  rec_done (&((struct tap *)opaque)->rec, call);
}

static struct q_check_result
look (struct run *run)
{
  struct q_open_options opts = run->opts;
  struct q_check_result result = { 0 };
  struct q_image *img;
  struct q_error err;

  opts.read_only = true;
  if (q_open (&img, run->top->name, &opts, &err) < 0 ||
      q_check (img, 0, &result, NULL, NULL, &err) < 0)
    die ("%s", err.text);
  q_close (&img, NULL);
  return result;
}

/* False: workload_fail was called, or the tool failed without a reason. */
static bool
use (struct run *run, const struct tool *tool, bool may_fail)
{
  struct q_open_options opts = run->opts;
  struct q_image *img;
  struct q_error err = { "" };
  int r;

  opts.repair = tool->repair;
  opts.metadata_only = tool->metadata_only;
  opts.backing = tool->backing;
  opts.discard = true;
  r = q_open (&img, run->top->name, &opts, &err);
  if (r == 0) {
    r = tool->work (run, img, &err);
    if (q_close (&img, NULL) < 0 && r == 0)
      r = -EIO;
  }
  if (r < 0 && !may_fail)
    workload_fail (run, "%s: %s (%s)", tool->name, strerror (-r), err.text);
  return r == 0 || may_fail;
}

/* The whole history, cut everywhere. */
static bool
cut_everywhere (struct run *run, const struct tool *tool, const struct states_options *o,
                struct states_counts *n)
{
  struct tap t = { .calls = 0 };
  bool good;

  t.tap = (struct mem_tap){ before_call, call_done, &t };
  rec_init (&t.rec, run->top);
  mem_put_tap (run->top, &t.tap);
  good = use (run, tool, false);
  mem_put_tap (run->top, NULL);
  good = good && states_try (run, &t.rec, o, n);
  rec_free (&t.rec);
  return good;
}

/* One call fails; or, ERROR 0, there is hardly any room. */
static bool
fail_at (struct run *run, const struct tool *tool, uint64_t call, int error)
{
  struct tap t = { .fail_at = call, .error = error, .cluster = 1ull << run->cluster_bits };
  const uint64_t leaks = tool->tidy ? look (run).leaks : 0;
  uint64_t random = random_seed (run->seed);
  struct mem_file *cut;
  struct expect x;
  bool good;

  if (error == 0) {
    t.file = run->top;
    t.room = count_clusters (&t, 0, run->top->size, false) + call % 5;
  }
  t.tap = (struct mem_tap){ before_call, call_done, &t };
  rec_init (&t.rec, run->top);
  mem_put_tap (run->top, &t.tap);
  use (run, tool, true);
  mem_put_tap (run->top, NULL);
  rec_free (&t.rec);
  cut = states_cut_file (run);
  mem_set (cut, run->top->data, run->top->size);
  if (cut->beside)
    mem_set (cut->beside, run->data->data, run->data->size);
  expect_init (&x, run->contents, run->size);
  run->least = 0;
  snaps_rewind (run->snaps);
  good = states_examine (run, "cut", &x, run->damage == 0, &random);
  expect_free (&x);
  if (good && tool->tidy && look (run).leaks > leaks) {
    workload_fail (run, "leaks %llu clusters", (unsigned long long)(look (run).leaks - leaks));
    good = false;
  }
  if (!good) {
    char failure[sizeof run->failure];

    memcpy (failure, run->failure, sizeof failure);
    snprintf (run->failure, sizeof run->failure, "call %llu failed with %s: %.400s",
              (unsigned long long)call, error ? strerror (-error) : "hardly any room", failure);
  }
  return good;
}

/* FAILS: 0, or the call that fails. */
static bool
one_run (const struct tool *tool, const struct workload *w, uint64_t seed, bool fails,
         const struct states_options *o, struct states_counts *n, const char *save, bool *skipped)
{
  static const int errors[] = { -EIO, -ENOSPC, 0 };
  struct workload mine = *w;
  uint64_t random = random_seed (seed);
  struct run run;
  struct q_error err;
  bool good = false;

  if (!workload_prepare (&run, w, seed)) {
    *skipped = true;
    return true;
  }
  run.opts.state_dir = NULL;
  if (!tool->suits (&run)) {
    workload_free (&run);
    return true;
  }
  if (workload_open (&run, &err) < 0)
    workload_fail (&run, "open: %s", err.text);
  else {
    workload_run (&run);
    if (workload_close (&run, &err) < 0)
      workload_fail (&run, "close: %s", err.text);
  }
  if (!run.failure[0]) {
    take_over (&run);
    snaps_begin (run.snaps);
    if (tool->before)
      tool->before (&run);
    run.damage = look (&run).corruptions;
    mine.start = 100; /* the disk may become smaller */
    run.w = &mine;
    good = fails ? fail_at (&run, tool, 1 + random_below (&random, 60), errors[random % 3])
                 : cut_everywhere (&run, tool, o, n);
  }
  if (!good) {
    fprintf (stderr, "tools: FAILED: -t %s -w %s -s %llu: %s\n", tool->name, w->name,
             (unsigned long long)seed, run.failure);
    if (save && mem_find (&run.store, "cut"))
      mem_save (mem_find (&run.store, "cut"), save);
  }
  workload_free (&run);
  return good;
}

static const struct workload *
find_workload (const char *name)
{
  for (size_t i = 0; i < n_workloads; ++i)
    if (strcmp (workloads[i].name, name) == 0)
      return &workloads[i];
  die ("no workload %s", name);
}

static void
quiet (void *opaque, enum q_log_level level, const char *text)
{
  if (opaque && level <= Q_LOG_WARNING)
    printf ("  %s\n", text);
}

int
main (int argc, char **argv)
{
  struct states_options o = { .each = 3, .qemu_one_in = 400 };
  struct states_counts n = { 0 };
  const char *only_tool = NULL, *only_image = NULL, *save = NULL;
  uint64_t seed = 1, runs = 0;
  double seconds = 10, start = monotonic ();
  bool failed = false, skipped = false;
  int c;

  while ((c = getopt (argc, argv, "s:d:t:w:e:q:o:lv")) != -1)
    switch (c) {
    case 's':
      seed = strtoull (optarg, NULL, 0);
      break;
    case 'd':
      seconds = strtod (optarg, NULL);
      break;
    case 't':
      only_tool = optarg;
      break;
    case 'w':
      only_image = optarg;
      break;
    case 'e':
      o.each = (unsigned)strtoul (optarg, NULL, 0);
      break;
    case 'q':
      o.qemu_one_in = (unsigned)strtoul (optarg, NULL, 0);
      break;
    case 'o':
      save = optarg;
      break;
    case 'v':
      o.verbose = true;
      break;
    case 'l':
      for (size_t i = 0; i < N_TOOLS; ++i)
        puts (tools[i].name);
      return 0;
    default:
      return 2;
    }
  q_set_log (quiet, o.verbose ? &o : NULL);

  for (bool first = true; !failed && (first || monotonic () < start + seconds);
       ++seed, first = false)
    for (size_t i = 0; i < N_TOOLS * N_IMAGES && !failed; ++i) {
      /* Every tool comes early, with one image or another. */
      const struct tool *tool = &tools[i % N_TOOLS];
      const char *image = images[(i + i / N_TOOLS + seed) % N_IMAGES];
      double now = monotonic ();

      if ((only_tool && strcmp (only_tool, tool->name) != 0) ||
          (only_image && strcmp (only_image, image) != 0))
        continue;
      if (seconds && now > start + seconds)
        break;
      o.until = seconds ? now + seconds / 40 : 0;
      if (o.verbose)
        printf ("%s of %s: seed %llu\n", tool->name, image, (unsigned long long)seed);
      failed = !one_run (tool, find_workload (image), seed, false, &o, &n, save, &skipped);
      for (unsigned k = 0; k < 3 && !failed; ++k)
        failed =
            !one_run (tool, find_workload (image), seed + 1000 * k, true, &o, &n, save, &skipped);
      ++runs;
    }
  workload_cleanup ();
  printf ("tools: %llu runs, %llu places, %llu crash states (%llu written again, %llu shown to "
          "qemu-img)%s\n",
          (unsigned long long)runs, (unsigned long long)n.places, (unsigned long long)n.states,
          (unsigned long long)n.recovered, (unsigned long long)n.qemu,
          skipped ? "; qemu-img is missing: images were left out" : "");
  return failed ? 1 : 0;
}
