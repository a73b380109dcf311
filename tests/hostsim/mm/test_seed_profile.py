"""What 2.6.38 does otherwise: marks, lists, fallback, splits and copies of huge pages."""

import numpy as np
import pytest
from pagemap import drawn_memory, free_lists

from hostsim.mm.check import check_memory
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.memory import new_memory, pagetypeinfo
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_RESERVE,
    MIGRATE_UNMOVABLE,
    MM_ANON,
    MM_HUGE,
    NR_ZONES,
    PCP_COUNT,
    Z_FREE,
    Z_LABEL,
    Z_MANAGED,
    Z_PCP_BATCH,
    Z_PCP_HIGH_MIN,
    Z_RESERVE,
    Z_WMARK_HIGH,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
)
from hostsim.mm.mmap import ADVICE_NOHUGE, mm_alloc
from hostsim.mm.mprotect import mprotect
from hostsim.mm.page_alloc import free_compound, free_order
from hostsim.mm.pageblock import rmqueue
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.pins import add_pin
from hostsim.mm.slowpath import alloc_huge, alloc_pages
from hostsim.mm.tunables import FALLBACK_2_6_38, T_FALLBACK, set_tunable
from hostsim.mm.vmstat import NR_ANON_PAGES, THP_DEFERRED_SPLIT_PAGE, THP_SPLIT_PAGE
from hostsim.mm.watermark import min_free_kbytes, set_seed_watermarks, zone_watermark_ok
from hostsim.mm.zap import discard_range

WINDOW = 512
UNMOV, MOV, RECL = MIGRATE_UNMOVABLE, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE


def drawn(pageblocks):
    mem = drawn_memory("6.1", pageblocks)
    mem.tunables[T_FALLBACK] = FALLBACK_2_6_38
    return mem


def label(mem, pb):
    return int(unpacked(mem.pb[pb]).label)


@pytest.mark.parametrize(("gib", "kb"), [(4, 67584), (256, 67584), (1024, 67584)])
def test_min_free_kbytes_is_capped_before_thp_raises_it(gib, kb):
    assert min_free_kbytes(gib << 18, 3, thp=True, seed=True) == kb
    assert min_free_kbytes(1 << 28, 3, thp=False, seed=True) == 65536


def test_marks_stand_a_quarter_apart_and_lists_are_small():
    zone = np.zeros((NR_ZONES, Z_LABEL + 8), np.int64)
    zone[:, Z_MANAGED] = (3840, 772917, 163840)
    set_seed_watermarks(zone, 67584, 1)
    mark = int(zone[1, Z_WMARK_MIN])
    assert (int(zone[1, Z_WMARK_LOW]), int(zone[1, Z_WMARK_HIGH])) == (
        mark + mark // 4,
        mark + mark // 2,
    )
    assert (zone[1, Z_PCP_BATCH], zone[1, Z_PCP_HIGH_MIN]) == (31, 186)


@pytest.mark.parametrize(
    ("order", "free", "small", "ok"),
    [
        (0, 1002, 0, False),  # free - 2 must exceed the mark
        (0, 1003, 0, True),
        (9, 2000, 0, True),
        (9, 1513, 0, False),  # 1513 - 513 does not exceed 1000
        (1, 2000, 1497, False),  # half the mark must lie in blocks above order 0
        (1, 2000, 1496, True),
    ],
)
def test_the_check_wants_large_blocks_in_proportion(order, free, small, ok):
    mem = new_memory(16384, "2.6.38", 1)
    zone = 1
    mem.nr_free[zone] = 0
    mem.nr_free[zone, MOV, 0] = small
    mem.nr_free[zone, MOV, 10] = 1
    mem.zone[zone, Z_FREE] = free
    mem.zone[zone, Z_RESERVE] = 0
    assert bool(zone_watermark_ok(mem, zone, order, 1000)) is ok


@pytest.mark.parametrize(
    ("free", "wanting", "moved", "relabelled"),
    [
        (255, RECL, True, False),
        (256, RECL, True, True),
        (8, RECL, True, False),  # any size for a reclaimable request
        (8, UNMOV, False, False),  # none below order 4 for another
        (16, UNMOV, True, False),
    ],
)
def test_a_fallback_moves_a_pageblocks_free_pages_and_relabels_at_half(
    free, wanting, moved, relabelled
):
    """mm/page_alloc.c __rmqueue_fallback, 2.6.38."""
    mem = drawn([("." * free + "A" * (512 - free), MOV)])
    pfn, _ = rmqueue(mem, 0, 0, wanting, 1, False)
    assert pfn >> 9 == 0
    check_memory(mem, unowned=np.array([pfn]))
    held = {t for (zone, t, _), blocks in free_lists(mem).items() if zone == 0 and 0 in blocks}
    assert held == ({wanting} if moved else {MOV})
    assert (label(mem, 0) == wanting) is relabelled


def test_the_reserve_is_reached_last():
    mem = drawn([("........", MIGRATE_RESERVE), ("." + "A" * 511, MOV)])
    first, _ = rmqueue(mem, 0, 0, UNMOV, 1, False)
    assert first >> 9 == 1
    second, _ = rmqueue(mem, 0, 0, UNMOV, 1, False)
    assert second >> 9 == 0
    assert label(mem, 0) == MIGRATE_RESERVE


