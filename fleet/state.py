"""The state of a host as a blob of bytes: names and arrays as an Arrow IPC stream, no code in it.

A blob is one record batch with a row an array. Nothing in it is executed when it is read: types
are those of numpy without objects, and lengths are checked before memory is looked at.
"""

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

State = dict[str, NDArray[Any]]
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),  # numpy's descr as JSON
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
    ]
)
_OPTIONS = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))


def pack(state: Mapping[str, NDArray[Any]]) -> bytes:
    """Return arrays as one compressed blob."""
    offsets = np.zeros(len(state) + 1, np.int64)
    np.cumsum([array.nbytes for array in state.values()], out=offsets[1:])
    data = np.empty(offsets[-1], np.uint8)
    for array, first in zip(state.values(), offsets, strict=False):
        into = data[first : first + array.nbytes]
        into[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(state, pa.string()),
            pa.array([_descr(array.dtype) for array in state.values()], pa.string()),
            pa.array([array.shape for array in state.values()], _SCHEMA.field("shape").type),
            pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(state), buffers),
        ],
        schema=_SCHEMA,
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA, options=_OPTIONS) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def unpack(blob: bytes) -> State:
    """Return the arrays of a blob, read-only.

    Raises
    ------
    ValueError
        It is no such blob, or damaged.
    """
    try:
        with pa.ipc.open_stream(blob) as reader:
            if reader.schema != _SCHEMA:
                raise ValueError("is not a state")
            batch = reader.read_next_batch()
        batch.validate(full=True)
    except (pa.ArrowException, StopIteration, OSError) as error:
        raise ValueError(f"is not a state: {error}") from error
    names, dtypes, shapes, data = batch.columns
    return {
        name: _array(name, dtype, tuple(shape), values.as_buffer())
        for name, dtype, shape, values in zip(
            names.to_pylist(), dtypes.to_pylist(), shapes.to_pylist(), data, strict=True
        )
    }


def _array(name: str, descr: str, shape: tuple[int, ...], data: Any) -> NDArray[Any]:
    dtype = _dtype(descr)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != data.size:
        raise ValueError(f"{name}: {data.size} bytes are no {descr} of shape {shape}")
    return np.frombuffer(data, dtype).reshape(shape) if data.size else np.zeros(shape, dtype)


@functools.lru_cache(maxsize=256)
def _descr(dtype: np.dtype[Any]) -> str:
    return json.dumps(np.lib.format.dtype_to_descr(dtype))


@functools.lru_cache(maxsize=256)
def _dtype(descr: str) -> np.dtype[Any]:
    """Return a type without objects, or refuse."""
    try:
        found = json.loads(descr)
        fields = found if isinstance(found, str) else [tuple(field) for field in found]
        dtype = np.dtype(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{descr} is no type of numbers: {error}") from None
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"{descr} is no type of numbers")
    return dtype
