"""The free scanner: from a zone's end downward it takes free pages for compaction to move to.

Source: Linux v6.1 and v6.12 mm/compaction.c isolate_freepages_block, isolate_freepages,
fast_isolate_freepages, fast_isolate_around, split_map_pages, release_freepages,
compaction_alloc; mm/page_alloc.c __isolate_free_page.
Simplified: the fast search walks pageblocks with free blocks of an order, not single blocks.
"""

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import COSTLY_ORDER, NO_PFN, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.buddy import free_block, take_free_block
from hostsim.mm.compact_control import (
    CC_BLOCKS,
    CC_DIRECT,
    CC_FAST_FAIL,
    CC_FREE,
    CC_FREE_PFN,
    CC_FREE_SCANNED,
    CC_IGNORE_SUITABLE,
    CC_MIGRATE_PFN,
    CC_MODE,
    CC_NR_BLOCKS,
    CC_NR_FREE,
    CC_NR_WANTED,
    CC_ORDER,
    CC_SEARCH_ORDER,
    CC_SEEN_TAIL,
    CC_ZONE,
    COMPACT_ASYNC,
    COMPACT_CLUSTER_MAX,
    freelist_scan_limit,
    isolation_suitable,
    note_isolated,
    pageblock_start_pfn,
    set_pageblock_skip,
)
from hostsim.mm.compaction_2_6_38 import isolate_freepages as isolate_freepages_2_6_38
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    NIL,
    NR_SMALL_ORDERS,
    NR_TYPES,
    P_TRACED,
    WORD_FRAMES,
    Z_CACHED_FREE,
    Z_END,
    Z_FREE,
    Z_INIT_FREE,
    Z_WMARK_MIN,
    Memory,
)
from hostsim.mm.page_alloc import free_order
from hostsim.mm.pageblock import move_freepages_block
from hostsim.mm.physmem import (
    PB_COMPOUND,
    PB_FREE9,
    PB_FREE10,
    PB_HUGE,
    PB_PARTIAL,
    PB_VIRGIN,
    free_block_order,
    get_pageblock_migratetype,
    list_rotate,
    list_type,
    lowest_free_block,
    pageblock_state,
    set_pageblock_migratetype,
)
from hostsim.mm.touched import note_touched
from hostsim.mm.tunables import (
    COMPACTION_2_6_38,
    COMPACTION_6_12,
    FALLBACK_6_12,
    T_COMPACTION,
    T_FALLBACK,
)
from hostsim.mm.vmstat import PGFREE


@kernel
def _isolate_free_page(mem: Memory, pb: int, first: int, order: int) -> bool:
    """Take a free block off the buddy lists if the zone keeps above its min watermark.

    A pageblock that gives a block of half its size becomes movable.
    """
    zone = mem.compact[CC_ZONE]
    if mem.zone[zone, Z_FREE] <= mem.zone[zone, Z_WMARK_MIN] + (1 << order):
        return False
    take_free_block(mem, pb, first, order)
    if order >= PAGEBLOCK_ORDER - 1:
        old_type = get_pageblock_migratetype(mem, pb)
        if old_type != MIGRATE_MOVABLE:
            if mem.tunables[T_FALLBACK] == FALLBACK_6_12 and pageblock_state(mem, pb) == PB_PARTIAL:
                record = int(mem.pb[pb].a)
                move_freepages_block(mem, record, zone, list_type(mem, pb), MIGRATE_MOVABLE)
            set_pageblock_migratetype(mem, pb, MIGRATE_MOVABLE)
    note_isolated(mem, (pb << PAGEBLOCK_ORDER) + first, order)
    return True


