/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket that change bitmaps and make snapshots, alone or several at one
 * instant (qapi/block-core.json, qapi/transaction.json).
 *
 * All of them are lists of changes for q_change, of which most have one.  Every bitmap is kept in
 * the image: QMP's argument "persistent" can say nothing else.
 */

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"

/* Actions of one transaction. */
#define MAX_ACTIONS 4096

struct changes {
  struct control_call *call;
  struct control_error *err;
  struct q_change *change; /* its strings belong to the arguments */
  struct export **used;    /* references, NULL where there is none */
  unsigned n, n_used, room;
};

/* ---- the list -------------------------------------------------------------------------------- */

static int
begin (struct changes *c, struct control_call *call, unsigned room, struct control_error *err)
{
  *c = (struct changes){ .call = call, .err = err, .room = room };
  c->change = calloc (room, sizeof *c->change);
  /* A merge has two. */
  c->used = calloc (2ul * room, sizeof (struct export *));
  return c->change && c->used ? 0 : -ENOMEM;
}

static void
end (struct changes *c)
{
  for (unsigned i = 0; i < c->n_used; i++)
    export_put (c->used[i]);
  free (c->used);
  free (c->change);
}

/* The image of the export called NAME, there until the end. */
static int
find_image (struct changes *c, const char *name, struct q_image **img)
{
  struct export *x;

  if (c->n_used == 2 * c->room)
    return control_fail (c->err, -E2BIG, "more than %u changes at one instant", c->room);
  x = control_find_node (c->call, name, c->err);
  if (!x)
    return -ENOENT;
  c->used[c->n_used++] = x;
  *img = x->img;
  return 0;
}

static int
add (struct changes *c, const struct q_change *change)
{
  if (c->n == c->room)
    return control_fail (c->err, -E2BIG, "more than %u changes at one instant", c->room);
  c->change[c->n++] = *change;
  return 0;
}

/* ---- bitmaps --------------------------------------------------------------------------------- */

static void
arguments (struct members *m, struct changes *c, json_t *data, const char *type)
{
  members_init (m, data, type, &c->err->q);
  m->strict = true;
}

static int
add_bitmap (struct changes *c, const char *type, json_t *data)
{
  struct q_change change = { .bitmap = { .op = Q_BITMAP_ADD } };
  const char *node = NULL;
  bool persistent = true;
  struct members m;

  arguments (&m, c, data, type);
  members_require (&m, "node");
  members_require (&m, "name");
  members_string (&m, "node", &node);
  members_string (&m, "name", &change.bitmap.name);
  members_number (&m, "granularity", 512, UINT32_C (1) << 31, &change.bitmap.granularity);
  members_bool (&m, "persistent", &persistent);
  members_bool (&m, "disabled", &change.bitmap.disabled);
  if (!persistent)
    members_fail (&m, "persistent=false: bitmaps are always kept in the image");
  int r = members_end (&m);
  if (r == 0)
    r = find_image (c, node, &change.img);
  return r < 0 ? r : add (c, &change);
}

/* An operation that is about one bitmap alone. */
static int
change_bitmap (struct changes *c, const char *type, json_t *data, enum q_bitmap_op op)
{
  struct q_change change = { .bitmap = { .op = op } };
  const char *node = NULL;
  struct members m;

  arguments (&m, c, data, type);
  members_require (&m, "node");
  members_require (&m, "name");
  members_string (&m, "node", &node);
  members_string (&m, "name", &change.bitmap.name);
  int r = members_end (&m);
  if (r == 0)
    r = find_image (c, node, &change.img);
  return r < 0 ? r : add (c, &change);
}

static int
remove_bitmap (struct changes *c, const char *type, json_t *data)
{
  return change_bitmap (c, type, data, Q_BITMAP_REMOVE);
}

static int
clear_bitmap (struct changes *c, const char *type, json_t *data)
{
  return change_bitmap (c, type, data, Q_BITMAP_CLEAR);
}

static int
enable_bitmap (struct changes *c, const char *type, json_t *data)
{
  return change_bitmap (c, type, data, Q_BITMAP_ENABLE);
}

