"""The share of a processor's time in which one process touches memory before another runs.

Source: none; CPUs that touch memory at the same time share the buddy lists in batches
(pcp->batch, mm/page_alloc.c), and so do these turns.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.mm_types import P_RESUME, Memory
from hostsim.mm.mmap import W_HUGE, W_TAG, window_word

TURN_HUGE_PAGES: Final = 16  # between the 2 huge pages and the 63 page tables it takes at once


@kernel
def touch_turn(mem: Memory, mm: int, start: int, nr: int) -> tuple[int, bool]:
    """Let a process write the next pages of a range: up to 16 huge pages, or one window's small.

    Returns
    -------
    pages, enough
        How many of the range are done, and whether memory sufficed.
    """
    done = 0
    for _ in range(TURN_HUGE_PAGES):
        page = start + done
        here = min(nr - done, HPAGE_PMD_NR - (page & (HPAGE_PMD_NR - 1)))
        if here <= 0:
            break
        if touch_range(mem, mm, page, here, 1, 1.0, 0, True, page) != FAULT_OK:
            return mem.pool[P_RESUME] - start, False
        done += here
        if window_word(mem, mm, page >> HPAGE_PMD_ORDER) & W_TAG != W_HUGE:
            break
    return done, True
