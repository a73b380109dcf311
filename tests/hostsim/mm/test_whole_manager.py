"""The whole memory manager at once: every operation in any order, on a machine that runs full.

What a page holds is a number, kept by (process, page) alone.  Where pages are is read from the
manager: a frame, or a slot of the swap area.  Two pages may share a place only if they hold the
same, a written page always has a place, and what an operation does not concern does not change.
`check_memory` recomputes the state after every step; here are the invariants of `kernel.md` 13
that need a history: monotone counters, conservation of huge pages, sums of counters.
"""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pagemap import is_all_free

from hostsim.core.units import HPAGE_PMD_NR, NO_PFN
from hostsim.ept import (
    guest_access,
    guest_fetch,
    recover_nx_huge_pages,
    start_dirty_log,
    stop_dirty_log,
)
from hostsim.mm.check import check_memory
from hostsim.mm.check_extents import unfolded
from hostsim.mm.collapse import madvise_collapse
from hostsim.mm.compaction import compact_node
from hostsim.mm.fault import FAULT_OK, FAULT_OOM, FAULT_SIGBUS, touch_range
from hostsim.mm.filemap import drop_pagecache, page_cache_access, page_cache_fill
from hostsim.mm.fork import copy_mm
from hostsim.mm.gup import pin_user_pages
from hostsim.mm.hugetlb import hugetlb_mmap, set_nr_hugepages
from hostsim.mm.kalloc import alloc_blocks, free_blocks
from hostsim.mm.kcompactd import kcompactd_do_work, proactive_compact_node
from hostsim.mm.khugepaged import khugepaged_step
from hostsim.mm.ksm import ksm_do_scan, madvise_mergeable, unmerge_all
from hostsim.mm.madvise import madvise_pageout
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_slot import khugepaged_enter
from hostsim.mm.mm_types import (
    H_OVERCOMMIT,
    HUGETLB_2M,
    MM_BASE,
    MM_HAS_EPT,
    MM_HUGETLB,
    MM_PGTABLES,
    MM_RAM_PAGES,
    MM_WINDOWS,
    N_KCOMPACTD_ORDER,
    NIL,
    P_EXT_USED,
    P_RESUME,
    P_ZERO_PB,
    Z_FREE,
    Z_MANAGED,
)
from hostsim.mm.mmap import W_HUGE, W_HUGETLB, W_TAG, mm_alloc
from hostsim.mm.mprotect import mprotect
from hostsim.mm.numa import set_home_node
from hostsim.mm.oom import select_bad_process
from hostsim.mm.page_alloc import free_compound
from hostsim.mm.pcp import decay_pcp, drain_zone_pages
from hostsim.mm.pins import forget_pins, unpin_user_pages
from hostsim.mm.reclaim import run_kswapd
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    EXT_KSM,
    EXT_PMD,
    KIND_ANON,
    KIND_MASK,
    KIND_SWAP,
)
from hostsim.mm.swapfile import swapon
from hostsim.mm.tunables import T_SEED_FILES, set_tunable
from hostsim.mm.vmstat import EVENTS, NAMES
from hostsim.mm.zap import discard_range, exit_mm

KERNELS = ("2.6.38", "6.1", "6.12")
MOST_PROCESSES = 5
PAGES_TO_SCAN = 3000
SLOT = 1 << 40  # places from here on are slots of the swap area
DRAW = {  # what every rule may use, whatever it means there
    "n": st.integers(0, 99),
    "at": st.floats(0, 1, exclude_max=True),
    "nr": st.integers(1, 4000),
    "flag": st.booleans(),
}


