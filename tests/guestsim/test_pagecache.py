"""Where page cache lies: against a plain queue of pages, and one pageblock a window."""

from collections import deque

import numpy as np
import pytest
from guests import GUESTS
from hypothesis import given, settings
from hypothesis import strategies as st

from guestsim.behaviour import G_FIRST, G_HEAD, G_RING, G_RING_AT, G_TAIL, NR_G_FIELDS
from guestsim.guest import MM_CACHE, boot_memory
from guestsim.pagecache import cache_run, drop_cache, reclaim_cache
from hostsim.core.units import HPAGE_PMD_NR
from hostsim.mm.check import check_memory
from hostsim.mm.check_extents import unfolded
from hostsim.mm.fault import touch_range
from hostsim.mm.mm_types import MM_ANON, MM_WINDOWS, P_EXT_USED, P_TOUCHED
from hostsim.mm.mmap import ADVICE_NONE, mm_alloc
from hostsim.mm.rmap import EXT_DESCENDING, KIND_MASK

PAGES = 1 << 16  # 256 MiB
LIMIT = 3000  # pages of cache at a time
RING = LIMIT + HPAGE_PMD_NR


class Cache:
    """A guest's page cache, and beside it the pages that a plain queue says it has."""

    def __init__(self):
        self.mem = boot_memory(GUESTS._replace(boot_pages=4096), PAGES, 2)
        self.guests = np.zeros((1, NR_G_FIELDS), np.int64)
        booted = int(self.mem.mm[MM_CACHE, MM_ANON])
        self.guests[0, [G_HEAD, G_FIRST, G_RING]] = booted, booted + HPAGE_PMD_NR, RING
        self.queue = deque(range(booted))

    def read(self, nr):
        while nr > 0:
            page, here = map(int, cache_run(self.mem, self.guests, 0, self.guests[0, G_HEAD], nr))
            assert not set(self.queue) & set(range(page, page + here))
            touch_range(self.mem, MM_CACHE, page, here, 1, 1.0, 0, True, page)
            self.queue.extend(range(page, page + here))
            self.guests[0, G_HEAD] += here
            nr -= here
        self.mem.pool[P_TOUCHED] = 0

    def drop(self, nr):
        drop_cache(self.mem, self.guests, 0, self.guests[0, G_TAIL], nr)
        self.guests[0, G_TAIL] += nr
        for _ in range(nr):
            self.queue.popleft()

    def extents(self):
        mem = unfolded(self.mem)
        ext = mem.ext[: mem.pool[P_EXT_USED]]
        mine = (ext["nr"] > 0) & (ext["owner"] == MM_CACHE) & (ext["flags"] & KIND_MASK == 0)
        return ext[mine]

    def pages(self):
        return sorted(
            page for e in self.extents() for page in range(e["vpn"], int(e["vpn"]) + int(e["nr"]))
        )


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(1, 2500)), max_size=12))
@settings(max_examples=40, deadline=None)
def test_the_cache_has_the_pages_of_a_plain_queue(steps):
    cache = Cache()
    for reads, nr in steps:
        held = len(cache.queue)
        if reads:
            cache.read(min(nr, max(LIMIT - held, 0)))
        else:
            cache.drop(min(nr, held))
        assert cache.pages() == sorted(cache.queue)
        assert cache.guests[0, G_HEAD] - cache.guests[0, G_TAIL] == len(cache.queue)
    check_memory(cache.mem)


def test_reclaim_takes_a_sixteenth_but_at_least_2048_pages_of_what_there_is():
    cache = Cache()
    held = len(cache.queue)
    assert held > 2048
    assert reclaim_cache(cache.mem, cache.guests, 0, 1) == 2048
    assert reclaim_cache(cache.mem, cache.guests, 0, 1) == held - 2048
    assert reclaim_cache(cache.mem, cache.guests, 0, 1) == 0


@pytest.mark.parametrize("pages_before", [0, 100, 333])
def test_a_window_of_the_ring_lies_in_one_pageblock(pages_before):
    cache = Cache()
    other = mm_alloc(cache.mem, 0, 512, ADVICE_NONE, False, 0)
    touch_range(cache.mem, other, 0, pages_before, 1, 1.0, 0, True, 0)
    cache.guests[0, G_RING] = PAGES // 2
    cache.read(HPAGE_PMD_NR + 20 * HPAGE_PMD_NR)
    ring = int(cache.guests[0, G_RING_AT])
    assert 0 <= ring - cache.guests[0, G_FIRST] < HPAGE_PMD_NR
    inside = [e for e in cache.extents() if e["vpn"] >= ring]
    rising = [e for e in inside if not e["flags"] & EXT_DESCENDING]
    together = [e for e in rising if (int(e["vpn"]) - int(e["pfn"])) % HPAGE_PMD_NR == 0]
    # 512 of 10,240 pages may have been on the lists of the CPUs
    assert sum(int(e["nr"]) for e in together) >= 19 * HPAGE_PMD_NR
    assert len(together) <= 21


def test_the_ring_fits_the_process():
    cache = Cache()
    windows = int(cache.mem.mm[MM_CACHE, MM_WINDOWS])
    booted = int(cache.guests[0, G_HEAD])
    assert windows * HPAGE_PMD_NR >= booted + 2 * HPAGE_PMD_NR + PAGES + HPAGE_PMD_NR
