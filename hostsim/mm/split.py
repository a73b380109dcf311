"""Splitting a huge page's mapping, which never fails, and the page itself.

Source: Linux v6.1 mm/huge_memory.c __split_huge_pmd, split_huge_page_to_list,
deferred_split_huge_page; v6.12 try_to_map_unused_to_zeropage.
The page itself can be split only while nobody holds further references.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import (
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.content import forget_huge, is_written, partly_written
from hostsim.mm.cost import C_SPLIT, charge
from hostsim.mm.lru_stamp import LRU_YOUNG, extent_stamp, huge_stamp, set_extent_stamp
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MM_HUGE,
    NIL,
    P_MAP_SEQ,
    P_PINS,
    P_SPLIT_FIRST,
    P_SPLIT_LAST,
    P_SPLIT_LEN,
    Memory,
)
from hostsim.mm.mmap import set_window, table_word, window_word
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import account_rss, free_compound, free_pages
from hostsim.mm.page_ext import is_queued_ext, lookup_page_ext, need_page_ext, put_page_ext
from hostsim.mm.pb_packed import pb_b, set_pb_b
from hostsim.mm.physmem import PB_COMPOUND, PB_FULL, PB_HUGE, pageblock_state, set_state
from hostsim.mm.pins import any_pinned
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    EXT_PMD,
    EXT_SHARED,
    EXT_ZERO,
    KIND_ANON,
    add_extent,
    cut_extent,
    del_extent,
    extents_in,
    extents_of,
)
from hostsim.mm.tunables import T_PHYSICAL_SPLIT, T_SPLIT_FREES_ZERO, T_UNMAP_DEFERS
from hostsim.mm.vmstat import (
    NR_ANON_PAGES,
    NR_ANON_THPS,
    THP_DEFERRED_SPLIT_PAGE,
    THP_SPLIT_PAGE,
    THP_SPLIT_PAGE_FAILED,
    THP_SPLIT_PMD,
)

# `pb_b` of PB_COMPOUND
COMPOUND_DEFERRED: Final = 1  # partly mapped, and so on the deferred split queue
COMPOUND_SWAPCACHE: Final = 2  # in the swap cache; its cluster of slots above
COMPOUND_SHIFT: Final = 2


@kernel
def pmd_mapping(mem: Memory, pb: int, mm: int, window: int) -> int:
    """Return the extent by which a process maps a shared huge page with one PMD, or NIL."""
    x = int(mem.pb[pb].a)
    while x != NIL:
        if (
            mem.ext[x].flags & EXT_PMD
            and mem.ext[x].owner == mm
            and mem.ext[x].vpn == window << HPAGE_PMD_ORDER
        ):
            return x
        x = int(mem.ext[x].next_b)
    return NIL


@kernel
def nr_pmd_mappings(mem: Memory, pb: int) -> int:
    """Return how many PMDs map a compound page."""
    nr = 0
    x = int(mem.pb[pb].a)
    while x != NIL:
        if mem.ext[x].flags & EXT_PMD:
            nr += 1
        x = int(mem.ext[x].next_b)
    return nr


@kernel
def make_compound(mem: Memory, pb: int, mm: int, window: int, flags: int) -> int:
    """Describe a huge page that one PMD maps by an extent instead; return the extent."""
    set_state(mem, pb, PB_COMPOUND, MIGRATE_MOVABLE)
    mem.pb[pb].a = NIL
    set_pb_b(mem, pb, 0)
    x = add_extent(
        mem,
        pb << PAGEBLOCK_ORDER,
        HPAGE_PMD_NR,
        mm,
        window << HPAGE_PMD_ORDER,
        flags,
    )
    set_extent_stamp(mem, x, huge_stamp(mem, pb))
    return x


@kernel
def split_mapping(mem: Memory, mm: int, window: int) -> None:
    """Replace a window's huge PMD by its deposited page table; never fails, never allocates."""
    notify(mem, mm, window, window << HPAGE_PMD_ORDER, (window + 1) << HPAGE_PMD_ORDER)
    pb = window_word(mem, mm, window) >> 2
    if pageblock_state(mem, pb) == PB_HUGE:
        x = make_compound(mem, pb, mm, window, KIND_ANON)
        mem.vmstat[NR_ANON_THPS] -= 1
    else:
        x = pmd_mapping(mem, pb, mm, window)
        mem.ext[x].flags = KIND_ANON | EXT_SHARED
        if nr_pmd_mappings(mem, pb) == 0:
            mem.vmstat[NR_ANON_THPS] -= 1
    mem.ext[x].next = NIL
    set_window(mem, mm, window, table_word(x))
    mem.mm[mm, MM_HUGE] -= 1
    mem.vmstat[THP_SPLIT_PMD] += 1


