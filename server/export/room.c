/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Each room has a lock, taken for moments; the lock on the list of all of them is taken before it.
 *
 * A request is in one of three places: at the pool, trying (it carries `waited_since'), in its
 * room's queue, or on its way home.  Who takes it out of the queue, under the lock, owns it.
 */

#include <errno.h>
#include <ev.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"
#include "describe.h"
#include "keyval.h"
#include "log.h"
#include "request.h"
#include "room.h"

#define MS         UINT64_C (1000000) /* in ns */
#define TICK       0.1                /* seconds */
#define FIRST_WAIT (100 * MS)
#define LAST_WAIT  (1000 * MS)

/* The most seconds for --on-enospc=wait:SECONDS. */
#define MAX_SECONDS 100000000

struct room {
  struct room *next, **prev;
  char *name;
  uint64_t limit; /* ns; 0: none */

  pthread_mutex_t lock;
  struct batch queue;          /* those that wait, in the order of their next try */
  const struct request *ahead; /* the one that is being tried for all; NULL: none */
  bool resumed;                /* room_resume was called since that one was sent ahead */
  unsigned trying;             /* those that waited and are at the pool, that one included */
  uint64_t next_try, wait;     /* when one is to be, and what comes between two tries */
  uint64_t since;              /* when the first that waits began to; 0: none does */
  uint64_t times;
  bool ended; /* nobody waits any more */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct room *all;
static struct pool *pool;
static struct ev_loop *_Atomic loop; /* NULL: it does not run, and nobody waits */
static ev_async news;
static ev_timer tick;

bool
room_parse (const char *text, struct room_options *options)
{
  uint64_t seconds;

  *options = (struct room_options){ .wait = strncmp (text, "wait", 4) == 0 };
  if (strcmp (text, "report") == 0 || strcmp (text, "wait") == 0)
    return true;
  if (strncmp (text, "wait:", 5) != 0 || !parse_size (text + 5, &seconds) || seconds < 1 ||
      seconds > MAX_SECONDS || strspn (text + 5, "0123456789") != strlen (text + 5))
    return false;
  options->seconds = (unsigned)seconds;
  return true;
}

/* ---- telling --------------------------------------------------------------------------------- */

/* With the lock. */
static void
begin (struct room *room, const struct request *rq)
{
  const char *operation = rq->type == NBD_CMD_READ ? "read" : "write";

  room->since = stats_clock ();
  room->times++;
  room->wait = FIRST_WAIT;
  room->next_try = room->since + room->wait;
  log_warning ("export \"%s\": no space is left where %s is: writes wait until there is",
               room->name, q_filename (rq->export->img));
  /* As QEMU tells it of a guest's disk that waits (qapi/block-core.json). */
  control_event ("BLOCK_IO_ERROR",
                 json_pack ("{s:o, s:o, s:s, s:s, s:b, s:s}", "device", describe_text (room->name),
                            "node-name", describe_text (room->name), "operation", operation,
                            "action", "stop", "nospace", 1, "reason", strerror (ENOSPC)));
}

/* With the lock: says how it ended, if nobody waits any more. */
static void
settle (struct room *room, const char *how)
{
  if (room->since == 0 || room->queue.first || room->trying > 0)
    return;
  double seconds = (double)(stats_clock () - room->since) / 1e9;
  log_warning ("export \"%s\": no write waits for space any more, after %.1f seconds: %s",
               room->name, seconds, how);
  control_event ("NBDCOW_ENOSPC_OVER",
                 json_pack ("{s:o, s:f, s:s}", "id", describe_text (room->name), "seconds", seconds,
                            "reason", how));
  room->since = 0;
}

/* ---- moving requests ------------------------------------------------------------------------- */

/* All in LIST end with ERROR. */
static void
report (struct batch *list, int error)
{
  while (list->first) {
    struct request *rq = (struct request *)batch_take (list);
    rq->error = error;
    job_done (&rq->job);
  }
}

/* With the lock: moves those for which PICK is true from the queue to LIST. */
static void
take (struct room *room, bool (*pick) (const struct request *rq, const void *arg), const void *arg,
      struct batch *list)
{
  struct batch rest = { 0 };

  while (room->queue.first) {
    struct job *j = batch_take (&room->queue);
    batch_add (pick ((const struct request *)j, arg) ? list : &rest, j);
  }
  room->queue = rest;
}

static bool
is_any (const struct request *rq, const void *arg)
{
  (void)rq;
  (void)arg;
  return true;
}

static bool
is_of_session (const struct request *rq, const void *session)
{
  return rq->session == session;
}

struct deadline {
  uint64_t now, limit;
};

static bool
is_late (const struct request *rq, const void *arg)
{
  const struct deadline *d = arg;
  return d->limit > 0 && d->now >= rq->waited_since && d->now - rq->waited_since >= d->limit;
}

int
room_park (struct room *room, struct request *rq)
{
  struct ev_loop *ev = atomic_load (&loop);
  int r = 0;

  pthread_mutex_lock (&room->lock);
  uint64_t now = stats_clock ();
  if (rq->waited_since > 0)
    room->trying--;
  if (room->ahead == rq) {
    room->ahead = NULL;
    room->wait = 2 * room->wait < LAST_WAIT ? 2 * room->wait : LAST_WAIT;
    /* There may be room since it looked. */
    room->next_try = room->resumed ? now : now + room->wait;
  }
  if (rq->waited_since == 0)
    rq->waited_since = now;
  const struct deadline d = { now, room->limit };
  if (!ev || room->ended || rq->session->unwanted)
    r = -ESHUTDOWN;
  else if (is_late (rq, &d))
    r = -ENOSPC;
  if (r == 0) {
    if (room->since == 0)
      begin (room, rq);
    batch_add (&room->queue, &rq->job);
  } else
    settle (room, r == -ENOSPC ? "errors are reported" : "the connections end");
  pthread_mutex_unlock (&room->lock);
  if (r == 0)
    ev_async_send (ev, &news);
  return r;
}

void
room_passed (struct room *room, struct request *rq, int error)
{
  struct batch list = { 0 };
  /* Another error says nothing of room, unless it is all that anybody will get from now on. */
  bool all_follow = error == 0 || q_read_only (rq->export->img);

  pthread_mutex_lock (&room->lock);
  room->trying--;
  if (room->ahead == rq) {
    room->ahead = NULL;
    if (all_follow) {
      take (room, is_any, NULL, &list);
      room->trying += list.count;
    } else
      room->next_try = 0; /* the next one's turn */
  }
  settle (room, error == 0 ? "there is room" : "errors are reported");
  pthread_mutex_unlock (&room->lock);
  pool_submit (rq->session->shard->pool, &list);
}

void
room_drop (struct room *room, struct session *s)
{
  struct batch list = { 0 };

  if (!room)
    return;
  pthread_mutex_lock (&room->lock);
  s->unwanted = true;
  take (room, is_of_session, s, &list);
  if (list.first)
    settle (room, "its clients have gone");
  pthread_mutex_unlock (&room->lock);
  report (&list, -ESHUTDOWN);
}

void
room_end (struct room *room)
{
  struct batch list = { 0 };

  if (!room)
    return;
  pthread_mutex_lock (&room->lock);
  room->ended = true;
  take (room, is_any, NULL, &list);
  if (list.first)
    settle (room, "the connections end");
  pthread_mutex_unlock (&room->lock);
  report (&list, -ESHUTDOWN);
}

unsigned
room_resume (struct room *room)
{
  struct ev_loop *ev = atomic_load (&loop);

  if (!room)
    return 0;
  pthread_mutex_lock (&room->lock);
  unsigned n = room->queue.count + room->trying;
  room->wait = FIRST_WAIT;
  room->next_try = 0;
  room->resumed = room->ahead != NULL;
  pthread_mutex_unlock (&room->lock);
  if (n > 0 && ev)
    ev_async_send (ev, &news);
  return n;
}

unsigned
room_waiting (struct room *room)
{
  pthread_mutex_lock (&room->lock);
  unsigned n = room->queue.count + room->trying;
  pthread_mutex_unlock (&room->lock);
  return n;
}

uint64_t
room_times (struct room *room)
{
  pthread_mutex_lock (&room->lock);
  uint64_t times = room->times;
  pthread_mutex_unlock (&room->lock);
  return times;
}

/* ---- time ------------------------------------------------------------------------------------ */

/* Whether somebody waits. */
static bool
look (struct room *room)
{
  struct batch late = { 0 }, try = { 0 };

  pthread_mutex_lock (&room->lock);
  uint64_t now = stats_clock (); /* not before somebody was parked who is in the queue now */
  const struct deadline d = { now, room->limit };
  take (room, is_late, &d, &late);
  if (late.first)
    settle (room, "the time is over, errors are reported");
  if (!room->ahead && room->queue.first && now >= room->next_try) {
    struct job *j = batch_take (&room->queue);
    room->ahead = (struct request *)j;
    room->resumed = false;
    room->trying++;
    batch_add (&try, j);
  }
  bool waits = room->queue.first || room->trying > 0;
  pthread_mutex_unlock (&room->lock);
  report (&late, -ENOSPC);
  pool_submit (pool, &try);
  return waits;
}

static bool
look_at_all (void)
{
  bool any = false;

  pthread_mutex_lock (&lock);
  for (struct room *room = all; room; room = room->next)
    any |= look (room);
  pthread_mutex_unlock (&lock);
  return any;
}

static void
on_tick (struct ev_loop *ev, ev_timer *w, int revents)
{
  (void)revents;
  if (!look_at_all ())
    ev_timer_stop (ev, w);
}

/* Somebody waits, or is not to wait any longer. */
static void
on_news (struct ev_loop *ev, ev_async *w, int revents)
{
  (void)w;
  (void)revents;
  if (look_at_all () && !ev_is_active (&tick))
    ev_timer_again (ev, &tick);
}

/* ---- life ------------------------------------------------------------------------------------ */

struct room *
room_new (const char *name, const struct room_options *options)
{
  struct room *room = calloc (1, sizeof *room);

  if (!room || !(room->name = strdup (name))) {
    free (room);
    return NULL;
  }
  room->limit = (uint64_t)options->seconds * 1000 * MS;
  pthread_mutex_init (&room->lock, NULL);
  pthread_mutex_lock (&lock);
  room->next = all;
  room->prev = &all;
  if (all)
    all->prev = &room->next;
  all = room;
  pthread_mutex_unlock (&lock);
  return room;
}

void
room_free (struct room *room)
{
  if (!room)
    return;
  pthread_mutex_lock (&lock);
  *room->prev = room->next;
  if (room->next)
    room->next->prev = room->prev;
  pthread_mutex_unlock (&lock);
  pthread_mutex_destroy (&room->lock);
  free (room->name);
  free (room);
}

void
rooms_start (struct ev_loop *ev, struct pool *workers)
{
  pool = workers;
  ev_async_init (&news, on_news);
  ev_async_start (ev, &news);
  ev_init (&tick, on_tick);
  tick.repeat = TICK;
  atomic_store (&loop, ev);
}

void
rooms_stop (void)
{
  struct ev_loop *ev = atomic_load (&loop);

  if (!ev)
    return;
  pthread_mutex_lock (&lock);
  for (struct room *room = all; room; room = room->next)
    room_end (room);
  pthread_mutex_unlock (&lock);
  atomic_store (&loop, NULL);
  ev_async_stop (ev, &news);
  ev_timer_stop (ev, &tick);
}
