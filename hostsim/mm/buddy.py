"""The binary buddy allocator over lazily expanded pageblocks.

Source: Linux v6.1 mm/page_alloc.c: __rmqueue_smallest, expand, __free_one_page,
buddy_merge_likely.
"""

from typing import Final

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.units import MAX_PAGE_ORDER, NO_PFN, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.contig import blocks_freed, blocks_taken
from hostsim.mm.mm_types import (
    NIL,
    NR_SMALL_ORDERS,
    NR_TYPES,
    P_CAPTURE,
    P_CAPTURED,
    P_REPORTED_SMALL,
    Z_FREE,
    Z_VIRGIN,
    Z_VIRGIN_END,
    Memory,
)
from hostsim.mm.pb_packed import pb_b
from hostsim.mm.physmem import (
    PB_FREE9,
    PB_FREE10,
    PB_FREE10_TAIL,
    PB_FULL,
    PB_PARTIAL,
    PB_VIRGIN,
    big_head,
    big_list_add,
    big_list_del,
    get_pageblock_migratetype,
    is_free_block,
    list_rotate_one,
    list_type,
    lowest_free_block,
    pageblock_state,
    record_alloc,
    record_free,
    set_frames,
    set_pageblock_migratetype,
    set_reported,
    set_state,
    small_list_add,
    small_list_del,
    virgin_slot,
    zone_of,
)
from hostsim.mm.tunables import FALLBACK_6_12, T_FALLBACK

HEAD: Final = True  # add_free_block(..., at_head): LIFO
TAIL: Final = False  # the block is likely to merge soon
FRESH_MAX: Final = 255


@kernel
def add_free_block(
    mem: Memory, record: int, zone: int, on_type: int, order: int, at_head: bool
) -> None:
    """Count one more free block of an order in a record and place its pageblock on the list."""
    head = zone * NR_TYPES + on_type
    fresh = 1
    burst = 1
    if mem.rec[record].count[order] > 0:
        if at_head and mem.rec[head].next[order] != record:
            small_list_del(mem, record, order)
            small_list_add(mem, record, order, head)
        else:
            fresh = min(int(mem.rec[record].fresh[order]) + 1, FRESH_MAX)
            burst = max(int(mem.rec[record].burst[order]), fresh)
    elif at_head:
        small_list_add(mem, record, order, head)
    else:
        small_list_add(mem, record, order, mem.rec[head].prev[order])
    mem.rec[record].fresh[order] = fresh
    mem.rec[record].burst[order] = burst
    mem.rec[record].count[order] += 1
    mem.nr_free[zone, on_type, order] += 1


@inline_kernel
def del_free_block(mem: Memory, record: int, zone: int, on_type: int, order: int) -> bool:
    """Count one free block of an order less in a record; tell whether only older ones are left."""
    left = int(mem.rec[record].count[order]) - 1
    fresh = int(mem.rec[record].fresh[order]) - 1
    mem.rec[record].count[order] = left
    mem.nr_free[zone, on_type, order] -= 1
    if left == 0:
        small_list_del(mem, record, order)
        return False
    burst = int(mem.rec[record].burst[order])
    mem.rec[record].fresh[order] = fresh if fresh > 0 else min(left, burst)
    return fresh == 0


@kernel
def add_free_pageblocks(
    mem: Memory, pb: int, zone: int, on_type: int, order: int, at_head: bool
) -> None:
    """Put a free block of order 9 or 10 on its list."""
    if order == PAGEBLOCK_ORDER:
        set_state(mem, pb, PB_FREE9, on_type)
    else:
        set_state(mem, pb, PB_FREE10, on_type)
        set_state(mem, pb + 1, PB_FREE10_TAIL, on_type)
    head = big_head(mem, zone, on_type, order)
    big_list_add(mem, pb, head if at_head else pb_b(mem, head))
    mem.nr_free[zone, on_type, order] += 1
    blocks_freed(mem, pb, 1 << (order - PAGEBLOCK_ORDER))


