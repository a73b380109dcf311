"""Faults of empty windows in a row, as a program that fills its memory makes them.

`fault_huge_run` and `fault_small_run` leave the machine as that many faults one after the other
would (`hostsim.mm.fault`), for as long as one zone serves them from its per-CPU lists, refilled
without a look at any watermark, and one their page tables.

Source: as `hostsim.mm.fault`; it is a faster way through the same kernel code.
Simplified: `Memory.touched` names the page tables of a run behind its other pages, those of small
pages only where a host that maps 2 MiB does not see the difference (`P_IN_ORDER`).
"""

from typing import Final

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.prefetch import prefetch
from hostsim.core.units import (
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.cost import C_CLEAR_PAGE, C_FAULT, C_HUGE_FAULT, charge
from hostsim.mm.lru import fresh_stamp
from hostsim.mm.lru_stamp import LRU_YOUNG, set_extent_stamp, set_huge_stamp
from hostsim.mm.mm_slot import khugepaged_enter, thp_enabled
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    MM_BASE,
    MM_HUGE,
    MM_NR_NODES,
    MM_RAM_PAGES,
    MM_THP_ALLOC,
    MM_VMAS,
    NIL,
    NR_PCP_LISTS,
    P_BOOSTED,
    P_IN_ORDER,
    P_TRACED,
    PCP_COUNT,
    Z_BOOST,
    Z_FREE,
    Z_RESERVE,
    Z_WMARK_HIGH,
    Z_WMARK_LOW,
    Memory,
)
from hostsim.mm.mmap import W_NONE, huge_word, set_window, table_word
from hostsim.mm.numa import mod_node_page_state, zone_statistics
from hostsim.mm.page_alloc import account_rss, rmqueue_bulk, usable_zone
from hostsim.mm.pb_packed import set_pb_b
from hostsim.mm.pcp import list_index, note_alloc, pop_head
from hostsim.mm.pgtable import own_pages
from hostsim.mm.physmem import PB_HUGE, set_state, zone_idx
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    KIND_ANON,
    KIND_PGTABLE,
    add_extent,
    extents_in,
    extents_of,
    folds,
    try_extend,
    try_fold,
)
from hostsim.mm.slowpath import alloc_flags_nofragment
from hostsim.mm.touched import note_touched
from hostsim.mm.tunables import (
    T_DEFER_UNDERUSED,
    T_PCP_6_12,
    T_PCP_ORDER_0,
    T_THP_POLICY,
    T_WATERMARK_DECAY,
    THP_POLICIES,
)
from hostsim.mm.vmstat import NR_ANON_PAGES, NR_ANON_THPS, PGALLOC, PGFAULT, THP_FAULT_ALLOC

LINUX: Final = THP_POLICIES["linux"]
MARGIN_PAGES: Final = 4096  # more than what a fault and the refill of one list take


@hot_kernel
def _plenty(mem: Memory, zone: int) -> bool:
    """Tell whether a zone serves the next faults without a look at any watermark or other type.

    Then no list of another type is stolen from, no daemon is woken, no flag of the lists changes.
    """
    free = mem.zone[zone, Z_FREE] - MARGIN_PAGES
    low = mem.zone[zone, Z_WMARK_LOW] + mem.zone[zone, Z_BOOST] + mem.zone[zone, Z_RESERVE]
    own = mem.nr_free[zone, MIGRATE_MOVABLE]
    return (
        free > max(low, mem.zone[zone, Z_WMARK_HIGH])
        and (own[HPAGE_PMD_ORDER + 1] > 0 or own[HPAGE_PMD_ORDER] > 1)
        and mem.pool[P_BOOSTED] == 0
    )


@kernel
def _may_run(mem: Memory, mm: int) -> bool:
    """Tell whether faults of empty windows go by the rules of 6.1 and later."""
    return (
        mem.tunables[T_THP_POLICY] == LINUX
        and mem.tunables[T_PCP_ORDER_0] == 0
        and mem.tunables[T_WATERMARK_DECAY] == 0
        and mem.mm[mm, MM_VMAS] == 0
    )


@kernel
def _map_huge_run(mem: Memory, mm: int, window: int, nr: int, pfn: int, step: int) -> None:
    """Map huge pages that lie at equal steps by the PMDs of windows in a row."""
    base = mem.mm[mm, MM_BASE] + window
    for i in range(nr):
        pb = (pfn + i * step) >> PAGEBLOCK_ORDER
        set_state(mem, pb, PB_HUGE, MIGRATE_MOVABLE)
        mem.pb[pb].a = mm
        set_pb_b(mem, pb, window + i)
        mem.windows[base + i] = huge_word(pb)
        set_huge_stamp(mem, pb, fresh_stamp(mem, LRU_YOUNG))
    mod_node_page_state(mem, pfn, NR_ANON_PAGES, nr << HPAGE_PMD_ORDER)
    if mem.pool[P_TRACED] != 0:
        note_touched(mem, pfn, nr, step, HPAGE_PMD_ORDER)


