"""Numbers looked at together are those that one by one would be found."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hostsim.core.jit import kernel
from hostsim.core.lanes import LANES, equal_lanes


@kernel
def call_equal_lanes(array, first, value):
    return equal_lanes(array, first, value)


words = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-1, 2)


@given(st.lists(words, min_size=LANES, max_size=3 * LANES), st.integers(0, 2 * LANES), words)
def test_equal_lanes_are_those_that_equal(row, first, value):
    first = min(first, len(row) - LANES)  # aligned or not
    for wanted in (value, row[first], row[first + LANES - 1]):
        expected = sum((row[first + lane] == wanted) << lane for lane in range(LANES))
        assert call_equal_lanes(np.array(row, np.int64), first, wanted) == expected
