"""The frames that an allocator hands out, for whoever sees a machine's memory from outside.

Who gets a frame writes to it: anonymous memory is cleared, page tables are zeroed, a migration
copies.  A hypervisor sees that as an access to guest-physical memory.

Source: the places of the tracepoint mm_page_alloc, Linux v6.1 include/trace/events/kmem.h, and of
compaction_alloc, mm/compaction.c.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.mm.mm_types import P_TOUCHED, P_TRACED, Memory

TRACE_LOST: Final = 2  # pool[P_TRACED]: more runs than `touched` has room for


@kernel
def _note_run(mem: Memory, first: int, nr: int) -> None:
    """Add a run of frames to those handed out, joined to the last run where it touches it."""
    last = mem.pool[P_TOUCHED] - 1
    if last >= 0:
        start = mem.touched[last, 0]
        if first == start + mem.touched[last, 1]:
            mem.touched[last, 1] += nr
            return
        if first + nr == start:
            mem.touched[last, 0] = first
            mem.touched[last, 1] += nr
            return
    if last + 1 >= mem.touched.shape[0]:
        mem.pool[P_TRACED] = TRACE_LOST
        return
    mem.touched[last + 1, 0] = first
    mem.touched[last + 1, 1] = nr
    mem.pool[P_TOUCHED] = last + 2


@kernel
def note_touched(mem: Memory, pfn: int, nr: int, step: int, order: int) -> None:
    """Note blocks handed out: who gets a frame writes to it, which a hypervisor sees."""
    block = 1 << order
    if step == block:
        _note_run(mem, pfn, nr << order)
    elif step == -block:
        _note_run(mem, pfn + (nr - 1) * step, nr << order)
    else:
        for i in range(nr):
            _note_run(mem, pfn + i * step, block)
