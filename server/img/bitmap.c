/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img bitmap: adds, removes and changes persistent dirty bitmaps.
 *
 * What the command line asks for is one change of the image: all of it is done, or nothing.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"

enum { OPT_ADD = IMG_OPT_LONG, REMOVE, REMOVE_ALL, CLEAR, ENABLE, DISABLE, MERGE, STATE_DIR };

struct job {
  struct img_spec spec, source;
  const char *state_dir, *bitmap;
  uint64_t granularity;
  struct step {
    int letter;
    const char *source;
  } * step;
  unsigned n;
  bool add, merge, remove_all, others;
};

struct q_bitmap_info *
img_list_bitmaps (struct q_image *img, unsigned *n)
{
  struct q_bitmap_info *list;
  struct q_error err = { "" };
  int r = q_get_bitmaps (img, &list, &err);

  if (r < 0)
    img_error ("%s", err.text);
  *n = r < 0 ? 0 : (unsigned)r;
  return list;
}

static const enum q_bitmap_op ops[] = {
  [0] = Q_BITMAP_ADD,
  [REMOVE - OPT_ADD] = Q_BITMAP_REMOVE,
  [CLEAR - OPT_ADD] = Q_BITMAP_CLEAR,
  [ENABLE - OPT_ADD] = Q_BITMAP_ENABLE,
  [DISABLE - OPT_ADD] = Q_BITMAP_DISABLE,
  [MERGE - OPT_ADD] = Q_BITMAP_MERGE,
};

/* The steps as actions.  --remove-all is as many as there are bitmaps by then: those of the image,
 * and NAME if it was added before. */
static unsigned
make_actions (const struct job *j, struct q_image *source, const struct q_bitmap_info *had,
              unsigned n_had, struct q_bitmap_action *a)
{
  bool gone = false, named = false; /* all that the image had; the bitmap that is dealt with */
  unsigned n = 0;

  for (unsigned i = 0; j->bitmap && i < n_had; i++)
    named = named || strcmp (had[i].name, j->bitmap) == 0;
  for (unsigned i = 0; i < j->n; i++) {
    const struct step *s = &j->step[i];

    if (s->letter == REMOVE_ALL) {
      for (unsigned k = 0; !gone && k < n_had; k++)
        if (!j->bitmap || strcmp (had[k].name, j->bitmap) != 0)
          a[n++] = (struct q_bitmap_action){ .op = Q_BITMAP_REMOVE, .name = had[k].name };
      if (named)
        a[n++] = (struct q_bitmap_action){ .op = Q_BITMAP_REMOVE, .name = j->bitmap };
      gone = true;
      named = false;
      continue;
    }
    a[n++] = (struct q_bitmap_action){ .op = ops[s->letter - OPT_ADD],
                                       .name = j->bitmap,
                                       .granularity = j->granularity,
                                       .source = s->source,
                                       .source_image = source };
    named = s->letter == OPT_ADD || (named && s->letter != REMOVE);
  }
  return n;
}

static bool
change (const struct job *j, struct q_image *img, struct q_image *source)
{
  struct q_bitmap_info *had = NULL;
  struct q_bitmap_action *a;
  struct q_error err = { "" };
  unsigned n_had = 0;
  int r = -1;

  if (j->remove_all) {
    had = img_list_bitmaps (img, &n_had);
    if (!had)
      return false;
  }
  a = calloc (j->n + 1ull + (size_t)n_had + j->n, sizeof *a);
  if (!a)
    img_error ("out of memory");
  else {
    r = q_bitmap_change (img, a, make_actions (j, source, had, n_had, a), &err);
    if (r < 0)
      img_error ("%s", err.text);
  }
  free (a);
  free (had);
  return r == 0;
}

static int
run_job (struct job *j)
{
  struct q_image *source = NULL, *img;
  bool good;

  j->spec.writable = true;
  j->spec.metadata_only = true;
  j->spec.discard = true;
  j->source.metadata_only = true;
  if (j->source.name) {
    source = img_open_spec (&j->source);
    if (!source)
      return 1;
  }
  img = img_finish_session (&j->spec, j->state_dir) ? img_open_spec (&j->spec) : NULL;
  good = img && change (j, img, source);
  good = img_close (&img) && good;
  img_close (&source);
  return good ? 0 : 1;
}

/* What qemu-img says of the same. */
static int
check_usage (const struct job *j, int names)
{
  if (j->n == 0)
    return img_error ("bitmap: Need at least one of --add, --remove, --remove-all, --clear, "
                      "--enable, --disable, or --merge");
  if (j->granularity && !j->add)
    return img_error ("bitmap: granularity only supported with --add");
  if (j->source.name && !j->merge)
    return img_error ("bitmap: Merge bitmap source file only supported with --merge");
  if (j->source.format && !j->source.name)
    return img_error ("bitmap: -F only supported with -b");
  if (names != (j->others ? 2 : 1))
    return img_error (j->others ? "bitmap: Expecting filename and bitmap name"
                                : "bitmap: Expecting filename");
  return 0;
}

