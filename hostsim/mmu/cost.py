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
from hostsim.mmu.brent import AT, NR_ROOT_FIELDS, VALUE, begin_root, next_place
from hostsim.mmu.cpus import Cpu
from hostsim.mmu.popularity import ENTRIES_PER_LINE, Lines, Popularity, Units
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
Function = Callable[[float], Any]
PLACES: Final = ("L1", "L2", "LLC", "DRAM")


class Remote(NamedTuple):
    """What lies in the memory of another NUMA node than that of the CPU."""

    memory: bool = False  # the program's: its data, and the page tables that map it
    ept: bool = False  # the tables of the EPT


LOCAL: Final = Remote()


class WalkCost(NamedTuple):
    """What the walks of one run of accesses cost."""

    reads: NDArray[np.float64]  # (class, level) reads an access
    found: NDArray[np.float64]  # (class, level, place) share of the reads served by L1, L2, ...
    walks: float  # an access
    walk_cycles: float  # cycles of a walk
    ept_ratio: float  # share of them in EPT reads
    l2_tlb_hits: float  # an access
    data_dram: float  # share of the accesses whose line comes from memory and is waited for


_SPAN_PAGES: Final = np.array(  # that one line of entries of a level stands for
    [0.0, *(float(ENTRIES_PER_LINE * PTRS_PER_TABLE**below) for below in range(LEVEL_STRIDE - 1))]
)
_LEAST_POWER: Final = -3.0  # of ten, of accesses: times that are told apart
_MOST_POWER: Final = 18.0


def _solve_time(occupancy: Function, target: float) -> float:
    """Return the time at which a growing function of time reaches a target; infinity if never."""
    low, high = 10.0**_LEAST_POWER, 10.0**_MOST_POWER
    f_high, f_low = occupancy(high), occupancy(low)
    if f_high <= target:
        return math.inf
    if f_low >= target:
        return low
    s = np.empty(NR_ROOT_FIELDS)
    begin_root(s, _LEAST_POWER, f_low - target, _MOST_POWER, f_high - target)
    while next_place(s):
        s[VALUE] = occupancy(10.0 ** float(s[AT])) - target
    return float(10.0 ** float(s[AT]))


class Misses(NamedTuple):
    """What the TLBs let through of the reads of each class."""

    rates: NDArray[np.float64]  # (sizes, classes) walks of one object if it is mapped so
    times: NDArray[np.float64]  # (sizes,) how long an entry is kept
    coverage: NDArray[np.float64]  # (sizes, classes) share of the objects mapped by each size


def miss_rates(
    of: Popularity, walks_by_size: NDArray[np.float64], coverage: NDArray[np.float64]
) -> Misses:
    """Return how many walks an object of each class causes, and how long TLBs keep each size.

    The TLBs filter the popular ones; their characteristic time is such that the sum over all is
    the number of walks that was simulated, of one access.

    Parameters
    ----------
    walks_by_size
        Walks an access that ended in an entry of each page size.
    coverage
        As in `Misses`.
    """
    rates = np.zeros(coverage.shape)
    times = np.zeros(len(coverage))
    rate, objects = of.classes.rate, of.classes.objects
    for size, walks in enumerate(walks_by_size):
        present = coverage[size]
        if walks <= 0.0 or not present.any():
            continue
        units = Units(of, rate, present)
        neighbours = units.objects(float(PTRS_PER_TABLE**size)) - 1.0

        def missing(
            time: float, units: Units = units, neighbours: NDArray[np.float64] = neighbours
        ) -> NDArray[np.float64]:
            unread = -rate * time + neighbours * units.log_unread(time)
            found: NDArray[np.float64] = rate * of.first * np.exp(np.maximum(unread, -700.0))
            return found

        def hits(
            time: float, present: NDArray[np.float64] = present, missing: Function = missing
        ) -> float:
            return float(1.0 - (missing(time) * present * objects).sum())

        time = _solve_time(hits, 1.0 - walks)
        times[size] = time = time if np.isfinite(time) else 0.0
        rates[size] = missing(time)
        total = (rates[size] * present * objects).sum()
        rates[size] *= walks / total if total > 0.0 else 0.0
    return Misses(rates, times, coverage)


def misses_of(of: Popularity, counts: NDArray[np.int64], coverage: NDArray[np.float64]) -> Misses:
    """Return what the TLBs that counted accesses and fills let through."""
    by_size = counts[C_FILLS : C_FILLS + len(coverage)] / float(counts[C_ACCESSES])
    return miss_rates(of, by_size, coverage)


class _TableLines(NamedTuple):
    """Lines of page tables that walks read, one row a kind and level."""

    kind: NDArray[np.int64]
    level: NDArray[np.int64]
    lines: Lines
    wanted: NDArray[np.float64]  # (rows, classes) share of the reads


