/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Workloads: an image, and a guest that works on it at random from a seed.
 *
 * One run is: workload_prepare (makes the files in memory, and knows what the guest sees),
 * workload_open, workload_run, workload_close.  Between these the caller may put a recorder and a
 * tap on run->top, and read or cut what came of it.
 */

#ifndef CRASH_WORKLOAD_H
#define CRASH_WORKLOAD_H

#include "expect.h"
#include "record.h"

struct guest;
struct snaps; /* snaps.h */

enum workload_image {
  IMAGE_EMPTY,   /* made by us */
  IMAGE_OVERLAY, /* made by us, over a qcow2 file that has data */
  IMAGE_DIRTY,   /* made by us, filled, then left with the dirty bit and wrong refcounts */
  IMAGE_FOREIGN, /* made by qemu-img, which knows nothing of our header extensions */
  IMAGE_FOREIGN_OVERLAY,
  IMAGE_SNAPSHOT,   /* made by qemu-img: data, a snapshot, more data */
  IMAGE_COMPRESSED, /* made by qemu-img convert -c */
};

/* What a guest does, in parts of the whole. */
struct workload_mix {
  unsigned small, cluster, large; /* writes: of up to 4 KiB, of whole clusters, of many */
  unsigned zero, discard, read, flush;
  unsigned grow;     /* the disk */
  unsigned shrink;   /* it; one thread only */
  unsigned bitmap;   /* changes of bitmaps */
  unsigned compress; /* whole clusters, compressed; most of them become smaller */
  unsigned snapshot; /* made, deleted, gone back to */
};

struct workload {
  const char *name;
  enum workload_image image;
  unsigned version;
  unsigned cluster_bits;  /* 0: chosen by the seed */
  unsigned refcount_bits; /* 0: chosen by the seed */
  unsigned clusters;      /* the size of the disk; not quite: it ends within the last one */
  unsigned threads;
  unsigned operations; /* of each thread */
  bool lazy;
  bool extended_l2; /* clusters have 16 KiB or more */
  unsigned
      start; /* percent of its size that the disk has at first; 0: all of it.  One thread only */
  unsigned fill; /* percent of the disk that are written before it is recorded */
  bool device;   /* the file is a block device full of old bytes */
  bool plain;    /* the file system can neither punch nor allocate */
  bool bitmaps;  /* dirty bitmaps record what is written */
  bool zstd;     /* compression type */
  bool encrypted;
  bool data;     /* the guest's data is in an external data file; device is about that then */
  bool raw;      /* which is raw */
  bool no_unref; /* what is discarded stays allocated */
  struct workload_mix mix;
};

extern const struct workload workloads[];
extern const size_t n_workloads;

/* What marks in the recording mean; the subject is an operation, or a place in time. */
enum workload_mark {
  MARK_BEGUN,      /* operation */
  MARK_DONE,       /* operation */
  MARK_SIZE,       /* the disk has, or may have from now on, at least so many bytes */
  MARK_SNAP_BEGUN, /* snapshot */
  MARK_SNAP_DROPPING,
  /* from here on: something more is demanded of the same file */
  MARK_SNAP_MADE,
  MARK_SNAP_DROPPED,
  MARK_FLUSHED, /* the time of asking */
  MARK_CLOSED,  /* q_close has answered 0: the time */
};

struct run {
  const struct workload *w;
  uint64_t seed;
  unsigned cluster_bits, refcount_bits;
  unsigned unit_bits; /* of what is allocated by itself: a cluster or a subcluster */
  struct mem_store store;
  struct mem_file *top;
  struct mem_file *data; /* its data file, or NULL */
  struct q_open_options opts;
  uint8_t *contents; /* what the guest sees before the run */
  uint64_t size;     /* of the disk, at its largest */
  uint64_t disk;     /* at present */
  uint64_t floor;    /* the least that it may have by now */
  uint64_t least;    /* that a state may show: the caller's */

