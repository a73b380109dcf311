"""Faults of windows in a row against one fault at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.check import check_memory
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.fault_run import fault_huge_run, fault_small_run
from hostsim.mm.kalloc import alloc_blocks, free_blocks
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    MM_ANON,
    MM_PGTABLES,
    MM_RAM_ANON,
    NIL,
    P_IN_ORDER,
    P_NEAR,
    P_PAGE_EXT_FREE,
    P_PAGE_EXT_USED,
    P_PAGEBLOCKS,
    P_RESUME,
    P_RUN_FREE,
    P_TOUCHED,
    P_TRACED,
    P_WRITTEN_FREE,
    P_WRITTEN_USED,
    Z_FREE,
    Z_RESERVE,
    Z_WMARK_LOW,
    ZONE_DMA32,
    ZONE_NORMAL,
    Memory,
)
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NOHUGE, mm_alloc
from hostsim.mm.page_ext import all_of
from hostsim.mm.slowpath import GFP_KERNEL, alloc_pages, alloc_pages_gfp
from hostsim.mm.state import used_parts
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vmstat import PGALLOC, THP_FAULT_ALLOC
from hostsim.mm.zap import discard_range, exit_mm

WINDOWS = 96
RAM = 64 * HPAGE_PMD_NR
FILLER = 3  # process that uses up a zone


def machine(kernel, pages, before, advice=ADVICE_HUGE, cpus=1):
    """Return a machine on which a few things have happened, and a process without memory."""
    mem = new_memory(pages, kernel, cpus)
    set_tunable(mem.tunables, "enabled", "always")
    others = [
        mm_alloc(mem, RAM, 0, ADVICE_NOHUGE, False, 0),
        mm_alloc(mem, RAM, 0, ADVICE_HUGE, True, 1),
    ]
    for kind, window, nr in before:
        start = window * HPAGE_PMD_NR
        if kind == "kernel":
            alloc_blocks(mem, 0, MIGRATE_UNMOVABLE, nr, np.zeros(nr, np.int64))
        elif kind == "relabel":  # pageblocks that kernel memory took, free again
            extents = np.zeros(2 * nr, np.int64)
            free_blocks(mem, 3, extents[: alloc_blocks(mem, 3, MIGRATE_UNMOVABLE, 2 * nr, extents)])
        elif kind == "discard":
            discard_range(mem, others[nr % 2], start, nr)
        elif kind == "exit":
            exit_mm(mem, others[0])
            others[0] = mm_alloc(mem, RAM, 0, ADVICE_NOHUGE, False, 0)
        else:
            touch_range(mem, others[kind == "huge"], start, nr, 1, 1.0, 0, True, start)
    return mem, mm_alloc(mem, WINDOWS * HPAGE_PMD_NR, 0, advice, True, 2)


def touch(mem, mm, first, nr):
    return touch_range(mem, mm, first, nr, 1, 1.0, 0, True, first)


def comparable(mem: Memory):
    """Return all state but the notes of what was written when, which differ on purpose."""
    parts = {name: part.copy() for name, part in used_parts(mem).items()}
    parts["pool"][[P_NEAR, P_RESUME, P_WRITTEN_FREE, P_WRITTEN_USED, P_TOUCHED]] = 0
    parts["pool"][[P_PAGE_EXT_FREE, P_PAGE_EXT_USED]] = 0
    for name in ("wrec", "scratch", "touched", "page_ext", "page_ext_bucket"):
        del parts[name]
    parts["unmovable"] = all_of(mem, "unmovable", int(mem.pool[P_PAGEBLOCKS]))
    dead = int(mem.pool[P_RUN_FREE]) - 1
    while dead != NIL:  # what a node of the per-CPU lists held before it was freed
        parts["run"][dead]["first"] = parts["run"][dead]["nr"] = 0
        dead = int(mem.run[dead]["next"])
    return parts


events = st.tuples(
    st.sampled_from(["small", "small", "huge", "kernel", "discard", "exit", "relabel"]),
    st.integers(0, 40),
    st.integers(1, 6000),
)


@given(
    kernel=st.sampled_from(["2.6.38", "6.1", "6.12"]),
    pages=st.sampled_from([1 << 16, 1 << 17, 3 << 19]),
    before=st.lists(events, max_size=8),
    own=st.lists(st.integers(0, WINDOWS - 1), max_size=3),
    advice=st.sampled_from([ADVICE_HUGE, ADVICE_NOHUGE]),
    cpus=st.sampled_from([1, 8, 64]),  # many fill their lists with most of a small machine
)
@settings(max_examples=250, deadline=None)
def test_a_run_leaves_what_single_faults_leave(kernel, pages, before, own, advice, cpus):
    """A first write to one page of a window takes the way of single faults."""
    run, mm = machine(kernel, pages, before, advice, cpus)
    single, _ = machine(kernel, pages, before, advice, cpus)
    for mem in (run, single):
        for window in own:  # windows in which the process has small pages already
            touch(mem, mm, window * HPAGE_PMD_NR + 7, 1)
    assert_alike(run, single, mm)


def assert_alike(run, single, mm):
    """Touch all windows of a process, in one go and window after window, and compare.

    Who watches from outside sees the same frames, in whatever order, none twice.
    """
    run, single = watched(run), watched(single)
    whole = touch(run, mm, 0, WINDOWS * HPAGE_PMD_NR)
    for window in range(WINDOWS):
        first = window * HPAGE_PMD_NR
        status = touch(single, mm, first, 1)
        if status == FAULT_OK:
            status = touch(single, mm, first, HPAGE_PMD_NR)
        if status != FAULT_OK:
            break
    assert whole == status
    check_memory(run)
    assert np.array_equal(*(np.sort(frames_seen(mem)) for mem in (run, single)))
    left, right = comparable(run), comparable(single)
    for name in left:
        assert np.array_equal(left[name], right[name]), name


def watched(mem):
    """Return a machine that notes what it hands out."""
    mem = Memory(**(mem._asdict() | {"touched": np.zeros((1 << 16, 2), np.int64)}))
    mem.pool[P_TRACED], mem.pool[P_TOUCHED] = 1, 0
    return mem


def frames_seen(mem):
    assert mem.pool[P_TRACED] == 1
    runs = mem.touched[: mem.pool[P_TOUCHED]]
    return np.concatenate([np.arange(first, first + nr) for first, nr in runs])


def nearly_full(left):
    """Return a machine whose Normal zone has unmovable free memory, and some huge pages."""
    mem, mm = machine("6.12", 3 << 19, [("relabel", 0, 4000)], ADVICE_NOHUGE, 64)
    filler = mm_alloc(mem, 3 << 19, 0, ADVICE_NOHUGE, False, 0)
    window = 0
    while movable_windows(mem) > left:
        touch(mem, filler, window * HPAGE_PMD_NR, HPAGE_PMD_NR)
        window += 1
    return mem, mm


def movable_windows(mem):
    free = mem.nr_free[ZONE_NORMAL, MIGRATE_MOVABLE]
    return free[HPAGE_PMD_ORDER] + 2 * free[HPAGE_PMD_ORDER + 1]


@pytest.mark.parametrize("left", range(1, 14, 3))
def test_a_run_ends_where_movable_memory_does(left):
    """Behind it a fault takes pageblocks of another type."""
    (run, mm), (single, _) = nearly_full(left), nearly_full(left)
    assert_alike(run, single, mm)


def low_in_normal(left, kernel="6.12"):
    """Return a machine whose Normal zone is some pages above its low watermark or below it."""
    mem, mm = machine(kernel, 3 << 19, [])
    assert mm_alloc(mem, 3 << 19, 0, ADVICE_NOHUGE, False, 0) == FILLER
    page = 0
    while (above := above_low(mem)) > left:
        nr = HPAGE_PMD_NR if above - left > 4 * HPAGE_PMD_NR else 1
        touch(mem, FILLER, page, nr)
        page += nr
    return mem, mm


def above_low(mem):
    zone = mem.zone[ZONE_NORMAL]
    return zone[Z_FREE] - zone[Z_WMARK_LOW] - zone[Z_RESERVE]


@pytest.mark.parametrize("advice", [ADVICE_HUGE, ADVICE_NOHUGE])
@pytest.mark.parametrize("left", [6000, 4500, 1200, 500, 400, 64, 1, 0])
def test_a_run_goes_on_in_the_zone_below(left, advice):
    """Near the watermark huge pages come from DMA32 already, page tables from Normal still."""
    (run, _), (single, _) = low_in_normal(left), low_in_normal(left)
    mms = [mm_alloc(mem, WINDOWS * HPAGE_PMD_NR, 0, advice, True, 3) for mem in (run, single)]
    assert mms[0] == mms[1]
    assert_alike(run, single, mms[0])


def test_page_tables_come_from_normal_while_it_has_single_pages():
    """Lists of both zones have page tables; DMA32's were filled while Normal had none to give."""
    machines = []
    for _ in range(2):
        mem, mm = low_in_normal(0)
        touch(mem, mm, 0, 1)
        page = used = 0
        while above_low(mem) <= 0:
            discard_range(mem, FILLER, page, 64)
            page += 64
        while above_low(mem) >= HPAGE_PMD_NR:  # lists are emptied many pages at a time
            touch(mem, 0, used, 1)
            used += 1
        machines.append(mem)
    run, single = machines
    in_dma32 = run.vmstat[PGALLOC + ZONE_DMA32]
    assert_alike(run, single, mm)
    assert run.vmstat[PGALLOC + ZONE_DMA32] - in_dma32 == 95 * HPAGE_PMD_NR


