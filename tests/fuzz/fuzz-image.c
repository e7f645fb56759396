/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An image in memory, hostile or sound, and whatever can be asked of it, in an order and with
 * options that the input chooses.
 *
 * The head of the input (packed.h) has the options and a program of requests; the rest is the
 * image.  What it may name is there as well (skeleton.h).
 *
 * The oracle, beside not crashing, hanging, leaking or asking for absurd amounts of memory:
 *
 * 1. An image in which the checker finds nothing wrong has nothing wrong in it afterwards, whatever
 *    was asked, also if the disk was full or failed meanwhile; and, if all went well, no more
 *    leaked clusters than before.
 * 2. Such an image is a disk: what is read is what was written (model.h), before and after it
 *    was closed, and in its snapshots.
 * 3. After a repair a second check finds what the first one said it left: nothing, as a rule.  A
 *    dry run foretells it.  The journal tells all that is changed, and nothing else (journal.h).
 * 4. Files below are never written, unless the image has one of them for its data file.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "format.h"
#include "fuzz.h"
#include "journal.h"
#include "model.h"
#include "mutate.h"
#include "packed.h"
#include "requests.h"
#include "skeleton.h"

#define MAX_GROWTH (8u << 20)

enum option_bits {
  READ_ONLY = 1,
  METADATA_ONLY = 2,
  DISCARD = 4,
  NO_UNREF = 8,
  TINY_CACHES = 16,
  NO_SECRET = 32,
  REPAIR = 64,
  COMPACT = 128,
};

struct choice {
  uint8_t bits;
  uint8_t policies; /* low half: backing files; high half: data files */
  uint8_t room;     /* 0: plenty; else so many half KiB until the disk is full */
  uint8_t failing;  /* 0: nothing; else the Nth call fails */
  uint8_t kind;     /* which calls those are; and how the image is opened */
  uint8_t level;    /* of compression */
  uint8_t storm;    /* odd: calls fail during the repair, too */
  uint8_t spare;
};

/* ---- storage --------------------------------------------------------------------------------- */

static struct mem_store store;
static struct mem_file *image, *data;

/* Files below, and what they held. */
static struct {
  const char *name;
  struct mem_file *file;
  uint8_t *was;
  bool is_data; /* the image says that this is its data file: it may be written */
} below[] = {
  { .name = "base" }, { .name = "base.qcow2" }, { .name = "middle.qcow2" }, { .name = "top.qcow2" }
};
#define N_BELOW (sizeof below / sizeof below[0])

static struct {
  enum mem_kind kind;
  unsigned left; /* until it fails; 0: never */
  bool failed;
} storm;

static int
on_call (void *opaque, const struct mem_call *call, uint64_t *partial)
{
  (void)opaque;
  (void)partial;
  if (storm.left == 0 || call->kind != storm.kind || --storm.left > 0)
    return 0;
  storm.failed = true;
  return -EIO;
}

static const struct mem_tap tap = { .before = on_call };

static uint8_t *
copy_of (const struct mem_file *f)
{
  uint8_t *copy = xalloc (f->size);

  memcpy (copy, f->data, f->size);
  return copy;
}

static void
set_up_once (void)
{
  if (image)
    return;
  mem_store_init (&store);
  skeleton_surroundings (&store);
  image = mem_add (&store, "image");
  data = mem_find (&store, "data");
  for (size_t i = 0; i < N_BELOW; ++i) {
    below[i].file = mem_find (&store, below[i].name);
    below[i].was = copy_of (below[i].file);
    below[i].file->limit = below[i].file->size;
  }
  mem_put_tap (image, &tap);
  mem_put_tap (data, &tap);
}

static void
set_up (const uint8_t *p, size_t n)
{
  uint64_t size = data->size;

  storm.left = 0;
  storm.failed = false;
  image->limit = data->limit = 0;
  packed_put (image, p, n);
  mem_resize (data, 0);
  mem_resize (data, size < (128u << 10) ? size : 128u << 10);
  image->limit = image->size + MAX_GROWTH;
  data->limit = MAX_GROWTH;
}

