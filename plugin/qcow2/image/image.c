/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening and closing: one layer, then the chain below it.
 *
 * What an image may make us open is decided in names.c.  Only the top layer is opened for writing.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "names.h"
#include "readers.h"
#include "state.h"

#define ull(v) ((unsigned long long)(v))

#define DEFAULT_L2_CACHE       (128ull << 20)
#define DEFAULT_REFCOUNT_CACHE (32ull << 20)

void
q_open_options_init (struct q_open_options *opts)
{
  *opts = (struct q_open_options){ .format = Q_FORMAT_AUTO };
}

/* ---- one layer ------------------------------------------------------------------------------ */

static void
free_layer (struct q_image *img)
{
  q_readers_leave (img);
  q_below_close (img);
  q_bitmaps_free (img);
  q_inflate_close (img);
  q_deflate_close (img);
  q_l2_close (img);
  q_refcount_close (img);
  q_snapshots_free (img);
  q_header_free (img);
  q_crypt_close (img);
  q_data_close (img);
  q_file_close (&img->file);
  free (img->limbo.entry);
  free (img->dropped.entry);
  for (int i = 0; i < Q_TABLE_STRIPES; ++i)
    pthread_mutex_destroy (&img->stripe[i]);
  pthread_mutex_destroy (&img->l2_cache_own.lock);
  pthread_mutex_destroy (&img->refblock_cache.lock);
  pthread_mutex_destroy (&img->features_lock);
  pthread_mutex_destroy (&img->layout_lock);
  q_gate_destroy (&img->gate);
  pthread_mutex_destroy (&img->raw_lock);
  pthread_mutex_destroy (&img->bitmap_lock);
  pthread_mutex_destroy (&img->claim_lock);
  pthread_cond_destroy (&img->claim_released);
  pthread_mutex_destroy (&img->watch_lock);
  pthread_mutex_destroy (&img->alloc_lock);
  pthread_mutex_destroy (&img->dirty_lock);
  pthread_mutex_destroy (&img->flush_lock);
  pthread_cond_destroy (&img->flush_done);
  free (img->filename);
  free (img);
}

static struct q_image *
new_layer (const char *filename)
{
  struct q_image *img = calloc (1, sizeof *img);

  if (!img)
    return NULL;
  for (int i = 0; i < Q_TABLE_STRIPES; ++i)
    pthread_mutex_init (&img->stripe[i], NULL);
  pthread_mutex_init (&img->l2_cache_own.lock, NULL);
  pthread_mutex_init (&img->refblock_cache.lock, NULL);
  pthread_mutex_init (&img->features_lock, NULL);
  pthread_mutex_init (&img->layout_lock, NULL);
  q_gate_init (&img->gate);
  pthread_mutex_init (&img->watch_lock, NULL);
  atomic_store (&img->watch_above, UINT64_MAX);
  pthread_mutex_init (&img->raw_lock, NULL);
  pthread_mutex_init (&img->bitmap_lock, NULL);
  pthread_mutex_init (&img->claim_lock, NULL);
  pthread_cond_init (&img->claim_released, NULL);
  pthread_mutex_init (&img->alloc_lock, NULL);
  pthread_mutex_init (&img->dirty_lock, NULL);
  pthread_mutex_init (&img->flush_lock, NULL);
  pthread_cond_init (&img->flush_done, NULL);
  img->filename = strdup (filename);
  if (!img->filename) {
    free_layer (img);
    return NULL;
  }
  return img;
}

/* What FORMAT means for this file: raw is never guessed, except for a backing file whose overlay
 * the user trusts. */
