/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The nbdkit plugin: nbdkit's callbacks, each a thin layer over one engine call of qcow2.h.
 *
 * One image, shared by every connection.  It is opened by the first connection and closed when
 * nbdkit stops.  It cannot be opened for good earlier, because nbdkit says only to .open whether
 * the export is read-only (-r, or a filter such as cow that promises not to write), and a read-only
 * export must neither take the lock of a writer nor change a byte of the image.  So that mistakes
 * are still reported before nbdkit goes into the background, get_ready opens the image once, to
 * read, and closes it again.
 *
 * Locking: image_lock guards the opening alone.  The pointer does not change while a connection is
 * open, and nbdkit runs .cleanup after the last one has gone, so the data path takes no lock here.
 */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>
#include <zstd.h>

#include "counts.h"
#include "passphrase.h"
#include "qcow2.h"
#include "watch.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* Most extents asked of the engine at once, and most such questions for one client request: a reply
 * to block status may end early, and the client then asks for the rest. */
#define EXTENTS_PER_MAP  64
#define MAPS_PER_REQUEST 256

static char *filename;
static struct q_open_options options; /* complete once .config_complete has run */
static char description[128];
static bool marked_corrupt; /* then only a reader is served */

static pthread_mutex_t image_lock = PTHREAD_MUTEX_INITIALIZER;
static struct q_image *image;

/* ---- parameters --------------------------------------------------------------------------- */

struct word {
  const char *name;
  int value;
};

static const struct word format_words[] = {
  { "auto", Q_FORMAT_AUTO },
  { "qcow2", Q_FORMAT_QCOW2 },
  { "raw", Q_FORMAT_RAW },
  { NULL, 0 },
};

static const struct word backing_words[] = {
  { "recorded", Q_BACKING_RECORDED }, { "same-dir", Q_BACKING_SAME_DIR }, { "any", Q_BACKING_ANY },
  { "probe", Q_BACKING_PROBE },       { "none", Q_BACKING_NONE },         { NULL, 0 },
};

static const struct word data_file_words[] = {
  { "same-dir", Q_DATA_FILE_SAME_DIR },
  { "any", Q_DATA_FILE_ANY },
  { "none", Q_DATA_FILE_NONE },
  { NULL, 0 },
};

enum { DISCARD_UNMAP = 1, DISCARD_NO_UNREF = 2 };

static const struct word discard_words[] = {
  { "unmap", DISCARD_UNMAP },
  { "on", DISCARD_UNMAP },
  { "ignore", 0 },
  { "off", 0 },
  { "no-unref", DISCARD_UNMAP | DISCARD_NO_UNREF },
  { NULL, 0 },
};

/* QEMU's cache modes. */
enum { CACHE_DIRECT = 1, CACHE_FLUSH_EVERY_WRITE = 2, CACHE_FLUSH_NEVER = 4 };

static const struct word cache_words[] = {
  { "writeback", 0 },
  { "none", CACHE_DIRECT },
  { "writethrough", CACHE_FLUSH_EVERY_WRITE },
  { "directsync", CACHE_DIRECT | CACHE_FLUSH_EVERY_WRITE },
  { "unsafe", CACHE_FLUSH_NEVER },
  { NULL, 0 },
};

static const struct word lock_words[] = {
  { "on", Q_LOCK_ON },
  { "off", Q_LOCK_OFF },
  { NULL, 0 },
};

static const struct word switch_words[] = { { "on", true }, { "off", false }, { NULL, 0 } };

static int format = Q_FORMAT_AUTO;
static int backing = -1; /* not said, as in the next one */
static int data_file_policy = -1;
static char *data_file;
static int untrusted = false;
static int discard = DISCARD_UNMAP;
static int cache = 0;
static int lock = Q_LOCK_ON;
static bool compressing;
static struct watermark watermark;
static char *watermark_exec; /* what it points to */
static int statistics = false;

static bool use_state = true;
static char *state_dir; /* NULL: the engine's default */

/* The parameters whose value is a word. */
static const struct {
  const char *key;
  const struct word *words;
  int *value;
} choices[] = {
  { "format", format_words, &format },
  { "backing", backing_words, &backing },
  { "discard", discard_words, &discard },
  { "cache", cache_words, &cache },
  { "lock", lock_words, &lock },
  { "data-file-policy", data_file_words, &data_file_policy },
  { "untrusted", switch_words, &untrusted },
  { "statistics", switch_words, &statistics },
};

