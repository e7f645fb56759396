/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Write zeroes and discard: changes of mapping that move no data.
 *
 * Subclusters are counted from the start of the disk; without extended L2 entries a cluster is one.
 * What is not a whole subcluster is written as zeros (write zeroes) or left alone (discard), except
 * that the last cluster of the disk counts as whole when the range reaches the end.  What the range
 * lets go of goes to limbo, as in write.c, and under the same invariants 3 and 4.
 *
 * A host cluster is let go of with the last data in it.  While some is left, what was discarded
 * beside it keeps its place: it may be written again at any time.
 *
 * Never does a discarded or zeroed cluster show what a backing file has there: with a backing
 * file below, version 3 gets a zero flag; version 2 has none, so there a discard does nothing and
 * zeros are written as data, unless what is below reads as zeros.  That holds as well when the
 * backing file that is recorded is not open: whoever opens the image next may see it.  Only
 * emptying (after a commit, when the backing file has it all) lets go of everything.
 */

#include <errno.h>
#include <stdlib.h>

#include "cluster.h"

enum mode {
  DISCARD,
  DISCARD_KEEP, /* discard-no-unref: the cluster stays, its space is given back */
  ZERO_UNMAP,
  ZERO_UNMAP_KEEP, /* the same for zeroes */
  ZERO_KEEP,
  ZERO_PROVISION,
  EMPTY
};

static bool
discards (enum mode mode)
{
  return mode == DISCARD || mode == DISCARD_KEEP;
}

static bool
punches (enum mode mode)
{
  return mode == DISCARD_KEEP || mode == ZERO_UNMAP_KEEP;
}

/* Clusters that are the disk's alone stay allocated. */
static bool
keeps (enum mode mode)
{
  return mode == ZERO_KEEP || punches (mode);
}

/* The descriptor that new_mapping answers for a cluster that must first be allocated. */
#define WANTS_CLUSTER UINT64_MAX

#define MAX_CLUSTERS (1u << 14) /* at a time: bounds how long the claim is held */

/* ---- what becomes of one cluster ------------------------------------------------------------ */

/* Subclusters of a cluster, as a power of two. */
static unsigned
sub_shift (const struct q_image *img)
{
  return img->cluster_bits - img->subcluster_bits;
}

/* Which subclusters of guest cluster GC are among [FIRST, END). */
static uint32_t
part_of (const struct q_image *img, uint64_t gc, uint64_t first, uint64_t end)
{
  uint64_t start = gc << sub_shift (img);
  uint64_t from = first > start ? first - start : 0;

  return q_subcluster_mask ((unsigned)from, (unsigned)q_min (end - start, q_subclusters (img)) - 1);
}

/* A backing file that is recorded, or will be, but is not open: what is unallocated does not read
 * as zeros once it is. */
static bool
below_unseen (const struct q_image *img)
{
  return img->expects_backing || (img->backing_file && !img->backing);
}

static bool
has_below (const struct q_image *img)
{
  return img->backing || below_unseen (img);
}

/* Whether the range reads as zeros, with whatever backing file: 1, 0, or an error. */
static int
reads_zero (struct q_image *img, uint64_t offset, uint64_t len)
{
  if (!below_unseen (img))
    return q_reads_zero (img, offset, len, 0);
  while (len > 0) {
    struct q_extent e;
    int n = q_map (img, offset, len, &e, 1, Q_MAP_TOP | Q_MAP_MERGE); /* else depths mix */

    if (n < 0)
      return n;
    if (e.kind != Q_ZERO || e.depth > 0)
      return 0;
    offset += e.len;
    len -= e.len;
  }
  return 1;
}

/* Whether anything but zeros would be seen of PART of guest cluster GC if it were unallocated: 1,
 * 0, or an error. */
static int
below_shows (struct q_image *img, uint64_t gc, uint32_t part)
{
  uint64_t from =
      (gc << img->cluster_bits) + ((uint64_t)__builtin_ctz (part) << img->subcluster_bits);
  uint64_t to =
      (gc << img->cluster_bits) + ((uint64_t)(32 - __builtin_clz (part)) << img->subcluster_bits);
  int r;

  if (below_unseen (img))
    return 1;
  if (!img->backing || from >= q_size (img->backing))
    return 0;
  r = q_reads_zero (img->backing, from, q_min (to, q_size (img->backing)) - from, 0);
  return r < 0 ? r : !r;
}

/* What PART of OLD becomes without data being written.  1 if it takes data, *C then being as it
 * was.
 */
