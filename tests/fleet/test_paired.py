"""The statistics of paired runs, against theory and draws from known distributions."""

import math

import numpy as np
import pytest
from scipy import stats

from fleet.paired import adjusted, more_pairs, paired
from hostsim.core.rng import Stream, stream

MANY = 2000
SIGMAS = 4.0  # of a binomial count; chance of a false alarm: 6e-5


def draws(pairs, mean, deviation, case=0):
    rng = stream(1, Stream.TRACE_ARRIVALS, case, pairs)
    return rng.normal(mean, deviation, (MANY, pairs))


def within(count, share):
    return abs(count - MANY * share) < SIGMAS * math.sqrt(MANY * share * (1 - share))


@pytest.mark.parametrize("pairs", [2, 3, 10])
def test_intervals_hold_the_true_difference_19_times_of_20(pairs):
    found = [paired(row, 1.0) for row in draws(pairs, 5.0, 2.0)]
    assert within(sum(f.low <= 5.0 <= f.high for f in found), 0.95)
    assert within(sum(f.low > 5.0 for f in found), 0.025)


@pytest.mark.parametrize("pairs", [2, 3, 10])
def test_p_values_of_no_difference_are_uniform(pairs):
    found = [paired(row, 1.0).p_difference for row in draws(pairs, 0.0, 2.0, case=1)]
    assert stats.kstest(found, "uniform").pvalue > 1e-4


def test_differences_at_the_margin_are_called_small_in_one_of_forty_at_most():
    found = [paired(row, 1.0) for row in draws(5, 1.0, 0.1, case=2)]
    assert within(sum(f.p_margin < 0.05 for f in found), 0.025)


def test_interval_is_that_of_the_paired_t_test():
    differences = [1.0, 2.5, 0.5, 3.0]
    reference = stats.ttest_1samp(differences, 0.0)
    found = paired(differences, 1.0)
    interval = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_difference == pytest.approx(reference.pvalue)
    below = stats.ttest_1samp(differences, 4.0, alternative="less").pvalue
    assert paired(differences, 4.0).p_margin == pytest.approx(2 * below)


def test_interval_lies_within_the_margin_exactly_if_its_p_value_says_so():
    found = paired([0.1, 0.3, 0.2], 1.0)
    inside = paired([0.1, 0.3, 0.2], found.high + 1e-9)
    outside = paired([0.1, 0.3, 0.2], found.high - 1e-9)
    assert inside.p_margin < 0.05 < outside.p_margin


def test_equal_differences_have_no_error():
    assert paired([0.0, 0.0], 1.0)[1:] == (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert paired([2.0, 2.0], 1.0)[1:] == (2.0, 0.0, 2.0, 2.0, 0.0, 1.0)


def test_single_pair_has_no_interval():
    found = paired([2.0], 1.0)
    assert (found.mean, found.low, found.high) == (2.0, None, None)
    assert (found.p_difference, found.p_margin) == (1.0, 1.0)


def test_p_values_are_adjusted_by_what_may_still_be_true():
    """Worked by hand: in order .001 (3 may be true), .010 (3; both of the first), .012 (2), ..."""
    found = adjusted([(0.001, 0.010), (0.012, 0.9), (0.5, 0.02)])
    assert found == [
        pytest.approx((0.003, 0.030)),
        pytest.approx((0.030, 1.0)),
        pytest.approx((1.0, 0.04)),
    ]


def test_adjusted_p_values_of_one_figure_are_its_own():
    assert adjusted([(0.03, 1.0)]) == [(0.03, 1.0)]
    assert adjusted([]) == []


def test_verdicts_of_many_figures_are_all_right_19_times_of_20():
    """Ten figures: four without a difference, three at the margin, three far from both."""
    true_mean = np.array([0.0] * 4 + [1.0] * 3 + [3.0] * 3)
    rng = stream(1, Stream.TRACE_ARRIVALS, 3, 0)
    wrong = 0
    for _ in range(MANY):
        rows = rng.normal(true_mean[:, None], 0.4, (10, 6))
        p_values = adjusted([paired(row, 1.0)[-2:] for row in rows])
        wrong += any(
            (mean == 0.0 and p[0] < 0.05) or (mean >= 1.0 and p[1] < 0.05)
            for mean, p in zip(true_mean, p_values, strict=True)
        )
    assert wrong < MANY * 0.05 + SIGMAS * math.sqrt(MANY * 0.05 * 0.95)


@pytest.mark.parametrize(("mean", "deviation"), [(3.0, 2.0), (0.1, 0.8), (0.9, 0.2)])
def test_so_many_more_pairs_find_a_difference_four_times_of_five(mean, deviation):
    shape = np.array([-1.0, 0.0, 1.0]) * deviation  # sample standard deviation: deviation
    more = more_pairs(paired(mean + shape, 1.0), 1.0, nr_tests=1)
    rows = draws(3 + more, mean, deviation, case=4)
    verdicts = [min(paired(row, 1.0)[-2:]) < 0.05 for row in rows]
    assert np.mean(verdicts) > 0.78
    fewer = draws(3 + more - 2, mean, deviation, case=5) if more > 1 else None
    if fewer is not None:
        assert np.mean([min(paired(row, 1.0)[-2:]) < 0.05 for row in fewer]) < 0.85


def test_what_thousands_of_pairs_would_not_show_has_no_number():
    assert more_pairs(paired([-100.0, 0.0, 100.5], 0.01), 0.01, nr_tests=10) is None
    assert more_pairs(paired([1.0], 0.1), 0.1, nr_tests=1) is None
