import json
import pickle

import numpy as np
import pyarrow as pa
import pytest

from fleet.state import _OPTIONS, _SCHEMA, pack, unpack

RECORD = np.dtype([("first", "<i4"), ("nr", "<i2"), ("bits", "<u8", (3,))])


def test_arrays_read_back_with_type_and_shape():
    state = {
        "flat": np.arange(5),
        "cube": np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        "records": np.ones(3, RECORD),
        "strided": np.arange(10)[::2],
        "none": np.zeros((0, 3), np.int32),
        "scalar": np.array(1.5),
    }
    found = unpack(pack(state))
    assert list(found) == list(state)
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert (found[name] == array).all()


def test_same_state_gives_the_same_bytes():
    assert pack({"a": np.arange(9)}) == pack({"a": np.arange(9)})


def blob(**changes):
    row = {"name": "a", "dtype": json.dumps("<i8"), "shape": [2], "data": bytes(16)} | changes
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA, options=_OPTIONS) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([row], _SCHEMA))
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dtype": json.dumps("|O")}, "no type of numbers"),
        ({"dtype": json.dumps([["a", "|O"]])}, "no type of numbers"),
        ({"dtype": "__import__('os')"}, "no type of numbers"),
        ({"dtype": json.dumps({"a": 1})}, "no type of numbers"),
        ({"shape": [3]}, "16 bytes are no"),
        ({"shape": [-2]}, "16 bytes are no"),
        ({"shape": [1 << 62, 4]}, "16 bytes are no"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(changes, why):
    with pytest.raises(ValueError, match=why):
        unpack(blob(**changes))


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", pickle.dumps({"a": 1}), pack({"a": np.arange(9)})[:-40]]
)
def test_what_is_no_state_is_refused(data):
    with pytest.raises(ValueError, match="is not a state"):
        unpack(data)
