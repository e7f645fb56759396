/* SPDX-License-Identifier: BSD-3-Clause */

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyval.h"

/* Levels of objects in each other. */
#define MAX_DEPTH 48

static void __attribute__ ((format (printf, 2, 3))) say (struct q_error *err, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  vsnprintf (err->text, sizeof err->text, fmt, args);
  va_end (args);
}

/* ---- values ---------------------------------------------------------------------------------- */

bool
parse_size (const char *text, uint64_t *value)
{
  static const char suffixes[] = "bkmgtpe";
  char *end;

  if (!isdigit ((unsigned char)*text))
    return false;
  errno = 0;
  uint64_t v = strtoull (text, &end, 0);
  if (errno != 0)
    return false;
  if (*end) {
    const char *s = strchr (suffixes, tolower ((unsigned char)*end));
    if (!s || end[1])
      return false;
    unsigned shift = 10 * (unsigned)(s - suffixes);
    if (v > UINT64_MAX >> shift)
      return false;
    v <<= shift;
  }
  *value = v;
  return true;
}

bool
parse_bool (const char *text, bool *value)
{
  static const char *const on[] = { "on", "yes", "true", "y" };
  static const char *const off[] = { "off", "no", "false", "n" };

  for (size_t i = 0; i < sizeof on / sizeof on[0]; i++) {
    if (strcmp (text, on[i]) == 0 || strcmp (text, off[i]) == 0) {
      *value = strcmp (text, on[i]) == 0;
      return true;
    }
  }
  return false;
}

/* ---- building objects ------------------------------------------------------------------------ */

/* Puts VALUE (a reference of ours) where the dotted KEY says. */
static int
put (json_t *object, const char *key, json_t *value, const char *what, struct q_error *err)
{
  const char *dot;
  unsigned depth = 0;
  const char *rest = key;

  while ((dot = strchr (rest, '.')) != NULL) {
    size_t n = (size_t)(dot - rest);
    if (n == 0 || ++depth > MAX_DEPTH)
      goto bad_key;
    json_t *inner = json_object_getn (object, rest, n);
    if (!inner) {
      inner = json_object ();
      if (json_object_setn_new (object, rest, n, inner) < 0)
        goto bad_key;
    }
    if (!json_is_object (inner)) {
      say (err, "%s: '%.*s' is given both a value and members", what, (int)(dot - key), key);
      json_decref (value);
      return -EINVAL;
    }
    object = inner;
    rest = dot + 1;
  }
  if (!*rest)
    goto bad_key;
  json_t *old = json_object_get (object, rest);
  if (json_is_object (old) && json_is_object (value)) {
    int r = json_object_update_missing (old, value);
    json_decref (value);
    return r < 0 ? -ENOMEM : 0;
  }
  if (old) {
    say (err, "%s: '%s' is given twice", what, key);
    json_decref (value);
    return -EINVAL;
  }
  if (json_object_set_new (object, rest, value) < 0) {
    say (err, "%s: the value of '%s' is not UTF-8, or memory is short", what, key);
    return -EINVAL;
  }
  return 0;

bad_key:
  json_decref (value);
  say (err, "%s: '%s' is not a name that a setting can have", what, key);
  return -EINVAL;
}

/* The next part of a KEY=VALUE,... list, its commas undoubled; *TEXT moves on.  To be freed. */
static char *
next_part (const char **text)
{
  const char *p = *text;
  char *part = malloc (strlen (p) + 1), *out = part;

  if (!part)
    return NULL;
  for (; *p; p++) {
    if (*p == ',' && *++p != ',')
      break;
    *out++ = *p;
  }
  *out = '\0';
  *text = p;
  return part;
}

json_t *
keyval_parse (const char *text, const char *implied, struct q_error *err)
{
  json_t *object = json_object ();

  while (object && *text) {
    char *part = next_part (&text);
    char *equals = part ? strchr (part, '=') : NULL;
    const char *key = part, *value = "on";
    if (equals) {
      *equals = '\0';
      value = equals + 1;
    } else if (implied) {
      key = implied;
      value = part;
    }
    implied = NULL;
    json_t *v = part ? json_string (value) : NULL;
    int r = -EINVAL;
    if (v)
      r = put (object, key, v, key, err);
    else
      say (err, "%s: its value is not UTF-8, or memory is short", part ? key : "settings");
    if (part)
      explicit_bzero (part, strlen (part) + (equals ? strlen (value) + 1 : 0)); /* of a secret? */
    free (part);
    if (r < 0) {
      json_decref (object);
      return NULL;
    }
  }
  if (!object)
    say (err, "out of memory");
  return object;
}

static json_t *
nest (json_t *object, const char *what, unsigned depth, struct q_error *err)
{
  json_t *out = json_object (), *value;
  const char *key;

  if (depth > MAX_DEPTH || !out) {
    say (err, "%s: objects lie more than %d levels deep in each other", what, MAX_DEPTH);
    json_decref (out);
    return NULL;
  }
  json_object_foreach (object, key, value)
  {
    json_t *v = json_is_object (value) ? nest (value, what, depth + 1, err) : json_incref (value);
    if (!v || put (out, key, v, what, err) < 0) {
      json_decref (out);
      return NULL;
    }
  }
  return out;
}

json_t *
keyval_nest (json_t *object, const char *what, struct q_error *err)
{
  return nest (object, what, 0, err);
}

const char *
keyval_json_error (json_error_t *e)
{
  char *shown = strstr (e->text, " near '");

  if (shown)
    *shown = '\0';
  return e->text;
}

