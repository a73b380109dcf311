"""A CPU's translation hardware as numbers, and the state that simulates it.

The numbers come from description files; what a description says is checked here.
"""

from typing import Final, NamedTuple

import numpy as np

from hostsim.core.arena import Field, carve
from hostsim.core.lanes import LANES
from hostsim.mmu.paging import INDEX_BITS, MAX_LEVELS, PAGE_SIZES
from hostsim.mmu.tlb import (
    ABSENT,
    AHEAD,
    EPT_PWC,
    G_FIRST,
    G_GROUP,
    G_GROUPS,
    G_KIND,
    G_LANES,
    G_OLDEST_SHIFT,
    G_SETS_BITS,
    G_SETS_MASK,
    G_STRIDE,
    G_WAYS,
    L1_TLB,
    L2_TLB,
    LOG_ENTRIES,
    NARROW,
    NESTED_TLB,
    NIBBLE_BITS,
    NR_COUNTERS,
    NR_G_FIELDS,
    NR_S_FIELDS,
    NR_STORES,
    ORDERED_WAYS,
    PWC,
    TIMED,
    WIDE,
    Mmu,
    forget_all,
)


class TlbSpec(NamedTuple):
    """One TLB of a CPU."""

    name: str
    level: int  # 1 or 2
    sizes: tuple[str, ...]  # page sizes that it holds
    entries: int
    ways: int  # entries / ways sets; ways = entries: fully associative
    group_ways: tuple[int, ...]  # ways open to a page, by size; () if all
    holds_tables: bool  # page-directory entries share it
    source: str


class WalkCacheSpec(NamedTuple):
    """Entries and ways of the paging-structure caches by level, and of the nested TLB."""

    entries: dict[int, int]  # level of the entry (2: page directory) -> entries
    ways: dict[int, int]
    nested_entries: int
    nested_ways: int


class LatencySpec(NamedTuple):
    """Cycles of a load by where its line is found, and what translation adds."""

    l1_cycles: float
    l2_cycles: float
    llc_cycles: float
    dram_cycles: float
    l2_tlb_cycles: float  # a first-level miss that hits the second level
    walk_cycles: float  # of a walk, beside its reads
    remote_cycles: float  # in the memory of another NUMA node


class CacheSpec(NamedTuple):
    """The data caches that one hardware thread's walker can hit."""

    l1_bytes: int
    l2_bytes: int
    llc_bytes: int
    fill_lines: int  # lines that a miss of data brings into the second level and below


class Cpu(NamedTuple):
    """The translation hardware of one hardware thread."""

    name: str
    title: str
    levels: tuple[int, ...]  # paging depths that it has
    sizes: tuple[str, ...]
    tlbs: tuple[TlbSpec, ...]
    instruction_tlbs: tuple[TlbSpec, ...]  # listed only
    walk_caches: WalkCacheSpec
    walkers: int  # walks at a time
    latency: LatencySpec
    cache: CacheSpec


NO_WALK_CACHES: Final = WalkCacheSpec({}, {}, 0, 0)


def check_tlb(tlb: TlbSpec) -> list[str]:
    """Return what is wrong with a TLB's description."""
    problems = []
    if tlb.ways <= 0 or tlb.entries % tlb.ways:
        return [f"{tlb.entries} entries are not a multiple of {tlb.ways} ways"]
    sets = tlb.entries // tlb.ways
    if sets & (sets - 1):
        problems.append(f"{sets} sets are no power of two")
    if tlb.group_ways and len(tlb.group_ways) != len(tlb.sizes):
        problems.append(f"{len(tlb.group_ways)} groups of ways for {len(tlb.sizes)} page sizes")
    problems += [
        f"groups of {group} ways do not divide {tlb.ways} ways"
        for group in tlb.group_ways
        if group <= 0 or tlb.ways % group
    ]
    problems += [f"{size!r} is no page size" for size in tlb.sizes if size not in PAGE_SIZES]
    return problems


class _Layout:
    """Lays stores out one behind the other."""

    def __init__(self) -> None:
        self.geometry = np.zeros((NR_STORES, NR_G_FIELDS), np.int64)
        self.end = 0

    def place(self, entries: int, ways: int, grouped: bool = False) -> int:
        """Return the first word of a new store."""
        first = self.end
        stride = _stride(ways, grouped)
        self.end += entries // ways * stride
        if stride == ways:
            self.end += ORDERED_WAYS  # stay empty: so many are looked at together
        return first

    def describe(self, store: int, first: int, entries: int, ways: int, group: int = 0) -> None:
        sets = entries // ways
        row = self.geometry[store]
        row[G_FIRST] = first
        row[G_SETS_MASK] = sets - 1
        row[G_SETS_BITS] = sets.bit_length() - 1
        row[G_STRIDE] = _stride(ways, group > 0)
        row[G_WAYS] = ways
        if row[G_STRIDE] == ways:
            row[G_KIND] = TIMED
        else:
            row[G_KIND] = NARROW if ways <= LANES else WIDE
            row[G_LANES] = (1 << ways) - 1
            row[G_OLDEST_SHIFT] = (ways - 1) * NIBBLE_BITS
        row[G_GROUP] = group or ways
        row[G_GROUPS] = ways // (group or ways)

    def spread(self, store: int, first: int, entries: int, ways: int) -> bool:
        """Spread a size over the store it has and the one that begins at a word, if both are alike.

        The page-number bit above those of the set chooses the store: twice as many sets.
        """
        row = self.geometry[store]
        sets = entries // ways
        ends = row[G_FIRST] + sets * row[G_STRIDE]
        alike = row[G_WAYS] == ways and row[G_SETS_MASK] == sets - 1
        if alike and row[G_KIND] != TIMED and ends == first:
            self.describe(store, int(row[G_FIRST]), 2 * entries, ways)
            return True
        return False


