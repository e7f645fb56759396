/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a disk must hold although whoever serves it is killed at any instant.
 *
 * The disk's first bytes are cut into cells.  Each cell has one writer, so that what it may hold is
 * known exactly: what was last acknowledged, or what is being written, or, once it was discarded,
 * zeros.  Regions of the writers alternate, so that they meet in clusters, tables and flushes.
 *
 * Order of calls, by the thread of a writer: ledger_pick, then the operation, then, only if it was
 * answered without error, ledger_done; or any time the writer is idle, ledger_check of what was
 * read from its regions.  Of a killed writer nothing needs to be known: what it was writing is
 * in the ledger.  No locks; ledgers may be in memory that processes share.
 */

#ifndef LEDGER_H
#define LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LEDGER_MAX_WRITERS 64
#define LEDGER_MAX_BYTES   (1u << 20) /* of one operation */

enum ledger_kind { LEDGER_WRITE, LEDGER_ZERO, LEDGER_DISCARD, LEDGER_FLUSH, LEDGER_KINDS };

struct ledger_op {
  enum ledger_kind kind;
  uint64_t offset, len; /* bytes */
  bool fua, unmap;      /* suggestions */
  uint32_t value;       /* for ledger_fill */
};

struct ledger;

/* For the first BYTES bytes (a multiple of 1 MiB) of a disk and WRITERS writers; CELL bytes (a
 * power of two, 8 at least) are the finest that an operation's ends are.  SHARED: in memory shared
 * with processes that are forked later.  Exits if there is no memory. */
struct ledger *ledger_new (uint64_t bytes, uint32_t cell, unsigned writers, bool shared);
void ledger_free (struct ledger *l);
/* What the disk holds at the beginning; to be called with everything, piece by piece. */
void ledger_base (struct ledger *l, uint64_t offset, uint64_t len, const void *buf);

/* A random operation of WRITER; from now on it may have happened. */
void ledger_pick (struct ledger *l, unsigned writer, uint64_t *rng, struct ledger_op *op);
/* The op->len bytes that a LEDGER_WRITE writes. */
void ledger_fill (const struct ledger_op *op, void *buf);
/* It was acknowledged: it must have happened. */
void ledger_done (struct ledger *l, const struct ledger_op *op);

/* The LEN bytes at OFFSET, both multiples of the cell size, were read.  SETTLE: nothing is in
 * flight, so what is there now is what must be there from now on.  Returns how many cells hold what
 * they must not, and says what is wrong with the first of them. */
uint64_t ledger_check (struct ledger *l, uint64_t offset, uint64_t len, const void *buf,
                       bool settle);

/* The next region of WRITER at or after *OFFSET, false if there is none. */
bool ledger_region (const struct ledger *l, unsigned writer, uint64_t *offset, uint64_t *len);
uint64_t ledger_bytes (const struct ledger *l);
uint64_t ledger_count (const struct ledger *l, enum ledger_kind kind); /* acknowledged */

uint64_t ledger_random (uint64_t *rng, uint64_t below);

#endif /* LEDGER_H */
