/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The qcow2 engine: the one public header.
 *
 * What it is.  An engine that answers *where* the bytes of a virtual disk are, and keeps the
 * metadata that says so consistent on disk.  Moving the bytes is the caller's business (a
 * server's event loop) or that of the blocking calls at the end of this header, which are built on
 * the same parts.  Images are qcow2 (docs/interop/qcow2.rst in QEMU's sources is the
 * specification; its sections are named below) or raw.
 *
 * How to call it, in order.
 *
 *     q_open_options_init (&opts);            then set what differs from the defaults
 *     q_open (&img, "disk.qcow2", &opts, &err);
 *         q_pread / q_pwrite / q_zero / q_discard / q_flush ...     any thread, any number at once
 *     q_close (&img, &err);                   when no call is in flight any more
 *
 * Mapping, for callers that move the bytes themselves:
 *
 *     pin = q_pin ();                         extents are valid only inside a pin
 *     n = q_map (img, offset, len, extents, MAX, Q_NOWAIT);
 *     ... read the extents' bytes ...
 *     q_unpin (pin);                          on the thread that took it
 *
 * Writing, for callers that move the bytes themselves:
 *
 *     pin = q_pin ();
 *     q_write_begin (img, offset, len, Q_NOWAIT, &plan);   may cover less than len: plan.len
 *     r = q_write_data (&plan, buf);          or the caller's own I/O on plan.run[]
 *     r == 0 ? q_write_commit (&plan) : q_write_abort (&plan);
 *     q_unpin (pin);
 *
 * Units.  Offsets and lengths are bytes; "offset" is a guest offset and "host" an offset in a file
 * unless a name says otherwise.  Cluster indexes never appear in this interface.
 *
 * Errors.  Every int function returns 0 (or a count) or a negative errno.  Those that a person
 * waits for (open, create, close, check) also fill a struct q_error with one line that names the
 * file, the field, the value and what would be right.  The data path returns an errno alone; what a
 * person must know (a metadata write failed, corruption was found) goes to the log, once.
 *
 * Threads.  All calls may be made from any thread at any time between q_open and q_close, each
 * beside any other, but for these:
 *
 *   - q_close is the last call, with no other under way.
 *   - For an image that nobody else uses meanwhile: q_set_backing, q_expect_backing, q_amend,
 *     q_check_image, q_check, q_compact, q_survey.  (q_is_sparse may be wrong beside writes.)
 *   - q_preallocate and q_empty: nobody else writes to the range meanwhile.
 *   - q_get_bitmaps, q_bitmap_hold, q_bitmap_release, and all that changes the image as a whole
 *     (q_resize, q_shrink, q_snapshot_*, q_bitmap_change, q_change, q_change_keys), may wait for
 * one another, for seconds, and do I/O: not on a thread that serves requests.  None of them in a
 * pin.
 *
 * What asks (q_size, q_get_info, q_get_snapshots, q_highest_offset, q_read_only, ...) never waits
 * for I/O but that of a system call about the file's size.  What it answers was so at one instant.
 * Overlapping requests in flight at once are served in an undefined order, as on a disk.
 */

#ifndef Q_QCOW2_H
#define Q_QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct q_image; /* an open image with the chain below it */
struct q_file;  /* one open file: the storage seam, see file.h */

/* ---- errors and log ------------------------------------------------------------------------ */

struct q_error {
  char text[1024]; /* one line without a newline; "" if no error */
};

enum q_log_level { Q_LOG_ERROR, Q_LOG_WARNING, Q_LOG_INFO, Q_LOG_DEBUG };

/* Called from any thread; TEXT is one line without a newline.  The default writes errors and
 * warnings to stderr.  Set it before the first q_open. */
typedef void (*q_log_fn) (void *opaque, enum q_log_level level, const char *text);
void q_set_log (q_log_fn fn, void *opaque);

/* Names that come from an image may hold anything.  What is shown to people is one line and drives
 * no terminal: each byte that would is made a question mark.  Errors and the log are like that. */
void q_make_printable (char *text);
/* Whether the byte at TEXT[I] would. */
bool q_drives_terminal (const char *text, size_t i);

/* ---- open and close ------------------------------------------------------------------------ */

enum q_format {
  Q_FORMAT_AUTO, /* qcow2 if the file carries its magic; anything else is an error that says
                  * how to name raw: raw is never guessed */
  Q_FORMAT_QCOW2,
  Q_FORMAT_RAW,
};

/* What an image may make us open is the user's decision, not the image's (names.c).  Only local
 * files, whatever is allowed; -EPERM, with a message that says which word would allow it.
 *
 * Which backing files may be followed: */
enum q_backing {
  Q_BACKING_RECORDED, /* regular files whose format is recorded in the overlay (default) */
  Q_BACKING_PROBE,    /* also without a recorded format: qcow2 by magic, else raw; block devices */
  Q_BACKING_NONE,     /* do not open one: unallocated clusters read as zeros */
  Q_BACKING_SAME_DIR, /* as RECORDED, in the directory of the image that names it, no link */
  Q_BACKING_ANY,      /* as RECORDED, and block devices */
  Q_BACKING_REFUSE,   /* an image that names one is an error */
};

