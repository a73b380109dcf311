"""Page tables made from the memory manager: the same pages in the same frames."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagemap import page_frames

from hostsim.core.units import NO_PFN
from hostsim.mm.check import FrameKind, frame_owner
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.memory import new_memory, set_thp
from hostsim.mm.mmap import ADVICE_NONE, mm_alloc
from hostsim.mm.rmap import KIND_EPT, KIND_PGTABLE
from hostsim.mm.zap import discard_range
from hostsim.mmu.paging import look_up
from hostsim.translation import (
    alloc_upper_tables,
    huge_windows,
    page_tables_of,
    table_frames,
    touch_frames,
)

W = 512


def process(mem, pages, own=0, ept=False):
    mm = mm_alloc(mem, pages, own, ADVICE_NONE, ept, 0)
    if not ept:
        assert alloc_upper_tables(mem, mm, KIND_PGTABLE, 3)
    return mm


def machine(thp="always", pages=16384):
    mem = new_memory(pages, "6.12", 1)
    set_thp(mem, thp, "madvise", True)
    return mem


def frames_by_walk(tables, pages):
    return np.array([look_up(tables, page)[0] for page in range(pages)])


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 8 * W - 1), st.integers(1, 700)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 8 * W - 1), st.integers(1, 700)), max_size=3),
)
def test_every_page_has_the_frame_that_the_memory_manager_gave_it(thp, touches, discards):
    mem = machine("always" if thp else "never")
    mm = process(mem, 6 * W, 2 * W)
    for start, nr in touches:
        end = min(start + nr, 8 * W)
        assert touch_range(mem, mm, start, end - start, 1, 1.0, 0, True, start) == FAULT_OK
    for start, nr in discards:
        discard_range(mem, mm, start, min(nr, 8 * W - start))
    tables = page_tables_of(mem, mm, 4)
    expected = page_frames(mem, mm)
    found = frames_by_walk(tables, 8 * W)
    assert np.array_equal(found, np.where(expected < 0, NO_PFN, expected))


@pytest.mark.parametrize("levels", [4, 5])
def test_tables_lie_in_distinct_table_frames_of_the_process(levels):
    mem = machine()
    mm = process(mem, 4 * W, 2 * W)
    if levels == 5:
        assert alloc_upper_tables(mem, mm, KIND_PGTABLE, 1)
    touch_range(mem, mm, 0, 6 * W, 1, 1.0, 0, True, 0)
    tables = page_tables_of(mem, mm, levels)
    used = tables.frame[: int(tables.root[2])]
    assert len(used) == levels - 1 + 2  # two windows of small pages, four huge ones without
    assert len(set(used.tolist())) == len(used)
    assert {frame_owner(mem, int(pfn)).kind for pfn in used} == {FrameKind.PGTABLE}
    frames = np.empty(64, np.int64)
    assert table_frames(mem, mm, KIND_PGTABLE, frames) == levels - 1 + 6


def test_tables_that_were_not_paid_for_are_refused():
    mem = machine()
    mm = mm_alloc(mem, 4 * W, 0, ADVICE_NONE, False, 0)
    touch_range(mem, mm, 0, 4 * W, 1, 1.0, 0, True, 0)
    with pytest.raises(ValueError, match="table pages"):
        page_tables_of(mem, mm, 4)


@pytest.mark.parametrize("guest_thp", ["always", "never"])
@pytest.mark.parametrize("host_thp", ["always", "never"])
def test_an_ept_backs_all_that_the_guest_uses_at_the_size_of_the_host(guest_thp, host_thp):
    guest = machine(guest_thp, 8192)
    mm = process(guest, 4 * W, W)
    touch_range(guest, mm, 0, 5 * W, 1, 1.0, 0, True, 0)
    tables = page_tables_of(guest, mm, 4)
    host = machine(host_thp)
    vm = process(host, 8192, ept=True)
    frames = np.empty(64, np.int64)
    nr = int(table_frames(guest, mm, KIND_PGTABLE, frames))
    assert touch_frames(guest, mm, frames[:nr], host, vm)
    ept = page_tables_of(host, vm, 4, KIND_EPT)
    backing = page_frames(host, vm)
    level = 2 if host_thp == "always" else 1
    used = [*frames_by_walk(tables, 5 * W), *tables.frame[: int(tables.root[2])]]
    for gfn in used:
        assert look_up(ept, int(gfn)) == (backing[gfn], level)
    found = np.zeros(5, bool)
    for nested in (False, True):
        huge = guest_thp == "always" and (host_thp == "always" or not nested)
        assert huge_windows(tables, ept, nested, found) == (4 if huge else 0)
        assert list(found) == [huge] * 4 + [False]
