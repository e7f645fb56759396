/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Waiting for room: --on-enospc=wait.  A request that met a full disk is kept, and tried again
 * until there is room; its client sees a slow request.
 *
 *     x->room = room_new (name, &options);   with the export; NULL: errors are reported
 *     room_park (room, rq)                a worker: RQ met a full disk.  0: taken over
 *     room_passed (room, rq, error)       a worker: RQ, which had been kept, did not meet one again
 *     room_drop (room, session);          the session's thread: its requests do not wait any more
 *     room_end (room);                    nobody's do: the export is leaving, or the server
 *     room_resume (room);                 any thread: somebody knows that there is room
 *     room_free (room);
 *     rooms_start (ev, pool);             the main loop, whose clock makes them try again
 *     rooms_stop ();                      its thread: ends all, before the loops are drained
 *
 * A request that waits occupies no thread, and no lock: the engine has undone all of it but bytes
 * that nobody refers to, or that it may write again.  What it counts for is the same as that of any
 * request in flight (session.h), so how many may wait is bounded.
 *
 * One of those that wait goes ahead and is tried again, after 0.1 s and then at intervals that
 * double, up to 1 s, or at once when somebody says that there is room (room_resume: the command
 * resume-writes, and the end of a watermark's command).  If it gets through, all the others follow.
 * If it meets a full disk again, it goes to the end of the queue; if it fails otherwise, the next
 * one goes ahead.
 *
 * When a connection ends, by whoever's will, its requests that wait get no answer (-ESHUTDOWN,
 * which exec.c does not send): a client that connects again sends them again, where an error would
 * be the guest's.
 */

#ifndef ROOM_H
#define ROOM_H

#include <stdbool.h>
#include <stdint.h>

struct ev_loop;
struct pool;
struct request;
struct room;
struct session;

struct room_options {
  bool wait;
  unsigned seconds; /* after which the error is reported all the same; 0: never */
};

/* "report", "wait" or "wait:SECONDS"; false if TEXT is none of these. */
bool room_parse (const char *text, struct room_options *options);

struct room *room_new (const char *name, const struct room_options *options);
void room_free (struct room *room);
/* 0, or what RQ ends with: -ENOSPC when its time is over, -ESHUTDOWN when its connection ends or is
 * about to. */
int room_park (struct room *room, struct request *rq);
/* ERROR: 0, or what it met instead. */
void room_passed (struct room *room, struct request *rq, int error);
void room_drop (struct room *room, struct session *s);
void room_end (struct room *room);
/* How many requests wait, or did until now.  ROOM may be NULL. */
unsigned room_resume (struct room *room);
/* How many requests wait; and how often it began that some did.  Any thread. */
unsigned room_waiting (struct room *room);
uint64_t room_times (struct room *room);

void rooms_start (struct ev_loop *ev, struct pool *pool);
void rooms_stop (void);

#endif /* ROOM_H */
