/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Encryption: LUKS headers with hostile fields, keys, every cipher there is, and sectors that are
 * written in parts by several threads.
 */

#include <pthread.h>

#include "luks.h"
#include "unit.h"

#define SIZE (1u << 20)
#define K    65536ull

static const struct q_secret password = { "correct horse", 13 }, other = { "battery staple", 14 };

static bool
have_ciphers (void)
{
  static const struct q_cipher_spec spec = { "aes", "xts-plain64", 64 };

  return q_cipher_check (&spec, "", NULL) == 0;
}

/* An encrypted image with cheap keys. */
static struct mem_file *
make (struct fixture *f, const char *cipher, const char *mode, const char *ivgen, const char *hash)
{
  struct q_create_options o;

  q_create_options_init (&o);
  o.secret = &password;
  o.encrypt.iter_time_ms = 1;
  o.encrypt.cipher_alg = cipher;
  o.encrypt.cipher_mode = mode;
  o.encrypt.ivgen_alg = ivgen;
  o.encrypt.hash_alg = hash;
  f->opts.secret = &password;
  return unit_create (f, "disk", SIZE, &o);
}

static struct mem_file *
make_default (struct fixture *f)
{
  return make (f, "aes-256", "xts", "plain64", "sha256");
}

/* Where the LUKS header is. */
static struct luks_header *
header_of (struct fixture *f, struct mem_file *m)
{
  struct q_open_options saved = f->opts;
  struct luks_header *h;
  struct q_image *img;

  f->opts.metadata_only = f->opts.read_only = true;
  img = unit_open (f, "disk");
  h = (struct luks_header *)(m->data + img->crypto_offset);
  unit_close (img);
  f->opts = saved;
  return h;
}

static void
fails (struct fixture *f, int expect, const char *text)
{
  struct q_image *img;
  int r = unit_try_open (f, "disk", &img);

  if (r != expect)
    fail_msg ("%d (%s), should be %d (%s)", r, f->err.text, expect, text);
  assert_contains (f->err.text, text);
  assert_contains (f->err.text, "disk: ");
  assert_null (strchr (f->err.text, '\n'));
}

/* ---- headers -------------------------------------------------------------------------------- */

