/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img recompress: compresses an image anew, where it is.
 *
 * Each cluster is read and written again, as a guest would do it: the engine sees to it that a
 * crash at any moment leaves the cluster as it was or as it will be.  What becomes free is used for
 * what follows, and the file is compacted at the end.
 *
 * An image has one type of compression.  To change it, all that is compressed becomes plain data
 * first, then the header is changed, then it is compressed again: the image is sound in between,
 * and large.  Where there is no room for that, what has become plain is compressed as it was.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

/* What one thread takes at a time, and at least one cluster. */
#define PIECE (4u << 20)

enum what {
  COMPRESSED = 1, /* clusters that are compressed */
  PLAIN = 2,      /* clusters of data that are not */
};

struct recompression {
  struct img_spec spec;
  const char *state_dir;
  const char *type; /* zlib, zstd, or NULL: as it is */
  bool zstd;        /* TYPE is */
  struct img_work work;
  uint64_t level, threads;
  bool all;  /* also what is not compressed */
  bool keep; /* do not compact */
  bool json;

  struct q_image *img;
  struct img_layers layers;
  uint8_t *was; /* a bit for each cluster that was compressed before the type was changed */
  bool expand;  /* make it plain */
  unsigned what;
  _Atomic uint64_t done; /* clusters */
  _Atomic bool full;     /* there was no room */
};

/* ---- what a cluster is ----------------------------------------------------------------------- */

/* Of the clusters of one piece. */
struct look {
  struct recompression *c;
  uint64_t offset;
  uint8_t *kinds; /* bits of enum what, by cluster; FOREIGN: not only that */
};

#define FOREIGN 4u

static int
note_extent (void *opaque, const struct img_extent *x)
{
  struct look *l = opaque;
  const uint64_t cluster = q_cluster_size (l->c->img);
  const bool own = x->e.depth == 0 && !x->absent;
  const unsigned kind = own && x->e.kind == Q_COMPRESSED ? COMPRESSED
                        : own && x->e.kind == Q_DATA     ? PLAIN
                                                         : FOREIGN;

  for (uint64_t i = (x->offset - l->offset) / cluster;
       l->offset + i * cluster < x->offset + x->e.len; i++)
    l->kinds[i] |= (uint8_t)kind;
  return 0;
}

static bool
is_marked (const struct recompression *c, uint64_t cluster)
{
  return c->was && (c->was[cluster / 8] >> cluster % 8 & 1);
}

/* ---- one piece ------------------------------------------------------------------------------- */

/* Clusters in a row, all to be written again. */
static int
rewrite (struct recompression *c, uint8_t *buf, uint64_t offset, uint64_t len)
{
  int r;

  img_rate_pay (len);
  r = q_pread (c->img, buf, offset, len);
  if (r < 0)
    return img_error ("%s: error while reading at byte %llu: %s", c->spec.name,
                      (unsigned long long)offset, strerror (-r));
  r = c->expand ? q_pwrite (c->img, buf, offset, len)
                : q_write_compressed (c->img, buf, offset, len);
  if (r == -ENOSPC) {
    c->full = true; /* said when all threads have ended */
    return 1;
  }
  if (r < 0)
    return img_error ("%s: error while writing at byte %llu: %s", c->spec.name,
                      (unsigned long long)offset, strerror (-r));
  c->done += (len + q_cluster_size (c->img) - 1) / q_cluster_size (c->img);
  return 0;
}

static int
do_piece (void *opaque, uint64_t offset, uint64_t len)
{
  struct recompression *c = opaque;
  const uint64_t cluster = q_cluster_size (c->img), n = (len + cluster - 1) / cluster;
  struct look l = { .c = c, .offset = offset, .kinds = calloc (n, 1) };
  uint8_t *buf = malloc (len);
  int r = l.kinds && buf ? img_walk (&c->layers, offset, len, note_extent, &l) : -ENOMEM;

  if (r < 0)
    r = img_error ("%s: near byte %llu: %s", c->spec.name, (unsigned long long)offset,
                   strerror (-r));
  for (uint64_t i = 0, end; r == 0 && i < n; i = end) {
    const uint64_t number = offset / cluster + i;
    const bool wanted = (l.kinds[i] & c->what) == l.kinds[i] && l.kinds[i] != 0;

    end = i + 1;
    if (!wanted && !(is_marked (c, number) && l.kinds[i] == PLAIN))
      continue;
    while (end < n && l.kinds[end] == l.kinds[i] &&
           (wanted || is_marked (c, offset / cluster + end)))
      end++;
    if (c->expand) /* pieces begin at multiples of eight clusters */
      for (uint64_t k = i; k < end; k++)
        c->was[(offset / cluster + k) / 8] |= (uint8_t)(1u << (offset / cluster + k) % 8);
    r = rewrite (c, buf, offset + i * cluster, (end == n ? len : end * cluster) - i * cluster);
  }
  img_progress_add (len);
  free (l.kinds);
  free (buf);
  return r;
}

