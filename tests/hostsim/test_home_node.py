"""On which NUMA nodes VMs start: promises made to VMs, counted by node."""

import pytest

from hostsim.home_node import choose_home, nodes_needed
from hostsim.host import start_qemu
from hostsim.mm.check import check_memory
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MM_NODE, MM_NR_NODES
from hostsim.mm.zap import exit_mm

GIB = 1 << 18


def machine(nodes=2, cpus=32):
    return new_memory(16 * GIB * nodes, "6.12", cpus, nr_nodes=nodes)


def start(mem, gib, vcpus):
    mm, enough = start_qemu(mem, gib * GIB, 0, True, 0, vcpus)
    assert enough
    return int(mm)


def home(mem, mm):
    return int(mem.mm[mm, MM_NODE]), int(mem.mm[mm, MM_NR_NODES])


@pytest.mark.parametrize(
    ("gib", "vcpus", "expected"),
    [(16, 16, 1), (17, 1, 2), (1, 17, 2), (33, 1, 3), (64, 64, 4), (100, 1, 4)],
)
def test_a_vm_runs_on_as_few_nodes_as_hold_it(gib, vcpus, expected):
    assert nodes_needed(gib * GIB, vcpus, 16 * GIB, 16, 4) == expected


def test_vms_start_in_turn_on_the_node_with_the_most_memory_left():
    mem = machine()
    found = [home(mem, start(mem, gib, 2)) for gib in (4, 2, 1, 2, 4)]
    # left: 16 16 | 12 16 | 12 14 | 12 13 | 12 11 | 8 11
    assert found == [(0, 1), (1, 1), (1, 1), (1, 1), (0, 1)]
    check_memory(mem)


def test_a_vm_that_ended_leaves_its_promise():
    mem = machine()
    first = start(mem, 8, 2)
    second = start(mem, 4, 2)
    assert home(mem, second) == (1, 1)
    exit_mm(mem, first)
    assert home(mem, start(mem, 1, 2)) == (0, 1)


def test_vcpus_come_before_memory():
    mem = machine()
    start(mem, 1, 16)  # node 0 is out of vCPUs
    assert home(mem, start(mem, 8, 4)) == (1, 1)
    assert home(mem, start(mem, 4, 4)) == (1, 1)  # 15 GiB against 8
    start(mem, 1, 8)
    assert home(mem, start(mem, 1, 4)) == (0, 1)  # none has vCPUs left


def test_a_large_vm_takes_neighbours_of_which_the_fuller_has_the_most_left():
    mem = machine(4, 64)
    for _ in range(2):
        start(mem, 8, 2)  # nodes 0 and 1
    large = start(mem, 24, 8)
    assert home(mem, large) == (2, 2)
    assert choose_home(mem, 1 * GIB, 1) == (0, 1)  # 8, 8, 4 and 4 GiB are left
    check_memory(mem)


def test_a_machine_of_one_node_has_no_choice():
    mem = machine(1)
    assert home(mem, start(mem, 64, 64)) == (0, 1)
