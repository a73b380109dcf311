"""Memory areas of a process: where mprotect and madvise changed a part of guest RAM.

Guest RAM begins as one area.  Changing the flags of a part of it splits the area, and a
boundary inside a huge page splits the page's PMD; neighbours that become alike merge again, but
nothing maps their windows huge anew.

Source: Linux v6.1 mm/mmap.c __split_vma, vma_merge; mm/huge_memory.c vma_adjust_trans_huge.
Simplified: all processes together have room for 262144 areas; Linux allows 65530 a process.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.mm_types import (
    MM_RAM_PAGES,
    MM_VMAS,
    NIL,
    P_ZERO_USERS,
    Memory,
)
from hostsim.mm.mmap import (
    W_HUGE,
    W_TABLE,
    W_TAG,
    W_ZERO,
    free_area,
    new_area,
    set_window,
    table_word,
    window_word,
)
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.rmap import cut_extent, extents_in
from hostsim.mm.split import split_pmd
from hostsim.mm.vmstat import THP_SPLIT_PMD

VM_READONLY: Final = 1  # mprotect(PROT_READ)
VM_MERGEABLE: Final = 2  # MADV_MERGEABLE


@inline_kernel
def first_vma(mem: Memory, mm: int) -> int:
    """Return the first area of a process, or NIL if its guest RAM is one plain area."""
    return mem.mm[mm, MM_VMAS] - 1


@kernel
def find_vma(mem: Memory, mm: int, page: int) -> int:
    """Return the area that holds a page, or NIL."""
    v = first_vma(mem, mm)
    while v != NIL and int(mem.vma[v].end) <= page:
        v = int(mem.vma[v].next)
    return v


@kernel
def vma_flags(mem: Memory, mm: int, page: int) -> int:
    """Return the VM_* flags of a page's area."""
    v = find_vma(mem, mm, page)
    return int(mem.vma[v].flags) if v != NIL else 0


@kernel
def window_in_vma(mem: Memory, mm: int, window: int) -> bool:
    """Tell whether a window lies wholly inside one area of guest RAM."""
    first = window << HPAGE_PMD_ORDER
    if first + HPAGE_PMD_NR > mem.mm[mm, MM_RAM_PAGES]:
        return False
    v = find_vma(mem, mm, first)
    return v == NIL or first + HPAGE_PMD_NR <= int(mem.vma[v].end)


@kernel
def _adjust_trans_huge(mem: Memory, mm: int, page: int) -> None:
    """Let no PMD and no extent cross a new boundary before a page."""
    window = page >> HPAGE_PMD_ORDER
    if page & (HPAGE_PMD_NR - 1) == 0:
        return
    word = window_word(mem, mm, window)
    if word == W_ZERO:
        notify(mem, mm, window, window << HPAGE_PMD_ORDER, (window + 1) << HPAGE_PMD_ORDER)
        mem.vmstat[THP_SPLIT_PMD] += 1
        mem.pool[P_ZERO_USERS] -= 1
        set_window(mem, mm, window, table_word(NIL))
    elif word & W_TAG == W_HUGE:
        split_pmd(mem, mm, window)
    word = window_word(mem, mm, window)
    if word & W_TAG == W_TABLE:
        x = extents_in(mem, mm, window)
        while x != NIL and int(mem.ext[x].vpn) + int(mem.ext[x].nr) <= page:
            x = int(mem.ext[x].next)
        if x != NIL and int(mem.ext[x].vpn) < page:
            cut_extent(mem, x, page)


@kernel
def _split_vma(mem: Memory, mm: int, v: int, page: int) -> bool:
    """Split an area before a page strictly inside it; return whether there was room."""
    rest = new_area(mem, page, int(mem.vma[v].end), int(mem.vma[v].flags), int(mem.vma[v].next))
    if rest == NIL:
        return False
    mem.vma[v].end = page
    mem.vma[v].next = rest
    _adjust_trans_huge(mem, mm, page)
    return True


@kernel
def _merge_vmas(mem: Memory, mm: int) -> None:
    """Join neighbours with equal flags."""
    v = first_vma(mem, mm)
    while v != NIL:
        after = int(mem.vma[v].next)
        if after != NIL and mem.vma[after].flags == mem.vma[v].flags:
            mem.vma[v].end = mem.vma[after].end
            mem.vma[v].next = mem.vma[after].next
            free_area(mem, after)
        else:
            v = after


@kernel
def change_flags(mem: Memory, mm: int, start: int, end: int, on: int, off: int) -> bool:
    """Set and clear flags of pages ``start .. end - 1`` of guest RAM.

    Areas whose flags do not change are left alone.

    Returns
    -------
    bool
        Whether there was room for the areas; what was changed before stays changed.
    """
    end = min(end, mem.mm[mm, MM_RAM_PAGES])
    if start >= end:
        return True
    if first_vma(mem, mm) == NIL:
        v = new_area(mem, 0, mem.mm[mm, MM_RAM_PAGES], 0, NIL)
        if v == NIL:
            return False
        mem.mm[mm, MM_VMAS] = v + 1
    v = find_vma(mem, mm, start)
    while v != NIL and int(mem.vma[v].start) < end:
        flags = int(mem.vma[v].flags)
        if ((flags | on) & ~off) != flags:
            if int(mem.vma[v].start) < start:
                if not _split_vma(mem, mm, v, start):
                    return False
                v = int(mem.vma[v].next)
            if int(mem.vma[v].end) > end and not _split_vma(mem, mm, v, end):
                return False
            mem.vma[v].flags = (flags | on) & ~off
        v = int(mem.vma[v].next)
    _merge_vmas(mem, mm)
    return True


@kernel
def copy_vmas(mem: Memory, parent: int, child: int) -> bool:
    """Give a child its parent's areas; return whether there was room."""
    last = NIL
    v = first_vma(mem, parent)
    while v != NIL:
        mine = new_area(mem, int(mem.vma[v].start), int(mem.vma[v].end), int(mem.vma[v].flags), NIL)
        if mine == NIL:
            return False
        if last == NIL:
            mem.mm[child, MM_VMAS] = mine + 1
        else:
            mem.vma[last].next = mine
        last = mine
        v = int(mem.vma[v].next)
    return True


@kernel
def free_vmas(mem: Memory, mm: int) -> None:
    """Forget the areas of a process."""
    v = first_vma(mem, mm)
    while v != NIL:
        after = int(mem.vma[v].next)
        free_area(mem, v)
        v = after
    mem.mm[mm, MM_VMAS] = 0
