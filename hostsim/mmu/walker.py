"""The page walker: one-dimensional and two-dimensional walks, every memory read counted.

A walk without any cache reads ``g`` guest entries natively, and ``g + (g + 1) * h`` entries
under nested paging: each of the ``g`` tables and the page itself needs ``h`` reads of the EPT.

Source: Intel SDM vol. 3C section 29.3; Bhargava et al., ASPLOS 2008, figure 2.
Simplified: accessed and dirty bits are not written; the writes would cost no further read.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import hot_kernel, kernel
from hostsim.core.prefetch import prefetch
from hostsim.core.units import HPAGE_PMD_ORDER, NO_PFN, PTRS_PER_TABLE
from hostsim.mmu.paging import (
    E_LEAF,
    E_NONE,
    INDEX_BITS,
    R_LEVELS,
    R_ROOT,
    PageTables,
    index_at,
    leaf_slot,
    look_up,
    table_at,
)
from hostsim.mmu.pwc import deepest_table, nested_fill, nested_hit, remember_table
from hostsim.mmu.tlb import (
    AHEAD,
    C_ACCESSES,
    C_L1_HITS,
    C_L2_HITS,
    C_NOT_PRESENT,
    C_READS,
    C_WALKS,
    EPT_PWC,
    LEVEL_STRIDE,
    NOTHING,
    PWC,
    READ_EPT_DATA,
    READ_EPT_TABLE,
    READ_GUEST,
    S_FORCE_GUEST,
    S_FORCE_HOST,
    S_LOGGED,
    Mmu,
    entry_bits,
    fill,
    first_level_hit,
    first_level_hit_of,
    second_level_hit,
    second_level_hit_of,
)

RARE_WALKS: Final = 4  # where fewer than one access in so many walks, looking ahead is no gain
AHEAD_STEP: Final = 16  # accesses from one look ahead to the next: few, for lines come one by one
AHEAD_SHIFT: Final = 40  # an entry ahead: its number, level
LOG_LEVEL_SHIFT: Final = 40  # a logged read: entry number, level, class
LOG_CLASS_SHIFT: Final = 44


@hot_kernel
def _read(
    mmu: Mmu, tables: PageTables, kind: int, table: int, level: int, page: int, studied: bool
) -> int:
    """Read an entry as the walker does: counted, and logged if the walk is studied."""
    slot = table * PTRS_PER_TABLE + index_at(page, level)
    mmu.counts[np.uint64(C_READS + kind * LEVEL_STRIDE + level)] += 1
    if studied:
        logged = mmu.state[S_LOGGED]
        mmu.log[np.uint64(logged)] = slot | (level << LOG_LEVEL_SHIFT) | (kind << LOG_CLASS_SHIFT)
        mmu.state[S_LOGGED] = logged + 1
    return int(tables.entry[np.uint64(slot)])


@kernel
def _forced_start(tables: PageTables, page: int, reads: int) -> tuple[int, int]:
    """Return level and table from where a walk makes so many reads; (0, 0) if it makes none."""
    _, leaf = look_up(tables, page)
    if leaf == 0 or reads == 0:
        return 0, 0
    level = leaf + reads - 1
    return level, table_at(tables, page, level)


@hot_kernel
def _walk_dimension(
    mmu: Mmu,
    tables: PageTables,
    caches: int,
    kind: int,
    page: int,
    vpid: int,
    forced: int,
    studied: bool,
) -> tuple[int, int]:
    """Walk tables that need no translation themselves; return frame and leaf level.

    Parameters
    ----------
    forced
        Reads to make, plus one; 0: as many as the walk caches leave.
    """
    if forced > 0:
        level, table = _forced_start(tables, page, forced - 1)
        if level == 0:
            return look_up(tables, page)
    else:
        level, table = deepest_table(mmu, caches, tables.root[R_LEVELS], page, vpid)
        if level == 0:
            level = int(tables.root[R_LEVELS])
            table = int(tables.root[R_ROOT])
    while True:
        entry = _read(mmu, tables, kind, table, level, page, studied)
        if entry & E_LEAF != 0:
            below = page & ((1 << ((level - 1) * INDEX_BITS)) - 1)
            return (entry >> 2) + below, level
        if entry == E_NONE:
            return NO_PFN, 0
        table = entry >> 2
        if forced == 0:
            remember_table(mmu, caches, level, page, vpid, table)
        level -= 1


@hot_kernel
def _walk_ept(
    mmu: Mmu, ept: PageTables, kind: int, gfn: int, vpid: int, studied: bool
) -> tuple[int, int]:
    """Walk the EPT for a guest frame; return the host frame and the leaf's level."""
    forced = mmu.state[S_FORCE_HOST] if studied else 0
    return _walk_dimension(mmu, ept, EPT_PWC, kind, gfn, vpid, forced, studied)