static int
disable_bitmap (struct changes *c, const char *type, json_t *data)
{
  return change_bitmap (c, type, data, Q_BITMAP_DISABLE);
}

/* SOURCE is a name, or {"node": ..., "name": ...}. */
static int
merge_one (struct changes *c, const char *type, struct q_change *change, json_t *source)
{
  struct q_bitmap_action *a = &change->bitmap;
  const char *node = NULL;
  struct members m;
  int r = 0;

  a->source = json_string_value (source);
  a->source_image = NULL;
  if (!a->source && !json_is_object (source))
    return control_fail (c->err, -EINVAL,
                         "%s: bitmaps: names, or objects with node and name, are wanted", type);
  if (!a->source) {
    arguments (&m, c, source, type);
    members_require (&m, "node");
    members_require (&m, "name");
    members_string (&m, "node", &node);
    members_string (&m, "name", &a->source);
    r = members_end (&m);
  }
  if (r == 0 && node)
    r = find_image (c, node, &a->source_image);
  return r < 0 ? r : add (c, change);
}

static int
merge_bitmaps (struct changes *c, const char *type, json_t *data)
{
  struct q_change change = { .bitmap = { .op = Q_BITMAP_MERGE } };
  const char *node = NULL;
  struct members m;
  json_t *source;
  size_t i;

  arguments (&m, c, data, type);
  members_require (&m, "node");
  members_require (&m, "target");
  members_require (&m, "bitmaps");
  members_string (&m, "node", &node);
  members_string (&m, "target", &change.bitmap.name);
  json_t *bitmaps = members_get (&m, "bitmaps");
  if (bitmaps && !json_is_array (bitmaps))
    members_fail (&m, "bitmaps: an array is wanted");
  int r = members_end (&m);
  if (r == 0)
    r = find_image (c, node, &change.img);
  json_array_foreach (bitmaps, i, source)
  {
    if (r == 0)
      r = merge_one (c, type, &change, source);
  }
  return r;
}

/* ---- snapshots ------------------------------------------------------------------------------- */

static int
make_snapshot (struct changes *c, const char *type, json_t *data)
{
  struct q_change change = { .snapshot = NULL };
  const char *device = NULL;
  struct members m;

  arguments (&m, c, data, type);
  members_require (&m, "device");
  members_require (&m, "name");
  members_string (&m, "device", &device);
  members_string (&m, "name", &change.snapshot);
  if (change.snapshot && !*change.snapshot)
    members_fail (&m, "name: it is empty");
  int r = members_end (&m);
  if (r == 0)
    r = find_image (c, device, &change.img);
  if (r < 0)
    return r;

  assert (change.snapshot); /* members_require has seen to it */
  struct q_snapshot_info *list;
  int n = q_get_snapshots (change.img, &list);
  if (n < 0)
    return n;
  for (int i = 0; r == 0 && i < n; i++)
    if (strcmp (list[i].name, change.snapshot) == 0)
      r = control_fail (c->err, -EEXIST,
                        "%s: export \"%s\" has a snapshot '%.255s' already, with the id %s", type,
                        device, change.snapshot, list[i].id);
  free (list);
  return r < 0 ? r : add (c, &change);
}

/* ---- commands -------------------------------------------------------------------------------- */

static int
abort_all (struct changes *c, const char *type, json_t *data)
{
  (void)data;
  return control_fail (c->err, -ECANCELED, "%s: nothing has been changed", type);
}

/* What a transaction is made of; most are commands by themselves. */
static const struct action {
  const char *type;
  int (*plan) (struct changes *c, const char *type, json_t *data);
} actions[] = {
  { "block-dirty-bitmap-add", add_bitmap },
  { "block-dirty-bitmap-remove", remove_bitmap },
  { "block-dirty-bitmap-clear", clear_bitmap },
  { "block-dirty-bitmap-enable", enable_bitmap },
  { "block-dirty-bitmap-disable", disable_bitmap },
  { "block-dirty-bitmap-merge", merge_bitmaps },
  { "blockdev-snapshot-internal-sync", make_snapshot },
  { "abort", abort_all },
};

