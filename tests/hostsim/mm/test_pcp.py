"""Per-CPU lists: runs equal single pages; limits and refills on both sides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagemap import clone, free_lists, is_all_free, pcp_lists

from hostsim.mm.check import check_memory
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    PCP_COUNT,
    PCP_FREE_FACTOR,
    PCP_HIGH,
    Z_FREE,
    Z_PCP_BATCH,
    Z_PCP_HIGH_MAX,
    Z_PCP_HIGH_MIN,
)
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.pcp import (
    decay_pcp,
    drain_zone_pages,
    free_unref_block,
    free_unref_run,
    list_index,
)
from hostsim.mm.slowpath import alloc_pages

ERAS = ["6.1", "6.12"]
NR_PAGES = 4096


def used_memory(kernel, batch, high_min, high_max):
    """A DMA zone all in use, its per-CPU lists empty."""
    mem = new_memory(NR_PAGES, kernel, 1)
    mem.zone[0, [Z_PCP_BATCH, Z_PCP_HIGH_MIN, Z_PCP_HIGH_MAX]] = (batch, high_min, high_max)
    while mem.zone[0, Z_FREE] > 1024:
        alloc_pages(mem, 0, MIGRATE_MOVABLE, 512)
    drain_zone_pages(mem, 0)
    return mem


def state(mem):
    return {
        "zone": mem.zone.tolist(),
        "pcp": pcp_lists(mem),
        "free": free_lists(mem),
        "nr_free": mem.nr_free.tolist(),
    }


def used_frames(mem):
    check = np.ones(NR_PAGES, bool)
    for pb in range(NR_PAGES // 512):
        raw = int(unpacked(mem.pb[pb]).state)
        if raw < 4:
            check[pb * 512 : (pb + 1) * 512] = False
        elif raw == 7:
            bits = np.ascontiguousarray(mem.rec["bits"][mem.pb["a"][pb]]).view(np.uint8)
            check[pb * 512 : (pb + 1) * 512] = np.unpackbits(bits, bitorder="little") == 0
    for frames in pcp_lists(mem).values():
        check[frames] = False
    return check


@given(
    kernel=st.sampled_from(ERAS),
    batch=st.integers(1, 63),
    extra=st.integers(0, 300),
    room=st.integers(0, 500),
    runs=st.lists(
        st.tuples(st.integers(0, NR_PAGES - 1), st.integers(1, 512), st.booleans(), st.booleans()),
        min_size=1,
        max_size=12,
    ),
)
def test_freeing_a_run_equals_freeing_its_pages_one_by_one(kernel, batch, extra, room, runs):
    high_min = 4 * batch + extra
    bulk = used_memory(kernel, batch, high_min, high_min + room)
    single = clone(bulk)
    era = kernel == "6.12"
    used = used_frames(bulk)
    for first, nr, descending, allocate in runs:
        if allocate:  # moves the factors that set the pace
            got = [alloc_pages(mem, 0, MIGRATE_MOVABLE, 3) for mem in (bulk, single)]
            assert got[0] == got[1]
            pfn, taken, step = got[0]
            for i in range(taken):
                used[pfn + i * step] = True
        end = first
        while end < NR_PAGES and used[end] and end - first < nr and end // 512 == first // 512:
            end += 1
        if end == first:
            continue
        used[first:end] = False
        pfn, step = (end - 1, -1) if descending else (first, 1)
        free_unref_run(bulk, pfn, end - first, step, era)
        for i in range(end - first):
            free_unref_run(single, pfn + i * step, 1, step, era)
        assert state(bulk) == state(single)
    check_memory(bulk, unowned=np.flatnonzero(used))


@given(
    kernel=st.sampled_from(ERAS),
    batch=st.integers(1, 63),
    requests=st.lists(st.integers(1, 600), min_size=1, max_size=8),
)
def test_a_bulk_allocation_gives_the_pages_of_single_ones(kernel, batch, requests):
    bulk = new_memory(NR_PAGES, kernel, 1)
    bulk.zone[0, [Z_PCP_BATCH, Z_PCP_HIGH_MIN, Z_PCP_HIGH_MAX]] = (batch, 4 * batch, 9 * batch)
    single = clone(bulk)
    for nr in requests:
        while nr:
            pfn, taken, step = alloc_pages(bulk, 0, MIGRATE_MOVABLE, nr)
            if taken == 0:
                assert alloc_pages(single, 0, MIGRATE_MOVABLE, 1)[1] == 0
                return
            expected = [alloc_pages(single, 0, MIGRATE_MOVABLE, 1)[0] for _ in range(taken)]
            assert [pfn + i * step for i in range(taken)] == expected
            nr -= taken
        assert state(bulk) == state(single)


@pytest.mark.parametrize("kernel", ERAS)
def test_an_empty_list_is_refilled_with_a_batch_in_ascending_order(kernel):
    mem = new_memory(NR_PAGES, kernel, 1)
    mem.zone[0, [Z_PCP_BATCH, Z_PCP_HIGH_MIN, Z_PCP_HIGH_MAX]] = (15, 100, 100)
    assert alloc_pages(mem, 0, MIGRATE_UNMOVABLE, 1) == (0, 1, 1)
    assert pcp_lists(mem)[0, list_index(0, MIGRATE_UNMOVABLE, kernel == "6.12")] == [*range(1, 15)]
    assert mem.zone[0, PCP_COUNT] == 14


@pytest.mark.parametrize("kernel", ERAS)
@pytest.mark.parametrize(("order", "blocks"), [(1, 7), (2, 3), (3, 2), (9, 2)])
def test_higher_orders_are_refilled_with_fewer_blocks_but_two(kernel, order, blocks):
    """rmqueue_bulk of max(batch >> order, 2); batch 15."""
    mem = new_memory(NR_PAGES, kernel, 1)
    mem.zone[0, [Z_PCP_BATCH, Z_PCP_HIGH_MIN, Z_PCP_HIGH_MAX]] = (15, 100, 100)
    alloc_pages(mem, order, MIGRATE_MOVABLE, 1)
    index = list_index(order, MIGRATE_MOVABLE, kernel == "6.12")
    assert len(pcp_lists(mem)[0, index]) == blocks - 1
    assert mem.zone[0, PCP_COUNT] == (blocks - 1) << order


@pytest.mark.parametrize(
    ("kernel", "nr", "left"), [("6.1", 59, 59), ("6.1", 60, 45), ("6.12", 59, 59), ("6.12", 60, 15)]
)
def test_lists_give_pages_back_when_they_reach_the_limit(kernel, nr, left):
    """One batch in 6.1; as many as were just freed, but a batch, in 6.12."""
    mem = used_memory(kernel, 15, 60, 60)
    free = int(mem.zone[0, Z_FREE])
    free_unref_run(mem, 0, nr, 1, kernel == "6.12")
    assert mem.zone[0, PCP_COUNT] == left
    assert mem.zone[0, Z_FREE] == free + nr - left
    if nr == 60:  # from the tail: the pages freed first
        assert pcp_lists(mem)[0, list_index(0, MIGRATE_MOVABLE, kernel == "6.12")][-1] == nr - left


def test_every_emptying_doubles_the_next_one_in_6_1():
    """free_factor: batches of 15, 30, then at most limit - batch."""
    mem = used_memory("6.1", 15, 60, 60)
    lost = []
    for pfn in range(200):
        before = int(mem.zone[0, PCP_COUNT])
        free_unref_run(mem, pfn, 1, 1, False)
        after = int(mem.zone[0, PCP_COUNT])
        if after <= before:
            lost.append(before + 1 - after)
    assert lost[:4] == [15, 30, 45, 45]
    assert mem.zone[0, PCP_FREE_FACTOR] == 2


def test_an_order_3_free_empties_the_lists_of_6_1_while_it_is_freeing():
    mem = used_memory("6.1", 15, 60, 60)
    free_unref_run(mem, 0, 60, 1, False)
    assert mem.zone[0, PCP_FREE_FACTOR] == 1
    free_unref_block(mem, 1024, 3, False)
    assert mem.zone[0, PCP_COUNT] == 0


def test_the_limit_of_6_12_grows_and_decays():
    mem = used_memory("6.12", 15, 60, 400)
    free_unref_run(mem, 0, 512, 1, True)
    grown = int(mem.zone[0, PCP_HIGH])
    assert 60 < grown <= 400
    decay_pcp(mem, 1)
    assert mem.zone[0, PCP_HIGH] == max(
        min(grown - (grown >> 3), grown), int(mem.zone[0, Z_PCP_HIGH_MIN])
    )
    decay_pcp(mem, 100)
    assert mem.zone[0, PCP_HIGH] == 60
    assert mem.zone[0, PCP_COUNT] <= 60


@pytest.mark.parametrize("kernel", ERAS)
def test_draining_makes_memory_whole_again(kernel):
    mem = new_memory(NR_PAGES, kernel, 1)
    blocks = []
    for order in (0, 1, 2, 3, 9):
        pfn, taken, _ = alloc_pages(mem, order, MIGRATE_MOVABLE, 1)
        assert taken == 1
        blocks.append((pfn, order))
    for pfn, order in blocks:
        if order:
            free_unref_block(mem, pfn, order, kernel == "6.12")
        else:
            free_unref_run(mem, pfn, 1, 1, kernel == "6.12")
    check_memory(mem)
    drain_zone_pages(mem, 0)
    check_memory(mem)
    assert is_all_free(mem)
