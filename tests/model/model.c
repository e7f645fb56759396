/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The model test: random operations on the engine and on a plain array, compared all the way.
 *
 *     model [-s SEED] [-n OPERATIONS] [-t THREADS] [-c] [-d] [-z] [-b] [-g] [-u] [-K] [-e
 * DIRECTORY]
 *           [-l L2_CACHE_BYTES] [-S STATE_DIR] [-k PASSWORD] [-R DATA_FILE] IMAGE
 *     model [-s SEED] -m IMAGES DIRECTORY
 *
 * IMAGE is a qcow2 image, whose present contents become the model's, or those that the model has in
 * DIRECTORY, where it leaves what it has at the end.  With several threads each has a part of the
 * disk to itself, cut at odd places so that neighbours share clusters, and does everything there;
 * flushes are everybody's.  With -z half of the writes are of whole clusters that are to be
 * compressed.  With -b bitmaps come, change and go meanwhile, with -g snapshots and the size of the
 * disk; with -c the image is closed and opened again now and then; with -u what is discarded stays
 * allocated.  With -R the image has DATA_FILE as its raw data file, which must hold the disk after
 * each operation.
 *
 * At the end everything is read back, closed, opened, and read again.  With -K the process kills
 * itself instead, with the image open: what it has acknowledged is for the next one to find
 * (without a state file, what it has flushed).
 *
 * With -m so many images are made in DIRECTORY, with options and work drawn from seeds that begin
 * with SEED (which is $SEED unless it is given).
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"
#include "schedule.h"

uint64_t seed = 1;
const char *tried;
const char *path;
struct q_open_options opts;
struct q_image *img;
uint8_t *model;
uint64_t model_room;
_Atomic uint64_t disk_size;
pthread_rwlock_t world;
_Atomic unsigned long image_operations;

static int raw = -1; /* the data file */
static bool compress, with_bitmaps, with_layout;

void
die (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  fprintf (stderr, "model: seed %llu: ", (unsigned long long)seed);
  if (tried)
    fprintf (stderr, "%s: ", tried);
  vfprintf (stderr, fmt, ap);
  fprintf (stderr, "\n");
  va_end (ap);
  _exit (1); /* other threads go on: nothing is taken down under them */
}

uint64_t
next_random (uint64_t *state)
{
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state * 0x2545f4914f6cdd1dull;
}

void *
xalloc (size_t bytes)
{
  void *p = calloc (1, bytes + 1);

  if (!p)
    die ("out of memory");
  return p;
}

void
open_image (void)
{
  struct q_error err;

  if (q_open (&img, path, &opts, &err) < 0)
    die ("%s", err.text);
}

void
close_image (void)
{
  struct q_error err;

  if (q_close (&img, &err) < 0)
    die ("close: %s", err.text);
}

/* ---- the model in files ---------------------------------------------------------------------- */

void *
load_file (const char *dir, const char *name, uint64_t *size)
{
  char file[4096];
  uint8_t *data;
  FILE *f;
  long end;

  snprintf (file, sizeof file, "%s/%s", dir, name);
  f = fopen (file, "r");
  *size = 0;
  if (!f)
    return xalloc (0);
  if (fseek (f, 0, SEEK_END) != 0 || (end = ftell (f)) < 0)
    die ("%s: %s", file, strerror (errno));
  rewind (f);
  data = xalloc ((size_t)end);
  *size = (uint64_t)end;
  if (fread (data, 1, *size, f) != *size)
    die ("%s: cannot be read", file);
  fclose (f);
  return data;
}

void
save_file (const char *dir, const char *name, const void *data, uint64_t size)
{
  char file[4096];
  FILE *f;

  snprintf (file, sizeof file, "%s/%s", dir, name);
  f = fopen (file, "w");
  if (!f || fwrite (data, 1, size, f) != size || fclose (f) != 0)
    die ("%s: %s", file, strerror (errno));
}

/* ---- comparing ------------------------------------------------------------------------------- */

static void
compare (const uint8_t *buf, const uint8_t *with, uint64_t offset, uint64_t len, const char *what)
{
  if (memcmp (buf, with, len) == 0)
    return;
  for (uint64_t i = 0; i < len; ++i)
    if (buf[i] != with[i])
      die ("%s: byte %llu is %#x, should be %#x (read of %llu at %llu)", what,
           (unsigned long long)(offset + i), buf[i], with[i], (unsigned long long)len,
           (unsigned long long)offset);
}

