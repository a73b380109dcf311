"""Which NUMA nodes a VM runs on: chosen when its process starts, by what other VMs were promised.

A VM runs on as few nodes as hold its vCPUs and its memory.  Of nodes with vCPUs left for it, that
with the most memory not yet promised to VMs takes it; without any, that with the most memory does.
Several nodes are neighbours in number, and the one with the least memory left counts for all.

Source: libvirt `<vcpu placement='auto'>`, which asks numad for nodes with sufficient resources
(`numad -w vcpus:memory`); xl-numa-placement(7): fewer nodes are better, then more free memory.
Simplified: what VMs were promised counts, not what they have touched, so that VMs that start
together do not all see the same free memory.
"""

from hostsim.core.jit import inline_kernel, kernel
from hostsim.mm.mm_types import (
    MM_HAS_EPT,
    MM_LIVE,
    MM_NODE,
    MM_NR_NODES,
    MM_RAM_PAGES,
    MM_VCPUS,
    P_MM_USED,
    P_NODE_PAGES,
    P_NR_CPUS,
    Memory,
)


@inline_kernel
def nodes_needed(pages: int, vcpus: int, node_pages: int, node_vcpus: int, nr_nodes: int) -> int:
    """Return on how many nodes a VM runs: as few as hold it, at most all."""
    parts = 1
    while parts < nr_nodes and (parts * node_pages < pages or parts * node_vcpus < vcpus):
        parts += 1
    return parts


@inline_kernel
def is_better(fits: bool, left: int, best_fits: bool, best_left: int) -> bool:
    """Say whether nodes with so much memory left are a better home than the best so far."""
    return (fits and not best_fits) or (fits == best_fits and left > best_left)


@kernel
def _promised(mem: Memory, nid: int) -> tuple[int, int]:
    """Return the vCPUs and the memory of the VMs of a node; VMs on several nodes count in parts."""
    vcpus = 0
    pages = 0
    for mm in range(mem.pool[P_MM_USED]):
        if mem.mm[mm, MM_LIVE] == 0 or mem.mm[mm, MM_HAS_EPT] == 0:
            continue
        parts = max(mem.mm[mm, MM_NR_NODES], 1)
        if (nid - mem.mm[mm, MM_NODE]) % len(mem.node) < parts:
            vcpus += (mem.mm[mm, MM_VCPUS] + parts - 1) // parts
            pages += (mem.mm[mm, MM_RAM_PAGES] + parts - 1) // parts
    return vcpus, pages


@kernel
def choose_home(mem: Memory, ram_pages: int, vcpus: int) -> tuple[int, int]:
    """Return the node, or the first of several, on which a VM starts, and their number."""
    nr_nodes = len(mem.node)
    if nr_nodes == 1:
        return 0, 1
    node_vcpus = mem.pool[P_NR_CPUS] // nr_nodes
    node_pages = mem.pool[P_NODE_PAGES]
    parts = nodes_needed(ram_pages, vcpus, node_pages, node_vcpus, nr_nodes)
    need = (vcpus + parts - 1) // parts
    best = 0
    best_fits = False
    best_left = -(1 << 62)
    for first in range(nr_nodes):
        fits = True
        left = 1 << 62
        for i in range(parts):
            used_vcpus, used_pages = _promised(mem, (first + i) % nr_nodes)
            fits = fits and used_vcpus + need <= node_vcpus
            left = min(left, node_pages - used_pages)
        if is_better(fits, left, best_fits, best_left):
            best = first
            best_fits = fits
            best_left = left
    return best, parts
