"""Fragmentation by random order-0 churn, held against a published measurement.

The experiment of LLFree (Wrenger et al., USENIX ATC 2023, section 5 and its artifact): fill 90 %
of a zone with order-0 pages, shuffle them, free half of them, and then a hundred times free a
random tenth of what is held and allocate as much again.  On a machine of 128 GiB Linux's buddy
allocator regained none of its huge pages, and a perfect compaction would have had to move 6.86
million pages, 3.3 % fewer after the hundred rounds.  The kernel was 6.0, whose per-CPU lists are
small; those of 6.12 take in what a round frees and give the same pages out again.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.claims import Claim, Found, number
from hostsim.core.counter_rng import hash64
from hostsim.core.jit import kernel
from hostsim.core.rng import Stream, stream
from hostsim.core.units import (
    MAX_PAGE_ORDER,
    NO_PFN,
    PAGE_SHIFT,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
    parse_bytes,
)
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    Z_END,
    Z_MANAGED,
    Z_START,
    Memory,
)
from hostsim.mm.page_alloc import free_pages
from hostsim.mm.slowpath import alloc_pages

FILL_RATIO: Final = 0.9
KEEP_RATIO: Final = 0.5
CHURN_RATIO: Final = 0.1
ROUNDS: Final = 100
NR_CPUS: Final = 8  # of the machine that was measured
MOVES_128_GIB: Final = 6_861_000  # targets.md 2.3, LLFree's data
SOURCE: Final = "LLFree, ATC 2023, artifact"


class State(NamedTuple):
    """What is left after some rounds."""

    rounds: int
    free_huge: int  # free blocks of 2 MiB
    moves: int  # pages that a perfect compaction would move


@kernel
def allocate(mem: Memory, held: NDArray[Any], first: int, nr: int) -> int:
    """Allocate ``nr`` movable pages into ``held`` from an index on; return how many there were."""
    done = 0
    while done < nr:
        pfn, taken, step = alloc_pages(mem, 0, MIGRATE_MOVABLE, nr - done)
        if pfn == NO_PFN:
            return done
        for i in range(taken):
            held[first + done + i] = pfn + i * step
        done += taken
    return done


@kernel
def free_random(mem: Memory, held: NDArray[Any], nr: int, nr_freed: int, key: int, tag: int) -> int:
    """Free random ones of the first ``nr`` pages held; return how many are left."""
    for i in range(nr_freed):
        at = hash64(key, tag, i) % (nr - i)
        pfn = held[at]
        held[at] = held[nr - i - 1]
        free_pages(mem, pfn, 1, 1)
    return nr - nr_freed


def perfect_compaction_moves(held: NDArray[Any], nr_pages: int) -> int:
    """Return how many pages would have to move so that as many pageblocks as possible are free.

    The fullest pageblocks keep their pages; all other pages move into their gaps.
    """
    used = np.bincount(held >> PAGEBLOCK_ORDER, minlength=nr_pages >> PAGEBLOCK_ORDER)
    keep = -(-int(used.sum()) // PAGEBLOCK_NR_PAGES)
    return int(np.sort(used)[: used.size - keep].sum())


def free_huge_blocks(mem: Memory, zone: int) -> int:
    """Return the free blocks of 2 MiB of a zone."""
    counts = mem.nr_free[zone].sum(axis=0)
    return int(counts[PAGEBLOCK_ORDER] + 2 * counts[MAX_PAGE_ORDER])


def order0_churn(
    memory_pages: int, kernel_version: str, rounds: int = ROUNDS, seed: int = 0
) -> Iterator[State]:
    """Run the experiment; yield the state before the first round and after each tenth and the last.

    Parameters
    ----------
    memory_pages
        Frames of the host, of which its highest zone is filled.
    """
    mem = new_memory(memory_pages, kernel_version, NR_CPUS, memmap=True)
    key = int(stream(seed, Stream.BENCH).integers(1 << 62))
    zone = max(z for z in range(len(mem.zone)) if mem.zone[z, Z_END] > mem.zone[z, Z_START])
    held = np.zeros(int(mem.zone[zone, Z_MANAGED] * FILL_RATIO), np.int32)
    nr = int(allocate(mem, held, 0, held.size))
    nr = int(free_random(mem, held, nr, int(nr * (1 - KEEP_RATIO)), key, 0))
    for done in range(rounds + 1):
        if done % 10 == 0 or done == rounds:
            moves = perfect_compaction_moves(held[:nr], memory_pages)
            yield State(done, free_huge_blocks(mem, zone), moves)
        if done < rounds:
            freed = int(nr * CHURN_RATIO)
            nr = int(free_random(mem, held, nr, freed, key, done + 1))
            nr += int(allocate(mem, held, nr, freed))


def judge(states: list[State], memory_pages: int) -> list[Claim]:
    """Hold the states of a run against the published figures.

    The number of moves is published for 128 GiB and grows with memory.
    """
    first, last = states[0], states[-1]
    possible = first.moves / (PAGEBLOCK_NR_PAGES * KEEP_RATIO)
    moves = MOVES_128_GIB * memory_pages / (32 << 20)
    gained = (last.free_huge - first.free_huge) / possible
    fall = 1 - last.moves / first.moves
    return [
        _in_range("huge pages gained, of possible", gained, -1, 0.01),
        _in_range("moves of a perfect compaction", first.moves, 0.95 * moves, 1.05 * moves),
        _in_range("fall of moves over the rounds", fall, 0.01, 0.06),
    ]


def _in_range(name: str, value: float, least: float, most: float) -> Claim:
    expected = f"{number(least)} to {number(most)}"
    verdict = least <= value <= most
    return Claim(f"order-0 churn: {name}", expected, SOURCE, number(value), verdict, value)


def fragmentation(
    memory: Annotated[str, "Memory of the host."] = "128GiB",
    kernel: Annotated[str, "Kernel profile; 6.0 was measured."] = "6.1",
    rounds: Annotated[int, "Rounds of 10 % churn."] = ROUNDS,
) -> Found:
    r"""Fill memory with small pages, free half of them at random, churn, and judge what is left.

    \b
    Example:
      fleet bench fragmentation --memory 8GiB --rounds 20
    """
    pages = parse_bytes(memory) >> PAGE_SHIFT
    states = list(order0_churn(pages, kernel, rounds))
    lines = [
        f"after {state.rounds:>3} rounds: {state.free_huge:>7} free blocks of 2 MiB, "
        f"{state.moves:>9} moves for a perfect compaction"
        for state in states
    ]
    return Found(judge(states, pages), [state._asdict() for state in states], lines)


CHECKS: Final[dict[str, Callable[[], Iterator[Claim]]]] = {
    "order-0 churn of 128 GiB": lambda: iter(fragmentation().claims)
}