static void
note_data_file (struct q_image *img)
{
  struct q_image_info info;

  q_get_info (img, &info);
  for (size_t i = 0; i < N_BELOW; ++i)
    if (info.data_file && strcmp (info.data_file, below[i].name) == 0)
      below[i].is_data = true;
}

/* What was written by right is put back. */
static void
check_below (void)
{
  for (size_t i = 0; i < N_BELOW; ++i) {
    struct mem_file *f = below[i].file;

    if (below[i].is_data)
      mem_set (f, below[i].was, f->limit);
    else if (f->size != f->limit || memcmp (f->data, below[i].was, f->size) != 0)
      broken ("%s, which is below, was written", below[i].name);
    below[i].is_data = false;
  }
}

/* ---- the checker ----------------------------------------------------------------------------- */

struct verdict {
  bool checked; /* the check could be carried out */
  bool trouble; /* the dirty or the corrupt bit is set */
  struct q_check_result r;
  struct q_error err;
};

static void
base_options (struct q_open_options *o)
{
  q_open_options_init (o);
  o->format = Q_FORMAT_QCOW2;
  o->lock = Q_LOCK_OFF;
  o->opener = &store.opener;
  o->secret = &skeleton_secret;
}

static void
print_line (void *opaque, const char *line)
{
  (void)opaque;
  if (getenv ("FUZZ_LOG"))
    fprintf (stderr, "check: %s\n", line);
}

/* With REPAIR the image is repaired; *PLAN, unless NULL, is what a dry run said before. */
static struct verdict
check (unsigned repair, struct verdict *plan)
{
  struct verdict v = { 0 };
  struct q_check_options co = { .threads = 1, .report = print_line };
  struct journal journal, rehearsed = { .told = 0 };
  struct q_image_info info;
  struct q_open_options o;
  struct q_image *img;
  struct q_error err = { "" };

  base_options (&o);
  o.metadata_only = true;
  o.read_only = !repair;
  o.repair = true; /* as it is */
  if (q_open (&img, "image", &o, &v.err) < 0)
    return v;
  note_data_file (img);
  q_get_info (img, &info);
  v.trouble = info.dirty || info.corrupt;
  if (repair) {
    co.journal = journal_note;
    co.opaque = &journal;
  }
  if (plan) {
    co.dry_run = true;
    co.repair = repair;
    journal_begin (&journal, image);
    plan->checked = q_check_image (img, &co, &plan->r, &err) == 0;
    journal_end (&journal, false);
    rehearsed = journal;
    co.dry_run = false;
    q_close (&img, &err);
    if (q_open (&img, "image", &o, &err) < 0)
      broken ("the image cannot be opened any more after a dry run: %s", err.text);
  }
  co.repair = repair;
  if (repair)
    journal_begin (&journal, image);
  v.checked = q_check_image (img, &co, &v.r, &v.err) == 0;
  if (repair)
    journal_end (&journal, v.checked);
  if (plan && plan->checked && v.checked && rehearsed.told != journal.told)
    broken ("a dry run told of other changes than the repair made");
  if (getenv ("FUZZ_LOG"))
    fprintf (stderr,
             "check: %s repair %u: %" PRIu64 " corruptions %" PRIu64 " leaks %" PRIu64
             " errors; fixed %" PRIu64 " %" PRIu64 " %s\n",
             v.checked ? "ok" : "failed", repair, v.r.corruptions, v.r.leaks, v.r.check_errors,
             v.r.corruptions_fixed, v.r.leaks_fixed, v.err.text);
  q_close (&img, &err);
  return v;
}

static bool
is_sound (const struct verdict *v)
{
  return v->checked && !v->trouble && v->r.corruptions == 0 && v->r.check_errors == 0;
}

/* Two clusters of the disk may share one of the file, with its count saying so.  When one of them
 * leaves, the other's COPIED flag is not set: nothing can be lost by that. */