static int
new_mapping (struct q_image *img, uint64_t gc, uint32_t part, enum mode mode, struct q_cluster *c)
{
  const struct q_cluster old = *c;
  bool whole = part == q_all_subclusters (img), shows = false;
  uint32_t lose = old.compressed ? part : part & old.data;
  uint32_t blank = old.compressed || discards (mode) ? 0 : part & ~(old.data | old.zero);

  if (old.compressed && !whole)
    return discards (mode) ? 0 : 1;
  if (blank || img->version < 3) {
    int r = below_shows (img, gc, part);

    if (r < 0)
      return r;
    shows = r > 0;
  }
  if (!shows)
    blank = 0;
  if (!lose && !blank && (keeps (mode) || old.host == 0))
    return 0;
  if (img->version < 3) {
    if (!lose && !blank)
      return 0;
    if (shows || keeps (mode))
      return discards (mode) ? 0 : 1;
    *c = (struct q_cluster){ 0 };
    return 0;
  }

  if (old.compressed)
    *c = (struct q_cluster){ 0 };
  c->data &= ~lose;
  c->zero |= blank;
  if (has_below (img) || (keeps (mode) && c->own))
    c->zero |= lose;
  if (c->data || (keeps (mode) && c->own) || (!lose && !whole))
    return 0;
  c->host = 0;
  c->own = false;
  if (!has_below (img))
    c->zero &= ~part;
  return 0;
}

/* True if OLD cannot be turned into something that reads as zeros without writing data; else *NEW
 * is what it becomes, maybe OLD itself. */
static int
new_entry (struct q_image *img, uint64_t gc, uint32_t part, struct q_l2_entry old, enum mode mode,
           struct q_l2_entry *new)
{
  struct q_cluster c;
  int r = q_decode_entry (img, gc, old, &c);

  if (r < 0)
    return r;
  *new = old;
  if (mode == EMPTY) {
    *new = (struct q_l2_entry){ 0 };
    return 0;
  }
  if (mode != ZERO_PROVISION) {
    r = new_mapping (img, gc, part, mode, &c);
    if (r == 0 && !c.compressed)
      *new = q_encode_entry (img, &c);
    return r;
  }
  if (img->version < 3)
    return 1;
  if (q_has_data_file (img))
    c.host = gc << img->cluster_bits; /* change_clusters has reserved it */
  if (!c.own || c.compressed) {
    *new = (struct q_l2_entry){ .descriptor = WANTS_CLUSTER };
    return 0;
  }
  c.data = 0;
  c.zero = q_all_subclusters (img);
  *new = q_encode_entry (img, &c);
  return 0;
}

/* ---- clusters ------------------------------------------------------------------------------- */

/* The end of the run of host clusters that begins with entry I. */
static uint64_t
run_of_hosts (const struct q_image *img, const struct q_l2_entry *new, uint64_t i, uint64_t count)
{
  uint64_t end = i + 1;

  while (end < count && new[end].descriptor != WANTS_CLUSTER &&new[end].descriptor ==
                            new[end - 1].descriptor + q_cluster_bytes (img))
    ++end;
  return end;
}

/* Gives those of the COUNT entries in NEW that want a cluster one, with its space on disk.  *FIT
 * says how many entries, from the first, are satisfied.  alloc_lock held. */
static int
provision (struct q_image *img, struct q_l2_entry *new, uint64_t count, uint64_t *fit)
{
  const struct q_cluster zeros = { .own = true, .zero = q_all_subclusters (img) };
  uint64_t i = 0, host, got, end;
  int r = 0;

  while (r == 0 && i < count) {
    uint64_t n = 0;
    bool fresh;

    while (i + n < count && new[i + n].descriptor == WANTS_CLUSTER)
      ++n;
    if (n == 0) {
      end = run_of_hosts (img, new, i, count);
      /* Most of what was allocated for a few subclusters may be a hole still. */
      if (sub_shift (img) > 0)
        r = q_alloc_reserve_space (img, (new[i].descriptor &Q_OFFSET_MASK) >> img->cluster_bits,
                                   end - i);
      if (r == 0)
        i = end;
      continue;
    }
    r = q_alloc_run (img, n, 0, &host, &got, &fresh);
    if (r < 0)
      break;
    r = q_alloc_reserve_space (img, host >> img->cluster_bits, got);
    if (r < 0) {
      if (q_limbo_reserve (&img->dropped, 1) == 0)
        q_limbo_add (&img->dropped, host >> img->cluster_bits, got);
      break;
    }
    for (; got > 0; --got, ++i, host += q_cluster_bytes (img)) {
      struct q_cluster c = zeros;

      c.host = host;
      new[i] = q_encode_entry (img, &c);
    }
  }
  *fit = i;
  return i > 0 ? 0 : r;
}

