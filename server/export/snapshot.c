/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyval.h"
#include "snapshot.h"

/* Takes "snapshot.id=ID,snapshot.name=NAME" apart: *ID and *NAME belong to the object returned. */
static json_t *
parse (const char *text, const char **id, const char **name, struct q_error *err)
{
  struct members outer, inner;
  json_t *object = keyval_parse (text, NULL, err);

  if (!object)
    return NULL;
  members_init (&outer, object, "--load-snapshot", err);
  json_t *words = members_get (&outer, "snapshot");
  int r = members_end (&outer);
  if (r == 0) {
    members_init (&inner, words, "--load-snapshot: snapshot", err);
    members_string (&inner, "id", id);
    members_string (&inner, "name", name);
    r = members_end (&inner);
  }
  if (r == 0)
    return object;
  json_decref (object);
  return NULL;
}

static bool
matches (const struct q_snapshot_info *info, const char *id, const char *name)
{
  return (!id || strcmp (info->id, id) == 0) && (!name || strcmp (info->name, name) == 0);
}

int
snapshot_id (const struct source *s, const char *text, char **id, struct q_error *err)
{
  struct q_open_options opts = s->open;
  const char *want_id = NULL, *want_name = NULL;
  struct q_snapshot_info *list;
  struct q_image *img;
  json_t *words;

  *id = NULL;
  if (strncmp (text, "snapshot.", 9) != 0) {
    *id = strdup (text);
    if (!*id)
      snprintf (err->text, sizeof err->text, "%s: out of memory", s->filename);
    return *id ? 0 : -ENOMEM;
  }
  words = parse (text, &want_id, &want_name, err);
  if (!words)
    return -EINVAL;

  opts.read_only = true;
  opts.metadata_only = true;
  opts.state_dir = NULL;
  opts.snapshot = NULL;
  int r = q_open (&img, s->filename, &opts, err);
  if (r == 0) {
    int n = q_get_snapshots (img, &list);
    for (int i = 0; !*id && i < n; i++)
      if (matches (&list[i], want_id, want_name))
        *id = strdup (list[i].id);
    free (list);
    r = q_close (&img, err);
  }
  if (r == 0 && !*id) {
    snprintf (err->text, sizeof err->text,
              "%s: there is no internal snapshot with %s%s%s%s%s ('nbdcow-img info' lists them)",
              s->filename, want_id ? "id " : "", want_id ? want_id : "",
              want_id && want_name ? " and " : "", want_name ? "name " : "",
              want_name ? want_name : "");
    r = -ENOENT;
  }
  json_decref (words);
  return r;
}

char *
snapshot_shown (const struct q_image *img, const char *word)
{
  struct q_snapshot_info *list;
  int n = q_get_snapshots (img, &list), found = -1;

  if (n < 0)
    return NULL;
  for (int i = n - 1; i >= 0; i--)
    if (strcmp (list[i].name, word) == 0)
      found = i;
  for (int i = 0; i < n; i++)
    if (strcmp (list[i].id, word) == 0)
      found = i;
  char *id = strdup (found >= 0 ? list[found].id : word);
  free (list);
  return id;
}
