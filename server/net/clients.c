/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients.h"
#include "listen.h"
#include "loop.h"

void
clients_init (struct clients *cs)
{
  *cs = (struct clients){ .first = NULL };
  pthread_mutex_init (&cs->lock, NULL);
}

void
clients_destroy (struct clients *cs)
{
  pthread_mutex_destroy (&cs->lock);
}

void
clients_add (struct clients *cs, struct client *c)
{
  struct timespec now;

  clock_gettime (CLOCK_REALTIME, &now);
  c->since = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
  pthread_mutex_lock (&cs->lock);
  c->id = ++cs->last_id;
  c->next = cs->first;
  c->prev = &cs->first;
  if (c->next)
    c->next->prev = &c->next;
  cs->first = c;
  pthread_mutex_unlock (&cs->lock);
}

void
clients_chose (struct clients *cs, struct client *c, const struct export *x, bool tls)
{
  pthread_mutex_lock (&cs->lock);
  c->export = x;
  c->tls = tls;
  pthread_mutex_unlock (&cs->lock);
}

void
clients_closed (struct clients *cs, struct client *c)
{
  pthread_mutex_lock (&cs->lock);
  c->fd = -1;
  pthread_mutex_unlock (&cs->lock);
}

void
clients_remove (struct clients *cs, struct client *c)
{
  pthread_mutex_lock (&cs->lock);
  *c->prev = c->next;
  if (c->next)
    c->next->prev = c->prev;
  pthread_mutex_unlock (&cs->lock);
}

static uint64_t
read_counter (const _Atomic uint64_t *counter)
{
  return atomic_load_explicit (counter, memory_order_relaxed);
}

int
clients_list (struct clients *cs, struct client_info **list)
{
  struct client_info *infos;
  size_t n = 0, i = 0;

  pthread_mutex_lock (&cs->lock);
  for (const struct client *c = cs->first; c; c = c->next)
    n++;
  infos = n < INT_MAX ? calloc (n + 1, sizeof *infos) : NULL;
  for (const struct client *c = cs->first; c && infos; c = c->next)
    infos[i++] = (struct client_info){
      .id = c->id,
      .peer = c->fd >= 0 ? peer_name (c->fd) : NULL,
      .export = c->export ? strdup (c->export->name) : NULL,
      .since = c->since,
      .tls = c->tls,
      .requests = read_counter (&c->session->n_requests),
      .bytes_read = read_counter (&c->session->bytes_read),
      .bytes_written = read_counter (&c->session->bytes_written),
    };
  pthread_mutex_unlock (&cs->lock);
  *list = infos;
  return infos ? (int)n : -ENOMEM;
}

void
clients_free_list (struct client_info *list, int n)
{
  for (int i = 0; i < n; i++) {
    free (list[i].peer);
    free (list[i].export);
  }
  free (list);
}

int
clients_disconnect (struct clients *cs, uint64_t id)
{
  struct client *c;

  pthread_mutex_lock (&cs->lock);
  for (c = cs->first; c && c->id != id; c = c->next)
    ;
  if (c) {
    atomic_store (&c->leave, true);
    loop_sweep (c->loop);
  }
  pthread_mutex_unlock (&cs->lock);
  return c ? 0 : -ENOENT;
}
