/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bugs of other engines: what a power cut, or a backing file, brings back.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bugs.h"
#include "schedule.h"
#include "snaps.h"

/* ---- a cluster freed before its L2 update reaches the disk ----------------------------------- */

static void
record_done (void *opaque, const struct mem_call *call)
{
  rec_done (opaque, call);
}

/* From here on what is done to the disk is recorded; what it holds now is what it began with. */
static void
record (struct run *run, struct recorder *rec, struct mem_tap *tap)
{
  rec_init (rec, run->top);
  tap->done = record_done;
  tap->opaque = rec;
  run->top->tap = tap;
  run->rec = rec;
}

/* Closes the image, looks at what power cuts would have left of what was recorded, and frees all.
 */
static void
cut (struct run *run, struct recorder *rec, const struct states_options *o, const char *when)
{
  struct states_counts n = { 0 };

  check (workload_close (run, NULL) == 0, "%s: close failed", when);
  run->top->tap = NULL;
  check (!run->failure[0] && states_try (run, rec, o, &n), "%s: %s", when, run->failure);
  rec_free (rec);
  workload_free (run);
}

void
test_free_last (void)
{
  static const struct workload image = { .name = "empty", .fill = 60, SMALL_IMAGE };
  const struct states_options o = { .each = 12 };
  struct mem_tap tap = { 0 };
  struct recorder rec;
  struct guest g;
  struct run run;
  uint64_t freed[16];

  open_run (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  guest_write (&g, 0, 16 * 4096);
  flush (&run);
  check (q_pread (run.img, run.contents, 0, run.size) == 0, "reading failed");
  record (&run, &rec, &tap);
  for (int i = 0; i < 16; ++i)
    freed[i] = host_of (&run, (uint64_t)i * 4096);
  guest_discard (&g, 0, 16 * 4096);
  for (uint64_t at = 20; at < 60; ++at) {
    guest_write (&g, at * 4096, 4096);
    for (int i = 0; i < 16; ++i)
      check (host_of (&run, at * 4096) != freed[i], "a cluster is reused before a flush");
  }
  flush (&run);
  for (uint64_t at = 0; at < 8; ++at)
    guest_write (&g, at * 4096, 4096);
  flush (&run);
  guest_free (&g);
  cut (&run, &rec, &o, "freed");
}

/* ---- discard and zeroes over a backing file -----------------------------------------------------
 */

static void
uncover (const struct workload *w)
{
  struct guest g;
  struct run run;

  open_run (&run, w);
  guest_init (&g, &run, 0, 0, run.size);
  /* The guest's own checks are the test: after a discard there is what was there, or zeros. */
  for (int round = 0; round < 2; ++round) {
    guest_write (&g, 3 * 4096, 4 * 4096);
    guest_discard (&g, 4 * 4096, 4096);
    guest_zero (&g, 5 * 4096, 4096, Q_ZERO_UNMAP);
    guest_zero (&g, 9 * 4096, 2 * 4096, Q_ZERO_UNMAP); /* never allocated here */
    guest_discard (&g, 12 * 4096, 2 * 4096);
    guest_write (&g, 9 * 4096 + 10, 100); /* copies zeros, not the backing file */
    guest_zero (&g, run.size - 5000, 5000, Q_ZERO_UNMAP);
    guest_read (&g, 0, run.size);
    flush (&run);
    guest_read (&g, 0, run.size);
  }
  guest_free (&g);
  end_run (&run);
}

void
test_uncovered_backing (void)
{
  static const struct workload v2 = { .name = "overlay-v2",
                                      .image = IMAGE_OVERLAY,
                                      .version = 2,
                                      .cluster_bits = 12,
                                      .clusters = 64,
                                      .threads = 1,
                                      .operations = 200 };
  static const struct workload v3 = { .name = "overlay", .image = IMAGE_OVERLAY, SMALL_IMAGE };

  uncover (&v2);
  uncover (&v3);
}

/* ---- cloud-hypervisor 8721: an L2 table is in the L1 table before it is counted -----------------
 */

void
test_tables_counted_first (void)
{
  /* Clusters of 512 bytes: an L2 table covers 32 KiB, so that most writes make one. */
  static const struct workload image = { .name = "tables",
                                         .version = 3,
                                         .cluster_bits = 9,
                                         .refcount_bits = 16,
                                         .clusters = 2048,
                                         .threads = 1,
                                         .operations = 40,
                                         .mix = { .small = 60, .discard = 20, .flush = 20 } };
  const struct states_options o = { .each = 8, .qemu_one_in = 300 };
  struct mem_tap tap = { 0 };
  struct recorder rec;
  struct run run;

  open_run (&run, &image);
  record (&run, &rec, &tap);
  workload_run (&run);
  cut (&run, &rec, &o, "new tables");
}

/* ---- a name where an extension is expected -----------------------------------------------------
 *
 * Writers of long ago put the backing file name directly behind the header, without extensions and
 * without an end marker.  When we add an extension, nobody may ever take the name for one. */

static void
put_be (uint8_t *p, uint64_t v, unsigned bytes)
{
  while (bytes-- > 0) {
    p[bytes] = (uint8_t)v;
    v >>= 8;
  }
}

static void
add_behind_name (unsigned version, const char *name)
{
  const struct workload image = { .name = "old",
                                  .image = IMAGE_OVERLAY,
                                  .version = version,
                                  .cluster_bits = 12,
                                  .refcount_bits = 16,
                                  .clusters = 16,
                                  .threads = 1,
                                  .operations = 8,
                                  .mix = { .small = 3, .flush = 1 } };
  const struct states_options o = { .each = 20 };
  struct mem_tap tap = { 0 };
  struct mem_file *base;
  struct recorder rec;
  struct q_error err;
  struct run run;
  uint8_t *header;
  unsigned length = version == 2 ? 72 : 104;
  char when[600];

  check (workload_prepare (&run, &image, bugs_seed), "cannot make an image");
  base = mem_find (&run.store, "base");
  if (!mem_find (&run.store, name))
    mem_set (mem_add (&run.store, name), base->data, base->size);
  header = run.top->data;
  memset (header + length, 0, 4096 - length);
  memcpy (header + length, name, strlen (name));
  put_be (header + 8, length, 8);
  put_be (header + 16, strlen (name), 4);
  if (version == 3)
    put_be (header + 100, length, 4);
  run.opts.backing = Q_BACKING_PROBE;
  record (&run, &rec, &tap);
  snprintf (when, sizeof when, "version %u, name '%s'", version, name);
  check (workload_open (&run, &err) == 0, "%s: %s", when, err.text);
  workload_run (&run);
  cut (&run, &rec, &o, when);
}

void
test_name_behind_header (void)
{
  char name[451];

  /* One that has to move out of the first sector. */
  memset (name, 'n', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  add_behind_name (2, name);
  for (unsigned version = 2; version <= 3; ++version) {
    add_behind_name (version, "b");
    add_behind_name (version, "base");
    add_behind_name (version, "base-with-a-name-of-more-than-a-few-dozen-letters.qcow2");
  }
}

/* ---- a block device full of old bytes ----------------------------------------------------------
 *
 * What nobody wrote on a device is not zeros, wherever it is. */

void
test_device_shows_nothing_old (void)
{
  static const struct workload image = { .name = "device", .device = true, SMALL_IMAGE };
  struct guest g;
  struct run run;

  open_run (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  for (uint64_t at = 0; at + 3 * 4096 < run.size; at += 3 * 4096) {
    guest_write (&g, at + 700, 1000);
    guest_write (&g, at + 4096, 512);
    guest_write (&g, at + 3 * 4096 - 512, 512);
  }
  guest_read (&g, 0, run.size);
  guest_free (&g);
  end_run (&run);
}

/* ---- what is published while a flush is under way ----------------------------------------------
 *
 * At each of its steps another thread completes a write, a discard or write zeroes.  The flush may
 * take it along or leave it for the next one, but not half of it.  Needs probes. */

static struct {
  const char *after; /* this place, if not NULL ... */
  const char *place; /* ... this one; NULL: it has happened */
  struct guest *guest;
  unsigned what;
  pthread_t flusher;
  bool fills, full; /* the disk, by then */
} meanwhile;

static void
do_meanwhile (struct guest *g)
{
  switch (meanwhile.what) {
  case 0:
    guest_write (g, 30 * 4096, 4096); /* a new cluster */
    guest_write (g, 5 * 4096, 100);   /* one that may be in the round */
    break;
  case 1:
    guest_discard (g, 4096, 4096);
    guest_write (g, 31 * 4096 + 100, 1000);
    break;
  default:
    guest_zero (g, 2 * 4096, 2 * 4096, Q_ZERO_UNMAP);
    guest_write (g, 2 * 4096 + 512, 512);
  }
}

static void
at_place (const char *place)
{
  struct other o;

  if (!meanwhile.place || !pthread_equal (pthread_self (), meanwhile.flusher))
    return;
  if (meanwhile.after && strcmp (place, meanwhile.after) == 0)
    meanwhile.after = NULL;
  if (meanwhile.after || strcmp (place, meanwhile.place) != 0)
    return;
  meanwhile.place = NULL;
  start_other (&o, meanwhile.guest, do_meanwhile);
  pthread_join (o.id, NULL);
  meanwhile.full = meanwhile.fills;
}

/* Opens the image, and writes what a flush will find. */
static void
write_recorded (struct run *run, struct guest *g, const struct workload *image,
                struct recorder *rec, struct mem_tap *tap)
{
  open_run (run, image);
  guest_init (g, run, 0, 0, run->size);
  g->steps = false;
  record (run, rec, tap);
  snaps_begin (run->snaps);
  guest_write (g, 0, 8 * 4096);
  guest_write (g, 40 * 4096, 4096);
}

/* WHAT is done at PLACE, once it has been AFTER (which may be NULL), while FN runs. */
static void
publish_at (struct run *run, struct guest *g, const char *after, const char *place, unsigned what,
            void (*fn) (struct run *run))
{
  meanwhile.guest = g;
  meanwhile.what = what;
  meanwhile.flusher = pthread_self ();
  meanwhile.after = after;
  meanwhile.place = place;
  schedule_watch (at_place);
  fn (run);
  schedule_watch (NULL);
  check (!meanwhile.place, "nobody comes past '%s': the test is wrong", place);
}

static const struct states_options cuts = { .each = 8 };

static void
publish_during_flush (const char *place, unsigned what)
{
  static const struct workload image = { .name = "meanwhile", .fill = 20, SMALL_IMAGE };
  struct mem_tap tap = { 0 };
  struct recorder rec;
  struct guest g;
  struct run run;

  write_recorded (&run, &g, &image, &rec, &tap);
  publish_at (&run, &g, NULL, place, what, flush);
  /* Where what was let go of too late for that flush is not. */
  guest_write (&g, 50 * 4096, 4 * 4096);
  flush (&run);
  guest_read (&g, 0, run.size);
  guest_free (&g);
  cut (&run, &rec, &cuts, place);
}

void
test_published_during_flush (void)
{
  static const char *const places[] = { "limbo marked", "L1 copied", "L2 copied", "before a sync",
                                        "all durable, limbo not told" };

  for (size_t i = 0; schedule_has_probes () && i < sizeof places / sizeof places[0]; ++i)
    for (unsigned what = 0; what < 3; ++what)
      publish_during_flush (places[i], what);
}

/* ---- what is published while a snapshot is made durable ----------------------------------------
 *
 * The disk goes on before the storage has what the snapshot refers to.  What is changed by then is
 * not the snapshot's, however a power cut ends it; and when the storage is full, there is no
 * snapshot, and the disk has all of it.  Needs probes. */

static const char over[] = "the snapshot's moment is over, it is not durable";

static int
full_by_then (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  (void)opaque;
  (void)partial;
  return meanwhile.full && call->kind == MEM_WRITE ? -ENOSPC : 0;
}

static void
publish_during_snapshot (const char *place, unsigned what, bool fills)
{
  static const struct workload image = {
    .name = "settling", .fill = 20, SMALL_IMAGE, .mix = { .snapshot = 1 }
  };
  struct mem_tap tap = { .before = full_by_then };
  struct recorder rec;
  struct guest g;
  struct run run;
  char when[80];

  snprintf (when, sizeof when, "at '%s', %u", place ? place : over, what);
  write_recorded (&run, &g, &image, &rec, &tap);
  meanwhile.fills = fills;
  run.storm = fills ? ENOSPC : 0;
  publish_at (&run, &g, over, place ? place : over, what, snaps_make);
  check (!run.failure[0] && run.snaps->s[0].there == !fills, "%s: %s", when,
         run.failure[0] ? run.failure : "it is not there, or should not be");
  meanwhile.full = meanwhile.fills = false;
  run.storm = 0;
  guest_read (&g, 0, run.size);
  if (what == 1)
    flush (&run);
  if (fills)
    snaps_make (&run);
  check (run.snaps->s[fills].there, "%s: no snapshot", when);
  do_meanwhile (&g);
  flush (&run);
  guest_read (&g, 0, run.size);
  guest_free (&g);
  cut (&run, &rec, &cuts, when);
}

void
test_published_during_snapshot (void)
{
  static const char *const places[] = { NULL, "before a sync", "all durable, limbo not told" };

  for (unsigned what = 0; schedule_has_probes () && what < 3; ++what) {
    for (size_t i = 0; i < sizeof places / sizeof places[0]; ++i)
      publish_during_snapshot (places[i], what, false);
    publish_during_snapshot (NULL, what, true);
  }
}

/* ---- a table that is moved while it is new -----------------------------------------------------
 *
 * It is new when a snapshot is made: what the snapshot refers to is about to be written, and when
 * that is durable the table is one like others.  By then it has been given another place, where it
 * is new still: it must be there before the L1 table points to it.  On a device, where what was
 * never written is no empty table.  Needs probes. */

#define TABLE_BYTES (64u * 512) /* that an L2 table maps */

static struct {
  struct guest *guest;
  pthread_t maker; /* of the snapshot */
  unsigned tables; /* that the guest has made */
  bool over;       /* the snapshot's moment is */
} moving;

static void
make_table (struct guest *g)
{
  guest_write (g, (uint64_t)moving.tables++ * TABLE_BYTES, 512);
}

static void
change_last_table (struct guest *g)
{
  guest_write (g, (uint64_t)(moving.tables - 1) * TABLE_BYTES + 512, 512);
}

/* Each flush finds a new table that it has come too late for. */
static void
at_durable (const char *place)
{
  struct run *run = moving.guest->run;
  struct other o;

  if (moving.over || !pthread_equal (pthread_self (), moving.maker))
    return;
  moving.over = strcmp (place, over) == 0;
  if (!moving.over && strcmp (place, "all durable, limbo not told") != 0)
    return;
  if (moving.over) /* the disk is what the snapshot will show */
    check (q_pread (run->img, run->snaps->s[0].contents, 0, run->size) == 0, "cannot read");
  start_other (&o, moving.guest, moving.over ? change_last_table : make_table);
  pthread_join (o.id, NULL);
}

void
test_moved_while_new (void)
{
  static const struct workload image = { .name = "moved-while-new",
                                         .device = true,
                                         .version = 3,
                                         .cluster_bits = 9,
                                         .refcount_bits = 16,
                                         .clusters = 1000,
                                         .threads = 1,
                                         .operations = 100,
                                         .mix = { .snapshot = 1 } };
  const struct states_options o = { .each = 16 };
  struct mem_tap tap = { 0 };
  struct recorder rec;
  struct guest g;
  struct run run;

  if (!schedule_has_probes ())
    return;
  open_run (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  record (&run, &rec, &tap);
  snaps_begin (run.snaps);
  moving.guest = &g;
  moving.maker = pthread_self ();
  make_table (&g);
  schedule_watch (at_durable);
  snaps_make (&run);
  schedule_watch (NULL);
  check (moving.over && moving.tables > 1 && !run.failure[0],
         "no table was new when the snapshot was made: %s", run.failure);
  flush (&run);
  guest_read (&g, 0, run.size);
  guest_free (&g);
  cut (&run, &rec, &o, "a table that is moved while it is new");
}

/* ---- a refcount table that grows ---------------------------------------------------------------
 *
 * The header must not point to the new table before it is there, nor the table to its blocks.  One
 * growth, looked at closely. */

void
test_refcount_table_grows (void)
{
  /* A table of one cluster, 64 blocks of 64 counts: full at 4096 clusters, or 2 MiB. */
  static const struct workload image = { .name = "full-table",
                                         .version = 3,
                                         .cluster_bits = 9,
                                         .refcount_bits = 64,
                                         .clusters = 4300,
                                         .threads = 1,
                                         .operations = 1000 };
  const struct states_options o = { .each = 10, .qemu_one_in = 300 };
  struct mem_tap tap = { 0 };
  struct recorder rec;
  struct guest g;
  struct run run;
  uint64_t at = 0;

  open_run (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  g.steps = false;
  for (; run.top->size < 4090 * 512; at += 4096)
    guest_write (&g, at, 4096);
  flush (&run);
  check (run.top->size < 4096 * 512, "the table is full already: the test is wrong");
  check (q_pread (run.img, run.contents, 0, run.size) == 0, "reading failed");
  record (&run, &rec, &tap);
  guest_write (&g, at, 30 * 512);
  flush (&run);
  guest_write (&g, at + 30 * 512, 512);
  flush (&run);
  check (run.top->size > 4096 * 512, "the table has not grown: the test is wrong");
  guest_free (&g);
  cut (&run, &rec, &o, "a refcount table that grows");
}