/* Writes again what WHAT says. */
static int
do_all (struct recompression *c, unsigned what, bool expand)
{
  const uint64_t eight = 8ull * q_cluster_size (c->img);
  int r;

  c->what = what;
  c->expand = expand;
  img_layers_init (&c->layers, c->img);
  img_work_begin (&c->work, q_size (c->img));
  r = img_for_pieces (q_size (c->img), eight > PIECE ? eight : PIECE, (unsigned)c->threads,
                      do_piece, c);
  img_progress_end ();
  if (r == -EINTR)
    img_error ("%s: interrupted: it is sound, and holds what it held; some of it has been "
               "compressed anew",
               c->spec.name);
  return r;
}

/* ---- the image ------------------------------------------------------------------------------- */

static bool
open_image (struct recompression *c)
{
  c->img = img_open_spec (&c->spec);
  return c->img != NULL;
}

/* Looks at the image, and changes nothing. */
static bool
refuse (const struct recompression *c, uint64_t *end)
{
  struct img_spec spec = c->spec;
  struct q_image_info info;
  struct q_image *img;
  bool raw;

  spec.writable = false;
  spec.force_share = true; /* who opens it for writing minds the locks, and says so */
  img = img_open_spec (&spec);
  if (!img)
    return true;
  q_get_info (img, &info);
  raw = q_image_format (img) == Q_FORMAT_RAW;
  img_close (&img); /* strings of INFO are gone; that there are some is not */
  *end = info.file_size;
  if (raw || info.encryption || info.data_file) {
    img_error (
        "%s: cannot hold compressed clusters: that is for qcow2 images that are not encrypted "
        "and keep their data themselves",
        c->spec.name);
    return true;
  }
  if (info.nb_snapshots) {
    img_error (
        "%s: has %u internal snapshots, which would keep the clusters as they are beside new "
        "ones: delete them first (nbdcow-img snapshot -d), or compress the disk, and with "
        "-l SNAPSHOT each snapshot, to an image of its own (nbdcow-img convert -c)",
        c->spec.name, info.nb_snapshots);
    return true;
  }
  if (c->zstd && info.version < 3) {
    img_error ("%s: zstd needs version 3: nbdcow-img amend -o compat=v3 first", c->spec.name);
    return true;
  }
  return false;
}

/* Another type of compression; all that was compressed is plain then, and noted. */
static int
change_type (struct recompression *c)
{
  struct q_amend_options amend;
  struct q_image_info info;
  struct q_error err = { "" };
  int r;

  q_get_info (c->img, &info);
  if (!c->type || strcmp (c->type, info.compression_type) == 0)
    return 0;
  c->was = calloc (q_size (c->img) / q_cluster_size (c->img) / 8 + 1, 1);
  r = c->was ? do_all (c, COMPRESSED, true) : img_error ("out of memory");
  if (r != 0 && c->full)
    do_all (c, 0, false); /* back */
  if (r != 0)
    return r;
  q_amend_options_init (&amend);
  amend.zstd = c->zstd;
  r = q_amend (c->img, &amend, &err);
  if (r < 0)
    return img_error ("%s", err.text);
  /* How clusters are compressed is settled when an image is opened. */
  return img_close (&c->img) && open_image (c) ? 0 : 1;
}

