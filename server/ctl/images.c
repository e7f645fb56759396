/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sub-commands about the images behind the exports: their size, snapshots and bitmaps.
 */

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ctl.h"
#include "keyval.h"

/* The node of the export called NAME, out of what query-named-block-nodes says; NULL: it is not
 * there, or nothing was said. */
static json_t *
find_node (struct ctl *c, const char *name)
{
  json_t *list = ctl_execute (c, "query-named-block-nodes", NULL), *x, *found = NULL;
  size_t i;

  json_array_foreach (list, i, x)
  {
    if (strcmp (text_of (x, "node-name"), name) == 0)
      found = x;
  }
  if (list && !found)
    ctl_error ("there is no export '%s'", name);
  json_incref (found);
  json_decref (list);
  return found;
}

static int
show (struct ctl *c, int argc, char **argv)
{
  json_t *node = find_node (c, argv[0]);

  (void)argc;
  if (!node)
    return EXIT_FAILURE;
  if (c->json)
    return ctl_print_json (node);
  static const char *const head[] = { "", "" };
  const json_t *image = json_object_get (node, "image");
  struct table t;
  table_begin (&t, "ll", head);
  table_text (&t, "file");
  table_text (&t, text_of (node, "file"));
  table_text (&t, "format");
  table_text (&t, text_of (node, "drv"));
  table_text (&t, "backing file");
  table_text (&t, *text_of (node, "backing_file") ? text_of (node, "backing_file") : "-");
  table_text (&t, "virtual size");
  table_size (&t, number_of (image, "virtual-size"));
  table_text (&t, "disk size");
  table_size (&t, number_of (image, "actual-size"));
  table_text (&t, "highest allocated offset");
  table_size (&t, number_of (node, "highest-allocated-offset"));
  table_text (&t, "snapshots");
  table_format (&t, "%zu", json_array_size (json_object_get (image, "snapshots")));
  table_text (&t, "bitmaps");
  table_format (&t, "%zu", json_array_size (json_object_get (node, "dirty-bitmaps")));
  table_end (&t);
  json_decref (node);
  return EXIT_SUCCESS;
}

/* SIZE, or +SIZE more than there is. */
static int
resize (struct ctl *c, int argc, char **argv)
{
  bool more = *argv[1] == '+';
  uint64_t size;

  (void)argc;
  if (!parse_size (argv[1] + more, &size) || size > INT64_MAX)
    return ctl_error ("%s: a number of bytes, or + and how many more, is wanted", argv[1]);
  if (more) {
    json_t *node = find_node (c, argv[0]);
    if (!node)
      return EXIT_FAILURE;
    size += (uint64_t)number_of (json_object_get (node, "image"), "virtual-size");
    json_decref (node);
  }
  return ctl_do (c, "block_resize",
                 json_pack ("{s:s, s:I}", "node-name", argv[0], "size", (json_int_t)size));
}

static int
threshold (struct ctl *c, int argc, char **argv)
{
  uint64_t bytes = 0;

  if (argc == 1) {
    json_t *node = find_node (c, argv[0]);
    if (!node)
      return EXIT_FAILURE;
    double now = number_of (node, "write_threshold");
    json_decref (node);
    if (c->json)
      return ctl_print_json (json_integer ((json_int_t)now));
    printf (now > 0 ? "%.0f\n" : "off\n", now);
    return EXIT_SUCCESS;
  }
  if (strcmp (argv[1], "off") != 0 && !parse_size (argv[1], &bytes))
    return ctl_error ("%s: a number of bytes, or off, is wanted", argv[1]);
  return ctl_do (
      c, "block-set-write-threshold",
      json_pack ("{s:s, s:I}", "node-name", argv[0], "write-threshold", (json_int_t)bytes));
}

static int
resume (struct ctl *c, int argc, char **argv)
{
  json_t *args = argc > 0 ? json_pack ("{s:s}", "id", argv[0]) : NULL;

  if (c->json)
    return ctl_do (c, "resume-writes", args);
  json_t *result = ctl_execute (c, "resume-writes", args);
  if (!result)
    return EXIT_FAILURE;
  double n = number_of (result, "waiting");
  printf ("%.0f request%s waiting\n", n, n == 1 ? " was" : "s were");
  json_decref (result);
  return EXIT_SUCCESS;
}

