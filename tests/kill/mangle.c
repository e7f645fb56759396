/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The state file of a killed server, damaged in many ways, before an engine that is to use it.
 *
 *     mangle [-s SEED] [-n COUNT] [-1 NUMBER] IMAGE STATE-DIRECTORY
 *
 * IMAGE's killed server had flushed 1s in the first and 2s in the second MiB, and had answered 3s
 * in the second and third.  COUNT times both files are put back as they were, with one mutation of
 * the state (-1: only that one), and a process opens the image.  It must not crash; the image must
 * open, hold what was flushed and, after it, nothing but what was there before or after; it must
 * take a write and check clean but for leaks.  The one exception: where bits of the tables
 * themselves were changed, which nothing guards, the check is all.  Every mutation pretends that
 * the server is alive, so that the image's change time hides nothing.
 */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ledger.h"
#include "qcow2.h"
#include "state.h"

#define MIB (1u << 20)

/* A file as it was: its length, and what is not holes. */
struct piece {
  off_t offset;
  size_t len;
  uint8_t *data;
};
struct copy {
  const char *path;
  off_t size;
  struct piece piece[4096];
  unsigned n;
};

static struct copy image, state;
static uint64_t rng;
static bool recovered;

static void __attribute__ ((noreturn)) die (const char *what)
{
  fprintf (stderr, "mangle: %s: %s\n", what, strerror (errno));
  exit (1);
}

static void
save (struct copy *c, const char *path)
{
  int fd = open (path, O_RDONLY);
  off_t at = 0, end;

  c->path = path;
  if (fd == -1)
    die (path);
  c->size = lseek (fd, 0, SEEK_END);
  while ((at = lseek (fd, at, SEEK_DATA)) != -1 && at < c->size) {
    struct piece *p = &c->piece[c->n++];

    end = lseek (fd, at, SEEK_HOLE);
    p->offset = at;
    p->len = (size_t)(end - at);
    p->data = malloc (p->len);
    if (c->n == sizeof c->piece / sizeof c->piece[0] || !p->data ||
        pread (fd, p->data, p->len, at) != (ssize_t)p->len)
      die (path);
    at = end;
  }
  close (fd);
}

/* In place: its inode is part of the proof. */
static int
put_back (const struct copy *c)
{
  int fd = open (c->path, O_RDWR | O_CREAT, 0600);

  if (fd == -1 || ftruncate (fd, 0) == -1 || ftruncate (fd, c->size) == -1)
    die (c->path);
  for (unsigned i = 0; i < c->n; ++i)
    if (pwrite (fd, c->piece[i].data, c->piece[i].len, c->piece[i].offset) !=
        (ssize_t)c->piece[i].len)
      die (c->path);
  return fd;
}

/* ---- mutations ------------------------------------------------------------------------------- */

static uint64_t
pick (uint64_t below)
{
  return ledger_random (&rng, below);
}

static void
get (int fd, void *buf, size_t len, uint64_t offset)
{
  if (pread (fd, buf, len, (off_t)offset) != (ssize_t)len)
    die (state.path);
}

static void
put (int fd, const void *buf, size_t len, uint64_t offset)
{
  if (pwrite (fd, buf, len, (off_t)offset) != (ssize_t)len)
    die (state.path);
}

/* Changes a number of SIZE bytes at OFFSET. */
static void
change (int fd, uint64_t offset, size_t size)
{
  static const uint64_t special[] = { 0,          1,          2,          7,          8,
                                      512,        4096,       65536,      1ull << 31, UINT32_MAX,
                                      1ull << 40, 1ull << 56, 1ull << 63, UINT64_MAX };
  uint64_t v = 0;

  get (fd, &v, size, offset);
  switch (pick (5)) {
  case 0:
    v ^= 1ull << pick (size * 8);
    break;
  case 1:
    v = special[pick (sizeof special / sizeof special[0])];
    break;
  case 2:
    v += pick (2) ? 1 : UINT64_MAX;
    break;
  case 3:
    v += (pick (2) ? 1 : UINT64_MAX) * (512ull << pick (12));
    break;
  default:
    v = pick (UINT64_MAX) >> pick (64);
  }
  put (fd, &v, size, offset);
}

