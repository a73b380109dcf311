"""How a guest's programs are mapped: page sizes of guest and host, and where they meet.

The programs are the processes in a guest's slots. A page of theirs counts as huge in the guest if
its PMD maps 2 MiB, as huge on the host if one EPT leaf maps the 2 MiB around its frame; both
together make a TLB entry of 2 MiB. Page tables are 4 KiB in the guest, and a two-dimensional walk
reads them through the EPT.

Source: kernel.md 8.1; Intel SDM vol. 3C section 29.3.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from guestsim.behaviour import (
    G_FIGURE,
    G_LOAD,
    G_MM,
    G_PROGRAM,
    G_PROGRAM_BOTH,
    G_PROGRAM_HOST,
    G_PROGRAM_HUGE,
    G_SLOT,
    G_STATE,
    G_TABLES,
    G_TABLES_HOST,
    G_VCPUS,
    G_VM,
    NR_FIGURES,
    NR_SLOTS,
)
from hostsim.core.byref import state_at
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import (
    MM_ANON,
    MM_EPT_2M,
    MM_HUGE,
    MM_HUGETLB,
    MM_KERNEL,
    MM_PGTABLES,
    MM_RAM_ANON,
    MM_SWAP,
    MM_WINDOWS,
    NIL,
    P_ZERO_USERS,
    Memory,
)
from hostsim.mm.mmap import (
    W_NONE,
    W_ZERO,
    folded_pageblock,
    is_folded,
    maps_huge,
    table_head,
    window_word,
)
from hostsim.mm.mmu_notifier import E_LEAF, E_TAG, ept_word
from hostsim.mm.rmap import KIND_MASK, KIND_PGTABLE, KIND_SWAP


@inline_kernel
def _on_leaf(host: Memory, vm: int, page: int) -> bool:
    """Tell whether one EPT leaf maps the 2 MiB around a page of a VM."""
    return ept_word(host, vm, page >> HPAGE_PMD_ORDER) & E_TAG == E_LEAF


@kernel
def _count_process(guests: NDArray[np.int64], row: int, mem: Memory, mm: int) -> None:
    """Add what `look_at_process` does where leaves of 2 MiB map all of a guest: from counters."""
    pages = mem.mm[mm, MM_ANON]
    huge = mem.mm[mm, MM_HUGE] << HPAGE_PMD_ORDER
    tables = mem.mm[mm, MM_PGTABLES]
    guests[row, G_PROGRAM] += pages
    guests[row, G_PROGRAM_HUGE] += huge
    guests[row, G_PROGRAM_HOST] += pages
    guests[row, G_PROGRAM_BOTH] += huge
    guests[row, G_TABLES] += tables
    guests[row, G_TABLES_HOST] += tables


@kernel
def look_at_process(
    host: Memory, guests: NDArray[np.int64], row: int, mem: Memory, mm: int, offset: int
) -> None:
    """Add a process's pages to what its guest's programs map."""
    vm = guests[row, G_MM]
    aligned = offset % HPAGE_PMD_NR == 0
    for window in range(mem.mm[mm, MM_WINDOWS]):
        word = window_word(mem, mm, window)
        if word == W_NONE or word == W_ZERO:
            continue
        if maps_huge(word):
            guests[row, G_PROGRAM] += HPAGE_PMD_NR
            guests[row, G_PROGRAM_HUGE] += HPAGE_PMD_NR
            if aligned and _on_leaf(host, vm, offset + ((word >> 2) << PAGEBLOCK_ORDER)):
                guests[row, G_PROGRAM_HOST] += HPAGE_PMD_NR
                guests[row, G_PROGRAM_BOTH] += HPAGE_PMD_NR
            continue
        if is_folded(word):
            guests[row, G_PROGRAM] += HPAGE_PMD_NR
            if _on_leaf(host, vm, offset + (folded_pageblock(word) << PAGEBLOCK_ORDER)):
                guests[row, G_PROGRAM_HOST] += HPAGE_PMD_NR
            continue
        x = table_head(word)
        while x != NIL:
            if int(mem.ext[x].flags) & KIND_MASK != KIND_SWAP:
                guests[row, G_PROGRAM] += int(mem.ext[x].nr)
                if _on_leaf(host, vm, offset + int(mem.ext[x].pfn)):
                    guests[row, G_PROGRAM_HOST] += int(mem.ext[x].nr)
            x = int(mem.ext[x].next)
    x = mem.mm[mm, MM_KERNEL] - 1
    while x != NIL:
        if int(mem.ext[x].flags) & KIND_MASK == KIND_PGTABLE:
            guests[row, G_TABLES] += int(mem.ext[x].nr)
            if _on_leaf(host, vm, offset + int(mem.ext[x].pfn)):
                guests[row, G_TABLES_HOST] += int(mem.ext[x].nr)
        x = int(mem.ext[x].next)


@kernel
def on_leaves_alone(host: Memory, vm: int) -> bool:
    """Tell whether EPT leaves of 2 MiB map all that backs a VM.

    Then they map each frame that its guest has in use, for each is backed.
    """
    leaves = host.mm[vm, MM_EPT_2M]
    if leaves == 0 or leaves << HPAGE_PMD_ORDER != host.mm[vm, MM_RAM_ANON]:
        return False
    # Leaves of these map what is not counted as resident,
    if host.mm[vm, MM_HUGETLB] != 0 or host.pool[P_ZERO_USERS] != 0:
        return False
    return int(host.mm[vm, MM_SWAP]) == 0  # and what is in swap is in use, but not backed


@kernel
def look_at_program(
    host: Memory, guests: NDArray[np.int64], row: int, offset: int, settled: bool
) -> None:
    """Count how a guest's programs are mapped, into its row.

    Parameters
    ----------
    settled
        Whether the host has backed all that the guest has in use: not in the middle of a touch.
    """
    mem = state_at(host, guests[row, G_STATE])
    for column in range(G_PROGRAM, G_TABLES_HOST + 1):
        guests[row, column] = 0
    counted = settled and on_leaves_alone(host, guests[row, G_MM])
    for slot in range(NR_SLOTS):
        mm = guests[row, G_SLOT + 2 * slot]
        if mm == NIL:
            continue
        if counted:
            _count_process(guests, row, mem, mm)
        else:
            look_at_process(host, guests, row, mem, mm, offset)


# Places of the figures, as `hostsim.core.stats.MMU_COLUMNS` names them
_MISSES: Final = 0
_OF_A_WALK: Final = 2  # reads and cycles, means over walks: four columns
_SHARE: Final = 6
_NATIVE: Final = 8


@kernel
def sum_figures(guests: NDArray[np.int64], row: NDArray[np.int64], first: int) -> None:
    """Write the vCPUs that run programs and the means of their figures, from a column on."""
    running = 0
    walking = 0
    for guest in range(guests.shape[0]):
        if guests[guest, G_VM] < 0 or guests[guest, G_FIGURE + _NATIVE] == 0:
            continue
        weight = guests[guest, G_VCPUS] * guests[guest, G_LOAD]
        walks = weight * guests[guest, G_FIGURE + _MISSES]
        running += weight
        walking += walks
        for i in range(NR_FIGURES):
            factor = walks if _OF_A_WALK <= i < _SHARE else weight
            row[first + 1 + i] += factor * guests[guest, G_FIGURE + i]
    row[first] = running
    for i in range(NR_FIGURES):
        row[first + 1 + i] //= max(walking if _OF_A_WALK <= i < _SHARE else running, 1)
