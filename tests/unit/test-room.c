/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Waiting for room, without disks: what the clock and the order of threads can do to it.
 */

#include "unit.h"

/* Its times are its own. */
#include "../../server/export/room.c"

#define SECOND (1000 * MS)

struct scene {
  struct ev_loop *ev;
  struct mailbox home;
  struct session session;
  struct export export;
  struct shard shard;
  struct request rq[3];
  struct room *room;
};

static void
wake (struct mailbox *m)
{
  (void)m;
}

static void
begin_scene (struct scene *s, const char *text)
{
  struct room_options options;

  *s = (struct scene){ .home.wake = wake };
  s->ev = ev_loop_new (EVFLAG_AUTO);
  assert_non_null (s->ev);
  assert_true (room_parse (text, &options));
  s->room = room_new ("x", &options);
  assert_non_null (s->room);
  s->room->since = 1; /* somebody waits already: nothing is told of an image */
  s->room->next_try = UINT64_MAX;
  s->session.shard = &s->shard;
  s->export.room = s->room;
  for (size_t i = 0; i < lengthof (s->rq); i++)
    s->rq[i] = (struct request){
      .job.home = &s->home, .session = &s->session, .export = &s->export, .type = NBD_CMD_WRITE
    };
  rooms_start (s->ev, NULL);
}

static void
end_scene (struct scene *s)
{
  rooms_stop ();
  room_free (s->room);
  ev_loop_destroy (s->ev);
}

static void
test_limit (void **state)
{
  struct scene s;

  (void)state;
  begin_scene (&s, "wait:4294968"); /* more milliseconds than 32 bits have */
  assert_true (s.room->limit == 4294968 * SECOND);
  end_scene (&s);
  begin_scene (&s, "wait:100000000");
  assert_true (s.room->limit == MAX_SECONDS * SECOND);
  end_scene (&s);
}

/* A request that begins to wait after the clock was read has not waited for ages. */
static void
test_clock (void **state)
{
  struct request rq = { .waited_since = 1000 * SECOND };
  struct deadline d = { 1000 * SECOND - 1, 3600 * SECOND };

  (void)state;
  assert_false (is_late (&rq, &d));
  d.now = 4600 * SECOND - 1;
  assert_false (is_late (&rq, &d));
  d.now++;
  assert_true (is_late (&rq, &d));
  d.limit = 0;
  assert_false (is_late (&rq, &d));
}

static void
try_first (struct scene *s)
{
  struct batch list = { 0 };

  assert_null (s->room->ahead);
  batch_add (&list, batch_take (&s->room->queue));
  s->room->ahead = (struct request *)list.first;
  s->room->trying++;
}

/* An error that has nothing to do with room lets nobody go but the one that has it. */
static void
test_other_error (void **state)
{
  struct fixture f;
  struct scene s;

  (void)state;
  unit_init (&f);
  unit_create (&f, "disk", 1 << 20, NULL);
  begin_scene (&s, "wait");
  s.export.img = unit_open (&f, "disk");
  for (size_t i = 0; i < lengthof (s.rq); i++)
    assert_int_equal (room_park (s.room, &s.rq[i]), 0);
  try_first (&s);
  room_passed (s.room, &s.rq[0], -EIO);
  assert_int_equal (room_waiting (s.room), 2);
  assert_true (s.room->since > 0);
  try_first (&s);
  s.shard.pool = pool_new (0); /* runs what follows */
  assert_non_null (s.shard.pool);
  s.rq[2].job.run = job_done;
  room_passed (s.room, &s.rq[1], 0);
  assert_null (s.room->queue.first);
  assert_ptr_equal (s.home.head, &s.rq[2].job);
  room_passed (s.room, &s.rq[2], 0);
  assert_int_equal (room_waiting (s.room), 0);
  assert_true (s.room->since == 0);
  pool_free (s.shard.pool);
  end_scene (&s);
  unit_close (s.export.img);
  unit_done (&f);
}

/* Nobody is told of a full disk because the connection ends. */
static void
test_end (void **state)
{
  struct scene s;

  (void)state;
  begin_scene (&s, "wait");
  assert_int_equal (room_park (s.room, &s.rq[0]), 0);
  assert_int_equal (room_park (s.room, &s.rq[1]), 0);
  try_first (&s);
  room_end (s.room);
  assert_int_equal (s.rq[1].error, -ESHUTDOWN);
  assert_int_equal (room_park (s.room, &s.rq[0]), -ESHUTDOWN);
  assert_int_equal (room_park (s.room, &s.rq[2]), -ESHUTDOWN);
  assert_int_equal (room_waiting (s.room), 0);
  end_scene (&s);

  begin_scene (&s, "wait");
  assert_int_equal (room_park (s.room, &s.rq[0]), 0);
  room_drop (s.room, &s.session);
  assert_int_equal (s.rq[0].error, -ESHUTDOWN);
  assert_int_equal (room_park (s.room, &s.rq[1]), -ESHUTDOWN);
  end_scene (&s);

  begin_scene (&s, "wait:1");
  s.rq[0].waited_since = 1;
  s.room->trying = 1;
  assert_int_equal (room_park (s.room, &s.rq[0]), -ENOSPC);
  end_scene (&s);
}

/* Somebody knows that there is room: it is tried at once, whatever the clock says, and once more if
 * the try under way had begun before. */
static void
test_resume (void **state)
{
  struct scene s;
  uint64_t before;

  (void)state;
  begin_scene (&s, "wait");
  pool = s.shard.pool = pool_new (0);
  assert_non_null (pool);
  for (size_t i = 0; i < lengthof (s.rq); i++) {
    s.rq[i].job.run = job_done;
    assert_int_equal (room_park (s.room, &s.rq[i]), 0);
  }
  ev_run (s.ev, EVRUN_ONCE);
  assert_null (s.room->ahead); /* the time has not come */
  assert_int_equal (room_resume (s.room), 3);
  ev_run (s.ev, EVRUN_ONCE);
  assert_ptr_equal (s.room->ahead, &s.rq[0]);
  assert_ptr_equal (mailbox_take (&s.home), &s.rq[0].job);

  /* Told during a try that comes too early. */
  assert_int_equal (room_resume (s.room), 3);
  assert_int_equal (room_park (s.room, &s.rq[0]), 0);
  assert_true (s.room->next_try <= stats_clock ());
  ev_run (s.ev, EVRUN_ONCE);
  assert_ptr_equal (s.room->ahead, &s.rq[1]);
  assert_ptr_equal (mailbox_take (&s.home), &s.rq[1].job);
  /* ... and not for the next one. */
  before = stats_clock ();
  assert_int_equal (room_park (s.room, &s.rq[1]), 0);
  assert_true (s.room->next_try >= before + FIRST_WAIT);

  room_end (s.room);
  assert_int_equal (room_resume (s.room), 0);
  assert_int_equal (room_resume (NULL), 0);
  end_scene (&s);
  pool_free (s.shard.pool);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_limit),       cmocka_unit_test (test_clock),
    cmocka_unit_test (test_other_error), cmocka_unit_test (test_end),
    cmocka_unit_test (test_resume),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
