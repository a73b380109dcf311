"""Stores of translations: sharing between page sizes, halves, groups of ways, order of use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import (
    HALVES,
    SIZES,
    ZEN,
    call_fill,
    call_second_level_hit,
    cpu,
    empty_ept,
    entries,
    fresh,
    tables,
    tag_of,
    tlb,
)

from hostsim.mmu.cpus import check_tlb, new_mmu, reach_pages
from hostsim.mmu.tlb import (
    C_L1_HITS,
    G_FIRST,
    L1_TLB,
    L2_TLB,
    NOTHING,
    PWC,
    invalidate,
)
from hostsim.mmu.walker import translate


def held(mmu, store, size, page):
    """Tell whether a store holds a page without marking it used."""
    return tag_of(page, size, 1) in mmu.tag[list(entries(mmu, store))]


@pytest.mark.parametrize("used_again", [False, True])
def test_the_least_recently_used_way_goes(used_again):
    mmu = fresh(cpu(tlb(1, ("4K",), 4, 4), sizes=("4K",)))
    guest = tables([(page, 0, page) for page in range(5)])
    for page in (0, 1, 2, 3, *([0] if used_again else []), 4):
        translate(mmu, guest, empty_ept(), False, page, 1)
    assert held(mmu, L1_TLB, 0, 0) == used_again
    assert held(mmu, L1_TLB, 0, 1) != used_again


@pytest.mark.parametrize("ways", [1, 5, 17])
def test_the_order_of_the_next_store_is_not_taken_for_a_tag(ways):
    mmu = fresh(cpu(tlb(1, ("4K",), ways, ways), tlb(1, ("2M",), 1, 1), sizes=("4K", "2M")))
    guest = tables([(page, 0, page) for page in (0, 8)])
    translate(mmu, guest, empty_ept(), False, 0, 1)
    mmu.tag[mmu.geometry[L1_TLB + 1, G_FIRST]] = tag_of(8, 0, 1)
    translate(mmu, guest, empty_ept(), False, 8, 1)
    assert mmu.counts[C_L1_HITS] == 0


def test_halves_share_4k_pages_by_a_bit_and_keep_the_large_sizes_apart():
    mmu = fresh(HALVES)
    half_a, half_b = entries(mmu, L2_TLB + 1), entries(mmu, L2_TLB + 2)
    assert entries(mmu, L2_TLB) == half_a | half_b
    assert not half_a & half_b
    for page in range(64):
        call_fill(mmu, page, 0, 1, page)
    assert sum(call_second_level_hit(mmu, page, 1) != NOTHING for page in range(64)) == 32
    for page in range(48, 64):
        places = half_b if page & 4 else half_a
        assert tag_of(page, 0, 1) in mmu.tag[list(places)]
    for page in range(64):
        call_fill(mmu, page << 9, 1, 1, page << 9)
    found = [call_second_level_hit(mmu, page << 9, 1) != NOTHING for page in range(64)]
    assert sum(found) == 16  # one half
    assert sum(held(mmu, L2_TLB, 0, page) for page in range(64)) == 16  # untouched half B


def test_halves_that_are_not_alike_are_refused():
    small = tlb(1, SIZES, 4, 4)
    half = tlb(2, ("4K", "2M"), 16, 4)
    for other in (tlb(2, ("4K",), 32, 4), tlb(2, ("4K",), 32, 8), tlb(2, ("4K",), 16, 4, (2,))):
        with pytest.raises(ValueError, match="not alike"):
            new_mmu(cpu(small, half, other))
    with pytest.raises(ValueError, match="not alike"):  # not one behind the other
        new_mmu(cpu(small, half, tlb(2, ("1G",), 4, 4), tlb(2, ("4K",), 16, 4)))


def test_groups_of_ways_limit_a_page_and_let_a_size_fill_the_store():
    mmu = fresh(ZEN)  # 64 entries: 8 sets of 8 ways; 4K in groups of 4, 2M in groups of 2
    same = [page * 16 for page in range(5)]  # one set, one group of four ways
    for page in same:
        call_fill(mmu, page, 0, 1, page)
    assert [held(mmu, L2_TLB, 0, page) for page in same] == [False, True, True, True, True]
    mmu = fresh(ZEN)
    for page in range(64):
        call_fill(mmu, page, 0, 1, page)
    assert all(held(mmu, L2_TLB, 0, page) for page in range(64))
    for page in range(64):
        call_fill(mmu, page << 9, 1, 1, page << 9)
    assert all(held(mmu, L2_TLB, 1, page) for page in range(64))
    assert not any(held(mmu, L2_TLB, 0, page) for page in range(64))


def test_three_groups_are_used_evenly():
    genoa = cpu(tlb(1, SIZES, 8, 8), tlb(2, ("4K", "2M"), 96, 24, group_ways=(8, 6)))
    mmu = fresh(genoa)
    for page in range(96):
        call_fill(mmu, page, 0, 1, page)
    assert all(held(mmu, L2_TLB, 0, page) for page in range(96))


def test_page_directory_entries_share_the_second_level_without_being_mistaken():
    mmu = fresh(ZEN)
    assert mmu.geometry[PWC + 2, G_FIRST] == mmu.geometry[L2_TLB, G_FIRST]
    guest = tables([(0, 0, 77), (512, 1, 1024)])
    assert translate(mmu, guest, empty_ept(), False, 0, 1) == 77
    mmu.tag[list(entries(mmu, L1_TLB))] = NOTHING
    assert translate(mmu, guest, empty_ept(), False, 512 + 9, 1) == 1033
    assert translate(mmu, guest, empty_ept(), False, 0, 1) == 77


@pytest.mark.parametrize("ways", [1, 3, 4, 16, 17])
@given(
    st.integers(0, 41),
    st.lists(st.integers(0, 40), max_size=60),
    st.integers(0, 40),
    st.integers(1, 20),
    st.lists(st.integers(0, 40), max_size=40),
)
def test_the_rest_of_a_set_keeps_its_order_when_some_are_dropped(
    ways, filled, before, first, nr, after
):
    """As if the dropped pages had never been used: a list a set, most recent first."""
    machine = cpu(tlb(1, ("4K",), 2 * ways, ways), sizes=("4K",))
    guest = tables([(page, 0, page) for page in range(41)])
    mmu = fresh(machine)
    sets = [[], []]

    def use(page):
        row = sets[page % 2]
        hit = page in row
        hits = mmu.counts[C_L1_HITS]
        assert translate(mmu, guest, empty_ept(), False, page, 1) == page
        assert mmu.counts[C_L1_HITS] - hits == hit
        row[:] = [page, *(p for p in row if p != page)][:ways]

    for page in (*range(filled), *before):
        use(page)
    dropped = [page for row in sets for page in row if first <= page < first + nr]
    assert invalidate(mmu, 1, first, nr) == len(dropped)
    sets = [[page for page in row if page not in dropped] for row in sets]
    for page in range(41):
        assert held(mmu, L1_TLB, 0, page) == (page in sets[page % 2])
    for page in after:
        use(page)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (tlb(1, ("4K",), 10, 4), "not a multiple"),
        (tlb(1, ("4K",), 12, 4), "no power of two"),
        (tlb(2, ("4K", "2M"), 64, 8, group_ways=(4,)), "for 2 page sizes"),
        (tlb(2, ("4K", "2M"), 64, 8, group_ways=(4, 3)), "groups of 3 ways"),
        (tlb(1, ("4M",), 16, 4), "no page size"),
        (tlb(1, ("4K",), 16, 0), "not a multiple"),
    ],
)
def test_a_wrong_description_is_named(spec, message):
    assert any(message in problem for problem in check_tlb(spec))


def test_a_size_without_a_first_level_is_refused():
    with pytest.raises(ValueError, match="no TLB of level 1 for 1G"):
        new_mmu(cpu(tlb(1, ("4K", "2M"), 8, 8)))
    with pytest.raises(ValueError, match="too many TLBs"):
        new_mmu(cpu(tlb(1, SIZES, 8, 8), tlb(1, ("4K",), 8, 8)))


def test_reach_is_that_of_the_larger_level():
    assert reach_pages(ZEN, "4K") == 64
    assert reach_pages(ZEN, "2M") == 64 * 512
    assert reach_pages(ZEN, "1G") == 8 << 18
