/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Errors and the log: one line each, and the sticky state of an image that can no longer be
 * trusted with writes.
 *
 * Invariant 7. A failed metadata write or sync is sticky: the image turns read-only with one
 * clear message, and what was acknowledged as durable stays durable, because nothing is written
 * to it any more.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "image.h"

static void
log_to_stderr (void *opaque, enum q_log_level level, const char *text)
{
  (void)opaque;
  if (level <= Q_LOG_WARNING)
    fprintf (stderr, "%s%s\n", level == Q_LOG_WARNING ? "warning: " : "", text);
}

bool
q_drives_terminal (const char *text, size_t i)
{
  unsigned char c = (unsigned char)text[i], before = i > 0 ? (unsigned char)text[i - 1] : 0;

  if (c < 0x20 || c == 0x7f)
    return true;
  /* The second set of control characters: two bytes of UTF-8, or one that is none. */
  return c >= 0x80 && c < 0xa0 && (before < 0x80 || before == 0xc2);
}

void
q_make_printable (char *text)
{
  for (size_t i = 0; text[i]; ++i)
    if (q_drives_terminal (text, i)) {
      /* Of two bytes neither stays: the first alone is no text. */
      if (i > 0 && (uint8_t)text[i - 1] == 0xc2 && (uint8_t)text[i] >= 0x80)
        text[i - 1] = '?';
      text[i] = '?';
    }
}

static q_log_fn log_fn = log_to_stderr;
static void *log_opaque;

void
q_set_log (q_log_fn fn, void *opaque)
{
  log_fn = fn ? fn : log_to_stderr;
  log_opaque = opaque;
}

void
q_log (enum q_log_level level, const char *fmt, ...)
{
  char text[1024];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  q_make_printable (text);
  log_fn (log_opaque, level, text);
}

int
q_fail (struct q_error *err, int code, const char *fmt, ...)
{
  if (err && err->text[0] == '\0') {
    va_list ap;

    va_start (ap, fmt);
    vsnprintf (err->text, sizeof err->text, fmt, ap);
    va_end (ap);
    q_make_printable (err->text);
  }
  return code;
}

void
q_error_prefix (struct q_error *err, const char *fmt, ...)
{
  struct q_error old;
  va_list ap;
  size_t n;

  if (!err)
    return;
  old = *err;
  va_start (ap, fmt);
  vsnprintf (err->text, sizeof err->text, fmt, ap);
  va_end (ap);
  n = strlen (err->text);
  if (n + 2 < sizeof err->text) {
    memcpy (err->text + n, ": ", 2);
    old.text[sizeof err->text - n - 3] = '\0'; /* a very long text loses its end */
    memcpy (err->text + n + 2, old.text, strlen (old.text) + 1);
  }
  q_make_printable (err->text);
}

int
q_stick (struct q_image *img, int code, const char *what)
{
  /* What a caller may try again, or wait with until there is room, this is not any more. */
  int sticky = code == -ENOSPC || code == -ENOMEM ? -EIO : code;
  int expected = 0;

  if (atomic_compare_exchange_strong (&img->sticky, &expected, sticky))
    q_log (Q_LOG_ERROR,
           "%s: %s: %s; the image is read-only from now on: what was flushed is safe, check the "
           "storage and open it again",
           img->filename, what, strerror (-code));
  return sticky;
}

int
q_corrupt (struct q_image *img, const char *fmt, ...)
{
  char text[512];
  va_list ap;
  int expected = 0;

  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);

  if (img->stable) {
    /* Once: a guest must not fill the log by reading one bad cluster again and again. */
    if (atomic_compare_exchange_strong (&img->sticky, &expected, -EIO))
      q_log (Q_LOG_ERROR, "%s: %s (more of this kind is not reported)", img->filename, text);
    return -EIO;
  }
  if (atomic_compare_exchange_strong (&img->sticky, &expected, -EIO)) {
    q_log (Q_LOG_ERROR,
           "%s: %s; the image is corrupt and read-only from now on: run nbdcow-img check -r all",
           img->filename, text);
    /* Best effort: the refusal above does not depend on it. */
    if (img->version >= 3) {
      img->incompatible |= Q_INCOMPAT_CORRUPT;
      if (q_header_write_features (img) == 0)
        q_file_sync (img->file);
    }
  }
  return -EIO;
}

int
q_writable (struct q_image *img)
{
  if (img->read_only)
    return -EROFS;
  if (atomic_load_explicit (&img->sticky, memory_order_acquire) != 0)
    return -EROFS;
  return 0;
}
