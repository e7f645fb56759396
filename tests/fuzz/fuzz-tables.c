/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Header extensions, the snapshot table, and the bitmap directory with its tables: the input is
 * what stands in them, in a valid image that refers to them.
 *
 *     version, number of snapshots, number of bitmaps, flags
 *     length (16 bits) and bytes of the extensions; the same of the snapshot table, of the bitmap
 *     directory, and of a cluster that both may point to
 *
 * The oracle: extensions that an image had are all there, in their order and with their data, when
 * it has been open for writing; names can be found again.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "fuzz.h"
#include "image.h"
#include "skeleton.h"

#define CLUSTER 4096u
/* Where things are: after the skeleton's own clusters. */
#define SNAPSHOTS (64u * CLUSTER)
#define DIRECTORY (72u * CLUSTER)
#define SHARED    (80u * CLUSTER)
#define END       (81u * CLUSTER)
#define MAX_BYTES (8u * CLUSTER)

static struct mem_store store;
static struct mem_file *image;
static uint8_t *pristine[2]; /* version 2, 3 */
static uint64_t pristine_size[2];

static void
make (void)
{
  static const struct skeleton k[] = {
    { .name = "v2", .version = 2, .cluster_bits = 12 },
    { .name = "v3", .version = 3, .cluster_bits = 12 },
  };

  if (image)
    return;
  mem_store_init (&store);
  skeleton_surroundings (&store);
  image = mem_add (&store, "image");
  for (unsigned i = 0; i < 2; ++i) {
    skeleton_make (&k[i], &store);
    pristine[i] = xalloc (image->size);
    pristine_size[i] = image->size;
    memcpy (pristine[i], image->data, image->size);
  }
}

static size_t
put_part (struct input *in, uint64_t at, size_t max)
{
  size_t n = take16 (in);

  n = n < max ? n : max;
  n = n < in->left ? n : in->left;
  take (in, image->data + at, n);
  return n;
}

/* A bitmaps extension, after the N bytes of others. */
static void
put_bitmaps (uint64_t at, uint32_t n, uint64_t bytes)
{
  struct qcow2_extension e = { put32 (Q_EXT_BITMAPS),
                               put32 (sizeof (struct qcow2_bitmaps_extension)) };
  struct qcow2_bitmaps_extension b = { put32 (n), put32 (0), put64 (bytes), put64 (DIRECTORY) };

  memcpy (image->data + at, &e, sizeof e);
  memcpy (image->data + at + sizeof e, &b, sizeof b);
  memset (image->data + at + sizeof e + sizeof b, 0, 8);
}

static void
assemble (struct input *in)
{
  unsigned version = take8 (in) & 1, snapshots = take8 (in), bitmaps = take8 (in),
           flags = take8 (in);
  uint64_t start = version ? sizeof (struct qcow2_header) : Q_HEADER_V2_LENGTH;
  struct qcow2_header *h;
  size_t ext, bytes;

  mem_set (image, pristine[version], pristine_size[version]);
  mem_resize (image, END);
  memset (image->data + start, 0, CLUSTER - start);
  ext = put_part (in, start, CLUSTER - start - 64);
  put_part (in, SNAPSHOTS, MAX_BYTES);
  bytes = put_part (in, DIRECTORY, MAX_BYTES);
  put_part (in, SHARED, CLUSTER);
  h = (struct qcow2_header *)image->data;
  h->nb_snapshots = put32 (snapshots);
  h->snapshots_offset = put64 (snapshots ? SNAPSHOTS : 0);
  if (version) {
    h->autoclear_features = put64 (flags & 3);
    if (flags & 4)
      put_bitmaps (start + (ext + 7) / 8 * 8, bitmaps, bytes);
  }
}

/* ---- what must be kept ----------------------------------------------------------------------- */

static bool
is_ours (uint32_t type)
{
  return type == Q_EXT_HIGHEST_OFFSET || type == Q_EXT_SESSION || type == Q_EXT_UNUSED ||
         type == Q_EXT_FEATURE_NAMES || type == Q_EXT_BITMAPS;
}

static struct q_extension *
skip_ours (struct q_extension *e)
{
  while (e && is_ours (e->type))
    e = e->next;
  return e;
}

static void
compare (struct q_extension *a, struct q_extension *b)
{
  for (a = skip_ours (a), b = skip_ours (b); a; a = skip_ours (a->next), b = skip_ours (b->next))
    if (!b || a->type != b->type || a->length != b->length ||
        memcmp (a->data, b->data, a->length) != 0)
      broken ("header extension 0x%08x of %u bytes is not there any more", a->type, a->length);
}

/* ---- looking --------------------------------------------------------------------------------- */