/* Finds VALUE among WORDS.  Returns -1 after saying which words there are. */
static int
parse_word (const char *key, const char *value, const struct word *words, int *chosen)
{
  char known[128] = "";
  size_t used = 0;

  for (const struct word *w = words; w->name; w++) {
    if (strcmp (value, w->name) == 0) {
      *chosen = w->value;
      return 0;
    }
    if (used < sizeof known)
      used += snprintf (known + used, sizeof known - used, "%s%s", used ? ", " : "", w->name);
  }
  nbdkit_error ("%s=%s: expected one of: %s", key, value, known);
  return -1;
}

/* nbdkit's own parser says what is wrong without saying with which parameter, so it is only given
 * what looks right. */
static int
parse_size (const char *key, const char *value, uint64_t *result)
{
  size_t digits = strspn (value, "0123456789");
  size_t suffix = strspn (value + digits, "bBsSkKmMgGtTpPeE");
  int64_t r;

  if (digits == 0 || suffix > 1 || value[digits + suffix] != '\0' ||
      strspn (value, "0") == digits) {
    nbdkit_error ("%s=%s: expected a size above 0, such as 64M", key, value);
    return -1;
  }
  r = nbdkit_parse_size (value);
  if (r == -1) /* it is too large, and nbdkit has said so */
    return -1;
  *result = r;
  return 0;
}

/* A size or a percentage. */
static int
parse_amount (const char *key, const char *value, struct q_amount *amount)
{
  size_t digits = strspn (value, "0123456789");
  unsigned long percent = 0;

  if (strcmp (value + digits, "%") != 0) {
    *amount = (struct q_amount){ 0 };
    return parse_size (key, value, &amount->bytes);
  }
  if (digits > 0 && digits <= 3)
    percent = strtoul (value, NULL, 10);
  if (percent < 1 || percent > 100) {
    nbdkit_error ("%s=%s: expected a percentage from 1%% to 100%%", key, value);
    return -1;
  }
  *amount = (struct q_amount){ .percent = (unsigned)percent };
  return 0;
}

/* on, off or a level. */
static int
parse_compress (const char *value)
{
  size_t digits = strspn (value, "0123456789");

  compressing = strcmp (value, "off") != 0;
  options.compression_level = 0;
  if (!compressing || strcmp (value, "on") == 0)
    return 0;
  if (digits == 0 || digits > 2 || value[digits] || strspn (value, "0") == digits) {
    nbdkit_error ("compress=%s: expected on, off or a level such as 6", value);
    return -1;
  }
  options.compression_level = (int)strtol (value, NULL, 10); /* two digits at most */
  return 0;
}

static int
plugin_config (const char *key, const char *value)
{
  if (strcmp (key, "file") == 0) {
    if (filename) {
      nbdkit_error ("file=%s: only one image can be served, and %s was named first", value,
                    filename);
      return -1;
    }
    /* nbdkit changes directory before the image is opened.  Symbolic links stay as they are: a
     * relative backing file name starts from the directory of the name that was given. */
    filename = nbdkit_absolute_path (value);
    return filename ? 0 : -1;
  }
  for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++)
    if (strcmp (key, choices[i].key) == 0)
      return parse_word (key, value, choices[i].words, choices[i].value);
  if (strcmp (key, "passphrase") == 0)
    return passphrase_take (value);
  if (strcmp (key, "state-dir") == 0) {
    free (state_dir);
    state_dir = NULL;
    use_state = strcmp (value, "off") != 0;
    if (use_state) {
      state_dir = nbdkit_absolute_path (value);
      return state_dir ? 0 : -1;
    }
    return 0;
  }
  if (strcmp (key, "compress") == 0)
    return parse_compress (value);
  if (strcmp (key, "data-file") == 0) {
    free (data_file);
    data_file = nbdkit_absolute_path (value);
    return data_file ? 0 : -1;
  }
  if (strcmp (key, "watermark") == 0)
    return parse_amount (key, value, &watermark.at);
  if (strcmp (key, "watermark-repeat") == 0)
    return parse_amount (key, value, &watermark.repeat);
  if (strcmp (key, "watermark-exec") == 0) {
    free (watermark_exec);
    watermark.exec = watermark_exec = strdup (value);
    if (!watermark_exec)
      nbdkit_error ("%s: out of memory", key);
    return watermark_exec ? 0 : -1;
  }
  if (strcmp (key, "l2-cache-size") == 0)
    return parse_size (key, value, &options.l2_cache_size);
  if (strcmp (key, "refcount-cache-size") == 0)
    return parse_size (key, value, &options.refcount_cache_size);

  nbdkit_error ("unknown parameter %s=%s: nbdkit qcow2 --help lists what there is", key, value);
  return -1;
}

