/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The journal of a repair: see journal.h.
 */

#include <inttypes.h>
#include <stdlib.h>

#include "fuzz.h"
#include "journal.h"

void
journal_begin (struct journal *j, struct mem_file *file)
{
  *j = (struct journal){ .file = file, .size = file->size, .capacity = file->size };
  j->should = xalloc (j->capacity + 1);
  memcpy (j->should, file->data, file->size);
}

static void
grow (struct journal *j, uint64_t size)
{
  if (size > MEM_MAX_BYTES)
    broken ("journal: a change that ends at %" PRIu64, size);
  if (size > j->capacity) {
    uint8_t *more = xalloc (2 * size);

    memcpy (more, j->should, j->size);
    free (j->should);
    j->should = more;
    j->capacity = 2 * size;
  }
  if (size > j->size)
    j->size = size;
}

/* FNV-1a. */
static void
digest (struct journal *j, const void *p, size_t n)
{
  for (size_t i = 0; i < n; ++i)
    j->told = (j->told ^ ((const uint8_t *)p)[i]) * 0x100000001b3;
}

int
journal_note (void *opaque, uint64_t offset, const void *before, const void *after, uint64_t len)
{
  struct journal *j = opaque;

  digest (j, &offset, sizeof offset);
  digest (j, &len, sizeof len);
  if (len == 0)
    return 0;
  digest (j, after, len);
  grow (j, offset + len);
  if (memcmp (j->should + offset, before, len) != 0)
    broken ("journal: %" PRIu64 " bytes at %" PRIu64 " are not what is said to have been there",
            len, offset);
  memcpy (j->should + offset, after, len);
  return 0;
}

void
journal_end (struct journal *j, bool performed)
{
  const struct mem_file *f = j->file;
  uint64_t same = f->size < j->size ? f->size : j->size, at = 0;

  /* Nearly always all of it is as it should be. */
  if (performed && memcmp (f->data, j->should, same) == 0)
    at = same;
  for (uint64_t i = at; performed && i < f->size; ++i) {
    uint8_t should = i < j->size ? j->should[i] : 0;

    if (f->data[i] != should)
      broken ("journal: byte %" PRIu64 " was changed to 0x%02x, which was not told (0x%02x)", i,
              f->data[i], should);
  }
  free (j->should);
  j->should = NULL;
}