static int
recompress (struct recompression *c)
{
  struct q_compact_result result = { 0 };
  struct q_image_info info;
  uint64_t end_before;
  int r;

  if (!img_finish_session (&c->spec, c->state_dir) || refuse (c, &end_before) || !open_image (c))
    return 1;
  img_catch_signals ();
  r = change_type (c);
  /* What was compressed before the type was changed is not any more, and noted. */
  if (r == 0)
    r = do_all (c, c->all ? COMPRESSED | PLAIN : c->was ? 0 : COMPRESSED, false);
  if (c->full)
    img_error ("%s: no room left: it is sound and holds what it held; make room on its file system "
               "and do this again, or convert -c it to where there is room",
               c->spec.name);
  if (!img_close (&c->img))
    r = 1;
  free (c->was);
  if (r == 0 && !c->keep)
    r = img_compact (&c->spec, c->state_dir, &c->work, &result) ? 0 : 1;
  else if (r == 0 && open_image (c)) {
    q_get_info (c->img, &info);
    result.end_after = info.file_size;
    img_close (&c->img);
  }
  result.end_before = end_before;
  return r == 0 && img_print_shorter (c->spec.name, "rewritten-clusters", "written anew", c->done,
                                      &result, c->json, c->work.quiet)
             ? 0
             : 1;
}

/* ---- the command line ------------------------------------------------------------------------ */

enum { OUTPUT = IMG_OPT_LONG, STATE_DIR, LEVEL, TYPE, ALL, NO_COMPACT };

/* One option; true if it was good. */
static bool
take (struct recompression *c, int letter, const char *arg)
{
  switch (letter) {
  case 'f':
    c->spec.format = arg;
    return true;
  case 't':
    c->spec.cache = arg;
    return img_check_cache (arg);
  case 'm':
    return img_parse_number ("-m", arg, 1, 64, &c->threads);
  case ALL:
    return c->all = true;
  case NO_COMPACT:
    return c->keep = true;
  case OUTPUT:
    return img_parse_output (arg, &c->json);
  case LEVEL:
    return img_parse_number ("--compression-level", arg, 1,
                             (uint64_t)q_compression_max_level (true), &c->level);
  case TYPE:
    c->type = arg;
    return img_parse_compression ("--type", arg, &c->zstd);
  case STATE_DIR:
    return img_parse_state_dir (arg, &c->state_dir);
  default:
    return false;
  }
}

static int
run (int argc, char **argv)
{
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "cache", required_argument, NULL, 't' },
                                           { "type", required_argument, NULL, TYPE },
                                           { "compression-level", required_argument, NULL, LEVEL },
                                           { "all", no_argument, NULL, ALL },
                                           { "no-compact", no_argument, NULL, NO_COMPACT },
                                           { "parallel", required_argument, NULL, 'm' },
                                           { "output", required_argument, NULL, OUTPUT },
                                           { "state-dir", required_argument, NULL, STATE_DIR },
                                           IMG_WORK_OPTIONS,
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct recompression c = { .state_dir = "" };
  int status = 0, letter;

  while ((letter = img_getopt (&img_recompress_command, argc, argv, ":f:t:m:r:pqUh", options,
                               &status)) != -1)
    if (!take (&c, letter, optarg)) {
      if (letter == 'h' || letter == '?')
        return status;
      if (!img_work_option (&c.work, &c.spec, letter, &status))
        return 1; /* take has said why */
      if (status)
        return status;
    }
  if (argc - optind != 1)
    return img_error ("recompress: one file name is needed, %d were given", argc - optind);
  if (c.spec.force_share)
    return img_error ("recompress: -U is not possible: the image is written");
  c.work.quiet |= c.json;
  c.spec.name = argv[optind];
  c.spec.compression_level = (int)c.level;
  c.spec.writable = true;
  c.spec.metadata_only = true;
  c.spec.discard = true;
  return recompress (&c);
}

const struct img_command img_recompress_command = {
  .name = "recompress",
  .run = run,
  .summary = "Compress an image anew, where it is",
  .synopsis = "[-f FORMAT] [--type=zlib|zstd] [--compression-level=N] [--all] [OPTION...] FILE",
  .help = "  -f, --format=FORMAT   qcow2\n"
          "      --type=TYPE       zlib or zstd (default: as it is)\n"
          "      --compression-level=N  1 to 12 (zlib) or 22 (zstd)\n"
          "      --all             also clusters that are not compressed\n"
          "      --no-compact      do not make the file as short as what is in it\n"
          "  -t, --cache=MODE      writeback (default), writethrough, none, directsync, unsafe\n"
          "  -m, --parallel=N      threads (default: one for each processor)\n"
          "  -r, --rate-limit=RATE bytes a second\n"
          "      --output=FORMAT   human (default) or json\n"
          "      --state-dir=DIR   of the server that had the image; off: none\n"
          "  -p, --progress        show how far it is\n"
          "  -q, --quiet           print nothing\n",
};