@kernel
def isolate_freepages_block(mem: Memory, start: int, end: int, stride: int) -> tuple[int, int]:
    """Take free blocks of one pageblock, ascending, until there is one page for each to move.

    Returns
    -------
    next, isolated
        Where the scan stopped (``end`` if it saw everything), and pages taken.
    """
    pb = start >> PAGEBLOCK_ORDER
    scanned = 0
    isolated = 0
    pfn = start
    state = pageblock_state(mem, pb)
    if state == PB_HUGE or state == PB_COMPOUND:
        scanned = end - pfn
        pfn = end
    elif state != PB_PARTIAL:
        scanned = (end - pfn + stride - 1) // stride
        pfn = end
    while pfn < end and pageblock_state(mem, pb) == PB_PARTIAL:
        record = int(mem.pb[pb].a)
        first = pfn & (PAGEBLOCK_NR_PAGES - 1)
        if (
            stride == 1
            and first % WORD_FRAMES == 0
            and mem.rec[record].bits[first // WORD_FRAMES] == 0
        ):
            scanned += WORD_FRAMES
            pfn += WORD_FRAMES
            continue
        scanned += 1
        order = free_block_order(mem, record, first)
        if order == NIL:
            pfn += stride
            continue
        if not _isolate_free_page(mem, pb, first, order):
            break
        scanned += (1 << order) - 1
        isolated += 1 << order
        pfn += 1 << order
        if mem.compact[CC_NR_WANTED] <= mem.compact[CC_NR_FREE]:
            break
        pfn += stride - 1
    else:
        if pfn < end:  # the last free page is taken
            scanned += (end - pfn + stride - 1) // stride
        pfn = end
    mem.compact[CC_FREE_SCANNED] += scanned
    return min(pfn, end), isolated


@inline_kernel
def _suitable_migration_target(mem: Memory, pb: int) -> bool:
    """Tell whether pages may move to a pageblock: movable, and not free as a whole."""
    state = pageblock_state(mem, pb)
    if state == PB_FREE9 or state == PB_FREE10 or (state == PB_VIRGIN and pb & 1 == 0):
        return False
    if mem.compact[CC_IGNORE_SUITABLE] != 0:
        return True
    return get_pageblock_migratetype(mem, pb) == MIGRATE_MOVABLE


@kernel
def isolate_freepages(mem: Memory) -> None:
    """Take enough free pages for the pages that are to move, if there are enough."""
    fast_isolate_freepages(mem)
    if mem.compact[CC_NR_FREE] > 0:
        _split_map_pages(mem)
        return
    zone = mem.compact[CC_ZONE]
    at = mem.compact[CC_FREE_PFN]
    block = pageblock_start_pfn(at)
    low = pageblock_start_pfn(mem.compact[CC_MIGRATE_PFN]) + PAGEBLOCK_NR_PAGES
    stride = COMPACT_CLUSTER_MAX if mem.compact[CC_MODE] == COMPACT_ASYNC else 1
    while block >= low:
        end = block + PAGEBLOCK_NR_PAGES
        pb = block >> PAGEBLOCK_ORDER
        if _suitable_migration_target(mem, pb) and isolation_suitable(mem, pb):
            at, isolated = isolate_freepages_block(mem, at, end, stride)
            if at == end:
                set_pageblock_skip(mem, pb)
                if block - PAGEBLOCK_NR_PAGES < mem.zone[zone, Z_CACHED_FREE]:
                    mem.zone[zone, Z_CACHED_FREE] = block - PAGEBLOCK_NR_PAGES
            if mem.compact[CC_NR_FREE] >= mem.compact[CC_NR_WANTED]:
                if at >= end:
                    at = block - PAGEBLOCK_NR_PAGES
                break
            if at < end:
                break
            stride = 1 if isolated > 0 else min(COMPACT_CLUSTER_MAX, stride << 1)
        block -= PAGEBLOCK_NR_PAGES
        at = block
    mem.compact[CC_FREE_PFN] = at
    _split_map_pages(mem)


@kernel
def _push_pages(mem: Memory, at: int, block: int, step: int) -> int:
    """Put the pages of an isolated block on the stack; return its new height."""
    pfn = block >> 4
    nr = 1 << (block & 15)
    for i in range(nr):
        mem.compact[CC_FREE + at + i] = pfn + (i if step > 0 else nr - 1 - i)
    return at + nr


@kernel
def _split_map_pages(mem: Memory) -> None:
    """Cut isolated blocks into pages, in the order in which they will be used from the end on.

    6.1 uses the last block first and each from its end; 6.12 the smallest first, upward.
    """
    nr = mem.compact[CC_NR_BLOCKS]
    at = 0
    if mem.tunables[T_COMPACTION] == COMPACTION_6_12:
        for down in range(NR_SMALL_ORDERS):
            for i in range(nr):
                block = mem.compact[CC_BLOCKS + nr - 1 - i]
                if block & 15 == NR_SMALL_ORDERS - 1 - down:
                    at = _push_pages(mem, at, block, -1)
    else:
        for i in range(nr):
            at = _push_pages(mem, at, mem.compact[CC_BLOCKS + i], 1)
    mem.compact[CC_NR_BLOCKS] = 0


@kernel
def compaction_alloc(mem: Memory, want: int) -> tuple[int, int, int]:
    """Take up to ``want`` isolated free pages that follow each other; isolate more if need be.

    Returns
    -------
    pfn, taken, step
        First page, how many, and 1 or -1 from one to the next; NO_PFN if there are none.
    """
    if mem.compact[CC_NR_FREE] == 0:
        if mem.tunables[T_COMPACTION] == COMPACTION_2_6_38:
            isolate_freepages_2_6_38(mem)
            _split_map_pages(mem)
        else:
            isolate_freepages(mem)
    nr = mem.compact[CC_NR_FREE]
    if nr == 0:
        return NO_PFN, 0, 0
    pfn = mem.compact[CC_FREE + nr - 1]
    taken = 1
    step = -1
    if nr > 1 and mem.compact[CC_FREE + nr - 2] == pfn + 1:
        step = 1
    while (
        taken < min(want, nr)
        and mem.compact[CC_FREE + nr - 1 - taken] == pfn + taken * step
        and (pfn + taken * step) >> PAGEBLOCK_ORDER == pfn >> PAGEBLOCK_ORDER
    ):
        taken += 1
    mem.compact[CC_NR_FREE] -= taken
    if mem.tunables[T_COMPACTION] == COMPACTION_6_12:
        mem.compact[CC_NR_WANTED] -= taken
    if mem.pool[P_TRACED] != 0:
        note_touched(mem, pfn, taken, step, 0)
    return pfn, taken, step


@kernel
def release_freepages(mem: Memory) -> int:
    """Free the isolated pages that nobody moved to; return the highest.

    6.1 frees single pages, 6.12 the blocks that are left of those it took.
    """
    highest = 0
    whole = mem.tunables[T_COMPACTION] == COMPACTION_6_12
    while mem.compact[CC_NR_FREE] > 0:
        nr = mem.compact[CC_NR_FREE]
        pfn = mem.compact[CC_FREE + nr - 1]
        highest = max(highest, pfn)
        run = 1
        while run < nr and mem.compact[CC_FREE + nr - 1 - run] == pfn + run:
            run += 1
        order = 0
        while whole and pfn & (1 << order) == 0 and 2 << order <= run:
            order += 1
        if order <= COSTLY_ORDER:
            free_order(mem, pfn, order)
        else:
            mem.vmstat[PGFREE] += 1 << order
            free_block(mem, pfn, order)
        highest = max(highest, pfn + (1 << order) - 1)
        mem.compact[CC_NR_FREE] -= 1 << order
    return highest


@inline_kernel
def _next_search_order(mem: Memory, order: int) -> int:
    """Return the next order in turn, or NIL when all have been searched."""
    order -= 1
    if order < 0:
        order = mem.compact[CC_ORDER] - 1
    if order == mem.compact[CC_SEARCH_ORDER]:
        mem.compact[CC_SEARCH_ORDER] -= 1
        if mem.compact[CC_SEARCH_ORDER] < 0:
            mem.compact[CC_SEARCH_ORDER] = mem.compact[CC_ORDER] - 1
        return NIL
    return order


@kernel
def _search_order(
    mem: Memory, order: int, limit: int, low: int, lowest: int
) -> tuple[int, int, int, int, int]:
    """Look from a movable list's tail for a block high up in the zone.

    Returns
    -------
    record, exact, limit, scanned, highest
        The pageblock's record (NIL if none) and whether it is above ``low`` (else it is the
        highest above ``lowest``), the limit left, blocks seen, highest pageblock seen.
    """
    zone = mem.compact[CC_ZONE]
    head = zone * NR_TYPES + MIGRATE_MOVABLE
    scanned = 0
    highest = 0
    best = NIL
    best_pfn = 0
    seen = mem.compact[CC_SEEN_TAIL + order]
    mem.compact[CC_SEEN_TAIL + order] = 0
    record = int(mem.rec[head].prev[order])
    while record != head:
        pfn = int(mem.rec[record].pb) << PAGEBLOCK_ORDER
        highest = max(highest, pfn)
        if pfn >= low:
            return record, 1, limit, scanned + 1, highest
        if pfn >= lowest and pfn > best_pfn:
            best_pfn = pfn
            best = record
            limit >>= 1
        blocks = max(int(mem.rec[record].count[order]) - seen, 1)
        left = max(limit - scanned, 1)
        if blocks > left:
            scanned += left
            if best == NIL:
                mem.compact[CC_SEEN_TAIL + order] = seen + left
                list_rotate(mem, head, order, record)
            break
        scanned += blocks
        seen = 0
        record = int(mem.rec[record].prev[order])
    return best, 0, limit, scanned, highest


@kernel
def fast_isolate_freepages(mem: Memory) -> None:
    """Take a free block from the tails of the movable lists if one lies near the zone's end."""
    order = mem.compact[CC_ORDER]
    if order <= 0:
        return
    zone = mem.compact[CC_ZONE]
    limit = max(1, freelist_scan_limit(mem) >> 1)
    scan_start = mem.compact[CC_FREE_PFN] >= mem.zone[zone, Z_INIT_FREE]
    if scan_start:
        limit = PAGEBLOCK_NR_PAGES >> 1
    distance = mem.compact[CC_FREE_PFN] - mem.compact[CC_MIGRATE_PFN]
    low = pageblock_start_pfn(mem.compact[CC_FREE_PFN] - (distance >> 2))
    lowest = pageblock_start_pfn(mem.compact[CC_FREE_PFN] - (distance >> 1))
    found = NO_PFN
    highest = 0
    mem.compact[CC_SEARCH_ORDER] = min(order - 1, mem.compact[CC_SEARCH_ORDER])
    order = min(mem.compact[CC_SEARCH_ORDER], NR_SMALL_ORDERS - 1)
    while found == NO_PFN and order != NIL:
        if mem.nr_free[zone, MIGRATE_MOVABLE, order] > 0:
            record, exact, limit, scanned, top = _search_order(mem, order, limit, low, lowest)
            highest = max(highest, top)
            mem.compact[CC_FREE_SCANNED] += scanned
            if exact:
                mem.compact[CC_FAST_FAIL] = 0
                mem.compact[CC_SEARCH_ORDER] = order
            if record != NIL:
                before = int(mem.rec[record].prev[order])
                list_rotate(mem, zone * NR_TYPES + MIGRATE_MOVABLE, order, before)
                pb = int(mem.rec[record].pb)
                first = lowest_free_block(mem, record, order)
                if not _isolate_free_page(mem, pb, first, order):
                    break
                found = (pb << PAGEBLOCK_ORDER) + first
                mem.compact[CC_FREE_SCANNED] += (1 << order) - 1
            if mem.compact[CC_NR_FREE] >= mem.compact[CC_NR_WANTED]:
                break
            if scanned >= limit:
                limit = max(1, limit >> 1)
        order = _next_search_order(mem, order)
    if found == NO_PFN:
        mem.compact[CC_FAST_FAIL] += 1
        if scan_start:
            if highest >= lowest:
                found = highest
                mem.compact[CC_FREE_PFN] = highest
            elif mem.compact[CC_DIRECT] != 0:
                found = lowest
                mem.compact[CC_FREE_PFN] = lowest
    if highest > 0 and highest >= mem.zone[zone, Z_CACHED_FREE]:
        mem.zone[zone, Z_CACHED_FREE] = highest - PAGEBLOCK_NR_PAGES
    if found != NO_PFN:
        _fast_isolate_around(mem, found)


@kernel
def _fast_isolate_around(mem: Memory, pfn: int) -> None:
    """Take more free blocks of the pageblock that the fast search found."""
    if mem.compact[CC_NR_FREE] >= mem.compact[CC_NR_WANTED]:
        return
    if mem.compact[CC_DIRECT] != 0 and mem.compact[CC_MODE] == COMPACT_ASYNC:
        return
    start = pageblock_start_pfn(pfn)
    end = start + PAGEBLOCK_NR_PAGES
    if end > mem.zone[mem.compact[CC_ZONE], Z_END]:
        return
    at, _ = isolate_freepages_block(mem, start, end, 1)
    if at == end:
        set_pageblock_skip(mem, start >> PAGEBLOCK_ORDER)
