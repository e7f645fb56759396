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

/* Step 1 for one piece: counts and contents. */
static int
copy (struct moving *m, const struct piece_move *p)
{
  struct compaction *k = m->k;
  const unsigned bits = k->c.img->cluster_bits;
  int r = 0;

  for (uint64_t c = p->to >> bits; r == 0 && c <= (p->to + p->size - 1) >> bits; c++) {
    for (size_t i = 0; r == 0 && i < p->n; i++)
      r = q_refmap_add (&k->c.refs, c);
    if (r == 0)
      r = q_compact_set_count (k, c, q_refmap_get (&k->c.refs, c));
  }
  return r < 0 ? r : q_file_pwrite (k->c.img->file, m->in, p->size, p->to);
}

/* Step 2. */
static int
redirect (const struct compaction *k, const struct piece_move *p)
{
  const struct q_image *img = k->c.img;
  const uint64_t new = q_compressed_encode (img->cluster_bits, p->to, p->size);
  int r = 0;

  for (size_t i = p->first; r == 0 && i < p->first + p->n; i++) {
    const struct piece_ref *ref = &k->piece[i];
    be64 raw;

    if (i > p->first && ref->word == ref[-1].word)
      continue; /* a table that several snapshots share */
    r = q_file_pread (img->file, &raw, sizeof raw, ref->word);
    if (r == 0 && get64 (raw) != ref->entry)
      r = -EBUSY; /* somebody else writes */
    raw = put64 (new);
    if (r == 0)
      r = q_file_pwrite (img->file, &raw, sizeof raw, ref->word);
  }
  return r;
}

/* Step 3. */
static int
let_go (struct compaction *k, const struct piece_move *p)
{
  const unsigned bits = k->c.img->cluster_bits;
  int r = 0;

  for (uint64_t c = p->from >> bits; r == 0 && c <= (p->from + p->span - 1) >> bits; c++) {
    for (size_t i = 0; i < p->n; i++)
      q_refmap_drop (&k->c.refs, c);
    r = q_compact_set_count (k, c, q_refmap_get (&k->c.refs, c));
    k->res->moved += q_refmap_get (&k->c.refs, c) == 0;
  }
  return r;
}

static int
perform (struct moving *m)
{
  struct compaction *k = m->k;
  int r = m->n > 0 ? q_file_sync (k->c.img->file) : 0;

  for (unsigned i = 0; r == 0 && i < m->n; i++)
    r = redirect (k, &m->move[i]);
  if (r == 0 && m->n > 0)
    r = q_file_sync (k->c.img->file);
  for (unsigned i = 0; r == 0 && i < m->n; i++)
    r = let_go (k, &m->move[i]);
  m->n = 0;
  m->bytes = 0;
  return r;
}

/* The entries [FIRST, END), which have one descriptor.  -ENOSPC if there is no place. */
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
    return -ENOSPC;
  r = copy (m, &p);
  if (r < 0)
    return r;
  m->end = p.to + p.size;
  m->bytes += p.size;
  m->move[m->n++] = p;
  return 0;
}

int
q_compact_move_pieces (struct compaction *k)
{
  struct moving m = { .k = k };
  size_t first = 0, end;
  int r = 0;

  if (k->n_pieces == 0)
    return 0;
  qsort (k->piece, k->n_pieces, sizeof *k->piece, compare_pieces);
  m.move = malloc (MOVES * sizeof *m.move);
  m.in = malloc (Q_MAX_COMPRESSED_BYTES (k->c.img->cluster_bits));
  m.out = malloc (q_cluster_bytes (k->c.img));
  if (!m.move || !m.in || !m.out)
    r = -ENOMEM;
  for (; r == 0 && first < k->n_pieces; first = end) {
    for (end = first + 1; end < k->n_pieces && k->piece[end].host == k->piece[first].host &&
                          k->piece[end].entry == k->piece[first].entry;)
      end++;
    r = move_piece (&m, first, end);
    if (r == -ENOSPC) /* a smaller one may still have a place */
      r = 0;
    if (r == 0 && (m.n == MOVES || m.bytes >= BATCH)) {
      r = perform (&m);
      if (r == 0 && q_compact_stop (k, k->res->moved))
        r = -EINTR;
    }
  }
  if (r == 0)
    r = perform (&m);
  free (m.move);
  free (m.in);
  free (m.out);
  return r;
}
