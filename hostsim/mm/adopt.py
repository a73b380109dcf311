"""Memory in use at a snapshot becomes that of a VM's process: the frames stay, the owner changes.

Huge pages are pageblocks in use as a whole, lowest first; small pages are what is in use in movable
pageblocks, highest first, so that the partly used ones go to VMs. Page tables are taken from the
kernel memory in use. No free block changes but for the few pages that a process starts with.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import (
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.contig import count_unmovable
from hostsim.mm.fault import map_huge
from hostsim.mm.fault_run import map_run
from hostsim.mm.mm_slot import khugepaged_enter, thp_enabled
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    NIL,
    P_NODE_PAGES,
    P_PAGEBLOCKS,
    Memory,
)
from hostsim.mm.mmap import W_NONE, set_window, table_word, window_word
from hostsim.mm.numa import mod_node_page_state, next_node, node_of_window
from hostsim.mm.page_alloc import account_rss
from hostsim.mm.pb_packed import set_pb_b
from hostsim.mm.pgtable import alloc_table, own_pages
from hostsim.mm.physmem import (
    PB_FULL,
    PB_HUGE,
    get_pageblock_migratetype,
    pageblock_state,
    set_state,
)
from hostsim.mm.rmap import KIND_BOOT, KIND_PGTABLE, del_extent, extents_of
from hostsim.mm.snapshot import is_listed
from hostsim.mm.vmstat import NR_ANON_PAGES, NR_KERNEL

# Where the search goes on, in Memory.scratch: pageblocks of each node, and of kernel memory
_HUGE_AT: Final = 0
_SMALL_AT: Final = 4
_KERNEL_AT: Final = 8


@kernel
def begin_adoption(mem: Memory) -> None:
    """Begin to look for memory in use from the ends of every node."""
    node_pageblocks = mem.pool[P_NODE_PAGES] >> PAGEBLOCK_ORDER
    for nid in range(len(mem.node)):
        mem.scratch[_HUGE_AT + nid] = nid * node_pageblocks
        mem.scratch[_SMALL_AT + nid] = (nid + 1) * node_pageblocks - 1
    mem.scratch[_KERNEL_AT] = mem.pool[P_PAGEBLOCKS] - 1


@inline_kernel
def _boot_extent(mem: Memory, pb: int, migratetype: int) -> int:
    """Return an extent in use since boot of a pageblock of a type, or NIL."""
    x = NIL
    if is_listed(mem, pb) and get_pageblock_migratetype(mem, pb) == migratetype:
        x = extents_of(mem, pb)
        while x != NIL and mem.ext[x].flags != KIND_BOOT:
            x = int(mem.ext[x].next_b)
    return x


@kernel
def _take(mem: Memory, x: int, nr: int) -> int:
    """Take the lowest frames of an extent in use since boot; return the first."""
    pfn = int(mem.ext[x].pfn)
    if mem.ext[x].nr == nr:
        del_extent(mem, x)
    else:
        mem.ext[x].pfn = pfn + nr
        mem.ext[x].nr -= nr
    return pfn


@kernel
def _next_whole(mem: Memory, nid: int) -> int:
    """Return the next pageblock of a node that is in use as a whole, or NIL."""
    end = (nid + 1) * (mem.pool[P_NODE_PAGES] >> PAGEBLOCK_ORDER)
    while mem.scratch[_HUGE_AT + nid] < end:
        pb = int(mem.scratch[_HUGE_AT + nid])
        mem.scratch[_HUGE_AT + nid] += 1
        if pageblock_state(mem, pb) == PB_FULL:
            x = _boot_extent(mem, pb, MIGRATE_MOVABLE)
            if x != NIL and mem.ext[x].nr == PAGEBLOCK_NR_PAGES:
                return pb
    return NIL


@kernel
def _next_small(mem: Memory, nid: int) -> int:
    """Return the next extent of a node in a movable pageblock, or NIL."""
    first = nid * (mem.pool[P_NODE_PAGES] >> PAGEBLOCK_ORDER)
    while mem.scratch[_SMALL_AT + nid] >= first:
        x = _boot_extent(mem, int(mem.scratch[_SMALL_AT + nid]), MIGRATE_MOVABLE)
        if x != NIL:
            return x
        mem.scratch[_SMALL_AT + nid] -= 1
    return NIL


@kernel
def _own_table(mem: Memory, mm: int) -> bool:
    """Give a process a page table out of kernel memory in use; False: there is no memory."""
    while mem.scratch[_KERNEL_AT] >= 0:
        x = _boot_extent(mem, int(mem.scratch[_KERNEL_AT]), MIGRATE_UNMOVABLE)
        if x != NIL:
            pfn = _take(mem, x, 1)
            mem.vmstat[NR_KERNEL] -= 1
            count_unmovable(mem, pfn, -1)
            own_pages(mem, mm, KIND_PGTABLE, pfn, 1, 1)
            return True
        mem.scratch[_KERNEL_AT] -= 1
    return alloc_table(mem, mm, KIND_PGTABLE)


@kernel
def _adopt_huge(mem: Memory, mm: int, window: int) -> bool:
    """Map an empty window by a huge page that is in use; False: there is none."""
    nid = node_of_window(mem, mm, window)
    for _ in range(len(mem.node)):
        pb = _next_whole(mem, nid)
        if pb != NIL:
            if not _own_table(mem, mm):
                return False
            del_extent(mem, extents_of(mem, pb))
            set_state(mem, pb, PB_HUGE, MIGRATE_MOVABLE)
            mem.pb[pb].a = mm
            set_pb_b(mem, pb, window)
            map_huge(mem, mm, window, pb)
            return True
        nid = next_node(mem, nid)
    return False


@kernel
def _adopt_small(mem: Memory, mm: int, window: int, nr: int) -> int:
    """Map the first pages of an empty window by pages in use; return how many there were."""
    nid = node_of_window(mem, mm, window)
    done = 0
    last = NIL
    for _ in range(len(mem.node)):
        while done < nr:
            x = _next_small(mem, nid)
            if x == NIL or (done == 0 and not _start_table(mem, mm, window)):
                break
            here = min(nr - done, int(mem.ext[x].nr))
            pfn = _take(mem, x, here)
            vpn = (window << HPAGE_PMD_ORDER) + done
            last = map_run(mem, mm, window, last, vpn, pfn, here, 1)
            account_rss(mem, mm, window, here)
            mod_node_page_state(mem, pfn, NR_ANON_PAGES, here)
            done += here
        nid = next_node(mem, nid)
    return done


@kernel
def _start_table(mem: Memory, mm: int, window: int) -> bool:
    """Give an empty window a page table."""
    if not _own_table(mem, mm):
        return False
    set_window(mem, mm, window, table_word(NIL))
    return True


@kernel
def adopt(mem: Memory, mm: int, page: int, nr: int, huge: int) -> int:
    """Give a process memory in use, from a page at the start of an empty window on.

    Parameters
    ----------
    nr
        Pages.
    huge
        Of them, in huge pages, which come first.

    Returns
    -------
    int
        Pages that there were.
    """
    if thp_enabled(mem, mm):
        khugepaged_enter(mem, mm)
    window = page >> HPAGE_PMD_ORDER
    done = 0
    while done + HPAGE_PMD_NR <= huge and window_word(mem, mm, window) == W_NONE:
        if not _adopt_huge(mem, mm, window):
            break
        done += HPAGE_PMD_NR
        window += 1
    while done < nr and window_word(mem, mm, window) == W_NONE:
        here = _adopt_small(mem, mm, window, min(nr - done, HPAGE_PMD_NR))
        done += here
        if here < HPAGE_PMD_NR:
            break
        window += 1
    return done
