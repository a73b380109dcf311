"""Shrinking the lists: what becomes of the pages at a list's tail.

Source: Linux v6.1 mm/vmscan.c isolate_lru_folios, shrink_folio_list, folio_check_references,
shrink_inactive_list, shrink_active_list.
Simplified: pages that ksmd merged are not swapped out.
Simplified: a dirty page of the page cache is clean when reclaim meets it the second time.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.cost import C_SCAN_PAGE, charge
from hostsim.mm.lru import (
    ACTIVE_FILE,
    INACTIVE_ANON,
    INACTIVE_FILE,
    collect,
    fresh_stamp,
    lru_size,
    next_entity,
    push_front,
    tail_stamp,
)
from hostsim.mm.lru_stamp import (
    LRU_ACTIVE,
    LRU_DIRTY,
    LRU_REFERENCED,
    LRU_YOUNG,
    extent_stamp,
    huge_stamp,
    set_extent_stamp,
    set_huge_stamp,
)
from hostsim.mm.mm_types import (
    N_COST_ANON,
    N_COST_FILE,
    N_LRU_ACTIVE,
    NIL,
    NR_LRU_LISTS,
    P_PINS,
    Memory,
)
from hostsim.mm.mmu_notifier import clear_flush_young
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import free_pages
from hostsim.mm.pb_packed import pb_b
from hostsim.mm.physmem import PB_COMPOUND, PB_HUGE, pageblock_state, pfn_to_nid
from hostsim.mm.pins import cut_at_pin
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    EXT_KSM,
    EXT_PMD,
    EXT_SHARED,
    KIND_ANON,
    KIND_FILE,
    KIND_MASK,
    KIND_SWAPCACHE,
    cut_extent,
    del_extent,
    extents_of,
    frame_at,
)
from hostsim.mm.split import (
    COMPOUND_DEFERRED,
    COMPOUND_SHIFT,
    COMPOUND_SWAPCACHE,
    frame_pinned,
    free_unmapped_compound,
    is_pinned,
    nr_pmd_mappings,
    split_huge_page,
)
from hostsim.mm.swapfile import alloc_cluster, delete_from_swap_cache
from hostsim.mm.swapout import (
    swap_out_extent,
    swap_out_huge,
    swap_out_shared,
    unmap_huge,
    write_huge,
)
from hostsim.mm.tunables import (
    SPLIT_BEFORE_SWAP_TABLE,
    T_PHYSICAL_SPLIT,
    T_SPLIT_BEFORE_SWAP,
    T_THP_SWAP,
)
from hostsim.mm.unmap import forget_swap_cache_huge
from hostsim.mm.vmstat import (
    NR_FILE_PAGES,
    NR_SWAPCACHED,
    PGACTIVATE,
    PGDEACTIVATE,
    PGSCAN_ANON,
    PGSCAN_DIRECT,
    PGSCAN_FILE,
    PGSCAN_KSWAPD,
    PGSTEAL_ANON,
    PGSTEAL_DIRECT,
    PGSTEAL_FILE,
    PGSTEAL_KSWAPD,
    PSWPOUT,
    THP_SWPOUT_FALLBACK,
)

# Columns of Memory.scan: struct scan_control
SC_PRIORITY: Final = 0
SC_KSWAPD: Final = 1  # 1: kswapd, 0: direct reclaim
SC_MAY_SWAP: Final = 2
SC_GOAL: Final = 3  # nr_to_reclaim
SC_RECLAIMED: Final = 4
SC_SCANNED: Final = 5
SC_ORDER: Final = 6
SC_FORCE: Final = 7  # 1: accessed bits are ignored (MADV_PAGEOUT)
SC_TARGET: Final = 8  # + list: pages still to be scanned
SC_NODE: Final = 14  # node whose lists are scanned; behind what swapout keeps

KEEP: Final = 0
ACTIVATE: Final = 1
RECLAIM: Final = 2


@inline_kernel
def _references(mem: Memory, young: int, referenced: bool) -> int:
    """Decide by accessed bits (folio_check_references)."""
    if mem.scan[SC_FORCE] != 0:
        return RECLAIM
    if young > 1 or (young == 1 and referenced):
        return ACTIVATE
    if young == 1:
        return KEEP
    return RECLAIM


@kernel
def _young_in_ept(mem: Memory, x: int) -> bool:
    """Tell whether a guest's EPT says that pages were accessed, if its entries are asked."""
    mm = int(mem.ext[x].owner)
    if mm == NIL or mem.ext[x].flags & KIND_MASK != KIND_ANON:
        return False
    vpn = int(mem.ext[x].vpn)
    return clear_flush_young(mem, mm, vpn >> HPAGE_PMD_ORDER, vpn, vpn + int(mem.ext[x].nr))


