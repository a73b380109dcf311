"""Where the page tables of a guest's process lie in guest memory.

A two-dimensional walk reads guest tables at guest-physical addresses, which the EPT maps by
leaves of their own: what the walk costs depends on where the tables lie.

Source: Linux v6.1 arch/x86/mm/pgtable.c (tables are order-0 pages of GFP_PGTABLE_USER), Intel SDM
vol. 3A section 5.5.
Simplified: all table pages of a process are known, but not which of them serves which window:
the upper levels are the oldest, and the others serve its windows in order of address.
"""

import numpy as np
from numpy.typing import NDArray

from guestsim.guest import upper_tables
from hostsim.core.jit import kernel
from hostsim.core.units import NO_PFN
from hostsim.mm.mm_types import MM_KERNEL, MM_RAM_PAGES, MM_WINDOWS, NIL, Memory
from hostsim.mm.mmap import W_NONE, window_word
from hostsim.mm.rmap import KIND_MASK, KIND_PGTABLE


@kernel
def table_frames(mem: Memory, mm: int, frames: NDArray[np.int64]) -> int:
    """Write the frames of a process's page tables, oldest first; return how many there are.

    Parameters
    ----------
    frames
        Room for all of them; the number is ``mem.mm[mm, MM_PGTABLES]``.
    """
    nr = 0
    x = mem.mm[mm, MM_KERNEL] - 1
    while x != NIL:
        if int(mem.ext[x].flags) & KIND_MASK == KIND_PGTABLE:
            for i in range(int(mem.ext[x].nr) - 1, -1, -1):  # the list is newest first
                frames[nr] = int(mem.ext[x].pfn) + i
                nr += 1
        x = int(mem.ext[x].next)
    for i in range(nr // 2):
        frames[i], frames[nr - 1 - i] = frames[nr - 1 - i], frames[i]
    return nr


@kernel
def leaf_tables(mem: Memory, mm: int, frames: NDArray[np.int64], leaf: NDArray[np.int64]) -> int:
    """Write which frame holds the table of each window of a process (NO_PFN: it has none).

    Parameters
    ----------
    frames
        As `table_frames` leaves it, and as large.
    leaf
        (windows,)

    Returns
    -------
    int
        How many of ``frames``, from the first, are tables of the upper levels.
    """
    nr = table_frames(mem, mm, frames)
    upper = min(upper_tables(mem.mm[mm, MM_RAM_PAGES]), nr)
    at = upper
    for window in range(mem.mm[mm, MM_WINDOWS]):
        leaf[window] = NO_PFN
        if window_word(mem, mm, window) != W_NONE and at < nr:
            leaf[window] = frames[at]
            at += 1
    return upper
