"""A guest's page cache: pages that are read, the oldest dropped first.

A page that is read lies at the next place, and place ``p`` at page ``p % G_RING`` of the process
`MM_CACHE`.  Files do not care which that is, so that places may be left out: the next page goes on
where a window and the pageblock that memory comes from begin together, as long as the ring has room
for as many pages as the cache may have.

Source: the place of Linux mm/filemap.c.
Simplified: page cache is one stream, without files; what is dropped is what was read first.  Gaps
can take a page table more.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from guestsim.behaviour import G_CACHE, G_HEAD, G_RING, G_TAIL
from guestsim.gaps import gap_behind
from guestsim.guest import MM_CACHE
from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.mm_types import MM_ANON, NIL, P_RESUME, Memory
from hostsim.mm.mmap import is_folded, window_word
from hostsim.mm.rmap import extents_in
from hostsim.mm.turn import TURN_WINDOWS
from hostsim.mm.zap import discard_range

STEP_WINDOWS: Final = 8  # at most, read before a look whether they begin with pageblocks
DROP_PAGES: Final = 2048  # at least, when memory runs short


@kernel
def _next_place(mem: Memory, guests: NDArray[np.int64], row: int) -> int:
    """Return the place of the next page: behind the newest, or where windows fill up better."""
    head, ring = guests[row, G_HEAD], guests[row, G_RING]
    cache = mem.mm[MM_CACHE, MM_ANON]
    gap = gap_behind(mem, MM_CACHE, (head - 1) % ring + 1) if cache > 0 else 0
    room = ring - (head - guests[row, G_TAIL])
    if gap > room - (guests[row, G_CACHE] - cache):  # what it grows to has to fit
        return head
    return head + gap


@kernel
def read_cache(mem: Memory, guests: NDArray[np.int64], row: int, nr: int) -> tuple[int, bool]:
    """Read the next pages into the cache: those in up to 64 windows.

    After each step it may leave a gap.  Steps get longer while windows are folded.

    Returns
    -------
    pages, enough
        How many were read, and whether memory sufficed.
    """
    nr = min(nr, (TURN_WINDOWS << HPAGE_PMD_ORDER) - guests[row, G_HEAD] % HPAGE_PMD_NR)
    ring = guests[row, G_RING]
    windows = 1
    done = 0
    while done < nr:
        place = _next_place(mem, guests, row)
        page = place % ring
        end = min(((page >> HPAGE_PMD_ORDER) + windows) << HPAGE_PMD_ORDER, ring)
        here = min(nr - done, end - page)
        enough = touch_range(mem, MM_CACHE, page, here, 1, 1.0, 0, True, page) == FAULT_OK
        if not enough:
            here = mem.pool[P_RESUME] - page
        if here > 0:
            guests[row, G_HEAD] = place + here
        done += here
        if not enough:
            return done, False
        folded = is_folded(window_word(mem, MM_CACHE, (page + here - 1) >> HPAGE_PMD_ORDER))
        windows = min(2 * windows, STEP_WINDOWS) if folded else 1
    return done, True


@kernel
def _oldest(mem: Memory, page: int, nr: int) -> tuple[int, int]:
    """Return where the first ``nr`` pages from ``page`` to its window's end end, and how many."""
    window = page >> HPAGE_PMD_ORDER
    end = (window + 1) << HPAGE_PMD_ORDER
    if is_folded(window_word(mem, MM_CACHE, window)):
        pages = min(nr, end - page)
        return page + pages, pages
    pages = 0
    x = extents_in(mem, MM_CACHE, window)
    while x != NIL:
        first = max(int(mem.ext[x].vpn), page)
        here = int(mem.ext[x].vpn) + int(mem.ext[x].nr) - first
        if here >= nr - pages:
            return first + nr - pages, nr
        pages += max(here, 0)
        x = int(mem.ext[x].next)
    return end, pages


@kernel
def drop_cache(mem: Memory, guests: NDArray[np.int64], row: int, nr: int) -> int:
    """Drop the oldest pages; return how many, all if there are fewer."""
    nr = min(nr, mem.mm[MM_CACHE, MM_ANON])
    left = nr
    while left > 0:
        page = guests[row, G_TAIL] % guests[row, G_RING]
        end, pages = _oldest(mem, page, left)
        discard_range(mem, MM_CACHE, page, end - page)
        guests[row, G_TAIL] += end - page
        left -= pages
    return nr


@kernel
def reclaim_cache(mem: Memory, guests: NDArray[np.int64], row: int, pages: int) -> int:
    """Drop the oldest pages, at least a sixteenth of all and as many as given; return how many."""
    return drop_cache(mem, guests, row, max(mem.mm[MM_CACHE, MM_ANON] >> 4, DROP_PAGES, pages))
