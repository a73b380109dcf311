"""The validator notices a wrong bit, link, count or owner, and says both sides."""

import pytest
from pagemap import drawn_memory, page_frames

from hostsim.core.errors import InvariantError
from hostsim.mm.check import FrameKind, FrameOwner, check_memory, frame_owner
from hostsim.mm.fault import touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MM_ANON,
    MM_BASE,
    MM_HUGE,
    MM_KERNEL,
    MM_PGTABLES,
    P_EXT_LIVE,
    P_REC_LIVE,
    PCP_COUNT,
    Z_FREE,
    Z_LABEL,
    Z_VIRGIN,
)
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.pb_packed import LABEL_SHIFT, repack, unpacked
from hostsim.mm.physmem import PB_FREE9, PB_HUGE, PB_PARTIAL
from hostsim.mm.vmstat import NR_ANON_PAGES, NR_ANON_THPS, NR_PAGETABLE
from hostsim.mm.zap import discard_range


@pytest.fixture
def busy():
    """Two processes that share a huge page and small ones, holes, and per-CPU lists."""
    mem = new_memory(8192, "6.12", 1)
    for i in range(2):
        mm = mm_alloc(mem, 1024, 512, 0, True, i)
        touch_range(mem, mm, 1024, 100, 1, 1.0, 0, True, 1024)
        touch_range(mem, mm, 0, 1, 1, 1.0, 0, True, 0)
    child = mm_alloc(mem, 1024, 512, 0, True, 2)
    assert copy_mm(mem, 0, child)
    discard_range(mem, 1, 1050, 20)
    check_memory(mem)
    return mem


def of_state(mem, state):
    return next(i for i in range(16) if int(unpacked(mem.pb[i]).state) == state)


def record(mem):
    return int(mem.pb["a"][of_state(mem, PB_PARTIAL)])


def first_extent(mem):
    return (int(mem.windows[mem.mm[0, MM_BASE] + 2]) >> 2) - 1


def relabel(mem):
    mem.pb["packed"][15] ^= 1 << LABEL_SHIFT


def swap_state(mem):
    repack(mem.pb, [of_state(mem, PB_HUGE)], flags=PB_FREE9)


def lose_extent(mem):
    x = first_extent(mem)
    mem.windows[mem.mm[0, MM_BASE] + 2] = (int(mem.ext["next"][x]) + 1) << 2 | 2


CORRUPTIONS = {
    "bitmap": (lambda m: m.rec["bits"].__setitem__((record(m), 15), 7), "free blocks of order"),
    "count": (lambda m: m.rec["count"].__setitem__((record(m), 0), 3), "free blocks of order 0"),
    "link": (lambda m: m.rec["prev"].__setitem__((record(m), slice(None)), 0), "back link"),
    "state": (swap_state, "pageblocks listed|buddies"),
    "virgin": (lambda m: m.zone.__setitem__((1, Z_VIRGIN), m.zone[1, Z_VIRGIN] + 2), "virgin"),
    "label": (relabel, "each label"),
    "labels": (lambda m: m.zone.__setitem__((0, Z_LABEL), 5), "each label"),
    "free": (lambda m: m.zone.__setitem__((0, Z_FREE), 1), "zone DMA free pages: stored 1, "),
    "nr_free": (lambda m: m.nr_free.__setitem__((0, 1, 10), 9), "order 10: nr_free: stored 9"),
    "records": (lambda m: m.pool.__setitem__(P_REC_LIVE, 99), "records live: counter 99"),
    "extents": (lambda m: m.pool.__setitem__(P_EXT_LIVE, 99), "extents live: counter 99"),
    "owner": (lambda m: m.ext["owner"].__setitem__(first_extent(m), 1), "owner|address space"),
    "page": (lambda m: m.ext["vpn"].__setitem__(first_extent(m), 5000), "window of"),
    "shared": (lambda m: m.ext["flags"].__setitem__(first_extent(m), 0), "mapped again"),
    "length": (lambda m: m.ext["nr"].__setitem__(first_extent(m), 600), "leaves its pageblock"),
    "lost extent": (lose_extent, "owners' lists"),
    "frames": (lambda m: m.ext["nr"].__setitem__(m.mm[1, MM_KERNEL] - 1, 9), "."),
    "pcp": (lambda m: m.zone.__setitem__((1, PCP_COUNT), 1), "per-CPU lists: stored 1"),
    "huge": (lambda m: repack(m.pb, [of_state(m, PB_HUGE)], b=[5]), "huge mappings"),
    "rss": (lambda m: m.mm.__setitem__((0, MM_ANON), 5), "resident pages of process"),
    "thp": (lambda m: m.mm.__setitem__((0, MM_HUGE), 5), "windows mapped huge"),
    "tables": (lambda m: m.mm.__setitem__((0, MM_PGTABLES), 5), "page-table pages of process"),
    "anon": (lambda m: m.vmstat.__setitem__(NR_ANON_PAGES, 5), "nr_anon_pages: vmstat 5"),
    "thps": (lambda m: m.vmstat.__setitem__(NR_ANON_THPS, 5), "hugepages: vmstat 5"),
    "pagetable": (lambda m: m.vmstat.__setitem__(NR_PAGETABLE, 5), "nr_page_table_pages: vmstat 5"),
    "stray word": (lambda m: m.windows.__setitem__(-1, 5), "window word of no process"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_is_noticed(busy, name):
    corrupt, message = CORRUPTIONS[name]
    corrupt(busy)
    with pytest.raises(InvariantError, match=message):
        check_memory(busy)


def test_every_frame_has_an_owner(busy):
    kinds = [frame_owner(busy, pfn).kind for pfn in range(8192)]
    assert FrameKind.UNOWNED not in kinds
    assert kinds.count(FrameKind.FREE) == busy.zone[:, Z_FREE].sum()
    assert kinds.count(FrameKind.PCP) == busy.zone[:, PCP_COUNT].sum()
    assert kinds.count(FrameKind.PGTABLE) == busy.vmstat[NR_PAGETABLE]
    anon = kinds.count(FrameKind.ANON) + kinds.count(FrameKind.HUGE)
    assert anon == busy.vmstat[NR_ANON_PAGES]
    for mm in (1, 0):
        for vpn, pfn in enumerate(page_frames(busy, mm).tolist()):
            if pfn >= 0:
                owner = frame_owner(busy, pfn)
                assert owner[1:] == (mm, vpn)


def test_owners_are_those_of_the_picture():
    mem = drawn_memory("6.1", [(".AK*", 1)])
    assert [frame_owner(mem, pfn) for pfn in (0, 128, 256, 384)] == [
        FrameOwner(FrameKind.FREE),
        FrameOwner(FrameKind.ANON, 0, 128),
        FrameOwner(FrameKind.KERNEL),
        FrameOwner(FrameKind.BOOT),
    ]