@kernel
def _account(mem: Memory, zone: int, pages: int, requests: int) -> None:
    """Count what was taken from the per-CPU lists of a zone in so many requests."""
    mem.vmstat[PGALLOC + zone_idx(zone)] += pages
    zone_statistics(mem, zone, requests)
    note_alloc(mem, zone, requests)


@inline_kernel
def _note_tables(mem: Memory, pfn: int, nr: int, step: int) -> None:
    """Note page tables handed out, if any."""
    if mem.pool[P_TRACED] != 0 and nr > 0:
        note_touched(mem, pfn, nr, step, 0)


@kernel
def fault_huge_run(mem: Memory, mm: int, window: int, nr: int) -> int:
    """Serve the faults of empty windows in a row, all pages written; return how many.

    Returns
    -------
    int
        Windows done, from 0: with the next one something else happens, or it is not empty.
    """
    nr = min(nr, (mem.mm[mm, MM_RAM_PAGES] >> HPAGE_PMD_ORDER) - window)
    if mem.mm[mm, MM_NR_NODES] > 1:
        nr = min(nr, 1)
    if nr <= 0 or mem.tunables[T_DEFER_UNDERUSED] != 0:
        return 0
    zone = usable_zone(mem, HPAGE_PMD_ORDER)
    table_zone = usable_zone(mem, 0)
    if zone == NIL or table_zone == NIL:
        return 0
    era = mem.tunables[T_PCP_6_12] != 0
    huge = zone * NR_PCP_LISTS + list_index(HPAGE_PMD_ORDER, MIGRATE_MOVABLE, era)
    tables = table_zone * NR_PCP_LISTS + list_index(0, MIGRATE_UNMOVABLE, era)
    keep_apart = alloc_flags_nofragment(mem)
    base = mem.mm[mm, MM_BASE] + window
    done = 0
    first_table = 0
    nr_tables = 0
    table_step = 1
    while done < nr and _plenty(mem, zone) and mem.run[tables].next != tables:
        if mem.windows[base + done] != W_NONE:
            break
        if mem.run[huge].next == huge:
            rmqueue_bulk(mem, zone, HPAGE_PMD_ORDER, MIGRATE_MOVABLE, keep_apart)
        here = min(nr - done, int(mem.run[int(mem.run[huge].next)].nr))
        here = min(here, int(mem.run[int(mem.run[tables].next)].nr))
        empty = 1
        while empty < here and mem.windows[base + done + empty] == W_NONE:
            empty += 1
        pfn, here, step = pop_head(mem, huge, empty)
        _map_huge_run(mem, mm, window + done, here, pfn, step)
        pfn, _, step = pop_head(mem, tables, here)
        own_pages(mem, mm, KIND_PGTABLE, pfn, here, step)
        if pfn != first_table + nr_tables * table_step or step != table_step:
            _note_tables(mem, first_table, nr_tables, table_step)
            first_table = pfn
            nr_tables = 0
            table_step = step
        nr_tables += here
        mem.zone[zone, PCP_COUNT] -= here << HPAGE_PMD_ORDER
        mem.zone[table_zone, PCP_COUNT] -= here
        done += here
    _note_tables(mem, first_table, nr_tables, table_step)
    if done > 0:
        pages = done << HPAGE_PMD_ORDER
        khugepaged_enter(mem, mm)
        _account(mem, zone, pages, done)
        _account(mem, table_zone, done, done)
        mem.vmstat[PGFAULT] += done
        account_rss(mem, mm, window, pages)
        mem.mm[mm, MM_HUGE] += done
        mem.mm[mm, MM_THP_ALLOC] += done
        mem.vmstat[NR_ANON_THPS] += done
        mem.vmstat[THP_FAULT_ALLOC] += done
        charge(mem, C_HUGE_FAULT, done)
        charge(mem, C_CLEAR_PAGE, pages)
    return done


@hot_kernel
def map_run(
    mem: Memory, mm: int, window: int, before: int, vpn: int, pfn: int, nr: int, step: int
) -> int:
    """Map fresh frames at pages behind an extent of a window (or NIL); return the last extent.

    The frames lie ``step`` (1 or -1) apart, ``pfn`` first, and may cross a pageblock.
    """
    while nr > 0:
        inside = pfn & (PAGEBLOCK_NR_PAGES - 1)
        here = min(nr, PAGEBLOCK_NR_PAGES - inside if step > 0 else inside + 1)
        low = pfn if step > 0 else pfn - here + 1
        if not (
            before != NIL
            and mem.ext[before].vpn + int(mem.ext[before].nr) == vpn
            and try_extend(mem, before, low, here, step < 0, KIND_ANON)
        ):
            flags = KIND_ANON | (EXT_DESCENDING if step < 0 and here > 1 else 0)
            x = add_extent(mem, low, here, mm, vpn, flags)
            set_extent_stamp(mem, x, fresh_stamp(mem, LRU_YOUNG))
            if before == NIL:
                mem.ext[x].next = extents_in(mem, mm, window)
                set_window(mem, mm, window, table_word(x))
            else:
                mem.ext[x].next = mem.ext[before].next
                mem.ext[before].next = x
            before = x
        vpn += here
        pfn += here * step
        nr -= here
    return before


