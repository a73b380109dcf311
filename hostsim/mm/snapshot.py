"""Memory laid out from what a real kernel's /proc files told of it.

Known are the free blocks by zone, type and order and the pageblocks of each type; where the used
memory lies is not. `hostsim.mm.layout` places it by a stated rule.

Pages on the per-CPU lists: /proc/zoneinfo tells how many, no file where. They are placed in used
pageblocks of their type, highest first, the beginning of each half of which stays in use.

Simplified: all memory in use counts as unmovable.
Simplified: a kernel's per-CPU lists begin with a stated share of each type (`PCP_SHARES`), as the
recorded kernels' allocations after boot show it; those of a replay also with half a refill of each
order that kernel memory is taken in.
Simplified: a real host's marks are its own, its lowmem reserves are computed.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.contig import blocks_taken_run, count_unmovable, init_units
from hostsim.mm.cost import set_costs
from hostsim.mm.layout import Plan, ZoneState, lay_zone, plan_zone
from hostsim.mm.memory import setup_watermarks
from hostsim.mm.mm_types import (
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    NIL,
    NR_PCP_LISTS,
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
    Z_WMARK_HIGH,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
    ZONE_NAMES,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.pb_packed import repack
from hostsim.mm.pcp import init_pcp, list_index, push_tail
from hostsim.mm.physmem import (
    PB_FULL,
    PB_PARTIAL,
    PB_RESERVED,
    get_pageblock_migratetype,
    init_lists,
    pageblock_state,
    zone_idx,
    zone_to_nid,
)
from hostsim.mm.rmap import KIND_BOOT, KIND_RESERVED, add_extent, del_extent, extents_of
from hostsim.mm.state import carve_memory
from hostsim.mm.state_spec import StateSpec
from hostsim.mm.tunables import (
    FALLBACK_6_12,
    NR_TUNABLES,
    PROFILES,
    T_FALLBACK,
    T_PCP_6_12,
    set_profile,
)
from hostsim.mm.vmstat import NR_KERNEL, NR_VMSTAT

PCP_SHARES: Final = {  # per-CPU pages of each migratetype after boot, in 1/16: T_PCP_6_12 ->
    0: {MIGRATE_UNMOVABLE: 1, MIGRATE_MOVABLE: 15},
    1: {MIGRATE_UNMOVABLE: 5, MIGRATE_RECLAIMABLE: 2, MIGRATE_MOVABLE: 9},
}
PCP_HALF_REFILLS: Final = {  # migratetype -> orders whose lists begin with half a refill
    MIGRATE_UNMOVABLE: (1, 2, 3),
    MIGRATE_RECLAIMABLE: (2,),
}
DMA_MANAGED_PAGES: Final = 3840  # zoneinfo managed of the DMA zone of a PC


def memory_from(
    zones: dict[int, ZoneState], managed_pages: int, pcp_pages: int, kernel: str, nr_cpus: int
) -> Memory:
    """Return memory with the free blocks and pageblock types of a recording's snapshot.

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
    mem = lay_memory(zones, kernel, nr_cpus)
    dma = min(DMA_MANAGED_PAGES, int(mem.zone[0, Z_END]))
    mem.zone[0, Z_MANAGED] = dma
    rest = mem.zone[1:, Z_END] - mem.zone[1:, Z_START]
    mem.zone[1:, Z_MANAGED] = rest * (managed_pages - dma) // max(int(rest.sum()), 1)
    setup_watermarks(mem)
    top = max(zones)
    _share_out_pcp(mem, top, pcp_pages)
    for migratetype, orders in PCP_HALF_REFILLS.items():
        for order in orders:
            here = max(int(mem.zone[top, Z_PCP_BATCH]) >> order, 2) // 2
            fill_pcp(mem, top, order, migratetype, *_span(mem, top), here)
    for zone in zones:
        _reserve_unmanaged(mem, zone, (NIL,))
    return mem


