import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestsim.gpa import FOUR_GIB_GFN, frame_of, gfn_of, low_ram_pages, may_be_large, memslots
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER

GIB = 1 << 18
SIZES = st.sampled_from([GIB // 4, GIB, 7 * GIB // 4, 11 * GIB // 4, 7 * GIB // 2, 8 * GIB])


@pytest.mark.parametrize(("quarters", "low"), [(4, GIB), (10, 10 * GIB // 4), (11, 2 * GIB)])
def test_the_hole_begins_at_two_gib_once_there_is_more_than_fits_below(quarters, low):
    assert low_ram_pages(quarters * GIB // 4) == low


def test_slots_of_a_pc():
    assert memslots(GIB) == [(0, 0xA0, 0), (0xC0, 0x40, 0xC0), (0x100, GIB - 0x100, 0x100)]
    assert memslots(8 * GIB)[-1] == (FOUR_GIB_GFN, 6 * GIB, 2 * GIB)


@given(SIZES, st.integers(0, 8 * GIB - 1))
def test_frames_and_guest_physical_pages_are_one_to_one(nr_pages, frame):
    frame %= nr_pages
    gfn = gfn_of(frame, nr_pages)
    assert frame_of(gfn, nr_pages) == frame
    assert gfn == frame or gfn >= FOUR_GIB_GFN
    assert (gfn ^ frame) & (HPAGE_PMD_NR - 1) == 0


@given(SIZES, st.integers(0, 8 * GIB // 512 - 1), st.sampled_from([0, 1, 256, 511]))
def test_a_large_leaf_needs_one_slot_and_equal_alignment(nr_pages, window, offset):
    """KVM: base_gfn XOR (hva >> 12) must be 0 modulo 512, and the range lies in one slot."""
    window %= nr_pages >> HPAGE_PMD_ORDER
    first = gfn_of(window << HPAGE_PMD_ORDER, nr_pages)
    allowed = any(
        slot.base_gfn <= first
        and first + HPAGE_PMD_NR <= slot.base_gfn + slot.nr_pages
        and (slot.base_gfn ^ (offset + slot.frame)) & (HPAGE_PMD_NR - 1) == 0
        for slot in memslots(nr_pages)
    )
    assert may_be_large(window, nr_pages, offset) == allowed


def test_the_first_two_mib_never_have_a_large_leaf():
    assert not may_be_large(0, GIB, 0)
    assert may_be_large(1, GIB, 0)
