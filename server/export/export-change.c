/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What can be changed of an export while clients are connected: see export.h.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "export.h"
#include "log.h"

/* Views of X that are for the same clients are for no others than X from now on; a view, for which
 * that may have been said, never for more than it was. */
static void
admit_to_view (struct export *view, const struct export *x, const struct export_changes *changes)
{
  if (view->tls_only == x->tls_only && changes->tls_only)
    view->tls_only = changes->tls_only;
  if (view->authz == x->authz && changes->authz)
    view->authz = changes->authz;
}

/* DESCRIPTION is taken over. */
static void
apply (struct export *x, const struct export_changes *changes, char *description)
{
  free (x->description);
  x->description = description;
  x->max_connections = changes->max_connections;
  x->tls_only = changes->tls_only;
  x->authz = changes->authz;
  atomic_store (&x->rate.bytes_per_second, changes->rate);
}

/* Under the lock.  What is said of X is said of its snapshots' exports, which have no settings of
 * their own. */
static bool
goes_with (const struct export *y, const struct export *x)
{
  return y == x || (y->parent == x->id && !y->base);
}

int
export_change (struct export *x, const struct export_changes *changes)
{
  struct export *first;
  char **copies;
  size_t n = 0, made = 0;

  pthread_mutex_lock (&x->set->lock);
  first = x->set->first;
  for (const struct export *y = first; y; y = y->next)
    n += goes_with (y, x);
  copies = calloc (n, sizeof *copies);
  if (copies && changes->description)
    while (made < n && (copies[made] = strdup (changes->description)))
      made++;
  bool ok = copies && (made == n || !changes->description);
  for (struct export *y = first; y && ok; y = y->next)
    if (y->base && y->parent == x->id)
      admit_to_view (y, x, changes);
  made = ok ? 0 : made;
  for (struct export *y = first; y && ok; y = y->next)
    if (goes_with (y, x))
      apply (y, changes, copies[made++]);
  while (!ok && made > 0)
    free (copies[--made]);
  pthread_mutex_unlock (&x->set->lock);
  free (copies);
  return ok ? 0 : -ENOMEM;
}

/* The id of the snapshot that q_snapshot_delete would delete; "" if there is none. */
static void
resolve_snapshot (struct q_image *img, const char *name_or_id, char id[Q_SNAPSHOT_ID_SIZE])
{
  struct q_snapshot_info *list;
  int n = q_get_snapshots (img, &list);
  bool by_name = false;

  *id = '\0';
  for (int i = 0; !by_name && i < n; i++) {
    by_name = strcmp (list[i].name, name_or_id) == 0;
    if (by_name || (!*id && strcmp (list[i].id, name_or_id) == 0))
      snprintf (id, Q_SNAPSHOT_ID_SIZE, "%s", list[i].id);
  }
  free (list);
}

/* Whether Y shows the snapshot ID of X's image. */
static bool
shows_snapshot (const struct export *y, const struct export *x, const char *id)
{
  bool same_file = x->ino != 0 && y->dev == x->dev && y->ino == x->ino;
  return y->snapshot && (y->parent == x->id || same_file) && strcmp (y->snapshot, id) == 0;
}

int
export_snapshot_delete (struct export *x, const char *name_or_id, struct q_error *err)
{
  struct exports *set = x->set;
  char id[Q_SNAPSHOT_ID_SIZE];
  int r = 0;

  pthread_mutex_lock (&set->snapshots);
  resolve_snapshot (x->img, name_or_id, id);
  pthread_mutex_lock (&set->lock);
  for (const struct export *y = set->first; y && r == 0; y = y->next)
    if (shows_snapshot (y, x, id)) {
      snprintf (err->text, sizeof err->text,
                "snapshot \"%s\" is in use by export \"%s\": remove that first", name_or_id,
                y->name);
      r = -EBUSY;
    }
  pthread_mutex_unlock (&set->lock);
  if (r == 0)
    r = q_snapshot_delete (x->img, name_or_id, err);
  pthread_mutex_unlock (&set->snapshots);
  return r;
}

/* Of two at the same time the larger one holds. */
static void
raise_size (struct export *x, uint64_t size)
{
  uint64_t old = x->size;

  while (old < size && !atomic_compare_exchange_weak (&x->size, &old, size))
    ;
}

int
export_resize (struct export *x, uint64_t size, struct q_error *err)
{
  if (x->is_part) {
    snprintf (err->text, sizeof err->text,
              "export \"%s\" is a part of a disk, from byte %" PRIu64 " on, of %" PRIu64
              " bytes: it cannot be resized",
              x->name, x->offset, x->size);
    return -ENOTSUP;
  }
  if (size < x->size) {
    snprintf (err->text, sizeof err->text,
              "export \"%s\" has %" PRIu64 " bytes: it can be made larger, but not %" PRIu64
              " bytes while it is served",
              x->name, x->size, size);
    return -EPERM;
  }
  int r = q_resize (x->img, size, err);
  if (r < 0)
    return r;
  pthread_mutex_lock (&x->set->lock);
  for (struct export *y = x->set->first; y; y = y->next)
    if (y->img == x->img && !y->is_part)
      raise_size (y, size);
  pthread_mutex_unlock (&x->set->lock);
  log_info ("export \"%s\": resized to %" PRIu64 " bytes", x->name, size);
  return 0;
}