static void
test_fields (void **state)
{
  enum { TEXT, W16, W32 };
  static const struct {
    size_t offset;
    int width;
    uint32_t value;
    const char *text;
    int expect;
    const char *says;
  } mutations[] = {
#define FIELD(name) offsetof (struct luks_header, name)
    { FIELD (magic), W16, 0, NULL, -EINVAL, "does not begin as a LUKS header" },
    { FIELD (version), W16, 2, NULL, -ENOTSUP, "LUKS version 2" },
    { FIELD (version), W16, 0, NULL, -ENOTSUP, "LUKS version 0" },
    { FIELD (cipher), TEXT, 0, "", -EINVAL, "cipher's name is empty" },
    { FIELD (cipher), TEXT, 0, "aes\n", -EINVAL, "0x0a" },
    { FIELD (cipher), TEXT, 0, "0123456789abcdef0123456789abcdef", -EINVAL, "not terminated" },
    { FIELD (cipher), TEXT, 0, "rot13", -ENOTSUP, "'rot13-xts-plain64'" },
    { FIELD (mode), TEXT, 0, "0123456789abcdef0123456789abcdef", -EINVAL, "not terminated" },
    { FIELD (mode), TEXT, 0, "xts", -ENOTSUP, "initialization vectors" },
    { FIELD (mode), TEXT, 0, "xts-", -ENOTSUP, "initialization vectors" },
    { FIELD (mode), TEXT, 0, "xts-plain65", -ENOTSUP, "initialization vectors" },
    { FIELD (mode), TEXT, 0, "xts-essiv", -ENOTSUP, "essiv needs a hash" },
    { FIELD (mode), TEXT, 0, "xts-essiv:sha1", -ENOTSUP, "essiv needs a hash" },
    { FIELD (mode), TEXT, 0, "xts-essiv:nonsense", -ENOTSUP, "essiv needs a hash" },
    { FIELD (mode), TEXT, 0, "gcm-plain64", -ENOTSUP, "that mode is not supported" },
    { FIELD (mode), TEXT, 0, "cbc-plain64", -ENOTSUP, "64 bytes of key" },
    { FIELD (hash), TEXT, 0, "crc32", -ENOTSUP, "hash 'crc32'" },
    { FIELD (key_bytes), W32, 0, NULL, -EINVAL, "0 bytes of key" },
    { FIELD (key_bytes), W32, 65, NULL, -EINVAL, "65 bytes of key" },
    { FIELD (key_bytes), W32, 0xffffffff, NULL, -EINVAL, "4294967295 bytes of key" },
    { FIELD (key_bytes), W32, 63, NULL, -ENOTSUP, "63 bytes of key" },
    { FIELD (iterations), W32, 0, NULL, -EINVAL, "0 iterations" },
    { FIELD (iterations), W32, 0xffffffff, NULL, -EFBIG, "4294967295 iterations" },
    { FIELD (iterations), W32, Q_LUKS_MAX_ITERATIONS + 1, NULL, -EFBIG, "67108865 iterations" },
    { FIELD (slot[0].state), W32, 1, NULL, -EINVAL, "key slot 0: its state is 0x00000001" },
    { FIELD (slot[7].state), W32, 0xac71f2, NULL, -EINVAL, "key slot 7: its state is 0x00ac71f2" },
    { FIELD (slot[0].iterations), W32, 0, NULL, -EINVAL, "key slot 0: 0 iterations" },
    { FIELD (slot[0].iterations), W32, 0x80000000, NULL, -EFBIG, "2147483648 iterations" },
    { FIELD (slot[0].stripes), W32, 0, NULL, -EINVAL, "0 stripes" },
    { FIELD (slot[0].stripes), W32, 4001, NULL, -EINVAL, "4001 stripes" },
    { FIELD (slot[0].stripes), W32, 0xffffffff, NULL, -EINVAL, "4294967295 stripes" },
    { FIELD (slot[0].material_sector), W32, 0, NULL, -EINVAL, "at byte 0 is not between" },
    { FIELD (slot[0].material_sector), W32, 1, NULL, -EINVAL, "at byte 512 is not between" },
    { FIELD (slot[0].material_sector), W32, 0xffffffff, NULL, -EINVAL, "is not between" },
    { FIELD (slot[0].material_sector), W32, 3600, NULL, -EINVAL, "is not between" },
    { FIELD (slot[0].state), W32, Q_LUKS_INACTIVE, NULL, -EKEYREJECTED, "none of the 0" },
    { FIELD (digest), W32, 0, NULL, -EKEYREJECTED, "none of the 1" },
    { FIELD (salt), W32, 0, NULL, -EKEYREJECTED, "none of the 1" },
  };
  struct luks_header good, *h;
  struct fixture f;
  struct mem_file *m;

  (void)state;
  if (!have_ciphers ())
    skip ();
  unit_init (&f);
  m = make_default (&f);
  h = header_of (&f, m);
  good = *h;
  for (size_t i = 0; i < lengthof (mutations); ++i) {
    uint8_t *at = (uint8_t *)h + mutations[i].offset;
    be16 v16 = put16 ((uint16_t)mutations[i].value);
    be32 v32 = put32 (mutations[i].value);

    *h = good;
    if (mutations[i].text) {
      memset (at, 0, 32);
      memcpy (at, mutations[i].text, strlen (mutations[i].text));
    } else if (mutations[i].width == W16)
      memcpy (at, &v16, sizeof v16);
    else
      memcpy (at, &v32, sizeof v32);
    fails (&f, mutations[i].expect, mutations[i].says);
  }

  /* Two slots in one place. */
  *h = good;
  h->slot[3] = h->slot[0];
  fails (&f, -EINVAL, "key slots 0 and 3");
  *h = good;
  unit_close (unit_open (&f, "disk"));
  unit_done (&f);
}

