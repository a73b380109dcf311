"""Brent's method step by step: the root of a function that changes sign, one value at a time.

The caller has the function: it may be a kernel's, without a call from compiled code to Python.

Source: Brent, Algorithms for Minimization Without Derivatives, 1973, chapter 4 (zeroin); the order
of operations, to the last bit of a root, is that of SciPy's brentq with its default tolerances.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import kernel

AT: Final = 0  # where the function's value is wanted, or the root
VALUE: Final = 1  # that value
_AT_BEFORE: Final = 2
_VALUE_BEFORE: Final = 3
_AT_OTHER: Final = 4  # the other end of the bracket
_VALUE_OTHER: Final = 5
_STEP_BEFORE: Final = 6
_STEP: Final = 7
NR_ROOT_FIELDS: Final = 8

TOLERANCE: Final = 2e-12
RELATIVE_TOLERANCE: Final = 8.881784197001252e-16  # four times the spacing of doubles


@kernel
def begin_root(
    s: NDArray[np.float64], low: float, f_low: float, high: float, f_high: float
) -> None:
    """Bracket a root by two places at which the function has different signs, none of them zero."""
    s[:] = 0.0
    s[_AT_BEFORE], s[_VALUE_BEFORE] = low, f_low
    s[AT], s[VALUE] = high, f_high


@kernel
def _interpolated(s: NDArray[np.float64]) -> float:
    """Return the step to where a line or a parabola through the last places has its root."""
    if s[_AT_BEFORE] == s[_AT_OTHER]:
        return -s[VALUE] * (s[AT] - s[_AT_BEFORE]) / (s[VALUE] - s[_VALUE_BEFORE])
    before = (s[_VALUE_BEFORE] - s[VALUE]) / (s[_AT_BEFORE] - s[AT])
    other = (s[_VALUE_OTHER] - s[VALUE]) / (s[_AT_OTHER] - s[AT])
    up = -s[VALUE] * (s[_VALUE_OTHER] * other - s[_VALUE_BEFORE] * before)
    return up / (other * before * (s[_VALUE_OTHER] - s[_VALUE_BEFORE]))


@kernel
def next_place(s: NDArray[np.float64]) -> bool:
    """Move `AT` to where the next value is wanted; False if it is the root.

    The value at the last place stands in `VALUE`.
    """
    if s[_VALUE_BEFORE] != 0.0 and s[VALUE] != 0.0 and (s[_VALUE_BEFORE] < 0.0) != (s[VALUE] < 0.0):
        s[_AT_OTHER], s[_VALUE_OTHER] = s[_AT_BEFORE], s[_VALUE_BEFORE]
        s[_STEP_BEFORE] = s[_STEP] = s[AT] - s[_AT_BEFORE]
    if abs(s[_VALUE_OTHER]) < abs(s[VALUE]):
        s[_AT_BEFORE], s[_VALUE_BEFORE] = s[AT], s[VALUE]
        s[AT], s[VALUE] = s[_AT_OTHER], s[_VALUE_OTHER]
        s[_AT_OTHER], s[_VALUE_OTHER] = s[_AT_BEFORE], s[_VALUE_BEFORE]
    delta = (TOLERANCE + RELATIVE_TOLERANCE * abs(s[AT])) / 2.0
    half = (s[_AT_OTHER] - s[AT]) / 2.0
    if s[VALUE] == 0.0 or abs(half) < delta:
        return False
    step = half
    step_before = half
    if abs(s[_STEP_BEFORE]) > delta and abs(s[VALUE]) < abs(s[_VALUE_BEFORE]):
        tried = _interpolated(s)
        if 2.0 * abs(tried) < min(abs(s[_STEP_BEFORE]), 3.0 * abs(half) - delta):
            step_before = s[_STEP]
            step = tried
    s[_STEP_BEFORE], s[_STEP] = step_before, step
    s[_AT_BEFORE], s[_VALUE_BEFORE] = s[AT], s[VALUE]
    if abs(step) > delta:
        s[AT] += step
    else:
        s[AT] += delta if half > 0.0 else -delta
    return True
