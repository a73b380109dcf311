"""khugepaged: who is registered, where the cursor goes, what a pass may do and when it sleeps."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reference.khugepaged import Khugepaged

from hostsim.core.units import NS_PER_MS, NS_PER_S
from hostsim.mm.check import check_memory
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.khugepaged import UNTIL_WOKEN, khugepaged_step
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_slot import (
    K_IN_PASS,
    K_REGISTERED,
    K_SLOT,
    K_STOPPED,
    K_WINDOW,
    khugepaged_enter,
)
from hostsim.mm.mm_types import (
    D_WAKE,
    DAEMON_KHUGEPAGED,
    MM_ANON,
    MM_HUGE,
    MM_KHUGEPAGED,
    P_NOW_NS,
    Z_FREE,
)
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NOHUGE, ADVICE_NONE, mm_alloc
from hostsim.mm.page_alloc import free_compound
from hostsim.mm.settings import write_setting
from hostsim.mm.slowpath import alloc_huge
from hostsim.mm.vmstat import (
    FULL_SCANS,
    KHUGEPAGED_WINDOWS,
    PAGES_COLLAPSED,
    THP_COLLAPSE_ALLOC,
    THP_COLLAPSE_ALLOC_FAILED,
)
from hostsim.mm.zap import discard_range, exit_mm

WINDOW = 512


def machine(pages=16384, kernel="6.12", **files):
    mem = new_memory(pages, kernel, 1)
    for name, value in files.items():
        write_setting(mem, name if name in ("enabled", "defrag") else f"khugepaged/{name}", value)
    return mem


def touch(mem, mm, start, nr):
    assert touch_range(mem, mm, start, nr, 1, 1.0, 0, True, start) == FAULT_OK


def small_guest(mem, windows, advice=ADVICE_NONE):
    """Return a registered process whose windows each hold one small page."""
    mm = int(mm_alloc(mem, windows * WINDOW, 0, advice, False, 0))
    enabled = "always"
    write_setting(mem, "enabled", "never")
    for window in range(windows):
        touch(mem, mm, window * WINDOW, 1)
    write_setting(mem, "enabled", enabled)
    khugepaged_enter(mem, mm)
    return mm


def one_pass(mem):
    """Run steps to the end of a pass; return what they answered."""
    answers = [int(khugepaged_step(mem))]
    while own(mem, K_IN_PASS):
        answers.append(int(khugepaged_step(mem)))
    return answers


def own(mem, column):
    return int(mem.daemon[DAEMON_KHUGEPAGED, column])


def test_first_eligible_fault_registers():
    mem = machine(enabled="always")
    mm = mm_alloc(mem, 2 * WINDOW, 0, ADVICE_NONE, False, 0)
    assert mem.mm[mm, MM_KHUGEPAGED] == 0
    touch(mem, mm, 0, 1)
    assert mem.mm[mm, MM_KHUGEPAGED] == 1
    check_memory(mem)


def test_eligible_fault_registers_even_if_its_allocation_fails():
    mem = machine(enabled="always", defrag="never")
    while alloc_huge(mem, -1, 0, 0) != -1:
        pass
    mm = mm_alloc(mem, 2 * WINDOW, 0, ADVICE_NONE, False, 0)
    touch_range(mem, mm, 0, 1, 1, 1.0, 0, True, 0)
    assert mem.mm[mm, MM_KHUGEPAGED] == 1


@pytest.mark.parametrize(
    ("enabled", "advice", "pages", "registered"),
    [
        ("always", ADVICE_NONE, WINDOW, True),
        ("always", ADVICE_NONE, WINDOW - 1, False),
        ("always", ADVICE_NOHUGE, WINDOW, False),
        ("madvise", ADVICE_NONE, WINDOW, False),
        ("madvise", ADVICE_HUGE, WINDOW, True),
        ("never", ADVICE_HUGE, WINDOW, False),
    ],
)
def test_registration_needs_permission_and_a_whole_window(enabled, advice, pages, registered):
    mem = machine(enabled=enabled)
    mm = mm_alloc(mem, pages, 0, advice, False, 0)
    khugepaged_enter(mem, mm)
    assert bool(mem.mm[mm, MM_KHUGEPAGED]) is registered


def test_switching_enabled_on_registers_nobody():
    mem = machine(enabled="never")
    mm = mm_alloc(mem, 2 * WINDOW, 0, ADVICE_NONE, False, 0)
    touch(mem, mm, 0, 2 * WINDOW)
    write_setting(mem, "enabled", "always")
    touch(mem, mm, 0, 2 * WINDOW)  # the windows have their tables: no eligible fault
    assert mem.mm[mm, MM_KHUGEPAGED] == 0
    assert own(mem, D_WAKE) == 1  # the new thread runs once and sleeps until woken
    assert one_pass(mem) == [UNTIL_WOKEN]


def test_child_of_a_registered_process_stands_behind_it():
    mem = machine(enabled="always")
    parent = small_guest(mem, 1)
    child = mm_alloc(mem, WINDOW, 0, ADVICE_NONE, False, 1)
    assert copy_mm(mem, parent, child)
    assert mem.mm[child, MM_KHUGEPAGED] > mem.mm[parent, MM_KHUGEPAGED] > 0
    check_memory(mem)


def test_exit_takes_a_process_off_the_list():
    mem = machine(enabled="always")
    mm = small_guest(mem, 1)
    exit_mm(mem, mm)
    assert own(mem, K_REGISTERED) == 0
    assert one_pass(mem) == [UNTIL_WOKEN]
    check_memory(mem)


def test_first_registration_wakes_a_sleeping_thread_and_the_second_does_not():
    mem = machine(enabled="always")
    assert own(mem, D_WAKE) == 0
    mem.pool[P_NOW_NS] = 5
    a = mm_alloc(mem, WINDOW, 0, ADVICE_NONE, False, 0)
    khugepaged_enter(mem, a)
    assert own(mem, D_WAKE) == 6
    mem.daemon[DAEMON_KHUGEPAGED, D_WAKE] = 0
    khugepaged_enter(mem, mm_alloc(mem, WINDOW, 0, ADVICE_NONE, False, 1))
    assert own(mem, D_WAKE) == 0


def test_never_stops_the_thread_and_always_starts_one_at_the_lists_head():
    mem = machine(enabled="always", pages_to_scan="512")
    small_guest(mem, 3)
    one_pass(mem)
    assert own(mem, K_SLOT) > 0
    assert own(mem, K_WINDOW) == 1
    write_setting(mem, "enabled", "never")
    assert own(mem, K_STOPPED) == 1
    assert own(mem, K_SLOT) == own(mem, K_WINDOW) == own(mem, D_WAKE) == 0
    assert khugepaged_step(mem) == UNTIL_WOKEN
    check_memory(mem)
    write_setting(mem, "enabled", "madvise")
    assert own(mem, K_STOPPED) == 0
    assert own(mem, D_WAKE) == 1


@pytest.mark.parametrize(
    ("pages_to_scan", "windows"),
    [(1, 1), (511, 1), (512, 1), (513, 1), (514, 2), (1025, 2), (1026, 3), (4096, 8)],
)
def test_budget_counts_512_a_window_and_1_a_visit(pages_to_scan, windows):
    mem = machine(enabled="always", pages_to_scan=str(pages_to_scan), max_ptes_none="0")
    small_guest(mem, 12)
    one_pass(mem)
    assert mem.vmstat[KHUGEPAGED_WINDOWS] == windows
    assert windows <= -(-pages_to_scan // 512)


def test_every_window_counts_whatever_it_is():
    mem = machine(enabled="always", pages_to_scan="4096")
    mm = mm_alloc(mem, 8 * WINDOW, 0, ADVICE_NONE, False, 0)
    touch(mem, mm, 0, 1)  # one huge, seven empty
    one_pass(mem)
    assert mem.vmstat[KHUGEPAGED_WINDOWS] == 8
    assert mem.vmstat[THP_COLLAPSE_ALLOC] == 0


def test_every_default_pass_collapses_eight_windows_and_takes_ten_seconds():
    mem = machine(enabled="always")
    mm = small_guest(mem, 20)
    assert one_pass(mem) == [0] * 7 + [10 * NS_PER_S]
    assert mem.mm[mm, MM_HUGE] == 8
    one_pass(mem)
    one_pass(mem)
    assert mem.vmstat[PAGES_COLLAPSED] == mem.vmstat[THP_COLLAPSE_ALLOC] == 20
    assert mem.mm[mm, MM_ANON] == 20 * WINDOW
    check_memory(mem)


def test_pass_meets_the_head_of_the_list_once():
    mem = machine(enabled="always", pages_to_scan="1000000")
    small_guest(mem, 2)
    one_pass(mem)
    assert mem.vmstat[KHUGEPAGED_WINDOWS] == 2
    assert mem.vmstat[FULL_SCANS] == 1


def test_failed_allocation_is_slept_off_once_and_the_second_ends_the_pass():
    mem = machine(enabled="always", defrag="never", alloc_sleep_millisecs="70")
    write_setting(mem, "khugepaged/defrag", "0")
    mm = small_guest(mem, 6)
    while alloc_huge(mem, -1, 0, 0) != -1:
        pass
    free = int(mem.zone[:, Z_FREE].sum())
    assert one_pass(mem) == [70 * NS_PER_MS, 10 * NS_PER_S]
    assert mem.vmstat[THP_COLLAPSE_ALLOC_FAILED] == 2
    assert mem.vmstat[KHUGEPAGED_WINDOWS] == 2
    assert mem.zone[:, Z_FREE].sum() == free
    assert mem.mm[mm, MM_ANON] == 6


def test_writing_a_sleep_time_ends_the_sleep():
    mem = machine(enabled="always")
    small_guest(mem, 1)
    mem.daemon[DAEMON_KHUGEPAGED, D_WAKE] = 10**12
    write_setting(mem, "khugepaged/pages_to_scan", "8")
    assert own(mem, D_WAKE) == 10**12
    write_setting(mem, "khugepaged/scan_sleep_millisecs", "1000")
    assert own(mem, D_WAKE) == 1


def test_unsuitable_process_is_passed_by():
    mem = machine(enabled="madvise")
    plain = small_guest(mem, 2)
    write_setting(mem, "enabled", "madvise")
    one_pass(mem)
    assert mem.mm[plain, MM_KHUGEPAGED] > 0
    assert mem.vmstat[KHUGEPAGED_WINDOWS] == 0
    assert mem.vmstat[FULL_SCANS] == 1


class Passes(RuleBasedStateMachine):
    """Passes over processes that come and go, against the plain list."""

    @initialize(pages=st.sampled_from([512, 1026, 2000, 4096, 10**6]))
    def start(self, pages):
        self.mem = machine(32768, enabled="always", pages_to_scan=str(pages))
        self.pages = pages
        self.model = Khugepaged()
        self.mms = []

    @rule(windows=st.lists(st.booleans(), max_size=6))
    def new_guest(self, windows):
        mem = self.mem
        mm = int(mm_alloc(mem, max(len(windows), 1) * WINDOW, 0, ADVICE_NONE, False, 0))
        write_setting(mem, "enabled", "never")
        self.model.cursor, self.model.window = None, 0
        for name in [n for n, w in self.model.mms.items() if w is None]:
            del self.model.mms[name]
        for window, has_page in enumerate(windows):
            if has_page:
                touch(mem, mm, window * WINDOW, 1)
        write_setting(mem, "enabled", "always")
        khugepaged_enter(mem, mm)
        name = int(mem.mm[mm, MM_KHUGEPAGED])
        found = ["huge" if has_page else "skip" for has_page in windows]
        self.model.mms[name] = found if any(windows) else []
        self.mms.append((mm, name))

    @precondition(lambda self: self.mms)
    @rule(data=st.data())
    def exit_guest(self, data):
        mm, name = self.mms.pop(data.draw(st.integers(0, len(self.mms) - 1)))
        exit_mm(self.mem, mm)
        self.model.exit(name)

    @rule(nr=st.integers(1, 4))
    def passes(self, nr):
        for _ in range(nr):
            before = int(self.mem.vmstat[KHUGEPAGED_WINDOWS])
            one_pass(self.mem)
            windows = int(self.mem.vmstat[KHUGEPAGED_WINDOWS]) - before
            assert windows == self.model.do_scan(self.pages)
            assert windows <= -(-self.pages // 512)  # kernel.md, invariant 24

    @invariant()
    def agrees(self):
        if not hasattr(self, "mem"):
            return
        assert self.mem.vmstat[FULL_SCANS] == self.model.full_scans
        assert own(self.mem, K_WINDOW) == self.model.window
        check_memory(self.mem)


TestPasses = Passes.TestCase
TestPasses.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


def test_discarded_guest_has_nothing_to_look_at():
    mem = machine(enabled="always")
    mm = small_guest(mem, 2)
    discard_range(mem, mm, 0, 2 * WINDOW)
    one_pass(mem)
    assert mem.vmstat[KHUGEPAGED_WINDOWS] == 0


def test_freed_huge_page_ends_the_shortage():
    mem = machine(enabled="always", defrag="never")
    mm = small_guest(mem, 1)
    taken = []
    while (pb := int(alloc_huge(mem, -1, 0, 0))) != -1:
        taken.append(pb)
    one_pass(mem)
    assert mem.mm[mm, MM_HUGE] == 0
    free_compound(mem, taken.pop())
    one_pass(mem)
    assert mem.mm[mm, MM_HUGE] == 1
