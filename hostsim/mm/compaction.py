"""Compaction: moving pages together so that free blocks of a high order appear.

A run moves pages found by the migrate scanner (`compact_source`), from a zone's start upward,
to free pages found by the free scanner (`compact_target`), from its end downward.

Source: Linux v6.1.187 and v6.12.117 mm/compaction.c compact_zone, __compact_finished,
compaction_suitable, __reset_isolation_suitable, defer_compaction, try_to_compact_pages,
compact_nodes; mm/page_alloc.c compaction_capture.
Simplified: no lock is contended and nobody needs the CPU, so that no run is cut short.
Simplified: only whole pageblocks are captured, not blocks of smaller orders.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import (
    COSTLY_ORDER,
    MAX_PAGE_ORDER,
    NR_PAGE_ORDERS,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.compact_control import (
    CC_DIRECT,
    CC_FAST_START,
    CC_FINISH,
    CC_FREE_PFN,
    CC_FREE_SCANNED,
    CC_IGNORE_SKIP,
    CC_MIGRATE_PFN,
    CC_MIGRATE_SCANNED,
    CC_MODE,
    CC_NR_FREE,
    CC_NR_MIGRATE,
    CC_ORDER,
    CC_PROACTIVE,
    CC_RESUME,
    CC_SEARCH_ORDER,
    CC_TYPE,
    CC_UNTIL,
    CC_WHOLE_ZONE,
    CC_ZONE,
    COMPACT_ASYNC,
    COMPACT_COMPLETE,
    COMPACT_CONTENDED,
    COMPACT_CONTINUE,
    COMPACT_DEFERRED,
    COMPACT_PARTIAL_SKIPPED,
    COMPACT_SKIPPED,
    COMPACT_SUCCESS,
    COMPACT_SYNC,
    WHOLE_ZONE,
    clear_pageblock_skip,
    compact_scanners_met,
    fragmentation_index_zone,
    get_pageblock_skip,
    pageblock_start_pfn,
)
from hostsim.mm.compact_source import isolate_migratepages, map_extents
from hostsim.mm.compact_target import release_freepages
from hostsim.mm.compaction_2_6_38 import compact_finished, start_scanners
from hostsim.mm.compaction_2_6_38 import isolate_migratepages as isolate_migratepages_2_6_38
from hostsim.mm.cost import C_SCAN_PAGE, charge
from hostsim.mm.migrate import migrate_pages
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    NIL,
    NR_PCP_TYPES,
    NR_ZONES,
    P_CAPTURE,
    P_CAPTURED,
    P_COST_NS,
    P_STALL_NS,
    Z_BLOCKSKIP_FLUSH,
    Z_CACHED_FREE,
    Z_CACHED_MIGRATE,
    Z_COMPACT_CONSIDERED,
    Z_COMPACT_DEFER_SHIFT,
    Z_COMPACT_ORDER_FAILED,
    Z_END,
    Z_FREE,
    Z_INIT_FREE,
    Z_INIT_MIGRATE,
    Z_MANAGED,
    Z_RESERVE,
    Z_START,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
    ZONE_DMA,
    Memory,
)
from hostsim.mm.pageblock import can_claim, find_suitable_fallback
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.physmem import (
    PB_COMPOUND,
    PB_FREE9,
    PB_FREE10,
    PB_FULL,
    PB_HUGE,
    PB_PARTIAL,
    PB_VIRGIN,
    get_pageblock_migratetype,
    is_free_block,
    pageblock_state,
)
from hostsim.mm.rmap import KIND_MASK, extents_of, is_movable
from hostsim.mm.tunables import (
    COMPACTION_2_6_38,
    COMPACTION_6_12,
    T_COMPACTION,
    T_COMPACTION_PROACTIVENESS,
    T_EXTFRAG_THRESHOLD,
)
from hostsim.mm.vmstat import (
    COMPACT_BLOCKS_MOVED,
    COMPACT_FREE_SCANNED,
    COMPACT_MIGRATE_SCANNED,
    COMPACT_PAGEMIGRATE_FAILED,
    COMPACT_PAGES_MOVED,
)

COMPACT_MAX_DEFER_SHIFT: Final = 6
PROACTIVE_LOW_LEAST: Final = 5
PROACTIVE_LEEWAY: Final = 10
SAMPLE_STEP: Final = 1 << COSTLY_ORDER  # pages between two samples of a pageblock


@kernel
def defer_compaction(mem: Memory, zone: int, order: int) -> None:
    """Skip the next attempts at a zone, twice as many as last time."""
    state = mem.zone[zone]
    state[Z_COMPACT_CONSIDERED] = 0
    shift = min(state[Z_COMPACT_DEFER_SHIFT] + 1, COMPACT_MAX_DEFER_SHIFT)
    state[Z_COMPACT_DEFER_SHIFT] = shift
    state[Z_COMPACT_ORDER_FAILED] = min(state[Z_COMPACT_ORDER_FAILED], order)


@kernel
def compaction_deferred(mem: Memory, zone: int, order: int) -> bool:
    """Count an attempt at a zone; tell whether it is skipped."""
    state = mem.zone[zone]
    if order < state[Z_COMPACT_ORDER_FAILED]:
        return False
    limit = 1 << state[Z_COMPACT_DEFER_SHIFT]
    state[Z_COMPACT_CONSIDERED] += 1
    if state[Z_COMPACT_CONSIDERED] >= limit:
        state[Z_COMPACT_CONSIDERED] = limit
        return False
    return True


@kernel
def compaction_defer_reset(mem: Memory, zone: int, order: int, allocated: bool) -> None:
    """Note that compaction made an order available, or that the allocation even succeeded."""
    state = mem.zone[zone]
    if allocated:
        state[Z_COMPACT_CONSIDERED] = 0
        state[Z_COMPACT_DEFER_SHIFT] = 0
        state[Z_BLOCKSKIP_FLUSH] = 0
    if order >= state[Z_COMPACT_ORDER_FAILED]:
        state[Z_COMPACT_ORDER_FAILED] = order + 1


@inline_kernel
def _restarting(mem: Memory, zone: int, order: int) -> bool:
    """Tell whether a zone is tried again after the longest deferral."""
    state = mem.zone[zone]
    return (
        order >= state[Z_COMPACT_ORDER_FAILED]
        and state[Z_COMPACT_DEFER_SHIFT] == COMPACT_MAX_DEFER_SHIFT
        and state[Z_COMPACT_CONSIDERED] >= 1 << COMPACT_MAX_DEFER_SHIFT
    )


@kernel
def _sampled(mem: Memory, pb: int, source: bool, target: bool) -> bool:
    """Tell whether every eighth page of a pageblock shows one to move or one to move to."""
    state = pageblock_state(mem, pb)
    if state == PB_FREE9 or state == PB_FREE10 or (state == PB_VIRGIN and pb & 1 == 0):
        return target
    if target and state == PB_PARTIAL:
        for i in range(0, PAGEBLOCK_NR_PAGES, SAMPLE_STEP):
            if is_free_block(mem, int(mem.pb[pb].a), i, 0):
                return True
    if not source or state < PB_HUGE or state > PB_PARTIAL:
        return False
    x = extents_of(mem, pb)
    while x != NIL:
        pfn = int(mem.ext[x].pfn)
        first = (pfn + SAMPLE_STEP - 1) & ~(SAMPLE_STEP - 1)
        if is_movable(mem.ext[x].flags & KIND_MASK) and first < pfn + int(mem.ext[x].nr):
            return True
        x = int(mem.ext[x].next_b)
    return False


@kernel
def _reset_isolation_pfn(mem: Memory, pb: int, source: bool, target: bool) -> bool:
    """Clear a pageblock's skip bit if it may be a source or target; tell whether it may."""
    state = pageblock_state(mem, pb)
    if state == PB_HUGE or state == PB_COMPOUND:
        return False
    if source and target and not get_pageblock_skip(mem, pb):
        return True
    if not source and target and get_pageblock_migratetype(mem, pb) != MIGRATE_MOVABLE:
        return False
    if not _sampled(mem, pb, source, target):
        return False
    clear_pageblock_skip(mem, pb)
    return True


