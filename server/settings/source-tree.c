/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The tree of settings of an image (source.h), taken apart: a layer is the nodes over one file,
 * from the format down, and "backing" of its format is the layer below it.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyval.h"
#include "slice.h"
#include "source.h"

/* Nodes over one file. */
#define MAX_NODES 8

/* What has been learnt of one layer on the way down. */
struct descent {
  struct source *source;
  struct source *settings; /* whose settings the nodes change: SOURCE or, where nobody writes, a
                            * copy that is of no use to anybody */
  unsigned layer;          /* below the top */
  char *filename;          /* NULL: what the image above records */
  uint64_t offset, size;   /* the part of the disk that is meant ... */
  uint64_t file_offset, file_size; /* ... and, below the format, of the file */
  bool raw, qcow2;                 /* nodes of that kind were seen */
  bool unlocked;
  bool data; /* the file is no image: it has no format */
  unsigned depth;
};

/* A part [OFFSET, OFFSET + SIZE) of the part that *FROM and *ROOM (TO_END: unknown) describe. */
static bool
narrow (uint64_t offset, uint64_t size, uint64_t *from, uint64_t *room)
{
  if (offset > INT64_MAX || *from > INT64_MAX - offset)
    return false;
  if (size != SOURCE_TO_END && size > INT64_MAX)
    return false;
  /* The outer part, which came first, lies inside this one. */
  if (size != SOURCE_TO_END) {
    if (*from > size || (*room != SOURCE_TO_END && *room > size - *from))
      return false;
    if (*room == SOURCE_TO_END)
      *room = size - *from;
  }
  *from += offset;
  return true;
}

static void
take_cache (struct source *s, struct members *m, struct q_error *err)
{
  json_t *cache = members_get (m, "cache");
  bool direct = s->open.cache == Q_CACHE_DIRECT;

  if (!cache || m->failed)
    return;
  if (!json_is_object (cache)) {
    members_fail (m, "cache: {\"direct\": ..., \"no-flush\": ...} is wanted");
    return;
  }
  struct members c;
  members_init (&c, cache, "cache", err);
  members_bool (&c, "direct", &direct);
  members_bool (&c, "no-flush", &s->ignore_flush);
  bool write_back = !s->write_through;
  members_bool (&c, "writeback", &write_back);
  s->write_through = !write_back;
  s->open.cache = direct ? Q_CACHE_DIRECT : Q_CACHE_BUFFERED;
  if (members_end (&c) < 0)
    m->failed = true;
}

/* Settings of any node. */
static void
take_common (struct source *s, struct members *m, struct q_error *err)
{
  const char *mode = NULL, *ignored = NULL;
  bool unused, read_only = s->open.read_only;

  take_cache (s, m, err);
  members_bool (m, "read-only", &read_only);
  /* What one node forbids, another does not permit. */
  s->open.read_only = s->open.read_only || read_only;
  members_bool (m, "auto-read-only", &unused);
  members_bool (m, "force-share", &unused);
  members_string (m, "node-name", &ignored);
  members_string (m, "discard", &mode);
  if (mode && !source_set_discard (s, mode))
    members_fail (m, "discard=%.100s: ignore or unmap is wanted", mode);
  mode = NULL;
  members_string (m, "detect-zeroes", &mode);
  if (mode && !source_set_detect_zeroes (s, mode))
    members_fail (m, "detect-zeroes=%.100s: off, on or unmap is wanted", mode);
}

static void
take_file_node (struct descent *d, struct members *m)
{
  static const char *const locking[] = { "auto", "on", "off" };
  const char *filename = NULL, *ignored = NULL;
  unsigned lock = 0;
  bool unused;

  members_string (m, "filename", &filename);
  members_choice (m, "locking", locking, 3, &lock);
  members_string (m, "aio", &ignored);
  members_string (m, "pr-manager", &ignored);
  members_bool (m, "drop-cache", &unused);
  members_bool (m, "x-check-cache-dropped", &unused);
  if (!m->failed && (!filename || !*filename))
    members_fail (m, "the setting 'filename' is missing");
  if (m->failed || !filename)
    return;
  d->unlocked = lock == 2;
  d->filename = strdup (filename);
  if (!d->filename)
    members_fail (m, "out of memory");
}

static void
take_raw_node (struct descent *d, struct members *m)
{
  uint64_t offset = 0, size = SOURCE_TO_END;

  members_size (m, "offset", &offset);
  members_size (m, "size", &size);
  if (m->failed)
    return;
  bool ok = d->qcow2 ? narrow (offset, size, &d->file_offset, &d->file_size)
                     : narrow (offset, size, &d->offset, &d->size);
  if (!ok)
    members_fail (m, "offset and size do not fit with those of the node above");
  d->raw = true;
}

static int take_node (struct descent *d, json_t *node, const char *what, struct q_error *err);
static int take_layer (struct source *s, unsigned layer, json_t *node, const char *what,
                       struct q_error *err);

static bool
is_part (uint64_t offset, uint64_t size)
{
  return offset > 0 || size != SOURCE_TO_END;
}

