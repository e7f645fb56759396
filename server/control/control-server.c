/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket about the server as a whole (qapi/control.json,
 * qapi/run-state.json, and two of our own about the log).
 */

#include <errno.h>
#include <unistd.h>

#include "control.h"
#include "handover.h"
#include "log.h"

json_t *
control_version (void)
{
  /* Clients of QMP look for the version under this name. */
  return json_pack ("{s:{s:i, s:i, s:i}, s:s}", "qemu", "major", VERSION_MAJOR, "minor",
                    VERSION_MINOR, "micro", VERSION_MICRO, "package", "nbdcow " NBDCOW_VERSION);
}

static int
no_arguments (struct control_call *call, json_t *args, struct control_error *err)
{
  struct members m;

  control_arguments (&m, call, args, err);
  return members_end (&m);
}

static int
query_version (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  int r = no_arguments (call, args, err);
  return r < 0 ? r : control_return (ret, control_version ());
}

static int
query_commands (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  int r = no_arguments (call, args, err);
  return r < 0 ? r : control_return (ret, control_command_names ());
}

static int
query_status (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  const struct control_context *context = call->context;
  struct timespec now;
  int r = no_arguments (call, args, err);

  if (r < 0)
    return r;
  clock_gettime (CLOCK_MONOTONIC, &now);
  return control_return (
      ret, json_pack ("{s:b, s:s, s:i, s:i, s:i, s:I, s:b}", "running", 1, "status", "running",
                      "clients", context->count_clients (context->opaque), "exports",
                      (int)exports_count (context->exports), "pid", (int)getpid (), "uptime",
                      (json_int_t)(now.tv_sec - context->started.tv_sec), "takeover",
                      handover_is_under_way ()));
}

static int
quit (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  const struct control_context *context = call->context;
  int r = no_arguments (call, args, err);

  (void)ret;
  if (r == 0)
    context->quit (context->opaque);
  return r;
}

static int
query_log_level (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  int r = no_arguments (call, args, err);
  return r < 0 ? r : control_return (ret, json_pack ("{s:s}", "level", log_level_name ()));
}

static int
set_log_level (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  const char *level = NULL;
  struct members m;

  (void)ret;
  control_arguments (&m, call, args, err);
  members_require (&m, "level");
  members_string (&m, "level", &level);
  int r = members_end (&m);
  if (r == 0 && !log_set_level (level))
    r = control_fail (err, -EINVAL, "level=%.100s: one of error, warning, info and debug is wanted",
                      level);
  return r;
}

const struct control_command control_server_commands[] = {
  { "query-version", query_version, CONTROL_AT_ONCE },
  { "query-commands", query_commands, CONTROL_AT_ONCE },
  { "query-status", query_status, CONTROL_AT_ONCE },
  { "query-log-level", query_log_level, CONTROL_AT_ONCE },
  { "set-log-level", set_log_level, CONTROL_AT_ONCE },
  { "quit", quit, CONTROL_AT_ONCE },
  { NULL, NULL, CONTROL_AT_ONCE },
};
