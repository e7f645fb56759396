/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The snapshot table (specification: "Snapshots"): read at open, so that the snapshots can be
 * listed and that nothing they hold is ever taken for free; written anew, to another place, for
 * every change (snapshot-make.c, snapshot-drop.c).
 *
 * The list in memory is never changed, but replaced; whoever reads it holds a pin (invariant 5).
 * What is in the table of other snapshots, extra data that nobody here understands included, is
 * written as it was read.
 */

#include <errno.h>
#include <stdlib.h>

#include "readers.h"
#include "tree.h"

#define ull(v) ((unsigned long long)(v))

/* Reads one entry at *POS and moves it to the next. */
static int
read_entry (struct q_image *img, struct q_snapshot *s, unsigned i, uint64_t *pos,
            uint64_t file_size, struct q_error *err)
{
  struct qcow2_snapshot d;
  uint64_t start = *pos, len;
  int r;

  r = q_file_pread (img->file, &d, sizeof d, start);
  if (r < 0)
    return q_fail (err, r, "%s: cannot read the snapshot table: %s", img->filename, strerror (-r));
  s->l1_table_offset = get64 (d.l1_table_offset);
  s->l1_size = get32 (d.l1_size);
  s->extra_data_size = get32 (d.extra_data_size);
  len = sizeof d + (uint64_t)s->extra_data_size + get16 (d.id_size) + get16 (d.name_size);
  if (start + len - img->snapshots_offset > Q_MAX_SNAPSHOT_TABLE)
    return q_fail (err, -EFBIG,
                   "%s: snapshot %u: its table entry of %llu bytes (extra data: %u) ends past the "
                   "%u bytes that a snapshot table may have",
                   img->filename, i, ull (len), s->extra_data_size, Q_MAX_SNAPSHOT_TABLE);
  if (start + len > file_size)
    return q_fail (err, -EINVAL,
                   "%s: snapshot %u: its table entry ends at byte %llu, the file at byte %llu",
                   img->filename, i, ull (start + len), ull (file_size));
  if ((s->l1_table_offset & (q_cluster_bytes (img) - 1)) || s->l1_table_offset == 0 ||
      s->l1_table_offset > Q_MAX_HOST_OFFSET)
    return q_fail (err, -EINVAL, "%s: snapshot %u: L1 table offset %#llx is not a cluster's",
                   img->filename, i, ull (s->l1_table_offset));
  if (s->l1_size > Q_MAX_L1_BYTES / 8)
    return q_fail (err, -EFBIG, "%s: snapshot %u: L1 table of %u entries, at most %u are supported",
                   img->filename, i, s->l1_size, Q_MAX_L1_BYTES / 8);

  s->extra_data = malloc (s->extra_data_size + 1u);
  s->id_size = get16 (d.id_size);
  s->name_size = get16 (d.name_size);
  s->id = calloc (1, s->id_size + 1u);
  s->name = calloc (1, s->name_size + 1u);
  if (!s->extra_data || !s->id || !s->name)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  start += sizeof d;
  r = q_file_pread (img->file, s->extra_data, s->extra_data_size, start);
  start += s->extra_data_size;
  if (r == 0)
    r = q_file_pread (img->file, s->id, s->id_size, start);
  start += s->id_size;
  if (r == 0)
    r = q_file_pread (img->file, s->name, s->name_size, start);
  start += s->name_size;
  if (r < 0)
    return q_fail (err, r, "%s: cannot read the snapshot table: %s", img->filename, strerror (-r));
  *pos = q_round_up (start - img->snapshots_offset, 8) + img->snapshots_offset;

  s->short_vm_state_size = get32 (d.vm_state_size);
  s->info = (struct q_snapshot_info){
    .id = s->id,
    .name = s->name,
    .vm_state_size = s->short_vm_state_size,
    .disk_size = atomic_load (&img->size),
    .vm_clock_nsec = get64 (d.vm_clock_nsec),
    .date_sec = get32 (d.date_sec),
    .date_nsec = get32 (d.date_nsec),
    .icount = -1,
  };
  {
    struct qcow2_snapshot_extra x;

    memset (&x, 0xff, sizeof x);
    memcpy (&x, s->extra_data, q_min (s->extra_data_size, sizeof x));
    if (s->extra_data_size >= 8)
      s->info.vm_state_size = get64 (x.vm_state_size);
    if (s->extra_data_size >= 16)
      s->info.disk_size = get64 (x.disk_size);
    if (s->extra_data_size >= 24)
      s->info.icount = (int64_t)get64 (x.icount);
  }
  /* The specification wants 16 bytes in version 3; upgrades by old writers left them out.  Nothing
   * is lost by reading such an entry as version 2 had it. */
  return 0;
}

