/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the metrics are.  Names and meanings are an interface: nbdcow(1) lists them, and
 * contrib/monitoring uses them.
 *
 * All samples of a family stand together, so what there is to say about each export is gathered
 * first: one look at it, and its reference given back.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "metrics.h"
#include "openmetrics.h"
#include "stats.h"

struct subject {
  char *name, *file;
  unsigned clients;
  bool read_only, failed;
  uint64_t size;
  const char *format;
  struct q_image_info info;
  struct q_stats engine;
  struct stats_sum sum;
  uint64_t watermark, watermark_passed, watermark_failed;
  unsigned waiting;
  uint64_t waits;
};

/* ---- gathering ------------------------------------------------------------------------------- */

static void
look_at (struct subject *s, struct export *x)
{
  s->clients = export_connections (x);
  s->read_only = x->read_only;
  s->failed = !x->read_only && q_read_only (x->img);
  s->size = x->size;
  s->format = q_image_format (x->img) == Q_FORMAT_QCOW2 ? "qcow2" : "raw";
  q_get_info (x->img, &s->info);
  q_get_stats (x->img, &s->engine);
  stats_sum (x->stats, &s->sum);
  if (x->watermark) {
    s->watermark = watermark_next (x->watermark);
    s->watermark_passed = watermark_passed (x->watermark);
    s->watermark_failed = watermark_failed (x->watermark);
  }
  if (x->room) {
    s->waiting = room_waiting (x->room);
    s->waits = room_times (x->room);
  }
}

static void
forget (struct subject *subjects, unsigned n)
{
  for (unsigned i = 0; i < n; i++) {
    free (subjects[i].name);
    free (subjects[i].file);
  }
  free (subjects);
}

static int
gather (struct exports *exports, struct subject **subjects, unsigned *n)
{
  unsigned room = 0;

  *subjects = NULL;
  *n = 0;
  for (struct export *x = exports_next (exports, NULL); x; x = exports_next (exports, x)) {
    if (*n == room) {
      room = room ? 2 * room : 8;
      struct subject *more = realloc (*subjects, room * sizeof *more);
      if (!more) {
        export_put (x);
        return -ENOMEM;
      }
      *subjects = more;
    }
    struct subject *s = &(*subjects)[(*n)++];
    *s = (struct subject){ .name = strdup (x->name), .file = strdup (q_filename (x->img)) };
    if (!s->name || !s->file) {
      export_put (x);
      return -ENOMEM;
    }
    look_at (s, x);
  }
  return 0;
}

/* ---- what is told for each operation --------------------------------------------------------- */

/* The powers of two of the buckets: finer ones are for those who ask the server itself. */
#define LATENCIES (STATS_LAST_BITS - STATS_FIRST_BITS + 2)

static void
put_latency (struct openmetrics *m, const struct stats_op_sum *op, const char *export_name,
             const char *op_name)
{
  struct openmetrics_bucket buckets[LATENCIES] = { { 0 } };

  for (unsigned i = 0; i < STATS_BUCKETS; i++) {
    unsigned to = i == 0 ? 0 : 1 + (i - 1) / STATS_FINE;
    buckets[to].count += op->latency[i];
    buckets[to].end = (double)stats_bucket_end (i) / 1e9;
  }
  double sum = (double)op->nanoseconds / 1e9;
  if (export_name)
    openmetrics_histogram (m, buckets, LATENCIES, sum, "export", export_name, "operation", op_name,
                           NULL);
  else
    openmetrics_histogram (m, buckets, LATENCIES, sum, "operation", op_name, NULL);
}

/* What an operation's number is, by where it stands in struct stats_op_sum. */
#define OP_FIELD(sum, op, field) (*(const uint64_t *)((const char *)&(sum)->op[op] + (field)))

static void
put_ops (struct openmetrics *m, const struct subject *s, unsigned n, const char *name,
         const char *unit, size_t field, const char *help)
{
  openmetrics_family (m, OM_COUNTER, name, unit, help);
  for (unsigned i = 0; i < n; i++)
    for (unsigned op = 0; op < STATS_OPS; op++)
      openmetrics_value (m, OP_FIELD (&s[i].sum, op, field), "export", s[i].name, "operation",
                         stats_op_name[op], NULL);
}

