"""Unmapping: MADV_DONTNEED and the exit of a process.

Source: Linux v6.1 mm/memory.c zap_pte_range, mm/huge_memory.c zap_huge_pmd, mm/mmap.c
exit_mmap.
Simplified: the pages of one window are one gather batch (the kernel's holds about 510).
Simplified: an exit frees the deposited page tables of huge pages last, with all other tables.
"""

from hostsim.core.jit import hot_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.cost import C_FREE_PAGE, charge
from hostsim.mm.hugetlb import hugetlb_exit, windows_per_page, zap_hugetlb
from hostsim.mm.ksm_tree import ksm_exit, put_ksm_page
from hostsim.mm.mm_slot import khugepaged_exit
from hostsim.mm.mm_types import (
    MM_HUGE,
    MM_HUGETLB,
    MM_PINNED,
    MM_RAM_PAGES,
    MM_SWAP,
    MM_WINDOWS,
    NIL,
    P_NEAR,
    P_SPLIT_LEN,
    P_ZERO_USERS,
    Memory,
)
from hostsim.mm.mmap import (
    W_HUGE,
    W_HUGETLB,
    W_NONE,
    W_TABLE,
    W_TAG,
    W_ZERO,
    folded_pageblock,
    folds_downward,
    is_folded,
    mm_free,
    set_window,
    table_word,
    window_word,
)
from hostsim.mm.mmu_notifier import notifier_release, notify
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import account_rss, free_compound
from hostsim.mm.pgtable import free_all_tables, free_table
from hostsim.mm.physmem import PB_HUGE, pageblock_state
from hostsim.mm.pins import forget_pins
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    EXT_KSM,
    EXT_SHARED,
    KIND_MASK,
    KIND_PGTABLE,
    KIND_SWAP,
    del_extent,
)
from hostsim.mm.split import nr_pmd_mappings, pmd_mapping, split_pmd, undo_deferred
from hostsim.mm.tunables import T_REVERSE_ZAP
from hostsim.mm.unmap import free_swap_and_cache, isolate_extents, put_frames
from hostsim.mm.vma import free_vmas
from hostsim.mm.vmstat import NR_ANON_PAGES, NR_ANON_THPS, THP_SPLIT_PMD


@hot_kernel
def _zap_folded(mem: Memory, mm: int, window: int) -> None:
    """Unmap all pages of a folded window."""
    word = window_word(mem, mm, window)
    pb = folded_pageblock(word)
    set_window(mem, mm, window, table_word(NIL))
    mem.pb[pb].a = NIL
    mem.pool[P_NEAR] = 0
    reverse = mem.tunables[T_REVERSE_ZAP] != 0
    put_frames(
        mem, pb << PAGEBLOCK_ORDER, HPAGE_PMD_NR, False, folds_downward(word) != reverse, True
    )
    account_rss(mem, mm, window, -HPAGE_PMD_NR)
    charge(mem, C_FREE_PAGE, HPAGE_PMD_NR)


@kernel
def zap_table(mem: Memory, mm: int, window: int, first: int, end: int) -> None:
    """Unmap pages ``first .. end - 1`` of a window with a page table."""
    if end - first == HPAGE_PMD_NR and is_folded(window_word(mem, mm, window)):
        _zap_folded(mem, mm, window)
        return
    nr = isolate_extents(mem, mm, window, first, end)
    reverse = mem.tunables[T_REVERSE_ZAP] != 0
    dropped = 0
    for i in range(nr):
        x = mem.scratch[(nr - 1 - i if reverse else i)]
        flags = int(mem.ext[x].flags)
        pfn = int(mem.ext[x].pfn)
        pages = int(mem.ext[x].nr)
        if flags & KIND_MASK == KIND_SWAP:
            mem.mm[mm, MM_SWAP] -= pages
            free_swap_and_cache(mem, x)
            del_extent(mem, x)
            continue
        del_extent(mem, x)
        dropped += pages
        if flags & EXT_KSM:
            put_ksm_page(mem, pfn)
            continue
        downward = (flags & EXT_DESCENDING) != 0
        put_frames(mem, pfn, pages, (flags & EXT_SHARED) != 0, downward != reverse, True)
    account_rss(mem, mm, window, -dropped)
    charge(mem, C_FREE_PAGE, dropped)


