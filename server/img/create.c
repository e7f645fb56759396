/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img create: makes a qcow2 or raw image.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "encrypt.h"
#include "objects.h"

/* Everything is a multiple of this in the world of disks. */
#define SECTOR 512u

void
img_creation_init (struct img_creation *c)
{
  *c = (struct img_creation){ 0 };
  q_create_options_init (&c->opts);
}

/* ---- -o -------------------------------------------------------------------------------------- */

static const char qcow2_help[] =
    "Options for -o, format qcow2:\n"
    "  backing_file=NAME        like -b\n"
    "  backing_fmt=FORMAT       like -F\n"
    "  cluster_size=SIZE        512 to 2M, a power of two (default 64k)\n"
    "  compat=VERSION           v2 (0.10) or v3 (1.1, the default)\n"
    "  compression_type=TYPE    of clusters that are compressed later: zlib (default) or zstd\n"
    "  data_file=FILE           the guest's data goes there; made too, or emptied\n"
    "  data_file_raw=on|off     FILE is always the disk as a raw image (default off)\n"
    "  keep_data_file=on|off    FILE is there, and the disk is to hold what it holds (default "
    "off)\n"
    "  extended_l2=on|off       allocate in 32nds of a cluster, of at least 16k (default off)\n"
    "  lazy_refcounts=on|off    write refcounts late, and count anew after a crash (default off)\n"
    "  preallocation=MODE       off (default), metadata, falloc or full\n"
    "  refcount_bits=N          1, 2, 4, 8, 16 (default), 32 or 64\n"
    "  size=SIZE                of the virtual disk\n";
static const char raw_help[] = "Options for -o, format raw:\n"
                               "  preallocation=MODE       off (default), falloc or full\n"
                               "  size=SIZE\n";

bool
img_creation_help (const char *text, const char *name)
{
  const bool raw = name && strcmp (name, "raw") == 0, qcow2 = name && strcmp (name, "qcow2") == 0;

  if (!text || (strcmp (text, "help") != 0 && strcmp (text, "?") != 0))
    return false;
  if (!raw)
    printf ("%s%s", qcow2_help, img_encrypt_help);
  if (!qcow2)
    printf ("%s", raw_help);
  return true;
}

static bool
set_size (struct img_creation *c, const char *text)
{
  c->has_size = true;
  return img_parse_size ("size", text, &c->size);
}

static bool
set_preallocation (struct img_creation *c, const char *text)
{
  static const char *const modes[] = { "off", "metadata", "falloc", "full" };

  for (unsigned i = 0; i < sizeof modes / sizeof modes[0]; i++)
    if (strcmp (text, modes[i]) == 0) {
      if (c->raw && i == Q_PREALLOC_METADATA)
        break;
      c->opts.preallocation = i;
      c->preallocation = text;
      return true;
    }
  img_error ("preallocation '%s' is not known: it is off, %sfalloc or full", text,
             c->raw ? "" : "metadata, ");
  return false;
}

static bool
set_cluster_size (struct img_creation *c, const char *text)
{
  uint64_t bytes;

  if (!img_parse_size ("cluster_size", text, &bytes))
    return false;
  if (bytes < 512 || bytes > 2u << 20 || (bytes & (bytes - 1)) != 0) {
    img_error ("cluster_size '%s' is not a power of two from 512 to 2M", text);
    return false;
  }
  c->opts.cluster_bits = (unsigned)__builtin_ctzll (bytes);
  return true;
}

static bool
set_compat (struct img_creation *c, const char *text)
{
  c->compat = text;
  return img_parse_compat (text, &c->opts.version);
}

static bool
set_compression_type (struct img_creation *c, const char *text)
{
  return img_parse_compression ("compression_type", text, &c->opts.zstd);
}

static bool
set_refcount_bits (struct img_creation *c, const char *text)
{
  return img_parse_refcount_bits (text, &c->opts.refcount_bits);
}

static bool
set_lazy_refcounts (struct img_creation *c, const char *text)
{
  return img_parse_bool ("lazy_refcounts", text, &c->opts.lazy_refcounts);
}

static bool
set_extended_l2 (struct img_creation *c, const char *text)
{
  return img_parse_bool ("extended_l2", text, &c->opts.extended_l2);
}

static bool
set_backing_file (struct img_creation *c, const char *text)
{
  c->opts.backing_file = text;
  return true;
}

static bool
set_backing_format (struct img_creation *c, const char *text)
{
  enum q_format format;

  c->opts.backing_format = text;
  return img_parse_format (text, &format);
}