static bool
is_sound_but_for_flags (const struct verdict *v)
{
  return v->checked && v->r.corruptions <= v->r.stale_flags && v->r.check_errors == 0;
}

/* ---- weather --------------------------------------------------------------------------------- */

/* Which requests fail: counted from here on. */
static void
brew (const struct choice *c)
{
  static const enum mem_kind kinds[] = { MEM_WRITE, MEM_SYNC, MEM_READ, MEM_ALLOCATE };

  storm.kind = kinds[c->kind / 16 % 4];
  storm.left = c->failing;
  if (c->room)
    image->limit = data->limit = image->size + c->room * 512u;
}

/* Back to fair weather. */
static void
calm (void)
{
  storm.left = 0;
  image->limit = image->size + MAX_GROWTH;
  data->limit = MAX_GROWTH;
}

/* ---- repair ---------------------------------------------------------------------------------- */

static void
repair (const struct choice *c)
{
  struct verdict plan = { 0 }, done, again;
  unsigned what = c->level & 2 ? Q_REPAIR_LEAKS : Q_REPAIR_LEAKS | Q_REPAIR_ERRORS;

  if (c->storm & 1) {
    brew (c);
    check (what, NULL);
    calm ();
    storm.failed = false;
  }
  done = check (what, &plan);
  if (!done.checked)
    return;
  if (!plan.checked)
    broken ("a repair was done that a dry run refused");
  if (plan.r.corruptions != done.r.corruptions || plan.r.leaks != done.r.leaks ||
      plan.r.check_errors != done.r.check_errors)
    broken ("a dry run foretold %" PRIu64 " corruptions, %" PRIu64 " leaks and %" PRIu64
            " errors, the repair left %" PRIu64 ", %" PRIu64 " and %" PRIu64,
            plan.r.corruptions, plan.r.leaks, plan.r.check_errors, done.r.corruptions, done.r.leaks,
            done.r.check_errors);
  again = check (0, NULL);
  if (!again.checked)
    broken ("the image cannot be checked any more after a repair: %s", again.err.text);
  if (again.r.corruptions != done.r.corruptions || again.r.leaks != done.r.leaks ||
      again.r.check_errors != done.r.check_errors)
    broken ("a repair left %" PRIu64 " corruptions, %" PRIu64 " leaks and %" PRIu64
            " errors, a check finds %" PRIu64 ", %" PRIu64 " and %" PRIu64,
            done.r.corruptions, done.r.leaks, done.r.check_errors, again.r.corruptions,
            again.r.leaks, again.r.check_errors);
}

/* ---- use ------------------------------------------------------------------------------------- */

static void
options_of (const struct choice *c, struct q_open_options *o)
{
  base_options (o);
  o->format = c->kind % 16 == 15 ? Q_FORMAT_RAW : c->kind % 16 == 14 ? Q_FORMAT_AUTO : o->format;
  o->backing = (enum q_backing) (c->policies % 6);
  o->data_file_policy = (enum q_data_file_policy) (c->policies / 16 % 3);
  o->data_file = c->policies & 0x80 ? "data" : NULL;
  o->cache = c->level & 0x80 ? Q_CACHE_DIRECT : Q_CACHE_BUFFERED;
  o->read_only = c->bits & READ_ONLY;
  o->metadata_only = c->bits & METADATA_ONLY;
  o->discard = c->bits & DISCARD;
  o->discard_no_unref = c->bits & NO_UNREF;
  o->secret = c->bits & NO_SECRET ? NULL : &skeleton_secret;
  o->compression_level = c->level & 1;
  if (c->bits & TINY_CACHES)
    o->l2_cache_size = o->refcount_cache_size = 1;
  if ((c->bits & READ_ONLY) && (c->level & 0x40))
    o->snapshot = c->level & 0x20 ? "first" : "2";
}

static void
compact (void)
{
  struct q_compact_options co = { 0 };
  struct q_compact_result result;
  struct q_open_options o;
  struct q_error err = { "" };
  struct q_image *img;

  base_options (&o);
  o.metadata_only = true;
  o.repair = true;
  if (q_open (&img, "image", &o, &err) < 0)
    return;
  note_data_file (img);
  q_compact (img, &co, &result, &err);
  q_close (&img, &err);
}

