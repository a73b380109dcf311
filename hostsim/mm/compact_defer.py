"""Deferral: a zone where compaction failed is left alone, twice as often each time.

Source: Linux v6.1 mm/compaction.c defer_compaction, compaction_deferred, compaction_defer_reset,
compaction_restarting.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.mm.mm_types import (
    Z_BLOCKSKIP_FLUSH,
    Z_COMPACT_CONSIDERED,
    Z_COMPACT_DEFER_SHIFT,
    Z_COMPACT_ORDER_FAILED,
    Memory,
)

COMPACT_MAX_DEFER_SHIFT: Final = 6


@kernel
def defer_compaction(mem: Memory, zone: int, order: int) -> None:
    """Skip the next attempts at a zone, twice as many as last time."""
    state = mem.zone[zone]
    state[Z_COMPACT_CONSIDERED] = 0
    shift = min(state[Z_COMPACT_DEFER_SHIFT] + 1, COMPACT_MAX_DEFER_SHIFT)
    state[Z_COMPACT_DEFER_SHIFT] = shift
    state[Z_COMPACT_ORDER_FAILED] = min(state[Z_COMPACT_ORDER_FAILED], order)


@kernel
def compaction_deferred(mem: Memory, zone: int, order: int) -> bool:
    """Count an attempt at a zone; tell whether it is skipped."""
    state = mem.zone[zone]
    if order < state[Z_COMPACT_ORDER_FAILED]:
        return False
    limit = 1 << state[Z_COMPACT_DEFER_SHIFT]
    state[Z_COMPACT_CONSIDERED] += 1
    if state[Z_COMPACT_CONSIDERED] >= limit:
        state[Z_COMPACT_CONSIDERED] = limit
        return False
    return True


@kernel
def compaction_defer_reset(mem: Memory, zone: int, order: int, allocated: bool) -> None:
    """Note that compaction made an order available, or that the allocation even succeeded."""
    state = mem.zone[zone]
    if allocated:
        state[Z_COMPACT_CONSIDERED] = 0
        state[Z_COMPACT_DEFER_SHIFT] = 0
        state[Z_BLOCKSKIP_FLUSH] = 0
    if order >= state[Z_COMPACT_ORDER_FAILED]:
        state[Z_COMPACT_ORDER_FAILED] = order + 1


@inline_kernel
def compaction_restarting(mem: Memory, zone: int, order: int) -> bool:
    """Tell whether a zone is tried again after the longest deferral."""
    state = mem.zone[zone]
    return (
        order >= state[Z_COMPACT_ORDER_FAILED]
        and state[Z_COMPACT_DEFER_SHIFT] == COMPACT_MAX_DEFER_SHIFT
        and state[Z_COMPACT_CONSIDERED] >= 1 << COMPACT_MAX_DEFER_SHIFT
    )