@kernel
def deferred_split(mem: Memory, pb: int) -> None:
    """Queue a huge page of which a part is no longer mapped, once."""
    if pb_b(mem, pb) & (COMPOUND_DEFERRED | COMPOUND_SWAPCACHE) != 0:
        return
    set_pb_b(mem, pb, pb_b(mem, pb) | COMPOUND_DEFERRED)
    mem.vmstat[THP_DEFERRED_SPLIT_PAGE] += 1
    queue_huge(mem, pb)


@inline_kernel
def is_queued(mem: Memory, pb: int) -> bool:
    """Tell whether a huge page is on the deferred split queue."""
    at = lookup_page_ext(mem, pb)
    return at != NIL and is_queued_ext(mem, at)


@kernel
def queue_huge(mem: Memory, pb: int) -> None:
    """Put a huge page at the end of the deferred split queue, if it is not on it."""
    if is_queued(mem, pb):
        return
    last = mem.pool[P_SPLIT_LAST]
    mem.page_ext[need_page_ext(mem, pb)].prev = last
    if last != 0:
        mem.page_ext[lookup_page_ext(mem, last - 1)].next = pb + 1
    else:
        mem.pool[P_SPLIT_FIRST] = pb + 1
    mem.pool[P_SPLIT_LAST] = pb + 1
    mem.pool[P_SPLIT_LEN] += 1


@kernel
def undo_deferred(mem: Memory, pb: int) -> None:
    """Take a huge page off the deferred split queue, if it is there."""
    if not is_queued(mem, pb):
        return
    if pageblock_state(mem, pb) == PB_COMPOUND:
        set_pb_b(mem, pb, pb_b(mem, pb) & ~COMPOUND_DEFERRED)
    at = lookup_page_ext(mem, pb)
    after = int(mem.page_ext[at].next)
    before = int(mem.page_ext[at].prev)
    if after != 0:
        mem.page_ext[lookup_page_ext(mem, after - 1)].prev = before
    else:
        mem.pool[P_SPLIT_LAST] = before
    if before != 0:
        mem.page_ext[lookup_page_ext(mem, before - 1)].next = after
    else:
        mem.pool[P_SPLIT_FIRST] = after
    mem.page_ext[at].next = 0
    mem.page_ext[at].prev = 0
    mem.pool[P_SPLIT_LEN] -= 1
    put_page_ext(mem, at)


@kernel
def free_unmapped_compound(mem: Memory, pb: int) -> None:
    """Free a compound page that nobody maps, and that is not in the swap cache."""
    undo_deferred(mem, pb)
    free_compound(mem, pb)


@kernel
def is_pinned(mem: Memory, pb: int) -> bool:
    """Tell whether a page of a huge page is pinned, which counts for all of it."""
    if mem.pool[P_PINS] == 0:
        return False
    if pageblock_state(mem, pb) == PB_HUGE:
        first = pb_b(mem, pb) << HPAGE_PMD_ORDER
        return any_pinned(mem, int(mem.pb[pb].a), first, first + HPAGE_PMD_NR)
    x = int(mem.pb[pb].a)
    while x != NIL:
        first = int(mem.ext[x].vpn)
        if any_pinned(mem, int(mem.ext[x].owner), first, first + int(mem.ext[x].nr)):
            return True
        x = int(mem.ext[x].next_b)
    return False


@kernel
def frame_pinned(mem: Memory, frame: int) -> bool:
    """Tell whether a process that maps a frame of small pages has pinned that page."""
    x = extents_of(mem, frame >> PAGEBLOCK_ORDER)
    while x != NIL:
        i = frame - int(mem.ext[x].pfn)
        nr = int(mem.ext[x].nr)
        if 0 <= i < nr and mem.ext[x].owner != NIL:
            page = int(mem.ext[x].vpn) + (nr - 1 - i if mem.ext[x].flags & EXT_DESCENDING else i)
            if any_pinned(mem, int(mem.ext[x].owner), page, page + 1):
                return True
        x = int(mem.ext[x].next_b)
    return False


@kernel
def _mark_zero(mem: Memory, pb: int) -> None:
    """Cut a compound page's extents so that pages never written stand in EXT_ZERO ones."""
    x = int(mem.pb[pb].a)
    while x != NIL:
        after = int(mem.ext[x].next_b)
        y = x
        while y != NIL:
            down = mem.ext[y].flags & EXT_DESCENDING != 0
            nr = int(mem.ext[y].nr)
            first = int(mem.ext[y].pfn) & (PAGEBLOCK_NR_PAGES - 1)
            at = first + nr - 1 if down else first
            written = is_written(mem, pb, at)
            same = 1
            while same < nr and is_written(mem, pb, at - same if down else at + same) == written:
                same += 1
            rest = cut_extent(mem, y, int(mem.ext[y].vpn) + same) if same < nr else NIL
            if not written:
                mem.ext[y].flags |= EXT_ZERO
            y = rest
        x = after


