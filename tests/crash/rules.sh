# SPDX-License-Identifier: BSD-3-Clause
#
# The engine's ordering rules, each with a perl program that takes it out of the file that keeps it: for mutate.sh, and
# by name for security/mutate.sh.
#
# without NAME FILE PROGRAM, see mutations.sh; first TEST..., see mutate.sh.

# perl's variables are not the shell's, and the directory is for mutations.sh:
# shellcheck shell=sh disable=SC2016,SC2034

below=plugin/qcow2/

# ---- the syncs of a round ------------------------------------------------------------------------

first bugs "crash -w fresh" "crash -w overlay" "crash -w growth"

without sync-before-counts disk/flush.c \
  's/(write_phase \(img, round, PHASE_UNREFERENCED\);)\s*if \(r == 0\)\s*r = sync_file \(img, round\);/$1/'
without sync-before-references disk/flush.c \
  's/if \(r == 0\)\s*r = sync_files \(img, round\);(\s*if \(r == 0\) \{\s*no_longer_fresh)/$1/'
without sync-after-references disk/flush.c \
  's/(r = q_state_write_sequence \(img\);\s*if \(r == 0 && \w+\))\s*r = sync_file \(img, round\);/$1 round->wrote = false;/'
without sync-of-data-alone disk/flush.c \
  's/return sync_files \(img, round\);/return 0;/'
without sync-of-added-header header/header.c \
  's/(r = q_file_pwrite \(img->file, tail, [^;]*;)\s*if \(r == 0\)\s*r = sync_header \(img\);/$1/'
without sync-of-moved-name header/header.c \
  's/(q_file_pwrite \(img->file, img->backing_file, [^;]*;)\s*if \(r == 0\)\s*r = sync_header \(img\);/$1/'

# ---- what goes in which phase --------------------------------------------------------------------

without fresh-l2-before-its-entry disk/flush.c \
  's/t->fresh \? \(kind == Q_TABLE_L2 \? PHASE_COUNTS : PHASE_UNREFERENCED\)/t->fresh ? (kind == Q_TABLE_L2 ? PHASE_REFERENCES : PHASE_UNREFERENCED)/'
without fresh-block-before-its-entry disk/flush.c \
  's/PHASE_COUNTS : PHASE_UNREFERENCED\)/PHASE_COUNTS : PHASE_COUNTS)/'
without fresh-reftable-before-header disk/flush.c \
  's/img->reftable->fresh \? PHASE_UNREFERENCED : PHASE_COUNTS/PHASE_COUNTS/'
without old-tables-stay-referenced disk/flush.c \
  's/: \(kind == Q_TABLE_L2 \? PHASE_REFERENCES : PHASE_COUNTS\)/: PHASE_COUNTS/'
without fresh-only-once disk/flush.c \
  's/p->table->fresh = 0;/(void) p;/' \
  's/atomic_compare_exchange_strong \(&p->table->fresh, &place, 0\);/(void) place;/'
without fresh-while-not-moved disk/flush.c \
  's/atomic_compare_exchange_strong \(&p->table->fresh, &place, 0\);/(void) place; p->table->fresh = 0;/'
without references-copied-first disk/flush.c \
  's/(l1 = atomic_load \(&img->l1\);\s*if \(atomic_load \(&l1->table->listed\)\)\s*r = copy_listed \(round, l1->table, PHASE_REFERENCES\);)/list = take_dirty_list (img); q_alloc_lock (img); r = copy_counts (img, round, &list); q_alloc_unlock (img); put_back (img, list); Q_PROBE ("L2 copied"); $1/' \
  's/r = copy_counts \(img, round, &list\);\s*q_alloc_unlock \(img\);\s*\}\s*put_back/q_alloc_unlock (img); } put_back/'

# ---- content before reference --------------------------------------------------------------------

