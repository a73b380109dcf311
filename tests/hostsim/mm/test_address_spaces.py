"""Several processes on a small machine: which pages are resident, and what they hold.

Every written page gets a new number, kept both by (process, page) and by frame.  If a process
ever reads another number from its frame, two processes shared a frame that they should not.
"""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pagemap import is_all_free, page_frames

from hostsim.core.units import NO_PFN
from hostsim.mm.check import FrameKind, check_memory, frame_owner
from hostsim.mm.contig import count_unmovable
from hostsim.mm.fault import FAULT_OK, FAULT_OOM, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    MM_BASE,
    MM_PGTABLES,
    MM_WINDOWS,
    NIL,
    P_RESUME,
    P_ZERO_PB,
    Z_FREE,
    Z_MANAGED,
)
from hostsim.mm.mmap import W_HUGE, W_NONE, W_TAG, mm_alloc
from hostsim.mm.page_alloc import free_compound, free_order
from hostsim.mm.pcp import decay_pcp, drain_zone_pages
from hostsim.mm.pgtable import alloc_table
from hostsim.mm.rmap import KIND_EPT, KIND_KERNEL, add_extent, del_extent
from hostsim.mm.slowpath import alloc_pages
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vmstat import NAMES, NR_KERNEL
from hostsim.mm.zap import discard_range, exit_mm

MASK = 2**64 - 1


