/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket: handing everything over to another process.
 */

#include <errno.h>

#include "control.h"
#include "handover.h"

static int
takeover (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  const struct control_context *c = call->context;
  struct handover_context context = {
    .server = c->server,
    .exports = c->exports,
    .reload = c->reload,
    .control = c->control,
  };
  const char *path = NULL;
  struct members m;

  (void)ret;
  control_arguments (&m, call, args, err);
  members_string (&m, "socket", &path);
  if (!path)
    members_fail (&m, "the argument 'socket' is missing");
  int r = members_end (&m);
  if (r < 0)
    return r;
  if (!c->server)
    return control_fail (err, -ENOTSUP,
                         "a server with --connect or --run cannot be taken over: it is tied to "
                         "its device, or its command");
  return handover (&context, path, &err->q);
}

const struct control_command control_takeover_commands[] = {
  { "takeover", takeover, CONTROL_URGENT },
  { NULL, NULL, CONTROL_AT_ONCE },
};
