/* SPDX-License-Identifier: BSD-3-Clause */

#include <string.h>

#include "cursor.h"
#include "file.h"

static const struct q_extent nothing = { .kind = Q_ZERO, .flags = Q_HOLE };

static bool
is_past_the_end (const struct img_cursor *c)
{
  return !c->img || c->at >= q_size (c->img);
}

int
img_cursor_look (struct img_cursor *c, const struct q_extent **e, uint64_t *len)
{
  if (is_past_the_end (c)) {
    *e = &nothing;
    *len = c->end - c->at;
    return 0;
  }
  if (c->next == c->n) {
    uint64_t end = c->end < q_size (c->img) ? c->end : q_size (c->img);
    int n = q_map (c->img, c->at, end - c->at, c->extent, IMG_CURSOR_EXTENTS, Q_MAP_HOST);

    if (n < 0)
      return n;
    c->n = n;
    c->next = 0;
    c->skip = 0;
  }
  *e = &c->extent[c->next];
  *len = (*e)->len - c->skip;
  return 0;
}

int
img_cursor_read (const struct img_cursor *c, const struct q_extent *e, uint64_t len, void *buf)
{
  return q_read_extent (e, is_past_the_end (c) ? 0 : c->skip, len, buf);
}

void
img_cursor_advance (struct img_cursor *c, uint64_t len)
{
  const bool inside = !is_past_the_end (c);

  c->at += len;
  if (!inside)
    return;
  c->skip += len;
  while (c->next < c->n && c->skip >= c->extent[c->next].len)
    c->skip -= c->extent[c->next++].len;
}

void
img_cursor_jump (struct img_cursor *c, uint64_t len)
{
  c->at += len;
  c->n = c->next = 0;
  c->skip = 0;
}

bool
img_cursor_same (const struct img_cursor *a, const struct q_extent *x, const struct img_cursor *b,
                 const struct q_extent *y)
{
  if (x->kind == Q_ZERO || y->kind == Q_ZERO)
    return x->kind == y->kind;
  if (x->kind != y->kind || !(x->flags & y->flags & Q_STABLE) || x->file->ino == 0 ||
      x->file->dev != y->file->dev || x->file->ino != y->file->ino)
    return false;
  return x->kind == Q_COMPRESSED
             ? x->host == y->host && x->csize == y->csize && x->skip + a->skip == y->skip + b->skip
             : x->host + a->skip == y->host + b->skip;
}