/* Which external data file: the one that the image names ... */
enum q_data_file_policy {
  Q_DATA_FILE_SAME_DIR, /* if it is a regular file, and no link, in the image's own directory
                         * (default) */
  Q_DATA_FILE_ANY,      /* whichever it is */
  Q_DATA_FILE_NONE,     /* never */
};
/* The words for them, which all front ends share: recorded, probe, none, same-dir, any; same-dir,
 * any, none.  False if WORD is none of these. */
bool q_backing_parse (const char *word, enum q_backing *policy);
bool q_data_file_parse (const char *word, enum q_data_file_policy *policy);

/* How the file is opened: which page cache rules apply to data.  Flush policy (writethrough,
 * unsafe) belongs to the front ends. */
enum q_cache { Q_CACHE_BUFFERED, Q_CACHE_DIRECT /* O_DIRECT */ };

enum q_lock {
  Q_LOCK_ON,  /* QEMU-compatible locks: nobody writes beside us */
  Q_LOCK_OFF, /* take and test no lock (qemu's force-share): sound only for reading */
};

/* The most layers in one chain, the top one included. */
#define Q_MAX_CHAIN 256

struct q_file_opener; /* file.h: where files come from; NULL means the local file system */

/* A password, or whatever else opens an encrypted image.  DATA should be memory of q_secret_alloc,
 * which is zeroed, locked as far as the system permits, left out of core dumps, and wiped when it
 * is freed. */
struct q_secret {
  const void *data;
  size_t len;
};
void *q_secret_alloc (size_t len);
void q_secret_free (void *data, size_t len);

/* What the user says of one layer of the chain: it takes the place of what the images say of it,
 * and no policy applies to it. */
struct q_layer {
  const struct q_secret *secret;      /* opens it; NULL: q_open_options.secret */
  const char *filename;               /* a backing file, whatever the image above it names */
  enum q_format format;               /* its format; Q_FORMAT_AUTO: as the image above it records */
  const char *data_file;              /* its external data file; NULL: what it says itself */
  const struct q_file_opener *opener; /* NULL: q_open_options.opener */
  bool unlocked;                      /* as Q_LOCK_OFF */
  bool last;                          /* no backing file is opened below it */
};

struct q_open_options {
  enum q_format format;
  enum q_backing backing;
  enum q_data_file_policy data_file_policy; /* of every layer */
  const char *data_file; /* or this one, whatever the top image says; NULL: what it says */
  unsigned recorded;     /* how q_backing_allowed lets the top image be opened; 0: its name is the
                          * user's word */
  enum q_cache cache;
  enum q_lock lock;
  bool read_only;
  bool discard;           /* freed clusters are punched out of the host file, and q_discard acts;
                           * without it q_discard is accepted and does nothing, and q_zero
                           * keeps what is allocated */
  bool discard_no_unref;  /* what is discarded stays allocated, marked as zeros, and only its space
                           * is  given back: the disk does not become fragmented.  Version 3 */
  bool repair;            /* for check -r: a corrupt or dirty image is opened for writing as it
                           * is.  Without it, opening for writing refuses a corrupt one and
                           * repairs a dirty one; opening read-only takes both */
  const char *snapshot;   /* open this internal snapshot, by id or else by name, instead of the
                           * present state; read-only only.  An image of this process may write the
                           * file meanwhile (then lock is Q_LOCK_OFF): the snapshot cannot be
                           * deleted until this is closed */
  bool metadata_only;     /* no backing files and no data file: for info and check.  Data in a data
                           * file can be mapped, but not read (-ENXIO) */
  uint64_t l2_cache_size; /* bytes, for the whole chain; 0 means 128 MiB: 1 TiB at 64 KiB
                           * clusters stays mapped, however fragmented.  While an internal
                           * snapshot is made, at most as much again */
  uint64_t refcount_cache_size; /* bytes; 0 means 32 MiB */
  int compression_level; /* of q_write_compressed: 1 to q_compression_max_level, 0 for the default
                          */
  const char *state_dir; /* where what a killed process acknowledged survives: a directory on a
                          * tmpfs; "" means the default, /run/nbdcow, nbdcow in the user's
                          * runtime directory, or nbdcow-UID in /dev/shm; NULL (default) means
                          * nowhere.  Version 3 only */
  bool recovering;       /* the engine's own: an image whose session is being recovered */
  const struct q_file_opener *opener;
  /* What the user says of single layers, the top one first; of that one, filename and format are
   * arguments and options of q_open.  Only looked at until q_open returns. */
  const struct q_layer *layers;
  unsigned n_layers;
  /* What opens encrypted layers that have no secret of their own; also only looked at until q_open
   * returns.  With metadata_only no key is needed, and no data can be read. */
  const struct q_secret *secret;
};

void q_open_options_init (struct q_open_options *opts);

/* Where the state files are: DIR if it is not NULL, else the default: nbdcow in /run or in the
 * user's runtime directory, or nbdcow-UID in /dev/shm, the first of them that is writable and lies
 * on a tmpfs.  Makes the directory.  -ENOENT if there is no place for them. */
int q_state_directory (const char *dir, char *path, size_t size);

/* Opens FILENAME and its chain.  On success *IMG is owned by the caller until q_close.  Errors:
 * -EINVAL (not a valid image, wrong format), -ENOTSUP (a feature we do not have, by its name),
 * -EAGAIN (locked by someone else), -ENOENT, -EACCES, -ENOKEY (no key was given for an encrypted
 * image) or -EKEYREJECTED (it is not right), -EIO, -ENOMEM, -ELOOP (backing loop). */
