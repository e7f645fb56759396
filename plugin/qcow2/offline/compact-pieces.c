/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Compacting: compressed data, which lies at byte grain in host clusters that several guest
 * clusters share (specification: "Compressed Clusters Descriptor").
 *
 * A piece, what one descriptor leads to, is copied behind the piece before it, and on into the next
 * cluster if that is free; every L2 entry with that descriptor, also of snapshots, then gets a new
 * one.  Descriptors count sectors of 512 bytes: how long the piece really is, is found by inflating
 * it, lest it grow whenever it is moved.
 *
 * The invariant and its three steps are those of compact.c.  A host cluster that has lost its last
 * piece is not reused before the entries that led there are durable: only then is it counted as
 * free, here and in the file.
 */

#include <errno.h>
#include <stdlib.h>

#include "compact.h"

/* What descriptors count in. */
#define SECTOR 512ull

/* Pieces that move between two syncs. */
#define MOVES 16384u

struct piece_move {
  uint64_t from, span; /* where the descriptor says that it is */
  uint64_t to;
  uint32_t size;   /* of what is there now */
  size_t first, n; /* entries */
};

struct moving {
  struct compaction *k;
  struct piece_move *move;
  unsigned n;
  uint64_t bytes;
  uint64_t end; /* of the last piece that was placed; 0: none was */
  uint8_t *in, *out;
};

int
q_compact_note_piece (struct compaction *k, uint64_t entry, uint64_t word)
{
  const unsigned bits = k->c.img->cluster_bits;
  uint64_t host, last;
  uint32_t span;

  q_compressed_decode (entry, bits, &host, &span);
  last = (host + span - 1) >> bits;
  if (last < k->low || last >= k->high)
    return 0;
  if (k->n_pieces == k->pieces_allocated) {
    size_t more = k->pieces_allocated ? 2 * k->pieces_allocated : 4096;
    struct piece_ref *p = reallocarray (k->piece, more, sizeof *p);

    if (!p)
      return -ENOMEM;
    k->piece = p;
    k->pieces_allocated = more;
  }
  k->piece[k->n_pieces++] = (struct piece_ref){ host, entry, word };
  return 0;
}

static int
compare_pieces (const void *a, const void *b)
{
  const struct piece_ref *x = a, *y = b;

  if (x->host != y->host)
    return x->host < y->host ? -1 : 1;
  if (x->entry != y->entry)
    return x->entry < y->entry ? -1 : 1;
  return x->word < y->word ? -1 : x->word > y->word;
}

/* ---- where to -------------------------------------------------------------------------------- */

static bool
is_free (struct compaction *k, uint64_t cluster, uint64_t count)
{
  uint64_t offset;

  for (uint64_t i = 0; i < count; i++)
    if (cluster + i >= k->target || q_refmap_get (&k->c.refs, cluster + i) ||
        !q_check_refblock (&k->c, (cluster + i) / q_refblock_entries (k->c.img), &offset))
      return false;
  return true;
}

/* A place for P; false if there is none.  What is longer than a cluster may take all the sectors
 * that a descriptor can count: it begins at the same byte of a sector as before, so that they are
 * no more. */
static bool
find_place (const struct moving *m, struct piece_move *p)
{
  struct compaction *k = m->k;
  const unsigned bits = k->c.img->cluster_bits;
  const uint64_t bytes = 1ull << bits, last = m->end >> bits;
  const uint64_t lead = p->size > bytes ? p->from & (SECTOR - 1) : 0;
  uint64_t at = m->end, room, more, cluster;

  if (p->size > bytes) {
    at = (m->end & ~(SECTOR - 1)) + lead;
    at += at < m->end ? SECTOR : 0;
  }
  room = bytes - (at & (bytes - 1));
  more = p->size > room ? q_div_up (p->size - room, bytes) : 0;
  if ((m->end & (bytes - 1)) && at >> bits == last &&
      p->n <= k->c.max_count - q_refmap_get (&k->c.refs, last) && is_free (k, last + 1, more)) {
    p->to = at;
    return true;
  }
  if (!q_compact_find_free (k, q_div_up (lead + p->size, bytes), k->target, &cluster))
    return false;
  p->to = (cluster << bits) + lead;
  return true;
}

/* ---- moving ---------------------------------------------------------------------------------- */

static uint64_t
clusters_of (const struct compaction *k, uint64_t offset, uint64_t len)
{
  const unsigned bits = k->c.img->cluster_bits;

  return ((offset + len - 1) >> bits) - (offset >> bits) + 1;
}

/* Step 1 for one piece, whose place is reserved: counts and contents. */
static int
copy (struct moving *m, const struct piece_move *p)
{
  struct compaction *k = m->k;
  const uint64_t first = p->to >> k->c.img->cluster_bits, n = clusters_of (k, p->to, p->size);
  int r = 0;

  for (uint64_t c = first; r == 0 && c < first + n; c++)
    r = q_compact_set_count (k, c, q_refmap_get (&k->c.refs, c));
  return r < 0 ? r : q_file_pwrite (k->c.img->file, m->in, p->size, p->to);
}

/* Step 2: what says WAS says NEW. */
static int
redirect (const struct compaction *k, const struct piece_ref *ref, uint64_t was, uint64_t new)
{
  const struct q_image *img = k->c.img;
  be64 raw;
  int r = q_file_pread (img->file, &raw, sizeof raw, ref->word);

  if (r == 0 && get64 (raw) != was)
    r = -EBUSY; /* somebody else writes */
  raw = put64 (new);
  return r < 0 ? r : q_file_pwrite (img->file, &raw, sizeof raw, ref->word);
}

