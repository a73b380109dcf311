"""Fallback between migratetypes on drawn memories, and the fragmentation indices."""

import numpy as np
import pytest
from pagemap import drawn_memory, free_lists

from hostsim.core.units import NO_PFN
from hostsim.mm.check import check_memory
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    NIL,
    Z_LABEL,
)
from hostsim.mm.pageblock import (
    can_claim,
    fallback_type,
    fragmentation_index,
    fragmentation_score,
    rmqueue,
    rmqueue_fallback,
    unusable_free_index,
)
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.vmstat import EXTFRAG_EVENTS

UNMOV, MOV, RECL = MIGRATE_UNMOVABLE, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE
ERAS = ["6.1", "6.12"]


def label(mem, pb):
    return int(unpacked(mem.pb[pb]).label)


def on_type(mem, pb):
    return int(unpacked(mem.pb[pb]).list_type)


def frames(mem):
    """Free and used frames stay consistent when the test holds what it got."""

    def check(*held):
        check_memory(mem, unowned=np.array([f for pfn, nr in held for f in range(pfn, pfn + nr)]))

    return check


@pytest.mark.parametrize(
    ("wanting", "first", "second"),
    [(UNMOV, RECL, MOV), (MOV, RECL, UNMOV), (RECL, UNMOV, MOV)],
)
def test_fallback_order(wanting, first, second):
    """mm/page_alloc.c fallbacks[], the same in 6.1 and 6.12."""
    assert (fallback_type(wanting, 0), fallback_type(wanting, 1)) == (first, second)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("wanting", "first", "second"),
    [(UNMOV, RECL, MOV), (MOV, RECL, UNMOV), (RECL, UNMOV, MOV)],
)
def test_the_first_fallback_type_is_taken_among_equal_blocks(era, wanting, first, second):
    mem = drawn_memory(era, [("........", second), ("*" * 8, MOV), ("........", first), ("*", MOV)])
    pfn, taken = rmqueue(mem, 0, 0, wanting, 1, False)
    assert (pfn, taken) == (2 * 512, 1)
    assert label(mem, 2) == wanting
    frames(mem)((pfn, taken))


@pytest.mark.parametrize(
    ("order", "wanting", "expected"),
    [(3, MOV, False), (4, MOV, True), (0, UNMOV, True), (0, RECL, True), (9, MOV, True)],
)
def test_claiming_needs_half_a_pageblock_order_or_a_kernel_request(order, wanting, expected):
    """should_try_claim_block: order >= pageblock_order / 2, or unmovable or reclaimable."""
    assert can_claim(order, wanting) == expected


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("shares", "flips"), [(32, True), (31, False)])
def test_label_flips_when_half_the_block_is_free(era, shares, flips):
    """Requester unmovable, the rest anonymous: free >= 256 flips, 248 does not."""
    mem = drawn_memory(era, [("." * shares + "A" * (64 - shares), MOV)])
    pfn, taken = rmqueue(mem, 0, 0, UNMOV, 1, False)
    assert taken == 1
    assert label(mem, 0) == (UNMOV if flips else MOV)
    if era == "6.1":  # free pages move in any case
        assert on_type(mem, 0) == UNMOV
    else:  # nothing moves without the label
        assert on_type(mem, 0) == (UNMOV if flips else MOV)
    assert mem.vmstat[EXTFRAG_EVENTS] == 1
    frames(mem)((pfn, 1))


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("anon", "flips"), [(32, True), (33, False)])
def test_compatible_pages_count_for_an_unmovable_request(era, anon, flips):
    """In a movable block what is neither free nor movable is alike: 512 - free - movable."""
    mem = drawn_memory(era, [("." * 8 + "K" * (56 - anon) + "A" * anon, MOV)])
    rmqueue(mem, 0, 0, UNMOV, 1, False)
    assert label(mem, 0) == (UNMOV if flips else MOV)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("anon", "flips"), [(24, True), (23, False)])
def test_movable_pages_count_for_a_movable_request(era, anon, flips):
    """64 free and 192 anonymous make 256; 184 do not."""
    mem = drawn_memory(era, [("." * 8 + "A" * anon + "K" * (56 - anon), UNMOV)])
    rmqueue(mem, 0, 0, MOV, 1, False)
    assert label(mem, 0) == (MOV if flips else UNMOV)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("free", "flips"), [(32, True), (31, False)])
def test_nothing_used_is_alike_for_reclaimable_in_an_unmovable_block(era, free, flips):
    mem = drawn_memory(era, [("." * free + "K" * (64 - free), UNMOV)])
    rmqueue(mem, 0, 0, RECL, 1, False)
    assert label(mem, 0) == (RECL if flips else UNMOV)


@pytest.mark.parametrize("era", ERAS)
def test_a_movable_request_does_not_claim_for_small_blocks(era):
    """Free blocks of order 3 only: one page is taken, label and lists stay."""
    picture = ".K" * 32
    mem = drawn_memory(era, [(picture, UNMOV)])
    pfn, taken = rmqueue(mem, 0, 0, MOV, 8, False)
    assert (pfn, taken) == (0, 1)  # the next request searches anew
    assert label(mem, 0) == on_type(mem, 0) == UNMOV
    assert mem.nr_free[0, MOV].sum() == 0
    assert mem.nr_free[0, UNMOV].tolist() == [1, 1, 1, 31, 0, 0, 0, 0, 0, 0, 0]
    frames(mem)((pfn, 1))


@pytest.mark.parametrize("era", ERAS)
def test_a_movable_request_claims_from_order_4_on(era):
    picture = "..KK" * 16
    mem = drawn_memory(era, [(picture, UNMOV)])
    rmqueue(mem, 0, 0, MOV, 1, False)  # 256 free
    assert label(mem, 0) == on_type(mem, 0) == MOV


