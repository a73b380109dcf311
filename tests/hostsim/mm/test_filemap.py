"""The page cache: it grows, goes before anonymous memory, and what is used twice stays longer."""

import pytest

from hostsim.mm.check import check_memory
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.filemap import drop_pagecache, page_cache_access, page_cache_fill
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MM_SWAP, N_LRU_ACTIVE
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.reclaim import inactive_is_low, try_to_free_pages
from hostsim.mm.swapfile import swapon
from hostsim.mm.vmstat import NAMES

MIB = 256


def counter(mem, name):
    return int(mem.vmstat[NAMES.index(name)])


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_faults_take_the_page_cache_s_memory(kernel):
    mem = new_memory(32 * MIB, kernel, 1)
    assert swapon(mem, 32768)
    got = page_cache_fill(mem, 20 * MIB, False)
    assert got == 20 * MIB
    check_memory(mem)
    mm = mm_alloc(mem, 24 * MIB, 0, 0, False, 0)
    assert touch_range(mem, mm, 0, 24 * MIB, 1, 1.0, 0, True, 0) == FAULT_OK
    check_memory(mem)
    assert counter(mem, "nr_file_pages") < 10 * MIB
    assert counter(mem, "pgsteal_file") > 10 * MIB
    assert mem.mm[mm, MM_SWAP] < 2 * MIB


def test_a_dirty_page_is_written_before_it_is_freed():
    mem = new_memory(16 * MIB, "6.1", 1)
    page_cache_fill(mem, 64, True)
    assert drop_pagecache(mem) == 0
    try_to_free_pages(mem, 0, 1)
    assert counter(mem, "nr_file_pages") < 64
    check_memory(mem)


def test_the_second_access_activates():
    mem = new_memory(16 * MIB, "6.1", 1)
    page_cache_fill(mem, 64, False)
    assert page_cache_access(mem, 64) == 64
    assert mem.node[0, N_LRU_ACTIVE + 1] == 0
    page_cache_access(mem, 64)
    assert mem.node[0, N_LRU_ACTIVE + 1] == 64
    assert counter(mem, "pgactivate") == 64
    for _ in range(8):
        try_to_free_pages(mem, 0, 1)
    check_memory(mem)
    assert counter(mem, "pgdeactivate") > 0


def test_dropping_the_cache_frees_all_clean_pages():
    mem = new_memory(16 * MIB, "6.12", 1)
    page_cache_fill(mem, 1000, False)
    assert drop_pagecache(mem) == 1000
    assert counter(mem, "nr_file_pages") == 0
    check_memory(mem)


@pytest.mark.parametrize(
    ("gib", "ratio"),
    [(0, 1), (1, 3), (10, 10), (100, 31), (1024, 101)],  # mm/vmscan.c inactive_is_low, its table
)
def test_how_long_the_inactive_list_must_be(gib, ratio):
    total = max(gib << 18, 1000)
    inactive = total // (ratio + 1)
    assert not inactive_is_low(inactive + 1, total - inactive - 1)
    assert inactive_is_low(inactive - 1, total - inactive + 1)