@kernel
def _young_in_huge(mem: Memory, pb: int) -> int:
    """Clear the accessed bits of a huge page; return how many entries had one (2: several)."""
    young = 0
    if pageblock_state(mem, pb) == PB_HUGE:
        mm, first = int(mem.pb[pb].a), pb_b(mem, pb) << HPAGE_PMD_ORDER
        ept = clear_flush_young(mem, mm, pb_b(mem, pb), first, first + HPAGE_PMD_NR)
        young = 1 if ept or huge_stamp(mem, pb) & LRU_YOUNG else 0
    set_huge_stamp(mem, pb, huge_stamp(mem, pb) & ~LRU_YOUNG)
    if pageblock_state(mem, pb) == PB_COMPOUND:
        x = int(mem.pb[pb].a)
        while x != NIL:
            if extent_stamp(mem, x) & LRU_YOUNG or _young_in_ept(mem, x):
                young += 1 if mem.ext[x].flags & EXT_PMD else min(int(mem.ext[x].nr), 2)
                set_extent_stamp(mem, x, extent_stamp(mem, x) & ~LRU_YOUNG)
            x = int(mem.ext[x].next_b)
    return young


@kernel
def _activate_huge(mem: Memory, pb: int) -> None:
    """Put a huge page at the head of the active list."""
    set_huge_stamp(mem, pb, fresh_stamp(mem, LRU_ACTIVE | (huge_stamp(mem, pb) & LRU_REFERENCED)))
    nid = pfn_to_nid(mem, pb << PAGEBLOCK_ORDER)
    mem.node[nid, N_LRU_ACTIVE] += HPAGE_PMD_NR
    mem.vmstat[PGACTIVATE] += HPAGE_PMD_NR


@kernel
def _activate_extent(mem: Memory, x: int, file: bool) -> None:
    """Put small pages at the head of the active list."""
    keep = extent_stamp(mem, x) & (LRU_REFERENCED | LRU_DIRTY)
    set_extent_stamp(mem, x, fresh_stamp(mem, LRU_ACTIVE | keep))
    nid = pfn_to_nid(mem, int(mem.ext[x].pfn))
    mem.node[nid, N_LRU_ACTIVE + (1 if file else 0)] += int(mem.ext[x].nr)
    mem.vmstat[PGACTIVATE] += int(mem.ext[x].nr)


@kernel
def _cut_pinned(mem: Memory, x: int) -> bool:
    """Cut an extent where its pages begin or cease to be pinned; tell whether its own are.

    The rest is next on the list.
    """
    if mem.ext[x].flags & EXT_SHARED:  # in 2.6.38 another process may have pinned the frame
        vpn = int(mem.ext[x].vpn)
        pinned = frame_pinned(mem, frame_at(mem, x, vpn))
        rest = cut_extent(mem, x, vpn + 1) if mem.ext[x].nr > 1 else NIL
    else:
        pinned, rest = cut_at_pin(mem, x)
    if rest != NIL:
        push_front(mem, INACTIVE_ANON, rest << 1, extent_stamp(mem, rest))
    return pinned


@kernel
def _cut_at_pins(mem: Memory, pb: int) -> None:
    """Cut the extents of a pageblock so that of each all pages or none are pinned."""
    x = extents_of(mem, pb)
    while x != NIL:
        after = int(mem.ext[x].next_b)
        y = x
        while y != NIL and mem.ext[y].flags & KIND_MASK == KIND_ANON:
            _, y = cut_at_pin(mem, y)
        x = after


@kernel
def _swap_out_pieces(mem: Memory, pb: int) -> None:
    """Swap out the small pages of a pageblock that was a huge page a moment ago."""
    if mem.pool[P_PINS] != 0:
        _cut_at_pins(mem, pb)
    x = extents_of(mem, pb)
    while x != NIL:
        after = int(mem.ext[x].next_b)
        if mem.ext[x].flags & KIND_MASK == KIND_ANON:
            if mem.ext[x].flags & EXT_SHARED:
                set_extent_stamp(mem, x, fresh_stamp(mem, 0))
            elif mem.pool[P_PINS] != 0 and _cut_pinned(mem, x):
                set_extent_stamp(mem, x, fresh_stamp(mem, 0))
            elif not swap_out_extent(mem, x):
                _activate_extent(mem, x, False)
                return
        x = after


