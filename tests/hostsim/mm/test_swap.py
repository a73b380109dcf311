"""Swap: pages go out and come back, slots are conserved, whole huge pages need whole clusters."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hostsim.mm.check import check_memory
from hostsim.mm.collapse import madvise_collapse
from hostsim.mm.compaction import compact_node
from hostsim.mm.content import KEY_ZERO
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.ksm_merge import page_key
from hostsim.mm.madvise import madvise_pageout
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MM_ADVICE,
    MM_ANON,
    MM_HUGE,
    MM_RAM_PAGES,
    MM_SWAP,
    N_KSWAPD_FAILURES,
    NIL,
    P_SWAP_FREE,
    P_SWAP_SLOTS,
)
from hostsim.mm.mmap import (
    ADVICE_HUGE,
    ADVICE_NOHUGE,
    ADVICE_NONE,
    W_HUGE,
    W_TAG,
    mm_alloc,
    window_word,
)
from hostsim.mm.oom import select_bad_process
from hostsim.mm.pins import add_pin
from hostsim.mm.reclaim import run_kswapd, try_to_free_pages
from hostsim.mm.split import split_huge_page
from hostsim.mm.swap_state import swapin_nr_pages
from hostsim.mm.swapfile import alloc_cluster, alloc_slots, slot_free, swapon
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vmstat import NAMES
from hostsim.mm.zap import discard_range, exit_mm

MIB = 256  # pages


def counter(mem, name):
    return int(mem.vmstat[NAMES.index(name)])


def machine(kernel="6.1", mib=64, slots=8192, enabled="always"):
    mem = new_memory(mib * MIB, kernel, 1)
    set_tunable(mem.tunables, "enabled", enabled)
    assert swapon(mem, slots)
    return mem


def touch(mem, mm, start, nr, write=True, step=1):
    return touch_range(mem, mm, start, nr, step, 1.0, 0, write, start)


def test_a_machine_that_keeps_no_order_of_pages_takes_no_swap():
    mem = new_memory(64 * MIB, "6.12", 1, keep_lru=False)
    assert len(mem.lru) == len(mem.ext_lru) == 0
    assert not swapon(mem, 8192)


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_without_swap_nothing_asks_for_the_order_of_pages(kernel):
    """Faults to the last page, reclaim, khugepaged and compaction: the counters agree."""
    results = []
    for keep_lru in (True, False):
        mem = new_memory(64 * MIB, kernel, 1, keep_lru=keep_lru)
        set_tunable(mem.tunables, "enabled", "always")
        small = mm_alloc(mem, 32 * MIB, 0, ADVICE_NOHUGE, False, 0)
        huge = mm_alloc(mem, 64 * MIB, 0, ADVICE_NONE, False, 0)
        touch(mem, small, 0, 24 * MIB, step=3)
        while touch(mem, huge, 0, 64 * MIB) == FAULT_OK:
            pass
        run_kswapd(mem, 0, 0)
        discard_range(mem, small, 0, 8 * MIB)
        compact_node(mem)
        mem.mm[small, MM_ADVICE] = ADVICE_HUGE
        madvise_collapse(mem, small, 8 * MIB, 8 * MIB)
        check_memory(mem)
        results.append((mem.vmstat.tolist(), mem.zone.tolist(), mem.nr_free.tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_a_whole_huge_page_takes_a_cluster_and_comes_back_as_small_pages(kernel):
    mem = machine(kernel)
    mm = mm_alloc(mem, 2048, 0, 0, False, 0)
    assert touch(mem, mm, 0, 2048) == FAULT_OK
    madvise_pageout(mem, mm, 0, 2048)
    check_memory(mem)
    assert counter(mem, "thp_swpout") == 4
    assert counter(mem, "pswpout") == 4 * 512
    assert counter(mem, "thp_split_pmd") == 4
    assert (mem.mm[mm, MM_ANON], mem.mm[mm, MM_SWAP], mem.mm[mm, MM_HUGE]) == (0, 2048, 0)
    for _ in range(4):  # what is written is freed when reclaim meets it again
        try_to_free_pages(mem, 0, 1)
    check_memory(mem)
    assert counter(mem, "nr_swapcached") == 0
    assert touch(mem, mm, 0, 2048) == FAULT_OK
    check_memory(mem)
    assert (mem.mm[mm, MM_ANON], mem.mm[mm, MM_SWAP], mem.mm[mm, MM_HUGE]) == (2048, 0, 0)
    assert counter(mem, "pswpin") == 2048
    assert mem.pool[P_SWAP_FREE] == mem.pool[P_SWAP_SLOTS] - 1  # all but the header


@pytest.mark.parametrize(("kernel", "copies"), [("6.1", 511), ("6.12", 0)])
def test_a_fault_on_a_huge_page_in_the_swap_cache(kernel, copies):
    """6.1 copies every tail page (ksm_might_need_to_copy), 6.12 maps all 512 at once."""
    mem = machine(kernel)
    mm = mm_alloc(mem, 512, 0, 0, False, 0)
    touch(mem, mm, 0, 512)
    madvise_pageout(mem, mm, 0, 512)
    touch(mem, mm, 0, 512)
    check_memory(mem)
    assert counter(mem, "ksm_swpin_copy") == copies
    assert counter(mem, "pswpin") == 0
    assert mem.mm[mm, MM_ANON] == 512
    exit_mm(mem, mm)
    check_memory(mem)
    assert mem.pool[P_SWAP_FREE] == mem.pool[P_SWAP_SLOTS] - 1


@pytest.mark.parametrize(("kernel", "deferred"), [("6.1", 1), ("6.12", 0)])
def test_a_part_of_a_huge_page_is_split_off_first(kernel, deferred):
    mem = machine(kernel)
    mm = mm_alloc(mem, 512, 0, 0, False, 0)
    touch(mem, mm, 0, 512)
    madvise_pageout(mem, mm, 100, 50)
    check_memory(mem)
    assert counter(mem, "thp_split_page") == 1
    assert counter(mem, "thp_deferred_split_page") == deferred
    assert counter(mem, "thp_swpout") == 0
    assert counter(mem, "pswpout") == 50
    assert mem.mm[mm, MM_SWAP] == 50


def test_without_a_free_cluster_a_huge_page_is_split_and_swapped_out_in_pieces():
    mem = machine(slots=512 * 3)
    mm = mm_alloc(mem, 1024, 0, 0, False, 0)
    touch(mem, mm, 0, 1024)
    taken = [alloc_cluster(mem), alloc_cluster(mem)]
    assert alloc_cluster(mem) == NIL
    madvise_pageout(mem, mm, 0, 512)
    assert counter(mem, "thp_swpout_fallback") == 1
    assert counter(mem, "thp_split_page") == 1
    assert counter(mem, "thp_swpout") == 0
    assert mem.mm[mm, MM_SWAP] == 511  # the header takes one of the cluster's slots
    for first in taken:
        for slot in range(first, first + 512):
            slot_free(mem, slot)
    check_memory(mem)
    madvise_pageout(mem, mm, 512, 512)
    assert counter(mem, "thp_swpout") == 1
    check_memory(mem)


def test_slots_come_one_after_the_other_and_clusters_in_order():
    mem = machine(slots=512 * 4)
    assert alloc_slots(mem, 3) == (512, 3)
    mem.swap_map[512:515] = 1
    assert alloc_slots(mem, 600) == (515, 509)
    mem.swap_map[515:1024] = 1
    assert alloc_cluster(mem) == 1024
    mem.swap_map[1024:1536] = 1
    assert alloc_slots(mem, 1) == (1536, 1)
    mem.swap_map[1536] = 1
    mem.swap_map[600] = 0
    slot_free(mem, 600)
    assert mem.pool[P_SWAP_FREE] == 512 * 4 - 1 - 512 - 512 - 1 + 1


def test_swap_is_turned_on_once_and_only_if_there_is_room():
    mem = new_memory(16 * MIB, "6.1", 1)
    assert not swapon(mem, 1 << 40)
    assert swapon(mem, 4096)
    assert not swapon(mem, 4096)


@pytest.mark.parametrize(
    ("previous", "vpn", "hits", "last", "pages"),
    [
        (0, 100, 4, 0, 8),  # the first fault: 4 hits are assumed, 6 rounds up to 8
        (99, 100, 0, 0, 2),  # none used, but next to the last: smallest window
        (98, 100, 0, 0, 1),  # none used, elsewhere: no readahead
        (98, 100, 0, 8, 4),  # shrinks by half at most
        (99, 100, 7, 8, 8),
        (0, 100, 1, 0, 4),
    ],
)
def test_readahead_window(previous, vpn, hits, last, pages):
    """Worked from __swapin_nr_pages; page-cluster 3."""
    assert swapin_nr_pages(previous, vpn, hits, 8, last) == pages


def test_a_sequential_swap_in_reads_eight_pages_a_fault():
    mem = machine("6.12")
    mm = mm_alloc(mem, 512, 0, 2, False, 0)
    touch(mem, mm, 0, 512)
    madvise_pageout(mem, mm, 0, 512)
    while counter(mem, "nr_swapcached"):
        try_to_free_pages(mem, 0, 1)
    touch(mem, mm, 0, 512)
    assert counter(mem, "pswpin") == 512
    assert counter(mem, "pgmajfault") == pytest.approx(512 / 8, abs=2)
    assert counter(mem, "swap_ra_hit") == counter(mem, "swap_ra")


def test_pages_in_use_are_kept_before_idle_ones():
    mem = machine("6.12", mib=32, slots=32768)
    idle, busy = (mm_alloc(mem, 6 * 512, 0, 0, False, i) for i in range(2))
    touch(mem, idle, 0, 6 * 512)
    touch(mem, busy, 0, 6 * 512)
    for _ in range(12):
        try_to_free_pages(mem, 0, 1)
        touch(mem, busy, 0, 6 * 512)
    assert mem.mm[idle, MM_SWAP] > 0
    assert mem.mm[busy, MM_SWAP] == 0
    check_memory(mem)


def test_pinned_pages_stay():
    mem = machine()
    mm = mm_alloc(mem, 1024, 0, 0, False, 0)
    touch(mem, mm, 0, 1024)
    add_pin(mem, mm, 0, 1024)
    madvise_pageout(mem, mm, 0, 1024)
    for _ in range(20):
        try_to_free_pages(mem, 0, 1)
    assert mem.mm[mm, MM_SWAP] == 0
    assert not split_huge_page(mem, window_word(mem, mm, 0) >> 2)
    assert counter(mem, "thp_split_page_failed") == 1
    assert counter(mem, "thp_split_page") == 0


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_a_fork_shares_slots_and_each_process_reads_its_own_copy(kernel):
    mem = machine(kernel)
    parent, child = (mm_alloc(mem, 512, 0, 0, False, i) for i in range(2))
    touch(mem, parent, 0, 512)
    madvise_pageout(mem, parent, 0, 512)
    assert copy_mm(mem, parent, child)
    check_memory(mem)
    assert mem.mm[child, MM_SWAP] == 512
    touch(mem, child, 0, 100)
    check_memory(mem)
    assert (mem.mm[child, MM_ANON], mem.mm[child, MM_SWAP]) == (100, 412)
    assert (mem.mm[parent, MM_ANON], mem.mm[parent, MM_SWAP]) == (0, 512)
    exit_mm(mem, parent)
    check_memory(mem)
    exit_mm(mem, child)
    check_memory(mem)
    assert mem.pool[P_SWAP_FREE] == mem.pool[P_SWAP_SLOTS] - 1


def test_more_memory_than_there_is():
    """Twice the machine's memory: all of it stays readable, and the OOM killer sleeps."""
    mem = machine("6.1", mib=32, slots=32768)
    mm = mm_alloc(mem, 60 * MIB, 0, 0, False, 0)
    assert touch(mem, mm, 0, 60 * MIB) == FAULT_OK
    assert mem.mm[mm, MM_ANON] + mem.mm[mm, MM_SWAP] == 60 * MIB
    check_memory(mem)
    assert touch(mem, mm, 0, 60 * MIB) == FAULT_OK
    assert mem.mm[mm, MM_ANON] + mem.mm[mm, MM_SWAP] == 60 * MIB
    assert counter(mem, "pgsteal_anon") <= counter(mem, "pgscan_anon")
    check_memory(mem)


