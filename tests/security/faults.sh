# SPDX-License-Identifier: BSD-3-Clause
#
# The sins of the tables here, as they would be ours: by a perl program each, which takes out of our code what stands
# between it and the sin, all of it where there is more than one thing, or puts the sin in where it is
# the design that does.  For mutate.sh.
#
# row TABLE NAME: the row that must notice those that follow; rule NAME...: mutations of crash/rules.sh; without NAME FILE
# PROGRAM..., see mutations.sh.

# perl's variables are not the shell's:
# shellcheck shell=sh disable=SC2016

# ---- images: fields --------------------------------------------------------------------------------

row images CVE-2014-0142

without clusters-have-a-least-size plugin/qcow2/header/header.c \
  's/img->cluster_bits < Q_MIN_CLUSTER_BITS \|\| //'
without tables-are-somewhere plugin/qcow2/header/header.c \
  's/if \(img->l1_size > 0 && img->l1_offset == 0\)/if (false)/' \
  's/if \(img->reftable_clusters == 0 \|\| img->reftable_offset == 0\)/if (false)/'

row images CVE-2014-0143

without sizes-of-l1-tables-in-64-bits plugin/qcow2/header/header.c \
  's/img->l1_size \* 8ull/(uint32_t) (img->l1_size * 8u)/g'
without sizes-of-refcount-tables-in-64-bits plugin/qcow2/header/header.c \
  's/\(uint64_t\)img->reftable_clusters << img->cluster_bits/img->reftable_clusters << img->cluster_bits/'
without number-of-snapshots plugin/qcow2/header/header.c \
  's/if \(img->nb_snapshots > Q_MAX_SNAPSHOTS\)/if (false)/'
without entries-of-snapshot-l1-tables plugin/qcow2/snapshot/snapshot.c \
  's/if \(s->l1_size > Q_MAX_L1_BYTES \/ 8\)/if (false)/'

row images CVE-2014-0144

without backing-name-in-the-first-cluster plugin/qcow2/header/header.c \
  's/if \(offset < img->header_length \|\| offset > cluster \|\| size > cluster - offset\)/if (false)/'
without extensions-in-their-area plugin/qcow2/header/extensions.c \
  's/if \(length > end - pos\)/if (false)/'
without l1-table-in-the-file plugin/qcow2/header/header.c \
  's/if \(img->l1_offset \+ img->l1_size \* 8ull > file_size\)/if (false)/'
without tables-where-a-file-can-be plugin/qcow2/header/header.c \
  's/if \(offset > Q_MAX_HOST_OFFSET \|\| bytes > Q_MAX_HOST_OFFSET - offset\)/if (false)/'
without snapshot-table-in-the-file plugin/qcow2/header/header.c \
  's/if \(img->nb_snapshots > 0 && img->snapshots_offset >= file_size\)/if (false)/'

row images CVE-2014-0145

without room-for-a-snapshot-l1-table plugin/qcow2/snapshot/snapshot-drop.c \
  's/b\.entries = b\.entries > s->l1_size \? b\.entries : s->l1_size;//'
without snapshot-l1-table-in-the-file plugin/qcow2/snapshot/snapshot.c \
  's/return r == 1 \? 0\s*: q_fail/return r >= 0 ? 0 : q_fail/'
without extra-data-in-the-snapshot-table plugin/qcow2/snapshot/snapshot.c \
  's/if \(start \+ len - img->snapshots_offset > Q_MAX_SNAPSHOT_TABLE\)/if (false)/' \
  's/if \(start \+ len > file_size\)/if (false)/'

row images CVE-2014-0146

without half-read-snapshots-are-nobodys plugin/qcow2/snapshot/snapshot.c \
  's/(for \(uint32_t i = 0; r == 0 && i < list->n; \+\+i\)\s*r = read_entry)/atomic_store (\&img->snapshots, list); $1/'

row images CVE-2014-0147

without nothing-allocated-over-metadata plugin/qcow2/disk/alloc.c \
  's/return overlaps \(host, len, 0, q_cluster_bytes \(img\)\) \|\|.*?;/(void)overlaps; (void)host; (void)len; (void)reftable_len; return false;/s'

