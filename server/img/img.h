/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdcow-img: what the sub-commands share.  One file a sub-command; main.c dispatches.
 *
 * A sub-command is called with its own name as argv[0], and returns the exit status.  What it says
 * is compatible with qemu-img: option names, JSON keys, exit statuses.
 */

#ifndef NBDCOW_IMG_H
#define NBDCOW_IMG_H

#include <getopt.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

struct img_command {
  const char *name;
  int (*run) (int argc, char **argv);
  const char *summary;  /* one line, for the list of commands */
  const char *synopsis; /* what follows "nbdcow-img NAME" */
  const char *help;     /* its options, for NAME --help */
};

extern const struct img_command img_amend_command;
extern const struct img_command img_check_command;
extern const struct img_command img_bench_command;
extern const struct img_command img_commit_command;
extern const struct img_command img_compact_command;
extern const struct img_command img_bitmap_command;
extern const struct img_command img_compare_command;
extern const struct img_command img_convert_command;
extern const struct img_command img_create_command;
extern const struct img_command img_dd_command;
extern const struct img_command img_diff_command;
extern const struct img_command img_info_command;
extern const struct img_command img_map_command;
extern const struct img_command img_measure_command;
extern const struct img_command img_rebase_command;
extern const struct img_command img_recompress_command;
extern const struct img_command img_resize_command;
extern const struct img_command img_snapshot_command;

/* ---- messages (cmdline.c) -------------------------------------------------------------------- */

/* One line on stderr after the program's name.  img_error returns 1, the exit status for it. */
int img_error (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));
void img_warning (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));

/* ---- command line (cmdline.c) ---------------------------------------------------------------- */

/* What every sub-command understands. */
#define IMG_COMMON_OPTIONS                                                                         \
  { "help", no_argument, NULL, 'h' },                                                              \
  {                                                                                                \
    NULL, 0, NULL, 0                                                                               \
  }

/* What every sub-command understands that opens images: see img_image_option. */
#define IMG_IMAGE_OPTIONS                                                                          \
  { "force-share", no_argument, NULL, 'U' }, { "image-opts", no_argument, NULL, IMG_OPT_OPTS },    \
      { "object", required_argument, NULL, IMG_OPT_OBJECT },                                       \
      { "key-file", required_argument, NULL, IMG_OPT_KEY_FILE },                                   \
      { "backing-mode", required_argument, NULL, IMG_OPT_BACKING_MODE },                           \
      { "data-file", required_argument, NULL, IMG_OPT_DATA_FILE },                                 \
      { "data-file-policy", required_argument, NULL, IMG_OPT_DATA_FILE_POLICY },                   \
  {                                                                                                \
    "untrusted", no_argument, NULL, IMG_OPT_UNTRUSTED                                              \
  }

/* What those understand that work for long: see img_work_option. */
#define IMG_WORK_OPTIONS                                                                           \
  { "rate-limit", required_argument, NULL, 'r' }, { "progress", no_argument, NULL, 'p' },          \
  {                                                                                                \
    "quiet", no_argument, NULL, 'q'                                                                \
  }

/* Values of long options without a letter; a sub-command's own start at IMG_OPT_LONG. */
enum {
  IMG_OPT_OPTS = 256,
  IMG_OPT_OBJECT,
  IMG_OPT_KEY_FILE,
  IMG_OPT_BACKING_MODE,
  IMG_OPT_DATA_FILE,
  IMG_OPT_DATA_FILE_POLICY,
  IMG_OPT_UNTRUSTED,
  IMG_OPT_LONG
};

/* getopt_long, with these differences: an option that is unknown or lacks its argument is reported
 * and comes back as '?', and --help is printed and comes back as 'h': in both cases the
 * sub-command returns what *STATUS says. */
int img_getopt (const struct img_command *cmd, int argc, char **argv, const char *letters,
                const struct option *options, int *status);

/* "1.5G" and the like, as qemu-img has it: a number, in hexadecimal after 0x, then b, k, M, G, T, P
 * or E.  Reports what is wrong, naming WHAT; false then. */
bool img_parse_size (const char *what, const char *text, uint64_t *bytes);
/* A decimal number from MIN to MAX. */
bool img_parse_number (const char *what, const char *text, uint64_t min, uint64_t max,
                       uint64_t *number);
/* "on" or "off", and what else qemu-img takes for them. */
bool img_parse_bool (const char *what, const char *text, bool *value);
/* qcow2, raw; reports anything else. */
bool img_parse_format (const char *text, enum q_format *format);
/* -o compat=: 2 or 3. */
bool img_parse_compat (const char *text, unsigned *version);
/* -o refcount_bits=. */
bool img_parse_refcount_bits (const char *text, unsigned *bits);
/* -o compression_type=, --type=. */
bool img_parse_compression (const char *what, const char *text, bool *zstd);
/* --state-dir=: an absolute name, or off: NULL. */
bool img_parse_state_dir (const char *text, const char **dir);
/* -l: an id or name as it is, or after snapshot.id= or snapshot.name=. */
const char *img_snapshot_name (const char *text);
/* human, json. */
bool img_parse_output (const char *text, bool *json);

