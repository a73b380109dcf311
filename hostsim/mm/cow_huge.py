"""Copy on write of a huge page as 2.6.38 does it: 2 MiB at once, or 512 small pages.

The copy is a huge page again, which is the point: memory and cache for speed after the fault.

Source: Linux v2.6.38 mm/huge_memory.c do_huge_pmd_wp_page, do_huge_pmd_wp_page_fallback.
"""

from hostsim.core.jit import kernel
from hostsim.core.units import (
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    NO_PFN,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.content import clear_huge, is_written, note_written, partly_written
from hostsim.mm.cost import C_COPY_PAGE, C_FAULT, charge, charge_huge_copy
from hostsim.mm.lru import fresh_stamp
from hostsim.mm.lru_stamp import LRU_YOUNG, set_extent_stamp, set_huge_stamp
from hostsim.mm.mm_types import MIGRATE_MOVABLE, MM_HUGE, NIL, P_MAP_SEQ, Memory
from hostsim.mm.mmap import W_HUGE, W_TAG, huge_word, set_window, table_word, window_word
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import free_compound, free_pages
from hostsim.mm.physmem import PB_HUGE, pageblock_state
from hostsim.mm.rmap import EXT_ZERO, KIND_ANON, add_extent, del_extent
from hostsim.mm.slowpath import alloc_huge, alloc_pages, vma_thp_gfp_mask
from hostsim.mm.split import nr_pmd_mappings, pmd_mapping
from hostsim.mm.unmap import put_frames
from hostsim.mm.vmstat import NR_ANON_PAGES, NR_ANON_THPS


@kernel
def _still_shared(mem: Memory, mm: int, window: int, pb: int) -> bool:
    """Tell whether a window still maps a shared huge page after an allocation."""
    word = window_word(mem, mm, window)
    return word & W_TAG == W_HUGE and word >> 2 == pb and pageblock_state(mem, pb) != PB_HUGE


@kernel
def _drop_old(mem: Memory, mm: int, window: int, pb: int) -> None:
    """Unmap the shared page from the window, whose new mapping is the caller's."""
    first = window << HPAGE_PMD_ORDER
    notify(mem, mm, window, first, first + HPAGE_PMD_NR)
    x = pmd_mapping(mem, pb, mm, window)
    del_extent(mem, x)
    if nr_pmd_mappings(mem, pb) == 0:
        mem.vmstat[NR_ANON_THPS] -= 1
    put_frames(mem, pb << PAGEBLOCK_ORDER, HPAGE_PMD_NR, True, False, False)


@kernel
def _copy_huge(mem: Memory, mm: int, window: int, old: int, new: int) -> None:
    """Map a copy of a huge page in its place."""
    if partly_written(mem, old):
        clear_huge(mem, new)
        for i in range(PAGEBLOCK_NR_PAGES):
            if is_written(mem, old, i):
                note_written(mem, new, i, 1)
    _drop_old(mem, mm, window, old)
    mod_node_page_state(mem, new << PAGEBLOCK_ORDER, NR_ANON_PAGES, HPAGE_PMD_NR)
    set_window(mem, mm, window, huge_word(new))
    set_huge_stamp(mem, new, fresh_stamp(mem, LRU_YOUNG))
    mem.vmstat[NR_ANON_THPS] += 1
    charge_huge_copy(mem)


@kernel
def _undo(mem: Memory, x: int) -> None:
    """Free the pages of a chain of extents that no window holds."""
    while x != NIL:
        after = int(mem.ext[x].next)
        pfn = int(mem.ext[x].pfn)
        nr = int(mem.ext[x].nr)
        del_extent(mem, x)
        free_pages(mem, pfn, nr, 1)
        x = after


@kernel
def _copy_small(mem: Memory, mm: int, window: int, old: int) -> bool:
    """Map 512 small copies in place of a huge page; False, and nothing changed: out of memory."""
    first = window << HPAGE_PMD_ORDER
    seq = mem.pool[P_MAP_SEQ]
    head = NIL
    last = NIL
    for i in range(HPAGE_PMD_NR):
        pfn, _, _ = alloc_pages(mem, 0, MIGRATE_MOVABLE, 1)
        if pfn == NO_PFN or mem.pool[P_MAP_SEQ] != seq:
            if pfn != NO_PFN:
                free_pages(mem, pfn, 1, 1)
            _undo(mem, head)
            return pfn != NO_PFN
        x = add_extent(mem, pfn, 1, mm, first + i, KIND_ANON)
        set_extent_stamp(mem, x, fresh_stamp(mem, LRU_YOUNG))
        if not is_written(mem, old, i):
            mem.ext[x].flags |= EXT_ZERO
        if last == NIL:
            head = x
        else:
            mem.ext[last].next = x
        last = x
    _drop_old(mem, mm, window, old)
    x = head
    while x != NIL:
        mod_node_page_state(mem, int(mem.ext[x].pfn), NR_ANON_PAGES, 1)
        x = int(mem.ext[x].next)
    set_window(mem, mm, window, table_word(head))
    mem.mm[mm, MM_HUGE] -= 1
    charge(mem, C_FAULT, HPAGE_PMD_NR)
    charge(mem, C_COPY_PAGE, HPAGE_PMD_NR)
    return True


@kernel
def cow_huge(mem: Memory, mm: int, window: int) -> bool:
    """Give a window that writes to a shared huge page a copy of its own; False: out of memory."""
    old = window_word(mem, mm, window) >> 2
    while _still_shared(mem, mm, window, old):
        seq = mem.pool[P_MAP_SEQ]
        new = alloc_huge(mem, mm, window, vma_thp_gfp_mask(mem, mm))
        if new == NO_PFN:
            if _still_shared(mem, mm, window, old) and not _copy_small(mem, mm, window, old):
                return False
        elif mem.pool[P_MAP_SEQ] == seq:
            _copy_huge(mem, mm, window, old, new)
        else:
            free_compound(mem, new)
    return True