row images CVE-2014-0222

without known-versions plugin/qcow2/header/header.c \
  's/if \(img->version != 2 && img->version != 3\)/if (false)/' \
  's/if \(img->cluster_bits < Q_MIN_CLUSTER_BITS \|\| img->cluster_bits > Q_MAX_CLUSTER_BITS\)/if (false)/'

row images CVE-2014-0223

without l1-table-for-all-of-the-disk plugin/qcow2/header/header.c \
  's/if \(size > INT64_MAX - cluster\)/if (false)/' \
  's/if \(img->l1_size < need\)/if (false)/'

row images 'bitmap directories'

without entries-end-in-the-directory plugin/qcow2/bitmap/bitmap.c \
  's/if \(length > left\)/if (false)/'
without bits-are-somewhere plugin/qcow2/bitmap/bitmap.c \
  's/if \(\(t & Q_BITMAP_ENTRY_RESERVED\) \|\| [^{;]*?\)\)\)\s*r = q_fail/if (host == UINT64_MAX \&\& file_size) r = q_fail/'

# ---- images: names ---------------------------------------------------------------------------------

row images CVE-2024-4467

without info-opens-no-data-file plugin/qcow2/image/datafile.c \
  's/if \(opts->repair \|\| \(opts->metadata_only && img->read_only\)\)\s*return 0;//' \
  plugin/qcow2/image/names.c \
  's/r = hold_beside \(img, "data file"[^;]*;/(void)hold_beside;/'

row images CVE-2024-32498

without data-files-beside-the-image plugin/qcow2/image/names.c \
  's/(r = )hold_beside \(img, "data file"[^;]*;/$1 0;/'
without names-of-protocols plugin/qcow2/image/names.c \
  's/else if \(looks_like_protocol \(name\)\)/else if (false)/' \
  's/n == 0 && looks_like_protocol \(name\) \? "\.\/" : ""/""/' \
  's/(r = )hold_beside \(img, "data file"[^;]*;/$1 0;/'

row images CVE-2026-24708

without a-guess-lets-no-data-file-be-written server/img/image.c \
  's/if \(distrust\)\s*k->source\.open\.data_file_policy = Q_DATA_FILE_NONE;//'

row images CVE-2008-1945

without raw-stays-raw plugin/qcow2/image/image.c \
  's/if \(format != Q_FORMAT_AUTO\)\s*return 0;/if (format == Q_FORMAT_QCOW2) return 0; may_be_raw = may_be_raw || format == Q_FORMAT_RAW;/'
without nothing-is-taken-for-raw plugin/qcow2/image/image.c \
  's/if \(!may_be_raw\)/if (!may_be_raw \&\& !img)/'

row images CVE-2008-2004

without formats-are-recorded plugin/qcow2/image/names.c \
  's/else if \(policy == Q_BACKING_PROBE\)/else if (policy != Q_BACKING_NONE)/'

row images CVE-2021-20255

without chains-end plugin/qcow2/image/image.c \
  's/if \(r == 0 && \+\+depth == Q_MAX_CHAIN\)/if (r == 0 \&\& ++depth == UINT32_MAX)/' \
  's/if \(r == 0 && top\)\s*r = check_loop \(top, img, err\);/(void)check_loop;/'

row images CVE-2022-0485

without errors-of-reading-end-a-conversion server/img/convert-copy.c \
  's/(if \(r < 0\)) (\{\s*r = img_error \("%s: error while reading the mapping)/if (false) $2/' \
  's/(: q_pread \(img, buf, at, there\);\s*)if \(r < 0\)/$1if (r < 0 \&\& r == 1)/'

# ---- names -----------------------------------------------------------------------------------------

row names CVE-2025-14946

without names-run-no-program server/img/nbd-file.c \
  's/\{ "nbd:\/\/", /{ "nbd+ssh:\/\/", "nbds+ssh:\/\/", "nbd:\/\/", /' \
  plugin/qcow2/image/names.c \
  's/else if \(looks_like_protocol \(name\)\)/else if (false)/'

