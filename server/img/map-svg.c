/* SPDX-License-Identifier: BSD-3-Clause
 *
 * map --output=svg: a picture of the host file.
 *
 * Above, the file from its beginning to its end, row by row, coloured by what it is used for; a
 * cell stands for several clusters, and shows the share of each use as a bar.  Below, where each
 * part of the disk is in the file: a disk that lies in order is a line, fragments are dust.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"
#include "map-svg.h"

#define COLUMNS   96u
#define ROWS      40u
#define CELL      10u /* pixels */
#define PLOT      400u
#define LEFT      20u
#define TOP       70u
#define MAX_LINES 20000u

static const struct {
  const char *name, *colour;
} uses[] = {
  [Q_USE_FREE] = { "free", "#f2f2f2" },
  [Q_USE_DATA] = { "data", "#4c78a8" },
  [Q_USE_COMPRESSED] = { "compressed", "#72b7b2" },
  [Q_USE_TABLE] = { "tables", "#f58518" },
  [Q_USE_REFCOUNTS] = { "refcounts", "#eeca3b" },
  [Q_USE_LEAKED] = { "leaked", "#e45756" },
};
#define USES (sizeof uses / sizeof uses[0])

struct picture {
  struct q_image *img;
  uint64_t file_size, disk_size;
  uint64_t per_cell;      /* bytes */
  uint64_t total[USES];   /* bytes */
  uint64_t (*cell)[USES]; /* bytes of each use; COLUMNS * ROWS of them */
  unsigned lines;
  uint64_t fragments, next; /* runs of the disk, and where the next one would be no fragment */
};

static void
text (const char *s)
{
  for (; *s; s++)
    switch (*s) {
    case '<':
      fputs ("&lt;", stdout);
      break;
    case '&':
      fputs ("&amp;", stdout);
      break;
    default:
      putchar ((unsigned char)*s < 0x20 ? '?' : *s);
    }
}

static void
note_use (void *opaque, uint64_t offset, uint64_t len, enum q_use use)
{
  struct picture *p = opaque;

  p->total[use] += len;
  while (len > 0) {
    uint64_t cell = offset / p->per_cell, room = p->per_cell - offset % p->per_cell;
    uint64_t n = len < room ? len : room;

    if (cell >= COLUMNS * ROWS)
      return;
    p->cell[cell][use] += n;
    offset += n;
    len -= n;
  }
}

static void
draw_cell (const struct picture *p, unsigned i)
{
  const unsigned column = i % COLUMNS, row = i / COLUMNS;
  const double x = LEFT + column * CELL, y = TOP + row * CELL;
  double done = 0;

  for (unsigned use = 0; use < USES; use++) {
    double height = (double)p->cell[i][use] / (double)p->per_cell * (CELL - 1);

    if (p->cell[i][use] == 0)
      continue;
    printf ("<rect x=\"%.0f\" y=\"%.2f\" width=\"%u\" height=\"%.2f\" fill=\"%s\"/>\n", x, y + done,
            CELL - 1, height, uses[use].colour);
    done += height;
  }
}

static void
draw_legend (const struct picture *p)
{
  unsigned x = LEFT;

  for (unsigned use = 0; use < USES; use++) {
    char size[32];

    printf ("<rect x=\"%u\" y=\"48\" width=\"10\" height=\"10\" fill=\"%s\"/>"
            "<text x=\"%u\" y=\"57\">%s %s</text>\n",
            x, uses[use].colour, x + 14, uses[use].name, img_size_text (p->total[use], size));
    x += 150;
  }
}

/* A run of the disk in the image's own file. */
static int
draw_extent (void *opaque, const struct img_extent *x)
{
  struct picture *p = opaque;
  const double width = COLUMNS * CELL, top = TOP + ROWS * CELL + 60;

  if (x->e.depth != 0 || x->e.kind == Q_ZERO)
    return 0;
  if (p->next != x->e.host)
    p->fragments++;
  p->next = x->e.host + (x->e.kind == Q_DATA ? x->e.len : x->e.csize);
  if (p->lines++ >= MAX_LINES)
    return 0;
  printf ("M%.2f %.2fL%.2f %.2f\n", LEFT + (double)x->offset / (double)p->disk_size * width,
          top + (double)x->e.host / (double)p->file_size * PLOT,
          LEFT + (double)(x->offset + x->e.len) / (double)p->disk_size * width + 0.5,
          top + (double)p->next / (double)p->file_size * PLOT);
  return 0;
}

static int
draw_disk (struct picture *p)
{
  const unsigned top = TOP + ROWS * CELL + 60;
  struct img_layers layers;
  int r;

  printf ("<rect x=\"%u\" y=\"%u\" width=\"%u\" height=\"%u\" fill=\"none\" stroke=\"#999\"/>\n"
          "<path stroke=\"%s\" stroke-width=\"1.5\" fill=\"none\" d=\"",
          LEFT, top, COLUMNS * CELL, PLOT, uses[Q_USE_DATA].colour);
  img_layers_init (&layers, p->img);
  r = img_walk (&layers, 0, p->disk_size, draw_extent, p);
  printf ("\"/>\n<text x=\"%u\" y=\"%u\">The disk from left to right, the file from top to bottom: "
          "%llu runs%s</text>\n",
          LEFT, top - 10, (unsigned long long)p->fragments,
          p->lines > MAX_LINES ? ", the first of them shown" : "");
  return r;
}

bool
img_map_svg (struct q_image *img)
{
  struct picture p = { .img = img, .disk_size = q_size (img) };
  struct q_image_info info;
  struct q_error err = { "" };
  char size[32];
  int r;

  q_get_info (img, &info);
  p.file_size = info.file_size ? info.file_size : 1;
  p.disk_size = p.disk_size ? p.disk_size : 1;
  /* Whole clusters in a cell. */
  p.per_cell = (p.file_size / (COLUMNS * ROWS) / q_cluster_size (img) + 1) * q_cluster_size (img);
  p.cell = calloc (COLUMNS * ROWS, sizeof *p.cell);
  if (!p.cell) {
    img_error ("out of memory");
    return false;
  }
  r = q_survey (img, note_use, &p, &err);
  if (r < 0) {
    img_error ("%s", err.text);
    free (p.cell);
    return false;
  }
  printf ("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%u\" height=\"%u\" "
          "font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%%\" height=\"100%%\" "
          "fill=\"white\"/>\n<text x=\"%u\" y=\"25\" font-size=\"15\">",
          COLUMNS * CELL + 2 * LEFT, TOP + ROWS * CELL + 60 + PLOT + 20, LEFT);
  text (q_filename (img));
  printf (": %s</text>\n", img_size_text (p.file_size, size));
  draw_legend (&p);
  for (unsigned i = 0; i < COLUMNS * ROWS; i++)
    draw_cell (&p, i);
  r = draw_disk (&p);
  printf ("</svg>\n");
  free (p.cell);
  if (r < 0)
    img_error ("%s: cannot read the mapping: %s", q_filename (img), strerror (-r));
  return r == 0;
}
