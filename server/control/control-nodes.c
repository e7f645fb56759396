/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket about images: what they are and what has been done with them, and
 * their size and snapshots (qapi/block-core.json, qapi/block.json).
 *
 * The name of a node, and of a device, is that of the export.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "describe.h"
#include "watermark.h"

/* ---- what there is --------------------------------------------------------------------------- */

static json_t *
describe_cache (const struct export *x)
{
  return json_pack ("{s:b, s:b, s:b}", "writeback", !x->write_through, "direct", x->direct,
                    "no-flush", x->ignore_flush);
}

static unsigned
depth (const struct export *x)
{
  unsigned n = 0;

  for (struct q_image *img = q_backing_image (x->img); img; img = q_backing_image (img))
    n++;
  return n;
}

/* BlockDeviceInfo.  The limits of rates are not QMP's. */
static json_t *
describe_node (struct export *x, bool flat)
{
  static const char *const limits[] = { "bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr" };
  static const char *const zeroes[] = { "off", "on", "unmap" };
  json_t *image = flat ? describe_image (x->img, NULL) : describe_chain (x->img);
  json_t *j = json_pack (
      "{s:o, s:o, s:s, s:b, s:i, s:b, s:s, s:b, s:o, s:o, s:o, s:I, s:[], s:I}", "node-name",
      describe_text (x->name), "file", describe_text (q_filename (x->img)), "drv",
      describe_format (q_image_format (x->img)), "ro", q_read_only (x->img), "backing_file_depth",
      (int)depth (x), "encrypted", json_object_get (image, "encrypted") != NULL, "detect_zeroes",
      zeroes[x->detect_zeroes], "active", 1, "cache", describe_cache (x), "dirty-bitmaps",
      describe_dirty (x->img), "image", image, "write_threshold",
      (json_int_t)(x->watermark ? watermark_asked (x->watermark) : 0), "children",
      "highest-allocated-offset", (json_int_t)q_highest_offset (x->img));
  struct q_image *below = q_backing_image (x->img);

  for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++)
    json_object_set_new (j, limits[i], json_integer (0));
  if (below)
    json_object_set_new (j, "backing_file", describe_text (q_filename (below)));
  return j;
}

static int
query_nodes (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  struct exports *set = call->context->exports;
  bool flat = false;
  struct members m;

  control_arguments (&m, call, args, err);
  members_bool (&m, "flat", &flat);
  int r = members_end (&m);
  if (r < 0)
    return r;
  *ret = json_array ();
  for (struct export *x = exports_next (set, NULL); x; x = exports_next (set, x))
    if (!export_borrows (x) && json_array_append_new (*ret, describe_node (x, flat)) < 0)
      r = -ENOMEM;
  return *ret ? r : -ENOMEM;
}

/* ---- size ------------------------------------------------------------------------------------ */

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
  struct export *x = control_find_node (call, node ? node : device, err);
  if (!x)
    return -ENOENT;
  r = export_resize (x, size, &err->q);
  export_put (x);
  return r;
}

/* ---- room ------------------------------------------------------------------------------------ */

static int
set_threshold (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  const char *node = NULL;
  uint64_t threshold = 0;
  struct members m;

  (void)ret;
  control_arguments (&m, call, args, err);
  members_require (&m, "node-name");
  members_require (&m, "write-threshold");
  members_string (&m, "node-name", &node);
  members_size (&m, "write-threshold", &threshold);
  int r = members_end (&m);
  if (r < 0)
    return r;
  struct export *x = control_find_node (call, node, err);
  if (!x)
    return -ENOENT;
  if (x->watermark)
    watermark_ask (x->watermark, threshold);
  else if (threshold > 0)
    r = control_fail (err, -EROFS,
                      "export \"%s\" is read-only: nothing is written past a threshold", x->name);
  export_put (x);
  return r;
}

/* The name is our own: in QMP it is the guest that stops, and "cont" that has it go on. */
static int
resume_writes (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  struct exports *set = call->context->exports;
  const char *id = NULL;
  unsigned n = 0;
  struct members m;

  control_arguments (&m, call, args, err);
  members_string (&m, "id", &id);
  int r = members_end (&m);
  if (r < 0)
    return r;
  if (id) {
    struct export *x = control_find_export (call, id, err);
    if (!x)
      return -ENOENT;
    n = room_resume (x->room);
    export_put (x);
  } else
    for (struct export *x = exports_next (set, NULL); x; x = exports_next (set, x))
      n += room_resume (x->room);
  return control_return (ret, json_pack ("{s:I}", "waiting", (json_int_t)n));
}

/* ---- snapshots ------------------------------------------------------------------------------- */

/* The one that ID and NAME, of which one may be NULL, are about; or NULL. */
static const struct q_snapshot_info *
find_snapshot (const struct q_snapshot_info *list, int n, const char *id, const char *name)
{
  for (int i = 0; i < n; i++)
    if ((!id || strcmp (list[i].id, id) == 0) && (!name || strcmp (list[i].name, name) == 0))
      return &list[i];
  return NULL;
}

/* What the engine, which looks for names first, takes for S and for no other; or NULL. */
static const char *
unmistakable (const struct q_snapshot_info *list, int n, const struct q_snapshot_info *s)
{
  if (!find_snapshot (list, n, NULL, s->id))
    return s->id;
  return find_snapshot (list, n, NULL, s->name) == s ? s->name : NULL;
}

static int delete (struct export *x, const char *id, const char *name, json_t **ret,
                   struct control_error *err)
{
  struct q_snapshot_info *list;
  int n = q_get_snapshots (x->img, &list), r = 0;

  if (n < 0)
    return n;
  const struct q_snapshot_info *s = find_snapshot (list, n, id, name);
  const char *called = s ? unmistakable (list, n, s) : NULL;
  if (!s)
    r = control_fail (err, -ENOENT, "export \"%s\" has no snapshot with %s%.255s%s%s%.255s",
                      x->name, id ? "the id " : "", id ? id : "", id && name ? " and " : "",
                      name ? "the name " : "", name ? name : "");
  else if (!called)
    r = control_fail (
        err, -ENOTUNIQ,
        "export \"%s\": another snapshot has the id %s, or the name '%s', for its name: "
        "delete that first",
        x->name, s->id, s->name);
  if (r == 0)
    r = control_return (ret, describe_snapshot (s));
  if (r == 0)
    r = export_snapshot_delete (x, called, &err->q);
  free (list);
  return r;
}

static int
delete_snapshot (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  const char *device = NULL, *id = NULL, *name = NULL;
  struct members m;

  control_arguments (&m, call, args, err);
  members_require (&m, "device");
  members_string (&m, "device", &device);
  members_string (&m, "id", &id);
  members_string (&m, "name", &name);
  if (!id && !name)
    members_fail (&m, "id or name is wanted");
  int r = members_end (&m);
  if (r < 0)
    return r;
  struct export *x = control_find_node (call, device, err);
  if (!x)
    return -ENOENT;
  r = delete (x, id, name, ret, err);
  export_put (x);
  return r;
}

const struct control_command control_node_commands[] = {
  { "query-named-block-nodes", query_nodes, CONTROL_BLOCKS },
  { "block_resize", resize, CONTROL_BLOCKS },
  { "block-set-write-threshold", set_threshold, CONTROL_AT_ONCE },
  { "resume-writes", resume_writes, CONTROL_AT_ONCE },
  { "blockdev-snapshot-delete-internal-sync", delete_snapshot, CONTROL_BLOCKS },
  { NULL, NULL, CONTROL_AT_ONCE },
};
