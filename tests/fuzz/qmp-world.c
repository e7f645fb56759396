/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the control socket's commands are about: see qmp-world.h.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "control.h"
#include "describe.h"
#include "fuzz.h"
#include "log.h"
#include "loop.h"
#include "metrics-judge.h"
#include "metrics.h"
#include "qmp-check.h"
#include "qmp-config.h"
#include "qmp-world.h"
#include "skeleton.h"
#include "throwaway.h"

#define MAX_OPEN   64u
#define MAX_GROWTH (4u << 20)

struct qmp_world world;

static struct {
  struct client client;   /* of the exports, in its handshake */
  struct session session; /* the client's */
  struct export *x;       /* while it is there */
  uint64_t x_id;
  uint8_t *disk; /* what was written to it */
  uint64_t disk_size;
  bool full;          /* the storage, at least once: clusters may be leaked, and writes fail */
  uint16_t lie_field; /* of the next check */
  uint8_t lie_flip;
} sv;

/* ---- images ---------------------------------------------------------------------------------- */

const char *const world_images[WORLD_IMAGES] = { "everything", "bitmaps", "snapshots",
                                                 "subclusters-all", "v2" };
static struct mem_store store;
static struct mem_file *image, *other;
static struct {
  uint8_t *data;
  uint64_t size;
} made[WORLD_IMAGES];

static void
make_images (void)
{
  if (image)
    return;
  if (!getenv ("FUZZ_LOG")) {
    struct q_error err;

    if (log_open ("/dev/null", &err) < 0)
      die ("%s", err.text);
    log_started ();
  }
  mem_store_init (&store);
  skeleton_surroundings (&store);
  image = mem_add (&store, "image");
  other = mem_add (&store, "other");
  for (size_t i = 0; i < WORLD_IMAGES; ++i)
    for (unsigned k = 0; k < n_skeletons; ++k)
      if (strcmp (skeletons[k].name, world_images[i]) == 0) {
        skeleton_make (&skeletons[k], &store);
        made[i].size = image->size;
        made[i].data = xalloc (image->size);
        memcpy (made[i].data, image->data, image->size);
      }
}

static void
put_image (struct mem_file *f, unsigned i)
{
  f->limit = 0;
  mem_set (f, made[i % WORLD_IMAGES].data, made[i % WORLD_IMAGES].size);
  f->limit = f->size + MAX_GROWTH;
}

/* ---- files, with locks ----------------------------------------------------------------------- */

static struct {
  struct q_file *f;
  bool locked, written;
} open_files[MAX_OPEN];

static bool unlocked_writer; /* somebody has asked for it, and what happens is no fault of ours */
static struct q_file_ops ops_with_close;
static void (*close_inner) (struct q_file *f);

static void
close_file (struct q_file *f)
{
  for (unsigned i = 0; i < MAX_OPEN; ++i)
    if (open_files[i].f == f)
      open_files[i].f = NULL;
  close_inner (f);
}

static int
refuse (struct q_error *err, int r, const char *name, const char *why)
{
  if (err)
    snprintf (err->text, sizeof err->text, "%s: %s", name, why);
  return r;
}

static int
open_file (void *opaque, const char *name, unsigned flags, struct q_file **file,
           struct q_error *err)
{
  bool write = flags & Q_FILE_WRITE, lock = flags & Q_FILE_LOCK;
  unsigned free_slot = MAX_OPEN;
  int r;

  (void)opaque;
  *file = NULL;
  for (unsigned i = 0; i < MAX_OPEN; ++i)
    if (!open_files[i].f)
      free_slot = i;
    else if (lock && open_files[i].locked && (write || open_files[i].written) &&
             strcmp (open_files[i].f->name, name) == 0)
      return refuse (err, -EAGAIN, name, "it is locked");
  if (free_slot == MAX_OPEN)
    return refuse (err, -EMFILE, name, "too many open files");
  if (flags & Q_FILE_CREATE)
    return refuse (err, -EACCES, name, "nothing is made here");
  r = store.opener.open (store.opener.opaque, name, flags, file, err);
  if (r < 0)
    return r;
  unlocked_writer |= write && !lock;
  open_files[free_slot].f = *file;
  open_files[free_slot].locked = lock;
  open_files[free_slot].written = write;
  close_inner = (*file)->ops->close;
  ops_with_close = *(*file)->ops;
  ops_with_close.close = close_file;
  (*file)->ops = &ops_with_close;
  return 0;
}

static const struct q_file_opener opener = { .open = open_file };

int __wrap_q_file_open_local (void *opaque, const char *name, unsigned flags, struct q_file **file,
                              struct q_error *err);
int __wrap_q_file_open (const struct q_file_opener *given, const char *name, unsigned flags,
                        struct q_file **file, struct q_error *err);
int __wrap_throwaway_overlay (struct source *s, struct q_error *err);

/* What a part of a file is opened through (slice.h). */
int
__wrap_q_file_open_local (void *opaque, const char *name, unsigned flags, struct q_file **file,
                          struct q_error *err)
{
  return open_file (opaque, name, flags, file, err);
}

