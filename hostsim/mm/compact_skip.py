"""Skip bits and cached positions of the scanners, when both begin anew.

Source: Linux v6.1 mm/compaction.c __reset_isolation_pfn, __reset_isolation_suitable.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import COSTLY_ORDER, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.compact_control import clear_pageblock_skip, get_pageblock_skip
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    NIL,
    Z_BLOCKSKIP_FLUSH,
    Z_CACHED_FREE,
    Z_CACHED_MIGRATE,
    Z_END,
    Z_INIT_FREE,
    Z_INIT_MIGRATE,
    Z_START,
    Memory,
)
from hostsim.mm.physmem import (
    PB_COMPOUND,
    PB_FREE9,
    PB_FREE10,
    PB_HUGE,
    PB_PARTIAL,
    PB_VIRGIN,
    get_pageblock_migratetype,
    is_free_block,
    pageblock_state,
)
from hostsim.mm.rmap import KIND_MASK, extents_of, folds, is_movable

SAMPLE_STEP: Final = 1 << COSTLY_ORDER  # pages between two samples of a pageblock


@kernel
def _sampled(mem: Memory, pb: int, source: bool, target: bool) -> bool:
    """Tell whether every eighth page of a pageblock shows one to move or one to move to."""
    state = pageblock_state(mem, pb)
    if state == PB_FREE9 or state == PB_FREE10 or (state == PB_VIRGIN and pb & 1 == 0):
        return target
    if target and state == PB_PARTIAL:
        for i in range(0, PAGEBLOCK_NR_PAGES, SAMPLE_STEP):
            if is_free_block(mem, int(mem.pb[pb].a), i, 0):
                return True
    if not source or state < PB_HUGE or state > PB_PARTIAL:
        return False
    if folds(mem, pb):
        return True
    x = extents_of(mem, pb)
    while x != NIL:
        pfn = int(mem.ext[x].pfn)
        first = (pfn + SAMPLE_STEP - 1) & ~(SAMPLE_STEP - 1)
        if is_movable(mem.ext[x].flags & KIND_MASK) and first < pfn + int(mem.ext[x].nr):
            return True
        x = int(mem.ext[x].next_b)
    return False


@kernel
def _reset_isolation_pfn(mem: Memory, pb: int, source: bool, target: bool) -> bool:
    """Clear a pageblock's skip bit if it may be a source or target; tell whether it may."""
    state = pageblock_state(mem, pb)
    if state == PB_HUGE or state == PB_COMPOUND:
        return False
    if source and target and not get_pageblock_skip(mem, pb):
        return True
    if not source and target and get_pageblock_migratetype(mem, pb) != MIGRATE_MOVABLE:
        return False
    if not _sampled(mem, pb, source, target):
        return False
    clear_pageblock_skip(mem, pb)
    return True


@kernel
def reset_isolation_suitable(mem: Memory, zone: int) -> None:
    """Clear a zone's skip bits and let both scanners begin anew, if a full run ended lately."""
    if mem.zone[zone, Z_BLOCKSKIP_FLUSH] == 0:
        return
    mem.zone[zone, Z_BLOCKSKIP_FLUSH] = 0
    migrate = mem.zone[zone, Z_START]
    free = mem.zone[zone, Z_END] - 1
    first_source = free
    last_target = migrate
    source_set = False
    target_set = False
    while migrate < free:
        if (
            _reset_isolation_pfn(mem, migrate >> PAGEBLOCK_ORDER, True, source_set)
            and migrate < first_source
        ):
            source_set = True
            first_source = migrate
            mem.zone[zone, Z_INIT_MIGRATE] = migrate
            mem.zone[zone, Z_CACHED_MIGRATE] = migrate
            mem.zone[zone, Z_CACHED_MIGRATE + 1] = migrate
        if (
            _reset_isolation_pfn(mem, free >> PAGEBLOCK_ORDER, target_set, True)
            and free > last_target
        ):
            target_set = True
            last_target = free
            mem.zone[zone, Z_INIT_FREE] = free
            mem.zone[zone, Z_CACHED_FREE] = free
        migrate += PAGEBLOCK_NR_PAGES
        free -= PAGEBLOCK_NR_PAGES
    if first_source >= last_target:
        mem.zone[zone, Z_CACHED_MIGRATE] = migrate
        mem.zone[zone, Z_CACHED_MIGRATE + 1] = migrate
        mem.zone[zone, Z_CACHED_FREE] = free