@kernel
def reset_isolation_suitable(mem: Memory, zone: int) -> None:
    """Clear a zone's skip bits and let both scanners begin anew, if a full run ended lately."""
    if mem.zone[zone, Z_BLOCKSKIP_FLUSH] == 0:
        return
    mem.zone[zone, Z_BLOCKSKIP_FLUSH] = 0
    migrate = mem.zone[zone, Z_START]
    free = mem.zone[zone, Z_END] - 1
    first_source = free
    last_target = migrate
    source_set = False
    target_set = False
    while migrate < free:
        if (
            _reset_isolation_pfn(mem, migrate >> PAGEBLOCK_ORDER, True, source_set)
            and migrate < first_source
        ):
            source_set = True
            first_source = migrate
            mem.zone[zone, Z_INIT_MIGRATE] = migrate
            mem.zone[zone, Z_CACHED_MIGRATE] = migrate
            mem.zone[zone, Z_CACHED_MIGRATE + 1] = migrate
        if (
            _reset_isolation_pfn(mem, free >> PAGEBLOCK_ORDER, target_set, True)
            and free > last_target
        ):
            target_set = True
            last_target = free
            mem.zone[zone, Z_INIT_FREE] = free
            mem.zone[zone, Z_CACHED_FREE] = free
        migrate += PAGEBLOCK_NR_PAGES
        free -= PAGEBLOCK_NR_PAGES
    if first_source >= last_target:
        mem.zone[zone, Z_CACHED_MIGRATE] = migrate
        mem.zone[zone, Z_CACHED_MIGRATE + 1] = migrate
        mem.zone[zone, Z_CACHED_FREE] = free


