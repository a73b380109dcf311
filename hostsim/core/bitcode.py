"""The bitcode of kernels that come from the cache: parsed when something is linked with it.

With every function that it loads numba parses the LLVM module that would be merged into callers,
and keeps it: 43 MiB for the kernels of a node, in each worker.  A process that compiles nothing
needs none of them: of a kernel the bitcode is kept, an eighth of that, and the symbols that numba
would look for in the module lie in the cache.
"""

from typing import Any

import llvmlite.binding
import numba.core.codegen

_MANGLED = "_ZN"  # how symbols of compiled functions begin; of C they do not
_KERNEL = "kernel"  # a kind of library in the cache, beside numba's
_codegen: Any = numba.core.codegen
_Library: Any = _codegen.JITCodeLibrary
_unserialize = _Library._unserialize.__func__
_get_module_for_linking = _Library._get_module_for_linking


class CalleeMissingError(Exception):
    """Code from the cache calls a kernel by a symbol that this process lacks."""


def store_symbols(cache: Any) -> None:
    """Let a function's cache hold the symbols that its code needs and those that it defines."""
    reduce = cache._impl.reduce

    def reduce_with_symbols(compiled: Any) -> tuple[Any, ...]:
        (name, _, (code, bitcode)), *rest = reduce(compiled)
        module = compiled.library._get_module_for_linking()
        declared = [each.name for each in module.functions if each.is_declaration]
        needed = [symbol for symbol in declared if symbol.startswith(_MANGLED)]
        values = [*module.functions, *module.global_variables]
        defined = [each.name for each in values if not each.is_declaration]
        return (name, _KERNEL, (code, bitcode, needed, defined)), *rest

    cache._impl.reduce = reduce_with_symbols


def _load(cls: Any, codegen: Any, state: tuple[str, str, Any]) -> Any:
    """Return a library from the cache, a kernel's without its module.

    Raises
    ------
    CalleeMissingError
        A callee is not in this process; its address would be 0.
    """
    name, kind, data = state
    if kind != _KERNEL:
        return _unserialize(cls, codegen, state)
    code, bitcode, needed, defined = data
    symbols: set[str] = codegen._engine._defined_symbols
    missing = [symbol for symbol in needed if symbol not in symbols]
    if missing:
        raise CalleeMissingError(*missing)
    library = codegen.create_library(name)
    library.enable_object_caching()
    library._set_compiled_object(code)
    library._finalize_final_module()
    symbols.update(defined)
    library.bitcode = bitcode
    library._shared_module = None
    return library


def _module_for_linking(library: Any) -> Any:
    """Return the module of a library, parsed if it came from the cache."""
    if library._shared_module is None and hasattr(library, "bitcode"):
        library._shared_module = llvmlite.binding.parse_bitcode(library.bitcode)
    return _get_module_for_linking(library)


def parse_late() -> None:
    """Let numba parse a kernel's bitcode no sooner than it links with it, from now on."""
    _Library._unserialize = classmethod(_load)
    _Library._get_module_for_linking = _module_for_linking
