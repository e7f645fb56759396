/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a killed process left behind: proof, check, replay.  See state.h.
 *
 * The replay keeps the order of flush.c, so that a power cut in the middle of it leaves a sound
 * image, and can be done again, so that a kill in the middle of it loses nothing.
 *
 * Before anything is written, the image as it would be afterwards is put before the checker: a file
 * whose reads show the tables of the state file where they would be.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "state.h"

#define ull(v) ((unsigned long long)(v))

/* How much later than our last sign of life the file may have changed, for a request that was under
 * way: a second. */
#define SLACK_NS 1000000000ll

/* A stretch of the image that is in the state file. */
struct patch {
  uint64_t host, bytes;
  const uint8_t *data;
  enum q_table_kind kind;
  uint8_t *own; /* its data, if not as it is in the state file */
};

struct replay {
  struct q_image *img;
  struct q_state_header *h;
  struct q_state_slot *slot;
  const uint8_t *map;
  uint64_t mapped;
  const struct q_state_slot *l1;
  const struct q_state_slot *reftable; /* NULL: as on disk */
  struct patch *patch;                 /* in the order of the image file; none overlaps another */
  size_t n;
  struct qcow2_header disk_header; /* as it will be */
  bool header_changed;
};

/* ---- the file ------------------------------------------------------------------------------- */

static int
lock_file (int fd)
{
  struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

  return fcntl (fd, F_OFD_SETLK, &fl) == -1 ? -errno : 0;
}

