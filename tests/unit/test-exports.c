/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The set of exports, changed while it is in use.
 */

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "export.h"
#include "unit.h"

#define DISK (1024 * 1024)

static char dir[] = "/tmp/unit-exports-XXXXXX";

static void
make_image (const char *name, char path[256])
{
  struct q_create_options o;
  struct q_error err = { "" };

  snprintf (path, 256, "%s/%s", dir, name);
  q_create_options_init (&o);
  if (q_create (path, DISK, &o, &err) < 0)
    fail_msg ("%s", err.text);
}

static struct export_options
options (const char *name, char *path)
{
  struct export_options o = { .name = name, .source = { .filename = path, .size = SOURCE_TO_END } };
  q_open_options_init (&o.source.open);
  return o;
}

static void
must_add (struct exports *set, const struct export_options *o)
{
  struct q_error err = { "" };
  if (exports_add (set, o, &err) < 0)
    fail_msg ("%s", err.text);
}

static struct export *
must_get (struct exports *set, const char *name)
{
  struct export *x = exports_get (set, name, strlen (name));
  assert_non_null (x);
  return x;
}

static void
assert_error (int r, int expected, const struct q_error *err, const char *part)
{
  assert_int_equal (r, expected);
  if (!strstr (err->text, part))
    fail_msg ("\"%s\" lacks \"%s\"", err->text, part);
}

/* ---- adding and removing --------------------------------------------------------------------- */

static void
adds_and_removes (void **state)
{
  struct exports set;
  struct q_error err = { "" };
  char path[256], missing[] = "/nonexistent/image";
  unsigned max;

  (void)state;
  exports_init (&set);
  make_image ("a", path);
  struct export_options o = options ("a", path), bad = options ("b", missing);
  must_add (&set, &o);
  assert_error (exports_add (&set, &o, &err), -EEXIST, &err, "\"a\"");
  assert_error (exports_add (&set, &bad, &err), -ENOENT, &err, missing);
  assert_error (exports_remove (&set, "b", true, &err), -ENOENT, &err, "\"b\"");

  struct export *x = must_get (&set, "a");
  assert_int_equal (export_enter (x, &max), 0);
  assert_error (exports_remove (&set, "a", false, &err), -EBUSY, &err, "1 client is");
  assert_int_equal (export_connections (x), 1);
  export_leave (x);
  export_put (x);
  assert_int_equal (exports_remove (&set, "a", false, &err), 0);
  assert_null (exports_get (&set, "a", 1));
  must_add (&set, &o); /* nothing holds the image's locks any more */
  assert_int_equal (exports_close (&set), 0);
}

static void
prepared_is_not_seen (void **state)
{
  struct exports set;
  struct q_error err = { "" };
  struct export *x;
  char path[256];

  (void)state;
  exports_init (&set);
  make_image ("p", path);
  struct export_options o = options ("p", path);
  assert_int_equal (exports_prepare (&set, &o, &x, &err), 0);
  assert_null (exports_get (&set, "p", 1));
  assert_null (exports_next (&set, NULL));
  assert_int_equal (exports_add (&set, &o, &err), -EEXIST);
  assert_int_equal (exports_remove (&set, "p", true, &err), -ENOENT);
  exports_abandon (x);
  assert_int_equal (exports_prepare (&set, &o, &x, &err), 0);
  exports_commit (x);
  export_put (must_get (&set, "p"));
  assert_int_equal (exports_close (&set), 0);
}

static void
changes_in_place (void **state)
{
  struct exports set;
  char path[256], text[EXPORT_DESCRIPTION_SIZE];
  unsigned max;

  (void)state;
  exports_init (&set);
  make_image ("c", path);
  struct export_options o = options ("c", path);
  o.description = "old";
  must_add (&set, &o);
  struct export *x = must_get (&set, "c");
  struct export_changes changes = { .description = "new", .max_connections = 1, .rate = 5 };
  assert_int_equal (export_change (x, &changes), 0);
  export_description (x, text);
  assert_string_equal (text, "new");
  assert_int_equal (x->rate.bytes_per_second, 5);
  assert_int_equal (export_enter (x, &max), 0);
  assert_int_equal (export_enter (x, &max), -EMFILE);
  assert_int_equal (max, 1);
  export_leave (x);
  export_put (x);

  /* What is not changed in place is in the text of its settings, and only that. */
  char *before = export_settings (&o);
  o.description = NULL;
  o.rate = 77;
  char *same = export_settings (&o);
  o.source.open.read_only = true;
  char *other = export_settings (&o);
  assert_string_equal (before, same);
  assert_string_not_equal (before, other);
  free (before);
  free (same);
  free (other);
  assert_int_equal (exports_close (&set), 0);
}

/* ---- clients --------------------------------------------------------------------------------- */

struct waiting {
  struct exports *set;
  atomic_bool swept, removed;
};

static void
on_sweep (void *opaque)
{
  struct waiting *w = opaque;
  atomic_store (&w->swept, true);
}

