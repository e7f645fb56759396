/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making an internal snapshot of a disk that is in use (specification: "Snapshots").
 *
 * A snapshot is a copy of the L1 table.  All that it refers to gets one more count, and the COPIED
 * flags go, so that the next write to any cluster goes elsewhere.
 *
 * Most of the work is done while the disk is in use.  Table by table, under the claim on its range
 * (invariant 4), the counts of the data clusters are raised and the flags cleared.  Whoever changes
 * a table after that saves what was counted first (q_counting_save), or, where as much is saved as
 * may be, takes the counting back; such tables are counted again while the disk is in use, until
 * few are left.  Then the gate is closed, and what is left is what changed since: tables that
 * differ from what was counted are counted again, L2 tables themselves are counted, and the L1
 * table and all that is dirty of the metadata are copied.  How long that takes depends on how many
 * tables were written in the time of one such pass, and not on the size of the disk, but for one
 * count an L2 table, nor on the storage.  That is the moment of the snapshot, between two writes;
 * the gate opens.  No flag is left, so whoever changes a table now gives it another place, and
 * nobody writes to the old one but the flush of what was copied.  That comes next, and then the
 * copy of the L1 table and a new snapshot table are written, and one write to the header makes the
 * snapshot.
 *
 * Until that write the disk has what it had, with counts that are too high and some flags missing.
 * Such counts are leaks; a missing flag costs a copy; a flag that is still there beside a count of
 * 2 is on a cluster that nobody shares yet.  In version 3 the dirty bit is set all the while, so
 * that the next one to open the image puts it right.  On the disk the order is
 *
 *     the dirty bit
 *     counts, before cleared flags and before the copy of the L1 table (flush.c; invariant 1)
 *     every table that the copy refers to, as it was at the moment, before the copy
 *     the copy and the new snapshot table, before the header's pointer to it
 *     the old snapshot table's clusters are given back after that
 *
 * Anything that fails before the write to the header is undone: counts are lowered, and flags are
 * set where the count is 1.  What cannot even be undone leaves the dirty bit set.  What is changed
 * between the moment and the end of the flush is saved for this as well; but there it cannot be
 * taken back, so where there is no room for it, a flush that fails leaves counts that are too high.
 */

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

#include "entry.h"
#include "readers.h"
#include "tree.h"

/* As many as QEMU can name. */
#define MAX_NAME 255u

/* What is saved of what was counted takes no more memory than the tables themselves may.  When half
 * of that is there, what has changed is counted again before more is, but not after fewer than so
 * many tables. */
#define MIN_STEP 64u

/* What has changed in the end is counted so often, until no more than this is left for the moment
 * when the disk stands still.  Once at least: each time the clusters that were written meanwhile
 * become shared, and the next write to them copies. */
#define MAX_PASSES 3u
#define ENOUGH     (4ull << 20)

enum {
  UNCOUNTED,
  COUNTED,
  TAKEN_BACK, /* it was, and then changed when there was no room to save it: its flags are gone */
  FORGOTTEN,  /* the same, when it was the snapshot's already */
};

struct q_counting {
  uint32_t entries;       /* of the L1 table */
  uint8_t *state;         /* by L1 index: whether what the table refers to has been counted ... */
  uint8_t **before;       /* ... and was this, if it has been changed since */
  bool over;              /* the snapshot's moment is: what is counted is the snapshot's */
  uint64_t most;          /* bytes that may be saved in BEFORE ... */
  _Atomic uint64_t saved; /* ... and are */
  _Atomic uint64_t taken_back; /* bytes of such tables */
};

struct q_making {
  struct q_image *img;
  char name[MAX_NAME + 1], id[Q_SNAPSHOT_ID_SIZE];
  struct q_counting *c;
  uint8_t *l2, *other;         /* an L2 table each */
  uint64_t *l1;                /* the copy, in host byte order, with the flags that there were */
  uint32_t tables;             /* L2 tables below so many L1 entries have been counted */
  bool begun;                  /* the image has been touched */
  bool stopped;                /* the disk has stood still: l1 is complete, ... */
  struct q_flush_round *round; /* ... and this is a copy of what was dirty then */
  bool made;                   /* the header has been touched */
  struct timeval when;         /* that it is of */
  uint64_t size;               /* of the disk by then */
  uint64_t l1_cluster, l1_clusters, table_cluster, table_clusters;
};

