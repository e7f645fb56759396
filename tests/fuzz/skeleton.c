/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Valid images: see skeleton.h.
 */

#include <stdlib.h>
#include <string.h>

#include "luks.h"
#include "skeleton.h"

#define DISK      (96u << 10)
#define BASE_DISK (64u << 10)

const struct skeleton skeletons[] = {
  { .name = "v3", .version = 3, .cluster_bits = 9 },
  { .name = "v2", .version = 2, .cluster_bits = 9 },
  { .name = "v3-4k", .version = 3, .cluster_bits = 12 },
  { .name = "v3-64k", .version = 3, .cluster_bits = 16, .size = 1u << 20 },
  { .name = "narrow", .version = 3, .cluster_bits = 9, .refcount_bits = 1 },
  { .name = "wide", .version = 3, .cluster_bits = 10, .refcount_bits = 64 },
  { .name = "lazy", .version = 3, .cluster_bits = 9, .lazy = true },
  { .name = "odd-size", .version = 3, .cluster_bits = 12, .size = 50 * 512 },
  { .name = "large", .version = 3, .cluster_bits = 12, .size = 1ull << 32 },
  { .name = "compressed", .version = 3, .cluster_bits = 12, .compressed = true },
  { .name = "compressed-v2", .version = 2, .cluster_bits = 9, .compressed = true },
  { .name = "zstd", .version = 3, .cluster_bits = 12, .zstd = true, .compressed = true },
  { .name = "subclusters", .version = 3, .cluster_bits = 14, .extended_l2 = true },
  { .name = "subclusters-all",
    .version = 3,
    .cluster_bits = 14,
    .extended_l2 = true,
    .compressed = true,
    .snapshots = true,
    .bitmaps = true },
  { .name = "snapshots", .version = 3, .cluster_bits = 9, .snapshots = true },
  { .name = "snapshots-v2", .version = 2, .cluster_bits = 9, .snapshots = true },
  { .name = "snapshots-compressed",
    .version = 3,
    .cluster_bits = 10,
    .compressed = true,
    .snapshots = true },
  { .name = "bitmaps", .version = 3, .cluster_bits = 9, .bitmaps = true },
  { .name = "bitmaps-4k", .version = 3, .cluster_bits = 12, .bitmaps = true },
  { .name = "everything",
    .version = 3,
    .cluster_bits = 12,
    .compressed = true,
    .snapshots = true,
    .bitmaps = true,
    .backing = "base",
    .backing_format = "raw" },
  { .name = "data-file", .version = 3, .cluster_bits = 12, .data_file = true },
  { .name = "data-file-raw", .version = 3, .cluster_bits = 12, .data_file = true, .raw = true },
  { .name = "data-file-bitmaps",
    .version = 3,
    .cluster_bits = 14,
    .extended_l2 = true,
    .data_file = true,
    .bitmaps = true },
  { .name = "luks", .version = 3, .cluster_bits = 12, .encrypted = true },
  { .name = "luks-snapshots",
    .version = 3,
    .cluster_bits = 9,
    .encrypted = true,
    .snapshots = true },
  { .name = "backing-raw",
    .version = 3,
    .cluster_bits = 10,
    .backing = "base",
    .backing_format = "raw" },
  { .name = "backing-qcow2",
    .version = 2,
    .cluster_bits = 9,
    .backing = "base.qcow2",
    .backing_format = "qcow2" },
  { .name = "backing-subclusters",
    .version = 3,
    .cluster_bits = 14,
    .extended_l2 = true,
    .backing = "base.qcow2",
    .backing_format = "qcow2",
    .snapshots = true },
  { .name = "holes", .version = 3, .cluster_bits = 9, .snapshots = true, .holes = true },
  { .name = "holes-compressed",
    .version = 3,
    .cluster_bits = 12,
    .compressed = true,
    .holes = true },
  { .name = "holes-compressed-snapshots",
    .version = 3,
    .cluster_bits = 9,
    .zstd = true,
    .compressed = true,
    .snapshots = true,
    .holes = true },
  { .name = "chain",
    .version = 3,
    .cluster_bits = 9,
    .backing = "middle.qcow2",
    .backing_format = "qcow2" },
  { .name = "chain-long",
    .version = 3,
    .cluster_bits = 12,
    .backing = "top.qcow2",
    .backing_format = "qcow2",
    .snapshots = true },
  { .name = "chain-zeros-v3",
    .version = 3,
    .cluster_bits = 9,
    .backing = "base.qcow2",
    .backing_format = "qcow2",
    .snapshots = true },
};
const unsigned n_skeletons = sizeof skeletons / sizeof skeletons[0];

