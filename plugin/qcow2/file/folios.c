/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "folios.h"
#include "image.h"

#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

#define PAGE_BYTES 4096u

/* A folio of this size is walked quickly. */
#define UNIT_BITS 16u
#define UNITS     (1u << 16) /* remembered: 4 GiB */

/* What has been read anew since is in large folios again. */
#define FORGET_MS 30000u

/* One first write in so many is made in the way that seems the slower one. */
#define EXPLORE 256u

/* What takes so many times as long as it did lately says something about the machine, not about the
 * write.  If it goes on, the average follows all the same. */
#define MAX_RISE 4u

struct q_folios {
  struct q_windows *windows;
  _Atomic uint32_t turns;            /* first writes so far */
  _Atomic uint32_t plain, split;     /* what a first write takes, ns, averaged; 0: not known */
  _Atomic uint64_t last_seen[UNITS]; /* unit << 32 | milliseconds, by unit modulo UNITS */
};

struct q_folios *
q_folios_new (struct q_windows *w)
{
  /* Large enough to come from mmap: pages that are not used cost nothing. */
  struct q_folios *f = w ? calloc (1, sizeof *f) : NULL;

  if (f)
    f->windows = w;
  return f;
}

void
q_folios_free (struct q_folios *f)
{
  free (f);
}

static uint64_t
now_ns (clockid_t clock)
{
  struct timespec t;

  clock_gettime (clock, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Whether this is the first write into UNIT for a while. */
static bool
is_first (struct q_folios *f, uint64_t unit, uint32_t now)
{
  _Atomic uint64_t *seen = &f->last_seen[unit % UNITS];
  uint64_t last = atomic_load_explicit (seen, memory_order_relaxed);

  if (last != 0 && (uint32_t)(last >> 32) == (uint32_t)unit && now - (uint32_t)last < FORGET_MS)
    return false;
  atomic_store_explicit (seen, unit << 32 | now, memory_order_relaxed);
  return true;
}

/* The folio at OFFSET, if it is in the page cache.  Nothing happens to it if it is dirty. */
static void
split (struct q_folios *f, uint64_t offset)
{
  uint64_t page = offset & ~(uint64_t)(PAGE_BYTES - 1);
  q_pin_t pin = q_pin ();
  void *p = (void *)q_window_find (f->windows, page, PAGE_BYTES);

  /* It must be mapped in fact for the advice to reach it. */
  if (p && madvise (p, PAGE_BYTES, MADV_POPULATE_READ) == 0)
    madvise (p, PAGE_BYTES, MADV_COLD);
  q_unpin (pin);
}

static bool
splitting_pays (struct q_folios *f)
{
  uint32_t turn = atomic_fetch_add_explicit (&f->turns, 1, memory_order_relaxed);
  uint32_t plain = atomic_load_explicit (&f->plain, memory_order_relaxed);
  uint32_t with = atomic_load_explicit (&f->split, memory_order_relaxed);
  bool pays;

  if (plain == 0 || with == 0)
    return turn % 2;
  pays = plain > with + with / 2;
  return turn % EXPLORE == 0 ? !pays : pays;
}

/* The lowest bit of what is returned says whether the folio was split; 0: the write is not timed.
 */
uint64_t
q_folios_before (struct q_folios *f, uint64_t offset, uint64_t len)
{
  uint64_t first = offset >> UNIT_BITS, last = (offset + len - 1) >> UNIT_BITS;
  uint32_t now = (uint32_t)(now_ns (CLOCK_MONOTONIC_COARSE) / 1000000);
  bool new_first = is_first (f, first, now), new_last = last != first && is_first (f, last, now);
  bool pays;

  if (!new_first && !new_last)
    return 0;
  pays = splitting_pays (f);
  if (pays && new_first)
    split (f, offset);
  if (pays && new_last)
    split (f, last << UNIT_BITS);
  return now_ns (CLOCK_MONOTONIC) << 1 | pays;
}

void
q_folios_after (struct q_folios *f, uint64_t started)
{
  _Atomic uint32_t *average = started & 1 ? &f->split : &f->plain;
  uint64_t took;
  uint32_t old;

  if (started == 0)
    return;
  took = now_ns (CLOCK_MONOTONIC) - (started >> 1);
  old = atomic_load_explicit (average, memory_order_relaxed);
  took = q_min (took, old == 0 ? UINT32_MAX : (uint64_t)MAX_RISE * old);
  /* Two threads may do this at once: one sample is lost. */
  atomic_store_explicit (
      average, old == 0 ? (uint32_t)took : (uint32_t)(q_min ((7ull * old + took) / 8, UINT32_MAX)),
      memory_order_relaxed);
}
