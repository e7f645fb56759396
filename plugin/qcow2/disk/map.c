/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Mapping: from guest offsets to extents, through the whole chain.  No lock is taken; the caller
 * holds a pin (invariant 5).
 *
 * A chain is walked from the top for each piece.  What a layer was found not to have is remembered
 * for the rest of the call, so that a fragmented layer at the bottom does not make the layers above
 * it be looked at again and again.
 */

#include <errno.h>
#include <stdlib.h>

#include "cluster.h"

/* The most L2 entries that one call looks at. */
#define MAX_WORK (1u << 18)

/* One run of clusters that one layer answers for in one way. */
struct piece {
  enum q_cluster_kind kind;
  uint64_t host, len;
  uint32_t csize, skip;
};

struct walk {
  unsigned flags;
  unsigned work;
  unsigned n;                  /* layers with an entry in until */
  uint64_t until[Q_MAX_CHAIN]; /* unallocated in that layer up to this offset */
};

/* ---- one layer ------------------------------------------------------------------------------ */

/* Cuts P, which is data, to where the file goes from data to hole or back. */
static void
find_hole (struct q_image *img, struct piece *p)
{
  uint64_t end;
  bool hole;

  if (q_file_extent (img->guest, p->host, &end, &hole) < 0 || end <= p->host)
    return;
  p->len = q_min (p->len, end - p->host);
  if (hole)
    p->kind = Q_CLUSTER_ZERO_PLAIN;
}

static int
map_raw (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags, struct piece *p)
{
  *p = (struct piece){ .kind = Q_CLUSTER_DATA, .host = offset, .len = len };
  if (flags & (Q_MAP_MERGE | Q_MAP_HOST))
    find_hole (img, p);
  return 0;
}

/* No L2 table for this offset: nothing is allocated up to the next table that exists. */
static uint64_t
run_without_table (struct q_image *img, uint64_t offset, uint64_t len, struct walk *w)
{
  struct q_l1 *l1 = atomic_load_explicit (&img->l1, memory_order_acquire);
  unsigned shift = img->cluster_bits + img->l2_bits;
  uint64_t index = offset >> shift, end = offset + len, run_end;

  do
    run_end = ++index << shift;
  while (run_end < end && ++w->work < MAX_WORK &&
         (index >= l1->entries || (q_entry_get (l1->table, (uint32_t)index) & Q_OFFSET_MASK) == 0));
  return q_min (run_end, end) - offset;
}

/* Whether it matters where clusters of KIND are. */
static bool
has_place (enum q_cluster_kind kind, unsigned flags)
{
  return (kind == Q_CLUSTER_DATA && !(flags & Q_MAP_MERGE)) ||
         (kind == Q_CLUSTER_ZERO_ALLOC && (flags & Q_MAP_HOST));
}

static int
map_qcow2 (struct q_image *img, uint64_t offset, uint64_t len, struct walk *w, struct piece *p)
{
  uint64_t cluster = q_cluster_bytes (img), gc = offset >> img->cluster_bits;
  uint64_t in = offset & (cluster - 1), covered;
  uint32_t index = (uint32_t)(gc & ((1u << img->l2_bits) - 1));
  unsigned sub = q_subcluster_at (img, offset);
  bool merge = w->flags & Q_MAP_MERGE;
  struct q_cluster c;
  struct q_table *t;
  int r;

  r = q_l2_get (img, gc >> img->l2_bits, w->flags, &t);
  if (r < 0)
    return r;
  if (!t) {
    *p = (struct piece){ .kind = Q_CLUSTER_UNALLOCATED,
                         .len = run_without_table (img, offset, len, w) };
    return 0;
  }
  r = q_decode_entry (img, gc, q_l2_entry_get (t, index), &c);
  if (r < 0)
    return r;
  *p = (struct piece){
    .kind = q_subcluster_kind (&c, sub), .host = c.host, .csize = c.csize, .skip = (uint32_t)in
  };
  /* Subclusters alike, or data that goes on in the host file, up to the end of the table.  What is
   * covered is counted from the start of the first cluster. */
  covered = (uint64_t)(sub + q_subcluster_run (img, &c, sub)) << img->subcluster_bits;
  while ((covered & (cluster - 1)) == 0 && covered < len + in && ++index < 1u << img->l2_bits &&
         ++w->work < MAX_WORK) {
    if (p->kind == Q_CLUSTER_COMPRESSED && !merge)
      break;
    /* What is wrong with the next entry is for whoever asks for it. */
    if (q_entry_wrong (img, ++gc, q_l2_entry_get (t, index), &c))
      break;
    if (q_subcluster_kind (&c, 0) != p->kind ||
        (has_place (p->kind, w->flags) && c.host != p->host + covered))
      break;
    covered += (uint64_t)q_subcluster_run (img, &c, 0) << img->subcluster_bits;
  }
  p->len = q_min (covered - in, len);
  if (has_place (p->kind, w->flags))
    p->host += in;
  /* A raw data file says itself what it has, as a raw image does. */
  if (merge && img->data_raw && p->kind == Q_CLUSTER_DATA && img->data) {
    p->host = offset;
    find_hole (img, p);
  }
  return 0;
}

