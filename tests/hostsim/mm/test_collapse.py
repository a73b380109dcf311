"""What a window must be for a collapse, and what a collapse leaves behind."""

import pytest
from pagemap import page_frames

from hostsim.mm.check import check_memory
from hostsim.mm.collapse import (
    EAGAIN,
    EINVAL,
    ENOMEM,
    SCAN_ALLOC_HUGE_PAGE_FAIL,
    SCAN_EXCEED_NONE_PTE,
    SCAN_EXCEED_SHARED_PTE,
    SCAN_LACK_REFERENCED_PAGE,
    SCAN_PAGE_COUNT,
    SCAN_PAGE_RO,
    SCAN_PMD_MAPPED,
    SCAN_PMD_NONE,
    SCAN_SUCCEED,
    collapse_window,
    madvise_collapse,
)
from hostsim.mm.cost import C_COPY_PAGE
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.lru import fresh_stamp
from hostsim.mm.lru_stamp import LRU_YOUNG
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MM_ANON,
    MM_HUGE,
    MM_PGTABLES,
    P_COST_NS,
    PCP_COUNT,
    Z_FREE,
)
from hostsim.mm.mmap import ADVICE_NOHUGE, ADVICE_NONE, mm_alloc, table_head, window_word
from hostsim.mm.mprotect import mprotect
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.pins import add_pin
from hostsim.mm.slowpath import GFP_DIRECT, alloc_huge
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vmstat import (
    NR_ANON_PAGES,
    NR_ANON_THPS,
    PGFREE,
    THP_COLLAPSE_ALLOC,
    THP_COLLAPSE_ALLOC_FAILED,
    THP_DEFERRED_SPLIT_PAGE,
    THP_SCAN_EXCEED_NONE_PTE,
    THP_SCAN_EXCEED_SHARE_PTE,
)
from hostsim.mm.zap import discard_range, exit_mm

WINDOW = 512


def machine(enabled="never", pages=16384, kernel="6.12", **files):
    mem = new_memory(pages, kernel, 1)
    set_tunable(mem.tunables, "enabled", enabled)
    for name, value in files.items():
        set_tunable(mem.tunables, f"khugepaged/{name}", str(value))
    return mem


def guest(mem, windows=2, advice=ADVICE_NONE):
    return int(mm_alloc(mem, windows * WINDOW, 0, advice, False, 0))


def touch(mem, mm, start, nr, step=1):
    assert touch_range(mem, mm, start, nr, step, 1.0, 0, True, start) == FAULT_OK


def collapse(mem, mm, window=0):
    return collapse_window(mem, mm, window, GFP_DIRECT, True)


