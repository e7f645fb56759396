/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img amend: changes what kind of image an image is, or who can open an encrypted one
 * (encrypt.c): one or the other, so that a failure leaves no doubt about what was done.
 */

#include <stdio.h>
#include <string.h>

#include "encrypt.h"

struct amending {
  struct img_spec spec;
  struct q_amend_options opts;
  bool progress, quiet, force;
  uint64_t reported;
};

/* Progress is counted in these parts of the whole. */
#define PARTS 10000u

static const char option_help[] =
    "Options for -o, format qcow2:\n"
    "  backing_file=NAME        accepted if it says what is so; 'rebase' changes it\n"
    "  backing_fmt=FORMAT       likewise\n"
    "  compat=VERSION           v2 (0.10) or v3 (1.1)\n"
    "  data_file=FILE           what the external data file is called; empty: it is not said\n"
    "  data_file_raw=off        the external data file need not be a raw image any more\n"
    "  lazy_refcounts=on|off    write refcounts late, and count anew after a crash\n"
    "  refcount_bits=N          1, 2, 4, 8, 16, 32 or 64\n"
    "  size=SIZE                of the virtual disk\n"
    "or, to fill or erase a key slot of an encrypted image:\n"
    "  encrypt.state=STATE      active: fill a slot, inactive: erase slots\n"
    "  encrypt.new-secret=ID    what will open the image as well\n"
    "  encrypt.old-secret=ID    erase the slots that this opens\n"
    "  encrypt.keyslot=N        0 to 7 (active, default: the first that is free)\n"
    "  encrypt.iter-time=MS     how long trying it is to take (default 2000)\n";

/* ---- -o -------------------------------------------------------------------------------------- */

static bool
set_compat (struct amending *a, const char *text)
{
  return img_parse_compat (text, &a->opts.version);
}

static bool
set_switch (const char *key, const char *text, int *value)
{
  bool on;

  if (!img_parse_bool (key, text, &on))
    return false;
  *value = on;
  return true;
}

static bool
set_lazy_refcounts (struct amending *a, const char *text)
{
  return set_switch ("lazy_refcounts", text, &a->opts.lazy_refcounts);
}

static bool
set_data_file_raw (struct amending *a, const char *text)
{
  return set_switch ("data_file_raw", text, &a->opts.data_file_raw);
}

static bool
set_data_file (struct amending *a, const char *text)
{
  a->opts.data_file = text;
  return true;
}

static bool
set_backing_file (struct amending *a, const char *text)
{
  a->opts.backing_file = text;
  return true;
}

static bool
set_backing_format (struct amending *a, const char *text)
{
  a->opts.backing_format = text;
  return true;
}

static bool
set_refcount_bits (struct amending *a, const char *text)
{
  return img_parse_refcount_bits (text, &a->opts.refcount_bits);
}

static bool
set_size (struct amending *a, const char *text)
{
  if (!img_parse_size ("size", text, &a->opts.size))
    return false;
  a->opts.size = (a->opts.size + 511) & ~511ull;
  return true;
}

static bool
set_option (struct amending *a, const struct img_pair *p)
{
  static const struct {
    const char *key;
    bool (*set) (struct amending *a, const char *text); /* NULL: only when an image is made */
  } known[] = {
    { "backing_file", set_backing_file },
    { "backing_fmt", set_backing_format },
    { "compat", set_compat },
    { "data_file", set_data_file },
    { "data_file_raw", set_data_file_raw },
    { "lazy_refcounts", set_lazy_refcounts },
    { "refcount_bits", set_refcount_bits },
    { "size", set_size },
    { "cluster_size", NULL },
    { "compression_type", NULL },
    { "extended_l2", NULL },
    { "preallocation", NULL },
  };

  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    if (strcmp (p->key, known[i].key) == 0) {
      if (known[i].set)
        return known[i].set (a, p->value);
      img_error ("option '%s' can only be chosen when an image is made: convert it", p->key);
      return false;
    }
  img_error ("option '%s' is not known; '-o help' lists the options", p->key);
  return false;
}

/* ---- doing it -------------------------------------------------------------------------------- */

