/* SPDX-License-Identifier: BSD-3-Clause
 *
 * L2 entries of 8 and 16 bytes: what readers see while several threads write, and what is left half
 * way through.
 */

#include "unit.h"

#include <pthread.h>
#include <stdatomic.h>

#include "entry.h"

#define CHANGES 20000u
#define WRITERS 3u

static struct q_table *
new_table (struct q_image *img, bool wide)
{
  struct q_table *t;

  memset (img, 0, sizeof *img);
  img->cluster_bits = 14;
  img->incompatible = wide ? Q_INCOMPAT_EXTL2 : 0;
  pthread_mutex_init (&img->dirty_lock, NULL);
  t = q_table_new (img, Q_TABLE_L2, 0, 1u << 14, 1u << 14);
  assert_non_null (t);
  assert_int_equal (t->wide, wide);
  return t;
}

static void
test_narrow (void **state)
{
  struct q_image img;
  struct q_table *t = new_table (&img, false);
  struct q_l2_entry e = { .descriptor = Q_COPIED | 0x120000 };

  (void)state;
  q_l2_entry_set (t, 3, e);
  assert_true (q_l2_entry_equal (q_l2_entry_get (t, 3), e));
  assert_int_equal (q_entry_get (t, 3), e.descriptor);
  assert_int_equal (q_entry_get (t, 4), 0);
  q_l2_mark_dirty (t, 1024, 1024);
  assert_int_equal (atomic_load (&t->dirty[0]), 4 | 8); /* the third and fourth of 4 KiB */
  q_table_free (t);
}

static void
test_wide (void **state)
{
  struct q_image img;
  struct q_table *t = new_table (&img, true);
  struct q_l2_entry e = { Q_COPIED | 0x120000, 0xf0000000f };
  uint8_t copy[32];
  be64 word;

  (void)state;
  q_l2_entry_set (t, 3, e);
  assert_true (q_l2_entry_equal (q_l2_entry_get (t, 3), e));
  assert_int_equal (q_entry_get (t, 6), e.descriptor);
  assert_int_equal (q_entry_get (t, 7), e.bitmap);
  q_l2_mark_dirty (t, 512, 256);
  assert_int_equal (atomic_load (&t->dirty[0]), 4);
  q_entries_copy (t, 3 * 16 - 16, 32, copy);
  memcpy (&word, copy + 16, 8);
  assert_int_equal (get64 (word), e.descriptor);
  memcpy (&word, copy + 24, 8);
  assert_int_equal (get64 (word), e.bitmap);
  memcpy (&word, copy, 8);
  assert_int_equal (get64 (word), 0);
  q_table_free (t);
}

/* ---- many at once ---------------------------------------------------------------------------- */

/* Entries of one table that several threads change: the bitmap of a descriptor can be told from it,
 * but for its lowest bit, which is changed alone. */
struct crowd {
  struct q_table *t;
  _Atomic unsigned writers;
};

struct writer {
  struct crowd *crowd;
  uint32_t index;
};

static uint64_t
bitmap_of (uint64_t descriptor)
{
  return descriptor * 0x9e3779b97f4a7c15ull & ~1ull;
}

static void *
write_entries (void *opaque)
{
  struct writer *w = opaque;

  for (uint64_t i = 1; i <= CHANGES; ++i) {
    struct q_l2_entry e = { .descriptor = i << 9 };

    e.bitmap = bitmap_of (e.descriptor);
    q_l2_entry_set (w->crowd->t, w->index, e);
    e.bitmap |= 1;
    q_l2_entry_set (w->crowd->t, w->index, e);
  }
  atomic_fetch_sub (&w->crowd->writers, 1);
  return NULL;
}

static void *
read_entries (void *opaque)
{
  struct crowd *crowd = opaque;
  uint64_t last[WRITERS] = { 0 };
  uintptr_t wrong = 0;
  bool more;

  do {
    more = atomic_load (&crowd->writers) > 0;
    for (uint32_t i = 0; i < WRITERS; ++i) {
      struct q_l2_entry e = q_l2_entry_get (crowd->t, i);

      wrong += (e.bitmap & ~1ull) != bitmap_of (e.descriptor) || e.descriptor < last[i];
      last[i] = e.descriptor;
    }
  } while (more);
  return (void *)wrong;
}

static void *
copy_entries (void *opaque)
{
  struct crowd *crowd = opaque;
  uint8_t copy[WRITERS * 16];
  uintptr_t wrong = 0;
  bool more;

  do {
    more = atomic_load (&crowd->writers) > 0;
    q_entries_copy (crowd->t, 0, sizeof copy, copy);
    for (uint32_t i = 0; i < WRITERS; ++i) {
      be64 word[2];

      memcpy (word, copy + i * 16, 16);
      wrong += (get64 (word[1]) & ~1ull) != bitmap_of (get64 (word[0]));
    }
  } while (more);
  return (void *)wrong;
}

static void
test_not_torn (void **state)
{
  struct q_image img;
  struct crowd crowd = { .t = new_table (&img, true), .writers = WRITERS };
  struct writer w[WRITERS];
  pthread_t writer[WRITERS], reader, copier;
  void *wrong;

  (void)state;
  for (uint32_t i = 0; i < WRITERS; ++i) {
    w[i] = (struct writer){ &crowd, i };
    assert_int_equal (pthread_create (&writer[i], NULL, write_entries, &w[i]), 0);
  }
  assert_int_equal (pthread_create (&reader, NULL, read_entries, &crowd), 0);
  assert_int_equal (pthread_create (&copier, NULL, copy_entries, &crowd), 0);
  for (uint32_t i = 0; i < WRITERS; ++i)
    pthread_join (writer[i], NULL);
  pthread_join (reader, &wrong);
  assert_null (wrong);
  pthread_join (copier, &wrong);
  assert_null (wrong);
  for (uint32_t i = 0; i < WRITERS; ++i)
    assert_int_equal (q_l2_entry_get (crowd.t, i).bitmap, bitmap_of (CHANGES << 9) | 1);
  q_table_free (crowd.t);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_narrow),
    cmocka_unit_test (test_wide),
    cmocka_unit_test (test_not_torn),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
