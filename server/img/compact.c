/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img compact: makes the file of an image as short as what is in it.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "img.h"

struct compacting {
  struct img_spec spec;
  const char *state_dir; /* of q_open_options */
  bool json, progress, quiet;
};

static bool
show_progress (void *opaque, uint64_t done, uint64_t total)
{
  uint64_t *shown = opaque;

  (void)total;
  img_progress_add (done - *shown);
  *shown = done;
  return img_interrupted ();
}

/* An ordinary open and close brings in what a killed server left, and mends what a crash did. */
static bool
settle (const struct img_spec *given, const char *state_dir)
{
  struct q_open_options o;
  struct q_error err = { "" };
  struct q_image *img;
  struct img_spec spec = *given;

  spec.repair = false;
  if (spec.image_opts || !state_dir) {
    img = img_open_spec (&spec);
    return img && img_close (&img);
  }
  q_open_options_init (&o);
  o.format = Q_FORMAT_QCOW2;
  o.metadata_only = true;
  o.state_dir = state_dir;
  if (q_open (&img, spec.name, &o, &err) == 0)
    return img_close (&img);
  img_error ("%s", err.text);
  return false;
}

static bool
print (const struct compacting *c, const struct q_compact_result *r)
{
  char before[32], after[32];

  if (c->json)
    return img_print_json (json_pack ("{s:o, s:I, s:I, s:I}", "filename",
                                      img_json_name (c->spec.name), "moved-clusters",
                                      (json_int_t)r->moved, "end-before", (json_int_t)r->end_before,
                                      "end-after", (json_int_t)r->end_after));
  if (!c->quiet)
    printf ("%llu clusters were moved; the file had %s and has %s.\n", (unsigned long long)r->moved,
            img_size_text (r->end_before, before), img_size_text (r->end_after, after));
  return true;
}

bool
img_compact (const struct img_spec *given, const char *state_dir, bool progress, bool quiet,
             struct q_compact_result *result)
{
  struct img_spec spec = *given;
  struct q_image_info info;
  struct q_error err = { "" };
  struct q_image *img;
  uint64_t shown = 0;
  const struct q_compact_options o = { .progress = show_progress, .opaque = &shown };
  int r;

  if (!settle (&spec, state_dir))
    return false;
  spec.metadata_only = true;
  spec.repair = true;
  img = img_open_spec (&spec);
  if (!img)
    return false;
  q_get_info (img, &info);
  img_catch_signals ();
  /* What can move is not known yet: about as much as the file would get shorter by. */
  img_progress_begin (progress, quiet, info.file_size / q_cluster_size (img));
  r = q_compact (img, &o, result, &err);
  img_progress_end ();
  if (r == -EINTR)
    img_error ("%s: interrupted: it is sound, and some of it has been moved", spec.name);
  else if (r < 0)
    img_error ("%s", err.text);
  return img_close (&img) && r == 0;
}

static int
compact (const struct compacting *c)
{
  struct q_compact_result result = { 0 };

  return img_compact (&c->spec, c->state_dir, c->progress, c->quiet || c->json, &result) &&
                 print (c, &result)
             ? 0
             : 1;
}

/* ---- the command line ------------------------------------------------------------------------ */

static int
run (int argc, char **argv)
{
  enum { OUTPUT = IMG_OPT_LONG, STATE_DIR };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "cache", required_argument, NULL, 't' },
                                           { "output", required_argument, NULL, OUTPUT },
                                           { "state-dir", required_argument, NULL, STATE_DIR },
                                           { "progress", no_argument, NULL, 'p' },
                                           { "quiet", no_argument, NULL, 'q' },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct compacting c = { .state_dir = "" };
  int status = 0, letter;

  while ((letter = img_getopt (&img_compact_command, argc, argv, ":f:t:pqh", options, &status)) !=
         -1)
    switch (letter) {
    case 'f':
      c.spec.format = optarg;
      break;
    case 't':
      c.spec.cache = optarg;
      break;
    case OUTPUT:
      if (!img_parse_output (optarg, &c.json))
        return 1;
      break;
    case STATE_DIR:
      if (optarg[0] != '/' && strcmp (optarg, "off") != 0)
        return img_error ("compact: --state-dir '%s' is neither an absolute name nor off", optarg);
      c.state_dir = optarg[0] == '/' ? optarg : NULL;
      break;
    case 'p':
      c.progress = true;
      break;
    case 'q':
      c.quiet = true;
      break;
    default:
      if (!img_image_option (&c.spec, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1)
    return img_error ("compact: one file name is needed, %d were given", argc - optind);
  if (c.spec.force_share)
    return img_error ("compact: -U is not possible: the image is written");
  c.spec.name = argv[optind];
  c.spec.writable = true;
  c.spec.metadata_only = true;
  c.spec.repair = true;
  return compact (&c);
}

const struct img_command img_compact_command = {
  .name = "compact",
  .run = run,
  .summary = "Make the file as short as what is in it",
  .synopsis = "[-f FORMAT] [-t CACHE] [--output=human|json] [--state-dir=DIR] [-p] [-q] FILE",
  .help = "  -f, --format=FORMAT   qcow2\n"
          "  -t, --cache=MODE      writeback (default), writethrough, none, directsync, unsafe\n"
          "      --output=FORMAT   human (default) or json\n"
          "      --state-dir=DIR   of the server that had the image; off: none\n"
          "  -p, --progress        show how far it is\n"
          "  -q, --quiet           print nothing\n",
};