/* ---- what was counted ------------------------------------------------------------------------ */

static void
counting_free (struct q_counting *c)
{
  if (!c)
    return;
  for (uint32_t i = 0; c->before && i < c->entries; ++i)
    free (c->before[i]);
  free (c->before);
  free (c->state);
  free (c);
}

static struct q_counting *
counting_new (const struct q_image *img, uint32_t entries)
{
  struct q_counting *c = calloc (1, sizeof *c);

  if (!c)
    return NULL;
  c->entries = entries;
  c->most = img->l2_cache->max_bytes;
  c->state = calloc (entries + 1ul, sizeof *c->state);
  c->before = calloc (entries + 1ul, sizeof (uint8_t *));
  if (!c->state || !c->before) {
    counting_free (c);
    return NULL;
  }
  return c;
}

/* What is left to be counted while the disk is in use, bytes of tables. */
static uint64_t
changed (struct q_counting *c)
{
  return atomic_load (&c->saved) + atomic_load (&c->taken_back);
}

/* Whether BYTES more may be saved; then they are counted. */
static bool
may_save (struct q_counting *c, uint64_t bytes)
{
  if (atomic_fetch_add (&c->saved, bytes) + bytes <= c->most)
    return true;
  atomic_fetch_sub (&c->saved, bytes);
  return false;
}

/* The holder of T has the claim on what it will change, so nobody is counting it; and its stripe,
 * so nobody else is here with it.  It is still what was counted. */
int
q_counting_save (struct q_image *img, const struct q_table *t, unsigned flags)
{
  struct q_counting *c = atomic_load_explicit (&img->counting, memory_order_acquire);
  uint8_t *copy;

  if (!c || t->index >= c->entries || c->state[t->index] != COUNTED || c->before[t->index])
    return 0;
  if (flags & Q_NOWAIT)
    return -EAGAIN; /* refcounts may have to be read */
  copy = malloc (t->bytes);
  if (copy)
    q_entries_copy (t, 0, t->bytes, copy);
  else if (!c->over)
    return -ENOMEM;
  if (copy && may_save (c, t->bytes)) {
    c->before[t->index] = copy;
    return 0;
  }
  if (c->over) {
    c->state[t->index] = FORGOTTEN;
    free (copy);
    return 0;
  }
  /* The disk has each of these references as well: nothing becomes free. */
  Q_PROBE ("what was counted is taken back");
  c->state[t->index] = TAKEN_BACK;
  atomic_fetch_add (&c->taken_back, t->bytes);
  q_tree_lower (img, copy);
  free (copy);
  return 0;
}

static void
clear_copied (struct q_image *img, struct q_table *t)
{
  uint32_t n = 1u << img->l2_bits, first = n, last = 0;

  for (uint32_t i = 0; i < n; ++i) {
    struct q_l2_entry e = q_l2_entry_get (t, i);

    if (!(e.descriptor & Q_COPIED))
      continue;
    e.descriptor &= ~Q_COPIED;
    q_l2_entry_set (t, i, e);
    first = first == n ? i : first;
    last = i;
  }
  if (first < n)
    q_l2_mark_dirty (t, first, last - first + 1);
}

/* Holds the table of L1 entry INDEX so that its flags may be changed; *T is NULL if there is none.
 * A table that others share is changed only if it has flags that it should not have: then it is
 * first given a place of its own. */
static int
hold (struct q_making *m, uint32_t index, struct q_table **t)
{
  bool own;
  int r = q_l2_keep (m->img, index, t, &own);

  if (r < 0 || !*t)
    return r;
  q_entries_copy (*t, 0, (*t)->bytes, m->l2);
  if (own || !q_tree_has_copied (m->img, m->l2))
    return 0;
  q_l2_release (*t);
  return q_l2_hold (m->img, index, 0, t);
}

/* Counts all that the table of L1 entry INDEX refers to.  Claimed, or stopped: only
 * then may the flags go as well. */
