"""What address translation costs a guest, from samples that guests in like states share.

A state of a guest's programs (`fleet.mmu_state`) lies between classes (`fleet.mmu_classes`), each
of which is sampled once (`fleet.mmu_sample`).

Simplified: what lies on another node is the same share of a program's data, of its page tables and
of all the VM's memory, in 64ths rounded down.
"""

import functools
import time
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.mmu_board import Board
from fleet.mmu_classes import (
    KNOWN,
    NR_CLASSES,
    NR_STATE,
    REMOTE_PARTS,
    ST_REMOTE,
    ST_REMOTE_EPT,
    UNKNOWN,
    WANTED,
    class_of,
    figures_of_states,
    new_work_space,
)
from fleet.mmu_sample import NR_S_FIGURES, sample
from guestsim.behaviour import G_CLASS, G_FIGURE, G_PROGRAM, NR_FIGURES
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.vm_columns import VM_COLUMNS
from hostsim.mm.mm_types import NIL


class SampleUsage(NamedTuple):
    """What samples have cost a process."""

    samples: int  # simulated
    hits: int  # states whose figures were found from known samples
    cpu_s: float


NO_USAGE: Final = SampleUsage(0, 0, 0.0)


class Sampler:
    """Samples, remembered, and figures of states from them.

    Parameters
    ----------
    remember
        Off only to show that it changes nothing.
    """

    board: Board | None = None  # where other processes' samples stand

    def __init__(self, seed: int, accesses: int, *, remember: bool = True) -> None:
        self.seed, self.accesses, self.remember = seed, accesses, remember
        self._programs: list[tuple[str, str]] = []  # CPU and workload, by number
        self._known = np.zeros((1, NR_CLASSES), np.int8)
        self._samples = np.zeros((1, NR_CLASSES, NR_S_FIGURES))  # paid for where one is known
        self._work = new_work_space()
        self.samples = self.hits = 0
        self.cpu_s = 0.0

    def usage(self) -> SampleUsage:
        """Return what has been done so far."""
        return SampleUsage(self.samples, self.hits, self.cpu_s)

    def program(self, cpu: str, workload: str) -> int:
        """Return the number of a program on a CPU."""
        key = cpu, workload
        if key not in self._programs:
            self._programs.append(key)
            if len(self._programs) > len(self._known):
                self._make_room()
        return self._programs.index(key)

    def _make_room(self) -> None:
        """Make room for twice as many programs."""
        known = np.flatnonzero(self._known == KNOWN)
        samples = self._samples.reshape(-1, NR_S_FIGURES)[known]
        self._known = np.concatenate([self._known, np.zeros_like(self._known)])
        self._samples = np.zeros((len(self._known), NR_CLASSES, NR_S_FIGURES))
        self._samples.reshape(-1, NR_S_FIGURES)[known] = samples

    def figures(self, programs: NDArray[np.int64], states: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return figures in the order and units of the columns of ``vms``.

        Parameters
        ----------
        programs
            (states,) numbers that `program` returned, NIL for none: figures of 0.
        states
            (states, `fleet.mmu_classes.NR_STATE`)
        """
        begin_s = time.process_time()
        if not self.remember:
            self._known[:] = UNKNOWN
        out = np.empty((len(states), NR_FIGURES), np.int64)
        waiting = self._find(programs, states, out)
        self.hits += int(np.count_nonzero(programs != NIL)) - waiting
        if waiting:
            wanted = np.argwhere(self._known == WANTED)
            if self.board:
                wanted = np.roll(wanted, -int(self.board.first * len(wanted)), axis=0)
            for number, of_program in wanted.tolist():
                self._samples[number, of_program] = self._sample(number, of_program)
                self._known[number, of_program] = KNOWN
            self._find(programs, states, out)
        self.cpu_s += time.process_time() - begin_s
        return out

    def _sample(self, number: int, of_program: int) -> NDArray[np.float64]:
        """Return the sample of a class: another process's, or simulated now."""
        program = self._programs[number]
        found = self.board.find(program, of_program) if self.board else None
        if found is None:
            found = sample(class_of(*program, of_program), self.seed, self.accesses)
            self.samples += 1
            if self.board:
                self.board.put(program, of_program, found)
        return found

    def _find(
        self, programs: NDArray[np.int64], states: NDArray[np.int64], out: NDArray[np.int64]
    ) -> int:
        known, samples = self._known, self._samples
        return int(figures_of_states(states, programs, known, samples, out, *self._work))


_SAMPLERS: dict[tuple[int, int], Sampler] = {}


def shared_sampler(seed: int, accesses: int) -> Sampler:
    """Return the sampler that all hosts of this process share."""
    key = seed, accesses
    if key not in _SAMPLERS:
        _SAMPLERS[key] = Sampler(seed, accesses)
    return _SAMPLERS[key]


def share_samples(board: Board) -> None:
    """Let this process take samples from a board, and write its own there."""
    shared_sampler(board.place.seed, board.place.accesses).board = board


class Sampling(NamedTuple):
    """What the samples of a host's guests depend on beside the guests."""

    cpu: str
    workloads: tuple[str, ...]  # profile of each class of guests, "" for none
    seed: int
    accesses: int  # of a sample, 0: no samples


@functools.cache
def _programs(sampling: Sampling) -> NDArray[np.int64]:
    """Return the number of each class's program, NIL for none."""
    sampler = shared_sampler(sampling.seed, sampling.accesses)
    numbers = [sampler.program(sampling.cpu, name) if name else NIL for name in sampling.workloads]
    return np.array(numbers, np.int64)


_COLUMN: Final = {column.name: index for index, column in enumerate(VM_COLUMNS)}
_RESIDENT: Final = _COLUMN["rss_pages"]
_REMOTE: Final = _COLUMN["remote_pages"]
_EPT: Final = _COLUMN["nr_ept_pages"]
_REMOTE_EPT: Final = _COLUMN["remote_ept_pages"]
_FIRST_FIGURE: Final = len(VM_COLUMNS) - NR_FIGURES


@inline_kernel
def _parts(some: int, of: int) -> int:
    """Return a share in whole parts of `REMOTE_PARTS`."""
    return min(some * REMOTE_PARTS // max(of, 1), REMOTE_PARTS)


@kernel
def states_of_guests(
    guests: NDArray[np.int64],
    which: NDArray[np.int64],
    rows: NDArray[np.int64],
    of_class: NDArray[np.int64],
    programs: NDArray[np.int64],
    states: NDArray[np.int64],
) -> None:
    """Write the program and the state of some guests as they were looked at last.

    Parameters
    ----------
    guests, which
        The table of guests, and numbers of its rows.
    rows
        A row of ``vms`` for each of these.
    of_class
        Program of each class of guests.
    programs, states
        (guests,) and (guests, NR_STATE), written.
    """
    for i in range(which.size):
        row = which[i]
        programs[i] = of_class[guests[row, G_CLASS]] if guests[row, G_PROGRAM] > 0 else NIL
        for column in range(ST_REMOTE):
            states[i, column] = guests[row, G_PROGRAM + column]
        states[i, ST_REMOTE] = _parts(rows[i, _REMOTE], rows[i, _RESIDENT])
        states[i, ST_REMOTE_EPT] = _parts(rows[i, _REMOTE_EPT], rows[i, _EPT])


@kernel
def note_figures(
    guests: NDArray[np.int64],
    which: NDArray[np.int64],
    rows: NDArray[np.int64],
    figures: NDArray[np.int64],
) -> None:
    """Write figures of some guests into their rows, and into the last columns of ``vms``."""
    for i in range(which.size):
        for figure in range(NR_FIGURES):
            guests[which[i], G_FIGURE + figure] = figures[i, figure]
            rows[i, _FIRST_FIGURE + figure] = figures[i, figure]


def measure_guests(
    guests: NDArray[np.int64],
    which: NDArray[np.int64],
    out: NDArray[np.int64],
    sampling: Sampling,
) -> None:
    """Find what translation costs some guests as they were looked at last.

    Parameters
    ----------
    guests
        The figures go into their rows,
    which
        numbers of these,
    out
        and into the last columns of a row of ``vms`` for each.
    """
    programs = np.empty(len(which), np.int64)
    states = np.empty((len(which), NR_STATE), np.int64)
    states_of_guests(guests, which, out, _programs(sampling), programs, states)
    sampler = shared_sampler(sampling.seed, sampling.accesses)
    note_figures(guests, which, out, sampler.figures(programs, states))


def usage_of_samplers() -> SampleUsage:
    """Return what all samples of this process have cost."""
    parts = [sampler.usage() for sampler in _SAMPLERS.values()]
    return SampleUsage(*(sum(column) for column in zip(*parts, strict=True))) if parts else NO_USAGE
