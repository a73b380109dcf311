"""Samples: pure functions of their class, with tables that have its shares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.mmu_classes import State, all_huge, classes_around

from fleet.hardware import builtin_names, load_cpu
from fleet.mmu_figures import Sampler
from fleet.mmu_sample import (
    SMALL,
    Class,
    Side,
    _accesses,
    _count,
    _count_walks,
    _missed,
    _space,
    footprint_pages,
    map_sample,
    sample,
    small_windows,
)
from hostsim.core.host_columns import MMU_COLUMNS
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mmu.cost import Remote
from hostsim.mmu.cpus import shares_tlb
from hostsim.mmu.paging import look_up, new_page_tables

CPU = "ice-lake-sp"
FIGURE = {column.name: i for i, column in enumerate(MMU_COLUMNS)}
GIB = 1 << 18
STATES = [
    State(CPU, "memcached", 5 * GIB, 4 * GIB, 3 * GIB, 3 * GIB, 3000, 2000),
    State(CPU, "jvm", GIB + 12345, GIB, GIB - 300, GIB - 500, 700, 700),
    State(CPU, "idle", 4000, 0, 0, 0, 9, 0),
    State(CPU, "build-server", 90_000, 80_000, 85_000, 79_000, 300, 300),
]


def row(sampler, state):
    program = np.array([sampler.program(state.cpu, state.workload)])
    (found,) = sampler.figures(program, state.columns()).tolist()
    return found


def figures(sampler, state):
    return dict(zip(FIGURE, row(sampler, state), strict=True))


@pytest.fixture(scope="module")
def sampler():
    return Sampler(1, 16_000)


def test_a_remembered_figure_is_what_a_new_computation_gives(sampler):
    """Bit by bit, in any order, with the memory on and off."""
    off = Sampler(1, 16_000, remember=False)
    first = [row(sampler, state) for state in STATES]
    again = [row(sampler, state) for state in reversed(STATES)][::-1]
    fresh = [row(off, state) for state in reversed(STATES)][::-1]
    assert first == again == fresh
    assert sampler.usage().hits >= len(STATES)
    assert off.usage().hits == 0


def test_another_seed_draws_another_sample():
    key = Class(CPU, "memcached", 36, 3, Side.BOTH, False)
    assert (sample(key, 1, 16_000) != sample(key, 2, 16_000)).any()


SEPARATE = ["haswell", "ice-lake-sp", "nehalem", "skylake-sp"]  # walk caches that share no TLB


@given(
    st.sampled_from(SEPARATE),
    st.sampled_from(["memcached", "idle", "jvm", "xsbench", "build-server"]),
    st.integers(18, 38),
    st.integers(0, len(SMALL) - 1),
    st.sampled_from(Side),
    st.booleans(),
)
@settings(max_examples=40)
def test_tlbs_alone_and_then_the_walks_count_what_single_accesses_do(
    cpu, workload, footprint, small, side, tables_huge
):
    """Every counter of every part, from the same tables."""
    key = Class(cpu, workload, footprint, small, side, tables_huge)
    nr = footprint_pages(footprint)
    pages = _accesses(workload, footprint, 1, 6000).pages.astype(np.int64)
    missed = _missed(cpu, workload, footprint, small, 1, 6000)
    apart = _count_walks(cpu, _space(key, nr, missed.pages, missed.nr_small_windows), missed)
    together = _count(cpu, _space(key, nr, pages, -(-nr // HPAGE_PMD_NR)), pages)
    assert apart.tolist() == together.tolist()


def test_walks_are_counted_apart_only_where_they_are_apart():
    """Zen keeps page-directory entries in its second-level TLB."""
    apart = {name for name in builtin_names() if not shares_tlb(load_cpu(name))}
    assert apart == {*SEPARATE, "cascade-lake", "sapphire-rapids"}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("native", [False, True])
def test_weights_of_the_classes_around_a_state_add_up_to_one(state, native):
    found = classes_around(state, native=native)
    assert sum(weight for _, weight in found) == pytest.approx(1.0)
    assert len({key for key, _ in found}) == len(found)


def test_a_state_on_a_class_has_no_other():
    nr = footprint_pages(40)
    pages = State(CPU, "jvm", nr, nr, nr, nr, 10, 10)
    assert classes_around(pages) == [(Class(CPU, "jvm", 40, 0, Side.GUEST, True), 1.0)]


def test_between_two_classes_a_state_has_the_shares_of_both():
    """The mean of the classes' shares is the state's own, on every axis but the footprint's."""
    state = STATES[0]
    found = classes_around(state)
    small = sum(SMALL[key.small] * weight for key, weight in found)
    assert small == pytest.approx(1 - state.both_huge / state.pages, abs=0.02)
    tables = sum(weight for key, weight in found if key.tables_huge)
    assert tables == pytest.approx(state.tables_huge / state.tables, abs=0.02)


@pytest.mark.parametrize("share", SMALL)
@pytest.mark.parametrize("nr", [64, 1000, 4096])
def test_small_windows_are_a_share_of_any_part(share, nr):
    """A Weyl sequence: in every stretch about as many (discrepancy of order log n / n)."""
    found = small_windows(nr, share)
    assert found.mean() == pytest.approx(share, abs=1.5 / nr)
    for part in np.split(found[: nr - nr % 4], 4):
        assert part.mean() == pytest.approx(share, abs=3.0 / len(part))


