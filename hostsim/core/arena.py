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
    paged: bool = False  # begins on a page of its own


def _nr_entries(field: Field) -> int:
    return int(np.prod(field.shape, dtype=np.int64))


def carve(fields: Iterable[Field]) -> dict[str, NDArray[Any]]:
    """Return zero-filled arrays, all in one new private mapping, resident only where touched.

    They lie in the order of the fields: what is touched together should stand together.
    """
    fields = list(fields)
    offsets: list[int] = []
    end = 0
    for field in fields:
        align = mmap.PAGESIZE if field.paged else _ALIGN_BYTES
        offsets.append(-(-end // align) * align)
        end = offsets[-1] + _nr_entries(field) * field.dtype.itemsize
    mapping = mmap.mmap(
        -1, max(end, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    )
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return {
        field.name: np.frombuffer(mapping, field.dtype, _nr_entries(field), offset).reshape(
            field.shape
        )
        for field, offset in zip(fields, offsets, strict=True)
    }
