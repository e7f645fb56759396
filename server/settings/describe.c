/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "describe.h"

json_t *
describe_text (const char *text)
{
  json_t *j = json_string (text);
  char *copy = j ? NULL : strdup (text);

  for (char *p = copy; p && *p; p++)
    if ((unsigned char)*p >= 0x80)
      *p = '?';
  if (copy)
    j = json_string (copy);
  free (copy);
  return j;
}

const char *
describe_format (enum q_format format)
{
  return format == Q_FORMAT_RAW ? "raw" : "qcow2";
}

/* *J.NAME is VALUE, which is taken over.  NULL, as VALUE or *J, is a want of memory: it makes *J
 * NULL, and what comes after it does nothing. */
static void
put (json_t **j, const char *name, json_t *value)
{
  if (!*j)
    json_decref (value);
  else if (json_object_set_new (*j, name, value) < 0) {
    json_decref (*j);
    *j = NULL;
  }
}

static void
put_size (json_t **j, const char *name, uint64_t value)
{
  put (j, name, json_integer ((json_int_t)value));
}

static void
append (json_t **list, json_t *value)
{
  if (!*list)
    json_decref (value);
  else if (json_array_append_new (*list, value) < 0) {
    json_decref (*list);
    *list = NULL;
  }
}

/* ---- snapshots ------------------------------------------------------------------------------- */

json_t *
describe_snapshot (const struct q_snapshot_info *s)
{
  json_t *j = json_object ();

  if (s->icount != -1)
    put (&j, "icount", json_integer (s->icount));
  put_size (&j, "vm-clock-nsec", s->vm_clock_nsec % 1000000000);
  put (&j, "name", describe_text (s->name));
  put_size (&j, "date-sec", s->date_sec);
  put_size (&j, "date-nsec", s->date_nsec);
  put_size (&j, "vm-clock-sec", s->vm_clock_nsec / 1000000000);
  put (&j, "id", describe_text (s->id));
  put_size (&j, "vm-state-size", s->vm_state_size);
  return j;
}

static json_t *
describe_snapshots (const struct q_image *img)
{
  struct q_snapshot_info *s;
  int n = q_get_snapshots (img, &s);
  json_t *list = n < 0 ? NULL : json_array ();

  for (int i = 0; i < n; i++)
    append (&list, describe_snapshot (&s[i]));
  if (n >= 0)
    free (s);
  return list;
}

/* ---- bitmaps --------------------------------------------------------------------------------- */

/* Qcow2BitmapInfo: as it is on disk. */
static json_t *
stored_bitmap (const struct q_bitmap_info *b)
{
  json_t *flags = json_array (), *j = json_object ();

  if (b->in_use)
    append (&flags, json_string ("in-use"));
  if (b->automatic)
    append (&flags, json_string ("auto"));
  put (&j, "flags", flags);
  put (&j, "name", describe_text (b->name));
  put_size (&j, "granularity", b->granularity);
  return j;
}

/* What it has dirty; 0 if nobody can tell. */
static uint64_t
count_dirty (struct q_image *img, const struct q_bitmap_info *b)
{
  struct q_bitmap *held;
  struct q_error ignored;
  uint64_t dirty = b->dirty;

  if (!b->in_memory && !b->inconsistent && q_bitmap_hold (img, b->name, &held, &ignored) == 0) {
    dirty = q_bitmap_count (held);
    q_bitmap_release (held);
  }
  return dirty;
}

static json_t *
dirty_bitmap (struct q_image *img, const struct q_bitmap_info *b)
{
  json_t *j = json_object ();

  put (&j, "name", describe_text (b->name));
  put (&j, "recording", json_boolean (b->automatic && !b->inconsistent));
  put (&j, "persistent", json_true ());
  put (&j, "busy", json_boolean (b->busy));
  put_size (&j, "granularity", b->granularity);
  put_size (&j, "count", count_dirty (img, b));
  if (b->inconsistent)
    put (&j, "inconsistent", json_true ());
  return j;
}

