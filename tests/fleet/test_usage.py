import os
import subprocess
import sys

from fleet.usage import process_tree, usage_of_tree


def test_children_belong_to_the_tree():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in process_tree(os.getpid())
    finally:
        child.communicate(b"\n")
    assert child.pid not in process_tree(os.getpid())


def test_memory_counts_what_is_touched():
    before = usage_of_tree().memory_bytes
    block = bytearray(64 << 20)
    grown = usage_of_tree().memory_bytes - before
    assert len(block) * 3 // 4 < grown < len(block) * 3 // 2  # others come and go


def test_cpu_time_grows():
    before = usage_of_tree().cpu_s
    while usage_of_tree().cpu_s < before + 0.02:
        pass
