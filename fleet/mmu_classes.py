"""The classes that a state of a guest's programs lies between, and its figures from theirs.

A state's figures are interpolated between the classes around it, linearly in each of footprint,
small share, side, page tables and what is remote. A class of one program is a number, so that what
is known of all of them is one array.

Simplified: figures between classes are interpolated, and a class of less than 1/64 is left out.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fleet.mmu_sample import (
    NR_S_FIGURES,
    PER_OCTAVE,
    S_EPT_CYCLES,
    S_EPT_READS,
    S_ERROR,
    S_GUEST_CYCLES,
    S_GUEST_READS,
    S_MISSES,
    S_MISSES_OF_OPERATION,
    S_RUN_CYCLES,
    SMALL,
    Class,
    Side,
)
from guestsim.behaviour import NR_FIGURES
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR
from hostsim.mm.mm_types import NIL
from hostsim.mmu.cost import Remote

# Columns of a state: how a guest's programs are mapped, in pages
ST_PAGES: Final = 0
ST_GUEST_HUGE: Final = 1
ST_HOST_HUGE: Final = 2
ST_BOTH_HUGE: Final = 3
ST_TABLES: Final = 4
ST_TABLES_HUGE: Final = 5
ST_REMOTE: Final = 6  # of 64 parts of the VM's memory, those on another node than its CPUs
ST_REMOTE_EPT: Final = 7  # of 64 parts of its EPT
NR_STATE: Final = 8

REMOTE_PARTS: Final = 64  # that a state's memory and EPT are divided in
LEAST_PAGES: Final = HPAGE_PMD_NR
LEAST_WEIGHT: Final = 1 / 64  # of a class around a state; less is left out
PPM: Final = 1_000_000

_NR_SIDES: Final = len(Side)
_NR_REMOTES: Final = 4  # bit 0: memory, bit 1: EPT
_PER_FOOTPRINT: Final = len(SMALL) * _NR_SIDES * 2 * _NR_REMOTES
_NR_FOOTPRINTS: Final = 40 * PER_OCTAVE  # up to 2**40 pages
NR_CLASSES: Final = _NR_FOOTPRINTS * _PER_FOOTPRINT  # of one program on one CPU
MOST_AROUND: Final = 2 * 2 * (_NR_SIDES - 1) * 2 * _NR_REMOTES  # a state has no native side, too

# What is known of a class
UNKNOWN: Final = 0
WANTED: Final = 1
KNOWN: Final = 2

# How a state is looked at
AS_IT_IS: Final = 0
ALL_HUGE: Final = 1  # huge pages on both sides, page tables too
NATIVE: Final = 2  # without a hypervisor, mapped as the guest maps it
ALL_LOCAL: Final = 3
_NR_VIEWS: Final = 4


def class_of(cpu: str, workload: str, number: int) -> Class:
    """Return the class of a program that has a number."""
    number, remote = divmod(number, _NR_REMOTES)
    number, huge = divmod(number, 2)
    number, side = divmod(number, _NR_SIDES)
    footprint, small = divmod(number, len(SMALL))
    far = Remote(bool(remote & 1), bool(remote & 2))
    return Class(cpu, workload, footprint, small, Side(side), bool(huge), far)


@inline_kernel
def _side_share(state: NDArray[np.int64], view: int, side: int) -> float:
    """Return which share of a state's small entries are small on that side alone, or on both."""
    if view == NATIVE:
        return 1.0 if side == Side.NATIVE else 0.0
    if view == ALL_HUGE or side == Side.NATIVE:
        return 0.0
    both = state[ST_BOTH_HUGE]
    small = float(max(max(state[ST_PAGES], 1) - both, 1))
    host = float(state[ST_GUEST_HUGE] - both) / small
    guest = float(state[ST_HOST_HUGE] - both) / small
    if side == Side.HOST:
        return host
    return guest if side == Side.GUEST else 1.0 - host - guest


@inline_kernel
def _remote_share(state: NDArray[np.int64], view: int, remote: int) -> float:
    """Return the share of what is remote: nothing, all memory, all of the EPT or both."""
    memory = float(state[ST_REMOTE]) / REMOTE_PARTS
    ept = float(state[ST_REMOTE_EPT]) / REMOTE_PARTS
    if view == ALL_LOCAL:
        memory = 0.0
    if view == ALL_LOCAL or view == NATIVE:
        ept = 0.0
    share = (memory if remote & 1 else 1.0 - memory) * (ept if remote & 2 else 1.0 - ept)
    return share if share > LEAST_WEIGHT else 0.0


@inline_kernel
def _small_share(state: NDArray[np.int64], view: int) -> float:
    """Return the share of a state's pages that have small TLB entries."""
    pages = max(state[ST_PAGES], 1)
    if view == ALL_HUGE:
        huge = pages
    else:
        huge = state[ST_GUEST_HUGE] if view == NATIVE else state[ST_BOTH_HUGE]
    return float(max(pages - huge, 0)) / float(pages)


