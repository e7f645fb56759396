/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-bench-pause: how long writes stand still while an image in use is changed as a whole.
 *
 * Threads write 4 KiB at random places of a disk that is allocated all over, while a snapshot is
 * made and deleted, gone back to, bitmaps are changed and the disk grows.  For each: how long it
 * took, and the 99th percentile and the slowest of the writes that were under way at any moment of
 * it.  "peace" is the same for as long a time in which nothing happens.
 */

#include "util.h"

#include <qcow2.h>

#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IO 4096

enum { MAX_THREADS = 64, MAX_ROUNDS = 1000, MAX_WRITES = 8 << 20 };

struct span {
  _Atomic uint64_t begin, end; /* ns; END 0: not known yet */
};

static uint64_t disk = UINT64_C (64) << 30;
static struct q_image *img;
static _Atomic int stop;
static struct span *writes; /* since the measurement began */
static _Atomic uint64_t n_writes;

static void
need (int r, const struct q_error *err)
{
  if (r < 0)
    fatal ("%s", err && err->text[0] ? err->text : strerror (-r));
}

static void *
write_at_random (void *seed)
{
  uint64_t rng = (uintptr_t)seed;
  uint8_t buf[IO] = { 1 };

  while (!atomic_load_explicit (&stop, memory_order_relaxed)) {
    uint64_t at = rng_next (&rng) % (disk / IO) * IO, begin = now_ns ();

    need (q_pwrite (img, buf, at, IO), NULL);
    uint64_t n = atomic_fetch_add (&n_writes, 1);
    if (n < MAX_WRITES) {
      atomic_store (&writes[n].begin, begin);
      atomic_store (&writes[n].end, now_ns ());
    }
  }
  return NULL;
}

/* ---- what happens ---------------------------------------------------------------------------- */

static void
peace (unsigned n)
{
  (void)n;
  sleep_ns (UINT64_C (200000000));
}

static void
snapshot (unsigned n)
{
  char name[24], id[Q_SNAPSHOT_ID_SIZE];
  struct q_error err;

  snprintf (name, sizeof name, "s%u", n);
  need (q_snapshot_create (img, name, id, &err), &err);
}

static void
drop_snapshot (unsigned n)
{
  char name[24];
  struct q_error err;

  snprintf (name, sizeof name, "s%u", n);
  need (q_snapshot_delete (img, name, &err), &err);
}

static void
go_back (unsigned n)
{
  char name[24];
  struct q_error err;

  snprintf (name, sizeof name, "s%u", n);
  need (q_snapshot_apply (img, name, &err), &err);
}

/* The bitmap of before stops, the next one begins. */
static void
checkpoint (unsigned n)
{
  char old[24], name[24];
  struct q_error err;
  struct q_bitmap_action a[2] = { { .op = Q_BITMAP_ADD, .name = name },
                                  { .op = Q_BITMAP_DISABLE, .name = old } };

  snprintf (old, sizeof old, "b%u", n - 1);
  snprintf (name, sizeof name, "b%u", n);
  need (q_bitmap_change (img, a, n ? 2 : 1, &err), &err);
}

static void
checkpoint_with_snapshot (unsigned n)
{
  char name[24], snap[24];
  struct q_error err;
  struct q_change c[2] = {
    { .img = img, .bitmap = { .op = Q_BITMAP_ADD, .name = name } },
    { .img = img, .snapshot = snap },
  };

  snprintf (name, sizeof name, "c%u", n);
  snprintf (snap, sizeof snap, "c%u", n);
  need (q_change (c, 2, &err), &err);
  need (q_snapshot_delete (img, snap, &err), &err);
}

static void
grow (unsigned n)
{
  struct q_error err;

  (void)n;
  need (q_resize (img, q_size (img) + (UINT64_C (1) << 30), &err), &err);
}

static const struct {
  const char *name;
  void (*happen) (unsigned n);
} events[] = {
  { "peace", peace },
  { "snapshot: made", snapshot },
  { "snapshot: gone back to", go_back },
  { "snapshot: deleted", drop_snapshot },
  { "bitmaps: checkpoint", checkpoint },
  { "bitmap and snapshot at one instant", checkpoint_with_snapshot },
  { "grown by 1 GiB", grow },
};

/* ---- running --------------------------------------------------------------------------------- */

static int
by_length (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;
  return (*x > *y) - (*x < *y);
}

