/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Invariant 5 for windows: one that is replaced is unpublished first, and unmapped when the pins
 * that may have found something in it have gone.
 */

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "image.h"
#include "window.h"

#define WINDOW_BYTES (1ul << Q_WINDOW_BITS)
#define MAX_INDEX    (1u << 14) /* windows that a file may have: 4 TiB; past that the slow way */
#define PAGE_BITS    12u
#define UNIT_BITS    (PAGE_BITS + 6) /* a bit of a word for each page */
#define LOOKS        (1u << 16)      /* units remembered: 16 GiB */

/* A window is not replaced before it has been idle for that long: a working set that is larger than
 * all windows together is better read than mapped and unmapped. */
#define IDLE_MS 1000

struct window {
  const uint8_t *map;
  uint64_t index;
  _Atomic uint32_t used; /* milliseconds */
};

/* What was known of one unit.  Its two words are not read as one: a reader that meets a writer may
 * take another unit's bits for its own.  That costs it, once, a wait for the disk, or a copy. */
struct look {
  _Atomic uint64_t unit_and_time; /* unit number << 32 | milliseconds; 0 never */
  _Atomic uint64_t resident;
};

struct q_windows {
  int fd;
  pthread_mutex_t lock; /* making and replacing windows */
  unsigned n;
  struct window *list[Q_MAX_WINDOWS]; /* in no order */
  struct look look[LOOKS];            /* by unit number modulo LOOKS */
  struct window *_Atomic window[MAX_INDEX];
};

/* To others than those who may write the file, mincore says that everything is resident. */
static bool
may_ask (int fd, const struct stat *st)
{
  return geteuid () == 0 || geteuid () == st->st_uid || (fcntl (fd, F_GETFL) & O_ACCMODE) == O_RDWR;
}

struct q_windows *
q_windows_new (int fd)
{
  struct q_windows *w;
  struct stat st;

  if (sysconf (_SC_PAGESIZE) != 1 << PAGE_BITS || fstat (fd, &st) == -1 || !S_ISREG (st.st_mode) ||
      !may_ask (fd, &st))
    return NULL;
  w = calloc (1,
              sizeof *w); /* large enough to come from mmap: pages that are not used cost nothing */
  if (!w)
    return NULL;
  w->fd = fd;
  pthread_mutex_init (&w->lock, NULL);
  return w;
}

static void
free_window (void *p)
{
  struct window *v = p;

  munmap ((void *)v->map, WINDOW_BYTES);
  free (v);
}

void
q_windows_free (struct q_windows *w)
{
  if (!w)
    return;
  for (unsigned i = 0; i < w->n; ++i)
    free_window (w->list[i]);
  pthread_mutex_destroy (&w->lock);
  free (w);
}

static uint32_t
now_ms (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC_COARSE, &t);
  return (uint32_t)(t.tv_sec * 1000 + t.tv_nsec / 1000000);
}

/* A place in the list for a new window.  Q_MAX_WINDOWS: there is none now. */
static unsigned
make_room (struct q_windows *w, uint32_t now)
{
  unsigned oldest = 0;
  uint32_t idle = 0;

  if (w->n < Q_MAX_WINDOWS)
    return w->n++;
  for (unsigned i = 0; i < w->n; ++i) {
    uint32_t t = now - atomic_load_explicit (&w->list[i]->used, memory_order_relaxed);

    if (t > idle) {
      idle = t;
      oldest = i;
    }
  }
  if (idle <= IDLE_MS)
    return Q_MAX_WINDOWS;
  atomic_store (&w->window[w->list[oldest]->index], NULL);
  q_grace_retire (w->list[oldest], free_window);
  return oldest;
}

static struct window *
map_window (const struct q_windows *w, uint64_t index, uint32_t now)
{
  struct window *v = malloc (sizeof *v);
  void *map;

  if (!v)
    return NULL;
  map = mmap (NULL, WINDOW_BYTES, PROT_READ, MAP_SHARED | MAP_NORESERVE, w->fd,
              (off_t)(index << Q_WINDOW_BITS));
  if (map == MAP_FAILED) {
    free (v);
    return NULL;
  }
  v->map = map;
  v->index = index;
  atomic_init (&v->used, now);
  return v;
}

static struct window *
make_window (struct q_windows *w, uint64_t index, uint32_t now)
{
  struct window *v = NULL;
  unsigned place;

  if (pthread_mutex_trylock (&w->lock) != 0)
    return NULL; /* somebody is at it; the next request will find it */
  v = atomic_load (&w->window[index]);
  if (!v && (v = map_window (w, index, now)) != NULL) {
    place = make_room (w, now);
    if (place < Q_MAX_WINDOWS) {
      w->list[place] = v;
      atomic_store (&w->window[index], v);
    } else {
      free_window (v);
      v = NULL;
    }
  }
  pthread_mutex_unlock (&w->lock);
  return v;
}

/* Which pages of the unit at MAP are in the page cache; none if that cannot be had. */
static uint64_t
ask (const uint8_t *map)
{
  unsigned char vec[64];
  uint64_t bits = 0;

  if (mincore ((void *)map, 1u << UNIT_BITS, vec) == -1)
    return 0;
  for (unsigned i = 0; i < 64; ++i)
    bits |= (uint64_t)(vec[i] & 1) << i;
  return bits;
}

/* The same, perhaps from memory. */
static uint64_t
resident (struct q_windows *w, const struct window *v, uint64_t unit, uint32_t now)
{
  struct look *l = &w->look[unit % LOOKS];
  uint64_t known = atomic_load_explicit (&l->unit_and_time, memory_order_acquire), bits;

  if (known >> 32 == unit && known != 0 && now - (uint32_t)known <= Q_WINDOW_MS)
    return atomic_load_explicit (&l->resident, memory_order_relaxed);
  bits = ask (v->map + ((unit << UNIT_BITS) & (WINDOW_BYTES - 1)));
  atomic_store_explicit (&l->resident, bits, memory_order_relaxed);
  atomic_store_explicit (&l->unit_and_time, unit << 32 | now, memory_order_release);
  return bits;
}

const void *
q_window_find (struct q_windows *w, uint64_t offset, uint64_t len)
{
  uint64_t index = offset >> Q_WINDOW_BITS, in = offset & (WINDOW_BYTES - 1), page, last;
  uint32_t now = now_ms ();
  struct window *v;

  if (index >= MAX_INDEX || len == 0 || len > WINDOW_BYTES - in)
    return NULL;
  v = atomic_load_explicit (&w->window[index], memory_order_acquire);
  if (!v && !(v = make_window (w, index, now)))
    return NULL;
  /* Look before writing: the line stays shared. */
  if (now - atomic_load_explicit (&v->used, memory_order_relaxed) > IDLE_MS / 2)
    atomic_store_explicit (&v->used, now, memory_order_relaxed);

  last = (offset + len - 1) >> PAGE_BITS;
  for (page = offset >> PAGE_BITS; page <= last; page = (page | 63) + 1) {
    uint64_t first_bit = page & 63, last_bit = (page | 63) < last ? 63 : last & 63;
    uint64_t wanted = ~0ull >> (63 - (last_bit - first_bit)) << first_bit;

    if (wanted & ~resident (w, v, page >> (UNIT_BITS - PAGE_BITS), now))
      return NULL;
  }
  return v->map + in;
}
