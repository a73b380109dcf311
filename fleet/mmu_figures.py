"""What address translation costs a guest, from samples that guests in like states share.

A state of a guest's programs (`fleet.mmu_state`) lies between classes, each of which is sampled
once (`fleet.mmu_sample`). A state's figures are interpolated between the classes around it,
linearly in each of footprint, small share, side, page tables and what is remote.

Simplified: what lies on another node is the same share of a program's data, of its page tables and
of all the VM's memory, in 64ths rounded down.
Simplified: figures between classes are interpolated, and a class of less than 1/64 is left out.
"""

import math
import time
from typing import Final, NamedTuple

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
    sample,
)
from guestsim.behaviour import G_CLASS, G_FIGURE, G_PROGRAM, G_TABLES_HOST, NR_FIGURES
from hostsim.core.units import HPAGE_PMD_NR
from hostsim.core.vm_columns import VM_COLUMNS
from hostsim.mmu.cost import Remote

LEAST_PAGES: Final = HPAGE_PMD_NR
MOST_STATES: Final = 20_000  # that are remembered, about 10 MiB; then all are forgotten
REMOTE_PARTS: Final = 64  # that a state's memory and EPT are divided in
LEAST_WEIGHT: Final = 1 / 64  # of a class around a state; less is left out
PPM: Final = 1_000_000


class State(NamedTuple):
    """How a guest's programs are mapped; all in pages."""

    cpu: str
    workload: str
    pages: int
    guest_huge: int
    host_huge: int
    both_huge: int
    tables: int
    tables_huge: int
    remote: int = 0  # of 64 parts of the VM's memory, those on another node than its CPUs
    remote_ept: int = 0  # of 64 parts of its EPT


def _between(value: float, classes: tuple[float, ...]) -> list[tuple[int, float]]:
    """Return the classes around a value and their weights."""
    above = next(i for i, edge in enumerate(classes) if value <= edge)
    if value == classes[above]:
        return [(above, 1.0)]
    weight = (value - classes[above - 1]) / (classes[above] - classes[above - 1])
    return [(above - 1, 1.0 - weight), (above, weight)]


def _footprints(pages: int) -> list[tuple[int, float]]:
    """Return the classes around a footprint and their weights."""
    at = math.log2(max(pages, LEAST_PAGES)) * PER_OCTAVE
    below = math.floor(at)
    return [(below, 1.0 - (at - below)), (below + 1, at - below)]


def _sides(state: State, small: int) -> dict[Side, float]:
    """Return where a state's small entries are small, and the shares of them."""
    host = (state.guest_huge - state.both_huge) / max(small, 1)
    guest = (state.host_huge - state.both_huge) / max(small, 1)
    shares = {Side.HOST: host, Side.GUEST: guest, Side.BOTH: 1.0 - host - guest}
    return {side: share for side, share in shares.items() if share > 0.0}


def _remote(state: State, native: bool) -> list[tuple[Remote, float]]:
    """Return what is remote, nothing, all memory, all of the EPT or both, and the shares of it."""
    memory = state.remote / REMOTE_PARTS
    ept = 0.0 if native else state.remote_ept / REMOTE_PARTS
    shares = {
        Remote(): (1.0 - memory) * (1.0 - ept),
        Remote(memory=True): memory * (1.0 - ept),
        Remote(ept=True): (1.0 - memory) * ept,
        Remote(memory=True, ept=True): memory * ept,
    }
    kept = {remote: share for remote, share in shares.items() if share > LEAST_WEIGHT}
    return [(remote, share / sum(kept.values())) for remote, share in kept.items()]


def classes_around(state: State, *, native: bool = False) -> list[tuple[Class, float]]:
    """Return the classes that a state lies between, and their weights, which add up to one.

    Those of little weight are left out.

    Parameters
    ----------
    native
        Of the same program without a hypervisor, mapped as the guest maps it.
    """
    pages = max(state.pages, 1)
    small = max(pages - (state.guest_huge if native else state.both_huge), 0)
    of_tables = 1.0 if native else state.tables_huge / max(state.tables, 1)
    tables = [(huge, c) for huge, c in ((True, of_tables), (False, 1.0 - of_tables)) if c > 0.0]
    sides = {Side.NATIVE: 1.0} if native else _sides(state, small)
    none = sides if native else {Side.GUEST: 1.0}  # all entries are large on both sides
    far = _remote(state, native)
    found = []
    for footprint, a in _footprints(pages):
        for share, b in _between(small / pages, SMALL):
            for side, c in (sides if SMALL[share] > 0.0 else none).items():
                for huge, d in tables:
                    weight = a * b * c * d
                    if weight > LEAST_WEIGHT:
                        program = (state.cpu, state.workload, footprint)
                        for remote, e in far:
                            key = Class(*program, share, side, huge, remote)
                            found.append((key, weight * e))
    total = sum(weight for _, weight in found)
    return [(key, weight / total) for key, weight in found]


