"""Swap-in: a fault on a swapped-out page, the swap cache and readahead.

A page that was written to swap stays in the swap cache until reclaim meets it again or its slots
are freed; a fault before that finds it there.  Else the faulting page and swapped-out pages
around it, in its page table, are read.  A window never comes back as a huge page.

Source: Linux v6.1 and v6.12 mm/memory.c do_swap_page, mm/swap_state.c swap_vma_readahead,
__swapin_nr_pages, mm/ksm.c ksm_might_need_to_copy (6.1 copies each tail page of a huge page that
it finds in the swap cache).
Simplified: a page that is mapped again gives up its slot also after a read; a page whose slot
another process names too is copied at once.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NO_PFN, PAGEBLOCK_ORDER
from hostsim.mm.cost import C_CLEAR_PAGE, C_COPY_PAGE, C_FAULT, C_SWAP_PAGE, charge
from hostsim.mm.lru import fresh_stamp
from hostsim.mm.lru_stamp import LRU_YOUNG, extent_stamp, set_extent_stamp
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MM_RAM_PAGES,
    MM_SWAP,
    MM_SWAP_RA,
    NIL,
    Memory,
)
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import account_rss, free_pages
from hostsim.mm.physmem import PB_COMPOUND, pageblock_state
from hostsim.mm.rmap import (
    EXT_READAHEAD,
    EXT_ZERO,
    KIND_ANON,
    KIND_MASK,
    KIND_SWAP,
    KIND_SWAPCACHE,
    add_extent,
    del_extent,
    extents_in,
    owner_of,
    try_extend,
)
from hostsim.mm.slowpath import alloc_pages
from hostsim.mm.swapfile import delete_from_swap_cache, swap_free
from hostsim.mm.tunables import SWAPIN_6_1, SWAPIN_6_12, T_PAGE_CLUSTER, T_SWAP_ZEROMAP, T_SWAPIN
from hostsim.mm.unmap import (
    isolate_cached,
    isolate_page,
    link_extent,
    slot_at,
    try_to_free_swap,
    unlink_from_window,
)
from hostsim.mm.vmstat import (
    KSM_SWPIN_COPY,
    NR_ANON_PAGES,
    NR_SWAPCACHED,
    PGFAULT,
    PGMAJFAULT,
    PSWPIN,
    SWAP_RA,
    SWAP_RA_HIT,
    SWPIN_ZERO,
)

RA_ORDER_CEILING: Final = 5  # SWAP_RA_ORDER_CEILING, mm/swap_state.c
RA_FIRST_HITS: Final = 4  # GET_SWAP_RA_VAL without a history
RA_MAX_HITS: Final = 255  # SWAP_RA_HITS_MASK: bits below the window's


@kernel
def swapped_at(mem: Memory, mm: int, window: int, vpn: int) -> int:
    """Return the extent by which a page is swapped out, or NIL."""
    x = extents_in(mem, mm, window)
    while x != NIL and int(mem.ext[x].vpn) + int(mem.ext[x].nr) <= vpn:
        x = int(mem.ext[x].next)
    if x == NIL or mem.ext[x].vpn > vpn or mem.ext[x].flags & KIND_MASK != KIND_SWAP:
        return NIL
    return x


@kernel
def swapin_nr_pages(previous: int, vpn: int, hits: int, most: int, last_window: int) -> int:
    """Return how many pages to read around a fault (__swapin_nr_pages)."""
    pages = hits + 2
    if pages == 2:
        if vpn != previous + 1 and vpn != previous - 1:
            pages = 1
    else:
        roundup = 4
        while roundup < pages:
            roundup <<= 1
        pages = roundup
    return max(min(pages, most), last_window // 2)


@kernel
def _readahead_range(mem: Memory, mm: int, vpn: int) -> tuple[int, int]:
    """Return first and end page of the readahead of a fault; note the fault (swap_ra_info)."""
    most = 1 << min(mem.tunables[T_PAGE_CLUSTER], RA_ORDER_CEILING)
    if most == 1:
        return vpn, vpn + 1
    state = mem.mm[mm, MM_SWAP_RA]
    if state == 0:
        state = RA_FIRST_HITS
    previous, last, hits = state >> 16, (state >> 8) & 255, state & 255
    pages = swapin_nr_pages(previous, vpn, hits, most, last)
    mem.mm[mm, MM_SWAP_RA] = (vpn << 16) | (pages << 8)
    if pages == 1:
        return vpn, vpn + 1
    if vpn == previous + 1:
        first = vpn
    elif previous == vpn + 1:
        first = vpn - pages + 1
    else:
        first = vpn - (pages - 1) // 2
    table = vpn >> HPAGE_PMD_ORDER << HPAGE_PMD_ORDER
    end = min(first + pages, table + HPAGE_PMD_NR)
    if vpn < mem.mm[mm, MM_RAM_PAGES]:
        end = min(end, mem.mm[mm, MM_RAM_PAGES])
    return max(first, table), end


@kernel
def _read_page(mem: Memory, mm: int, window: int, vpn: int, ahead: bool) -> bool:
    """Read a swapped-out page into the swap cache, if it is not there; False without memory."""
    x = swapped_at(mem, mm, window, vpn)
    if x == NIL or mem.swap_cache[slot_at(mem, x, vpn)] != 0:
        return True
    pfn, _, _ = alloc_pages(mem, 0, MIGRATE_MOVABLE, 1)
    if pfn == NO_PFN:
        return False
    x = swapped_at(mem, mm, window, vpn)  # reclaim may have come between
    slot = slot_at(mem, x, vpn)
    mem.swap_cache[slot] = pfn + 1
    y = add_extent(mem, pfn, 1, NIL, slot, KIND_SWAPCACHE | (EXT_READAHEAD if ahead else 0))
    set_extent_stamp(mem, y, fresh_stamp(mem, 0))
    mod_node_page_state(mem, pfn, NR_SWAPCACHED, 1)
    if ahead:
        mem.vmstat[SWAP_RA] += 1
    if mem.swap_zero[slot] != 0 and mem.tunables[T_SWAP_ZEROMAP] != 0:
        mem.vmstat[SWPIN_ZERO] += 1
        charge(mem, C_CLEAR_PAGE, 1)
        return True
    mem.vmstat[PSWPIN] += 1
    charge(mem, C_SWAP_PAGE, 1)
    return True


@kernel
def _swapin_readahead(mem: Memory, mm: int, window: int, vpn: int) -> bool:
    """Read a page and what lies around it; return whether the page was read."""
    first, end = _readahead_range(mem, mm, vpn)
    for page in range(first, end):
        if not _read_page(mem, mm, window, page, page != vpn) and page != vpn:
            break
    return _read_page(mem, mm, window, vpn, False)


@kernel
def _map_page(mem: Memory, mm: int, window: int, vpn: int, pfn: int, zero: bool) -> None:
    """Map a frame, of zeros or not, in the place of a swapped-out page, whose slot entry goes."""
    flags = KIND_ANON | (EXT_ZERO if zero else 0)
    x = isolate_page(mem, swapped_at(mem, mm, window, vpn), vpn)
    before = unlink_from_window(mem, mm, window, x)
    del_extent(mem, x)
    mem.mm[mm, MM_SWAP] -= 1
    account_rss(mem, mm, window, 1)
    mod_node_page_state(mem, pfn, NR_ANON_PAGES, 1)
    if (
        before != NIL
        and int(mem.ext[before].vpn) + int(mem.ext[before].nr) == vpn
        and try_extend(mem, before, pfn, 1, False, flags)
    ):
        set_extent_stamp(mem, before, extent_stamp(mem, before) | LRU_YOUNG)
        return
    y = add_extent(mem, pfn, 1, mm, vpn, flags)
    set_extent_stamp(mem, y, fresh_stamp(mem, LRU_YOUNG))
    link_extent(mem, mm, window, before, y)


@kernel
def _map_from_huge(mem: Memory, mm: int, window: int, vpn: int, slot: int, pb: int) -> bool:
    """Map a page of a huge page in the swap cache; return whether there was memory.

    6.12 maps all 512 if the whole window is its entries; 6.1 copies every page but the first.
    """
    x = swapped_at(mem, mm, window, vpn)
    first = slot & ~(HPAGE_PMD_NR - 1)
    shared = int(mem.swap_map[slot]) > 1
    whole = mem.ext[x].nr == HPAGE_PMD_NR and slot_at(mem, x, vpn) == first + (
        vpn & (HPAGE_PMD_NR - 1)
    )
    if mem.tunables[T_SWAPIN] == SWAPIN_6_12 and whole and not shared:
        for i in range(HPAGE_PMD_NR):
            swap_free(mem, first + i)
        unlink_from_window(mem, mm, window, x)
        del_extent(mem, x)
        y = add_extent(
            mem, pb << PAGEBLOCK_ORDER, HPAGE_PMD_NR, mm, window << HPAGE_PMD_ORDER, KIND_ANON
        )
        set_extent_stamp(mem, y, LRU_YOUNG)
        link_extent(mem, mm, window, NIL, y)
        mem.mm[mm, MM_SWAP] -= HPAGE_PMD_NR
        account_rss(mem, mm, window, HPAGE_PMD_NR)
        mod_node_page_state(mem, pb << PAGEBLOCK_ORDER, NR_ANON_PAGES, HPAGE_PMD_NR)
        try_to_free_swap(mem, pb)
        return True
    pfn = (pb << PAGEBLOCK_ORDER) + slot - first
    copy = shared or (mem.tunables[T_SWAPIN] == SWAPIN_6_1 and slot != first)
    if copy:
        pfn, _, _ = alloc_pages(mem, 0, MIGRATE_MOVABLE, 1)
        if pfn == NO_PFN:
            return False
        if mem.swap_cache[slot] == 0:  # reclaim freed it: its page must be read
            free_pages(mem, pfn, 1, 1)
            return True
        if not shared:
            mem.vmstat[KSM_SWPIN_COPY] += 1
        charge(mem, C_COPY_PAGE, 1)
    _map_page(mem, mm, window, vpn, pfn, copy and mem.swap_zero[slot] != 0)
    swap_free(mem, slot)
    if not copy:
        try_to_free_swap(mem, pb)
    return True


@kernel
def _map_from_small(mem: Memory, mm: int, window: int, vpn: int, slot: int) -> bool:
    """Map a small page of the swap cache; return whether there was memory."""
    pfn = int(mem.swap_cache[slot]) - 1
    x = owner_of(mem, pfn)
    state = mem.mm[mm, MM_SWAP_RA]
    hits = state & RA_MAX_HITS if state != 0 else RA_FIRST_HITS
    if mem.ext[x].flags & EXT_READAHEAD:
        mem.vmstat[SWAP_RA_HIT] += 1
        hits = min(hits + 1, RA_MAX_HITS)
    mem.mm[mm, MM_SWAP_RA] = (vpn << 16) | (state & (255 << 8)) | hits
    if mem.swap_map[slot] > 1:
        pfn, _, _ = alloc_pages(mem, 0, MIGRATE_MOVABLE, 1)
        if pfn == NO_PFN:
            return False
        charge(mem, C_COPY_PAGE, 1)
        if mem.swap_cache[slot] != 0:
            x = isolate_cached(mem, slot)
            mem.ext[x].flags = KIND_SWAPCACHE
        swap_free(mem, slot)
        _map_page(mem, mm, window, vpn, pfn, mem.swap_zero[slot] != 0)
        return True
    del_extent(mem, isolate_cached(mem, slot))
    swap_free(mem, slot)
    delete_from_swap_cache(mem, slot)
    mod_node_page_state(mem, pfn, NR_SWAPCACHED, -1)
    _map_page(mem, mm, window, vpn, pfn, mem.swap_zero[slot] != 0)
    return True


@kernel
def do_swap_page(mem: Memory, mm: int, window: int, vpn: int) -> bool:
    """Bring a swapped-out page back; return whether there was memory.

    If reclaim took the page away again meanwhile, nothing is done: the caller looks again.
    """
    slot = slot_at(mem, swapped_at(mem, mm, window, vpn), vpn)
    if mem.swap_cache[slot] == 0:
        if not _swapin_readahead(mem, mm, window, vpn):
            return False
        mem.vmstat[PGMAJFAULT] += 1
        if mem.swap_cache[slot] == 0:
            return True
    frame = int(mem.swap_cache[slot]) - 1
    mem.vmstat[PGFAULT] += 1
    charge(mem, C_FAULT, 1)
    if pageblock_state(mem, frame >> PAGEBLOCK_ORDER) == PB_COMPOUND:
        return _map_from_huge(mem, mm, window, vpn, slot, frame >> PAGEBLOCK_ORDER)
    return _map_from_small(mem, mm, window, vpn, slot)
