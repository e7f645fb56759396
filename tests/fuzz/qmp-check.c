/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Whether an image that is served was checked: see qmp-check.h.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "export.h"
#include "fuzz.h"
#include "qmp-check.h"
#include "survey.h"

/* The lines that a reply may have. */
#define MAX_LINES 1000u

/* The file of the image that CALL names, which has all that was written; NULL: there is no image
 * of which that can be said. */
static struct mem_file *
file_of (const struct call *call, struct mem_store *store)
{
  const char *name = json_string_value (json_object_get (call->args, "node-name"));
  struct export *x = name ? exports_get (call->public.context->exports, name, strlen (name)) : NULL;
  struct mem_file *f = NULL;

  if (!x)
    return NULL;
  if (!export_borrows (x) && !x->slice && q_image_format (x->img) == Q_FORMAT_QCOW2 &&
      q_flush (x->img) == 0)
    f = mem_find (store, q_filename (x->img));
  export_put (x);
  return f;
}

static void
tell_lie (struct mem_file *f, const struct check_trial *t)
{
  static struct survey s;
  const struct field *field;

  if (t->flip == 0 || !survey_image (&s, f->data, f->size) || s.n_fields == 0)
    return;
  field = &s.field[t->field % s.n_fields];
  survey_set (&s, field->at, field->bytes,
              survey_get (&s, field->at, field->bytes) ^ (uint64_t)t->flip
                                                             << t->field / s.n_fields % 8 * 8);
}

static void
count_line (void *opaque, const char *line)
{
  (void)line;
  ++*(unsigned *)opaque;
}

/* What F has, as it is found by somebody who opens it. */
static int
check_file (const struct mem_file *f, const struct check_trial *t, struct q_check_result *result,
            unsigned *lines)
{
  const struct q_check_options co = {
    .threads = 1, .in_use = true, .report = count_line, .opaque = lines
  };
  struct q_open_options o;
  struct q_image *img;
  int r;

  q_open_options_init (&o);
  o.opener = &t->store->opener;
  o.format = Q_FORMAT_QCOW2;
  o.lock = Q_LOCK_OFF;
  o.read_only = o.metadata_only = o.repair = true;
  *lines = 0;
  r = q_open (&img, f->name, &o, NULL);
  if (r == 0)
    r = q_check_image (img, &co, result, NULL);
  q_close (&img, NULL);
  return r;
}

static void
compare (const json_t *ret, const char *name, uint64_t wanted)
{
  json_int_t is = json_integer_value (json_object_get (ret, name));

  if (is != (json_int_t)wanted)
    broken ("check-image: %" JSON_INTEGER_FORMAT " %s, and in the file there are %" PRIu64, is,
            name, wanted);
}

/* Nothing is wrong with how the command was given. */
static bool
is_proper (const json_t *args)
{
  const json_t *pause = json_object_get (args, "max-pause");

  return json_object_size (args) == (pause ? 2 : 1) &&
         (!pause || (json_is_integer (pause) && json_integer_value (pause) > 0 &&
                     json_integer_value (pause) <= 86400000));
}

static void
judge_verdict (const struct call *call, const struct mem_file *f, const struct check_trial *t)
{
  struct q_check_result found = { 0 };
  unsigned lines;
  int r = check_file (f, t, &found, &lines);

  if (call->result < 0) {
    /* It takes too long, or shows a snapshot beside whoever writes. */
    if (r == 0 && is_proper (call->args) && call->result != -ETIME && call->result != -EBUSY)
      broken ("check-image fails (%s), and the file can be checked", call->err.q.text);
    return;
  }
  if (r < 0)
    broken ("check-image: %s cannot be checked, and nothing was said", f->name);
  compare (call->ret, "check-errors", found.check_errors);
  compare (call->ret, "corruptions", found.corruptions);
  compare (call->ret, "leaks", found.leaks);
  compare (call->ret, "allocated-clusters", found.allocated_clusters);
  lines = lines < MAX_LINES ? lines : MAX_LINES;
  if (json_array_size (json_object_get (call->ret, "findings")) != lines)
    broken ("check-image: %zu lines, %u are wanted",
            json_array_size (json_object_get (call->ret, "findings")), lines);
  if (t->sound && t->flip == 0 && (found.corruptions || found.check_errors))
    broken ("%s has %" PRIu64 " corruptions and %" PRIu64 " errors while it is served", f->name,
            found.corruptions, found.check_errors);
}

void
check_judged (struct call *call, const struct check_trial *t)
{
  struct mem_file *f = file_of (call, t->store);
  uint64_t size = f ? f->size : 0;
  uint8_t *before = xalloc (size), *during = xalloc (size);

  if (f) {
    memcpy (before, f->data, size);
    tell_lie (f, t);
    memcpy (during, f->data, size);
  }
  call->result = call->command->run (&call->public, call->args, &call->ret, &call->err);
  if (f) {
    if (f->size != size || memcmp (f->data, during, size) != 0)
      broken ("check-image has changed %s", f->name);
    judge_verdict (call, f, t);
    memcpy (f->data, before, size);
  }
  free (before);
  free (during);
}
