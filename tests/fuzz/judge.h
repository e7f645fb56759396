/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Whether what a server sent is an answer to what a client sent: the NBD protocol from the outside,
 * knowing nothing of how the server does it (doc/proto.md of the NBD project).
 */

#ifndef FUZZ_JUDGE_H
#define FUZZ_JUDGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes {
  uint8_t *data;
  size_t n, capacity;
};

void bytes_add (struct bytes *b, const void *p, size_t n);
void bytes_free (struct bytes *b);

struct trial {
  const struct bytes *client, *server;
  bool cut; /* the server has dropped the client, or not everything it sent was kept: the server's
             * side may end anywhere */
  const uint8_t *disk; /* what it held in the beginning */
  uint64_t size;
};

/* Ends the run if it is not. */
void judge (const struct trial *t);

#endif /* FUZZ_JUDGE_H */