json_t *
keyval_parse_json (const char *text, const char *what, struct q_error *err)
{
  json_error_t e;
  json_t *object = json_loads (text, JSON_REJECT_DUPLICATES, &e), *nested = NULL;

  if (!object)
    say (err, "%s: not valid JSON: %s, at column %d", what, keyval_json_error (&e), e.column);
  else if (!json_is_object (object))
    say (err, "%s: a JSON object is wanted: {\"driver\": ...}", what);
  else
    nested = keyval_nest (object, what, err);
  json_decref (object);
  return nested;
}

/* ---- taking objects apart -------------------------------------------------------------------- */

void
members_init (struct members *m, json_t *object, const char *what, struct q_error *err)
{
  *m = (struct members){ .object = object, .what = what, .err = err };
}

void
members_fail (struct members *m, const char *fmt, ...)
{
  char text[700];
  va_list args;

  if (m->failed)
    return;
  m->failed = true;
  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  say (m->err, "%s: %s", m->what, text);
}

static json_t *
look (struct members *m, const char *name)
{
  if (m->failed)
    return NULL;
  assert (m->n_known < MEMBERS_MAX);
  m->known[m->n_known++] = name;
  return json_object_get (m->object, name);
}

json_t *
members_get (struct members *m, const char *name)
{
  json_t *v = look (m, name);
  return json_is_null (v) && !m->strict ? NULL : v;
}

bool
members_is_null (struct members *m, const char *name)
{
  return json_is_null (json_object_get (m->object, name));
}

/* VALUE as a line of JSON, for messages; to be freed. */
static void
fail_value (struct members *m, const char *name, const json_t *value, const char *wanted)
{
  char *text = json_dumps (value, JSON_COMPACT | JSON_ENCODE_ANY);
  const char *shown = m->secret                ? "(not shown)"
                      : json_is_string (value) ? json_string_value (value)
                      : text                   ? text
                                               : "?";

  members_fail (m, "%s=%.200s: %s is wanted", name, shown, wanted);
  free (text);
}

void
members_string (struct members *m, const char *name, const char **value)
{
  json_t *v = members_get (m, name);

  if (json_is_string (v))
    *value = json_string_value (v);
  else if (v)
    fail_value (m, name, v, "a string");
}

/* What a number or a boolean may be taken from; NULL if VALUE is nothing of the kind. */
static const char *
text_of (const struct members *m, const json_t *value)
{
  return m->strict ? NULL : json_string_value (value);
}

void
members_bool (struct members *m, const char *name, bool *value)
{
  json_t *v = members_get (m, name);

  if (json_is_boolean (v))
    *value = json_is_true (v);
  else if (v && !(text_of (m, v) && parse_bool (text_of (m, v), value)))
    fail_value (m, name, v, m->strict ? "true or false" : "on or off");
}

void
members_size (struct members *m, const char *name, uint64_t *value)
{
  json_t *v = members_get (m, name);

  if (json_is_integer (v) && json_integer_value (v) >= 0)
    *value = (uint64_t)json_integer_value (v);
  else if (v && !(text_of (m, v) && parse_size (text_of (m, v), value)))
    fail_value (m, name, v,
                m->strict ? "a number of bytes" : "a number of bytes (suffixes: k, M, G, T)");
}

void
members_number (struct members *m, const char *name, uint64_t min, uint64_t max, uint64_t *value)
{
  json_t *v = members_get (m, name);
  uint64_t number = 0;
  char wanted[80];

  if (!v)
    return;
  bool valid = json_is_integer (v) && json_integer_value (v) >= 0;
  if (valid)
    number = (uint64_t)json_integer_value (v);
  else
    valid = text_of (m, v) && parse_size (text_of (m, v), &number);
  snprintf (wanted, sizeof wanted, "a number from %" PRIu64 " to %" PRIu64, min, max);
  if (!valid || number < min || number > max)
    fail_value (m, name, v, wanted);
  else
    *value = number;
}

void
members_choice (struct members *m, const char *name, const char *const *choices, unsigned n,
                unsigned *value)
{
  const char *text = NULL;
  char wanted[300] = "one of";

  members_string (m, name, &text);
  if (!text)
    return;
  for (unsigned i = 0; i < n; i++) {
    if (strcmp (text, choices[i]) == 0) {
      *value = i;
      return;
    }
    size_t len = strlen (wanted);
    snprintf (wanted + len, sizeof wanted - len, "%s %s",
              i == 0       ? ""
              : i + 1 == n ? " and"
                           : ",",
              choices[i]);
  }
  members_fail (m, "%s=%.200s: %s is wanted", name, m->secret ? "(not shown)" : text, wanted);
}

void
members_require (struct members *m, const char *name)
{
  if (!m->failed && !json_object_get (m->object, name))
    members_fail (m, "the setting '%s' is missing", name);
}

int
members_end (struct members *m)
{
  const char *key;
  json_t *value;

  json_object_foreach (m->object, key, value)
  {
    bool known = false;
    for (unsigned i = 0; i < m->n_known && !known; i++)
      known = strcmp (m->known[i], key) == 0;
    if (!known) {
      char list[500] = "";
      for (unsigned i = 0; i < m->n_known; i++) {
        size_t len = strlen (list);
        snprintf (list + len, sizeof list - len, "%s%s", i ? ", " : "", m->known[i]);
      }
      if (m->secret)
        members_fail (m,
                      "unknown setting (not shown, for it may be a piece of the secret: a comma in "
                      "one is written twice); there are %s",
                      list);
      else
        members_fail (m, "unknown setting '%.100s'; there are %s", key, list);
    }
  }
  return m->failed ? -EINVAL : 0;
}
