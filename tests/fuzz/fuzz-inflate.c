/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Compressed data by itself: the input is put where a valid image has a compressed cluster.
 *
 * The oracle is the library itself, asked in the plainest way: the engine reads the cluster if the
 * data inflates to at least as many bytes, and to the same; and all of it if a part of it.
 */

#include <stdio.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "format.h"
#include "fuzz.h"
#include "skeleton.h"

#define CLUSTER_BITS 12u
#define CLUSTER      (1u << CLUSTER_BITS)
#define GUEST        4u /* the cluster that the skeleton has compressed */

static struct mem_store store;
static struct mem_file *image;
static struct pristine {
  uint8_t *data;
  uint64_t size;
} pristine[2]; /* zlib, zstd */

static void
make (void)
{
  static const char *const names[] = { "compressed", "zstd" };

  if (image)
    return;
  mem_store_init (&store);
  skeleton_surroundings (&store);
  image = mem_add (&store, "image");
  for (unsigned i = 0; i < n_skeletons; ++i)
    for (unsigned k = 0; k < 2; ++k)
      if (strcmp (skeletons[i].name, names[k]) == 0) {
        skeleton_make (&skeletons[i], &store);
        pristine[k].size = image->size;
        pristine[k].data = xalloc (image->size);
        memcpy (pristine[k].data, image->data, image->size);
      }
}

static uint64_t
number (const uint8_t *p)
{
  be64 v;

  memcpy (&v, p, sizeof v);
  return get64 (v);
}

/* Appends the N bytes at P to the image as the data of its compressed cluster. */
static void
put (const struct pristine *base, const uint8_t *p, size_t n)
{
  const struct qcow2_header *h;
  uint64_t l2, at = (base->size + CLUSTER - 1) / CLUSTER * CLUSTER;
  be64 entry;

  mem_set (image, base->data, base->size);
  h = (const struct qcow2_header *)image->data;
  l2 = number (image->data + get64 (h->l1_table_offset)) & Q_OFFSET_MASK;
  entry = put64 (q_compressed_encode (CLUSTER_BITS, at, (uint32_t)n));
  memcpy (image->data + l2 + GUEST * sizeof entry, &entry, sizeof entry);
  mem_resize (image, at + n);
  memcpy (image->data + at, p, n);
}

/* What the library makes of it: how many bytes, at most CLUSTER; 0 if it finds an error on the way.
 * The data is followed by zeros to the end of its sector. */
static size_t
inflate_zlib (const uint8_t *p, size_t n, uint8_t *out)
{
  z_stream z = {
    .next_in = (uint8_t *)p, .avail_in = (uInt)n, .next_out = out, .avail_out = CLUSTER
  };
  int r;

  if (inflateInit2 (&z, -15) != Z_OK)
    die ("inflateInit2 failed");
  r = inflate (&z, Z_FINISH);
  inflateEnd (&z);
  return r == Z_STREAM_END || r == Z_BUF_ERROR ? CLUSTER - z.avail_out : 0;
}

static size_t
inflate_zstd (const uint8_t *p, size_t n, uint8_t *out)
{
  ZSTD_DCtx *c = ZSTD_createDCtx ();
  ZSTD_inBuffer i = { p, n, 0 };
  ZSTD_outBuffer o = { out, CLUSTER, 0 };

  ZSTD_DCtx_setParameter (c, ZSTD_d_windowLogMax, 23);
  for (size_t before = SIZE_MAX; before != i.pos + o.pos && o.pos < o.size;) {
    before = i.pos + o.pos;
    if (ZSTD_isError (ZSTD_decompressStream (c, &o, &i)))
      o.pos = o.size = 0;
  }
  ZSTD_freeDCtx (c);
  return o.pos;
}

/* libdeflate takes some codes that zlib does not. */
static bool
is_liberal (unsigned type, int r)
{
  return type == 0 && r == 0;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  uint8_t *in, should[CLUSTER], is[CLUSTER], part[512];
  struct q_open_options o;
  struct q_error err = { "" };
  struct q_image *img;
  size_t n, room, got;
  unsigned type;
  int r, whole;

  fuzz_begin ();
  make ();
  if (size < 2 || size > CLUSTER)
    return 0;
  type = data[0] & 1;
  n = size - 1;
  room = (n + 511) / 512 * 512;
  in = xalloc (room);
  memcpy (in, data + 1, n);
  put (&pristine[type], data + 1, n);
  got = type ? inflate_zstd (in, room, should) : inflate_zlib (in, room, should);

  q_open_options_init (&o);
  o.opener = &store.opener;
  o.lock = Q_LOCK_OFF;
  o.read_only = true;
  if (q_open (&img, "image", &o, &err) < 0)
    broken ("the image cannot be opened: %s", err.text);
  r = whole = q_pread (img, is, GUEST * CLUSTER, CLUSTER);
  if ((r == 0) != (got == CLUSTER) && !is_liberal (type, r))
    broken ("%zu bytes inflate to %zu, and reading them gives %d", n, got, r);
  if (r == 0 && got == CLUSTER && memcmp (is, should, CLUSTER) != 0)
    broken ("%zu bytes inflate to something else", n);
  r = q_pread (img, part, GUEST * CLUSTER + 1024, sizeof part);
  if (r != whole || (r == 0 && memcmp (part, is + 1024, sizeof part) != 0))
    broken ("a part of the cluster is not what it is in the whole: %d", r);
  q_close (&img, &err);
  free (in);
  return 0;
}

void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  uint8_t cluster[CLUSTER], out[2 * CLUSTER];
  uLongf len;
  z_stream z;
  size_t n;

  for (unsigned i = 0; i < 4; ++i) {
    char name[16];

    for (unsigned k = 0; k < CLUSTER; ++k)
      cluster[k] = (uint8_t)(i == 0 ? 7 : i == 1 ? k >> 4 : i == 2 ? k * k >> 7 : k % 251);
    out[0] = 0;
    z = (z_stream){ .next_in = cluster, .avail_in = CLUSTER };
    if (deflateInit2 (&z, i * 3, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
      die ("deflateInit2 failed");
    z.next_out = out + 1;
    z.avail_out = sizeof out - 1;
    deflate (&z, Z_FINISH);
    len = z.total_out;
    deflateEnd (&z);
    snprintf (name, sizeof name, "zlib%u", i);
    if (len < CLUSTER)
      emit (opaque, name, out, 1 + len);
    out[0] = 1;
    n = ZSTD_compress (out + 1, sizeof out - 1, cluster, CLUSTER, (int)(i * 5 + 1));
    snprintf (name, sizeof name, "zstd%u", i);
    if (!ZSTD_isError (n) && n < CLUSTER)
      emit (opaque, name, out, 1 + n);
  }
}