@hot_kernel
def del_free_pageblocks(mem: Memory, pb: int, zone: int, on_type: int, order: int) -> None:
    """Take a block of order 9 or 10 off its list; a virgin one only at its region's low end."""
    mem.nr_free[zone, on_type, order] -= 1
    blocks_taken(mem, pb, 1 << (order - PAGEBLOCK_ORDER))
    if pageblock_state(mem, pb) != PB_VIRGIN:
        big_list_del(mem, pb)
        return
    mem.zone[zone, Z_VIRGIN] += 2
    if mem.zone[zone, Z_VIRGIN] == mem.zone[zone, Z_VIRGIN_END]:
        big_list_del(mem, virgin_slot(mem, zone))


@hot_kernel
def first_free_pageblock(mem: Memory, zone: int, on_type: int, order: int) -> int:
    """Return the pageblock at the head of a list of order 9 or 10, or NIL."""
    head = big_head(mem, zone, on_type, order)
    pb = int(mem.pb[head].a)
    if pb == head:
        return NIL
    if pb == virgin_slot(mem, zone):
        return mem.zone[zone, Z_VIRGIN]
    return pb


@kernel
def take_pageblock(mem: Memory, pb: int, zone: int, on_type: int, nr: int) -> None:
    """Hand out the first ``nr`` (1..512) frames of an unlisted free pageblock.

    The rest goes back to the heads of the lists as `expand` leaves it.
    """
    if nr == PAGEBLOCK_NR_PAGES:
        set_state(mem, pb, PB_FULL, on_type)
        mem.pb[pb].a = NIL
        return
    record = record_alloc(mem, pb, NIL)
    set_state(mem, pb, PB_PARTIAL, on_type)
    set_frames(mem, record, nr, PAGEBLOCK_NR_PAGES - nr, True)
    list_rest(mem, record, zone, on_type, PAGEBLOCK_ORDER, nr)


@kernel
def list_rest(mem: Memory, record: int, zone: int, on_type: int, order: int, nr: int) -> None:
    """Put what is left of a free block of an order after its first ``nr`` frames on its lists."""
    while nr < 1 << order:
        piece = 0
        while nr & (1 << piece) == 0:
            piece += 1
        add_free_block(mem, record, zone, on_type, piece, HEAD)
        nr += 1 << piece


@kernel
def rmqueue_run(mem: Memory, zone: int, on_type: int, order: int, nr: int) -> tuple[int, int]:
    """Take the block that an allocation of ``order`` gets and hand out its first frames.

    The block is the head of the shortest sufficient list of one type.  With ``order`` 0, up to
    ``nr`` frames of it are handed out: the same frames, in the same order, with the same lists
    left behind, as that many single allocations, because a split block is used up before any
    other.  Larger orders hand out exactly one block.

    Returns
    -------
    pfn
        First frame, or NO_PFN if no list of the type has a sufficient block.
    taken
        Frames handed out, ascending from ``pfn``; they never cross a pageblock, but for the
        two of an order-10 block.
    """
    blocks = mem.nr_free[zone, on_type]
    for current in range(order, NR_SMALL_ORDERS):
        if blocks[current] == 0:
            continue
        record = int(mem.rec[zone * NR_TYPES + on_type].next[current])
        first = lowest_free_block(mem, record, current)
        taken = min(nr, 1 << current) if order == 0 else 1 << order
        if del_free_block(mem, record, zone, on_type, current):
            list_rotate_one(mem, record, current, zone * NR_TYPES + on_type)
        set_frames(mem, record, first, taken, False)
        list_rest(mem, record, zone, on_type, current, taken)
        pb = int(mem.rec[record].pb)
        mem.zone[zone, Z_FREE] -= taken
        _drop_if_full(mem, record, pb)
        return (pb << PAGEBLOCK_ORDER) + first, taken
    for current in range(max(order, PAGEBLOCK_ORDER), MAX_PAGE_ORDER + 1):
        if blocks[current] == 0:
            continue
        pb = first_free_pageblock(mem, zone, on_type, current)
        del_free_pageblocks(mem, pb, zone, on_type, current)
        taken = min(nr, 1 << current) if order == 0 else 1 << order
        take_pageblock(mem, pb, zone, on_type, min(taken, PAGEBLOCK_NR_PAGES))
        if taken > PAGEBLOCK_NR_PAGES:
            take_pageblock(mem, pb + 1, zone, on_type, taken - PAGEBLOCK_NR_PAGES)
        elif current == MAX_PAGE_ORDER:
            add_free_pageblocks(mem, pb + 1, zone, on_type, PAGEBLOCK_ORDER, HEAD)
        mem.zone[zone, Z_FREE] -= taken
        return pb << PAGEBLOCK_ORDER, taken
    return NO_PFN, 0


