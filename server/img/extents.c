/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Walking along a disk, extent by extent.
 */

#include "file.h"
#include "img.h"

/* Extents asked for at a time. */
#define BATCH 256

void
img_layers_init (struct img_layers *l, struct q_image *img)
{
  l->n = 0;
  for (struct q_image *i = img; i && l->n < Q_MAX_CHAIN; i = q_backing_image (i), l->n++) {
    l->layer[l->n].image = i;
    l->layer[l->n].sparse = q_is_sparse (i);
  }
}

/* An extent of data in a file that has holes where clusters are allocated. */
static int
split_at_holes (struct img_extent *x, img_extent_fn fn, void *opaque)
{
  const uint64_t len = x->e.len;
  int r = 0;

  for (uint64_t done = 0; r == 0 && done < len; done += x->e.len) {
    uint64_t end;

    if (q_file_extent (x->e.file, x->e.host, &end, &x->reads_zero) < 0 || end <= x->e.host) {
      x->reads_zero = false;
      end = x->e.host + (len - done);
    }
    x->e.len = end - x->e.host < len - done ? end - x->e.host : len - done;
    r = fn (opaque, x);
    x->offset += x->e.len;
    x->e.host += x->e.len;
  }
  return r;
}

int
img_walk (const struct img_layers *l, uint64_t offset, uint64_t len, img_extent_fn fn, void *opaque)
{
  struct q_image *img = l->layer[0].image;
  const uint64_t end = offset + len;
  struct q_extent e[BATCH];
  int r = 0;

  while (r == 0 && offset < end) {
    q_pin_t pin = q_pin ();
    int n = q_map (img, offset, end - offset, e, BATCH, Q_MAP_HOST);

    if (n < 0)
      r = n;
    for (int i = 0; r == 0 && i < n; offset += e[i].len, i++) {
      struct img_extent x = { .offset = offset, .e = e[i], .reads_zero = e[i].kind == Q_ZERO };

      x.absent = img_extent_is_absent (img, &e[i]);
      if (e[i].kind == Q_DATA && l->layer[e[i].depth].sparse)
        r = split_at_holes (&x, fn, opaque);
      else
        r = fn (opaque, &x);
    }
    q_unpin (pin);
  }
  return r;
}
