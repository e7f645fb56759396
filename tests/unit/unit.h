/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the unit tests share: images in memory that can be taken apart, storage that fails on
 * demand, and the log.
 *
 * A fixture is a store of named files (tests/crash/mem.h).  An image is made with unit_create and
 * then changed byte by byte through its file's memory; pointers into that memory are good until the
 * file next grows.
 */

#ifndef UNIT_H
#define UNIT_H

/* cmocka wants these before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "mem.h"

struct fixture {
  struct mem_store store;
  struct mem_tap tap; /* of every file made with unit_create and unit_raw */
  _Atomic unsigned calls[MEM_KINDS];
  /* Faults: the calls of FAIL_KIND from the (FAIL_AFTER + 1)st on answer FAIL_WITH; FAIL_TIMES of
   * them, or if that is 0 all, and then FAIL_WITH is 0 again. */
  enum mem_kind fail_kind;
  int fail_with;
  unsigned fail_after, fail_times;
  uint64_t full_at; /* writing and allocating past this answers -ENOSPC; 0: never */
  struct q_open_options opts;
  struct q_error err;
};

void unit_init (struct fixture *f);
void unit_done (struct fixture *f);

/* An image or a raw file of SIZE bytes.  OPTS may be NULL: 64 KiB clusters, version 3. */
struct mem_file *unit_create (struct fixture *f, const char *name, uint64_t size,
                              const struct q_create_options *opts);
struct mem_file *unit_create_clusters (struct fixture *f, const char *name, uint64_t size,
                                       unsigned cluster_bits);
struct mem_file *unit_overlay (struct fixture *f, const char *name, uint64_t size,
                               const char *backing, const char *format);
struct mem_file *unit_raw (struct fixture *f, const char *name, uint64_t size, uint8_t byte);

/* With f->opts and the store as the opener.  unit_open and unit_close must succeed. */
int unit_try_open (struct fixture *f, const char *name, struct q_image **img);
struct q_image *unit_open (struct fixture *f, const char *name);
void unit_close (struct q_image *img);
/* The check finds nothing. */
void unit_check (struct fixture *f, const char *name);

/* ---- taking images apart -------------------------------------------------------------------- */

struct qcow2_header *unit_header (struct mem_file *m);
/* N clusters at the end of the file, refcount 1; returns their host offset. */
uint64_t unit_take (struct mem_file *m, uint64_t n);
/* The L2 entry of guest cluster GC; makes the table. */
void unit_set_entry (struct mem_file *m, uint64_t gc, uint64_t entry);
uint64_t unit_get_entry (struct mem_file *m, uint64_t gc);
/* Its second half, in an image with extended L2 entries. */
void unit_set_bitmap (struct mem_file *m, uint64_t gc, uint64_t bitmap);
uint64_t unit_get_bitmap (struct mem_file *m, uint64_t gc);
/* A data cluster for GC that holds BYTE everywhere; returns its host offset. */
uint64_t unit_set_data (struct mem_file *m, uint64_t gc, uint8_t byte);
uint64_t unit_refcount (struct mem_file *m, uint64_t host);
void unit_set_refcount (struct mem_file *m, uint64_t host, uint64_t count);
uint64_t unit_be64 (const struct mem_file *m, uint64_t offset);
void unit_put_be64 (struct mem_file *m, uint64_t offset, uint64_t value);

/* ---- what came of it ------------------------------------------------------------------------ */

/* The guest reads BYTE in all of the range. */
void unit_reads (struct q_image *img, uint64_t offset, uint64_t len, uint8_t byte);
/* Writes BYTE to all of the range; must succeed. */
void unit_writes (struct q_image *img, uint64_t offset, uint64_t len, uint8_t byte);

/* The log since unit_init or unit_forget_log: how many lines of LEVEL, and the last line. */
unsigned unit_logged (enum q_log_level level);
const char *unit_last_log (void);
void unit_forget_log (void);

#define assert_contains(text, part)                                                                \
  do {                                                                                             \
    if (!strstr (text, part))                                                                      \
      fail_msg ("'%s' does not contain '%s'", text, part);                                         \
  } while (0)

#define lengthof(array) (sizeof (array) / sizeof ((array)[0]))

#endif /* UNIT_H */
