"""Dropping mappings: extents taken off a window, and what their frames come to.

Source: Linux v6.1 mm/rmap.c page_remove_rmap, mm/swap.c release_pages, mm/swap_state.c
free_page_and_swap_cache.
"""

from hostsim.core.jit import hot_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import NIL, P_NEAR, Memory
from hostsim.mm.mmap import set_window, table_word
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import free_pages
from hostsim.mm.pb_packed import pb_b, set_pb_b
from hostsim.mm.physmem import PB_COMPOUND, pageblock_state
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    cut_extent,
    del_extent,
    extents_in,
    near_extent,
    owner_of,
)
from hostsim.mm.split import (
    COMPOUND_SHIFT,
    COMPOUND_SWAPCACHE,
    deferred_split,
    free_unmapped_compound,
)
from hostsim.mm.swapfile import delete_from_swap_cache, swap_free
from hostsim.mm.tunables import T_UNMAP_DEFERS
from hostsim.mm.vmstat import NR_ANON_PAGES, NR_SWAPCACHED


@kernel
def put_frames(mem: Memory, pfn: int, nr: int, shared: bool, reverse: bool, by_page: bool) -> None:
    """Drop one mapping of frames of one pageblock and free what nobody maps any more.

    The extent that mapped them is already gone; ``by_page`` tells whether page-table entries
    mapped them, not one PMD.
    """
    pb = pfn >> PAGEBLOCK_ORDER
    if pageblock_state(mem, pb) == PB_COMPOUND:
        unmapped = nr
        if shared:
            unmapped = 0
            for frame in range(pfn, pfn + nr):
                unmapped += owner_of(mem, frame) == NIL
        mod_node_page_state(mem, pfn, NR_ANON_PAGES, -unmapped)
        if pb_b(mem, pb) & COMPOUND_SWAPCACHE != 0:
            try_to_free_swap(mem, pb)
            return
        gone = mem.pb[pb].a == NIL
        if unmapped > 0 and (not gone or (by_page and mem.tunables[T_UNMAP_DEFERS] != 0)):
            deferred_split(mem, pb)
        if gone:
            free_unmapped_compound(mem, pb)
        return
    if not shared:
        mod_node_page_state(mem, pfn, NR_ANON_PAGES, -nr)
        free_pages(mem, pfn + nr - 1 if reverse else pfn, nr, -1 if reverse else 1)
        return
    for i in range(nr):
        frame = pfn + (nr - 1 - i if reverse else i)
        if owner_of(mem, frame) == NIL:
            mod_node_page_state(mem, pfn, NR_ANON_PAGES, -1)
            free_pages(mem, frame, 1, 1)


@kernel
def try_to_free_swap(mem: Memory, pb: int) -> bool:
    """Take a huge page out of the swap cache if no page table names its slots any more.

    Nobody mapping it, it is freed.
    """
    first = (pb_b(mem, pb) >> COMPOUND_SHIFT) << HPAGE_PMD_ORDER
    for slot in range(first, first + HPAGE_PMD_NR):
        if mem.swap_map[slot] != 0:
            return False
    forget_swap_cache_huge(mem, pb)
    if mem.pb[pb].a == NIL:
        free_unmapped_compound(mem, pb)
    return True


@kernel
def forget_swap_cache_huge(mem: Memory, pb: int) -> None:
    """Take a huge page out of the swap cache; its slots stay with the page tables' entries."""
    first = (pb_b(mem, pb) >> COMPOUND_SHIFT) << HPAGE_PMD_ORDER
    for slot in range(first, first + HPAGE_PMD_NR):
        delete_from_swap_cache(mem, slot)
    set_pb_b(mem, pb, pb_b(mem, pb) & ((1 << COMPOUND_SHIFT) - 1 - COMPOUND_SWAPCACHE))
    mod_node_page_state(mem, pb << PAGEBLOCK_ORDER, NR_SWAPCACHED, -HPAGE_PMD_NR)


@kernel
def isolate_cached(mem: Memory, slot: int) -> int:
    """Return the swap-cache extent of one small page, cut to that page alone."""
    return isolate_page(mem, owner_of(mem, int(mem.swap_cache[slot]) - 1), slot)


