"""The rows of ``vms``: what a guest has, counted when a row is due.

Source: Linux v6.1 fs/proc/task_mmu.c (smaps), /proc/vmstat of the guest, arch/x86/kvm/debugfs.c.
Simplified: a guest reaches all of its huge pages at least once between two rows of ``vms``.
"""

import numpy as np
from numpy.typing import NDArray

from fleet.mmu_state import look_at_program
from guestsim.behaviour import (
    G_ANON,
    G_BALLOON,
    G_CLASS,
    G_EFFECTIVE,
    G_GUEST_HUGE,
    G_KILLS,
    G_MM,
    G_PAGES,
    G_PROGRAM,
    G_PROGRAM_BOTH,
    G_REPORTED,
    G_STATE,
    G_USED,
    G_VCPUS,
    G_VM,
    NO_KERNEL,
)
from hostsim.core.byref import state_at
from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.ept import ept_access
from hostsim.mm.mm_types import (
    MM_EPT,
    MM_EPT_2M,
    MM_EPT_4K,
    MM_EPT_VIOLATIONS,
    MM_HUGE,
    MM_NODE,
    MM_RAM_ANON,
    MM_RAM_PAGES,
    MM_THP_ALLOC,
    MM_THP_FALLBACK,
    P_ZERO_PB,
    PCP_COUNT,
    Z_FREE,
    Z_MANAGED,
    Memory,
)
from hostsim.mm.mmap import W_HUGE, W_TAG, window_word
from hostsim.mm.mmu_notifier import E_FULL, E_LEAF, E_TAG, ept_word
from hostsim.mm.numa import remote_pages
from hostsim.mm.physmem import PB_HUGE, pageblock_state
from hostsim.mm.vmstat import NR_ANON_PAGES, NR_ANON_THPS


@kernel
def reach_all(host: Memory, guests: NDArray[np.int64], row: int) -> None:
    """Let a guest reach the huge pages of its RAM that its EPT lost.

    A leaf that a notifier zapped comes back when the guest next uses the memory.
    """
    mm = guests[row, G_MM]
    reached = host.mm[mm, MM_EPT_2M]
    if window_word(host, mm, 0) & W_TAG == W_HUGE and ept_word(host, mm, 0) & E_TAG == E_FULL:
        reached += 1  # where memory slots end inside the first 2 MiB
    if host.mm[mm, MM_HUGE] == reached:
        return
    for window in range(host.mm[mm, MM_RAM_PAGES] >> HPAGE_PMD_ORDER):
        if window_word(host, mm, window) & W_TAG == W_HUGE:
            if ept_word(host, mm, window) & E_TAG != E_LEAF:
                first = window << HPAGE_PMD_ORDER
                if not ept_access(host, mm, window, first, first + HPAGE_PMD_NR):
                    return


@kernel
def effective_huge(host: Memory, guests: NDArray[np.int64], row: int, offset: int) -> int:
    """Return how many huge pages of a guest one EPT leaf maps each."""
    mem = state_at(host, guests[row, G_STATE])
    mm = guests[row, G_MM]
    if offset % HPAGE_PMD_NR != 0:
        return 0
    huge = int(mem.vmstat[NR_ANON_THPS])
    leaves = host.mm[mm, MM_EPT_2M]
    if leaves << HPAGE_PMD_ORDER == host.mm[mm, MM_RAM_ANON]:  # all that is backed
        return huge
    effective = 0
    zero = mem.pool[P_ZERO_PB] - 1
    first = offset >> HPAGE_PMD_ORDER
    for window in range(guests[row, G_PAGES] >> HPAGE_PMD_ORDER):
        if pageblock_state(mem, window) == PB_HUGE and window != zero:
            if ept_word(host, mm, first + window) & E_TAG == E_LEAF:
                effective += 1
    return effective


@kernel
def look_at_guest(host: Memory, guests: NDArray[np.int64], row: int, offset: int) -> None:
    """Count a guest's huge pages, and those of them that one EPT leaf maps."""
    mem = state_at(host, guests[row, G_STATE])
    free = 0
    managed = 0
    for zone in range(len(mem.zone)):
        free += mem.zone[zone, Z_FREE] + mem.zone[zone, PCP_COUNT]
        managed += mem.zone[zone, Z_MANAGED]
    guests[row, G_GUEST_HUGE] = mem.vmstat[NR_ANON_THPS]
    guests[row, G_EFFECTIVE] = effective_huge(host, guests, row, offset)
    guests[row, G_USED] = managed - free
    guests[row, G_ANON] = mem.vmstat[NR_ANON_PAGES]


@kernel
def fill_vm_rows(
    host: Memory,
    guests: NDArray[np.int64],
    which: NDArray[np.int64],
    out: NDArray[np.int64],
    t_ns: int,
    host_id: int,
    offset: int,
    ended: bool,
) -> None:
    """Look at some guests and write their rows, columns as in `hostsim.core.stats.VM_COLUMNS`.

    Parameters
    ----------
    which
        Rows of ``guests``.
    out
        (len(which), columns), written.
    offset
        Page of QEMU's address space at which guest RAM begins.
    """
    for i in range(which.size):
        row = which[i]
        reach_all(host, guests, row)
        if guests[row, G_STATE] != NO_KERNEL:
            look_at_guest(host, guests, row, offset)
            look_at_program(host, guests, row, offset, not ended)
        mm = guests[row, G_MM]
        out[i, 0] = t_ns
        out[i, 1] = host_id
        out[i, 2] = guests[row, G_VM]
        out[i, 3] = guests[row, G_VCPUS]
        out[i, 4] = guests[row, G_PAGES]
        out[i, 5] = host.mm[mm, MM_RAM_ANON]
        out[i, 6] = host.mm[mm, MM_HUGE]
        out[i, 7] = host.mm[mm, MM_EPT]
        out[i, 8] = host.mm[mm, MM_THP_ALLOC]
        out[i, 9] = host.mm[mm, MM_THP_FALLBACK]
        out[i, 10] = host.mm[mm, MM_EPT_2M]
        out[i, 11] = host.mm[mm, MM_EPT_4K]
        out[i, 12] = host.mm[mm, MM_EPT_VIOLATIONS]
        out[i, 13] = 1 if ended else 0
        out[i, 14] = guests[row, G_CLASS]
        out[i, 15] = guests[row, G_USED]
        out[i, 16] = guests[row, G_ANON]
        out[i, 17] = guests[row, G_GUEST_HUGE]
        out[i, 18] = guests[row, G_EFFECTIVE]
        out[i, 19] = guests[row, G_BALLOON]
        out[i, 20] = guests[row, G_REPORTED]
        out[i, 21] = guests[row, G_KILLS]
        remote, tables = remote_pages(host, mm)
        out[i, 22] = host.mm[mm, MM_NODE]
        out[i, 23] = remote
        out[i, 24] = tables
        for column in range(25, out.shape[1]):
            out[i, column] = 0  # what translation costs is not known here
        for column in range(G_PROGRAM_BOTH + 1 - G_PROGRAM):
            out[i, 25 + column] = guests[row, G_PROGRAM + column]
