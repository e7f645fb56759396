/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Flush: a group commit.
 *
 * There is one flusher at a time.  Whoever wants a flush takes a ticket; the flusher serves every
 * ticket that was taken before it began, and whoever comes later waits for the next round.
 *
 * One round, with invariants 1 and 2:
 *
 *     mark what is in limbo now
 *     copy what is dirty of the references, top down: L1 table, then L2 tables
 *     copy what is dirty of the counts: refcount blocks, refcount table
 *     write blocks and tables that nothing on disk points to yet     } only if
 *     sync                                                           } there are any
 *     write the other counts, the header's pointer to the refcount table, and new L2 tables
 *     sync           now data and counts are durable (both files, if data has one of its own)
 *     write the other references
 *     sync           now the references are durable
 *     what was marked in limbo may go
 *
 * The references are copied first, so that the counts in the copy cover them: counts are raised
 * before references are published.  What is published after the copy stays dirty for the next
 * round.  A round without dirty metadata is one sync, or nothing at all.
 *
 * A full disk is not fatal: nothing that was copied is lost, it is marked dirty again and the next
 * round tries again.  Any other failure is (invariant 7).
 */

#include <errno.h>
#include <stdlib.h>

#include "entry.h"
#include "state.h"

/* Limbo is emptied by flushing when it holds more clusters than this. */
#define MAX_LIMBO_CLUSTERS (1u << 16)

enum phase { PHASE_UNREFERENCED, PHASE_COUNTS, PHASE_REFERENCES, PHASES };

/* Some blocks of a table, copied. */
struct piece {
  struct piece *next;
  struct q_table *table; /* held until the round ends */
  uint64_t host;
  uint64_t changes;     /* of its slot in the state file, as of before the copy */
  uint32_t offset, len; /* in the table */
  uint8_t data[];
};

struct q_flush_round {
  struct piece *list[PHASES];
  bool plain;          /* no metadata was dirty */
  bool reftable_moved; /* the header must be pointed to ... */
  uint64_t reftable_offset;
  uint32_t reftable_clusters; /* ... this one */
  bool wrote;                 /* something was to img->file since its last sync, ... */
  bool wrote_data;            /* ... and to img->data, if that is another file */
};

static bool
has_data_file (const struct q_image *img)
{
  return img->data != img->file;
}

/* ---- copying -------------------------------------------------------------------------------- */

static struct piece *
copy_blocks (struct q_table *t, uint32_t first, uint32_t count)
{
  uint32_t offset = first << t->block_bits;
  uint32_t len = (uint32_t)q_min ((uint64_t)count << t->block_bits, t->bytes - offset);
  struct piece *p = malloc (sizeof *p + len);

  if (!p)
    return NULL;
  *p = (struct piece){ .table = t, .host = t->host + offset, .offset = offset, .len = len };
  if (t->kind == Q_TABLE_REFBLOCK)
    memcpy (p->data, t->mem + offset, len); /* under alloc_lock */
  else
    q_entries_copy (t, offset, len, p->data);
  return p;
}

/* Clears T's dirty marks and copies the blocks that had one to PHASE. */
static int
copy_table (struct q_flush_round *round, struct q_table *t, enum phase phase)
{
  uint32_t blocks = (uint32_t)q_div_up (t->bytes, 1u << t->block_bits);
  uint64_t changes = t->slot ? atomic_load (&t->slot->changed) : 0;

  for (uint32_t w = 0; w * 64 < blocks; ++w) {
    uint64_t bits = atomic_exchange_explicit (&t->dirty[w], 0, memory_order_acq_rel);

    if (bits)
      Q_PROBE ("marks cleared, table not copied");

    while (bits) {
      uint32_t first = (uint32_t)__builtin_ctzll (bits), n = 1;
      struct piece *p;

      while (first + n < 64 && (bits >> (first + n) & 1))
        ++n;
      p = copy_blocks (t, w * 64 + first, n);
      if (!p) {
        atomic_fetch_or (&t->dirty[w], bits);
        return -ENOMEM;
      }
      atomic_fetch_add (&t->users, 1);
      p->changes = changes;
      p->next = round->list[phase];
      round->list[phase] = p;
      bits &= first + n < 64 ? ~0ull << (first + n) : 0;
    }
  }
  return 0;
}

/* Takes T off the dirty list (it is off already in fact) and copies it. */
static int
copy_listed (struct q_flush_round *round, struct q_table *t, enum phase phase)
{
  int r;

  atomic_store (&t->listed, false);
  r = copy_table (round, t, phase);
  if (r < 0)
    q_table_mark_dirty (t, 0, 1); /* back on the list; its marks are still there */
  return r;
}

