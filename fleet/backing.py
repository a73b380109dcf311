"""Where guests meet their host: EPT violations, and memory that comes back.

A frame that a guest hands out and writes to must be backed: the host faults on that page of the
VM's process.  What a guest reports free or gives to its balloon, QEMU discards.

Source: Linux v6.1 arch/x86/kvm/mmu/mmu.c direct_page_fault; QEMU 8.2
hw/virtio/virtio-balloon.c (virtio_balloon_handle_output, virtio_balloon_handle_report).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fleet.use import push_use, use_again
from guestsim.balloon import inflate
from guestsim.behaviour import (
    G_BALLOONED,
    G_MM,
    G_NEXT_TICK,
    G_REPORTED,
    G_STATE,
    G_VM,
    O_KIND,
    O_NR,
    O_ROW,
    O_START,
    O_WHERE,
    OP_HOST,
    OP_INFLATE,
    OP_REPORT,
    OP_USE,
    decide,
)
from guestsim.reporting import R_AGAIN, report_pass
from guestsim.turns import guest_turn
from hostsim.core.byref import state_at
from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_ORDER
from hostsim.ept import guest_access
from hostsim.host import access_turn
from hostsim.mm.fault import FAULT_OK
from hostsim.mm.mm_types import (
    MM_RAM_ANON,
    NIL,
    P_RESUME,
    P_SWAP_SLOTS,
    P_TOUCHED,
    PCP_COUNT,
    Z_FREE,
    Z_MANAGED,
    Memory,
)
from hostsim.mm.mmap import W_NONE, window_word
from hostsim.mm.zap import discard_range

# Columns of the progress of `run_turns`
T_NR: Final = 0  # guests with operations left
T_AT: Final = 1  # whose turn it is
T_ROW: Final = 2  # guest whose frames are still to be backed, or NIL
NR_T_FIELDS: Final = 3


@kernel
def back_frames(
    host: Memory, guests: NDArray[np.int64], row: int, mem: Memory, offset: int
) -> bool:
    """Let the host back all frames that a guest has written; return whether memory sufficed."""
    mm = guests[row, G_MM]
    nr = mem.pool[P_TOUCHED]
    for i in range(nr):
        page = offset + mem.touched[i, 0]
        pages = mem.touched[i, 1]
        if guest_access(host, mm, page, pages, True) != FAULT_OK:
            done = host.pool[P_RESUME] - page
            for j in range(i, nr):
                mem.touched[j - i, 0] = mem.touched[j, 0]
                mem.touched[j - i, 1] = mem.touched[j, 1]
            mem.touched[0, 0] += done
            mem.touched[0, 1] -= done
            mem.pool[P_TOUCHED] = nr - i
            return False
    mem.pool[P_TOUCHED] = 0
    return True


@kernel
def _is_backed(host: Memory, mm: int, page: int, pages: int) -> bool:
    """Tell whether any page of a range of a process is there."""
    first = page >> HPAGE_PMD_ORDER
    for window in range(first, ((page + pages - 1) >> HPAGE_PMD_ORDER) + 1):
        if window_word(host, mm, window) != W_NONE:
            return True
    return False


@kernel
def discard_reported(
    host: Memory, guests: NDArray[np.int64], row: int, mem: Memory, offset: int, nr: int
) -> int:
    """Let QEMU discard the blocks of a pass; return of how many it had any page."""
    mm = guests[row, G_MM]
    discards = 0
    before = host.mm[mm, MM_RAM_ANON]
    for i in range(nr):
        page = offset + mem.touched[i, 0]
        pages = mem.touched[i, 1]
        if _is_backed(host, mm, page, pages):
            here = host.mm[mm, MM_RAM_ANON]
            discard_range(host, mm, page, pages)
            if host.mm[mm, MM_RAM_ANON] < here:
                discards += 1
    guests[row, G_REPORTED] += before - host.mm[mm, MM_RAM_ANON]
    return discards


@kernel
def report_free(
    host: Memory,
    guests: NDArray[np.int64],
    row: int,
    mem: Memory,
    offset: int,
    lowest: int,
    passes: int,
) -> None:
    """Discard what a guest's kernel reports free in so many passes."""
    again = True
    while again and passes > 0:
        nr = report_pass(mem, lowest)
        again = bool(mem.scratch[R_AGAIN] != 0)
        discard_reported(host, guests, row, mem, offset, nr)
        passes -= 1


@kernel
def _take_balloon(
    host: Memory, guests: NDArray[np.int64], row: int, mem: Memory, offset: int, nr: int
) -> int:
    """Let a guest inflate its balloon by a batch and discard it; return the batch."""
    taken = inflate(mem, guests, row, nr)
    for i in range(mem.pool[P_TOUCHED] if taken > 0 else 0):
        discard_range(host, guests[row, G_MM], offset + mem.touched[i, 0], mem.touched[i, 1])
    mem.pool[P_TOUCHED] = 0
    return taken


