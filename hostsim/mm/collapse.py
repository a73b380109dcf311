"""Collapse: one window's small pages copied into a huge page.

What khugepaged and MADV_COLLAPSE share: the checks that a window must pass, and the collapse.

Source: Linux v6.1 and v6.12 mm/khugepaged.c hpage_collapse_scan_pmd, collapse_huge_page,
__collapse_huge_page_copy, madvise_collapse.
Simplified: the checks are made once more after the allocation instead of during isolation, so
that a page that compaction or reclaim moved meanwhile is seen.
Simplified: source pages are freed one by one in ascending order, not in the small batches in
which they leave the LRU lists.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NO_PFN, PAGEBLOCK_ORDER
from hostsim.mm.content import clear_huge, is_written, note_written, partly_written
from hostsim.mm.cost import C_SCAN_PTE, C_SCAN_WINDOW, charge, charge_huge_copy
from hostsim.mm.ksm_tree import put_ksm_page
from hostsim.mm.lru import fresh_stamp
from hostsim.mm.lru_stamp import (
    LRU_DIRTY,
    LRU_REFERENCED,
    LRU_YOUNG,
    extent_stamp,
    huge_stamp,
    set_huge_stamp,
)
from hostsim.mm.mm_types import (
    MM_ADVICE,
    MM_HUGE,
    MM_HUGETLB,
    MM_PINNED,
    MM_RAM_PAGES,
    MM_VMAS,
    NIL,
    P_NODE,
    P_NODEMASK,
    Memory,
)
from hostsim.mm.mmap import (
    ADVICE_NOHUGE,
    W_HUGE,
    W_NONE,
    W_TABLE,
    W_TAG,
    W_ZERO,
    huge_word,
    set_window,
    window_word,
)
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import account_rss, free_compound
from hostsim.mm.physmem import PB_COMPOUND, pageblock_state, pfn_to_nid
from hostsim.mm.pins import any_pinned
from hostsim.mm.promotion import max_ptes_none
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    EXT_KSM,
    EXT_SHARED,
    EXT_ZERO,
    KIND_MASK,
    KIND_SWAP,
    del_extent,
    extents_in,
    extents_of,
    frame_at,
)
from hostsim.mm.slowpath import GFP_DIRECT, alloc_huge
from hostsim.mm.split import deferred_split, is_pinned, queue_huge
from hostsim.mm.swap_state import do_swap_page, swapped_at
from hostsim.mm.tunables import (
    T_COLLAPSE_WRITABLE,
    T_DEFER_UNDERUSED,
    T_KHUGEPAGED_DEFRAG,
    T_KHUGEPAGED_MAX_PTES_SHARED,
    T_KHUGEPAGED_MAX_PTES_SWAP,
    WRITABLE_ALL,
    WRITABLE_ONE,
)
from hostsim.mm.unmap import isolate_extents, put_frames
from hostsim.mm.vma import VM_READONLY, vma_flags, window_in_vma
from hostsim.mm.vmstat import (
    NR_ANON_PAGES,
    NR_ANON_THPS,
    THP_COLLAPSE_ALLOC,
    THP_COLLAPSE_ALLOC_FAILED,
    THP_SCAN_EXCEED_NONE_PTE,
    THP_SCAN_EXCEED_SHARE_PTE,
    THP_SCAN_EXCEED_SWAP_PTE,
)

# enum scan_result, mm/khugepaged.c: what a window was found to be
SCAN_FAIL: Final = 0
SCAN_SUCCEED: Final = 1
SCAN_PMD_NONE: Final = 2
SCAN_PMD_MAPPED: Final = 3
SCAN_EXCEED_NONE_PTE: Final = 4
SCAN_EXCEED_SWAP_PTE: Final = 5
SCAN_EXCEED_SHARED_PTE: Final = 6
SCAN_PAGE_RO: Final = 7
SCAN_LACK_REFERENCED_PAGE: Final = 8
SCAN_PAGE_COUNT: Final = 9
SCAN_VMA_CHECK: Final = 10
SCAN_ALLOC_HUGE_PAGE_FAIL: Final = 11
NR_SCAN_RESULTS: Final = 12
# What MADV_COLLAPSE answers, as errno(3) numbers it
ENOUGH_REFERENCED: Final = HPAGE_PMD_NR // 2  # accessed pages beside swapped-out ones
EAGAIN: Final = 11
ENOMEM: Final = 12
EINVAL: Final = 22


@inline_kernel
def alloc_hugepage_khugepaged_gfpmask(mem: Memory) -> int:
    """Return what khugepaged's huge allocations may do, by the setting khugepaged/defrag."""
    return GFP_DIRECT if mem.tunables[T_KHUGEPAGED_DEFRAG] != 0 else 0


