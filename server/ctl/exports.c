/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sub-commands about exports and who uses them.
 */

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ctl.h"
#include "keyval.h"

static int
list_exports (struct ctl *c, int argc, char **argv)
{
  static const char *const head[] = { "NAME", "SIZE", "ACCESS", "CLIENTS", "DESCRIPTION" };
  json_t *list, *x;
  struct table t;
  size_t i;

  (void)argc;
  (void)argv;
  if (c->json)
    return ctl_do (c, "query-block-exports", NULL);
  list = ctl_execute (c, "query-block-exports", NULL);
  if (!list)
    return EXIT_FAILURE;
  table_begin (&t, "lrlrl", head);
  json_array_foreach (list, i, x)
  {
    const char *name = text_of (x, "id");
    table_text (&t, *name ? name : "''");
    table_size (&t, number_of (x, "size"));
    table_text (&t, is_true (x, "shutting-down") ? "leaving"
                    : is_true (x, "writable")    ? "write"
                                                 : "read");
    table_format (&t, "%.0f", number_of (x, "clients"));
    table_text (&t, text_of (x, "description"));
  }
  table_end (&t);
  json_decref (list);
  return EXIT_SUCCESS;
}

/* The words of --export, in which an export can be written to if nothing else is said; but not what
 * shows the image of another. */
static int
add_export (struct ctl *c, int argc, char **argv)
{
  struct q_error err = { "" };
  bool read_only = false;
  json_t *settings = *argv[0] == '{' ? keyval_parse_json (argv[0], "export add", &err)
                                     : keyval_parse (argv[0], NULL, &err);

  (void)argc;
  for (int i = 0; settings && i < 2; i++) {
    static const char *const names[] = { "read-only", "readonly" };
    const json_t *v = json_object_get (settings, names[i]);
    if (v && !json_is_boolean (v) &&
        !(json_is_string (v) && parse_bool (json_string_value (v), &read_only))) {
      json_decref (settings);
      return ctl_error ("%s: on or off is wanted", names[i]);
    }
    read_only |= json_is_true (v);
    json_object_del (settings, names[i]);
  }
  if (!settings)
    return ctl_error ("%s", err.text);
  const json_t *name = json_object_get (settings, "name");
  json_object_set_new (settings, "id", json_string (name ? text_of (settings, "name") : ""));
  json_object_set_new (settings, "type", json_string ("nbd"));
  if (!json_object_get (settings, "node-name"))
    json_object_set_new (settings, "writable", json_boolean (!read_only));
  return ctl_do (c, "block-export-add", settings);
}

static int
remove_export (struct ctl *c, int argc, char **argv)
{
  (void)argc;
  return ctl_do (c, "block-export-del",
                 json_pack ("{s:s, s:s}", "id", argv[0], "mode", c->hard ? "hard" : "safe"));
}

/* ---- clients --------------------------------------------------------------------------------- */

static int
list_clients (struct ctl *c, int argc, char **argv)
{
  static const char *const head[] = { "ID",    "EXPORT",   "PEER", "TLS",
                                      "SINCE", "REQUESTS", "READ", "WRITTEN" };
  json_t *list, *x;
  struct table t;
  size_t i;

  if (c->json)
    return ctl_do (c, "query-clients", NULL);
  list = ctl_execute (c, "query-clients", NULL);
  if (!list)
    return EXIT_FAILURE;
  table_begin (&t, "rllllrrr", head);
  json_array_foreach (list, i, x)
  {
    const json_t *of = json_object_get (x, "export");
    const char *name = text_of (x, "export");
    time_t since = (time_t)number_of (x, "since");
    char when[64] = "";
    struct tm tm;
    if (argc > 0 && (!of || strcmp (name, argv[0]) != 0))
      continue;
    if (localtime_r (&since, &tm))
      strftime (when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
    table_format (&t, "%.0f", number_of (x, "id"));
    table_text (&t, !of ? "-" : *name ? name : "''");
    table_text (&t, text_of (x, "peer"));
    table_text (&t, is_true (x, "tls") ? "yes" : "no");
    table_text (&t, when);
    table_format (&t, "%.0f", number_of (x, "requests"));
    table_size (&t, number_of (x, "bytes-read"));
    table_size (&t, number_of (x, "bytes-written"));
  }
  table_end (&t);
  json_decref (list);
  return EXIT_SUCCESS;
}

static int
disconnect (struct ctl *c, int argc, char **argv)
{
  char *end;
  long long id = strtoll (argv[0], &end, 10);

  (void)argc;
  if (*end || !*argv[0])
    return ctl_error ("%s: the number of a client is wanted, as 'clients' shows it", argv[0]);
  return ctl_do (c, "client-disconnect", json_pack ("{s:I}", "id", (json_int_t)id));
}

const struct ctl_command ctl_export_commands[] = {
  { "exports", 0, 0, "", "what is served", list_exports },
  { "export add", 1, 1, "name=NAME,file=FILE,...", "serve another image (or one of them twice)",
    add_export },
  { "export del", 1, 1, "NAME", "serve it no longer", remove_export },
  { "clients", 0, 1, "[EXPORT]", "who is connected", list_clients },
  { "disconnect", 1, 1, "ID", "disconnect a client", disconnect },
  { NULL, 0, 0, NULL, NULL, NULL },
};
