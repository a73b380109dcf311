"""Anonymous page faults: the transparent hugepage policy, then 4 KiB pages.

Source: Linux v6.1 mm/memory.c do_anonymous_page; mm/huge_memory.c do_huge_pmd_anonymous_page,
vma_thp_gfp_mask; include/linux/huge_mm.h.
Simplified: a 4 KiB read fault leaves a hole, not a mapping of the zero page.
Simplified: a window whose page table is lost to many single pages stays a list of extents.
"""

from typing import Final

import numpy as np

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.units import (
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    NO_PFN,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.content import clear_huge, note_written, partly_written
from hostsim.mm.cost import C_CLEAR_PAGE, C_FAULT, C_HUGE_FAULT, charge
from hostsim.mm.fault_run import fault_run, map_run
from hostsim.mm.fork import wp_huge, wp_page
from hostsim.mm.hugetlb import hugetlb_fault, windows_per_page
from hostsim.mm.lru import fresh_stamp
from hostsim.mm.lru_stamp import (
    LRU_YOUNG,
    extent_stamp,
    huge_stamp,
    set_extent_stamp,
    set_huge_stamp,
)
from hostsim.mm.mm_slot import khugepaged_enter, thp_enabled
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    MM_HUGE,
    MM_HUGETLB,
    MM_RAM_PAGES,
    MM_THP_ALLOC,
    MM_THP_FALLBACK,
    MM_VMAS,
    NIL,
    P_MAP_SEQ,
    P_NEAR,
    P_RESUME,
    P_ZERO_PB,
    P_ZERO_USERS,
    Memory,
)
from hostsim.mm.mmap import (
    W_HUGE,
    W_NONE,
    W_TABLE,
    W_TAG,
    W_ZERO,
    huge_word,
    is_folded,
    set_window,
    table_word,
    window_word,
)
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.numa import mod_node_page_state, run_on_node_of
from hostsim.mm.page_alloc import account_rss, free_compound
from hostsim.mm.pb_packed import set_pb_b
from hostsim.mm.pgtable import alloc_table
from hostsim.mm.physmem import PB_HUGE, pageblock_state, set_state
from hostsim.mm.policy_reservation import promote_if_full, reserve, reserved_block
from hostsim.mm.promotion import RESERVATION, first_fault
from hostsim.mm.promotion_types import FIRST_RESERVE, FIRST_SMALL
from hostsim.mm.rmap import (
    EXT_SHARED,
    EXT_ZERO,
    KIND_MASK,
    KIND_PGTABLE,
    KIND_SWAP,
    cut_extent,
    extents_in,
    frame_at,
    near_extent,
    try_fold,
)
from hostsim.mm.slowpath import (
    GFP_DIRECT,
    alloc_huge,
    alloc_pages,
    alloc_pages_gfp,
    vma_thp_gfp_mask,
)
from hostsim.mm.split import queue_huge
from hostsim.mm.swap_state import do_swap_page
from hostsim.mm.tunables import T_DEFER_UNDERUSED, T_THP_POLICY, T_USE_ZERO_PAGE
from hostsim.mm.unmap import link_before
from hostsim.mm.vma import window_in_vma
from hostsim.mm.vmstat import (
    NR_ANON_PAGES,
    NR_ANON_THPS,
    PGFAULT,
    THP_FAULT_ALLOC,
    THP_FAULT_FALLBACK,
    THP_SPLIT_PMD,
    THP_ZERO_PAGE_ALLOC,
    THP_ZERO_PAGE_ALLOC_FAILED,
)

FAULT_OK: Final = 0
FAULT_SIGBUS: Final = 2  # no hugetlb page for a mapping without a reservation
FAULT_OOM: Final = 1  # no page above the min watermark: the OOM killer's turn


@kernel
def chosen(seed: int, page: int, fraction: float) -> bool:
    """Tell whether a page takes part in an access of a fraction of a range.

    splitmix64 of ``seed * 2**32 + page``, its top 53 bits against the fraction.
    """
    if fraction >= 1.0:
        return True
    z = (np.uint64(seed) << np.uint64(32)) + np.uint64(page) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * 2.0**-53 < fraction


@inline_kernel
def thp_eligible(mem: Memory, mm: int, window: int) -> bool:
    """Tell whether a fault in an empty window may install a huge page."""
    if not thp_enabled(mem, mm):
        return False
    if mem.mm[mm, MM_VMAS] != 0:
        return window_in_vma(mem, mm, window)
    return (window + 1) << HPAGE_PMD_ORDER <= mem.mm[mm, MM_RAM_PAGES]


