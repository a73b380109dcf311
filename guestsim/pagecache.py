"""A guest's page cache: one stream of pages that are read, the oldest dropped first.

A page of the stream lies at a page of the process `MM_CACHE`: what boot has read and a window's
worth behind it at its own number, everything later in a ring.  The ring begins at the page where a
window and a pageblock begin together, as memory comes at that moment: most windows of the cache
then lie in one pageblock each, and take one extent instead of two.

Source: the place of Linux mm/filemap.c.
Simplified: page cache is one stream, without files; what is dropped is what was read first.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from guestsim.behaviour import G_FIRST, G_HEAD, G_RING, G_RING_AT, G_TAIL
from guestsim.guest import MM_CACHE
from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.mm_types import NIL, Memory
from hostsim.mm.rmap import extents_in, frame_at
from hostsim.mm.zap import discard_range

DROP_PAGES: Final = 2048  # at least, when memory runs short


@kernel
def _place_ring(mem: Memory, guests: NDArray[np.int64], row: int) -> None:
    """Let the ring begin where memory goes on behind the last page before it."""
    first = guests[row, G_FIRST]
    page = first - 1
    behind = first  # of the page's frame
    x = extents_in(mem, MM_CACHE, page >> HPAGE_PMD_ORDER)
    while x != NIL:
        if 0 <= page - int(mem.ext[x].vpn) < int(mem.ext[x].nr):
            behind = frame_at(mem, x, page) + 1
        x = int(mem.ext[x].next)
    guests[row, G_RING_AT] = first + (behind - first) % HPAGE_PMD_NR


@kernel
def cache_run(
    mem: Memory, guests: NDArray[np.int64], row: int, number: int, nr: int
) -> tuple[int, int]:
    """Return where pages ``number .. number + nr - 1`` of the stream begin, and how many follow."""
    before = guests[row, G_FIRST] - number
    if before > 0:
        return number, min(nr, before)
    if guests[row, G_RING_AT] == 0:
        _place_ring(mem, guests, row)
    ring = guests[row, G_RING]
    at = -before % ring
    return guests[row, G_RING_AT] + at, min(nr, ring - at)


@kernel
def drop_cache(mem: Memory, guests: NDArray[np.int64], row: int, number: int, nr: int) -> None:
    """Drop pages ``number .. number + nr - 1`` of the stream."""
    while nr > 0:
        page, here = cache_run(mem, guests, row, number, nr)
        discard_range(mem, MM_CACHE, page, here)
        number += here
        nr -= here


@kernel
def reclaim_cache(mem: Memory, guests: NDArray[np.int64], row: int, pages: int) -> int:
    """Drop the oldest pages, at least a sixteenth of all and as many as given; return how many."""
    tail = guests[row, G_TAIL]
    cache = guests[row, G_HEAD] - tail
    if cache == 0:
        return 0
    nr = min(max(cache >> 4, DROP_PAGES, pages), cache)
    drop_cache(mem, guests, row, tail, nr)
    guests[row, G_TAIL] = tail + nr
    return nr