/* The extension that points to the header. */
static void
test_extension (void **state)
{
  struct qcow2_crypto_extension good, bad;
  struct q_extension *e;
  struct q_image *img;
  struct fixture f;
  struct mem_file *m;
  uint64_t at, file;

  (void)state;
  if (!have_ciphers ())
    skip ();
  unit_init (&f);
  m = make_default (&f);
  img = unit_open (&f, "disk");
  e = q_extension_find (img, Q_EXT_CRYPTO);
  assert_non_null (e);
  at = e->offset;
  unit_close (img);
  memcpy (&good, m->data + at, sizeof good);
  file = m->size;

#define TRY(member, value, expect, says)                                                           \
  do {                                                                                             \
    bad = good;                                                                                    \
    bad.member = put64 (value);                                                                    \
    memcpy (m->data + at, &bad, sizeof bad);                                                       \
    fails (&f, expect, says);                                                                      \
  } while (0)
  TRY (offset, 0, -EINVAL, "offset 0 is not a cluster's");
  TRY (offset, get64 (good.offset) + 512, -EINVAL, "is not a cluster's");
  TRY (offset, 1ull << 60, -EINVAL, "is not a cluster's");
  TRY (offset, q_round_up (file, K), -EINVAL, "truncated: the encryption header");
  TRY (length, 0, -EINVAL, "length 0, should be 592");
  TRY (length, 591, -EINVAL, "length 591");
  TRY (length, UINT64_MAX, -EINVAL, "truncated");
  TRY (length, file, -EINVAL, "truncated");
  memcpy (m->data + at, &good, sizeof good);

  /* It goes with LUKS and with nothing else. */
  unit_header (m)->crypt_method = put32 (Q_CRYPT_NONE);
  fails (&f, -EINVAL, "crypt_method is 0 with");
  unit_header (m)->crypt_method = put32 (Q_CRYPT_AES);
  fails (&f, -EINVAL, "crypt_method is 1 with");
  unit_header (m)->crypt_method = put32 (Q_CRYPT_LUKS);
  unit_put_be64 (m, at - 8, (uint64_t)0x12345678 << 32 | sizeof good);
  fails (&f, -EINVAL, "crypt_method is 2 without");
  unit_done (&f);
}

/* ---- keys ----------------------------------------------------------------------------------- */

static void
test_splitter (void **state)
{
  static const char *const hashes[] = { "sha1", "sha256", "sha512", "md5" };
  uint8_t key[Q_MAX_KEY], back[Q_MAX_KEY], *split = calloc (Q_MAX_KEY, 100);

  (void)state;
  if (!have_ciphers ())
    skip ();
  for (size_t i = 0; i < sizeof key; ++i)
    key[i] = (uint8_t)(i * 7 + 1);
  for (size_t h = 0; h < lengthof (hashes); ++h)
    for (uint32_t stripes = 1; stripes <= 100; stripes += 33)
      for (size_t len = 16; len <= sizeof key; len += 8) {
        assert_int_equal (q_af_split (hashes[h], key, len, stripes, split), 0);
        memset (back, 0, sizeof back);
        assert_int_equal (q_af_merge (hashes[h], split, len, stripes, back), 0);
        assert_memory_equal (back, key, len);
        /* Every bit of every stripe counts. */
        split[len * (stripes - 1) / 2] ^= 1;
        assert_int_equal (q_af_merge (hashes[h], split, len, stripes, back), 0);
        assert_memory_not_equal (back, key, len);
      }
  /* Two stripes of two bytes, worked out by hand: the second is key ^ sha256 (0, 0, 0, 0, a, b). */
  {
    const uint8_t in[4] = { 0xaa, 0xbb, 0x00, 0x00 }, number[4] = { 0 };
    uint8_t digest[32];

    assert_int_equal (q_hash ("sha256", number, 4, in, 2, digest), 0);
    assert_int_equal (q_af_merge ("sha256", in, 2, 2, back), 0);
    assert_memory_equal (back, digest, 2);
  }
  free (split);
}

