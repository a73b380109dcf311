import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.placement import NEVER, ReferencePlacer

from fleet.placement import Kind, Placer
from fleet.pool import GROUP_HOSTS, NO_HOST, POLICIES
from fleet.trace import make_trace
from hostsim.core.stats import REASON_NAMES

GIB = 262144  # base pages


def trace_of(vms):
    """Build a trace of (start, end, vcpus, pages), in seconds of a nanosecond each."""
    start, end, vcpus, pages = (np.array(column, np.int64) for column in zip(*vms, strict=True))
    n = start.size
    return make_trace(
        start,
        end,
        vcpus.astype(np.int32),
        pages,
        np.zeros(n, np.int16),
        np.arange(n),
        ("any",),
        100,
    )


def placer_of(vms, hosts, policy="first-fit", **overcommit):
    vcpus, pages = zip(*hosts, strict=True)
    return Placer(
        trace_of(vms), np.array(vcpus, np.int32), np.array(pages, np.int64), policy, **overcommit
    )


def commands(plan):
    rows = zip(plan.host_id, plan.t_ns, plan.kind, plan.vm, strict=True)
    return [tuple(map(int, row)) for row in rows]


def rejections(plan):
    rows = zip(plan.rejected, plan.rejected_t_ns, plan.reject_reason, strict=True)
    return [(int(vm), int(t), REASON_NAMES[reason]) for vm, t, reason in rows]


def check_pool(placer):
    """Recompute the pool from who runs where."""
    pool, trace = placer.pool, placer.trace
    running = np.flatnonzero(placer.host_of != NO_HOST)
    where = placer.host_of[running]
    n = pool.free_vcpus.size
    vcpus = np.bincount(where, trace.vcpus[running], n).astype(np.int64)
    pages = np.bincount(where, trace.memory_pages[running], n).astype(np.int64)
    np.testing.assert_array_equal(pool.free_vcpus, pool.total_vcpus - vcpus)
    np.testing.assert_array_equal(pool.free_pages, pool.total_pages - pages)
    np.testing.assert_array_equal(pool.nr_vms, np.bincount(where, minlength=n))
    for group in range(pool.group_vcpus.size):
        part = slice(group * GROUP_HOSTS, (group + 1) * GROUP_HOSTS)
        assert pool.group_vcpus[group] == pool.free_vcpus[part].max()
        assert pool.group_pages[group] == pool.free_pages[part].max()
    assert (pool.free_vcpus >= 0).all()
    assert (pool.free_pages >= 0).all()


@st.composite
def stories(draw):
    """Draw VMs, hosts, epoch boundaries and, after each epoch, VMs that die."""
    vms = draw(
        st.lists(
            st.tuples(
                st.integers(-5, 40),
                st.one_of(st.integers(1, 25), st.none()),
                st.integers(1, 9),
                st.integers(1, 9),
            ),
            min_size=1,
            max_size=40,
        )
    )
    vms = sorted(
        ((s, NEVER if life is None else s + life, v, p) for s, life, v, p in vms),
        key=lambda vm: vm[0],
    )
    hosts = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=40))
    bounds = sorted(draw(st.sets(st.integers(0, 60), min_size=2, max_size=6)))
    kills = [
        draw(st.lists(st.integers(0, len(vms) - 1), max_size=4)) for _ in range(len(bounds) - 1)
    ]
    return vms, hosts, bounds, kills


@settings(deadline=None)
@given(stories(), st.sampled_from(sorted(POLICIES)))
def test_plans_equal_those_of_the_plain_model(story, policy):
    vms, hosts, bounds, kills = story
    placer, model = placer_of(vms, hosts, policy), ReferencePlacer(vms, hosts, policy)
    for t0, t1, dead in zip(bounds[:-1], bounds[1:], kills, strict=True):
        expected, turned_away = model.epoch(t0, t1)
        plan = placer.epoch(t0, t1)
        assert commands(plan) == expected
        assert rejections(plan) == turned_away
        placer.kill(np.array(dead, np.int64))
        model.kill(dead)
        check_pool(placer)


@settings(deadline=None)
@given(stories(), st.sampled_from(sorted(POLICIES)))
def test_restored_state_places_on_as_the_original(story, policy):
    vms, hosts, bounds, _ = story
    placer = placer_of(vms, hosts, policy)
    placer.epoch(bounds[0], bounds[1])
    state = pickle.loads(pickle.dumps(placer.state()))
    other = placer_of(vms, hosts, policy)
    other.restore(state)
    for t0, t1 in itertools.pairwise(bounds[1:]):
        for mine, its in zip(placer.epoch(t0, t1), other.epoch(t0, t1), strict=True):
            np.testing.assert_array_equal(mine, its)