int q_open (struct q_image **img, const char *filename, const struct q_open_options *opts,
            struct q_error *err);

/* Flushes, persists the highest allocated offset, unlocks, frees.  *IMG is freed and set to NULL
 * also when it fails; the return value then is the error of the flush. */
int q_close (struct q_image **img, struct q_error *err);

/* ---- what an image is ---------------------------------------------------------------------- */

uint64_t q_size (const struct q_image *img);         /* virtual size in bytes */
uint32_t q_cluster_size (const struct q_image *img); /* 65536 for raw */
/* The unit of allocation, copy on write, zeroes and discard: a 32nd of a cluster with extended L2
 * entries, else a cluster. */
uint32_t q_allocation_size (const struct q_image *img);
bool q_read_only (const struct q_image *img); /* also true after a sticky error */
enum q_format q_image_format (const struct q_image *img);
const char *q_filename (const struct q_image *img);
struct q_image *q_backing_image (const struct q_image *img); /* NULL if none or not opened */

/* True if q_zero without Q_ZERO_UNMAP and with Q_ZERO_FAST can succeed on aligned ranges. */
bool q_can_fast_zero (const struct q_image *img);

/* End (exclusive, bytes, cluster-aligned) of the highest host cluster ever allocated; 0 for raw.
 * Cheap; any thread; never goes down while the image is open.  With an external data file it is
 * that of the qcow2 file: the data file's is the size of the disk. */
uint64_t q_highest_offset (const struct q_image *img);

/* The size of the block device that holds IMG, as it is now; 0: it is in a file. */
uint64_t q_device_size (const struct q_image *img);

/* Calls FN, once, when the highest allocated offset has come to lie above THRESHOLD: at once if it
 * does already.  FN is called on whichever thread allocates, with locks held: it wakes somebody up,
 * and does nothing else.  There is one watch at a time: this one takes the place of the one before
 * it, which is not called any more once this has returned.  FN NULL: none.  Watching costs nothing
 * but where something is allocated beyond all that was before, and this call never waits for I/O.
 * -ENOTSUP for raw images. */
typedef void (*q_highest_fn) (void *opaque);
int q_watch_highest (struct q_image *img, uint64_t threshold, q_highest_fn fn, void *opaque);

/* For watermarks: a number of bytes or, if PERCENT is not 0, so much of the block device that holds
 * IMG or, for a file, of the disk's size; in bytes, as of now. */
struct q_amount {
  uint64_t bytes;
  unsigned percent;
};
uint64_t q_amount_bytes (const struct q_image *img, const struct q_amount *amount);
/* The first of AT, AT + STEP, AT + 2 * STEP ... that is not below OFFSET; UINT64_MAX if there is
 * none, as may be if STEP is 0. */
uint64_t q_next_mark (uint64_t at, uint64_t step, uint64_t offset);

/* A feature bit that is set, by name: "" ends a list. */
struct q_image_info {
  unsigned version; /* 2 or 3; 0 for raw */
  unsigned cluster_bits;
  unsigned refcount_bits;
  uint64_t virtual_size;
  uint64_t actual_size; /* bytes of disk that the file occupies (st_blocks * 512) */
  uint64_t file_size;
  uint64_t highest_offset;
  uint64_t incompatible, compatible, autoclear;
  bool lazy_refcounts, corrupt, dirty, extended_l2, data_file_raw;
  const char *compression_type; /* "zlib" or "zstd" */
  const char *encryption;       /* NULL, "aes" or "luks" */
  const char *backing_file;     /* as recorded; NULL if none.  All of these strings are valid until
                                 * q_close, q_set_backing or q_amend */
  const char *backing_format;   /* as recorded; NULL if not recorded */
  const char *backing_path;     /* resolved against the overlay's directory; NULL if none */
  const char *data_file;        /* as recorded; NULL if none */
  const char *data_path;        /* the data file in use; NULL if none or not opened */
  unsigned nb_snapshots, nb_bitmaps; /* at some time: q_get_snapshots says how many it lists */
};
void q_get_info (const struct q_image *img, struct q_image_info *info);

/* What the engine has done since the image was opened, and what it holds; the layers below IMG are
 * included where they have any part in it. */
struct q_stats {
  uint64_t l2_hits, l2_misses; /* L2 tables that were looked for, and had to be read */
  uint64_t l2_cache_bytes, l2_cache_max;
  uint64_t refcount_hits, refcount_misses; /* refcount blocks */
  uint64_t refcount_cache_bytes, refcount_cache_max;
  uint64_t dirty_tables;    /* L2 tables and refcount blocks that a flush will write */
  uint64_t device_size;     /* of the block device that holds the image; 0: it is in a file */
  uint64_t limbo_bytes;     /* of clusters that were let go of and are not free yet */
  uint64_t flush_requests;  /* calls of q_flush, and what the engine asks for itself */
  uint64_t flush_rounds;    /* how many group commits they came to ... */
  uint64_t metadata_rounds; /* ... and those of them that wrote metadata */
};
/* Any thread; may wait for an allocation that is under way. */
void q_get_stats (struct q_image *img, struct q_stats *stats);

/* Whether many clusters that have a refcount take no room on the file system, as after
 * preallocation of metadata alone: then what the mapping calls data may be a hole in the file. */
bool q_is_sparse (struct q_image *img);

