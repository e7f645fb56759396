/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket: reading the configuration again.
 */

#include <errno.h>

#include "control.h"
#include "reload.h"

static int
reload (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  struct reload_summary sum;
  struct members m;

  control_arguments (&m, call, args, err);
  int r = members_end (&m);
  if (r < 0)
    return r;
  if (!call->context->reload)
    return control_fail (err, -ENOTSUP,
                         "the server was started without --config: there is nothing to be read "
                         "again");
  r = reload_config (call->context->reload, &sum, &err->q);
  if (r < 0)
    return r;
  return control_return (ret,
                         json_pack ("{s:i, s:i, s:i, s:i, s:i}", "added", (int)sum.added, "changed",
                                    (int)sum.changed, "replaced", (int)sum.replaced, "removed",
                                    (int)sum.removed, "unchanged", (int)sum.unchanged));
}

const struct control_command control_reload_commands[] = {
  { "reload", reload, CONTROL_BLOCKS },
  { NULL, NULL, CONTROL_AT_ONCE },
};
