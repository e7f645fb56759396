/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the disk in an image must show: see model.h.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "model.h"

void
model_init (struct model *m, bool wanted)
{
  *m = (struct model){ .known = wanted, .tidy = true };
}

void
model_free (struct model *m)
{
  free (m->data);
  for (unsigned i = 0; i < m->n_snaps; ++i)
    free (m->snap[i].data);
}

void
model_read (struct model *m, struct q_image *img)
{
  free (m->data);
  m->data = NULL;
  m->size = q_size (img);
  if (!m->known)
    return;
  m->known = m->size <= MODEL_MAX;
  if (!m->known)
    return;
  m->data = xalloc (m->size);
  m->known = q_pread (img, m->data, 0, m->size) == 0;
}

static void
differs (const char *what, const uint8_t *is, const uint8_t *should, uint64_t offset, uint64_t len)
{
  for (uint64_t i = 0; i < len; ++i)
    if (is[i] != should[i])
      broken ("%s: byte %" PRIu64 " of the disk is 0x%02x, should be 0x%02x", what, offset + i,
              is[i], should[i]);
}

static void
compare (struct q_image *img, const uint8_t *data, uint64_t size, const char *what)
{
  uint8_t *buf;
  int r;

  if (q_size (img) != size)
    broken ("%s: the disk has %" PRIu64 " bytes, should have %" PRIu64, what, q_size (img), size);
  buf = xalloc (size);
  r = q_pread (img, buf, 0, size);
  if (r < 0)
    broken ("%s: what could be read cannot be any more: %s", what, strerror (-r));
  differs (what, buf, data, 0, size);
  free (buf);
}

void
model_compare (struct model *m, struct q_image *img)
{
  if (m->known)
    compare (img, m->data, m->size, "opened again");
}

void
model_expect (const struct model *m, const uint8_t *buf, uint64_t offset, uint64_t len,
              const char *what)
{
  if (m->known && offset + len <= m->size)
    differs (what, buf, m->data + offset, offset, len);
}

void
model_write (struct model *m, const uint8_t *buf, uint64_t offset, uint64_t len)
{
  if (!m->known || offset > m->size || len > m->size - offset)
    return;
  if (buf)
    memcpy (m->data + offset, buf, len);
  else
    memset (m->data + offset, 0, len);
}

void
model_either (struct model *m, const uint8_t *buf, const uint8_t *other, uint64_t offset,
              uint64_t len, const char *what)
{
  if (!m->known)
    return;
  for (uint64_t i = 0; i < len; ++i)
    if (buf[i] != (other ? other[i] : 0) && buf[i] != m->data[offset + i])
      broken ("%s: byte %" PRIu64 " of the disk is 0x%02x, was 0x%02x", what, offset + i, buf[i],
              m->data[offset + i]);
  memcpy (m->data + offset, buf, len);
}

void
model_resize (struct model *m, uint64_t size)
{
  uint8_t *data;

  if (!m->known)
    return;
  if (size > MODEL_MAX) {
    m->known = false;
    return;
  }
  data = xalloc (size);
  memcpy (data, m->data, size < m->size ? size : m->size);
  free (m->data);
  m->data = data;
  m->size = size;
}

/* ---- snapshots ------------------------------------------------------------------------------- */

static struct model_snap *
find (struct model *m, const char *id)
{
  for (unsigned i = 0; i < m->n_snaps; ++i)
    if (m->snap[i].there && strcmp (m->snap[i].id, id) == 0)
      return &m->snap[i];
  return NULL;
}

void
model_snapshot_made (struct model *m, const char *id)
{
  struct model_snap *s;

  if (!m->known || m->n_snaps == MODEL_SNAPS)
    return;
  s = &m->snap[m->n_snaps++];
  *s = (struct model_snap){ .there = true, .size = m->size, .data = xalloc (m->size) };
  snprintf (s->id, sizeof s->id, "%s", id);
  memcpy (s->data, m->data, m->size);
}

void
model_snapshot_gone (struct model *m, const char *id)
{
  struct model_snap *s = find (m, id);

  if (s)
    s->there = false;
}

bool
model_snapshot_applied (struct model *m, const char *id)
{
  struct model_snap *s = find (m, id);

  if (!s || !m->known)
    return false;
  model_resize (m, s->size);
  memcpy (m->data, s->data, s->size);
  return true;
}

bool
model_snapshot (const struct model *m, unsigned i)
{
  return m->snap[i].there;
}

void
model_compare_snapshot (struct model *m, unsigned i, struct q_image *img)
{
  compare (img, m->snap[i].data, m->snap[i].size, "snapshot");
}
