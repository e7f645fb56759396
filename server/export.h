/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Exports: open images under the names that clients ask for, shared by all loops.
 *
 * The set is filled before the first client is let in and emptied after the last one has gone.  In
 * between it does not change, so it is read without a lock.
 */

#ifndef EXPORT_H
#define EXPORT_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2.h"

struct job;
struct status_list;
struct export;

/* Something that BLOCK_STATUS can tell.  Its number on the wire is its index in export.contexts. */
struct meta_context {
  const char *name; /* "namespace:leaf" */
  /* Adds descriptors for [offset, offset + len) to LIST until it is full; blocking.  -errno, if not
   * even the first could be had. */
  int (*describe) (const struct export *x, const struct meta_context *context, uint64_t offset,
                   uint64_t len, struct status_list *list);
};

/* The most contexts of one export: they are selected by the bits of a 64-bit word. */
#define MAX_META_CONTEXTS 64

struct export
{
  struct export *next;
  char *name, *description; /* description may be NULL */
  struct q_image *img;
  uint64_t size;
  bool read_only;
  bool multi_conn;    /* more than one client may connect */
  bool write_through; /* every write is followed by a flush */
  bool ignore_flush;
  uint32_t preferred_block; /* bytes */
  const struct meta_context *contexts;
  unsigned n_contexts;

  /* Flushes that wait for the one under way to end: the next flush does for all of them. */
  pthread_mutex_t flush_lock;
  struct job *flush_waiting;
  bool flush_running;
};

struct exports {
  struct export *first, *last;
};

struct export_options {
  const char *name, *description; /* at most NBD_MAX_STRING bytes; description may be NULL */
  const char *filename;
  struct q_open_options open;
  bool multi_conn, write_through, ignore_flush;
};

/* Opens the image and adds it.  -EEXIST if the name is taken; else what q_open says. */
int exports_add (struct exports *set, const struct export_options *opts, struct q_error *err);
/* The export of that name, or NULL. */
struct export *exports_find (const struct exports *set, const void *name, size_t len);
/* Flushes and closes every image; errors go to the log.  Returns the first. */
int exports_close (struct exports *set);

/* The transmission flags, apart from those that depend on what was negotiated. */
uint16_t export_flags (const struct export *x);

#endif /* EXPORT_H */
