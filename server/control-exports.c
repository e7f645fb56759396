/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket about exports (qapi/block-export.json).
 *
 * The id of an export is its name, and so is its node's.
 */

#include <errno.h>

#include "control.h"

/* ---- what there is --------------------------------------------------------------------------- */

static json_t *
describe_export (struct export *x)
{
  char description[EXPORT_DESCRIPTION_SIZE];
  json_t *j =
      json_pack ("{s:o, s:s, s:o, s:b, s:o, s:I, s:b, s:i}", "id", control_text (x->name), "type",
                 "nbd", "node-name", control_text (x->name), "shutting-down", x->leaving, "name",
                 control_text (x->name), "size", (json_int_t)x->size, "writable",
                 !x->read_only && !q_read_only (x->img), "clients", (int)export_connections (x));

  export_description (x, description);
  if (*description)
    json_object_set_new (j, "description", control_text (description));
  return j;
}

static int
query_exports (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  struct exports *set = call->context->exports;
  struct members m;

  control_arguments (&m, call, args, err);
  int r = members_end (&m);
  if (r < 0)
    return r;
  *ret = json_array ();
  for (struct export *x = exports_next (set, NULL); x; x = exports_next (set, x))
    if (json_array_append_new (*ret, describe_export (x)) < 0)
      r = -ENOMEM;
  return *ret ? r : -ENOMEM;
}

static int
remove_export (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  static const char *const modes[] = { "safe", "hard" };
  const char *id = NULL;
  unsigned mode = 0;
  struct members m;

  (void)ret;
  control_arguments (&m, call, args, err);
  members_require (&m, "id");
  members_string (&m, "id", &id);
  members_choice (&m, "mode", modes, 2, &mode);
  int r = members_end (&m);
  return r < 0 ? r : exports_remove (call->context->exports, id, mode == 1, &err->q);
}

const struct control_command control_export_commands[] = {
  { "query-block-exports", query_exports, false },
  { "block-export-del", remove_export, true },
  { NULL, NULL, false },
};
