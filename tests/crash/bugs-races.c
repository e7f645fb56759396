/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bugs of other engines: requests that meet.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bugs.h"

/* ---- QEMU: discard and an allocating write in flight -------------------------------------------
 *
 * The discard did not wait for the write: it freed what the write was about to replace, or the
 * write then mapped a cluster that the discard had freed: a mapped cluster with refcount 0. */

static void
discard_second (struct guest *g)
{
  guest_discard (g, 4096, 4096);
}

/* The guest's write of its second cluster is begun and held while another thread begins what has to
 * wait for that. */
static void
waits_for_write (struct run *run, struct guest *g, const char *what, void (*fn) (struct guest *g))
{
  struct guest_op *op = &run->op[run->n_ops++];
  struct q_write_plan plan;
  struct other o;
  uint8_t *buf = xalloc (2048);
  q_pin_t pin = q_pin ();

  *op = (struct guest_op){ .kind = GUEST_WRITE, .offset = 4096 + 1024, .len = 2048, .seed = 99 };
  guest_fill (op->seed, op->offset, op->len, buf);
  check (q_write_begin (run->img, op->offset, op->len, 0, &plan) == 0 && plan.len == 2048,
         "the write could not begin");
  check (plan.allocates, "the write allocates nothing: the test is wrong");
  start_other (&o, g, fn);
  give_time (&o);
  check (!atomic_load (&o.back), "%s does not wait for the allocating write in flight", what);
  check (q_write_data (&plan, buf) == 0, "writing failed");
  q_write_commit (&plan);
  q_unpin (pin);
  free (buf);
  pthread_join (o.id, NULL);
  check (!run->failure[0], "%s", run->failure);
}

void
test_discard_during_write (void)
{
  static const struct workload images[] = {
    { .name = "empty", SMALL_IMAGE },
    { .name = "overlay", .image = IMAGE_OVERLAY, SMALL_IMAGE },
    { .name = "snapshot", .image = IMAGE_SNAPSHOT, SMALL_IMAGE },
    { .name = "compressed", .image = IMAGE_COMPRESSED, SMALL_IMAGE },
  };

  for (size_t i = 0; i < sizeof images / sizeof images[0]; ++i) {
    struct guest g;
    struct run run;

    if (images[i].image >= IMAGE_FOREIGN && !images_have_qemu ())
      continue;
    for (int before = 0; before < 3; ++before) {
      open_run (&run, &images[i]);
      guest_init (&g, &run, 0, 0, run.size);
      guest_write (&g, 0, 4096); /* the L2 table is there */
      if (before > 0) {          /* what is discarded is allocated and reads as zeros */
        guest_write (&g, 4096, 4096);
        guest_zero (&g, 4096, 4096, 0);
      }
      if (before > 1)
        flush (&run);
      if (before == 0 && host_of (&run, 4096) != 0)
        guest_discard (&g, 4096, 4096);
      waits_for_write (&run, &g, "a discard", discard_second);
      /* It came after the write, then: zeros, as the guest has noted. */
      check (host_of (&run, 4096) == 0, "the discard had no effect");
      flush (&run);
      check_image (&run);
      guest_free (&g);
      end_run (&run);
    }
  }
}

/* The same with a write in place: the discard may pass it, but the cluster is nobody else's until
 * the write is done. */
static void
discard_and_reuse (struct guest *g)
{
  uint64_t old = host_of (g->run, 4096);

  guest_discard (g, 4096, 4096);
  for (int i = 0; i < 3; ++i)
    check (q_flush (g->run->img) == 0, "a flush failed");
  for (uint64_t at = 16 * 4096; at < 48 * 4096; at += 4096) {
    guest_write (g, at, 4096);
    check (host_of (g->run, at) != old, "a cluster is reused while a write to it is in flight");
  }
}

