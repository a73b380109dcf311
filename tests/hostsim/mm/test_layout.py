"""Layouts: whatever a real zone can have, the plan has too, count for count."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostsim.core.units import (
    MAX_PAGE_ORDER,
    NR_PAGE_ORDERS,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.check import check_memory
from hostsim.mm.layout import ZoneState, fits_in, pageblocks_needed, plan_zone, spread
from hostsim.mm.mm_types import (
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    NR_TYPES,
    Z_FREE,
    Z_LABEL,
    Z_MANAGED,
)
from hostsim.mm.snapshot import lay_memory, memory_of_host
from hostsim.mm.state_spec import StateSpec, ZoneSpec

U, M, R = MIGRATE_UNMOVABLE, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE

# A pageblock of a real zone: its type, and its free frames as runs (first, pages).
RUNS = st.lists(st.tuples(st.integers(0, 511), st.integers(1, 512)), max_size=8)
COMB = st.tuples(st.integers(0, 8), st.integers(1, 511))  # every second block of an order is free
PAGEBLOCK = st.tuples(
    st.sampled_from([U, M, M, R, MIGRATE_HIGHATOMIC]),
    st.one_of(st.just("full"), st.just("free"), RUNS, COMB),
)


def frames_of(content):
    """Return the free frames of a pageblock as an array of 512."""
    free = np.zeros(PAGEBLOCK_NR_PAGES, bool)
    if content == "free":
        free[:] = True
    elif isinstance(content, tuple):
        order, limit = content
        free[:limit] = (np.arange(limit) >> order) & 1 == 1
    elif content != "full":
        for first, pages in content:
            free[first : first + pages] = True
    return free


def state_of(zone, on_types=None):
    """Return what /proc would print of pageblocks, free frames merged as Linux merges them."""
    counts = np.zeros((NR_TYPES, NR_PAGE_ORDERS), np.int64)
    labels = np.array([label for label, _ in zone], np.int64)
    lists = labels if on_types is None else np.array(on_types)
    whole = [frames_of(content).all() for _, content in zone]
    for i, (_, content) in enumerate(zone):
        if whole[i]:
            pair = i ^ 1 < len(zone) and whole[i ^ 1]
            if pair and i & 1 == 0:
                labels[i + 1] = labels[i]  # since 6.10 the two halves have one type
                counts[lists[i], MAX_PAGE_ORDER] += 1
            elif not pair:
                counts[lists[i], PAGEBLOCK_ORDER] += 1
            continue
        left = frames_of(content)
        for order in range(PAGEBLOCK_ORDER):
            pairs = left.reshape(-1, 2)
            merged = pairs.all(axis=1)
            counts[lists[i], order] += int((pairs & ~merged[:, None]).sum())
            left = merged
    return ZoneState(counts, np.bincount(labels, minlength=NR_TYPES).astype(np.int64))


def spec_of(states, nr_nodes=1, spare=0):
    zones = []
    for zone, state in states.items():
        pages = int(state.pageblocks.sum()) << PAGEBLOCK_ORDER
        free = int((state.free.sum(axis=0) << np.arange(NR_PAGE_ORDERS)).sum())
        managed = pages - min(spare, pages - free)
        rows = tuple(tuple(row) for row in state.free.tolist())
        zones.append(ZoneSpec(zone, rows, tuple(state.pageblocks.tolist()), managed, 0))
    return StateSpec(nr_nodes, tuple(zones))


def assert_laid(mem, states):
    for zone, state in states.items():
        assert mem.nr_free[zone].tolist() == state.free.tolist()
        assert mem.zone[zone, Z_LABEL : Z_LABEL + NR_TYPES].tolist() == state.pageblocks.tolist()
    check_memory(mem)


ZONE = st.lists(PAGEBLOCK, min_size=1, max_size=24)
RELAXED = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@RELAXED
@given(dma=ZONE, normal=ZONE, other=ZONE, spare=st.integers(0, 4096))
def test_every_state_of_the_new_kernel_is_laid_exactly(dma, normal, other, spare):
    """Three zones on two nodes, some frames not managed; every validator holds."""
    states = {0: state_of(dma), 2: state_of(normal), 3: state_of(other)}
    spec = spec_of(states, 2, spare)
    mem = memory_of_host(spec, "6.12", 8, 1)
    assert_laid(mem, states)
    assert [int(mem.zone[z, Z_MANAGED]) for z in states] == [z.managed_pages for z in spec.zones]


@RELAXED
@given(zone=ZONE, data=st.data())
def test_before_6_12_lists_may_differ_from_labels(zone, data):
    on_types = [data.draw(st.sampled_from([U, M, R])) for _ in zone]
    for i in range(0, len(on_types) - 1, 2):
        on_types[i + 1] = on_types[i]  # a block of order 10 stands on one list
    state = state_of(zone, on_types)
    assert_laid(memory_of_host(spec_of({2: state}), "6.1", 8, 1), {2: state})


def state(pageblocks, **free):
    """Return a state of free blocks such as U9=1, by type and order."""
    counts = np.zeros((NR_TYPES, NR_PAGE_ORDERS), np.int64)
    for name, number in free.items():
        counts[{"U": U, "M": M, "R": R}[name[0]], int(name[1:])] = number
    labels = np.zeros(NR_TYPES, np.int64)
    for name, number in pageblocks.items():
        labels[{"U": U, "M": M, "R": R}[name]] = number
    return ZoneState(counts, labels)


@pytest.mark.parametrize(
    ("pageblocks", "free"),
    [
        ({"U": 1, "M": 2}, {"M10": 1}),  # the pair begins at an odd pageblock
        ({"U": 2, "M": 2}, {"U9": 2}),  # whole ones of one type beside used ones of another
        ({"M": 1}, {"M9": 1}),  # a neighbour beyond the zone's end
        ({"M": 1}, {"M0": 256}),  # every second page
        ({"M": 2}, {"M8": 1, "M7": 3}),  # thin in turn would put two of order 7 beside order 8
    ],
)
def test_states_that_do_not_fit_type_after_type(pageblocks, free):
    wanted = state(pageblocks, **free)
    mem = lay_memory({2: wanted}, "6.12", 1)
    assert mem.nr_free[2].tolist() == wanted.free.tolist()
    assert mem.zone[2, Z_LABEL : Z_LABEL + NR_TYPES].tolist() == wanted.pageblocks.tolist()


@pytest.mark.parametrize(
    ("blocks", "needed"),
    [({0: 256}, 1), ({0: 257}, 2), ({8: 1, 7: 1, 0: 1}, 1), ({8: 2}, 2), ({8: 1, 7: 3}, 2)],
)
def test_fewest_pageblocks_that_hold_small_blocks(blocks, needed):
    """Of a pageblock at most every second block of an order is free: its buddy is in use."""
    counts = np.zeros(NR_PAGE_ORDERS, np.int64)
    for order, number in blocks.items():
        counts[order] = number
    assert pageblocks_needed(counts) == needed
    assert fits_in(counts, needed)
    assert not fits_in(counts, needed - 1)
    assert spread(counts, needed).sum(axis=0).tolist() == counts[:PAGEBLOCK_ORDER].tolist()


@pytest.mark.parametrize(
    ("pageblocks", "free", "message"),
    [
        ({"M": 2}, {"M8": 3}, "free blocks need 3 pageblocks, there are 2"),
        ({"M": 4}, {"M9": 3}, "3 free blocks of order 9 want neighbours, there are 4"),
        ({"U": 1, "M": 4}, {"U8": 2}, "type Unmovable need 2 pageblocks, there are 1 of it"),
    ],
)
def test_states_that_no_zone_has_are_refused(pageblocks, free, message):
    with pytest.raises(ValueError, match=message):
        plan_zone(state(pageblocks, **free), borrow=False)


def test_small_blocks_are_spread_thinly():
    wanted = state({"M": 4}, M0=3, M3=1)
    plan = plan_zone(wanted, borrow=False)
    assert plan.blocks[:, 0].tolist() == [0, 1, 1, 1]
    assert plan.blocks[:, 3].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(("keep_full", "used"), [(0, 4), (3, 2), (9, 2)])
def test_pageblocks_of_huge_pages_stay_full_while_others_suffice(keep_full, used):
    """Two of order 8 need two pageblocks; spread thinly, four single pages take four."""
    wanted = state({"M": 5}, M8=2, M0=4)._replace(keep_full=keep_full)
    plan = plan_zone(wanted, borrow=False)
    assert int((plan.blocks.sum(axis=1) > 0).sum()) == used


def test_free_pages_are_counted():
    mem = lay_memory({2: state({"M": 5, "U": 1}, M10=1, M9=1, M0=2, U4=1)}, "6.12", 1)
    assert mem.zone[2, Z_FREE] == 1024 + 512 + 2 + 16
