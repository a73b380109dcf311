"""Walks: counts with cold caches, forced cache hits, and everything against a plain model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import (
    FOURS,
    HALVES,
    MACHINES,
    ODD,
    SIZES,
    TINY,
    all_entries,
    empty_ept,
    entries,
    entry_bits,
    fresh,
    plain,
    tables,
)
from reference.tlb import Lru, PlainMmu

from hostsim.core.units import NO_PFN
from hostsim.mmu.coldwalk import cold_walk, nr_references
from hostsim.mmu.paging import look_up, unmap
from hostsim.mmu.tlb import (
    C_L1_HITS,
    C_L2_HITS,
    C_NOT_PRESENT,
    C_READS,
    C_WALKS,
    LEVEL_STRIDE,
    NESTED_TLB,
    NOTHING,
    PWC,
    READ_EPT_DATA,
    READ_EPT_TABLE,
    READ_GUEST,
    invalidate,
    invalidate_vpid,
)
from hostsim.mmu.walker import access_pages, translate

KINDS = ((READ_GUEST, "guest"), (READ_EPT_TABLE, "table"), (READ_EPT_DATA, "data"))
# Guest size, host size -> references with 4/4, 5/4 and 5/5 levels.
NESTED = {
    ("4K", "4K"): (24, 29, 35),
    ("4K", "2M"): (19, 23, 29),
    ("2M", "4K"): (19, 24, 29),
    ("2M", "2M"): (15, 19, 24),
    ("4K", "1G"): (14, 17, 23),
    ("2M", "1G"): (11, 14, 19),
    ("1G", "1G"): (8, 11, 15),
}


@pytest.mark.parametrize("pair", NESTED)
def test_cold_nested_walk(pair):
    assert [nr_references(cold_walk(*pair, g, h)) for g, h in ((4, 4), (5, 4), (5, 5))] == list(
        NESTED[pair]
    )


@pytest.mark.parametrize("guest_levels", [4, 5])
@pytest.mark.parametrize("host_levels", [4, 5])
@pytest.mark.parametrize("guest", range(3))
@pytest.mark.parametrize("host", range(3))
def test_cold_nested_walk_is_the_closed_form(guest_levels, host_levels, guest, host):
    g, h = guest_levels - guest, host_levels - host
    steps = cold_walk(SIZES[guest], SIZES[host], guest_levels, host_levels)
    assert nr_references(steps) == (g + 1) * (h + 1) - 1
    assert [len(step.ept_levels) for step in steps] == [h] * (g + 1)


@pytest.mark.parametrize(("levels", "reads"), [(4, [4, 3, 2]), (5, [5, 4, 3])])
def test_cold_native_walk(levels, reads):
    assert [nr_references(cold_walk(size, None, levels)) for size in SIZES] == reads


@pytest.mark.parametrize(("size", "levels"), [("4K", 4), ("2M", 3)])
def test_levels_that_walk_caches_hold_are_not_read(size, levels):
    """Intel, Agilex 5 SMMU documentation; its one misprint is 2 here."""
    for host_found in range(levels + 1):
        h = levels - host_found
        row = [nr_references(cold_walk(size, size, 4, 4, g, host_found)) for g in range(levels)]
        left = [levels - found for found in range(1, levels)]
        assert row == [levels + (levels + 1) * h, *(g + g * h for g in left)]


@pytest.mark.parametrize(("guest_found", "host_found"), [(4, 0), (0, 5)])
def test_more_levels_found_than_there_are_is_refused(guest_found, host_found):
    with pytest.raises(ValueError, match="levels to find"):
        cold_walk("4K", "4K", 4, 4, guest_found, host_found)


# Small address spaces: leaves by (window of 1 GiB, window of 2 MiB, page), sizes mixed.
sizes = st.integers(0, 2)
places = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), sizes),
    min_size=1,
    max_size=12,
)


def leaves_of(drawn, first_frame):
    """Return non-overlapping leaves, each of its own aligned frames."""
    found = {}
    for gib, window, page, size in drawn:
        key = gib
        leaf_size = found.setdefault(("size", gib), size)
        if leaf_size == 2:
            found["leaf", key, 0, 0] = gib << 18, 2
            continue
        window_size = found.setdefault(("size", gib, window), min(size, leaf_size))
        at = (gib << 18) + (window << 9)
        if window_size == 1:
            found["leaf", gib, window, 0] = at, 1
        else:
            found["leaf", gib, window, page] = at + page, 0
    leaves = [value for key, value in found.items() if key[0] == "leaf"]
    return [(page, size, first_frame + (i << 18)) for i, (page, size) in enumerate(leaves)]


def nested_leaves(guest_leaves, guest_frames, host_sizes):
    """Map all that the guest uses; every GiB of guest-physical memory by one size."""
    found = {}
    gfns = [*guest_frames]
    for _, size, gfn in guest_leaves:
        gfns += [gfn + (offset % (1 << 9 * size)) for offset in (0, 1, 5, 513)]
    for gfn in gfns:
        size = host_sizes[(gfn >> 18) % len(host_sizes)]
        base = gfn >> 9 * size << 9 * size
        found[base] = size, (1 << 27) + base
    return [(page, size, frame) for page, (size, frame) in found.items()]


@st.composite
def spaces(draw):
    leaves = leaves_of(draw(places), 1 << 20)
    levels = draw(st.sampled_from([4, 5]))
    guest = tables(leaves, levels)
    if draw(st.booleans()):
        return leaves, guest, None, None, levels
    frames = [int(f) for f in guest.frame[: int(guest.root[2])]]
    host = nested_leaves(leaves, frames, draw(st.lists(sizes, min_size=1, max_size=4)))
    return leaves, guest, host, tables(host, levels, 1 << 8, 256), levels


def page_of(leaves, pick):
    page, size, _ = leaves[pick % len(leaves)]
    return page + (0, 1, 5, 513)[pick // len(leaves) % 4] % (1 << 9 * size)


def stores(machine):
    made = {}
    for spec in machine.tlbs:
        for size in spec.sizes:
            number = SIZES.index(size)
            made[f"l{spec.level}", number] = made.get(
                (spec.level, spec.name), Lru(spec.entries // spec.ways, spec.ways)
            )
            made[spec.level, spec.name] = made[f"l{spec.level}", number]
    for name in ("pwc", "ept"):
        for level, nr in machine.walk_caches.entries.items():
            ways = machine.walk_caches.ways[level]
            made[name, level - 1] = Lru(nr // ways, ways)
    caches = machine.walk_caches
    made["nested"] = Lru(caches.nested_entries // caches.nested_ways, caches.nested_ways)
    return made


@pytest.mark.parametrize("machine", [TINY, ODD], ids=["tiny", "odd"])
@given(space=spaces(), picks=st.lists(st.integers(0, 1000), max_size=60), studied=st.booleans())
def test_walks_equal_a_plain_model(machine, space, picks, studied):
    leaves, guest, host, ept, levels = space
    mmu = fresh(machine)
    model = PlainMmu(
        plain(leaves, guest, levels),
        None if host is None else plain(host, ept, levels),
        levels,
        stores(machine),
    )
    for pick in picks:
        vpn = page_of(leaves, pick)
        nested = host is not None
        where = guest, ept if nested else empty_ept(), nested
        found = model.access(vpn)
        if studied:
            assert translate(mmu, *where, vpn, 3) == found
        else:
            access_pages(mmu, *where, 3, np.array([vpn]), 1)
    assert mmu.counts[C_L1_HITS] == model.l1
    assert mmu.counts[C_L2_HITS] == model.l2
    assert mmu.counts[C_WALKS] == model.walks
    counted = {
        (name, level): int(mmu.counts[C_READS + kind * LEVEL_STRIDE + level])
        for name, kind in (
            ("guest", READ_GUEST),
            ("table", READ_EPT_TABLE),
            ("data", READ_EPT_DATA),
        )
        for level in range(1, 6)
    }
    assert {key: nr for key, nr in counted.items() if nr} == model.reads


def truth(guest, ept, nested, vpn):
    frame, level = look_up(guest, vpn)
    if not nested or level == 0:
        return frame, level
    host, host_level = look_up(ept, frame)
    return host, min(level, host_level)


@pytest.mark.parametrize("machine", MACHINES)
@given(space=spaces(), picks=st.lists(st.integers(0, 1000), max_size=80), data=st.data())
def test_no_state_of_the_tlb_changes_a_translation(machine, space, picks, data):
    """Also after changes of the tables, once invalidated; and no entry outlives them."""
    leaves, guest, host, ept, _ = space
    nested = host is not None
    if not nested:
        ept = empty_ept()
    mmu = fresh(MACHINES[machine])
    for step, pick in enumerate(picks):
        vpn = page_of(leaves, pick)
        expected, level = truth(guest, ept, nested, vpn)
        assert translate(mmu, guest, ept, nested, vpn, 7) == expected
        if step % 7 == 6:
            where = data.draw(st.sampled_from(["guest", "ept"] if nested else ["guest"]))
            if where == "guest":
                size = unmap(guest, vpn) - 1
                if size >= 0:
                    first = vpn >> 9 * size << 9 * size
                    invalidate(mmu, 7, first, 1 << 9 * size)
                    assert not overlapping(mmu, 7, first, 1 << 9 * size)
            elif level:
                unmap(ept, look_up(guest, vpn)[0])
                invalidate_vpid(mmu, 7)
                assert all(mmu.tag[at] == NOTHING for at in all_entries(mmu))
            after, _ = truth(guest, ept, nested, vpn)
            assert translate(mmu, guest, ept, nested, vpn, 7) == after
            if nested and look_up(guest, vpn)[1] and after == NO_PFN:
                break  # without a host a guest table may be gone too


def overlapping(mmu, vpid, first, nr):
    """Return TLB and combined walk-cache entries that overlap a range."""
    found = []
    for store in range(NESTED_TLB - 6):
        for at in entries(mmu, store):
            tag = int(mmu.tag[at])
            if tag == NOTHING or tag >> 49 != vpid:
                continue
            bits = entry_bits(tag)
            page = (tag & (1 << 45) - 1) << bits
            if page < first + nr and page + (1 << bits) > first:
                found.append(tag)
    return found


def tlb_entries(mmu):
    """Return the places of TLB entries, walk caches and nested TLB left out."""
    return set().union(*(entries(mmu, store) for store in range(PWC)))


@given(spaces(), st.lists(st.integers(0, 1000), min_size=1, max_size=40))
def test_an_entry_is_no_larger_than_both_leaves(space, picks):
    leaves, guest, host, ept, _ = space
    nested = host is not None
    mmu = fresh(TINY)
    for pick in picks:
        vpn = page_of(leaves, pick)
        translate(mmu, guest, ept if nested else empty_ept(), nested, vpn, 7)
        _, level = truth(guest, ept, nested, vpn)
        sizes = [
            size
            for size in range(3)
            for at in tlb_entries(mmu)
            if mmu.tag[at] == ((vpn >> 9 * size) | (size << 45) | (7 << 49))
        ]
        assert sizes
        assert set(sizes) == {level - 1}


@pytest.mark.parametrize("nested", [False, True])
def test_what_nothing_maps_is_not_cached(nested):
    guest = tables([(5, 0, 100)])
    ept = tables([(gfn, 0, gfn + 1000) for gfn in range(1, 5)])
    mmu = fresh(TINY)
    for _ in range(3):
        assert translate(mmu, guest, ept, nested, 6, 1) == NO_PFN
        if nested:
            assert translate(mmu, guest, ept, nested, 5, 1) == NO_PFN  # no EPT leaf for gfn 100
    assert mmu.counts[C_NOT_PRESENT] == mmu.counts[C_WALKS] == (6 if nested else 3)
    access_pages(mmu, guest, ept, nested, 1, np.array([6, 6, 6]), 3)
    assert mmu.counts[C_NOT_PRESENT] == (9 if nested else 6)


def test_vpids_do_not_see_each_other():
    first, second = tables([(5, 0, 100)]), tables([(5, 0, 200)])
    mmu = fresh(HALVES)
    for _ in range(2):
        assert translate(mmu, first, empty_ept(), False, 5, 1) == 100
        assert translate(mmu, second, empty_ept(), False, 5, 2) == 200
    assert mmu.counts[C_L1_HITS] == 2
    assert invalidate(mmu, 1, 5, 1) > 0
    assert overlapping(mmu, 1, 5, 1) == []
    assert overlapping(mmu, 2, 5, 1)
    assert translate(mmu, second, empty_ept(), False, 5, 2) == 200
    assert mmu.counts[C_WALKS] == 2


@given(st.lists(st.integers(0, 7), min_size=1, max_size=200), st.integers(1, 40))
def test_an_access_to_the_page_before_changes_nothing_but_two_counts(picks, repeats):
    """The rule that `access_pages` takes a short cut by, against single translations."""
    leaves = [(page << 9, page & 1, page << 9) for page in range(8)]
    guest = tables(leaves)
    pages = np.repeat([leaves[pick][0] + (pick & 1) * 3 for pick in picks], repeats)
    fast, slow = fresh(TINY), fresh(TINY)
    access_pages(fast, guest, empty_ept(), False, 1, pages, len(pages))
    for page in pages:
        translate(slow, guest, empty_ept(), False, int(page), 1)
    assert np.array_equal(fast.counts, slow.counts)
    assert np.array_equal(fast.tag, slow.tag)
    assert np.array_equal(fast.value, slow.value)


@given(
    st.lists(st.integers(0, 4 * 512 - 1), min_size=1, max_size=200),
    st.integers(0, 15),
    st.integers(0, 15),
    st.integers(0, 15),
    st.integers(0, 15),
)
def test_more_huge_pages_never_mean_more_references_of_a_cold_walk(pages, g1, h1, g2, h2):
    """Every walk by itself: guest and host windows huge as the bits say."""

    def references(guest_huge, host_huge):
        guest = tables(
            [
                leaf
                for w in range(4)
                for leaf in (
                    [(w << 9, 1, (8 + w) << 9)]
                    if guest_huge >> w & 1
                    else [((w << 9) + i, 0, ((8 + w) << 9) + i) for i in range(512)]
                )
            ]
        )
        host = tables(
            [(f, 0, f) for f in range(16)]
            + [
                leaf
                for w in range(4)
                for leaf in (
                    [((8 + w) << 9, 1, w << 9)]
                    if host_huge >> w & 1
                    else [(((8 + w) << 9) + i, 0, (w << 9) + i) for i in range(512)]
                )
            ]
        )
        mmu = fresh(TINY)
        total = []
        for page in dict.fromkeys(pages):
            invalidate_vpid(mmu, 1)
            mmu.counts[:] = 0
            translate(mmu, guest, host, True, page, 1)
            total.append(int(mmu.counts[C_READS:].sum()))
        return total

    few = references(g1 & g2, h1 & h2)
    many = references(g1, h1)
    assert all(m <= f for m, f in zip(many, few, strict=True))


@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize("nested", [False, True])
@given(picks=st.lists(st.integers(0, 13), min_size=1, max_size=80))
def test_entries_keep_their_frames_wherever_they_stand_in_a_set(size, nested, picks):
    """One set of 4, 8 or 12 ways a store, and pages enough to reach every way and leave again."""
    leaves = [(page << 9 * size, size, (40 - page) << 9 * size) for page in range(14)]
    guest = tables(leaves)
    ept = tables([(page << 18, 2, page << 18) for page in range(41)]) if nested else empty_ept()
    mmu = fresh(FOURS)
    for pick in picks:
        page, _, frame = leaves[pick]
        below = 5 if size else 0
        assert translate(mmu, guest, ept, nested, page + below, 1) == frame + below
