"""Compaction: moving pages together so that free blocks of a high order appear.

A run moves pages found by the migrate scanner (`compact_source`), from a zone's start upward,
to free pages found by the free scanner (`compact_target`), from its end downward.

Source: Linux v6.1.187 and v6.12.117 mm/compaction.c compact_zone, __compact_finished,
compaction_suitable, try_to_compact_pages, compact_nodes; mm/page_alloc.c compaction_capture.
Simplified: no lock is contended and nobody needs the CPU, so that no run is cut short.
Simplified: only whole pageblocks are captured, not blocks of smaller orders.
"""

from hostsim.core.jit import kernel
from hostsim.core.units import (
    COSTLY_ORDER,
    NR_PAGE_ORDERS,
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
    compact_scanners_met,
    pageblock_start_pfn,
)
from hostsim.mm.compact_defer import (
    compaction_defer_reset,
    compaction_deferred,
    compaction_restarting,
    defer_compaction,
)
from hostsim.mm.compact_score import fragmentation_score_zone, proactive_low
from hostsim.mm.compact_skip import reset_isolation_suitable
from hostsim.mm.compact_source import isolate_migratepages, map_extents
from hostsim.mm.compact_target import release_freepages
from hostsim.mm.compaction_2_6_38 import compact_finished, start_scanners
from hostsim.mm.compaction_2_6_38 import isolate_migratepages as isolate_migratepages_2_6_38
from hostsim.mm.cost import C_SCAN_PAGE, charge
from hostsim.mm.migrate import migrate_pages
from hostsim.mm.mm_types import (
    MIGRATE_UNMOVABLE,
    NIL,
    NR_PCP_TYPES,
    P_CAPTURE,
    P_CAPTURED,
    P_COST_NS,
    P_NODE,
    P_STALL_NS,
    Z_BLOCKSKIP_FLUSH,
    Z_CACHED_FREE,
    Z_CACHED_MIGRATE,
    Z_END,
    Z_FREE,
    Z_INIT_MIGRATE,
    Z_MANAGED,
    Z_RESERVE,
    Z_START,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.numa import next_zone
from hostsim.mm.pageblock import can_claim, find_suitable_fallback, fragmentation_index_zone
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.physmem import (
    PB_FULL,
    PB_PARTIAL,
    pageblock_state,
    zone_to_nid,
)
from hostsim.mm.tunables import (
    COMPACTION_2_6_38,
    COMPACTION_6_12,
    T_COMPACTION,
    T_EXTFRAG_THRESHOLD,
)
from hostsim.mm.vmstat import (
    COMPACT_BLOCKS_MOVED,
    COMPACT_FREE_SCANNED,
    COMPACT_MIGRATE_SCANNED,
    COMPACT_PAGEMIGRATE_FAILED,
    COMPACT_PAGES_MOVED,
)


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
        if compaction_restarting(mem, zone, order):
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
def try_to_compact_pages(mem: Memory, order: int, migratetype: int, mode: int, nodes: int) -> int:
    """Compact the zones of some nodes for an allocation that waits; return a COMPACT_* result.

    A huge page that becomes free meanwhile is captured: its pageblock + 1 is in
    ``pool[P_CAPTURED]``.
    """
    cost = mem.pool[P_COST_NS]
    mem.pool[P_CAPTURED] = 0
    best = COMPACT_SKIPPED
    follows = ZONE_NORMAL + mem.pool[P_NODE]
    for _ in range(len(mem.zone)):
        zone = follows
        follows = next_zone(mem, zone)
        if mem.zone[zone, Z_MANAGED] == 0 or nodes >> zone_to_nid(zone) & 1 == 0:
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
    """Compact all zones of all nodes (a write to /proc/sys/vm/compact_memory)."""
    for zone in range(len(mem.zone)):
        if mem.zone[zone, Z_MANAGED] == 0:
            continue
        begin(mem, WHOLE_ZONE, MIGRATE_UNMOVABLE, COMPACT_SYNC)
        mem.compact[CC_IGNORE_SKIP] = 1
        mem.compact[CC_WHOLE_ZONE] = 1
        compact_zone(mem, zone, 0)
