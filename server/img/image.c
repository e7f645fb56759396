/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening images, for all sub-commands.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "file.h"
#include "img.h"
#include "keyval.h"
#include "nbd-file.h"
#include "objects.h"
#include "secret.h"
#include "slice.h"
#include "source.h"

/* ---- what an image needs beside itself ------------------------------------------------------- */

/* Openers, and what they refer to, must outlive the image; this program has a few images and a
 * short life, and keeps them all. */
static struct kept {
  struct kept *next;
  struct source source;
  struct q_image *img;
} * kept;

/* An opener of files that are never synced, over another one. */
static struct unsynced {
  struct unsynced *next;
  struct q_file_opener opener;
  const struct q_file_opener *below;
  struct unsynced_ops {
    struct unsynced_ops *next;
    struct q_file_ops ops;
  } * ops;
} * unsynced;

struct objects img_objects;
static struct q_secret *key; /* of --key-file */

/* cache=unsafe: a sync does nothing, in whatever file. */
static int
sync_nothing (struct q_file *f)
{
  (void)f;
  return 0;
}

static int
open_unsynced (void *opaque, const char *name, unsigned flags, struct q_file **file,
               struct q_error *err)
{
  struct unsynced *u = opaque;
  struct unsynced_ops *o = malloc (sizeof *o);

  *file = NULL;
  if (!o) {
    snprintf (err->text, sizeof err->text, "%s: out of memory", name);
    return -ENOMEM;
  }
  o->next = u->ops;
  u->ops = o;

  int r = q_file_open (u->below, name, flags, file, err);

  if (r == 0) {
    o->ops = *(*file)->ops;
    o->ops.sync = sync_nothing;
    (*file)->ops = &o->ops;
  }
  return r;
}

const struct q_file_opener *
img_unsynced (const struct q_file_opener *below)
{
  struct unsynced *u = calloc (1, sizeof *u);

  if (!u)
    return below; /* slower, and good all the same */
  u->opener = (struct q_file_opener){ open_unsynced, u };
  u->below = below;
  u->next = unsynced;
  unsynced = u;
  return &u->opener;
}

/* ---- opening --------------------------------------------------------------------------------- */

bool
img_check_cache (const char *mode)
{
  struct source s = { 0 };

  if (source_set_cache (&s, mode))
    return true;
  img_error ("cache mode '%s' is not known: it is writeback, writethrough, unsafe, none or "
             "directsync",
             mode);
  return false;
}

bool
img_image_option (struct img_spec *spec, int letter, int *status)
{
  struct q_error err = { "" };
  struct source s = { 0 };

  switch (letter) {
  case 'U':
    spec->force_share = true;
    return true;
  case IMG_OPT_OPTS:
    spec->image_opts = true;
    return true;
  case IMG_OPT_OBJECT:
    if (objects_add (&img_objects, optarg, &err) < 0)
      *status = img_error ("%s", err.text);
    return true;
  case IMG_OPT_KEY_FILE:
    secret_free (key);
    key = secret_from_key_file (optarg, "--key-file", &err);
    if (!key)
      *status = img_error ("%s", err.text);
    return true;
  case IMG_OPT_BACKING_MODE:
    spec->backing_mode = optarg;
    if (!source_set_backing (&s, optarg))
      *status = img_error (
          "--backing-mode '%s' is not known: it is recorded, same-dir, any, probe or none", optarg);
    return true;
  case IMG_OPT_DATA_FILE:
    spec->data_file = optarg;
    return true;
  case IMG_OPT_DATA_FILE_POLICY:
    spec->data_file_policy = optarg;
    if (!source_set_data_file_policy (&s, optarg))
      *status =
          img_error ("--data-file-policy '%s' is not known: it is same-dir, any or none", optarg);
    return true;
  case IMG_OPT_UNTRUSTED:
    spec->untrusted = true;
    return true;
  default:
    return false;
  }
}

/* A part of the disk that was asked for by offset and size: of a raw image that is a part of its
 * file. */
static bool
take_part (struct source *s, const char *name)
{
  if (s->offset == 0 && s->size == SOURCE_TO_END)
    return true;
  if (s->open.format != Q_FORMAT_RAW || s->slice) {
    img_error ("%s: offset and size choose a part of a file, not of a qcow2 disk", name);
    return false;
  }
  s->slice = slice_new (s->filename, s->offset, s->size);
  if (!s->slice) {
    img_error ("%s: out of memory", name);
    return false;
  }
  s->open.opener = &s->slice->opener;
  return true;
}

