/* SPDX-License-Identifier: BSD-3-Clause
 *
 * References per host cluster, two bits each, with a way out for the clusters that have many: a
 * piece of the map in which one has more than three goes over to a byte for each, and what a byte
 * cannot hold is in a hash table.
 */

#include <errno.h>
#include <stdlib.h>

#include "check.h"

#define NARROW_MAX 3u
#define LARGE      255u /* in the byte: the count is in the hash table */

struct q_refmap_piece {
  uint8_t narrow[Q_REFMAP_PIECE / 4];
  uint8_t *wide;                 /* Q_REFMAP_PIECE; NULL while narrow counts */
  uint8_t *mark[Q_REFMAP_MARKS]; /* Q_REFMAP_PIECE / 8; NULL: none has it */
};

struct q_refmap_entry {
  uint64_t cluster; /* plus one: 0 is an empty slot */
  uint64_t count;
};

int
q_refmap_init (struct q_refmap *m, uint64_t clusters)
{
  *m = (struct q_refmap){ .clusters = clusters };
  if (clusters > Q_REFMAP_MAX)
    return -EFBIG;
  m->piece = calloc (q_div_up (clusters, Q_REFMAP_PIECE), sizeof *m->piece);
  return m->piece ? 0 : -ENOMEM;
}

void
q_refmap_free (struct q_refmap *m)
{
  for (uint64_t i = 0; m->piece && i < q_div_up (m->clusters, Q_REFMAP_PIECE); i++) {
    struct q_refmap_piece *p = atomic_load (&m->piece[i]);

    if (!p)
      continue;
    free (p->wide);
    for (unsigned mark = 0; mark < Q_REFMAP_MARKS; mark++)
      free (p->mark[mark]);
    free (p);
  }
  free (m->piece);
  free (m->large.entry);
  free (m->l2.entry);
  *m = (struct q_refmap){ 0 };
}

static struct q_refmap_piece *
piece_at (const struct q_refmap *m, uint64_t cluster)
{
  return cluster < m->clusters
             ? atomic_load_explicit (&m->piece[cluster / Q_REFMAP_PIECE], memory_order_acquire)
             : NULL;
}

static struct q_refmap_piece *
make_piece_at (struct q_refmap *m, uint64_t cluster)
{
  struct q_refmap_piece *p = piece_at (m, cluster);

  if (!p) {
    p = calloc (1, sizeof *p);
    atomic_store_explicit (&m->piece[cluster / Q_REFMAP_PIECE], p, memory_order_release);
  }
  return p;
}

/* ---- the hash tables ------------------------------------------------------------------------- */

/* The slot of CLUSTER, or the empty one where it belongs.  There is always an empty one. */
static struct q_refmap_entry *
find (const struct q_refmap_hash *h, uint64_t cluster)
{
  uint64_t at = (cluster * 0x9e3779b97f4a7c15u >> 20) & (h->slots - 1);

  while (h->entry[at].cluster != 0 && h->entry[at].cluster != cluster + 1)
    at = (at + 1) & (h->slots - 1);
  return &h->entry[at];
}

/* Keeps the table at most half full.  Slots are never emptied: a count that went down again keeps
 * its slot. */
static int
reserve (struct q_refmap_hash *h)
{
  struct q_refmap_hash old = *h;

  if (2 * (h->n + 1) <= h->slots)
    return 0;
  h->slots = old.slots ? 2 * old.slots : 1024;
  h->entry = calloc (h->slots, sizeof *h->entry);
  if (!h->entry) {
    *h = old;
    return -ENOMEM;
  }
  for (uint64_t i = 0; i < old.slots; i++)
    if (old.entry[i].cluster)
      *find (h, old.entry[i].cluster - 1) = old.entry[i];
  free (old.entry);
  return 0;
}

/* The slot of CLUSTER, made if need be; NULL without memory. */
static struct q_refmap_entry *
find_or_make (struct q_refmap_hash *h, uint64_t cluster)
{
  struct q_refmap_entry *e;

  if (reserve (h) < 0)
    return NULL;
  e = find (h, cluster);
  if (e->cluster == 0) {
    e->cluster = cluster + 1;
    h->n++;
  }
  return e;
}

/* ---- counts ---------------------------------------------------------------------------------- */

static unsigned
narrow_get (const struct q_refmap_piece *p, uint64_t i)
{
  return p->narrow[i / 4] >> (i % 4 * 2) & 3u;
}

static void
narrow_set (struct q_refmap_piece *p, uint64_t i, unsigned count)
{
  const unsigned shift = (unsigned)(i % 4 * 2);

  p->narrow[i / 4] = (uint8_t)((p->narrow[i / 4] & ~(3u << shift)) | count << shift);
}

