/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands for the control socket: see qmp-words.h.
 */

#include <stdio.h>

#include "describe.h"
#include "mem.h"
#include "qmp-words.h"

#define MAX_DEPTH   3u
#define MAX_ACTIONS 6u
#define MAX_EXPORTS 4u

#define COUNT(a) (sizeof (a) / sizeof (a)[0])

/* ---- values ---------------------------------------------------------------------------------- */

enum kind {
  NONE, /* ends a list of arguments */
  ANY,
  EXPORT, /* a name that one may have */
  BITMAP,
  SNAPSHOT,
  SNAPSHOT_ID,
  BOOL,
  NUMBER,
  SIZE,
  TYPE,
  MODE,
  LEVEL,
  FILE_OR_NODE,
  NAMES, /* of bitmaps, or objects with a node */
  ACTIONS,
  PROPERTIES,
};

static const char *const exports[] = { "x", "y", "", "z", "x@first", "\"q\\\n{}" };
static const char *const bitmaps[] = { "b0", "b1", "new", "", "b\xc3\xa9", "none" };
static const char *const snapshots[] = { "first", "second", "new", "", "1", "2" };
static const char *const levels[] = { "error", "warning", "info", "debug", "none" };
static const char *const modes[] = { "safe", "hard", "soft" };

/* What FILE_OR_NODE may be. */
static const char *const files[] = {
  "\"other\"",
  "\"base\"",
  "\"base.qcow2\"",
  "\"image\"",
  "\"nowhere\"",
  "\"\"",
  "{\"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", \"filename\": \"other\"}}",
  ("{\"driver\": \"raw\", \"offset\": 512, \"size\": 4096, \"file\": {\"driver\": \"file\", "
   "\"filename\": \"base\"}}"),
  "{\"driver\": \"qcow2\", \"file\": {\"driver\": \"raw\", \"offset\": 0, \"file\": \"other\"}}",
  "{\"driver\": \"compress\", \"file\": \"other\"}",
  "\"json:{\\\"driver\\\": \\\"qcow2\\\", \\\"file.filename\\\": \\\"other\\\"}\"",
};

/* What else an export may be given. */
static const char *const settings[] = {
  "\"description\": \"d\\u00e9\\n\"",
  "\"snapshots\": true",
  "\"load-snapshot\": \"first\"",
  "\"read-only\": true",
  "\"snapshot\": true",
  "\"offset\": 1024",
  "\"size\": \"4k\"",
  "\"watermark\": \"1%\"",
  "\"watermark-exec\": \"true\"",
  "\"compress\": true",
  "\"detect-zeroes\": \"unmap\"",
  "\"discard\": \"unmap\"",
  "\"backing\": \"none\"",
  "\"untrusted\": true",
  "\"data-file\": \"data\"",
  "\"data-file-policy\": \"none\"",
  "\"format\": \"raw\"",
  "\"rate\": \"1M\"",
  "\"max-connections\": 1",
  "\"min-block\": 512",
  "\"on-enospc\": \"wait:1\"",
  "\"tls\": \"required\"",
  "\"cache\": \"none\"",
  "\"lock\": \"off\"",
  "\"bitmap\": [\"b0\", \"b1\"]",
  "\"allocation-depth\": true",
  "\"key-secret\": \"k\"",
  "\"resize\": true",
};

/* What a configuration may say of the server. */
static const char *const server_settings[] = {
  "\"file\": \"base\"",
  "\"export-name\": \"z\"",
  "\"object\": \"secret,id=k,data=password\"",
  "\"object\": [\"secret,id=k,data=password\", \"secret,id=k,data=other\"]",
  "\"port\": 10811",
  "\"shared\": 1",
  "\"memory\": \"64M\"",
  "\"read-only\": true",
  "\"log-level\": \"debug\"",
  "\"config\": \"config\"",
  "\"config\": \"none\"",
  "\"export-dir\": \"/nowhere\"",
  "\"tls-creds\": \"t\"",
  "\"help\": true",
  "\"nothing\": 1",
  "\"export\": 1",
};

static const uint64_t sizes[] = {
  0,     1,      511,      512,      4096,       65536,     98304,
  98816, 131072, 1u << 20, 1u << 31, 1ull << 40, INT64_MAX, UINT64_C (1) << 62
};

static json_t *
word_of (struct input *in, const char *const *words, size_t n)
{
  return json_string (words[take8 (in) % n]);
}

static json_t *
text_of (struct input *in)
{
  char text[33] = "";

  take (in, text, take8 (in) % (sizeof text - 1));
  return describe_text (text);
}

static json_t *
parsed (const char *text)
{
  json_error_t why;
  json_t *j = json_loads (text, JSON_DECODE_ANY, &why);

  if (!j)
    die ("%s: %s", text, why.text);
  return j;
}

