/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an image may make us open: the names in it of other files (specification: "Header",
 * backing_file_offset; "Header extensions", the backing format and the external data file name).
 *
 * That is the user's decision and not the image's: whoever made the image could have put the name
 * of any file of this host into it, and a guest's next reader would hand that file out.  A name is
 * a local file's, as it stands, relative to the directory of the image that has it.  It is never a
 * protocol's, never a description in JSON, and never looked into to find out what it is, unless
 * the user asked for that; Q_FILE_LOCAL carries that to whatever opens it.  What the policies allow
 * is in qcow2.h; every refusal says which word would allow it.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "names.h"

static const char *const backing_words[] = {
  [Q_BACKING_RECORDED] = "recorded", [Q_BACKING_PROBE] = "probe", [Q_BACKING_NONE] = "none",
  [Q_BACKING_SAME_DIR] = "same-dir", [Q_BACKING_ANY] = "any",
};

static const char *const data_file_words[] = {
  [Q_DATA_FILE_SAME_DIR] = "same-dir",
  [Q_DATA_FILE_ANY] = "any",
  [Q_DATA_FILE_NONE] = "none",
};

/* The index of WORD, or N. */
static unsigned
find_word (const char *word, const char *const *words, unsigned n)
{
  unsigned i = 0;

  while (i < n && strcmp (word, words[i]) != 0)
    ++i;
  return i;
}

bool
q_backing_parse (const char *word, enum q_backing *policy)
{
  const unsigned n = sizeof backing_words / sizeof backing_words[0];
  unsigned i = find_word (word, backing_words, n);

  if (i < n)
    *policy = (enum q_backing)i;
  return i < n;
}

bool
q_data_file_parse (const char *word, enum q_data_file_policy *policy)
{
  const unsigned n = sizeof data_file_words / sizeof data_file_words[0];
  unsigned i = find_word (word, data_file_words, n);

  if (i < n)
    *policy = (enum q_data_file_policy)i;
  return i < n;
}

/* The part of NAME that says in which directory it is: so many bytes, with the slash. */
static size_t
directory_length (const char *name)
{
  const char *slash;

  assert (name);
  slash = strrchr (name, '/');
  return slash ? (size_t)(slash - name) + 1 : 0;
}

static bool
identify_directory (const char *name, struct stat *st)
{
  size_t n = directory_length (name);
  char *directory = n > 0 ? strndup (name, n) : strdup (".");
  bool found = directory && stat (directory, st) == 0;

  free (directory);
  return found;
}

/* Whether NAME begins as what a protocol's name does. */
static bool
looks_like_protocol (const char *name)
{
  return name[strcspn (name, ":/")] == ':';
}

/* NAME in the directory that FILENAME is in.  What is put together does not look like a protocol's
 * name, whatever NAME is.  NULL without memory. */
static char *
join (const char *filename, const char *name)
{
  size_t n = *name == '/' ? 0 : directory_length (filename);
  char *path;

  if (asprintf (&path, "%.*s%s%s", (int)n, filename,
                n == 0 && looks_like_protocol (name) ? "./" : "", name) == -1)
    return NULL;
  return path;
}