static int
widen (struct q_refmap_piece *p)
{
  p->wide = malloc (Q_REFMAP_PIECE);
  if (!p->wide)
    return -ENOMEM;
  for (uint64_t i = 0; i < Q_REFMAP_PIECE; i++)
    p->wide[i] = (uint8_t)narrow_get (p, i);
  return 0;
}

static int
add_wide (struct q_refmap *m, uint64_t cluster, uint8_t *count)
{
  struct q_refmap_entry *e;

  if (*count < LARGE - 1) {
    ++*count;
    return 0;
  }
  e = find_or_make (&m->large, cluster);
  if (!e)
    return -ENOMEM;
  e->count = *count == LARGE ? e->count + 1 : LARGE;
  *count = LARGE;
  return 0;
}

int
q_refmap_add (struct q_refmap *m, uint64_t cluster)
{
  struct q_refmap_piece *p = make_piece_at (m, cluster);
  uint64_t i = cluster % Q_REFMAP_PIECE;

  if (!p)
    return -ENOMEM;
  if (!p->wide) {
    unsigned count = narrow_get (p, i);

    if (count < NARROW_MAX) {
      narrow_set (p, i, count + 1);
      return 0;
    }
    if (widen (p) < 0)
      return -ENOMEM;
  }
  return add_wide (m, cluster, &p->wide[i]);
}

uint64_t
q_refmap_add_first (struct q_refmap *m, uint64_t cluster, uint64_t count)
{
  uint64_t i = cluster % Q_REFMAP_PIECE, end = q_min (i + count, Q_REFMAP_PIECE), start = i;
  struct q_refmap_piece *p = make_piece_at (m, cluster);

  if (!p || p->wide)
    return 0;
  while (i < end && narrow_get (p, i) == 0) {
    if (i % 4 == 0 && end - i >= 4 && p->narrow[i / 4] == 0) {
      p->narrow[i / 4] = 0x55;
      i += 4;
    } else
      narrow_set (p, i++, 1);
  }
  return i - start;
}

void
q_refmap_drop (struct q_refmap *m, uint64_t cluster)
{
  struct q_refmap_piece *p = piece_at (m, cluster);
  uint64_t i = cluster % Q_REFMAP_PIECE;

  if (!p->wide)
    narrow_set (p, i, narrow_get (p, i) - 1);
  else if (p->wide[i] != LARGE)
    --p->wide[i];
  else if (--find (&m->large, cluster)->count < LARGE)
    p->wide[i] = LARGE - 1;
}

uint64_t
q_refmap_get (const struct q_refmap *m, uint64_t cluster)
{
  const struct q_refmap_piece *p = piece_at (m, cluster);
  uint64_t i = cluster % Q_REFMAP_PIECE;

  if (!p)
    return 0;
  if (!p->wide)
    return narrow_get (p, i);
  return p->wide[i] == LARGE ? find (&m->large, cluster)->count : p->wide[i];
}

bool
q_refmap_empty_at (const struct q_refmap *m, uint64_t cluster)
{
  return !piece_at (m, cluster);
}

/* ---- marks ----------------------------------------------------------------------------------- */

int
q_refmap_set_mark (struct q_refmap *m, uint64_t cluster, enum q_refmap_mark mark)
{
  struct q_refmap_piece *p = make_piece_at (m, cluster);
  uint64_t i = cluster % Q_REFMAP_PIECE;

  if (p && !p->mark[mark])
    p->mark[mark] = calloc (1, Q_REFMAP_PIECE / 8);
  if (!p || !p->mark[mark])
    return -ENOMEM;
  p->mark[mark][i / 8] |= (uint8_t)(1u << (i % 8));
  return 0;
}

bool
q_refmap_has_mark (const struct q_refmap *m, uint64_t cluster, enum q_refmap_mark mark)
{
  const struct q_refmap_piece *p = piece_at (m, cluster);
  uint64_t i = cluster % Q_REFMAP_PIECE;

  return p && p->mark[mark] && (p->mark[mark][i / 8] >> (i % 8) & 1);
}

void
q_refmap_clear_mark (struct q_refmap *m, enum q_refmap_mark mark)
{
  for (uint64_t i = 0; i < q_div_up (m->clusters, Q_REFMAP_PIECE); i++) {
    struct q_refmap_piece *p = atomic_load (&m->piece[i]);

    if (p && p->mark[mark])
      memset (p->mark[mark], 0, Q_REFMAP_PIECE / 8);
  }
}

int
q_refmap_add_l2 (struct q_refmap *m, uint64_t cluster)
{
  struct q_refmap_entry *e = find_or_make (&m->l2, cluster);

  if (!e)
    return -ENOMEM;
  e->count++;
  return q_refmap_add (m, cluster);
}

uint64_t
q_refmap_l2 (const struct q_refmap *m, uint64_t cluster)
{
  return m->l2.slots ? find (&m->l2, cluster)->count : 0;
}
