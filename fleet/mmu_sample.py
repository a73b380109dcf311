"""Samples of what address translation costs a class of guest programs.

A class is a CPU, a workload, a footprint, the share that small TLB entries map, which side is small
where one is, what the EPT maps page tables by, and what lies on another NUMA node. Its sample
simulates accesses of the workload over page tables that have the class's shares, made by a stated
rule. A sample is a pure function of its class, seed and length, so that it does not matter who
simulates it.

Windows are small in the order of a Weyl sequence, spread evenly over the footprint. A window's
pages lie in one window of guest memory, page tables behind all pages, one a frame, in order.
All classes of one program and footprint draw the same accesses, so that they can be compared.

Source: warm-up and length: a third of a sample before counting leaves no bias at 20,000 accesses
and more (measured, docs/results.md); Weyl, Mathematische Annalen 77, 1916.
Simplified: tables are made by a rule instead of read from the guest; a small window's frames are in
one row.
"""

import functools
import hashlib
import itertools
import math
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.hardware import load_cpu
from fleet.mmu import (
    NR_PARTS,
    VPID,
    Space,
    cost_of,
    coverage_of,
    outcome,
    popularity_of,
    with_error,
)
from fleet.profiles import WorkloadFile, build_workload, load_profile
from guestsim.workload import Workload, compile_workload, draw_pages
from hostsim.core.jit import kernel
from hostsim.core.rng import Stream, stream
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGE_SHIFT
from hostsim.mmu.cost import LOCAL, Misses, Remote, misses_of
from hostsim.mmu.cpus import Cpu, new_mmu, shares_tlb
from hostsim.mmu.paging import (
    INDEX_BITS,
    MIN_LEVELS,
    R_LEVELS,
    R_USED,
    PageTables,
    map_leaf,
    new_page_tables,
    put_leaf,
    table_at,
    tables_needed,
)
from hostsim.mmu.popularity import Popularity
from hostsim.mmu.tlb import (
    C_ACCESSES,
    C_WALKS,
    READ_EPT_DATA,
    READ_EPT_TABLE,
    Mmu,
    forget_all,
    forget_counts,
)
from hostsim.mmu.walker import access_pages, missed_pages, walk_missed

PROGRAMS_KEPT: Final = 128  # accesses of so many programs are remembered, 15 MiB
MISSES_KEPT: Final = 16  # and what misses the TLBs of so many, 4 MiB
WARM: Final = 2  # a sample counts this many times the accesses that warm it
PER_OCTAVE: Final = 2  # classes of footprints
SMALL: Final = (0.0, 1 / 128, 1 / 16, 1.0)  # classes of the share that small entries map
WEYL: Final = 0x9E3779B97F4A7C15  # golden ratio, of 2**64


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
    remote: Remote = LOCAL  # what lies on another NUMA node than the CPU


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
    mapped: NDArray[np.int32],
) -> bool:
    """Map the pages that a sample accesses; return whether the tables had room.

    Parameters
    ----------
    small
        (windows,) which of them have small entries, in the guest, on the host or both.
    mapped
        (windows, 2) work space of zeros: where a page of the window is mapped, the tables of level
        1 in guest and EPT, or any number where there is none.
    """
    for i in range(pages.size):
        page = pages[i]
        window = page >> HPAGE_PMD_ORDER
        in_guest = small[window] and guest_small
        on_host = small[window] and host_small
        if mapped[window, 0] != 0:
            if in_guest:
                put_leaf(guest, int(mapped[window, 0]), page, 1, page)
            if on_host:
                put_leaf(ept, int(mapped[window, 1]), page, 1, page)
            continue
        used = guest.root[R_USED]
        if not (_map_either(guest, page, in_guest) and _map_either(ept, page, on_host)):
            return False
        if guest.root[R_USED] != used:
            lowest = 1 if in_guest else 2
            if not _place_tables(guest, ept, page, lowest, small.size, tables_small):
                return False
        mapped[window, 0] = table_at(guest, page, 1) if in_guest else 1
        mapped[window, 1] = table_at(ept, page, 1) if on_host else 1
    return True


class _Accesses(NamedTuple):
    """What all classes of one program and footprint share."""

    workload: Workload
    popularity: Popularity
    pages: NDArray[np.int32]  # that it accesses, one after the other


@functools.cache
def _profile(workload: str) -> tuple[str, WorkloadFile]:
    return load_profile(workload)


@functools.lru_cache(maxsize=PROGRAMS_KEPT)
def _accesses(workload: str, footprint: int, seed: int, nr: int) -> _Accesses:
    """Return what a program of a footprint accesses, the same for all its classes."""
    program = build_workload(*_profile(workload), footprint_pages(footprint) << PAGE_SHIFT)
    text = f"{workload} {footprint}"
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    key = int(stream(seed, Stream.MMU, digest).integers(1 << 62))
    pages = np.empty(nr, np.int64)
    draw_pages(*compile_workload(program), key, 0, pages)
    return _Accesses(program, popularity_of(program), pages.astype(np.int32))


class _Missed(NamedTuple):
    """What all classes of one program, footprint and small share have in common."""

    counts: NDArray[np.int64]  # (NR_PARTS, counters) of the TLBs alone
    pages: NDArray[np.int64]  # that need a walk, one after the other
    ends: NDArray[np.int64]  # (1 + NR_PARTS,) where those of the warm-up and of each part end
    nr_small_windows: int  # in which they lie
    misses: Misses