@inline_kernel
def is_young(mem: Memory, x: int) -> bool:
    """Tell whether pages were accessed; a huge page has one mark for all its mappings."""
    stamp = extent_stamp(mem, x)
    pb = int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER
    if pageblock_state(mem, pb) == PB_COMPOUND:
        stamp |= huge_stamp(mem, pb)
    return stamp & (LRU_YOUNG | LRU_REFERENCED) != 0


@kernel
def _is_pinned(mem: Memory, mm: int, x: int) -> bool:
    """Tell whether pages of an extent, or of the huge page of which they are, are pinned."""
    pb = int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER
    if pageblock_state(mem, pb) == PB_COMPOUND:
        return is_pinned(mem, pb)
    return any_pinned(mem, mm, int(mem.ext[x].vpn), int(mem.ext[x].vpn) + int(mem.ext[x].nr))


@kernel
def nr_mapped_elsewhere(mem: Memory, x: int) -> int:
    """Return how many pages of a shared extent another extent maps too."""
    nr = 0
    first = int(mem.ext[x].vpn)
    for vpn in range(first, first + int(mem.ext[x].nr)):
        frame = frame_at(mem, x, vpn)
        y = extents_of(mem, frame >> PAGEBLOCK_ORDER)
        while y != NIL:
            low = int(mem.ext[y].pfn)
            if y != x and low <= frame < low + int(mem.ext[y].nr):
                nr += 1
                break
            y = int(mem.ext[y].next_b)
    return nr


@kernel
def hpage_collapse_scan_pmd(mem: Memory, mm: int, window: int, by_khugepaged: bool) -> int:
    """Check one window, page by page; the first failing check decides.

    Parameters
    ----------
    by_khugepaged
        Whether the limits max_ptes_* and the accessed bits count, which MADV_COLLAPSE ignores.

    Returns
    -------
    int
        SCAN_SUCCEED if the window may be collapsed, else what was found.
    """
    word = window_word(mem, mm, window)
    if word == W_NONE:
        return SCAN_PMD_NONE
    if word == W_ZERO or word & W_TAG == W_HUGE:
        return SCAN_PMD_MAPPED
    max_none = max_ptes_none(mem)
    max_swap = mem.tunables[T_KHUGEPAGED_MAX_PTES_SWAP]
    max_shared = mem.tunables[T_KHUGEPAGED_MAX_PTES_SHARED]
    vpn = window << HPAGE_PMD_ORDER
    end = vpn + HPAGE_PMD_NR
    none = 0
    swapped = 0
    shared = 0
    read_only = 0
    referenced = 0
    x = extents_in(mem, mm, window)
    while vpn < end:
        here = int(mem.ext[x].vpn) if x != NIL else end
        none += here - vpn
        if by_khugepaged and none > max_none:
            mem.vmstat[THP_SCAN_EXCEED_NONE_PTE] += 1
            charge(mem, C_SCAN_PTE, here - (window << HPAGE_PMD_ORDER))
            return SCAN_EXCEED_NONE_PTE
        vpn = here
        if x == NIL:
            break
        nr = int(mem.ext[x].nr)
        if mem.ext[x].flags & KIND_MASK == KIND_SWAP:
            swapped += nr
            if by_khugepaged and swapped > max_swap:
                mem.vmstat[THP_SCAN_EXCEED_SWAP_PTE] += 1
                return SCAN_EXCEED_SWAP_PTE
            vpn += nr
            x = int(mem.ext[x].next)
            continue
        if mem.ext[x].flags & (EXT_SHARED | EXT_KSM):
            read_only += nr
            shared += nr_mapped_elsewhere(mem, x)
            if by_khugepaged and shared > max_shared:
                mem.vmstat[THP_SCAN_EXCEED_SHARE_PTE] += 1
                return SCAN_EXCEED_SHARED_PTE
        if mem.mm[mm, MM_PINNED] != 0 and _is_pinned(mem, mm, x):
            return SCAN_PAGE_COUNT
        if is_young(mem, x):
            referenced += nr
        vpn += nr
        x = int(mem.ext[x].next)
    charge(mem, C_SCAN_PTE, HPAGE_PMD_NR)
    if mem.mm[mm, MM_VMAS] != 0 and vma_flags(mem, mm, end - 1) & VM_READONLY:
        read_only = HPAGE_PMD_NR - none - swapped
    writable = mem.tunables[T_COLLAPSE_WRITABLE]
    if writable == WRITABLE_ONE and read_only + none + swapped == HPAGE_PMD_NR:
        return SCAN_PAGE_RO
    if writable == WRITABLE_ALL and read_only > 0:
        return SCAN_PAGE_RO
    if by_khugepaged and (referenced == 0 or (swapped > 0 and referenced < ENOUGH_REFERENCED)):
        return SCAN_LACK_REFERENCED_PAGE
    return SCAN_SUCCEED