@pytest.mark.parametrize("side", [Side.GUEST, Side.HOST, Side.BOTH])
@pytest.mark.parametrize("tables_huge", [True, False])
def test_tables_of_a_sample_have_the_page_sizes_of_its_class(side, tables_huge):
    key = Class(CPU, "memcached", 32, 2, side, tables_huge)
    nr = footprint_pages(32)
    pages = _accesses(key.workload, key.footprint, 1, 5000).pages.astype(np.int64)
    space = _space(key, nr, pages, nr >> HPAGE_PMD_ORDER)
    small = small_windows(len(space.huge), SMALL[2])
    for page in pages:
        here = bool(small[page >> HPAGE_PMD_ORDER])
        frame, level = look_up(space.guest, page)
        _, ept_level = look_up(space.ept, frame)
        assert level == (1 if here and side != Side.HOST else 2)
        assert ept_level == (1 if here and side != Side.GUEST else 2)
    used = np.unique(space.guest.entry[space.guest.entry & 3 == 2] >> 2)
    frames = space.guest.frame[used]
    assert len(np.unique(frames)) == len(frames)
    assert frames.min() >= len(small) << HPAGE_PMD_ORDER
    for frame in frames:
        assert look_up(space.ept, int(frame))[1] == (2 if tables_huge else 1)


@given(
    st.lists(st.integers(0, 8 * HPAGE_PMD_NR - 1), min_size=1, max_size=60),
    st.lists(st.booleans(), min_size=8, max_size=8),
    *[st.booleans()] * 3,
)
def test_pages_are_mapped_at_once_as_one_by_one(
    pages, small, guest_small, host_small, tables_small
):
    """A window that holds a page already takes another as if nothing were known of it."""
    pages, small = np.array(pages), np.array(small)
    sides = guest_small, host_small, tables_small
    together, alone = ([new_page_tables(64, 4, 0) for _ in range(2)] for _ in range(2))
    assert map_sample(*together, pages, small, *sides, np.zeros((8, 2), np.int32))
    for page in pages:
        assert map_sample(*alone, np.array([page]), small, *sides, np.zeros((8, 2), np.int32))
    for one, other in zip(together, alone, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert mine.tolist() == theirs.tolist()


def test_smaller_pages_cost_more_and_the_part_of_each_side_grows_with_it(sampler):
    pages = 2 * GIB
    huge = all_huge(State(CPU, "memcached", pages, 0, 0, 0, 1000, 0))
    guest_small = huge._replace(guest_huge=0, both_huge=0)
    host_small = huge._replace(host_huge=0, both_huge=0, tables_huge=0)
    small = State(CPU, "memcached", pages, 0, 0, 0, 1000, 0)
    found = {
        name: figures(sampler, state)
        for name, state in {
            "huge": huge, "guest": guest_small, "host": host_small, "small": small
        }.items()
    }  # fmt: skip
    assert found["huge"]["slowdown_all_huge"] == 1_000_000
    for name in ("guest", "host"):
        assert (
            found["huge"]["walk_share"] < found[name]["walk_share"] < found["small"]["walk_share"]
        )
    # A TLB entry is small if one side is: the misses are the same wherever it is.
    misses = {found[name]["tlb_misses"] for name in ("guest", "host", "small")}
    assert max(misses) - min(misses) <= 1
    assert found["guest"]["walk_guest_reads"] > found["host"]["walk_guest_reads"]
    assert found["host"]["walk_ept_reads"] > found["guest"]["walk_ept_reads"]
    for one in found.values():
        assert one["slowdown_native"] >= 1_000_000
        assert 0 <= one["walk_guest_reads"] + one["walk_ept_reads"] <= 24_000  # seed.txt: at most


def test_a_longer_sample_has_a_smaller_error():
    key = Class(CPU, "memcached", 38, 3, Side.BOTH, False)
    errors = [sample(key, 1, nr)[1] for nr in (16_000, 256_000)]
    assert errors[1] < errors[0] / 2


def test_a_sample_that_was_warmed_is_not_biased():
    """limits.md 3: cold windows miss more than warm ones; a third of warm-up is enough."""
    key = Class(CPU, "idle", 38, 3, Side.BOTH, False)
    short, long = sample(key, 1, 40_000), sample(key, 1, 1_000_000)
    assert short[0] == pytest.approx(long[0], abs=4 * short[1])


@pytest.mark.parametrize("state", STATES)
def test_memory_on_other_nodes_slows_a_program_by_less_than_its_latency(state, sampler):
    """Every cycle of a run grows by at most remote latency over local latency."""
    ratio = load_cpu(CPU).latency.remote_cycles / load_cpu(CPU).latency.dram_cycles
    near = figures(sampler, state)
    assert near["slowdown_remote"] == 1_000_000
    slowdowns = [near["slowdown_remote"]]
    for parts in (16, 64):
        far = figures(sampler, state._replace(remote=parts, remote_ept=parts))
        slowdowns.append(far["slowdown_remote"])
        assert far["tlb_misses"] == near["tlb_misses"]
        assert far["walk_guest_cycles"] >= near["walk_guest_cycles"]
        assert far["walk_ept_cycles"] >= near["walk_ept_cycles"]
    assert slowdowns == sorted(slowdowns)
    assert slowdowns[-1] <= 1_000_000 * ratio


def test_remote_shares_are_weights_of_four_samples():
    state = STATES[1]._replace(remote=16, remote_ept=32)
    weights = {}
    for key, weight in classes_around(state):
        weights[key.remote] = weights.get(key.remote, 0.0) + weight
    assert weights == {
        Remote(): pytest.approx(0.375),
        Remote(memory=True): pytest.approx(0.125),
        Remote(ept=True): pytest.approx(0.375),
        Remote(memory=True, ept=True): pytest.approx(0.125),
    }
    assert all(not key.remote.ept for key, _ in classes_around(state, native=True))
