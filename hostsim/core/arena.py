"""State arrays carved from one lazily backed mapping.

A host reserves address space for the largest state it can ever need and pays only for the
pages it touches, so that no kernel has to stop and grow a pool.  One mapping a host keeps the
number of mappings of a process small, and MADV_NOHUGEPAGE keeps a sparse array sparse.
"""

import mmap
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAP_NORESERVE = 0x4000  # Linux include/uapi/asm-generic/mman.h; mmap.MAP_NORESERVE needs 3.13
_ALIGN_BYTES = 64  # a cache line


class Field(NamedTuple):
    """Name, shape and type of one array."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def nr_bytes(field: Field) -> int:
    """Return what an array takes."""
    return int(np.prod(field.shape, dtype=np.int64)) * field.dtype.itemsize


def carve(fields: Iterable[Field]) -> dict[str, NDArray[Any]]:
    """Return zero-filled arrays, all in one new private mapping, resident only where touched."""
    fields = list(fields)
    offsets: list[int] = []
    end = 0
    for field in fields:
        offsets.append(end)
        end += -(-nr_bytes(field) // _ALIGN_BYTES) * _ALIGN_BYTES
    mapping = mmap.mmap(
        -1, max(end, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    )
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return {
        field.name: np.frombuffer(
            mapping, field.dtype, int(np.prod(field.shape, dtype=np.int64)), offset
        ).reshape(field.shape)
        for field, offset in zip(fields, offsets, strict=True)
    }
