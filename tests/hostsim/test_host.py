import itertools

import numpy as np
import pytest

from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_HOUR, NS_PER_MIN, NS_PER_S
from hostsim.host import (
    OP_DISCARD,
    OP_TOUCH,
    Host,
    births_per_tick,
    kernel_tick,
)
from hostsim.host_row import NR_ROW_HEAD, fill_host_row
from hostsim.mm.check import FrameKind, check_memory, frame_owner
from hostsim.mm.mm_types import MM_RAM_ANON, NIL
from hostsim.mm.turn import TURN_WINDOWS
from hostsim.mm.vmstat import NR_KERNEL
from hostsim.spec import HostSpec, SlabSpec

GIB = 1 << 18
TICK_NS = 5 * NS_PER_MIN
SLAB = SlabSpec(2.0, NS_PER_MIN, 0.2, NS_PER_HOUR, 1024)


def new_host(enabled="never", slab=SLAB, gib=2, kernel="6.12"):
    spec = HostSpec(4, gib * GIB, 0, kernel, enabled, "madvise", True, slab)
    return Host(spec, 0, 1)


def ops(*rows):
    return np.array(rows, np.int64)


def test_struct_pages_and_the_kernel_image_are_not_managed():
    host = new_host()
    # 1/64 of memory for struct page, 32 MiB for the kernel, rounded up to order-10 blocks
    assert frame_owner(host.mem, 1 << 12).kind == FrameKind.RESERVED
    row = np.zeros(len(HOST_COLUMNS), np.int64)
    fill_host_row(host.mem, row, host.mem.scratch, NR_ROW_HEAD)
    assert row[NR_ROW_HEAD] == 2 * GIB - (2 * GIB // 64 + 8192)
    check_memory(host.mem)


def test_processes_that_touch_together_take_turns():
    host = new_host()
    pages = 4 * TURN_WINDOWS * HPAGE_PMD_NR
    first, _ = host.start(0, pages, 0, False)
    second, _ = host.start(1, pages, 0, False)
    touches = ops((first, OP_TOUCH, 0, pages), (second, OP_TOUCH, 0, pages))
    assert host.apply(touches, 2) == 2
    owners = [frame_owner(host.mem, pfn) for pfn in range(0, 2 * GIB, HPAGE_PMD_NR)]
    mine = [o.mm for o in owners if o.kind == FrameKind.ANON]
    changes = sum(a != b for a, b in itertools.pairwise(mine))
    assert changes >= 2 * pages // (TURN_WINDOWS * HPAGE_PMD_NR) - 1
    assert list(host.mem.mm[[first, second], MM_RAM_ANON]) == [pages, pages]


def test_a_huge_page_is_one_turn():
    host = new_host("always")
    mm, _ = host.start(0, 8 * HPAGE_PMD_NR, 0, False)
    host.apply(ops((mm, OP_TOUCH, 0, 8 * HPAGE_PMD_NR)), 1)
    assert host.mem.mm[mm, MM_RAM_ANON] == 8 * HPAGE_PMD_NR
    check_memory(host.mem)


def test_operations_go_on_after_a_kill():
    host = new_host(gib=1)
    big, _ = host.start(0, GIB, 0, False)
    small, _ = host.start(1, GIB, 0, False)
    host.apply(ops((big, OP_TOUCH, 0, 140_000)), 1)
    todo = ops((small, OP_TOUCH, 0, 130_000), (small, OP_DISCARD, 0, 10))
    done = host.apply(todo, 2)
    assert done == 0
    victim = host.oom_victim()
    assert victim == big
    host.stop(victim)
    assert host.apply(todo, 2, done) == 2
    assert host.mem.mm[small, MM_RAM_ANON] == 130_000 - 10
    check_memory(host.mem)


def test_operations_of_a_dead_process_are_passed_over():
    host = new_host()
    todo = ops((NIL, OP_TOUCH, 0, 100), (NIL, OP_DISCARD, 0, 100))
    assert host.apply(todo, 2) == 2


@pytest.mark.parametrize(("life_min", "long_ratio"), [(1, 0.0), (20, 0.0), (1, 0.5)])
def test_slab_population_is_rate_times_lifetime(life_min, long_ratio):
    slab = SlabSpec(4.0, life_min * NS_PER_MIN, long_ratio, NS_PER_HOUR, 64)
    host = new_host(slab=slab)
    base = host.mem.vmstat[NR_KERNEL]
    births = births_per_tick(host.spec, TICK_NS)
    pages = []
    for tick in range(1, 600):
        assert kernel_tick(host.mem, host.slab, tick, TICK_NS, births, host.key)
        pages.append(host.mem.vmstat[NR_KERNEL] - base)
    life_s = (life_min * 60 * (1 - long_ratio)) + 3600 * long_ratio
    # Little's law; blocks of 3.75 pages drawn by the thousand: 5 % is over 3 standard errors
    assert np.mean(pages[100:]) == pytest.approx(4.0 * life_s, rel=0.05)
    check_memory(host.mem)


def test_blocks_outlive_the_wheel():
    slab = SlabSpec(0.2, NS_PER_MIN, 1.0, 10_000 * TICK_NS, 64)
    host = new_host(slab=slab)
    births = births_per_tick(host.spec, TICK_NS)
    for tick in range(1, 4200):
        kernel_tick(host.mem, host.slab, tick, TICK_NS, births, host.key)
    # 4,199 ticks of 60 pages, each of which is left after t ticks with exp(-t / 10,000)
    left = 60 * 10_000 * (1 - np.exp(-0.4199))
    assert host.mem.vmstat[NR_KERNEL] - 64 == pytest.approx(left, rel=0.05)
    check_memory(host.mem)


def test_host_without_room_for_its_kernel_is_refused():
    with pytest.raises(ValueError, match="base_pages"):
        new_host(slab=SLAB._replace(base_pages=4 * GIB))


@pytest.mark.parametrize("kernel", ["5.4", "6"])
def test_unknown_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match="expected one of"):
        new_host(kernel=kernel)


def test_second_is_the_unit_of_rates():
    births = births_per_tick(new_host().spec, TICK_NS)
    assert births[1] == pytest.approx(NS_PER_MIN / TICK_NS)
    assert births[0] == pytest.approx(
        2.0 * TICK_NS / NS_PER_S / 3.75 * 0.8 * 0.2 * (1 - np.exp(-5.0))
    )