def test_dma32_serves_runs():
    mem, mm = low_in_normal(0)
    nohuge = mm_alloc(mem, WINDOWS * HPAGE_PMD_NR, 0, ADVICE_NOHUGE, True, 3)
    touch(mem, mm, 0, 1)
    assert fault_huge_run(mem, mm, 1, 20) == 20
    assert fault_small_run(mem, nohuge, 0, 20) == 20
    check_memory(mem)


@given(
    kernel=st.sampled_from(["2.6.38", "6.1", "6.12"]),
    before=st.lists(events, max_size=8),
    left=st.sampled_from([None, 100, 1, 0]),
    asked=st.lists(
        st.tuples(st.sampled_from([MIGRATE_MOVABLE, MIGRATE_UNMOVABLE]), st.integers(1, 70)),
        max_size=12,
    ),
)
@settings(max_examples=100, deadline=None)
def test_pages_off_a_list_are_those_of_the_zonelist(kernel, before, left, asked):
    """`take_listed` before the whole way, and the whole way alone."""
    machines = [
        machine(kernel, 1 << 16, before)[0] if left is None else low_in_normal(left, kernel)[0]
        for _ in range(2)
    ]
    for migratetype, nr in asked:
        fast = alloc_pages(machines[0], 0, migratetype, nr)
        assert fast == alloc_pages_gfp(machines[1], 0, migratetype, nr, GFP_KERNEL)
    left_over, whole = (comparable(mem) for mem in machines)
    for name in left_over:
        assert np.array_equal(left_over[name], whole[name]), name


