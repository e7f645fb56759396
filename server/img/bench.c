/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img bench: how fast requests to an image are served.
 *
 * As many requests as -d says are under way at any time, each in a thread of its own.
 */

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "img.h"

#define MAX_DEPTH 1024u

struct bench {
  struct img_spec spec;
  uint64_t count, depth, offset, size, step, pattern, flush_interval;
  bool write, drain, progress, quiet;
  struct q_image *img;

  pthread_mutex_t lock; /* of all below */
  pthread_cond_t idle;
  uint64_t next;      /* offset of the next request */
  uint64_t issued;    /* requests */
  uint64_t in_flight; /* and how many of them are not done */
  uint64_t flush_due; /* requests until the next flush */
  bool draining;      /* a flush waits for what is in flight */
  int result;
};

/* ---- requests -------------------------------------------------------------------------------- */

/* What a thread does next. */
struct turn {
  bool flush;
  uint64_t offset;
};

/* False when there is nothing more to do. */
static bool
take_turn (struct bench *b, struct turn *turn)
{
  bool more;

  pthread_mutex_lock (&b->lock);
  while (b->draining)
    pthread_cond_wait (&b->idle, &b->lock);
  turn->flush = b->flush_interval && b->flush_due == 0;
  more = b->result == 0 && (turn->flush || b->issued < b->count) && !img_interrupted ();
  if (more && turn->flush) {
    b->flush_due = b->flush_interval;
    b->draining = b->drain;
    while (b->draining && b->in_flight > 0)
      pthread_cond_wait (&b->idle, &b->lock);
  } else if (more) {
    turn->offset = b->next;
    b->issued++;
    b->in_flight++;
    b->flush_due -= b->flush_interval ? 1 : 0;
    b->next += b->step;
    if (q_size (b->img) <= b->size)
      b->next = 0;
    else
      b->next %= q_size (b->img) - b->size;
  }
  pthread_mutex_unlock (&b->lock);
  return more;
}

static void
end_turn (struct bench *b, const struct turn *turn, int r)
{
  if (!turn->flush)
    img_progress_add (1);
  pthread_mutex_lock (&b->lock);
  if (r < 0 && b->result == 0)
    b->result = r;
  if (!turn->flush)
    b->in_flight--;
  else
    b->draining = false;
  pthread_cond_broadcast (&b->idle);
  pthread_mutex_unlock (&b->lock);
}

static void *
serve (void *opaque)
{
  struct bench *b = opaque;
  char *buf = malloc (b->size ? b->size : 1);
  struct turn turn;

  if (buf)
    memset (buf, (int)b->pattern, b->size);
  while (take_turn (b, &turn)) {
    int r = -ENOMEM;

    if (turn.flush)
      r = q_flush (b->img);
    else if (buf && b->write)
      r = q_pwrite (b->img, buf, turn.offset, b->size);
    else if (buf)
      r = q_pread (b->img, buf, turn.offset, b->size);
    end_turn (b, &turn, r);
  }
  free (buf);
  return NULL;
}

static double
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int
measure (struct bench *b)
{
  pthread_t thread[MAX_DEPTH];
  uint64_t n = 0;
  double start = now (), took;

  b->next = b->offset;
  b->flush_due = b->flush_interval;
  while (n + 1 < b->depth && pthread_create (&thread[n], NULL, serve, b) == 0)
    n++;
  serve (b);
  for (uint64_t i = 0; i < n; i++)
    pthread_join (thread[i], NULL);
  took = now () - start;
  img_progress_end ();
  if (img_interrupted ())
    return img_error ("%s: interrupted after %llu of %llu requests", b->spec.name,
                      (unsigned long long)b->issued, (unsigned long long)b->count);
  if (b->result < 0)
    return img_error ("%s: a request failed: %s", b->spec.name, strerror (-b->result));
  if (!b->quiet)
    printf ("Run completed in %3.3f seconds.\n", took);
  return 0;
}

static void
announce (const struct bench *b)
{
  if (b->quiet)
    return;
  printf ("Sending %llu %s requests, %llu bytes each, %llu in parallel (starting at offset %llu, "
          "step size %llu)\n",
          (unsigned long long)b->count, b->write ? "write" : "read", (unsigned long long)b->size,
          (unsigned long long)b->depth, (unsigned long long)b->offset, (unsigned long long)b->step);
  if (b->flush_interval)
    printf ("Sending flush every %llu requests\n", (unsigned long long)b->flush_interval);
  fflush (stdout);
}

static int
bench (struct bench *b)
{
  int status;

  b->spec.writable = b->write;
  b->spec.raw_too = true;
  b->img = img_open_spec (&b->spec);
  if (!b->img)
    return 1;
  announce (b);
  if (b->size > q_size (b->img) || b->offset > q_size (b->img) - b->size)
    status = img_error ("%s: a request of %llu bytes at offset %llu goes past the end of the disk, "
                        "at %llu",
                        b->spec.name, (unsigned long long)b->size, (unsigned long long)b->offset,
                        (unsigned long long)q_size (b->img));
  else {
    img_catch_signals ();
    img_progress_begin (b->progress, b->quiet, b->count);
    status = measure (b);
  }
  return img_close (&b->img) ? status : 1;
}

/* ---- the command line ------------------------------------------------------------------------ */

static bool
take_size (const char *what, uint64_t max, uint64_t *size)
{
  if (!img_parse_size (what, optarg, size))
    return false;
  if (*size >= 1 && *size <= max)
    return true;
  img_error ("%s '%s' is out of range: it is from 1 to %llu bytes", what, optarg,
             (unsigned long long)max);
  return false;
}

