/* SPDX-License-Identifier: BSD-3-Clause */

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "hooks.h"
#include "keyval.h"
#include "log.h"
#include "nbd.h"
#include "serve.h"
#include "tls.h"

#define MAX_MIN_BLOCK 65536

/* ---- one export ------------------------------------------------------------------------------ */

/* "bitmap": one name or an array of them. */
static void
take_bitmaps (struct members *m, struct export_options *xo, const char **names)
{
  json_t *v = members_get (m, "bitmap");
  size_t n = json_is_array (v) ? json_array_size (v) : v ? 1 : 0;

  if (!v || m->failed)
    return;
  if (n > MAX_BITMAPS) {
    members_fail (m, "%zu bitmaps: the most is %d", n, MAX_BITMAPS);
    return;
  }
  for (size_t i = 0; i < n; i++) {
    names[i] = json_string_value (json_is_array (v) ? json_array_get (v, i) : v);
    if (!names[i]) {
      members_fail (m, "bitmap: a name or an array of names is wanted");
      return;
    }
  }
  xo->bitmaps = names;
  xo->n_bitmaps = (unsigned)n;
}

static void
take_words (struct members *m, struct source *s)
{
  const char *word = NULL;
  bool untrusted = false;

  members_string (m, "format", &word);
  if (word && !source_set_format (s, word))
    members_fail (m, "format=%.100s: qcow2 or raw is wanted", word);
  word = NULL;
  members_string (m, "cache", &word);
  if (word && !source_set_cache (s, word))
    members_fail (
        m, "cache=%.100s: one of none, writeback, writethrough, directsync and unsafe is wanted",
        word);
  word = NULL;
  members_string (m, "discard", &word);
  if (word && !source_set_discard (s, word))
    members_fail (m, "discard=%.100s: ignore or unmap is wanted", word);
  word = NULL;
  members_string (m, "detect-zeroes", &word);
  if (word && !source_set_detect_zeroes (s, word))
    members_fail (m, "detect-zeroes=%.100s: off, on or unmap is wanted", word);
  word = NULL;
  members_bool (m, "untrusted", &untrusted);
  if (untrusted) {
    s->open.backing = Q_BACKING_REFUSE;
    s->open.data_file_policy = Q_DATA_FILE_NONE;
  }
  members_string (m, "backing", &word);
  if (word && !source_set_backing (s, word))
    members_fail (m, "backing=%.100s: recorded, same-dir, any, probe or none is wanted", word);
  word = NULL;
  members_string (m, "data-file-policy", &word);
  if (word && !source_set_data_file_policy (s, word))
    members_fail (m, "data-file-policy=%.100s: same-dir, any or none is wanted", word);
  word = NULL;
  members_string (m, "data-file", &word);
  if (word && !source_set_data_file (s, word))
    members_fail (m, "data-file: out of memory");
  word = NULL;
  members_string (m, "lock", &word);
  if (word && !source_set_lock (s, word))
    members_fail (m, "lock=%.100s: on or off is wanted", word);
  source_take_compress (s, m);
}

static void
take_part (struct members *m, struct source *s)
{
  uint64_t offset = 0, size = SOURCE_TO_END;

  members_size (m, "offset", &offset);
  members_size (m, "size", &size);
  if (offset > INT64_MAX || (size != SOURCE_TO_END && size > INT64_MAX))
    members_fail (m, "offset and size must be less than 2^63");
  s->offset = offset;
  s->size = size;
}

static void
take_limits (struct members *m, struct export_options *xo)
{
  uint64_t connections = xo->max_connections, block = xo->min_block ? xo->min_block : 1;

  members_number (m, "max-connections", 0, 1000000, &connections);
  members_size (m, "rate", &xo->rate);
  members_bool (m, "resize", &xo->resizable);
  members_number (m, "min-block", 1, MAX_MIN_BLOCK, &block);
  if (block & (block - 1))
    members_fail (m, "min-block=%u: a power of two is wanted", (unsigned)block);
  xo->max_connections = (unsigned)connections;
  xo->min_block = (uint32_t)block;
}

