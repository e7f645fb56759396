/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Our own bugs: dirty bitmaps that could not be saved, or that were not there when the disk was.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bugs.h"
#include "image.h"
#include "statefile.h"

static void
change (struct run *run, const struct q_bitmap_action *a, unsigned n)
{
  struct q_error err;

  check (q_bitmap_change (run->img, a, n, &err) == 0, "%s", err.text);
}

/* ---- a disk that goes back, and a kill before the bitmaps have --------------------------------
 *
 * Going back to a snapshot changes all of the disk, and with it the bitmaps that survive a kill.
 * It may change the size of the disk too, which the bitmaps get a moment later.  Whoever takes up
 * what is left in between must take all of it for dirty.
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

/* What a process would leave that was killed now. */
static void
keep_instant (struct instant *i, const struct mem_file *file)
{
  i->size = file->size;
  i->image = xalloc (i->size);
  memcpy (i->image, file->data, i->size);
  state_save (&i->state);
}

static void
forget_instant (struct instant *i)
{
  state_free (&i->state);
  free (i->image);
}

/* That process is followed by another one. */
static void
open_instant (struct run *run, const struct instant *i)
{
  struct q_error err;

  mem_set (mem_add (&run->store, "cut"), i->image, i->size);
  state_restore (&i->state);
  check (q_open (&run->img, "cut", &run->opts, &err) == 0, "%s", err.text);
}

static int
take_instant (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct instants *all = opaque;

  (void)partial;
  if (call->kind == MEM_READ || call->kind == MEM_SIZE || call->kind == MEM_SYNCED)
    return 0;
  check (all->n < MAX_INSTANTS, "that makes more calls than this test has room for");
  keep_instant (&all->at[all->n++], all->file);
  return 0;
}

/* From here on, before every call that changes the image. */
static struct instants *
take_instants (struct run *run)
{
  struct instants *all = xalloc (sizeof *all);

  all->tap = (struct mem_tap){ .before = take_instant, .opaque = all };
  all->file = run->top;
  mem_put_tap (run->top, &all->tap);
  return all;
}

/* An image with a state file, open. */
static void
open_with_state (struct run *run, const struct workload *w)
{
  struct q_error err;

  check (workload_prepare (run, w, bugs_seed), "cannot make an image");
  workload_keep_state (run);
  check (workload_open (run, &err) == 0, "%s", err.text);
}

#define SNAPSHOT_BYTE 0x5a
#define DISK_BYTE     0xa5

/* Bitmap "all" has all of the disk. */
static void
check_all_dirty (struct run *run, const char *when)
{
  const uint64_t size = q_size (run->img);
  struct q_bitmap *b;
  struct q_error err;
  uint64_t end;
  bool dirty;

  check (q_bitmap_hold (run->img, "all", &b, &err) == 0, "%s", err.text);
  q_bitmap_next (b, 0, size, &dirty, &end);
  check (dirty && end == size, "%s: of %llu bytes %llu are %s in a bitmap that should have all",
         when, (unsigned long long)size, (unsigned long long)end, dirty ? "dirty" : "clean");
  q_bitmap_release (b);
}

/* Whether the disk had gone back by then, to a snapshot of so many bytes.  CLEARED: it is only
 * then that the bitmap has all of it. */
static bool
try_instant (struct run *run, const struct instant *i, uint64_t snapshot, uint64_t disk,
             bool cleared)
{
  struct q_error err;
  uint8_t byte;
  bool back;

  open_instant (run, i);
  check (q_pread (run->img, &byte, 0, 1) == 0, "cannot read");
  back = byte == SNAPSHOT_BYTE;
  check (q_size (run->img) == (back ? snapshot : disk), "the disk has %llu bytes",
         (unsigned long long)q_size (run->img));
  if (back || !cleared)
    check_all_dirty (run, back ? "killed when the disk had gone back"
                               : "killed before the disk went back");
  check_image (run);
  check (q_close (&run->img, &err) == 0, "%s", err.text);
  return back;
}

/* Makes a snapshot of a disk of so many bytes, writes to it, perhaps in another size, and goes
 * back.  CLEARED: what was written until then has been saved. */
