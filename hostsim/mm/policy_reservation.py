"""Promotion by reservation, as FreeBSD does it.

The first fault of a window sets a whole huge page aside and maps one page of it.  Further faults
of the window take their pages from it, and when all are mapped the window becomes huge without a
copy.  Until then the page stands on the deferred split queue, so that memory pressure breaks the
reservation: what is not mapped is freed, and the window's later pages come from anywhere.  Pages
that are discarded go back to the reservation.

Source: Navarro et al., "Practical, Transparent Operating System Support for Superpages", OSDI
2002; FreeBSD sys/vm/vm_reserv.c vm_reserv_alloc_page, vm_reserv_break.
Simplified: broken reservations are those at the head of the deferred split queue, the oldest,
not the least recently used; khugepaged does nothing.
"""

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.lru import fresh_stamp
from hostsim.mm.lru_stamp import LRU_YOUNG, set_extent_stamp, set_huge_stamp
from hostsim.mm.mm_types import MIGRATE_MOVABLE, MM_HUGE, NIL, Memory
from hostsim.mm.mmap import (
    W_TABLE,
    W_TAG,
    huge_word,
    set_window,
    table_word,
    window_word,
)
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import account_rss
from hostsim.mm.pb_packed import pb_b, set_pb_b
from hostsim.mm.physmem import PB_COMPOUND, PB_HUGE, pageblock_state, set_state
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    EXT_PMD,
    EXT_SHARED,
    KIND_ANON,
    KIND_MASK,
    add_extent,
    del_extent,
    extents_in,
)
from hostsim.mm.split import COMPOUND_SWAPCACHE, deferred_split, undo_deferred
from hostsim.mm.vmstat import (
    NR_ANON_PAGES,
    NR_ANON_THPS,
    THP_RESERVATION_ALLOC,
    THP_RESERVATION_PROMOTE,
)


@kernel
def reserve(mem: Memory, mm: int, window: int, page: int, pb: int) -> None:
    """Set a huge page aside for a window with an empty page table, and map one page of it."""
    set_state(mem, pb, PB_COMPOUND, MIGRATE_MOVABLE)
    mem.pb[pb].a = NIL
    set_pb_b(mem, pb, 0)
    set_huge_stamp(mem, pb, fresh_stamp(mem, LRU_YOUNG))
    pfn = (pb << PAGEBLOCK_ORDER) + (page & (HPAGE_PMD_NR - 1))
    x = add_extent(mem, pfn, 1, mm, page, KIND_ANON)
    set_extent_stamp(mem, x, LRU_YOUNG)
    set_window(mem, mm, window, table_word(x))
    deferred_split(mem, pb)
    account_rss(mem, mm, window, 1)
    mod_node_page_state(mem, pfn, NR_ANON_PAGES, 1)
    mem.vmstat[THP_RESERVATION_ALLOC] += 1


@kernel
def reserved_block(mem: Memory, mm: int, window: int) -> int:
    """Return the huge page that is set aside for a window, or NIL."""
    x = extents_in(mem, mm, window)
    if x == NIL or mem.ext[x].flags & KIND_MASK != KIND_ANON:
        return NIL
    pb = int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER
    if pageblock_state(mem, pb) != PB_COMPOUND or pb_b(mem, pb) & COMPOUND_SWAPCACHE != 0:
        return NIL
    y = int(mem.pb[pb].a)
    while y != NIL:
        if (
            mem.ext[y].owner != mm
            or mem.ext[y].flags & (EXT_SHARED | EXT_PMD | EXT_DESCENDING) != 0
            or int(mem.ext[y].vpn) >> HPAGE_PMD_ORDER != window
            or (int(mem.ext[y].pfn) ^ int(mem.ext[y].vpn)) & (HPAGE_PMD_NR - 1) != 0
        ):
            return NIL
        y = int(mem.ext[y].next_b)
    return pb


@kernel
def promote_if_full(mem: Memory, mm: int, window: int) -> None:
    """Map a window by a huge PMD if all pages of its reservation are mapped."""
    if window_word(mem, mm, window) & W_TAG != W_TABLE:
        return
    pb = reserved_block(mem, mm, window)
    if pb == NIL:
        return
    x = extents_in(mem, mm, window)
    mapped = 0
    while x != NIL:
        if int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER != pb:
            return
        mapped += int(mem.ext[x].nr)
        x = int(mem.ext[x].next)
    if mapped < HPAGE_PMD_NR:
        return
    notify(mem, mm, window, window << HPAGE_PMD_ORDER, (window + 1) << HPAGE_PMD_ORDER)
    undo_deferred(mem, pb)
    x = extents_in(mem, mm, window)
    while x != NIL:
        after = int(mem.ext[x].next)
        del_extent(mem, x)
        x = after
    set_state(mem, pb, PB_HUGE, MIGRATE_MOVABLE)
    mem.pb[pb].a = mm
    set_pb_b(mem, pb, window)
    set_window(mem, mm, window, huge_word(pb))
    mem.mm[mm, MM_HUGE] += 1
    mem.vmstat[NR_ANON_THPS] += 1
    mem.vmstat[THP_RESERVATION_PROMOTE] += 1
