/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Snapshots of a disk in use, for whoever makes, deletes or goes back to one, and the trees of
 * references that this is about: an L1 table, the L2 tables below it, and what these refer to
 * (specification: "Snapshots").
 */

#ifndef Q_TREE_H
#define Q_TREE_H

#include "image.h"

/* ---- snapshot-make.c --------------------------------------------------------------------------
 */

/* Making a snapshot in steps (change.c), with the layout lock held all the while: begin counts what
 * it refers to while the disk is in use; stop counts the rest, with the flush held and the gate
 * closed, and then the disk as it is at this moment is the snapshot's; settle, with the flush still
 * held and the gate closed or open again, makes that durable; write, with the readers locked, makes
 * it a snapshot, from when on a crash leaves it there.  End: when the gate is open again and
 * nothing is held but the layout lock; undoes whatever was done unless KEEP; frees.  A failure of
 * one step leaves end to be called.  ID is set by begin. */
struct q_making;
int q_snapshot_begin (struct q_image *img, const char *name, char id[Q_SNAPSHOT_ID_SIZE],
                      struct q_making **making, struct q_error *err);
int q_snapshot_stop (struct q_making *m, struct q_error *err);
int q_snapshot_settle (struct q_making *m, bool stopped, struct q_error *err);
int q_snapshot_write (struct q_making *m, struct q_error *err);
void q_snapshot_end (struct q_making *m, bool keep);

/* T is about to be changed, and its stripe is held: if it has been counted for a snapshot, what was
 * counted is kept, or taken back.  -EAGAIN with Q_NOWAIT if that may take long. */
int q_counting_save (struct q_image *img, const struct q_table *t, unsigned flags);

/* ---- snapshot-drop.c --------------------------------------------------------------------------
 */

/* Deletes the one with this id; the layout lock is held. */
int q_snapshot_take_back (struct q_image *img, const char *id, struct q_error *err);

/* ---- tree.c -----------------------------------------------------------------------------------
 */

/* L2 is an L2 table as it is on disk. */
/* Adds one to the counts of all that it refers to, or to none.  -ERANGE if the refcount width does
 * not allow it. */
int q_tree_raise (struct q_image *img, const uint8_t *l2);
/* Takes one off, and gives back what nobody refers to any more.  Only for references that neither
 * the disk has nor a pin can see.  -EIO: some are leaked. */
int q_tree_lower (struct q_image *img, const uint8_t *l2);
int q_tree_raise_cluster (struct q_image *img, uint64_t host);
bool q_tree_has_copied (const struct q_image *img, const uint8_t *l2);
void q_tree_clear_copied (const struct q_image *img, uint8_t *l2);
/* Takes from OLD and NEW the entries whose references are the same. */
void q_tree_difference (const struct q_image *img, uint8_t *old, uint8_t *new);
/* Reads the L2 table at HOST, which no table in memory may be ahead of. */
int q_tree_read (struct q_image *img, uint64_t host, uint8_t *l2);
/* Takes one off the counts of all that the L1 table ENTRY refers to, as q_tree_lower. */
int q_tree_lower_all (struct q_image *img, const uint64_t *entry, uint32_t entries);
/* Sets the COPIED flags for the active L1 entry INDEX and all below it where the counts say so. */
int q_tree_set_copied (struct q_image *img, uint64_t index);
/* Some counts are too high and stay so: the dirty bit will not be cleared. */
void q_tree_leak (struct q_image *img);
/* The end of a change of counts that was made under the dirty bit: all of it is made durable, and
 * the bit cleared, unless something was leaked. */
void q_tree_settle (struct q_image *img);
/* Gate and claim for these: all of the L2 table's range, while nobody plans to change it. */
int q_tree_claim (struct q_image *img, uint64_t index, struct q_plan_claim *claim);
void q_tree_release (struct q_image *img, struct q_plan_claim *claim);

#endif /* Q_TREE_H */
