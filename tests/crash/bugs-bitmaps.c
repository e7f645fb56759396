/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Our own bugs: dirty bitmaps that could not be saved, or that were not there when the disk was.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bugs.h"
#include "statefile.h"

static void
change (struct run *run, const struct q_bitmap_action *a, unsigned n)
{
  struct q_error err;

  check (q_bitmap_change (run->img, a, n, &err) == 0, "%s", err.text);
}

/* ---- another size, and a kill before the bitmaps have it ---------------------------------------
 *
 * Going back to a snapshot changes the size of the disk and, a moment later, the bitmaps that
 * survive a kill.  Whoever takes up what is left between the two must take what is new for dirty.
 */

#define MAX_INSTANTS 256

struct instant {
  uint8_t *image;
  uint64_t size;
  struct state_copy state;
};

struct instants {
  struct mem_tap tap;
  struct mem_file *file;
  unsigned n;
  struct instant at[MAX_INSTANTS];
};

static int
take_instant (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct instants *all = opaque;
  struct instant *i = &all->at[all->n];

  (void)partial;
  if (call->kind == MEM_READ || call->kind == MEM_SIZE || call->kind == MEM_SYNCED)
    return 0;
  check (all->n++ < MAX_INSTANTS, "going back makes more calls than this test has room for");
  i->size = all->file->size;
  i->image = xalloc (i->size);
  memcpy (i->image, all->file->data, i->size);
  state_save (&i->state);
  return 0;
}

/* All of the disk was written since the bitmap was made.  Returns its size. */
static uint64_t
try_instant (struct run *run, const struct instant *i)
{
  struct mem_file *cut = mem_add (&run->store, "cut");
  struct q_bitmap *b;
  struct q_error err;
  uint64_t size, end;
  bool dirty;

  mem_set (cut, i->image, i->size);
  state_restore (&i->state);
  check (q_open (&run->img, "cut", &run->opts, &err) == 0, "%s", err.text);
  size = q_size (run->img);
  check (q_bitmap_hold (run->img, "all", &b, &err) == 0, "%s", err.text);
  q_bitmap_next (b, 0, size, &dirty, &end);
  check (dirty && end == size,
         "killed while the disk got another size: of %llu bytes %llu are %s in a bitmap that "
         "should have all",
         (unsigned long long)size, (unsigned long long)end, dirty ? "dirty" : "clean");
  q_bitmap_release (b);
  check_image (run);
  check (q_close (&run->img, &err) == 0, "%s", err.text);
  return size;
}

/* Makes a snapshot of a disk of so many bytes, gives it another size, and goes back. */
static void
go_back_from (uint64_t snapshot, uint64_t disk)
{
  static const struct workload image = { .name = "sizes", SMALL_IMAGE };
  const struct q_bitmap_action add = { .op = Q_BITMAP_ADD, .name = "all", .granularity = 4096 };
  struct instants *all = xalloc (sizeof *all);
  const uint64_t most = snapshot > disk ? snapshot : disk;
  uint8_t *data = xalloc (most);
  char id[Q_SNAPSHOT_ID_SIZE];
  unsigned before = 0, after = 0;
  struct q_error err;
  struct run run;

  check (workload_prepare (&run, &image, bugs_seed), "cannot make an image");
  workload_keep_state (&run);
  check (workload_open (&run, &err) == 0, "%s", err.text);
  change (&run, &add, 1);
  check ((snapshot < q_size (run.img) ? q_shrink (run.img, snapshot, &err)
                                      : q_resize (run.img, snapshot, &err)) == 0,
         "%s", err.text);
  memset (data, 0x5a, most);
  check (q_pwrite (run.img, data, 0, snapshot) == 0, "cannot write");
  check (q_snapshot_create (run.img, "before", id, &err) == 0, "%s", err.text);
  check ((disk < snapshot ? q_shrink (run.img, disk, &err) : q_resize (run.img, disk, &err)) == 0,
         "%s", err.text);
  check (q_pwrite (run.img, data, 0, disk) == 0, "cannot write");
  all->tap = (struct mem_tap){ .before = take_instant, .opaque = all };
  all->file = run.top;
  mem_put_tap (run.top, &all->tap);
  check (q_snapshot_apply (run.img, "before", &err) == 0, "%s", err.text);
  mem_put_tap (run.top, NULL);
  check (q_close (&run.img, &err) == 0, "%s", err.text);
  for (unsigned i = 0; i < all->n; ++i) {
    uint64_t size = try_instant (&run, &all->at[i]);

    before += size == disk;
    after += size == snapshot;
    state_free (&all->at[i].state);
    free (all->at[i].image);
  }
  check (before > 0 && after > 0 && before + after == all->n,
         "killed at %u instants: at %u the disk was as before, at %u as after", all->n, before,
         after);
  free (data);
  free (all);
  workload_free (&run);
}

