"""When daemons run: the order of time, the price of their work, and a CPU that others use."""

import numpy as np
import pytest

from hostsim.core.units import NS_PER_MS, NS_PER_S
from hostsim.mm.daemons import (
    SLICE_NS,
    WEIGHT,
    access_range,
    run_daemons,
    set_busy,
    settle,
    start_vmstat_worker,
    wait,
)
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_slot import khugepaged_enter
from hostsim.mm.mm_types import (
    D_WAKE,
    D_WORK,
    DAEMON_KHUGEPAGED,
    DAEMON_VMSTAT,
    P_COST_NS,
    P_DAEMON_NS,
    P_DAEMON_SCALE,
    P_NOW_NS,
    P_TIME_SCALE,
    TIME_SCALE_ONE,
)
from hostsim.mm.mmap import ADVICE_NONE, mm_alloc
from hostsim.mm.settings import write_setting
from hostsim.mm.vmstat import KHUGEPAGED_WINDOWS, NR_VMSTAT, PAGES_COLLAPSED

WINDOW = 512
COLLAPSE_NS = 512 * (2118 + 10 + 10) + 1000  # copy, two looks at every entry, one at the window


def machine(windows=20, nr_cpus=1, **files):
    """Return a machine with a registered process of one small page a window."""
    mem = new_memory(32768, "6.12", nr_cpus)
    write_setting(mem, "enabled", "never")
    mm = int(mm_alloc(mem, windows * WINDOW, 0, ADVICE_NONE, False, 0))
    for window in range(windows):
        touch_range(mem, mm, window * WINDOW, 1, 1, 1.0, 0, True, window * WINDOW)
    settle(mem)
    mem.pool[P_NOW_NS] = 0
    for name, value in files.items():
        write_setting(mem, f"khugepaged/{name}", str(value))
    write_setting(mem, "enabled", "always")
    khugepaged_enter(mem, mm)
    return mem, mm


def test_clock_shows_the_time_asked_for():
    mem, _ = machine(0)
    wait(mem, 123)
    assert mem.pool[P_NOW_NS] == 123
    run_daemons(mem, 100)
    assert mem.pool[P_NOW_NS] == 123


def test_pass_takes_its_copies_and_its_sleep():
    mem, _ = machine(scan_sleep_millisecs=100)
    period = 8 * COLLAPSE_NS + 100 * NS_PER_MS
    wait(mem, period - 1)
    assert mem.vmstat[PAGES_COLLAPSED] == 8
    wait(mem, 1)
    assert mem.vmstat[PAGES_COLLAPSED] == 9
    assert mem.pool[P_DAEMON_NS] == 9 * COLLAPSE_NS


def test_half_a_pass_is_seen_in_the_middle_of_it():
    mem, _ = machine(scan_sleep_millisecs=100)
    wait(mem, 3 * COLLAPSE_NS)
    assert mem.vmstat[PAGES_COLLAPSED] == 4  # the fourth has begun


def test_scale_stretches_costs_and_not_sleeps():
    mem, _ = machine(scan_sleep_millisecs=100)
    mem.pool[P_DAEMON_SCALE] = 3 * TIME_SCALE_ONE
    wait(mem, 8 * 3 * COLLAPSE_NS + 100 * NS_PER_MS - 1)
    assert mem.vmstat[PAGES_COLLAPSED] == 8
    wait(mem, 1)
    assert mem.vmstat[PAGES_COLLAPSED] == 9


def test_settling_lets_the_cost_of_operations_pass():
    mem, _ = machine()
    mem.pool[P_TIME_SCALE] = 2 * TIME_SCALE_ONE
    mem.pool[P_COST_NS] += 1000
    settle(mem)
    assert mem.pool[P_NOW_NS] == 2000
    settle(mem)
    assert mem.pool[P_NOW_NS] == 2000