@settings(deadline=None)
@given(stories(), st.sampled_from(sorted(POLICIES)))
def test_where_epochs_are_cut_does_not_matter(story, policy):
    vms, hosts, bounds, _ = story
    whole = placer_of(vms, hosts, policy).epoch(bounds[0], bounds[-1])
    placer, parts = placer_of(vms, hosts, policy), []
    for t0, t1 in itertools.pairwise(bounds):
        parts += commands(placer.epoch(t0, t1))
    assert sorted(parts) == commands(whole)


def test_vm_that_starts_and_ends_in_one_epoch_has_both_commands():
    plan = placer_of([(1, 4, 1, 1)], [(1, 1)]).epoch(0, 10)
    assert commands(plan) == [(0, 1, Kind.START, 0), (0, 4, Kind.STOP, 0)]


@pytest.mark.parametrize(("start", "placed"), [(4, 0), (5, 1), (6, 1)])
def test_departure_at_or_before_an_arrival_makes_room(start, placed):
    placer = placer_of([(0, 5, 1, 1), (start, 9, 1, 1)], [(1, 1)])
    plan = placer.epoch(0, 8)
    assert (plan.vm[plan.kind == Kind.START] == 1).sum() == placed
    assert plan.rejected.size == 1 - placed


def test_departure_at_the_epochs_end_belongs_to_the_next():
    placer = placer_of([(0, 5, 1, 1)], [(1, 1)])
    assert commands(placer.epoch(0, 5)) == [(0, 0, Kind.START, 0)]
    assert commands(placer.epoch(5, 6)) == [(0, 5, Kind.STOP, 0)]


@pytest.mark.parametrize(
    ("vcpus", "pages", "reason"),
    [
        (4, 8, None),
        (5, 8, "larger_than_any_host"),
        (4, 9, "larger_than_any_host"),
        (5, 9, "larger_than_any_host"),
    ],
)
def test_vm_as_large_as_a_host_fits_and_a_larger_one_is_named_so(vcpus, pages, reason):
    plan = placer_of([(0, NEVER, vcpus, pages)], [(4, 8), (2, 9)]).epoch(0, 1)
    assert [r for _, _, r in rejections(plan)] == ([] if reason is None else [reason])


def test_rejected_vm_has_no_departure():
    placer = placer_of([(0, 9, 1, 1), (1, 5, 1, 1)], [(1, 1)])
    plan = placer.epoch(0, 10)
    assert rejections(plan) == [(1, 1, "no_host_fits")]
    assert commands(plan) == [(0, 0, Kind.START, 0), (0, 9, Kind.STOP, 0)]


def test_standing_population_starts_with_the_first_epoch_in_vm_order():
    vms = [(-9, -3, 1, 1), (-8, NEVER, 1, 1), (-7, 0, 1, 1), (-6, 4, 1, 1)]
    plan = placer_of(vms, [(2, 2)]).epoch(0, 10)
    assert commands(plan) == [(0, 0, Kind.START, 1), (0, 0, Kind.START, 3), (0, 4, Kind.STOP, 3)]


def test_best_fit_prefers_a_used_host_to_an_empty_one_that_fits_better():
    placer = placer_of([(0, NEVER, 6, 1), (1, NEVER, 1, 1)], [(8, 9), (1, 1)], "best-fit")
    placer.epoch(0, 2)
    assert placer.host_of.tolist() == [0, 0]


def test_best_fit_takes_the_lowest_empty_host_when_no_used_one_fits():
    vms = [(0, NEVER, 6, 1), (0, NEVER, 4, 1)]
    placer = placer_of(vms, [(8, 9), (7, 9), (4, 1)], "best-fit")
    placer.epoch(0, 1)
    assert placer.host_of.tolist() == [0, 1]


def test_best_fit_takes_the_used_host_with_fewest_free_vcpus():
    vms = [(0, NEVER, 5, 1), (0, NEVER, 6, 1), (1, NEVER, 2, 1)]
    placer = placer_of(vms, [(8, 9), (8, 9), (8, 9)], "best-fit")
    placer.epoch(0, 2)
    assert placer.host_of.tolist() == [0, 1, 1]


def test_best_fit_breaks_ties_of_vcpus_by_memory_and_then_by_number():
    vms = [(0, NEVER, 5, 2), (0, NEVER, 5, 4), (0, NEVER, 5, 4), (1, NEVER, 1, 1)]
    placer = placer_of(vms, [(8, 9)] * 4, "best-fit")
    placer.epoch(0, 2)
    assert placer.host_of.tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(("overcommit", "placed"), [(1.0, 1), (1.33, 1), (1.34, 2), (2.0, 2)])