static int
count_table (struct q_making *m, uint32_t index, bool stopped)
{
  struct q_table *t;
  q_pin_t pin = q_pin ();
  int r = hold (m, index, &t);

  if (r == 0 && t) {
    r = q_tree_raise (m->img, m->l2);
    if (r == 0) {
      Q_PROBE ("counts raised, flags not cleared");
      if (stopped)
        clear_copied (m->img, t);
      if (m->c->state[index] == TAKEN_BACK)
        atomic_fetch_sub (&m->c->taken_back, t->bytes);
      m->c->state[index] = COUNTED;
    }
    q_l2_release (t);
  }
  q_unpin (pin);
  return r;
}

/* Whoever overwrites in place, without a claim, what a flag says is ours must have done so before
 * the flag goes: the next writer to that cluster copies it. */
static int
clear_flags (struct q_making *m, uint32_t index)
{
  struct q_table *t;
  bool own;
  int r = q_l2_keep (m->img, index, &t, &own);

  if (r < 0 || !t)
    return r;
  q_gate_close (m->img);
  if (own)
    clear_copied (m->img, t);
  q_gate_open (m->img);
  q_l2_release (t);
  return 0;
}

/* Counts what a table refers to now and did not when it was counted.  Claimed, or stopped. */
static int
count_change (struct q_making *m, uint32_t index, bool stopped)
{
  struct q_table *t;
  q_pin_t pin = q_pin ();
  int r = hold (m, index, &t);

  if (r == 0 && t) {
    memcpy (m->other, m->c->before[index], t->bytes);
    q_tree_difference (m->img, m->other, m->l2);
    r = q_tree_raise (m->img, m->l2);
    if (r == 0) {
      Q_PROBE ("changes counted, flags not cleared");
      if (stopped)
        clear_copied (m->img, t);
      free (m->c->before[index]);
      m->c->before[index] = NULL;
      atomic_fetch_sub (&m->c->saved, t->bytes);
      /* What it referred to then has lost its last reference but ours, or will with limbo. */
      q_tree_lower (m->img, m->other);
    }
    q_l2_release (t);
  }
  q_unpin (pin);
  return r;
}

/* ---- while the disk is in use ---------------------------------------------------------------- */

/* Counts the table of L1 entry INDEX, or what has changed in it since it was counted. */
static int
count_in_use (struct q_making *m, uint32_t index)
{
  struct q_image *img = m->img;
  struct q_plan_claim claim;
  bool whole, change;
  int r = q_tree_claim (img, index, &claim);

  if (r < 0)
    return r;
  whole = m->c->state[index] != COUNTED;
  change = m->c->before[index];
  if (whole)
    r = count_table (m, index, false);
  else if (change)
    r = count_change (m, index, false);
  q_tree_release (img, &claim);
  if (r == 0 && (whole || change))
    r = clear_flags (m, index);
  return r < 0 ? r : q_flush_throttle (img);
}

/* Those of the first N L1 entries that lead to a table. */
static int
count_first (struct q_making *m, uint32_t n, bool again)
{
  struct q_image *img = m->img;
  uint32_t since = 0; /* tables counted since what has changed was */
  int r = 0;

  for (uint32_t i = 0; r == 0 && i < n; ++i) {
    q_pin_t pin = q_pin ();
    bool empty = (q_entry_get (atomic_load (&img->l1)->table, i) & Q_OFFSET_MASK) == 0;

    q_unpin (pin);
    if (empty)
      continue;
    r = count_in_use (m, i);
    if (r == 0 && !again && ++since >= MIN_STEP && changed (m->c) >= m->c->most / 2) {
      r = count_first (m, i + 1, true);
      since = 0;
    }
  }
  return r;
}

static int
count_all (struct q_making *m)
{
  int r = count_first (m, m->c->entries, false);

  /* The next ones have little left to do, and so has the one while the disk stands still: what has
   * changed while the counts were made durable, most of which took long, is counted as well. */
  if (r == 0)
    r = q_flush (m->img);
  for (unsigned n = 0; r == 0 && n < MAX_PASSES && changed (m->c) > (n ? ENOUGH : 0); ++n)
    r = count_first (m, m->c->entries, true);
  if (r == 0)
    r = q_flush (m->img);
  return r < 0 ? r : q_flush (m->img);
}

/* ---- while it stands still ------------------------------------------------------------------- */

