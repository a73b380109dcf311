"""Merging equal pages: the two-visit rule, sharing limits, splits, copies on write, unmerging."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pagemap import page_frames

from hostsim.core.errors import InvariantError
from hostsim.core.units import NO_PFN
from hostsim.mm.check import check_memory
from hostsim.mm.content import KEY_ONE, KEY_ZERO, alike_word
from hostsim.mm.daemons import run_daemons
from hostsim.mm.fault import FAULT_OK, chosen, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.ksm import ksm_do_scan, madvise_mergeable, unmerge_all
from hostsim.mm.ksm_merge import NO_KEY, page_key
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MM_ALIKE,
    MM_ANON,
    MM_CONTENT,
    MM_HUGE,
    MM_IMAGE,
    P_COST_NS,
    P_KSM_FULL_SCANS,
    P_KSM_SHARED,
    P_KSM_SHARING,
    P_KSM_SKIPPED,
    P_KSM_UNSHARED,
    P_KSM_ZERO,
)
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.pins import add_pin
from hostsim.mm.settings import write_setting
from hostsim.mm.state import used_parts
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vmstat import (
    COW_KSM,
    NR_ANON_PAGES,
    NR_KSM_PAGES,
    PGFAULT,
    THP_SPLIT_PAGE,
    THP_SPLIT_PAGE_FAILED,
)
from hostsim.mm.zap import discard_range, exit_mm


def machine(kernel="6.1", enabled="always", **settings_of):
    mem = new_memory(16384, kernel, 1)
    set_tunable(mem.tunables, "enabled", enabled)
    for name, value in settings_of.items():
        set_tunable(mem.tunables, f"ksm/{name}", str(value))
    return mem


def guest(mem, pages, content=0, merge=True):
    mm = mm_alloc(mem, pages, 0, 0, False, 1)
    mem.mm[mm, MM_CONTENT] = content
    touch(mem, mm, 0, pages)
    if merge:
        assert madvise_mergeable(mem, mm, 0, pages)
    return mm


def touch(mem, mm, start, nr, fraction=1.0, write=True):
    assert touch_range(mem, mm, start, nr, 1, fraction, 3, write, start) == FAULT_OK


def full_scans(mem, nr):
    for _ in range(nr):
        while ksm_do_scan(mem, 100000) == 100000:
            pass
        check_memory(mem)


def frames_of(mem, mm):
    frames = page_frames(mem, mm)
    return frames[frames != NO_PFN]


def sysfs(mem):
    return tuple(int(mem.pool[p]) for p in (P_KSM_SHARED, P_KSM_SHARING, P_KSM_UNSHARED))


def test_a_page_merges_at_the_second_visit_with_the_same_content():
    mem = machine(enabled="never")
    mm = guest(mem, 40)
    full_scans(mem, 1)
    assert sysfs(mem) == (0, 0, 0)
    full_scans(mem, 1)
    assert sysfs(mem) == (1, 39, 0)
    assert np.unique(frames_of(mem, mm)).size == 1
    assert mem.mm[mm, MM_ANON] == 40  # smaps still counts them
    assert mem.vmstat[NR_ANON_PAGES] == mem.vmstat[NR_KSM_PAGES] == 1


def test_a_newcomer_joins_a_merged_page_at_its_first_visit():
    mem = machine(enabled="never")
    guest(mem, 10)
    full_scans(mem, 2)
    guest(mem, 5)
    full_scans(mem, 1)
    assert sysfs(mem) == (1, 14, 0)


def test_different_pages_stay_in_the_unstable_tree():
    mem = machine(enabled="never")
    guest(mem, 30, content=7)
    full_scans(mem, 3)
    assert sysfs(mem) == (0, 0, 30)
    guest(mem, 30, content=7)  # the same image
    full_scans(mem, 2)
    assert sysfs(mem) == (30, 30, 0)


@pytest.mark.parametrize(("pages", "nodes"), [(256, 1), (257, 1), (258, 2), (512, 2), (514, 3)])
def test_a_frame_is_shared_256_times_at_most(pages, nodes):
    """mm/ksm.c: with every copy full, two pages must meet in the unstable tree anew."""
    mem = machine(enabled="never")
    guest(mem, pages)
    full_scans(mem, 3)
    assert mem.vmstat[NR_KSM_PAGES] == nodes
    assert sysfs(mem)[:2] == (nodes, pages - nodes - (pages - nodes * 256 == 1))


def test_of_frames_with_room_the_fullest_is_shared_first():
    """mm/ksm.c stable_node_dup, as it searches when it prunes a chain."""
    mem = machine(enabled="never", max_page_sharing=4)
    mm = guest(mem, 12)
    full_scans(mem, 3)
    frames = page_frames(mem, mm)[:12].reshape(3, 4)
    assert all(np.unique(four).size == 1 for four in frames)
    other = mm_alloc(mem, 4, 0, 0, False, 1)
    discard_range(mem, mm, 0, 2)  # leaves two
    discard_range(mem, mm, 4, 1)  # leaves three, the fullest with room
    discard_range(mem, mm, 8, 3)  # leaves one
    full_scans(mem, 1)  # ksmd notices
    touch(mem, other, 0, 4)
    assert madvise_mergeable(mem, other, 0, 4)
    full_scans(mem, 1)
    assert page_frames(mem, other)[:4].tolist() == [frames[1, 0], *[frames[0, 0]] * 2, frames[2, 0]]


@pytest.mark.parametrize("enabled", ["always", "never"])
@pytest.mark.parametrize(("zero", "kernel"), [(0, "6.1"), (1, "6.1"), (0, "6.12"), (1, "6.12")])
def test_ksmd_does_the_same_whether_it_keeps_its_place_or_looks_for_it(enabled, zero, kernel):
    """The extent at the cursor is forgotten at the end of a scan: here after each page."""
    ends = []
    for nr in (1, 100000):
        mem = machine(kernel, enabled, use_zero_pages=zero, max_page_sharing=5)
        for content in (3, 3, 3, 8):
            mm = guest(mem, 1100, content)
            mem.mm[mm, MM_ALIKE] = alike_word(0.3, 0.2, 0.3)
            mem.mm[mm, MM_IMAGE] = 1
        for scans in range(1, 5):
            while mem.pool[P_KSM_FULL_SCANS] < scans:
                ksm_do_scan(mem, nr)
            touch(mem, mm, 300, 200)
            discard_range(mem, mm, 600, 3)
        check_memory(mem)
        ends.append({name: part.copy() for name, part in used_parts(mem).items()})
    for name, part in ends[0].items():
        if name not in ("scratch", "scan", "compact"):
            np.testing.assert_array_equal(part, ends[1][name], err_msg=name)


@pytest.mark.parametrize(("overcommit", "saved"), [(1, 16384 - 4 * 512), (4, 3 * 7000)])
def test_merging_ends_where_each_frame_could_not_have_an_extent_any_more(overcommit, saved):
    mem = new_memory(16384, "6.1", 1, overcommit=overcommit)
    set_tunable(mem.tunables, "enabled", "never")
    for _ in range(3):
        guest(mem, 7000)
        full_scans(mem, 3)
    sharing = int(mem.pool[P_KSM_SHARING])
    assert saved - sharing in range(saved // 256 + 2)  # the last of a content may stay alone


def test_a_scan_ends_at_the_list_end():
    mem = machine(enabled="never")
    guest(mem, 30)
    assert ksm_do_scan(mem, 20) == 20
    assert ksm_do_scan(mem, 20) == 10
    assert mem.pool[P_KSM_FULL_SCANS] == 1


@pytest.mark.parametrize(("kernel", "deferred"), [("6.1", 1), ("6.12", 0)])
def test_merging_splits_the_huge_page_first_and_two_of_one_page_only_split_it(kernel, deferred):
    mem = machine(kernel)
    mm = guest(mem, 512)
    full_scans(mem, 1)
    assert mem.mm[mm, MM_HUGE] == 1  # looking does not split
    while mem.vmstat[THP_SPLIT_PAGE] == 0:
        ksm_do_scan(mem, 1)
    assert mem.vmstat[THP_SPLIT_PAGE_FAILED] == 1
    assert sysfs(mem)[:2] == (0, 0)
    assert mem.mm[mm, MM_HUGE] == 0
    full_scans(mem, 3)
    assert mem.vmstat[THP_SPLIT_PAGE] == 1
    assert mem.vmstat[NR_KSM_PAGES] == 2
    assert mem.mm[mm, MM_ANON] == 512


def test_pages_never_written_are_zero_and_can_take_the_zero_page():
    mem = machine("6.1", use_zero_pages=1)
    mm = guest(mem, 512, content=5, merge=False)
    discard_range(mem, mm, 0, 512)
    touch(mem, mm, 0, 100)
    assert [page_key(mem, mm, p) == KEY_ZERO for p in (99, 100, 511)] == [False, True, True]
    madvise_mergeable(mem, mm, 0, 512)
    full_scans(mem, 3)
    assert mem.pool[P_KSM_ZERO] == 412
    assert mem.mm[mm, MM_ANON] == 100
    assert page_key(mem, mm, 100) == NO_KEY
    touch(mem, mm, 100, 1)
    assert mem.mm[mm, MM_ANON] == 101


def test_a_split_of_6_12_frees_pages_never_written():
    mem = machine("6.12")
    mm = guest(mem, 512, merge=False)
    discard_range(mem, mm, 0, 512)
    touch(mem, mm, 10, 100)
    madvise_mergeable(mem, mm, 0, 512)
    full_scans(mem, 3)
    assert mem.mm[mm, MM_ANON] == 100


def test_a_write_copies_and_counts_even_for_the_last_mapping():
    mem = machine(enabled="never")
    mm = guest(mem, 2)
    full_scans(mem, 2)
    faults = int(mem.vmstat[PGFAULT])
    touch(mem, mm, 0, 2)
    check_memory(mem)
    assert mem.vmstat[COW_KSM] == 2
    assert mem.vmstat[PGFAULT] == faults + 2
    assert mem.vmstat[NR_KSM_PAGES] == 0
    assert np.unique(frames_of(mem, mm)).size == 2
    full_scans(mem, 2)
    assert mem.vmstat[NR_KSM_PAGES] == 1


def test_unmerging_gives_every_mapping_a_page_of_its_own():
    mem = machine()
    one, two = guest(mem, 1000), guest(mem, 700)
    full_scans(mem, 3)
    faults = int(mem.vmstat[PGFAULT])
    assert unmerge_all(mem)
    check_memory(mem)
    assert mem.vmstat[PGFAULT] == faults + 1700
    assert sysfs(mem) == (0, 0, 0)
    frames = np.concatenate([frames_of(mem, one), frames_of(mem, two)])
    assert np.unique(frames).size == 1700 == mem.vmstat[NR_ANON_PAGES]


def test_pinned_pages_do_not_merge():
    mem = machine(enabled="never")
    mm = guest(mem, 20)
    add_pin(mem, mm, 0, 20)
    full_scans(mem, 3)
    assert mem.vmstat[NR_KSM_PAGES] == 0


def test_a_fork_of_merged_pages_shares_them_beyond_the_limit():
    mem = machine(enabled="never", max_page_sharing=10)
    mm = guest(mem, 10)
    full_scans(mem, 2)
    child = mm_alloc(mem, 10, 0, 0, False, 2)
    assert copy_mm(mem, mm, child)
    full_scans(mem, 1)
    assert sysfs(mem) == (1, 19, 0)
    exit_mm(mem, mm)
    check_memory(mem)
    assert sysfs(mem) == (1, 9, 0)


def test_smart_scan_leaves_out_pages_that_do_not_merge():
    """mm/ksm.c skip_age: after three visits 1 is left out, then 2, 2, 4 and 8."""
    mem = machine("6.12", enabled="never")
    guest(mem, 1, content=9)
    visited = []
    for _ in range(40):
        before = int(mem.pool[P_KSM_SKIPPED])
        full_scans(mem, 1)
        visited.append(int(mem.pool[P_KSM_SKIPPED]) == before)
    # each skipped round ages the page too: ages 3, 5 and 8 grant 1, 2 and 4 rounds
    expected, age, left = [], 0, 0
    for _ in range(40):
        old, age = age, age + 1
        if old < 3:
            expected.append(True)
        elif left == 0:
            left = 1 if old <= 3 else 2 if old <= 5 else 4 if old <= 8 else 8
            expected.append(True)
        else:
            left -= 1
            expected.append(False)
    assert visited == expected


def test_ksmd_scans_and_sleeps_only_while_switched_on():
    mem = machine(enabled="never", pages_to_scan=5, sleep_millisecs=20)
    guest(mem, 10000, content=3)
    cost = int(mem.pool[P_COST_NS])
    run_daemons(mem, 10**9)
    assert mem.pool[P_COST_NS] == cost
    write_setting(mem, "ksm/run", "1")
    run_daemons(mem, 2 * 10**9 - 1)
    # 5 pages of 1412 ns each and 20 ms of sleep a round: 50 rounds begin in a second
    assert (int(mem.pool[P_COST_NS]) - cost) // 1412 == 50 * 5


class KsmMachine(RuleBasedStateMachine):
    @initialize(
        kernel=st.sampled_from(["6.1", "6.12"]),
        enabled=st.sampled_from(["always", "never"]),
        zero=st.sampled_from([0, 1]),
        limit=st.sampled_from([2, 3, 256]),
    )
    def boot(self, kernel, enabled, zero, limit):
        self.mem = machine(kernel, enabled, use_zero_pages=zero, max_page_sharing=limit)
        self.written = {}  # process -> which pages it wrote since they were last absent
        self.start(1100, 0)
        self.start(700, 0)

    @precondition(lambda self: len(self.written) < 4)
    @rule(pages=st.integers(1, 1300), content=st.sampled_from([0, 0, 5]))
    def start(self, pages, content):
        mm = mm_alloc(self.mem, pages, 0, 0, False, 1)
        self.mem.mm[mm, MM_CONTENT] = content
        self.written[mm] = np.zeros(pages, np.bool_)

    def one(self, n):
        return sorted(self.written)[n % len(self.written)]

    def span(self, mm, at, nr):
        start = int(at * self.written[mm].size)
        return start, min(nr, self.written[mm].size - start)

    @precondition(lambda self: self.written)
    @rule(
        n=st.integers(0, 3),
        at=st.floats(0, 1, exclude_max=True),
        nr=st.integers(1, 900),
        fraction=st.sampled_from([1.0, 0.3]),
        write=st.booleans(),
    )
    def touch(self, n, at, nr, fraction, write):
        mm = self.one(n)
        start, nr = self.span(mm, at, nr)
        touch(self.mem, mm, start, nr, fraction, write)
        if write:
            pages = [p for p in range(start, start + nr) if chosen(3, p, fraction)]
            self.written[mm][pages] = True

    @precondition(lambda self: self.written)
    @rule(n=st.integers(0, 3), at=st.floats(0, 1, exclude_max=True), nr=st.integers(1, 900))
    def discard(self, n, at, nr):
        mm = self.one(n)
        start, nr = self.span(mm, at, nr)
        discard_range(self.mem, mm, start, nr)
        self.written[mm][start : start + nr] = False

    @precondition(lambda self: self.written)
    @rule(n=st.integers(0, 3), at=st.floats(0, 1, exclude_max=True), nr=st.integers(1, 1300))
    def merge(self, n, at, nr):
        mm = self.one(n)
        madvise_mergeable(self.mem, mm, *self.span(mm, at, nr))

    @rule(nr=st.integers(1, 3000), times=st.integers(1, 3))
    def scan(self, nr, times):
        for _ in range(times):
            before = int(self.mem.vmstat[NR_ANON_PAGES])
            ksm_do_scan(self.mem, nr)
            assert self.mem.vmstat[NR_ANON_PAGES] <= before

    @rule()
    def unmerge(self):
        assert unmerge_all(self.mem)
        assert self.mem.vmstat[NR_KSM_PAGES] == 0

    @precondition(lambda self: 0 < len(self.written) < 4)
    @rule(n=st.integers(0, 3))
    def fork(self, n):
        mm = self.one(n)
        child = mm_alloc(self.mem, self.written[mm].size, 0, 0, False, 2)
        assert copy_mm(self.mem, mm, child)
        self.written[child] = self.written[mm].copy()

    @precondition(lambda self: self.written)
    @rule(n=st.integers(0, 3))
    def exit(self, n):
        mm = self.one(n)
        exit_mm(self.mem, mm)
        del self.written[mm]

    @invariant()
    def consistent(self):
        check_memory(self.mem)

    @invariant()
    def every_page_holds_what_was_written(self):
        for mm, written in self.written.items():
            for page in range(0, written.size, 17):
                key = page_key(self.mem, mm, page)
                if written[page]:
                    assert key > KEY_ZERO
                    assert (key == KEY_ONE) == (self.mem.mm[mm, MM_CONTENT] == 0)
                else:
                    assert key in (NO_KEY, KEY_ZERO)

    @invariant()
    def only_equal_pages_share_a_frame(self):
        keys = {}
        for mm in self.written:
            for page, frame in list(enumerate(page_frames(self.mem, mm).tolist()))[::5]:
                if frame != NO_PFN:
                    key = page_key(self.mem, mm, page)
                    assert keys.setdefault(frame, key) == key

    def teardown(self):
        if hasattr(self, "mem"):
            for mm in sorted(self.written):
                exit_mm(self.mem, mm)
            check_memory(self.mem)
            assert self.mem.vmstat[NR_ANON_PAGES] == self.mem.vmstat[NR_KSM_PAGES] == 0


TestKsm = KsmMachine.TestCase
TestKsm.settings = settings(max_examples=10, stateful_step_count=25)


@pytest.mark.parametrize(
    ("corrupt", "complaint"),
    [
        (lambda mem: mem.ksm_node["maps"].__setitem__(0, 9), "mappings of merged frames"),
        (lambda mem: mem.ksm_node["nr"].__setitem__(0, 9), "rmap items of stable nodes"),
        (lambda mem: mem.pool.__setitem__(P_KSM_SHARED, 5), "pages_shared"),
        (lambda mem: mem.ksm_frame.__setitem__(3, 1), "frames with a node"),
        (lambda mem: mem.ksm_node["prev"].__setitem__(0, 0), "back links of stable nodes"),
        (lambda mem: mem.ksm_stable.__setitem__(slice(None), 0), "stable nodes with room"),
    ],
)
def test_corruption_is_noticed(corrupt, complaint):
    mem = machine(enabled="never")
    guest(mem, 40)
    full_scans(mem, 2)
    corrupt(mem)
    with pytest.raises(InvariantError, match=complaint):
        check_memory(mem)
