/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img resize: makes a disk larger or smaller.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "img.h"

/* Between two looks at whether somebody wants it to stop; and if it is not to go fast anyway. */
#define PIECE         (64ull << 20)
#define LIMITED_PIECE (1ull << 20)

struct resizing {
  struct img_spec spec;
  enum q_preallocation preallocation;
  struct img_work work;
  bool shrink;
  int sign; /* of a size that is relative; 0: it is not */
  uint64_t size;
};

/* The size that the disk is to have. */
static bool
new_size (const struct resizing *z, const struct q_image *img, uint64_t *size)
{
  const uint64_t old = q_size (img);

  if (z->sign > 0 && z->size > INT64_MAX - old) {
    img_error ("%s: a disk of %llu bytes cannot grow by %llu", q_filename (img),
               (unsigned long long)old, (unsigned long long)z->size);
    return false;
  }
  *size = z->sign > 0 ? old + z->size : z->sign < 0 ? (z->size < old ? old - z->size : 0) : z->size;
  if (*size == 0) {
    img_error ("New image size must be positive: %s has %llu bytes", q_filename (img),
               (unsigned long long)old);
    return false;
  }
  /* A disk is whole sectors. */
  *size = *size > INT64_MAX - 511 ? *size : (*size + 511) / 512 * 512;
  return true;
}

static int
preallocate (const struct resizing *z, struct q_image *img, uint64_t from, uint64_t to)
{
  const uint64_t piece = z->work.rate ? LIMITED_PIECE : PIECE;
  int r = 0;

  img_work_begin (&z->work, to - from);
  for (uint64_t n; r == 0 && from < to; from += n) {
    n = piece - from % piece;
    n = n < to - from ? n : to - from;
    img_rate_pay (n);
    r = img_interrupted () ? -EINTR : q_preallocate (img, from, n, z->preallocation);
    img_progress_add (n);
  }
  img_progress_end ();
  if (r == 0)
    return 0;
  return img_error ("%s: the disk has grown, but not all of it could be preallocated: %s",
                    q_filename (img), r == -EINTR ? "interrupted" : strerror (-r));
}

static int
resize_image (const struct resizing *z, struct q_image *img)
{
  uint64_t old = q_size (img), size;
  struct q_error err;
  int r;

  if (!new_size (z, img, &size))
    return 1;
  if (size <= old && z->preallocation != Q_PREALLOC_OFF)
    return img_error ("Preallocation can only be used for growing images: %s has %llu bytes",
                      q_filename (img), (unsigned long long)old);
  if (z->preallocation == Q_PREALLOC_METADATA && q_image_format (img) == Q_FORMAT_RAW)
    return img_error ("%s: preallocation mode 'metadata' is not possible for a raw disk",
                      q_filename (img));
  if (size < old && !z->shrink) {
    img_error ("Use the --shrink option to perform a shrink operation: what %s has beyond %llu "
               "bytes would be deleted",
               q_filename (img), (unsigned long long)size);
    return 1;
  }
  r = size < old ? q_shrink (img, size, &err) : q_resize (img, size, &err);
  if (r < 0)
    return img_error ("%s", err.text);
  if (size > old && z->preallocation != Q_PREALLOC_OFF && preallocate (z, img, old, size) != 0)
    return 1;
  if (!z->work.quiet)
    printf ("Image resized.\n");
  return 0;
}

static bool
parse_preallocation (struct resizing *z, const char *text)
{
  static const struct {
    const char *name;
    enum q_preallocation mode;
  } modes[] = { { "off", Q_PREALLOC_OFF },
                { "metadata", Q_PREALLOC_METADATA },
                { "falloc", Q_PREALLOC_FALLOC },
                { "full", Q_PREALLOC_FULL } };

  for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++)
    if (strcmp (text, modes[i].name) == 0) {
      z->preallocation = modes[i].mode;
      return true;
    }
  img_error ("Invalid preallocation mode '%s': it is off, metadata, falloc or full", text);
  return false;
}

static bool
parse_size (struct resizing *z, const char *text)
{
  z->sign = *text == '+' ? 1 : *text == '-' ? -1 : 0;
  return img_parse_size ("size", text + (z->sign != 0), &z->size);
}

static int
resize (struct resizing *z)
{
  struct q_image *img;
  int status;

  z->spec.writable = true;
  z->spec.raw_too = true;
  z->spec.discard = true; /* what is cut off is given back to the file system */
  img = img_open_spec (&z->spec);
  if (!img)
    return 1;
  status = resize_image (z, img);
  return img_close (&img) ? status : 1;
}

static int
run (int argc, char **argv)
{
  enum { SHRINK = IMG_OPT_LONG, PREALLOCATION };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "shrink", no_argument, NULL, SHRINK },
                                           { "preallocation", required_argument, NULL,
                                             PREALLOCATION },
                                           IMG_WORK_OPTIONS,
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct resizing z = { 0 };
  const char *size = NULL;
  int letter, status = 0;

  /* As in qemu-img the size is the last argument: "-1G" is no option. */
  if (argc > 2 && strcmp (argv[argc - 1], "--help") != 0 && strcmp (argv[argc - 1], "-h") != 0)
    size = argv[--argc];
  while ((letter = img_getopt (&img_resize_command, argc, argv, ":f:r:pqUh", options, &status)) !=
         -1)
    switch (letter) {
    case 'f':
      z.spec.format = optarg;
      break;
    case SHRINK:
      z.shrink = true;
      break;
    case PREALLOCATION:
      if (!parse_preallocation (&z, optarg))
        return 1;
      break;
    default:
      if (!img_work_option (&z.work, &z.spec, letter, &status) || status)
        return status;
    }
  if (argc - optind != 1 || !size)
    return img_error ("resize: a file name and then a size are needed");
  if (!parse_size (&z, size))
    return 1;
  z.spec.name = argv[optind];
  return resize (&z);
}

const struct img_command img_resize_command = {
  .name = "resize",
  .run = run,
  .summary = "Make a disk larger or smaller",
  .synopsis = "[-f FORMAT] [--preallocation=MODE] [--shrink] [-r RATE] [-p] [-q] FILE [+|-]SIZE",
  .help = "  -f, --format=FORMAT         qcow2 or raw (default: what the file begins with)\n"
          "      --preallocation=MODE    of what is new: off (default), metadata, falloc, full\n"
          "      --shrink                allow making it smaller: what is cut off is lost\n"
          "  -r, --rate-limit=RATE       bytes a second that are preallocated\n"
          "  -p, --progress              show how far preallocating is\n"
          "  -q, --quiet                 say nothing but what is wrong\n",
};
