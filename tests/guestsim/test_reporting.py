"""Free page reporting against a plain model: same blocks, same order, same lists and flags."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pagemap import free_lists
from reference.reporting import CAPACITY, ReportingBuddy

from guestsim.guest import trace_log
from guestsim.reporting import R_AGAIN, R_BATCHES, report_pass
from hostsim.core.units import NO_PFN
from hostsim.mm import buddy
from hostsim.mm.check import check_memory
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    Z_FREE,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
    Memory,
)
from hostsim.mm.pb_packed import unpacked

NR_PAGES = 1 << 15
ZONES = [(0, 4096), (4096, NR_PAGES)]
orders = st.integers(0, 10)


def machine_memory(kernel="6.1", low=64, minimum=32):
    mem = new_memory(NR_PAGES, kernel, 1)
    mem = Memory(**(mem._asdict() | {"touched": trace_log()}))
    mem.zone[:, Z_WMARK_LOW] = low
    mem.zone[:, Z_WMARK_MIN] = minimum
    return mem


def reported(mem, lowest):
    """Make a pass; return blocks in the order sent, batches, and whether to go on."""
    nr = report_pass(mem, lowest)
    blocks = [(int(pfn), int(pages).bit_length() - 1) for pfn, pages in mem.touched[:nr]]
    return blocks, int(mem.scratch[R_BATCHES]), bool(mem.scratch[R_AGAIN])


def flagged(mem):
    """Return the first frames of the blocks that carry PageReported."""
    states = unpacked(mem.pb[: NR_PAGES >> 9]).flags
    words = np.ascontiguousarray(mem.reported["bits"]).astype("<u4")
    small = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
    return {int(pb) << 9 for pb in np.flatnonzero(states & 64)} | set(small.tolist())


class ReportingMachine(RuleBasedStateMachine):
    """Any sequence of allocations, frees and passes in two zones."""

    @initialize(
        kernel=st.sampled_from(["6.1", "6.12"]),
        held=st.sampled_from([0, 700, 5000, 28000]),
        low=st.integers(32, 20000),
        lowest=st.sampled_from([0, 1, 4, 5, 8, 9, 10]),
    )
    def boot(self, kernel, held, low, lowest):
        self.low, self.minimum, self.lowest = low, low - low // 5, lowest
        self.mem = machine_memory(kernel, low, self.minimum)
        self.model = ReportingBuddy(ZONES, relabels=kernel == "6.12")
        self.held = set()
        self.alloc_run(1, MIGRATE_MOVABLE, held)

    @rule(zone=st.integers(0, 1), migratetype=st.integers(0, 2), order=orders)
    def alloc(self, zone, migratetype, order):
        pfn, taken = buddy.rmqueue_run(self.mem, zone, migratetype, order, 1)
        expected = self.model.alloc(zone, migratetype, order)
        assert pfn == (NO_PFN if expected is None else expected)
        self.held |= set(range(pfn, pfn + taken))

    @rule(zone=st.integers(0, 1), migratetype=st.integers(0, 2), nr=st.integers(1, 3000))
    def alloc_run(self, zone, migratetype, nr):
        while nr:
            pfn, taken = buddy.rmqueue_run(self.mem, zone, migratetype, 0, nr)
            if pfn == NO_PFN:
                return
            frames = list(range(pfn, pfn + taken))
            assert frames == [self.model.alloc(zone, migratetype, 0) for _ in frames]
            self.held |= set(frames)
            nr -= taken

    def _free(self, frames):
        for pfn in frames:
            buddy.free_run(self.mem, pfn, 1, False)
            self.model.free(pfn, 0)
        self.held -= set(frames)

    @rule(at=st.integers(0, NR_PAGES), nr=st.integers(1, 3000), step=st.sampled_from([1, 2, 3, 7]))
    def free_some(self, at, nr, step):
        """Free every so-many-th of the held frames from one on."""
        frames = sorted(self.held)
        if frames:
            first = at % len(frames)
            self._free(frames[first : first + nr * step : step])

    @rule()
    def report(self):
        expected = self.model.report_pass(self.lowest, self.low, self.minimum)
        assert reported(self.mem, self.lowest) == expected

    @invariant()
    def same_lists_and_flags(self):
        assert free_lists(self.mem) == self.model.lists
        assert flagged(self.mem) == self.model.reported

    @invariant()
    def consistent(self):
        check_memory(self.mem, unowned=np.array(sorted(self.held), np.int64))


TestReporting = ReportingMachine.TestCase
TestReporting.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


def comb(mem, blocks):
    """Leave so many free blocks of order 0 in the second zone, and none else below order 10."""
    frames = []
    while len(frames) < 2 * blocks:
        pfn, taken = buddy.rmqueue_run(mem, 1, MIGRATE_MOVABLE, 0, NR_PAGES)
        frames += range(pfn, pfn + taken)
    for pfn in frames[: 2 * blocks : 2]:
        buddy.free_run(mem, pfn, 1, False)


@pytest.mark.parametrize(("blocks", "batches"), [(512, 2), (513, 3), (1024, 3), (1025, 4)])
def test_a_pass_sends_a_sixteenth_of_a_list_and_a_batch(blocks, batches):
    mem = machine_memory()
    comb(mem, blocks)
    sent, nr, again = reported(mem, 0)
    assert [order for _, order in sent].count(0) == batches * CAPACITY
    assert nr == batches + any(order > 0 for _, order in sent)
    assert again
    passes = 1
    while again:
        _, _, again = reported(mem, 0)
        passes += 1
    assert passes == -(-blocks // (batches * CAPACITY))
    assert reported(mem, 0) == ([], 0, False)


def test_a_batch_names_its_blocks_last_first():
    mem = machine_memory()
    comb(mem, 40)
    sent, nr, again = reported(mem, 0)
    pfns = [pfn for pfn, order in sent if order == 0]
    assert (nr, again) == (2, False)
    assert pfns[:CAPACITY] == sorted(pfns[:CAPACITY], reverse=True)
    assert pfns[CAPACITY:] == sorted(pfns[CAPACITY:], reverse=True)
    assert pfns[0] < pfns[-1]


@pytest.mark.parametrize(("spare", "sends"), [(0, False), (1, True)])
def test_a_zone_with_less_than_the_low_watermark_and_a_batch_is_left_alone(spare, sends):
    mem = machine_memory()
    comb(mem, 10)
    mem.zone[0, Z_WMARK_LOW] = NR_PAGES
    mem.zone[1, Z_WMARK_LOW] = mem.zone[1, Z_FREE] - (CAPACITY << 0) - spare
    assert bool(reported(mem, 0)[0]) == sends


@pytest.mark.parametrize("order", [3, 9])
def test_a_reported_block_is_new_once_it_was_used_split_or_merged(order):
    mem = machine_memory()
    if order == 9:
        assert buddy.rmqueue_run(mem, 1, MIGRATE_MOVABLE, 10, 1) == (4096, 1024)
        buddy.free_block(mem, 4096, 9)
    else:
        buddy.rmqueue_run(mem, 1, MIGRATE_MOVABLE, 9, 1)
        buddy.free_block(mem, 4096, order)
    assert (4096, order) in reported(mem, order)[0]
    assert reported(mem, order)[0] == []
    assert buddy.rmqueue_run(mem, 1, MIGRATE_MOVABLE, 0, 1)[0] == 4096  # split,
    buddy.free_run(mem, 4096, 1, False)  # and merged
    assert reported(mem, order)[0] == [(4096, order)]


def test_reported_blocks_are_handed_out_last():
    mem = machine_memory()
    for _ in range(4):
        buddy.rmqueue_run(mem, 1, MIGRATE_MOVABLE, 10, 1)
    for pfn in (4096, 4096 + 1024 * 2):
        buddy.free_block(mem, pfn, 9)
        reported(mem, 9)
    buddy.free_block(mem, 4096 + 1024, 9)
    taken = [buddy.rmqueue_run(mem, 1, MIGRATE_MOVABLE, 9, 1)[0] for _ in range(3)]
    assert taken == [4096 + 1024, 4096, 4096 + 2048]


def test_a_pageblock_keeps_its_place_where_it_has_nothing_new():
    mem = machine_memory()
    buddy.rmqueue_run(mem, 1, MIGRATE_MOVABLE, 10, 1)
    for first in (4096, 4608):
        buddy.free_block(mem, first, 3)
    reported(mem, 0)
    before = free_lists(mem)[1, MIGRATE_MOVABLE, 3]
    for pb in before:
        buddy.free_block(mem, (pb << 9) + 16, 0)
        assert ((pb << 9) + 16, 0) in reported(mem, 0)[0]
        assert free_lists(mem)[1, MIGRATE_MOVABLE, 3] == before


def test_a_reported_pageblock_becomes_movable():
    mem = machine_memory()
    buddy.rmqueue_run(mem, 1, MIGRATE_MOVABLE, 10, 1)
    buddy.set_pageblock_migratetype(mem, 8, MIGRATE_UNMOVABLE)
    buddy.free_block(mem, 4096, 9)
    assert free_lists(mem)[1, MIGRATE_UNMOVABLE, 9] == [8]
    assert reported(mem, 9)[0] == [(4096, 9)]
    assert free_lists(mem)[1, MIGRATE_UNMOVABLE, 9] == []
    assert free_lists(mem)[1, MIGRATE_MOVABLE, 9] == [8]
    check_memory(mem, unowned=np.arange(4096 + 512, 4096 + 1024))
