"""Swap-out: pages get slots, their mappings become swap entries, and they are written.

What was written stays in the swap cache, at the tail of its list, until reclaim meets it again.
While it is being written, it stands at the head.  Since 6.12 pages of zeros (a huge page only if
all of it is) are not written, but marked.

Source: Linux v6.1 mm/vmscan.c shrink_folio_list (add_to_swap, try_to_unmap, pageout),
mm/page_io.c count_swpout_vm_event,
v6.12 swap_writepage, swap_zeromap_folio_set, mm/swap.c folio_rotate_reclaimable.
Simplified: two writes are in flight; the older is over when a third begins, both when reclaim
begins the next time.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.content import is_written, nr_zero_pages
from hostsim.mm.cost import C_SWAP_PAGE, charge
from hostsim.mm.lru import INACTIVE_ANON, fresh_stamp, key_of, push_front, rotate, tail_stamp
from hostsim.mm.lru_stamp import extent_stamp, huge_stamp, set_extent_stamp, set_huge_stamp
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MM_HUGE,
    MM_SWAP,
    NIL,
    P_MAP_SEQ,
    Memory,
)
from hostsim.mm.mmap import set_window, table_word
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import account_rss
from hostsim.mm.pb_packed import pb_b, set_pb_b
from hostsim.mm.physmem import PB_COMPOUND, PB_HUGE, pageblock_state, set_state
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    EXT_PMD,
    EXT_ZERO,
    KIND_MASK,
    KIND_SWAP,
    KIND_SWAPCACHE,
    cut_extent,
    del_extent,
    extents_of,
    frame_at,
    new_extent,
    owner_of,
    try_extend,
)
from hostsim.mm.split import (
    COMPOUND_SHIFT,
    COMPOUND_SWAPCACHE,
    split_mapping,
    undo_deferred,
)
from hostsim.mm.swapfile import alloc_slots
from hostsim.mm.tunables import T_SWAP_ZEROMAP
from hostsim.mm.unmap import isolate_page, link_extent, unlink_from_window
from hostsim.mm.vmstat import (
    NR_ANON_PAGES,
    NR_ANON_THPS,
    NR_SWAPCACHED,
    PSWPOUT,
    SWPOUT_ZERO,
    THP_SPLIT_PMD,
    THP_SWPOUT,
)

SC_WRITES: Final = 12  # `Memory.scan`: keys of what is being written, the older first


@kernel
def end_writes(mem: Memory) -> None:
    """Let what is being written be done."""
    for i in range(SC_WRITES, SC_WRITES + 2):
        if mem.scan[i] != 0:
            rotate(mem, mem.scan[i], INACTIVE_ANON)
            mem.scan[i] = 0


@inline_kernel
def under_writeback(mem: Memory, x: int) -> bool:
    """Tell whether the small pages of an extent are just being written to swap."""
    older, newer = mem.scan[SC_WRITES], mem.scan[SC_WRITES + 1]
    key = key_of(x << 1, extent_stamp(mem, x))
    return mem.ext[x].flags & KIND_MASK == KIND_SWAPCACHE and (older == key or newer == key)


@kernel
def _begin_write(mem: Memory, entity: int, stamp: int, pages: int) -> None:
    """Write pages that were just put at the head of their list."""
    if mem.scan[SC_WRITES] != 0:
        rotate(mem, mem.scan[SC_WRITES], INACTIVE_ANON)
    mem.scan[SC_WRITES] = mem.scan[SC_WRITES + 1]
    mem.scan[SC_WRITES + 1] = key_of(entity, stamp)
    mem.vmstat[PSWPOUT] += pages
    charge(mem, C_SWAP_PAGE, pages)


@kernel
def _set_entry(mem: Memory, x: int, slot: int, descending: bool) -> None:
    """Replace an extent in its window by the swap entries of as many slots; it stays unlinked."""
    mm = int(mem.ext[x].owner)
    vpn = int(mem.ext[x].vpn)
    nr = int(mem.ext[x].nr)
    window = vpn >> HPAGE_PMD_ORDER
    notify(mem, mm, window, vpn, vpn + nr)
    before = unlink_from_window(mem, mm, window, x)
    mem.mm[mm, MM_SWAP] += nr
    account_rss(mem, mm, window, -nr)
    for i in range(slot, slot + nr):
        mem.swap_map[i] += 1
    mem.pool[P_MAP_SEQ] += 1
    if (
        before != NIL
        and int(mem.ext[before].vpn) + int(mem.ext[before].nr) == vpn
        and try_extend(mem, before, slot, nr, descending, KIND_SWAP)
    ):
        return
    flags = KIND_SWAP | (EXT_DESCENDING if descending and nr > 1 else 0)
    link_extent(mem, mm, window, before, new_extent(mem, slot, nr, mm, vpn, flags))


@kernel
def write_huge(mem: Memory, pb: int) -> None:
    """Write a huge page of the swap cache."""
    if mem.tunables[T_SWAP_ZEROMAP] != 0 and nr_zero_pages(mem, pb) == HPAGE_PMD_NR:
        mem.vmstat[SWPOUT_ZERO] += HPAGE_PMD_NR
        set_huge_stamp(mem, pb, tail_stamp(mem, 0))
        push_front(mem, INACTIVE_ANON, (pb << 1) | 1, huge_stamp(mem, pb))
        return
    mem.vmstat[THP_SWPOUT] += 1
    set_huge_stamp(mem, pb, fresh_stamp(mem, 0))
    _begin_write(mem, (pb << 1) | 1, huge_stamp(mem, pb), HPAGE_PMD_NR)


@kernel
def _unmap_alone(mem: Memory, pb: int, slot: int) -> None:
    """Unmap a huge page that one PMD maps: 512 swap entries in its place."""
    mm = int(mem.pb[pb].a)
    window = pb_b(mem, pb)
    notify(mem, mm, window, window << HPAGE_PMD_ORDER, (window + 1) << HPAGE_PMD_ORDER)
    set_state(mem, pb, PB_COMPOUND, MIGRATE_MOVABLE)
    mem.pb[pb].a = NIL
    set_pb_b(mem, pb, 0)
    x = new_extent(mem, slot, HPAGE_PMD_NR, mm, window << HPAGE_PMD_ORDER, KIND_SWAP)
    set_window(mem, mm, window, table_word(x))
    for i in range(slot, slot + HPAGE_PMD_NR):
        mem.swap_map[i] = 1
    mem.mm[mm, MM_HUGE] -= 1
    mem.mm[mm, MM_SWAP] += HPAGE_PMD_NR
    account_rss(mem, mm, window, -HPAGE_PMD_NR)
    mem.pool[P_MAP_SEQ] += 1
    mem.vmstat[NR_ANON_THPS] -= 1
    mod_node_page_state(mem, pb << PAGEBLOCK_ORDER, NR_ANON_PAGES, -HPAGE_PMD_NR)
    mem.vmstat[THP_SPLIT_PMD] += 1


@kernel
def unmap_huge(mem: Memory, pb: int, slot: int) -> None:
    """Replace every mapping of a huge page by swap entries of the cluster from ``slot``."""
    first = pb << PAGEBLOCK_ORDER
    for frame in range(first, first + HPAGE_PMD_NR):
        if owner_of(mem, frame) != NIL:
            mod_node_page_state(mem, frame, NR_ANON_PAGES, -1)
    x = int(mem.pb[pb].a)
    while x != NIL:
        if mem.ext[x].flags & EXT_PMD:
            split_mapping(mem, int(mem.ext[x].owner), int(mem.ext[x].vpn) >> HPAGE_PMD_ORDER)
        _set_entry(
            mem, x, slot + int(mem.ext[x].pfn) - first, mem.ext[x].flags & EXT_DESCENDING != 0
        )
        del_extent(mem, x)
        x = int(mem.pb[pb].a)


@kernel
def swap_out_huge(mem: Memory, pb: int, slot: int) -> None:
    """Swap a huge page out whole, into a free cluster that begins with ``slot``."""
    undo_deferred(mem, pb)
    if pageblock_state(mem, pb) == PB_HUGE:
        _unmap_alone(mem, pb, slot)
    else:
        unmap_huge(mem, pb, slot)
    first = pb << PAGEBLOCK_ORDER
    for i in range(HPAGE_PMD_NR):
        mem.swap_cache[slot + i] = first + i + 1
        mem.swap_zero[slot + i] = 0 if is_written(mem, pb, i) else 1
    set_pb_b(mem, pb, (slot >> HPAGE_PMD_ORDER << COMPOUND_SHIFT) | COMPOUND_SWAPCACHE)
    mod_node_page_state(mem, first, NR_SWAPCACHED, HPAGE_PMD_NR)
    write_huge(mem, pb)


@kernel
def _into_swap_cache(mem: Memory, x: int, slot: int) -> None:
    """Let an extent that no window lists any more stand for pages of the swap cache."""
    nr = int(mem.ext[x].nr)
    vpn = int(mem.ext[x].vpn)
    zero = mem.ext[x].flags & EXT_ZERO != 0
    for i in range(nr):
        mem.swap_cache[slot + i] = frame_at(mem, x, vpn + i) + 1
        mem.swap_zero[slot + i] = 1 if zero else 0
    mem.ext[x].flags = KIND_SWAPCACHE | (int(mem.ext[x].flags) & EXT_DESCENDING)
    mem.ext[x].owner = NIL
    mem.ext[x].vpn = slot
    mem.ext[x].next = NIL
    mod_node_page_state(mem, int(mem.ext[x].pfn), NR_SWAPCACHED, nr)
    mod_node_page_state(mem, int(mem.ext[x].pfn), NR_ANON_PAGES, -nr)
    if zero and mem.tunables[T_SWAP_ZEROMAP] != 0:
        mem.vmstat[SWPOUT_ZERO] += nr
        set_extent_stamp(mem, x, tail_stamp(mem, 0))
        push_front(mem, INACTIVE_ANON, x << 1, extent_stamp(mem, x))
        return
    set_extent_stamp(mem, x, fresh_stamp(mem, 0))
    _begin_write(mem, x << 1, extent_stamp(mem, x), nr)


@kernel
def swap_out_extent(mem: Memory, x: int) -> bool:
    """Swap out small pages that one process maps; False if slots ran out, on what is left."""
    while True:
        nr = int(mem.ext[x].nr)
        slot, taken = alloc_slots(mem, nr)
        if slot == NIL:
            return False
        rest = cut_extent(mem, x, int(mem.ext[x].vpn) + taken) if taken < nr else NIL
        _set_entry(mem, x, slot, False)
        _into_swap_cache(mem, x, slot)
        if rest == NIL:
            return True
        x = rest


@kernel
def _next_mapping(mem: Memory, frame: int, besides: int) -> int:
    """Return an extent other than one that covers a frame, or NIL."""
    x = extents_of(mem, frame >> PAGEBLOCK_ORDER)
    while x != NIL:
        first = int(mem.ext[x].pfn)
        if x != besides and first <= frame < first + int(mem.ext[x].nr):
            return x
        x = int(mem.ext[x].next_b)
    return NIL


@kernel
def swap_out_shared(mem: Memory, x: int) -> bool:
    """Swap out one small page that several processes may map; False without a slot."""
    slot, _ = alloc_slots(mem, 1)
    if slot == NIL:
        return False
    frame = int(mem.ext[x].pfn)
    y = _next_mapping(mem, frame, x)
    while y != NIL:
        i = frame - int(mem.ext[y].pfn)
        if mem.ext[y].flags & EXT_DESCENDING:
            i = int(mem.ext[y].nr) - 1 - i
        y = isolate_page(mem, y, int(mem.ext[y].vpn) + i)
        _set_entry(mem, y, slot, False)
        del_extent(mem, y)
        y = _next_mapping(mem, frame, x)
    _set_entry(mem, x, slot, False)
    _into_swap_cache(mem, x, slot)
    return True
