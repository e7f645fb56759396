/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A damaged state file (state.h), found beside the image that it belongs to, after its process was
 * killed.
 *
 * The input says which image, and what is wrong with the file: patches of a header field, a field
 * of a slot, a table, any bytes; of the file for bitmaps; and of the image.
 *
 * The oracle: whatever the state file says, the image opens, is sound, and can be written; and if
 * nothing is wrong with it, everything that was written is there.
 */

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "images.h"
#include "skeleton.h"
#include "state.h"
#include "statefile.h"

static const char *const names[] = { "v3",         "bitmaps", "subclusters-all",
                                     "compressed", "lazy",    "snapshots" };
#define N_IMAGES (sizeof names / sizeof names[0])

struct killed {
  uint8_t *image;
  uint64_t size;
  struct state_copy state;
  uint8_t *disk; /* what was written */
  uint64_t disk_size;
};

static struct mem_store store;
static struct mem_file *image;
static struct killed killed[N_IMAGES];

static void
options (struct q_open_options *o, bool with_state)
{
  q_open_options_init (o);
  o->opener = &store.opener;
  o->lock = Q_LOCK_OFF;
  o->discard = true;
  o->l2_cache_size = o->refcount_cache_size = 1; /* few slots */
  o->state_dir = with_state ? images_state_directory () : NULL;
}

static void
must (int r, const char *what, const struct q_error *err)
{
  if (r < 0)
    die ("%s: %d %s", what, r, err ? err->text : "");
}

/* A process writes, flushes, writes more, and is killed. */
static void
kill_one (const struct skeleton *k, struct killed *d)
{
  struct q_open_options o;
  struct q_error err = { "" };
  struct q_image *img;
  uint8_t buf[9000];

  skeleton_make (k, &store);
  options (&o, true);
  must (q_open (&img, "image", &o, &err), k->name, &err);
  memset (buf, 0x31, sizeof buf);
  must (q_pwrite (img, buf, 20000, sizeof buf), "write", NULL);
  must (q_flush (img), "flush", NULL);
  memset (buf, 0x32, sizeof buf);
  must (q_pwrite (img, buf, 60000, sizeof buf), "write", NULL);
  must (q_discard (img, 0, 16384), "discard", NULL);
  must (q_pwrite (img, buf, 40000, 100), "write", NULL);
  d->size = image->size;
  d->image = xalloc (d->size);
  memcpy (d->image, image->data, d->size);
  state_save (&d->state);
  d->disk_size = q_size (img);
  d->disk = xalloc (d->disk_size);
  must (q_pread (img, d->disk, 0, d->disk_size), "read", NULL);
  must (q_close (&img, &err), "close", &err);
}

static void
make (void)
{
  if (image)
    return;
  atexit (images_cleanup);
  mem_store_init (&store);
  skeleton_surroundings (&store);
  image = mem_add (&store, "image");
  for (size_t i = 0; i < N_IMAGES; ++i)
    for (unsigned k = 0; k < n_skeletons; ++k)
      if (strcmp (skeletons[k].name, names[i]) == 0)
        kill_one (&skeletons[k], &killed[i]);
}

/* ---- damage ---------------------------------------------------------------------------------- */

static int
open_state (const char *suffix, struct stat *st)
{
  char path[256];
  int fd;

  snprintf (path, sizeof path, "%s/0-0.state%s", images_state_directory (), suffix);
  fd = open (path, O_RDWR);
  if (fd >= 0 && fstat (fd, st) == -1)
    die ("%s: fstat failed", path);
  return fd;
}

static void
write_at (int fd, const void *p, size_t n, uint64_t at)
{
  if (pwrite (fd, p, n, (off_t)at) != (ssize_t)n)
    die ("the state file cannot be written");
}

static void
read_at (int fd, void *p, size_t n, uint64_t at)
{
  ssize_t r = pread (fd, p, n, (off_t)at);

  if (r < 0)
    die ("the state file cannot be read");
  memset ((uint8_t *)p + r, 0, n - (size_t)r);
}

static uint64_t
value (struct input *in)
{
  uint8_t how = take8 (in), v = take8 (in);

  switch (how & 7) {
  case 0:
    return v;
  case 1:
    return (uint64_t)v << 9;
  case 2:
    return UINT64_MAX - v;
  case 3:
    return UINT64_C (1) << (v & 63);
  case 4:
    return take32 (in);
  case 5:
    return (uint64_t)v << 12 | take16 (in);
  default:
    return take64 (in);
  }
}

/* Where slot N is used, counted from the first that is. */
static uint64_t
used_slot (int fd, uint8_t n)
{
  struct q_state_slot slot;
  uint64_t found[64];
  unsigned k = 0;

  for (unsigned i = 0; i < 256 && k < 64; ++i) {
    uint64_t at = Q_STATE_SLOTS_OFFSET + i * sizeof slot;

    read_at (fd, &slot, sizeof slot, at);
    if (slot.in_use)
      found[k++] = at;
  }
  return k ? found[n % k] : Q_STATE_SLOTS_OFFSET;
}

static void
patch_number (int fd, struct input *in, uint64_t at, bool small)
{
  uint64_t v = value (in);

  write_at (fd, &v, small ? 4 : 8, at);
}

