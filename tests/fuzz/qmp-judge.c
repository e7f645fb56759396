/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Whether the control socket's lines are those of QMP: see qmp-judge.h.
 */

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "mem.h"
#include "qmp-judge.h"

void
qmp_id (char id[QMP_ID_SIZE], unsigned number)
{
  snprintf (id, QMP_ID_SIZE, QMP_ID_PREFIX "%u", number);
}

bool
qmp_expect (struct qmp_witness *w, unsigned number)
{
  if (w->end == QMP_MAX_COMMANDS)
    return false;
  w->expected[w->end++] = number;
  return true;
}

void
qmp_tolerate (struct qmp_witness *w, size_t replies)
{
  w->tolerated += replies;
}

/* ---- one line -------------------------------------------------------------------------------- */

/* J has these members and no others; NULL ends the list. */
static void
only (const json_t *j, const char *const *names, const char *line)
{
  const char *key;
  json_t *value;

  json_object_foreach ((json_t *)j, key, value)
  {
    unsigned i = 0;

    while (names[i] && strcmp (names[i], key) != 0)
      ++i;
    if (!names[i])
      broken ("qmp: the member '%s' is not known: %s", key, line);
  }
}

static void
hear_greeting (struct qmp_witness *w, const json_t *j, const char *line)
{
  static const char *const names[] = { "QMP", NULL };
  const json_t *version = json_object_get (json_object_get (j, "QMP"), "version");

  if (w->greeted)
    broken ("qmp: a second greeting: %s", line);
  only (j, names, line);
  if (!json_is_object (version) ||
      !json_is_array (json_object_get (json_object_get (j, "QMP"), "capabilities")))
    broken ("qmp: the greeting is without version and capabilities: %s", line);
  w->greeted = true;
}

static void
hear_event (struct qmp_witness *w, const json_t *j, const char *line)
{
  static const char *const names[] = { "event", "timestamp", "data", NULL };
  const json_t *t = json_object_get (j, "timestamp"), *data = json_object_get (j, "data");
  const char *name = json_string_value (json_object_get (j, "event"));
  json_int_t lost;

  only (j, names, line);
  if (!w->may_negotiate)
    broken ("qmp: an event before negotiation: %s", line);
  if (!name || (data && !json_is_object (data)) ||
      !json_is_integer (json_object_get (t, "seconds")) ||
      !json_is_integer (json_object_get (t, "microseconds")))
    broken ("qmp: an event needs a name, a timestamp, and data that are an object: %s", line);
  if (strcmp (name, "NBDCOW_EVENTS_LOST") != 0) {
    ++w->events;
    return;
  }
  lost = json_integer_value (json_object_get (data, "count"));
  if (lost <= 0)
    broken ("qmp: %lld events were lost: %s", (long long)lost, line);
  w->lost += (uint64_t)lost;
}

static void
hear_error (const json_t *error, const char *line)
{
  static const char *const classes[] = { "GenericError", "CommandNotFound", "DeviceNotFound" };
  static const char *const names[] = { "class", "desc", NULL };
  const char *class = json_string_value (json_object_get (error, "class")),
             *desc = json_string_value (json_object_get (error, "desc"));
  bool known = false;

  only (error, names, line);
  for (unsigned i = 0; class && i < 3; ++i)
    known |= strcmp (class, classes[i]) == 0;
  if (!known || !desc || !*desc || strchr (desc, '\n'))
    broken ("qmp: an error needs a class that is known and one line for people: %s", line);
}

static void
hear_reply (struct qmp_witness *w, const json_t *j, const char *line)
{
  static const char *const names[] = { "return", "error", "id", NULL };
  const json_t *error = json_object_get (j, "error"), *ret = json_object_get (j, "return");
  const char *id = json_string_value (json_object_get (j, "id"));
  char wanted[QMP_ID_SIZE];

  only (j, names, line);
  if (!error == !ret)
    broken ("qmp: neither or both of return and error: %s", line);
  if (error)
    hear_error (error, line);
  if (!id || strncmp (id, QMP_ID_PREFIX, strlen (QMP_ID_PREFIX)) != 0) {
    if (w->tolerated-- == 0)
      broken ("qmp: a reply to nothing: %s", line);
    return;
  }
  if (w->first == w->end)
    broken ("qmp: a reply without a command: %s", line);
  qmp_id (wanted, w->expected[w->first++]);
  if (strcmp (id, wanted) != 0)
    broken ("qmp: the reply to %s is due: %s", wanted, line);
}

static void
hear_line (struct qmp_witness *w, const char *line, size_t n)
{
  json_error_t why;
  json_t *j = json_loadb (line, n, JSON_REJECT_DUPLICATES, &why);

  for (size_t i = 0; i < n; ++i)
    if ((unsigned char)line[i] >= 0x7f || (unsigned char)line[i] < ' ')
      broken ("qmp: byte 0x%02x in a line: %s", (unsigned)(unsigned char)line[i], line);
  if (!json_is_object (j))
    broken ("qmp: no object (%s): %s", why.text, line);
  if (json_object_get (j, "QMP"))
    hear_greeting (w, j, line);
  else if (!w->greeted)
    broken ("qmp: before the greeting: %s", line);
  else if (json_object_get (j, "event"))
    hear_event (w, j, line);
  else
    hear_reply (w, j, line);
  json_decref (j);
}

/* ---- all of them ----------------------------------------------------------------------------- */

void
qmp_hear (struct qmp_witness *w, const char *p, size_t n)
{
  for (size_t i = 0; i < n; ++i) {
    if (w->n + 1 >= w->room) {
      w->room = 2 * w->room + 512;
      w->text = realloc (w->text, w->room);
      if (!w->text)
        die ("out of memory");
    }
    w->text[w->n++] = p[i];
    w->text[w->n] = '\0';
    if (p[i] != '\n')
      continue;
    if (w->n < 2 || w->text[w->n - 2] != '\r')
      broken ("qmp: a line that does not end with CRLF: %s", w->text);
    w->text[w->n - 2] = '\0';
    hear_line (w, w->text, w->n - 2);
    w->n = 0;
  }
}

void
qmp_finish (const struct qmp_witness *w)
{
  char id[QMP_ID_SIZE];

  if (!w->greeted)
    broken ("qmp: no greeting");
  if (w->n > 0)
    broken ("qmp: half a line at the end: %s", w->text);
  if (w->first < w->end) {
    qmp_id (id, w->expected[w->first]);
    broken ("qmp: no reply to %s", id);
  }
}

void
qmp_free (struct qmp_witness *w)
{
  free (w->text);
  *w = (struct qmp_witness){ 0 };
}