/* What the clusters of the file are used for. */
enum q_use {
  Q_USE_FREE,
  Q_USE_DATA,
  Q_USE_COMPRESSED,
  Q_USE_TABLE, /* header, L1 and L2 tables, snapshots, bitmaps, encryption header */
  Q_USE_REFCOUNTS,
  Q_USE_LEAKED, /* counted, and nothing refers to it */
};
/* Calls FN for each run of clusters of one use, in the order of the file.  Everything is read from
 * the file, which should not change meanwhile. */
int q_survey (struct q_image *img,
              void (*fn) (void *opaque, uint64_t offset, uint64_t len, enum q_use use),
              void *opaque, struct q_error *err);

/* Whether POLICY lets the backing file that IMG names be opened: 0, -ENOENT if it names none (or
 * the policy is to do without), -EPERM, or what else keeps it from being opened.  It is then opened
 * by *PATH, which the caller frees, and with *RECORDED in the options; to anything that knows other
 * names than those of local files, *PATH must not be given without. */
int q_backing_allowed (const struct q_image *img, enum q_backing policy, char **path,
                       unsigned *recorded, struct q_error *err);

struct q_snapshot_info {
  const char *id, *name; /* up to a NUL that is among their bytes */
  uint64_t vm_state_size, disk_size;
  uint64_t vm_clock_nsec;
  uint32_t date_sec, date_nsec;
  int64_t icount; /* -1 if not recorded */
};
/* All there are at one instant, in the order of the image: returns how many, or -ENOMEM.  *LIST is
 * the caller's, to be given back by one free (). */
int q_get_snapshots (const struct q_image *img, struct q_snapshot_info **list);

/* ---- persistent dirty bitmaps (bitmap.h) ---------------------------------------------------- */

/* While an image is open for writing, its enabled bitmaps record what is changed.  They are saved
 * when they are disabled and on close; between, they are marked in use on disk, and a crash leaves
 * them so (a killed process does not, with a state file): then their bits mean nothing any more. */

struct q_bitmap_info {
  const char *name;
  uint64_t granularity; /* bytes of the disk for one bit */
  bool in_use;          /* on disk: is not saved */
  bool automatic;       /* enabled: writers must keep it up to date */
  bool inconsistent;    /* was left in use: can only be removed */
  bool busy;            /* somebody holds it: it cannot be changed */
  bool in_memory;       /* as all that are enabled or held: then ... */
  uint64_t dirty;       /* ... so many bytes are dirty, in whole granules.  Of others, who holds
                         * them can tell: q_bitmap_count */
};
/* All there are at one instant, in the order of the image: returns how many, or a negative errno.
 * *LIST is the caller's, to be given back by one free (). */
int q_get_bitmaps (struct q_image *img, struct q_bitmap_info **list, struct q_error *err);

/* The bitmap called NAME, its bits in memory; nobody changes it but by writing to the disk until it
 * is released.  -ENOENT, -EINVAL (damaged, left in use, or of a kind that cannot be understood),
 * -EFBIG. */
struct q_bitmap;
int q_bitmap_hold (struct q_image *img, const char *name, struct q_bitmap **bitmap,
                   struct q_error *err);
void q_bitmap_release (struct q_bitmap *b);
/* Whether OFFSET is dirty, and up to where (exclusive, at most END) the same is true.  Past the end
 * of the disk nothing is.  Any thread; what was written before the call is seen. */
void q_bitmap_next (const struct q_bitmap *b, uint64_t offset, uint64_t end, bool *dirty,
                    uint64_t *run_end);
/* Bytes that are dirty, counted in whole granules. */
uint64_t q_bitmap_count (const struct q_bitmap *b);
bool q_bitmap_enabled (const struct q_bitmap *b);

/* Changes of bitmaps while the image is in use.  All actions of one call take effect at one instant
 * between two writes, in their order, or none does; when it returns the image says so on disk, but
 * for the bits of those that are enabled.  Bitmaps that somebody holds cannot be changed. */
enum q_bitmap_op {
  Q_BITMAP_ADD,     /* clean */
  Q_BITMAP_REMOVE,  /* also one that was left in use */
  Q_BITMAP_CLEAR,   /* all of it */
  Q_BITMAP_ENABLE,  /* from then on it records what is written ... */
  Q_BITMAP_DISABLE, /* ... and not any more */
  Q_BITMAP_MERGE,   /* what SOURCE has dirty becomes dirty; granularities may differ */
};
struct q_bitmap_action {
  enum q_bitmap_op op;
  const char *name;
  uint64_t granularity;         /* Q_BITMAP_ADD: bytes, a power of two from 512 to 2^31; 0: the size
                                 * of a cluster, but 4 KiB to 64 KiB */
  bool disabled;                /* Q_BITMAP_ADD */
  const char *source;           /* Q_BITMAP_MERGE: the name of a bitmap ... */
  struct q_image *source_image; /* ... of this image; NULL: of the same one */
};
/* Bits that are merged from another image are those of the same instant, if that is written too.
 * -ENOENT, -EEXIST, -EBUSY (held), -EINVAL (granularity, sizes that differ, left in use), -ENOTSUP
 * (no version 3 image), -EFBIG, -E2BIG (too many, no room in the header), -ENOSPC, -EROFS, -EIO. */
int q_bitmap_change (struct q_image *img, const struct q_bitmap_action *actions, unsigned n,
                     struct q_error *err);

/* ---- pins (invariant 5: a map is a lease) -------------------------------------------------- */

