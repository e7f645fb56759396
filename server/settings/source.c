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
source_set_layer_data_file (struct source *s, unsigned layer, const char *name)
{
  struct q_layer *said = source_layer (s, layer);
  char *copy;

  if (layer == 0)
    return source_set_data_file (s, name);
  copy = said ? strdup (name) : NULL;
  if (!copy)
    return false;
  free (s->below[layer].data_file);
  said->data_file = s->below[layer].data_file = copy;
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

struct q_layer *
source_layer (struct source *s, unsigned layer)
{
  if (layer >= SOURCE_LAYERS)
    return NULL;
  s->open.layers = s->layers;
  if (s->open.n_layers <= layer)
    s->open.n_layers = layer + 1;
  return &s->layers[layer];
}

bool
source_names_layers (const struct source *s)
{
  for (unsigned i = 0; i < s->open.n_layers; i++)
    if (s->layers[i].last || s->layers[i].filename)
      return true;
  return false;
}

int
source_set_key (struct source *s, unsigned layer, const char *option, const char *id,
                struct q_error *err)
{
  static const struct objects none = { NULL };
  struct q_layer *said = source_layer (s, layer);
  const struct q_secret *secret;

  if (!said) {
    snprintf (err->text, sizeof err->text, "%s=%.100s: more than %d layers", option, id,
              SOURCE_LAYERS);
    return -EINVAL;
  }
  secret = objects_find_secret (s->objects ? s->objects : &none, option, id, err);
  if (!secret)
    return -EINVAL;
  said->secret = secret;
  return 0;
}

/* ---- life ---------------------------------------------------------------------------------------
 */

/* What the layers point to is what S has. */
static void
point_layers (struct source *s)
{
  s->open.layers = s->layers;
  for (unsigned i = 1; i < SOURCE_LAYERS; i++) {
    s->layers[i].filename = s->below[i].filename;
    s->layers[i].data_file = s->below[i].data_file;
    s->layers[i].opener = s->below[i].slice ? &s->below[i].slice->opener : NULL;
  }
}

/* *TO is a copy of FROM, or NULL if that is.  False: out of memory. */
static bool
copy_string (char **to, const char *from)
{
  *to = from ? strdup (from) : NULL;
  return *to || !from;
}

static bool
copy_slice (struct slice **to, const struct slice *from)
{
  *to = from ? slice_new (from->filename, from->offset, from->size) : NULL;
  return *to || !from;
}

int
source_copy (struct source *to, const struct source *from)
{
  *to = *from;
  to->overlay_key = NULL;
  bool complete = copy_string (&to->filename, from->filename);
  complete = copy_string (&to->data_file, from->data_file) && complete;
  complete = copy_slice (&to->slice, from->slice) && complete;
  for (unsigned i = 1; i < SOURCE_LAYERS; i++) {
    complete = copy_string (&to->below[i].filename, from->below[i].filename) && complete;
    complete = copy_string (&to->below[i].data_file, from->below[i].data_file) && complete;
    complete = copy_slice (&to->below[i].slice, from->below[i].slice) && complete;
  }
  to->open.data_file = to->data_file;
  if (to->slice)
    to->open.opener = &to->slice->opener;
  point_layers (to);
  if (complete)
    return 0;
  source_free (to);
  return -ENOMEM;
}

void
source_forget_keys (struct source *s)
{
  s->open.secret = NULL;
  s->objects = NULL;
  for (unsigned i = 0; i < SOURCE_LAYERS; i++)
    s->layers[i].secret = NULL;
}

void
source_borrow_chain (struct source *s, const struct source *from)
{
  static const struct source nothing = { .filename = NULL };

  from = from ? from : &nothing;
  memcpy (s->layers, from->layers, sizeof s->layers);
  memcpy (s->below, from->below, sizeof s->below);
  s->open.layers = s->layers;
  s->open.n_layers = from->open.n_layers;
  s->data_file = from->data_file;
  s->open.data_file = from->data_file;
}

int
source_push (struct source *s, char *filename, enum q_format format)
{
  if (s->open.n_layers >= SOURCE_LAYERS)
    return -E2BIG;
  memmove (s->layers + 1, s->layers, (SOURCE_LAYERS - 1) * sizeof s->layers[0]);
  memmove (s->below + 1, s->below, (SOURCE_LAYERS - 1) * sizeof s->below[0]);
  s->below[0] = (struct source_below){ .filename = NULL };
  s->below[1] = (struct source_below){ s->filename, s->data_file, s->slice };
  s->layers[0] = (struct q_layer){ .secret = NULL };
  s->layers[1].format = format;
  s->open.n_layers++;
  if (s->open.n_layers < 2)
    s->open.n_layers = 2;
  point_layers (s);
  s->filename = filename;
  s->data_file = NULL;
  s->slice = NULL;
  s->open.data_file = NULL;
  s->open.opener = NULL;
  s->open.format = Q_FORMAT_QCOW2;
  return 0;
}

void
source_free (struct source *s)
{
  free (s->filename);
  free (s->data_file);
  slice_free (s->slice);
  secret_free (s->overlay_key);
  for (unsigned i = 1; i < SOURCE_LAYERS; i++) {
    free (s->below[i].filename);
    free (s->below[i].data_file);
    slice_free (s->below[i].slice);
    s->below[i] = (struct source_below){ .filename = NULL };
  }
  s->overlay_key = NULL;
  s->filename = s->data_file = NULL;
  s->open.data_file = NULL;
  s->slice = NULL;
  point_layers (s);
}
