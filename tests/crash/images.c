/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The images that workloads start from: see images.h.
 */

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format.h"
#include "images.h"

static char directory[64];

const struct q_secret images_secret = { "crash", 5 };

const char *
images_directory (void)
{
  if (!directory[0]) {
    snprintf (directory, sizeof directory, "%s",
              access ("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    strncat (directory, "/nbdcow-crash-XXXXXX", sizeof directory - strlen (directory) - 1);
    if (!mkdtemp (directory))
      die ("%s: cannot make a directory", directory);
  }
  return directory;
}

int
images_shell (const char *fmt, ...)
{
  char command[2048];
  int n, status;
  va_list ap;

  n = snprintf (command, sizeof command, "cd %s && ", images_directory ());
  va_start (ap, fmt);
  vsnprintf (command + n, sizeof command - (size_t)n, fmt, ap);
  va_end (ap);
  fflush (stdout);
  status = system (command);
  return WIFEXITED (status) ? WEXITSTATUS (status) : -1;
}

const char *
images_state_directory (void)
{
  static char state[80];

  if (!state[0]) {
    snprintf (state, sizeof state, "%s/state", images_directory ());
    if (mkdir (state, 0700) != 0)
      die ("%s: cannot make a directory", state);
  }
  return state;
}

void
images_lose_state (void)
{
  DIR *d = opendir (images_state_directory ());
  const struct dirent *e;

  while (d && (e = readdir (d)) != NULL)
    if (e->d_name[0] != '.' && unlinkat (dirfd (d), e->d_name, 0) != 0)
      die ("%s: cannot be removed", e->d_name);
  if (d)
    closedir (d);
}

bool
images_have_qemu (void)
{
  static int have = -1;

  if (have < 0)
    have = images_shell ("{ qemu-img --version && qemu-io --version; } >/dev/null 2>&1") == 0;
  return have;
}

int
images_qemu_check (struct mem_store *s, const char *name)
{
  const struct mem_file *base = mem_find (s, "base");
  char path[128];
  int r;

  snprintf (path, sizeof path, "%s/check.qcow2", images_directory ());
  mem_save (mem_find (s, name), path);
  if (base) {
    snprintf (path, sizeof path, "%s/base", images_directory ());
    mem_save (base, path);
  }
  if (mem_find (s, name)->beside) {
    snprintf (path, sizeof path, "%s/data", images_directory ());
    mem_save (mem_find (s, name)->beside, path);
  }
  if (get32 (((const struct qcow2_header *)mem_find (s, name)->data)->crypt_method) == Q_CRYPT_LUKS)
    r = images_shell ("qemu-img check -q --object secret,id=k,data=%.*s --image-opts "
                      "driver=qcow2,encrypt.key-secret=k,file.filename=check.qcow2%s "
                      ">check.log 2>&1",
                      (int)images_secret.len, (const char *)images_secret.data,
                      base ? ",backing.encrypt.key-secret=k" : "");
  else
    r = images_shell ("qemu-img check -q -f qcow2 check.qcow2 >check.log 2>&1");
  return r == 0 ? 0 : r == 3 ? 1 : 2;
}

void
images_cleanup (void)
{
  if (!directory[0])
    return;
  if (images_shell ("rm -rf *.qcow2 *.raw *.log base data state") != 0 || rmdir (directory) != 0)
    fprintf (stderr, "%s: cannot be removed\n", directory);
  directory[0] = '\0';
}

/* ---- with the engine ------------------------------------------------------------------------- */

static void
create (struct run *run, const char *name, uint64_t size, const char *backing)
{
  struct q_create_options c;
  struct q_error err;

  q_create_options_init (&c);
  c.version = run->w->version;
  c.cluster_bits = run->cluster_bits;
  c.refcount_bits = run->refcount_bits;
  c.lazy_refcounts = run->w->lazy;
  c.zstd = run->w->zstd;
  c.extended_l2 = run->w->extended_l2;
  c.backing_file = backing;
  c.backing_format = backing ? "qcow2" : NULL;
  if (run->w->encrypted) {
    c.secret = &images_secret;
    /* Quick to open, which is done for each state; and a torn sector would show. */
    c.encrypt.iter_time_ms = 1;
    c.encrypt.cipher_alg = "aes-128";
    c.encrypt.cipher_mode = "cbc";
    c.encrypt.ivgen_alg = "essiv";
  }
  if (run->data && strcmp (name, "top") == 0) {
    c.data_file = "data";
    c.data_file_raw = run->w->raw;
  }
  c.opener = &run->store.opener;
  if (q_create (name, size, &c, &err) < 0)
    die ("%s: create: %s", run->w->name, err.text);
}

/* Writes PERCENT of the disk, in pieces at random places, and says in CONTENTS what it then holds.
 */
static void
fill (struct run *run, const char *name, uint64_t size, unsigned percent, uint8_t *contents,
      uint64_t seed)
{
  uint64_t random = random_seed (seed), goal = size / 100 * percent, done = 0;
  struct q_image *img;
  struct q_error err;

  if (q_open (&img, name, &run->opts, &err) < 0)
    die ("%s: %s", run->w->name, err.text);
  while (done < goal) {
    uint64_t len = 1 + random_below (&random, size / 16 + 1), offset = random_below (&random, size);

    len = len < size - offset ? len : size - offset;
    guest_fill (random, offset, len, contents + offset);
    if (q_pwrite (img, contents + offset, offset, len) < 0)
      die ("%s: filling failed", run->w->name);
    done += len;
  }
  if (q_close (&img, &err) < 0)
    die ("%s: %s", run->w->name, err.text);
}

static uint64_t
get_be64 (const uint8_t *p)
{
  uint64_t v = 0;

  for (int i = 0; i < 8; ++i)
    v = v << 8 | p[i];
  return v;
}

/* As a writer with lazy refcounts leaves an image when it is killed: the dirty bit is set, and the
 * refcounts of what it allocated and freed are those of before.  The image has refcounts of 16 bits
 * and one block of them. */
static void
make_dirty (struct run *run)
{
  uint8_t *file = run->top->data;
  uint64_t block = get_be64 (file + get_be64 (file + 48));
  uint64_t clusters = run->top->size >> run->cluster_bits, random = random_seed (run->seed);

  file[79] |= 1;
  for (uint64_t i = 5; i < clusters && i < 1ull << (run->cluster_bits - 1); ++i)
    if (random_below (&random, 3) == 0)
      file[block + 2 * i + 1] ^= 1;
}

/* As other writers leave a raw data file: some clusters that are zeros have entries that say so, or
 * say nothing.  The image has one L2 table or more. */
static void
make_unsettled (struct run *run)
{
  uint8_t *file = run->top->data;
  uint64_t l1 = get_be64 (file + 40), cluster = 1ull << run->cluster_bits, per_table = cluster / 8;
  uint64_t random = random_seed (run->seed + 5), clusters = (run->disk + cluster - 1) / cluster;

  for (uint64_t i = 0; i < clusters; ++i) {
    uint64_t table = get_be64 (file + l1 + i / per_table * 8) & 0x00fffffffffffe00ull;
    uint64_t end = (i + 1) * cluster < run->disk ? (i + 1) * cluster : run->disk;
    uint8_t *entry = file + table + i % per_table * 8;

    if (table == 0 || random_below (&random, 3) > 0)
      continue;
    memset (run->data->data + i * cluster, 0, end - i * cluster);
    memset (run->contents + i * cluster, 0, end - i * cluster);
    memset (entry, 0, 8);
    entry[7] = (uint8_t)random_below (&random, 2);
  }
}

static void
make_own (struct run *run)
{
  const struct workload *w = run->w;
  uint64_t random = random_seed (run->seed);

  struct mem_file *device = run->data ? run->data : run->top;

  if (w->device) {
    uint64_t size = (w->mix.snapshot ? 8 : 2) * run->size + (1u << 20);

    mem_resize (device, size);
    for (uint64_t i = 0; i < size; i += 8)
      for (unsigned k = 0; k < 8; ++k)
        device->data[i + k] = (uint8_t)random_next (&random);
    device->device = true;
  }
  device->plain = w->plain;
  if (w->image == IMAGE_OVERLAY) {
    /* Shorter than the overlay: what is past its end reads as zeros. */
    uint64_t size = run->size / 8 * 7;

    create (run, "base", size, NULL);
    fill (run, "base", size, 120, run->contents, run->seed * 3 + 1);
  }
  create (run, "top", run->disk, w->image == IMAGE_OVERLAY ? "base" : NULL);
  /* What the disk grows over is zeros, whatever is below. */
  memset (run->contents + run->disk, 0, run->size - run->disk);
  if (w->fill || w->image == IMAGE_DIRTY)
    fill (run, "top", run->disk, w->fill ? w->fill : 80, run->contents, run->seed * 3 + 2);
  if (w->image == IMAGE_DIRTY)
    make_dirty (run);
  if (w->raw)
    make_unsettled (run);
}

/* ---- with qemu-img -----------------------------------------------------------------------------
 */

/* Ends the test if the command fails. */
#define must(...)                                                                                  \
  do {                                                                                             \
    if (images_shell (__VA_ARGS__) != 0)                                                           \
      die ("a command failed: see above");                                                         \
  } while (0)

static void
qemu_create (const struct run *run, const char *name, const char *more)
{
  const struct workload *w = run->w;

  must ("qemu-img create -q -f qcow2 -o cluster_size=%u,compat=%s,refcount_bits=%u%s%s %s %s %llu",
        1u << run->cluster_bits, w->version == 2 ? "0.10" : "1.1", run->refcount_bits,
        w->lazy ? ",lazy_refcounts=on" : "", w->extended_l2 ? ",extended_l2=on" : "", more, name,
        (unsigned long long)run->size);
}

/* Some patterns all over the disk. */
static void
qemu_write (const struct run *run, const char *name, unsigned writes, uint64_t *random)
{
  char command[1500];
  int n = snprintf (command, sizeof command, "qemu-io -f qcow2");

  while (writes-- > 0) {
    uint64_t offset = random_below (random, run->size / 512) * 512;
    uint64_t len = 512 + random_below (random, run->size / 8 / 512) * 512;

    len = len < run->size - offset ? len : run->size - offset;
    n += snprintf (command + n, sizeof command - (size_t)n, " -c 'write -q -P %u %llu %llu'",
                   1 + (unsigned)random_below (random, 255), (unsigned long long)offset,
                   (unsigned long long)len);
  }
  must ("%s %s >/dev/null", command, name);
}

static void
qemu_make (struct run *run)
{
  uint64_t random = random_seed (run->seed);

  must ("rm -f top.qcow2 base source.qcow2 contents.raw");
  switch (run->w->image) {
  case IMAGE_FOREIGN_OVERLAY:
    qemu_create (run, "base", "");
    qemu_write (run, "base", 12, &random);
    qemu_create (run, "top.qcow2", "-b base -F qcow2");
    break;
  case IMAGE_SNAPSHOT:
    qemu_create (run, "top.qcow2", "");
    qemu_write (run, "top.qcow2", 10, &random);
    must ("qemu-img snapshot -q -c one top.qcow2");
    qemu_write (run, "top.qcow2", 4, &random);
    must ("qemu-img snapshot -q -c two top.qcow2");
    qemu_write (run, "top.qcow2", 3, &random);
    break;
  case IMAGE_COMPRESSED:
    qemu_create (run, "source.qcow2", "");
    qemu_write (run, "source.qcow2", 20, &random);
    must (
        "qemu-img convert -q -c -f qcow2 -O qcow2 -o cluster_size=%u,compat=%s,refcount_bits=%u%s "
        "source.qcow2 top.qcow2",
        1u << run->cluster_bits, run->w->version == 2 ? "0.10" : "1.1", run->refcount_bits,
        run->w->extended_l2 ? ",extended_l2=on" : "");
    break;
  default:
    qemu_create (run, "top.qcow2", "");
    qemu_write (run, "top.qcow2", 8, &random);
  }
  must ("qemu-img convert -q -f qcow2 -O raw top.qcow2 contents.raw");
}

/* What qemu-img made, kept for the next run that wants the same. */
struct made {
  struct made *next;
  const struct workload *w;
  unsigned cluster_bits, refcount_bits;
  struct mem_store store;
};

static void
copy_file (struct mem_store *from, struct mem_store *to, const char *name)
{
  const struct mem_file *f = mem_find (from, name);

  if (f)
    mem_set (mem_add (to, name), f->data, f->size);
}

static void
load (struct mem_store *s, const char *name, const char *file)
{
  char path[128];

  snprintf (path, sizeof path, "%s/%s", images_directory (), file);
  if (access (path, R_OK) == 0)
    mem_load (mem_add (s, name), path);
}

static void
make_foreign (struct run *run)
{
  static struct made *all;
  struct made *m = all;

  while (m && (m->w != run->w || m->cluster_bits != run->cluster_bits ||
               m->refcount_bits != run->refcount_bits))
    m = m->next;
  if (!m) {
    m = xalloc (sizeof *m);
    *m = (struct made){ all, run->w, run->cluster_bits, run->refcount_bits, { 0 } };
    all = m;
    mem_store_init (&m->store);
    qemu_make (run);
    load (&m->store, "top", "top.qcow2");
    load (&m->store, "base", "base");
    load (&m->store, "contents", "contents.raw");
  }
  copy_file (&m->store, &run->store, "top");
  copy_file (&m->store, &run->store, "base");
  memcpy (run->contents, mem_find (&m->store, "contents")->data, run->size);
}

bool
images_make (struct run *run)
{
  if (run->w->image < IMAGE_FOREIGN)
    make_own (run);
  else if (images_have_qemu ())
    make_foreign (run);
  else
    return false;
  return true;
}