/* Opens and locks the file, making it if it is not there. */
static int
open_file (struct q_image *img, const char *dir, struct q_error *err)
{
  char directory[4096], path[4096 + 64];
  struct q_state *s;
  struct stat st;
  int r = q_state_directory (dir, directory, sizeof directory);

  if (r < 0) {
    q_log (
        dir ? Q_LOG_WARNING : Q_LOG_INFO,
        "%s: no state directory (%s%s%s): what is not flushed would be lost if this process were "
        "killed",
        img->filename, dir ? dir : "", dir ? ": " : "",
        r == -EPERM ? "it must be ours and not writable by others" : strerror (-r));
    return 0;
  }
  snprintf (path, sizeof path, "%s/%llx-%llx.state", directory, ull (img->file->dev),
            ull (img->file->ino));
  s = calloc (1, sizeof *s);
  if (!s)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  atomic_init (&s->refs, 1);
  pthread_mutex_init (&s->lock, NULL);
  s->path = strdup (path);
  s->fd = open (path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  r = !s->path ? -ENOMEM : s->fd == -1 ? -errno : lock_file (s->fd);
  if (r == -EAGAIN || r == -EACCES) {
    q_state_drop (s);
    return q_fail (
        err, -EAGAIN,
        "%s: another process has this image open for writing: it holds the state file %s "
        "('lsof %s' says which)",
        img->filename, path, path);
  }
  if (r == 0 && (fstat (s->fd, &st) == -1 || !S_ISREG (st.st_mode) || st.st_uid != geteuid ()))
    r = -EPERM;
  if (r < 0) {
    q_log (Q_LOG_WARNING, "%s: %s: what is not flushed would be lost if this process were killed",
           path, strerror (-r));
    q_state_drop (s);
    return 0;
  }
  img->state = s;
  return 0;
}

/* ---- proof ---------------------------------------------------------------------------------- */

/* It is laid out as we do it, which has the slots on disk, or rather in memory: looking at holes in
 * their place, of which there may be any number, would take that from the machine. */
static bool
is_sane (const struct replay *p, const struct stat *st)
{
  const struct q_state_header *h = p->h;
  uint64_t there = (uint64_t)st->st_blocks * 512, cluster;

  if ((uint64_t)st->st_size < Q_STATE_SLOTS_OFFSET || h->magic != Q_STATE_MAGIC ||
      h->version != Q_STATE_VERSION || h->file_bytes != (uint64_t)st->st_size ||
      h->n_slots < Q_STATE_FIRST || h->cluster_bits < Q_MIN_CLUSTER_BITS ||
      h->cluster_bits > Q_MAX_CLUSTER_BITS)
    return false;
  cluster = UINT64_C (1) << h->cluster_bits;
  return h->file_bytes == q_state_slot_offset (h->n_slots, cluster, h->n_slots) &&
         there >= q_state_slot_offset (h->n_slots, cluster, 0);
}

/* Whether there is anything that is not on disk. */
static bool
is_pending (const struct replay *p)
{
  for (uint32_t i = 0; i < p->h->n_slots; ++i)
    if (atomic_load (&p->slot[i].in_use) &&
        atomic_load (&p->slot[i].changed) != atomic_load (&p->slot[i].saved))
      return true;
  return false;
}

/* NULL, or why the file does not describe IMG. */
static const char *
disproof (const struct replay *p)
{
  const struct q_state_header *h = p->h;
  struct qcow2_session session;
  char boot[Q_STATE_BOOT];
  int64_t changed;
  uint64_t disk_sequence;

  q_state_boot_id (boot);
  if (memcmp (h->boot, boot, sizeof boot) != 0)
    return "the machine was started anew since, and what was not on disk is gone";
  if (h->dev != p->img->file->dev || h->ino != p->img->file->ino)
    return "it belongs to another file";
  if (h->cluster_bits != p->img->cluster_bits || h->refcount_order != p->img->refcount_order)
    return "the image has another geometry";
  if (!(p->img->autoclear & Q_AUTOCLEAR_SESSION) || !q_state_session (p->img, &session))
    return "another program has written the image since";
  if (memcmp (session.session, h->session, sizeof h->session) != 0)
    return "the image is from another session: an older copy, or written elsewhere";
  disk_sequence = get64 (session.sequence);
  if (disk_sequence != atomic_load (&h->sequence) &&
      disk_sequence != atomic_load (&h->sequence) + 1)
    return "the image is from before the last flush: an older copy";
  if (q_file_changed (p->img->file, &changed) == 0 &&
      changed - h->clock_skew > atomic_load (&h->alive) + SLACK_NS)
    return "the image file was changed after the server died";
  return NULL;
}

/* ---- what there is to replay ---------------------------------------------------------------- */

static bool
slot_is_sane (const struct replay *p, const struct q_state_slot *slot)
{
  uint64_t host = atomic_load (&slot->host), cluster = q_cluster_bytes (p->img);
  bool large = slot->kind == Q_TABLE_L1 || slot->kind == Q_TABLE_REFTABLE;
  uint64_t max = slot->kind == Q_TABLE_L1         ? Q_MAX_L1_BYTES
                 : slot->kind == Q_TABLE_REFTABLE ? Q_MAX_REFTABLE_BYTES
                                                  : cluster;

  return slot->kind <= Q_TABLE_REFBLOCK &&
         slot->offset == q_state_slot_offset (p->h->n_slots, cluster, (uint64_t)(slot - p->slot)) &&
         slot->bytes <= max && slot->bytes % 8 == 0 && slot->bytes > 0 &&
         slot->offset <= p->mapped && slot->bytes <= p->mapped - slot->offset &&
         (large || slot->bytes == cluster) && host % cluster == 0 && host > 0 &&
         host < Q_MAX_HOST_OFFSET;
}

/* The refcount table that counts. */
static const char *
find_reftable (struct replay *p)
{
  uint32_t number = atomic_load (&p->h->reftable_slot);
  const struct q_state_slot *slot;

  if (number == 0)
    return NULL;
  if (number > Q_STATE_FIRST)
    return "it is damaged";
  slot = &p->slot[number - 1];
  if (slot->kind != Q_TABLE_REFTABLE || !atomic_load (&slot->in_use) || !slot_is_sane (p, slot))
    return "it is damaged";
  p->reftable = slot;
  return NULL;
}

/* The L1 table that the header points to: where one takes the place of another, that write is the
 * instant at which it does. */
static const char *
find_l1 (struct replay *p)
{
  for (uint32_t i = Q_STATE_L1; i < Q_STATE_REFTABLE; ++i) {
    const struct q_state_slot *slot = &p->slot[i];

    if (atomic_load (&slot->in_use) && slot->kind == Q_TABLE_L1 &&
        atomic_load (&slot->host) == p->img->l1_offset &&
        slot->bytes == (p->img->l1_size ? p->img->l1_size : 1) * 8ull && slot_is_sane (p, slot)) {
      p->l1 = slot;
      return NULL;
    }
  }
  return "it is damaged";
}

static uint64_t
table_entry (const struct replay *p, const struct q_state_slot *table, uint64_t index)
{
  be64 v;

  if (!table || index >= table->bytes / 8)
    return 0;
  memcpy (&v, p->map + table->offset + index * 8, sizeof v);
  return get64 (v);
}

/* A table counts only if what would point to it does, and is there; or 0.  One that was being given
 * another place is where it was: nothing has changed in it since. */
static uint64_t
place (const struct replay *p, const struct q_state_slot *slot)
{
  uint64_t host = atomic_load (&slot->host), to;

  switch (slot->kind) {
  case Q_TABLE_L1:
    return slot == p->l1 ? host : 0;
  case Q_TABLE_REFTABLE:
    return slot == p->reftable ? host : 0;
  case Q_TABLE_L2:
    to = table_entry (p, p->l1, slot->index) & Q_OFFSET_MASK;
    if (atomic_load (&slot->moving) && to % q_cluster_bytes (p->img) == 0)
      return to;
    break;
  default:
    to = table_entry (p, p->reftable, slot->index);
  }
  return to == host ? host : 0;
}

static int
by_host (const void *a, const void *b)
{
  uint64_t x = ((const struct patch *)a)->host, y = ((const struct patch *)b)->host;

  return (x > y) - (x < y);
}

/* Puts the patches in order.  Two tables in one place are none. */
static const char *
sort_patches (struct replay *p)
{
  qsort (p->patch, p->n, sizeof *p->patch, by_host);
  for (size_t i = 1; i < p->n; ++i)
    if (p->patch[i - 1].host + p->patch[i - 1].bytes > p->patch[i].host)
      return "it is damaged";
  return NULL;
}

/* A process that was killed while it replaced a compressed cluster, or put one in place, may have
 * left a bitmap with the compressed descriptor (entry.c).  Takes it out. */
static const char *
mend_halves (const struct replay *p, struct patch *patch)
{
  if (patch->kind != Q_TABLE_L2 || !(p->img->incompatible & Q_INCOMPAT_EXTL2))
    return NULL;
  for (uint64_t at = 0; at < patch->bytes; at += sizeof (be64[2])) {
    be64 entry[2];

    memcpy (entry, patch->data + at, sizeof entry);
    if (!(get64 (entry[0]) & Q_L2_COMPRESSED) || get64 (entry[1]) == 0)
      continue;
    if (!patch->own) {
      patch->own = malloc (patch->bytes);
      if (!patch->own)
        return "out of memory";
      memcpy (patch->own, patch->data, patch->bytes);
      patch->data = patch->own;
    }
    memset (patch->own + at + sizeof entry[0], 0, sizeof entry[1]);
  }
  return NULL;
}

static const char *
collect (struct replay *p)
{
  const char *wrong;

  wrong = find_l1 (p);
  if (!wrong)
    wrong = find_reftable (p);
  if (wrong)
    return wrong;
  p->patch = calloc (p->h->n_slots + 1, sizeof *p->patch);
  if (!p->patch)
    return "out of memory";
  for (uint32_t i = 0; i < p->h->n_slots; ++i) {
    const struct q_state_slot *s = &p->slot[i];
    uint64_t host;

    if (!atomic_load (&s->in_use) || atomic_load (&s->changed) == atomic_load (&s->saved))
      continue;
    if (!slot_is_sane (p, s))
      return "it is damaged";
    host = place (p, s);
    if (host == 0)
      continue;
    p->patch[p->n] = (struct patch){
      .host = host, .bytes = s->bytes, .data = p->map + s->offset, .kind = s->kind
    };
    wrong = mend_halves (p, &p->patch[p->n++]);
    if (wrong)
      return wrong;
  }
  /* If it has moved, the header will say where it is. */
  if (p->reftable && (atomic_load (&p->reftable->host) != p->img->reftable_offset)) {
    p->disk_header.refcount_table_offset = put64 (atomic_load (&p->reftable->host));
    p->disk_header.refcount_table_clusters =
        put32 ((uint32_t)(p->reftable->bytes >> p->img->cluster_bits));
    p->header_changed = true;
  }
  return sort_patches (p);
}

/* ---- the image as it would be --------------------------------------------------------------- */

struct overlay {
  struct q_file base;
  const struct replay *p;
};

static void
overlay_patch (uint8_t *buf, size_t len, uint64_t offset, uint64_t host, uint64_t bytes,
               const void *data)
{
  uint64_t from = offset > host ? offset : host, to = q_min (offset + len, host + bytes);

  if (from < to)
    memcpy (buf + (from - offset), (const uint8_t *)data + (from - host), to - from);
}

/* The first patch that ends after OFFSET. */
static size_t
first_patch (const struct replay *p, uint64_t offset)
{
  size_t low = 0, high = p->n;

  while (low < high) {
    size_t mid = low + (high - low) / 2;

    if (p->patch[mid].host + p->patch[mid].bytes > offset)
      high = mid;
    else
      low = mid + 1;
  }
  return low;
}

static int
overlay_pread (struct q_file *f, void *buf, size_t len, uint64_t offset)
{
  const struct replay *p = ((struct overlay *)f)->p;
  int r = q_file_pread (p->img->file, buf, len, offset);

  for (size_t i = first_patch (p, offset); r == 0 && i < p->n && p->patch[i].host < offset + len;
       ++i)
    overlay_patch (buf, len, offset, p->patch[i].host, p->patch[i].bytes, p->patch[i].data);
  if (r == 0)
    overlay_patch (buf, len, offset, 0,
                   p->img->version == 2 ? Q_HEADER_V2_LENGTH : Q_HEADER_V3_LENGTH, &p->disk_header);
  return r;
}

static int
overlay_size (struct q_file *f, uint64_t *size)
{
  const struct replay *p = ((struct overlay *)f)->p;
  int r = q_file_size (p->img->file, size);

  if (r == 0 && p->n > 0 && p->patch[p->n - 1].host + p->patch[p->n - 1].bytes > *size)
    *size = p->patch[p->n - 1].host + p->patch[p->n - 1].bytes;
  return r;
}

static int
overlay_usage (struct q_file *f, uint64_t *bytes)
{
  return q_file_usage (((struct overlay *)f)->p->img->file, bytes);
}

static void
overlay_close (struct q_file *f)
{
  free (f);
}

static int
overlay_open (void *opaque, const char *name, unsigned flags, struct q_file **file,
              struct q_error *err)
{
  static const struct q_file_ops ops = {
    .pread = overlay_pread, .size = overlay_size, .usage = overlay_usage, .close = overlay_close
  };
  struct overlay *o = calloc (1, sizeof *o);

  (void)flags;
  if (!o)
    return q_fail (err, -ENOMEM, "%s: out of memory", name);
  o->base.ops = &ops;
  o->base.name = (char *)name;
  o->base.fd = -1;
  o->p = opaque;
  *file = &o->base;
  return 0;
}

/* NULL if the image would be sound afterwards (clusters that nobody refers to aside). */
static const char *
objection (struct replay *p)
{
  struct q_file_opener opener = { overlay_open, p };
  struct q_open_options opts;
  struct q_check_result result;
  struct q_image *img;
  const char *wrong = NULL;

  q_open_options_init (&opts);
  opts.format = Q_FORMAT_QCOW2;
  opts.read_only = opts.metadata_only = true;
  opts.lock = Q_LOCK_OFF;
  opts.opener = &opener;
  if (q_open (&img, p->img->filename, &opts, NULL) < 0)
    return "the image could not be opened with it";
  /* While a snapshot is made or dropped, COPIED flags and counts do not go together.  The dirty bit
   * says so, and they are made to before the image is used. */
  if (q_check (img, 0, &result, NULL, NULL, NULL) < 0 || result.check_errors > 0 ||
      result.corruptions > (img->incompatible & Q_INCOMPAT_DIRTY ? result.stale_flags : 0))
    wrong = "the image would not be sound with it";
  q_close (&img, NULL);
  return wrong;
}

/* ---- replay --------------------------------------------------------------------------------- */

static int
write_kind (struct replay *p, enum q_table_kind kind)
{
  int r = 0;

  for (size_t i = 0; r == 0 && i < p->n; ++i)
    if (p->patch[i].kind == kind)
      r = q_file_pwrite (p->img->file, p->patch[i].data, p->patch[i].bytes, p->patch[i].host);
  return r;
}

static int
replay (struct replay *p)
{
  struct q_file *f = p->img->file;
  int r = q_file_sync (p->img->data); /* what the references will point to */

  if (r == 0)
    r = write_kind (p, Q_TABLE_REFBLOCK);
  if (r == 0)
    r = q_file_sync (f);
  if (r == 0)
    r = write_kind (p, Q_TABLE_REFTABLE);
  if (r == 0)
    r = q_file_sync (f);
  if (r == 0 && p->header_changed) {
    p->img->reftable_offset = get64 (p->disk_header.refcount_table_offset);
    p->img->reftable_clusters = get32 (p->disk_header.refcount_table_clusters);
    r = q_header_write_reftable (p->img, p->img->reftable_offset, p->img->reftable_clusters);
    if (r == 0)
      r = q_file_sync (f);
  }
  if (r == 0)
    r = write_kind (p, Q_TABLE_L2);
  if (r == 0)
    r = q_file_sync (f);
  if (r == 0)
    r = write_kind (p, Q_TABLE_L1);
  if (r == 0)
    r = q_file_sync (f);
  return r;
}

/* Puts the file out of the way, for whoever wants to look at it. */
static void
set_aside (struct q_image *img, const char *why)
{
  struct q_state *s = img->state;
  char aside[4096 + 128];
  bool kept;

  snprintf (aside, sizeof aside, "%s.aside", s->path);
  q_shared_forget (img);
  kept = rename (s->path, aside) == 0;
  q_log (
      Q_LOG_WARNING,
      "%s: the state that a killed server left in %s is not used: %s; what it had not flushed is "
      "lost%s%s",
      img->filename, s->path, why, kept ? "; the state is kept in " : "", kept ? aside : "");
}

/* They are on disk, and what bitmaps take now changes the counts: they are not to be written again.
 */
static void
forget_tables (struct replay *p)
{
  atomic_store (&p->h->reftable_slot, 0);
  for (uint32_t i = 0; i < p->h->n_slots; ++i)
    atomic_store (&p->slot[i].saved, atomic_load (&p->slot[i].changed));
}

/* Whoever has replayed P was killed before it had freed what is leaked.  The image's times are no
 * proof here, since it may have begun to; another writer would have cleared the autoclear bit. */
static bool
is_to_be_repaired (const struct replay *p, const struct stat *st)
{
  struct qcow2_session session;

  return atomic_load (&p->h->valid) == Q_STATE_REPLAYED && is_sane (p, st) &&
         q_state_session (p->img, &session) &&
         memcmp (session.session, p->h->session, sizeof session.session) == 0;
}

static int
try_replay (struct q_image *img, const struct stat *st, bool *replayed, struct q_error *err)
{
  struct replay p = { .img = img, .mapped = (uint64_t)st->st_size };
  struct qcow2_session session;
  const char *wrong;
  void *map = mmap (NULL, p.mapped, PROT_READ | PROT_WRITE, MAP_SHARED, img->state->fd, 0);
  int r = 0;

  if (map == MAP_FAILED)
    return q_fail (err, -errno, "%s: cannot map the state file %s: %s", img->filename,
                   img->state->path, strerror (errno));
  p.h = map;
  p.map = map;
  p.slot = (struct q_state_slot *)((uint8_t *)map + Q_STATE_SLOTS_OFFSET);
  r = q_file_pread (img->file, &p.disk_header, sizeof p.disk_header, 0);
  if (r < 0) {
    q_fail (err, r, "%s: cannot read the header: %s", img->filename, strerror (-r));
    goto out;
  }
  if (p.mapped >= Q_STATE_SLOTS_OFFSET && atomic_load (&p.h->valid) != 1) {
    *replayed = is_to_be_repaired (&p, st);
    goto out; /* else: died before the session began */
  }
  wrong = is_sane (&p, st) ? disproof (&p) : "it is damaged";
  if (wrong && is_sane (&p, st) && !is_pending (&p))
    goto out; /* a server that had everything on disk: nothing to lose */
  if (!wrong && !q_state_session (img, &session))
    wrong = "the image has no session";
  if (!wrong)
    wrong = collect (&p);
  if (!wrong && p.n > 0)
    wrong = objection (&p);
  if (wrong) {
    set_aside (img, wrong);
    goto out;
  }
  /* This changes the image file, too, and whoever takes over from us must see that we did. */
  img->file->alive = &p.h->alive;
  if (p.n > 0 || p.header_changed) {
    r = replay (&p);
    if (r < 0)
      q_fail (err, r, "%s: cannot write what a killed server left in %s: %s", img->filename,
              img->state->path, strerror (-r));
    else
      q_log (Q_LOG_WARNING, "%s: a server was killed: %zu tables were recovered from %s",
             img->filename, p.n, img->state->path);
  }
  if (r == 0) {
    forget_tables (&p);
    r = q_shared_recover (img, &session, err);
  }
  img->file->alive = NULL;
  if (r < 0)
    goto out;
  /* All of it is durable.  The repair that comes next changes the image without us. */
  atomic_store (&p.h->valid, Q_STATE_REPLAYED);
  if (atomic_load (&p.h->incomplete))
    q_log (
        Q_LOG_WARNING,
        "%s: the state file had no room for all tables: some of what was not flushed may be lost",
        img->filename);
  *replayed = true;
out:
  for (size_t i = 0; i < p.n; ++i)
    free (p.patch[i].own);
  free (p.patch);
  munmap (map, p.mapped);
  return r;
}

int
q_state_recover (struct q_image *img, const char *dir, bool *replayed, struct q_error *err)
{
  struct stat st;
  int r;

  *replayed = false;
  if (img->version < 3)
    return 0; /* no autoclear bits, no proof */
  r = open_file (img, dir, err);
  if (r < 0 || !img->state)
    return r;
  if (fstat (img->state->fd, &st) == -1)
    return q_fail (err, -errno, "%s: %s", img->state->path, strerror (errno));
  if (st.st_size > 0)
    r = try_replay (img, &st, replayed, err);
  if (r == 0 && access (img->state->path, F_OK) == -1) {
    /* Set aside: begin with a new file. */
    q_state_drop (img->state);
    img->state = NULL;
    r = open_file (img, dir, err);
  }
  return r;
}