static int
plugin_config_complete (void)
{
  if (!filename) {
    nbdkit_error ("no image was named: nbdkit qcow2 [file=]IMAGE");
    return -1;
  }
  options.format = format;
  options.backing = backing >= 0 ? (enum q_backing)backing
                    : untrusted  ? Q_BACKING_REFUSE
                                 : Q_BACKING_RECORDED;
  options.data_file_policy = data_file_policy >= 0 ? (enum q_data_file_policy)data_file_policy
                             : untrusted           ? Q_DATA_FILE_NONE
                                                   : Q_DATA_FILE_SAME_DIR;
  options.data_file = data_file;
  options.discard = discard & DISCARD_UNMAP;
  options.discard_no_unref = discard & DISCARD_NO_UNREF;
  options.cache = cache & CACHE_DIRECT ? Q_CACHE_DIRECT : Q_CACHE_BUFFERED;
  options.lock = lock;
  passphrase_apply (&options);
  if (use_state)
    options.state_dir = state_dir ? state_dir : "";
  return 0;
}

/* ---- start and stop ------------------------------------------------------------------------ */

static void
log_line (void *opaque, enum q_log_level level, const char *text)
{
  int saved = errno;

  (void)opaque;
  switch (level) {
  case Q_LOG_ERROR:
    nbdkit_error ("%s", text);
    break;
  case Q_LOG_WARNING:
    nbdkit_error ("warning: %s", text);
    break;
  case Q_LOG_INFO:
  case Q_LOG_DEBUG:
    nbdkit_debug ("%s", text);
    break;
  }
  errno = saved;
}

static void
plugin_load (void)
{
  q_set_log (log_line, NULL);
  q_open_options_init (&options);
}

static void
plugin_unload (void)
{
  passphrase_forget ();
  free (filename);
  free (state_dir);
  free (data_file);
  free (watermark_exec);
}

/* Says why the image does not open, and what to do about it here if that is to ask for it
 * differently. */
static void
report_open (int r, const struct q_error *err)
{
  nbdkit_error ("%s%s", err->text, r == -EAGAIN ? " (with nbdkit: -r, lock=off)" : "");
}

static unsigned
chain_length (struct q_image *img)
{
  unsigned n = 0;

  for (; img; img = q_backing_image (img))
    n++;
  return n;
}

/* What clients are told about the export.  It names no file: the client may be on another host. */
static void
describe (struct q_image *img, const struct q_image_info *info)
{
  if (q_image_format (img) == Q_FORMAT_RAW) {
    snprintf (description, sizeof description, "raw");
    return;
  }
  snprintf (description, sizeof description,
            "qcow2 version %u, %" PRIu32 "-byte clusters, %u in chain", info->version,
            q_cluster_size (img), chain_length (img));
}

/* Opening for writing would say so, too, but that comes with the first client. */
static int
check_compress (struct q_image *img, const struct q_image_info *info)
{
  int most = q_compression_max_level (strcmp (info->compression_type, "zstd") == 0);

  if (!compressing)
    return 0;
  if (q_image_format (img) == Q_FORMAT_RAW || info->encryption || info->data_file) {
    nbdkit_error ("%s: compress is for qcow2 images that are not encrypted and keep their data "
                  "themselves",
                  filename);
    return -1;
  }
  if (options.compression_level > most) {
    nbdkit_error ("%s: compress=%d: %s has levels 1 to %d", filename, options.compression_level,
                  info->compression_type, most);
    return -1;
  }
  return 0;
}

