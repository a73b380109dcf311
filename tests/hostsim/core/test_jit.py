"""Kernels compiled one by one and cached one by one: a cached caller finds the right callee."""

import fcntl
import shutil
import subprocess

import pytest
from kernel_project import make_project, run_python, start_python

CALLEE = """
from hostsim.core.jit import hot_kernel, kernel

@kernel
def step(x: int) -> int:
    return x + {step}

@hot_kernel
def merged(x: int) -> int:
    return step(x) * 10
"""
CALLER = """
from hostsim.callee import merged, step
from hostsim.core.jit import inline_kernel, kernel

@inline_kernel
def inlined(x: int) -> int:
    return step(x) + 100

@kernel
def twice(x: int) -> int:
    return step(step(x))

@kernel
def through_merged(x: int) -> int:
    return merged(x)
"""
RUN = """
from hostsim.caller import inlined, through_merged, twice
assert inlined(1) > 101  # first: no kernel is loaded yet
print(twice(5), through_merged(1), sum(through_merged.stats.cache_hits.values()))
"""

MODULES = """
from hostsim.callee import merged, step
from hostsim.caller import twice
kernels = merged, step, twice, through_merged
libraries = [kernel.overloads[each].library for kernel in kernels for each in kernel.overloads]
print(sum(library._shared_module is not None for library in libraries))
"""

# A kernel of two versions, which calls another of two versions: of pairs of floats, and of ints.
VERSIONS = """
from hostsim.core.jit import kernel
from hostsim.leaf import leaf

@kernel
def top(pair: tuple) -> float:
    return leaf(pair) + pair[1]
"""
LEAF = """
from hostsim.core.jit import kernel

@kernel
def leaf(pair: tuple) -> float:
    return pair[0] * 3 if pair[1] > 1 else pair[0] - 2
"""
FLOATS = """
from hostsim.top import leaf, top
print(top((5.0, 1.0)), flush=True)
"""
INTS = """
from hostsim.top import leaf, top
print(top((5, 1)), *(sum(kernel.stats.cache_misses.values()) for kernel in (top, leaf)))
"""


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path, {"callee": CALLEE.format(step=1), "caller": CALLER})


@pytest.fixture
def versions(tmp_path):
    return make_project(tmp_path, {"top": VERSIONS, "leaf": LEAF})


def run(project):
    (printed,) = run_python(project, RUN)
    return [int(word) for word in printed.split()]


def test_a_cached_caller_loads_its_callees_in_another_process(project):
    assert run(project) == [7, 20, 0]
    assert run(project) == [7, 20, 1]


def test_another_checkout_of_the_same_version_uses_what_is_compiled(project, tmp_path_factory):
    assert run(project) == [7, 20, 0]
    other = tmp_path_factory.mktemp("other") / "checkout"
    shutil.copytree(project, other, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(project / "hostsim")
    assert run(other) == [7, 20, 1]
    (other / "hostsim/callee.py").write_text(CALLEE.format(step=2))
    assert run(other) == [9, 30, 0]


def test_an_edit_to_a_callee_reaches_its_callers(project):
    run(project)
    (project / "hostsim/callee.py").write_text(CALLEE.format(step=2))
    assert run(project) == [9, 30, 0]


def test_a_callee_compiled_anew_serves_a_cached_caller(project):
    run(project)
    (folder,) = (project / "cache/kernels").glob("hostsim.callee-*")
    shutil.rmtree(folder)
    assert run(project) == [7, 20, 1]


def test_a_caller_compiled_anew_is_merged_with_a_cached_callee(project):
    run(project)
    (folder,) = (project / "cache/kernels").glob("hostsim.caller-*")
    shutil.rmtree(folder)
    assert run(project) == [7, 20, 0]


def test_bitcode_of_cached_kernels_is_not_parsed(project):
    printed = run_python(project, RUN + MODULES)
    assert printed[1] != "0"  # what is compiled here is linked
    assert run_python(project, RUN + MODULES) == ["7 20 1", "0"]


def test_processes_load_at_the_same_time(project):
    """A cache that another process reads is read, and nothing else waits for that."""
    run(project)
    with (project / "cache/kernels/lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert run_python(project, RUN, timeout_s=60) == ["7 20 1"]


def test_nothing_is_compiled_while_another_process_reads(project):
    """What it reads has its callees, so nothing is added in between."""
    run(project)
    (folder,) = (project / "cache/kernels").glob("hostsim.callee-*")
    shutil.rmtree(folder)
    with (project / "cache/kernels/lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(subprocess.TimeoutExpired):
            run_python(project, RUN, timeout_s=4)
    assert not list(folder.glob("*.nbc"))


def test_versions_that_another_process_added_are_loaded_too(versions):
    """Between two calls here, another process compiled a caller and the version it calls."""
    with start_python(versions, FLOATS + "input()\n" + INTS) as here:
        assert here.stdout.readline() == "4.0\n"
        assert run_python(versions, INTS) == ["4 1 1"]
        printed, problems = here.communicate("\n", timeout=60)
    assert (printed, here.returncode) == ("4 1 1\n", 0), problems  # of floats, none of ints


def test_a_cached_caller_without_its_callee_is_not_taken(versions):
    """The callee is there, in another version."""
    run_python(versions, FLOATS)
    run_python(versions, INTS)
    (folder,) = (versions / "cache/kernels").glob("hostsim.leaf-*")
    shutil.rmtree(folder)
    assert run_python(versions, FLOATS + INTS) == ["4.0", "4 2 2"]


def test_versions_for_another_cpu_are_not_loaded(versions):
    run_python(versions, FLOATS)
    elsewhere = """
from numba.core import codegen
codegen.CPUCodegen.magic_tuple = lambda self: ("another", "cpu", "")
"""
    assert run_python(versions, elsewhere + INTS) == ["4 1 1"]
    assert run_python(versions, elsewhere + FLOATS + INTS) == ["4.0", "4 1 1"]


def test_a_kernel_has_no_default_arguments():
    from hostsim.core.jit import kernel

    with pytest.raises(TypeError, match="no default arguments"):

        @kernel
        def wrong(x: int = 1) -> int:
            return x
