"""NUMA: the order in which nodes serve requests, where processes run, and what is counted by node.

A request prefers the node of the CPU that makes it; when that has no memory, the next nodes serve
it, each one's zones from the highest down.  Node 0 has the zones DMA, DMA32 and Normal, every
further node one Normal zone.

Source: Linux v6.1 mm/page_alloc.c build_zonelists, find_next_best_node; mm/vmstat.c
zone_statistics; include/linux/vmstat.h mod_node_page_state; fs/proc/task_mmu.c show_numa_map.
Simplified: all nodes are at the same distance, so that the nodes behind a node's own are those
that follow it in number, in turn.
Simplified: the CPUs of a process stay on the nodes on which it started (no load balancing between
nodes, no NUMA balancing of pages).
Simplified: a process on several nodes uses its windows of 2 MiB from each of them in turn.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import (
    MM_BASE,
    MM_KERNEL,
    MM_NODE,
    MM_NR_NODES,
    MM_WINDOWS,
    N_LRU_ANON,
    N_LRU_FILE,
    N_NUMA_FOREIGN,
    N_NUMA_HIT,
    N_NUMA_LOCAL,
    N_NUMA_MISS,
    N_NUMA_OTHER,
    NIL,
    P_NODE,
    Z_FREE,
    ZONE_DMA,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.mmap import W_NONE, W_TABLE, W_TAG, W_ZERO, folded_pageblock, is_folded, table_head
from hostsim.mm.physmem import first_zone, pfn_to_nid, zone_to_nid
from hostsim.mm.rmap import KIND_EPT, KIND_MASK, KIND_PGTABLE, KIND_SWAP
from hostsim.mm.vmstat import NR_FILE_PAGES

NR_NUMA_PAGES: Final = 4  # numbers a node of `numa_pages`


@inline_kernel
def next_node(mem: Memory, nid: int) -> int:
    """Return the node that comes after a node when memory is looked for."""
    return nid + 1 if nid + 1 < len(mem.node) else 0


@inline_kernel
def next_zone(mem: Memory, zone: int) -> int:
    """Return the zone that comes after a zone on a zonelist."""
    if ZONE_DMA < zone <= ZONE_NORMAL:
        return zone - 1
    return ZONE_NORMAL + next_node(mem, zone_to_nid(zone))


@inline_kernel
def node_of_window(mem: Memory, mm: int, window: int) -> int:
    """Return the node whose CPUs use a window of a process."""
    nid = mem.mm[mm, MM_NODE]
    if mem.mm[mm, MM_NR_NODES] > 1:
        nid = (nid + window % mem.mm[mm, MM_NR_NODES]) % len(mem.node)
    return nid


@inline_kernel
def run_on_node_of(mem: Memory, mm: int, window: int) -> None:
    """Let the CPU that uses a window of a process be the one that makes requests."""
    if len(mem.node) > 1:
        mem.pool[P_NODE] = node_of_window(mem, mm, window)


@inline_kernel
def run_on_next_node(mem: Memory) -> None:
    """Let a CPU of the next node make requests: work of the kernel's own goes round the nodes."""
    if len(mem.node) > 1:
        mem.pool[P_NODE] = next_node(mem, mem.pool[P_NODE])


@inline_kernel
def zone_statistics(mem: Memory, zone: int, nr: int) -> None:
    """Count requests that a zone served, by node."""
    nid = zone_to_nid(zone)
    preferred = mem.pool[P_NODE]
    if nid == preferred:
        mem.node[nid, N_NUMA_HIT] += nr
        mem.node[nid, N_NUMA_LOCAL] += nr
    else:
        mem.node[nid, N_NUMA_MISS] += nr
        mem.node[nid, N_NUMA_OTHER] += nr
        mem.node[preferred, N_NUMA_FOREIGN] += nr


@inline_kernel
def mod_node_page_state(mem: Memory, pfn: int, item: int, nr: int) -> None:
    """Change a count of pages on the LRU lists: nr_anon_pages, nr_swapcached or nr_file_pages.

    All the pages are on the node of ``pfn``.
    """
    mem.vmstat[item] += nr
    column = N_LRU_FILE if item == NR_FILE_PAGES else N_LRU_ANON
    mem.node[pfn_to_nid(mem, pfn), column] += nr


@kernel
def set_home_node(mem: Memory, mm: int, nid: int, nr_nodes: int) -> None:
    """Let a process run on the CPUs of a node, or of several nodes from it on."""
    mem.mm[mm, MM_NODE] = nid
    mem.mm[mm, MM_NR_NODES] = nr_nodes


