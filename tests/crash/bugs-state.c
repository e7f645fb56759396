/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Our own bugs: what a killed process had acknowledged was there, and was not taken up.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bugs.h"
#include "schedule.h"
#include "statefile.h"

static char said[512]; /* the last thing that the engine said at opening */

static void
listen (void *opaque, enum q_log_level level, const char *text)
{
  (void)opaque;
  if (level <= Q_LOG_WARNING)
    snprintf (said, sizeof said, "%s", text);
}

static const struct workload image = { .name = "state", SMALL_IMAGE };

static void
open_with_state (struct run *run, const struct workload *w)
{
  struct q_error err;

  check (workload_prepare (run, w, bugs_seed), "cannot make an image");
  workload_keep_state (run);
  check (workload_open (run, &err) == 0, "%s", err.text);
}

/* What a process killed now leaves, then the end of this one, then the next. */
static void
kill_and_open (struct run *run)
{
  struct mem_file *cut = mem_add (&run->store, "cut");
  struct state_copy copy;
  struct q_error err;
  uint64_t bad;
  uint8_t byte;
  bool good;

  state_save (&copy);
  check (copy.file[0].exists, "there is no state file");
  mem_set (cut, run->top->data, run->top->size);
  check (workload_close (run, &err) == 0, "%s", err.text);
  state_restore (&copy);
  state_free (&copy);
  said[0] = '\0';
  q_set_log (listen, NULL);
  check (q_open (&run->img, "cut", &run->opts, &err) == 0, "%s", err.text);
  q_set_log (bugs_quiet, NULL);
  good = workload_compare (run->img, &run->live, &bad, &byte);
  if (!good)
    die ("byte %llu is %#x after a kill: %s", (unsigned long long)bad, byte, said);
  check_image (run);
  check (workload_close (run, &err) == 0, "%s", err.text);
}

/* A flush that found nothing to write counted all the same, and the image on disk was then from
 * "before the last flush". */