@kernel
def fragmentation_score_zone(mem: Memory, zone: int) -> int:
    """Return the share of a zone's free memory that is in no block of a huge page, in percent."""
    free = mem.zone[zone, Z_FREE]
    if free == 0:
        return 0
    suitable = 0
    for migratetype in range(NR_PCP_TYPES):
        suitable += mem.nr_free[zone, migratetype, PAGEBLOCK_ORDER]
        suitable += 2 * mem.nr_free[zone, migratetype, MAX_PAGE_ORDER]
    return (free - (suitable << PAGEBLOCK_ORDER)) * 100 // free


@kernel
def fragmentation_score_node(mem: Memory) -> int:
    """Return the zones' fragmentation, each weighted by its size."""
    present = 0
    for zone in range(NR_ZONES):
        present += mem.zone[zone, Z_END] - mem.zone[zone, Z_START]
    score = 0
    for zone in range(NR_ZONES):
        pages = mem.zone[zone, Z_END] - mem.zone[zone, Z_START]
        score += pages * fragmentation_score_zone(mem, zone) // (present + 1)
    return score


@inline_kernel
def proactive_low(mem: Memory) -> int:
    """Return the fragmentation at which proactive compaction is content."""
    return max(100 - mem.tunables[T_COMPACTION_PROACTIVENESS], PROACTIVE_LOW_LEAST)


@inline_kernel
def proactive_high(mem: Memory) -> int:
    """Return the fragmentation above which proactive compaction begins."""
    return min(proactive_low(mem) + PROACTIVE_LEEWAY, 100)


