/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writing: begin, data, commit.
 *
 * A plan covers a prefix of the request that is all of one sort: overwritten in place, put into
 * clusters that are allocated already but hold no data there (zeros, or subclusters that were never
 * written), or put into new clusters; the last two within one L2 table.  A request of mixed sorts
 * takes several plans.
 *
 * What surrounds the request goes with it up to the ends of its subclusters; where a new host
 * cluster replaces another, up to the ends of what that one held.  A subcluster of a cluster that
 * is ours is never copied once it is data: others may be overwriting it in place, without a claim.
 *
 * Invariant 2, this file's part: data and what surrounds it in a new cluster are written before
 * commit publishes the L2 entry, its subcluster bits included; flush.c syncs them before the entry
 * reaches the disk.
 * Invariant 4: a plan that changes a mapping holds the claim from before it looks at the old
 * mapping until after it has published the new one.  A plan, of whatever sort, is inside the gate
 * (gate.c) from begin to its end.  Invariant 6: commit cannot fail.  The table is held, the
 * clusters allocated, and room in limbo for what is let go of is reserved, all by begin.
 */

#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "cluster.h"
#include "state.h"

/* The most bytes of new clusters in one plan: bounds the time that a claim is held. */
#define MAX_ALLOCATING (8u << 20)

/* The source of padding around data, and of zeros that are data: the largest cluster.  Never
 * written to.  It begins with a page: the kernel copies up to a page of the source that is not
 * there yet, and goes on when it is; killed in between, it leaves the copy torn at that place,
 * which must not be within a sector. */
static uint8_t zeros[1u << Q_MAX_CLUSTER_BITS] __attribute__ ((aligned (4096)));

static bool
holds_references (struct q_l2_entry e)
{
  return (e.descriptor & Q_L2_COMPRESSED) || (e.descriptor & Q_OFFSET_MASK);
}

/* Has a host cluster that is ours alone: what is written to it changes nothing else. */
static bool
is_own (const struct q_cluster *c)
{
  return !c->compressed && c->own;
}

/* Adds LEN bytes at HOST to the plan's runs.  False if there is no room for another run. */
static bool
add_run (struct q_write_plan *plan, uint64_t host, uint64_t len, uint64_t clusters)
{
  unsigned n = plan->n_runs;

  if (n > 0 && plan->run[n - 1].host + plan->run[n - 1].len == host) {
    plan->run[n - 1].len += len;
    plan->clusters[n - 1] += (uint32_t)clusters;
    return true;
  }
  if (n == Q_PLAN_RUNS)
    return false;
  plan->run[n] = (struct q_run){ host, len };
  plan->clusters[n] = (uint32_t)clusters;
  ++plan->n_runs;
  return true;
}

/* ---- overwriting in place ------------------------------------------------------------------- */

/* Bytes from OFFSET on that can be overwritten where they are, up to the end of the cluster. */
static uint64_t
in_place_bytes (const struct q_image *img, const struct q_cluster *c, uint64_t offset)
{
  unsigned sub = q_subcluster_at (img, offset);
  uint64_t in = offset & (q_cluster_bytes (img) - 1);

  if (!is_own (c) || !(c->data >> sub & 1))
    return 0;
  return ((uint64_t)(sub + q_subcluster_run (img, c, sub)) << img->subcluster_bits) - in;
}

/* Covers what can be overwritten in place from the start of the range: 1 if anything can, else 0.
 */
static int
plan_in_place (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags,
               struct q_write_plan *plan)
{
  uint64_t cluster = q_cluster_bytes (img);

  while (plan->len < len) {
    uint64_t pos = offset + plan->len, gc = pos >> img->cluster_bits, bytes;
    struct q_cluster c = { 0 };
    struct q_table *t;
    int r = q_l2_get (img, gc >> img->l2_bits, flags, &t);

    if (r == 0 && t)
      r = q_decode_entry (img, gc, q_l2_entry_get (t, (uint32_t)(gc & ((1u << img->l2_bits) - 1))),
                          &c);
    if (r < 0)
      return plan->len > 0 ? 1 : r;
    bytes = q_min (in_place_bytes (img, &c, pos), len - plan->len);
    if (bytes == 0 || !add_run (plan, c.host + (pos & (cluster - 1)), bytes, 1))
      break;
    plan->len += bytes;
  }
  /* After having seen the entries: datafile.c says why. */
  if (img->data_raw && atomic_load (&img->raw_unsettled))
    return -EAGAIN;
  return plan->len > 0;
}

