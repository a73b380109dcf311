"""Merging one page: split its huge page, write-protect it, map the shared frame in its place.

Source: Linux v6.1 mm/ksm.c try_to_merge_one_page, try_to_merge_two_pages, write_protect_page,
replace_page.
Simplified: a machine whose records of mappings run out merges no more.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.content import KEY_ZERO, is_written, written_key
from hostsim.mm.ksm_tree import new_node
from hostsim.mm.mm_types import (
    MM_PINNED,
    NIL,
    P_EXT_LIVE,
    P_KSM_NODES,
    P_KSM_SHARING,
    P_KSM_ZERO,
    P_PAGEBLOCKS,
    Memory,
)
from hostsim.mm.mmap import (
    W_HUGE,
    W_NONE,
    W_TAG,
    W_ZERO,
    set_window,
    table_word,
    window_word,
)
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.page_alloc import account_rss
from hostsim.mm.physmem import PB_COMPOUND, pageblock_state
from hostsim.mm.pins import any_pinned
from hostsim.mm.rmap import (
    EXT_KSM,
    EXT_SHARED,
    EXT_ZERO,
    KIND_ANON,
    KIND_MASK,
    KIND_SWAP,
    add_extent,
    cut_extent,
    del_extent,
    extents_in,
    extents_of,
    frame_at,
)
from hostsim.mm.split import split_huge_page, unlink_extent
from hostsim.mm.tunables import T_PHYSICAL_SPLIT
from hostsim.mm.unmap import put_frames
from hostsim.mm.vmstat import THP_SPLIT_PAGE_FAILED

MERGED: Final = 0
NOT_MERGED: Final = 1
SAME_HUGE_PAGE: Final = 2  # both pages lie in one huge page, which two references keep whole
NO_KEY: Final = -2  # no page there


@inline_kernel
def _may_lead_to(mem: Memory, mm: int, page: int, hint: int) -> bool:
    """Tell whether a live extent, or NIL, is on a page's window's list, at or before the page."""
    return (
        hint != NIL
        and mem.ext[hint].owner == mm
        and int(mem.ext[hint].vpn) >> HPAGE_PMD_ORDER == page >> HPAGE_PMD_ORDER
        and mem.ext[hint].vpn <= page
    )


@kernel
def find_page(mem: Memory, mm: int, window: int, page: int, hint: int) -> int:
    """Return the first extent of a window with a page table that ends behind a page, or NIL.

    Parameters
    ----------
    hint
        An extent of the window from which to look, or NIL; one of another window is not used.
    """
    x = extents_in(mem, mm, window)
    if _may_lead_to(mem, mm, page, hint):
        x = hint
    while x != NIL and (
        int(mem.ext[x].vpn) + int(mem.ext[x].nr) <= page
        or mem.ext[x].flags & KIND_MASK == KIND_SWAP
    ):
        x = int(mem.ext[x].next)
    return x


@kernel
def _extent_at(mem: Memory, mm: int, page: int) -> int:
    """Return the extent that maps a small page, or NIL."""
    window = page >> HPAGE_PMD_ORDER
    word = window_word(mem, mm, window)
    if word == W_NONE or word == W_ZERO or word & W_TAG == W_HUGE:
        return NIL
    x = find_page(mem, mm, window, page, NIL)
    return x if x != NIL and mem.ext[x].vpn <= page else NIL


@kernel
def key_at(mem: Memory, mm: int, page: int, x: int) -> int:
    """Return the content of a mapped page of a process.

    Parameters
    ----------
    x
        The extent that maps it, NIL if a huge PMD does.
    """
    if x == NIL:
        pb = window_word(mem, mm, page >> HPAGE_PMD_ORDER) >> 2
        i = page & (HPAGE_PMD_NR - 1)
    else:
        if mem.ext[x].flags & EXT_ZERO:
            return KEY_ZERO
        pfn = frame_at(mem, x, page)
        if mem.ext[x].flags & EXT_KSM:
            return int(mem.ksm_node[mem.ksm_frame[pfn] - 1].key)
        pb = pfn >> PAGEBLOCK_ORDER
        i = pfn & (PAGEBLOCK_NR_PAGES - 1)
    if not is_written(mem, pb, i):
        return KEY_ZERO
    return written_key(mem, mm, page)


@kernel
def page_key(mem: Memory, mm: int, page: int) -> int:
    """Return the content of a page of a process, NO_KEY if none is mapped."""
    word = window_word(mem, mm, page >> HPAGE_PMD_ORDER)
    if word == W_NONE or word == W_ZERO:
        return NO_KEY
    if word & W_TAG == W_HUGE:
        return key_at(mem, mm, page, NIL)
    x = _extent_at(mem, mm, page)
    return key_at(mem, mm, page, x) if x != NIL else NO_KEY


@kernel
def _huge_page_at(mem: Memory, mm: int, page: int, x: int) -> int:
    """Return the pageblock of the huge page of which a mapped page is a part, or NIL.

    Parameters
    ----------
    x
        The extent that maps it, NIL if a huge PMD does.
    """
    if x == NIL:
        return window_word(mem, mm, page >> HPAGE_PMD_ORDER) >> 2
    pb = int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER
    return pb if pageblock_state(mem, pb) == PB_COMPOUND else NIL


@kernel
def huge_page_of(mem: Memory, mm: int, page: int) -> int:
    """Return the pageblock of the huge page of which a page is a part, or NIL."""
    word = window_word(mem, mm, page >> HPAGE_PMD_ORDER)
    if word & W_TAG == W_HUGE and word != W_ZERO:
        return word >> 2
    x = _extent_at(mem, mm, page)
    return _huge_page_at(mem, mm, page, x) if x != NIL else NIL


@kernel
def single_page(mem: Memory, mm: int, page: int, x: int) -> int:
    """Return the extent of a small page after splitting its huge page and cutting the rest off.

    Parameters
    ----------
    x
        The extent that maps it, NIL if a huge PMD does.

    Returns
    -------
    int
        NIL if the page is pinned, its huge page cannot be split, or the page is gone.
    """
    if mem.pool[P_EXT_LIVE] + 4 * HPAGE_PMD_NR > mem.ext.size:
        return NIL
    nr_pages = mem.pool[P_PAGEBLOCKS] << PAGEBLOCK_ORDER  # each may have an extent of its own
    if mem.pool[P_KSM_SHARING] + nr_pages + 4 * HPAGE_PMD_NR >= mem.ext.size:
        return NIL
    if mem.mm[mm, MM_PINNED] != 0 and any_pinned(mem, mm, page, page + 1):
        return NIL
    pb = _huge_page_at(mem, mm, page, x)
    if pb != NIL:
        if not split_huge_page(mem, pb):
            return NIL
        x = _extent_at(mem, mm, page)
        if x == NIL:
            return NIL
    notify(mem, mm, page >> HPAGE_PMD_ORDER, page, page + 1)
    if int(mem.ext[x].vpn) < page:
        x = cut_extent(mem, x, page)
    if mem.ext[x].nr > 1:
        cut_extent(mem, x, page + 1)
    return x


@kernel
def _single_page_of(mem: Memory, mm: int, page: int) -> int:
    """Return what `single_page` does, NIL for a page that is not mapped, too."""
    word = window_word(mem, mm, page >> HPAGE_PMD_ORDER)
    if word & W_TAG == W_HUGE and word != W_ZERO:
        return single_page(mem, mm, page, NIL)
    x = _extent_at(mem, mm, page)
    return single_page(mem, mm, page, x) if x != NIL else NIL


@kernel
def _link_to(mem: Memory, x: int, hint: int) -> int:
    """Return the extent before one on its window's list, NIL at its head.

    Parameters
    ----------
    hint
        An extent from which to look, as of `find_page`.
    """
    mm = int(mem.ext[x].owner)
    page = int(mem.ext[x].vpn)
    before = extents_in(mem, mm, page >> HPAGE_PMD_ORDER)
    if before == x:
        return NIL
    if _may_lead_to(mem, mm, page, hint) and hint != x:
        before = hint
    while mem.ext[before].next != x:
        before = int(mem.ext[before].next)
    return before


@kernel
def _unmap_single(mem: Memory, x: int) -> None:
    """Drop the mapping of an extent of one page that is already off its window's list."""
    pfn = int(mem.ext[x].pfn)
    shared = mem.ext[x].flags & EXT_SHARED != 0
    del_extent(mem, x)
    put_frames(mem, pfn, 1, shared, False, True)


