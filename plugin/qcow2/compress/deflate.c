/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Compressing one cluster (specification: "Compressed Clusters Descriptor" and the header's
 * compression_type).
 *
 * A zlib cluster is one raw deflate stream, which may look back as far as deflate can: 32 KiB. QEMU
 * makes its own with a window of 4 KiB, and inflates with one, but all at once into memory for the
 * whole cluster, where a window is not needed; so does every reader that is known to us.
 * libdeflate uses the larger window, and is several times as fast; without it zlib makes the same
 * streams.  A zstd cluster is one frame.
 *
 * No lock is held while compressing: each caller takes a deflator, which is kept for the next one.
 */

#include <errno.h>
#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "image.h"

/* Chosen to be at least as small as what QEMU makes. */
#define DEFAULT_DEFLATE_LEVEL 6
#define DEFAULT_ZSTD_LEVEL    ZSTD_CLEVEL_DEFAULT

struct q_deflator {
  struct q_deflator *next;
#ifdef HAVE_LIBDEFLATE
  struct libdeflate_compressor *deflate;
#else
  z_stream zlib;
#endif
  ZSTD_CCtx *zstd;
  uint8_t out[]; /* q_deflator_room */
};

/* What is compressed is written in pieces of about this size. */
#define ROOM ((size_t)1 << 20)

struct q_deflate {
  pthread_mutex_t lock;
  struct q_deflator *idle;
  int level;
};

int
q_compression_max_level (bool zstd)
{
  if (zstd)
    return ZSTD_maxCLevel ();
#ifdef HAVE_LIBDEFLATE
  return 12;
#else
  return Z_BEST_COMPRESSION;
#endif
}

int
q_deflate_open (struct q_image *img, int level, struct q_error *err)
{
  bool zstd = img->compression_type == Q_COMPRESSION_ZSTD;
  int max = q_compression_max_level (zstd);

  if (level < 0 || level > max)
    return q_fail (err, -EINVAL, "%s: compression level %d: %s has levels 1 to %d", img->filename,
                   level, zstd ? "zstd" : "zlib", max);
  img->deflate = calloc (1, sizeof *img->deflate);
  if (!img->deflate)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  pthread_mutex_init (&img->deflate->lock, NULL);
  img->deflate->level = level ? level : zstd ? DEFAULT_ZSTD_LEVEL : DEFAULT_DEFLATE_LEVEL;
  return 0;
}

static void
free_deflator (struct q_deflator *d)
{
#ifdef HAVE_LIBDEFLATE
  libdeflate_free_compressor (d->deflate);
#else
  if (d->zlib.state)
    deflateEnd (&d->zlib);
#endif
  ZSTD_freeCCtx (d->zstd);
  free (d);
}

void
q_deflate_close (struct q_image *img)
{
  struct q_deflator *d;

  if (!img->deflate)
    return;
  while ((d = img->deflate->idle) != NULL) {
    img->deflate->idle = d->next;
    free_deflator (d);
  }
  pthread_mutex_destroy (&img->deflate->lock);
  free (img->deflate);
  img->deflate = NULL;
}

struct q_deflator *
q_deflator_take (struct q_image *img)
{
  struct q_deflate *all = img->deflate;
  struct q_deflator *d;
  bool ok;

  pthread_mutex_lock (&all->lock);
  d = all->idle;
  if (d)
    all->idle = d->next;
  pthread_mutex_unlock (&all->lock);
  if (d)
    return d;

  d = calloc (1, sizeof *d + q_deflator_room (img));
  if (!d)
    return NULL;
  if (img->compression_type == Q_COMPRESSION_ZSTD)
    ok = (d->zstd = ZSTD_createCCtx ()) != NULL &&
         !ZSTD_isError (ZSTD_CCtx_setParameter (d->zstd, ZSTD_c_compressionLevel, all->level));
  else
#ifdef HAVE_LIBDEFLATE
    ok = (d->deflate = libdeflate_alloc_compressor (all->level)) != NULL;
#else
    ok = deflateInit2 (&d->zlib, all->level, Z_DEFLATED, -15, 9, Z_DEFAULT_STRATEGY) == Z_OK;
#endif
  if (!ok) {
    free_deflator (d);
    return NULL;
  }
  return d;
}

void
q_deflator_give (struct q_image *img, struct q_deflator *d)
{
  pthread_mutex_lock (&img->deflate->lock);
  d->next = img->deflate->idle;
  img->deflate->idle = d;
  pthread_mutex_unlock (&img->deflate->lock);
}

#ifndef HAVE_LIBDEFLATE
static size_t
deflate_by_zlib (z_stream *z, const uint8_t *in, size_t len, uint8_t *out, size_t room)
{
  if (deflateReset (z) != Z_OK)
    return 0;
  z->next_in = (uint8_t *)in;
  z->avail_in = (uInt)len;
  z->next_out = out;
  z->avail_out = (uInt)room;
  return deflate (z, Z_FINISH) == Z_STREAM_END ? room - z->avail_out : 0;
}
#endif

uint8_t *
q_deflator_buffer (struct q_deflator *d)
{
  return d->out;
}

size_t
q_deflator_room (const struct q_image *img)
{
  size_t least = 2 * q_cluster_bytes (img);

  return least > ROOM ? least : ROOM;
}

uint32_t
q_deflator_run (struct q_image *img, struct q_deflator *d, const void *in, uint8_t *out)
{
  size_t len = q_cluster_bytes (img), room = len - 1, n;

  if (d->zstd) {
    n = ZSTD_compress2 (d->zstd, out, room, in, len);
    return ZSTD_isError (n) ? 0 : (uint32_t)n;
  }
#ifdef HAVE_LIBDEFLATE
  n = libdeflate_deflate_compress (d->deflate, in, len, out, room);
#else
  n = deflate_by_zlib (&d->zlib, in, len, out, room);
#endif
  return (uint32_t)n;
}
