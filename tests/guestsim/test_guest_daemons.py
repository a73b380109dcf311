"""A guest's threads, fast-forwarded: what they leave is what single steps leave."""

import itertools

import pytest
from guests import GUESTS
from hypothesis import given, settings
from hypothesis import strategies as st

from guestsim.daemons import pass_time, start_clock
from guestsim.guest import boot_memory, free_room, start_process
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_MS, NS_PER_S
from hostsim.mm.check import check_memory
from hostsim.mm.daemons import pass_tick
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.mm_types import (
    D_WAKE,
    DAEMON_KHUGEPAGED,
    MM_HUGE,
    MM_RAM_PAGES,
    NIL,
    P_NOW_NS,
    P_TOUCHED,
)
from hostsim.mm.mmap import ADVICE_NOHUGE, ADVICE_NONE, window_word
from hostsim.mm.settings import write_setting
from hostsim.mm.state import used_parts
from hostsim.mm.vmstat import FULL_SCANS, PAGES_COLLAPSED
from hostsim.mm.zap import discard_range, exit_mm

PAGES = 1 << 16  # 256 MiB
LONG = 1 << 30
SHARED = ("touched", "scratch")  # work space


def booted(**files):
    mem = boot_memory(GUESTS._replace(boot_pages=4096), PAGES, 2)
    for name, value in files.items():
        write_setting(mem, f"khugepaged/{name}", str(value))
    mem.pool[P_TOUCHED] = 0
    return mem


def assert_same(a, b):
    parts, others = used_parts(a), used_parts(b)
    for name in parts:
        if name not in SHARED:
            assert (parts[name] == others[name]).all(), name


PROCESS = st.integers(0, 3)
ACTION = st.one_of(
    st.tuples(st.just("begin"), PROCESS, st.integers(1, 20_000), st.booleans()),
    st.tuples(st.just("touch"), PROCESS, st.integers(0, 12_000), st.integers(1, 6000)),
    st.tuples(st.just("free"), PROCESS, st.integers(0, 12_000), st.integers(1, 700)),
    st.tuples(st.just("exit"), PROCESS, st.just(0), st.just(0)),
    st.tuples(st.just("wait"), st.just(0), st.integers(1, 4000), st.integers(0, 999)),
)


def act(mem, slots, action, where, start, nr):
    mm = slots.get(where, NIL)
    if action == "begin" and mm == NIL:
        advice = ADVICE_NOHUGE if nr else ADVICE_NONE
        slots[where] = int(start_process(mem, start, 0, advice))
    elif action == "touch" and mm != NIL:
        nr = min(nr, int(mem.mm[mm, MM_RAM_PAGES]) - start, int(free_room(mem)))
        if nr > 0:
            assert touch_range(mem, mm, start, nr, 1, 1.0, 0, True, start) == FAULT_OK
    elif action == "free" and mm != NIL:
        nr = min(nr, int(mem.mm[mm, MM_RAM_PAGES]) - start)
        if nr > 0:
            discard_range(mem, mm, start, nr)
    elif action == "exit" and mm != NIL:
        exit_mm(mem, mm)
        del slots[where]
    mem.pool[P_TOUCHED] = 0


@settings(max_examples=60, deadline=None)
@given(
    actions=st.lists(ACTION, min_size=5, max_size=40),
    pages_to_scan=st.sampled_from([1, 512, 513, 1500, 4096]),
    sleep=st.sampled_from([0, 7, 500, 10_000]),
    most=st.sampled_from([1, 8, LONG]),
)
def test_skipping_leaves_what_single_steps_leave(actions, pages_to_scan, sleep, most):
    """Whatever a guest does, and however often its host makes it stop for frames to be backed."""
    files = {"pages_to_scan": pages_to_scan, "scan_sleep_millisecs": sleep}
    fast, slow = booted(**files), booted(**files)
    lives = {}, {}
    for action, where, start, nr in actions:
        if action == "wait":
            ns = start * (NS_PER_S if sleep > 100 else NS_PER_MS) + nr * 1_000_003
            until_ns = int(slow.pool[P_NOW_NS]) + ns
            while not pass_time(fast, until_ns, most):
                fast.pool[P_TOUCHED] = 0
            pass_tick(slow, until_ns)
            fast.pool[P_TOUCHED] = slow.pool[P_TOUCHED] = 0
        else:
            act(fast, lives[0], action, where, start, nr)
            act(slow, lives[1], action, where, start, nr)
        assert_same(fast, slow)
    check_memory(fast)