const struct q_secret skeleton_secret = { "fuzz", 4 };

/* Each over the one before it. */
static const struct skeleton below[] = {
  { .name = "base.qcow2", .version = 3, .cluster_bits = 9 },
  { .name = "middle.qcow2",
    .version = 2,
    .cluster_bits = 9,
    .backing = "base.qcow2",
    .backing_format = "qcow2" },
  { .name = "top.qcow2",
    .version = 3,
    .cluster_bits = 9,
    .size = 80u << 10,
    .compressed = true,
    .backing = "middle.qcow2",
    .backing_format = "qcow2" },
};

/* ---- contents -------------------------------------------------------------------------------- */

static void
pattern (uint8_t *buf, size_t len, unsigned seed)
{
  for (size_t i = 0; i < len; ++i)
    buf[i] = (uint8_t)(seed + (i >> 6));
}

static void
must (int r, const char *what, const struct q_error *err)
{
  if (r < 0)
    die ("%s: %s", what, err && err->text[0] ? err->text : strerror (-r));
}

static void
put (struct q_image *img, uint64_t offset, uint64_t len, unsigned seed)
{
  uint8_t *buf = xalloc (len);

  pattern (buf, len, seed);
  must (q_pwrite (img, buf, offset, len), "writing", NULL);
  free (buf);
}

static void
put_compressed (struct q_image *img, uint64_t offset, uint64_t len, unsigned seed)
{
  uint8_t *buf = xalloc (len);

  pattern (buf, len, seed);
  must (q_write_compressed (img, buf, offset, len), "compressing", NULL);
  free (buf);
}

/* What does not become small by it: pieces of many sizes. */
static void
put_compressible (const struct skeleton *k, struct q_image *img, uint64_t offset, uint64_t len,
                  unsigned seed)
{
  uint64_t random = random_seed (seed);
  uint8_t *buf = xalloc (len);

  for (uint64_t i = 0; i < len; ++i)
    buf[i] = i < len / 16 * seed % len ? (uint8_t)random_next (&random) : 7;
  must (k->compressed ? q_write_compressed (img, buf, offset, len)
                      : q_pwrite (img, buf, offset, len),
        "writing", NULL);
  free (buf);
}

static void
add_bitmaps (struct q_image *img)
{
  static const struct q_bitmap_action add[] = {
    { .op = Q_BITMAP_ADD, .name = "b0", .granularity = 512 },
    { .op = Q_BITMAP_ADD, .name = "b1", .disabled = true },
  };
  struct q_error err = { "" };

  must (q_bitmap_change (img, add, 2, &err), "bitmaps", &err);
}

static void
fill (const struct skeleton *k, struct q_image *img)
{
  uint64_t cluster = q_cluster_size (img), step = q_allocation_size (img);
  char id[Q_SNAPSHOT_ID_SIZE];
  struct q_error err = { "" };

  put (img, 0, 2 * step, 1);
  put (img, 5 * step + 100, 700, 50);
  must (q_zero (img, 3 * cluster, cluster, Q_ZERO_UNMAP), "zeros", NULL);
  if (k->compressed) {
    put_compressed (img, 4 * cluster, cluster, 90);
    put_compressed (img, 5 * cluster, cluster, 120);
  }
  if (k->holes) {
    for (uint64_t i = 8; i < 16; ++i)
      put_compressible (k, img, i * cluster, cluster, (unsigned)i);
    must (q_flush (img), "flushing", NULL);
    must (q_discard (img, 0, 8 * cluster), "discarding", NULL);
  }
  if (k->bitmaps)
    add_bitmaps (img);
  if (k->snapshots)
    must (q_snapshot_create (img, "first", id, &err), "snapshot", &err);
  put (img, q_size (img) - 512, 512, 7);
  put (img, step, step, 9);
  if (k->snapshots)
    must (q_snapshot_create (img, "second", id, &err), "snapshot", &err);
  if (k->snapshots)
    put (img, 0, 512, 11);
}

/* ---- encryption ------------------------------------------------------------------------------ */

static int
read_area (void *opaque, void *buf, size_t len, uint64_t offset)
{
  memcpy (buf, (const uint8_t *)opaque + offset, len);
  return 0;
}