@given(
    pages=st.lists(st.integers(0, 3 * HPAGE_PMD_NR - 1), min_size=1, max_size=60),
    lengths=st.lists(st.integers(1, 40), min_size=60, max_size=60),
    dropped=st.lists(st.integers(0, 59), max_size=10),
)
@settings(max_examples=100, deadline=None)
def test_a_search_that_begins_near_finds_what_one_from_the_head_finds(pages, lengths, dropped):
    """Two processes take frames by turns, so that a window has many extents."""
    machines = []
    for forgets in (False, True):
        mem, mm = machine("6.12", 1 << 16, [], ADVICE_NOHUGE)
        other = mm_alloc(mem, RAM, 0, ADVICE_NOHUGE, False, 3)
        for i, (page, nr) in enumerate(zip(pages, lengths, strict=False)):
            nr = min(nr, 3 * HPAGE_PMD_NR - page)
            steps = [(touch, mm), (touch, other)]
            steps += [(discard_range, other), (discard_range, mm)] if i in dropped else []
            for step, process in steps:
                if forgets:
                    mem.pool[P_NEAR] = 0
                step(mem, process, page, nr)
        check_memory(mem)
        machines.append(comparable(mem))
    for name in machines[0]:
        assert np.array_equal(machines[0][name], machines[1][name]), name


