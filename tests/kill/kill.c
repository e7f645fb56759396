/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The engine is killed, again and again, at random instants under load, and nothing that it
 * acknowledged may be missing.
 *
 *     kill [OPTION...] IMAGE
 *       -s SEED      of operations and instants (1)
 *       -r ROUNDS    kills, 0 for no limit (100)
 *       -d SECONDS   end after that time, 0 for no limit (0)
 *       -t THREADS   that write (4)
 *       -c BYTES     size of each table cache; 0 for the default (0)
 *       -D DIR       state directory; "off" (then nothing must survive: see -l)
 *       -a BYTES     how much of the disk is used (8 MiB, or all of a smaller one)
 *       -q N         runs qemu-img check after every Nth check of ours (0: never)
 *       -l           losses are expected: the run fails if there are none
 *
 * Each round forks a process that opens the image, verifies everything, writes on many threads and
 * is killed at some instant of that, opening and verifying included.  Now and then the image is
 * opened without being killed: verified, checked and closed, no leaks allowed.  Prints what was
 * done, one line. Exit status 0 if nothing was lost.
 */

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ledger.h"
#include "qcow2.h"

#define WRONG 3 /* exit status of a process that found something lost */

static uint64_t seed = 1, rng, area = 8 << 20;
static unsigned threads = 4;
static const char *path;
static bool losses;
static struct q_open_options options;
static struct q_image *img;
static struct ledger *ledger;

/* What the processes tell the parent. */
static struct shared {
  _Atomic unsigned opened, verified, recovered, set_aside;
} * shared;

static double
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void
on_log (void *opaque, enum q_log_level level, const char *text)
{
  (void)opaque;
  if (strstr (text, "tables were recovered"))
    atomic_fetch_add (&shared->recovered, 1);
  else if (strstr (text, "is not used")) {
    atomic_fetch_add (&shared->set_aside, 1);
    fprintf (stderr, "kill: seed %" PRIu64 ": %s\n", seed, text);
  } else if (level <= Q_LOG_WARNING && !strstr (text, "marked dirty"))
    fprintf (stderr, "kill: seed %" PRIu64 ": %s\n", seed, text);
}

static void
open_image (void)
{
  struct q_error err;

  if (q_open (&img, path, &options, &err) < 0) {
    fprintf (stderr, "kill: seed %" PRIu64 ": %s\n", seed, err.text);
    _exit (2);
  }
}

/* Reads WRITER's regions, or with -1 everything; true if all is there. */
static bool
verify (int writer, uint8_t *buf)
{
  uint64_t offset = 0, len = LEDGER_MAX_BYTES, wrong = 0;

  for (; offset < area; offset += len) {
    if (writer >= 0 && !ledger_region (ledger, (unsigned)writer, &offset, &len))
      break;
    int r = q_pread (img, buf, offset, len);
    if (r < 0) {
      fprintf (stderr, "kill: seed %" PRIu64 ": read of %" PRIu64 " at %" PRIu64 ": %s\n", seed,
               len, offset, strerror (-r));
      _exit (2);
    }
    wrong += ledger_check (ledger, offset, len, buf, true);
  }
  return wrong == 0;
}

static void *
writer_main (void *arg)
{
  unsigned writer = (unsigned)(uintptr_t)arg;
  uint64_t mine = seed * 1000003 + rng + writer;
  uint8_t *buf = malloc (LEDGER_MAX_BYTES);
  struct ledger_op op;
  int r;

  if (!verify ((int)writer, buf) && !losses)
    _exit (WRONG);
  atomic_fetch_add (&shared->verified, 1);
  for (;;) {
    ledger_pick (ledger, writer, &mine, &op);
    switch (op.kind) {
    case LEDGER_WRITE:
      ledger_fill (&op, buf);
      r = q_pwrite (img, buf, op.offset, op.len);
      break;
    case LEDGER_ZERO:
      r = q_zero (img, op.offset, op.len, op.unmap ? Q_ZERO_UNMAP : 0);
      break;
    case LEDGER_DISCARD:
      r = q_discard (img, op.offset, op.len);
      break;
    default:
      r = q_flush (img);
    }
    if (r == 0 && op.fua)
      r = q_flush (img);
    if (r < 0) {
      fprintf (stderr, "kill: seed %" PRIu64 ": operation %d at %" PRIu64 "+%" PRIu64 ": %s\n",
               seed, (int)op.kind, op.offset, op.len, strerror (-r));
      _exit (2);
    }
    ledger_done (ledger, &op);
  }
}