static int
plugin_get_ready (void)
{
  struct q_open_options opts = options;
  struct q_image *img;
  struct q_image_info info;
  struct q_error err;
  int r;

  opts.read_only = true;
  r = q_open (&img, filename, &opts, &err);
  if (r < 0) {
    report_open (r, &err);
    return -1;
  }
  q_get_info (img, &info);
  marked_corrupt = info.corrupt;
  describe (img, &info);
  r = check_compress (img, &info);
  if (q_close (&img, &err) < 0) {
    nbdkit_error ("%s", err.text);
    return -1;
  }
  return r;
}

/* Asked for by nbdkit's -D qcow2.statistics=1: a line whenever a connection ends, as well. */
NBDKIT_DLL_PUBLIC int qcow2_debug_statistics = 0;

/* TELL: to whoever reads the log, not only to whoever debugs. */
static void
show_statistics (bool tell)
{
  char line[COUNTS_LINE];

  counts_line (image, line);
  if (tell)
    nbdkit_error ("statistics: %s", line);
  else
    nbdkit_debug ("statistics: %s", line);
}

/* Flushes what no client has flushed.  A failure is printed: nbdkit has no way for it to become an
 * exit status. */
static void
plugin_cleanup (void)
{
  struct q_error err;

  if (image) {
    watch_stop ();
    show_statistics (statistics);
  }
  if (image && q_close (&image, &err) < 0)
    nbdkit_error ("%s", err.text);
}

static void
plugin_dump (void)
{
  printf ("qcow2_versions=2 3\n");
  printf ("qcow2_formats=qcow2 raw\n");
  printf ("qcow2_compression=zlib zstd\n");
  printf ("qcow2_zlib=%s\n", zlibVersion ());
  printf ("qcow2_zstd=%s\n", ZSTD_versionString ());
  printf ("qcow2_highest_allocated_offset=yes\n");
  printf ("qcow2_watermark=yes\n");
  printf ("qcow2_statistics=yes\n");
}

/* ---- connections --------------------------------------------------------------------------- */

/* Opens the image as the first connection needs it.  A file that may not be written is served
 * read-only.  Call with image_lock held. */
static int
open_image (bool readonly)
{
  struct q_open_options opts = options;
  struct q_error err;
  int r;

  opts.read_only = readonly;
  r = q_open (&image, filename, &opts, &err);
  if (!readonly && !marked_corrupt && (r == -EACCES || r == -EPERM || r == -EROFS)) {
    nbdkit_error ("warning: serving read-only: %s", err.text);
    opts.read_only = true;
    r = q_open (&image, filename, &opts, &err);
  }
  if (r < 0) {
    image = NULL;
    report_open (r, &err);
    errno = -r;
  } else {
    passphrase_forget ();
    passphrase_apply (&options);
    if (!q_read_only (image) && (r = watch_start (image, filename, &watermark)) < 0) {
      struct q_error ignored;
      nbdkit_error ("%s: cannot watch it: %s", filename, strerror (-r));
      q_close (&image, &ignored);
      errno = -r;
    }
  }
  return r;
}

static void *
plugin_open (int readonly)
{
  int r = 0;

  pthread_mutex_lock (&image_lock);
  if (!image)
    r = open_image (readonly);
  pthread_mutex_unlock (&image_lock);
  return r < 0 ? NULL : NBDKIT_HANDLE_NOT_NEEDED;
}

static void
plugin_close (void *handle)
{
  (void)handle;
  if (qcow2_debug_statistics)
    show_statistics (false);
}

static int
plugin_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  (void)readonly;
  (void)is_tls;
  return nbdkit_add_export (exports, "", description);
}

static const char *
plugin_default_export (int readonly, int is_tls)
{
  (void)readonly;
  (void)is_tls;
  return "";
}

static const char *
plugin_export_description (void *handle)
{
  (void)handle;
  return description;
}

static int64_t
plugin_get_size (void *handle)
{
  (void)handle;
  return q_size (image);
}

static int
plugin_block_size (void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
  uint32_t unit = q_allocation_size (image);

  (void)handle;
  *minimum = 1;
  /* A write of whole units copies nothing from below.  Pages bound it from beneath: smaller
   * requests than that are slower whatever the image says. */
  *preferred = unit < 4096 ? 4096 : unit;
  *maximum = UINT32_MAX;
  return 0;
}

static int
plugin_can_write (void *handle)
{
  (void)handle;
  return !q_read_only (image);
}

