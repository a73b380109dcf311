"""Windows without extents: the same machine, with the pages folded and not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pagemap import page_frames

from hostsim.core.errors import InvariantError
from hostsim.core.units import HPAGE_PMD_NR
from hostsim.mm.check import FrameKind, check_memory, frame_owner
from hostsim.mm.collapse import madvise_collapse
from hostsim.mm.compact_skip import reset_isolation_suitable
from hostsim.mm.compaction import compact_node
from hostsim.mm.fault import touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MM_BASE, P_EXT_LIVE, Z_BLOCKSKIP_FLUSH
from hostsim.mm.mmap import (
    ADVICE_NOHUGE,
    ADVICE_NONE,
    W_HUGE,
    W_TAG,
    folded_pageblock,
    is_folded,
    mm_alloc,
)
from hostsim.mm.mprotect import mprotect
from hostsim.mm.pb_packed import pb_b, repack, unpacked
from hostsim.mm.rmap import EXT_DESCENDING, extents_in, extents_of
from hostsim.mm.split import split_pmd
from hostsim.mm.zap import discard_range, exit_mm

WINDOWS = 12
PAGES = WINDOWS * HPAGE_PMD_NR


def machine(kernel="6.12", keep_lru=False):
    mem = new_memory(1 << 14, kernel, 1, keep_lru=keep_lru)
    for advice in (ADVICE_NOHUGE, ADVICE_NONE):
        mm_alloc(mem, PAGES, 0, advice, False, 0)
    return mem


def touch(mem, mm, start, nr, write=True):
    touch_range(mem, mm, start, nr, 1, 1.0, 0, write, start)


def folded(mem, mm):
    words = mem.windows[mem.mm[mm, MM_BASE] :][:WINDOWS]
    return [window for window, word in enumerate(words.tolist()) if is_folded(word)]


def do(mem, op, mm, start, nr):
    nr = min(nr, PAGES - start)
    if op == "touch":
        touch(mem, mm, start, nr)
    elif op == "fill":
        first = start // HPAGE_PMD_NR * HPAGE_PMD_NR
        touch(mem, mm, first, min(-(-nr // HPAGE_PMD_NR) * HPAGE_PMD_NR, PAGES - first))
    elif op == "read":
        touch(mem, mm, start, nr, write=False)
    elif op == "discard":
        discard_range(mem, mm, start, nr)
    elif op == "compact":
        compact_node(mem)
    elif op == "forget skips":
        for zone in range(len(mem.zone)):
            mem.zone[zone, Z_BLOCKSKIP_FLUSH] = 1
            reset_isolation_suitable(mem, zone)
    elif op == "collapse":
        madvise_collapse(mem, mm, start // 512 * 512, -(-nr // 512) * 512)
    elif op == "split":
        window = start // HPAGE_PMD_NR
        if mem.windows[mem.mm[mm, MM_BASE] + window] & W_TAG == W_HUGE:
            split_pmd(mem, mm, window)
    elif op == "protect":
        mprotect(mem, mm, start, nr, nr % 2 == 0)
    elif op == "fork":
        child = mm_alloc(mem, PAGES, 0, ADVICE_NONE, False, 0)
        copy_mm(mem, mm, child)
        touch(mem, mm, 0, PAGES, write=False)  # what is shared must not be folded
        touch(mem, child, start, nr)
        exit_mm(mem, child)


steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("fill", "fill", "touch", "read", "discard", "compact", "forget skips"),
                *("collapse", "protect", "split", "fork"),
            ]
        ),
        st.integers(0, 1),
        st.integers(0, PAGES - 1),
        st.integers(1, 2500),
    ),
    min_size=1,
    max_size=10,
)


@given(kernel=st.sampled_from(["6.1", "6.12"]), steps=steps)
@settings(max_examples=80, deadline=None)
def test_a_machine_that_folds_does_what_one_does_that_cannot(kernel, steps):
    mems = [machine(kernel, keep_lru) for keep_lru in (True, False)]
    for step in steps:
        for mem in mems:
            do(mem, *step)
            check_memory(mem)
        plain, folding = mems
        assert plain.vmstat.tolist() == folding.vmstat.tolist()
        assert plain.zone.tolist() == folding.zone.tolist()
        assert plain.nr_free.tolist() == folding.nr_free.tolist()
        for column in ("label", "skip"):
            a, b = (getattr(unpacked(mem.pb), column).tolist() for mem in mems)
            assert a == b
        for mm in range(2):
            assert page_frames(plain, mm).tolist() == page_frames(folding, mm).tolist()
    assert folded(plain, 0) == folded(plain, 1) == []


def folded_downward(mem):
    """Fold a window whose frames fall from page to page; return it and its pageblock."""
    touch(mem, 0, 0, PAGES)
    window = folded(mem, 0)[0]
    pb = folded_pageblock(int(mem.windows[mem.mm[0, MM_BASE] + window]))
    mem.ext["flags"][extents_of(mem, pb)] |= EXT_DESCENDING
    touch(mem, 0, window * HPAGE_PMD_NR, HPAGE_PMD_NR)
    assert window in folded(mem, 0)
    return window, pb


def test_a_pageblock_mapped_downward_is_folded_downward():
    mem = machine()
    window, pb = folded_downward(mem)
    frames = np.arange((pb + 1) * HPAGE_PMD_NR - 1, pb * HPAGE_PMD_NR - 1, -1)
    inside = slice(window * HPAGE_PMD_NR, (window + 1) * HPAGE_PMD_NR)
    assert page_frames(mem, 0)[inside].tolist() == frames.tolist()
    owner = frame_owner(mem, int(frames[7]))
    assert owner == (FrameKind.ANON, 0, window * HPAGE_PMD_NR + 7)
    check_memory(mem)
    assert mem.ext["flags"][extents_of(mem, pb)] & EXT_DESCENDING
    assert page_frames(mem, 0)[inside].tolist() == frames.tolist()


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_a_window_folded_downward_is_freed_in_the_order_of_its_extent(kernel):
    mems = [machine(kernel), machine(kernel)]
    for mem in mems:
        window, pb = folded_downward(mem)
    extents_of(mem, pb)  # of the second machine only
    for mem in mems:
        discard_range(mem, 0, window * HPAGE_PMD_NR, HPAGE_PMD_NR)
        touch(mem, 0, window * HPAGE_PMD_NR, HPAGE_PMD_NR // 2)
        check_memory(mem)
    assert page_frames(mems[0], 0).tolist() == page_frames(mems[1], 0).tolist()


def test_a_huge_page_mapped_page_by_page_is_not_folded():
    mem = machine()
    touch(mem, 1, 0, PAGES)
    do(mem, "split", 1, 3 * HPAGE_PMD_NR, 1)
    touch(mem, 1, 0, PAGES)
    assert folded(mem, 1) == []
    check_memory(mem)


def test_whole_pageblocks_are_folded_and_unfold_from_either_side():
    mem = machine()
    touch(mem, 0, 0, PAGES)
    windows = folded(mem, 0)
    assert len(windows) > WINDOWS // 2
    before = int(mem.pool[P_EXT_LIVE])
    words = mem.windows[mem.mm[0, MM_BASE] :]
    pb = folded_pageblock(int(words[windows[0]]))
    owner = frame_owner(mem, pb * HPAGE_PMD_NR + 7)
    assert owner == (FrameKind.ANON, 0, windows[0] * HPAGE_PMD_NR + 7)
    x = extents_of(mem, pb)
    y = extents_in(mem, 0, windows[1])
    assert (mem.ext["nr"][[x, y]] == HPAGE_PMD_NR).all()
    assert mem.pool[P_EXT_LIVE] == before + 2
    assert folded(mem, 0) == windows[2:]
    check_memory(mem)
    touch(mem, 0, 0, PAGES)  # and fold again at the next access
    assert folded(mem, 0) == windows


@pytest.mark.parametrize("field", ["a", "b"])
def test_a_pageblock_that_names_another_window_is_noticed(field):
    mem = machine()
    touch(mem, 0, 0, PAGES)
    word = int(mem.windows[mem.mm[0, MM_BASE] + folded(mem, 0)[0]])
    pb = folded_pageblock(word)
    if field == "a":
        mem.pb["a"][pb] -= 1
    else:
        repack(mem.pb, [pb], b=[pb_b(mem, pb) - 1])
    with pytest.raises(InvariantError, match="of a folded pageblock"):
        check_memory(mem)


def test_a_folded_pageblock_without_its_window_is_noticed():
    mem = machine()
    touch(mem, 0, 0, PAGES)
    mem.windows[mem.mm[0, MM_BASE] + folded(mem, 0)[0]] = np.int32(0)
    with pytest.raises(InvariantError, match="pageblocks that are folded"):
        check_memory(mem)
