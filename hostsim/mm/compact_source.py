"""The migrate scanner: from a zone's start upward it takes pages that are to move.

Source: Linux v6.1 and v6.12 mm/compaction.c isolate_migratepages_block, isolate_migratepages,
fast_find_migrateblock, suitable_migration_source, reinit_migrate_pfn.
Simplified: the fast search walks pageblocks with free blocks of an order, not single blocks.
"""

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import COSTLY_ORDER, MAX_PAGE_ORDER, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.compact_control import (
    CC_DIRECT,
    CC_FAST_FAIL,
    CC_FAST_START,
    CC_FINISH,
    CC_FREE_PFN,
    CC_IGNORE_SKIP,
    CC_MAP,
    CC_MIGRATE_PFN,
    CC_MIGRATE_SCANNED,
    CC_MODE,
    CC_NR_MIGRATE,
    CC_ORDER,
    CC_SEEN_HEAD,
    CC_SOURCE,
    CC_TYPE,
    CC_ZONE,
    COMPACT_ASYNC,
    COMPACT_CLUSTER_MAX,
    COMPACT_SYNC,
    NO_RESTART,
    freelist_scan_limit,
    get_pageblock_skip,
    isolation_suitable,
    pageblock_start_pfn,
    set_pageblock_skip,
    update_cached_migrate,
)
from hostsim.mm.migrate import is_migratable
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    NIL,
    NR_TYPES,
    P_PINS,
    Z_START,
    Memory,
)
from hostsim.mm.physmem import (
    PB_COMPOUND,
    PB_FREE9,
    PB_FREE10,
    PB_FULL,
    PB_HUGE,
    PB_PARTIAL,
    PB_VIRGIN,
    free_block_order,
    get_pageblock_migratetype,
    list_rotate,
    pageblock_state,
)
from hostsim.mm.pins import pinned_run
from hostsim.mm.rmap import KIND_ANON, KIND_MASK, extents_of, frame_at
from hostsim.mm.swapout import under_writeback
from hostsim.mm.tunables import COMPACTION_6_12, T_COMPACTION
from hostsim.mm.vmstat import COMPACT_ISOLATED


@kernel
def map_extents(mem: Memory, pb: int) -> None:
    """Write the extent of each frame of a pageblock that can move, NIL for all others."""
    for i in range(PAGEBLOCK_NR_PAGES):
        mem.compact[CC_MAP + i] = NIL
    in_flight = mem.compact[CC_MODE] != COMPACT_SYNC
    x = extents_of(mem, pb)
    while x != NIL:
        if is_migratable(mem, x) and not (in_flight and under_writeback(mem, x)):
            first = int(mem.ext[x].pfn) & (PAGEBLOCK_NR_PAGES - 1)
            for i in range(first, first + int(mem.ext[x].nr)):
                mem.compact[CC_MAP + i] = x
        x = int(mem.ext[x].next_b)
    if mem.pool[P_PINS] != 0:
        _unmap_pinned(mem, pb)


@kernel
def _unmap_pinned(mem: Memory, pb: int) -> None:
    """Take the frames that a device uses out of the map of those that can move."""
    x = extents_of(mem, pb)
    while x != NIL:
        if mem.ext[x].flags & KIND_MASK == KIND_ANON:
            vpn = int(mem.ext[x].vpn)
            end = vpn + int(mem.ext[x].nr)
            while vpn < end:
                pinned, run = pinned_run(mem, int(mem.ext[x].owner), vpn, end - vpn)
                for page in range(vpn, vpn + (run if pinned else 0)):
                    frame = frame_at(mem, x, page)
                    mem.compact[CC_MAP + (frame & (PAGEBLOCK_NR_PAGES - 1))] = NIL
                vpn += run
        x = int(mem.ext[x].next_b)


@kernel
def _scan_whole(mem: Memory, pb: int, low: int, end: int, skip_on_failure: bool) -> int:
    """Return how many pages the scanner counts in a pageblock that is not one of small pages."""
    state = pageblock_state(mem, pb)
    if state == PB_FREE9:
        return PAGEBLOCK_NR_PAGES
    if state == PB_FREE10 or (state == PB_VIRGIN and pb & 1 == 0):
        return 1 << MAX_PAGE_ORDER
    order = mem.compact[CC_ORDER]
    if skip_on_failure and order < PAGEBLOCK_ORDER:
        return (end - low) >> order
    return 1 if skip_on_failure else end - low