@kernel
def find_target_node(mem: Memory, mm: int, window: int) -> None:
    """Let the coming request prefer the node of most of a window's pages, and no node with fewer.

    Nodes that have as many may serve it, too.

    Source: Linux v6.1.187 mm/khugepaged.c hpage_collapse_find_target_node; 6.12.117 likewise.
    Simplified: khugepaged counts as running on the node that it prefers (numa_local).
    """
    load = mem.scratch
    for nid in range(len(mem.node)):
        load[nid] = 0
    x = extents_in(mem, mm, window)
    while x != NIL:
        if mem.ext[x].flags & KIND_MASK != KIND_SWAP:
            load[pfn_to_nid(mem, int(mem.ext[x].pfn))] += int(mem.ext[x].nr)
        x = int(mem.ext[x].next)
    most = 0
    target = 0
    for nid in range(len(mem.node)):
        if load[nid] > most:
            most = load[nid]
            target = nid
    mask = 0
    for nid in range(len(mem.node)):
        if load[nid] == most:
            mask |= 1 << nid
    mem.pool[P_NODE] = target
    mem.pool[P_NODEMASK] = mask


@kernel
def collapse_huge_page(mem: Memory, mm: int, window: int, gfp: int, by_khugepaged: bool) -> int:
    """Collapse a window that passed the checks; return SCAN_SUCCEED or why not.

    The page table stays as the deposited one; after a failure everything is as before.
    """
    here = mem.pool[P_NODE]
    if len(mem.node) > 1:
        find_target_node(mem, mm, window)
    pb = alloc_huge(mem, mm, window, gfp)
    mem.pool[P_NODE] = here
    mem.pool[P_NODEMASK] = 0
    if pb == NO_PFN:
        mem.vmstat[THP_COLLAPSE_ALLOC_FAILED] += 1
        return SCAN_ALLOC_HUGE_PAGE_FAIL
    mem.vmstat[THP_COLLAPSE_ALLOC] += 1
    result = _swapin(mem, mm, window)
    if result == SCAN_SUCCEED:
        result = hpage_collapse_scan_pmd(mem, mm, window, by_khugepaged)
    if result != SCAN_SUCCEED:
        free_compound(mem, pb)
        return result
    notify(mem, mm, window, window << HPAGE_PMD_ORDER, (window + 1) << HPAGE_PMD_ORDER)
    charge_huge_copy(mem)
    _replace_pages(mem, mm, window, pb)
    set_window(mem, mm, window, huge_word(pb))
    set_huge_stamp(mem, pb, fresh_stamp(mem, LRU_YOUNG | LRU_DIRTY))
    mem.mm[mm, MM_HUGE] += 1
    mem.vmstat[NR_ANON_THPS] += 1
    mod_node_page_state(mem, pb << PAGEBLOCK_ORDER, NR_ANON_PAGES, HPAGE_PMD_NR)
    account_rss(mem, mm, window, HPAGE_PMD_NR)
    if mem.tunables[T_DEFER_UNDERUSED] != 0:
        queue_huge(mem, pb)
    return SCAN_SUCCEED


