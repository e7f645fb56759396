/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making images: what create has in common with the sub-commands that make one to write to, or
 * reckon what it would be like.
 *
 *     struct img_creation c;
 *     img_creation_init (&c);
 *     c.raw = ...                       before anything else
 *     img_creation_set (&c, pair)       for each pair of -o
 *     c.filename, c.size = ...
 *     img_creation_make (&c)
 */

#ifndef CREATE_H
#define CREATE_H

#include "img.h"

/* What -o said about encryption; NULL: nothing. */
struct img_encryption {
  bool given;
  const char *format, *key_secret, *cipher_alg, *cipher_mode, *ivgen_alg, *ivgen_hash_alg,
      *hash_alg, *iter_time;
};

struct img_creation {
  const char *filename;
  bool raw, quiet, unsafe;
  bool unsynced; /* it need not survive a power cut */
  bool has_size;
  uint64_t size;
  const char *compat; /* as given, for the report */
  const char *preallocation;
  struct img_encryption encryption; /* see encrypt.h */
  struct q_create_options opts;     /* its strings belong to whoever gave them */
};

void img_creation_init (struct img_creation *c);
/* Takes one option of -o.  Reports what is wrong; false then. */
bool img_creation_set (struct img_creation *c, const struct img_pair *pair);
/* Makes the image, emptying a file that is there.  Reports what is wrong; false then. */
bool img_creation_make (struct img_creation *c);

/* If TEXT, an argument of -o, asks which options there are: prints them, of format NAME (NULL: of
 * all).  True then. */
bool img_creation_help (const char *text, const char *name);

#endif /* CREATE_H */