void
test_bitmaps_follow_the_disk (void)
{
  go_back_from (256 << 10, 100 << 10);
  go_back_from (100 << 10, 256 << 10);
}

/* ---- bitmaps that cannot be saved --------------------------------------------------------------
 *
 * What had been written for a bitmap was leaked when a later part of saving it failed.  Each call
 * of what changes bitmaps fails in turn; then there is room again, and all is as if nothing had
 * happened: the same bitmaps, with the bits that they had, and not a cluster lost. */

#define MAX_KEPT 4

struct kept {
  int n;
  struct {
    char name[8];
    uint64_t granules;
    uint8_t *dirty;
  } bitmap[MAX_KEPT];
};

static void
keep (struct run *run, struct kept *k)
{
  struct q_bitmap_info *list;
  struct q_error err;

  k->n = q_get_bitmaps (run->img, &list, &err);
  check (k->n >= 0 && k->n <= MAX_KEPT, "%d bitmaps", k->n);
  for (int i = 0; i < k->n; ++i) {
    const uint64_t size = q_size (run->img), granularity = list[i].granularity;
    struct q_bitmap *b;

    strncpy (k->bitmap[i].name, list[i].name, sizeof k->bitmap[i].name - 1);
    k->bitmap[i].granules = (size + granularity - 1) / granularity;
    k->bitmap[i].dirty = xalloc (k->bitmap[i].granules);
    check (q_bitmap_hold (run->img, list[i].name, &b, &err) == 0, "%s", err.text);
    for (uint64_t at = 0, end; at < size; at = end) {
      bool dirty;

      q_bitmap_next (b, at, size, &dirty, &end);
      memset (k->bitmap[i].dirty + at / granularity, dirty,
              (end + granularity - 1) / granularity - at / granularity);
    }
    q_bitmap_release (b);
  }
  free (list);
}

static void
compare (const struct kept *a, const struct kept *b, const char *when)
{
  check (a->n == b->n, "%s: %d bitmaps, there were %d", when, b->n, a->n);
  for (int i = 0; i < a->n; ++i)
    check (strcmp (a->bitmap[i].name, b->bitmap[i].name) == 0 &&
               a->bitmap[i].granules == b->bitmap[i].granules &&
               memcmp (a->bitmap[i].dirty, b->bitmap[i].dirty, a->bitmap[i].granules) == 0,
           "%s: bitmap '%s' is not what it was", when, a->bitmap[i].name);
}

static void
forget (struct kept *k)
{
  for (int i = 0; i < k->n; ++i)
    free (k->bitmap[i].dirty);
  *k = (struct kept){ 0 };
}

/* Tables that are written where they are and at a new place, clusters of bits that come and go, a
 * directory with one more, one less, another size.  Any of it may fail. */
static void
work_on_bitmaps (struct run *run, struct guest *g)
{
  const struct q_bitmap_action enable = { .op = Q_BITMAP_ENABLE, .name = "one" };
  const struct q_bitmap_action disable[] = { { .op = Q_BITMAP_DISABLE, .name = "one" },
                                             { .op = Q_BITMAP_DISABLE, .name = "two" } };
  const struct q_bitmap_action clear = { .op = Q_BITMAP_CLEAR, .name = "one" };
  const struct q_bitmap_action three[] = {
    { .op = Q_BITMAP_ADD, .name = "three", .granularity = 512, .disabled = true },
    { .op = Q_BITMAP_MERGE, .name = "three", .source = "two" },
  };
  const struct q_bitmap_action swap[] = {
    { .op = Q_BITMAP_REMOVE, .name = "two" },
    { .op = Q_BITMAP_ADD, .name = "four", .granularity = 512 },
  };
  const uint64_t end = run->size - 5000;
  struct q_error err;

  q_bitmap_change (run->img, &enable, 1, &err);
  guest_write (g, end, 5000);
  q_bitmap_change (run->img, disable, 2, &err);
  q_bitmap_change (run->img, three, 2, &err);
  q_bitmap_change (run->img, &clear, 1, &err);
  q_bitmap_change (run->img, swap, 2, &err);
  guest_write (g, 0, 3000);
  q_resize (run->img, run->size + (1 << 20), &err);
  q_bitmap_change (run->img, &enable, 1, &err);
  q_bitmap_change (run->img, disable, 1, &err);
}

/* 2.2 MB: the bits of one bitmap take two clusters. */
static const struct workload two_chunks = { .name = "bitmaps",
                                            .version = 3,
                                            .cluster_bits = 9,
                                            .refcount_bits = 16,
                                            .clusters = 4400,
                                            .threads = 1,
                                            .operations = 100 };

