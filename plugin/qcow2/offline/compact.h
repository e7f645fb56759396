/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Inside the compaction of images: what compact.c, which moves clusters and tables, and
 * compact-pieces.c, which moves compressed data, have in common; room for both is found by
 * compact-room.c.
 */

#ifndef Q_COMPACT_H
#define Q_COMPACT_H

#include "check.h"

/* Clusters whose references are gathered at a time, and bytes that move between two syncs. */
#define WINDOW (1u << 20)
#define BATCH  (32u << 20)

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
  size_t n_moves;
  uint64_t batch; /* bytes that move at a time: fewer where there is little room ... */
  bool tight;     /* ... and what has moved is punched at once */
  uint8_t *buffer;
  bool torn; /* some clusters may be counted and not be referred to: going back has failed */
};

/* ---- compact-room.c -------------------------------------------------------------------------- */

/* Writes the count of one cluster, whose block is there. */
int q_compact_set_count (struct compaction *k, uint64_t cluster, uint64_t count);
/* Gives REFS references to each of COUNT clusters from CLUSTER on, in memory: all or none; -ENOMEM.
 */
int q_compact_reserve (struct compaction *k, uint64_t cluster, uint64_t count, uint64_t refs);
/* Takes them away again. */
void q_compact_release (struct compaction *k, uint64_t cluster, uint64_t count, uint64_t refs);
/* Writes what is counted in memory for these clusters; what cannot be written makes K torn. */
int q_compact_settle (struct compaction *k, uint64_t cluster, uint64_t count);
/* Punches what is free of [FROM, END), in clusters, whose counts say so durably. */
int q_compact_punch (struct compaction *k, uint64_t from, uint64_t end);
/* COUNT clusters from CLUSTER on have been moved from: where room is tight, those that are free
 * give theirs back. */
int q_compact_vacate (struct compaction *k, uint64_t cluster, uint64_t count);
/* There was no room for a batch, which is undone.  True: there may be now, or for a smaller one. */
bool q_compact_tighten (struct compaction *k);
/* COUNT free clusters in a row below LIMIT; false if there are none. */
bool q_compact_find_free (struct compaction *k, uint64_t count, uint64_t limit, uint64_t *cluster);

/* ---- compact.c ------------------------------------------------------------------------------- */

/* Tells that DONE clusters were moved.  True: the user has had enough. */
bool q_compact_stop (struct compaction *k, uint64_t done);

/* ---- compact-pieces.c ------------------------------------------------------------------------ */

/* The L2 entry at WORD refers to compressed data; kept if that ends in the window. */
int q_compact_note_piece (struct compaction *k, uint64_t entry, uint64_t word);
/* Moves what was noted.  -EINTR when stopped. */
int q_compact_move_pieces (struct compaction *k);

#endif /* Q_COMPACT_H */
