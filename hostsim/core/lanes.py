"""Short rows of 64-bit numbers as vectors: where a number stands, and which is the least.

Of a loop over a row LLVM makes a branch an entry, which nothing predicts; these are a few vector
instructions on any CPU that has them, and plain ones elsewhere.
"""

from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic
from numba.np.arrayobj import make_array

LANES: Final = 4  # numbers that are looked at together
_WORD = ir.IntType(64)
_ROW = ir.VectorType(_WORD, LANES)
_LANE = ir.IntType(32)
_intrinsic: Any = intrinsic
_make_array: Any = make_array


def _load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Load `LANES` elements of an array."""
    data = _make_array(signature.args[0])(context, builder, arguments[0]).data
    address = builder.bitcast(builder.gep(data, [arguments[1]]), _ROW.as_pointer())
    return builder.load(address, align=8)


def _all_lanes(builder: Any, value: Any) -> Any:
    """Return a vector of one value."""
    undefined = ir.Constant(_ROW, ir.Undefined)
    first = builder.insert_element(undefined, value, _LANE(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_LANE, LANES), None))


@_intrinsic
def equal_lanes(_context: Any, array: Any, first: Any, value: Any) -> Any:
    """Return a bit for each of `LANES` elements from ``first`` on: whether it equals ``value``."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row = _load(context, builder, signature, arguments)
        equal = builder.icmp_signed("==", row, _all_lanes(builder, arguments[2]))
        return builder.zext(builder.bitcast(equal, ir.IntType(LANES)), _WORD)

    return types.int64(array, types.int64, types.int64), codegen