/* What is there once the image has been closed is what was there before. */
static void
compare_again (struct model *m, const struct q_open_options *as)
{
  struct q_open_options o = *as;
  struct q_error err = { "" };
  struct q_image *img;
  int r;

  o.read_only = true;
  o.repair = false;
  r = q_open (&img, "image", &o, &err);
  if (r < 0)
    broken ("an image that was closed cannot be opened: %s", err.text);
  model_compare (m, img);
  q_close (&img, &err);
  for (unsigned i = 0; i < m->n_snaps; ++i) {
    if (!model_snapshot (m, i))
      continue;
    o.snapshot = m->snap[i].id;
    if (q_open (&img, "image", &o, &err) < 0)
      broken ("snapshot %s cannot be opened: %s", m->snap[i].id, err.text);
    model_compare_snapshot (m, i, img);
    q_close (&img, &err);
  }
}

static void
use (const struct choice *c, struct input *program, bool sound, uint64_t leaks)
{
  struct verdict after;
  struct model m = { 0 };
  struct q_open_options o;
  struct q_error err = { "" };
  struct q_image *img = NULL;
  bool well;
  int r;

  options_of (c, &o);
  /* Whoever writes to it as to a raw one has asked for it. */
  sound = sound && (o.format != Q_FORMAT_RAW || o.read_only);
  model_init (&m, sound && !o.metadata_only && o.format == Q_FORMAT_QCOW2);
  brew (c);
  r = q_open (&img, "image", &o, &err);
  if (getenv ("FUZZ_LOG"))
    fprintf (stderr, "open: %d %s\n", r, err.text);
  if (r == 0) {
    note_data_file (img);
    model_read (&m, img);
    requests_run (&m, &img, &o, program);
  } else
    m.known = false; /* say for want of a key, or of what it names */
  if (img)
    r = q_close (&img, &err);
  if (getenv ("FUZZ_LOG"))
    fprintf (stderr, "closed: %d %s, model %s\n", r, err.text, m.known ? "known" : "not known");
  well = r == 0 && !storm.failed && c->room == 0;
  calm ();
  if (sound) {
    after = check (0, NULL);
    if (after.trouble && !is_sound (&after)) {
      /* Whoever opens it next puts it right. */
      base_options (&o);
      if (q_open (&img, "image", &o, &err) == 0)
        q_close (&img, &err);
      after = check (0, NULL);
    }
    if (!is_sound_but_for_flags (&after))
      broken ("a sound image has %" PRIu64 " corruptions and %" PRIu64 " errors afterwards: %s",
              after.r.corruptions, after.r.check_errors, after.err.text);
    if (well && m.tidy && after.r.leaks > leaks)
      broken ("%" PRIu64 " clusters are leaked, where there were %" PRIu64, after.r.leaks, leaks);
    if (m.known && !storm.failed) {
      options_of (c, &o);
      compare_again (&m, &o);
    }
  }
  model_free (&m);
}

int
LLVMFuzzerTestOneInput (const uint8_t *bytes, size_t size)
{
  struct input in = { bytes, size < PACKED_HEAD ? size : PACKED_HEAD };
  struct choice c;
  struct verdict before;

  fuzz_begin ();
  set_up_once ();
  take (&in, &c, sizeof c);
  set_up (size > PACKED_HEAD ? bytes + PACKED_HEAD : NULL,
          size > PACKED_HEAD ? size - PACKED_HEAD : 0);
  before = check (0, NULL);
  if (c.bits & REPAIR)
    repair (&c);
  if (c.bits & COMPACT)
    compact ();
  if (c.bits & (REPAIR | COMPACT)) {
    struct verdict now = check (0, NULL);

    if (is_sound (&before) && !(c.bits & COMPACT ? is_sound_but_for_flags (&now) : is_sound (&now)))
      broken ("a sound image has %" PRIu64 " corruptions after it was repaired or compacted",
              now.r.corruptions);
    before = now;
  }
  use (&c, &in, is_sound (&before), before.r.leaks);
  check_below ();
  return 0;
}

