/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bytes that an NBD client sends, put together from an input: options and requests that are
 * well-formed but for what the input says, and bytes as they are.
 */

#ifndef FUZZ_NBD_CLIENT_H
#define FUZZ_NBD_CLIENT_H

#include "fuzz.h"
#include "judge.h"

#define CLIENT_MAX (12u << 20)

/* What the client has said before the records. */
enum start { RAW, EXPORT_NAME, STRUCTURED, EXTENDED, STARTS };

/* Adds to B what the rest of IN makes of a client that began with START, of a disk of SIZE bytes.
 */
void client_assemble (struct bytes *b, struct input *in, enum start start, uint64_t size);

#endif /* FUZZ_NBD_CLIENT_H */
