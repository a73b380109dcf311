"""Address spaces: one row a process, one word a 2 MiB window.

Source: Linux include/linux/mm_types.h (struct mm_struct); a window is what one PMD entry maps.
Simplified: a process has one memory area, its guest RAM, that starts on a 2 MiB boundary as
QEMU's does, and behind it small-page memory of its own that is never huge.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import (
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.mm_types import (
    MAX_PROCESSES,
    MM_ADVICE,
    MM_BASE,
    MM_HAS_EPT,
    MM_LIVE,
    MM_RAM_PAGES,
    MM_VM,
    MM_WINDOWS,
    NIL,
    NR_MM_FIELDS,
    P_MM_USED,
    P_VMA_FREE,
    P_VMA_USED,
    P_WORDS_USED,
    P_ZERO_PB,
    Memory,
)
from hostsim.mm.pb_packed import MAX_B

ADVICE_NONE: Final = 0
ADVICE_HUGE: Final = 1  # MADV_HUGEPAGE
ADVICE_NOHUGE: Final = 2  # MADV_NOHUGEPAGE

# A window's word: what its PMD entry holds.
W_NONE: Final = 0  # nothing, never touched or zapped whole
W_ZERO: Final = 4  # the shared huge zero page
W_TAG: Final = 3
W_HUGE: Final = 1  # tag: a huge page, pageblock above
W_TABLE: Final = 2  # tag: a page table, first extent + 1 above; below zero: folded
W_HUGETLB: Final = 3  # tag: a hugetlb page or 2 MiB of one, pageblock above


@kernel
def mm_alloc(
    mem: Memory, ram_pages: int, own_pages: int, advice: int, has_ept: bool, vm_id: int
) -> int:
    """Start a process with an untouched address space; return its number, or NIL if none fits.

    Parameters
    ----------
    ram_pages
        Pages of guest RAM, from page 0.
    own_pages
        Small-page memory of the process itself, from the next window on.
    """
    mm = 0
    while mm < MAX_PROCESSES and mem.mm[mm, MM_LIVE] != 0:
        mm += 1
    ram_windows = (ram_pages + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER
    own_windows = (own_pages + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER
    windows = ram_windows + own_windows
    if mm == MAX_PROCESSES or windows > MAX_B:
        return NIL
    base = _first_gap(mem, windows)
    if base + windows > mem.windows.size:
        _compact_windows(mem)
        base = mem.pool[P_WORDS_USED]
        if base + windows > mem.windows.size:
            return NIL
    for field in range(NR_MM_FIELDS):
        mem.mm[mm, field] = 0
    mem.mm[mm, MM_LIVE] = 1
    mem.mm[mm, MM_BASE] = base
    mem.mm[mm, MM_WINDOWS] = windows
    mem.mm[mm, MM_RAM_PAGES] = ram_pages
    mem.mm[mm, MM_ADVICE] = advice
    mem.mm[mm, MM_HAS_EPT] = 1 if has_ept else 0
    mem.mm[mm, MM_VM] = vm_id
    mem.pool[P_WORDS_USED] = max(mem.pool[P_WORDS_USED], base + windows)
    mem.pool[P_MM_USED] = max(mem.pool[P_MM_USED], mm + 1)
    return mm


@kernel
def _clear_words(mem: Memory, first: int, end: int) -> None:
    """Forget windows; what was never used is not written, so that it stays without memory."""
    for word in range(first, end):
        if mem.windows[word] != W_NONE:
            mem.windows[word] = W_NONE
        if mem.ept[word] != 0:
            mem.ept[word] = 0
        if mem.ept_child[word] != 0:
            mem.ept_child[word] = 0


@kernel
def _first_gap(mem: Memory, nr: int) -> int:
    """Return the lowest word from which on so many belong to no process."""
    base = 0
    mm = 0
    while mm < mem.pool[P_MM_USED]:
        first = mem.mm[mm, MM_BASE]
        end = first + mem.mm[mm, MM_WINDOWS]
        if mem.mm[mm, MM_LIVE] != 0 and first < base + nr and base < end:
            base = end
            mm = 0
        else:
            mm += 1
    return base


@kernel
def mm_free(mem: Memory, mm: int) -> None:
    """End a process whose windows are all unmapped."""
    base = mem.mm[mm, MM_BASE]
    _clear_words(mem, base, base + mem.mm[mm, MM_WINDOWS])
    mem.mm[mm, MM_LIVE] = 0
    used = 0
    for other in range(mem.pool[P_MM_USED]):
        if mem.mm[other, MM_LIVE] != 0:
            used = max(used, mem.mm[other, MM_BASE] + mem.mm[other, MM_WINDOWS])
    mem.pool[P_WORDS_USED] = used
    while mem.pool[P_MM_USED] > 0 and mem.mm[mem.pool[P_MM_USED] - 1, MM_LIVE] == 0:
        mem.pool[P_MM_USED] -= 1


@kernel
def _compact_windows(mem: Memory) -> None:
    """Move all live windows to the front, in the order in which they lie."""
    end = 0
    last = -1
    while True:
        best = NIL
        for mm in range(mem.pool[P_MM_USED]):
            if mem.mm[mm, MM_LIVE] != 0 and mem.mm[mm, MM_BASE] > last:
                if best == NIL or mem.mm[mm, MM_BASE] < mem.mm[best, MM_BASE]:
                    best = mm
        if best == NIL:
            break
        base = mem.mm[best, MM_BASE]
        last = base
        nr = mem.mm[best, MM_WINDOWS]
        for i in range(nr):
            mem.windows[end + i] = mem.windows[base + i]
            if mem.ept[end + i] != mem.ept[base + i]:
                mem.ept[end + i] = mem.ept[base + i]
            if mem.ept_child[end + i] != mem.ept_child[base + i]:
                mem.ept_child[end + i] = mem.ept_child[base + i]
        mem.mm[best, MM_BASE] = end
        end += nr
    _clear_words(mem, end, mem.pool[P_WORDS_USED])
    mem.pool[P_WORDS_USED] = end


@inline_kernel
def window_word(mem: Memory, mm: int, window: int) -> int:
    """Return the word of a window."""
    return int(mem.windows[mem.mm[mm, MM_BASE] + window])


@inline_kernel
def set_window(mem: Memory, mm: int, window: int, word: int) -> None:
    """Set the word of a window."""
    mem.windows[mem.mm[mm, MM_BASE] + window] = word


@inline_kernel
def maps_huge(word: int) -> bool:
    """Tell whether a window's word is a PMD that maps 2 MiB: huge, hugetlb or the zero page."""
    return word == W_ZERO or (word & W_TAG) % 2 == 1


