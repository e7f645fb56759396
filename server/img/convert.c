/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img convert: copies images into another one, of whatever format.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "convert.h"
#include "create.h"
#include "nbd-file.h"

#define SECTOR         512u
#define DEFAULT_SPARSE 4096u
#define MAX_PARALLEL   16u
#define NBD_THREADS    4u
#define MAX_SPARSE     (16u << 20)

enum { TARGET_OPTS = IMG_OPT_LONG, TARGET_IS_ZERO, SALVAGE, LEVEL, BITMAPS, SKIP_BROKEN };

struct convert_options {
  struct img_spec source; /* but for the name */
  struct img_spec target;
  const char *target_format;
  struct img_pairs pairs;
  const char *backing, *backing_format;
  bool no_create, target_is_zero, offload;
  bool has_sparse;
  struct img_work work;
  uint64_t sparse, threads, level;
  bool compress, salvage;
  bool bitmaps, skip_broken;
  bool help; /* -o help was answered */
};

/* ---- the sources ----------------------------------------------------------------------------- */

static bool
open_sources (struct conversion *c, const struct convert_options *o, char **names, unsigned n)
{
  c->source = calloc (n, sizeof (struct q_image *));
  c->layers = calloc (n, sizeof *c->layers);
  c->start = calloc (n + 1, sizeof *c->start);
  if (!c->source || !c->layers || !c->start) {
    img_error ("out of memory");
    return false;
  }
  for (unsigned i = 0; i < n; i++) {
    struct img_spec spec = o->source;
    uint64_t size;

    spec.name = names[i];
    c->source[i] = img_open_spec (&spec);
    if (!c->source[i])
      return false;
    c->n_sources = i + 1;
    img_layers_init (&c->layers[i], c->source[i]);
    size = (q_size (c->source[i]) + SECTOR - 1) & ~(uint64_t)(SECTOR - 1);
    if (size > INT64_MAX - c->start[i]) {
      img_error ("%s: the images together are larger than a disk can be", names[i]);
      return false;
    }
    c->start[i + 1] = c->start[i] + size;
  }
  return true;
}

/* ---- the target ------------------------------------------------------------------------------ */

/* Whether the file that is NAME has a size of its own, which making an image does not change. */
static bool
is_device (const char *name)
{
  struct stat st;

  return img_is_nbd (name) || (stat (name, &st) == 0 && S_ISBLK (st.st_mode));
}

/* Whether the file NAME can be written, since nothing is read from it. */
static bool
is_free (const struct conversion *c, const char *name)
{
  for (unsigned i = 0; i < c->n_sources; i++)
    if (img_reads (c->source[i], name)) {
      img_error ("%s: cannot be copied to %s, which it is read from", q_filename (c->source[i]),
                 name);
      return false;
    }
  return true;
}

/* Everything that was said about the new image. */
static bool
prepare (struct img_creation *make, struct convert_options *o, uint64_t size)
{
  make->filename = o->target.name;
  make->quiet = true;
  make->unsynced = strcmp (o->target.cache, "unsafe") == 0;
  for (size_t i = 0; i < o->pairs.n; i++)
    if (!img_creation_set (make, &o->pairs.pair[i]))
      return false;
  if (o->backing)
    make->opts.backing_file = o->backing;
  if (o->backing_format)
    make->opts.backing_format = o->backing_format;
  if (make->raw && make->opts.backing_file) {
    img_error ("a raw image has no backing file");
    return false;
  }
  if (make->opts.backing_file && !make->opts.backing_format) {
    img_error ("backing file '%s': say what format it has with -F", make->opts.backing_file);
    return false;
  }
  if (o->compress && make->opts.preallocation != Q_PREALLOC_OFF) {
    img_error ("compression and preallocation cannot be used together");
    return false;
  }
  if (!make->has_size)
    make->size = size;
  make->has_size = true;
  if (make->size < size) {
    img_error ("size=%llu is less than the %llu bytes that are to be copied",
               (unsigned long long)make->size, (unsigned long long)size);
    return false;
  }
  return true;
}