static bool
set_data_file (struct img_creation *c, const char *text)
{
  c->opts.data_file = strncmp (text, "file:", 5) == 0 ? text + 5 : text;
  return true;
}

static bool
set_data_file_raw (struct img_creation *c, const char *text)
{
  return img_parse_bool ("data_file_raw", text, &c->opts.data_file_raw);
}

static bool
set_keep_data_file (struct img_creation *c, const char *text)
{
  return img_parse_bool ("keep_data_file", text, &c->opts.data_file_keep);
}

/* What qemu-img can make and this engine cannot. */
static bool
refuse (const char *key, const char *text)
{
  static const char *const switches[] = { "nocow" };
  bool on;

  for (size_t i = 0; i < sizeof switches / sizeof switches[0]; i++)
    if (strcmp (key, switches[i]) == 0) {
      if (!img_parse_bool (key, text, &on))
        return false;
      if (!on)
        return true;
      break;
    }
  img_error ("option %s=%s is not supported", key, text);
  return false;
}

bool
img_creation_set (struct img_creation *c, const struct img_pair *p)
{
  static const struct {
    const char *key;
    bool (*set) (struct img_creation *c, const char *text);
    bool raw;
  } known[] = {
    { "size", set_size, true },
    { "preallocation", set_preallocation, true },
    { "cluster_size", set_cluster_size, false },
    { "compat", set_compat, false },
    { "compression_type", set_compression_type, false },
    { "refcount_bits", set_refcount_bits, false },
    { "lazy_refcounts", set_lazy_refcounts, false },
    { "extended_l2", set_extended_l2, false },
    { "backing_file", set_backing_file, false },
    { "backing_fmt", set_backing_format, false },
    { "data_file", set_data_file, false },
    { "data_file_raw", set_data_file_raw, false },
    { "keep_data_file", set_keep_data_file, false },
  };
  static const char *const unsupported[] = { "nocow", "extent_size_hint" };

  if (!c->raw && img_encrypt_is_key (p->key))
    return img_encrypt_set (c, p);
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    if (strcmp (p->key, known[i].key) == 0 && (known[i].raw || !c->raw))
      return known[i].set (c, p->value);
  for (size_t i = 0; i < sizeof unsupported / sizeof unsupported[0]; i++) {
    size_t len = strlen (unsupported[i]);

    if (strcmp (p->key, unsupported[i]) == 0 ||
        (unsupported[i][len - 1] == '.' && strncmp (p->key, unsupported[i], len) == 0))
      return refuse (p->key, p->value);
  }
  img_error ("option '%s' is not known for format %s; '-o help' lists the options", p->key,
             c->raw ? "raw" : "qcow2");
  return false;
}

/* ---- making it ------------------------------------------------------------------------------- */

/* Whether PATH is an encrypted image.  Its size can be known without a key. */
static bool
needs_key (const char *path)
{
  struct q_open_options opts;
  struct q_image_info info = { 0 };
  struct q_image *img;

  q_open_options_init (&opts);
  opts.read_only = opts.metadata_only = true;
  opts.lock = Q_LOCK_OFF;
  if (q_open (&img, path, &opts, NULL) == 0) {
    q_get_info (img, &info);
    q_close (&img, NULL);
  }
  return info.encryption != NULL;
}

/* The size of the backing file, which is also looked at to see whether it can be opened at all. */
static bool
look_at_backing (struct img_creation *c)
{
  struct q_open_options opts;
  struct q_image *img;
  char *path;
  bool ok = false;

  path = img_backing_path (c->filename, c->opts.backing_file);
  if (!path)
    return false;
  if (img_same_file (c->filename, path)) {
    img_error ("%s: cannot be its own backing file", c->filename);
    goto out;
  }
  q_open_options_init (&opts);
  opts.read_only = true;
  opts.metadata_only = needs_key (path);
  opts.backing = Q_BACKING_PROBE; /* only its size is wanted, nothing is read from it */
  opts.lock = Q_LOCK_OFF;
  if (!img_parse_format (c->opts.backing_format, &opts.format))
    goto out;
  img = img_open (path, &opts);
  if (!img)
    goto out;
  if (!c->has_size)
    c->size = q_size (img);
  c->has_size = true;
  ok = img_close (&img);
out:
  free (path);
  return ok;
}

/* With commas doubled, so that it can be given to -o again. */
static void
print_value (const char *key, const char *value)
{
  printf (" %s=", key);
  for (; *value; value++) {
    putchar (*value);
    if (*value == ',')
      putchar (',');
  }
}

