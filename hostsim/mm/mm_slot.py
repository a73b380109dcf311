"""khugepaged's list of processes: who is on it, and where its cursor stands.

A process's place is a number that only rises, so that the list is the order of the numbers and
a newcomer stands at its tail, just behind the cursor.

Source: Linux v6.1 mm/mm_slot.h; mm/khugepaged.c __khugepaged_enter, __khugepaged_exit,
hugepage_vma_check (mm/huge_memory.c).
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR
from hostsim.mm.contig import count_unmovable
from hostsim.mm.mm_types import (
    D_WAKE,
    DAEMON_KHUGEPAGED,
    MM_ADVICE,
    MM_HUGETLB,
    MM_KHUGEPAGED,
    MM_LIVE,
    MM_RAM_PAGES,
    NIL,
    P_MM_USED,
    P_NOW_NS,
    Memory,
)
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NOHUGE
from hostsim.mm.page_alloc import free_order
from hostsim.mm.rmap import del_extent
from hostsim.mm.tunables import ENABLED, T_ENABLED, T_THP_POLICY, THP_POLICIES
from hostsim.mm.vmstat import NR_KERNEL

ALWAYS: Final = ENABLED["always"]
MADVISE: Final = ENABLED["madvise"]
NEVER: Final = ENABLED["never"]
RESERVATION: Final = THP_POLICIES["reservation"]

# Columns of Memory.daemon[DAEMON_KHUGEPAGED]
K_LAST: Final = 1  # the last place given
K_REGISTERED: Final = 2  # processes on the list
K_SLOT: Final = 3  # place of the process under the cursor, 0 between two rounds
K_WINDOW: Final = 4  # the next window of that process
K_STOPPED: Final = 5  # 1: the thread does not exist, `enabled` being never
K_IN_PASS: Final = 6
K_PAGES: Final = 12  # pages_to_scan of the running pass
K_PROGRESS: Final = 8  # what of that is used up
K_HEADS: Final = 9  # how often the pass met the head of the list
K_FAILED: Final = 10  # huge allocations that failed in the pass
K_RESULT: Final = 11  # SCAN_* of the last window
K_HAD_HUGE: Final = 13  # whether a huge page was free when last looked at
K_ROUND: Final = 14  # full_scans when a window was last collapsed, or an event came
K_HELD: Final = 7  # extent + 1 of a gone process's mm_struct, which the cursor still holds


@inline_kernel
def thp_enabled(mem: Memory, mm: int) -> bool:
    """Tell whether `enabled` and the advice of a process allow huge pages."""
    enabled = mem.tunables[T_ENABLED]
    advice = mem.mm[mm, MM_ADVICE]
    if advice == ADVICE_NOHUGE or mem.mm[mm, MM_HUGETLB] != 0:
        return False
    return enabled == ALWAYS or (enabled == MADVISE and advice == ADVICE_HUGE)


@inline_kernel
def hugepage_vma_check(mem: Memory, mm: int) -> bool:
    """Tell whether khugepaged may work on a process: allowed, and a whole window long.

    Where huge pages are reserved there is nothing for it to do.
    """
    if mem.tunables[T_THP_POLICY] == RESERVATION:
        return False
    return thp_enabled(mem, mm) and mem.mm[mm, MM_RAM_PAGES] >= HPAGE_PMD_NR


@kernel
def khugepaged_enter(mem: Memory, mm: int) -> None:
    """Put a process at the tail of the list; the first one wakes khugepaged."""
    if mem.mm[mm, MM_KHUGEPAGED] != 0 or not hugepage_vma_check(mem, mm):
        return
    register(mem, mm)


@kernel
def register(mem: Memory, mm: int) -> None:
    """Put a process at the tail of the list, whatever its advice."""
    own = mem.daemon[DAEMON_KHUGEPAGED]
    own[K_LAST] += 1
    mem.mm[mm, MM_KHUGEPAGED] = own[K_LAST]
    own[K_REGISTERED] += 1
    if own[K_REGISTERED] == 1 and own[K_STOPPED] == 0 and own[D_WAKE] == 0:
        own[D_WAKE] = mem.pool[P_NOW_NS] + 1


@kernel
def khugepaged_fork(mem: Memory, parent: int, child: int) -> None:
    """Register the child of a registered process."""
    if mem.mm[parent, MM_KHUGEPAGED] != 0:
        register(mem, child)


@kernel
def khugepaged_exit(mem: Memory, mm: int) -> None:
    """Take a process that ends off the list; a cursor on it moves on at its next step."""
    if mem.mm[mm, MM_KHUGEPAGED] != 0:
        mem.mm[mm, MM_KHUGEPAGED] = 0
        mem.daemon[DAEMON_KHUGEPAGED, K_REGISTERED] -= 1


@kernel
def next_registered(mem: Memory, place: int) -> int:
    """Return the first process of the list at or behind a place, or NIL."""
    best = NIL
    for mm in range(mem.pool[P_MM_USED]):
        here = mem.mm[mm, MM_KHUGEPAGED]
        if mem.mm[mm, MM_LIVE] != 0 and here >= max(place, 1):
            if best == NIL or here < mem.mm[best, MM_KHUGEPAGED]:
                best = mm
    return best


@kernel
def hold_mm(mem: Memory, place: int, x: int) -> bool:
    """Leave the PGD of a gone process to khugepaged if its cursor is there (mmdrop).

    Parameters
    ----------
    place
        Where the process stood on the list.
    x
        Extent of the memory, which `drop_mm` frees when the cursor moves on.
    """
    own = mem.daemon[DAEMON_KHUGEPAGED]
    if place == 0 or place != own[K_SLOT]:
        return False
    own[K_HELD] = x + 1
    return True


@kernel
def drop_mm(mem: Memory) -> None:
    """Free what `hold_mm` left."""
    own = mem.daemon[DAEMON_KHUGEPAGED]
    if own[K_HELD] == 0:
        return
    x = own[K_HELD] - 1
    own[K_HELD] = 0
    pfn = int(mem.ext[x].pfn)
    nr = int(mem.ext[x].nr)
    order = 0
    while 1 << order < nr:
        order += 1
    del_extent(mem, x)
    mem.vmstat[NR_KERNEL] -= nr
    count_unmovable(mem, pfn, -nr)
    free_order(mem, pfn, order)


@kernel
def start_stop_khugepaged(mem: Memory) -> None:
    """Start or stop the thread after a write to `enabled`; a new one begins at the list's head."""
    own = mem.daemon[DAEMON_KHUGEPAGED]
    if mem.tunables[T_ENABLED] == NEVER:
        drop_mm(mem)
        own[K_STOPPED] = 1
        own[D_WAKE] = 0
        own[K_SLOT] = 0
        own[K_WINDOW] = 0
        own[K_IN_PASS] = 0
    elif own[K_STOPPED] != 0 or (own[K_REGISTERED] > 0 and own[D_WAKE] == 0):
        own[K_STOPPED] = 0
        own[D_WAKE] = mem.pool[P_NOW_NS] + 1


@kernel
def wake_khugepaged(mem: Memory) -> None:
    """End a sleep between passes, as a write to a sleep setting does."""
    own = mem.daemon[DAEMON_KHUGEPAGED]
    if own[D_WAKE] != 0 and (own[K_IN_PASS] == 0 or own[K_FAILED] > 0):
        own[D_WAKE] = mem.pool[P_NOW_NS] + 1
