"""Ticks of one host: its guests, then its kernel, then a row of ``hosts``."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fleet.backing import begin_turns, decide_all, run_turns
from fleet.mmu_state import sum_figures
from guestsim.behaviour import (
    G_BALLOON,
    G_EFFECTIVE,
    G_GUEST_HUGE,
    G_PAGES,
    G_USED,
    G_VCPUS,
    G_VM,
    NR_FIGURES,
)
from hostsim.core.jit import kernel
from hostsim.host import kernel_tick
from hostsim.host_row import NR_ROW_HEAD, fill_host_row
from hostsim.mm.daemons import pass_tick
from hostsim.mm.mm_types import Memory
from hostsim.mm.slab import Slab

NR_ROW_TAIL: Final = 5 + NR_FIGURES  # columns of ``hosts`` that the guests fill: the last ones

# Columns of the progress of `run_ticks`
_TICKS_DONE: Final = 0
_PHASE: Final = 1  # of the tick under way
NR_PROGRESS: Final = 2


@kernel
def _sum_guests(guests: NDArray[np.int64], row: NDArray[np.int64], first: int) -> None:
    """Write what the guests of a host add to its row."""
    for guest in range(guests.shape[0]):
        if guests[guest, G_VM] < 0:
            continue
        row[2] += 1
        row[3] += guests[guest, G_VCPUS]
        row[4] += guests[guest, G_PAGES]
        row[first] += guests[guest, G_USED]
        row[first + 1] += guests[guest, G_GUEST_HUGE]
        row[first + 2] += guests[guest, G_EFFECTIVE]
        row[first + 3] += guests[guest, G_BALLOON]
    sum_figures(guests, row, first + 4)


@kernel
def run_ticks(
    mem: Memory,
    slab: Slab,
    guests: NDArray[np.int64],
    profiles: NDArray[np.float64],
    ops: NDArray[np.int64],
    turns: NDArray[np.int64],
    turn_progress: NDArray[np.int64],
    rows: NDArray[np.int64],
    progress: NDArray[np.int64],
    births: NDArray[np.float64],
    begin_ns: int,
    tick_ns: int,
    offset: int,
    balloon_below: float,
    key: int,
    host_id: int,
) -> int:
    """Advance a host by ``len(rows)`` ticks: guests, then the kernel, then the row.

    Parameters
    ----------
    progress
        Zeros to begin; keeps where it stopped when memory ran out.
    begin_ns
        Time at which the first tick begins.
    offset
        Page of QEMU's address space at which guest RAM begins.
    balloon_below
        Share of free memory under which the host inflates balloons.

    Returns
    -------
    int
        0 when done, or the time at which memory ran out; call again after a kill.
    """
    while progress[_TICKS_DONE] < rows.shape[0]:
        end_ns = begin_ns + (progress[_TICKS_DONE] + 1) * tick_ns
        tick = end_ns // tick_ns
        if progress[_PHASE] == 0:
            pass_tick(mem, end_ns)
            nr = decide_all(mem, guests, profiles, ops, tick_ns, end_ns, balloon_below, offset)
            begin_turns(ops, nr, turns, turn_progress)
            progress[_PHASE] = 1
        if progress[_PHASE] == 1:
            if not run_turns(mem, guests, profiles, ops, turns, turn_progress, offset):
                return end_ns
            progress[_PHASE] = 2
            if not kernel_tick(mem, slab, tick, tick_ns, births, key):
                return end_ns
        row = rows[progress[_TICKS_DONE]]
        for column in range(rows.shape[1]):
            row[column] = 0
        row[0] = end_ns
        row[1] = host_id
        _sum_guests(guests, row, rows.shape[1] - NR_ROW_TAIL)
        fill_host_row(mem, row, mem.scratch, NR_ROW_HEAD)
        progress[_PHASE] = 0
        progress[_TICKS_DONE] += 1
    return 0
