#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Clients that allocate and free clusters all the time, in one place again and again, so that what is torn is torn alike.

    churn.py URI SEED SECONDS
"""

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import nbd


def churn(uri, seed, until, n):
    r = random.Random(seed + n)
    h = nbd.NBD()
    h.connect_uri(uri)
    data = [bytes([i]) * 65536 for i in range(1, 4)]
    while time.monotonic() < until:
        at = r.randrange(48) * 65536 + n * (8 << 20)
        what = r.randrange(8)
        if what < 4:
            h.pwrite(r.choice(data)[:r.choice((4096, 65536))], at)
        elif what < 6 and h.can_trim():
            h.trim(65536 * r.randrange(1, 8), at)
        elif what < 7:
            h.zero(65536, at)
        else:
            h.flush()
    h.shutdown()


def main(uri, seed, seconds):
    until = time.monotonic() + float(seconds)
    with ThreadPoolExecutor(3) as pool:
        for client in [pool.submit(churn, uri, int(seed), until, n) for n in range(3)]:
            client.result()  # one that failed fails here


main(*sys.argv[1:])