@kernel
def classes_around(
    state: NDArray[np.int64], view: int, number: NDArray[np.int64], weight: NDArray[np.float64]
) -> int:
    """Write the classes that a state lies between, and their weights, which add up to one.

    Parameters
    ----------
    state
        (NR_STATE,)
    view
        How it is looked at.
    number, weight
        (MOST_AROUND,), written.

    Returns
    -------
    int
        How many classes there are; those of little weight are left out.
    """
    at = math.log2(float(max(max(state[ST_PAGES], 1), LEAST_PAGES))) * PER_OCTAVE
    below = math.floor(at)
    value = _small_share(state, view)
    edge = 0
    while value > SMALL[edge]:
        edge += 1
    upper = 1.0
    if value != SMALL[edge]:
        upper = (value - SMALL[edge - 1]) / (SMALL[edge] - SMALL[edge - 1])
    of_tables = 1.0
    if view != NATIVE:
        huge = state[ST_TABLES] if view == ALL_HUGE else state[ST_TABLES_HUGE]
        of_tables = float(huge) / float(max(state[ST_TABLES], 1))
    far = 0.0
    for remote in range(_NR_REMOTES):
        far += _remote_share(state, view, remote)
    nr = 0
    total = 0.0
    for footprint in range(below, below + 2):
        a = 1.0 - (at - below) if footprint == below else at - below
        for small in range(max(edge - 1, 0), edge + 1):
            b = a * (upper if small == edge else 1.0 - upper)
            if not b > LEAST_WEIGHT:
                continue
            for side in range(_NR_SIDES):
                c = _side_share(state, view, side)
                if view != NATIVE and SMALL[small] == 0.0:  # all entries are large on both sides
                    c = 1.0 if side == Side.GUEST else 0.0
                if not b * c > LEAST_WEIGHT:
                    continue
                for huge in range(1, -1, -1):
                    d = b * c * (of_tables if huge == 1 else 1.0 - of_tables)
                    if not d > LEAST_WEIGHT:
                        continue
                    for remote in range(_NR_REMOTES):
                        e = _remote_share(state, view, remote) / far
                        if e > 0.0:
                            key = (footprint * len(SMALL) + small) * _NR_SIDES + side
                            number[nr] = (2 * key + huge) * _NR_REMOTES + remote
                            weight[nr] = d * e
                            total += weight[nr]
                            nr += 1
    for i in range(nr):
        weight[i] /= total
    return nr


@kernel
def _mean_of_classes(
    state: NDArray[np.int64],
    view: int,
    known: NDArray[np.int8],
    samples: NDArray[np.float64],
    number: NDArray[np.int64],
    weight: NDArray[np.float64],
    mean: NDArray[np.float64],
) -> bool:
    """Write the mean of the samples around a state; False if one is wanted first."""
    nr = classes_around(state, view, number, weight)
    for figure in range(NR_S_FIGURES):
        mean[figure] = 0.0
    complete = True
    for i in range(nr):
        if known[number[i]] != KNOWN:
            known[number[i]] = WANTED
            complete = False
        for figure in range(NR_S_FIGURES):
            mean[figure] += weight[i] * samples[number[i], figure]
    return complete


@kernel
def _in_fixed_point(mean: NDArray[np.float64], out: NDArray[np.int64]) -> None:
    """Write figures as columns hold them: `hostsim.core.host_columns.MMU_COLUMNS`."""
    own = mean[AS_IT_IS]
    walks = own[S_MISSES] if own[S_MISSES] != 0.0 else 1.0
    of_operation = own[S_MISSES_OF_OPERATION] if own[S_MISSES_OF_OPERATION] != 0.0 else 1.0
    run = own[S_RUN_CYCLES]
    out[0] = np.rint(PPM * own[S_MISSES])
    out[1] = np.rint(PPM * own[S_ERROR])
    out[2] = np.rint(1000.0 * own[S_GUEST_READS] / walks)
    out[3] = np.rint(1000.0 * own[S_EPT_READS] / walks)
    out[4] = np.rint(1000.0 * own[S_GUEST_CYCLES] / of_operation)
    out[5] = np.rint(1000.0 * own[S_EPT_CYCLES] / of_operation)
    out[6] = np.rint(PPM * (own[S_GUEST_CYCLES] + own[S_EPT_CYCLES]) / run)
    out[7] = np.rint(PPM * run / mean[ALL_HUGE, S_RUN_CYCLES])
    out[8] = np.rint(PPM * run / mean[NATIVE, S_RUN_CYCLES])
    out[9] = np.rint(PPM * run / mean[ALL_LOCAL, S_RUN_CYCLES])


@kernel
def figures_of_states(
    states: NDArray[np.int64],
    program: NDArray[np.int64],
    known: NDArray[np.int8],
    samples: NDArray[np.float64],
    out: NDArray[np.int64],
    number: NDArray[np.int64],
    weight: NDArray[np.float64],
    mean: NDArray[np.float64],
) -> int:
    """Write the figures of the states whose classes are all known; mark the others wanted.

    Parameters
    ----------
    states
        (states, NR_STATE)
    program
        (states,) number of the program that each is of, NIL for none: its figures are 0.
    known, samples
        (programs, NR_CLASSES) and (programs, NR_CLASSES, NR_S_FIGURES).
    out
        (states, NR_FIGURES)
    number, weight, mean
        Work space: (MOST_AROUND,) twice, and (4, NR_S_FIGURES).

    Returns
    -------
    int
        How many states want a sample first.
    """
    waiting = 0
    for i in range(len(states)):
        for figure in range(NR_FIGURES):
            out[i, figure] = 0
        p = program[i]
        if p == NIL:
            continue
        complete = True
        local = states[i, ST_REMOTE] == 0 and states[i, ST_REMOTE_EPT] == 0
        for view in range(_NR_VIEWS):
            if view == ALL_LOCAL and local:
                mean[view, S_RUN_CYCLES] = mean[AS_IT_IS, S_RUN_CYCLES]  # all that is asked of it
            elif not _mean_of_classes(
                states[i], view, known[p], samples[p], number, weight, mean[view]
            ):
                complete = False
        if complete:
            _in_fixed_point(mean, out[i])
        else:
            waiting += 1
    return waiting


def new_work_space() -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the work space of `figures_of_states`."""
    return (
        np.zeros(MOST_AROUND, np.int64),
        np.zeros(MOST_AROUND),
        np.zeros((_NR_VIEWS, NR_S_FIGURES)),
    )


assert NR_FIGURES == 10, "a column a figure: _in_fixed_point"
