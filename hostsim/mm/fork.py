"""fork and copy on write.

Pages that a device uses are copied at the fork, so that the parent keeps their frames whoever
writes first; a huge page of which one is pinned has its PMD split for that.  2.6.38 shares them.

Source: Linux v6.1 mm/memory.c copy_page_range, do_wp_page; mm/huge_memory.c copy_huge_pmd,
do_huge_pmd_wp_page, copy_present_page.
"""

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NO_PFN, PAGEBLOCK_ORDER
from hostsim.mm.content import is_written, note_written
from hostsim.mm.cost import C_COPY_PAGE, C_FAULT, charge
from hostsim.mm.cow_huge import cow_huge
from hostsim.mm.ksm_tree import ksm_enter, put_ksm_page
from hostsim.mm.lru import fresh_stamp
from hostsim.mm.lru_stamp import LRU_YOUNG, extent_stamp, set_extent_stamp
from hostsim.mm.mm_slot import khugepaged_fork
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MM_ALIKE,
    MM_CONTENT,
    MM_HUGE,
    MM_IMAGE,
    MM_MERGEABLE,
    MM_PINNED,
    MM_SWAP,
    MM_WINDOWS,
    NIL,
    P_EXT_LIVE,
    P_MAP_SEQ,
    P_ZERO_USERS,
    Memory,
)
from hostsim.mm.mmap import (
    W_HUGE,
    W_HUGETLB,
    W_NONE,
    W_TAG,
    W_ZERO,
    set_window,
    table_word,
    window_word,
)
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import account_rss, free_pages
from hostsim.mm.pb_packed import set_pb_b
from hostsim.mm.pgtable import alloc_table
from hostsim.mm.physmem import PB_COMPOUND, PB_HUGE, pageblock_state, set_state
from hostsim.mm.pins import cut_at_pin
from hostsim.mm.rmap import (
    EXT_KSM,
    EXT_PMD,
    EXT_SHARED,
    EXT_ZERO,
    KIND_ANON,
    KIND_MASK,
    KIND_PGTABLE,
    KIND_SWAP,
    add_extent,
    del_extent,
    extents_in,
    extents_of,
    frame_at,
    new_extent,
    try_extend,
)
from hostsim.mm.slowpath import alloc_pages
from hostsim.mm.split import (
    is_pinned,
    make_compound,
    nr_pmd_mappings,
    pmd_mapping,
    split_mapping,
    split_pmd,
    undo_deferred,
)
from hostsim.mm.tunables import T_COW_HUGE, T_PHYSICAL_SPLIT
from hostsim.mm.unmap import isolate_page, link_before, link_extent, put_frames, unlink_from_window
from hostsim.mm.vma import copy_vmas
from hostsim.mm.vmstat import COW_KSM, NR_ANON_PAGES, PGFAULT


@kernel
def _copy_huge(mem: Memory, parent: int, child: int, window: int) -> None:
    """Let a child map its parent's huge page by a PMD of its own."""
    pb = window_word(mem, parent, window) >> 2
    if pageblock_state(mem, pb) == PB_HUGE:
        make_compound(mem, pb, parent, window, KIND_ANON | EXT_PMD | EXT_SHARED)
    add_extent(
        mem,
        pb << PAGEBLOCK_ORDER,
        HPAGE_PMD_NR,
        child,
        window << HPAGE_PMD_ORDER,
        KIND_ANON | EXT_PMD | EXT_SHARED,
    )
    set_window(mem, child, window, window_word(mem, parent, window))
    mem.mm[child, MM_HUGE] += 1
    account_rss(mem, child, window, HPAGE_PMD_NR)


@kernel
def _cut_pinned(mem: Memory, x: int) -> bool:
    """Cut an extent where its pages begin or cease to be pinned; tell whether its own are.

    Of a huge page all are if one is.
    """
    pb = int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER
    if pageblock_state(mem, pb) == PB_COMPOUND:
        return is_pinned(mem, pb)
    pinned, _ = cut_at_pin(mem, x)
    return pinned


