/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Locks: two opens of one file, in one process, are strangers to each other; so they stand for two
 * programs here.  That QEMU sees our locks and we see its is for test-e2e-locks.sh.
 */

#include "lock.h"
#include "unit.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static char path[] = "unit-lock-XXXXXX";

static void
make_image (struct q_open_options *opts)
{
  struct q_create_options o;
  struct q_error err;
  int fd;

  memset (path + strlen (path) - 6, 'X', 6);
  fd = mkstemp (path);
  assert_true (fd >= 0);
  close (fd);
  q_create_options_init (&o);
  if (q_create (path, 1 << 20, &o, &err) < 0)
    fail_msg ("%s", err.text);
  q_open_options_init (opts);
}

static int
try_open (const struct q_open_options *opts, bool read_only, struct q_image **img,
          struct q_error *err)
{
  struct q_open_options o = *opts;

  o.read_only = read_only;
  return q_open (img, path, &o, err);
}

static struct q_image *
must_open (const struct q_open_options *opts, bool read_only)
{
  struct q_image *img;
  struct q_error err;

  if (try_open (opts, read_only, &img, &err) < 0)
    fail_msg ("%s", err.text);
  return img;
}

static void
test_writer_is_alone (void **state)
{
  struct q_open_options opts;
  struct q_image *writer, *img;
  struct q_error err;

  (void)state;
  make_image (&opts);
  writer = must_open (&opts, false);
  assert_int_equal (try_open (&opts, false, &img, &err), -EAGAIN);
  assert_contains (err.text, path);
  assert_contains (err.text, "lsof");
  assert_int_equal (try_open (&opts, true, &img, &err), -EAGAIN);
  assert_contains (err.text, "locking off");
  assert_null (img);
  opts.lock = Q_LOCK_OFF; /* looking all the same */
  img = must_open (&opts, true);
  unit_close (img);
  opts.lock = Q_LOCK_ON;
  assert_int_equal (try_open (&opts, true, &img, &err), -EAGAIN); /* that took no lock away */
  unit_writes (writer, 0, 512, 7);
  unit_close (writer);
  img = must_open (&opts, true);
  unit_reads (img, 0, 512, 7);
  unit_close (img);
  unlink (path);
}

static void
test_readers_share (void **state)
{
  struct q_open_options opts;
  struct q_image *a, *b, *img;
  struct q_error err;

  (void)state;
  make_image (&opts);
  a = must_open (&opts, true);
  b = must_open (&opts, true);
  assert_int_equal (try_open (&opts, false, &img, &err), -EAGAIN);
  unit_close (a);
  assert_int_equal (try_open (&opts, false, &img, &err), -EAGAIN);
  unit_close (b);
  img = must_open (&opts, false);
  unit_close (img);
  unlink (path);
}

/* The same with an image over it. */
static void
make_overlay (struct q_open_options *opts, char name[64])
{
  struct q_create_options o;
  struct q_error err;

  make_image (opts);
  snprintf (name, 64, "%s.overlay", path);
  q_create_options_init (&o);
  o.backing_file = path;
  o.backing_format = "qcow2";
  assert_int_equal (q_create (name, 1 << 20, &o, &err), 0);
}

/* Somebody who only tries to open NAME holds a lock for a moment, at BYTE; that keeps us out, and
 * changes nothing about what keeps others out. */
static void
somebody_tries (const struct q_open_options *opts, const char *name, off_t byte)
{
  struct flock moment = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
  int other = open (path, O_RDONLY);
  struct q_image *img;
  struct q_error err;

  assert_int_equal (fcntl (other, F_OFD_SETLK, &moment), 0);
  assert_int_equal (q_open (&img, name, opts, &err), -EAGAIN);
  close (other);
}

/* A backing file is locked as by a reader. */
static void
test_backing_file (void **state)
{
  struct q_open_options opts;
  struct q_image *top, *img;
  struct q_error err;
  char overlay[64];

  (void)state;
  make_overlay (&opts, overlay);
  assert_int_equal (q_open (&top, overlay, &opts, &err), 0);
  assert_int_equal (try_open (&opts, false, &img, &err), -EAGAIN);
  img = must_open (&opts, true);
  unit_close (img);
  unit_close (top);
  img = must_open (&opts, false);
  assert_int_equal (q_open (&top, overlay, &opts, &err), -EAGAIN);
  assert_contains (err.text, "cannot open backing file");
  unit_close (img);
  unlink (overlay);
  unlink (path);
}

/* A loop is called a loop, not a lock. */
static void
test_loop (void **state)
{
  struct q_create_options o;
  struct q_open_options opts;
  struct q_image *img;
  struct q_error err;

  (void)state;
  make_image (&opts);
  q_create_options_init (&o);
  o.backing_file = path;
  o.backing_format = "qcow2";
  assert_int_equal (q_create (path, 1 << 20, &o, &err), 0);
  for (int read_only = 0; read_only < 2; ++read_only) {
    assert_int_equal (try_open (&opts, read_only, &img, &err), -ELOOP);
    assert_contains (err.text, "loop");
  }
  unlink (path);
}

