/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the unit tests share: see unit.h.
 */

#include "unit.h"

/* ---- the log -------------------------------------------------------------------------------- */

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned logged[Q_LOG_DEBUG + 1];
static char last_log[1024];

static void
take_log (void *opaque, enum q_log_level level, const char *text)
{
  (void)opaque;
  pthread_mutex_lock (&log_lock);
  ++logged[level];
  snprintf (last_log, sizeof last_log, "%s", text);
  pthread_mutex_unlock (&log_lock);
}

unsigned
unit_logged (enum q_log_level level)
{
  unsigned n;

  pthread_mutex_lock (&log_lock);
  n = logged[level];
  pthread_mutex_unlock (&log_lock);
  return n;
}

const char *
unit_last_log (void)
{
  return last_log;
}

void
unit_forget_log (void)
{
  pthread_mutex_lock (&log_lock);
  memset (logged, 0, sizeof logged);
  last_log[0] = '\0';
  pthread_mutex_unlock (&log_lock);
}

/* ---- storage -------------------------------------------------------------------------------- */

static int
before (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  struct fixture *f = opaque;
  bool grows = call->kind == MEM_WRITE || call->kind == MEM_ALLOCATE;
  int error;

  (void)partial;
  atomic_fetch_add (&f->calls[call->kind], 1);
  if (grows && f->full_at && call->offset + call->len > f->full_at)
    return -ENOSPC;
  if (!f->fail_with || call->kind != f->fail_kind)
    return 0;
  if (f->fail_after > 0) {
    --f->fail_after;
    return 0;
  }
  error = f->fail_with;
  if (f->fail_times > 0 && --f->fail_times == 0)
    f->fail_with = 0;
  return error;
}

void
unit_init (struct fixture *f)
{
  memset (f, 0, sizeof *f);
  mem_store_init (&f->store);
  f->tap = (struct mem_tap){ .before = before, .opaque = f };
  q_open_options_init (&f->opts);
  f->opts.opener = &f->store.opener;
  f->opts.discard = true;
  unit_forget_log ();
  q_set_log (take_log, NULL);
}

void
unit_done (struct fixture *f)
{
  mem_store_free (&f->store);
}

/* ---- images --------------------------------------------------------------------------------- */

struct mem_file *
unit_create (struct fixture *f, const char *name, uint64_t size,
             const struct q_create_options *opts)
{
  struct q_create_options o;
  struct mem_file *m;

  if (opts)
    o = *opts;
  else
    q_create_options_init (&o);
  o.opener = &f->store.opener;
  if (q_create (name, size, &o, &f->err) < 0)
    fail_msg ("%s", f->err.text);
  m = mem_find (&f->store, name);
  m->tap = &f->tap;
  return m;
}

struct mem_file *
unit_create_clusters (struct fixture *f, const char *name, uint64_t size, unsigned cluster_bits)
{
  struct q_create_options o;

  q_create_options_init (&o);
  o.cluster_bits = cluster_bits;
  return unit_create (f, name, size, &o);
}

struct mem_file *
unit_overlay (struct fixture *f, const char *name, uint64_t size, const char *backing,
              const char *format)
{
  struct q_create_options o;

  q_create_options_init (&o);
  o.backing_file = backing;
  o.backing_format = format;
  return unit_create (f, name, size, &o);
}

struct mem_file *
unit_raw (struct fixture *f, const char *name, uint64_t size, uint8_t byte)
{
  struct mem_file *m = mem_add (&f->store, name);

  mem_resize (m, size);
  memset (m->data, byte, size);
  m->tap = &f->tap;
  return m;
}

int
unit_try_open (struct fixture *f, const char *name, struct q_image **img)
{
  return q_open (img, name, &f->opts, &f->err);
}

struct q_image *
unit_open (struct fixture *f, const char *name)
{
  struct q_image *img;

  if (unit_try_open (f, name, &img) < 0)
    fail_msg ("%s", f->err.text);
  return img;
}

void
unit_close (struct q_image *img)
{
  struct q_error err;

  if (q_close (&img, &err) < 0)
    fail_msg ("%s", err.text);
}

static void
report (void *opaque, const char *line)
{
  (void)opaque;
  print_error ("check: %s\n", line);
}

void
unit_check (struct fixture *f, const char *name)
{
  struct q_open_options saved = f->opts;
  struct q_check_result result;
  struct q_image *img;

  f->opts.read_only = f->opts.metadata_only = true;
  img = unit_open (f, name);
  assert_int_equal (q_check (img, 0, &result, report, NULL, &f->err), 0);
  assert_int_equal (result.corruptions, 0);
  assert_int_equal (result.leaks, 0);
  assert_int_equal (result.check_errors, 0);
  unit_close (img);
  f->opts = saved;
}

/* ---- taking images apart -------------------------------------------------------------------- */

struct qcow2_header *
unit_header (struct mem_file *m)
{
  return (struct qcow2_header *)m->data;
}

uint64_t
unit_be64 (const struct mem_file *m, uint64_t offset)
{
  be64 v;

  assert_true (offset + 8 <= m->size);
  memcpy (&v, m->data + offset, sizeof v);
  return get64 (v);
}