def test_vcpu_overcommit_offers_more_rounded_down(overcommit, placed):
    vms = [(0, NEVER, 3, 1), (0, NEVER, 1, 1)]
    placer = placer_of(vms, [(3, 9)], vcpu_overcommit=overcommit)
    assert commands(placer.epoch(0, 1))[:placed] == [(0, 0, Kind.START, n) for n in range(placed)]
    assert placer.pool.nr_vms.tolist() == [placed]


def test_memory_overcommit_offers_more():
    vms = [(0, NEVER, 1, 8), (0, NEVER, 1, 8)]
    assert placer_of(vms, [(9, 8)]).epoch(0, 1).rejected.size == 1
    assert placer_of(vms, [(9, 8)], memory_overcommit=2.0).epoch(0, 1).rejected.size == 0


def test_killed_vm_frees_its_room_and_has_no_departure():
    placer = placer_of([(0, 15, 1, 1), (12, NEVER, 1, 1)], [(1, 1)])
    placer.epoch(0, 10)
    placer.kill(np.array([0, 0]))
    assert commands(placer.epoch(10, 20)) == [(0, 12, Kind.START, 1)]


def test_killing_a_vm_that_left_changes_nothing():
    placer = placer_of([(0, 5, 1, 1), (6, NEVER, 1, 1)], [(1, 1)])
    placer.epoch(0, 10)
    placer.kill(np.array([0]))
    assert placer.pool.nr_vms.tolist() == [1]
    check_pool(placer)


def test_unknown_policy_is_named():
    with pytest.raises(ValueError, match="policy 'worst' is none of first-fit, best-fit"):
        placer_of([(0, 1, 1, 1)], [(1, 1)], "worst")


def test_arrays_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 host_vcpus and 1 host_pages"):
        Placer(trace_of([(0, 1, 1, 1)]), np.ones(2, np.int32), np.ones(1, np.int64), "first-fit")


def test_overcommit_of_zero_is_refused():
    with pytest.raises(ValueError, match="must be above 0"):
        placer_of([(0, 1, 1, 1)], [(1, 1)], vcpu_overcommit=0.0)


def test_epoch_that_does_not_follow_is_refused():
    placer = placer_of([(0, 1, 1, 1)], [(1, 1)])
    placer.epoch(0, 10)
    with pytest.raises(ValueError, match="starts at 11 ns, the last one ended at 10 ns"):
        placer.epoch(11, 20)
    with pytest.raises(ValueError, match="is empty"):
        placer.epoch(10, 10)


def test_state_of_another_pool_is_refused():
    state = placer_of([(0, 1, 1, 1)], [(1, 1)] * 2).state()
    with pytest.raises(ValueError, match="state of 2 hosts and 1 VMs, expected 1 and 1"):
        placer_of([(0, 1, 1, 1)], [(1, 1)]).restore(state)


def workload(n):
    """Churn as other simulators replay it: 100,000 VMs in four days, log-normal lifetimes."""
    rng = np.random.default_rng(7)
    arrive = np.sort(rng.random(100_000) * 4 * 86400)
    life = np.clip(np.exp(np.log(16200) + 2.0 * rng.standard_normal(100_000)), 30, 30 * 86400)
    vcpus = rng.choice([1, 2, 4, 8, 16, 32], 100_000, p=[0.25, 0.30, 0.25, 0.12, 0.06, 0.02])
    gib = vcpus * rng.choice([2, 4, 8], 100_000, p=[0.35, 0.45, 0.20])
    start_ns = np.rint(arrive[:n] * 1000).astype(np.int64) * 1_000_000
    end_ns = start_ns + np.rint(life[:n] * 1000).astype(np.int64) * 1_000_000
    return make_trace(
        start_ns,
        end_ns,
        vcpus[:n].astype(np.int32),
        gib[:n] * GIB,
        np.zeros(n, np.int16),
        np.arange(n),
        ("any",),
        int(start_ns[-1]) + 1,
    )


@pytest.mark.parametrize(
    ("n", "host_sum"), [(10_000, 791_467), (30_000, 3_909_797), (100_000, 19_656_369)]
)
def test_first_fit_agrees_with_an_independent_program_on_a_thousand_hosts(n, host_sum):
    # sums of host numbers by a plain heap-and-scan first fit over 1,000 hosts of 96 / 384 GiB
    placer = Placer(
        workload(n), np.full(1000, 96, np.int32), np.full(1000, 384 * GIB, np.int64), "first-fit"
    )
    plan = placer.epoch(0, 40 * 86400 * 10**9)
    assert plan.rejected.size == 0
    assert plan.host_id[plan.kind == Kind.START].sum() == host_sum
