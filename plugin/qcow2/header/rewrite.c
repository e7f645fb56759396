/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How a header of several sectors is replaced so that at each point there is a valid one, though
 * only a sector is written in one piece:
 *
 *     what is the same past the first sector, or ends in it: write the first sector
 *     else
 *         put the new extensions and names into the unused part of the first cluster; sync
 *         write the first sector: the new header, with its extensions there; sync
 *         put the extensions where they belong, past the first sector; sync
 *         write the first sector: the new header, with its extensions where they belong; sync
 *
 * In between, what lies before the extensions counts as header (version 3: header_length says so,
 * and what is behind the fields that a reader knows it keeps and ignores), or as an extension that
 * nobody knows (version 2, whose header has a fixed length).
 */

#include <errno.h>
#include <stdlib.h>

#include "rewrite.h"

#define SECTOR 512u

/* Bytes kept free between the end of the extensions and the backing file name: create.c says why.
 */
#define ROOM 64u

/* Spans what is unused.  Only for as long as a rewriting takes. */
#define EXT_FILLER 0x4e424631u /* "NBF1" */

/* ---- drafts --------------------------------------------------------------------------------- */

static struct q_extension *
new_extension (uint32_t type, const void *data, uint32_t length)
{
  struct q_extension *e = calloc (1, sizeof *e + length);

  if (!e)
    return NULL;
  e->type = type;
  e->length = length;
  if (length > 0)
    memcpy (e->data, data, length);
  return e;
}

static void
free_extensions (struct q_extension *e)
{
  while (e) {
    struct q_extension *next = e->next;

    free (e);
    e = next;
  }
}

int
q_draft_init (struct q_draft *d, const struct q_image *img)
{
  struct q_extension **tail = &d->extensions;

  *d = (struct q_draft){
    .version = img->version,
    .refcount_order = img->refcount_order,
    .incompatible = img->incompatible,
    .compatible = img->compatible,
    .autoclear = img->autoclear,
    .compression_type = img->compression_type,
    .reftable_offset = img->reftable_offset,
    .reftable_clusters = img->reftable_clusters,
    .backing_file = img->backing_file,
  };
  for (const struct q_extension *e = img->extensions; e; e = e->next) {
    if (e->type == EXT_FILLER)
      continue; /* left by a crash */
    *tail = new_extension (e->type, e->data, e->length);
    if (!*tail) {
      q_draft_free (d);
      return -ENOMEM;
    }
    tail = &(*tail)->next;
  }
  return 0;
}

void
q_draft_free (struct q_draft *d)
{
  free_extensions (d->extensions);
  d->extensions = NULL;
}

int
q_draft_set (struct q_draft *d, uint32_t type, const void *data, uint32_t length)
{
  struct q_extension **p = &d->extensions, *old, *e = NULL;

  if (data && !(e = new_extension (type, data, length)))
    return -ENOMEM;
  while (*p && (*p)->type != type)
    p = &(*p)->next;
  old = *p;
  if (e) {
    e->next = old ? old->next : NULL;
    *p = e;
  } else if (old)
    *p = old->next;
  free (old);
  return 0;
}

static bool
is_named (const struct qcow2_feature_name *names, size_t n, unsigned type, unsigned bit)
{
  for (size_t i = 0; i < n; ++i)
    if (names[i].type == type && names[i].bit == bit)
      return true;
  return false;
}

int
q_draft_name_features (struct q_draft *d)
{
  const uint64_t set[] = { d->incompatible, d->compatible, d->autoclear };
  struct qcow2_feature_name all[Q_N_FEATURES], *names;
  const struct q_extension *e = d->extensions;
  size_t n, i;
  int r;

  if (d->version < 3)
    return q_draft_set (d, Q_EXT_FEATURE_NAMES, NULL, 0);
  q_feature_names (all);
  while (e && e->type != Q_EXT_FEATURE_NAMES)
    e = e->next;
  if (!e)
    return q_draft_set (d, Q_EXT_FEATURE_NAMES, all, sizeof all);
  n = e->length / sizeof *names;
  names = malloc (n * sizeof *names + sizeof all);
  if (!names)
    return -ENOMEM;
  memcpy (names, e->data, n * sizeof *names);
  for (i = 0; i < Q_N_FEATURES; ++i)
    if ((set[all[i].type] >> all[i].bit & 1) && !is_named (names, n, all[i].type, all[i].bit))
      names[n++] = all[i];
  r = q_draft_set (d, Q_EXT_FEATURE_NAMES, names, (uint32_t)(n * sizeof *names));
  free (names);
  return r;
}

/* ---- composing ------------------------------------------------------------------------------ */

/* One form of the first cluster. */
struct form {
  uint8_t *bytes;    /* a cluster */
  uint64_t at, end;  /* where its extensions begin, and where all of it ends */
  uint64_t exts_end; /* of its end marker */
  uint64_t name;     /* of the backing file name; 0: none */
};

