/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Exports: open images under the names that clients ask for, shared by all loops.
 *
 *     exports_init (&set);
 *     exports_add (&set, &options, &err);             at any time, also while clients are connected
 *     x = exports_get (&set, name, len);              a reference: x stays until export_put (x)
 *     export_enter (x) ... export_leave (x)           a client's transmission phase, inside of that
 *     exports_remove (&set, name, hard, &err);        at any time, but not on a loop's thread
 *     exports_close (&set);                           after the last client has gone
 *
 * Lifetime.  An export is in the set from exports_add to exports_remove.  Whoever uses one holds a
 * reference: a session from the option that chose it to session_destroy, everybody else for as long
 * as a call takes.  exports_remove takes the export out of the set, so that nobody finds it any
 * more, and waits for the references before it flushes and closes the image: inside of a reference
 * x->img is open.
 *
 * Locking.  The set's lock guards the list, the references and connections, and the settings that
 * can be changed in place (description, max_connections, tls_only, authz); it is taken for moments,
 * by handshakes and by whoever manages the set, and never for a request.  What requests read does
 * not change between exports_add and the last export_put, or is atomic (size, rate).  The locks
 * `removing' and `snapshots' are taken before it, in this order; `snapshots' is held for as long as
 * it takes to open, make or delete a snapshot.
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
#include "room.h"
#include "source.h"
#include "watermark.h"

struct job;
struct meta_context;
struct stats;
struct tls;

struct exports;

enum export_state {
  EXPORT_PREPARED, /* its name is taken, but nobody finds it */
  EXPORT_SERVED,
  EXPORT_LEAVING, /* nobody finds it; it is closed when nobody uses it any more */
};

struct export
{
  struct export *next;
  struct exports *set;
  uint64_t id;     /* never used again, and growing from one to the next in the list */
  uint64_t parent; /* the id of the export that it goes with: whose internal snapshot this is, or
                    * whose view; 0: none */
  struct export
      *base; /* export-view.c: it is a view of that one, which is there as long; or NULL */
  char *name;
  char *description; /* may be NULL; under the set's lock */
  char *settings;    /* what it was made from, as text, but for what can be changed in place */
  bool configured;   /* it comes from the command line or its configuration */
  enum export_state state; /* these two under the set's lock */
  unsigned refs;
  struct q_image *img;
  struct wanted *recipe;  /* to open it again; NULL: that is never done */
  char *snapshot;         /* the id of the internal snapshot that it shows; NULL: none */
  enum q_backing backing; /* what the image was allowed to name */
  enum q_data_file_policy data_file_policy;
  uint64_t dev, ino;     /* of the image's file; 0 if they are not known */
  uint64_t offset;       /* the part of the image's disk that clients see: where it begins */
  _Atomic uint64_t size; /* ... and how long it is; grows by export_resize */
  bool is_part;          /* so it is not resized */
  bool resizable;        /* clients may do that */
  bool read_only;
  bool multi_conn;    /* more than one client may connect */
  bool direct;        /* the page cache is not used */
  bool write_through; /* every write is followed by a flush */
  bool ignore_flush;
  bool compress;   /* whole clusters are stored compressed */
  bool rotational; /* the image lies on a disk that turns */
  enum detect_zeroes detect_zeroes;
  uint32_t min_block, preferred_block; /* bytes, powers of two */
  struct meta_context *contexts;       /* status.h */
  unsigned n_contexts;

  /* Under the set's lock: */
  bool tls_only;            /* not for clients in plain text */
  struct authz *authz;      /* which clients it is for; NULL: for all that the server lets in */
  unsigned max_connections; /* 0 for any number */
  unsigned connections;     /* in the transmission phase */

  atomic_bool leaving; /* its clients are to be disconnected, and it takes no more */
  struct rate rate;

  struct stats *stats;         /* stats.h */
  struct watermark *watermark; /* watermark.h; NULL: nothing is allocated */
  struct room *room;           /* room.h; NULL: a full disk is an error */

  struct slice *slice;  /* what the image's file is opened through; may be NULL */
  struct source *chain; /* export_keep_chain; NULL: nothing was said of its layers */

  /* Flushes that wait for the one under way to end: the next flush does for all of them. */
  pthread_mutex_t flush_lock;
  pthread_cond_t flush_over;
  struct job *flush_waiting;
  bool flush_running;
};

