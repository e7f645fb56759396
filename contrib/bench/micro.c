/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-bench-micro: what the engine's own steps cost, without a protocol around them.
 *
 * Times map, allocate and flush of plugin/qcow2/qcow2.h on images that it makes in --dir.  One line
 * a step: how long one takes on one thread, and how many a second all threads together do.  An
 * argument names the one group of steps that is wanted.
 */

#include "util.h"

#include <qcow2.h>

#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IMAGE_SIZE   (UINT64_C (64) << 30)
#define CLUSTER      UINT64_C (65536)
#define IO           4096
#define CHAIN_LAYERS 8
/* What is read and written of an encrypted disk. */
#define CIPHERED (UINT64_C (64) << 20)

enum { BATCH = 64, MAX_THREADS = 64 };

/* What an image is made as. */
enum { MAPPED = 1, EXTENDED = 2, ENCRYPTED = 4 };

struct job;
/* Does N steps; I counts the thread's steps so far. */
typedef void (*step_fn) (struct job *job, uint64_t i, unsigned n);

struct job {
  pthread_t thread;
  struct q_image *img;
  step_fn step;
  unsigned index;
  unsigned batch; /* steps between two looks at the clock */
  uint64_t most;  /* steps that there can be */
  uint64_t rng, steps, ns;
  _Atomic int *stop;
  uint8_t buf[CLUSTER];
};

static const char *dir = "/var/tmp";
static const struct q_secret secret = { "micro", 5 };
static uint64_t run_ns = UINT64_C (500000000);

static uint64_t
random_offset (struct job *job)
{
  return rng_next (&job->rng) % (IMAGE_SIZE / IO) * IO;
}

static void
need (int r, const char *what)
{
  if (r < 0)
    fatal ("%s: %s", what, strerror (-r));
}

/* ---- the steps ----------------------------------------------------------------------------- */

static void
step_map (struct job *job, uint64_t i, unsigned n)
{
  struct q_extent e[4];
  q_pin_t pin = q_pin ();

  (void)i;
  for (; n; n--)
    need (q_map (job->img, random_offset (job), IO, e, 4, Q_NOWAIT), "q_map");
  q_unpin (pin);
}

/* A step with a pin of its own, as a server with one request at a time has. */
static void
step_pin_map (struct job *job, uint64_t i, unsigned n)
{
  for (; n; n--)
    step_map (job, i, 1);
}

static void
step_plan (struct job *job, uint64_t offset)
{
  struct q_write_plan plan;
  q_pin_t pin = q_pin ();

  need (q_write_begin (job->img, offset, IO, 0, &plan), "q_write_begin");
  q_write_commit (&plan);
  q_unpin (pin);
}

static void
step_in_place (struct job *job, uint64_t i, unsigned n)
{
  (void)i;
  for (; n; n--)
    step_plan (job, random_offset (job));
}

/* The I-th cluster of this thread, in an order that jumps about.  Every cluster is taken once. */
static uint64_t
fresh_cluster (struct job *job, uint64_t i)
{
  return (job->index * job->most + permute (i, job->most, 1)) * CLUSTER;
}

static void
step_allocate (struct job *job, uint64_t i, unsigned n)
{
  for (; n; n--)
    step_plan (job, fresh_cluster (job, i++));
}

static void
step_pread (struct job *job, uint64_t i, unsigned n)
{
  (void)i;
  for (; n; n--)
    need (q_pread (job->img, job->buf, random_offset (job) % (UINT64_C (256) << 20), IO),
          "q_pread");
}

static void
step_pwrite (struct job *job, uint64_t i, unsigned n)
{
  (void)i;
  for (; n; n--)
    need (q_pwrite (job->img, job->buf, random_offset (job) % (UINT64_C (64) << 20), IO),
          "q_pwrite");
}

static void
step_flush_clean (struct job *job, uint64_t i, unsigned n)
{
  (void)i;
  for (; n; n--)
    need (q_flush (job->img), "q_flush");
}

