/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img amend: changes the options of an image that is there.  Of those, the keys of an
 * encrypted one can be changed (encrypt.c).
 */

#include <stdlib.h>

#include "encrypt.h"

static int
amend (const struct img_spec *spec, const struct img_pairs *pairs, bool force)
{
  if (pairs->n == 0)
    return img_error ("amend: what is to change? -o KEY=VALUE,... is wanted");
  for (size_t i = 0; i < pairs->n; i++)
    if (!img_encrypt_is_key (pairs->pair[i].key))
      return img_error ("amend: option '%s' cannot be changed: encrypt.* can", pairs->pair[i].key);
  return img_encrypt_amend (spec, pairs, force);
}

static int
run (int argc, char **argv)
{
  enum { FORCE = IMG_OPT_LONG };
  static const struct option options[] = { { "format", required_argument, NULL, 'f' },
                                           { "options", required_argument, NULL, 'o' },
                                           { "cache", required_argument, NULL, 't' },
                                           { "progress", no_argument, NULL, 'p' },
                                           { "quiet", no_argument, NULL, 'q' },
                                           { "force", no_argument, NULL, FORCE },
                                           IMG_IMAGE_OPTIONS,
                                           IMG_COMMON_OPTIONS };
  struct img_pairs pairs = { 0 };
  struct img_spec spec = { 0 };
  bool force = false;
  int status = 0, letter;

  while ((letter = img_getopt (&img_amend_command, argc, argv, ":f:o:t:pqUh", options, &status)) !=
         -1)
    switch (letter) {
    case 'f':
      spec.format = optarg;
      break;
    case 'o':
      img_pairs_add (&pairs, optarg);
      break;
    case 't':
      spec.cache = optarg;
      break;
    case 'p':
    case 'q':
      break; /* it is done in no time, and says nothing */
    case FORCE:
      force = true;
      break;
    default:
      if (!img_image_option (&spec, letter, &status) || status)
        goto out;
    }
  if (argc - optind != 1) {
    status = img_error ("amend: one image is needed, %d were given", argc - optind);
    goto out;
  }
  spec.name = argv[optind];
  status = amend (&spec, &pairs, force);
out:
  img_pairs_free (&pairs);
  return status;
}

const struct img_command img_amend_command = {
  .name = "amend",
  .run = run,
  .summary = "Change the keys of an encrypted image",
  .synopsis = "[-f FORMAT] [--object SECRET] [--force] -o OPTIONS FILE",
  .help = "  -f, --format=FORMAT           qcow2\n"
          "      --object=secret,...       what options refer to\n"
          "      --image-opts              FILE is "
          "driver=qcow2,encrypt.key-secret=ID,file.filename=...\n"
          "      --key-file=FILE           the key that opens the image now\n"
          "      --force                   erase a key slot even if it is the last one\n"
          "  -t, --cache=MODE              how the image is opened\n"
          "  -o, --options=KEY=VALUE,...\n"
          "        encrypt.state=active    fill a key slot:\n"
          "          encrypt.new-secret=ID     what will open the image as well\n"
          "          encrypt.keyslot=N         0 to 7 (default: the first that is free)\n"
          "          encrypt.iter-time=MS      how long trying it is to take (default 2000)\n"
          "        encrypt.state=inactive  erase key slots:\n"
          "          encrypt.old-secret=ID     those that this opens\n"
          "          encrypt.keyslot=N         this one\n",
};
