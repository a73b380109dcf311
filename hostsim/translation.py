"""Page tables and EPTs as the memory managers of a guest and a host leave them.

The memory manager keeps what a process maps as windows and extents; a page walker reads radix
tables.  Here the one is made from the other: every leaf, every table, and the frame in which
each table lies.

Simplified: upper-level tables take a process's first table pages, the others follow in the
order of the windows; the memory manager counts table pages and does not name them.
"""

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import kernel
from hostsim.core.units import (
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    NO_PFN,
    PAGEBLOCK_ORDER,
    PTRS_PER_TABLE,
)
from hostsim.ept import guest_access
from hostsim.mm.fault import FAULT_OK
from hostsim.mm.mm_types import MM_KERNEL, MM_RAM_PAGES, MM_WINDOWS, NIL, Memory
from hostsim.mm.mmap import (
    W_HUGETLB,
    W_NONE,
    W_TAG,
    W_ZERO,
    folded_run,
    huge_pageblock,
    is_folded,
    maps_huge,
    table_head,
    window_word,
)
from hostsim.mm.mmu_notifier import E_LEAF, E_TAG, ept_word, has_leaf, is_table
from hostsim.mm.pgtable import alloc_table
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    KIND_EPT,
    KIND_MASK,
    KIND_PGTABLE,
    KIND_SWAP,
    extents_in,
    frame_at,
)
from hostsim.mmu.paging import PageTables, look_up, map_leaf, new_page_tables, tables_needed


@kernel
def table_frames(mem: Memory, mm: int, kind: int, frames: NDArray[np.int64]) -> int:
    """Write the frames of a process's table pages of a kind, newest first; return how many."""
    nr = 0
    x = mem.mm[mm, MM_KERNEL] - 1
    while x != NIL:
        if mem.ext[x].flags & KIND_MASK == kind:
            first = int(mem.ext[x].pfn)
            last = first + int(mem.ext[x].nr) - 1
            for i in range(int(mem.ext[x].nr)):
                if nr < frames.size:
                    descending = mem.ext[x].flags & EXT_DESCENDING != 0
                    frames[nr] = first + i if descending else last - i
                nr += 1
        x = int(mem.ext[x].next)
    return nr


@kernel
def map_process(mem: Memory, mm: int, tables: PageTables) -> bool:
    """Enter everything that a process maps; return whether the tables had room.

    The shared huge zero page is left out: nothing was written there.
    """
    for window in range(mem.mm[mm, MM_WINDOWS]):
        word = window_word(mem, mm, window)
        if word == W_NONE or word == W_ZERO:
            continue
        if maps_huge(word):
            if not map_leaf(tables, window << HPAGE_PMD_ORDER, 2, (word >> 2) << PAGEBLOCK_ORDER):
                return False
            continue
        if is_folded(word):
            pfn, step = folded_run(word)
            for i in range(HPAGE_PMD_NR):
                if not map_leaf(tables, (window << HPAGE_PMD_ORDER) + i, 1, pfn + i * step):
                    return False
            continue
        x = table_head(word)
        while x != NIL:
            page = int(mem.ext[x].vpn)
            if mem.ext[x].flags & KIND_MASK != KIND_SWAP:
                for vpn in range(page, page + int(mem.ext[x].nr)):
                    if not map_leaf(tables, vpn, 1, frame_at(mem, x, vpn)):
                        return False
            x = int(mem.ext[x].next)
    return True


