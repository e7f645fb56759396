/* SPDX-License-Identifier: BSD-3-Clause */

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>

#include "counts.h"

static struct {
  _Atomic uint64_t requests, bytes, failed;
  uint8_t line[40]; /* no two of them share a cache line */
} counts[COUNTS];

static const char *const names[COUNTS] = {
  [COUNT_READ] = "reads", [COUNT_WRITE] = "writes", [COUNT_FLUSH] = "flushes",
  [COUNT_TRIM] = "trims", [COUNT_ZERO] = "zeroes",  [COUNT_CACHE] = "caches",
};

void
count_request (enum count what, uint64_t bytes, bool failed)
{
  atomic_fetch_add_explicit (&counts[what].requests, 1, memory_order_relaxed);
  if (failed)
    atomic_fetch_add_explicit (&counts[what].failed, 1, memory_order_relaxed);
  else
    atomic_fetch_add_explicit (&counts[what].bytes, bytes, memory_order_relaxed);
}

static uint64_t
get (const _Atomic uint64_t *counter)
{
  return atomic_load_explicit (counter, memory_order_relaxed);
}

void
counts_line (struct q_image *img, char line[COUNTS_LINE])
{
  uint64_t failed = 0;
  struct q_stats s;
  int used = 0;

  q_get_stats (img, &s);
  for (int i = 0; i < COUNTS; i++) {
    failed += get (&counts[i].failed);
    used += snprintf (line + used, (size_t)(COUNTS_LINE - used), "%s=%" PRIu64, names[i],
                      get (&counts[i].requests));
    if (get (&counts[i].bytes) > 0)
      used += snprintf (line + used, (size_t)(COUNTS_LINE - used), " (%" PRIu64 " bytes)",
                        get (&counts[i].bytes));
    used += snprintf (line + used, (size_t)(COUNTS_LINE - used), " ");
  }
  snprintf (line + used, (size_t)(COUNTS_LINE - used),
            "errors=%" PRIu64 " highest-offset=%" PRIu64 " table-hits=%" PRIu64
            " table-misses=%" PRIu64 " group-commits=%" PRIu64,
            failed, q_highest_offset (img), s.l2_hits, s.l2_misses, s.flush_rounds);
}
