/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "secret.h"
#include "wanted.h"

static void
free_one (struct wanted *w)
{
  struct export_options *o = &w->options;

  free ((char *)o->name);
  free ((char *)o->description);
  free ((char *)o->snapshot);
  free ((char *)o->watermark.exec);
  for (unsigned i = 0; o->bitmaps && i < o->n_bitmaps; i++)
    free ((char *)o->bitmaps[i]);
  free (o->bitmaps);
  source_free (&o->source);
  for (unsigned i = 0; i < sizeof w->keys / sizeof w->keys[0]; i++)
    secret_free (w->keys[i]);
  free (w->settings);
  free (w);
}

/* True unless there was a string and no memory for it. */
static bool
copy_string (const char **to, const char *from)
{
  *to = from ? strdup (from) : NULL;
  return *to || !from;
}

static bool
copy (struct export_options *to, const struct export_options *from)
{
  *to = *from;
  to->source = (struct source){ .filename = NULL };
  bool ok = copy_string (&to->name, from->name);
  ok &= copy_string (&to->description, from->description);
  ok &= copy_string (&to->snapshot, from->snapshot);
  ok &= copy_string (&to->watermark.exec, from->watermark.exec);
  to->bitmaps = calloc (from->n_bitmaps + 1, sizeof *to->bitmaps);
  for (unsigned i = 0; to->bitmaps && i < from->n_bitmaps; i++)
    ok &= copy_string (&to->bitmaps[i], from->bitmaps[i]);
  return source_copy (&to->source, &from->source) == 0 && to->bitmaps && ok;
}

int
wanted_add (struct wanted **list, const struct export_options *opts, struct q_error *err)
{
  struct wanted *w;

  if (wanted_find (*list, opts->name)) {
    snprintf (err->text, sizeof err->text, "export name \"%s\" is used twice", opts->name);
    return -EEXIST;
  }
  w = calloc (1, sizeof *w);
  if (w && copy (&w->options, opts))
    w->settings = export_settings (opts);
  if (!w || !w->settings) {
    if (w)
      free_one (w);
    snprintf (err->text, sizeof err->text, "export \"%s\": out of memory", opts->name);
    return -ENOMEM;
  }
  while (*list)
    list = &(*list)->next;
  *list = w;
  return 0;
}

/* *KEY is somebody else's: makes it a copy, which OWN keeps. */
static bool
own_key (const struct q_secret **key, struct q_secret **own, struct q_error *err)
{
  if (!*key)
    return true;
  *key = *own = secret_copy (*key, "takeover", err);
  return *key;
}

int
wanted_recipe (struct wanted **recipe, const struct export_options *opts, struct q_error *err)
{
  int r = wanted_add (recipe, opts, err);

  if (r < 0)
    return r;
  struct wanted *w = *recipe;
  struct source *s = &w->options.source;
  bool ok = own_key (&s->open.secret, &w->keys[0], err);
  for (unsigned i = 0; ok && i < s->open.n_layers; i++)
    ok = own_key (&s->layers[i].secret, &w->keys[i + 1], err);
  if (ok)
    return 0;
  wanted_free (w);
  *recipe = NULL;
  return -ENOMEM;
}

struct wanted *
wanted_find (struct wanted *list, const char *name)
{
  while (list && strcmp (list->options.name, name) != 0)
    list = list->next;
  return list;
}

void
wanted_free (struct wanted *list)
{
  while (list) {
    struct wanted *w = list;
    list = w->next;
    free_one (w);
  }
}
