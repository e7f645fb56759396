/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a guest may find on its disk: for every byte the value that is certain, and the values that
 * operations since may have left.
 *
 * Two rules, one structure.  For reads while the engine runs a value becomes certain when its
 * operation is done.  For what a crash leaves it becomes certain when a flush that was asked for
 * after the operation was done has been answered.  The caller says which: expect_settle.
 *
 * Written data is a function of the operation's seed and the offset, so that nothing has to be
 * kept. Operations that overlap must not be under way at once; those that share a 512-byte block
 * may.
 *
 * Threads: none of its own; one caller at a time.
 */

#ifndef CRASH_EXPECT_H
#define CRASH_EXPECT_H

#include "mem.h"

#define BLOCK 512u

enum guest_kind { GUEST_WRITE, GUEST_ZERO, GUEST_DISCARD, GUEST_GO_BACK };

struct guest_op {
  enum guest_kind kind;
  uint64_t offset, len;
  uint64_t seed;   /* GUEST_WRITE */
  uint8_t *zeroed; /* GUEST_DISCARD, once it is done: which blocks from offset's on read as zeros */
  const uint8_t *contents; /* GUEST_GO_BACK: of the whole disk */
  uint64_t when;           /* it was done, in the order of everything; 0 if it never was */
};

/* Set in a seed whose bytes are to be compressible. */
#define GUEST_COMPRESSIBLE (1ull << 63)

/* The byte at OFFSET that a write with SEED puts there; never 0. */
uint8_t guest_byte (uint64_t seed, uint64_t offset);
void guest_fill (uint64_t seed, uint64_t offset, uint64_t len, uint8_t *buf);

struct expect_change {
  const struct guest_op *op;
  bool done;
  uint64_t mask[BLOCK / 64]; /* the bytes of the block that it may have changed */
};

struct expect_block {
  struct expect_change *change; /* in the order in which they began */
  unsigned n, capacity;
};

struct expect {
  uint64_t size;
  uint8_t *certain;
  struct expect_block *block;
};

void expect_init (struct expect *x, const uint8_t *contents, uint64_t size);
void expect_free (struct expect *x);
/* OP may change its range from now on. */
void expect_begin (struct expect *x, const struct guest_op *op);
/* OP has done so.  For a discard, op->zeroed says what. */
void expect_done (struct expect *x, const struct guest_op *op);
/* What was done at or before WHEN is certain now. */
void expect_settle (struct expect *x, uint64_t when);
/* The same for OP alone. */
void expect_settle_op (struct expect *x, const struct guest_op *op);
/* Compares.  True, or *BAD is the offset of the first byte that cannot be. */
bool expect_check (const struct expect *x, uint64_t offset, uint64_t len, const uint8_t *buf,
                   uint64_t *bad);

#endif /* CRASH_EXPECT_H */
