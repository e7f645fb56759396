/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commands of the control socket about what has been done with the exports: query-blockstats
 * (qapi/block-core.json, BlockStats), with the operations of NBD under QMP's names for them.
 */

#include <errno.h>
#include <stdio.h>

#include "control.h"
#include "describe.h"
#include "stats.h"

/* QMP's names, and what is counted under them here. */
static const struct {
  const char *prefix;
  enum stats_op op;
  bool bytes, merged, histogram;
} kinds[] = {
  { "rd", STATS_READ, true, true, true },
  { "wr", STATS_WRITE, true, true, true },
  { "unmap", STATS_TRIM, true, true, false },
  { "flush", STATS_FLUSH, false, false, true },
};

#define N_KINDS (sizeof kinds / sizeof kinds[0])

static void
put (json_t *j, const char *prefix, const char *what, const char *suffix, json_t *value)
{
  char name[64];

  snprintf (name, sizeof name, "%s%s%s", prefix, what, suffix);
  json_object_set_new (j, name, value);
}

static void
put_number (json_t *j, const char *prefix, const char *what, const char *suffix, uint64_t value)
{
  put (j, prefix, what, suffix, json_integer ((json_int_t)value));
}

/* BlockLatencyHistogramInfo: a boundary between each bin and the next, in nanoseconds. */
static json_t *
histogram (const struct stats_op_sum *op)
{
  json_t *boundaries = json_array (), *bins = json_array ();

  for (unsigned i = 0; i < STATS_BUCKETS; i++) {
    json_array_append_new (bins, json_integer ((json_int_t)op->latency[i]));
    /* What lies on a boundary is in the bin above it. */
    if (i + 1 < STATS_BUCKETS)
      json_array_append_new (boundaries, json_integer ((json_int_t)stats_bucket_end (i) + 1));
  }
  return json_pack ("{s:o, s:o}", "boundaries", boundaries, "bins", bins);
}

/* Requests that another one carried out: of each group all but the first, as QEMU counts them. */
static uint64_t
count_merged (const struct stats_sum *sum)
{
  uint64_t n = sum->merged_requests;

  /* The counters go on while they are summed: a group may be seen before its requests. */
  for (unsigned i = 0; i < STATS_GROUPS; i++)
    n -= sum->merged[i] < n ? sum->merged[i] : n;
  return n;
}

/* BlockDeviceStats. */
static json_t *
device_stats (struct export *x)
{
  json_t *j = json_object ();
  struct stats_sum sum;

  stats_sum (x->stats, &sum);
  for (size_t i = 0; i < N_KINDS; i++) {
    const struct stats_op_sum *op = &sum.op[kinds[i].op];
    const char *prefix = kinds[i].prefix;
    put_number (j, prefix, "_operations", "", op->requests - op->errors);
    put_number (j, prefix, "_total_time_ns", "", op->nanoseconds);
    put_number (j, "failed_", prefix, "_operations", op->errors);
    put_number (j, "invalid_", prefix, "_operations", 0);
    if (kinds[i].bytes)
      put_number (j, prefix, "_bytes", "", op->bytes);
    if (kinds[i].merged)
      put_number (j, prefix, "_merged", "", kinds[i].op == STATS_WRITE ? count_merged (&sum) : 0);
    if (kinds[i].histogram)
      put (j, prefix, "_latency_histogram", "", histogram (op));
  }
  put_number (j, "wr_highest_offset", "", "", q_highest_offset (x->img));
  if (sum.last_ns > 0)
    put_number (j, "idle_time_ns", "", "", stats_clock () - sum.last_ns);
  json_object_set_new (j, "account_invalid", json_false ());
  json_object_set_new (j, "account_failed", json_true ());
  json_object_set_new (j, "timed_stats", json_array ());
  /* What QMP has no names for. */
  for (unsigned op = 0; op < STATS_OPS; op++) {
    const struct stats_op_sum *o = &sum.op[op];
    if (op == STATS_READ || op == STATS_WRITE || op == STATS_TRIM || op == STATS_FLUSH)
      continue;
    put_number (j, stats_op_name[op], "_operations", "", o->requests - o->errors);
    put_number (j, stats_op_name[op], "_total_time_ns", "", o->nanoseconds);
    put_number (j, "failed_", stats_op_name[op], "_operations", o->errors);
    put_number (j, stats_op_name[op], "_bytes", "", o->bytes);
  }
  put_number (j, "in_flight", "", "", sum.in_flight);
  put_number (j, "rejected_operations", "", "", sum.rejected);
  return j;
}

static int
query_stats (struct control_call *call, json_t *args, json_t **ret, struct control_error *err)
{
  struct exports *set = call->context->exports;
  bool nodes = false;
  struct members m;

  control_arguments (&m, call, args, err);
  members_bool (&m, "query-nodes", &nodes);
  int r = members_end (&m);
  if (r < 0)
    return r;
  *ret = json_array ();
  for (struct export *x = exports_next (set, NULL); x; x = exports_next (set, x)) {
    if (nodes && export_borrows (x))
      continue;
    json_t *j = json_pack ("{s:o, s:o}", "node-name", describe_text (export_node (x)->name),
                           "stats", device_stats (x));
    if (!nodes)
      json_object_set_new (j, "device", describe_text (x->name));
    if (json_array_append_new (*ret, j) < 0)
      r = -ENOMEM;
  }
  return *ret ? r : -ENOMEM;
}

const struct control_command control_stats_commands[] = {
  { "query-blockstats", query_stats, CONTROL_BLOCKS },
  { NULL, NULL, CONTROL_AT_ONCE },
};
