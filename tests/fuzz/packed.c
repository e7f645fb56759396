/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Images as inputs: see packed.h.
 */

#include <string.h>

#include "packed.h"

#define PIECE_HEAD 6u
/* Zeros that are not worth a piece's end. */
#define GAP 12u

void
packed_put (struct mem_file *f, const uint8_t *p, size_t n)
{
  mem_resize (f, 0);
  while (n >= PIECE_HEAD) {
    uint64_t offset =
        (p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24) % PACKED_MAX;
    size_t len = p[4] | (size_t)p[5] << 8;

    p += PIECE_HEAD;
    n -= PIECE_HEAD;
    len = len < n ? len : n;
    len = len < PACKED_MAX - offset ? len : PACKED_MAX - offset;
    if (offset + len > f->size)
      mem_resize (f, offset + len);
    if (len > 0)
      memcpy (f->data + offset, p, len);
    p += len;
    n -= len;
  }
}

/* The first byte from AT on that is not zero. */
static size_t
skip_zeros (const uint8_t *image, size_t size, size_t at)
{
  while (at < size && image[at] == 0)
    ++at;
  return at;
}

/* Where the piece that begins at FROM ends: before GAP zeros. */
static size_t
piece_end (const uint8_t *image, size_t size, size_t from)
{
  size_t end = from;

  for (size_t at = from; at < size && at - from < UINT16_MAX && at - end < GAP; ++at)
    if (image[at] != 0)
      end = at + 1;
  return end;
}

static size_t
put_head (uint8_t *out, size_t offset, size_t len)
{
  for (unsigned i = 0; i < 4; ++i)
    out[i] = (uint8_t)(offset >> 8 * i);
  out[4] = (uint8_t)len;
  out[5] = (uint8_t)(len >> 8);
  return PIECE_HEAD;
}

size_t
packed_take (const uint8_t *image, size_t size, uint8_t *out, size_t max)
{
  size_t n = 0, end = 0;

  for (size_t at = skip_zeros (image, size, 0); at < size; at = skip_zeros (image, size, end)) {
    end = piece_end (image, size, at);
    if (max - n < PIECE_HEAD + (end - at))
      return 0;
    n += put_head (out + n, at, end - at);
    memcpy (out + n, image + at, end - at);
    n += end - at;
  }
  if (end == size)
    return n;
  if (max - n < PIECE_HEAD)
    return 0;
  return n + put_head (out + n, size < PACKED_MAX ? size : PACKED_MAX - 1, 0);
}