def test_up_to_two_pageblocks_a_zone_are_kept_back():
    mem = new_memory(16384, "2.6.38", 1)
    check_memory(mem)
    assert mem.zone[1, Z_LABEL + MIGRATE_RESERVE] == 2
    assert any("Reserve" in line for line in pagetypeinfo(mem))


def test_only_single_pages_pass_through_the_per_cpu_lists():
    mem = new_memory(16384, "2.6.38", 1)
    pfn, _, _ = alloc_pages(mem, 2, UNMOV, 1)
    assert mem.zone[:, PCP_COUNT].sum() == 0
    free_order(mem, pfn, 2)
    pb = alloc_huge(mem, 0, 0, 0)
    free_compound(mem, pb)
    assert mem.zone[:, PCP_COUNT].sum() == 0
    pfn, _, _ = alloc_pages(mem, 0, UNMOV, 1)
    assert mem.zone[:, PCP_COUNT].sum() == mem.zone[1, Z_PCP_BATCH] - 1
    check_memory(mem, unowned=np.array([pfn]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("defrag", "defer"), ("defrag", "defer+madvise"), ("use_zero_page", "1")],
)
def test_settings_of_later_kernels_are_refused(name, value):
    mem = new_memory(16384, "2.6.38", 1)
    with pytest.raises(ValueError, match=name):
        set_tunable(mem.tunables, name, value)


def family(mem, windows=2):
    parent = mm_alloc(mem, windows * WINDOW, 0, 0, False, 1)
    assert touch(mem, parent, 0, windows * WINDOW) == FAULT_OK
    child = mm_alloc(mem, windows * WINDOW, 0, 0, False, 1)
    assert copy_mm(mem, parent, child)
    return parent, child


def touch(mem, mm, start, nr):
    return touch_range(mem, mm, start, nr, 1, 1.0, 0, True, start)


def test_a_write_to_a_shared_huge_page_copies_it_whole():
    mem = new_memory(16384, "2.6.38", 1)
    parent, child = family(mem)
    assert touch(mem, child, 5, 1) == FAULT_OK
    check_memory(mem)
    assert mem.vmstat[NR_ANON_PAGES] == 3 * WINDOW
    assert mem.mm[child, MM_HUGE] == mem.mm[parent, MM_HUGE] == 2
    assert mem.vmstat[THP_SPLIT_PAGE] == 0
    assert touch(mem, parent, 5, 1) == FAULT_OK  # alone with it now: no copy
    assert mem.vmstat[NR_ANON_PAGES] == 3 * WINDOW


def test_without_a_huge_page_it_copies_512_small_ones():
    mem = new_memory(16384, "2.6.38", 1)
    set_tunable(mem.tunables, "defrag", "never")  # no compaction to the rescue
    parent, child = family(mem, 1)
    hog = mm_alloc(mem, 32768, 0, ADVICE_NOHUGE, False, 1)
    page = 0
    while touch(mem, hog, page, 64) == FAULT_OK:
        page += 64
    for gap in range(0, page, 2):  # only single pages are free
        discard_range(mem, hog, gap, 1)
    assert touch(mem, child, 5, 1) == FAULT_OK
    check_memory(mem)
    assert (mem.mm[child, MM_HUGE], mem.mm[parent, MM_HUGE]) == (0, 1)
    assert mem.mm[child, MM_ANON] == WINDOW


def test_a_partial_discard_splits_the_page_and_frees_the_part_at_once():
    mem = new_memory(16384, "2.6.38", 1)
    mm = mm_alloc(mem, 2 * WINDOW, 0, 0, False, 1)
    touch(mem, mm, 0, 2 * WINDOW)
    free = int(mem.zone[:, Z_FREE].sum() + mem.zone[:, PCP_COUNT].sum())
    discard_range(mem, mm, 0, 100)
    check_memory(mem)
    assert int(mem.zone[:, Z_FREE].sum() + mem.zone[:, PCP_COUNT].sum()) == free + 100
    assert mem.vmstat[THP_SPLIT_PAGE] == 1
    assert mem.vmstat[THP_DEFERRED_SPLIT_PAGE] == 0


def test_a_split_cannot_fail_even_with_pins_and_splits_every_mapping():
    mem = new_memory(16384, "2.6.38", 1)
    parent, child = family(mem, 1)
    add_pin(mem, parent, 0, 1)
    assert mprotect(mem, parent, 0, 10, True)
    check_memory(mem)
    assert mem.vmstat[THP_SPLIT_PAGE] == 1
    assert mem.mm[child, MM_HUGE] == mem.mm[parent, MM_HUGE] == 0


def test_even_a_read_clears_a_huge_page():
    mem = new_memory(16384, "2.6.38", 1)
    mm = mm_alloc(mem, WINDOW, 0, 0, False, 1)
    assert touch_range(mem, mm, 0, 1, 1, 1.0, 0, False, 0) == FAULT_OK
    assert mem.mm[mm, MM_ANON] == WINDOW
