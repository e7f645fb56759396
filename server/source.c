/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyval.h"
#include "secret.h"
#include "slice.h"
#include "source.h"

/* Nodes over one file. */
#define MAX_NODES 8

/* ---- words ----------------------------------------------------------------------------------- */

bool
source_set_cache (struct source *s, const char *mode)
{
  static const struct {
    const char *name;
    bool direct, write_through, ignore_flush;
  } modes[] = {
    { "none", true, false, false },       { "off", true, false, false },
    { "writeback", false, false, false }, { "writethrough", false, true, false },
    { "directsync", true, true, false },  { "unsafe", false, false, true },
  };

  for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
    if (strcmp (mode, modes[i].name) == 0) {
      s->open.cache = modes[i].direct ? Q_CACHE_DIRECT : Q_CACHE_BUFFERED;
      s->write_through = modes[i].write_through;
      s->ignore_flush = modes[i].ignore_flush;
      return true;
    }
  }
  return false;
}

bool
source_set_discard (struct source *s, const char *mode)
{
  s->open.discard = strcmp (mode, "unmap") == 0 || strcmp (mode, "on") == 0;
  return s->open.discard || strcmp (mode, "ignore") == 0 || strcmp (mode, "off") == 0;
}

bool
source_set_format (struct source *s, const char *format)
{
  if (strcmp (format, "qcow2") == 0)
    s->open.format = Q_FORMAT_QCOW2;
  else if (strcmp (format, "raw") == 0)
    s->open.format = Q_FORMAT_RAW;
  else
    return false;
  return true;
}

bool
source_set_detect_zeroes (struct source *s, const char *mode)
{
  static const char *const modes[] = {
    [DETECT_ZEROES_OFF] = "off",
    [DETECT_ZEROES_ON] = "on",
    [DETECT_ZEROES_UNMAP] = "unmap",
  };

  for (unsigned i = 0; i < sizeof modes / sizeof modes[0]; i++) {
    if (strcmp (mode, modes[i]) == 0) {
      s->detect_zeroes = (enum detect_zeroes)i;
      return true;
    }
  }
  return false;
}

bool
source_set_backing (struct source *s, const char *mode)
{
  return q_backing_parse (mode, &s->open.backing);
}

bool
source_set_data_file_policy (struct source *s, const char *mode)
{
  return q_data_file_parse (mode, &s->open.data_file_policy);
}

bool
source_set_data_file (struct source *s, const char *name)
{
  char *copy = strdup (strncmp (name, "file:", 5) == 0 ? name + 5 : name);

  if (!copy)
    return false;
  free (s->data_file);
  s->data_file = copy;
  s->open.data_file = copy;
  return true;
}

bool
source_set_lock (struct source *s, const char *mode)
{
  s->open.lock = strcmp (mode, "off") == 0 ? Q_LOCK_OFF : Q_LOCK_ON;
  return s->open.lock == Q_LOCK_OFF || strcmp (mode, "on") == 0;
}

bool
source_set_compress (struct source *s, const char *how)
{
  char *end;
  unsigned long level = 0;

  s->compress = !how || strcmp (how, "off") != 0;
  if (how && s->compress && strcmp (how, "on") != 0) {
    level = strtoul (how, &end, 10);
    if (how[0] < '0' || how[0] > '9' || *end || level < 1 || level > 100)
      return false;
  }
  s->open.compression_level = (int)level;
  return true;
}

void
source_take_compress (struct source *s, struct members *m)
{
  json_t *v = members_get (m, "compress");
  char level[32];
  const char *how = json_is_string (v) ? json_string_value (v) : json_is_false (v) ? "off" : NULL;

  if (!v)
    return;
  if (json_is_integer (v)) {
    snprintf (level, sizeof level, "%" JSON_INTEGER_FORMAT, json_integer_value (v));
    how = level;
  }
  if ((!how && !json_is_true (v)) || !source_set_compress (s, how))
    members_fail (m, "compress%s%.100s: on, off or a level is wanted", how ? "=" : "",
                  how ? how : "");
}

int
source_set_key (struct source *s, unsigned layer, const char *option, const char *id,
                struct q_error *err)
{
  static const struct objects none = { NULL };
  const struct q_secret *secret;

