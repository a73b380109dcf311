"""Bits of words."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from hostsim.core.jit import hot_kernel, inline_kernel

_intrinsic: Any = intrinsic


@hot_kernel
def weight(word: int) -> int:
    """Return how many bits of a 64-bit word are set (Warren, Hacker's Delight, 5-1)."""
    z = np.uint64(word)
    z = z - ((z >> np.uint64(1)) & np.uint64(0x5555555555555555))
    pairs = np.uint64(0x3333333333333333)
    z = (z & pairs) + ((z >> np.uint64(2)) & pairs)
    z = (z + (z >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return int(np.int64((z * np.uint64(0x0101010101010101)) >> np.uint64(56)))


@inline_kernel
def run_mask(shift: int, nr: int) -> int:
    """Return a word with ``nr`` bits set from bit ``shift`` on."""
    return ((1 << nr) - 1) << shift


@_intrinsic
def lowest_bit(_context: Any, word: Any) -> Any:
    """Return the number of the lowest bit that is set; some must be."""

    def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.int64), codegen