static int
redirect_all (const struct compaction *k, const struct piece_move *p, bool back)
{
  const uint64_t new = q_compressed_encode (k->c.img->cluster_bits, p->to, p->size);
  int r = 0;

  for (size_t i = p->first; r == 0 && i < p->first + p->n; i++) {
    const struct piece_ref *ref = &k->piece[i];

    if (i > p->first && ref->word == ref[-1].word)
      continue; /* a table that several snapshots share */
    r = back ? redirect (k, ref, new, ref->entry) : redirect (k, ref, ref->entry, new);
    if (back && r == -EBUSY)
      r = redirect (k, ref, ref->entry, ref->entry);
  }
  return r;
}

/* Step 3, for the place that a piece had, or was to have. */
static int
let_go (struct compaction *k, uint64_t offset, uint64_t len, uint64_t refs)
{
  const uint64_t first = offset >> k->c.img->cluster_bits, n = clusters_of (k, offset, len);

  q_compact_release (k, first, n, refs);
  return q_compact_settle (k, first, n);
}

/* As in compact.c. */
static void
go_back (struct moving *m, unsigned redirected)
{
  struct compaction *k = m->k;
  int r = 0;

  for (unsigned i = 0; r == 0 && i < redirected; i++)
    r = redirect_all (k, &m->move[i], true);
  if (r == 0 && redirected > 0)
    r = q_file_sync (k->c.img->file);
  k->torn = k->torn || r < 0;
  for (unsigned i = 0; r == 0 && i < m->n; i++)
    let_go (k, m->move[i].to, m->move[i].size, m->move[i].n);
  m->n = 0;
  m->bytes = 0;
}

/* The clusters of a piece's old place that nothing is in any more. */
static uint64_t
count_empty (const struct compaction *k, const struct piece_move *p)
{
  const uint64_t first = p->from >> k->c.img->cluster_bits, n = clusters_of (k, p->from, p->span);
  uint64_t empty = 0;

  for (uint64_t c = first; c < first + n; c++)
    empty += q_refmap_get (&k->c.refs, c) == 0;
  return empty;
}

static int
perform (struct moving *m)
{
  struct compaction *k = m->k;
  unsigned redirected = 0;
  int r = m->n > 0 ? q_file_sync (k->c.img->file) : 0;

  while (r == 0 && redirected < m->n)
    r = redirect_all (k, &m->move[redirected++], false);
  if (r == 0 && m->n > 0)
    r = q_file_sync (k->c.img->file);
  if (r < 0)
    go_back (m, redirected);
  for (unsigned i = 0; i < m->n; i++) {
    const struct piece_move *p = &m->move[i];
    int r2 = let_go (k, p->from, p->span, p->n);

    r = r == 0 ? r2 : r;
    k->res->moved += count_empty (k, p);
  }
  if (r == 0 && m->n > 0 && k->tight)
    r = q_file_sync (k->c.img->file);
  for (unsigned i = 0; r == 0 && i < m->n; i++)
    r = q_compact_vacate (k, m->move[i].from >> k->c.img->cluster_bits,
                          clusters_of (k, m->move[i].from, m->move[i].span));
  m->n = 0;
  m->bytes = 0;
  return r;
}

/* The entries [FIRST, END), which have one descriptor.  Where there is no place for what they lead
 * to, it stays. */
static int
move_piece (struct moving *m, size_t first, size_t end)
{
  struct compaction *k = m->k;
  struct q_image *img = k->c.img;
  struct piece_move p = { .first = first, .n = end - first };
  uint32_t span;
  int r;

  q_compressed_decode (k->piece[first].entry, img->cluster_bits, &p.from, &span);
  p.span = span;
  r = q_file_pread (img->file, m->in, span, p.from);
  if (r < 0)
    return r;
  p.size = q_inflate_measure (img, m->in, span, m->out);
  if (p.size == 0) /* damaged, or of a kind of its own */
    p.size = span;
  if (!find_place (m, &p))
    return 0;
  r = q_compact_reserve (k, p.to >> img->cluster_bits, clusters_of (k, p.to, p.size), p.n);
  if (r < 0)
    return r;
  m->end = p.to + p.size;
  m->bytes += p.size;
  m->move[m->n++] = p;
  return copy (m, &p);
}

/* Moves all that was noted, a batch at a time. */
static int
move_all (struct moving *m)
{
  struct compaction *k = m->k;
  size_t first = 0, batch = 0; /* the first of the batch */
  int r = 0;

  while (r == 0 && first < k->n_pieces) {
    size_t end = first + 1;

    while (end < k->n_pieces && k->piece[end].host == k->piece[first].host &&
           k->piece[end].entry == k->piece[first].entry)
      end++;
    r = move_piece (m, first, end);
    first = end;
    if (r == 0 && first < k->n_pieces && m->n < MOVES && m->bytes < k->batch)
      continue;
    if (r == 0)
      r = perform (m);
    else
      go_back (m, 0);
    if (r == -ENOSPC && q_compact_tighten (k)) {
      first = batch;
      m->end = 0;
      r = 0;
    }
    batch = first;
    if (r == 0 && q_compact_stop (k, k->res->moved))
      r = -EINTR;
  }
  return r;
}

int
q_compact_move_pieces (struct compaction *k)
{
  struct moving m = { .k = k };
  int r = 0;

  if (k->n_pieces == 0)
    return 0;
  qsort (k->piece, k->n_pieces, sizeof *k->piece, compare_pieces);
  m.move = malloc (MOVES * sizeof *m.move);
  m.in = malloc (Q_MAX_COMPRESSED_BYTES (k->c.img->cluster_bits));
  m.out = malloc (q_cluster_bytes (k->c.img));
  r = m.move && m.in && m.out ? move_all (&m) : -ENOMEM;
  free (m.move);
  free (m.in);
  free (m.out);
  return r;
}
