/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The images that workloads start from, and what other programs say of an image.
 */

#ifndef CRASH_IMAGES_H
#define CRASH_IMAGES_H

#include "workload.h"

/* Makes run->top, what is below it, and run->contents.  False if qemu-img is needed and missing. */
bool images_make (struct run *run);
/* A directory for files of this process, made when first asked for. */
const char *images_directory (void);
/* Runs a shell command; the exit status, or -1.  The output is thrown away unless it is asked for.
 */
int images_shell (const char *fmt, ...) __attribute__ ((format (printf, 1, 2)));
bool images_have_qemu (void);
/* qemu-img check of the store's file NAME: 0 clean, 1 leaks only, 2 corrupt or worse. */
int images_qemu_check (struct mem_store *s, const char *name);
/* A directory for the engine's state files, which in a power cut are lost. */
const char *images_state_directory (void);
void images_lose_state (void);
void images_cleanup (void);

/* What opens encrypted images. */
extern const struct q_secret images_secret;

#endif /* CRASH_IMAGES_H */