static int
plugin_can_trim (void *handle)
{
  (void)handle;
  return options.discard;
}

static int
plugin_can_fast_zero (void *handle)
{
  (void)handle;
  return q_can_fast_zero (image);
}

static int
plugin_can_fua (void *handle)
{
  (void)handle;
  return NBDKIT_FUA_NATIVE;
}

static int
plugin_can_cache (void *handle)
{
  (void)handle;
  return NBDKIT_CACHE_NATIVE;
}

/* True of can_flush, can_zero, can_extents and can_multi_conn: every connection uses the one open
 * image, so what one wrote another reads, and a flush on one covers all. */
static int
plugin_yes (void *handle)
{
  (void)handle;
  return 1;
}

static int
plugin_no (void *handle)
{
  (void)handle;
  return 0;
}

/* ---- requests ------------------------------------------------------------------------------ */

/* Counts a request that ended with R, which is returned. */
static int
counted (int r, enum count count, uint32_t bytes)
{
  count_request (count, bytes, r != 0);
  return r;
}

/* Turns an engine result into nbdkit's.  WHAT is the request in words. */
static int
result (int r, const char *what, uint32_t count, uint64_t offset)
{
  if (r == 0)
    return 0;
  nbdkit_error ("%s: %s %" PRIu32 " bytes at %" PRIu64 ": %s", filename, what, count, offset,
                strerror (-r));
  errno = -r;
  return -1;
}

/* What follows a successful change: nothing, or a flush if the client or the cache mode wants it
 * on stable storage before the answer. */
static int
settle (uint32_t flags)
{
  if (cache & CACHE_FLUSH_NEVER)
    return 0;
  if ((flags & NBDKIT_FLAG_FUA) || (cache & CACHE_FLUSH_EVERY_WRITE))
    return q_flush (image);
  return 0;
}

static int
plugin_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void)handle;
  (void)flags;
  return counted (result (q_pread (image, buf, offset, count), "reading", count, offset),
                  COUNT_READ, count);
}

static int
plugin_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  int r = compressing ? q_write_compressed (image, buf, offset, count)
                      : q_pwrite (image, buf, offset, count);

  (void)handle;
  if (r == 0)
    r = settle (flags);
  return counted (result (r, "writing", count, offset), COUNT_WRITE, count);
}

static int
plugin_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  unsigned how = flags & NBDKIT_FLAG_MAY_TRIM ? Q_ZERO_UNMAP : Q_ZERO_PROVISION;
  int r;

  (void)handle;
  if (flags & NBDKIT_FLAG_FAST_ZERO)
    how |= Q_ZERO_FAST;

  r = q_zero (image, offset, count, how);
  if (r == -ENOTSUP && (flags & NBDKIT_FLAG_FAST_ZERO)) {
    errno = ENOTSUP; /* the answer that a fast zero asks for, not worth a message */
    return -1;
  }
  if (r == 0)
    r = settle (flags);
  return counted (result (r, "zeroing", count, offset), COUNT_ZERO, count);
}

static int
plugin_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  int r = q_discard (image, offset, count);

  (void)handle;
  if (r == 0)
    r = settle (flags);
  return counted (result (r, "discarding", count, offset), COUNT_TRIM, count);
}

static int
plugin_flush (void *handle, uint32_t flags)
{
  int r;

  (void)handle;
  (void)flags;
  if (cache & CACHE_FLUSH_NEVER)
    return 0;
  r = counted (q_flush (image), COUNT_FLUSH, 0);
  if (r == 0)
    return 0;
  nbdkit_error ("%s: flushing: %s", filename, strerror (-r));
  errno = -r;
  return -1;
}

static int
plugin_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void)handle;
  (void)flags;
  return counted (result (q_prefetch (image, offset, count), "prefetching", count, offset),
                  COUNT_CACHE, count);
}

static uint32_t
extent_type (const struct q_extent *e)
{
  if (e->kind != Q_ZERO)
    return 0;
  return NBDKIT_EXTENT_ZERO | (e->flags & Q_HOLE ? NBDKIT_EXTENT_HOLE : 0);
}