without content-before-publishing disk/write.c \
  's/r = q_write_data \(&plan, buf\);\s*if \(r == 0\)\s*q_write_commit \(&plan\);\s*else\s*q_write_abort \(&plan\);\s*\}\s*q_unpin/{ struct q_write_plan copy = plan; q_write_commit (&plan); copy.table = NULL; r = q_write_data (&copy, buf); } } q_unpin/'
without copied-neighbours disk/write.c \
  's/plan->copy_head = r == 0;/plan->copy_head = false;/'
without zeros-in-reused-clusters disk/alloc.c \
  's/\*fresh =\s*img->guest->holes_are_zero && [^;]*;/*fresh = true;/'
without zeros-in-old-space disk/alloc.c \
  's/img->guest->holes_are_zero && (\*host >= .*?) && \*host >= img->hole_from/$1/'

# ---- claims, limbo and pins ------------------------------------------------------------------------

without claim disk/claim.c \
  's/return true;/return false;/'
without limbo-waits-for-flush disk/alloc.c \
  's/release_list \(img, &img->limbo, img->limbo\.n_durable\)/release_list (img, &img->limbo, img->limbo.n)/'
without limbo-waits-for-pins disk/alloc.c \
  's/\(img->closing \|\| q_grace_passed \(l->entry\[n\]\.stamp\)\)/true/'
without limbo-at-all disk/write.c \
  's/q_limbo_add \(&img->limbo, cluster, count\);/{ --img->limbo.reserved; for (uint64_t k = 0; k < count; ++k) { uint64_t now = 1; q_refcount_get (img, cluster + k, 0, &now); q_refcount_set (img, cluster + k, 0, now - 1); } if (cluster < img->free_hint) img->free_hint = cluster; }/'
without counts-during-punch disk/alloc.c \
  's/(q_file_zero \(img->file, c << img->cluster_bits, run << img->cluster_bits, true\);)/for (uint64_t k = 0; k < run; ++k) { q_alloc_lock (img); q_refcount_set (img, c + k, 0, 0); q_alloc_unlock (img); } img->free_hint = c; $1/'
without eviction-spares-the-dirty table/l2.c \
  's/ && !q_table_is_dirty \(t\)//'

# ---- compressed data -------------------------------------------------------------------------------

first "bugs late-punch-into-packed-cluster" "crash -w pack" "crash -w pack-threads" "crash -w pack-snapshot" "faults -w pack"

without packed-counts-raised compress/pack.c \
  's/0, \+\+count\)/0, count ? count : ++count)/'
without spanned-counts-raised compress/pack.c \
  's/count = 1; (\/\* as it was allocated)/count = 0; $1/'
without packed-bytes-handed-out-once compress/pack.c \
  's/if \(before\)\s*q_pack_forget \(img, old, 1\);//'
without tail-forgotten-before-punch disk/alloc.c \
  's/q_pack_forget \(img, c, run\);//'
without tail-forgotten-at-all compress/pack.c \
  's/(img->pack\.tail\[i\]\.cluster) - cluster < count/false && $1 - cluster < count/'
without compressed-before-publishing compress/write-compressed.c \
  's/r = q_file_pwrite \(b->img->file, data, bytes, host\);\s*if \(r == 0\)\s*commit \(b, \*done, n, host\);\s*else\s*abandon \(b, \*done, n, host\);/commit (b, *done, n, host); r = q_file_pwrite (b->img->file, data, bytes, host);/'
without replaced-data-in-limbo compress/write-compressed.c \
  's/q_limbo_add \(&img->limbo, p->lost, p->n_lost\);/{ --img->limbo.reserved; for (uint64_t k = 0; k < p->n_lost; ++k) { uint64_t now = 1; q_refcount_get (img, p->lost + k, 0, &now); q_refcount_set (img, p->lost + k, 0, now - 1); } if (p->lost < img->free_hint) img->free_hint = p->lost; }/'

# ---- extended L2 entries --------------------------------------------------------------------------

first "bugs halves-of-an-entry data-is-not-copied killed-at-half-an-entry" "crash -w extended-overlay" "crash -w extended-threads" "deaths -w extended" "deaths -w extended-compressed"

