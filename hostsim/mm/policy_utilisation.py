"""Promotion by utilisation, as Ingens does it.

While free memory is whole, a window is huge at its first fault; once it is fragmented, a window
begins with small pages, and khugepaged makes it huge when most of it is in use, so that huge
pages go where they waste least.

Source: Kwon et al., "Coordinated and Efficient Huge Page Management with Ingens", OSDI 2016,
sections 4.1 and 4.3: utilisation threshold 90 %, aggressive below a fragmentation index of 0.5.
Simplified: khugepaged's pass stands for Ingens's promotion thread; it does not look at how often
pages are used.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NR_PAGE_ORDERS
from hostsim.mm.mm_types import NR_TYPES, Memory
from hostsim.mm.pageblock import unusable_free_index
from hostsim.mm.promotion_types import FIRST_HUGE, FIRST_SMALL
from hostsim.mm.tunables import T_KHUGEPAGED_MAX_PTES_NONE

FRAGMENTED: Final = 500  # FMFI 0.5, in 1/1000
UNUSED_PAGES: Final = HPAGE_PMD_NR // 10  # of a window nine tenths in use


@kernel
def utilisation_first_fault(mem: Memory) -> int:
    """Ask for a huge page while less than half of free memory is in smaller blocks."""
    free = mem.scratch[:NR_PAGE_ORDERS]
    for order in range(NR_PAGE_ORDERS):
        free[order] = 0
        for zone in range(len(mem.zone)):
            for migratetype in range(NR_TYPES):
                free[order] += mem.nr_free[zone, migratetype, order]
    fragmented = unusable_free_index(free, HPAGE_PMD_ORDER) >= FRAGMENTED
    return FIRST_SMALL if fragmented else FIRST_HUGE


@kernel
def utilisation_max_ptes_none(mem: Memory) -> int:
    """Return the absent pages that khugepaged accepts: a tenth of a window at most."""
    return int(min(mem.tunables[T_KHUGEPAGED_MAX_PTES_NONE], UNUSED_PAGES))
