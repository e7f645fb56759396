/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <ev.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "authz.h"
#include "log.h"

struct authz {
  const struct object *object;
  /* Of a list-file: its rules, as an object of type list.  A reload puts another in its place. */
  pthread_mutex_t lock;
  struct objects list;
  ev_stat watcher;
};

/* ---- rules ----------------------------------------------------------------------------------- */

/* The first byte after the character at P. */
static const char *
next_character (const char *p)
{
  do
    p++;
  while (((unsigned char)*p & 0xc0) == 0x80);
  return p;
}

/* '*' stands for any text, '?' for one character, and everything else for itself: distinguished
 * names are full of what a shell's patterns would take for more. */
static bool
glob_matches (const char *pattern, const char *text)
{
  const char *star = NULL, *resume = NULL;

  while (*text) {
    if (*pattern == '*') {
      star = ++pattern;
      resume = text;
    } else if (*pattern == '?') {
      pattern++;
      text = next_character (text);
    } else if (*pattern == *text) {
      pattern++;
      text++;
    } else if (star) {
      /* The star takes one byte more. */
      pattern = star;
      text = ++resume;
    } else
      return false;
  }
  while (*pattern == '*')
    pattern++;
  return *pattern == '\0';
}

/* The first rule that matches decides. */
static bool
list_allows (const struct object *list, const char *identity)
{
  for (unsigned i = 0; i < list->authz.n_rules; i++) {
    const struct authz_rule *r = &list->authz.rules[i];
    if (r->glob ? glob_matches (r->match, identity) : strcmp (r->match, identity) == 0)
      return r->allow;
  }
  return list->authz.allow;
}

bool
authz_allows (struct authz *a, const char *identity)
{
  const struct object *o = a->object;

  if (o->type == OBJECT_AUTHZ_SIMPLE)
    return strcmp (o->authz.identity, identity) == 0;
  if (o->type == OBJECT_AUTHZ_LIST)
    return list_allows (o, identity);
  pthread_mutex_lock (&a->lock);
  bool allowed = list_allows (a->list.first, identity);
  pthread_mutex_unlock (&a->lock);
  return allowed;
}

/* ---- the file of a list-file ----------------------------------------------------------------- */

/* The file has what the settings of an authz-list are: {"policy": ..., "rules": [...]}. */
static int
load (const struct object *o, struct objects *list, struct q_error *err)
{
  struct q_error why = { "" };
  json_error_t e;
  json_t *root = json_load_file (o->authz.filename, JSON_REJECT_DUPLICATES, &e);
  char *text = NULL;
  int r = 0;

  if (!root)
    snprintf (why.text, sizeof why.text, "%s", e.text);
  else if (!json_is_object (root))
    snprintf (why.text, sizeof why.text,
              "an object is wanted: {\"policy\": ..., \"rules\": [...]}");
  else if (json_object_set_new (root, "qom-type", json_string ("authz-list")) < 0 ||
           json_object_set_new (root, "id", json_string (o->id)) < 0 ||
           !(text = json_dumps (root, JSON_COMPACT)))
    snprintf (why.text, sizeof why.text, "out of memory");
  if (text)
    r = objects_add (list, text, &why);
  if (!text || r < 0) {
    snprintf (err->text, sizeof err->text, "--object authz-list-file,id=%.100s: %.200s: %.600s",
              o->id, o->authz.filename, why.text);
    r = -EINVAL;
  }
  free (text);
  json_decref (root);
  return r;
}

int
authz_reload (struct authz *a, struct q_error *err)
{
  struct objects fresh = { NULL };

  if (a->object->type != OBJECT_AUTHZ_LIST_FILE)
    return 0;
  int r = load (a->object, &fresh, err);
  if (r < 0)
    return r;
  pthread_mutex_lock (&a->lock);
  struct objects old = a->list;
  a->list = fresh;
  pthread_mutex_unlock (&a->lock);
  objects_free (&old);
  return 0;
}

static void
on_change (struct ev_loop *ev, ev_stat *w, int revents)
{
  struct authz *a = w->data;
  struct q_error err = { "" };

  (void)ev;
  (void)revents;
  if (authz_reload (a, &err) < 0)
    log_error ("%s; the rules in use stay", err.text);
  else
    log_info ("%s: read again", a->object->authz.filename);
}

void
authz_watch (struct authz *a, struct ev_loop *ev)
{
  if (a->object->type != OBJECT_AUTHZ_LIST_FILE || !a->object->authz.refresh)
    return;
  ev_stat_init (&a->watcher, on_change, a->object->authz.filename, 0.);
  a->watcher.data = a;
  ev_stat_start (ev, &a->watcher);
}

/* ---- life ------------------------------------------------------------------------------------ */

struct authz *
authz_open (const struct object *object, struct q_error *err)
{
  struct authz *a = calloc (1, sizeof *a);

  if (!a) {
    snprintf (err->text, sizeof err->text, "out of memory");
    return NULL;
  }
  a->object = object;
  pthread_mutex_init (&a->lock, NULL);
  if (authz_reload (a, err) < 0) {
    authz_free (a);
    return NULL;
  }
  return a;
}

const struct object *
authz_object (const struct authz *a)
{
  return a->object;
}

void
authz_free (struct authz *a)
{
  if (!a)
    return;
  objects_free (&a->list);
  pthread_mutex_destroy (&a->lock);
  free (a);
}