@inline_kernel
def _test_and_set_skip(mem: Memory, pb: int, aligned: bool) -> bool:
    """Mark a pageblock as seen when its first page is taken; tell whether it was marked before."""
    if mem.compact[CC_IGNORE_SKIP] != 0 or not aligned:
        return False
    was = get_pageblock_skip(mem, pb)
    set_pageblock_skip(mem, pb)
    return was


@kernel
def isolate_migratepages_block(mem: Memory, low: int, end: int) -> None:
    """Take the pages of one pageblock that can move, from a frame on.

    No more than 32 are taken, unless the pageblock is to be finished.  Direct asynchronous
    compaction gives a block of the wanted order up at its first page that cannot move.
    """
    pb = low >> PAGEBLOCK_ORDER
    era_6_12 = mem.tunables[T_COMPACTION] == COMPACTION_6_12
    order = mem.compact[CC_ORDER]
    skip_on_failure = mem.compact[CC_DIRECT] != 0 and mem.compact[CC_MODE] == COMPACT_ASYNC
    begins = low == pageblock_start_pfn(low)
    skip_updated = False
    isolated = 0
    scanned = 0
    valid = begins and isolation_suitable(mem, pb)
    small = pageblock_state(mem, pb) == PB_PARTIAL or pageblock_state(mem, pb) == PB_FULL
    if begins and not valid:
        scanned = 1
        low = end
    elif not small:
        scanned = _scan_whole(mem, pb, low, end, skip_on_failure)
        low = end
    else:
        map_extents(mem, pb)
    next_skip = end
    if skip_on_failure and order < PAGEBLOCK_ORDER:
        next_skip = (low | ((1 << order) - 1)) + 1
    while low < end:
        if skip_on_failure and low >= next_skip:
            if isolated > 0:
                break
            next_skip = (low | ((1 << order) - 1)) + 1
        scanned += 1
        inside = low & (PAGEBLOCK_NR_PAGES - 1)
        x = mem.compact[CC_MAP + inside]
        if x != NIL:
            if not skip_updated and (valid or not era_6_12):
                skip_updated = True
                aligned = era_6_12 or inside == 0
                marked = _test_and_set_skip(mem, pb, aligned)
                if marked and (not era_6_12 or mem.compact[CC_FINISH] == 0):
                    low = end
                    break
            mem.compact[CC_SOURCE + mem.compact[CC_NR_MIGRATE]] = low
            mem.compact[CC_NR_MIGRATE] += 1
            isolated += 1
            low += 1
            if mem.compact[CC_NR_MIGRATE] >= COMPACT_CLUSTER_MAX and mem.compact[CC_FINISH] == 0:
                break
            continue
        free = NIL
        if pageblock_state(mem, pb) == PB_PARTIAL:
            free = free_block_order(mem, int(mem.pb[pb].a), inside)
        if free != NIL:
            scanned += (1 << free) - 1
            low += 1 << free
            continue
        if skip_on_failure:
            mem.compact[CC_NR_MIGRATE] -= isolated
            isolated = 0
            if low < next_skip:
                low = next_skip - 1
                next_skip += 1 << order
        low += 1
    low = min(low, end)
    if low == end and (isolated == 0 or mem.compact[CC_FINISH] != 0):
        if valid and not skip_updated:
            set_pageblock_skip(mem, pb)
        update_cached_migrate(mem, low)
    mem.compact[CC_MIGRATE_SCANNED] += scanned
    mem.vmstat[COMPACT_ISOLATED] += isolated
    mem.compact[CC_MIGRATE_PFN] = low


@inline_kernel
def _suitable_migration_source(mem: Memory, pb: int) -> bool:
    """Tell whether a pageblock may be emptied: no huge page, and of the type if in a hurry."""
    state = pageblock_state(mem, pb)
    if state == PB_HUGE or state == PB_COMPOUND:
        return False
    if mem.compact[CC_MODE] != COMPACT_ASYNC or mem.compact[CC_DIRECT] == 0:
        return True
    return get_pageblock_migratetype(mem, pb) == mem.compact[CC_TYPE]