/* Keeps the key in two stripes of 4000: all others are random bytes, which a fuzzer has no use for.
 */
static void
shorten_keys (struct mem_file *f)
{
  uint64_t at = 0;

  for (uint64_t i = 0; i + 6 <= f->size && !at; i += 512)
    if (memcmp (f->data + i, "LUKS\xba\xbe", 6) == 0)
      at = i;
  if (!at)
    die ("an encrypted image without a LUKS header");

  struct luks_header *h = (struct luks_header *)(f->data + at);
  uint8_t key[Q_MAX_KEY], split[2 * Q_MAX_KEY], *material;
  uint64_t area = f->size - at;
  struct q_cipher *c;
  struct q_error err;
  struct q_luks l;
  unsigned slot;

  must (q_luks_parse (&l, h, area < Q_LUKS_MAX_AREA ? area : Q_LUKS_MAX_AREA, "luks", &err),
        "parsing", &err);
  must (q_luks_unlock (&l, read_area, h, 1, &skeleton_secret, key, &slot, "luks", &err),
        "unlocking", &err);
  material = (uint8_t *)h + l.slot[0].material;
  memset (material, 0, q_luks_material_bytes (&l, l.slot[0].stripes));
  l.slot[0].stripes = 2;
  q_luks_put (&l, h);
  must (q_af_split (l.hash, key, l.spec.key_bytes, 2, split), "splitting", NULL);
  memset (split + 2 * l.spec.key_bytes, 0, sizeof split - 2 * l.spec.key_bytes);
  /* What a password of these few rounds derives. */
  uint8_t derived[Q_MAX_KEY];
  must (q_pbkdf2 (l.hash, skeleton_secret.data, skeleton_secret.len, l.slot[0].salt, Q_LUKS_SALT,
                  l.slot[0].iterations, derived, l.spec.key_bytes),
        "deriving", NULL);
  must (q_cipher_new (&c, &l.spec, derived, "luks", &err), "cipher", &err);
  must (q_cipher_encrypt (c, 0, material, split, q_luks_material_bytes (&l, 2)), "encrypting",
        NULL);
  q_cipher_free (c);
}

/* ---- images ---------------------------------------------------------------------------------- */

static void
make (const struct skeleton *k, struct mem_store *store, const char *name)
{
  struct q_error err = { "" };
  struct q_create_options c;
  struct q_open_options o;
  struct q_image *img;

  q_create_options_init (&c);
  c.version = k->version;
  c.cluster_bits = k->cluster_bits;
  c.refcount_bits = k->refcount_bits ? k->refcount_bits : 16;
  c.lazy_refcounts = k->lazy;
  c.extended_l2 = k->extended_l2;
  c.zstd = k->zstd;
  c.backing_file = k->backing;
  c.backing_format = k->backing_format;
  c.data_file = k->data_file ? "data" : NULL;
  c.data_file_raw = k->raw;
  c.opener = &store->opener;
  if (k->encrypted) {
    c.secret = &skeleton_secret;
    c.encrypt.iter_time_ms = 1;
    c.encrypt.cipher_alg = "aes-128";
    c.encrypt.cipher_mode = "cbc";
    c.encrypt.ivgen_alg = "essiv";
  }
  must (q_create (name, k->size ? k->size : DISK, &c, &err), k->name, &err);
  if (k->encrypted)
    shorten_keys (mem_find (store, name));

  q_open_options_init (&o);
  o.opener = &store->opener;
  o.lock = Q_LOCK_OFF;
  o.discard = true;
  o.secret = k->encrypted ? &skeleton_secret : NULL;
  must (q_open (&img, name, &o, &err), k->name, &err);
  fill (k, img);
  must (q_close (&img, &err), k->name, &err);
}

void
skeleton_surroundings (struct mem_store *store)
{
  struct mem_file *raw = mem_add (store, "base");

  mem_resize (raw, BASE_DISK);
  pattern (raw->data, BASE_DISK, 200);
  mem_resize (mem_add (store, "data"), DISK);
  for (size_t i = 0; i < sizeof below / sizeof below[0]; ++i)
    make (&below[i], store, below[i].name);
}

bool
skeleton_possible (const struct skeleton *k)
{
  return !k->encrypted || q_hash_bytes ("sha256") > 0;
}

void
skeleton_make (const struct skeleton *k, struct mem_store *store)
{
  make (k, store, "image");
}
