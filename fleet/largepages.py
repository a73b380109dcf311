"""The benchmark of the THP commit message, largepages3, on a simulated machine.

It writes 3 GiB of fresh memory, writes it twice more, and then stores a byte in every page,
twice: with hugetlbfs, with transparent hugepages, and without.  Faults are those of the memory
manager over real frames, with its costs; TLB misses and walk reads are those of the walker over
the page tables that it leaves.

Source: Linux commit 71e3aac072, thp: transparent hugepage core (program and table).
Simplified: the page fault pass translates after all faults, not after each: the same misses.
Simplified: a memset waits for every walk, as its stores leave in order.
"""

import tomllib
from importlib.resources import files
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.hardware import load_cpu
from fleet.mmu import VPID, Space, cost_of, popularity_of
from guestsim.workload import ANY_STEP, Component, Law, Workload
from hostsim.core.units import HPAGE_PMD_NR, PAGE_BYTES, PAGE_SHIFT, parse_pages
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.hugetlb import hugetlb_mmap, set_nr_hugepages
from hostsim.mm.memory import new_memory, set_thp
from hostsim.mm.mm_types import HUGETLB_2M, P_COST_NS, Memory
from hostsim.mm.mmap import ADVICE_NONE, mm_alloc
from hostsim.mm.rmap import KIND_PGTABLE
from hostsim.mm.vmstat import PGFAULT
from hostsim.mmu.cpus import new_mmu
from hostsim.mmu.paging import new_page_tables, tables_needed
from hostsim.mmu.tlb import C_L2_HITS, C_READS, C_WALKS, forget_counts
from hostsim.mmu.walker import access_pages
from hostsim.translation import alloc_upper_tables, huge_windows, page_tables_of

ARRAY_PAGES: Final = 3 << (30 - PAGE_SHIFT)
LEVELS: Final = 4
LINE_BYTES: Final = 64
LINES_PER_PAGE: Final = PAGE_BYTES // LINE_BYTES
BATCH_PAGES: Final = 1 << 12  # of accesses made at a time
CONFIGURATIONS: Final = ("hugetlbfs", "thp", "off")
PHASES: Final = ("page fault", "memset", "memset second", "stride", "stride second")
PUBLISHED_US: Final[dict[str, tuple[tuple[int, int], ...]]] = {  # two runs a phase
    "hugetlbfs": (
        (1566023, 1566471),
        (453854, 453375),
        (453321, 453320),
        (41635, 41636),
        (41658, 41637),
    ),
    "thp": (
        (1566642, 1566872),
        (453417, 453418),
        (453313, 453315),
        (41630, 41618),
        (41647, 41659),
    ),
    "off": (
        (2182476, 2182791),
        (460305, 460742),
        (460179, 459962),
        (44483, 43981),
        (44186, 43988),
    ),
}
CELL_TOLERANCE: Final = 0.015
RATIO_TOLERANCES: Final = (0.010, 0.005, 0.005, 0.005, 0.005)
SAME_TOLERANCE: Final = 0.001  # hugetlbfs against THP
ALIGNED_FAULTS: Final = {"hugetlbfs": 1536, "thp": 1536, "off": 786432}
UNALIGNED_FAULTS: Final = {"hugetlbfs": 1536, "thp": 1535 + 513, "off": 786433}  # and a page more


class Machine(NamedTuple):
    """What the benchmark runs on."""

    cpu: str
    memory_pages: int
    kernel: str
    clock_ghz: float
    memset_bytes_per_us: float
    store_ns: float
    exposed_ratio: float


class Phase(NamedTuple):
    """One timed loop."""

    time_us: float
    faults: int
    walks: int
    l2_hits: int
    references: int
    walk_cycles: float  # of a walk


class Cell(NamedTuple):
    """One claim of the table, judged."""

    name: str
    expected: float
    printed: float
    tolerance: float
    verdict: bool


def load_machine() -> Machine:
    """Return the machine of the built-in description."""
    text = files("scenarios").joinpath("seed", "largepages.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    return Machine(
        found["cpu"],
        parse_pages(found["memory"]),
        found["kernel"],
        found["clock_ghz"],
        **found["fitted"],
    )