@kernel
def isolate_migratepages(mem: Memory) -> bool:
    """Take pages of the first suitable pageblock below the free scanner; tell if there are any."""
    low = _fast_find_migrateblock(mem)
    found = low != mem.compact[CC_MIGRATE_PFN] and mem.compact[CC_FAST_FAIL] == 0
    zone = mem.compact[CC_ZONE]
    end = pageblock_start_pfn(low) + PAGEBLOCK_NR_PAGES
    while end <= mem.compact[CC_FREE_PFN]:
        pb = low >> PAGEBLOCK_ORDER
        begins = low == pageblock_start_pfn(low) or low == mem.zone[zone, Z_START]
        if not begins or found or isolation_suitable(mem, pb):
            if _suitable_migration_source(mem, pb):
                isolate_migratepages_block(mem, low, end)
                break
            update_cached_migrate(mem, end)
        found = False
        low = end
        mem.compact[CC_MIGRATE_PFN] = end
        end += PAGEBLOCK_NR_PAGES
    return mem.compact[CC_NR_MIGRATE] > 0


@kernel
def _search_list(mem: Memory, order: int, high: int, limit: int, scanned: int) -> tuple[int, int]:
    """Look from a movable list's head for a pageblock below a frame that is not to be skipped.

    Returns
    -------
    record, scanned
        NIL if there is none, and blocks seen in all.
    """
    head = mem.compact[CC_ZONE] * NR_TYPES + MIGRATE_MOVABLE
    seen = mem.compact[CC_SEEN_HEAD + order]
    mem.compact[CC_SEEN_HEAD + order] = 0
    record = int(mem.rec[head].next[order])
    while record != head:
        pb = int(mem.rec[record].pb)
        blocks = max(int(mem.rec[record].count[order]) - seen, 1)
        if pb << PAGEBLOCK_ORDER < high and not get_pageblock_skip(mem, pb):
            if scanned >= limit:
                return NIL, scanned + 1
            return record, scanned + 1
        left = limit - scanned
        if blocks > left:
            mem.compact[CC_SEEN_HEAD + order] = seen + max(left, 0)
            list_rotate(mem, head, order, int(mem.rec[record].prev[order]))
            return NIL, limit + 1
        scanned += blocks
        seen = 0
        record = int(mem.rec[record].next[order])
    return NIL, scanned


@kernel
def _fast_find_migrateblock(mem: Memory) -> int:
    """Return where to scan: a movable pageblock low in the zone that has free pages already."""
    pfn = mem.compact[CC_MIGRATE_PFN]
    zone = mem.compact[CC_ZONE]
    start = mem.zone[zone, Z_START]
    if mem.compact[CC_IGNORE_SKIP] != 0 or mem.compact[CC_FINISH] != 0:
        return pfn
    if pfn != pageblock_start_pfn(pfn) or mem.compact[CC_ORDER] <= COSTLY_ORDER:
        return pfn
    if mem.compact[CC_DIRECT] != 0 and mem.compact[CC_TYPE] != MIGRATE_MOVABLE:
        return pfn
    distance = (mem.compact[CC_FREE_PFN] - pfn) >> 1
    if pfn != start:
        distance >>= 2
    high = pageblock_start_pfn(pfn + distance)
    limit = freelist_scan_limit(mem)
    scanned = 0
    record = NIL
    order = min(mem.compact[CC_ORDER], PAGEBLOCK_ORDER) - 1
    while order >= COSTLY_ORDER and record == NIL and scanned < limit:
        if mem.nr_free[zone, MIGRATE_MOVABLE, order] > 0:
            record, scanned = _search_list(mem, order, high, limit, scanned)
            if record != NIL:
                list_rotate(mem, zone * NR_TYPES + MIGRATE_MOVABLE, order, record)
        order -= 1
    mem.compact[CC_MIGRATE_SCANNED] += scanned
    if record == NIL:
        mem.compact[CC_FAST_FAIL] += 1
        if mem.compact[CC_FAST_START] != 0 and mem.compact[CC_FAST_START] != NO_RESTART:
            mem.compact[CC_MIGRATE_PFN] = mem.compact[CC_FAST_START]
            mem.compact[CC_FAST_START] = NO_RESTART
        return mem.compact[CC_MIGRATE_PFN]
    pb = int(mem.rec[record].pb)
    pfn = pb << PAGEBLOCK_ORDER
    if mem.compact[CC_FAST_START] != NO_RESTART:
        if mem.compact[CC_FAST_START] == 0 or pfn < mem.compact[CC_FAST_START]:
            mem.compact[CC_FAST_START] = pfn
    mem.compact[CC_FAST_FAIL] = 0
    if mem.tunables[T_COMPACTION] != COMPACTION_6_12:
        set_pageblock_skip(mem, pb)
    return pfn
