"""Named tuples of arrays that kernels receive as one pointer.

Numba passes a named tuple by value: every call copies the address, shape and strides of each
array.  A `ByReference` tuple keeps a table of array addresses and lengths, and a kernel gets the
table's address; reading a field loads the array's address from the table.  The table never
changes during a kernel, which LLVM is told, so that loads leave loops.
"""

import zlib
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import (
    NativeValue,
    intrinsic,
    models,
    register_model,
    typeof_impl,
    unbox,
)
from numba.core.imputils import impl_ret_borrowed, lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.np.arrayobj import make_array, populate_array

_POINTER = ir.IntType(64).as_pointer()
_Type: Any = types.Type
_Template: Any = AttributeTemplate


class ByReference:
    """Mixin for a named tuple of arrays: ``class Memory(ByReference, _MemoryArrays)``.

    The table holds two words a field: address of the first element, and length of the first
    axis.  All other axes have the same length in every instance, and all arrays are contiguous.
    """

    table: Any
    address: int  # of the table

    def __new__(cls, *arrays: Any, **named: Any) -> Any:
        """Return the tuple with its table."""
        self: Any = super().__new__(cls, *arrays, **named)
        self.table = np.array([[a.ctypes.data, len(a)] for a in self], np.int64)
        self.address = self.table.ctypes.data
        typeof_impl.register(cls)(_typeof)
        return self

    def __reduce__(self) -> Any:
        """Pickle the arrays alone: the table is of their addresses."""
        return type(self), tuple(self)  # type: ignore[arg-type]


class StateType(_Type):  # type: ignore[misc]
    """The type of a `ByReference` tuple in kernels: names, array types and inner shapes."""

    def __init__(self, name: str, fields: tuple[tuple[str, Any, tuple[int, ...]], ...]) -> None:
        self.fields = fields
        super().__init__(name=f"{name}_{zlib.crc32(repr(fields).encode()):08x}")


register_model(StateType)(
    type(
        "StateModel",
        (models.PrimitiveModel,),
        {"__init__": lambda self, dmm, ty: models.PrimitiveModel.__init__(self, dmm, ty, _POINTER)},
    )
)
_known: dict[type, StateType] = {}
_intrinsic: Any = intrinsic


def _typeof(value: Any, _context: Any) -> StateType:
    """Return the type of a tuple, from its arrays."""
    found = _known.get(type(value))
    if found is None:
        fields = tuple(
            (name, typeof_impl(array, _context), array.shape[1:])
            for name, array in zip(value._fields, value, strict=True)
        )
        found = _known[type(value)] = StateType(type(value).__name__, fields)
    return found


def known_type(cls: type) -> StateType | None:
    """Return the type of a class's instances, if one was made in this process."""
    return _known.get(cls)


@infer_getattr
class _StateAttributes(_Template):  # type: ignore[misc]
    key = StateType

    def generic_resolve(self, ty: StateType, attr: str) -> Any:
        return next((array for name, array, _ in ty.fields if name == attr), None)


@lower_getattr_generic(StateType)
def _load_array(context: Any, builder: Any, ty: StateType, value: Any, attr: str) -> Any:
    """Build the array of a field from its row of the table."""
    at = [name for name, _, _ in ty.fields].index(attr)
    _, array_type, inner = ty.fields[at]
    words = []
    for word in (2 * at, 2 * at + 1):
        load = builder.load(cgutils.gep_inbounds(builder, value, word))
        load.set_metadata("invariant.load", builder.module.add_metadata([]))
        words.append(load)
    data_type = context.get_data_type(array_type.dtype)
    itemsize = context.get_abi_sizeof(data_type)
    strides = [itemsize]
    for length in reversed(inner):
        strides.insert(0, strides[0] * length)
    intp = context.get_value_type(types.intp)
    array = make_array(array_type)(context, builder)
    populate_array(
        array,
        data=builder.inttoptr(words[0], data_type.as_pointer()),
        shape=[words[1], *(ir.Constant(intp, length) for length in inner)],
        strides=[ir.Constant(intp, stride) for stride in strides],
        itemsize=ir.Constant(intp, itemsize),
        meminfo=None,
    )
    return impl_ret_borrowed(context, builder, array_type, array._getvalue())


@unbox(StateType)
def _unbox(_ty: StateType, value: Any, c: Any) -> NativeValue:
    """Take the address of a tuple's table."""
    address = c.pyapi.object_getattr_string(value, "address")
    word = c.pyapi.long_as_longlong(address)
    c.pyapi.decref(address)
    return NativeValue(c.builder.inttoptr(word, _POINTER), is_error=cgutils.false_bit)


@_intrinsic
def state_at(_context: Any, like: Any, address: Any) -> Any:
    """Return, inside a kernel, the state of the type of ``like`` whose table lies at an address.

    So a kernel can go through any number of states whose addresses stand in an array.
    """
    if not isinstance(like, StateType):
        return None

    def codegen(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[1], _POINTER)

    return like(like, types.int64), codegen
