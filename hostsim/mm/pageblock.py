"""Migratetype fallback, and the fragmentation indices.

Which free list a request may take from when its own is empty, and what that does to pageblock
labels: the mechanism by which unmovable pages pollute memory.

Source: Linux v6.1.192 mm/page_alloc.c __rmqueue_fallback, steal_suitable_fallback; v6.12.117
mm/page_alloc.c __rmqueue_claim, __rmqueue_steal; mm/vmstat.c fragmentation_index,
unusable_free_index.
Simplified: a block taken from a pageblock that cannot be claimed leaves its rest on the
foreign lists also in 6.1, which moves the whole block to the requester's lists first.
"""

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.units import (
    MAX_PAGE_ORDER,
    NO_PFN,
    NR_PAGE_ORDERS,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.buddy import (
    FRESH_MAX,
    TAIL,
    add_free_block,
    add_free_pageblocks,
    del_free_pageblocks,
    first_free_pageblock,
    rmqueue_run,
)
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_RESERVE,
    MIGRATE_UNMOVABLE,
    NIL,
    NR_PCP_TYPES,
    NR_SMALL_ORDERS,
    NR_TYPES,
    Z_FREE,
    Memory,
)
from hostsim.mm.physmem import (
    PB_PARTIAL,
    get_pageblock_migratetype,
    pages_free_in,
    set_pageblock_migratetype,
    set_state,
    small_list_del,
)
from hostsim.mm.rmap import movable_pages_in
from hostsim.mm.tunables import FALLBACK_2_6_38, FALLBACK_6_1, FALLBACK_6_12, T_FALLBACK
from hostsim.mm.vmstat import EXTFRAG_EVENTS
from hostsim.mm.watermark import boost_watermark


@inline_kernel
def fallback_type(start_type: int, rank: int) -> int:
    """Return the first or second fallback of a migratetype (mm/page_alloc.c fallbacks[])."""
    if start_type == MIGRATE_RECLAIMABLE:
        return MIGRATE_UNMOVABLE if rank == 0 else MIGRATE_MOVABLE
    if rank == 0:
        return MIGRATE_RECLAIMABLE
    return MIGRATE_MOVABLE if start_type == MIGRATE_UNMOVABLE else MIGRATE_UNMOVABLE


@inline_kernel
def find_suitable_fallback(mem: Memory, zone: int, order: int, start_type: int) -> int:
    """Return the first fallback type with a free block of exactly an order, or NIL."""
    first = fallback_type(start_type, 0)
    if mem.nr_free[zone, first, order] > 0:
        return first
    second = fallback_type(start_type, 1)
    if mem.nr_free[zone, second, order] > 0:
        return second
    return NIL


@inline_kernel
def can_claim(order: int, start_type: int) -> bool:
    """Tell whether a request may claim the pageblock of a free block of an order."""
    return order >= PAGEBLOCK_ORDER // 2 or start_type != MIGRATE_MOVABLE


@kernel
def claim_pageblocks(mem: Memory, zone: int, order: int, old_type: int, new_type: int) -> None:
    """Relabel the block at the head of a list of order 9 or 10 and move it to the new type."""
    pb = first_free_pageblock(mem, zone, old_type, order)
    del_free_pageblocks(mem, pb, zone, old_type, order)
    for i in range(1 << (order - PAGEBLOCK_ORDER)):
        set_pageblock_migratetype(mem, pb + i, new_type)
    add_free_pageblocks(mem, pb, zone, new_type, order, TAIL)


@kernel
def move_freepages_block(mem: Memory, record: int, zone: int, old_type: int, new_type: int) -> None:
    """Move all free blocks of a partial pageblock to the tails of another type's lists."""
    for order in range(NR_SMALL_ORDERS):
        nr = int(mem.rec[record].count[order])
        if nr == 0:
            continue
        small_list_del(mem, record, order)
        mem.nr_free[zone, old_type, order] -= nr
        mem.rec[record].count[order] = 0
        add_free_block(mem, record, zone, new_type, order, TAIL)
        mem.rec[record].count[order] = nr
        mem.rec[record].fresh[order] = min(nr, FRESH_MAX)
        mem.rec[record].burst[order] = min(nr, FRESH_MAX)
        mem.nr_free[zone, new_type, order] += nr - 1
    set_state(mem, int(mem.rec[record].pb), PB_PARTIAL, new_type)


