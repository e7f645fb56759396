#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Clusters that other engines used twice, each by the name under which that was known.

    engine.py [NAME...]

The attacks are tests of tests/crash/bugs.c, by name: a test stops threads and storage at the worst
moment.  BUGS is that program.
"""

import os

from harness import Sin, Table, run

T = Table("Clusters used twice")
BUGS = os.environ["BUGS"]


def bugs(*names):
    r = run("bugs", [BUGS, *names], seconds=300, mib=1024)
    if r.status == 77:
        return "skipped: " + r.err.strip()
    if r.status:
        raise Sin(str(r))
    return None


for sin in (
    (
        "cloud-hypervisor 8597",
        "each flush gave a reference count block another place, and lost the old one: the file grew without end",
        "counts are written where they are; flushes do not make the file longer",
        "flushes-strand-refcount-blocks",
    ),
    (
        "cloud-hypervisor 8621",
        "several queues over a backing file: one wrote what the other was just copying",
        "whoever changes a cluster's mapping holds the claim on it; the second one waits, and writes in place",
        "several-queues-over-backing-file",
    ),
    (
        "cloud-hypervisor 8624",
        "a discarded cluster was punched out after somebody else had got it: a table was lost",
        "a freed cluster is punched before it can be given to anybody",
        "late-punch-into-reused-cluster",
    ),
    (
        "cloud-hypervisor 8637",
        "a table was freed before there was room for the one in its place: a full disk left it freed and in use",
        "all that can fail comes first; nothing is freed before what freed it is durable",
        "failed-l2-relocation",
        "failed-write-frees-nothing-live",
    ),
    (
        "cloud-hypervisor 8748",
        "a table was referred to before it was counted, and a write that failed in between left it so",
        "counts before references, also when what follows fails",
        "l2-table-counted-before-published",
        "failed-write-frees-nothing-live",
        "full-disk-can-be-flushed",
    ),
    (
        "crosvm",
        "clusters were free for use before the table that no longer had them was on the disk",
        "a freed cluster waits in limbo until that is durable, and every reader has gone",
        "freed-before-l2-update-is-durable",
        "published-during-a-flush",
    ),
    (
        "QEMU, discard beside an allocating write",
        "a discard freed a cluster that a write was about to use",
        "both hold the claim on the guest's cluster: one waits for the other",
        "discard-during-allocating-write",
        "discard-during-overwrite",
        "zeroes-beside-write-in-flight",
    ),
):
    T.sin(*sin[:3])(lambda names=sin[3:]: bugs(*names))

if __name__ == "__main__":
    T.main()