static void
verify (uint64_t offset, uint64_t len, uint8_t *buf, const char *when)
{
  int r = q_pread (img, buf, offset, len);

  if (r < 0)
    die ("%s: read of %llu at %llu: %s", when, (unsigned long long)len, (unsigned long long)offset,
         strerror (-r));
  compare (buf, model + offset, offset, len, when);
}

/* The same for the data file. */
static void
verify_raw (uint64_t offset, uint64_t len, uint8_t *buf, const char *when)
{
  if (raw == -1)
    return;
  if (pread (raw, buf, len, (off_t)offset) != (ssize_t)len)
    die ("%s: the data file is shorter than the disk, or cannot be read", when);
  compare (buf, model + offset, offset, len, when);
}

void
compare_disk (struct q_image *image, const uint8_t *data, uint64_t size, const char *what)
{
  uint8_t *buf = xalloc (MAX_IO);

  if (q_size (image) != size)
    die ("%s: the disk has %llu bytes, should have %llu", what, (unsigned long long)q_size (image),
         (unsigned long long)size);
  for (uint64_t pos = 0; pos < size; pos += MAX_IO) {
    uint64_t len = size - pos < MAX_IO ? size - pos : MAX_IO;
    int r = q_pread (image, buf, pos, len);

    if (r < 0)
      die ("%s: read at %llu: %s", what, (unsigned long long)pos, strerror (-r));
    compare (buf, data + pos, pos, len, what);
  }
  free (buf);
}

static void
verify_all (const char *when)
{
  uint8_t *buf = xalloc (MAX_IO);

  compare_disk (img, model, disk_size, when);
  for (uint64_t pos = 0; pos < disk_size; pos += MAX_IO)
    verify_raw (pos, disk_size - pos < MAX_IO ? disk_size - pos : MAX_IO, buf, when);
  free (buf);
  if (with_bitmaps)
    bitmaps_verify (when);
  if (with_layout)
    layout_verify (when);
}

/* ---- what a guest does ----------------------------------------------------------------------- */

struct worker {
  uint64_t from, to; /* the part of the disk that is its own; the last one's ends with the disk */
  bool last;
  uint64_t state;
  unsigned long operations;
  bool reopen;
};

/* Mostly small, sometimes aligned to clusters, sometimes large.  False: its part of the disk is
 * beyond the end. */
static bool
choose_range (struct worker *w, uint64_t *offset, uint64_t *len)
{
  uint64_t space, cluster = q_cluster_size (img), max;

  if (w->last || w->to > disk_size)
    w->to = disk_size;
  if (w->from >= w->to)
    return false;
  space = w->to - w->from;
  if (next_random (&w->state) % 2)
    cluster = q_allocation_size (img);

  switch (next_random (&w->state) % 4) {
  case 0:
    max = 4096;
    break;
  case 1:
    max = MAX_IO;
    break;
  default:
    max = 3 * cluster;
  }
  if (max > MAX_IO)
    max = MAX_IO;
  if (max > space)
    max = space;
  *len = 1 + next_random (&w->state) % max;
  *offset = w->from + next_random (&w->state) % (space - *len + 1);
  if (next_random (&w->state) % 2) {
    uint64_t aligned = *offset / cluster * cluster;

    if (aligned >= w->from)
      *offset = aligned;
    if (*len > cluster)
      *len = *len / cluster * cluster;
  }
  return true;
}

/* Whole clusters instead, if the worker has any there. */
static bool
cut_to_clusters (struct worker *w, uint64_t *offset, uint64_t *len)
{
  uint64_t cluster = q_cluster_size (img), size = disk_size;
  uint64_t first = (*offset + cluster - 1) / cluster * cluster;
  uint64_t end = (*offset + *len + cluster - 1) / cluster * cluster;

  if (end > w->to)
    end = w->to == size ? size : w->to / cluster * cluster;
  if (first >= end || end - first > MAX_IO)
    return false;
  *offset = first;
  *len = end - first;
  return true;
}

static void
fill (uint8_t *buf, uint64_t len, uint64_t *state)
{
  uint64_t r = next_random (state);

  for (uint64_t i = 0; i < len; ++i)
    buf[i] = (uint8_t)(r >> (i % 57)) + (uint8_t)(i >> 9);
}

static void
reopen (void)
{
  pthread_rwlock_wrlock (&world);
  layout_hide_all ();
  close_image ();
  open_image ();
  pthread_rwlock_unlock (&world);
}

static void
operate_on_image (struct worker *w)
{
  if (with_layout && (!with_bitmaps || next_random (&w->state) % 2))
    layout_operate (&w->state);
  else {
    pthread_rwlock_rdlock (&world);
    bitmaps_operate (&w->state);
    pthread_rwlock_unlock (&world);
  }
}