static void
test_keys (void **state)
{
  struct q_layer by_layer[2] = { { .secret = NULL }, { .secret = &password } };
  struct q_create_options o;
  struct q_image *img;
  struct fixture f;
  uint8_t buf[16];

  (void)state;
  if (!have_ciphers ())
    skip ();
  unit_init (&f);
  make_default (&f);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, SIZE, 7);
  unit_close (img);

  f.opts.secret = NULL;
  fails (&f, -ENOKEY, "a key is needed");
  f.opts.secret = &other;
  fails (&f, -EKEYREJECTED, "opens none of the 1");
  f.opts.secret = &(struct q_secret){ "", 0 };
  fails (&f, -EKEYREJECTED, "opens none of the 1");
  f.opts.secret = &(struct q_secret){ "correct horse\n", 14 };
  fails (&f, -EKEYREJECTED, "opens none of the 1");

  /* Without a key there is metadata, and no ciphertext that could be taken for data. */
  f.opts.secret = NULL;
  f.opts.metadata_only = f.opts.read_only = true;
  img = unit_open (&f, "disk");
  assert_int_equal (q_pread (img, buf, 0, sizeof buf), -ENOKEY);
  unit_close (img);
  unit_check (&f, "disk");
  f.opts.metadata_only = f.opts.read_only = false;

  /* A plain overlay over an encrypted layer, by layer. */
  q_create_options_init (&o);
  o.backing_file = "disk";
  o.backing_format = "qcow2";
  unit_create (&f, "top", SIZE, &o);
  assert_int_equal (unit_try_open (&f, "top", &img), -ENOKEY);
  f.opts.layers = by_layer;
  f.opts.n_layers = 2;
  img = unit_open (&f, "top");
  unit_reads (img, 0, SIZE, 7);
  unit_writes (img, 100, 5, 8);
  unit_reads (img, 100, 5, 8);
  unit_reads (img, 105, 1000, 7);
  unit_close (img);
  by_layer[0].secret = &password; /* not asked for: it is not encrypted */
  by_layer[1].secret = &other;
  assert_int_equal (unit_try_open (&f, "top", &img), -EKEYREJECTED);
  f.opts.secret = &password;
  by_layer[1].secret = NULL;
  unit_close (unit_open (&f, "top"));
  unit_done (&f);
}

/* Whether the bytes of a recognizable sector are anywhere in the file. */
static bool
shows (const struct mem_file *m, const void *bytes, size_t len)
{
  return memmem (m->data, m->size, bytes, len) != NULL;
}

/* Whether S opens the image. */
static bool
opens (struct fixture *f, const struct q_secret *s)
{
  struct q_image *img = NULL;
  int r;

  f->opts.secret = s;
  r = unit_try_open (f, "disk", &img);
  f->opts.secret = &password;
  if (r == 0)
    unit_close (img);
  else
    assert_int_equal (r, -EKEYREJECTED);
  return r == 0;
}

static void
changes (struct fixture *f, const struct q_key_change *change, int expect, const char *says)
{
  struct q_image *img;
  struct q_error err = { "" };
  int r;

  f->opts.metadata_only = true;
  img = unit_open (f, "disk");
  r = q_change_keys (img, change, &err);
  if (r != expect)
    fail_msg ("%d (%s), should be %d (%s)", r, err.text, expect, says);
  assert_contains (err.text, says);
  unit_close (img);
  f->opts.metadata_only = false;
}

