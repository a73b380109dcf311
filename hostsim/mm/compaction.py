"""Compaction: moving pages together so that free blocks of a high order appear.

Source: Linux v6.1 and v6.12 mm/compaction.c.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.mm.mm_types import Memory

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


@kernel
def try_to_compact_pages(mem: Memory, order: int, migratetype: int, mode: int) -> int:
    """Compact zones for an allocation; return a COMPACT_* result."""
    return COMPACT_SKIPPED
