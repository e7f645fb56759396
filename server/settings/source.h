/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where the bytes of an export come from: an image file, how it is to be opened, and which part of
 * it is meant.  Made from a file name, from json:{...} as QEMU's tools pass images around, or from
 * the tree of settings that --image-opts and --export give.
 *
 * The tree is QEMU's: nodes with a "driver", each over the one in its "file".  At the bottom a file
 * or a block device; above it at most one qcow2; raw nodes, which choose a part by offset and size,
 * anywhere above the file.  The "backing" of a qcow2 node is null or such a tree again, in which
 * the file may be left out: then it is the one that the image names.  What is given is the user's
 * word: the policies for what images name (open.backing, open.data_file_policy) have no part in it.
 */

#ifndef SOURCE_H
#define SOURCE_H

#include <jansson.h>

#include "objects.h"
#include "qcow2.h"

#define SOURCE_TO_END UINT64_MAX

enum detect_zeroes { DETECT_ZEROES_OFF, DETECT_ZEROES_ON, DETECT_ZEROES_UNMAP };

/* Layers of a chain that settings may be about. */
#define SOURCE_LAYERS 32

struct members;

/* A layer below the top, as far as the user has named it. */
struct source_below {
  char *filename, *data_file; /* NULL: what the images say */
  struct slice *slice;        /* the part of the file that the layer is; NULL if all of it */
};

struct source {
  char *filename;
  char *data_file;            /* NULL: what the image says; open.data_file is the same */
  struct q_open_options open; /* its strings belong to whoever set them; opener, layers are ours */
  bool write_through, ignore_flush;
  bool compress; /* what is written in whole clusters; open.compression_level says how much */
  enum detect_zeroes detect_zeroes;
  uint64_t offset, size;         /* the part of the disk in the image; size may be SOURCE_TO_END */
  struct slice *slice;           /* the part of the file that the image is; NULL if all of it */
  const struct objects *objects; /* where key-secret is looked up, loaded; may be NULL */
  struct q_layer
      layers[SOURCE_LAYERS]; /* what open.layers points to, and what that points to ... */
  struct source_below below[SOURCE_LAYERS]; /* ... but for secrets; the first one is not used */
  struct q_secret *overlay_key;             /* of a temporary overlay (throwaway.h); not copied */
};

/* NAME is a file name, file:NAME or json:{...}.  The rest of S, which the caller has filled in with
 * defaults, is changed by what the JSON says.  Returns 0 or -errno. */
int source_from_name (struct source *s, const char *name, struct q_error *err);
/* The same from a tree of settings; WHAT is the option that they came with. */
int source_from_tree (struct source *s, json_t *tree, const char *what, struct q_error *err);
/* The modes of qemu-nbd's --cache and --discard.  False: there is none of that name. */
bool source_set_cache (struct source *s, const char *mode);
bool source_set_discard (struct source *s, const char *mode);
bool source_set_format (struct source *s, const char *format);
bool source_set_detect_zeroes (struct source *s, const char *mode);
/* The engine's words (q_backing_parse, q_data_file_parse); on or off. */
bool source_set_backing (struct source *s, const char *mode);
bool source_set_data_file_policy (struct source *s, const char *mode);
bool source_set_lock (struct source *s, const char *mode);
/* on (also NULL), off, or a level. */
bool source_set_compress (struct source *s, const char *how);
/* The member "compress" of an object of settings, if it is there: true, false, or the same. */
void source_take_compress (struct source *s, struct members *m);
/* The secret ID of OPTION opens what is LAYER below the top. */
int source_set_key (struct source *s, unsigned layer, const char *option, const char *id,
                    struct q_error *err);
/* The external data file, whatever the image says.  False: out of memory. */
bool source_set_data_file (struct source *s, const char *name);
/* The same of the layer that is LAYER below the top. */
bool source_set_layer_data_file (struct source *s, unsigned layer, const char *name);
/* What is said of that layer; NULL: there are not so many. */
struct q_layer *source_layer (struct source *s, unsigned layer);
/* Whether the chain is another one than the images record. */
bool source_names_layers (const struct source *s);
/* The image FILENAME (taken over), which is qcow2, comes on top: what S was, of that FORMAT, is its
 * backing file.  -E2BIG. */
int source_push (struct source *s, char *filename, enum q_format format);
int source_copy (struct source *to, const struct source *from);
/* Its keys, which are somebody else's, are not looked at any more. */
void source_forget_keys (struct source *s);
/* What is said of FROM's layers and its data file is said of those of S, which has the strings on
 * loan; FROM may be NULL: nothing is. */
void source_borrow_chain (struct source *s, const struct source *from);
void source_free (struct source *s);

#endif /* SOURCE_H */
