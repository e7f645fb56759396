/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Inside the check: counting every reference that an image holds, comparing the counts with its
 * refcounts, and mending what differs.
 *
 *     check.c            the order of things; what the engine calls
 *     check-count.c      struct q_refmap: references per host cluster, in little memory
 *     check-fast.c       L2 tables with nothing wrong in them, on all processors
 *     check-walk.c       everything that holds references (specification: "Header" to "Bitmaps")
 *     check-refcounts.c  the refcount structures (specification: "Host cluster management")
 *     check-repair.c     mending refcounts and flags in place
 *     check-rehearse.c   trying a repair in memory before it is done
 *     check-rebuild.c    making refcount structures anew
 *     check-live.c       checking an image that is in use
 *
 * All metadata is read from the file, none from the engine's caches, so that a check finds what
 * is there and not what the engine believes.
 *
 * Findings are not errors: they are counted in the result and reported as lines.  A function here
 * returns a negative errno only when the check itself cannot go on.
 */

#ifndef Q_CHECK_H
#define Q_CHECK_H

#include <errno.h>

#include "image.h"

/* ---- references per host cluster (check-count.c) --------------------------------------------- */

/* Two bits a cluster, in pieces that are made when first touched, so that the holes of a sparse
 * file cost nothing; a piece in which a cluster has more than three references takes a byte for
 * each, and the few counts that a byte cannot hold live in a hash table beside. */
struct q_refmap_hash {
  struct q_refmap_entry *entry;
  uint64_t n, slots;
};

struct q_refmap {
  uint64_t clusters; /* what can be counted: [0, clusters) */
  struct q_refmap_piece *_Atomic *piece;
  struct q_refmap_hash large; /* counts of 255 and more */
  struct q_refmap_hash l2;    /* how many of the references are to an L2 table */
};

/* Clusters in a piece: the unit in which "nothing is there" can be told at once. */
#define Q_REFMAP_PIECE 65536u

/* The most clusters that a file may have: 128 TiB with 512 byte clusters, more than the format
 * allows with larger ones.  QEMU's check stops at 2^31. */
#define Q_REFMAP_MAX (1ull << 38)

/* -EFBIG or -ENOMEM. */
int q_refmap_init (struct q_refmap *m, uint64_t clusters);
void q_refmap_free (struct q_refmap *m);
int q_refmap_add (struct q_refmap *m, uint64_t cluster);
/* Adds the first reference to as many of the COUNT clusters from CLUSTER on as have none, and
 * returns how many these are, before the first that has one: fast, and may be 0. */
uint64_t q_refmap_add_first (struct q_refmap *m, uint64_t cluster, uint64_t count);
/* A reference as an L2 table; and how many there are of these. */
int q_refmap_add_l2 (struct q_refmap *m, uint64_t cluster);
uint64_t q_refmap_l2 (const struct q_refmap *m, uint64_t cluster);
/* Takes one reference back; there must be one. */
void q_refmap_drop (struct q_refmap *m, uint64_t cluster);
uint64_t q_refmap_get (const struct q_refmap *m, uint64_t cluster);
/* True if nothing was ever noted about any cluster of the piece that CLUSTER is in. */
bool q_refmap_empty_at (const struct q_refmap *m, uint64_t cluster);

/* Marks that a cluster can have. */
enum q_refmap_mark {
  Q_REFMAP_ONE,        /* its recorded refcount is 1 */
  Q_REFMAP_EXCLUSIVE,  /* it holds metadata that nothing else may share */
  Q_REFMAP_REFCOUNTS,  /* it holds refcount structures (surveys only) */
  Q_REFMAP_COMPRESSED, /* it holds compressed data (surveys only) */
  Q_REFMAP_FLAGGED,    /* an active entry has the COPIED flag although the count is not 1 */
  Q_REFMAP_DANGLING,   /* something refers to it although it is past the end of the file */
  Q_REFMAP_MARKS,
};
int q_refmap_set_mark (struct q_refmap *m, uint64_t cluster, enum q_refmap_mark mark);
bool q_refmap_has_mark (const struct q_refmap *m, uint64_t cluster, enum q_refmap_mark mark);
/* Takes MARK from every cluster. */
void q_refmap_clear_mark (struct q_refmap *m, enum q_refmap_mark mark);

