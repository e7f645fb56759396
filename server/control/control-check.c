/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The control socket's command that checks an image while it is served.
 */

#include <errno.h>
#include <string.h>

#include "control.h"
#include "describe.h"

/* Of what was found so many lines are told; the numbers count all. */
#define MAX_LINES 1000

/* How long flushes may wait, in milliseconds, if nobody says. */
#define DEFAULT_MAX_PAUSE 10000

struct checking {
  const struct control_call *call;
  json_t *lines;
};

static void
note (void *opaque, const char *line)
{
  const struct checking *k = opaque;

  if (json_array_size (k->lines) < MAX_LINES)
    json_array_append_new (k->lines, describe_text (line));
}

static bool
is_unwanted (void *opaque)
{
  const struct checking *k = opaque;
  return atomic_load (&k->call->unwanted);
}

static json_t *
describe (struct export *x, const struct q_check_result *result, uint64_t held_ns, json_t *lines)
{
  json_t *j = describe_check (result);
  json_t *more = json_pack ("{s:o, s:s, s:I, s:O}", "filename", describe_text (q_filename (x->img)),
                            "format", describe_format (q_image_format (x->img)), "flushes-held-ns",
                            (json_int_t)held_ns, "findings", lines);

  if (!j || !more || json_object_update (j, more) < 0) {
    json_decref (j);
    j = NULL;
  }
  json_decref (more);
  return j;
}

static int
check_image (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  uint64_t max_pause = DEFAULT_MAX_PAUSE, held_ns;
  struct q_check_result result;
  const char *node = NULL;
  struct members m;

  control_arguments (&m, call, args, err);
  members_require (&m, "node-name");
  members_string (&m, "node-name", &node);
  members_number (&m, "max-pause", 1, 86400000, &max_pause);
  int r = members_end (&m);
  if (r < 0)
    return r;
  struct export *x = control_find_node (call, node, err);
  if (!x)
    return -ENOENT;
  struct checking k = { .call = call, .lines = json_array () };
  const struct q_check_options o = { .report = note, .stop = is_unwanted, .opaque = &k };
  r = q_check_live (x->img, &o, max_pause * 1000000, &result, &held_ns, &err->q);
  if (r == 0)
    r = control_return (ret, describe (x, &result, held_ns, k.lines));
  if (r == -EINTR)
    control_fail (err, r, "%s: the check was stopped: the server ends, or hands its clients over",
                  q_filename (x->img));
  json_decref (k.lines);
  export_put (x);
  return r;
}

const struct control_command control_check_commands[] = {
  { "check-image", check_image, CONTROL_BLOCKS },
  { NULL, NULL, CONTROL_AT_ONCE },
};