/* The host clusters that OLD refers to and NEW does not. */
static void
references_lost (const struct q_image *img, struct q_l2_entry old, struct q_l2_entry new,
                 uint64_t *cluster, uint64_t *count)
{
  q_entry_references (img, old, cluster, count);
  if (!(old.descriptor & Q_L2_COMPRESSED) && new.descriptor != WANTS_CLUSTER &&
      ((old.descriptor ^ new.descriptor) & Q_OFFSET_MASK) == 0)
    *count = 0;
}

/* What of the cluster of entry OLD was data and is zeros now, where it is. */
static uint32_t
emptied (struct q_image *img, uint64_t gc, struct q_l2_entry old, struct q_l2_entry new,
         uint64_t *host)
{
  struct q_cluster was, is;

  if (q_decode_entry (img, gc, old, &was) < 0 || q_decode_entry (img, gc, new, &is) < 0 ||
      !was.own || !is.own || was.compressed || was.host != is.host)
    return 0;
  *host = is.host;
  return was.data & is.zero;
}

/* A stretch of the file to be punched, as far as it is known. */
struct stretch {
  uint64_t host, len;
};

/* Punches what there is unless HOST goes on where it ends; LEN 0: that was all. */
static void
punch_next (struct q_image *img, struct stretch *s, uint64_t host, uint64_t len)
{
  if (s->len > 0 && (len == 0 || s->host + s->len != host)) {
    q_file_zero (img->file, s->host, s->len, true); /* a courtesy: it may fail */
    s->len = 0;
  }
  if (s->len == 0)
    s->host = host;
  s->len += len;
}

/* Gives the space of what is kept back: nobody writes it while the claim is held, and who still
 * reads it gets old bytes or zeros, as does a crash before the new entries are durable.  So not of
 * an encrypted disk, whose zeros are not the file's. */
static void
punch_kept (struct q_image *img, uint64_t gc, const struct q_l2_entry *old,
            const struct q_l2_entry *new, uint64_t count)
{
  struct stretch s = { 0 };

  if (img->crypt_method != Q_CRYPT_NONE)
    return;
  Q_PROBE ("before what is kept is punched");
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t host = 0;
    uint32_t part = emptied (img, gc + i, old[i], new[i], &host);

    for (unsigned k = 0; k < q_subclusters (img) && part >> k; ++k)
      if (part >> k & 1)
        punch_next (img, &s, host + ((uint64_t)k << img->subcluster_bits),
                    1ull << img->subcluster_bits);
  }
  punch_next (img, &s, 0, 0);
}

/* Changes subclusters [FIRST, END), all in one L2 table that is held.  *DONE counts those dealt
 * with; returns 1 if the cluster after them needs data. */