@kernel
def merge_with_frame(mem: Memory, mm: int, page: int, x: int, hint: int, node: int) -> int:
    """Map a merged frame in place of an equal page; return its extent, NIL if it cannot be done.

    Parameters
    ----------
    x
        The extent that maps the page, NIL if a huge PMD does.
    hint
        An extent from which to look for what comes before the page, as of `find_page`.
    """
    if _huge_page_at(mem, mm, page, x) != NIL:
        hint = NIL
    whole = x
    x = single_page(mem, mm, page, whole)
    if x == NIL:
        return NIL
    if x != whole and hint != NIL:
        hint = whole
    flags = KIND_ANON | EXT_SHARED | EXT_KSM
    y = add_extent(mem, int(mem.ksm_node[node].pfn), 1, mm, page, flags)
    mem.ksm_node[node].maps += 1
    mem.ext[y].next = mem.ext[x].next
    before = _link_to(mem, x, hint)
    if before == NIL:
        set_window(mem, mm, page >> HPAGE_PMD_ORDER, table_word(y))
    else:
        mem.ext[before].next = y
    _unmap_single(mem, x)
    return y


@kernel
def merge_with_zero_page(mem: Memory, mm: int, page: int, x: int) -> bool:
    """Map the shared zero page, which is a hole here, in place of a page of zeros.

    Parameters
    ----------
    x
        The extent that maps the page, NIL if a huge PMD does.
    """
    x = single_page(mem, mm, page, x)
    if x == NIL:
        return False
    unlink_extent(mem, x)
    account_rss(mem, mm, page >> HPAGE_PMD_ORDER, -1)
    _unmap_single(mem, x)
    mem.pool[P_KSM_ZERO] += 1
    return True