static void
put_requests (struct openmetrics *m, const struct subject *s, unsigned n)
{
  put_ops (m, s, n, "nbdcow_export_requests", NULL, offsetof (struct stats_op_sum, requests),
           "Requests that were answered, errors included.");
  put_ops (m, s, n, "nbdcow_export_request_errors", NULL, offsetof (struct stats_op_sum, errors),
           "Requests that were answered with an error.");
  put_ops (m, s, n, "nbdcow_export_request_bytes", "bytes", offsetof (struct stats_op_sum, bytes),
           "Bytes that requests without an error were about.");
  openmetrics_family (m, OM_HISTOGRAM, "nbdcow_export_request_duration_seconds", "seconds",
                      "Time from a request's arrival to its reply.");
  for (unsigned i = 0; i < n; i++)
    for (unsigned op = 0; op < STATS_OPS; op++)
      if (s[i].sum.op[op].requests > 0)
        put_latency (m, &s[i].sum.op[op], s[i].name, stats_op_name[op]);
}

static void
put_total (struct openmetrics *m)
{
  struct stats_sum *sum = malloc (sizeof *sum);

  if (!sum)
    return;
  stats_total (sum);
  openmetrics_family (
      m, OM_COUNTER, "nbdcow_requests", NULL,
      "Requests that were answered, for all exports, those that have gone included.");
  for (unsigned op = 0; op < STATS_OPS; op++)
    openmetrics_value (m, sum->op[op].requests, "operation", stats_op_name[op], NULL);
  openmetrics_family (m, OM_COUNTER, "nbdcow_request_errors", NULL,
                      "Requests that were answered with an error, for all exports.");
  for (unsigned op = 0; op < STATS_OPS; op++)
    openmetrics_value (m, sum->op[op].errors, "operation", stats_op_name[op], NULL);
  openmetrics_family (m, OM_COUNTER, "nbdcow_request_bytes", "bytes",
                      "Bytes that requests without an error were about, for all exports.");
  for (unsigned op = 0; op < STATS_OPS; op++)
    openmetrics_value (m, sum->op[op].bytes, "operation", stats_op_name[op], NULL);
  openmetrics_family (m, OM_HISTOGRAM, "nbdcow_request_duration_seconds", "seconds",
                      "Time from a request's arrival to its reply, for all exports.");
  for (unsigned op = 0; op < STATS_OPS; op++)
    put_latency (m, &sum->op[op], NULL, stats_op_name[op]);
  free (sum);
}

/* ---- groups ---------------------------------------------------------------------------------- */

static void
put_groups (struct openmetrics *m, const uint64_t counts[STATS_GROUPS], uint64_t requests,
            const char *export_name)
{
  struct openmetrics_bucket buckets[STATS_GROUPS];

  for (unsigned i = 0; i < STATS_GROUPS; i++)
    buckets[i] = (struct openmetrics_bucket){ (double)(1u << i), counts[i] };
  openmetrics_histogram (m, buckets, STATS_GROUPS, (double)requests, "export", export_name, NULL);
}

static void
put_merging (struct openmetrics *m, const struct subject *s, unsigned n)
{
  openmetrics_family (m, OM_HISTOGRAM, "nbdcow_export_merged_write_requests", "requests",
                      "Writes in place that went to the file together.");
  for (unsigned i = 0; i < n; i++)
    put_groups (m, s[i].sum.merged, s[i].sum.merged_requests, s[i].name);
  openmetrics_family (m, OM_HISTOGRAM, "nbdcow_export_flush_group_requests", "requests",
                      "Flushes and FUA writes that shared one flush of the image.");
  for (unsigned i = 0; i < n; i++)
    put_groups (m, s[i].sum.flushes, s[i].sum.flushed_requests, s[i].name);
}

/* ---- one number for each export -------------------------------------------------------------- */

#define PUT_EACH(type, family, unit, value, help)                                                  \
  do {                                                                                             \
    openmetrics_family (m, type, family, unit, help);                                              \
    for (unsigned i = 0; i < n; i++)                                                               \
      openmetrics_value (m, value, "export", s[i].name, NULL);                                     \
  } while (0)