/* Where a slot that is in use is. */
static uint64_t
used_slot (int fd)
{
  struct q_state_header h;

  get (fd, &h, sizeof h, 0);
  for (;;) {
    uint64_t at = Q_STATE_SLOTS_OFFSET + pick (h.n_slots) * sizeof (struct q_state_slot);
    struct q_state_slot s;

    get (fd, &s, sizeof s, at);
    if (atomic_load (&s.in_use))
      return at;
  }
}

static void
pretend_alive (int fd)
{
  struct timespec now;
  int64_t alive;

  clock_gettime (CLOCK_REALTIME, &now);
  alive = (now.tv_sec + 3600) * 1000000000ll;
  put (fd, &alive, sizeof alive, offsetof (struct q_state_header, alive));
}

/* Of some piece that is in the file; of tables only, if TABLES. */
static uint64_t
anywhere (bool tables)
{
  for (;;) {
    const struct piece *p = &state.piece[pick (state.n)];
    uint64_t at = (uint64_t)p->offset + pick (p->len);
    const uint64_t slots = ((const struct q_state_header *)state.piece[0].data)->data_offset;

    if (!tables || at >= slots)
      return at;
  }
}

/* Returns what it did; *STRICT if it did not touch the tables. */
static const char *
mutate (int fd, bool *strict)
{
  static const uint16_t field[][2] = {
#define FIELD(f) { offsetof (struct q_state_slot, f), sizeof ((struct q_state_slot *)0)->f }
    FIELD (in_use), FIELD (kind),   FIELD (index),   FIELD (host),
    FIELD (bytes),  FIELD (offset), FIELD (changed), FIELD (saved)
  };
  struct q_state_slot a, b;
  uint8_t junk[512];
  uint64_t at, other;

  *strict = true;
  switch (pick (10)) {
  case 0:
    if (ftruncate (fd, (off_t)pick (pick (2) ? (uint64_t)state.size : 8192)) == -1)
      die (state.path);
    return "truncated";
  case 1:
    if (ftruncate (fd, state.size + 1 + (off_t)pick (100000)) == -1)
      die (state.path);
    return "extended";
  case 2:
    change (fd, pick (sizeof (struct q_state_header) / 4) * 4, 4);
    return "a word of the header";
  case 3:
    change (fd, pick (sizeof (struct q_state_header) / 8) * 8, 8);
    return "a long word of the header";
  case 4:
    for (unsigned i = 0; i < sizeof junk; ++i)
      junk[i] = (uint8_t)pick (256);
    put (fd, junk, sizeof junk, pick (16) * 512);
    return "garbage over header or slots";
  case 5:
  case 6:
    for (uint64_t n = 1 + pick (3); n > 0; --n) {
      uint64_t f = pick (sizeof field / sizeof field[0]);

      change (fd, used_slot (fd) + field[f][0], field[f][1]);
    }
    return "a slot";
  case 7:
    at = used_slot (fd);
    other = used_slot (fd);
    get (fd, &a, sizeof a, at);
    get (fd, &b, sizeof b, other);
    put (fd, &a, sizeof a, other);
    if (pick (2))
      put (fd, &b, sizeof b, at);
    return "slots copied";
  case 8:
    *strict = false;
    at = anywhere (true);
    if (at > (uint64_t)state.size - sizeof junk)
      at -= sizeof junk;
    for (unsigned i = 0; i < sizeof junk; ++i)
      junk[i] = (uint8_t)pick (256);
    put (fd, junk, 1 + pick (sizeof junk), at);
    return "garbage in a table";
  default:
    *strict = false;
    for (uint64_t n = 1 + pick (8); n > 0; --n) {
      uint8_t byte;

      at = anywhere (false);
      get (fd, &byte, 1, at);
      byte ^= (uint8_t)(1u << pick (8));
      put (fd, &byte, 1, at);
    }
    return "bits all over";
  }
}

/* ---- what becomes of it ---------------------------------------------------------------------- */

static void
on_log (void *opaque, enum q_log_level level, const char *text)
{
  (void)opaque;
  (void)level;
  if (strstr (text, "tables were recovered"))
    recovered = true;
}

static void
report (void *opaque, const char *line)
{
  (void)opaque;
  if (strstr (line, "ERROR"))
    fprintf (stderr, "mangle: %s\n", line);
}

static void
expect (bool good, const char *what)
{
  if (good)
    return;
  fprintf (stderr, "mangle: %s\n", what);
  _exit (1);
}

