/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Memory for keys: pages of their own, so that locking them and leaving them out of core dumps
 * touches nothing else.
 */

#include <string.h>
#include <sys/mman.h>

#include "image.h"

static size_t
whole_pages (size_t len)
{
  return q_round_up (len ? len : 1, 4096);
}

void *
q_secret_alloc (size_t len)
{
  void *p;

  len = whole_pages (len);
  p = mmap (NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED)
    return NULL;
  /* Best effort: what may be locked is limited, and a key that might be swapped out is better than
   * an image that cannot be opened. */
  (void)mlock (p, len);
  (void)madvise (p, len, MADV_DONTDUMP);
  return p;
}

void
q_secret_free (void *p, size_t len)
{
  if (!p)
    return;
  len = whole_pages (len);
  explicit_bzero (p, len);
  munmap (p, len);
}
