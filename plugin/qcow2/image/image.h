/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Inside the engine: the image and the parts that it is made of.
 *
 * One struct q_image is one layer: a file, its geometry, its tables.  Only the top layer of a
 * chain is ever written; layers below are immutable to us and carry no allocator state.
 *
 * Order of taking things: layout lock -> gate -> claim -> pin -> table stripe -> allocator -> dirty
 * list. Never wait for pins to drain while holding a pin or a claim.
 */

#ifndef Q_IMAGE_H
#define Q_IMAGE_H

#include <pthread.h>
#include <stdatomic.h>

#include "crypt.h"
#include "file.h"
#include "format.h"
#include "probe.h"
#include "qcow2.h"

#define Q_TABLE_STRIPES 32

/* ---- tables: cached metadata (table.c) ------------------------------------------------------ */

/* Metadata is written back in blocks of this size, or of a cluster if that is smaller. */
#define Q_TABLE_BLOCK_BITS 12u

enum q_table_kind { Q_TABLE_L1, Q_TABLE_L2, Q_TABLE_REFTABLE, Q_TABLE_REFBLOCK };

/* A metadata table in memory, as it is on disk.  Entries of 8 bytes are read and written
 * atomically, so that readers need no lock; L2 entries, which may be wider, by entry.h; refcount
 * blocks belong to the allocator's lock. */
struct q_table {
  struct q_image *img;
  enum q_table_kind kind;
  uint64_t host;  /* where it lives; changes only while nothing of it is dirty */
  uint64_t index; /* L2: its L1 index; refcount block: its refcount table index */
  uint32_t bytes;
  unsigned block_bits;
  bool wide;               /* an L2 table whose entries have 16 bytes (entry.h) */
  uint32_t runs;           /* above 0: an L2 table kept as so many runs (runs.h) ... */
  _Atomic uint32_t users;  /* plans and flushes that hold it: not evictable while above 0 */
  _Atomic bool referenced; /* the clock's second chance */
  _Atomic bool listed;     /* on the image's dirty list */
  _Atomic uint64_t fresh;  /* its place, while nothing durable on disk points there yet, so that its
                            * contents may be written at any time; or 0 */
  struct q_table *dirty_next;
  struct q_table *prev, *next; /* the cache's clock ring */
  struct q_state *state;       /* state.h: where its memory is, or NULL for the heap */
  struct q_state_slot *slot;
  _Atomic uint64_t begun, finished; /* wide: changes of both words of an entry (entry.c) */
  union {
    _Atomic uint64_t *entry; /* big-endian */
    uint8_t *mem;
    struct q_entry_run *run; /* ... which never change */
  };
  _Atomic uint64_t dirty[]; /* one bit a block */
};

/* Zeroed, clean, not fresh. */
struct q_table *q_table_new (struct q_image *img, enum q_table_kind kind, uint64_t index,
                             uint64_t host, uint32_t bytes);
void q_table_free (void *table);
/* Gives it another place on disk; nothing of it is dirty, but it may be in a flush that is not
 * over. Then what points to it is changed, and then it is moved. */
void q_table_move (struct q_table *t, uint64_t host);
void q_table_moved (struct q_table *t);
/* It has been unpublished and is only waiting to be freed. */
void q_table_retired (struct q_table *t);
/* A refcount table, complete, becomes the one that counts. */
void q_table_switch (struct q_table *t);
void q_table_mark_dirty (struct q_table *t, uint32_t byte_offset, uint32_t bytes);
bool q_table_is_dirty (const struct q_table *t);

static inline uint64_t
q_entry_get (const struct q_table *t, uint32_t index)
{
  return be64toh (atomic_load_explicit (&t->entry[index], memory_order_acquire));
}

/* Publishes VALUE; the caller marks the table dirty afterwards. */
static inline void
q_entry_set (struct q_table *t, uint32_t index, uint64_t value)
{
  atomic_store_explicit (&t->entry[index], htobe64 (value), memory_order_release);
}

/* A bounded ring of evictable tables, in the order of a clock. */
struct q_table_cache {
  pthread_mutex_t lock;
  struct q_table *hand;
  uint64_t tables, bytes, max_bytes;
};

void q_cache_insert (struct q_table_cache *c, struct q_table *t);
void q_cache_remove (struct q_table_cache *c, struct q_table *t);

/* ---- mapping: the active L1 table and the L2 tables below it (l2.c) ------------------------- */

struct q_l1 {
  uint32_t entries;
  struct q_table *table;           /* the L1 entries themselves */
  _Atomic (struct q_table *) l2[]; /* NULL: not in memory */
};

/* ---- limbo: clusters on their way to being free (alloc.c) ----------------------------------- */

struct q_limbo_entry {
  uint64_t cluster, count; /* one reference less for each of these host clusters */
  uint64_t stamp;          /* pins older than this may still see them */
};

