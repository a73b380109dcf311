"""kcompactd: compaction in the background, on demand and proactively.

Source: Linux v6.1 and v6.12 mm/compaction.c kcompactd_do_work, wakeup_kcompactd,
kcompactd_node_suitable, should_proactive_compact_node, proactive_compact_node, kcompactd.
Simplified: a run on demand is done when it begins, a proactive one a slice of time at once.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import NO_PFN, NS_PER_MS
from hostsim.mm.compact_control import (
    CC_FREE_PFN,
    CC_FREE_SCANNED,
    CC_IGNORE_SKIP,
    CC_MIGRATE_PFN,
    CC_MIGRATE_SCANNED,
    CC_PROACTIVE,
    CC_RESUME,
    CC_UNTIL,
    CC_WHOLE_ZONE,
    COMPACT_COMPLETE,
    COMPACT_CONTINUE,
    COMPACT_PARTIAL_SKIPPED,
    COMPACT_SUCCESS,
    COMPACT_SYNC_LIGHT,
    WHOLE_ZONE,
)
from hostsim.mm.compact_defer import (
    COMPACT_MAX_DEFER_SHIFT,
    compaction_defer_reset,
    compaction_deferred,
    defer_compaction,
)
from hostsim.mm.compact_score import any_zone_above, fragmentation_score_node, proactive_high
from hostsim.mm.compaction import begin, compact_zone, compaction_suitable, has_block
from hostsim.mm.mm_types import (
    D_WAKE,
    DAEMON_KCOMPACTD,
    MIGRATE_UNMOVABLE,
    N_KCOMPACTD_ORDER,
    N_PAGEOUTRUN,
    NIL,
    NR_DAEMONS,
    P_COST_NS,
    P_DAEMON_SCALE,
    P_NOW_NS,
    TIME_SCALE_ONE,
    Z_MANAGED,
    Z_WMARK_MIN,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.physmem import first_zone
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
)

KC_RUNNING: Final = 1  # columns of Memory.daemon: 1 during a proactive run
KC_PAGEOUTRUN: Final = 2  # runs of kswapd when that began
KC_SCORE: Final = 3  # the node's fragmentation then
KC_ZONE: Final = 4  # zone that it has come to
KC_MIGRATE_PFN: Final = 5  # where its scanners are in the zone; NO_PFN: at the ends
KC_FREE_PFN: Final = 6
SLICE_NS: Final = 4 * NS_PER_MS  # CFS, kernel/sched/fair.c: a tick at CONFIG_HZ=250
CHECK_NS: Final = 500_000_000  # HPAGE_FRAG_CHECK_INTERVAL_MSEC
BACKED_OFF_NS: Final = CHECK_NS << COMPACT_MAX_DEFER_SHIFT  # after a run that did not help


@inline_kernel
def kcompactd_of(nid: int) -> int:
    """Return the row of `Memory.daemon` of a node's kcompactd."""
    return DAEMON_KCOMPACTD if nid == 0 else NR_DAEMONS + nid - 1


@inline_kernel
def kcompactd_node(daemon: int) -> int:
    """Return the node of the kcompactd of a row of `Memory.daemon`, or NIL if it is of none."""
    if daemon == DAEMON_KCOMPACTD:
        return 0
    return daemon - NR_DAEMONS + 1 if daemon >= NR_DAEMONS else NIL


@kernel
def wakeup_kcompactd(mem: Memory, nid: int, order: int) -> None:
    """Ask kcompactd for an order; it wakes if some zone lacks it and could be compacted."""
    if mem.tunables[T_COMPACTION] == COMPACTION_2_6_38:
        return  # which has none
    wanted = max(order, mem.node[nid, N_KCOMPACTD_ORDER])
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
        if mem.zone[zone, Z_MANAGED] == 0:
            continue
        if has_block(mem, zone, wanted, mem.zone[zone, Z_WMARK_MIN]):
            continue
        if compaction_suitable(mem, zone, wanted, 0):
            mem.node[nid, N_KCOMPACTD_ORDER] = wanted
            if mem.daemon[kcompactd_of(nid), KC_RUNNING] == 0:
                mem.daemon[kcompactd_of(nid), D_WAKE] = mem.pool[P_NOW_NS] + 1
            return


@kernel
def kcompactd_do_work(mem: Memory, nid: int) -> None:
    """Compact every zone that lacks the order asked for, and forget the request."""
    order = mem.node[nid, N_KCOMPACTD_ORDER]
    mem.node[nid, N_KCOMPACTD_ORDER] = 0
    mem.vmstat[COMPACT_DAEMON_WAKE] += 1
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
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
def should_proactive_compact_node(mem: Memory, nid: int) -> bool:
    """Tell whether the node is so fragmented that kcompactd acts unasked."""
    if mem.tunables[T_COMPACTION_PROACTIVENESS] == 0:
        return False
    high = proactive_high(mem)
    return any_zone_above(mem, nid, high) and fragmentation_score_node(mem, nid) > high