@hot_kernel
def map_huge(mem: Memory, mm: int, window: int, pb: int) -> None:
    """Map a fresh huge page by the window's PMD."""
    set_window(mem, mm, window, huge_word(pb))
    set_huge_stamp(mem, pb, fresh_stamp(mem, LRU_YOUNG))
    mem.mm[mm, MM_HUGE] += 1
    mem.vmstat[NR_ANON_THPS] += 1
    mod_node_page_state(mem, pb << PAGEBLOCK_ORDER, NR_ANON_PAGES, HPAGE_PMD_NR)
    account_rss(mem, mm, window, HPAGE_PMD_NR)
    if mem.tunables[T_DEFER_UNDERUSED] != 0:
        queue_huge(mem, pb)


@kernel
def _huge_zero_page(mem: Memory) -> bool:
    """Make sure that the shared huge zero page exists; nothing can move it."""
    if mem.pool[P_ZERO_PB] != 0:
        return True
    pfn, _, _ = alloc_pages_gfp(mem, HPAGE_PMD_ORDER, MIGRATE_UNMOVABLE, 1, GFP_DIRECT)
    if pfn == NO_PFN:
        mem.vmstat[THP_ZERO_PAGE_ALLOC_FAILED] += 1
        return False
    pb = pfn >> PAGEBLOCK_ORDER
    set_state(mem, pb, PB_HUGE, MIGRATE_MOVABLE)
    mem.pb[pb].a = NIL
    set_pb_b(mem, pb, 0)
    mem.pool[P_ZERO_PB] = pb + 1
    mem.vmstat[THP_ZERO_PAGE_ALLOC] += 1
    return True


@kernel
def _make_table(mem: Memory, mm: int, window: int) -> bool:
    """Give a window an empty page table."""
    if not alloc_table(mem, mm, KIND_PGTABLE):
        return False
    set_window(mem, mm, window, table_word(NIL))
    return True


@kernel
def _fault_empty_window(
    mem: Memory, mm: int, window: int, page: int, write: bool, whole: bool
) -> int:
    """Serve the first fault of a window: huge if possible, else leave an empty page table.

    ``whole``: all its pages are written now, so that none is noted as never written.
    """
    choice = FIRST_SMALL
    if thp_eligible(mem, mm, window):
        khugepaged_enter(mem, mm)
        choice = first_fault(mem)
    if choice != FIRST_SMALL:
        if not write and mem.tunables[T_USE_ZERO_PAGE] != 0:
            if _huge_zero_page(mem):
                if not alloc_table(mem, mm, KIND_PGTABLE):
                    return FAULT_OOM
                mem.pool[P_ZERO_USERS] += 1
                set_window(mem, mm, window, W_ZERO)
                mem.vmstat[PGFAULT] += 1
                return FAULT_OK
        else:
            pb = alloc_huge(mem, mm, window, vma_thp_gfp_mask(mem, mm))
            if pb != NO_PFN:
                if not alloc_table(mem, mm, KIND_PGTABLE):
                    free_compound(mem, pb)
                    return FAULT_OOM
                if choice == FIRST_RESERVE:
                    reserve(mem, mm, window, page, pb)
                    mem.vmstat[PGFAULT] += 1
                    charge(mem, C_FAULT, 1)
                    charge(mem, C_CLEAR_PAGE, 1)
                    return FAULT_OK
                map_huge(mem, mm, window, pb)
                if not whole:
                    clear_huge(mem, pb)
                mem.vmstat[PGFAULT] += 1
                mem.vmstat[THP_FAULT_ALLOC] += 1
                mem.mm[mm, MM_THP_ALLOC] += 1
                charge(mem, C_HUGE_FAULT, 1)
                charge(mem, C_CLEAR_PAGE, HPAGE_PMD_NR)
                return FAULT_OK
        mem.vmstat[THP_FAULT_FALLBACK] += 1
        mem.mm[mm, MM_THP_FALLBACK] += 1
    return FAULT_OK if _make_table(mem, mm, window) else FAULT_OOM


