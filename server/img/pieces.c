/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Long work cut into pieces that several threads take in turn.
 */

#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "img.h"

#define MAX_THREADS 64u

struct pieces {
  img_piece_fn work;
  void *opaque;
  uint64_t len, piece;
  pthread_mutex_t lock;
  uint64_t next;      /* offset of the first piece that nobody has taken */
  uint64_t failed_at; /* offset of the lowest piece that failed */
  int result;
};

unsigned
img_default_threads (void)
{
  cpu_set_t set;
  int n = sched_getaffinity (0, sizeof set, &set) == 0 ? CPU_COUNT (&set) : 1;

  return n < 1 ? 1 : n > 16 ? 16 : (unsigned)n;
}

static void
note_result (struct pieces *p, uint64_t offset, int r)
{
  pthread_mutex_lock (&p->lock);
  if (p->result == 0 || offset < p->failed_at) {
    p->result = r;
    p->failed_at = offset;
  }
  pthread_mutex_unlock (&p->lock);
}

static void *
take_pieces (void *opaque)
{
  struct pieces *p = opaque;

  for (;;) {
    pthread_mutex_lock (&p->lock);

    uint64_t offset = p->next;
    bool more = p->result == 0 && offset < p->len;
    uint64_t len = p->len - offset < p->piece ? p->len - offset : p->piece;

    if (more)
      p->next = offset + len;
    pthread_mutex_unlock (&p->lock);
    if (!more)
      return NULL;

    int r = img_interrupted () ? -EINTR : p->work (p->opaque, offset, len);

    if (r != 0)
      note_result (p, offset, r);
  }
}

int
img_for_pieces (uint64_t len, uint64_t piece, unsigned threads, img_piece_fn work, void *opaque)
{
  struct pieces p = {
    .work = work, .opaque = opaque, .len = len, .piece = piece, .lock = PTHREAD_MUTEX_INITIALIZER
  };
  pthread_t thread[MAX_THREADS];
  unsigned started = 0;

  threads = threads ? threads : img_default_threads ();
  threads = threads > MAX_THREADS ? MAX_THREADS : threads;
  if (len / piece < threads)
    threads = (unsigned)(len / piece) + 1;
  /* This thread is one of them: what cannot be started is done here. */
  while (started + 1 < threads && pthread_create (&thread[started], NULL, take_pieces, &p) == 0)
    started++;
  take_pieces (&p);
  for (unsigned i = 0; i < started; i++)
    pthread_join (thread[i], NULL);
  pthread_mutex_destroy (&p.lock);
  return p.result;
}
