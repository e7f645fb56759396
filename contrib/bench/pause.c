/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-bench-pause: how long writes stand still while an image in use is changed as a whole.
 *
 * Threads write 4 KiB at random places of a disk that is allocated all over, while a snapshot is
 * made and deleted, gone back to, bitmaps are changed and the disk grows.  For each: how long it
 * took, and how long the slowest write took that was under way meanwhile.  "nothing" is what the
 * slowest one takes when nothing happens, for as long.
 */

#include "util.h"

#include <qcow2.h>

#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IO 4096

enum { MAX_THREADS = 64 };

static uint64_t disk = UINT64_C (64) << 30;
static struct q_image *img;
static _Atomic int stop;
static _Atomic uint64_t slowest, writes;

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
    uint64_t at = rng_next (&rng) % (disk / IO) * IO, begin = now_ns (), took, most;

    need (q_pwrite (img, buf, at, IO), NULL);
    took = now_ns () - begin;
    most = atomic_load (&slowest);
    while (took > most && !atomic_compare_exchange_weak (&slowest, &most, took))
      ;
    atomic_fetch_add (&writes, 1);
  }
  return NULL;
}

/* ---- what happens ---------------------------------------------------------------------------- */

static void
nothing (unsigned n)
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
  { "nothing", nothing },
  { "snapshot: made", snapshot },
  { "snapshot: gone back to", go_back },
  { "snapshot: deleted", drop_snapshot },
  { "bitmaps: checkpoint", checkpoint },
  { "bitmap and snapshot at one instant", checkpoint_with_snapshot },
  { "grown by 1 GiB", grow },
};

/* ---- running --------------------------------------------------------------------------------- */

static void
measure (size_t event, unsigned rounds)
{
  uint64_t took = 0, most = 0, worst = 0, sum = 0, done = atomic_load (&writes);

  for (unsigned n = 0; n < rounds; n++) {
    uint64_t begin, slow;

    sleep_ns (UINT64_C (50000000));
    atomic_store (&slowest, 0);
    begin = now_ns ();
    events[event].happen (n);
    took = now_ns () - begin;
    slow = atomic_load (&slowest);
    most = took > most ? took : most;
    worst = slow > worst ? slow : worst;
    sum += slow;
  }
  printf ("%-36s %9.1f ms %12.2f ms %12.2f ms %10llu\n", events[event].name, (double)most / 1e6,
          (double)sum / rounds / 1e6, (double)worst / 1e6,
          (unsigned long long)(atomic_load (&writes) - done));
  fflush (stdout);
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
  if (threads < 1 || threads > MAX_THREADS || disk == 0 || rounds == 0)
    fatal ("--threads is 1 to %d, --gib and --rounds are at least 1", MAX_THREADS);
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
  printf ("%-36s %12s %15s %15s %10s\n", "", "took at most", "slowest write", "of all rounds",
          "writes");
  for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
    measure (i, rounds);
  stop = 1;
  for (unsigned i = 0; i < threads; i++)
    pthread_join (thread[i], NULL);
  need (q_close (&img, &err), &err);
  return 0;
}