static int
find_format (struct q_image *img, enum q_format format, bool may_be_raw, struct q_error *err)
{
  be32 magic;
  int r;

  img->format = format;
  if (format != Q_FORMAT_AUTO)
    return 0;
  r = q_file_pread (img->file, &magic, sizeof magic, 0);
  if (r < 0)
    return q_fail (err, r, "%s: cannot read: %s", img->filename, strerror (-r));
  img->format = Q_FORMAT_QCOW2;
  if (get32 (magic) == Q_MAGIC)
    return 0;
  if (!may_be_raw)
    return q_fail (err, -EINVAL,
                   "%s: is not a qcow2 image (it begins with 0x%08x); if it is a raw disk, say so: "
                   "format raw",
                   img->filename, get32 (magic));
  img->format = Q_FORMAT_RAW;
  return 0;
}

static int
open_raw (struct q_image *img, struct q_error *err)
{
  uint64_t size;
  int r = q_file_size (img->file, &size);

  if (r < 0)
    return q_fail (err, r, "%s: cannot tell the file's size: %s", img->filename, strerror (-r));
  img->cluster_bits = img->subcluster_bits = 16;
  atomic_store (&img->size, size);
  return 0;
}

/* What keeps an image from being written at all. */
static int
check_writable (const struct q_image *img, struct q_error *err)
{
  if (img->incompatible & Q_INCOMPAT_CORRUPT)
    return q_fail (
        err, -EROFS,
        "%s: the image is marked corrupt and can only be opened read-only; run nbdcow-img "
        "check -r all",
        img->filename);
  return 0;
}

/* Who only reads the disk can do without a snapshot table that is damaged. */
static int
read_snapshots (struct q_image *img, const struct q_open_options *opts, bool top,
                struct q_error *err)
{
  struct q_error why = { "" };
  int r = q_snapshots_read (img, &why);

  if (r < 0 && (r == -ENOMEM || !img->read_only || opts->repair || (top && opts->snapshot)))
    return q_fail (err, r, "%s", why.text);
  if (r < 0)
    q_log (Q_LOG_WARNING, "%s (it is opened without its snapshots)", why.text);
  return 0;
}

/* What the image says, without its tables. */
static int
open_qcow2 (struct q_image *img, const struct q_open_options *opts, bool top, struct q_error *err)
{
  int r = q_header_read (img, err);

  if (r == 0)
    r = read_snapshots (img, opts, top, err);
  if (r == 0 && top && opts->snapshot)
    r = q_snapshot_select (img, opts->snapshot, err);
  if (r == 0 && !img->read_only && !opts->repair)
    r = check_writable (img, err);
  if (r == 0 && top && !img->read_only && img->discard_no_unref && img->version < 3)
    r = q_fail (
        err, -ENOTSUP,
        "%s: discard-no-unref: an image of version 2 has no zero flag, without which what is "
        "discarded cannot stay allocated",
        img->filename);
  return r;
}

static int
open_tables (struct q_image *img, bool top, struct q_error *err)
{
  int r = q_l2_open (img, err);

  if (r == 0 && q_inflate_open (img) < 0)
    r = q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  if (r == 0 && top && !img->beside_writer) {
    r = q_refcount_open (img, err);
    if (r == 0)
      r = q_highest_open (img, err);
  }
  return r;
}

static int
resolve_backing (struct q_image *img, struct q_error *err)
{
  return q_name_resolve (img, "backing file", "", img->backing_file, &img->backing_path, err);
}

/* Finishes what a writer that did not close the image left behind: another program (the dirty bit),
 * or a killed process of our own. */
static int
recover (struct q_image *img, const struct q_open_options *opts, struct q_error *err)
{
  bool replayed = false;
  int r = 0;

  /* First what is not on disk yet: the dirty bit may be that of the killed process. */
  if (opts->state_dir)
    r = q_state_recover (img, opts->state_dir[0] ? opts->state_dir : NULL, &replayed, err);
  if (r < 0)
    return r;
  if (replayed) {
    q_snapshots_free (img);
    q_header_free (img);
    r = q_header_read (img, err);
    if (r == 0)
      r = q_snapshots_read (img, err);
    if (r == 0 && img->backing_file)
      resolve_backing (img, NULL); /* as before */
  } else if (img->incompatible & Q_INCOMPAT_DIRTY)
    q_log (Q_LOG_WARNING, "%s: was not closed cleanly: repairing its refcounts", img->filename);
  /* What the killed process had allocated and not yet used, or let go of and not yet freed, is
   * leaked. */
  if (r == 0 && (replayed || (img->incompatible & Q_INCOMPAT_DIRTY)))
    r = q_check_repair_dirty (img, err);
  return r;
}