@inline_kernel
def _prefetch_owners(mem: Memory, head: int) -> None:
    """Ask for what mapping the next runs of pages on a list reads and writes, a step for each.

    It is the pageblock of the third, the record of the second, the first extent of the first.
    """
    first = int(mem.run[head].next)
    second = int(mem.run[first].next)
    third = int(mem.run[second].next)
    prefetch(mem.pb, int(mem.run[third].first) >> PAGEBLOCK_ORDER)
    prefetch(mem.rec, int(mem.pb[int(mem.run[second].first) >> PAGEBLOCK_ORDER].a))
    pb = int(mem.run[first].first) >> PAGEBLOCK_ORDER
    if not folds(mem, pb):  # the place that a list's head names may be
        prefetch(mem.ext, extents_of(mem, pb))


@kernel
def fault_small_run(mem: Memory, mm: int, window: int, nr: int) -> int:
    """Serve the faults of all pages of empty windows in a row that may not be huge.

    Returns
    -------
    int
        Windows done, from 0; as `fault_huge_run`.
    """
    if mem.mm[mm, MM_NR_NODES] > 1:
        return 0
    ram_windows = (mem.mm[mm, MM_RAM_PAGES] + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER
    if window < ram_windows:
        nr = min(nr, ram_windows - window)
    zone = usable_zone(mem, 0)
    if zone == NIL:
        return 0
    era = mem.tunables[T_PCP_6_12] != 0
    data = zone * NR_PCP_LISTS + list_index(0, MIGRATE_MOVABLE, era)
    tables = zone * NR_PCP_LISTS + list_index(0, MIGRATE_UNMOVABLE, era)
    keep_apart = alloc_flags_nofragment(mem)
    base = mem.mm[mm, MM_BASE] + window
    done = 0
    pfn = 0
    first_table = 0
    nr_tables = 0
    while done < nr and _plenty(mem, zone) and mem.run[tables].next != tables:
        if mem.windows[base + done] != W_NONE:
            break
        table, _, _ = pop_head(mem, tables, 1)
        mem.zone[zone, PCP_COUNT] -= 1
        own_pages(mem, mm, KIND_PGTABLE, table, 1, 1)
        if table != first_table + nr_tables:
            _note_tables(mem, first_table, nr_tables, 1)
            first_table = table
            nr_tables = 0
        nr_tables += 1
        if mem.pool[P_IN_ORDER] != 0:
            _note_tables(mem, table, 1, 1)
            nr_tables = 0
        mem.windows[base + done] = table_word(NIL)
        vpn = (window + done) << HPAGE_PMD_ORDER
        end = vpn + HPAGE_PMD_NR
        before = NIL
        while vpn < end:
            if mem.run[data].next == data:
                rmqueue_bulk(mem, zone, 0, MIGRATE_MOVABLE, keep_apart)
            pfn, taken, step = pop_head(mem, data, end - vpn)
            mem.zone[zone, PCP_COUNT] -= taken
            if taken < end - vpn:
                _prefetch_owners(mem, data)
            before = map_run(mem, mm, window + done, before, vpn, pfn, taken, step)
            if mem.pool[P_TRACED] != 0:
                note_touched(mem, pfn, taken, step, 0)
            vpn += taken
        try_fold(mem, mm, window + done)
        done += 1
    _note_tables(mem, first_table, nr_tables, 1)
    if done > 0:
        pages = done << HPAGE_PMD_ORDER
        account_rss(mem, mm, window, pages)
        _account(mem, zone, pages + done, pages + done)
        mem.vmstat[PGFAULT] += pages
        mod_node_page_state(mem, pfn, NR_ANON_PAGES, pages)
        charge(mem, C_FAULT, pages)
        charge(mem, C_CLEAR_PAGE, pages)
    return done


@kernel
def fault_run(mem: Memory, mm: int, window: int, nr: int) -> int:
    """Serve the faults of empty windows in a row, all pages written; return how many were done."""
    if not _may_run(mem, mm):
        return 0
    if thp_enabled(mem, mm):
        return fault_huge_run(mem, mm, window, nr)
    return fault_small_run(mem, mm, window, nr)
