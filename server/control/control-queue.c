/* SPDX-License-Identifier: BSD-3-Clause */

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "control.h"
#include "control-queue.h"

/* Events that wait for the event loop. */
#define MAX_EVENTS 1024

static struct {
  pthread_mutex_t lock;
  void (*wake) (void *opaque); /* NULL: closed */
  void *opaque;
  struct control_queued_event *first, *last;
  unsigned n;
  uint64_t lost;
} queue = { .lock = PTHREAD_MUTEX_INITIALIZER };

static atomic_bool wanted_now;

char *
control_line (const json_t *object)
{
  char *text = json_dumps (object, JSON_COMPACT | JSON_ENSURE_ASCII);
  size_t n = text ? strlen (text) : 0;
  char *line = text ? realloc (text, n + sizeof "\r\n") : NULL;

  if (!line) {
    free (text);
    return NULL;
  }
  memcpy (line + n, "\r\n", sizeof "\r\n");
  return line;
}

void
events_open (void (*wake) (void *opaque), void *opaque)
{
  pthread_mutex_lock (&queue.lock);
  queue.wake = wake;
  queue.opaque = opaque;
  pthread_mutex_unlock (&queue.lock);
}

void
events_wanted (bool wanted)
{
  atomic_store (&wanted_now, wanted);
}

struct control_queued_event *
events_take (uint64_t *lost)
{
  pthread_mutex_lock (&queue.lock);
  struct control_queued_event *first = queue.first;
  *lost = queue.lost;
  queue.first = queue.last = NULL;
  queue.n = 0;
  queue.lost = 0;
  pthread_mutex_unlock (&queue.lock);
  return first;
}

void
event_free (struct control_queued_event *e)
{
  if (!e)
    return;
  free (e->text);
  free (e);
}

void
events_close (void)
{
  uint64_t lost;

  events_wanted (false);
  events_open (NULL, NULL);
  struct control_queued_event *e = events_take (&lost);
  while (e) {
    struct control_queued_event *next = e->next;
    event_free (e);
    e = next;
  }
}

json_t *
event_object (const char *name, json_t *data)
{
  struct timespec now;

  clock_gettime (CLOCK_REALTIME, &now);
  return json_pack ("{s:{s:I, s:I}, s:s, s:o*}", "timestamp", "seconds", (json_int_t)now.tv_sec,
                    "microseconds", (json_int_t)(now.tv_nsec / 1000), "event", name, "data", data);
}

/* Takes DATA over. */
static struct control_queued_event *
event_new (const char *name, json_t *data)
{
  struct control_queued_event *e = calloc (1, sizeof *e);
  json_t *object = event_object (name, data);

  if (e && object)
    e->text = control_line (object);
  json_decref (object);
  if (!e || !e->text) {
    event_free (e);
    return NULL;
  }
  return e;
}

void
control_event (const char *name, json_t *data)
{
  if (!atomic_load (&wanted_now)) {
    json_decref (data);
    return;
  }
  struct control_queued_event *e = event_new (name, data);

  pthread_mutex_lock (&queue.lock);
  if (queue.wake && e && queue.n < MAX_EVENTS) {
    if (queue.last)
      queue.last->next = e;
    else
      queue.first = e;
    queue.last = e;
    queue.n++;
    e = NULL;
  } else
    queue.lost++;
  /* Under the lock, so that nobody is woken who has closed. */
  if (queue.wake)
    queue.wake (queue.opaque);
  pthread_mutex_unlock (&queue.lock);
  event_free (e);
}