/* A file that is being used is not emptied by making an image over it. */
static void
test_create_over_used (void **state)
{
  struct q_create_options o;
  struct q_open_options opts;
  struct q_image *img;
  struct q_error err;

  (void)state;
  make_image (&opts);
  img = must_open (&opts, false);
  unit_writes (img, 0, 512, 7);
  q_create_options_init (&o);
  assert_int_equal (q_create (path, 2 << 20, &o, &err), -EAGAIN);
  unit_reads (img, 0, 512, 7);
  unit_close (img);
  img = must_open (&opts, true);
  assert_int_equal (q_size (img), 1 << 20);
  unit_reads (img, 0, 512, 7);
  unit_close (img);
  unlink (path);
}

static void
test_not_a_file (void **state)
{
  struct q_open_options opts;
  struct q_image *img;
  struct q_error err;

  (void)state;
  make_image (&opts);
  unlink (path);
  assert_int_equal (try_open (&opts, true, &img, &err), -ENOENT);
  assert_int_equal (mkfifo (path, 0600), 0);
  assert_int_equal (try_open (&opts, true, &img, &err), -EINVAL); /* and does not wait for ever */
  assert_contains (err.text, "FIFO");
  unlink (path);
  assert_int_equal (mkdir (path, 0700), 0);
  assert_int_equal (try_open (&opts, true, &img, &err), -EINVAL);
  assert_contains (err.text, "directory");
  rmdir (path);
}

/* What a guard keeps out, and whom it lets in: one at a time, and only by whom it was adopted. */
static void
test_guard (void **state)
{
  struct q_open_options opts;
  struct q_image *img, *second;
  struct q_error err = { "" };
  int guard;

  (void)state;
  make_image (&opts);
  img = must_open (&opts, false);
  int other = open ("/dev/null", O_RDONLY);
  assert_int_equal (q_lock_guard (path, other, true, &err), -ESTALE);
  close (other);
  assert_int_equal (q_lock_guards (img, &guard, 0, &err), -E2BIG);
  assert_int_equal (q_lock_guards (img, &guard, 1, &err), 1);
  assert_int_equal (q_close (&img, &err), 0);

  /* The image is closed, and locked. */
  assert_int_equal (try_open (&opts, false, &img, &err), -EAGAIN);
  assert_int_equal (try_open (&opts, true, &img, &err), -EAGAIN);
  int copy = dup (guard);
  assert_int_equal (q_lock_adopt (copy), 0);
  somebody_tries (&opts, path, 201);
  img = must_open (&opts, false);
  assert_int_equal (try_open (&opts, false, &second, &err), -EAGAIN);
  q_lock_disown ();
  close (guard);
  /* Its own locks are there, and go with it. */
  assert_int_equal (try_open (&opts, false, &second, &err), -EAGAIN);
  assert_int_equal (q_close (&img, &err), 0);
  img = must_open (&opts, false);
  assert_int_equal (q_close (&img, &err), 0);
  unlink (path);
}

/* Files that are only read have guards as well, a backing file for one: readers may come, and
 * nobody who would write. */
static void
test_reader_guard (void **state)
{
  struct q_open_options opts;
  struct q_image *top, *img, *reader;
  struct q_error err = { "" };
  char overlay[64];
  int guards[3];

  (void)state;
  make_overlay (&opts, overlay);
  assert_int_equal (q_open (&top, overlay, &opts, &err), 0);
  assert_int_equal (q_lock_guards (top, guards, 1, &err), -E2BIG);
  assert_int_equal (q_lock_guards (top, guards, 3, &err), 2);
  unit_close (top);

  assert_int_equal (try_open (&opts, false, &img, &err), -EAGAIN);
  assert_int_equal (q_open (&img, overlay, &opts, &err), -EAGAIN);
  reader = must_open (&opts, true);
  for (int i = 0; i < 2; ++i)
    assert_int_equal (q_lock_adopt (guards[i]), 0);
  somebody_tries (&opts, overlay,
                  101); /* to write the backing file: the overlay's guard is there */
  assert_int_equal (q_open (&top, overlay, &opts, &err), 0);
  assert_int_equal (q_open (&img, overlay, &opts, &err), -EAGAIN);
  unit_close (reader);
  q_lock_disown ();
  assert_int_equal (try_open (&opts, false, &img, &err), -EAGAIN);
  unit_close (top);

  /* What is not locked needs no guard. */
  opts.lock = Q_LOCK_OFF;
  assert_int_equal (q_open (&top, overlay, &opts, &err), 0);
  assert_int_equal (q_lock_guards (top, guards, 3, &err), 0);
  unit_close (top);
  opts.lock = Q_LOCK_ON;
  /* Who opened it for reading may go on for writing, if nobody else reads it. */
  img = must_open (&opts, true);
  assert_int_equal (q_lock_guards (img, guards, 3, &err), 1);
  unit_close (img);
  assert_int_equal (q_lock_adopt (guards[0]), 0);
  img = must_open (&opts, false);
  q_lock_disown ();
  unit_close (img);
  unlink (overlay);
  unlink (path);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_guard),
    cmocka_unit_test (test_writer_is_alone),
    cmocka_unit_test (test_reader_guard),
    cmocka_unit_test (test_readers_share),
    cmocka_unit_test (test_backing_file),
    cmocka_unit_test (test_loop),
    cmocka_unit_test (test_create_over_used),
    cmocka_unit_test (test_not_a_file),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