/* Autoclear features that we do not keep up to date. */
static int
clear_unknown_features (struct q_image *img, struct q_error *err)
{
  uint64_t known = Q_AUTOCLEAR_BITMAPS | (img->data_raw ? Q_AUTOCLEAR_DATA_FILE_RAW : 0);
  int r;

  if ((img->autoclear & ~known) == 0)
    return 0;
  img->autoclear &= known;
  r = q_header_write_features (img);
  if (r == 0)
    r = q_file_sync (img->file);
  return r < 0 ? q_fail (err, r, "%s: cannot clear unknown autoclear features: %s", img->filename,
                         strerror (-r))
               : 0;
}

/* Compressed clusters are always in the image's own file, and never encrypted. */
static bool
keeps_compressed_data (const struct q_image *img)
{
  return img->crypt_method == Q_CRYPT_NONE && !(img->incompatible & Q_INCOMPAT_DATA_FILE);
}

/* The top layer's tables; and for writing, whatever changes the image, which is last, so that an
 * image that cannot be opened after all is left as it was. */
static int
activate (struct q_image *img, const struct q_open_options *opts, struct q_error *err)
{
  int r;

  if (img->format != Q_FORMAT_QCOW2)
    return 0;
  /* For q_check and q_close, which need nothing in memory: what is damaged must not keep them out.
   */
  if (opts->repair)
    return img->read_only ? 0 : clear_unknown_features (img, err);
  if (img->read_only)
    return open_tables (img, true, err);
  r = recover (img, opts, err);
  if (r == 0 && keeps_compressed_data (img))
    r = q_deflate_open (img, opts->compression_level, err);
  if (r == 0)
    r = q_state_prepare (img);
  if (r == 0)
    r = open_tables (img, true, err);
  if (r == 0)
    r = opts->recovering ? 0 : clear_unknown_features (img, err);
  if (r < 0 || opts->recovering)
    return r;
  r = q_data_start (img, err);
  if (r == 0)
    r = q_bitmaps_open (img, err);
  if (r == 0)
    r = q_state_start (img, err);
  return r == 0 ? q_bitmaps_start (img, err) : r;
}

/* The top layer of a file that others in this process may have open as well: whoever writes it does
 * not replace what is being read (readers.h). */
static int
open_qcow2_top (struct q_image *img, const struct q_open_options *opts, struct q_error *err)
{
  struct q_image *writer;
  int r;

  if (img->read_only && !opts->snapshot)
    return open_qcow2 (img, opts, true, err);
  if (q_readers_join (img) < 0)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  writer = img->read_only ? q_readers_writer (img) : NULL;
  if (writer)
    q_flush_hold (writer);
  r = open_qcow2 (img, opts, true, err);
  if (writer) {
    q_flush_let_go (writer);
    img->beside_writer = true;
    atomic_store (&img->highest, q_highest_offset (writer));
  }
  if (img->read_only)
    q_readers_unlock (img); /* it is known what it shows */
  return r;
}

/* LAYER, which is about to be added below TOP, must not be there already. */
static int
check_loop (const struct q_image *top, const struct q_image *layer, struct q_error *err)
{
  const struct q_file *f = layer->file;

  if (f->dev == 0 && f->ino == 0)
    return 0; /* it has no identity */
  for (const struct q_image *i = top; i; i = i->backing) {
    if (i->file->dev == f->dev && i->file->ino == f->ino)
      return q_fail (err, -ELOOP, "%s is %s again: the chain of backing files is a loop",
                     layer->filename, i->filename);
    if (i->data && i->data->dev == f->dev && i->data->ino == f->ino)
      return q_fail (err, -ELOOP, "%s is the data file of %s: it cannot be a backing file as well",
                     layer->filename, i->filename);
  }
  return 0;
}