class WholeManager(RuleBasedStateMachine):
    @initialize(
        kernel=st.sampled_from(KERNELS),
        mib=st.sampled_from([16, 64]),
        max_ptes_none=st.sampled_from(["511", "511", "64", "0"]),
        zero_pages=st.sampled_from(["0", "1"]),
        nx=st.sampled_from(["0", "1"]),
        nodes=st.sampled_from([1, 1, 2, 4]),
        swap=st.sampled_from([True, True, False]),
    )
    def boot(self, kernel, mib, max_ptes_none, zero_pages, nx, nodes, swap):
        self.mem = new_memory(mib << 8, kernel, nodes, nr_nodes=nodes, keep_lru=swap)
        self.nodes = nodes
        self.set("khugepaged/max_ptes_none", max_ptes_none)
        self.set("khugepaged/pages_to_scan", str(PAGES_TO_SCAN))
        self.set("kvm/nx_huge_pages", nx)
        self.set("kvm/nx_huge_pages_recovery_ratio", "2")
        self.set("ksm/run", "1")
        if kernel != "2.6.38":
            self.set("ksm/use_zero_pages", zero_pages)
        if swap:
            swapon(self.mem, mib << 7)  # half the memory: it runs full
        self.holds = {}  # process -> what each page holds: NIL nothing, 0 zero, else a number
        self.blocks = []  # kernel blocks: order and extent
        self.pins = []  # process, first page, pages and the frames that a device uses
        self.number = 0
        self.seen = self.mem.vmstat.copy()

    def set(self, name, value):
        set_tunable(self.mem.tunables, name, value)

    # Reading the manager

    def words(self, mm):
        base, nr = (int(self.mem.mm[mm, column]) for column in (MM_BASE, MM_WINDOWS))
        return unfolded(self.mem).windows[base : base + nr].tolist()

    def pages(self):
        """Process, page, place and flags of every small page that is resident or swapped out.

        Places are frames, or SLOT + slot of pages that are not in the swap cache.
        """
        mem = unfolded(self.mem)
        ext = mem.ext[: int(mem.pool[P_EXT_USED])]
        ext = ext[(ext["nr"] > 0) & (ext["owner"] != NIL)]
        ext = ext[np.isin(ext["flags"] & KIND_MASK, (KIND_ANON, KIND_SWAP))]
        ext = ext[ext["flags"] & EXT_PMD == 0]
        nr = ext["nr"].astype(np.int64)
        i = np.arange(nr.sum()) - np.repeat(np.cumsum(nr) - nr, nr)
        mm, vpn, pfn, flags, last = (
            np.repeat(column.astype(np.int64), nr)
            for column in (ext["owner"], ext["vpn"], ext["pfn"], ext["flags"], nr - 1)
        )
        place = pfn + np.where(flags & EXT_DESCENDING, last - i, i)
        slot = np.flatnonzero(flags & KIND_MASK == KIND_SWAP)
        cached = self.mem.swap_cache[place[slot]].astype(np.int64)
        place[slot] = np.where(cached > 0, cached - 1, SLOT + place[slot])
        return mm, vpn + i, place, flags

    def places(self, mm):
        """The place of every page of a process; NO_PFN for none."""
        words = np.array(self.words(mm), np.int64)
        whole = np.isin(words & W_TAG, (W_HUGE, W_HUGETLB))
        found = ((words >> 2) * HPAGE_PMD_NR)[:, None] + np.arange(HPAGE_PMD_NR)
        found[~whole] = NO_PFN
        found = found.ravel()
        owner, page, place, _ = self.pages()
        found[page[owner == mm]] = place[owner == mm]
        return found

    def merged(self, mm):
        """Whether ksmd merged each page of a process."""
        mask = np.zeros(self.holds[mm].size, np.bool_)
        owner, page, _, flags = self.pages()
        mask[page[(owner == mm) & (flags & EXT_KSM != 0)]] = True
        return mask

    def settle(self):
        """Take over pages of zeros that came (huge pages, collapse) or went (splits)."""
        for mm, holds in self.holds.items():
            present = self.places(mm) != NO_PFN
            holds[present & (holds == NIL)] = 0
            holds[~present & (holds == 0)] = NIL

    def some(self, n):
        return sorted(self.holds)[n % len(self.holds)] if self.holds else NIL

    def range_of(self, mm, at, nr, whole=False):
        """A range of a process's pages; whole windows of guest RAM if asked."""
        size = int(self.mem.mm[mm, MM_RAM_PAGES]) if whole else self.holds[mm].size
        start = int(at * size)
        if whole:
            start, nr = start // HPAGE_PMD_NR * HPAGE_PMD_NR, nr // HPAGE_PMD_NR * HPAGE_PMD_NR
        return start, min(nr, size - start)

    def kill(self):
        """What the OOM killer does."""
        victim = int(select_bad_process(self.mem))
        assert victim != NIL, "out of memory without a process"
        self.end(victim)
        return victim

    def end(self, mm):
        exit_mm(self.mem, mm)
        del self.holds[mm]
        self.pins = [pin for pin in self.pins if pin[0] != mm]

    # Processes

    @rule(**DRAW)
    def start(self, n, at, nr, flag):
        if len(self.holds) >= MOST_PROCESSES:
            return
        mm = mm_alloc(self.mem, int(at * 12) * 512 + n % 3 * 100, nr // 8, n % 3, flag, n)
        set_home_node(self.mem, mm, n % self.nodes, n % 5 % (self.nodes + 1))
        self.holds[mm] = np.full(len(self.words(mm)) * HPAGE_PMD_NR, NIL, np.int64)
        if n % 7 == 0:
            hugetlb_mmap(self.mem, mm, HUGETLB_2M, flag)
        elif n % 3 == 1:
            khugepaged_enter(self.mem, mm)
        if n % 2 == 0 and not self.mem.mm[mm, MM_HUGETLB]:
            madvise_mergeable(self.mem, mm, 0, int(self.mem.mm[mm, MM_RAM_PAGES]))

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def fork(self, n, at, nr, flag):
        parent = self.some(n)
        if len(self.holds) >= MOST_PROCESSES:
            return
        columns = self.mem.mm[parent]
        ram = int(columns[MM_RAM_PAGES])
        own = self.holds[parent].size - -(-ram // 512) * 512
        child = mm_alloc(self.mem, ram, own, n % 3, bool(columns[MM_HAS_EPT]), n)
        if not copy_mm(self.mem, parent, child):
            exit_mm(self.mem, child)
            return
        self.holds[child] = self.holds[parent].copy()
        if self.mem.tunables[T_SEED_FILES]:  # who writes first gets a copy, pinned or not
            forget_pins(self.mem, parent, 0, self.holds[parent].size)
            self.pins = [pin for pin in self.pins if pin[0] != parent]
        for window, word in enumerate(self.words(parent)):
            if word & W_TAG == W_HUGETLB:
                self.holds[child][window * HPAGE_PMD_NR : (window + 1) * HPAGE_PMD_NR] = NIL

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def exit(self, n, at, nr, flag):
        self.end(self.some(n))

    # Accesses

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def touch(self, n, at, nr, flag):
        self.access(n, at, nr, (1, 1, 1, 2, 7, 513)[n % 6], flag or n % 2 == 0, touch_range)

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def touch_few(self, n, at, nr, flag):
        self.access(n, at, nr % 9 + 1, 1, flag, touch_range)

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def touch_as_guest(self, n, at, nr, flag):
        self.access(n, at, nr, 1, flag, guest_access)

    def access(self, n, at, nr, step, write, how):
        """Access pages until it is done or the process is dead."""
        mm = self.some(n)
        start, nr = self.range_of(mm, at, nr)
        if nr == 0:
            return
        done = start
        while True:
            if how is guest_access:
                status = guest_access(self.mem, mm, done, start + nr - done, write)
            else:
                status = touch_range(self.mem, mm, start, nr, step, 1.0, 0, write, done)
            if status == FAULT_SIGBUS:
                self.end(mm)
                return
            if status != FAULT_OOM:
                break
            done = int(self.mem.pool[P_RESUME])
            if self.kill() == mm:
                return
        if write:
            pages = np.arange(start, start + nr, step)
            assert (self.places(mm)[pages] != NO_PFN).all(), "pages lost as they were written"
            self.number += 1
            self.holds[mm][pages] = self.number

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def fetch(self, n, at, nr, flag):
        mm = self.some(n)
        start, nr = self.range_of(mm, at, nr)
        if nr and guest_fetch(self.mem, mm, start) == FAULT_SIGBUS:
            self.end(mm)

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def ept(self, n, at, nr, flag):
        mm = self.some(n)
        (start_dirty_log, stop_dirty_log, recover_nx_huge_pages)[nr % 3](self.mem, mm)

    # What a process asks for

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def discard(self, n, at, nr, flag):
        mm = self.some(n)
        start, nr = self.range_of(mm, at, nr, self.mem.mm[mm, MM_HUGETLB] != 0)
        discard_range(self.mem, mm, start, nr)
        assert (self.places(mm)[start : start + nr] == NO_PFN).all()
        self.holds[mm][start : start + nr] = NIL
        if any(
            pin[0] == mm and pin[1] < start + nr and start < pin[1] + pin[2] for pin in self.pins
        ):
            forget_pins(self.mem, mm, 0, self.holds[mm].size)
            self.pins = [pin for pin in self.pins if pin[0] != mm]

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def protect(self, n, at, nr, flag):
        mm = self.some(n)
        start, nr = self.range_of(mm, at, nr)
        if start + nr <= self.mem.mm[mm, MM_RAM_PAGES] and not self.mem.mm[mm, MM_HUGETLB]:
            mprotect(self.mem, mm, start, nr, flag)

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def pageout(self, n, at, nr, flag):
        mm = self.some(n)
        before = self.places(mm)
        start, nr = self.range_of(mm, at, nr)
        madvise_pageout(self.mem, mm, start, nr)
        after = self.places(mm)
        kept = (after != NO_PFN) & (after < SLOT) & (before < SLOT)
        assert (before[kept] == after[kept]).all(), "pages came to other frames"

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def collapse(self, n, at, nr, flag):
        mm = self.some(n)
        madvise_collapse(self.mem, mm, *self.range_of(mm, at, nr))

    @precondition(lambda self: self.holds)
    @rule(**DRAW)
    def pin(self, n, at, nr, flag):
        mm = self.some(n)
        start, nr = self.range_of(mm, at, nr // (1 if n % 5 == 0 else 100))
        if nr == 0 or self.mem.mm[mm, MM_HUGETLB]:
            return
        while (status := pin_user_pages(self.mem, mm, start, nr)) == FAULT_OOM:
            if self.kill() == mm:
                return
        assert status == FAULT_OK
        self.number += 1
        self.holds[mm][start : start + nr] = self.number
        self.pins.append((mm, start, nr, self.places(mm)[start : start + nr].copy()))

    @precondition(lambda self: self.pins)
    @rule(**DRAW)
    def unpin(self, n, at, nr, flag):
        mm, start, nr, _ = self.pins.pop(n % len(self.pins))
        assert unpin_user_pages(self.mem, mm, start, nr)

    # The kernel itself

    @rule(**DRAW)
    def kalloc(self, n, at, nr, flag):
        order = n % 4
        extents = np.zeros(nr % 40, np.int64)
        got = alloc_blocks(self.mem, order, 0 if flag else 2, extents.size, extents)
        self.blocks += [(order, x) for x in extents[:got].tolist()]

    @precondition(lambda self: self.blocks)
    @rule(**DRAW)
    def kfree(self, n, at, nr, flag):
        chosen = slice(int(at * len(self.blocks)), None, n % 5 + 1)
        for order, x in self.blocks[chosen]:
            free_blocks(self.mem, order, np.array([x]))
        del self.blocks[chosen]

    @rule(**DRAW)
    def page_cache(self, n, at, nr, flag):
        if not len(self.mem.lru):  # could not be reclaimed
            return
        (page_cache_access if n % 3 else drop_pagecache)(*(self.mem, nr)[: 1 + (n % 3 > 0)])
        page_cache_fill(self.mem, nr // 8, flag)

    @rule(**DRAW)
    def khugepaged_pass(self, n, at, nr, flag):
        before = self.stat("khugepaged_windows")
        while khugepaged_step(self.mem) == 0:
            pass
        assert self.stat("khugepaged_windows") - before <= -(-PAGES_TO_SCAN // HPAGE_PMD_NR)

    @rule(**DRAW)
    def ksmd(self, n, at, nr, flag):
        ksm_do_scan(self.mem, nr)

    @rule(**DRAW)
    def unmerge(self, n, at, nr, flag):
        if flag and n % 3 == 0:
            unmerge_all(self.mem)

    @rule(**DRAW)
    def compact(self, n, at, nr, flag):
        if n % 3 == 0:
            compact_node(self.mem)
        elif n % 3 == 1 and not self.mem.tunables[T_SEED_FILES]:
            proactive_compact_node(self.mem, nr % self.nodes)
        elif not self.mem.tunables[T_SEED_FILES]:
            self.mem.node[nr % self.nodes, N_KCOMPACTD_ORDER] = 9
            kcompactd_do_work(self.mem, nr % self.nodes)

    @rule(**DRAW)
    def kswapd(self, n, at, nr, flag):
        run_kswapd(self.mem, n % self.nodes, 9 if flag else 0)

    @rule(**DRAW)
    def hugetlb_pool(self, n, at, nr, flag):
        self.mem.hugetlb[HUGETLB_2M, H_OVERCOMMIT] = n % 3
        set_nr_hugepages(self.mem, nr % 5)

    @rule(**DRAW)
    def per_cpu_lists(self, n, at, nr, flag):
        decay_pcp(self.mem, n + 1)
        for zone in range(len(self.mem.zone) if flag else 0):
            drain_zone_pages(self.mem, zone)

    @rule(**DRAW)
    def settings(self, n, at, nr, flag):
        self.set("enabled", ("always", "madvise", "never")[n % 3])
        self.set("defrag", ("always", "madvise", "never")[nr % 3])

    # Invariants

    def stat(self, name):
        return int(self.mem.vmstat[NAMES.index(name)])

    @invariant()
    def consistent(self):
        check_memory(self.mem)

    @invariant()
    def every_page_holds_what_was_written(self):
        self.settle()
        place, value = [], []
        for mm, holds in self.holds.items():
            places = self.places(mm)
            lost = (holds > 0) & (places == NO_PFN)
            assert not lost.any(), f"process {mm} lost pages {np.flatnonzero(lost)[:5]}"
            plain = (places != NO_PFN) & ~self.merged(mm)
            place.append(places[plain])
            value.append(holds[plain])
        place, value = np.concatenate([[-2], *place]), np.concatenate([[-1], *value])
        order = np.lexsort((value, place))
        place, value = place[order], value[order]
        clash = (place[1:] == place[:-1]) & (value[1:] != value[:-1])
        assert not clash.any(), f"pages that differ share places {place[1:][clash][:5]}"

    @invariant()
    def merged_pages_are_equal(self):
        mm, page, place, flags = self.pages()
        merged = flags & EXT_KSM != 0
        written = [self.holds[m][p] > 0 for m, p in zip(mm[merged], page[merged], strict=True)]
        pairs = np.unique(np.stack([place[merged], written]), axis=1)
        assert (np.diff(pairs[0]) != 0).all(), "ksmd merged pages of zeros with written ones"

    @invariant()
    def pinned_pages_stay_where_they_are(self):
        for mm, start, nr, frames in self.pins:
            moved = self.places(mm)[start : start + nr] != frames
            assert not moved.any(), f"process {mm}: pinned pages {start} + {np.flatnonzero(moved)}"

    @invariant()
    def every_mapped_window_has_one_table(self):
        for mm in self.holds:
            mapped = sum(word != 0 and word & W_TAG != W_HUGETLB for word in self.words(mm))
            assert self.mem.mm[mm, MM_PGTABLES] == mapped

    @invariant()
    def counters_never_fall_and_sums_hold(self):
        for number in EVENTS:
            assert self.mem.vmstat[number] >= self.seen[number], NAMES[number]
        self.seen[:] = self.mem.vmstat
        stall = self.stat("compact_success") + self.stat("compact_fail")
        skips = self.mem.tunables[T_SEED_FILES] != 0  # 2.6.38 counts them as stalls
        assert self.stat("compact_stall") == stall or (skips and self.stat("compact_stall") > stall)
        for kind in ("anon", "file", "kswapd", "direct"):
            assert self.stat(f"pgsteal_{kind}") <= self.stat(f"pgscan_{kind}")
        assert self.stat("pswpout") >= HPAGE_PMD_NR * self.stat("thp_swpout")

    def teardown(self):
        if not hasattr(self, "mem"):
            return
        for mm in list(self.holds):
            exit_mm(self.mem, mm)
        for order, x in self.blocks:
            free_blocks(self.mem, order, np.array([x]))
        set_nr_hugepages(self.mem, 0)
        while drop_pagecache(self.mem) or self.stat("nr_file_pages"):
            page_cache_clean(self.mem)
        if self.mem.pool[P_ZERO_PB]:
            free_compound(self.mem, int(self.mem.pool[P_ZERO_PB]) - 1)
            self.mem.pool[P_ZERO_PB] = 0
        for zone in range(len(self.mem.zone)):
            drain_zone_pages(self.mem, zone)
        check_memory(self.mem)
        assert (self.mem.zone[:, Z_FREE] == self.mem.zone[:, Z_MANAGED]).all()
        assert is_all_free(self.mem)


def page_cache_clean(mem):
    """Write all dirty pages of the page cache."""
    mem.ext_lru[:] &= ~8


WholeManager.TestCase.settings = settings(max_examples=30, stateful_step_count=50)
TestWholeManager = WholeManager.TestCase

RULES = {  # how often the long walk takes each
    "start": 4,
    "fork": 2,
    "exit": 1,
    "touch": 10,
    "touch_few": 6,
    "touch_as_guest": 5,
    "fetch": 2,
    "ept": 2,
    "discard": 5,
    "protect": 3,
    "pageout": 3,
    "collapse": 3,
    "pin": 2,
    "unpin": 2,
    "kalloc": 3,
    "kfree": 3,
    "page_cache": 2,
    "khugepaged_pass": 4,
    "ksmd": 4,
    "unmerge": 1,
    "compact": 3,
    "kswapd": 2,
    "hugetlb_pool": 1,
    "per_cpu_lists": 1,
    "settings": 1,
}


ALWAYS = ("start", "kalloc", "kfree", "page_cache", "compact", "kswapd", "hugetlb_pool")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("seed", "nodes"), [(1, 1), (2, 2), (3, 1), (4, 4)])
def test_long_walk_over_the_whole_manager(kernel, seed, nodes):
    """What short programs seldom reach."""
    walk(kernel, seed, nodes, 400)


def walk(kernel, seed, nodes, steps):
    rng = np.random.default_rng(seed)
    machine = WholeManager()
    machine.boot(
        kernel, 16 << seed % 3, ("511", "64")[seed % 2], str(seed % 2), "1", nodes, seed != 3
    )
    likely = np.array(list(RULES.values()))
    for name in rng.choice(list(RULES), steps, p=likely / likely.sum()):
        drawn = {"n": int(rng.integers(100)), "at": rng.random()}
        drawn |= {"nr": int(rng.integers(1, 4001)), "flag": bool(rng.integers(2))}
        if name in ALWAYS or (machine.pins if name == "unpin" else machine.holds):
            getattr(machine, name)(**drawn)
        check_all(machine)
    machine.teardown()
    return machine


def check_all(machine):
    """Every invariant of the machine."""
    machine.consistent()
    machine.every_page_holds_what_was_written()
    machine.merged_pages_are_equal()
    machine.pinned_pages_stay_where_they_are()
    machine.every_mapped_window_has_one_table()
    machine.counters_never_fall_and_sums_hold()
