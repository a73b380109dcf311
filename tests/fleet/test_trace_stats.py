import numpy as np
import pytest

from fleet.trace import NEVER, make_trace
from fleet.trace_stats import autocorrelation, batches_of, kaplan_meier, trace_stats
from fleet.trace_targets import compare, targets
from hostsim.core.units import NS_PER_HOUR, NS_PER_MIN


def trace_of(vms, span_h=48):
    """Build a trace of (start minute, end minute or None, vcpus, flavour, batch)."""
    start, end, vcpus, flavour, batch = zip(*vms, strict=True)
    return make_trace(
        np.array(start) * NS_PER_MIN,
        np.array([NEVER if e is None else e * NS_PER_MIN for e in end]),
        np.array(vcpus),
        np.full(len(vms), 262144),
        np.array(flavour),
        np.array(batch),
        ("a", "b"),
        span_h * NS_PER_HOUR,
    )


def test_kaplan_meier_without_censoring_is_the_share_that_ended():
    lifetime = np.array([1, 2, 2, 5])
    cdf = kaplan_meier(lifetime, np.zeros(4, bool), np.array([0.5, 1, 2, 4.9, 5, 9]))
    np.testing.assert_allclose(cdf, [0, 0.25, 0.75, 0.75, 1, 1])


def test_kaplan_meier_counts_censored_vms_as_at_risk_until_they_are_lost():
    # textbook product-limit: 1 - 4/5 * 2/3 at 3, unchanged by the censoring at 2 and 4
    lifetime = np.array([1, 2, 2, 3, 4])
    censored = np.array([False, False, True, False, True])
    cdf = kaplan_meier(lifetime, censored, np.array([1, 2, 3, 4.0]))
    np.testing.assert_allclose(cdf, [1 / 5, 2 / 5, 1 - 3 / 5 * 1 / 2, 1 - 3 / 5 * 1 / 2])


def test_kaplan_meier_of_nothing_is_unknown():
    assert np.isnan(kaplan_meier(np.zeros(0, int), np.zeros(0, bool), np.array([1.0]))).all()


def test_autocorrelation_of_a_daily_rhythm_is_high_after_a_day_and_low_after_half():
    series = np.tile(np.r_[np.zeros(12), np.ones(12)], 20)
    assert autocorrelation(series, 24) == pytest.approx(19 / 20)
    assert autocorrelation(series, 12) < -0.9


VMS = [
    (-60, 60, 1, 0, 9),
    (0, 30, 1, 0, 1),
    (0, 40, 2, 1, 1),
    (10, 3000, 4, 1, 2),
    (70, 70 + 90, 1, 0, 3),
]


def test_standing_vms_are_not_arrivals_but_hold_vm_hours():
    stats = trace_stats(trace_of(VMS))
    assert (stats["vms"], stats["standing_vms"], stats["new_vms"]) == (5, 1, 4)
    assert stats["batches"] == 3
    hours = 1 + 0.5 + 40 / 60 + (48 - 10 / 60) + 1.5
    assert stats["vm_hours"] == pytest.approx(hours)
    assert stats["core_hours"] == pytest.approx(1 + 0.5 + 80 / 60 + 4 * (48 - 10 / 60) + 1.5)
    assert stats["concurrent_vms"] == pytest.approx(hours / 48)
    assert stats["vm_hours_above_24h"] == pytest.approx((48 - 10 / 60) / hours)
    assert stats["vm_hours_up_to_1h"] == pytest.approx((0.5 + 40 / 60) / hours)
    assert stats["flavour_share_a"] == 0.5


def test_batches_are_grouped_whatever_their_numbers():
    trace = trace_of(VMS)
    batches = batches_of(trace, np.flatnonzero(trace.start_ns >= 0))
    assert batches.size_vms.tolist() == [2, 1, 1]
    assert batches.is_single.tolist() == [False, True, True]
    assert (batches.start_ns // NS_PER_MIN).tolist() == [0, 10, 70]


def test_what_a_short_or_censored_trace_cannot_tell_is_none():
    stats = trace_stats(trace_of([*VMS, (100, None, 1, 0, 4)], span_h=24))
    assert stats["batch_acf_24h"] is None
    assert stats["mean_lifetime_h"] is None
    assert stats["little_ratio"] is None
    verdict = next(v for v in compare([stats]) if v.target.key == "little_ratio")
    assert (verdict.mean, verdict.passes) == (None, None)


def test_trace_without_arrivals_is_refused():
    with pytest.raises(ValueError, match="0 new arrivals"):
        trace_stats(trace_of([(-60, 60, 1, 0, 9)]))


def test_vms_of_a_batch_end_alike_in_the_same_or_the_next_bin():
    # bins of 5 min up to an hour: 12 and 14 min are one bin, 16 the next, 26 two further
    vms = [(0, 12, 1, 0, 1), (0, 14, 1, 0, 1), (0, 16, 1, 0, 1), (0, 26, 1, 0, 1)]
    assert trace_stats(trace_of(vms))["batch_same_end_ratio"] == pytest.approx(2 / 3)


def test_scale_moves_rate_and_concurrency_and_nothing_else():
    whole, half = list(targets(1.0)), list(targets(0.5))
    moved = {a.key for a, b in zip(whole, half, strict=True) if a != b}
    assert moved == {"vms_per_5min", "concurrent_vms"}


@pytest.mark.parametrize(
    ("value", "passes"), [(0.4719, False), (0.4721, True), (0.4819, True), (0.4821, False)]
)
def test_verdict_follows_the_range(value, passes):
    verdict = compare([{"flavour_share_1c-1.75GiB": value}])[0]
    assert (verdict.passes, verdict.nr_pass) == (passes, int(passes))


def test_verdict_on_several_traces_is_on_their_mean():
    stats = [{"lifetime_ks": value} for value in (0.01, 0.025, None)]
    verdict = next(v for v in compare(stats) if v.target.key == "lifetime_ks")
    assert verdict.mean == pytest.approx(0.0175)
    assert (verdict.passes, verdict.nr_pass) == (True, 1)