struct rewriting {
  struct q_image *img;
  const struct q_draft *d;
  uint8_t *old;
  uint64_t old_end;
  uint32_t header_length; /* in the end */
};

static uint64_t
put_extension (struct form *f, uint64_t at, uint32_t type, const void *data, uint32_t length)
{
  struct qcow2_extension h = { put32 (type), put32 (length) };

  memcpy (f->bytes + at, &h, sizeof h);
  if (length > 0 && data)
    memcpy (f->bytes + at + sizeof h, data, length);
  return at + sizeof h + q_round_up (length, 8);
}

static uint64_t
extensions_bytes (const struct q_draft *d, bool with_names)
{
  uint64_t bytes = sizeof (struct qcow2_extension);

  for (const struct q_extension *e = d->extensions; e; e = e->next)
    if (with_names || e->type != Q_EXT_FEATURE_NAMES)
      bytes += sizeof (struct qcow2_extension) + q_round_up (e->length, 8);
  return bytes;
}

/* Fills F with a header whose extensions begin at byte AT.  -E2BIG if the cluster is too small. */
static int
compose (const struct rewriting *w, uint64_t at, bool with_names, struct form *f)
{
  const struct q_draft *d = w->d;
  const uint64_t cluster = q_cluster_bytes (w->img);
  const uint64_t name_length = d->backing_file ? strlen (d->backing_file) : 0;
  uint64_t exts = extensions_bytes (d, with_names), pos = at;
  struct qcow2_header h = { 0 };
  uint32_t known = w->header_length < sizeof h ? w->header_length : (uint32_t)sizeof h;

  f->at = at;
  f->exts_end = at + exts - sizeof (struct qcow2_extension);
  f->name = name_length ? at + exts : 0;
  if (f->name && f->name + ROOM + name_length <= cluster)
    f->name += ROOM;
  f->end = f->name ? f->name + name_length : at + exts;
  if (f->end > cluster)
    return -E2BIG;

  memset (f->bytes, 0, cluster);
  memcpy (f->bytes, w->old,
          w->header_length < w->img->header_length ? w->header_length : w->img->header_length);
  memcpy (&h, f->bytes, known);
  h.version = put32 (d->version);
  h.backing_file_offset = put64 (f->name);
  h.backing_file_size = put32 ((uint32_t)name_length);
  h.refcount_table_offset = put64 (d->reftable_offset);
  h.refcount_table_clusters = put32 (d->reftable_clusters);
  if (d->version >= 3) {
    h.incompatible_features = put64 (d->incompatible);
    h.compatible_features = put64 (d->compatible);
    h.autoclear_features = put64 (d->autoclear);
    h.refcount_order = put32 (d->refcount_order);
    h.header_length = put32 ((uint32_t)at);
    h.compression_type = d->compression_type;
  }
  memcpy (f->bytes, &h, known);
  if (d->version == 2 && at > w->header_length)
    put_extension (f, w->header_length, EXT_FILLER, NULL,
                   (uint32_t)(at - w->header_length - sizeof (struct qcow2_extension)));
  for (const struct q_extension *e = d->extensions; e; e = e->next)
    if (with_names || e->type != Q_EXT_FEATURE_NAMES)
      pos = put_extension (f, pos, e->type, e->data, e->length);
  put_extension (f, pos, Q_EXT_END, NULL, 0);
  if (f->name)
    memcpy (f->bytes + f->name, d->backing_file, name_length);
  return 0;
}

/* ---- writing -------------------------------------------------------------------------------- */

static int
write_synced (struct q_image *img, const uint8_t *bytes, uint64_t from, uint64_t to)
{
  int r;

  if (from >= to)
    return 0;
  r = q_file_pwrite (img->file, bytes + from, to - from, from);
  return r == 0 ? q_file_sync (img->file) : r;
}

static int
write_first_sector (struct q_image *img, const struct form *f)
{
  return write_synced (img, f->bytes, 0, SECTOR);
}

/* LAST by way of BETWEEN. */
static int
replace (const struct rewriting *w, const struct form *between, const struct form *last)
{
  struct q_image *img = w->img;
  int r = write_synced (img, between->bytes, between->at, between->end);

  if (r == 0)
    r = write_first_sector (img, between);
  if (r == 0)
    r = write_synced (img, last->bytes, SECTOR, between->at);
  if (r == 0)
    r = write_first_sector (img, last);
  if (r == 0) /* nothing else may be stored there */
    r = write_synced (img, last->bytes, between->at, between->end);
  return r;
}

static uint64_t
end_of_old (const struct q_image *img)
{
  uint64_t end =
      img->extensions_end + (img->extensions_marked ? sizeof (struct qcow2_extension) : 0);
  uint64_t name = img->backing_file_offset + img->backing_file_size;

  return img->backing_file && name > end ? name : end;
}

/* Makes IMG say what is on disk now. */
static void
adopt (struct q_image *img, const struct q_draft *d, const struct form *f, uint32_t header_length,
       struct q_extension *extensions, char *strings[3])
{
  uint64_t at = f->at;