static void *
remove_hard (void *opaque)
{
  struct waiting *w = opaque;
  struct q_error err = { "" };

  if (exports_remove (w->set, "h", true, &err) < 0)
    fprintf (stderr, "%s\n", err.text);
  atomic_store (&w->removed, true);
  return NULL;
}

/* A hard removal lets nobody in any more, asks for its clients to go, and waits for them. */
static void
hard_waits_for_clients (void **state)
{
  struct exports set;
  struct waiting w = { .set = &set };
  struct timespec moment = { .tv_nsec = 1000000 };
  char path[256];
  unsigned max;
  pthread_t thread;

  (void)state;
  exports_init (&set);
  exports_set_sweep (&set, on_sweep, &w);
  make_image ("h", path);
  struct export_options o = options ("h", path);
  must_add (&set, &o);
  struct export *x = must_get (&set, "h"), *late = must_get (&set, "h");
  assert_int_equal (export_enter (x, &max), 0);
  assert_int_equal (pthread_create (&thread, NULL, remove_hard, &w), 0);
  while (!atomic_load (&w.swept))
    nanosleep (&moment, NULL);
  assert_true (atomic_load (&x->leaving));
  assert_null (exports_get (&set, "h", 1));
  assert_int_equal (export_enter (late, &max), -ESHUTDOWN);
  export_put (late);
  for (int i = 0; i < 20; i++) {
    assert_false (atomic_load (&w.removed));
    nanosleep (&moment, NULL);
  }
  assert_int_equal (q_size (x->img), DISK); /* open as long as it is referred to */
  export_leave (x);
  export_put (x);
  pthread_join (thread, NULL);
  assert_true (atomic_load (&w.removed));
  assert_int_equal (exports_close (&set), 0);
}

/* ---- snapshots ------------------------------------------------------------------------------- */

static void
snapshots_go_along (void **state)
{
  struct exports set;
  struct q_error err = { "" };
  char path[256], id[Q_SNAPSHOT_ID_SIZE];
  unsigned max;

  (void)state;
  exports_init (&set);
  make_image ("s", path);
  struct export_options o = options ("s", path);
  must_add (&set, &o);
  struct export *x = must_get (&set, "s");
  assert_int_equal (q_snapshot_create (x->img, "one", id, &err), 0);
  assert_int_equal (q_snapshot_create (x->img, "two", id, &err), 0);
  export_put (x);
  assert_int_equal (exports_remove (&set, "s", false, &err), 0);

  o.snapshots = true;
  must_add (&set, &o);
  x = must_get (&set, "s");
  assert_error (export_snapshot_delete (x, "one", &err), -EBUSY, &err, "s@one");
  assert_error (export_snapshot_delete (x, id, &err), -EBUSY, &err, "s@two");
  assert_int_equal (export_snapshot_delete (x, "none", &err), -ENOENT);
  export_put (x);

  struct export *two = must_get (&set, "s@two");
  assert_int_equal (export_enter (two, &max), 0);
  assert_error (exports_remove (&set, "s", false, &err), -EBUSY, &err, "s@two");
  export_leave (two);
  export_put (two);
  assert_int_equal (exports_remove (&set, "s@one", false, &err), 0);
  x = must_get (&set, "s");
  assert_int_equal (export_snapshot_delete (x, "one", &err), 0);
  export_put (x);
  assert_int_equal (exports_remove (&set, "s", false, &err), 0);
  assert_null (exports_get (&set, "s@two", 5));
  assert_null (exports_next (&set, NULL));
  assert_int_equal (exports_close (&set), 0);
}

static void *
remove_snapshot (void *opaque)
{
  struct q_error err = { "" };

  return (void *)(intptr_t)exports_remove (opaque, "t@one", true, &err);
}

static void *
remove_parent (void *opaque)
{
  struct q_error err = { "" };

  return (void *)(intptr_t)exports_remove (opaque, "t", true, &err);
}

/* The one waits for a client of the snapshot's, the other is to take that export along. */
static void
parent_and_snapshot_at_once (void **state)
{
  struct exports set;
  struct q_error err = { "" };
  char path[256], id[Q_SNAPSHOT_ID_SIZE];
  void *result[2];

  (void)state;
  exports_init (&set);
  make_image ("t", path);
  struct export_options o = options ("t", path);
  must_add (&set, &o);
  struct export *x = must_get (&set, "t");
  assert_int_equal (q_snapshot_create (x->img, "one", id, &err), 0);
  export_put (x);
  assert_int_equal (exports_remove (&set, "t", false, &err), 0);
  o.snapshots = true;
  for (int i = 0; i < 30; i++) {
    pthread_t first, second;
    must_add (&set, &o);
    struct export *one = must_get (&set, "t@one");
    assert_int_equal (pthread_create (&first, NULL, remove_snapshot, &set), 0);
    while (!atomic_load (&one->leaving))
      usleep (100);
    assert_int_equal (pthread_create (&second, NULL, remove_parent, &set), 0);
    usleep (1000); /* it may get as far as it can */
    export_put (one);
    pthread_join (first, &result[0]);
    pthread_join (second, &result[1]);
    assert_null (result[0]);
    assert_null (result[1]);
    assert_null (exports_next (&set, NULL));
  }
  assert_int_equal (exports_close (&set), 0);
}