@pytest.mark.parametrize("era", ERAS)
def test_a_movable_request_steals_the_smallest_block(era):
    """Nothing claimable: the block of order 1 serves, not the one of order 3."""
    mem = drawn_memory(era, [("." + "K" * 63, UNMOV), (".." + "K" * 254, UNMOV)])
    pfn, _ = rmqueue(mem, 0, 0, MOV, 1, False)
    assert pfn == 512
    frames(mem)((pfn, 1))


@pytest.mark.parametrize(
    ("era", "expected"), [("6.1", 0), ("6.12", 512)], ids=["6.1 largest", "6.12 next order"]
)
def test_a_candidate_that_fails_is_left_only_since_6_12(era, expected):
    """Block 0: order 7, but mostly anonymous.  Block 1: order 6, but half of it free."""
    mem = drawn_memory(
        era,
        [("." * 16 + "A" * 48, MOV), ("." * 8 + "K" * 8 + "." * 8 + "K" * 8 + "K" * 32, MOV)],
    )
    pfn, _ = rmqueue(mem, 0, 0, UNMOV, 1, False)
    assert pfn == expected
    assert [label(mem, pb) for pb in (0, 1)] == [MOV, UNMOV if era == "6.12" else MOV]
    frames(mem)((pfn, 1))


@pytest.mark.parametrize("era", ERAS)
def test_whole_pageblocks_are_relabelled_without_counting(era):
    mem = drawn_memory(era, [("*", MOV), ("*", MOV), (".", MOV), (".", MOV)])
    assert free_lists(mem)[0, MOV, 10] == [2]
    pfn, taken = rmqueue(mem, 0, 0, UNMOV, 512, False)
    assert (pfn, taken) == (2 * 512, 512)
    assert [label(mem, 2), label(mem, 3)] == [UNMOV, UNMOV]
    assert free_lists(mem)[0, UNMOV, 9] == [3]
    assert mem.zone[0, Z_LABEL + UNMOV] == 2
    frames(mem)((pfn, taken))


@pytest.mark.parametrize("era", ERAS)
def test_nofragment_takes_whole_pageblocks_only(era):
    mem = drawn_memory(era, [("." * 63 + "A", MOV)])
    before = free_lists(mem)
    assert rmqueue_fallback(mem, 0, 0, UNMOV, True) == NIL
    assert free_lists(mem) == before
    assert rmqueue(mem, 0, 0, UNMOV, 1, True)[0] == NO_PFN
    whole = drawn_memory(era, [(".", MOV)])
    assert rmqueue(whole, 0, 0, UNMOV, 1, True) == (0, 1)


@pytest.mark.parametrize("era", ERAS)
def test_moved_pages_go_to_the_tails(era):
    """The claimed pageblock joins behind what the requester's lists already hold."""
    mem = drawn_memory(era, [("...A", MOV), ("." * 16 + "K" * 48, UNMOV)])
    # An order-8 request can't be served by block 1 (order 7), so block 0 is claimed.
    pfn, _ = rmqueue(mem, 0, 8, UNMOV, 1, False)
    assert pfn == 0
    assert free_lists(mem)[0, UNMOV, 7] == [1, 0]
    frames(mem)((pfn, 256))


@pytest.mark.parametrize("era", ERAS)
def test_an_order_too_high_for_every_list_fails_and_changes_nothing(era):
    mem = drawn_memory(era, [("." * 16 + "K" * 48, UNMOV), ("." * 16 + "A" * 48, MOV)])
    before = free_lists(mem)
    assert rmqueue(mem, 0, 8, RECL, 1, False) == (NO_PFN, 0)
    assert free_lists(mem) == before
    assert mem.vmstat[EXTFRAG_EVENTS] == 0


# nr_free by order, then unusable_index and extfrag_index of orders 0..10 and the score, worked
# out by hand from mm/vmstat.c and mm/compaction.c; A is from a running machine.
VECTORS = {
    "A": (
        [155, 130, 25, 83, 83, 42, 23, 17, 22, 23, 73],
        [0, 1, 4, 5, 11, 25, 38, 53, 75, 131, 249],
        [-1000] * 11,
        13,
    ),
    "B": (
        [262144] + [0] * 10,
        [0] + [1000] * 10,
        [-1000, 500, 750, 875, 938, 969, 985, 993, 997, 999, 1000],
        100,
    ),
    "C": (
        [1000, 500, 250, 100, 50, 20, 10, 5, 2, 0, 0],
        [0, 142, 284, 426, 540, 654, 745, 836, 927, 1000, 1000],
        [-1000] * 9 + [993, 996],
        100,
    ),
    "D": (
        [10, 2, 1] + [0] * 8,
        [0, 555, 777] + [1000] * 8,
        [-1000] * 3 + [750, 837, 880, 902, 913, 918, 921, 922],
        100,
    ),
    "E": ([0] * 10 + [256], [0] * 11, [-1000] * 11, 0),
    "F": ([0] * 8 + [512, 0, 0], [0] * 9 + [1000] * 2, [-1000] * 9 + [499, 749], 100),
    "G": ([0] * 11, [1000] * 11, [0] * 11, 0),
}


@pytest.mark.parametrize("name", VECTORS)
def test_fragmentation_indices(name):
    nr_free, unusable, extfrag, score = VECTORS[name]
    counts = np.array(nr_free, np.int64)
    assert [unusable_free_index(counts, order) for order in range(11)] == unusable
    assert [fragmentation_index(counts, order) for order in range(11)] == extfrag
    assert fragmentation_score(counts) == score
