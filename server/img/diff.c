/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img diff: which parts of a disk are not what they were: between two internal snapshots, a
 * snapshot and the present, or two images.
 *
 * What both have at the same place of the same file is the same, and is not read; where they have
 * the same L2 tables, as the disk and its snapshots do until something is written there, not even
 * these are.  The rest is told as changed, or, with --exact, read and compared.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cursor.h"

#define SECTOR 512u
#define BUFFER (1u << 20)

struct diff {
  struct img_spec spec[2]; /* from, to */
  struct q_image *img[2];
  bool json, exact, quiet, progress;
  uint64_t start, len; /* the run of changes being put together; 0: none */
  bool zero;           /* it reads as zeros now */
  uint64_t changed;    /* bytes, in all */
  json_t *list;
};

/* ---- output ---------------------------------------------------------------------------------- */

static bool
end_run (struct diff *d)
{
  int r = 0;

  if (d->len == 0)
    return true;
  d->changed += d->len;
  if (d->json)
    r = json_array_append_new (d->list, json_pack ("{s:I, s:I, s:b}", "start", (json_int_t)d->start,
                                                   "length", (json_int_t)d->len, "zero", d->zero));
  else if (!d->quiet)
    printf ("%#-16llx%#-16llx%s\n", (unsigned long long)d->start, (unsigned long long)d->len,
            d->zero ? "zero" : "data");
  d->len = 0;
  if (r < 0)
    img_error ("out of memory");
  return r == 0;
}

static bool
add (struct diff *d, uint64_t start, uint64_t len, bool zero)
{
  if (d->len && d->start + d->len == start && d->zero == zero) {
    d->len += len;
    return true;
  }
  if (!end_run (d))
    return false;
  d->start = start;
  d->len = len;
  d->zero = zero;
  return true;
}

/* ---- comparing ------------------------------------------------------------------------------- */

/* Adds the sectors of N bytes at the cursors that differ. */
static int
compare_bytes (struct diff *d, const struct img_cursor side[2], const struct q_extent *const e[2],
               uint64_t n, char *buf)
{
  int r = 0;

  for (unsigned i = 0; r == 0 && i < 2; i++)
    r = img_cursor_read (&side[i], e[i], n, buf + i * n);
  if (r < 0 || memcmp (buf, buf + n, n) == 0)
    return r;
  for (uint64_t at = 0, len; at < n; at += len) {
    len = n - at < SECTOR ? n - at : SECTOR;
    if (memcmp (buf + at, buf + n + at, len) != 0 &&
        !add (d, side[1].at + at, len, img_is_zero (buf + n + at, len)))
      return -ENOMEM;
  }
  return 0;
}

/* What both have by the same tables is the same, however much that is. */
static void
pass_tables (const struct diff *d, struct img_cursor side[2], uint64_t *known)
{
  const uint64_t at = side[0].at;
  uint64_t len = side[0].end - at;
  const bool same = q_same_tables (d->img[0], d->img[1], at, &len);

  *known = at + len;
  if (!same)
    return;
  img_cursor_jump (&side[0], len);
  img_cursor_jump (&side[1], len);
  img_progress_add (len);
}

static int
compare (struct diff *d, uint64_t size)
{
  char *buf = d->exact ? malloc (2 * (size_t)BUFFER) : NULL;
  struct img_cursor *side = calloc (2, sizeof *side);
  uint64_t known = 0; /* up to there it is known whose tables are the same */
  q_pin_t pin = q_pin ();
  int r = side && (buf || !d->exact) ? 0 : -ENOMEM;

  for (unsigned i = 0; r == 0 && i < 2; i++)
    side[i] = (struct img_cursor){ .img = d->img[i], .end = size };
  while (r == 0 && side[0].at < size) {
    const struct q_extent *e[2];
    uint64_t room[2], n;

    if (side[0].at >= known) {
      pass_tables (d, side, &known);
      continue;
    }
    for (unsigned i = 0; r == 0 && i < 2; i++)
      r = img_cursor_look (&side[i], &e[i], &room[i]);
    if (r < 0)
      break;
    n = room[0] < room[1] ? room[0] : room[1];
    n = n < known - side[0].at ? n : known - side[0].at;
    if (!img_cursor_same (&side[0], e[0], &side[1], e[1])) {
      if (d->exact) {
        n = n < BUFFER ? n : BUFFER;
        r = compare_bytes (d, side, e, n, buf);
      } else if (!add (d, side[1].at, n, e[1]->kind == Q_ZERO))
        r = -ENOMEM;
    }
    img_cursor_advance (&side[0], n);
    img_cursor_advance (&side[1], n);
    img_progress_add (n);
    if (img_interrupted ())
      r = -EINTR;
  }
  q_unpin (pin);
  free (side);
  free (buf);
  return r;
}

