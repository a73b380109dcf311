"""An oracle for TLBs that shares nothing with the kernels: an LRU cascade in NumPy.

In one set of a true-LRU store the slot at depth ``d`` holds, before an access that reaches it,
what the last access that reached it pushed down from depth ``d - 1``; so one pass a way tells at
which depth every access of a whole stream hits.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.hardware import load_cpu
from hostsim.core.rng import Stream, stream
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mmu.cpus import Cpu, new_mmu
from hostsim.mmu.paging import PAGE_SIZES, PageTables, map_leaf, new_page_tables, tables_needed
from hostsim.mmu.tlb import C_L1_HITS, C_L2_HITS, C_READS, C_WALKS, LEVEL_STRIDE
from hostsim.mmu.walker import access_pages

PAGES: Final = 3 << 18  # 3 GiB
LEVELS: Final = 4
FIRST_TABLE: Final = 1 << 27
LOOP_PAGES: Final = 1280  # 5 MiB
STREAMS: Final = (
    # CPU, stream, which windows are huge
    ("skylake-sp", "uniform", "none"),
    ("skylake-sp", "uniform", "odd"),
    ("skylake-sp", "zipf", "none"),
    ("skylake-sp", "zipf", "all"),
    ("skylake-sp", "lines", "none"),
    ("skylake-sp", "stride", "odd"),
    ("skylake-sp", "loop", "none"),
    ("skylake-sp", "mixed", "odd"),
    ("nehalem", "mixed", "odd"),
    ("haswell", "mixed", "odd"),
    ("ice-lake-sp", "mixed", "odd"),
    ("ice-lake-sp", "zipf", "none"),
)
Bits = NDArray[np.bool_]
Numbers = NDArray[np.int64]


class Counted(NamedTuple):
    """Hits, walks, and reads at levels 1 to 4."""

    l1_hits: int
    l2_hits: int
    walks: int
    reads: tuple[int, ...]


def hits_by_cascade(keys: Numbers, sets: Numbers, ways: int) -> Bits:
    """Return which accesses hit a set-associative LRU store.

    ``keys`` are looked up in order, each in its set of ``sets``, and inserted on a miss.
    """
    order = np.argsort(sets, kind="stable")
    where = order  # position in the stream of every access that reaches the present depth
    wanted = keys[order]
    pushed = wanted  # what it leaves at the present depth
    group = sets[order]
    hit = np.zeros(len(keys), bool)
    for _ in range(ways):
        if len(where) == 0:
            break
        content = np.full(len(where), -1, np.int64)
        same = group[1:] == group[:-1]
        content[1:][same] = pushed[:-1][same]
        found = content == wanted
        hit[where[found]] = True
        on = ~found
        where, wanted, group, pushed = where[on], wanted[on], group[on], content[on]
    return hit


def draw(name: str, nr: int) -> Numbers:
    """Return the pages of a stream."""
    rng = stream(1, Stream.BENCH)
    at = np.arange(nr, dtype=np.int64)
    if name == "uniform":
        return rng.integers(0, PAGES, nr)
    if name == "zipf":
        return (rng.zipf(1.2, nr) % PAGES) * 7919 % PAGES
    if name == "lines":
        return at >> 6
    if name == "stride":
        return at * 3 % PAGES
    if name == "loop":
        return at % LOOP_PAGES
    hot = rng.integers(0, 2048, nr) * 61 % PAGES
    return np.where(rng.random(nr) < 0.7, hot, rng.integers(0, PAGES, nr))


def sizes_of(name: str, pages: Numbers) -> Numbers:
    """Return 1 where a page lies in a huge window."""
    if name == "odd":
        return pages >> HPAGE_PMD_ORDER & 1
    return np.full(len(pages), int(name == "all"), np.int64)


def tables_of(name: str) -> PageTables:
    """Return page tables of 3 GiB with huge windows."""
    made = new_page_tables(tables_needed(PAGES, LEVELS, 1), LEVELS, FIRST_TABLE)
    first = np.arange(0, PAGES, HPAGE_PMD_NR)
    for page, huge in zip(first.tolist(), sizes_of(name, first).tolist(), strict=True):
        for small in range(page, page + (1 if huge else HPAGE_PMD_NR)):
            map_leaf(made, small, 2 if huge else 1, small)
    return made


def _stores(cpu: Cpu, level: int, size: int) -> list[Any]:
    return [t for t in cpu.tlbs if t.level == level and PAGE_SIZES[size] in t.sizes]


def expect(cpu: Cpu, pages: Numbers, size: Numbers) -> Counted:
    """Return what a stream must count, by one cascade a store."""
    page = pages >> (HPAGE_PMD_ORDER * size)
    key = page * 4 + size
    l1_hit = np.zeros(len(pages), bool)
    for number in range(2):
        (store,) = _stores(cpu, 1, number)
        mine = size == number
        sets = page[mine] % (store.entries // store.ways)
        l1_hit[mine] = hits_by_cascade(key[mine], sets, store.ways)
    missed = np.flatnonzero(~l1_hit)
    # Which set each miss goes to; -1 if the CPU keeps its size in no second level.
    where = np.full(len(missed), -1, np.int64)
    ways = 0
    for number in range(2):
        found = _stores(cpu, 2, number)
        if found:
            mine = size[missed] == number
            ways = found[0].ways
            sets = found[0].entries // ways * len(found)  # a bit above the set's chooses the half
            where[mine] = page[missed][mine] % sets
    kept = where >= 0
    l2_hit = np.zeros(len(missed), bool)
    l2_hit[kept] = hits_by_cascade(key[missed][kept], where[kept], ways)
    walked = missed[~l2_hit]
    return Counted(
        int(l1_hit.sum()),
        int(l2_hit.sum()),
        len(walked),
        _expect_reads(cpu, pages[walked], size[walked]),
    )


def _expect_reads(cpu: Cpu, pages: Numbers, size: Numbers) -> tuple[int, ...]:
    """Return the reads at each level of native walks, by one cascade a walk cache."""
    caches = cpu.walk_caches
    small = np.flatnonzero(size == 0)
    hit = np.zeros(len(pages), bool)
    part = pages[small] >> HPAGE_PMD_ORDER
    hit[small] = hits_by_cascade(part, part % (caches.entries[2] // caches.ways[2]), caches.ways[2])
    reads = [len(small)]
    left = pages[~hit]
    for level in (3, 4):
        reads.append(len(left))
        part = left >> (HPAGE_PMD_ORDER * (level - 1))
        sets = caches.entries[level] // caches.ways[level]
        left = left[~hits_by_cascade(part, part % sets, caches.ways[level])]
    return (*reads, len(left))


def count(cpu: Cpu, tables: PageTables, pages: Numbers) -> Counted:
    """Return what the kernels count."""
    mmu = new_mmu(cpu)
    access_pages(mmu, tables, new_page_tables(1, LEVELS, 0), False, 1, pages, len(pages))
    reads = mmu.counts[C_READS : C_READS + LEVEL_STRIDE]
    return Counted(
        int(mmu.counts[C_L1_HITS]),
        int(mmu.counts[C_L2_HITS]),
        int(mmu.counts[C_WALKS]),
        tuple(int(reads[level]) for level in range(1, LEVELS + 1)),
    )


def compare(cpu_name: str, name: str, huge: str, nr: int) -> tuple[Counted, Counted]:
    """Return what the cascade expects of a stream and what the kernels count."""
    cpu = load_cpu(cpu_name)
    pages = draw(name, nr)
    return expect(cpu, pages, sizes_of(huge, pages)), count(cpu, tables_of(huge), pages)
