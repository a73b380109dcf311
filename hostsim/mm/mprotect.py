"""mprotect: making a part of guest RAM read-only, or writable again.

A huge page that lies wholly in the range keeps its PMD, whose permission changes in place; one
that the range cuts has its PMD split, without memory and without failing.

Source: Linux v6.1 mm/mprotect.c mprotect_fixup, change_pmd_range; mm/huge_memory.c
change_huge_pmd.
Simplified: nothing writes to read-only memory, so that no access ever fails.
"""

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_ORDER
from hostsim.mm.mm_types import Memory
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.vma import VM_READONLY, change_flags


@kernel
def mprotect(mem: Memory, mm: int, start: int, nr: int, readonly: bool) -> bool:
    """Change the permission of pages of guest RAM; return whether there was room for areas."""
    if readonly:
        enough = change_flags(mem, mm, start, start + nr, VM_READONLY, 0)
    else:
        enough = change_flags(mem, mm, start, start + nr, 0, VM_READONLY)
    page = start
    while page < start + nr:
        window = page >> HPAGE_PMD_ORDER
        end = min(start + nr, (window + 1) << HPAGE_PMD_ORDER)
        notify(mem, mm, window, page, end)
        page = end
    return enough
