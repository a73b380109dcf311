"""Watermarks, reserves and batches against values read from running kernels."""

import numpy as np
import pytest

from hostsim.core.units import parse_pages
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    NR_ZONE_FIELDS,
    NR_ZONES,
    Z_FREE,
    Z_MANAGED,
    Z_PCP_BATCH,
    Z_PCP_HIGH_MAX,
    Z_PCP_HIGH_MIN,
    Z_RESERVE,
    Z_WMARK_HIGH,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
)
from hostsim.mm.watermark import min_free_kbytes, set_watermarks, zone_watermark_ok


@pytest.fixture
def live():
    """/proc/zoneinfo of a virtual machine with three zones (Linux 6.18)."""
    zone = np.zeros((NR_ZONES, NR_ZONE_FIELDS), np.int64)
    zone[:, Z_MANAGED] = (3840, 772917, 163840)
    set_watermarks(zone, 67584, 1)
    return zone


def test_watermarks_are_those_of_a_running_machine(live):
    marks = live[:, [Z_WMARK_MIN, Z_WMARK_LOW, Z_WMARK_HIGH]].tolist()
    assert marks == [[68, 85, 102], [13883, 17353, 20823], [2943, 3678, 4413]]


def test_lowmem_reserves_are_those_of_a_running_machine(live):
    assert live[:, Z_RESERVE].tolist() == [3659, 640, 0]


def test_batches_are_those_of_a_running_machine(live):
    assert live[[0, 1], Z_PCP_BATCH].tolist() == [1, 63]


@pytest.mark.parametrize(("managed", "batch"), [(64 << 10, 15), (163840, 31), (1 << 30, 63)])
def test_batch_is_one_less_than_a_power_of_two_and_at_most_63(managed, batch):
    zone = np.zeros((NR_ZONES, NR_ZONE_FIELDS), np.int64)
    zone[2, Z_MANAGED] = managed
    set_watermarks(zone, 67584, 1)
    assert zone[2, Z_PCP_BATCH] == batch


def test_pcp_limits_are_the_low_mark_and_an_eighth(live):
    assert live[2, Z_PCP_HIGH_MIN] == 3678
    assert live[2, Z_PCP_HIGH_MAX] == 163840 // 8


def test_pcp_limits_are_at_least_four_batches_a_cpu():
    zone = np.zeros((NR_ZONES, NR_ZONE_FIELDS), np.int64)
    zone[2, Z_MANAGED] = 163840
    set_watermarks(zone, 67584, 256)
    assert zone[2, Z_PCP_HIGH_MIN] == zone[2, Z_PCP_HIGH_MAX] == 4 * 31 * 256


@pytest.mark.parametrize(
    ("ram", "base", "with_thp"),
    [
        ("4GiB", 8192, 67584),
        ("64GiB", 32768, 67584),
        ("256GiB", 65536, 67584),
        ("512GiB", 92681, 92681),
        ("1TiB", 131072, 131072),
        ("4TiB", 262144, 262144),
    ],
)
def test_min_free_kbytes_of_machines(ram, base, with_thp):
    """isqrt(16 * kB) up to 262144; THP asks for 11 pageblocks a zone: 3 zones 67584 kB."""
    assert min_free_kbytes(parse_pages(ram), 3, thp=False) == base
    assert min_free_kbytes(parse_pages(ram), 3, thp=True) == with_thp
    assert min_free_kbytes(parse_pages(ram), 4, thp=True) == max(base, 90112)


def test_min_free_kbytes_for_thp_is_at_most_a_twentieth():
    pages = parse_pages("64MiB")
    assert min_free_kbytes(pages, 3, thp=True) == 4 * (pages * 5 // 100)


@pytest.mark.parametrize(("spare", "passes"), [(0, False), (1, True)])
@pytest.mark.parametrize("order", [0, 3, 9])
def test_an_allocation_must_leave_more_than_mark_and_reserve(order, spare, passes):
    mem = new_memory(8192, "6.1", 1)
    reserve = int(mem.zone[0, Z_RESERVE])
    assert reserve > 0
    mem.zone[0, Z_FREE] = 100 + reserve + (1 << order) - 1 + spare
    assert zone_watermark_ok(mem, 0, order, 100) == passes


def test_a_high_order_needs_a_block_of_its_order_or_more():
    mem = new_memory(4096, "6.1", 1)
    mem.nr_free[:] = 0
    mem.nr_free[0, MIGRATE_MOVABLE, 8] = 8
    assert zone_watermark_ok(mem, 0, 0, 0)
    assert zone_watermark_ok(mem, 0, 8, 0)
    assert not zone_watermark_ok(mem, 0, 9, 0)
