/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Compressed clusters (specification: "Compressed Clusters Descriptor"): inflating, and a small
 * cache of what was inflated, since guests read in pieces smaller than a cluster.
 *
 * Compressed data ends somewhere in its last sector: inflating stops when a cluster is full, and
 * data that ends before that is corrupt.
 *
 * A slot of the cache is found by where the compressed bytes are.  When the host clusters that
 * held them are about to be reused, the epoch moves on and every older slot is forgotten.
 */

#include <errno.h>
#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "image.h"

#define SLOTS 16

/* A frame may ask for more history than a cluster has bytes; this bounds what it gets. */
#define MAX_ZSTD_WINDOW 23

struct slot {
  uint64_t host;
  uint64_t epoch;
  uint64_t used;  /* when, for choosing a victim */
  unsigned users; /* copying out of it, or filling it */
  bool valid, filling;
  uint8_t *data;
};

/* What one thread needs to inflate; kept for the next one. */
struct inflator {
  struct inflator *next;
#ifdef HAVE_LIBDEFLATE
  struct libdeflate_decompressor *deflate; /* NULL: without it */
#endif
  z_stream zlib;
  ZSTD_DCtx *zstd;
  uint8_t *in; /* room for the longest compressed cluster */
};

struct q_inflated {
  pthread_mutex_t lock;
  pthread_cond_t filled;
  struct inflator *idle;
  uint64_t clock;
  struct slot slot[SLOTS];
};

int
q_inflate_open (struct q_image *img)
{
  img->inflated = calloc (1, sizeof *img->inflated);
  if (!img->inflated)
    return -ENOMEM;
  pthread_mutex_init (&img->inflated->lock, NULL);
  pthread_cond_init (&img->inflated->filled, NULL);
  return 0;
}

static void
free_inflator (struct inflator *i)
{
  if (i->zlib.state)
    inflateEnd (&i->zlib);
  ZSTD_freeDCtx (i->zstd);
#ifdef HAVE_LIBDEFLATE
  libdeflate_free_decompressor (i->deflate);
#endif
  free (i->in);
  free (i);
}

void
q_inflate_close (struct q_image *img)
{
  struct inflator *idle;

  if (!img->inflated)
    return;
  while ((idle = img->inflated->idle) != NULL) {
    img->inflated->idle = idle->next;
    free_inflator (idle);
  }
  for (int i = 0; i < SLOTS; ++i)
    free (img->inflated->slot[i].data);
  pthread_mutex_destroy (&img->inflated->lock);
  pthread_cond_destroy (&img->inflated->filled);
  free (img->inflated);
  img->inflated = NULL;
}

void
q_inflate_forget (struct q_image *img)
{
  atomic_fetch_add (&img->inflate_epoch, 1);
}

/* ---- inflating ----------------------------------------------------------------------------- */

static struct inflator *
take_inflator (struct q_image *img)
{
  struct q_inflated *c = img->inflated;
  struct inflator *i;
  bool ok;

  pthread_mutex_lock (&c->lock);
  i = c->idle;
  if (i)
    c->idle = i->next;
  pthread_mutex_unlock (&c->lock);
  if (i)
    return i;

  i = calloc (1, sizeof *i);
  if (!i)
    return NULL;
  i->in = malloc (Q_MAX_COMPRESSED_BYTES (img->cluster_bits));
  if (img->compression_type == Q_COMPRESSION_ZSTD)
    ok = (i->zstd = ZSTD_createDCtx ()) != NULL &&
         !ZSTD_isError (ZSTD_DCtx_setParameter (i->zstd, ZSTD_d_windowLogMax, MAX_ZSTD_WINDOW));
  else
    ok = inflateInit2 (&i->zlib, -15) == Z_OK; /* raw deflate, any window */
#ifdef HAVE_LIBDEFLATE
  if (!i->zstd)
    i->deflate = libdeflate_alloc_decompressor ();
#endif
  if (!ok || !i->in) {
    free_inflator (i);
    return NULL;
  }
  return i;
}

static void
give_inflator (struct q_image *img, struct inflator *i)
{
  pthread_mutex_lock (&img->inflated->lock);
  i->next = img->inflated->idle;
  img->inflated->idle = i;
  pthread_mutex_unlock (&img->inflated->lock);
}

/* libdeflate is twice as fast, but wants a stream that ends where the cluster does.  Those that end
 * later, or not at all, are valid in an image, and zlib takes them. */
static int
inflate_zlib (struct inflator *i, const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
  z_stream *z = &i->zlib;
  int r;

#ifdef HAVE_LIBDEFLATE
  if (i->deflate && libdeflate_deflate_decompress (i->deflate, in, in_len, out, out_len, NULL) ==
                        LIBDEFLATE_SUCCESS)
    return 0;
#endif
  r = inflateReset (z);
  z->next_in = (uint8_t *)in;
  z->avail_in = (uInt)in_len;
  z->next_out = out;
  z->avail_out = (uInt)out_len;
  while (r == Z_OK && z->avail_out > 0)
    r = inflate (z, Z_SYNC_FLUSH);
  return (r == Z_OK || r == Z_STREAM_END || r == Z_BUF_ERROR) && z->avail_out == 0 ? 0 : -EIO;
}

