/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the tables of commands have in common: finding one in them, its arguments, its errors.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "control.h"

static const struct control_command *const tables[] = {
  control_server_commands, control_export_commands,   control_client_commands,
  control_node_commands,   control_reload_commands,   control_change_commands,
  control_stats_commands,  control_takeover_commands, control_check_commands,
};

static void __attribute__ ((format (printf, 3, 0)))
say (struct control_error *err, enum control_class class, const char *fmt, va_list args)
{
  err->class = class;
  vsnprintf (err->q.text, sizeof err->q.text, fmt, args);
}

int
control_fail (struct control_error *err, int r, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  say (err, CONTROL_GENERIC, fmt, args);
  va_end (args);
  return r;
}

int
control_no_device (struct control_error *err, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  say (err, CONTROL_NO_DEVICE, fmt, args);
  va_end (args);
  return -ENOENT;
}

int
control_no_command (struct control_error *err, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  say (err, CONTROL_NO_COMMAND, fmt, args);
  va_end (args);
  return -ENOENT;
}

void
control_arguments (struct members *m, const struct control_call *call, json_t *args,
                   struct control_error *err)
{
  members_init (m, args, call->name, &err->q);
  m->strict = true;
}

struct export *
control_find_export (const struct control_call *call, const char *name, struct control_error *err)
{
  struct export *x = exports_get (call->context->exports, name, strlen (name));

  if (!x)
    control_no_device (err, "there is no export \"%.500s\"", name);
  return x;
}

struct export *
control_find_node (const struct control_call *call, const char *name, struct control_error *err)
{
  struct export *x = control_find_export (call, name, err);

  if (!x || !export_borrows (x))
    return x;
  control_no_device (err, "export \"%.400s\" shows the image of \"%.400s\": name that", name,
                     x->base->name);
  export_put (x);
  return NULL;
}

int
control_return (json_t **ret, json_t *value)
{
  *ret = value;
  return value ? 0 : -ENOMEM;
}

const struct control_command *
control_find_command (const char *name)
{
  for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++)
    for (const struct control_command *k = tables[i]; k->name; k++)
      if (strcmp (k->name, name) == 0)
        return k;
  return NULL;
}

json_t *
control_command_names (void)
{
  json_t *list = json_array ();

  for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++)
    for (const struct control_command *k = tables[i]; k->name; k++)
      if (json_array_append_new (list, json_pack ("{s:s}", "name", k->name)) < 0) {
        json_decref (list);
        return NULL;
      }
  return list;
}
