/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img measure: how large the file of an image would be.
 *
 * The numbers are qemu-img's, for whoever reserves a volume and then runs either program on it: an
 * upper bound in which all metadata of the whole disk is counted, whatever is allocated.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "create.h"

#define SECTOR 512u

/* As the format has them. */
#define ENTRY_BYTES        8u  /* of a mapping, refcount or bitmap table */
#define MIN_EXTENDED_BITS  14u /* smaller clusters cannot have extended L2 entries */
#define BITMAP_ENTRY_BYTES 24u /* of the bitmap directory, before the name */
#define MAX_L1_BYTES       (32u << 20)

struct measuring {
  struct img_spec spec;
  struct img_creation target;
  struct q_image *img; /* NULL: only a size was given */
  bool json;
  uint64_t required, full, bitmaps;
  bool has_bitmaps;
};

static uint64_t
up (uint64_t v, uint64_t to)
{
  return v / to * to + (v % to ? to : 0);
}

static uint64_t
div_up (uint64_t v, uint64_t by)
{
  return v / by + (v % by != 0);
}

/* ---- qcow2 ----------------------------------------------------------------------------------- */

/* Clusters of refcount blocks and tables for so many other clusters and themselves. */
static uint64_t
refcount_clusters (uint64_t clusters, uint64_t cluster_size, unsigned refcount_bits)
{
  const uint64_t per_block = cluster_size * 8 / refcount_bits;
  uint64_t blocks = 0, table = 0, before;

  do {
    before = blocks + table;
    blocks = div_up (clusters + before, per_block);
    table = div_up (blocks, cluster_size / ENTRY_BYTES);
  } while (blocks + table != before);
  return before;
}

static uint64_t
l2_entry_bytes (const struct q_create_options *o)
{
  return o->extended_l2 ? 2 * ENTRY_BYTES : ENTRY_BYTES;
}

/* A disk of SIZE bytes, a multiple of the cluster size, with everything allocated. */
static uint64_t
full_size (uint64_t size, uint64_t cluster_size, const struct q_create_options *o)
{
  const uint64_t l2 = up (size / cluster_size * l2_entry_bytes (o), cluster_size);
  const uint64_t l1 = up (l2 / cluster_size, cluster_size / ENTRY_BYTES) * ENTRY_BYTES;
  const uint64_t bytes = cluster_size + l2 + l1 + size;

  return bytes +
         refcount_clusters (bytes / cluster_size, cluster_size, o->refcount_bits) * cluster_size;
}

struct counting {
  uint64_t cluster_size, bytes;
  uint64_t counted; /* what is before this has been dealt with */
};

static int
count_data (void *opaque, const struct img_extent *x)
{
  struct counting *c = opaque;
  uint64_t start = x->offset / c->cluster_size * c->cluster_size;
  uint64_t end = up (x->offset + x->e.len, c->cluster_size);

  if (x->reads_zero || end <= c->counted)
    return 0;
  c->bytes += end - (start > c->counted ? start : c->counted);
  c->counted = end;
  return 0;
}

/* Bytes of whole clusters that hold data. */
static bool
data_bytes (struct measuring *m, uint64_t cluster_size, uint64_t *bytes)
{
  struct counting c = { .cluster_size = cluster_size };
  struct img_layers layers;
  int r;

  img_layers_init (&layers, m->img);
  r = img_walk (&layers, 0, q_size (m->img), count_data, &c);
  if (r < 0)
    img_error ("%s: cannot read the mapping: %s", q_filename (m->img), strerror (-r));
  *bytes = c.bytes;
  return r == 0;
}

static uint64_t
bitmap_bytes (struct q_image *img, uint64_t cluster_size)
{
  struct q_bitmap_info *list;
  uint64_t bytes = 0, directory = 0;
  int n = q_get_bitmaps (img, &list, NULL);

  for (int i = 0; i < n; i++) {
    const struct q_bitmap_info *b = &list[i];
    uint64_t clusters = div_up (div_up (div_up (q_size (img), b->granularity), 8), cluster_size);

    if (b->in_use)
      continue;
    bytes += clusters * cluster_size + up (clusters * ENTRY_BYTES, cluster_size);
    directory += up (BITMAP_ENTRY_BYTES + strlen (b->name), 8);
  }
  free (list);
  return bytes + up (directory, cluster_size);
}

static bool
measure_qcow2 (struct measuring *m)
{
  const struct q_create_options *o = &m->target.opts;
  const uint64_t cluster_size = 1ull << o->cluster_bits;
  const uint64_t size = up (m->target.size, cluster_size);
  const uint64_t l2_entries = cluster_size / l2_entry_bytes (o);
  uint64_t required = size;

  if (o->extended_l2 && o->cluster_bits < MIN_EXTENDED_BITS) {
    img_error ("clusters of %llu bytes are too small for extended L2 entries: at least %u",
               (unsigned long long)cluster_size, 1u << MIN_EXTENDED_BITS);
    return false;
  }
  if (div_up (size / cluster_size, l2_entries) * ENTRY_BYTES > MAX_L1_BYTES) {
    img_error ("a disk of %llu bytes is too large for clusters of %llu: use larger ones",
               (unsigned long long)m->target.size, (unsigned long long)cluster_size);
    return false;
  }
  if (!m->img)
    required = 0;
  else if (!o->backing_file && !data_bytes (m, cluster_size, &required))
    return false;
  if (o->preallocation == Q_PREALLOC_FULL || o->preallocation == Q_PREALLOC_FALLOC)
    required = size;
  m->full = full_size (size, cluster_size, o);
  m->required = m->full - size + required;
  if (m->img && q_image_format (m->img) == Q_FORMAT_QCOW2) {
    struct q_image_info info;

    q_get_info (m->img, &info);
    m->has_bitmaps = info.version >= 3 && o->version >= 3;
    m->bitmaps = bitmap_bytes (m->img, cluster_size);
  }
  return true;
}

