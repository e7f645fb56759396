/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The model test: random operations on the engine and on a plain array, compared all the way.
 *
 *     model [-s SEED] [-n OPERATIONS] [-t THREADS] [-c] [-d] [-z] [-l L2_CACHE_BYTES]
 *           [-S STATE_DIR] [-k PASSWORD] [-R DATA_FILE] IMAGE
 *
 * IMAGE is a qcow2 image, whose present contents become the model's.  With several threads each has
 * a part of the disk to itself, cut at odd places so that neighbours share clusters, and does
 * everything there; flushes are everybody's.  With -z half of the writes are of whole clusters that
 * are to be compressed.  With -c the image is closed and opened again now and then.  At the end
 * everything is read back, closed, opened, and read again.  With -R the image has DATA_FILE as its
 * raw data file, which must hold the disk after each operation.
 */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qcow2.h"
#include "schedule.h"

#define MAX_IO (3u << 20)

static const char *path;
static int raw = -1; /* the data file */
static struct q_open_options opts;
static struct q_image *img;
static uint8_t *model;
static uint64_t seed = 1;
static bool compress;

static void __attribute__ ((noreturn, format (printf, 1, 2))) die (const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  fprintf (stderr, "model: seed %llu: ", (unsigned long long)seed);
  vfprintf (stderr, fmt, ap);
  fprintf (stderr, "\n");
  va_end (ap);
  exit (1);
}

static uint64_t
next_random (uint64_t *state)
{
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state * 0x2545f4914f6cdd1dull;
}

static void
open_image (void)
{
  struct q_error err;

  if (q_open (&img, path, &opts, &err) < 0)
    die ("%s", err.text);
}

static void
close_image (void)
{
  struct q_error err;

  if (q_close (&img, &err) < 0)
    die ("close: %s", err.text);
}

static void
verify (uint64_t offset, uint64_t len, uint8_t *buf, const char *when)
{
  int r = q_pread (img, buf, offset, len);

  if (r < 0)
    die ("%s: read of %llu at %llu: %s", when, (unsigned long long)len, (unsigned long long)offset,
         strerror (-r));
  if (memcmp (buf, model + offset, len) == 0)
    return;
  for (uint64_t i = 0; i < len; ++i)
    if (buf[i] != model[offset + i])
      die ("%s: byte %llu is %#x, should be %#x (read of %llu at %llu)", when,
           (unsigned long long)(offset + i), buf[i], model[offset + i], (unsigned long long)len,
           (unsigned long long)offset);
}

/* The same for the data file. */
static void
verify_raw (uint64_t offset, uint64_t len, uint8_t *buf, const char *when)
{
  if (raw == -1)
    return;
  if (pread (raw, buf, len, (off_t)offset) != (ssize_t)len)
    die ("%s: the data file is shorter than the disk, or cannot be read", when);
  for (uint64_t i = 0; i < len; ++i)
    if (buf[i] != model[offset + i])
      die ("%s: byte %llu of the raw data file is %#x, should be %#x (%llu at %llu)", when,
           (unsigned long long)(offset + i), buf[i], model[offset + i], (unsigned long long)len,
           (unsigned long long)offset);
}

static void
verify_all (const char *when)
{
  uint8_t *buf = malloc (MAX_IO);

  for (uint64_t pos = 0; pos < q_size (img); pos += MAX_IO) {
    uint64_t len = q_size (img) - pos < MAX_IO ? q_size (img) - pos : MAX_IO;

    verify (pos, len, buf, when);
    verify_raw (pos, len, buf, when);
  }
  free (buf);
}

struct worker {
  uint64_t from, to; /* the part of the disk that is its own */
  uint64_t state;
  unsigned long operations;
  bool reopen;
};

/* Mostly small, sometimes aligned to clusters, sometimes large. */
static void
choose_range (struct worker *w, uint64_t *offset, uint64_t *len)
{
  uint64_t space = w->to - w->from, cluster = q_cluster_size (img), max;

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
}