/* A pin keeps every extent that was mapped while it was held valid: no host cluster is reused and
 * no table freed.  Pins are per thread, cheap (no shared cache line is written), may nest and may
 * be released in any order, but by the thread that took them.  Do not wait for another request
 * of the same image while holding one. */
typedef uint64_t q_pin_t;
q_pin_t q_pin (void);
void q_unpin (q_pin_t pin);

/* ---- mapping ------------------------------------------------------------------------------- */

enum q_kind {
  Q_DATA,       /* len bytes at host in file */
  Q_ZERO,       /* len zero bytes; file is NULL */
  Q_COMPRESSED, /* part of one compressed cluster: read it with q_read_extent */
};

enum q_extent_flags {
  Q_STABLE = 1, /* these host bytes can never change while the image is open */
  Q_HOLE = 2,   /* Q_ZERO only: no host cluster is allocated for it in any layer */
};

struct q_extent {
  struct q_file *file; /* see q_file_fd in file.h for a descriptor */
  uint64_t guest, host;
  uint64_t len; /* guest bytes, never 0 */
  uint8_t kind, flags;
  uint16_t depth; /* layer that answered: 0 the top; for unallocated zeros, 1 + the last layer */
  uint32_t skip;  /* Q_COMPRESSED: bytes to skip in the inflated cluster ... */
  uint32_t csize; /* ... and bytes of compressed data at host */
  struct q_image *layer; /* the image whose mapping answered */
};

enum q_flags {
  Q_NOWAIT = 1,          /* q_map, q_write_begin: -EAGAIN instead of blocking or reading metadata */
  Q_ZERO_UNMAP = 2,      /* q_zero: clusters may be deallocated (NBD: NO_HOLE not given) */
  Q_ZERO_FAST = 4,       /* q_zero: -ENOTSUP, nothing changed, if data would have to be written */
  Q_ZERO_PROVISION = 32, /* q_zero: afterwards every cluster is allocated and has its space on disk
                          * (NBD: NO_HOLE).  Neither this nor UNMAP: what is allocated stays so */
  Q_MAP_MERGE = 8,       /* q_map: merge neighbours that differ only in host offset (block status):
                          * host, skip and csize are then meaningless; raw layers are asked for
                          * their holes */
  Q_MAP_TOP = 16,        /* q_map: only the top layer: unallocated clusters come as Q_ZERO with
                          * Q_HOLE and depth 1 */
  Q_MAP_HOST = 64,       /* q_map: also for zeros, file and host say where they are allocated (file
                          * is NULL if they are not); raw layers are asked for their holes.  Not
                          * with Q_MAP_MERGE */
};

/* Maps [offset, offset + len), which must lie inside the image, to at most MAX extents, in guest
 * order and without gaps.  Returns how many were filled (at least 1); they may cover less than
 * LEN when MAX ran out or a bound on the work of one call was met.  Hold a pin.  Chains are
 * flattened; adjacent extents merged. */
int q_map (struct q_image *img, uint64_t offset, uint64_t len, struct q_extent *extents,
           unsigned max, unsigned flags);

/* Whether A and B, open read-only, have the same from OFFSET on because they are one file (two
 * snapshots, or one and the disk) with the same below it, and one L2 table maps it in both; and for
 * how many bytes, at most *LEN, that goes on being so, or not so.  Reads no table. */
bool q_same_tables (const struct q_image *a, const struct q_image *b, uint64_t offset,
                    uint64_t *len);

/* Reads the LEN bytes at SKIP into extent E, of any kind, blocking.  Hold the pin of the map. */
int q_read_extent (const struct q_extent *e, uint64_t skip, uint64_t len, void *buf);

/* ---- writing in steps ---------------------------------------------------------------------- */

#define Q_PLAN_RUNS 16

/* LEN contiguous bytes of the request go to HOST. */
struct q_run {
  uint64_t host, len;
};

/* Between begin and its end a plan stays where it is: others may wait for the claim in it. */
struct q_write_plan {
  struct q_image *img;
  struct q_file *file;
  uint64_t offset, len; /* what is covered: a prefix of what was asked for */
  unsigned n_runs;
  struct q_run run[Q_PLAN_RUNS];
  /* Bytes around the request that a freshly allocated first or last cluster also needs:
   * [host - head, host) before the first run and tail bytes after the last.  They are zeros
   * (or need no writing at all: 0) unless copy is set, when they must be read from below. */
  uint32_t head, tail;
  bool copy_head, copy_tail;
  bool allocates; /* false: overwrite in place; commit and abort then do nothing
                   * that could wait */
  /* internal from here on */
  struct q_plan_claim {   /* claim.c */
    uint64_t first, last; /* guest clusters */
    struct q_plan_claim *prev, *next;
  } claim;
  void *table;                    /* the L2 table, held */
  uint32_t index;                 /* of the first entry to change */
  uint32_t frees;                 /* room reserved in limbo */
  bool reuses;                    /* the clusters were allocated before (and read as zeros) */
  uint32_t clusters[Q_PLAN_RUNS]; /* host clusters of each run */
};

/* Everything that can fail: finds or allocates host clusters for a prefix of the range, and takes
 * the claim on what changes its mapping.  Does not change what a reader sees.
 * -EROFS read-only or after a sticky error, -ENOSPC, -EIO, -ENOMEM.  With Q_NOWAIT: -EAGAIN if
 * metadata would have to be read, another request holds the claim, or bytes must be copied;
 * without it too if the image has a raw data file and its mapping must be made durable first: that
 * is q_pwrite's affair. */