static void
look (struct q_image *img)
{
  struct q_snapshot_info *snapshots = NULL;
  struct q_bitmap_info *bitmaps = NULL;
  struct q_image_info info;
  struct q_error err = { "" };
  struct q_bitmap *held;
  char name[64];
  int n;

  q_get_info (img, &info);
  for (unsigned bit = 0; bit < 64; ++bit)
    for (unsigned type = 0; type < 3; ++type)
      q_feature_name (img, type, bit, name);
  n = q_get_snapshots (img, &snapshots);
  for (int i = 0; i < n; ++i)
    if (!q_snapshot_by_id (img, snapshots[i].id))
      broken ("snapshot %d cannot be found by its id", i);
  n = q_get_bitmaps (img, &bitmaps, &err);
  for (int i = 0; i < n; ++i)
    if (q_bitmap_hold (img, bitmaps[i].name, &held, &err) == 0) {
      q_bitmap_count (held);
      q_bitmap_release (held);
    }
  free (snapshots);
  free (bitmaps);
}

static int
open_image (struct q_image **img, bool read_only, const char *snapshot)
{
  struct q_open_options o;
  struct q_error err = { "" };

  q_open_options_init (&o);
  o.opener = &store.opener;
  o.lock = Q_LOCK_OFF;
  o.read_only = read_only;
  o.snapshot = snapshot;
  o.backing = Q_BACKING_NONE;
  return q_open (img, "image", &o, &err);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct input in = { data, size };
  struct q_image *img, *again;
  struct q_error err = { "" };
  uint8_t byte = 1;

  fuzz_begin ();
  make ();
  assemble (&in);
  image->limit = 1u << 20;
  if (open_image (&img, true, NULL) == 0) {
    struct q_snapshot_info *list = NULL;

    look (img);
    if (q_get_snapshots (img, &list) > 0 && open_image (&again, true, list[0].id) == 0) {
      q_pread (again, &byte, 0, 1);
      q_close (&again, &err);
    }
    free (list);
    if (open_image (&again, false, NULL) == 0) {
      q_pwrite (again, &byte, 5 * CLUSTER, 1);
      look (again);
      q_close (&again, &err);
      if (open_image (&again, true, NULL) < 0)
        broken ("an image that was closed cannot be opened");
      compare (img->extensions, again->extensions);
      q_close (&again, &err);
    }
    q_close (&img, &err);
  }
  image->limit = 0;
  return 0;
}

/* ---- inputs ---------------------------------------------------------------------------------- */

static size_t
add_part (uint8_t *out, const void *p, size_t n)
{
  out[0] = (uint8_t)n;
  out[1] = (uint8_t)(n >> 8);
  memcpy (out + 2, p, n);
  return n + 2;
}

/* The parts of a valid image, moved. */
static size_t
take_apart (const struct mem_file *f, uint8_t *out)
{
  const struct qcow2_header *h = (const struct qcow2_header *)f->data;
  uint64_t snapshots = get64 (h->snapshots_offset), directory = 0, bytes = 0;
  size_t n = 4;

  for (uint64_t at = sizeof *h; at + 40 < f->size && at < CLUSTER;) {
    struct qcow2_extension e;
    struct qcow2_bitmaps_extension b;

    memcpy (&e, f->data + at, sizeof e);
    if (get32 (e.type) == Q_EXT_END)
      break;
    memcpy (&b, f->data + at + sizeof e, sizeof b);
    if (get32 (e.type) == Q_EXT_BITMAPS) {
      directory = get64 (b.directory_offset);
      bytes = get64 (b.directory_size);
    }
    at += sizeof e + q_round_up (get32 (e.length), 8);
  }
  out[0] = 1;
  out[1] = (uint8_t)get32 (h->nb_snapshots);
  out[2] = bytes ? 2 : 0;
  out[3] = bytes ? 5 : 0;
  n += add_part (out + n, f->data + sizeof *h, 400);
  n += add_part (out + n, f->data + snapshots, snapshots ? 256 : 0);
  n += add_part (out + n, f->data + directory, directory ? bytes : 0);
  n += add_part (out + n, f->data + CLUSTER, 64);
  return n;
}

void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  static const struct skeleton k[] = {
    { .name = "plain", .version = 3, .cluster_bits = 12 },
    { .name = "snapshots", .version = 3, .cluster_bits = 12, .snapshots = true },
    { .name = "bitmaps", .version = 3, .cluster_bits = 12, .bitmaps = true },
    { .name = "both", .version = 3, .cluster_bits = 12, .snapshots = true, .bitmaps = true },
    { .name = "backing",
      .version = 3,
      .cluster_bits = 12,
      .backing = "base",
      .backing_format = "raw" },
  };
  uint8_t *out = xalloc (4 * MAX_BYTES);
  struct mem_store s;

  fuzz_begin ();
  mem_store_init (&s);
  skeleton_surroundings (&s);
  for (unsigned i = 0; i < sizeof k / sizeof k[0]; ++i) {
    skeleton_make (&k[i], &s);
    emit (opaque, k[i].name, out, take_apart (mem_find (&s, "image"), out));
  }
  mem_store_free (&s);
  free (out);
}
