"""How a guest gives memory back: virtio-balloon.

The balloon takes single pages, in batches of 256, and only where memory is plenty; it gives
them back when the guest runs out.

Source: Linux v6.1 drivers/virtio/virtio_balloon.c (VIRTIO_BALLOON_ARRAY_PFNS_MAX,
virtio_balloon_oom_notify), mm/balloon_compaction.c (a list, the newest page first).
Simplified: pages in the balloon are small pages of a process whose tables are never backed.  The
list has no addresses, so that these may have gaps: a batch goes on where a window and the pageblock
that memory comes from begin together, and most windows then need no extents (`rmap.try_fold`).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from guestsim.behaviour import G_BALLOON, G_BALLOON_END, G_PAGES
from guestsim.gaps import gap_behind
from guestsim.guest import MM_BALLOON, free_room
from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.fault import touch_range
from hostsim.mm.mm_types import (
    MM_WINDOWS,
    NIL,
    P_TOUCHED,
    P_TRACED,
    Memory,
)
from hostsim.mm.mmap import W_TABLE, W_TAG, folded_run, is_folded, window_word
from hostsim.mm.rmap import extents_in, frame_at, near_extent
from hostsim.mm.zap import discard_range

BALLOON_PAGES: Final = 256  # VIRTIO_BALLOON_ARRAY_PFNS_MAX


@kernel
def _list_frames(mem: Memory, first: int, end: int) -> None:
    """Let ``mem.touched`` name the frames of pages of the balloon."""
    runs = 0
    for window in range(first >> HPAGE_PMD_ORDER, ((end - 1) >> HPAGE_PMD_ORDER) + 1):
        begin = window << HPAGE_PMD_ORDER
        word = window_word(mem, MM_BALLOON, window)
        if is_folded(word):
            low, high = max(begin, first), min(begin + HPAGE_PMD_NR, end)
            frame, step = folded_run(word)
            frame += (low - begin) * step
            mem.touched[runs, 0] = min(frame, frame + (high - low - 1) * step)
            mem.touched[runs, 1] = high - low
            runs += 1
            continue
        x = near_extent(mem, MM_BALLOON, max(first, begin), extents_in(mem, MM_BALLOON, window))
        while x != NIL:
            vpn = int(mem.ext[x].vpn)
            low = max(vpn, first)
            high = min(vpn + int(mem.ext[x].nr), end)
            if low < high:
                mem.touched[runs, 0] = min(frame_at(mem, x, low), frame_at(mem, x, high - 1))
                mem.touched[runs, 1] = high - low
                runs += 1
            x = int(mem.ext[x].next)
    mem.pool[P_TOUCHED] = runs


@kernel
def inflate(mem: Memory, guests: NDArray[np.int64], row: int, nr: int) -> int:
    """Let the balloon take up to a batch of pages; return how many it took.

    Their frames stand as runs in ``mem.touched``, ``mem.pool[P_TOUCHED]`` of them, for the host
    to take back.
    """
    nr = min(min(nr, BALLOON_PAGES), free_room(mem))
    if nr <= 0:
        return 0
    first = guests[row, G_BALLOON_END]
    room = (mem.mm[MM_BALLOON, MM_WINDOWS] << HPAGE_PMD_ORDER) - first
    gap = gap_behind(mem, MM_BALLOON, first) if guests[row, G_BALLOON] > 0 else 0
    if gap <= room - (guests[row, G_PAGES] - guests[row, G_BALLOON]):  # all memory still fits
        first += gap
    mem.pool[P_TRACED] = 0
    touch_range(mem, MM_BALLOON, first, nr, 1, 1.0, 0, True, first)
    mem.pool[P_TRACED] = 1
    guests[row, G_BALLOON] += nr
    guests[row, G_BALLOON_END] = first + nr
    _list_frames(mem, first, first + nr)
    return nr


@kernel
def _newest_run(mem: Memory, end: int) -> tuple[int, int]:
    """Return the last pages in a row below a page: the first, and one past the last."""
    window = (end - 1) >> HPAGE_PMD_ORDER
    while window >= 0:
        word = window_word(mem, MM_BALLOON, window)
        first = window << HPAGE_PMD_ORDER
        if is_folded(word):
            return first, first + HPAGE_PMD_NR
        last = first
        x = extents_in(mem, MM_BALLOON, window) if word & W_TAG == W_TABLE else NIL
        while x != NIL and int(mem.ext[x].vpn) < end:
            if int(mem.ext[x].vpn) != last:
                first = int(mem.ext[x].vpn)
            last = min(int(mem.ext[x].vpn) + int(mem.ext[x].nr), end)
            x = int(mem.ext[x].next)
        if first < last:
            return first, last
        window -= 1
    return 0, 0


@kernel
def deflate(mem: Memory, guests: NDArray[np.int64], row: int, nr: int) -> int:
    """Give pages of the balloon back to the guest, newest first; return how many."""
    nr = min(nr, guests[row, G_BALLOON])
    if nr <= 0:
        return nr
    end = guests[row, G_BALLOON_END]
    begin = end
    left = nr
    while left > 0 and begin > 0:
        first, last = _newest_run(mem, begin)
        begin = max(first, last - left)
        left -= last - begin
    discard_range(mem, MM_BALLOON, begin, end - begin)
    guests[row, G_BALLOON] -= nr
    guests[row, G_BALLOON_END] = begin
    return nr
