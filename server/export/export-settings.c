/* SPDX-License-Identifier: BSD-3-Clause */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "export.h"
#include "slice.h"

/* With its length before it: no value can be taken for another setting. */
static void
put_string (FILE *f, const char *key, const char *value)
{
  if (value)
    fprintf (f, "%s=%zu:%s\n", key, strlen (value), value);
}

static void
put_number (FILE *f, const char *key, uint64_t value)
{
  fprintf (f, "%s=%" PRIu64 "\n", key, value);
}

static void
put_slice (FILE *f, const struct slice *slice)
{
  if (slice) {
    put_number (f, "slice-offset", slice->offset);
    put_number (f, "slice-size", slice->size);
  }
}

static void
put_source (FILE *f, const struct source *s)
{
  const struct q_open_options *o = &s->open;

  put_string (f, "file", s->filename);
  put_number (f, "offset", s->offset);
  put_number (f, "size", s->size);
  put_slice (f, s->slice);
  for (unsigned i = 0; i < o->n_layers; i++) {
    const struct q_layer *l = &s->layers[i];
    put_number (f, "layer", i);
    put_string (f, "file", l->filename);
    put_string (f, "data-file", l->data_file);
    put_number (f, "format", l->format);
    put_number (f, "unlocked", l->unlocked);
    put_number (f, "last", l->last);
    put_slice (f, s->below[i].slice);
  }
  put_number (f, "write-through", s->write_through);
  put_number (f, "ignore-flush", s->ignore_flush);
  put_number (f, "compress", s->compress);
  put_number (f, "compression-level", (uint64_t)o->compression_level);
  put_number (f, "detect-zeroes", s->detect_zeroes);
  put_number (f, "format", o->format);
  put_number (f, "backing", o->backing);
  put_number (f, "data-file-policy", o->data_file_policy);
  put_string (f, "data-file", o->data_file);
  put_number (f, "cache", o->cache);
  put_number (f, "lock", o->lock);
  put_number (f, "read-only", o->read_only);
  put_number (f, "discard", o->discard);
  put_number (f, "discard-no-unref", o->discard_no_unref);
  put_number (f, "l2-cache-size", o->l2_cache_size);
  put_number (f, "refcount-cache-size", o->refcount_cache_size);
  put_string (f, "state-dir", o->state_dir);
}

char *
export_settings (const struct export_options *x)
{
  char *text = NULL;
  size_t size;
  FILE *f = open_memstream (&text, &size);

  if (!f)
    return NULL;
  put_string (f, "name", x->name);
  put_string (f, "node-name", x->base ? x->base->name : NULL);
  put_source (f, &x->source);
  put_string (f, "load-snapshot", x->snapshot);
  put_number (f, "snapshot", x->throw_away);
  put_number (f, "snapshots", x->snapshots);
  put_number (f, "allocation-depth", x->allocation_depth);
  for (unsigned i = 0; i < x->n_bitmaps; i++)
    put_string (f, "bitmap", x->bitmaps[i]);
  put_number (f, "multi-conn", x->multi_conn);
  put_number (f, "resize", x->resizable);
  put_number (f, "min-block", x->min_block);
  put_number (f, "watermark-bytes", x->watermark.at.bytes);
  put_number (f, "watermark-percent", x->watermark.at.percent);
  put_number (f, "watermark-repeat-bytes", x->watermark.repeat.bytes);
  put_number (f, "watermark-repeat-percent", x->watermark.repeat.percent);
  put_string (f, "watermark-exec", x->watermark.exec);
  put_number (f, "on-enospc-wait", x->on_enospc.wait);
  put_number (f, "on-enospc-seconds", x->on_enospc.seconds);
  bool failed = ferror (f);
  if (fclose (f) != 0 || failed) {
    free (text);
    return NULL;
  }
  return text;
}