static struct q_table *
take_dirty_list (struct q_image *img)
{
  struct q_table *list;

  pthread_mutex_lock (&img->dirty_lock);
  list = img->dirty_list;
  img->dirty_list = NULL;
  pthread_mutex_unlock (&img->dirty_lock);
  return list;
}

/* Copies the tables on LIST that are of KIND and leaves the others on it. */
static int
copy_kind (struct q_image *img, struct q_flush_round *round, struct q_table **list,
           enum q_table_kind kind)
{
  struct q_table **p = list, *t;
  int r = 0;

  while (r == 0 && (t = *p) != NULL) {
    if (t->kind != kind) {
      p = &t->dirty_next;
      continue;
    }
    *p = t->dirty_next;
    atomic_fetch_sub (&img->dirty_tables, 1);
    atomic_fetch_add (&t->users, 1); /* while neither listed nor in a piece */
    r = copy_listed (round, t,
                     t->fresh ? (kind == Q_TABLE_L2 ? PHASE_COUNTS : PHASE_UNREFERENCED)
                              : (kind == Q_TABLE_L2 ? PHASE_REFERENCES : PHASE_COUNTS));
    atomic_fetch_sub (&t->users, 1);
  }
  return r;
}

static void
put_back (struct q_image *img, struct q_table *list)
{
  struct q_table *t;

  pthread_mutex_lock (&img->dirty_lock);
  while ((t = list) != NULL) {
    list = t->dirty_next;
    t->dirty_next = img->dirty_list;
    img->dirty_list = t;
  }
  pthread_mutex_unlock (&img->dirty_lock);
}

/* Copies the counts.  alloc_lock held: counts change under it. */
static int
copy_counts (struct q_image *img, struct q_flush_round *round, struct q_table **list)
{
  int r = copy_kind (img, round, list, Q_TABLE_REFBLOCK);

  if (r == 0 && atomic_load (&img->reftable->listed))
    r = copy_listed (round, img->reftable,
                     img->reftable->fresh ? PHASE_UNREFERENCED : PHASE_COUNTS);
  round->reftable_moved = img->reftable_moved;
  round->reftable_offset = img->reftable_offset;
  round->reftable_clusters = img->reftable_clusters;
  return r;
}

static int
copy_all (struct q_image *img, struct q_flush_round *round)
{
  struct q_l1 *l1;
  struct q_table *list;
  int r = 0;

  q_alloc_lock (img);
  img->limbo.n_marked = img->limbo.n;
  q_alloc_unlock (img);
  Q_PROBE ("limbo marked");

  l1 = atomic_load (&img->l1);
  if (atomic_load (&l1->table->listed))
    r = copy_listed (round, l1->table, PHASE_REFERENCES);
  Q_PROBE ("L1 copied");
  list = take_dirty_list (img);
  if (r == 0)
    r = copy_kind (img, round, &list, Q_TABLE_L2);
  Q_PROBE ("L2 copied");
  if (r == 0) {
    /* Blocks that became dirty since: their counts may be needed by what was just copied. */
    struct q_table *late, **end;

    q_alloc_lock (img);
    late = take_dirty_list (img);
    for (end = &list; *end; end = &(*end)->dirty_next)
      ;
    *end = late;
    r = copy_counts (img, round, &list);
    q_alloc_unlock (img);
  }
  put_back (img, list);
  return r;
}

/* ---- writing -------------------------------------------------------------------------------- */

static int
write_phase (struct q_image *img, struct q_flush_round *round, enum phase phase)
{
  int r = 0;

  for (struct piece *p = round->list[phase]; r == 0 && p; p = p->next) {
    r = q_file_pwrite (img->file, p->data, p->len, p->host);
    round->wrote = true;
  }
  return r;
}

static int
sync_file (struct q_image *img, struct q_flush_round *round)
{
  int r;

  Q_PROBE ("before a sync");
  r = q_file_sync (img->file);
  round->wrote = false;
  if (r < 0) {
    q_note_data_written (img); /* and it never will be durable, which close must say */
    return q_stick (img, r, "syncing failed");
  }
  return 0;
}

/* Data that has a file of its own. */
static int
sync_data (struct q_image *img, struct q_flush_round *round)
{
  int r;

  Q_PROBE ("before a sync of the data file");
  r = q_file_sync (img->data);
  round->wrote_data = false;
  if (r < 0) {
    q_note_data_written (img);
    return q_stick (img, r, "syncing the data file failed");
  }
  return 0;
}

static int
sync_files (struct q_image *img, struct q_flush_round *round)
{
  int r = round->wrote_data ? sync_data (img, round) : 0;

  return r == 0 && round->wrote ? sync_file (img, round) : r;
}

/* PHASE is durable, and what it wrote of new tables will not be written before what points to
 * them again: from now on they are tables like others.  This must not wait for the end of the
 * round, which may fail after something on disk points to them. */
