"""Free page reporting: a guest tells its host, pass by pass, of free blocks that it does not need.

A pass walks the free lists from the lowest order that is reported.  Blocks not yet reported are
sent in batches and go to their list's tail, flagged, until they are allocated, split or merged.

Source: Linux v6.1 mm/page_reporting.c (page_reporting_process_zone, page_reporting_cycle,
page_reporting_drain), mm/page_alloc.c (__isolate_free_page, del_page_from_free_list);
include/linux/page_reporting.h.
Simplified: nothing else happens in the guest while a pass is under way.
Simplified: memory never used is not reported, as the host has nothing of it to take back.
Simplified: the blocks of an order in a partial pageblock go to the list's tail together, once all
of them are reported.
Simplified: a pass is made whenever the delay has gone by; Linux waits for a free of that order.
"""

from typing import Final

from hostsim.core.bits import lowest_bit
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import MAX_PAGE_ORDER, NR_PAGE_ORDERS, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.buddy import FRESH_MAX, TAIL, add_free_pageblocks, del_free_pageblocks
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    NR_PCP_TYPES,
    NR_TYPES,
    NR_WORDS,
    P_REPORTED_SMALL,
    WORD_FRAMES,
    Z_FREE,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
    Memory,
)
from hostsim.mm.pageblock import move_freepages_block
from hostsim.mm.pb_packed import pb_b
from hostsim.mm.physmem import (
    PB_REPORTED,
    big_head,
    big_list_add,
    big_list_del,
    exact_blocks,
    get_pageblock_migratetype,
    is_free_block,
    list_rotate,
    list_rotate_one,
    set_pageblock_migratetype,
    set_reported,
    virgin_slot,
)
from hostsim.mm.tunables import FALLBACK_6_12, T_FALLBACK

REPORTING_CAPACITY: Final = 32  # blocks a batch: PAGE_REPORTING_CAPACITY
BUDGET_SHARE: Final = REPORTING_CAPACITY * 16  # blocks of a list for one batch of its budget

# What a pass leaves in Memory.scratch
R_BLOCKS: Final = 0  # blocks sent, rows of `touched`: first frame, pages
R_BATCHES: Final = 1
R_AGAIN: Final = 2  # 1: a list's budget was spent, another pass is asked for
R_HELD: Final = 3  # blocks of the batch that is being filled,
R_HELD_PAGES: Final = 4  # and their pages
R_BUDGET: Final = 5  # batches that the list under way may still send
R_WALKED: Final = 6  # + list: blocks looked at under the zone's lock
NR_R_FIELDS: Final = R_WALKED + 4 * NR_TYPES * NR_PAGE_ORDERS


@inline_kernel
def list_number(zone: int, migratetype: int, order: int) -> int:
    """Return the number of a free list among those of zones up to 3."""
    return (zone * NR_TYPES + migratetype) * NR_PAGE_ORDERS + order


@kernel
def _send(mem: Memory) -> None:
    """Send the batch; the device reads it from the block isolated last."""
    held = mem.scratch[R_HELD]
    if held == 0:
        return
    low = mem.scratch[R_BLOCKS] - held
    high = mem.scratch[R_BLOCKS] - 1
    while low < high:
        for column in range(2):
            value = mem.touched[low, column]
            mem.touched[low, column] = mem.touched[high, column]
            mem.touched[high, column] = value
        low += 1
        high -= 1
    mem.scratch[R_BATCHES] += 1
    mem.scratch[R_HELD] = 0
    mem.scratch[R_HELD_PAGES] = 0


@kernel
def _isolate(mem: Memory, zone: int, pfn: int, order: int) -> bool:
    """Add a block to the batch; return whether budget and watermark let it."""
    if mem.scratch[R_BUDGET] >= 0 and mem.scratch[R_HELD] == REPORTING_CAPACITY:
        _send(mem)
        mem.scratch[R_BUDGET] -= 1
    nr = mem.scratch[R_BLOCKS]
    if mem.scratch[R_BUDGET] < 0 or nr == mem.touched.shape[0]:
        mem.scratch[R_AGAIN] = 1
        return False
    free = mem.zone[zone, Z_FREE] - mem.scratch[R_HELD_PAGES]
    if free <= mem.zone[zone, Z_WMARK_MIN] + (1 << order):
        return False
    mem.touched[nr, 0] = pfn
    mem.touched[nr, 1] = 1 << order
    mem.scratch[R_BLOCKS] = nr + 1
    mem.scratch[R_HELD] += 1
    mem.scratch[R_HELD_PAGES] += 1 << order
    return True


