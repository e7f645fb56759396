/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Everything at once on images in use: writers, who asks what they are like, snapshots made,
 * deleted, gone back to and looked at, bitmaps changed and read, disks that grow and shrink, two
 * images that change together and merge from each other.  For ThreadSanitizer above all; but each
 * thread also knows something that must be true.  SEED chooses what they do.
 */

#include <pthread.h>
#include <unistd.h>

#include "unit.h"

#define MiB   (1ull << 20)
#define BLOCK 4096u
#define SPAN  (2 * MiB) /* of each writer; nothing below 2 * SPAN is ever cut off */

enum { IMAGES = 2, ROUNDS = 600 };

static struct q_image *img[IMAGES];
static char path[IMAGES][64];
static uint64_t base_seed = 1;
static _Atomic bool stop;

struct actor {
  unsigned index; /* which image it likes best; which part of it */
  uint64_t seed;
  pthread_t thread;
};

static unsigned
below (struct actor *a, unsigned n)
{
  return (unsigned)random_below (&a->seed, n);
}

/* One of these, or 0. */
#define assert_one_of(r, ...)                                                                      \
  do {                                                                                             \
    const int allowed_[] = { 0, __VA_ARGS__ };                                                     \
    bool found_ = false;                                                                           \
    int r_ = (r);                                                                                  \
    for (size_t i_ = 0; i_ < lengthof (allowed_); ++i_)                                            \
      found_ = found_ || allowed_[i_] == r_;                                                       \
    if (!found_)                                                                                   \
      fail_msg ("%s: %s", #r, strerror (-r_));                                                     \
  } while (0)

/* Each block that a writer writes has one byte all over, whoever reads it; two numbers, of its
 * first and its last block, are written one after the other. */
static void *
write_blocks (void *opaque)
{
  struct actor *a = opaque;
  struct q_image *i = img[a->index % IMAGES];
  uint64_t base = a->index / IMAGES * SPAN;
  uint8_t buf[BLOCK];

  while (!stop) {
    uint64_t at = base + below (a, SPAN / BLOCK) * (uint64_t)BLOCK;

    switch (below (a, 8)) {
    case 0:
      assert_int_equal (q_discard (i, at, BLOCK * 16 < base + SPAN - at ? BLOCK * 16 : BLOCK), 0);
      break;
    case 1:
      assert_int_equal (q_zero (i, at, BLOCK, Q_ZERO_UNMAP), 0);
      break;
    case 2:
      assert_int_equal (q_pread (i, buf, at, BLOCK), 0);
      for (unsigned k = 1; k < BLOCK; ++k)
        if (buf[k] != buf[0])
          fail_msg ("a block is torn at %u", k);
      break;
    default:
      memset (buf, 1 + (int)below (a, 255), BLOCK);
      assert_int_equal (q_pwrite (i, buf, at, BLOCK), 0);
    }
    if (below (a, 4) == 0)
      usleep (200); /* there are others */
  }
  return NULL;
}

static void *
flush_and_map (void *opaque)
{
  struct actor *a = opaque;

  while (!stop) {
    struct q_image *i = img[below (a, IMAGES)];
    struct q_extent e[8];
    q_pin_t pin;

    assert_int_equal (q_flush (i), 0);
    pin = q_pin ();
    assert_one_of (q_map (i, 0, 2 * SPAN, e, lengthof (e), 0) > 0 ? 0 : -EIO, 0);
    q_unpin (pin);
    usleep (500);
  }
  return NULL;
}

static void
look_at_bitmap (struct q_image *i, const char *name)
{
  struct q_bitmap *b;
  struct q_error err;
  int r = q_bitmap_hold (i, name, &b, &err);

  assert_one_of (r, -ENOENT);
  if (r < 0)
    return;
  for (uint64_t at = 0, end; at < 16 * MiB; at = end) {
    bool dirty;

    q_bitmap_next (b, at, 16 * MiB, &dirty, &end);
    assert_true (end > at);
  }
  assert_true (q_bitmap_count (b) <= 64 * MiB);
  (void)q_bitmap_enabled (b);
  q_bitmap_release (b);
}

static void *
ask (void *opaque)
{
  struct actor *a = opaque;

  while (!stop) {
    struct q_image *i = img[below (a, IMAGES)];
    struct q_snapshot_info *s;
    struct q_bitmap_info *b;
    struct q_image_info info;
    struct q_error err;
    int n = q_get_snapshots (i, &s), m;

    assert_true (n >= 0);
    for (int k = 0; k < n; ++k) {
      assert_true (s[k].name[0] == 's' || s[k].name[0] == 't');
      for (int l = 0; l < k; ++l)
        assert_string_not_equal (s[k].id, s[l].id);
    }
    free (s);
    m = q_get_bitmaps (i, &b, &err);
    assert_true (m >= 0);
    if (m > 0)
      look_at_bitmap (i, b[below (a, (unsigned)m)].name);
    free (b);
    q_get_info (i, &info);
    assert_true (info.virtual_size >= 2 * SPAN && info.highest_offset <= q_highest_offset (i));
    assert_false (q_read_only (i));
    assert_true (q_size (i) >= 2 * SPAN);
    (void)q_can_fast_zero (i);
    usleep (500);
  }
  return NULL;
}

/* Opens a snapshot as a server exports it, sees that nothing in it changes, and that it cannot be
 * deleted meanwhile. */
static void
look_at_snapshot (struct actor *a, unsigned index, const char *id)
{
  static const size_t len = 2 * SPAN;
  uint8_t *first = malloc (len), *again = malloc (len);
  struct q_open_options o;
  struct q_image *s;
  struct q_error err;
  int r;

  q_open_options_init (&o);
  o.read_only = true;
  o.lock = Q_LOCK_OFF;
  o.snapshot = id;
  r = q_open (&s, path[index], &o, &err);
  if (r < 0 && r != -ENOENT)
    fail_msg ("%s", err.text);
  if (r == 0) {
    assert_int_equal (q_pread (s, first, 0, len), 0);
    for (unsigned n = below (a, 4); n > 0; --n) {
      usleep (1000);
      assert_int_equal (q_snapshot_delete (img[index], id, &err), -EBUSY);
      assert_contains (err.text, "is in use");
      assert_int_equal (q_pread (s, again, 0, len), 0);
      assert_memory_equal (first, again, len);
    }
    assert_int_equal (q_close (&s, &err), 0);
  }
  free (first);
  free (again);
}

static void *
look_at_snapshots (void *opaque)
{
  struct actor *a = opaque;

  while (!stop) {
    unsigned index = below (a, IMAGES);
    struct q_snapshot_info *s;
    int n = q_get_snapshots (img[index], &s);

    assert_true (n >= 0);
    if (n > 0) {
      const char *id = s[below (a, (unsigned)n)].id;

      look_at_snapshot (a, index, id);
    } else
      usleep (1000);
    free (s);
  }
  return NULL;
}

static void
change_snapshots (struct actor *a, struct q_image *i)
{
  char id[Q_SNAPSHOT_ID_SIZE], name[16];
  struct q_error err;

  snprintf (name, sizeof name, "s%u", below (a, 4));
  switch (below (a, 4)) {
  case 0:
    assert_int_equal (q_snapshot_create (i, name, id, &err), 0);
    break;
  case 1:
    assert_one_of (q_snapshot_apply (i, name, &err), -ENOENT);
    break;
  default:
    assert_one_of (q_snapshot_delete (i, name, &err), -ENOENT, -EBUSY);
  }
}

static void
change_size (struct actor *a, struct q_image *i)
{
  uint64_t size = 2 * SPAN + below (a, 4 * MiB / 512) * 512ull;
  struct q_error err;

  if (below (a, 2))
    assert_one_of (q_resize (i, size, &err), -ENOTSUP, -EAGAIN);
  else
    assert_one_of (q_shrink (i, size, &err), -EINVAL);
}

static void
change_bitmaps (struct actor *a, unsigned index)
{
  static const char *const names[] = { "one", "two", "three" };
  struct q_bitmap_action action[3];
  struct q_error err;

  for (size_t k = 0; k < lengthof (action); ++k)
    action[k] = (struct q_bitmap_action){
      .op = (enum q_bitmap_op)below (a, 6),
      .name = names[below (a, 3)],
      .granularity = 512u << below (a, 6),
      .disabled = below (a, 2),
      .source = names[below (a, 3)],
      .source_image = below (a, 2) ? img[(index + 1) % IMAGES] : NULL,
    };
  assert_one_of (q_bitmap_change (img[index], action, 1 + below (a, 3), &err), -ENOENT, -EEXIST,
                 -EBUSY, -EINVAL);
}

/* A checkpoint of both: bitmaps, and snapshots of one or both. */
static void
change_together (struct actor *a)
{
  struct q_change c[6];
  struct q_error err;
  unsigned n = 0;

  for (unsigned k = 0; k < IMAGES; ++k) {
    struct q_image *i = img[(a->index + k) % IMAGES];

    c[n++] = (struct q_change){ .img = i, .bitmap = { .op = Q_BITMAP_CLEAR, .name = "one" } };
    if (below (a, 2))
      c[n++] = (struct q_change){ .img = i, .snapshot = "t" };
    if (below (a, 2))
      c[n++] = (struct q_change){ .img = i,
                                  .bitmap = { .op = Q_BITMAP_MERGE,
                                              .name = "one",
                                              .source = "two",
                                              .source_image = img[below (a, IMAGES)] } };
  }
  assert_one_of (q_change (c, n, &err), -ENOENT, -EBUSY, -EINVAL);
  if (below (a, 2))
    for (unsigned k = 0; k < IMAGES; ++k)
      assert_one_of (q_snapshot_delete (img[k], "t", &err), -ENOENT, -EBUSY);
}

static void *
change (void *opaque)
{
  struct actor *a = opaque;

  for (unsigned n = 0; n < ROUNDS; ++n)
    switch (below (a, 5)) {
    case 0:
      change_size (a, img[a->index % IMAGES]);
      break;
    case 1:
      change_together (a);
      break;
    case 2:
    case 3:
      change_bitmaps (a, a->index % IMAGES);
      break;
    default:
      change_snapshots (a, img[a->index % IMAGES]);
    }
  return NULL;
}

static void
make_images (struct fixture *f, const char *dir)
{
  for (unsigned k = 0; k < IMAGES; ++k) {
    struct q_create_options o;

    snprintf (path[k], sizeof path[k], "%s/%u.qcow2", dir, k);
    q_create_options_init (&o);
    o.cluster_bits = k ? 16 : 12;
    o.extended_l2 = k;
    if (q_create (path[k], 2 * SPAN + 100 * 512, &o, &f->err) < 0 ||
        q_open (&img[k], path[k], &f->opts, &f->err) < 0)
      fail_msg ("%s", f->err.text);
  }
}

static void
close_images (void)
{
  for (unsigned k = 0; k < IMAGES; ++k) {
    struct q_check_result result;
    struct q_open_options o;
    struct q_error err;

    if (q_close (&img[k], &err) < 0)
      fail_msg ("%s", err.text);
    q_open_options_init (&o);
    o.read_only = true;
    assert_int_equal (q_open (&img[k], path[k], &o, &err), 0);
    assert_int_equal (q_check (img[k], 0, &result, NULL, NULL, &err), 0);
    assert_int_equal (result.corruptions + result.leaks + result.check_errors, 0);
    assert_int_equal (q_close (&img[k], &err), 0);
    unlink (path[k]);
  }
}

static void
test_all_at_once (void **state)
{
  static void *(*const part[]) (
      void *) = { write_blocks, write_blocks,      write_blocks, write_blocks, flush_and_map, ask,
                  ask,          look_at_snapshots, change,       change,       change };
  struct actor a[lengthof (part)];
  const size_t first_change = 8;
  char dir[] = "/dev/shm/nbdcow-live-XXXXXX";
  struct fixture f;

  (void)state;
  unit_init (&f);
  f.opts.opener = NULL;
  f.opts.discard = true;
  assert_non_null (mkdtemp (dir));
  f.opts.state_dir = dir;
  make_images (&f, dir);
  for (size_t k = 0; k < lengthof (part); ++k) {
    a[k] = (struct actor){ .index = (unsigned)k, .seed = random_seed (base_seed * 100 + k) };
    assert_int_equal (pthread_create (&a[k].thread, NULL, part[k], &a[k]), 0);
  }
  for (size_t k = lengthof (part); k-- > 0;) {
    stop = stop || k < first_change;
    pthread_join (a[k].thread, NULL);
  }
  close_images ();
  rmdir (dir);
  unit_done (&f);
}

/* A file whose snapshot is shown: by whoever opened it, before or after the one who writes. */
static void
test_shown (void **state)
{
  char dir[] = "/dev/shm/nbdcow-shown-XXXXXX", id[Q_SNAPSHOT_ID_SIZE];
  struct q_image *early, *late;
  struct q_open_options o;
  struct fixture f;

  (void)state;
  unit_init (&f);
  f.opts.opener = NULL;
  assert_non_null (mkdtemp (dir));
  make_images (&f, dir);
  unit_writes (img[0], 0, 1000, 1);
  assert_int_equal (q_snapshot_create (img[0], "same", id, &f.err), 0);
  unit_writes (img[0], 0, 1000, 2);
  assert_int_equal (q_snapshot_create (img[0], "same", id, &f.err), 0);
  unit_writes (img[0], 0, 1000, 3);
  unit_close (img[0]);
  q_open_options_init (&o);
  o.read_only = true;
  o.lock = Q_LOCK_OFF;
  o.snapshot = "1";
  assert_int_equal (q_open (&early, path[0], &o, &f.err), 0);
  assert_int_equal (q_open (&img[0], path[0], &f.opts, &f.err), 0);
  assert_int_equal (q_open (&late, path[0], &o, &f.err), 0);

  /* Of two with one name the first is meant; another one is nobody's. */
  assert_int_equal (q_snapshot_delete (img[0], "same", &f.err), -EBUSY);
  assert_contains (f.err.text, "snapshot 'same' is in use");
  assert_int_equal (q_snapshot_delete (img[0], "2", &f.err), 0);
  assert_int_equal (q_snapshot_delete (img[0], "1", &f.err), -EBUSY);
  assert_int_equal (q_snapshot_apply (img[0], "1", &f.err), 0);
  unit_reads (img[0], 0, 1000, 1);
  unit_writes (img[0], 0, 1000, 4);
  unit_close (early);
  assert_int_equal (q_snapshot_delete (img[0], "1", &f.err), -EBUSY);
  unit_reads (late, 0, 1000, 1);
  unit_close (late);
  assert_int_equal (q_snapshot_delete (img[0], "1", &f.err), 0);
  assert_int_equal (q_open (&late, path[0], &o, &f.err), -ENOENT);
  close_images ();
  rmdir (dir);
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_shown),
    cmocka_unit_test (test_all_at_once),
  };
  const char *seed = getenv ("SEED");

  if (seed)
    base_seed = strtoull (seed, NULL, 0);
  printf ("SEED=%llu\n", (unsigned long long)base_seed);
  alarm (240); /* under a sanitizer, on a busy machine */
  return cmocka_run_group_tests (tests, NULL, NULL);
}
