"""kcompactd: compaction in the background, on demand and proactively.

Source: Linux v6.1 and v6.12 mm/compaction.c kcompactd_do_work, wakeup_kcompactd,
kcompactd_node_suitable, should_proactive_compact_node, proactive_compact_node, kcompactd.
Simplified: a run on demand is done when it begins, a proactive one when it ends.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import PAGEBLOCK_ORDER
from hostsim.mm.compact_control import (
    CC_FREE_SCANNED,
    CC_IGNORE_SKIP,
    CC_MIGRATE_SCANNED,
    CC_PROACTIVE,
    CC_WHOLE_ZONE,
    COMPACT_COMPLETE,
    COMPACT_PARTIAL_SKIPPED,
    COMPACT_SUCCESS,
    COMPACT_SYNC_LIGHT,
    WHOLE_ZONE,
)
from hostsim.mm.compaction import (
    COMPACT_MAX_DEFER_SHIFT,
    begin,
    compact_zone,
    compaction_defer_reset,
    compaction_deferred,
    compaction_suitable,
    defer_compaction,
    fragmentation_score_node,
    has_block,
    proactive_high,
)
from hostsim.mm.cost import C_MIGRATE_PAGE, C_SCAN_PAGE
from hostsim.mm.mm_types import (
    D_WAKE,
    DAEMON_KCOMPACTD,
    MIGRATE_UNMOVABLE,
    NR_TYPES,
    NR_ZONES,
    P_COST_NS,
    P_KCOMPACTD_ORDER,
    P_NOW_NS,
    Z_MANAGED,
    Z_WMARK_MIN,
    Memory,
)
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.tunables import (
    COMPACTION_2_6_38,
    COMPACTION_6_12,
    T_COMPACTION,
    T_COMPACTION_PROACTIVENESS,
)
from hostsim.mm.vmstat import (
    COMPACT_DAEMON_FREE_SCANNED,
    COMPACT_DAEMON_MIGRATE_SCANNED,
    COMPACT_DAEMON_WAKE,
    PAGEOUTRUN,
)

KC_RUNNING: Final = 1  # columns of Memory.daemon: 1 during a proactive run
KC_PAGEOUTRUN: Final = 2  # runs of kswapd when that began
CHECK_NS: Final = 500_000_000  # HPAGE_FRAG_CHECK_INTERVAL_MSEC
BACKED_OFF_NS: Final = CHECK_NS << COMPACT_MAX_DEFER_SHIFT  # after a run that did not help


@kernel
def wakeup_kcompactd(mem: Memory, order: int) -> None:
    """Ask kcompactd for an order; it wakes if some zone lacks it and could be compacted."""
    if mem.tunables[T_COMPACTION] == COMPACTION_2_6_38:
        return  # which has none
    wanted = max(order, mem.pool[P_KCOMPACTD_ORDER])
    for zone in range(NR_ZONES):
        if mem.zone[zone, Z_MANAGED] == 0:
            continue
        if has_block(mem, zone, wanted, mem.zone[zone, Z_WMARK_MIN]):
            continue
        if compaction_suitable(mem, zone, wanted, 0):
            mem.pool[P_KCOMPACTD_ORDER] = wanted
            if mem.daemon[DAEMON_KCOMPACTD, KC_RUNNING] == 0:
                mem.daemon[DAEMON_KCOMPACTD, D_WAKE] = mem.pool[P_NOW_NS] + 1
            return


@kernel
def kcompactd_do_work(mem: Memory) -> None:
    """Compact every zone that lacks the order asked for, and forget the request."""
    order = mem.pool[P_KCOMPACTD_ORDER]
    mem.pool[P_KCOMPACTD_ORDER] = 0
    mem.vmstat[COMPACT_DAEMON_WAKE] += 1
    for zone in range(NR_ZONES):
        if mem.zone[zone, Z_MANAGED] == 0 or compaction_deferred(mem, zone, order):
            continue
        if has_block(mem, zone, order, mem.zone[zone, Z_WMARK_MIN]):
            continue
        if not compaction_suitable(mem, zone, order, 0):
            continue
        begin(mem, order, MIGRATE_UNMOVABLE, COMPACT_SYNC_LIGHT)
        result = compact_zone(mem, zone, 0)
        if result == COMPACT_SUCCESS:
            compaction_defer_reset(mem, zone, order, False)
        elif result == COMPACT_PARTIAL_SKIPPED or result == COMPACT_COMPLETE:
            drain_zone_pages(mem, zone)
            defer_compaction(mem, zone, order)
        mem.vmstat[COMPACT_DAEMON_MIGRATE_SCANNED] += mem.compact[CC_MIGRATE_SCANNED]
        mem.vmstat[COMPACT_DAEMON_FREE_SCANNED] += mem.compact[CC_FREE_SCANNED]


@kernel
def should_proactive_compact_node(mem: Memory) -> bool:
    """Tell whether the node is so fragmented that kcompactd acts unasked."""
    if mem.tunables[T_COMPACTION_PROACTIVENESS] == 0:
        return False
    return fragmentation_score_node(mem) > proactive_high(mem)


@kernel
def proactive_compact_node(mem: Memory) -> bool:
    """Compact all zones until they are less fragmented; tell whether the node's score fell."""
    before = fragmentation_score_node(mem)
    for zone in range(NR_ZONES):
        if mem.zone[zone, Z_MANAGED] == 0:
            continue
        begin(mem, WHOLE_ZONE, MIGRATE_UNMOVABLE, COMPACT_SYNC_LIGHT)
        mem.compact[CC_IGNORE_SKIP] = 1
        mem.compact[CC_WHOLE_ZONE] = 1
        mem.compact[CC_PROACTIVE] = 1
        compact_zone(mem, zone, 0)
        if mem.tunables[T_COMPACTION] == COMPACTION_6_12:  # 6.1 counts only work on demand
            mem.vmstat[COMPACT_DAEMON_MIGRATE_SCANNED] += mem.compact[CC_MIGRATE_SCANNED]
            mem.vmstat[COMPACT_DAEMON_FREE_SCANNED] += mem.compact[CC_FREE_SCANNED]
    return fragmentation_score_node(mem) < before


