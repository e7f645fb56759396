/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img compare: have two images the same contents.
 *
 * What both have as zeros is not read, nor what both have at the same place of the same file (two
 * overlays of one base).  Pieces are compared in parallel; the lowest difference counts, as if they
 * had been compared one after the other.
 */

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cursor.h"

/* qemu-img's. */
enum {
  EXIT_SAME = 0,
  EXIT_DIFFERENT = 1,
  EXIT_NOT_OPENED = 2,
  EXIT_NO_MAPPING = 3,
  EXIT_NOT_READ = 4,
};

#define SECTOR 512u /* differences are told to this grain */
#define PIECE  (8u << 20)
#define BUFFER (1u << 20)

struct comparison {
  struct img_spec spec[2];
  struct q_image *img[2];
  bool strict, progress, quiet;
};

/* What a piece returns: 0, or one of the statuses above, with what there is to say in the
 * finding. */
struct finding {
  pthread_mutex_t lock;
  uint64_t piece;
  char text[1200];
};

struct job {
  struct comparison *c;
  uint64_t base; /* pieces count from here */
  struct finding found;
};

static int find (struct job *j, uint64_t piece, int status, const char *fmt, ...)
    __attribute__ ((format (printf, 4, 5)));

/* Notes what ends the comparison, unless a lower piece has; returns STATUS. */
static int
find (struct job *j, uint64_t piece, int status, const char *fmt, ...)
{
  va_list ap;

  pthread_mutex_lock (&j->found.lock);
  if (piece < j->found.piece) {
    j->found.piece = piece;
    va_start (ap, fmt);
    vsnprintf (j->found.text, sizeof j->found.text, fmt, ap);
    va_end (ap);
  }
  pthread_mutex_unlock (&j->found.lock);
  return status;
}

/* ---- comparing ------------------------------------------------------------------------------- */

/* Whether QEMU's block status would call the two the same. */
static bool
same_status (const struct img_cursor *a, const struct q_extent *x, const struct img_cursor *b,
             const struct q_extent *y)
{
  return x->kind == y->kind && !x->file == !y->file &&
         img_extent_is_absent (a->img, x) == img_extent_is_absent (b->img, y);
}

/* The first sector in which A and B differ, or LEN. */
static uint64_t
first_difference (const char *a, const char *b, uint64_t len)
{
  if (memcmp (a, b, len) == 0)
    return len;
  for (uint64_t at = 0;; at += SECTOR) {
    uint64_t n = len - at < SECTOR ? len - at : SECTOR;

    if (memcmp (a + at, b + at, n) != 0)
      return at;
  }
}

static int
unreadable (struct job *j, uint64_t piece, const struct img_cursor *c, int status, int r)
{
  return find (j, piece, status, "%s: %s at offset %llu: %s", q_filename (c->img),
               status == EXIT_NO_MAPPING ? "cannot read the mapping" : "cannot read",
               (unsigned long long)c->at, strerror (-r));
}

/* Compares LEN bytes, of which at most one side reads as zeros.  BUF has room for two times LEN. */
static int
compare_bytes (struct job *j, uint64_t piece, const struct img_cursor side[2],
               const struct q_extent *const e[2], uint64_t len, char *buf)
{
  const unsigned zero = e[0]->kind == Q_ZERO ? 0 : 1;

  for (unsigned i = 0; i < 2; i++) {
    if (e[i]->kind == Q_ZERO)
      continue;

    int r = img_cursor_read (&side[i], e[i], len, buf + i * len);

    if (r < 0)
      return unreadable (j, piece, &side[i], EXIT_NOT_READ, r);
  }
  if (e[zero]->kind == Q_ZERO) {
    if (img_is_zero (buf + (1 - zero) * len, len))
      return 0;
    memset (buf + zero * len, 0, len);
  }

  uint64_t at = first_difference (buf, buf + len, len);

  return at == len ? 0
                   : find (j, piece, EXIT_DIFFERENT, "Content mismatch at offset %llu!",
                           (unsigned long long)(side[0].at + at));
}

static int
compare_piece (void *opaque, uint64_t start, uint64_t len)
{
  struct job *j = opaque;
  const uint64_t offset = j->base + start;
  char *buf = malloc (2 * (size_t)BUFFER);
  struct img_cursor *side = calloc (2, sizeof *side);
  q_pin_t pin = q_pin ();
  int r = buf && side ? 0 : find (j, offset, EXIT_NOT_READ, "out of memory");
  assert (r != 0 || (buf && side));

  for (unsigned i = 0; r == 0 && i < 2; i++)
    side[i] = (struct img_cursor){ .img = j->c->img[i], .at = offset, .end = offset + len };
  while (r == 0 && side[0].at < offset + len) {
    const struct q_extent *e[2];
    uint64_t room[2], n = BUFFER;

    for (unsigned i = 0; r == 0 && i < 2; i++) {
      r = img_cursor_look (&side[i], &e[i], &room[i]);
      if (r < 0)
        r = unreadable (j, offset, &side[i], EXIT_NO_MAPPING, r);
    }
    if (r)
      break;
    if (j->c->strict && !same_status (&side[0], e[0], &side[1], e[1])) {
      r = find (j, offset, EXIT_DIFFERENT, "Strict mode: Offset %llu block status mismatch!",
                (unsigned long long)side[0].at);
      break;
    }

    const bool known = img_cursor_same (&side[0], e[0], &side[1], e[1]);
    const uint64_t both = room[0] < room[1] ? room[0] : room[1];

    if (known || both < n)
      n = both;
    if (!known)
      r = compare_bytes (j, offset, side, e, n, buf);
    img_cursor_advance (&side[0], n);
    img_cursor_advance (&side[1], n);
  }
  q_unpin (pin);
  free (side);
  free (buf);
  img_progress_add (len);
  return r;
}

