"""Reclaim: which lists are scanned and how far, direct reclaim, and kswapd.

Source: Linux v6.1 and v6.12 mm/vmscan.c get_scan_count, shrink_lruvec, shrink_node,
should_continue_reclaim, compaction_ready, do_try_to_free_pages, wakeup_kswapd, balance_pgdat,
kswapd_try_to_sleep, pgdat_balanced.
Simplified: kswapd does its work at the moment when it is woken, whoever woke it waits.
Simplified: of the slab's shrinkers, only that of the deferred split queue is there, one queue for
all nodes.
"""

import math
from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import COSTLY_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.kcompactd import wakeup_kcompactd
from hostsim.mm.lru import ACTIVE_ANON, ACTIVE_FILE, INACTIVE_ANON, INACTIVE_FILE, lru_size
from hostsim.mm.mm_types import (
    N_COST_ANON,
    N_COST_FILE,
    N_KSWAPD_FAILURES,
    N_PAGEOUTRUN,
    NR_LRU_LISTS,
    P_BOOSTED,
    P_COST_NS,
    P_NODE,
    P_RECLAIM_ACTIVE,
    P_STALL_NS,
    P_SWAP_FREE,
    Z_BOOST,
    Z_FREE,
    Z_MANAGED,
    Z_WMARK_HIGH,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.numa import next_node
from hostsim.mm.physmem import first_zone
from hostsim.mm.shrink import (
    SC_FORCE,
    SC_GOAL,
    SC_KSWAPD,
    SC_MAY_SWAP,
    SC_NODE,
    SC_ORDER,
    SC_PRIORITY,
    SC_RECLAIMED,
    SC_SCANNED,
    SC_TARGET,
    shrink_active_list,
    shrink_inactive_list,
)
from hostsim.mm.shrinker import do_shrink_slab
from hostsim.mm.swapout import end_writes
from hostsim.mm.tunables import T_SWAPPINESS
from hostsim.mm.vmstat import (
    ALLOCSTALL,
    KSWAPD_HIGH_WMARK_HIT_QUICKLY,
    PAGEOUTRUN,
)
from hostsim.mm.watermark import zone_watermark_ok

SWAP_CLUSTER_MAX: Final = 32  # include/linux/swap.h
DEF_PRIORITY: Final = 12  # include/linux/mmzone.h
MAX_RECLAIM_RETRIES: Final = 16  # mm/internal.h
PAGES_PER_GIB_SHIFT: Final = 18

SCAN_EQUAL: Final = 0
SCAN_FRACT: Final = 1
SCAN_ANON: Final = 2
SCAN_FILE: Final = 3


@kernel
def compact_gap(order: int) -> int:
    """Return the free pages that compaction wants beyond a mark (include/linux/compaction.h)."""
    return 2 << order


@kernel
def inactive_is_low(inactive: int, active: int) -> bool:
    """Tell whether an inactive list is too short beside its active one."""
    gib = (inactive + active) >> PAGES_PER_GIB_SHIFT
    ratio = int(math.sqrt(10.0 * gib)) if gib > 0 else 1
    return inactive * ratio < active


@kernel
def _low(mem: Memory, file: bool) -> bool:
    nid = mem.scan[SC_NODE]
    inactive = INACTIVE_FILE if file else INACTIVE_ANON
    return inactive_is_low(lru_size(mem, nid, inactive), lru_size(mem, nid, inactive + 1))


@kernel
def _balance(mem: Memory) -> int:
    """Choose how anonymous and file lists share the scan (SCAN_*)."""
    nid = mem.scan[SC_NODE]
    priority = mem.scan[SC_PRIORITY]
    if mem.scan[SC_MAY_SWAP] == 0 or mem.pool[P_SWAP_FREE] == 0:
        return SCAN_FILE
    if priority == 0 and mem.tunables[T_SWAPPINESS] > 0:
        return SCAN_EQUAL
    inactive_file = lru_size(mem, nid, INACTIVE_FILE)
    file = inactive_file + lru_size(mem, nid, ACTIVE_FILE)
    free = 0
    high = 0
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
        free += mem.zone[zone, Z_FREE]
        high += mem.zone[zone, Z_WMARK_HIGH] + mem.zone[zone, Z_BOOST]
    plenty = lru_size(mem, nid, INACTIVE_ANON) >> priority > 0
    if file + free <= high and plenty and not _low(mem, False):
        return SCAN_ANON
    if inactive_file >> priority > 0 and not _low(mem, True):
        return SCAN_FILE
    return SCAN_FRACT


@kernel
def get_scan_count(mem: Memory) -> None:
    """Set how many pages of each list a round scans (`SC_TARGET`)."""
    nid = mem.scan[SC_NODE]
    how = _balance(mem)
    total = mem.node[nid, N_COST_ANON] + mem.node[nid, N_COST_FILE]
    anon_cost = total + mem.node[nid, N_COST_ANON]
    file_cost = total + mem.node[nid, N_COST_FILE]
    total = anon_cost + file_cost
    swappiness = mem.tunables[T_SWAPPINESS]
    anon = swappiness * (total + 1) // (anon_cost + 1)
    both = anon + (200 - swappiness) * (total + 1) // (file_cost + 1)
    for lru in range(NR_LRU_LISTS):
        is_file = lru >= INACTIVE_FILE
        size = lru_size(mem, nid, lru)
        scan = size >> mem.scan[SC_PRIORITY]
        if how == SCAN_FRACT:
            scan = scan * ((both - anon) if is_file else anon) // max(both, 1)
        elif how != SCAN_EQUAL and is_file != (how == SCAN_FILE):
            scan = 0
        mem.scan[SC_TARGET + lru] = scan


@kernel
def _shrink_list(mem: Memory, lru: int, nr: int) -> int:
    """Scan up to ``nr`` pages of a list; return by how many its target falls."""
    if lru == ACTIVE_ANON or lru == ACTIVE_FILE:
        if _low(mem, lru == ACTIVE_FILE):
            shrink_active_list(mem, lru, nr)
        return nr
    scanned = shrink_inactive_list(mem, lru, nr)
    return nr if scanned >= nr else mem.scan[SC_TARGET + lru]


@kernel
def shrink_lruvec(mem: Memory) -> None:
    """Scan the lists by their targets until the goal is reached."""
    get_scan_count(mem)
    before = mem.scan[SC_RECLAIMED]
    proportional = mem.scan[SC_KSWAPD] == 0 and mem.scan[SC_PRIORITY] == DEF_PRIORITY
    first = 0
    for lru in range(NR_LRU_LISTS):
        first += mem.scan[SC_TARGET + lru]
    adjusted = False
    while first > 0:
        for lru in range(NR_LRU_LISTS):
            target = mem.scan[SC_TARGET + lru]
            if target > 0:
                mem.scan[SC_TARGET + lru] -= _shrink_list(mem, lru, min(target, SWAP_CLUSTER_MAX))
        anon = mem.scan[SC_TARGET + INACTIVE_ANON]
        file = mem.scan[SC_TARGET + INACTIVE_FILE]
        if anon + file + mem.scan[SC_TARGET + ACTIVE_FILE] <= 0:
            break
        if mem.scan[SC_RECLAIMED] - before < mem.scan[SC_GOAL] or proportional or adjusted:
            continue
        anon += mem.scan[SC_TARGET + ACTIVE_ANON]
        file += mem.scan[SC_TARGET + ACTIVE_FILE]
        if anon <= 0 or file <= 0:
            break
        _even_out(mem, anon, file)
        adjusted = True
    if mem.scan[SC_MAY_SWAP] != 0 and mem.pool[P_SWAP_FREE] > 0 and _low(mem, False):
        shrink_active_list(mem, ACTIVE_ANON, SWAP_CLUSTER_MAX)


@kernel
def _even_out(mem: Memory, anon: int, file: int) -> None:
    """Stop scanning the side that has less left, and the other where it has had its share."""
    nid = mem.scan[SC_NODE]
    less = INACTIVE_ANON if file > anon else INACTIVE_FILE
    more = INACTIVE_FILE if file > anon else INACTIVE_ANON
    size = lru_size(mem, nid, less) + lru_size(mem, nid, less + 1) + 1
    percent = min(min(anon, file) * 100 // size, 100)
    for lru in range(2):
        mem.scan[SC_TARGET + less + lru] = 0
        whole = lru_size(mem, nid, more + lru) >> mem.scan[SC_PRIORITY]
        done = whole - mem.scan[SC_TARGET + more + lru]
        mem.scan[SC_TARGET + more + lru] = max(whole * (100 - percent) // 100 - done, 0)


@kernel
def _suitable_for_compaction(mem: Memory) -> bool:
    """Tell whether some zone of the node could now be compacted for the order, or needs not be."""
    nid = mem.scan[SC_NODE]
    order = mem.scan[SC_ORDER]
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
        if mem.zone[zone, Z_MANAGED] == 0:
            continue
        if zone_watermark_ok(mem, zone, order, mem.zone[zone, Z_WMARK_MIN]):
            return True
        mark = mem.zone[zone, Z_WMARK_LOW if order > COSTLY_ORDER else Z_WMARK_MIN]
        if zone_watermark_ok(mem, zone, 0, mark + compact_gap(order)):
            return True
    return False


@kernel
def shrink_node(mem: Memory, nid: int) -> None:
    """Reclaim one round of a node; for a high order go on until compaction has enough room."""
    mem.scan[SC_NODE] = nid
    compaction_mode = mem.scan[SC_ORDER] > 0 and (
        mem.scan[SC_ORDER] > COSTLY_ORDER or mem.scan[SC_PRIORITY] < DEF_PRIORITY - 2
    )
    start = mem.scan[SC_RECLAIMED]
    while True:
        before = mem.scan[SC_RECLAIMED]
        shrink_lruvec(mem)
        do_shrink_slab(mem, mem.scan[SC_PRIORITY])
        if not compaction_mode or mem.scan[SC_RECLAIMED] == before:
            break
        if _suitable_for_compaction(mem):
            break
        inactive = lru_size(mem, nid, INACTIVE_FILE)
        if mem.pool[P_SWAP_FREE] > 0:
            inactive += lru_size(mem, nid, INACTIVE_ANON)
        if inactive <= compact_gap(mem.scan[SC_ORDER]):
            break
    if mem.scan[SC_RECLAIMED] > start:
        mem.node[nid, N_KSWAPD_FAILURES] = 0


@kernel
def _begin(mem: Memory, order: int, goal: int, kswapd: bool, may_swap: bool) -> None:
    """Set up the scan control of a reclaim."""
    end_writes(mem)
    mem.scan[SC_PRIORITY] = DEF_PRIORITY
    mem.scan[SC_KSWAPD] = 1 if kswapd else 0
    mem.scan[SC_MAY_SWAP] = 1 if may_swap else 0
    mem.scan[SC_GOAL] = goal
    mem.scan[SC_RECLAIMED] = 0
    mem.scan[SC_SCANNED] = 0
    mem.scan[SC_ORDER] = order
    mem.scan[SC_FORCE] = 0


@kernel
def compaction_ready(mem: Memory, nid: int, order: int) -> int:
    """Return in how many zones of a node compaction can make an order without any reclaim.

    Zones that are not there count.
    """
    ready = 0
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
        mark = mem.zone[zone, Z_WMARK_HIGH] + compact_gap(order)
        ready += mem.zone[zone, Z_MANAGED] == 0 or (
            zone_watermark_ok(mem, zone, order, mem.zone[zone, Z_WMARK_MIN])
            or zone_watermark_ok(mem, zone, 0, mark)
        )
    return ready


@kernel
def _shrink_zones(mem: Memory, order: int, nodes: int) -> bool:
    """Reclaim a round of every node that may serve a request; tell whether a zone was left alone.

    A costly order leaves zones to compaction where that has room enough.
    """
    left = False
    nid = mem.pool[P_NODE]
    for _ in range(len(mem.node)):
        if nodes >> nid & 1:
            zones = ZONE_NORMAL + nid + 1 - first_zone(nid)
            absent = 0
            for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
                absent += mem.zone[zone, Z_MANAGED] == 0
            ready = compaction_ready(mem, nid, order) if order > COSTLY_ORDER else absent
            if ready < zones:
                shrink_node(mem, nid)
            left = left or ready > absent
        nid = next_node(mem, nid)
    return left


@kernel
def try_to_free_pages(mem: Memory, order: int, nodes: int) -> int:
    """Reclaim for an allocation; return how many pages were freed, 1 if it left all to compaction.

    Parameters
    ----------
    nodes
        The nodes that may serve the request, a bit each.
    """
    mem.vmstat[ALLOCSTALL] += 1
    started = mem.pool[P_COST_NS]
    _begin(mem, order, SWAP_CLUSTER_MAX, False, True)
    freed = 0
    for priority in range(DEF_PRIORITY, -1, -1):
        mem.scan[SC_PRIORITY] = priority
        mem.scan[SC_SCANNED] = 0
        if _shrink_zones(mem, order, nodes):
            freed = 1
            break
        if mem.scan[SC_RECLAIMED] >= SWAP_CLUSTER_MAX:
            break
    mem.pool[P_STALL_NS] += mem.pool[P_COST_NS] - started
    return max(mem.scan[SC_RECLAIMED], freed)


@kernel
def pgdat_balanced(mem: Memory, nid: int, order: int) -> bool:
    """Tell whether some zone of a node is above its high watermark for an order."""
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
        if mem.zone[zone, Z_MANAGED] == 0:
            continue
        if zone_watermark_ok(mem, zone, order, mem.zone[zone, Z_WMARK_HIGH]):
            return True
    return False


@kernel
def _boost(mem: Memory, nid: int) -> int:
    """Return by how much the watermarks of a node's zones are boosted."""
    boost = 0
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
        boost += mem.zone[zone, Z_BOOST]
    return boost


@kernel
def balance_pgdat(mem: Memory, nid: int, order: int) -> int:
    """Reclaim until the node is balanced; return the order that was kept up to the end.

    While watermarks are boosted and the node is balanced without the boost, only clean pages of
    the page cache are reclaimed, and only at mild priorities.
    """
    mem.vmstat[PAGEOUTRUN] += 1
    mem.node[nid, N_PAGEOUTRUN] += 1
    boosted = _boost(mem, nid)
    boost = boosted
    mem.pool[P_RECLAIM_ACTIVE] = nid + 1
    _begin(mem, order, 0, True, boost == 0)
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
        if mem.zone[zone, Z_MANAGED] > 0:
            mark = mem.zone[zone, Z_WMARK_HIGH] + mem.zone[zone, Z_BOOST]
            mem.scan[SC_GOAL] += max(mark, SWAP_CLUSTER_MAX)
    while mem.scan[SC_PRIORITY] >= 1:
        balanced = pgdat_balanced(mem, nid, mem.scan[SC_ORDER])
        if not balanced and boost > 0:
            boost = 0
            mem.scan[SC_PRIORITY] = DEF_PRIORITY
            continue
        if balanced and boost == 0:
            break
        mem.scan[SC_MAY_SWAP] = 1 if boost == 0 else 0
        raise_priority = not (boost > 0 and mem.scan[SC_PRIORITY] == DEF_PRIORITY - 2)
        before = mem.scan[SC_RECLAIMED]
        mem.scan[SC_SCANNED] = 0
        shrink_node(mem, nid)
        freed = mem.scan[SC_RECLAIMED] - before
        if mem.scan[SC_ORDER] > 0 and mem.scan[SC_RECLAIMED] >= compact_gap(mem.scan[SC_ORDER]):
            mem.scan[SC_ORDER] = 0
        if mem.scan[SC_SCANNED] >= mem.scan[SC_GOAL]:
            raise_priority = False
        boost -= min(boost, freed)
        if boost > 0 and freed == 0:
            mem.node[nid, N_KSWAPD_FAILURES] += mem.scan[SC_RECLAIMED] == 0
            break
        if raise_priority or freed == 0:
            mem.scan[SC_PRIORITY] -= 1
    if mem.scan[SC_RECLAIMED] == 0 and mem.scan[SC_PRIORITY] < 1:
        mem.node[nid, N_KSWAPD_FAILURES] += 1
    mem.pool[P_RECLAIM_ACTIVE] = 0
    return mem.scan[SC_ORDER]


@kernel
def run_kswapd(mem: Memory, nid: int, order: int) -> None:
    """Let a node's kswapd run until it sleeps: balanced at order 0, or hopeless."""
    while True:
        boosted = _boost(mem, nid) > 0
        left = balance_pgdat(mem, nid, order)
        for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
            mem.zone[zone, Z_BOOST] = 0
        if boosted:
            wakeup_kcompactd(mem, nid, PAGEBLOCK_ORDER)
        if left < order:
            wakeup_kcompactd(mem, nid, order)
        order = 0
        if pgdat_balanced(mem, nid, 0) or mem.node[nid, N_KSWAPD_FAILURES] >= MAX_RECLAIM_RETRIES:
            break
        mem.vmstat[KSWAPD_HIGH_WMARK_HIT_QUICKLY] += 1
    mem.pool[P_BOOSTED] = 0
    for other in range(len(mem.node)):
        if _boost(mem, other) > 0:
            mem.pool[P_BOOSTED] = 1


@kernel
def wakeup_kswapd(mem: Memory, nid: int, order: int, can_reclaim: bool) -> None:
    """Ask a node's kswapd to bring it back above its high watermarks."""
    hopeless = mem.node[nid, N_KSWAPD_FAILURES] >= MAX_RECLAIM_RETRIES
    if hopeless or (pgdat_balanced(mem, nid, order) and _boost(mem, nid) == 0):
        if not can_reclaim:
            wakeup_kcompactd(mem, nid, order)
        return
    run_kswapd(mem, nid, order)


@kernel
def wake_all_kswapds(mem: Memory, order: int, can_reclaim: bool, nodes: int) -> None:
    """Ask the kswapds of all nodes that may serve a request, in the order of the zonelist."""
    nid = mem.pool[P_NODE]
    for _ in range(len(mem.node)):
        if nodes >> nid & 1:
            wakeup_kswapd(mem, nid, order, can_reclaim)
        nid = next_node(mem, nid)


@kernel
def wake_boosted(mem: Memory) -> None:
    """Ask the kswapds of nodes with boosted watermarks to bring them down again."""
    for nid in range(len(mem.node)):
        if _boost(mem, nid) > 0:
            wakeup_kswapd(mem, nid, 0, True)