static void __attribute__ ((noreturn)) victim (void)
{
  pthread_t thread;

  prctl (PR_SET_PDEATHSIG, SIGKILL);
  open_image ();
  atomic_store (&shared->opened, 1);
  for (unsigned i = 0; i < threads; ++i)
    if (pthread_create (&thread, NULL, writer_main, (void *)(uintptr_t)i) != 0)
      _exit (2);
  for (;;)
    pause ();
}

static void
sleep_us (uint64_t us)
{
  struct timespec ts = { (time_t)(us / 1000000), (long)(us % 1000000) * 1000 };

  nanosleep (&ts, NULL);
}

/* Starts a process and kills it at a random instant. */
static void
kill_one (void)
{
  bool early = ledger_random (&rng, 5) == 0;
  uint64_t us = ledger_random (&rng, 1ull << (4 + ledger_random (&rng, 13)));
  int status;
  pid_t pid;

  atomic_store (&shared->opened, 0);
  atomic_store (&shared->verified, 0);
  pid = fork ();
  if (pid == -1) {
    perror ("fork");
    exit (1);
  }
  if (pid == 0)
    victim ();
  /* Early: while it opens, recovers or verifies; else once it writes. */
  for (double start = now (); !early && atomic_load (&shared->verified) < threads;) {
    if (now () - start > 120) {
      fprintf (stderr, "kill: seed %" PRIu64 ": nothing happens\n", seed);
      kill (pid, SIGKILL);
      exit (1);
    }
    if (waitpid (pid, &status, WNOHANG) == pid)
      goto ended;
    sleep_us (100);
  }
  sleep_us (us);
  kill (pid, SIGKILL);
  waitpid (pid, &status, 0);
ended:
  if (WIFSIGNALED (status) && WTERMSIG (status) == SIGKILL)
    return;
  if (WIFSIGNALED (status))
    fprintf (stderr, "kill: seed %" PRIu64 ": signal %d\n", seed, WTERMSIG (status));
  exit (1);
}

static void
report (void *opaque, const char *line)
{
  (void)opaque;
  fprintf (stderr, "kill: seed %" PRIu64 ": check: %s\n", seed, line);
}

/* Opens, verifies, checks and closes; false if anything was missing. */
static bool
check (bool qemu)
{
  struct q_check_result result;
  struct q_error err;
  uint8_t *buf = malloc (LEDGER_MAX_BYTES);
  char command[4096];
  bool whole;

  open_image ();
  whole = verify (-1, buf);
  free (buf);
  /* Without a state file clusters that nobody came to refer to are leaked. */
  if (q_flush (img) < 0 || q_check (img, 0, &result, losses ? NULL : report, NULL, &err) < 0 ||
      result.corruptions + result.check_errors > 0 || (result.leaks > 0 && !losses)) {
    fprintf (stderr, "kill: seed %" PRIu64 ": the image does not check\n", seed);
    exit (1);
  }
  if (q_close (&img, &err) < 0) {
    fprintf (stderr, "kill: seed %" PRIu64 ": %s\n", seed, err.text);
    exit (1);
  }
  snprintf (command, sizeof command,
            "out=$(qemu-img check -q -f qcow2 '%s' 2>&1); s=$?; "
            "[ $s = 0 ] || [ $s = %d ] || { echo \"$out\" | head; false; }",
            path, losses ? 3 : 0);
  if (qemu && system (command) != 0) {
    fprintf (stderr, "kill: seed %" PRIu64 ": qemu-img check\n", seed);
    exit (1);
  }
  return whole;
}

