"""The transparent hugepage policy at a fault."""

import pytest
from pagemap import is_all_free, page_frames

from hostsim.mm.check import FrameKind, check_memory, frame_owner
from hostsim.mm.fault import FAULT_OK, FAULT_OOM, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MM_ANON,
    MM_BASE,
    MM_HUGE,
    MM_PGTABLES,
    MM_THP_ALLOC,
    MM_THP_FALLBACK,
    P_RESUME,
    P_ZERO_USERS,
    Z_FREE,
    Z_RESERVE,
    Z_WMARK_HIGH,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
)
from hostsim.mm.mmap import (
    ADVICE_HUGE,
    ADVICE_NOHUGE,
    ADVICE_NONE,
    W_HUGE,
    W_NONE,
    W_TABLE,
    W_TAG,
    W_ZERO,
    mm_alloc,
)
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vmstat import (
    NR_ANON_THPS,
    THP_FAULT_ALLOC,
    THP_FAULT_FALLBACK,
    THP_SPLIT_PMD,
    THP_ZERO_PAGE_ALLOC,
)
from hostsim.mm.zap import discard_range, exit_mm

WINDOW = 512


def machine(enabled="always", pages=16384, kernel="6.12"):
    mem = new_memory(pages, kernel, 1)
    set_tunable(mem.tunables, "enabled", enabled)
    return mem


def word(mem, mm, window):
    return int(mem.windows[mem.mm[mm, MM_BASE] + window])


def touch(mem, mm, start, nr, write=True):
    return touch_range(mem, mm, start, nr, 1, 1.0, 0, write, start)


@pytest.mark.parametrize(
    ("enabled", "advice", "huge"),
    [
        ("always", ADVICE_NONE, True),
        ("always", ADVICE_HUGE, True),
        ("always", ADVICE_NOHUGE, False),
        ("madvise", ADVICE_NONE, False),
        ("madvise", ADVICE_HUGE, True),
        ("madvise", ADVICE_NOHUGE, False),
        ("never", ADVICE_NONE, False),
        ("never", ADVICE_HUGE, False),
        ("never", ADVICE_NOHUGE, False),
    ],
)
def test_enabled_and_advice_decide(enabled, advice, huge):
    """include/linux/huge_mm.h hugepage_vma_check."""
    mem = machine(enabled)
    mm = mm_alloc(mem, 4 * WINDOW, 0, advice, True, 1)
    assert touch(mem, mm, WINDOW + 7, 1) == FAULT_OK
    assert (word(mem, mm, 1) & W_TAG) == (W_HUGE if huge else W_TABLE)
    assert mem.mm[mm, MM_ANON] == (WINDOW if huge else 1)
    assert mem.vmstat[THP_FAULT_ALLOC] == mem.mm[mm, MM_THP_ALLOC] == int(huge)
    assert mem.vmstat[THP_FAULT_FALLBACK] == 0  # not eligible is no fallback
    assert mem.mm[mm, MM_PGTABLES] == 1  # the huge page's is deposited
    check_memory(mem)


@pytest.mark.parametrize(("ram", "huge"), [(2 * WINDOW, True), (2 * WINDOW - 1, False)])
def test_the_window_must_lie_inside_the_area(ram, huge):
    mem = machine()
    mm = mm_alloc(mem, ram, WINDOW, ADVICE_NONE, True, 1)
    touch(mem, mm, WINDOW, 1)
    assert (word(mem, mm, 1) & W_TAG == W_HUGE) == huge
    assert mem.vmstat[THP_FAULT_FALLBACK] == 0
    touch(mem, mm, 2 * WINDOW, 1)  # the process's own memory is never huge
    assert word(mem, mm, 2) & W_TAG == W_TABLE
    check_memory(mem)


def fragment(mem):
    """Use up all memory, then free a quarter of it in holes of 128 pages."""
    set_tunable(mem.tunables, "enabled", "never")
    mm = mm_alloc(mem, 0, mem.pb.size * WINDOW, ADVICE_NONE, False, 0)
    assert touch(mem, mm, 0, mem.pb.size * WINDOW) == FAULT_OOM
    for start in range(0, int(mem.pool[P_RESUME]) - 128, WINDOW):
        discard_range(mem, mm, start, 128)
    for zone in range(len(mem.zone)):
        drain_zone_pages(mem, zone)
    set_tunable(mem.tunables, "enabled", "always")
    return mm


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_a_fallback_counts_once_a_window_and_serves_small_pages(kernel):
    mem = machine(kernel=kernel)
    hog = fragment(mem)
    mm = mm_alloc(mem, 4 * WINDOW, 0, ADVICE_NONE, True, 1)
    assert touch(mem, mm, 0, 1) == FAULT_OK
    assert mem.vmstat[THP_FAULT_FALLBACK] == mem.mm[mm, MM_THP_FALLBACK] == 1
    assert touch(mem, mm, 1, WINDOW - 1) == FAULT_OK
    assert mem.vmstat[THP_FAULT_FALLBACK] == 1
    assert touch(mem, mm, WINDOW, 2 * WINDOW) == FAULT_OK
    assert mem.vmstat[THP_FAULT_FALLBACK] == mem.mm[mm, MM_THP_FALLBACK] == 3
    assert mem.vmstat[THP_FAULT_ALLOC] == mem.vmstat[NR_ANON_THPS] == 0
    assert mem.mm[mm, MM_ANON] == 3 * WINDOW
    check_memory(mem)
    exit_mm(mem, hog)
    assert touch(mem, mm, 5, 1) == FAULT_OK  # the window stays small
    assert word(mem, mm, 0) & W_TAG == W_TABLE
    discard_range(mem, mm, 0, WINDOW)
    touch(mem, mm, 0, 1)
    assert word(mem, mm, 0) & W_TAG == W_TABLE  # its page table stays, too
    exit_mm(mem, mm)
    for zone in range(len(mem.zone)):
        drain_zone_pages(mem, zone)
    assert is_all_free(mem)