static int
plugin_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                struct nbdkit_extents *extents)
{
  struct q_extent e[EXTENTS_PER_MAP];
  const unsigned max = flags & NBDKIT_FLAG_REQ_ONE ? 1 : EXTENTS_PER_MAP;
  const unsigned maps = flags & NBDKIT_FLAG_REQ_ONE ? 1 : MAPS_PER_REQUEST;
  const uint64_t end = offset + count;
  uint64_t pos = offset;

  (void)handle;
  for (unsigned i = 0; i < maps && pos < end; i++) {
    q_pin_t pin = q_pin ();
    int n = q_map (image, pos, end - pos, e, max, Q_MAP_MERGE);

    q_unpin (pin); /* only types and lengths are used, and those are ours */
    if (n < 0)
      return result (n, "mapping", count, offset);
    for (int j = 0; j < n; j++) {
      if (nbdkit_add_extent (extents, pos, e[j].len, extent_type (&e[j])) == -1)
        return -1;
      pos += e[j].len;
    }
  }
  return 0;
}

/* ---- registration -------------------------------------------------------------------------- */

#define PLUGIN_HELP                                                                                \
  "[file=]IMAGE                     (required) The image to serve.\n"                              \
  "format=auto|qcow2|raw            Its format; raw is never guessed (default auto).\n"            \
  "backing=MODE                     Which backing files are opened: recorded (default), "          \
  "same-dir, any,\n"                                                                               \
  "                                 probe or none.\n"                                              \
  "data-file=FILE                   The external data file, whatever IMAGE says.\n"                \
  "data-file-policy=same-dir|any|none\n"                                                           \
  "                                 Which one IMAGE may name (default same-dir).\n"                \
  "untrusted=on|off                 IMAGE may not name any file (default off).\n"                  \
  "discard=unmap|no-unref|ignore    What trim does (default unmap).\n"                             \
  "cache=MODE                       writeback (default), none, writethrough, directsync, "         \
  "unsafe.\n"                                                                                      \
  "passphrase=+FILE|-FD|-           What opens an encrypted image; repeat it for each layer.\n"    \
  "compress=on|off|LEVEL            Store whole clusters compressed (default off).\n"              \
  "watermark=SIZE|PERCENT%          Tell when so much of the image is allocated.\n"                \
  "watermark-repeat=SIZE|PERCENT%   And again after each so much more.\n"                          \
  "watermark-exec=COMMAND           Run COMMAND then.\n"                                           \
  "statistics=on|off                A line about what was done, at the end (default off).\n"       \
  "lock=on|off                      Take QEMU's image locks (default on).\n"                       \
  "state-dir=DIR|off                Where writes survive a killed nbdkit.\n"                       \
  "l2-cache-size=SIZE               Memory for mapping tables.\n"                                  \
  "refcount-cache-size=SIZE         Memory for reference counts."

static struct nbdkit_plugin plugin = {
  .name = "qcow2",
  .longname = "nbdkit qcow2 plugin",
  .version = NBDCOW_VERSION,
  .description = "Serve a qcow2 disk image, read and write",
  .load = plugin_load,
  .unload = plugin_unload,
  .config = plugin_config,
  .config_complete = plugin_config_complete,
  .config_help = PLUGIN_HELP,
  .magic_config_key = "file",
  .dump_plugin = plugin_dump,
  .get_ready = plugin_get_ready,
  .after_fork = passphrase_relock,
  .cleanup = plugin_cleanup,
  .list_exports = plugin_list_exports,
  .default_export = plugin_default_export,
  .export_description = plugin_export_description,
  .open = plugin_open,
  .close = plugin_close,
  .get_size = plugin_get_size,
  .block_size = plugin_block_size,
  .can_write = plugin_can_write,
  .can_flush = plugin_yes,
  .can_trim = plugin_can_trim,
  .can_zero = plugin_yes,
  .can_fast_zero = plugin_can_fast_zero,
  .can_fua = plugin_can_fua,
  .can_multi_conn = plugin_yes,
  .can_extents = plugin_yes,
  .can_cache = plugin_can_cache,
  .is_rotational = plugin_no,
  .pread = plugin_pread,
  .pwrite = plugin_pwrite,
  .zero = plugin_zero,
  .trim = plugin_trim,
  .flush = plugin_flush,
  .cache = plugin_cache,
  .extents = plugin_extents,
  .errno_is_preserved = 1,
};

NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