/* "tls" and "tls-authz": an export for certain clients is for those that have begun TLS. */
static void
take_tls (struct members *m, struct export_options *xo)
{
  static const char *const modes[] = { "optional", "required" };
  unsigned mode = xo->tls_only;
  const char *authz = NULL;

  members_choice (m, "tls", modes, 2, &mode);
  members_string (m, "tls-authz", &authz);
  if (m->failed)
    return;
  if ((mode || authz) && !xo->tls)
    members_fail (m, "tls and tls-authz need --tls-creds");
  else if (authz) {
    xo->authz = tls_authz (xo->tls, authz, m->err);
    m->failed = !xo->authz;
  }
  xo->tls_only = mode || xo->authz;
}

/* What happens when room becomes short. */
static void
take_watch (struct members *m, struct export_options *xo)
{
  const char *at = NULL, *repeat = NULL, *on_enospc = NULL;

  members_string (m, "watermark", &at);
  members_string (m, "watermark-repeat", &repeat);
  members_string (m, "watermark-exec", &xo->watermark.exec);
  members_string (m, "on-enospc", &on_enospc);
  if (at && !watermark_parse (at, &xo->watermark.at))
    members_fail (m, "watermark=%.100s: a size, or a percentage up to 100%%, is wanted", at);
  if (repeat && !watermark_parse (repeat, &xo->watermark.repeat))
    members_fail (m, "watermark-repeat=%.100s: a size, or a percentage up to 100%%, is wanted",
                  repeat);
  if (on_enospc && !room_parse (on_enospc, &xo->on_enospc))
    members_fail (m, "on-enospc=%.100s: report, wait or wait:SECONDS is wanted", on_enospc);
}

/* All settings of an export are known. */
static int
hand_over (const struct export_options *xo, serve_fn serve, void *opaque, struct q_error *err)
{
  struct q_error why;
  int r = xo->watermark.exec ? hooks_check (xo->watermark.exec, &why) : 0;

  if (r == 0)
    return serve (opaque, xo, err);
  snprintf (err->text, sizeof err->text, "export \"%.200s\": watermark-exec: %.600s", xo->name,
            why.text);
  return r;
}

static int
take_export (json_t *settings, const char *what, const struct export_options *defaults,
             serve_fn serve, void *opaque, struct q_error *err)
{
  struct export_options xo = *defaults;
  const char *bitmaps[MAX_BITMAPS];
  const char *key = NULL;
  struct members m;
  bool read_only = xo.source.open.read_only;

  xo.source.open.data_file = xo.source.data_file = NULL; /* FILE's, not ours */
  members_init (&m, settings, what, err);
  members_string (&m, "name", &xo.name);
  members_string (&m, "description", &xo.description);
  json_t *file = members_get (&m, "file");
  take_words (&m, &xo.source);
  members_bool (&m, "read-only", &read_only);
  members_bool (&m, "readonly", &read_only);
  members_string (&m, "load-snapshot", &xo.snapshot);
  members_bool (&m, "snapshot", &xo.throw_away);
  members_bool (&m, "snapshots", &xo.snapshots);
  members_bool (&m, "allocation-depth", &xo.allocation_depth);
  take_bitmaps (&m, &xo, bitmaps);
  take_part (&m, &xo.source);
  take_limits (&m, &xo);
  take_tls (&m, &xo);
  take_watch (&m, &xo);
  members_string (&m, "key-secret", &key);
  if (!file && !xo.base)
    members_fail (&m, "the setting 'file' is missing");
  else if (file && !json_is_string (file) && !json_is_object (file))
    members_fail (&m, "file: the name of an image file, or a node with its settings, is wanted");
  if (strlen (xo.name) > NBD_MAX_STRING ||
      (xo.description && strlen (xo.description) > NBD_MAX_STRING))
    members_fail (&m, "name and description may have %d bytes", NBD_MAX_STRING);
  int r = members_end (&m);
  xo.source.open.read_only = read_only;
  xo.multi_conn = xo.max_connections != 1;
  if (r == 0 && key) {
    xo.source.open.secret = objects_find_secret (xo.source.objects, "key-secret", key, err);
    r = xo.source.open.secret ? 0 : -EINVAL;
  }
  if (r == 0 && json_is_string (file))
    r = source_from_name (&xo.source, json_string_value (file), err);
  else if (r == 0 && file)
    r = source_from_tree (&xo.source, file, what, err);
  if (r == 0)
    r = hand_over (&xo, serve, opaque, err);
  source_free (&xo.source);
  return r;
}