/* Everything that is referred to has been counted.  Now the L2 tables. */
static int
count_tables (struct q_making *m)
{
  struct q_l1 *l1 = atomic_load (&m->img->l1);
  int r = 0;

  for (uint32_t i = 0; r == 0 && i < m->c->entries; ++i) {
    uint64_t entry = q_entry_get (l1->table, i);

    if (entry & Q_OFFSET_MASK) {
      r = q_tree_raise_cluster (m->img, entry & Q_OFFSET_MASK);
      if (r < 0)
        break;
      q_l1_set_copied (m->img, i, false);
    }
    m->l1[i] = entry;
    m->tables = i + 1;
  }
  return r;
}

/* Takes back count_tables, with the gate closed: a shared table must not be dirty.  Those that have
 * been given another place since have a cluster of their own. */
static void
uncount_tables (struct q_making *m)
{
  struct q_l1 *l1 = atomic_load (&m->img->l1);

  for (uint32_t i = 0; i < m->tables; ++i) {
    uint64_t host = m->l1[i] & Q_OFFSET_MASK;

    if (host == 0)
      continue;
    q_alloc_release (m->img, host >> m->img->cluster_bits, 1);
    if ((q_entry_get (l1->table, i) & Q_OFFSET_MASK) == host)
      q_l1_set_copied (m->img, i, m->l1[i] & Q_COPIED);
  }
  m->tables = 0;
}

static int
stand_still (struct q_making *m)
{
  int r = 0;

  for (uint32_t i = 0; r == 0 && i < m->c->entries; ++i)
    if (m->c->state[i] != COUNTED)
      r = count_table (m, i, true);
    else if (m->c->before[i])
      r = count_change (m, i, true);
  if (r == 0)
    r = count_tables (m);
  /* Counts, flags, and every table as it is now. */
  if (r == 0)
    r = q_flush_copy (m->img, &m->round);
  if (r < 0) {
    uncount_tables (m);
    q_flush_end (m->img, m->round, r);
    m->round = NULL;
  }
  return r;
}

/* What was copied is made durable, with the gate closed if STOPPED. */
static int
settle (struct q_making *m, bool stopped)
{
  struct q_image *img = m->img;
  int r = q_flush_write (img, m->round);

  if (!stopped)
    q_gate_close (img);
  if (r == 0)
    atomic_store (&img->counting, NULL); /* nobody is inside any more who could look at it */
  else {
    uncount_tables (m);
    q_flush_end (img, m->round, r);
    m->stopped = m->c->over = false;
  }
  if (!stopped)
    q_gate_open (img);
  if (r == 0)
    r = q_flush_end (img, m->round, r);
  m->round = NULL;
  return r;
}

/* ---- undoing --------------------------------------------------------------------------------- */

/* Takes back count_table and count_change. */
static void
uncount (struct q_making *m, uint32_t index)
{
  struct q_table *t;
  q_pin_t pin = q_pin ();
  bool own;
  int r = q_l2_keep (m->img, index, &t, &own);

  if (r == 0 && t) {
    if (m->c->before[index])
      memcpy (m->other, m->c->before[index], t->bytes);
    else
      q_entries_copy (t, 0, t->bytes, m->other);
    q_l2_release (t);
    q_tree_lower (m->img, m->other);
    q_tree_set_copied (m->img, index);
  }
  m->c->state[index] = UNCOUNTED;
  q_unpin (pin);
}

static void
undo (struct q_making *m)
{
  struct q_image *img = m->img;

  /* What was counted is what the copy of the L1 table refers to. */
  if (m->stopped)
    q_tree_lower_all (img, m->l1, m->c->entries);
  for (uint32_t i = 0; i < m->c->entries; ++i) {
    struct q_plan_claim claim;

    if ((m->stopped && (m->l1[i] & Q_OFFSET_MASK) == 0) || q_tree_claim (img, i, &claim) < 0)
      continue;
    if (!m->stopped && m->c->state[i] == COUNTED)
      uncount (m, i);
    else if (m->stopped || m->c->state[i] == TAKEN_BACK)
      q_tree_set_copied (img, i);
    else if (m->c->state[i] == FORGOTTEN)
      q_tree_leak (img);
    q_tree_release (img, &claim);
  }
  /* Nobody is inside any more who could look at it. */
  q_gate_close (img);
  atomic_store (&img->counting, NULL);
  q_gate_open (img);
}

/* ---- the new entry --------------------------------------------------------------------------- */

