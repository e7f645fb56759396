/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The storage seam over local files: O_DIRECT with nothing aligned, the ends of files, and writing
 * zeros where the file system cannot; symbolic links that must not be followed.
 */

#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SIZE 100000u /* not a multiple of any sector */

static char path[] = "unit-file-XXXXXX";

/* A file of SIZE bytes, all BYTE. */
static void
make_file (uint8_t byte)
{
  uint8_t *buf = xalloc (SIZE);
  int fd;

  memset (path + strlen (path) - 6, 'X', 6);
  fd = mkstemp (path);
  assert_true (fd >= 0);
  memset (buf, byte, SIZE);
  assert_int_equal (write (fd, buf, SIZE), SIZE);
  close (fd);
  free (buf);
}

static uint64_t
file_size (void)
{
  struct stat st;

  assert_int_equal (stat (path, &st), 0);
  return (uint64_t)st.st_size;
}

/* NULL if the file system does not do that. */
static struct q_file *
open_file (unsigned flags)
{
  struct q_file *file;
  struct q_error err = { "" };
  int r = q_file_open (NULL, path, flags, &file, &err);

  if (r == -EINVAL && (flags & Q_FILE_DIRECT)) {
    unlink (path);
    skip ();
  }
  if (r < 0)
    fail_msg ("%s", err.text);
  return file;
}

static void
test_direct_unaligned (void **state)
{
  uint8_t *model = xalloc (2 * SIZE), *buf = xalloc (2 * SIZE);
  uint64_t seed = random_seed (7), size = SIZE;
  struct q_file *f;

  (void)state;
  make_file (0x55);
  memset (model, 0x55, SIZE);
  f = open_file (Q_FILE_WRITE | Q_FILE_DIRECT);
  assert_int_equal (q_file_fd (f), -1); /* nobody may go round the bounce buffers */
  for (unsigned i = 0; i < 400; ++i) {
    uint64_t offset = random_below (&seed, SIZE + SIZE / 4);
    uint64_t len = 1 + random_below (&seed, i % 3 ? 600 : 20000);
    struct iovec iov[3];

    if (i % 4 == 0)
      offset &= ~4095ull;
    if (i % 8 == 0)
      len = q_round_up (len, 4096);
    for (uint64_t j = 0; j < len; ++j)
      model[offset + j] = buf[j] = (uint8_t)random_next (&seed);
    size = offset + len > size ? offset + len : size;
    iov[0] = (struct iovec){ buf, len / 3 };
    iov[1] = (struct iovec){ buf + len / 3, len / 3 };
    iov[2] = (struct iovec){ buf + len / 3 * 2, len - len / 3 * 2 };
    assert_int_equal (q_file_pwritev (f, iov, 3, offset), 0);
    assert_int_equal (file_size (), size); /* not a byte longer than what was written */
    offset = random_below (&seed, SIZE);
    len = 1 + random_below (&seed, SIZE);
    memset (buf, 0xee, len);
    assert_int_equal (q_file_pread (f, buf, len, offset), 0); /* zeros past the end */
    assert_memory_equal (buf, model + offset, len);
  }
  q_file_close (&f);
  f = open_file (0);
  assert_int_equal (q_file_pread (f, buf, 2 * SIZE, 0), 0);
  assert_memory_equal (buf, model, 2 * SIZE);
  q_file_close (&f);
  unlink (path);
  free (model);
  free (buf);
}

/* Neighbours in one sector, written by different threads: none undoes the other's write. */
static struct q_file *shared;

static void *
write_stripe (void *opaque)
{
  unsigned which = (unsigned)(uintptr_t)opaque;
  uint8_t buf[100], back[100];

  for (unsigned round = 40; round-- > 0;)
    for (unsigned i = which; i < 200; i += 4) {
      memset (buf, (int)(round * 4 + which + 1), sizeof buf);
      if (q_file_pwrite (shared, buf, sizeof buf, i * 100) < 0 ||
          q_file_pread (shared, back, sizeof back, i * 100) < 0 ||
          memcmp (buf, back, sizeof buf) != 0)
        return (void *)"a write was undone or failed";
    }
  return NULL;
}