@kernel
def free_swap_and_cache(mem: Memory, x: int) -> None:
    """Drop the slots of a swapped-out extent, and the cached pages that nobody needs any more."""
    huge = NIL
    first = int(mem.ext[x].pfn)
    for slot in range(first, first + int(mem.ext[x].nr)):
        if swap_free(mem, slot) > 0 or mem.swap_cache[slot] == 0:
            continue
        frame = int(mem.swap_cache[slot]) - 1
        if pageblock_state(mem, frame >> PAGEBLOCK_ORDER) == PB_COMPOUND:
            huge = frame >> PAGEBLOCK_ORDER
            continue
        del_extent(mem, isolate_cached(mem, slot))
        delete_from_swap_cache(mem, slot)
        mod_node_page_state(mem, frame, NR_SWAPCACHED, -1)
        free_pages(mem, frame, 1, 1)
    if huge != NIL:
        try_to_free_swap(mem, huge)


@kernel
def slot_at(mem: Memory, x: int, vpn: int) -> int:
    """Return the slot of a page of a swapped-out extent."""
    i = vpn - int(mem.ext[x].vpn)
    if mem.ext[x].flags & EXT_DESCENDING:
        return int(mem.ext[x].pfn) + int(mem.ext[x].nr) - 1 - i
    return int(mem.ext[x].pfn) + i


@kernel
def link_before(mem: Memory, mm: int, window: int, vpn: int) -> int:
    """Return the last extent of a window that begins below a page, or NIL."""
    before = NIL
    x = extents_in(mem, mm, window)
    while x != NIL and mem.ext[x].vpn < vpn:
        before = x
        x = int(mem.ext[x].next)
    return before


@kernel
def link_extent(mem: Memory, mm: int, window: int, before: int, x: int) -> None:
    """Put an extent into a window's list behind another one (or NIL)."""
    if before == NIL:
        mem.ext[x].next = extents_in(mem, mm, window)
        set_window(mem, mm, window, table_word(x))
    else:
        mem.ext[x].next = mem.ext[before].next
        mem.ext[before].next = x


@kernel
def unlink_from_window(mem: Memory, mm: int, window: int, x: int) -> int:
    """Take an extent off its window's list; return the one before it (or NIL)."""
    before = link_before(mem, mm, window, int(mem.ext[x].vpn))
    after = int(mem.ext[x].next)
    if before == NIL:
        set_window(mem, mm, window, table_word(after))
    else:
        mem.ext[before].next = after
    return before


@kernel
def isolate_page(mem: Memory, x: int, vpn: int) -> int:
    """Cut an extent so that one covers a page alone; return that one."""
    if mem.ext[x].vpn < vpn:
        x = cut_extent(mem, x, vpn)
    if mem.ext[x].nr > 1:
        cut_extent(mem, x, vpn + 1)
    return x


@hot_kernel
def isolate_extents(mem: Memory, mm: int, window: int, first: int, end: int) -> int:
    """Take the extents of pages ``first .. end - 1`` off a window's list, cut at the edges.

    Returns
    -------
    int
        How many; they stand in ``mem.scratch`` in page order.
    """
    nr = 0
    before = NIL
    x = extents_in(mem, mm, window)
    if first > window << HPAGE_PMD_ORDER:
        x = near_extent(mem, mm, first - 1, x)  # one that begins before the first page
    while x != NIL and int(mem.ext[x].vpn) < end:
        vpn = int(mem.ext[x].vpn)
        last = vpn + int(mem.ext[x].nr)
        if last <= first:
            before = x
            x = int(mem.ext[x].next)
            continue
        if vpn < first:
            before = x
            x = cut_extent(mem, x, first)
            continue
        if last > end:
            cut_extent(mem, x, end)
        mem.scratch[nr] = x
        nr += 1
        x = int(mem.ext[x].next)
    if nr > 0 and before == NIL:
        set_window(mem, mm, window, table_word(x))
    elif nr > 0:
        mem.ext[before].next = x
    mem.pool[P_NEAR] = before + 1
    return nr