static void
report (void *opaque, double done)
{
  struct amending *a = opaque;
  uint64_t now = (uint64_t)(done * PARTS);

  if (now > a->reported) {
    img_progress_add (now - a->reported);
    a->reported = now;
  }
}

static int
amend (struct amending *a)
{
  struct q_error err = { "" };
  struct q_image *img;
  int r;

  a->spec.writable = true;
  img = img_open_spec (&a->spec);
  if (!img)
    return 1;
  if (q_image_format (img) == Q_FORMAT_RAW) {
    img_error ("%s: a raw image has no options that could be amended", q_filename (img));
    img_close (&img);
    return 1;
  }
  a->opts.progress = report;
  a->opts.opaque = a;
  img_progress_begin (a->progress, a->quiet, PARTS);
  r = q_amend (img, &a->opts, &err);
  img_progress_end ();
  if (r < 0)
    img_error ("%s", err.text);
  return img_close (&img) && r == 0 ? 0 : 1;
}

static int
apply (struct amending *a, const struct img_pairs *pairs, int argc, char **argv)
{
  size_t keys = 0;

  if (pairs->n == 0)
    return img_error ("amend: say what to change with -o; '-o help' lists the options");
  for (size_t i = 0; i < pairs->n; i++)
    if (img_encrypt_is_key (pairs->pair[i].key))
      keys++;
    else if (!set_option (a, &pairs->pair[i]))
      return 1;
  if (keys > 0 && keys < pairs->n)
    return img_error ("amend: encrypt.* and other options are changed one after the other: give "
                      "them to two commands");
  if (argc != 1)
    return img_error ("amend: one image is needed, %d were given", argc);
  a->spec.name = argv[0];
  return keys > 0 ? img_encrypt_amend (&a->spec, pairs, a->force) : amend (a);
}

static int
run (int argc, char **argv)
{
  enum { FORCE = IMG_OPT_LONG };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "options", required_argument, NULL, 'o' },
                                           { "cache", required_argument, NULL, 't' },
                                           { "progress", no_argument, NULL, 'p' },
                                           { "quiet", no_argument, NULL, 'q' },
                                           { "force", no_argument, NULL, FORCE },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct amending a = { .progress = false };
  struct img_pairs pairs = { 0 };
  int status = 0, letter;

  q_amend_options_init (&a.opts);
  while ((letter = img_getopt (&img_amend_command, argc, argv, ":f:o:t:pqUh", options, &status)) !=
         -1)
    switch (letter) {
    case 'f':
      a.spec.format = optarg;
      break;
    case 'o':
      if (strcmp (optarg, "help") == 0 || strcmp (optarg, "?") == 0) {
        printf ("%s", option_help);
        goto out;
      }
      img_pairs_add (&pairs, optarg);
      break;
    case 't':
      a.spec.cache = optarg;
      break;
    case 'p':
      a.progress = true;
      break;
    case 'q':
      a.quiet = true;
      break;
    case FORCE:
      a.force = true;
      break;
    default:
      if (!img_image_option (&a.spec, letter, &status) || status)
        goto out;
    }
  status = apply (&a, &pairs, argc - optind, argv + optind);
out:
  img_pairs_free (&pairs);
  return status;
}

const struct img_command img_amend_command = {
  .name = "amend",
  .run = run,
  .summary = "Change what kind of image an image is, or the keys of an encrypted one",
  .synopsis = "[-f FORMAT] [-t CACHE] [--object SECRET] [--force] [-p] [-q] -o OPTIONS FILE",
  .help = "  -f, --format=FORMAT          qcow2\n"
          "      --object=secret,...      what options refer to\n"
          "      --image-opts             FILE is "
          "driver=qcow2,encrypt.key-secret=ID,file.filename=...\n"
          "      --key-file=FILE          the key that opens the image now\n"
          "      --data-file=FILE         its external data file, if the image names another\n"
          "  -o, --options=KEY=VALUE,...  see -o help\n"
          "  -t, --cache=MODE             how the image is opened\n"
          "      --force                  erase a key slot even if it is the last one\n"
          "  -p, --progress               show how far it is\n"
          "  -q, --quiet                  print nothing\n",
};