static void
put_state (struct openmetrics *m, const struct subject *s, unsigned n)
{
  openmetrics_family (m, OM_INFO, "nbdcow_export", NULL, "The image that an export shows.");
  for (unsigned i = 0; i < n; i++)
    openmetrics_value (m, 1, "export", s[i].name, "file", s[i].file, "format", s[i].format, NULL);
  PUT_EACH (OM_GAUGE, "nbdcow_export_clients", NULL, s[i].clients, "Clients that use the export.");
  PUT_EACH (OM_GAUGE, "nbdcow_export_requests_in_flight", NULL, s[i].sum.in_flight,
            "Requests that are being carried out and were not done at once.");
  PUT_EACH (OM_COUNTER, "nbdcow_export_requests_rejected", NULL, s[i].sum.rejected,
            "Requests that were answered with an error without being tried: malformed, past the "
            "end, or not allowed.");
  PUT_EACH (OM_GAUGE, "nbdcow_export_read_only", NULL, s[i].read_only,
            "1 if the export was opened read-only.");
  PUT_EACH (OM_GAUGE, "nbdcow_export_failed", NULL, s[i].failed,
            "1 if the image has become read-only since writing its metadata failed, or since it is "
            "damaged.");
  PUT_EACH (OM_GAUGE, "nbdcow_export_size_bytes", "bytes", s[i].size, "The size that clients see.");
}

static void
put_space (struct openmetrics *m, const struct subject *s, unsigned n)
{
  PUT_EACH (OM_GAUGE, "nbdcow_export_highest_offset_bytes", "bytes", s[i].info.highest_offset,
            "The end of the highest cluster of the image file that was ever allocated; 0 for raw "
            "images.");
  openmetrics_family (m, OM_GAUGE, "nbdcow_export_device_bytes", "bytes",
                      "The size of the block device that holds the image, where there is one.");
  for (unsigned i = 0; i < n; i++)
    if (s[i].engine.device_size > 0)
      openmetrics_value (m, s[i].engine.device_size, "export", s[i].name, NULL);
  openmetrics_family (m, OM_GAUGE, "nbdcow_export_watermark_bytes", "bytes",
                      "The highest offset after which it is told next, where there is any.");
  for (unsigned i = 0; i < n; i++)
    if (s[i].watermark > 0)
      openmetrics_value (m, s[i].watermark, "export", s[i].name, NULL);
  PUT_EACH (OM_COUNTER, "nbdcow_export_watermark_passed", NULL, s[i].watermark_passed,
            "How often the watermark was passed.");
  PUT_EACH (OM_COUNTER, "nbdcow_export_watermark_exec_failures", NULL, s[i].watermark_failed,
            "How often its command failed, or could not be run.");
  PUT_EACH (OM_GAUGE, "nbdcow_export_enospc_waiting_requests", "requests", s[i].waiting,
            "Requests that wait for space on the disk.");
  PUT_EACH (OM_COUNTER, "nbdcow_export_enospc_waits", NULL, s[i].waits,
            "How often it began that requests had to wait for space.");
  PUT_EACH (OM_GAUGE, "nbdcow_export_file_bytes", "bytes", s[i].info.file_size,
            "The size of the image file, or of the block device that holds it.");
  PUT_EACH (OM_GAUGE, "nbdcow_export_allocated_bytes", "bytes", s[i].info.actual_size,
            "What the image file takes of its file system.");
  PUT_EACH (OM_GAUGE, "nbdcow_export_limbo_bytes", "bytes", s[i].engine.limbo_bytes,
            "Clusters that were let go of, and are free after the next flush.");
}

