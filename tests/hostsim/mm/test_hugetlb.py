"""hugetlbfs: reservation, ENOMEM, SIGBUS, surplus, demotion; the pool is exact at every step."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hostsim.core.errors import InvariantError
from hostsim.ept import guest_access
from hostsim.mm.check import check_memory
from hostsim.mm.fault import FAULT_OK, FAULT_SIGBUS, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.hugetlb import demote, hugetlb_mmap, reserve_at_boot, set_nr_hugepages
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    H_FREE,
    H_NR,
    H_OVERCOMMIT,
    H_RESV,
    H_SURPLUS,
    HUGETLB_1G,
    HUGETLB_2M,
    MM_ANON,
    MM_EPT_2M,
    MM_HUGETLB_PAGES,
    Z_FREE,
    Z_MANAGED,
)
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.vmstat import HTLB_BUDDY_ALLOC_FAIL, HTLB_BUDDY_ALLOC_SUCCESS, NR_HUGETLB
from hostsim.mm.zap import discard_range, exit_mm

WINDOW = 512
GIB = 512 * WINDOW


def machine(pages=16384):
    return new_memory(pages, "6.12", 1)


def process(mem, pages, size=HUGETLB_2M, reserve=True):
    mm = mm_alloc(mem, pages, 0, 0, True, 1)
    return mm, hugetlb_mmap(mem, mm, size, reserve)


def touch(mem, mm, start, nr):
    return touch_range(mem, mm, start, nr, 1, 1.0, 0, True, start)


def pool(mem, size=HUGETLB_2M):
    """Total, free, reserved, surplus: as meminfo prints them."""
    check_memory(mem)
    return tuple(int(mem.hugetlb[size, f]) for f in (H_NR, H_FREE, H_RESV, H_SURPLUS))


def test_a_mapping_reserves_its_whole_length_and_faults_use_the_reservation_up():
    mem = machine()
    assert set_nr_hugepages(mem, 8) == 8
    mm, ok = process(mem, 3 * WINDOW)
    assert ok
    assert pool(mem) == (8, 8, 3, 0)
    assert touch(mem, mm, 0, 2 * WINDOW) == FAULT_OK
    assert pool(mem) == (8, 6, 1, 0)
    assert mem.mm[mm, MM_ANON] == 0  # not in RSS
    exit_mm(mem, mm)
    assert pool(mem) == (8, 8, 0, 0)


def test_a_mapping_without_room_for_its_reservation_fails():
    mem = machine()
    set_nr_hugepages(mem, 4)
    assert process(mem, 3 * WINDOW)[1]
    assert not process(mem, 2 * WINDOW)[1]
    assert pool(mem) == (4, 4, 3, 0)
    assert process(mem, WINDOW)[1]


@pytest.mark.parametrize(("pages", "ok"), [(WINDOW, True), (WINDOW + 1, False), (100, False)])
def test_only_whole_pages_can_be_mapped(pages, ok):
    mem = machine()
    set_nr_hugepages(mem, 4)
    assert process(mem, pages)[1] is ok


def test_without_reservation_a_fault_may_end_in_sigbus():
    mem = machine()
    set_nr_hugepages(mem, 3)
    owner, _ = process(mem, 2 * WINDOW)
    mm, ok = process(mem, 2 * WINDOW, reserve=False)
    assert ok
    assert touch(mem, mm, 0, 1) == FAULT_OK
    assert touch(mem, mm, WINDOW, 1) == FAULT_SIGBUS  # the other two are promised
    assert touch(mem, owner, 0, 2 * WINDOW) == FAULT_OK
    assert pool(mem) == (3, 0, 0, 0)


def test_surplus_pages_come_from_the_buddy_up_to_the_limit_and_go_back_there():
    mem = machine()
    set_nr_hugepages(mem, 1)
    mem.hugetlb[HUGETLB_2M, H_OVERCOMMIT] = 2
    assert not process(mem, 4 * WINDOW)[1]
    assert pool(mem) == (1, 1, 0, 0)
    mm, ok = process(mem, 3 * WINDOW)
    assert ok
    assert pool(mem) == (3, 3, 3, 2)
    touch(mem, mm, 0, 2 * WINDOW)
    exit_mm(mem, mm)
    assert pool(mem) == (1, 1, 0, 0)


def test_surplus_pages_never_used_go_back_with_the_reservation():
    mem = machine()
    mem.hugetlb[HUGETLB_2M, H_OVERCOMMIT] = 2
    mm, _ = process(mem, 2 * WINDOW)
    assert pool(mem) == (2, 2, 2, 2)
    exit_mm(mem, mm)
    assert pool(mem) == (0, 0, 0, 0)


def test_shrinking_below_what_is_in_use_makes_surplus():
    mem = machine()
    set_nr_hugepages(mem, 6)
    mm, _ = process(mem, 3 * WINDOW)
    touch(mem, mm, 0, 2 * WINDOW)
    assert set_nr_hugepages(mem, 1) == 1
    assert pool(mem) == (3, 1, 1, 2)
    assert set_nr_hugepages(mem, 2) == 2  # surplus becomes persistent again, nothing is allocated
    assert pool(mem) == (3, 1, 1, 1)
    exit_mm(mem, mm)
    assert pool(mem) == (2, 2, 0, 0)


def test_a_pool_grows_only_as_far_as_memory_lets_it():
    mem = machine(4096)
    got = set_nr_hugepages(mem, 100)
    assert 0 < got < 8
    assert mem.vmstat[HTLB_BUDDY_ALLOC_SUCCESS] == got == mem.vmstat[NR_HUGETLB]
    assert mem.vmstat[HTLB_BUDDY_ALLOC_FAIL] == 1
    assert set_nr_hugepages(mem, 0) == 0
    for zone in range(len(mem.zone)):
        drain_zone_pages(mem, zone)
    check_memory(mem)
    assert (mem.zone[:, Z_FREE] == mem.zone[:, Z_MANAGED]).all()


@pytest.mark.parametrize(
    ("start", "nr", "left"),
    [(0, WINDOW, 3), (1, WINDOW, 4), (0, WINDOW - 1, 4), (WINDOW, 2 * WINDOW + 5, 2)],
)
def test_discarding_frees_whole_pages_only(start, nr, left):
    mem = machine()
    set_nr_hugepages(mem, 4)
    mm, _ = process(mem, 4 * WINDOW)
    touch(mem, mm, 0, 4 * WINDOW)
    discard_range(mem, mm, start, nr)
    assert mem.mm[mm, MM_HUGETLB_PAGES] == left
    assert pool(mem) == (4, 4 - left, 0, 0)


def test_a_child_does_not_inherit_the_memory():
    mem = machine()
    set_nr_hugepages(mem, 2)
    mm, _ = process(mem, 2 * WINDOW)
    touch(mem, mm, 0, 2 * WINDOW)
    child = mm_alloc(mem, 2 * WINDOW, 0, 0, False, 1)
    assert copy_mm(mem, mm, child)
    exit_mm(mem, mm)
    assert pool(mem) == (2, 2, 0, 0)


def test_the_guest_gets_large_leaves_and_an_unmap_zaps_them():
    mem = machine()
    set_nr_hugepages(mem, 4)
    mm, _ = process(mem, 4 * WINDOW)
    assert guest_access(mem, mm, 0, 3 * WINDOW, True) == FAULT_OK
    check_memory(mem)
    assert mem.mm[mm, MM_EPT_2M] == 3
    discard_range(mem, mm, 0, WINDOW)
    check_memory(mem)
    assert mem.mm[mm, MM_EPT_2M] == 2


def test_pages_of_a_gib_are_taken_at_boot_and_can_be_demoted():
    mem = machine(6 * GIB)
    assert reserve_at_boot(mem, 3) == 3
    assert pool(mem, HUGETLB_1G) == (3, 3, 0, 0)
    mm, ok = process(mem, 2 * GIB, HUGETLB_1G)
    assert ok
    assert not process(mem, 2 * GIB, HUGETLB_1G)[1]  # no surplus of this size
    assert touch(mem, mm, 5, 1) == FAULT_OK
    assert pool(mem, HUGETLB_1G) == (3, 2, 1, 0)
    assert demote(mem, 5) == 1  # the other one is promised
    assert pool(mem, HUGETLB_1G) == (2, 1, 1, 0)
    assert pool(mem) == (512, 512, 0, 0)
    discard_range(mem, mm, 0, 512)  # less than the page
    assert pool(mem, HUGETLB_1G) == (2, 1, 1, 0)
    exit_mm(mem, mm)
    assert pool(mem, HUGETLB_1G) == (2, 2, 0, 0)
    assert set_nr_hugepages(mem, 0) == 0
    assert pool(mem) == (0, 0, 0, 0)


def test_what_lies_behind_the_last_whole_gib_stays_free():
    mem = machine(6 * GIB + 100 * 1024)
    free = int(mem.zone[:, Z_FREE].sum())
    assert reserve_at_boot(mem, 1) == 1
    check_memory(mem)
    assert int(mem.zone[:, Z_FREE].sum()) == free - GIB
    mm = mm_alloc(mem, 5 * GIB, 0, 0, False, 1)
    assert touch(mem, mm, 0, 4 * GIB) == FAULT_OK
    check_memory(mem)


class HugetlbMachine(RuleBasedStateMachine):
    """Against a model of four numbers and what each process was promised and has."""

    @initialize(overcommit=st.integers(0, 4))
    def boot(self, overcommit):
        self.mem = machine()
        self.mem.hugetlb[HUGETLB_2M, H_OVERCOMMIT] = overcommit
        self.limit = overcommit
        self.persistent = self.surplus = 0
        self.has = {}  # process -> windows mapped
        self.promised = {}

    def in_use(self):
        return sum(len(windows) for windows in self.has.values())

    def free(self):
        return self.persistent + self.surplus - self.in_use()

    @rule(nr=st.integers(0, 10))
    def resize(self, nr):
        assert set_nr_hugepages(self.mem, nr) == nr
        total = self.persistent + self.surplus
        kept = self.in_use() + sum(self.promised.values())
        total = max(total, nr) if self.persistent <= nr else max(nr + self.surplus, kept, nr)
        if self.persistent <= nr:
            self.surplus = max(0, total - nr)
        else:
            total = max(kept, nr + self.surplus)
            self.surplus = total - nr
        self.persistent = nr

    @precondition(lambda self: len(self.has) < 4)
    @rule(windows=st.integers(1, 5), reserve=st.booleans())
    def mmap(self, windows, reserve):
        mm, ok = process(self.mem, windows * WINDOW, reserve=reserve)
        needed = sum(self.promised.values()) + windows - self.free() if reserve else 0
        fits = needed <= 0 or self.surplus + needed <= self.limit
        assert ok is fits
        if not ok:
            exit_mm(self.mem, mm)
            return
        self.surplus += max(needed, 0)
        self.has[mm] = set()
        self.promised[mm] = windows if reserve else 0

    @precondition(lambda self: self.has)
    @rule(n=st.integers(0, 3), window=st.integers(0, 4))
    def touch(self, n, window):
        mm = sorted(self.has)[n % len(self.has)]
        window %= int(self.mem.mm[mm, 3]) // WINDOW
        status = touch(self.mem, mm, window * WINDOW + 3, 1)
        if window in self.has[mm]:
            assert status == FAULT_OK
            return
        if self.promised[mm]:
            self.promised[mm] -= 1
            assert status == FAULT_OK
        elif self.free() > sum(self.promised.values()):
            assert status == FAULT_OK
        elif self.surplus < self.limit:
            assert status == FAULT_OK
            self.surplus += 1
        else:
            assert status == FAULT_SIGBUS
            return
        self.has[mm].add(window)

    @precondition(lambda self: self.has)
    @rule(n=st.integers(0, 3), window=st.integers(0, 4))
    def discard(self, n, window):
        mm = sorted(self.has)[n % len(self.has)]
        discard_range(self.mem, mm, window * WINDOW, WINDOW)
        if window in self.has[mm]:
            self.has[mm].remove(window)
            self.surplus = max(0, self.surplus - 1)

    @precondition(lambda self: self.has)
    @rule(n=st.integers(0, 3))
    def exit(self, n):
        mm = sorted(self.has)[n % len(self.has)]
        exit_mm(self.mem, mm)
        self.surplus = max(0, self.surplus - len(self.has.pop(mm)))
        left = self.promised.pop(mm)
        unused = self.free() - sum(self.promised.values())
        self.surplus -= min(left, self.surplus, unused)

    @invariant()
    def counters_are_exact(self):
        resv = sum(self.promised.values())
        total = self.persistent + self.surplus
        assert pool(self.mem) == (total, self.free(), resv, self.surplus)


TestHugetlb = HugetlbMachine.TestCase
TestHugetlb.settings = settings(max_examples=25)


@pytest.mark.parametrize(
    ("field", "complaint"),
    [(H_FREE, "free_hugepages"), (H_RESV, "resv_hugepages"), (H_NR, "nr_hugepages")],
)
def test_a_wrong_counter_is_noticed(field, complaint):
    mem = machine()
    set_nr_hugepages(mem, 4)
    process(mem, 2 * WINDOW)
    mem.hugetlb[HUGETLB_2M, field] += 1
    with pytest.raises(InvariantError, match=complaint):
        check_memory(mem)