static struct q_snapshots *
new_list (uint32_t n)
{
  struct q_snapshots *list = calloc (1, sizeof *list + n * sizeof list->s[0]);

  if (list)
    list->n = n;
  return list;
}

void
q_snapshots_dispose (void *opaque)
{
  struct q_snapshots *list = opaque;

  for (uint32_t i = 0; list && i < list->n; ++i) {
    free (list->s[i].extra_data);
    free (list->s[i].id);
    free (list->s[i].name);
  }
  free (list);
}

void
q_snapshots_free (struct q_image *img)
{
  q_snapshots_dispose (atomic_exchange (&img->snapshots, NULL));
}

int
q_snapshots_read (struct q_image *img, struct q_error *err)
{
  uint64_t pos = img->snapshots_offset, file_size;
  struct q_error why = { "" };
  struct q_snapshots *list;
  int r;

  if (img->nb_snapshots == 0)
    return 0;
  r = q_file_size (img->file, &file_size);
  if (r < 0)
    return q_fail (err, r, "%s: cannot tell the file's size: %s", img->filename, strerror (-r));
  list = new_list (img->nb_snapshots);
  if (!list)
    return q_fail (err, -ENOMEM, "%s: out of memory for %u snapshots", img->filename,
                   img->nb_snapshots);
  for (uint32_t i = 0; r == 0 && i < list->n; ++i)
    r = read_entry (img, &list->s[i], i, &pos, file_size, &why);
  if (r < 0) {
    q_snapshots_dispose (list);
    /* Without the entry nobody knows what is only the snapshot's: to drop it would be to free that,
     * or to keep it for good, and those that come after it cannot be found. */
    return q_fail (err, r, "%s; this is not repaired: nbdcow-img convert copies the disk",
                   why.text);
  }
  img->snapshots_bytes = pos - img->snapshots_offset;
  atomic_store (&img->snapshots, list);
  return 0;
}

/* ---- finding --------------------------------------------------------------------------------- */

const struct q_snapshot *
q_snapshot_by_id (const struct q_image *img, const char *id)
{
  const struct q_snapshots *list = atomic_load (&img->snapshots);

  for (uint32_t i = 0; list && i < list->n; ++i)
    if (strcmp (list->s[i].id, id) == 0)
      return &list->s[i];
  return NULL;
}

const struct q_snapshot *
q_snapshot_by_name (const struct q_image *img, const char *name)
{
  const struct q_snapshots *list = atomic_load (&img->snapshots);

  for (uint32_t i = 0; list && i < list->n; ++i)
    if (strcmp (list->s[i].name, name) == 0)
      return &list->s[i];
  return NULL;
}

int
q_snapshot_check (struct q_image *img, const struct q_snapshot *s, struct q_error *err)
{
  unsigned shift = img->cluster_bits + img->l2_bits;
  int r;

  if (s->info.disk_size > INT64_MAX - q_cluster_bytes (img) ||
      s->l1_size < q_div_up (s->info.disk_size, 1ull << shift))
    return q_fail (
        err, -EINVAL,
        "%s: snapshot '%s': an L1 table of %u entries is too small for a disk of %llu bytes",
        img->filename, s->name, s->l1_size, ull (s->info.disk_size));
  r = q_file_contains (img->file, s->l1_table_offset, s->l1_size * 8ull);
  if (r < 0)
    return q_fail (err, r, "%s: cannot tell the file's size: %s", img->filename, strerror (-r));
  return r == 1 ? 0
                : q_fail (err, -EINVAL,
                          "%s: snapshot '%s': truncated: its L1 table is not in the file",
                          img->filename, s->name);
}

int
q_snapshot_select (struct q_image *img, const char *id_or_name, struct q_error *err)
{
  const struct q_snapshot *s = q_snapshot_by_id (img, id_or_name);
  int r;

  if (!img->read_only)
    return q_fail (err, -EROFS, "%s: snapshot '%s' can only be opened read-only", img->filename,
                   id_or_name);
  if (!s)
    s = q_snapshot_by_name (img, id_or_name);
  if (!s)
    return q_fail (err, -ENOENT,
                   "%s: has no snapshot with id or name '%s' (nbdcow-img info lists %u)",
                   img->filename, id_or_name, q_snapshots_count (img));
  r = q_snapshot_check (img, s, err);
  if (r < 0)
    return r;
  atomic_store (&img->size, s->info.disk_size);
  img->l1_offset = s->l1_table_offset;
  img->l1_size = s->l1_size;
  img->shows = s->l1_table_offset;
  return 0;
}

/* ---- listing --------------------------------------------------------------------------------- */

uint32_t
q_snapshots_count (const struct q_image *img)
{
  q_pin_t pin = q_pin ();
  const struct q_snapshots *list = atomic_load (&img->snapshots);
  uint32_t n = list ? list->n : 0;

  q_unpin (pin);
  return n;
}

