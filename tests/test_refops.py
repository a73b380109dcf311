"""Hot kernels keep no reference-count calls: with them they are 30 times slower."""

import subprocess
import sys

PROBE = """
import numpy as np
from hostsim.core.jit import refops
from hostsim.mm.fault import touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.memory import new_memory
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.zap import discard_range, exit_mm

HOT = (touch_range, copy_mm, discard_range, exit_mm)
for hot in HOT:  # numba keeps no LLVM for cached code: find none
    hot._cache._cache_file._load_index = dict

mem = new_memory(8192, "6.1", 1)
parent = mm_alloc(mem, 2048, 512, 0, True, 1)
touch_range(mem, parent, 0, 600, 1, 1.0, 0, True, 0)
child = mm_alloc(mem, 2048, 512, 0, True, 1)
copy_mm(mem, parent, child)
discard_range(mem, child, 3, 5)
exit_mm(mem, child)
for hot in HOT:
    assert hot.signatures, f"{hot.__name__} was not compiled"
    assert hot.inspect_llvm(hot.signatures[0]), f"{hot.__name__} came from a cache"
    print(hot.__name__, refops(hot))
"""


def test_hot_kernels_have_no_reference_counts():
    found = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    counts = dict(line.split() for line in found.stdout.splitlines())
    assert counts == dict.fromkeys(("touch_range", "copy_mm", "discard_range", "exit_mm"), "0")