  struct q_image *img;
  struct recorder *rec; /* or NULL */
  int storm;       /* the errno that the storage gives now and then; 0: no operation may fail */
  bool may_stick;  /* and after it the image may be read-only */
  uint64_t damage; /* corruptions that there were to begin with, and may still be */
  bool bitmaps_may_be_lost; /* a power cut leaves them in use */

  pthread_mutex_t lock; /* for all below */
  struct expect live;   /* what a read may give now */
  struct snaps *snaps;
  struct guest_op *op;
  size_t n_ops;
  uint64_t now;      /* counts what was done */
  char failure[512]; /* the first wrong thing; "" if none */
};

/* False if the machine lacks what the image is made with. */
bool workload_prepare (struct run *run, const struct workload *w, uint64_t seed);
void workload_free (struct run *run);
/* With a state file, so that nothing is lost when the process is killed.  Half of the runs of
 * version 3 images have one anyway. */
void workload_keep_state (struct run *run);
int workload_open (struct run *run, struct q_error *err);
/* Everything that the guest does.  Returns when all threads are done. */
void workload_run (struct run *run);
int workload_close (struct run *run, struct q_error *err);
/* Puts a mark in the recording, if there is one.  run->lock held. */
void workload_mark (struct run *run, enum workload_mark mark, size_t subject);
/* An operation of the guest begins; is done. */
struct guest_op *workload_begin (struct guest *g, enum guest_kind kind, uint64_t offset,
                                 uint64_t len);
void workload_done (struct guest *g, struct guest_op *op);
/* One flush, with its marks. */
int workload_flush (struct run *run);
/* From now on the disk may have SIZE bytes; DONE: it has them, durably.  What was only tried, and
 * failed, may have become the size or not. */
void workload_size (struct run *run, uint64_t size, bool done);
/* Reads the whole disk of IMG, as large as it is, and compares it with X; false with *BAD and the
 * byte read.  A read error ends the test. */
bool workload_compare (struct q_image *img, const struct expect *x, uint64_t *bad, uint8_t *byte);

/* One thread of the guest: single operations, for tests that say what is to be done.  Each knows
 * and checks what the disk may hold. */
struct guest {
  struct run *run;
  uint64_t from, to; /* the part of the disk that is its own */
  uint64_t random;
  bool steps; /* some writes go by begin, data, commit, and some of these are aborted first */
  uint8_t *buf;
};
void guest_init (struct guest *g, struct run *run, unsigned index, uint64_t from, uint64_t to);
void guest_free (struct guest *g);
/* The errno of the engine is checked against what the run allows, and handed out. */
int guest_write (struct guest *g, uint64_t offset, uint64_t len);
/* Whole clusters, or up to the end of the disk. */
int guest_compress (struct guest *g, uint64_t offset, uint64_t len);
int guest_zero (struct guest *g, uint64_t offset, uint64_t len, unsigned flags);
int guest_discard (struct guest *g, uint64_t offset, uint64_t len);
int guest_read (struct guest *g, uint64_t offset, uint64_t len);
/* Anything, as the workload's mix has it. */
void guest_operate (struct guest *g);

/* Whether the raw data file DATA of IMG holds what IMG shows; notes it if not. */
bool workload_data_is_raw (struct run *run, struct q_image *img, const struct mem_file *data,
                           const char *when);

/* bitmaps.c: puts bitmaps into run->top; changes some while the image is open; whether the one that
 * is never changed covers what differs from run->contents. */
void bitmaps_make (struct run *run, uint64_t *random);
int bitmaps_operate (struct run *run, uint64_t *random);
bool bitmaps_hold (struct run *run, struct q_image *img, const char *when);

/* Notes what is wrong, if nothing was before. */
void workload_fail (struct run *run, const char *fmt, ...) __attribute__ ((format (printf, 2, 3)));
/* Removes the files that images were made from. */
void workload_cleanup (void);

#endif /* CRASH_WORKLOAD_H */
