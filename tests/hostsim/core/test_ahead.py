"""Kernels compiled ahead by other processes: the caller finds all of them, and only those."""

import fcntl
import time

import pytest
from kernel_project import make_project, run_python, start_python

LEAVES = 10
KERNELS = "\n".join(
    [
        "import numpy as np",
        "from numpy.typing import NDArray",
        "from hostsim.core.jit import hot_kernel, inline_kernel, kernel",
        *(
            f"@kernel\ndef leaf_{n}(x: int, negate: bool) -> int:\n"
            f"    return -x - {n} if negate else x + {n}\n"
            for n in range(LEAVES)
        ),
        "@hot_kernel\ndef merged(x: int) -> int:\n    return leaf_0(x, True)\n",
        "@kernel\ndef of_array(x: NDArray[np.int64]) -> int:\n"
        "    return x[0] + leaf_1(x[1], False)\n",
        "@inline_kernel\ndef inlined(x: int) -> int:\n    return leaf_2(x, False)\n",
        "@kernel\ndef root(x: NDArray[np.int64]) -> int:\n"
        "    y = of_array(x) + merged(5) + inlined(7)",
        *(f"    y += leaf_{n}(y, x[0] > 0)" for n in range(3, LEAVES)),
        "    return y",
    ]
)
RUN = """
import numpy as np
from hostsim.core import jit_options
jit_options.processes = {processes}
jit_options.announce = lambda: print("announced")
from hostsim import kernels
print(kernels.root(np.array([1, 2])))
for name, value in sorted(vars(kernels).items()):
    if hasattr(value, "compiled_once"):
        assert len(value.signatures) <= 1, f"{{name}}: {{value.signatures}}"
        print(name, sum(value.stats.cache_misses.values()))
"""

# Two of the kernels that are compiled at once need a version each of the same callee.
SHARED = "\n".join(
    [
        "from hostsim.core.jit import kernel",
        "@kernel\ndef shared(pair: tuple) -> float:\n    return pair[0] - pair[1]",
        "@kernel\ndef of_floats(x: int) -> float:\n    return shared((x, 0.5))",
        "@kernel\ndef of_ints(x: int) -> float:\n    return shared((x, x))",
        *(f"@kernel\ndef leaf_{n}(x: int) -> float:\n    return x + {n}" for n in range(LEAVES)),
        "@kernel\ndef root(x: int) -> float:\n    y = of_floats(x) + of_ints(x)",
        *(f"    y += leaf_{n}(x)" for n in range(LEAVES)),
        "    return y",
    ]
)
SLOW_INDEX = """
import time
from numba.core.caching import IndexDataCacheFile as File
save_index = File._save_index
File._save_index = lambda file, versions: time.sleep(1) or save_index(file, versions)
"""
# Both read the index at once; the version of ints is last in it, that of floats last in the file.
IN_TURNS = """
import time
from numba.core.caching import IndexDataCacheFile as File
save, save_index, save_data = File.save, File._save_index, File._save_data

def save_version(file, key, data):
    of_ints = "UniTuple" in str(key)
    file.delays_s = [0, 0] if "shared" not in file._index_name else [2, 0] if of_ints else [1, 3]
    save(file, key, data)

File.save = save_version
File._save_index = lambda file, *rest: time.sleep(file.delays_s[0]) or save_index(file, *rest)
File._save_data = lambda file, *rest: time.sleep(file.delays_s[1]) or save_data(file, *rest)
"""
RUN_SHARED = """
from hostsim.core import jit_options
jit_options.processes = {processes}
from hostsim.kernels import root, shared
print(root(4), len(shared.signatures), sum(shared.stats.cache_misses.values()))
"""


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path, {"kernels": KERNELS})


def run(project, processes):
    return run_python(project, RUN.format(processes=processes))


def test_what_a_call_needs_is_compiled_elsewhere_and_found(project):
    announced, result, *compiled_here = run(project, processes=2)
    (here_alone, *_) = run(project, processes=0)  # from the cache
    assert announced == "announced"
    assert result == here_alone
    # an array's layout is not in its annotation: these two are compiled by the call
    assert [line for line in compiled_here if not line.endswith(" 0")] == ["of_array 1", "root 1"]


def test_a_warm_cache_starts_no_process(project):
    run(project, processes=2)
    assert "announced" not in run(project, processes=2)


def test_an_error_in_a_kernel_is_raised_by_the_call(project):
    broken = KERNELS.replace("return x + 9", "return x.nonsense").replace("x + 9", "x.nonsense")
    (project / "hostsim/kernels.py").write_text(broken)
    with pytest.raises(AssertionError, match="nonsense"):
        run(project, processes=2)


def test_versions_compiled_at_once_are_all_kept(tmp_path):
    """Each process reads the index of the callee that both need, and adds its version."""
    project = make_project(tmp_path, {"kernels": SHARED})
    run_python(project, IN_TURNS + RUN_SHARED.format(processes=2))
    result = 3.5 + sum(4 + n for n in range(LEAVES))
    assert run_python(project, RUN_SHARED.format(processes=0)) == [f"{result} 2 0"]


def test_nothing_waits_for_processes_whose_parent_was_killed(project):
    code = SLOW_INDEX + RUN.format(processes=2).replace('"announced"', '"announced", flush=True')
    with start_python(project, code) as parent:
        assert parent.stdout.readline() == "announced\n"
        time.sleep(1)  # the processes are there
        parent.kill()
    with (project / "cache/kernels/lock").open() as file:
        deadline = time.monotonic() + 60
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < deadline, "the lock is held"
                time.sleep(0.1)


def test_signatures_come_from_annotations():
    from numba.core import types

    from hostsim.core.ahead import signature_of
    from hostsim.mm.kalloc import alloc_blocks
    from hostsim.mm.memory import new_memory
    from hostsim.mm.mmap import mm_alloc

    mem = new_memory(8192, "6.1", 1)
    mm_alloc(mem, 2048, 512, 0, True, 1)
    assert signature_of(mm_alloc) == mm_alloc.signatures[0]
    assert signature_of(mm_alloc)[4] is types.boolean
    assert signature_of(alloc_blocks) is None