int q_write_begin (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags,
                   struct q_write_plan *plan);
/* Writes the plan.len bytes at BUF, and what surrounds them, to where the plan says.  Blocking. */
int q_write_data (struct q_write_plan *plan, const void *buf);
void q_write_commit (struct q_write_plan *plan); /* publishes; cannot fail */
void q_write_abort (struct q_write_plan *plan);  /* new clusters go to limbo */

/* ---- blocking calls ------------------------------------------------------------------------ */

/* The range must lie inside the image, else -EINVAL (reads) or -ENOSPC (writes).  LEN 0 is fine. */
int q_pread (struct q_image *img, void *buf, uint64_t offset, uint64_t len);
int q_pwrite (struct q_image *img, const void *buf, uint64_t offset, uint64_t len);
int q_zero (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags);
/* 0 if q_zero would do that with Q_ZERO_FAST, or what it would say.  Changes nothing. */
int q_zero_is_fast (struct q_image *img, uint64_t offset, uint64_t len, unsigned flags);
/* Advisory, except that what is discarded never shows anything but its old bytes or zeros. */
int q_discard (struct q_image *img, uint64_t offset, uint64_t len);
/* As q_pwrite, but stores compressed (specification: "Compressed Clusters Descriptor") whole
 * clusters that become smaller by it, and clusters of zeros not at all.  The last cluster of the
 * disk counts as whole if the range ends with it; parts of clusters are written as they are.
 * -ENOTSUP if q_can_compress says no.  What is compressed can be overwritten like anything else.
 * Compression holds no lock: callers on several threads use several cores. */
int q_write_compressed (struct q_image *img, const void *buf, uint64_t offset, uint64_t len);
bool q_can_compress (const struct q_image *img);
/* The highest level that there is for zlib, or zstd. */
int q_compression_max_level (bool zstd);
/* Makes the image hold nothing, so that all of its backing file is seen.  -ENOTSUP for raw ones. */
int q_empty (struct q_image *img);

/* For changing the backing file (backing.c) of an image that is open for writing without one
 * (metadata_only): from now on q_zero marks as zeros also what is unallocated, which will not read
 * as zeros later. */
void q_expect_backing (struct q_image *img);
/* Records another backing file, or none (NULL), and its format (NULL: as it is, or unrecorded).
 * Flushes first; durable when it returns 0.  A crash leaves the old name or the new one.  Contents
 * are the caller's affair.  -E2BIG if the first cluster has no room, -ENOTSUP for raw images. */
int q_set_backing (struct q_image *img, const char *name, const char *format, struct q_error *err);

/* Brings the range into the page cache, best effort. */
int q_prefetch (struct q_image *img, uint64_t offset, uint64_t len);
/* All writes that returned before this call are on stable storage when it returns 0.  Any number
 * of callers share one group commit. */
int q_flush (struct q_image *img);

/* Makes the disk SIZE bytes, a multiple of 512, while requests go on: what is new reads as zeros,
 * whatever a backing file has there.  Only up: -ENOTSUP for less than there is. */
int q_resize (struct q_image *img, uint64_t size, struct q_error *err);
/* The same, only down: what is beyond SIZE is lost.  Requests that are under way beyond it may fail
 * or see zeros. */
int q_shrink (struct q_image *img, uint64_t size, struct q_error *err);

enum q_preallocation {
  Q_PREALLOC_OFF,
  Q_PREALLOC_METADATA, /* clusters, as holes of the file */
  Q_PREALLOC_FALLOC,   /* with their space */
  Q_PREALLOC_FULL,     /* written */
};
/* Allocates a range that has never been written and reads as zeros.  -ENOTSUP: METADATA of a raw
 * disk. */
int q_preallocate (struct q_image *img, uint64_t offset, uint64_t len, enum q_preallocation mode);

/* ---- encryption (keyslots.c) --------------------------------------------------------------- */

#define Q_KEY_SLOTS 8

/* In the words that qemu-img has for it. */
struct q_encryption_info {
  bool luks; /* else the legacy AES method, and nothing more is known */
  char cipher_alg[48], cipher_mode[32], ivgen_alg[32];
  char ivgen_hash_alg[32]; /* "" unless the generator is essiv */
  char hash_alg[32], uuid[41];
  uint64_t payload_offset;
  uint32_t master_key_iterations;
  struct {
    bool active;
    uint32_t iterations, stripes;
    uint64_t material_offset; /* from the start of the encryption header */
  } slot[Q_KEY_SLOTS];
};
/* -ENOENT if the image is not encrypted.  Needs no key. */
int q_get_encryption (struct q_image *img, struct q_encryption_info *info, struct q_error *err);

/* Fills a key slot, or erases some.  A crash at any point leaves slots that open the image. */
struct q_key_change {
  bool erase;
  int slot;                      /* -1: the first that is free; or those that OLD_SECRET opens */
  const struct q_secret *secret; /* filling: opens the image now ... */
  const struct q_secret *new_secret; /* ... and will open it as well */
  unsigned iter_time_ms;             /* see q_encrypt_options */
  const struct q_secret *old_secret; /* erasing: opens what is erased; may be NULL with SLOT */
  bool force;                        /* erasing: even if no slot is left */
};
int q_change_keys (struct q_image *img, const struct q_key_change *change, struct q_error *err);