  free_extensions (img->extensions);
  img->extensions = extensions;
  for (struct q_extension *e = extensions; e; e = e->next) {
    e->offset = at + sizeof (struct qcow2_extension);
    at = e->offset + q_round_up (e->length, 8);
  }
  img->extensions_end = f->exts_end;
  img->extensions_marked = true;
  img->version = d->version;
  img->header_length = header_length;
  img->incompatible = d->incompatible;
  img->compatible = d->compatible;
  img->autoclear = d->autoclear;
  img->refcount_order = d->refcount_order;
  img->compression_type = d->compression_type;
  img->reftable_offset = d->reftable_offset;
  img->reftable_clusters = d->reftable_clusters;
  img->backing_file_offset = f->name;
  img->backing_file_size = f->name ? (uint32_t)(f->end - f->name) : 0;
  free (img->backing_file);
  free (img->backing_format);
  free (img->data_file);
  img->backing_file = strings[0];
  img->backing_format = strings[1];
  img->data_file = strings[2];
}

/* The string in extension TYPE of D, copied; *S is NULL if there is none. */
static int
copy_string (const struct q_draft *d, uint32_t type, char **s)
{
  const struct q_extension *e = d->extensions;

  while (e && e->type != type)
    e = e->next;
  *s = e && e->length > 0 ? strndup ((const char *)e->data, e->length) : NULL;
  return e && e->length > 0 && !*s ? -ENOMEM : 0;
}

/* Everything that takes memory; the rest of the work cannot fail for the want of it. */
static int
prepare (struct rewriting *w, struct form *between, struct form *last, struct q_draft *copy,
         char *strings[3])
{
  struct q_image *img = w->img;
  const uint64_t cluster = q_cluster_bytes (img);
  struct q_image like = { .extensions = w->d->extensions };
  int r = q_draft_init (copy, &like);

  w->old = malloc (cluster);
  between->bytes = malloc (cluster);
  last->bytes = malloc (cluster);
  if (!w->old || !between->bytes || !last->bytes)
    r = -ENOMEM;
  if (r == 0 && w->d->backing_file && !(strings[0] = strdup (w->d->backing_file)))
    r = -ENOMEM;
  if (r == 0)
    r = copy_string (w->d, Q_EXT_BACKING_FORMAT, &strings[1]);
  if (r == 0)
    r = copy_string (w->d, Q_EXT_DATA_FILE, &strings[2]);
  return r == 0 ? q_file_pread (img->file, w->old, cluster, 0) : r;
}

int
q_header_rewrite (struct q_image *img, const struct q_draft *d, struct q_error *err)
{
  struct rewriting w = { .img = img, .d = d, .old_end = end_of_old (img) };
  struct form between = { 0 }, last = { 0 };
  char *strings[3] = { NULL, NULL, NULL };
  struct q_draft copy = { 0 };
  bool one_sector = false;
  int r = prepare (&w, &between, &last, &copy, strings);

  w.header_length = d->version == 2     ? Q_HEADER_V2_LENGTH
                    : img->version == 2 ? (uint32_t)sizeof (struct qcow2_header)
                                        : img->header_length;
  if (r == 0)
    r = compose (&w, w.header_length, true, &last);
  if (r == 0) {
    uint64_t at = q_round_up (w.old_end > last.end ? w.old_end : last.end, 8);

    at = at < SECTOR ? SECTOR : at;
    one_sector =
        last.end <= SECTOR || memcmp (last.bytes + SECTOR, w.old + SECTOR, last.end - SECTOR) == 0;
    if (!one_sector)
      r = compose (&w, at, true, &between);
    if (!one_sector && r == -E2BIG) /* the names of features are a courtesy */
      r = compose (&w, at, false, &between);
  }
  if (r == -E2BIG)
    q_fail (
        err, r,
        "%s: the first cluster of %llu bytes has no room to write another header beside the old "
        "one",
        img->filename, (unsigned long long)q_cluster_bytes (img));
  if (r < 0) {
    q_fail (err, r, "%s: cannot rewrite the header: %s", img->filename, strerror (-r));
    goto out;
  }
  r = one_sector ? write_first_sector (img, &last) : replace (&w, &between, &last);
  if (r == 0 && one_sector) /* nothing else may be stored there */
    r = write_synced (img, last.bytes, last.end > SECTOR ? last.end : SECTOR, w.old_end);
  if (r < 0) {
    q_stick (img, r, "rewriting the header failed");
    q_fail (err, r, "%s: writing the header: %s", img->filename, strerror (-r));
    goto out;
  }
  adopt (img, d, &last, w.header_length, copy.extensions, strings);
  copy.extensions = NULL;
  memset (strings, 0, sizeof strings);
out:
  for (int i = 0; i < 3; ++i)
    free (strings[i]);
  q_draft_free (&copy);
  free (w.old);
  free (between.bytes);
  free (last.bytes);
  return r;
}
