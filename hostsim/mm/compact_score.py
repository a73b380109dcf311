"""How fragmented a node is, which proactive compaction goes by.

Source: Linux v6.1 mm/compaction.c fragmentation_score_zone, fragmentation_score_node,
fragmentation_score_wmark.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import MAX_PAGE_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import NR_PCP_TYPES, Z_END, Z_FREE, Z_START, ZONE_NORMAL, Memory
from hostsim.mm.physmem import first_zone
from hostsim.mm.tunables import T_COMPACTION_PROACTIVENESS

PROACTIVE_LOW_LEAST: Final = 5
PROACTIVE_LEEWAY: Final = 10


@inline_kernel
def _suitable(mem: Memory, zone: int) -> int:
    """Return the pages of a zone's free memory that are in blocks of a huge page or larger."""
    blocks = 0
    for migratetype in range(NR_PCP_TYPES):
        blocks += mem.nr_free[zone, migratetype, PAGEBLOCK_ORDER]
        blocks += 2 * mem.nr_free[zone, migratetype, MAX_PAGE_ORDER]
    return int(blocks) << PAGEBLOCK_ORDER


@kernel
def fragmentation_score_zone(mem: Memory, zone: int) -> int:
    """Return the share of a zone's free memory that is in no block of a huge page, in percent."""
    free = mem.zone[zone, Z_FREE]
    if free == 0:
        return 0
    return (free - _suitable(mem, zone)) * 100 // free


@kernel
def any_zone_above(mem: Memory, nid: int, score: int) -> bool:
    """Tell whether a zone of a node is more fragmented than that; if none is, nor is the node."""
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
        free = mem.zone[zone, Z_FREE]
        if (free - _suitable(mem, zone)) * 100 >= (score + 1) * free and free > 0:
            return True
    return False


@kernel
def fragmentation_score_node(mem: Memory, nid: int) -> int:
    """Return the fragmentation of a node's zones, each weighted by its size."""
    present = 0
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
        present += mem.zone[zone, Z_END] - mem.zone[zone, Z_START]
    score = 0
    for zone in range(first_zone(nid), ZONE_NORMAL + nid + 1):
        pages = mem.zone[zone, Z_END] - mem.zone[zone, Z_START]
        score += pages * fragmentation_score_zone(mem, zone) // (present + 1)
    return score


@inline_kernel
def proactive_low(mem: Memory) -> int:
    """Return the fragmentation at which proactive compaction is content."""
    return max(100 - mem.tunables[T_COMPACTION_PROACTIVENESS], PROACTIVE_LOW_LEAST)


@inline_kernel
def proactive_high(mem: Memory) -> int:
    """Return the fragmentation above which proactive compaction begins."""
    return min(proactive_low(mem) + PROACTIVE_LEEWAY, 100)
