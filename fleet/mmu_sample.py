"""What address translation costs a guest, from samples that guests in like states share.

A state of a guest's programs (`fleet.mmu_state`) lies between classes: of footprint, of the share
that small TLB entries map, of which side is small where one is, of what the EPT maps page tables
by. For each class a sample is simulated once: accesses of the workload over page tables that have
the class's shares, made by a stated rule. A state's figures are interpolated between the classes
around it, linearly in each. A sample is a pure function of its class, seed and length, so that
it does not matter who simulates it, or whether it is remembered.

Windows are small in the order of a Weyl sequence, spread evenly over the footprint. A window's
pages lie in one window of guest memory, page tables behind all pages, one a frame, in order.
All classes of one program and footprint draw the same accesses, so that they can be compared.

Source: warm-up and length: a third of a sample before counting leaves no bias at 20,000 accesses
and more (measured, docs/results.md); Weyl, Mathematische Annalen 77, 1916.
Simplified: figures between classes are interpolated, and a class of less than 1/64 is left out.
Simplified: tables are made by a rule instead of read from the guest; a small window's frames are in
one row.
"""

import functools
import hashlib
import math
import time
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.hardware import load_cpu
from fleet.mmu import NR_PARTS, VPID, Space, outcome, with_error
from fleet.profiles import load_workload
from guestsim.behaviour import G_CLASS, G_FIGURE, G_PROGRAM, G_TABLES_HOST, NR_FIGURES
from guestsim.workload import Program, compile_workload, draw_pages
from hostsim.core.jit import kernel
from hostsim.core.rng import Stream, stream
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGE_SHIFT
from hostsim.mmu.cpus import Cpu, new_mmu
from hostsim.mmu.paging import (
    INDEX_BITS,
    MIN_LEVELS,
    R_LEVELS,
    R_USED,
    PageTables,
    map_leaf,
    new_page_tables,
    table_at,
    tables_needed,
)
from hostsim.mmu.tlb import C_ACCESSES, C_WALKS, READ_EPT_DATA, READ_EPT_TABLE, forget_counts
from hostsim.mmu.walker import access_pages

WARM: Final = 2  # a sample counts this many times the accesses that warm it
PER_OCTAVE: Final = 2  # classes of footprints
LEAST_PAGES: Final = HPAGE_PMD_NR
SMALL: Final = (0.0, 1 / 128, 1 / 16, 1.0)  # classes of the share that small entries map
MOST_STATES: Final = 20_000  # that are remembered, about 10 MiB; then all are forgotten
LEAST_WEIGHT: Final = 1 / 64  # of a class around a state; less is left out
WEYL: Final = 0x9E3779B97F4A7C15  # golden ratio, of 2**64
PPM: Final = 1_000_000


class Side(IntEnum):
    """Where pages are small that have a small TLB entry."""

    NATIVE = 0  # there is but one side
    GUEST = 1  # the guest maps 4 KiB, the EPT 2 MiB
    HOST = 2  # the guest maps 2 MiB, the EPT 4 KiB
    BOTH = 3


class Class(NamedTuple):
    """The key of a sample."""

    cpu: str
    workload: str
    footprint: int  # 2**(footprint / PER_OCTAVE) pages
    small: int  # index of SMALL
    side: Side
    tables_huge: bool  # whether the EPT maps page tables by 2 MiB


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


# Figures of a sample, an access or an operation
S_MISSES: Final = 0  # an access
S_ERROR: Final = 1  # standard error of that
S_GUEST_READS: Final = 2  # of walks, an access
S_EPT_READS: Final = 3
S_GUEST_CYCLES: Final = 4  # of walks, an operation
S_EPT_CYCLES: Final = 5
S_RUN_CYCLES: Final = 6  # an operation
S_MISSES_OF_OPERATION: Final = 7
NR_S_FIGURES: Final = 8


def footprint_pages(number: int) -> int:
    """Return the footprint of a class."""
    return round(math.pow(2.0, number / PER_OCTAVE))