@hot_kernel
def _translate_table(mmu: Mmu, ept: PageTables, gfn: int, vpid: int, studied: bool) -> bool:
    """Find the host frame of a guest table; return whether the EPT maps it."""
    if nested_hit(mmu, gfn, vpid):
        return True
    frame, leaf = _walk_ept(mmu, ept, READ_EPT_TABLE, gfn, vpid, studied)
    if leaf == 0:
        return False
    if not studied or mmu.state[S_FORCE_HOST] == 0:
        nested_fill(mmu, gfn, leaf - 1, vpid, frame)
    return True


@hot_kernel
def walk_native(
    mmu: Mmu, tables: PageTables, vpn: int, vpid: int, studied: bool
) -> tuple[int, int]:
    """Walk one set of tables; return the frame of a page and the level of its leaf.

    ``(NO_PFN, 0)`` if nothing maps the page.
    """
    force = mmu.state[S_FORCE_GUEST] if studied else 0
    forced = force + 1 if force > 0 else 0
    return _walk_dimension(mmu, tables, PWC, READ_GUEST, vpn, vpid, forced, studied)


@hot_kernel
def walk_nested(
    mmu: Mmu, guest: PageTables, ept: PageTables, vpn: int, vpid: int, studied: bool
) -> tuple[int, int]:
    """Walk a guest's tables and, for each of them and for the page, the EPT.

    Parameters
    ----------
    studied
        Whether reads are logged, and may be forced; a literal, for LLVM to leave out what is not.

    Returns
    -------
    frame, level
        The page's host frame, and the level of the smaller of both leaves: the largest entry
        that the TLB may hold. ``(NO_PFN, 0)`` if nothing maps the page.
    """
    forced = mmu.state[S_FORCE_GUEST] if studied else 0
    known = True  # whether the table's host address came with its number
    if forced > 0:
        level, table = _forced_start(guest, vpn, forced)
        if level == 0:
            return NO_PFN, 0
    else:
        level, table = deepest_table(mmu, PWC, guest.root[R_LEVELS], vpn, vpid)
        if level == 0:
            level = int(guest.root[R_LEVELS])
            table = int(guest.root[R_ROOT])
            known = False
    while True:
        if not known:
            if not _translate_table(mmu, ept, int(guest.frame[np.uint64(table)]), vpid, studied):
                return NO_PFN, 0
        entry = _read(mmu, guest, READ_GUEST, table, level, vpn, studied)
        if entry & E_LEAF != 0:
            break
        if entry == E_NONE:
            return NO_PFN, 0
        table = entry >> 2
        if forced == 0:
            remember_table(mmu, PWC, level, vpn, vpid, table)
        known = False
        level -= 1
    gfn = (entry >> 2) + (vpn & ((1 << ((level - 1) * INDEX_BITS)) - 1))
    frame, ept_level = _walk_ept(mmu, ept, READ_EPT_DATA, gfn, vpid, studied)
    if ept_level == 0:
        return NO_PFN, 0
    return frame, min(level, ept_level)


@hot_kernel
def _walk(
    mmu: Mmu,
    guest: PageTables,
    ept: PageTables,
    nested: bool,
    vpn: int,
    vpid: int,
    studied: bool,
) -> int:
    """Walk for a page and fill the TLBs; return its frame, or NO_PFN."""
    mmu.counts[C_WALKS] += 1
    if studied:
        mmu.state[S_LOGGED] = 0
    if nested:
        frame, level = walk_nested(mmu, guest, ept, vpn, vpid, studied)
    else:
        frame, level = walk_native(mmu, guest, vpn, vpid, studied)
    if level == 0:
        mmu.counts[C_NOT_PRESENT] += 1
        return NO_PFN
    fill(mmu, vpn, level - 1, vpid, frame)
    return frame


@kernel
def translate(
    mmu: Mmu, guest: PageTables, ept: PageTables, nested: bool, vpn: int, vpid: int
) -> int:
    """Translate one access to a page; return the page's frame, or NO_PFN if nothing maps it.

    Its walk is studied: it makes the reads that are forced, if any are, and logs all.
    """
    mmu.counts[C_ACCESSES] += 1
    at = first_level_hit(mmu, vpn, vpid)
    if at != NOTHING:
        mmu.counts[C_L1_HITS] += 1
    else:
        at = second_level_hit(mmu, vpn, vpid)
        if at == NOTHING:
            return _walk(mmu, guest, ept, nested, vpn, vpid, True)
        mmu.counts[C_L2_HITS] += 1
    return int(mmu.value[at] + (vpn & ((1 << entry_bits(mmu.tag[at])) - 1)))


