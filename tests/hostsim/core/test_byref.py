"""State that kernels receive as one pointer is the arrays themselves."""

import pickle
from typing import NamedTuple

import numpy as np
import pytest

from hostsim.core.byref import ByReference
from hostsim.core.jit import kernel

POINT = np.dtype([("x", "i4"), ("y", "i2")])


class _Arrays(NamedTuple):
    flat: np.ndarray
    cube: np.ndarray
    points: np.ndarray


class State(ByReference, _Arrays):
    """One array of each kind."""


@kernel
def total(state, i):
    """Read all three, write two."""
    state.flat[i] += 1
    state.points[i].x = 7
    found = 0
    for a in range(state.cube.shape[0]):
        for b in range(state.cube.shape[1]):
            for c in range(state.cube.shape[2]):
                found += state.cube[a, b, c]
    return found + state.flat.size * 1000 + int(state.points[i].y)


def new_state(nr):
    points = np.zeros(nr, POINT)
    points["y"] = np.arange(nr)
    return State(np.zeros(nr, np.int64), np.arange(nr * 6).reshape(nr, 2, 3), points)


@pytest.mark.parametrize("nr", [1, 2, 9])  # lengths differ, the type does not
def test_kernels_read_and_write_the_arrays(nr):
    state = new_state(nr)
    i = nr - 1
    assert total(state, i) == sum(range(nr * 6)) + nr * 1000 + i
    assert state.flat[i] == 1
    assert state.points[i]["x"] == 7
    assert len(total.signatures) == 1


def test_a_copy_and_a_pickle_have_arrays_of_their_own():
    state = new_state(3)
    copied = State(*(array.copy() for array in state))
    pickled = pickle.loads(pickle.dumps(state))
    for other in (copied, pickled):
        total(other, 0)
        assert other.flat[0] == 1
    assert state.flat[0] == 0


def test_an_unknown_field_is_a_compile_time_error():
    @kernel
    def wrong(state):
        return state.nothing[0]

    with pytest.raises(Exception, match="nothing"):
        wrong(new_state(1))
