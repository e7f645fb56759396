/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img map: where each part of a disk is, through the chain of backing files.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "file.h"
#include "img.h"
#include "map-svg.h"

/* What ended a walk has been reported. */
#define REPORTED 1

enum output { OUTPUT_HUMAN, OUTPUT_JSON, OUTPUT_SVG };

struct mapping {
  struct img_spec spec;
  enum output output;
  uint64_t start, length;
  struct entry {
    uint64_t start, length;
    unsigned depth;
    bool present, zero, data, compressed, has_offset;
    uint64_t offset;
    const char *filename;
  } last;   /* length 0: none */
  bool any; /* something was printed */
};

/* ---- printing -------------------------------------------------------------------------------- */

static bool
print_json (struct mapping *m, const struct entry *e)
{
  json_t *j = json_pack ("{s:I, s:I, s:i, s:b, s:b, s:b, s:b}", "start", (json_int_t)e->start,
                         "length", (json_int_t)e->length, "depth", (int)e->depth, "present",
                         e->present, "zero", e->zero, "data", e->data, "compressed", e->compressed);
  int r = -1;

  if (e->has_offset)
    json_object_set_new (j, "offset", json_integer ((json_int_t)e->offset));
  if (m->any)
    printf (",\n");
  if (j)
    r = json_dumpf (j, stdout, 0);
  json_decref (j);
  if (r < 0)
    img_error ("cannot print the JSON: out of memory, or stdout cannot be written");
  return r == 0;
}

static bool
print_human (const struct entry *e)
{
  if (!e->data || e->zero)
    return true;
  if (!e->has_offset) {
    img_error ("the disk has compressed or encrypted clusters from offset %llu on, which the text "
               "cannot show: use --output=json",
               (unsigned long long)e->start);
    return false;
  }
  printf ("%#-16llx%#-16llx%#-16llx%s\n", (unsigned long long)e->start,
          (unsigned long long)e->length, (unsigned long long)e->offset, img_plain (e->filename));
  return true;
}

static bool
print_last (struct mapping *m)
{
  /* qemu-img's JSON has an entry also for nothing at all. */
  if (m->last.length == 0 && (m->any || m->output == OUTPUT_HUMAN))
    return true;
  if (!(m->output == OUTPUT_JSON ? print_json (m, &m->last) : print_human (&m->last)))
    return false;
  m->any = true;
  return true;
}

/* ---- entries --------------------------------------------------------------------------------- */

static bool
continues (const struct entry *a, const struct entry *b)
{
  return a->length && a->present == b->present && a->zero == b->zero && a->data == b->data &&
         a->compressed == b->compressed && a->depth == b->depth && a->has_offset == b->has_offset &&
         a->filename == b->filename && (!a->has_offset || a->offset + a->length == b->offset);
}

static bool
add (struct mapping *m, struct entry e)
{
  /* The text shows nothing of either, so that they are one. */
  if (m->output == OUTPUT_HUMAN && (!e.data || e.zero))
    e = (struct entry){ .start = e.start, .length = e.length, .zero = true };
  if (continues (&m->last, &e)) {
    m->last.length += e.length;
    return true;
  }
  if (m->last.length && !print_last (m))
    return false;
  m->last = e;
  return true;
}

static int
add_extent (void *opaque, const struct img_extent *x)
{
  struct mapping *m = opaque;
  struct entry e = {
    .start = x->offset,
    .length = x->e.len,
    .depth = x->absent ? x->e.depth - 1u : x->e.depth, /* of the layer that was asked last */
    .present = !x->absent,
    .zero = x->reads_zero,
    .data = x->e.kind != Q_ZERO,
    .compressed = x->e.kind == Q_COMPRESSED,
  };

  if (x->e.kind != Q_COMPRESSED && x->e.file) {
    e.has_offset = true;
    e.offset = x->e.host;
    e.filename = x->e.file->name;
  }
  return add (m, e) ? 0 : REPORTED;
}

static bool
walk (struct mapping *m, struct q_image *img)
{
  struct img_layers layers;
  int r;

  img_layers_init (&layers, img);
  r = img_walk (&layers, m->start, m->length, add_extent, m);
  if (r < 0)
    img_error ("%s: cannot read the mapping: %s", q_filename (img), strerror (-r));
  return r == 0 && print_last (m);
}

static bool
print_map (struct mapping *m, struct q_image *img)
{
  if (m->start > q_size (img))
    m->length = 0;
  else if (m->length > q_size (img) - m->start)
    m->length = q_size (img) - m->start;
  m->last.start = m->start;
  if (m->output == OUTPUT_HUMAN)
    printf ("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
  else
    putchar ('[');
  if (!walk (m, img))
    return false;
  if (m->output == OUTPUT_JSON)
    printf ("]\n");
  return true;
}

/* ---- the command line ------------------------------------------------------------------------ */

static int
map (struct mapping *m)
{
  struct q_image *img = img_open_spec (&m->spec);
  bool ok = img && (m->output == OUTPUT_SVG ? img_map_svg (img) : print_map (m, img));

  return img_close (&img) && ok ? 0 : 1;
}

static bool
parse_map_output (const char *text, enum output *output)
{
  if (strcmp (text, "human") == 0)
    *output = OUTPUT_HUMAN;
  else if (strcmp (text, "json") == 0)
    *output = OUTPUT_JSON;
  else if (strcmp (text, "svg") == 0)
    *output = OUTPUT_SVG;
  else {
    img_error ("--output '%s' is not known: it is human, json or svg", text);
    return false;
  }
  return true;
}

static int
run (int argc, char **argv)
{
  enum { OUTPUT = IMG_OPT_LONG };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "output", required_argument, NULL, OUTPUT },
                                           { "start-offset", required_argument, NULL, 's' },
                                           { "max-length", required_argument, NULL, 'l' },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct mapping m = { .length = UINT64_MAX };
  int status = 0, letter;

  while ((letter = img_getopt (&img_map_command, argc, argv, ":f:s:l:Uh", options, &status)) != -1)
    switch (letter) {
    case 'f':
      m.spec.format = optarg;
      break;
    case 's':
      if (!img_parse_size ("start offset", optarg, &m.start))
        return 1;
      break;
    case 'l':
      if (!img_parse_size ("max length", optarg, &m.length))
        return 1;
      break;
    case OUTPUT:
      if (!parse_map_output (optarg, &m.output))
        return 1;
      break;
    default:
      if (!img_image_option (&m.spec, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1)
    return img_error ("map: one file name is needed, %d were given", argc - optind);
  m.spec.name = argv[optind];
  return map (&m);
}

const struct img_command img_map_command = {
  .name = "map",
  .run = run,
  .summary = "Show where each part of a disk is",
  .synopsis = "[-f FORMAT] [-s OFFSET] [-l LENGTH] [--output=human|json|svg] [-U] FILE",
  .help = "  -f, --format=FORMAT         qcow2 or raw (default: what the file begins with)\n"
          "  -s, --start-offset=OFFSET   from there on (default: from the beginning)\n"
          "  -l, --max-length=LENGTH     so much (default: up to the end)\n"
          "      --output=FORMAT         human (default), json, or svg: a picture of the file\n"
          "  -U, --force-share           also of an image that is being written\n",
};