static void
go_back_from (uint64_t snapshot, uint64_t disk, bool cleared)
{
  static const struct workload image = { .name = "sizes", SMALL_IMAGE };
  const struct q_bitmap_action add = { .op = Q_BITMAP_ADD, .name = "all", .granularity = 4096 };
  const struct q_bitmap_action clear = { .op = Q_BITMAP_CLEAR, .name = "all" };
  const uint64_t most = snapshot > disk ? snapshot : disk;
  uint8_t *data = xalloc (most);
  char id[Q_SNAPSHOT_ID_SIZE];
  unsigned after = 0;
  struct instants *all;
  struct q_error err;
  struct run run;

  open_with_state (&run, &image);
  change (&run, &add, 1);
  check ((snapshot < q_size (run.img) ? q_shrink (run.img, snapshot, &err)
                                      : q_resize (run.img, snapshot, &err)) == 0,
         "%s", err.text);
  memset (data, SNAPSHOT_BYTE, most);
  check (q_pwrite (run.img, data, 0, snapshot) == 0, "cannot write");
  check (q_snapshot_create (run.img, "before", id, &err) == 0, "%s", err.text);
  check ((disk < snapshot ? q_shrink (run.img, disk, &err) : q_resize (run.img, disk, &err)) == 0,
         "%s", err.text);
  memset (data, DISK_BYTE, most);
  check (q_pwrite (run.img, data, 0, disk) == 0, "cannot write");
  if (cleared)
    change (&run, &clear, 1);
  all = take_instants (&run);
  check (q_snapshot_apply (run.img, "before", &err) == 0, "%s", err.text);
  mem_put_tap (run.top, NULL);
  check_all_dirty (&run, "the disk has gone back");
  check (q_close (&run.img, &err) == 0, "%s", err.text);
  for (unsigned i = 0; i < all->n; ++i) {
    after += try_instant (&run, &all->at[i], snapshot, disk, cleared);
    forget_instant (&all->at[i]);
  }
  check (after > 0 && after < all->n, "killed at %u instants: at %u the disk had gone back", all->n,
         after);
  free (data);
  free (all);
  workload_free (&run);
}

void
test_bitmaps_follow_the_disk (void)
{
  for (int cleared = 0; cleared < 2; ++cleared) {
    go_back_from (256 << 10, 100 << 10, cleared);
    go_back_from (100 << 10, 256 << 10, cleared);
    go_back_from (256 << 10, 256 << 10, cleared);
  }
}

/* ---- one that takes another one's place, and a kill ---------------------------------------------
 *
 * Killed when a bitmap was one of another granularity than the one of its name that the directory
 * on disk still had, its bits were saved there as if they were that one's. */

struct found {
  uint64_t granularity, dirty; /* so much from the beginning, nothing behind that */
};

static struct found
find (struct run *run, const char *name)
{
  const uint64_t size = q_size (run->img);
  struct found found = { 0 };
  struct q_bitmap_info *list;
  struct q_bitmap *b;
  struct q_error err;
  uint64_t end;
  bool dirty;
  int n = q_get_bitmaps (run->img, &list, &err);

  for (int i = 0; i < n; ++i)
    if (strcmp (list[i].name, name) == 0)
      found.granularity = list[i].granularity;
  free (list);
  check (q_bitmap_hold (run->img, name, &b, &err) == 0, "%s", err.text);
  q_bitmap_next (b, 0, size, &dirty, &end);
  if (dirty) {
    found.dirty = end;
    if (end < size)
      q_bitmap_next (b, end, size, &dirty, &end);
  }
  check (end == size, "bitmap '%s' is dirty in places", name);
  q_bitmap_release (b);
  return found;
}

/* The shared memory of the calling thread: there is no room for reservation number NO_ROOM_AT. */
static _Thread_local unsigned no_room_at;

int __real_fallocate64 (int fd, int mode, off_t offset, off_t len);
int __wrap_fallocate64 (int fd, int mode, off_t offset, off_t len);

int
__wrap_fallocate64 (int fd, int mode, off_t offset, off_t len)
{
  if (mode != 0 || no_room_at == 0 || --no_room_at > 0)
    return __real_fallocate64 (fd, mode, offset, len);
  errno = ENOSPC;
  return -1;
}

/* The disk is written from its beginning, and another bitmap takes the place of "one": what a
 * killed process would leave at each instant of that, and after it. */
static struct instants *
replace_one (struct run *run)
{
  static const struct workload image = { .name = "replaced", SMALL_IMAGE };
  const struct q_bitmap_action add[] = {
    { .op = Q_BITMAP_ADD, .name = "one", .granularity = 4096 },
    { .op = Q_BITMAP_ADD, .name = "two", .granularity = 4096 },
  };
  const struct q_bitmap_action replace[] = {
    { .op = Q_BITMAP_REMOVE, .name = "one" },
    { .op = Q_BITMAP_ADD, .name = "one", .granularity = 16384 },
    { .op = Q_BITMAP_MERGE, .name = "one", .source = "two" },
  };
  const unsigned no_room = no_room_at;
  struct instants *all;
  struct guest g;

  no_room_at = 0;
  open_with_state (run, &image);
  guest_init (&g, run, 0, 0, run->size);
  change (run, add, 2);
  guest_write (&g, 0, 128 << 10);
  all = take_instants (run);
  no_room_at = no_room;
  change (run, replace, 3);
  mem_put_tap (run->top, NULL);
  keep_instant (&all->at[all->n++], run->top);
  guest_free (&g);
  return all;
}

