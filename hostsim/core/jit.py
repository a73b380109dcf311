"""The kernel compiler: the one place that sets numba's flags.

``_nrt=False``: numba 0.62 and later keeps atomic reference counts around array arguments of
helpers, 30 times slower; without the run time they are gone, and allocating inside a kernel is
a compile-time error.  The disk cache lies in a folder named by a digest of all kernel sources,
because numba's own cache does not see an edit to a kernel called from another file.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import types

F = TypeVar("F", bound=Callable[..., Any])

KERNEL_PACKAGES = ("hostsim", "guestsim", "fleet")


def _source_digest() -> str:
    """Digest the sources of every module that holds kernels."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256(f"{numba.__version__} {root}".encode())
    for package in KERNEL_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            source = path.read_bytes()
            if package == "hostsim" or b"@kernel" in source:
                digest.update(path.relative_to(root).as_posix().encode())
                digest.update(source)
    return digest.hexdigest()[:16]


def cache_root() -> Path:
    """Return the folder under which kernel caches lie (FLEET_CACHE_DIR, else XDG)."""
    chosen = os.environ.get("FLEET_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hugefleet"


CACHE_DIR = cache_root() / "kernels" / _source_digest()
_config: Any = numba.config
_config.CACHE_DIR = str(CACHE_DIR)
_types: Any = types
_njit: Any = numba.njit  # _nrt is not in its annotations


def _widen(argument: Any) -> Any:
    """Return the type under which a kernel is compiled for an argument from another kernel."""
    argument = _types.unliteral(argument)
    return types.int64 if isinstance(argument, types.Integer) else argument


def _compile_once(dispatcher: Any) -> Any:
    """Let kernels that call this one share one version of it.

    Numba compiles a callee anew for each literal and each integer width in a call.
    """
    if _config.DISABLE_JIT:
        return dispatcher
    resolve = dispatcher.get_call_template

    def get_call_template(args: Any, kws: dict[str, Any]) -> Any:
        wide = tuple(_widen(a) for a in args)
        return resolve(wide, {name: _widen(a) for name, a in kws.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


def kernel(function: F) -> F:
    """Compile a function of arrays and numbers: no allocation, no objects, no exceptions."""
    compiled: F = _compile_once(
        _njit(cache=True, error_model="numpy", nogil=True, _nrt=False)(function)
    )
    return compiled


def hot_kernel(function: F) -> F:
    """Compile a function that LLVM must merge into its callers: a step of every page fault.

    A call passes every array of `Memory` by value, which costs more than such a step.
    """
    compiled: F = _compile_once(
        _njit(cache=True, error_model="numpy", nogil=True, _nrt=False, forceinline=True)(function)
    )
    return compiled


def inline_kernel(function: F) -> F:
    """Compile a small helper into each of its callers."""
    compiled: F = _njit(cache=True, error_model="numpy", nogil=True, _nrt=False, inline="always")(
        function
    )
    return compiled


def refops(compiled: Any) -> int:
    """Count reference-count calls in a kernel's compiled body.

    Valid only for code compiled in this process: numba keeps no LLVM for cached code.
    """
    count = 0
    for signature in compiled.signatures:
        for body in re.split(r"\n(?=define )", compiled.inspect_llvm(signature)):
            head = body.split("\n", 1)[0]
            if head.startswith("define") and not re.search("cpython|cfunc|NRT_", head):
                count += len(re.findall(r"call[^\n]*@NRT_(?:incref|decref)", body))
    return count
