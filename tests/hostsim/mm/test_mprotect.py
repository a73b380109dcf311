"""Making parts of guest RAM read-only: areas, boundaries, PMDs."""

import pytest

from hostsim.core.errors import InvariantError
from hostsim.mm.check import check_memory
from hostsim.mm.fault import FAULT_OK, thp_eligible, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MM_HUGE, MM_VMAS, P_ZERO_USERS
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.mprotect import mprotect
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vma import VM_MERGEABLE, VM_READONLY, change_flags, vma_flags, window_in_vma
from hostsim.mm.vmstat import THP_DEFERRED_SPLIT_PAGE, THP_SPLIT_PMD
from hostsim.mm.zap import exit_mm

WINDOW = 512


@pytest.fixture(params=["6.1", "6.12"])
def mem(request):
    return new_memory(16384, request.param, 1)


def guest(mem, windows, write=True):
    mm = mm_alloc(mem, windows * WINDOW, 0, 0, False, 1)
    assert touch_range(mem, mm, 0, windows * WINDOW, 1, 1.0, 0, write, 0) == FAULT_OK
    return mm


def areas(mem, mm):
    found, v = [], int(mem.mm[mm, MM_VMAS]) - 1
    while v >= 0:
        found.append(tuple(int(mem.vma[f][v]) for f in ("start", "end", "flags")))
        v = int(mem.vma["next"][v])
    return found


@pytest.mark.parametrize(
    ("start", "nr", "splits"),
    [
        (0, 4 * WINDOW, 0),  # the whole area
        (WINDOW, WINDOW, 0),  # whole windows
        (0, 10, 1),
        (WINDOW + 1, 1, 1),  # both boundaries in one window
        (10, WINDOW, 2),
        (4 * WINDOW - 1, 1, 1),
        (5, 4 * WINDOW - 5, 1),
    ],
)
def test_boundaries_inside_a_huge_page_split_its_pmd(mem, start, nr, splits):
    mm = guest(mem, 4)
    assert mprotect(mem, mm, start, nr, True)
    check_memory(mem)
    assert mem.vmstat[THP_SPLIT_PMD] == splits
    assert mem.mm[mm, MM_HUGE] == 4 - splits
    pages = [page for page in range(4 * WINDOW) if vma_flags(mem, mm, page) & VM_READONLY]
    assert pages == list(range(start, start + nr))


def test_protecting_again_changes_nothing(mem):
    mm = guest(mem, 4)
    mprotect(mem, mm, 0, 2 * WINDOW, True)
    mprotect(mem, mm, 100, 300, True)
    assert mem.vmstat[THP_SPLIT_PMD] == 0
    assert areas(mem, mm) == [(0, 1024, VM_READONLY), (1024, 2048, 0)]


def test_neighbours_that_become_alike_are_one_area_again(mem):
    mm = guest(mem, 2)
    mprotect(mem, mm, 100, 300, True)
    assert len(areas(mem, mm)) == 3
    mprotect(mem, mm, 100, 300, False)
    assert areas(mem, mm) == [(0, 1024, 0)]
    assert mem.mm[mm, MM_HUGE] == 1  # nothing maps the window huge again


def test_flags_do_not_touch_each_other(mem):
    mm = guest(mem, 2)
    change_flags(mem, mm, 0, 600, VM_MERGEABLE, 0)
    change_flags(mem, mm, 300, 1024, VM_READONLY, 0)
    assert [f for _, _, f in areas(mem, mm)] == [2, 3, 1]
    check_memory(mem)


def test_a_window_across_a_boundary_gets_no_huge_page(mem):
    mm = mm_alloc(mem, 3 * WINDOW, 0, 0, False, 1)
    mprotect(mem, mm, WINDOW + 7, 10, True)
    assert [thp_eligible(mem, mm, w) for w in range(3)] == [True, False, True]
    assert [window_in_vma(mem, mm, w) for w in range(3)] == [True, False, True]


def test_a_boundary_splits_the_huge_zero_page(mem):
    set_tunable(mem.tunables, "use_zero_page", "1")
    mm = guest(mem, 2, write=False)
    mprotect(mem, mm, 7, 10, True)
    check_memory(mem)
    assert mem.vmstat[THP_SPLIT_PMD] == 1
    assert mem.pool[P_ZERO_USERS] == 1


def test_an_exit_queues_a_huge_page_whose_mapping_was_cut(mem):
    """An area's pages are unmapped before the next area's."""
    mm = guest(mem, 2)
    mprotect(mem, mm, 7, 10, True)
    exit_mm(mem, mm)
    check_memory(mem)
    assert mem.vmstat[THP_DEFERRED_SPLIT_PAGE] == 1


def test_a_child_has_its_parents_areas(mem):
    mm = guest(mem, 2)
    mprotect(mem, mm, 7, 10, True)
    child = mm_alloc(mem, 2 * WINDOW, 0, 0, False, 1)
    assert copy_mm(mem, mm, child)
    assert areas(mem, child) == areas(mem, mm)
    exit_mm(mem, mm)
    check_memory(mem)
    assert vma_flags(mem, child, 7) == VM_READONLY


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [("end", 5, "ends of areas"), ("flags", 0, "areas alike"), ("next", -1, "end of the last")],
)
def test_corrupt_areas_are_noticed(mem, field, value, complaint):
    mm = guest(mem, 2)
    mprotect(mem, mm, 7, 10, True)
    mem.vma[field][int(mem.vma["next"][0])] = value
    with pytest.raises(InvariantError, match=complaint):
        check_memory(mem)
