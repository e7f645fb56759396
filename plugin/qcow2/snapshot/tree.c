/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Trees of references: an L1 table, the L2 tables below it, and the clusters below those, counted
 * as a whole (specification: "Snapshots", "Host cluster management").
 *
 * A cluster is counted once for every way that leads to it.  An L2 table that two L1 tables point
 * to has a count of 2, and so has, at least, everything that it refers to.  So the COPIED flag,
 * which says that a cluster is ours alone, is never set below a table that is shared.
 *
 * What is taken off here is taken off at once, without limbo: these are references that the disk
 * has no more, and that no pin could ever see or sees still.  The caller knows.
 */

#include <errno.h>
#include <stdlib.h>

#include "cluster.h"
#include "tree.h"

#define ull(v) ((unsigned long long)(v))

/* Entries whose counts change under one hold of the allocator's lock. */
#define BATCH 1024u

/* ---- an L2 table as it is on disk ------------------------------------------------------------ */

static unsigned
width (const struct q_image *img)
{
  return (unsigned)(q_cluster_bytes (img) >> img->l2_bits);
}

static uint64_t
get_descriptor (const struct q_image *img, const uint8_t *l2, uint32_t i)
{
  be64 v;

  memcpy (&v, l2 + i * width (img), sizeof v);
  return get64 (v);
}

static void
set_descriptor (const struct q_image *img, uint8_t *l2, uint32_t i, uint64_t descriptor)
{
  be64 v = put64 (descriptor);

  memcpy (l2 + i * width (img), &v, sizeof v);
}

static void
references (const struct q_image *img, const uint8_t *l2, uint32_t i, uint64_t *cluster,
            uint64_t *count)
{
  struct q_l2_entry e = { .descriptor = get_descriptor (img, l2, i) };

  q_entry_references (img, e, cluster, count);
}

int
q_tree_read (struct q_image *img, uint64_t host, uint8_t *l2)
{
  int r = q_file_contains (img->file, host, q_cluster_bytes (img));

  if ((host & (q_cluster_bytes (img) - 1)) != 0 || r == 0)
    return q_corrupt (img, "the L2 table at byte %llu is not in the file", ull (host));
  return r < 0 ? r : q_file_pread (img->file, l2, q_cluster_bytes (img), host);
}

static bool
is_copied (uint64_t descriptor)
{
  return (descriptor & Q_COPIED) && (descriptor & (Q_OFFSET_MASK | Q_L2_COMPRESSED));
}

bool
q_tree_has_copied (const struct q_image *img, const uint8_t *l2)
{
  for (uint32_t i = 0; i < 1u << img->l2_bits; ++i)
    if (is_copied (get_descriptor (img, l2, i)))
      return true;
  return false;
}

void
q_tree_clear_copied (const struct q_image *img, uint8_t *l2)
{
  for (uint32_t i = 0; i < 1u << img->l2_bits; ++i)
    set_descriptor (img, l2, i, get_descriptor (img, l2, i) & ~Q_COPIED);
}

void
q_tree_difference (const struct q_image *img, uint8_t *old, uint8_t *new)
{
  for (uint32_t i = 0; i < 1u << img->l2_bits; ++i) {
    uint64_t a, a_count, b, b_count;

    references (img, old, i, &a, &a_count);
    references (img, new, i, &b, &b_count);
    if (a_count == b_count && (a_count == 0 || a == b)) {
      set_descriptor (img, old, i, 0);
      set_descriptor (img, new, i, 0);
    }
  }
}

void
q_tree_leak (struct q_image *img)
{
  q_alloc_lock (img);
  img->leaked = true;
  q_alloc_unlock (img);
}

void
q_tree_settle (struct q_image *img)
{
  bool leaked;
  int r = q_flush (img);

  q_alloc_lock (img);
  leaked = img->leaked;
  q_alloc_unlock (img);
  if (r == 0 && !leaked)
    r = q_header_set_dirty (img, false);
  if (r < 0)
    q_log (Q_LOG_WARNING, "%s: stays marked as one whose refcounts have to be checked: %s",
           img->filename, strerror (-r));
}

/* ---- counting -------------------------------------------------------------------------------- */

/* alloc_lock held. */
static int
raise_one (struct q_image *img, uint64_t cluster)
{
  uint64_t count;
  int r = q_refcount_get (img, cluster, 0, &count);

  if (r < 0)
    return r;
  if (count == 0)
    return q_corrupt (img, "host cluster %llu is in use with refcount 0", ull (cluster));
  return count == q_refcount_max (img) ? -ERANGE : q_refcount_set (img, cluster, 0, count + 1);
}

int
q_tree_raise_cluster (struct q_image *img, uint64_t host)
{
  int r;

  q_alloc_lock (img);
  r = raise_one (img, host >> img->cluster_bits);
  q_alloc_unlock (img);
  return r;
}

/* Raises all that entry I refers to.  *DONE counts clusters. */
static int
raise_entry (struct q_image *img, const uint8_t *l2, uint32_t i, uint64_t *done)
{
  uint64_t cluster, count;
  int r = 0;

  references (img, l2, i, &cluster, &count);
  for (*done = 0; r == 0 && *done < count; ++*done) {
    r = raise_one (img, cluster + *done);
    if (r < 0)
      break;
  }
  return r;
}

