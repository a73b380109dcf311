"""Page allocation for whoever may wait: the fast path, then daemons, compaction and reclaim.

Source: Linux v6.1 and v6.12 mm/page_alloc.c __alloc_pages, __alloc_pages_slowpath,
should_reclaim_retry; v2.6.38 __alloc_pages_direct_compact;
include/linux/gfp_types.h; mm/huge_memory.c vma_thp_gfp_mask.
"""

from typing import Final

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.units import COSTLY_ORDER, HPAGE_PMD_ORDER, NO_PFN, PAGEBLOCK_ORDER
from hostsim.mm.compact_control import (
    COMPACT_ASYNC,
    COMPACT_DEFERRED,
    COMPACT_SKIPPED,
    COMPACT_SYNC_LIGHT,
)
from hostsim.mm.compact_defer import compaction_defer_reset, compaction_deferred, defer_compaction
from hostsim.mm.compaction import begin, compact_zone, try_to_compact_pages
from hostsim.mm.lru import ACTIVE_ANON, ACTIVE_FILE, INACTIVE_ANON, INACTIVE_FILE, lru_size
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MM_ADVICE,
    P_BOOSTED,
    P_CAPTURED,
    P_COST_NS,
    P_NODE,
    P_NODEMASK,
    P_STALL_NS,
    P_SWAP_FREE,
    P_TRACED,
    Z_COMPACT_CONSIDERED,
    Z_COMPACT_DEFER_SHIFT,
    Z_FREE,
    Z_MANAGED,
    Z_RESERVE,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
    ZONE_DMA32,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.mmap import ADVICE_HUGE
from hostsim.mm.numa import next_zone
from hostsim.mm.page_alloc import (
    ALL_NODES,
    MARK_LOW,
    MARK_MIN,
    get_page_from_freelist,
    take_listed,
)
from hostsim.mm.pb_packed import set_pb_b
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.physmem import PB_HUGE, set_state, zone_of, zone_to_nid
from hostsim.mm.reclaim import (
    MAX_RECLAIM_RETRIES,
    try_to_free_pages,
    wake_all_kswapds,
    wake_boosted,
)
from hostsim.mm.touched import note_touched
from hostsim.mm.tunables import COMPACTION_2_6_38, DEFRAG, T_COMPACTION, T_DEFRAG, T_NOFRAGMENT
from hostsim.mm.vmstat import COMPACT_FAIL, COMPACT_STALL
from hostsim.mm.vmstat import COMPACT_SUCCESS as COMPACTSUCCESS
from hostsim.mm.watermark import zone_watermark_ok

GFP_DIRECT: Final = 1  # __GFP_DIRECT_RECLAIM: may compact and reclaim itself
GFP_KSWAPD: Final = 2  # __GFP_KSWAPD_RECLAIM: wakes kswapd
GFP_NORETRY: Final = 4  # __GFP_NORETRY
GFP_THISNODE: Final = 8  # __GFP_THISNODE; of the huge page's first attempt: no reclaim
GFP_KERNEL: Final = GFP_DIRECT | GFP_KSWAPD

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


@inline_kernel
def alloc_flags_nofragment(mem: Memory) -> bool:
    """Tell whether a request first keeps types apart: above a DMA32 zone of its node there is room.

    Source: Linux v6.1 mm/page_alloc.c alloc_flags_nofragment.
    """
    return (
        mem.tunables[T_NOFRAGMENT] != 0
        and mem.pool[P_NODE] == 0
        and mem.zone[ZONE_NORMAL, Z_MANAGED] > 0
        and mem.zone[ZONE_DMA32, Z_MANAGED] > 0
    )


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
    nodes = mem.pool[P_NODEMASK] if mem.pool[P_NODEMASK] != 0 else ALL_NODES
    own = 1 << mem.pool[P_NODE]
    if gfp & GFP_THISNODE:
        nodes = own
    for attempt in range(0 if alloc_flags_nofragment(mem) else 1, 2):
        # Locality is more important than keeping types apart: only the node's own zones do that.
        pfn, taken, step = get_page_from_freelist(
            mem, order, migratetype, nr, MARK_LOW, attempt == 0, own if attempt == 0 else nodes
        )
        if pfn != NO_PFN:
            if mem.pool[P_BOOSTED] != 0 and gfp & GFP_KSWAPD:
                mem.pool[P_BOOSTED] = 0
                wake_boosted(mem)
            return pfn, taken, step
    return _slowpath(mem, order, migratetype, nr, gfp, nodes)


