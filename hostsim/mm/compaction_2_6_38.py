"""Compaction as 2.6.38 has it: both scanners begin at the zone's ends at every run.

There are no skip bits, no cached positions and no fast search, and the only modes are asynchronous
(from movable pageblocks only) and synchronous.  A pageblock's free pages are taken all at once,
even of free blocks as large as the one that is wanted, and one zone's failures put off all.

Source: Linux v2.6.38 mm/compaction.c compact_zone, isolate_migratepages, isolate_freepages,
isolate_freepages_block, suitable_migration_target, compact_finished, compaction_suitable,
try_to_compact_pages; mm/page_alloc.c split_free_page, __alloc_pages_direct_compact.
Simplified: a batch of pages to move ends with its pageblock.
Simplified: kswapd does not compact for the orders of kernel allocations.
"""

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import (
    MAX_PAGE_ORDER,
    NR_PAGE_ORDERS,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.buddy import del_free_pageblocks, take_free_block, take_pageblock
from hostsim.mm.compact_control import (
    CC_FREE_PFN,
    CC_FREE_SCANNED,
    CC_MAP,
    CC_MIGRATE_PFN,
    CC_MIGRATE_SCANNED,
    CC_MODE,
    CC_NR_FREE,
    CC_NR_MIGRATE,
    CC_ORDER,
    CC_SOURCE,
    CC_TYPE,
    CC_ZONE,
    COMPACT_ASYNC,
    COMPACT_CLUSTER_MAX,
    COMPACT_COMPLETE,
    COMPACT_CONTINUE,
    COMPACT_SUCCESS,
    WHOLE_ZONE,
    note_isolated,
    pageblock_start_pfn,
)
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RESERVE,
    NIL,
    NR_TYPES,
    Z_END,
    Z_FREE,
    Z_START,
    Z_VIRGIN,
    Z_VIRGIN_END,
    Z_WMARK_LOW,
    Memory,
)
from hostsim.mm.pageblock import fragmentation_index_zone
from hostsim.mm.physmem import (
    PB_FREE9,
    PB_FREE10,
    PB_FREE10_TAIL,
    PB_FULL,
    PB_PARTIAL,
    PB_VIRGIN,
    big_list_add_tail,
    big_list_del,
    free_block_order,
    get_pageblock_migratetype,
    list_type,
    pageblock_state,
    set_pageblock_migratetype,
    set_state,
    virgin_slot,
)
from hostsim.mm.tunables import T_EXTFRAG_THRESHOLD
from hostsim.mm.vmstat import COMPACT_ISOLATED
from hostsim.mm.watermark import zone_watermark_ok


@kernel
def compaction_suitable(mem: Memory, zone: int, order: int) -> bool:
    """Tell whether a run could help: enough free pages, and in too small blocks."""
    if not zone_watermark_ok(mem, zone, 0, mem.zone[zone, Z_WMARK_LOW] + (2 << order)):
        return False
    index = fragmentation_index_zone(mem, zone, order)
    return not 0 <= index <= mem.tunables[T_EXTFRAG_THRESHOLD]


@kernel
def compact_finished(mem: Memory) -> int:
    """Tell whether a run goes on, a COMPACT_* result."""
    zone = mem.compact[CC_ZONE]
    wanted = mem.compact[CC_ORDER]
    if mem.compact[CC_FREE_PFN] <= mem.compact[CC_MIGRATE_PFN]:
        return COMPACT_COMPLETE
    if wanted == WHOLE_ZONE:
        return COMPACT_CONTINUE
    if not zone_watermark_ok(mem, zone, wanted, mem.zone[zone, Z_WMARK_LOW] + (1 << wanted)):
        return COMPACT_CONTINUE
    for order in range(wanted, NR_PAGE_ORDERS):
        if mem.nr_free[zone, mem.compact[CC_TYPE], order] > 0:
            return COMPACT_SUCCESS
        for migratetype in range(NR_TYPES):
            if order >= PAGEBLOCK_ORDER and mem.nr_free[zone, migratetype, order] > 0:
                return COMPACT_SUCCESS
    return COMPACT_CONTINUE


@kernel
def isolate_migratepages(mem: Memory) -> bool:
    """Take up to 32 pages of the next pageblock; tell whether there are any.

    `Memory.compact` holds the extent of each frame of that pageblock behind CC_MAP.
    """
    low = mem.compact[CC_MIGRATE_PFN]
    end = pageblock_start_pfn(low) + PAGEBLOCK_NR_PAGES
    pb = low >> PAGEBLOCK_ORDER
    state = pageblock_state(mem, pb)
    hurried = mem.compact[CC_MODE] == COMPACT_ASYNC
    if (
        end > mem.compact[CC_FREE_PFN]
        or (state != PB_PARTIAL and state != PB_FULL)
        or (hurried and get_pageblock_migratetype(mem, pb) != MIGRATE_MOVABLE)
    ):
        mem.compact[CC_MIGRATE_SCANNED] += 1 if hurried else end - low
        mem.compact[CC_MIGRATE_PFN] = end
        return False
    nr = 0
    while low < end and nr < COMPACT_CLUSTER_MAX:
        mem.compact[CC_MIGRATE_SCANNED] += 1
        if mem.compact[CC_MAP + (low & (PAGEBLOCK_NR_PAGES - 1))] != NIL:
            mem.compact[CC_SOURCE + nr] = low
            nr += 1
        low += 1
    mem.compact[CC_MIGRATE_PFN] = low
    mem.compact[CC_NR_MIGRATE] = nr
    mem.vmstat[COMPACT_ISOLATED] += nr
    return nr > 0