  if (layer >= SOURCE_LAYERS) {
    snprintf (err->text, sizeof err->text, "%s=%.100s: more than %d layers", option, id,
              SOURCE_LAYERS);
    return -EINVAL;
  }
  secret = objects_find_secret (s->objects ? s->objects : &none, option, id, err);
  if (!secret)
    return -EINVAL;
  s->layer_secrets[layer] = secret;
  s->open.layer_secrets = s->layer_secrets;
  if (s->open.n_layer_secrets <= layer)
    s->open.n_layer_secrets = layer + 1;
  return 0;
}

/* ---- the tree -------------------------------------------------------------------------------- */

/* What has been learnt on the way down. */
struct descent {
  struct source *source;
  uint64_t file_offset, file_size; /* below the format */
  bool raw, qcow2;                 /* nodes of that kind were seen */
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
take_file_node (struct source *s, struct members *m)
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
  if (lock == 2)
    s->open.lock = Q_LOCK_OFF;
  s->filename = strdup (filename);
  if (!s->filename)
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
                     : narrow (offset, size, &d->source->offset, &d->source->size);
  if (!ok)
    members_fail (m, "offset and size do not fit with those of the node above");
  d->raw = true;
}

/* The node of an external data file: a file, whatever the image calls it. */
static void
take_data_file (struct source *s, struct members *m, json_t *node)
{
  const char *driver = "file", *filename = NULL;
  struct q_error err = { "" };
  struct members d;

  if (!json_is_object (node)) {
    members_fail (m,
                  "data-file: a node with its settings is wanted; there are no named nodes here");
    return;
  }
  members_init (&d, node, "data-file", &err);
  members_string (&d, "driver", &driver);
  members_string (&d, "filename", &filename);
  if (strcmp (driver, "file") != 0 && strcmp (driver, "host_device") != 0)
    members_fail (&d, "driver=%.100s: file or host_device is wanted", driver);
  else if (!filename || !*filename)
    members_fail (&d, "the setting 'filename' is missing");
  else if (!source_set_data_file (s, filename))
    members_fail (&d, "out of memory");
  if (members_end (&d) < 0)
    members_fail (m, "%s", err.text);
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

/* "backing" of the layer above: which file it is, the image says; what opens it, the user. */
static void
take_backing (struct source *s, json_t *backing, unsigned layer, struct q_error *err,
              struct members *above)
{
  static const char *const drivers[] = { "qcow2", "raw" };
  unsigned driver;
  struct members m;

  if (!json_is_object (backing)) {
    members_fail (above, "backing: null (no backing file), settings of the backing file that the "
                         "image records, or nothing is wanted");
    return;
  }
  members_init (&m, backing, "backing", err);
  members_choice (&m, "driver", drivers, 2, &driver);
  take_encrypt (s, &m, layer, err);
  json_t *below = members_get (&m, "backing");
  if (below)
    take_backing (s, below, layer + 1, err, &m);
  if (members_end (&m) < 0)
    above->failed = true;
}

static void
take_qcow2_node (struct descent *d, struct members *m, struct q_error *err)
{
  struct source *s = d->source;
  uint64_t unused_size = 0;
  bool unused;

  if (d->qcow2)
    members_fail (m, "a qcow2 node over another one is not supported");
  d->qcow2 = true;
  members_size (m, "l2-cache-size", &s->open.l2_cache_size);
  members_size (m, "refcount-cache-size", &s->open.refcount_cache_size);
  members_size (m, "cache-size", &unused_size);
  members_size (m, "l2-cache-entry-size", &unused_size);
  members_size (m, "cache-clean-interval", &unused_size);
  members_bool (m, "lazy-refcounts", &unused);
  members_bool (m, "pass-discard-request", &unused);
  members_bool (m, "pass-discard-snapshot", &unused);
  members_bool (m, "pass-discard-other", &unused);
  members_bool (m, "discard-no-unref", &s->open.discard_no_unref);
  members_get (m, "overlap-check");
  json_t *data_file = members_get (m, "data-file");
  if (data_file)
    take_data_file (s, m, data_file);
  if (members_is_null (m, "backing"))
    s->open.backing = Q_BACKING_NONE;
  json_t *backing = members_get (m, "backing");
  if (json_is_string (backing) && !*json_string_value (backing))
    s->open.backing = Q_BACKING_NONE; /* as it is spelt on a command line */
  else if (backing)
    take_backing (s, backing, 1, err, m);
  take_encrypt (s, m, 0, err);
}

static int take_node (struct descent *d, json_t *node, const char *what, struct q_error *err);

static int
take_below (struct descent *d, json_t *file, const char *what, struct q_error *err)
{
  char path[100];

  if (!json_is_object (file)) {
    snprintf (err->text, sizeof err->text,
              "%s: file: a node with its settings is wanted; there are no named nodes here", what);
    return -EINVAL;
  }
  snprintf (path, sizeof path, "%s: file", what);
  return take_node (d, file, path, err);
}

static int
take_node (struct descent *d, json_t *node, const char *what, struct q_error *err)
{
  struct source *s = d->source;
  struct members m;
  const char *driver = NULL;
  json_t *file = NULL;

  members_init (&m, node, what, err);
  if (++d->depth > MAX_NODES)
    members_fail (&m, "more than %d nodes over one file", MAX_NODES);
  members_string (&m, "driver", &driver);
  take_common (s, &m, err);
  bool is_file = driver && (strcmp (driver, "file") == 0 || strcmp (driver, "host_device") == 0);
  if (is_file || (!driver && !json_object_get (node, "file"))) {
    take_file_node (s, &m);
    /* At the top, without a format over it, FILE's own bytes are meant. */
    if (is_file && !d->qcow2 && d->depth == 1)
      d->raw = true;
    return members_end (&m);
  }
  file = members_get (&m, "file");
  if (!driver)
    ; /* the format is to be found out */
  else if (strcmp (driver, "compress") == 0)
    s->compress = true;
  else if (strcmp (driver, "raw") == 0)
    take_raw_node (d, &m);
  else if (strcmp (driver, "qcow2") == 0)
    take_qcow2_node (d, &m, err);
  else
    members_fail (&m, "driver=%.100s: one of qcow2, raw, compress, file and host_device is wanted",
                  driver);
  if (!m.failed && !file)
    members_fail (&m, "the setting 'file' is missing");
  int r = members_end (&m);
  return r < 0 ? r : take_below (d, file, what, err);
}

int
source_from_tree (struct source *s, json_t *tree, const char *what, struct q_error *err)
{
  struct descent d = { .source = s, .file_size = SOURCE_TO_END };
  int r;

  r = take_node (&d, tree, what, err);
  if (r < 0)
    return r;
  if (d.qcow2)
    s->open.format = Q_FORMAT_QCOW2;
  else if (d.raw)
    s->open.format = Q_FORMAT_RAW;
  if (d.file_offset > 0 || d.file_size != SOURCE_TO_END) {
    s->slice = slice_new (s->filename, d.file_offset, d.file_size);
    if (!s->slice) {
      snprintf (err->text, sizeof err->text, "%s: out of memory", what);
      return -ENOMEM;
    }
    s->open.opener = &s->slice->opener;
  }
  return 0;
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

int
source_copy (struct source *to, const struct source *from)
{
  *to = *from;
  to->filename = strdup (from->filename);
  to->open.layer_secrets = to->layer_secrets;
  to->overlay_key = NULL;
  to->data_file = from->data_file ? strdup (from->data_file) : NULL;
  to->open.data_file = to->data_file;
  to->slice = NULL;
  if (from->slice) {
    to->slice = slice_new (from->slice->filename, from->slice->offset, from->slice->size);
    if (to->slice)
      to->open.opener = &to->slice->opener;
  }
  if (!to->filename || (from->data_file && !to->data_file) || (from->slice && !to->slice)) {
    source_free (to);
    return -ENOMEM;
  }
  return 0;
}

void
source_free (struct source *s)
{
  free (s->filename);
  free (s->data_file);
  slice_free (s->slice);
  secret_free (s->overlay_key);
  s->overlay_key = NULL;
  s->filename = s->data_file = NULL;
  s->open.data_file = NULL;
  s->slice = NULL;
}
