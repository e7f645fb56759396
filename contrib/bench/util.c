/* SPDX-License-Identifier: BSD-3-Clause */

#include "util.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void
fatal (const char *fmt, ...)
{
  va_list ap;

  fprintf (stderr, "%s: ", program_invocation_short_name);
  va_start (ap, fmt);
  vfprintf (stderr, fmt, ap);
  va_end (ap);
  fputc ('\n', stderr);
  exit (EXIT_FAILURE);
}

void *
xcalloc (size_t n, size_t size)
{
  void *p = calloc (n, size);

  if (!p && n && size)
    fatal ("out of memory allocating %zu * %zu bytes", n, size);
  return p;
}

static uint64_t
clock_ns (clockid_t id)
{
  struct timespec ts;

  if (clock_gettime (id, &ts) < 0)
    fatal ("clock_gettime: %s", strerror (errno));
  return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

uint64_t
now_ns (void)
{
  return clock_ns (CLOCK_MONOTONIC);
}

uint64_t
own_cpu_ns (void)
{
  return clock_ns (CLOCK_PROCESS_CPUTIME_ID);
}

void
sleep_ns (uint64_t ns)
{
  struct timespec ts = { .tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000) };

  nanosleep (&ts, NULL);
}

uint64_t
parse_size (const char *what, const char *text)
{
  static const char units[] = "kMGT";
  char *end;
  const char *unit;
  unsigned shift = 0;
  unsigned long long v;

  errno = 0;
  v = strtoull (text, &end, 10);
  if (*end) {
    unit = strchr (units, *end == 'K' ? 'k' : *end);
    if (unit)
      shift = 10 * (unsigned)(unit - units + 1);
  }
  if (errno || end == text || *text == '-' || (shift ? end[1] : *end) ||
      v > (UINT64_MAX >> 1 >> shift))
    fatal ("%s: '%s' is not a size: expected a number with k, M, G, T or nothing behind it", what,
           text);
  return (uint64_t)v << shift;
}

uint64_t
parse_number (const char *what, const char *text, uint64_t min, uint64_t max)
{
  char *end;
  unsigned long long v;

  errno = 0;
  v = strtoull (text, &end, 10);
  if (errno || end == text || *end || *text == '-' || v < min || v > max)
    fatal ("%s: '%s' is not a number from %ju to %ju", what, text, (uintmax_t)min, (uintmax_t)max);
  return v;
}

uint64_t
parse_seconds (const char *what, const char *text)
{
  char *end;
  double v;

  v = strtod (text, &end);
  if (end == text || *end || !isfinite (v) || v < 0 || v > 86400)
    fatal ("%s: '%s' is not a number of seconds from 0 to 86400", what, text);
  return (uint64_t)(v * 1e9);
}

uint64_t
process_cpu_ns (pid_t pid)
{
  clockid_t id;
  int err;

  err = clock_getcpuclockid (pid, &id);
  if (err)
    fatal ("process %d: cannot read its CPU time: %s", (int)pid, strerror (err));
  return clock_ns (id);
}

void
process_memory (pid_t pid, struct process_memory *mem)
{
  char name[64], line[256];
  unsigned long v;
  FILE *f;

  snprintf (name, sizeof name, "/proc/%d/status", (int)pid);
  f = fopen (name, "re");
  if (!f)
    fatal ("%s: %s", name, strerror (errno));
  memset (mem, 0, sizeof *mem);
  while (fgets (line, sizeof line, f)) {
    if (sscanf (line, "VmRSS: %lu kB", &v) == 1)
      mem->rss = (uint64_t)v << 10;
    else if (sscanf (line, "RssAnon: %lu kB", &v) == 1)
      mem->anon = (uint64_t)v << 10;
    else if (sscanf (line, "Threads: %lu", &v) == 1)
      mem->threads = (unsigned)v;
  }
  fclose (f);
  if (!mem->rss)
    fatal ("%s: no VmRSS line: has the process ended?", name);
}

static uint64_t
mix (uint64_t x)
{
  x = (x ^ (x >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C (0x94d049bb133111eb);
  return x ^ (x >> 31);
}

uint64_t
rng_next (uint64_t *state)
{
  *state += UINT64_C (0x9e3779b97f4a7c15);
  return mix (*state);
}

/* Every step is a bijection on BITS bits (an odd multiplier, a shift-xor, an addition), so the
 * whole is one; values that fall outside [0, n) are sent round again until they fall inside. */
uint64_t
permute (uint64_t i, uint64_t n, uint64_t seed)
{
  unsigned bits = n > 1 ? 64 - (unsigned)__builtin_clzll (n - 1) : 1, round;
  uint64_t mask = bits == 64 ? UINT64_MAX : (UINT64_C (1) << bits) - 1;

  do {
    for (round = 0; round < 3; round++) {
      i = (i + mix (seed + round)) & mask;
      i = (i * (mix (seed ^ round) | 1)) & mask;
      i ^= i >> (bits / 2 ? bits / 2 : 1);
    }
  } while (i >= n);
  return i;
}

static unsigned
bucket_of (uint64_t v)
{
  unsigned shift;

  if (v < 1 << HIST_SUB_BITS)
    return (unsigned)v;
  shift = 63 - (unsigned)__builtin_clzll (v) - HIST_SUB_BITS;
  return ((shift + 1) << HIST_SUB_BITS) + (unsigned)((v >> shift) - (1 << HIST_SUB_BITS));
}

/* The middle of bucket B. */
static uint64_t
value_of (unsigned b)
{
  unsigned shift;

  if (b < 1 << HIST_SUB_BITS)
    return b;
  shift = (b >> HIST_SUB_BITS) - 1;
  return ((uint64_t)((b & ((1 << HIST_SUB_BITS) - 1)) + (1 << HIST_SUB_BITS)) << shift) +
         ((UINT64_C (1) << shift) >> 1);
}

void
hist_add (struct hist *h, uint64_t ns)
{
  if (!h->count || ns < h->min)
    h->min = ns;
  h->count++;
  h->bucket[bucket_of (ns)]++;
}

void
hist_merge (struct hist *into, const struct hist *from)
{
  unsigned i;

  if (from->count && (!into->count || from->min < into->min))
    into->min = from->min;
  into->count += from->count;
  for (i = 0; i < HIST_BUCKETS; i++)
    into->bucket[i] += from->bucket[i];
}

uint64_t
hist_percentile (const struct hist *h, double percent)
{
  uint64_t want = (uint64_t)ceil ((double)h->count * percent / 100), seen = 0;
  unsigned i;

  for (i = 0; i < HIST_BUCKETS; i++) {
    seen += h->bucket[i];
    if (seen && seen >= want)
      return value_of (i);
  }
  return 0;
}