static int
add (void *opaque, const struct export_options *opts, struct q_error *err)
{
  return exports_add (opaque, opts, err);
}

int
serve_export (struct exports *set, json_t *settings, const char *what,
              const struct export_options *defaults, struct q_error *err)
{
  return take_export (settings, what, defaults, add, set, err);
}

/* ---- a directory ----------------------------------------------------------------------------- */

static int
visible (const struct dirent *e)
{
  return e->d_name[0] != '.';
}

static const char *
format_by_name (const char *name)
{
  static const struct {
    const char *suffix, *format;
  } known[] = { { ".qcow2", "qcow2" }, { ".raw", "raw" }, { ".img", "raw" } };
  const char *suffix = strrchr (name, '.');

  for (size_t i = 0; suffix && i < sizeof known / sizeof known[0]; i++)
    if (strcmp (suffix, known[i].suffix) == 0)
      return known[i].format;
  return NULL;
}

/* The export of the file NAME in DIR; nothing if it is no image. */
static int
take_entry (const char *dir, const char *name, const json_t *settings,
            const struct export_options *defaults, serve_fn serve, void *opaque,
            struct q_error *err)
{
  const char *format = format_by_name (name);
  char *path = NULL;
  struct stat st;
  int r = 0;

  if (asprintf (&path, "%s/%s", dir, name) < 0) {
    snprintf (err->text, sizeof err->text, "%s: out of memory", dir);
    return -ENOMEM;
  }
  if (stat (path, &st) < 0 || !(S_ISREG (st.st_mode) || S_ISBLK (st.st_mode)) ||
      (!format && !json_object_get (settings, "format"))) {
    log_info ("%s: not served: %s", path,
              format ? "no regular file or block device" : "no name of an image");
    free (path);
    return 0;
  }
  json_t *one = json_deep_copy (settings);
  if (!one || json_object_set_new (one, "name", json_string (name)) < 0 ||
      json_object_set_new (one, "file", json_string (path)) < 0 ||
      (format && !json_object_get (one, "format") &&
       json_object_set_new (one, "format", json_string (format)) < 0)) {
    snprintf (err->text, sizeof err->text, "%s: its name is not UTF-8, or memory is short", path);
    r = -EINVAL;
  }
  if (r == 0)
    r = take_export (one, "--export-dir", defaults, serve, opaque, err);
  json_decref (one);
  free (path);
  return r;
}

static int
take_directory (const json_t *settings, const struct export_options *defaults, serve_fn serve,
                void *opaque, struct q_error *err)
{
  const char *dir = json_string_value (json_object_get (settings, "dir"));
  struct dirent **entries;

  if (!dir || json_object_get (settings, "name") || json_object_get (settings, "file")) {
    snprintf (err->text, sizeof err->text,
              "--export-dir: DIR,... is wanted, with the settings of --export but name and file");
    return -EINVAL;
  }
  int n = scandir (dir, &entries, visible, alphasort);
  if (n < 0) {
    int r = -errno;
    snprintf (err->text, sizeof err->text, "--export-dir=%s: %s", dir, strerror (-r));
    return r;
  }
  json_t *rest = json_deep_copy (settings);
  int r = rest ? json_object_del (rest, "dir") : -1;
  if (r < 0) {
    snprintf (err->text, sizeof err->text, "%s: out of memory", dir);
    r = -ENOMEM;
  }
  for (int i = 0; i < n; i++) {
    if (r == 0)
      r = take_entry (dir, entries[i]->d_name, rest, defaults, serve, opaque, err);
    free (entries[i]);
  }
  free (entries);
  json_decref (rest);
  return r;
}

