"""What guests use again of the memory that they have.

What a guest hands out is written once (`fleet.backing`).  From then on its host sees it used, or
not: that decides what a host that swaps takes, and what comes back.  Of every guest, a share of
its memory is used in every tick, and each part of the rest now and then.

Source: Weiner et al., TMO: Transparent Memory Offloading in Datacenters, ASPLOS 2022 (35 % of
memory is not used within five minutes, on average).
Simplified: memory is hot or cold by 2 MiB of guest-physical memory and stays so; what it holds
is read, all of it that is backed; wholly free pageblocks of the guest are left alone.
Simplified: without a swap area nothing on the host asks, and nothing is used again.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from guestsim.behaviour import (
    B_COLD,
    B_HOT,
    G_CLASS,
    G_KEY,
    G_MM,
    G_PAGES,
    G_STATE,
    NO_KERNEL,
    O_NR,
    O_START,
    O_WHERE,
    OP_USE,
    push,
)
from hostsim.core.byref import state_at
from hostsim.core.counter_rng import hash64, uniform
from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NS_PER_HOUR
from hostsim.ept import guest_access
from hostsim.mm.fault import FAULT_OK
from hostsim.mm.mm_types import P_NOW_NS, Memory
from hostsim.mm.mmap import W_NONE, W_ZERO, window_word
from hostsim.mm.physmem import PB_FREE10_TAIL, pageblock_state
from hostsim.mm.turn import TURN_WINDOWS

CHANCE: Final = 1 << 30  # of O_WHERE


@kernel
def push_use(
    guests: NDArray[np.int64],
    row: int,
    profiles: NDArray[np.float64],
    ops: NDArray[np.int64],
    nr: int,
    tick_ns: int,
    offset: int,
) -> int:
    """Append that a guest uses its memory for a tick; return the new number of operations."""
    rate = profiles[guests[row, G_CLASS], B_COLD] * float(tick_ns) / float(NS_PER_HOUR)
    chance = int((1.0 - np.exp(-rate)) * float(CHANCE))
    windows = (offset + guests[row, G_PAGES] + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER
    return push(ops, nr, row, OP_USE, chance, 0, windows)


@kernel
def _is_used(key: int, window: int, hot: float, tick_key: int, chance: int) -> bool:
    """Tell whether a guest uses 2 MiB of its memory in this tick."""
    if uniform(key, window, 7) < hot:
        return True
    return uniform(tick_key, window, 8) * float(CHANCE) < float(chance)


@kernel
def _is_in_use(host: Memory, guests: NDArray[np.int64], row: int, window: int) -> bool:
    """Tell whether a guest has anything in 2 MiB of its memory; the last one covers what follows.

    Of a VM without a kernel nobody knows better than that it has.
    """
    if guests[row, G_STATE] == NO_KERNEL:
        return True
    blocks = guests[row, G_PAGES] >> HPAGE_PMD_ORDER
    mem = state_at(host, guests[row, G_STATE])
    return bool(pageblock_state(mem, min(window, blocks - 1)) > PB_FREE10_TAIL)


@kernel
def use_again(
    host: Memory,
    guests: NDArray[np.int64],
    row: int,
    profiles: NDArray[np.float64],
    ops: NDArray[np.int64],
    i: int,
    offset: int,
) -> bool:
    """Let a guest use the next part of what it has; return whether the host's memory sufficed.

    Pages that the host swapped out come back.
    """
    mm = guests[row, G_MM]
    key = guests[row, G_KEY]
    hot = profiles[guests[row, G_CLASS], B_HOT]
    tick_key = hash64(key, host.pool[P_NOW_NS], 8)
    pages = offset + guests[row, G_PAGES]
    window = ops[i, O_START]
    left = ops[i, O_NR]
    for _ in range(min(left, TURN_WINDOWS)):
        word = window_word(host, mm, window)
        first = window << HPAGE_PMD_ORDER
        if (
            word != W_NONE
            and word != W_ZERO
            and _is_in_use(host, guests, row, window)
            and _is_used(key, window, hot, tick_key, ops[i, O_WHERE])
        ):
            if guest_access(host, mm, first, min(HPAGE_PMD_NR, pages - first), False) != FAULT_OK:
                break
        window += 1
    enough = bool(window - ops[i, O_START] == min(left, TURN_WINDOWS))
    ops[i, O_NR] = left - (window - ops[i, O_START])
    ops[i, O_START] = window
    return enough