def _start(machine: Machine, configuration: str, unaligned: bool) -> tuple[Memory, int, int]:
    """Boot and start the program; return memory, process and the pages that it writes.

    An array as malloc leaves it begins anywhere: a page longer for its header, with small pages
    before the first and behind the last whole window.
    """
    mem = new_memory(machine.memory_pages, machine.kernel, 1, memmap=True)
    set_thp(mem, "never" if configuration == "off" else "always", "always", False)
    pages = ARRAY_PAGES
    small = 0
    if unaligned and configuration != "hugetlbfs":
        pages += 1
        small = HPAGE_PMD_NR + 1
    mm = int(mm_alloc(mem, pages - small, small, ADVICE_NONE, False, 0))
    if configuration == "hugetlbfs":
        set_nr_hugepages(mem, pages // HPAGE_PMD_NR)
        if not hugetlb_mmap(mem, mm, HUGETLB_2M, True):
            raise ValueError("the machine's memory was too small")
    if not alloc_upper_tables(mem, mm, KIND_PGTABLE, tables_needed(pages, LEVELS, 2)):
        raise ValueError("the machine's memory was too small")
    return mem, mm, pages


def _sequential(name: str, pages: int, stride_bytes: int) -> Workload:
    component = Component(Law.SEQUENTIAL, 1.0, 0, pages, ANY_STEP, stride_bytes=stride_bytes)
    return Workload(name, pages, 1, (component,), 1.0, 1.0, 1.0, 1.0, False)


def _pass(mmu: Any, space: Space, accesses_per_page: int) -> NDArray[np.int64]:
    """Access all pages in order; return what was counted."""
    forget_counts(mmu)
    for first in range(0, space.pages, BATCH_PAGES):
        part = np.arange(first, min(first + BATCH_PAGES, space.pages))
        pages = np.repeat(part, accesses_per_page)
        access_pages(mmu, space.guest, space.ept, False, VPID, pages, len(pages))
    return np.array(mmu.counts)


def run(machine: Machine, configuration: str, unaligned: bool = False) -> list[Phase]:
    """Run the program in one configuration; return its five timed loops."""
    mem, mm, pages = _start(machine, configuration, unaligned)
    mem.pool[P_COST_NS] = 0
    mem.vmstat[PGFAULT] = 0
    if touch_range(mem, mm, 0, pages, 1, 1.0, 0, True, 0) != FAULT_OK:
        raise ValueError("the machine's memory was too small")
    faults = int(mem.vmstat[PGFAULT])
    fault_us = float(mem.pool[P_COST_NS]) / 1e3
    tables = page_tables_of(mem, mm, LEVELS)
    huge = np.zeros(-(-pages // HPAGE_PMD_NR), bool)
    huge_windows(tables, tables, False, huge)
    none = new_page_tables(1, LEVELS, 0)
    space = Space(tables, none, False, pages, huge, huge, int(tables.root[2]))
    cpu = load_cpu(machine.cpu)
    mmu = new_mmu(cpu)
    phases = []
    for number in range(len(PHASES)):
        strided = number >= 3
        counts = _pass(mmu, space, 1 if strided else LINES_PER_PAGE)
        program = _sequential(PHASES[number], pages, PAGE_BYTES if strided else LINE_BYTES)
        cost = cost_of(popularity_of(program), cpu, space, counts)
        translation_us = (
            float(
                counts[C_WALKS] * cost.walk_cycles + counts[C_L2_HITS] * cpu.latency.l2_tlb_cycles
            )
            / machine.clock_ghz
            / 1e3
        )
        if strided:
            time_us = pages * machine.store_ns / 1e3 + machine.exposed_ratio * translation_us
        else:
            time_us = pages * PAGE_BYTES / machine.memset_bytes_per_us + translation_us
        phases.append(
            Phase(
                time_us + (fault_us if number == 0 else 0.0),
                faults if number == 0 else 0,
                int(counts[C_WALKS]),
                int(counts[C_L2_HITS]),
                int(counts[C_READS:].sum()),
                cost.walk_cycles,
            )
        )
    return phases


def published(configuration: str) -> list[float]:
    """Return the mean of the seed's two runs, phase by phase, in microseconds."""
    return [sum(runs) / len(runs) for runs in PUBLISHED_US[configuration]]


def run_all(unaligned: bool = False) -> dict[str, list[Phase]]:
    """Run the program in all configurations."""
    machine = load_machine()
    return {name: run(machine, name, unaligned) for name in CONFIGURATIONS}


def judge(found: dict[str, list[Phase]], unaligned: bool = False) -> list[Cell]:
    """Hold simulated phases against the seed's table."""
    cells = []
    for configuration, phases in found.items():
        for name, phase, expected in zip(PHASES, phases, published(configuration), strict=True):
            near = abs(phase.time_us / expected - 1.0) <= CELL_TOLERANCE
            cells.append(
                Cell(f"{configuration}: {name}, us", expected, phase.time_us, CELL_TOLERANCE, near)
            )
    off, thp = published("off"), published("thp")
    for i, name in enumerate(PHASES):
        ratio = found["off"][i].time_us / found["thp"][i].time_us
        near = abs(ratio - off[i] / thp[i]) <= RATIO_TOLERANCES[i]
        cells.append(Cell(f"off / thp: {name}", off[i] / thp[i], ratio, RATIO_TOLERANCES[i], near))
    for i, name in enumerate(PHASES):
        ratio = found["hugetlbfs"][i].time_us / found["thp"][i].time_us
        near = abs(ratio - 1.0) <= SAME_TOLERANCE
        cells.append(Cell(f"hugetlbfs / thp: {name}", 1.0, ratio, SAME_TOLERANCE, near))
    for configuration, expected_faults in (
        UNALIGNED_FAULTS if unaligned else ALIGNED_FAULTS
    ).items():
        faults = found[configuration][0].faults
        same = faults == expected_faults
        cells.append(Cell(f"{configuration}: faults", expected_faults, faults, 0.0, same))
    return cells