json_t *
qmp_anything (struct input *in, unsigned depth)
{
  uint8_t what = take8 (in);
  json_t *j;

  switch (what % 10) {
  case 0:
    return json_null ();
  case 1:
    return json_boolean (what & 0x80);
  case 2:
    return json_integer (take8 (in));
  case 3:
    return json_integer ((json_int_t)take64 (in));
  case 4:
    return json_real ((double)take16 (in) / 7);
  case 5:
  case 6:
    return text_of (in);
  case 7:
    return word_of (in, bitmaps, COUNT (bitmaps));
  case 8:
    j = json_array ();
    for (unsigned i = what / 10 % 5; i > 0 && depth < MAX_DEPTH; --i)
      json_array_append_new (j, qmp_anything (in, depth + 1));
    return j;
  default:
    j = json_object ();
    for (unsigned i = what / 10 % 5; i > 0 && depth < MAX_DEPTH; --i) {
      json_t *key = text_of (in);

      json_object_set_new (j, json_string_value (key), qmp_anything (in, depth + 1));
      json_decref (key);
    }
    return j;
  }
}

static json_t *
number_of (struct input *in)
{
  uint8_t how = take8 (in);
  uint64_t v = sizes[how % COUNT (sizes)];

  return json_integer ((json_int_t)(how & 0x80 ? v + take8 (in) : v));
}

static json_t *
names_of (struct input *in)
{
  json_t *list = json_array ();

  for (unsigned i = take8 (in) % 4; i > 0; --i) {
    json_t *name = word_of (in, bitmaps, COUNT (bitmaps));

    if (take8 (in) & 1)
      name = json_pack ("{s:o, s:o}", "node", word_of (in, exports, COUNT (exports)), "name", name);
    json_array_append_new (list, name);
  }
  return list;
}

/* ---- commands -------------------------------------------------------------------------------- */

struct word {
  const char *name;
  struct {
    const char *name;
    enum kind kind;
  } argument[8];
};

#define BITMAP_ARGUMENTS                                                                           \
  {                                                                                                \
    { "node", EXPORT }, { "name", BITMAP },                                                        \
  }

static const struct word words[QMP_WORDS] = {
  [QMP_CAPABILITIES] = { "qmp_capabilities", { { "enable", NAMES } } },
  [QMP_STATUS] = { "query-status", { { NULL, NONE } } },
  [QMP_COMMANDS] = { "query-commands", { { NULL, NONE } } },
  [QMP_VERSION] = { "query-version", { { NULL, NONE } } },
  [QMP_LOG_LEVEL] = { "query-log-level", { { NULL, NONE } } },
  [QMP_SET_LOG_LEVEL] = { "set-log-level", { { "level", LEVEL } } },
  [QMP_QUIT] = { "quit", { { NULL, NONE } } },
  [QMP_RELOAD] = { "reload", { { NULL, NONE } } },
  [QMP_EXPORTS] = { "query-block-exports", { { NULL, NONE } } },
  [QMP_EXPORT_ADD] = { "block-export-add",
                       { { "type", TYPE },
                         { "id", EXPORT },
                         { "file", FILE_OR_NODE },
                         { "writable", BOOL },
                         { "writethrough", BOOL },
                         { "bitmaps", NAMES },
                         { "node-name", EXPORT } } },
  [QMP_EXPORT_DEL] = { "block-export-del", { { "id", EXPORT }, { "mode", MODE } } },
  [QMP_CLIENTS] = { "query-clients", { { NULL, NONE } } },
  [QMP_DISCONNECT] = { "client-disconnect", { { "id", NUMBER } } },
  [QMP_NODES] = { "query-named-block-nodes", { { "flat", BOOL } } },
  [QMP_STATS] = { "query-blockstats", { { "query-nodes", BOOL } } },
  [QMP_RESIZE] = { "block_resize",
                   { { "node-name", EXPORT }, { "size", SIZE }, { "device", EXPORT } } },
  [QMP_THRESHOLD] = { "block-set-write-threshold",
                      { { "node-name", EXPORT }, { "write-threshold", SIZE } } },
  [QMP_SNAPSHOT] = { "blockdev-snapshot-internal-sync",
                     { { "device", EXPORT }, { "name", SNAPSHOT } } },
  [QMP_SNAPSHOT_DELETE] = { "blockdev-snapshot-delete-internal-sync",
                            { { "device", EXPORT }, { "name", SNAPSHOT }, { "id", SNAPSHOT_ID } } },
  [QMP_BITMAP_ADD] = { "block-dirty-bitmap-add",
                       { { "node", EXPORT },
                         { "name", BITMAP },
                         { "granularity", SIZE },
                         { "persistent", BOOL },
                         { "disabled", BOOL } } },
  [QMP_BITMAP_REMOVE] = { "block-dirty-bitmap-remove", BITMAP_ARGUMENTS },
  [QMP_BITMAP_CLEAR] = { "block-dirty-bitmap-clear", BITMAP_ARGUMENTS },
  [QMP_BITMAP_ENABLE] = { "block-dirty-bitmap-enable", BITMAP_ARGUMENTS },
  [QMP_BITMAP_DISABLE] = { "block-dirty-bitmap-disable", BITMAP_ARGUMENTS },
  [QMP_BITMAP_MERGE] = { "block-dirty-bitmap-merge",
                         { { "node", EXPORT }, { "target", BITMAP }, { "bitmaps", NAMES } } },
  [QMP_TRANSACTION] = { "transaction", { { "actions", ACTIONS }, { "properties", PROPERTIES } } },
  [QMP_UNKNOWN] = { "abort", { { "anything", ANY } } },
  [QMP_CHECK] = { "check-image", { { "node-name", EXPORT }, { "max-pause", NUMBER } } },
  [QMP_TAKEOVER] = { "takeover", { { "socket", EXPORT } } },
};