class SwapMachine(RuleBasedStateMachine):
    """Processes on a machine with little memory and little swap."""

    @initialize(
        kernel=st.sampled_from(["6.1", "6.12"]),
        slots=st.sampled_from([0, 2048, 16384]),
        enabled=st.sampled_from(["always", "never"]),
    )
    def boot(self, kernel, slots, enabled):
        self.mem = new_memory(16 * MIB, kernel, 1)
        set_tunable(self.mem.tunables, "enabled", enabled)
        if slots:
            assert swapon(self.mem, slots)
        self.pages = {}
        self.start(6 * 512)

    def some(self, n):
        return sorted(self.pages)[n % len(self.pages)]

    @rule(ram=st.integers(1, 6 * 512))
    def start(self, ram):
        mm = mm_alloc(self.mem, ram, 0, 0, False, 0)
        self.pages[mm] = ram

    @precondition(lambda self: self.pages)
    @rule(
        n=st.integers(0, 9),
        at=st.floats(0, 1, exclude_max=True),
        nr=st.integers(1, 3000),
        step=st.sampled_from([1, 1, 3, 512]),
        write=st.booleans(),
    )
    def access(self, n, at, nr, step, write):
        mm = self.some(n)
        start = int(at * self.pages[mm])
        nr = min(nr, self.pages[mm] - start)
        if touch(self.mem, mm, start, nr, write, step) != FAULT_OK:
            victim = int(select_bad_process(self.mem))
            if victim != NIL:
                self.end(sorted(self.pages).index(victim))

    @precondition(lambda self: self.pages)
    @rule(n=st.integers(0, 9), at=st.floats(0, 1, exclude_max=True), nr=st.integers(1, 2000))
    def pageout(self, n, at, nr):
        mm = self.some(n)
        start = int(at * self.pages[mm])
        madvise_pageout(self.mem, mm, start, min(nr, self.pages[mm] - start))

    @precondition(lambda self: self.pages)
    @rule(n=st.integers(0, 9), at=st.floats(0, 1, exclude_max=True), nr=st.integers(1, 2000))
    def discard(self, n, at, nr):
        mm = self.some(n)
        start = int(at * self.pages[mm])
        discard_range(self.mem, mm, start, min(nr, self.pages[mm] - start))

    @precondition(lambda self: self.pages)
    @rule(n=st.integers(0, 9))
    def fork(self, n):
        parent = self.some(n)
        child = mm_alloc(self.mem, self.pages[parent], 0, 0, False, 0)
        if copy_mm(self.mem, parent, child):
            self.pages[child] = int(self.mem.mm[parent, MM_RAM_PAGES])
        else:
            exit_mm(self.mem, child)

    @precondition(lambda self: self.pages)
    @rule(n=st.integers(0, 9), window=st.integers(0, 5))
    def split(self, n, window):
        mm = self.some(n)
        if window * 512 < self.pages[mm]:
            word = int(window_word(self.mem, mm, window))
            if word & W_TAG == W_HUGE:
                split_huge_page(self.mem, word >> 2)

    @rule(order=st.sampled_from([0, 9]))
    def direct_reclaim(self, order):
        try_to_free_pages(self.mem, order, 1)

    @rule(order=st.sampled_from([0, 9]))
    def kswapd(self, order):
        self.mem.node[0, N_KSWAPD_FAILURES] = 0
        run_kswapd(self.mem, 0, order)

    @precondition(lambda self: len(self.pages) > 1)
    @rule(n=st.integers(0, 9))
    def end(self, n):
        mm = self.some(n)
        exit_mm(self.mem, mm)
        del self.pages[mm]

    @invariant()
    def consistent(self):
        check_memory(self.mem)

    def teardown(self):
        for mm in self.pages:
            exit_mm(self.mem, mm)
        check_memory(self.mem)
        slots = int(self.mem.pool[P_SWAP_SLOTS])
        assert self.mem.pool[P_SWAP_FREE] == max(slots - 1, 0)
        assert counter(self.mem, "nr_swapcached") == 0


