"""Page-table and EPT table pages: unmovable order-0 pages owned by a process.

Source: Linux v6.1 mm/pgtable-generic.c (deposit), arch/x86/mm/pgtable.c pte_alloc_one;
arch/x86/kvm/mmu/mmu.c (table pages come from a GFP_KERNEL_ACCOUNT cache).
Simplified: which of a process's table pages a freed table is, is not kept: the newest goes.
"""

from hostsim.core.jit import hot_kernel, kernel
from hostsim.core.units import NO_PFN, PAGEBLOCK_NR_PAGES
from hostsim.mm.contig import count_unmovable
from hostsim.mm.mm_types import MIGRATE_UNMOVABLE, MM_EPT, MM_KERNEL, MM_PGTABLES, NIL, Memory
from hostsim.mm.page_alloc import free_pages
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    KIND_EPT,
    KIND_MASK,
    KIND_PGTABLE,
    add_extent,
    del_extent,
    try_extend,
)
from hostsim.mm.slowpath import alloc_pages
from hostsim.mm.vmstat import NR_EPT, NR_KERNEL, NR_PAGETABLE


@hot_kernel
def _account(mem: Memory, mm: int, kind: int, nr: int) -> None:
    if kind == KIND_PGTABLE:
        mem.mm[mm, MM_PGTABLES] += nr
        mem.vmstat[NR_PAGETABLE] += nr
    elif kind == KIND_EPT:
        mem.mm[mm, MM_EPT] += nr
        mem.vmstat[NR_EPT] += nr
    else:
        mem.vmstat[NR_KERNEL] += nr


@kernel
def own_pages(mem: Memory, mm: int, kind: int, pfn: int, nr: int, step: int) -> None:
    """Give a process kernel pages that lie at equal steps, one after the other."""
    _account(mem, mm, kind, nr)
    while nr > 0:
        here = min(nr, PAGEBLOCK_NR_PAGES - (pfn & (PAGEBLOCK_NR_PAGES - 1))) if step == 1 else 1
        head = mem.mm[mm, MM_KERNEL] - 1
        if head == NIL or not try_extend(mem, head, pfn, here, False, kind):
            x = add_extent(mem, pfn, here, mm, 0, kind)
            mem.ext[x].next = head
            mem.mm[mm, MM_KERNEL] = x + 1
        count_unmovable(mem, pfn, here)
        pfn += here * step
        nr -= here


@kernel
def alloc_table(mem: Memory, mm: int, kind: int) -> bool:
    """Allocate one kernel page for a process; return whether there was one.

    Parameters
    ----------
    kind
        KIND_PGTABLE, KIND_EPT, or KIND_KERNEL for stacks and slab of the process.
    """
    pfn, _, _ = alloc_pages(mem, 0, MIGRATE_UNMOVABLE, 1)
    if pfn == NO_PFN:
        return False
    own_pages(mem, mm, kind, pfn, 1, 1)
    return True


@kernel
def free_table(mem: Memory, mm: int, kind: int) -> None:
    """Free the newest kernel page of a kind of a process."""
    before = NIL
    x = mem.mm[mm, MM_KERNEL] - 1
    while x != NIL and mem.ext[x].flags & KIND_MASK != kind:
        before = x
        x = int(mem.ext[x].next)
    if x == NIL:
        return
    low = int(mem.ext[x].pfn)
    nr = int(mem.ext[x].nr)
    if nr == 1:
        after = int(mem.ext[x].next)
        if before == NIL:
            mem.mm[mm, MM_KERNEL] = after + 1
        else:
            mem.ext[before].next = after
        del_extent(mem, x)
        pfn = low
    else:
        mem.ext[x].nr = nr - 1
        pfn = low + nr - 1
        if mem.ext[x].flags & EXT_DESCENDING:
            pfn = low
            mem.ext[x].pfn = low + 1
    _account(mem, mm, kind, -1)
    count_unmovable(mem, pfn, -1)
    free_pages(mem, pfn, 1, 1)


@kernel
def free_all_tables(mem: Memory, mm: int) -> None:
    """Free every kernel page of a process."""
    x = mem.mm[mm, MM_KERNEL] - 1
    while x != NIL:
        after = int(mem.ext[x].next)
        low = int(mem.ext[x].pfn)
        nr = int(mem.ext[x].nr)
        _account(mem, mm, mem.ext[x].flags & KIND_MASK, -nr)
        del_extent(mem, x)
        count_unmovable(mem, low, -nr)
        free_pages(mem, low, nr, 1)
        x = after
    mem.mm[mm, MM_KERNEL] = 0