/* Makes the target, unless it is there; says what an unwritten part of it is. */
static bool
make_target (struct conversion *c, struct convert_options *o)
{
  struct img_creation make;
  enum q_format format = Q_FORMAT_RAW;
  bool device = !o->target.image_opts && is_device (o->target.name);
  uint64_t size = c->start[c->n_sources];

  if (o->target_format && !img_parse_format (o->target_format, &format))
    return false;
  if (!o->target.image_opts && !is_free (c, o->target.name))
    return false;
  if (o->no_create) {
    c->reads_zero = o->target_is_zero;
    if (!o->target.image_opts)
      o->target.format = img_format_name (format);
    return true;
  }
  o->target.format = img_format_name (format);
  if (o->compress && format == Q_FORMAT_RAW) {
    img_error ("-c: raw images cannot be compressed: say -O qcow2");
    return false;
  }
  if (o->bitmaps && format == Q_FORMAT_RAW) {
    img_error ("--bitmaps: raw images have no bitmaps: say -O qcow2");
    return false;
  }
  img_creation_init (&make);
  make.raw = format == Q_FORMAT_RAW;
  if (!prepare (&make, o, size) || (make.opts.data_file && !is_free (c, make.opts.data_file)))
    return false;
  c->shares = make.opts.backing_file != NULL;
  c->reads_zero = !c->shares && !(make.raw && device);
  if (c->shares && c->n_sources > 1) {
    img_error ("a backing file makes no sense for several images in a row");
    return false;
  }
  if (img_is_nbd (o->target.name)) {
    make.opts.opener = &img_nbd_opener;
    if (make.raw) /* the export is what it is */
      return true;
  }
  return img_creation_make (&make);
}

static bool
open_target (struct conversion *c, const struct convert_options *o)
{
  struct q_image_info info;
  uint64_t size = c->start[c->n_sources];

  c->target = img_open_spec (&o->target);
  if (!c->target)
    return false;
  q_get_info (c->target, &info);
  if (!is_free (c, q_filename (c->target)) || (info.data_path && !is_free (c, info.data_path)))
    return false;
  if (q_size (c->target) < size) {
    img_error ("%s: its %llu bytes are less than the %llu that are to be copied", o->target.name,
               (unsigned long long)q_size (c->target), (unsigned long long)size);
    return false;
  }
  if (o->bitmaps && q_image_format (c->target) != Q_FORMAT_QCOW2) {
    img_error ("%s: --bitmaps: only qcow2 images have bitmaps: say -O qcow2", o->target.name);
    return false;
  }
  if (c->compress && !q_can_compress (c->target)) {
    img_error ("%s: cannot hold compressed clusters: -c is for qcow2 images that keep their data "
               "themselves",
               o->target.name);
    return false;
  }
  if (c->reads_zero && info.backing_file) {
    img_error ("%s: has a backing file: --target-is-zero cannot be true", o->target.name);
    return false;
  }
  return true;
}

/* ---- all ------------------------------------------------------------------------------------- */

static int
copy (struct conversion *c, const struct convert_options *o)
{
  int r;

  img_work_begin (&o->work, c->start[c->n_sources]);
  r = img_convert_copy (c);
  img_progress_end ();
  if (r == -ENOMEM)
    img_error ("out of memory");
  else if (r == -EINTR)
    img_error ("%s: interrupted: it is not complete: convert again", o->target.name);
  return r ? 1 : 0;
}

/* Into the page cache of one file the kernel lets one writer at a time: threads that would wait for
 * each other there, spinning, wait here. */
static bool
has_one_writer (const struct conversion *c, const struct convert_options *o)
{
  struct stat st;

  return strcmp (o->target.cache, "none") != 0 && strcmp (o->target.cache, "directsync") != 0 &&
         !img_is_nbd (q_filename (c->target)) && stat (q_filename (c->target), &st) == 0 &&
         S_ISREG (st.st_mode);
}

/* Of threads that wait for the network more than for a processor, there can be more. */
static unsigned
choose_threads (const struct convert_options *o, char **names, unsigned n)
{
  bool nbd = img_is_nbd (o->target.name);
  unsigned usual = img_default_threads ();

  for (unsigned i = 0; i < n; i++)
    nbd = nbd || img_is_nbd (names[i]);
  return o->threads ? (unsigned)o->threads : nbd && usual < NBD_THREADS ? NBD_THREADS : usual;
}

