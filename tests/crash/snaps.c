/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Internal snapshots of a workload's disk: see snaps.h.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "snaps.h"

static void
name_of (unsigned i, char name[16])
{
  snprintf (name, 16, "s%u", i);
}

void
snaps_free (struct snaps *s)
{
  for (unsigned i = 0; i < s->n; ++i)
    free (s->s[i].contents);
}

/* ---- while running --------------------------------------------------------------------------- */

static bool
is_expected (const struct run *run, int r)
{
  return r == 0 || r == -ERANGE ||
         (run->storm && (r == -run->storm || ((r == -EROFS || r == -EIO) && run->may_stick)));
}

/* What the disk shows; NULL if that cannot be known. */
static uint8_t *
read_disk (struct run *run)
{
  uint8_t *buf;

  if (run->w->threads > 1)
    return NULL;
  buf = xalloc (run->size); /* with zeros behind it */
  memset (buf, 0, run->size);
  if (q_pread (run->img, buf, 0, run->disk) == 0)
    return buf;
  free (buf);
  return NULL;
}

void
snaps_make (struct run *run)
{
  struct snap *s;
  struct q_error err;
  char id[Q_SNAPSHOT_ID_SIZE], name[16];
  uint8_t *contents = read_disk (run);
  unsigned i;
  int r;

  if (run->w->threads == 1 && !contents)
    return;
  pthread_mutex_lock (&run->lock);
  i = run->snaps->n < MAX_SNAPS ? run->snaps->n++ : MAX_SNAPS;
  if (i < MAX_SNAPS) {
    run->snaps->s[i] = (struct snap){ .contents = contents, .size = run->disk };
    workload_mark (run, MARK_SNAP_BEGUN, i);
  }
  pthread_mutex_unlock (&run->lock);
  if (i == MAX_SNAPS) {
    free (contents);
    return;
  }
  s = &run->snaps->s[i];
  name_of (i, name);
  r = q_snapshot_create (run->img, name, id, &err);
  pthread_mutex_lock (&run->lock);
  if (r == 0) {
    s->there = true;
    workload_mark (run, MARK_SNAP_MADE, i);
  }
  pthread_mutex_unlock (&run->lock);
  if (!is_expected (run, r))
    workload_fail (run, "making a snapshot: %s", err.text);
}

static void
drop (struct run *run, unsigned i)
{
  struct q_error err;
  char name[16];
  int r;

  name_of (i, name);
  pthread_mutex_lock (&run->lock);
  run->snaps->s[i].there = false;
  workload_mark (run, MARK_SNAP_DROPPING, i);
  pthread_mutex_unlock (&run->lock);
  r = q_snapshot_delete (run->img, name, &err);
  pthread_mutex_lock (&run->lock);
  if (r == 0)
    workload_mark (run, MARK_SNAP_DROPPED, i);
  pthread_mutex_unlock (&run->lock);
  if (!is_expected (run, r))
    workload_fail (run, "deleting a snapshot: %s", err.text);
}

static void
go_back (struct guest *g, unsigned i)
{
  struct run *run = g->run;
  const struct snap *s = &run->snaps->s[i];
  struct guest_op *op;
  struct q_error err;
  char name[16];
  int r;

  name_of (i, name);
  op = workload_begin (g, GUEST_GO_BACK, 0, s->size > run->disk ? s->size : run->disk);
  op->contents = s->contents;
  if (s->size < run->disk)
    workload_size (run, s->size, false);
  r = q_snapshot_apply (run->img, name, &err);
  if (r == 0) {
    workload_size (run, s->size, true);
    if (run->disk != s->size)
      run->disk = g->to = s->size;
    workload_done (g, op);
    /* It is durable. */
    pthread_mutex_lock (&run->lock);
    workload_mark (run, MARK_FLUSHED, op->when);
    pthread_mutex_unlock (&run->lock);
  }
  if (!is_expected (run, r))
    workload_fail (run, "going back to a snapshot: %s", err.text);
}