/* ---- inputs ---------------------------------------------------------------------------------- */

static size_t
seed_of (const struct skeleton *k, const uint8_t head[PACKED_HEAD], uint8_t *out, size_t max)
{
  struct mem_store s;
  size_t n;

  if (!skeleton_possible (k))
    return 0;
  mem_store_init (&s);
  skeleton_surroundings (&s);
  skeleton_make (k, &s);
  memcpy (out, head, PACKED_HEAD);
  n = packed_take (mem_find (&s, "image")->data, mem_find (&s, "image")->size, out + PACKED_HEAD,
                   max - PACKED_HEAD);
  mem_store_free (&s);
  return n ? PACKED_HEAD + n : 0;
}

static void
random_head (uint8_t head[PACKED_HEAD], uint64_t *random)
{
  static const uint8_t bits[] = {
    0,      DISCARD,          DISCARD | TINY_CACHES, DISCARD | NO_UNREF,
    REPAIR, REPAIR | DISCARD, COMPACT | DISCARD,     READ_ONLY
  };

  for (unsigned i = 0; i < PACKED_HEAD; ++i)
    head[i] = (uint8_t)random_next (random);
  memset (head, 0, sizeof (struct choice));
  head[0] = bits[random_below (random, sizeof bits)];
  if (random_below (random, 4) == 0) {
    head[offsetof (struct choice, failing)] = (uint8_t)(1 + random_below (random, 20));
    head[offsetof (struct choice, kind)] = (uint8_t)(random_below (random, 3) << 4);
    head[offsetof (struct choice, storm)] = 1;
  }
}

/* What is asked of each kind of image at first: see requests.c. */
static const struct program {
  const char *name;
  uint8_t bits;
  uint8_t requests[48];
} programs[] = {
  { "old", DISCARD, { 1, 2, 3, 1, 2, 1, 9,  2, 13, 2, 0,  0, 0, 0,
                      0, 7, 1, 4, 0, 1, 15, 0, 0,  0, 12, 0, 1, 0 } },
  { "new",
    DISCARD,
    { 13, 3, 0, 0, 2, 1, 9, 2, 13, 2, 0, 0, 13, 7, 0, 0, 15, 0, 0, 0, 0, 0, 0, 7 } },
  { "wide", DISCARD, { 13, 0, 0x86, 0, 1, 2, 0, 1, 13, 0, 0x80, 0,
                       13, 0, 0x85, 0, 7, 1, 0, 0, 13, 0, 0x83, 0 } },
  { "compact",
    DISCARD | COMPACT,
    { 0, 0, 0, 7, 1, 2, 0, 4, 5, 9, 0, 0x81, 3, 4, 0, 5, 15, 0, 0, 0 } },
  { "compact-no-unref", DISCARD | NO_UNREF | COMPACT, { 3, 0, 0, 6, 5, 8, 0, 0x84, 15, 0, 0, 0 } },
  { "repair", DISCARD | REPAIR, { 0, 0, 0, 7, 1, 2, 0, 4, 15, 0, 0, 0, 7, 0, 0, 0, 7, 0, 1, 0 } },
  { "snapshots", DISCARD, { 7, 1, 0, 0, 1, 1, 0, 6, 7, 0, 2, 0, 3, 0,
                            0, 7, 7, 0, 1, 0, 7, 1, 2, 0, 7, 0, 1, 0 } },
  { "bitmaps", DISCARD, { 8, 16, 0, 0, 1,  1,    0, 6, 8, 5, 0x10, 1,
                          9, 0,  0, 0, 10, 0x81, 1, 0, 8, 1, 1,    0 } },
  { "shrink", DISCARD, { 10, 40, 1, 0, 1,  0,    0, 6, 10, 0x83, 0, 0,
                         23, 2,  8, 0, 10, 0x83, 1, 0, 18, 0,    0, 0 } },
  { "backing", DISCARD, { 16, 5,  0, 0, 0,  0, 0, 7, 2,  1, 0, 0x18,
                          16, 10, 0, 0, 15, 0, 0, 0, 16, 0, 0, 0 } },
  /* Another key, which then erases the first one; and the image is opened again. */
  { "keys", 0, { 17, 2, 2, 0, 17, 2, 0, 0, 12, 0, 0, 0, 17, 9, 0, 0,
                 15, 0, 0, 0, 17, 5, 2, 0, 1,  0, 0, 2, 0,  0, 0, 2 } },
};
#define N_PROGRAMS (sizeof programs / sizeof programs[0])

