/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the tests of single bugs share: see bugs.h.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bugs.h"

void
check (bool good, const char *fmt, ...)
{
  va_list ap;

  if (good)
    return;
  fflush (stdout);
  va_start (ap, fmt);
  vfprintf (stderr, fmt, ap);
  va_end (ap);
  fputc ('\n', stderr);
  exit (1);
}

void
open_run (struct run *run, const struct workload *w)
{
  struct q_error err;

  if (!workload_prepare (run, w, bugs_seed)) {
    printf ("skipped: qemu-img is missing\n");
    exit (77);
  }
  run->opts.l2_cache_size = run->opts.refcount_cache_size = 0;
  if (run->opts.state_dir)
    workload_keep_state (run);
  if (workload_open (run, &err) < 0)
    die ("%s", err.text);
}

/* Closes, and looks at what is on the disk: no corruption, and all that the guest wrote. */
void
end_run (struct run *run)
{
  uint64_t random = random_seed (bugs_seed);
  struct q_error err;

  check (!run->failure[0], "%s", run->failure);
  if (workload_close (run, &err) < 0)
    die ("close: %s", err.text);
  run->top->tap = NULL;
  check (!images_have_qemu () || images_qemu_check (&run->store, "top") < 2,
         "qemu-img check finds corruption");
  states_examine (run, "top", &run->live, true, &random);
  check (!run->failure[0], "%s", run->failure);
  workload_free (run);
}

void
check_image (struct run *run)
{
  struct q_check_result result;
  struct q_error err;

  check (q_check (run->img, 0, &result, NULL, NULL, &err) == 0, "check: %s", err.text);
  check (result.corruptions == 0 && result.check_errors == 0, "check: %llu corruptions",
         (unsigned long long)result.corruptions);
}

void
flush (struct run *run)
{
  check (workload_flush (run) == 0, "a flush failed");
}

/* Where guest OFFSET is in the file; 0 if nowhere. */
uint64_t
host_of (struct run *run, uint64_t offset)
{
  struct q_extent e;
  q_pin_t pin = q_pin ();
  int n = q_map (run->img, offset, 1, &e, 1, 0);

  q_unpin (pin);
  check (n == 1, "q_map: %s", strerror (-n));
  return e.kind == Q_DATA && e.depth == 0 ? e.host : 0;
}

static void *
call_other (void *opaque)
{
  struct other *o = opaque;

  o->fn (o->g);
  atomic_store (&o->back, true);
  return NULL;
}

void
start_other (struct other *o, struct guest *g, void (*fn) (struct guest *g))
{
  *o = (struct other){ .fn = fn, .g = g };
  if (pthread_create (&o->id, NULL, call_other, o) != 0)
    die ("cannot start a thread");
}

void
give_time (const struct other *o)
{
  for (int i = 0; i < 50 && !atomic_load (&o->back); ++i)
    usleep (1000);
}

bool
comes_back (const struct other *o)
{
  for (int i = 0; i < 60000 && !atomic_load (&o->back); ++i)
    usleep (1000);
  return atomic_load (&o->back);
}

static int
wait_at_gate (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct gate *g = opaque;

  (void)partial;
  pthread_mutex_lock (&g->lock);
  if (call->kind == g->kind) {
    ++g->waiting;
    pthread_cond_broadcast (&g->changed);
    while (!g->open)
      pthread_cond_wait (&g->changed, &g->lock);
  }
  pthread_mutex_unlock (&g->lock);
  return 0;
}

void
gate_close (struct gate *g, struct run *run, unsigned kind)
{
  *g = (struct gate){ .kind = kind };
  pthread_mutex_init (&g->lock, NULL);
  pthread_cond_init (&g->changed, NULL);
  g->tap = (struct mem_tap){ .before = wait_at_gate, .opaque = g };
  run->top->tap = &g->tap;
}

void
gate_await (struct gate *g)
{
  pthread_mutex_lock (&g->lock);
  while (g->waiting == 0)
    pthread_cond_wait (&g->changed, &g->lock);
  pthread_mutex_unlock (&g->lock);
}

void
gate_open (struct gate *g)
{
  pthread_mutex_lock (&g->lock);
  g->open = true;
  pthread_cond_broadcast (&g->changed);
  pthread_mutex_unlock (&g->lock);
}

static int
fail_some (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct failing *f = opaque;

  if (!(f->kinds >> call->kind & 1))
    return 0;
  ++f->calls;
  if (f->calls < f->from || f->calls > f->to)
    return 0;
  *partial = call->len / 2 / SECTOR * SECTOR;
  return -f->code;
}

void
fail_calls (struct failing *f, struct run *run, unsigned kinds, uint64_t from, uint64_t to,
            int code)
{
  *f = (struct failing){ .kinds = kinds, .from = from, .to = to, .code = code };
  f->tap = (struct mem_tap){ .before = fail_some, .opaque = f };
  run->top->tap = &f->tap;
  run->storm = code;
}
