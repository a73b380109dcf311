"""Pages a second out of a full host and back: the allocator's own paths, one block a call.

Blocks are freed at random and as many allocated, one call of `free_order` or `alloc_pages` each
(watermarks, zones, per-CPU lists, buddy lists), in a loop inside one kernel.  A batch is larger
than what per-CPU lists hold, else they would hand out what was freed just now.  An allocation and
a free are two operations.
"""

import time
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.claims import Claim, Found, at_least
from hostsim.core.counter_rng import hash64
from hostsim.core.jit import kernel
from hostsim.core.rng import Stream, stream
from hostsim.core.units import HPAGE_PMD_ORDER, NO_PFN, PAGE_SHIFT, parse_bytes
from hostsim.mm.check import check_memory
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MIGRATE_MOVABLE, PCP_COUNT, Z_FREE, Memory
from hostsim.mm.page_alloc import free_order
from hostsim.mm.slowpath import alloc_pages

KERNEL: Final = "6.12"
NR_CPUS: Final = 96
FULL_RATIO: Final = 0.9


class Case(NamedTuple):
    """One order, and what it must reach."""

    order: int
    batch: int  # blocks freed, then allocated
    rounds: int
    bar: float  # operations a second


CASES: Final = (
    Case(HPAGE_PMD_ORDER, 1 << 13, 64, 20e6),
    Case(0, 1 << 18, 8, 3e6),
)


@kernel
def allocate(mem: Memory, order: int, held: NDArray[Any], first: int, nr: int) -> int:
    """Allocate ``nr`` movable blocks into ``held``, one a call; return how many there were."""
    for i in range(first, first + nr):
        pfn, _, _ = alloc_pages(mem, order, MIGRATE_MOVABLE, 1)
        if pfn == NO_PFN:
            return i - first
        held[i] = pfn
    return nr


@kernel
def free_some(
    mem: Memory, order: int, held: NDArray[Any], nr: int, nr_freed: int, key: int, tag: int
) -> int:
    """Free random ones of the first ``nr`` blocks held, one a call; return how many are left."""
    for i in range(nr_freed):
        at = hash64(key, tag, i) % (nr - i)
        pfn = held[at]
        held[at] = held[nr - i - 1]
        free_order(mem, pfn, order)
    return nr - nr_freed


class Measured(NamedTuple):
    """What was measured of one order."""

    order: int
    held: int  # blocks
    operations: int  # timed
    cpu_s: float
    rate: float  # operations a second


def measure(case: Case, memory_pages: int, seed: int = 0) -> Measured:
    """Fill a host, exchange blocks, give all back, and validate the state.

    Raises
    ------
    InvariantError
        The allocator's state is inconsistent.
    ValueError
        Memory ran out, or is not all free at the end.
    """
    mem = new_memory(memory_pages, KERNEL, NR_CPUS, memmap=True)
    key = int(stream(seed, Stream.BENCH).integers(1 << 62))
    before = _free_pages(mem)
    held = np.zeros(int(before * FULL_RATIO) >> case.order, np.int32)
    batch = min(case.batch, held.size // 2)
    nr = int(allocate(mem, case.order, held, 0, held.size))
    for warm in (True, False):  # the first rounds mix what lies in order
        rounds = 2 if warm else case.rounds
        begin_s = time.process_time()
        for tag in range(rounds):
            left = free_some(mem, case.order, held, nr, batch, key, 2 * tag + warm)
            nr = int(left) + int(allocate(mem, case.order, held, left, batch))
        cpu_s = time.process_time() - begin_s
    if nr < held.size:
        raise ValueError(f"order {case.order}: memory ran out")
    if len(np.unique(held)) < held.size:
        raise ValueError(f"order {case.order}: a block was handed out twice")
    free_some(mem, case.order, held, nr, nr, key, -1)
    check_memory(mem)
    if _free_pages(mem) != before:
        raise ValueError(f"order {case.order}: {before - _free_pages(mem)} pages are lost")
    operations = 2 * case.rounds * batch
    return Measured(case.order, held.size, operations, cpu_s, operations / cpu_s)


def _free_pages(mem: Memory) -> int:
    return int(mem.zone[:, Z_FREE].sum() + mem.zone[:, PCP_COUNT].sum())


def judge(case: Case, found: Measured) -> Claim:
    """Hold a rate against its bar."""
    name = f"order {case.order}, {found.held:,} blocks held: allocations and frees"
    return at_least(name, found.rate, case.bar, "/s")._replace(cpu_s=found.cpu_s)


def buddy(memory: Annotated[str, "Memory of the host."] = "256GiB") -> Found:
    """Exchange huge pages and single pages on a host that is 90 % full, by CPU time."""
    pages = parse_bytes(memory) >> PAGE_SHIFT
    for case in CASES:
        measure(case._replace(batch=64, rounds=1), 1 << 20)  # compiled
    rows = [measure(case, pages) for case in CASES]
    claims = [judge(case, row) for case, row in zip(CASES, rows, strict=True)]
    return Found(claims, [row._asdict() for row in rows])
