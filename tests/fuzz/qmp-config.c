/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The configuration of a server: see qmp-config.h.
 */

#include <stdio.h>

#include "fuzz.h"
#include "hooks.h"
#include "mem.h"
#include "qmp-config.h"
#include "serve.h"

static json_t *file;
static struct options options; /* what it said in the beginning */
static struct reload *reload;
static struct exports *exports;

json_t *__wrap_json_load_file (const char *path, size_t flags, json_error_t *error);

json_t *
__wrap_json_load_file (const char *path, size_t flags, json_error_t *error)
{
  (void)flags;
  *error = (json_error_t){ .line = -1 };
  if (strcmp (path, "config") == 0)
    return json_deep_copy (file);
  snprintf (error->text, sizeof error->text, "%.40s: no such file", path);
  return NULL;
}

static int
add (void *opaque, const struct export_options *opts, struct q_error *err)
{
  return exports_add (opaque, opts, err);
}

struct reload *
config_begin (struct exports *set)
{
  static char *arguments[] = { (char *)"nbdcow", (char *)"--state-dir=off",
                               (char *)"--config=config", NULL };
  struct reload_context context = {
    .argc = 3, .argv = arguments, .options = &options, .exports = set
  };
  struct q_error err = { "" };

  exports = set;
  file = json_pack ("{s:[{s:s, s:s, s:s}]}", "export", "name", "x", "file", "image", "discard",
                    "unmap");
  if (!file || options_parse_again (&options, context.argc, arguments, &err) < 0 ||
      !(reload = reload_new (&context)))
    die ("no configuration: %s", err.text);
  return reload;
}

int
config_serve (struct q_error *err)
{
  return serve_all (&options, NULL, add, exports, err);
}

void
config_change (json_t *config)
{
  json_decref (file);
  file = config;
}

void
config_judge (void)
{
  struct reload_summary sum;
  struct q_error err = { "" };
  unsigned n = 0;
  json_t *wanted;
  size_t i;

  if (reload_config (reload, &sum, &err) < 0)
    broken ("a configuration that was reloaded cannot be reloaded again: %s", err.text);
  if (sum.added || sum.changed || sum.replaced || sum.removed)
    broken ("reloaded again, %u exports are new, %u changed, %u replaced and %u removed", sum.added,
            sum.changed, sum.replaced, sum.removed);
  for (struct export *x = exports_next (exports, NULL); x; x = exports_next (exports, x))
    n += x->configured && x->parent == 0;
  if (n != sum.unchanged)
    broken ("%u exports are served for %u of the configuration", n, sum.unchanged);
  json_array_foreach (json_object_get (file, "export"), i, wanted)
  {
    const char *name = json_string_value (json_object_get (wanted, "name"));
    struct export *x = name ? exports_get (exports, name, strlen (name)) : NULL;

    if (name && (!x || !x->configured))
      broken ("the configuration has export \"%s\", and it is not there", name);
    if (x)
      export_put (x);
  }
}

void
config_end (void)
{
  reload_free (reload);
  options_free (&options);
  json_decref (file);
  hooks_free ();
}