void
test_bitmaps_replaced (void)
{
  unsigned before = 0, after = 0;
  struct instants *all;
  struct q_error err;
  struct run run;

  all = replace_one (&run);
  check (q_close (&run.img, &err) == 0, "%s", err.text);
  for (unsigned i = 0; i < all->n; ++i) {
    struct found then, later;

    open_instant (&run, &all->at[i]);
    then = find (&run, "one");
    check (q_close (&run.img, &err) == 0, "%s", err.text);
    check (q_open (&run.img, "cut", &run.opts, &err) == 0, "%s", err.text);
    later = find (&run, "one");
    check_image (&run);
    check (q_close (&run.img, &err) == 0, "%s", err.text);
    check (then.dirty == 128 << 10 && later.dirty == then.dirty &&
               later.granularity == then.granularity,
           "killed at call %u of replacing a bitmap: %llu bytes in granules of %llu are dirty, and "
           "when it is opened again %llu in granules of %llu",
           i, (unsigned long long)then.dirty, (unsigned long long)then.granularity,
           (unsigned long long)later.dirty, (unsigned long long)later.granularity);
    before += then.granularity == 4096;
    after += then.granularity == 16384;
    forget_instant (&all->at[i]);
  }
  check (before > 0 && after > 0 && before + after == all->n,
         "killed at %u instants: at %u the bitmap was the old one, at %u the new one", all->n,
         before, after);
  free (all);
  workload_free (&run);
}

/* If there is no room for something in shared memory the bitmap is what it was, or it is there and
 * is not believed: nobody takes it for one that has not been. */
void
test_bitmaps_replaced_without_room (void)
{
  unsigned lost = 0, at = 0;
  bool reached;

  do {
    struct instants *all;
    struct q_error err;
    struct run run;

    no_room_at = ++at;
    all = replace_one (&run);
    reached = no_room_at == 0;
    no_room_at = 0;
    check (q_close (&run.img, &err) == 0, "%s", err.text);
    for (unsigned i = 0; i < all->n; ++i) {
      struct q_bitmap_info *list;
      bool there = false, believed = false;
      int n;

      open_instant (&run, &all->at[i]);
      n = q_get_bitmaps (run.img, &list, &err);
      for (int k = 0; k < n; ++k)
        if (strcmp (list[k].name, "one") == 0) {
          there = true;
          believed = !list[k].inconsistent;
        }
      free (list);
      check (there && (!believed || find (&run, "one").dirty == 128 << 10),
             "no room for reservation %u, killed at call %u of replacing a bitmap: it %s", at, i,
             there ? "is not what it was" : "is not there");
      lost += !believed;
      check_image (&run);
      check (q_close (&run.img, &err) == 0, "%s", err.text);
      forget_instant (&all->at[i]);
    }
    free (all);
    workload_free (&run);
  } while (reached);
  check (at > 2 && lost > 0, "there is room for all %u reservations: the test is wrong", at - 1);
}