static void
step_flush_overwrite (struct job *job, uint64_t i, unsigned n)
{
  for (; n; n--) {
    step_pwrite (job, i, 1);
    need (q_flush (job->img), "q_flush");
  }
}

static void
step_write_fresh (struct job *job, uint64_t i, unsigned n)
{
  for (; n; n--)
    need (q_pwrite (job->img, job->buf, fresh_cluster (job, i++), IO), "q_pwrite");
}

static void
step_flush_allocate (struct job *job, uint64_t i, unsigned n)
{
  for (; n; n--) {
    need (q_pwrite (job->img, job->buf, fresh_cluster (job, i++), IO), "q_pwrite");
    need (q_flush (job->img), "q_flush");
  }
}

static uint64_t
ciphered_offset (struct job *job)
{
  return random_offset (job) % CIPHERED / CLUSTER * CLUSTER;
}

static void
step_decrypt (struct job *job, uint64_t i, unsigned n)
{
  (void)i;
  for (; n; n--)
    need (q_pread (job->img, job->buf, ciphered_offset (job), CLUSTER), "q_pread");
}

static void
step_encrypt (struct job *job, uint64_t i, unsigned n)
{
  (void)i;
  for (; n; n--)
    need (q_pwrite (job->img, job->buf, ciphered_offset (job), CLUSTER), "q_pwrite");
}

/* ---- running ------------------------------------------------------------------------------- */

static void *
job_main (void *arg)
{
  struct job *job = arg;
  uint64_t begin = now_ns ();

  while (!atomic_load_explicit (job->stop, memory_order_relaxed) &&
         job->steps + job->batch <= job->most) {
    job->step (job, job->steps, job->batch);
    job->steps += job->batch;
  }
  job->ns = now_ns () - begin;
  return NULL;
}

/* MOST bounds the steps of each thread.  Returns how many a second all of them do. */
static double
run_bounded (const char *name, struct q_image *img, step_fn step, unsigned batch, unsigned threads,
             uint64_t most)
{
  static struct job jobs[MAX_THREADS];
  _Atomic int stop = 0;
  double each = 0, rate = 0;
  unsigned i;
  int err;

  for (i = 0; i < threads; i++) {
    memset (&jobs[i], 0, sizeof jobs[i]);
    jobs[i].img = img;
    jobs[i].step = step;
    jobs[i].index = i;
    jobs[i].batch = batch;
    jobs[i].most = most;
    jobs[i].rng = i;
    jobs[i].stop = &stop;
    err = pthread_create (&jobs[i].thread, NULL, job_main, &jobs[i]);
    if (err)
      fatal ("pthread_create: %s", strerror (err));
  }
  sleep_ns (run_ns);
  stop = 1;
  for (i = 0; i < threads; i++) {
    pthread_join (jobs[i].thread, NULL);
    each += (double)jobs[i].ns / (double)jobs[i].steps / threads;
    rate += (double)jobs[i].steps / ((double)jobs[i].ns / 1e9);
  }
  printf ("%-44s %2u thread%s %12.0f ns each %14.0f /s\n", name, threads, threads == 1 ? " " : "s",
          each, rate);
  fflush (stdout);
  return rate;
}

static double
run (const char *name, struct q_image *img, step_fn step, unsigned batch, unsigned threads)
{
  return run_bounded (name, img, step, batch, threads, UINT64_MAX);
}

static void
run_scaled (const char *name, struct q_image *img, step_fn step, unsigned threads)
{
  double one = run (name, img, step, 1, 1), all = run (name, img, step, 1, threads);

  printf ("%-44s %2u threads %12.2f times as many as one\n", name, threads, all / one);
}

/* ---- images -------------------------------------------------------------------------------- */

static void
image_name (char *name, size_t size, unsigned layer)
{
  snprintf (name, size, "%s/nbdcow-bench-micro.%ld.%u", dir, (long)getpid (), layer);
}

