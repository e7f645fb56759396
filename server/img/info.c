/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img info: what an image is, and what the images below it are.
 *
 * Only metadata is read and no lock is taken or minded, so an image that is in use can be looked
 * at; what changes meanwhile is shown as it was at some moment.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <unistd.h>

#include "encrypt.h"
#include "nbd-file.h"

/* What is to be shown. */
struct view {
  bool limits;
  bool direct; /* the image is opened past the page cache */
};

/* What --limits shows: in which units an image, or its file, takes requests.  0: no such limit. */
struct limits {
  unsigned zeroes, discard, request, memory, best_memory, iov;
};

/* DIRECT: past the page cache.  For the file below IMG if FILE. */
static struct limits
limits_of (struct q_image *img, bool file, bool direct)
{
  const bool qcow2 = !file && q_image_format (img) == Q_FORMAT_QCOW2;
  struct q_image_info info;

  q_get_info (img, &info);
  return (struct limits){
    .zeroes = qcow2 ? q_allocation_size (img) : 0,
    .discard = qcow2 ? q_cluster_size (img) : 0,
    .request = (direct && !qcow2) || (qcow2 && info.encryption) ? 512 : 1,
    .memory = direct ? 512 : 1,
    .best_memory = (unsigned)sysconf (_SC_PAGESIZE),
    .iov = (unsigned)sysconf (_SC_IOV_MAX),
  };
}

