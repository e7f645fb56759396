/* SPDX-License-Identifier: BSD-3-Clause */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "stats.h"

/* What is shared by no two threads must not lie beside what another one writes. */
#define CACHE_LINE 64

const char *const stats_op_name[STATS_OPS] = {
  [STATS_READ] = "read",     [STATS_WRITE] = "write",
  [STATS_FLUSH] = "flush",   [STATS_TRIM] = "trim",
  [STATS_ZERO] = "zero",     [STATS_CACHE] = "cache",
  [STATS_RESIZE] = "resize", [STATS_BLOCK_STATUS] = "block_status",
};

struct stats {
  _Atomic (struct stats_counters *) counters; /* of each loop that has been here; never shorter */
  _Atomic uint64_t flushed_requests, flushes[STATS_GROUPS];
  struct stats *next, **prev;
};

struct stats_server stats_server;

/* All that there are, and the sums of those that have gone. */
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct stats *all;
static struct stats_sum gone;

/* ---- buckets --------------------------------------------------------------------------------- */

/* An end belongs to the bucket that it ends, as in OpenMetrics: so what is looked at is one less.
 */
unsigned
stats_bucket (uint64_t ns)
{
  uint64_t v = ns > 0 ? ns - 1 : 0;

  if (v >> STATS_FIRST_BITS == 0)
    return 0;
  unsigned bits = 63u - (unsigned)__builtin_clzll (v); /* the power of two at or below it */
  if (bits >= STATS_LAST_BITS)
    return STATS_BUCKETS - 1;
  return 1 + (bits - STATS_FIRST_BITS) * STATS_FINE + (unsigned)(v >> (bits - 2) & 3);
}

uint64_t
stats_bucket_end (unsigned bucket)
{
  if (bucket == 0)
    return UINT64_C (1) << STATS_FIRST_BITS;
  if (bucket >= STATS_BUCKETS - 1)
    return UINT64_MAX;
  unsigned bits = STATS_FIRST_BITS + (bucket - 1) / STATS_FINE;
  return (STATS_FINE + 1 + (bucket - 1) % STATS_FINE) * (UINT64_C (1) << (bits - 2));
}

unsigned
stats_group (unsigned n)
{
  unsigned group = n > 1 ? 32u - (unsigned)__builtin_clz (n - 1) : 0;
  return group < STATS_GROUPS ? group : STATS_GROUPS - 1;
}

/* ---- life ------------------------------------------------------------------------------------ */

struct stats *
stats_new (void)
{
  struct stats *st = calloc (1, sizeof *st);

  if (!st)
    return NULL;
  pthread_mutex_lock (&all_lock);
  st->next = all;
  st->prev = &all;
  if (all)
    all->prev = &st->next;
  all = st;
  pthread_mutex_unlock (&all_lock);
  return st;
}

struct stats_counters *
stats_counters (struct stats *st, const void *owner)
{
  struct stats_counters *first = atomic_load_explicit (&st->counters, memory_order_acquire);

  for (struct stats_counters *c = first; c; c = c->next)
    if (c->owner == owner)
      return c;
  size_t size = (sizeof (struct stats_counters) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
  struct stats_counters *c = aligned_alloc (CACHE_LINE, size);
  if (!c)
    return NULL;
  memset (c, 0, size);
  c->owner = owner;
  c->next = first;
  while (!atomic_compare_exchange_weak_explicit (&st->counters, &c->next, c, memory_order_release,
                                                 memory_order_acquire))
    ;
  return c;
}

/* ---- adding up ------------------------------------------------------------------------------- */

static uint64_t
get (const _Atomic uint64_t *counter)
{
  return atomic_load_explicit (counter, memory_order_relaxed);
}

static void
add_op (struct stats_op_sum *sum, const struct stats_op_counters *c)
{
  sum->requests += get (&c->requests);
  sum->errors += get (&c->errors);
  sum->bytes += get (&c->bytes);
  sum->nanoseconds += get (&c->nanoseconds);
  for (unsigned i = 0; i < STATS_BUCKETS; i++)
    sum->latency[i] += get (&c->latency[i]);
}

static void
add (struct stats_sum *sum, struct stats *st)
{
  const struct stats_counters *c = atomic_load_explicit (&st->counters, memory_order_acquire);

  for (; c; c = c->next) {
    for (unsigned op = 0; op < STATS_OPS; op++)
      add_op (&sum->op[op], &c->op[op]);
    sum->rejected += get (&c->rejected);
    sum->in_flight += get (&c->in_flight);
    sum->merged_requests += get (&c->merged_requests);
    for (unsigned i = 0; i < STATS_GROUPS; i++)
      sum->merged[i] += get (&c->merged[i]);
    uint64_t last = get (&c->last_ns);
    if (last > sum->last_ns)
      sum->last_ns = last;
  }
  sum->flushed_requests += get (&st->flushed_requests);
  for (unsigned i = 0; i < STATS_GROUPS; i++)
    sum->flushes[i] += get (&st->flushes[i]);
}

void
stats_sum (struct stats *st, struct stats_sum *sum)
{
  *sum = (struct stats_sum){ 0 };
  add (sum, st);
}

void
stats_total (struct stats_sum *sum)
{
  pthread_mutex_lock (&all_lock);
  *sum = gone;
  for (struct stats *st = all; st; st = st->next)
    add (sum, st);
  pthread_mutex_unlock (&all_lock);
}

void
stats_free (struct stats *st)
{
  if (!st)
    return;
  pthread_mutex_lock (&all_lock);
  add (&gone, st);
  *st->prev = st->next;
  if (st->next)
    st->next->prev = st->prev;
  pthread_mutex_unlock (&all_lock);
  struct stats_counters *c = atomic_load_explicit (&st->counters, memory_order_acquire);
  while (c) {
    struct stats_counters *next = c->next;
    free (c);
    c = next;
  }
  free (st);
}

/* ---- counting -------------------------------------------------------------------------------- */

static void
observe (struct stats_counters *c, enum stats_op op, uint64_t n, uint64_t arrived, uint64_t now)
{
  uint64_t ns = now > arrived ? now - arrived : 0;

  stats_add (&c->op[op].nanoseconds, n * ns);
  stats_add (&c->op[op].latency[stats_bucket (ns)], n);
  atomic_store_explicit (&c->last_ns, now, memory_order_relaxed);
}

void
stats_settle (struct stats_counters *c, uint64_t arrived, uint64_t now)
{
  for (unsigned ops = c->pending_ops; ops; ops &= ops - 1) {
    unsigned op = (unsigned)__builtin_ctz (ops);
    observe (c, (enum stats_op)op, c->pending[op], arrived, now);
    c->pending[op] = 0;
  }
  c->pending_ops = 0;
}

void
stats_done (struct stats_counters *c, enum stats_op op, uint64_t bytes, bool error,
            uint64_t arrived, uint64_t now)
{
  stats_count (c, op, bytes, error);
  observe (c, op, 1, arrived, now);
}

void
stats_flush (struct stats *st, unsigned n)
{
  if (!STATS_ON)
    return;
  stats_add (&st->flushed_requests, n);
  stats_add (&st->flushes[stats_group (n)], 1);
}
