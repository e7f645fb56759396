/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The recorder and the replay: see record.h.
 */

#include <stdlib.h>
#include <string.h>

#include "record.h"

/* ---- recording ------------------------------------------------------------------------------- */

void
rec_init (struct recorder *r, const struct mem_file *f)
{
  const struct mem_file *files[2] = { f, f->beside };

  *r = (struct recorder){ 0 };
  for (int i = 0; i < 2; ++i) {
    r->start_size[i] = files[i] ? files[i]->size : 0;
    r->start[i] = xalloc (r->start_size[i]);
    if (r->start_size[i] > 0)
      memcpy (r->start[i], files[i]->data, r->start_size[i]);
  }
  pthread_mutex_init (&r->lock, NULL);
}

void
rec_free (struct recorder *r)
{
  for (size_t i = 0; i < r->n; ++i)
    free (r->entry[i].data);
  free (r->entry);
  free (r->start[0]);
  free (r->start[1]);
  pthread_mutex_destroy (&r->lock);
}

static void
append (struct recorder *r, struct rec_entry e)
{
  pthread_mutex_lock (&r->lock);
  if (r->n == r->capacity) {
    r->capacity = r->capacity ? 2 * r->capacity : 256;
    r->entry = realloc (r->entry, r->capacity * sizeof *r->entry);
    if (!r->entry)
      die ("out of memory");
  }
  r->entry[r->n++] = e;
  pthread_mutex_unlock (&r->lock);
}

void
rec_done (struct recorder *r, const struct mem_call *call)
{
  struct rec_entry e = {
    .kind = call->kind, .beside = call->beside, .offset = call->offset, .len = call->len
  };

  if (call->data) {
    e.data = xalloc (call->len);
    memcpy (e.data, call->data, call->len);
  }
  append (r, e);
}

void
rec_mark (struct recorder *r, unsigned mark, size_t subject)
{
  append (r, (struct rec_entry){ .kind = REC_MARK, .mark = mark, .subject = subject });
}

/* ---- replay ---------------------------------------------------------------------------------- */

const char *
cut_name (enum cut cut)
{
  static const char *const name[CUTS] = { "everything",  "only what was synced",
                                          "all but one", "one alone",
                                          "some writes", "some writes, one torn",
                                          "some sectors" };

  return name[cut];
}

void
replay_init (struct replay *p, const struct recorder *r)
{
  *p = (struct replay){ .rec = r };
  for (int i = 0; i < 2; ++i) {
    p->stable[i].name = (char *)"replay";
    mem_set (&p->stable[i], r->start[i], r->start_size[i]);
  }
}

void
replay_free (struct replay *p)
{
  free (p->stable[0].data);
  free (p->stable[1].data);
  free (p->pending);
  free (p->lost);
}

/* Does the bytes [from, to) of what E did. */
static void
apply_part (struct mem_file *f, const struct rec_entry *e, uint64_t from, uint64_t to)
{
  uint64_t end;

  switch (e->kind) {
  case MEM_WRITE:
    if (to > f->size)
      mem_resize (f, to);
    memcpy (f->data + from, e->data + (from - e->offset), to - from);
    break;
  case MEM_ZERO:
    end = to < f->size ? to : f->size;
    if (from < end)
      memset (f->data + from, 0, end - from);
    break;
  case MEM_ALLOCATE:
    if (to > f->size)
      mem_resize (f, to);
    break;
  default:
    mem_resize (f, e->len);
  }
}

static void
apply (struct mem_file *f, const struct rec_entry *e)
{
  apply_part (f, e, e->offset, e->offset + e->len);
}

