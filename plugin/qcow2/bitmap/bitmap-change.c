/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changing bitmaps while the image is in use: a list of actions that take effect at one instant,
 * between two writes, or not at all.  See bitmap.h.
 *
 *     begin     holds the bitmaps of other images that are merged from.  No lock is held then, so
 *               that two images may merge from each other.
 *     prepare   checks the actions one after the other as if those before them had been done; marks
 *               what will change as in use on disk; writes the new directory beside the old one,
 *               durably; readies all memory.  All that can fail.
 *     commit    the gate is closed: bits, what is enabled, the list, what writers mark, and what
 *               survives a kill change.  No I/O.
 *     finish    the gate is open: the header names the new directory, what was removed goes to
 *               limbo, and bitmaps that are not enabled are saved.
 *
 * A power cut before finish leaves the old list, in which what was about to change may be marked in
 * use.  A kill is before or after commit.
 */

#include <errno.h>
#include <stdlib.h>

#include "bitmap.h"

#define ull(v) ((unsigned long long)(v))

/* One bitmap as it will be. */
struct planned {
  struct q_bitmap *b;
  struct q_bits *bits; /* at the end */
  bool enabled, live, added, removed;
};

struct step {
  enum q_bitmap_op op;
  struct q_bitmap *b, *source;
  bool held;            /* the source, which is another image's: from begin on */
  struct q_bits *blank; /* Q_BITMAP_CLEAR: the bits that take the place of the others; then those */
};

struct q_bitmap_changes {
  struct q_image *img;
  const struct q_bitmap_action *const *action;
  bool locked;
  struct planned *planned;
  unsigned n;
  struct step *step;
  unsigned n_steps;
  struct q_bitmap **list; /* as it will be */
  unsigned n_list;
  struct q_bitmap **marked; /* that prepare has marked in use */
  unsigned n_marked;
  bool relist; /* the list changes */
  struct q_new_directory directory;
  struct q_leaving leaving;
  struct q_tracker *tracker;
  struct q_shared_record record;
};

/* ---- planning -------------------------------------------------------------------------------- */

static struct planned *
find_planned (struct q_bitmap_changes *c, const char *name)
{
  for (unsigned i = 0; i < c->n; ++i)
    if (!c->planned[i].removed && strcmp (c->planned[i].b->name, name) == 0)
      return &c->planned[i];
  return NULL;
}

/* The bitmap that an action names, if it may be touched. */
static int
find_free (struct q_bitmap_changes *c, const char *name, bool to_remove, struct planned **p,
           struct q_error *err)
{
  const char *file = c->img->filename;

  *p = find_planned (c, name);
  if (!*p)
    return q_fail (err, -ENOENT, "%s: Dirty bitmap '%s' not found", file, name);
  if ((*p)->b->users > 0)
    return q_fail (err, -EBUSY,
                   "%s: Bitmap '%s' is currently in use by another operation and cannot be used",
                   file, name);
  if (!to_remove && (*p)->b->inconsistent)
    return q_fail (err, -EINVAL,
                   "%s: Bitmap '%s' is inconsistent and cannot be used; it can be removed", file,
                   name);
  if (!to_remove && (*p)->b->unusable)
    return q_fail (err, -ENOTSUP, "%s: Bitmap '%s' cannot be used: %s", file, name,
                   (*p)->b->unusable);
  return 0;
}

static int
no_memory (const struct q_image *img, struct q_error *err)
{
  return q_fail (err, -ENOMEM, "%s: out of memory for bitmaps", img->filename);
}

/* Makes sure that P's bits are in memory, and says that they will change. */
static int
touch (struct q_bitmap_changes *c, struct planned *p, struct q_error *err)
{
  int r;

  if (p->bits)
    return 0;
  r = q_bitmap_read_bits (p->b, err);
  if (r < 0)
    return r;
  p->bits = atomic_load (&p->b->bits);
  if (!p->b->live)
    q_bits_share (c->img, p->bits);
  p->live = true;
  return 0;
}