static struct q_image *
open_image (unsigned layer)
{
  struct q_open_options opts;
  struct q_image *img;
  struct q_error err;
  char name[4096];

  image_name (name, sizeof name, layer);
  q_open_options_init (&opts);
  opts.secret = &secret;
  if (q_open (&img, name, &opts, &err) < 0)
    fatal ("%s", err.text);
  return img;
}

static void
close_image (struct q_image *img)
{
  struct q_error err;

  if (q_close (&img, &err) < 0)
    fatal ("%s", err.text);
}

/* Layer 0 has no backing file; each other one has the one before.  KIND: MAPPED...  False if this
 * build has no encryption. */
static bool
create_image (unsigned layer, unsigned kind)
{
  struct q_create_options opts;
  struct q_error err;
  char name[4096], backing[4096];
  int r;

  image_name (name, sizeof name, layer);
  q_create_options_init (&opts);
  opts.extended_l2 = kind & EXTENDED;
  if (kind & MAPPED)
    opts.preallocation = Q_PREALLOC_METADATA;
  if (kind & ENCRYPTED) {
    opts.secret = &secret;
    opts.encrypt.iter_time_ms = 10;
  }
  if (layer) {
    image_name (backing, sizeof backing, layer - 1);
    opts.backing_file = backing;
    opts.backing_format = "qcow2";
  }
  r = q_create (name, IMAGE_SIZE, &opts, &err);
  if (r < 0 && !(r == -ENOTSUP && (kind & ENCRYPTED)))
    fatal ("%s", err.text);
  return r == 0;
}

static void
remove_images (void)
{
  char name[4096];
  unsigned i;

  for (i = 0; i < CHAIN_LAYERS; i++) {
    image_name (name, sizeof name, i);
    unlink (name);
  }
}

/* Every table that a map can want is in memory afterwards. */
static void
touch_tables (struct q_image *img)
{
  struct q_extent e;
  uint64_t offset;
  q_pin_t pin;

  for (offset = 0; offset < IMAGE_SIZE; offset += CLUSTER) {
    pin = q_pin ();
    need (q_map (img, offset, IO, &e, 1, 0), "q_map");
    q_unpin (pin);
  }
}

/* ---- the groups ---------------------------------------------------------------------------- */

static void
group_mapped (unsigned threads)
{
  struct q_image *img;

  create_image (0, MAPPED);
  img = open_image (0);
  touch_tables (img);
  run ("map 4 KiB, pinned in batches of 64", img, step_map, BATCH, 1);
  run ("map 4 KiB, pinned in batches of 64", img, step_map, BATCH, threads);
  run ("pin, map 4 KiB, unpin", img, step_pin_map, BATCH, 1);
  run ("pin, map 4 KiB, unpin", img, step_pin_map, BATCH, threads);
  run ("write in place: begin and commit", img, step_in_place, BATCH, 1);
  run ("write in place: begin and commit", img, step_in_place, BATCH, threads);
  run ("q_pread 4 KiB, cached", img, step_pread, BATCH, 1);
  run ("q_pwrite 4 KiB in place", img, step_pwrite, BATCH, 1);
  run ("flush, nothing written", img, step_flush_clean, 1, 1);
  run ("q_pwrite in place + flush", img, step_flush_overwrite, 1, 1);
  run ("q_pwrite in place + flush", img, step_flush_overwrite, 1, 16);
  close_image (img);
  remove_images ();
}

/* Each overlay owns its tables: one of their clusters is written, so none can be passed over. */
static void
group_chain (unsigned threads)
{
  uint8_t buf[512] = { 0 };
  struct q_image *img;
  uint64_t offset;
  unsigned i;

  for (i = 0; i < CHAIN_LAYERS; i++) {
    create_image (i, i == 0 ? MAPPED : 0);
    if (i == 0)
      continue;
    img = open_image (i);
    for (offset = 0; offset < IMAGE_SIZE; offset += UINT64_C (512) << 20)
      need (q_pwrite (img, buf, offset, sizeof buf), "q_pwrite");
    close_image (img);
  }
  img = open_image (CHAIN_LAYERS - 1);
  touch_tables (img);
  run ("map 4 KiB through 8 layers", img, step_map, BATCH, 1);
  run ("map 4 KiB through 8 layers", img, step_map, BATCH, threads);
  close_image (img);
  remove_images ();
}

