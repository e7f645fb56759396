/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writing metrics as text: OpenMetrics 1.0, or the older format that Prometheus calls 0.0.4.
 *
 *     openmetrics_init (&m, file, true);
 *     openmetrics_family (&m, OM_COUNTER, "nbdcow_requests", NULL, "Requests that were answered");
 *     openmetrics_value (&m, 7, "operation", "read", NULL);     a sample with its labels
 *     openmetrics_end (&m);
 *
 * A family's name ends with its unit, if it has one; a counter's has no _total, an info's no _info:
 * they are added where the format wants them.  All samples of a family follow it, and a family
 * comes once.  Label values may be any bytes: they are escaped, and what is not UTF-8 becomes "?".
 *
 * Specification: https://prometheus.io/docs/specs/om/open_metrics_spec/, sections "Metric Types"
 * and "Text Format"; https://prometheus.io/docs/instrumenting/exposition_formats/.
 */

#ifndef OPENMETRICS_H
#define OPENMETRICS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum openmetrics_type { OM_GAUGE, OM_COUNTER, OM_HISTOGRAM, OM_INFO };

struct openmetrics {
  FILE *f;
  bool openmetrics; /* else the older format */
  enum openmetrics_type type;
  const char *name; /* of the family */
};

/* What an HTTP answer calls it. */
const char *openmetrics_content_type (bool openmetrics);

void openmetrics_init (struct openmetrics *m, FILE *f, bool openmetrics);
/* UNIT may be NULL. */
void openmetrics_family (struct openmetrics *m, enum openmetrics_type type, const char *name,
                         const char *unit, const char *help);
/* A sample of a gauge, counter or info; pairs of label and value follow, and NULL. */
void openmetrics_value (struct openmetrics *m, uint64_t value, ...) __attribute__ ((sentinel));

/* A histogram: N buckets, each with its end (inclusive; the last one's is not looked at: it has
 * none) in units, and how many fell into it alone, and the sum of what was observed. */
struct openmetrics_bucket {
  double end;
  uint64_t count;
};
void openmetrics_histogram (struct openmetrics *m, const struct openmetrics_bucket *buckets,
                            unsigned n, double sum, ...) __attribute__ ((sentinel));
void openmetrics_end (struct openmetrics *m);

#endif /* OPENMETRICS_H */