struct exports {
  pthread_mutex_t removing; /* one removal at a time; taken first */
  pthread_mutex_t lock, snapshots;
  pthread_cond_t unused; /* an export that is leaving has no references any more */
  struct export *first, *last;
  uint64_t last_id;
  bool keep_recipes; /* so that exports_suspend can be undone; set before the first is added */
  enum { EXPORTS_OPEN, EXPORTS_SUSPENDED, EXPORTS_GONE } state;
  pthread_cond_t resumed;       /* the state has changed */
  void (*sweep) (void *opaque); /* see exports_set_sweep */
  void *opaque;
};

struct export_options {
  const char *name, *description; /* at most NBD_MAX_STRING bytes; description may be NULL */
  struct export *base;            /* it is to be a view of that one, to which the caller has a
                                   * reference; NULL: it opens an image */
  struct source source;           /* of a view: offset and size, and the key for its snapshot */
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
  struct watermark_options watermark;
  struct room_options on_enospc;
  bool configured; /* it is in the command line or its configuration */
};

/* The most bitmaps of one export. */
#define MAX_BITMAPS 60

void exports_init (struct exports *set);
/* SWEEP makes the loops look for clients of exports that are leaving (NULL: there are none).  It is
 * called with the set's lock held. */
void exports_set_sweep (struct exports *set, void (*sweep) (void *opaque), void *opaque);

/* Opens the image and adds it and its snapshots, but for those that cannot be opened or named.
 * Blocking; any thread but a loop's. -EEXIST if the name is taken; else what q_open says. */
int exports_add (struct exports *set, const struct export_options *opts, struct q_error *err);

/* The same in two steps, so that several can be added together or not at all: what is prepared is
 * open, but nobody sees it. */
int exports_prepare (struct exports *set, const struct export_options *opts,
                     struct export **prepared, struct q_error *err);
void exports_commit (struct export *prepared);
void exports_abandon (struct export *prepared);

/* Takes the export called NAME out, with those of its snapshots and its views, and closes its
 * image.  Blocking; any thread but a loop's; no reference of the caller's own may be left.
 *
 * Not HARD: -EBUSY while clients are in the transmission phase, and nothing happens.  HARD: no new
 * client comes to it, requests under way are carried out and answered, those that come after that
 * are refused with ESHUTDOWN, and the connections end; it returns when that is done, which takes as
 * long as the slowest request, and a few seconds more where a client does not read its replies.
 *
 * -ENOENT; else what q_close says: then it is gone, but what was written since the last flush may
 * be lost. */
int exports_remove (struct exports *set, const char *name, bool hard, struct q_error *err);
/* The same if it has that id: another one that has got the name since stays (-ENOENT). */
int exports_remove_id (struct exports *set, const char *name, uint64_t id, bool hard,
                       struct q_error *err);

/* A reference to the export of that name, or NULL. */
struct export *exports_get (struct exports *set, const void *name, size_t len);
/* The one after X (the first, if X is NULL), or NULL at the end: a walk sees all that are there
 * from its beginning to its end.  Takes the caller's reference to X, and gives one. */
struct export *exports_next (struct exports *set, struct export *x);
/* A reference to the first one that was added after the one with that id, or NULL: a walk goes on
 * without one that is held meanwhile. */
struct export *exports_after (struct exports *set, uint64_t id);
/* The same with those that are leaving. */
struct export *exports_next_any (struct exports *set, struct export *x);
/* The same with those that exports_resume could not open again: they have no image, and nobody uses
 * them, but their names are taken until exports_remove, or exports_recover. */
struct export *exports_next_lost (struct exports *set, struct export *x);
/* How many are served.  Does not wait, whoever is having them. */
unsigned exports_count (struct exports *set);
/* Whether there is a view of X; its NAME, cut at SIZE. */
bool exports_has_view (struct exports *set, const struct export *x, char *name, size_t size);
struct export *export_ref (struct export *x);
void export_put (struct export *x);

/* Flushes and closes every image; errors go to the log.  Returns the first.  There are no
 * references any more. */
int exports_close (struct exports *set);

/* ---- takeover (suspend.c) -------------------------------------------------------------------- */

/* Whether there is an export that cannot be handed over, as a view cannot: -ENOTSUP, with its name.
 * Nothing is disturbed. */