void
snaps_operate (struct guest *g)
{
  struct run *run = g->run;
  unsigned there[MAX_SNAPS], n = 0, pick, at;

  pthread_mutex_lock (&run->lock);
  for (unsigned i = 0; i < run->snaps->n; ++i)
    if (run->snaps->s[i].there)
      there[n++] = i;
  pick = (unsigned)random_below (&g->random, 8);
  at = (unsigned)random_below (&g->random, n);
  pthread_mutex_unlock (&run->lock);
  if (n == 0 || pick < 3)
    snaps_make (run);
  else if (pick < 6 || run->w->threads > 1) {
    if (g->from == 0) /* one thread deletes: what another has chosen is still there */
      drop (run, there[at]);
  } else
    go_back (g, there[at]);
}

/* ---- afterwards ------------------------------------------------------------------------------ */

void
snaps_begin (struct snaps *s)
{
  for (unsigned i = 0; i < s->n; ++i)
    s->s[i].before = s->s[i].there;
}

void
snaps_rewind (struct snaps *s)
{
  for (unsigned i = 0; i < s->n; ++i)
    s->s[i].may = s->s[i].must = s->s[i].before;
}

void
snaps_follow (struct snaps *s, enum workload_mark mark, size_t subject)
{
  if (mark == MARK_SNAP_BEGUN)
    s->s[subject].may = true;
  else if (mark == MARK_SNAP_MADE)
    s->s[subject].must = true;
  else if (mark == MARK_SNAP_DROPPING)
    s->s[subject].must = false;
  else if (mark == MARK_SNAP_DROPPED)
    s->s[subject].may = false;
}

static bool
has_contents (struct run *run, const char *file, const struct snap *s, const char *name,
              const char *when)
{
  struct q_open_options opts = run->opts;
  struct q_image *img;
  struct q_error err;
  uint8_t *buf;
  bool good;

  opts.read_only = true;
  opts.snapshot = name;
  opts.state_dir = NULL;
  if (q_open (&img, file, &opts, &err) < 0) {
    workload_fail (run, "%s: snapshot %s: %s", when, name, err.text);
    return false;
  }
  buf = xalloc (s->size);
  good = q_size (img) == s->size && q_pread (img, buf, 0, s->size) == 0 &&
         (!s->contents || memcmp (buf, s->contents, s->size) == 0);
  if (!good)
    workload_fail (run, "%s: snapshot %s is not what it was", when, name);
  free (buf);
  q_close (&img, NULL);
  return good;
}

bool
snaps_check (struct run *run, const char *file, const char *when)
{
  struct q_open_options opts = run->opts;
  bool found[MAX_SNAPS] = { false }, good = true;
  struct q_snapshot_info *list;
  struct q_image *img;
  struct q_error err;
  int n_list;

  opts.read_only = true;
  opts.state_dir = NULL;
  if (q_open (&img, file, &opts, &err) < 0) {
    workload_fail (run, "%s: %s", when, err.text);
    return false;
  }
  n_list = q_get_snapshots (img, &list);
  for (int i = 0; good && i < n_list; ++i) {
    const struct q_snapshot_info info = list[i];
    unsigned n;

    if (sscanf (info.name, "s%u", &n) != 1) /* it was there before */
      continue;
    good = n < run->snaps->n && run->snaps->s[n].may;
    if (!good)
      workload_fail (run, "%s: snapshot %s should not be there", when, info.name);
    else {
      found[n] = true;
      good = has_contents (run, file, &run->snaps->s[n], info.name, when);
    }
  }
  free (list);
  for (unsigned i = 0; good && i < run->snaps->n; ++i)
    if (run->snaps->s[i].must && !found[i]) {
      workload_fail (run, "%s: snapshot s%u is not there", when, i);
      good = false;
    }
  q_close (&img, NULL);
  return good;
}

bool
snaps_delete_all (struct run *run, struct q_image *img)
{
  struct q_snapshot_info *list;
  struct q_error err;
  int n = q_get_snapshots (img, &list);
  bool good = n >= 0;

  for (int i = 0; good && i < n; ++i)
    good = q_snapshot_delete (img, list[i].name, &err) == 0;
  if (!good)
    workload_fail (run, "after recovery: %s", n < 0 ? strerror (-n) : err.text);
  free (list);
  return good;
}
