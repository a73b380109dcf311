"""Pinned pages: what they block, what a fork does with them, and how pins end (kernel.md 3.6, 4.3,
5.3, 6.4, 7.4)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagemap import page_frames

from hostsim.mm.check import check_memory
from hostsim.mm.compaction import compact_node
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.gup import pin_user_pages
from hostsim.mm.madvise import madvise_pageout
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MM_ANON, MM_HUGE, MM_PINNED, MM_SWAP, P_PINS, P_SPLIT_LEN
from hostsim.mm.mmap import mm_alloc, window_word
from hostsim.mm.mprotect import mprotect
from hostsim.mm.pins import add_pin, any_pinned, forget_pins, pinned_run, unpin_user_pages
from hostsim.mm.reclaim import try_to_free_pages
from hostsim.mm.shrinker import deferred_split_scan
from hostsim.mm.split import split_huge_page
from hostsim.mm.swapfile import swapon
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vmstat import NAMES
from hostsim.mm.zap import discard_range, exit_mm

KERNELS = ("2.6.38", "6.1", "6.12")
MODERN = KERNELS[1:]
WINDOW = 512


def stat(mem, name):
    return int(mem.vmstat[NAMES.index(name)])


def machine(kernel, pages=2 * WINDOW, enabled="always"):
    mem = new_memory(64 << 8, kernel, 1)
    set_tunable(mem.tunables, "enabled", enabled)
    assert swapon(mem, 8192)
    mm = mm_alloc(mem, pages, 0, 0, False, 0)
    assert touch_range(mem, mm, 0, pages, 1, 1.0, 0, True, 0) == FAULT_OK
    return mem, mm


@pytest.mark.parametrize("kernel", MODERN)
def test_one_pinned_page_keeps_its_huge_page_whole(kernel):
    mem, mm = machine(kernel)
    assert pin_user_pages(mem, mm, 7, 1) == FAULT_OK
    pb = window_word(mem, mm, 0) >> 2
    assert not split_huge_page(mem, pb)
    assert stat(mem, "thp_split_page_failed") == 1
    madvise_pageout(mem, mm, 0, 2 * WINDOW)
    check_memory(mem)
    assert mem.mm[mm, MM_SWAP] == WINDOW  # the other one
    assert unpin_user_pages(mem, mm, 7, 1)
    assert split_huge_page(mem, pb)


def test_2_6_38_splits_a_pinned_huge_page_and_swaps_all_but_the_pinned_page_out():
    mem, mm = machine("2.6.38")
    pin_user_pages(mem, mm, 7, 2)
    frames = page_frames(mem, mm)
    madvise_pageout(mem, mm, 0, WINDOW)
    check_memory(mem)
    assert mem.mm[mm, MM_SWAP] == WINDOW - 2
    assert (page_frames(mem, mm)[7:9] == frames[7:9]).all()


@pytest.mark.parametrize("kernel", MODERN)
def test_a_pinned_huge_page_of_which_a_part_is_unmapped_stays_on_the_split_queue(kernel):
    mem, mm = machine(kernel)
    pin_user_pages(mem, mm, 7, 1)
    discard_range(mem, mm, 100, 50)
    assert deferred_split_scan(mem, 10) == (0, False)
    assert mem.pool[P_SPLIT_LEN] == 1
    unpin_user_pages(mem, mm, 7, 1)
    assert deferred_split_scan(mem, 10) == (1, False)
    check_memory(mem)


@pytest.mark.parametrize("kernel", KERNELS)
def test_pinned_small_pages_stay_under_reclaim_and_the_others_go(kernel):
    mem, mm = machine(kernel, enabled="never")
    pin_user_pages(mem, mm, 100, 30)
    frames = page_frames(mem, mm)
    for _ in range(80):
        try_to_free_pages(mem, 0, 1)
    check_memory(mem)
    now = page_frames(mem, mm)
    assert (now[100:130] == frames[100:130]).all()
    assert mem.mm[mm, MM_SWAP] > WINDOW


@pytest.mark.parametrize("kernel", KERNELS)
def test_compaction_moves_pages_around_a_pinned_one(kernel):
    mem, mm = machine(kernel, 8 * WINDOW, "never")
    for page in range(8 * WINDOW):
        if page % 3 == 0:
            discard_range(mem, mm, page, 1)
    pin_user_pages(mem, mm, 100, 1)
    frames = page_frames(mem, mm)
    compact_node(mem)
    check_memory(mem)
    now = page_frames(mem, mm)
    assert now[100] == frames[100]
    assert (now[[98, 101]] != frames[[98, 101]]).all()


@pytest.mark.parametrize("kernel", MODERN)
def test_a_fork_copies_pinned_small_pages_and_shares_the_others(kernel):
    mem, mm = machine(kernel, enabled="never")
    pin_user_pages(mem, mm, 100, 3)
    child = mm_alloc(mem, 2 * WINDOW, 0, 0, False, 1)
    before = stat(mem, "nr_anon_pages")
    assert copy_mm(mem, mm, child)
    check_memory(mem)
    apart = np.flatnonzero(page_frames(mem, mm) != page_frames(mem, child))
    assert apart.tolist() == [100, 101, 102]
    assert stat(mem, "nr_anon_pages") == before + 3
    assert mem.mm[child, MM_ANON] == 2 * WINDOW
    assert mem.mm[child, MM_PINNED] == 0


@pytest.mark.parametrize("kernel", MODERN)
def test_a_fork_splits_the_pmd_of_a_pinned_huge_page_and_copies_all_of_it(kernel):
    """Every page of the huge page may be pinned as far as its count tells."""
    mem, mm = machine(kernel)
    pin_user_pages(mem, mm, 100, 1)
    child = mm_alloc(mem, 2 * WINDOW, 0, 0, False, 1)
    assert copy_mm(mem, mm, child)
    check_memory(mem)
    assert stat(mem, "thp_split_pmd") == 1
    assert mem.mm[mm, MM_HUGE] == mem.mm[child, MM_HUGE] == 1
    apart = page_frames(mem, mm) != page_frames(mem, child)
    assert apart[:WINDOW].all()
    assert not apart[WINDOW:].any()


def test_a_fork_of_2_6_38_shares_pinned_pages():
    mem, mm = machine("2.6.38")
    pin_user_pages(mem, mm, 100, 1)
    child = mm_alloc(mem, 2 * WINDOW, 0, 0, False, 1)
    assert copy_mm(mem, mm, child)
    assert (page_frames(mem, mm) == page_frames(mem, child)).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_getting_pages_for_writing_breaks_copy_on_write(kernel):
    mem, mm = machine(kernel, enabled="never")
    child = mm_alloc(mem, 2 * WINDOW, 0, 0, False, 1)
    assert copy_mm(mem, mm, child)
    assert pin_user_pages(mem, mm, 5, 1) == FAULT_OK
    check_memory(mem)
    apart = np.flatnonzero(page_frames(mem, mm) != page_frames(mem, child))
    assert apart.tolist() == [5]


def test_pins_end_with_the_mapping_and_the_process():
    mem, mm = machine("6.1")
    add_pin(mem, mm, 0, 2 * WINDOW)  # an assigned device: the whole guest
    add_pin(mem, mm, 10, 20)
    mprotect(mem, mm, 3, 100, True)
    discard_range(mem, mm, 15, 10)
    check_memory(mem)
    assert mem.pool[P_PINS] == 3
    assert any_pinned(mem, mm, 10, 15)
    assert not any_pinned(mem, mm, 15, 25)
    assert any_pinned(mem, mm, 25, 26)
    exit_mm(mem, mm)
    check_memory(mem)
    assert mem.pool[P_PINS] == 0


RANGE = st.tuples(st.integers(0, 60), st.integers(1, 20))


@given(st.lists(st.tuples(st.sampled_from("pud"), RANGE), max_size=12))
def test_pins_against_a_count_for_each_page(steps):
    mem = new_memory(16 << 8, "6.1", 1)
    mm = mm_alloc(mem, 512, 0, 0, False, 0)
    pins, model = [], np.zeros(100, int)
    for what, (start, nr) in steps:
        if what == "p":
            assert add_pin(mem, mm, start, start + nr)
            pins.append((start, nr))
            model[start : start + nr] += 1
        elif what == "d":
            forget_pins(mem, mm, start, start + nr)
            model[start : start + nr] = 0
            pins = []  # their ranges are others now
        elif pins:
            start, nr = pins.pop()
            assert unpin_user_pages(mem, mm, start, nr)
            model[start : start + nr] -= 1
        check_memory(mem)
        for page in range(100):
            pinned, run = pinned_run(mem, mm, page, 100 - page)
            assert pinned == (model[page] > 0)
            assert ((model[page : page + run] > 0) == pinned).all()
            assert run >= 1
