/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The images of one process that have the same file: see readers.h.
 */

#include <errno.h>
#include <stdlib.h>

#include "readers.h"

/* One file.  It is locked for as long as an image takes to be opened. */
struct q_readers {
  struct q_readers *next;
  uint64_t dev, ino;
  unsigned refs; /* images that have it, or are about to; under all_lock */
  pthread_mutex_t mutex;
  pthread_cond_t unlocked;
  bool locked;           /* for what is below, and for the file's header and snapshot table */
  struct q_image *first; /* by readers_next */
};

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct q_readers *all;

/* all_lock held. */
static struct q_readers *
find_or_make (uint64_t dev, uint64_t ino)
{
  struct q_readers *q = all;

  while (q && (q->dev != dev || q->ino != ino || (dev == 0 && ino == 0)))
    q = q->next;
  if (q)
    return q;
  q = calloc (1, sizeof *q);
  if (!q)
    return NULL;
  q->dev = dev;
  q->ino = ino;
  pthread_mutex_init (&q->mutex, NULL);
  pthread_cond_init (&q->unlocked, NULL);
  q->next = all;
  all = q;
  return q;
}

int
q_readers_join (struct q_image *img)
{
  struct q_readers *q;

  pthread_mutex_lock (&all_lock);
  q = find_or_make (img->file->dev, img->file->ino);
  if (q)
    ++q->refs;
  pthread_mutex_unlock (&all_lock);
  if (!q)
    return -ENOMEM;
  img->readers = q;
  q_readers_lock (img);
  img->readers_next = q->first;
  q->first = img;
  return 0;
}

static void
put (struct q_readers *q)
{
  struct q_readers **p = &all;

  pthread_mutex_lock (&all_lock);
  if (--q->refs == 0) {
    while (*p != q)
      p = &(*p)->next;
    *p = q->next;
    pthread_cond_destroy (&q->unlocked);
    pthread_mutex_destroy (&q->mutex);
    free (q);
  }
  pthread_mutex_unlock (&all_lock);
}

void
q_readers_leave (struct q_image *img)
{
  struct q_readers *q = img->readers;
  struct q_image **p;

  if (!q)
    return;
  if (!img->readers_locked)
    q_readers_lock (img);
  for (p = &q->first; *p != img; p = &(*p)->readers_next)
    ;
  *p = img->readers_next;
  q_readers_unlock (img);
  img->readers = NULL;
  put (q);
}

void
q_readers_lock (struct q_image *img)
{
  struct q_readers *q = img->readers;

  if (!q)
    return;
  pthread_mutex_lock (&q->mutex);
  while (q->locked)
    pthread_cond_wait (&q->unlocked, &q->mutex);
  q->locked = img->readers_locked = true;
  pthread_mutex_unlock (&q->mutex);
}

void
q_readers_unlock (struct q_image *img)
{
  struct q_readers *q = img->readers;

  if (!q)
    return;
  pthread_mutex_lock (&q->mutex);
  q->locked = img->readers_locked = false;
  pthread_cond_signal (&q->unlocked);
  pthread_mutex_unlock (&q->mutex);
}

struct q_image *
q_readers_writer (const struct q_image *img)
{
  struct q_image *i = img->readers ? img->readers->first : NULL;

  while (i && i->read_only)
    i = i->readers_next;
  return i;
}

bool
q_readers_show (const struct q_image *img, uint64_t host)
{
  for (const struct q_image *i = img->readers ? img->readers->first : NULL; i; i = i->readers_next)
    if (i != img && i->shows == host)
      return true;
  return false;
}

bool
q_readers_allow (const struct q_image *img, const struct q_snapshots *list)
{
  for (const struct q_image *i = img->readers ? img->readers->first : NULL; i;
       i = i->readers_next) {
    bool listed = i->shows == 0;

    for (uint32_t k = 0; !listed && k < list->n; ++k)
      listed = list->s[k].l1_table_offset == i->shows;
    if (!listed)
      return false;
  }
  return true;
}