@kernel
def proactive_check(mem: Memory) -> int:
    """Let kcompactd judge the node when its timer runs out; return nanoseconds to the next time."""
    if should_proactive_compact_node(mem) and not proactive_compact_node(mem):
        return BACKED_OFF_NS
    return CHECK_NS


@kernel
def arm_kcompactd(mem: Memory) -> None:
    """Set kcompactd's timer if the next check would find something to do.

    A check that finds nothing changes nothing, so that the timer need not run for it.
    """
    if mem.daemon[DAEMON_KCOMPACTD, D_WAKE] == 0 and should_proactive_compact_node(mem):
        mem.daemon[DAEMON_KCOMPACTD, D_WAKE] = (mem.pool[P_NOW_NS] // CHECK_NS + 1) * CHECK_NS + 1


@kernel
def _price_ns(mem: Memory) -> int:
    """Return about what compacting all memory costs: half of what is small and free is filled."""
    small = 0
    managed = 0
    for zone in range(NR_ZONES):
        managed += mem.zone[zone, Z_MANAGED]
        for migratetype in range(NR_TYPES):
            for order in range(PAGEBLOCK_ORDER):
                small += mem.nr_free[zone, migratetype, order] << order
    return int(managed * mem.cost[C_SCAN_PAGE] + small // 2 * mem.cost[C_MIGRATE_PAGE])


@kernel
def kcompactd_step(mem: Memory) -> int:
    """Do what was asked for, or judge the node.

    A proactive run is paid for when it begins and done when that time is over: what others did
    meanwhile comes first, and what they asked for after it.  It comes to nothing if kswapd ran
    meanwhile.

    Returns
    -------
    int
        Nanoseconds until the next check, or -1 if nothing calls for one (`arm_kcompactd`).
    """
    own = mem.daemon[DAEMON_KCOMPACTD]
    if own[KC_RUNNING] == 0:
        if mem.pool[P_KCOMPACTD_ORDER] > 0:
            kcompactd_do_work(mem)
            return -1
        if not should_proactive_compact_node(mem):
            return -1
        own[KC_RUNNING] = 1
        own[KC_PAGEOUTRUN] = mem.vmstat[PAGEOUTRUN]
        mem.pool[P_COST_NS] += _price_ns(mem)
        return 0
    own[KC_RUNNING] = 0
    sleep_ns = BACKED_OFF_NS
    if own[KC_PAGEOUTRUN] == mem.vmstat[PAGEOUTRUN]:
        before = mem.pool[P_COST_NS]
        sleep_ns = proactive_check(mem)
        mem.pool[P_COST_NS] = before
    if mem.pool[P_KCOMPACTD_ORDER] > 0:
        return 0
    return -1 if sleep_ns == CHECK_NS else sleep_ns
