/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Header extensions (specification: "Header extensions").
 *
 * Every extension is kept, known or not, in its order.  Lengths are compared with what is left
 * of the area before anything is rounded: rounding first wraps in 32 bits.
 */

#include <errno.h>
#include <stdlib.h>

#include "image.h"

/* Adds one at *TAIL, and moves *TAIL to its end.  In memory, too, it has its padding to 8 bytes:
 * what replaces it in its place may take that up. */
static int
append (struct q_extension ***tail, uint32_t type, uint32_t length, uint64_t offset,
        const uint8_t *data)
{
  struct q_extension *e = malloc (sizeof *e + q_round_up ((uint64_t)length, 8));

  if (!e)
    return -ENOMEM;
  *e = (struct q_extension){ .type = type, .length = length, .offset = offset };
  memcpy (e->data, data, length);
  **tail = e;
  *tail = &e->next;
  return 0;
}

struct q_extension *
q_extension_find (const struct q_image *img, uint32_t type)
{
  struct q_extension *e = img->extensions;

  while (e && e->type != type)
    e = e->next;
  return e;
}

/* A string extension.  Writers of 2009 padded it with NULs and counted them. */
static int
parse_string (struct q_image *img, const struct q_extension *e, const char *what, uint32_t max,
              char **string, struct q_error *err)
{
  size_t len = strnlen ((const char *)e->data, e->length);

  for (size_t i = len; i < e->length; ++i)
    if (e->data[i] != 0)
      return q_fail (err, -EINVAL, "%s: %s has a NUL byte in it at byte %zu", img->filename, what,
                     len);
  if (len == 0)
    return 0;
  if (len > max)
    return q_fail (err, -EINVAL, "%s: %s is %zu bytes long, at most %u are allowed", img->filename,
                   what, len, max);
  *string = strndup ((const char *)e->data, len);
  return *string ? 0 : -ENOMEM;
}

static int
parse_bitmaps (struct q_image *img, const struct q_extension *e, struct q_error *err)
{
  struct qcow2_bitmaps_extension b;

  if (e->length != sizeof b)
    return q_fail (err, -EINVAL, "%s: bitmaps extension: length %u, should be %zu", img->filename,
                   e->length, sizeof b);
  memcpy (&b, e->data, sizeof b);
  /* Without its autoclear bit the data is stale: nothing of it may be used. */
  if (!(img->autoclear & Q_AUTOCLEAR_BITMAPS))
    return 0;
  img->nb_bitmaps = get32 (b.nb_bitmaps);
  img->bitmap_dir_size = get64 (b.directory_size);
  img->bitmap_dir_offset = get64 (b.directory_offset);
  if (get32 (b.reserved) != 0)
    return q_fail (err, -EINVAL, "%s: bitmaps extension: reserved field is %#x, should be 0",
                   img->filename, get32 (b.reserved));
  if (img->nb_bitmaps == 0 || img->nb_bitmaps > Q_MAX_BITMAPS)
    return q_fail (err, -EINVAL, "%s: bitmaps extension: %u bitmaps, should be 1 to %u",
                   img->filename, img->nb_bitmaps, Q_MAX_BITMAPS);
  if (img->bitmap_dir_size > Q_MAX_BITMAP_DIR ||
      img->bitmap_dir_size < img->nb_bitmaps * (uint64_t)sizeof (struct qcow2_bitmap))
    return q_fail (
        err, -EINVAL, "%s: bitmaps extension: directory of %llu bytes for %u bitmaps, at most %u",
        img->filename, (unsigned long long)img->bitmap_dir_size, img->nb_bitmaps, Q_MAX_BITMAP_DIR);
  if (img->bitmap_dir_offset == 0 || img->bitmap_dir_offset >= Q_MAX_HOST_OFFSET ||
      (img->bitmap_dir_offset & (q_cluster_bytes (img) - 1)))
    return q_fail (err, -EINVAL, "%s: bitmaps extension: directory offset %#llx is not a cluster's",
                   img->filename, (unsigned long long)img->bitmap_dir_offset);
  return 0;
}

static int
parse_crypto (struct q_image *img, const struct q_extension *e, struct q_error *err)
{
  struct qcow2_crypto_extension c;

  if (e->length != sizeof c)
    return q_fail (err, -EINVAL, "%s: encryption header extension: length %u, should be %zu",
                   img->filename, e->length, sizeof c);
  memcpy (&c, e->data, sizeof c);
  img->crypto_offset = get64 (c.offset);
  img->crypto_length = get64 (c.length);
  if (img->crypto_offset == 0 || img->crypto_offset >= Q_MAX_HOST_OFFSET ||
      (img->crypto_offset & (q_cluster_bytes (img) - 1)))
    return q_fail (err, -EINVAL, "%s: encryption header offset %#llx is not a cluster's",
                   img->filename, (unsigned long long)img->crypto_offset);
  return 0;
}