/* How long those writes took, in order, that were under way in one of the N rounds. */
static uint64_t *
choose (const struct span *round, unsigned n, uint64_t *count)
{
  uint64_t total = atomic_load (&n_writes);
  uint64_t *took;

  if (total > MAX_WRITES)
    total = MAX_WRITES; /* the rest was not kept */
  took = malloc ((total + 1) * sizeof *took);
  if (!took)
    fatal ("out of memory");
  *count = 0;
  for (uint64_t i = 0; i < total; i++) {
    uint64_t begin = writes[i].begin, end = writes[i].end;
    bool met = false;
    for (unsigned r = 0; r < n && !met; r++)
      met = end > round[r].begin && begin < round[r].end;
    if (met)
      took[(*count)++] = end - begin;
  }
  qsort (took, *count, sizeof *took, by_length);
  return took;
}

static void
measure (size_t event, unsigned rounds)
{
  static struct span round[MAX_ROUNDS];
  uint64_t most = 0, n;

  for (uint64_t i = 0; i < MAX_WRITES && writes[i].end > 0; i++)
    writes[i].begin = writes[i].end = 0;
  atomic_store (&n_writes, 0);
  for (unsigned i = 0; i < rounds; i++) {
    sleep_ns (UINT64_C (50000000));
    round[i].begin = now_ns ();
    events[event].happen (i);
    round[i].end = now_ns ();
    if (round[i].end - round[i].begin > most)
      most = round[i].end - round[i].begin;
  }
  sleep_ns (UINT64_C (500000000)); /* those that were under way are done */
  uint64_t *took = choose (round, rounds, &n);
  printf ("%-36s %9.1f ms %10.3f ms %10.2f ms %10llu\n", events[event].name, (double)most / 1e6,
          n ? (double)took[n * 99 / 100] / 1e6 : 0, n ? (double)took[n - 1] / 1e6 : 0,
          (unsigned long long)n);
  fflush (stdout);
  free (took);
}

/* Every cluster of the disk gets a place; nothing needs to be written for that. */
static void
allocate_all (void)
{
  for (uint64_t at = 0; at < disk;) {
    struct q_write_plan plan;
    q_pin_t pin = q_pin ();

    need (q_write_begin (img, at, disk - at, 0, &plan), NULL);
    q_write_commit (&plan);
    q_unpin (pin);
    at += plan.len;
  }
  need (q_flush (img), NULL);
}

int
main (int argc, char **argv)
{
  static const struct option options[] = { { "dir", required_argument, NULL, 'd' },
                                           { "gib", required_argument, NULL, 'g' },
                                           { "threads", required_argument, NULL, 't' },
                                           { "rounds", required_argument, NULL, 'n' },
                                           { NULL, 0, NULL, 0 } };
  const char *dir = "/var/tmp";
  unsigned threads = 2, rounds = 5;
  pthread_t thread[MAX_THREADS];
  struct q_create_options create;
  struct q_open_options opts;
  struct q_error err;
  char name[4096];
  int c;

  while ((c = getopt_long (argc, argv, "", options, NULL)) != -1)
    if (c == 'd')
      dir = optarg;
    else if (c == 'g')
      disk = strtoull (optarg, NULL, 10) << 30;
    else if (c == 't')
      threads = (unsigned)strtoul (optarg, NULL, 10);
    else if (c == 'n')
      rounds = (unsigned)strtoul (optarg, NULL, 10);
    else
      return 2;
  if (threads < 1 || threads > MAX_THREADS || disk == 0 || rounds == 0 || rounds > MAX_ROUNDS)
    fatal ("--threads is 1 to %d, --rounds 1 to %d, --gib is at least 1", MAX_THREADS, MAX_ROUNDS);
  writes = calloc (MAX_WRITES, sizeof *writes);
  if (!writes)
    fatal ("out of memory");
  snprintf (name, sizeof name, "%s/nbdcow-bench-pause.%ld", dir, (long)getpid ());
  q_create_options_init (&create);
  q_open_options_init (&opts);
  need (q_create (name, disk, &create, &err), &err);
  c = q_open (&img, name, &opts, &err);
  unlink (name);
  need (c, &err);
  allocate_all ();
  for (unsigned i = 0; i < threads; i++)
    if (pthread_create (&thread[i], NULL, write_at_random, (void *)(uintptr_t)(i + 1)) != 0)
      fatal ("no thread");
  printf ("%llu GiB allocated, %u threads write 4 KiB at random, %u times each\n",
          (unsigned long long)(disk >> 30), threads, rounds);
  printf ("%-36s %12s %13s %13s %10s\n", "", "took at most", "p99 of writes", "slowest", "writes");
  for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
    measure (i, rounds);
  stop = 1;
  for (unsigned i = 0; i < threads; i++)
    pthread_join (thread[i], NULL);
  need (q_close (&img, &err), &err);
  free (writes);
  return 0;
}