/* ---- allocating ----------------------------------------------------------------------------- */

/* The subclusters of guest cluster GC that the plan's bytes touch. */
static void
touched (const struct q_image *img, const struct q_write_plan *plan, uint64_t gc, unsigned *from,
         unsigned *to)
{
  uint64_t start = gc << img->cluster_bits, end = start + q_cluster_bytes (img);

  *from = q_subcluster_at (img, start > plan->offset ? start : plan->offset);
  *to = q_subcluster_at (img, q_min (end, plan->offset + plan->len) - 1);
}

/* FROM to TO become those that are written, padding included.  In a new host cluster that is also
 * what the old one held, with what lies between. */
static void
widen (const struct q_image *img, const struct q_write_plan *plan, const struct q_cluster *old,
       unsigned *from, unsigned *to)
{
  uint32_t keep = plan->reuses ? 0 : old->compressed ? q_all_subclusters (img) : old->data;

  keep |= q_subcluster_mask (*from, *to);
  *from = (unsigned)__builtin_ctz (keep);
  *to = 31 - (unsigned)__builtin_clz (keep);
}

/* What has to surround the request in its first and last cluster.  Looks at the old mapping, which
 * the claim keeps as it is. */
static int
plan_padding (struct q_image *img, unsigned flags, struct q_write_plan *plan)
{
  uint64_t size = q_size (img), end = plan->offset + plan->len, tail_end;
  uint64_t first = plan->offset >> img->cluster_bits, last = (end - 1) >> img->cluster_bits;
  unsigned from, to;
  struct q_cluster c;
  int r;

  plan->copy_head = plan->copy_tail = false;
  r = q_decode_entry (img, first, q_l2_entry_get (plan->table, plan->index), &c);
  if (r < 0)
    return r;
  touched (img, plan, first, &from, &to);
  assert (!plan->reuses || !(c.data >> from & 1)); /* that would have been done in place */
  widen (img, plan, &c, &from, &to);
  plan->head = (uint32_t)(plan->offset - (first << img->cluster_bits) -
                          ((uint64_t)from << img->subcluster_bits));
  r = q_decode_entry (img, last,
                      q_l2_entry_get (plan->table, plan->index + (uint32_t)(last - first)), &c);
  if (r < 0)
    return r;
  touched (img, plan, last, &from, &to);
  if (!plan->reuses || !(c.data >> to & 1)) {
    widen (img, plan, &c, &from, &to);
    plan->tail = (uint32_t)((last << img->cluster_bits) +
                            ((uint64_t)(to + 1) << img->subcluster_bits) - end);
  }
  if (plan->head) {
    r = q_reads_zero (img, plan->offset - plan->head, plan->head, flags);
    if (r < 0)
      return r;
    plan->copy_head = r == 0;
  }
  tail_end = q_min (end + plan->tail, size); /* past the end of the disk there is nothing to copy */
  if (tail_end > end) {
    r = q_reads_zero (img, end, tail_end - end, flags);
    if (r < 0)
      return r;
    plan->copy_tail = r == 0;
  }
  return (flags & Q_NOWAIT) && (plan->copy_head || plan->copy_tail) ? -EAGAIN : 0;
}

static bool
lock_allocator (struct q_image *img, unsigned flags)
{
  if (flags & Q_NOWAIT)
    return q_alloc_trylock (img);
  q_alloc_lock (img);
  return true;
}

/* Takes new clusters for the first N entries at plan->index, or as many as there are runs for. */
static int
allocate (struct q_image *img, uint64_t n, unsigned flags, struct q_write_plan *plan, uint64_t *got,
          bool *fresh_first, bool *fresh_last)
{
  struct q_table *t = plan->table;
  uint64_t frees = 0, used = 0, i;
  int r;

  if (!lock_allocator (img, flags))
    return -EAGAIN;
  for (i = 0; i < n; ++i)
    frees += holds_references (q_l2_entry_get (t, plan->index + (uint32_t)i));
  *got = 0;
  r = q_limbo_reserve (&img->limbo, frees);
  if (r < 0) {
    q_alloc_unlock (img);
    return r;
  }
  while (*got < n && plan->n_runs < Q_PLAN_RUNS) {
    uint64_t host, count;
    bool fresh;

    r = q_alloc_run (img, n - *got, flags, &host, &count, &fresh);
    if (r < 0)
      break;
    add_run (plan, host, count << img->cluster_bits, count);
    if (*got == 0)
      *fresh_first = fresh;
    *fresh_last = fresh;
    *got += count;
  }
  if (*got > 0)
    r = 0; /* a shorter plan is a plan */
  for (i = 0; i < *got; ++i)
    used += holds_references (q_l2_entry_get (t, plan->index + (uint32_t)i));
  q_limbo_cancel (&img->limbo, frees - used);
  plan->frees = (uint32_t)used;
  q_alloc_unlock (img);
  return r;
}