@hot_kernel
def zap_huge(mem: Memory, mm: int, window: int) -> None:
    """Unmap a window's huge PMD; its deposited page table is the caller's to free."""
    pb = window_word(mem, mm, window) >> 2
    set_window(mem, mm, window, W_NONE)
    mem.mm[mm, MM_HUGE] -= 1
    account_rss(mem, mm, window, -HPAGE_PMD_NR)
    charge(mem, C_FREE_PAGE, 1)
    if pageblock_state(mem, pb) == PB_HUGE:
        mem.vmstat[NR_ANON_THPS] -= 1
        mod_node_page_state(mem, pb << PAGEBLOCK_ORDER, NR_ANON_PAGES, -HPAGE_PMD_NR)
        if mem.pool[P_SPLIT_LEN] != 0:
            undo_deferred(mem, pb)
        free_compound(mem, pb)
        return
    x = pmd_mapping(mem, pb, mm, window)
    del_extent(mem, x)
    if nr_pmd_mappings(mem, pb) == 0:
        mem.vmstat[NR_ANON_THPS] -= 1
    put_frames(mem, pb << PAGEBLOCK_ORDER, HPAGE_PMD_NR, True, False, False)


@kernel
def zap_window(mem: Memory, mm: int, window: int, first: int, end: int) -> None:
    """Unmap pages ``first .. end - 1`` of one window."""
    word = window_word(mem, mm, window)
    if word == W_NONE:
        return
    if word & W_TAG == W_HUGETLB:
        zap_hugetlb(mem, mm, window, first, end)
        return
    whole = end - first == HPAGE_PMD_NR
    if word == W_ZERO:  # its PMD goes, whatever part is meant
        first = window << HPAGE_PMD_ORDER
        end = first + HPAGE_PMD_NR
    notify(mem, mm, window, first, end)
    if word == W_ZERO:
        mem.pool[P_ZERO_USERS] -= 1
        if whole:
            free_table(mem, mm, KIND_PGTABLE)
            set_window(mem, mm, window, W_NONE)
        else:
            mem.vmstat[THP_SPLIT_PMD] += 1
            set_window(mem, mm, window, table_word(NIL))
        return
    if word & W_TAG == W_HUGE:
        if whole:
            free_table(mem, mm, KIND_PGTABLE)
            zap_huge(mem, mm, window)
            return
        split_pmd(mem, mm, window)
    zap_table(mem, mm, window, first, end)


@kernel
def discard_range(mem: Memory, mm: int, start: int, nr: int) -> None:
    """Drop pages of a process (MADV_DONTNEED on one range).

    Of hugetlb memory only whole pages go, from one's first page on.
    """
    page = start
    end = start + nr
    if mem.mm[mm, MM_PINNED] != 0:
        forget_pins(mem, mm, start, end)
    if mem.mm[mm, MM_HUGETLB] != 0 and start < mem.mm[mm, MM_RAM_PAGES]:
        step = windows_per_page(mem.mm[mm, MM_HUGETLB] - 1) << HPAGE_PMD_ORDER
        if start % step != 0:
            return
        if end < mem.mm[mm, MM_RAM_PAGES]:
            end = end // step * step
    while page < end:
        window = page >> HPAGE_PMD_ORDER
        stop = min(end, (window + 1) << HPAGE_PMD_ORDER)
        zap_window(mem, mm, window, page, stop)
        page = stop


@kernel
def exit_mm(mem: Memory, mm: int) -> None:
    """End a process and free all it owns."""
    notifier_release(mem, mm)
    for window in range(mem.mm[mm, MM_WINDOWS]):
        word = window_word(mem, mm, window)
        if word == W_NONE:
            continue
        first = window << HPAGE_PMD_ORDER
        if word & W_TAG == W_HUGETLB:
            continue  # by hugetlb_exit
        if word & W_TAG == W_TABLE:
            zap_table(mem, mm, window, first, first + HPAGE_PMD_NR)
        elif word & W_TAG == W_HUGE:
            zap_huge(mem, mm, window)
        else:
            zap_window(mem, mm, window, first, first + HPAGE_PMD_NR)
    hugetlb_exit(mem, mm)
    forget_pins(mem, mm, 0, mem.mm[mm, MM_WINDOWS] << HPAGE_PMD_ORDER)
    free_all_tables(mem, mm)
    ksm_exit(mem, mm)
    free_vmas(mem, mm)
    khugepaged_exit(mem, mm)
    mm_free(mem, mm)