def splitmix(seed, page):
    """Share of [0, 1) that an access of a fraction compares (Steele et al. 2014, splitmix64)."""
    z = ((seed << 32) + page + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


class AddressSpaceMachine(RuleBasedStateMachine):
    @initialize(
        kernel=st.sampled_from(["6.1", "6.12", "2.6.38"]),
        mib=st.sampled_from([16, 32, 64]),
        enabled=st.sampled_from(["always", "madvise", "never"]),
        zero_page=st.sampled_from(["0", "1"]),
        keep_lru=st.booleans(),
    )
    def boot(self, kernel, mib, enabled, zero_page, keep_lru):
        self.mem = new_memory(mib << 8, kernel, 1, keep_lru=keep_lru)
        set_tunable(self.mem.tunables, "enabled", enabled)
        if kernel != "2.6.38":
            set_tunable(self.mem.tunables, "use_zero_page", zero_page)
        self.written = np.zeros(mib << 8, np.int64)  # by frame
        self.holds = {}  # process -> by page, NIL where not resident
        self.shape = {}
        self.kernel_blocks = []
        self.clock = 0
        self.start(12 * 512, 512, 1, True)
        self.start(3 * 512 + 100, 1024, 0, False)

    def some(self, n):
        return sorted(self.holds)[n % len(self.holds)]

    def word(self, mm, window):
        return int(self.mem.windows[self.mem.mm[mm, MM_BASE] + window])

    @rule(
        ram=st.integers(0, 12 * 512),
        own=st.integers(0, 1024),
        advice=st.integers(0, 2),
        has_ept=st.booleans(),
    )
    def start(self, ram, own, advice, has_ept):
        mm = mm_alloc(self.mem, ram, own, advice, has_ept, 7)
        assert mm not in self.holds
        windows = -(-ram // 512) + -(-own // 512)
        self.holds[mm] = np.full(windows * 512, NIL, np.int64)
        self.shape[mm] = (ram, own, advice, has_ept)

    def frames(self):
        return {mm: page_frames(self.mem, mm) for mm in self.holds}

    def follow(self, before):
        """Let contents go where compaction moved their pages."""
        old = self.written.copy()
        for mm, frames in before.items():
            now = page_frames(self.mem, mm)
            both = (frames != NO_PFN) & (now != NO_PFN)
            self.written[now[both]] = old[frames[both]]

    def settle(self, mm):
        """Take over what a fault made resident beyond the pages touched: whole huge pages."""
        holds = self.holds[mm]
        for window in range(holds.size // 512):
            here = holds[window * 512 : (window + 1) * 512]
            word = self.word(mm, window)
            if word & W_TAG == W_HUGE and (here == NIL).any():
                assert (here == NIL).all(), "a huge page over resident small ones"
                here[:] = 0
                pfn = (word >> 2) * 512
                self.written[pfn : pfn + 512] = 0

    @precondition(lambda self: self.holds)
    @rule(n=st.integers(0, 9), window=st.integers(0, 15), nr=st.integers(1, 6))
    def fill(self, n, window, nr):
        holds = self.holds[self.some(n)]
        if holds.size:
            start = window * 512 % holds.size / holds.size
            self.touch(n, start, nr * 512, 1, 1.0, 0, True)

    @precondition(lambda self: self.holds)
    @rule(
        n=st.integers(0, 9),
        at=st.floats(0, 1, exclude_max=True),
        nr=st.integers(1, 8000),
        step=st.sampled_from([1, 1, 2, 7, 511, 512, 513]),
        fraction=st.sampled_from([1.0, 1.0, 0.5, 0.01]),
        seed=st.integers(0, 3),
        write=st.booleans(),
    )
    def touch(self, n, at, nr, step, fraction, seed, write):
        mm = self.some(n)
        holds = self.holds[mm]
        if holds.size == 0:
            return
        start = round(at * holds.size)
        nr = min(nr, holds.size - start)
        before = self.frames()
        status = touch_range(self.mem, mm, start, nr, step, fraction, seed, write, start)
        self.follow(before)
        assert status in (FAULT_OK, FAULT_OOM)
        stop = start + nr if status == FAULT_OK else int(self.mem.pool[P_RESUME])
        self.settle(mm)
        if not write:
            return
        self.clock += 1
        pages = np.array(
            [p for p in range(start, stop, step) if splitmix(seed, p) < fraction], np.int64
        )
        frames = page_frames(self.mem, mm)[pages]
        assert (frames != NO_PFN).all()
        self.written[frames] = self.clock
        holds[pages] = self.clock
        if status == FAULT_OOM:
            assert start <= stop < start + nr

    @precondition(lambda self: self.holds)
    @rule(n=st.integers(0, 9), at=st.floats(0, 1, exclude_max=True), nr=st.integers(1, 3000))
    def discard(self, n, at, nr):
        mm = self.some(n)
        holds = self.holds[mm]
        start = int(at * holds.size)
        nr = min(nr, holds.size - start)
        discard_range(self.mem, mm, start, nr)
        holds[start : start + nr] = NIL

    @precondition(lambda self: self.holds and len(self.holds) < 5)
    @rule(n=st.integers(0, 9))
    def fork(self, n):
        parent = self.some(n)
        child = mm_alloc(self.mem, *self.shape[parent], 8)
        if copy_mm(self.mem, parent, child):
            self.holds[child] = self.holds[parent].copy()
            self.shape[child] = self.shape[parent]
        else:
            exit_mm(self.mem, child)

    @precondition(lambda self: self.holds)
    @rule(n=st.integers(0, 9))
    def exit(self, n):
        mm = self.some(n)
        exit_mm(self.mem, mm)
        del self.holds[mm]

    @precondition(lambda self: self.holds)
    @rule(n=st.integers(0, 9), kind=st.sampled_from([KIND_EPT, KIND_KERNEL]))
    def table(self, n, kind):
        alloc_table(self.mem, self.some(n), kind)

    @rule(
        order=st.integers(0, 5),
        nr=st.integers(1, 40),
        migratetype=st.sampled_from([MIGRATE_UNMOVABLE, MIGRATE_RECLAIMABLE]),
    )
    def kernel_alloc(self, order, nr, migratetype):
        for _ in range(nr):
            before = self.frames() if order > 0 else {}
            pfn, _, _ = alloc_pages(self.mem, order, migratetype, 1)
            self.follow(before)
            if pfn == NO_PFN:
                return
            x = add_extent(self.mem, pfn, 1 << order, NIL, 0, KIND_KERNEL)
            self.mem.vmstat[NR_KERNEL] += 1 << order
            count_unmovable(self.mem, pfn, 1 << order)
            self.kernel_blocks.append((pfn, order, x))

    @precondition(lambda self: self.kernel_blocks)
    @rule(start=st.integers(0, 99), step=st.integers(1, 7))
    def kernel_free(self, start, step):
        for pfn, order, x in self.kernel_blocks[start::step]:
            self.kernel_free_block(pfn, order, x)
        del self.kernel_blocks[start::step]

    def kernel_free_block(self, pfn, order, x):
        del_extent(self.mem, x)
        self.mem.vmstat[NR_KERNEL] -= 1 << order
        count_unmovable(self.mem, pfn, -(1 << order))
        if order <= 3:
            free_order(self.mem, pfn, order)
        else:
            for frame in range(pfn, pfn + (1 << order)):
                free_order(self.mem, frame, 0)

    @rule(zone=st.integers(0, 1))
    def drain(self, zone):
        drain_zone_pages(self.mem, zone)

    @rule(seconds=st.integers(1, 30))
    def decay(self, seconds):
        decay_pcp(self.mem, seconds)

    @rule(enabled=st.sampled_from(["always", "madvise", "never"]))
    def set_enabled(self, enabled):
        set_tunable(self.mem.tunables, "enabled", enabled)

    @invariant()
    def consistent(self):
        check_memory(self.mem)

    @invariant()
    def pages_hold_what_was_written(self):
        for mm, holds in self.holds.items():
            frames = page_frames(self.mem, mm)
            resident = frames != NO_PFN
            holds[(holds == 0) & ~resident] = NIL  # 6.12 frees pages of zeros with a split
            assert (resident == (holds != NIL)).all()
            assert (self.written[frames[resident]] == holds[resident]).all()

    @invariant()
    def frames_know_their_pages(self):
        for mm in self.holds:
            frames = page_frames(self.mem, mm)
            for vpn in np.flatnonzero(frames != NO_PFN)[::997].tolist():
                owner = frame_owner(self.mem, int(frames[vpn]))
                assert owner.kind in (FrameKind.ANON, FrameKind.HUGE)
                assert owner.mm <= mm
                assert owner.mm < mm or owner.vpn == vpn

    @invariant()
    def every_mapped_window_has_one_table(self):
        for mm in self.holds:
            base, nr = self.mem.mm[mm, MM_BASE], self.mem.mm[mm, MM_WINDOWS]
            mapped = np.count_nonzero(self.mem.windows[base : base + nr])
            assert self.mem.mm[mm, MM_PGTABLES] == mapped

    @invariant()
    def small_memory_stays_small(self):
        for mm, (ram, _, _, _) in self.shape.items():
            if mm in self.holds:
                for window in range(ram // 512, self.holds[mm].size // 512):
                    word = self.word(mm, window)
                    assert word == W_NONE or word & W_TAG != W_HUGE

    def teardown(self):
        if not hasattr(self, "mem"):
            return
        for mm in self.holds:
            exit_mm(self.mem, mm)
        for block in self.kernel_blocks:
            self.kernel_free_block(*block)
        if self.mem.pool[P_ZERO_PB]:
            free_compound(self.mem, int(self.mem.pool[P_ZERO_PB]) - 1)
            self.mem.pool[P_ZERO_PB] = 0
        for zone in range(len(self.mem.zone)):
            drain_zone_pages(self.mem, zone)
        check_memory(self.mem)
        assert (self.mem.zone[:, Z_FREE] == self.mem.zone[:, Z_MANAGED]).all()
        assert is_all_free(self.mem)


TestAddressSpaces = AddressSpaceMachine.TestCase
TestAddressSpaces.settings = settings(max_examples=25)  # depth is the walk's part


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "2.6.38"])
@pytest.mark.parametrize("mib", [16, 64])
def test_long_random_walk_keeps_every_invariant(kernel, mib):
    """What short programs seldom reach: a machine that runs full, empties and fills again."""
    rng = np.random.default_rng(mib)
    machine = AddressSpaceMachine()
    machine.boot(kernel, mib, "always", "1", mib > 16)

    def number(low, high):
        return int(rng.integers(low, high + 1))

    moves = [
        lambda: (
            len(machine.holds) > 5
            or machine.start(number(0, 6144), number(0, 1024), number(0, 2), number(0, 1) == 1)
        ),
        lambda: machine.fill(number(0, 9), number(0, 15), number(1, 6)),
        lambda: machine.touch(
            number(0, 9),
            rng.random(),
            number(1, 4000),
            int(rng.choice([1, 2, 513])),
            float(rng.choice([1.0, 0.3])),
            number(0, 3),
            number(0, 3) > 0,
        ),
        lambda: machine.touch(number(0, 9), rng.random(), number(1, 8), 1, 1.0, 0, True),
        lambda: machine.discard(number(0, 9), rng.random(), number(1, 3000)),
        lambda: machine.discard(number(0, 9), rng.random(), number(1, 60)),
        lambda: len(machine.holds) > 5 or machine.fork(number(0, 9)),
        lambda: machine.kernel_alloc(number(0, 5), number(1, 40), 2 * number(0, 1)),
        lambda: machine.kernel_free(number(0, 99), number(1, 7)),
        lambda: machine.exit(number(0, 9)) if len(machine.holds) > 1 else None,
        lambda: machine.drain(number(0, 1)),
        lambda: machine.decay(number(1, 30)),
    ]
    likely = np.array([2, 6, 4, 6, 2, 4, 2, 3, 3, 1, 1, 1])
    for move in rng.choice(len(moves), 300, p=likely / likely.sum()):
        moves[move]()
        machine.consistent()
        machine.pages_hold_what_was_written()
        machine.every_mapped_window_has_one_table()
    machine.frames_know_their_pages()
    stat = dict(zip(NAMES, machine.mem.vmstat.tolist(), strict=True))
    split = "thp_split_page" if kernel == "2.6.38" else "thp_split_pmd"
    for name in ("allocstall", "thp_fault_fallback", split, "extfrag_events"):
        assert stat[name] > 0, f"the walk never came to {name}"
    machine.teardown()