@kernel
def alloc_pages(mem: Memory, order: int, migratetype: int, nr: int) -> tuple[int, int, int]:
    """Allocate with GFP_KERNEL (or GFP_HIGHUSER_MOVABLE); see `alloc_pages_gfp`."""
    if order == 0:
        pfn, taken, step = take_listed(mem, migratetype, nr)
        if pfn != NO_PFN:
            return pfn, taken, step
    return alloc_pages_gfp(mem, order, migratetype, nr, GFP_KERNEL)


@kernel
def _direct_compact_2_6_38(
    mem: Memory, order: int, migratetype: int, nr: int, mode: int, nodes: int
) -> tuple[int, int, int, int]:
    """Do what `_direct_compact` does; the first zone's failures put all off, a skip is a stall."""
    preferred = ZONE_NORMAL + mem.pool[P_NODE]
    while mem.zone[preferred, Z_MANAGED] == 0:
        preferred = next_zone(mem, preferred)
    if compaction_deferred(mem, preferred, order):
        return NO_PFN, 0, 0, COMPACT_DEFERRED
    mem.vmstat[COMPACT_STALL] += 1
    started = mem.pool[P_COST_NS]
    result = COMPACT_SKIPPED
    follows = preferred
    for _ in range(len(mem.zone)):
        zone = follows
        follows = next_zone(mem, zone)
        if mem.zone[zone, Z_MANAGED] == 0:
            continue
        begin(mem, order, migratetype, mode)
        result = max(result, compact_zone(mem, zone, 0))
        if zone_watermark_ok(mem, zone, order, mem.zone[zone, Z_WMARK_LOW]):
            break
    mem.pool[P_STALL_NS] += mem.pool[P_COST_NS] - started
    if result == COMPACT_SKIPPED:
        return NO_PFN, 0, 0, result
    for zone in range(len(mem.zone)):
        drain_zone_pages(mem, zone)
    pfn, taken, step = get_page_from_freelist(mem, order, migratetype, nr, MARK_MIN, False, nodes)
    if pfn == NO_PFN:
        mem.vmstat[COMPACT_FAIL] += 1
        defer_compaction(mem, preferred, order)
        return NO_PFN, 0, 0, result
    mem.zone[preferred, Z_COMPACT_CONSIDERED] = 0
    mem.zone[preferred, Z_COMPACT_DEFER_SHIFT] = 0
    mem.vmstat[COMPACTSUCCESS] += 1
    return pfn, taken, step, result


@kernel
def _direct_compact(
    mem: Memory, order: int, migratetype: int, nr: int, mode: int, nodes: int
) -> tuple[int, int, int, int]:
    """Compact for an allocation and try it (__alloc_pages_direct_compact).

    Returns
    -------
    pfn, taken, step, result
        As `alloc_pages_gfp`, and the COMPACT_* result.
    """
    if mem.tunables[T_COMPACTION] == COMPACTION_2_6_38:
        return _direct_compact_2_6_38(mem, order, migratetype, nr, mode, nodes)
    result = try_to_compact_pages(mem, order, migratetype, mode, nodes)
    if result == COMPACT_SKIPPED:
        return NO_PFN, 0, 0, result
    mem.vmstat[COMPACT_STALL] += 1
    if mem.pool[P_CAPTURED] != 0:
        pfn = (mem.pool[P_CAPTURED] - 1) << PAGEBLOCK_ORDER
        taken = 1
        step = 1 << order
        mem.pool[P_CAPTURED] = 0
        if mem.pool[P_TRACED] != 0:
            note_touched(mem, pfn, 1, step, order)
    else:
        pfn, taken, step = get_page_from_freelist(
            mem, order, migratetype, nr, MARK_MIN, False, nodes
        )
    if pfn == NO_PFN:
        mem.vmstat[COMPACT_FAIL] += 1
        return NO_PFN, 0, 0, result
    compaction_defer_reset(mem, zone_of(mem, pfn), order, True)
    mem.vmstat[COMPACTSUCCESS] += 1
    return pfn, taken, step, result


