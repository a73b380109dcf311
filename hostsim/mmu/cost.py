"""What translation costs: where a table's line is found, cycles of a walk, cycles of a run.

Table lines and data lines compete for the caches.  Che's approximation says how long a line stays
in an LRU cache, the characteristic time; a line is found there if it was read within that time.
Popularity comes in classes of objects that are read equally often, known from the workload; how
many reads the walk caches let through, from simulated counts.

The run is a closed queueing network: ``overlap`` operations under way, each needing its own
cycles and its walks, which ``walkers`` servers perform.  Mean value analysis gives the rate.

Source: Che, Tung, Wang, Hierarchical Web Caching Systems, IEEE JSAC 20(7), 2002; Reiser,
Lavenberg, Mean-Value Analysis of Closed Multichain Queuing Networks, JACM 27(2), 1980.
Simplified: every cache sees all reads, not only those that missed the one before it.
Simplified: no prefetching of data or of table lines, but what is read from end to end is not waited
for in remote memory either.
Simplified: an operation's own cycles are the same whatever the caches hold and on every CPU.
"""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import kernel
from hostsim.core.units import PTRS_PER_TABLE
from hostsim.mmu.cpus import Cpu
from hostsim.mmu.tlb import (
    C_ACCESSES,
    C_FILLS,
    C_L2_HITS,
    C_READS,
    C_WALKS,
    LEVEL_STRIDE,
    NR_READ_CLASSES,
    READ_EPT_DATA,
    READ_EPT_TABLE,
)

LINE_BYTES: Final = 64
ENTRIES_PER_LINE: Final = 8
LINES_PER_PAGE: Final = 64
Function = Callable[[float], Any]
PLACES: Final = ("L1", "L2", "LLC", "DRAM")


class Remote(NamedTuple):
    """What lies in the memory of another NUMA node than that of the CPU."""

    memory: bool = False  # the program's: its data, and the page tables that map it
    ept: bool = False  # the tables of the EPT


LOCAL: Final = Remote()


class Classes(NamedTuple):
    """Popularity: objects read equally often, one entry a class."""

    region_first: NDArray[np.float64]  # first page of the region they are scattered over
    region_pages: NDArray[np.float64]
    objects: NDArray[np.float64]
    per_page: NDArray[np.float64]  # objects of a page
    rate: NDArray[np.float64]  # reads of one object, of one access
    run: NDArray[np.float64]  # reads in a row of the eight pages of a line of page-table entries


class WalkCost(NamedTuple):
    """What the walks of one run of accesses cost."""

    reads: NDArray[np.float64]  # (class, level) reads an access
    found: NDArray[np.float64]  # (class, level, place) share of the reads served by L1, L2, ...
    walks: float  # an access
    walk_cycles: float  # cycles of a walk
    ept_ratio: float  # share of them in EPT reads
    l2_tlb_hits: float  # an access
    data_dram: float  # share of the accesses whose line comes from memory and is waited for


def groups(classes: Classes) -> NDArray[np.int64]:
    """Return which classes are scattered over the same region, as a number for each."""
    where = np.stack([classes.region_first, classes.region_pages, classes.per_page], axis=1)
    _, group = np.unique(where, axis=0, return_inverse=True)
    return group.astype(np.int64)


class _Units:
    """Pages in a row, taken together, and how long one of them stays unread.

    A unit that holds an object holds neighbours, too, which are drawn from all objects of its
    region: it stays unread while all of them do.
    """

    def __init__(
        self,
        classes: Classes,
        weight: NDArray[np.float64],
        present: NDArray[np.float64],
        group: NDArray[np.int64],
    ) -> None:
        self.classes = classes
        self.weight = weight  # reads of one object that takes part, of one access
        self.present = present  # share of the objects that take part
        self.group = group
        objects = np.bincount(self.group, classes.objects)[self.group]
        self.share = classes.objects / objects  # of the objects of its region
        self.density = objects / classes.region_pages  # objects of a page
        self.mean = np.bincount(self.group, self.share * weight)[self.group]

    def objects(self, pages: float) -> NDArray[np.float64]:
        """Return how many objects a unit of some pages holds, one at least."""
        return np.maximum(np.minimum(pages, self.classes.region_pages) * self.density, 1.0)

    def units(self, pages: float) -> NDArray[np.float64]:
        """Return how many units hold the objects of each class, as its share of its region's."""
        return np.maximum(self.classes.region_pages / pages, 1.0) * self.share * self.present

    def rate(self, pages: float) -> NDArray[np.float64]:
        """Return the mean reads of a unit that holds an object of each class."""
        return self.weight + (self.objects(pages) - 1.0) * self.mean

    def log_unread(self, time: float) -> NDArray[np.float64]:
        """Return the logarithm of the chance that some object of the region is not read."""
        one = np.expm1(-np.minimum(self.weight * time, 700.0))
        return np.log1p(np.maximum(np.bincount(self.group, self.share * one), -1.0 + 1e-15))[
            self.group
        ]