/* An empty image each time: what was allocated stays allocated.  Ends early when it is full. */
static void
on_empty (const char *name, step_fn step, unsigned batch, unsigned threads)
{
  struct q_image *img;

  create_image (0, 0);
  img = open_image (0);
  run_bounded (name, img, step, batch, threads, IMAGE_SIZE / CLUSTER / threads);
  close_image (img);
  remove_images ();
}

static void
group_allocate (unsigned threads)
{
  on_empty ("allocate: begin and commit, 64 KiB clusters", step_allocate, BATCH, 1);
  on_empty ("allocate: begin and commit, 64 KiB clusters", step_allocate, BATCH, threads);
  on_empty ("q_pwrite allocating + flush", step_flush_allocate, 1, 1);
  on_empty ("q_pwrite allocating + flush", step_flush_allocate, 1, 16);
}

/* 4 KiB into clusters that the overlay does not have yet: what of a cluster is copied from below,
 * and written, is the whole of it, or with extended L2 entries nothing. */
static void
group_overlay (unsigned threads)
{
  for (unsigned extended = 0; extended < 2; extended++) {
    const char *name = extended ? "q_pwrite 4 KiB over a backing file, subclusters"
                                : "q_pwrite 4 KiB over a backing file";
    struct q_image *img;

    for (unsigned n = 1; n <= threads; n += threads - 1) {
      create_image (0, MAPPED);
      create_image (1, extended ? EXTENDED : 0);
      img = open_image (1);
      run_bounded (name, img, step_write_fresh, 1, n, IMAGE_SIZE / CLUSTER / n);
      close_image (img);
      remove_images ();
    }
  }
}

/* Whole clusters, so that what a cipher takes is most of it. */
static void
group_encrypted (unsigned threads)
{
  static const uint8_t zeros[CLUSTER];
  struct q_image *img;

  if (!create_image (0, ENCRYPTED)) {
    printf ("encrypted disks: this build has none\n");
    return;
  }
  img = open_image (0);
  for (uint64_t offset = 0; offset < CIPHERED; offset += CLUSTER)
    need (q_pwrite (img, zeros, offset, CLUSTER), "q_pwrite");
  run_scaled ("q_pread 64 KiB, encrypted", img, step_decrypt, threads);
  run_scaled ("q_pwrite 64 KiB in place, encrypted", img, step_encrypt, threads);
  close_image (img);
  remove_images ();
}

int
main (int argc, char *argv[])
{
  static const struct option longopts[] = {
    { "dir", required_argument, NULL, 'd' },
    { "seconds", required_argument, NULL, 's' },
    { NULL, 0, NULL, 0 },
  };
  static const struct {
    const char *name;
    void (*run) (unsigned threads);
  } groups[] = {
    { "mapped", group_mapped },   { "chain", group_chain },         { "allocate", group_allocate },
    { "overlay", group_overlay }, { "encrypted", group_encrypted },
  };
  long cpus = sysconf (_SC_NPROCESSORS_ONLN);
  unsigned threads;
  int c;

  while ((c = getopt_long (argc, argv, "", longopts, NULL)) != -1)
    switch (c) {
    case 'd':
      dir = optarg;
      break;
    case 's':
      run_ns = parse_seconds ("--seconds", optarg);
      break;
    default:
      return EXIT_FAILURE;
    }
  threads = cpus < 2 ? 2 : cpus > MAX_THREADS ? MAX_THREADS : (unsigned)cpus;
  atexit (remove_images);
  for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++)
    if (optind == argc || strcmp (argv[optind], groups[i].name) == 0)
      groups[i].run (threads);
  return EXIT_SUCCESS;
}
