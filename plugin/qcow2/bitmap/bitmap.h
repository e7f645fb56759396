/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Persistent dirty bitmaps, inside the engine (specification: "Bitmaps extension", "Bitmap
 * directory", "Bitmap table").
 *
 * The parts: bitmap.c is the list of an image's bitmaps and what callers see of them; bits.c the
 * bits of one in memory; bitmap-store.c what is written to the image; bitmap-live.c what opening,
 * closing and resizing do; bitmap-change.c changes of the list and of bits while the image is in
 * use; bitmap-state.c what survives a killed process.
 *
 * Invariants.
 *
 * 1. A bitmap that is enabled has a bit set for every part of the disk that a request may have
 *    changed since it was last cleared, before the request changes it: q_write_begin and the steps
 *    of zero.c mark, inside the gate, what they are about to change.
 * 2. On disk a bitmap is marked in use from before its bits in memory differ from those on disk
 *    until the bits are durable again.  Whoever finds the mark knows that the bits mean nothing.
 *    So bits are saved when no request can set any more: when the bitmap has been disabled, and on
 *    close.  A flush does not save them: until the mark is taken off nobody may use what it wrote,
 *    and the mark must stay as long as there are writes that a power cut may keep or lose.
 * 3. What is on disk is a well-formed image at every point, in use or not: counts before
 *    references, tables before the entry that names them, a new directory complete before the
 *    header names it, what was replaced is freed last.
 * 4. A change of the list, or of what is enabled, takes effect between two writes: the gate is
 *    closed for it.  All that can fail is done before.
 *
 * The state file: bits live in memory that is shared with it, so that after a kill they are
 * complete, and are put on disk by the next open once the state is proven (bitmap-state.c).
 *
 * Locks: bitmap_lock is for the list and for everything that is written; it is taken before the
 * flush and the gate, and held over I/O.  Those of several images are taken in the order of their
 * addresses.  Setting and reading bits takes no lock; whoever holds a bitmap looks at its bits in a
 * pin, for a resize replaces them.
 */

#ifndef Q_BITMAP_H
#define Q_BITMAP_H

#include "image.h"

/* Of those that are made here: the ones that QEMU can read.  Others are read, kept and used as the
 * specification has them: granularity_bits up to 63, and names as long as an entry can say. */
#define Q_BITMAP_MIN_GRANULARITY_BITS 9u
#define Q_BITMAP_MAX_GRANULARITY_BITS 31u
#define Q_BITMAP_MAX_NAME             1023u
#define Q_BITMAP_MAX_BYTES            (512ull << 20) /* of the bits of one */
#define Q_BITMAP_MAX_TOTAL            (2ull << 30)   /* of all that are in memory at once */
#define Q_BITMAP_DIRTY_TRACKING       1u             /* the only type there is */

/* ---- bits.c ---------------------------------------------------------------------------------- */

/* The bits of a disk of SIZE bytes.  On disk a chunk is one entry of the bitmap table: a cluster
 * full of bits. */
struct q_bits {
  uint64_t size;
  uint64_t n; /* bits */
  uint64_t bytes;
  unsigned granularity_bits;
  unsigned chunk_bits; /* log2 of a chunk's bytes */
  uint32_t chunks;
  struct q_shared *shared; /* bitmap-state.c: whose memory they are in; NULL: the heap's */
  uint64_t shared_offset;
  _Atomic uint64_t *word;    /* bit 0 first */
  _Atomic uint8_t changed[]; /* by chunk: differs from what is on disk */
};

/* The bytes of bits that a disk of SIZE bytes takes. */
uint64_t q_bits_bytes (uint64_t size, unsigned granularity_bits);
/* All clear, unchanged.  NULL: no memory. */
struct q_bits *q_bits_new (struct q_image *img, uint64_t size, unsigned granularity_bits);
void q_bits_free (struct q_bits *b);
/* Sets the bits that [offset, offset + len) touches, as far as the disk goes. */
void q_bits_set (struct q_bits *b, uint64_t offset, uint64_t len);
/* Adds to TO, which is clear as far as FROM goes, the bits of FROM, of the same granularity and
 * another size of disk. */
void q_bits_copy (struct q_bits *to, const struct q_bits *from);
/* Sets the bits that TO has for whatever a set bit of FROM covers. */
void q_bits_merge (struct q_bits *to, const struct q_bits *from);
/* Whether the bit for OFFSET is set, and up to where (exclusive, at most END) the same is true. */
bool q_bits_next (const struct q_bits *b, uint64_t offset, uint64_t end, uint64_t *run_end);
uint64_t q_bits_count (const struct q_bits *b); /* that are set */
void q_bits_changed_all (struct q_bits *b);

enum q_chunk_kind { Q_CHUNK_ZEROS, Q_CHUNK_ONES, Q_CHUNK_MIXED };
enum q_chunk_kind q_bits_chunk_kind (const struct q_bits *b, uint32_t chunk);
/* A chunk as it is on disk: a cluster. */
void q_bits_chunk_get (const struct q_bits *b, uint32_t chunk, void *cluster);
/* Sets the bits of a chunk that has none yet: from a cluster, or all of them (NULL). */
void q_bits_chunk_put (struct q_bits *b, uint32_t chunk, const void *cluster);

/* ---- what writers mark ------------------------------------------------------------------------
 */

/* The bits of all that are enabled.  Replaced as a whole while the gate is closed. */
struct q_tracker {
  unsigned n;
  struct q_bits *bits[];
};

/* ---- a bitmap ---------------------------------------------------------------------------------
 */

struct q_bitmap {
  struct q_image *img;
  char *name;     /* what it is called here ... */
  uint8_t *bytes; /* ... and on disk, where that is no text: empty, or with NULs.  Else NULL */
  uint16_t name_size;
  uint8_t type, granularity_bits;
  bool enabled;         /* the auto flag, as it is to be */
  bool inconsistent;    /* was found in use, or cannot be kept up to date: only to be removed */
  bool live;            /* bits in memory count; on disk it is in use */
  const char *unusable; /* why its bits cannot be used; NULL */
  unsigned users;       /* who hold it: it cannot be changed meanwhile */
  struct q_bits *_Atomic bits; /* NULL: not in memory */

  /* on disk */
  uint64_t position; /* of its entry in the directory; Q_BITMAP_NOWHERE: it has none */
  uint32_t flags;
  uint64_t table_offset; /* 0: it has no table */
  uint32_t table_size;
  uint8_t *extra;
  uint32_t extra_size;
  uint64_t *table; /* its entries, in host byte order; NULL: not read */
};
#define Q_BITMAP_NOWHERE UINT64_MAX

/* ---- bitmap.c: all with bitmap_lock held ------------------------------------------------------
 */

/* Reads the directory, once. */
int q_bitmaps_read (struct q_image *img, struct q_error *err);
struct q_bitmap *q_bitmap_find (struct q_image *img, const char *name);
struct q_bitmap *q_bitmap_new (struct q_image *img, const char *name, unsigned granularity_bits);
void q_bitmap_destroy (struct q_bitmap *b);
/* Reads the table if it has not been read. */
int q_bitmap_read_table (struct q_bitmap *b, struct q_error *err);
/* Brings its bits into memory if they are not there. */
int q_bitmap_read_bits (struct q_bitmap *b, struct q_error *err);
/* Why a bitmap that a caller names cannot be used: NULL if it can. */
const char *q_bitmap_objection (const struct q_bitmap *b, bool to_remove);

/* ---- bitmap-store.c: all with bitmap_lock held ------------------------------------------------
 */

/* Marks those that are not marked yet as in use, durably; they become live unless inconsistent. */
int q_bitmaps_mark_in_use (struct q_image *img, struct q_bitmap *const *b, unsigned n,
                           struct q_error *err);
/* Saves the bits of the N live bitmaps in B, into which nobody sets any bit now, and takes their
 * marks off.  When it fails, those that could not be saved stay live, what was written for them is
 * given back, and they can be saved again. */
int q_bitmaps_save (struct q_image *img, struct q_bitmap *const *b, unsigned n,
                    struct q_error *err);

/* Whether [host, host + bytes) begins a cluster and is in clusters that one reference each is
 * counted for, and that hold none of the metadata whose place is known. */
bool q_bitmap_owns (struct q_image *img, uint64_t host, uint64_t bytes);
/* The same for the directory itself. */
bool q_directory_is_own (struct q_image *img);

/* A table of zeros for a bitmap that is not on disk; and gone with it again. */
int q_bitmap_make_table (struct q_bitmap *b);
void q_bitmap_drop_table (struct q_bitmap *b);

int q_leave (struct q_image *img, struct q_leaving *l, uint64_t host, uint64_t bytes);
/* The table of B and all in it.  What cannot be read is leaked. */
int q_bitmap_leave (struct q_image *img, struct q_leaving *l, struct q_bitmap *b);
/* They are not referred to any more; frees the list. */
void q_let_go (struct q_image *img, struct q_leaving *l);
/* They will not be once a directory has taken the place of the one on disk; frees the list. */
void q_let_go_later (struct q_image *img, struct q_leaving *l);

/* A directory that has been written beside the one that counts. */
struct q_new_directory {
  uint64_t host, bytes;
  uint32_t n;
};
/* Writes one with the N bitmaps in LIST, and sees to it that the header can name it.  Nothing
 * refers to it yet.  -E2BIG: it would be too large, or the header has no room. */
int q_directory_write (struct q_image *img, struct q_bitmap *const *list, unsigned n,
                       struct q_new_directory *d);
void q_directory_drop (struct q_image *img, const struct q_new_directory *d);
/* Ends the directory after N entries of BYTES bytes together, durably.  For repairs, of an image
 * whose bitmaps are not in memory. */
int q_directory_cut (struct q_image *img, uint32_t n, uint64_t bytes);
/* Flushes, and makes D the directory; LIST is what it was written from.  Then lets go of the old
 * one, and of LEAVING.  After -ENOSPC and -ENOMEM the old one is still the directory. */
int q_directory_switch (struct q_image *img, struct q_bitmap *const *list,
                        const struct q_new_directory *d, struct q_leaving *leaving);

/* ---- bitmap-live.c --------------------------------------------------------------------------- */

/* Saves those that are live and not enabled, as far as that can be done.  bitmap_lock held. */
void q_bitmaps_save_disabled (struct q_image *img);

/* ---- bitmap-change.c ------------------------------------------------------------------------- */

/* Changes of one image's bitmaps in steps (change.c): begin, prepare, then commit while the gate is
 * closed, then finish when it is open again; or abandon instead of all that follows begin; then
 * end.  bitmap_lock is held from prepare to finish or abandon.  ACTIONS are the caller's until the
 * end. */
struct q_bitmap_changes;
/* Holds what is merged from other images, so that their locks are not needed later. */
int q_bitmap_begin (struct q_image *img, const struct q_bitmap_action *const *actions, unsigned n,
                    struct q_bitmap_changes **changes, struct q_error *err);
int q_bitmap_prepare (struct q_bitmap_changes *c, struct q_error *err);
void q_bitmap_commit (struct q_bitmap_changes *c); /* cannot fail */
int q_bitmap_finish (struct q_bitmap_changes *c, struct q_error *err);
void q_bitmap_abandon (struct q_bitmap_changes *c);
/* Lets go of what begin holds, which takes the locks of the images that it is of, and frees. */
void q_bitmap_end (struct q_bitmap_changes *c);

/* ---- bitmap-state.c -------------------------------------------------------------------------- */

/* Moves bits that nobody sets or looks at to memory that survives a kill, if the image has a state
 * and there is room; else that is said, and they stay where they are. */
void q_bits_share (struct q_image *img, struct q_bits *b);
void q_bits_unshare (struct q_bits *b); /* frees them */

/* The list of bitmaps that a recovery would find: begin, add each, end; then commit, in one
 * store, or drop.  BITS is NULL for one that is on disk as it is to be. */
struct q_shared_record {
  uint8_t *buf;
  uint64_t used, capacity, offset;
  uint32_t n;
  bool wanted, live;
};
void q_shared_record_begin (struct q_image *img, struct q_shared_record *r);
void q_shared_record_add (struct q_shared_record *r, const struct q_bitmap *b,
                          const struct q_bits *bits, bool enabled);
void q_shared_record_end (struct q_image *img, struct q_shared_record *r);
void q_shared_record_commit (struct q_image *img, struct q_shared_record *r);
void q_shared_record_drop (struct q_image *img, struct q_shared_record *r);

#endif /* Q_BITMAP_H */
