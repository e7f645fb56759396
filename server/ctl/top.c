/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-ctl top: what the exports and their clients are doing, again and again.
 *
 * Rates are what the counters have risen by between two looks, divided by the time between them;
 * what is seen for the first time has none yet.
 */

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"

/* One look at the server. */
struct look {
  double when; /* seconds of some clock */
  json_t *exports, *stats, *clients;
};

static volatile sig_atomic_t interrupted;

static void
on_signal (int signum)
{
  (void)signum;
  interrupted = 1;
}

static bool
take_look (struct ctl *c, struct look *l)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  l->when = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
  l->exports = ctl_execute (c, "query-block-exports", NULL);
  l->stats = l->exports ? ctl_execute (c, "query-blockstats", NULL) : NULL;
  l->clients = l->stats ? ctl_execute (c, "query-clients", NULL) : NULL;
  return l->clients;
}

static void
forget_look (struct look *l)
{
  json_decref (l->exports);
  json_decref (l->stats);
  json_decref (l->clients);
  *l = (struct look){ 0 };
}

/* The element of LIST whose KEY is VALUE, or NULL. */
static const json_t *
find (const json_t *list, const char *key, const json_t *value)
{
  json_t *x;
  size_t i;

  json_array_foreach (list, i, x)
  {
    if (json_equal (json_object_get (x, key), value))
      return x;
  }
  return NULL;
}

/* By how much COUNTER has risen each second; 0 if it was not there before. */
static double
rate (const json_t *now, const json_t *before, const char *counter, double seconds)
{
  double rise = number_of (now, counter) - number_of (before, counter);
  return before && seconds > 0 && rise > 0 ? rise / seconds : 0;
}

/* The mean latency of the operations that came in between, in microseconds. */
static double
latency (const json_t *now, const json_t *before, const char *operations, const char *time)
{
  double n = rate (now, before, operations, 1);
  return n > 0 ? rate (now, before, time, 1) / n / 1e3 : 0;
}

static void
print_exports (const struct look *now, const struct look *before)
{
  static const char *const head[] = { "EXPORT",  "CLIENTS",   "READ/s",   "READ B/s", "READ us",
                                      "WRITE/s", "WRITE B/s", "WRITE us", "FLUSH/s",  "BUSY" };
  double seconds = now->when - before->when;
  struct table t;
  json_t *x;
  size_t i;

  table_begin (&t, "lrrrrrrrrr", head);
  json_array_foreach (now->stats, i, x)
  {
    const json_t *s = json_object_get (x, "stats"), *device = json_object_get (x, "device");
    const json_t *old = json_object_get (find (before->stats, "device", device), "stats");
    const json_t *export = find (now->exports, "id", device);
    const char *name = text_of (x, "device");
    table_text (&t, *name ? name : "''");
    table_format (&t, "%.0f", number_of (export, "clients"));
    table_format (&t, "%.0f", rate (s, old, "rd_operations", seconds));
    table_size (&t, rate (s, old, "rd_bytes", seconds));
    table_format (&t, "%.0f", latency (s, old, "rd_operations", "rd_total_time_ns"));
    table_format (&t, "%.0f", rate (s, old, "wr_operations", seconds));
    table_size (&t, rate (s, old, "wr_bytes", seconds));
    table_format (&t, "%.0f", latency (s, old, "wr_operations", "wr_total_time_ns"));
    table_format (&t, "%.0f", rate (s, old, "flush_operations", seconds));
    table_format (&t, "%.0f", number_of (s, "in_flight"));
  }
  table_end (&t);
}

static void
print_clients (const struct look *now, const struct look *before)
{
  static const char *const head[] = { "CLIENT",     "EXPORT",   "PEER",
                                      "REQUESTS/s", "READ B/s", "WRITE B/s" };
  double seconds = now->when - before->when;
  struct table t;
  json_t *x;
  size_t i;

  table_begin (&t, "rllrrr", head);
  json_array_foreach (now->clients, i, x)
  {
    const json_t *old = find (before->clients, "id", json_object_get (x, "id"));
    const char *name = text_of (x, "export");
    table_format (&t, "%.0f", number_of (x, "id"));
    table_text (&t, !json_object_get (x, "export") ? "-" : *name ? name : "''");
    table_text (&t, text_of (x, "peer"));
    table_format (&t, "%.0f", rate (x, old, "requests", seconds));
    table_size (&t, rate (x, old, "bytes-read", seconds));
    table_size (&t, rate (x, old, "bytes-written", seconds));
  }
  table_end (&t);
}

static void
wait_seconds (double seconds)
{
  struct timespec t = { .tv_sec = (time_t)seconds,
                        .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9) };
  nanosleep (&t, NULL); /* a signal ends it early */
}

static int
top (struct ctl *c, int argc, char **argv)
{
  struct sigaction action = { .sa_handler = on_signal };
  struct look before = { 0 }, now = { 0 };
  bool terminal = isatty (STDOUT_FILENO);
  int status = EXIT_SUCCESS;

  (void)argc;
  (void)argv;
  sigaction (SIGINT, &action, NULL);
  sigaction (SIGTERM, &action, NULL);
  for (unsigned n = 0; !interrupted && (c->count == 0 || n < c->count); n++) {
    if (n > 0)
      wait_seconds (c->interval);
    if (interrupted)
      break;
    if (!take_look (c, &now)) {
      status = EXIT_FAILURE;
      break;
    }
    if (terminal)
      printf ("\033[H\033[2J");
    print_exports (&now, &before);
    putchar ('\n');
    print_clients (&now, &before);
    putchar ('\n');
    if (fflush (stdout) != 0)
      break;
    forget_look (&before);
    before = now;
    now = (struct look){ 0 };
  }
  forget_look (&before);
  forget_look (&now);
  return interrupted ? EXIT_SUCCESS : status;
}

const struct ctl_command ctl_top_commands[] = {
  { "top", 0, 0, "", "what exports and clients are doing, as it goes on", top },
  { NULL, 0, 0, NULL, NULL, NULL },
};