/* One more than the highest number that an id begins with, as QEMU has it. */
static void
choose_id (const struct q_image *img, char *id, size_t size)
{
  const struct q_snapshots *list = atomic_load (&img->snapshots);
  unsigned long max = 0;

  for (uint32_t i = 0; list && i < list->n; ++i) {
    unsigned long n = strtoul (list->s[i].id, NULL, 10);

    max = n > max && n < UINT64_MAX ? n : max;
  }
  snprintf (id, size, "%lu", max + 1);
}

/* The list with the new entry, whose L1 table is at m->l1_cluster. */
static int
new_list (struct q_making *m, struct q_snapshots **list, struct q_error *err)
{
  struct qcow2_snapshot_extra x = { .vm_state_size = put64 (0),
                                    .disk_size = put64 (m->size),
                                    .icount = put64 (UINT64_MAX) };
  struct q_snapshot s = {
    .l1_table_offset = m->l1_cluster << m->img->cluster_bits,
    .l1_size = m->c->entries ? m->c->entries : 1,
    .info = { .disk_size = m->size,
              .date_sec = (uint32_t)m->when.tv_sec,
              .date_nsec = (uint32_t)m->when.tv_usec * 1000u,
              .icount = -1 },
    .extra_data_size = sizeof x,
    .extra_data = (uint8_t *)&x,
    .id = m->id,
    .name = m->name,
    .id_size = (uint16_t)strlen (m->id),
    .name_size = (uint16_t)strlen (m->name),
  };

  return q_snapshots_edit (m->img, NULL, &s, list, err);
}

/* Writes the copy of the L1 table and makes the snapshot. */
static int
write_snapshot (struct q_making *m, struct q_snapshots *list)
{
  struct q_image *img = m->img;
  uint64_t bytes = list->s[list->n - 1].l1_size * 8ull;
  be64 *l1 = calloc (1, bytes);
  int r = l1 ? 0 : -ENOMEM;

  for (uint32_t i = 0; r == 0 && i < m->c->entries; ++i)
    l1[i] = put64 (m->l1[i] & Q_OFFSET_MASK);
  if (r == 0)
    r = q_file_pwrite (img->file, l1, bytes, m->l1_cluster << img->cluster_bits);
  free (l1);
  if (r == 0)
    r = q_snapshots_write (img, list, m->table_cluster << img->cluster_bits, &m->made);
  return r;
}

/* ---- the steps ------------------------------------------------------------------------------- */

static int
explain (const struct q_making *m, int r, struct q_error *err)
{
  const char *file = m->img->filename;

  return r == -ERANGE ? q_fail (err, r,
                                "%s: some cluster is shared by as many snapshots as refcounts of "
                                "%u bits can count; delete one, or convert the image to one with "
                                "wider refcounts",
                                file, 1u << m->img->refcount_order)
         : r < 0      ? q_fail (err, r, "%s: cannot make the snapshot '%s': %s", file, m->name,
                                strerror (-r))
                      : 0;
}

static int
check_possible (struct q_image *img, const char *name, struct q_error *err)
{
  int r = q_writable (img);

  if (img->format != Q_FORMAT_QCOW2)
    return q_fail (err, -ENOTSUP, "%s: a raw disk has no internal snapshots", img->filename);
  if (r < 0)
    return q_fail (err, r, "%s: the image is read-only", img->filename);
  if (img->incompatible & Q_INCOMPAT_DATA_FILE)
    return q_fail (err, -ENOTSUP,
                   "%s: an image with an external data file has no internal snapshots",
                   img->filename);
  if (strlen (name) > MAX_NAME)
    return q_fail (err, -EINVAL, "%s: a snapshot name of %zu bytes is too long, %u are possible",
                   img->filename, strlen (name), MAX_NAME);
  if (q_snapshots_count (img) >= Q_MAX_SNAPSHOTS)
    return q_fail (err, -EFBIG, "%s: has %u snapshots, and there can be no more", img->filename,
                   Q_MAX_SNAPSHOTS);
  return 0;
}