/* The node of an external data file: a whole file, whatever the image calls it. */
static void
take_data_file (struct descent *d, struct members *m, json_t *node)
{
  struct source ignored = *d->source;
  struct descent f = {
    .source = d->source,
    .settings = &ignored,
    .size = SOURCE_TO_END,
    .file_size = SOURCE_TO_END,
    .data = true,
  };
  struct q_error err = { "" };

  if (!json_is_object (node)) {
    members_fail (m,
                  "data-file: a node with its settings is wanted; there are no named nodes here");
    return;
  }
  if (take_node (&f, node, "data-file", &err) < 0)
    members_fail (m, "%s", err.text);
  else if (is_part (f.offset, f.size))
    members_fail (m, "data-file: the driver file or host_device is wanted, or raw without offset "
                     "and size");
  else if (f.unlocked)
    members_fail (m, "data-file: locking=off is said of the image's own file, for both");
  else if (!source_set_layer_data_file (d->source, d->layer, f.filename))
    members_fail (m, "out of memory");
  free (f.filename);
}

/* "encrypt" of the layer that is LAYER below the top. */
static void
take_encrypt (struct source *s, struct members *m, unsigned layer, struct q_error *err)
{
  static const char *const formats[] = { "luks", "aes", "qcow" };
  json_t *encrypt = members_get (m, "encrypt");
  const char *id = NULL;
  struct members e;
  unsigned format;

  if (!encrypt || m->failed)
    return;
  if (!json_is_object (encrypt)) {
    members_fail (m, "encrypt: {\"key-secret\": ...} is wanted");
    return;
  }
  members_init (&e, encrypt, "encrypt", err);
  members_choice (&e, "format", formats, 3, &format); /* the image says itself what it is */
  members_string (&e, "key-secret", &id);
  if (!id)
    members_fail (&e, "the setting 'key-secret' is missing");
  if (members_end (&e) < 0 || source_set_key (s, layer, "encrypt.key-secret", id, err) < 0)
    m->failed = true;
}

/* "backing" of the layer that is LAYER below the top: as QEMU has it, null or settings of the one
 * below that, which may name another file than the image does. */
static void
take_backing (struct source *s, struct members *m, unsigned layer, const char *what,
              struct q_error *err)
{
  bool none = members_is_null (m, "backing");
  json_t *backing = members_get (m, "backing");
  char path[200];

  /* As null is spelt on a command line. */
  none = none || (json_is_string (backing) && !*json_string_value (backing));
  if (none) {
    struct q_layer *said = source_layer (s, layer);
    if (said)
      said->last = true;
  } else if (json_is_object (backing)) {
    snprintf (path, sizeof path, "%.180s: backing", what);
    if (take_layer (s, layer + 1, backing, path, err) < 0)
      m->failed = true;
  } else if (backing)
    members_fail (m, "backing: null (no backing file) or the settings of a node is wanted; there "
                     "are no named nodes here");
}

static void
take_qcow2_settings (struct descent *d, struct members *m, const char *what, struct q_error *err)
{
  struct q_open_options *o = &d->settings->open;
  uint64_t unused_size = 0;
  bool unused;

  members_size (m, "l2-cache-size", &o->l2_cache_size);
  members_size (m, "refcount-cache-size", &o->refcount_cache_size);
  members_size (m, "cache-size", &unused_size);
  members_size (m, "l2-cache-entry-size", &unused_size);
  members_size (m, "cache-clean-interval", &unused_size);
  members_bool (m, "lazy-refcounts", &unused);
  members_bool (m, "pass-discard-request", &unused);
  members_bool (m, "pass-discard-snapshot", &unused);
  members_bool (m, "pass-discard-other", &unused);
  members_bool (m, "discard-no-unref", &o->discard_no_unref);
  members_get (m, "overlap-check");
  json_t *data_file = members_get (m, "data-file");
  if (data_file && !m->failed)
    take_data_file (d, m, data_file);
  take_encrypt (d->source, m, d->layer, err);
  take_backing (d->source, m, d->layer, what, err);
}

static bool
is_file_node (const struct descent *d, json_t *node, const char *driver)
{
  if (driver)
    return strcmp (driver, "file") == 0 || strcmp (driver, "host_device") == 0;
  /* Below the top, what is left out is what the image records. */
  return !json_object_get (node, "file") && (d->layer == 0 || json_object_get (node, "filename"));
}

