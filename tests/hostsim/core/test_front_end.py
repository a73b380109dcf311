"""Shortcuts in numba's front end: the same machine code, symbols and errors without them."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kernel_project import make_project, run_python
from numba.core.compiler import Flags

from hostsim.core import jit  # shortens

KERNELS = """
import numpy as np
from numpy.typing import NDArray
from hostsim.core.jit import hot_kernel, inline_kernel, kernel

@inline_kernel
def clamped(x: int, least: int) -> int:
    return least if x < least else min(x, 100)

@inline_kernel
def rounded(x: int) -> int:
    return clamped(x, 1) // 8 * 8

@hot_kernel
def merged(x: int) -> int:
    return rounded(x) + clamped(x, 3)

@kernel
def leaf(x: int, weight: float) -> float:
    total = 0.0
    for i in range(x):
        total += abs(weight - i) * max(i, 7)
    return total

@kernel
def inlining(a: NDArray[np.int64], n: int) -> int:
    for i in range(n):
        a[i] = clamped(a[i], 5) + clamped(a[i] >> 2, i)
    return rounded(a[0])

@kernel
def clamping(x: int) -> int:
    return clamped(x, 2)

@kernel
def clamping_again(x: int) -> int:
    return clamped(clamping(x), 4)

@kernel
def top(a: NDArray[np.int64], n: int) -> float:
    return leaf(inlining(a, n), 0.5) + merged(n) + clamping_again(n) + bool(a[0] & 1)

@kernel
def wrong(a: NDArray[np.int64]) -> int:
    return clamped(a, "text")
"""
WITHOUT = "import hostsim.core.front_end as f; f.shorten = lambda: None\n"
COMPILE = r"""
import re
import numpy as np
from hostsim import kernels
print(kernels.top(np.arange(9), 9))
for name in ("leaf", "inlining", "clamping", "clamping_again", "merged", "top"):
    kernel = getattr(kernels, name)
    (signature,) = kernel.signatures
    if name != "merged":
        print(kernel.overloads[signature].fndesc.mangled_name)
    code = kernel.inspect_asm(signature).split(".Lfunc_end0:")[0]  # without Python's wrapper
    code = re.sub(r"_Z[\w.$]+", "symbol", code)
    print(re.sub(r'[\t ]*(\.ascii|\.asciz|\.size|\.type).*|".*"', "text", code))
try:
    kernels.wrong(np.arange(9))
except Exception as error:
    print(type(error).__name__, re.sub(r"\x1b\[\d*m|\(.*?\)|/\S+|0x\w+|\d+", "", str(error)))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    modules = {"kernels": KERNELS}
    projects = [make_project(tmp_path_factory.mktemp(n), modules) for n in ("with", "without")]
    return [run_python(p, c) for p, c in zip(projects, (COMPILE, WITHOUT + COMPILE), strict=True)]


def test_the_shortcuts_change_no_machine_code_symbol_or_error(printed):
    shortened, plain = printed
    assert "TypingError" in "\n".join(plain)
    assert shortened == plain


def test_kernels_are_compiled_anew_when_the_shortcuts_change():
    assert "hostsim.core.front_end" in jit._module_sources("hostsim.mm.buddy")


OPTIONS = st.fixed_dictionaries(
    {}, optional={"nrt": st.booleans(), "enable_ssa": st.booleans(), "boundscheck": st.booleans()}
)


@given(OPTIONS, OPTIONS)
def test_flags_are_equal_where_all_their_options_are(some, other):
    flags = [Flags(), Flags()]
    for each, options in zip(flags, (some, other), strict=True):
        for name, value in options.items():
            setattr(each, name, value)
    same = flags[0].values() == flags[1].values()
    assert (flags[0] == flags[1]) == same
    assert not same or hash(flags[0]) == hash(flags[1])
