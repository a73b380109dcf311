"""``fleet warmup`` leaves nothing to compile for what a user begins with."""

import sys

import pytest
from numba.core.dispatcher import Dispatcher

from fleet import Options, run
from fleet.cli import compile_kernels
from fleet.loading import load
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


@pytest.fixture(scope="module", autouse=True)
def warm():
    compile_kernels()


@pytest.mark.parametrize("name", ["smoke", "churn", "day"])
def test_a_run_compiles_nothing_after_warmup(name, tmp_path):
    """No kernel of hosts, guests, placement or samples of translation."""
    scenario = load(name, ["hosts.count=1", "vms.scale=0.0004", "run.duration=1h"])
    before = nr_compiled()
    run(scenario, tmp_path / name, Options(inline=True, checkpoint_epochs=0))
    assert nr_compiled() == before


def test_replays_compile_nothing_after_warmup():
    before = nr_compiled()
    assert len(list(replayed("6.1"))) == 29
    assert nr_compiled() == before
