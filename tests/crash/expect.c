/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a guest may find on its disk: see expect.h.
 */

#include <stdlib.h>
#include <string.h>

#include "expect.h"

uint8_t
guest_byte (uint64_t seed, uint64_t offset)
{
  unsigned run = seed & GUEST_COMPRESSIBLE ? 6 : 3; /* log2 of what repeats 8 bytes */
  uint64_t v = (seed ^ offset >> run) * 0x9e3779b97f4a7c15ull;
  uint8_t b;

  v ^= v >> 29;
  v *= 0xbf58476d1ce4e5b9ull;
  b = (uint8_t)(v >> (offset & 7) * 8);
  return b ? b : 0xa5;
}

void
guest_fill (uint64_t seed, uint64_t offset, uint64_t len, uint8_t *buf)
{
  for (uint64_t i = 0; i < len; ++i)
    buf[i] = guest_byte (seed, offset + i);
}

void
expect_init (struct expect *x, const uint8_t *contents, uint64_t size)
{
  x->size = size;
  x->certain = xalloc (size);
  memcpy (x->certain, contents, size);
  x->block = xalloc ((size + BLOCK - 1) / BLOCK * sizeof *x->block);
}

void
expect_free (struct expect *x)
{
  for (uint64_t i = 0; i < (x->size + BLOCK - 1) / BLOCK; ++i)
    free (x->block[i].change);
  free (x->block);
  free (x->certain);
}

/* ---- masks ----------------------------------------------------------------------------------- */

static bool
has (const struct expect_change *c, unsigned byte)
{
  return c->mask[byte / 64] >> (byte % 64) & 1;
}

static bool
is_empty (const struct expect_change *c)
{
  for (unsigned i = 0; i < BLOCK / 64; ++i)
    if (c->mask[i])
      return false;
  return true;
}

/* ---- changes --------------------------------------------------------------------------------- */

static uint64_t
first_block (const struct guest_op *op)
{
  return op->offset / BLOCK;
}

static uint64_t
last_block (const struct guest_op *op)
{
  return (op->offset + op->len - 1) / BLOCK;
}

void
expect_begin (struct expect *x, const struct guest_op *op)
{
  for (uint64_t i = first_block (op); i <= last_block (op); ++i) {
    struct expect_block *b = &x->block[i];
    uint64_t start = i * BLOCK, end = op->offset + op->len;
    unsigned from = op->offset > start ? (unsigned)(op->offset - start) : 0;
    unsigned to = end < start + BLOCK ? (unsigned)(end - start) : BLOCK;
    struct expect_change *c;

    if (b->n == b->capacity) {
      b->capacity = b->capacity ? 2 * b->capacity : 4;
      b->change = realloc (b->change, b->capacity * sizeof *b->change);
      if (!b->change)
        die ("out of memory");
    }
    c = &b->change[b->n++];
    *c = (struct expect_change){ .op = op };
    for (unsigned k = from; k < to; ++k)
      c->mask[k / 64] |= 1ull << (k % 64);
  }
}

static struct expect_change *
find (struct expect_block *b, const struct guest_op *op)
{
  for (unsigned i = 0; i < b->n; ++i)
    if (b->change[i].op == op)
      return &b->change[i];
  return NULL;
}

void
expect_done (struct expect *x, const struct guest_op *op)
{
  for (uint64_t i = first_block (op); i <= last_block (op); ++i) {
    struct expect_change *c = find (&x->block[i], op);

    if (!c)
      continue;
    c->done = true;
    if (op->kind == GUEST_DISCARD && !op->zeroed[i - first_block (op)])
      memset (c->mask, 0, sizeof c->mask);
  }
}

static uint8_t
value (const struct expect_change *c, uint64_t offset)
{
  return c->op->kind == GUEST_WRITE     ? guest_byte (c->op->seed, offset)
         : c->op->kind == GUEST_GO_BACK ? c->op->contents[offset]
                                        : 0;
}

/* Makes change AT of block I certain: what was before it is gone. */
static void
settle (struct expect *x, uint64_t i, unsigned at)
{
  struct expect_block *b = &x->block[i];
  const struct expect_change *c = &b->change[at];
  unsigned kept = 0;

  for (unsigned k = 0; k < BLOCK; ++k)
    if (has (c, k))
      x->certain[i * BLOCK + k] = value (c, i * BLOCK + k);
  for (unsigned j = 0; j < at; ++j)
    for (unsigned w = 0; w < BLOCK / 64; ++w)
      b->change[j].mask[w] &= ~c->mask[w];
  memset (b->change[at].mask, 0, sizeof c->mask);
  for (unsigned j = 0; j < b->n; ++j)
    if (!is_empty (&b->change[j]))
      b->change[kept++] = b->change[j];
  b->n = kept;
}

void
expect_settle (struct expect *x, uint64_t when)
{
  for (uint64_t i = 0; i < (x->size + BLOCK - 1) / BLOCK; ++i)
    for (unsigned j = 0; j < x->block[i].n;) {
      const struct expect_change *c = &x->block[i].change[j];

      if (c->done && c->op->when <= when) {
        settle (x, i, j);
        j = 0; /* others may have gone as well */
      } else
        ++j;
    }
}

void
expect_settle_op (struct expect *x, const struct guest_op *op)
{
  for (uint64_t i = first_block (op); i <= last_block (op); ++i) {
    struct expect_change *c = find (&x->block[i], op);

    if (c && c->done)
      settle (x, i, (unsigned)(c - x->block[i].change));
  }
}

/* ---- comparing ------------------------------------------------------------------------------- */

static bool
may_be (const struct expect *x, uint64_t offset, uint8_t byte)
{
  const struct expect_block *b = &x->block[offset / BLOCK];

  if (x->certain[offset] == byte)
    return true;
  for (unsigned i = 0; i < b->n; ++i)
    if (has (&b->change[i], offset % BLOCK) && value (&b->change[i], offset) == byte)
      return true;
  return false;
}

bool
expect_check (const struct expect *x, uint64_t offset, uint64_t len, const uint8_t *buf,
              uint64_t *bad)
{
  for (uint64_t at = 0; at < len;) {
    uint64_t pos = offset + at, n = BLOCK - pos % BLOCK;

    n = n < len - at ? n : len - at;
    if (memcmp (x->certain + pos, buf + at, n) != 0)
      for (uint64_t k = 0; k < n; ++k)
        if (!may_be (x, pos + k, buf[at + k])) {
          *bad = pos + k;
          return false;
        }
    at += n;
  }
  return true;
}
