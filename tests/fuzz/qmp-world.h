/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the control socket's commands are about, in memory: exports of images, with locks on their
 * files as there are between processes; and whether the commands do what they say.
 *
 *     world_begin (&choice);
 *     world_run (call);             a command; world_write (...): a client of the export
 *     world_lie (...);              what the next check is to find
 *     world_check_disk (); world_check_metrics (true);
 *     world_end ();                 the images are sound
 *
 * What must hold: a command that fails has changed nothing; one that succeeds has made as many
 * snapshots and bitmaps as it says; the disk holds what was written to it; checks tell the truth
 * (qmp-check.h); the configuration is what is served (qmp-config.h); metrics can be read
 * (metrics-judge.h); and images are sound at the end.
 */

#ifndef FUZZ_QMP_WORLD_H
#define FUZZ_QMP_WORLD_H

#include "clients.h"
#include "control-run.h"
#include "export.h"

struct qmp_world {
  struct exports exports; /* "x" at first */
  struct clients clients; /* one, in its handshake */
  struct export_options defaults;
  struct reload *reload; /* of a configuration, in which "x" is */
};
extern struct qmp_world world;

#define WORLD_IMAGES 5u
extern const char *const world_images[WORLD_IMAGES];

struct world_choice {
  unsigned image;  /* modulo WORLD_IMAGES */
  bool busy;       /* the export has a client */
  bool configured; /* and comes from the configuration, not from a command */
};

void world_begin (const struct world_choice *c);
void world_run (struct call *call);
/* See qmp-check.h. */
void world_lie (uint16_t field, uint8_t flip);
/* LEN bytes at OFFSET of the export's disk. */
void world_write (uint64_t offset, uint64_t len);
void world_check_disk (void);
void world_check_metrics (bool openmetrics);
void world_end (void);

#endif /* FUZZ_QMP_WORLD_H */