const char *
qmp_command_name (enum qmp_word word)
{
  return words[word].name;
}

static json_t *arguments (struct input *in, const struct word *w, unsigned without);

static json_t *
actions_of (struct input *in)
{
  json_t *list = json_array ();

  for (unsigned i = take8 (in) % (MAX_ACTIONS + 1); i > 0; --i) {
    const struct word *w = &words[QMP_SNAPSHOT + take8 (in) % (unsigned)(QMP_CHECK - QMP_SNAPSHOT)];
    unsigned without = take8 (in);

    /* Not one in another. */
    json_array_append_new (
        list,
        json_pack ("{s:s, s:o}", "type", w->name, "data",
                   w->argument[0].kind == ACTIONS ? json_object () : arguments (in, w, without)));
  }
  return list;
}

static json_t *
value_of (struct input *in, enum kind kind)
{
  static const char *const types[] = { "nbd", "vhost-user-blk" };

  switch (kind) {
  case EXPORT:
    return word_of (in, exports, COUNT (exports));
  case BITMAP:
    return word_of (in, bitmaps, COUNT (bitmaps));
  case SNAPSHOT:
  case SNAPSHOT_ID:
    return word_of (in, snapshots, COUNT (snapshots));
  case BOOL:
    return json_boolean (!(take8 (in) & 1));
  case NUMBER:
    return json_integer (take8 (in) % 4);
  case SIZE:
    return number_of (in);
  case TYPE:
    return word_of (in, types, COUNT (types));
  case MODE:
    return word_of (in, modes, COUNT (modes));
  case LEVEL:
    return word_of (in, levels, COUNT (levels));
  case FILE_OR_NODE:
    return parsed (files[take8 (in) % COUNT (files)]);
  case NAMES:
    return names_of (in);
  case ACTIONS:
    return actions_of (in);
  case PROPERTIES:
    return parsed (take8 (in) & 1 ? "{\"completion-mode\": \"grouped\"}"
                                  : "{\"completion-mode\": \"individual\"}");
  default:
    return qmp_anything (in, 0);
  }
}

static json_t *
arguments (struct input *in, const struct word *w, unsigned without)
{
  json_t *j = json_object ();

  for (unsigned i = 0; i < COUNT (w->argument) && w->argument[i].kind != NONE; ++i)
    if (!(without >> i & 1))
      json_object_set_new (j, w->argument[i].name, value_of (in, w->argument[i].kind));
  return j;
}

/* One of the N LINES, over what J has. */
static void
add_setting (json_t *j, struct input *in, const char *const *lines, size_t n)
{
  char text[256];
  json_t *more;

  snprintf (text, sizeof text, "{%s}", lines[take8 (in) % n]);
  more = parsed (text);
  json_object_update (j, more);
  json_decref (more);
}

json_t *
qmp_config (struct input *in)
{
  uint8_t what = take8 (in);
  json_t *config = json_object (), *list = json_array ();

  for (unsigned i = what % (MAX_EXPORTS + 1); i > 0; --i) {
    uint8_t bits = take8 (in);
    json_t *x = json_object ();

    if (!(bits & 1))
      json_object_set_new (x, "name", value_of (in, EXPORT));
    if (!(bits & 2))
      json_object_set_new (x, "file", value_of (in, FILE_OR_NODE));
    for (unsigned k = bits >> 2 & 3; k > 0; --k)
      add_setting (x, in, settings, COUNT (settings));
    json_array_append_new (list, x);
  }
  json_object_set_new (config, "export", list);
  for (unsigned i = what >> 6; i > 0; --i)
    add_setting (config, in, server_settings, COUNT (server_settings));
  return config;
}

json_t *
qmp_command (struct input *in, enum qmp_word word)
{
  const struct word *w = &words[word];
  unsigned without = take8 (in), bits = take8 (in);
  json_t *args = arguments (in, w, without);

  if (word == QMP_EXPORT_ADD)
    for (unsigned i = bits >> 4 & 3; i > 0; --i)
      add_setting (args, in, settings, COUNT (settings));
  if (bits & QMP_ANOTHER_ARGUMENT) {
    unsigned i = take8 (in) % COUNT (w->argument);

    json_object_set_new (args, w->argument[i].name ? w->argument[i].name : "more",
                         qmp_anything (in, 0));
  }
  if ((bits & QMP_WITHOUT_ARGUMENTS) && json_object_size (args) == 0) {
    json_decref (args);
    return json_pack ("{s:s}", "execute", w->name);
  }
  return json_pack ("{s:s, s:o}", "execute", w->name, "arguments", args);
}
