"""Promotion policies beside Linux's, and khugepaged woken by an event."""

import pytest
from pagemap import page_frames

from hostsim.core.units import NS_PER_S
from hostsim.mm.check import check_memory
from hostsim.mm.daemons import run_daemons, wait
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_slot import khugepaged_enter
from hostsim.mm.mm_types import MM_ANON, MM_HUGE, MM_KHUGEPAGED, PCP_COUNT, Z_FREE
from hostsim.mm.mmap import ADVICE_NONE, mm_alloc
from hostsim.mm.page_alloc import free_compound
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.policy_utilisation import UNUSED_PAGES
from hostsim.mm.settings import write_setting
from hostsim.mm.slowpath import alloc_huge
from hostsim.mm.split import split_huge_page
from hostsim.mm.vmstat import (
    KHUGEPAGED_WINDOWS,
    NR_ANON_PAGES,
    PAGES_COLLAPSED,
    THP_FAULT_ALLOC,
    THP_RESERVATION_ALLOC,
    THP_RESERVATION_PROMOTE,
)
from hostsim.mm.zap import discard_range, exit_mm

WINDOW = 512


def machine(policy="linux", pages=16384, **files):
    mem = new_memory(pages, "6.12", 1)
    write_setting(mem, "thp_policy", policy)
    for name, value in files.items():
        write_setting(mem, f"khugepaged/{name}", str(value))
    return mem


def guest(mem, windows=4):
    return int(mm_alloc(mem, windows * WINDOW, 0, ADVICE_NONE, False, 0))


def touch(mem, mm, start, nr, step=1):
    assert touch_range(mem, mm, start, nr, step, 1.0, 0, True, start) == FAULT_OK


def in_use(mem):
    return -int(mem.zone[:, Z_FREE].sum() + mem.zone[:, PCP_COUNT].sum())


def test_reservation_sets_a_huge_page_aside_and_maps_one_page():
    mem = machine("reservation")
    mm = guest(mem)
    used = in_use(mem)
    touch(mem, mm, 700, 1)
    assert mem.mm[mm, MM_ANON] == mem.vmstat[NR_ANON_PAGES] == 1
    assert mem.mm[mm, MM_HUGE] == 0
    assert in_use(mem) - used == WINDOW + 1  # and a page table
    assert mem.vmstat[THP_RESERVATION_ALLOC] == 1
    assert mem.vmstat[THP_FAULT_ALLOC] == 0
    assert mem.mm[mm, MM_KHUGEPAGED] == 0
    check_memory(mem)


@pytest.mark.parametrize("order", [[0, 256], [256, 0]])
def test_full_reservation_becomes_huge_without_a_copy(order):
    mem = machine("reservation")
    mm = guest(mem)
    for start in order:
        assert mem.mm[mm, MM_HUGE] == 0
        touch(mem, mm, start, 256)
        check_memory(mem)
    assert mem.mm[mm, MM_HUGE] == 1
    assert mem.vmstat[THP_RESERVATION_PROMOTE] == 1
    frames = page_frames(mem, mm)
    assert [frames[i] - frames[0] for i in range(WINDOW)] == list(range(WINDOW))
    exit_mm(mem, mm)
    check_memory(mem)


def test_window_of_511_pages_stays_small():
    mem = machine("reservation")
    mm = guest(mem)
    touch(mem, mm, 0, 511)
    assert mem.mm[mm, MM_HUGE] == 0


def test_discarded_pages_go_back_to_the_reservation():
    mem = machine("reservation")
    mm = guest(mem)
    touch(mem, mm, 0, 300)
    used = in_use(mem)
    discard_range(mem, mm, 100, 50)
    assert in_use(mem) == used
    touch(mem, mm, 0, WINDOW)
    assert mem.mm[mm, MM_HUGE] == 1
    check_memory(mem)


