/* SPDX-License-Identifier: BSD-3-Clause
 *
 * convert --bitmaps: the persistent dirty bitmaps of the source, also in the target.
 *
 * They are made when all data has been copied: what was written for that is not what they record.
 * All of them appear in the target, or none.
 */

#include <errno.h>
#include <stdlib.h>

#include "convert.h"

bool
img_convert_check_bitmaps (const struct conversion *c, bool skip_broken)
{
  struct q_image *img = c->source[0];
  struct q_bitmap_info *list;
  bool good = true;
  unsigned n;

  if (c->n_sources > 1)
    return img_error ("--bitmaps: of one image, not of several in a row") == 0;
  if (q_image_format (img) != Q_FORMAT_QCOW2)
    return img_error ("--bitmaps: %s: only qcow2 images have bitmaps", q_filename (img)) == 0;
  list = img_list_bitmaps (img, &n);
  if (!list)
    return false;
  for (unsigned i = 0; good && !skip_broken && i < n; i++)
    if (list[i].inconsistent)
      good = img_error ("%s: the bitmap '%s' was left in use and means nothing any more: "
                        "--skip-broken-bitmaps leaves it out, 'nbdcow-img bitmap --remove' removes "
                        "it",
                        q_filename (img), list[i].name) == 0;
  free (list);
  return good;
}

bool
img_convert_bitmaps (const struct conversion *c)
{
  struct q_image *source = c->source[0];
  struct q_bitmap_action *a;
  struct q_bitmap_info *list;
  struct q_error err = { "" };
  unsigned n, n_actions = 0;
  int r;

  list = img_list_bitmaps (source, &n);
  if (!list)
    return false;
  a = calloc (2ull * n + 1, sizeof *a);
  r = a ? 0 : img_error ("out of memory");
  for (unsigned i = 0; r == 0 && i < n; i++) {
    const struct q_bitmap_info *b = &list[i];

    if (b->inconsistent) {
      img_warning ("%s: the bitmap '%s' was left in use: it is left out", q_filename (source),
                   b->name);
      continue;
    }
    a[n_actions++] = (struct q_bitmap_action){
      .op = Q_BITMAP_ADD, .name = b->name, .granularity = b->granularity, .disabled = !b->automatic
    };
    a[n_actions++] = (struct q_bitmap_action){
      .op = Q_BITMAP_MERGE, .name = b->name, .source = b->name, .source_image = source
    };
  }
  if (r == 0 && n_actions > 0) {
    r = q_bitmap_change (c->target, a, n_actions, &err);
    if (r < 0)
      img_error ("%s", err.text);
  }
  free (a);
  free (list);
  return r == 0;
}
