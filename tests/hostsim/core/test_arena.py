"""Arrays carved from one mapping."""

import mmap

import numpy as np

from hostsim.core.arena import Field, carve

WORD = np.dtype("i8")


def addresses(arrays):
    return {name: array.ctypes.data for name, array in arrays.items()}


def test_arrays_lie_in_the_order_of_their_fields_and_do_not_overlap():
    arrays = carve([Field("a", (3,), WORD), Field("b", (5, 2), WORD), Field("c", (1,), WORD)])
    at = addresses(arrays)
    assert at["a"] + arrays["a"].nbytes <= at["b"]
    assert at["b"] + arrays["b"].nbytes <= at["c"]
    assert all((array == 0).all() for array in arrays.values())


def test_what_stands_together_shares_a_page_and_a_paged_array_begins_one():
    at = addresses(
        carve(
            [
                Field("a", (3,), WORD),
                Field("b", (3,), WORD),
                Field("c", (3,), WORD, paged=True),
            ]
        )
    )
    assert at["a"] // mmap.PAGESIZE == at["b"] // mmap.PAGESIZE
    assert at["c"] % mmap.PAGESIZE == 0
    assert at["c"] > at["b"]


def test_an_array_may_be_empty():
    arrays = carve([Field("a", (0,), WORD), Field("b", (2,), WORD)])
    assert len(arrays["a"]) == 0
    assert len(arrays["b"]) == 2
