"""Shrinkers: the deferred split queue gives up huge pages of which a part is not mapped.

Source: Linux v6.1 mm/vmscan.c do_shrink_slab (v6.12 mm/shrinker.c), mm/huge_memory.c
deferred_split_count, deferred_split_scan.
Simplified: a huge page that is mapped whole never stands on the queue: no page of it is known to
be zero, so the search for underused ones (since 6.12) would put all of them back.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.mm.mm_types import P_SPLIT_FIRST, P_SPLIT_LEFT, P_SPLIT_LEN, Memory
from hostsim.mm.split import split_huge_page

SHRINK_BATCH: Final = 128  # include/linux/shrinker.h
DEFAULT_SEEKS: Final = 2


@kernel
def deferred_split_scan(mem: Memory, nr: int) -> tuple[int, bool]:
    """Split up to ``nr`` pages from the queue's head; return how many, and whether to stop.

    What cannot be split stays.
    """
    split = 0
    pb = mem.pool[P_SPLIT_FIRST] - 1
    for _ in range(min(nr, mem.pool[P_SPLIT_LEN])):
        after = int(mem.split_queue[pb].next) - 1
        if split_huge_page(mem, pb):
            split += 1
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
