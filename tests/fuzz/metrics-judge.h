/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Whether metrics are text that a scraper can read: each line a comment or a sample, each sample
 * of the family above it, no sample twice, and an end where there has to be one
 * (https://prometheus.io/docs/specs/om/open_metrics_spec/, "Text Format").
 */

#ifndef FUZZ_METRICS_JUDGE_H
#define FUZZ_METRICS_JUDGE_H

#include <stdbool.h>
#include <stddef.h>

/* Ends the run if they are not. */
void judge_metrics (const char *text, size_t len, bool openmetrics);

#endif /* FUZZ_METRICS_JUDGE_H */