without entries-are-read-whole table/entry.c \
  's/== finished\)/>= finished)/'
without entries-are-copied-whole table/entry.c \
  's/(q_entries_copy \(.*?\n\{\n.*?)struct q_l2_entry e = q_l2_entry_get_wide \(t, \(offset \+ i\) \/ 16\);/$1struct q_l2_entry e = { .descriptor = q_entry_get (t, (offset + i) \/ 8) }; Q_PROBE ("descriptor read, bitmap not"); e.bitmap = q_entry_get (t, (offset + i) \/ 8 + 1);/s'
without descriptor-before-data-bits table/entry.c \
  's/return \(new\.descriptor\s*&\s*Q_L2_COMPRESSED\).*?;/return false;/s'
without zero-bits-before-descriptor table/entry.c \
  's/return \(new\.descriptor\s*&\s*Q_L2_COMPRESSED\).*?;/return true;/s'
without compressed-keeps-descriptor table/entry.c \
  's/if \(old\.descriptor & Q_L2_COMPRESSED\)\s*return false;//'
without halves-are-mended state/recover.c \
  's/(mend_halves \([^)]*\)\s*\{)/$1 if (p) return NULL;/'
without shared-neighbours-go-along disk/write.c \
  's/old->compressed \? q_all_subclusters \(img\) : old->data/0/'
without data-in-place-is-not-copied disk/write.c \
  's/if \(!plan->reuses \|\| !\(c\.data >> to & 1\)\)/if (plan->len > 0)/'

# ---- internal snapshots ---------------------------------------------------------------------------

first "bugs snapshot-outrun snapshot-beside-write-in-flight" "crash -w snapshots" "crash -w snapshots-threads" "faults -w snapshots"

without snapshot-counts-what-it-shares snapshot/snapshot-make.c \
  's/(count_table \(.*?)r = q_tree_raise \(m->img, m->l2\);/$1r = 0;/s'
without snapshot-counts-tables snapshot/snapshot-make.c \
  's/r = q_tree_raise_cluster \(m->img, entry & Q_OFFSET_MASK\);/r = 0;/'
without snapshot-clears-flags snapshot/snapshot-make.c \
  's/if \(own\)\s*clear_copied \(m->img, t\);//'
without snapshot-clears-flags-between-writes snapshot/snapshot-make.c \
  's/q_gate_close \(m->img\);(\s*if \(own\)\s*clear_copied \(m->img, t\);)\s*q_gate_open \(m->img\);/$1/'
without snapshot-counts-under-a-claim snapshot/snapshot-make.c \
  's/q_tree_claim \(img, index, &claim\);/q_tree_claim (img, index + m->c->entries, &claim);/'
without snapshot-counts-changes snapshot/snapshot-make.c \
  's/(q_counting_save \([^)]*\)\s*\{)/$1 if (t) return 0;/'
without snapshot-recounts-what-is-new snapshot/snapshot-make.c \
  's/(q_tree_difference \(m->img, m->other, m->l2\);)\s*r = q_tree_raise \(m->img, m->l2\);/$1/'
without snapshot-recounts-what-has-gone snapshot/snapshot-make.c \
  's/q_tree_lower \(m->img, m->other\);(\s*\}\s*q_l2_release)/$1/'
without snapshot-recounts-once snapshot/snapshot-make.c \
  's/m->c->before\[index\] = NULL;/m->c->before[index] = memcpy (malloc (t->bytes), m->other, t->bytes);/'
without snapshot-saves-so-much snapshot/snapshot-make.c \
  's/\+ bytes <= c->most/+ bytes <= UINT64_MAX/'
without snapshot-takes-back-what-it-counted snapshot/snapshot-make.c \
  's/q_tree_lower \(img, copy\);//'
without snapshot-forgets-without-memory snapshot/snapshot-make.c \
  's/else if \(!c->over\)/else/'
without snapshot-sets-flags-of-what-it-took-back snapshot/snapshot-make.c \
  's/else if \(m->stopped \|\| m->c->state\[i\] == TAKEN_BACK\)/else if (m->stopped)/'
