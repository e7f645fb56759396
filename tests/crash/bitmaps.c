/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Dirty bitmaps in workloads: see workload.h.
 *
 * The bitmap "all" records everything from before the run and is left alone, so that it must cover
 * whatever differs from what the disk held before.  Others come, change and go while the guest
 * works.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "workload.h"

static uint64_t
some_granularity (const struct run *run, uint64_t *random)
{
  unsigned bits = 9 + (unsigned)random_below (random, run->cluster_bits - 5);

  return 1ull << bits;
}

void
bitmaps_make (struct run *run, uint64_t *random)
{
  struct q_bitmap_action a[] = {
    { .op = Q_BITMAP_ADD, .name = "all", .granularity = some_granularity (run, random) },
    { .op = Q_BITMAP_ADD, .name = "two", .granularity = some_granularity (run, random) },
    { .op = Q_BITMAP_ADD, .name = "off", .disabled = true },
    { .op = Q_BITMAP_MERGE, .name = "off", .source = "two" },
  };
  struct q_open_options opts = run->opts;
  struct q_image *img;
  struct q_error err;

  opts.state_dir = NULL;
  if (q_open (&img, "top", &opts, &err) < 0 ||
      q_bitmap_change (img, a, sizeof a / sizeof a[0], &err) < 0 || q_close (&img, &err) < 0)
    die ("making bitmaps: %s", err.text);
}

int
bitmaps_operate (struct run *run, uint64_t *random)
{
  static const char *const names[] = { "two", "off", "three" };
  struct q_bitmap_action a[3];
  unsigned n = 1 + (unsigned)random_below (random, 3);
  struct q_error err;
  int r;

  for (unsigned i = 0; i < n; ++i)
    a[i] = (struct q_bitmap_action){ .op = (enum q_bitmap_op)random_below (random, 6),
                                     .name = names[random_below (random, 3)],
                                     .granularity = some_granularity (run, random),
                                     .disabled = random_below (random, 2),
                                     .source = random_below (random, 2) ? "all" : "two" };
  r = q_bitmap_change (run->img, a, n, &err);
  /* There or not there already; left in use. */
  return r == -EEXIST || r == -ENOENT || r == -EINVAL ? 0 : r;
}

/* The first block that differs from what was before and is not dirty, or SIZE. */
static uint64_t
find_uncovered (struct q_image *img, const struct run *run, const struct q_bitmap *b)
{
  uint64_t size = q_size (img);

  for (uint64_t at = 0; at < size; at += BLOCK) {
    uint8_t buf[BLOCK];
    uint64_t n = size - at < BLOCK ? size - at : BLOCK, end;
    bool dirty;

    if (q_pread (img, buf, at, n) < 0)
      die ("cannot read");
    if (memcmp (buf, run->contents + at, n) == 0)
      continue;
    q_bitmap_next (b, at, at + n, &dirty, &end);
    if (!dirty)
      return at;
  }
  return size;
}

bool
bitmaps_hold (struct run *run, struct q_image *img, const char *when)
{
  struct q_bitmap_info *list;
  struct q_bitmap *b = NULL;
  bool found = false, inconsistent = false;
  struct q_error err;
  uint64_t at;
  int n;

  if (!run->w->bitmaps)
    return true;
  n = q_get_bitmaps (img, &list, &err);
  for (int i = 0; !found && i < n; ++i) {
    found = strcmp (list[i].name, "all") == 0;
    inconsistent = list[i].inconsistent;
  }
  free (list);
  if (!found) {
    workload_fail (run, "%s: bitmap 'all' is not there: %s", when,
                   n >= 0 ? "others may be" : err.text);
    return false;
  }
  if (inconsistent) {
    if (!run->bitmaps_may_be_lost)
      workload_fail (run, "%s: bitmap 'all' was lost", when);
    return run->bitmaps_may_be_lost;
  }
  if (q_bitmap_hold (img, "all", &b, &err) < 0) {
    workload_fail (run, "%s: %s", when, err.text);
    return false;
  }
  at = find_uncovered (img, run, b);
  q_bitmap_release (b);
  if (at < q_size (img))
    workload_fail (run, "%s: byte %llu of %llu has changed, and bitmap 'all' does not say so", when,
                   (unsigned long long)at, (unsigned long long)q_size (img));
  return at >= q_size (img);
}
