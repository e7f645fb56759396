/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the parts of the model test share.
 *
 * The model of an image: its disk (model.c), its bitmaps (bitmaps.c), its snapshots (layout.c).
 * It can be written to a directory and read from there, so that it goes on in another process after
 * the image was closed, or its process killed.
 *
 * With -m it makes the images itself, many small ones (seeds.c).
 *
 * Locks: whoever reads or writes the disk holds `world` for reading.  Who holds it for writing is
 * alone: for what changes all of the disk at once.
 */

#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include <pthread.h>
#include <stdatomic.h>

#include "qcow2.h"

#define MAX_IO      (3u << 20)
#define MAX_BITMAPS 8

extern uint64_t seed;
extern const char *tried; /* what is being tried, for the message of a failure */
extern const char *path;  /* of the image */
extern struct q_open_options opts;
extern struct q_image *img;
extern uint8_t *model;      /* the disk; */
extern uint64_t model_room; /* the most bytes that it may get; what it has not got is zeros */
extern _Atomic uint64_t disk_size; /* and has */
extern pthread_rwlock_t world;
extern _Atomic unsigned long image_operations; /* that were done to the image as a whole */

/* Ends the test: with the seed, and this. */
void die (const char *fmt, ...) __attribute__ ((noreturn, format (printf, 1, 2)));
uint64_t next_random (uint64_t *state);
static inline uint64_t
below (uint64_t *state, uint64_t n)
{
  return (next_random (state) >> 13) % n;
}
void open_image (void);
void close_image (void);
void *xalloc (size_t bytes); /* zeroed */

/* Whole files of the model's directory; a file that is not there has no bytes. */
void *load_file (const char *dir, const char *name, uint64_t *size);
void save_file (const char *dir, const char *name, const void *data, uint64_t size);
/* Compares IMAGE's disk with DATA. */
void compare_disk (struct q_image *image, const uint8_t *data, uint64_t size, const char *what);

/* What is done to one image, from opening to the end. */
struct run {
  unsigned long operations, threads;
  bool reopens, compress, bitmaps, layout, killed;
  const char *dir; /* where the model is read from and written to, or NULL */
  const char *raw; /* the raw data file, or NULL */
};
void model_run (const struct run *run);

/* ---- seeds.c --------------------------------------------------------------------------------- */

/* IMAGES images, from `seed` on, in DIR, which is made if it is not there.  The exit status. */
int seeds_run (const char *dir, unsigned long images);

/* ---- bitmaps.c ------------------------------------------------------------------------------- */

/* Every bitmap of the model has, for each granule, whether it must be dirty and whether it may be:
 * a change of the disk that is under way while a bitmap changes may be in it or not. */

/* The request that is about to be made may change [offset, offset + len). */
struct mark {
  uint64_t offset, len;
  uint64_t epoch[MAX_BITMAPS]; /* of each */
};
void mark_begin (struct mark *m, uint64_t offset, uint64_t len);
/* It was made.  BEFORE and AFTER: what the range held; where both are the same, the engine may have
 * seen that nothing changes. */
void mark_end (const struct mark *m, const uint8_t *before, const uint8_t *after);
/* The disk has another size.  World is held for writing. */
void bitmaps_resize (uint64_t from, uint64_t to);
/* All of the disk has changed.  World is held for writing. */
void bitmaps_mark_all (void);

/* One operation at random, while others write.  World is held for reading. */
void bitmaps_operate (uint64_t *random);
/* All of them are as the model has them.  World is held for writing. */
void bitmaps_verify (const char *when);

/* DIR: bitmaps, a line for each, and NAME.bits: one byte for each granule, bit 0 may, bit 1 must.
 * After a kill that loses them (LOST) those that were in use cannot be used. */
void bitmaps_load (const char *dir);
void bitmaps_save (const char *dir, bool lost);

/* ---- layout.c -------------------------------------------------------------------------------- */

/* One operation at random on snapshots, or on the disk's size.  World is not held. */
void layout_operate (uint64_t *random);
/* Reads something of a snapshot that is shown, if one is. */
void layout_read (uint64_t *random);
/* Those there are hold what they held.  World is held for writing. */
void layout_verify (const char *when);
/* Before the image is closed. */
void layout_hide_all (void);

/* DIR: snapshots, a line for each, and NAME.snapshot.  Returns the size of the largest. */
uint64_t layout_load (const char *dir);
void layout_save (const char *dir);

#endif /* MODEL_MODEL_H */
