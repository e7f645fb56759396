/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The buffers that a loop keeps: what one burst has left does not keep out what the next one needs,
 * and they are no more than a bound.
 */

#include "buf.h"
#include "unit.h"

#define BOUND (16u * 1024 * 1024)

/* Takes N of SIZE bytes out at once, and gives them back. */
static void
burst (struct buf_cache *cache, size_t size, unsigned n)
{
  struct buf **out = calloc (n, sizeof *out);

  assert_non_null (out);
  for (unsigned i = 0; i < n; i++)
    assert_non_null (out[i] = buf_alloc (cache, size));
  for (unsigned i = 0; i < n; i++)
    buf_free (cache, out[i]);
  free (out);
  assert_int_equal (cache->outstanding, 0);
  assert_true (cache->bytes <= BOUND);
}

/* How many of that size are kept for the next time. */
static unsigned
held (const struct buf_cache *cache, size_t size)
{
  unsigned n = 0, shift = BUF_MIN_SHIFT;

  while ((size_t)1 << shift < size)
    shift++;
  for (const struct buf *b = cache->free[shift - BUF_MIN_SHIFT]; b; b = b->next)
    n++;
  assert_int_equal (n, cache->n[shift - BUF_MIN_SHIFT]);
  return n;
}

static void
test_next_burst (void **state)
{
  static const size_t sizes[] = { 4096, 32768, 65536, 131072, 1 << 20, 4 << 20 };
  const unsigned n = sizeof sizes / sizeof sizes[0];

  (void)state;
  for (unsigned before = 0; before < n; before++)
    for (unsigned next = 0; next < n; next++) {
      struct buf_cache cache = { .limit = SIZE_MAX };

      burst (&cache, sizes[before], BOUND / (unsigned)sizes[before] + 2);
      assert_int_equal (held (&cache, sizes[before]), BOUND / sizes[before]);
      burst (&cache, sizes[next], BOUND / (unsigned)sizes[next] + 2);
      /* Half of the room, as the other one may be needed at the same time. */
      assert_true (held (&cache, sizes[next]) * sizes[next] >= BOUND / 2);
      buf_cache_destroy (&cache);
      assert_int_equal (cache.bytes, 0);
    }
}

/* Those in need at the same time do not take each other's away again and again. */
static void
test_shares (void **state)
{
  struct buf_cache cache = { .limit = SIZE_MAX };
  unsigned small, large;

  (void)state;
  for (unsigned i = 0; i < 4; i++) {
    burst (&cache, 8192, 4096);
    burst (&cache, 1 << 20, 32);
  }
  small = held (&cache, 8192);
  large = held (&cache, 1 << 20);
  for (unsigned i = 0; i < 4; i++) {
    burst (&cache, 8192, 4096);
    burst (&cache, 1 << 20, 32);
    assert_int_equal (held (&cache, 8192), small);
    assert_int_equal (held (&cache, 1 << 20), large);
  }
  assert_true (small >= 512 && large >= 4);
  buf_cache_destroy (&cache);
}

/* What is too large for any class, and what has no cache, is not kept. */
static void
test_not_kept (void **state)
{
  struct buf_cache cache = { .limit = SIZE_MAX };

  (void)state;
  burst (&cache, ((size_t)1 << BUF_MAX_SHIFT) + 1, 1);
  burst (&cache, (size_t)1 << BUF_MAX_SHIFT, 1); /* more than may be kept at all */
  assert_int_equal (cache.bytes, 0);
  buf_free (NULL, buf_alloc (NULL, 4096)); /* by a thread that has no cache */
  assert_int_equal (cache.bytes, 0);
  buf_cache_destroy (&cache);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_next_burst),
    cmocka_unit_test (test_shares),
    cmocka_unit_test (test_not_kept),
  };
  return cmocka_run_group_tests (tests, NULL, NULL);
}
