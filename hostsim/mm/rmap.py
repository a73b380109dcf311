"""Who owns a frame: extents of small pages, linked from both sides.

An extent is a run of small pages that is contiguous in the owner's address space and in
physical memory, inside one 2 MiB window and one pageblock.  The window's list leads from a page
to its frame, the pageblock's list from a frame to its owner.

Where one extent is a whole window and a whole pageblock, most often page cache or balloon of a
guest, it is folded: the window's word names the pageblock and tells which way its frames go, the
pageblock names the process and the window.  Who asks for the extents of either unfolds it.

Who changes windows but for their own fault (reclaim, compaction, khugepaged, splits of huge
pages) counts ``pool[P_MAP_SEQ]`` up: a fault that had to allocate looks at its window again.

Source: the job of Linux mm/rmap.c and of struct page; the representation is our own.  Folding is
named after that of contiguous entries, arch/arm64/mm/contpte.c.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_ORDER, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.lru_stamp import extent_stamp, keeps_lru, set_extent_stamp
from hostsim.mm.mm_types import NIL, P_EXT_FREE, P_EXT_LIVE, P_EXT_USED, P_NEAR, Memory
from hostsim.mm.mmap import (
    W_TABLE,
    W_TAG,
    folded_pageblock,
    folded_word,
    folds_downward,
    is_folded,
    set_window,
    table_head,
    table_word,
    window_word,
)
from hostsim.mm.pb_packed import pb_b, set_pb_b
from hostsim.mm.physmem import PB_FULL, PB_PARTIAL, pageblock_state

KIND_ANON: Final = 0  # anonymous memory of a process: movable, on the LRU
KIND_PGTABLE: Final = 1  # page-table page of a process
KIND_EPT: Final = 2  # EPT table page of a VM
KIND_KERNEL: Final = 3  # slab and other kernel memory
KIND_BOOT: Final = 4  # in use since before the simulation began
KIND_RESERVED: Final = 5  # never given to the buddy allocator: kernel image, struct pages
KIND_SWAP: Final = 6  # swapped out: on a window's list only, pfn is the slot
KIND_SWAPCACHE: Final = 7  # page in the swap cache that no page table maps: vpn is the slot
KIND_FILE: Final = 8  # page cache: vpn is the page of the file
KIND_MASK: Final = 15
FOLDED: Final = -2  # `a` of a folded pageblock is FOLDED - mm
EXT_DESCENDING: Final = 0x80  # page vpn + i lies in frame pfn + nr - 1 - i
EXT_SHARED: Final = 0x40  # mapped by another process too: copy on write
EXT_PMD: Final = 0x20  # one PMD maps the whole pageblock
EXT_KSM: Final = 0x100  # one page of a frame that ksmd merged; such extents have one page
EXT_ZERO: Final = 0x200  # pages of zeros, never written: hostsim.mm.content
EXT_READAHEAD: Final = 0x10  # KIND_SWAPCACHE: read ahead, not asked for yet


@inline_kernel
def set_extents_of(mem: Memory, pb: int, x: int) -> None:
    """Set the first extent of a pageblock of small or compound pages."""
    if pageblock_state(mem, pb) == PB_PARTIAL:
        mem.rec[mem.pb[pb].a].ext = x
    else:
        mem.pb[pb].a = x


@hot_kernel
def new_extent(mem: Memory, pfn: int, nr: int, owner: int, vpn: int, flags: int) -> int:
    """Take an extent from the pool, on no list yet (swap entries stay on their window's only)."""
    x = mem.pool[P_EXT_FREE] - 1
    if x != NIL:
        mem.pool[P_EXT_FREE] = mem.ext[x].next + 1
    else:
        x = mem.pool[P_EXT_USED]
        mem.pool[P_EXT_USED] += 1
    mem.pool[P_EXT_LIVE] += 1
    mem.ext[x].pfn = pfn
    mem.ext[x].vpn = vpn
    mem.ext[x].nr = nr
    mem.ext[x].flags = flags
    mem.ext[x].owner = owner
    mem.ext[x].next = NIL
    set_extent_stamp(mem, x, 0)
    return x


@hot_kernel
def drop_extent(mem: Memory, x: int) -> None:
    """Return an extent that is on no list to the pool; a free one has no pages."""
    mem.ext[x].nr = 0
    mem.ext[x].next = mem.pool[P_EXT_FREE] - 1
    mem.pool[P_EXT_FREE] = x + 1
    mem.pool[P_EXT_LIVE] -= 1


@kernel
def unfold(mem: Memory, pb: int) -> int:
    """Give a folded window and its pageblock the extent that they stand for; return it."""
    mm, window = FOLDED - int(mem.pb[pb].a), pb_b(mem, pb)
    vpn = window << HPAGE_PMD_ORDER
    flags = KIND_ANON | (EXT_DESCENDING if folds_downward(window_word(mem, mm, window)) else 0)
    x = new_extent(mem, pb << PAGEBLOCK_ORDER, PAGEBLOCK_NR_PAGES, mm, vpn, flags)
    mem.ext[x].next_b = NIL
    mem.ext[x].prev_b = NIL
    mem.pb[pb].a = x
    set_window(mem, mm, window, table_word(x))
    return x


@kernel
def try_fold(mem: Memory, mm: int, window: int) -> None:
    """Fold a window with a page table if all its pages lie in one pageblock, in a row.

    A machine that keeps the order of its pages needs extents: their stamps are by extent.
    """
    word = window_word(mem, mm, window)
    x = table_head(word)
    if word & W_TAG != W_TABLE or x < 0 or keeps_lru(mem):
        return
    if int(mem.ext[x].nr) != PAGEBLOCK_NR_PAGES:
        return
    pb = int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER
    flags = int(mem.ext[x].flags)
    if flags & ~EXT_DESCENDING != KIND_ANON or pageblock_state(mem, pb) != PB_FULL:
        return
    drop_extent(mem, x)
    mem.pb[pb].a = FOLDED - mm
    set_pb_b(mem, pb, window)
    set_window(mem, mm, window, folded_word(pb, flags & EXT_DESCENDING != 0))


@inline_kernel
def folds(mem: Memory, pb: int) -> bool:
    """Tell whether a pageblock of small pages is folded."""
    return pageblock_state(mem, pb) == PB_FULL and int(mem.pb[pb].a) < NIL


@inline_kernel
def extents_of(mem: Memory, pb: int) -> int:
    """Return the first extent of a pageblock of small or compound pages, or NIL."""
    if pageblock_state(mem, pb) == PB_PARTIAL:
        return int(mem.rec[mem.pb[pb].a].ext)
    x = int(mem.pb[pb].a)
    return x if x >= NIL else unfold(mem, pb)


@inline_kernel
def extents_in(mem: Memory, mm: int, window: int) -> int:
    """Return the first extent of a window with a page table, or NIL."""
    word = window_word(mem, mm, window)
    return unfold(mem, folded_pageblock(word)) if is_folded(word) else table_head(word)


@kernel
def add_extent(mem: Memory, pfn: int, nr: int, owner: int, vpn: int, flags: int) -> int:
    """Record the owner of a run of used frames in one pageblock; return the extent."""
    x = new_extent(mem, pfn, nr, owner, vpn, flags)
    pb = pfn >> PAGEBLOCK_ORDER
    head = extents_of(mem, pb)
    mem.ext[x].next_b = head
    mem.ext[x].prev_b = NIL
    if head != NIL:
        mem.ext[head].prev_b = x
    set_extents_of(mem, pb, x)
    return x


@kernel
def del_extent(mem: Memory, x: int) -> None:
    """Forget an extent: off its pageblock's list, back to the pool.

    The caller has taken it off its window's or owner's list.
    """
    if mem.ext[x].flags & KIND_MASK == KIND_SWAP:
        drop_extent(mem, x)
        return
    after = mem.ext[x].next_b
    before = mem.ext[x].prev_b
    if after != NIL:
        mem.ext[after].prev_b = before
    if before != NIL:
        mem.ext[before].next_b = after
    else:
        set_extents_of(mem, int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER, after)
    drop_extent(mem, x)


@inline_kernel
def near_extent(mem: Memory, mm: int, page: int, head: int) -> int:
    """Return where on its window's list, from ``head``, a search for a page may begin.

    That is the extent where the last search ended, if it lies before the page: who touches pages
    one after the other does not go through all of a long list each time.
    """
    x = mem.pool[P_NEAR] - 1
    if (
        x != NIL
        and int(mem.ext[x].nr) > 0
        and int(mem.ext[x].owner) == mm
        and int(mem.ext[x].flags) & (KIND_MASK | EXT_SHARED | EXT_PMD) == KIND_ANON
        and int(mem.ext[x].vpn) <= page
        and int(mem.ext[x].vpn) >> HPAGE_PMD_ORDER == page >> HPAGE_PMD_ORDER
    ):
        return int(x)
    return head


@inline_kernel
def frame_at(mem: Memory, x: int, vpn: int) -> int:
    """Return the frame that an extent maps at a page of its range."""
    i = vpn - int(mem.ext[x].vpn)
    if mem.ext[x].flags & EXT_DESCENDING:
        return int(mem.ext[x].pfn) + int(mem.ext[x].nr) - 1 - i
    return int(mem.ext[x].pfn) + i


@hot_kernel
def try_extend(mem: Memory, x: int, pfn: int, nr: int, descending: bool, flags: int) -> bool:
    """Append a run to an extent if it continues it in both address spaces.

    The run's pages follow the extent's last page; its frames are ``pfn .. pfn + nr - 1``,
    mapped upward, or downward if ``descending``.
    """
    old_nr = int(mem.ext[x].nr)
    old_pfn = int(mem.ext[x].pfn)
    if (mem.ext[x].flags & ~EXT_DESCENDING) != flags or old_pfn >> PAGEBLOCK_ORDER != (
        pfn >> PAGEBLOCK_ORDER
    ):
        return False
    down = (mem.ext[x].flags & EXT_DESCENDING) != 0
    if pfn == old_pfn + old_nr and (old_nr == 1 or not down) and (nr == 1 or not descending):
        mem.ext[x].flags = flags
        mem.ext[x].nr = old_nr + nr
        return True
    if pfn + nr == old_pfn and (old_nr == 1 or down) and (nr == 1 or descending):
        mem.ext[x].flags = flags | EXT_DESCENDING
        mem.ext[x].nr = old_nr + nr
        mem.ext[x].pfn = pfn
        return True
    return False


@kernel
def cut_extent(mem: Memory, x: int, vpn: int) -> int:
    """Split an extent before a page strictly inside it; return the second half.

    The halves stay neighbours on the window's list.
    """
    keep = vpn - int(mem.ext[x].vpn)
    rest = int(mem.ext[x].nr) - keep
    pfn = int(mem.ext[x].pfn)
    flags = int(mem.ext[x].flags)
    if flags & EXT_DESCENDING:
        second_pfn = pfn
        mem.ext[x].pfn = pfn + rest
    else:
        second_pfn = pfn + keep
    mem.ext[x].nr = keep
    owner = int(mem.ext[x].owner)
    if flags & KIND_MASK == KIND_SWAP:
        y = new_extent(mem, second_pfn, rest, owner, vpn, flags)
    else:
        y = add_extent(mem, second_pfn, rest, owner, vpn, flags)
    set_extent_stamp(mem, y, extent_stamp(mem, x))
    mem.ext[y].next = mem.ext[x].next
    mem.ext[x].next = y
    return y


@inline_kernel
def is_movable(kind: int) -> bool:
    """Tell whether pages of a kind are on the LRU lists, and so movable."""
    return kind == KIND_ANON or kind == KIND_SWAPCACHE or kind == KIND_FILE


@kernel
def movable_pages_in(mem: Memory, head: int) -> int:
    """Return how many frames of a pageblock's extent list compaction could move."""
    nr = 0
    x = head
    while x != NIL:
        if is_movable(int(mem.ext[x].flags) & KIND_MASK):
            nr += int(mem.ext[x].nr)
        x = int(mem.ext[x].next_b)
    return nr


@kernel
def owner_of(mem: Memory, pfn: int) -> int:
    """Return an extent that covers a frame of a pageblock of small pages, or NIL."""
    x = extents_of(mem, pfn >> PAGEBLOCK_ORDER)
    while x != NIL:
        first = int(mem.ext[x].pfn)
        if first <= pfn < first + int(mem.ext[x].nr):
            return x
        x = int(mem.ext[x].next_b)
    return NIL


@kernel
def frames_of(mem: Memory, head: int, mask: NDArray[np.uint8]) -> None:
    """Count in ``mask`` (512 entries) how many extents of a list cover each frame."""
    x = head
    while x != NIL:
        first = int(mem.ext[x].pfn) & (PAGEBLOCK_NR_PAGES - 1)
        for i in range(first, first + int(mem.ext[x].nr)):
            mask[i] += 1
        x = int(mem.ext[x].next_b)