/* ---- the chain ------------------------------------------------------------------------------ */

/* One field after the other: an extent that is put together elsewhere and copied is read back in
 * wider pieces than it was written in, and the processor then waits for the stores. */
static void
set_extent (struct q_extent *e, uint64_t guest, uint64_t len, unsigned depth, struct q_image *layer)
{
  e->file = NULL;
  e->guest = guest;
  e->host = 0;
  e->len = len;
  e->kind = Q_DATA;
  e->flags = 0;
  e->depth = (uint16_t)depth;
  e->skip = e->csize = 0;
  e->layer = layer;
}

/* Finds who answers for the first bytes of the range, and how. */
static int
resolve (struct q_image *top, uint64_t offset, uint64_t len, struct walk *w, struct q_extent *e)
{
  struct q_image *img = top;
  struct piece p;
  /* For block status, long runs matter more than short ways. */
  struct q_below *hints = w->flags & Q_MAP_MERGE ? NULL : top->below;
  unsigned depth = 0;
  int r;

  for (;;) {
    if (depth < w->n && offset < w->until[depth])
      p = (struct piece){ .kind = Q_CLUSTER_UNALLOCATED,
                          .len = q_min (len, w->until[depth] - offset) };
    else {
      r = img->format == Q_FORMAT_RAW ? map_raw (img, offset, len, w->flags, &p)
                                      : map_qcow2 (img, offset, len, w, &p);
      if (r < 0)
        return r;
      if (p.kind == Q_CLUSTER_UNALLOCATED && depth <= w->n) {
        w->until[depth] = offset + p.len;
        w->n = depth + 1;
      }
    }
    len = p.len;
    if (p.kind != Q_CLUSTER_UNALLOCATED)
      break;
    if (!img->backing || (w->flags & Q_MAP_TOP) ||
        offset >= atomic_load_explicit (&img->backing->size, memory_order_relaxed)) {
      if (hints && depth > 1)
        q_below_found (hints, offset, depth);
      set_extent (e, offset, len, depth + 1, img);
      e->kind = Q_ZERO;
      e->flags = Q_HOLE | Q_STABLE;
      return 0;
    }
    img = img->backing;
    ++depth;
    if (depth == 1 && hints) {
      img = q_below_find (hints, offset, &depth, &len);
      if (depth > 1)
        hints = NULL; /* it has told what it knows */
    }
    len = q_min (len, atomic_load_explicit (&img->size, memory_order_relaxed) - offset);
  }

  if (hints && depth > 1)
    q_below_found (hints, offset, depth);
  set_extent (e, offset, len, depth, img);
  e->flags = img->stable ? Q_STABLE : 0;
  switch (p.kind) {
  case Q_CLUSTER_ZERO_PLAIN:
    e->flags |= Q_HOLE;
    /* fall through */
  case Q_CLUSTER_ZERO_ALLOC:
    e->kind = Q_ZERO;
    if ((w->flags & Q_MAP_HOST) && (p.host || img->format == Q_FORMAT_RAW)) {
      e->file = img->file;
      e->host = p.host;
    }
    break;
  case Q_CLUSTER_COMPRESSED:
    e->kind = Q_COMPRESSED;
    e->file = img->file;
    e->host = p.host;
    e->skip = p.skip;
    e->csize = p.csize;
    break;
  default:
    e->kind = Q_DATA;
    e->file = img->guest;
    e->host = p.host;
  }
  return 0;
}

/* Appends B to A if the two are one. */
static bool
merge_extents (struct q_extent *a, const struct q_extent *b, unsigned flags)
{
  if (a->kind != b->kind)
    return false;
  if (flags & Q_MAP_MERGE) {
    if (a->flags != b->flags || a->depth != b->depth)
      return false;
  } else if (a->kind == Q_COMPRESSED || a->file != b->file ||
             (a->file && a->host + a->len != b->host) ||
             ((flags & Q_MAP_HOST) && (a->depth != b->depth || a->layer != b->layer)))
    return false;
  else
    a->flags &= b->flags;
  a->len += b->len;
  return true;
}

int
q_map (struct q_image *img, uint64_t offset, uint64_t len, struct q_extent *extents, unsigned max,
       unsigned flags)
{
  struct walk w;
  unsigned n = 0;

  w.flags = flags;
  w.work = 0;
  w.n = 0;
  if (max == 0 || len == 0 || offset > q_size (img) || len > q_size (img) - offset)
    return -EINVAL;
  while (len > 0) {
    struct q_extent last, *e = n < max ? &extents[n] : &last;
    int r = resolve (img, offset, len, &w, e);

    if (r < 0)
      return n > 0 ? (int)n : r;
    offset += e->len;
    len -= e->len;
    if (n == 0 || !merge_extents (&extents[n - 1], e, flags)) {
      if (n == max)
        break;
      ++n;
    }
    if (++w.work >= MAX_WORK)
      break;
  }
  return (int)n;
}