@inline_kernel
def _drop_if_full(mem: Memory, record: int, pb: int) -> None:
    """Turn a partial pageblock without free frames into a full one."""
    for order in range(NR_SMALL_ORDERS):
        if mem.rec[record].count[order] != 0:
            return
    extents = mem.rec[record].ext
    record_free(mem, record)
    set_state(mem, pb, PB_FULL, get_pageblock_migratetype(mem, pb))
    mem.pb[pb].a = extents


@kernel
def take_free_block(mem: Memory, pb: int, first: int, order: int) -> None:
    """Take one free block of a partial pageblock, not necessarily the next one to be handed out."""
    record = int(mem.pb[pb].a)
    zone = zone_of(mem, pb << PAGEBLOCK_ORDER)
    del_free_block(mem, record, zone, list_type(mem, pb), order)
    set_frames(mem, record, first, 1 << order, False)
    mem.zone[zone, Z_FREE] -= 1 << order
    _drop_if_full(mem, record, pb)


@kernel
def free_run(mem: Memory, pfn: int, nr: int, descending: bool) -> None:
    """Free ``nr`` frames of one pageblock, one after the other, ascending or descending.

    Leaves exactly what that many single frees leave: the run is cut into the largest aligned
    chunks, and each chunk also moves its pageblock to the head of the lists on which its
    halves would have stood for a moment.
    """
    pb = pfn >> PAGEBLOCK_ORDER
    if nr == PAGEBLOCK_NR_PAGES:
        free_huge(mem, pb)
        return
    zone = zone_of(mem, pfn)
    first = pfn & (PAGEBLOCK_NR_PAGES - 1)
    record = _record_of(mem, pb)
    on_type = list_type(mem, pb)
    mem.zone[zone, Z_FREE] += nr
    end = first + nr
    while first < end:
        order = 0
        edge = end if descending else first
        while edge & (1 << order) == 0 and end - first >= 2 << order:
            order += 1
        chunk = first
        if descending:
            end -= 1 << order
            chunk = end
        else:
            first += 1 << order
        _free_chunk(mem, record, zone, on_type, chunk, order)


@kernel
def free_block(mem: Memory, pfn: int, order: int) -> None:
    """Free one block of an order up to 9."""
    pb = pfn >> PAGEBLOCK_ORDER
    if order == PAGEBLOCK_ORDER:
        free_huge(mem, pb)
        return
    record = _record_of(mem, pb)
    zone = zone_of(mem, pfn)
    mem.zone[zone, Z_FREE] += 1 << order
    _merge(mem, record, zone, list_type(mem, pb), pfn & (PAGEBLOCK_NR_PAGES - 1), order)


@inline_kernel
def _record_of(mem: Memory, pb: int) -> int:
    """Return the record of a pageblock of small pages, giving it one if it was full."""
    if pageblock_state(mem, pb) == PB_FULL:
        record = record_alloc(mem, pb, int(mem.pb[pb].a))
        set_state(mem, pb, PB_PARTIAL, get_pageblock_migratetype(mem, pb))
        return record
    return int(mem.pb[pb].a)