static int
take_node (struct descent *d, json_t *node, const char *what, struct q_error *err)
{
  struct members m;
  const char *driver = NULL;
  json_t *file = NULL;
  char path[200];

  members_init (&m, node, what, err);
  if (++d->depth > MAX_NODES)
    members_fail (&m, "more than %d nodes over one file", MAX_NODES);
  members_string (&m, "driver", &driver);
  take_common (d->settings, &m, err);
  if (is_file_node (d, node, driver)) {
    take_file_node (d, &m);
    /* At the top, without a format over it, FILE's own bytes are meant. */
    if (driver && !d->qcow2 && d->depth == 1)
      d->raw = true;
    return members_end (&m);
  }
  file = members_get (&m, "file");
  if (!driver) {
    /* The format is to be found out. */
    if (!d->qcow2 && !d->data)
      take_qcow2_settings (d, &m, what, err);
  } else if (strcmp (driver, "compress") == 0)
    d->settings->compress = true;
  else if (strcmp (driver, "raw") == 0)
    take_raw_node (d, &m);
  else if (strcmp (driver, "qcow2") != 0)
    members_fail (&m, "driver=%.100s: one of qcow2, raw, compress, file and host_device is wanted",
                  driver);
  else if (d->data)
    members_fail (&m, "driver=qcow2: file, host_device or raw is wanted");
  else if (d->qcow2)
    members_fail (&m, "a qcow2 node over another one is not supported");
  else {
    d->qcow2 = true;
    take_qcow2_settings (d, &m, what, err);
  }
  if (!m.failed && !file && (d->layer == 0 || d->depth > 1))
    members_fail (&m, "the setting 'file' is missing");
  if (!m.failed && file && !json_is_object (file))
    members_fail (&m, "file: a node with its settings is wanted; there are no named nodes here");
  if (members_end (&m) < 0 || !file)
    return m.failed ? -EINVAL : 0;
  snprintf (path, sizeof path, "%.180s: file", what);
  return take_node (d, file, path, err);
}

/* ---- layers ---------------------------------------------------------------------------------- */

/* A part of a file that stands for the whole: *SLICE. */
static int
cut (const char *filename, uint64_t offset, uint64_t size, struct slice **slice, const char *what,
     struct q_error *err)
{
  if (!is_part (offset, size))
    return 0;
  *slice = slice_new (filename, offset, size);
  if (*slice)
    return 0;
  snprintf (err->text, sizeof err->text, "%s: out of memory", what);
  return -ENOMEM;
}

static int
settle_top (struct descent *d, const char *what, struct q_error *err)
{
  struct source *s = d->source;

  if (d->qcow2)
    s->open.format = Q_FORMAT_QCOW2;
  else if (d->raw)
    s->open.format = Q_FORMAT_RAW;
  s->offset = d->offset;
  s->size = d->size;
  s->filename = d->filename;
  d->filename = NULL;
  if (d->unlocked)
    source_layer (s, 0)->unlocked = true;
  int r = cut (s->filename, d->file_offset, d->file_size, &s->slice, what, err);
  if (r == 0 && s->slice)
    s->open.opener = &s->slice->opener;
  return r;
}

static int
settle_below (struct descent *d, const char *what, struct q_error *err)
{
  struct q_layer *said = source_layer (d->source, d->layer);
  struct source_below *below = &d->source->below[d->layer];
  bool part = is_part (d->offset, d->size);
  int r;

  if (part && (d->qcow2 || !d->filename)) {
    snprintf (err->text, sizeof err->text, "%s: offset and size choose a part of a file%s", what,
              d->qcow2 ? ", not of a qcow2 disk" : ", which is to be given as well");
    return -EINVAL;
  }
  said->format = d->qcow2 ? Q_FORMAT_QCOW2 : d->raw ? Q_FORMAT_RAW : Q_FORMAT_AUTO;
  said->unlocked = d->unlocked;
  said->filename = below->filename = d->filename;
  d->filename = NULL;
  r = part ? cut (below->filename, d->offset, d->size, &below->slice, what, err)
           : cut (below->filename, d->file_offset, d->file_size, &below->slice, what, err);
  if (r == 0 && below->slice)
    said->opener = &below->slice->opener;
  return r;
}

/* The layer that is LAYER below the top. */
static int
take_layer (struct source *s, unsigned layer, json_t *node, const char *what, struct q_error *err)
{
  struct source ignored = *s;
  struct descent d = {
    .source = s,
    .settings = layer == 0 ? s : &ignored,
    .layer = layer,
    .offset = layer == 0 ? s->offset : 0,
    .size = layer == 0 ? s->size : SOURCE_TO_END,
    .file_size = SOURCE_TO_END,
  };
  int r;

  if (!source_layer (s, layer)) {
    snprintf (err->text, sizeof err->text, "%s: more than %d layers", what, SOURCE_LAYERS);
    return -EINVAL;
  }
  r = take_node (&d, node, what, err);
  if (r == 0)
    r = layer == 0 ? settle_top (&d, what, err) : settle_below (&d, what, err);
  free (d.filename);
  return r;
}

int
source_from_tree (struct source *s, json_t *tree, const char *what, struct q_error *err)
{
  return take_layer (s, 0, tree, what, err);
}

int
source_from_name (struct source *s, const char *name, struct q_error *err)
{
  if (strncmp (name, "json:", 5) == 0) {
    json_t *tree = keyval_parse_json (name + 5, "json: image name", err);
    int r = tree ? source_from_tree (s, tree, "json: image name", err) : -EINVAL;
    json_decref (tree);
    return r;
  }
  if (strncmp (name, "file:", 5) == 0)
    name += 5;
  if (!*name) {
    snprintf (err->text, sizeof err->text, "the name of the image file is empty");
    return -EINVAL;
  }
  s->filename = strdup (name);
  if (!s->filename) {
    snprintf (err->text, sizeof err->text, "%s: out of memory", name);
    return -ENOMEM;
  }
  return 0;
}