/* ---- two images of one file -------------------------------------------------------------------
 */

static bool
same_file (const struct q_file *a, const struct q_file *b)
{
  return a == b || (a && b && a->ino != 0 && a->dev == b->dev && a->ino == b->ino);
}

/* Whether A and B are the same file with the same below it, so that a table means the same in both.
 */
static bool
same_layers (const struct q_image *a, const struct q_image *b)
{
  for (; a && b; a = a->backing, b = b->backing)
    if (!a->stable || !b->stable || a->format != b->format || !same_file (a->file, b->file) ||
        !same_file (a->data, b->data))
      return false;
  return !a && !b;
}

bool
q_same_tables (const struct q_image *a, const struct q_image *b, uint64_t offset, uint64_t *len)
{
  const uint64_t end = q_min (q_min (q_size (a), q_size (b)), offset + *len);
  const struct q_l1 *x = atomic_load (&a->l1), *y = atomic_load (&b->l1);
  const unsigned shift = a->cluster_bits + a->l2_bits; /* what one table maps */
  uint64_t at = offset;
  bool same = false;

  if (!x || !y || end <= offset || !same_layers (a, b))
    return false;
  for (uint64_t i = offset >> shift; at < end; at = q_min (++i << shift, end)) {
    bool this = i < x->entries && i < y->entries &&
                ((q_entry_get (x->table, (uint32_t)i) ^ q_entry_get (y->table, (uint32_t)i)) &
                 Q_OFFSET_MASK) == 0;

    if (at == offset)
      same = this;
    else if (same != this)
      break;
  }
  if (same || at < end)
    *len = at - offset;
  return same;
}

int
q_reads_zero (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags)
{
  while (len > 0) {
    struct q_extent e;
    int n = q_map (img, offset, len, &e, 1, flags);

    if (n < 0)
      return n;
    if (e.kind != Q_ZERO)
      return 0;
    offset += e.len;
    len -= e.len;
  }
  return 1;
}

/* ---- reading -------------------------------------------------------------------------------- */

int
q_read_extent (const struct q_extent *e, uint64_t skip, uint64_t len, void *buf)
{
  switch (e->kind) {
  case Q_ZERO:
    memset (buf, 0, len);
    return 0;
  case Q_COMPRESSED:
    return q_inflate_read (e->layer, e->host, e->csize, e->skip + (uint32_t)skip, (uint32_t)len,
                           buf);
  default:
    if (e->layer->crypt)
      return q_crypt_read (e->layer->crypt, buf, len, e->host + skip, e->guest + skip);
    /* Without a file: the image was opened for its metadata alone. */
    return e->file ? q_file_pread (e->file, buf, len, e->host + skip) : -ENXIO;
  }
}

int
q_pread_pinned (struct q_image *img, void *buf, uint64_t offset, uint64_t len)
{
  struct q_extent e[16];

  while (len > 0) {
    int n = q_map (img, offset, len, e, sizeof e / sizeof e[0], 0);

    if (n < 0)
      return n;
    for (int i = 0; i < n; ++i) {
      int r = q_read_extent (&e[i], 0, e[i].len, buf);

      if (r < 0)
        return r;
      buf = (char *)buf + e[i].len;
      offset += e[i].len;
      len -= e[i].len;
    }
  }
  return 0;
}

int
q_pread (struct q_image *img, void *buf, uint64_t offset, uint64_t len)
{
  q_pin_t pin;
  int r;

  if (offset > q_size (img) || len > q_size (img) - offset)
    return -EINVAL;
  pin = q_pin ();
  r = q_pread_pinned (img, buf, offset, len);
  q_unpin (pin);
  return r;
}

int
q_prefetch (struct q_image *img, uint64_t offset, uint64_t len)
{
  int r = 0;

  if (offset > q_size (img) || len > q_size (img) - offset)
    return -EINVAL;
  while (r == 0 && len > 0) {
    struct q_extent e[16];
    q_pin_t pin = q_pin ();
    int n = q_map (img, offset, len, e, sizeof e / sizeof e[0], 0);

    if (n < 0)
      r = n;
    for (int i = 0; i < n; ++i) {
      /* A data file may not have been opened. */
      if (e[i].file && (e[i].kind == Q_DATA || e[i].kind == Q_COMPRESSED))
        q_file_prefetch (e[i].file, e[i].host, e[i].kind == Q_DATA ? e[i].len : e[i].csize);
      offset += e[i].len;
      len -= e[i].len;
    }
    q_unpin (pin);
  }
  return r;
}