static void
operate (struct worker *w, unsigned op, uint8_t *buf)
{
  static const unsigned how[] = { 0, Q_ZERO_UNMAP, Q_ZERO_PROVISION };
  unsigned flags = how[next_random (&w->state) % 3];
  uint64_t offset, len;
  struct mark mark;
  int r = 0;

  if (!choose_range (w, &offset, &len))
    return;
  if (op < 40) {
    bool whole = compress && op < 20 && cut_to_clusters (w, &offset, &len);

    fill (buf, len, &w->state);
    mark_begin (&mark, offset, len);
    r = whole ? q_write_compressed (img, buf, offset, len) : q_pwrite (img, buf, offset, len);
    mark_end (&mark, model + offset, buf);
    memcpy (model + offset, buf, len);
  } else if (op < 65) {
    verify (offset, len, buf, "while running");
    layout_read (&w->state);
  } else if (op < 75) {
    if (next_random (&w->state) % 4 == 0)
      flags |= Q_ZERO_FAST;
    mark_begin (&mark, offset, len);
    r = q_zero (img, offset, len, flags);
    if (r == -ENOTSUP && (flags & Q_ZERO_FAST)) {
      r = 0;
      mark_end (&mark, model + offset, model + offset);
    } else {
      memset (buf, 0, len);
      mark_end (&mark, model + offset, buf);
      memset (model + offset, 0, len);
    }
  } else if (op < 88) {
    /* What a discard leaves is the old byte or zero: take what is read as what it is now. */
    mark_begin (&mark, offset, len);
    r = q_discard (img, offset, len);
    if (r == 0)
      r = q_pread (img, buf, offset, len);
    for (uint64_t j = 0; r == 0 && j < len; ++j)
      if (buf[j] != 0 && buf[j] != model[offset + j])
        die ("after a discard byte %llu is %#x, was %#x", (unsigned long long)(offset + j), buf[j],
             model[offset + j]);
    mark_end (&mark, model + offset, buf);
    memcpy (model + offset, buf, len);
  } else if (op < 96)
    r = q_flush (img);
  else
    r = q_prefetch (img, offset, len);
  if (r < 0)
    die ("operation %u of %llu bytes at %llu: %s", op, (unsigned long long)len,
         (unsigned long long)offset, strerror (-r));
  verify_raw (offset, len, buf, "while running");
}

static void *
work (void *opaque)
{
  struct worker *w = opaque;
  uint8_t *buf = xalloc (MAX_IO);

  for (unsigned long i = 0; i < w->operations; ++i) {
    unsigned op = next_random (&w->state) % 100;

    if ((with_bitmaps || with_layout) && next_random (&w->state) % 12 == 0)
      operate_on_image (w);
    else if (op >= 98 && w->reopen)
      reopen ();
    else {
      pthread_rwlock_rdlock (&world);
      operate (w, op, buf);
      pthread_rwlock_unlock (&world);
    }
  }
  free (buf);
  return NULL;
}

static void
work_all (unsigned threads, unsigned long operations, bool reopens)
{
  struct worker *workers = xalloc (threads * sizeof *workers);
  pthread_t *ids = xalloc (threads * sizeof *ids);

  for (unsigned i = 0; i < threads; ++i) {
    workers[i] = (struct worker){
      .from = disk_size / threads * i + (i ? 777 : 0),
      .to = disk_size / threads * (i + 1) + 777,
      .last = i + 1 == threads,
      .state = (seed + 1) * 0x9e3779b97f4a7c15ull + i * 7919 + 1,
      .operations = operations / threads,
      .reopen = reopens,
    };
    if (pthread_create (&ids[i], NULL, work, &workers[i]) != 0)
      die ("cannot start a thread");
  }
  for (unsigned i = 0; i < threads; ++i)
    pthread_join (ids[i], NULL);
  free (workers);
  free (ids);
}

/* ---- the whole of it ------------------------------------------------------------------------- */

/* The model is what DIR has, or else what the image holds. */
static void
load (const char *dir)
{
  uint64_t size = 0, largest;
  uint8_t *data = dir ? load_file (dir, "disk", &size) : NULL;
  bool kept = size > 0;

  disk_size = kept ? size : q_size (img);
  largest = kept && with_layout ? layout_load (dir) : 0;
  largest = largest > disk_size ? largest : disk_size;
  model_room = (largest * 2 + 511) / 512 * 512;
  model = xalloc (model_room);
  if (kept)
    memcpy (model, data, size);
  else if (q_pread (img, model, 0, disk_size) < 0)
    die ("cannot read the image");
  free (data);
  if (!kept)
    return;
  if (with_bitmaps)
    bitmaps_load (dir);
  verify_all ("as the last process left it");
}