def test_broken_reservation_gives_back_what_is_not_mapped():
    mem = machine("reservation")
    mm = guest(mem)
    touch(mem, mm, 0, 5)
    used = in_use(mem)
    assert split_huge_page(mem, int(page_frames(mem, mm)[0]) // WINDOW)
    assert used - in_use(mem) == WINDOW - 5
    touch(mem, mm, 0, WINDOW)
    assert mem.mm[mm, MM_HUGE] == 0
    check_memory(mem)


def test_reservation_is_not_shared_with_a_child():
    mem = machine("reservation")
    mm, child = guest(mem), guest(mem)
    touch(mem, mm, 0, 5)
    assert copy_mm(mem, mm, child)
    touch(mem, mm, 5, 5)
    touch(mem, child, 5, 5)
    check_memory(mem)
    assert page_frames(mem, mm)[7] != page_frames(mem, child)[7]


def checkerboard(mem):
    """Leave every other small page of most memory in use; return who uses them."""
    one, other = guest(mem, 14), guest(mem, 14)
    write_setting(mem, "enabled", "never")
    for page in range(14 * WINDOW):
        touch(mem, one, page, 1)
        touch(mem, other, page, 1)
    write_setting(mem, "enabled", "always")
    exit_mm(mem, other)
    for zone in range(len(mem.zone)):
        drain_zone_pages(mem, zone)
    return one


def test_utilisation_is_huge_at_once_while_memory_is_whole():
    mem = machine("utilisation")
    mm = guest(mem)
    touch(mem, mm, 0, 1)
    assert mem.mm[mm, MM_HUGE] == 1


def test_utilisation_waits_once_memory_is_fragmented():
    mem = machine("utilisation", pages=15360)
    checkerboard(mem)
    mm = guest(mem, 2)
    touch(mem, mm, 0, WINDOW - UNUSED_PAGES)
    touch(mem, mm, WINDOW, WINDOW - UNUSED_PAGES - 1)
    assert mem.mm[mm, MM_HUGE] == 0
    assert mem.mm[mm, MM_KHUGEPAGED] != 0
    wait(mem, 40 * NS_PER_S)
    assert mem.mm[mm, MM_HUGE] <= 1
    check_memory(mem)


@pytest.mark.parametrize(("absent", "huge"), [(UNUSED_PAGES, 1), (UNUSED_PAGES + 1, 0)])
def test_utilisation_wants_nine_tenths(absent, huge):
    mem = machine("utilisation")
    mm = guest(mem)
    write_setting(mem, "enabled", "never")
    touch(mem, mm, 0, WINDOW - absent)
    write_setting(mem, "enabled", "always")
    khugepaged_enter(mem, mm)
    wait(mem, NS_PER_S)
    assert mem.mm[mm, MM_HUGE] == huge


def starved(wakeup):
    """Return a machine without free huge pages and a guest of 20 windows of one small page."""
    mem = machine(pages=32768, wakeup=wakeup, alloc_sleep_millisecs=60000, defrag=0)
    mm = guest(mem, 20)
    write_setting(mem, "enabled", "never")
    touch(mem, mm, 0, 20 * WINDOW, step=WINDOW)
    write_setting(mem, "enabled", "always")
    taken = []
    while (pb := int(alloc_huge(mem, -1, 0, 0))) != -1:
        taken.append(pb)
    for zone in range(len(mem.zone)):
        drain_zone_pages(mem, zone)
    while (pb := int(alloc_huge(mem, -1, 0, 0))) != -1:
        taken.append(pb)
    khugepaged_enter(mem, mm)
    return mem, mm, taken


@pytest.mark.parametrize(("wakeup", "huge"), [("timer", 0), ("event", 20)])
def test_freed_huge_pages_wake_khugepaged_only_in_event_mode(wakeup, huge):
    mem, mm, taken = starved(wakeup)
    wait(mem, 5 * NS_PER_S)
    assert mem.vmstat[PAGES_COLLAPSED] == 0
    for pb in taken[:40]:
        free_compound(mem, pb)
    for zone in range(len(mem.zone)):
        drain_zone_pages(mem, zone)
    wait(mem, NS_PER_S)
    assert mem.mm[mm, MM_HUGE] == huge


def test_event_mode_sleeps_when_its_rounds_are_barren():
    mem = machine(wakeup="event", max_ptes_none=0)
    mm = guest(mem, 20)
    write_setting(mem, "enabled", "never")
    touch(mem, mm, 0, 20 * WINDOW, step=WINDOW)
    write_setting(mem, "enabled", "always")
    khugepaged_enter(mem, mm)
    run_daemons(mem, 9 * NS_PER_S)
    assert mem.vmstat[KHUGEPAGED_WINDOWS] <= 3 * 20