static int
change_held (struct q_image *img, struct q_table *t, uint64_t first, uint64_t end, enum mode mode,
             uint64_t *done)
{
  uint64_t gc = first >> sub_shift (img), count = ((end - 1) >> sub_shift (img)) - gc + 1;
  uint32_t index = (uint32_t)(gc & ((1u << img->l2_bits) - 1)), i;
  struct q_l2_entry *new = malloc (2 * count * sizeof *new), *was = new + count;
  uint64_t cluster, refs, frees = 0;
  uint32_t changed_from = UINT32_MAX, changed_to = 0;
  int r = 0;

  *done = 0;
  if (!new)
    return -ENOMEM;
  for (i = 0; r == 0 && i < count; ++i) {
    struct q_l2_entry old = q_l2_entry_get (t, index + i);

    r = new_entry (img, gc + i, part_of (img, gc + i, first, end), old, mode, &new[i]);
    if (r != 0)
      break;
    references_lost (img, old, new[i], &cluster, &refs);
    frees += refs > 0;
  }
  count = i;
  if (r < 0 && count == 0)
    goto out;
  if (r < 0)
    r = 0; /* deal with those before it; the next call meets the error again */

  Q_PROBE ("before zeros are published");
  q_alloc_lock (img);
  if (q_limbo_reserve (&img->limbo, frees) < 0) {
    q_alloc_unlock (img);
    r = -ENOMEM;
    goto out;
  }
  if (mode == ZERO_PROVISION && !q_has_data_file (img)) {
    int r2 = provision (img, new, count, &count);

    r = r2 < 0 ? r2 : r;
  }
  for (i = 0; i < count; ++i) {
    struct q_l2_entry old = q_l2_entry_get (t, index + i);

    was[i] = old;
    if (q_l2_entry_equal (old, new[i]))
      continue;
    q_l2_entry_set (t, index + i, new[i]);
    changed_from = changed_from == UINT32_MAX ? i : changed_from;
    changed_to = i;
    references_lost (img, old, new[i], &cluster, &refs);
    if (refs > 0) {
      q_limbo_add (&img->limbo, cluster, refs);
      --frees;
    }
  }
  q_limbo_cancel (&img->limbo, frees); /* of those that found no cluster */
  Q_PROBE ("zeros published, table not marked");
  if (changed_from != UINT32_MAX)
    q_l2_mark_dirty (t, index + changed_from, changed_to - changed_from + 1);
  q_alloc_unlock (img);
  if (punches (mode) && !q_has_data_file (img))
    punch_kept (img, gc, was, new, count);
  if (count > 0)
    *done = q_min (end, (gc + count) << sub_shift (img)) - first;
  /* Until this is durable zeros may show; but not where the backing file will. */
  if (q_has_data_file (img) && changed_from != UINT32_MAX && mode != ZERO_KEEP &&
      mode != ZERO_PROVISION && mode != EMPTY)
    q_data_punch (img, first << img->subcluster_bits, *done << img->subcluster_bits);
out:
  free (new);
  return r;
}

/* True if there is no L2 table and nothing below it shows: zeros already. */
static int
is_blank (struct q_image *img, uint64_t first, uint64_t count, enum mode mode)
{
  struct q_table *t;
  uint64_t offset = first << img->cluster_bits;
  int r = q_l2_get (img, first >> img->l2_bits, 0, &t);

  if (r < 0 || t)
    return r < 0 ? r : 0;
  if (mode == ZERO_PROVISION)
    return 0;
  if (discards (mode) || mode == EMPTY || !has_below (img))
    return 1;
  return reads_zero (img, offset, q_min (count << img->cluster_bits, q_size (img) - offset));
}

/* What is about to change goes into the bitmaps. */
static void
mark_range (struct q_image *img, uint64_t first, uint64_t end)
{
  q_bitmaps_mark (img, first << img->subcluster_bits, (end - first) << img->subcluster_bits);
}

/* Subclusters [FIRST, END), as many as one claim covers.  *DONE counts them; returns 1 if the
 * cluster after them needs zeros written as data. */
static int
change_clusters (struct q_image *img, uint64_t first, uint64_t end, uint64_t limit, enum mode mode,
                 uint64_t *done)
{
  uint64_t per_table = 1ull << img->l2_bits, gc = first >> sub_shift (img), last;
  struct q_plan_claim claim;
  struct q_table *t;
  q_pin_t pin;
  int r;

  *done = 0;
  r = q_gate_enter (img, 0);
  if (r < 0)
    return r;
  /* What was asked for ends at byte LIMIT.  If the disk has grown since that was its end, the rest
   * of the cluster there is somebody's now. */
  if (limit < q_size (img))
    end = q_min (end, mode == ZERO_PROVISION ? limit >> img->cluster_bits << sub_shift (img)
                                             : limit >> img->subcluster_bits);
  if (first >= end) {
    r = 1;
    goto out;
  }
  last = q_min ((end - 1) >> sub_shift (img), gc | (per_table - 1));
  if (mode != EMPTY && last << img->cluster_bits >= q_size (img)) { /* made smaller meanwhile */
    r = -ENOSPC;
    goto out;
  }
  pin = q_pin ();
  mark_range (img, first, q_min (end, (last + 1) << sub_shift (img)));
  r = is_blank (img, gc, last - gc + 1, mode);
  q_unpin (pin);
  if (r != 0) {
    *done = r > 0 ? q_min (end, (last + 1) << sub_shift (img)) - first : 0;
    r = r < 0 ? r : 0;
    goto out;
  }

  last = q_min (last, gc + MAX_CLUSTERS - 1);
  end = q_min (end, (last + 1) << sub_shift (img));
  r = q_claim_take (img, &claim, gc, last, 0);
  if (r < 0)
    goto out;
  if (mode == ZERO_PROVISION && q_has_data_file (img)) {
    r = q_data_reserve (img, gc << img->cluster_bits, (last - gc + 1) << img->cluster_bits);
    if (r < 0)
      goto out_claim;
  }
  pin = q_pin ();
  r = q_l2_hold (img, gc >> img->l2_bits, 0, &t);
  if (r == 0) {
    r = change_held (img, t, first, end, mode, done);
    q_l2_release (t);
  }
  q_unpin (pin);
out_claim:
  q_claim_release (img, &claim);
out:
  q_gate_leave (img);
  return r;
}

