"""The stamp of pages on an LRU list: a generation, and flags that say on which list they are.

`Memory.lru` holds those of huge pages by pageblock, `Memory.ext_lru` those of small pages by
extent.  A machine that never has swap keeps neither array: nothing ever scans its anonymous
lists (`hostsim.mm.reclaim`, as get_scan_count of Linux without swap), and nothing clears an
accessed bit.

Source: the role of page->lru and of the page flags, Linux v6.1 include/linux/mm_types.h,
include/linux/page-flags.h; mm/vmscan.c get_scan_count, can_age_anon_pages.
"""

from typing import Final

from hostsim.core.jit import hot_kernel, inline_kernel
from hostsim.mm.mm_types import Memory

LRU_ACTIVE: Final = 1  # on the active list
LRU_YOUNG: Final = 2  # the accessed bit of a mapping: page tables or EPT
LRU_REFERENCED: Final = 4  # PG_referenced
LRU_DIRTY: Final = 8  # changed since it was written to its file
LRU_FLAGS: Final = 15
LRU_SHIFT: Final = 4  # generation above
LRU_LAST_GENERATION: Final = (1 << 26) - 1


@inline_kernel
def keeps_lru(mem: Memory) -> bool:
    """Tell whether a machine keeps the order of its pages."""
    return len(mem.lru) != 0


@hot_kernel
def huge_stamp(mem: Memory, pb: int) -> int:
    """Return the stamp of a huge page."""
    return int(mem.lru[pb]) if keeps_lru(mem) else LRU_YOUNG


@hot_kernel
def set_huge_stamp(mem: Memory, pb: int, stamp: int) -> None:
    """Set the stamp of a huge page."""
    if keeps_lru(mem):
        mem.lru[pb] = stamp


@hot_kernel
def extent_stamp(mem: Memory, x: int) -> int:
    """Return the stamp of an extent of small pages."""
    return int(mem.ext_lru[x]) if keeps_lru(mem) else LRU_YOUNG


@hot_kernel
def set_extent_stamp(mem: Memory, x: int, stamp: int) -> None:
    """Set the stamp of an extent of small pages."""
    if keeps_lru(mem):
        mem.ext_lru[x] = stamp
