/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What has been done for an export, counted where it happens.
 *
 *     st = stats_new ();                      with the export, as long as it
 *     c = stats_counters (st, shard);         a loop, once for each session: its own counters
 *     stats_inline (c, op, bytes, error);     a request was answered in the turn that it came in
 *     stats_settle (c, arrived, now);         ... and the turn's replies have been sent
 *     stats_done (c, op, bytes, error, arrived, now);   one that took longer was
 *     stats_sum (st, &sum);                   any thread, any time
 *     stats_free (st);
 *
 * Nothing is shared where it is counted: each loop has counters of its own, in cache lines that
 * nobody else writes, and changes them with plain loads and stores.  Whoever reads adds them up.
 * Each number alone is right; two of them may be from either side of a request.  The clock is read
 * once for all that a turn answers at once, not once for a request.
 *
 * Counters only rise, for as long as their export is there; those of exports that have gone stay in
 * what stats_total adds up.
 *
 * Times are nanoseconds of CLOCK_MONOTONIC.  The latency of a request begins when all of it has
 * been received (of a write that is taken in in pieces, long.c: when its header has) and ends when
 * its reply goes to the socket; it includes waiting for other requests, for memory and for the
 * export's rate.
 */

#ifndef STATS_H
#define STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* A build that counts nothing shows what counting costs (contrib/bench, NBDCOW_STATISTICS=OFF). */
#ifdef NBDCOW_NO_STATISTICS
enum { STATS_ON = 0 };
#else
enum { STATS_ON = 1 };
#endif

/* ---- what is counted ------------------------------------------------------------------------- */

enum stats_op {
  STATS_READ,
  STATS_WRITE,
  STATS_FLUSH,
  STATS_TRIM,
  STATS_ZERO,
  STATS_CACHE,
  STATS_BLOCK_STATUS,
  STATS_RESIZE,
  STATS_OPS
};

/* In small letters, as in metrics: "read", "block_status". */
extern const char *const stats_op_name[STATS_OPS];

/* Latency histograms: the first bucket ends at 1.024 us, each power of two above has four, the last
 * ends at 34.4 s; what took longer is in one more, without an end. */
#define STATS_FIRST_BITS 10u
#define STATS_LAST_BITS  35u
#define STATS_FINE       4u
#define STATS_BUCKETS    ((STATS_LAST_BITS - STATS_FIRST_BITS) * STATS_FINE + 2u)

unsigned stats_bucket (uint64_t ns);
/* The longest time in the bucket; UINT64_MAX for the last. */
uint64_t stats_bucket_end (unsigned bucket);

/* How many took part in something that is done for several at once: 1, 2, 3 to 4, 5 to 8, ... and
 * in the last bucket all above 128. */
#define STATS_GROUPS 9u
unsigned stats_group (unsigned n);

struct stats_op_sum {
  uint64_t requests;    /* answered, errors included */
  uint64_t errors;      /* answered with an error */
  uint64_t bytes;       /* of those that succeeded; 0 for FLUSH, BLOCK_STATUS and RESIZE */
  uint64_t nanoseconds; /* the sum of their latencies */
  uint64_t latency[STATS_BUCKETS];
};

struct stats_sum {
  struct stats_op_sum op[STATS_OPS];
  uint64_t rejected;        /* answered with an error for what they were, without being tried */
  uint64_t in_flight;       /* being carried out by workers or the ring */
  uint64_t last_ns;         /* when a request was last answered; 0: never */
  uint64_t merged_requests; /* writes that were put together ... */
  uint64_t merged[STATS_GROUPS]; /* ... and how many of them in one, one included */
  uint64_t flushed_requests;     /* flushes and FUA writes that shared a flush ... */
  uint64_t flushes[STATS_GROUPS];
};

/* ---- reading --------------------------------------------------------------------------------- */

struct stats;

struct stats *stats_new (void); /* NULL without memory */
void stats_free (struct stats *st);
void stats_sum (struct stats *st, struct stats_sum *sum);
/* All exports together, those that have gone included. */
void stats_total (struct stats_sum *sum);
/* What is no export's, changed seldom and by any thread: the server as a whole. */
struct stats_server {
  _Atomic uint64_t connections;        /* taken in */
  _Atomic uint64_t connections_failed; /* no descriptor or memory for one */
  _Atomic uint64_t refused;            /* by NBD_OPT_GO or EXPORT_NAME: the export is full */
  _Atomic uint64_t handshake_timeouts; /* closed since the handshake took too long */
  _Atomic uint64_t handshake_errors;   /* closed in the handshake for what the client did */
  _Atomic uint64_t clients;            /* connected */
  /* The worker pool, written under its lock. */
  _Alignas(64) _Atomic uint64_t workers;
  _Atomic uint64_t workers_busy, queued;
};
extern struct stats_server stats_server;

/* ---- counting -------------------------------------------------------------------------------- */

/* Only its own loop writes here. */
struct stats_counters {
  struct stats_counters *next;
  const void *owner;
  uint32_t pending[STATS_OPS]; /* answered in this turn ... */
  unsigned pending_ops;        /* ... and a bit for each that is not 0 */
  _Atomic uint64_t in_flight, rejected, last_ns;
  _Atomic uint64_t merged_requests, merged[STATS_GROUPS];
  struct stats_op_counters {
    _Atomic uint64_t requests, errors, bytes, nanoseconds;
    _Atomic uint64_t latency[STATS_BUCKETS];
  } op[STATS_OPS];
};

/* The counters that OWNER, a loop, has for ST; made when it first asks.  NULL without memory.  Only
 * OWNER's thread asks for OWNER. */
struct stats_counters *stats_counters (struct stats *st, const void *owner);

static inline uint64_t
stats_clock (void)
{
  struct timespec ts;
  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* No read-modify-write: there is one writer. */
static inline void
stats_add (_Atomic uint64_t *counter, uint64_t n)
{
  atomic_store_explicit (counter, atomic_load_explicit (counter, memory_order_relaxed) + n,
                         memory_order_relaxed);
}

static inline void
stats_count (struct stats_counters *c, enum stats_op op, uint64_t bytes, bool error)
{
  stats_add (&c->op[op].requests, 1);
  stats_add (error ? &c->op[op].errors : &c->op[op].bytes, error ? 1 : bytes);
}

static inline void
stats_inline (struct stats_counters *c, enum stats_op op, uint64_t bytes, bool error)
{
  if (!STATS_ON)
    return;
  stats_count (c, op, bytes, error);
  c->pending[op]++;
  c->pending_ops |= 1u << op;
}

/* Whether stats_settle has anything to do. */
static inline bool
stats_pending (const struct stats_counters *c)
{
  return c->pending_ops != 0;
}

void stats_settle (struct stats_counters *c, uint64_t arrived, uint64_t now);
/* It took from ARRIVED to NOW. */
void stats_done (struct stats_counters *c, enum stats_op op, uint64_t bytes, bool error,
                 uint64_t arrived, uint64_t now);
/* N writes became one. */
static inline void
stats_merged (struct stats_counters *c, unsigned n)
{
  if (!STATS_ON)
    return;
  stats_add (&c->merged_requests, n);
  stats_add (&c->merged[n > 1 ? stats_group (n) : 0], 1);
}

/* N requests wait for the flush that begins now.  Called by one thread at a time for each ST. */
void stats_flush (struct stats *st, unsigned n);

#endif /* STATS_H */
