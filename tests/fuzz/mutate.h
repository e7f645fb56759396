/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One lie in an image: finds the fields of its structures by where the format has them (survey.h),
 * and gives one of them another value: one that is interesting by itself, or that makes a reference
 * point to another structure.  The rest stays as it is, but for the counts of what is led to twice:
 * now and then these are right, and nothing but the structures themselves tells that it is a lie.
 */

#ifndef FUZZ_MUTATE_H
#define FUZZ_MUTATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Changes the SIZE bytes of IMAGE in place.  False if it has no header to begin with. */
bool mutate_image (uint8_t *image, size_t size, uint64_t *random);

#endif /* FUZZ_MUTATE_H */
