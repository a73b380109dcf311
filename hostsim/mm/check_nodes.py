"""The validator of NUMA nodes: which frames and zones are a node's, and what is counted by node."""

import numpy as np

from hostsim.core.units import HPAGE_PMD_NR, MAX_PAGE_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.check_free import NO_ZONE, Ints, Scan, agree, forbid
from hostsim.mm.mm_types import (
    MM_LIVE,
    MM_NODE,
    MM_NR_NODES,
    N_LRU_ANON,
    N_LRU_FILE,
    N_NUMA_FOREIGN,
    N_NUMA_HIT,
    N_NUMA_LOCAL,
    N_NUMA_MISS,
    N_NUMA_OTHER,
    NR_ZONES,
    P_NODE,
    P_NODE_PAGES,
    P_NODEMASK,
    P_PAGEBLOCKS,
    P_SWAP_SLOTS,
    P_ZERO_PB,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.physmem import PB_HUGE


def _by_node(mem: Memory, pfn: Ints, nr: Ints) -> Ints:
    """Return the sum of ``nr`` by the node of ``pfn``."""
    nodes = pfn // int(mem.pool[P_NODE_PAGES])
    return np.bincount(nodes, weights=nr, minlength=len(mem.node)).astype(np.int64)


def check_nodes(mem: Memory, s: Scan, mapped: Ints, file_pfn: Ints, file_nr: Ints) -> None:
    """Nodes are of one size, zones lie within them, and counts by node are those of their frames.

    Parameters
    ----------
    mapped
        Distinct small frames of anonymous memory, by zone.
    file_pfn, file_nr
        Extents of the page cache.
    """
    nodes, node_pages = len(mem.node), int(mem.pool[P_NODE_PAGES])
    agree("zones", rows=len(mem.zone), expected=NR_ZONES + nodes - 1)
    node_pageblocks = node_pages >> PAGEBLOCK_ORDER
    agree("pageblocks of all nodes", nodes=nodes * node_pageblocks, memory=mem.pool[P_PAGEBLOCKS])
    if nodes > 1:  # so that no block of the buddy lists lies in two
        agree("end of a node in a block", rest=node_pages % (1 << MAX_PAGE_ORDER), expected=0)
    nid_of_zone = np.maximum(np.arange(len(mem.zone)) - ZONE_NORMAL, 0)
    inside = s.zone != NO_ZONE
    numbers = np.flatnonzero(inside)
    agree(
        "node of a zone's pageblocks",
        zone=nid_of_zone[s.zone[inside]],
        pageblock=numbers // node_pageblocks,
    )
    alone = (s.state == PB_HUGE) & (np.arange(s.state.size) != mem.pool[P_ZERO_PB] - 1)
    huge = np.flatnonzero(alone)
    anon = _by_node(mem, huge << PAGEBLOCK_ORDER, np.full(huge.size, HPAGE_PMD_NR))
    anon += np.bincount(nid_of_zone, weights=mapped[: nid_of_zone.size]).astype(np.int64)
    cached = mem.swap_cache[: int(mem.pool[P_SWAP_SLOTS])].astype(np.int64)
    cached = cached[cached > 0] - 1
    anon += _by_node(mem, cached, np.ones(cached.size, np.int64))
    agree("pages on a node's anonymous lists", counter=mem.node[:, N_LRU_ANON], frames=anon)
    files = _by_node(mem, file_pfn, file_nr)
    agree("pages on a node's file lists", counter=mem.node[:, N_LRU_FILE], frames=files)
    served = mem.node[:, N_NUMA_HIT] + mem.node[:, N_NUMA_MISS]
    to_cpus = mem.node[:, N_NUMA_LOCAL] + mem.node[:, N_NUMA_OTHER]
    agree("requests that a node served", preferred=served, cpus=to_cpus)
    agree(
        "requests served by another node",
        miss=mem.node[:, N_NUMA_MISS].sum(),
        foreign=mem.node[:, N_NUMA_FOREIGN].sum(),
    )
    agree("nodes that may serve requests, at rest", mask=mem.pool[P_NODEMASK], expected=0)
    forbid("node of the CPU", [not 0 <= mem.pool[P_NODE] < nodes], node=[mem.pool[P_NODE]])
    live = np.flatnonzero(mem.mm[:, MM_LIVE])
    home, spread = mem.mm[live, MM_NODE], mem.mm[live, MM_NR_NODES]
    wrong = (home < 0) | (home >= nodes) | (spread < 0) | (spread > nodes)
    forbid("home node of a process", wrong, mm=live, node=home, nodes=spread)