static int
interpret (struct q_image *img, const struct q_extension *e, struct q_error *err)
{
  int r;

  switch (e->type) {
  case Q_EXT_BACKING_FORMAT:
    return parse_string (img, e, "backing format", Q_MAX_FORMAT_NAME, &img->backing_format, err);
  case Q_EXT_DATA_FILE:
    return parse_string (img, e, "data file name", Q_MAX_BACKING_NAME, &img->data_file, err);
  case Q_EXT_FEATURE_NAMES:
    if (e->length % sizeof (struct qcow2_feature_name) != 0)
      return q_fail (err, -EINVAL, "%s: feature name table: length %u is not a multiple of %zu",
                     img->filename, e->length, sizeof (struct qcow2_feature_name));
    return 0;
  case Q_EXT_BITMAPS:
    r = parse_bitmaps (img, e, err);
    /* Too many is not damage. */
    if (r < 0 && img->repairing && img->nb_bitmaps <= Q_MAX_BITMAPS &&
        img->bitmap_dir_size <= Q_MAX_BITMAP_DIR) {
      img->bitmaps_lost = true;
      img->nb_bitmaps = 0;
      if (err)
        err->text[0] = '\0';
      r = 0;
    }
    return r;
  case Q_EXT_CRYPTO:
    return parse_crypto (img, e, err);
  default: /* unknown ones are kept, and ours are looked at by those who own them */
    return 0;
  }
}

static bool
known (uint32_t type)
{
  return type == Q_EXT_BACKING_FORMAT || type == Q_EXT_DATA_FILE || type == Q_EXT_FEATURE_NAMES ||
         type == Q_EXT_BITMAPS || type == Q_EXT_CRYPTO || type == Q_EXT_HIGHEST_OFFSET ||
         type == Q_EXT_SESSION;
}

int
q_extensions_parse (struct q_image *img, const uint8_t *buf, uint64_t start, uint64_t end,
                    struct q_error *err)
{
  struct q_extension *e, **tail = &img->extensions;
  uint64_t pos = start;
  int r;

  /* An area with no room for another header ends without a marker. */
  img->extensions_marked = false;
  while (end - pos >= sizeof (struct qcow2_extension)) {
    struct qcow2_extension h;
    uint32_t type, length;

    memcpy (&h, buf + pos, sizeof h);
    type = get32 (h.type);
    length = get32 (h.length);
    if (type == Q_EXT_END) {
      img->extensions_marked = true;
      break;
    }
    pos += sizeof h;
    if (length > end - pos)
      return q_fail (err, -EINVAL,
                     "%s: header extension 0x%08x at byte %llu: length %u runs past the end of the "
                     "extension area at byte %llu",
                     img->filename, type, (unsigned long long)(pos - sizeof h), length,
                     (unsigned long long)end);
    if (known (type) && q_extension_find (img, type))
      return q_fail (err, -EINVAL, "%s: header extension 0x%08x at byte %llu appears twice",
                     img->filename, type, (unsigned long long)(pos - sizeof h));
    r = append (&tail, type, length, pos, buf + pos);
    if (r < 0)
      return q_fail (err, r, "%s: out of memory", img->filename);
    pos = q_min (q_round_up (pos + length, 8), end);
  }
  img->extensions_end = pos;

  /* Only now, so that a name in the feature table can be used for what is found elsewhere. */
  for (e = img->extensions; e; e = e->next) {
    r = interpret (img, e, err);
    if (r < 0)
      return q_fail (err, r, "%s: out of memory", img->filename);
  }
  if ((img->autoclear & Q_AUTOCLEAR_BITMAPS) && !q_extension_find (img, Q_EXT_BITMAPS))
    return q_fail (err, -EINVAL,
                   "%s: autoclear feature bit 0 (bitmaps) is set without a bitmaps extension",
                   img->filename);
  return 0;
}

/* The features of the specification, and ours. */
static const struct {
  unsigned type, bit;
  const char *name;
} standard[] = {
  { 0, 0, "dirty bit" },        { 0, 1, "corrupt bit" },         { 0, 2, "external data file" },
  { 0, 3, "compression type" }, { 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
  { 2, 0, "bitmaps" },          { 2, 1, "raw external data" },   { 2, 63, "nbdcow session" },
};

void
q_feature_names (struct qcow2_feature_name names[Q_N_FEATURES])
{
  static_assert (sizeof standard / sizeof standard[0] == Q_N_FEATURES, "feature names");

  memset (names, 0, Q_N_FEATURES * sizeof *names);
  for (size_t i = 0; i < Q_N_FEATURES; ++i) {
    names[i].type = (uint8_t)standard[i].type;
    names[i].bit = (uint8_t)standard[i].bit;
    memcpy (names[i].name, standard[i].name, strnlen (standard[i].name, sizeof names[i].name));
  }
}

const char *
q_feature_name (const struct q_image *img, unsigned type, unsigned bit, char name[64])
{
  const struct q_extension *e = q_extension_find (img, Q_EXT_FEATURE_NAMES);
  size_t i;

  for (i = 0; e && i + sizeof (struct qcow2_feature_name) <= e->length;
       i += sizeof (struct qcow2_feature_name)) {
    struct qcow2_feature_name f;
    size_t n;

    memcpy (&f, e->data + i, sizeof f);
    if (f.type != type || f.bit != bit)
      continue;
    n = strnlen (f.name, sizeof f.name);
    for (size_t j = 0; j < n; ++j)
      name[j] = f.name[j] >= 0x20 && f.name[j] < 0x7f ? f.name[j] : '?';
    name[n] = '\0';
    if (n > 0)
      return name;
  }
  for (i = 0; i < sizeof standard / sizeof standard[0]; ++i)
    if (standard[i].type == type && standard[i].bit == bit)
      return standard[i].name;
  return NULL;
}
