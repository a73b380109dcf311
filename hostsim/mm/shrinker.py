"""Shrinkers: the deferred split queue gives up huge pages that are partly mapped or hold zeros.

Since 6.12 every new huge page stands on the queue.  One that turns out to have more pages of
zeros than khugepaged/max_ptes_none is split, which frees those; any other leaves the queue.

Source: Linux v6.1 mm/vmscan.c do_shrink_slab (v6.12 mm/shrinker.c), mm/huge_memory.c
deferred_split_count, deferred_split_scan; v6.12 thp_underused.
Simplified: with max_ptes_none = 511, where none is underused, huge pages mapped whole are not
queued; lowering it queues those that there are, lowest first.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR
from hostsim.mm.content import nr_zero_pages
from hostsim.mm.lru import huge_on_lru
from hostsim.mm.mm_types import (
    P_PAGEBLOCKS,
    P_SPLIT_FIRST,
    P_SPLIT_LEFT,
    P_SPLIT_LEN,
    Memory,
)
from hostsim.mm.page_ext import lookup_page_ext
from hostsim.mm.pb_packed import pb_b
from hostsim.mm.physmem import PB_COMPOUND, pageblock_state
from hostsim.mm.split import (
    COMPOUND_DEFERRED,
    COMPOUND_SWAPCACHE,
    queue_huge,
    split_huge_page,
    undo_deferred,
)
from hostsim.mm.tunables import T_KHUGEPAGED_MAX_PTES_NONE
from hostsim.mm.vmstat import THP_UNDERUSED_SPLIT_PAGE

SHRINK_BATCH: Final = 128  # include/linux/shrinker.h
DEFAULT_SEEKS: Final = 2


@kernel
def thp_underused(mem: Memory, pb: int) -> bool:
    """Tell whether a huge page has more pages of zeros than khugepaged would fill in."""
    most = mem.tunables[T_KHUGEPAGED_MAX_PTES_NONE]
    return most < HPAGE_PMD_NR - 1 and nr_zero_pages(mem, pb) > most


@kernel
def queue_all_huge(mem: Memory) -> None:
    """Queue the huge pages that there are, as if they had been when they were mapped."""
    for pb in range(mem.pool[P_PAGEBLOCKS]):
        cached = pageblock_state(mem, pb) == PB_COMPOUND and pb_b(mem, pb) & COMPOUND_SWAPCACHE != 0
        if huge_on_lru(mem, pb) and not cached:
            queue_huge(mem, pb)


@kernel
def deferred_split_scan(mem: Memory, nr: int) -> tuple[int, bool]:
    """Split up to ``nr`` pages from the queue's head; return how many, and whether to stop.

    What is partly mapped and cannot be split stays.
    """
    split = 0
    pb = mem.pool[P_SPLIT_FIRST] - 1
    for _ in range(min(nr, mem.pool[P_SPLIT_LEN])):
        after = int(mem.page_ext[lookup_page_ext(mem, pb)].next) - 1
        partial = pageblock_state(mem, pb) == PB_COMPOUND and pb_b(mem, pb) & COMPOUND_DEFERRED != 0
        if (partial or thp_underused(mem, pb)) and split_huge_page(mem, pb):
            split += 1
            mem.vmstat[THP_UNDERUSED_SPLIT_PAGE] += not partial
        elif not partial:
            undo_deferred(mem, pb)
        pb = after
    return split, split == 0 and mem.pool[P_SPLIT_LEN] == 0


@kernel
def do_shrink_slab(mem: Memory, priority: int) -> int:
    """Run the shrinker of the deferred split queue for one round of reclaim.

    Returns
    -------
    int
        Huge pages split.
    """
    freeable = mem.pool[P_SPLIT_LEN]
    if freeable == 0:
        return 0
    left = mem.pool[P_SPLIT_LEFT]
    delta = (freeable >> priority) * 4 // DEFAULT_SEEKS
    total = min((left >> priority) + delta, 2 * freeable)
    freed = 0
    scanned = 0
    while total >= SHRINK_BATCH or total >= freeable:
        batch = min(SHRINK_BATCH, total)
        split, stop = deferred_split_scan(mem, batch)
        if stop:
            break
        freed += split
        scanned += batch
        total -= batch
        if batch == 0:
            break
    mem.pool[P_SPLIT_LEFT] = min(max(left + delta - scanned, 0), 2 * freeable)
    return freed