/* What QEMU calls what the bytes of a file come from. */
static const char *
protocol_of (const char *filename)
{
  struct stat st;

  if (img_is_nbd (filename))
    return "nbd";
  return stat (filename, &st) == 0 && S_ISBLK (st.st_mode) ? "host_device" : "file";
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static json_t *
snapshots_json (const struct q_image *img)
{
  json_t *list = json_array ();
  struct q_snapshot_info *all;
  int n = q_get_snapshots (img, &all);

  for (int i = 0; i < n; i++) {
    const struct q_snapshot_info s = all[i];
    json_t *j = json_object ();

    if (s.icount != -1)
      json_object_set_new (j, "icount", json_integer (s.icount));
    json_object_set_new (j, "vm-clock-nsec",
                         json_integer ((json_int_t)(s.vm_clock_nsec % 1000000000)));
    json_object_set_new (j, "name", img_json_name (s.name));
    json_object_set_new (j, "date-sec", json_integer (s.date_sec));
    json_object_set_new (j, "date-nsec", json_integer (s.date_nsec));
    json_object_set_new (j, "vm-clock-sec",
                         json_integer ((json_int_t)(s.vm_clock_nsec / 1000000000)));
    json_object_set_new (j, "id", img_json_name (s.id));
    json_object_set_new (j, "vm-state-size", json_integer ((json_int_t)s.vm_state_size));
    json_array_append_new (list, j);
  }
  free (all);
  return list;
}

/* What QEMU calls a bitmap's flags. */
struct flag {
  const char *name;
  bool set;
};
#define N_FLAGS 2

static void
bitmap_flags (const struct q_bitmap_info *b, struct flag flags[N_FLAGS])
{
  flags[0] = (struct flag){ "in-use", b->in_use };
  flags[1] = (struct flag){ "auto", b->automatic };
}

/* Their number; what is wrong with the list is said, and then there are none. */
static int
list_bitmaps (struct q_image *img, struct q_bitmap_info **all)
{
  struct q_error err = { "" };
  int n = q_get_bitmaps (img, all, &err);

  if (n < 0)
    img_warning ("%s", err.text);
  return n;
}

static json_t *
bitmaps_json (struct q_image *img)
{
  json_t *list = json_array ();
  struct q_bitmap_info *all;
  int n = list_bitmaps (img, &all);

  for (int i = 0; i < n; i++) {
    const struct q_bitmap_info b = all[i];
    json_t *names = json_array ();
    struct flag flags[N_FLAGS];

    bitmap_flags (&b, flags);
    for (unsigned k = 0; k < N_FLAGS; k++)
      if (flags[k].set)
        json_array_append_new (names, json_string (flags[k].name));
    json_array_append_new (list, json_pack ("{s:o, s:o, s:I}", "flags", names, "name",
                                            img_json_name (b.name), "granularity",
                                            (json_int_t)b.granularity));
  }
  free (all);
  return list;
}

static json_t *
specific_json (struct q_image *img, const struct q_image_info *info)
{
  json_t *data = json_object (), *encrypt;

  json_object_set_new (data, "compat", json_string (info->version == 2 ? "0.10" : "1.1"));
  json_object_set_new (data, "compression-type", json_string (info->compression_type));
  if (info->version >= 3) {
    json_object_set_new (data, "lazy-refcounts", json_boolean (info->lazy_refcounts));
    if (info->nb_bitmaps)
      json_object_set_new (data, "bitmaps", bitmaps_json (img));
    json_object_set_new (data, "refcount-bits", json_integer (info->refcount_bits));
    json_object_set_new (data, "corrupt", json_boolean (info->corrupt));
    json_object_set_new (data, "extended-l2", json_boolean (info->extended_l2));
    if (info->data_file) {
      json_object_set_new (data, "data-file", img_json_name (info->data_file));
      json_object_set_new (data, "data-file-raw", json_boolean (info->data_file_raw));
    }
  } else
    json_object_set_new (data, "refcount-bits", json_integer (info->refcount_bits));
  if (info->encryption && (encrypt = img_encrypt_json (img)) != NULL)
    json_object_set_new (data, "encrypt", encrypt);
  json_object_set_new (data, "highest-allocated-offset",
                       json_integer ((json_int_t)info->highest_offset));
  return json_pack ("{s:s, s:o}", "type", "qcow2", "data", data);
}

static json_t *
limits_json (const struct limits *l)
{
  json_t *j = json_object ();

  if (l->zeroes)
    json_object_set_new (j, "write-zeroes-alignment", json_integer (l->zeroes));
  if (l->discard)
    json_object_set_new (j, "discard-alignment", json_integer (l->discard));
  json_object_set_new (j, "request-alignment", json_integer (l->request));
  json_object_set_new (j, "min-mem-alignment", json_integer (l->memory));
  json_object_set_new (j, "opt-mem-alignment", json_integer (l->best_memory));
  json_object_set_new (j, "max-iov", json_integer (l->iov));
  return j;
}

static json_t *
children_json (struct q_image *img, const struct q_image_info *info, const struct view *view)
{
  const char *protocol = protocol_of (q_filename (img));
  const struct limits limits = limits_of (img, true, view->direct);
  json_t *file =
      json_pack ("{s:[], s:I, s:o, s:s, s:I, s:{s:s, s:{}}, s:b}", "children", "virtual-size",
                 (json_int_t)info->file_size, "filename", img_json_name (q_filename (img)),
                 "format", protocol, "actual-size", (json_int_t)info->actual_size,
                 "format-specific", "type", protocol, "data", "dirty-flag", 0);

  if (view->limits)
    json_object_set_new (file, "limits", limits_json (&limits));
  return json_pack ("[{s:s, s:o}]", "name", "file", "info", file);
}

static json_t *
layer_json (struct q_image *img, const struct view *view)
{
  const struct limits limits = limits_of (img, false, view->direct);
  json_t *j = json_object ();
  struct q_image_info info;

  q_get_info (img, &info);
  if (view->limits)
    json_object_set_new (j, "limits", limits_json (&limits));
  json_object_set_new (j, "children", children_json (img, &info, view));
  json_object_set_new (j, "filename", img_json_name (q_filename (img)));
  json_object_set_new (j, "format", json_string (img_format_name (q_image_format (img))));
  json_object_set_new (j, "virtual-size", json_integer ((json_int_t)info.virtual_size));
  json_object_set_new (j, "actual-size", json_integer ((json_int_t)info.actual_size));
  json_object_set_new (j, "dirty-flag", json_boolean (info.dirty));
  if (q_image_format (img) == Q_FORMAT_RAW)
    return j;

  json_object_set_new (j, "cluster-size", json_integer (q_cluster_size (img)));
  json_object_set_new (j, "highest-allocated-offset",
                       json_integer ((json_int_t)info.highest_offset));
  if (info.encryption)
    json_object_set_new (j, "encrypted", json_true ());
  if (info.backing_file) {
    json_object_set_new (j, "backing-filename", img_json_name (info.backing_file));
    if (info.backing_path)
      json_object_set_new (j, "full-backing-filename", img_json_name (info.backing_path));
    if (info.backing_format)
      json_object_set_new (j, "backing-filename-format", img_json_name (info.backing_format));
  }
  if (info.nb_snapshots)
    json_object_set_new (j, "snapshots", snapshots_json (img));
  json_object_set_new (j, "format-specific", specific_json (img, &info));
  return j;
}

/* ---- text ------------------------------------------------------------------------------------ */

static void
print_snapshots (const struct q_image *img)
{
  struct q_snapshot_info *all;
  int n = q_get_snapshots (img, &all);

  printf ("Snapshot list:\n%-9s %-16s %8s %19s %12s %10s\n", "ID", "TAG", "VM SIZE", "DATE",
          "VM CLOCK", "ICOUNT");
  for (int i = 0; i < n; i++) {
    const struct q_snapshot_info s = all[i];
    uint64_t clock = s.vm_clock_nsec / 1000000000;
    time_t date = s.date_sec;
    char when[32] = "", size[32], icount[32] = "";
    struct tm tm;

    if (localtime_r (&date, &tm))
      strftime (when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
    if (s.icount != -1)
      snprintf (icount, sizeof icount, "%lld", (long long)s.icount);
    printf ("%-9s %-16s %8s %19s %02u:%02u:%02u.%03u %10s\n", img_plain (s.id), img_plain (s.name),
            img_size_text (s.vm_state_size, size), when, (unsigned)(clock / 3600),
            (unsigned)(clock / 60 % 60), (unsigned)(clock % 60),
            (unsigned)(s.vm_clock_nsec / 1000000 % 1000), icount);
  }
  free (all);
}

static const char *
yes_no (bool b)
{
  return b ? "true" : "false";
}

static void
print_bitmaps (struct q_image *img)
{
  struct q_bitmap_info *all;
  int n_all = list_bitmaps (img, &all);

  printf ("    bitmaps:\n");
  for (int i = 0; i < n_all; i++) {
    const struct q_bitmap_info b = all[i];
    struct flag flags[N_FLAGS];
    unsigned n = 0;

    bitmap_flags (&b, flags);
    printf ("        [%d]:\n            flags:\n", i);
    for (unsigned k = 0; k < N_FLAGS; k++)
      if (flags[k].set)
        printf ("                [%u]: %s\n", n++, flags[k].name);
    printf ("            name: %s\n            granularity: %llu\n", img_plain (b.name),
            (unsigned long long)b.granularity);
  }
  free (all);
}

static void
print_specific (struct q_image *img, const struct q_image_info *info)
{
  printf ("Format specific information:\n"
          "    compat: %s\n"
          "    compression type: %s\n",
          info->version == 2 ? "0.10" : "1.1", info->compression_type);
  if (info->version >= 3)
    printf ("    lazy refcounts: %s\n", yes_no (info->lazy_refcounts));
  if (info->nb_bitmaps)
    print_bitmaps (img);
  printf ("    refcount bits: %u\n", info->refcount_bits);
  if (info->encryption)
    img_encrypt_text (img);
  if (info->version >= 3)
    printf ("    corrupt: %s\n", yes_no (info->corrupt));
  if (info->data_file)
    printf ("    data file: %s\n    data file raw: %s\n", img_plain (info->data_file),
            yes_no (info->data_file_raw));
  if (info->version >= 3)
    printf ("    extended l2: %s\n", yes_no (info->extended_l2));
  printf ("    highest allocated offset: %llu\n", (unsigned long long)info->highest_offset);
}

static void
print_limits (struct q_image *img, bool file, const struct view *view)
{
  const struct limits l = limits_of (img, file, view->direct);
  const int indent = file ? 4 : 0;

  if (!view->limits)
    return;
  printf ("%*sBlock limits:\n", indent, "");
  if (l.zeroes)
    printf ("%*s    write zeroes alignment: %u\n", indent, "", l.zeroes);
  printf ("%*s    request alignment: %u\n", indent, "", l.request);
  printf ("%*s    min mem alignment: %u\n", indent, "", l.memory);
  if (l.discard)
    printf ("%*s    discard alignment: %u\n", indent, "", l.discard);
  printf ("%*s    opt mem alignment: %u\n", indent, "", l.best_memory);
  printf ("%*s    max iov: %u\n", indent, "", l.iov);
}

static void
print_file (struct q_image *img, const struct q_image_info *info, const struct view *view)
{
  char text[32];

  printf ("Child node '/file':\n    filename: %s\n    protocol type: %s\n",
          img_plain (q_filename (img)), protocol_of (q_filename (img)));
  printf ("    file length: %s (%llu bytes)\n", img_size_text (info->file_size, text),
          (unsigned long long)info->file_size);
  printf ("    disk size: %s\n", img_size_text (info->actual_size, text));
  print_limits (img, true, view);
}

static void
print_format (struct q_image *img, const struct view *view)
{
  struct q_image_info info;
  char text[32];

  q_get_info (img, &info);
  printf ("image: %s\n", img_plain (q_filename (img)));
  printf ("file format: %s\n", img_format_name (q_image_format (img)));
  printf ("virtual size: %s (%llu bytes)\n", img_size_text (info.virtual_size, text),
          (unsigned long long)info.virtual_size);
  printf ("disk size: %s\n", img_size_text (info.actual_size, text));
  if (info.encryption)
    printf ("encrypted: yes\n");
  if (q_image_format (img) == Q_FORMAT_RAW) {
    print_limits (img, false, view);
    return;
  }
  printf ("cluster_size: %u\n", q_cluster_size (img));
  if (info.dirty)
    printf ("cleanly shut down: no\n");
  if (info.backing_file) {
    printf ("backing file: %s", img_plain (info.backing_file));
    if (info.backing_path && strcmp (info.backing_file, info.backing_path) != 0)
      printf (" (actual path: %s)", img_plain (info.backing_path));
    putchar ('\n');
    if (info.backing_format)
      printf ("backing file format: %s\n", img_plain (info.backing_format));
  }
  if (info.nb_snapshots)
    print_snapshots (img);
  print_limits (img, false, view);
  print_specific (img, &info);
}

static void
print_layer (struct q_image *img, const struct view *view)
{
  struct q_image_info info;

  print_format (img, view);
  q_get_info (img, &info);
  print_file (img, &info, view);
}

/* ---- the chain ------------------------------------------------------------------------------- */

struct chain {
  struct view view;
  bool whole, json;
  json_t *layers;
  unsigned depth;
  struct {
    dev_t dev;
    ino_t ino;
  } seen[Q_MAX_CHAIN];
};

/* False, and reported, if FILENAME is already in the chain or one too many. */
static bool
note (struct chain *chain, const char *filename)
{
  struct stat st;

  if (chain->depth == Q_MAX_CHAIN) {
    img_error ("%s: the chain of backing files has more than %u layers", filename, Q_MAX_CHAIN);
    return false;
  }
  if (stat (filename, &st) == -1)
    memset (&st, 0, sizeof st); /* opening it has said, or will say, why */
  else
    for (unsigned i = 0; i < chain->depth; i++)
      if (chain->seen[i].dev == st.st_dev && chain->seen[i].ino == st.st_ino) {
        img_error ("%s: is its own backing file, directly or through others: the chain is a loop",
                   filename);
        return false;
      }
  chain->seen[chain->depth].dev = st.st_dev;
  chain->seen[chain->depth].ino = st.st_ino;
  chain->depth++;
  return true;
}

/* Shows the layer that SPEC names.  *NEXT is the path of the one below, to be freed, or NULL;
 * *FORMAT its format, *RECORDED how it is opened.
 */
static bool
show (struct chain *chain, const struct img_spec *spec, enum q_format *format, char **next,
      unsigned *recorded)
{
  struct q_image_info info;
  struct q_image *img;
  bool ok = true;

  *next = NULL;
  img = img_open_spec (spec);
  if (!img || !note (chain, q_filename (img))) {
    img_close (&img);
    return false;
  }
  if (chain->json)
    json_array_append_new (chain->layers, layer_json (img, &chain->view));
  else {
    if (chain->depth > 1)
      putchar ('\n');
    print_layer (img, &chain->view);
  }
  q_get_info (img, &info);
  if (chain->whole && info.backing_file) {
    struct img_spec below;
    int r = img_follow (img, spec, &below, next);

    *format = Q_FORMAT_AUTO;
    *recorded = r == 0 ? below.recorded : 0;
    ok = r == -ENOENT || (r == 0 && (!below.format || img_parse_format (below.format, format)));
  }
  return img_close (&img) && ok;
}

static int
info (struct chain *chain, const struct img_spec *top)
{
  struct img_spec spec = *top;
  enum q_format format = Q_FORMAT_AUTO;
  char *name = NULL, *next;
  unsigned recorded = 0;
  bool ok;

  chain->layers = chain->json ? json_array () : NULL;
  for (ok = show (chain, &spec, &format, &next, &recorded); ok && next;
       ok = show (chain, &spec, &format, &next, &recorded)) {
    free (name);
    name = next;
    spec.name = name;
    spec.recorded = recorded;
    spec.image_opts = false;
    spec.format = format == Q_FORMAT_AUTO ? NULL : img_format_name (format);
  }
  free (name);
  free (next);
  if (!ok) {
    json_decref (chain->layers);
    return 1;
  }
  if (!chain->json)
    return 0;
  if (chain->whole)
    return img_print_json (chain->layers) ? 0 : 1;

  json_t *only = json_incref (json_array_get (chain->layers, 0));

  json_decref (chain->layers);
  return img_print_json (only) ? 0 : 1;
}

/* ---- the command line ------------------------------------------------------------------------ */

static int
run (int argc, char **argv)
{
  enum { OUTPUT = IMG_OPT_LONG, BACKING_CHAIN, LIMITS };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "output", required_argument, NULL, OUTPUT },
                                           { "backing-chain", no_argument, NULL, BACKING_CHAIN },
                                           { "cache", required_argument, NULL, 't' },
                                           { "limits", no_argument, NULL, LIMITS },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct img_spec spec = { 0 };
  struct chain chain = { 0 };
  int status = 0, letter;

  while ((letter = img_getopt (&img_info_command, argc, argv, ":f:t:Uh", options, &status)) != -1)
    switch (letter) {
    case 'f':
      spec.format = optarg;
      break;
    case OUTPUT:
      if (!img_parse_output (optarg, &chain.json))
        return 1;
      break;
    case 't':
      if (!img_check_cache (optarg))
        return 1;
      spec.cache = optarg;
      chain.view.direct = strcmp (optarg, "none") == 0 || strcmp (optarg, "directsync") == 0;
      break;
    case LIMITS:
      chain.view.limits = true;
      break;
    case BACKING_CHAIN:
      chain.whole = true;
      break;
    default:
      if (!img_image_option (&spec, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1)
    return img_error ("info: one file name is needed, %d were given", argc - optind);
  spec.name = argv[optind];
  spec.force_share = true; /* always so */
  spec.metadata_only = true;
  return info (&chain, &spec);
}

const struct img_command img_info_command = {
  .name = "info",
  .run = run,
  .summary = "Show what an image is",
  .synopsis = "[-f FORMAT] [-t CACHE] [--output=human|json] [--backing-chain] [--limits] [-U] FILE",
  .help = "  -f, --format=FORMAT     qcow2 or raw (default: what the file begins with)\n"
          "      --output=FORMAT     human (default) or json\n"
          "  -t, --cache=MODE        with --limits: writeback (default), none, ...\n"
          "      --limits            also in which units requests are taken\n"
          "      --backing-chain     also show the backing file, its backing file, and so on\n"
          "  -U, --force-share       accepted; an image in use is always shown\n",
};