static const struct q_layer *
said_of (const struct q_open_options *opts, unsigned depth)
{
  static const struct q_layer nothing = { .filename = NULL };

  return depth < opts->n_layers ? &opts->layers[depth] : &nothing;
}

/* Whether IMG, which is DEPTH below the top, has a backing file that is opened. */
static bool
goes_on (const struct q_image *img, unsigned depth, const struct q_open_options *opts)
{
  if (opts->metadata_only || said_of (opts, depth)->last)
    return false;
  return said_of (opts, depth + 1)->filename ||
         (img->backing_file && opts->backing != Q_BACKING_NONE);
}

/* TOP is NULL for the top layer itself. */
static int
open_layer (struct q_image **layer, const char *filename, enum q_format format, unsigned more_flags,
            unsigned depth, const struct q_open_options *opts, struct q_image *top,
            struct q_error *err)
{
  const struct q_layer *said = said_of (opts, depth);
  struct q_image *img = new_layer (filename);
  unsigned flags = 0;
  int r;

  *layer = NULL;
  if (!img)
    return q_fail (err, -ENOMEM, "%s: out of memory", filename);
  img->opener = said->opener ? said->opener : opts->opener;
  img->lock = said->unlocked ? Q_LOCK_OFF : opts->lock;
  img->read_only = top || opts->read_only;
  img->stable = img->read_only;
  img->repairing = opts->repair;
  img->discard = opts->discard && !img->read_only;
  img->discard_no_unref = opts->discard_no_unref;
  img->l2_cache_own.max_bytes = opts->l2_cache_size ? opts->l2_cache_size : DEFAULT_L2_CACHE;
  img->l2_cache = top ? top->l2_cache : &img->l2_cache_own;
  img->refblock_cache.max_bytes =
      opts->refcount_cache_size ? opts->refcount_cache_size : DEFAULT_REFCOUNT_CACHE;
  flags |= img->read_only ? 0 : Q_FILE_WRITE;
  flags |= opts->cache == Q_CACHE_DIRECT ? Q_FILE_DIRECT : 0;
  r = q_file_open (img->opener, filename, flags | more_flags, &img->file, err);
  /* Before the lock, which a loop would take against itself. */
  if (r == 0 && top)
    r = check_loop (top, img, err);
  if (r == 0 && img->lock == Q_LOCK_ON)
    r = q_file_lock (img->file, !img->read_only, err);
  if (r == 0)
    r = find_format (img, format, top && opts->backing == Q_BACKING_PROBE, err);
  if (r == 0)
    r = img->format == Q_FORMAT_RAW ? open_raw (img, err)
        : top                       ? open_qcow2 (img, opts, false, err)
                                    : open_qcow2_top (img, opts, err);
  if (r == 0)
    r = q_data_open (img, top, said->data_file || top ? said->data_file : opts->data_file, opts,
                     flags, err);
  if (r == 0)
    r = q_crypt_open (img, said->secret ? said->secret : opts->secret,
                      opts->metadata_only || opts->repair, err);
  if (r == 0 && top && img->format == Q_FORMAT_QCOW2)
    r = open_tables (img, false, err);
  /* Whoever does not follow the name can do without a place to go. */
  if (r == 0 && img->backing_file) {
    bool follow = goes_on (img, depth, opts) && !said_of (opts, depth + 1)->filename;
    int r2 = resolve_backing (img, follow ? err : NULL);

    r = follow ? r2 : 0;
  }
  if (r < 0) {
    free_layer (img);
    return r;
  }
  /* Writers flush when half of the tables that may be in memory are dirty. */
  img->dirty_max = (img->l2_cache_own.max_bytes >> img->cluster_bits) / 2;
  img->dirty_max = img->dirty_max < 4 ? 4 : img->dirty_max;
  *layer = img;
  return 0;
}

/* ---- the chain ------------------------------------------------------------------------------ */