TestSwap = SwapMachine.TestCase
TestSwap.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def zeros(kernel, pages=512):
    """Return a machine with a huge page of zeros: 2.6.38 clears one at a read, others if told."""
    mem = machine(kernel)
    if kernel != "2.6.38":
        set_tunable(mem.tunables, "use_zero_page", "0")
    mm = mm_alloc(mem, pages, 0, 0, False, 0)
    assert touch(mem, mm, 0, pages, write=False) == FAULT_OK
    assert mem.mm[mm, MM_ANON] == pages
    return mem, mm


def test_6_12_does_not_write_a_huge_page_of_zeros():
    mem, mm = zeros("6.12")
    madvise_pageout(mem, mm, 0, 512)
    check_memory(mem)
    assert counter(mem, "swpout_zero") == 512
    assert counter(mem, "pswpout") == counter(mem, "thp_swpout") == 0
    for _ in range(3):
        try_to_free_pages(mem, 0, 1)
    assert counter(mem, "nr_swapcached") == 0
    assert touch(mem, mm, 0, 512) == FAULT_OK
    check_memory(mem)
    assert counter(mem, "swpin_zero") == 512
    assert counter(mem, "pswpin") == 0


def test_6_12_writes_a_huge_page_with_one_page_that_is_not_zero_whole():
    mem, mm = zeros("6.12")
    touch(mem, mm, 3, 1)
    madvise_pageout(mem, mm, 0, 512)
    assert counter(mem, "swpout_zero") == 0
    assert counter(mem, "pswpout") == 512


@pytest.mark.parametrize("kernel", ["2.6.38", "6.1"])
def test_older_kernels_write_pages_of_zeros_too(kernel):
    mem, mm = zeros(kernel)
    madvise_pageout(mem, mm, 0, 512)
    assert counter(mem, "pswpout") == 512
    assert counter(mem, "swpout_zero") == 0


@pytest.mark.parametrize("kernel", ["2.6.38", "6.1", "6.12"])
def test_what_was_zero_is_zero_after_it_was_swapped_out_and_in(kernel):
    mem, mm = zeros(kernel)
    touch(mem, mm, 100, 10)
    madvise_pageout(mem, mm, 0, 512)
    for _ in range(3):
        try_to_free_pages(mem, 0, 1)
    assert touch(mem, mm, 0, 512, write=False) == FAULT_OK
    check_memory(mem)
    key = [page_key(mem, mm, page) for page in (99, 100, 109, 110)]
    assert [k == KEY_ZERO for k in key] == [True, False, False, True]