/* -o key=value,key=value: a comma in a value is doubled; a key alone stands for key=on. */
struct img_pair {
  char *key, *value;
};
struct img_pairs {
  struct img_pair *pair;
  size_t n;
};
/* Adds the pairs in TEXT; keys may repeat.  Ends the program when memory runs out. */
void img_pairs_add (struct img_pairs *pairs, const char *text);
/* The last value for KEY, or NULL. */
const char *img_pairs_get (const struct img_pairs *pairs, const char *key);
void img_pairs_free (struct img_pairs *pairs);

/* ---- images (image.c) ------------------------------------------------------------------------ */

/* What the command line says about one image.  Zeroed, it is the safe default: read-only, locked,
 * with its backing files, the format found out. */
struct img_spec {
  const char *name;         /* a file, json:{...}, an NBD URI; with image_opts, KEY=VALUE,... */
  const char *named_by;     /* the image that says NAME, for messages, or NULL */
  const char *format;       /* -f; NULL: as img_probe says */
  const char *cache;        /* -t, -T: a mode of qemu-img's; NULL: writeback.  unsafe: nothing is
                             * synced, so the caller's flushes are for the order alone */
  const char *snapshot;     /* -l */
  const char *backing_mode; /* recorded (default), ...: see q_backing_parse */
  const char *data_file;    /* NULL: what the image says ... */
  const char *data_file_policy; /* ... as far as this lets it: see q_data_file_parse */
  unsigned recorded;            /* not 0: an image says NAME, and it is a path: see img_follow */
  int compression_level;        /* see q_open_options */
  bool untrusted;               /* the image is opened and no other file, but for what is said */
  bool image_opts;              /* --image-opts */
  bool force_share;             /* -U */
  bool writable;
  bool discard;       /* see q_open_options */
  bool metadata_only; /* likewise */
  bool repair;        /* likewise */
  bool raw_too;       /* with writable: it may as well be a raw disk, so that a format which is
                       * found out says nothing: no data file is opened by it */
};

/* Takes one of IMG_IMAGE_OPTIONS, as img_getopt returned it, into SPEC, or the definition of a
 * secret into img_objects.  True if LETTER is one of them; *STATUS is set if it could not be taken,
 * and then it was reported. */
bool img_image_option (struct img_spec *spec, int letter, int *status);
/* The same of IMG_WORK_OPTIONS, into WORK, and of those. */
struct img_work;
bool img_work_option (struct img_work *work, struct img_spec *spec, int letter, int *status);
/* What --object defined so far. */
struct objects;
extern struct objects img_objects;
/* Reads the secrets among them; reports what is wrong.  Opening an image does it. */
bool img_load_secrets (void);
/* What opens IMG, which img_open_spec opened: by its settings, or --key-file.  NULL: nothing. */
const struct q_secret *img_secret_of (const struct q_image *img);
/* At the end: wipes them. */
void img_forget_secrets (void);

/* Opens what SPEC says, and reports what is wrong; NULL then.  What the image needs beside itself
 * lives until the program ends.  What is writable, and not for a repair, first gets what a
 * killed server left of it in the default state directory: img_finish_session before it means
 * another one. */
struct q_image *img_open_spec (const struct img_spec *spec);
/* Opens files as BELOW (NULL: local ones) does, and never syncs them. */
const struct q_file_opener *img_unsynced (const struct q_file_opener *below);
/* If SPEC names an image whose server was killed: brings what that had acknowledged into it, from
 * STATE_DIR (see q_open_options; NULL: does without), and ends its session.  False, and reported,
 * if that takes a data file that cannot be opened. */
bool img_finish_session (const struct img_spec *spec, const char *state_dir);
/* Whether two names lead to one file that is there. */
bool img_same_file (const char *a, const char *b);
/* Whether NAME leads to a file that IMG (may be NULL), or an image below it, is read from.  Locks
 * say so too, but not under -U. */
bool img_reads (struct q_image *img, const char *name);
/* Whether all LEN bytes are 0. */
bool img_is_zero (const void *buf, uint64_t len);
/* The names of qemu-img's cache modes; reports any other. */
bool img_check_cache (const char *mode);

/* What a file is when nobody has said: qcow2 if it begins with its magic, else raw. */
bool img_probe (const char *filename, enum q_format *format);
const char *img_format_name (enum q_format format);
/* Opens an image; AUTO is probed.  Reports what is wrong; NULL then. */
struct q_image *img_open (const char *filename, const struct q_open_options *opts);
/* Whether no layer of IMG's chain has the extent, which q_map gave: zeros for want of anything. */
bool img_extent_is_absent (const struct q_image *img, const struct q_extent *e);

/* All bitmaps of IMG, *N of them; to be freed.  NULL, and reported, if that cannot be said. */
struct q_bitmap_info *img_list_bitmaps (struct q_image *img, unsigned *n); /* bitmap.c */

/* The layers of a chain, for img_walk. */
struct img_layers {
  unsigned n;
  struct {
    struct q_image *image;
    bool sparse; /* q_is_sparse */
  } layer[Q_MAX_CHAIN];
};
void img_layers_init (struct img_layers *l, struct q_image *img);

