/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One write of compressed clusters, spread over the worker pool, so that a client that has a single
 * request under way uses all processors.
 */

#ifndef SPREAD_H
#define SPREAD_H

#include <stdbool.h>
#include <stdint.h>

struct lane;
struct pool;
struct q_image;

/* Whether the range has a whole cluster in it: the only thing that is compressed.  The last cluster
 * of the disk counts as whole if the range ends with it. */
bool spread_is_worthwhile (const struct q_image *img, uint64_t offset, uint64_t len);

/* Writes the LEN bytes at BUF, whole clusters compressed and the rest as q_pwrite does.  Called on
 * a worker; takes part in the work and returns when there is none left to take; others help in
 * LANE's turns.  Then, or later on another worker, DONE is called once, with 0 or the first error.
 */
void spread_write (struct pool *pool, struct lane *lane, struct q_image *img, const uint8_t *buf,
                   uint64_t offset, uint64_t len, void (*done) (void *opaque, int r), void *opaque);

#endif /* SPREAD_H */
