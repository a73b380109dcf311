"""Carrying out what guests decide: a turn of one guest's operation at a time.

Source: Linux v6.1 mm/vmscan.c (page cache gives way first), drivers/virtio/virtio_balloon.c
(the balloon before the OOM killer), mm/oom_kill.c.
Simplified: a guest's kswapd is done at once: before a turn that would leave less than the high
watermarks free, the oldest page cache goes, a sixteenth at a time.
"""

import numpy as np
from numpy.typing import NDArray

from guestsim.balloon import BALLOON_PAGES, deflate
from guestsim.behaviour import (
    G_BALLOON,
    G_KILLS,
    G_SLOT,
    NR_SLOTS,
    O_KIND,
    O_NR,
    O_START,
    O_WHERE,
    OP_BEGIN,
    OP_DAEMONS,
    OP_DEFLATE,
    OP_DROP,
    OP_EXIT,
    OP_FREE_SLOT,
    OP_READ,
    OP_TOUCH_SLOT,
)
from guestsim.daemons import TURN_RUNS, pass_time, start_clock
from guestsim.guest import MM_CACHE, free_room, start_process
from guestsim.pagecache import drop_cache, read_cache, reclaim_cache
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_ORDER
from hostsim.mm.mm_types import MM_ANON, MM_PGTABLES, NIL, Memory
from hostsim.mm.turn import TURN_WINDOWS, touch_turn
from hostsim.mm.zap import discard_range, exit_mm


@kernel
def _oom_kill(mem: Memory, guests: NDArray[np.int64], row: int) -> bool:
    """End the guest's largest process; return whether there was one."""
    worst = NIL
    points = 0
    for slot in range(NR_SLOTS):
        mm = guests[row, G_SLOT + 2 * slot]
        if mm != NIL and mem.mm[mm, MM_ANON] + mem.mm[mm, MM_PGTABLES] > points:
            worst = slot
            points = mem.mm[mm, MM_ANON] + mem.mm[mm, MM_PGTABLES]
    if worst == NIL:
        return False
    exit_mm(mem, guests[row, G_SLOT + 2 * worst])
    guests[row, G_SLOT + 2 * worst] = NIL
    guests[row, G_KILLS] += 1
    return True


@kernel
def make_room(mem: Memory, guests: NDArray[np.int64], row: int) -> bool:
    """Free memory of a guest that has run out of it; return whether there was any to free."""
    if mem.mm[MM_CACHE, MM_ANON] > 0:
        return reclaim_cache(mem, guests, row, 1) > 0
    if guests[row, G_BALLOON] > 0:
        return deflate(mem, guests, row, BALLOON_PAGES) > 0
    return _oom_kill(mem, guests, row)


@inline_kernel
def _process(guests: NDArray[np.int64], row: int, ops: NDArray[np.int64], i: int) -> int:
    """Return the process that an operation is about, or NIL."""
    kind = ops[i, O_KIND]
    if kind == OP_TOUCH_SLOT or kind == OP_FREE_SLOT or kind == OP_EXIT:
        return guests[row, G_SLOT + 2 * ops[i, O_WHERE]]
    return MM_CACHE


@kernel
def _touch(
    mem: Memory, guests: NDArray[np.int64], row: int, ops: NDArray[np.int64], i: int
) -> None:
    """Let a process write the next pages of an operation."""
    mm = _process(guests, row, ops, i)
    if mm == NIL:
        ops[i, O_NR] = 0
        return
    short = min(ops[i, O_NR], TURN_WINDOWS << HPAGE_PMD_ORDER) - free_room(mem)
    if short > 0:
        reclaim_cache(mem, guests, row, short)
    if ops[i, O_KIND] == OP_READ:
        pages, enough = read_cache(mem, guests, row, ops[i, O_NR])
    else:
        pages, enough = touch_turn(mem, mm, ops[i, O_START], ops[i, O_NR])
    ops[i, O_START] += pages
    ops[i, O_NR] -= pages
    if not enough and not make_room(mem, guests, row):
        ops[i, O_NR] = 0


@kernel
def guest_turn(
    mem: Memory, guests: NDArray[np.int64], row: int, ops: NDArray[np.int64], i: int
) -> None:
    """Carry out the next part of an operation of a guest.

    Parameters
    ----------
    mem
        The guest's memory.
    ops
        What is done is taken off ``ops[i, O_NR]``; 0 is done.
    """
    kind = ops[i, O_KIND]
    if kind == OP_TOUCH_SLOT or kind == OP_READ:
        _touch(mem, guests, row, ops, i)
        return
    if kind == OP_DAEMONS:
        start_clock(mem, ops[i, O_WHERE])
        ops[i, O_NR] = 0 if pass_time(mem, ops[i, O_START], TURN_RUNS) else 1
        return
    mm = _process(guests, row, ops, i)
    if kind == OP_BEGIN:
        slot = G_SLOT + 2 * ops[i, O_WHERE]
        guests[row, slot] = start_process(mem, ops[i, O_NR], 0, ops[i, O_START])
    elif kind == OP_DEFLATE:
        deflate(mem, guests, row, ops[i, O_NR])
    elif kind == OP_EXIT and mm != NIL:
        exit_mm(mem, mm)
        guests[row, G_SLOT + 2 * ops[i, O_WHERE]] = NIL
    elif kind == OP_FREE_SLOT and mm != NIL:
        discard_range(mem, mm, ops[i, O_START], ops[i, O_NR])
    elif kind == OP_DROP:
        drop_cache(mem, guests, row, ops[i, O_NR])
    ops[i, O_NR] = 0