@kernel
def _compact_finished(mem: Memory) -> int:
    """Tell whether a run goes on, a COMPACT_* result."""
    zone = mem.compact[CC_ZONE]
    if compact_scanners_met(mem):
        mem.zone[zone, Z_CACHED_MIGRATE] = mem.zone[zone, Z_START]
        mem.zone[zone, Z_CACHED_MIGRATE + 1] = mem.zone[zone, Z_START]
        mem.zone[zone, Z_CACHED_FREE] = pageblock_start_pfn(mem.zone[zone, Z_END] - 1)
        if mem.compact[CC_DIRECT] != 0:
            mem.zone[zone, Z_BLOCKSKIP_FLUSH] = 1
        return COMPACT_COMPLETE if mem.compact[CC_WHOLE_ZONE] != 0 else COMPACT_PARTIAL_SKIPPED
    if mem.compact[CC_PROACTIVE] != 0:
        content = fragmentation_score_zone(mem, zone) <= proactive_low(mem)
        return COMPACT_SUCCESS if content else COMPACT_CONTINUE
    wanted = mem.compact[CC_ORDER]
    pfn = mem.compact[CC_MIGRATE_PFN]
    if wanted == WHOLE_ZONE or pfn != pageblock_start_pfn(pfn):
        return COMPACT_CONTINUE
    migratetype = mem.compact[CC_TYPE]
    for order in range(wanted, NR_PAGE_ORDERS):
        if mem.nr_free[zone, migratetype, order] > 0:
            return COMPACT_SUCCESS
        if (
            can_claim(order, migratetype)
            and find_suitable_fallback(mem, zone, order, migratetype) != NIL
        ):
            return COMPACT_SUCCESS
    return COMPACT_CONTINUE


@kernel
def has_block(mem: Memory, zone: int, order: int, mark: int) -> bool:
    """Tell whether a zone has a block of an order and stays above a mark without it."""
    if mem.zone[zone, Z_FREE] - ((1 << order) - 1) <= mark:
        return False
    for current in range(order, NR_PAGE_ORDERS):
        for migratetype in range(NR_PCP_TYPES):
            if mem.nr_free[zone, migratetype, current] > 0:
                return True
    return False


@kernel
def compaction_suitable(mem: Memory, zone: int, order: int, reserve: int) -> bool:
    """Tell whether a run could help: enough free pages to move to, and in too small blocks."""
    mark = mem.zone[zone, Z_WMARK_LOW if order > COSTLY_ORDER else Z_WMARK_MIN]
    if mem.zone[zone, Z_FREE] <= mark + (2 << order) + reserve:
        return False
    if order <= COSTLY_ORDER:
        return True
    index = fragmentation_index_zone(mem, zone, order)
    return not 0 <= index <= mem.tunables[T_EXTFRAG_THRESHOLD]


@kernel
def begin(mem: Memory, order: int, migratetype: int, mode: int) -> None:
    """Prepare a run: struct compact_control with all that is not named unset."""
    for column in range(CC_FREE_SCANNED + 1):
        mem.compact[column] = 0
    mem.compact[CC_ORDER] = order
    mem.compact[CC_SEARCH_ORDER] = order
    mem.compact[CC_TYPE] = migratetype
    mem.compact[CC_MODE] = mode
    mem.compact[CC_RESUME] = 0
    mem.compact[CC_UNTIL] = 0


@kernel
def _set_scanners(mem: Memory, zone: int) -> None:
    """Let the scanners begin where earlier runs stopped, or at the zone's ends."""
    if mem.compact[CC_RESUME] != 0:
        return
    state = mem.zone[zone]
    start = state[Z_START]
    last = pageblock_start_pfn(state[Z_END] - 1)
    mem.compact[CC_FAST_START] = 0
    if mem.compact[CC_WHOLE_ZONE] != 0:
        mem.compact[CC_MIGRATE_PFN] = start
        mem.compact[CC_FREE_PFN] = last
        return
    sync = 0 if mem.compact[CC_MODE] == COMPACT_ASYNC else 1
    if state[Z_CACHED_FREE] < start or state[Z_CACHED_FREE] >= state[Z_END]:
        state[Z_CACHED_FREE] = last
    migrate = state[Z_CACHED_MIGRATE + sync]
    if migrate < start or migrate >= state[Z_END]:
        migrate = start
        state[Z_CACHED_MIGRATE] = start
        state[Z_CACHED_MIGRATE + 1] = start
    mem.compact[CC_MIGRATE_PFN] = migrate
    mem.compact[CC_FREE_PFN] = state[Z_CACHED_FREE]
    if migrate <= state[Z_INIT_MIGRATE]:
        mem.compact[CC_WHOLE_ZONE] = 1