/* ---- all ------------------------------------------------------------------------------------- */

static bool
print (const struct measuring *m)
{
  json_t *j;

  if (!m->json) {
    printf ("required size: %llu\nfully allocated size: %llu\n", (unsigned long long)m->required,
            (unsigned long long)m->full);
    if (m->has_bitmaps)
      printf ("bitmaps size: %llu\n", (unsigned long long)m->bitmaps);
    return true;
  }
  j = json_pack ("{s:I, s:I}", "required", (json_int_t)m->required, "fully-allocated",
                 (json_int_t)m->full);
  if (m->has_bitmaps)
    json_object_set_new (j, "bitmaps", json_integer ((json_int_t)m->bitmaps));
  return img_print_json (j);
}

static int
measure (struct measuring *m)
{
  bool ok = true;

  if (m->spec.name) {
    m->img = img_open_spec (&m->spec);
    if (!m->img)
      return 1;
    m->target.size = q_size (m->img);
  }
  m->target.size = up (m->target.size, SECTOR);
  if (m->target.raw)
    m->required = m->full = m->target.size;
  else
    ok = measure_qcow2 (m);
  ok = ok && print (m);
  return img_close (&m->img) && ok ? 0 : 1;
}

/* ---- the command line ------------------------------------------------------------------------ */

static int
apply (struct measuring *m, const struct img_pairs *pairs, const char *format, const char *size,
       int argc, char **argv)
{
  enum q_format f = Q_FORMAT_RAW;

  if (format && !img_parse_format (format, &f))
    return 1;
  m->target.raw = f == Q_FORMAT_RAW;
  for (size_t i = 0; i < pairs->n; i++)
    if (!img_creation_set (&m->target, &pairs->pair[i]))
      return 1;
  if (argc > 1)
    return img_error ("measure: one file name is needed, %d were given", argc);
  if (argc == 1 && size)
    return img_error ("measure: --size=%s and a file name: only one of them can say how large the "
                      "disk is",
                      size);
  if (argc == 0 && !size && !m->target.has_size)
    return img_error ("measure: either a file name or --size is needed");
  if (argc == 0 && (m->spec.format || m->spec.image_opts || m->spec.snapshot))
    return img_error ("measure: -f, -l and --image-opts say something about a file, and there is "
                      "none");
  if (size && !img_parse_size ("--size", size, &m->target.size))
    return 1;
  m->spec.name = argc == 1 ? argv[0] : NULL;
  return measure (m);
}

static int
run (int argc, char **argv)
{
  enum { OUTPUT = IMG_OPT_LONG };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "target-format", required_argument, NULL, 'O' },
                                           { "options", required_argument, NULL, 'o' },
                                           { "snapshot", required_argument, NULL, 'l' },
                                           { "size", required_argument, NULL, 's' },
                                           { "output", required_argument, NULL, OUTPUT },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct measuring m = { .img = NULL };
  struct img_pairs pairs = { 0 };
  const char *format = NULL, *size = NULL;
  int status = 0, letter;

  img_creation_init (&m.target);
  while ((letter = img_getopt (&img_measure_command, argc, argv, ":f:O:o:l:s:Uh", options,
                               &status)) != -1)
    switch (letter) {
    case 'f':
      m.spec.format = optarg;
      break;
    case 'O':
      format = optarg;
      break;
    case 'o':
      if (img_creation_help (optarg, format ? format : "raw"))
        goto out;
      img_pairs_add (&pairs, optarg);
      break;
    case 'l':
      m.spec.snapshot = img_snapshot_name (optarg);
      break;
    case 's':
      size = optarg;
      break;
    case OUTPUT:
      if (!img_parse_output (optarg, &m.json)) {
        status = 1;
        goto out;
      }
      break;
    default:
      if (!img_image_option (&m.spec, letter, &status) || status)
        goto out;
    }
  status = apply (&m, &pairs, format, size, argc - optind, argv + optind);
out:
  img_pairs_free (&pairs);
  return status;
}

const struct img_command img_measure_command = {
  .name = "measure",
  .run = run,
  .summary = "Reckon how large the file of an image would be",
  .synopsis = "[-f FORMAT] [-O FORMAT] [-o OPTIONS] [-l SNAPSHOT] [--output=human|json] [-U] "
              "FILE | --size=SIZE",
  .help = "  -f, --format=FORMAT          of FILE (default: what it begins with)\n"
          "  -O, --target-format=FORMAT   raw (default) or qcow2\n"
          "  -o, --options=KEY=VALUE,...  as for create\n"
          "  -l, --snapshot=SNAPSHOT      this snapshot of FILE, by id or name\n"
          "  -s, --size=SIZE              of an empty disk, instead of FILE\n"
          "      --output=FORMAT          human (default) or json\n"
          "  -U, --force-share            also of an image that is being written\n",
};
