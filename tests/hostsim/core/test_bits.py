import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hostsim.core.bits import lowest_bit, weight
from hostsim.core.jit import kernel


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_the_weight_of_a_word(word):
    assert weight(word) == (word & (1 << 64) - 1).bit_count()


@kernel
def call_lowest_bit(word):
    return lowest_bit(word)


@given(st.integers(0, 63), st.integers(0, (1 << 63) - 1))
def test_the_lowest_bit_is_that_below_which_none_is_set(bit, word):
    word = ((word << 1 | 1) << bit) % (1 << 64)
    assert call_lowest_bit(np.uint64(word).astype(np.int64)) == bit
