import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.placement import NEVER, ReferencePlacer

from fleet.bench_workload import churn_trace
from fleet.placement import DEFAULT_TUNING, Placer, Tuning, expected_ends
from fleet.plan import Kind
from fleet.policies import POLICIES
from fleet.pool import GROUP_HOSTS, NO_HOST, NO_VM, Gauges
from fleet.trace import make_trace
from hostsim.core.rng import Stream, stream
from hostsim.core.stats import REASON_NAMES

GIB = 262144  # base pages
HALF_HOUR = 1800 * 10**9


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


def model_of(vms, hosts, policy, tuning=DEFAULT_TUNING, nodes=None):
    """Return the plain model, with the predictions and random numbers of the seed."""
    ends = [end for _, end, _, _ in vms]
    if policy == "lifetime-predicted":
        ends = expected_ends(trace_of(vms), tuning).tolist()
    draws = stream(tuning.seed, Stream.PLACEMENT).integers(0, NEVER, len(vms)).tolist()
    return ReferencePlacer(vms, hosts, policy, ends, draws, tuning.choices, nodes)


def observe(placer, gauges):
    placer.observe(Gauges(*(np.array(column) for column in zip(*gauges, strict=True))))


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
    expected = placer._req.expected_end_ns
    for host in range(n):
        vms, vm = [], pool.first_vm[host]
        while vm != NO_VM:
            vms.append(vm)
            vm = placer._req.next_vm[vm]
        assert sorted(vms) == running[where == host].tolist()
        assert pool.last_end_ns[host] == expected[vms].max(initial=0)
    for group in range(pool.group_vcpus.size):
        part = slice(group * GROUP_HOSTS, (group + 1) * GROUP_HOSTS)
        assert pool.group_vcpus[group] == pool.free_vcpus[part].max()
        assert pool.group_pages[group] == pool.free_pages[part].max()
    assert (pool.free_vcpus >= 0).all()
    assert (pool.free_pages >= 0).all()


@st.composite
def stories(draw):
    """Draw VMs, hosts, epoch boundaries and, after each epoch, VMs that die and gauges."""
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
        (
            (s * HALF_HOUR, NEVER if life is None else (s + life) * HALF_HOUR, v, p)
            for s, life, v, p in vms
        ),
        key=lambda vm: vm[0],
    )
    hosts = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=40))
    bounds = sorted(draw(st.sets(st.integers(0, 60), min_size=2, max_size=6)))
    nr_epochs = len(bounds) - 1
    kills = [draw(st.lists(st.integers(0, len(vms) - 1), max_size=4)) for _ in range(nr_epochs)]
    gauge = st.tuples(st.integers(0, 8), st.sampled_from([0, 499, 500, 1000]), st.integers(0, 3))
    some = st.lists(gauge, min_size=len(hosts), max_size=len(hosts))
    gauges = [draw(some) for _ in range(nr_epochs)]
    return vms, hosts, [bound * HALF_HOUR for bound in bounds], kills, gauges


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, max_examples=200)
@given(
    story=stories(),
    choices=st.integers(1, 4),
    seed=st.integers(0, 3),
    some=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3),
)
def test_plans_equal_those_of_the_plain_model(policy, story, choices, seed, some):
    vms, hosts, bounds, kills, gauges = story
    tuning = Tuning(seed, choices)
    nodes = [some[i % len(some)] for i in range(len(hosts))]
    placer = placer_of(vms, hosts, policy, tuning=tuning, host_nodes=np.array(nodes))
    model = model_of(vms, hosts, policy, tuning, nodes)
    for t0, t1, dead, seen in zip(bounds[:-1], bounds[1:], kills, gauges, strict=True):
        expected, turned_away = model.epoch(t0, t1)
        plan = placer.epoch(t0, t1)
        assert commands(plan) == expected
        assert rejections(plan) == turned_away
        placer.kill(np.array(dead, np.int64))
        model.kill(dead)
        observe(placer, seen)
        model.observe(seen)
        check_pool(placer)
        for n, host in enumerate(model.hosts):
            free = np.stack([placer.pool.node_vcpus[n], placer.pool.node_pages[n]], axis=1)
            assert nodes[n] == 1 or free[: nodes[n]].tolist() == host["nodes"]