/* ---- one check ------------------------------------------------------------------------------- */

struct q_check {
  struct q_image *img;
  unsigned repair; /* what the lines should announce: Q_REPAIR_* */
  struct q_check_result *res;
  void (*report) (void *opaque, const char *line);
  struct q_error *err;
  bool opening;     /* nobody has asked for a repair: what is dropped for good stays */
  bool survey;      /* note what clusters are used for */
  bool behind;      /* counts may be too low, and flags wrong: they are written later */
  unsigned threads; /* 0: as many as there are processors */
  void (*progress) (void *opaque, uint64_t done, uint64_t total); /* in bytes of tables; or NULL */
  bool (*stop) (void *opaque);                                    /* or NULL */
  void *opaque;

  uint64_t file_size; /* bytes */
  uint64_t clusters;  /* that the file has, the last one perhaps in part */
  uint64_t max_count; /* the highest refcount that the width can hold */
  struct q_refmap refs;
  uint8_t *table; /* one cluster: the L2 table or refcount block being read */

  uint64_t *reftable; /* as on disk, in host byte order */
  uint64_t reftable_entries;
  bool no_table; /* the header leads to nothing that can be a refcount table */
  bool *unknown; /* by entry: its block cannot be read, so the refcounts in it are not known */

  /* What was found. */
  bool lost;         /* a table could not be followed: what looks unreferenced may be
                      * what it pointed at */
  bool rebuild;      /* refcounts cannot be mended where they are */
  bool raise, lower; /* some refcount is too low, too high */
  bool flags;        /* some flag in an active L1 or L2 table is wrong */
  bool cut_bitmaps;  /* the bitmap directory makes no sense past the first bitmaps_kept entries, in
                      * bitmaps_bytes bytes */
  uint32_t bitmaps_kept;
  uint64_t bitmaps_bytes;
  bool entries;     /* some L2 entry says what can be taken out of it: a place for zeros where
                     * there can be none, a bitmap or COPIED flag with a compressed cluster */
  uint64_t highest; /* one past the last cluster with a refcount or reference */
};

/* Before each table that is read: 0, or -EINTR if the check is to end. */
static inline int
q_check_go_on (const struct q_check *c)
{
  return c->stop && c->stop (c->opaque)
             ? q_fail (c->err, -EINTR, "%s: the check was stopped", c->img->filename)
             : 0;
}

static inline bool
q_check_aligned (const struct q_check *c, uint64_t offset)
{
  return (offset & (q_cluster_bytes (c->img) - 1)) == 0;
}

/* Fills *RES with what there is to find, mending nothing.  C keeps what was learnt, until it is
 * closed. */
int q_check_look (struct q_check *c);
void q_check_close (struct q_check *c);

/* A line about something that is not counted here. */
void q_check_line (struct q_check *c, const char *fmt, ...) __attribute__ ((format (printf, 2, 3)));
/* Counts a corruption; "ERROR " or, if MENDABLE and errors are being repaired, "Repairing " goes
 * before the line. */
void q_check_corruption (struct q_check *c, bool mendable, const char *fmt, ...)
    __attribute__ ((format (printf, 3, 4)));
/* Whether what the bitmap directory has behind the point where it makes no sense will be dropped.
 */
static inline bool
q_check_cuts_bitmaps (const struct q_check *c)
{
  return c->cut_bitmaps && (c->repair & Q_REPAIR_ERRORS) && !c->opening;
}
/* Counts something that could not be read, after which nothing is proven to be garbage. */
void q_check_unreadable (struct q_check *c, const char *fmt, ...)
    __attribute__ ((format (printf, 2, 3)));

/* ---- check-walk.c ---------------------------------------------------------------------------- */

/* What a region of the file is referenced as. */
enum q_check_use {
  Q_CHECK_DATA,       /* guest data: any number of references may be right */
  Q_CHECK_COMPRESSED, /* the same, compressed */
  Q_CHECK_L2,         /* the same, but only as L2 tables */
  Q_CHECK_EXCLUSIVE,  /* metadata of the image as a whole: one reference */
  Q_CHECK_REFCOUNTS,  /* likewise, but it can be made anew elsewhere */
};

