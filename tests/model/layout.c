/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Snapshots and the size of the disk in the model: see model.h.
 *
 * A snapshot that is made while others write holds what it is found to hold at once, and from then
 * on nothing else; one that is made alone holds the model's disk.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define MAX_SNAPSHOTS 6

struct snapshot {
  char name[16]; /* "": there is none */
  uint8_t *contents;
  uint64_t size;
  struct q_image *shown; /* or NULL */
};

static struct snapshot snapshots[MAX_SNAPSHOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* one at a time */
static unsigned serial;

/* ---- looking at them ------------------------------------------------------------------------- */

static struct q_image *
show (const struct snapshot *s)
{
  struct q_open_options o = opts;
  struct q_image *shown;
  struct q_error err;

  o.read_only = true;
  o.lock = Q_LOCK_OFF;
  o.state_dir = NULL;
  o.snapshot = s->name;
  if (q_open (&shown, path, &o, &err) < 0)
    die ("snapshot %s: %s", s->name, err.text);
  if (q_size (shown) != s->size)
    die ("snapshot %s has %llu bytes, should have %llu", s->name,
         (unsigned long long)q_size (shown), (unsigned long long)s->size);
  return shown;
}

static void
hide (struct snapshot *s)
{
  struct q_error err;

  if (s->shown && q_close (&s->shown, &err) < 0)
    die ("%s", err.text);
}

void
layout_hide_all (void)
{
  for (unsigned i = 0; i < MAX_SNAPSHOTS; ++i)
    hide (&snapshots[i]);
}

void
layout_read (uint64_t *random)
{
  struct snapshot *s = &snapshots[below (random, MAX_SNAPSHOTS)];
  uint8_t buf[8192];
  uint64_t at, len;
  int r;

  pthread_mutex_lock (&lock);
  if (s->shown && s->size > 0) {
    at = below (random, s->size);
    len = s->size - at < sizeof buf ? s->size - at : sizeof buf;
    r = q_pread (s->shown, buf, at, len);
    if (r < 0 || memcmp (buf, s->contents + at, len) != 0)
      die ("snapshot %s: %llu bytes at %llu: %s", s->name, (unsigned long long)len,
           (unsigned long long)at, r < 0 ? strerror (-r) : "not what they were");
  }
  pthread_mutex_unlock (&lock);
}

void
layout_verify (const char *when)
{
  struct q_snapshot_info *list;
  int n = q_get_snapshots (img, &list), there = 0;

  for (unsigned i = 0; i < MAX_SNAPSHOTS; ++i) {
    struct snapshot *s = &snapshots[i];
    bool found = false;

    if (!s->name[0])
      continue;
    ++there;
    for (int k = 0; k < n && !found; ++k)
      found = strcmp (list[k].name, s->name) == 0;
    if (!found)
      die ("%s: snapshot %s is not there", when, s->name);
    if (!s->shown)
      s->shown = show (s);
    compare_disk (s->shown, s->contents, s->size, s->name);
    hide (s);
  }
  for (int k = 0; k < n; ++k) /* the image may have had one of another name before */
    there += strncmp (list[k].name, "model", 5) != 0;
  if (n != there)
    die ("%s: there are %d snapshots, should be %d", when, n, there);
  free (list);
}

/* ---- operations ------------------------------------------------------------------------------ */

static struct snapshot *
any (uint64_t *random, bool there)
{
  unsigned first = (unsigned)below (random, MAX_SNAPSHOTS);

  for (unsigned i = 0; i < MAX_SNAPSHOTS; ++i) {
    struct snapshot *s = &snapshots[(first + i) % MAX_SNAPSHOTS];

    if ((s->name[0] != '\0') == there)
      return s;
  }
  return NULL;
}

/* ALONE: nobody writes. */
static void
make (uint64_t *random, bool alone)
{
  struct snapshot *s = any (random, false);
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_error err;
  int r;

  if (!s)
    return;
  snprintf (s->name, sizeof s->name, "model%u", serial++);
  s->size = disk_size;
  r = q_snapshot_create (img, s->name, id, &err);
  if (r < 0) {
    s->name[0] = '\0';
    if (r != -ERANGE && r != -ENOTSUP)
      die ("making a snapshot: %s", err.text);
    return;
  }
  s->shown = show (s);
  s->contents = xalloc (s->size + 1);
  if (q_pread (s->shown, s->contents, 0, s->size) < 0)
    die ("snapshot %s cannot be read", s->name);
  if (alone && memcmp (s->contents, model, s->size) != 0)
    die ("snapshot %s is not what the disk is", s->name);
  if (below (random, 2))
    hide (s);
}

static void
drop (struct snapshot *s)
{
  struct q_error err;
  int r = q_snapshot_delete (img, s->name, &err);

  if (s->shown) {
    if (r != -EBUSY)
      die ("deleting snapshot %s, which is open: %s", s->name, strerror (-r));
    hide (s);
    r = q_snapshot_delete (img, s->name, &err);
  }
  if (r < 0)
    die ("deleting a snapshot: %s", err.text);
  free (s->contents);
  *s = (struct snapshot){ .name = "" };
}

static void
resized (uint64_t to)
{
  uint64_t from = disk_size;

  memset (model + to, 0, model_room - to);
  bitmaps_resize (from, to);
  disk_size = to;
}

static void
go_back (const struct snapshot *s)
{
  struct q_error err;
  int r = q_snapshot_apply (img, s->name, &err);

  if (r == -ERANGE)
    return;
  if (r < 0)
    die ("going back to a snapshot: %s", err.text);
  if (q_size (img) != s->size)
    die ("went back to %llu bytes, should be %llu", (unsigned long long)q_size (img),
         (unsigned long long)s->size);
  bitmaps_mark_all ();
  resized (s->size);
  memcpy (model, s->contents, s->size);
}

static void
resize (uint64_t *random)
{
  uint64_t size = 512 * (1 + below (random, model_room / 512));
  struct q_error err;
  int r;

  r = size < disk_size ? q_shrink (img, size, &err) : q_resize (img, size, &err);
  if (r < 0)
    die ("%llu bytes instead of %llu: %s", (unsigned long long)size, (unsigned long long)disk_size,
         err.text);
  resized (size);
}

void
layout_operate (uint64_t *random)
{
  bool alone = below (random, 2);
  struct snapshot *s;
  uint64_t pick;

  if (alone)
    pthread_rwlock_wrlock (&world);
  else
    pthread_rwlock_rdlock (&world);
  pthread_mutex_lock (&lock);
  ++image_operations;
  s = any (random, true);
  pick = below (random, 10);
  if (!s || pick < 3)
    make (random, alone);
  else if (pick < 5)
    drop (s);
  else if (alone && pick < 7)
    go_back (s);
  else if (!s->shown)
    s->shown = show (s);
  if (alone && pick >= 7)
    resize (random);
  pthread_mutex_unlock (&lock);
  pthread_rwlock_unlock (&world);
}

/* ---- from one process to the next ------------------------------------------------------------ */

uint64_t
layout_load (const char *dir)
{
  uint64_t size, largest = 0;
  char *text = load_file (dir, "snapshots", &size), *line, *rest = text, file[32];

  for (unsigned i = 0; (line = strsep (&rest, "\n")) != NULL && line[0]; ++i) {
    struct snapshot *s = &snapshots[i];

    if (i >= MAX_SNAPSHOTS || sscanf (line, "%15s", s->name) != 1)
      die ("%s/snapshots: %s", dir, line);
    snprintf (file, sizeof file, "%s.snapshot", s->name);
    s->contents = load_file (dir, file, &s->size);
    largest = s->size > largest ? s->size : largest;
    if (serial <= strtoul (s->name + 5, NULL, 10))
      serial = (unsigned)strtoul (s->name + 5, NULL, 10) + 1;
  }
  free (text);
  return largest;
}

void
layout_save (const char *dir)
{
  char *text, file[32];
  size_t size;
  FILE *f = open_memstream (&text, &size);

  if (!f)
    die ("out of memory");
  for (unsigned i = 0; i < MAX_SNAPSHOTS; ++i) {
    if (!snapshots[i].name[0])
      continue;
    fprintf (f, "%s\n", snapshots[i].name);
    snprintf (file, sizeof file, "%s.snapshot", snapshots[i].name);
    save_file (dir, file, snapshots[i].contents, snapshots[i].size);
  }
  fclose (f);
  save_file (dir, "snapshots", text, size);
  free (text);
}
