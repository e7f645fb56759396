/* SPDX-License-Identifier: BSD-3-Clause
 *
 * BLOCK_STATUS: metadata contexts and the lists of descriptors that they fill.
 */

#ifndef STATUS_H
#define STATUS_H

#include <stdbool.h>
#include <stdint.h>

#include "export.h"

struct request;

/* The contexts of every image. */
extern const struct meta_context status_contexts[];
extern const unsigned status_n_contexts;

struct status_extent {
  uint64_t len, flags;
};

/* Descriptors in guest order, neighbours with equal flags merged. */
struct status_list {
  struct status_extent *extents;
  unsigned n, allocated, max;
  bool full; /* one more would have been too many */
  int error; /* -ENOMEM */
};

/* Returns false when nothing more is to be added. */
bool status_add (struct status_list *list, uint64_t len, uint64_t flags);

/* Answers RQ, blocking: on success rq->out is the whole reply.  Returns 0 or -errno. */
int status_answer (struct request *rq);

#endif /* STATUS_H */