/* Everything in SPEC but the image's name. */
static bool
apply (const struct img_spec *spec, struct source *s)
{
  q_open_options_init (&s->open);
  s->size = SOURCE_TO_END;
  s->objects = &img_objects;
  s->open.secret = key;
  s->open.read_only = !spec->writable;
  s->open.recorded = spec->recorded;
  s->open.lock = spec->force_share ? Q_LOCK_OFF : Q_LOCK_ON;
  s->open.snapshot = spec->snapshot;
  s->open.discard = spec->discard;
  s->open.metadata_only = spec->metadata_only;
  s->open.repair = spec->repair;
  s->open.compression_level = spec->compression_level;
  if (spec->format && spec->image_opts) {
    img_error ("%s: a format (%s) cannot be given together with --image-opts: write driver=%s",
               spec->name, spec->format, spec->format);
    return false;
  }
  if (spec->format && !img_parse_format (spec->format, &s->open.format))
    return false;
  if (spec->writable && spec->force_share) {
    img_error ("%s: -U is not possible: the image is written", spec->name);
    return false;
  }
  if (spec->untrusted) {
    s->open.backing = Q_BACKING_REFUSE;
    s->open.data_file_policy = Q_DATA_FILE_NONE;
  }
  /* Who only looks at metadata does without it; a writer syncs it. */
  if (spec->data_file && (!spec->metadata_only || spec->writable) &&
      !source_set_data_file (s, spec->data_file)) {
    img_error ("out of memory");
    return false;
  }
  if (spec->data_file_policy && !source_set_data_file_policy (s, spec->data_file_policy))
    return false;
  return (!spec->cache || (img_check_cache (spec->cache) && source_set_cache (s, spec->cache))) &&
         (!spec->backing_mode || source_set_backing (s, spec->backing_mode));
}

/* NULL if it was not opened by img_open_spec. */
static const struct kept *
kept_of (const struct q_image *img)
{
  const struct kept *k = kept;

  while (k && k->img != img)
    k = k->next;
  return k;
}

bool
img_chain_is_recorded (const struct q_image *img)
{
  const struct kept *k = kept_of (img);

  if (!k || !source_names_layers (&k->source))
    return true;
  img_error ("%s: 'backing' in its settings is another chain than the one that the images record, "
             "which is the one that is changed: 'rebase -u' records another",
             q_filename (img));
  return false;
}

const struct q_secret *
img_secret_of (const struct q_image *img)
{
  const struct kept *k = kept_of (img);

  if (!k)
    return NULL;
  return k->source.layers[0].secret ? k->source.layers[0].secret : k->source.open.secret;
}

bool
img_load_secrets (void)
{
  static bool warned;
  const char *visible = NULL;
  struct q_error err = { "" };

  if (objects_load_secrets (&img_objects, &visible, &err) < 0) {
    img_error ("%s", err.text);
    return false;
  }
  if (visible && !warned)
    img_warning ("--object secret,id=%s: everybody on this machine can see what follows data=: "
                 "file=PATH keeps a secret",
                 visible);
  warned = warned || visible;
  return true;
}

void
img_forget_secrets (void)
{
  objects_free (&img_objects);
  secret_free (key);
  key = NULL;
}

/* FILENAME (may be NULL) by NBD, if that is what it is. */
static int
open_by_nbd (const char *filename, const struct slice *slice, const struct q_file_opener **opener,
             struct q_error *err)
{
  if (!filename || !img_is_nbd (filename))
    return 0;
  if (slice) {
    snprintf (err->text, sizeof err->text,
              "%s: offset and size below a format are for local files: let the server export the "
              "part",
              filename);
    return -ENOTSUP;
  }
  *opener = &img_nbd_opener;
  return 0;
}

/* The image's name, in whatever way it was written by the user; what an image says is a path. */
static bool
find_file (const struct img_spec *spec, struct source *s)
{
  struct q_error err = { "" };
  json_t *tree;
  int r;

  if (spec->recorded) {
    s->filename = strdup (spec->name);
    if (!s->filename)
      img_error ("out of memory");
    return s->filename;
  }
  if (!spec->image_opts)
    r = source_from_name (s, spec->name, &err);
  else {
    tree = keyval_parse (spec->name, "file", &err);
    r = tree ? source_from_tree (s, tree, "--image-opts", &err) : -EINVAL;
    json_decref (tree);
  }
  if (r == 0)
    r = open_by_nbd (s->filename, s->slice, &s->open.opener, &err);
  for (unsigned i = 1; r == 0 && i < s->open.n_layers; i++)
    r = open_by_nbd (s->below[i].filename, s->below[i].slice, &s->layers[i].opener, &err);
  if (r < 0)
    img_error ("%s", err.text);
  return r == 0 && take_part (s, spec->name);
}