@kernel
def _swapin(mem: Memory, mm: int, window: int) -> int:
    """Read a window's swapped-out pages one by one; return SCAN_SUCCEED or why not all."""
    x = extents_in(mem, mm, window)
    while x != NIL and mem.ext[x].flags & KIND_MASK != KIND_SWAP:
        x = int(mem.ext[x].next)
    if x == NIL:
        return SCAN_SUCCEED
    for vpn in range(int(mem.ext[x].vpn), (window + 1) << HPAGE_PMD_ORDER):
        word = window_word(mem, mm, window)
        if word & W_TAG != W_TABLE:
            return SCAN_FAIL
        if swapped_at(mem, mm, window, vpn) != NIL:
            if not do_swap_page(mem, mm, window, vpn):
                return SCAN_FAIL
            if swapped_at(mem, mm, window, vpn) != NIL:
                return SCAN_FAIL
    return SCAN_SUCCEED


@kernel
def _copy_written(mem: Memory, x: int, new: int) -> None:
    """Note in a new huge page which of an extent's pages were ever written."""
    if mem.ext[x].flags & EXT_ZERO:
        return
    vpn = int(mem.ext[x].vpn)
    first = vpn & (HPAGE_PMD_NR - 1)
    nr = int(mem.ext[x].nr)
    pb = int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER
    if pageblock_state(mem, pb) != PB_COMPOUND:
        note_written(mem, new, first, nr)
        return
    for i in range(nr):
        if is_written(mem, pb, frame_at(mem, x, vpn + i) & (HPAGE_PMD_NR - 1)):
            note_written(mem, new, first + i, 1)


@kernel
def _replace_pages(mem: Memory, mm: int, window: int, new: int) -> None:
    """Copy all pages of a window, unmap them and free those that nobody else maps."""
    first = window << HPAGE_PMD_ORDER
    clear_huge(mem, new)
    nr = isolate_extents(mem, mm, window, first, first + HPAGE_PMD_NR)
    resident = 0
    for i in range(nr):
        x = mem.scratch[i]
        flags = int(mem.ext[x].flags)
        pfn = int(mem.ext[x].pfn)
        pages = int(mem.ext[x].nr)
        resident += pages
        if partly_written(mem, new):
            _copy_written(mem, x, new)
        pb = pfn >> PAGEBLOCK_ORDER
        if pageblock_state(mem, pb) == PB_COMPOUND and pages > 1 and flags & EXT_SHARED == 0:
            deferred_split(mem, pb)  # its pages are unmapped one by one
        del_extent(mem, x)
        if flags & EXT_KSM:
            put_ksm_page(mem, pfn)
            continue
        put_frames(mem, pfn, pages, flags & EXT_SHARED != 0, flags & EXT_DESCENDING != 0, True)
    account_rss(mem, mm, window, -resident)


@kernel
def collapse_window(mem: Memory, mm: int, window: int, gfp: int, by_khugepaged: bool) -> int:
    """Check a window and collapse it if it passes; return SCAN_SUCCEED or why not."""
    charge(mem, C_SCAN_WINDOW, 1)
    result = hpage_collapse_scan_pmd(mem, mm, window, by_khugepaged)
    if result == SCAN_SUCCEED:
        result = collapse_huge_page(mem, mm, window, gfp, by_khugepaged)
    return result


@kernel
def madvise_collapse(mem: Memory, mm: int, start: int, nr: int) -> int:
    """Collapse the whole windows of a range at once (MADV_COLLAPSE).

    Neither `enabled`, `defrag` nor the limits of khugepaged count.

    Returns
    -------
    int
        0 if every window is huge now, else an error number, negative.
    """
    if mem.mm[mm, MM_ADVICE] == ADVICE_NOHUGE or mem.mm[mm, MM_HUGETLB] != 0:
        return -EINVAL
    end = min(start + nr, mem.mm[mm, MM_RAM_PAGES]) >> HPAGE_PMD_ORDER
    last_failure = 0
    for window in range((start + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER, end):
        if mem.mm[mm, MM_VMAS] != 0 and not window_in_vma(mem, mm, window):
            last_failure = -EINVAL
            continue
        result = collapse_window(mem, mm, window, GFP_DIRECT, False)
        if result == SCAN_ALLOC_HUGE_PAGE_FAIL:
            return -ENOMEM
        if result == SCAN_PAGE_COUNT:
            last_failure = -EAGAIN
        elif result != SCAN_SUCCEED and result != SCAN_PMD_MAPPED:
            last_failure = -EINVAL
    return last_failure
