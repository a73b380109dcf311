"""Compiling ahead: a kernel's missing callees, callees first, in several processes.

A kernel's signature stands in its annotations, so what a call will need is known before the call
is compiled.  Kernels whose annotations leave a type open (arrays) are compiled by their callers.
"""

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from graphlib import TopologicalSorter
from typing import Any

from numba.core import types
from numba.core.errors import NumbaError

from hostsim.core import jit, jit_options
from hostsim.core.byref import known_type

FEWEST = 8  # kernels worth starting processes for
_SCALARS: dict[Any, Any] = {int: types.int64, float: types.float64, bool: types.boolean}


def signature_of(dispatcher: Any) -> tuple[Any, ...] | None:
    """Return the types of a kernel's arguments, or None if its annotations leave one open."""
    code = dispatcher.py_func.__code__
    declared = dispatcher.py_func.__annotations__
    found = [declared[name] for name in code.co_varnames[: code.co_argcount]]
    chosen = [_SCALARS.get(each) or known_type(each) for each in found]
    return None if None in chosen else tuple(chosen)


def missing(root: Any) -> dict[Any, list[Any]]:
    """Return the kernels below one (and itself) that no cache holds, each with its callees."""
    plan: dict[Any, list[Any]] = {}
    todo = [root]
    while todo:
        dispatcher = todo.pop()
        if dispatcher not in plan and not jit.is_cached(dispatcher):
            plan[dispatcher] = jit.compiled_callees(dispatcher)
            todo += plan[dispatcher]
    return plan


_tasks: list[Any] = []  # what the processes forked from this one compile, by number


def _compile(number: int) -> None:
    signature = signature_of(_tasks[number])
    if signature is not None:
        with contextlib.suppress(NumbaError):  # raised again, with its place, by a caller
            _tasks[number].compile(signature)


def _end_with_parent() -> None:
    """End when the parent was killed: waiting for work, a worker would hold its lock for ever."""
    parent: Any = multiprocessing.parent_process()
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.disable()  # an eighth of the time, for some hundred MiB


def compile_missing(root: Any) -> None:
    """Compile what a call of a kernel will need, if that is much.

    Forks: to be called only where no other thread of the process can hold a lock.
    """
    plan = missing(root)
    if len(plan) < FEWEST:
        return
    _tasks[:] = plan
    numbers = {dispatcher: number for number, dispatcher in enumerate(_tasks)}
    order = TopologicalSorter(
        {numbers[d]: [numbers[c] for c in callees if c in plan] for d, callees in plan.items()}
    )
    order.prepare()
    context = multiprocessing.get_context("fork")
    with jit.one_process_at_a_time:  # this one and what it forks
        if not os.access(jit.CACHE_DIR, os.W_OK):
            return  # they could hand over nothing
        if jit_options.announce:
            jit_options.announce()
        pool = ProcessPoolExecutor(jit_options.processes, context, _begin_worker)
        try:
            running: dict[Future[None], int] = {}
            while order.is_active():
                running.update({pool.submit(_compile, n): n for n in order.get_ready()})
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    done.result()
                    order.done(running.pop(done))
        finally:
            pool.shutdown(cancel_futures=True)
            _tasks.clear()