/* What exports of the configuration are opened through: nothing is said of that there. */
int
__wrap_q_file_open (const struct q_file_opener *given, const char *name, unsigned flags,
                    struct q_file **file, struct q_error *err)
{
  return given ? given->open (given->opaque, name, flags, file, err)
               : open_file (NULL, name, flags, file, err);
}

int
__wrap_throwaway_overlay (struct source *s, struct q_error *err)
{
  return refuse (err, -ENOTSUP, s->filename, "no temporary files here");
}

/* ---- clients --------------------------------------------------------------------------------- */

void __wrap_loop_sweep (struct loop *l);

void
__wrap_loop_sweep (struct loop *l)
{
  (void)l;
}

/* ---- what commands do ------------------------------------------------------------------------ */

static json_t *
snapshots_of (const struct q_image *img)
{
  struct q_snapshot_info *list;
  int n = q_get_snapshots (img, &list);
  json_t *j = json_array ();

  for (int i = 0; i < n; ++i)
    json_array_append_new (j, describe_snapshot (&list[i]));
  if (n >= 0)
    free (list);
  return j;
}

/* All that a command may change. */
static json_t *
look (void)
{
  json_t *list = json_array ();

  for (struct export *x = exports_next (&world.exports, NULL); x;
       x = exports_next (&world.exports, x))
    json_array_append_new (list,
                           json_pack ("{s:o, s:I, s:o, s:o}", "name", describe_text (x->name),
                                      "size", (json_int_t)x->size, "bitmaps",
                                      describe_dirty (x->img), "snapshots", snapshots_of (x->img)));
  return list;
}

static json_t *
of_export (const json_t *state, const char *name)
{
  json_t *x;
  size_t i;

  json_array_foreach (state, i, x)
  {
    if (name && strcmp (json_string_value (json_object_get (x, "name")), name) == 0)
      return x;
  }
  return NULL;
}

/* The exports are those that there were.  What had been opened anew is in another place, and has
 * lost the bitmaps that only memory had; and on a full disk nothing can be opened. */
static void
check_no_reload (const struct call *call, const json_t *before, const json_t *after)
{
  json_t *x;
  size_t i;

  if (sv.full)
    return;
  json_array_foreach (before, i, x)
  {
    const char *name = json_string_value (json_object_get (x, "name"));
    const json_t *now = of_export (after, name);

    if (!json_equal (json_object_get (x, "size"), json_object_get (now, "size")) ||
        !json_equal (json_object_get (x, "snapshots"), json_object_get (now, "snapshots")))
      broken ("reload failed (%s), and export %s is another one", call->err.q.text, name);
  }
  if (json_array_size (before) != json_array_size (after))
    broken ("reload failed (%s), and there are %zu exports after %zu", call->err.q.text,
            json_array_size (after), json_array_size (before));
}

static void
check_failure (const struct call *call, const json_t *before, const json_t *after)
{
  bool full = call->result == -ENOSPC || call->result == -EFBIG;

  sv.full |= full;
  if (strcmp (call->command->name, "reload") == 0) {
    check_no_reload (call, before, after);
    return;
  }
  /* A removal may fail when it is done, and undoing several changes if the disk is full. */
  if (json_equal (before, after) || strcmp (call->command->name, "block-export-del") == 0 ||
      (full && strcmp (call->command->name, "transaction") == 0))
    return;
  broken ("%s failed (%s), and %s has become %s", call->command->name, call->err.q.text,
          json_dumps (before, 0), json_dumps (after, 0));
}

/* Of snapshots and bitmaps, as many more or fewer as the command says. */
static void
check_success (const struct call *call, const json_t *before, const json_t *after)
{
  static const struct {
    const char *command, *argument, *what;
    int more;
  } effects[] = {
    { "blockdev-snapshot-internal-sync", "device", "snapshots", 1 },
    { "blockdev-snapshot-delete-internal-sync", "device", "snapshots", -1 },
    { "block-dirty-bitmap-add", "node", "bitmaps", 1 },
    { "block-dirty-bitmap-remove", "node", "bitmaps", -1 },
  };

  for (size_t i = 0; i < sizeof effects / sizeof effects[0]; ++i) {
    const char *name = json_string_value (json_object_get (call->args, effects[i].argument));
    json_t *was = json_object_get (of_export (before, name), effects[i].what),
           *is = json_object_get (of_export (after, name), effects[i].what);

    if (strcmp (call->command->name, effects[i].command) == 0 &&
        json_array_size (is) != json_array_size (was) + (size_t)effects[i].more)
      broken ("%s is done, and export %s has %zu %s after %zu", effects[i].command, name,
              json_array_size (is), effects[i].what, json_array_size (was));
  }
}

void
world_lie (uint16_t field, uint8_t flip)
{
  sv.lie_field = field;
  sv.lie_flip = flip;
}