static void
test_direct_neighbours (void **state)
{
  uint8_t buf[20000];
  pthread_t id[4];

  (void)state;
  make_file (0);
  shared = open_file (Q_FILE_WRITE | Q_FILE_DIRECT);
  for (size_t i = 0; i < lengthof (id); ++i)
    assert_int_equal (pthread_create (&id[i], NULL, write_stripe, (void *)i), 0);
  for (size_t i = 0; i < lengthof (id); ++i) {
    void *failed;

    pthread_join (id[i], &failed);
    assert_null (failed);
  }
  assert_int_equal (q_file_pread (shared, buf, sizeof buf, 0), 0);
  for (unsigned i = 0; i < sizeof buf; ++i)
    assert_int_equal (buf[i], i / 100 % 4 + 1);
  q_file_close (&shared);
  unlink (path);
}

/* A raw disk is as large as its file: writing its last bytes must not change that. */
static void
test_direct_raw_size (void **state)
{
  struct q_open_options opts;
  struct q_image *img;
  struct q_error err;
  int r;

  (void)state;
  make_file (5);
  q_open_options_init (&opts);
  opts.format = Q_FORMAT_RAW;
  opts.cache = Q_CACHE_DIRECT;
  r = q_open (&img, path, &opts, &err);
  if (r == -EINVAL) {
    unlink (path);
    skip ();
  }
  assert_int_equal (r, 0);
  unit_writes (img, SIZE - 100, 100, 6);
  unit_writes (img, SIZE - 1, 1, 7);
  unit_reads (img, SIZE - 100, 99, 6);
  unit_close (img);
  assert_int_equal (file_size (), SIZE);
  unlink (path);
}

static void
test_buffered (void **state)
{
  struct q_file *f;
  uint64_t value, end;
  uint8_t buf[4096];
  bool hole;
  int r;

  (void)state;
  make_file (5);
  f = open_file (Q_FILE_WRITE);
  assert_true (q_file_fd (f) >= 0);
  assert_int_equal (q_file_size (f, &value), 0);
  assert_int_equal (value, SIZE);
  assert_int_equal (q_file_usage (f, &value), 0);
  assert_true (value >= SIZE && value % 512 == 0);
  memset (buf, 0xee, sizeof buf);
  assert_int_equal (q_file_pread (f, buf, sizeof buf, SIZE - 10), 0);
  for (unsigned i = 0; i < sizeof buf; ++i)
    assert_int_equal (buf[i], i < 10 ? 5 : 0);
  assert_int_equal (q_file_pread (f, buf, sizeof buf, 1ull << 40), 0);
  assert_int_equal (buf[0], 0);

  r = q_file_zero (f, 4096, 8192, true);
  assert_true (r == 0 || r == -ENOTSUP);
  if (r == 0) {
    assert_int_equal (q_file_pread (f, buf, sizeof buf, 8192), 0);
    assert_int_equal (buf[0], 0);
    assert_int_equal (file_size (), SIZE);
    assert_int_equal (q_file_extent (f, 0, &end, &hole), 0);
    assert_false (hole);
    assert_true (end >= 4096);
  }
  assert_int_equal (q_file_write_zeroes (f, SIZE - 100, 200, true), 0);
  assert_int_equal (file_size (), SIZE + 100); /* it may be counted on */
  assert_int_equal (q_file_pread (f, buf, 200, SIZE - 200), 0);
  for (unsigned i = 0; i < 200; ++i)
    assert_int_equal (buf[i], i < 100 ? 5 : 0);
  assert_int_equal (q_file_truncate (f, 1000), 0);
  assert_int_equal (file_size (), 1000);
  r = q_file_allocate (f, 1000, 1000);
  assert_true (r == 0 || r == -ENOTSUP);
  assert_int_equal (q_file_sync (f), 0);
  assert_int_equal (q_file_prefetch (f, 0, 1000), 0);
  q_file_close (&f);
  assert_null (f);
  unlink (path);
}