def test_a_fresh_machine_serves_a_run():
    """The fast path is taken at all: a whole list of page tables at a time."""
    mem, mm = machine("6.12", 3 << 19, [])
    touch(mem, mm, 0, 1)  # fills the lists
    assert fault_huge_run(mem, mm, 1, 20) == 20
    assert mem.vmstat[THP_FAULT_ALLOC] == 21
    check_memory(mem)
    nohuge = mm_alloc(mem, WINDOWS * HPAGE_PMD_NR, 0, ADVICE_NOHUGE, True, 3)
    assert fault_small_run(mem, nohuge, 0, 20) == 20
    assert mem.mm[nohuge, MM_ANON] == 20 * HPAGE_PMD_NR
    assert mem.mm[nohuge, MM_PGTABLES] == 20
    check_memory(mem)


@pytest.mark.parametrize("ram_pages", [5 * HPAGE_PMD_NR, 5 * HPAGE_PMD_NR - 100])
def test_a_run_past_the_end_of_guest_ram_counts_guest_ram_alone(ram_pages):
    """The window in which guest RAM ends is guest RAM, what follows is the process's own."""
    mem, _ = machine("6.12", 3 << 19, [])
    mm = mm_alloc(mem, ram_pages, 4 * HPAGE_PMD_NR, ADVICE_NOHUGE, True, 3)
    touch(mem, mm, 0, 1)
    touch(mem, mm, HPAGE_PMD_NR, 8 * HPAGE_PMD_NR)
    assert mem.mm[mm, MM_ANON] == 8 * HPAGE_PMD_NR + 1
    assert mem.mm[mm, MM_RAM_ANON] == 4 * HPAGE_PMD_NR + 1
    check_memory(mem)


@pytest.mark.parametrize("advice", [ADVICE_HUGE, ADVICE_NOHUGE])
def test_who_watches_from_outside_sees_every_page_once_and_runs_joined(advice):
    """The frames of the windows, then those of the page tables."""
    mem, mm = machine("6.12", 3 << 19, [], advice)
    touch(mem, mm, 0, 1)
    mem = watched(mem)
    touch(mem, mm, HPAGE_PMD_NR, 20 * HPAGE_PMD_NR)
    pages = frames_seen(mem)
    assert len(np.unique(pages)) == len(pages) == 20 * (HPAGE_PMD_NR + 1)
    assert mem.pool[P_TOUCHED] <= 3


def test_who_maps_small_pages_sees_them_in_the_order_of_single_faults():
    seen = []
    for nr in (20, 1):
        mem, mm = machine("6.12", 3 << 19, [], ADVICE_NOHUGE)
        touch(mem, mm, 0, 1)
        mem = watched(mem)
        mem.pool[P_IN_ORDER] = 1
        for window in range(1, 21, nr):
            first = window * HPAGE_PMD_NR
            touch(mem, mm, first, 1 if nr == 1 else nr * HPAGE_PMD_NR)
            touch(mem, mm, first, nr * HPAGE_PMD_NR)
        seen.append(frames_seen(mem))
    assert np.array_equal(*seen)
