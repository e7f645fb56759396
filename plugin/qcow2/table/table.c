/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Metadata tables in memory: allocation and dirty tracking.
 *
 * A change is first made to an entry, then marked dirty.  The flusher clears the mark, then
 * copies.  So whatever the order in which the two meet, an entry that was set is either in the copy
 * or still marked.
 */

#include <stdlib.h>

#include "state.h"

#define DIRTY_BITS 64u

static unsigned
dirty_words (uint32_t bytes, unsigned block_bits)
{
  return (unsigned)q_div_up (q_div_up (bytes, 1u << block_bits), DIRTY_BITS);
}

struct q_table *
q_table_new (struct q_image *img, enum q_table_kind kind, uint64_t index, uint64_t host,
             uint32_t bytes)
{
  unsigned block_bits =
      img->cluster_bits < Q_TABLE_BLOCK_BITS ? img->cluster_bits : Q_TABLE_BLOCK_BITS;
  struct q_table *t =
      calloc (1, sizeof *t + dirty_words (bytes, block_bits) * sizeof (t->dirty[0]));

  if (!t)
    return NULL;
  t->img = img;
  t->kind = kind;
  t->index = index;
  t->host = host;
  t->bytes = bytes;
  t->block_bits = block_bits;
  t->wide = kind == Q_TABLE_L2 && (img->incompatible & Q_INCOMPAT_EXTL2);
  if (img->state)
    t->slot = q_state_take (img->state, kind, index, host, bytes, (void **)&t->mem);
  if (t->slot) {
    t->state = img->state;
    return t;
  }
  if (img->state && (kind == Q_TABLE_L1 || kind == Q_TABLE_REFTABLE)) {
    free (t); /* everything in the state file hangs on these two */
    return NULL;
  }
  /* Aligned for O_DIRECT where the cluster size allows. */
  if (posix_memalign ((void **)&t->mem, bytes < 4096 ? 64 : 4096, bytes) != 0) {
    free (t);
    return NULL;
  }
  memset (t->mem, 0, bytes);
  return t;
}

void
q_table_free (void *table)
{
  struct q_table *t = table;

  if (!t)
    return;
  if (t->slot)
    q_state_give (t->state, t->slot);
  else
    free (t->mem);
  free (t);
}

void
q_table_move (struct q_table *t, uint64_t host)
{
  assert (!q_table_is_dirty (t));
  if (t->slot)
    atomic_store (&t->slot->moving, 1);
  t->host = host;
  if (t->slot)
    atomic_store (&t->slot->host, host);
}

void
q_table_moved (struct q_table *t)
{
  if (t->slot)
    atomic_store (&t->slot->moving, 0);
}

void
q_table_retired (struct q_table *t)
{
  /* The same table may soon be in another slot, and changed there. */
  if (t->slot)
    atomic_store (&t->slot->in_use, 0);
}

void
q_table_switch (struct q_table *t)
{
  if (t->slot)
    q_state_switch (t->state, t->slot);
}

void
q_table_mark_dirty (struct q_table *t, uint32_t byte_offset, uint32_t bytes)
{
  uint32_t first = byte_offset >> t->block_bits;
  uint32_t last = (byte_offset + bytes - 1) >> t->block_bits;

  for (uint32_t b = first; b <= last; ++b)
    atomic_fetch_or (&t->dirty[b / DIRTY_BITS], 1ull << (b % DIRTY_BITS));
  if (t->slot)
    atomic_fetch_add (&t->slot->changed, 1);
  Q_PROBE ("marked, not listed");
  if (atomic_load (&t->listed))
    return;
  if (t->kind == Q_TABLE_L1 || t->kind == Q_TABLE_REFTABLE) {
    atomic_store (&t->listed, true); /* one of each: the flusher knows where they are */
    return;
  }
  /* Whoever sees that it is listed may answer a request, so it must be on the list by then. */
  pthread_mutex_lock (&t->img->dirty_lock);
  if (!atomic_load (&t->listed)) {
    t->dirty_next = t->img->dirty_list;
    t->img->dirty_list = t;
    atomic_fetch_add (&t->img->dirty_tables, 1);
    atomic_store (&t->listed, true);
  }
  pthread_mutex_unlock (&t->img->dirty_lock);
}

bool
q_table_is_dirty (const struct q_table *t)
{
  return atomic_load (&t->listed);
}

/* ---- the clock ring ------------------------------------------------------------------------ */

/* Behind the hand: the last to be looked at. */
void
q_cache_insert (struct q_table_cache *c, struct q_table *t)
{
  if (!c->hand) {
    t->prev = t->next = t;
    c->hand = t;
  } else {
    t->next = c->hand;
    t->prev = c->hand->prev;
    t->prev->next = t;
    c->hand->prev = t;
  }
  ++c->tables;
  c->bytes += t->bytes;
}

void
q_cache_remove (struct q_table_cache *c, struct q_table *t)
{
  if (t->next == t)
    c->hand = NULL;
  else if (c->hand == t)
    c->hand = t->next;
  t->prev->next = t->next;
  t->next->prev = t->prev;
  --c->tables;
  c->bytes -= t->bytes;
}
