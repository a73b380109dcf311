"""Random order-0 churn at a small size: what 128 GiB show, `fleet bench fragmentation` prints."""

import numpy as np
import pytest

from fleet.validate_mm_compaction import (
    State,
    free_random,
    judge,
    order0_churn,
    perfect_compaction_moves,
)
from hostsim.core.units import PAGE_SHIFT
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MIGRATE_MOVABLE, Z_FREE
from hostsim.mm.slowpath import alloc_pages

GIB = 1 << (30 - PAGE_SHIFT)


def test_a_perfect_compaction_empties_the_emptiest_pageblocks():
    held = np.concatenate([np.arange(500), 512 + np.arange(300), 1024 + np.arange(100)])
    assert perfect_compaction_moves(held, 2048) == 100  # 900 pages need two pageblocks
    assert perfect_compaction_moves(np.arange(1), 2048) == 0


def test_freed_pages_are_drawn_once():
    mem = new_memory(16 << 8, "6.1", 1)
    free = int(mem.zone[:, Z_FREE].sum())
    pfn, taken, step = alloc_pages(mem, 0, MIGRATE_MOVABLE, 10)
    held = np.array([pfn + i * step for i in range(taken)], np.int32)
    assert free_random(mem, held, taken, taken // 2, 7, 0) == taken - taken // 2
    assert len(set(held[: taken - taken // 2].tolist())) == taken - taken // 2
    assert free >= int(mem.zone[:, Z_FREE].sum())


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_the_buddy_allocator_regains_no_huge_page(kernel):
    """The zone above 4 GiB of a 6 GiB host; per-CPU lists weigh more there than at 128 GiB."""
    states = list(order0_churn(6 * GIB, kernel, 30))
    gain, moves, fall = judge(states, 6 * GIB)
    assert gain.verdict
    assert -0.02 < fall.value < 0.12
    assert moves.value > 0


def test_figures_out_of_range_fail():
    full = 32 << 20
    good = [State(0, 5000, 6_900_000), State(100, 5000, 6_700_000)]
    assert all(v.verdict for v in judge(good, full))
    assert [v.verdict for v in judge([good[0], State(100, 6000, 5_000_000)], full)] == [
        False,
        True,
        False,
    ]