@kernel
def _copy_pinned(mem: Memory, parent: int, child: int, window: int) -> bool:
    """Give a child copies of a window's pinned pages, which its parent keeps (copy_present_page).

    Returns
    -------
    bool
        Whether memory sufficed.
    """
    vpn = window << HPAGE_PMD_ORDER
    end = vpn + HPAGE_PMD_NR
    while vpn < end:
        x = _extent_of(mem, parent, window, vpn)
        if x == NIL:
            break
        vpn = max(vpn, int(mem.ext[x].vpn))
        if mem.ext[x].flags & KIND_MASK != KIND_ANON or not _cut_pinned(mem, x):
            vpn = int(mem.ext[x].vpn) + int(mem.ext[x].nr)
            continue
        zero = int(mem.ext[x].flags) & EXT_ZERO
        frame = frame_at(mem, x, vpn)
        if not is_written(mem, frame >> PAGEBLOCK_ORDER, frame & (HPAGE_PMD_NR - 1)):
            zero = EXT_ZERO
        pfn, _, _ = alloc_pages(mem, 0, MIGRATE_MOVABLE, 1)
        if pfn == NO_PFN:
            return False
        before = link_before(mem, child, window, vpn)
        y = add_extent(mem, pfn, 1, child, vpn, KIND_ANON | zero)
        set_extent_stamp(mem, y, fresh_stamp(mem, LRU_YOUNG))
        link_extent(mem, child, window, before, y)
        account_rss(mem, child, window, 1)
        mod_node_page_state(mem, pfn, NR_ANON_PAGES, 1)
        charge(mem, C_COPY_PAGE, 1)
        vpn += 1
    return True


@kernel
def _copy_table(mem: Memory, parent: int, child: int, window: int, pins: bool) -> None:
    """Let a child map the small pages of one of its parent's windows; ``pins``: not pinned ones."""
    last = NIL
    set_window(mem, child, window, table_word(NIL))
    x = extents_in(mem, parent, window)
    while x != NIL:
        if pins and mem.ext[x].flags & KIND_MASK == KIND_ANON and _cut_pinned(mem, x):
            x = int(mem.ext[x].next)
            continue
        if mem.ext[x].flags & EXT_KSM:
            mem.ksm_node[mem.ksm_frame[mem.ext[x].pfn] - 1].maps += 1
        nr = int(mem.ext[x].nr)
        pfn = int(mem.ext[x].pfn)
        vpn = int(mem.ext[x].vpn)
        if mem.ext[x].flags & KIND_MASK == KIND_SWAP:
            y = new_extent(mem, pfn, nr, child, vpn, int(mem.ext[x].flags))
            for slot in range(pfn, pfn + nr):
                mem.swap_map[slot] += 1
            mem.mm[child, MM_SWAP] += nr
        else:
            mem.ext[x].flags |= EXT_SHARED
            y = add_extent(mem, pfn, nr, child, vpn, int(mem.ext[x].flags))
            set_extent_stamp(mem, y, extent_stamp(mem, x))
            account_rss(mem, child, window, nr)
        if last == NIL:
            set_window(mem, child, window, table_word(y))
        else:
            mem.ext[last].next = y
        last = y
        x = int(mem.ext[x].next)


@kernel
def copy_mm(mem: Memory, parent: int, child: int) -> bool:
    """Copy an address space into a new process of the same size; return whether memory sufficed."""
    if not copy_vmas(mem, parent, child):
        return False
    for field in (MM_CONTENT, MM_ALIKE, MM_IMAGE):
        mem.mm[child, field] = mem.mm[parent, field]
    if mem.mm[parent, MM_MERGEABLE] != 0:
        ksm_enter(mem, child)
    khugepaged_fork(mem, parent, child)
    pins = mem.mm[parent, MM_PINNED] != 0 and mem.tunables[T_PHYSICAL_SPLIT] == 0
    for window in range(mem.mm[parent, MM_WINDOWS]):
        word = window_word(mem, parent, window)
        if word == W_NONE:
            continue
        notify(mem, parent, window, window << HPAGE_PMD_ORDER, (window + 1) << HPAGE_PMD_ORDER)
        if word & W_TAG == W_HUGETLB:
            continue
        if mem.pool[P_EXT_LIVE] + HPAGE_PMD_NR > mem.ext.size:
            return False
        if not alloc_table(mem, child, KIND_PGTABLE):
            return False
        word = window_word(mem, parent, window)  # reclaim may have changed it
        if word == W_ZERO:
            mem.pool[P_ZERO_USERS] += 1
            set_window(mem, child, window, W_ZERO)
        elif word & W_TAG == W_HUGE and not (pins and is_pinned(mem, word >> 2)):
            _copy_huge(mem, parent, child, window)
        else:
            if word & W_TAG == W_HUGE:
                split_mapping(mem, parent, window)
            _copy_table(mem, parent, child, window, pins)
            if pins and not _copy_pinned(mem, parent, child, window):
                return False
    return True


