"""Gaps between addresses that mean nothing, so that windows and pageblocks begin together.

Pages of a balloon or of page cache are on a list, or in files: where they lie in the address
space of the process that stands for them is nobody's business.  A gap lets the next page go on
where its frame does, and most windows then need no extents (`rmap.try_fold`).
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.mm_types import NIL, Memory
from hostsim.mm.mmap import is_folded, window_word
from hostsim.mm.rmap import EXT_DESCENDING, extents_in, frame_at, near_extent

SHORTEST_RUN: Final = 32  # pages in a row before it is worth a gap that they go on as they began


@kernel
def gap_behind(mem: Memory, mm: int, end: int) -> int:
    """Return how many pages to leave out behind page ``end - 1``, so that pageblocks fill windows.

    It is the newest page of a process, and memory is taken to go on where its frame does.
    """
    window = (end - 1) >> HPAGE_PMD_ORDER
    if is_folded(window_word(mem, mm, window)):
        return 0
    x = near_extent(mem, mm, end - 1, extents_in(mem, mm, window))
    while x != NIL and int(mem.ext[x].vpn) + int(mem.ext[x].nr) < end:
        x = int(mem.ext[x].next)
    if x == NIL or int(mem.ext[x].vpn) >= end or int(mem.ext[x].nr) < SHORTEST_RUN:
        return 0
    frame = frame_at(mem, x, end - 1)
    # of the next page's frame in its pageblock, from the end at which that is taken first
    inside = -frame if int(mem.ext[x].flags) & EXT_DESCENDING else frame + 1
    return (inside - end) % HPAGE_PMD_NR
