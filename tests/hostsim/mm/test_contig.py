"""Free aligned blocks of 32 MiB and 1 GiB, and pageblocks with unmovable pages."""

import numpy as np
import pytest

from hostsim.core.errors import InvariantError
from hostsim.mm.buddy import rmqueue_run
from hostsim.mm.check import check_memory
from hostsim.mm.fault import touch_range
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    P_FREE_1G,
    P_FREE_32M,
    P_PAGEBLOCKS,
    P_UNMOVABLE_BLOCKS,
    ZONE_NORMAL,
)
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.page_alloc import free_order
from hostsim.mm.page_ext import all_of
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.slab import alloc_boot_pages
from hostsim.mm.state import restore_parts, used_parts
from hostsim.mm.zap import exit_mm

GIB = 1 << 18


def unmovable(mem):
    """Return the unmovable pages of each pageblock."""
    return all_of(mem, "unmovable", int(mem.pool[P_PAGEBLOCKS]))


def counts(mem):
    return int(mem.pool[P_FREE_32M]), int(mem.pool[P_FREE_1G])


def test_blocks_of_a_machine_all_free():
    """8 GiB: 256 units of 32 MiB, of which the first has both ZONE_DMA and ZONE_DMA32."""
    mem = new_memory(8 * GIB, "6.12", 1)
    assert counts(mem) == (255, 7)
    check_memory(mem)


def test_block_behind_the_end_of_memory_is_not_one():
    mem = new_memory(5 * GIB + (1 << 12), "6.12", 1)  # 16 MiB beyond 5 GiB
    assert counts(mem) == (5 * 32 - 1, 4)
    check_memory(mem)


def test_struct_pages_take_the_blocks_they_lie_in():
    """8 GiB of struct pages take 128 MiB, the image 32 MiB: five blocks of the last zone."""
    mem = new_memory(8 * GIB, "6.12", 1, memmap=True)
    assert counts(mem) == (250, 6)
    check_memory(mem)


def test_one_pageblock_takes_a_block_and_its_return_gives_it_back():
    mem = new_memory(8 * GIB, "6.12", 1)
    pfn, taken = rmqueue_run(mem, ZONE_NORMAL, MIGRATE_MOVABLE, 0, 1)
    assert taken == 1
    assert counts(mem) == (254, 6)
    free_order(mem, pfn, 0)
    drain_zone_pages(mem, ZONE_NORMAL)
    assert counts(mem) == (255, 7)
    check_memory(mem)


def test_unmovable_pages_are_counted_by_pageblock():
    mem = new_memory(8 * GIB, "6.12", 1)
    assert alloc_boot_pages(mem, 600)
    assert mem.pool[P_UNMOVABLE_BLOCKS] == 2
    mm = mm_alloc(mem, 0, 1 << 12, 0, False, 0)
    touch_range(mem, mm, 0, 1 << 12, 1, 1.0, 0, True, 0)  # eight page tables, beside boot memory
    check_memory(mem)
    assert unmovable(mem).sum() == 608
    exit_mm(mem, mm)
    check_memory(mem)
    assert unmovable(mem).sum() == 600


def test_counts_survive_a_checkpoint():
    mem = new_memory(8 * GIB, "6.12", 1, memmap=True)
    alloc_boot_pages(mem, 600)
    again = restore_parts(used_parts(mem), mem)
    check_memory(again)
    assert counts(again) == counts(mem)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unit_32m", "pageblocks in use of 32 MiB units"),
        ("unit_1g", "pageblocks in use of 1 GiB units"),
    ],
)
def test_validator_notices_a_wrong_count(name, message):
    mem = new_memory(8 * GIB, "6.12", 1)
    getattr(mem, name)[3] += 1
    with pytest.raises(InvariantError, match=message):
        check_memory(mem)


def test_validator_notices_a_wrong_number_of_unmovable_pages():
    mem = new_memory(8 * GIB, "6.12", 1)
    assert alloc_boot_pages(mem, 600)
    mem.page_ext["unmovable"][0] += 513
    with pytest.raises(InvariantError, match="unmovable pages of a pageblock"):
        check_memory(mem)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (P_FREE_32M, "free 32 MiB units"),
        (P_FREE_1G, "free 1 GiB units"),
        (P_UNMOVABLE_BLOCKS, "pageblocks with unmovable pages"),
    ],
)
def test_validator_notices_a_wrong_total(column, message):
    mem = new_memory(8 * GIB, "6.12", 1)
    mem.pool[column] += 1
    with pytest.raises(InvariantError, match=message):
        check_memory(mem)


def test_counts_cost_nothing_where_memory_was_never_used():
    """Zero is free: a machine marks the units that zones share or end in, no others."""
    mem = new_memory(64 * GIB, "6.12", 1)
    assert np.count_nonzero(mem.unit_32m) == 1
    assert np.count_nonzero(mem.unit_1g) == 1
