/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See ledger.h.  A cell's value is a number: 0 what was there at first, 1 zeros, else that of the
 * write that made it; each 8-byte word of a write is made of its value and place.
 */

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ledger.h"

#define BASE  0u
#define ZERO  1u
#define FIRST 2u

/* Regions in the lower and in the upper half of the disk: parts of clusters; many of them. */
#define SMALL (12u << 10)
#define LARGE (768u << 10)

struct cell {
  uint32_t now, next; /* acknowledged; being written, the same if nothing is */
  bool zero;          /* discarded: or zeros */
};

struct ledger {
  uint64_t bytes, mapped;
  uint32_t cell_bytes;
  unsigned writers;
  uint8_t *base;
  struct cell *cell;
  _Atomic uint32_t next_value;
  _Atomic uint64_t count[LEDGER_KINDS];
};

static uint64_t
mix (uint64_t x)
{
  x = (x ^ x >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C (0x94d049bb133111eb);
  return x ^ x >> 31;
}

uint64_t
ledger_random (uint64_t *rng, uint64_t below)
{
  return mix (*rng += UINT64_C (0x9e3779b97f4a7c15)) % below;
}

struct ledger *
ledger_new (uint64_t bytes, uint32_t cell, unsigned writers, bool shared)
{
  uint64_t cells = bytes / cell,
           size = sizeof (struct ledger) + cells * sizeof (struct cell) + bytes;
  struct ledger *l =
      mmap (NULL, size, PROT_READ | PROT_WRITE,
            MAP_ANONYMOUS | MAP_NORESERVE | (shared ? MAP_SHARED : MAP_PRIVATE), -1, 0);

  if (l == MAP_FAILED) {
    perror ("ledger");
    exit (1);
  }
  l->bytes = bytes;
  l->mapped = size;
  l->cell_bytes = cell;
  l->writers = writers;
  l->cell = (struct cell *)(l + 1);
  l->base = (uint8_t *)(l->cell + cells);
  atomic_init (&l->next_value, FIRST);
  return l;
}

void
ledger_free (struct ledger *l)
{
  munmap (l, l->mapped);
}

void
ledger_base (struct ledger *l, uint64_t offset, uint64_t len, const void *buf)
{
  memcpy (l->base + offset, buf, len);
}

uint64_t
ledger_bytes (const struct ledger *l)
{
  return l->bytes;
}

uint64_t
ledger_count (const struct ledger *l, enum ledger_kind kind)
{
  return atomic_load (&l->count[kind]);
}

bool
ledger_region (const struct ledger *l, unsigned writer, uint64_t *offset, uint64_t *len)
{
  uint64_t half = l->bytes / 2;

  for (uint64_t at = *offset; at < l->bytes;) {
    uint64_t start = at < half ? 0 : half, bytes = at < half ? SMALL : LARGE;
    uint64_t number = (at - start) / bytes, end = start + (number + 1) * bytes;

    if (end > (at < half ? half : l->bytes))
      end = at < half ? half : l->bytes;
    if (number % l->writers == writer) {
      *offset = at;
      *len = end - at;
      return true;
    }
    at = end;
  }
  return false;
}

/* A random region of WRITER; there is one if the halves have one for each writer. */
static void
pick_region (const struct ledger *l, unsigned writer, uint64_t *rng, uint64_t *offset,
             uint64_t *len)
{
  uint64_t half = l->bytes / 2;
  bool upper = ledger_random (rng, 4) == 0 && half / LARGE > writer;
  uint64_t bytes = upper ? LARGE : SMALL, rounds = half / bytes / l->writers;

  *offset = (upper ? half : 0) +
            ((rounds ? ledger_random (rng, rounds) : 0) * l->writers + writer) * bytes;
  *len = bytes;
  if (*offset % half + bytes > half)
    *len = half - *offset % half;
}

void
ledger_pick (struct ledger *l, unsigned writer, uint64_t *rng, struct ledger_op *op)
{
  uint64_t dice = ledger_random (rng, 100), offset, len, cells, first, n;
  uint32_t value;

  *op = (struct ledger_op){ .kind = dice < 76   ? LEDGER_WRITE
                                    : dice < 86 ? LEDGER_ZERO
                                    : dice < 96 ? LEDGER_DISCARD
                                                : LEDGER_FLUSH };
  if (op->kind == LEDGER_FLUSH)
    return;
  pick_region (l, writer, rng, &offset, &len);
  cells = len / l->cell_bytes;
  first = ledger_random (rng, cells);
  n = 1 + ledger_random (rng, ledger_random (rng, 3) ? cells : 8);
  switch (ledger_random (rng, 4)) {
  case 0: /* all of it, whole clusters in the middle: what can be freed */
    first = 0;
    n = cells;
    break;
  case 1: /* as file systems do */
    if (l->cell_bytes < 4096) {
      uint64_t block = 4096 / l->cell_bytes;

      first = first / block * block;
      n = (n + block - 1) / block * block;
    }
    break;
  }
  if (n > cells - first)
    n = cells - first;
  op->offset = offset + first * l->cell_bytes;
  op->len = n * l->cell_bytes;
  op->fua = ledger_random (rng, 50) == 0;
  op->unmap = ledger_random (rng, 2);
  op->value = atomic_fetch_add (&l->next_value, 1);
  value = op->kind == LEDGER_WRITE ? op->value : ZERO;
  for (uint64_t i = op->offset / l->cell_bytes; n > 0; --n, ++i)
    if (op->kind == LEDGER_DISCARD)
      l->cell[i].zero = true;
    else
      l->cell[i].next = value;
}

static uint64_t
word (uint32_t value, uint64_t offset)
{
  return mix ((uint64_t)value << 40 ^ offset);
}

void
ledger_fill (const struct ledger_op *op, void *buf)
{
  for (uint64_t i = 0; i < op->len; i += 8) {
    uint64_t w = word (op->value, op->offset + i);

    memcpy ((uint8_t *)buf + i, &w, 8);
  }
}

void
ledger_done (struct ledger *l, const struct ledger_op *op)
{
  uint64_t first = op->offset / l->cell_bytes, n = op->len / l->cell_bytes;

  if (op->kind == LEDGER_WRITE || op->kind == LEDGER_ZERO)
    for (uint64_t i = first; i < first + n; ++i) {
      l->cell[i].now = l->cell[i].next;
      l->cell[i].zero = false;
    }
  atomic_fetch_add (&l->count[op->kind], 1);
}

static bool
holds (const struct ledger *l, uint32_t value, uint64_t offset, const uint8_t *buf)
{
  if (value == BASE)
    return memcmp (buf, l->base + offset, l->cell_bytes) == 0;
  for (uint32_t i = 0; i < l->cell_bytes; i += 8) {
    uint64_t want = value == ZERO ? 0 : word (value, offset + i), got;

    memcpy (&got, buf + i, 8);
    if (got != want)
      return false;
  }
  return true;
}

uint64_t
ledger_check (struct ledger *l, uint64_t offset, uint64_t len, const void *buf, bool settle)
{
  uint64_t wrong = 0;

  for (uint64_t at = 0; at < len; at += l->cell_bytes) {
    struct cell *c = &l->cell[(offset + at) / l->cell_bytes];
    const uint8_t *got = (const uint8_t *)buf + at;
    uint32_t value = c->now;

    if (!holds (l, value, offset + at, got)) {
      value = c->next;
      if (value == c->now || !holds (l, value, offset + at, got)) {
        value = ZERO;
        if (!c->zero || !holds (l, value, offset + at, got)) {
          if (wrong++ == 0)
            fprintf (stderr,
                     "offset %" PRIu64 ": value %" PRIu32 " was acknowledged, %" PRIu32
                     " was being written%s, and none of that is there\n",
                     offset + at, c->now, c->next, c->zero ? ", it was discarded" : "");
          continue;
        }
      }
    }
    if (settle)
      *c = (struct cell){ value, value, false };
  }
  return wrong;
}
