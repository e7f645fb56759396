/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img rebase: gives an overlay another backing file, and first copies into it what it would
 * otherwise lose by that.
 *
 * The overlay is opened by itself, and both chains below it, the old and the new one, beside it.
 * What it does not have is compared; where the two differ it gets what the old one has.  What both
 * have at the same place of the same file, as when layers are taken out of a chain, is not read.
 *
 * Invariant: the name is changed when everything that was copied is on stable storage.  Until then
 * the overlay shows the same over the old backing file, and afterwards over the new one.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cursor.h"
#include "file.h"

#define BUFFER (2u << 20) /* the largest cluster */
#define PIECE  (8u << 20)

struct rebase {
  struct img_spec spec;
  const char *backing; /* -b; "": none */
  const char *backing_format, *backing_cache;
  struct img_work work;
  bool unsafe, compress;
  struct q_image *top, *old, *new; /* old and new may be NULL: zeros */
  char *new_path;
  uint64_t unit; /* bytes that have a mapping of their own */
};

/* ---- comparing and copying ------------------------------------------------------------------- */

/* A unit, or several, of the overlay gets what BUF has. */
static int
copy (struct rebase *b, uint64_t offset, uint64_t len, const char *buf)
{
  img_rate_pay (len);
  if (img_is_zero (buf, len))
    return q_zero (b->top, offset, len, 0);
  return b->compress ? q_write_compressed (b->top, buf, offset, len)
                     : q_pwrite (b->top, buf, offset, len);
}

/* Whether [OFFSET, OFFSET + LEN), at most BUFFER bytes, is the same in both chains for certain, or
 * else by its bytes; BUF then has the old ones, and room for twice as much. */
static int
is_same (struct rebase *b, struct img_cursor side[2], uint64_t len, char *buf)
{
  int same = 1, r = 0;

  for (uint64_t done = 0, n; r == 0 && done < len; done += n) {
    const struct q_extent *e[2];
    uint64_t room[2];

    for (unsigned i = 0; r == 0 && i < 2; i++)
      r = img_cursor_look (&side[i], &e[i], &room[i]);
    if (r < 0)
      return r;
    n = room[0] < room[1] ? room[0] : room[1];
    n = n < len - done ? n : len - done;
    r = img_cursor_read (&side[0], e[0], n, buf + done);
    if (r == 0 && !img_cursor_same (&side[0], e[0], &side[1], e[1])) {
      r = img_cursor_read (&side[1], e[1], n, buf + BUFFER + done);
      same = same && memcmp (buf + done, buf + BUFFER + done, n) == 0;
    }
    img_cursor_advance (&side[0], n);
    img_cursor_advance (&side[1], n);
  }
  (void)b;
  return r < 0 ? r : same;
}

/* Skips what both have in one place, in whole units from the cursors on. */
static int
skip_same (struct rebase *b, struct img_cursor side[2], uint64_t *skipped)
{
  *skipped = 0;
  for (;;) {
    const struct q_extent *e[2];
    uint64_t room[2], n;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < 2; i++)
      r = side[0].at < side[0].end ? img_cursor_look (&side[i], &e[i], &room[i]) : 1;
    if (r != 0)
      return r < 0 ? r : 0;
    n = room[0] < room[1] ? room[0] : room[1];
    if (side[0].at + n < side[0].end)
      n -= n % b->unit;
    if (n == 0 || !img_cursor_same (&side[0], e[0], &side[1], e[1]))
      return 0;
    img_cursor_advance (&side[0], n);
    img_cursor_advance (&side[1], n);
    *skipped += n;
  }
}

/* The overlay has nothing from OFFSET on. */
static int
compare_absent (struct rebase *b, uint64_t offset, uint64_t len, char *buf)
{
  struct img_cursor *side = calloc (2, sizeof *side);
  const uint64_t end = offset + len;
  int r = side ? 0 : -ENOMEM;

  if (side) {
    side[0] = (struct img_cursor){ .img = b->old, .at = offset, .end = end };
    side[1] = (struct img_cursor){ .img = b->new, .at = offset, .end = end };
  }
  while (r == 0 && offset < end) {
    uint64_t n, skipped;
    q_pin_t pin = q_pin ();

    r = skip_same (b, side, &skipped);
    offset += skipped;
    n = end - offset < b->unit ? end - offset : b->unit;
    if (r == 0 && n > 0)
      r = is_same (b, side, n, buf);
    q_unpin (pin); /* the chains do not change */
    if (n == 0 || r < 0)
      break;
    r = img_interrupted () ? -EINTR : r == 0 ? copy (b, offset, n, buf) : 0;
    offset += n;
  }
  free (side);
  return r;
}

