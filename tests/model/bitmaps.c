/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Dirty bitmaps in the model: see model.h.
 *
 * Bitmaps change while others write.  Each has an epoch, which is odd while a change is under way.
 * A request that began and ended in one even epoch is in the bitmap, if that is enabled; one that
 * saw another epoch may be.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { MAY = 1, MUST = 2 };

struct shadow {
  char name[16]; /* "": there is none */
  uint64_t granularity;
  bool enabled;
  bool lost; /* was left in use */
  uint64_t epoch;
  uint8_t *granule; /* as many as the largest disk has */
};

static struct shadow bitmaps[MAX_BITMAPS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;      /* for all of it */
static pthread_mutex_t operating = PTHREAD_MUTEX_INITIALIZER; /* one change at a time */
static unsigned serial;

static uint64_t
granules (const struct shadow *b, uint64_t bytes)
{
  return (bytes + b->granularity - 1) / b->granularity;
}

static void
set (struct shadow *b, uint64_t offset, uint64_t len, uint8_t how)
{
  if (len > 0)
    for (uint64_t i = offset / b->granularity; i < granules (b, offset + len); ++i)
      b->granule[i] |= how;
}

/* ---- what writers say ------------------------------------------------------------------------ */

void
mark_begin (struct mark *m, uint64_t offset, uint64_t len)
{
  *m = (struct mark){ .offset = offset, .len = len };
  pthread_mutex_lock (&lock);
  for (unsigned i = 0; i < MAX_BITMAPS; ++i) {
    struct shadow *b = &bitmaps[i];

    m->epoch[i] = b->epoch;
    if (b->name[0] && (b->enabled || b->epoch % 2))
      set (b, offset, len, MAY);
  }
  pthread_mutex_unlock (&lock);
}

/* Sets for each block of 512 bytes of the range that may or must be dirty. */
static void
set_changed (struct shadow *b, const struct mark *m, const uint8_t *before, const uint8_t *after)
{
  set (b, m->offset, m->len, MAY);
  for (uint64_t at = 0, n; at < m->len; at += n) {
    n = 512 - (m->offset + at) % 512;
    n = n < m->len - at ? n : m->len - at;
    if (memcmp (before + at, after + at, n) != 0)
      set (b, m->offset + at, n, MUST);
  }
}

void
mark_end (const struct mark *m, const uint8_t *before, const uint8_t *after)
{
  pthread_mutex_lock (&lock);
  for (unsigned i = 0; i < MAX_BITMAPS; ++i) {
    struct shadow *b = &bitmaps[i];

    if (!b->name[0])
      continue;
    if (b->epoch != m->epoch[i] || b->epoch % 2)
      set (b, m->offset, m->len, MAY);
    else if (b->enabled)
      set_changed (b, m, before, after);
  }
  pthread_mutex_unlock (&lock);
}

void
bitmaps_resize (uint64_t from, uint64_t to)
{
  for (unsigned i = 0; i < MAX_BITMAPS; ++i) {
    struct shadow *b = &bitmaps[i];

    if (!b->name[0] || b->lost)
      continue;
    if (to < from && b->enabled) /* the rest of the last cluster is zeroed */
      set (b, to, 1, MAY);
    if (to < from)
      memset (b->granule + granules (b, to), 0, granules (b, model_room) - granules (b, to));
    else if (b->enabled)
      set (b, from, to - from, MAY | MUST);
  }
}

void
bitmaps_mark_all (void)
{
  for (unsigned i = 0; i < MAX_BITMAPS; ++i)
    if (bitmaps[i].name[0] && bitmaps[i].enabled && !bitmaps[i].lost)
      set (&bitmaps[i], 0, disk_size, MAY | MUST);
}

/* ---- operations ------------------------------------------------------------------------------ */

/* From here until settle what is written may be in B or not. */
static void
unsettle (struct shadow *b)
{
  pthread_mutex_lock (&lock);
  ++b->epoch;
  pthread_mutex_unlock (&lock);
}

/* B has changed: what it MUST have is gone unless kept. */
static void
settle (struct shadow *b, bool enabled)
{
  pthread_mutex_lock (&lock);
  b->enabled = enabled;
  ++b->epoch;
  pthread_mutex_unlock (&lock);
}

static void
clear (struct shadow *b)
{
  pthread_mutex_lock (&lock);
  memset (b->granule, 0, granules (b, model_room));
  pthread_mutex_unlock (&lock);
}

static struct shadow *
any (uint64_t *random, bool there)
{
  unsigned first = (unsigned)below (random, MAX_BITMAPS);

  for (unsigned i = 0; i < MAX_BITMAPS; ++i) {
    struct shadow *b = &bitmaps[(first + i) % MAX_BITMAPS];

    if ((b->name[0] != '\0') == there)
      return b;
  }
  return NULL;
}

static void
act (const struct q_bitmap_action *a, unsigned n)
{
  struct q_error err;
  int r = q_bitmap_change (img, a, n, &err);

  if (r < 0)
    die ("bitmaps: %s", err.text);
}

static void
add (uint64_t *random)
{
  struct shadow *b = any (random, false);
  struct q_bitmap_action a;

  if (!b)
    return;
  pthread_mutex_lock (&lock);
  *b = (struct shadow){ .granularity = 512ull << below (random, 9), .epoch = b->epoch + 1 };
  b->granule = xalloc (granules (b, model_room));
  snprintf (b->name, sizeof b->name, "b%u", serial++);
  pthread_mutex_unlock (&lock);
  a = (struct q_bitmap_action){ .op = Q_BITMAP_ADD,
                                .name = b->name,
                                .granularity = b->granularity,
                                .disabled = below (random, 3) == 0 };
  act (&a, 1);
  settle (b, !a.disabled);
}

static void
drop (struct shadow *b)
{
  const struct q_bitmap_action a = { .op = Q_BITMAP_REMOVE, .name = b->name };

  act (&a, 1);
  pthread_mutex_lock (&lock);
  free (b->granule);
  *b = (struct shadow){ .epoch = b->epoch };
  pthread_mutex_unlock (&lock);
}

/* Clears, and turns on or off what that says at the same instant. */
static void
clear_and (struct shadow *b, enum q_bitmap_op then)
{
  const struct q_bitmap_action a[] = { { .op = Q_BITMAP_CLEAR, .name = b->name },
                                       { .op = then, .name = b->name } };

  unsettle (b);
  clear (b);
  act (a, 2);
  settle (b, then == Q_BITMAP_ENABLE);
}

static void
turn (struct shadow *b, enum q_bitmap_op to)
{
  const struct q_bitmap_action a = { .op = to, .name = b->name };

  unsettle (b);
  act (&a, 1);
  settle (b, to == Q_BITMAP_ENABLE);
}

static void
merge (struct shadow *to, struct shadow *from)
{
  const struct q_bitmap_action a = { .op = Q_BITMAP_MERGE, .name = to->name, .source = from->name };
  uint8_t *must = xalloc (granules (from, model_room));
  bool enabled = to->enabled;

  if (to == from || from->lost) {
    free (must);
    return;
  }
  unsettle (to);
  pthread_mutex_lock (&lock);
  memcpy (must, from->granule, granules (from, model_room));
  pthread_mutex_unlock (&lock);
  act (&a, 1);
  pthread_mutex_lock (&lock);
  for (uint64_t i = 0; i < granules (from, disk_size); ++i) {
    uint64_t at = i * from->granularity, end = at + from->granularity;
    uint8_t how = (must[i] & MUST) | (from->granule[i] & MAY);

    end = end < disk_size ? end : disk_size;
    set (to, at, end - at, how);
  }
  pthread_mutex_unlock (&lock);
  settle (to, enabled);
  free (must);
}

void
bitmaps_operate (uint64_t *random)
{
  struct shadow *b;

  pthread_mutex_lock (&operating);
  b = any (random, true);
  ++image_operations;
  if (!b || below (random, 4) == 0)
    add (random);
  else if (b->lost || below (random, 6) == 0)
    drop (b);
  else
    switch (below (random, 5)) {
    case 0:
      clear_and (b, below (random, 2) ? Q_BITMAP_ENABLE : Q_BITMAP_DISABLE);
      break;
    case 1:
      turn (b, Q_BITMAP_ENABLE);
      break;
    case 2:
      turn (b, Q_BITMAP_DISABLE);
      break;
    default:
      merge (b, any (random, true));
    }
  pthread_mutex_unlock (&operating);
}

/* ---- what there is --------------------------------------------------------------------------- */

static void
verify_bits (const struct shadow *s, const char *when)
{
  struct q_bitmap *b;
  struct q_error err;

  if (q_bitmap_hold (img, s->name, &b, &err) < 0)
    die ("%s: %s", when, err.text);
  for (uint64_t at = 0, end; at < disk_size; at = end) {
    bool dirty;

    q_bitmap_next (b, at, disk_size, &dirty, &end);
    for (uint64_t i = at / s->granularity; i < granules (s, end); ++i)
      if (dirty ? !(s->granule[i] & MAY) : s->granule[i] & MUST)
        die ("%s: bitmap %s: granule %llu of %llu bytes is %s", when, s->name,
             (unsigned long long)i, (unsigned long long)s->granularity, dirty ? "dirty" : "clean");
  }
  q_bitmap_release (b);
}

void
bitmaps_verify (const char *when)
{
  struct q_bitmap_info *list;
  struct q_error err;
  int n = q_get_bitmaps (img, &list, &err), there = 0;

  if (n < 0)
    die ("%s: %s", when, err.text);
  for (unsigned i = 0; i < MAX_BITMAPS; ++i) {
    const struct shadow *s = &bitmaps[i];
    const struct q_bitmap_info *found = NULL;

    if (!s->name[0])
      continue;
    ++there;
    for (int k = 0; k < n && !found; ++k)
      found = strcmp (list[k].name, s->name) == 0 ? &list[k] : NULL;
    if (!found)
      die ("%s: bitmap %s is not there", when, s->name);
    if (found->inconsistent != s->lost || found->granularity != s->granularity ||
        (found->automatic != s->enabled && !s->lost))
      die ("%s: bitmap %s: granularity %llu, %s, %s", when, s->name,
           (unsigned long long)found->granularity, found->automatic ? "enabled" : "disabled",
           found->inconsistent ? "left in use" : "saved");
    if (!s->lost)
      verify_bits (s, when);
  }
  if (n != there)
    die ("%s: there are %d bitmaps, should be %d", when, n, there);
  free (list);
}

/* ---- from one process to the next ------------------------------------------------------------ */

void
bitmaps_load (const char *dir)
{
  uint64_t size;
  char *text = load_file (dir, "bitmaps", &size), *line, *rest = text;

  for (unsigned i = 0; (line = strsep (&rest, "\n")) != NULL && line[0]; ++i) {
    struct shadow *b = &bitmaps[i];
    unsigned long long granularity;
    unsigned enabled, lost;
    char file[32];
    uint8_t *bits;

    if (i >= MAX_BITMAPS ||
        sscanf (line, "%15s %llu %u %u", b->name, &granularity, &enabled, &lost) != 4)
      die ("%s/bitmaps: %s", dir, line);
    b->granularity = granularity;
    b->enabled = enabled;
    b->lost = lost;
    b->granule = xalloc (granules (b, model_room));
    snprintf (file, sizeof file, "%s.bits", b->name);
    bits = load_file (dir, file, &size);
    memcpy (b->granule, bits, size < granules (b, model_room) ? size : granules (b, model_room));
    free (bits);
    if (serial <= strtoul (b->name + 1, NULL, 10))
      serial = (unsigned)strtoul (b->name + 1, NULL, 10) + 1;
  }
  free (text);
}

void
bitmaps_save (const char *dir, bool lost)
{
  char *text, file[32];
  size_t size;
  FILE *f = open_memstream (&text, &size);

  if (!f)
    die ("out of memory");
  for (unsigned i = 0; i < MAX_BITMAPS; ++i) {
    const struct shadow *b = &bitmaps[i];

    if (!b->name[0])
      continue;
    fprintf (f, "%s %llu %u %u\n", b->name, (unsigned long long)b->granularity, b->enabled,
             b->lost || (lost && b->enabled));
    snprintf (file, sizeof file, "%s.bits", b->name);
    save_file (dir, file, b->granule, granules (b, disk_size));
  }
  fclose (f);
  save_file (dir, "bitmaps", text, size);
  free (text);
}