without snapshot-is-of-one-moment snapshot/snapshot-make.c \
  's/int r = q_flush_write \(img, m->round\);/int r = 0;/'
without snapshot-table-before-header snapshot/snapshot.c \
  's/r = q_file_sync \(img->file\);\s*if \(r < 0\)\s*return q_stick \(img, r, "syncing the snapshot table failed"\);//'
without snapshot-unlisted-first snapshot/snapshot-drop.c \
  's/: q_snapshots_replace \(img, s, &gone, err\);/: (give_back (img, entry, entries, host), entries = 0, q_snapshots_replace (img, s, &gone, err));/'
without going-back-counts-first snapshot/snapshot-drop.c \
  's/r = q_tree_raise \(img, b->l2\);/r = 0;/'
without dirty-bit-meanwhile header/header.c \
  's/if \(img->version < 3 \|\| !set_dirty \(img, dirty\)\)/if (dirty || !dirty)/'
without closed-gate-waits image/gate.c \
  's/while \(!is_empty \(g\)\)/while (false)/'

# ---- dirty bitmaps ---------------------------------------------------------------------------------

first bugs "crash -w bitmaps" "crash -w bitmaps-sizes" "crash -w bitmaps-alone" "deaths -w bitmaps" "deaths -w bitmaps-sizes" "faults -w bitmaps"

without writes-marked disk/write.c \
  's/q_bitmaps_mark \(img, plan->offset, plan->len\);/;/'
without zeros-marked disk/zero.c \
  's/q_bitmaps_mark \(img, first << img->subcluster_bits,/if (!img) q_bitmaps_mark (img, first << img->subcluster_bits,/'
without in-use-before-writing bitmap/bitmap-store.c \
  's/r = write_flags \(b\[i\]\);\s*wrote = true;/r = 0; b[i]->flags |= Q_BITMAP_IN_USE;/'
without in-use-durable bitmap/bitmap-store.c \
  's/if \(r == 0 && wrote\)\s*r = sync_file \(img\);//'
without bitmap-counts-before-tables bitmap/bitmap-store.c \
  's/if \(r == 0 && placed\)\s*r = q_flush \(img\);//'
without bitmap-tables-before-marks bitmap/bitmap-store.c \
  's/placed \? sync_file \(img\) : 0/0/'
without failed-save-gives-back bitmap/bitmap-store.c \
  's/undo \(img, &s\[i\]\);/forget (&s[i].leaving);/'
without old-table-may-be-the-new bitmap/bitmap-store.c \
  's/if \(s->written\)/if (b == NULL)/'
without directory-before-header bitmap/bitmap-store.c \
  's/(q_flush_hold \(img\);\s*)r = q_flush_round \(img\);(\s*if \(r == 0\) \{\s*r = write_extension)/$1 r = 0;$2/'
without bits-kept-for-the-record bitmap/bitmap-live.c \
  's/(q_shared_record_commit \(img, &z->record\);\s*q_gate_open \(img\);)(.*?)(for \(unsigned i = 0; i < l->n; \+\+i\)\s*if \(z->bits\[i\]\)\s*q_grace_retire \(z->bits\[i\], free_bits\);)/$3 $1/s'
without new-is-dirty bitmap/bitmap-live.c \
  's/if \(b->enabled && size > old\)/if (false)/'
without new-is-dirty-after-a-kill bitmap/bitmap-state.c \
  's/if \(e->flags & ENTRY_ENABLED\)\s*q_bits_set/if (false) q_bits_set/'
without going-back-is-dirty snapshot/snapshot-drop.c \
  's/q_bitmaps_mark \(img, 0, q_size \(img\)\);/;/'
without record-at-the-instant bitmap/bitmap-change.c \
  's/q_shared_record_commit \(img, &c->record\);/;/'
without bitmap-that-replaces-is-another bitmap/bitmap-state.c \
  's/if \(\(e->flags & ENTRY_NEW\) && b && [^;]*;//'