/* Whole clusters instead, if the worker has any there. */
static bool
cut_to_clusters (struct worker *w, uint64_t *offset, uint64_t *len)
{
  uint64_t cluster = q_cluster_size (img), size = q_size (img);
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

static void *
work (void *opaque)
{
  struct worker *w = opaque;
  uint8_t *buf = malloc (MAX_IO);
  uint64_t offset, len;
  int r = 0;

  for (unsigned long i = 0; i < w->operations; ++i) {
    unsigned op = next_random (&w->state) % 100;
    static const unsigned how[] = { 0, Q_ZERO_UNMAP, Q_ZERO_PROVISION };
    unsigned flags = how[next_random (&w->state) % 3];

    choose_range (w, &offset, &len);
    if (op < 40) {
      bool whole = compress && op < 20 && cut_to_clusters (w, &offset, &len);

      fill (buf, len, &w->state);
      r = whole ? q_write_compressed (img, buf, offset, len) : q_pwrite (img, buf, offset, len);
      memcpy (model + offset, buf, len);
    } else if (op < 65)
      verify (offset, len, buf, "while running");
    else if (op < 75) {
      if (next_random (&w->state) % 4 == 0)
        flags |= Q_ZERO_FAST;
      r = q_zero (img, offset, len, flags);
      if (r == -ENOTSUP && (flags & Q_ZERO_FAST))
        r = 0;
      else
        memset (model + offset, 0, len);
    } else if (op < 88) {
      /* What a discard leaves is the old byte or zero: take what is read as what it is now. */
      r = q_discard (img, offset, len);
      if (r == 0)
        r = q_pread (img, buf, offset, len);
      for (uint64_t j = 0; r == 0 && j < len; ++j) {
        if (buf[j] != 0 && buf[j] != model[offset + j])
          die ("after a discard byte %llu is %#x, was %#x", (unsigned long long)(offset + j),
               buf[j], model[offset + j]);
        model[offset + j] = buf[j];
      }
    } else if (op < 96)
      r = q_flush (img);
    else if (op < 98)
      r = q_prefetch (img, offset, len);
    else if (w->reopen) {
      close_image ();
      open_image ();
    }
    if (r < 0)
      die ("operation %u of %llu bytes at %llu: %s", op, (unsigned long long)len,
           (unsigned long long)offset, strerror (-r));
    verify_raw (offset, len, buf, "while running");
  }
  free (buf);
  return NULL;
}

int
main (int argc, char **argv)
{
  unsigned long operations = 1000, threads = 1;
  struct q_secret key;
  bool reopen = false;
  struct worker *workers;
  pthread_t *ids;
  int c;

  q_open_options_init (&opts);
  opts.discard = true;
  while ((c = getopt (argc, argv, "s:n:t:l:S:R:k:cdz")) != -1)
    switch (c) {
    case 's':
      seed = strtoull (optarg, NULL, 0);
      break;
    case 'n':
      operations = strtoul (optarg, NULL, 0);
      break;
    case 't':
      threads = strtoul (optarg, NULL, 0);
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
      raw = open (optarg, O_RDONLY | O_CLOEXEC);
      if (raw == -1)
        die ("%s: %s", optarg, strerror (errno));
      break;
    case 'c':
      reopen = true;
      break;
    case 'z':
      compress = true;
      break;
    case 'd':
      opts.cache = Q_CACHE_DIRECT;
      break;
    default:
      return 2;
    }
  if (optind + 1 != argc || threads == 0)
    return 2;
  path = argv[optind];
  printf ("model: seed %llu, %lu operations, %lu threads\n", (unsigned long long)seed, operations,
          threads);
  schedule_fuzz (threads > 1 ? seed : 0);
  open_image ();
  model = calloc (1, q_size (img) + 1);
  workers = calloc (threads, sizeof *workers);
  ids = calloc (threads, sizeof *ids);
  if (!model || !workers || !ids)
    die ("out of memory");
  if (q_pread (img, model, 0, q_size (img)) < 0)
    die ("cannot read the image");

  for (unsigned long i = 0; i < threads; ++i) {
    workers[i] = (struct worker){
      .from = q_size (img) / threads * i + (i ? 777 : 0),
      .to = i + 1 == threads ? q_size (img) : q_size (img) / threads * (i + 1) + 777,
      .state = (seed + 1) * 0x9e3779b97f4a7c15ull + i * 7919 + 1,
      .operations = operations / threads,
      .reopen = reopen && threads == 1,
    };
    if (pthread_create (&ids[i], NULL, work, &workers[i]) != 0)
      die ("cannot start a thread");
  }
  for (unsigned long i = 0; i < threads; ++i)
    pthread_join (ids[i], NULL);
  verify_all ("at the end");
  close_image ();
  open_image ();
  verify_all ("after opening again");
  close_image ();
  free (model);
  free (workers);
  free (ids);
  return 0;
}