struct q_limbo {
  struct q_limbo_entry *entry;
  size_t n, reserved, capacity;
  size_t n_durable; /* the first so many have left the on-disk references */
  size_t n_marked;  /* and so many will have when the flush under way is done */
  _Atomic uint64_t clusters;
};

/* ---- host clusters that compressed data is being packed into (pack.c) ----------------------- */

#define Q_PACK_TAILS 16u

struct q_pack_tail {
  uint64_t cluster;
  uint32_t used; /* bytes from its start; the rest was never handed out */
};

struct q_pack {
  unsigned n;
  struct q_pack_tail tail[Q_PACK_TAILS];
};

/* ---- header extensions (extensions.c) ------------------------------------------------------- */

/* One extension as found, kept in its order. */
struct q_extension {
  struct q_extension *next;
  uint32_t type, length;
  uint64_t offset; /* of its data in the file */
  uint8_t data[];
};

/* ---- snapshots (snapshot.c) ----------------------------------------------------------------- */

struct q_snapshot {
  uint64_t l1_table_offset;
  uint32_t l1_size;
  struct q_snapshot_info info;  /* id and name point below */
  uint32_t short_vm_state_size; /* as it stands outside of the extra data */
  uint32_t extra_data_size;
  uint8_t *extra_data;
  char *id, *name;
  uint16_t id_size, name_size; /* bytes on disk; any may be among them, NUL too */
};

/* The snapshot table.  Never changed: whoever changes it publishes another one. */
struct q_snapshots {
  uint32_t n;
  struct q_snapshot s[];
};

struct q_counting; /* snapshot-make.c */
struct q_readers;  /* readers.h */

struct q_state; /* state.h */
struct q_below; /* below.c */

/* ---- the gate (gate.c) ---------------------------------------------------------------------- */

#define Q_GATE_COUNTERS 32

struct q_gate {
  struct {
    _Atomic uint64_t count;
    uint8_t line[56]; /* no two of them share a cache line */
  } inside[Q_GATE_COUNTERS];
  _Atomic bool closed;
  pthread_mutex_t lock; /* who closes, and who waits */
  pthread_cond_t changed;
};

/* The calling thread's number, from 1; 0: it has none yet.  No two threads have the same. */
extern _Thread_local uint64_t q_thread_number;
uint64_t q_thread_enroll (void);

/* A number below Q_GATE_COUNTERS for the calling thread: its place in what is counted thread by
 * thread.  Where there are more threads, some share one. */
static inline unsigned
q_thread_slot (void)
{
  uint64_t n = q_thread_number ? q_thread_number : q_thread_enroll ();
  return (unsigned)((n - 1) % Q_GATE_COUNTERS);
}

/* Whether that was the first thread with this slot: what it alone writes needs no lock prefix. */
static inline bool
q_thread_owns_slot (void)
{
  return q_thread_number <= Q_GATE_COUNTERS;
}

void q_gate_init (struct q_gate *g);
void q_gate_destroy (struct q_gate *g);
/* Before anything that changes guest data or a mapping; waits while the gate is closed, or -EAGAIN
 * with Q_NOWAIT.  Whoever may be inside already passes Q_NOWAIT.  Leaving may be on any thread. */
int q_gate_enter (struct q_image *img, unsigned flags);
void q_gate_leave (struct q_image *img);
/* Waits until nobody is inside and keeps the others out.  The caller holds nothing but locks that
 * nobody takes inside. */
void q_gate_close (struct q_image *img);
void q_gate_open (struct q_image *img);

/* ---- counting (tally.c) ---------------------------------------------------------------------- */

/* How often an L2 table was found in memory.  Readers that count share no cache line, and the first
 * thread of each slot, which the loops of a server are, has a counter there that is nobody else's:
 * a locked addition would be the dearest instruction of a mapping. */
struct q_tally {
  struct {
    _Atomic uint64_t own, others;
    uint8_t line[48];
  } slot[Q_GATE_COUNTERS];
};

static inline void
q_tally_hit (struct q_tally *t)
{
#ifndef NBDCOW_NO_STATISTICS /* contrib/bench: what counting costs */
  unsigned slot = q_thread_slot ();
  _Atomic uint64_t *own = &t->slot[slot].own;

  if (q_thread_owns_slot ())
    atomic_store_explicit (own, atomic_load_explicit (own, memory_order_relaxed) + 1,
                           memory_order_relaxed);
  else
    atomic_fetch_add_explicit (&t->slot[slot].others, 1, memory_order_relaxed);
#else
  (void)t;
#endif
}

/* ---- bitmaps (bitmap.h) --------------------------------------------------------------------- */

/* Clusters that will not be referred to once all is written (bitmap.h). */
struct q_leaving {
  struct {
    uint64_t host, bytes;
  } * run;
  size_t n, capacity;
};
struct q_bitmaps {
  struct q_bitmap **bitmap; /* in the order of the directory; NULL: not read */
  unsigned n;
  uint64_t memory; /* of bits, bytes */
  bool relist;     /* the directory on disk is not this list: there was no room to say so ... */
  struct q_leaving leaving; /* ... and this is what only that directory refers to */
};
struct q_tracker;