/* The sync of that file has ended. */
static void
settle (struct replay *p, bool beside)
{
  size_t kept = 0, covers = p->sync_covers[beside], other = p->sync_covers[!beside];

  for (size_t i = 0; i < p->n_pending; ++i) {
    const struct rec_entry *e = &p->rec->entry[p->pending[i]];

    if (i < covers && e->beside == beside) {
      if (!p->lost[i])
        apply (&p->stable[beside], e);
      if (i < p->sync_covers[!beside])
        --other; /* it counts places, and this one is gone */
      continue;
    }
    p->pending[kept] = p->pending[i];
    p->lost[kept++] = p->lost[i];
  }
  p->n_pending = kept;
  p->sync_covers[beside] = 0;
  p->sync_covers[!beside] = other;
}

const struct rec_entry *
replay_step (struct replay *p)
{
  const struct rec_entry *e;

  if (p->next == p->rec->n)
    return NULL;
  e = &p->rec->entry[p->next];
  switch (e->kind) {
  case MEM_WRITE:
  case MEM_ZERO:
  case MEM_ALLOCATE:
  case MEM_TRUNCATE:
    if (p->n_pending == p->capacity) {
      p->capacity = p->capacity ? 2 * p->capacity : 64;
      p->pending = realloc (p->pending, p->capacity * sizeof *p->pending);
      p->lost = realloc (p->lost, p->capacity * sizeof *p->lost);
      if (!p->pending || !p->lost)
        die ("out of memory");
    }
    p->lost[p->n_pending] = false;
    p->pending[p->n_pending++] = p->next;
    break;
  case MEM_SYNC:
    p->sync_covers[e->beside] = p->n_pending;
    break;
  case MEM_SYNCED:
    settle (p, e->beside);
    break;
  case MEM_SYNC_FAILED:
    for (size_t i = 0; i < p->n_pending; ++i)
      p->lost[i] |= p->rec->entry[p->pending[i]].beside == e->beside;
    break;
  }
  ++p->next;
  return e;
}

static void
apply_sectors (struct mem_file *f, const struct rec_entry *e, uint64_t percent, uint64_t *random)
{
  uint64_t end = e->offset + e->len;

  if (e->kind == MEM_TRUNCATE) {
    if (random_below (random, 100) < percent)
      apply (f, e);
    return;
  }
  for (uint64_t from = e->offset; from < end;) {
    uint64_t to = (from / SECTOR + 1) * SECTOR;

    to = to < end ? to : end;
    if (random_below (random, 100) < percent)
      apply_part (f, e, from, to);
    from = to;
  }
}

static void
apply_torn (struct mem_file *f, const struct rec_entry *e, uint64_t *random)
{
  uint64_t sectors = (e->offset + e->len) / SECTOR - e->offset / SECTOR;
  uint64_t to = (e->offset / SECTOR + random_below (random, sectors + 1)) * SECTOR;

  if (to > e->offset && e->kind != MEM_TRUNCATE)
    apply_part (f, e, e->offset, to);
}

void
replay_cut (const struct replay *p, enum cut cut, uint64_t *random, struct mem_file *file)
{
  static const uint64_t percents[] = { 15, 50, 85 };
  uint64_t percent = percents[random_below (random, 3)];
  size_t one = random_below (random, p->n_pending);

  mem_set (file, p->stable[0].data, p->stable[0].size);
  if (file->beside)
    mem_set (file->beside, p->stable[1].data, p->stable[1].size);
  for (size_t i = 0; i < p->n_pending && cut != CUT_NONE; ++i) {
    const struct rec_entry *e = &p->rec->entry[p->pending[i]];
    bool some = random_below (random, 100) < percent;
    struct mem_file *f = e->beside ? file->beside : file;

    switch (cut) {
    case CUT_SECTORS:
      apply_sectors (f, e, percent, random);
      break;
    case CUT_TORN:
      if (i == one)
        apply_torn (f, e, random);
      else if (some)
        apply (f, e);
      break;
    default:
      if (cut == CUT_ALL || (cut == CUT_MISSING && i != one) || (cut == CUT_ONLY && i == one) ||
          (cut == CUT_SUBSET && some))
        apply (f, e);
    }
  }
}
