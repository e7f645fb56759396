/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The recorder: everything that was done to one file in memory, and to the file beside it, in
 * order; and the replay, which makes of it the files as they may be after a power cut.
 *
 * What a disk may do, as this models it: everything that was done before a sync began is durable
 * when that sync ends.  Of what was done since, every 512-byte sector is there in any of its
 * versions, independently of all others; a sector is never torn, and never goes back to a version
 * older than one that is there.  When a sync fails, what it should have made durable may be lost
 * for good, whatever later syncs say.  A sync of one file says nothing about the other.
 *
 * The test puts marks of its own into the recording (an operation of the guest began or ended, a
 * flush was answered); replay hands them out at their place in the order.
 */

#ifndef CRASH_RECORD_H
#define CRASH_RECORD_H

#include "mem.h"

#define SECTOR 512u

enum { REC_MARK = MEM_KINDS }; /* beside the kinds of mem_call */

struct rec_entry {
  unsigned kind;
  bool beside;
  uint64_t offset, len;
  uint8_t *data;
  unsigned mark; /* what it means and what it is about, the test's affair */
  size_t subject;
};

struct recorder {
  pthread_mutex_t lock;
  uint8_t *start[2]; /* the files as they were before; [1]: the one beside */
  uint64_t start_size[2];
  struct rec_entry *entry;
  size_t n, capacity;
};

/* Begins with the files as they are. */
void rec_init (struct recorder *r, const struct mem_file *f);
void rec_free (struct recorder *r);
/* For the tap's done. */
void rec_done (struct recorder *r, const struct mem_call *call);
void rec_mark (struct recorder *r, unsigned mark, size_t subject);

/* ---- replay ---------------------------------------------------------------------------------- */

enum cut {
  CUT_ALL,     /* everything issued so far is there: the process died, or luck */
  CUT_NONE,    /* nothing but what was synced */
  CUT_MISSING, /* all but one */
  CUT_ONLY,    /* one alone */
  CUT_SUBSET,  /* some of the writes */
  CUT_TORN,    /* some, one of them up to a sector */
  CUT_SECTORS, /* some of the sectors */
  CUTS,
};
const char *cut_name (enum cut cut);

struct replay {
  const struct recorder *rec;
  size_t next;               /* the entry that comes next */
  struct mem_file stable[2]; /* what no power cut takes away */
  size_t *pending;           /* entries since, in order */
  size_t n_pending, capacity;
  size_t sync_covers[2]; /* pending entries, among them those of the file, that its sync under way
                          * covers */
  bool *lost;            /* per pending entry: a sync that covered it failed */
};

void replay_init (struct replay *p, const struct recorder *r);
void replay_free (struct replay *p);
/* The entry just replayed; NULL at the end. */
const struct rec_entry *replay_step (struct replay *p);
/* Makes F, and the file beside it, what they are after a power cut at this point. */
void replay_cut (const struct replay *p, enum cut cut, uint64_t *random, struct mem_file *f);

#endif /* CRASH_RECORD_H */