/* Finds out what the file is when nobody has said: qcow2 if it begins with its magic, else raw. */
static bool
probe (struct source *s)
{
  struct q_error err = { "" };
  struct q_file *f;
  char magic[4];
  int r = q_file_open (s->open.opener, s->filename, s->open.recorded, &f, &err);

  if (r < 0) {
    img_error ("%s", err.text);
    return false;
  }
  r = q_file_pread (f, magic, sizeof magic, 0);
  q_file_close (&f);
  if (r < 0) {
    img_error ("%s: cannot read: %s", s->filename, strerror (-r));
    return false;
  }
  s->open.format = memcmp (magic, "QFI\xfb", sizeof magic) == 0 ? Q_FORMAT_QCOW2 : Q_FORMAT_RAW;
  return true;
}

/* What SPEC says, in the words of the engine; NULL, and reported, if that makes no sense. */
static struct kept *
resolve (const struct img_spec *spec)
{
  struct kept *k = calloc (1, sizeof *k);

  if (!k) {
    img_error ("out of memory");
    return NULL;
  }
  k->next = kept;
  kept = k;
  return img_load_secrets () && apply (spec, &k->source) && find_file (spec, &k->source) ? k : NULL;
}

/* ---- what a killed server left --------------------------------------------------------------- */

/* Autoclear feature bit 63: a session of nbdcow's that was not closed, perhaps one that was killed.
 * What that had acknowledged is still in its state directory, and would be lost by what other
 * writers do; an ordinary open brings it into the image, and mends the refcounts on the way.  That
 * takes the data file, if there is one. */
#define SESSION_BIT (1ull << 63)

/* 0 if there is nothing to be taken up, or it has been; also if the image cannot be looked at, for
 * whoever opens it says why. */
static int
finish_session (const struct source *s, const char *state_dir, bool *external, struct q_error *err)
{
  struct q_open_options o = s->open;
  struct q_image_info info;
  struct q_image *img;
  int r;

  *external = false;
  if (o.opener || o.format == Q_FORMAT_RAW)
    return 0; /* servers keep state for local files */
  o.format = Q_FORMAT_AUTO;
  o.metadata_only = true;
  o.repair = true;
  o.read_only = true;
  o.lock = Q_LOCK_OFF;
  o.state_dir = NULL;
  if (q_open (&img, s->filename, &o, NULL) < 0)
    return 0;
  q_get_info (img, &info);
  *external = info.data_file || o.data_file;
  q_close (&img, err);
  if (!(info.autoclear & SESSION_BIT) || info.corrupt)
    return 0;

  o.metadata_only = !*external;
  o.repair = false;
  o.read_only = false;
  o.lock = Q_LOCK_ON;
  o.state_dir = state_dir;
  r = q_open (&img, s->filename, &o, err);
  return r < 0 ? r : q_close (&img, err);
}

bool
img_finish_session (const struct img_spec *spec, const char *state_dir)
{
  struct kept *k = resolve (spec);
  struct q_error err = { "" };
  bool external;
  int r;

  if (!k)
    return false;
  r = finish_session (&k->source, state_dir, &external, &err);
  if (r == 0 || !external)
    return true; /* the caller's open says why */
  img_error ("%s", err.text);
  img_error ("%s: what a server that was killed may have left is not in the image", spec->name);
  return false;
}

struct q_image *
img_open_spec (const struct img_spec *spec)
{
  struct kept *k = resolve (spec);
  struct q_image *img = NULL;
  struct q_error err = { "" };
  bool external;

  if (!k)
    return NULL;

  const bool guess = k->source.open.format == Q_FORMAT_AUTO;
  /* The guest of a raw disk can make it begin like qcow2: nobody vouches for such a header. */
  const bool distrust =
      guess && spec->writable && spec->raw_too && !spec->data_file && !spec->data_file_policy;

  if (guess && !probe (&k->source))
    return NULL;
  if (distrust)
    k->source.open.data_file_policy = Q_DATA_FILE_NONE;
  if (spec->writable && !spec->repair) { /* who repairs has seen to it, if it is wanted */
    if (finish_session (&k->source, "", &external, &err) < 0) {
      img_error ("%s", err.text);
      return NULL;
    }
  }

  struct q_open_options opts = k->source.open;

  if (k->source.ignore_flush)
    opts.opener = img_unsynced (opts.opener);

  int r = 0;

  if (opts.snapshot && opts.format == Q_FORMAT_RAW) {
    snprintf (err.text, sizeof err.text, "%s: a raw disk has no snapshot '%s'", k->source.filename,
              opts.snapshot);
    r = -ENOTSUP;
  } else
    r = q_open (&img, k->source.filename, &opts, &err);
  if (r < 0)
    img_error ("%s%s%s%s", spec->named_by ? spec->named_by : "",
               spec->named_by ? ": its backing file: " : "", err.text,
               r == -EPERM && distrust ? "; -f qcow2 does so as well: the format was guessed"
               : r == -EAGAIN && !spec->writable ? ": -U"
               : r == -ENOENT && spec->named_by  ? " ('rebase -u' records another one)"
                                                 : "");
  k->img = img;
  return img;
}