@functools.lru_cache(maxsize=MISSES_KEPT)
def _missed(cpu: str, workload: str, footprint: int, share: int, seed: int, nr: int) -> _Missed:
    """Return what the TLBs let through: they see sizes of entries, not the tables behind them."""
    mmu = _emptied(cpu)
    own = _accesses(workload, footprint, seed, nr)
    small = small_windows(_nr_windows(footprint_pages(footprint)), SMALL[share])
    missed = np.empty(nr, np.int64)
    counts = np.zeros((1 + NR_PARTS, len(mmu.counts)), np.int64)
    ends = np.zeros(1 + NR_PARTS, np.int64)
    done = 0
    for part, pages in enumerate(_parts(own.pages)):
        forget_counts(mmu)
        done += missed_pages(mmu, small, VPID, pages, missed[done:])
        ends[part] = done
        counts[part] = mmu.counts
    missed = missed[:done].copy()
    here = np.zeros(len(small), np.bool_)
    here[missed >> HPAGE_PMD_ORDER] = True
    coverage = coverage_of(~small, own.popularity.classes)
    misses = misses_of(own.popularity, counts[1:].sum(axis=0), coverage)
    return _Missed(counts[1:], missed, ends, int((here & small).sum()), misses)


def _parts(pages: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the accesses that warm, and those of each part that is counted."""
    nr = len(pages) // (NR_PARTS + NR_PARTS // WARM)
    return np.split(pages, range(nr * NR_PARTS // WARM, len(pages), nr))


def _nr_windows(nr_pages: int) -> int:
    return -(-nr_pages // HPAGE_PMD_NR)


def _space(key: Class, nr_pages: int, pages: NDArray[np.int64], nr_small_windows: int) -> Space:
    """Return page tables that have a class's shares, as far as pages are accessed.

    Parameters
    ----------
    nr_small_windows
        In which accessed pages lie, at most.
    """
    small = small_windows(_nr_windows(nr_pages), SMALL[key.small])
    nr_tables = tables_needed(nr_pages, MIN_LEVELS, 1)
    used = tables_needed(nr_pages, MIN_LEVELS, 2) + nr_small_windows
    guest = new_page_tables(used, MIN_LEVELS, 0)
    of_tables = tables_needed(nr_tables, MIN_LEVELS, 1) + 2 * MIN_LEVELS
    ept = new_page_tables(used + of_tables, MIN_LEVELS, 0)
    sides = (key.side != Side.HOST, key.side != Side.GUEST, not key.tables_huge)
    mapped = np.zeros((len(small), 2), np.int32)
    if not map_sample(guest, ept, pages, small, *sides, mapped):
        raise AssertionError("tables for a footprint did not suffice")  # counted above
    nested = key.side != Side.NATIVE
    return Space(guest, ept, nested, nr_pages, ~small, ~small, nr_tables)


def _count(cpu: str, space: Space, pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Access pages; return the counters of the parts behind the first one, which warms."""
    mmu = _emptied(cpu)
    counts = np.zeros((1 + NR_PARTS, len(mmu.counts)), np.int64)
    for part, own in zip(counts, _parts(pages), strict=True):
        forget_counts(mmu)
        access_pages(mmu, space.guest, space.ept, space.nested, VPID, own, len(own))
        part[:] = mmu.counts
    return counts[1:]


def _count_walks(cpu: str, space: Space, missed: _Missed) -> NDArray[np.int64]:
    """Return what `_count` returns, from the accesses that miss the TLBs."""
    mmu = _emptied(cpu)
    counts = missed.counts.copy()
    walk_missed(mmu, *space[:3], VPID, missed.pages[: missed.ends[0]])
    for part, (first, end) in zip(counts, itertools.pairwise(missed.ends.tolist()), strict=True):
        forget_counts(mmu)
        walk_missed(mmu, *space[:3], VPID, missed.pages[first:end])
        part += mmu.counts
    return counts


@functools.cache
def _cpu(name: str) -> Cpu:
    return load_cpu(name)


@functools.cache
def _mmu(name: str) -> Mmu:
    return new_mmu(_cpu(name))


def _emptied(name: str) -> Mmu:
    """Return the hardware of a CPU that all samples use, with nothing in it."""
    mmu = _mmu(name)
    forget_all(mmu)
    return mmu


def sample(key: Class, seed: int, accesses: int) -> NDArray[np.float64]:
    """Simulate one class: a pure function of its arguments.

    Parameters
    ----------
    accesses
        To count; half as many warm up first.
    """
    cpu = _cpu(key.cpu)
    accesses -= accesses % NR_PARTS
    nr = accesses + accesses // WARM
    nr_pages = footprint_pages(key.footprint)
    own = _accesses(key.workload, key.footprint, seed, nr)
    if shares_tlb(cpu):
        pages = own.pages.astype(np.int64)
        space = _space(key, nr_pages, pages, _nr_windows(nr_pages))
        counts, misses = _count(key.cpu, space, pages), None
    else:
        missed = _missed(key.cpu, key.workload, key.footprint, key.small, seed, nr)
        # The first access of a page misses, so all pages are among these.
        space = _space(key, nr_pages, missed.pages, missed.nr_small_windows)
        counts, misses = _count_walks(key.cpu, space, missed), missed.misses
    cost = cost_of(own.popularity, cpu, space, counts, key.remote, misses)
    found = outcome(own.workload, cpu, counts, cost, key.remote.memory)
    return figures_of(found, cpu, own.workload.steps)


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