int exports_check_suspend (struct exports *set, struct q_error *err);
/* For a process that goes on with the same images.  All sessions are still, and stay so.
 *
 * Flushes and closes the images of all exports, which stay what they are otherwise.  The locks of
 * all their files are kept by guards (lock.h) in GUARDS, at most MAX, which belong to the caller.
 * Returns how many, or -errno: then everything is open as before, but for what could not be opened
 * again, which the log names.  Until exports_resume, whoever asks for an export waits. */
int exports_suspend (struct exports *set, int *guards, unsigned max, struct q_error *err);
/* Opens them again, and takes the guards over.  Those that cannot be opened have no image any more:
 * they are leaving, and their clients must not go on (conn_thaw sees to that). */
void exports_resume (struct exports *set, const int *guards, unsigned n);
/* Opens the one with that id, which exports_resume could not, again: as it was, or -errno and it
 * stays as it is.  -ESTALE: its image is not what it was.  Blocking; any thread but a loop's; no
 * reference of the caller's own may be left. */
int exports_recover (struct exports *set, uint64_t id, struct q_error *err);
/* Between the two: the export with that id, which stays as long; NULL if there is none. */
const struct export *exports_suspended (struct exports *set, uint64_t id);
/* They are another process's from now on: nobody finds an export any more, and exports_close has
 * nothing to flush. */
void exports_leave (struct exports *set);

/* What can be changed while clients are connected. */
struct export_changes {
  const char *description; /* NULL: none */
  unsigned max_connections;
  uint64_t rate;
  bool tls_only;
  struct authz *authz;
};
/* For those who connect from now on, but the rate, which holds at once.  The same for the exports
 * of X's snapshots; its views are for nobody that X is not for any more.  -ENOMEM. */
int export_change (struct export *x, const struct export_changes *changes);

/* Deletes an internal snapshot of X's image, as q_snapshot_delete has it; one that an export shows
 * is not deleted underneath it: -EBUSY, with the export's name.  Blocking; any thread but a loop's;
 * with a reference. */
int export_snapshot_delete (struct export *x, const char *name_or_id, struct q_error *err);

/* Views (export-view.c).  Of options with a base: what follows from that, and what is not for a
 * view is off. */
int export_view (struct export_options *opts, struct q_error *err);
/* What the user says of the layers of X's image, for views that open it again.  False: out of
 * memory. */
bool export_keep_chain (struct export *x, const struct export_options *opts);
void export_forget_chain (struct export *x);
/* Whether X's image is that of its base, and the export that has it open. */
bool export_borrows (const struct export *x);
const struct export *export_node (const struct export *x);

/* What an export is made from (export-settings.c), as text: the same for the same settings, but for
 * keys and for what export_change changes.  To be freed; NULL without memory. */
char *export_settings (const struct export_options *opts);

/* The description, in memory of the caller's: "" if there is none. */
#define EXPORT_DESCRIPTION_SIZE (4096 + 1)
void export_description (const struct export *x, char text[EXPORT_DESCRIPTION_SIZE]);

/* Who may use it: whether TLS is needed, and the list of clients (NULL: all). */
void export_admission (const struct export *x, bool *tls_only, struct authz **authz);

/* The transmission flags, apart from those that depend on what was negotiated. */
uint16_t export_flags (const struct export *x);

/* Makes the disk SIZE bytes, in views of it as well.  -EPERM for less than there is, -ENOTSUP for a
 * part of a disk; else what q_resize says.  Any thread; blocking. */
int export_resize (struct export *x, uint64_t size, struct q_error *err);

/* One connection more; -EMFILE if X has all that it may have, with *MAX, or -ESHUTDOWN if it is
 * leaving.  Any thread; with a reference. */
int export_enter (struct export *x, unsigned *max);
/* The same for a connection that another process had accepted: however many there are. */
int export_enter_again (struct export *x);
void export_leave (struct export *x);
/* How many there are. */
unsigned export_connections (struct export *x);
unsigned export_max_connections (struct export *x);

/* ---- for suspend.c --------------------------------------------------------------------------- */

/* An export that is open and in no list. */
int export_make (struct exports *set, const struct export_options *opts, struct export **export,
                 struct q_error *err);
/* What was carried out for X has come to its end everywhere. */
void export_quiesce (struct export *x);
/* Frees X as well. */
int export_close (struct export *x, struct q_error *err);

#endif /* EXPORT_H */
