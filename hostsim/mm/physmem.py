"""Physical memory: zones, and pageblocks that are expanded to frames only where partly used.

A 2 MiB pageblock is free, wholly owned, or *partial*; only a partial one has a record with a
bitmap of its 512 frames.  Linux always merges free buddies, so the free blocks of orders 0..8
inside a pageblock are the canonical decomposition of that bitmap and need not be stored; the
free lists link pageblocks: one list per zone, migratetype and order of the partial pageblocks
that hold at least one free block of exactly that order.  Orders 9 and 10 link free pageblocks.

Source: Linux include/linux/mmzone.h (struct zone, struct free_area), v6.1.
Simplified: Linux's lists are of blocks, these are of pageblocks.  A pageblock that gets a free
block leads the list; as many blocks as it got since then are taken first, lowest address first;
then it goes to the list's end, and its older ones are taken in bursts of the same length.
Simplified: all free pages of a partial pageblock stand on the lists of one migratetype.
Simplified: a host's frames are numbered without the PCI hole below 4 GiB.
"""

from typing import Final

import numpy as np

from hostsim.core.bits import lowest_bit, run_mask
from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.units import PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import (
    BIG_HEADS_PER_ZONE,
    MIGRATE_MOVABLE,
    NIL,
    NR_SMALL_ORDERS,
    NR_TYPES,
    NR_WORDS,
    P_NODE_PAGES,
    P_PAGEBLOCKS,
    P_REC_FREE,
    P_REC_LIVE,
    P_REC_USED,
    P_REPORTED_SMALL,
    WORD_FRAMES,
    Z_CACHED_FREE,
    Z_CACHED_MIGRATE,
    Z_END,
    Z_FREE,
    Z_LABEL,
    Z_START,
    Z_VIRGIN,
    Z_VIRGIN_END,
    ZONE_DMA,
    ZONE_DMA32,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.pb_packed import (
    LABEL_SHIFT,
    LIST_BITS,
    LIST_SHIFT,
    STATE_MASK,
    TYPE_MASK,
    pb_b,
    set_pb_b,
)

DMA_END_PFN: Final = 1 << 12  # 16 MiB, arch/x86/include/asm/dma.h MAX_DMA_PFN
DMA32_END_PFN: Final = 1 << 20  # 4 GiB, MAX_DMA32_PFN

# What a pageblock is.  Zero, the state of memory never used, is free and listed implicitly.
PB_VIRGIN: Final = 0  # free, half of an order-10 block in its zone's virgin region
PB_FREE9: Final = 1  # free block of order 9
PB_FREE10: Final = 2  # first half of a free block of order 10
PB_FREE10_TAIL: Final = 3  # second half of it
PB_HUGE: Final = 4  # one huge page, mapped by one PMD: a = mm, b = window
PB_COMPOUND: Final = 5  # one huge page mapped otherwise: a = extents, b = COMPOUND_* flags
PB_FULL: Final = 6  # 512 small pages in use: a = extents; folded: a = FOLDED - mm, b = window
PB_PARTIAL: Final = 7  # some frames free: a = record
PB_RESERVED: Final = 8  # not managed: kernel image, struct pages, firmware
PB_PCP: Final = 9  # one free huge page on a per-CPU list
PB_HUGETLB: Final = 10  # part of a hugetlb page: a = mm, b = window; free: NIL and next + 1

PB_REPORTED: Final = 64  # in a state: a free block of order 9 or 10 that the host knows of

FULL_WORD: Final = (1 << WORD_FRAMES) - 1


def zone_spans(
    nr_pages: int, dma32_end: int = DMA32_END_PFN, nr_nodes: int = 1
) -> list[tuple[int, int]]:
    """Return first and end pfn of each zone of a machine with that many frames.

    Nodes are of equal size; node 0 has the zones DMA, DMA32 and Normal, the others are Normal.
    """
    node_pages = nr_pages // nr_nodes
    ends = [min(node_pages, DMA_END_PFN), min(node_pages, dma32_end)]
    ends += [(nid + 1) * node_pages for nid in range(nr_nodes)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


@kernel
def init_lists(mem: Memory) -> None:
    """Make every list empty but the movable order-10 lists, which hold the virgin regions.

    Whole order-10 blocks form each zone's virgin region, which stands on the movable list as
    one node and is taken from its low end: Linux frees boot memory to the tails of its lists in
    ascending order (mm/page_alloc.c, __free_pages_core, v5.10 and later).
    """
    nr_pageblocks = mem.pool[P_PAGEBLOCKS]
    nr_heads = len(mem.zone) * NR_TYPES
    for head in range(nr_heads):
        mem.rec[head].pb = NIL
        for order in range(NR_SMALL_ORDERS):
            mem.rec[head].next[order] = head
            mem.rec[head].prev[order] = head
    for slot in range(nr_pageblocks, mem.pb.size):
        mem.pb[slot].a = slot
        set_pb_b(mem, slot, slot)
    mem.pool[P_REC_USED] = nr_heads
    mem.pool[P_REC_FREE] = 0
    for zone in range(len(mem.zone)):
        first = mem.zone[zone, Z_START] >> PAGEBLOCK_ORDER
        end = mem.zone[zone, Z_END] >> PAGEBLOCK_ORDER
        mem.zone[zone, Z_VIRGIN] = first
        mem.zone[zone, Z_VIRGIN_END] = end
        mem.zone[zone, Z_FREE] = (end - first) << PAGEBLOCK_ORDER
        mem.zone[zone, Z_CACHED_MIGRATE] = first << PAGEBLOCK_ORDER
        mem.zone[zone, Z_CACHED_MIGRATE + 1] = first << PAGEBLOCK_ORDER
        mem.zone[zone, Z_CACHED_FREE] = (end - 1) << PAGEBLOCK_ORDER
        if end > first:
            big_list_add_tail(mem, virgin_slot(mem, zone), zone, MIGRATE_MOVABLE, 10)
            mem.nr_free[zone, MIGRATE_MOVABLE, 10] = (end - first) >> 1


@inline_kernel
def pageblock_state(mem: Memory, pb: int) -> int:
    """Return the PB_* state of a pageblock."""
    return mem.pb[pb].packed & STATE_MASK


@inline_kernel
def list_type(mem: Memory, pb: int) -> int:
    """Return the migratetype of the lists on which a free or partial pageblock stands."""
    return ((mem.pb[pb].packed >> LIST_SHIFT) & TYPE_MASK) ^ MIGRATE_MOVABLE


@inline_kernel
def set_state(mem: Memory, pb: int, state: int, on_type: int) -> None:
    """Set a pageblock's state and list type; a free block's PB_REPORTED is lost."""
    flags = state | ((on_type ^ MIGRATE_MOVABLE) << LIST_SHIFT)
    mem.pb[pb].packed = (mem.pb[pb].packed & ~LIST_BITS) | flags


@inline_kernel
def get_pageblock_migratetype(mem: Memory, pb: int) -> int:
    """Return the label of a pageblock."""
    return ((mem.pb[pb].packed >> LABEL_SHIFT) & TYPE_MASK) ^ MIGRATE_MOVABLE


@kernel
def set_pageblock_migratetype(mem: Memory, pb: int, migratetype: int) -> None:
    """Relabel a pageblock and keep the counts of labels."""
    zone = zone_of(mem, pb << PAGEBLOCK_ORDER)
    mem.zone[zone, Z_LABEL + get_pageblock_migratetype(mem, pb)] -= 1
    mem.zone[zone, Z_LABEL + migratetype] += 1
    rest = mem.pb[pb].packed & ~(TYPE_MASK << LABEL_SHIFT)
    mem.pb[pb].packed = rest | ((migratetype ^ MIGRATE_MOVABLE) << LABEL_SHIFT)


@inline_kernel
def pfn_to_nid(mem: Memory, pfn: int) -> int:
    """Return the node of a frame."""
    return 0 if len(mem.node) == 1 else pfn // mem.pool[P_NODE_PAGES]


@inline_kernel
def zone_idx(zone: int) -> int:
    """Return which zone of its node a zone is: ZONE_DMA, ZONE_DMA32 or ZONE_NORMAL."""
    return min(zone, ZONE_NORMAL)


@inline_kernel
def zone_to_nid(zone: int) -> int:
    """Return the node of a zone."""
    return max(zone - ZONE_NORMAL, 0)


@inline_kernel
def first_zone(nid: int) -> int:
    """Return the lowest zone of a node; its highest is ``ZONE_NORMAL + nid``."""
    return ZONE_DMA if nid == 0 else ZONE_NORMAL + nid


@inline_kernel
def zone_of(mem: Memory, pfn: int) -> int:
    """Return the zone of a frame."""
    if pfn >= mem.zone[ZONE_NORMAL, Z_START]:
        return ZONE_NORMAL + pfn_to_nid(mem, pfn)
    if pfn >= mem.zone[ZONE_DMA32, Z_START]:
        return ZONE_DMA32
    return ZONE_DMA


@inline_kernel
def virgin_slot(mem: Memory, zone: int) -> int:
    """Return the link slot that stands for a zone's virgin region."""
    return mem.pool[P_PAGEBLOCKS] + len(mem.zone) * BIG_HEADS_PER_ZONE + zone


@inline_kernel
def big_head(mem: Memory, zone: int, migratetype: int, order: int) -> int:
    """Return the list head of order 9 or 10."""
    return mem.pool[P_PAGEBLOCKS] + (zone * NR_TYPES + migratetype) * 2 + (order - PAGEBLOCK_ORDER)


@inline_kernel
def big_list_add(mem: Memory, slot: int, before: int) -> None:
    """Link a slot behind another one (a head: at the list's front)."""
    after = mem.pb[before].a
    mem.pb[slot].a = after
    set_pb_b(mem, slot, before)
    set_pb_b(mem, after, slot)
    mem.pb[before].a = slot


@kernel
def big_list_add_tail(mem: Memory, slot: int, zone: int, migratetype: int, order: int) -> None:
    """Link a slot at the end of a list of order 9 or 10."""
    head = big_head(mem, zone, migratetype, order)
    big_list_add(mem, slot, pb_b(mem, head))


@inline_kernel
def big_list_del(mem: Memory, slot: int) -> None:
    """Unlink a slot from its list of order 9 or 10."""
    before = pb_b(mem, slot)
    mem.pb[before].a = mem.pb[slot].a
    set_pb_b(mem, int(mem.pb[slot].a), before)


@inline_kernel
def small_list_add(mem: Memory, record: int, order: int, before: int) -> None:
    """Link a record behind another one on the list of an order."""
    after = mem.rec[before].next[order]
    mem.rec[record].next[order] = after
    mem.rec[record].prev[order] = before
    mem.rec[after].prev[order] = record
    mem.rec[before].next[order] = record


@inline_kernel
def small_list_del(mem: Memory, record: int, order: int) -> None:
    """Unlink a record from its list of an order."""
    mem.rec[mem.rec[record].prev[order]].next[order] = mem.rec[record].next[order]
    mem.rec[mem.rec[record].next[order]].prev[order] = mem.rec[record].prev[order]


@kernel
def list_rotate(mem: Memory, head: int, order: int, last: int) -> None:
    """Turn the list of an order so that it ends with one of its records (or not, if the head)."""
    if last == head:
        return
    small_list_del(mem, head, order)
    small_list_add(mem, head, order, last)


@inline_kernel
def list_rotate_one(mem: Memory, record: int, order: int, head: int) -> None:
    """Move a record to the end of the list of an order."""
    small_list_del(mem, record, order)
    small_list_add(mem, record, order, mem.rec[head].prev[order])


@kernel
def record_alloc(mem: Memory, pb: int, extents: int) -> int:
    """Give a pageblock a record whose frames are all in use; return it."""
    record = mem.pool[P_REC_FREE] - 1
    if record != NIL:
        mem.pool[P_REC_FREE] = mem.rec[record].pb + 1
    else:
        record = mem.pool[P_REC_USED]
        mem.pool[P_REC_USED] += 1
    mem.pool[P_REC_LIVE] += 1
    mem.rec[record].pb = pb
    mem.rec[record].ext = extents
    for word in range(NR_WORDS):
        mem.rec[record].bits[word] = 0
    for order in range(NR_SMALL_ORDERS):
        mem.rec[record].count[order] = 0
    mem.pb[pb].a = record
    return record


@kernel
def record_free(mem: Memory, record: int) -> None:
    """Return a record to the pool."""
    mem.rec[record].pb = mem.pool[P_REC_FREE] - 1
    mem.pool[P_REC_FREE] = record + 1
    mem.pool[P_REC_LIVE] -= 1


@inline_kernel
def set_reported(mem: Memory, pb: int, first: int, reported: bool) -> None:
    """Mark the free block that begins at a frame (0..511) of a partial pageblock (PageReported)."""
    word = first // WORD_FRAMES
    bit = 1 << (first % WORD_FRAMES)
    value = int(np.int64(mem.reported[pb].bits[word]))
    mem.reported[pb].bits[word] = (value | bit) if reported else (value & ~bit)


@kernel
def _forget_reported(mem: Memory, pb: int, first: int, nr: int, free: bool) -> None:
    """Note that frames of a pageblock become free or used: what may be reported has changed."""
    mem.reported[pb].done = 0
    if free:
        return
    while nr > 0:
        word = first // WORD_FRAMES
        shift = first % WORD_FRAMES
        here = min(nr, WORD_FRAMES - shift)
        mask = run_mask(shift, here)
        mem.reported[pb].bits[word] = int(np.int64(mem.reported[pb].bits[word])) & ~mask
        first += here
        nr -= here


@hot_kernel
def set_frames(mem: Memory, record: int, first: int, nr: int, free: bool) -> None:
    """Mark frames ``first .. first + nr - 1`` of a record free or used.

    What is used is reported no longer (del_page_from_free_list clears PageReported).
    """
    if mem.pool[P_REPORTED_SMALL] != 0:
        _forget_reported(mem, int(mem.rec[record].pb), first, nr, free)
    while nr > 0:
        word = first // WORD_FRAMES
        shift = first % WORD_FRAMES
        here = min(nr, WORD_FRAMES - shift)
        mask = run_mask(shift, here)
        value = int(np.int64(mem.rec[record].bits[word]))
        mem.rec[record].bits[word] = (value | mask) if free else (value & ~mask)
        first += here
        nr -= here


@hot_kernel
def is_free_block(mem: Memory, record: int, first: int, order: int) -> bool:
    """Tell whether all ``2**order`` frames from ``first`` are free."""
    if order < 5:
        value = int(np.int64(mem.rec[record].bits[first // WORD_FRAMES])) >> (first % WORD_FRAMES)
        mask = (1 << (1 << order)) - 1
        return (value & mask) == mask
    word = first // WORD_FRAMES
    for i in range(word, word + (1 << (order - 5))):
        if mem.rec[record].bits[i] != FULL_WORD:
            return False
    return True


@inline_kernel
def _fold(value: int, order: int) -> int:
    """Return a word with a 1 where an aligned free block of ``2**order`` frames begins.

    A word is one of a record's bitmap, or two of them together.
    """
    if order >= 1:
        value = value & (value >> 1) & 0x5555555555555555
    if order >= 2:
        value = value & (value >> 2) & 0x1111111111111111
    if order >= 3:
        value = value & (value >> 4) & 0x0101010101010101
    if order >= 4:
        value = value & (value >> 8) & 0x0001000100010001
    if order >= 5:
        value = value & (value >> 16) & 0x0000000100000001
    return value


@inline_kernel
def exact_blocks(value: int, order: int) -> int:
    """Return a word with a 1 where a free block of exactly an order below 5 begins."""
    starts = _fold(value, order)
    larger = _fold(value, order + 1)
    return starts & ~(larger | (larger << (1 << order)))


@hot_kernel
def lowest_free_block(mem: Memory, record: int, order: int) -> int:
    """Return the first frame (0..511) of the lowest free block of exactly an order, or NIL."""
    if order < 5:
        for word in range(0, NR_WORDS, 2):  # two at a time
            low = int(np.int64(mem.rec[record].bits[word]))
            high = int(np.int64(mem.rec[record].bits[word + 1]))
            exact = exact_blocks(low | (high << WORD_FRAMES), order)
            if exact != 0:
                return word * WORD_FRAMES + lowest_bit(exact)
        return NIL
    step = 1 << order
    for first in range(0, PAGEBLOCK_NR_PAGES, step):
        if is_free_block(mem, record, first, order) and not is_free_block(
            mem, record, first ^ step, order
        ):
            return first
    return NIL


@kernel
def free_block_order(mem: Memory, record: int, first: int) -> int:
    """Return the order of the free block that begins at a frame (0..511), or NIL if none does."""
    if not is_free_block(mem, record, first, 0):
        return NIL
    order = 0
    while order < NR_SMALL_ORDERS - 1 and first & (1 << order) == 0:
        if not is_free_block(mem, record, first, order + 1):
            return order
        order += 1
    if order < NR_SMALL_ORDERS - 1 and is_free_block(mem, record, first ^ (1 << order), order):
        return NIL
    return order


@kernel
def pages_free_in(mem: Memory, record: int) -> int:
    """Return the number of free frames of a partial pageblock."""
    nr = 0
    for order in range(NR_SMALL_ORDERS):
        nr += int(mem.rec[record].count[order]) << order
    return nr