@kernel
def _reclaim_huge(mem: Memory, pb: int) -> int:
    """Swap a huge page out, or free it if it has been; return the pages freed."""
    compound = pageblock_state(mem, pb) == PB_COMPOUND
    if not compound or pb_b(mem, pb) & COMPOUND_SWAPCACHE == 0:
        if mem.scan[SC_MAY_SWAP] == 0:
            set_huge_stamp(mem, pb, fresh_stamp(mem, 0))
            return 0
        split_first = False
        if compound and mem.tunables[T_SPLIT_BEFORE_SWAP] == SPLIT_BEFORE_SWAP_TABLE:
            split_first = nr_pmd_mappings(mem, pb) == 0
        elif compound:
            split_first = pb_b(mem, pb) & COMPOUND_DEFERRED != 0
        slot = NIL
        if not split_first and mem.tunables[T_THP_SWAP] != 0:
            slot = alloc_cluster(mem)
        if slot != NIL:
            swap_out_huge(mem, pb, slot)
            return 0
        if not split_huge_page(mem, pb):
            _activate_huge(mem, pb)
            return 0
        if not split_first and mem.tunables[T_THP_SWAP] != 0:
            mem.vmstat[THP_SWPOUT_FALLBACK] += 1
        _swap_out_pieces(mem, pb)
        return 0
    if mem.pb[pb].a != NIL:
        unmap_huge(mem, pb, pb_b(mem, pb) >> COMPOUND_SHIFT << HPAGE_PMD_ORDER)
        write_huge(mem, pb)
        return 0
    forget_swap_cache_huge(mem, pb)
    free_unmapped_compound(mem, pb)
    return HPAGE_PMD_NR


@kernel
def shrink_huge(mem: Memory, pb: int) -> int:
    """Look at a huge page from the tail of the inactive list; return the pages freed."""
    young = _young_in_huge(mem, pb)
    verdict = _references(mem, young, huge_stamp(mem, pb) & LRU_REFERENCED != 0)
    set_huge_stamp(mem, pb, huge_stamp(mem, pb) & ~LRU_REFERENCED)
    if young > 0:
        set_huge_stamp(mem, pb, huge_stamp(mem, pb) | LRU_REFERENCED)
    if verdict == ACTIVATE:
        _activate_huge(mem, pb)
        return 0
    pinned = is_pinned(mem, pb) and mem.tunables[T_PHYSICAL_SPLIT] == 0  # 2.6.38 splits it
    if verdict == KEEP or pinned:
        set_huge_stamp(mem, pb, fresh_stamp(mem, huge_stamp(mem, pb) & LRU_REFERENCED))
        return 0
    return _reclaim_huge(mem, pb)


@kernel
def _free_cached(mem: Memory, x: int) -> int:
    """Free pages of the swap cache that have been written; return how many."""
    nr = int(mem.ext[x].nr)
    slot = int(mem.ext[x].vpn)
    pfn = int(mem.ext[x].pfn)
    down = mem.ext[x].flags & EXT_DESCENDING != 0
    for i in range(slot, slot + nr):
        delete_from_swap_cache(mem, i)
    mod_node_page_state(mem, pfn, NR_SWAPCACHED, -nr)
    del_extent(mem, x)
    free_pages(mem, pfn + nr - 1 if down else pfn, nr, -1 if down else 1)
    return nr


@kernel
def _reclaim_file(mem: Memory, x: int) -> int:
    """Free pages of the page cache, or write them if they are dirty; return the pages freed."""
    if extent_stamp(mem, x) & LRU_DIRTY:
        set_extent_stamp(mem, x, tail_stamp(mem, 0))
        push_front(mem, INACTIVE_FILE, x << 1, extent_stamp(mem, x))
        return 0
    nr = int(mem.ext[x].nr)
    pfn = int(mem.ext[x].pfn)
    del_extent(mem, x)
    mod_node_page_state(mem, pfn, NR_FILE_PAGES, -nr)
    free_pages(mem, pfn, nr, 1)
    return nr


@kernel
def shrink_extent(mem: Memory, x: int, most: int) -> tuple[int, int]:
    """Look at small pages from the tail of an inactive list.

    Pages that were accessed are kept all at once; of others, at most ``most`` are reclaimed and
    the rest is next.

    Returns
    -------
    scanned, freed
    """
    kind = int(mem.ext[x].flags) & KIND_MASK
    file = kind == KIND_FILE
    nr = int(mem.ext[x].nr)
    referenced = extent_stamp(mem, x) & LRU_REFERENCED != 0
    young = 1 if extent_stamp(mem, x) & LRU_YOUNG or _young_in_ept(mem, x) else 0
    set_extent_stamp(mem, x, extent_stamp(mem, x) & ~(LRU_REFERENCED | LRU_YOUNG))
    if young > 0:
        set_extent_stamp(mem, x, extent_stamp(mem, x) | LRU_REFERENCED)
    verdict = _references(mem, young, referenced)
    if mem.ext[x].flags & EXT_KSM:
        verdict = KEEP
    if verdict == RECLAIM and mem.pool[P_PINS] != 0 and kind == KIND_ANON:
        if _cut_pinned(mem, x):
            verdict = KEEP
        nr = int(mem.ext[x].nr)
    if kind == KIND_ANON and mem.scan[SC_MAY_SWAP] == 0 and verdict == RECLAIM:
        verdict = KEEP
    if verdict == ACTIVATE:
        _activate_extent(mem, x, file)
        return nr, 0
    if verdict == KEEP:
        set_extent_stamp(
            mem, x, fresh_stamp(mem, extent_stamp(mem, x) & (LRU_REFERENCED | LRU_DIRTY))
        )
        return nr, 0
    if nr > most:
        rest = cut_extent(mem, x, int(mem.ext[x].vpn) + most)
        push_front(
            mem, INACTIVE_FILE if file else INACTIVE_ANON, rest << 1, extent_stamp(mem, rest)
        )
        nr = most
    if kind == KIND_SWAPCACHE:
        return nr, _free_cached(mem, x)
    if file:
        return nr, _reclaim_file(mem, x)
    if mem.ext[x].flags & EXT_SHARED == 0:
        if not swap_out_extent(mem, x):
            _activate_extent(mem, x, False)
        return nr, 0
    for left in range(nr, 0, -1):
        rest = cut_extent(mem, x, int(mem.ext[x].vpn) + 1) if left > 1 else NIL
        if not swap_out_shared(mem, x):
            break
        x = rest
    return nr, 0