void
test_flush_of_nothing_keeps_state (void)
{
  struct guest g;
  struct run run;
  q_pin_t pin;

  open_with_state (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  guest_write (&g, 0, 8 * 4096);
  flush (&run);
  pin = q_pin (); /* keeps in limbo what the discard lets go of */
  guest_discard (&g, 4096, 4096);
  for (int i = 0; i < 4; ++i)
    flush (&run);
  q_unpin (pin);
  guest_write (&g, 20 * 4096, 3 * 4096);
  guest_free (&g);
  kill_and_open (&run);
  workload_free (&run);
}

/* The same after flushes that had counts to write and no references. */
void
test_flush_of_counts_keeps_state (void)
{
  struct q_write_plan plan;
  struct guest g;
  struct run run;
  q_pin_t pin;

  open_with_state (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  guest_write (&g, 0, 4096);
  flush (&run);
  for (int i = 0; i < 3; ++i) {
    guest_discard (&g, 9 * 4096, 4096);
    flush (&run);
    flush (&run);
    pin = q_pin ();
    check (q_write_begin (run.img, 9 * 4096, 4096, 0, &plan) == 0, "a write could not begin");
    q_write_abort (&plan);
    q_unpin (pin);
    flush (&run);
    flush (&run);
  }
  guest_write (&g, 20 * 4096, 3 * 4096);
  guest_free (&g);
  kill_and_open (&run);
  workload_free (&run);
}

/* A state file of an earlier session must not be taken for that of the last one. */
void
test_state_of_another_session (void)
{
  struct mem_file *cut;
  struct state_copy copy;
  struct q_error err;
  struct guest g;
  struct run run;
  uint64_t bad;
  uint8_t byte;

  open_with_state (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  guest_write (&g, 0, 16 * 4096);
  guest_discard (&g, 3 * 4096, 4 * 4096);
  state_save (&copy);
  check (workload_close (&run, &err) == 0 && workload_open (&run, &err) == 0, "%s", err.text);
  guest_write (&g, 3 * 4096, 13 * 4096);
  flush (&run);
  cut = mem_add (&run.store, "cut");
  mem_set (cut, run.top->data, run.top->size);
  check (workload_close (&run, &err) == 0, "%s", err.text);
  state_restore (&copy);
  state_free (&copy);
  check (q_open (&run.img, "cut", &run.opts, &err) == 0, "%s", err.text);
  check (workload_compare (run.img, &run.live, &bad, &byte),
         "the state of another session was taken up");
  check_image (&run);
  guest_free (&g);
  check (workload_close (&run, &err) == 0, "%s", err.text);
  workload_free (&run);
}

/* ---- killed while what a killed process had left is put right ----- */

struct last_write {
  unsigned left; /* writes that are made; all later ones fail */
  bool failed;
};

static int
fail_later (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct last_write *w = opaque;

  (void)partial;
  if (call->kind != MEM_WRITE || w->left-- > 0)
    return 0;
  w->left = 0;
  w->failed = true;
  return -EIO;
}

/* Once the tables were in the image, clusters that a write had allocated and not used stayed leaked
 * if the one who put that right was killed. */
void
test_killed_again_leaks_nothing (void)
{
  struct q_check_result result;
  struct q_write_plan plan;
  struct state_copy copy;
  struct mem_file *cut;
  struct q_error err;
  struct guest g;
  struct run run;
  uint8_t *dead;
  uint64_t size;
  q_pin_t pin;

  open_with_state (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  guest_write (&g, 0, 8 * 4096);
  pin = q_pin ();
  check (q_write_begin (run.img, 20 * 4096, 2 * 4096, 0, &plan) == 0, "a write could not begin");
  state_save (&copy);
  size = run.top->size;
  dead = xalloc (size);
  memcpy (dead, run.top->data, size);
  q_write_abort (&plan);
  q_unpin (pin);
  guest_free (&g);
  check (workload_close (&run, &err) == 0, "%s", err.text);
  cut = mem_add (&run.store, "cut");
  for (unsigned n = 0;; ++n) {
    struct last_write last = { .left = n };
    const struct mem_tap tap = { .before = fail_later, .opaque = &last };

    mem_set (cut, dead, size);
    state_restore (&copy);
    mem_put_tap (cut, &tap);
    if (q_open (&run.img, "cut", &run.opts, &err) == 0)
      q_close (&run.img, &err);
    mem_put_tap (cut, NULL);
    check (q_open (&run.img, "cut", &run.opts, &err) == 0, "%s", err.text);
    check (q_check (run.img, 0, &result, NULL, NULL, &err) == 0, "%s", err.text);
    check (result.leaks == 0 && result.corruptions == 0,
           "after %u writes: %llu leaks and %llu corruptions", n, (unsigned long long)result.leaks,
           (unsigned long long)result.corruptions);
    check (workload_close (&run, &err) == 0, "%s", err.text);
    if (!last.failed) {
      check (n > 1, "nothing was to be put right");
      break;
    }
  }
  state_free (&copy);
  free (dead);
  workload_free (&run);
}

/* ---- killed at the steps of a write ------------------------------------------------------------
 *
 * Needs probes. */

#define MAX_DEATHS 64u

struct death {
  struct state_copy state;
  uint8_t *image;
  uint64_t size;
};

static struct {
  struct guest *guest;
  unsigned n;
  struct death death[MAX_DEATHS];
} killed;

/* What is there is written once more: whenever it ends, the disk is the same. */
static void
write_again (struct guest *g)
{
  uint8_t data[4096];

  check (q_pread (g->run->img, data, 0, sizeof data) == 0 &&
             q_pwrite (g->run->img, data, 0, sizeof data) == 0,
         "cannot write what is there");
}

static void
die_there (void)
{
  const struct mem_file *top = killed.guest->run->top;
  struct death *d = &killed.death[killed.n];

  check (killed.n < MAX_DEATHS, "a write has too many steps");
  state_save (&d->state);
  d->size = top->size;
  d->image = xalloc (top->size);
  memcpy (d->image, top->data, top->size);
  ++killed.n;
}

/* Ends this process, and then opens what each of the killed ones left: the disk as it is. */
static void
take_up (struct run *run)
{
  struct mem_file *cut = mem_add (&run->store, "cut");
  struct q_error err;
  uint64_t bad = 0;
  uint8_t byte = 0;

  guest_free (killed.guest);
  check (workload_close (run, &err) == 0, "%s", err.text);
  for (unsigned i = 0; i < killed.n; ++i) {
    mem_set (cut, killed.death[i].image, killed.death[i].size);
    state_restore (&killed.death[i].state);
    said[0] = '\0';
    q_set_log (listen, NULL);
    check (q_open (&run->img, "cut", &run->opts, &err) == 0, "%s", err.text);
    q_set_log (bugs_quiet, NULL);
    check (workload_compare (run->img, &run->live, &bad, &byte),
           "killed at step %u of %u of a write: byte %llu is %#x: %s", i, killed.n,
           (unsigned long long)bad, byte, said);
    check_image (run);
    check (workload_close (run, &err) == 0, "%s", err.text);
    state_free (&killed.death[i].state);
    free (killed.death[i].image);
  }
  killed.n = 0;
  workload_free (run);
}

/* ---- killed while an L2 table is given another place -------------------------------------------
 *
 * A snapshot's moment is over, what it refers to is not on the disk yet, and a table of that is
 * about to be changed.  Its place is a new one before the L1 table says so. */

static struct {
  pthread_t maker;  /* of the snapshot */
  bool over;        /* its moment is */
  unsigned written; /* clusters */
} moved;

static void
write_next (struct guest *g)
{
  guest_write (g, (uint64_t)moved.written++ * 4096, 4096);
}

static void
at_step (const char *place)
{
  static const char over[] = "the snapshot's moment is over, it is not durable";
  struct other o;
  bool is_over = strcmp (place, over) == 0;

  if (moved.over) {
    if (!pthread_equal (pthread_self (), moved.maker))
      die_there ();
    return;
  }
  if (!pthread_equal (pthread_self (), moved.maker))
    return;
  /* Something is to be dirty when the moment comes. */
  if (!is_over && strcmp (place, "all durable, limbo not told") != 0)
    return;
  moved.over = is_over;
  start_other (&o, killed.guest, is_over ? write_again : write_next);
  pthread_join (o.id, NULL);
  if (is_over)
    schedule_watch (NULL);
}

void
test_killed_while_a_table_moves (void)
{
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_error err;
  struct guest g;
  struct run run;

  if (!schedule_has_probes ())
    return;
  open_with_state (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  killed.guest = &g;
  moved.maker = pthread_self ();
  write_next (&g);
  schedule_watch (at_step);
  check (q_snapshot_create (run.img, "moved", id, &err) == 0, "%s", err.text);
  check (moved.over && moved.written > 1 && killed.n > 1, "nothing was killed");
  take_up (&run);
}

/* ---- killed while a part of a compressed cluster is written ------------------------------------
 *
 * All of it gets a new place, and its extended L2 entry has two halves that change one after the
 * other.  The new descriptor beside the old bitmap, which is empty, would say that the cluster has
 * nothing: neither what was compressed nor what has been copied. */

static bool halfway; /* the process was killed between the two */

static void
at_half (const char *place)
{
  halfway = halfway || strcmp (place, "bitmap set, descriptor not") == 0 ||
            strcmp (place, "descriptor set, bitmap not") == 0;
  die_there ();
}

void
test_killed_at_half_an_entry (void)
{
  static const struct workload extended = { .name = "halves",
                                            .version = 3,
                                            .cluster_bits = 14,
                                            .refcount_bits = 16,
                                            .clusters = 24,
                                            .threads = 1,
                                            .operations = 200,
                                            .extended_l2 = true };
  struct guest g;
  struct run run;

  if (!schedule_has_probes ())
    return;
  open_with_state (&run, &extended);
  guest_init (&g, &run, 0, 0, run.size);
  killed.guest = &g;
  do /* not everything becomes smaller */
    check (guest_compress (&g, 0, 16384) == 0, "cannot compress");
  while (host_of (&run, 0) != 0);
  schedule_watch (at_half);
  write_again (&g);
  schedule_watch (NULL);
  check (halfway, "nothing was killed between two halves of an entry: the test is wrong");
  take_up (&run);
}