@kernel
def _begin_proactive(mem: Memory, nid: int) -> None:
    """Begin a proactive run at the first zone."""
    own = mem.daemon[kcompactd_of(nid)]
    own[KC_RUNNING] = 1
    own[KC_PAGEOUTRUN] = mem.node[nid, N_PAGEOUTRUN]
    own[KC_SCORE] = fragmentation_score_node(mem, nid)
    own[KC_ZONE] = first_zone(nid)
    own[KC_MIGRATE_PFN] = NO_PFN


@kernel
def _proactive_slice(mem: Memory, nid: int, slice_ns: int) -> bool:
    """Compact the next zone, or go on with it, for about a cost; tell whether there is more."""
    own = mem.daemon[kcompactd_of(nid)]
    zone = own[KC_ZONE]
    if mem.zone[zone, Z_MANAGED] > 0:
        begin(mem, WHOLE_ZONE, MIGRATE_UNMOVABLE, COMPACT_SYNC_LIGHT)
        mem.compact[CC_IGNORE_SKIP] = 1
        mem.compact[CC_WHOLE_ZONE] = 1
        mem.compact[CC_PROACTIVE] = 1
        mem.compact[CC_UNTIL] = mem.pool[P_COST_NS] + slice_ns
        if own[KC_MIGRATE_PFN] != NO_PFN:
            mem.compact[CC_RESUME] = 1
            mem.compact[CC_MIGRATE_PFN] = own[KC_MIGRATE_PFN]
            mem.compact[CC_FREE_PFN] = own[KC_FREE_PFN]
        result = compact_zone(mem, zone, 0)
        if mem.tunables[T_COMPACTION] == COMPACTION_6_12:  # 6.1 counts only work on demand
            mem.vmstat[COMPACT_DAEMON_MIGRATE_SCANNED] += mem.compact[CC_MIGRATE_SCANNED]
            mem.vmstat[COMPACT_DAEMON_FREE_SCANNED] += mem.compact[CC_FREE_SCANNED]
        if result == COMPACT_CONTINUE:
            own[KC_MIGRATE_PFN] = mem.compact[CC_MIGRATE_PFN]
            own[KC_FREE_PFN] = mem.compact[CC_FREE_PFN]
            return True
    own[KC_MIGRATE_PFN] = NO_PFN
    own[KC_ZONE] = zone + 1
    return bool(zone < ZONE_NORMAL + nid)


@kernel
def proactive_compact_node(mem: Memory, nid: int) -> bool:
    """Compact all zones until they are less fragmented; tell whether the node's score fell."""
    _begin_proactive(mem, nid)
    while _proactive_slice(mem, nid, SLICE_NS):
        pass
    mem.daemon[kcompactd_of(nid), KC_RUNNING] = 0
    return bool(fragmentation_score_node(mem, nid) < mem.daemon[kcompactd_of(nid), KC_SCORE])


@kernel
def arm_kcompactd(mem: Memory) -> None:
    """Set the timer of each node's kcompactd if its next check would find something to do.

    A check that finds nothing changes nothing, so that the timer need not run for it.
    """
    for nid in range(len(mem.node)):
        own = mem.daemon[kcompactd_of(nid)]
        if own[D_WAKE] == 0 and should_proactive_compact_node(mem, nid):
            own[D_WAKE] = (mem.pool[P_NOW_NS] // CHECK_NS + 1) * CHECK_NS + 1


@kernel
def kcompactd_step(mem: Memory, nid: int) -> int:
    """Do what was asked for, or judge the node; a proactive run goes on a slice a step.

    What others ask for during a proactive run waits for its end.  The run ends early if kswapd
    ran meanwhile.

    Returns
    -------
    int
        Nanoseconds until the next check, or -1 if nothing calls for one (`arm_kcompactd`).
    """
    own = mem.daemon[kcompactd_of(nid)]
    if own[KC_RUNNING] == 0:
        if mem.node[nid, N_KCOMPACTD_ORDER] > 0:
            kcompactd_do_work(mem, nid)
            return -1
        if not should_proactive_compact_node(mem, nid):
            return -1
        _begin_proactive(mem, nid)
    vain = own[KC_PAGEOUTRUN] != mem.node[nid, N_PAGEOUTRUN]
    if not vain:
        slice_ns = SLICE_NS * TIME_SCALE_ONE // mem.pool[P_DAEMON_SCALE]
        if _proactive_slice(mem, nid, slice_ns):
            return 0
        vain = fragmentation_score_node(mem, nid) >= own[KC_SCORE]
    own[KC_RUNNING] = 0
    if mem.node[nid, N_KCOMPACTD_ORDER] > 0:
        return 0
    return BACKED_OFF_NS if vain else -1
