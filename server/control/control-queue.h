/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What comes to the control socket's event loop from other threads: events, and commands that have
 * been run.
 *
 * Events go through one queue for the whole process, of which there is one control socket.
 */

#ifndef CONTROL_QUEUE_H
#define CONTROL_QUEUE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct control_queued_event {
  struct control_queued_event *next;
  char *text; /* one line of JSON, with its end */
};

/* WAKE is called, on any thread, when there is something to take.  Until this is called, and after
 * events_close, events are dropped. */
void events_open (void (*wake) (void *opaque), void *opaque);
/* Whether somebody listens: without, events cost nothing.  The thread of the event loop. */
void events_wanted (bool wanted);
/* All that came, oldest first, to be freed; *LOST is how many there was no room for. */
struct control_queued_event *events_take (uint64_t *lost);
void event_free (struct control_queued_event *e);
void events_close (void);

/* An event as QMP sends it, that has happened now.  Takes DATA over, which may be NULL.  NULL
 * without memory. */
json_t *event_object (const char *name, json_t *data);
/* OBJECT as a line as QMP sends it: ASCII, CRLF.  To be freed; NULL without memory. */
char *control_line (const json_t *object);

#endif /* CONTROL_QUEUE_H */
