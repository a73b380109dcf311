"""ksmd: merging small pages of equal content.

A page that equals a merged one joins it at the first visit; two unmerged ones merge when the
content of each was the same at two visits.  Pages are merged one by one, so that the huge page
that holds one is split first.

Source: Linux v6.1 and v6.12 mm/ksm.c ksm_do_scan, scan_get_next_rmap_item,
cmp_and_merge_page, try_to_merge_one_page, should_skip_rmap_item, unmerge_ksm_pages.
Simplified: one NUMA node; no advisor; no general_profit.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NO_PFN
from hostsim.mm.content import KEY_ZERO
from hostsim.mm.contig import count_unmovable
from hostsim.mm.cost import C_KSM_PAGE, charge
from hostsim.mm.fork import wp_page
from hostsim.mm.ksm_merge import (
    MERGED,
    SAME_HUGE_PAGE,
    find_page,
    huge_page_of,
    key_at,
    merge_two_pages,
    merge_with_frame,
    merge_with_zero_page,
    page_key,
)
from hostsim.mm.ksm_tree import (
    append_item,
    free_item,
    free_items_from,
    ksm_enter,
    new_item,
    remove_item_from_tree,
    slab_pages_needed,
    stable_node_dup,
    trim_slab,
    unstable_find,
    unstable_insert,
)
from hostsim.mm.mm_types import (
    D_WAKE,
    DAEMON_KSMD,
    MIGRATE_UNMOVABLE,
    MM_KSM_ITEMS,
    MM_KSM_NEXT,
    MM_RAM_PAGES,
    NIL,
    P_KSM_FIRST,
    P_KSM_FULL_SCANS,
    P_KSM_MM,
    P_KSM_NODES,
    P_KSM_PAGE,
    P_KSM_PREV_ITEM,
    P_KSM_SEQ,
    P_KSM_SKIPPED,
    P_KSM_SLAB,
    P_KSM_SLAB_PAGES,
    P_NOW_NS,
    Memory,
)
from hostsim.mm.mmap import W_HUGE, W_NONE, W_TAG, W_ZERO, window_word
from hostsim.mm.rmap import EXT_KSM, EXT_ZERO, KIND_KERNEL, add_extent
from hostsim.mm.slowpath import alloc_pages
from hostsim.mm.split import split_huge_page
from hostsim.mm.tunables import (
    T_KSM_PAGES_TO_SCAN,
    T_KSM_RUN,
    T_KSM_SLEEP_MILLISECS,
    T_KSM_SMART_SCAN,
    T_KSM_USE_ZERO_PAGES,
)
from hostsim.mm.unmap import isolate_page
from hostsim.mm.vma import VM_MERGEABLE, change_flags, find_vma
from hostsim.mm.vmstat import NR_KERNEL

KSM_RUN_MERGE: Final = 1  # 0 stops ksmd, 2 stops it and unmerges
NS_PER_MS: Final = 1_000_000
MAX_AGE: Final = 255


@kernel
def wake_ksmd(mem: Memory) -> None:
    """Wake ksmd after a write to ksm/run or when the first process asks for merging."""
    if mem.tunables[T_KSM_RUN] == KSM_RUN_MERGE and mem.daemon[DAEMON_KSMD, D_WAKE] == 0:
        mem.daemon[DAEMON_KSMD, D_WAKE] = mem.pool[P_NOW_NS] + 1


@kernel
def madvise_mergeable(mem: Memory, mm: int, start: int, nr: int) -> bool:
    """Let ksmd merge pages of guest RAM (MADV_MERGEABLE); False if there is no room for areas."""
    if not change_flags(mem, mm, start, start + nr, VM_MERGEABLE, 0):
        return False
    ksm_enter(mem, mm)
    wake_ksmd(mem)
    return True


@kernel
def _fill_slab(mem: Memory) -> bool:
    """Allocate the kernel pages that items and nodes need; False if memory ran out."""
    while mem.pool[P_KSM_SLAB_PAGES] < slab_pages_needed(mem):
        pfn, _, _ = alloc_pages(mem, 0, MIGRATE_UNMOVABLE, 1)
        if pfn == NO_PFN:
            return False
        x = add_extent(mem, pfn, 1, NIL, 0, KIND_KERNEL)
        mem.ext[x].next = mem.pool[P_KSM_SLAB] - 1
        mem.pool[P_KSM_SLAB] = x + 1
        mem.pool[P_KSM_SLAB_PAGES] += 1
        mem.vmstat[NR_KERNEL] += 1
        count_unmovable(mem, pfn, 1)
    return True


@kernel
def _item_of(mem: Memory, mm: int, vpn: int) -> int:
    """Return the item of the page at the cursor; items of pages passed over go."""
    before = mem.pool[P_KSM_PREV_ITEM] - 1
    item = int(mem.ksm_item[before].next) if before != NIL else mem.mm[mm, MM_KSM_ITEMS] - 1
    while item != NIL and mem.ksm_item[item].vpn < vpn:
        after = int(mem.ksm_item[item].next)
        free_item(mem, item)
        item = after
    if item == NIL or mem.ksm_item[item].vpn != vpn:
        item = new_item(mem, mm, vpn, item)
        if item != NIL and not _fill_slab(mem):
            after = int(mem.ksm_item[item].next)
            free_item(mem, item)
            trim_slab(mem)
            if before != NIL:
                mem.ksm_item[before].next = after
            else:
                mem.mm[mm, MM_KSM_ITEMS] = after + 1
            return NIL
    if before != NIL:
        mem.ksm_item[before].next = item
    else:
        mem.mm[mm, MM_KSM_ITEMS] = item + 1
    if item != NIL:
        mem.pool[P_KSM_PREV_ITEM] = item + 1
    return item


@kernel
def _next_page(mem: Memory, mm: int, page: int, hint: int) -> tuple[int, int]:
    """Return the next present mergeable page of a process and the extent that holds it.

    Returns
    -------
    page, extent
        NIL as page if there is none; NIL as extent for a page of a huge PMD.
    """
    end = mem.mm[mm, MM_RAM_PAGES]
    v = find_vma(mem, mm, page)
    while v != NIL:
        page = max(page, int(mem.vma[v].start))
        if mem.vma[v].flags & VM_MERGEABLE == 0 or page >= mem.vma[v].end:
            v = int(mem.vma[v].next)
            continue
        window = page >> HPAGE_PMD_ORDER
        word = window_word(mem, mm, window)
        if word & W_TAG == W_HUGE and word != W_ZERO:
            return page, NIL
        if word != W_NONE and word != W_ZERO:
            x = find_page(mem, mm, window, page, hint)
            if x != NIL:
                page = max(page, int(mem.ext[x].vpn))
                if page < mem.vma[v].end:
                    return page, x
                continue
        page = (window + 1) << HPAGE_PMD_ORDER
        if page >= end:
            break
    return NIL, NIL


@kernel
def _should_skip(mem: Memory, item: int, merged: bool) -> bool:
    """Tell whether smart scan leaves out a page that never merged."""
    if mem.tunables[T_KSM_SMART_SCAN] == 0 or merged:
        return False
    age = int(mem.ksm_item[item].age)
    if age != MAX_AGE:
        mem.ksm_item[item].age = age + 1
    if age < 3:
        return False
    if mem.ksm_item[item].skips == 0:
        skips = 8
        if age <= 3:
            skips = 1
        elif age <= 5:
            skips = 2
        elif age <= 8:
            skips = 4
        mem.ksm_item[item].skips = skips
        return False
    mem.pool[P_KSM_SKIPPED] += 1
    mem.ksm_item[item].skips -= 1
    remove_item_from_tree(mem, item)
    return True


@kernel
def _merge_unstable(mem: Memory, item: int, mm: int, vpn: int, key: int) -> bool:
    """Merge a page with one of the unstable tree, or put it there; True if it changed mappings."""
    other = unstable_find(mem, key)
    if other == NIL:
        unstable_insert(mem, item, key)
        return False
    other_mm = int(mem.ksm_item[other].mm)
    other_vpn = int(mem.ksm_item[other].vpn)
    if page_key(mem, other_mm, other_vpn) != key:
        return False  # it changed, or is gone
    mem.pool[P_KSM_NODES] += 1
    enough = _fill_slab(mem)  # before the merge: without memory for a node there is none
    mem.pool[P_KSM_NODES] -= 1
    if not enough or page_key(mem, mm, vpn) != key or page_key(mem, other_mm, other_vpn) != key:
        trim_slab(mem)
        return True  # reclaim may have changed mappings
    status, node = merge_two_pages(mem, mm, vpn, other_mm, other_vpn, key)
    if status == MERGED:
        remove_item_from_tree(mem, other)
        append_item(mem, other, node)
        append_item(mem, item, node)
        return True
    trim_slab(mem)
    if status == SAME_HUGE_PAGE:
        split_huge_page(mem, huge_page_of(mem, mm, vpn))
    return True


@kernel
def _cmp_and_merge_page(mem: Memory, item: int, mm: int, vpn: int, x: int, hint: int) -> int:
    """Look for a page's like in both trees and merge them.

    Parameters
    ----------
    x
        The extent that maps the page, NIL if a huge PMD does.
    hint
        An extent of its window before it, or NIL.

    Returns
    -------
    int
        The extent that maps the page now, NIL if a huge PMD does or mappings changed.
    """
    if x != NIL and mem.ext[x].flags & EXT_KSM:
        own = int(mem.ksm_frame[mem.ext[x].pfn]) - 1
        if mem.ksm_item[item].node == own:
            return x
        remove_item_from_tree(mem, item)
        append_item(mem, item, own)  # a fork's copy, beyond max_page_sharing too
        return x
    key = key_at(mem, mm, vpn, x)
    remove_item_from_tree(mem, item)
    node = stable_node_dup(mem, key)
    if node != NIL:
        y = merge_with_frame(mem, mm, vpn, x, hint, node)
        if y != NIL:
            append_item(mem, item, node)
        return y
    if mem.ksm_item[item].checksum != key:
        mem.ksm_item[item].checksum = key
        return x
    if key == KEY_ZERO and mem.tunables[T_KSM_USE_ZERO_PAGES] != 0:
        if merge_with_zero_page(mem, mm, vpn, x):
            return NIL
        x = NIL  # its huge page may have been split
    return NIL if _merge_unstable(mem, item, mm, vpn, key) else x


@kernel
def _next_mm(mem: Memory) -> bool:
    """Move the cursor behind its process; False at the end of a full scan."""
    mm = mem.pool[P_KSM_MM] - 1
    free_items_from(mem, mm, mem.pool[P_KSM_PREV_ITEM] - 1)
    mem.pool[P_KSM_MM] = mem.mm[mm, MM_KSM_NEXT]
    mem.pool[P_KSM_PAGE] = 0
    mem.pool[P_KSM_PREV_ITEM] = 0
    if mem.pool[P_KSM_MM] != 0:
        return True
    trim_slab(mem)
    mem.pool[P_KSM_SEQ] += 1
    mem.pool[P_KSM_FULL_SCANS] += 1
    return False


@kernel
def ksm_do_scan(mem: Memory, nr: int) -> int:
    """Visit up to ``nr`` pages, at most to the end of a full scan; return how many."""
    if mem.pool[P_KSM_MM] == 0:
        mem.pool[P_KSM_MM] = mem.pool[P_KSM_FIRST]
        mem.pool[P_KSM_PAGE] = 0
        mem.pool[P_KSM_PREV_ITEM] = 0
        if mem.pool[P_KSM_SEQ] == 0:
            mem.pool[P_KSM_SEQ] = 1
    done = 0
    hint = NIL
    while done < nr and mem.pool[P_KSM_MM] != 0:
        mm = mem.pool[P_KSM_MM] - 1
        page, x = _next_page(mem, mm, mem.pool[P_KSM_PAGE], hint)
        if page == NIL:
            hint = NIL
            if not _next_mm(mem):
                break
            continue
        slab = mem.pool[P_KSM_SLAB_PAGES]
        item = _item_of(mem, mm, page)
        if item == NIL:
            break
        if mem.pool[P_KSM_SLAB_PAGES] != slab:  # its allocation may have moved or freed pages
            hint = NIL
            again, x = _next_page(mem, mm, page, NIL)
            if again != page:
                continue
        before = hint
        hint = x
        mem.pool[P_KSM_PAGE] = page + 1
        merged = x != NIL and mem.ext[x].flags & EXT_KSM != 0
        if _should_skip(mem, item, merged):
            continue
        charge(mem, C_KSM_PAGE, 1)
        hint = _cmp_and_merge_page(mem, item, mm, page, x, before)
        done += 1
    return done


@kernel
def unmerge_all(mem: Memory) -> bool:
    """Give every process copies of its merged pages (2 written to ksm/run); False: out of memory.

    ksmd forgets all it knows of pages.
    """
    mm = mem.pool[P_KSM_FIRST] - 1
    while mm != NIL:
        page, x = _next_page(mem, mm, 0, NIL)
        while page != NIL:
            last = page
            if x != NIL and mem.ext[x].flags & EXT_KSM:
                zero = mem.ksm_node[mem.ksm_frame[mem.ext[x].pfn] - 1].key == KEY_ZERO
                if not wp_page(mem, mm, page >> HPAGE_PMD_ORDER, page):
                    return False
                x = find_page(mem, mm, page >> HPAGE_PMD_ORDER, page, NIL)
                if mem.ext[x].flags & EXT_KSM:
                    continue  # reclaim changed the window: once more
                if zero:
                    x = isolate_page(mem, x, page)
                    mem.ext[x].flags |= EXT_ZERO
            elif x != NIL:
                last = int(mem.ext[x].vpn) + int(mem.ext[x].nr) - 1
            else:
                last = page | (HPAGE_PMD_NR - 1)
            page, x = _next_page(mem, mm, last + 1, NIL)
        free_items_from(mem, mm, NIL)
        mm = mem.mm[mm, MM_KSM_NEXT] - 1
    mem.pool[P_KSM_MM] = 0
    mem.pool[P_KSM_PAGE] = 0
    mem.pool[P_KSM_PREV_ITEM] = 0
    trim_slab(mem)
    return True


@kernel
def ksmd_step(mem: Memory) -> int:
    """Let ksmd scan once if it is switched on and has a process.

    Returns
    -------
    int
        Nanoseconds to sleep before the next scan, or -1 for until woken.
    """
    if mem.tunables[T_KSM_RUN] != KSM_RUN_MERGE or mem.pool[P_KSM_FIRST] == 0:
        return -1
    ksm_do_scan(mem, mem.tunables[T_KSM_PAGES_TO_SCAN])
    return mem.tunables[T_KSM_SLEEP_MILLISECS] * NS_PER_MS