static void
run (struct call *call)
{
  const struct check_trial t = {
    .store = &store, .field = sv.lie_field, .flip = sv.lie_flip, .sound = !unlocked_writer
  };

  if (strcmp (call->command->name, "check-image") == 0) {
    check_judged (call, &t);
    sv.lie_flip = 0;
    return;
  }
  call->result = call->command->run (&call->public, call->args, &call->ret, &call->err);
  if (strcmp (call->command->name, "reload") == 0 && call->result == 0)
    config_judge ();
}

void
world_run (struct call *call)
{
  json_t *before = look (), *after;
  struct export *x;

  run (call);
  after = look ();
  if (getenv ("FUZZ_LOG"))
    fprintf (stderr, "run: %s: %d %s\n", call->command->name, call->result, call->err.q.text);
  if (call->result < 0)
    check_failure (call, before, after);
  else
    check_success (call, before, after);
  json_decref (before);
  json_decref (after);
  x = exports_get (&world.exports, "x", 1);
  sv.x = x && x->id == sv.x_id ? x : NULL;
  if (x)
    export_put (x);
}

void
world_write (uint64_t offset, uint64_t len)
{
  uint8_t buf[8192];
  int r;

  if (!sv.x || offset >= sv.disk_size)
    return;
  len = len < sizeof buf ? len : sizeof buf;
  len = len < sv.disk_size - offset ? len : sv.disk_size - offset;
  memset (buf, (int)(len & 0xff) | 1, sizeof buf);
  r = q_pwrite (sv.x->img, buf, offset, len);
  if (r == -ENOSPC)
    sv.full = true;
  else if (r < 0)
    broken ("the disk cannot be written: %s", strerror (-r));
  else
    memcpy (sv.disk + offset, buf, len);
}

void
world_check_disk (void)
{
  uint8_t *buf;

  if (!sv.x || sv.full || unlocked_writer)
    return;
  buf = xalloc (sv.disk_size);
  if (q_pread (sv.x->img, buf, 0, sv.disk_size) < 0)
    broken ("the disk cannot be read");
  if (memcmp (buf, sv.disk, sv.disk_size) != 0)
    broken ("the disk is not what was written to it");
  free (buf);
}

void
world_check_metrics (bool openmetrics)
{
  char *text = NULL;
  size_t len = 0;
  FILE *f = open_memstream (&text, &len);

  if (!f || metrics_write (f, &world.exports, openmetrics) < 0 || fclose (f) != 0)
    die ("metrics: out of memory");
  judge_metrics (text, len, openmetrics);
  free (text);
}

/* ---- before and after ------------------------------------------------------------------------ */

static void
export_defaults (struct export_options *o)
{
  *o = (struct export_options){ .name = "", .multi_conn = true };
  q_open_options_init (&o->source.open);
  o->source.open.opener = &opener;
  o->source.open.l2_cache_size = o->source.open.refcount_cache_size = 1 << 20;
  o->source.size = SOURCE_TO_END;
}

void
world_begin (const struct world_choice *c)
{
  struct export_options xo;
  struct q_error err = { "" };
  unsigned ignored;

  make_images ();
  log_set_level ("error");
  put_image (image, c->image);
  put_image (other, c->image + 1);
  unlocked_writer = sv.full = false;
  sv.lie_flip = 0;
  export_defaults (&world.defaults);
  xo = world.defaults;
  xo.name = "x";
  xo.source.filename = (char *)"image";
  xo.source.open.discard = true;
  exports_init (&world.exports);
  world.reload = config_begin (&world.exports);
  if ((c->configured ? config_serve (&err) : exports_add (&world.exports, &xo, &err)) < 0)
    die ("%s", err.text);
  sv.x = world.exports.first;
  sv.x_id = sv.x->id;
  if (c->busy)
    export_enter (sv.x, &ignored);
  sv.disk_size = sv.x->size;
  sv.disk = xalloc (sv.disk_size);
  if (q_pread (sv.x->img, sv.disk, 0, sv.disk_size) < 0)
    die ("the disk cannot be read");
  clients_init (&world.clients);
  sv.client = (struct client){ .fd = -1, .session = &sv.session };
  clients_add (&world.clients, &sv.client);
}

static void
check_image (const char *name)
{
  struct q_check_options co = { .threads = 1 };
  struct q_check_result r = { 0 };
  struct q_open_options o;
  struct q_error err = { "" };
  struct q_image *img;

  q_open_options_init (&o);
  o.opener = &store.opener;
  o.lock = Q_LOCK_OFF;
  o.read_only = o.metadata_only = true;
  if (q_open (&img, name, &o, &err) < 0 || q_check_image (img, &co, &r, &err) < 0)
    broken ("%s cannot be opened and checked at the end: %s", name, err.text);
  q_close (&img, &err);
  if (r.corruptions || r.check_errors || (r.leaks && !sv.full))
    broken ("%s has %" PRIu64 " corruptions, %" PRIu64 " errors and %" PRIu64 " leaks", name,
            r.corruptions, r.check_errors, r.leaks);
}

void
world_end (void)
{
  clients_remove (&world.clients, &sv.client);
  clients_destroy (&world.clients);
  exports_close (&world.exports);
  config_end ();
  free (sv.disk);
  if (unlocked_writer)
    return;
  check_image ("image");
  check_image ("other");
}
