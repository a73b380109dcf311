"""The buddy allocator against a plain model: same frames, same counts, same list order."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pagemap import free_lists, is_all_free
from reference.buddy import ReferenceBuddy

from hostsim.core.units import NO_PFN
from hostsim.mm import buddy, pageblock
from hostsim.mm.check import check_memory
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MIGRATE_MOVABLE, MIGRATE_UNMOVABLE, Z_FREE
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.physmem import set_pageblock_migratetype

NR_PAGES = 8192
ZONES = [(0, 4096), (4096, 8192)]
zones = st.integers(0, 1)
types = st.integers(0, 2)


class BuddyMachine(RuleBasedStateMachine):
    """Any sequence of allocations, frees and relabelling in two zones of four blocks."""

    @initialize(kernel=st.sampled_from(["6.1", "6.12"]), held=st.integers(0, 4096))
    def boot(self, kernel, held):
        self.mem = new_memory(NR_PAGES, kernel, 1)
        self.model = ReferenceBuddy(ZONES, relabels=kernel == "6.12")
        self.held = set()
        self.alloc_run(0, MIGRATE_MOVABLE, held)

    @rule(zone=zones, migratetype=types, order=st.integers(0, 10))
    def alloc(self, zone, migratetype, order):
        pfn, taken = buddy.rmqueue_run(self.mem, zone, migratetype, order, 1)
        expected = self.model.alloc(zone, migratetype, order)
        assert pfn == (NO_PFN if expected is None else expected)
        assert taken == (0 if expected is None else 1 << order)
        self.held |= set(range(pfn, pfn + taken))

    @rule(zone=zones, migratetype=types, nr=st.integers(1, 1500))
    def alloc_run(self, zone, migratetype, nr):
        while nr:
            pfn, taken = buddy.rmqueue_run(self.mem, zone, migratetype, 0, nr)
            if pfn == NO_PFN:
                assert self.model.alloc(zone, migratetype, 0) is None
                return
            frames = list(range(pfn, pfn + taken))
            assert frames == [self.model.alloc(zone, migratetype, 0) for _ in frames]
            self.held |= set(frames)
            nr -= taken

    def held_run(self, at, nr):
        """Up to ``nr`` held frames in a row inside one pageblock."""
        frames = sorted(self.held)
        first = frames[at % len(frames)]
        end = first + 1
        while end in self.held and end % 512 and end - first < nr:
            end += 1
        return first, end

    @rule(
        at=st.integers(0, NR_PAGES),
        nr=st.integers(1, 512),
        whole=st.booleans(),
        descending=st.booleans(),
    )
    def free_run(self, at, nr, whole, descending):
        if not self.held:
            return
        first, end = self.held_run(at, nr)
        blocks = [b for b in range(0, NR_PAGES, 512) if self.held.issuperset(range(b, b + 512))]
        if whole and blocks:
            first = blocks[at % len(blocks)]
            end = first + 512
        buddy.free_run(self.mem, first, end - first, descending)
        frames = range(first, end)
        for pfn in reversed(frames) if descending else frames:
            self.model.free(pfn, 0)
        self.held -= set(frames)

    @rule(at=st.integers(0, NR_PAGES), order=st.integers(0, 9))
    def free_block(self, at, order):
        if not self.held:
            return
        frames = sorted(self.held)
        first = frames[at % len(frames)] >> order << order
        block = set(range(first, first + (1 << order)))
        if not block <= self.held:
            return
        buddy.free_block(self.mem, first, order)
        self.model.free(first, order)
        self.held -= block

    @rule(zone=zones, order=st.integers(9, 10), old=types, new=types)
    def claim(self, zone, order, old, new):
        if self.mem.nr_free[zone, old, order] == 0 or old == new:
            return
        pageblock.claim_pageblocks(self.mem, zone, order, old, new)
        self.model.claim(zone, order, old, new)

    @invariant()
    def same_lists(self):
        assert free_lists(self.mem) == self.model.lists

    @invariant()
    def same_counts(self):
        for (zone, migratetype, order), _ in self.model.lists.items():
            expected = self.model.nr_free(zone, migratetype, order)
            assert self.mem.nr_free[zone, migratetype, order] == expected

    @invariant()
    def same_labels(self):
        labels = [get_label(self.mem, pb) for pb in self.model.label]
        assert labels == list(self.model.label.values())

    @invariant()
    def consistent(self):
        check_memory(self.mem, unowned=np.array(sorted(self.held), np.int64))

    @invariant()
    def nothing_lost(self):
        assert self.mem.zone[:, Z_FREE].sum() + len(self.held) == NR_PAGES

    def teardown(self):
        for pfn in sorted(getattr(self, "held", ())):
            buddy.free_run(self.mem, pfn, 1, False)
        if hasattr(self, "mem"):
            assert is_all_free(self.mem)


@pytest.mark.parametrize(
    ("kernel", "label"), [("6.1", MIGRATE_MOVABLE), ("6.12", MIGRATE_UNMOVABLE)]
)
def test_merge_to_order_10_relabels_the_other_half_since_6_10(kernel, label):
    mem = new_memory(NR_PAGES, kernel, 1)
    for _ in range(2):
        buddy.rmqueue_run(mem, 0, MIGRATE_MOVABLE, 9, 1)
    buddy.free_block(mem, 0, 9)
    set_pageblock_migratetype(mem, 1, MIGRATE_UNMOVABLE)
    buddy.free_block(mem, 512, 9)
    assert free_lists(mem)[0, MIGRATE_UNMOVABLE, 10] == [0]
    assert get_label(mem, 0) == label
    check_memory(mem)


def get_label(mem, pb):
    return int(unpacked(mem.pb[pb]).label)


TestBuddy = BuddyMachine.TestCase
