"""Asking for cache lines before they are needed."""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic
from numba.np.arrayobj import make_array

_READ, _KEEP, _DATA = 0, 3, 1
_LINE_BYTES = 64
_intrinsic: Any = intrinsic
_make_array: Any = make_array


@_intrinsic
def prefetch(_context: Any, array: Any, index: Any) -> Any:
    """Ask, inside a kernel, for the lines of an element of a one-dimensional array.

    There need not be such an element: -1, no record, asks for lines that nobody needs.
    """
    if not isinstance(array, types.Array) or not isinstance(index, types.Integer):
        return None

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _make_array(signature.args[0])(context, builder, arguments[0]).data
        first = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [first.type],
            ir.FunctionType(ir.VoidType(), [first.type, word, word, word]),
        )
        last = context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype)) - 1
        for offset in sorted({*range(0, last, _LINE_BYTES), last & ~7}):
            pointer = builder.gep(first, [ir.IntType(64)(offset)])
            builder.call(function, [pointer, word(_READ), word(_KEEP), word(_DATA)])
        return context.get_dummy_value()

    return types.void(array, index), codegen