static void
print_what (const struct img_creation *c)
{
  const struct q_create_options *o = &c->opts;

  printf ("Formatting '%s', fmt=%s", c->filename, c->raw ? "raw" : "qcow2");
  if (c->raw) {
    printf (" size=%llu", (unsigned long long)c->size);
    if (c->preallocation)
      print_value ("preallocation", c->preallocation);
  } else {
    img_encrypt_report (c, print_value);
    printf (" cluster_size=%u extended_l2=%s", 1u << o->cluster_bits,
            o->extended_l2 ? "on" : "off");
    if (c->preallocation)
      print_value ("preallocation", c->preallocation);
    printf (" compression_type=%s%s size=%llu", o->zstd ? "zstd" : "zlib",
            o->data_file_keep ? " keep_data_file=on" : "", (unsigned long long)c->size);
    if (c->compat)
      print_value ("compat", c->compat);
    if (o->backing_file)
      print_value ("backing_file", o->backing_file);
    if (o->backing_format)
      print_value ("backing_fmt", o->backing_format);
    if (o->data_file)
      print_value ("data_file", o->data_file);
    if (o->data_file_raw)
      printf (" data_file_raw=on");
    printf (" lazy_refcounts=%s refcount_bits=%u", o->lazy_refcounts ? "on" : "off",
            o->refcount_bits);
  }
  putchar ('\n');
}

static int
fill_raw (int fd, const struct img_creation *c)
{
  static char zeros[1 << 20];

  if (ftruncate (fd, 0) == -1 || ftruncate (fd, (off_t)c->size) == -1)
    return errno;
  if (c->opts.preallocation == Q_PREALLOC_FALLOC && c->size)
    return posix_fallocate (fd, 0, (off_t)c->size);
  for (uint64_t at = 0; c->opts.preallocation == Q_PREALLOC_FULL && at < c->size;) {
    size_t len = c->size - at < sizeof zeros ? (size_t)(c->size - at) : sizeof zeros;
    ssize_t n = pwrite (fd, zeros, len, (off_t)at);

    if (n == -1 && errno != EINTR)
      return errno;
    at += n > 0 ? (uint64_t)n : 0;
  }
  return !c->unsynced && fsync (fd) == -1 ? errno : 0;
}

/* A raw image is its bytes: nothing for the engine, but for the lock that keeps us from emptying a
 * disk that is in use. */
static int
create_raw (const struct img_creation *c)
{
  struct q_open_options opts;
  struct q_image *lock;
  struct stat st;
  bool existed = stat (c->filename, &st) == 0;
  int fd = open (c->filename, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644), r;

  if (fd == -1)
    return img_error ("%s: cannot create: %s", c->filename, strerror (errno));
  q_open_options_init (&opts);
  opts.format = Q_FORMAT_RAW;
  lock = img_open (c->filename, &opts);
  if (!lock) {
    close (fd);
    return 1;
  }
  if (fstat (fd, &st) == 0 && S_ISBLK (st.st_mode))
    /* Nothing to make: the disk is the device. */
    r = q_size (lock) < c->size ? ENOSPC : 0;
  else
    r = fill_raw (fd, c);
  if (close (fd) == -1 && r == 0)
    r = errno;
  img_close (&lock);
  if (r) {
    img_error ("%s: making it %llu bytes long: %s", c->filename, (unsigned long long)c->size,
               strerror (r));
    if (!existed)
      unlink (c->filename);
  }
  return r ? 1 : 0;
}

/* What to record of the data file: its name as it is given, if whoever looks for that in the
 * image's directory finds the same file, else its absolute name.  *NAME is NULL, or to be freed. */
static bool
choose_data_name (const struct img_creation *c, char **name)
{
  const char *given = c->opts.data_file;
  char *directory;
  bool ok;

  *name = NULL;
  if (!given || *given == '/' || !strchr (c->filename, '/'))
    return true;
  directory = realpath (".", NULL);
  ok = directory && asprintf (name, "%s/%s", directory, given) != -1;
  if (!ok) {
    *name = NULL;
    img_error ("%s: cannot find its absolute name: %s", given, strerror (errno));
  }
  free (directory);
  return ok;
}

bool
img_creation_make (struct img_creation *c)
{
  struct q_error err = { "" };
  char *name = NULL;

  c->size = (c->size + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);
  if (c->raw)
    return create_raw (c) == 0;
  if (!img_encrypt_finish (c) || !choose_data_name (c, &name))
    return false;
  if (c->unsynced)
    c->opts.opener = img_unsynced (c->opts.opener);
  c->opts.data_file_name = name;
  if (q_create (c->filename, c->size, &c->opts, &err) < 0)
    img_error ("%s", err.text);
  free (name);
  c->opts.data_file_name = NULL;
  return !err.text[0];
}