@kernel
def compact_zone(mem: Memory, zone: int, reserve: int) -> int:
    """Compact a zone as `begin` prepared it; return a COMPACT_* result.

    Parameters
    ----------
    reserve
        Pages of the zone that the request may not have (lowmem_reserve).
    """
    order = mem.compact[CC_ORDER]
    mem.compact[CC_ZONE] = zone
    mem.compact[CC_MIGRATE_SCANNED] = 0
    mem.compact[CC_FREE_SCANNED] = 0
    seed = mem.tunables[T_COMPACTION] == COMPACTION_2_6_38
    if seed:
        if not start_scanners(mem, zone):
            return COMPACT_SKIPPED
    elif order != WHOLE_ZONE:
        if has_block(mem, zone, order, mem.zone[zone, Z_WMARK_MIN] + reserve):
            return COMPACT_SUCCESS
        if not compaction_suitable(mem, zone, order, reserve):
            return COMPACT_SKIPPED
        if _restarting(mem, zone, order):
            reset_isolation_suitable(mem, zone)
    if seed:
        result = _run_2_6_38(mem)
    else:
        _set_scanners(mem, zone)
        result = _run(mem, zone)
    if mem.compact[CC_NR_FREE] > 0:
        highest = pageblock_start_pfn(release_freepages(mem))
        if highest > mem.zone[zone, Z_CACHED_FREE]:
            mem.zone[zone, Z_CACHED_FREE] = highest
    mem.vmstat[COMPACT_MIGRATE_SCANNED] += mem.compact[CC_MIGRATE_SCANNED]
    mem.vmstat[COMPACT_FREE_SCANNED] += mem.compact[CC_FREE_SCANNED]
    charge(mem, C_SCAN_PAGE, mem.compact[CC_MIGRATE_SCANNED] + mem.compact[CC_FREE_SCANNED])
    return result


@kernel
def _run_2_6_38(mem: Memory) -> int:
    """Do what `_run` does by the rules of 2.6.38; no failure ends a run."""
    result = compact_finished(mem)
    while result == COMPACT_CONTINUE:
        pb = mem.compact[CC_MIGRATE_PFN] >> PAGEBLOCK_ORDER
        if pageblock_state(mem, pb) == PB_PARTIAL or pageblock_state(mem, pb) == PB_FULL:
            map_extents(mem, pb)
        if isolate_migratepages_2_6_38(mem):
            nr = mem.compact[CC_NR_MIGRATE]
            migrate_pages(mem)
            left = mem.compact[CC_NR_MIGRATE]
            mem.compact[CC_NR_MIGRATE] = 0
            mem.vmstat[COMPACT_BLOCKS_MOVED] += 1
            mem.vmstat[COMPACT_PAGES_MOVED] += nr - left
            mem.vmstat[COMPACT_PAGEMIGRATE_FAILED] += left
        result = compact_finished(mem)
    return result


@kernel
def _run(mem: Memory, zone: int) -> int:
    """Isolate and migrate until the run has finished; return a COMPACT_* result.

    COMPACT_CONTINUE is that of a run that pauses.
    """
    order = mem.compact[CC_ORDER]
    era_6_12 = mem.tunables[T_COMPACTION] == COMPACTION_6_12
    last_migrated = 0
    update_cached = (
        mem.compact[CC_MODE] == COMPACT_ASYNC
        and mem.zone[zone, Z_CACHED_MIGRATE] == mem.zone[zone, Z_CACHED_MIGRATE + 1]
    )
    result = _compact_finished(mem)
    rescan = False
    while result == COMPACT_CONTINUE or rescan:
        began = mem.compact[CC_MIGRATE_PFN]
        if not rescan:
            again = pageblock_start_pfn(last_migrated) == pageblock_start_pfn(began)
            mem.compact[CC_FINISH] = 1 if again else 0
        rescan = False
        if isolate_migratepages(mem):
            update_cached = False
            last_migrated = began
            if era_6_12:
                last_migrated = pageblock_start_pfn(mem.compact[CC_MIGRATE_PFN] - 1)
            if not migrate_pages(mem):
                mem.compact[CC_NR_MIGRATE] = 0
                if not compact_scanners_met(mem):
                    return COMPACT_CONTENDED
                rescan = _after_failure(mem, era_6_12)
                if mem.compact[CC_DIRECT] != 0 or order == PAGEBLOCK_ORDER:
                    last_migrated = 0
                if rescan:
                    continue
            if mem.pool[P_CAPTURED] != 0:
                return COMPACT_SUCCESS
        elif update_cached:
            mem.zone[zone, Z_CACHED_MIGRATE + 1] = mem.zone[zone, Z_CACHED_MIGRATE]
        if order > 0 and last_migrated > 0:
            if last_migrated < mem.compact[CC_MIGRATE_PFN] >> order << order:
                drain_zone_pages(mem, zone)
                last_migrated = 0
        result = _compact_finished(mem)
        if 0 < mem.compact[CC_UNTIL] <= mem.pool[P_COST_NS]:
            break
    return result