/* Infos, and behind them their strings. */
static int
copy_infos (const struct q_snapshots *from, struct q_snapshot_info **list)
{
  uint32_t n = from ? from->n : 0;
  size_t bytes = (n + 1ul) * sizeof **list;
  char *text;

  for (uint32_t i = 0; i < n; ++i)
    bytes += strlen (from->s[i].id) + strlen (from->s[i].name) + 2;
  *list = malloc (bytes);
  if (!*list)
    return -ENOMEM;
  text = (char *)(*list + n + 1);
  for (uint32_t i = 0; i < n; ++i) {
    (*list)[i] = from->s[i].info;
    (*list)[i].id = text;
    text = stpcpy (text, from->s[i].id) + 1;
    (*list)[i].name = text;
    text = stpcpy (text, from->s[i].name) + 1;
  }
  return (int)n;
}

int
q_get_snapshots (const struct q_image *img, struct q_snapshot_info **list)
{
  q_pin_t pin = q_pin ();
  int n = copy_infos (atomic_load (&img->snapshots), list);

  q_unpin (pin);
  return n;
}

/* ---- changing -------------------------------------------------------------------------------- */

static bool
copy (struct q_snapshot *to, const struct q_snapshot *from)
{
  *to = *from;
  to->extra_data = malloc (from->extra_data_size + 1u);
  to->id = calloc (1, from->id_size + 1u);
  to->name = calloc (1, from->name_size + 1u);
  to->info.id = to->id;
  to->info.name = to->name;
  if (!to->extra_data || !to->id || !to->name)
    return false;
  memcpy (to->extra_data, from->extra_data, from->extra_data_size);
  memcpy (to->id, from->id, from->id_size);
  memcpy (to->name, from->name, from->name_size);
  return true;
}

/* What version 3 wants, and what old writers left out: without it a snapshot has no size of its
 * own, but that of the disk. */
static bool
is_complete (const struct q_snapshot *s)
{
  return s->extra_data_size >= 16;
}

static bool
complete (struct q_snapshot *s)
{
  struct qcow2_snapshot_extra x = { .vm_state_size = put64 (s->info.vm_state_size),
                                    .disk_size = put64 (s->info.disk_size),
                                    .icount = put64 ((uint64_t)s->info.icount) };
  struct qcow2_snapshot_extra *extra;

  if (is_complete (s))
    return true;
  extra = malloc (sizeof x);
  if (!extra)
    return false;
  *extra = x;
  free (s->extra_data);
  s->extra_data = (uint8_t *)extra;
  s->extra_data_size = sizeof x;
  return true;
}

int
q_snapshots_edit (struct q_image *img, const struct q_snapshot *drop, const struct q_snapshot *add,
                  struct q_snapshots **plist, struct q_error *err)
{
  const struct q_snapshots *old = atomic_load (&img->snapshots);
  uint32_t n = old ? old->n : 0, to = 0;
  struct q_snapshots *list = new_list (n - (drop != NULL) + (add != NULL));
  bool ok = list;

  for (uint32_t i = 0; ok && i < n; ++i)
    if (&old->s[i] != drop) {
      ok = copy (&list->s[to], &old->s[i]) && complete (&list->s[to]);
      ++to;
    }
  if (ok && add)
    ok = copy (&list->s[to], add);
  if (!ok) {
    q_snapshots_dispose (list);
    return q_fail (err, -ENOMEM, "%s: out of memory for %u snapshots", img->filename, n);
  }
  *plist = list;
  if (q_snapshots_bytes (img, list) > Q_MAX_SNAPSHOT_TABLE) {
    q_snapshots_dispose (list);
    q_fail (err, -EFBIG, "%s: the snapshot table would have more than %u bytes", img->filename,
            Q_MAX_SNAPSHOT_TABLE);
    return -EFBIG;
  }
  return 0;
}

uint64_t
q_snapshot_entry_bytes (const struct q_snapshot *s)
{
  return q_round_up (
      sizeof (struct qcow2_snapshot) + s->extra_data_size + s->id_size + s->name_size, 8);
}

uint64_t
q_snapshots_bytes (const struct q_image *img, const struct q_snapshots *list)
{
  uint64_t bytes = 0;

  (void)img;
  for (uint32_t i = 0; i < list->n; ++i)
    bytes += q_snapshot_entry_bytes (&list->s[i]);
  return bytes;
}