def memory_of_host(
    state: StateSpec, kernel: str, nr_cpus: int, overcommit: int, keep_lru: bool = True
) -> Memory:
    """Return memory with the free blocks and pageblock types of a real host.

    Memory in use in pageblocks that are not movable counts as kernel memory.  Without
    ``keep_lru`` the host never has swap.

    Raises
    ------
    ValueError
        The free blocks of a zone do not fit into its pageblocks, or a zone manages more pages
        than it has.
    """
    mem = lay_memory(_zone_states(state), kernel, nr_cpus, state.nr_nodes, overcommit, keep_lru)
    for row in state.zones:
        mem.zone[row.zone, Z_MANAGED] = row.managed_pages
    setup_watermarks(mem)
    for row in state.zones:
        left = _share_out_pcp(mem, row.zone, row.pcp_pages)
        if left > 0:  # a type has too few pageblocks in use for its share
            fill_pcp(mem, row.zone, 0, MIGRATE_MOVABLE, *_span(mem, row.zone), left)
        order = (MIGRATE_MOVABLE, MIGRATE_HIGHATOMIC, MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE)
        _reserve_unmanaged(mem, row.zone, order)
        count_kernel_memory(mem, *_span(mem, row.zone))
    return mem


def set_marks(mem: Memory, state: StateSpec) -> None:
    """Write the watermarks that a real host had, where they are known."""
    for row in state.zones:
        if row.marks:
            mem.zone[row.zone, [Z_WMARK_MIN, Z_WMARK_LOW, Z_WMARK_HIGH]] = row.marks


def lay_memory(
    zones: dict[int, ZoneState],
    kernel: str,
    nr_cpus: int,
    nr_nodes: int = 1,
    overcommit: int = 1,
    keep_lru: bool = True,
) -> Memory:
    """Return memory with free blocks laid out, all else in use since boot; nothing is managed.

    Raises
    ------
    ValueError
        The free blocks of a zone do not fit into its pageblocks.
    """
    pageblocks = {zone: int(state.pageblocks.sum()) for zone, state in zones.items()}
    spans, nr_pages = zone_pageblocks(pageblocks, nr_nodes), pages_of(pageblocks, nr_nodes)
    mem = carve_memory(nr_pages, NR_VMSTAT, NR_TUNABLES, nr_nodes, overcommit, keep_lru)
    for zone, (first, last) in enumerate(spans):
        mem.zone[zone, Z_START] = first << PAGEBLOCK_ORDER
        mem.zone[zone, Z_END] = last << PAGEBLOCK_ORDER
        mem.zone[zone, Z_LABEL + MIGRATE_MOVABLE] = last - first
    init_lists(mem)
    mem.nr_free[:] = 0
    mem.zone[:, Z_FREE] = 0
    mem.zone[:, Z_VIRGIN_END] = mem.zone[:, Z_VIRGIN]  # none: every block is placed by its own
    _forget_virgin(mem)
    init_units(mem)
    blocks_taken_run(mem, 0, int(mem.pool[P_PAGEBLOCKS]))
    repack(mem.pb, slice(int(mem.pool[P_PAGEBLOCKS])), flags=PB_RESERVED)
    init_pcp(mem)
    set_profile(mem.tunables, kernel)
    set_costs(mem.cost)
    mem.pool[P_NR_CPUS] = nr_cpus
    for zone, plan in _plans(zones, mem.tunables[T_FALLBACK] != FALLBACK_6_12):
        lay_zone(mem, zone, spans[zone][0], plan)
    return mem


def _plans(zones: dict[int, ZoneState], borrow: bool) -> Iterator[tuple[int, Plan]]:
    for zone, state in zones.items():
        try:
            yield zone, plan_zone(state, borrow)
        except ValueError as error:
            place = f"node {zone_to_nid(zone)}, zone {ZONE_NAMES[zone_idx(zone)]}"
            raise ValueError(f"{place}: {error}") from None


def _zone_states(state: StateSpec) -> dict[int, ZoneState]:
    return {
        zone.zone: ZoneState(
            np.array(zone.free, np.int64), np.array(zone.pageblocks, np.int64), zone.keep_full
        )
        for zone in state.zones
    }


def plan_state(state: StateSpec, kernel: str) -> None:
    """Find out whether a kernel can have a state.

    Raises
    ------
    ValueError
        The free blocks of a zone do not fit into its pageblocks.
    """
    for _ in _plans(_zone_states(state), PROFILES[kernel][T_FALLBACK] != FALLBACK_6_12):
        pass


def zone_pageblocks(pageblocks: dict[int, int], nr_nodes: int) -> list[tuple[int, int]]:
    """Return the first and the end pageblock of every zone; zones begin on an order-10 boundary.

    Nodes are of the size of the largest; a smaller one's end is in no zone.
    """
    spans, node_pageblocks = [], pages_of(pageblocks, nr_nodes) // nr_nodes >> PAGEBLOCK_ORDER
    at = 0
    for zone in range(NR_ZONES + nr_nodes - 1):
        if zone > ZONE_NORMAL:
            at = zone_to_nid(zone) * node_pageblocks
        nr = pageblocks.get(zone, 0)
        spans.append((at, at + nr))
        at += nr + nr % 2
    return spans