/* ---- internal snapshots (snapshot-make.c, snapshot-drop.c) ------------------------------------
 */

/* While requests go on; one at a time, and not beside q_resize: they wait for each other.  Whatever
 * fails leaves the disk and its snapshots as they were.  -EROFS, -ENOTSUP (raw, or an external data
 * file), -ENOSPC, -EIO, -ENOMEM. */

#define Q_SNAPSHOT_ID_SIZE 24

/* Keeps the disk as it is between two writes as the snapshot NAME, which need not be unique; ID is
 * its id.  -ERANGE: the refcounts are too narrow; -EFBIG: there are too many. */
int q_snapshot_create (struct q_image *img, const char *name, char id[Q_SNAPSHOT_ID_SIZE],
                       struct q_error *err);
/* Deletes the (first) one with this name, or else this id.  -ENOENT; -EBUSY: an image of this
 * process shows it (q_open_options.snapshot). */
int q_snapshot_delete (struct q_image *img, const char *name_or_id, struct q_error *err);
/* Makes the disk what it was, its size included, when the snapshot with this id, or else this name,
 * was made.  A request that is under way may see the disk before or after it. */
int q_snapshot_apply (struct q_image *img, const char *id_or_name, struct q_error *err);

/* Makes every entry of the snapshot table say how large the snapshot's disk is, as version 3 wants
 * it and old writers left out: as large as the disk is now. */
int q_snapshot_complete (struct q_image *img, struct q_error *err);

/* ---- several changes at one instant (change.c) ------------------------------------------------
 */

/* One change: a snapshot that is made, or an action on a bitmap. */
struct q_change {
  struct q_image *img;
  const char *snapshot;          /* its name; NULL: it is about a bitmap ... */
  struct q_bitmap_action bitmap; /* ... with what this says */
  char id[Q_SNAPSHOT_ID_SIZE];   /* of the snapshot: filled in */
};

/* All of them, of one image or of several, take effect at one instant between two writes, or none
 * does (unless undoing fails as well: a storage that is full may keep one snapshot, which the log
 * says): what a backup of several disks needs (a checkpoint), with or without snapshots to read it
 * from.  Actions on bitmaps of one image happen in their order; an image has one snapshot at most,
 * which no bitmap is in.  Errors as for the two alone, ERR names the image.  Further: -EINVAL (a
 * second snapshot of an image); -EBUSY also for a bitmap that is changed, and merged from into
 * another image, by the same call.
 *
 * All writes to all these images stand still for the instant: as long as the longest wait for a
 * write that is under way, and with snapshots as long as it takes to count and make durable what
 * was written while the rest was counted, and two syncs an image more unless there is one snapshot
 * and nothing else.  Reads go on.
 *
 * A crash may leave it done for some images and not for others, and the snapshot of an image
 * without what was done to its bitmaps; each image by itself is sound, and its bitmaps are as after
 * any crash.  -EIO after which an image is read-only means that nobody can tell. */
int q_change (struct q_change *changes, unsigned n, struct q_error *err);

/* ---- making images (create.c) -------------------------------------------------------------- */

/* How a new image is encrypted: LUKS, in the words of qemu-img's encrypt.* options. */
struct q_encrypt_options {
  const char *cipher_alg;     /* NAME-BITS (default aes-256) */
  const char *cipher_mode;    /* xts (default), cbc, ctr, ecb */
  const char *ivgen_alg;      /* plain64 (default), plain, essiv */
  const char *ivgen_hash_alg; /* of essiv; NULL means sha256 */
  const char *hash_alg;       /* for passwords (default sha256) */
  unsigned iter_time_ms;      /* how long a password is to take (default 2000), within the bounds of
                               * luks.h */
};
void q_encrypt_options_init (struct q_encrypt_options *opts);

struct q_create_options {
  unsigned version;       /* 2 or 3 (default 3) */
  unsigned cluster_bits;  /* 9 to 21 (default 16) */
  unsigned refcount_bits; /* 1, 2, 4, ... 64 (default 16) */
  bool lazy_refcounts;
  bool extended_l2; /* subclusters: a 32nd of a cluster can be allocated by itself; at least 16 KiB
                     */
  bool zstd;        /* compression type of clusters that are compressed later */
  enum q_preallocation preallocation;
  const char *backing_file;   /* recorded as given; NULL for none */
  const char *backing_format; /* recorded as given */
  const char *data_file;      /* guest data goes to this file, made (or emptied) too; NULL: none */
  const char *data_file_name; /* recorded; NULL: as data_file */
  bool data_file_raw;         /* and it is always the disk: all L2 entries are made */
  bool data_file_keep;        /* the data file is there, and the disk is to hold what it holds */
  const struct q_secret *secret; /* the image is encrypted, and this opens it; NULL: it is not */
  struct q_encrypt_options encrypt;
  const struct q_file_opener *opener;
};
void q_create_options_init (struct q_create_options *opts);

/* Makes (or overwrites) the qcow2 image FILENAME of SIZE bytes.  Does not look at the backing
 * file.  Nothing is left behind on failure if the file did not exist before. */
int q_create (const char *filename, uint64_t size, const struct q_create_options *opts,
              struct q_error *err);

/* ---- amending images (amend.c) --------------------------------------------------------------- */