static void
no_longer_fresh (struct q_flush_round *round, enum phase phase)
{
  for (struct piece *p = round->list[phase]; p; p = p->next)
    if (p->table->kind == Q_TABLE_L2) {
      uint64_t place = p->host - p->offset;

      atomic_compare_exchange_strong (&p->table->fresh, &place, 0); /* or it has been moved */
    } else
      p->table->fresh = 0;
}

static int
write_all (struct q_image *img, struct q_flush_round *round)
{
  bool numbered;
  int r = 0;

  if (round->list[PHASE_UNREFERENCED]) {
    r = write_phase (img, round, PHASE_UNREFERENCED);
    if (r == 0)
      r = sync_file (img, round);
    if (r == 0) {
      q_alloc_lock (img);
      no_longer_fresh (round, PHASE_UNREFERENCED);
      q_alloc_unlock (img);
    }
  }
  if (r == 0)
    r = write_phase (img, round, PHASE_COUNTS);
  if (r == 0 && round->reftable_moved) {
    r = q_header_write_reftable (img, round->reftable_offset, round->reftable_clusters);
    round->wrote = true;
  }
  if (round->list[PHASE_REFERENCES]) {
    /* What they point to may have been written after this round began. */
    round->wrote = true;
    round->wrote_data = has_data_file (img);
  }
  if (r == 0)
    r = sync_files (img, round);
  if (r == 0) {
    no_longer_fresh (round, PHASE_COUNTS);
    r = write_phase (img, round, PHASE_REFERENCES);
  }
  if (r == 0 && q_highest_offset (img) != img->highest_recorded) {
    r = q_highest_persist (img);
    round->wrote = true;
  }
  numbered = r == 0 && round->wrote;
  if (numbered)
    r = q_state_write_sequence (img);
  if (r == 0 && numbered)
    r = sync_file (img, round);
  if (r == 0 && numbered)
    q_state_sequence_done (img);
  return r;
}

/* All of it is on disk. */
static void
settle (struct q_image *img, struct q_flush_round *round)
{
  Q_PROBE ("all durable, limbo not told");
  q_alloc_lock (img);
  if (round->reftable_moved && img->reftable_offset == round->reftable_offset)
    img->reftable_moved = false;
  img->limbo.n_durable = img->limbo.n_marked;
  q_alloc_unlock (img);
}

static void
end_round (struct q_flush_round *round, bool again)
{
  for (int i = 0; i < PHASES; ++i) {
    struct piece *p;

    while ((p = round->list[i]) != NULL) {
      round->list[i] = p->next;
      if (again)
        q_table_mark_dirty (p->table, p->offset, p->len);
      else if (p->table->slot && atomic_load (&p->table->slot->saved) < p->changes)
        atomic_store (&p->table->slot->saved, p->changes);
      atomic_fetch_sub (&p->table->users, 1);
      free (p);
    }
  }
}

/* Counts that limbo has just lowered need not wait for the next flush to be written, only to be
 * synced. */
static int
write_lowered_counts (struct q_image *img)
{
  struct q_flush_round round = { 0 };
  struct q_table *list, **p, *t, *skipped = NULL;
  int r;

  if (atomic_load (&img->dirty_tables) == 0)
    return 0;
  q_alloc_lock (img);
  list = take_dirty_list (img);
  for (p = &list; (t = *p) != NULL;) {
    if (t->kind == Q_TABLE_REFBLOCK && !t->fresh)
      p = &t->dirty_next;
    else {
      *p = t->dirty_next;
      t->dirty_next = skipped;
      skipped = t;
    }
  }
  r = copy_kind (img, &round, &list, Q_TABLE_REFBLOCK);
  q_alloc_unlock (img);
  put_back (img, list);
  put_back (img, skipped);
  if (r == 0)
    r = write_phase (img, &round, PHASE_COUNTS);
  if (round.wrote)
    atomic_store (&img->file_needs_sync, true);
  if (r < 0 && r != -ENOSPC && r != -ENOMEM)
    q_stick (img, r, "writing refcounts failed");
  end_round (&round, r < 0);
  return r;
}

/* ---- one round ------------------------------------------------------------------------------ */

static bool
has_dirty_metadata (struct q_image *img)
{
  struct q_l1 *l1 = atomic_load (&img->l1);

  return atomic_load (&img->dirty_tables) > 0 || atomic_load (&l1->table->listed) ||
         atomic_load (&img->limbo.clusters) > 0 || q_highest_offset (img) != img->highest_recorded;
}

static int
copy_round (struct q_image *img, struct q_flush_round *round)
{
  bool data;

  ++img->flush_rounds;
  data = atomic_exchange (&img->needs_sync, false);
  round->wrote = atomic_exchange (&img->file_needs_sync, false);
  if (has_data_file (img))
    round->wrote_data = data;
  else
    round->wrote |= data;
  round->plain = img->format != Q_FORMAT_QCOW2 || !has_dirty_metadata (img);
  if (round->plain)
    return 0;
  ++img->metadata_rounds;
  return copy_all (img, round);
}