/* ---- all at once ----------------------------------------------------------------------------- */

#define ROUNDS 150

static atomic_bool over;

static void *
use (void *opaque)
{
  struct exports *set = opaque;
  char text[EXPORT_DESCRIPTION_SIZE];
  unsigned max, seen = 0;

  while (!atomic_load (&over)) {
    for (struct export *x = exports_next (set, NULL); x; x = exports_next (set, x)) {
      export_description (x, text);
      if (export_enter (x, &max) < 0)
        continue;
      seen += q_size (x->img) == DISK;
      export_leave (x);
    }
  }
  return (void *)(uintptr_t)seen;
}

static void *
manage (void *opaque)
{
  struct exports *set = opaque;
  struct q_error err = { "" };
  static atomic_uint numbers;
  unsigned me = atomic_fetch_add (&numbers, 1);
  char path[256], name[32];

  snprintf (name, sizeof name, "m%u", me);
  make_image (name, path);
  struct export_options o = options (name, path);
  for (unsigned i = 0; i < ROUNDS; i++) {
    must_add (set, &o);
    struct export *x = must_get (set, name);
    struct export_changes changes = { .description = name, .rate = i };
    assert_int_equal (export_change (x, &changes), 0);
    export_put (x);
    int r = exports_remove (set, name, i % 2, &err);
    if (r == -EBUSY)
      r = exports_remove (set, name, true, &err);
    assert_int_equal (r, 0);
  }
  return NULL;
}

static void
everybody_at_once (void **state)
{
  struct exports set;
  pthread_t users[2], managers[2];

  (void)state;
  exports_init (&set);
  for (int i = 0; i < 2; i++) {
    assert_int_equal (pthread_create (&users[i], NULL, use, &set), 0);
    assert_int_equal (pthread_create (&managers[i], NULL, manage, &set), 0);
  }
  for (int i = 0; i < 2; i++)
    pthread_join (managers[i], NULL);
  atomic_store (&over, true);
  for (int i = 0; i < 2; i++)
    pthread_join (users[i], NULL);
  assert_null (exports_next (&set, NULL));
  assert_int_equal (exports_close (&set), 0);
}

/* ---- who they are for ------------------------------------------------------------------------ */

static void
assert_tls_only (struct exports *set, const char *name, bool expected)
{
  struct export *x = must_get (set, name);
  struct authz *authz;
  bool tls_only;

  export_admission (x, &tls_only, &authz);
  export_put (x);
  if (tls_only != expected)
    fail_msg ("\"%s\" is for clients %s", name, tls_only ? "with TLS" : "in plain text");
}

/* What is made of an export is for nobody that the export itself is not for any more. */
static void
parts_are_for_the_same_clients (void **state)
{
  struct export_changes changes = { .tls_only = true };
  struct exports set;
  struct q_error err = { "" };
  char path[256], id[Q_SNAPSHOT_ID_SIZE];

  (void)state;
  exports_init (&set);
  make_image ("t", path);
  struct export_options o = options ("t", path);
  must_add (&set, &o);
  struct export *x = must_get (&set, "t");
  assert_int_equal (q_snapshot_create (x->img, "one", id, &err), 0);
  export_put (x);
  assert_int_equal (exports_remove (&set, "t", false, &err), 0);
  o.snapshots = true;
  must_add (&set, &o);
  x = must_get (&set, "t");
  struct export_options view = options ("view", NULL), strict = options ("strict", NULL);
  view.base = strict.base = x;
  strict.tls_only = true;
  must_add (&set, &view);
  must_add (&set, &strict);

  assert_tls_only (&set, "t@one", false);
  assert_tls_only (&set, "view", false);
  assert_int_equal (export_change (x, &changes), 0);
  assert_tls_only (&set, "t@one", true);
  assert_tls_only (&set, "view", true);
  changes.tls_only = false;
  assert_int_equal (export_change (x, &changes), 0);
  assert_tls_only (&set, "t", false);
  assert_tls_only (&set, "t@one", false);
  assert_tls_only (&set, "strict", true);
  export_put (x);
  assert_int_equal (exports_close (&set), 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (adds_and_removes),   cmocka_unit_test (prepared_is_not_seen),
    cmocka_unit_test (changes_in_place),   cmocka_unit_test (hard_waits_for_clients),
    cmocka_unit_test (snapshots_go_along), cmocka_unit_test (parent_and_snapshot_at_once),
    cmocka_unit_test (everybody_at_once),  cmocka_unit_test (parts_are_for_the_same_clients),
  };
  char command[300];

  if (!mkdtemp (dir))
    return 1;
  int failed = cmocka_run_group_tests (tests, NULL, NULL);
  snprintf (command, sizeof command, "rm -rf %s", dir);
  return system (command) == 0 ? failed : 1;
}
