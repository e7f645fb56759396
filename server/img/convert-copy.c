/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Copying the contents of images.
 *
 * The disk is cut into pieces that threads take in turn, and a piece into buffers.  The source's
 * mapping says what is data; only that is read.  What was read is looked through for zeros, and
 * what is left is written.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"

#define PIECE  (16u << 20)
#define BUFFER (2u << 20) /* the largest cluster */

/* What cannot be read is narrowed down to so many bytes. */
#define SALVAGE_GRAIN 512u

enum kind { DATA, ZERO, BELOW /* in the backing file, which the target shares */ };

/* So many bytes of one kind. */
struct stretch {
  uint64_t len;
  enum kind kind;
};

/* One thread's buffer, and what is to go into it. */
struct work {
  struct conversion *c;
  uint64_t offset, len; /* on the target's disk */
  struct stretch *stretch;
  size_t n, capacity;
  unsigned source; /* while it is walked along */
  uint8_t *buf;
};

static int
add (struct work *w, uint64_t len, enum kind kind)
{
  if (w->n > 0 && w->stretch[w->n - 1].kind == kind) {
    w->stretch[w->n - 1].len += len;
    return 0;
  }
  if (w->n == w->capacity) {
    size_t capacity = w->capacity ? 2 * w->capacity : 64;
    struct stretch *s = realloc (w->stretch, capacity * sizeof *s);

    if (!s)
      return -ENOMEM;
    w->stretch = s;
    w->capacity = capacity;
  }
  w->stretch[w->n++] = (struct stretch){ len, kind };
  return 0;
}

static int
note_extent (void *opaque, const struct img_extent *x)
{
  struct work *w = opaque;
  const struct conversion *c = w->c;
  bool below = c->shares && x->e.depth > 0 && q_backing_image (c->source[w->source]);

  return add (w, x->e.len, below ? BELOW : x->reads_zero ? ZERO : DATA);
}

/* ---- the sources as one disk ------------------------------------------------------------------
 */

/* The part of [OFFSET, OFFSET + LEN) that lies in one source: *LEN bytes of it from *AT on. */
static unsigned
find_source (const struct conversion *c, uint64_t offset, uint64_t *at, uint64_t *len)
{
  unsigned i = 0;

  while (offset >= c->start[i + 1])
    i++;
  *at = offset - c->start[i];
  if (*len > c->start[i + 1] - offset)
    *len = c->start[i + 1] - offset;
  return i;
}

static int
look (struct work *w)
{
  int r = 0;

  w->n = 0;
  for (uint64_t done = 0, at, len; r == 0 && done < w->len; done += len) {
    uint64_t size, there;

    len = w->len - done;
    w->source = find_source (w->c, w->offset + done, &at, &len);
    size = q_size (w->c->source[w->source]);
    there = at >= size ? 0 : len < size - at ? len : size - at;
    if (there > 0)
      r = img_walk (&w->c->layers[w->source], at, there, note_extent, w);
    if (r == 0 && there < len) /* a disk that does not end with a sector */
      r = add (w, len - there, ZERO);
  }
  return r;
}

/* Reads what can be read, and reports the rest, sector by sector where need be. */
static int
salvage (struct q_image *img, uint8_t *buf, uint64_t at, uint64_t len, uint64_t offset)
{
  int r = q_pread (img, buf, at, len);

  if (r == 0 || r == -ENOMEM)
    return r;
  if (len > SALVAGE_GRAIN) {
    uint64_t half = (len / 2 + SALVAGE_GRAIN - 1) / SALVAGE_GRAIN * SALVAGE_GRAIN;

    r = salvage (img, buf, at, half, offset);
    return r < 0 ? r : salvage (img, buf + half, at + half, len - half, offset + half);
  }
  img_warning ("error while reading offset %llu: %s", (unsigned long long)offset, strerror (-r));
  memset (buf, 0, len);
  return 0;
}

/* Where in the range it is that cannot be read. */
static uint64_t
first_bad (struct q_image *img, uint8_t *buf, uint64_t at, uint64_t len)
{
  uint64_t end = at + len, step = q_cluster_size (img), n;

  for (; at < end; at += n) {
    n = step - at % step < end - at ? step - at % step : end - at;
    if (q_pread (img, buf, at, n) < 0)
      break;
  }
  return at;
}

static int
read_sources (const struct conversion *c, uint8_t *buf, uint64_t offset, uint64_t len)
{
  while (len > 0) {
    uint64_t at, n = len;
    struct q_image *img = c->source[find_source (c, offset, &at, &n)];
    uint64_t size = q_size (img), there = at >= size ? 0 : n < size - at ? n : size - at;
    int r = c->salvage ? salvage (img, buf, at, there, offset) : q_pread (img, buf, at, there);

    if (r < 0) {
      img_error ("%s: error while reading at byte %llu: %s", q_filename (img),
                 (unsigned long long)first_bad (img, buf, at, there), strerror (-r));
      return 1;
    }
    memset (buf + there, 0, n - there);
    buf += n;
    offset += n;
    len -= n;
  }
  return 0;
}

/* ---- the target ------------------------------------------------------------------------------ */

static int
write_error (const struct conversion *c, uint64_t offset, int r)
{
  if (r == 0)
    return 0;
  return img_error ("%s: error while writing at byte %llu: %s", q_filename (c->target),
                    (unsigned long long)offset, strerror (-r));
}