/* ---- the image ------------------------------------------------------------------------------ */

struct q_image {
  char *filename;
  struct q_file *file; /* metadata, and compressed data, are here ... */
  struct q_file *data; /* ... and guest data here: the same file, unless a data file is external */
  struct q_crypt *crypt; /* NULL: not encrypted */
  struct q_file *guest;  /* what guest data are read and written through: data, or what encrypts on
                          * top of it (crypt.h) */
  const struct q_file_opener *opener;
  enum q_lock lock;
  enum q_format format;
  bool read_only; /* as opened */
  bool repairing; /* likewise: what is damaged and not needed for a check does not keep it out */
  bool stable;    /* its bytes never change while open: not writable */
  bool discard;
  bool expects_backing; /* q_expect_backing */
  bool discard_no_unref;
  bool closing;          /* no request is left that could hold a pin on us */
  _Atomic int sticky;    /* errno of the metadata failure that made it read-only, or 0 */
  _Atomic uint64_t size; /* virtual, bytes */
  struct q_image *backing;
  struct q_below *below; /* below.c: of the top layer of a long chain, else NULL */

  /* the header, in host byte order (header.c) */
  unsigned version;
  unsigned cluster_bits;
  unsigned subcluster_bits; /* cluster_bits unless L2 entries are extended */
  unsigned l2_bits;         /* entries of an L2 table: 1 << l2_bits */
  unsigned refcount_order;
  uint32_t crypt_method;
  uint32_t header_length;
  uint8_t compression_type;
  _Atomic uint64_t incompatible, compatible, autoclear;
  pthread_mutex_t features_lock; /* while the three are written */
  uint64_t backing_file_offset;
  uint32_t backing_file_size;
  uint32_t l1_size;
  uint64_t l1_offset;
  uint64_t reftable_offset;
  uint32_t reftable_clusters;
  uint32_t nb_snapshots; /* as the header has it */
  uint64_t snapshots_offset;
  uint64_t snapshots_bytes;
  struct q_extension *extensions;
  bool extensions_marked;     /* an end marker stands at extensions_end */
  uint64_t extensions_end;    /* file offset of the end marker */
  char *backing_file;         /* as recorded */
  char *backing_format;       /* as recorded, or NULL */
  char *backing_path;         /* resolved */
  char *data_file;            /* as recorded, or NULL */
  char *data_path;            /* as opened */
  bool data_raw;              /* the data file is the disk at all times (datafile.c) ... */
  _Atomic bool raw_unsettled; /* ... and some entries that say so are not durable */
  pthread_mutex_t raw_lock;   /* who changes entries because of that */
  _Atomic uint32_t nb_bitmaps;
  uint64_t bitmap_dir_offset, bitmap_dir_size;
  bool bitmaps_lost; /* the extension that leads to them cannot be right (only in repairs) */
  uint64_t crypto_offset, crypto_length;
  struct q_snapshots *_Atomic snapshots; /* read under a pin; NULL: not read, or there are none */
  struct q_counting *_Atomic counting;   /* a snapshot is being made */
  struct q_readers *readers;             /* of the same file; NULL: not joined (readers.h) */
  struct q_image *readers_next;
  bool readers_locked;
  bool beside_writer; /* the file was being written when it was opened: its refcounts, which a
                       * reader does without, have not been read */
  uint64_t shows;     /* the snapshot whose L1 table is there; 0: the present state */

  /* mapping (l2.c) */
  struct q_l1 *_Atomic l1;
  struct q_table_cache *l2_cache; /* one for the whole chain, the top image's */
  struct q_table_cache l2_cache_own;
  pthread_mutex_t stripe[Q_TABLE_STRIPES]; /* by L1 index: loading, creating, moving L2 tables */

  struct q_tally tally;        /* L2 tables found in memory ... */
  _Atomic uint64_t l2_misses;  /* ... and read */
  pthread_mutex_t layout_lock; /* one at a time: resizing, making and dropping snapshots */
  struct q_gate gate;

  /* claims (claim.c) */
  pthread_mutex_t claim_lock;
  pthread_cond_t claim_released;
  struct q_plan_claim *claims;

  /* who watches the highest allocated offset (highest.c) */
  pthread_mutex_t watch_lock;
  _Atomic uint64_t watch_above; /* called when that is above this; UINT64_MAX: nobody is */
  q_highest_fn watch_fn;        /* these two under watch_lock */
  void *watch_opaque;

