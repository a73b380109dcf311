"""EPT violations: the level of a leaf, what zaps it, and that none is ever stale."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hostsim.core.errors import InvariantError
from hostsim.ept import (
    EPT_ROOT_PAGES,
    guest_access,
    guest_fetch,
    recover_nx_huge_pages,
    start_dirty_log,
    stop_dirty_log,
)
from hostsim.mm.check import check_memory
from hostsim.mm.compaction import compact_node
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.ksm import ksm_do_scan, madvise_mergeable, unmerge_all
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MM_BASE,
    MM_EPT,
    MM_EPT_2M,
    MM_EPT_4K,
    MM_EPT_FLAGS,
    MM_EPT_TABLES,
    MM_EPT_VIOLATIONS,
    MM_NX_SPLITS,
    P_RESUME,
)
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.mmu_notifier import (
    EPT_MISALIGNED,
    EPT_PC_SLOTS,
    clear_flush_young,
)
from hostsim.mm.mprotect import mprotect
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.split import split_huge_page
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vmstat import EPT_VIOLATIONS, NR_EPT, THP_SPLIT_PMD
from hostsim.mm.zap import discard_range, exit_mm

WINDOW = 512


def machine(kernel="6.12", enabled="always", pages=16384):
    mem = new_memory(pages, kernel, 1)
    set_tunable(mem.tunables, "enabled", enabled)
    set_tunable(mem.tunables, "use_zero_page", "0")
    return mem


def vm(mem, pages, flags=0):
    mm = mm_alloc(mem, pages, 0, 0, True, 1)
    mem.mm[mm, MM_EPT_FLAGS] = flags
    return mm


def access(mem, mm, start, nr, write=True):
    assert guest_access(mem, mm, start, nr, write) == FAULT_OK
    check_memory(mem)


def leaves(mem, mm):
    """Leaves of 2 MiB and of 4 KiB, tables, violations."""
    columns = (MM_EPT_2M, MM_EPT_4K, MM_EPT_TABLES, MM_EPT_VIOLATIONS)
    return tuple(int(mem.mm[mm, column]) for column in columns)


def test_a_violation_maps_at_the_hosts_level():
    mem = machine()
    mm = vm(mem, 3 * WINDOW)
    access(mem, mm, 7, 1)
    assert leaves(mem, mm) == (1, 0, 0, 1)
    assert mem.mm[mm, MM_EPT] == EPT_ROOT_PAGES + 1
    set_tunable(mem.tunables, "enabled", "never")
    access(mem, mm, WINDOW, 10)
    assert leaves(mem, mm) == (1, 10, 1, 11)
    access(mem, mm, WINDOW, 10)  # all there
    assert leaves(mem, mm) == (1, 10, 1, 11)


def test_no_table_page_before_the_first_violation():
    mem = machine()
    mm = vm(mem, 3 * WINDOW)
    assert touch_range(mem, mm, 0, WINDOW, 1, 1.0, 0, True, 0) == FAULT_OK
    assert mem.mm[mm, MM_EPT] == mem.vmstat[NR_EPT] == 0


@pytest.mark.parametrize(
    ("flags", "setting", "large"),
    [
        (0, None, 2),
        (EPT_PC_SLOTS, None, 1),
        (EPT_MISALIGNED, None, 0),
        (0, ("kvm/largepages", "0"), 0),
    ],
)
def test_what_keeps_large_leaves_away(flags, setting, large):
    mem = machine()
    if setting:
        set_tunable(mem.tunables, *setting)
    mm = vm(mem, 2 * WINDOW, flags)
    access(mem, mm, 0, 2 * WINDOW)
    assert leaves(mem, mm)[:2] == (large, (2 - large) * WINDOW)


def test_a_change_of_a_small_part_zaps_the_whole_large_leaf():
    mem = machine()
    mm = vm(mem, 2 * WINDOW)
    access(mem, mm, 0, 2 * WINDOW)
    discard_range(mem, mm, 100, 1)
    check_memory(mem)
    assert leaves(mem, mm)[:2] == (1, 0)
    access(mem, mm, 0, 50)  # the host's PMD is split: small leaves from now on
    assert leaves(mem, mm)[:2] == (1, 50)
    discard_range(mem, mm, 10, 20)
    check_memory(mem)
    assert leaves(mem, mm)[:2] == (1, 30)


@pytest.mark.parametrize("whole", [True, False])
def test_mprotect_zaps(whole):
    mem = machine()
    mm = vm(mem, 2 * WINDOW)
    access(mem, mm, 0, 2 * WINDOW)
    mprotect(mem, mm, 0, WINDOW if whole else 10, True)
    check_memory(mem)
    assert leaves(mem, mm)[:2] == (1, 0)
    access(mem, mm, 0, 2 * WINDOW, write=False)
    assert leaves(mem, mm)[:2] == ((2, 0) if whole else (1, WINDOW))


def test_a_large_leaf_takes_the_place_of_a_table_and_frees_its_page():
    """After a collapse, here played by discarding a window of small pages."""
    mem = machine(enabled="never")
    mm = vm(mem, WINDOW)
    access(mem, mm, 0, 30)
    assert mem.mm[mm, MM_EPT] == EPT_ROOT_PAGES + 2
    discard_range(mem, mm, 0, WINDOW)
    assert leaves(mem, mm)[1:3] == (0, 1)  # the notifier keeps the table
    set_tunable(mem.tunables, "enabled", "always")
    mem.windows[mem.mm[mm, MM_BASE]] = 0  # as free_pgtables after munmap
    access(mem, mm, 0, 30)
    assert leaves(mem, mm)[:3] == (1, 0, 0)
    assert mem.mm[mm, MM_EPT] == EPT_ROOT_PAGES + 1


def test_dirty_logging_splits_large_leaves_and_its_end_lets_them_come_back():
    mem = machine()
    mm = vm(mem, 3 * WINDOW)
    access(mem, mm, 0, 2 * WINDOW)
    start_dirty_log(mem, mm)
    check_memory(mem)
    assert leaves(mem, mm)[:3] == (0, 2 * WINDOW, 2)
    assert mem.vmstat[THP_SPLIT_PMD] == 0  # the host keeps its huge pages
    access(mem, mm, 2 * WINDOW, 5)
    assert leaves(mem, mm)[:2] == (0, 2 * WINDOW + 5)
    stop_dirty_log(mem, mm)
    check_memory(mem)
    assert leaves(mem, mm)[:3] == (0, 0, 0)
    access(mem, mm, 0, 3 * WINDOW)
    assert leaves(mem, mm)[:3] == (3, 0, 0)


def test_without_eager_splitting_leaves_are_split_when_they_are_used():
    mem = machine()
    set_tunable(mem.tunables, "kvm/eager_page_split", "0")
    mm = vm(mem, WINDOW)
    access(mem, mm, 0, WINDOW)
    start_dirty_log(mem, mm)
    assert leaves(mem, mm)[:2] == (0, 0)
    access(mem, mm, 3, 2)
    assert leaves(mem, mm)[:2] == (0, 2)


@pytest.mark.parametrize(("ratio", "recovered"), [(60, 1), (2, 2), (1, 3), (0, 0)])
def test_instruction_fetches_split_and_the_recovery_thread_undoes_a_share(ratio, recovered):
    """arch/x86/kvm/mmu/mmu.c: ceil(splits / ratio), the oldest first."""
    mem = machine()
    set_tunable(mem.tunables, "kvm/nx_huge_pages", "1")
    set_tunable(mem.tunables, "kvm/nx_huge_pages_recovery_ratio", str(ratio))
    mm = vm(mem, 4 * WINDOW)
    access(mem, mm, 0, 4 * WINDOW)
    for window in (2, 0, 3):
        assert guest_fetch(mem, mm, window * WINDOW + 9) == FAULT_OK
    assert mem.mm[mm, MM_NX_SPLITS] == 3
    assert leaves(mem, mm)[:2] == (1, 3 * WINDOW)
    discard_range(mem, mm, 2 * WINDOW, WINDOW)
    access(mem, mm, 2 * WINDOW, 4)
    assert leaves(mem, mm)[:2] == (1, 2 * WINDOW + 4)  # its table stays small
    assert recover_nx_huge_pages(mem, mm) == recovered
    check_memory(mem)
    assert mem.mm[mm, MM_NX_SPLITS] == 3 - recovered
    access(mem, mm, 2 * WINDOW, 4)
    assert leaves(mem, mm)[0] == (2 if recovered else 1)


def test_without_the_mitigation_a_fetch_splits_nothing():
    mem = machine()
    mm = vm(mem, WINDOW)
    assert guest_fetch(mem, mm, 3) == FAULT_OK
    assert leaves(mem, mm)[0] == 1


@pytest.mark.parametrize(("eptad", "young", "left"), [("1", False, 1), ("0", True, 0)])
def test_ageing_without_accessed_bits_zaps_and_counts_as_young(eptad, young, left):
    mem = machine()
    set_tunable(mem.tunables, "kvm/eptad", eptad)
    mm = vm(mem, WINDOW)
    access(mem, mm, 0, 1)
    assert clear_flush_young(mem, mm, 0, 0, WINDOW) is young
    assert leaves(mem, mm)[0] == left
    assert clear_flush_young(mem, mm, 0, 0, WINDOW) is False


def test_no_memory_for_a_table_is_an_oom_that_can_be_resumed():
    mem = machine(enabled="never", pages=4096)
    mm = vm(mem, 8 * WINDOW)
    status, at = FAULT_OK, 0
    while status == FAULT_OK and at < 8 * WINDOW:
        status = guest_access(mem, mm, at, 16, True)
        at += 16
    assert status != FAULT_OK
    assert at - 16 <= mem.pool[P_RESUME] < at
    check_memory(mem)


@pytest.mark.parametrize(
    ("corrupt", "complaint"),
    [
        (lambda mem, at: mem.ept.__setitem__(at, mem.ept[at] ^ 8), "without its host PMD"),
        (lambda mem, at: mem.ept_table["frames"].__setitem__(0, 1), "frames of the EPT leaves"),
        (lambda mem, at: mem.ept_table["nr"].__setitem__(0, 1), "leaves of EPT table"),
        (lambda mem, at: mem.ext["pfn"].__setitem__(slice(None), 5), "."),
        (lambda mem, at: mem.windows.__setitem__(at, 0), "."),
    ],
)
def test_stale_entries_are_noticed(corrupt, complaint):
    mem = machine()
    mm = vm(mem, 2 * WINDOW, EPT_PC_SLOTS)
    access(mem, mm, 0, 2 * WINDOW)
    discard_range(mem, mm, 1, 1)
    access(mem, mm, 2, 3)
    corrupt(mem, int(mem.mm[mm, MM_BASE]) + (1 if complaint == "without its host PMD" else 0))
    with pytest.raises(InvariantError, match=complaint):
        check_memory(mem)


class EptMachine(RuleBasedStateMachine):
    @initialize(
        kernel=st.sampled_from(["6.1", "6.12"]),
        zero=st.sampled_from(["0", "1"]),
        nx=st.sampled_from(["0", "1"]),
    )
    def boot(self, kernel, zero, nx):
        self.mem = machine(kernel)
        set_tunable(self.mem.tunables, "use_zero_page", zero)
        set_tunable(self.mem.tunables, "kvm/nx_huge_pages", nx)
        self.vms = {}
        self.start(2000, 0)

    @precondition(lambda self: len(self.vms) < 4)
    @rule(pages=st.integers(1, 3000), flags=st.sampled_from([0, 0, 1, 2]))
    def start(self, pages, flags):
        self.vms[vm(self.mem, pages, flags)] = pages

    def span(self, n, at, nr):
        mm = sorted(self.vms)[n % len(self.vms)]
        start = int(at * self.vms[mm])
        return mm, start, min(nr, self.vms[mm] - start)

    @precondition(lambda self: self.vms)
    @rule(
        n=st.integers(0, 3),
        at=st.floats(0, 1, exclude_max=True),
        nr=st.integers(1, 1500),
        write=st.booleans(),
    )
    def access(self, n, at, nr, write):
        mm, start, nr = self.span(n, at, nr)
        guest_access(self.mem, mm, start, nr, write)

    @precondition(lambda self: self.vms)
    @rule(n=st.integers(0, 3), at=st.floats(0, 1, exclude_max=True))
    def fetch(self, n, at):
        mm, start, _ = self.span(n, at, 1)
        guest_fetch(self.mem, mm, start)

    @precondition(lambda self: self.vms)
    @rule(
        n=st.integers(0, 3),
        at=st.floats(0, 1, exclude_max=True),
        nr=st.integers(1, 1500),
        what=st.sampled_from(["discard", "protect", "merge", "split", "log", "end log", "recover"]),
    )
    def change(self, n, at, nr, what):
        mm, start, nr = self.span(n, at, nr)
        mem = self.mem
        if what == "discard":
            discard_range(mem, mm, start, nr)
        elif what == "protect":
            mprotect(mem, mm, start, nr, True)
        elif what == "merge":
            madvise_mergeable(mem, mm, start, nr)
            for _ in range(6):
                ksm_do_scan(mem, 4000)
        elif what == "split":
            word = int(mem.windows[mem.mm[mm, MM_BASE] + start // WINDOW])
            if word & 3 == 1:
                split_huge_page(mem, word >> 2)
        elif what == "log":
            start_dirty_log(mem, mm)
        elif what == "end log":
            stop_dirty_log(mem, mm)
        else:
            recover_nx_huge_pages(mem, mm)

    @rule()
    def unmerge(self):
        unmerge_all(self.mem)

    @rule()
    def compact(self):
        compact_node(self.mem)

    @precondition(lambda self: 0 < len(self.vms) < 4)
    @rule(n=st.integers(0, 3))
    def fork(self, n):
        mm, _, _ = self.span(n, 0, 1)
        child = vm(self.mem, self.vms[mm])
        if copy_mm(self.mem, mm, child):
            self.vms[child] = self.vms[mm]
        else:
            exit_mm(self.mem, child)

    @precondition(lambda self: self.vms)
    @rule(n=st.integers(0, 3))
    def exit(self, n):
        mm, _, _ = self.span(n, 0, 1)
        exit_mm(self.mem, mm)
        del self.vms[mm]

    @invariant()
    def consistent(self):
        check_memory(self.mem)

    @invariant()
    def violations_add_up(self):
        mms = sorted(self.vms)
        counted = int(self.mem.mm[mms, MM_EPT_VIOLATIONS].sum()) if mms else 0
        assert counted <= self.mem.vmstat[EPT_VIOLATIONS]

    def teardown(self):
        if hasattr(self, "mem"):
            for mm in sorted(self.vms):
                exit_mm(self.mem, mm)
            for zone in range(len(self.mem.zone)):
                drain_zone_pages(self.mem, zone)
            check_memory(self.mem)
            assert self.mem.vmstat[NR_EPT] == 0
            assert not np.any(self.mem.ept)
            assert not np.any(self.mem.ept_child)


TestEpt = EptMachine.TestCase
TestEpt.settings = settings(max_examples=15, stateful_step_count=25)