@pytest.mark.parametrize("nr_cpus", [1, 2])
def test_busy_cpu_leaves_khugepaged_a_slice_and_then_its_weight(nr_cpus):
    mem, _ = machine(nr_cpus=nr_cpus)
    mem.pool[P_DAEMON_SCALE] = 10 * TIME_SCALE_ONE
    work = 10 * COLLAPSE_NS
    set_busy(mem, True)
    run_daemons(mem, 0)
    expected = work
    if nr_cpus == 1:  # the first slice is its own: it had slept
        expected = (work - 0) * (WEIGHT + 15) // 15
    assert mem.daemon[DAEMON_KHUGEPAGED, D_WAKE] - 1 == expected


def test_fresh_from_sleep_a_daemon_gets_a_slice_at_once():
    mem, _ = machine(scan_sleep_millisecs=1, pages_to_scan=512)
    set_busy(mem, True)
    run_daemons(mem, 0)
    first = int(mem.daemon[DAEMON_KHUGEPAGED, D_WAKE]) - 1
    run_daemons(mem, first)
    second = int(mem.daemon[DAEMON_KHUGEPAGED, D_WAKE]) - 1 - first
    assert first == COLLAPSE_NS * (WEIGHT + 15) // 15 + NS_PER_MS
    assert COLLAPSE_NS < SLICE_NS
    assert second == COLLAPSE_NS + NS_PER_MS


def test_work_goes_on_at_full_speed_when_the_cpu_falls_idle():
    mem, _ = machine()
    set_busy(mem, True)
    run_daemons(mem, 0)
    slow = int(mem.daemon[DAEMON_KHUGEPAGED, D_WAKE]) - 1
    run_daemons(mem, slow // 2)
    set_busy(mem, False)
    left = int(mem.daemon[DAEMON_KHUGEPAGED, D_WORK])
    assert left == pytest.approx(COLLAPSE_NS / 2, rel=1e-3)
    assert mem.daemon[DAEMON_KHUGEPAGED, D_WAKE] - 1 - slow // 2 == pytest.approx(left, abs=100)
    set_busy(mem, True)
    assert mem.daemon[DAEMON_KHUGEPAGED, D_WAKE] - 1 == pytest.approx(slow, abs=1000)


def test_idle_machine_costs_nothing():
    mem, _ = machine(0)
    before = np.array(mem.vmstat)
    wait(mem, 10**6 * NS_PER_S)
    assert (mem.vmstat == before).all()
    assert len(before) == NR_VMSTAT
    assert mem.pool[P_DAEMON_NS] == 0


def test_worker_runs_at_whole_seconds():
    mem, _ = machine(0)
    mem.pool[P_NOW_NS] = NS_PER_S // 2
    start_vmstat_worker(mem)
    assert mem.daemon[DAEMON_VMSTAT, D_WAKE] - 1 == NS_PER_S
    wait(mem, NS_PER_S)
    assert mem.daemon[DAEMON_VMSTAT, D_WAKE] - 1 == 2 * NS_PER_S


def test_daemon_that_never_sleeps_lets_time_pass():
    mem, _ = machine(0, scan_sleep_millisecs=0)
    khugepaged_enter(mem, mm_alloc(mem, WINDOW, 0, ADVICE_NONE, False, 1))
    wait(mem, NS_PER_MS)
    assert mem.pool[P_NOW_NS] == NS_PER_MS


@pytest.mark.parametrize("step", [1, 3, 512, 700])
def test_access_in_turns_touches_what_one_access_touches(step):
    mem, _ = machine(0)
    other, _ = machine(0)
    for m in (mem, other):
        m.mm_a = int(mm_alloc(m, 6000, 0, ADVICE_NONE, False, 1))
    assert access_range(mem, mem.mm_a, 10, 5900, step, 0.7, 3, True, 10) == FAULT_OK
    assert touch_range(other, other.mm_a, 10, 5900, step, 0.7, 3, True, 10) == FAULT_OK
    assert mem.vmstat[: KHUGEPAGED_WINDOWS - 3].tolist() == (
        other.vmstat[: KHUGEPAGED_WINDOWS - 3].tolist()
    )
