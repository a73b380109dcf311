"""Contiguity, counted as it changes: free aligned memory of 32 MiB and 1 GiB, unmovable pages.

An aligned unit of 16 or 512 pageblocks is free if all of them are on the free lists and all lie
in one zone, as whoever allocates it needs.  What compaction could empty does not count.
``Memory.unit_32m`` and ``unit_1g`` hold how many pageblocks of a unit are *not* wholly free, so
that memory never used needs no entry; a unit that no zone has whole is one too many.

Which pageblocks hold pages that cannot be moved is what Zhao et al. (Contiguitas, ISCA 2023)
measure: a small share of memory that touches a large share of pageblocks.

Source: Linux v6.1 mm/page_alloc.c alloc_contig_pages, pfn_range_valid_contig (one zone).
"""

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import PAGEBLOCK_ORDER
from hostsim.mm.mm_types import (
    P_FREE_1G,
    P_FREE_32M,
    P_PAGEBLOCKS,
    P_UNMOVABLE_BLOCKS,
    UNIT_1G_SHIFT,
    UNIT_32M_SHIFT,
    Z_END,
    Z_START,
    Memory,
)
from hostsim.mm.page_ext import need_page_ext, put_page_ext


@inline_kernel
def blocks_taken(mem: Memory, pb: int, nr: int) -> None:
    """Note that free pageblocks of one order-10 block are free no longer."""
    unit = pb >> UNIT_32M_SHIFT
    if mem.unit_32m[unit] == 0:
        mem.pool[P_FREE_32M] -= 1
    mem.unit_32m[unit] += nr
    unit = pb >> UNIT_1G_SHIFT
    if mem.unit_1g[unit] == 0:
        mem.pool[P_FREE_1G] -= 1
    mem.unit_1g[unit] += nr


@inline_kernel
def blocks_freed(mem: Memory, pb: int, nr: int) -> None:
    """Note that pageblocks of one order-10 block are now wholly free."""
    unit = pb >> UNIT_32M_SHIFT
    mem.unit_32m[unit] -= nr
    if mem.unit_32m[unit] == 0:
        mem.pool[P_FREE_32M] += 1
    unit = pb >> UNIT_1G_SHIFT
    mem.unit_1g[unit] -= nr
    if mem.unit_1g[unit] == 0:
        mem.pool[P_FREE_1G] += 1


@kernel
def blocks_taken_run(mem: Memory, pb: int, nr: int) -> None:
    """Note that free pageblocks in a row are free no longer."""
    for i in range(nr):
        blocks_taken(mem, pb + i, 1)


@kernel
def count_unmovable(mem: Memory, pfn: int, nr: int) -> None:
    """Note unmovable pages in a pageblock; negative: so many fewer."""
    at = need_page_ext(mem, pfn >> PAGEBLOCK_ORDER)
    before = int(mem.page_ext[at].unmovable)
    mem.page_ext[at].unmovable = before + nr
    if before == 0:
        mem.pool[P_UNMOVABLE_BLOCKS] += 1
    elif before + nr == 0:
        mem.pool[P_UNMOVABLE_BLOCKS] -= 1
        put_page_ext(mem, at)


@kernel
def _first_whole(edge: int, shift: int) -> int:
    """Return the first unit that begins at or behind a pageblock."""
    return (edge + (1 << shift) - 1) >> shift


@kernel
def init_units(mem: Memory) -> None:
    """Count the units of a machine all of whose zones are wholly free."""
    nr_blocks = mem.pool[P_PAGEBLOCKS]
    for level in range(2):
        shift = UNIT_32M_SHIFT if level == 0 else UNIT_1G_SHIFT
        free = 0
        edge = 0  # pageblocks below are done
        for zone in range(len(mem.zone)):
            first = mem.zone[zone, Z_START] >> PAGEBLOCK_ORDER
            end = mem.zone[zone, Z_END] >> PAGEBLOCK_ORDER
            if end <= first:
                continue
            inside = _first_whole(first, shift)
            beyond = end >> shift
            for unit in range(edge >> shift, inside):
                _set_unit(mem, level, unit)
            free += max(beyond - inside, 0)
            edge = max(beyond, inside) << shift
        for unit in range(edge >> shift, _first_whole(nr_blocks, shift)):
            _set_unit(mem, level, unit)
        mem.pool[P_FREE_32M if level == 0 else P_FREE_1G] = free


@kernel
def _set_unit(mem: Memory, level: int, unit: int) -> None:
    """Let a unit that no zone has whole never become free."""
    if level == 0:
        mem.unit_32m[unit] = 1
    else:
        mem.unit_1g[unit] = 1
