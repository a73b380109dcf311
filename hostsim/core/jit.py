"""The kernel compiler: the one place that sets numba's flags.

Each kernel is compiled once, on its own, and calls other kernels by their symbols: numba alone
would merge every callee into every caller, so that each change costs minutes and the first run
of a new version too.  What must be merged into its callers says so: `hot_kernel` (by LLVM) and
`inline_kernel` (before type inference).

``_nrt=False``: numba 0.62 and later keeps atomic reference counts around array arguments of
helpers, 30 times slower; without the run time they are gone, and allocating inside a kernel is
a compile-time error.

Numba's disk cache does not see an edit to a kernel called from another file, so each module's
kernels lie in a folder named by a digest of the module and of everything it imports from here.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.core.bytecode
import numba.core.caching
from numba.core import types
from numba.core.registry import cpu_target

from hostsim.core import jit_options
from hostsim.core.bitcode import CalleeMissingError, parse_late, store_symbols
from hostsim.core.front_end import shorten

F = TypeVar("F", bound=Callable[..., Any])

_ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def _module_sources(module: str) -> frozenset[str]:
    """Return the names of a module and of all it imports, directly or not, from this project."""
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += _imports(name)
    return frozenset(found)


@functools.cache
def _source(module: str) -> str:
    """Return a module's source text (empty for a package or a module from elsewhere)."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    path = Path(loaded) if loaded else _ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return path.read_text() if path.is_file() else ""


@functools.cache
def _imports(module: str) -> list[str]:
    """Return the modules of this project that a module imports."""
    pattern = r"^from ((?:hostsim|guestsim|fleet)[\w.]*) import"
    return re.findall(pattern, _source(module), re.MULTILINE)


@functools.cache
def _digest(module: str) -> str:
    """Digest all that a module's kernels are compiled from."""
    digest = hashlib.sha256(numba.__version__.encode())
    for name in sorted(_module_sources(module) | {__name__}):
        digest.update(f"{name}\n{_source(name)}".encode())
    return digest.hexdigest()[:16]