@kernel
def claim_partial(
    mem: Memory, zone: int, order: int, old_type: int, start_type: int, era: int
) -> bool:
    """Try to take over the partial pageblock at the head of a list for another type.

    The label changes when free and compatible pages make up half of the block.  6.1 moves the
    free pages in any case, 6.12 only together with the label.

    Returns
    -------
    bool
        Whether the requester's lists have gained the block's free pages.
    """
    boost_watermark(mem, zone)
    record = int(mem.rec[zone * NR_TYPES + old_type].next[order])
    pb = int(mem.rec[record].pb)
    free = pages_free_in(mem, record)
    movable = movable_pages_in(mem, int(mem.rec[record].ext))
    if start_type == MIGRATE_MOVABLE:
        alike = movable
    elif get_pageblock_migratetype(mem, pb) == MIGRATE_MOVABLE:
        alike = PAGEBLOCK_NR_PAGES - free - movable
    else:
        alike = 0
    claimed = free + alike >= PAGEBLOCK_NR_PAGES // 2
    if era == FALLBACK_6_12 and not claimed:
        return False
    move_freepages_block(mem, record, zone, old_type, start_type)
    if claimed:
        set_pageblock_migratetype(mem, pb, start_type)
    return True


@kernel
def _fallback_6_1(mem: Memory, zone: int, order: int, start_type: int, min_order: int) -> int:
    """Search as 6.1 does; see `rmqueue_fallback`."""
    for current in range(MAX_PAGE_ORDER, min_order - 1, -1):
        old_type = find_suitable_fallback(mem, zone, current, start_type)
        if old_type == NIL:
            continue
        claimable = can_claim(current, start_type)
        if not claimable and start_type == MIGRATE_MOVABLE and current > order:
            return _smallest_foreign(mem, zone, order, start_type)
        if current >= PAGEBLOCK_ORDER:
            claim_pageblocks(mem, zone, current, old_type, start_type)
            return start_type
        if not claimable:
            return old_type
        claim_partial(mem, zone, current, old_type, start_type, FALLBACK_6_1)
        return start_type
    return NIL


@kernel
def _smallest_foreign(mem: Memory, zone: int, order: int, start_type: int) -> int:
    """Return the fallback type that owns the smallest sufficient block, or NIL."""
    for current in range(order, NR_PAGE_ORDERS):
        old_type = find_suitable_fallback(mem, zone, current, start_type)
        if old_type != NIL:
            return old_type
    return NIL


@kernel
def _fallback_6_12(mem: Memory, zone: int, order: int, start_type: int, min_order: int) -> int:
    """Search as 6.12.117 does: claim whole pageblocks first, then steal a single block."""
    for current in range(MAX_PAGE_ORDER, min_order - 1, -1):
        if not can_claim(current, start_type):
            break
        old_type = find_suitable_fallback(mem, zone, current, start_type)
        if old_type == NIL:
            continue
        if current >= PAGEBLOCK_ORDER:
            claim_pageblocks(mem, zone, current, old_type, start_type)
            return start_type
        if claim_partial(mem, zone, current, old_type, start_type, FALLBACK_6_12):
            return start_type
    if min_order > order:
        return NIL
    return _smallest_foreign(mem, zone, order, start_type)


@kernel
def _fallback_2_6_38(mem: Memory, zone: int, order: int, start_type: int) -> int:
    """Search as 2.6.38 does; the reserve comes last."""
    for current in range(MAX_PAGE_ORDER, order - 1, -1):
        old_type = find_suitable_fallback(mem, zone, current, start_type)
        if old_type == NIL:
            continue
        if current >= PAGEBLOCK_ORDER:
            claim_pageblocks(mem, zone, current, old_type, start_type)
            return start_type
        if current < PAGEBLOCK_ORDER // 2 and start_type != MIGRATE_RECLAIMABLE:
            return old_type
        record = int(mem.rec[zone * NR_TYPES + old_type].next[current])
        moved = pages_free_in(mem, record)
        move_freepages_block(mem, record, zone, old_type, start_type)
        if moved >= PAGEBLOCK_NR_PAGES // 2:
            set_pageblock_migratetype(mem, int(mem.rec[record].pb), start_type)
        return start_type
    for current in range(order, NR_PAGE_ORDERS):
        if mem.nr_free[zone, MIGRATE_RESERVE, current] > 0:
            return MIGRATE_RESERVE
    return NIL


