/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Inside the compaction of images: what compact.c, which moves clusters and tables, and
 * compact-pieces.c, which moves compressed data, have in common.
 */

#ifndef Q_COMPACT_H
#define Q_COMPACT_H

#include "check.h"

/* Clusters whose references are gathered at a time, and that move between two syncs. */
#define WINDOW (1u << 20)
#define BATCH  (32u << 20) /* bytes */

/* A word of the file that refers to a host cluster. */
struct ref {
  uint64_t cluster, word;
};

/* An L2 entry that refers to compressed data, and where it is in the file. */
struct piece_ref {
  uint64_t host, entry, word;
};

struct move {
  uint64_t from, to;
  size_t first, n; /* refs */
};

enum compact_phase { COMPACT_PIECES, COMPACT_DATA, COMPACT_TABLES, COMPACT_PHASES };

struct compaction {
  struct q_check c;
  const struct q_compact_options *o;
  struct q_compact_result *res;
  uint64_t target;    /* clusters that the file would have if everything could move */
  uint64_t next;      /* nothing is free below this */
  uint64_t low, high; /* the window */
  struct ref *ref;
  size_t n_refs, allocated;
  struct piece_ref *piece;
  size_t n_pieces, pieces_allocated;
  struct move *move;
  size_t n_moves, max_moves;
  uint8_t *buffer;
};

/* Writes the count of one cluster, whose block is there. */
int q_compact_set_count (struct compaction *k, uint64_t cluster, uint64_t count);
/* COUNT free clusters in a row below LIMIT; false if there are none. */
bool q_compact_find_free (struct compaction *k, uint64_t count, uint64_t limit, uint64_t *cluster);
/* Tells that DONE clusters were moved.  True: the user has had enough. */
bool q_compact_stop (struct compaction *k, uint64_t done);

/* ---- compact-pieces.c ------------------------------------------------------------------------ */

/* The L2 entry at WORD refers to compressed data; kept if that ends in the window. */
int q_compact_note_piece (struct compaction *k, uint64_t entry, uint64_t word);
/* Moves what was noted.  -EINTR when stopped. */
int q_compact_move_pieces (struct compaction *k);

#endif /* Q_COMPACT_H */
