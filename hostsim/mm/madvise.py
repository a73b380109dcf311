"""MADV_PAGEOUT: a process asks for its own pages to be written to swap.

Source: Linux v6.1 and v6.12 mm/madvise.c madvise_cold_or_pageout_pte_range, mm/vmscan.c
reclaim_pages.  Pages that are mapped more than once are left alone; a huge page of which a part is
meant is split first.  What was written stays in the swap cache.
"""

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import MM_PINNED, MM_WINDOWS, NIL, P_SWAP_FREE, Memory
from hostsim.mm.mmap import W_HUGE, W_TABLE, W_TAG, window_word
from hostsim.mm.pb_packed import pb_b
from hostsim.mm.physmem import PB_COMPOUND, PB_HUGE, pageblock_state
from hostsim.mm.pins import cut_at_pin
from hostsim.mm.rmap import EXT_SHARED, KIND_ANON, KIND_MASK, cut_extent, extents_in
from hostsim.mm.shrink import SC_FORCE, SC_MAY_SWAP, shrink_huge
from hostsim.mm.split import COMPOUND_SWAPCACHE, is_pinned, split_huge_page
from hostsim.mm.swapout import swap_out_extent
from hostsim.mm.tunables import T_PHYSICAL_SPLIT


@kernel
def _pageout_table(mem: Memory, mm: int, window: int, first: int, end: int) -> None:
    """Write the small pages of a window between two pages."""
    x = extents_in(mem, mm, window)
    while x != NIL and int(mem.ext[x].vpn) < end:
        vpn = int(mem.ext[x].vpn)
        last = vpn + int(mem.ext[x].nr)
        flags = int(mem.ext[x].flags)
        if last <= first or flags & KIND_MASK != KIND_ANON or flags & EXT_SHARED:
            x = int(mem.ext[x].next)
            continue
        pb = int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER
        if pageblock_state(mem, pb) == PB_COMPOUND:
            if pb_b(mem, pb) & COMPOUND_SWAPCACHE != 0:
                x = int(mem.ext[x].next)
                continue
            whole = int(mem.ext[x].nr) == HPAGE_PMD_NR and vpn >= first and last <= end
            if is_pinned(mem, pb) and mem.tunables[T_PHYSICAL_SPLIT] == 0:
                x = int(mem.ext[x].next)
                continue
            if whole:
                shrink_huge(mem, pb)
            if not whole and not split_huge_page(mem, pb):
                x = int(mem.ext[x].next)
            else:
                x = extents_in(mem, mm, window)
            continue
        if vpn < first:
            x = cut_extent(mem, x, first)
            continue
        if last > end:
            cut_extent(mem, x, end)
        if mem.mm[mm, MM_PINNED] != 0:
            pinned, _ = cut_at_pin(mem, x)
            if pinned:
                x = int(mem.ext[x].next)
                continue
        if not swap_out_extent(mem, x):
            return
        x = extents_in(mem, mm, window)


@kernel
def madvise_pageout(mem: Memory, mm: int, start: int, nr: int) -> None:
    """Write pages of a process to swap (MADV_PAGEOUT on one range)."""
    if mem.pool[P_SWAP_FREE] == 0:
        return
    mem.scan[SC_FORCE] = 1
    mem.scan[SC_MAY_SWAP] = 1
    page = start
    end = min(start + nr, mem.mm[mm, MM_WINDOWS] << HPAGE_PMD_ORDER)
    while page < end:
        window = page >> HPAGE_PMD_ORDER
        stop = min(end, (window + 1) << HPAGE_PMD_ORDER)
        word = window_word(mem, mm, window)
        if word & W_TAG == W_HUGE:
            pb = word >> 2
            if pageblock_state(mem, pb) == PB_HUGE:  # not shared with another process
                if stop - page == HPAGE_PMD_NR:
                    shrink_huge(mem, pb)
                else:
                    split_huge_page(mem, pb)
            word = window_word(mem, mm, window)
        if word & W_TAG == W_TABLE:
            _pageout_table(mem, mm, window, page, stop)
        page = stop
    mem.scan[SC_FORCE] = 0
