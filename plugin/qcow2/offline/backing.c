/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Recording another backing file (specification: "Header", "Header extensions").
 *
 * Invariant: at any moment the header on disk is the one of before or the one of after.  The new
 * name goes where nothing is that the old header refers to, and is durable before one write of the
 * first sector, which cannot tear, switches to it.  The format is in an extension: it keeps its
 * place, and changes in the same write; one that is missing is appended before (an extension that
 * says the format of no backing file, or for a moment of the old one, that had none recorded).
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "image.h"

#define SECTOR 512u

/* QEMU's reader refuses longer format names. */
#define MAX_FORMAT 15u

void
q_expect_backing (struct q_image *img)
{
  img->expects_backing = true;
}

/* Bytes of the first cluster that the header with its extensions takes. */
static uint64_t
extensions_end (const struct q_image *img)
{
  return img->extensions_end + sizeof (struct qcow2_extension);
}

/* Where LEN bytes are free beside the extensions and the present name; 0 if nowhere. */
static uint64_t
find_room (const struct q_image *img, uint64_t len)
{
  const uint64_t start = q_round_up (extensions_end (img), 8), limit = q_cluster_bytes (img);
  const uint64_t old = img->backing_file ? img->backing_file_offset : limit;
  const uint64_t old_end = img->backing_file ? q_round_up (old + img->backing_file_size, 8) : limit;

  if (start <= old && len <= old - start)
    return start;
  return old_end <= limit && len <= limit - old_end && old_end >= start ? old_end : 0;
}

/* The recorded format in SECTOR becomes FORMAT, which takes no more room. */
static void
patch_format (uint8_t *sector, struct q_extension *e, const char *format)
{
  struct qcow2_extension head = { put32 (e->type), put32 ((uint32_t)strlen (format)) };

  memset (sector + e->offset, 0, q_round_up (e->length, 8));
  /* Without a NUL: the length says where it ends. */
  for (size_t i = 0; format[i]; ++i)
    sector[e->offset + i] = (uint8_t)format[i];
  memcpy (sector + e->offset - sizeof head, &head, sizeof head);
}

/* Sees to it that the format can be changed within the first sector, or is right already. */
static int
prepare_format (struct q_image *img, const char *format, struct q_extension **change,
                struct q_error *err)
{
  struct q_extension *e = q_extension_find (img, Q_EXT_BACKING_FORMAT);
  const size_t len = strlen (format);
  int r;

  *change = NULL;
  if (len == 0 || len > MAX_FORMAT)
    return q_fail (err, -EINVAL, "%s: backing format '%.64s' has %zu bytes: 1 to %u are possible",
                   img->filename, format, len, MAX_FORMAT);
  if (!e) {
    r = q_header_append_extension (img, Q_EXT_BACKING_FORMAT, format, (uint32_t)len);
    return r < 0 ? q_fail (err, r, "%s: no room to record the backing format in the first cluster",
                           img->filename)
                 : 0;
  }
  if (e->length == len && memcmp (e->data, format, len) == 0)
    return 0;
  if (q_round_up (len, 8) != q_round_up (e->length, 8) ||
      e->offset + q_round_up (e->length, 8) > SECTOR)
    return q_fail (err, -E2BIG,
                   "%s: the recorded backing format cannot be changed to '%s' where it is",
                   img->filename, format);
  *change = e;
  return 0;
}

/* NAME at OFFSET, in memory. */
static int
take_name (struct q_image *img, const char *name, uint64_t offset, const char *format)
{
  char *copy = name ? strdup (name) : NULL, *kind = format ? strdup (format) : NULL;

  if ((name && !copy) || (format && !kind)) {
    free (copy);
    free (kind);
    return -ENOMEM;
  }
  free (img->backing_file);
  free (img->backing_path); /* whoever opens the image anew resolves the name */
  img->backing_path = NULL;
  img->backing_file = copy;
  img->backing_file_offset = offset;
  img->backing_file_size = name ? (uint32_t)strlen (name) : 0;
  if (format) {
    free (img->backing_format);
    img->backing_format = kind;
  }
  return 0;
}

static int
switch_over (struct q_image *img, const char *name, uint64_t offset, const char *format,
             struct q_extension *change)
{
  uint8_t sector[SECTOR];
  be64 at = put64 (name ? offset : 0);
  be32 len = put32 (name ? (uint32_t)strlen (name) : 0);
  int r = q_file_pread (img->file, sector, sizeof sector, 0);

  if (r < 0)
    return r;
  memcpy (sector + offsetof (struct qcow2_header, backing_file_offset), &at, sizeof at);
  memcpy (sector + offsetof (struct qcow2_header, backing_file_size), &len, sizeof len);
  if (change)
    patch_format (sector, change, format);
  r = q_file_pwrite (img->file, sector, sizeof sector, 0);
  if (r == 0)
    r = q_file_sync (img->file);
  if (r == 0)
    r = take_name (img, name, offset, format);
  if (r == 0 && change) {
    change->length = (uint32_t)strlen (format);
    memcpy (change->data, format, change->length);
  }
  return r;
}

int
q_set_backing (struct q_image *img, const char *name, const char *format, struct q_error *err)
{
  const uint64_t len = name ? strlen (name) : 0;
  struct q_extension *change = NULL;
  uint64_t offset = 0;
  int r = img->format == Q_FORMAT_QCOW2 ? q_writable (img) : -ENOTSUP;

  if (r == 0)
    r = q_flush (img);
  if (r < 0)
    return q_fail (err, r, "%s: cannot change the backing file: %s", img->filename, strerror (-r));
  if (name && (len == 0 || len > Q_MAX_BACKING_NAME))
    return q_fail (err, -EINVAL, "%s: a backing file name has 1 to %u bytes, not %llu",
                   img->filename, Q_MAX_BACKING_NAME, (unsigned long long)len);
  q_flush_hold (img);
  if (name && format)
    r = prepare_format (img, format, &change, err);
  if (r == 0 && name) {
    offset = find_room (img, len);
    if (offset == 0)
      r = q_fail (err, -E2BIG,
                  "%s: the first cluster has no room for a backing file name of %llu bytes beside "
                  "the old one; use a shorter name",
                  img->filename, (unsigned long long)len);
    else
      r = q_file_pwrite (img->file, name, len, offset);
    if (r == 0)
      r = q_file_sync (img->file);
  }
  if (r == 0)
    r = switch_over (img, name, offset, format, change);
  q_flush_let_go (img);
  if (r < 0)
    q_fail (err, r, "%s: recording the backing file: %s", img->filename, strerror (-r));
  return r;
}
