/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket about images (qapi/block-core.json).
 *
 * The name of a node, and of a device, is that of the export.
 */

#include <errno.h>

#include "control.h"

static int
resize (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  const char *device = NULL, *node = NULL;
  uint64_t size = 0;
  struct members m;

  (void)ret;
  control_arguments (&m, call, args, err);
  members_string (&m, "device", &device);
  members_string (&m, "node-name", &node);
  members_require (&m, "size");
  members_size (&m, "size", &size);
  if (!device == !node)
    members_fail (&m, "one of device and node-name is wanted");
  int r = members_end (&m);
  if (r < 0)
    return r;
  struct export *x = control_find_export (call, node ? node : device, err);
  if (!x)
    return -ENOENT;
  r = export_resize (x, size, &err->q);
  export_put (x);
  return r;
}

const struct control_command control_node_commands[] = {
  { "block_resize", resize, true },
  { NULL, NULL, false },
};