@inline_kernel
def _count(mem: Memory, file: bool, scanned: int, freed: int) -> None:
    """Count pages scanned and freed."""
    mem.scan[SC_SCANNED] += scanned
    mem.scan[SC_RECLAIMED] += freed
    kswapd = mem.scan[SC_KSWAPD] != 0
    mem.vmstat[PGSCAN_KSWAPD if kswapd else PGSCAN_DIRECT] += scanned
    mem.vmstat[PGSTEAL_KSWAPD if kswapd else PGSTEAL_DIRECT] += freed
    mem.vmstat[PGSCAN_FILE if file else PGSCAN_ANON] += scanned
    mem.vmstat[PGSTEAL_FILE if file else PGSTEAL_ANON] += freed
    charge(mem, C_SCAN_PAGE, scanned)


@kernel
def shrink_inactive_list(mem: Memory, lru: int, nr_to_scan: int) -> int:
    """Scan pages from the tail of an inactive list; return how many were scanned."""
    nid = mem.scan[SC_NODE]
    file = lru == INACTIVE_FILE
    written = mem.vmstat[PSWPOUT]
    scanned = 0
    while scanned < nr_to_scan:
        entity = next_entity(mem, nid, lru)
        if entity == NIL:
            if collect(mem, nid, lru) == 0:
                break
            entity = next_entity(mem, nid, lru)
        if entity & 1:
            pages = HPAGE_PMD_NR
            freed = shrink_huge(mem, entity >> 1)
        else:
            pages, freed = shrink_extent(mem, entity >> 1, nr_to_scan - scanned)
        scanned += pages
        _count(mem, file, pages, freed)
    note_cost(mem, nid, file, mem.vmstat[PSWPOUT] - written)
    return scanned


@kernel
def note_cost(mem: Memory, nid: int, file: bool, pages: int) -> None:
    """Remember what reclaim of a kind of pages cost (lru_note_cost)."""
    own = mem.node[nid]
    own[N_COST_FILE if file else N_COST_ANON] += pages
    size = 0
    for lru in range(NR_LRU_LISTS):
        size += lru_size(mem, nid, lru)
    if own[N_COST_ANON] + own[N_COST_FILE] > size // 4:
        own[N_COST_ANON] >>= 1
        own[N_COST_FILE] >>= 1


@kernel
def shrink_active_list(mem: Memory, lru: int, nr_to_scan: int) -> int:
    """Move pages from the tail of an active list to the inactive one; return how many."""
    nid = mem.scan[SC_NODE]
    active = N_LRU_ACTIVE + (1 if lru == ACTIVE_FILE else 0)
    moved = 0
    while moved < nr_to_scan:
        entity = next_entity(mem, nid, lru)
        if entity == NIL:
            mem.node[nid, active] = collect(mem, nid, lru)
            entity = next_entity(mem, nid, lru)
            if entity == NIL:
                break
        at = entity >> 1
        if entity & 1:
            pages = HPAGE_PMD_NR
            _young_in_huge(mem, at)
            set_huge_stamp(mem, at, fresh_stamp(mem, huge_stamp(mem, at) & LRU_REFERENCED))
        else:
            pages = int(mem.ext[at].nr)
            keep = LRU_REFERENCED | LRU_DIRTY
            set_extent_stamp(mem, at, fresh_stamp(mem, extent_stamp(mem, at) & keep))
        moved += pages
        mem.vmstat[PGDEACTIVATE] += pages
        mem.node[nid, active] -= pages
        charge(mem, C_SCAN_PAGE, pages)
    return moved