# ---- clients: the handshake ------------------------------------------------------------------------

row protocol CVE-2011-1925

without exports-that-are-there server/protocol/handshake.c \
  's/if \(!x\) \{\s*refuse \(s, NBD_REP_ERR_UNKNOWN/if (!s) { refuse (s, NBD_REP_ERR_UNKNOWN/' \
  's/if \(!x \|\| admission \(s, x\) != ADMITTED/if (admission (s, x) != ADMITTED/'

row protocol CVE-2013-7441

without who-leaves-ends-alone server/protocol/session.c \
  's/(session_eof \(struct session \*s\)\s*\{)/$1\n  if (!s->transmission) exit (EXIT_FAILURE);/'
without who-asks-for-nothing-ends-alone server/protocol/handshake.c \
  's/#include <errno.h>/#include <errno.h>\n#include <stdlib.h>/' \
  's/session_drop \(s\); \/\* this option has no error reply \*\//exit (EXIT_FAILURE);/'

row protocol CVE-2017-7539

without magic-of-options server/protocol/handshake.c \
  's/h->magic != htobe64 \(NBD_OPTION_MAGIC\) \|\| //'
without options-with-data-are-taken-in server/protocol/handshake.c \
  's/\} else if \(len == 0\) \{/} else if (len == 0 || s->option == NBD_OPT_ABORT || s->option > NBD_OPT_EXTENDED_HEADERS) {/'

row protocol CVE-2017-9524

without only-what-was-begun-is-ended server/protocol/session.c \
  's/if \(s->export\) \{(\s*export_leave)/{$1/'

row protocol CVE-2017-15118

without names-in-messages-are-cut server/protocol/handshake.c \
  's/s->len < sizeof out->text \? s->len : sizeof out->text - 1/s->len/'

row protocol CVE-2017-15119

without options-have-an-end server/protocol/handshake.c \
  's/ \|\|\s*len > MAX_SKIPPED_DATA\)/)/'
without long-options-are-not-kept server/protocol/handshake.c \
  's/if \(len > most\) \{/if (len > MAX_SKIPPED_DATA) {/'

row protocol CVE-2022-26495

without lengths-without-wrapping server/protocol/handshake.c \
  's/if \(n > c->left\)/if ((uint32_t)(n + 8) > c->left + 8)/' \
  's/ && s->len <= NBD_MAX_STRING && take \(c, s->len, &s->p\) &&\s*\(s->len == 0 \|\| !memchr \(s->p, 0, s->len\)\)/ \&\& take (c, s->len, \&s->p)/'

row protocol CVE-2022-26496

without long-names-are-not-copied server/protocol/handshake.c \
  's/s->len < sizeof out->text \? s->len : sizeof out->text - 1/s->len/' \
  's/ && s->len <= NBD_MAX_STRING//'

row protocol CVE-2020-10761

without errors-are-short server/protocol/handshake.c \
  's/char text\[129\]/char text[8192]/' \
  's/char text\[256\]/char text[8192]/'

row protocol CVE-2019-14851

without info-changes-nothing server/protocol/handshake.c \
  's/if \(s->option != NBD_OPT_GO\)\s*return false;//'

row protocol CVE-2019-14850

without clients-in-the-handshake-use-nothing server/protocol/session.c \
  's/(s->out\.loans = &shard->loans;)/$1\n  { unsigned max; struct export *x = exports_next (shard->exports, NULL); if (x) { (void)export_enter (x, \&max); export_put (x); } }/'

row protocol CVE-2021-3716

without tls-forgets-what-was-negotiated server/protocol/session.c \
  's/(s->starved = true;)\s*s->mode = MODE_SIMPLE;\s*s->meta_export = 0;\s*s->meta_selected = 0;/$1/'
without plain-text-behind-starttls server/net/conn.c \
  's/c->held \? NULL : (tls_start)/$1/'

row protocol CVE-2013-6410