@hot_kernel
def _free_chunk(mem: Memory, record: int, zone: int, on_type: int, first: int, order: int) -> None:
    """Free an aligned chunk of used frames as single frees would, and merge it."""
    head = zone * NR_TYPES + on_type
    for half in range(order):
        if mem.rec[record].count[half] == 0:
            continue
        likely = half == order - 1 and is_free_block(mem, record, first ^ (1 << order), order)
        if likely or mem.rec[head].next[half] == record:
            fresh = min(int(mem.rec[record].fresh[half]) + 1, FRESH_MAX)
            mem.rec[record].burst[half] = max(int(mem.rec[record].burst[half]), fresh)
            continue
        small_list_del(mem, record, half)
        small_list_add(mem, record, half, head)
        mem.rec[record].fresh[half] = 1
        mem.rec[record].burst[half] = 1 if half == order - 1 else 2
    _merge(mem, record, zone, on_type, first, order)


@hot_kernel
def _merge(mem: Memory, record: int, zone: int, on_type: int, first: int, order: int) -> None:
    """Mark a used block free, merge it with its buddies and list the result."""
    set_frames(mem, record, first, 1 << order, True)
    while order < PAGEBLOCK_ORDER:
        buddy = first ^ (1 << order)
        if not is_free_block(mem, record, buddy, order):
            break
        del_free_block(mem, record, zone, on_type, order)
        if mem.pool[P_REPORTED_SMALL] != 0:
            set_reported(mem, int(mem.rec[record].pb), buddy, False)
        first = min(first, buddy)
        order += 1
    if order == PAGEBLOCK_ORDER:
        pb = int(mem.rec[record].pb)
        record_free(mem, record)
        free_pageblock(mem, pb)
        return
    if order < PAGEBLOCK_ORDER - 1:
        parent_buddy = (first & ~((2 << order) - 1)) ^ (2 << order)
        merge_likely = is_free_block(mem, record, parent_buddy, order + 1)
    else:
        merge_likely = _free9(mem, int(mem.rec[record].pb) ^ 1)
    add_free_block(mem, record, zone, on_type, order, TAIL if merge_likely else HEAD)


@inline_kernel
def _free9(mem: Memory, pb: int) -> bool:
    """Tell whether a pageblock is a free block of exactly order 9."""
    return pageblock_state(mem, pb) == PB_FREE9


@kernel
def free_pageblock(mem: Memory, pb: int) -> None:
    """List a pageblock whose frames are all free, merged with its buddy if that is free too.

    The frames are already counted in the zone's free pages.  Since 6.10 the buddy takes over the
    label, so that splitting the block again leaves both halves on the lists of their labels
    ("mm: page_alloc: fix up block types when merging compatible blocks").  A direct compactor
    that waits for a huge page of the zone captures the pageblock instead (compaction_capture).
    """
    zone = zone_of(mem, pb << PAGEBLOCK_ORDER)
    on_type = get_pageblock_migratetype(mem, pb)
    if mem.pool[P_CAPTURE] == zone + 1:
        mem.pool[P_CAPTURE] = 0
        mem.pool[P_CAPTURED] = pb + 1
        mem.zone[zone, Z_FREE] -= PAGEBLOCK_NR_PAGES
        set_state(mem, pb, PB_FULL, on_type)
        mem.pb[pb].a = NIL
        return
    buddy = pb ^ 1
    if _free9(mem, buddy):
        del_free_pageblocks(mem, buddy, zone, list_type(mem, buddy), PAGEBLOCK_ORDER)
        if (
            mem.tunables[T_FALLBACK] == FALLBACK_6_12
            and get_pageblock_migratetype(mem, buddy) != on_type
        ):
            set_pageblock_migratetype(mem, buddy, on_type)
        add_free_pageblocks(mem, pb & ~1, zone, on_type, MAX_PAGE_ORDER, HEAD)
    else:
        add_free_pageblocks(mem, pb, zone, on_type, PAGEBLOCK_ORDER, HEAD)


@hot_kernel
def free_huge(mem: Memory, pb: int) -> None:
    """Free a block of order 9 that is in use as a whole."""
    zone = zone_of(mem, pb << PAGEBLOCK_ORDER)
    mem.zone[zone, Z_FREE] += PAGEBLOCK_NR_PAGES
    free_pageblock(mem, pb)