static int
create (struct img_creation *c)
{
  if (c->opts.backing_file && !c->opts.backing_format)
    return img_error ("backing file '%s': say what format it has with -F: a format that is guessed "
                      "later lets a guest choose it",
                      c->opts.backing_file);
  if (c->opts.backing_file && !c->unsafe && !look_at_backing (c))
    return 1;
  if (!c->has_size)
    return img_error ("%s: say how large it is to be%s", c->filename,
                      c->opts.backing_file ? ": with -u the backing file is not asked" : "");
  if (!c->quiet)
    print_what (c);
  return img_creation_make (c) ? 0 : 1;
}

/* ---- the command line ------------------------------------------------------------------------ */

/* FORMAT, BACKING, BACKING_FORMAT: -f, -b, -F, or NULL. */
static int
apply (struct img_creation *c, const struct img_pairs *pairs, const char *format,
       const char *backing, const char *backing_format, int argc, char **argv)
{
  enum q_format f = Q_FORMAT_QCOW2;

  if (format && !img_parse_format (format, &f))
    return 1;
  c->raw = f == Q_FORMAT_RAW;
  if (c->raw && (backing || backing_format))
    return img_error ("a raw image has no backing file");
  for (size_t i = 0; i < pairs->n; i++)
    if (!img_creation_set (c, &pairs->pair[i]))
      return 1;
  if (backing)
    c->opts.backing_file = backing;
  if (backing_format && !set_backing_format (c, backing_format))
    return 1;
  if (argc < 1)
    return img_error ("create: no file name; 'nbdcow-img create --help' says what there is");
  if (argc > 2)
    return img_error ("create: unexpected argument '%s' after FILE and SIZE", argv[2]);
  c->filename = argv[0];
  if (argc == 2 && c->has_size)
    return img_error ("create: the size was given twice, with -o size and as '%s'", argv[1]);
  if (argc == 2 && !set_size (c, argv[1]))
    return 1;
  return create (c);
}

static int
run (int argc, char **argv)
{
  enum { OBJECT = IMG_OPT_LONG };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "backing", required_argument, NULL, 'b' },
                                           { "backing-format", required_argument, NULL, 'F' },
                                           { "backing-unsafe", no_argument, NULL, 'u' },
                                           { "options", required_argument, NULL, 'o' },
                                           { "quiet", no_argument, NULL, 'q' },
                                           { "object", required_argument, NULL, OBJECT },
                                           IMG_COMMON_OPTIONS };
  const char *format = NULL, *backing = NULL, *backing_format = NULL;
  struct img_pairs pairs = { 0 };
  struct q_error err = { "" };
  struct img_creation c;
  int status = 0, letter;

  img_creation_init (&c);
  while ((letter = img_getopt (&img_create_command, argc, argv, ":f:b:B:F:uo:qh", options,
                               &status)) != -1)
    switch (letter) {
    case 'f':
      format = optarg;
      break;
    case 'b':
      backing = optarg;
      break;
    case 'B': /* as in qemu-img since 10.1 */
    case 'F':
      backing_format = optarg;
      break;
    case 'u':
      c.unsafe = true;
      break;
    case 'q':
      c.quiet = true;
      break;
    case 'o':
      if (img_creation_help (optarg, format))
        goto out;
      img_pairs_add (&pairs, optarg);
      break;
    case OBJECT:
      if (objects_add (&img_objects, optarg, &err) < 0) {
        status = img_error ("%s", err.text);
        goto out;
      }
      break;
    default:
      goto out;
    }
  status = apply (&c, &pairs, format, backing, backing_format, argc - optind, argv + optind);
out:
  img_pairs_free (&pairs);
  return status;
}

const struct img_command img_create_command = {
  .name = "create",
  .run = run,
  .summary = "Make an image",
  .synopsis =
      "[-f FORMAT] [-b BACKING -F FORMAT] [-u] [-o OPTIONS] [--object SECRET] [-q] FILE [SIZE]",
  .help = "  -f, --format=FORMAT           qcow2 (default) or raw\n"
          "  -b, --backing=FILE            what the image is an overlay of\n"
          "  -F, -B, --backing-format=FORMAT  what format that has\n"
          "  -u, --backing-unsafe          do not look at the backing file\n"
          "  -o, --options=KEY=VALUE,...   see -o help\n"
          "      --object=secret,...       what encrypt.key-secret refers to\n"
          "  -q, --quiet                   print nothing\n"
          "Without SIZE the image is as large as its backing file.\n",
};