@kernel
def rmqueue_fallback(mem: Memory, zone: int, order: int, start_type: int, nofragment: bool) -> int:
    """Make memory of another type available to a request whose own lists are empty.

    Parameters
    ----------
    order, start_type
        The request.
    nofragment
        Only whole pageblocks may be taken (ALLOC_NOFRAGMENT).

    Returns
    -------
    int
        The type on whose lists the request is now to be served, or NIL.
    """
    min_order = PAGEBLOCK_ORDER if nofragment and order < PAGEBLOCK_ORDER else order
    if mem.tunables[T_FALLBACK] == FALLBACK_6_1:
        return _fallback_6_1(mem, zone, order, start_type, min_order)
    if mem.tunables[T_FALLBACK] == FALLBACK_2_6_38:
        return _fallback_2_6_38(mem, zone, order, start_type)
    return _fallback_6_12(mem, zone, order, start_type, min_order)


@hot_kernel
def rmqueue(
    mem: Memory,
    zone: int,
    order: int,
    start_type: int,
    nr: int,
    nofragment: bool,
) -> tuple[int, int]:
    """Take up to ``nr`` frames (order 0) or one block from a zone, with fallback.

    Returns
    -------
    pfn, taken
        As `hostsim.mm.buddy.rmqueue_run`.
    """
    pfn, taken = rmqueue_run(mem, zone, start_type, order, nr)
    if pfn != NO_PFN:
        return pfn, taken
    serve_type = rmqueue_fallback(mem, zone, order, start_type, nofragment)
    if serve_type == NIL:
        return NO_PFN, 0
    mem.vmstat[EXTFRAG_EVENTS] += 1
    if serve_type != start_type and order == 0:
        nr = 1  # the next request searches anew
    return rmqueue_run(mem, zone, serve_type, order, nr)


@kernel
def unusable_free_index(nr_free: NDArray[np.int64], order: int) -> int:
    """Return the share of free memory in blocks smaller than an order, in 1/1000.

    Parameters
    ----------
    nr_free
        Free blocks by order, shape (11,).
    """
    free = 0
    suitable = 0
    for current in range(NR_PAGE_ORDERS):
        free += nr_free[current] << current
        if current >= order:
            suitable += nr_free[current] << (current - order)
    if free == 0:
        return 1000
    return (free - (suitable << order)) * 1000 // free


@kernel
def fragmentation_index(nr_free: NDArray[np.int64], order: int) -> int:
    """Return why an allocation of an order would fail, in 1/1000.

    Toward 0 for lack of memory, toward 1000 because of fragmentation, -1000 if it would not
    fail.
    """
    free = 0
    blocks = 0
    suitable = 0
    for current in range(NR_PAGE_ORDERS):
        blocks += nr_free[current]
        free += nr_free[current] << current
        if current >= order:
            suitable += nr_free[current] << (current - order)
    if blocks == 0:
        return 0
    if suitable > 0:
        return -1000
    return 1000 - (1000 + free * 1000 // (1 << order)) // blocks


@kernel
def fragmentation_index_zone(mem: Memory, zone: int, order: int) -> int:
    """Return why an allocation would fail in a zone: `fragmentation_index`."""
    blocks = 0
    for current in range(NR_PAGE_ORDERS):
        for migratetype in range(NR_PCP_TYPES):
            nr = mem.nr_free[zone, migratetype, current]
            blocks += nr
            if current >= order and nr > 0:
                return -1000
    if blocks == 0:
        return 0
    return 1000 - (1000 + mem.zone[zone, Z_FREE] * 1000 // (1 << order)) // blocks


@kernel
def fragmentation_score(nr_free: NDArray[np.int64]) -> int:
    """Return a zone's external fragmentation for huge pages, 0..100 (mm/compaction.c)."""
    free = 0
    for current in range(NR_PAGE_ORDERS):
        free += nr_free[current] << current
    if free == 0:
        return 0
    suitable = nr_free[PAGEBLOCK_ORDER] + 2 * nr_free[MAX_PAGE_ORDER]
    return (free - (suitable << PAGEBLOCK_ORDER)) * 100 // free