struct img_extent {
  uint64_t offset;   /* on the disk */
  struct q_extent e; /* as from Q_MAP_HOST */
  bool absent;       /* no layer has it */
  bool reads_zero;   /* Q_ZERO, or data that is a hole in a sparse file */
};
/* Calls FN, under a pin, for each extent of [OFFSET, OFFSET + LEN), which lies on the disk, in
 * order.  Extents are not merged.  Returns what the first call that did not return 0 did, or a
 * negative errno. */
typedef int (*img_extent_fn) (void *opaque, const struct img_extent *x);
int img_walk (const struct img_layers *l, uint64_t offset, uint64_t len, img_extent_fn fn,
              void *opaque);

/* Closes it; false, and reported, if what was written may be lost. */
bool img_close (struct q_image **img);
/* What opens IMG's backing file, as far as the words in TOP, about the chain that IMG is in, let it
 * be opened: *BELOW gets its name, which the caller frees and nobody takes for anything but a path
 * (recorded), its format, those words, and IMG's name, until IMG is closed; the rest is as in a new
 * one.  -ENOENT if there is none; other errors are reported. */
int img_follow (struct q_image *img, const struct img_spec *top, struct img_spec *below,
                char **path);
/* False, and reported, if IMG was opened with another backing file than it records (or with none):
 * for those who follow what is recorded, and write it. */
bool img_chain_is_recorded (const struct q_image *img);
/* NAME as OVERLAY would find it: relative to the overlay's directory.  NULL, and reported, if it
 * is not a local file.  The caller frees. */
char *img_backing_path (const char *overlay, const char *name);

/* ---- long work (progress.c, pieces.c) ------------------------------------------------------- */

/* Progress of one piece of work at a time, counted in whatever unit TOTAL has.  WANTED is -p: a
 * line on stdout as qemu-img has it, or a bar if that is a terminal.  Without it, a bar appears on
 * a terminal at stderr when the work takes long, unless QUIET (-q); and SIGUSR1 makes a line on
 * stderr, as with qemu-img.  A sub-command calls begin before anything long, and end in any case.
 */
void img_progress_begin (bool wanted, bool quiet, uint64_t total);
void img_progress_add (uint64_t done);   /* any thread */
void img_progress_more (uint64_t total); /* there is more to do than was thought */
void img_progress_end (void);

/* From here on SIGINT, SIGTERM and SIGHUP are noted, and the second one kills.  Whoever works for
 * long asks img_interrupted between two steps that leave a sound image, cleans up, and returns
 * -EINTR or a status; main then ends the program by that signal. */
void img_catch_signals (void);
int img_interrupted (void); /* the signal, or 0 */

/* How a piece of work is to be done. */
struct img_work {
  uint64_t rate; /* --rate-limit: bytes a second in all threads together; 0: as fast as can be */
  bool progress, quiet;
};
/* img_catch_signals and img_progress_begin, and from here on that rate; img_progress_end ends it.
 */
void img_work_begin (const struct img_work *work, uint64_t total);
/* Pays for BYTES: returns when more may be moved, or when interrupted. */
void img_rate_pay (uint64_t bytes);

/* Calls WORK for the pieces of [0, LEN), PIECE bytes each but for the last, from THREADS threads
 * (0: one for each processor, at most 16) in ascending order.  Stops at the first piece that does
 * not return 0, or when interrupted (-EINTR), and returns that piece's value when all calls have
 * ended. Of several that failed the lowest piece's counts. */
typedef int (*img_piece_fn) (void *opaque, uint64_t offset, uint64_t len);
int img_for_pieces (uint64_t len, uint64_t piece, unsigned threads, img_piece_fn work,
                    void *opaque);
/* How many threads 0 stands for. */
unsigned img_default_threads (void);

/* What compact does, to the image that SPEC, open for writing, names (compact.c).  Reports what is
 * wrong; false then. */
bool img_compact (const struct img_spec *spec, const char *state_dir, const struct img_work *work,
                  struct q_compact_result *result);
/* What became of a file: N clusters were WHAT, "moved" say, which JSON calls KEY. */
bool img_print_shorter (const char *name, const char *key, const char *what, uint64_t n,
                        const struct q_compact_result *r, bool json, bool quiet);

/* ---- output (output.c) ----------------------------------------------------------------------- */

/* "976 KiB": three digits of the largest unit.  TEXT has at least 32 bytes. */
const char *img_size_text (uint64_t bytes, char text[32]);
/* A name that an image has, for people (q_make_printable); valid until the program ends. */
const char *img_plain (const char *name);
/* The same for JSON, which can have all but what is not UTF-8: that is replaced by U+FFFD. */
json_t *img_json_name (const char *name);
/* Prints JSON the way qemu-img does and frees it; false if stdout could not be written. */
bool img_print_json (json_t *json);
/* Ends output: a full disk or closed pipe is an error like any other.  Returns STATUS or 1. */
int img_finish_output (int status);

#endif /* NBDCOW_IMG_H */
