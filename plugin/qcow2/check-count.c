/* SPDX-License-Identifier: BSD-3-Clause
 *
 * References per host cluster, one byte each, with a way out for the clusters that have many.
 */

#include <errno.h>
#include <stdlib.h>

#include "check.h"

#define LARGE 255u /* in the byte: the count is in the hash table */

struct q_refmap_piece {
  uint8_t count[Q_REFMAP_PIECE];
  uint8_t mark[Q_REFMAP_MARKS][Q_REFMAP_PIECE / 8];
};

struct q_refmap_large {
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
  for (uint64_t i = 0; m->piece && i < q_div_up (m->clusters, Q_REFMAP_PIECE); i++)
    free (m->piece[i]);
  free (m->piece);
  free (m->large);
  *m = (struct q_refmap){ 0 };
}

static struct q_refmap_piece *
piece_at (const struct q_refmap *m, uint64_t cluster)
{
  return cluster < m->clusters ? m->piece[cluster / Q_REFMAP_PIECE] : NULL;
}

static struct q_refmap_piece *
make_piece_at (struct q_refmap *m, uint64_t cluster)
{
  struct q_refmap_piece **p = &m->piece[cluster / Q_REFMAP_PIECE];

  if (!*p)
    *p = calloc (1, sizeof **p);
  return *p;
}

/* The slot of CLUSTER, or the empty one where it belongs.  There is always an empty one. */
static struct q_refmap_large *
find_large (const struct q_refmap *m, uint64_t cluster)
{
  uint64_t at = (cluster * 0x9e3779b97f4a7c15u >> 20) & (m->large_slots - 1);

  while (m->large[at].cluster != 0 && m->large[at].cluster != cluster + 1)
    at = (at + 1) & (m->large_slots - 1);
  return &m->large[at];
}

/* Keeps the hash table at most half full.  Slots are never emptied: a count that went down again
 * keeps its slot. */
static int
reserve_large (struct q_refmap *m)
{
  struct q_refmap old = *m;

  if (2 * (m->n_large + 1) <= m->large_slots)
    return 0;
  m->large_slots = old.large_slots ? 2 * old.large_slots : 1024;
  m->large = calloc (m->large_slots, sizeof *m->large);
  if (!m->large) {
    *m = old;
    return -ENOMEM;
  }
  for (uint64_t i = 0; i < old.large_slots; i++)
    if (old.large[i].cluster)
      *find_large (m, old.large[i].cluster - 1) = old.large[i];
  free (old.large);
  return 0;
}

int
q_refmap_add (struct q_refmap *m, uint64_t cluster)
{
  struct q_refmap_piece *p = make_piece_at (m, cluster);

  if (!p)
    return -ENOMEM;

  uint8_t *count = &p->count[cluster % Q_REFMAP_PIECE];

  if (*count < LARGE - 1) {
    ++*count;
    return 0;
  }

  int r = reserve_large (m);

  if (r < 0)
    return r;

  struct q_refmap_large *l = find_large (m, cluster);

  if (l->cluster == 0) {
    l->cluster = cluster + 1;
    m->n_large++;
  }
  l->count = *count == LARGE ? l->count + 1 : LARGE;
  *count = LARGE;
  return 0;
}

void
q_refmap_drop (struct q_refmap *m, uint64_t cluster)
{
  uint8_t *count = &piece_at (m, cluster)->count[cluster % Q_REFMAP_PIECE];

  if (*count != LARGE)
    --*count;
  else if (--find_large (m, cluster)->count < LARGE)
    *count = LARGE - 1;
}

uint64_t
q_refmap_get (const struct q_refmap *m, uint64_t cluster)
{
  const struct q_refmap_piece *p = piece_at (m, cluster);
  uint8_t count = p ? p->count[cluster % Q_REFMAP_PIECE] : 0;

  return count == LARGE ? find_large (m, cluster)->count : count;
}

bool
q_refmap_empty_at (const struct q_refmap *m, uint64_t cluster)
{
  return !piece_at (m, cluster);
}

int
q_refmap_set_mark (struct q_refmap *m, uint64_t cluster, enum q_refmap_mark mark)
{
  struct q_refmap_piece *p = make_piece_at (m, cluster);
  uint64_t i = cluster % Q_REFMAP_PIECE;

  if (!p)
    return -ENOMEM;
  p->mark[mark][i / 8] |= (uint8_t)(1u << (i % 8));
  return 0;
}

bool
q_refmap_has_mark (const struct q_refmap *m, uint64_t cluster, enum q_refmap_mark mark)
{
  const struct q_refmap_piece *p = piece_at (m, cluster);
  uint64_t i = cluster % Q_REFMAP_PIECE;

  return p && (p->mark[mark][i / 8] >> (i % 8) & 1);
}

void
q_refmap_clear_mark (struct q_refmap *m, enum q_refmap_mark mark)
{
  for (uint64_t i = 0; i < q_div_up (m->clusters, Q_REFMAP_PIECE); i++)
    if (m->piece[i])
      memset (m->piece[i]->mark[mark], 0, sizeof m->piece[i]->mark[mark]);
}
