/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Files in memory behind the engine's storage seam, and a tap on all that is done to them.
 *
 * A store is a set of named files.  Its opener goes into q_open_options.opener or
 * q_create_options.opener; a name is looked up as it is, so that a backing file named "base" is the
 * store's file "base".  Files outlive the engine's handles and are freed with the store.
 *
 * Threads: any number of engine threads may use one store; files are added and freed only while
 * none does.  The tap sees changes in the order in which they were made.
 */

#ifndef CRASH_MEM_H
#define CRASH_MEM_H

#include <pthread.h>

#include "file.h"

/* No test needs more, and an engine that asks for more is wrong. */
#define MEM_MAX_BYTES (256u << 20)

enum mem_kind {
  MEM_READ,
  MEM_WRITE,
  MEM_ZERO,
  MEM_TRUNCATE, /* to len bytes */
  MEM_ALLOCATE,
  MEM_SIZE,
  MEM_SYNC,   /* begins: what was done before it is what it makes durable */
  MEM_SYNCED, /* has ended */
  MEM_SYNC_FAILED,
  MEM_KINDS,
};

struct mem_call {
  enum mem_kind kind;
  bool beside; /* to the file beside the one that is looked at */
  uint64_t offset, len;
  const uint8_t *data; /* MEM_WRITE */
};

struct mem_tap {
  /* Before a call, no lock held: may wait, and may make the call fail with a negative errno.  For
   * MEM_WRITE *PARTIAL bytes (0 unless set) are written all the same.  For MEM_SYNCED, which is
   * the time that a sync takes, the result is not used. */
  int (*before) (void *opaque, const struct mem_call *call, uint64_t *partial);
  /* After a change was made, the file's lock held. */
  void (*done) (void *opaque, const struct mem_call *call);
  void *opaque;
};

struct mem_file {
  struct mem_file *next;
  char *name;
  pthread_mutex_t lock;
  uint8_t *data;
  uint64_t size, capacity;
  bool device;     /* of a fixed size; what was never written is not zeros */
  bool plain;      /* cannot punch or allocate: -ENOTSUP */
  uint64_t limit;  /* where the disk below is full; 0: never */
  int64_t changed; /* when, by mem_now */
  const struct mem_tap *tap;
  struct mem_file *beside; /* the data file of this image: what is done to one of the two is in one
                            * order with what is done to the other */
  bool is_beside;
};

struct mem_store {
  struct mem_file *files;
  struct q_file_opener opener;
};

/* The clock of the file system, nanoseconds.  NULL, which it is: files do not tell when they were
 * changed. */
extern int64_t (*mem_now) (void);

void mem_store_init (struct mem_store *s);
void mem_store_free (struct mem_store *s);
/* NULL if there is none. */
struct mem_file *mem_find (struct mem_store *s, const char *name);
/* Adds an empty file, or gives the one that is there. */
struct mem_file *mem_add (struct mem_store *s, const char *name);
/* Makes the file hold exactly these bytes. */
void mem_set (struct mem_file *f, const void *data, uint64_t size);
/* Taps the file, and the one beside it. */
void mem_put_tap (struct mem_file *f, const struct mem_tap *tap);
/* Changes the size; what is new is zeros. */
void mem_resize (struct mem_file *f, uint64_t size);

/* Host files, for what other programs make and look at.  They end the test if that fails. */
void mem_load (struct mem_file *f, const char *path);
void mem_save (const struct mem_file *f, const char *path);

/* Ends the test with a message: for what cannot fail but in a broken test or machine. */
void die (const char *fmt, ...) __attribute__ ((noreturn, format (printf, 1, 2)));
void *xalloc (size_t bytes); /* zeroed */

/* A small generator of random numbers; any state but 0 is a seed. */
static inline uint64_t
random_next (uint64_t *state)
{
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state * 0x2545f4914f6cdd1dull;
}

static inline uint64_t
random_below (uint64_t *state, uint64_t n)
{
  return n ? (random_next (state) >> 16) % n : 0;
}

static inline uint64_t
random_seed (uint64_t seed)
{
  return (seed + 1) * 0x9e3779b97f4a7c15ull | 1;
}

#endif /* CRASH_MEM_H */
