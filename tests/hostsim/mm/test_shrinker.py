"""The deferred split queue, its shrinker's arithmetic, kswapd and the watermark boost."""

import pytest

from hostsim.mm.check import check_memory
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MM_ANON,
    N_KSWAPD_FAILURES,
    P_BOOSTED,
    P_SPLIT_FIRST,
    P_SPLIT_LEFT,
    P_SPLIT_LEN,
    PCP_COUNT,
    Z_BOOST,
    Z_FREE,
    Z_MANAGED,
    Z_WMARK_HIGH,
    ZONE_DMA32,
)
from hostsim.mm.mmap import mm_alloc, window_word
from hostsim.mm.reclaim import MAX_RECLAIM_RETRIES, run_kswapd, wakeup_kswapd
from hostsim.mm.settings import write_setting
from hostsim.mm.shrinker import deferred_split_scan, do_shrink_slab
from hostsim.mm.split import split_huge_page
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vmstat import NAMES
from hostsim.mm.watermark import boost_watermark, zone_watermark_ok
from hostsim.mm.zap import discard_range, exit_mm

MIB = 256


def counter(mem, name):
    return int(mem.vmstat[NAMES.index(name)])


def queue_of(length, kernel="6.1"):
    """Return a machine with that many huge pages queued, a page of each discarded."""
    mem = new_memory(((length * 2 + 40) // 2 * 2) * MIB, kernel, 1)
    mm = mm_alloc(mem, length * 512, 0, 0, False, 0)
    assert touch_range(mem, mm, 0, length * 512, 1, 1.0, 0, True, 0) == FAULT_OK
    for window in range(length):
        discard_range(mem, mm, window * 512 + 7, 1)
    assert mem.pool[P_SPLIT_LEN] == length
    return mem, mm


def expected_scan(length, priority, left):
    """Work out kernel.md 4.5: what a round scans, and what it leaves for later."""
    delta = 2 * (length >> priority)
    total = min((left >> priority) + delta, 2 * length)
    scanned = 0
    while total >= 128 or total >= length:
        batch = min(128, total)
        scanned += batch
        total -= batch
        if scanned >= length or batch == 0:
            break
    return scanned, min(max(left + delta - scanned, 0), 2 * length)


@pytest.mark.parametrize(
    ("length", "priority", "split"),
    [
        (100, 12, 0),  # below 4096 pages the normal priority yields nothing
        (100, 2, 0),  # delta 50: neither a batch nor the whole queue
        (100, 1, 100),  # delta 100 is the whole queue
        (140, 2, 0),
        (140, 1, 128),  # 140 are due, in batches of 128; 12 are too few
        (140, 0, 140),
    ],
)
def test_a_round_splits_only_whole_batches(length, priority, split):
    mem, _ = queue_of(length)
    assert do_shrink_slab(mem, priority) == split
    assert counter(mem, "thp_split_page") == split
    assert mem.pool[P_SPLIT_LEN] == length - split
    check_memory(mem)


def test_what_a_round_does_not_scan_adds_up():
    mem, _ = queue_of(200)
    left = 0
    for _ in range(3):
        scanned, left = expected_scan(200, 3, left)
        assert scanned == 0
        assert do_shrink_slab(mem, 3) == 0
        assert mem.pool[P_SPLIT_LEFT] == left
    assert left == 3 * 2 * (200 >> 3)


def test_the_queue_is_first_in_first_out_and_a_split_frees_what_nobody_maps():
    mem, mm = queue_of(140)
    first = int(mem.pool[P_SPLIT_FIRST]) - 1
    free = int(mem.zone[:, Z_FREE].sum())
    assert do_shrink_slab(mem, 1) == 128
    assert int(mem.pb["a"][first]) >= 0
    assert mem.pool[P_SPLIT_FIRST] != first + 1
    assert int(mem.zone[:, Z_FREE].sum() + mem.zone[:, PCP_COUNT].sum()) >= free
    assert mem.mm[mm, MM_ANON] == 140 * 511
    exit_mm(mem, mm)
    assert mem.pool[P_SPLIT_LEN] == 0
    check_memory(mem)


def test_a_split_keeps_what_is_mapped_and_counts_once():
    mem = new_memory(32 * MIB, "6.1", 1)
    mm = mm_alloc(mem, 1024, 0, 0, False, 0)
    touch_range(mem, mm, 0, 1024, 1, 1.0, 0, True, 0)
    assert split_huge_page(mem, window_word(mem, mm, 0) >> 2)
    check_memory(mem)
    assert mem.mm[mm, MM_ANON] == 1024
    assert counter(mem, "thp_split_page") == 1
    assert counter(mem, "thp_split_pmd") == 1
    assert counter(mem, "nr_anon_transparent_hugepages") == 1


def test_zero_pages_are_freed_by_a_split_since_6_12():
    for kernel, resident in (("6.1", 512), ("6.12", 3)):
        mem = new_memory(32 * MIB, kernel, 1)
        mm = mm_alloc(mem, 512, 0, 0, False, 0)
        touch_range(mem, mm, 100, 3, 1, 1.0, 0, True, 100)
        split_huge_page(mem, window_word(mem, mm, 0) >> 2)
        assert mem.mm[mm, MM_ANON] == resident
        check_memory(mem)


def test_watermark_boost_vector():
    """kernel.md 1.8: high 20823 -> at most 31234; 61 events give 31232, the 62nd 31234."""
    mem = new_memory(1 << 20, "6.1", 1)
    mem.zone[ZONE_DMA32, Z_WMARK_HIGH] = 20823
    for _ in range(61):
        boost_watermark(mem, ZONE_DMA32)
    assert mem.zone[ZONE_DMA32, Z_BOOST] == 31232
    boost_watermark(mem, ZONE_DMA32)
    boost_watermark(mem, ZONE_DMA32)
    assert mem.zone[ZONE_DMA32, Z_BOOST] == 31234
    assert mem.pool[P_BOOSTED] == 1


def test_no_boost_for_a_small_zone_or_factor_0():
    mem = new_memory(1 << 20, "6.1", 1)
    mem.zone[ZONE_DMA32, Z_MANAGED] = 2047
    boost_watermark(mem, ZONE_DMA32)
    assert mem.zone[ZONE_DMA32, Z_BOOST] == 0
    mem.zone[ZONE_DMA32, Z_MANAGED] = 2048
    set_tunable(mem.tunables, "watermark_boost_factor", "0")
    boost_watermark(mem, ZONE_DMA32)
    assert mem.zone[ZONE_DMA32, Z_BOOST] == 0


def test_a_boost_raises_marks_until_kswapd_has_run():
    mem = new_memory(1 << 20, "6.1", 1)
    mark = int(mem.zone[ZONE_DMA32, Z_FREE]) - 1
    assert zone_watermark_ok(mem, ZONE_DMA32, 0, mark)
    boost_watermark(mem, ZONE_DMA32)
    assert not zone_watermark_ok(mem, ZONE_DMA32, 0, mark)
    wakeup_kswapd(mem, 0, 0, True)
    assert mem.zone[ZONE_DMA32, Z_BOOST] == 0
    assert zone_watermark_ok(mem, ZONE_DMA32, 0, mark)


def test_kswapd_is_hopeless_after_16_runs_without_progress():
    mem = new_memory(32 * MIB, "6.1", 1)
    set_tunable(mem.tunables, "watermark_boost_factor", "0")  # runs for a boost count, too
    mm = mm_alloc(mem, 40 * MIB, 0, 2, False, 0)
    assert touch_range(mem, mm, 0, 40 * MIB, 1, 1.0, 0, True, 0) != FAULT_OK
    assert mem.node[0, N_KSWAPD_FAILURES] == MAX_RECLAIM_RETRIES
    assert counter(mem, "kswapd_high_wmark_hit_quickly") == MAX_RECLAIM_RETRIES - 1
    runs = counter(mem, "pageoutrun")
    wakeup_kswapd(mem, 0, 0, True)
    assert counter(mem, "pageoutrun") == runs
    exit_mm(mem, mm)
    check_memory(mem)
    run_kswapd(mem, 0, 0)


def sparse(kernel, max_ptes_none, *written):
    """Return a machine with huge pages of which so many pages are written each."""
    mem = new_memory(64 * MIB, kernel, 1)
    write_setting(mem, "khugepaged/max_ptes_none", str(max_ptes_none))
    mm = mm_alloc(mem, 512 * len(written), 0, 0, False, 0)
    for window, nr in enumerate(written):
        assert touch_range(mem, mm, window * 512, nr, 1, 1.0, 0, True, window * 512) == FAULT_OK
    return mem, mm


def test_a_huge_page_with_more_zeros_than_max_ptes_none_is_split_and_loses_them():
    """kernel.md 4.6: 412 zeros of 412 allowed stay, 413 do not."""
    mem, mm = sparse("6.12", 412, 100, 99, 512)
    assert mem.pool[P_SPLIT_LEN] == 3
    assert deferred_split_scan(mem, 128) == (1, False)
    check_memory(mem)
    assert counter(mem, "thp_underused_split_page") == 1
    assert counter(mem, "thp_split_page") == 1
    assert counter(mem, "thp_deferred_split_page") == 0
    assert mem.mm[mm, MM_ANON] == 512 + 99 + 512
    assert mem.pool[P_SPLIT_LEN] == 0  # what is not underused is not looked at again


def test_pages_written_later_count():
    mem, mm = sparse("6.12", 412, 50)
    touch_range(mem, mm, 50, 50, 1, 1.0, 0, True, 50)
    assert deferred_split_scan(mem, 128) == (0, True)


def test_with_max_ptes_none_511_no_huge_page_is_underused():
    mem, mm = sparse("6.12", 511, 1, 1)
    assert mem.pool[P_SPLIT_LEN] == 0
    assert mem.mm[mm, MM_ANON] == 1024


def test_lowering_max_ptes_none_lets_huge_pages_mapped_before_be_looked_at():
    mem, mm = sparse("6.12", 511, 1, 512)
    write_setting(mem, "khugepaged/max_ptes_none", "0")
    assert mem.pool[P_SPLIT_LEN] == 2
    check_memory(mem)
    assert deferred_split_scan(mem, 128)[0] == 1
    assert mem.mm[mm, MM_ANON] == 513


def test_an_exit_takes_huge_pages_off_the_queue():
    mem, mm = sparse("6.12", 0, 1, 2, 3)
    exit_mm(mem, mm)
    check_memory(mem)
    assert mem.pool[P_SPLIT_LEN] == 0


def test_shrink_underused_0_switches_it_off():
    mem, _ = sparse("6.12", 511)
    write_setting(mem, "shrink_underused", "0")
    write_setting(mem, "khugepaged/max_ptes_none", "0")
    mm = mm_alloc(mem, 512, 0, 0, False, 1)
    touch_range(mem, mm, 0, 1, 1, 1.0, 0, True, 0)
    assert mem.pool[P_SPLIT_LEN] == 0


@pytest.mark.parametrize("kernel", ["2.6.38", "6.1"])
def test_kernels_before_6_12_have_no_search_for_underused_pages(kernel):
    mem, _ = sparse(kernel, 0, 1, 2)
    assert mem.pool[P_SPLIT_LEN] == 0
    with pytest.raises(ValueError, match="shrink_underused"):
        write_setting(mem, "shrink_underused", "1")
