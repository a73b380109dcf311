"""Getting user pages: faulting pages in for a device and pinning them.

Source: Linux v6.1 mm/gup.c pin_user_pages, __get_user_pages (FOLL_WRITE breaks copy on write).
Simplified: all of a range is pinned before it is faulted in, not page by page.
"""

from hostsim.core.jit import kernel
from hostsim.mm.fault import FAULT_OK, FAULT_OOM, touch_range
from hostsim.mm.mm_types import Memory
from hostsim.mm.pins import add_pin, unpin_user_pages


@kernel
def pin_user_pages(mem: Memory, mm: int, start: int, nr: int) -> int:
    """Fault pages of a process in for writing and pin them.

    Returns
    -------
    int
        FAULT_OK, or FAULT_OOM or FAULT_SIGBUS as `hostsim.mm.fault.touch_range`: nothing is
        pinned then.
    """
    if not add_pin(mem, mm, start, start + nr):
        return FAULT_OOM
    status = touch_range(mem, mm, start, nr, 1, 1.0, 0, True, start)
    if status != FAULT_OK:
        unpin_user_pages(mem, mm, start, nr)
    return status
