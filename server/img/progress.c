/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How far long work has come, how fast it may go, and that somebody wants it to stop.
 */

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "img.h"
#include "rate.h"

/* ---- signals --------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted; /* the signal */
static volatile sig_atomic_t report_wanted;

static void
on_interrupt (int sig)
{
  interrupted = sig;
}

static void
on_report (int sig)
{
  (void)sig;
  report_wanted = 1;
}

void
img_catch_signals (void)
{
  static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
  struct sigaction old,
      act = { .sa_handler = on_interrupt, .sa_flags = SA_RESTART | (int)SA_RESETHAND };

  for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
    /* What is ignored, as under nohup, stays so. */
    if (sigaction (signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
      sigaction (signals[i], &act, NULL);
}

int
img_interrupted (void)
{
  return interrupted;
}

/* ---- rate ------------------------------------------------------------------------------------ */

static struct rate rate;

void
img_rate_pay (uint64_t bytes)
{
  double wait;

  rate_charge (&rate, bytes);
  while (!interrupted && (wait = rate_wait (&rate)) > 0) {
    if (wait > 0.1)
      wait = 0.1; /* so that an interruption is not waited for */
    nanosleep (&(struct timespec){ .tv_nsec = (long)(wait * 1e9) }, NULL);
    img_progress_add (0); /* SIGUSR1 gets its answer */
  }
}

/* ---- progress -------------------------------------------------------------------------------- */

/* A bar that nobody asked for waits this long; how often anything is shown. */
#define PATIENCE 2.0
#define INTERVAL 0.1

enum show {
  SHOW_NOTHING, /* but on SIGUSR1 */
  SHOW_LINE,    /* qemu-img's */
  SHOW_BAR,
};

static struct {
  enum show show;
  FILE *out;
  bool shown;
  bool stays; /* it was asked for: the last line is left on the terminal */
  double start, next;
  _Atomic uint64_t done, total;
  pthread_mutex_t lock; /* of printing */
} progress = { .lock = PTHREAD_MUTEX_INITIALIZER };

static double
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static double
share (void)
{
  uint64_t done = atomic_load (&progress.done), total = atomic_load (&progress.total);

  return total == 0 || done >= total ? 1.0 : (double)done / (double)total;
}

static void
show_bar (double at)
{
  static const char full[] = "########################################";
  static const char empty[] = "----------------------------------------";
  const int width = (int)sizeof full - 1;
  double part = share (), seconds = at - progress.start;
  int filled = (int)(part * width);

  fprintf (progress.out, "\r%6.2f%% [%.*s%.*s]", part * 100, filled, full, width - filled, empty);
  if (part > 0 && part < 1 && seconds >= 1) {
    double left = seconds / part - seconds;

    if (left < 1e6)
      fprintf (progress.out, " %u:%02u left  ", (unsigned)left / 60, (unsigned)left % 60);
  } else
    fprintf (progress.out, "             ");
}

static void
show (double at)
{
  if (progress.show == SHOW_LINE)
    fprintf (progress.out, "    (%3.2f/100%%)\r", share () * 100);
  else
    show_bar (at);
  fflush (progress.out);
  progress.shown = true;
}

/* Shows what is due; several threads come here, and one is enough. */
static void
tick (void)
{
  if (report_wanted) {
    report_wanted = 0;
    fprintf (stderr, "    (%3.2f/100%%)\n", share () * 100);
  }
  if (progress.show == SHOW_NOTHING || pthread_mutex_trylock (&progress.lock) != 0)
    return;

  double at = now ();

  if (at >= progress.next) {
    show (at);
    progress.next = at + INTERVAL;
  }
  pthread_mutex_unlock (&progress.lock);
}

void
img_progress_begin (bool wanted, bool quiet, uint64_t total)
{
  struct sigaction act = { .sa_handler = on_report, .sa_flags = SA_RESTART };

  sigaction (SIGUSR1, &act, NULL);
  atomic_store (&progress.done, 0);
  atomic_store (&progress.total, total);
  progress.shown = false;
  progress.start = progress.next = now ();
  progress.stays = wanted && !quiet;
  progress.out = stdout;
  progress.show = SHOW_NOTHING;
  if (wanted && !quiet)
    progress.show = isatty (STDOUT_FILENO) ? SHOW_BAR : SHOW_LINE;
  else if (!quiet && isatty (STDERR_FILENO)) {
    progress.show = SHOW_BAR;
    progress.out = stderr;
    progress.next += PATIENCE;
  }
  tick ();
}

void
img_progress_add (uint64_t done)
{
  atomic_fetch_add (&progress.done, done);
  tick ();
}

void
img_progress_more (uint64_t total)
{
  atomic_fetch_add (&progress.total, total);
}

void
img_progress_end (void)
{
  if (progress.show == SHOW_NOTHING)
    return;
  if (progress.stays && !interrupted)
    show (now ());
  if (progress.stays)
    putc ('\n', progress.out);
  else if (progress.shown)
    fprintf (progress.out, "\r%*s\r", 70, "");
  fflush (progress.out);
  progress.show = SHOW_NOTHING;
}

void
img_work_begin (const struct img_work *work, uint64_t total)
{
  img_catch_signals ();
  rate.bytes_per_second = work->rate;
  img_progress_begin (work->progress, work->quiet, total);
}
