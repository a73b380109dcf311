"""EPT violations: at which level a guest access is mapped, and what may change that later.

A guest's access to a page that the EPT does not map makes the host fault the page in and then
install one leaf, of 2 MiB if the host itself maps the window by a PMD and nothing forbids it.
Leaves that a notifier zapped come back at the guest's next access, at the level of that time.

Source: Linux v6.1 arch/x86/kvm/mmu/mmu.c kvm_tdp_page_fault, kvm_mmu_hugepage_adjust,
disallowed_hugepage_adjust, kvm_recover_nx_huge_pages; mmu/tdp_mmu.c kvm_tdp_mmu_map,
kvm_tdp_mmu_try_split_huge_pages, kvm_tdp_mmu_zap_collapsible_sptes.
Simplified: QEMU's own accesses to guest RAM count as the guest's.
Simplified: pages for EPT tables are allocated when a table is, not forty ahead.
Simplified: memory of 1 GiB pages has 512 leaves of 2 MiB, not one of 1 GiB.
Simplified: a read and a write violation of a page are one.
"""

from typing import Final

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, HPAGE_PUD_ORDER, NO_PFN
from hostsim.mm.content import partly_written
from hostsim.mm.cost import C_EPT_VIOLATION, charge
from hostsim.mm.fault import FAULT_OK, FAULT_OOM, touch_range
from hostsim.mm.lru_stamp import LRU_YOUNG, huge_stamp, set_huge_stamp
from hostsim.mm.mm_types import (
    MIGRATE_UNMOVABLE,
    MM_BASE,
    MM_EPT,
    MM_EPT_2M,
    MM_EPT_FLAGS,
    MM_EPT_TABLES,
    MM_EPT_VIOLATIONS,
    MM_HAS_EPT,
    MM_NR_NODES,
    MM_NX_FIRST,
    MM_NX_SPLITS,
    MM_RAM_PAGES,
    NIL,
    P_RESUME,
    Memory,
)
from hostsim.mm.mmap import (
    W_HUGE,
    W_NONE,
    W_TABLE,
    W_TAG,
    folded_run,
    huge_pageblock,
    is_folded,
    maps_huge,
    table_head,
    window_word,
)
from hostsim.mm.mmu_notifier import (
    E_DIRECTORY,
    E_FULL,
    E_LEAF,
    E_NONE,
    E_TABLE,
    E_TAG,
    EPT_DIRTY_LOG,
    EPT_MISALIGNED,
    EPT_PC_SLOTS,
    SUM_MASK,
    add_leaves,
    close_table,
    count_full_tables,
    ept_child,
    ept_word,
    free_ept_table,
    is_table,
    link_nx,
    new_ept_table,
    open_table,
    run_sum,
    set_ept,
)
from hostsim.mm.numa import run_on_node_of
from hostsim.mm.page_alloc import take_listed
from hostsim.mm.pgtable import alloc_table, free_table, own_pages
from hostsim.mm.physmem import PB_HUGE, pageblock_state
from hostsim.mm.rmap import KIND_EPT, KIND_MASK, KIND_SWAP, extents_in, frame_at, near_extent
from hostsim.mm.tunables import (
    T_KVM_EAGER_PAGE_SPLIT,
    T_KVM_LARGEPAGES,
    T_KVM_NX_HUGE_PAGES,
    T_KVM_NX_RATIO,
)
from hostsim.mm.vmstat import EPT_VIOLATIONS, NR_EPT_LEAVES_2M

EPT_ROOT_PAGES: Final = 2  # root and the PDPT of the first 512 GiB
WINDOWS_PER_GIB: Final = 1 << (HPAGE_PUD_ORDER - HPAGE_PMD_ORDER)
NX_FULL_TURN_MS: Final = 3_600_000  # arch/x86/kvm/mmu/mmu.c: all splits undone in an hour