/* Counts a reference to every cluster that [offset, offset + len) touches.  A region that ends a
 * cluster or more past the end of the file is a corruption and counts for nothing: *OK (may be
 * NULL) then becomes false. */
int q_check_count (struct q_check *c, uint64_t offset, uint64_t len, enum q_check_use use,
                   bool *ok);
/* Whether CLUSTER is referred to as an L2 table and as something else as well. */
static inline bool
q_check_is_mixed (const struct q_check *c, uint64_t cluster)
{
  uint64_t l2 = q_refmap_l2 (&c->refs, cluster);

  return l2 > 0 && q_refmap_get (&c->refs, cluster) > l2;
}
/* Deals with those of the ENTRIES of an L1 table, in host byte order, with which nothing at all is
 * wrong, nor with the L2 tables they lead to: counts what they refer to and sets them to 0.  The
 * rest is left for who can say what is wrong. */
int q_check_fast (struct q_check *c, uint64_t *l1, uint32_t entries, bool active);
/* Counts every reference but those to and of the refcount structures; also compares the COPIED
 * flags with the recorded refcounts: Q_REFMAP_ONE must be set. */
int q_check_walk (struct q_check *c);

enum q_entry_kind {
  Q_ENTRY_NONE, /* references nothing */
  Q_ENTRY_STANDARD,
  Q_ENTRY_ZERO, /* standard, with the zero flag and a host cluster */
  Q_ENTRY_COMPRESSED,
};
/* The kind of an L2 entry, by its bits alone.  BITMAP: the second word of an extended entry. */
enum q_entry_kind q_check_entry_kind (const struct q_image *img, uint64_t entry, uint64_t bitmap);
/* 64-bit words that an L2 entry takes. */
unsigned q_check_entry_words (const struct q_image *img);

/* Reads N table entries at OFFSET into ENTRIES, in host byte order. */
int q_check_read_entries (struct q_check *c, uint64_t offset, uint64_t n, uint64_t *entries);

/* ---- check-refcounts.c ----------------------------------------------------------------------- */

/* Reads the refcount table and marks the clusters whose recorded refcount is 1, anew each time. */
int q_check_load_refcounts (struct q_check *c);
/* Counts the references of the header to the refcount table and of that to its blocks. */
int q_check_count_refcounts (struct q_check *c);
/* Takes back what q_check_count_refcounts counted. */
void q_check_drop_refcounts (struct q_check *c);
/* The references to CLUSTER, as far as a refcount can tell. */
uint64_t q_check_references (const struct q_check *c, uint64_t cluster);
/* Compares.  Counts leaks and corruptions. */
int q_check_compare (struct q_check *c);

/* True if refcount table entry INDEX leads to a block; *OFFSET is then the block's. */
bool q_check_refblock (const struct q_check *c, uint64_t index, uint64_t *offset);
/* True if the refcount of CLUSTER cannot be known. */
bool q_check_unknown (const struct q_check *c, uint64_t cluster);
/* Reads block INDEX into c->table.  1, 0 if there is none, or an error. */
int q_check_read_refblock (struct q_check *c, uint64_t index);
/* The recorded refcount of one cluster, read from the file; 0 where there is none. */
uint64_t q_check_recorded (struct q_check *c, uint64_t cluster);

/* ---- check-repair.c -------------------------------------------------------------------------- */

/* Mends what the bits in C->repair allow of what C found.  Writes only what was proven, in an
 * order that leaves no state worse than the one before: refcounts are raised before any is
 * lowered, and the COPIED flag is cleared before and set after. */
int q_check_repair (struct q_check *c);
/* The same, one level down: sets new refcount structures beside the old ones and switches to them
 * (check-rebuild.c). */
int q_check_rebuild (struct q_check *c);

/* ---- check-rehearse.c ------------------------------------------------------------------------ */

/* A file that shows what INNER has and keeps in memory what is written to it: -ENOMEM if that is
 * too much.  Closing it forgets all, and leaves INNER open. */
int q_rehearsal_open (struct q_file *inner, struct q_file **f);
/* Does to INNER what was done to F, in the same order, and tells O's journal; with O->dry_run, only
 * tells. */
int q_rehearsal_perform (struct q_file *f, const struct q_check_options *o);

#endif /* Q_CHECK_H */
