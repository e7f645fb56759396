/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The state file while it is in use: see state.h.  recover.c reads one that was left behind.
 *
 * Whatever instant the process is killed at, the file is sound: a slot is filled in before in_use
 * is set; a table that replaces another is complete before it is switched to; an entry is in its
 * table before the slot's count of changes goes up, and the request is answered after that.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "state.h"

/* ---- where ---------------------------------------------------------------------------------- */

static bool
is_memory (const char *path)
{
  struct statfs fs;

  return statfs (path, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

/* In a container /run may lie on a disk.  A state file there would still be there after a power
 * cut, and point to data that is not; and its tables would be written to the disk again and again.
 */
static int
default_directory (char *path, size_t size)
{
  const char *place[] = { "/run", getenv ("XDG_RUNTIME_DIR"), "/dev/shm" };
  size_t n = sizeof place / sizeof place[0];

  for (size_t i = 0; i < n; ++i) {
    if (!place[i] || *place[i] != '/' || access (place[i], W_OK) == -1 || !is_memory (place[i]))
      continue;
    /* /dev/shm is everybody's. */
    return i < n - 1 ? snprintf (path, size, "%s/nbdcow", place[i])
                     : snprintf (path, size, "%s/nbdcow-%u", place[i], (unsigned)geteuid ());
  }
  return -ENOENT;
}

int
q_state_directory (const char *dir, char *path, size_t size)
{
  struct stat st;
  int n = dir ? snprintf (path, size, "%s", dir) : default_directory (path, size);

  if (n == -ENOENT)
    return n;
  if (n < 0 || (size_t)n >= size)
    return -ENAMETOOLONG;
  if (mkdir (path, 0700) == -1 && errno != EEXIST)
    return -errno;
  /* Only ours to write in: others could put a state of their own making in our way. */
  if (lstat (path, &st) == -1)
    return -errno;
  if (!S_ISDIR (st.st_mode) || st.st_uid != geteuid () || (st.st_mode & (S_IWGRP | S_IWOTH)))
    return -EPERM;
  return 0;
}

bool
q_state_session (const struct q_image *img, struct qcow2_session *session)
{
  const struct q_extension *e = q_extension_find (img, Q_EXT_SESSION);

  if (!e || e->length != sizeof *session)
    return false;
  memcpy (session, e->data, sizeof *session);
  return true;
}

/* ---- slots ---------------------------------------------------------------------------------- */

static bool
back (struct q_state *s, struct q_state_slot *slot)
{
  if (slot->backed)
    return true;
  /* Writing to a mapped page that the file system has no room for would kill us. */
  if (fallocate (s->fd, 0, (off_t)slot->offset, (off_t)slot->bytes) == -1) {
    if (!s->full)
      q_log (Q_LOG_WARNING,
             "%s: %s: metadata that does not fit would be lost if this process were killed",
             s->path, strerror (errno));
    s->full = true;
    return false;
  }
  slot->backed = 1;
  return true;
}

/* lock held.  A slot for a table of KIND, or NULL. */
static struct q_state_slot *
pick (struct q_state *s, enum q_table_kind kind)
{
  uint32_t first = kind == Q_TABLE_L1 ? Q_STATE_L1 : Q_STATE_REFTABLE;

  if (kind == Q_TABLE_L2 || kind == Q_TABLE_REFBLOCK)
    return s->n_free > 0 ? &s->slot[s->free_slot[--s->n_free]] : NULL;
  for (uint32_t i = first, n = kind == Q_TABLE_L1 ? Q_STATE_REFTABLE : Q_STATE_FIRST; i < n; ++i)
    if (!s->taken[i])
      return &s->slot[i];
  return NULL;
}

struct q_state_slot *
q_state_take (struct q_state *s, enum q_table_kind kind, uint64_t index, uint64_t host,
              uint32_t bytes, void **mem)
{
  struct q_state_slot *slot;

  pthread_mutex_lock (&s->lock);
  slot = pick (s, kind);
  if (slot) {
    if (kind == Q_TABLE_L1 || kind == Q_TABLE_REFTABLE) {
      slot->backed = 0;
      slot->bytes = bytes;
    }
    if (back (s, slot)) {
      slot->kind = kind;
      slot->index = index;
      atomic_store (&slot->host, host);
      atomic_store (&slot->changed, 0);
      atomic_store (&slot->saved, 0);
      *mem = (uint8_t *)s->header + slot->offset;
      memset (*mem, 0, bytes);
      atomic_store (&slot->in_use, 1);
      if (slot < s->slot + Q_STATE_FIRST)
        s->taken[slot - s->slot] = true;
      atomic_fetch_add (&s->refs, 1);
    } else {
      if (kind == Q_TABLE_L2 || kind == Q_TABLE_REFBLOCK)
        s->free_slot[s->n_free++] = (uint32_t)(slot - s->slot);
      slot = NULL;
    }
  } else if (!s->full) {
    s->full = true;
    q_log (Q_LOG_WARNING,
           "%s: all %u slots are in use: metadata without one would be lost if this process were "
           "killed",
           s->path, s->header->n_slots);
  }
  if (!slot)
    atomic_store (&s->header->incomplete, 1);
  pthread_mutex_unlock (&s->lock);
  return slot;
}

void
q_state_give (struct q_state *s, struct q_state_slot *slot)
{
  pthread_mutex_lock (&s->lock);
  if (!s->kept)
    atomic_store (&slot->in_use, 0);
  if (slot->kind == Q_TABLE_L2 || slot->kind == Q_TABLE_REFBLOCK)
    s->free_slot[s->n_free++] = (uint32_t)(slot - s->slot);
  else
    s->taken[slot - s->slot] = false;
  pthread_mutex_unlock (&s->lock);
  q_state_drop (s);
}

void
q_state_switch (struct q_state *s, struct q_state_slot *slot)
{
  atomic_store (&s->header->reftable_slot, 1 + (uint32_t)(slot - s->slot));
}

int
q_state_write_sequence (struct q_image *img)
{
  const struct q_extension *e = q_extension_find (img, Q_EXT_SESSION);
  be64 v;

  if (!img->state || !img->state->header || !e)
    return 0;
  v = put64 (atomic_load (&img->state->header->sequence) + 1);
  return q_file_pwrite (img->file, &v, sizeof v,
                        e->offset + offsetof (struct qcow2_session, sequence));
}

void
q_state_sequence_done (struct q_image *img)
{
  if (img->state && img->state->header)
    atomic_fetch_add (&img->state->header->sequence, 1);
}

/* ---- a session ------------------------------------------------------------------------------ */

void
q_state_drop (struct q_state *s)
{
  if (!s || atomic_fetch_sub (&s->refs, 1) != 1)
    return;
  if (s->header)
    munmap (s->header, s->mapped);
  if (s->fd >= 0)
    close (s->fd);
  pthread_mutex_destroy (&s->lock);
  free (s->free_slot);
  free (s->path);
  free (s);
}

uint64_t
q_state_slot_offset (uint64_t n, uint64_t cluster, uint64_t number)
{
  /* A page each, so that memory can be reserved for one without its neighbours. */
  uint64_t memory = cluster < 4096 ? 4096 : cluster;
  uint64_t l1 = q_min (number, Q_STATE_REFTABLE);
  uint64_t reftables = q_min (number, Q_STATE_FIRST) - l1;

  return q_round_up (Q_STATE_SLOTS_OFFSET + n * sizeof (struct q_state_slot), 4096) +
         l1 * Q_MAX_L1_BYTES + reftables * Q_MAX_REFTABLE_BYTES +
         (number - l1 - reftables) * memory;
}

void
q_state_boot_id (char boot[Q_STATE_BOOT])
{
  int fd = open ("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  ssize_t n = fd >= 0 ? read (fd, boot, Q_STATE_BOOT - 1) : 0;

  memset (boot + (n > 0 ? n : 0), 0, (size_t)(Q_STATE_BOOT - (n > 0 ? n : 0)));
  if (fd >= 0)
    close (fd);
}

/* Lays the file out and maps it: header, slots, L1 tables, refcount tables, and one cluster
 * for each table that the caches may hold, with some to spare. */
static int
lay_out (struct q_state *s, const struct q_image *img)
{
  uint64_t cluster = q_cluster_bytes (img);
  uint64_t tables =
      (img->l2_cache_own.max_bytes + img->refblock_cache.max_bytes) >> img->cluster_bits;
  /* Caches overshoot while tables are dirty or held, and what was evicted keeps its slot until pins
   * have drained. */
  uint64_t n = Q_STATE_FIRST + 2 * tables + 8192, data;
  struct q_state_header *h;
  void *map;

  data = q_state_slot_offset (n, cluster, 0);
  s->mapped = q_state_slot_offset (n, cluster, n);
  if (ftruncate (s->fd, 0) == -1 || ftruncate (s->fd, (off_t)s->mapped) == -1 ||
      fallocate (s->fd, 0, 0, (off_t)data) == -1)
    return -errno;
  s->free_slot = malloc (n * sizeof *s->free_slot);
  if (!s->free_slot)
    return -ENOMEM;
  map = mmap (NULL, s->mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s->fd, 0);
  if (map == MAP_FAILED)
    return -errno;
  s->header = h = map;
  s->slot = (struct q_state_slot *)((uint8_t *)map + Q_STATE_SLOTS_OFFSET);
  for (uint32_t i = 0; i < n; ++i) {
    s->slot[i].offset = q_state_slot_offset (n, cluster, i);
    if (i >= Q_STATE_FIRST)
      s->slot[i].bytes = cluster;
  }
  /* The first ones are taken first: the file stays dense. */
  for (uint32_t i = (uint32_t)n; i-- > Q_STATE_FIRST;)
    s->free_slot[s->n_free++] = i;
  h->magic = Q_STATE_MAGIC;
  h->version = Q_STATE_VERSION;
  h->cluster_bits = img->cluster_bits;
  h->refcount_order = img->refcount_order;
  h->n_slots = (uint32_t)n;
  h->dev = img->file->dev;
  h->ino = img->file->ino;
  h->file_bytes = s->mapped;
  h->data_offset = data;
  q_state_boot_id (h->boot);
  return 0;
}

/* Writes the session extension and the bit.  -E2BIG if the header has no room. */
static int
mark_image (struct q_image *img, const struct qcow2_session *session)
{
  struct q_extension *e = q_extension_find (img, Q_EXT_SESSION);
  int64_t changed;
  int r;

  if (e && e->length != sizeof *session)
    return -E2BIG; /* somebody else's */
  r = q_header_name_session (img);
  if (r == 0 && e) {
    r = q_file_pwrite (img->file, session, sizeof *session, e->offset);
    memcpy (e->data, session, sizeof *session);
  } else if (r == 0)
    r = q_header_append_extension (img, Q_EXT_SESSION, session, sizeof *session);
  if (r < 0)
    return r;
  img->autoclear |= Q_AUTOCLEAR_SESSION;
  r = q_header_write_features (img);
  /* Before the sync: the time that it takes is no difference between the clocks. */
  if (r == 0 && q_file_changed (img->file, &changed) == 0)
    img->state->header->clock_skew = changed - atomic_load (img->file->alive);
  return r < 0 ? r : q_file_sync (img->file);
}

/* Goes on without a state file. */
static void
give_up (struct q_image *img)
{
  q_shared_close (img, false);
  unlink (img->state->path);
  img->file->alive = NULL;
  q_state_drop (img->state); /* tables that are in it keep it */
  img->state = NULL;
}

int
q_state_prepare (struct q_image *img)
{
  struct q_state *s = img->state;
  int r = s ? lay_out (s, img) : 0;

  if (s)
    q_shared_forget (img);
  if (r == 0 && s &&
      getrandom (s->header->session, sizeof s->header->session, 0) != sizeof s->header->session)
    r = -EIO;
  if (r < 0) {
    q_log (Q_LOG_WARNING, "%s: %s: what is not flushed would be lost if this process were killed",
           s->path, strerror (-r));
    give_up (img);
  }
  return 0;
}

int
q_state_start (struct q_image *img, struct q_error *err)
{
  struct q_state *s = img->state;
  struct qcow2_session session = { .sequence = put64 (0) };
  int r;

  if (!s)
    return 0;
  memcpy (session.session, s->header->session, sizeof session.session);
  img->file->alive = &s->header->alive;
  r = mark_image (img, &session);
  if (r == -E2BIG) {
    q_log (Q_LOG_INFO,
           "%s: the first cluster has no room for a session mark: what is not flushed "
           "would be lost if this process were killed",
           img->filename);
    give_up (img);
    return 0;
  }
  if (r < 0)
    return q_fail (err, r, "%s: cannot mark the image as open for writing: %s", img->filename,
                   strerror (-r));
  atomic_store (&s->header->valid, 1);
  return 0;
}

int
q_state_end (struct q_image *img, bool clean)
{
  struct q_state *s = img->state;
  int r = 0;

  if (!s)
    return 0;
  if (clean) {
    img->autoclear &= ~Q_AUTOCLEAR_SESSION;
    r = q_header_write_features (img);
    if (r == 0)
      r = q_file_sync (img->file);
    if (r == 0)
      unlink (s->path);
  } else if (s->header && !atomic_load (&s->header->valid))
    unlink (s->path); /* the session never began */
  else if (s->header) {
    /* The tables are still to be freed; what is in their slots outlives them. */
    pthread_mutex_lock (&s->lock);
    s->kept = true;
    pthread_mutex_unlock (&s->lock);
    q_log (Q_LOG_WARNING, "%s: what could not be written is kept in %s for the next open",
           img->filename, s->path);
  }
  q_shared_close (img, access (s->path, F_OK) == 0);
  img->file->alive = NULL;
  q_state_drop (s);
  img->state = NULL;
  return r;
}
