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
  const char *state_dir; /* of img_finish_session */
  struct img_work work;
  bool json;
};

/* What was told of the work so far. */
struct showing {
  uint64_t done, cluster;
};

static bool
show_progress (void *opaque, uint64_t done, uint64_t total)
{
  struct showing *s = opaque;

  (void)total;
  img_progress_add (done - s->done);
  img_rate_pay ((done - s->done) * s->cluster);
  s->done = done;
  return img_interrupted ();
}

/* An ordinary open and close brings in what a killed server left, and mends what a crash did. */
static bool
settle (const struct img_spec *given, const char *state_dir)
{
  struct img_spec spec = *given;
  struct q_image *img;

  spec.repair = false;
  if (!img_finish_session (&spec, state_dir))
    return false;
  img = img_open_spec (&spec);
  return img && img_close (&img);
}

bool
img_print_shorter (const char *name, const char *key, const char *what, uint64_t n,
                   const struct q_compact_result *r, bool json, bool quiet)
{
  char before[32], after[32];

  if (json)
    return img_print_json (json_pack ("{s:o, s:I, s:I, s:I}", "filename", img_json_name (name), key,
                                      (json_int_t)n, "end-before", (json_int_t)r->end_before,
                                      "end-after", (json_int_t)r->end_after));
  if (!quiet)
    printf ("%llu clusters were %s; the file had %s and has %s.\n", (unsigned long long)n, what,
            img_size_text (r->end_before, before), img_size_text (r->end_after, after));
  return true;
}

bool
img_compact (const struct img_spec *given, const char *state_dir, const struct img_work *work,
             struct q_compact_result *result)
{
  struct img_spec spec = *given;
  struct q_image_info info;
  struct q_error err = { "" };
  struct q_image *img;
  struct showing showing = { 0 };
  const struct q_compact_options o = { .progress = show_progress, .opaque = &showing };
  int r;

  if (!settle (&spec, state_dir))
    return false;
  spec.metadata_only = true;
  spec.repair = true;
  img = img_open_spec (&spec);
  if (!img)
    return false;
  q_get_info (img, &info);
  showing.cluster = q_cluster_size (img);
  /* What can move is not known yet: about as much as the file would get shorter by. */
  img_work_begin (work, info.file_size / showing.cluster);
  r = q_compact (img, &o, result, &err);
  if (r == 0 && showing.done < info.file_size / showing.cluster) /* the rest stays where it is */
    img_progress_add (info.file_size / showing.cluster - showing.done);
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

  return img_compact (&c->spec, c->state_dir, &c->work, &result) &&
                 img_print_shorter (c->spec.name, "moved-clusters", "moved", result.moved, &result,
                                    c->json, c->work.quiet)
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
                                           IMG_WORK_OPTIONS,
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct compacting c = { .state_dir = "" };
  int status = 0, letter;

  while ((letter = img_getopt (&img_compact_command, argc, argv, ":f:t:r:pqh", options, &status)) !=
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
      if (!img_parse_state_dir (optarg, &c.state_dir))
        return 1;
      break;
    default:
      if (!img_work_option (&c.work, &c.spec, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1)
    return img_error ("compact: one file name is needed, %d were given", argc - optind);
  if (c.spec.force_share)
    return img_error ("compact: -U is not possible: the image is written");
  c.work.quiet |= c.json;
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
  .synopsis =
      "[-f FORMAT] [-t CACHE] [--output=human|json] [--state-dir=DIR] [-r RATE] [-p] [-q] FILE",
  .help = "  -f, --format=FORMAT   qcow2\n"
          "  -t, --cache=MODE      writeback (default), writethrough, none, directsync, unsafe\n"
          "      --output=FORMAT   human (default) or json\n"
          "      --state-dir=DIR   of the server that had the image; off: none\n"
          "  -r, --rate-limit=RATE bytes a second that are moved\n"
          "  -p, --progress        show how far it is\n"
          "  -q, --quiet           print nothing\n",
};
