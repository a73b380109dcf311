"""The compaction in progress: what both scanners share.

The columns of `Memory.compact` are struct compact_control's fields, and behind them its lists.
Positions are frame numbers.

Source: Linux v6.1 and v6.12 mm/internal.h struct compact_control; mm/compaction.c
update_cached_migrate, compact_scanners_met, isolation_suitable.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import (
    NR_COMPACT,
    Z_CACHED_MIGRATE,
    Memory,
)
from hostsim.mm.pb_packed import LABEL_SKIP
from hostsim.mm.vmstat import COMPACT_ISOLATED

COMPACT_ASYNC: Final = 0  # include/linux/migrate_mode.h
COMPACT_SYNC_LIGHT: Final = 1
COMPACT_SYNC: Final = 2
COMPACT_SKIPPED: Final = 0  # include/linux/compaction.h enum compact_result
COMPACT_DEFERRED: Final = 1
COMPACT_CONTINUE: Final = 2
COMPACT_COMPLETE: Final = 3
COMPACT_PARTIAL_SKIPPED: Final = 4
COMPACT_CONTENDED: Final = 5
COMPACT_SUCCESS: Final = 6
COMPACT_CLUSTER_MAX: Final = 32  # include/linux/swap.h
WHOLE_ZONE: Final = -1  # order: compact all there is (is_via_compact_memory)

CC_ZONE: Final = 0
CC_ORDER: Final = 1  # wanted order, or WHOLE_ZONE
CC_TYPE: Final = 2  # migratetype of the request
CC_MODE: Final = 3  # COMPACT_ASYNC, COMPACT_SYNC_LIGHT, COMPACT_SYNC
CC_DIRECT: Final = 4  # 1: for an allocation that waits
CC_WHOLE_ZONE: Final = 5  # 1: began at the zone's ends
CC_IGNORE_SKIP: Final = 6
CC_IGNORE_SUITABLE: Final = 7  # 1: any pageblock is a target
CC_PROACTIVE: Final = 8
CC_MIGRATE_PFN: Final = 9
CC_FREE_PFN: Final = 10
CC_SEARCH_ORDER: Final = 11  # order at which the fast search for targets begins
CC_FAST_START: Final = 12  # lowest source that the fast search found; 0 none yet, NO_RESTART
CC_FAST_FAIL: Final = 13  # fast searches that failed in a row
CC_FINISH: Final = 14  # 1: isolate the whole rest of the pageblock
CC_NR_BLOCKS: Final = 15  # free blocks isolated and not yet cut into pages
CC_NR_FREE: Final = 16  # free pages isolated
CC_NR_MIGRATE: Final = 17  # pages isolated that are to move
CC_MIGRATE_SCANNED: Final = 18
CC_FREE_SCANNED: Final = 19
CC_NR_WANTED: Final = 20  # pages for which the free scanner looks for a place
CC_RESUME: Final = 21  # 1: the scanners' positions are given
CC_UNTIL: Final = 22  # cost at which the run pauses; 0: it does not
CC_SEEN_TAIL: Final = 24  # + order: blocks of the list's last pageblock that fast searches saw
CC_SEEN_HEAD: Final = 40  # + order: the same of its first pageblock
NR_CC: Final = 64

CC_BLOCKS: Final = NR_CC  # isolated free blocks: pfn * 16 + order
CC_FREE: Final = CC_BLOCKS + 2 * PAGEBLOCK_NR_PAGES  # isolated free pages, taken from the end
CC_SOURCE: Final = CC_FREE + 3 * PAGEBLOCK_NR_PAGES  # pages to move, from the end
CC_MAP: Final = CC_SOURCE + PAGEBLOCK_NR_PAGES  # extent of each frame of the source pageblock
assert CC_MAP + PAGEBLOCK_NR_PAGES <= NR_COMPACT

NO_RESTART: Final = -1  # CC_FAST_START: the linear scan has begun (ULONG_MAX)


@inline_kernel
def pageblock_start_pfn(pfn: int) -> int:
    """Return the first frame of a frame's pageblock."""
    return pfn & ~(PAGEBLOCK_NR_PAGES - 1)


@inline_kernel
def get_pageblock_skip(mem: Memory, pb: int) -> bool:
    """Tell whether compaction found nothing to do in a pageblock."""
    return mem.pb[pb].packed & LABEL_SKIP != 0


@inline_kernel
def set_pageblock_skip(mem: Memory, pb: int) -> None:
    """Remember that compaction found nothing to do in a pageblock."""
    mem.pb[pb].packed |= LABEL_SKIP


@inline_kernel
def clear_pageblock_skip(mem: Memory, pb: int) -> None:
    """Let compaction look at a pageblock again."""
    mem.pb[pb].packed &= ~LABEL_SKIP


@inline_kernel
def isolation_suitable(mem: Memory, pb: int) -> bool:
    """Tell whether a pageblock should be scanned."""
    return mem.compact[CC_IGNORE_SKIP] != 0 or not get_pageblock_skip(mem, pb)


@inline_kernel
def compact_scanners_met(mem: Memory) -> bool:
    """Tell whether the free scanner has reached the migrate scanner's pageblock."""
    return (
        mem.compact[CC_FREE_PFN] >> PAGEBLOCK_ORDER
        <= mem.compact[CC_MIGRATE_PFN] >> PAGEBLOCK_ORDER
    )


@kernel
def update_cached_migrate(mem: Memory, pfn: int) -> None:
    """Let later scans begin behind the pageblock of a frame."""
    zone = mem.compact[CC_ZONE]
    after = pageblock_start_pfn(pfn) + PAGEBLOCK_NR_PAGES
    if after > mem.zone[zone, Z_CACHED_MIGRATE]:
        mem.zone[zone, Z_CACHED_MIGRATE] = after
    if mem.compact[CC_MODE] != COMPACT_ASYNC and after > mem.zone[zone, Z_CACHED_MIGRATE + 1]:
        mem.zone[zone, Z_CACHED_MIGRATE + 1] = after


@inline_kernel
def freelist_scan_limit(mem: Memory) -> int:
    """Return how many blocks a fast search looks at: fewer after each one that failed."""
    return (COMPACT_CLUSTER_MAX >> min(63, mem.compact[CC_FAST_FAIL])) + 1


@kernel
def note_isolated(mem: Memory, pfn: int, order: int) -> None:
    """Add a free block that was taken off the lists to those that pages may move to."""
    mem.compact[CC_BLOCKS + mem.compact[CC_NR_BLOCKS]] = pfn * 16 + order
    mem.compact[CC_NR_BLOCKS] += 1
    mem.compact[CC_NR_FREE] += 1 << order
    mem.vmstat[COMPACT_ISOLATED] += 1 << order
