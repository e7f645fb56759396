/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Views: exports that show an image which another export has open, as it is or as one of its
 * internal snapshots was, for reading; with bitmaps of that image.
 *
 * A view hangs on its base as the exports of its snapshots do: it goes with it, and before it.  So
 * what it borrows, the image or bitmaps in it, is there as long as the view.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "export.h"

bool
export_keep_chain (struct export *x, const struct export_options *opts)
{
  const struct source *s = &opts->source;

  if (opts->base || opts->throw_away || (!s->data_file && s->open.n_layers == 0))
    return true;
  x->chain = malloc (sizeof *x->chain);
  if (!x->chain || source_copy (x->chain, s) < 0) {
    free (x->chain);
    x->chain = NULL;
    return false;
  }
  source_forget_keys (x->chain);
  return true;
}

void
export_forget_chain (struct export *x)
{
  if (x->chain)
    source_free (x->chain);
  free (x->chain);
}

int
export_view (struct export_options *opts, struct q_error *err)
{
  const struct export *base = opts->base;
  struct source *s = &opts->source;

  if (base->parent != 0) {
    snprintf (err->text, sizeof err->text,
              "export \"%.400s\": \"%.400s\" shows the image of another export itself: name that",
              opts->name, base->name);
    return -EINVAL;
  }
  opts->throw_away = opts->snapshots = opts->resizable = false;
  opts->watermark = (struct watermark_options){ .exec = NULL };
  opts->on_enospc = (struct room_options){ .wait = false };
  /* Copied, like everything else, by whoever opens it. */
  s->filename = (char *)q_filename (base->img);
  s->slice = base->slice;
  source_borrow_chain (s, base->chain);
  s->write_through = s->compress = false;
  s->detect_zeroes = DETECT_ZEROES_OFF;
  s->open.format = q_image_format (base->img);
  s->open.cache = base->direct ? Q_CACHE_DIRECT : Q_CACHE_BUFFERED;
  s->open.backing = base->backing;
  s->open.data_file_policy = base->data_file_policy;
  s->open.read_only = true;
  s->open.state_dir = NULL;
  /* The image is locked already, by us; what a snapshot holds does not change. */
  s->open.lock = Q_LOCK_OFF;
  return 0;
}

bool
export_borrows (const struct export *x)
{
  return x->base && !x->snapshot;
}

const struct export *
export_node (const struct export *x)
{
  return export_borrows (x) ? x->base : x;
}