static int
write_round (struct q_image *img, struct q_flush_round *round)
{
  if (!round->plain)
    return write_all (img, round);
  if (atomic_load (&img->dropped.clusters) > 0)
    q_limbo_release (img);
  return sync_files (img, round);
}

static int
finish_round (struct q_image *img, struct q_flush_round *round, int r)
{
  if (round->plain)
    return r;
  if (r == 0)
    settle (img, round);
  else {
    q_note_data_written (img);
    atomic_store (&img->file_needs_sync, true);
    if (r != -ENOSPC && r != -ENOMEM)
      q_stick (img, r, "writing metadata failed");
    q_alloc_lock (img);
    img->limbo.n_marked = img->limbo.n_durable;
    q_alloc_unlock (img);
  }
  end_round (round, r < 0);
  q_refcount_free_old (img);
  if (r == 0) {
    r = q_limbo_release (img);
    if (r == 0)
      r = write_lowered_counts (img);
  }
  return r;
}

int
q_flush_round (struct q_image *img)
{
  struct q_flush_round round = { 0 };
  int r = atomic_load (&img->sticky);

  if (r < 0)
    return r;
  r = copy_round (img, &round);
  if (r == 0)
    r = write_round (img, &round);
  return finish_round (img, &round, r);
}

int
q_flush_copy (struct q_image *img, struct q_flush_round **round)
{
  int r = atomic_load (&img->sticky);

  *round = NULL;
  if (r < 0)
    return r;
  *round = calloc (1, sizeof **round);
  return *round ? copy_round (img, *round) : -ENOMEM;
}

int
q_flush_write (struct q_image *img, struct q_flush_round *round)
{
  return write_round (img, round);
}

int
q_flush_end (struct q_image *img, struct q_flush_round *round, int r)
{
  if (!round)
    return r;
  r = finish_round (img, round, r);
  free (round);
  return r;
}

/* ---- tickets -------------------------------------------------------------------------------- */

/* flush_lock held. */
static void
become_flusher (struct q_image *img)
{
  while (img->flush_running)
    pthread_cond_wait (&img->flush_done, &img->flush_lock);
  img->flush_running = true;
}

/* flush_lock held. */
static void
stop_flushing (struct q_image *img)
{
  img->flush_running = false;
  pthread_cond_broadcast (&img->flush_done);
}

int
q_flush (struct q_image *img)
{
  uint64_t ticket, serving;
  int r;

  if (img->read_only)
    return 0;
  pthread_mutex_lock (&img->flush_lock);
  ticket = ++img->flush_requested;
  while (img->flush_finished < ticket) {
    if (img->flush_running) {
      pthread_cond_wait (&img->flush_done, &img->flush_lock);
      continue;
    }
    become_flusher (img);
    serving = img->flush_requested;
    pthread_mutex_unlock (&img->flush_lock);

    r = q_flush_round (img);

    pthread_mutex_lock (&img->flush_lock);
    img->flush_finished = serving;
    img->flush_result = r;
    stop_flushing (img);
  }
  /* A later round may have answered over ours: it covers our ticket too, except that an error that
   * passed (a disk that was full) and was then made good is no error any more. */
  r = img->flush_result;
  pthread_mutex_unlock (&img->flush_lock);
  return r;
}

void
q_flush_hold (struct q_image *img)
{
  pthread_mutex_lock (&img->flush_lock);
  become_flusher (img);
  pthread_mutex_unlock (&img->flush_lock);
}

void
q_flush_let_go (struct q_image *img)
{
  pthread_mutex_lock (&img->flush_lock);
  stop_flushing (img);
  pthread_mutex_unlock (&img->flush_lock);
}

bool
q_flush_frees_space (struct q_image *img)
{
  if (atomic_load (&img->limbo.clusters) == 0 && atomic_load (&img->dropped.clusters) == 0)
    return false;
  return q_flush (img) == 0;
}

bool
q_flush_is_due (struct q_image *img)
{
  q_pin_t pin = q_pin (); /* the L1 table may be replaced */
  bool due = atomic_load (&img->needs_sync) || atomic_load (&img->file_needs_sync) ||
             (img->format == Q_FORMAT_QCOW2 && has_dirty_metadata (img));

  q_unpin (pin);
  return due;
}

int
q_flush_throttle (struct q_image *img)
{
  if (atomic_load_explicit (&img->dirty_tables, memory_order_relaxed) <= img->dirty_max &&
      atomic_load_explicit (&img->limbo.clusters, memory_order_relaxed) <= MAX_LIMBO_CLUSTERS)
    return 0;
  return q_flush (img);
}