static void
write_entry (uint8_t *to, const struct q_snapshot *s)
{
  struct qcow2_snapshot d = {
    .l1_table_offset = put64 (s->l1_table_offset),
    .l1_size = put32 (s->l1_size),
    .id_size = put16 (s->id_size),
    .name_size = put16 (s->name_size),
    .date_sec = put32 (s->info.date_sec),
    .date_nsec = put32 (s->info.date_nsec),
    .vm_clock_nsec = put64 (s->info.vm_clock_nsec),
    .vm_state_size = put32 (s->short_vm_state_size),
    .extra_data_size = put32 (s->extra_data_size),
  };

  memcpy (to, &d, sizeof d);
  to += sizeof d;
  memcpy (to, s->extra_data, s->extra_data_size);
  to += s->extra_data_size;
  memcpy (to, s->id, s->id_size);
  memcpy (to + s->id_size, s->name, s->name_size);
}

/* The header points to LIST, at HOST, or to nothing if it is empty. */
static void
publish (struct q_image *img, struct q_snapshots *list, uint64_t host, uint64_t bytes)
{
  struct q_snapshots *old;

  q_alloc_lock (img);
  img->nb_snapshots = list->n;
  img->snapshots_offset = host;
  img->snapshots_bytes = bytes;
  q_alloc_unlock (img);
  old = atomic_exchange (&img->snapshots, list);
  if (old)
    q_grace_retire (old, q_snapshots_dispose);
}

int
q_snapshots_write (struct q_image *img, struct q_snapshots *list, uint64_t host, bool *switched)
{
  uint64_t bytes = q_snapshots_bytes (img, list), at = 0;
  uint64_t old_offset = img->snapshots_offset, old_bytes = img->snapshots_bytes;
  uint8_t *buf = calloc (1, bytes + 1);
  int r = buf ? 0 : -ENOMEM;

  *switched = false;
  if (r == 0 && !q_readers_allow (img, list))
    r = -EBUSY;
  for (uint32_t i = 0; r == 0 && i < list->n; ++i) {
    write_entry (buf + at, &list->s[i]);
    at += q_snapshot_entry_bytes (&list->s[i]);
  }
  if (r == 0 && bytes > 0)
    r = q_file_pwrite (img->file, buf, bytes, host);
  free (buf);
  if (r < 0)
    return r;
  r = q_file_sync (img->file);
  if (r < 0)
    return q_stick (img, r, "syncing the snapshot table failed");

  r = q_header_write_snapshots (img, list->n, list->n ? host : 0);
  if (r == -ENOSPC)
    return r; /* it is in one sector, which was not written */
  /* From here on nobody knows what the disk has until it is synced. */
  *switched = true;
  if (r == 0)
    r = q_file_sync (img->file);
  publish (img, list, list->n ? host : 0, bytes);
  if (r < 0)
    return q_stick (img, r, "pointing the header to the new snapshot table failed");
  if (old_bytes > 0) /* or they are leaked */
    q_alloc_release (img, old_offset >> img->cluster_bits,
                     q_div_up (old_bytes, q_cluster_bytes (img)));
  return 0;
}

int
q_snapshots_replace (struct q_image *img, const struct q_snapshot *drop, bool *switched,
                     struct q_error *err)
{
  struct q_snapshots *list;
  uint64_t cluster = 0, clusters;
  int r = q_snapshots_edit (img, drop, NULL, &list, err);

  *switched = false;
  if (r < 0)
    return r;
  clusters = q_div_up (q_snapshots_bytes (img, list), q_cluster_bytes (img));
  r = q_header_set_dirty (img, true);
  if (r == 0 && clusters > 0)
    r = q_alloc_table (img, clusters, &cluster);
  if (r < 0)
    clusters = 0;
  if (r == 0)
    r = q_flush (img); /* the counts */
  if (r == 0)
    r = q_snapshots_write (img, list, cluster << img->cluster_bits, switched);
  if (!*switched) {
    q_snapshots_dispose (list);
    if (clusters > 0)
      q_alloc_drop (img, cluster, clusters);
  }
  return r;
}

int
q_snapshot_complete (struct q_image *img, struct q_error *err)
{
  int r = q_writable (img);

  if (err)
    err->text[0] = '\0';
  if (r < 0)
    return q_fail (err, r, "%s: the image is read-only", img->filename);
  pthread_mutex_lock (&img->layout_lock);
  r = q_snapshots_record_sizes (img, err);
  pthread_mutex_unlock (&img->layout_lock);
  return r;
}

int
q_snapshots_record_sizes (struct q_image *img, struct q_error *err)
{
  const struct q_snapshots *list = atomic_load (&img->snapshots);
  bool all = true, switched;
  int r;

  for (uint32_t i = 0; list && i < list->n; ++i)
    all = all && is_complete (&list->s[i]);
  if (all)
    return 0;
  q_readers_lock (img);
  r = q_snapshots_replace (img, NULL, &switched, err);
  q_readers_unlock (img);
  q_tree_settle (img);
  return r < 0 ? q_fail (err, r, "%s: cannot record the sizes of its snapshots: %s", img->filename,
                         strerror (-r))
               : 0;
}