int
q_tree_raise (struct q_image *img, const uint8_t *l2)
{
  uint32_t n = 1u << img->l2_bits, i = 0;
  uint64_t done = 0, cluster, count;
  int r = 0;

  while (r == 0 && i < n) {
    q_alloc_lock (img);
    do
      r = raise_entry (img, l2, i, &done);
    while (r == 0 && ++i < n && i % BATCH != 0);
    q_alloc_unlock (img);
  }
  if (r == 0)
    return 0;
  /* Entry I failed after DONE clusters. */
  references (img, l2, i, &cluster, &count);
  if (done > 0)
    q_alloc_release (img, cluster, done);
  while (i-- > 0) {
    references (img, l2, i, &cluster, &count);
    if (count > 0 && q_alloc_release (img, cluster, count) < 0)
      break; /* leaked */
  }
  return r;
}

int
q_tree_lower (struct q_image *img, const uint8_t *l2)
{
  uint64_t cluster, count, first = 0, run = 0;
  int r = 0, r2;

  for (uint32_t i = 0; i < 1u << img->l2_bits; ++i) {
    references (img, l2, i, &cluster, &count);
    if (count == 0)
      continue;
    if (run > 0 && cluster == first + run) {
      run += count;
      continue;
    }
    r2 = run > 0 ? q_alloc_release (img, first, run) : 0;
    r = r < 0 ? r : r2;
    first = cluster;
    run = count;
  }
  r2 = run > 0 ? q_alloc_release (img, first, run) : 0;
  return r < 0 ? r : r2;
}

int
q_tree_lower_all (struct q_image *img, const uint64_t *entry, uint32_t entries)
{
  uint8_t *l2 = malloc (q_cluster_bytes (img));
  int r = l2 ? 0 : -ENOMEM;

  for (uint32_t i = 0; l2 && i < entries; ++i) {
    uint64_t host = entry[i] & Q_OFFSET_MASK;
    int r2;

    if (host == 0)
      continue;
    r2 = q_tree_read (img, host, l2);
    if (r2 < 0)
      q_tree_leak (img);
    if (r2 == 0)
      r2 = q_tree_lower (img, l2);
    if (r2 == 0)
      r2 = q_alloc_release (img, host >> img->cluster_bits, 1);
    r = r < 0 ? r : r2; /* what could not be read is leaked; go on with the rest */
    if (q_writable (img) < 0)
      break;
    if (r == 0)
      r = q_flush_throttle (img);
  }
  free (l2);
  return r;
}

/* ---- flags ----------------------------------------------------------------------------------- */

static int
is_single (struct q_image *img, uint64_t host, bool *single)
{
  uint64_t count;
  int r = q_refcount_get (img, host >> img->cluster_bits, 0, &count);

  *single = r == 0 && count == 1;
  return r;
}

/* The entries of a table that is ours alone. */
static int
set_copied_below (struct q_image *img, struct q_table *t)
{
  uint32_t n = 1u << img->l2_bits;
  int r = 0;

  for (uint32_t i = 0; r == 0 && i < n;) {
    uint32_t first = n, last = 0;

    q_alloc_lock (img);
    do {
      struct q_l2_entry e = q_l2_entry_get (t, i);
      uint64_t host = e.descriptor & Q_OFFSET_MASK;
      bool single;

      if ((e.descriptor & (Q_COPIED | Q_L2_COMPRESSED)) || host == 0)
        continue;
      r = is_single (img, host, &single);
      if (r < 0 || !single)
        continue;
      e.descriptor |= Q_COPIED;
      q_l2_entry_set (t, i, e);
      first = first == n ? i : first;
      last = i;
    } while (r == 0 && ++i < n && i % BATCH != 0);
    q_alloc_unlock (img);
    if (first < n)
      q_l2_mark_dirty (t, first, last - first + 1);
  }
  return r;
}

int
q_tree_set_copied (struct q_image *img, uint64_t index)
{
  struct q_table *t;
  bool own, single = false;
  q_pin_t pin = q_pin ();
  int r = q_l2_keep (img, index, &t, &own);

  if (r < 0 || !t)
    goto out;
  if (!own) {
    q_alloc_lock (img);
    r = is_single (img, t->host, &single);
    q_alloc_unlock (img);
    if (single)
      q_l1_set_copied (img, index, true);
  }
  if (r == 0 && (own || single))
    r = set_copied_below (img, t);
  q_l2_release (t);
out:
  q_unpin (pin);
  if (r < 0)
    q_tree_leak (img); /* a flag that is missing is put right in the same way */
  return r;
}

int
q_tree_claim (struct q_image *img, uint64_t index, struct q_plan_claim *claim)
{
  uint64_t first = index << img->l2_bits;
  int r = q_gate_enter (img, 0);

  if (r < 0)
    return r;
  r = q_claim_take (img, claim, first, first + (1ull << img->l2_bits) - 1, 0);
  if (r < 0)
    q_gate_leave (img);
  return r;
}

void
q_tree_release (struct q_image *img, struct q_plan_claim *claim)
{
  q_claim_release (img, claim);
  q_gate_leave (img);
}
