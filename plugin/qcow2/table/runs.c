/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdlib.h>

#include "runs.h"

/* A table with fewer entries than that for each of its runs is not worth it. */
#define ENTRIES_PER_RUN 16u

static uint64_t
entry_at (const void *mem, uint32_t index)
{
  return get64 (((const be64 *)mem)[index]);
}

/* The longest run that begins at R->first, which is below N; returns where it ends. */
static uint32_t
measure (const struct q_image *img, const void *mem, uint32_t n, struct q_entry_run *r)
{
  uint32_t end = r->first + 1;
  uint64_t next;

  r->entry = next = entry_at (mem, r->first);
  r->step = end < n && entry_at (mem, end) != r->entry ? (uint32_t)q_cluster_bytes (img) : 0;
  while (end < n && entry_at (mem, end) == (next += r->step))
    ++end;
  return end;
}

/* How many runs there are; more than MAX is MAX + 1. */
static uint32_t
count_runs (const struct q_image *img, const void *mem, uint32_t n, uint32_t max)
{
  struct q_entry_run r = { 0 };
  uint32_t count = 0;

  for (; r.first < n && count <= max; ++count)
    r.first = measure (img, mem, n, &r);
  return count;
}

struct q_table *
q_runs_pack (struct q_image *img, uint64_t index, uint64_t host, const void *mem)
{
  uint32_t n = (uint32_t)(q_cluster_bytes (img) / 8), max = n / ENTRIES_PER_RUN;
  uint32_t count = count_runs (img, mem, n, max), next = 0;
  struct q_table *t;

  if (count > max)
    return NULL;
  t = calloc (1, sizeof *t);
  if (!t)
    return NULL;
  t->run = malloc (count * sizeof *t->run);
  if (!t->run) {
    free (t);
    return NULL;
  }
  for (uint32_t i = 0; i < count; ++i) {
    t->run[i].first = next;
    next = measure (img, mem, n, &t->run[i]);
  }
  t->runs = count;
  t->img = img;
  t->kind = Q_TABLE_L2;
  t->index = index;
  t->host = host;
  t->bytes = (uint32_t)(sizeof *t + count * sizeof *t->run);
  return t;
}

uint64_t
q_runs_entry (const struct q_table *t, uint32_t index)
{
  uint32_t low = 0, high = t->runs;

  /* run[low] begins at or before INDEX, and run[high] after it. */
  while (high - low > 1) {
    uint32_t mid = low + (high - low) / 2;

    if (t->run[mid].first <= index)
      low = mid;
    else
      high = mid;
  }
  return t->run[low].entry + (uint64_t)(index - t->run[low].first) * t->run[low].step;
}

struct q_table *
q_runs_unpack (const struct q_table *t)
{
  struct q_table *whole =
      q_table_new (t->img, Q_TABLE_L2, t->index, t->host, (uint32_t)q_cluster_bytes (t->img));

  for (uint32_t i = 0; whole && i < t->runs; ++i) {
    uint32_t end = i + 1 < t->runs ? t->run[i + 1].first : whole->bytes / 8;
    uint64_t entry = t->run[i].entry;

    for (uint32_t k = t->run[i].first; k < end; ++k, entry += t->run[i].step)
      q_entry_set (whole, k, entry);
  }
  return whole;
}