def _table_lines(
    of: Popularity, reads: NDArray[np.float64], misses: Misses, pages_per_table: float
) -> _TableLines:
    """Return the lines that walks look for."""
    objects = of.classes.objects
    # Entries of the lowest level belong to small pages; the others are on every way down.
    below = misses.rates[0], misses.coverage[0]
    above = (misses.rates * misses.coverage).sum(axis=0), of.everywhere
    kind, level = np.nonzero(reads > 0)
    small = (level == 1) & (kind != READ_EPT_TABLE)
    total = np.array(
        [float((missed * present * objects).sum()) for missed, present in (below, above)]
    )
    which = np.where(small, 0, 1)
    known = total[which] > 0.0
    kind, level, which = kind[known], level[known], which[known]
    missed = np.stack([below[0], above[0]])[which]
    present = np.stack([below[1], above[1]])[which]
    times = np.append(misses.times, np.zeros(LEVEL_STRIDE))[level - 1]
    own = (kind != READ_EPT_TABLE) & (times > 0.0)
    span = _SPAN_PAGES[level]
    pages = np.where(kind == READ_EPT_TABLE, span * pages_per_table, span)[:, None]
    in_a_row = of.classes.run / ENTRIES_PER_LINE * missed / of.classes.rate
    lines = Lines(
        Units(of, missed * (reads[kind, level] / total[which])[:, None], present),
        pages,
        np.where(of.cyclic, np.maximum(pages * in_a_row, 1.0), 1.0),
        np.where(own, span / ENTRIES_PER_LINE, 0.0)[:, None],
        np.where(own, times, 0.0)[:, None],
    )
    return _TableLines(kind, level, lines, missed * present * objects / total[which][:, None])


def _stays(of: Popularity, tables: Lines, cpu: Cpu) -> list[float]:
    """Return how long a line stays in each cache, in accesses."""
    fill, cache = cpu.cache.fill_lines, cpu.cache
    sizes = ((1, cache.l1_bytes), (fill, cache.l2_bytes), (fill, cache.llc_bytes))
    read = np.empty(of.nr_groups)
    s = np.empty(NR_ROOT_FIELDS)
    times = []
    for together, size in sizes:
        data = of.data_lines(together)
        weight, turns, objects, nr = (
            np.concatenate([own[None], others])
            for own, others in (
                (data.units.weight, tables.units.weight),
                (data.turns, tables.turns),
                (data.objects, tables.objects),
                (data.nr, tables.nr),
            )
        )
        lines = weight, turns, objects, nr, of.share, of.group, of.cyclic, read
        times.append(float(_stay(*lines, s, 10.0, size / LINE_BYTES)))
    return times


def walk_cost(
    cpu: Cpu,
    of: Popularity,
    counts: NDArray[np.int64],
    misses: Misses,
    pages_per_table: float,
    remote: Remote = LOCAL,
) -> WalkCost:
    """Return where walks found their lines and what they cost.

    Parameters
    ----------
    counts
        Counters of an `Mmu` after (warmed) accesses.
    misses
        As `misses_of` finds them from these.
    pages_per_table
        Data pages of the guest for one table page.
    """
    accesses = float(counts[C_ACCESSES])
    walks = float(counts[C_WALKS]) / accesses
    counted = counts[C_READS : C_READS + NR_READ_CLASSES * LEVEL_STRIDE]
    reads = counted.reshape(NR_READ_CLASSES, -1) / accesses
    tables = _table_lines(of, reads, misses, pages_per_table)
    times = _stays(of, tables.lines, cpu)
    found = np.zeros((NR_READ_CLASSES, LEVEL_STRIDE, len(PLACES)))
    found[reads > 0, 0] = 1.0  # where no class of accesses is known to walk, walks are few
    hits = np.zeros((len(tables.kind), len(times) + 2))
    for i, time in enumerate(times):
        hits[:, 1 + i] = (tables.wanted * tables.lines.read_again(time)).sum(axis=1)
    hits[:, 1:-1] = np.maximum.accumulate(hits[:, 1:-1], axis=1)
    hits[:, -1] = 1.0
    found[tables.kind, tables.level] = np.diff(hits)
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
        data_dram=_from_memory(of, cpu.cache.fill_lines, times[-1]),
    )


def _from_memory(of: Popularity, together: int, time: float) -> float:
    """Return the share of accesses whose line is in no cache; what is read in turn is prefetched.

    Parameters
    ----------
    together
        Lines that a read brings in.
    time
        How long the last level of caches keeps a line.
    """
    missed = 1.0 - of.data_lines(together).read_again(time)
    return float((of.classes.rate * of.classes.objects * missed * ~of.cyclic).sum())


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


@kernel
def _stay(
    weight: NDArray[np.float64],
    turns: NDArray[np.float64],
    objects: NDArray[np.float64],
    units: NDArray[np.float64],
    share: NDArray[np.float64],
    group: NDArray[np.int64],
    cyclic: NDArray[np.bool_],
    read: NDArray[np.float64],
    s: NDArray[np.float64],
    ten: float,
    target: float,
) -> float:
    """Return the time after which so many lines are held, as `_solve_time` does.

    Parameters
    ----------
    s
        (NR_ROOT_FIELDS,) work space.
    ten
        Ten, as a number that the compiler does not know: a power of it is to be that of Python.
    """
    of = weight, turns, objects, units, share, group, cyclic, read
    f_high = _kept(*of, ten**_MOST_POWER)
    if f_high <= target:
        return math.inf
    f_low = _kept(*of, ten**_LEAST_POWER)
    if f_low >= target:
        return ten**_LEAST_POWER
    begin_root(s, _LEAST_POWER, f_low - target, _MOST_POWER, f_high - target)
    while next_place(s):
        s[VALUE] = _kept(*of, ten ** s[AT]) - target
    return float(ten ** s[AT])


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
