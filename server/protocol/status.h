/* SPDX-License-Identifier: BSD-3-Clause
 *
 * BLOCK_STATUS: metadata contexts and the lists of descriptors that they fill.
 */

#ifndef STATUS_H
#define STATUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "export.h"
#include "quantum.h"

struct request;
struct status_list;

/* Something that BLOCK_STATUS can tell.  Its number on the wire is its index in export.contexts. */
struct meta_context {
  char *name; /* "namespace:leaf" */
  /* Adds descriptors for [offset, offset + len) of the image's disk to LIST until it is full;
   * blocking.  -errno, if not even the first could be had. */
  int (*describe) (const struct export *x, const struct meta_context *context, uint64_t offset,
                   uint64_t len, struct status_list *list);
  struct q_bitmap *bitmap; /* held; NULL if it tells something else */
};

/* The most contexts of one export: they are selected by the bits of a 64-bit word. */
#define MAX_META_CONTEXTS 64

struct status_extent {
  uint64_t len, flags;
};

/* Descriptors in guest order, neighbours with equal flags merged. */
struct status_list {
  struct status_extent *extents;
  unsigned n, max;
  bool full;              /* one more would have been too many */
  struct quantum quantum; /* of the request: when it is over, what there is has to do */
};

/* Gives X, whose image is open, the contexts that OPTS ask for. */
int status_open (struct export *x, const struct export_options *opts, struct q_error *err);
void status_close (struct export *x);

/* Returns false when nothing more is to be added. */
bool status_add (struct status_list *list, uint64_t len, uint64_t flags);

/* Bounds the answer to RQ: by what fits into the shard's memory, or by LOW bytes if that is more.
 * Returns the size of the buffer that it takes to make it. */
size_t status_bound (struct request *rq, size_t low);
/* Answers RQ, blocking, in rq->out, which is empty and has that size: on success it is the whole
 * reply.  Returns 0 or -errno. */
int status_answer (struct request *rq);

#endif /* STATUS_H */