static json_t *
describe_bitmaps (struct q_image *img, bool stored)
{
  struct q_bitmap_info *b;
  int n = q_get_bitmaps (img, &b, NULL);
  json_t *list = n == -ENOMEM ? NULL : json_array ();

  for (int i = 0; i < n; i++)
    append (&list, stored ? stored_bitmap (&b[i]) : dirty_bitmap (img, &b[i]));
  if (n >= 0)
    free (b);
  return list;
}

json_t *
describe_dirty (struct q_image *img)
{
  return describe_bitmaps (img, false);
}

/* ---- images ---------------------------------------------------------------------------------- */

static json_t *
specific (struct q_image *img, const struct q_image_info *info, json_t *encrypt)
{
  json_t *data = json_object (), *j = json_object ();

  put (&data, "compat", json_string (info->version == 2 ? "0.10" : "1.1"));
  put (&data, "compression-type", json_string (info->compression_type));
  if (info->version >= 3)
    put (&data, "lazy-refcounts", json_boolean (info->lazy_refcounts));
  if (info->version >= 3 && info->nb_bitmaps)
    put (&data, "bitmaps", describe_bitmaps (img, true));
  put_size (&data, "refcount-bits", info->refcount_bits);
  if (info->version >= 3) {
    put (&data, "corrupt", json_boolean (info->corrupt));
    put (&data, "extended-l2", json_boolean (info->extended_l2));
  }
  if (info->version >= 3 && info->data_file) {
    put (&data, "data-file", describe_text (info->data_file));
    put (&data, "data-file-raw", json_boolean (info->data_file_raw));
  }
  if (encrypt)
    put (&data, "encrypt", encrypt);
  put_size (&data, "highest-allocated-offset", info->highest_offset);
  put (&j, "type", json_string ("qcow2"));
  put (&j, "data", data);
  return j;
}

json_t *
describe_image (struct q_image *img, json_t *encrypt)
{
  json_t *j = json_object ();
  struct q_image_info info;

  q_get_info (img, &info);
  put (&j, "filename", describe_text (q_filename (img)));
  put (&j, "format", json_string (describe_format (q_image_format (img))));
  put_size (&j, "virtual-size", info.virtual_size);
  put_size (&j, "actual-size", info.actual_size);
  put (&j, "dirty-flag", json_boolean (info.dirty));
  if (q_image_format (img) == Q_FORMAT_RAW)
    return j;
  put_size (&j, "cluster-size", q_cluster_size (img));
  put_size (&j, "highest-allocated-offset", info.highest_offset);
  if (info.encryption)
    put (&j, "encrypted", json_true ());
  if (info.backing_file)
    put (&j, "backing-filename", describe_text (info.backing_file));
  if (info.backing_file && info.backing_path)
    put (&j, "full-backing-filename", describe_text (info.backing_path));
  if (info.backing_file && info.backing_format)
    put (&j, "backing-filename-format", describe_text (info.backing_format));
  if (info.nb_snapshots)
    put (&j, "snapshots", describe_snapshots (img));
  put (&j, "format-specific", specific (img, &info, encrypt));
  return j;
}

json_t *
describe_chain (struct q_image *img)
{
  json_t *j = describe_image (img, NULL);
  struct q_image *below = q_backing_image (img);

  if (j && below)
    put (&j, "backing-image", describe_chain (below));
  return j;
}

/* ---- checks ---------------------------------------------------------------------------------- */

json_t *
describe_check (const struct q_check_result *r)
{
  const struct {
    const char *name;
    uint64_t value;
  } number[] = {
    { "image-end-offset", r->image_end_offset },
    { "corruptions", r->corruptions },
    { "leaks", r->leaks },
    { "corruptions-fixed", r->corruptions_fixed },
    { "leaks-fixed", r->leaks_fixed },
    { "total-clusters", r->total_clusters },
    { "allocated-clusters", r->allocated_clusters },
    { "fragmented-clusters", r->fragmented_clusters },
    { "compressed-clusters", r->compressed_clusters },
  };
  json_t *j = json_object ();

  put_size (&j, "check-errors", r->check_errors);
  for (size_t i = 0; i < sizeof number / sizeof number[0]; i++)
    if (number[i].value)
      put_size (&j, number[i].name, number[i].value);
  return j;
}