def small_windows(nr: int, share: float) -> NDArray[np.bool_]:
    """Return which of a footprint's windows are small: a share, spread evenly."""
    if share >= 1.0:
        return np.ones(nr, np.bool_)
    at = np.arange(1, nr + 1, dtype=np.uint64) * np.uint64(WEYL)  # modulo 2**64
    found: NDArray[np.bool_] = at < np.uint64(int(share * 2.0**64))
    return found


@kernel
def _map_either(tables: PageTables, page: int, small: bool) -> bool:
    """Map a page of 4 KiB, or the 2 MiB around it, to itself."""
    if small:
        return map_leaf(tables, page, 1, page)
    start = (page >> HPAGE_PMD_ORDER) << HPAGE_PMD_ORDER
    return map_leaf(tables, start, 2, start)


@kernel
def _place_tables(
    guest: PageTables, ept: PageTables, page: int, lowest: int, nr_windows: int, small: bool
) -> bool:
    """Give the tables on the way to a page their frames, and those frames their EPT leaves.

    Behind the pages come the tables of level 1, one a window, then those of level 2, and so on.
    """
    base = nr_windows << HPAGE_PMD_ORDER
    nr = nr_windows
    for level in range(1, guest.root[R_LEVELS] + 1):
        if level >= lowest:
            frame = base + (page >> (level * INDEX_BITS))
            guest.frame[table_at(guest, page, level)] = frame
            if not _map_either(ept, frame, small):
                return False
        base += nr
        nr = (nr + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER
    return True


@kernel
def map_sample(
    guest: PageTables,
    ept: PageTables,
    pages: NDArray[np.int64],
    small: NDArray[np.bool_],
    guest_small: bool,
    host_small: bool,
    tables_small: bool,
) -> bool:
    """Map the pages that a sample accesses; return whether the tables had room.

    Parameters
    ----------
    small
        (windows,) which of them have small entries, in the guest, on the host or both.
    """
    for i in range(pages.size):
        page = pages[i]
        here = small[page >> HPAGE_PMD_ORDER]
        used = guest.root[R_USED]
        if not _map_either(guest, page, here and guest_small):
            return False
        if not _map_either(ept, page, here and host_small):
            return False
        if guest.root[R_USED] != used:
            lowest = 1 if here and guest_small else 2
            if not _place_tables(guest, ept, page, lowest, small.size, tables_small):
                return False
    return True


def _draw(key: Class, seed: int, nr: int, program: Program) -> NDArray[np.int64]:
    """Return the pages that a program of a footprint accesses, the same for all its classes."""
    text = f"{key.workload} {key.footprint}"
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    pages = np.empty(nr, np.int64)
    draw_pages(*program, int(stream(seed, Stream.MMU, digest).integers(1 << 62)), 0, pages)
    return pages


def _space(key: Class, nr_pages: int, pages: NDArray[np.int64]) -> Space:
    """Return page tables that have a class's shares, as far as pages are accessed."""
    windows = -(-nr_pages // HPAGE_PMD_NR)
    small = small_windows(windows, SMALL[key.small])
    nr_tables = tables_needed(nr_pages, MIN_LEVELS, 1)
    guest = new_page_tables(nr_tables, MIN_LEVELS, 0)
    ept = new_page_tables(2 * nr_tables + 2 * MIN_LEVELS, MIN_LEVELS, 0)
    sides = (key.side != Side.HOST, key.side != Side.GUEST, not key.tables_huge)
    if not map_sample(guest, ept, pages, small, *sides):
        raise AssertionError("tables for a footprint did not suffice")  # counted above
    nested = key.side != Side.NATIVE
    return Space(guest, ept, nested, nr_pages, ~small, ~small, nr_tables)


def _count(cpu: Cpu, space: Space, pages: NDArray[np.int64], warm: int) -> NDArray[np.int64]:
    """Access pages; return the counters of the parts behind the first ones, which warm."""
    mmu = new_mmu(cpu)
    parts = np.split(pages[warm:], NR_PARTS)
    counts = np.zeros((NR_PARTS, len(mmu.counts)), np.int64)
    access_pages(mmu, space.guest, space.ept, space.nested, VPID, pages, warm)
    for part, own in zip(counts, parts, strict=True):
        forget_counts(mmu)
        access_pages(mmu, space.guest, space.ept, space.nested, VPID, own, len(own))
        part[:] = mmu.counts
    return counts


@functools.cache
def _cpu(name: str) -> Cpu:
    return load_cpu(name)


def sample(key: Class, seed: int, accesses: int) -> NDArray[np.float64]:
    """Simulate one class: a pure function of its arguments.

    Parameters
    ----------
    accesses
        To count; half as many warm up first.
    """
    cpu = _cpu(key.cpu)
    nr_pages = footprint_pages(key.footprint)
    workload = load_workload(key.workload, nr_pages << PAGE_SHIFT)
    accesses -= accesses % NR_PARTS
    warm = accesses // WARM
    pages = _draw(key, seed, warm + accesses, compile_workload(workload))
    space = _space(key, nr_pages, pages)
    counts = _count(cpu, space, pages, warm)
    found = outcome(workload, cpu, space, counts)
    return figures_of(found, cpu, workload.steps)


def figures_of(found: Any, cpu: Cpu, steps: int) -> NDArray[np.float64]:
    """Return what a sample says of its class."""
    cost = found.cost
    misses, error = with_error(found.counts[:, C_WALKS] / found.counts[:, C_ACCESSES])
    reads = cost.reads.sum(axis=1)
    ept_reads = reads[[READ_EPT_TABLE, READ_EPT_DATA]].sum()
    own = cpu.latency.walk_cycles if cost.walks else 0.0
    ept_cycles = steps * cost.walks * cost.ept_ratio * (cost.walk_cycles - own)
    values = np.zeros(NR_S_FIGURES)
    values[S_MISSES] = misses
    values[S_ERROR] = error
    values[S_GUEST_READS] = reads.sum() - ept_reads
    values[S_EPT_READS] = ept_reads
    values[S_GUEST_CYCLES] = found.walk_cycles - ept_cycles
    values[S_EPT_CYCLES] = ept_cycles
    values[S_RUN_CYCLES] = found.run_cycles
    values[S_MISSES_OF_OPERATION] = steps * misses
    return values


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
    found = []
    for footprint, a in _footprints(pages):
        for share, b in _between(small / pages, SMALL):
            for side, c in (sides if SMALL[share] > 0.0 else none).items():
                for huge, d in tables:
                    weight = a * b * c * d
                    if weight > LEAST_WEIGHT:
                        key = Class(state.cpu, state.workload, footprint, share, side, huge)
                        found.append((key, weight))
    total = sum(weight for _, weight in found)
    return [(key, weight / total) for key, weight in found]


def all_huge(state: State) -> State:
    """Return a state's program mapped by huge pages on both sides, page tables too."""
    pages = state.pages
    return state._replace(
        guest_huge=pages, host_huge=pages, both_huge=pages, tables_huge=state.tables
    )


class Usage(NamedTuple):
    """What samples have cost a process."""

    samples: int  # simulated
    hits: int  # states whose figures were known, or found from known samples
    cpu_s: float


NO_USAGE: Final = Usage(0, 0, 0.0)


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

    def usage(self) -> Usage:
        """Return what has been done so far."""
        return Usage(self.samples, self.hits, self.cpu_s)

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
        found = _as_integers(own, huge, native)
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
    own: NDArray[np.float64], huge: NDArray[np.float64], native: NDArray[np.float64]
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
            figures[:] = sampler.figures(State(sampling.cpu, workload, *state))
        into[-NR_FIGURES:] = figures


def usage_of_samplers() -> Usage:
    """Return what all samples of this process have cost."""
    parts = [sampler.usage() for sampler in _SAMPLERS.values()]
    return Usage(*(sum(column) for column in zip(*parts, strict=True))) if parts else NO_USAGE