/* Takes the clusters that are there already. */
static void
reuse (struct q_image *img, uint64_t n, struct q_write_plan *plan, uint64_t *got)
{
  struct q_table *t = plan->table;

  for (*got = 0; *got < n; ++*got) {
    uint64_t host = q_l2_entry_get (t, plan->index + (uint32_t)*got).descriptor & Q_OFFSET_MASK;

    if (q_has_data_file (img))
      host = ((plan->offset >> img->cluster_bits) + *got) << img->cluster_bits;
    if (!add_run (plan, host, q_cluster_bytes (img), 1))
      break;
  }
}

/* Whether what surrounds the request in an external data file, where its offset is that of the
 * guest, reads as zeros already. */
static void
find_holes (struct q_image *img, const struct q_write_plan *plan, bool *fresh_first,
            bool *fresh_last)
{
  if (!q_has_data_file (img))
    return;
  *fresh_first = plan->head > 0 && q_data_is_hole (img, plan->offset - plan->head, plan->head);
  *fresh_last = plan->tail > 0 && q_data_is_hole (img, plan->offset + plan->len, plan->tail);
}

/* Cuts the runs, which are whole clusters so far, to the request. */
static void
trim_runs (const struct q_image *img, uint64_t len, uint64_t got, struct q_write_plan *plan)
{
  uint64_t cluster = q_cluster_bytes (img);
  uint32_t head = (uint32_t)(plan->offset & (cluster - 1));
  uint64_t room = (got << img->cluster_bits) - head;

  plan->run[0].host += head;
  plan->run[0].len -= head;
  plan->len = q_min (len, room);
  plan->run[plan->n_runs - 1].len -= room - plan->len;
}

static void
let_go (struct q_write_plan *plan)
{
  if (plan->table)
    q_l2_release (plan->table);
  q_claim_release (plan->img, &plan->claim);
  plan->table = NULL;
  plan->allocates = false;
}

/* 1 if the range has become one to overwrite in place. */
static int
plan_allocating (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags,
                 struct q_write_plan *plan)
{
  uint64_t first = offset >> img->cluster_bits, per_table = 1ull << img->l2_bits;
  uint64_t last = (offset + len - 1) >> img->cluster_bits, n, got = 0;
  bool fresh_first = false, fresh_last = false;
  struct q_table *t = NULL;
  int r;

  last = q_min (last, first + (MAX_ALLOCATING >> img->cluster_bits));
  last = q_min (last, first | (per_table - 1));
  r = q_claim_take (img, &plan->claim, first, last, flags);
  if (r < 0)
    return r;
  plan->allocates = true;
  r = q_l2_hold (img, first >> img->l2_bits, flags, &t);
  if (r < 0)
    goto fail;
  plan->table = t;
  plan->index = (uint32_t)(first & (per_table - 1));

  for (n = 0; n <= last - first; ++n) {
    struct q_cluster c;

    r = q_decode_entry (img, first + n, q_l2_entry_get (t, plan->index + (uint32_t)n), &c);
    if (r < 0)
      goto fail;
    if (n == 0) {
      /* Somebody may have been here while we waited for the claim. */
      if (in_place_bytes (img, &c, offset) > 0) {
        let_go (plan);
        return 1;
      }
      plan->reuses = is_own (&c);
      if (img->data_raw) {
        r = -EAGAIN; /* first the entry, then the data: q_data_settle */
        goto fail;
      }
    } else if (is_own (&c) != plan->reuses || (is_own (&c) && c.data == q_all_subclusters (img)))
      break;
  }