@kernel
def map_guest(mem: Memory, mm: int, tables: PageTables) -> bool:
    """Enter every leaf of a VM's EPT; return whether the tables had room."""
    for window in range((mem.mm[mm, MM_RAM_PAGES] + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER):
        ept = ept_word(mem, mm, window)
        word = window_word(mem, mm, window)
        first = window << HPAGE_PMD_ORDER
        if ept & E_TAG == E_LEAF:
            if not map_leaf(tables, first, 2, huge_pageblock(mem, word) << PAGEBLOCK_ORDER):
                return False
        if not is_table(ept):
            continue
        if maps_huge(word):
            pb = huge_pageblock(mem, word)
            for page in range(first, first + HPAGE_PMD_NR):
                if has_leaf(mem, mm, page):
                    pfn = (pb << PAGEBLOCK_ORDER) + page - first
                    if not map_leaf(tables, page, 1, pfn):
                        return False
            continue
        x = extents_in(mem, mm, window)
        while x != NIL:
            page = int(mem.ext[x].vpn)
            for gfn in range(page, page + int(mem.ext[x].nr)):
                if has_leaf(mem, mm, gfn):
                    if not map_leaf(tables, gfn, 1, frame_at(mem, x, gfn)):
                        return False
            x = int(mem.ext[x].next)
    return True


@kernel
def windows_with_table(mem: Memory, mm: int, kind: int, rank: NDArray[np.int64]) -> int:
    """Count the windows of a process that own a table page, and number them in order.

    Parameters
    ----------
    kind
        KIND_PGTABLE: huge windows own one, too, the deposited one, hugetlb windows none; or
        KIND_EPT.
    rank
        Filled with the numbers; NO_PFN for the other windows.
    """
    nr = 0
    for window in range(rank.size):
        if kind == KIND_EPT:
            owns = is_table(ept_word(mem, mm, window))
        else:
            word = window_word(mem, mm, window)
            owns = word != W_NONE and word & W_TAG != W_HUGETLB
        rank[window] = nr if owns else NO_PFN
        if owns:
            nr += 1
    return nr


def page_tables_of(mem: Memory, mm: int, levels: int, kind: int = KIND_PGTABLE) -> PageTables:
    """Return the tables of a process (KIND_PGTABLE) or the EPT of its guest RAM (KIND_EPT).

    Tables lie where the memory manager put the process's table pages of that kind.

    Raises
    ------
    ValueError
        The process has fewer table pages than its tables need: its upper levels were not paid
        for (`alloc_upper_tables`).
    """
    windows = int(mem.mm[mm, MM_WINDOWS])
    if kind == KIND_EPT:
        windows = -(-int(mem.mm[mm, MM_RAM_PAGES]) // HPAGE_PMD_NR)
    tables = new_page_tables(tables_needed(windows << HPAGE_PMD_ORDER, levels, 1), levels, 0)
    enter = map_guest if kind == KIND_EPT else map_process
    if not enter(mem, mm, tables):
        raise ValueError("a process with more tables than its size needs")
    used = int(tables.root[2])
    frames = np.empty(1 << 20, np.int64)
    nr = int(table_frames(mem, mm, kind, frames))
    if nr > len(frames):
        frames = np.empty(nr, np.int64)
        table_frames(mem, mm, kind, frames)
    frames = frames[:nr][::-1]
    rank = np.empty(windows, np.int64)
    owned = int(windows_with_table(mem, mm, kind, rank))
    level = _level_of_tables(tables)
    upper = np.flatnonzero(level[:used] > 1)
    if len(upper) + owned > nr:
        raise ValueError(f"{len(upper) + owned} tables, but {nr} table pages")
    tables.frame[upper] = frames[: len(upper)]
    lowest = np.flatnonzero(level[:used] == 1)
    small = rank[_windows_of(tables, lowest)]
    tables.frame[lowest] = frames[nr - owned :][small]
    return tables


def _level_of_tables(tables: PageTables) -> NDArray[np.int64]:
    """Return the level of every table, from the entries that lead to them."""
    level = np.zeros(len(tables.frame), np.int64)
    level[0] = tables.root[1]
    for parent, child, _ in _links(tables):
        level[child] = level[parent] - 1
    return level


def _links(tables: PageTables) -> list[tuple[int, int, int]]:
    """Return (parent, child, index) of all tables, parents first."""
    entry = tables.entry[: int(tables.root[2]) * PTRS_PER_TABLE]
    slots = np.flatnonzero(entry & 3 == 2)
    children = entry[slots] >> 2
    order = np.argsort(children)
    return [
        (int(slots[i]) // PTRS_PER_TABLE, int(children[i]), int(slots[i]) % PTRS_PER_TABLE)
        for i in order
    ]


def _windows_of(tables: PageTables, lowest: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the window that each lowest-level table maps."""
    first = np.zeros(len(tables.frame), np.int64)  # table number of its level
    for parent, child, index in _links(tables):
        first[child] = first[parent] * PTRS_PER_TABLE + index
    return first[lowest]


@kernel
def alloc_upper_tables(mem: Memory, mm: int, kind: int, nr: int) -> bool:
    """Allocate the upper-level tables of a process, before it touches anything."""
    for _ in range(nr):
        if not alloc_table(mem, mm, kind):
            return False
    return True


@kernel
def touch_frames(
    guest: Memory, guest_mm: int, frames: NDArray[np.int64], host: Memory, mm: int
) -> bool:
    """Let a guest access what one of its processes uses: its tables, then its pages, in order.

    Every page is accessed at its guest frame; the host serves what it has not given yet.
    """
    for i in range(frames.size):
        if guest_access(host, mm, frames[i], 1, True) != FAULT_OK:
            return False
    for window in range(guest.mm[guest_mm, MM_WINDOWS]):
        word = window_word(guest, guest_mm, window)
        if word == W_NONE or word == W_ZERO:
            continue
        if maps_huge(word):
            first = (word >> 2) << PAGEBLOCK_ORDER
            if guest_access(host, mm, first, HPAGE_PMD_NR, True) != FAULT_OK:
                return False
            continue
        x = extents_in(guest, guest_mm, window)
        while x != NIL:
            if guest.ext[x].flags & KIND_MASK != KIND_SWAP:
                nr = int(guest.ext[x].nr)
                if guest_access(host, mm, int(guest.ext[x].pfn), nr, True) != FAULT_OK:
                    return False
            x = int(guest.ext[x].next)
    return True


@kernel
def huge_windows(guest: PageTables, ept: PageTables, nested: bool, huge: NDArray[np.bool_]) -> int:
    """Tell which windows from page 0 on are mapped huge in every dimension; return how many."""
    nr = 0
    for window in range(huge.size):
        frame, level = look_up(guest, window << HPAGE_PMD_ORDER)
        huge[window] = level >= 2 and (not nested or look_up(ept, frame)[1] >= 2)
        if huge[window]:
            nr += 1
    return nr
