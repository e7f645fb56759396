/* SPDX-License-Identifier: BSD-3-Clause
 *
 * jansson understands one value at a time; here is only looked for where it ends: the text is
 * collected, with its strings in double quotes and its white space shortened, until all that was
 * opened is closed.
 *
 * 1. s.text holds no more than STREAM_MAX_SIZE bytes.
 * 2. Nothing that jansson is given is deeper than STREAM_MAX_DEPTH: it descends by recursion.
 */

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control-stream.h"

/* What a value begins with: most are no longer. */
#define FIRST_ROOM 512

/* Room that was needed once, and is given back. */
#define KEPT_ROOM (16 * 1024)

static bool
is_space (unsigned char c)
{
  return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Clients send these to be understood afresh. */
static bool
is_impossible (unsigned char c)
{
  return c >= 0xfe || (c < ' ' && !is_space (c));
}

static void
restart (struct stream *s)
{
  s->state = STREAM_START;
  s->depth = 0;
  s->n = 0;
  if (s->room > KEPT_ROOM) {
    free (s->text);
    s->text = NULL;
    s->room = 0;
  }
}

static enum stream_result __attribute__ ((format (printf, 3, 4)))
fail (struct stream *s, struct q_error *err, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  vsnprintf (err->text, sizeof err->text, fmt, args);
  va_end (args);
  restart (s);
  return STREAM_ERROR;
}

/* False without room for another byte. */
static bool
put (struct stream *s, char c)
{
  if (s->n == s->room) {
    size_t room = s->room ? 2 * s->room : FIRST_ROOM;
    char *text = room <= STREAM_MAX_SIZE ? realloc (s->text, room) : NULL;
    if (!text)
      return false;
    s->text = text;
    s->room = room;
  }
  s->text[s->n++] = c;
  return true;
}

/* Something that is not part of a string, and not white space. */
static bool
put_plain (struct stream *s, char c)
{
  switch (c) {
  case '{':
  case '[':
    s->depth++;
    s->state = STREAM_BODY;
    break;
  case '}':
  case ']':
    if (s->depth > 0)
      s->depth--;
    break;
  case '"':
  case '\'':
    s->state = STREAM_STRING;
    s->quote = c;
    c = '"';
    break;
  default:
    if (s->depth == 0 && s->state == STREAM_START)
      s->state = STREAM_WORD;
  }
  return put (s, c);
}

static bool
put_string (struct stream *s, char c)
{
  if (s->state == STREAM_ESCAPE) {
    s->state = STREAM_STRING;
    return (c == '\'' || put (s, '\\')) && put (s, c);
  }
  if (c == '\\') {
    s->state = STREAM_ESCAPE;
    return true;
  }
  if (c == s->quote) {
    s->state = s->depth > 0 ? STREAM_BODY : STREAM_START;
    return put (s, '"');
  }
  return (c != '"' || put (s, '\\')) && put (s, c);
}

static enum stream_result
complete (struct stream *s, json_t **value, struct q_error *err)
{
  json_error_t why;

  *value = json_loadb (s->text, s->n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
  if (!*value)
    return fail (s, err, "JSON parse error: %s", why.text);
  restart (s);
  return STREAM_VALUE;
}

static enum stream_result
skip_line (struct stream *s, struct q_error *err)
{
  bool deep = s->depth > STREAM_MAX_DEPTH;
  enum stream_result r =
      deep ? fail (s, err, "JSON parse error: objects and arrays are deeper than %d in each other",
                   STREAM_MAX_DEPTH)
           : fail (s, err, "JSON parse error: longer than %d bytes, or memory is short",
                   STREAM_MAX_SIZE);
  s->state = STREAM_SKIP;
  return r;
}

enum stream_result
stream_next (struct stream *s, const char **p, const char *end, json_t **value, struct q_error *err)
{
  while (*p < end) {
    char c = **p;
    bool quoted = s->state == STREAM_STRING || s->state == STREAM_ESCAPE;
    bool fits = true;

    if (s->state == STREAM_SKIP) {
      ++*p;
      if (c == '\n' || is_impossible ((unsigned char)c))
        s->state = STREAM_START;
      continue;
    }
    if (is_impossible ((unsigned char)c) || (quoted && (unsigned char)c < ' ')) {
      ++*p;
      return fail (s, err, "JSON parse error: byte 0x%02x, which cannot be %s",
                   (unsigned)(unsigned char)c, quoted ? "in a string" : "in JSON text");
    }
    /* What follows a word ends it, and is not part of it. */
    if (s->state == STREAM_WORD && (is_space ((unsigned char)c) || strchr ("{}[]:,\"'", c)))
      return complete (s, value, err);
    ++*p;
    if (quoted)
      fits = put_string (s, c);
    else if (!is_space ((unsigned char)c))
      fits = put_plain (s, c);
    else if (s->n > 0 && s->text[s->n - 1] != ' ')
      fits = put (s, ' ');
    if (!fits || s->depth > STREAM_MAX_DEPTH)
      return skip_line (s, err);
    assert (s->n <= STREAM_MAX_SIZE);
    if (s->n > 0 && s->depth == 0 && (s->state == STREAM_START || s->state == STREAM_BODY))
      return complete (s, value, err);
  }
  return STREAM_MORE;
}

void
stream_destroy (struct stream *s)
{
  free (s->text);
  *s = (struct stream){ 0 };
}
