"""The promotion policy of Linux: huge at the first fault, and khugepaged for the rest.

Source: Linux v6.1 mm/huge_memory.c do_huge_pmd_anonymous_page; mm/khugepaged.c.
"""

from hostsim.core.jit import kernel
from hostsim.mm.mm_types import Memory
from hostsim.mm.promotion_types import FIRST_HUGE
from hostsim.mm.tunables import T_KHUGEPAGED_MAX_PTES_NONE


@kernel
def linux_first_fault(mem: Memory) -> int:
    """Ask for a huge page whenever the settings allow it."""
    return FIRST_HUGE


@kernel
def linux_max_ptes_none(mem: Memory) -> int:
    """Return the absent pages that khugepaged accepts: its setting."""
    return int(mem.tunables[T_KHUGEPAGED_MAX_PTES_NONE])
