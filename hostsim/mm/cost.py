"""What operations cost in simulated time, so that stalls and the pace of daemons mean something.

The costs are data: a host has its own table.  The defaults come from the benchmark in the THP
commit message (Linux 71e3aac072): a 4 KiB fault takes 2190 ns of which 1412 ns clear the page, a
2 MiB fault 725 us of which 723 us clear it, on a machine that clears 2.9 GB/s.
Simplified: costs that this benchmark does not show are derived from those two or assumed, as
their comments say; a machine's own are measured and put in their place.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import inline_kernel
from hostsim.core.units import HPAGE_PMD_NR
from hostsim.mm.mm_types import P_COST_NS, Memory

C_FAULT: Final = 0  # a fault without clearing
C_CLEAR_PAGE: Final = 1  # clear 4 KiB
C_HUGE_FAULT: Final = 2  # a huge fault without clearing
C_COPY_PAGE: Final = 3  # copy 4 KiB: as much memory traffic as a clear and a half
C_MIGRATE_PAGE: Final = 4  # unmap, copy and remap a page: a fault and a copy
C_SCAN_PAGE: Final = 5  # a compaction or reclaim scanner looks at a page (assumed)
C_SCAN_PTE: Final = 6  # khugepaged looks at a page-table entry (assumed)
C_FREE_PAGE: Final = 7  # unmap and free a page (assumed)
C_SPLIT: Final = 8  # split a huge page or its PMD (assumed)
C_SWAP_PAGE: Final = 9  # write or read 4 KiB of swap on an NVMe disk (assumed)
C_SCAN_WINDOW: Final = 10  # khugepaged takes the lock and finds the window (assumed)
C_KSM_PAGE: Final = 11  # ksmd reads a page and looks for its like: as long as a clear (assumed)
C_EPT_VIOLATION: Final = 12  # exit, walk, install a leaf: 1 to 3 us (assumed: the middle)
NR_COSTS: Final = 13

NAMES: Final = (
    "fault",
    "clear_page",
    "huge_fault",
    "copy_page",
    "migrate_page",
    "scan_page",
    "scan_pte",
    "free_page",
    "split",
    "swap_page",
    "scan_window",
    "ksm_page",
    "ept_violation",
)
DEFAULT_NS: Final = (778, 1412, 2000, 2118, 2896, 20, 10, 100, 10_000, 10_000, 1_000, 1412, 2_000)


def set_costs(cost: NDArray[np.int64]) -> None:
    """Write the default costs, in nanoseconds."""
    cost[:NR_COSTS] = DEFAULT_NS


@inline_kernel
def charge(mem: Memory, what: int, nr: int) -> None:
    """Let ``nr`` operations of a kind take their time."""
    mem.pool[P_COST_NS] += mem.cost[what] * nr


@inline_kernel
def charge_huge_copy(mem: Memory) -> None:
    """Let a copy of 2 MiB take its time."""
    mem.pool[P_COST_NS] += mem.cost[C_COPY_PAGE] * HPAGE_PMD_NR