@kernel
def _after_failure(mem: Memory, era_6_12: bool) -> bool:
    """Decide what becomes of a pageblock of which a page did not move; tell whether to rescan it.

    6.1 lets direct asynchronous runs leave it, 6.12 scans its rest at once.
    """
    pfn = mem.compact[CC_MIGRATE_PFN]
    if era_6_12:
        if (
            pfn == pageblock_start_pfn(pfn)
            or mem.compact[CC_IGNORE_SKIP] != 0
            or mem.compact[CC_FINISH] != 0
            or mem.compact[CC_MODE] == COMPACT_SYNC
        ):
            return False
        mem.compact[CC_FINISH] = 1
        return True
    if mem.compact[CC_DIRECT] != 0 and mem.compact[CC_MODE] == COMPACT_ASYNC:
        order = mem.compact[CC_ORDER]
        mem.compact[CC_MIGRATE_PFN] = (((pfn - 1) >> order) + 1) << order
    return False


@kernel
def try_to_compact_pages(
    mem: Memory, order: int, migratetype: int, mode: int, highest_zone: int
) -> int:
    """Compact zones for an allocation that waits; return a COMPACT_* result.

    A huge page that becomes free meanwhile is captured: its pageblock + 1 is in
    ``pool[P_CAPTURED]``.
    """
    cost = mem.pool[P_COST_NS]
    mem.pool[P_CAPTURED] = 0
    best = COMPACT_SKIPPED
    for zone in range(highest_zone, ZONE_DMA - 1, -1):
        if mem.zone[zone, Z_MANAGED] == 0:
            continue
        if compaction_deferred(mem, zone, order):
            best = max(best, COMPACT_DEFERRED)
            continue
        begin(mem, order, migratetype, mode)
        mem.compact[CC_DIRECT] = 1
        if order == PAGEBLOCK_ORDER:
            mem.pool[P_CAPTURE] = zone + 1
        result = compact_zone(mem, zone, mem.zone[zone, Z_RESERVE])
        mem.pool[P_CAPTURE] = 0
        if mem.pool[P_CAPTURED] != 0:
            result = COMPACT_SUCCESS
        best = max(best, result)
        if result == COMPACT_SUCCESS:
            compaction_defer_reset(mem, zone, order, False)
            break
        if mode != COMPACT_ASYNC and (
            result == COMPACT_COMPLETE or result == COMPACT_PARTIAL_SKIPPED
        ):
            defer_compaction(mem, zone, order)
    mem.pool[P_STALL_NS] += mem.pool[P_COST_NS] - cost
    return best


@kernel
def compact_node(mem: Memory) -> None:
    """Compact all zones (a write to /proc/sys/vm/compact_memory)."""
    for zone in range(NR_ZONES):
        if mem.zone[zone, Z_MANAGED] == 0:
            continue
        begin(mem, WHOLE_ZONE, MIGRATE_UNMOVABLE, COMPACT_SYNC)
        mem.compact[CC_IGNORE_SKIP] = 1
        mem.compact[CC_WHOLE_ZONE] = 1
        compact_zone(mem, zone, 0)