static void
test_slots (void **state)
{
  static const struct q_secret third = { "third", 5 }, nobody = { "nobody", 6 };
  struct q_encryption_info info;
  struct q_image *img;
  struct fixture f;
  struct mem_file *m;
  struct luks_header *h;
  uint8_t before[512];

  (void)state;
  if (!have_ciphers ())
    skip ();
  unit_init (&f);
  m = make_default (&f);
  h = header_of (&f, m);

#define CHANGE(which, ...)                                                                         \
  (&(struct q_key_change){ .slot = (which), .iter_time_ms = 1, __VA_ARGS__ })
  changes (&f, CHANGE (-1, .secret = &password, .new_secret = &other), 0, "");
  changes (&f, CHANGE (6, .secret = &other, .new_secret = &third), 0, "");
  assert_true (opens (&f, &password) && opens (&f, &other) && opens (&f, &third));
  assert_false (opens (&f, &nobody));
  f.opts.read_only = f.opts.metadata_only = true;
  img = unit_open (&f, "disk");
  assert_int_equal (q_get_encryption (img, &info, &f.err), 0);
  unit_close (img);
  f.opts.read_only = f.opts.metadata_only = false;
  for (unsigned i = 0; i < Q_KEY_SLOTS; ++i)
    assert_int_equal (info.slot[i].active, i < 2 || i == 6);
  assert_string_equal (info.cipher_alg, "aes-256");
  assert_string_equal (info.cipher_mode, "xts");
  assert_string_equal (info.ivgen_alg, "plain64");
  assert_string_equal (info.ivgen_hash_alg, "");
  assert_string_equal (info.hash_alg, "sha256");
  assert_int_equal (info.payload_offset, 2068480);
  assert_int_equal (strlen (info.uuid), 36);

  /* What makes no sense. */
  changes (&f, CHANGE (1, .secret = &password, .new_secret = &third), -EEXIST,
           "key slot 1 is in use");
  changes (&f, CHANGE (8, .secret = &password, .new_secret = &third), -EINVAL,
           "key slot 8 does not exist");
  changes (&f, CHANGE (-1, .secret = &nobody, .new_secret = &third), -EKEYREJECTED,
           "none of the 3");
  changes (&f, CHANGE (-1, .secret = &password), -EINVAL, "needs a new secret");
  changes (&f, CHANGE (-1, .new_secret = &third), -ENOKEY, "needs one that opens");
  changes (&f, CHANGE (-1, .secret = &password, .new_secret = &third, .old_secret = &other),
           -EINVAL, "old secret is for erasing");
  changes (&f, CHANGE (-1, .erase = true), -EINVAL, "which key slot");
  changes (&f, CHANGE (1, .erase = true, .new_secret = &third), -EINVAL,
           "new secret is for filling");
  changes (&f, CHANGE (-1, .erase = true, .old_secret = &nobody), -EKEYREJECTED, "none of the 3");
  changes (&f, CHANGE (6, .erase = true, .old_secret = &other), -EKEYREJECTED, "none of the 1");

  /* Erased material is gone. */
  memcpy (before, (uint8_t *)h + info.slot[6].material_offset, sizeof before);
  assert_true (shows (m, before, sizeof before));
  changes (&f, CHANGE (6, .erase = true), 0, "");
  assert_false (shows (m, before, sizeof before));
  assert_false (opens (&f, &third));
  changes (&f, CHANGE (6, .erase = true), 0, ""); /* again */
  changes (&f, CHANGE (-1, .erase = true, .old_secret = &password), 0, "");
  assert_false (opens (&f, &password));
  assert_true (opens (&f, &other));
  changes (&f, CHANGE (-1, .erase = true, .old_secret = &other), -EPERM,
           "no key slot would be left");
  changes (&f, CHANGE (1, .erase = true), -EPERM, "no key slot would be left");

  /* All slots. */
  for (unsigned i = 0; i < Q_KEY_SLOTS - 1; ++i)
    changes (&f, CHANGE (-1, .secret = &other, .new_secret = &third), 0, "");
  changes (&f, CHANGE (-1, .secret = &other, .new_secret = &password), -ENOSPC, "all 8 key slots");
  changes (&f, CHANGE (-1, .erase = true, .old_secret = &third), 0, "");
  assert_false (opens (&f, &third));
  assert_true (opens (&f, &other));

  /* A header that would have us write somewhere else. */
  h->slot[0].material_sector = put32 (0);
  changes (&f, CHANGE (0, .secret = &other, .new_secret = &third), -EINVAL, "no room");
  h->slot[0].material_sector = h->slot[1].material_sector;
  changes (&f, CHANGE (0, .secret = &other, .new_secret = &third), -EINVAL, "no room");
  h->slot[0].material_sector = put32 (0xffffffff);
  changes (&f, CHANGE (0, .secret = &other, .new_secret = &third), -EINVAL, "no room");
  changes (&f, CHANGE (0, .erase = true), 0, "");
  assert_true (opens (&f, &other));
  unit_check (&f, "disk");
  changes (&f, CHANGE (1, .erase = true, .force = true), 0, "");
  assert_false (opens (&f, &other));
  unit_done (&f);
}

