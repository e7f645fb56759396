/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Refcounts of every width, and the decoding of compressed cluster descriptors.
 */

#include "unit.h"

#define BLOCK 4096u

static uint64_t
pattern (unsigned order, uint64_t i)
{
  uint64_t v = (i + 1) * 0x9e3779b97f4a7c15ull;

  return order == 6 ? v : v & ((1ull << (1u << order)) - 1);
}

static void
test_every_width (void **state)
{
  static uint8_t mem[BLOCK];

  (void)state;
  for (unsigned order = 0; order <= 6; ++order) {
    uint64_t n = (uint64_t)BLOCK * 8 >> order;
    uint64_t most = order == 6 ? UINT64_MAX : (1ull << (1u << order)) - 1;

    memset (mem, 0, sizeof mem);
    for (uint64_t i = 0; i < n; ++i)
      q_refblock_write (mem, order, i, pattern (order, i));
    for (uint64_t i = 0; i < n; ++i)
      assert_true (q_refblock_read (mem, order, i) == pattern (order, i));
    /* One count alone, between neighbours that must stay. */
    for (uint64_t i = 0; i < n; i += 7) {
      q_refblock_write (mem, order, i, most);
      assert_true (q_refblock_read (mem, order, i) == most);
      q_refblock_write (mem, order, i, 0);
      assert_true (q_refblock_read (mem, order, i) == 0);
      assert_true (i == 0 || q_refblock_read (mem, order, i - 1) == pattern (order, i - 1));
      assert_true (i + 1 == n || q_refblock_read (mem, order, i + 1) == pattern (order, i + 1));
    }
  }
}

/* "If refcount_bits implies a sub-byte width, note that bit 0 means the least significant bit in
 * this context": and wider ones are big-endian. */
static void
test_on_disk (void **state)
{
  uint8_t mem[16] = { 0 };

  (void)state;
  q_refblock_write (mem, 0, 9, 1);
  assert_int_equal (mem[1], 0x02);
  q_refblock_write (mem, 1, 2, 2);
  assert_int_equal (mem[0], 0x20);
  q_refblock_write (mem, 2, 5, 0xd);
  assert_int_equal (mem[2], 0xd0);
  q_refblock_write (mem, 3, 3, 0xab);
  assert_int_equal (mem[3], 0xab);
  q_refblock_write (mem, 4, 2, 0x1234);
  assert_memory_equal (mem + 4, "\x12\x34", 2);
  q_refblock_write (mem, 5, 2, 0x12345678);
  assert_memory_equal (mem + 8, "\x12\x34\x56\x78", 4);
  q_refblock_write (mem, 6, 1, 0x0123456789abcdefull);
  assert_memory_equal (mem + 8, "\x01\x23\x45\x67\x89\xab\xcd\xef", 8);
}

/* The engine counts in the same way: allocate, look at the file, discard, look again. */
static void
test_engine (void **state)
{
  (void)state;
  for (unsigned order = 0; order <= 6; ++order) {
    struct q_create_options o;
    struct mem_file *m;
    struct q_image *img;
    struct fixture f;
    uint64_t host;

    unit_init (&f);
    q_create_options_init (&o);
    o.refcount_bits = 1u << order;
    o.cluster_bits = 12;
    m = unit_create (&f, "disk", 4 << 20, &o);
    img = unit_open (&f, "disk");
    unit_writes (img, 0, 1 << 20, 7);
    assert_int_equal (q_flush (img), 0);
    host = unit_get_entry (m, 100) & Q_OFFSET_MASK;
    assert_true (host > 0);
    assert_int_equal (unit_refcount (m, host), 1);
    assert_int_equal (q_discard (img, 100 << 12, 1 << 12), 0);
    unit_close (img);
    assert_int_equal (unit_get_entry (m, 100), 0);
    assert_int_equal (unit_refcount (m, host), 0);
    unit_check (&f, "disk");
    unit_done (&f);
  }
}

/* The table grows: more clusters than the first one can count. */
static void
test_growing_table (void **state)
{
  struct q_create_options o;
  struct mem_file *m;
  struct q_image *img;
  struct fixture f;
  uint64_t old;

  (void)state;
  unit_init (&f);
  q_create_options_init (&o);
  o.refcount_bits = 64; /* 64 counts in a block, 64 blocks in a table: 2 MiB */
  o.cluster_bits = 9;
  m = unit_create (&f, "disk", 8 << 20, &o);
  old = get64 (unit_header (m)->refcount_table_offset);
  img = unit_open (&f, "disk");
  for (unsigned i = 0; i < 32; ++i) {
    unit_writes (img, i << 18, 1 << 18, (uint8_t)(i + 1));
    if (i % 5 == 4)
      assert_int_equal (q_flush (img), 0);
  }
  unit_close (img);
  assert_true (get64 (unit_header (m)->refcount_table_offset) != old);
  unit_check (&f, "disk");
  img = unit_open (&f, "disk");
  for (unsigned i = 0; i < 32; ++i)
    unit_reads (img, i << 18, 1 << 18, (uint8_t)(i + 1));
  unit_close (img);
  unit_done (&f);
}

static void
test_compressed_descriptor (void **state)
{
  (void)state;
  for (unsigned bits = Q_MIN_CLUSTER_BITS; bits <= Q_MAX_CLUSTER_BITS; ++bits) {
    unsigned x = 62 - (bits - 8); /* bits 0 to x - 1: host offset; x to 61: sectors less one */
    uint64_t most = 1ull << (bits - 8), host;
    uint32_t csize;

    q_compressed_decode (0x12345, bits, &host, &csize);
    assert_int_equal (host, 0x12345);
    assert_int_equal (csize, 512 - 0x145);
    q_compressed_decode (1ull << x | 0x10000, bits, &host, &csize);
    assert_int_equal (host, 0x10000);
    assert_int_equal (csize, 1024);
    q_compressed_decode ((most - 1) << x | 0x101ff, bits, &host, &csize);
    assert_int_equal (host, 0x101ff);
    assert_int_equal (csize, most * 512 - 511);
    q_compressed_decode ((1ull << x) - 1, bits, &host, &csize);
    assert_true (host == (1ull << x) - 1);
    assert_int_equal (csize, 1);
    q_compressed_decode ((1ull << 62) - 1, bits, &host, &csize);
    assert_true (host == (1ull << x) - 1);
    assert_true (csize <= 2u << bits); /* what an inflator has room for */
  }
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_every_width),
    cmocka_unit_test (test_on_disk),
    cmocka_unit_test (test_engine),
    cmocka_unit_test (test_growing_table),
    cmocka_unit_test (test_compressed_descriptor),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