/* ---- commands -------------------------------------------------------------------------------- */

int
serve_hooks (const struct options *opts, struct q_error *err)
{
  const json_t *const lists[] = { opts->exports, opts->directories };
  const char *command = opts->export.watermark.exec;
  const json_t *settings;
  size_t i;
  int r = command ? hooks_allow (command, err) : 0;

  for (size_t l = 0; l < sizeof lists / sizeof lists[0]; l++) {
    json_array_foreach (lists[l], i, settings)
    {
      command = json_string_value (json_object_get (settings, "watermark-exec"));
      if (r == 0 && command)
        r = hooks_allow (command, err);
    }
  }
  return r;
}

/* ---- all that a command line asks for -------------------------------------------------------- */

/* FILE. */
static int
take_file (const struct options *opts, const struct export_options *settings, serve_fn serve,
           void *opaque, struct q_error *err)
{
  struct export_options xo = *settings;
  uint64_t offset = xo.source.offset;
  int r;

  if (source_copy (&xo.source, &settings->source) < 0) {
    snprintf (err->text, sizeof err->text, "%s: out of memory", opts->filename);
    return -ENOMEM;
  }
  xo.source.offset = 0;
  if (opts->image_opts) {
    json_t *tree = keyval_parse (opts->filename, NULL, err);
    r = tree ? source_from_tree (&xo.source, tree, "--image-opts", err) : -EINVAL;
    json_decref (tree);
  } else
    r = source_from_name (&xo.source, opts->filename, err);
  /* --offset counts in the disk that FILE describes, of which that may be a part already. */
  if (r == 0 && offset > 0) {
    if (xo.source.size != SOURCE_TO_END && offset > xo.source.size) {
      snprintf (err->text, sizeof err->text,
                "--offset=%llu: the part that %s describes has %llu bytes",
                (unsigned long long)offset, opts->filename, (unsigned long long)xo.source.size);
      r = -EINVAL;
    } else {
      if (xo.source.size != SOURCE_TO_END)
        xo.source.size -= offset;
      xo.source.offset += offset;
    }
  }
  if (r == 0)
    r = hand_over (&xo, serve, opaque, err);
  source_free (&xo.source);
  return r;
}

void
serve_defaults (const struct options *opts, struct tls *tls, struct export_options *defaults)
{
  *defaults = opts->export;
  defaults->tls = tls;
  defaults->name = "";
  defaults->description = defaults->snapshot = NULL;
  defaults->n_bitmaps = 0;
  defaults->source.offset = 0;
  defaults->source.open.format = Q_FORMAT_AUTO;
}

int
serve_all (const struct options *opts, struct tls *tls, serve_fn serve, void *opaque,
           struct q_error *err)
{
  struct export_options file = opts->export, defaults;
  json_t *tree;
  size_t i;
  int r = 0;

  serve_defaults (opts, tls, &defaults);
  file.tls = tls;
  file.configured = defaults.configured = true;
  if (opts->filename)
    r = take_file (opts, &file, serve, opaque, err);
  json_array_foreach (opts->exports, i, tree)
  {
    if (r == 0)
      r = take_export (tree, "--export", &defaults, serve, opaque, err);
  }
  json_array_foreach (opts->directories, i, tree)
  {
    if (r == 0)
      r = take_directory (tree, &defaults, serve, opaque, err);
  }
  return r;
}