static void
program_head (uint8_t head[PACKED_HEAD], const struct program *p)
{
  memset (head, 0, PACKED_HEAD);
  head[0] = p->bits;
  memcpy (head + sizeof (struct choice), p->requests, sizeof p->requests);
}

#define MAX_SEED (256u << 10)

void
fuzz_seeds (fuzz_emit emit, void *opaque)
{
  uint8_t *out = xalloc (MAX_SEED), head[PACKED_HEAD];
  uint64_t random = random_seed (7);

  fuzz_begin ();
  for (unsigned i = 0; i < n_skeletons; ++i)
    for (unsigned k = 0; k < 2 + N_PROGRAMS; ++k) {
      const char *what = k < 2 ? k ? "1" : "0" : programs[k - 2].name;
      char name[64];
      size_t n;

      if (strcmp (what, "keys") == 0 && !skeletons[i].encrypted)
        continue;
      if (k < 2)
        random_head (head, &random);
      else
        program_head (head, &programs[k - 2]);
      n = seed_of (&skeletons[i], head, out, MAX_SEED);
      snprintf (name, sizeof name, "%s-%s", skeletons[i].name, what);
      if (n)
        emit (opaque, name, out, n);
    }
  free (out);
}

#ifdef FUZZ_MUTATOR
size_t LLVMFuzzerMutate (uint8_t *p, size_t size, size_t max);
size_t LLVMFuzzerCustomMutator (uint8_t *p, size_t size, size_t max, unsigned seed);

/* One lie; or the head is changed, or the bytes as they are; now and then it begins anew, with a
 * valid image. */
size_t
LLVMFuzzerCustomMutator (uint8_t *p, size_t size, size_t max, unsigned seed)
{
  static struct mem_file f;
  uint64_t random = random_seed (seed), what = random_below (&random, 16);
  uint8_t head[PACKED_HEAD];
  size_t n;

  if (what == 0 || size < PACKED_HEAD + 16 || max < PACKED_HEAD + 16)
    return LLVMFuzzerMutate (p, size, max);
  if (random_below (&random, 200) == 0) {
    if (random_below (&random, 2))
      random_head (head, &random);
    else
      program_head (head, &programs[random_below (&random, N_PROGRAMS)]);
    n = seed_of (&skeletons[random_below (&random, n_skeletons)], head, p, max);
    return n ? n : size;
  }
  if (what < 4) {
    LLVMFuzzerMutate (p, PACKED_HEAD, PACKED_HEAD);
    return size;
  }
  memcpy (head, p, PACKED_HEAD);
  packed_put (&f, p + PACKED_HEAD, size - PACKED_HEAD);
  for (uint64_t i = random_below (&random, 8) == 0 ? 1 + random_below (&random, 4) : 1; i > 0; --i)
    if (!mutate_image (f.data, f.size, &random))
      return LLVMFuzzerMutate (p, size, max);
  if (random_below (&random, 3) == 0)
    head[random_below (&random, PACKED_HEAD)] = (uint8_t)random_next (&random);
  n = packed_take (f.data, f.size, p + PACKED_HEAD, max - PACKED_HEAD);
  if (n == 0)
    return size; /* it does not fit: as it was, but for a beginning that was overwritten */
  memcpy (p, head, PACKED_HEAD);
  return PACKED_HEAD + n;
}
#endif
