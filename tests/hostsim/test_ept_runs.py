"""A guest's access to many pages at once against one page at a time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostsim import ept
from hostsim.core.units import HPAGE_PMD_NR
from hostsim.ept import guest_access
from hostsim.host import new_process
from hostsim.mm.check import check_memory
from hostsim.mm.check_ept import leaf_bits
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MM_BASE, MM_KERNEL, P_EXT_LIVE
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NOHUGE, W_HUGE, W_TAG, is_folded
from hostsim.mm.mmu_notifier import E_SHIFT, add_leaves, is_table, notify
from hostsim.mm.split import split_pmd
from hostsim.mm.tunables import set_tunable
from hostsim.mm.zap import discard_range, exit_mm

WINDOWS = 12
PAGES = WINDOWS * HPAGE_PMD_NR


def machine(kernel, advice, events, keep_lru=True):
    """Return a host and a guest to which a few things have happened."""
    mem = new_memory(1 << 16, kernel, 1, keep_lru=keep_lru)
    set_tunable(mem.tunables, "enabled", "madvise")
    mm, _ = new_process(mem, PAGES, 0, advice, 1, 1)
    for kind, page, nr in events:
        nr = min(nr, PAGES - page)
        window = page // HPAGE_PMD_NR
        if kind == "access":
            guest_access(mem, mm, page, nr, True)
        elif kind == "discard":
            discard_range(mem, mm, page, nr)
        elif kind == "split" and mem.windows[window] & W_TAG == W_HUGE:
            split_pmd(mem, mm, window)
        elif kind == "notify":
            end = min(page + nr, (window + 1) * HPAGE_PMD_NR)
            notify(mem, mm, window, page, end)
    return mem, int(mm)


def mapped(mem, mm):
    """Return counters, and what maps each window and page on both levels, whatever the frames.

    Page tables of the EPT come after all pages of a range, or after those of each page: frames
    are other ones.  That leaves lie over the frames they should is `check_memory`'s to see.
    """
    tables = {}
    for window in range(WINDOWS):
        word = int(mem.ept[mem.mm[mm, MM_BASE] + window])
        if is_table(word):
            tables[window] = leaf_bits(mem, mm, window).tolist()
    row = mem.mm[mm].copy()
    row[MM_KERNEL] = 0  # number of an extent
    words = mem.windows[mem.mm[mm, MM_BASE] :][:WINDOWS] & W_TAG
    leaves = mem.ept[mem.mm[mm, MM_BASE] :][:WINDOWS] & ((1 << E_SHIFT) - 1)
    return mem.vmstat.tolist(), row.tolist(), words.tolist(), leaves.tolist(), tables


events = st.lists(
    st.tuples(
        st.sampled_from(["access", "access", "discard", "split", "notify"]),
        st.integers(0, PAGES - 1),
        st.integers(1, 1500),
    ),
    max_size=6,
)


@pytest.mark.parametrize("advice", [ADVICE_HUGE, ADVICE_NOHUGE])
@given(
    kernel=st.sampled_from(["6.1", "6.12"]),
    before=events,
    start=st.integers(0, PAGES - 1),
    keep_lru=st.booleans(),  # without, windows fold
)
@settings(max_examples=60, deadline=None)
def test_a_range_is_mapped_as_its_pages_one_by_one_are(advice, kernel, before, start, keep_lru):
    whole, mm = machine(kernel, advice, before, keep_lru)
    single, _ = machine(kernel, advice, before, keep_lru)
    assert guest_access(whole, mm, start, PAGES - start, True) == FAULT_OK
    for page in range(start, PAGES):
        assert guest_access(single, mm, page, 1, True) == FAULT_OK
    check_memory(whole)
    check_memory(single)
    assert mapped(whole, mm) == mapped(single, mm)


@given(
    kernel=st.sampled_from(["6.1", "6.12"]),
    touched=st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, 700)), max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_a_fresh_table_gets_the_leaves_of_the_pages_that_are_there(kernel, touched):
    """All at once if the window is whole, else extent by extent: as `ept_access` adds them."""
    found = []
    for in_runs in (True, False):
        mem, mm = machine(kernel, ADVICE_NOHUGE, [("access", 0, 1)], keep_lru=False)
        guest_access(mem, mm, 0, 1, True)
        for page, nr in touched:
            touch_range(mem, mm, page, min(nr, PAGES - page), 1, 1.0, 0, True, page)
        for window in range(WINDOWS):
            first = window * HPAGE_PMD_NR
            if not in_runs or ept._map_tables(mem, mm, window, window + 1) == window:
                assert ept.ept_access(mem, mm, window, first, first + HPAGE_PMD_NR)
        check_memory(mem)
        found.append(mapped(mem, mm))
    assert found[0] == found[1]


def test_a_folded_window_stays_folded_under_its_leaves():
    """Its leaves are summed from the pageblock, and what unmaps all of it looks at no extent."""
    mem, mm = machine("6.12", ADVICE_NOHUGE, [("access", 0, HPAGE_PMD_NR)], keep_lru=False)
    guest_access(mem, mm, HPAGE_PMD_NR, PAGES - HPAGE_PMD_NR, True)
    words = mem.windows[mem.mm[mm, MM_BASE] :][:WINDOWS]
    whole = [window for window in range(WINDOWS) if is_folded(int(words[window]))]
    assert len(whole) > WINDOWS // 2
    check_memory(mem)
    extents = int(mem.pool[P_EXT_LIVE])
    exit_mm(mem, mm)
    assert mem.pool[P_EXT_LIVE] < extents
    check_memory(mem)


@given(
    nr=st.integers(1, 512),
    step=st.sampled_from([1, -1, 2, 7]),
    holes=st.lists(st.tuples(st.integers(0, 511), st.integers(1, 90)), max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_leaves_are_counted_and_summed_word_by_word_as_bit_by_bit(nr, step, holes):
    """`_set_leaves` sums whole words by a formula; a table filled page by page must agree."""
    tables = []
    for one_by_one in (False, True):
        mem, _ = machine("6.12", ADVICE_NOHUGE, [("access", 0, 1)])
        table = int(mem.ept_child[0])
        pfn = 1 << 15
        added = 0
        for first, length in [*holes, (0, nr)]:
            end = min(first + length, 512)
            if one_by_one:
                for page in range(first, end):
                    added += add_leaves(mem, table, page, 1, pfn + page * step, step)
            else:
                added += add_leaves(mem, table, first, end - first, pfn + first * step, step)
        tables.append((added, bytes(mem.ept_table[table]), leaf_bits(mem, 0, 0).tolist()))
    assert tables[0] == tables[1]
