"""The second half of a pageblock: what it is, its label, and a number that its state explains.

Bits of ``Memory.pb[].packed``: 0..3 PB_*, 4..5 type of its lists, 6 PB_REPORTED, 7..8 label, 9
PB_migrate_skip, 10 on the number ``b``, plus one.  Types are XOR MOVABLE, so that zero is movable.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import inline_kernel
from hostsim.mm.mm_types import Memory

STATE_MASK: Final = 15
LIST_SHIFT: Final = 4
TYPE_MASK: Final = 3
LIST_BITS: Final = 127  # state, type of its lists and PB_REPORTED
LABEL_SHIFT: Final = 7
LABEL_SKIP: Final = 1 << 9  # PB_migrate_skip: compaction found nothing to do here
B_SHIFT: Final = 10
B_MASK: Final = (1 << 22) - 1  # windows of 8 TiB
MAX_B: Final = B_MASK - 1


@inline_kernel
def pb_b(mem: Memory, pb: int) -> int:
    """Return the number that a pageblock's state gives a meaning, NIL or more."""
    return ((int(mem.pb[pb].packed) >> B_SHIFT) & B_MASK) - 1


@inline_kernel
def set_pb_b(mem: Memory, pb: int, b: int) -> None:
    """Set the number that a pageblock's state gives a meaning."""
    low = int(mem.pb[pb].packed) & ((1 << B_SHIFT) - 1)
    mem.pb[pb].packed = low | ((b + 1) << B_SHIFT)


class PackedColumns(NamedTuple):
    """What is packed, of many pageblocks."""

    state: NDArray[np.int64]  # PB_*
    list_type: NDArray[np.int64]
    flags: NDArray[np.int64]  # state, list type and PB_REPORTED as they stand
    label: NDArray[np.int64]  # migratetype
    skip: NDArray[np.bool_]  # PB_migrate_skip
    b: NDArray[np.int64]


def unpacked(pb: NDArray[Any]) -> PackedColumns:
    """Return what is packed in some pageblocks, by column."""
    packed = pb["packed"].astype(np.int64)
    return PackedColumns(
        packed & STATE_MASK,
        ((packed >> LIST_SHIFT) & TYPE_MASK) ^ 1,
        packed & LIST_BITS,
        ((packed >> LABEL_SHIFT) & TYPE_MASK) ^ 1,
        packed & LABEL_SKIP != 0,
        ((packed >> B_SHIFT) & B_MASK) - 1,
    )


def repack(pb: NDArray[Any], at: Any, flags: Any = None, b: Any = None) -> None:
    """Set states with their list types, or numbers, of some pageblocks."""
    packed = pb["packed"][at].astype(np.int64)
    if flags is not None:
        packed = packed & ~LIST_BITS | flags
    if b is not None:
        packed = packed & ((1 << B_SHIFT) - 1) | (np.asarray(b, np.int64) + 1) << B_SHIFT
    pb["packed"][at] = packed.astype(np.uint32).view(np.int32)