without bitmap-without-bits-is-named bitmap/bitmap-state.c \
  's/e->offset \|\| !b->inconsistent/true/'
without bitmaps-astride-sectors-stick bitmap/bitmap-store.c \
  's/r = q_stick \(img, r, "writing the bitmaps extension failed"\);(\s*return r;)/;$1/'
without tables-forgotten-before-bitmaps state/recover.c \
  's/forget_tables \(&p\);//'

# ---- what a killed process leaves ---------------------------------------------------------------

first bugs deaths

without data-before-changed table/table.c \
  's/if \(t->slot\)\s*atomic_fetch_add \(&t->slot->changed, 1\);//'
without moving-tables-are-where-they-were table/table.c \
  's/atomic_store \(&t->slot->moving, 1\);/;/'
without mark-of-the-session state/state.c \
  's/img->autoclear \|= Q_AUTOCLEAR_SESSION;//'
without number-of-the-flush state/state.c \
  's/(q_state_write_sequence \(struct q_image \*img\)\s*\{)/$1 if (img) return 0;/'
without sign-of-life file/file.c \
  's/(sign \(struct q_file \*f\)\s*\{\s*struct timespec now;\s*int64_t before, ns;)/$1\n  if (f) return;/'
without sign-of-life-in-recovery state/recover.c \
  's/img->file->alive = &p\.h->alive;//'
without proof-of-the-session state/recover.c \
  's/memcmp \(session\.session, h->session, sizeof h->session\) != 0/false/'

# ---- images at rest --------------------------------------------------------------------------------

first tools "crash -w shrink" "crash -w header"

without compact-copies-first offline/compact.c \
  's/(r = copy_clusters \(k, k->move\[i\]\.from[^;]*;\s*\})\s*if \(r == 0\)\s*r = q_file_sync \(f\);/$1/'
without compact-refers-before-freeing offline/compact.c \
  's/(r = redirect_all \(k, &k->move\[redirected\+\+\], redirect\);)\s*if \(r == 0\)\s*r = q_file_sync \(f\);/$1/'
without compact-copies-tables-first offline/compact.c \
  's/(r = copy_clusters \(k, from, to, count\);)\s*if \(r == 0\)\s*r = q_file_sync \(f\);/$1/'
without compact-copies-pieces-first offline/compact-pieces.c \
  's/m->n > 0 \? q_file_sync \(k->c\.img->file\) : 0/0/'
without new-counts-before-header offline/width.c \
  's/return r == 0 \? q_file_sync \(w->img->file\) : r;/return r;/'
without header-piece-by-piece header/rewrite.c \
  's/return r == 0 \? q_file_sync \(img->file\) : r;/return r;/'
without short-l1-before-header image/resize.c \
  's/r = q_file_sync \(img->file\);\s*if \(r < 0\)\s*q_stick \(img, r, "syncing the new L1 table failed"\);/;/'
without zeros-written-before-old-version offline/expand.c \
  's/r = q_flush \(img\); (\/\* counts and zeros)/; $1/'

# ---- errors ----------------------------------------------------------------------------------------

first faults

without sticky-errors image/error.c \
  's/if \(atomic_compare_exchange_strong \(&img->sticky, &expected, sticky\)\)/if (expected == 0)/'
without full-disk-is-not-sticky disk/flush.c \
  's/if \(r != -ENOSPC && r != -ENOMEM\)\s*q_stick \(img, r, "writing metadata failed"\);/q_stick (img, r, "writing metadata failed");/'
without failed-round-is-redone disk/flush.c \
  's/if \(again\)/if (false)/'
without room-reserved-for-tables disk/alloc.c \
  's/(r = q_file_allocate \(img->file, [^;]*;)/r = 0;/'
without abort-forgets-nothing disk/write.c \
  's/q_write_abort \(struct q_write_plan \*plan\)\s*\{/q_write_abort (struct q_write_plan *plan)\n{\n  if (plan->allocates) { q_write_commit (plan); return; }\n/'