  /* allocator: refcounts, limbo, highest offset; all under alloc_lock (refcount.c, alloc.c) */
  pthread_mutex_t alloc_lock;
  struct q_table *reftable;
  struct q_table *old_reftables; /* replaced while a flush held them; freed when it ends */
  struct q_table **refblock;     /* by refcount table index; NULL: not in memory */
  uint32_t reftable_entries;
  struct q_table_cache refblock_cache;
  uint64_t refblock_hits, refblock_misses;
  uint64_t free_hint;       /* no free cluster below this index */
  _Atomic uint64_t highest; /* highest allocated offset, bytes, exclusive */
  uint64_t device_size;     /* of a block device, as last asked */
  uint64_t hole_from;       /* bytes at and past this that were never allocated read as zeros */
  struct q_limbo limbo;     /* freed by mapping changes: wait for a flush, then for pins */
  struct q_limbo dropped;   /* never referenced (aborted plans): wait for pins only */
  struct q_pack pack;       /* host clusters with room for more compressed data */
  bool leaked;              /* some counts stay too high: the dirty bit stays set */
  bool reftable_moved;      /* the header does not point to the table in memory yet */

  /* dirty metadata and the group commit (table.c, flush.c) */
  pthread_mutex_t dirty_lock;
  struct q_table *dirty_list;
  _Atomic uint64_t dirty_tables;
  uint64_t dirty_max;           /* more dirty tables than this: writers flush first */
  _Atomic bool needs_sync;      /* data was written since the last sync began ... */
  _Atomic bool file_needs_sync; /* ... and metadata, apart from a round of the flush */
  pthread_mutex_t flush_lock;
  pthread_cond_t flush_done;
  uint64_t flush_requested, flush_finished;
  int flush_result;
  bool flush_running;
  _Atomic uint64_t flush_rounds, metadata_rounds;
  uint64_t highest_recorded; /* the value in the header on disk */

  pthread_mutex_t bitmap_lock; /* bitmap.h says for what */
  struct q_bitmaps bitmaps;
  struct q_tracker *_Atomic tracker; /* the bits that writers set; NULL: none */
  struct q_shared *shared;           /* bits that survive a killed process; NULL: no such file */

  struct q_state *state;       /* survives a killed process (state.h); NULL: no such file */
  struct q_deflate *deflate;   /* deflate.c: NULL unless compressed clusters can be written */
  struct q_inflated *inflated; /* compress.c: recently inflated clusters */
  _Atomic uint64_t inflate_epoch;
};

/* ---- small helpers -------------------------------------------------------------------------- */

static inline uint64_t
q_cluster_bytes (const struct q_image *img)
{
  return 1ull << img->cluster_bits;
}

static inline uint64_t
q_round_up (uint64_t v, uint64_t align)
{
  return (v + align - 1) & ~(align - 1);
}

static inline uint64_t
q_div_up (uint64_t v, uint64_t by)
{
  return v / by + (v % by != 0);
}

