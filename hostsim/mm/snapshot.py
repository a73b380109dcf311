"""Memory laid out from what a real kernel's /proc files told of it.

Known are the free blocks by zone, type and order and the pageblocks of each type; where the
used memory lies is not.  The rule that places it: pageblocks of a zone from its start, the types
Unmovable, Reclaimable, Movable in turn; of a type's pageblocks first those without free memory,
then those with small free blocks, then whole free ones.  A pageblock holds at most one small
free block of an order, at the offset equal to its size, so that it merges with nothing.

Pages on the per-CPU lists are in no /proc file.  They are placed in used pageblocks of their
type, highest first, the beginning of each half of which stays in use.

Simplified: all memory in use counts as unmovable.
Simplified: a kernel's per-CPU lists begin with a stated share of each type (`PCP_SHARES`), as
the recorded kernels' allocations after boot show it, and with half a refill of each order that
kernel memory is taken in.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import (
    HPAGE_PMD_ORDER,
    MAX_PAGE_ORDER,
    NR_PAGE_ORDERS,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.buddy import HEAD, TAIL, add_free_block, add_free_pageblocks
from hostsim.mm.contig import blocks_taken_run, init_units
from hostsim.mm.cost import set_costs
from hostsim.mm.memory import setup_watermarks
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    NIL,
    NR_PCP_LISTS,
    NR_SMALL_ORDERS,
    NR_ZONES,
    P_NR_CPUS,
    P_PAGEBLOCKS,
    PCP_COUNT,
    Z_END,
    Z_FREE,
    Z_LABEL,
    Z_MANAGED,
    Z_PCP_BATCH,
    Z_START,
    Z_VIRGIN,
    Z_VIRGIN_END,
    Memory,
)
from hostsim.mm.pcp import init_pcp, list_index, push_tail
from hostsim.mm.physmem import (
    PB_FREE9,
    PB_FULL,
    PB_PARTIAL,
    PB_RESERVED,
    get_pageblock_migratetype,
    init_lists,
    pageblock_state,
    record_alloc,
    set_frames,
    set_pageblock_migratetype,
    set_state,
)
from hostsim.mm.rmap import KIND_BOOT, KIND_RESERVED, add_extent, del_extent, extents_of
from hostsim.mm.state import carve_memory
from hostsim.mm.tunables import NR_TUNABLES, T_PCP_6_12, set_profile
from hostsim.mm.vmstat import NR_VMSTAT

LAYOUT_TYPES: Final = (MIGRATE_UNMOVABLE, MIGRATE_RECLAIMABLE, MIGRATE_MOVABLE)
PCP_SHARES: Final = {  # per-CPU pages of each migratetype after boot, in 1/16: T_PCP_6_12 ->
    0: {MIGRATE_UNMOVABLE: 1, MIGRATE_MOVABLE: 15},
    1: {MIGRATE_UNMOVABLE: 5, MIGRATE_RECLAIMABLE: 2, MIGRATE_MOVABLE: 9},
}
PCP_HALF_REFILLS: Final = {  # migratetype -> orders whose lists begin with half a refill
    MIGRATE_UNMOVABLE: (1, 2, 3),
    MIGRATE_RECLAIMABLE: (2,),
}
DMA_MANAGED_PAGES: Final = 3840  # zoneinfo managed of the DMA zone of a PC


class ZoneState(NamedTuple):
    """What pagetypeinfo says of one zone."""

    free: NDArray[np.int64]  # (types, 11) free blocks
    pageblocks: NDArray[np.int64]  # (types,)


def memory_from(
    zones: dict[int, ZoneState], managed_pages: int, pcp_pages: int, kernel: str, nr_cpus: int
) -> Memory:
    """Return memory with the free blocks and pageblock types of a snapshot.

    Parameters
    ----------
    zones
        By zone number; zones left out are empty.
    managed_pages
        MemTotal in pages.
    pcp_pages
        Pages on the per-CPU lists; as many as fit are placed there.
    kernel
        Profile name.
    nr_cpus
        CPUs of the machine.

    Raises
    ------
    ValueError
        The free blocks of a zone do not fit into its pageblocks.
    """
    spans = {}
    end = 0
    for zone in range(NR_ZONES):
        pageblocks = int(zones[zone].pageblocks.sum()) if zone in zones else 0
        spans[zone] = (end, end + pageblocks)
        end += pageblocks + pageblocks % 2  # zones begin on an order-10 boundary
    nr_pages = end << PAGEBLOCK_ORDER
    mem = carve_memory(nr_pages, NR_VMSTAT, NR_TUNABLES)
    for zone, (first, last) in spans.items():
        mem.zone[zone, Z_START] = first << PAGEBLOCK_ORDER
        mem.zone[zone, Z_END] = last << PAGEBLOCK_ORDER
        mem.zone[zone, Z_LABEL + MIGRATE_MOVABLE] = last - first
    init_lists(mem)
    mem.nr_free[:] = 0
    mem.zone[:, Z_FREE] = 0
    mem.zone[:, Z_VIRGIN] = mem.zone[:, Z_VIRGIN_END]
    _forget_virgin(mem)
    init_units(mem)
    blocks_taken_run(mem, 0, int(mem.pool[P_PAGEBLOCKS]))
    mem.pb["state"][: mem.pool[P_PAGEBLOCKS]] = PB_RESERVED
    init_pcp(mem)
    set_profile(mem.tunables, kernel)
    set_costs(mem.cost)
    for zone, state in zones.items():
        _lay_zone(mem, zone, spans[zone][0], state)
    dma = min(DMA_MANAGED_PAGES, int(mem.zone[0, Z_END]))
    mem.zone[0, Z_MANAGED] = dma
    rest = mem.zone[1:, Z_END] - mem.zone[1:, Z_START]
    mem.zone[1:, Z_MANAGED] = rest * (managed_pages - dma) // max(int(rest.sum()), 1)
    mem.pool[P_NR_CPUS] = nr_cpus
    setup_watermarks(mem)
    top = max(zones)
    left = pcp_pages
    for migratetype, share in PCP_SHARES[int(mem.tunables[T_PCP_6_12])].items():
        here = left if migratetype == MIGRATE_MOVABLE else pcp_pages * share // 16
        left -= here
        fill_pcp(mem, top, 0, migratetype, spans[top][0], spans[top][1], here)
    for migratetype, orders in PCP_HALF_REFILLS.items():
        for order in orders:
            here = max(int(mem.zone[top, Z_PCP_BATCH]) >> order, 2) // 2
            fill_pcp(mem, top, order, migratetype, spans[top][0], spans[top][1], here)
    for zone in zones:
        first, last = spans[zone]
        frames = (last - first) << PAGEBLOCK_ORDER
        left = reserve_frames(mem, first, last, frames - int(mem.zone[zone, Z_MANAGED]))
        mem.zone[zone, Z_MANAGED] += left
    return mem


@kernel
def reserve_frames(mem: Memory, first: int, end: int, nr: int) -> int:
    """Declare frames in use since boot reserved, lowest first; return how many were too many."""
    for pb in range(first, end):
        x = extents_of(mem, pb) if is_listed(mem, pb) else NIL
        while x != NIL and nr > 0:
            after = int(mem.ext[x].next_b)
            pages = int(mem.ext[x].nr)
            if pages > nr:
                pfn = int(mem.ext[x].pfn)
                mem.ext[x].pfn = pfn + nr
                mem.ext[x].nr = pages - nr
                add_extent(mem, pfn, nr, NIL, 0, KIND_RESERVED)
                return 0
            mem.ext[x].flags = KIND_RESERVED
            nr -= pages
            x = after
    return nr


@inline_kernel
def is_listed(mem: Memory, pb: int) -> bool:
    """Tell whether a pageblock has a list of extents."""
    return pageblock_state(mem, pb) == PB_FULL or pageblock_state(mem, pb) == PB_PARTIAL


@kernel
def fill_pcp(
    mem: Memory, zone: int, order: int, migratetype: int, first: int, end: int, nr: int
) -> None:
    """Move ``nr`` blocks in use since boot to the per-CPU list of an order and a type."""
    half = PAGEBLOCK_NR_PAGES // 2
    head = zone * NR_PCP_LISTS + list_index(order, migratetype, False)
    for i in range(end - first):
        pb = end - 1 - i
        if pageblock_state(mem, pb) != PB_FULL:
            continue
        if get_pageblock_migratetype(mem, pb) != migratetype:
            continue
        if mem.ext[mem.pb[pb].a].nr < PAGEBLOCK_NR_PAGES:
            continue
        if mem.ext[mem.pb[pb].a].flags != KIND_BOOT:
            continue
        del_extent(mem, int(mem.pb[pb].a))
        for part in range(2):
            pfn = (pb << PAGEBLOCK_ORDER) + part * half
            here = min(nr, (half >> order) - 1)
            nr -= here
            used = half - (here << order)
            add_extent(mem, pfn, used, NIL, 0, KIND_BOOT)
            if here > 0:
                push_tail(mem, head, pfn + used, here, 1 << order)
                mem.zone[zone, PCP_COUNT] += here << order
        if nr == 0:
            return


def _forget_virgin(mem: Memory) -> None:
    """Take the virgin regions off their lists: every block is placed by its own."""
    slots = np.arange(int(mem.pool[P_PAGEBLOCKS]), len(mem.pb), dtype=np.int32)
    mem.pb["a"][slots] = slots
    mem.pb["b"][slots] = slots


def _lay_zone(mem: Memory, zone: int, first: int, state: ZoneState) -> None:
    """Place a zone's free blocks by the module's rule."""
    at = first
    for migratetype in LAYOUT_TYPES:
        free = state.free[migratetype]
        pageblocks = int(state.pageblocks[migratetype])
        small = int(free[:NR_SMALL_ORDERS].max(initial=0))
        whole = int(free[PAGEBLOCK_ORDER] + 2 * free[MAX_PAGE_ORDER])
        used = pageblocks - small - whole
        if used < 0:
            raise ValueError(
                f"zone {zone}, type {migratetype}: free blocks need {small + whole} pageblocks, "
                f"there are {pageblocks}"
            )
        end = at + pageblocks
        tens = int(free[MAX_PAGE_ORDER])
        ten_at = (end & ~1) - 2 * tens
        left = lay_pageblocks(mem, zone, at, end, migratetype, free, ten_at, tens)
        if left:
            raise ValueError(f"zone {zone}, type {migratetype}: {left} blocks of order 9 too many")
        at = end


@kernel
def lay_pageblocks(
    mem: Memory,
    zone: int,
    first: int,
    end: int,
    migratetype: int,
    free: NDArray[np.int64],
    ten_at: int,
    tens: int,
) -> int:
    """Label pageblocks ``first .. end - 1`` and place a type's free blocks in them.

    The order-10 blocks begin at pageblock ``ten_at``; single free pageblocks and partial ones
    fill the pageblocks below (and an odd one above) from the top down.

    Returns
    -------
    int
        Free blocks of order 9 that found no place beside a used pageblock.
    """
    for i in range(tens):
        pb = ten_at + 2 * i
        add_free_pageblocks(mem, pb, zone, migratetype, MAX_PAGE_ORDER, TAIL)
    nines = free[PAGEBLOCK_ORDER]
    layer = 0
    for i in range(end - first):
        pb = end - 1 - i
        set_pageblock_migratetype(mem, pb, migratetype)
        if ten_at <= pb < ten_at + 2 * tens:
            continue
        blocks = 0
        for order in range(NR_SMALL_ORDERS):
            blocks += free[order] > layer
        if nines > 0 and pageblock_state(mem, pb ^ 1) != PB_FREE9:
            nines -= 1
            add_free_pageblocks(mem, pb, zone, migratetype, HPAGE_PMD_ORDER, TAIL)
        elif blocks > 0:
            _lay_partial(mem, zone, pb, migratetype, free, layer)
            layer += 1
        else:
            set_state(mem, pb, PB_FULL, migratetype)
            mem.pb[pb].a = NIL
            add_extent(mem, pb << PAGEBLOCK_ORDER, PAGEBLOCK_NR_PAGES, NIL, 0, KIND_BOOT)
    total = 0
    for order in range(NR_PAGE_ORDERS):
        total += free[order] << order
    mem.zone[zone, Z_FREE] += total
    return nines


@kernel
def _lay_partial(
    mem: Memory, zone: int, pb: int, migratetype: int, free: NDArray[np.int64], layer: int
) -> None:
    """Make a pageblock partial: one free block of each order that has more than ``layer``."""
    record = record_alloc(mem, pb, NIL)
    set_state(mem, pb, PB_PARTIAL, migratetype)
    used_from = 0
    for order in range(NR_SMALL_ORDERS):
        if free[order] <= layer:
            continue
        block = 1 << order
        set_frames(mem, record, block, block, True)
        add_free_block(mem, record, zone, migratetype, order, HEAD)
        if used_from < block:
            pfn = (pb << PAGEBLOCK_ORDER) + used_from
            add_extent(mem, pfn, block - used_from, NIL, 0, KIND_BOOT)
        used_from = 2 * block
    if used_from < PAGEBLOCK_NR_PAGES:
        pfn = (pb << PAGEBLOCK_ORDER) + used_from
        add_extent(mem, pfn, PAGEBLOCK_NR_PAGES - used_from, NIL, 0, KIND_BOOT)
