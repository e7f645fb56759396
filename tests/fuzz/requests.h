/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A program of requests to an open image, four bytes each: what, where, and how much.
 */

#ifndef FUZZ_REQUESTS_H
#define FUZZ_REQUESTS_H

#include "fuzz.h"
#include "model.h"

/* Until the program ends, or the image, which is then NULL, cannot be opened again. */
void requests_run (struct model *m, struct q_image **img, const struct q_open_options *o,
                   struct input *program);

#endif /* FUZZ_REQUESTS_H */