@inline_kernel
def table_head(word: int) -> int:
    """Return the first extent of a window with a page table that is not folded, or NIL."""
    return (word >> 2) - 1


@inline_kernel
def is_folded(word: int) -> bool:
    """Tell whether a window's pages are those of one pageblock, in a row: `rmap.try_fold`."""
    return word < 0


@inline_kernel
def folded_word(pb: int, downward: bool) -> int:
    """Return the word of a folded window, whose frames rise with its pages or fall."""
    return (-(2 * pb + (1 if downward else 0) + 1) << 2) | W_TABLE


@inline_kernel
def folded_pageblock(word: int) -> int:
    """Return the pageblock of a folded window."""
    return (-(word >> 2) - 1) >> 1


@inline_kernel
def folds_downward(word: int) -> bool:
    """Tell whether the first page of a folded window lies in its pageblock's last frame."""
    return (-(word >> 2) - 1) & 1 != 0


@inline_kernel
def folded_run(word: int) -> tuple[int, int]:
    """Return the frame of a folded window's first page, and the step from a frame to the next."""
    first = folded_pageblock(word) << PAGEBLOCK_ORDER
    if folds_downward(word):
        return first + PAGEBLOCK_NR_PAGES - 1, -1
    return first, 1


@inline_kernel
def table_word(head: int) -> int:
    """Return the word of a window whose page table's first extent is ``head`` (or NIL)."""
    return ((head + 1) << 2) | W_TABLE


@inline_kernel
def huge_word(pb: int) -> int:
    """Return the word of a window mapped by a huge PMD."""
    return (pb << 2) | W_HUGE


@inline_kernel
def huge_pageblock(mem: Memory, word: int) -> int:
    """Return the pageblock of a window that `maps_huge`."""
    return int(mem.pool[P_ZERO_PB]) - 1 if word == W_ZERO else word >> 2


@kernel
def new_area(mem: Memory, start: int, end: int, flags: int, after: int) -> int:
    """Return a new range of pages that leads to another one, or NIL if there is no room for it."""
    v = mem.pool[P_VMA_FREE] - 1
    if v != NIL:
        mem.pool[P_VMA_FREE] = mem.vma[v].next + 1
    elif mem.pool[P_VMA_USED] < mem.vma.size:
        v = mem.pool[P_VMA_USED]
        mem.pool[P_VMA_USED] += 1
    else:
        return NIL
    mem.vma[v].start = start
    mem.vma[v].end = end
    mem.vma[v].flags = flags
    mem.vma[v].next = after
    return v


@kernel
def free_area(mem: Memory, v: int) -> None:
    """Return a range to the pool."""
    mem.vma[v].next = mem.pool[P_VMA_FREE] - 1
    mem.pool[P_VMA_FREE] = v + 1
