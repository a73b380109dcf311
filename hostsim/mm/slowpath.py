"""Page allocation for whoever may wait: the fast path, then daemons, compaction and reclaim.

Source: Linux v6.1 and v6.12 mm/page_alloc.c __alloc_pages, __alloc_pages_slowpath;
include/linux/gfp_types.h; mm/huge_memory.c vma_thp_gfp_mask.
"""

from typing import Final

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.units import COSTLY_ORDER, HPAGE_PMD_ORDER, NO_PFN, PAGEBLOCK_ORDER
from hostsim.mm.compaction import (
    COMPACT_ASYNC,
    COMPACT_DEFERRED,
    COMPACT_SKIPPED,
    COMPACT_SYNC_LIGHT,
    try_to_compact_pages,
)
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MM_ADVICE,
    NR_ZONES,
    Z_MANAGED,
    ZONE_DMA32,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.mmap import ADVICE_HUGE
from hostsim.mm.page_alloc import MARK_LOW, MARK_MIN, get_page_from_freelist
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.physmem import PB_HUGE, set_state
from hostsim.mm.reclaim import try_to_free_pages, wakeup_kswapd
from hostsim.mm.tunables import DEFRAG, T_DEFRAG

GFP_DIRECT: Final = 1  # __GFP_DIRECT_RECLAIM: may compact and reclaim itself
GFP_KSWAPD: Final = 2  # __GFP_KSWAPD_RECLAIM: wakes kswapd
GFP_NORETRY: Final = 4  # __GFP_NORETRY
GFP_KERNEL: Final = GFP_DIRECT | GFP_KSWAPD
MAX_RECLAIM_RETRIES: Final = 16

DEFRAG_ALWAYS: Final = DEFRAG["always"]
DEFRAG_DEFER: Final = DEFRAG["defer"]
DEFRAG_DEFER_MADVISE: Final = DEFRAG["defer+madvise"]
DEFRAG_MADVISE: Final = DEFRAG["madvise"]


@inline_kernel
def vma_thp_gfp_mask(mem: Memory, mm: int) -> int:
    """Return what a huge-page fault of a process may do, by the setting ``defrag``."""
    advised = mem.mm[mm, MM_ADVICE] == ADVICE_HUGE
    defrag = mem.tunables[T_DEFRAG]
    if defrag == DEFRAG_ALWAYS:
        return GFP_DIRECT if advised else GFP_DIRECT | GFP_NORETRY
    if defrag == DEFRAG_DEFER:
        return GFP_KSWAPD
    if defrag == DEFRAG_DEFER_MADVISE:
        return GFP_DIRECT if advised else GFP_KSWAPD
    if defrag == DEFRAG_MADVISE:
        return GFP_DIRECT if advised else 0
    return 0


@kernel
def alloc_pages_gfp(
    mem: Memory, order: int, migratetype: int, nr: int, gfp: int
) -> tuple[int, int, int]:
    """Allocate up to ``nr`` blocks of an order that lie at equal steps.

    The first pass keeps above the low watermark and, with a populated DMA32 zone, does not mix
    migratetypes in a pageblock (ALLOC_NOFRAGMENT); the second drops that; then comes the slow
    path.

    Returns
    -------
    pfn, taken, step
        First frame of the first block, blocks, frames from one to the next; NO_PFN if none.
    """
    keep_apart = mem.zone[ZONE_NORMAL, Z_MANAGED] > 0 and mem.zone[ZONE_DMA32, Z_MANAGED] > 0
    for attempt in range(0 if keep_apart else 1, 2):
        pfn, taken, step = get_page_from_freelist(
            mem, order, migratetype, nr, MARK_LOW, attempt == 0
        )
        if pfn != NO_PFN:
            return pfn, taken, step
    return _slowpath(mem, order, migratetype, nr, gfp)


@kernel
def alloc_pages(mem: Memory, order: int, migratetype: int, nr: int) -> tuple[int, int, int]:
    """Allocate with GFP_KERNEL (or GFP_HIGHUSER_MOVABLE); see `alloc_pages_gfp`."""
    return alloc_pages_gfp(mem, order, migratetype, nr, GFP_KERNEL)


@kernel
def _slowpath(mem: Memory, order: int, migratetype: int, nr: int, gfp: int) -> tuple[int, int, int]:
    """Wake kswapd, go down to the min watermark, compact, reclaim, compact."""
    if gfp & GFP_KSWAPD:
        wakeup_kswapd(mem, order, gfp & GFP_DIRECT != 0)
    pfn, taken, step = get_page_from_freelist(mem, order, migratetype, nr, MARK_MIN, False)
    if pfn != NO_PFN or gfp & GFP_DIRECT == 0:
        return pfn, taken, step
    costly = order > COSTLY_ORDER
    if costly:
        result = try_to_compact_pages(mem, order, migratetype, COMPACT_ASYNC)
        pfn, taken, step = get_page_from_freelist(mem, order, migratetype, nr, MARK_MIN, False)
        if pfn != NO_PFN:
            return pfn, taken, step
        if gfp & GFP_NORETRY and result in (COMPACT_SKIPPED, COMPACT_DEFERRED):
            return NO_PFN, 0, 0
    mode = COMPACT_ASYNC if gfp & GFP_NORETRY else COMPACT_SYNC_LIGHT
    no_progress = 0
    while no_progress < MAX_RECLAIM_RETRIES:
        reclaimed = try_to_free_pages(mem, order)
        pfn, taken, step = get_page_from_freelist(mem, order, migratetype, nr, MARK_MIN, False)
        if pfn == NO_PFN and reclaimed > 0:
            for zone in range(NR_ZONES):
                drain_zone_pages(mem, zone)
            pfn, taken, step = get_page_from_freelist(mem, order, migratetype, nr, MARK_MIN, False)
        if pfn == NO_PFN and order > 0:
            try_to_compact_pages(mem, order, migratetype, mode)
            pfn, taken, step = get_page_from_freelist(mem, order, migratetype, nr, MARK_MIN, False)
        if pfn != NO_PFN or costly or gfp & GFP_NORETRY:
            return pfn, taken, step
        no_progress = no_progress + 1 if reclaimed == 0 else 0
    return NO_PFN, 0, 0


@hot_kernel
def alloc_huge(mem: Memory, mm: int, window: int, gfp: int) -> int:
    """Allocate a huge page for a window of a process; return its pageblock or NO_PFN."""
    pfn, _, _ = alloc_pages_gfp(mem, HPAGE_PMD_ORDER, MIGRATE_MOVABLE, 1, gfp)
    if pfn == NO_PFN:
        return NO_PFN
    pb = pfn >> PAGEBLOCK_ORDER
    set_state(mem, pb, PB_HUGE, MIGRATE_MOVABLE)
    mem.pb[pb].a = mm
    mem.pb[pb].b = window
    return pb