static int
rebase_piece (void *opaque, uint64_t offset, uint64_t len)
{
  struct rebase *b = opaque;
  const uint64_t end = offset + len;
  char *buf = malloc (2 * (size_t)BUFFER);
  int r = buf ? 0 : -ENOMEM;

  while (r == 0 && offset < end) {
    struct q_extent e;
    q_pin_t pin = q_pin ();
    int n = q_map (b->top, offset, end - offset, &e, 1, Q_MAP_TOP | Q_MAP_HOST);

    q_unpin (pin);
    r = n < 0 ? n : img_extent_is_absent (b->top, &e) ? compare_absent (b, offset, e.len, buf) : 0;
    offset += n < 0 ? 0 : e.len;
  }
  free (buf);
  img_progress_add (len);
  return r;
}

static bool
copy_differences (struct rebase *b)
{
  struct q_image_info info;
  int r;

  q_get_info (b->top, &info);
  b->unit = q_cluster_size (b->top) / (info.extended_l2 ? 32 : 1);
  if (b->compress)
    b->unit = q_cluster_size (b->top);
  if (b->new)
    q_expect_backing (b->top);
  img_work_begin (&b->work, q_size (b->top));
  r = img_for_pieces (q_size (b->top), PIECE, 0, rebase_piece, b);
  img_progress_end ();
  if (r == -EINTR)
    img_error ("%s: interrupted: its backing file is the old one", b->spec.name);
  else if (r < 0)
    img_error ("%s: copying from the old backing file: %s", b->spec.name, strerror (-r));
  return r == 0;
}

/* ---- images ---------------------------------------------------------------------------------- */

static bool
open_old (struct rebase *b)
{
  struct img_spec spec;
  char *path;
  int r;

  if (!img_chain_is_recorded (b->top))
    return false;
  r = img_follow (b->top, &b->spec, &spec, &path);
  if (r < 0)
    return r == -ENOENT; /* zeros */
  spec.cache = b->backing_cache;
  b->old = img_open_spec (&spec);
  free (path);
  return b->old;
}

static bool
open_new (struct rebase *b)
{
  struct img_spec spec = { .recorded = Q_FILE_LOCAL, /* as it is going to be */
                           .format = b->backing_format,
                           .cache = b->backing_cache,
                           .backing_mode = b->spec.backing_mode,
                           .data_file_policy = b->spec.data_file_policy,
                           .untrusted = b->spec.untrusted };

  if (!b->new_path) /* none is to come */
    return true;
  spec.name = b->new_path;
  if (img_same_file (b->new_path, q_filename (b->top))) {
    img_error ("%s: cannot be its own backing file", b->spec.name);
    return false;
  }
  b->new = img_open_spec (&spec);
  if (img_reads (b->new, q_filename (b->top))) {
    img_error ("%s: '%s' has it in its own chain", b->spec.name, b->backing);
    return false;
  }
  return b->new;
}

static bool
record (struct rebase *b)
{
  const char *format = b->backing_format;
  struct q_error err = { "" };

  if (b->backing[0] && !format)
    format = b->new ? img_format_name (q_image_format (b->new)) : NULL;
  if (q_set_backing (b->top, b->backing[0] ? b->backing : NULL, format, &err) == 0)
    return true;
  img_error ("%s", err.text);
  return false;
}

