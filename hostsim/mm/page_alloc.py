"""The page allocator's front: zones, watermarks, per-CPU lists, then the buddy lists.

What happens when no zone stays above its low watermark: `hostsim.mm.slowpath`.

Source: Linux v6.1 mm/page_alloc.c: get_page_from_freelist, rmqueue, rmqueue_bulk.
"""

from typing import Final

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.units import COSTLY_ORDER, HPAGE_PMD_ORDER, NO_PFN, PAGEBLOCK_ORDER
from hostsim.mm.content import forget_huge
from hostsim.mm.mm_types import (
    MAX_NUMNODES,
    MM_ANON,
    MM_HAS_EPT,
    MM_RAM_ANON,
    MM_RAM_PAGES,
    NIL,
    NR_PCP_LISTS,
    P_BOOSTED,
    P_NODE,
    P_NODEMASK,
    P_TRACED,
    PCP_BELOW_HIGH,
    PCP_COUNT,
    Z_FREE,
    Z_MANAGED,
    Z_WMARK_HIGH,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.numa import next_zone, zone_statistics
from hostsim.mm.pageblock import rmqueue
from hostsim.mm.pcp import (
    free_unref_block,
    free_unref_run,
    list_index,
    note_alloc,
    nr_pcp_alloc,
    pop_head,
    push_tail,
)
from hostsim.mm.physmem import first_zone, zone_idx, zone_to_nid
from hostsim.mm.touched import note_touched
from hostsim.mm.tunables import T_PCP_6_12, T_PCP_ORDER_0
from hostsim.mm.vmstat import NR_GUEST_PAGES, PGALLOC, PGFREE
from hostsim.mm.watermark import zone_watermark_ok

ALL_NODES: Final = (1 << MAX_NUMNODES) - 1
MARK_LOW: Final = 0
MARK_MIN: Final = 1


@inline_kernel
def account_rss(mem: Memory, mm: int, window: int, nr: int) -> None:
    """Add resident pages of a window to a process (take away, if negative)."""
    mem.mm[mm, MM_ANON] += nr
    if window << HPAGE_PMD_ORDER < mem.mm[mm, MM_RAM_PAGES]:
        mem.mm[mm, MM_RAM_ANON] += nr
        if mem.mm[mm, MM_HAS_EPT] != 0:
            mem.vmstat[NR_GUEST_PAGES] += nr


@kernel
def rmqueue_bulk(mem: Memory, zone: int, order: int, migratetype: int, nofragment: bool) -> int:
    """Move blocks from the buddy to an empty per-CPU list; return how many."""
    era = mem.tunables[T_PCP_6_12] != 0
    want = nr_pcp_alloc(mem, zone, order, era)
    head = zone * NR_PCP_LISTS + list_index(order, migratetype, era)
    got = 0
    while got < want:
        pfn, taken = rmqueue(
            mem,
            zone,
            order,
            migratetype,
            want - got,
            nofragment,
        )
        if pfn == NO_PFN:
            break
        if order == 0:
            push_tail(mem, head, pfn, taken, 1)
            got += taken
        else:
            push_tail(mem, head, pfn, 1, 1 << order)
            got += 1
    mem.zone[zone, PCP_COUNT] += got << order
    return got


@kernel
def rmqueue_pcplist(
    mem: Memory, zone: int, order: int, migratetype: int, nr: int, nofragment: bool
) -> tuple[int, int, int]:
    """Take up to ``nr`` blocks at equal steps from a per-CPU list, refilled if empty.

    Returns
    -------
    pfn, taken, step
        As `hostsim.mm.pcp.pop_head`; NO_PFN if zone and fallbacks are empty.
    """
    head = zone * NR_PCP_LISTS + list_index(order, migratetype, mem.tunables[T_PCP_6_12] != 0)
    if mem.run[head].next == head and rmqueue_bulk(mem, zone, order, migratetype, nofragment) == 0:
        return NO_PFN, 0, 0
    pfn, taken, step = pop_head(mem, head, nr)
    mem.zone[zone, PCP_COUNT] -= taken << order
    note_alloc(mem, zone, taken)
    return pfn, taken, step


@inline_kernel
def _mark(mem: Memory, zone: int, which: int) -> int:
    """Return a watermark of a zone."""
    return mem.zone[zone, Z_WMARK_LOW if which == MARK_LOW else Z_WMARK_MIN]


@inline_kernel
def _note_below_high(mem: Memory, zone: int) -> None:
    """Note that a zone from which pages are wanted is not above its high watermark."""
    if (
        mem.zone[zone, PCP_BELOW_HIGH] == 0
        and mem.zone[zone, Z_FREE] <= mem.zone[zone, Z_WMARK_HIGH]
    ):
        mem.zone[zone, PCP_BELOW_HIGH] = 1


@kernel
def get_page_from_freelist(
    mem: Memory, order: int, migratetype: int, nr: int, which: int, nofragment: bool, nodes: int
) -> tuple[int, int, int]:
    """Take blocks from the first zone of the zonelist that stays above a watermark.

    Parameters
    ----------
    nodes
        The nodes that may serve the request, a bit each.
    """
    follows = ZONE_NORMAL + mem.pool[P_NODE]
    for _ in range(len(mem.zone)):
        zone = follows
        follows = next_zone(mem, zone)
        if mem.zone[zone, Z_MANAGED] == 0 or nodes >> zone_to_nid(zone) & 1 == 0:
            continue
        _note_below_high(mem, zone)
        if not zone_watermark_ok(mem, zone, order, _mark(mem, zone, which)):
            continue
        if order == 0 or (
            (order <= COSTLY_ORDER or order == HPAGE_PMD_ORDER) and mem.tunables[T_PCP_ORDER_0] == 0
        ):
            pfn, taken, step = rmqueue_pcplist(mem, zone, order, migratetype, nr, nofragment)
        else:
            pfn, _ = rmqueue(
                mem,
                zone,
                order,
                migratetype,
                1,
                nofragment,
            )
            taken = 1
            step = 1 << order
        if pfn != NO_PFN:
            mem.vmstat[PGALLOC + zone_idx(zone)] += taken << order
            zone_statistics(mem, zone, taken)
            if mem.pool[P_TRACED] != 0:
                note_touched(mem, pfn, taken, step, order)
            return pfn, taken, step
    return NO_PFN, 0, 0


@hot_kernel
def usable_zone(mem: Memory, order: int) -> int:
    """Return the first zone of the running CPU's node above its low watermark, or NIL."""
    zone = ZONE_NORMAL + mem.pool[P_NODE]
    last = first_zone(mem.pool[P_NODE])
    while zone >= last:
        if mem.zone[zone, Z_MANAGED] > 0:
            _note_below_high(mem, zone)
            if zone_watermark_ok(mem, zone, order, mem.zone[zone, Z_WMARK_LOW]):
                return int(zone)
        zone -= 1
    return NIL


@hot_kernel
def take_listed(mem: Memory, migratetype: int, nr: int) -> tuple[int, int, int]:
    """Take up to ``nr`` pages as `get_page_from_freelist` does if the first zone's list has any.

    Returns
    -------
    pfn, taken, step
        As `hostsim.mm.pcp.pop_head`; NO_PFN if more than a look at a list is to be done.
    """
    if mem.pool[P_BOOSTED] != 0 or mem.pool[P_NODEMASK] != 0:
        return NO_PFN, 0, 0
    zone = usable_zone(mem, 0)
    head = max(zone, 0) * NR_PCP_LISTS + migratetype
    if zone == NIL or mem.run[head].next == head:
        return NO_PFN, 0, 0
    pfn, taken, step = pop_head(mem, head, nr)
    mem.zone[zone, PCP_COUNT] -= taken
    note_alloc(mem, zone, taken)
    mem.vmstat[PGALLOC + zone_idx(zone)] += taken
    zone_statistics(mem, zone, taken)
    if mem.pool[P_TRACED] != 0:
        note_touched(mem, pfn, taken, step, 0)
    return pfn, taken, step


@hot_kernel
def free_pages(mem: Memory, pfn: int, nr: int, step: int) -> None:
    """Free order-0 pages of one pageblock one after the other, ``step`` (1 or -1) apart."""
    mem.vmstat[PGFREE] += nr
    free_unref_run(mem, pfn, nr, step, mem.tunables[T_PCP_6_12] != 0)


@hot_kernel
def free_compound(mem: Memory, pb: int) -> None:
    """Free a huge page."""
    forget_huge(mem, pb)
    mem.vmstat[PGFREE] += 1 << HPAGE_PMD_ORDER
    free_unref_block(mem, pb << PAGEBLOCK_ORDER, HPAGE_PMD_ORDER, mem.tunables[T_PCP_6_12] != 0)


@kernel
def free_order(mem: Memory, pfn: int, order: int) -> None:
    """Free a block of order 0..3."""
    if order == 0:
        free_pages(mem, pfn, 1, 1)
        return
    mem.vmstat[PGFREE] += 1 << order
    free_unref_block(mem, pfn, order, mem.tunables[T_PCP_6_12] != 0)