static const struct action *
find_action (const char *type)
{
  for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++)
    if (strcmp (actions[i].type, type) == 0)
      return &actions[i];
  return NULL;
}

static int
carry_out (struct changes *c)
{
  return c->n > 0 ? q_change (c->change, c->n, &c->err->q) : 0;
}

static int
change_one (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  struct changes c;
  int r = begin (&c, call, MAX_ACTIONS, err);

  (void)ret;
  if (r == 0)
    r = find_action (call->name)->plan (&c, call->name, args);
  if (r == 0)
    r = carry_out (&c);
  end (&c);
  return r;
}

/* As change_one, but it says which id the snapshot has got. */
static int
snapshot (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  struct changes c;
  int r = begin (&c, call, 1, err);

  if (r == 0)
    r = make_snapshot (&c, call->name, args);
  if (r == 0)
    r = carry_out (&c);
  if (r == 0)
    r = control_return (ret, json_pack ("{s:s}", "id", c.change[0].id));
  end (&c);
  return r;
}

static int
plan_action (struct changes *c, json_t *element)
{
  const struct action *action;
  const char *type = NULL;
  struct members m;

  arguments (&m, c, element, "transaction: action");
  members_require (&m, "type");
  members_require (&m, "data");
  members_string (&m, "type", &type);
  json_t *data = members_get (&m, "data");
  if (data && !json_is_object (data))
    members_fail (&m, "data: an object is wanted");
  int r = members_end (&m);
  if (r < 0)
    return r;
  action = find_action (type);
  if (!action)
    return control_fail (c->err, -EINVAL, "transaction: there is no action of type '%.100s'", type);
  return action->plan (c, type, data);
}

static int
transaction (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  static const char *const modes[] = { "individual", "grouped" };
  struct members m, of_all;
  unsigned mode = 0;
  struct changes c;
  json_t *element;
  size_t i;

  (void)ret;
  control_arguments (&m, call, args, err);
  members_require (&m, "actions");
  json_t *list = members_get (&m, "actions");
  if (list && (!json_is_array (list) || json_array_size (list) > MAX_ACTIONS))
    members_fail (&m, "actions: an array of at most %d actions is wanted", MAX_ACTIONS);
  json_t *properties = members_get (&m, "properties");
  int r = members_end (&m);
  if (r == 0 && properties) {
    members_init (&of_all, properties, "transaction: properties", &err->q);
    members_choice (&of_all, "completion-mode", modes, 2, &mode);
    /* Which is about jobs, and QEMU's bitmaps do not take it either. */
    if (mode == 1)
      members_fail (&of_all, "completion-mode=grouped: no action here goes on after the command");
    r = json_is_object (properties)
            ? members_end (&of_all)
            : control_fail (err, -EINVAL, "properties: an object is wanted");
  }
  if (r < 0)
    return r;
  r = begin (&c, call, MAX_ACTIONS, err);
  json_array_foreach (list, i, element)
  {
    if (r == 0)
      r = json_is_object (element)
              ? plan_action (&c, element)
              : control_fail (err, -EINVAL, "transaction: actions are objects with type and data");
  }
  if (r == 0)
    r = carry_out (&c);
  end (&c);
  return r;
}

const struct control_command control_change_commands[] = {
  { "block-dirty-bitmap-add", change_one, CONTROL_BLOCKS },
  { "block-dirty-bitmap-remove", change_one, CONTROL_BLOCKS },
  { "block-dirty-bitmap-clear", change_one, CONTROL_BLOCKS },
  { "block-dirty-bitmap-enable", change_one, CONTROL_BLOCKS },
  { "block-dirty-bitmap-disable", change_one, CONTROL_BLOCKS },
  { "block-dirty-bitmap-merge", change_one, CONTROL_BLOCKS },
  { "blockdev-snapshot-internal-sync", snapshot, CONTROL_BLOCKS },
  { "transaction", transaction, CONTROL_BLOCKS },
  { NULL, NULL, CONTROL_AT_ONCE },
};
