"""Hot kernels keep no reference-count calls: with them they are 30 times slower."""

import os
import subprocess
import sys
from pathlib import Path

PROBE = """
import numpy as np
from hostsim.core.jit import refops
from hostsim.mm.fault import touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.memory import new_memory
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.zap import discard_range, exit_mm

mem = new_memory(8192, "6.1", 1)
parent = mm_alloc(mem, 2048, 512, 0, True, 1)
touch_range(mem, parent, 0, 600, 1, 1.0, 0, True, 0)
child = mm_alloc(mem, 2048, 512, 0, True, 1)
copy_mm(mem, parent, child)
discard_range(mem, child, 3, 5)
exit_mm(mem, child)
for hot in (touch_range, copy_mm, discard_range, exit_mm):
    assert hot.signatures, f"{hot.__name__} was not compiled"
    assert hot.inspect_llvm(hot.signatures[0]), f"{hot.__name__} came from a cache"
    print(hot.__name__, refops(hot))
"""


def test_hot_kernels_have_no_reference_counts(tmp_path):
    root = Path(__file__).resolve().parents[1]
    env = {**os.environ, "FLEET_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    found = subprocess.run(
        [sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    counts = dict(line.split() for line in found.stdout.splitlines())
    assert counts == dict.fromkeys(("touch_range", "copy_mm", "discard_range", "exit_mm"), "0")