@kernel
def wp_huge(mem: Memory, mm: int, window: int) -> bool:
    """Write to a window whose huge page is shared: reuse it if nobody else is left, else split.

    2.6.38 copies it (`hostsim.mm.cow_huge`).

    Returns
    -------
    bool
        Whether memory sufficed.
    """
    pb = window_word(mem, mm, window) >> 2
    mem.vmstat[PGFAULT] += 1
    notify(mem, mm, window, window << HPAGE_PMD_ORDER, (window + 1) << HPAGE_PMD_ORDER)
    x = pmd_mapping(mem, pb, mm, window)
    if mem.pb[pb].a == x and mem.ext[x].next_b == NIL:
        undo_deferred(mem, pb)
        del_extent(mem, x)
        set_state(mem, pb, PB_HUGE, MIGRATE_MOVABLE)
        mem.pb[pb].a = mm
        set_pb_b(mem, pb, window)
        return True
    if mem.tunables[T_COW_HUGE] != 0:
        return cow_huge(mem, mm, window)
    split_pmd(mem, mm, window)
    return True


@kernel
def _mapped_elsewhere(mem: Memory, x: int, frame: int) -> bool:
    """Tell whether another extent maps a frame, or its compound page keeps other references."""
    pb = frame >> PAGEBLOCK_ORDER
    compound = pageblock_state(mem, pb) == PB_COMPOUND
    if compound and (mem.ext[x].nr > 1 or nr_pmd_mappings(mem, pb) > 0):
        return True
    y = extents_of(mem, pb)
    while y != NIL:
        first = int(mem.ext[y].pfn)
        if y != x and (compound or first <= frame < first + int(mem.ext[y].nr)):
            return True
        y = int(mem.ext[y].next_b)
    return False


@kernel
def _extent_of(mem: Memory, mm: int, window: int, page: int) -> int:
    """Return the extent of a window that covers a page, or the next one, or NIL."""
    x = extents_in(mem, mm, window)
    while x != NIL and int(mem.ext[x].vpn) + int(mem.ext[x].nr) <= page:
        x = int(mem.ext[x].next)
    return x


@kernel
def wp_page(mem: Memory, mm: int, window: int, page: int) -> bool:
    """Write to a shared small page: reuse it if it is the last mapping, else copy it.

    If reclaim changed the window meanwhile, nothing is done: the caller looks at the page again.

    Returns
    -------
    bool
        Whether there was a page to copy to.
    """
    x = _extent_of(mem, mm, window, page)
    frame = frame_at(mem, x, page)
    merged = mem.ext[x].flags & EXT_KSM != 0
    copy = merged or _mapped_elsewhere(mem, x, frame)
    pfn = frame
    if copy:
        seq = mem.pool[P_MAP_SEQ]
        pfn, _, _ = alloc_pages(mem, 0, MIGRATE_MOVABLE, 1)
        if pfn == NO_PFN:
            return False
        if mem.pool[P_MAP_SEQ] != seq:
            free_pages(mem, pfn, 1, 1)  # reclaim changed the window: look again
            return True
    notify(mem, mm, window, page, page + 1)
    x = isolate_page(mem, x, page)
    before = unlink_from_window(mem, mm, window, x)
    stamp = extent_stamp(mem, x) | LRU_YOUNG
    del_extent(mem, x)
    mem.vmstat[PGFAULT] += 1
    if merged:
        put_ksm_page(mem, frame)
        mem.vmstat[COW_KSM] += 1
    elif copy:
        put_frames(mem, frame, 1, True, False, True)
    if copy:
        mod_node_page_state(mem, pfn, NR_ANON_PAGES, 1)
        charge(mem, C_FAULT, 1)
        charge(mem, C_COPY_PAGE, 1)
        stamp = fresh_stamp(mem, LRU_YOUNG)
    else:
        note_written(mem, frame >> PAGEBLOCK_ORDER, frame & (HPAGE_PMD_NR - 1), 1)
    if (
        before != NIL
        and int(mem.ext[before].vpn) + int(mem.ext[before].nr) == page
        and try_extend(mem, before, pfn, 1, False, KIND_ANON)
    ):
        return True
    y = add_extent(mem, pfn, 1, mm, page, KIND_ANON)
    set_extent_stamp(mem, y, stamp)
    link_extent(mem, mm, window, before, y)
    return True
