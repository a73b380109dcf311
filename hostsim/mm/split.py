"""Splitting the mapping of a huge page; the page itself stays whole.

Source: Linux v6.1 mm/huge_memory.c __split_huge_pmd, deferred_split_huge_page.
Simplified: nothing drains the deferred split queue while there is no reclaim; a partly mapped
huge page is freed when its last page is unmapped.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import MIGRATE_MOVABLE, MM_HUGE, NIL, Memory
from hostsim.mm.mmap import set_window, table_word, window_word
from hostsim.mm.physmem import PB_COMPOUND, PB_HUGE, pageblock_state, set_state
from hostsim.mm.rmap import EXT_PMD, EXT_SHARED, KIND_ANON, add_extent
from hostsim.mm.vmstat import NR_ANON_THPS, THP_DEFERRED_SPLIT_PAGE, THP_SPLIT_PMD

COMPOUND_DEFERRED: Final = 1  # link_b of PB_COMPOUND: on the deferred split queue


@kernel
def pmd_mapping(mem: Memory, pb: int, mm: int, window: int) -> int:
    """Return the extent by which a process maps a shared huge page with one PMD, or NIL."""
    x = int(mem.pb[pb].a)
    while x != NIL:
        if (
            mem.ext[x].flags & EXT_PMD
            and mem.ext[x].owner == mm
            and mem.ext[x].vpn == window << HPAGE_PMD_ORDER
        ):
            return x
        x = int(mem.ext[x].next_b)
    return NIL


@kernel
def nr_pmd_mappings(mem: Memory, pb: int) -> int:
    """Return how many PMDs map a compound page."""
    nr = 0
    x = int(mem.pb[pb].a)
    while x != NIL:
        if mem.ext[x].flags & EXT_PMD:
            nr += 1
        x = int(mem.ext[x].next_b)
    return nr


@kernel
def make_compound(mem: Memory, pb: int, mm: int, window: int, flags: int) -> int:
    """Describe a huge page that one PMD maps by an extent instead; return the extent."""
    set_state(mem, pb, PB_COMPOUND, MIGRATE_MOVABLE)
    mem.pb[pb].a = NIL
    mem.pb[pb].b = 0
    return add_extent(
        mem,
        pb << PAGEBLOCK_ORDER,
        HPAGE_PMD_NR,
        mm,
        window << HPAGE_PMD_ORDER,
        flags,
    )


@kernel
def split_pmd(mem: Memory, mm: int, window: int) -> None:
    """Replace a window's huge PMD by its deposited page table; never fails, never allocates."""
    pb = window_word(mem, mm, window) >> 2
    if pageblock_state(mem, pb) == PB_HUGE:
        x = make_compound(mem, pb, mm, window, KIND_ANON)
        mem.vmstat[NR_ANON_THPS] -= 1
    else:
        x = pmd_mapping(mem, pb, mm, window)
        mem.ext[x].flags = KIND_ANON | EXT_SHARED
        if nr_pmd_mappings(mem, pb) == 0:
            mem.vmstat[NR_ANON_THPS] -= 1
    mem.ext[x].next = NIL
    set_window(mem, mm, window, table_word(x))
    mem.mm[mm, MM_HUGE] -= 1
    mem.vmstat[THP_SPLIT_PMD] += 1


@kernel
def deferred_split(mem: Memory, pb: int) -> None:
    """Queue a huge page of which a part is no longer mapped, once."""
    if mem.pb[pb].b & COMPOUND_DEFERRED == 0:
        mem.pb[pb].b = COMPOUND_DEFERRED
        mem.vmstat[THP_DEFERRED_SPLIT_PAGE] += 1