/* What "nbdcow-img check" says of an image that nobody uses, and its exit status. */
static int
check (struct ctl *c, int argc, char **argv)
{
  json_t *args = json_pack ("{s:s}", "node-name", argv[0]), *j, *line;
  char *end = NULL;
  size_t i;

  if (argc > 1) {
    double seconds = strtod (argv[1], &end);
    if (*end || end == argv[1] || !(seconds >= 0.001 && seconds <= 86400)) {
      json_decref (args);
      return ctl_error ("%s: how many seconds flushes may wait, from 0.001 to 86400, is wanted",
                        argv[1]);
    }
    json_object_set_new (args, "max-pause", json_integer ((json_int_t)(seconds * 1000)));
  }
  j = ctl_execute (c, "check-image", args);
  if (!j)
    return EXIT_FAILURE;
  const double corruptions = number_of (j, "corruptions"), leaks = number_of (j, "leaks");
  const int status = number_of (j, "check-errors") > 0 ? 1
                     : corruptions > 0                 ? 2
                     : leaks > 0                       ? 3
                                                       : 0;
  if (c->json) {
    ctl_print_json (j);
    return status;
  }
  json_array_foreach (json_object_get (j, "findings"), i, line)
  {
    fprintf (stderr, "%s\n", json_string_value (line));
  }
  printf ("%.0f errors, %.0f leaked clusters; %.0f of %.0f clusters are allocated\n", corruptions,
          leaks, number_of (j, "allocated-clusters"), number_of (j, "total-clusters"));
  printf ("flushes waited for %.3f s\n", number_of (j, "flushes-held-ns") / 1e9);
  json_decref (j);
  return status;
}

/* ---- snapshots ------------------------------------------------------------------------------- */