@kernel
def _report_in(mem: Memory, zone: int, record: int, order: int) -> bool:
    """Report the blocks of an order in a partial pageblock; return whether all are reported."""
    pb = int(mem.rec[record].pb)
    if order >= 5:
        step = 1 << order
        for first in range(0, PAGEBLOCK_NR_PAGES, step):
            if not is_free_block(mem, record, first, order):
                continue
            if is_free_block(mem, record, first ^ step, order):
                continue
            word = int(mem.reported[pb].bits[first // WORD_FRAMES])
            if (word >> (first % WORD_FRAMES)) & 1 != 0:
                continue
            if not _isolate(mem, zone, (pb << PAGEBLOCK_ORDER) + first, order):
                return False
            set_reported(mem, pb, first, True)
        return True
    for word in range(NR_WORDS):
        value = int(mem.rec[record].bits[word])
        if value == 0:
            continue
        left = exact_blocks(value, order) & ~int(mem.reported[pb].bits[word])
        while left != 0:
            first = word * WORD_FRAMES + lowest_bit(left)
            if not _isolate(mem, zone, (pb << PAGEBLOCK_ORDER) + first, order):
                return False
            set_reported(mem, pb, first, True)
            left &= left - 1
    return True


@kernel
def _make_movable(mem: Memory, zone: int, record: int, migratetype: int) -> None:
    """Relabel a pageblock of which half was isolated (__isolate_free_page)."""
    pb = int(mem.rec[record].pb)
    label = get_pageblock_migratetype(mem, pb)
    if label == MIGRATE_MOVABLE or label >= NR_PCP_TYPES:
        return
    if mem.tunables[T_FALLBACK] == FALLBACK_6_12:
        move_freepages_block(mem, record, zone, migratetype, MIGRATE_MOVABLE)
    set_pageblock_migratetype(mem, pb, MIGRATE_MOVABLE)


@kernel
def _to_tail(mem: Memory, zone: int, record: int, migratetype: int, order: int) -> None:
    """Put a pageblock whose blocks of an order were all reported at its list's end."""
    count = min(int(mem.rec[record].count[order]), FRESH_MAX)
    mem.rec[record].fresh[order] = count
    mem.rec[record].burst[order] = count
    list_rotate_one(mem, record, order, zone * NR_TYPES + migratetype)
    if order == PAGEBLOCK_ORDER - 1:
        _make_movable(mem, zone, record, migratetype)


@kernel
def _cycle_small(mem: Memory, zone: int, migratetype: int, order: int) -> int:
    """Report the blocks of a list of an order below 9; return how many were looked at."""
    head = zone * NR_TYPES + migratetype
    record = int(mem.rec[head].next[order])
    walked = 0
    while record != head:
        walked += int(mem.rec[record].count[order])
        pb = int(mem.rec[record].pb)
        after = int(mem.rec[record].next[order])
        if int(mem.reported[pb].done) & (1 << order) == 0:
            sent = mem.scratch[R_BLOCKS]
            if not _report_in(mem, zone, record, order):
                list_rotate(mem, head, order, int(mem.rec[record].prev[order]))
                return walked
            mem.reported[pb].done = int(mem.reported[pb].done) | (1 << order)
            if mem.scratch[R_BLOCKS] > sent:
                _to_tail(mem, zone, record, migratetype, order)
        record = after
    return walked


@kernel
def _cycle_big(mem: Memory, zone: int, migratetype: int, order: int) -> int:
    """Report the blocks of a list of order 9 or 10; return how many were looked at."""
    head = big_head(mem, zone, migratetype, order)
    onto = MIGRATE_MOVABLE if migratetype < NR_PCP_TYPES else migratetype
    pb = int(mem.pb[head].a)
    walked = 0
    while pb != head:
        walked += 1
        after = int(mem.pb[pb].a)
        if pb != virgin_slot(mem, zone) and mem.pb[pb].packed & PB_REPORTED == 0:
            if not _isolate(mem, zone, pb << PAGEBLOCK_ORDER, order):
                before = pb_b(mem, pb)
                if before != head:
                    big_list_del(mem, head)
                    big_list_add(mem, head, before)
                return walked
            del_free_pageblocks(mem, pb, zone, migratetype, order)
            if onto != migratetype:
                for i in range(1 << (order - PAGEBLOCK_ORDER)):
                    set_pageblock_migratetype(mem, pb + i, onto)
            add_free_pageblocks(mem, pb, zone, onto, order, TAIL)
            mem.pb[pb].packed |= PB_REPORTED
        pb = after
    return walked


@kernel
def _process_zone(mem: Memory, zone: int, lowest: int) -> None:
    """Report blocks of a zone, list by list, if it has memory to spare."""
    spare = REPORTING_CAPACITY << lowest
    if mem.zone[zone, Z_FREE] <= mem.zone[zone, Z_WMARK_LOW] + spare:
        return
    for order in range(lowest, MAX_PAGE_ORDER + 1):
        for migratetype in range(NR_TYPES):
            nr = mem.nr_free[zone, migratetype, order]
            mem.scratch[R_BUDGET] = (nr + BUDGET_SHARE - 1) // BUDGET_SHARE
            if nr == 0:
                continue
            if order < PAGEBLOCK_ORDER:
                walked = _cycle_small(mem, zone, migratetype, order)
            else:
                walked = _cycle_big(mem, zone, migratetype, order)
            mem.scratch[R_WALKED + list_number(zone, migratetype, order)] = walked
    _send(mem)


@kernel
def report_pass(mem: Memory, lowest: int) -> int:
    """Make one pass of page_reporting_process; return how many blocks it sends.

    They stand in ``mem.touched`` in the order in which the host gets them; ``mem.scratch`` holds
    the R_* counts.

    Parameters
    ----------
    lowest
        Lowest order that is reported: page_reporting_order.
    """
    mem.scratch[:NR_R_FIELDS] = 0
    if lowest < PAGEBLOCK_ORDER:
        mem.pool[P_REPORTED_SMALL] = 1
    for zone in range(len(mem.zone)):
        _process_zone(mem, zone, lowest)
    return mem.scratch[R_BLOCKS]