static void
read_base (void)
{
  uint8_t *buf = malloc (LEDGER_MAX_BYTES);
  struct q_error err;

  open_image ();
  if (q_size (img) < area)
    area = q_size (img) & ~(uint64_t)(LEDGER_MAX_BYTES - 1);
  ledger = ledger_new (area, 64, threads, true);
  for (uint64_t offset = 0; offset < area; offset += LEDGER_MAX_BYTES) {
    if (q_pread (img, buf, offset, LEDGER_MAX_BYTES) < 0)
      exit (1);
    ledger_base (ledger, offset, LEDGER_MAX_BYTES, buf);
  }
  free (buf);
  if (q_close (&img, &err) < 0)
    exit (1);
}

static uint64_t
number (int letter, const char *text, uint64_t max)
{
  char *end;
  unsigned long long v = strtoull (text, &end, 10);

  if (!*text || *end || v > max) {
    fprintf (stderr, "kill: -%c %s: a number up to %" PRIu64 " is wanted\n", letter, text, max);
    exit (2);
  }
  return v;
}

int
main (int argc, char *argv[])
{
  uint64_t rounds = 100, seconds = 0, every = 0, kills = 0, checks = 0, lost = 0;
  double start = now ();
  int c;

  q_open_options_init (&options);
  options.discard = true;
  options.state_dir = "";
  while ((c = getopt (argc, argv, "s:r:d:t:c:D:a:q:l")) != -1)
    switch (c) {
    case 's':
      seed = number (c, optarg, UINT64_MAX);
      break;
    case 'r':
      rounds = number (c, optarg, UINT64_MAX);
      break;
    case 'd':
      seconds = number (c, optarg, 1u << 30);
      break;
    case 't':
      threads = (unsigned)number (c, optarg, LEDGER_MAX_WRITERS);
      break;
    case 'c':
      options.l2_cache_size = options.refcount_cache_size = number (c, optarg, UINT64_MAX);
      break;
    case 'D':
      options.state_dir = strcmp (optarg, "off") == 0 ? NULL : optarg;
      break;
    case 'a':
      area = number (c, optarg, 1u << 30) & ~(uint64_t)(LEDGER_MAX_BYTES - 1);
      break;
    case 'q':
      every = number (c, optarg, UINT64_MAX);
      break;
    case 'l':
      losses = true;
      break;
    default:
      return 2;
    }
  if (argc - optind != 1 || threads == 0 || area == 0) {
    fprintf (stderr, "kill: one image, a thread and a MiB are wanted\n");
    return 2;
  }
  path = argv[optind];
  rng = seed;
  shared = mmap (NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED)
    return 1;
  q_set_log (on_log, NULL);
  read_base ();
  while ((rounds == 0 || kills < rounds) && (seconds == 0 || now () - start < (double)seconds)) {
    kill_one ();
    ++kills;
    if (kills == rounds || ledger_random (&rng, 4) == 0) {
      bool whole = check (every && ++checks % every == 0);

      if (!whole && !losses)
        return 1;
      lost += !whole;
    }
  }
  printf ("seed %" PRIu64 ": %" PRIu64
          " kills, %u recoveries with something to replay, %u set aside; "
          "%" PRIu64 " writes, %" PRIu64 " zeroings, %" PRIu64 " discards, %" PRIu64 " flushes\n",
          seed, kills, atomic_load (&shared->recovered), atomic_load (&shared->set_aside),
          ledger_count (ledger, LEDGER_WRITE), ledger_count (ledger, LEDGER_ZERO),
          ledger_count (ledger, LEDGER_DISCARD), ledger_count (ledger, LEDGER_FLUSH));
  if (losses && lost == 0) {
    fprintf (stderr, "kill: nothing was lost, which was expected without a state file\n");
    return 1;
  }
  if (!losses && atomic_load (&shared->set_aside) > 0) {
    fprintf (stderr, "kill: a state was set aside\n");
    return 1;
  }
  return 0;
}