/* Disks consist of sectors, whatever length a raw file has. */
static uint64_t
sectors_size (const struct q_image *img)
{
  return (q_size (img) + SECTOR - 1) / SECTOR * SECTOR;
}

static int
compare_contents (struct comparison *c)
{
  const uint64_t size[2] = { sectors_size (c->img[0]), sectors_size (c->img[1]) };
  const uint64_t shorter = size[0] < size[1] ? size[0] : size[1];
  const uint64_t longer = size[0] < size[1] ? size[1] : size[0];
  struct job j = { .c = c, .found = { .lock = PTHREAD_MUTEX_INITIALIZER, .piece = UINT64_MAX } };
  int r;

  if (c->strict && shorter != longer) {
    if (!c->quiet)
      printf ("Strict mode: Image size mismatch!\n");
    return EXIT_DIFFERENT;
  }
  img_catch_signals ();
  img_progress_begin (c->progress, c->quiet, longer);
  r = img_for_pieces (shorter, PIECE, 0, compare_piece, &j);
  if (r == 0 && shorter != longer) {
    if (!c->quiet)
      printf ("Warning: Image size mismatch!\n");
    j.base = shorter;
    r = img_for_pieces (longer - shorter, PIECE, 0, compare_piece, &j);
  }
  img_progress_end ();
  if (r == -EINTR) {
    img_error ("interrupted: no difference was found so far");
    return EXIT_NOT_READ;
  }
  if (r > EXIT_DIFFERENT)
    img_error ("%s", j.found.text);
  else if (!c->quiet)
    printf ("%s\n", r ? j.found.text : "Images are identical.");
  return r;
}

/* ---- the command line ------------------------------------------------------------------------ */

static int
compare (struct comparison *c)
{
  int status = EXIT_NOT_OPENED;

  c->img[0] = img_open_spec (&c->spec[0]);
  c->img[1] = c->img[0] ? img_open_spec (&c->spec[1]) : NULL;
  if (c->img[1])
    status = compare_contents (c);
  img_close (&c->img[0]);
  img_close (&c->img[1]);
  return status;
}

static int
run (int argc, char **argv)
{
  static const struct option options[] = { { "a-format", required_argument, NULL, 'f' },
                                           { "b-format", required_argument, NULL, 'F' },
                                           { "strict", no_argument, NULL, 's' },
                                           { "cache", required_argument, NULL, 'T' },
                                           { "progress", no_argument, NULL, 'p' },
                                           { "quiet", no_argument, NULL, 'q' },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct comparison c = { 0 };
  struct img_spec both = { 0 };
  const char *format[2] = { NULL, NULL };
  int status = 0, letter;

  while ((letter = img_getopt (&img_compare_command, argc, argv, ":f:F:sT:pqUh", options,
                               &status)) != -1)
    switch (letter) {
    case 'f':
      format[0] = optarg;
      break;
    case 'F':
      format[1] = optarg;
      break;
    case 's':
      c.strict = true;
      break;
    case 'T':
      both.cache = optarg;
      if (!img_check_cache (optarg))
        return EXIT_NOT_OPENED;
      break;
    case 'p':
      c.progress = true;
      break;
    case 'q':
      c.quiet = true;
      break;
    default:
      if (!img_image_option (&both, letter, &status))
        return status;
      if (status)
        return EXIT_NOT_OPENED;
    }
  if (argc - optind != 2)
    return img_error ("compare: two file names are needed, %d were given", argc - optind);
  for (unsigned i = 0; i < 2; i++) {
    c.spec[i] = both;
    c.spec[i].format = format[i];
    c.spec[i].name = argv[optind + (int)i];
  }
  return compare (&c);
}

const struct img_command img_compare_command = {
  .name = "compare",
  .run = run,
  .summary = "See whether two images have the same contents",
  .synopsis = "[-f FORMAT] [-F FORMAT] [-s] [-T CACHE] [-p] [-q] [-U] FILE FILE",
  .help = "  -f, --a-format=FORMAT   of the first image (default: what the file begins with)\n"
          "  -F, --b-format=FORMAT   of the second one\n"
          "  -s, --strict            sizes and allocation must be the same too\n"
          "  -T, --cache=MODE        none and directsync read past the page cache\n"
          "  -p, --progress          show how far it is\n"
          "  -q, --quiet             only the exit status, and errors\n"
          "  -U, --force-share       also images that are being written\n"
          "Exit status: 0 the same, 1 different, 2 not opened, 3 mapping not read, 4 data not "
          "read.\n",
};