@kernel
def _should_reclaim_retry(mem: Memory, nodes: int) -> bool:
    """Tell whether some zone would be above its min watermark with all that may be reclaimed.

    Simplified: the pages of a node that may be reclaimed count for each of its zones.
    """
    for zone in range(len(mem.zone)):
        nid = zone_to_nid(zone)
        if mem.zone[zone, Z_MANAGED] > 0 and nodes >> nid & 1:
            reclaimable = lru_size(mem, nid, INACTIVE_FILE) + lru_size(mem, nid, ACTIVE_FILE)
            if mem.pool[P_SWAP_FREE] > 0:
                reclaimable += lru_size(mem, nid, INACTIVE_ANON) + lru_size(mem, nid, ACTIVE_ANON)
            mark = mem.zone[zone, Z_WMARK_MIN] + mem.zone[zone, Z_RESERVE]
            if mem.zone[zone, Z_FREE] + reclaimable > mark:
                return True
    return False


@kernel
def _slowpath(
    mem: Memory, order: int, migratetype: int, nr: int, gfp: int, nodes: int
) -> tuple[int, int, int]:
    """Wake kswapd, go down to the min watermark, compact, reclaim, compact."""
    if gfp & GFP_KSWAPD:
        wake_all_kswapds(mem, order, gfp & GFP_DIRECT != 0, nodes)
    pfn, taken, step = get_page_from_freelist(mem, order, migratetype, nr, MARK_MIN, False, nodes)
    if pfn != NO_PFN or gfp & GFP_DIRECT == 0:
        return pfn, taken, step
    costly = order > COSTLY_ORDER
    seed = mem.tunables[T_COMPACTION] == COMPACTION_2_6_38
    if seed and gfp & GFP_THISNODE:
        return NO_PFN, 0, 0  # it has no attempt for the local node only
    if costly or (order > 0 and migratetype != MIGRATE_MOVABLE):
        pfn, taken, step, result = _direct_compact(
            mem, order, migratetype, nr, COMPACT_ASYNC, nodes
        )
        if pfn != NO_PFN:
            return pfn, taken, step
        if costly and gfp & GFP_NORETRY and not seed:
            if gfp & GFP_THISNODE or result == COMPACT_SKIPPED or result == COMPACT_DEFERRED:
                return NO_PFN, 0, 0
    mode = COMPACT_ASYNC if gfp & GFP_NORETRY and not seed else COMPACT_SYNC_LIGHT
    no_progress = 0
    while no_progress <= MAX_RECLAIM_RETRIES:
        reclaimed = try_to_free_pages(mem, order, nodes)
        pfn, taken, step = get_page_from_freelist(
            mem, order, migratetype, nr, MARK_MIN, False, nodes
        )
        if pfn == NO_PFN and reclaimed > 0:
            for zone in range(len(mem.zone)):
                drain_zone_pages(mem, zone)
            pfn, taken, step = get_page_from_freelist(
                mem, order, migratetype, nr, MARK_MIN, False, nodes
            )
        if pfn == NO_PFN and order > 0:
            pfn, taken, step, _ = _direct_compact(mem, order, migratetype, nr, mode, nodes)
        if pfn != NO_PFN or costly or gfp & GFP_NORETRY:
            return pfn, taken, step
        no_progress = no_progress + 1 if reclaimed == 0 else 0
        if not _should_reclaim_retry(mem, nodes):
            break
    return NO_PFN, 0, 0


@hot_kernel
def alloc_huge(mem: Memory, mm: int, window: int, gfp: int) -> int:
    """Allocate a huge page for a window of a process; return its pageblock or NO_PFN.

    The first attempt is for the local node and at most compacts a little; only a request that
    may wait makes a second one without these limits (alloc_pages_vma, alloc_pages_mpol).  One
    that names its nodes makes only that (hpage_collapse_alloc_page).

    Simplified: on a machine of one node khugepaged makes the first attempt, too.
    """
    named = mem.pool[P_NODEMASK] != 0
    pfn = NO_PFN
    if not named:
        local = gfp | GFP_THISNODE | GFP_NORETRY
        pfn, _, _ = alloc_pages_gfp(mem, HPAGE_PMD_ORDER, MIGRATE_MOVABLE, 1, local)
    if pfn == NO_PFN and (gfp & GFP_DIRECT or named):
        pfn, _, _ = alloc_pages_gfp(mem, HPAGE_PMD_ORDER, MIGRATE_MOVABLE, 1, gfp)
    if pfn == NO_PFN:
        return NO_PFN
    pb = pfn >> PAGEBLOCK_ORDER
    set_state(mem, pb, PB_HUGE, MIGRATE_MOVABLE)
    mem.pb[pb].a = mm
    set_pb_b(mem, pb, window)
    return pb