def in_use(mem):
    """Return frames that are neither free nor on a per-CPU list."""
    return -int(mem.zone[:, Z_FREE].sum() + mem.zone[:, PCP_COUNT].sum())


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
@pytest.mark.parametrize("resident", [1, 100, 512])
def test_collapse_fills_the_window_and_frees_exactly_what_it_replaced(kernel, resident):
    mem = machine(kernel=kernel)
    mm = guest(mem)
    touch(mem, mm, 0, WINDOW, step=WINDOW // resident if resident < WINDOW else 1)
    pages = int(mem.mm[mm, MM_ANON])
    tables, used = int(mem.mm[mm, MM_PGTABLES]), in_use(mem)
    freed, cost = int(mem.vmstat[PGFREE]), int(mem.pool[P_COST_NS])
    assert collapse(mem, mm) == SCAN_SUCCEED
    assert mem.mm[mm, MM_ANON] == mem.vmstat[NR_ANON_PAGES] == WINDOW
    assert mem.mm[mm, MM_HUGE] == mem.vmstat[NR_ANON_THPS] == 1
    assert mem.mm[mm, MM_PGTABLES] == tables  # deposited
    assert in_use(mem) - used == WINDOW - pages
    assert mem.vmstat[PGFREE] - freed == pages
    assert mem.pool[P_COST_NS] - cost >= 512 * mem.cost[C_COPY_PAGE]
    assert mem.vmstat[THP_COLLAPSE_ALLOC] == 1
    check_memory(mem)
    exit_mm(mem, mm)
    check_memory(mem)


def test_window_without_a_table_or_huge_is_no_candidate():
    mem = machine("always")
    mm = guest(mem)
    touch(mem, mm, 0, 1)
    assert collapse(mem, mm, 0) == SCAN_PMD_MAPPED
    assert collapse(mem, mm, 1) == SCAN_PMD_NONE


@pytest.mark.parametrize(("missing", "result"), [(64, SCAN_SUCCEED), (65, SCAN_EXCEED_NONE_PTE)])
@pytest.mark.parametrize("place", ["front", "middle", "back", "spread"])
def test_absent_pages_may_be_max_ptes_none(missing, result, place):
    mem = machine(max_ptes_none=64)
    mm = guest(mem)
    touch(mem, mm, 0, WINDOW)
    start = {"front": 0, "middle": 200, "back": WINDOW - missing, "spread": 0}[place]
    for i in range(missing):
        discard_range(mem, mm, start + i * (7 if place == "spread" else 1), 1)
    assert collapse(mem, mm) == result
    assert mem.vmstat[THP_SCAN_EXCEED_NONE_PTE] == (result == SCAN_EXCEED_NONE_PTE)
    check_memory(mem)


@pytest.mark.parametrize(("shared", "result"), [(256, SCAN_SUCCEED), (257, SCAN_EXCEED_SHARED_PTE)])
def test_shared_pages_may_be_max_ptes_shared(shared, result):
    mem = machine()
    mm, child = guest(mem), guest(mem)
    touch(mem, mm, 0, WINDOW)
    assert copy_mm(mem, mm, child)
    touch(mem, child, 0, WINDOW - shared)  # copies of its own
    assert collapse(mem, mm) in (SCAN_PAGE_RO, result)  # nothing is writable yet
    mem.vmstat[THP_SCAN_EXCEED_SHARE_PTE] = 0
    touch(mem, mm, 0, 1)
    assert collapse(mem, mm) == result
    assert mem.vmstat[THP_SCAN_EXCEED_SHARE_PTE] == (result != SCAN_SUCCEED)
    check_memory(mem)
    exit_mm(mem, child)
    check_memory(mem)


def test_shared_pages_stay_with_the_other_process():
    mem = machine()
    mm, child = guest(mem), guest(mem)
    touch(mem, mm, 0, 100)
    assert copy_mm(mem, mm, child)
    touch(mem, mm, 200, 1)
    frames = list(page_frames(mem, child))
    assert collapse(mem, mm) == SCAN_SUCCEED
    assert list(page_frames(mem, child)) == frames
    assert mem.vmstat[NR_ANON_PAGES] == WINDOW + 100
    check_memory(mem)


def test_window_that_nobody_may_write_is_left_alone():
    mem = machine()
    mm = guest(mem)
    touch(mem, mm, 0, WINDOW)
    mprotect(mem, mm, 0, WINDOW, True)
    assert collapse(mem, mm) == SCAN_PAGE_RO
    mprotect(mem, mm, 0, WINDOW, False)
    assert collapse(mem, mm) == SCAN_SUCCEED


def test_a_window_with_a_pinned_page_is_left_alone():
    mem = machine()
    mm = guest(mem)
    touch(mem, mm, 0, WINDOW)
    assert add_pin(mem, mm, 100, 101)
    assert collapse(mem, mm) == SCAN_PAGE_COUNT
    assert madvise_collapse(mem, mm, 0, WINDOW) == -EAGAIN


def test_one_young_page_suffices_and_none_does_not():
    mem = machine()
    mm = guest(mem)
    touch(mem, mm, 0, 10)
    x = table_head(window_word(mem, mm, 0))
    mem.ext_lru[x] = fresh_stamp(mem, 0)
    assert collapse(mem, mm) == SCAN_LACK_REFERENCED_PAGE
    touch(mem, mm, 300, 1)
    assert collapse(mem, mm) == SCAN_SUCCEED
    assert mem.lru[int(window_word(mem, mm, 0)) >> 2] & LRU_YOUNG


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_pages_of_a_split_huge_page_go_to_a_new_one(kernel):
    mem = machine("always", kernel=kernel)
    mm = guest(mem)
    touch(mem, mm, 0, WINDOW)
    discard_range(mem, mm, 100, 10)
    before = page_frames(mem, mm)[0]
    assert collapse(mem, mm) == SCAN_SUCCEED
    assert page_frames(mem, mm)[0] != before
    assert mem.vmstat[NR_ANON_PAGES] == WINDOW
    assert mem.vmstat[THP_DEFERRED_SPLIT_PAGE] == 1
    check_memory(mem)


def test_failed_allocation_leaves_everything_as_it_was():
    mem = machine()
    mm = guest(mem)
    touch(mem, mm, 0, 7)
    while alloc_huge(mem, -1, 0, 0) != -1:
        pass
    for zone in range(len(mem.zone)):
        drain_zone_pages(mem, zone)
    while alloc_huge(mem, -1, 0, 0) != -1:
        pass
    frames, free = list(page_frames(mem, mm)), int(mem.zone[:, Z_FREE].sum())
    assert collapse_window(mem, mm, 0, 0, True) == SCAN_ALLOC_HUGE_PAGE_FAIL
    assert list(page_frames(mem, mm)) == frames
    assert mem.zone[:, Z_FREE].sum() == free
    assert mem.vmstat[THP_COLLAPSE_ALLOC_FAILED] == 1
    assert mem.vmstat[THP_COLLAPSE_ALLOC] == 0


def test_advice_collapses_what_khugepaged_may_not():
    mem = machine("never", max_ptes_none=0)
    mm = guest(mem, 3)
    touch(mem, mm, 0, 1)
    touch(mem, mm, 2 * WINDOW, 1)
    assert madvise_collapse(mem, mm, 0, WINDOW) == 0
    assert madvise_collapse(mem, mm, 1, 3 * WINDOW - 1) == -EINVAL  # window 1 is empty
    assert mem.mm[mm, MM_HUGE] == 2
    assert madvise_collapse(mem, mm, 2 * WINDOW, WINDOW) == 0  # it is huge already
    assert mem.vmstat[THP_SCAN_EXCEED_NONE_PTE] == 0
    check_memory(mem)


def test_advice_against_huge_pages_wins():
    mem = machine("always")
    mm = guest(mem, 1, ADVICE_NOHUGE)
    touch(mem, mm, 0, WINDOW)
    assert madvise_collapse(mem, mm, 0, WINDOW) == -EINVAL


def test_advice_without_memory_says_so():
    mem = machine()
    mm = guest(mem)
    touch(mem, mm, 0, 2 * WINDOW)
    while alloc_huge(mem, -1, 0, 0) != -1:
        pass
    assert madvise_collapse(mem, mm, 0, 2 * WINDOW) == -ENOMEM
