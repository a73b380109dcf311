"""Kernel blocks that somebody holds by name: pipe buffers, slabs, stacks.

Source: the role of alloc_pages(GFP_KERNEL) in Linux; pipe buffers are GFP_HIGHUSER, which is
not movable (fs/pipe.c).
"""

from typing import Any

from numpy.typing import NDArray

from hostsim.core.jit import kernel
from hostsim.core.units import NO_PFN
from hostsim.mm.contig import count_unmovable
from hostsim.mm.mm_types import NIL, Memory
from hostsim.mm.page_alloc import free_order
from hostsim.mm.rmap import KIND_KERNEL, add_extent, del_extent
from hostsim.mm.slowpath import alloc_pages
from hostsim.mm.vmstat import NR_KERNEL


@kernel
def alloc_blocks(mem: Memory, order: int, migratetype: int, nr: int, extents: NDArray[Any]) -> int:
    """Allocate ``nr`` blocks one by one; write their extents; return how many there were."""
    for i in range(nr):
        pfn, _, _ = alloc_pages(mem, order, migratetype, 1)
        if pfn == NO_PFN:
            return i
        extents[i] = add_extent(mem, pfn, 1 << order, NIL, 0, KIND_KERNEL)
        mem.vmstat[NR_KERNEL] += 1 << order
        count_unmovable(mem, pfn, 1 << order)
    return nr


@kernel
def free_blocks(mem: Memory, order: int, extents: NDArray[Any]) -> None:
    """Free blocks that `alloc_blocks` gave."""
    for x in extents:
        pfn = int(mem.ext[x].pfn)
        del_extent(mem, x)
        count_unmovable(mem, pfn, -(1 << order))
        free_order(mem, pfn, order)
        mem.vmstat[NR_KERNEL] -= 1 << order