@kernel
def _fill_gap(mem: Memory, mm: int, window: int, before: int, vpn: int, nr: int) -> int:
    """Fault in ``nr`` consecutive absent pages behind an extent.

    Returns
    -------
    int
        The last extent, or ``NIL - 1 - pages`` after so many pages when memory ran out.
    """
    done = 0
    while done < nr:
        seq = mem.pool[P_MAP_SEQ]
        reserved = NIL
        if mem.tunables[T_THP_POLICY] == RESERVATION:
            reserved = reserved_block(mem, mm, window)
        if reserved != NIL:
            pfn = (reserved << PAGEBLOCK_ORDER) + ((vpn + done) & (HPAGE_PMD_NR - 1))
            taken, step = nr - done, 1
        else:
            pfn, taken, step = alloc_pages(mem, 0, MIGRATE_MOVABLE, nr - done)
        if pfn == NO_PFN:
            return NIL - 1 - done
        if mem.pool[P_MAP_SEQ] != seq:
            before = link_before(mem, mm, window, vpn + done)
        before = map_run(mem, mm, window, before, vpn + done, pfn, taken, step)
        account_rss(mem, mm, window, taken)
        mod_node_page_state(mem, pfn, NR_ANON_PAGES, taken)
        mem.vmstat[PGFAULT] += taken
        charge(mem, C_FAULT, taken)
        charge(mem, C_CLEAR_PAGE, taken)
        done += taken
    return before


@kernel
def _write_mapped(mem: Memory, mm: int, window: int, x: int, page: int) -> bool:
    """Write to a page of an extent that is shared or not wholly written; False: out of memory."""
    flags = int(mem.ext[x].flags)
    if flags & EXT_SHARED:
        return wp_page(mem, mm, window, page)
    if flags & EXT_ZERO:
        if int(mem.ext[x].vpn) < page:
            x = cut_extent(mem, x, page)
        if mem.ext[x].nr > 1:
            cut_extent(mem, x, page + 1)
        mem.ext[x].flags &= ~EXT_ZERO
        return True
    pfn = frame_at(mem, x, page)
    note_written(mem, pfn >> PAGEBLOCK_ORDER, pfn & (PAGEBLOCK_NR_PAGES - 1), 1)
    return True


@kernel
def note_access(
    mem: Memory, pb: int, start: int, end: int, step: int, fraction: float, seed: int, first: int
) -> None:
    """Note the pages of a huge page that a write to pages ``start .. end - 1`` reaches."""
    if not partly_written(mem, pb):
        return
    if step == 1 and fraction >= 1.0:
        note_written(mem, pb, start & (HPAGE_PMD_NR - 1), end - start)
        return
    for page in range(start, end):
        if (page - first) % step == 0 and chosen(seed, page, fraction):
            note_written(mem, pb, page & (HPAGE_PMD_NR - 1), 1)


@kernel
def _touch_table(
    mem: Memory,
    mm: int,
    window: int,
    start: int,
    end: int,
    step: int,
    fraction: float,
    seed: int,
    first: int,
    write: bool,
) -> int:
    """Access pages ``start .. end - 1`` of a window with a page table; see `touch_range`."""
    before = NIL
    x = near_extent(mem, mm, start, extents_in(mem, mm, window))
    page = start
    while x != NIL and mem.ext[x].vpn + int(mem.ext[x].nr) <= page:
        before = x
        x = int(mem.ext[x].next)
    mem.pool[P_NEAR] = before + 1
    while page < end:
        while x != NIL and mem.ext[x].vpn + int(mem.ext[x].nr) <= page:
            before = x
            x = int(mem.ext[x].next)
        absent_end = min(end, int(mem.ext[x].vpn)) if x != NIL else end
        if page >= absent_end:  # inside extent x
            flags = int(mem.ext[x].flags)
            swapped = flags & KIND_MASK == KIND_SWAP
            alone = flags & (EXT_SHARED | EXT_ZERO) == 0
            if alone and not swapped:
                alone = not partly_written(mem, int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER)
            if not swapped and (alone or not write):
                set_extent_stamp(mem, x, extent_stamp(mem, x) | LRU_YOUNG)
                page = int(mem.ext[x].vpn) + int(mem.ext[x].nr)
            elif (page - first) % step != 0 or not chosen(seed, page, fraction):
                page += 1
            else:
                seq = mem.pool[P_MAP_SEQ]
                if swapped:
                    enough = do_swap_page(mem, mm, window, page)
                else:
                    enough = _write_mapped(mem, mm, window, x, page)
                if not enough:
                    mem.pool[P_RESUME] = page
                    return FAULT_OOM
                if not swapped and mem.pool[P_MAP_SEQ] == seq:
                    page += 1
                before = NIL
                x = extents_in(mem, mm, window)
            continue
        if not write:  # a read leaves the hole
            page = absent_end
            continue
        if step == 1 and fraction >= 1.0:
            run = absent_end - page
        else:
            while page < absent_end and not (
                (page - first) % step == 0 and chosen(seed, page, fraction)
            ):
                page += 1
            run = 0
            while page + run < absent_end and (
                (page + run - first) % step == 0 and chosen(seed, page + run, fraction)
            ):
                run += 1
        if run > 0:
            last = _fill_gap(mem, mm, window, before, page, run)
            if last < NIL:
                mem.pool[P_RESUME] = page + (NIL - 1 - last)
                return FAULT_OOM
            before = last
            x = int(mem.ext[last].next)
            page += run
    return FAULT_OK