@inline_kernel
def large_allowed(mem: Memory, mm: int, window: int) -> bool:
    """Tell whether a window may have a 2 MiB leaf, whatever the host's own mapping."""
    flags = mem.mm[mm, MM_EPT_FLAGS]
    return (
        flags & (EPT_MISALIGNED | EPT_DIRTY_LOG) == 0
        and not (flags & EPT_PC_SLOTS != 0 and window == 0)
        and mem.tunables[T_KVM_LARGEPAGES] != 0
        and (window + 1) << HPAGE_PMD_ORDER <= mem.mm[mm, MM_RAM_PAGES]
    )


@inline_kernel
def _directory(mem: Memory, mm: int, window: int) -> int:
    """Return the word that tells whether the directory of a window's GiB exists."""
    return int(mem.mm[mm, MM_BASE]) + window - window % WINDOWS_PER_GIB


@kernel
def _upper_levels(mem: Memory, mm: int, window: int) -> bool:
    """Make sure that a window's EPT directories exist; False if memory ran out."""
    while mem.mm[mm, MM_EPT] < EPT_ROOT_PAGES:
        if not alloc_table(mem, mm, KIND_EPT):
            return False
    at = _directory(mem, mm, window)
    if int(mem.ept[at]) & E_DIRECTORY == 0:
        if not alloc_table(mem, mm, KIND_EPT):
            return False
        mem.ept[at] = int(mem.ept[at]) | E_DIRECTORY
    return True


@kernel
def _table_of(mem: Memory, mm: int, window: int) -> int:
    """Return the table of a window that has no large leaf, made if need be; NIL: no memory."""
    if is_table(ept_word(mem, mm, window)):
        return open_table(mem, mm, window)
    if not alloc_table(mem, mm, KIND_EPT):
        return NIL
    table = new_ept_table(mem, mm, window)
    set_ept(mem, mm, window, E_TABLE, table)
    mem.mm[mm, MM_EPT_TABLES] += 1
    return table


@kernel
def _drop_table(mem: Memory, mm: int, window: int) -> None:
    """Free a window's table with its page."""
    free_ept_table(mem, mm, window)
    mem.mm[mm, MM_EPT_TABLES] -= 1
    free_table(mem, mm, KIND_EPT)


@kernel
def _split_leaf(mem: Memory, mm: int, window: int) -> int:
    """Replace a 2 MiB leaf by a table of 512 leaves; return it, open, or NIL if memory ran out."""
    if not alloc_table(mem, mm, KIND_EPT):
        return NIL
    if ept_word(mem, mm, window) & E_TAG != E_LEAF:  # the allocation changed the host's mapping
        free_table(mem, mm, KIND_EPT)
        return NIL
    pb = huge_pageblock(mem, window_word(mem, mm, window))
    table = new_ept_table(mem, mm, window)
    set_ept(mem, mm, window, E_TABLE, table)
    mem.mm[mm, MM_EPT_TABLES] += 1
    mem.mm[mm, MM_EPT_2M] -= 1
    mem.vmstat[NR_EPT_LEAVES_2M] -= 1
    first = window << HPAGE_PMD_ORDER
    add_leaves(mem, table, first, HPAGE_PMD_NR, pb << HPAGE_PMD_ORDER, 1)
    return table


@inline_kernel
def _count(mem: Memory, mm: int, nr: int) -> None:
    mem.mm[mm, MM_EPT_VIOLATIONS] += nr
    mem.vmstat[EPT_VIOLATIONS] += nr
    charge(mem, C_EPT_VIOLATION, nr)


@kernel
def _add_small(mem: Memory, mm: int, table: int, x: int, first: int, end: int) -> int:
    """Install the missing 4 KiB leaves of pages that extents from ``x`` on map; return how many."""
    added = 0
    while x != NIL and int(mem.ext[x].vpn) < end:
        start = max(first, int(mem.ext[x].vpn))
        nr = min(end, int(mem.ext[x].vpn) + int(mem.ext[x].nr)) - start
        if nr > 0 and mem.ext[x].flags & KIND_MASK != KIND_SWAP:
            pfn = frame_at(mem, x, start)
            added += add_leaves(mem, table, start, nr, pfn, frame_at(mem, x, start + 1) - pfn)
        x = int(mem.ext[x].next)
    return added