static void
put_caches (struct openmetrics *m, const struct subject *s, unsigned n)
{
  static const struct {
    const char *name, *unit;
    enum openmetrics_type type;
    const char *help;
    size_t l2, refcounts; /* in struct q_stats */
  } families[] = {
    { "nbdcow_export_cache_hits", NULL, OM_COUNTER, "Metadata tables that were found in memory.",
      offsetof (struct q_stats, l2_hits), offsetof (struct q_stats, refcount_hits) },
    { "nbdcow_export_cache_misses", NULL, OM_COUNTER, "Metadata tables that had to be read.",
      offsetof (struct q_stats, l2_misses), offsetof (struct q_stats, refcount_misses) },
    { "nbdcow_export_cache_bytes", "bytes", OM_GAUGE, "Metadata tables in memory.",
      offsetof (struct q_stats, l2_cache_bytes), offsetof (struct q_stats, refcount_cache_bytes) },
    { "nbdcow_export_cache_max_bytes", "bytes", OM_GAUGE, "The most that they may be.",
      offsetof (struct q_stats, l2_cache_max), offsetof (struct q_stats, refcount_cache_max) },
  };

  for (size_t f = 0; f < sizeof families / sizeof families[0]; f++) {
    openmetrics_family (m, families[f].type, families[f].name, families[f].unit, families[f].help);
    for (unsigned i = 0; i < n; i++) {
      const char *stats = (const char *)&s[i].engine;
      openmetrics_value (m, *(const uint64_t *)(stats + families[f].l2), "export", s[i].name,
                         "cache", "l2", NULL);
      openmetrics_value (m, *(const uint64_t *)(stats + families[f].refcounts), "export", s[i].name,
                         "cache", "refcount", NULL);
    }
  }
  PUT_EACH (OM_GAUGE, "nbdcow_export_dirty_tables", NULL, s[i].engine.dirty_tables,
            "Metadata tables that the next flush will write.");
  PUT_EACH (OM_COUNTER, "nbdcow_export_image_flushes", NULL, s[i].engine.flush_rounds,
            "Flushes of the image, each for all that waited for one.");
  PUT_EACH (OM_COUNTER, "nbdcow_export_image_metadata_flushes", NULL, s[i].engine.metadata_rounds,
            "Those of them that wrote metadata.");
}

/* ---- the server ------------------------------------------------------------------------------ */

#define PUT_ONE(type, name, value, help)                                                           \
  do {                                                                                             \
    openmetrics_family (m, type, name, NULL, help);                                                \
    openmetrics_value (m, value, NULL);                                                            \
  } while (0)

static void
put_server (struct openmetrics *m, unsigned n_exports)
{
  const struct stats_server *st = &stats_server;

  openmetrics_family (m, OM_INFO, "nbdcow_build", NULL, "The version of nbdcow.");
  openmetrics_value (m, 1, "version", NBDCOW_VERSION, NULL);
  PUT_ONE (OM_GAUGE, "nbdcow_exports", n_exports, "Exports that are served.");
  PUT_ONE (OM_GAUGE, "nbdcow_clients", st->clients, "Connections, in the handshake or after it.");
  PUT_ONE (OM_COUNTER, "nbdcow_connections", st->connections, "Connections that were taken in.");
  PUT_ONE (OM_COUNTER, "nbdcow_connections_failed", st->connections_failed,
           "How often there was no descriptor or memory for another connection.");
  PUT_ONE (OM_COUNTER, "nbdcow_connections_refused", st->refused,
           "Clients that were told that the export has all the connections it may have.");
  openmetrics_family (m, OM_COUNTER, "nbdcow_handshakes_dropped", NULL,
                      "Connections that were closed before they came to an export.");
  openmetrics_value (m, st->handshake_timeouts, "reason", "timeout", NULL);
  openmetrics_value (m, st->handshake_errors, "reason", "error", NULL);
  PUT_ONE (OM_GAUGE, "nbdcow_worker_threads", st->workers, "Threads for what blocks.");
  PUT_ONE (OM_GAUGE, "nbdcow_worker_threads_busy", st->workers_busy,
           "Those of them that are at work.");
  PUT_ONE (OM_GAUGE, "nbdcow_worker_queue_length", st->queued, "Requests that wait for one.");
}

int
metrics_write (FILE *f, struct exports *exports, bool openmetrics)
{
  struct openmetrics m;
  struct subject *subjects;
  unsigned n;
  int r = gather (exports, &subjects, &n);

  if (r == 0) {
    openmetrics_init (&m, f, openmetrics);
    put_server (&m, n);
    put_total (&m);
    put_state (&m, subjects, n);
    put_requests (&m, subjects, n);
    put_merging (&m, subjects, n);
    put_space (&m, subjects, n);
    put_caches (&m, subjects, n);
    openmetrics_end (&m);
  }
  forget (subjects, n);
  return r;
}
