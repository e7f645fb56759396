/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img dd: copies a part of an image, in blocks, into a new one.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "create.h"

#define SECTOR 512u
#define PIECE  (4u << 20)

struct copying {
  struct img_spec spec;
  const char *format; /* of the output */
  const char *output;
  struct img_work work;
  uint64_t block, count, skip;
  bool has_count;
  struct q_image *in, *out;
  uint64_t from, len; /* of the input */
};

/* ---- operands -------------------------------------------------------------------------------- */

static bool
set_block (struct copying *c, const char *text)
{
  if (!img_parse_size ("bs", text, &c->block))
    return false;
  if (c->block >= 1 && c->block <= INT32_MAX)
    return true;
  img_error ("bs=%s is out of range: it is from 1 to %d bytes", text, INT32_MAX);
  return false;
}

static bool
set_count (struct copying *c, const char *text)
{
  c->has_count = true;
  return img_parse_size ("count", text, &c->count);
}

static bool
set_skip (struct copying *c, const char *text)
{
  return img_parse_size ("skip", text, &c->skip);
}

static bool
set_input (struct copying *c, const char *text)
{
  c->spec.name = text;
  return true;
}

static bool
set_output (struct copying *c, const char *text)
{
  c->output = text;
  return true;
}

static bool
set_operand (struct copying *c, const char *text)
{
  static const struct {
    const char *name;
    bool (*set) (struct copying *c, const char *text);
  } known[] = { { "bs=", set_block },
                { "count=", set_count },
                { "skip=", set_skip },
                { "if=", set_input },
                { "of=", set_output } };

  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    if (strncmp (text, known[i].name, strlen (known[i].name)) == 0)
      return known[i].set (c, text + strlen (known[i].name));
  img_error ("dd: '%s' is not known: there are if=, of=, bs=, count= and skip=", text);
  return false;
}

/* ---- copying --------------------------------------------------------------------------------- */

/* What the extent has, to OFFSET of the output. */
static int
copy_extent (struct copying *c, const struct q_extent *e, uint64_t offset, char *buf)
{
  img_rate_pay (e->len);

  q_pin_t pin = q_pin ();
  int r = q_read_extent (e, 0, e->len, buf);

  q_unpin (pin);
  return r < 0 ? r : q_pwrite (c->out, buf, offset, e->len);
}

/* A piece of the output, which reads as zeros where nothing is written. */
static int
copy_piece (void *opaque, uint64_t offset, uint64_t len)
{
  struct copying *c = opaque;
  uint64_t readable = q_size (c->in), from = c->from + offset;
  char *buf = malloc (len);
  int r = buf ? 0 : -ENOMEM;

  for (uint64_t done = 0; r == 0 && done < len && from + done < readable && !img_interrupted ();) {
    uint64_t room = readable - from - done < len - done ? readable - from - done : len - done;
    struct q_extent e;
    q_pin_t pin = q_pin ();
    int n = q_map (c->in, from + done, room, &e, 1, 0);

    q_unpin (pin); /* the input does not change */
    r = n < 0 ? n : e.kind != Q_ZERO ? copy_extent (c, &e, offset + done, buf) : 0;
    done += n < 0 ? 0 : e.len;
  }
  free (buf);
  img_progress_add (len);
  return r == 0 && img_interrupted () ? -EINTR : r;
}

static bool
copy (struct copying *c)
{
  int r;

  img_work_begin (&c->work, c->len);
  r = img_for_pieces (c->len, PIECE, 0, copy_piece, c);
  img_progress_end ();
  if (r < 0)
    img_error ("%s: copying from %s: %s", c->output, c->spec.name,
               r == -EINTR ? "interrupted: what is there is incomplete" : strerror (-r));
  return r == 0;
}

/* What is copied: all from SKIP blocks on, up to the end of the first COUNT. */
static void
choose (struct copying *c)
{
  uint64_t size = (q_size (c->in) + SECTOR - 1) / SECTOR * SECTOR;

  if (c->has_count && c->count <= INT64_MAX / c->block && c->count * c->block < size)
    size = c->count * c->block;
  if (c->skip > INT64_MAX / c->block || c->skip * c->block > size) {
    img_error ("%s: cannot skip to specified offset: the input has %llu bytes", c->spec.name,
               (unsigned long long)size);
    c->from = size;
    c->len = 0;
    return;
  }
  c->from = c->skip * c->block;
  c->len = size - c->from;
}

static int
dd (struct copying *c)
{
  struct img_creation made;
  struct img_spec out = { .name = c->output, .writable = true };
  enum q_format format = Q_FORMAT_RAW;
  bool ok;

  if (c->format && !img_parse_format (c->format, &format))
    return 1;
  c->in = img_open_spec (&c->spec);
  if (!c->in)
    return 1;
  if (img_reads (c->in, c->output)) {
    img_error ("%s: cannot be copied to %s, which it is read from", c->spec.name, c->output);
    img_close (&c->in);
    return 1;
  }
  choose (c);
  img_creation_init (&made);
  made.raw = format == Q_FORMAT_RAW;
  made.filename = c->output;
  made.size = c->len;
  out.format = img_format_name (format);
  ok = img_creation_make (&made);
  c->out = ok ? img_open_spec (&out) : NULL;
  ok = c->out && copy (c);
  ok = img_close (&c->out) && ok;
  return img_close (&c->in) && ok ? 0 : 1;
}

/* ---- the command line ------------------------------------------------------------------------ */

static int
run (int argc, char **argv)
{
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "output-format", required_argument, NULL, 'O' },
                                           IMG_WORK_OPTIONS,
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct copying c = { .block = SECTOR };
  int status = 0, letter;

  while ((letter = img_getopt (&img_dd_command, argc, argv, ":f:O:r:pqUh", options, &status)) != -1)
    switch (letter) {
    case 'f':
      c.spec.format = optarg;
      break;
    case 'O':
      c.format = optarg;
      break;
    default:
      if (!img_work_option (&c.work, &c.spec, letter, &status) || status)
        return status;
    }
  for (int i = optind; i < argc; i++)
    if (!set_operand (&c, argv[i]))
      return 1;
  if (!c.spec.name || !c.output)
    return img_error ("dd: if=INPUT and of=OUTPUT are needed");
  return dd (&c);
}

const struct img_command img_dd_command = {
  .name = "dd",
  .run = run,
  .summary = "Copy a part of an image into a new one",
  .synopsis = "[-f FORMAT] [-O FORMAT] [-r RATE] [-p] [-q] [-U] [bs=SIZE] [count=BLOCKS] "
              "[skip=BLOCKS] if=INPUT "
              "of=OUTPUT",
  .help = "  -f, --format=FORMAT          of the input (default: what it begins with)\n"
          "  -O, --output-format=FORMAT   raw (default) or qcow2\n"
          "  -r, --rate-limit=RATE        bytes a second\n"
          "  -p, --progress               show how far it is\n"
          "  -q, --quiet                  show nothing but errors\n"
          "  -U, --force-share            also from an image that is being written\n"
          "  bs=SIZE        of a block (default 512)\n"
          "  count=BLOCKS   the part of the input that counts ends there\n"
          "  skip=BLOCKS    and begins there\n",
};