static bool
run_rebase (struct rebase *b)
{
  struct img_spec spec = b->spec;

  spec.writable = true;
  /* Without what is below; and, where nothing will be copied, without a key. */
  spec.metadata_only = b->unsafe;
  spec.backing_mode = "none";
  b->top = img_open_spec (&spec);
  if (!b->top)
    return false;
  if (q_image_format (b->top) != Q_FORMAT_QCOW2) {
    img_error ("%s: a raw image has no backing file", b->spec.name);
    return false;
  }
  if (b->compress && !q_can_compress (b->top)) {
    img_error ("%s: cannot have compressed clusters", b->spec.name);
    return false;
  }
  if (b->backing[0]) {
    b->new_path = img_backing_path (q_filename (b->top), b->backing);
    if (!b->new_path)
      return false;
  }
  if (!b->unsafe && !(open_old (b) && open_new (b) && copy_differences (b)))
    return false;
  return record (b);
}

static int
rebase (struct rebase *b)
{
  bool ok = run_rebase (b);

  ok = img_close (&b->top) && ok;
  ok = img_close (&b->new) && ok;
  ok = img_close (&b->old) && ok;
  free (b->new_path);
  return ok ? 0 : 1;
}

/* ---- the command line ------------------------------------------------------------------------ */

static int
run (int argc, char **argv)
{
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "cache", required_argument, NULL, 't' },
                                           { "backing", required_argument, NULL, 'b' },
                                           { "backing-format", required_argument, NULL, 'F' },
                                           { "backing-cache", required_argument, NULL, 'T' },
                                           { "backing-unsafe", no_argument, NULL, 'u' },
                                           { "compress", no_argument, NULL, 'c' },
                                           { "rate", required_argument, NULL, 'r' },
                                           IMG_WORK_OPTIONS,
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct rebase b = { .unsafe = false };
  enum q_format format;
  int status = 0, letter;

  while ((letter = img_getopt (&img_rebase_command, argc, argv, ":f:t:b:B:F:T:ucr:pqUh", options,
                               &status)) != -1)
    switch (letter) {
    case 'f':
      b.spec.format = optarg;
      break;
    case 't':
      b.spec.cache = optarg;
      break;
    case 'b':
      b.backing = optarg;
      break;
    case 'B':
    case 'F':
      b.backing_format = optarg;
      if (!img_parse_format (optarg, &format))
        return 1;
      break;
    case 'T':
      b.backing_cache = optarg;
      if (!img_check_cache (optarg))
        return 1;
      break;
    case 'u':
      b.unsafe = true;
      break;
    case 'c':
      b.compress = true;
      break;
    default:
      if (!img_work_option (&b.work, &b.spec, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1)
    return img_error ("rebase: one file name is needed, %d were given", argc - optind);
  if (!b.backing)
    return img_error ("rebase: say with -b what the backing file is to be (-b '' for none)");
  if (b.backing[0] && !b.backing_format &&
      (!b.spec.backing_mode || strcmp (b.spec.backing_mode, "probe") != 0))
    return img_error (
        "rebase: say with -F what format '%s' has (--backing-mode=probe finds it out): "
        "a format that is guessed lets a guest choose it",
        b.backing);
  if (b.spec.force_share)
    return img_error ("rebase: -U is not possible: the image is written");
  if (b.compress && b.unsafe)
    return img_error ("rebase: -c is about data that is copied, and -u copies none");
  b.spec.name = argv[optind];
  return rebase (&b);
}

const struct img_command img_rebase_command = {
  .name = "rebase",
  .run = run,
  .summary = "Give an overlay another backing file",
  .synopsis = "[-f FORMAT] [-t CACHE] -b BACKING [-F FORMAT] [-T CACHE] [-u] [-c] [-r RATE]\n"
              "                          [-p] [-q] FILE",
  .help = "  -f, --format=FORMAT           qcow2 (default: what the file begins with)\n"
          "  -t, --cache=MODE              writeback (default), writethrough, none, directsync, "
          "unsafe\n"
          "  -b, --backing=FILE            the new backing file; '' for none\n"
          "  -B, -F, --backing-format=FORMAT  its format\n"
          "  -T, --backing-cache=MODE      for the backing files\n"
          "  -u, --backing-unsafe          only change the name: they have the same contents\n"
          "  -c, --compress                compress what is copied\n"
          "  -r, --rate-limit=RATE         at most so many bytes a second\n"
          "  -p, --progress                show how far it is\n"
          "  -q, --quiet                   only the exit status, and errors\n",
};