def cache_root() -> Path:
    """Return the folder under which kernel caches lie (FLEET_CACHE_DIR, else XDG)."""
    chosen = os.environ.get("FLEET_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hugefleet"


CACHE_DIR = cache_root() / "kernels"
_caching: Any = numba.core.caching
_CacheLocator: Any = _caching.InTreeCacheLocator
_types: Any = types
_bytecode: Any = numba.core.bytecode
_FunctionIdentity: Any = _bytecode.FunctionIdentity
_njit: Any = numba.njit  # _nrt is not in its annotations
parse_late()
shorten()


def _widen(argument: Any) -> Any:
    """Return the type under which a kernel is compiled for an argument from another kernel."""
    argument = _types.unliteral(argument)
    return types.int64 if isinstance(argument, types.Integer) else argument


def cache_folder(module: str) -> Path:
    """Return the folder of a module's compiled kernels."""
    return CACHE_DIR / f"{module}-{_digest(module)}"


def warm_mark(module: str) -> Path:
    """Return the file that is there once the kernels that a module reaches are compiled."""
    target = hashlib.sha256(repr(cpu_target.target_context.codegen().magic_tuple()).encode())
    return cache_folder(module) / f"warm-{target.hexdigest()[:16]}"


class _FolderOfModule(_CacheLocator):  # type: ignore[misc]
    """Numba's locator of the cache: the folder of a kernel's module, wherever its source lies.

    Two checkouts of one version, or a checkout and a wheel, share what either has compiled.
    """

    def __init__(self, function: Any, source: str) -> None:
        self._py_file = source
        self._lineno = function.__code__.co_firstlineno
        self._cache_path = str(cache_folder(function.__module__))

    @classmethod
    def from_function(cls, function: Any, source: str) -> Any:
        return super().from_function(function, source) if hasattr(function, "is_kernel") else None


_caching.CacheImpl._locator_classes.insert(0, _FolderOfModule)


def _njit_cached(function: Callable[..., Any], **options: Any) -> Any:
    """Compile with the flags of all kernels, cached in the folder of the function's module."""
    function.is_kernel = True  # type: ignore[attr-defined]
    if function.__defaults__ or function.__kwdefaults__:
        raise TypeError(f"{function.__name__}: a kernel has no default arguments")
    flags = {"error_model": "numpy", "nogil": True, "_nrt": False, "no_cfunc_wrapper": True}
    compiled = _njit(cache=True, **flags, **options)(function)
    return _callees_first(compiled)


def _compile_once(dispatcher: Any) -> Any:
    """Let kernels that call this one share one version of it.

    Numba compiles a callee anew for each literal and each integer width in a call.
    """
    resolve = dispatcher.get_call_template

    def get_call_template(args: Any, kws: dict[str, Any]) -> Any:
        wide = tuple(_widen(a) for a in args)
        return resolve(wide, {name: _widen(a) for name, a in kws.items()})

    dispatcher.get_call_template = get_call_template
    dispatcher.compiled_once = True
    return dispatcher


def _globals_of(function: Any) -> list[Any]:
    """Return the dispatchers that a function names."""
    names = function.__code__.co_names
    found = (function.__globals__.get(name) for name in names)
    return [value for value in found if hasattr(value, "py_func")]


def _callees(dispatcher: Any, attribute: str) -> list[Any]:
    """Return the nearest callees that have an attribute, also through those without it."""
    callees: list[Any] = []
    seen: set[int] = set()
    todo = _globals_of(dispatcher.py_func)
    while todo:
        callee = todo.pop()
        if id(callee) not in seen:
            seen.add(id(callee))
            if hasattr(callee, attribute):
                callees.append(callee)
            else:
                todo += _globals_of(callee.py_func)
    return callees


def compiled_callees(dispatcher: Any) -> list[Any]:
    """Return the kernels that must be compiled before this one."""
    return _callees(dispatcher, "compiled_once")


def _versions(dispatcher: Any, index: Any) -> list[Any]:
    """Return the signatures in a kernel's index whose code is for this CPU."""
    target = dispatcher.targetctx.codegen().magic_tuple()
    return [signature for signature, compiled_for, _ in index if compiled_for == target]


def is_cached(dispatcher: Any) -> bool:
    """Say whether a kernel is loaded, or lies in the cache."""
    index = dispatcher._cache._cache_file._load_index()
    return bool(dispatcher.overloads or _versions(dispatcher, index))


class _NotCachedError(Exception):
    """A kernel that is only to be loaded has to be compiled."""


class _CacheLock:
    """Lets one process at a time add to the cache: callees are there before callers.

    Any number may read meanwhile if none adds.  Reentrant, because compiling a kernel compiles its
    callees.  A cache that cannot be written needs no lock.
    """

    def __init__(self) -> None:
        self._thread = threading.RLock()
        self._depth = 0
        self._file = -1
        self.reading = False

    def held(self) -> bool:
        """Say whether this process is about to compile: a kernel called from Python is not yet."""
        return self._depth > 0

    @contextlib.contextmanager
    def for_reading(self) -> Iterator[None]:
        """Keep others from adding to the cache; what is not in it is not compiled."""
        with self._thread:
            self.reading = True
            try:
                self._begin(fcntl.LOCK_SH)
                yield
            finally:
                self.reading = False
                self.__exit__()

    def _begin(self, operation: int) -> None:
        self._thread.acquire()
        self._depth += 1
        if self._depth == 1:
            with contextlib.suppress(OSError):
                CACHE_DIR.mkdir(parents=True, exist_ok=True)
                self._file = os.open(CACHE_DIR / "lock", os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(self._file, operation)

    def __enter__(self) -> None:
        self._begin(fcntl.LOCK_EX)

    def __exit__(self, *_exception: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._thread.release()


one_process_at_a_time = _CacheLock()


class _StableIdentity(_FunctionIdentity):  # type: ignore[misc]
    """Numba's identity of a function, with the same symbol in every process.

    Numba numbers functions as a process meets them, and the number is part of the symbol; cached
    code that calls another kernel by symbol must find it whoever compiled that one.
    """

    @classmethod
    def from_function(cls, pyfunc: Any) -> Any:
        identity = super().from_function(pyfunc)
        if hasattr(pyfunc, "kernel_id"):
            identity.unique_id = pyfunc.kernel_id
        return identity


_bytecode.FunctionIdentity = _StableIdentity


@contextlib.contextmanager
def _changing_indexes(cache: Any) -> Iterator[None]:
    """Let one process at a time change the indexes of a folder.

    Numba reads an index, adds a version and writes it; of two processes forked to compile ahead,
    which share one `_CacheLock`, each would lose the other's version, or give it its own's file.
    """
    cache._impl.locator.ensure_cache_path()
    file = os.open(Path(cache.cache_path, "lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _guard_cache(cache: Any) -> None:
    """Let a function's cache give only what can run here, and keep all that is put into it."""
    store_symbols(cache)
    load_overload, save_overload = cache.load_overload, cache.save_overload

    def load(*place: Any) -> Any:
        reading = one_process_at_a_time.reading  # with a context that is up to date
        try:
            found = cache._load_overload(*place) if reading else load_overload(*place)
        except CalleeMissingError:
            found = None
        if reading and found is None:
            raise _NotCachedError
        return found

    def save(*place: Any) -> None:
        with _changing_indexes(cache):
            save_overload(*place)

    cache.load_overload, cache.save_overload = load, save


def _callees_first(dispatcher: Any) -> Any:
    """Load the callees of a function before the function itself: its code needs their symbols."""
    compile_now = dispatcher.compile
    _guard_cache(dispatcher._cache)

    def load_or_compile(signature: Any) -> Any:
        for callee in _callees(dispatcher, "load_cached"):
            callee.load_cached()
        return compile_now(signature)

    def compile_after_callees(signature: Any) -> Any:
        if not one_process_at_a_time.held():
            dispatcher.targetctx.refresh()  # once, not for each kernel that is loaded
            with contextlib.suppress(_NotCachedError), one_process_at_a_time.for_reading():
                return load_or_compile(signature)
            if jit_options.processes:
                from hostsim.core.ahead import compile_missing

                compile_missing(dispatcher)
        with one_process_at_a_time:
            return load_or_compile(signature)

    dispatcher.compile = compile_after_callees
    return dispatcher


def _file_state(path: str) -> tuple[int, int] | None:
    """Return what differs once a file was replaced, or None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _call_by_symbol(dispatcher: Any) -> Any:
    """Let callers call the compiled code instead of merging it into theirs."""
    compile_merged = dispatcher.compile

    def compile_alone(signature: Any) -> Any:
        entry_point = compile_merged(signature)
        for overload in dispatcher.overloads.values():
            dispatcher.targetctx.remove_user_function(overload.entry_point)
            dispatcher.targetctx.insert_user_function(overload.entry_point, overload.fndesc)
        return entry_point

    dispatcher.index_seen = None

    def load_cached() -> None:
        """Load all versions that the cache holds, also those that others added meanwhile."""
        file = dispatcher._cache._cache_file
        state = _file_state(file._index_path)
        if state == dispatcher.index_seen:
            return
        index = file._load_index()
        if one_process_at_a_time.reading:
            file._load_index = lambda: index  # not once more for each signature
        try:
            for signature in _versions(dispatcher, index):
                if signature not in dispatcher.overloads:
                    compile_alone(signature)
        finally:
            vars(file).pop("_load_index", None)
        dispatcher.index_seen = state

    dispatcher.compile = compile_alone
    dispatcher.load_cached = load_cached
    return dispatcher


def kernel(function: F) -> F:
    """Compile a function of arrays and numbers: no allocation, no objects, no exceptions."""
    function.kernel_id = _digest(function.__module__)  # type: ignore[attr-defined]
    compiled: F = _call_by_symbol(_compile_once(_njit_cached(function)))
    return compiled


def hot_kernel(function: F) -> F:
    """Compile a function that LLVM must merge into its callers: a step of every page fault."""
    compiled: F = _compile_once(_njit_cached(function, forceinline=True))
    return compiled


def inline_kernel(function: F) -> F:
    """Compile a small helper into each of its callers."""
    compiled: F = _njit_cached(function, inline="always")
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
