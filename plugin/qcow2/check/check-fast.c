/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The walk over L2 tables with which nothing is wrong: nearly all of them, nearly always.
 *
 * Several threads take one L1 entry after the other, read its table and look at every entry of it.
 * If all is as it should be they add what it refers to to the counts, under a lock, a run of
 * clusters at a time.  At the first thing that is odd they leave the table alone: check-walk.c then
 * goes through it, in order, and says what it is.
 */

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"

#define MAX_THREADS 8u

/* Fewer tables than this are not worth a thread. */
#define WORTH_THREADS 64u

struct run {
  uint64_t first, count; /* host clusters */
};

struct walk {
  struct q_check *c;
  uint64_t *l1;
  uint32_t entries;
  bool active;
  _Atomic uint32_t next; /* L1 index */
  pthread_mutex_t lock;  /* of the counts, the result and all below */
  uint64_t used, done;   /* L1 entries */
  int result;
};

/* What one table adds. */
struct found {
  struct run *run;
  uint64_t n_runs;
  uint64_t allocated, compressed, fragmented;
  uint64_t next_host;
};

static bool
is_inside (const struct q_check *c, uint64_t offset, uint64_t len)
{
  const uint64_t end = c->clusters << c->img->cluster_bits;

  return offset < end && len <= end - offset;
}

/* The COPIED flag of an entry that leads to HOST. */
static bool
copied_is_right (const struct q_check *c, uint64_t entry, uint64_t host)
{
  const uint64_t cluster = host >> c->img->cluster_bits;

  return !q_check_unknown (c, cluster) &&
         q_refmap_has_mark (&c->refs, cluster, Q_REFMAP_ONE) == ((entry & Q_COPIED) != 0);
}

static void
add_run (struct found *f, uint64_t first, uint64_t count)
{
  struct run *last = f->n_runs ? &f->run[f->n_runs - 1] : NULL;

  if (last && last->first + last->count == first)
    last->count += count;
  else
    f->run[f->n_runs++] = (struct run){ first, count };
}

static bool
take_compressed (const struct q_check *c, uint64_t entry, uint64_t bitmap, struct found *f)
{
  const unsigned bits = c->img->cluster_bits;
  uint64_t host;
  uint32_t csize;

  q_compressed_decode (entry & ~(Q_COPIED | Q_L2_COMPRESSED), bits, &host, &csize);
  if ((entry & Q_COPIED) || bitmap || !is_inside (c, host, csize))
    return false;
  f->allocated++;
  f->compressed++;
  f->fragmented++;
  add_run (f, host >> bits, ((host + csize - 1) >> bits) - (host >> bits) + 1);
  return true;
}

static bool
take_standard (const struct q_check *c, uint64_t entry, uint64_t bitmap, bool active,
               struct found *f)
{
  const uint64_t host = entry & Q_OFFSET_MASK, cluster = q_cluster_bytes (c->img);
  const bool extended = c->img->incompatible & Q_INCOMPAT_EXTL2;

  if ((entry & Q_L2_RESERVED) || ((entry & Q_L2_ZERO) && (extended || c->img->version < 3)) ||
      ((bitmap >> 32) & (uint32_t)bitmap))
    return false;
  if (!host)
    return !(uint32_t)bitmap;
  if (!q_check_aligned (c, host) || !is_inside (c, host, cluster) ||
      (active && !copied_is_right (c, entry, host)))
    return false;
  f->allocated++;
  f->fragmented += f->next_host && host != f->next_host;
  f->next_host = host + cluster;
  add_run (f, host >> c->img->cluster_bits, 1);
  return true;
}

/* True if all of the table at OFFSET, which is read into TABLE, is in order. */
static bool
take_table (struct q_check *c, uint64_t offset, bool active, uint64_t *table, struct found *f)
{
  const unsigned words = q_check_entry_words (c->img);
  const uint64_t n = q_cluster_bytes (c->img) / 8;

  if (q_file_pread (c->img->file, table, 8 * n, offset) < 0)
    return false;
  for (uint64_t i = 0; i < n; i += words) {
    uint64_t entry = be64toh (table[i]), bitmap = words == 2 ? be64toh (table[i + 1]) : 0;

    if (entry == 0 && bitmap == 0)
      continue;
    if (!(entry & Q_L2_COMPRESSED ? take_compressed (c, entry, bitmap, f)
                                  : take_standard (c, entry, bitmap, active, f)))
      return false;
  }
  return true;
}