static bool
print (struct diff *d)
{
  json_t *j;

  if (!d->json)
    return true;
  j = json_pack ("{s:I, s:I, s:I, s:O}", "from-size", (json_int_t)q_size (d->img[0]), "to-size",
                 (json_int_t)q_size (d->img[1]), "changed", (json_int_t)d->changed, "extents",
                 d->list);
  return img_print_json (j);
}

static bool
run_diff (struct diff *d)
{
  const uint64_t from = q_size (d->img[0]), to = q_size (d->img[1]);
  int r;

  d->list = json_array ();
  if (!d->json && !d->quiet)
    printf ("%-16s%-16s%s\n", "Offset", "Length", "Now");
  img_catch_signals ();
  img_progress_begin (d->progress, d->quiet, from > to ? from : to);
  r = compare (d, from > to ? from : to);
  img_progress_end ();
  if (r < 0)
    img_error ("%s: %s", d->spec[1].name,
               r == -EINTR ? "interrupted: this is not all" : strerror (-r));

  bool ok = end_run (d) && r == 0 && print (d);

  json_decref (d->list);
  return ok;
}

/* ---- the command line ------------------------------------------------------------------------ */

static int
diff (struct diff *d)
{
  bool ok;

  d->img[0] = img_open_spec (&d->spec[0]);
  d->img[1] = d->img[0] ? img_open_spec (&d->spec[1]) : NULL;
  ok = d->img[1] && run_diff (d);
  ok = img_close (&d->img[0]) && ok;
  return img_close (&d->img[1]) && ok ? 0 : 1;
}

static int
run (int argc, char **argv)
{
  enum { OUTPUT = IMG_OPT_LONG, FROM, TO, EXACT };
  static const struct option options[] = { { "a-format", required_argument, NULL, 'f' },
                                           { "b-format", required_argument, NULL, 'F' },
                                           { "from", required_argument, NULL, FROM },
                                           { "to", required_argument, NULL, TO },
                                           { "exact", no_argument, NULL, EXACT },
                                           { "output", required_argument, NULL, OUTPUT },
                                           { "cache", required_argument, NULL, 'T' },
                                           { "progress", no_argument, NULL, 'p' },
                                           { "quiet", no_argument, NULL, 'q' },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct diff d = { .json = false };
  struct img_spec both = { 0 };
  const char *format[2] = { NULL, NULL }, *snapshot[2] = { NULL, NULL };
  int status = 0, letter;

  while ((letter = img_getopt (&img_diff_command, argc, argv, ":f:F:T:pqUh", options, &status)) !=
         -1)
    switch (letter) {
    case 'f':
      format[0] = optarg;
      break;
    case 'F':
      format[1] = optarg;
      break;
    case FROM:
      snapshot[0] = optarg;
      break;
    case TO:
      snapshot[1] = optarg;
      break;
    case EXACT:
      d.exact = true;
      break;
    case OUTPUT:
      if (!img_parse_output (optarg, &d.json))
        return 1;
      break;
    case 'T':
      both.cache = optarg;
      break;
    case 'p':
      d.progress = true;
      break;
    case 'q':
      d.quiet = true;
      break;
    default:
      if (!img_image_option (&both, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1 && argc - optind != 2)
    return img_error ("diff: one or two file names are needed, %d were given", argc - optind);
  if (argc - optind == 1 && !snapshot[0] && !snapshot[1])
    return img_error (
        "diff: one image does not differ from itself: give --from or --to, or a second "
        "file name");
  for (unsigned i = 0; i < 2; i++) {
    const bool second = i == 1 && argc - optind == 2;

    d.spec[i] = both;
    d.spec[i].format = second ? format[1] : format[0];
    d.spec[i].snapshot = snapshot[i];
    d.spec[i].name = argv[optind + (second ? 1 : 0)];
  }
  return diff (&d);
}

const struct img_command img_diff_command = {
  .name = "diff",
  .run = run,
  .summary = "Show which parts of a disk have changed",
  .synopsis =
      "[-f FORMAT] [-F FORMAT] [--from=SNAPSHOT] [--to=SNAPSHOT] [--exact]\n"
      "                        [--output=human|json] [-T CACHE] [-p] [-q] [-U] FILE [FILE2]",
  .help = "  -f, --a-format=FORMAT   of FILE (default: what it begins with)\n"
          "  -F, --b-format=FORMAT   of FILE2\n"
          "      --from=SNAPSHOT     the old state: a snapshot of FILE (default: FILE as it is)\n"
          "      --to=SNAPSHOT       the new one: a snapshot of FILE2 (default: FILE2 as it is)\n"
          "      --exact             read what may have changed, and leave out what has not\n"
          "      --output=FORMAT     human (default) or json\n"
          "  -T, --cache=MODE        none and directsync read past the page cache\n"
          "  -p, --progress          show how far it is\n"
          "  -q, --quiet             only the exit status, and errors\n"
          "  -U, --force-share       also of images that are being written\n"
          "FILE2 is FILE if it is not given.\n",
};