/* 4 KiB to 64 KiB, by the clusters. */
static uint64_t
default_granularity (const struct q_image *img)
{
  uint64_t cluster = q_cluster_bytes (img);

  return cluster < 4096 ? 4096 : q_min (cluster, 65536);
}

static int
check_new (struct q_bitmap_changes *c, const struct q_bitmap_action *a, uint64_t granularity,
           struct q_error *err)
{
  struct q_image *img = c->img;
  uint64_t least = 1ull << Q_BITMAP_MIN_GRANULARITY_BITS;
  uint64_t most = 1ull << Q_BITMAP_MAX_GRANULARITY_BITS, bytes;
  unsigned n = 0;

  if (find_planned (c, a->name))
    return q_fail (err, -EEXIST, "%s: Bitmap already exists: %s", img->filename, a->name);
  if (strlen (a->name) == 0 || strlen (a->name) > Q_BITMAP_MAX_NAME)
    return q_fail (err, -EINVAL, "%s: a bitmap's name has %zu bytes, should have 1 to %u",
                   img->filename, strlen (a->name), Q_BITMAP_MAX_NAME);
  if (granularity < least || granularity > most || (granularity & (granularity - 1)))
    return q_fail (err, -EINVAL,
                   "%s: bitmap '%s': a granularity of %llu is not a power of two from %llu to %llu",
                   img->filename, a->name, ull (granularity), ull (least), ull (most));
  bytes = q_bits_bytes (q_size (img), (unsigned)__builtin_ctzll (granularity));
  if (bytes == 0)
    return q_fail (err, -EINVAL, "%s: a disk of 0 bytes has no use for bitmap '%s'", img->filename,
                   a->name);
  if (bytes > Q_BITMAP_MAX_BYTES || bytes > Q_BITMAP_MAX_TOTAL - img->bitmaps.memory)
    return q_fail (err, -EFBIG,
                   "%s: bitmap '%s' would have %llu bytes of bits, the most is %llu, and %llu with "
                   "all others; a larger granularity takes less",
                   img->filename, a->name, ull (bytes), ull (Q_BITMAP_MAX_BYTES),
                   ull (Q_BITMAP_MAX_TOTAL));
  for (unsigned i = 0; i < c->n; ++i)
    n += !c->planned[i].removed;
  if (n >= Q_MAX_BITMAPS)
    return q_fail (err, -E2BIG, "%s: has %u bitmaps already, the most that there can be",
                   img->filename, n);
  return 0;
}

static int
plan_add (struct q_bitmap_changes *c, const struct q_bitmap_action *a, struct q_error *err)
{
  struct q_image *img = c->img;
  uint64_t granularity = a->granularity ? a->granularity : default_granularity (img);
  int r = check_new (c, a, granularity, err);
  struct planned *p = &c->planned[c->n];
  struct q_bits *bits;

  if (r < 0)
    return r;
  *p = (struct planned){ .b = q_bitmap_new (img, a->name, (unsigned)__builtin_ctzll (granularity)),
                         .enabled = !a->disabled,
                         .live = true,
                         .added = true };
  if (!p->b)
    return no_memory (img, err);
  ++c->n;
  bits = q_bits_new (img, q_size (img), p->b->granularity_bits);
  if (!bits)
    return no_memory (img, err);
  q_bits_share (img, bits);
  p->b->enabled = p->enabled;
  p->b->live = true;
  atomic_store (&p->b->bits, bits);
  img->bitmaps.memory += bits->bytes;
  p->bits = bits;
  c->relist = true;
  r = q_bitmap_make_table (p->b);
  return r < 0 ? q_fail (err, r, "%s: no room for bitmap '%s': %s", img->filename, a->name,
                         strerror (-r))
               : 0;
}

/* Of the disk that a bitmap is about. */
static uint64_t
disk_size (const struct q_bitmap *b)
{
  q_pin_t pin = q_pin (); /* another image may be resized meanwhile */
  uint64_t size = atomic_load (&b->bits)->size;

  q_unpin (pin);
  return size;
}