@kernel
def _touch_hugetlb(mem: Memory, mm: int, window: int) -> bool:
    """Access a window that hugetlb pages back; return whether the pool had one."""
    if window_word(mem, mm, window) != W_NONE:
        return True
    mem.vmstat[PGFAULT] += 1
    if not hugetlb_fault(mem, mm, window):
        return False
    charge(mem, C_HUGE_FAULT, 1)
    pages = windows_per_page(mem.mm[mm, MM_HUGETLB] - 1) << HPAGE_PMD_ORDER
    charge(mem, C_CLEAR_PAGE, pages)
    return True


@inline_kernel
def _make_writable(mem: Memory, mm: int, window: int) -> bool:
    """Give up what a huge PMD shares, the zero page or a fork's; return whether memory was had."""
    word = window_word(mem, mm, window)
    if word == W_ZERO:
        notify(mem, mm, window, window << HPAGE_PMD_ORDER, (window + 1) << HPAGE_PMD_ORDER)
        mem.vmstat[THP_SPLIT_PMD] += 1
        mem.pool[P_ZERO_USERS] -= 1
        set_window(mem, mm, window, table_word(NIL))
        return True
    if word & W_TAG == W_HUGE and pageblock_state(mem, word >> 2) != PB_HUGE:
        return bool(wp_huge(mem, mm, window))
    return True


@kernel
def touch_range(
    mem: Memory,
    mm: int,
    start: int,
    nr: int,
    step: int,
    fraction: float,
    seed: int,
    write: bool,
    resume: int,
) -> int:
    """Access pages ``start, start + step, ...`` below ``start + nr`` of a process in order.

    With a fraction, only pages that `chosen` picks.  Every absent page faults.

    Parameters
    ----------
    write
        Whether the access writes; a read of an absent small page changes nothing but leaves
        a page table.
    resume
        Page to begin with: ``start``, or where the last call stopped (``pool[P_RESUME]``).

    Returns
    -------
    int
        FAULT_OK, FAULT_OOM when no page could be had: the caller kills and resumes, or
        FAULT_SIGBUS: the process is killed.
    """
    end = start + nr
    page = resume
    while page < end:
        window = page >> HPAGE_PMD_ORDER
        stop = min(end, (window + 1) << HPAGE_PMD_ORDER)
        while page < stop and not ((page - start) % step == 0 and chosen(seed, page, fraction)):
            page += 1
        if page >= stop:
            continue
        mem.pool[P_RESUME] = page
        run_on_node_of(mem, mm, window)
        if mem.mm[mm, MM_HUGETLB] != 0 and window << HPAGE_PMD_ORDER < mem.mm[mm, MM_RAM_PAGES]:
            if not _touch_hugetlb(mem, mm, window):
                return FAULT_SIGBUS
            page = stop
            continue
        if window_word(mem, mm, window) == W_NONE:
            whole = write and step == 1 and fraction >= 1.0 and stop - page == HPAGE_PMD_NR
            if whole:
                done = fault_run(mem, mm, window, (end - page) >> HPAGE_PMD_ORDER)
                if done > 0:
                    page += done << HPAGE_PMD_ORDER
                    continue
            if _fault_empty_window(mem, mm, window, page, write, whole) != FAULT_OK:
                return FAULT_OOM
        if write and not _make_writable(mem, mm, window):
            return FAULT_OOM
        word = window_word(mem, mm, window)
        if word & W_TAG == W_HUGE:
            set_huge_stamp(mem, word >> 2, huge_stamp(mem, word >> 2) | LRU_YOUNG)
            if write and partly_written(mem, word >> 2):
                note_access(mem, word >> 2, page, stop, step, fraction, seed, start)
        elif word & W_TAG == W_TABLE and not is_folded(word):
            status = _touch_table(mem, mm, window, page, stop, step, fraction, seed, start, write)
            if status != FAULT_OK:
                return status
            if mem.tunables[T_THP_POLICY] == RESERVATION:
                promote_if_full(mem, mm, window)
            try_fold(mem, mm, window)
        page = stop
    return FAULT_OK