/* What is said of a backing file, or of what is below that, must be said of one. */
static int
check_said (const struct q_image *img, unsigned depth, const struct q_open_options *opts,
            struct q_error *err)
{
  const struct q_layer *said = NULL;

  for (unsigned i = depth + 1; i < opts->n_layers && !said; i++)
    if (opts->layers[i].filename || opts->layers[i].format != Q_FORMAT_AUTO ||
        opts->layers[i].data_file)
      said = &opts->layers[i];
  if (!said)
    return 0;
  const char *name = said->filename ? said->filename : "one";
  if (img->format != Q_FORMAT_QCOW2)
    return q_fail (err, -EINVAL, "%s: is raw and has no backing file, but %s is described",
                   img->filename, name);
  if (img->data_raw)
    return q_fail (err, -EINVAL,
                   "%s: its data file is the whole disk, with no backing file, but %s is described",
                   img->filename, name);
  if (!goes_on (img, depth, opts))
    return q_fail (err, -EINVAL,
                   "%s: no backing file of it is opened, but %s is described below it",
                   img->filename, name);
  return 0;
}

/* The backing file of IMG: which one it is, and as what it is opened.  The caller frees *PATH. */
static int
choose_backing (const struct q_image *img, const struct q_layer *said,
                const struct q_open_options *opts, char **path, enum q_format *format,
                unsigned *flags, struct q_error *err)
{
  int r = 0;

  *path = NULL;
  *flags = 0;
  *format = said->format;
  if (!said->filename)
    r = q_name_check_backing (img, opts->backing, path, flags, err);
  else if (!(*path = strdup (said->filename)))
    r = q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  /* A file that the user names need not have a recorded format: it is looked at like the top. */
  if (r == 0 && said->format == Q_FORMAT_AUTO && (!said->filename || img->backing_format))
    r = q_name_backing_format (img, opts->backing, format, err);
  return r;
}

static int
open_chain (struct q_image *top, const struct q_open_options *opts, struct q_error *err)
{
  struct q_image *img = top;
  unsigned depth = 0;
  int r = check_said (img, depth, opts, err);

  while (r == 0 && goes_on (img, depth, opts)) {
    const struct q_layer *said = said_of (opts, depth + 1);
    enum q_format format;
    unsigned flags;
    char *path;

    r = choose_backing (img, said, opts, &path, &format, &flags, err);
    if (r == 0 && ++depth == Q_MAX_CHAIN)
      r = q_fail (err, -ELOOP,
                  "%s: the chain of backing files has more than %u layers, %s is one too many",
                  top->filename, Q_MAX_CHAIN, path);
    else if (r == 0) {
      r = open_layer (&img->backing, path, format, flags, depth, opts, top, err);
      if (r < 0)
        q_error_prefix (
            err, "%s: cannot open backing file '%s'%s", img->filename,
            said->filename ? said->filename : img->backing_file,
            r == -EPERM && (flags & Q_FILE_REGULAR) ? " (backing=any opens block devices)" : "");
    }
    free (path);
    if (r == 0) {
      img = img->backing;
      r = check_said (img, depth, opts, err);
    }
  }
  return r;
}

static void
free_chain (struct q_image *img)
{
  while (img) {
    struct q_image *backing = img->backing;

    free_layer (img);
    img = backing;
  }
}

int
q_open (struct q_image **img, const char *filename, const struct q_open_options *opts,
        struct q_error *err)
{
  struct q_image *top;
  int r;

  *img = NULL;
  if (err)
    err->text[0] = '\0';
  r = open_layer (&top, filename, opts->format, opts->recorded, 0, opts, NULL, err);
  if (r < 0)
    return r;
  if (!opts->metadata_only)
    r = open_chain (top, opts, err);
  if (r == 0 && q_below_open (top) < 0)
    r = q_fail (err, -ENOMEM, "%s: out of memory", top->filename);
  if (r == 0)
    r = activate (top, opts, err);
  if (r < 0) {
    if (top->state)
      q_state_end (top, false);
    free_chain (top);
    return r;
  }
  if (!top->read_only)
    q_readers_unlock (top);
  *img = top;
  return 0;
}