/* Whatever write or sync fails, or whenever the machine dies, the keys that were there open the
 * image, unless it was they that were being erased. */
static void
test_slots_crash (void **state)
{
  static const enum mem_kind kinds[] = { MEM_WRITE, MEM_SYNC };

  (void)state;
  if (!have_ciphers ())
    skip ();
  for (unsigned erase = 0; erase < 2; ++erase)
    for (size_t k = 0; k < lengthof (kinds); ++k)
      for (unsigned after = 0;; ++after) {
        struct q_key_change change = { .erase = erase,
                                       .slot = 6,
                                       .iter_time_ms = 1,
                                       .secret = &password,
                                       .new_secret = erase ? NULL : &other };
        struct q_encryption_info info;
        struct q_image *img;
        struct fixture f;
        bool done;

        unit_init (&f);
        make_default (&f);
        if (erase) {
          change.erase = false;
          change.new_secret = &other;
          changes (&f, &change, 0, "");
          change.erase = true;
          change.new_secret = NULL;
        }
        f.opts.metadata_only = true;
        img = unit_open (&f, "disk");
        f.fail_kind = kinds[k];
        f.fail_after = after;
        f.fail_with = -EIO;
        done = q_change_keys (img, &change, &f.err) == 0;
        f.fail_with = 0;
        unit_close (img);
        f.opts.metadata_only = false;
        assert_true (opens (&f, &password));
        f.opts.read_only = true;
        img = unit_open (&f, "disk");
        assert_int_equal (q_get_encryption (img, &info, &f.err), 0);
        unit_close (img);
        f.opts.read_only = false;
        assert_int_equal (opens (&f, &other), info.slot[6].active);
        if (done)
          assert_int_equal (info.slot[6].active, !erase);
        unit_check (&f, "disk");
        unit_done (&f);
        if (done)
          break;
      }
}

/* ---- data ----------------------------------------------------------------------------------- */

static void
test_ciphers (void **state)
{
  static const struct {
    const char *cipher, *mode, *ivgen, *hash;
  } kinds[] = {
    { "aes-128", "xts", "plain64", "sha256" },
    { "aes-192", "cbc", "plain64", "sha1" },
    { "aes-256", "xts", "plain64", "sha512" },
    { "aes-256", "cbc", "essiv", "sha256" },
    { "aes-128", "cbc", "essiv", "sha224" },
    { "aes-256", "cbc", "plain", "md5" },
    { "aes-256", "ecb", "plain64", "sha256" },
    { "aes-256", "ctr", "plain64", "sha384" },
    { "serpent-128", "xts", "plain64", "sha256" },
    { "serpent-192", "cbc", "plain64", "ripemd160" },
    { "serpent-256", "xts", "essiv", "sha256" },
    { "twofish-128", "cbc", "plain", "sha256" },
    { "twofish-256", "xts", "plain64", "sha256" },
    { "cast5-128", "cbc", "plain64", "sha256" },
    { "camellia-256", "xts", "plain64", "sha256" },
  };
  static const char text[] = "this must not be seen in the file, not even once, in the clear";

  (void)state;
  if (!have_ciphers ())
    skip ();
  for (size_t i = 0; i < lengthof (kinds); ++i) {
    struct fixture f;
    struct mem_file *m;
    struct q_image *img;
    char buf[sizeof text];

    unit_init (&f);
    m = make (&f, kinds[i].cipher, kinds[i].mode, kinds[i].ivgen, kinds[i].hash);
    img = unit_open (&f, "disk");
    unit_writes (img, 0, 3 * K, 9);
    assert_int_equal (q_pwrite (img, text, K + 1000, sizeof text), 0);
    assert_int_equal (q_pwrite (img, text, 9 * K - 20, sizeof text), 0);
    unit_close (img);
    assert_false (shows (m, text, 32));
    img = unit_open (&f, "disk");
    assert_int_equal (q_pread (img, buf, K + 1000, sizeof text), 0);
    assert_memory_equal (buf, text, sizeof text);
    assert_int_equal (q_pread (img, buf, 9 * K - 20, sizeof text), 0);
    assert_memory_equal (buf, text, sizeof text);
    unit_reads (img, 0, K + 1000, 9);
    unit_reads (img, K + 1000 + sizeof text, 2 * K - 1000 - sizeof text, 9);
    unit_reads (img, 3 * K, 6 * K - 20 - 3 * K, 0);
    unit_reads (img, 9 * K - 20 + sizeof text, 4 * K, 0);
    unit_close (img);
    unit_check (&f, "disk");
    unit_done (&f);
  }
}

