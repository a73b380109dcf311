"""The bitcode of kernels that come from the cache: parsed when something is linked with it.

With every kernel that it loads numba keeps the LLVM module that would be merged into callers:
43 MiB for the kernels of a node, in each worker.  A process that compiles nothing needs none of
them, so that their bitcode is kept instead, an eighth of that.
"""

from typing import Any

import llvmlite.binding
import numba.core.codegen

_codegen: Any = numba.core.codegen
_Library: Any = _codegen.JITCodeLibrary
_unserialize = _Library._unserialize.__func__
_get_module_for_linking = _Library._get_module_for_linking


def _load(cls: Any, codegen: Any, state: tuple[str, str, Any]) -> Any:
    """Return a library from the cache, without its module."""
    library = _unserialize(cls, codegen, state)
    _, kind, data = state
    if kind == "object":
        _, library.bitcode = data
        library._shared_module = None
    return library


def _module_for_linking(library: Any) -> Any:
    """Return the module of a library, parsed if it came from the cache."""
    if library._shared_module is None and hasattr(library, "bitcode"):
        library._shared_module = llvmlite.binding.parse_bitcode(library.bitcode)
    return _get_module_for_linking(library)


def parse_late() -> None:
    """Let numba parse bitcode from the cache no sooner than it links with it, from now on."""
    _Library._unserialize = classmethod(_load)
    _Library._get_module_for_linking = _module_for_linking