/* Each 512 bytes of the MiB at OFFSET hold A or B. */
static void
holds (struct q_image *img, uint64_t offset, uint8_t a, uint8_t b, bool strict)
{
  static uint8_t buf[MIB], wanted[2][512];

  memset (wanted[0], a, 512);
  memset (wanted[1], b, 512);
  expect (q_pread (img, buf, offset, MIB) == 0, "cannot be read");
  for (uint32_t i = 0; strict && i < MIB; i += 512)
    expect (memcmp (buf + i, wanted[0], 512) == 0 || memcmp (buf + i, wanted[1], 512) == 0,
            "does not hold what was flushed");
}

/* Status 0: the state was used; 3: it was not. */
static void __attribute__ ((noreturn)) use (const char *directory, bool strict)
{
  struct rlimit limit = { 60, 60 };
  struct q_check_result result;
  struct q_open_options opts;
  static uint8_t buf[MIB];
  struct q_image *img;
  struct q_error err;

  setrlimit (RLIMIT_CPU, &limit);
  q_open_options_init (&opts);
  opts.state_dir = directory;
  q_set_log (on_log, NULL);
  if (q_open (&img, image.path, &opts, &err) < 0)
    expect (false, err.text);
  holds (img, 0, 1, 1, strict);
  holds (img, MIB, 2, 3, strict);
  holds (img, 2 * MIB, 0, 3, strict);
  memset (buf, 9, sizeof buf);
  expect (q_pwrite (img, buf, 5 * MIB, MIB) == 0 && q_flush (img) == 0, "cannot be written");
  if (q_check (img, 0, &result, report, NULL, &err) < 0)
    expect (false, err.text);
  expect (result.corruptions + result.check_errors == 0, "is damaged");
  if (q_close (&img, &err) < 0)
    expect (false, err.text);
  _exit (recovered ? 0 : 3);
}

static uint64_t
number (int letter, const char *text)
{
  char *end;
  unsigned long long v = strtoull (text, &end, 10);

  if (*text && !*end)
    return v;
  fprintf (stderr, "mangle: -%c %s: a number is wanted\n", letter, text);
  exit (2);
}

int
main (int argc, char *argv[])
{
  uint64_t seed = 1, count = 300, only = 0, used = 0, unused = 0;
  char path[4096], aside[4096 + 8];
  struct stat st;
  int c;

  while ((c = getopt (argc, argv, "s:n:1:")) != -1)
    switch (c) {
    case 's':
      seed = number (c, optarg);
      break;
    case 'n':
      count = number (c, optarg);
      break;
    case '1':
      only = number (c, optarg);
      break;
    default:
      return 2;
    }
  if (argc - optind != 2 || stat (argv[optind], &st) == -1) {
    fprintf (stderr, "mangle: an image and its state directory are wanted\n");
    return 2;
  }
  snprintf (path, sizeof path, "%s/%llx-%llx.state", argv[optind + 1],
            (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
  snprintf (aside, sizeof aside, "%s.aside", path);
  save (&image, argv[optind]);
  save (&state, path);
  for (uint64_t n = only ? only : 1; n <= (only ? only : count); ++n) {
    const char *what;
    int fd, status;
    bool strict;
    pid_t pid;

    rng = seed * 1000003 + n;
    close (put_back (&image));
    fd = put_back (&state);
    pretend_alive (fd);
    what = mutate (fd, &strict);
    close (fd);
    pid = fork ();
    if (pid == 0)
      use (argv[optind + 1], strict);
    if (pid == -1 || waitpid (pid, &status, 0) == -1)
      die ("fork");
    if (!WIFEXITED (status) || (WEXITSTATUS (status) != 0 && WEXITSTATUS (status) != 3)) {
      fprintf (stderr, "mangle: -s %" PRIu64 " -1 %" PRIu64 " (%s): %s %d\n", seed, n, what,
               WIFEXITED (status) ? "status" : "signal",
               WIFEXITED (status) ? WEXITSTATUS (status) : WTERMSIG (status));
      return 1;
    }
    used += WEXITSTATUS (status) == 0;
    unused += WEXITSTATUS (status) != 0;
    unlink (path);
    unlink (aside);
  }
  printf ("%" PRIu64 " damaged states: %" PRIu64 " used, %" PRIu64 " not\n", used + unused, used,
          unused);
  return only || (used > 0 && unused > 0) ? 0 : 1;
}
