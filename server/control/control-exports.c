/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket about exports (qapi/block-export.json).
 *
 * The id of an export is its name, and so is its node's; but a view shows the node of another.
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
  json_t *j = json_pack ("{s:o, s:s, s:o, s:b, s:o, s:I, s:b, s:i}", "id", describe_text (x->name),
                         "type", "nbd", "node-name", describe_text (export_node (x)->name),
                         "shutting-down", x->leaving, "name", describe_text (x->name), "size",
                         (json_int_t)x->size, "writable", !x->read_only && !q_read_only (x->img),
                         "clients", (int)export_connections (x));

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
  for (struct export *x = exports_next_any (set, NULL); x; x = exports_next_any (set, x))
    if (json_array_append_new (*ret, describe_export (x)) < 0)
      r = -ENOMEM;
  return *ret ? r : -ENOMEM;
}

/* ---- adding and removing --------------------------------------------------------------------- */

/* What is to be added. */
struct addition {
  const char *id;
  const char *node; /* whose image it is to show; NULL: its own */
  json_t *settings; /* in the words of --export */
};

/* QMP's "bitmaps": names, or objects with the node and a name. */
static void
take_bitmaps (struct members *m, struct addition *a)
{
  json_t *list = members_get (m, "bitmaps"), *names = json_array (), *element;
  const char *where = a->node ? a->node : a->id;
  size_t i;

  json_array_foreach (list, i, element)
  {
    const char *node = json_string_value (json_object_get (element, "node"));
    json_t *name = json_is_object (element) ? json_object_get (element, "name") : element;
    if (!json_is_string (name) ||
        (json_is_object (element) && (!node || strcmp (node, where) != 0)))
      members_fail (m, "bitmaps: names, or objects with the node '%.200s' and a name, are wanted",
                    where);
    json_array_append (names, name);
  }
  if (list && !json_is_array (list))
    members_fail (m, "bitmaps: an array is wanted");
  if (list)
    json_object_set (a->settings, "bitmap", names);
  json_decref (names);
}

/* What QMP has arguments for, as settings of an export. */
static int
take_options (struct control_call *call, json_t *args, struct addition *a,
              struct control_error *err)
{
  static const char *const types[] = { "nbd" };
  const char *name = NULL;
  bool writable = false, writethrough = false;
  struct members m;
  unsigned type;

  control_arguments (&m, call, args, err);
  members_require (&m, "type");
  members_require (&m, "id");
  members_choice (&m, "type", types, 1, &type);
  members_string (&m, "id", &a->id);
  members_string (&m, "node-name", &a->node);
  members_string (&m, "name", &name);
  members_bool (&m, "writable", &writable);
  members_bool (&m, "writethrough", &writethrough);
  if (a->id && name && strcmp (name, a->id) != 0)
    members_fail (&m, "id and name are the same: the name of the export");
  if (a->id && a->node && strcmp (a->node, a->id) == 0)
    a->node = NULL;
  if (a->node && (writable || writethrough))
    members_fail (&m, "%s: what shows the image of another export is read-only",
                  writable ? "writable" : "writethrough");
  if (a->id)
    take_bitmaps (&m, a);
  if (m.failed)
    return -EINVAL;
  json_object_set_new (a->settings, "name", json_string (a->id));
  json_object_set_new (a->settings, "read-only", json_boolean (!writable));
  if (writethrough)
    json_object_set_new (a->settings, "cache", json_string ("writethrough"));
  return 0;
}

/* The others are settings already; a view takes those that are about it, and not about the image.
 */
static int
take_others (struct control_call *call, json_t *args, struct addition *a, struct control_error *err)
{
  static const char *const ours[] = { "type",     "id",           "node-name", "name",
                                      "writable", "writethrough", "bitmaps" };
  static const char *const of_view[] = { "description", "bitmap",     "allocation-depth",
                                         "offset",      "size",       "max-connections",
                                         "rate",        "min-block",  "tls",
                                         "tls-authz",   "key-secret", "load-snapshot" };
  const char *key;
  json_t *value;

  json_object_foreach (args, key, value)
  {
    bool known = false, allowed = !a->node;
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
      known = known || strcmp (key, ours[i]) == 0;
    for (size_t i = 0; i < sizeof of_view / sizeof of_view[0]; i++)
      allowed = allowed || strcmp (key, of_view[i]) == 0;
    if (known)
      continue;
    if (!allowed)
      return control_fail (err, -EINVAL,
                           "%s: '%.100s' is not for an export that shows the image of another, as "
                           "node-name says",
                           call->name, key);
    if (json_object_get (a->settings, key))
      return control_fail (err, -EINVAL, "%s: '%s' says what another argument says already",
                           call->name, key);
    if (json_object_set (a->settings, key, value) < 0)
      return -ENOMEM;
  }
  return 0;
}

static int
add_export (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  struct export_options defaults = *call->context->defaults;
  struct addition a = { .settings = json_object () };
  int r = a.settings ? take_options (call, args, &a, err) : -ENOMEM;

  (void)ret;
  if (r == 0)
    r = take_others (call, args, &a, err);
  if (r == 0 && a.node && !(defaults.base = control_find_node (call, a.node, err)))
    r = -ENOENT;
  /* Who may not see an image by one name may not by another. */
  if (r == 0 && defaults.base)
    export_admission (defaults.base, &defaults.tls_only, &defaults.authz);
  if (r == 0)
    r = serve_export (call->context->exports, a.settings, call->name, &defaults, &err->q);
  if (defaults.base)
    export_put (defaults.base);
  json_decref (a.settings);
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
  { "query-block-exports", query_exports, CONTROL_AT_ONCE },
  { "block-export-add", add_export, CONTROL_BLOCKS },
  { "block-export-del", remove_export, CONTROL_BLOCKS },
  { NULL, NULL, CONTROL_AT_ONCE },
};
