/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Secrets: passwords and keys as they come from files, descriptors, and --object secret.
 *
 * They are in locked memory from the first byte read, and wiped when they are freed.
 */

#ifndef SECRET_H
#define SECRET_H

#include <stdbool.h>

#include "qcow2.h"

/* No password is longer, nor is a key file. */
#define SECRET_MAX 65536u

/* NULL on error, with one line in ERR that begins with WHAT. */

/* All of the file, byte for byte. */
struct q_secret *secret_from_file (const char *path, const char *what, struct q_error *err);
/* A copy. */
struct q_secret *secret_from_text (const char *text, const char *what, struct q_error *err);
/* What a person or a script puts into a file: the newline at its end is not part of it. */
struct q_secret *secret_from_key_file (const char *path, const char *what, struct q_error *err);
/* The same from a descriptor, which is read to its end and closed. */
struct q_secret *secret_from_fd (int fd, const char *what, struct q_error *err);

struct q_secret *secret_copy (const struct q_secret *s, const char *what, struct q_error *err);
/* As many bytes, which nobody can guess. */
struct q_secret *secret_random (size_t len, const char *what, struct q_error *err);

/* Turns S, base64, into what it stands for. */
int secret_decode_base64 (struct q_secret *s, const char *what, struct q_error *err);
/* Turns S, encrypted with AES-256 in CBC mode, padded as PKCS #7 has it, into what was encrypted.
 * KEY has 32 bytes; IV is base64. */
int secret_decrypt (struct q_secret *s, const struct q_secret *key, const char *iv,
                    const char *what, struct q_error *err);

void secret_free (struct q_secret *s);

#endif /* SECRET_H */