@kernel
def _turn(
    host: Memory,
    guests: NDArray[np.int64],
    profiles: NDArray[np.float64],
    ops: NDArray[np.int64],
    i: int,
    offset: int,
) -> bool:
    """Carry out the next part of an operation; return whether the host's memory sufficed."""
    row = ops[i, O_ROW]
    kind = ops[i, O_KIND]
    if guests[row, G_VM] < 0 or ops[i, O_NR] <= 0:
        ops[i, O_NR] = 0
        return True
    if kind == OP_HOST:
        mm = guests[row, G_MM]
        pages, enough = access_turn(host, mm, ops[i, O_START], ops[i, O_NR])
        ops[i, O_START] += pages
        ops[i, O_NR] -= pages
        return enough
    if kind == OP_USE:
        return use_again(host, guests, row, profiles, ops, i, offset)
    mem = state_at(host, guests[row, G_STATE])
    if kind == OP_REPORT:
        report_free(host, guests, row, mem, offset, ops[i, O_WHERE], ops[i, O_NR])
        ops[i, O_NR] = 0
        return True
    if kind == OP_INFLATE:
        taken = _take_balloon(host, guests, row, mem, offset, ops[i, O_NR])
        ops[i, O_NR] = ops[i, O_NR] - taken if taken > 0 else 0
        return True
    guest_turn(mem, guests, row, ops, i)
    return back_frames(host, guests, row, mem, offset)


@kernel
def begin_turns(
    ops: NDArray[np.int64], nr: int, turns: NDArray[np.int64], progress: NDArray[np.int64]
) -> None:
    """Make a queue of each guest's operations, which stand together in ``ops``.

    A guest that ended meanwhile has nothing to do, and another one may be in its row.

    Parameters
    ----------
    turns
        (guests, 2): next operation, and one past the last.
    """
    groups = 0
    row = NIL
    for i in range(nr):
        if ops[i, O_NR] <= 0:
            continue
        if ops[i, O_ROW] != row:
            row = ops[i, O_ROW]
            turns[groups, 0] = i
            groups += 1
        turns[groups - 1, 1] = i + 1
    progress[T_NR] = groups
    progress[T_AT] = 0
    progress[T_ROW] = NIL


@kernel
def run_turns(
    host: Memory,
    guests: NDArray[np.int64],
    profiles: NDArray[np.float64],
    ops: NDArray[np.int64],
    turns: NDArray[np.int64],
    progress: NDArray[np.int64],
    offset: int,
) -> bool:
    """Carry out operations, a turn of each guest after the other.

    Returns
    -------
    bool
        False when the host ran out of memory: call again after a kill.
    """
    row = progress[T_ROW]
    if row != NIL:
        if guests[row, G_VM] >= 0:
            mem = state_at(host, guests[row, G_STATE])
            if not back_frames(host, guests, row, mem, offset):
                return False
        progress[T_ROW] = NIL
    while progress[T_NR] > 0:
        left = 0
        for group in range(progress[T_NR]):
            i = turns[group, 0]
            end = turns[group, 1]
            if group >= progress[T_AT]:
                if not _turn(host, guests, profiles, ops, i, offset):
                    _stop_at(turns, progress, group, left)
                    if ops[i, O_KIND] != OP_HOST and ops[i, O_KIND] != OP_USE:
                        progress[T_ROW] = ops[i, O_ROW]
                    return False
                while i < end and ops[i, O_NR] <= 0:
                    i += 1
            if i < end:
                turns[left, 0] = i
                turns[left, 1] = end
                left += 1
        progress[T_NR] = left
        progress[T_AT] = 0
    return True


@kernel
def _stop_at(turns: NDArray[np.int64], progress: NDArray[np.int64], group: int, left: int) -> None:
    """Close the gap behind the guests that still wait, so that a round can go on at ``group``."""
    progress[T_AT] = left
    for other in range(group, progress[T_NR]):
        turns[left, 0] = turns[other, 0]
        turns[left, 1] = turns[other, 1]
        left += 1
    progress[T_NR] = left


@kernel
def decide_one(
    host: Memory,
    guests: NDArray[np.int64],
    row: int,
    profiles: NDArray[np.float64],
    ops: NDArray[np.int64],
    nr: int,
    tick_ns: int,
    now_ns: int,
    wanted: int,
) -> int:
    """Let one guest decide what it does; return the number of operations with its own."""
    mem = state_at(host, guests[row, G_STATE])
    return decide(guests, row, mem, profiles, ops, nr, now_ns // tick_ns, tick_ns, now_ns, wanted)


@kernel
def balloon_target(host: Memory, guests: NDArray[np.int64], below: float) -> int:
    """Return how many pages the host wants of each balloon; negative: so many it gives back.

    It takes memory while less than a share of its own is free, and gives back from twice that
    share on.
    """
    balloons = 0
    for row in range(guests.shape[0]):
        if guests[row, G_VM] >= 0 and guests[row, G_BALLOONED] != 0:
            balloons += 1
    if balloons == 0:
        return 0
    free = 0
    managed = 0
    for zone in range(len(host.zone)):
        free += host.zone[zone, Z_FREE] + host.zone[zone, PCP_COUNT]
        managed += host.zone[zone, Z_MANAGED]
    low = int(below * float(managed))
    if free < low:
        return (low - free) // balloons + 1
    return -max(free - 2 * low, 0) // balloons


@kernel
def decide_all(
    host: Memory,
    guests: NDArray[np.int64],
    profiles: NDArray[np.float64],
    ops: NDArray[np.int64],
    tick_ns: int,
    now_ns: int,
    below: float,
    offset: int,
) -> int:
    """Let all guests of a host whose turn it is decide; return the number of operations."""
    nr = 0
    wanted = balloon_target(host, guests, below)
    swap = host.pool[P_SWAP_SLOTS] != 0  # without it nobody asks what was used lately
    for row in range(guests.shape[0]):
        if guests[row, G_VM] < 0:
            continue
        if guests[row, G_NEXT_TICK] <= now_ns // tick_ns:
            nr = decide_one(host, guests, row, profiles, ops, nr, tick_ns, now_ns, wanted)
        if swap:
            nr = push_use(guests, row, profiles, ops, nr, tick_ns, offset)
    return nr