static int
plan_merge (struct q_bitmap_changes *c, const struct q_bitmap_action *a, struct step *s,
            struct q_error *err)
{
  struct planned *to, *from;
  uint64_t size;
  int r = find_free (c, a->name, false, &to, err);

  if (r == 0)
    r = touch (c, to, err);
  if (r < 0)
    return r;
  s->b = to->b;
  if (!s->held) {
    r = find_free (c, a->source, false, &from, err);
    if (r == 0)
      r = q_bitmap_read_bits (from->b, err);
    if (r < 0)
      return r;
    s->source = from->b;
  }
  size = disk_size (s->source);
  if (size != to->bits->size)
    return q_fail (err, -EINVAL,
                   "%s: Bitmaps are of different sizes (destination size is %llu, source size is "
                   "%llu) and can't be merged",
                   c->img->filename, ull (to->bits->size), ull (size));
  return 0;
}

static int
plan_clear (struct q_bitmap_changes *c, struct planned *p, struct step *s, struct q_error *err)
{
  int r = touch (c, p, err);

  if (r < 0)
    return r;
  s->blank = q_bits_new (c->img, p->bits->size, p->bits->granularity_bits);
  if (!s->blank)
    return no_memory (c->img, err);
  q_bits_share (c->img, s->blank);
  q_bits_changed_all (s->blank);
  p->bits = s->blank;
  return 0;
}

static int
plan (struct q_bitmap_changes *c, const struct q_bitmap_action *a, struct step *s,
      struct q_error *err)
{
  struct planned *p;
  int r;

  if (a->op == Q_BITMAP_ADD)
    return plan_add (c, a, err);
  if (a->op == Q_BITMAP_MERGE)
    return plan_merge (c, a, s, err);
  r = find_free (c, a->name, a->op == Q_BITMAP_REMOVE, &p, err);
  if (r < 0)
    return r;
  s->b = p->b;
  switch (a->op) {
  case Q_BITMAP_CLEAR:
    return plan_clear (c, p, s, err);
  case Q_BITMAP_REMOVE:
    p->removed = true;
    c->relist = true;
    return 0;
  case Q_BITMAP_ENABLE:
    p->enabled = true;
    return touch (c, p, err);
  default:
    p->enabled = false;
    return 0;
  }
}

/* ---- preparing ------------------------------------------------------------------------------- */

/* What there is before the first action. */
static int
take_stock (struct q_bitmap_changes *c, struct q_error *err)
{
  struct q_bitmaps *l = &c->img->bitmaps;
  size_t room = l->n + c->n_steps + 1ull;

  c->planned = calloc (room, sizeof *c->planned);
  c->list = calloc (room, sizeof (struct q_bitmap *));
  c->marked = calloc (room, sizeof (struct q_bitmap *));
  c->tracker = malloc (sizeof *c->tracker + room * sizeof c->tracker->bits[0]);
  if (!c->planned || !c->list || !c->marked || !c->tracker)
    return no_memory (c->img, err);
  c->tracker->n = 0;
  for (c->n = 0; c->n < l->n; ++c->n) {
    struct q_bitmap *b = l->bitmap[c->n];

    c->planned[c->n] = (struct planned){ .b = b,
                                         .bits = b->live ? atomic_load (&b->bits) : NULL,
                                         .enabled = b->enabled,
                                         .live = b->live };
  }
  return 0;
}