def _stride(ways: int, grouped: bool) -> int:
    """Return the words of a set: its entries, before them their order if it keeps one."""
    return ways if grouped or ways > ORDERED_WAYS else 1 + ways


def new_mmu(cpu: Cpu) -> Mmu:
    """Return the empty TLBs and walk caches of one hardware thread of a CPU.

    Raises
    ------
    ValueError
        A size of the CPU has no first-level TLB, or more than two second-level ones, or two that
        are not alike and described one behind the other.
    """
    layout = _Layout()
    for tlb in cpu.tlbs:
        first = layout.place(tlb.entries, tlb.ways, bool(tlb.group_ways))
        for i, size in enumerate(tlb.sizes):
            number = PAGE_SIZES.index(size)
            store = (L1_TLB if tlb.level == 1 else L2_TLB) + number
            if layout.geometry[store, G_KIND] != ABSENT:
                plain = tlb.level == 2 and not tlb.group_ways
                if plain and layout.spread(store, first, tlb.entries, tlb.ways):
                    continue
                raise ValueError(
                    f"{cpu.name}: too many TLBs of level {tlb.level} for {size}, or not alike"
                )
            group = tlb.group_ways[i] if tlb.group_ways else 0
            layout.describe(store, first, tlb.entries, tlb.ways, group)
        if tlb.holds_tables:
            group = tlb.group_ways[-1] if tlb.group_ways else 0
            layout.describe(PWC + 2, first, tlb.entries, tlb.ways, group)
    for size in cpu.sizes:
        if layout.geometry[L1_TLB + PAGE_SIZES.index(size), G_KIND] == ABSENT:
            raise ValueError(f"{cpu.name}: no TLB of level 1 for {size}")
    caches = cpu.walk_caches
    for level, entries in caches.entries.items():
        for kind in (PWC, EPT_PWC):
            if entries and layout.geometry[kind + level, G_KIND] == ABSENT:
                ways = caches.ways[level]
                layout.describe(kind + level, layout.place(entries, ways), entries, ways)
    if caches.nested_entries:
        entries, ways = caches.nested_entries, caches.nested_ways
        layout.describe(NESTED_TLB, layout.place(entries, ways), entries, ways)
    return _empty_mmu(layout)


def _empty_mmu(layout: _Layout) -> Mmu:
    word = np.dtype(np.int64)
    entries = (layout.end + ORDERED_WAYS,)  # sets are looked at by vectors
    fields = (
        Field("geometry", layout.geometry.shape, word),
        Field("tag", entries, word),
        Field("value", entries, np.dtype(np.int32)),
        Field("moment", entries, word),
        Field("state", (NR_S_FIELDS,), word),
        Field("counts", (NR_COUNTERS,), word),
        Field("ahead", (AHEAD,), word),
        Field("log", (LOG_ENTRIES,), word),
    )
    mmu = Mmu(**carve(fields))
    mmu.geometry[:] = layout.geometry
    forget_all(mmu)
    return mmu


def shares_tlb(cpu: Cpu) -> bool:
    """Say whether entries of page tables and of pages compete for one TLB's ways."""
    return any(tlb.holds_tables for tlb in cpu.tlbs)


def cold_mmu() -> Mmu:
    """Return an MMU without walk caches, and with one TLB entry a page size."""
    one = tuple(TlbSpec(size, 1, (size,), 1, 1, (), False, "") for size in PAGE_SIZES)
    none = LatencySpec(0, 0, 0, 0, 0, 0, 0)
    levels = tuple(range(MAX_LEVELS - 1, MAX_LEVELS + 1))
    return new_mmu(
        Cpu("cold", "", levels, PAGE_SIZES, one, (), NO_WALK_CACHES, 1, none, CacheSpec(0, 0, 0, 1))
    )


def reach_pages(cpu: Cpu, size: str) -> int:
    """Return how many base pages the larger level of TLBs maps with pages of a size."""
    by_level = [
        sum(tlb.entries for tlb in cpu.tlbs if size in tlb.sizes and tlb.level == level)
        for level in (1, 2)
    ]
    return max(by_level) << (PAGE_SIZES.index(size) * INDEX_BITS)