  /* The padding first: it may need waiting for, and then nothing has been allocated. */
  plan->len = q_min (len, (n << img->cluster_bits) - (offset & (q_cluster_bytes (img) - 1)));
  r = plan_padding (img, flags, plan);
  if (r < 0)
    goto fail;
  if (plan->reuses)
    reuse (img, n, plan, &got);
  else {
    r = allocate (img, n, flags, plan, &got, &fresh_first, &fresh_last);
    if (r < 0)
      goto fail;
  }
  trim_runs (img, plan->len, got, plan);
  if (got < n)
    plan->tail = 0, plan->copy_tail = false;
  find_holes (img, plan, &fresh_first, &fresh_last);
  /* Holes need no zeros. */
  if (fresh_first && !plan->copy_head)
    plan->head = 0;
  if (fresh_last && !plan->copy_tail)
    plan->tail = 0;
  Q_PROBE ("write begun");
  return 0;

fail:
  plan->n_runs = 0;
  let_go (plan);
  return r;
}

/* Inside the gate. */
static int
plan_inside (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags,
             struct q_write_plan *plan)
{
  int r;

  if (offset > q_size (img) || len > q_size (img) - offset)
    return -ENOSPC;
  if (img->format == Q_FORMAT_RAW) {
    add_run (plan, offset, len, 0);
    plan->len = len;
    return 0;
  }
  do {
    r = plan_in_place (img, offset, len, flags, plan);
    if (r != 0)
      return r < 0 ? r : 0;
    r = plan_allocating (img, offset, len, flags, plan);
  } while (r > 0);
  return r;
}

int
q_write_begin (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags,
               struct q_write_plan *plan)
{
  int r = q_writable (img);

  plan->img = img;
  plan->file = img->guest;
  plan->offset = offset;
  plan->len = 0;
  plan->n_runs = 0;
  plan->head = plan->tail = 0;
  plan->copy_head = plan->copy_tail = false;
  plan->allocates = plan->reuses = false;
  plan->table = NULL;
  plan->frees = 0;
  if (r < 0)
    return r;
  if (len == 0)
    return -EINVAL;
  if ((flags & Q_NOWAIT) && img->crypt)
    return -EAGAIN; /* encrypting takes longer than a loop may */
  r = q_gate_enter (img, flags);
  if (r < 0)
    return r;
  r = plan_inside (img, offset, len, flags, plan);
  if (r < 0)
    q_gate_leave (img);
  else
    q_bitmaps_mark (img, plan->offset, plan->len);
  return r;
}

/* ---- data ----------------------------------------------------------------------------------- */

/* The LEN bytes at guest offset OFFSET as they are below the new mapping, with zeros past the end
 * of the disk. */
static int
read_padding (struct q_image *img, uint64_t offset, uint32_t len, void **buf)
{
  uint64_t size = q_size (img);
  uint64_t n = offset < size ? q_min (len, size - offset) : 0;

  if (posix_memalign (buf, 4096, q_round_up (len, 4096)) != 0) {
    *buf = NULL;
    return -ENOMEM;
  }
  memset ((char *)*buf + n, 0, len - n);
  return q_pread_pinned (img, *buf, offset, n);
}

int
q_write_data (struct q_write_plan *plan, const void *buf)
{
  struct q_image *img = plan->img;
  void *head = NULL, *tail = NULL;
  int r = 0;

  if (plan->copy_head)
    r = read_padding (img, plan->offset - plan->head, plan->head, &head);
  if (r == 0 && plan->copy_tail)
    r = read_padding (img, plan->offset + plan->len, plan->tail, &tail);
  for (unsigned i = 0; r == 0 && i < plan->n_runs; ++i) {
    uint64_t host = plan->run[i].host;
    struct iovec iov[3];
    int n = 0;

    if (i == 0 && plan->head > 0) {
      iov[n++] = (struct iovec){ head ? head : zeros, plan->head };
      host -= plan->head;
    }
    iov[n++] = (struct iovec){ (void *)buf, plan->run[i].len };
    if (i == plan->n_runs - 1 && plan->tail > 0)
      iov[n++] = (struct iovec){ tail ? tail : zeros, plan->tail };
    r = q_file_pwritev (plan->file, iov, n, host);
    buf = (const char *)buf + plan->run[i].len;
  }
  free (head);
  free (tail);
  return r;
}

/* ---- the end of a plan ---------------------------------------------------------------------- */