static int
list_snapshots (struct ctl *c, int argc, char **argv)
{
  static const char *const head[] = { "ID", "NAME", "DATE" };
  json_t *node = find_node (c, argv[0]), *list, *s;
  struct table t;
  size_t i;

  (void)argc;
  if (!node)
    return EXIT_FAILURE;
  list = json_object_get (json_object_get (node, "image"), "snapshots");
  list = list ? json_incref (list) : json_array ();
  json_decref (node);
  if (c->json)
    return ctl_print_json (list);
  table_begin (&t, "rll", head);
  json_array_foreach (list, i, s)
  {
    time_t date = (time_t)number_of (s, "date-sec");
    char when[64] = "";
    struct tm tm;
    if (localtime_r (&date, &tm))
      strftime (when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
    table_text (&t, text_of (s, "id"));
    table_text (&t, text_of (s, "name"));
    table_text (&t, when);
  }
  table_end (&t);
  json_decref (list);
  return EXIT_SUCCESS;
}

static json_t *
snapshot_action (const char *export_name, const char *name)
{
  return json_pack ("{s:s, s:{s:s, s:s}}", "type", "blockdev-snapshot-internal-sync", "data",
                    "device", export_name, "name", name);
}

/* All at one instant. */
static int
make_snapshots (struct ctl *c, int argc, char **argv)
{
  json_t *actions = json_array ();

  for (int i = 1; i < argc; i++)
    json_array_append_new (actions, snapshot_action (argv[i], argv[0]));
  return ctl_do (c, "transaction", json_pack ("{s:o}", "actions", actions));
}

static int
delete_snapshot (struct ctl *c, int argc, char **argv)
{
  (void)argc;
  return ctl_do (c, "blockdev-snapshot-delete-internal-sync",
                 json_pack ("{s:s, s:s}", "device", argv[1], c->by_id ? "id" : "name", argv[0]));
}

/* ---- bitmaps --------------------------------------------------------------------------------- */

static int
list_bitmaps (struct ctl *c, int argc, char **argv)
{
  static const char *const head[] = { "NAME", "GRANULARITY", "DIRTY", "STATE" };
  json_t *node = find_node (c, argv[0]), *list, *b;
  struct table t;
  size_t i;

  (void)argc;
  if (!node)
    return EXIT_FAILURE;
  list = json_incref (json_object_get (node, "dirty-bitmaps"));
  json_decref (node);
  if (c->json)
    return ctl_print_json (list);
  table_begin (&t, "lrrl", head);
  json_array_foreach (list, i, b)
  {
    table_text (&t, text_of (b, "name"));
    table_size (&t, number_of (b, "granularity"));
    table_size (&t, number_of (b, "count"));
    table_text (&t, is_true (b, "inconsistent") ? "inconsistent"
                    : is_true (b, "recording")  ? "enabled"
                                                : "disabled");
  }
  table_end (&t);
  json_decref (list);
  return EXIT_SUCCESS;
}

static int
change_bitmap (struct ctl *c, const char *command, char **argv)
{
  return ctl_do (c, command, json_pack ("{s:s, s:s}", "node", argv[0], "name", argv[1]));
}

static int
add_bitmap (struct ctl *c, int argc, char **argv)
{
  json_t *args = json_pack ("{s:s, s:s, s:b}", "node", argv[0], "name", argv[1], "persistent", 1);
  uint64_t granularity;

  if (argc > 2 && !parse_size (argv[2], &granularity)) {
    json_decref (args);
    return ctl_error ("%s: a number of bytes is wanted", argv[2]);
  }
  if (argc > 2)
    json_object_set_new (args, "granularity", json_integer ((json_int_t)granularity));
  return ctl_do (c, "block-dirty-bitmap-add", args);
}

static int
remove_bitmap (struct ctl *c, int argc, char **argv)
{
  (void)argc;
  return change_bitmap (c, "block-dirty-bitmap-remove", argv);
}

static int
clear_bitmap (struct ctl *c, int argc, char **argv)
{
  (void)argc;
  return change_bitmap (c, "block-dirty-bitmap-clear", argv);
}

static int
enable_bitmap (struct ctl *c, int argc, char **argv)
{
  (void)argc;
  return change_bitmap (c, "block-dirty-bitmap-enable", argv);
}

static int
disable_bitmap (struct ctl *c, int argc, char **argv)
{
  (void)argc;
  return change_bitmap (c, "block-dirty-bitmap-disable", argv);
}

static int
merge_bitmaps (struct ctl *c, int argc, char **argv)
{
  json_t *sources = json_array ();

  for (int i = 2; i < argc; i++)
    json_array_append_new (sources, json_string (argv[i]));
  return ctl_do (
      c, "block-dirty-bitmap-merge",
      json_pack ("{s:s, s:s, s:o}", "node", argv[0], "target", argv[1], "bitmaps", sources));
}

/* In each export the one bitmap stops and the next begins, all at one instant; with --snapshot
 * there is a snapshot of that instant, too. */
static int
checkpoint (struct ctl *c, int argc, char **argv)
{
  json_t *actions = json_array ();

  for (int i = 2; i < argc; i++) {
    json_array_append_new (actions,
                           json_pack ("{s:s, s:{s:s, s:s}}", "type", "block-dirty-bitmap-disable",
                                      "data", "node", argv[i], "name", argv[0]));
    json_array_append_new (actions,
                           json_pack ("{s:s, s:{s:s, s:s, s:b}}", "type", "block-dirty-bitmap-add",
                                      "data", "node", argv[i], "name", argv[1], "persistent", 1));
    if (c->snapshot)
      json_array_append_new (actions, snapshot_action (argv[i], argv[1]));
  }
  return ctl_do (c, "transaction", json_pack ("{s:o}", "actions", actions));
}

const struct ctl_command ctl_image_commands[] = {
  { "show", 1, 1, "EXPORT", "its image", show },
  { "resize", 2, 2, "EXPORT SIZE|+SIZE", "make the disk larger", resize },
  { "threshold", 1, 2, "EXPORT [SIZE|off]", "an event, once its file has grown past that",
    threshold },
  { "resume", 0, 1, "[EXPORT]", "there is room: writes that wait for it go on", resume },
  { "check", 1, 2, "EXPORT [SECONDS]", "its metadata, at one moment; flushes wait", check },
  { "snapshot list", 1, 1, "EXPORT", "its internal snapshots", list_snapshots },
  { "snapshot create", 2, -1, "NAME EXPORT...", "make one, of all of them at one instant",
    make_snapshots },
  { "snapshot delete", 2, 2, "NAME EXPORT", "delete one", delete_snapshot },
  { "bitmap list", 1, 1, "EXPORT", "its dirty bitmaps", list_bitmaps },
  { "bitmap add", 2, 3, "EXPORT NAME [GRANULARITY]", "a new one, that records", add_bitmap },
  { "bitmap remove", 2, 2, "EXPORT NAME", "", remove_bitmap },
  { "bitmap clear", 2, 2, "EXPORT NAME", "", clear_bitmap },
  { "bitmap enable", 2, 2, "EXPORT NAME", "it records from now on", enable_bitmap },
  { "bitmap disable", 2, 2, "EXPORT NAME", "it records no longer", disable_bitmap },
  { "bitmap merge", 3, -1, "EXPORT NAME SOURCE...", "add what the others have", merge_bitmaps },
  { "checkpoint", 3, -1, "OLD NEW EXPORT...", "bitmap OLD stops and NEW begins, at one instant",
    checkpoint },
  { NULL, 0, 0, NULL, NULL, NULL },
};