static int
prepare (struct q_making *m, struct q_error *err)
{
  struct q_image *img = m->img;
  uint32_t entries = img->l1_size;

  m->c = counting_new (img, entries);
  m->l2 = malloc (q_cluster_bytes (img));
  m->other = malloc (q_cluster_bytes (img));
  m->l1 = calloc (entries + 1ul, sizeof *m->l1);
  if (!m->c || !m->l2 || !m->other || !m->l1)
    return q_fail (err, -ENOMEM, "%s: out of memory for an L1 table of %u entries", img->filename,
                   entries);
  if (q_refcount_max (img) == 1)
    for (uint32_t i = 0; i < entries; ++i)
      if (q_entry_get (atomic_load (&img->l1)->table, i) & Q_OFFSET_MASK)
        return q_fail (err, -ERANGE,
                       "%s: refcounts of 1 bit cannot count what a snapshot shares with the disk; "
                       "convert the image to one with wider refcounts",
                       img->filename);
  return 0;
}

/* Room for the L1 table and the snapshot table, which will be as large as it would be now. */
static int
allocate (struct q_making *m, struct q_error *err)
{
  struct q_image *img = m->img;
  uint64_t cluster = q_cluster_bytes (img), clusters;
  struct q_snapshots *list;
  int r = new_list (m, &list, err);

  if (r < 0)
    return r;
  clusters = q_div_up (list->s[list->n - 1].l1_size * 8ull, cluster);
  r = q_alloc_table (img, clusters, &m->l1_cluster);
  m->l1_clusters = r == 0 ? clusters : 0;
  clusters = q_div_up (q_snapshots_bytes (img, list), cluster);
  if (r == 0) {
    r = q_alloc_table (img, clusters, &m->table_cluster);
    m->table_clusters = r == 0 ? clusters : 0;
  }
  q_snapshots_dispose (list);
  return r;
}

int
q_snapshot_begin (struct q_image *img, const char *name, char id[Q_SNAPSHOT_ID_SIZE],
                  struct q_making **making, struct q_error *err)
{
  struct q_making *m;
  int r = check_possible (img, name, err);

  *making = NULL;
  if (r < 0)
    return r;
  m = calloc (1, sizeof *m);
  if (!m)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  *making = m;
  m->img = img;
  m->size = q_size (img);
  snprintf (m->name, sizeof m->name, "%s", name);
  choose_id (img, m->id, sizeof m->id);
  memcpy (id, m->id, sizeof m->id);
  r = prepare (m, err);
  if (r < 0)
    return r;
  m->begun = true;
  r = q_header_set_dirty (img, true);
  if (r == 0)
    r = allocate (m, err);
  if (r == 0) {
    atomic_store (&img->counting, m->c);
    r = count_all (m);
  }
  return explain (m, r, err);
}

int
q_snapshot_stop (struct q_making *m, struct q_error *err)
{
  int r;

  Q_PROBE ("standing still for a snapshot");
  r = stand_still (m);
  m->stopped = m->c->over = r == 0;
  gettimeofday (&m->when, NULL);
  return explain (m, r, err);
}

int
q_snapshot_settle (struct q_making *m, bool stopped, struct q_error *err)
{
  Q_PROBE ("the snapshot's moment is over, it is not durable");
  return explain (m, m->round ? settle (m, stopped) : 0, err);
}

int
q_snapshot_write (struct q_making *m, struct q_error *err)
{
  struct q_snapshots *list;
  int r = new_list (m, &list, err);

  if (r == 0) {
    r = write_snapshot (m, list);
    if (!m->made)
      q_snapshots_dispose (list);
  }
  return explain (m, r, err);
}

void
q_snapshot_end (struct q_making *m, bool keep)
{
  struct q_image *img;

  if (!m)
    return;
  img = m->img;
  assert (!m->round);
  if (m->made && !keep && q_writable (img) == 0) {
    struct q_error err = { "" };

    if (q_snapshot_take_back (img, m->id, &err) < 0)
      q_log (Q_LOG_WARNING, "the snapshot %s of %s stays: %s", m->id, img->filename, err.text);
  } else if (m->begun && !m->made) {
    undo (m);
    if (m->l1_clusters > 0)
      q_alloc_drop (img, m->l1_cluster, m->l1_clusters);
    if (m->table_clusters > 0)
      q_alloc_drop (img, m->table_cluster, m->table_clusters);
  }
  if (m->begun)
    q_tree_settle (img);
  counting_free (m->c);
  free (m->l2);
  free (m->other);
  free (m->l1);
  free (m);
}
