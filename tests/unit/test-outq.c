/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The queue of bytes to send: all of them, in their order, in no more memory than they need.
 */

#include <sys/uio.h>

#include "outq.h"
#include "unit.h"

#define ROUNDS   4000
#define CAPACITY (64u << 20)

struct scene {
  struct buf_cache cache;
  struct loans loans;
  struct outq q;
  uint64_t random;
  uint8_t put, taken; /* the next byte of each: they count */
};

static unsigned
below (struct scene *c, unsigned n)
{
  c->random ^= c->random << 13;
  c->random ^= c->random >> 7;
  c->random ^= c->random << 17;
  return (unsigned)(c->random >> 16) % n;
}

static void
fill (struct scene *c, uint8_t *at, size_t n)
{
  for (size_t i = 0; i < n; i++)
    at[i] = c->put++;
}

static void
put_small (struct scene *c, size_t n)
{
  uint8_t *at = outq_reserve (&c->q, &c->cache, n);

  assert_non_null (at);
  fill (c, at, n);
  outq_commit (&c->q, n);
}

/* What was read: N bytes on a page boundary, and HEADER before them. */
static void
put_read (struct scene *c, size_t header, size_t n)
{
  struct buf *b = buf_alloc (&c->cache, n);
  size_t before = c->q.bytes;

  assert_non_null (b);
  assert_int_equal ((uintptr_t)b->data % BUF_PAGE, 0);
  b->start = b->data - header;
  b->end = b->data + n;
  fill (c, b->start, header + n);
  outq_append (&c->q, &c->cache, b);
  assert_int_equal (c->q.bytes, before + header + n);
}

static void
take (struct scene *c, size_t n)
{
  struct iovec iov[4];

  while (n > 0 && c->q.bytes > 0) {
    int count = outq_iov (&c->q, iov, 4);
    size_t sent = 0;

    assert_in_range (count, 1, 4);
    for (int i = 0; i < count && sent < n; i++) {
      const uint8_t *p = iov[i].iov_base;
      size_t k = iov[i].iov_len < n - sent ? iov[i].iov_len : n - sent;

      for (size_t at = 0; at < k; at++)
        assert_int_equal (p[at], c->taken++);
      sent += k;
    }
    outq_sent (&c->q, &c->cache, sent);
    n -= sent;
  }
}

/* What the queue says of itself. */
static void
check (const struct scene *c)
{
  size_t bytes = 0, memory = 0;
  const struct buf *last = NULL;

  for (const struct buf *b = c->q.head; b; b = b->next) {
    bytes += (size_t)(b->end - b->start);
    memory += buf_memory (b);
    last = b;
  }
  assert_int_equal (c->q.bytes, bytes);
  assert_int_equal (c->q.memory, memory);
  assert_ptr_equal (c->q.tail, last);
  assert_int_equal (c->cache.outstanding, memory);
}

static struct scene *
begin (size_t limit)
{
  struct scene *c = calloc (1, sizeof *c);

  assert_non_null (c);
  c->cache.limit = limit;
  c->q.loans = &c->loans;
  c->random = 88172645463325252;
  return c;
}

static void
end (struct scene *c)
{
  take (c, SIZE_MAX);
  assert_int_equal (c->put, c->taken);
  assert_null (c->q.head);
  assert_int_equal (c->cache.outstanding, 0);
  buf_cache_destroy (&c->cache);
  free (c);
}

/* Each small reply between those of reads that fill their buffers is in one of these. */
static void
test_between_reads (void **state)
{
  static const size_t limits[] = { 0, SIZE_MAX };

  (void)state;
  for (unsigned l = 0; l < 2; l++) {
    struct scene *c = begin (limits[l]);

    for (unsigned i = 0; i < 200; i++) {
      put_small (c, 20);
      put_small (c, 20);
      put_read (c, 28, 4096);
      assert_int_equal (c->q.memory, (i + 1) * (size_t)(BUF_PAGE + 4096));
      check (c);
    }
    end (c);
  }
}

/* When memory is short, small replies alone take little more than their bytes. */
static void
test_small_alone (void **state)
{
  struct scene *c = begin (0);

  (void)state;
  for (unsigned i = 0; i < 5000; i++) {
    put_small (c, 1 + below (c, 300));
    assert_true (c->q.memory <= 2 * BUF_PAGE + c->q.bytes + c->q.bytes / 16);
  }
  check (c);
  end (c);
}

/* What is on loan stays where it is; what comes before and after it as well. */
static void
test_loan_stays (void **state)
{
  static uint8_t page[100];
  struct scene *c = begin (SIZE_MAX);
  uint8_t *at;

  (void)state;
  put_small (c, 10);
  at = outq_reserve (&c->q, &c->cache, sizeof page);
  fill (c, page, sizeof page);
  assert_true (outq_borrow (&c->q, at, sizeof page, page, NULL, 0));
  outq_commit (&c->q, sizeof page);
  put_small (c, 10);
  put_read (c, 28, 4096);
  check (c);
  assert_ptr_not_equal (c->q.head, c->q.tail);
  end (c);
}

static void
test_any_order (void **state)
{
  struct scene *c = begin (SIZE_MAX);

  (void)state;
  for (unsigned i = 0; i < ROUNDS; i++) {
    c->cache.limit = below (c, 3) ? SIZE_MAX : 0;
    switch (below (c, 4)) {
    case 0:
      put_small (c, 1 + below (c, below (c, 20) ? 300 : 70000));
      break;
    case 1:
      put_read (c, below (c, 60), 1 + below (c, below (c, 2) ? 9000 : 140000));
      break;
    default:
      take (c, 1 + below (c, below (c, 2) ? 30 : 60000));
      break;
    }
    check (c);
    assert_true (c->q.bytes < CAPACITY);
  }
  end (c);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_between_reads),
    cmocka_unit_test (test_small_alone),
    cmocka_unit_test (test_loan_stays),
    cmocka_unit_test (test_any_order),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
