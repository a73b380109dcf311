"""``fleet warmup`` leaves nothing to compile for what a user begins with."""

import sys

from numba.core.dispatcher import Dispatcher

from fleet.cli import compile_kernels
from fleet.recordings import replayed


def nr_compiled():
    """Count the kernels that this process has compiled so far, not loaded."""
    kernels = {
        id(value): value
        for module in list(sys.modules.values())
        for value in list(vars(module).values())
        if isinstance(value, Dispatcher)
    }
    assert len(kernels) > 300
    return sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels.values())


def test_replays_compile_nothing_after_warmup():
    compile_kernels()
    before = nr_compiled()
    assert len(list(replayed("6.1"))) == 29
    assert nr_compiled() == before
