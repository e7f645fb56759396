/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The snapshot table (specification: "Snapshots"): read at open, so that the snapshots can be
 * listed and that nothing they hold is ever taken for free.
 */

#include <errno.h>
#include <stdlib.h>

#include "image.h"

#define ull(v) ((unsigned long long)(v))

/* Reads one entry at *POS and moves it to the next. */
static int
read_entry (struct q_image *img, unsigned i, uint64_t *pos, uint64_t file_size, struct q_error *err)
{
  struct q_snapshot *s = &img->snapshots[i];
  struct qcow2_snapshot d;
  uint64_t start = *pos, len;
  int r;

  r = q_file_pread (img->file, &d, sizeof d, start);
  if (r < 0)
    return q_fail (err, r, "%s: cannot read the snapshot table: %s", img->filename, strerror (-r));
  s->l1_table_offset = get64 (d.l1_table_offset);
  s->l1_size = get32 (d.l1_size);
  s->extra_data_size = get32 (d.extra_data_size);
  if (s->extra_data_size > Q_MAX_SNAPSHOT_EXTRA)
    return q_fail (err, -EINVAL,
                   "%s: snapshot %u: extra data of %u bytes, at most %u are supported",
                   img->filename, i, s->extra_data_size, Q_MAX_SNAPSHOT_EXTRA);
  len = sizeof d + s->extra_data_size + get16 (d.id_size) + get16 (d.name_size);
  if (start + len > file_size || start + len - img->snapshots_offset > Q_MAX_SNAPSHOT_TABLE)
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
  s->id = calloc (1, get16 (d.id_size) + 1u);
  s->name = calloc (1, get16 (d.name_size) + 1u);
  if (!s->extra_data || !s->id || !s->name)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  start += sizeof d;
  r = q_file_pread (img->file, s->extra_data, s->extra_data_size, start);
  start += s->extra_data_size;
  if (r == 0)
    r = q_file_pread (img->file, s->id, get16 (d.id_size), start);
  start += get16 (d.id_size);
  if (r == 0)
    r = q_file_pread (img->file, s->name, get16 (d.name_size), start);
  start += get16 (d.name_size);
  if (r < 0)
    return q_fail (err, r, "%s: cannot read the snapshot table: %s", img->filename, strerror (-r));
  *pos = q_round_up (start - img->snapshots_offset, 8) + img->snapshots_offset;

  s->info = (struct q_snapshot_info){
    .id = s->id,
    .name = s->name,
    .vm_state_size = get32 (d.vm_state_size),
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

int
q_snapshots_read (struct q_image *img, struct q_error *err)
{
  uint64_t pos = img->snapshots_offset, file_size;
  int r;

  if (img->nb_snapshots == 0)
    return 0;
  r = q_file_size (img->file, &file_size);
  if (r < 0)
    return q_fail (err, r, "%s: cannot tell the file's size: %s", img->filename, strerror (-r));
  img->snapshots = calloc (img->nb_snapshots, sizeof *img->snapshots);
  if (!img->snapshots)
    return q_fail (err, -ENOMEM, "%s: out of memory for %u snapshots", img->filename,
                   img->nb_snapshots);
  for (unsigned i = 0; r == 0 && i < img->nb_snapshots; ++i)
    r = read_entry (img, i, &pos, file_size, err);
  img->snapshots_bytes = pos - img->snapshots_offset;
  return r;
}

static const struct q_snapshot *
find (const struct q_image *img, const char *id_or_name)
{
  for (unsigned i = 0; i < img->nb_snapshots; ++i)
    if (strcmp (img->snapshots[i].id, id_or_name) == 0)
      return &img->snapshots[i];
  for (unsigned i = 0; i < img->nb_snapshots; ++i)
    if (strcmp (img->snapshots[i].name, id_or_name) == 0)
      return &img->snapshots[i];
  return NULL;
}

int
q_snapshot_select (struct q_image *img, const char *id_or_name, struct q_error *err)
{
  const struct q_snapshot *s = find (img, id_or_name);
  unsigned shift = img->cluster_bits + img->l2_bits;

  if (!img->read_only)
    return q_fail (err, -EROFS, "%s: snapshot '%s' can only be opened read-only", img->filename,
                   id_or_name);
  if (!s)
    return q_fail (err, -ENOENT,
                   "%s: has no snapshot with id or name '%s' (nbdcow-img info lists %u)",
                   img->filename, id_or_name, img->nb_snapshots);
  if (s->info.disk_size > INT64_MAX - q_cluster_bytes (img) ||
      s->l1_size < q_div_up (s->info.disk_size, 1ull << shift))
    return q_fail (
        err, -EINVAL,
        "%s: snapshot '%s': an L1 table of %u entries is too small for a disk of %llu bytes",
        img->filename, id_or_name, s->l1_size, ull (s->info.disk_size));
  if (q_file_contains (img->file, s->l1_table_offset, s->l1_size * 8ull) != 1)
    return q_fail (err, -EINVAL, "%s: snapshot '%s': truncated: its L1 table is not in the file",
                   img->filename, id_or_name);
  atomic_store (&img->size, s->info.disk_size);
  img->l1_offset = s->l1_table_offset;
  img->l1_size = s->l1_size;
  return 0;
}

void
q_snapshots_free (struct q_image *img)
{
  for (unsigned i = 0; img->snapshots && i < img->nb_snapshots; ++i) {
    free (img->snapshots[i].extra_data);
    free (img->snapshots[i].id);
    free (img->snapshots[i].name);
  }
  free (img->snapshots);
  img->snapshots = NULL;
}

int
q_get_snapshot (const struct q_image *img, unsigned index, struct q_snapshot_info *info)
{
  if (index >= img->nb_snapshots || !img->snapshots)
    return -ENOENT;
  *info = img->snapshots[index].info;
  return 0;
}
