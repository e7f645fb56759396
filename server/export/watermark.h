/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Watermarks: telling somebody in time that an image needs more room.
 *
 *     w = watermark_new (name, img, room, &options);
 *                               with the export; nothing is told yet
 *     watermark_arm (w);        from here on; at once, if it has been passed already
 *     watermark_detach (w);     before the image is closed for a while; nothing is forgotten
 *     watermark_attach (w, img);   it is open again
 *     watermark_free (w);       before the image is closed for good
 *     watermarks_start (ev);    the main loop, where all telling is done
 *     watermarks_stop ();       its thread, when nobody writes any more
 *
 * The engine tells where the highest allocated offset is raised (q_watch_highest), on whichever
 * thread allocates; this wakes the main loop, which logs a line, sends events to the control socket
 * and runs the command.  The command is run with what it has to know in its environment, never more
 * than one at a time for an export; what is passed meanwhile it is run for once more, afterwards.
 * Nobody waits for it.  When it has ended, writes that wait for room are tried again at once
 * (room.h).
 *
 * An amount in percent is one of the block device that holds the image, as large as it is at the
 * time: when it is grown, the watermark moves up, and can be passed again.  For an image in a file
 * it is one of the disk's size.
 */

#ifndef WATERMARK_H
#define WATERMARK_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2.h"

struct ev_loop;
struct room;

struct watermark_options {
  struct q_amount at;     /* all 0: there is no watermark */
  struct q_amount repeat; /* and again after each so much */
  const char *exec;       /* a command for sh; NULL: none */
};

/* "SIZE" or "PERCENT%", not 0; false if TEXT is neither. */
bool watermark_parse (const char *text, struct q_amount *amount);

struct watermark;

/* IMG is open for writing; ROOM, which may be NULL, outlives the watermark.  NULL without memory.
 */
struct watermark *watermark_new (const char *name, struct q_image *img, struct room *room,
                                 const struct watermark_options *options);
/* Any thread; waits for nobody. */
void watermark_arm (struct watermark *w);
/* Any thread; W may be NULL. */
void watermark_detach (struct watermark *w);
void watermark_attach (struct watermark *w, struct q_image *img);
/* Any thread; W may be NULL. */
void watermark_free (struct watermark *w);

/* Tells once, by an event, when the offset has passed THRESHOLD; 0: does not.  Beside what the
 * options say.  Any thread. */
void watermark_ask (struct watermark *w, uint64_t threshold);
/* What is still to be told by that; 0: nothing. */
uint64_t watermark_asked (const struct watermark *w);
/* The next offset that will be told, by the options or otherwise; 0: none. */
uint64_t watermark_next (const struct watermark *w);
/* How often the watermark of the options was passed, and how often its command failed. */
uint64_t watermark_passed (const struct watermark *w);
uint64_t watermark_failed (const struct watermark *w);

void watermarks_start (struct ev_loop *ev);
void watermarks_stop (void);

#endif /* WATERMARK_H */
