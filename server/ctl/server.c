/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sub-commands about the server as a whole, and whatever else it understands.
 */

#include <stdlib.h>
#include <time.h>

#include "ctl.h"

static int
status (struct ctl *c, int argc, char **argv)
{
  (void)argc;
  (void)argv;
  if (c->json)
    return ctl_do (c, "query-status", NULL);
  json_t *state = ctl_execute (c, "query-status", NULL);
  json_t *version = state ? ctl_execute (c, "query-version", NULL) : NULL;
  if (version) {
    double clients = number_of (state, "clients"), exports = number_of (state, "exports");
    long long up = (long long)number_of (state, "uptime");
    printf (
        "%s, process %.0f: %s, %.0f client%s, %.0f export%s, up %lld days %02lld:%02lld:%02lld%s\n",
        text_of (version, "package"), number_of (state, "pid"), text_of (state, "status"), clients,
        clients == 1 ? "" : "s", exports, exports == 1 ? "" : "s", up / 86400, up / 3600 % 24,
        up / 60 % 60, up % 60, is_true (state, "takeover") ? ", being taken over" : "");
  }
  int r = version ? EXIT_SUCCESS : EXIT_FAILURE;
  json_decref (state);
  json_decref (version);
  return r;
}

static int
log_level (struct ctl *c, int argc, char **argv)
{
  if (argc > 0)
    return ctl_do (c, "set-log-level", json_pack ("{s:s}", "level", argv[0]));
  if (c->json)
    return ctl_do (c, "query-log-level", NULL);
  json_t *level = ctl_execute (c, "query-log-level", NULL);
  if (level)
    printf ("%s\n", text_of (level, "level"));
  json_decref (level);
  return level ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int
reload (struct ctl *c, int argc, char **argv)
{
  (void)argc;
  (void)argv;
  return ctl_do (c, "reload", NULL);
}

static int
quit (struct ctl *c, int argc, char **argv)
{
  (void)argc;
  (void)argv;
  return ctl_do (c, "quit", NULL);
}

static int
qmp (struct ctl *c, int argc, char **argv)
{
  json_t *arguments = NULL;
  json_error_t why;

  if (argc > 1) {
    arguments = json_loads (argv[1], JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object (arguments)) {
      json_decref (arguments);
      return ctl_error ("%s: an object is wanted, as JSON%s%s", argv[1], *why.text ? ": " : "",
                        why.text);
    }
  }
  json_t *result = ctl_execute (c, argv[0], arguments);
  return result ? ctl_print_json (result) : EXIT_FAILURE;
}

/* One line each: it is read as they come. */
static int
events (struct ctl *c, int argc, char **argv)
{
  json_t *e;

  (void)argc;
  (void)argv;
  fflush (stdout);
  while ((e = ctl_event (c)) != NULL) {
    const json_t *at = json_object_get (e, "timestamp");
    time_t seconds = (time_t)number_of (at, "seconds");
    json_t *data = json_object_get (e, "data");
    char when[64] = "", *text;
    struct tm tm;

    if (localtime_r (&seconds, &tm))
      strftime (when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
    /* Names must not do things to the terminal. */
    text = json_dumps (c->json ? e : data, JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    if (c->json)
      printf ("%s\n", text ? text : "");
    else
      printf ("%s.%03.0f %s %s\n", when, number_of (at, "microseconds") / 1000,
              text_of (e, "event"), text ? text : "");
    free (text);
    json_decref (e);
    if (fflush (stdout) != 0)
      return EXIT_FAILURE;
  }
  return EXIT_FAILURE;
}

const struct ctl_command ctl_server_commands[] = {
  { "status", 0, 0, "", "whether it runs, since when and for how many", status },
  { "log-level", 0, 1, "[LEVEL]", "how much is logged: error, warning, info, debug", log_level },
  { "reload", 0, 0, "", "read the configuration file again", reload },
  { "events", 0, 0, "", "print what happens as it happens", events },
  { "qmp", 1, 2, "COMMAND [ARGUMENTS]", "any command of the protocol, and its answer", qmp },
  { "quit", 0, 0, "", "end the server", quit },
  { NULL, 0, 0, NULL, NULL, NULL },
};