/* The directory as it will be, with nothing that refers to it. */
static int
ready_directory (struct q_bitmap_changes *c, struct q_error *err)
{
  struct q_image *img = c->img;
  int r;

  if (!c->relist)
    return 0;
  for (unsigned i = 0; i < c->n; ++i)
    if (c->planned[i].removed && !c->planned[i].added) {
      r = q_bitmap_leave (img, &c->leaving, c->planned[i].b);
      if (r < 0)
        return no_memory (img, err);
    }
  r = q_directory_write (img, c->list, c->n_list, &c->directory);
  if (r == 0)
    r = q_flush (img);
  return r < 0 ? q_fail (err, r, "%s: cannot write the bitmap directory: %s", img->filename,
                         r == -E2BIG ? "it would be larger than 64 MiB, or the header has no room "
                                       "for where it is"
                                     : strerror (-r))
               : 0;
}

static int
ready (struct q_bitmap_changes *c, struct q_error *err)
{
  struct q_image *img = c->img;
  int r;

  for (unsigned i = 0; i < c->n; ++i) {
    struct planned *p = &c->planned[i];

    if (p->removed)
      continue;
    c->list[c->n_list++] = p->b;
    if (p->live && !p->added && !p->b->live)
      c->marked[c->n_marked++] = p->b;
    if (p->live && p->enabled)
      c->tracker->bits[c->tracker->n++] = p->bits;
  }
  r = ready_directory (c, err);
  if (r < 0)
    return r;
  q_shared_record_begin (img, &c->record);
  for (unsigned i = 0; i < c->n; ++i)
    if (!c->planned[i].removed)
      q_shared_record_add (&c->record, c->planned[i].b,
                           c->planned[i].live ? c->planned[i].bits : NULL, c->planned[i].enabled);
  q_shared_record_end (img, &c->record);
  return q_bitmaps_mark_in_use (img, c->marked, c->n_marked, err);
}

void
q_bitmap_end (struct q_bitmap_changes *c)
{
  if (!c)
    return;
  for (unsigned i = 0; c->step && i < c->n_steps; ++i)
    if (c->step[i].held)
      q_bitmap_release (c->step[i].source);
  free (c->leaving.run);
  free (c->planned);
  free (c->step);
  free (c->list);
  free (c->marked);
  free (c->tracker);
  free (c);
}

void
q_bitmap_abandon (struct q_bitmap_changes *c)
{
  struct q_image *img = c->img;

  if (!c->locked)
    return;
  q_shared_record_drop (img, &c->record);
  q_directory_drop (img, &c->directory);
  if (!(img->autoclear & Q_AUTOCLEAR_BITMAPS) && atomic_load (&img->sticky) == 0) {
    q_flush_hold (img);                           /* which may add one */
    q_header_drop_extension (img, Q_EXT_BITMAPS); /* the room that was made for it */
    q_flush_let_go (img);
  }
  for (unsigned i = 0; c->step && i < c->n_steps; ++i)
    q_bits_free (c->step[i].blank);
  for (unsigned i = 0; c->planned && i < c->n; ++i)
    if (c->planned[i].added) {
      q_bitmap_drop_table (c->planned[i].b);
      q_bitmap_destroy (c->planned[i].b);
    }
  q_bitmaps_save_disabled (img); /* those that were only marked: the mark goes */
  pthread_mutex_unlock (&img->bitmap_lock);
}

int
q_bitmap_begin (struct q_image *img, const struct q_bitmap_action *const *actions, unsigned n,
                struct q_bitmap_changes **changes, struct q_error *err)
{
  struct q_bitmap_changes *c;
  int r = q_writable (img);

  *changes = NULL;
  if (r < 0)
    return q_fail (err, r, "%s: the image is read-only", img->filename);
  if (img->format != Q_FORMAT_QCOW2 || img->version < 3)
    return q_fail (
        err, -ENOTSUP, "%s: only qcow2 images of version 3 (compat=1.1) have persistent bitmaps%s",
        img->filename,
        img->format == Q_FORMAT_QCOW2 ? ": nbdcow-img amend -o compat=v3 makes it one" : "");
  c = calloc (1, sizeof *c);
  if (c)
    c->step = calloc (n + 1ull, sizeof *c->step);
  if (!c || !c->step) {
    free (c);
    return no_memory (img, err);
  }
  *changes = c;
  c->img = img;
  c->action = actions;
  c->n_steps = n;
  for (unsigned i = 0; r == 0 && i < n; ++i) {
    c->step[i].op = actions[i]->op;
    if (actions[i]->op == Q_BITMAP_MERGE && actions[i]->source_image &&
        actions[i]->source_image != img) {
      r = q_bitmap_hold (actions[i]->source_image, actions[i]->source, &c->step[i].source, err);
      c->step[i].held = r == 0;
    }
  }
  return r;
}