bool
img_probe (const char *filename, enum q_format *format)
{
  struct source s = { .filename = (char *)filename };

  if (img_is_nbd (filename))
    s.open.opener = &img_nbd_opener;
  if (!probe (&s))
    return false;
  *format = s.open.format;
  return true;
}

const char *
img_format_name (enum q_format format)
{
  return format == Q_FORMAT_RAW ? "raw" : "qcow2";
}

struct q_image *
img_open (const char *filename, const struct q_open_options *opts)
{
  struct q_open_options o = *opts;
  struct q_image *img;
  struct q_error err = { "" };

  if (o.format == Q_FORMAT_AUTO && !img_probe (filename, &o.format))
    return NULL;
  if (q_open (&img, filename, &o, &err) < 0) {
    img_error ("%s", err.text);
    return NULL;
  }
  return img;
}

bool
img_extent_is_absent (const struct q_image *img, const struct q_extent *e)
{
  if (e->kind != Q_ZERO)
    return false;
  for (unsigned i = 0; i < e->depth && img; i++)
    img = q_backing_image (img);
  return img != e->layer;
}

bool
img_close (struct q_image **img)
{
  struct q_error err = { "" };

  if (!*img || q_close (img, &err) == 0)
    return true;
  img_error ("%s", err.text);
  return false;
}

bool
img_same_file (const char *a, const char *b)
{
  struct stat x, y;

  return stat (a, &x) == 0 && stat (b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool
img_reads (struct q_image *img, const char *name)
{
  for (; img; img = q_backing_image (img)) {
    struct q_image_info info;

    q_get_info (img, &info);
    if (img_same_file (q_filename (img), name) ||
        (info.data_path && img_same_file (info.data_path, name)))
      return true;
  }
  return false;
}

bool
img_is_zero (const void *buf, uint64_t len)
{
  const uint8_t *p = buf;

  return len == 0 || (p[0] == 0 && memcmp (p, p + 1, len - 1) == 0);
}

int
img_follow (struct q_image *img, const struct img_spec *top, struct img_spec *below, char **path)
{
  enum q_backing policy = top->untrusted ? Q_BACKING_REFUSE : Q_BACKING_RECORDED;
  struct q_image_info info;
  struct q_error err = { "" };
  unsigned recorded;
  int r;

  if (top->backing_mode)
    q_backing_parse (top->backing_mode, &policy);
  r = q_backing_allowed (img, policy, path, &recorded, &err);
  if (r < 0) {
    if (r != -ENOENT)
      img_error ("%s", err.text);
    return r;
  }
  q_get_info (img, &info);
  *below = (struct img_spec){ .name = *path,
                              .named_by = q_filename (img),
                              .recorded = recorded,
                              .format = info.backing_format,
                              .backing_mode = top->backing_mode,
                              .data_file_policy = top->data_file_policy,
                              .untrusted = top->untrusted };
  return 0;
}

char *
img_backing_path (const char *overlay, const char *name)
{
  const char *slash = strrchr (overlay, '/');
  const char *here = "";
  char *path;
  int n;

  if (strncmp (name, "file:", 5) == 0) {
    name += 5;
    here = name[strcspn (name, ":/")] == ':' ? "./" : ""; /* so that it stays one */
  } else if (name[strcspn (name, ":/")] == ':') {
    img_error ("backing file '%s' is not a local file", name);
    return NULL;
  }
  if (*name == '/' || !slash)
    n = asprintf (&path, "%s%s", here, name);
  else
    n = asprintf (&path, "%.*s/%s", (int)(slash - overlay), overlay, name);
  if (n == -1) {
    img_error ("out of memory");
    return NULL;
  }
  return path;
}