static int
convert (struct convert_options *o, char **names, unsigned n)
{
  pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
  struct conversion c = {
    .compress = o->compress,
    .sparse = o->sparse,
    .salvage = o->salvage,
    .threads = choose_threads (o, names, n),
  };
  int status = 1;

  if (open_sources (&c, o, names, n) &&
      (!o->bitmaps || img_convert_check_bitmaps (&c, o->skip_broken)) && make_target (&c, o) &&
      open_target (&c, o)) {
    c.turn = has_one_writer (&c, o) ? &turn : NULL;
    status = copy (&c, o);
  }
  if (status == 0 && o->bitmaps)
    status = img_convert_bitmaps (&c) ? 0 : 1;
  if (!img_close (&c.target))
    status = 1;
  for (unsigned i = 0; i < c.n_sources; i++)
    img_close (&c.source[i]);
  free (c.source);
  free (c.layers);
  free (c.start);
  return status;
}

/* ---- the command line ------------------------------------------------------------------------ */

static bool
check_options (const struct convert_options *o)
{
  if (o->target.image_opts && !o->no_create)
    img_error ("--target-image-opts needs -n: only an image that is there can be described so");
  else if (o->target.image_opts && o->target_format)
    img_error ("--target-image-opts and -O cannot be used together: write driver=%s",
               o->target_format);
  else if (o->target_is_zero && !o->no_create)
    img_error ("--target-is-zero needs -n: of a new image it is known");
  else if (o->offload && (o->has_sparse || o->compress))
    img_error ("-C leaves the contents to the kernel: it cannot be used with -S or -c");
  else if (o->skip_broken && !o->bitmaps)
    img_error ("--skip-broken-bitmaps needs --bitmaps");
  else if (o->level && !o->compress)
    img_error ("--compression-level needs -c");
  else {
    if (o->no_create && o->pairs.n > 0)
      img_warning ("-o has no effect with -n: no image is made");
    if (o->no_create && o->backing)
      img_warning ("-b has no effect with -n: no image is made");
    return true;
  }
  return false;
}

static bool
parse_sparse (struct convert_options *o, const char *text)
{
  if (!img_parse_size ("-S", text, &o->sparse))
    return false;
  o->has_sparse = true;
  if (o->sparse % SECTOR == 0 && o->sparse <= MAX_SPARSE)
    return true;
  img_error ("-S '%s': a multiple of 512, at most 16M, or 0 is wanted", text);
  return false;
}

/* One option; true if it was good. */
static bool
take (struct convert_options *o, int letter, const char *arg)
{
  switch (letter) {
  case 'f':
    o->source.format = arg;
    return true;
  case 'O':
    o->target_format = arg;
    return true;
  case 'o':
    o->help = o->help || img_creation_help (arg, o->target_format ? o->target_format : "raw");
    if (!o->help)
      img_pairs_add (&o->pairs, arg);
    return true;
  case 'b':
  case 'B':
    o->backing = arg;
    return true;
  case 'F':
    o->backing_format = arg;
    return true;
  case 'c':
    return o->compress = true;
  case 'C':
    return o->offload = true;
  case 'W': /* always so */
    return true;
  case 'm':
    return img_parse_number ("-m", arg, 1, MAX_PARALLEL, &o->threads);
  case 'l':
    o->source.snapshot = img_snapshot_name (arg);
    return true;
  case 'S':
    return parse_sparse (o, arg);
  case 'n':
    return o->no_create = true;
  case 't':
    o->target.cache = arg;
    return img_check_cache (arg);
  case 'T':
    o->source.cache = arg;
    return img_check_cache (arg);
  case TARGET_OPTS:
    return o->target.image_opts = true;
  case TARGET_IS_ZERO:
    return o->target_is_zero = true;
  case SALVAGE:
    return o->salvage = true;
  case BITMAPS:
    return o->bitmaps = true;
  case SKIP_BROKEN:
    return o->skip_broken = true;
  case LEVEL:
    return img_parse_number ("--compression-level", arg, 1,
                             (uint64_t)q_compression_max_level (true), &o->level);
  default:
    return false;
  }
}