static inline uint64_t
q_min (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* ---- error.c -------------------------------------------------------------------------------- */

/* Sets the text unless ERR is NULL or already has one; returns CODE for "return q_fail (...)". */
int q_fail (struct q_error *err, int code, const char *fmt, ...)
    __attribute__ ((format (printf, 3, 4)));
/* Puts "PREFIX: " before the text. */
void q_error_prefix (struct q_error *err, const char *fmt, ...)
    __attribute__ ((format (printf, 2, 3)));
void q_log (enum q_log_level level, const char *fmt, ...) __attribute__ ((format (printf, 2, 3)));
/* Something that the metadata says cannot be true: logs it, makes the image read-only and sets
 * the corrupt bit (version 3).  Returns -EIO. */
int q_corrupt (struct q_image *img, const char *fmt, ...) __attribute__ ((format (printf, 2, 3)));
/* A metadata write failed: logs it once and makes the image read-only (invariant 7).  Returns
 * CODE, or -EIO instead of what could be tried again: -ENOSPC and -ENOMEM. */
int q_stick (struct q_image *img, int code, const char *what);
/* 0, or the errno that writes must fail with. */
int q_writable (struct q_image *img);

/* ---- header.c, extensions.c ------------------------------------------------------------------ */

/* Reads and checks the header, extensions and names into a zeroed IMG whose file is open. */
int q_header_read (struct q_image *img, struct q_error *err);
/* Whether there can be a refcount table where the header has it.  q_header_read says so, but not of
 * an image that is opened to be repaired. */
int q_header_check_reftable (const struct q_image *img, uint64_t file_size, struct q_error *err);
void q_header_free (struct q_image *img);
/* Single-sector updates in place; each is one write, not synced. */
int q_header_write_features (struct q_image *img);
int q_header_write_l1 (struct q_image *img);
int q_header_write_size (struct q_image *img);
int q_header_write_disk (struct q_image *img, uint64_t size, uint32_t l1_size, uint64_t l1_offset);
int q_header_write_snapshots (struct q_image *img, uint32_t n, uint64_t offset);
/* Sets or clears the dirty bit, durably.  Nothing in version 2, which has none. */
int q_header_set_dirty (struct q_image *img, bool dirty);
int q_header_write_reftable (struct q_image *img, uint64_t offset, uint32_t clusters);
/* Appends an extension so that a crash at any point leaves a valid header; syncs.  -E2BIG if the
 * first cluster has no room for it. */
int q_header_append_extension (struct q_image *img, uint32_t type, const void *data,
                               uint32_t length);
/* Takes the extension out, in one write; syncs.  Its room is used again by one of the same
 * length. */
int q_header_drop_extension (struct q_image *img, uint32_t type);

/* Parses the area [start, end) of the file given in BUF (which begins at file offset 0). */
int q_extensions_parse (struct q_image *img, const uint8_t *buf, uint64_t start, uint64_t end,
                        struct q_error *err);
struct q_extension *q_extension_find (const struct q_image *img, uint32_t type);
/* Sees to it that a feature name table names nbdcow's autoclear bit, where there is room. */
int q_header_name_session (struct q_image *img);
/* A feature name table with all features that there are. */
#define Q_N_FEATURES 9
void q_feature_names (struct qcow2_feature_name names[Q_N_FEATURES]);
/* The name that the image's own feature name table, or else the specification, has for a bit. */
const char *q_feature_name (const struct q_image *img, unsigned type, unsigned bit, char name[64]);

/* ---- highest.c: the highest allocated offset ------------------------------------------------- */

/* Proves the recorded value against the refcounts (DESIGN section 5). */
int q_highest_open (struct q_image *img, struct q_error *err);
/* It has been raised above what somebody watches. */
void q_highest_tell (struct q_image *img);
/* Records the present value in the header if it changed; not synced. */
int q_highest_persist (struct q_image *img);

/* ---- datafile.c: external data files --------------------------------------------------------- */

static inline bool
q_has_data_file (const struct q_image *img)
{
  return img->incompatible & Q_INCOMPAT_DATA_FILE;
}
/* Opens what IMG has its data in, with FLAGS of q_file_flags; locks it.  TOP: the top of the chain,
 * NULL if that is IMG.  CHOSEN: the data file that the user names; NULL: what IMG says.  img->data
 * stays NULL if the options want metadata alone. */
int q_data_open (struct q_image *img, const struct q_image *top, const char *chosen,
                 const struct q_open_options *opts, unsigned flags, struct q_error *err);
/* The last step of opening for writing: a raw data file is as long as the disk. */
int q_data_start (struct q_image *img, struct q_error *err);
void q_data_close (struct q_image *img);
/* True if the range is a hole that reads as zeros. */
bool q_data_is_hole (struct q_image *img, uint64_t offset, uint64_t len);
/* The range is let go of; hold the claim on it. */
void q_data_punch (struct q_image *img, uint64_t offset, uint64_t len);
/* Reserves space for a range whose bytes do not count. */
int q_data_reserve (struct q_image *img, uint64_t offset, uint64_t len);
/* Before the disk grows to SIZE. */
int q_data_grow (struct q_image *img, uint64_t size);
/* Zeroes and discards in img->data itself: raw images and raw data files. */
int q_data_zero (struct q_image *img, uint64_t offset, uint64_t len, bool unmap, bool provision);
int q_data_discard (struct q_image *img, uint64_t offset, uint64_t len);
/* Makes every cluster of the range one to be written in place, durably: raw data files.  Hold
 * nothing. */
int q_data_settle (struct q_image *img, uint64_t offset, uint64_t len);

/* ---- snapshot.c ------------------------------------------------------------------------------ */

int q_snapshots_read (struct q_image *img, struct q_error *err);
/* Makes the snapshot with this id, or else this name, what the image shows; it is read-only. */
int q_snapshot_select (struct q_image *img, const char *id_or_name, struct q_error *err);
void q_snapshots_free (struct q_image *img);
uint32_t q_snapshots_count (const struct q_image *img);
/* The one with this id, or NULL; with this name.  Hold a pin, or what keeps the list. */
const struct q_snapshot *q_snapshot_by_id (const struct q_image *img, const char *id);
const struct q_snapshot *q_snapshot_by_name (const struct q_image *img, const char *name);
/* 0 if its L1 table can be what it says. */
int q_snapshot_check (struct q_image *img, const struct q_snapshot *s, struct q_error *err);
/* A new list: those there are but DROP (or NULL), and a copy of ADD (or NULL).  The caller frees it
 * with q_snapshots_dispose, or has it written. */
int q_snapshots_edit (struct q_image *img, const struct q_snapshot *drop,
                      const struct q_snapshot *add, struct q_snapshots **list, struct q_error *err);
void q_snapshots_dispose (void *list);
/* Bytes from the entry of S in the table to the next one. */
uint64_t q_snapshot_entry_bytes (const struct q_snapshot *s);
/* Bytes that LIST takes on disk. */
uint64_t q_snapshots_bytes (const struct q_image *img, const struct q_snapshots *list);
/* Writes LIST to the clusters at HOST, which are the caller's and counted on disk, points the
 * header to it, and publishes it: from the write to the header on, LIST belongs to the image, and
 * *SWITCHED is true.  The old table's clusters are let go of.  The caller has locked the readers:
 * -EBUSY if one of them shows a snapshot that is not in LIST. */
int q_snapshots_write (struct q_image *img, struct q_snapshots *list, uint64_t host,
                       bool *switched);
/* All of that: the list without DROP (or NULL) in clusters of its own.  Sets the dirty bit. */
int q_snapshots_replace (struct q_image *img, const struct q_snapshot *drop, bool *switched,
                         struct q_error *err);
/* Before the disk gets another size: snapshots that do not say how large theirs is (version 2)
 * would have it from then on.  The layout lock is held. */
int q_snapshots_record_sizes (struct q_image *img, struct q_error *err);

/* ---- bitmap-live.c: for who changes the disk ------------------------------------------------- */

/* On opening for writing: reads what is to be kept up to date.  Before the session begins. */
int q_bitmaps_open (struct q_image *img, struct q_error *err);
/* Marks it as in use.  Once the session has begun, before the first write. */
int q_bitmaps_start (struct q_image *img, struct q_error *err);
/* Saves them; nobody writes any more. */
int q_bitmaps_close (struct q_image *img, struct q_error *err);
void q_bitmaps_free (struct q_image *img);

/* Bits that survive a killed process (bitmap-state.c).  Recovery saves what the file beside IMG's
 * state file has, if it is from this session; img->file is the image with all tables on disk. */
struct qcow2_session;
int q_shared_recover (struct q_image *img, const struct qcow2_session *session,
                      struct q_error *err);
/* What is beside the state file is of no use. */
void q_shared_forget (struct q_image *img);
void q_shared_close (struct q_image *img, bool keep);

/* Where the disk is about to change, or has been asked to, whether it does or not.  Before the
 * change; inside the gate. */
void q_tracker_mark (const struct q_tracker *t, uint64_t offset, uint64_t len);
static inline void
q_bitmaps_mark (struct q_image *img, uint64_t offset, uint64_t len)
{
  const struct q_tracker *t = atomic_load_explicit (&img->tracker, memory_order_acquire);

  if (t)
    q_tracker_mark (t, offset, len);
}

/* Guest clusters [FIRST, END), which are or were on the disk, become unallocated (zero.c).  What is
 * below shows then, if they still are. */
int q_empty_clusters (struct q_image *img, uint64_t first, uint64_t end);

/* Bitmaps for a disk of another size: prepare (everything that can fail, before the size changes),
 * then commit (once it has; closes the gate for a moment) or abort.  What is new is dirty where
 * writes are recorded: a disk that was larger once had something else there, and one that goes back
 * to a snapshot has. */
struct q_bitmaps_resize;
int q_bitmaps_resize_prepare (struct q_image *img, uint64_t size, struct q_bitmaps_resize **resize,
                              struct q_error *err);
void q_bitmaps_resize_commit (struct q_bitmaps_resize *resize);
void q_bitmaps_resize_abort (struct q_bitmaps_resize *resize);

/* ---- grace.c: pins --------------------------------------------------------------------------- */

/* A stamp for something that has just been unpublished; once it has passed, no pin that could
 * have seen it is left. */
uint64_t q_grace_stamp (void);
bool q_grace_passed (uint64_t stamp);
/* Moves time on as far as the pins allow; cheap. */
void q_grace_advance (void);
/* Waits until every pin of now is gone.  The caller holds none, nor a claim, nor the gate closed.
 */
void q_grace_drain (void);
/* Frees PTR with FN once every pin of today is gone. */
void q_grace_retire (void *ptr, void (*fn) (void *));

/* ---- l2.c ------------------------------------------------------------------------------------ */

int q_l2_open (struct q_image *img, struct q_error *err);
void q_l2_close (struct q_image *img);

/* The L2 table for L1 index INDEX, for reading under a pin.  *T is NULL if there is none: every
 * cluster below it is unallocated.  -EAGAIN with Q_NOWAIT if it would have to be read. */
int q_l2_get (struct q_image *img, uint64_t index, unsigned flags, struct q_table **t);
/* The same for changing: created, or moved to a cluster of our own, as needed, and held until
 * q_l2_release. */
int q_l2_hold (struct q_image *img, uint64_t index, unsigned flags, struct q_table **t);
void q_l2_release (struct q_table *t);
/* The same as it is, for changing COPIED flags: not created (*T is NULL if there is none) and not
 * moved.  *OWN: nobody else refers to it.  The caller holds the claim on all of its range, or has
 * closed the gate. */
int q_l2_keep (struct q_image *img, uint64_t index, struct q_table **t, bool *own);
void q_l1_set_copied (struct q_image *img, uint64_t index, bool copied);
/* Makes room for ENTRIES in the L1 table.  The caller holds the flush. */
int q_l1_grow (struct q_image *img, uint32_t entries);
/* Another L1 table, which is on disk at HOST already, to be switched to or freed. */
int q_l1_new (struct q_image *img, const uint64_t *entry, uint32_t entries, uint64_t host,
              struct q_l1 **l1);
void q_l1_free (struct q_l1 *l1);
/* Makes it, and SIZE, what the disk is: one write to the header.  The gate is closed, the flush is
 * held, and nothing is dirty.  The clusters of the old one, and what it refers to, are the
 * caller's to let go of. */
int q_l1_switch (struct q_image *img, struct q_l1 *l1, uint64_t size);

/* ---- claim.c (invariant 4) ------------------------------------------------------------------- */

/* Claims guest clusters FIRST to LAST.  Waits for an overlapping claim, or -EAGAIN with Q_NOWAIT.
 * C is the caller's memory and stays linked until q_claim_release. */
int q_claim_take (struct q_image *img, struct q_plan_claim *c, uint64_t first, uint64_t last,
                  unsigned flags);
void q_claim_release (struct q_image *img, struct q_plan_claim *c);

/* ---- refcount.c: all under alloc_lock -------------------------------------------------------- */

int q_refcount_open (struct q_image *img, struct q_error *err);
void q_refcount_close (struct q_image *img);
/* Frees replaced refcount tables; called when no flush is writing.  alloc_lock not held. */
void q_refcount_free_old (struct q_image *img);
uint64_t q_refblock_entries (const struct q_image *img); /* counts in one block */
int q_refcount_get (struct q_image *img, uint64_t cluster, unsigned flags, uint64_t *count);
/* Creates the block if need be (also grows the table). */
int q_refcount_set (struct q_image *img, uint64_t cluster, unsigned flags, uint64_t count);
/* First free cluster at or after FROM, and how many are free from there, at most MAX.  Clusters
 * past the end of the table count as free. */
int q_refcount_find_free (struct q_image *img, uint64_t from, uint64_t max, unsigned flags,
                          uint64_t *cluster, uint64_t *count);
/* COUNT contiguous free clusters, now with refcount 1. */
int q_refcount_take_run (struct q_image *img, uint64_t count, uint64_t *cluster);
/* Highest cluster in [FLOOR, CEILING) with a count above 0, plus one; FLOOR if there is none. */
int q_refcount_top (struct q_image *img, uint64_t floor, uint64_t ceiling, uint64_t *top);
/* The highest count that the image can hold. */
uint64_t q_refcount_max (const struct q_image *img);
/* Reads count INDEX of the block in MEM, whatever the width. */
uint64_t q_refblock_read (const uint8_t *mem, unsigned order, uint64_t index);
void q_refblock_write (uint8_t *mem, unsigned order, uint64_t index, uint64_t count);

/* ---- alloc.c --------------------------------------------------------------------------------- */

void q_alloc_lock (struct q_image *img);
bool q_alloc_trylock (struct q_image *img);
void q_alloc_unlock (struct q_image *img);
/* One run of up to WANT clusters, each with refcount 1; *GOT says how many.  *FRESH: they are
 * holes that read as zeros.  alloc_lock held. */
int q_alloc_run (struct q_image *img, uint64_t want, unsigned flags, uint64_t *host, uint64_t *got,
                 bool *fresh);
/* One cluster for a table, with its space on disk reserved, so that writing it later does not meet
 * a full disk.  alloc_lock held. */
int q_alloc_metadata (struct q_image *img, unsigned flags, uint64_t *host);
/* Clusters that were allocated and will not be referred to after all.  alloc_lock not held. */
void q_alloc_drop (struct q_image *img, uint64_t cluster, uint64_t count);
/* Takes one off the counts of COUNT clusters at CLUSTER, now: neither the disk has this reference
 * nor can a pin see it.  alloc_lock not held. */
int q_alloc_release (struct q_image *img, uint64_t cluster, uint64_t count);
/* COUNT contiguous clusters for a table, durable with the next flush.  alloc_lock not held. */
int q_alloc_table (struct q_image *img, uint64_t count, uint64_t *cluster);
/* Reserves disk space for COUNT clusters at CLUSTER: -ENOSPC now rather than at the flush. */
int q_alloc_reserve_space (struct q_image *img, uint64_t cluster, uint64_t count);
/* Raises the highest allocated offset to cover COUNT clusters at CLUSTER.  alloc_lock held. */
void q_alloc_raise (struct q_image *img, uint64_t cluster, uint64_t count);
/* True if COUNT clusters at CLUSTER hold the header, L1, refcount or snapshot table. */
bool q_alloc_is_fixed_metadata (const struct q_image *img, uint64_t cluster, uint64_t count);

/* Room in limbo for N more entries, so that q_limbo_add cannot fail; given back by using or
 * cancelling.  alloc_lock held. */
int q_limbo_reserve (struct q_limbo *l, size_t n);
void q_limbo_cancel (struct q_limbo *l, size_t n);
void q_limbo_add (struct q_limbo *l, uint64_t cluster, uint64_t count);
/* Frees what both the flush and the pins have let go. */
int q_limbo_release (struct q_image *img);

/* ---- pack.c: all under alloc_lock ------------------------------------------------------------ */

/* Room for the first *TAKEN (at least one) of N pieces of these SIZEs, each less than a cluster,
 * one after the other from *HOST on; each piece gets one reference to each of the one or two host
 * clusters that it touches.  -EFBIG: no descriptor can say where that would be; otherwise as
 * q_alloc_run. */
int q_pack_take (struct q_image *img, const uint32_t *size, unsigned n, uint64_t *host,
                 unsigned *taken);
/* These are about to have no reference left. */
void q_pack_forget (struct q_image *img, uint64_t cluster, uint64_t count);
/* Nobody writes any more: a file that ends inside a sector of compressed data is made to end with
 * it, for readers that take the descriptor's word for how much there is. */
void q_pack_close (struct q_image *img);

/* ---- flush.c --------------------------------------------------------------------------------- */

/* For those who must have the metadata still (resize.c): while held, nobody flushes but the caller,
 * by q_flush_round, or by its three steps: copy what is dirty to *ROUND, which may need a moment in
 * which nothing changes; write it, and make it durable; end, always, with what those two have
 * returned: after a failure all of it is dirty again, so that what was copied must not be shared by
 * then.  An L2 table may be given another place after the first step. */
struct q_flush_round;
void q_flush_hold (struct q_image *img);
void q_flush_let_go (struct q_image *img);
int q_flush_round (struct q_image *img);
int q_flush_copy (struct q_image *img, struct q_flush_round **round);
int q_flush_write (struct q_image *img, struct q_flush_round *round);
int q_flush_end (struct q_image *img, struct q_flush_round *round, int r);
/* After -ENOSPC, holding nothing: true if a flush let go of clusters that may do for another try.
 */
bool q_flush_frees_space (struct q_image *img);
/* Whether anything is not on stable storage yet. */
bool q_flush_is_due (struct q_image *img);
/* Called by writers that hold nothing: flushes if too much is dirty or in limbo. */
int q_flush_throttle (struct q_image *img);

/* ---- map.c ----------------------------------------------------------------------------------- */

/* 1 if the range reads as zeros, 0 if it may not, or an error.  Hold a pin. */
int q_reads_zero (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags);
/* q_pread for callers that hold a pin. */
int q_pread_pinned (struct q_image *img, void *buf, uint64_t offset, uint64_t len);

/* ---- below.c ----------------------------------------------------------------------------------
 */

/* Once the chain below TOP is open.  Does nothing for chains that gain nothing by it. */
int q_below_open (struct q_image *top);
void q_below_close (struct q_image *top);
/* Where to look for what is at OFFSET and not in the top: the layer known to answer for it, or the
 * first one below the top.  *DEPTH is where that is, and *LEN is cut to what it holds for. */
struct q_image *q_below_find (const struct q_below *b, uint64_t offset, unsigned *depth,
                              uint64_t *len);
/* The layer at DEPTH was found to answer: it has the cluster, or it is the last one. */
void q_below_found (struct q_below *b, uint64_t offset, unsigned depth);

/* ---- write.c: what zero.c shares ------------------------------------------------------------- */

/* As q_pwrite, of zeros. */
int q_write_zeros (struct q_image *img, uint64_t offset, uint64_t len);

static inline void
q_note_data_written (struct q_image *img)
{
  if (!atomic_load_explicit (&img->needs_sync, memory_order_acquire))
    atomic_store_explicit (&img->needs_sync, true, memory_order_release);
}

/* ---- compress.c ------------------------------------------------------------------------------ */

int q_inflate_open (struct q_image *img);
void q_inflate_close (struct q_image *img);
int q_inflate_read (struct q_image *img, uint64_t host, uint32_t csize, uint32_t skip, uint32_t len,
                    void *buf);
/* How many of the CSIZE bytes at IN it takes to fill the cluster at OUT; 0 if they do not, or not
 * exactly. */
uint32_t q_inflate_measure (struct q_image *img, const uint8_t *in, uint32_t csize, uint8_t *out);
/* Clusters that may have held compressed data are being reused: forget them. */
void q_inflate_forget (struct q_image *img);

/* ---- deflate.c ------------------------------------------------------------------------------- */

/* LEVEL 0 is the default. */
int q_deflate_open (struct q_image *img, int level, struct q_error *err);
void q_deflate_close (struct q_image *img);
/* Takes what one thread needs to compress; NULL without memory.  Give it back. */
struct q_deflator;
struct q_deflator *q_deflator_take (struct q_image *img);
void q_deflator_give (struct q_image *img, struct q_deflator *d);
/* Its memory for what is compressed: this many bytes, at least two clusters. */
uint8_t *q_deflator_buffer (struct q_deflator *d);
size_t q_deflator_room (const struct q_image *img);
/* Compresses the cluster at IN to OUT, where there is room for one.  How many bytes it becomes; 0:
 * not fewer than it has.  No lock needed. */
uint32_t q_deflator_run (struct q_image *img, struct q_deflator *d, const void *in, uint8_t *out);

/* ---- check.c --------------------------------------------------------------------------------- */

/* Rebuilds refcounts after the dirty bit was found set.  The image is not yet open for writing. */
int q_check_repair_dirty (struct q_image *img, struct q_error *err);

#endif /* Q_IMAGE_H */