void
unit_put_be64 (struct mem_file *m, uint64_t offset, uint64_t value)
{
  be64 v = put64 (value);

  assert_true (offset + 8 <= m->size);
  memcpy (m->data + offset, &v, sizeof v);
}

static unsigned
cluster_bits (struct mem_file *m)
{
  return get32 (unit_header (m)->cluster_bits);
}

/* The block that counts HOST, and the index in it.  The images here need but one or two blocks,
 * which q_create has made. */
static uint8_t *
find_count (struct mem_file *m, uint64_t host, unsigned *order, uint64_t *index)
{
  struct qcow2_header *h = unit_header (m);
  uint64_t per_block, block;

  *order = get32 (h->version) == 2 ? 4 : get32 (h->refcount_order);
  per_block = (8ull << cluster_bits (m)) >> *order;
  *index = (host >> cluster_bits (m)) % per_block;
  block =
      unit_be64 (m, get64 (h->refcount_table_offset) + (host >> cluster_bits (m)) / per_block * 8);
  return block ? m->data + block : NULL;
}

uint64_t
unit_refcount (struct mem_file *m, uint64_t host)
{
  unsigned order;
  uint64_t index;
  const uint8_t *block = find_count (m, host, &order, &index);

  return block ? q_refblock_read (block, order, index) : 0;
}

void
unit_set_refcount (struct mem_file *m, uint64_t host, uint64_t count)
{
  unsigned order;
  uint64_t index;
  uint8_t *block = find_count (m, host, &order, &index);

  assert_non_null (block);
  q_refblock_write (block, order, index, count);
}

uint64_t
unit_take (struct mem_file *m, uint64_t n)
{
  uint64_t cluster = 1ull << cluster_bits (m), host = q_round_up (m->size, cluster);

  mem_resize (m, host + n * cluster);
  for (uint64_t i = 0; i < n; ++i)
    unit_set_refcount (m, host + i * cluster, 1);
  return host;
}

/* Where the entry of GC is in the file, or 0 if there is no table. */
static uint64_t
entry_offset (struct mem_file *m, uint64_t gc, bool make)
{
  bool extended = get64 (unit_header (m)->incompatible_features) & Q_INCOMPAT_EXTL2;
  unsigned l2_bits = cluster_bits (m) - (extended ? 4 : 3);
  uint64_t l1 = get64 (unit_header (m)->l1_table_offset) + (gc >> l2_bits) * 8;
  uint64_t l2 = unit_be64 (m, l1) & Q_OFFSET_MASK;

  if (l2 == 0 && !make)
    return 0;
  if (l2 == 0) {
    l2 = unit_take (m, 1);
    unit_put_be64 (m, l1, l2 | Q_COPIED);
  }
  return l2 + (gc & ((1u << l2_bits) - 1)) * (extended ? 16 : 8);
}

void
unit_set_entry (struct mem_file *m, uint64_t gc, uint64_t entry)
{
  unit_put_be64 (m, entry_offset (m, gc, true), entry);
}

uint64_t
unit_get_entry (struct mem_file *m, uint64_t gc)
{
  uint64_t offset = entry_offset (m, gc, false);

  return offset ? unit_be64 (m, offset) : 0;
}

void
unit_set_bitmap (struct mem_file *m, uint64_t gc, uint64_t bitmap)
{
  unit_put_be64 (m, entry_offset (m, gc, true) + 8, bitmap);
}

uint64_t
unit_get_bitmap (struct mem_file *m, uint64_t gc)
{
  uint64_t offset = entry_offset (m, gc, false);

  return offset ? unit_be64 (m, offset + 8) : 0;
}

uint64_t
unit_set_data (struct mem_file *m, uint64_t gc, uint8_t byte)
{
  uint64_t host;

  entry_offset (m, gc, true); /* the table first: data clusters in a row stay in a row */
  host = unit_take (m, 1);
  memset (m->data + host, byte, 1ull << cluster_bits (m));
  unit_set_entry (m, gc, host | Q_COPIED);
  return host;
}

/* ---- what came of it ------------------------------------------------------------------------ */

void
unit_reads (struct q_image *img, uint64_t offset, uint64_t len, uint8_t byte)
{
  uint8_t *buf = xalloc (len);
  int r;

  memset (buf, ~byte, len);
  r = q_pread (img, buf, offset, len);
  if (r < 0)
    fail_msg ("read of %llu at %llu: %s", (unsigned long long)len, (unsigned long long)offset,
              strerror (-r));
  for (uint64_t i = 0; i < len; ++i)
    if (buf[i] != byte)
      fail_msg ("byte %llu is %#x, should be %#x", (unsigned long long)(offset + i), buf[i], byte);
  free (buf);
}

void
unit_writes (struct q_image *img, uint64_t offset, uint64_t len, uint8_t byte)
{
  uint8_t *buf = xalloc (len);
  int r;

  memset (buf, byte, len);
  r = q_pwrite (img, buf, offset, len);
  if (r < 0)
    fail_msg ("write of %llu at %llu: %s", (unsigned long long)len, (unsigned long long)offset,
              strerror (-r));
  free (buf);
}