/* What does not go together, as qemu-img has it. */
static int
check_options (const struct bench *b)
{
  if (!b->write && b->flush_interval)
    return img_error ("bench: --flush-interval is for writes: give -w as well");
  if (b->flush_interval && b->flush_interval < b->depth)
    return img_error (
        "bench: --flush-interval %llu is less than the depth %llu: that many requests "
        "would never be under way",
        (unsigned long long)b->flush_interval, (unsigned long long)b->depth);
  return 0;
}

static int
run (int argc, char **argv)
{
  enum { PATTERN = IMG_OPT_LONG, FLUSH_INTERVAL, NO_DRAIN };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "cache", required_argument, NULL, 't' },
                                           { "count", required_argument, NULL, 'c' },
                                           { "depth", required_argument, NULL, 'd' },
                                           { "offset", required_argument, NULL, 'o' },
                                           { "buffer-size", required_argument, NULL, 's' },
                                           { "step-size", required_argument, NULL, 'S' },
                                           { "write", no_argument, NULL, 'w' },
                                           { "aio", required_argument, NULL, 'i' },
                                           { "native", no_argument, NULL, 'n' },
                                           { "progress", no_argument, NULL, 'p' },
                                           { "quiet", no_argument, NULL, 'q' },
                                           { "pattern", required_argument, NULL, PATTERN },
                                           { "flush-interval", required_argument, NULL,
                                             FLUSH_INTERVAL },
                                           { "no-drain", no_argument, NULL, NO_DRAIN },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct bench b = { .count = 75000,
                     .depth = 64,
                     .size = 4096,
                     .drain = true,
                     .lock = PTHREAD_MUTEX_INITIALIZER,
                     .idle = PTHREAD_COND_INITIALIZER };
  bool ok = true;
  int status = 0, letter;

  while (ok && (letter = img_getopt (&img_bench_command, argc, argv, ":f:t:c:d:o:s:S:wi:npqUh",
                                     options, &status)) != -1)
    switch (letter) {
    case 'f':
      b.spec.format = optarg;
      break;
    case 't':
      b.spec.cache = optarg;
      break;
    case 'c':
      ok = img_parse_number ("count", optarg, 1, INT32_MAX, &b.count);
      break;
    case 'd':
      ok = img_parse_number ("depth", optarg, 1, MAX_DEPTH, &b.depth);
      break;
    case 'o':
      ok = img_parse_size ("offset", optarg, &b.offset);
      break;
    case 's':
      ok = take_size ("buffer size", INT32_MAX, &b.size);
      break;
    case 'S':
      ok = take_size ("step size", INT32_MAX, &b.step);
      break;
    case 'w':
      b.write = true;
      break;
    case 'i':
      ok = strcmp (optarg, "threads") == 0 || strcmp (optarg, "native") == 0 ||
           strcmp (optarg, "io_uring") == 0;
      if (!ok)
        img_error ("-i '%s' is not known: it is threads, native or io_uring", optarg);
      break;
    case 'n':
      break; /* there is one way to do it */
    case 'p':
      b.progress = true;
      break;
    case 'q':
      b.quiet = true;
      break;
    case PATTERN:
      ok = img_parse_number ("pattern", optarg, 0, 255, &b.pattern);
      break;
    case FLUSH_INTERVAL:
      ok = img_parse_number ("flush interval", optarg, 0, INT32_MAX, &b.flush_interval);
      break;
    case NO_DRAIN:
      b.drain = false;
      break;
    default:
      if (!img_image_option (&b.spec, letter, &status) || status)
        return status;
    }
  if (!ok)
    return 1;
  if (argc - optind != 1)
    return img_error ("bench: one file name is needed, %d were given", argc - optind);
  if (check_options (&b))
    return 1;
  b.step = b.step ? b.step : b.size;
  b.spec.name = argv[optind];
  return bench (&b);
}

const struct img_command img_bench_command = {
  .name = "bench",
  .run = run,
  .summary = "Measure how fast requests are served",
  .synopsis = "[-f FORMAT] [-t CACHE] [-c COUNT] [-d DEPTH] [-o OFFSET] [-s SIZE] [-S STEP]\n"
              "                         [-w [--pattern=BYTE] [--flush-interval=N [--no-drain]]] "
              "[-i AIO] [-n] [-p] [-q] [-U] FILE",
  .help = "  -f, --format=FORMAT      qcow2 or raw (default: what the file begins with)\n"
          "  -t, --cache=MODE         writeback (default), writethrough, none, directsync, unsafe\n"
          "  -c, --count=COUNT        requests (default 75000)\n"
          "  -d, --depth=DEPTH        under way at a time (default 64, at most 1024)\n"
          "  -o, --offset=OFFSET      of the first request\n"
          "  -s, --buffer-size=SIZE   of a request (default 4k)\n"
          "  -S, --step-size=SIZE     from one request to the next (default: -s)\n"
          "  -w, --write              write instead of reading\n"
          "      --pattern=BYTE       what is written (default 0)\n"
          "      --flush-interval=N   a flush after so many writes\n"
          "      --no-drain           which does not wait for those under way\n"
          "  -i, --aio=MODE, -n       accepted: threads do the work\n"
          "  -p, --progress           show how far it is\n"
          "  -q, --quiet              only the exit status, and errors\n",
};
