"""The share of a processor's time in which one process touches memory before another runs.

Source: none; processors share the buddy lists in batches (pcp->batch, mm/page_alloc.c), and time
in slices of some milliseconds, in which a process faults in some tens of MiB.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_ORDER
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.mm_types import P_RESUME, Memory

TURN_WINDOWS: Final = 64  # 32 MiB: about 5 ms of clearing


@kernel
def touch_turn(mem: Memory, mm: int, start: int, nr: int) -> tuple[int, bool]:
    """Let a process write the next pages of a range: those in up to 64 windows.

    Returns
    -------
    pages, enough
        How many of the range are done, and whether memory sufficed.
    """
    end = min(start + nr, ((start >> HPAGE_PMD_ORDER) + TURN_WINDOWS) << HPAGE_PMD_ORDER)
    if touch_range(mem, mm, start, end - start, 1, 1.0, 0, True, start) != FAULT_OK:
        return mem.pool[P_RESUME] - start, False
    return end - start, True
