"""Statistics of paired runs: intervals, tests, and how many more pairs would do.

Two arms of a comparison see the same arrivals at the same seed (common random numbers), so what
the seed brings cancels in their difference.  The differences of n seeds are n independent draws;
their mean has a Student t interval with n - 1 degrees of freedom.

A comparison looks at a dozen figures at once, and at 5 % each one of twenty would err.  So their
p-values are adjusted together: for each figure two hypotheses can be rejected, "there is no
difference" and "the difference is at least the margin".  They exclude each other, so of the 2 m
hypotheses of m figures at most m are true, and Holm's step-down procedure may multiply by m, less
the figures of which both are rejected, in place of 2 m.  The chance that any of the verdicts is
wrong is then at most 5 %.  The intervals shown are 95 % each, unadjusted.

Source: Holm, Scand. J. Statist. 6 (1979); Shaffer, JASA 81 (1986), section 2; two one-sided tests:
Schuirmann, J. Pharmacokin. Biopharm. 15 (1987), here with both sides at 2.5 %, as the interval.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8  # chance to find what the pairs so far suggest, in `more_pairs`
MOST_PAIRS = 1000


class Paired(NamedTuple):
    """The mean of paired differences, and how sure it is."""

    pairs: int
    mean: float
    error: float | None  # standard error of the mean; None of a single pair
    low: float | None
    high: float | None
    p_difference: float  # of "there is no difference"
    p_margin: float  # of "the difference is at least the margin"


def paired(differences: Sequence[float], margin: float) -> Paired:
    """Return mean, 95 % interval and p-values of paired differences; `margin` is above 0."""
    n, mean = len(differences), float(np.mean(differences))
    if n < 2:
        same = mean == 0.0
        return Paired(n, mean, None, None, None, 1.0, 0.0 if same else 1.0)
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    if error == 0.0:
        p_margin = 0.0 if abs(mean) < margin else 1.0
        return Paired(n, mean, 0.0, mean, mean, float(mean == 0.0), p_margin)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * error
    p_difference = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    p_margin = min(1.0, 2 * float(stats.t.sf((margin - abs(mean)) / error, n - 1)))
    return Paired(n, mean, error, mean - half, mean + half, p_difference, p_margin)


def adjusted(p_values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return p-values that may each be held against 5 %, of all figures together.

    A pair holds the p-values of two hypotheses that cannot both be true.
    """
    flat = sorted(
        (p, row, side) for row, pair in enumerate(p_values) for side, p in enumerate(pair)
    )
    found = [[1.0, 1.0] for _ in p_values]
    seen = [0] * len(p_values)
    may_be_true, least = len(p_values), 0.0
    for p, row, side in flat:
        least = max(least, min(1.0, p * may_be_true))
        found[row][side] = least
        seen[row] += 1
        may_be_true -= seen[row] == 2
    return [(pair[0], pair[1]) for pair in found]


def more_pairs(result: Paired, margin: float, nr_tests: int) -> int | None:
    """Return how many more pairs would probably give a verdict, were the mean as it is now.

    Either that there is a difference or that it is below the margin, whichever is easier to show;
    with the first, strictest level of the adjusted tests.  None if more than `MOST_PAIRS`, or if
    there is nothing to go by.
    """
    if not result.error:
        return None
    deviation = result.error * math.sqrt(result.pairs)
    distance = max(abs(result.mean), margin - abs(result.mean))
    tail = (1 - LEVEL) / 2 / nr_tests
    for n in range(result.pairs + 1, result.pairs + MOST_PAIRS + 1):
        needed = stats.t.ppf(1 - tail, n - 1) + stats.t.ppf(POWER, n - 1)
        if needed * deviation / math.sqrt(n) <= distance:
            return n - result.pairs
    return None
