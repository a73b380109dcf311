"""Compaction: where pages go, that nothing is lost, and when it runs at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pagemap import drawn_memory, page_frames, picture
from reference.compaction import Compaction

from hostsim.core.units import NO_PFN, PAGEBLOCK_ORDER
from hostsim.mm.check import check_memory
from hostsim.mm.compact_control import (
    CC_NR_MIGRATE,
    COMPACT_ASYNC,
    COMPACT_SYNC_LIGHT,
    get_pageblock_skip,
)
from hostsim.mm.compact_defer import compaction_defer_reset, compaction_deferred, defer_compaction
from hostsim.mm.compact_score import fragmentation_score_node
from hostsim.mm.compact_skip import reset_isolation_suitable
from hostsim.mm.compaction import (
    COMPACT_COMPLETE,
    COMPACT_DEFERRED,
    COMPACT_PARTIAL_SKIPPED,
    COMPACT_SKIPPED,
    COMPACT_SUCCESS,
    begin,
    compact_node,
    compact_zone,
    compaction_suitable,
    try_to_compact_pages,
)
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.filemap import page_cache_fill
from hostsim.mm.fork import copy_mm
from hostsim.mm.kcompactd import (
    BACKED_OFF_NS,
    CHECK_NS,
    SLICE_NS,
    kcompactd_do_work,
    kcompactd_step,
    proactive_compact_node,
    should_proactive_compact_node,
    wakeup_kcompactd,
)
from hostsim.mm.ksm import ksm_do_scan, madvise_mergeable
from hostsim.mm.madvise import madvise_pageout
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    N_KCOMPACTD_ORDER,
    P_CAPTURE,
    P_CAPTURED,
    P_COST_NS,
    P_STALL_NS,
    Z_BLOCKSKIP_FLUSH,
    Z_COMPACT_DEFER_SHIFT,
    Z_FREE,
    Z_PCP_HIGH_MAX,
    Z_PCP_HIGH_MIN,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
)
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.page_alloc import free_compound
from hostsim.mm.pageblock import fragmentation_index_zone
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.physmem import get_pageblock_migratetype
from hostsim.mm.pins import add_pin, unpin_user_pages
from hostsim.mm.slowpath import GFP_DIRECT, alloc_huge
from hostsim.mm.swapfile import swapon
from hostsim.mm.tunables import T_COMPACTION_PROACTIVENESS, set_tunable
from hostsim.mm.vmstat import NAMES
from hostsim.mm.zap import discard_range

KERNELS = ("6.1", "6.12")
M, U = MIGRATE_MOVABLE, MIGRATE_UNMOVABLE
OWNER = 0  # the process of a drawn memory
BLOCKS = 7  # pageblocks of a drawn memory that a test may draw


def stat(mem, name):
    return int(mem.vmstat[NAMES.index(name)])


def keep_freed_pages_apart(mem):
    """Let the per-CPU lists take everything, so that no freed page becomes a target."""
    mem.zone[:, Z_PCP_HIGH_MIN] = 1 << 20
    mem.zone[:, Z_PCP_HIGH_MAX] = 1 << 20


def moved(mem, mms, action):
    """Do something; return ``old frame -> new frame``, and require that contents are conserved."""
    before = {mm: page_frames(mem, mm) for mm in mms}
    result = action()
    check_memory(mem)
    where = {}
    for mm in mms:
        after = page_frames(mem, mm)
        assert ((after == NO_PFN) == (before[mm] == NO_PFN)).all(), "a page came or went"
        resident = after != NO_PFN
        for old, new in zip(before[mm][resident].tolist(), after[resident].tolist(), strict=True):
            assert where.setdefault(old, new) == new, "a shared page went two ways"
    assert len(set(where.values())) == len(where), "two pages in one frame"
    return {old: new for old, new in where.items() if old != new}, result


def direct(mem, order, migratetype, mode):
    """Compact as an allocation that waits would, and give back what was captured."""
    result = try_to_compact_pages(mem, order, migratetype, mode, 1)
    assert mem.pool[P_CAPTURE] == 0
    if mem.pool[P_CAPTURED]:
        assert order == PAGEBLOCK_ORDER
        free_compound(mem, int(mem.pool[P_CAPTURED]) - 1)
        mem.pool[P_CAPTURED] = 0
    return result


def cells_of(mem):
    """A letter a frame, as the reference takes them."""
    text = ""
    for pb in range(8):
        text += picture(mem, pb, 512)
    return text.replace("t", "K").replace("B", "K").replace("#", "p")


pictures = st.lists(
    st.tuples(
        st.one_of(
            st.text("A.K", min_size=16, max_size=16),
            st.text("A.", min_size=64, max_size=64),
            st.sampled_from(["A." * 128, ".A" * 256, "AAK." * 64, "A...", "K", "A", "AA.K" * 8]),
        ),
        st.sampled_from([M, M, M, U]),
    ),
    min_size=3,
    max_size=BLOCKS,
)


def no_whole_block(drawn):
    return [(text if text.strip(".") else "A" + text[1:], label) for text, label in drawn]


@settings(max_examples=150)
@given(drawn=pictures, kernel=st.sampled_from(KERNELS))
def test_scanners_do_what_the_reference_does(drawn, kernel):
    drawn = no_whole_block(drawn)
    mem = drawn_memory(kernel, drawn)
    keep_freed_pages_apart(mem)
    targets = {pb for pb in range(8) if get_pageblock_migratetype(mem, pb) == M}
    reference = Compaction(cells_of(mem), targets, kernel == "6.12", int(mem.zone[0, Z_WMARK_MIN]))
    moves, _ = moved(mem, [OWNER], lambda: compact_node(mem))
    assert moves == reference.run()
    assert stat(mem, "pgmigrate_success") == len(moves)


@settings(max_examples=60)
@given(
    drawn=pictures,
    kernel=st.sampled_from(KERNELS),
    order=st.integers(1, 10),
    runs=st.lists(st.sampled_from(["async", "sync", "node", "kcompactd", "proactive"]), max_size=4),
    forks=st.booleans(),
    holes=st.integers(1, 700),
)
def test_no_run_loses_a_page(drawn, kernel, order, runs, forks, holes):
    mem = drawn_memory(kernel, drawn)
    mms = [OWNER]
    if forks:
        child = mm_alloc(mem, 0, 8 * 512, 0, False, 1)
        if copy_mm(mem, OWNER, child):
            mms.append(child)
            discard_range(mem, child, 300, holes)
    kernel_frames = [i for i, c in enumerate(cells_of(mem)) if c == "K"]
    actions = {
        "async": lambda: direct(mem, order, M, COMPACT_ASYNC),
        "sync": lambda: direct(mem, order, U, COMPACT_SYNC_LIGHT),
        "node": lambda: compact_node(mem),
        "kcompactd": lambda: wakeup_kcompactd(mem, 0, order) or kcompactd_do_work(mem, 0),
        "proactive": lambda: proactive_compact_node(mem, 0),
    }
    for run in runs:
        moved(mem, mms, actions[run])
        cells = cells_of(mem)
        assert all(cells[frame] == "K" for frame in kernel_frames)


def half_full(kernel, mib=64, seed=0, chunk=1):
    """A machine whose one process holds every second chunk of small pages."""
    mem = new_memory(mib << 8, kernel, 1)
    mm = mm_alloc(mem, 0, (mib - 8) << 8, 0, False, 0)
    nr = int(mem.zone[:, Z_FREE].sum()) - 1600
    assert touch_range(mem, mm, 0, min(nr, (mib - 8) << 8), 1, 1.0, 0, True, 0) == FAULT_OK
    for page in range(chunk, nr, 2 * chunk):
        discard_range(mem, mm, page, chunk)
    for zone in range(2):
        drain_zone_pages(mem, zone)
    return mem, mm


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_fault_that_waits_gets_its_huge_page_by_compaction(kernel):
    """Free pages are plenty, none of them in a huge page; the pageblock is captured on the spot."""
    mem, mm = half_full(kernel, chunk=32)
    while alloc_huge(mem, mm, 0, 0) != NO_PFN:
        pass  # the huge pages that the lists still have
    assert stat(mem, "compact_stall") == 0
    before = stat(mem, "pgmigrate_success")
    pb = alloc_huge(mem, mm, 0, GFP_DIRECT)
    assert pb != NO_PFN
    assert stat(mem, "pgmigrate_success") > before
    assert stat(mem, "compact_stall") == stat(mem, "compact_success") + stat(mem, "compact_fail")
    assert stat(mem, "compact_success") == 1
    assert 0 < mem.pool[P_STALL_NS] <= mem.pool[P_COST_NS]


@pytest.mark.parametrize("kernel", KERNELS)
def test_compaction_of_everything_makes_most_free_memory_whole(kernel):
    mem, mm = half_full(kernel)
    score = fragmentation_score_node(mem, 0)
    moved(mem, [mm], lambda: compact_node(mem))
    for zone in range(2):
        drain_zone_pages(mem, zone)
    check_memory(mem)
    assert score > 80
    assert fragmentation_score_node(mem, 0) < 25


def test_pages_of_a_pinned_process_stay():
    """An extra reference on each page: kernel.md 6.4."""
    whole = 8 * 512
    mem = drawn_memory("6.1", [("A.A.", M), (".A.A", M), ("...A", M)])
    add_pin(mem, OWNER, 0, whole)
    assert moved(mem, [OWNER], lambda: compact_node(mem))[0] == {}
    unpin_user_pages(mem, OWNER, 0, whole)
    assert moved(mem, [OWNER], lambda: compact_node(mem))[0] != {}


def test_after_a_pageblock_without_free_pages_every_second_page_is_a_sample():
    """isolate_freepages doubles its stride: free frames at odd numbers are then not seen."""
    seen, unseen = (
        drawn_memory("6.1", [("A", M), ("A", M), (text * 256, M), ("A", M)])
        for text in (".A", "A.")
    )
    assert len(moved(seen, [OWNER], lambda: compact_node(seen))[0]) > 0
    assert moved(unseen, [OWNER], lambda: compact_node(unseen))[0] == {}


def test_async_direct_runs_give_a_block_up_at_its_first_page_that_cannot_move():
    drawn = [("AAAKAAAA........", M), *[("A...............", M)] * 4]
    for mode, first in ((COMPACT_ASYNC, 512), (COMPACT_SYNC_LIGHT, 0)):
        mem = drawn_memory("6.1", drawn)
        keep_freed_pages_apart(mem)
        moves, _ = moved(mem, [OWNER], lambda m=mem, o=mode: direct(m, 9, M, o))
        assert min(moves) == first, "the first block holds a kernel page"


def test_async_direct_runs_leave_pageblocks_of_other_types_alone():
    drawn = [("AA..AA..........", U), *[("K.......", M)] * 4]
    for mode, expected in ((COMPACT_ASYNC, False), (COMPACT_SYNC_LIGHT, True)):
        mem = drawn_memory("6.12", drawn)
        moves, _ = moved(mem, [OWNER], lambda m=mem, o=mode: direct(m, 9, M, o))
        assert bool(moves) == expected


@pytest.mark.parametrize("shift", range(1, 7))
def test_a_deferred_zone_skips_two_to_the_shift_less_one_requests(shift):
    """Kernel.md 6.5."""
    mem = new_memory(8 * 512, "6.1", 1)
    for _ in range(shift):
        defer_compaction(mem, 0, 9)
    assert mem.zone[0, Z_COMPACT_DEFER_SHIFT] == shift
    skipped = [bool(compaction_deferred(mem, 0, 9)) for _ in range(2**shift)]
    assert skipped == [True] * (2**shift - 1) + [False]
    assert not compaction_deferred(mem, 0, 8), "a smaller order did not fail"
    compaction_defer_reset(mem, 0, 9, False)
    assert mem.zone[0, Z_COMPACT_DEFER_SHIFT] == shift
    compaction_defer_reset(mem, 0, 9, True)
    assert mem.zone[0, Z_COMPACT_DEFER_SHIFT] == 0


def test_the_shift_ends_at_six():
    mem = new_memory(8 * 512, "6.1", 1)
    for _ in range(9):
        defer_compaction(mem, 0, 9)
    assert sum(bool(compaction_deferred(mem, 0, 9)) for _ in range(64)) == 63


def test_suitable_from_one_page_above_low_and_the_gap():
    """Order 9: low + 1024, kernel.md 6.2."""
    mem = drawn_memory("6.1", [("A." * 16, M)] * 6)
    low = int(mem.zone[0, Z_WMARK_LOW])
    free = int(mem.zone[0, Z_FREE])
    mem.zone[0, Z_WMARK_LOW] += free - low - 1024 - 1
    assert compaction_suitable(mem, 0, 9, 0)
    assert not compaction_suitable(mem, 0, 9, 1)


def test_a_zone_full_of_free_order_8_blocks_is_not_fragmented_enough():
    """Index 499 against the threshold of 500; stray smaller blocks flip it. Kernel.md 2."""
    mem = drawn_memory("6.1", [("A", M)] * 6)
    mem.nr_free[0, M, 8] = 512
    mem.zone[0, Z_FREE] = 512 << 8
    assert fragmentation_index_zone(mem, 0, 9) == 499
    assert not compaction_suitable(mem, 0, 9, 0)
    mem.nr_free[0, M, 0] = 3
    mem.zone[0, Z_FREE] += 3
    assert fragmentation_index_zone(mem, 0, 9) == 501
    assert compaction_suitable(mem, 0, 9, 0)


def test_an_order_that_is_there_needs_no_run():
    mem = new_memory(64 << 8, "6.1", 1)
    assert direct(mem, 9, M, COMPACT_ASYNC) == COMPACT_SUCCESS
    assert stat(mem, "compact_migrate_scanned") == 0


def test_a_zone_without_free_memory_is_skipped():
    mem = drawn_memory("6.1", [("A", M)] * 6)
    assert direct(mem, 9, M, COMPACT_ASYNC) == COMPACT_SKIPPED


def test_sync_failures_defer_and_async_ones_do_not():
    drawn = [("K" + "A." * 15 + "K", M)] * 7
    mem = drawn_memory("6.1", drawn)
    result = direct(mem, 9, M, COMPACT_ASYNC)
    assert result not in (COMPACT_SUCCESS, COMPACT_SKIPPED, COMPACT_DEFERRED)
    assert mem.zone[0, Z_COMPACT_DEFER_SHIFT] == 0
    result = direct(mem, 9, M, COMPACT_SYNC_LIGHT)
    assert result in (COMPACT_COMPLETE, COMPACT_PARTIAL_SKIPPED)
    assert mem.zone[0, Z_COMPACT_DEFER_SHIFT] == 1
    assert direct(mem, 9, M, COMPACT_ASYNC) == COMPACT_DEFERRED


def test_skip_bits_go_when_a_full_direct_run_has_ended():
    drawn = [("K" + "A." * 15 + "K", M)] * 7
    mem = drawn_memory("6.1", drawn)
    direct(mem, 9, M, COMPACT_SYNC_LIGHT)
    assert any(get_pageblock_skip(mem, pb) for pb in range(7))
    assert mem.zone[0, Z_BLOCKSKIP_FLUSH] == 1
    reset_isolation_suitable(mem, 0)
    both = [pb for pb in range(7) if {"A", "."} <= set(picture(mem, pb, 512))]
    assert both
    assert not any(get_pageblock_skip(mem, pb) for pb in both)
    check_memory(mem)


def test_a_free_chunk_of_half_a_pageblock_makes_its_target_movable():
    mem = drawn_memory("6.12", [("A" * 16, M), ("K" * 8 + "." * 8, M)])
    moved(mem, [OWNER], lambda: compact_node(mem))
    assert get_pageblock_migratetype(mem, 1) == M


@pytest.mark.parametrize("kernel", KERNELS)
def test_kcompactd_wakes_only_where_an_order_is_missing_and_could_be_made(kernel):
    whole = new_memory(64 << 8, kernel, 1)
    wakeup_kcompactd(whole, 0, 9)
    assert whole.node[0, N_KCOMPACTD_ORDER] == 0
    mem, mm = half_full(kernel)
    while alloc_huge(mem, mm, 0, 0) != NO_PFN:
        pass
    wakeup_kcompactd(mem, 0, 9)
    assert mem.node[0, N_KCOMPACTD_ORDER] == 9
    kcompactd_do_work(mem, 0)
    assert mem.node[0, N_KCOMPACTD_ORDER] == 0
    assert stat(mem, "compact_daemon_wake") == 1
    assert stat(mem, "compact_daemon_migrate_scanned") == stat(mem, "compact_migrate_scanned") > 0
    assert stat(mem, "compact_stall") == 0
    assert mem.compact[CC_NR_MIGRATE] == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_proactive_compaction_begins_above_ninety_and_ends_at_eighty(kernel):
    """Kernel.md 6.7: 100 - proactiveness, and ten more; 500 ms, or 32 s after a vain run."""
    mem, _ = half_full(kernel)
    assert fragmentation_score_node(mem, 0) > 90
    assert should_proactive_compact_node(mem, 0)
    mem.tunables[T_COMPACTION_PROACTIVENESS] = 0
    assert not should_proactive_compact_node(mem, 0)
    mem.tunables[T_COMPACTION_PROACTIVENESS] = 20
    assert proactive_compact_node(mem, 0)
    assert 60 < fragmentation_score_node(mem, 0) <= 90
    assert not should_proactive_compact_node(mem, 0)
    assert CHECK_NS == 500_000_000
    assert BACKED_OFF_NS == 32_000_000_000
    counted = stat(mem, "compact_daemon_migrate_scanned")
    assert (counted > 0) == (kernel == "6.12")


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_merged_page_moves_for_all_that_map_it(kernel):
    mem = new_memory(64 << 8, kernel, 1)
    set_tunable(mem.tunables, "enabled", "never")
    mms = [mm_alloc(mem, 6000, 0, 0, False, i) for i in range(2)]
    for mm in mms:
        assert touch_range(mem, mm, 0, 6000, 1, 1.0, 0, True, 0) == FAULT_OK
        assert madvise_mergeable(mem, mm, 0, 2000)
    for _ in range(4):
        ksm_do_scan(mem, 4000)
    shared = stat(mem, "nr_ksm_pages")
    assert shared > 0
    moves, _ = moved(mem, mms, lambda: compact_node(mem))
    assert len(moves) > 0
    assert stat(mem, "nr_ksm_pages") == shared
    assert np.count_nonzero(mem.ksm_frame[list(moves.values())]) > 0, "no merged page moved"


def test_2_6_38_moves_pages_from_the_zone_s_start_to_its_end():
    """Both scanners begin at the ends at every run; free blocks of order 9 are broken up too."""
    mem = drawn_memory("2.6.38", [("A.A.", M), (".A..", M), ("K...", M), (".", M), (".A", U)])
    where, _ = moved(mem, [OWNER], lambda: compact_node(mem))
    blocks = {(old >> 9, new >> 9) for old, new in where.items()}
    assert {old for old, _ in blocks} >= {0, 1}
    assert {new for _, new in blocks} == {3}  # not 4, which is unmovable, nor 2 before 3 is full
    assert stat(mem, "compact_pages_moved") == len(where) == stat(mem, "pgmigrate_success")
    assert stat(mem, "compact_blocks_moved") >= -(-len(where) // 32)
    assert stat(mem, "compact_pagemigrate_failed") == 0


def test_asynchronous_compaction_of_2_6_38_leaves_pageblocks_alone_that_are_not_movable():
    pictures = [("A.A.", U), *[("A.A.", M)] * 6]
    for mode, sources in ((COMPACT_ASYNC, {1}), (COMPACT_SYNC_LIGHT, {0})):
        mem = drawn_memory("2.6.38", pictures)
        begin(mem, 9, M, mode)
        where, result = moved(mem, [OWNER], lambda mem=mem: compact_zone(mem, 0, 0))
        assert result != COMPACT_SKIPPED
        assert min(old >> 9 for old in where) == min(sources)


def test_a_stall_of_2_6_38_counts_though_no_zone_is_suitable():
    mem = new_memory(4096, "2.6.38", 1)
    mem.zone[0, [Z_WMARK_MIN, Z_WMARK_LOW]] = 1 << 20
    assert alloc_huge(mem, OWNER, 0, GFP_DIRECT) == NO_PFN
    assert stat(mem, "compact_stall") == 2  # asynchronous, then synchronous
    assert stat(mem, "compact_fail") == stat(mem, "compact_success") == 0


@pytest.mark.parametrize("kernel", ["2.6.38", *KERNELS])
def test_pages_of_the_page_cache_move(kernel):
    """kernel.md 6.4: what is on the LRU lists moves, anonymous or file."""
    mem = new_memory(64 << 8, kernel, 1)
    set_tunable(mem.tunables, "enabled", "never")
    mm = mm_alloc(mem, 4096, 0, 0, False, 0)
    for page in range(0, 4096, 32):
        assert touch_range(mem, mm, page, 32, 1, 1.0, 0, True, page) == FAULT_OK
        assert page_cache_fill(mem, 16, False) == 16
    discard_range(mem, mm, 0, 4096)
    for zone in range(3):
        drain_zone_pages(mem, zone)
    in_huge = mem.nr_free[:, :, 9:] @ [1, 2]
    compact_node(mem)
    for zone in range(3):
        drain_zone_pages(mem, zone)
    check_memory(mem)
    assert stat(mem, "nr_file_pages") == 2048
    assert stat(mem, "pgmigrate_success") > 500
    assert (mem.nr_free[:, :, 9:] @ [1, 2]).sum() > in_huge.sum()


@pytest.mark.parametrize("kernel", ["2.6.38", *KERNELS])
def test_pages_of_the_swap_cache_move_and_are_found_again(kernel):
    mem = new_memory(64 << 8, kernel, 1)
    set_tunable(mem.tunables, "enabled", "never")
    assert swapon(mem, 8192)
    mm = mm_alloc(mem, 4096, 0, 0, False, 0)
    assert touch_range(mem, mm, 0, 4096, 1, 1.0, 0, True, 0) == FAULT_OK
    for page in range(0, 4096, 3):
        discard_range(mem, mm, page, 1)
    madvise_pageout(mem, mm, 0, 4096)
    cached = stat(mem, "nr_swapcached")
    compact_node(mem)
    check_memory(mem)
    assert stat(mem, "nr_swapcached") == cached > 2000
    assert stat(mem, "pgmigrate_success") > 300
    assert touch_range(mem, mm, 1, 4094, 3, 1.0, 0, True, 1) == FAULT_OK
    check_memory(mem)
    assert stat(mem, "pswpin") == 0  # all were in the swap cache


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_proactive_run_goes_on_by_slices_and_requests_wait_for_its_end(kernel):
    mem, _ = half_full(kernel)
    assert kcompactd_step(mem, 0) == 0
    moved = stat(mem, "pgmigrate_success")
    assert moved * 2896 < SLICE_NS + 512 * 2896  # hostsim.mm.cost: one migrated page
    mem.node[0, N_KCOMPACTD_ORDER] = 9
    steps = 1
    while mem.node[0, N_KCOMPACTD_ORDER] == 9:
        assert stat(mem, "compact_daemon_wake") == 0
        kcompactd_step(mem, 0)
        check_memory(mem)
        steps += 1
    assert steps > 2
    assert stat(mem, "pgmigrate_success") > moved
    assert stat(mem, "compact_daemon_wake") == 1