static void
damage_state (int fd, const struct stat *st, uint8_t kind, struct input *in)
{
  uint8_t where = take8 (in);
  struct q_state_slot slot;
  uint64_t at;

  switch (kind) {
  case 0: /* the header */
    patch_number (fd, in, where % (sizeof (struct q_state_header) / 4) * 4, where & 0x80);
    break;
  case 1: /* a slot */
    at = used_slot (fd, take8 (in));
    patch_number (fd, in, at + where % (sizeof slot / 4) * 4, where & 0x80);
    break;
  case 2: /* an entry of a table */
    read_at (fd, &slot, sizeof slot, used_slot (fd, take8 (in)));
    at = slot.offset + where * 8ull;
    if (at + 8 <= (uint64_t)st->st_size) {
      uint64_t v = htobe64 (value (in));

      write_at (fd, &v, 8, at);
    }
    break;
  case 3: /* a slot that is not in use */
    at = Q_STATE_SLOTS_OFFSET + (where % 40) * sizeof slot;
    read_at (fd, &slot, sizeof slot, used_slot (fd, take8 (in)));
    write_at (fd, &slot, sizeof slot, at);
    break;
  case 4: /* its length */
    if (ftruncate (fd, (off_t)(value (in) % ((uint64_t)st->st_size + 65536))) == -1)
      die ("ftruncate failed");
    break;
  default:
    at = value (in) % (uint64_t)(st->st_size ? st->st_size : 1);
    patch_number (fd, in, at, true);
    break;
  }
}

static void
damage_image (struct input *in)
{
  uint64_t at = take16 (in) % image->size;

  image->data[at] ^= take8 (in);
}

/* False if there was none. */
static bool
damage (struct input *in)
{
  struct stat st = { 0 }, bitmaps = { 0 };
  int fd = open_state ("", &st), b = open_state (".bitmaps", &bitmaps);
  bool any = in->left > 0;

  for (unsigned i = 0; i < 16 && in->left > 0; ++i) {
    uint8_t kind = take8 (in);

    if (kind & 0x80 ? b >= 0 && bitmaps.st_size > 0 : fd >= 0 && st.st_size > 0) {
      if (kind & 0x80)
        patch_number (b, in, (take16 (in) * 4u) % (uint64_t)bitmaps.st_size, kind & 1);
      else if (kind % 8 == 7)
        damage_image (in);
      else
        damage_state (fd, &st, kind % 8 % 6, in);
    } else
      take8 (in);
  }
  if (fd >= 0)
    close (fd);
  if (b >= 0)
    close (b);
  return any;
}

/* ---- what must hold -------------------------------------------------------------------------- */

static bool
is_sound (void)
{
  struct q_check_options co = { .threads = 1 };
  struct q_check_result r = { 0 };
  struct q_open_options o;
  struct q_error err = { "" };
  struct q_image *img;
  int result;

  options (&o, false);
  o.read_only = o.metadata_only = true;
  if (q_open (&img, "image", &o, &err) < 0)
    return false;
  result = q_check_image (img, &co, &r, &err);
  q_close (&img, &err);
  return result == 0 && r.corruptions == 0 && r.check_errors == 0;
}

static void
compare (struct q_image *img, const struct killed *d)
{
  uint8_t *buf = xalloc (d->disk_size);

  if (q_size (img) != d->disk_size || q_pread (img, buf, 0, d->disk_size) < 0)
    broken ("what a killed process wrote cannot be read");
  for (uint64_t i = 0; i < d->disk_size; ++i)
    if (buf[i] != d->disk[i])
      broken ("byte %" PRIu64 " of the disk is 0x%02x, a killed process wrote 0x%02x", i, buf[i],
              d->disk[i]);
  free (buf);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct input in = { data, size };
  const struct killed *d;
  struct q_open_options o;
  struct q_error err = { "" };
  struct q_image *img;
  bool damaged, sound;
  uint8_t byte = 9;

  fuzz_begin ();
  make ();
  d = &killed[take8 (&in) % N_IMAGES];
  image->limit = 0;
  mem_set (image, d->image, d->size);
  image->limit = 4u << 20;
  images_lose_state ();
  state_restore (&d->state);
  damaged = damage (&in);
  sound = is_sound ();

  options (&o, true);
  if (q_open (&img, "image", &o, &err) == 0) {
    if (!damaged)
      compare (img, d);
    q_pwrite (img, &byte, 30000, 1);
    if (q_close (&img, &err) < 0 && sound)
      broken ("closing failed: %s", err.text);
    if (sound && !is_sound ())
      broken ("an image is not sound any more after its state was recovered");
  } else if (!damaged)
    broken ("what a killed process left does not open: %s", err.text);
  images_lose_state ();
  return 0;
}

void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  for (unsigned i = 0; i < N_IMAGES; ++i) {
    uint8_t input[] = { (uint8_t)i, 0, 4, 0, 1, 1, 2, 3, 0, 77, 2, 4, 2, 1, 8 };
    char name[64];

    snprintf (name, sizeof name, "%s-killed", names[i]);
    emit (opaque, name, input, 1);
    snprintf (name, sizeof name, "%s-damaged", names[i]);
    emit (opaque, name, input, sizeof input);
  }
}