int
q_close (struct q_image **pimg, struct q_error *err)
{
  struct q_image *img = *pimg;
  int r = 0, saved = 0, round;

  if (!img)
    return 0;
  *pimg = NULL;
  if (err)
    err->text[0] = '\0';
  if (!img->read_only && (img->format == Q_FORMAT_RAW || atomic_load (&img->l1)) &&
      (q_flush_is_due (img) || atomic_load (&img->sticky) == 0)) {
    img->closing = true;
    q_pack_close (img);
    if (atomic_load (&img->sticky) == 0)
      saved = q_bitmaps_close (img, err);
    /* The first round frees what is in limbo, the second makes the lowered counts durable. */
    for (round = 0; r == 0 && round < 3; ++round)
      r = q_flush (img);
    if (r < 0)
      q_fail (err, r, "%s: what was written since the last flush may be lost: %s", img->filename,
              strerror (-r));
    r = r < 0 ? r : saved;
  }
  if (img->state) {
    int r2 = q_state_end (img, r == 0 && atomic_load (&img->sticky) == 0);

    if (r == 0 && r2 < 0)
      r = q_fail (err, r2, "%s: cannot take the session mark off: %s", img->filename,
                  strerror (-r2));
  }
  free_chain (img);
  return r;
}

/* ---- what an image is ----------------------------------------------------------------------- */

uint64_t
q_size (const struct q_image *img)
{
  /* Whoever sees a larger size sees the L1 table that goes with it (resize.c). */
  return atomic_load_explicit (&img->size, memory_order_acquire);
}

uint32_t
q_cluster_size (const struct q_image *img)
{
  return 1u << img->cluster_bits;
}

uint32_t
q_allocation_size (const struct q_image *img)
{
  return 1u << img->subcluster_bits;
}

bool
q_read_only (const struct q_image *img)
{
  return img->read_only || atomic_load (&img->sticky) != 0;
}

enum q_format
q_image_format (const struct q_image *img)
{
  return img->format;
}

const char *
q_filename (const struct q_image *img)
{
  return img->filename;
}

struct q_image *
q_backing_image (const struct q_image *img)
{
  return img->backing;
}

void
q_get_info (const struct q_image *img, struct q_image_info *info)
{
  *info = (struct q_image_info){
    .version = img->version,
    .cluster_bits = img->cluster_bits,
    .refcount_bits = img->format == Q_FORMAT_QCOW2 ? 1u << img->refcount_order : 0,
    .virtual_size = q_size (img),
    .highest_offset = q_highest_offset (img),
    .incompatible = img->incompatible,
    .compatible = img->compatible,
    .autoclear = img->autoclear,
    .lazy_refcounts = img->compatible & Q_COMPAT_LAZY_REFCOUNTS,
    .corrupt = img->incompatible & Q_INCOMPAT_CORRUPT,
    .dirty = img->incompatible & Q_INCOMPAT_DIRTY,
    .extended_l2 = img->incompatible & Q_INCOMPAT_EXTL2,
    .data_file_raw = img->autoclear & Q_AUTOCLEAR_DATA_FILE_RAW,
    .compression_type = img->compression_type == Q_COMPRESSION_ZSTD ? "zstd" : "zlib",
    .encryption = img->crypt_method == Q_CRYPT_AES    ? "aes"
                  : img->crypt_method == Q_CRYPT_LUKS ? "luks"
                                                      : NULL,
    .backing_file = img->backing_file,
    .backing_format = img->backing_format,
    .backing_path = img->backing_path,
    .data_file = img->data_file,
    .data_path = img->data_path,
    .nb_snapshots = q_snapshots_count (img),
    .nb_bitmaps = img->nb_bitmaps,
  };
  q_file_size (img->file, &info->file_size);
  q_file_usage (img->file, &info->actual_size);
}