def _solve_time(occupancy: Function, target: float) -> float:
    """Return the time at which a growing function of time reaches a target; infinity if never."""
    low, high = -3.0, 18.0  # powers of ten of accesses
    if occupancy(10.0**high) <= target:
        return float("inf")
    if occupancy(10.0**low) >= target:
        return float(10.0**low)
    from scipy.optimize import brentq  # takes half a second: not at every start of a worker

    return float(10.0 ** brentq(lambda power: occupancy(10.0**power) - target, low, high))


def miss_rates(
    classes: Classes, walks_by_size: NDArray[np.float64], coverage: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how many walks an object of each class causes, and how long TLBs keep each size.

    The TLBs filter the popular ones; their characteristic time is such that the sum over all is
    the number of walks that was simulated, of one access.

    Parameters
    ----------
    walks_by_size
        Walks an access that ended in an entry of each page size.
    coverage
        (sizes, classes) share of the objects mapped by each size.

    Returns
    -------
    rates, times
        (sizes, classes) walks of one object if it is mapped so; how long an entry is kept.
    """
    group = groups(classes)
    rates = np.zeros(coverage.shape)
    times = np.zeros(len(coverage))
    # Of the accesses in a row to a page only the first can miss.
    first = np.where(classes.run > 1.0, np.minimum(ENTRIES_PER_LINE / classes.run, 1.0), 1.0)
    for size, walks in enumerate(walks_by_size):
        present = coverage[size]
        if walks <= 0.0 or not present.any():
            continue
        units = _Units(classes, classes.rate, present, group)
        neighbours = units.objects(float(PTRS_PER_TABLE**size)) - 1.0

        def missing(
            time: float, units: _Units = units, neighbours: NDArray[np.float64] = neighbours
        ) -> NDArray[np.float64]:
            unread = -classes.rate * time + neighbours * units.log_unread(time)
            return classes.rate * first * np.exp(np.maximum(unread, -700.0))

        def hits(
            time: float, present: NDArray[np.float64] = present, missing: Function = missing
        ) -> float:
            return float(1.0 - (missing(time) * present * classes.objects).sum())

        time = _solve_time(hits, 1.0 - walks)
        times[size] = time = time if np.isfinite(time) else 0.0
        rates[size] = missing(time)
        total = (rates[size] * present * classes.objects).sum()
        rates[size] *= walks / total if total > 0.0 else 0.0
    return rates, times


def _span_pages(kind: int, level: int, pages_per_table: float) -> float:
    """Return the data pages that one line of entries of a level stands for."""
    span = float(ENTRIES_PER_LINE * PTRS_PER_TABLE ** (level - 1))
    return span * pages_per_table if kind == READ_EPT_TABLE else span


def _walks_in_a_row(
    classes: Classes, missed: NDArray[np.float64], span: float
) -> NDArray[np.float64]:
    """Return how many walks in a row read one line; 1 where pages are chosen at random."""
    walks_per_page = classes.run / ENTRIES_PER_LINE * missed / classes.rate
    return np.where(classes.run > 1.0, np.maximum(span * walks_per_page, 1.0), 1.0)


class _Lines(NamedTuple):
    """Lines of one kind that compete for the caches, and the reads that look for them."""

    units: _Units
    pages: float  # that one line stands for
    row: NDArray[np.float64]  # reads in a row
    own_pages: float = 0.0  # pages whose reads are as far apart as their TLB entry lives
    tlb_time: float = 0.0

    def read_again(self, time: float) -> NDArray[np.float64]:
        """Return the share of reads for whose line the last read is no longer ago than a time.

        What is read at random is read again after any time, what is read from end to end after a
        full turn and not before.  Of reads in a row only the first can come too late.
        """
        units = self.units
        if not np.isfinite(time):
            return np.ones(len(units.weight))
        # Walks for one page are at least the TLB's time apart, and 1 / rate on average.
        apart = min(self.tlb_time, time) if self.own_pages else 0.0
        rate = units.rate(self.own_pages) if self.own_pages else units.weight
        later = (time - apart) / np.maximum(1.0 - rate * apart, 0.1)
        own = units.objects(self.own_pages) if self.own_pages else np.ones(len(rate))
        others = np.maximum(units.objects(self.pages) - own, 0.0)
        unread = -rate * later + others * units.log_unread(time)
        in_turn = (units.rate(self.pages) / self.row * time) >= 1.0
        cyclic = units.classes.run > 1.0
        missed = np.where(cyclic, ~in_turn, np.exp(np.maximum(unread, -700.0)))
        return 1.0 - missed / self.row


def walk_cost(
    cpu: Cpu,
    classes: Classes,
    counts: NDArray[np.int64],
    coverage: NDArray[np.float64],
    pages_per_table: float,
    remote: Remote = LOCAL,
) -> WalkCost:
    """Return where walks found their lines and what they cost.

    Parameters
    ----------
    counts
        Counters of an `Mmu` after (warmed) accesses.
    coverage
        (sizes, classes) share of each class's pages mapped by entries of 4K, 2M, 1G.
    pages_per_table
        Data pages of the guest for one table page.
    """
    accesses = float(counts[C_ACCESSES])
    walks = float(counts[C_WALKS]) / accesses
    counted = counts[C_READS : C_READS + NR_READ_CLASSES * LEVEL_STRIDE]
    reads = counted.reshape(NR_READ_CLASSES, -1) / accesses
    by_size = counts[C_FILLS : C_FILLS + len(coverage)] / accesses
    by_object, tlb_times = miss_rates(classes, by_size, coverage)
    group = groups(classes)
    everywhere = np.ones(len(classes.rate))
    lines = {}
    wanted = {}
    for kind, level in np.argwhere(reads > 0):
        pages = _span_pages(int(kind), int(level), pages_per_table)
        # Entries of the lowest level belong to small pages; the others are on every way down.
        small = level == 1 and kind != READ_EPT_TABLE
        missed = by_object[0] if small else (by_object * coverage).sum(axis=0)
        present = coverage[0] if small else everywhere
        total = float((missed * present * classes.objects).sum())
        if total <= 0.0:
            continue
        own = kind != READ_EPT_TABLE and level <= len(tlb_times) and tlb_times[level - 1] > 0.0
        lines[kind, level] = _Lines(
            _Units(classes, missed * (reads[kind, level] / total), present, group),
            pages,
            _walks_in_a_row(classes, missed, pages),
            float(PTRS_PER_TABLE ** (level - 1)) if own else 0.0,
            float(tlb_times[level - 1]) if own else 0.0,
        )
        wanted[kind, level] = missed * present * classes.objects / total
    tables = list(lines.values())
    times = [
        _Competing([_data_lines(classes, group, together), *tables]).stay(size)
        for together, size in (
            (1, cpu.cache.l1_bytes),
            (cpu.cache.fill_lines, cpu.cache.l2_bytes),
            (cpu.cache.fill_lines, cpu.cache.llc_bytes),
        )
    ]
    found = np.zeros((NR_READ_CLASSES, LEVEL_STRIDE, len(PLACES)))
    found[reads > 0, 0] = 1.0  # where no class of accesses is known to walk, walks are few
    for place, part in lines.items():
        hit = [float((wanted[place] * part.read_again(time)).sum()) for time in times]
        found[place] = np.diff([0.0, *np.maximum.accumulate(hit), 1.0])
    latency = cpu.latency
    cycles = found @ np.array(
        [latency.l1_cycles, latency.l2_cycles, latency.llc_cycles, latency.dram_cycles]
    )
    extra = latency.remote_cycles - latency.dram_cycles
    for kind in range(NR_READ_CLASSES):
        if remote.ept if kind in (READ_EPT_TABLE, READ_EPT_DATA) else remote.memory:
            cycles[kind] += extra * found[kind, :, -1]
    spent = reads * cycles
    per_walk = float(spent.sum()) / walks if walks else 0.0
    ept = float(spent[[READ_EPT_TABLE, READ_EPT_DATA]].sum())
    return WalkCost(
        reads=reads,
        found=found,
        walks=walks,
        walk_cycles=per_walk + latency.walk_cycles if walks else 0.0,
        ept_ratio=ept / float(spent.sum()) if walks else 0.0,
        l2_tlb_hits=float(counts[C_L2_HITS]) / accesses,
        data_dram=_from_memory(classes, group, cpu.cache.fill_lines, times[-1]),
    )


def _from_memory(classes: Classes, group: NDArray[np.int64], together: int, time: float) -> float:
    """Return the share of accesses whose line is in no cache; what is read in turn is prefetched.

    Parameters
    ----------
    together
        Lines that a read brings in.
    time
        How long the last level of caches keeps a line.
    """
    missed = 1.0 - _data_lines(classes, group, together).read_again(time)
    at_random = classes.run <= 1.0
    return float((classes.rate * classes.objects * missed * at_random).sum())


def _data_lines(classes: Classes, group: NDArray[np.int64], together: int) -> _Lines:
    """Return the lines of the data itself: an access reads one line of its page.

    Parameters
    ----------
    together
        Lines that a read brings in.
    """
    line_rate = classes.rate * (together / LINES_PER_PAGE)
    by_line = classes._replace(
        region_first=classes.region_first * LINES_PER_PAGE,
        region_pages=classes.region_pages * LINES_PER_PAGE,
        objects=classes.objects * LINES_PER_PAGE,
    )
    everywhere = np.ones(len(line_rate))
    return _Lines(_Units(by_line, line_rate, everywhere, group), 1.0, everywhere)


@kernel
def _kept(
    weight: NDArray[np.float64],
    turns: NDArray[np.float64],
    objects: NDArray[np.float64],
    units: NDArray[np.float64],
    share: NDArray[np.float64],
    group: NDArray[np.int64],
    cyclic: NDArray[np.bool_],
    read: NDArray[np.float64],
    time: float,
) -> float:
    """Return how many lines of all kinds were read within a time: those that a cache holds.

    Parameters
    ----------
    weight, turns, objects, units
        (kinds, classes): reads of an object, full turns of what is read from end to end, objects
        of a line, lines.
    read
        (groups,) work space.
    """
    total = 0.0
    for kind in range(weight.shape[0]):
        for g in range(read.size):
            read[g] = 0.0
        for i in range(weight.shape[1]):
            read[group[i]] += share[i] * math.expm1(-min(weight[kind, i] * time, 700.0))
        for i in range(weight.shape[1]):
            if cyclic[i]:
                held = min(turns[kind, i] * time, 1.0)
            else:
                unread = objects[kind, i] * math.log1p(max(read[group[i]], -1.0 + 1e-15))
                held = -math.expm1(max(unread, -700.0))
            total += units[kind, i] * held
    return total


class _Competing:
    """Lines of all kinds that share a cache, as arrays."""

    def __init__(self, lines: list[_Lines]) -> None:
        units = lines[0].units
        self.arrays = (
            np.stack([part.units.weight for part in lines]),
            np.stack([part.units.rate(part.pages) / part.row for part in lines]),
            np.stack([part.units.objects(part.pages) for part in lines]),
            np.stack([part.units.units(part.pages) for part in lines]),
            units.share,
            units.group,
            units.classes.run > 1.0,
            np.empty(int(units.group.max()) + 1),
        )

    def stay(self, size_bytes: int) -> float:
        """Return how long a line stays in a cache, in accesses."""
        return _solve_time(lambda time: float(_kept(*self.arrays, time)), size_bytes / LINE_BYTES)


def operations_per_cycle(
    own_cycles: float, walk_cycles: float, walkers: int, overlap: float
) -> float:
    """Return the rate of operations of which ``overlap`` are under way.

    Between two whole numbers of operations the rate is interpolated.

    Parameters
    ----------
    own_cycles
        Cycles of an operation outside of walks.
    walk_cycles
        Cycles of all its walks.
    """
    low = max(int(overlap), 1)
    rates = [_mean_value_analysis(own_cycles, walk_cycles, walkers, n) for n in (low, low + 1)]
    return rates[0] + (overlap - low) * (rates[1] - rates[0])


def _mean_value_analysis(own: float, walk: float, walkers: int, customers: int) -> float:
    """Exact analysis of a delay and a station of several servers."""
    marginal = [1.0] + [0.0] * customers  # probability of j operations at the walkers
    rate = 0.0
    for n in range(1, customers + 1):
        wait = sum(j / min(j, walkers) * walk * marginal[j - 1] for j in range(1, n + 1))
        rate = n / (own + wait) if own + wait > 0.0 else 0.0
        new = [0.0] * (customers + 1)
        for j in range(1, n + 1):
            new[j] = walk / min(j, walkers) * rate * marginal[j - 1]
        new[0] = max(1.0 - sum(new[1:]), 0.0)
        marginal = new
    return rate


def walk_share(own: float, walk: float, walkers: int, overlap: float) -> float:
    """Return cycles of all walkers over cycles of the run; above 1 if several work at a time."""
    return operations_per_cycle(own, walk, walkers, overlap) * walk
