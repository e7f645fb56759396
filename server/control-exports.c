/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket about exports (qapi/block-export.json).
 *
 * The id of an export is its name, and so is its node's.
 */

#include <errno.h>
#include <string.h>

#include "control.h"
#include "describe.h"
#include "serve.h"

/* ---- what there is --------------------------------------------------------------------------- */

static json_t *
describe_export (struct export *x)
{
  char description[EXPORT_DESCRIPTION_SIZE];
  json_t *j =
      json_pack ("{s:o, s:s, s:o, s:b, s:o, s:I, s:b, s:i}", "id", describe_text (x->name), "type",
                 "nbd", "node-name", describe_text (x->name), "shutting-down", x->leaving, "name",
                 describe_text (x->name), "size", (json_int_t)x->size, "writable",
                 !x->read_only && !q_read_only (x->img), "clients", (int)export_connections (x));

  export_description (x, description);
  if (*description)
    json_object_set_new (j, "description", describe_text (description));
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

/* ---- adding and removing --------------------------------------------------------------------- */

/* QMP's "bitmaps": names, or objects with a node, which is the one that is added, and a name. */
static void
take_bitmaps (struct members *m, const char *id, json_t *settings)
{
  json_t *list = members_get (m, "bitmaps"), *names = json_array (), *element;
  size_t i;

  json_array_foreach (list, i, element)
  {
    const char *node = json_string_value (json_object_get (element, "node"));
    json_t *name = json_is_object (element) ? json_object_get (element, "name") : element;
    if (!json_is_string (name) || (json_is_object (element) && (!node || strcmp (node, id) != 0)))
      members_fail (m, "bitmaps: names, or objects with the node '%.200s' and a name, are wanted",
                    id);
    json_array_append (names, name);
  }
  if (list && !json_is_array (list))
    members_fail (m, "bitmaps: an array is wanted");
  if (list)
    json_object_set (settings, "bitmap", names);
  json_decref (names);
}

/* What QMP has arguments for, as settings of an export. */
static int
take_options (struct control_call *call, json_t *args, json_t *settings, struct control_error *err)
{
  static const char *const types[] = { "nbd" };
  const char *id = NULL, *node = NULL, *name = NULL;
  bool writable = false, writethrough = false;
  struct members m;
  unsigned type;

  control_arguments (&m, call, args, err);
  members_require (&m, "type");
  members_require (&m, "id");
  members_choice (&m, "type", types, 1, &type);
  members_string (&m, "id", &id);
  members_string (&m, "node-name", &node);
  members_string (&m, "name", &name);
  members_bool (&m, "writable", &writable);
  members_bool (&m, "writethrough", &writethrough);
  if (id && ((node && strcmp (node, id) != 0) || (name && strcmp (name, id) != 0)))
    members_fail (&m, "id, node-name and name are the same: the name of the export");
  if (id)
    take_bitmaps (&m, id, settings);
  if (m.failed)
    return -EINVAL;
  json_object_set_new (settings, "name", json_string (id));
  json_object_set_new (settings, "read-only", json_boolean (!writable));
  if (writethrough)
    json_object_set_new (settings, "cache", json_string ("writethrough"));
  return 0;
}

static int
add_export (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  static const char *const ours[] = { "type",     "id",           "node-name", "name",
                                      "writable", "writethrough", "bitmaps" };
  json_t *rest = json_copy (args), *settings = json_object ();
  int r = rest && settings ? take_options (call, args, settings, err) : -ENOMEM;
  const char *key;
  json_t *value;

  (void)ret;
  for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
    json_object_del (rest, ours[i]);
  json_object_foreach (rest, key, value)
  {
    if (r == 0 && json_object_get (settings, key))
      r = control_fail (err, -EINVAL, "%s: '%s' says what another argument says already",
                        call->name, key);
    else if (r == 0)
      r = json_object_set (settings, key, value) < 0 ? -ENOMEM : 0;
  }
  if (r == 0)
    r = serve_export (call->context->exports, settings, call->name, call->context->defaults,
                      &err->q);
  json_decref (rest);
  json_decref (settings);
  return r;
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
  { "block-export-add", add_export, true },
  { "block-export-del", remove_export, true },
  { NULL, NULL, false },
};