void
test_discard_during_overwrite (void)
{
  static const struct workload image = { .name = "empty", SMALL_IMAGE };
  uint8_t buf[2048];
  struct q_write_plan plan;
  struct other o;
  struct guest g;
  struct run run;
  q_pin_t pin;

  open_run (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  guest_write (&g, 0, 8192);
  flush (&run);
  pin = q_pin ();
  check (q_write_begin (run.img, 5120, sizeof buf, 0, &plan) == 0 && !plan.allocates,
         "the write is not in place");
  start_other (&o, &g, discard_and_reuse);
  check (comes_back (&o), "a write in place holds up others");
  memset (buf, 0xee, sizeof buf);
  check (q_write_data (&plan, buf) == 0, "writing failed");
  q_write_commit (&plan);
  q_unpin (pin);
  pthread_join (o.id, NULL);
  flush (&run);
  check_image (&run);
  guest_free (&g);
  end_run (&run);
}

/* ---- QEMU: the data loss of the first fix, with detect-zeroes=unmap -----------------------------
 *
 * Zeros written to one part of a cluster, turned into an unmapping of the whole of it since the
 * rest read as zeros, while a write to the rest was in flight. */

static void
zero_the_rest (struct guest *g)
{
  guest_zero (g, 4096, 1024, Q_ZERO_UNMAP);
  guest_zero (g, 4096 + 3072, 4096 - 3072, Q_ZERO_UNMAP);
}

void
test_zeroes_beside_write (void)
{
  static const struct workload image = { .name = "empty", SMALL_IMAGE };

  for (int before = 0; before < 3; ++before) {
    struct q_write_plan plan;
    struct other o;
    struct guest g;
    struct run run;
    uint8_t buf[2048], back[2048];
    q_pin_t pin;

    open_run (&run, &image);
    guest_init (&g, &run, 0, 0, run.size);
    guest_write (&g, 0, 4096);
    if (before > 0)
      guest_write (&g, 4096, 4096);
    if (before > 1)
      guest_zero (&g, 4096, 4096, 0);
    pin = q_pin ();
    check (q_write_begin (run.img, 5120, sizeof buf, 0, &plan) == 0, "the write could not begin");
    start_other (&o, &g, zero_the_rest);
    give_time (&o);
    guest_fill (77, 5120, sizeof buf, buf);
    check (q_write_data (&plan, buf) == 0, "writing failed");
    q_write_commit (&plan);
    q_unpin (pin);
    pthread_join (o.id, NULL);
    for (int i = 0; i < 2; ++i) {
      check (q_pread (run.img, back, 5120, sizeof back) == 0 && memcmp (buf, back, sizeof buf) == 0,
             "zeros written beside a write in flight have destroyed it");
      check (q_pread (run.img, back, 4096, 1024) == 0 && back[0] == 0 && back[1023] == 0,
             "the zeros are not there");
      flush (&run);
    }
    check_image (&run);
    guest_zero (&g, 4096, 4096, 0); /* so that what the guest expects is what is there */
    guest_free (&g);
    end_run (&run);
  }
}

/* ---- block status, and reads, while tables change --------------------------------------------
 *
 * Every byte of guest cluster N is N + 1 or 0.  Whoever maps and then reads, inside one pin, must
 * never see another cluster's. */

#define STATUS_CLUSTERS 60u

struct status_test {
  struct run *run;
  atomic_bool stop;
};

static void *
change_tables (void *opaque)
{
  struct status_test *t = opaque;
  uint64_t random = random_seed (bugs_seed);
  uint8_t buf[3 * 4096];

  for (int i = 0; i < 20000; ++i) {
    uint64_t at = random_below (&random, STATUS_CLUSTERS - 3), n = 1 + random_below (&random, 3);
    int r;

    switch (random_below (&random, 4)) {
    case 0:
      r = q_discard (t->run->img, at * 4096, n * 4096);
      break;
    case 1:
      r = q_zero (t->run->img, at * 4096, n * 4096, i % 2 ? Q_ZERO_UNMAP : 0);
      break;
    default:
      for (uint64_t k = 0; k < n; ++k)
        memset (buf + k * 4096, (int)(at + k + 1), 4096);
      r = q_pwrite (t->run->img, buf, at * 4096, n * 4096);
    }
    if (r == 0 && i % 5 == 0)
      r = q_flush (t->run->img);
    check (r == 0, "operation %d: %s", i, strerror (-r));
  }
  atomic_store (&t->stop, true);
  return NULL;
}

static void
check_extents (struct q_image *img, uint64_t offset, const struct q_extent *e, int n)
{
  uint8_t buf[4096];

  for (int i = 0; i < n; offset += e[i].len, ++i)
    for (uint64_t skip = 0; skip < e[i].len; skip += sizeof buf) {
      uint64_t len = e[i].len - skip < sizeof buf ? e[i].len - skip : sizeof buf;

      check (q_read_extent (&e[i], skip, len, buf) == 0, "an extent cannot be read");
      for (uint64_t k = 0; k < len; ++k) {
        uint64_t owner = (offset + skip + k) / 4096 + 1;

        check (buf[k] == 0 || buf[k] == owner, "guest cluster %llu shows what belongs to %u",
               (unsigned long long)owner - 1, buf[k] - 1u);
      }
    }
  (void)img;
}

void
test_status_while_changing (void)
{
  static const struct workload image = { .name = "empty", SMALL_IMAGE };
  struct status_test t = { 0 };
  struct q_extent e[8];
  pthread_t writers[2];
  uint64_t random = random_seed (bugs_seed + 1);
  struct run run;

  open_run (&run, &image);
  t.run = &run;
  for (int i = 0; i < 2; ++i)
    if (pthread_create (&writers[i], NULL, change_tables, &t) != 0)
      die ("cannot start a thread");
  while (!atomic_load (&t.stop)) {
    uint64_t first = random_below (&random, STATUS_CLUSTERS - 1), total = 0;
    uint64_t len = (STATUS_CLUSTERS - first) * 4096;
    unsigned flags = random_below (&random, 2) ? Q_MAP_MERGE : 0;
    q_pin_t pin = q_pin ();
    int n = q_map (run.img, first * 4096, len, e, 8, flags);

    check (n >= 1, "q_map: %s", strerror (-n));
    for (int i = 0; i < n; ++i) {
      check (e[i].len > 0 && e[i].len <= len - total, "extents of %llu bytes are too long",
             (unsigned long long)(total + e[i].len));
      total += e[i].len;
    }
    if (!(flags & Q_MAP_MERGE))
      check_extents (run.img, first * 4096, e, n);
    q_unpin (pin);
  }
  for (int i = 0; i < 2; ++i)
    pthread_join (writers[i], NULL);
  check_image (&run);
  check (workload_close (&run, NULL) == 0, "close failed");
  workload_free (&run);
}

/* ---- cloud-hypervisor 8624: a late punch into a cluster that has been reused --------------------
 */

static void
flush_twice (struct guest *g)
{
  for (int i = 0; i < 2; ++i)
    check (q_flush (g->run->img) == 0, "a flush failed");
}

void
test_late_punch (void)
{
  static const struct workload image = { .name = "empty", SMALL_IMAGE };
  struct guest g;
  struct gate gate;
  struct other o;
  struct run run;
  uint64_t freed[4];

  open_run (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  guest_write (&g, 0, 8 * 4096);
  flush (&run);
  for (uint64_t i = 0; i < 4; ++i)
    freed[i] = host_of (&run, i * 4096);
  guest_discard (&g, 0, 4 * 4096);
  gate_close (&gate, &run, MEM_ZERO);
  start_other (&o, &g, flush_twice);
  gate_await (&gate);
  /* The punch is on its way and late.  Nobody may own what it is going to hit. */
  for (uint64_t at = 16; at < 40; ++at) {
    guest_write (&g, at * 4096, 4096);
    for (int i = 0; i < 4; ++i)
      check (host_of (&run, at * 4096) != freed[i], "a cluster is reused before it is punched");
  }
  gate_open (&gate);
  pthread_join (o.id, NULL);
  guest_read (&g, 0, run.size);
  flush (&run);
  guest_free (&g);
  end_run (&run);
}

/* The same where compressed data is packed: the rest of a host cluster that is about to be punched
 * is nobody's any more. */
void
test_late_punch_of_packed (void)
{
  static const struct workload image = { .name = "empty", SMALL_IMAGE };
  struct guest g;
  struct gate gate;
  struct other o;
  struct run run;
  uint64_t first;

  open_run (&run, &image);
  guest_init (&g, &run, 0, 0, run.size);
  /* One that becomes smaller: what is punched is what the next ones would be packed into. */
  for (first = 0; first < 16; ++first) {
    guest_compress (&g, first * 4096, 4096);
    if (host_of (&run, first * 4096) == 0)
      break;
  }
  check (first < 16, "nothing can be compressed: the test is wrong");
  flush (&run);
  guest_discard (&g, first * 4096, 4096);
  gate_close (&gate, &run, MEM_ZERO);
  start_other (&o, &g, flush_twice);
  gate_await (&gate);
  for (uint64_t at = 16; at < 40; ++at)
    guest_compress (&g, at * 4096, 4096);
  gate_open (&gate);
  pthread_join (o.id, NULL);
  guest_read (&g, 0, run.size);
  flush (&run);
  check_image (&run);
  guest_free (&g);
  end_run (&run);
}

/* ---- cloud-hypervisor 8621: several queues over one image with a backing file -------------------
 */

#define QUEUES 4u

/* Behind what waits_for_write writes. */
static void
write_second (struct guest *g)
{
  guest_write (g, 4096 + 3072, 512);
}

struct queue {
  struct guest g;
  unsigned index;
};

/* Sectors of every cluster, in the same order as the others: all want to copy the same cluster. */
static void *
write_stripes (void *opaque)
{
  struct queue *q = opaque;
  uint64_t per_cluster = 4096 / 512;

  for (uint64_t sector = q->index; sector * 512 < q->g.run->size; sector += QUEUES) {
    guest_write (&q->g, sector * 512, 512);
    if (sector / per_cluster % 16 == 5 && sector % per_cluster < QUEUES)
      check (workload_flush (q->g.run) == 0, "a flush failed");
  }
  return NULL;
}

void
test_queues_over_backing (void)
{
  static const struct workload image = { .name = "overlay", .image = IMAGE_OVERLAY, SMALL_IMAGE };
  struct queue q[QUEUES];
  pthread_t id[QUEUES];
  struct run run;

  open_run (&run, &image);
  guest_init (&q[0].g, &run, 0, 0, run.size);
  guest_write (&q[0].g, 0, 4096); /* the L2 table is there */
  waits_for_write (&run, &q[0].g, "a write of the same cluster", write_second);
  guest_write (&q[0].g, 4096 + 1024,
               2048); /* the guest has noted what the other one wrote, alone */
  guest_read (&q[0].g, 4096, 4096);
  guest_free (&q[0].g);
  for (unsigned i = 0; i < QUEUES; ++i) {
    q[i].index = i;
    guest_init (&q[i].g, &run, i, 0, run.size);
    if (pthread_create (&id[i], NULL, write_stripes, &q[i]) != 0)
      die ("cannot start a thread");
  }
  for (unsigned i = 0; i < QUEUES; ++i)
    pthread_join (id[i], NULL);
  guest_read (&q[0].g, 0, run.size);
  check_image (&run);
  for (unsigned i = 0; i < QUEUES; ++i)
    guest_free (&q[i].g);
  end_run (&run);
}