@kernel
def _look_ahead(
    mmu: Mmu,
    guest: PageTables,
    ept: PageTables,
    nested: bool,
    pages: NDArray[np.int64],
    start: int,
    asked: int,
) -> None:
    """Ask for the page-table lines of accesses to come, so that their walks need not wait.

    First for a guest's entry, later, once it is there, for that of the EPT.  This changes no
    counter and no entry: it is about the caches of the machine that simulates.

    Parameters
    ----------
    start
        The next access.
    asked
        Access up to which guests' entries were asked for, for EPT entries half as far ahead.
    """
    for i in range(np.uint64(max(start, asked)), np.uint64(min(start + AHEAD, pages.size))):
        slot, level = leaf_slot(guest, int(pages[i]))
        prefetch(guest.entry, slot)
        mmu.ahead[i % np.uint64(AHEAD)] = slot | (level << AHEAD_SHIFT)
    if not nested:
        return
    first = max(start, asked - AHEAD // 2)
    for i in range(np.uint64(first), np.uint64(min(start + AHEAD // 2, pages.size))):
        ahead = mmu.ahead[i % np.uint64(AHEAD)]
        entry = int(guest.entry[np.uint64(ahead & ((1 << AHEAD_SHIFT) - 1))])
        if entry & E_LEAF != 0:
            shift = ((ahead >> AHEAD_SHIFT) - 1) * INDEX_BITS
            slot, _ = leaf_slot(ept, (entry >> 2) + (int(pages[i]) & ((1 << shift) - 1)))
            prefetch(ept.entry, slot)


@kernel
def access_pages(
    mmu: Mmu,
    guest: PageTables,
    ept: PageTables,
    nested: bool,
    vpid: int,
    pages: NDArray[np.int64],
    nr: int,
) -> None:
    """Translate accesses to pages in order.

    An access to the page of the one before it finds its entry the last used of its set: a
    first-level hit that changes nothing, counted without a look-up.

    Parameters
    ----------
    guest
        The process's tables.
    ept
        The VM's EPT; not looked at natively.
    pages
        Page numbers; the first ``nr`` are accessed.
    """
    last = NO_PFN
    l1_hits = 0
    l2_hits = 0
    accessed = pages[:nr]
    asked = 0
    walks_before = mmu.counts[C_WALKS]
    for i in range(nr):
        if i % AHEAD_STEP == 0:
            walks = mmu.counts[C_WALKS]
            if (walks - walks_before) * RARE_WALKS >= AHEAD_STEP:
                _look_ahead(mmu, guest, ept, nested, accessed, i, asked)
                asked = i + AHEAD
            walks_before = walks
        vpn = pages[i]
        if vpn == last:
            l1_hits += 1
            continue
        last = vpn
        if first_level_hit(mmu, vpn, vpid) != NOTHING:
            l1_hits += 1
        elif second_level_hit(mmu, vpn, vpid) != NOTHING:
            l2_hits += 1
        elif _walk(mmu, guest, ept, nested, vpn, vpid, False) == NO_PFN:
            last = NO_PFN
    mmu.counts[C_ACCESSES] += nr
    mmu.counts[C_L1_HITS] += l1_hits
    mmu.counts[C_L2_HITS] += l2_hits


@kernel
def missed_pages(
    mmu: Mmu,
    small: NDArray[np.bool_],
    vpid: int,
    pages: NDArray[np.int32],
    missed: NDArray[np.int64],
) -> int:
    """Look accesses up in the TLBs alone, filling them as walks would, and list those that miss.

    What TLBs hold depends on the sizes of their entries, not on the tables behind them.

    Parameters
    ----------
    small
        (windows,) which of them have entries of 4 KiB; the others have one of 2 MiB.
    pages
        Page numbers, all mapped.
    missed
        Written: the pages that need a walk, in order.

    Returns
    -------
    int
        How many need one.
    """
    last = NO_PFN
    l1_hits = 0
    l2_hits = 0
    walks = 0
    for i in range(pages.size):
        vpn = int(pages[i])
        if vpn == last:
            l1_hits += 1
            continue
        last = vpn
        size = 0 if small[vpn >> HPAGE_PMD_ORDER] else 1  # no other entry can hold the page
        if first_level_hit_of(mmu, size, vpn, vpid) != NOTHING:
            l1_hits += 1
        elif second_level_hit_of(mmu, size, vpn, vpid) != NOTHING:
            l2_hits += 1
        else:
            missed[walks] = vpn
            walks += 1
            fill(mmu, vpn, size, vpid, vpn)
    mmu.counts[C_ACCESSES] += pages.size
    mmu.counts[C_L1_HITS] += l1_hits
    mmu.counts[C_L2_HITS] += l2_hits
    mmu.counts[C_WALKS] += walks
    return walks


@kernel
def walk_missed(
    mmu: Mmu,
    guest: PageTables,
    ept: PageTables,
    nested: bool,
    vpid: int,
    missed: NDArray[np.int64],
) -> None:
    """Walk for pages that `missed_pages` has counted: together they do what `access_pages` does.

    Only where no walk cache shares its entries with a TLB.
    """
    asked = 0
    for i in range(missed.size):
        if i % AHEAD_STEP == 0:
            _look_ahead(mmu, guest, ept, nested, missed, i, asked)
            asked = i + AHEAD
        if nested:
            walk_nested(mmu, guest, ept, missed[i], vpid, False)
        else:
            walk_native(mmu, guest, missed[i], vpid, False)
