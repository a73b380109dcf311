"""One program on one CPU: simulated accesses over simulated page tables, and their cost.

The program's memory is faulted in by a simulated guest kernel (or, natively, the only kernel),
and the guest's memory by a simulated host; the walker walks the tables that both leave behind.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from guestsim.workload import Workload, compile_workload, draw_pages, page_classes
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.rng import Stream, stream
from hostsim.core.units import (
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    MAX_PAGE_ORDER,
    PAGE_SHIFT,
    format_bytes,
)
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.memory import new_memory, set_thp
from hostsim.mm.mm_types import Memory
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NONE, mm_alloc
from hostsim.mm.rmap import KIND_EPT, KIND_PGTABLE
from hostsim.mmu.cost import (
    LOCAL,
    Misses,
    Remote,
    WalkCost,
    misses_of,
    operations_per_cycle,
    walk_cost,
)
from hostsim.mmu.cpus import Cpu, new_mmu
from hostsim.mmu.paging import PageTables, new_page_tables, tables_needed
from hostsim.mmu.popularity import Classes, Popularity
from hostsim.mmu.tlb import C_ACCESSES, C_L1_HITS, C_L2_HITS, C_WALKS, forget_counts
from hostsim.mmu.walker import access_pages
from hostsim.translation import (
    alloc_upper_tables,
    huge_windows,
    page_tables_of,
    table_frames,
    touch_frames,
)

DIRECTORY_LEVEL: Final = 2  # EPT violations allocate directories and tables; all above, we
KERNEL: Final = "6.12"
BATCH: Final = 1 << 16  # accesses drawn at a time
VPID: Final = 1
SLACK_SHIFT: Final = 4  # a guest has this much more memory than its program: 1/16
SLACK_PAGES: Final = 1 << 17
DEFAULT_ACCESSES: Final = 2_000_000
NR_PARTS: Final = 8  # of the counted accesses, for the standard error


class Setup(NamedTuple):
    """How a program runs."""

    nested: bool
    guest_thp: str  # always, madvise or never
    host_thp: str
    levels: int
    memory_pages: int  # of the guest (natively, of the machine)


class Space(NamedTuple):
    """Page tables of a program, and the EPT under them."""

    guest: PageTables
    ept: PageTables
    nested: bool
    pages: int
    huge: Any  # of each window, whether it is huge in every dimension
    guest_huge: Any  # of each window, whether it is huge in the guest
    table_pages: int  # of the guest's tables


class Outcome(NamedTuple):
    """What a run of accesses did and cost."""

    counts: Any  # (NR_PARTS, counters)
    cost: WalkCost
    walk_cycles: float  # of an operation
    run_cycles: float  # of an operation
    share: float  # cycles of all walkers over cycles of the run


def memory_for(workload: Workload) -> int:
    """Return the pages of a machine that a workload fits in with some room."""
    step = 1 << MAX_PAGE_ORDER
    wanted = workload.pages + (workload.pages >> SLACK_SHIFT) + SLACK_PAGES
    return -(-wanted // step) * step


def _machine(pages: int, thp: str) -> Memory:
    step = 1 << MAX_PAGE_ORDER
    mem = new_memory(-(-pages // step) * step, KERNEL, 1, memmap=True)
    set_thp(mem, thp, "madvise", True)
    return mem


def check_fits(workload: Workload, setup: Setup) -> None:
    """Refuse a footprint larger than the guest.

    Raises
    ------
    ScenarioError
        The footprint does not fit.
    """
    if workload.pages > setup.memory_pages:
        raise _too_large(workload, setup)


def _too_large(workload: Workload, setup: Setup) -> ScenarioError:
    footprint = format_bytes(workload.pages << PAGE_SHIFT)
    memory = format_bytes(setup.memory_pages << PAGE_SHIFT)
    message = f"a footprint of {footprint} does not fit in a guest of {memory}"
    return ScenarioError([Problem(workload.name, message)])


def build_space(workload: Workload, setup: Setup) -> Space:
    """Fault a program in and return the tables that map it.

    Raises
    ------
    ScenarioError
        The footprint does not fit in the guest's memory.
    """
    guest = _machine(setup.memory_pages, setup.guest_thp)
    small = workload.pages - int(workload.huge_ratio * workload.pages)
    eligible = (workload.pages - small) >> HPAGE_PMD_ORDER << HPAGE_PMD_ORDER
    if workload.huge_ratio >= 1.0:
        eligible = -(-workload.pages // HPAGE_PMD_NR) * HPAGE_PMD_NR
    advice = ADVICE_HUGE if workload.madvised else ADVICE_NONE
    mm = mm_alloc(guest, eligible, max(workload.pages - eligible, 0), advice, False, 0)
    upper = tables_needed(workload.pages, setup.levels, 2)
    enough = alloc_upper_tables(guest, mm, KIND_PGTABLE, upper)
    if not enough or touch_range(guest, mm, 0, workload.pages, 1, 1.0, 0, True, 0) != FAULT_OK:
        raise _too_large(workload, setup)
    tables = page_tables_of(guest, mm, setup.levels)
    guest_huge = _huge_pages(tables, tables, False, workload.pages)
    nr_tables = int(tables.root[2])
    if not setup.nested:
        none = new_page_tables(1, setup.levels, 0)
        return Space(tables, none, False, workload.pages, guest_huge, guest_huge, nr_tables)
    ept = _back(guest, mm, setup, workload.pages)
    both = _huge_pages(tables, ept, True, workload.pages)
    return Space(tables, ept, True, workload.pages, both, guest_huge, nr_tables)


def _huge_pages(guest: PageTables, ept: PageTables, nested: bool, pages: int) -> Any:
    """Return, window by window, whether a program's pages are huge in every dimension."""
    huge = np.zeros(-(-pages // HPAGE_PMD_NR), bool)
    huge_windows(guest, ept, nested, huge)
    return huge


def _back(guest: Memory, mm: int, setup: Setup, pages: int) -> PageTables:
    """Fault in on a host what a guest's program uses; return the EPT."""
    host = _machine(memory_pages_of_host(setup.memory_pages), setup.host_thp)
    vm = mm_alloc(host, setup.memory_pages, 0, ADVICE_NONE, True, 0)
    alloc_upper_tables(
        host, vm, KIND_EPT, tables_needed(setup.memory_pages, setup.levels, DIRECTORY_LEVEL + 1)
    )
    frames = np.empty(2 * (pages >> HPAGE_PMD_ORDER) + SLACK_PAGES, np.int64)
    nr = int(table_frames(guest, mm, KIND_PGTABLE, frames))
    if not touch_frames(guest, mm, frames[:nr][::-1].copy(), host, vm):
        raise ValueError("the host's memory was too small")  # sized above to be enough
    return page_tables_of(host, vm, setup.levels, KIND_EPT)


def memory_pages_of_host(guest_pages: int) -> int:
    """Return the pages of a host that one guest fits in with its tables."""
    return guest_pages + (guest_pages >> SLACK_SHIFT) + SLACK_PAGES


def simulate(
    workload: Workload, cpu: Cpu, space: Space, accesses: int, seed: int, warm: int | None = None
) -> Any:
    """Access pages as a workload does; return the counters of `NR_PARTS` parts, warm ones aside.

    Parameters
    ----------
    warm
        Accesses that fill the TLBs first; as many as are counted, if left out.
    """
    mmu = new_mmu(cpu)
    program = compile_workload(workload)
    key = int(stream(seed, Stream.MMU).integers(1 << 62))
    pages = np.empty(BATCH, np.int64)
    done = 0
    parts = [accesses if warm is None else warm, *[accesses // NR_PARTS] * NR_PARTS]
    counts = np.zeros((len(parts), len(mmu.counts)), np.int64)
    for part, count in enumerate(parts):
        forget_counts(mmu)
        left = count
        while left > 0:
            nr = min(left, BATCH)
            draw_pages(*program, key, done, pages[:nr])
            access_pages(mmu, space.guest, space.ept, space.nested, VPID, pages, nr)
            done += nr
            left -= nr
        counts[part] = mmu.counts
    return counts[1:]


def popularity_of(workload: Workload) -> Popularity:
    """Return how often a workload accesses which pages."""
    found = page_classes(workload)
    return Popularity(
        Classes(
            *(
                np.array(column, np.float64)
                for column in zip(
                    *((*c.region, c.objects, c.objects_per_page, c.rate, c.run) for c in found),
                    strict=True,
                )
            )
        )
    )


def coverage_of(huge: Any, classes: Classes) -> Any:
    """Return the share of each class's pages by the size of their TLB entries.

    Parameters
    ----------
    huge
        Of each window, whether it is huge in every dimension.
    """
    before = np.concatenate([[0.0], np.cumsum(huge)])
    windows = len(huge)

    def huge_until(page: Any) -> Any:
        window = np.minimum(page / HPAGE_PMD_NR, windows)
        whole = np.minimum(window.astype(np.int64), windows - 1)
        return before[whole] + (window - whole) * huge[whole]

    end = classes.region_first + classes.region_pages
    pages = (huge_until(end) - huge_until(classes.region_first)) * HPAGE_PMD_NR
    ratio = np.clip(pages / classes.region_pages, 0.0, 1.0)
    return np.stack([1.0 - ratio, ratio, np.zeros(len(ratio))])


def cost_of(
    of: Popularity,
    cpu: Cpu,
    space: Space,
    counts: Any,
    remote: Remote = LOCAL,
    misses: Misses | None = None,
) -> WalkCost:
    """Return what the walks of simulated accesses to pages of known popularity cost.

    Parameters
    ----------
    misses
        What the TLBs let through, if it is at hand.
    """
    if np.ndim(counts) == 2:
        counts = counts.sum(axis=0)
    misses = misses or misses_of(of, counts, coverage_of(space.huge, of.classes))
    return walk_cost(cpu, of, counts, misses, space.pages / max(space.table_pages, 1), remote)


def outcome(workload: Workload, cpu: Cpu, counts: Any, cost: WalkCost, far: bool) -> Outcome:
    """Return cycles of walks and of the run.

    An access to remote memory takes longer by the difference to local memory.

    Parameters
    ----------
    counts
        (NR_PARTS, counters) of simulated accesses.
    cost
        What they cost.
    far
        Whether the program's memory is remote.
    """
    walk_cycles = workload.steps * cost.walks * cost.walk_cycles
    own = workload.cycles + workload.steps * cost.l2_tlb_hits * cpu.latency.l2_tlb_cycles
    if far:
        extra = cpu.latency.remote_cycles - cpu.latency.dram_cycles
        own += workload.steps * cost.data_dram * extra
    rate = operations_per_cycle(own, walk_cycles, cpu.walkers, workload.overlap)
    return Outcome(counts, cost, walk_cycles, 1.0 / rate, rate * walk_cycles)


def run(
    workload: Workload, cpu: Cpu, setup: Setup, accesses: int = DEFAULT_ACCESSES, seed: int = 1
) -> tuple[Space, Outcome]:
    """Build a program's tables, simulate its accesses and cost them."""
    space = build_space(workload, setup)
    counts = simulate(workload, cpu, space, accesses, seed)
    cost = cost_of(popularity_of(workload), cpu, space, counts)
    return space, outcome(workload, cpu, counts, cost, far=False)


def with_error(values: Any) -> tuple[float, float]:
    """Return mean and standard error of one value a part."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def describe(workload: Workload, cpu: Cpu, setup: Setup, space: Space, found: Outcome) -> Any:
    """Return everything about one run as a dict with stable keys."""
    counts = found.counts
    accesses = counts[:, C_ACCESSES]
    walks, walks_error = with_error(counts[:, C_WALKS] / accesses)
    cost = found.cost
    kinds = ("guest", "ept_for_tables", "ept_for_data")
    reads = [
        {
            "of": kinds[kind],
            "level": int(level),
            "per_walk": float(cost.reads[kind, level] / cost.walks),
            **dict(zip(("l1", "l2", "llc", "dram"), cost.found[kind, level].tolist(), strict=True)),
        }
        for kind, level in np.argwhere(cost.reads > 0)
    ]
    per_walk = cost.reads.sum(axis=1) / cost.walks if cost.walks else np.zeros(len(kinds))
    return {
        "workload": workload.name,
        "cpu": cpu.name,
        "mode": "virt" if setup.nested else "native",
        "guest_thp": setup.guest_thp,
        "host_thp": setup.host_thp if setup.nested else None,
        "footprint_bytes": workload.pages << PAGE_SHIFT,
        "guest_huge_ratio": float(np.mean(space.guest_huge)),
        "effective_huge_ratio": float(np.mean(space.huge)),
        "accesses": int(accesses.sum()),
        "l1_hits_per_access": float(counts[:, C_L1_HITS].sum() / accesses.sum()),
        "l2_hits_per_access": float(counts[:, C_L2_HITS].sum() / accesses.sum()),
        "walks_per_access": walks,
        "walks_per_access_error": walks_error,
        "walks_per_1000_instructions": 1000.0 * walks * workload.steps / workload.instructions,
        "references_per_walk": float(per_walk.sum()),
        "guest_references_per_walk": float(per_walk[0]),
        "ept_references_per_walk": float(per_walk[1:].sum()),
        "reads": reads,
        "cycles_per_walk": cost.walk_cycles,
        "ept_cycles_ratio": cost.ept_ratio,
        "walk_cycles_per_operation": found.walk_cycles,
        "run_cycles_per_operation": found.run_cycles,
        "walk_share": found.share,
    }