static int
run (int argc, char **argv)
{
  static const struct option options[] = {
    { "source-format", required_argument, NULL, 'f' },
    { "source-cache", required_argument, NULL, 'T' },
    { "snapshot", required_argument, NULL, 'l' },
    { "bitmaps", no_argument, NULL, BITMAPS },
    { "skip-broken-bitmaps", no_argument, NULL, SKIP_BROKEN },
    { "salvage", no_argument, NULL, SALVAGE },
    { "target-format", required_argument, NULL, 'O' },
    { "target-image-opts", no_argument, NULL, TARGET_OPTS },
    { "target-format-options", required_argument, NULL, 'o' },
    { "target-cache", required_argument, NULL, 't' },
    { "backing", required_argument, NULL, 'b' },
    { "backing-format", required_argument, NULL, 'F' },
    { "sparse-size", required_argument, NULL, 'S' },
    { "no-create", no_argument, NULL, 'n' },
    { "target-is-zero", no_argument, NULL, TARGET_IS_ZERO },
    { "compress", no_argument, NULL, 'c' },
    { "compression-level", required_argument, NULL, LEVEL },
    { "parallel", required_argument, NULL, 'm' },
    { "oob-writes", no_argument, NULL, 'W' },
    { "copy-range-offloading", no_argument, NULL, 'C' },
    IMG_WORK_OPTIONS,
    IMG_IMAGE_OPTIONS,
    IMG_COMMON_OPTIONS
  };
  struct convert_options o = {
    .target = { .cache = "unsafe", .writable = true, .discard = true },
    .sparse = DEFAULT_SPARSE,
  };
  int status = 0, letter;

  while ((letter = img_getopt (&img_convert_command, argc, argv,
                               ":f:O:o:b:B:F:cCWm:l:S:npqr:t:T:Uh", options, &status)) != -1)
    if (!take (&o, letter, optarg)) {
      if (letter == 'h' || letter == '?')
        goto out;
      if (!img_work_option (&o.work, &o.source, letter, &status))
        status = 1; /* take has said why */
      if (status)
        goto out;
    }
  if (o.help)
    goto out;
  status = 1;
  if (argc - optind < 2)
    img_error ("convert: the names of at least two images are needed, %d were given",
               argc - optind);
  else if (check_options (&o)) {
    o.target.name = argv[argc - 1];
    o.target.compression_level = (int)o.level;
    /* One that is made names what the user has named. */
    o.target.untrusted = o.no_create && o.source.untrusted;
    status = convert (&o, argv + optind, (unsigned)(argc - optind - 1));
  }
out:
  img_pairs_free (&o.pairs);
  return status;
}

const struct img_command img_convert_command = {
  .name = "convert",
  .run = run,
  .summary = "Copy images into another one",
  .synopsis = "[-f FORMAT] [-O FORMAT] [-o OPTIONS] [-c] [OPTION...] FILE [FILE...] TARGET",
  .help =
      "  -f, --source-format=FORMAT   of every FILE (default: what it begins with)\n"
      "  -T, --source-cache=MODE      none and directsync read past the page cache\n"
      "  -l, --snapshot=SNAPSHOT      this snapshot of FILE, by id or name\n"
      "      --bitmaps                persistent dirty bitmaps, too\n"
      "      --skip-broken-bitmaps    but not those that were left in use\n"
      "      --salvage                what cannot be read becomes zeros\n"
      "  -O, --target-format=FORMAT   raw (default) or qcow2\n"
      "  -o, --target-format-options=KEY=VALUE,...  as for create\n"
      "  -t, --target-cache=MODE      default: unsafe, nothing is synced\n"
      "      --target-image-opts      TARGET is a description: KEY=VALUE,...; needs -n\n"
      "  -b, -B, --backing=FILE       TARGET becomes an overlay of it: only what is in FILE's\n"
      "                               top layer is copied\n"
      "  -F, --backing-format=FORMAT  what format that has\n"
      "  -S, --sparse-size=SIZE       zeros from this size on are left out (default 4k); 0: all\n"
      "                               is allocated\n"
      "  -n, --no-create              TARGET is there, and is written over\n"
      "      --target-is-zero         and is all zeros\n"
      "  -c, --compress               compressed clusters (qcow2)\n"
      "      --compression-level=N    1 to 12 (zlib) or 22 (zstd)\n"
      "  -m, --parallel=N             threads (default: one for each processor)\n"
      "  -W, --oob-writes             is always so\n"
      "  -r, --rate-limit=RATE        bytes a second\n"
      "  -p, --progress               show how far it is\n"
      "  -q, --quiet                  print nothing but errors\n"
      "  -U, --force-share            also images that are being written\n",
};