@hot_kernel
def _whole_sum(mem: Memory, mm: int, window: int) -> int:
    """Return the sum of frames of a table with all leaves; NIL if some page has no frame."""
    word = window_word(mem, mm, window)
    if is_folded(word):
        pfn, step = folded_run(word)
        return run_sum(0, pfn, step, HPAGE_PMD_NR) & SUM_MASK
    first = window << HPAGE_PMD_ORDER
    nr = 0
    total = 0
    x = table_head(word)
    while x != NIL and mem.ext[x].flags & KIND_MASK != KIND_SWAP:
        start = int(mem.ext[x].vpn)
        pfn = frame_at(mem, x, start)
        step = frame_at(mem, x, start + 1) - pfn
        total += run_sum(start - first, pfn, step, int(mem.ext[x].nr))
        nr += int(mem.ext[x].nr)
        x = int(mem.ext[x].next)
    return total & SUM_MASK if nr == HPAGE_PMD_NR else NIL


@hot_kernel
def _add_table(mem: Memory, mm: int, window: int) -> int:
    """Make the table of a window of small pages, not all there; return its leaves."""
    table = new_ept_table(mem, mm, window)
    set_ept(mem, mm, window, E_TABLE, table)
    first = window << HPAGE_PMD_ORDER
    x = extents_in(mem, mm, window)
    return _add_small(mem, mm, table, x, first, first + HPAGE_PMD_NR)


@kernel
def _map_small(mem: Memory, mm: int, window: int, first: int, end: int) -> bool:
    """Install the missing 4 KiB leaves of pages that the host maps; False: memory ran out."""
    if ept_word(mem, mm, window) & E_TAG == E_FULL:
        return True
    table = _table_of(mem, mm, window)
    if table == NIL:
        return False
    word = window_word(mem, mm, window)
    added = 0
    if maps_huge(word):
        pb = huge_pageblock(mem, word)
        pfn = (pb << HPAGE_PMD_ORDER) + (first & (HPAGE_PMD_NR - 1))
        added = add_leaves(mem, table, first, end - first, pfn, 1)
    elif word != W_NONE:
        x = near_extent(mem, mm, first, extents_in(mem, mm, window))
        added = _add_small(mem, mm, table, x, first, end)
    close_table(mem, table)
    _count(mem, mm, added)
    return True


@inline_kernel
def _by_fetch(mem: Memory, mm: int, window: int) -> bool:
    """Tell whether an instruction fetch made a window's table."""
    if ept_word(mem, mm, window) & E_TAG != E_TABLE:
        return False
    return bool(mem.ept_table[ept_child(mem, mm, window)].nx_next != NIL)


@kernel
def ept_access(mem: Memory, mm: int, window: int, first: int, end: int) -> bool:
    """Let the guest reach pages ``first .. end - 1`` of a window that the host has faulted in.

    Returns
    -------
    bool
        Whether there was memory for the EPT's tables.
    """
    if window_word(mem, mm, window) == W_NONE or ept_word(mem, mm, window) & E_TAG == E_LEAF:
        return True
    run_on_node_of(mem, mm, window)
    if not _upper_levels(mem, mm, window):
        return False
    word = window_word(mem, mm, window)  # the allocation may have changed the host's mapping
    ept = ept_word(mem, mm, window)
    huge = maps_huge(word)
    if not huge or _by_fetch(mem, mm, window) or not large_allowed(mem, mm, window):
        return _map_small(mem, mm, window, first, end)
    if is_table(ept):
        _drop_table(mem, mm, window)
    set_ept(mem, mm, window, E_LEAF, huge_pageblock(mem, word))
    mem.mm[mm, MM_EPT_2M] += 1
    mem.vmstat[NR_EPT_LEAVES_2M] += 1
    _count(mem, mm, 1)
    return True