@kernel
def _make_ksm_frame(mem: Memory, pfn: int, key: int) -> int:
    """Make the frame of a small page a merged one, for all that map it; return its node."""
    maps = 0
    y = extents_of(mem, pfn >> PAGEBLOCK_ORDER)
    while y != NIL:
        after = int(mem.ext[y].next_b)
        first = int(mem.ext[y].pfn)
        nr = int(mem.ext[y].nr)
        if first <= pfn < first + nr:
            x = y
            if nr > 1:
                page = int(mem.ext[y].vpn)
                while frame_at(mem, y, page) != pfn:
                    page += 1
                if page > int(mem.ext[y].vpn):
                    x = cut_extent(mem, y, page)
                if mem.ext[x].nr > 1:
                    cut_extent(mem, x, page + 1)
            page = int(mem.ext[x].vpn)
            notify(mem, int(mem.ext[x].owner), page >> HPAGE_PMD_ORDER, page, page + 1)
            mem.ext[x].flags = KIND_ANON | EXT_SHARED | EXT_KSM
            maps += 1
        y = after
    return new_node(mem, key, pfn, maps)


@kernel
def merge_two_pages(
    mem: Memory, mm: int, page: int, other_mm: int, other_page: int, key: int
) -> tuple[int, int]:
    """Merge two unmerged pages into the first one's frame.

    Returns
    -------
    status, node
        MERGED and the new stable node, NOT_MERGED, or SAME_HUGE_PAGE.
    """
    if mem.pool[P_KSM_NODES] >= mem.ksm_node.size:
        return NOT_MERGED, NIL
    pb = huge_page_of(mem, mm, page)
    once = mem.tunables[T_PHYSICAL_SPLIT] == 0
    if once and pb != NIL and pb == huge_page_of(mem, other_mm, other_page):
        mem.vmstat[THP_SPLIT_PAGE_FAILED] += 1
        return SAME_HUGE_PAGE, NIL
    x = _single_page_of(mem, mm, page)
    if x == NIL:
        return NOT_MERGED, NIL
    y = _single_page_of(mem, other_mm, other_page)
    x = _extent_at(mem, mm, page)
    if y == NIL or x == NIL or mem.ext[y].pfn == mem.ext[x].pfn:
        return NOT_MERGED, NIL
    node = _make_ksm_frame(mem, int(mem.ext[x].pfn), key)
    if merge_with_frame(mem, other_mm, other_page, y, NIL, node) == NIL:
        return NOT_MERGED, NIL
    return MERGED, node