static int
inflate_zstd (ZSTD_DCtx *ctx, const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
  ZSTD_inBuffer i = { in, in_len, 0 };
  ZSTD_outBuffer o = { out, out_len, 0 };

  ZSTD_DCtx_reset (ctx, ZSTD_reset_session_only);
  do {
    size_t before = o.pos + i.pos;

    if (ZSTD_isError (ZSTD_decompressStream (ctx, &o, &i)) || o.pos + i.pos == before)
      return -EIO;
  } while (o.pos < out_len);
  return 0;
}

/* Reads and inflates one cluster into OUT. */
static int
inflate_cluster (struct q_image *img, uint64_t host, uint32_t csize, uint8_t *out)
{
  struct inflator *i = take_inflator (img);
  int r;

  if (!i)
    return -ENOMEM;
  r = q_file_pread (img->file, i->in, csize, host);
  if (r == 0) {
    r = i->zstd ? inflate_zstd (i->zstd, i->in, csize, out, q_cluster_bytes (img))
                : inflate_zlib (i, i->in, csize, out, q_cluster_bytes (img));
    if (r == -EIO)
      q_log (Q_LOG_ERROR, "%s: the compressed cluster at byte %llu does not inflate to %llu bytes",
             img->filename, (unsigned long long)host, (unsigned long long)q_cluster_bytes (img));
  }
  give_inflator (img, i);
  return r;
}

/* As inflate_cluster, of memory.  How much of it that took, if the stream ends where the cluster
 * does. */
static uint32_t
measure_zlib (struct inflator *i, const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
  z_stream *z = &i->zlib;
  int r = inflateReset (z);

  z->next_in = (uint8_t *)in;
  z->avail_in = (uInt)in_len;
  z->next_out = out;
  z->avail_out = (uInt)out_len;
  while (r == Z_OK)
    r = inflate (z, Z_SYNC_FLUSH);
  return r == Z_STREAM_END && z->avail_out == 0 ? (uint32_t)(in_len - z->avail_in) : 0;
}

static uint32_t
measure_zstd (ZSTD_DCtx *ctx, const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
  size_t n = ZSTD_findFrameCompressedSize (in, in_len);

  if (ZSTD_isError (n) || inflate_zstd (ctx, in, n, out, out_len) < 0)
    return 0;
  return (uint32_t)n;
}

uint32_t
q_inflate_measure (struct q_image *img, const uint8_t *in, uint32_t csize, uint8_t *out)
{
  struct inflator *i = take_inflator (img);
  uint32_t n;

  if (!i)
    return 0;
  n = i->zstd ? measure_zstd (i->zstd, in, csize, out, q_cluster_bytes (img))
              : measure_zlib (i, in, csize, out, q_cluster_bytes (img));
  give_inflator (img, i);
  return n;
}

/* ---- the cache ------------------------------------------------------------------------------ */

static struct slot *
find_slot (struct q_inflated *c, uint64_t host, uint64_t epoch)
{
  for (int i = 0; i < SLOTS; ++i)
    if ((c->slot[i].valid || c->slot[i].filling) && c->slot[i].host == host &&
        c->slot[i].epoch == epoch)
      return &c->slot[i];
  return NULL;
}

static struct slot *
take_victim (struct q_inflated *c)
{
  struct slot *v = NULL;

  for (int i = 0; i < SLOTS; ++i)
    if (c->slot[i].users == 0 && (!v || c->slot[i].used < v->used))
      v = &c->slot[i];
  return v;
}

int
q_inflate_read (struct q_image *img, uint64_t host, uint32_t csize, uint32_t skip, uint32_t len,
                void *buf)
{
  struct q_inflated *c = img->inflated;
  uint64_t epoch = atomic_load (&img->inflate_epoch);
  struct slot *s;
  int r = 0;

  if (skip == 0 && len == q_cluster_bytes (img))
    return inflate_cluster (img, host, csize, buf);

  pthread_mutex_lock (&c->lock);
  for (;;) {
    s = find_slot (c, host, epoch);
    if (!s || !s->filling)
      break;
    pthread_cond_wait (&c->filled, &c->lock);
  }
  if (!s) {
    s = take_victim (c);
    if (!s) { /* all are busy: do without */
      pthread_mutex_unlock (&c->lock);
      uint8_t *whole = malloc (q_cluster_bytes (img));

      r = whole ? inflate_cluster (img, host, csize, whole) : -ENOMEM;
      if (r == 0)
        memcpy (buf, whole + skip, len);
      free (whole);
      return r;
    }
    s->host = host;
    s->epoch = epoch;
    s->valid = false;
    s->filling = true;
    s->users = 1;
    pthread_mutex_unlock (&c->lock);
    if (!s->data)
      s->data = malloc (q_cluster_bytes (img));
    r = s->data ? inflate_cluster (img, host, csize, s->data) : -ENOMEM;
    pthread_mutex_lock (&c->lock);
    s->filling = false;
    s->valid = r == 0;
    pthread_cond_broadcast (&c->filled);
  } else
    ++s->users;
  s->used = ++c->clock;
  pthread_mutex_unlock (&c->lock);

  if (r == 0)
    memcpy (buf, s->data + skip, len);
  pthread_mutex_lock (&c->lock);
  --s->users;
  pthread_mutex_unlock (&c->lock);
  return r;
}