@kernel
def _map_leaves(mem: Memory, mm: int, window: int, end: int) -> int:
    """Install 2 MiB leaves where the host has huge pages and the EPT nothing; return up to where.

    As `ept_access` on each window, up to the first that needs more than a leaf.
    """
    if window >= end or not large_allowed(mem, mm, window):
        return window
    if not large_allowed(mem, mm, end - 1) or mem.mm[mm, MM_EPT] < EPT_ROOT_PAGES:
        return window
    first = window
    base = mem.mm[mm, MM_BASE]
    while window < end:
        word = int(mem.windows[base + window])
        if word & W_TAG != W_HUGE or int(mem.ept[base + window]) & E_TAG != E_NONE:
            break
        if int(mem.ept[_directory(mem, mm, window)]) & E_DIRECTORY == 0:
            break
        set_ept(mem, mm, window, E_LEAF, word >> 2)
        window += 1
    if window > first:
        mem.mm[mm, MM_EPT_2M] += window - first
        mem.vmstat[NR_EPT_LEAVES_2M] += window - first
        _count(mem, mm, window - first)
    return window


@kernel
def _map_tables(mem: Memory, mm: int, window: int, end: int) -> int:
    """Install tables of 4 KiB leaves where the host has small pages; return up to where.

    As `ept_access` on each window, up to the first whose table is more than a page off a list.
    """
    if mem.mm[mm, MM_NR_NODES] > 1 or mem.mm[mm, MM_EPT] < EPT_ROOT_PAGES:
        return window
    base = mem.mm[mm, MM_BASE]
    full = 0
    added = 0
    while window < end:
        nr = 0
        while (
            window + nr < end
            and int(mem.windows[base + window + nr]) & W_TAG == W_TABLE
            and int(mem.ept[base + window + nr]) & E_TAG == E_NONE
            and int(mem.ept[_directory(mem, mm, window + nr)]) & E_DIRECTORY != 0
        ):
            nr += 1
        if nr == 0:
            break
        pfn, taken, step = take_listed(mem, MIGRATE_UNMOVABLE, nr)
        if pfn == NO_PFN:
            break
        own_pages(mem, mm, KIND_EPT, pfn, taken, step)
        mem.mm[mm, MM_EPT_TABLES] += taken
        for at in range(window, window + taken):
            total = _whole_sum(mem, mm, at)
            if total != NIL:
                set_ept(mem, mm, at, E_FULL, total)
                full += 1
            else:
                added += _add_table(mem, mm, at)
        window += taken
    count_full_tables(mem, mm, full)
    _count(mem, mm, (full << HPAGE_PMD_ORDER) + added)
    return window


@hot_kernel
def _reached(mem: Memory, mm: int, page: int, end: int) -> int:
    """Let the guest write pages that it has reached before; return the first that it has not.

    Goes past huge pages of one process, wholly written, that 2 MiB leaves map.
    """
    base = mem.mm[mm, MM_BASE]
    while page < end:
        window = page >> HPAGE_PMD_ORDER
        word = int(mem.windows[base + window])
        if word & W_TAG != W_HUGE or int(mem.ept[base + window]) & E_TAG != E_LEAF:
            break
        pb = word >> 2
        if partly_written(mem, pb) or pageblock_state(mem, pb) != PB_HUGE:
            break
        set_huge_stamp(mem, pb, huge_stamp(mem, pb) | LRU_YOUNG)
        page = min(end, (window + 1) << HPAGE_PMD_ORDER)
    return page


@kernel
def guest_access(mem: Memory, mm: int, start: int, nr: int, write: bool) -> int:
    """Let a process's guest access pages ``start .. start + nr - 1``.

    Pages behind guest RAM, QEMU's own, have no EPT entries.

    Returns
    -------
    int
        FAULT_OK, FAULT_OOM or FAULT_SIGBUS, as `hostsim.mm.fault.touch_range`.
    """
    page = _reached(mem, mm, start, start + nr)
    nr -= page - start
    if nr == 0:
        return FAULT_OK
    status = touch_range(mem, mm, page, nr, 1, 1.0, 0, write, page)
    if status != FAULT_OK:
        return status
    if mem.mm[mm, MM_HAS_EPT] == 0:
        return FAULT_OK
    end = min(page + nr, mem.mm[mm, MM_RAM_PAGES])
    while page < end:
        window = page >> HPAGE_PMD_ORDER
        stop = min(end, (window + 1) << HPAGE_PMD_ORDER)
        if stop - page == HPAGE_PMD_NR:
            mapped = _map_leaves(mem, mm, window, end >> HPAGE_PMD_ORDER)
            mapped = _map_tables(mem, mm, mapped, end >> HPAGE_PMD_ORDER)
            if mapped > window:
                page = mapped << HPAGE_PMD_ORDER
                continue
        if ept_word(mem, mm, window) & E_TAG != E_LEAF:
            if not ept_access(mem, mm, window, page, stop):
                mem.pool[P_RESUME] = page
                return FAULT_OOM
        page = stop
    return FAULT_OK