/* ---- zeros as data -------------------------------------------------------------------------- */

static int
zero_part (struct q_image *img, uint64_t offset, uint64_t len, enum mode mode)
{
  q_pin_t pin;
  int r;

  if (len == 0)
    return 0;
  if (mode ==
      ZERO_PROVISION) /* also where it reads as zeros: data is what is provisioned for sure */
    return q_write_zeros (img, offset, len);
  r = q_gate_enter (img, 0);
  if (r < 0)
    return r;
  q_bitmaps_mark (img, offset, len); /* it was asked for, even if nothing changes */
  q_gate_leave (img);
  pin = q_pin ();
  r = reads_zero (img, offset, len);
  q_unpin (pin);
  return r < 0 ? r : r > 0 ? 0 : q_write_zeros (img, offset, len);
}

/* The whole subclusters in a range: [*first, *last).  Only whole clusters are provisioned. */
static void
whole_subclusters (struct q_image *img, uint64_t offset, uint64_t len, enum mode mode,
                   uint64_t *first, uint64_t *last)
{
  unsigned bits = mode == ZERO_PROVISION ? img->cluster_bits : img->subcluster_bits;
  uint64_t end = offset + len, cluster = q_cluster_bytes (img);

  *first = q_div_up (offset, 1ull << bits) << (bits - img->subcluster_bits);
  *last = end == q_size (img) ? q_div_up (end, cluster) << sub_shift (img)
                              : end >> bits << (bits - img->subcluster_bits);
  if (*last < *first || *first << img->subcluster_bits >= end)
    *last = *first;
}

/* ---- calls ---------------------------------------------------------------------------------- */

/* Whether zeros are the data's affair alone: no mapping says them. */
static bool
is_unmapped (const struct q_image *img)
{
  return img->format != Q_FORMAT_QCOW2 || img->data_raw;
}

bool
q_can_fast_zero (const struct q_image *img)
{
  return !is_unmapped (img) && (img->version >= 3 || !has_below (img));
}

/* Whether the cluster that subcluster SUB is in is compressed, unless SUB is its first. */
static int
splits_compressed (struct q_image *img, uint64_t sub)
{
  uint64_t gc = sub >> sub_shift (img);
  struct q_cluster c = { 0 };
  struct q_table *t;
  int r = 0;

  if (sub == gc << sub_shift (img))
    return 0;
  r = q_l2_get (img, gc >> img->l2_bits, 0, &t);
  if (r == 0 && t)
    r = q_decode_entry (img, gc, q_l2_entry_get (t, (uint32_t)(gc & ((1u << img->l2_bits) - 1))),
                        &c);
  return r < 0 ? r : c.compressed;
}

/* Whether the range can be zeroed without writing data. */
static int
check_fast (struct q_image *img, uint64_t offset, uint64_t len, uint64_t first, uint64_t last,
            enum mode mode)
{
  uint64_t whole = first << img->subcluster_bits, end = offset + len;
  uint64_t whole_end = q_min (last << img->subcluster_bits, end);
  q_pin_t pin = q_pin ();
  int r = 1;

  if (is_unmapped (img))
    r = 0;
  else if (first == last)
    r = reads_zero (img, offset, len);
  else {
    if (whole > offset)
      r = reads_zero (img, offset, whole - offset);
    if (r == 1 && end > whole_end)
      r = reads_zero (img, whole_end, end - whole_end);
    if (r == 1 && img->version < 3 && mode == ZERO_PROVISION)
      r = 0;
    else if (r == 1 && img->version < 3 && (has_below (img) || keeps (mode)))
      r = reads_zero (img, whole, whole_end - whole);
    for (int i = 0; r == 1 && i < 2; ++i) {
      r = splits_compressed (img, i ? last : first);
      r = r < 0 ? r : !r;
    }
  }
  q_unpin (pin);
  return r < 0 ? r : r > 0 ? 0 : -ENOTSUP;
}

