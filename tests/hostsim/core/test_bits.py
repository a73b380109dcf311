from hypothesis import given
from hypothesis import strategies as st

from hostsim.core.bits import weight


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_the_weight_of_a_word(word):
    assert weight(word) == (word & (1 << 64) - 1).bit_count()