static bool
is_beside (const struct q_image *img, const char *path)
{
  size_t n = directory_length (img->filename);
  struct stat a, b;

  if (n == directory_length (path) && memcmp (path, img->filename, n) == 0)
    return true;
  return identify_directory (img->filename, &a) && identify_directory (path, &b) &&
         a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Leaves in *PATH a file of the directory that IMG is in, by the name of that directory alone:
 * together with Q_FILE_NO_FOLLOW there is then nothing on the way to it that whoever can write to
 * the directory could exchange for a link, now or between this look and the open.  OTHERWISE says
 * what would open it. */
static int
hold_beside (const struct q_image *img, const char *what, const char *recorded,
             const char *otherwise, char **path, struct q_error *err)
{
  struct stat st;
  char *beside;

  if (!is_beside (img, *path))
    return q_fail (err, -EPERM,
                   "%s: %s '%s' is not in the directory of the image that names it: %s",
                   img->filename, what, recorded, otherwise);
  beside = join (img->filename, *path + directory_length (*path));
  if (!beside)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  free (*path);
  *path = beside;
  if (lstat (beside, &st) == 0 && S_ISLNK (st.st_mode))
    return q_fail (err, -EPERM,
                   "%s: %s '%s' is a symbolic link, which may lead out of the directory of the "
                   "image that names it: %s",
                   img->filename, what, recorded, otherwise);
  return 0;
}

int
q_name_resolve (const struct q_image *img, const char *what, const char *hint, const char *recorded,
                char **path, struct q_error *err)
{
  const char *name = recorded;

  *path = NULL;
  if (strncmp (name, "file:", 5) == 0)
    name += 5;
  else if (looks_like_protocol (name))
    return q_fail (err, -ENOTSUP,
                   "%s: %s '%s': only a local file can be one, not what a '%.*s:' name says%s",
                   img->filename, what, recorded, (int)strcspn (name, ":"), name, hint);
  if (*name == '\0')
    return q_fail (err, -EINVAL, "%s: the %s name '%s' names no file%s", img->filename, what,
                   recorded, hint);
  *path = join (img->filename, name);
  return *path ? 0 : q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
}

/* ---- backing files -------------------------------------------------------------------------- */

int
q_name_check_backing (const struct q_image *img, enum q_backing policy, char **path,
                      unsigned *flags, struct q_error *err)
{
  struct stat st;
  int r = 0;

  *path = NULL;
  *flags = Q_FILE_LOCAL;
  if (policy == Q_BACKING_REFUSE)
    return q_fail (err, -EPERM,
                   "%s: names a backing file, '%s', and is not trusted to: backing=same-dir, "
                   "backing=recorded or backing=any opens it, backing=none does without",
                   img->filename, img->backing_file);
  *path = strdup (img->backing_path);
  if (!*path)
    return q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  if (policy == Q_BACKING_SAME_DIR) {
    *flags |= Q_FILE_NO_FOLLOW;
    r = hold_beside (img, "backing file", img->backing_file, "backing=recorded opens it", path,
                     err);
  }
  if (policy != Q_BACKING_ANY && policy != Q_BACKING_PROBE) {
    *flags |= Q_FILE_REGULAR;
    if (r == 0 && !img->opener && stat (*path, &st) == 0 && S_ISBLK (st.st_mode))
      r = q_fail (err, -EPERM, "%s: backing file '%s' is a block device: backing=any opens those",
                  img->filename, img->backing_file);
  }
  if (r < 0) {
    free (*path);
    *path = NULL;
  }
  return r;
}

int
q_backing_allowed (const struct q_image *img, enum q_backing policy, char **path,
                   unsigned *recorded, struct q_error *err)
{
  enum q_format format;
  int r;

  *path = NULL;
  *recorded = 0;
  if (err)
    err->text[0] = '\0';
  if (!img->backing_file || policy == Q_BACKING_NONE)
    return -ENOENT;
  if (!img->backing_path) { /* it could not be had: says why */
    r = q_name_resolve (img, "backing file", "", img->backing_file, path, err);
    if (r == 0)
      r = q_fail (err, -ESTALE, "%s: its backing file has been changed since it was opened",
                  img->filename);
  } else {
    r = q_name_check_backing (img, policy, path, recorded, err);
    if (r == 0)
      r = q_name_backing_format (img, policy, &format, err);
  }
  if (r < 0) {
    free (*path);
    *path = NULL;
  }
  return r;
}

int
q_name_backing_format (const struct q_image *img, enum q_backing policy, enum q_format *format,
                       struct q_error *err)
{
  const char *name = img->backing_format;

  if (name && strcmp (name, "qcow2") == 0)
    *format = Q_FORMAT_QCOW2;
  else if (name && strcmp (name, "raw") == 0)
    *format = Q_FORMAT_RAW;
  else if (name)
    return q_fail (
        err, -ENOTSUP,
        "%s: backing file '%s': recorded format '%s' is not supported (qcow2 and raw are)",
        img->filename, img->backing_file, name);
  else if (policy == Q_BACKING_PROBE)
    *format = Q_FORMAT_AUTO;
  else
    return q_fail (
        err, -EINVAL,
        "%s: backing file '%s': its format is not recorded, and guessing lets a guest name "
        "files of the host; record it (nbdcow-img rebase -u -F FORMAT -b '%s'), or allow "
        "probing (backing=probe) if you trust the image",
        img->filename, img->backing_file, img->backing_file);
  return 0;
}

/* ---- data files ----------------------------------------------------------------------------- */

int
q_name_check_data (const struct q_image *img, const char *chosen, enum q_data_file_policy policy,
                   char **path, unsigned *flags, struct q_error *err)
{
  int r;

  *path = NULL;
  *flags = 0;
  if (chosen) {
    *path = strdup (chosen);
    return *path ? 0 : q_fail (err, -ENOMEM, "%s: out of memory", img->filename);
  }
  if (!img->data_file)
    return q_fail (err, -EINVAL,
                   "%s: its data is in an external data file that it does not name: say which "
                   "with data-file=FILE",
                   img->filename);
  if (policy == Q_DATA_FILE_NONE)
    return q_fail (err, -EPERM,
                   "%s: names an external data file, '%s', and is not trusted to: data-file=FILE "
                   "names one, data-file-policy=same-dir or data-file-policy=any opens this one",
                   img->filename, img->data_file);
  r = q_name_resolve (img, "data file", ": data-file=FILE names one", img->data_file, path, err);
  *flags = Q_FILE_LOCAL;
  if (r < 0 || policy == Q_DATA_FILE_ANY)
    return r;
  *flags |= Q_FILE_REGULAR | Q_FILE_NO_FOLLOW;
  r = hold_beside (img, "data file", img->data_file,
                   "data-file=FILE names one, data-file-policy=any opens this one", path, err);
  if (r < 0) {
    free (*path);
    *path = NULL;
  }
  return r;
}