/* Zeros, discards and reuse of clusters: what was not written reads as zeros, whatever is below. */
static void
test_zeros (void **state)
{
  struct q_image *img;
  struct fixture f;

  (void)state;
  if (!have_ciphers ())
    skip ();
  unit_init (&f);
  make_default (&f);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, 8 * K, 5);
  assert_int_equal (q_zero (img, 100, 3 * K, 0), 0);
  assert_int_equal (q_zero (img, 4 * K, K, Q_ZERO_PROVISION), 0);
  assert_int_equal (q_discard (img, 5 * K, K), 0);
  unit_reads (img, 0, 100, 5);
  unit_reads (img, 100, 3 * K, 0);
  unit_reads (img, 3 * K + 100, K - 100, 5);
  unit_reads (img, 4 * K, 2 * K, 0);
  unit_writes (img, 4 * K + 7, 1, 6);
  unit_reads (img, 4 * K, 7, 0);
  unit_reads (img, 4 * K + 7, 1, 6);
  unit_reads (img, 4 * K + 8, 2 * K - 8, 0);
  unit_writes (img, 5 * K + 512, 512, 6);
  unit_reads (img, 5 * K, 512, 0);
  unit_reads (img, 5 * K + 1024, K - 1024, 0);
  assert_int_equal (q_resize (img, SIZE + 3 * K, &f.err), 0);
  unit_reads (img, SIZE, 3 * K, 0);
  unit_writes (img, SIZE + K, 3, 1);
  unit_reads (img, SIZE + K + 3, K, 0);
  unit_close (img);
  unit_check (&f, "disk");
  unit_done (&f);
}

/* A loop neither encrypts nor finds a way around it. */
static void
test_fast_paths (void **state)
{
  struct q_write_plan plan;
  struct q_extent e;
  struct q_image *img;
  struct fixture f;
  q_pin_t pin;

  (void)state;
  if (!have_ciphers ())
    skip ();
  unit_init (&f);
  make_default (&f);
  img = unit_open (&f, "disk");
  unit_writes (img, 0, K, 5);
  pin = q_pin ();
  assert_int_equal (q_write_begin (img, 0, 512, Q_NOWAIT, &plan), -EAGAIN);
  assert_int_equal (q_map (img, 0, K, &e, 1, Q_NOWAIT), 1);
  assert_int_equal (e.kind, Q_DATA);
  assert_int_equal (q_file_fd (e.file), -1);
  assert_int_equal (q_file_ring_align (e.file), 0);
  assert_null (q_file_window (e.file, e.host, 512));
  assert_int_equal (q_file_zero (e.file, e.host, 512, true), -ENOTSUP);
  q_unpin (pin);
  unit_close (img);
  unit_done (&f);
}

struct writer {
  pthread_t thread;
  struct q_image *img;
  uint64_t offset, step;
};

/* Every STEPth byte of two sectors, again and again: nobody else writes it, and nobody may undo it.
 */
