/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The plugin's watermark: telling somebody in time that the image needs more room.
 *
 *     watch_start (img, filename, &watermark);   when the image is open for writing
 *     watch_stop ();                             before it is closed
 *
 * The engine tells where the highest allocated offset is raised; that wakes a thread, which says so
 * and runs the command, one at a time, with what it has to know in its environment.  What is passed
 * while it is being run is said at once, and the command run once more afterwards.
 */

#ifndef WATCH_H
#define WATCH_H

#include "qcow2.h"

struct watermark {
  struct q_amount at;     /* all 0: there is none */
  struct q_amount repeat; /* and again after each so much */
  const char *exec;       /* a command for sh; NULL: none */
};

/* Nothing if there is no watermark, or the image is raw.  Errors go to nbdkit's log. */
int watch_start (struct q_image *img, const char *filename, const struct watermark *watermark);
void watch_stop (void);

#endif /* WATCH_H */
