/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The storage seam: everything that the engine does to a file goes through these calls.
 *
 * A q_file is one open file (local, or whatever an opener gives).  Nothing above this seam assumes
 * a descriptor; a fast path may ask for one.  Tests put their own opener in (q_open_options.opener)
 * to record, reorder or fail operations.
 *
 * Errors: negative errno.  Reads past the end of the file give zeros, never an error: an image
 * may end in the middle of its last cluster.  Threads: all calls from any thread; the seam orders
 * nothing, except that a read sees a write that returned before it began.
 *
 * A short write is never seen above the seam.  Alignment that O_DIRECT wants is the seam's affair.
 */

#ifndef Q_FILE_H
#define Q_FILE_H

#include "qcow2.h"
#include "window.h"

struct iovec;

struct q_file_ops {
  int (*pread) (struct q_file *f, void *buf, size_t len, uint64_t offset);
  int (*pwritev) (struct q_file *f, const struct iovec *iov, int iovcnt, uint64_t offset);
  int (*sync) (struct q_file *f);
  /* The range then reads as zeros; UNMAP: and gives its space back.  -ENOTSUP if that cannot be
   * had without writing data. */
  int (*zero) (struct q_file *f, uint64_t offset, uint64_t len, bool unmap);
  int (*truncate) (struct q_file *f, uint64_t size);
  int (*allocate) (struct q_file *f, uint64_t offset, uint64_t len); /* reserve space; keeps data */
  int (*size) (struct q_file *f, uint64_t *size);
  /* When the file was last changed, nanoseconds since 1970 by the file system's clock.  -ENOTSUP if
   * it cannot tell. */
  int (*changed) (struct q_file *f, int64_t *ns);
  int (*usage) (struct q_file *f, uint64_t *bytes); /* disk space occupied */
  /* The run of data or hole that OFFSET lies in: *is_hole, and *end exclusive.  -ENOTSUP if the
   * file cannot tell. */
  int (*extent) (struct q_file *f, uint64_t offset, uint64_t *end, bool *is_hole);
  int (*prefetch) (struct q_file *f, uint64_t offset, uint64_t len);
  /* Takes QEMU's locks (lock.h); NULL: there are none. */
  int (*lock) (struct q_file *f, bool write, struct q_error *err);
  /* A guard (lock.h) of the same file, with a reader's or a writer's locks; NULL: there are none.
   */
  int (*guard) (struct q_file *f, bool write, struct q_error *err);
  void (*close) (struct q_file *f);
};

struct q_file {
  const struct q_file_ops *ops;
  char *name;          /* as opened, for messages and for resolving relative names */
  int fd;              /* -1 if none, or if it must not be used beside ops (O_DIRECT) */
  bool holes_are_zero; /* bytes never written past the end of the file read as zeros: true for
                        * regular files, false for block devices */
  bool is_device;
  uint64_t dev, ino;         /* identity, to find loops in a chain; 0, 0 if it has none */
  int direct_fd;             /* for asynchronous reads past the page cache ... */
  uint32_t direct_align;     /* ... at multiples of this; 0: there is no such descriptor */
  struct q_windows *windows; /* of its page cache; NULL if none */
  _Atomic int64_t *alive;    /* where to leave the time before each change, nanoseconds since 1970
                              * by CLOCK_REALTIME_COARSE (state.h); NULL: nowhere */
};

enum q_file_flags {
  Q_FILE_WRITE = 1,
  Q_FILE_CREATE = 2, /* create or truncate */
  Q_FILE_DIRECT = 4,
  Q_FILE_LOCK = 8,     /* take QEMU's locks: see lock.h */
  Q_FILE_REGULAR = 16, /* -EPERM if it is a block device, without touching it */
  /* For names that an image says (names.h): */
  Q_FILE_LOCAL = 32,     /* the name is a local file's, whatever else the opener knows */
  Q_FILE_NO_FOLLOW = 64, /* -EPERM if it is a symbolic link */
};

struct q_file_opener {
  int (*open) (void *opaque, const char *name, unsigned flags, struct q_file **file,
               struct q_error *err);
  void *opaque;
};

/* The local file system. */
int q_file_open_local (void *opaque, const char *name, unsigned flags, struct q_file **file,
                       struct q_error *err);
/* Through OPENER, or the local file system if it is NULL. */
int q_file_open (const struct q_file_opener *opener, const char *name, unsigned flags,
                 struct q_file **file, struct q_error *err);
/* The locks of a reader or a writer, if they were not taken on opening. */
int q_file_lock (struct q_file *f, bool write, struct q_error *err);
/* A guard beside these, or -ENOTSUP. */
int q_file_guard (struct q_file *f, bool write, struct q_error *err);
void q_file_close (struct q_file **file);

/* The descriptor for a fast path (preadv2, io_uring), or -1. */
static inline int
q_file_fd (const struct q_file *f)
{
  return f ? f->fd : -1;
}

/* The same for asynchronous reads, whose offset, length and memory are multiples of its alignment;
 * 0 if there is none. */
static inline uint32_t
q_file_ring_align (const struct q_file *f)
{
  return !f ? 0 : f->fd >= 0 ? 1 : f->direct_align;
}

static inline int
q_file_ring_fd (const struct q_file *f)
{
  return f->fd >= 0 ? f->fd : f->direct_fd;
}

/* Where the bytes are in memory if they are in the page cache, or NULL.  window.h says under which
 * conditions they may be touched: the pin of the map held, and by system calls only. */
static inline const void *
q_file_window (const struct q_file *f, uint64_t offset, uint64_t len)
{
  return f && f->windows ? q_window_find (f->windows, offset, len) : NULL;
}

int q_file_pread (struct q_file *f, void *buf, size_t len, uint64_t offset);
int q_file_pwrite (struct q_file *f, const void *buf, size_t len, uint64_t offset);
/* May change the contents of IOV. */
int q_file_pwritev (struct q_file *f, struct iovec *iov, int iovcnt, uint64_t offset);
int q_file_sync (struct q_file *f);
int q_file_zero (struct q_file *f, uint64_t offset, uint64_t len, bool unmap);
/* The same by whatever means: by writing where q_file_zero cannot. */
int q_file_write_zeroes (struct q_file *f, uint64_t offset, uint64_t len, bool unmap);
int q_file_truncate (struct q_file *f, uint64_t size);
int q_file_allocate (struct q_file *f, uint64_t offset, uint64_t len);
int q_file_size (struct q_file *f, uint64_t *size);
/* 1 if the range lies inside the file, 0 if not, or an error. */
int q_file_contains (struct q_file *f, uint64_t offset, uint64_t len);
int q_file_changed (struct q_file *f, int64_t *ns);
int q_file_usage (struct q_file *f, uint64_t *bytes);
int q_file_extent (struct q_file *f, uint64_t offset, uint64_t *end, bool *is_hole);
int q_file_prefetch (struct q_file *f, uint64_t offset, uint64_t len);

#endif /* Q_FILE_H */