def all_huge(state: State) -> State:
    """Return a state's program mapped by huge pages on both sides, page tables too."""
    pages = state.pages
    return state._replace(
        guest_huge=pages, host_huge=pages, both_huge=pages, tables_huge=state.tables
    )


class SampleUsage(NamedTuple):
    """What samples have cost a process."""

    samples: int  # simulated
    hits: int  # states whose figures were known, or found from known samples
    cpu_s: float


NO_USAGE: Final = SampleUsage(0, 0, 0.0)


class Sampler:
    """Samples, and the figures of states, remembered.

    Parameters
    ----------
    remember
        Off only to show that it changes nothing.
    """

    def __init__(self, seed: int, accesses: int, *, remember: bool = True) -> None:
        self.seed, self.accesses, self.remember = seed, accesses, remember
        self._samples: dict[Class, NDArray[np.float64]] = {}
        self._figures: dict[State, NDArray[np.int64]] = {}
        self.samples = self.hits = 0
        self.cpu_s = 0.0

    def usage(self) -> SampleUsage:
        """Return what has been done so far."""
        return SampleUsage(self.samples, self.hits, self.cpu_s)

    def figures(self, state: State) -> NDArray[np.int64]:
        """Return a state's figures, in the order and units of the columns of ``vms``."""
        found = self._figures.get(state) if self.remember else None
        if found is not None:
            self.hits += 1
            return found
        begin_s, before = time.process_time(), self.samples
        own = self._mean(classes_around(state))
        huge = self._mean(classes_around(all_huge(state)))
        native = self._mean(classes_around(state, native=True))
        local = self._mean(classes_around(state._replace(remote=0, remote_ept=0)))
        found = _as_integers(own, huge, native, local)
        if self.remember:
            if len(self._figures) >= MOST_STATES:
                self._figures.clear()
            self._figures[state] = found
        self.hits += self.samples == before
        self.cpu_s += time.process_time() - begin_s
        return found

    def _mean(self, classes: list[tuple[Class, float]]) -> NDArray[np.float64]:
        mean = np.zeros(NR_S_FIGURES)
        for key, weight in classes:
            mean += weight * self._sample(key)
        return mean

    def _sample(self, key: Class) -> NDArray[np.float64]:
        found = self._samples.get(key) if self.remember else None
        if found is None:
            self.samples += 1
            found = sample(key, self.seed, self.accesses)
            if self.remember:
                self._samples[key] = found
        return found


def _as_integers(
    own: NDArray[np.float64],
    huge: NDArray[np.float64],
    native: NDArray[np.float64],
    local: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return figures in fixed point: `hostsim.core.stats.MMU_COLUMNS`."""
    walks = own[S_MISSES] or 1.0
    walks_of_operation = own[S_MISSES_OF_OPERATION] or 1.0
    run = own[S_RUN_CYCLES]
    values = (
        PPM * own[S_MISSES],
        PPM * own[S_ERROR],
        1000.0 * own[S_GUEST_READS] / walks,
        1000.0 * own[S_EPT_READS] / walks,
        1000.0 * own[S_GUEST_CYCLES] / walks_of_operation,
        1000.0 * own[S_EPT_CYCLES] / walks_of_operation,
        PPM * (own[S_GUEST_CYCLES] + own[S_EPT_CYCLES]) / run,
        PPM * run / huge[S_RUN_CYCLES],
        PPM * run / native[S_RUN_CYCLES],
        PPM * run / local[S_RUN_CYCLES],
    )
    return np.array([round(value) for value in values], np.int64)


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


def _parts(some: int, of: int) -> int:
    """Return a share in whole parts of `REMOTE_PARTS`."""
    return min(int(some) * REMOTE_PARTS // max(int(of), 1), REMOTE_PARTS)


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
    for row, into in zip(which, out, strict=True):
        guest = guests[row]
        workload = sampling.workloads[guest[G_CLASS]]
        figures = guest[G_FIGURE : G_FIGURE + NR_FIGURES]
        figures[:] = 0
        if workload and guest[G_PROGRAM] > 0:
            state = guest[G_PROGRAM : G_TABLES_HOST + 1].tolist()
            remote = (
                _parts(into[_REMOTE], into[_RESIDENT]),
                _parts(into[_REMOTE_EPT], into[_EPT]),
            )
            figures[:] = sampler.figures(State(sampling.cpu, workload, *[*state, *remote]))
        into[-NR_FIGURES:] = figures


def usage_of_samplers() -> SampleUsage:
    """Return what all samples of this process have cost."""
    parts = [sampler.usage() for sampler in _SAMPLERS.values()]
    return SampleUsage(*(sum(column) for column in zip(*parts, strict=True))) if parts else NO_USAGE