@kernel
def unlink_extent(mem: Memory, x: int) -> None:
    """Take an extent of small pages off its window's list."""
    mm = int(mem.ext[x].owner)
    window = int(mem.ext[x].vpn) >> HPAGE_PMD_ORDER
    after = int(mem.ext[x].next)
    y = extents_in(mem, mm, window)
    if y == x:
        set_window(mem, mm, window, table_word(after))
        return
    while mem.ext[y].next != x:
        y = int(mem.ext[y].next)
    mem.ext[y].next = after


@kernel
def _unmap_zero(mem: Memory, pb: int) -> None:
    """Let pages of zeros map the shared zero page instead, which leaves holes."""
    x = int(mem.pb[pb].a)
    while x != NIL:
        after = int(mem.ext[x].next_b)
        if mem.ext[x].flags & EXT_ZERO:
            window = int(mem.ext[x].vpn) >> HPAGE_PMD_ORDER
            first = int(mem.ext[x].vpn)
            notify(mem, int(mem.ext[x].owner), window, first, first + int(mem.ext[x].nr))
            account_rss(mem, int(mem.ext[x].owner), window, -int(mem.ext[x].nr))
            unlink_extent(mem, x)
            del_extent(mem, x)
        x = after


@kernel
def _mark_owned(mem: Memory, pb: int) -> int:
    """Set the first 512 numbers of ``mem.scratch`` to whether a frame is mapped; count those."""
    for i in range(PAGEBLOCK_NR_PAGES):
        mem.scratch[i] = 0
    mapped = 0
    x = extents_of(mem, pb)
    while x != NIL:
        low = int(mem.ext[x].pfn) & (PAGEBLOCK_NR_PAGES - 1)
        for i in range(low, low + int(mem.ext[x].nr)):
            mapped += mem.scratch[i] == 0
            mem.scratch[i] = 1
        x = int(mem.ext[x].next_b)
    return mapped


@kernel
def split_huge_page(mem: Memory, pb: int) -> bool:
    """Make a huge page 512 small ones; pages that nobody maps are freed.

    Returns
    -------
    bool
        False, with nothing changed, if somebody holds further references: pins, or the swap
        cache.
    """
    alone = pageblock_state(mem, pb) == PB_HUGE
    held = is_pinned(mem, pb) and mem.tunables[T_PHYSICAL_SPLIT] == 0  # 2.6.38 cannot fail
    if held or (not alone and pb_b(mem, pb) & COMPOUND_SWAPCACHE != 0):
        mem.vmstat[THP_SPLIT_PAGE_FAILED] += 1
        return False
    if alone:
        split_mapping(mem, int(mem.pb[pb].a), pb_b(mem, pb))
    else:
        x = int(mem.pb[pb].a)
        while x != NIL:
            if mem.ext[x].flags & EXT_PMD:
                split_mapping(mem, int(mem.ext[x].owner), int(mem.ext[x].vpn) >> HPAGE_PMD_ORDER)
            x = int(mem.ext[x].next_b)
    if mem.tunables[T_UNMAP_DEFERS] != 0:
        deferred_split(mem, pb)
    undo_deferred(mem, pb)
    x = int(mem.pb[pb].a)
    while x != NIL:
        set_extent_stamp(mem, x, huge_stamp(mem, pb) | (extent_stamp(mem, x) & LRU_YOUNG))
        x = int(mem.ext[x].next_b)
    mem.pool[P_MAP_SEQ] += 1
    mem.vmstat[THP_SPLIT_PAGE] += 1
    charge(mem, C_SPLIT, 1)
    first = pb << PAGEBLOCK_ORDER
    mapped = _mark_owned(mem, pb)
    if partly_written(mem, pb):
        _mark_zero(mem, pb)
        forget_huge(mem, pb)
        if mem.tunables[T_SPLIT_FREES_ZERO] != 0:
            _unmap_zero(mem, pb)
    head = int(mem.pb[pb].a)
    set_state(mem, pb, PB_FULL, MIGRATE_MOVABLE)
    mem.pb[pb].a = head
    left = _mark_owned(mem, pb)
    i = 0
    while i < PAGEBLOCK_NR_PAGES:
        nr = 0
        while i + nr < PAGEBLOCK_NR_PAGES and mem.scratch[i + nr] == 0:
            nr += 1
        if nr > 0:
            free_pages(mem, first + i, nr, 1)
        i += max(nr, 1)
    mod_node_page_state(mem, first, NR_ANON_PAGES, left - mapped)
    return True


@kernel
def split_pmd(mem: Memory, mm: int, window: int) -> None:
    """Split the mapping of a window's huge page; in 2.6.38 the page itself, for all that map it."""
    if mem.tunables[T_PHYSICAL_SPLIT] != 0:
        split_huge_page(mem, window_word(mem, mm, window) >> 2)
    else:
        split_mapping(mem, mm, window)