/* Two of one name, which should not be: a kill does not take away the second. */
void
test_bitmaps_of_one_name (void)
{
  static const struct workload image = { .name = "names", SMALL_IMAGE };
  const struct q_bitmap_action add[] = {
    { .op = Q_BITMAP_ADD, .name = "twin1", .granularity = 4096 },
    { .op = Q_BITMAP_ADD, .name = "twin2", .granularity = 4096, .disabled = true },
  };
  struct q_bitmap_info *list;
  struct instant killed;
  struct q_error err;
  struct guest g;
  struct run run;
  uint8_t *at;
  int n;

  open_with_state (&run, &image);
  change (&run, add, 2);
  check (q_close (&run.img, &err) == 0, "%s", err.text);
  while ((at = memmem (run.top->data, run.top->size, "twin2", 5)) != NULL)
    at[4] = '1';
  check (workload_open (&run, &err) == 0, "%s", err.text);
  guest_init (&g, &run, 0, 0, run.size);
  guest_write (&g, 0, 128 << 10);
  keep_instant (&killed, run.top);
  check (q_close (&run.img, &err) == 0, "%s", err.text);
  open_instant (&run, &killed);
  check (find (&run, "twin1").dirty == 128 << 10, "after a kill the bitmap is not what it was");
  n = q_get_bitmaps (run.img, &list, &err);
  check (n == 2 && strcmp (list[1].name, "twin1") == 0, "after a kill there are %d bitmaps, not 2",
         n);
  free (list);
  check (q_close (&run.img, &err) == 0, "%s", err.text);
  forget_instant (&killed);
  guest_free (&g);
  workload_free (&run);
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

/* In its header two sectors meet where the bitmaps extension can be. */
static const struct workload two_sectors = { .name = "sectors",
                                             .version = 3,
                                             .cluster_bits = 11,
                                             .refcount_bits = 16,
                                             .clusters = 1100,
                                             .threads = 1,
                                             .operations = 100 };

static void
prepare (struct run *run, struct guest *g, const struct workload *w)
{
  check (workload_prepare (run, w, bugs_seed), "cannot make an image");
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
    prepare (&run, &g, &two_chunks);
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

/* ---- where two sectors meet --------------------------------------------------------------------
 *
 * An extension that lies in two sectors is written while its autoclear bit is off.  When there was
 * no room to set the bit again the image went on as if nothing had happened, and all bitmaps were
 * gone when it was opened next. */

/* Puts an extension that nobody knows, of LEN bytes, behind those there are. */
static void
add_unknown (struct mem_file *f, uint32_t len)
{
  const uint32_t head[2] = { htobe32 (0x756e6b6e), htobe32 (len) };
  uint32_t at, e[2];

  memcpy (&at, f->data + 100, sizeof at);
  for (at = be32toh (at);; at += 8 + (be32toh (e[1]) + 7) / 8 * 8) {
    memcpy (e, f->data + at, sizeof e);
    if (e[0] == 0)
      break;
  }
  memcpy (f->data + at, head, sizeof head);
  memset (f->data + at + 8, 0, len + 8);
}

/* Opens the image with an unknown extension of LEN bytes, and bitmaps.  Where theirs is. */
static uint64_t
open_behind (struct run *run, struct guest *g, uint32_t len)
{
  prepare (run, g, &two_sectors);
  add_unknown (run->top, len);
  first_bitmaps (run, g);
  check (q_extension_find (run->img, Q_EXT_BITMAPS) != NULL, "there is no bitmaps extension");
  return q_extension_find (run->img, Q_EXT_BITMAPS)->offset;
}

/* If the image became read-only: its bitmaps are there as they were saved before, or none is. */
static void
look_at_read_only (struct run *run, const char *when)
{
  struct q_check_result result;
  struct q_error err;
  struct kept now;

  q_close (&run->img, NULL);
  run->opts.read_only = true;
  check (q_open (&run->img, "top", &run->opts, &err) == 0 &&
             q_check (run->img, 0, &result, NULL, NULL, &err) == 0,
         "%s: %s", when, err.text);
  check (result.corruptions == 0, "%s: %llu corruptions", when,
         (unsigned long long)result.corruptions);
  keep (run, &now);
  check (now.n == 0, "%s: read-only, and there are %d bitmaps", when, now.n);
  forget (&now);
  q_close (&run->img, NULL);
}

void
test_bitmaps_astride_sectors (void)
{
  unsigned read_only = 0;
  uint64_t offset;
  struct guest g;
  struct run run;

  offset = open_behind (&run, &g, 8);
  q_close (&run.img, NULL);
  guest_free (&g);
  workload_free (&run);
  for (uint64_t at = 1, calls = 1; at <= calls; ++at) {
    struct kept was = { 0 };
    struct failing f;
    struct q_error err;
    char when[64];

    snprintf (when, sizeof when, "astride, call %llu failed for want of room",
              (unsigned long long)at);
    check (open_behind (&run, &g, 8 + (uint32_t)(SECTOR - 16 - offset % SECTOR + SECTOR) % SECTOR) %
                   SECTOR ==
               SECTOR - 16,
           "the extension is not where two sectors meet: the test is wrong");
    fail_calls (&f, &run, CHANGES, at, at, ENOSPC);
    run.may_stick = true;
    work_on_bitmaps (&run, &g);
    calls = f.calls;
    well_again (&run, &f);
    check (!run.failure[0], "%s: %s", when, run.failure);
    if (q_read_only (run.img)) {
      ++read_only;
      look_at_read_only (&run, when);
    } else {
      keep (&run, &was);
      check (q_close (&run.img, &err) == 0, "%s: %s", when, err.text);
      look_at_closed (&run, &was, when);
      forget (&was);
    }
    guest_free (&g);
    workload_free (&run);
  }
  check (read_only > 0, "the autoclear bit could always be set again: the test is wrong");
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
    prepare (&run, &g, &two_chunks);
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