without names-are-compared-whole server/net/authz.c \
  's/strcmp \(o->authz\.identity, identity\) == 0/strncmp (o->authz.identity, identity, strlen (o->authz.identity)) == 0/'
without names-of-rules-are-compared-whole server/net/authz.c \
  's/strcmp \(r->match, identity\) == 0/strncmp (r->match, identity, strlen (identity)) == 0/'
without patterns-are-compared-whole server/net/authz.c \
  's/\} else\s*return false;/} else\n      return *pattern == 0;/'

row protocol CVE-2024-7409

without clients-in-the-handshake-are-ended server/net/loop.c \
  's/\(drain \|\| conn_is_to_leave \(c\)\)/(drain ? c->session.transmission : conn_is_to_leave (c))/'
without loops-are-joined server/server.c \
  's/loop_join \(sv->loops\[i\]\);/(void)loop_join;/'

row protocol CVE-2015-0847

without signals-are-events server/server.c \
  's/watch_signal \(&sv, &sv\.sighup, SIGHUP\);/signal (SIGHUP, SIG_DFL);/'

# ---- clients: requests -----------------------------------------------------------------------------

row protocol CVE-2005-3534

without room-for-all-of-a-payload server/protocol/session.c \
  's/buf_alloc \(&s->shard->cache, n\)/buf_alloc (\&s->shard->cache, n < 65536 ? n : 65536)/'

row protocol CVE-2017-10664

without lost-clients-are-no-signal server/server.c \
  's/signal \(SIGPIPE, SIG_IGN\);//' \
  server/main.c 's/signal \(SIGPIPE, SIG_IGN\);//' \
  server/net/loop.c 's/sigfillset \(&all\);/sigfillset (\&all); sigdelset (\&all, SIGPIPE);/' \
  server/net/transport.h 's/MSG_NOSIGNAL \| //'

row protocol CVE-2025-47711

without status-of-what-was-asked-for server/protocol/status.c \
  's/q_map \(x->img, offset, end - offset,/q_map (x->img, offset, x->size - offset,/'

row protocol CVE-2025-47712

without status-of-whole-blocks server/protocol/request.c \
  's/if \(!aligned \(rq\)\)/if (!aligned (rq) \&\& rq->type != NBD_CMD_BLOCK_STATUS)/'
without blocks-in-64-bits server/protocol/request.c \
  's/(if \(!aligned \(rq\)\) \{)/((struct request *)rq)->len = (uint32_t)(rq->len + rq->export->min_block - 1) \& ~(rq->export->min_block - 1); $1/'

# ---- the engine ------------------------------------------------------------------------------------

row engine 'cloud-hypervisor 8597'

without freed-clusters-are-found-again plugin/qcow2/disk/alloc.c \
  's/if \(c < img->free_hint\)\s*img->free_hint = c;//'

row engine 'cloud-hypervisor 8621'

rule claim

row engine 'cloud-hypervisor 8624'

rule counts-during-punch

row engine 'cloud-hypervisor 8637'

without room-before-a-table-is-freed plugin/qcow2/table/l2.c \
  's/r = q_alloc_metadata \(img, flags, &host\);\s*if \(r < 0\)\s*q_limbo_cancel \(&img->limbo, 1\);/q_limbo_add (\&img->limbo, t->host >> img->cluster_bits, 1); r = q_alloc_metadata (img, flags, \&host);/' \
  's/q_alloc_lock \(img\);\s*q_limbo_add \(&img->limbo, old, 1\);\s*q_alloc_unlock \(img\);/(void)old;/'

row engine 'cloud-hypervisor 8748'

rule sync-before-references abort-forgets-nothing

row engine crosvm

without discarded-clusters-wait plugin/qcow2/disk/zero.c \
  's/q_limbo_add \(&img->limbo, cluster, refs\);\s*--frees;/{ for (uint64_t k = 0; k < refs; ++k) q_refcount_set (img, cluster + k, 0, 0); if (cluster < img->free_hint) img->free_hint = cluster; }/'
rule limbo-waits-for-flush

row engine 'QEMU,'

rule claim
