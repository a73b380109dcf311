"""What address translation costs a guest, from samples that guests in like states share.

A state of a guest's programs (`fleet.mmu_state`) lies between classes (`fleet.mmu_classes`), each
of which is sampled once (`fleet.mmu_sample`).

Simplified: what lies on another node is the same share of a program's data, of its page tables and
of all the VM's memory, in 64ths rounded down.
"""

import time
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
from guestsim.behaviour import G_CLASS, G_FIGURE, G_PROGRAM, G_TABLES_HOST, NR_FIGURES
from hostsim.core.vm_columns import VM_COLUMNS


class SampleUsage(NamedTuple):
    """What samples have cost a process."""

    samples: int  # simulated
    hits: int  # states whose figures were found from known samples
    cpu_s: float


NO_USAGE: Final = SampleUsage(0, 0, 0.0)


class _Program(NamedTuple):
    """What is known of a program's classes."""

    known: NDArray[np.int8]  # (NR_CLASSES,)
    samples: NDArray[np.float64]  # (NR_CLASSES, NR_S_FIGURES), paid for where one is known


class Sampler:
    """Samples, remembered, and figures of states from them.

    Parameters
    ----------
    remember
        Off only to show that it changes nothing.
    """

    def __init__(self, seed: int, accesses: int, *, remember: bool = True) -> None:
        self.seed, self.accesses, self.remember = seed, accesses, remember
        self._programs: dict[tuple[str, str], _Program] = {}
        self._work = new_work_space()
        self.samples = self.hits = 0
        self.cpu_s = 0.0

    def usage(self) -> SampleUsage:
        """Return what has been done so far."""
        return SampleUsage(self.samples, self.hits, self.cpu_s)

    def figures(self, cpu: str, workload: str, states: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return figures in the order and units of the columns of ``vms``.

        Parameters
        ----------
        states
            (states, `fleet.mmu_classes.NR_STATE`) of one program on one CPU.
        """
        begin_s = time.process_time()
        if not self.remember:
            self._programs.clear()
        program = self._program(cpu, workload)
        out: NDArray[np.int64] = np.zeros((len(states), NR_FIGURES), np.int64)
        known, samples = program
        waiting = figures_of_states(states, known, samples, out, *self._work)
        self.hits += len(states) - waiting
        if waiting:
            for number in np.flatnonzero(known == WANTED).tolist():
                key = class_of(cpu, workload, number)
                samples[number] = sample(key, self.seed, self.accesses)
                known[number] = KNOWN
                self.samples += 1
            figures_of_states(states, known, samples, out, *self._work)
        self.cpu_s += time.process_time() - begin_s
        return out

    def _program(self, cpu: str, workload: str) -> _Program:
        key = cpu, workload
        if key not in self._programs:
            known = np.full(NR_CLASSES, UNKNOWN, np.int8)
            self._programs[key] = _Program(known, np.zeros((NR_CLASSES, NR_S_FIGURES)))
        return self._programs[key]


_SAMPLERS: dict[tuple[int, int], Sampler] = {}


def shared_sampler(seed: int, accesses: int) -> Sampler:
    """Return the sampler that all hosts of this process share."""
    return _SAMPLERS.setdefault((seed, accesses), Sampler(seed, accesses))


class Sampling(NamedTuple):
    """What the samples of a host's guests depend on beside the guests."""

    cpu: str
    workloads: tuple[str, ...]  # profile of each class of guests, "" for none
    seed: int
    accesses: int  # of a sample, 0: no samples


_COLUMN: Final = {column.name: index for index, column in enumerate(VM_COLUMNS)}
_RESIDENT: Final = _COLUMN["rss_pages"]
_REMOTE: Final = _COLUMN["remote_pages"]
_EPT: Final = _COLUMN["nr_ept_pages"]
_REMOTE_EPT: Final = _COLUMN["remote_ept_pages"]


def _parts(some: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return shares in whole parts of `REMOTE_PARTS`."""
    found: NDArray[np.int64] = np.minimum(some * REMOTE_PARTS // np.maximum(of, 1), REMOTE_PARTS)
    return found


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
    sampler = shared_sampler(sampling.seed, sampling.accesses)
    own = guests[which]
    states = np.empty((len(which), NR_STATE), np.int64)
    states[:, :ST_REMOTE] = own[:, G_PROGRAM : G_TABLES_HOST + 1]
    states[:, ST_REMOTE] = _parts(out[:, _REMOTE], out[:, _RESIDENT])
    states[:, ST_REMOTE_EPT] = _parts(out[:, _REMOTE_EPT], out[:, _EPT])
    figures = np.zeros((len(which), NR_FIGURES), np.int64)
    for number in np.unique(own[:, G_CLASS]).tolist():
        workload = sampling.workloads[number]
        here = np.flatnonzero((own[:, G_CLASS] == number) & (own[:, G_PROGRAM] > 0))
        if workload and len(here):
            figures[here] = sampler.figures(sampling.cpu, workload, states[here])
    guests[which, G_FIGURE : G_FIGURE + NR_FIGURES] = figures
    out[:, -NR_FIGURES:] = figures


def usage_of_samplers() -> SampleUsage:
    """Return what all samples of this process have cost."""
    parts = [sampler.usage() for sampler in _SAMPLERS.values()]
    return SampleUsage(*(sum(column) for column in zip(*parts, strict=True))) if parts else NO_USAGE