@kernel
def guest_fetch(mem: Memory, mm: int, page: int) -> int:
    """Let a guest execute code on a page; return as `guest_access`.

    With the iTLB-multihit mitigation a 2 MiB leaf is not executable, and is split.
    """
    status = guest_access(mem, mm, page, 1, False)
    if status != FAULT_OK:
        return status
    window = page >> HPAGE_PMD_ORDER
    if mem.tunables[T_KVM_NX_HUGE_PAGES] == 0 or mem.mm[mm, MM_HAS_EPT] == 0:
        return FAULT_OK
    if ept_word(mem, mm, window) & E_TAG != E_LEAF:
        return FAULT_OK
    table = _split_leaf(mem, mm, window)
    if table == NIL:
        mem.pool[P_RESUME] = page
        return FAULT_OOM
    link_nx(mem, mm, table)
    _count(mem, mm, 1)
    return FAULT_OK


@kernel
def recover_nx_huge_pages(mem: Memory, mm: int) -> int:
    """Zap the oldest tables that instruction fetches made, a share of them; return how many.

    The recovery thread does it every `NX_FULL_TURN_MS` / ratio.
    """
    ratio = mem.tunables[T_KVM_NX_RATIO]
    if ratio == 0:
        return 0
    nr = int((mem.mm[mm, MM_NX_SPLITS] + ratio - 1) // ratio)
    for _ in range(nr):
        table = mem.mm[mm, MM_NX_FIRST] - 1
        _drop_table(mem, mm, int(mem.ept_table[table].window))
    return nr


@kernel
def start_dirty_log(mem: Memory, mm: int) -> None:
    """Switch dirty logging on: large leaves are split now, or at the next access.

    A leaf for whose table there is no memory is zapped.
    """
    mem.mm[mm, MM_EPT_FLAGS] |= EPT_DIRTY_LOG
    if mem.mm[mm, MM_EPT] == 0:
        return
    windows = (mem.mm[mm, MM_RAM_PAGES] + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER
    for window in range(windows):
        if ept_word(mem, mm, window) & E_TAG != E_LEAF:
            continue
        split = NIL
        if mem.tunables[T_KVM_EAGER_PAGE_SPLIT] != 0:
            split = _split_leaf(mem, mm, window)
        if split != NIL:
            close_table(mem, split)
        elif ept_word(mem, mm, window) & E_TAG == E_LEAF:
            set_ept(mem, mm, window, E_NONE, 0)
            mem.mm[mm, MM_EPT_2M] -= 1
            mem.vmstat[NR_EPT_LEAVES_2M] -= 1


@kernel
def stop_dirty_log(mem: Memory, mm: int) -> None:
    """Switch dirty logging off: tables where a large leaf is possible go, to come back as one."""
    mem.mm[mm, MM_EPT_FLAGS] &= ~EPT_DIRTY_LOG
    if mem.mm[mm, MM_EPT] == 0:
        return
    windows = (mem.mm[mm, MM_RAM_PAGES] + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER
    for window in range(windows):
        if (
            is_table(ept_word(mem, mm, window))
            and not _by_fetch(mem, mm, window)
            and maps_huge(window_word(mem, mm, window))
            and large_allowed(mem, mm, window)
        ):
            _drop_table(mem, mm, window)