static void
save (const char *dir, bool bitmaps_lost)
{
  if (!dir)
    return;
  save_file (dir, "disk", model, disk_size);
  if (with_bitmaps)
    bitmaps_save (dir, bitmaps_lost);
  if (with_layout)
    layout_save (dir);
}

/* There may be no room in the header for what it takes, or it is of version 2. */
static bool
has_state_file (void)
{
  DIR *d = opts.state_dir ? opendir (opts.state_dir) : NULL;
  const struct dirent *e;
  bool found = false;

  while (d && (e = readdir (d)) != NULL)
    found = found || e->d_name[0] != '.';
  if (d)
    closedir (d);
  return found;
}

static void __attribute__ ((noreturn)) end_killed (const char *dir)
{
  bool state = has_state_file ();

  if (!state && q_flush (img) < 0)
    die ("the last flush failed");
  save (dir, !state);
  printf ("model: %lu operations on the image; killed, %s\n", image_operations,
          state ? "with a state file" : "flushed");
  fflush (stdout);
  kill (getpid (), SIGKILL);
  _exit (1);
}

static void
end_closed (const char *dir)
{
  verify_all ("at the end");
  close_image ();
  open_image ();
  verify_all ("after opening again");
  close_image ();
  save (dir, false);
  printf ("model: %lu operations on the image\n", image_operations);
  free (model);
}

static void
init_world (void)
{
  pthread_rwlockattr_t attr;

  /* Who wants to be alone comes before those who come later. */
  pthread_rwlockattr_init (&attr);
  pthread_rwlockattr_setkind_np (&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init (&world, &attr);
  pthread_rwlockattr_destroy (&attr);
}

void
model_run (const struct run *run)
{
  compress = run->compress;
  with_bitmaps = run->bitmaps;
  with_layout = run->layout;
  printf ("model: seed %llu, %lu operations, %lu threads\n", (unsigned long long)seed,
          run->operations, run->threads);
  if (run->raw) {
    raw = open (run->raw, O_RDONLY | O_CLOEXEC);
    if (raw == -1)
      die ("%s: %s", run->raw, strerror (errno));
  }
  init_world ();
  open_image ();
  load (run->dir);
  schedule_fuzz (run->threads > 1 ? seed : 0);
  work_all ((unsigned)run->threads, run->operations, run->reopens);
  schedule_fuzz (0);
  if (run->killed)
    end_killed (run->dir);
  end_closed (run->dir);
}

int
main (int argc, char **argv)
{
  struct run run = { .operations = 1000, .threads = 1 };
  const char *from = getenv ("SEED");
  unsigned long images = 0;
  struct q_secret key;
  int c;

  q_open_options_init (&opts);
  opts.discard = true;
  if (from)
    seed = strtoull (from, NULL, 0);
  while ((c = getopt (argc, argv, "s:n:t:l:S:R:k:e:m:cdzbguK")) != -1)
    switch (c) {
    case 's':
      seed = strtoull (optarg, NULL, 0);
      break;
    case 'n':
      run.operations = strtoul (optarg, NULL, 0);
      break;
    case 't':
      run.threads = strtoul (optarg, NULL, 0);
      break;
    case 'l':
      opts.l2_cache_size = opts.refcount_cache_size = strtoull (optarg, NULL, 0);
      break;
    case 'S':
      opts.state_dir = optarg;
      break;
    case 'k':
      key = (struct q_secret){ optarg, strlen (optarg) };
      opts.secret = &key;
      break;
    case 'R':
      run.raw = optarg;
      break;
    case 'e':
      run.dir = optarg;
      break;
    case 'm':
      images = strtoul (optarg, NULL, 0);
      break;
    case 'c':
      run.reopens = true;
      break;
    case 'z':
      run.compress = true;
      break;
    case 'b':
      run.bitmaps = true;
      break;
    case 'g':
      run.layout = true;
      break;
    case 'u':
      opts.discard_no_unref = true;
      break;
    case 'K':
      run.killed = true;
      break;
    case 'd':
      opts.cache = Q_CACHE_DIRECT;
      break;
    default:
      return 2;
    }
  if (optind + 1 != argc || run.threads == 0 || (run.killed && !run.dir))
    return 2;
  if (images > 0)
    return seeds_run (argv[optind], images);
  path = argv[optind];
  model_run (&run);
  return 0;
}