/* Where ranges cannot be zeroed zeros are written, in as many pieces as it takes. */
static void
test_zeros_by_writing (void **state)
{
  struct fixture f;
  struct mem_file *m;
  struct q_file *file;

  (void)state;
  unit_init (&f);
  m = unit_raw (&f, "disk", 3 << 20, 5);
  m->plain = true;
  assert_int_equal (q_file_open (&f.store.opener, "disk", Q_FILE_WRITE, &file, NULL), 0);
  assert_int_equal (q_file_write_zeroes (file, 1000, (5 << 19) + 7, true), 0);
  for (uint64_t i = 0; i < m->size; ++i)
    if (m->data[i] != (i >= 1000 && i < 1000 + (5 << 19) + 7 ? 0 : 5))
      fail_msg ("byte %llu is %u", (unsigned long long)i, m->data[i]);
  f.fail_kind = MEM_WRITE;
  f.fail_with = -EIO;
  f.fail_after = 1;
  assert_int_equal (q_file_write_zeroes (file, 0, 2 << 20, true), -EIO);
  q_file_close (&file);
  unit_done (&f);
}

/* Small writes all over a file that was read in order, some of them twice before the file is
 * synced, across the stretches that are looked at one by one: folios.c may do what it wants with
 * the page cache, but not with a byte. */
static void
test_writes_into_folios (void **state)
{
  enum { BYTES = 8 << 20, WRITES = 3000 };
  uint8_t *model = xalloc (BYTES), *buf = xalloc (BYTES);
  uint64_t seed = random_seed (11);
  struct q_file *f;

  (void)state;
  make_file (0);
  f = open_file (Q_FILE_WRITE);
  for (unsigned i = 0; i < BYTES; ++i)
    model[i] = (uint8_t)random_next (&seed);
  assert_int_equal (q_file_pwrite (f, model, BYTES, 0), 0);
  assert_int_equal (q_file_sync (f), 0);
  posix_fadvise (q_file_fd (f), 0, 0, POSIX_FADV_DONTNEED);
  assert_int_equal (q_file_pread (f, buf, BYTES, 0), 0);
  assert_memory_equal (buf, model, BYTES);
  for (unsigned i = 0; i < WRITES; ++i) {
    size_t len = 1 + random_below (&seed, i % 7 ? 8192 : 70000);
    uint64_t offset = random_below (&seed, BYTES - len);

    for (size_t k = 0; k < len; ++k)
      model[offset + k] = (uint8_t)random_next (&seed);
    assert_int_equal (q_file_pwrite (f, model + offset, len, offset), 0);
    if (i % 500 == 0)
      assert_int_equal (q_file_sync (f), 0);
  }
  assert_int_equal (q_file_pread (f, buf, BYTES, 0), 0);
  assert_memory_equal (buf, model, BYTES);
  q_file_close (&f);
  unlink (path);
  free (model);
  free (buf);
}

/* What an image names may be exchanged for a link after somebody has looked at it. */
static void
test_no_follow (void **state)
{
  char link[sizeof path + 8];
  struct q_error err = { "" };
  struct q_file *f;

  (void)state;
  make_file (1);
  snprintf (link, sizeof link, "%s.link", path);
  assert_int_equal (symlink (path, link), 0);
  for (unsigned flags = 0; flags <= Q_FILE_WRITE; flags += Q_FILE_WRITE) {
    assert_int_equal (q_file_open (NULL, link, flags, &f, &err), 0);
    q_file_close (&f);
    assert_int_equal (q_file_open (NULL, link, flags | Q_FILE_NO_FOLLOW, &f, &err), -EPERM);
    assert_non_null (strstr (err.text, "symbolic link"));
    assert_null (f);
    assert_int_equal (q_file_open (NULL, path, flags | Q_FILE_NO_FOLLOW, &f, &err), 0);
    q_file_close (&f);
  }
  unlink (link);
  assert_int_equal (symlink ("nonesuch", link), 0);
  assert_int_equal (q_file_open (NULL, link, Q_FILE_NO_FOLLOW, &f, &err), -EPERM);
  unlink (link);
  unlink (path);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_direct_unaligned), cmocka_unit_test (test_direct_neighbours),
    cmocka_unit_test (test_direct_raw_size),  cmocka_unit_test (test_buffered),
    cmocka_unit_test (test_zeros_by_writing), cmocka_unit_test (test_writes_into_folios),
    cmocka_unit_test (test_no_follow),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
