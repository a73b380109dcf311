"""Where page cache lies: against a plain queue of frames, and how few extents its windows take."""

from collections import deque

import numpy as np
import pytest
from guests import GUESTS
from hypothesis import given, settings
from hypothesis import strategies as st
from pagemap import page_frames

from guestsim.behaviour import G_CACHE, G_HEAD, G_RING, G_TAIL, NR_G_FIELDS
from guestsim.guest import MM_CACHE, boot_memory, ring_pages
from guestsim.pagecache import drop_cache, read_cache, reclaim_cache
from hostsim.core.units import HPAGE_PMD_NR, NO_PFN
from hostsim.mm.check import check_memory
from hostsim.mm.fault import touch_range
from hostsim.mm.mm_types import MM_ANON, MM_BASE, MM_WINDOWS, P_TOUCHED
from hostsim.mm.mmap import ADVICE_NOHUGE, folds_downward, is_folded, mm_alloc
from hostsim.mm.zap import discard_range

PAGES = 1 << 16  # 256 MiB


class Cache:
    """A guest's page cache, a process beside, and the frames that a plain queue says it has."""

    def __init__(self, limit=6000, kernel="6.12"):
        self.limit = limit
        self.mem = boot_memory(GUESTS._replace(kernel=kernel, boot_pages=4096), PAGES, 2)
        self.guests = np.zeros((1, NR_G_FIELDS), np.int64)
        self.guests[0, [G_CACHE, G_RING]] = limit, ring_pages(limit)
        self.guests[0, G_HEAD] = self.mem.mm[MM_CACHE, MM_ANON]
        self.other = mm_alloc(self.mem, 0, PAGES, ADVICE_NOHUGE, False, 0)
        self.queue = deque(self.frames())

    def read(self, nr):
        """Read by turns; there is memory."""
        nr = min(nr, self.limit - len(self.queue))
        while nr > 0:
            pages, enough = read_cache(self.mem, self.guests, 0, nr)
            assert enough
            nr -= pages
            fresh = self.frames()[len(self.queue) :]
            assert len(fresh) == pages
            named = self.mem.touched[: self.mem.pool[P_TOUCHED]].tolist()
            assert set(fresh) <= {f for first, n in named for f in range(first, first + n)}
            self.queue.extend(fresh)
            self.mem.pool[P_TOUCHED] = 0

    def drop(self, nr):
        assert drop_cache(self.mem, self.guests, 0, nr) == min(nr, len(self.queue))
        for _ in range(min(nr, len(self.queue))):
            self.queue.popleft()

    def touch(self, start, nr):
        nr = min(nr, PAGES - start, max(int(self.mem.zone[:, 3].sum()) - 8192, 0))
        touch_range(self.mem, self.other, start, nr, 1, 1.0, 0, True, start)
        self.mem.pool[P_TOUCHED] = 0

    def frames(self):
        """Return the frames of the cache, the oldest first."""
        tail, head, ring = (int(self.guests[0, column]) for column in (G_TAIL, G_HEAD, G_RING))
        frames = page_frames(self.mem, MM_CACHE)[np.arange(tail, head) % ring]
        return frames[frames != NO_PFN].tolist()

    def words(self):
        base = self.mem.mm[MM_CACHE, MM_BASE]
        words = self.mem.windows[base : base + self.mem.mm[MM_CACHE, MM_WINDOWS]]
        return words[words != 0].tolist()


STEPS = st.tuples(
    st.sampled_from(["read", "read", "read", "drop", "drop", "touch", "discard", "stripes"]),
    st.integers(0, PAGES - 1),
    st.integers(1, 3000),
)


@given(
    kernel=st.sampled_from(["6.1", "6.12"]),
    limit=st.integers(2560, 8000),
    steps=st.lists(STEPS, max_size=16),
)
@settings(max_examples=40, deadline=None)
def test_the_cache_has_the_pages_of_a_plain_queue(kernel, limit, steps):
    cache = Cache(limit, kernel)
    for step, start, nr in steps:
        if step == "read":
            cache.read(nr)
        elif step == "drop":
            cache.drop(nr)
        elif step == "touch":
            cache.touch(start, nr)
        elif step == "discard":
            discard_range(cache.mem, cache.other, start, min(nr, PAGES - start))
        else:  # of what the process has, every few pages
            for page in range(start, min(start + nr, PAGES), 40):
                discard_range(cache.mem, cache.other, page, min(20, PAGES - page))
        held = len(cache.queue)
        assert cache.frames() == list(cache.queue)
        assert cache.mem.mm[MM_CACHE, MM_ANON] == held
        head, tail, ring = (int(cache.guests[0, c]) for c in (G_HEAD, G_TAIL, G_RING))
        assert limit - held <= ring - (head - tail)
    check_memory(cache.mem)


def test_reclaim_takes_a_sixteenth_but_at_least_2048_pages_of_what_there_is():
    cache = Cache()
    held = len(cache.queue)
    assert held > 2048
    assert reclaim_cache(cache.mem, cache.guests, 0, 1) == 2048
    assert reclaim_cache(cache.mem, cache.guests, 0, 1) == held - 2048
    assert reclaim_cache(cache.mem, cache.guests, 0, 1) == 0


@pytest.mark.parametrize("pages_before", [0, 100, 333])
def test_most_windows_are_folded_wherever_memory_began_and_after_the_ring_has_turned(pages_before):
    cache = Cache(60 * HPAGE_PMD_NR)
    cache.guests[0, G_RING] = PAGES
    cache.touch(0, pages_before)
    cache.read(50 * HPAGE_PMD_NR)
    assert sum(map(is_folded, cache.words())) >= 50
    while cache.guests[0, G_TAIL] < PAGES:
        cache.drop(5000)
        cache.read(5000)
    assert sum(map(is_folded, cache.words())) >= 30
    check_memory(cache.mem)


def test_frames_that_fall_from_page_to_page_fill_windows_too():
    cache = Cache(30 * HPAGE_PMD_NR)
    cache.touch(0, 20 * HPAGE_PMD_NR + 100)
    for window in range(20):  # freed upward onto the lists of the CPUs, and taken from their ends
        discard_range(cache.mem, cache.other, window * HPAGE_PMD_NR, HPAGE_PMD_NR)
    cache.read(PAGES)
    assert any(folds_downward(word) for word in cache.words() if is_folded(word))


def test_a_gap_never_takes_the_room_of_a_page():
    cache = Cache(8 * HPAGE_PMD_NR)
    cache.guests[0, G_RING] = cache.limit  # no room for any
    cache.touch(0, 333)
    cache.read(PAGES)
    assert cache.guests[0, G_HEAD] == cache.limit


def test_windows_begin_with_pageblocks_where_the_ring_begins_anew():
    cache = Cache(8 * HPAGE_PMD_NR)
    ring = cache.guests[0, G_RING] = cache.limit  # no room for gaps yet
    cache.touch(0, 333)
    cache.read(PAGES)
    cache.drop(4 * HPAGE_PMD_NR)
    cache.limit = cache.guests[0, G_CACHE] = 5 * HPAGE_PMD_NR
    behind = cache.queue[-1] + 1  # where memory goes on, as far as one can tell
    cache.read(16)
    place = int(cache.guests[0, G_HEAD]) - 16
    assert ring < place < ring + HPAGE_PMD_NR
    assert place % HPAGE_PMD_NR == behind % HPAGE_PMD_NR


def test_the_ring_of_the_largest_cache_fits_the_process():
    cache = Cache()
    assert cache.mem.mm[MM_CACHE, MM_WINDOWS] * HPAGE_PMD_NR == ring_pages(PAGES)