struct q_amend_options {
  unsigned version;         /* 2 or 3; 0: as it is */
  unsigned refcount_bits;   /* 1, 2, 4, ... 64; 0: as it is */
  int lazy_refcounts;       /* 0, 1; -1: as it is */
  int data_file_raw;        /* 0; -1: as it is.  1 only if it is so already */
  int zstd;                 /* how clusters will be compressed; 0: zlib; -1: as it is.  None may be
                             * yet, nor are until the image is opened anew */
  const char *data_file;    /* what the image calls its data file; "": nothing; NULL: as it is */
  const char *backing_file; /* NULL, or both what is recorded: anything else is an error */
  const char *backing_format;
  uint64_t size;                                /* of the disk; 0: as it is */
  void (*progress) (void *opaque, double done); /* from 0 to 1; may be NULL */
  void *opaque;
};
void q_amend_options_init (struct q_amend_options *opts);

/* Changes what kind of image IMG is; what that image holds, its snapshots too, stays as it is.  IMG
 * is open for writing, without a state file, and not in use otherwise.  A crash leaves an image
 * that is sound and holds the same, of the old kind or the new.  -EINVAL, -ENOTSUP: refused, and
 * nothing has changed but what was changed before that. */
int q_amend (struct q_image *img, const struct q_amend_options *opts, struct q_error *err);

/* ---- checking (check.c) -------------------------------------------------------------------- */

enum { Q_REPAIR_LEAKS = 1, Q_REPAIR_ERRORS = 2 };

struct q_check_result {
  uint64_t corruptions, leaks, check_errors;
  uint64_t stale_flags; /* of the corruptions: COPIED flags that do not go with the recorded count,
                         * on clusters that nobody shares: nothing can be lost by them */
  uint64_t unsized_snapshots; /* likewise: entries of the snapshot table that q_snapshot_complete
                               * mends, once the rest is sound */
  uint64_t corruptions_fixed, leaks_fixed;
  uint64_t allocated_clusters, total_clusters, fragmented_clusters, compressed_clusters;
  uint64_t image_end_offset;
};

struct q_check_options {
  unsigned repair;  /* 0 or the bits above */
  bool dry_run;     /* with repair: nothing is written, and the result is what a repair would have
                     * left.  The image may then be open read-only */
  unsigned threads; /* 0: one for each processor, at most 8 */
  bool in_use; /* somebody may be writing the image.  While it has the dirty bit then, counts may
                * be too low and COPIED flags wrong without its being damaged: they are no
                * findings.  Whatever else is found may be so because parts of the image were
                * read at different moments */
  /* Any of these may be NULL.  Each finding is one line. */
  void (*report) (void *opaque, const char *line);
  void (*progress) (void *opaque, uint64_t done, uint64_t total);
  /* Asked again and again, on any thread but never on two at once; true ends it: -EINTR.  Not once
   * a repair is being written. */
  bool (*stop) (void *opaque);
  /* LEN bytes at OFFSET of the file will be changed; LEN 0: and now the write that has all that was
   * told since the last time is done.  A negative errno stops the repair there. */
  int (*journal) (void *opaque, uint64_t offset, const void *before, const void *after,
                  uint64_t len);
  void *opaque;
};

/* Compares every reference in the image with the refcounts, which must be quiescent for the result
 * to mean anything, and repairs.  A repair is tried in memory first: if it would leave more
 * corruption than there is, nothing is written (-EIO).  Returns 0 when the check could be carried
 * out, whatever it found.  After a repair, or its dry run, the image is read-only until it is
 * opened anew. */
int q_check_image (struct q_image *img, const struct q_check_options *o,
                   struct q_check_result *result, struct q_error *err);
/* The same with these alone. */
int q_check (struct q_image *img, unsigned repair, struct q_check_result *result,
             void (*report) (void *opaque, const char *line), void *opaque, struct q_error *err);
/* Checks an image that is open for writing, or reading, while requests go on, as it is in its file
 * at one moment: a sound image shows no corruption, and perhaps leaks, clusters that are being
 * allocated or freed.  Of O only threads, report, stop and opaque count; nothing is repaired.
 *
 * It looks at everything twice.  The second time, whose result counts, flushes wait, and changes of
 * the image as a whole, and writes that need more room for tables than the caches have: for
 * *HELD_NS.  If the first time takes longer than MAX_HELD_NS, also when tried again, there is no
 * second one: -ETIME; and if the second one does, it is given up: the same.  -EBUSY: IMG shows a
 * snapshot of a file that another image writes. */
int q_check_live (struct q_image *img, const struct q_check_options *o, uint64_t max_held_ns,
                  struct q_check_result *result, uint64_t *held_ns, struct q_error *err);

/* ---- compacting (compact.c) ---------------------------------------------------------------- */

struct q_compact_options {
  /* Clusters that were moved, and that the file has; may be NULL.  True stops the work: what was
   * done so far stays done. */
  bool (*progress) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

struct q_compact_result {
  uint64_t moved;                 /* clusters */
  uint64_t end_before, end_after; /* bytes of the file */
};

/* Moves clusters into free ones nearer to the beginning of the file, and cuts off what is free at
 * its end.  IMG is open for writing with q_open_options.repair, and for nothing else; it is
 * read-only afterwards.  A crash at any point leaves a sound image, perhaps with leaks.  -EINVAL if
 * it is not sound to begin with, -ENOTSUP, -EINTR when stopped. */
int q_compact (struct q_image *img, const struct q_compact_options *o,
               struct q_compact_result *result, struct q_error *err);

#endif /* Q_QCOW2_H */
