"""Roots: those of SciPy's brentq, to the last bit."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from hostsim.mmu.brent import AT, NR_ROOT_FIELDS, VALUE, begin_root, next_place

FUNCTIONS = {
    "line": lambda x, at: x - at,
    "cubic": lambda x, at: (x - at) ** 3 + 1e-3 * (x - at),
    "kink": lambda x, at: x - at if x < at else 100.0 * (x - at),
    "step": lambda x, at: math.copysign(1.0, x - at),
    "decay": lambda x, at: math.exp(-at) - math.exp(-x),
    "saturating": lambda x, at: math.tanh(x) - math.tanh(at),
}


def root(function, low, high):
    s = np.empty(NR_ROOT_FIELDS)
    begin_root(s, low, function(low), high, function(high))
    seen = []
    while next_place(s):
        seen.append(float(s[AT]))
        s[VALUE] = function(seen[-1])
    return float(s[AT]), seen


@given(st.sampled_from(sorted(FUNCTIONS)), st.floats(-2.9, 17.9))
def test_a_root_is_found_where_brentq_finds_it_and_on_the_same_way(name, at):
    asked = []

    def function(x):
        return FUNCTIONS[name](x, at)

    def noted(x):
        asked.append(x)
        return function(x)

    if function(-3.0) < 0.0 < function(18.0):
        expected = brentq(noted, -3.0, 18.0)
        found, seen = root(function, -3.0, 18.0)
        assert found == expected
        assert seen == asked[2:]
