"""The shape of /proc/buddyinfo, pagetypeinfo and the extfrag files."""

import re

import pytest
from pagemap import drawn_memory, picture

from hostsim.mm.memory import (
    buddyinfo,
    extfrag_index,
    new_memory,
    pagetypeinfo,
    unusable_index,
)
from hostsim.mm.mm_types import MIGRATE_MOVABLE, NR_ZONES, Z_LABEL

# Lines of a 1 GiB virtual machine with Linux 6.1, read before any program ran.
REAL_BUDDYINFO = "Node 0, zone    DMA32      1      1      2      1      2      1      1      0      2      2    229 "  # noqa: E501
REAL_HEADER = "Free pages count per migrate type at order       0      1      2      3      4      5      6      7      8      9     10 "  # noqa: E501
REAL_BLOCKS = (
    "Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic      Isolate "
)
REAL_FREE = "Node    0, zone      DMA, type    Unmovable      0      0      0      0      0      1      1      1      0      0      0 "  # noqa: E501


def shape(line):
    return re.sub(r" +\d+", lambda m: "#" * len(m.group()), line)


@pytest.mark.parametrize("pages", [4096, 8192, (1 << 20) + 1024])
def test_buddyinfo_has_the_kernels_columns(pages):
    mem = new_memory(pages, "6.1", 1)
    lines = buddyinfo(mem)
    assert len(lines) == {4096: 1, 8192: 2}.get(pages, 3)
    for line in lines:
        assert len(line) == len(REAL_BUDDYINFO)
        assert shape(line)[24:] == shape(REAL_BUDDYINFO)[24:]
    assert lines[0].startswith("Node 0, zone      DMA ")
    assert lines[0].split()[4:] == ["0"] * 10 + ["4"]


def test_pagetypeinfo_has_the_kernels_lines():
    mem = drawn_memory("6.1", [("." + "K" * 63, 0), ("." * 33 + "A" * 31, 1)])
    lines = pagetypeinfo(mem)
    assert lines[:3] == ["Page block order: 9", "Pages per block:  512", ""]
    assert lines[3] == REAL_HEADER
    assert shape(lines[4]) == shape(REAL_FREE)
    assert lines[4].split()[6:] == ["0", "0", "0", "1", "0", "0", "0", "0", "0", "0", "0"]
    names = [line.split()[5] for line in lines[4:9]]
    assert names == ["Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate"]
    assert lines[-2] == REAL_BLOCKS
    assert lines[-1].split()[4:] == ["1", "7", "0", "0", "0"]


@pytest.mark.parametrize(("blocks", "cell"), [(100_000, " 100000"), (100_001, " >100000")])
def test_pagetypeinfo_caps_counts_above_100000(blocks, cell):
    mem = new_memory(4096, "6.1", 1)
    mem.nr_free[0, MIGRATE_MOVABLE, 0] = blocks
    assert f"Movable{cell} " in pagetypeinfo(mem)[5]


def test_index_files_print_three_decimals():
    mem = new_memory(4096, "6.1", 1)
    assert unusable_index(mem) == ["Node 0, zone      DMA " + "0.000 " * 11]
    assert extfrag_index(mem) == ["Node 0, zone      DMA " + "-1.000 " * 11]


@pytest.mark.parametrize("pages", [0, -1024, 1000, 4097])
def test_memory_is_a_multiple_of_the_largest_block(pages):
    with pytest.raises(ValueError, match=f"nr_pages {pages} is not a positive multiple of 1024"):
        new_memory(pages, "6.1", 1)


def test_labels_count_all_pageblocks():
    mem = new_memory(8192, "6.12", 1)
    assert mem.zone[:, Z_LABEL : Z_LABEL + NR_ZONES].sum() == 16


def test_pictures_read_back_as_drawn():
    mem = drawn_memory("6.1", [("..AA.K*A", 1), ("KKKKKKKK", 0)])
    assert [picture(mem, pb) for pb in range(2)] == ["..AA.kBA", "kkkkkkkk"]
