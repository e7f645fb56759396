/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Images as inputs.  An image of a few tables is mostly zeros, in which a fuzzer would lose its
 * time; packed, only what is not zeros is there:
 *
 *     what the target wants first (PACKED_HEAD bytes)
 *     pieces: offset (32 bits, little-endian), length (16 bits), and so many bytes
 *
 * Any bytes are a packed image: offsets are taken modulo PACKED_MAX, the last piece may be short,
 * and the file ends where the furthest piece does (a piece of length 0 says no more than that).
 */

#ifndef FUZZ_PACKED_H
#define FUZZ_PACKED_H

#include <stddef.h>
#include <stdint.h>

#include "mem.h"

#define PACKED_HEAD 64u
#define PACKED_MAX  (2u << 20) /* bytes of an image */

/* Makes F the image in the N bytes at P, which stand after the head. */
void packed_put (struct mem_file *f, const uint8_t *p, size_t n);
/* The other way: at most MAX bytes at OUT; how many, 0 if they do not suffice. */
size_t packed_take (const uint8_t *image, size_t size, uint8_t *out, size_t max);

#endif /* FUZZ_PACKED_H */