static int
write_zeros (const struct conversion *c, uint64_t offset, uint64_t len)
{
  if (c->sparse == 0)
    return write_error (c, offset, q_zero (c->target, offset, len, Q_ZERO_PROVISION));
  if (c->reads_zero)
    return 0;
  return write_error (c, offset, q_zero (c->target, offset, len, Q_ZERO_UNMAP));
}

/* The length of the run at OFFSET, of LEN bytes at most, that is zeros or is not, in steps that end
 * at multiples of GRAIN. */
static uint64_t
find_run (const uint8_t *buf, uint64_t offset, uint64_t len, uint64_t grain, bool *zero)
{
  uint64_t run = 0;

  while (run < len) {
    uint64_t step = grain - (offset + run) % grain;

    step = step < len - run ? step : len - run;
    if (run == 0)
      *zero = img_is_zero (buf, step);
    else if (img_is_zero (buf + run, step) != *zero)
      break;
    run += step;
  }
  return run;
}

static int
write_run (const struct conversion *c, const uint8_t *buf, uint64_t offset, uint64_t len)
{
  int r;

  if (c->turn)
    pthread_mutex_lock (c->turn);
  r = q_pwrite (c->target, buf, offset, len);
  if (c->turn)
    pthread_mutex_unlock (c->turn);
  return write_error (c, offset, r);
}

/* What was read, but for zeros. */
static int
write_data (const struct conversion *c, const uint8_t *buf, uint64_t offset, uint64_t len)
{
  uint64_t cluster = q_cluster_size (c->target), grain = c->sparse;
  int r = 0;

  /* Where zeros have to be written, too, whole clusters of them are what is cheap. */
  if (!c->reads_zero && q_image_format (c->target) == Q_FORMAT_QCOW2 && grain < cluster)
    grain = cluster;
  while (r == 0 && len > 0) {
    bool zero = false;
    uint64_t n = c->sparse ? find_run (buf, offset, len, grain, &zero) : len;

    r = zero ? write_zeros (c, offset, n) : write_run (c, buf, offset, n);
    buf += n;
    offset += n;
    len -= n;
  }
  return r;
}

/* ---- one buffer ------------------------------------------------------------------------------ */

static int
copy_plain (struct work *w)
{
  uint64_t offset = w->offset;
  int r = 0;

  for (size_t i = 0; r == 0 && i < w->n; offset += w->stretch[i++].len) {
    uint64_t len = w->stretch[i].len;

    if (w->stretch[i].kind == ZERO)
      r = write_zeros (w->c, offset, len);
    else if (w->stretch[i].kind == DATA) {
      r = read_sources (w->c, w->buf, offset, len);
      if (r == 0)
        r = write_data (w->c, w->buf, offset, len);
    }
  }
  return r;
}

/* What each cluster of the buffer is; one of several kinds counts as data. */
static void
sort_clusters (const struct work *w, uint8_t *kinds)
{
  const uint64_t cluster = q_cluster_size (w->c->target);
  uint64_t at = 0;

  memset (kinds, UINT8_MAX, (w->len + cluster - 1) / cluster);
  for (size_t i = 0; i < w->n; at += w->stretch[i++].len)
    for (uint64_t k = at / cluster; k * cluster < at + w->stretch[i].len; k++)
      kinds[k] = kinds[k] == UINT8_MAX || kinds[k] == w->stretch[i].kind
                     ? (uint8_t)w->stretch[i].kind
                     : DATA;
}

static int
copy_compressed (const struct work *w)
{
  const struct conversion *c = w->c;
  const uint64_t cluster = q_cluster_size (c->target), n = (w->len + cluster - 1) / cluster;
  uint8_t kinds[BUFFER / 512];
  int r = 0;

  sort_clusters (w, kinds);
  for (uint64_t first = 0, last; r == 0 && first < n; first = last) {
    for (last = first + 1; last < n && kinds[last] == kinds[first]; last++)
      ;
    uint64_t offset = w->offset + first * cluster;
    uint64_t len = (last == n ? w->len : last * cluster) - first * cluster;

    if (kinds[first] == ZERO)
      r = write_zeros (c, offset, len);
    else if (kinds[first] == DATA) {
      r = read_sources (c, w->buf, offset, len);
      if (r == 0)
        r = write_error (c, offset, q_write_compressed (c->target, w->buf, offset, len));
    }
  }
  return r;
}

static int
copy_piece (void *opaque, uint64_t offset, uint64_t len)
{
  struct work w = { .c = opaque };
  int r = 0;

  if (posix_memalign ((void **)&w.buf, 4096, BUFFER) != 0)
    return img_error ("out of memory");
  for (uint64_t end = offset + len; r == 0 && offset < end; offset += w.len) {
    w.offset = offset;
    w.len = end - offset < BUFFER ? end - offset : BUFFER;
    img_rate_pay (w.len);
    if (img_interrupted ()) {
      r = -EINTR;
      break;
    }
    r = look (&w);
    if (r < 0) {
      r = img_error ("%s: error while reading the mapping near byte %llu: %s",
                     q_filename (w.c->source[w.source]), (unsigned long long)offset, strerror (-r));
      break;
    }
    r = w.c->compress ? copy_compressed (&w) : copy_plain (&w);
    img_progress_add (w.len);
  }
  free (w.stretch);
  free (w.buf);
  return r;
}

int
img_convert_copy (struct conversion *c)
{
  return img_for_pieces (c->start[c->n_sources], PIECE, c->threads, copy_piece, c);
}