static void
prepare (struct run *run, struct guest *g)
{
  check (workload_prepare (run, &two_chunks, bugs_seed), "cannot make an image");
  run->opts.l2_cache_size = run->opts.refcount_cache_size = 0;
  run->opts.state_dir = NULL;
  guest_init (g, run, 0, 0, run->size);
}

static void
first_bitmaps (struct run *run, struct guest *g)
{
  const struct q_bitmap_action add[] = {
    { .op = Q_BITMAP_ADD, .name = "one", .granularity = 512 },
    { .op = Q_BITMAP_ADD, .name = "two", .granularity = 512 },
  };
  const struct q_bitmap_action save = { .op = Q_BITMAP_DISABLE, .name = "one" };
  struct q_error err;

  check (workload_open (run, &err) == 0, "%s", err.text);
  change (run, add, 2);
  guest_write (g, 1000, 3000);
  change (run, &save, 1);
  flush (run);
}

static void
well_again (struct run *run, struct failing *f)
{
  f->from = f->to = UINT64_MAX;
  run->storm = 0;
}

/* The image as it was closed: sound, no cluster leaked, the bitmaps that it had. */
static void
look_at_closed (struct run *run, const struct kept *was, const char *when)
{
  struct q_check_result result;
  struct q_error err;
  struct kept now;

  check (q_open (&run->img, "top", &run->opts, &err) == 0, "%s: %s", when, err.text);
  check (q_check (run->img, 0, &result, NULL, NULL, &err) == 0, "%s: %s", when, err.text);
  check (result.corruptions == 0, "%s: %llu corruptions", when,
         (unsigned long long)result.corruptions);
  keep (run, &now);
  compare (was, &now, when);
  forget (&now);
  check (q_close (&run->img, &err) == 0, "%s: %s", when, err.text);
  run->opts.read_only = true;
  check (q_open (&run->img, "top", &run->opts, &err) == 0 &&
             q_check (run->img, 0, &result, NULL, NULL, &err) == 0,
         "%s: %s", when, err.text);
  check (result.corruptions == 0 && result.leaks == 0, "%s: %llu corruptions, %llu clusters leaked",
         when, (unsigned long long)result.corruptions, (unsigned long long)result.leaks);
  q_close (&run->img, NULL);
  run->opts.read_only = false;
}

#define CHANGES (1u << MEM_WRITE | 1u << MEM_ZERO | 1u << MEM_TRUNCATE | 1u << MEM_ALLOCATE)

void
test_bitmaps_that_cannot_be_saved (void)
{
  for (uint64_t at = 1, calls = 1; at <= calls; ++at) {
    struct kept was = { 0 };
    struct failing f;
    struct q_error err;
    struct guest g;
    struct run run;
    char when[64];

    snprintf (when, sizeof when, "call %llu failed for want of room", (unsigned long long)at);
    prepare (&run, &g);
    first_bitmaps (&run, &g);
    fail_calls (&f, &run, CHANGES, at, at, ENOSPC);
    work_on_bitmaps (&run, &g);
    calls = f.calls;
    well_again (&run, &f);
    check (!run.failure[0], "%s: %s", when, run.failure);
    check (!q_read_only (run.img), "%s: and the image is read-only", when);
    keep (&run, &was);
    check (q_close (&run.img, &err) == 0, "%s: %s", when, err.text);
    look_at_closed (&run, &was, when);
    forget (&was);
    guest_free (&g);
    workload_free (&run);
  }
}

/* There is no room when the image is closed: with a state file the bitmaps are there when it is
 * opened next, and only what a full disk cannot take back is leaked. */
void
test_bitmaps_when_closing_fails (void)
{
  for (uint64_t at = 1, calls = 1; at <= calls; ++at) {
    struct kept was = { 0 }, now = { 0 };
    struct failing f;
    struct q_error err;
    struct guest g;
    struct run run;
    char when[64];
    int r;

    snprintf (when, sizeof when, "closing, from call %llu on without room", (unsigned long long)at);
    prepare (&run, &g);
    workload_keep_state (&run);
    first_bitmaps (&run, &g);
    work_on_bitmaps (&run, &g);
    guest_write (&g, 9000, 1000);
    keep (&run, &was);
    fail_calls (&f, &run, CHANGES, at, UINT64_MAX, ENOSPC);
    r = q_close (&run.img, &err);
    calls = f.calls;
    well_again (&run, &f);
    check (r == 0 || r == -ENOSPC, "%s: %s", when, strerror (-r));
    check (q_open (&run.img, "top", &run.opts, &err) == 0, "%s: %s", when, err.text);
    keep (&run, &now);
    compare (&was, &now, when);
    check_image (&run);
    check (workload_close (&run, &err) == 0, "%s: %s", when, err.text);
    forget (&was);
    forget (&now);
    guest_free (&g);
    workload_free (&run);
  }
}