def test_years_of_an_idle_guest_cost_no_more_than_a_round():
    """10**9 passes: they could not be made one by one."""
    mem = booted()
    mm = start_process(mem, 20_000, 0, ADVICE_NONE)
    touch_range(mem, mm, 0, 20_000, 1, 1.0, 0, True, 0)
    mem.pool[P_TOUCHED] = 0
    assert pass_time(mem, 10**8 * NS_PER_S, LONG)
    scans = int(mem.vmstat[FULL_SCANS])
    assert scans > 10**6
    assert pass_time(mem, 10**9 * NS_PER_S, LONG)
    # As many rounds a time as before: the rate does not depend on how far it skips.
    assert int(mem.vmstat[FULL_SCANS]) == pytest.approx(10 * scans, rel=1e-3)
    check_memory(mem)


def test_khugepaged_of_a_guest_keeps_its_rate():
    """4096 pages every 10 s: eight windows a pass, 512 pages of the budget each."""
    mem = booted()
    mm = start_process(mem, 20_000, 0, ADVICE_NONE)
    touch_range(mem, mm, 0, 20_000, 1, 1.0, 0, True, 0)
    for window in range(39):
        discard_range(mem, mm, window * HPAGE_PMD_NR + 10, 64)
    mem.pool[P_TOUCHED] = 0
    collapsed = []
    for seconds in (9, 19, 29, 39):
        while not pass_time(mem, seconds * NS_PER_S, 4):
            mem.pool[P_TOUCHED] = 0
        collapsed.append(int(mem.vmstat[PAGES_COLLAPSED]))
    assert collapsed[0] <= 8  # the boot's processes are scanned before it
    assert [b - a for a, b in itertools.pairwise(collapsed)] == [8, 8, 8]
    assert mem.mm[mm, MM_HUGE] == collapsed[-1]


def test_what_is_collapsed_into_is_named_for_the_host():
    mem = booted()
    mm = start_process(mem, 2048, 0, ADVICE_NONE)
    touch_range(mem, mm, 0, 2048, 1, 1.0, 0, True, 0)
    discard_range(mem, mm, 512 + 10, 64)
    mem.pool[P_TOUCHED] = 0
    assert pass_time(mem, 60 * NS_PER_S, LONG)
    assert mem.vmstat[PAGES_COLLAPSED] == 1
    runs = mem.touched[: mem.pool[P_TOUCHED]]
    pb = int(window_word(mem, mm, 1)) >> 2
    assert [pb * HPAGE_PMD_NR, HPAGE_PMD_NR] in runs.tolist()


def test_a_clock_begins_when_the_guest_does():
    mem = booted()
    wake = int(mem.daemon[DAEMON_KHUGEPAGED, D_WAKE])
    start_clock(mem, 77 * NS_PER_S)
    assert mem.pool[P_NOW_NS] == 77 * NS_PER_S
    assert mem.daemon[DAEMON_KHUGEPAGED, D_WAKE] == wake + 77 * NS_PER_S
    start_clock(mem, 70 * NS_PER_S)
    assert mem.pool[P_NOW_NS] == 77 * NS_PER_S


@pytest.mark.parametrize("pages_to_scan", [512, 4096])
@pytest.mark.parametrize("sleep", [500, 10_000])
def test_long_stretches_of_huge_windows_are_skipped_to_the_same_place(pages_to_scan, sleep):
    files = {"pages_to_scan": pages_to_scan, "scan_sleep_millisecs": sleep}
    fast, slow = booted(**files), booted(**files)
    for mem in (fast, slow):
        mm = start_process(mem, 20_000, 0, ADVICE_NONE)
        touch_range(mem, mm, 0, 20_000, 1, 1.0, 0, True, 0)
        discard_range(mem, mm, 30 * HPAGE_PMD_NR + 5, 64)
        mem.pool[P_TOUCHED] = 0
    for seconds in (9, 105, 205, 333, 2000):
        while not pass_time(fast, seconds * NS_PER_S, 1):
            fast.pool[P_TOUCHED] = 0
        pass_tick(slow, seconds * NS_PER_S)
        fast.pool[P_TOUCHED] = slow.pool[P_TOUCHED] = 0
        assert_same(fast, slow)
    assert slow.vmstat[PAGES_COLLAPSED] == 1