int
q_bitmap_prepare (struct q_bitmap_changes *c, struct q_error *err)
{
  int r;

  pthread_mutex_lock (&c->img->bitmap_lock);
  c->locked = true;
  r = q_bitmaps_read (c->img, err);
  if (r == 0)
    r = take_stock (c, err);
  for (unsigned i = 0; r == 0 && i < c->n_steps; ++i)
    r = plan (c, c->action[i], &c->step[i], err);
  return r == 0 ? ready (c, err) : r;
}

/* ---- the instant ----------------------------------------------------------------------------- */

static void
free_bits (void *bits)
{
  q_bits_free (bits);
}

static void
take_step (struct step *s)
{
  switch (s->op) {
  case Q_BITMAP_CLEAR:
    s->blank = atomic_exchange (&s->b->bits, s->blank);
    break;
  case Q_BITMAP_MERGE:
    q_bits_merge (atomic_load (&s->b->bits), atomic_load (&s->source->bits));
    break;
  default:
    break;
  }
}

void
q_bitmap_commit (struct q_bitmap_changes *c)
{
  struct q_image *img = c->img;
  struct q_bitmap **list = img->bitmaps.bitmap;
  struct q_tracker *old = atomic_load (&img->tracker);
  q_pin_t pin = q_pin (); /* for bits of other images, which a resize replaces */

  for (unsigned i = 0; i < c->n_steps; ++i)
    take_step (&c->step[i]);
  q_unpin (pin);
  for (unsigned i = 0; i < c->n; ++i) {
    struct planned *p = &c->planned[i];

    if (p->removed)
      continue;
    if (p->b->enabled != p->enabled) /* who holds one looks at this without a lock */
      p->b->enabled = p->enabled;
    p->b->live = p->live;
  }
  img->bitmaps.bitmap = c->list;
  img->bitmaps.n = c->n_list;
  c->list = list;
  atomic_store (&img->tracker, c->tracker);
  c->tracker = old;
  q_shared_record_commit (img, &c->record);
  /* Not before the record that names them has gone. */
  for (unsigned i = 0; i < c->n_steps; ++i)
    if (c->step[i].blank)
      q_grace_retire (c->step[i].blank, free_bits);
}

/* ---- afterwards ------------------------------------------------------------------------------ */

int
q_bitmap_finish (struct q_bitmap_changes *c, struct q_error *err)
{
  struct q_image *img = c->img;
  int r = 0;

  if (c->relist) {
    r = q_directory_switch (img, img->bitmaps.bitmap, &c->directory, &c->leaving);
    if (r == -ENOSPC || r == -ENOMEM) {
      q_log (Q_LOG_WARNING,
             "%s: no room to write where the bitmap directory is: tried again with the next change "
             "of bitmaps, and on close",
             img->filename);
      img->bitmaps.relist = true;
      q_directory_drop (img, &c->directory);
      q_let_go_later (img, &c->leaving);
      r = 0;
    } else if (r < 0)
      q_fail (err, r, "%s: cannot write where the bitmap directory is: %s", img->filename,
              strerror (-r));
  }
  for (unsigned i = 0; i < c->n; ++i)
    if (c->planned[i].removed) {
      if (c->planned[i].added)
        q_bitmap_drop_table (c->planned[i].b);
      q_bitmap_destroy (c->planned[i].b);
    }
  if (r == 0)
    q_bitmaps_save_disabled (img);
  pthread_mutex_unlock (&img->bitmap_lock);
  return r;
}
