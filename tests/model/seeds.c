/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Many small images, each with options and work drawn from its seed: see model.h.
 *
 * Each has a process of its own, so that one that fails or hangs says which it was, and none sees
 * what another one left.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model.h"

#define DISK "disk.qcow2"
#define BASE "base.qcow2"
#define DATA "disk.data"

/* No image takes longer on the slowest machine, under a sanitizer. */
#define MAX_SECONDS 300

static const struct q_secret key = { "sesame", 6 };

static void
create (const char *name, uint64_t size, const struct q_create_options *c)
{
  struct q_error err;

  if (q_create (name, size, c, &err) < 0)
    die ("%s", err.text);
}

/* A backing file that has something in places, compressed or not. */
static void
make_base (uint64_t size, uint64_t *random)
{
  struct q_create_options c;
  struct q_open_options o;
  struct q_image *base;
  struct q_error err;
  uint8_t *buf = xalloc (65536);

  q_create_options_init (&c);
  c.cluster_bits = 9 + (unsigned)below (random, 8);
  c.extended_l2 = c.cluster_bits >= 14 && below (random, 2);
  create (BASE, size, &c);
  q_open_options_init (&o);
  if (q_open (&base, BASE, &o, &err) < 0)
    die ("%s", err.text);
  for (unsigned i = 0; i < 8; ++i) {
    uint64_t at = below (random, size), len = 1 + below (random, 65536);

    len = len < size - at ? len : size - at;
    memset (buf, (int)(1 + i), len);
    if (q_pwrite (base, buf, at, len) < 0)
      die ("the backing file cannot be written");
  }
  if (q_close (&base, &err) < 0)
    die ("%s", err.text);
  free (buf);
}

/* Options that go together. */
static void
draw (struct q_create_options *c, struct run *run, uint64_t *size, uint64_t *random)
{
  bool encrypted, data;

  q_create_options_init (c);
  c->version = below (random, 4) ? 3 : 2;
  c->cluster_bits = 9 + (unsigned)below (random, 8);
  if (c->version == 3) {
    c->refcount_bits = 1u << below (random, 7);
    c->lazy_refcounts = below (random, 3) == 0;
    c->extended_l2 = c->cluster_bits >= 14 && below (random, 2);
    c->zstd = below (random, 3) == 0;
  }
  *size = 512 * (8 + below (random, c->cluster_bits < 12 ? 1536 : 6144));
  encrypted = below (random, 6) == 0;
  data = c->version == 3 && !encrypted && below (random, 6) == 0;
  if (encrypted) {
    c->secret = opts.secret = &key;
    c->encrypt.iter_time_ms = 1;
  }
  if (data) {
    c->data_file = DATA;
    c->data_file_raw = below (random, 2);
  }
  if (!c->data_file_raw && below (random, 3) == 0) {
    make_base (512 * (1 + below (random, *size / 256)), random);
    c->backing_file = BASE;
    c->backing_format = "qcow2";
  }
  if (below (random, 3) == 0)
    opts.l2_cache_size = opts.refcount_cache_size = 3ull << c->cluster_bits;
  opts.discard_no_unref = c->version == 3 && below (random, 4) == 0;
  run->threads = below (random, 2) ? 1 : 4;
  run->operations = run->threads == 1 ? 100 : 200;
  run->reopens = below (random, 2);
  run->compress = !encrypted && !data && below (random, 3) == 0;
  run->layout = below (random, 2);
  run->bitmaps = c->version == 3 && below (random, 2);
}

/* Nothing is wrong with the image as it was closed, nor a cluster lost. */
static void
check_closed (void)
{
  struct q_check_result result;
  struct q_open_options o = opts;
  struct q_error err;

  o.read_only = o.metadata_only = true;
  if (q_open (&img, path, &o, &err) < 0 || q_check (img, 0, &result, NULL, NULL, &err) < 0)
    die ("%s", err.text);
  if (result.corruptions || result.leaks || result.check_errors)
    die ("check: %llu corruptions, %llu clusters leaked, %llu errors",
         (unsigned long long)result.corruptions, (unsigned long long)result.leaks,
         (unsigned long long)result.check_errors);
  q_close (&img, NULL);
}

static void
one_image (void)
{
  uint64_t random = (seed + 1) * 0x9e3779b97f4a7c15ull | 1, size;
  struct q_create_options c;
  struct run run = { 0 };
  char options[200];

  unlink (DISK);
  unlink (DATA);
  unlink (BASE);
  draw (&c, &run, &size, &random);
  snprintf (options, sizeof options,
            "version %u, clusters of %u, refcounts of %u bits%s%s%s%s%s%s, %llu bytes; %lu "
            "threads%s%s%s%s%s",
            c.version, 1u << c.cluster_bits, c.refcount_bits, c.lazy_refcounts ? ", lazy" : "",
            c.extended_l2 ? ", extended" : "", c.zstd ? ", zstd" : "",
            c.secret ? ", encrypted" : "",
            c.data_file_raw ? ", raw data file"
            : c.data_file   ? ", data file"
                            : "",
            c.backing_file ? ", backing file" : "", (unsigned long long)size, run.threads,
            run.reopens ? ", opened again" : "", run.compress ? ", compressing" : "",
            run.bitmaps ? ", bitmaps" : "", run.layout ? ", snapshots and sizes" : "",
            opts.discard_no_unref ? ", discard-no-unref" : "");
  tried = options;
  create (DISK, size, &c);
  if (c.data_file_raw)
    run.raw = DATA;
  path = DISK;
  model_run (&run);
  check_closed ();
}

int
seeds_run (const char *dir, unsigned long images)
{
  const uint64_t first = seed;

  if ((mkdir (dir, 0700) < 0 && errno != EEXIST) || chdir (dir) < 0)
    die ("%s: %s", dir, strerror (errno));
  for (; seed - first < images; ++seed) {
    int status = 0;
    pid_t child;

    fflush (stdout);
    child = fork ();
    if (child == 0) {
      alarm (MAX_SECONDS);
      one_image ();
      fflush (stdout);
      _exit (0);
    }
    if (child < 0 || waitpid (child, &status, 0) < 0)
      die ("%s", strerror (errno));
    if (status != 0) {
      fprintf (stderr, "model: seed %llu: status %#x\n", (unsigned long long)seed,
               (unsigned)status);
      return 1; /* what it left is there to be looked at */
    }
  }
  unlink (DISK);
  unlink (DATA);
  unlink (BASE);
  printf ("model: %lu images, seeds %llu to %llu\n", images, (unsigned long long)first,
          (unsigned long long)seed - 1);
  return 0;
}
