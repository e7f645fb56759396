/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The state file: metadata tables in shared memory, so that what a killed process acknowledged is
 * not lost with it.
 *
 * While a version 3 image is open for writing, the memory of its tables is a file in the state
 * directory (a tmpfs), one for an image.  A table that was changed and is not yet on disk is there
 * when the process is gone; data went to the page cache before the change was published.  The next
 * open finds the file, proves that nobody else has written the image since, puts the tables on disk
 * in the order that flush.c keeps, and goes on.  After a power cut the file is gone as well, which
 * is the promise of a write that was not flushed.
 *
 * Proof.  The image carries autoclear bit 63 and an extension with a random session id and the
 * number of the last flush (struct qcow2_session).  Any other writer clears the bit; a copy or
 * another file in its place has another inode; an older backup has another session or flush number;
 * and what was put in its place since has a change time later than the last thing we did (alive,
 * which the storage seam renews before each change: file.h).  A file that is older than the
 * machine's last start was not in memory, and what it takes to be on disk may have gone with the
 * power.
 * No proof, no replay: the file is renamed and a warning says so.
 *
 * The bits of dirty bitmaps have a file of their own beside it (bitmap-state.c).
 *
 * Order of calls: q_state_recover, q_state_prepare, q_state_start (by q_open, for writing),
 * q_state_take and q_state_give for each table, q_state_end (by q_close).  The file is locked all
 * the while, so that two servers never share one.
 *
 * The file is only ours to trust as far as it can be checked: magic, sizes and geometry against the
 * image, every entry of every table as if it came from an image, and the whole of what would be
 * replayed by a check of the image as it would be afterwards.
 */

#ifndef Q_STATE_H
#define Q_STATE_H

#include "image.h"

#define Q_STATE_MAGIC   0x656b6361746e6243ull
#define Q_STATE_VERSION 3u
/* Of valid: all of it is in the image, but what is leaked there may not have been freed yet. */
#define Q_STATE_REPLAYED 2u
#define Q_STATE_BOOT     40u /* bytes of the kernel's boot id with its NUL, and some */

/* One table in the file.  A slot is replayed if it is in use and changed != saved. */
struct q_state_slot {
  _Atomic uint32_t in_use;
  uint32_t kind; /* enum q_table_kind */
  uint64_t index;
  _Atomic uint64_t host;
  uint64_t bytes;
  uint64_t offset;          /* of its memory in the file */
  _Atomic uint64_t changed; /* counts changes ... */
  _Atomic uint64_t saved;   /* ... of which so many are on disk */
  uint32_t backed;          /* its memory is reserved in the tmpfs */
  _Atomic uint32_t moving;  /* its place is new, and what points to it may have the old one yet */
};

struct q_state_header {
  uint64_t magic;
  uint32_t version;
  uint32_t cluster_bits;
  uint32_t refcount_order;
  uint32_t n_slots;
  uint8_t session[16];
  uint64_t dev, ino;              /* of the image file */
  uint64_t file_bytes;            /* of this file */
  uint64_t data_offset;           /* of the first slot's memory */
  int64_t clock_skew;             /* the file system's clock less ours, nanoseconds */
  _Atomic uint64_t valid;         /* 1 once all of this is in place; Q_STATE_REPLAYED */
  _Atomic uint64_t sequence;      /* of the last finished flush */
  _Atomic int64_t alive;          /* our clock when the image was last about to be touched, ns */
  _Atomic uint64_t incomplete;    /* some table had to do without a slot */
  _Atomic uint32_t reftable_slot; /* the refcount table that counts; 0 none, else 1 + slot.  The L1
                                   * table that counts is the one that the header points to */
  uint32_t padding;
  char boot[Q_STATE_BOOT]; /* the start of the machine that it was made in */
};

/* What the machine calls the time since it was started; "" if it cannot tell. */
void q_state_boot_id (char boot[Q_STATE_BOOT]);

/* The session extension's data on disk. */
struct qcow2_session {
  uint8_t session[16];
  be64 sequence;
} __attribute__ ((packed));

/* Slots for the L1 table and the refcount table: several, since one that was replaced is kept until
 * pins have drained or a flush has ended. */
enum { Q_STATE_L1 = 0, Q_STATE_REFTABLE = 8, Q_STATE_FIRST = 16 };
#define Q_STATE_SLOTS_OFFSET 4096u

/* Where the memory of slot NUMBER is in a file of N slots for an image with clusters of CLUSTER
 * bytes; that of slot 0 comes right after the slots, and slot N is the end of the file. */
uint64_t q_state_slot_offset (uint64_t n, uint64_t cluster, uint64_t number);

struct q_state; /* the open file; counted, since tables may outlive the image until pins drain */

/* Opens and locks the state file of IMG, whose header has been read, and puts what a killed process
 * left in it on disk, if it can be proven to belong to the image; then *REPLAYED is true and the
 * header must be read anew.  img->state is NULL afterwards if there can be no state file, which is
 * not an error.  -EAGAIN if another process is using it. */
int q_state_recover (struct q_image *img, const char *dir, bool *replayed, struct q_error *err);

/* Empties the file and lays it out for the tables that are about to be read.  If it cannot be made,
 * that is a warning.  Always 0. */
int q_state_prepare (struct q_image *img);
/* Begins the session: puts the mark in the header, the last step of opening. */
int q_state_start (struct q_image *img, struct q_error *err);
/* Ends it.  CLEAN: everything is on disk, so the mark is taken off the image and the file removed;
 * else both stay for the next open. */
int q_state_end (struct q_image *img, bool clean);

/* Memory for a table, zeroed, or NULL: then the caller uses the heap. */
struct q_state_slot *q_state_take (struct q_state *s, enum q_table_kind kind, uint64_t index,
                                   uint64_t host, uint32_t bytes, void **mem);
void q_state_give (struct q_state *s, struct q_state_slot *slot);
/* The refcount table in SLOT is the one that counts from now on. */
void q_state_switch (struct q_state *s, struct q_state_slot *slot);
/* A flush that changed metadata: its number goes to the header with the references, and is
 * finished once it is there. */
int q_state_write_sequence (struct q_image *img);
void q_state_sequence_done (struct q_image *img);

/* Shared by state.c and recover.c. */
struct q_state {
  _Atomic uint32_t refs;
  int fd;
  char *path;
  struct q_state_header *header; /* the mapping */
  struct q_state_slot *slot;
  uint64_t mapped;
  pthread_mutex_t lock; /* the free list */
  uint32_t *free_slot;
  uint32_t n_free;
  bool full; /* said so once */
  bool kept; /* the session ended unclean: what is in use stays so, for the next open */
  bool taken[Q_STATE_FIRST]; /* L1 and refcount tables: in_use is cleared before they are given */
};
bool q_state_session (const struct q_image *img, struct qcow2_session *session);
void q_state_drop (struct q_state *s);

#endif /* Q_STATE_H */
