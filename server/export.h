/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Exports: open images under the names that clients ask for, shared by all loops.
 *
 * The set is filled before the first client is let in and emptied after the last one has gone.  In
 * between only the counters in it change, so it is read without a lock.
 */

#ifndef EXPORT_H
#define EXPORT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2.h"
#include "authz.h"
#include "rate.h"
#include "source.h"

struct job;
struct meta_context;
struct tls;

struct export
{
  struct export *next;
  char *name, *description; /* description may be NULL */
  struct q_image *img;
  uint64_t offset;       /* the part of the image's disk that clients see: where it begins */
  _Atomic uint64_t size; /* ... and how long it is; grows by export_resize */
  bool resizable;        /* clients may do that */
  bool read_only;
  bool multi_conn;    /* more than one client may connect */
  bool write_through; /* every write is followed by a flush */
  bool ignore_flush;
  bool compress;   /* whole clusters are stored compressed */
  bool rotational; /* the image lies on a disk that turns */
  enum detect_zeroes detect_zeroes;
  uint32_t min_block, preferred_block; /* bytes, powers of two */
  struct meta_context *contexts;       /* status.h */
  unsigned n_contexts;

  bool tls_only;       /* not for clients in plain text */
  struct authz *authz; /* which clients it is for; NULL: for all that the server lets in */

  unsigned max_connections; /* 0 for any number */
  atomic_uint connections;  /* in the transmission phase */
  struct rate rate;

  struct slice *slice; /* what the image's file is opened through; may be NULL */

  /* Flushes that wait for the one under way to end: the next flush does for all of them. */
  pthread_mutex_t flush_lock;
  struct job *flush_waiting;
  bool flush_running;
};

struct exports {
  struct export *first, *last;
};

struct export_options {
  const char *name, *description; /* at most NBD_MAX_STRING bytes; description may be NULL */
  struct source source;
  const char *snapshot;  /* "[ID_OR_NAME]" or "snapshot.id=[ID],snapshot.name=[NAME]" or NULL */
  bool throw_away;       /* writes go to an overlay that is gone at the end */
  bool snapshots;        /* NAME@SNAPSHOT is an export, too, for each internal snapshot */
  bool allocation_depth; /* offer qemu:allocation-depth */
  const char **bitmaps;  /* offer qemu:dirty-bitmap:NAME for each of these */
  unsigned n_bitmaps;
  bool multi_conn;
  struct tls *tls; /* the server's; may be NULL */
  bool tls_only;
  struct authz *authz;      /* of tls; may be NULL */
  bool resizable;           /* clients may make the disk larger */
  unsigned max_connections; /* 0 for any number */
  uint64_t rate;            /* bytes per second for all its clients together; 0: no limit */
  uint32_t min_block;       /* 1 or another power of two, at most 64 KiB */
};

/* The most bitmaps of one export. */
#define MAX_BITMAPS 60

/* Opens the image and adds it (and its snapshots).  -EEXIST if the name is taken; else what q_open
 * says. */
int exports_add (struct exports *set, const struct export_options *opts, struct q_error *err);
/* The export of that name, or NULL. */
struct export *exports_find (const struct exports *set, const void *name, size_t len);
/* Flushes and closes every image; errors go to the log.  Returns the first. */
int exports_close (struct exports *set);

/* The transmission flags, apart from those that depend on what was negotiated. */
uint16_t export_flags (const struct export *x);

/* Makes the disk SIZE bytes.  -EPERM for less than there is; else what q_resize says.  Any thread;
 * blocking. */
int export_resize (struct export *x, uint64_t size);

/* One connection more; false if X has all that it may have.  Any thread. */
bool export_enter (struct export *x);
void export_leave (struct export *x);

#endif /* EXPORT_H */
