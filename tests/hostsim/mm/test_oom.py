"""Whom the OOM killer takes, by era (kernel.md 7.6)."""

import pytest

from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MM_ANON, MM_PGTABLES, MM_SWAP, NIL, Z_MANAGED
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.oom import oom_badness, select_bad_process
from hostsim.mm.swapfile import swapon

MODERN = ("6.1", "6.12")


def machine(kernel, *sizes):
    """Return a machine whose processes have these resident, swapped-out and table pages."""
    mem = new_memory(64 << 8, kernel, 1)
    swapon(mem, 8192)
    for rss, swapped, tables in sizes:
        mm = mm_alloc(mem, 512, 0, 0, False, 0)
        mem.mm[mm, MM_ANON], mem.mm[mm, MM_SWAP], mem.mm[mm, MM_PGTABLES] = rss, swapped, tables
    return mem


@pytest.mark.parametrize("kernel", MODERN)
def test_page_tables_and_swap_count(kernel):
    mem = machine(kernel, (100, 50, 9), (100, 50, 10), (120, 20, 10))
    assert [oom_badness(mem, mm) for mm in range(3)] == [159, 160, 150]
    assert select_bad_process(mem) == 1


@pytest.mark.parametrize("kernel", MODERN)
def test_of_equals_the_last_one_goes(kernel):
    assert select_bad_process(machine(kernel, (100, 0, 1), (100, 0, 1), (99, 0, 1))) == 1


def test_2_6_38_counts_thousandths_of_ram_and_swap_without_page_tables():
    mem = machine("2.6.38", (3000, 1000, 0), (3900, 0, 4000))
    total = int(mem.zone[:, Z_MANAGED].sum()) + 8192
    assert [oom_badness(mem, mm) for mm in range(2)] == [4000 * 1000 // total, 3900 * 1000 // total]
    assert select_bad_process(mem) == 0


def test_2_6_38_takes_the_first_of_those_that_round_alike():
    mem = machine("2.6.38", (1000, 0, 0), (1005, 0, 0))
    assert oom_badness(mem, 0) == oom_badness(mem, 1) > 0
    assert select_bad_process(mem) == 0


def test_2_6_38_spares_whoever_has_less_than_a_thousandth():
    assert select_bad_process(machine("2.6.38", (20, 0, 500))) == NIL
    assert select_bad_process(machine("2.6.38", (25, 0, 0))) == 0  # of 24576