@kernel
def numa_pages(mem: Memory, mm: int, pages: NDArray[np.int64]) -> None:
    """Count a process's pages by node, as /proc/PID/numa_maps does.

    Parameters
    ----------
    pages
        Four numbers a node, written: mapped pages, those of them whose users are CPUs of another
        node, page tables, EPT tables.
    """
    for i in range(NR_NUMA_PAGES * len(mem.node)):
        pages[i] = 0
    base = mem.mm[mm, MM_BASE]
    for window in range(mem.mm[mm, MM_WINDOWS]):
        word = int(mem.windows[base + window])
        if word == W_NONE or word == W_ZERO:
            continue
        user = node_of_window(mem, mm, window)
        if word & W_TAG != W_TABLE or is_folded(word):
            pb = folded_pageblock(word) if is_folded(word) else word >> 2
            nid = pfn_to_nid(mem, pb << PAGEBLOCK_ORDER)
            pages[nid * NR_NUMA_PAGES] += HPAGE_PMD_NR
            if nid != user:
                pages[nid * NR_NUMA_PAGES + 1] += HPAGE_PMD_NR
            continue
        x = table_head(word)
        while x != NIL:
            if mem.ext[x].flags & KIND_MASK != KIND_SWAP:
                nid = pfn_to_nid(mem, int(mem.ext[x].pfn))
                nr = int(mem.ext[x].nr)
                pages[nid * NR_NUMA_PAGES] += nr
                if nid != user:
                    pages[nid * NR_NUMA_PAGES + 1] += nr
            x = int(mem.ext[x].next)
    x = mem.mm[mm, MM_KERNEL] - 1
    while x != NIL:
        kind = int(mem.ext[x].flags) & KIND_MASK
        nid = pfn_to_nid(mem, int(mem.ext[x].pfn))
        if kind == KIND_PGTABLE:
            pages[nid * NR_NUMA_PAGES + 2] += int(mem.ext[x].nr)
        elif kind == KIND_EPT:
            pages[nid * NR_NUMA_PAGES + 3] += int(mem.ext[x].nr)
        x = int(mem.ext[x].next)


@kernel
def remote_pages(mem: Memory, mm: int) -> tuple[int, int]:
    """Return the pages of a process that CPUs of another node use, and its EPT tables so placed.

    An EPT table is remote if it lies on none of the process's nodes.
    """
    if len(mem.node) == 1:
        return 0, 0
    counts = mem.scratch
    numa_pages(mem, mm, counts)
    pages = 0
    tables = 0
    for nid in range(len(mem.node)):
        pages += counts[nid * NR_NUMA_PAGES + 1]
        at = (nid - mem.mm[mm, MM_NODE]) % len(mem.node)
        if at >= max(mem.mm[mm, MM_NR_NODES], 1):
            tables += counts[nid * NR_NUMA_PAGES + 3]
    return pages, tables


@kernel
def nr_numa_miss(mem: Memory) -> int:
    """Return the requests that a node served though they preferred another, of all nodes."""
    misses = 0
    for nid in range(len(mem.node)):
        misses += mem.node[nid, N_NUMA_MISS]
    return misses


@kernel
def smallest_free(mem: Memory) -> int:
    """Return the free pages of the node that has the fewest."""
    fewest = 1 << 62
    for nid in range(len(mem.node)):
        free = 0
        for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
            free += mem.zone[zone, Z_FREE]
        fewest = min(fewest, free)
    return fewest


def numa_maps(mem: Memory, mm: int) -> str:
    """Return the pages of a process by node in the words of /proc/PID/numa_maps."""
    pages: NDArray[np.int64] = np.zeros(NR_NUMA_PAGES * len(mem.node), np.int64)
    numa_pages(mem, mm, pages)
    mapped = pages[::NR_NUMA_PAGES].tolist()
    return " ".join(f"N{nid}={nr}" for nid, nr in enumerate(mapped) if nr)


NUMASTAT_NAMES: Final = ("numa_hit", "numa_miss", "numa_foreign", "local_node", "other_node")


def numastat(mem: Memory, nid: int) -> dict[str, int]:
    """Return what /sys/devices/system/node/nodeN/numastat counts, requests and not pages."""
    counts = mem.node[nid, N_NUMA_HIT : N_NUMA_OTHER + 1].tolist()
    return dict(zip(NUMASTAT_NAMES, counts, strict=True))
