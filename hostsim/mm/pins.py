"""Pins: pages whose frames a device uses, so that they may not move or go.

A pin is a range of a process's pages: one page of a direct I/O in flight, or a whole guest with
an assigned device (VFIO).  Ranges may overlap, as pages may be pinned more than once.

Source: Linux v6.1 mm/gup.c try_grab_folio; include/linux/mm.h folio_maybe_dma_pinned.
Simplified: a pin ends with the mapping: what MADV_DONTNEED or an exit unmaps is freed at once.
QEMU discards no memory of a guest with an assigned device.
"""

from hostsim.core.jit import kernel
from hostsim.mm.mm_types import MM_PINNED, NIL, P_PINS, Memory
from hostsim.mm.mmap import free_area, new_area
from hostsim.mm.rmap import cut_extent


@kernel
def add_pin(mem: Memory, mm: int, start: int, end: int) -> bool:
    """Pin pages ``start .. end - 1`` of a process; return whether there was room for the range."""
    pin = new_area(mem, start, end, 0, mem.mm[mm, MM_PINNED] - 1)
    if pin == NIL:
        return False
    mem.mm[mm, MM_PINNED] = pin + 1
    mem.pool[P_PINS] += 1
    return True


@kernel
def _drop(mem: Memory, mm: int, before: int, pin: int) -> None:
    """Forget a pin that follows another one (or NIL)."""
    after = int(mem.vma[pin].next)
    if before == NIL:
        mem.mm[mm, MM_PINNED] = after + 1
    else:
        mem.vma[before].next = after
    free_area(mem, pin)
    mem.pool[P_PINS] -= 1


@kernel
def unpin_user_pages(mem: Memory, mm: int, start: int, nr: int) -> bool:
    """End one pin of exactly these pages; return whether there was one."""
    before = NIL
    pin = mem.mm[mm, MM_PINNED] - 1
    while pin != NIL:
        if mem.vma[pin].start == start and mem.vma[pin].end == start + nr:
            _drop(mem, mm, before, pin)
            return True
        before = pin
        pin = int(mem.vma[pin].next)
    return False


@kernel
def forget_pins(mem: Memory, mm: int, first: int, end: int) -> None:
    """End every pin of pages ``first .. end - 1``; what lies around them stays pinned.

    Without room for another range, a pin keeps its lower part only.
    """
    before = NIL
    pin = mem.mm[mm, MM_PINNED] - 1
    while pin != NIL:
        after = int(mem.vma[pin].next)
        low, high = int(mem.vma[pin].start), int(mem.vma[pin].end)
        if low < end and high > first:
            if high > end:
                if low < first:
                    add_pin(mem, mm, end, high)
                    mem.vma[pin].end = first
                    if before == NIL:
                        before = mem.mm[mm, MM_PINNED] - 1
                else:
                    mem.vma[pin].start = end
            elif low < first:
                mem.vma[pin].end = first
            else:
                _drop(mem, mm, before, pin)
                pin = after
                continue
        before = pin
        pin = after


@kernel
def pinned_run(mem: Memory, mm: int, page: int, nr: int) -> tuple[bool, int]:
    """Tell whether a page is pinned, and for how many pages from it on that holds, up to ``nr``."""
    run = nr
    pin = mem.mm[mm, MM_PINNED] - 1
    while pin != NIL:
        low, high = int(mem.vma[pin].start), int(mem.vma[pin].end)
        if low <= page < high:
            return True, min(nr, high - page)
        if low > page:
            run = min(run, low - page)
        pin = int(mem.vma[pin].next)
    return False, run


@kernel
def any_pinned(mem: Memory, mm: int, first: int, end: int) -> bool:
    """Tell whether some page ``first .. end - 1`` of a process is pinned."""
    pinned, run = pinned_run(mem, mm, first, end - first)
    return pinned or run < end - first


@kernel
def cut_at_pin(mem: Memory, x: int) -> tuple[bool, int]:
    """Cut an extent behind its first pages that are all pinned or none.

    Returns
    -------
    pinned, rest
        Whether those pages are pinned, and the extent of the others, or NIL.
    """
    vpn = int(mem.ext[x].vpn)
    nr = int(mem.ext[x].nr)
    pinned, run = pinned_run(mem, int(mem.ext[x].owner), vpn, nr)
    return pinned, cut_extent(mem, x, vpn + run) if run < nr else NIL