/* What OLD, the entry of guest cluster GC, becomes when the plan's bytes are at HOST. */
static struct q_l2_entry
written_entry (const struct q_image *img, const struct q_write_plan *plan, uint64_t gc,
               struct q_l2_entry old, uint64_t host)
{
  struct q_cluster c, new = { .own = true, .host = host };
  const char *wrong = q_entry_wrong (img, gc, old, &c);
  unsigned from, to;

  assert (!wrong); /* begin has seen it, and the claim kept it */
  (void)wrong;
  touched (img, plan, gc, &from, &to);
  widen (img, plan, &c, &from, &to);
  new.data = q_subcluster_mask (from, to) | (plan->reuses ? c.data : 0);
  new.zero = c.zero & ~new.data;
  return q_encode_entry (img, &new);
}

void
q_write_commit (struct q_write_plan *plan)
{
  struct q_image *img = plan->img;
  struct q_table *t = plan->table;
  uint64_t gc = plan->offset >> img->cluster_bits;
  uint32_t index = plan->index;
  bool frees = plan->frees > 0;

  q_note_data_written (img);
  if (!plan->allocates)
    goto out;
  /* Under the allocator's lock if anything is let go of: the flusher marks limbo under it, and
   * must not find something there whose entry is not yet marked dirty. */
  Q_PROBE ("before a write is published");
  if (frees)
    q_alloc_lock (img);
  for (unsigned i = 0; i < plan->n_runs; ++i) {
    uint64_t host = plan->run[i].host & ~(q_cluster_bytes (img) - 1);

    for (uint32_t n = plan->clusters[i]; n > 0; --n, ++index, host += q_cluster_bytes (img)) {
      struct q_l2_entry old = q_l2_entry_get (t, index);
      uint64_t cluster, count;

      q_l2_entry_set (t, index, written_entry (img, plan, gc++, old, host));
      if (plan->reuses)
        continue;
      q_entry_references (img, old, &cluster, &count);
      if (count > 0) {
        assert (plan->frees > 0);
        q_limbo_add (&img->limbo, cluster, count);
        --plan->frees;
      }
    }
  }
  Q_PROBE ("write published, table not marked");
  q_l2_mark_dirty (t, plan->index, index - plan->index);
  assert (plan->frees == 0); /* the claim kept the entries as begin counted them */
  if (frees)
    q_alloc_unlock (img);
  let_go (plan);
out:
  q_gate_leave (img);
}

void
q_write_abort (struct q_write_plan *plan)
{
  struct q_image *img = plan->img;

  if (!plan->allocates)
    goto out;
  Q_PROBE ("before an abort");
  if (!plan->reuses) {
    q_alloc_lock (img);
    q_limbo_cancel (&img->limbo, plan->frees);
    q_alloc_unlock (img);
    for (unsigned i = 0; i < plan->n_runs; ++i)
      q_alloc_drop (img, plan->run[i].host >> img->cluster_bits, plan->clusters[i]);
  }
  let_go (plan);
out:
  q_gate_leave (img);
}

int
q_pwrite (struct q_image *img, const void *buf, uint64_t offset, uint64_t len)
{
  int r = q_writable (img);
  bool retried = false;

  if (r == 0 && (offset > q_size (img) || len > q_size (img) - offset))
    r = -ENOSPC;
  while (r == 0 && len > 0) {
    struct q_write_plan plan;
    q_pin_t pin;

    r = q_flush_throttle (img);
    if (r < 0)
      break;
    pin = q_pin ();
    r = q_write_begin (img, offset, len, 0, &plan);
    if (r == 0) {
      r = q_write_data (&plan, buf);
      if (r == 0)
        q_write_commit (&plan);
      else
        q_write_abort (&plan);
    }
    q_unpin (pin);
    if (r == -EAGAIN && img->data_raw) {
      r = q_data_settle (img, offset, len);
      continue;
    }
    if (r == -ENOSPC && !retried && q_flush_frees_space (img)) {
      retried = true;
      r = 0;
      continue;
    }
    buf = (const char *)buf + plan.len;
    offset += plan.len;
    len -= plan.len;
  }
  return r;
}

int
q_write_zeros (struct q_image *img, uint64_t offset, uint64_t len)
{
  int r = 0;

  while (r == 0 && len > 0) {
    uint64_t n = q_min (len, sizeof zeros);

    r = q_pwrite (img, zeros, offset, n);
    offset += n;
    len -= n;
  }
  return r;
}