static enum mode
zero_mode (const struct q_image *img, unsigned flags)
{
  return flags & Q_ZERO_PROVISION                   ? ZERO_PROVISION
         : !(flags & Q_ZERO_UNMAP) || !img->discard ? ZERO_KEEP
         : img->discard_no_unref                    ? ZERO_UNMAP_KEEP
                                                    : ZERO_UNMAP;
}

int
q_zero_is_fast (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags)
{
  enum mode mode = zero_mode (img, flags);
  uint64_t first, last;
  int r = q_writable (img);

  if (r < 0)
    return r;
  if (offset > q_size (img) || len > q_size (img) - offset)
    return -ENOSPC;
  if (len == 0)
    return 0;
  whole_subclusters (img, offset, len, mode, &first, &last);
  return check_fast (img, offset, len, first, last, mode);
}

int
q_zero (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags)
{
  enum mode mode = zero_mode (img, flags);
  uint64_t first, last, unit = q_subcluster_bytes (img), end = offset + len, done = 0;
  bool retried = false;
  int r = q_writable (img);

  if (r < 0)
    return r;
  if (offset > q_size (img) || len > q_size (img) - offset)
    return -ENOSPC;
  if (len == 0)
    return 0;
  whole_subclusters (img, offset, len, mode, &first, &last);
  if (flags & Q_ZERO_FAST) {
    r = check_fast (img, offset, len, first, last, mode);
    if (r < 0)
      return r;
  }
  if (is_unmapped (img))
    return q_data_zero (img, offset, len, mode == ZERO_UNMAP || mode == ZERO_UNMAP_KEEP,
                        mode == ZERO_PROVISION);
  if (first == last) /* at most parts of two */
    return zero_part (img, offset, len, mode);

  r = zero_part (img, offset, first * unit - offset, mode);
  while (r == 0 && first < last) {
    r = q_flush_throttle (img);
    if (r == 0)
      r = change_clusters (img, first, last, end, mode, &done);
    if (r >= 0)
      first += done;
    if (r == -ENOSPC && !retried && q_flush_frees_space (img)) {
      retried = true;
      r = 0;
    }
    if (r == 1) {
      uint64_t next = q_min (last, ((first >> sub_shift (img)) + 1) << sub_shift (img));

      r = zero_part (img, first * unit, q_min (next * unit, end) - first * unit, mode);
      first = next;
    }
  }
  if (r == 0 && last * unit < end)
    r = zero_part (img, last * unit, end - last * unit, mode);
  return r;
}

int
q_discard (struct q_image *img, uint64_t offset, uint64_t len)
{
  enum mode mode = img->discard_no_unref ? DISCARD_KEEP : DISCARD;
  uint64_t first, last, done = 0;
  int r = q_writable (img);

  if (r < 0)
    return r;
  if (offset > q_size (img) || len > q_size (img) - offset)
    return -ENOSPC;
  if (len == 0 || !img->discard)
    return 0;
  if (is_unmapped (img))
    return q_data_discard (img, offset, len);
  whole_subclusters (img, offset, len, mode, &first, &last);
  while (r == 0 && first < last) {
    r = q_flush_throttle (img);
    if (r == 0)
      r = change_clusters (img, first, last, offset + len, mode, &done);
    first += done;
  }
  return r > 0 ? 0 : r;
}

int
q_empty (struct q_image *img)
{
  uint64_t first, last, done = 0;
  int r = q_writable (img);

  if (r == 0 && img->format != Q_FORMAT_QCOW2)
    r = -ENOTSUP;
  if (r < 0)
    return r;
  whole_subclusters (img, 0, q_size (img), EMPTY, &first, &last);
  while (r == 0 && first < last) {
    r = q_flush_throttle (img);
    if (r == 0)
      r = change_clusters (img, first, last, UINT64_MAX, EMPTY, &done);
    first += done;
  }
  if (r == 0 && q_has_data_file (img)) {
    r = q_flush (img);
    if (r == 0)
      q_data_punch (img, 0, q_size (img));
  }
  return r;
}

int
q_empty_clusters (struct q_image *img, uint64_t first, uint64_t end)
{
  const uint64_t offset = first << img->cluster_bits, len = (end - first) << img->cluster_bits;
  uint64_t done = 0;
  int r = 0;

  first <<= sub_shift (img);
  end <<= sub_shift (img);
  while (r == 0 && first < end) {
    r = q_flush_throttle (img);
    if (r == 0)
      r = change_clusters (img, first, end, UINT64_MAX, EMPTY, &done);
    first += done;
  }
  if (r == 0 && q_has_data_file (img))
    q_data_punch (img, offset, len);
  return r;
}