def test_a_read_maps_the_shared_zero_page_without_memory():
    mem = machine()
    mm = mm_alloc(mem, 4 * WINDOW, 0, ADVICE_NONE, True, 1)
    assert touch(mem, mm, 0, 3 * WINDOW, write=False) == FAULT_OK
    assert [word(mem, mm, w) for w in range(4)] == [W_ZERO, W_ZERO, W_ZERO, W_NONE]
    assert mem.mm[mm, MM_ANON] == mem.vmstat[THP_FAULT_ALLOC] == mem.vmstat[NR_ANON_THPS] == 0
    assert mem.vmstat[THP_ZERO_PAGE_ALLOC] == 1
    assert mem.pool[P_ZERO_USERS] == 3
    check_memory(mem)
    touch(mem, mm, 10, 1)  # a write splits the mapping and copies one page
    assert word(mem, mm, 0) & W_TAG == W_TABLE
    assert mem.mm[mm, MM_ANON] == mem.vmstat[THP_SPLIT_PMD] == 1
    check_memory(mem)


def test_users_of_the_zero_page_are_counted_through_fork_discard_and_exit():
    mem = machine()
    mm = mm_alloc(mem, 4 * WINDOW, 0, ADVICE_NONE, True, 1)
    touch(mem, mm, 0, 4 * WINDOW, write=False)
    child = mm_alloc(mem, 4 * WINDOW, 0, ADVICE_NONE, True, 2)
    assert copy_mm(mem, mm, child)
    assert mem.pool[P_ZERO_USERS] == 8
    discard_range(mem, child, 100, WINDOW)  # the ends of two windows
    assert (mem.pool[P_ZERO_USERS], mem.vmstat[THP_SPLIT_PMD]) == (6, 2)
    check_memory(mem)
    exit_mm(mem, child)
    assert mem.pool[P_ZERO_USERS] == 4
    exit_mm(mem, mm)
    assert mem.pool[P_ZERO_USERS] == 0
    kinds = {frame_owner(mem, pfn).kind for pfn in range(0, 16384, WINDOW)}
    assert FrameKind.ZERO in kinds


def test_without_the_zero_page_a_read_takes_a_huge_page():
    mem = machine()
    set_tunable(mem.tunables, "use_zero_page", "0")
    mm = mm_alloc(mem, WINDOW, 0, ADVICE_NONE, True, 1)
    touch(mem, mm, 0, 1, write=False)
    assert word(mem, mm, 0) & W_TAG == W_HUGE
    assert mem.vmstat[THP_FAULT_ALLOC] == 1


def test_a_huge_fault_without_a_page_for_its_table_leaves_nothing_behind():
    """do_huge_pmd_anonymous_page: no page table, VM_FAULT_OOM, the huge page goes back."""
    mem = machine(kernel="6.1")
    mm = mm_alloc(mem, 0, mem.pb.size * WINDOW, ADVICE_NONE, False, 0)
    zone = 1
    mem.zone[:, Z_RESERVE] = 0
    mem.zone[0, [Z_WMARK_MIN, Z_WMARK_LOW, Z_WMARK_HIGH]] = mem.zone[0, Z_FREE]
    guest = mm_alloc(mem, 2 * WINDOW, 0, ADVICE_NONE, True, 1)
    # Order 9 is served from a list, order 0 finds no list and a zone at its mark.
    mem.zone[zone, Z_WMARK_LOW] = mem.zone[zone, Z_WMARK_MIN] = mem.zone[zone, Z_FREE] - 512
    assert touch(mem, guest, 0, 1) == FAULT_OOM
    assert word(mem, guest, 0) == W_NONE
    assert mem.mm[guest, MM_HUGE] == mem.mm[guest, MM_PGTABLES] == 0
    assert mem.vmstat[NR_ANON_THPS] == mem.vmstat[THP_FAULT_ALLOC] == 0
    check_memory(mem)
    exit_mm(mem, mm)


def test_out_of_memory_stops_at_the_page_that_failed_and_resumes_there():
    mem = machine("never")
    mm = mm_alloc(mem, 0, 40 * WINDOW, ADVICE_NONE, False, 1)
    assert touch(mem, mm, 0, 40 * WINDOW) == FAULT_OOM
    stop = int(mem.pool[P_RESUME])
    frames = page_frames(mem, mm)
    assert (frames[:stop] >= 0).all()
    assert (frames[stop:] < 0).all()
    assert mem.mm[mm, MM_ANON] == stop
    discard_range(mem, mm, 0, 1000)
    assert touch_range(mem, mm, 0, stop + 10, 1, 1.0, 0, True, stop) == FAULT_OK
    assert mem.mm[mm, MM_ANON] == stop + 10 - 1000
    check_memory(mem)