@kernel
def _list_virgin(mem: Memory, zone: int, pb: int) -> None:
    """Put memory never used, from a pageblock on, on its list block by block."""
    end = mem.zone[zone, Z_VIRGIN_END]
    for first in range(pb, end, 2):
        set_state(mem, first, PB_FREE10, MIGRATE_MOVABLE)
        set_state(mem, first + 1, PB_FREE10_TAIL, MIGRATE_MOVABLE)
        big_list_add_tail(mem, first, zone, MIGRATE_MOVABLE, MAX_PAGE_ORDER)
    mem.zone[zone, Z_VIRGIN_END] = pb
    if mem.zone[zone, Z_VIRGIN] == pb:
        big_list_del(mem, virgin_slot(mem, zone))


@kernel
def _split_free_page(mem: Memory, pb: int, first: int, order: int) -> bool:
    """Take a free block off the lists if the zone keeps above its low watermark.

    What gives a block of half a pageblock or more becomes movable.
    """
    zone = mem.compact[CC_ZONE]
    if not zone_watermark_ok(mem, zone, 0, mem.zone[zone, Z_WMARK_LOW] + (1 << order)):
        return False
    if order >= PAGEBLOCK_ORDER:
        if pageblock_state(mem, pb) == PB_VIRGIN:
            _list_virgin(mem, zone, pb)
        on_type = list_type(mem, pb)
        del_free_pageblocks(mem, pb, zone, on_type, order)
        for i in range(1 << (order - PAGEBLOCK_ORDER)):
            take_pageblock(mem, pb + i, zone, on_type, PAGEBLOCK_NR_PAGES)
        mem.zone[zone, Z_FREE] -= 1 << order
    else:
        take_free_block(mem, pb, first, order)
    if order >= PAGEBLOCK_ORDER - 1:
        for i in range(max(1 << order >> PAGEBLOCK_ORDER, 1)):
            set_pageblock_migratetype(mem, pb + i, MIGRATE_MOVABLE)
    note_isolated(mem, (pb << PAGEBLOCK_ORDER) + first, order)
    return True


@inline_kernel
def _large_free(mem: Memory, pb: int) -> int:
    """Return the order of the free block that begins with a pageblock, if it is 9 or 10, or NIL."""
    state = pageblock_state(mem, pb)
    if state == PB_FREE9:
        return PAGEBLOCK_ORDER
    return MAX_PAGE_ORDER if state == PB_FREE10 or (state == PB_VIRGIN and pb & 1 == 0) else NIL


@kernel
def _isolate_block(mem: Memory, pb: int) -> bool:
    """Take all free blocks of a pageblock; tell whether there was one."""
    mem.compact[CC_FREE_SCANNED] += PAGEBLOCK_NR_PAGES
    large = _large_free(mem, pb)
    if large != NIL:
        return _split_free_page(mem, pb, 0, large)
    taken = False
    at = 0
    while at < PAGEBLOCK_NR_PAGES and pageblock_state(mem, pb) == PB_PARTIAL:
        order = free_block_order(mem, int(mem.pb[pb].a), at)
        if order != NIL and _split_free_page(mem, pb, at, order):
            taken = True
            at += 1 << order
        else:
            at += 1
    return taken


@kernel
def isolate_freepages(mem: Memory) -> None:
    """Take free pages, whole pageblocks at a time, for the pages that are to move."""
    zone = mem.compact[CC_ZONE]
    low = mem.compact[CC_MIGRATE_PFN] + PAGEBLOCK_NR_PAGES
    high = low
    pfn = mem.compact[CC_FREE_PFN]
    while pfn > low and mem.compact[CC_NR_MIGRATE] > mem.compact[CC_NR_FREE]:
        pb = pfn >> PAGEBLOCK_ORDER
        if pfn < mem.zone[zone, Z_END]:
            migratetype = get_pageblock_migratetype(mem, pb)
            suitable = migratetype == MIGRATE_MOVABLE or _large_free(mem, pb) != NIL
            if suitable and migratetype != MIGRATE_RESERVE and _isolate_block(mem, pb):
                high = max(high, pfn)
        pfn -= PAGEBLOCK_NR_PAGES
    mem.compact[CC_FREE_PFN] = high


@kernel
def start_scanners(mem: Memory, zone: int) -> bool:
    """Let a run begin at the zone's ends; tell whether it could help."""
    order = mem.compact[CC_ORDER]
    if order != WHOLE_ZONE and not compaction_suitable(mem, zone, order):
        return False
    mem.compact[CC_MIGRATE_PFN] = mem.zone[zone, Z_START]
    mem.compact[CC_FREE_PFN] = pageblock_start_pfn(mem.zone[zone, Z_END])
    return True