static void *
write_bytes (void *opaque)
{
  struct writer *w = opaque;

  for (unsigned round = 1; round <= 20; ++round)
    for (uint64_t at = w->offset; at < 1024; at += w->step) {
      uint8_t byte = (uint8_t)(round + at), back = 0;

      if (q_pwrite (w->img, &byte, at, 1) < 0 || q_pread (w->img, &back, at, 1) < 0 || back != byte)
        return w;
    }
  return NULL;
}

static void
test_partial_sectors (void **state)
{
  static const char *const modes[] = { "xts", "cbc" };

  (void)state;
  if (!have_ciphers ())
    skip ();
  for (size_t i = 0; i < lengthof (modes); ++i) {
    struct writer w[4];
    struct q_image *img;
    struct fixture f;
    void *bad;

    unit_init (&f);
    make (&f, "aes-128", modes[i], "plain64", "sha256");
    img = unit_open (&f, "disk");
    for (unsigned k = 0; k < lengthof (w); ++k) {
      w[k] = (struct writer){ .img = img, .offset = k, .step = lengthof (w) };
      assert_int_equal (pthread_create (&w[k].thread, NULL, write_bytes, &w[k]), 0);
    }
    for (unsigned k = 0; k < lengthof (w); ++k) {
      pthread_join (w[k].thread, &bad);
      assert_null (bad);
    }
    for (uint64_t at = 0; at < 1024; ++at)
      unit_reads (img, at, 1, (uint8_t)(20 + at));
    unit_reads (img, 1024, K, 0);
    unit_close (img);
    unit_done (&f);
  }
}

/* The legacy method is made here, since nobody makes it any more: sectors of AES-128 in CBC mode,
 * vectors from the guest's sectors. */
static void
test_legacy (void **state)
{
  static const struct q_cipher_spec spec = { "aes", "cbc-plain64", 16 };
  static const uint8_t key[Q_MAX_KEY] = "correct horse";
  struct q_cipher *c;
  struct q_image *img;
  struct fixture f;
  struct mem_file *m;
  uint8_t sector[Q_SECTOR];
  uint64_t host;

  (void)state;
  if (!have_ciphers ())
    skip ();
  unit_init (&f);
  m = unit_create (&f, "disk", SIZE, NULL);
  host = unit_set_data (m, 5, 0);
  unit_header (m)->crypt_method = put32 (Q_CRYPT_AES);
  assert_int_equal (q_cipher_new (&c, &spec, key, "", NULL), 0);
  for (uint64_t i = 0; i < K / Q_SECTOR; ++i) {
    memset (sector, (int)i, sizeof sector);
    assert_int_equal (q_cipher_encrypt (c, (5 * K) / Q_SECTOR + i, m->data + host + i * Q_SECTOR,
                                        sector, sizeof sector),
                      0);
  }
  q_cipher_free (c);

  f.opts.secret = &password;
  fails (&f, -ENOTSUP, "not supported for writing");
  f.opts.read_only = true;
  img = unit_open (&f, "disk");
  assert_int_equal (unit_logged (Q_LOG_WARNING), 1);
  assert_contains (unit_last_log (), "legacy AES");
  for (uint64_t i = 0; i < K / Q_SECTOR; ++i)
    unit_reads (img, 5 * K + i * Q_SECTOR, Q_SECTOR, (uint8_t)i);
  unit_reads (img, 5 * K + 3 * Q_SECTOR + 17, 20, 3);
  unit_reads (img, 0, 5 * K, 0);
  unit_close (img);
  unit_done (&f);
}

int
main (void)
{
  static const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_fields),     cmocka_unit_test (test_extension),
    cmocka_unit_test (test_splitter),   cmocka_unit_test (test_keys),
    cmocka_unit_test (test_slots),      cmocka_unit_test (test_slots_crash),
    cmocka_unit_test (test_ciphers),    cmocka_unit_test (test_zeros),
    cmocka_unit_test (test_fast_paths), cmocka_unit_test (test_partial_sectors),
    cmocka_unit_test (test_legacy),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