@settings(deadline=None)
@given(stories(), st.sampled_from(sorted(POLICIES)))
def test_restored_state_places_on_as_the_original(story, policy):
    vms, hosts, bounds, kills, gauges = story
    nodes = np.arange(len(hosts)) % 2 + 1
    placer = placer_of(vms, hosts, policy, host_nodes=nodes)
    placer.epoch(bounds[0], bounds[1])
    placer.kill(np.array(kills[0], np.int64))
    observe(placer, gauges[0])
    state = pickle.loads(pickle.dumps(placer.state()))
    other = placer_of(vms, hosts, policy, host_nodes=nodes)
    other.restore(state)
    check_pool(other)
    for t0, t1 in itertools.pairwise(bounds[1:]):
        for mine, its in zip(placer.epoch(t0, t1), other.epoch(t0, t1), strict=True):
            np.testing.assert_array_equal(mine, its)


def test_restored_next_fit_goes_on_where_it_was():
    vms, hosts = [(0, NEVER, 8, 1), (1, NEVER, 8, 1), (10, NEVER, 1, 1)], [(9, 9)] * 2
    placer = placer_of(vms, hosts, "next-fit")
    placer.epoch(0, 10)
    other = placer_of(vms, hosts, "next-fit")
    other.restore(placer.state())
    assert commands(other.epoch(10, 20)) == [(1, 10, Kind.START, 2)]


@settings(deadline=None)
@given(stories(), st.sampled_from(sorted(POLICIES)))
def test_where_epochs_are_cut_does_not_matter(story, policy):
    vms, hosts, bounds, *_ = story
    whole = placer_of(vms, hosts, policy).epoch(bounds[0], bounds[-1])
    placer, parts = placer_of(vms, hosts, policy), []
    for t0, t1 in itertools.pairwise(bounds):
        parts += commands(placer.epoch(t0, t1))
    assert sorted(parts) == commands(whole)


@settings(deadline=None)
@given(stories(), st.sampled_from(sorted(POLICIES)), st.integers(1, 40))
def test_hosts_that_nobody_needs_change_nothing(story, policy, spare):
    vms, hosts, bounds, *_ = story
    plan = placer_of(vms, hosts, policy).epoch(bounds[0], bounds[-1])
    more = placer_of(vms, [*hosts, *[(9, 9)] * spare], policy).epoch(bounds[0], bounds[-1])
    if plan.rejected.size == 0:
        assert commands(more) == commands(plan)


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


@pytest.mark.parametrize(
    ("policy", "hint"),
    [("worst", "did you mean worst-fit"), ("lifetime", "did you mean lifetime-"), ("x", "known: ")],
)
def test_unknown_policy_is_named_with_the_nearest(policy, hint):
    with pytest.raises(ValueError, match=f"policy '{policy}' is unknown; {hint}"):
        placer_of([(0, 1, 1, 1)], [(1, 1)], policy)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (Tuning(choices=0), "choices 0 must be 1 to 4"),
        (Tuning(choices=5), "choices 5 must be 1 to 4"),
        (Tuning(lifetime_error=-0.1), "lifetime error -0.1 must be 0 to 10"),
        (Tuning(lifetime_error=float("nan")), "lifetime error nan must be 0 to 10"),
    ],
)
def test_numbers_of_policies_out_of_range_are_refused(tuning, message):
    with pytest.raises(ValueError, match=message):
        placer_of([(0, 1, 1, 1)], [(1, 1)], tuning=tuning)


def test_overcommit_beyond_what_can_be_counted_is_refused():
    with pytest.raises(ValueError, match="a host offers 131072, it must be below 131072"):
        placer_of([(0, 1, 1, 1)], [(1, 1)], vcpu_overcommit=2**17)
    placer_of([(0, 1, 1, 1)], [(1, 1)], vcpu_overcommit=2**17 - 1)


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


@pytest.mark.parametrize(
    ("n", "host_sum"), [(10_000, 791_467), (30_000, 3_909_797), (100_000, 19_656_369)]
)
def test_first_fit_agrees_with_an_independent_program_on_a_thousand_hosts(n, host_sum):
    # sums of host numbers by a plain heap-and-scan first fit over 1,000 hosts of 96 / 384 GiB
    trace = churn_trace(100_000)
    arrays = {name: a[:n] for name, a in trace._asdict().items() if isinstance(a, np.ndarray)}
    trace = trace._replace(**arrays)
    placer = Placer(
        trace, np.full(1000, 96, np.int32), np.full(1000, 384 * GIB, np.int64), "first-fit"
    )
    plan = placer.epoch(0, 40 * 86400 * 10**9)
    assert plan.rejected.size == 0
    assert plan.host_id[plan.kind == Kind.START].sum() == host_sum