static int
count_run (struct q_check *c, const struct run *run)
{
  const unsigned bits = c->img->cluster_bits;
  int r = 0;

  for (uint64_t i = 0; r == 0 && i < run->count;) {
    uint64_t fast = q_refmap_add_first (&c->refs, run->first + i, run->count - i);

    i += fast;
    if (fast == 0) {
      r = q_check_count (c, (run->first + i) << bits, 1ull << bits, Q_CHECK_DATA, NULL);
      i++;
    }
  }
  return r;
}

/* Adds what the table at OFFSET, and the reference to it, come to. */
static int
count_table (struct q_check *c, uint64_t offset, bool active, const struct found *f)
{
  int r = q_check_count (c, offset, q_cluster_bytes (c->img), Q_CHECK_L2, NULL);

  for (uint64_t i = 0; r == 0 && i < f->n_runs; i++)
    r = count_run (c, &f->run[i]);
  if (active) {
    c->res->allocated_clusters += f->allocated;
    c->res->compressed_clusters += f->compressed;
    c->res->fragmented_clusters += f->fragmented;
  }
  return r;
}

static void
take_entry (struct walk *w, uint32_t index, uint64_t *table, struct run *runs)
{
  struct q_check *c = w->c;
  const uint64_t entry = w->l1[index], offset = entry & Q_OFFSET_MASK;
  struct found f = { .run = runs };
  bool fine = !(entry & Q_L1_RESERVED) && offset && q_check_aligned (c, offset) &&
              is_inside (c, offset, q_cluster_bytes (c->img)) &&
              (!w->active || copied_is_right (c, entry, offset)) &&
              take_table (c, offset, w->active, table, &f);

  pthread_mutex_lock (&w->lock);
  if (fine && w->result == 0) {
    w->result = count_table (c, offset, w->active, &f);
    w->l1[index] = 0;
  }
  if (w->result == 0)
    w->result = q_check_go_on (c);
  if (w->result < 0)
    atomic_store (&w->next, w->entries); /* nobody begins another one */
  w->done++;
  if (c->progress)
    c->progress (c->opaque, w->done << c->img->cluster_bits, w->used << c->img->cluster_bits);
  pthread_mutex_unlock (&w->lock);
}

static void *
take_entries (void *opaque)
{
  struct walk *w = opaque;
  const uint64_t entries = q_cluster_bytes (w->c->img) / 8;
  uint64_t *table = malloc (8 * entries);
  struct run *runs = malloc (entries * sizeof *runs);
  uint32_t i;

  /* Without memory everything is left to the slow walk. */
  while (table && runs && (i = atomic_fetch_add (&w->next, 1)) < w->entries)
    if (w->l1[i])
      take_entry (w, i, table, runs);
  free (table);
  free (runs);
  return NULL;
}

static unsigned
how_many_threads (const struct q_check *c, uint64_t used)
{
  cpu_set_t set;
  unsigned n = c->threads;

  if (n == 0)
    n = sched_getaffinity (0, sizeof set, &set) == 0 ? (unsigned)CPU_COUNT (&set) : 1;
  if (used < WORTH_THREADS)
    n = 1;
  return n < MAX_THREADS ? n : MAX_THREADS;
}

int
q_check_fast (struct q_check *c, uint64_t *l1, uint32_t entries, bool active)
{
  struct walk w = { .c = c, .l1 = l1, .entries = entries, .active = active };
  pthread_t thread[MAX_THREADS];
  unsigned started = 0, threads;

  /* Where clusters are in another file there is next to nothing to count. */
  if ((c->img->incompatible & Q_INCOMPAT_DATA_FILE) || c->survey)
    return 0;
  for (uint32_t i = 0; i < entries; i++)
    w.used += l1[i] != 0;
  threads = how_many_threads (c, w.used);
  pthread_mutex_init (&w.lock, NULL);
  while (started + 1 < threads && pthread_create (&thread[started], NULL, take_entries, &w) == 0)
    started++;
  take_entries (&w);
  for (unsigned i = 0; i < started; i++)
    pthread_join (thread[i], NULL);
  pthread_mutex_destroy (&w.lock);
  return w.result;
}