static bool
parse_granularity (struct job *j, const char *text)
{
  if (!img_parse_size ("granularity", text, &j->granularity))
    return false;
  if (j->granularity >= 512 && j->granularity <= 1ull << 31 &&
      (j->granularity & (j->granularity - 1)) == 0)
    return true;
  img_error ("bitmap: --granularity '%s': it must be a power of 2, at least 512 and at most 2G",
             text);
  return false;
}

static int
run (int argc, char **argv)
{
  static const struct option options[] = {
    { "add", no_argument, NULL, OPT_ADD },
    { "remove", no_argument, NULL, REMOVE },
    { "remove-all", no_argument, NULL, REMOVE_ALL },
    { "clear", no_argument, NULL, CLEAR },
    { "enable", no_argument, NULL, ENABLE },
    { "disable", no_argument, NULL, DISABLE },
    { "merge", required_argument, NULL, MERGE },
    { "format", required_argument, NULL, 'f' },
    { "granularity", required_argument, NULL, 'g' },
    { "source-file", required_argument, NULL, 'b' },
    { "source-format", required_argument, NULL, 'F' },
    { "state-dir", required_argument, NULL, STATE_DIR },
    { "image-opts", no_argument, NULL, IMG_OPT_OPTS },
    { "object", required_argument, NULL, IMG_OPT_OBJECT },
    { "data-file", required_argument, NULL, IMG_OPT_DATA_FILE },
    { "data-file-policy", required_argument, NULL, IMG_OPT_DATA_FILE_POLICY },
    IMG_COMMON_OPTIONS
  };
  struct job j = { .state_dir = "" };
  int letter, status = 0;

  j.step = calloc ((size_t)argc + 1, sizeof *j.step);
  if (!j.step)
    return img_error ("out of memory");
  while (status == 0 && (letter = img_getopt (&img_bitmap_command, argc, argv, ":b:f:F:g:h",
                                              options, &status)) != -1)
    switch (letter) {
    case OPT_ADD:
    case REMOVE:
    case CLEAR:
    case ENABLE:
    case DISABLE:
    case MERGE:
    case REMOVE_ALL:
      j.step[j.n++] = (struct step){ letter, letter == MERGE ? optarg : NULL };
      j.add = j.add || letter == OPT_ADD;
      j.merge = j.merge || letter == MERGE;
      j.remove_all = j.remove_all || letter == REMOVE_ALL;
      j.others = j.others || letter != REMOVE_ALL;
      break;
    case 'f':
      j.spec.format = optarg;
      break;
    case 'b':
      j.source.name = optarg;
      break;
    case 'F':
      j.source.format = optarg;
      break;
    case 'g':
      status = parse_granularity (&j, optarg) ? 0 : 1;
      break;
    case STATE_DIR:
      status = img_parse_state_dir (optarg, &j.state_dir) ? 0 : 1;
      break;
    default:
      if (!img_image_option (&j.spec, letter, &status)) {
        free (j.step);
        return status;
      }
    }
  if (status == 0)
    status = check_usage (&j, argc - optind);
  if (status == 0) {
    j.spec.name = argv[optind];
    j.bitmap = j.others ? argv[optind + 1] : NULL;
    status = run_job (&j);
  }
  free (j.step);
  return status;
}

const struct img_command img_bitmap_command = {
  .name = "bitmap",
  .run = run,
  .summary = "Add, remove and change persistent dirty bitmaps",
  .synopsis = "[-f FORMAT] (--add [-g SIZE] | --remove | --remove-all | --clear | --enable |\n"
              "       --disable | --merge SOURCE [-b FILE [-F FORMAT]])... FILE [BITMAP]",
  .help = "      --add                   make BITMAP; it records what is written from then on\n"
          "  -g, --granularity=SIZE      of the one that is added: 512 to 2G, a power of two\n"
          "      --remove                BITMAP, also one that was left in use\n"
          "      --remove-all            every bitmap\n"
          "      --clear                 everything in BITMAP is clean\n"
          "      --enable, --disable     BITMAP records what is written, or does not\n"
          "      --merge=SOURCE          what bitmap SOURCE has dirty becomes dirty in BITMAP\n"
          "  -b, --source-file=FILE      SOURCE is a bitmap of this image ...\n"
          "  -F, --source-format=FORMAT  ... of this format\n"
          "  -f, --format=FORMAT         of FILE (default: what it begins with)\n"
          "      --image-opts            FILE is KEY=VALUE,...\n"
          "      --object=TYPE,id=ID,... a secret\n"
          "      --data-file=FILE        the external data file, whatever FILE says\n"
          "      --data-file-policy=MODE which one FILE may name: same-dir (default), any, none\n"
          "      --state-dir=DIR         where a server that was killed left its state; or off\n"
          "These are done in the order given, all of them or none.\n",
};