def pages_of(pageblocks: dict[int, int], nr_nodes: int) -> int:
    """Return the frames of a machine whose zones have so many pageblocks."""
    by_node = [0] * nr_nodes
    for zone, nr in pageblocks.items():
        by_node[zone_to_nid(zone)] += nr + nr % 2
    return nr_nodes * max(by_node) << PAGEBLOCK_ORDER


def _span(mem: Memory, zone: int) -> tuple[int, int]:
    """Return the first and the end pageblock of a zone."""
    first, end = (int(mem.zone[zone, column]) >> PAGEBLOCK_ORDER for column in (Z_START, Z_END))
    return first, end


def _share_out_pcp(mem: Memory, zone: int, pages: int) -> int:
    """Put single pages on a zone's per-CPU lists, each type's share; return what found no place."""
    left, unplaced = pages, 0
    for migratetype, share in PCP_SHARES[int(mem.tunables[T_PCP_6_12])].items():
        here = left if migratetype == MIGRATE_MOVABLE else pages * share // 16
        left -= here
        if here > 0:
            unplaced += int(fill_pcp(mem, zone, 0, migratetype, *_span(mem, zone), here))
    return unplaced


def _reserve_unmanaged(mem: Memory, zone: int, types: tuple[int, ...]) -> None:
    """Declare frames reserved that the zone does not manage, of pageblocks of some types first."""
    first, end = _span(mem, zone)
    left = ((end - first) << PAGEBLOCK_ORDER) - int(mem.zone[zone, Z_MANAGED])
    for migratetype in types:
        left = reserve_frames(mem, first, end, left, migratetype)
    mem.zone[zone, Z_MANAGED] += left


@kernel
def reserve_frames(mem: Memory, first: int, end: int, nr: int, only: int) -> int:
    """Declare frames in use since boot reserved, lowest first; return how many were too many.

    Parameters
    ----------
    only
        Type of the pageblocks to look at; NIL: all.
    """
    for pb in range(first, end):
        if only != NIL and get_pageblock_migratetype(mem, pb) != only:
            continue
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


@kernel
def count_kernel_memory(mem: Memory, first: int, end: int) -> None:
    """Count what is in use since boot in pageblocks that are not movable as kernel memory."""
    for pb in range(first, end):
        if get_pageblock_migratetype(mem, pb) == MIGRATE_MOVABLE or not is_listed(mem, pb):
            continue
        x = extents_of(mem, pb)
        while x != NIL:
            if mem.ext[x].flags == KIND_BOOT:
                mem.vmstat[NR_KERNEL] += int(mem.ext[x].nr)
                count_unmovable(mem, int(mem.ext[x].pfn), int(mem.ext[x].nr))
            x = int(mem.ext[x].next_b)


@inline_kernel
def is_listed(mem: Memory, pb: int) -> bool:
    """Tell whether a pageblock has a list of extents."""
    return pageblock_state(mem, pb) == PB_FULL or pageblock_state(mem, pb) == PB_PARTIAL


@kernel
def fill_pcp(
    mem: Memory, zone: int, order: int, migratetype: int, first: int, end: int, nr: int
) -> int:
    """Move ``nr`` blocks in use since boot to the per-CPU list of an order and a type.

    Returns how many found no place.
    """
    half = PAGEBLOCK_NR_PAGES // 2
    head = zone * NR_PCP_LISTS + list_index(order, migratetype, False)
    for i in range(end - first):
        pb = end - 1 - i
        if pageblock_state(mem, pb) != PB_FULL:
            continue
        if get_pageblock_migratetype(mem, pb) != migratetype:
            continue
        x = extents_of(mem, pb)
        if mem.ext[x].nr < PAGEBLOCK_NR_PAGES or mem.ext[x].flags != KIND_BOOT:
            continue
        del_extent(mem, x)
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
            break
    return nr


def _forget_virgin(mem: Memory) -> None:
    """Take the virgin regions off their lists: every block is placed by its own."""
    slots = np.arange(int(mem.pool[P_PAGEBLOCKS]), len(mem.pb), dtype=np.int32)
    mem.pb["a"][slots] = slots
    repack(mem.pb, slots, b=slots)
