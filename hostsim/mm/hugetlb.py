"""hugetlbfs: pools of huge pages that mappings reserve, and never split, swap or move.

A mapping reserves its whole length when it is made, from the pool or from surplus pages; with a
reservation no fault can fail.  Pages of 1 GiB are taken out of memory at boot.

Source: Linux v6.1 mm/hugetlb.c hugetlb_reserve_pages, gather_surplus_pages, alloc_huge_page,
free_huge_page, set_max_huge_pages, return_unused_surplus_pages, demote_pool_huge_page.
Simplified: a page that a node lacks comes from the next node, also when the pool grows.
Simplified: a child does not inherit the memory (MADV_DONTFORK, which QEMU sets).
Simplified: no pages of 1 GiB by contiguous-range allocation after boot.
Simplified: page tables above hugetlb pages are not counted.
"""

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_ORDER, HPAGE_PUD_ORDER, NO_PFN, PAGEBLOCK_ORDER
from hostsim.mm.contig import blocks_taken_run
from hostsim.mm.mm_types import (
    H_FREE,
    H_LIST,
    H_NR,
    H_OVERCOMMIT,
    H_RESV,
    H_SURPLUS,
    HUGETLB_1G,
    HUGETLB_2M,
    MIGRATE_MOVABLE,
    MM_HUGETLB,
    MM_HUGETLB_PAGES,
    MM_HUGETLB_RESV,
    MM_RAM_PAGES,
    NIL,
    P_NODE,
    Z_FREE,
    Z_VIRGIN,
    Z_VIRGIN_END,
    ZONE_DMA32,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.mmap import W_HUGETLB, W_NONE, set_window, window_word
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.numa import next_node, run_on_next_node
from hostsim.mm.page_alloc import free_compound
from hostsim.mm.pb_packed import pb_b, set_pb_b
from hostsim.mm.physmem import (
    PB_FREE10,
    PB_FREE10_TAIL,
    PB_HUGETLB,
    big_list_add_tail,
    first_zone,
    pfn_to_nid,
    set_state,
)
from hostsim.mm.slowpath import GFP_KERNEL, alloc_pages_gfp
from hostsim.mm.vmstat import (
    HTLB_BUDDY_ALLOC_FAIL,
    HTLB_BUDDY_ALLOC_SUCCESS,
    NR_HUGETLB,
)


@inline_kernel
def windows_per_page(size: int) -> int:
    """Return the windows that a page of a size maps."""
    return 1 if size == HUGETLB_2M else 1 << (HPAGE_PUD_ORDER - HPAGE_PMD_ORDER)


@kernel
def _enqueue(mem: Memory, size: int, pb: int) -> None:
    """Put a page on the free list of its pool."""
    for i in range(windows_per_page(size)):
        set_state(mem, pb + i, PB_HUGETLB, MIGRATE_MOVABLE)
        mem.pb[pb + i].a = NIL
        set_pb_b(mem, pb + i, 0)
    own = H_LIST + pfn_to_nid(mem, pb << PAGEBLOCK_ORDER)
    set_pb_b(mem, pb, mem.hugetlb[size, own])
    mem.hugetlb[size, own] = pb + 1
    mem.hugetlb[size, H_FREE] += 1


@kernel
def _dequeue(mem: Memory, size: int) -> int:
    """Take a page of its pool, which has a free one, off the list of the first node that can."""
    nid = mem.pool[P_NODE]
    while mem.hugetlb[size, H_LIST + nid] == 0:
        nid = next_node(mem, nid)
    pb = mem.hugetlb[size, H_LIST + nid] - 1
    mem.hugetlb[size, H_LIST + nid] = pb_b(mem, pb)
    mem.hugetlb[size, H_FREE] -= 1
    return pb


@kernel
def _alloc_fresh(mem: Memory) -> bool:
    """Add a page of 2 MiB from the buddy lists to its pool; tell whether there was one."""
    pfn, _, _ = alloc_pages_gfp(mem, HPAGE_PMD_ORDER, MIGRATE_MOVABLE, 1, GFP_KERNEL)
    if pfn == NO_PFN:
        mem.vmstat[HTLB_BUDDY_ALLOC_FAIL] += 1
        return False
    mem.vmstat[HTLB_BUDDY_ALLOC_SUCCESS] += 1
    _enqueue(mem, HUGETLB_2M, pfn >> PAGEBLOCK_ORDER)
    mem.hugetlb[HUGETLB_2M, H_NR] += 1
    mem.vmstat[NR_HUGETLB] += 1
    return True


@kernel
def _remove_free(mem: Memory) -> None:
    """Give a free page of 2 MiB back to the buddy lists."""
    pb = _dequeue(mem, HUGETLB_2M)
    mem.hugetlb[HUGETLB_2M, H_NR] -= 1
    mem.vmstat[NR_HUGETLB] -= 1
    free_compound(mem, pb)


@kernel
def set_nr_hugepages(mem: Memory, nr: int) -> int:
    """Bring the persistent pages of the 2 MiB pool to a number; return how many there are then.

    Growing first makes surplus pages persistent, then allocates; shrinking frees what is neither
    in use nor reserved and makes the rest surplus.
    """
    h = mem.hugetlb[HUGETLB_2M]
    while h[H_SURPLUS] > 0 and h[H_NR] - h[H_SURPLUS] < nr:
        h[H_SURPLUS] -= 1
    while h[H_NR] - h[H_SURPLUS] < nr:
        run_on_next_node(mem)
        if not _alloc_fresh(mem):
            break
    least = max(nr, h[H_RESV] + h[H_NR] - h[H_FREE])
    while h[H_NR] - h[H_SURPLUS] > least and h[H_FREE] > 0:
        run_on_next_node(mem)
        _remove_free(mem)
    while h[H_NR] - h[H_SURPLUS] > nr:
        h[H_SURPLUS] += 1
    return int(h[H_NR] - h[H_SURPLUS])


@kernel
def reserve_at_boot(mem: Memory, nr: int) -> int:
    """Take pages of 1 GiB out of memory never used (hugepagesz=1G hugepages=N); return how many.

    They come from the high end of each zone, from the nodes in turn; what lies behind the last
    whole GiB stays free.
    """
    got = 0
    while got < nr:
        taken = False
        for nid in range(len(mem.node)):
            if got < nr and _boot_page(mem, nid):
                taken = True
                got += 1
        if not taken:
            break
    return got


@kernel
def _boot_page(mem: Memory, nid: int) -> bool:
    """Take a page of 1 GiB out of the highest zone of a node that has one."""
    step = windows_per_page(HUGETLB_1G)
    for zone in range(ZONE_NORMAL + nid, max(first_zone(nid), ZONE_DMA32) - 1, -1):
        end = mem.zone[zone, Z_VIRGIN_END]
        top = end // step * step
        if top - step <= mem.zone[zone, Z_VIRGIN]:
            continue
        for pb in range(top, end, 2):
            set_state(mem, pb, PB_FREE10, MIGRATE_MOVABLE)
            set_state(mem, pb + 1, PB_FREE10_TAIL, MIGRATE_MOVABLE)
            big_list_add_tail(mem, pb, zone, MIGRATE_MOVABLE, 10)
        mem.zone[zone, Z_VIRGIN_END] = top - step
        mem.zone[zone, Z_FREE] -= step << PAGEBLOCK_ORDER
        mem.nr_free[zone, MIGRATE_MOVABLE, 10] -= step >> 1
        blocks_taken_run(mem, top - step, step)
        _enqueue(mem, HUGETLB_1G, top - step)
        mem.hugetlb[HUGETLB_1G, H_NR] += 1
        mem.vmstat[NR_HUGETLB] += step
        return True
    return False


@kernel
def demote(mem: Memory, nr: int) -> int:
    """Split free, unreserved pages of 1 GiB into 512 of 2 MiB each; return how many."""
    done = 0
    step = windows_per_page(HUGETLB_1G)
    h = mem.hugetlb[HUGETLB_1G]
    while done < nr and h[H_FREE] > h[H_RESV]:
        pb = _dequeue(mem, HUGETLB_1G)
        h[H_NR] -= 1
        for i in range(step):
            _enqueue(mem, HUGETLB_2M, pb + i)
        mem.hugetlb[HUGETLB_2M, H_NR] += step
        done += 1
    return done


@kernel
def _gather_surplus(mem: Memory, size: int, delta: int) -> bool:
    """Promise pages to a mapping, out of the pool or of surplus ones; False: ENOMEM."""
    h = mem.hugetlb[size]
    needed = h[H_RESV] + delta - h[H_FREE]
    if needed > 0:
        if size == HUGETLB_1G or h[H_SURPLUS] + needed > h[H_OVERCOMMIT]:
            return False
        got = 0
        while got < needed and _alloc_fresh(mem):
            h[H_SURPLUS] += 1
            got += 1
        if got < needed:
            while got > 0:
                _remove_free(mem)
                h[H_SURPLUS] -= 1
                got -= 1
            return False
    h[H_RESV] += delta
    return True


@kernel
def hugetlb_mmap(mem: Memory, mm: int, size: int, reserve: bool) -> bool:
    """Make guest RAM of a fresh process hugetlb memory; False: ENOMEM, or no whole pages.

    Parameters
    ----------
    size
        HUGETLB_2M or HUGETLB_1G.
    reserve
        False with MAP_NORESERVE.
    """
    pages = windows_per_page(size) << HPAGE_PMD_ORDER
    if mem.mm[mm, MM_RAM_PAGES] % pages != 0:
        return False
    nr = mem.mm[mm, MM_RAM_PAGES] // pages
    if reserve:
        if not _gather_surplus(mem, size, nr):
            return False
        mem.mm[mm, MM_HUGETLB_RESV] = nr
    mem.mm[mm, MM_HUGETLB] = size + 1
    return True


@kernel
def hugetlb_fault(mem: Memory, mm: int, window: int) -> bool:
    """Map the hugetlb page of an empty window; False: SIGBUS."""
    size = mem.mm[mm, MM_HUGETLB] - 1
    h = mem.hugetlb[size]
    if mem.mm[mm, MM_HUGETLB_RESV] > 0:
        mem.mm[mm, MM_HUGETLB_RESV] -= 1
        h[H_RESV] -= 1
    elif h[H_FREE] <= h[H_RESV]:
        if size == HUGETLB_1G or h[H_SURPLUS] >= h[H_OVERCOMMIT] or not _alloc_fresh(mem):
            return False
        h[H_SURPLUS] += 1
    pb = _dequeue(mem, size)
    mem.mm[mm, MM_HUGETLB_PAGES] += 1
    step = windows_per_page(size)
    first = window // step * step
    for i in range(step):
        mem.pb[pb + i].a = mm
        set_pb_b(mem, pb + i, first + i)
        set_window(mem, mm, first + i, ((pb + i) << 2) | W_HUGETLB)
    return True


@kernel
def _free_page(mem: Memory, mm: int, window: int) -> None:
    """Unmap the page at a window; it returns to the pool, or if that has too many to the buddy."""
    size = mem.mm[mm, MM_HUGETLB] - 1
    pb = window_word(mem, mm, window) >> 2
    for i in range(windows_per_page(size)):
        first = (window + i) << HPAGE_PMD_ORDER
        notify(mem, mm, window + i, first, first + (1 << HPAGE_PMD_ORDER))
        set_window(mem, mm, window + i, W_NONE)
    mem.mm[mm, MM_HUGETLB_PAGES] -= 1
    _enqueue(mem, size, pb)
    if mem.hugetlb[size, H_SURPLUS] > 0:
        mem.hugetlb[size, H_SURPLUS] -= 1
        _remove_free(mem)


@kernel
def zap_hugetlb(mem: Memory, mm: int, window: int, first: int, end: int) -> None:
    """Unmap the hugetlb page of which a window is the first, if the range covers the window.

    The caller's range covers whole pages (`hostsim.mm.zap.discard_range`).
    """
    step = windows_per_page(mem.mm[mm, MM_HUGETLB] - 1)
    if window % step == 0 and end - first == 1 << HPAGE_PMD_ORDER:
        _free_page(mem, mm, window)


@kernel
def hugetlb_exit(mem: Memory, mm: int) -> None:
    """Unmap all hugetlb pages of a process and give up its reservation."""
    if mem.mm[mm, MM_HUGETLB] == 0:
        return
    size = mem.mm[mm, MM_HUGETLB] - 1
    step = windows_per_page(size)
    for window in range(0, mem.mm[mm, MM_RAM_PAGES] >> HPAGE_PMD_ORDER, step):
        if window_word(mem, mm, window) != W_NONE:
            _free_page(mem, mm, window)
    h = mem.hugetlb[size]
    left = mem.mm[mm, MM_HUGETLB_RESV]
    h[H_RESV] -= left
    mem.mm[mm, MM_HUGETLB_RESV] = 0
    while left > 0 and h[H_SURPLUS] > 0 and h[H_FREE] > h[H_RESV]:
        h[H_SURPLUS] -= 1
        _remove_free(mem)
        left -= 1
